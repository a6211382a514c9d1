//! When a flow is over, and what a port may do then.

use super::*;

#[test]
fn a_syn_that_is_sent_again_goes_to_the_same_backend() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    let (mut node, ..) = connected(at("198.51.100.8:1"), dialled);
    let first = node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
    for _ in 0..5 {
        let again = node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
        assert_eq!(again, first);
    }
}

#[test]
fn a_stray_syn_moves_no_connection_that_is_up() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    let (mut node, _, backend) = connected(client, dialled);
    for _ in 0..10 {
        let led = node.led(&tcp(client, dialled, SYN, b""), Handled::ToBackend);
        assert_eq!(led, backend);
        let led = node.led(&tcp(client, dialled, ACK, b"more"), Handled::ToBackend);
        assert_eq!(led, backend);
    }
}

#[test]
fn a_connection_that_begins_in_a_flow_that_one_side_had_closed_is_up_until_both_of_its_own_sides_have_closed_it()
 {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    for is_by_client in [true, false] {
        let (mut node, _, backend) = connected(client, dialled);
        let by_client = tcp(client, dialled, FIN_ACK, b"");
        let by_backend = tcp(backend, client, FIN_ACK, b"");
        let close = |node: &mut Node, is_by_client| match is_by_client {
            true => drop(node.led(&by_client, Handled::ToBackend)),
            false => drop(node.sent(&by_backend, Handled::ToClient)),
        };
        close(&mut node, is_by_client);
        node.led(&tcp(client, dialled, SYN, b""), Handled::ToBackend);
        node.sent(&tcp(backend, client, SYN | ACK, b""), Handled::ToClient);
        node.led(&tcp(client, dialled, ACK, b""), Handled::ToBackend);
        close(&mut node, !is_by_client);
        assert_eq!((node.flows4.up.len(), node.flows4.opening.len()), (2, 0));
        close(&mut node, is_by_client);
        assert_eq!((node.flows4.up.len(), node.flows4.opening.len()), (0, 2));
    }
}

#[test]
fn a_port_that_is_used_again_gets_no_backend_of_before_that_has_gone() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    let (mut node, index, _) = connected(client, dialled);
    let other = node.add(&["10.244.9.9:80"]);
    node.services[index] = node.services[other].clone();
    let led = node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
    assert_eq!(led, at("10.244.9.9:80"));
}

#[test]
fn what_the_backend_before_still_sends_is_not_taken_for_an_answer_of_the_one_that_a_port_has_now() {
    for Cast {
        client,
        dialled,
        backend,
        ..
    } in casts()
    {
        for is_elsewhere in [false, true] {
            let mut node = Node::new();
            let index = node.serve(TCP, &[&dialled.to_string()], &[&backend.to_string()]);
            node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
            let mut seen = client;
            if is_elsewhere {
                let syn = tcp(client, backend, SYN, b"");
                (seen, _) = node.sent(&syn, Handled::ToBackend);
            }
            node.sent(&tcp(backend, client, SYN | ACK, b""), Handled::ToClient);
            node.led(&tcp(client, dialled, ACK, b""), Handled::ToBackend);
            let now = SocketAddr::new(backend.ip(), 9090);
            let other = node.add(&[&now.to_string()]);
            node.services[index] = node.services[other].clone();
            assert_eq!(
                node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow),
                now
            );
            let late = tcp(backend, client, ACK, b"late");
            assert_eq!(node.leave(&late, true).0, Verdict::Pass);
            // And no port stands for the client any more.
            let late = tcp(backend, seen, ACK, b"late");
            assert_eq!(node.arrive(&late).0, Verdict::Pass);
            let answer = tcp(now, client, SYN | ACK, b"");
            assert_eq!(node.sent(&answer, Handled::ToClient), (dialled, client));
        }
    }
}

#[test]
fn a_connection_that_was_closed_by_both_sides_or_reset_by_one_is_decided_anew() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    for way in 0..4 {
        for _ in 0..10 {
            let (mut node, _, backend) = connected(client, dialled);
            if way == 0 {
                node.sent(&tcp(backend, client, FIN_ACK, b""), Handled::ToClient);
            }
            if way <= 1 {
                node.led(&tcp(client, dialled, FIN_ACK, b""), Handled::ToBackend);
            }
            match way {
                0 => {}
                1 => drop(node.sent(&tcp(backend, client, FIN_ACK, b""), Handled::ToClient)),
                2 => drop(node.sent(&reset(backend, client), Handled::ToClient)),
                _ => drop(node.led(&reset(client, dialled), Handled::ToBackend)),
            }
            // What ends it is still led, and it takes no room from those that are up.
            node.led(&tcp(client, dialled, ACK, b""), Handled::ToBackend);
            assert_eq!((node.flows4.up.len(), node.flows4.opening.len()), (0, 2));
            let again = node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
            let answer = node.sent(&tcp(again, client, SYN | ACK, b""), Handled::ToClient);
            assert_eq!(answer, (dialled, client));
            let led = node.led(&tcp(client, dialled, ACK, b""), Handled::ToBackend);
            assert_eq!(led, again);
            node.now_s += FLOW_CLOSED_S + 1;
            node.sent(&tcp(again, client, ACK, b""), Handled::ToClient);
        }
    }
}

#[test]
fn a_connection_that_one_side_has_closed_lives_for_as_long_as_the_other_one_may_need() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    for is_by_client in [true, false] {
        let (mut node, _, backend) = connected(client, dialled);
        if is_by_client {
            node.led(&tcp(client, dialled, FIN_ACK, b""), Handled::ToBackend);
        } else {
            node.sent(&tcp(backend, client, FIN_ACK, b""), Handled::ToClient);
        }
        for _ in 0..3 {
            node.now_s += FLOW_HALF_CLOSED_S;
            let answer = node.sent(&tcp(backend, client, ACK, b"!"), Handled::ToClient);
            assert_eq!(answer, (dialled, client));
            let led = node.led(&tcp(client, dialled, ACK, b"?"), Handled::ToBackend);
            assert_eq!(led, backend);
        }
    }
}

#[test]
fn who_does_not_know_where_a_connection_is_neither_ends_nor_moves_it() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    let blind = |flags| {
        host_to_host(client, dialled).then(Tcp {
            sequence: 0x7000_0000,
            acknowledged: 0x7000_0000,
            ..Tcp::new(client.port(), dialled.port(), flags)
        })
    };
    for flags in [RST, RST | ACK, FIN_ACK, FIN_ACK | RST] {
        let (mut node, _, backend) = connected(client, dialled);
        for packet in [blind(flags), blind(SYN), blind(ACK)] {
            assert_eq!(node.led(&packet, Handled::ToBackend), backend);
        }
        assert_eq!((node.flows4.up.len(), node.flows4.opening.len()), (2, 0));
        node.now_s += FLOW_CLOSED_S + 1;
        let led = node.led(&tcp(client, dialled, ACK, b"?"), Handled::ToBackend);
        assert_eq!(led, backend, "{flags}");
        let answer = node.sent(&tcp(backend, client, ACK, b"!"), Handled::ToClient);
        assert_eq!(answer, (dialled, client));
    }
}

#[test]
fn syns_that_nobody_has_answered_give_way_to_others_after_three_seconds() {
    let mut node = Node::new();
    node.serve(TCP, &["192.0.2.11:80"], &["10.244.2.5:80"]);
    let (dialled, backend) = (at("192.0.2.11:80"), at("10.244.2.5:80"));
    let dial = |node: &mut Node, host: usize| {
        let client = at(&format!(
            "198.51.100.{}:{}",
            host % 250 + 1,
            1000 + host / 250
        ));
        node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
        node.leave(&tcp(client, backend, SYN, b""), true).0
    };
    let mut hosts = 0..;
    while dial(&mut node, hosts.next().unwrap()) != Verdict::Is(Handled::DropNoPort) {}
    node.now_s += FLOW_OPENING_S + 1;
    let is_found = Verdict::Is(Handled::ToBackend);
    assert_eq!(dial(&mut node, hosts.next().unwrap()), is_found);
}

#[test]
fn only_who_has_seen_the_backends_answer_has_a_flow_that_is_up() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    let (mut node, _, _) = connected(client, dialled);
    assert_eq!((node.flows4.up.len(), node.flows4.opening.len()), (2, 0));
    for host in 1..=5 {
        let client = SocketAddr::new(ip(&format!("203.0.113.{host}")), 1);
        let backend = node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
        let blind = Tcp {
            acknowledged: 0x9000_0000,
            ..Tcp::new(client.port(), dialled.port(), ACK)
        };
        let blind = host_to_host(client, dialled).then(blind);
        node.led(&blind, Handled::ToBackend);
        node.sent(&tcp(backend, client, SYN | ACK, b""), Handled::ToClient);
        node.led(&blind, Handled::ToBackend);
    }
    assert_eq!((node.flows4.up.len(), node.flows4.opening.len()), (2, 10));
}

#[test]
fn a_quiet_flow_of_datagrams_is_over_and_decides_anew() {
    let mut node = Node::new();
    let index = node.serve(UDP, &["192.0.2.11:53"], &["10.244.1.5:53"]);
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:53"));
    node.led(&udp(client, dialled, b"?"), Handled::NewFlow);
    let other = node.add(&["10.244.1.6:53"]);
    node.services[index] = node.services[other].clone();
    node.now_s += FLOW_QUIET_S;
    let led = node.led(&udp(client, dialled, b"?"), Handled::ToBackend);
    assert_eq!(led, at("10.244.1.5:53"));
    node.now_s += FLOW_QUIET_S + 1;
    let led = node.led(&udp(client, dialled, b"?"), Handled::NewFlow);
    assert_eq!(led, at("10.244.1.6:53"));
    node.sent(&udp(led, client, b"!"), Handled::ToClient);
    for _ in 0..2 {
        let led = node.led(&udp(client, dialled, b"?"), Handled::ToBackend);
        assert_eq!(led, at("10.244.1.6:53"));
    }
}

#[test]
fn a_flow_of_datagrams_lives_in_both_directions_for_as_long_as_anybody_sends() {
    for is_here in [true, false] {
        let mut node = Node::new();
        let index = node.serve(UDP, &["192.0.2.11:53"], &["10.244.1.5:53"]);
        let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:53"));
        let backend = node.led(&udp(client, dialled, b"?"), Handled::NewFlow);
        let mut seen = client;
        if !is_here {
            seen = node.sent(&udp(client, backend, b"?"), Handled::ToBackend).0;
        }
        let other = node.add(&["10.244.1.6:53"]);
        node.services[index] = node.services[other].clone();
        let answer = |node: &mut Node| {
            if !is_here {
                node.is_handled(&udp(backend, seen, b"!"), Handled::ToClient);
            }
            let answer = node.sent(&udp(backend, client, b"!"), Handled::ToClient);
            assert_eq!(answer, (dialled, client));
        };
        // Only the client, for long.
        for _ in 0..5 {
            node.now_s += FLOW_QUIET_S - 1;
            let led = node.led(&udp(client, dialled, b"?"), Handled::ToBackend);
            assert_eq!(led, backend);
            if !is_here {
                let again = node.sent(&udp(client, backend, b"?"), Handled::ToBackend);
                assert_eq!(again.0, seen);
            }
        }
        // Only the backend.
        for _ in 0..5 {
            answer(&mut node);
            node.now_s += FLOW_QUIET_S - 1;
        }
        answer(&mut node);
        let led = node.led(&udp(client, dialled, b"?"), Handled::ToBackend);
        assert_eq!(led, backend);
        node.now_s += FLOW_QUIET_S + 1;
        let led = node.led(&udp(client, dialled, b"?"), Handled::NewFlow);
        assert_eq!(led, at("10.244.1.6:53"));
    }
}

#[test]
fn a_port_whose_connection_was_closed_by_both_sides_may_dial_any_frontend_of_that_backend() {
    let (client, backend) = (at("198.51.100.7:40000"), at("10.244.1.5:80"));
    let frontends = [at("192.0.2.11:80"), at("192.0.2.11:81")];
    let connect = || {
        let mut node = Node::new();
        node.serve(
            TCP,
            &frontends
                .map(|at| at.to_string())
                .each_ref()
                .map(String::as_str),
            &["10.244.1.5:80"],
        );
        node.led(&tcp(client, frontends[0], SYN, b""), Handled::NewFlow);
        node.sent(&tcp(backend, client, SYN | ACK, b""), Handled::ToClient);
        node.led(&tcp(client, frontends[0], ACK, b""), Handled::ToBackend);
        node
    };
    let other = tcp(client, frontends[1], SYN, b"");
    let by_client = tcp(client, frontends[0], FIN_ACK, b"");
    let by_backend = tcp(backend, client, FIN_ACK, b"");
    let mut node = connect();
    node.is_handled(&other, Handled::DropClash);
    node.led(&by_client, Handled::ToBackend);
    node.is_handled(&other, Handled::DropClash);
    node.sent(&by_backend, Handled::ToClient);
    node.led(&other, Handled::NewFlow);
    let answer = node.sent(&tcp(backend, client, SYN | ACK, b""), Handled::ToClient);
    assert_eq!(answer, (frontends[1], client));
    // The first one is no more: what comes late of it is not mixed up with the second.
    assert_eq!(node.arrive(&by_client).0, Verdict::Pass);
    // A reset is the client's last word, and the backend says nothing to it.
    let mut node = connect();
    node.led(&reset(client, frontends[0]), Handled::ToBackend);
    node.led(&other, Handled::NewFlow);
}

#[test]
fn a_connection_that_nobody_has_answered_is_over_once_it_is_quiet() {
    let (client, backend) = (at("198.51.100.7:40000"), at("10.244.1.5:80"));
    let mut node = Node::new();
    let index = node.serve(TCP, &["192.0.2.11:80"], &["10.244.1.5:80"]);
    node.serve(TCP, &["192.0.2.11:81"], &["10.244.1.5:80"]);
    let first = tcp(client, at("192.0.2.11:80"), SYN, b"");
    let second = tcp(client, at("192.0.2.11:81"), SYN, b"");
    assert_eq!(node.led(&first, Handled::NewFlow), backend);
    node.is_handled(&second, Handled::DropClash);
    // The client sends it again.
    node.now_s += FLOW_QUIET_S;
    node.services[index].word = {
        let both = node.add(&["10.244.1.5:80", "10.244.1.6:80"]);
        node.services[both].word
    };
    assert_eq!(node.led(&first, Handled::NewFlow), backend);
    node.is_handled(&second, Handled::DropClash);
    node.now_s += FLOW_QUIET_S + 1;
    node.led(&second, Handled::NewFlow);
    let led = node.led(&first, Handled::NewFlow);
    assert_eq!(led, at("10.244.1.6:80"));
}
