//! Clients of backends elsewhere, and the ports that stand for them.

use super::*;

#[test]
fn a_backend_elsewhere_sees_the_nodes_address_and_its_answer_comes_back_to_the_client() {
    for Cast {
        client,
        dialled,
        backend,
        node: address,
    } in casts()
    {
        let mut node = Node::new();
        node.serve(UDP, &[&dialled.to_string()], &[&backend.to_string()]);
        let asked = udp(client, dialled, b"question");
        assert_eq!(node.led(&asked, Handled::NewFlow), backend);
        let (seen, to) = node.sent(&udp(client, backend, b"question"), Handled::ToBackend);
        assert_eq!((seen.ip(), to), (address, backend));
        assert!((61000..65536).contains(&u32::from(seen.port())), "{seen}");
        // The second one has the same port.
        let again = node.sent(&udp(client, backend, b"another one"), Handled::ToBackend);
        assert_eq!(again, (seen, backend));
        // As it comes in it is the client's, and as it leaves it comes from the address that was dialled.
        let (verdict, after) = node.arrive(&udp(backend, seen, b"answer"));
        assert_eq!(verdict, Verdict::Is(Handled::ToClient));
        assert_eq!(ends(&after[14..]), (backend, client));
        let answer = udp(backend, client, b"answer");
        assert_eq!(node.sent(&answer, Handled::ToClient), (dialled, client));
        // To nobody who has not asked.
        let stranger = SocketAddr::new(seen.ip(), if seen.port() == 61000 { 61001 } else { 61000 });
        assert_eq!(node.arrive(&udp(backend, stranger, b"")).0, Verdict::Pass);
    }
}

#[test]
fn a_client_that_has_a_port_of_the_range_keeps_it_while_that_is_free() {
    let mut node = Node::new();
    node.serve(UDP, &["192.0.2.11:53"], &["10.244.2.5:53"]);
    let seen = |node: &mut Node, client: &str| {
        let client = at(client);
        node.led(&udp(client, at("192.0.2.11:53"), b"?"), Handled::NewFlow);
        let (seen, _) = node.sent(&udp(client, at("10.244.2.5:53"), b"?"), Handled::ToBackend);
        seen.port()
    };
    assert_eq!(seen(&mut node, "198.51.100.7:61234"), 61234);
    let other = seen(&mut node, "198.51.100.8:61234");
    assert_ne!(other, 61234);
}

#[test]
fn without_a_free_port_or_an_address_a_flow_is_dropped_and_costs_nobody_else() {
    let mut node = Node::new();
    node.ports = (61000, 2);
    node.serve(UDP, &["192.0.2.11:53"], &["10.244.2.5:53"]);
    let backend = at("10.244.2.5:53");
    let mut seen = Vec::new();
    for host in 1..=40 {
        let client = SocketAddr::new(ip(&format!("198.51.100.{host}")), 40000);
        node.led(&udp(client, at("192.0.2.11:53"), b"?"), Handled::NewFlow);
        let (verdict, after) = node.leave(&udp(client, backend, b"?"), true);
        match verdict {
            Verdict::Is(Handled::ToBackend) => seen.push(ends(&after[14..]).0),
            other => assert_eq!(other, Verdict::Is(Handled::DropNoPort)),
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 2);
    // It takes no room, either.
    assert_eq!(node.flows4.opening.len(), 3 * seen.len());
    // When they are over, their ports are free.
    node.now_s += FLOW_QUIET_S + 1;
    let client = at("198.51.100.99:40000");
    node.led(&udp(client, at("192.0.2.11:53"), b"?"), Handled::NewFlow);
    node.sent(&udp(client, backend, b"?"), Handled::ToBackend);
    node.node = [ip("0.0.0.0"), ip("::")];
    let client = at("198.51.100.98:40000");
    node.led(&udp(client, at("192.0.2.11:53"), b"?"), Handled::NewFlow);
    let (verdict, _) = node.leave(&udp(client, backend, b"?"), true);
    assert_eq!(verdict, Verdict::Is(Handled::DropNoPort));
}

#[test]
fn a_masqueraded_flow_that_is_up_is_so_in_all_of_its_entries() {
    let mut node = Node::new();
    node.serve(TCP, &["192.0.2.11:80"], &["10.244.2.5:80"]);
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    let backend = node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
    let (seen, _) = node.sent(&tcp(client, backend, SYN, b""), Handled::ToBackend);
    node.is_handled(&tcp(backend, seen, SYN | ACK, b""), Handled::ToClient);
    node.sent(&tcp(backend, client, SYN | ACK, b""), Handled::ToClient);
    assert_eq!((node.flows4.up.len(), node.flows4.opening.len()), (0, 3));
    node.led(&tcp(client, dialled, ACK, b""), Handled::ToBackend);
    assert_eq!((node.flows4.up.len(), node.flows4.opening.len()), (3, 0));
    let again = node.sent(&tcp(client, backend, ACK, b""), Handled::ToBackend);
    assert_eq!(again, (seen, backend));
}

#[test]
fn a_port_that_has_a_flow_to_one_backend_gets_another_one_of_the_set_at_another_frontend() {
    for Cast {
        client,
        dialled,
        backend,
        ..
    } in casts()
    {
        let other = SocketAddr::new(dialled.ip(), dialled.port() + 1);
        for seed in 0..200 {
            let mut node = Node::new();
            node.random = Cell::new(seed);
            let backends = [0, 1, 2].map(|more| {
                let port = backend.port() + more;
                SocketAddr::new(backend.ip(), port).to_string()
            });
            let backends = backends.each_ref().map(String::as_str);
            node.serve(UDP, &[&dialled.to_string(), &other.to_string()], &backends);
            let first = node.led(&udp(client, dialled, b"?"), Handled::NewFlow);
            let second = node.led(&udp(client, other, b"?"), Handled::NewFlow);
            assert_ne!(first, second, "seed {seed}");
        }
    }
}

#[test]
fn a_port_is_given_again_after_all_others_and_to_no_other_client_that_has_it_itself() {
    let mut node = Node::new();
    node.serve(TCP, &["192.0.2.11:80"], &["10.244.2.5:80"]);
    let (dialled, backend) = (at("192.0.2.11:80"), at("10.244.2.5:80"));
    // A connection that both sides close, from its beginning.
    let connect = |node: &mut Node, client: SocketAddr| {
        node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
        let (seen, _) = node.sent(&tcp(client, backend, SYN, b""), Handled::ToBackend);
        node.sent(&tcp(backend, client, SYN | ACK, b""), Handled::ToClient);
        node.led(&tcp(client, dialled, ACK, b""), Handled::ToBackend);
        node.sent(&tcp(backend, client, FIN_ACK, b""), Handled::ToClient);
        node.led(&tcp(client, dialled, FIN_ACK, b""), Handled::ToBackend);
        seen.port()
    };
    for seed in [0, 7, 1000] {
        node.turn = Cell::new(seed);
        node.ports = (12000, 40);
        let clients = (0..120).map(|port| SocketAddr::new(ip("198.51.100.7"), 40000 + port));
        let given: Vec<u16> = clients.map(|client| connect(&mut node, client)).collect();
        for (at, port) in given.iter().enumerate().skip(1) {
            let before = given[..at].iter().rev().take(20);
            assert!(before.into_iter().all(|other| other != port), "{given:?}");
        }
    }
    // Beside 40 ports that were given and are free, its own is as good as any if it was its own.
    let [client, other] = ["198.51.100.8:12003", "198.51.100.9:12003"].map(at);
    node.ports = (12000, 4000);
    node.now_s += FLOW_QUIET_S + 1;
    node.flows4 = Map::new();
    assert_eq!(connect(&mut node, client), 12003);
    assert_eq!(connect(&mut node, client), 12003);
    assert_ne!(connect(&mut node, other), 12003);
}

#[test]
fn every_port_of_a_small_range_is_found() {
    let mut node = Node::new();
    node.serve(UDP, &["192.0.2.11:53"], &["10.244.2.5:53"]);
    for seed in 0..200 {
        node.random = Cell::new(seed);
        node.now_s += FLOW_QUIET_S + 1;
        node.ports = (61000, 8);
        let mut seen: Vec<u16> = (0..8)
            .map(|host| {
                let client = SocketAddr::new(ip(&format!("198.51.100.{host}")), 61003);
                node.led(&udp(client, at("192.0.2.11:53"), b"?"), Handled::NewFlow);
                let asked = udp(client, at("10.244.2.5:53"), b"?");
                node.sent(&asked, Handled::ToBackend).0.port()
            })
            .collect();
        assert_eq!(seen[0], 61003);
        seen.sort_unstable();
        assert!(seen.into_iter().eq(61000..61008), "seed {seed}");
    }
}
