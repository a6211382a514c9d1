//! Fragments, of which only the first has ports.

use super::*;

/// Fragments in the order that numbers say, but for the first one.
fn shuffled(mut fragments: Vec<Sent>, order: &[usize]) -> Vec<Sent> {
    let mut shuffled = vec![fragments.remove(0)];
    for at in order {
        if !fragments.is_empty() {
            shuffled.push(fragments.remove(at % fragments.len()));
        }
    }
    shuffled.append(&mut fragments);
    shuffled
}

/// What the fragments of a packet must be.
fn assert_fragments(mut are: Vec<Vec<u8>>, of: &Sent, id: u16, cuts: &[usize]) {
    let mut should_be: Vec<Vec<u8>> = of.fragments(id, cuts).iter().map(frame).collect();
    are.sort();
    should_be.sort();
    assert_eq!(are, should_be);
}

#[test]
fn a_later_fragment_follows_the_first_one_of_its_own_packet_alone() {
    for Cast {
        client,
        dialled,
        backend,
        ..
    } in casts()
    {
        let mut node = Node::new();
        node.serve(UDP, &[&dialled.to_string()], &[&backend.to_string()]);
        let elsewhere = SocketAddr::new(dialled.ip(), 9);
        let ours = udp(client, dialled, &[7; 60]).fragments(9, &[24]);
        let others = udp(client, elsewhere, &[7; 60]).fragments(9, &[24]);
        // Before the first one there is nothing to follow, and nothing is held back.
        assert_eq!(node.arrive(&ours[1]), (Verdict::Pass, frame(&ours[1])));
        node.led(&ours[0], Handled::NewFlow);
        assert_eq!(node.arrive(&ours[1]).0, Verdict::Is(Handled::ToBackend));
        // Of another identification.
        let stranger = &udp(client, dialled, &[7; 60]).fragments(10, &[24])[1];
        assert_eq!(node.arrive(stranger).0, Verdict::Pass);
        // The same one, of what is no Service's.
        assert_eq!(node.arrive(&others[0]).0, Verdict::Pass);
        assert_eq!(node.arrive(&others[1]), (Verdict::Pass, frame(&others[1])));
        // Or much later.
        node.led(&ours[0], Handled::ToBackend);
        node.now_s += FLOW_PART_S + 1;
        assert_eq!(node.arrive(&ours[1]).0, Verdict::Pass);
    }
}

proptest! {
    /// Whatever its sum, size and pieces, whichever way: what was one datagram is one again, as if it had come whole.
    #[test]
    fn fragments_of_a_datagram_in_any_order_that_begins_with_the_first_arrive_as_the_whole_would(
        order in proptest::collection::vec(0..8_usize, 5),
        cuts in 1..6_usize,
        is_here in any::<bool>(),
        id in any::<u16>(),
    ) {
        let data: Vec<u8> = (0..120).collect();
        let cuts: Vec<usize> = (1..=cuts).map(|cut| cut * 16).collect();
        for Cast { client, dialled, backend, .. } in casts() {
            let mut node = Node::new();
            node.serve(UDP, &[&dialled.to_string()], &[&backend.to_string()]);
            let arrive = |node: &mut Node, sent: Sent, as_it_should: Sent, is_answer: bool| {
                let fragments = shuffled(sent.fragments(id, &cuts), &order);
                let what = if is_answer { Handled::ToClient } else { Handled::ToBackend };
                let arrived = fragments.iter().enumerate().map(|(at, fragment)| {
                    let (verdict, after) = node.arrive(fragment);
                    let is_new = at == 0 && !is_answer;
                    assert_eq!(verdict, Verdict::Is(if is_new { Handled::NewFlow } else { what }));
                    after
                });
                assert_fragments(arrived.collect(), &as_it_should, id, &cuts);
            };
            let leave = |node: &mut Node, sent: Sent, as_it_should: Sent| {
                let fragments = shuffled(sent.fragments(id, &cuts), &order);
                let left = fragments.iter().map(|fragment| node.leave(fragment, true).1);
                assert_fragments(left.collect(), &as_it_should, id, &cuts);
            };
            arrive(&mut node, udp(client, dialled, &data), udp(client, backend, &data), false);
            if !is_here {
                let (seen, _) = node.sent(&udp(client, backend, b"?"), Handled::ToBackend);
                leave(&mut node, udp(client, backend, &data), udp(seen, backend, &data));
                arrive(&mut node, udp(backend, seen, &data), udp(backend, client, &data), true);
            }
            leave(&mut node, udp(backend, client, &data), udp(dialled, client, &data));
        }
    }
}
