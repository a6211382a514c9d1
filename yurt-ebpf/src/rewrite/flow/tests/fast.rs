//! Flows that are led past the stack.

use super::*;
use crate::rewrite::hop::{Ends, address, take_hop};

/// A flow to a Pod of this node, of which the first packet was led by, and whether it was made fast.
fn begun<A: Address>(node: &Node, flows: &mut Map<A>, packet: &Sent, is_fast: bool) {
    let (view, mut room) = (View::<false>(node), scratch());
    let mut bytes = Bytes(frame(packet));
    let verdict = opening(&mut bytes, &view, flows, &view, &mut room);
    assert_eq!(verdict, Verdict::Is(Handled::NewFlow));
    assert!(!room.is_fast());
    assert!(!is_fast || begin_fast(flows, &room));
}

fn is_led_fast<A: Address>(node: &Node, flows: &mut Map<A>, packet: &Sent) -> bool {
    let mut room = scratch();
    let view = View::<false>(node);
    let verdict = arriving(&mut Bytes(frame(packet)), flows, &view, &mut room);
    assert_eq!(verdict, Verdict::Is(Handled::ToBackend));
    room.is_fast()
}

fn answer_goes_to<A: Address>(node: &Node, flows: &mut Map<A>, packet: &Sent) -> Option<u32> {
    let view = View::<true>(node);
    answers_fast(&Bytes(frame(packet)), flows, &view, &mut scratch::<A>())
}

fn a_flow_is_fast_or_not_in_both_directions<A: Address>(mut flows: Map<A>, cast: &Cast) {
    let Cast {
        client,
        dialled,
        backend,
        ..
    } = *cast;
    let mut node = Node::new();
    for protocol in [TCP, UDP] {
        node.serve(protocol, &[&dialled.to_string()], &[&backend.to_string()]);
    }
    let later = tcp(client, dialled, ACK, b"question");
    let first_answer = tcp(backend, client, SYN | ACK, b"");
    let answer = tcp(backend, client, ACK, b"answer");
    for is_fast in [false, true] {
        let led = is_fast.then_some(2);
        begun(&node, &mut flows, &tcp(client, dialled, SYN, b""), is_fast);
        // Only what answers the SYN is the flow's, as for who changes it where it leaves.
        let other = host_to_host(backend, client).then(Tcp {
            acknowledged: 0x5000_0000,
            ..Tcp::new(backend.port(), client.port(), ACK)
        });
        assert_eq!(answer_goes_to(&node, &mut flows, &other), None);
        assert_eq!(answer_goes_to(&node, &mut flows, &first_answer), led);
        let mut bytes = Bytes(frame(&first_answer));
        let view = View::<false>(&node);
        leaving(&mut bytes, &mut flows, &view, &mut scratch(), true, || None);
        // So it stays when the flow is up, and when it is closed.
        for packet in [&later, &tcp(client, dialled, FIN_ACK, b""), &later] {
            assert_eq!(is_led_fast(&node, &mut flows, packet), is_fast);
            assert_eq!(answer_goes_to(&node, &mut flows, &answer), led);
        }
        let datagram = udp(client, dialled, b"question");
        begun(&node, &mut flows, &datagram, is_fast);
        assert_eq!(is_led_fast(&node, &mut flows, &datagram), is_fast);
        let answered = udp(backend, client, b"answer");
        assert_eq!(answer_goes_to(&node, &mut flows, &answered), led);
        // What nobody answers is over some time.
        let until = std::mem::replace(&mut node.now_s, 1000 + FLOW_QUIET_S + 1);
        assert_eq!(answer_goes_to(&node, &mut flows, &answered), None);
        node.now_s = until;
        flows = Map::new();
    }
    let to_another = tcp(backend, dialled, ACK, b"");
    assert_eq!(answer_goes_to(&node, &mut flows, &to_another), None);
}

#[test]
fn a_flow_is_led_past_the_stack_in_both_directions_from_its_first_packet_on_or_never() {
    let [v4, v6] = casts();
    a_flow_is_fast_or_not_in_both_directions(Map::<[u8; 4]>::new(), &v4);
    a_flow_is_fast_or_not_in_both_directions(Map::<[u8; 16]>::new(), &v6);
}

#[test]
fn a_hop_is_taken_off_as_a_router_does_and_nothing_else_changes() {
    fn check<A: Address>(packet: &Sent) {
        let before = frame(packet);
        let at = if A::IS_V6 { 14 + 7 } else { 14 + 8 };
        // Sums of the header that carry, too.
        for hops in 2..=255 {
            let mut bytes = Bytes(before.clone());
            bytes.0[at] = hops;
            if !A::IS_V6 {
                (bytes.0[24], bytes.0[25]) = (0, 0);
                let sum = bytes.0[14..34].chunks(2).fold(0_u32, |sum, word| {
                    sum + u32::from(u16::from_be_bytes([word[0], word[1]]))
                });
                let sum = (sum & 0xffff) + (sum >> 16);
                let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
                bytes.0[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            take_hop::<A, _>(&mut bytes).unwrap();
            assert_eq!(bytes.0[at], hops - 1);
            assert_eq!(flaws(&bytes.0), [""; 0], "{hops}");
        }
        for hops in [0, 1] {
            let mut bytes = Bytes(before.clone());
            bytes.0[at] = hops;
            let unchanged = bytes.0.clone();
            assert_eq!(take_hop::<A, _>(&mut bytes), None);
            assert_eq!(bytes.0, unchanged);
        }
        let mut bytes = Bytes(before.clone());
        address(&mut bytes, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]).unwrap();
        assert_eq!(bytes.0[..12], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(bytes.0[12..], before[12..]);
    }
    let [v4, v6] = casts();
    check::<[u8; 4]>(&tcp(v4.client, v4.backend, ACK, b"question"));
    check::<[u8; 16]>(&udp(v6.client, v6.backend, b"question"));
}

#[test]
fn options_fragments_and_other_protocols_are_left_to_the_stack() {
    let [
        Cast {
            client, backend, ..
        },
        _,
    ] = casts();
    let ends = |bytes: Vec<u8>| Ends::<[u8; 4]>::of(&Bytes(bytes));
    let plain = frame(&udp(client, backend, b"question"));
    assert_eq!(
        ends(plain.clone()),
        Some(Ends {
            source: octets(client.ip()),
            destination: octets(backend.ip()),
        })
    );
    let changed = |at: usize, to: u8| {
        let mut bytes = plain.clone();
        bytes[at] = to;
        ends(bytes)
    };
    // A header of 24 bytes; more fragments; a later one; ICMP.
    for (at, to) in [(14, 0x46), (20, 0x20), (21, 1), (23, 1)] {
        assert_eq!(changed(at, to), None, "{at}");
    }
}
