use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use yurt_frames::{ACK, Icmp, Packet as Sent, SYN, flaws, ip as host, tcp, udp};

use super::super::tests::{Cast, Node, at, casts, ends, ip};
use super::*;
use crate::abi::FLOW_QUIET_S;
use crate::rewrite::tests::{frame, without_sum};

/// A flow of a client outside, as each of its packets is on the wire on either side of the node.
#[derive(Clone, Copy)]
struct Seen {
    client: SocketAddr,
    dialled: SocketAddr,
    backend: SocketAddr,
    /// What the backend takes for the client.
    shown: SocketAddr,
}

/// Opens one; `is_here`: the backend is on this node.
fn open(node: &mut Node, protocol: u8, cast: &Cast, is_here: bool) -> Seen {
    let &Cast {
        client,
        dialled,
        backend,
        ..
    } = cast;
    let packet = |from, to| match protocol {
        TCP => tcp(from, to, SYN, b""),
        _ => udp(from, to, b"?"),
    };
    let (verdict, after) = node.arrive(&packet(client, dialled));
    assert_eq!(verdict, Verdict::Is(Handled::NewFlow));
    assert_eq!(ends(&after[14..]).1, backend);
    let shown = match is_here {
        true => client,
        false => ends(&node.leave(&packet(client, backend), true).1[14..]).0,
    };
    Seen {
        client,
        dialled,
        backend,
        shown,
    }
}

/// What hosts send each other, of one protocol.
fn packets(protocol: u8, from: SocketAddr, to: SocketAddr) -> Vec<Vec<u8>> {
    let mut packets = match protocol {
        TCP => vec![tcp(from, to, ACK, b"hello").bytes()],
        _ => vec![udp(from, to, b"odd").bytes(), without_sum(from, to).bytes()],
    };
    // Routers of old send eight bytes behind the header.
    let header = if from.is_ipv4() { 20 } else { 40 };
    let short = packets[0][..header + 8].to_vec();
    packets.push(short);
    packets
}

fn errors(from: IpAddr, to: IpAddr, about: &[u8]) -> [Sent; 4] {
    let error = host(from, to);
    let parameter = Icmp::new(if from.is_ipv4() { 12 } else { 4 });
    [
        error.clone().port_unreachable(about),
        error.clone().too_big(1280, about),
        error.clone().time_exceeded(about),
        error.then(parameter).data(about),
    ]
}

fn router(of: &Cast) -> IpAddr {
    match of.client {
        SocketAddr::V4(_) => ip("203.0.113.254"),
        SocketAddr::V6(_) => ip("2001:db8:ff::1"),
    }
}

/// A node with a Service of TCP and UDP.
fn node(cast: &Cast) -> Node {
    let mut node = Node::new();
    for protocol in [TCP, UDP] {
        let (dialled, backend) = (cast.dialled.to_string(), cast.backend.to_string());
        node.serve(protocol, &[&dialled], &[&backend]);
    }
    node
}

#[track_caller]
fn becomes((verdict, after): (Verdict, Vec<u8>), as_what: Handled, expected: &Sent) {
    assert_eq!(verdict, Verdict::Is(as_what));
    assert_eq!(after, frame(expected));
}

#[test]
fn an_error_about_an_answer_comes_to_the_backend_with_the_packet_as_it_has_sent_it() {
    for cast in casts() {
        for (protocol, is_here) in [(TCP, true), (UDP, true), (TCP, false), (UDP, false)] {
            let mut node = node(&cast);
            let seen = open(&mut node, protocol, &cast, is_here);
            let (router, us) = (router(&cast), cast.node);
            let on_wire = packets(protocol, seen.dialled, seen.client);
            let inside = packets(protocol, seen.backend, seen.client);
            let beyond = packets(protocol, seen.backend, seen.shown);
            for ((on_wire, inside), beyond) in on_wire.iter().zip(&inside).zip(&beyond) {
                let sent = errors(router, seen.dialled.ip(), on_wire);
                let led = errors(router, seen.backend.ip(), inside);
                let told = errors(us, seen.backend.ip(), beyond);
                for ((sent, led), told) in sent.iter().zip(&led).zip(&told) {
                    becomes(node.arrive(sent), Handled::ToBackend, led);
                    if !is_here {
                        becomes(node.leave(led, true), Handled::ToBackend, told);
                    }
                }
            }
        }
    }
}

#[test]
fn an_error_from_beyond_the_node_comes_to_the_client_from_the_address_that_it_dialled() {
    for cast in casts() {
        for protocol in [TCP, UDP] {
            let mut node = node(&cast);
            let seen = open(&mut node, protocol, &cast, false);
            let router = router(&cast);
            let beyond = packets(protocol, seen.shown, seen.backend);
            let inside = packets(protocol, seen.client, seen.backend);
            let on_wire = packets(protocol, seen.client, seen.dialled);
            for ((beyond, inside), on_wire) in beyond.iter().zip(&inside).zip(&on_wire) {
                let sent = errors(router, seen.shown.ip(), beyond);
                let led = errors(router, seen.client.ip(), inside);
                let told = errors(seen.dialled.ip(), seen.client.ip(), on_wire);
                for ((sent, led), told) in sent.iter().zip(&led).zip(&told) {
                    becomes(node.arrive(sent), Handled::ToClient, led);
                    becomes(node.leave(led, true), Handled::ToClient, told);
                }
            }
        }
    }
}

#[test]
fn an_error_of_this_node_or_of_its_pods_is_about_the_packet_as_it_was_on_the_wire() {
    for cast in casts() {
        for (protocol, is_here) in [(TCP, true), (UDP, true), (TCP, false), (UDP, false)] {
            let mut node = node(&cast);
            let seen = open(&mut node, protocol, &cast, is_here);
            let inside = packets(protocol, seen.client, seen.backend);
            let on_wire = packets(protocol, seen.client, seen.dialled);
            for (inside, on_wire) in inside.iter().zip(&on_wire) {
                // The stack says that the next link is too small, a Pod that nobody listens.
                for (from, is_forwarded) in [(cast.node, false), (seen.backend.ip(), true)] {
                    let sent = errors(from, seen.client.ip(), inside);
                    let told = errors(seen.dialled.ip(), seen.client.ip(), on_wire);
                    for (sent, told) in sent.iter().zip(&told) {
                        becomes(node.leave(sent, is_forwarded), Handled::ToClient, told);
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_no_error_about_a_flow_goes_on_unchanged() {
    for cast in casts() {
        let mut node = node(&cast);
        let seen = open(&mut node, UDP, &cast, true);
        let router = router(&cast);
        let Seen {
            client,
            dialled,
            backend,
            ..
        } = seen;
        let other = SocketAddr::new(client.ip(), client.port() + 1);
        let answer = |from, to| udp(from, to, b"!").bytes();
        let redirect = Icmp::new(if client.is_ipv4() { 5 } else { 137 });
        let later = host(router, dialled.ip())
            .port_unreachable(&answer(dialled, client))
            .fragments(7, &[16]);
        let held = udp(dialled, client, &[7; 40]).fragments(8, &[24]);
        let packets = [
            // Of another port, and about a packet of somebody else.
            host(router, dialled.ip()).port_unreachable(&answer(dialled, other)),
            host(router, backend.ip()).port_unreachable(&answer(dialled, client)),
            host(router, dialled.ip())
                .then(redirect)
                .data(&answer(dialled, client)),
            // Of a later fragment nobody knows the flow; nor is an error read that comes in parts.
            host(router, dialled.ip()).too_big(1280, &held[1].bytes()),
            later[0].clone(),
            host(client.ip(), dialled.ip()).ping(7),
            host(backend.ip(), client.ip()).pong(7),
        ];
        for packet in packets {
            assert_eq!(node.arrive(&packet), (Verdict::Pass, frame(&packet)));
            for is_forwarded in [false, true] {
                let left = node.leave(&packet, is_forwarded);
                assert_eq!(left, (Verdict::Pass, frame(&packet)));
            }
        }
    }
}

#[test]
fn an_error_does_not_keep_a_flow_alive() {
    for cast in casts() {
        let mut node = node(&cast);
        let seen = open(&mut node, UDP, &cast, true);
        let about = udp(seen.dialled, seen.client, b"!").bytes();
        let error = host(router(&cast), seen.dialled.ip()).port_unreachable(&about);
        node.now_s += FLOW_QUIET_S;
        assert_eq!(node.arrive(&error).0, Verdict::Is(Handled::ToBackend));
        node.now_s += 1;
        assert_eq!(node.arrive(&error), (Verdict::Pass, frame(&error)));
    }
}

proptest! {
    /// Wherever an error arises, about whichever packet of whichever flow: it comes to the one who has sent that
    /// packet, and holds it as it was sent.
    #[test]
    fn who_is_told_of_an_error_has_sent_the_packet_in_it(
        flows in proptest::collection::vec((0..3_u16, 0..2_usize, any::<bool>()), 1..8),
        words in 14..40_usize,
        kind in 0..4_usize,
        seed in any::<u32>(),
    ) {
        let mut node = Node::new();
        node.random = std::cell::Cell::new(seed);
        let frontends = ["192.0.2.11:30001", "203.0.113.9:80"];
        let backends = ["10.244.1.5:80", "10.244.2.5:81"];
        for frontend in frontends {
            node.serve(TCP, &[frontend], &backends);
            node.serve(UDP, &[frontend], &backends);
        }
        let (router, length) = (ip("203.0.113.254"), words * 2);
        for (port, frontend, is_tcp) in flows {
            let (client, dialled) = (SocketAddr::new(ip("198.51.100.7"), 61000 + port), at(frontends[frontend]));
            let data = [port.to_be_bytes()[1]; 21];
            let packet = |from, to| match is_tcp {
                true => tcp(from, to, SYN, &data),
                false => udp(from, to, &data),
            };
            let (verdict, after) = node.arrive(&packet(client, dialled));
            if !matches!(verdict, Verdict::Is(Handled::NewFlow | Handled::ToBackend)) {
                continue;
            }
            let backend = ends(&after[14..]).1;
            let is_here = backend == at(backends[0]);
            let shown = match is_here {
                true => client,
                false => ends(&node.leave(&packet(client, backend), true).1[14..]).0,
            };
            let begins = |bytes: Vec<u8>| bytes[..length.min(bytes.len())].to_vec();
            let error = |from, to, about: SocketAddr, about_to| {
                errors(from, to, &begins(packet(about, about_to).bytes()))[kind].clone()
            };
            // About an answer, between this node and the client.
            let (verdict, mut after) = node.arrive(&error(router, dialled.ip(), dialled, client));
            prop_assert_eq!(verdict, Verdict::Is(Handled::ToBackend));
            if !is_here {
                let (verdict, left) = node.leave(&error(router, backend.ip(), backend, client), true);
                prop_assert_eq!(verdict, Verdict::Is(Handled::ToBackend));
                after = left;
            }
            prop_assert_eq!(&after[42..], begins(packet(backend, shown).bytes()));
            prop_assert!(flaws(&after).is_empty());
            // About a question, behind this node, and then about one that has not left it yet.
            if !is_here {
                let (verdict, after) = node.arrive(&error(router, shown.ip(), shown, backend));
                prop_assert_eq!(verdict, Verdict::Is(Handled::ToClient));
                prop_assert_eq!(&after[42..], begins(packet(client, backend).bytes()));
            }
            let (verdict, after) = node.leave(&error(backend.ip(), client.ip(), client, backend), is_here);
            prop_assert_eq!(verdict, Verdict::Is(Handled::ToClient));
            prop_assert_eq!(&after[42..], begins(packet(client, dialled).bytes()));
            prop_assert!(flaws(&after).is_empty());
        }
    }
}
