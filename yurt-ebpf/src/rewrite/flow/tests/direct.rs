//! Who dials a backend itself, beside those who dial its Services.

use super::*;

#[test]
fn a_forged_syn_does_not_take_the_answers_of_a_connection_without_a_service() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    let mut node = Node::new();
    node.serve(TCP, &["192.0.2.11:80"], &["10.244.1.5:80"]);
    let backend = node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow);
    let far = host_to_host(backend, client).then(Tcp {
        acknowledged: 0x5000_0000,
        ..Tcp::new(backend.port(), client.port(), ACK)
    });
    assert_eq!(node.leave(&far, false), (Verdict::Pass, frame(&far)));
    // The backend's answer to that SYN is the flow's.
    let answer = node.sent(&tcp(backend, client, SYN | ACK, b""), Handled::ToClient);
    assert_eq!(answer, (dialled, client));
}

#[test]
fn who_dials_a_backend_itself_gets_its_answers_as_they_are() {
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:80"));
    let (mut node, _, backend) = connected(client, dialled);
    let direct = tcp(client, backend, SYN, b"");
    let answer = tcp(backend, client, SYN | ACK, b"");
    // Not while answers could be either's.
    node.is_handled(&direct, Handled::DropClash);
    node.led(&tcp(client, dialled, FIN_ACK, b""), Handled::ToBackend);
    node.sent(&tcp(backend, client, FIN_ACK, b""), Handled::ToClient);
    assert_eq!(node.arrive(&direct), (Verdict::Pass, frame(&direct)));
    assert_eq!(node.leave(&answer, false), (Verdict::Pass, frame(&answer)));
    // Or a while after it was reset.
    let (mut node, _, backend) = connected(client, dialled);
    node.sent(&reset(backend, client), Handled::ToClient);
    node.now_s += FLOW_CLOSED_S + 1;
    let answer = tcp(backend, client, SYN | ACK, b"");
    assert_eq!(node.leave(&answer, false), (Verdict::Pass, frame(&answer)));
}

#[test]
fn of_datagrams_to_a_backend_and_to_its_service_those_of_a_flow_that_was_answered_count() {
    let mut node = Node::new();
    node.serve(UDP, &["192.0.2.11:53"], &["10.244.1.5:53"]);
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:53"));
    let backend = at("10.244.1.5:53");
    let answer = udp(backend, client, b"!");
    let direct = udp(client, backend, b"?");
    for _ in 0..2 {
        node.led(&udp(client, dialled, b"?"), Handled::NewFlow);
        assert_eq!(node.arrive(&direct), (Verdict::Pass, frame(&direct)));
        assert_eq!(node.leave(&answer, false), (Verdict::Pass, frame(&answer)));
    }
    // Whoever sends with the client's address does not end what was answered.
    node.led(&udp(client, dialled, b"?"), Handled::NewFlow);
    assert_eq!(node.sent(&answer, Handled::ToClient), (dialled, client));
    node.is_handled(&direct, Handled::DropClash);
    assert_eq!(node.sent(&answer, Handled::ToClient), (dialled, client));
}

#[test]
fn two_flows_of_one_client_port_to_one_backend_are_never_mixed_up() {
    let mut node = Node::new();
    let backend = "10.244.1.5:80";
    node.serve(TCP, &["192.0.2.11:80"], &[backend]);
    node.serve(TCP, &["192.0.2.11:81"], &[backend]);
    let client = at("198.51.100.7:40000");
    node.led(
        &tcp(client, at("192.0.2.11:80"), SYN, b""),
        Handled::NewFlow,
    );
    node.is_handled(
        &tcp(client, at("192.0.2.11:81"), SYN, b""),
        Handled::DropClash,
    );
    // Where there is another backend, it has that one.
    node.serve(TCP, &["192.0.2.11:82"], &[backend, "10.244.1.6:80"]);
    let mut led = Vec::new();
    for port in 82..83 {
        let dialled = SocketAddr::new(ip("192.0.2.11"), port);
        if let (Verdict::Is(Handled::NewFlow), after) = node.arrive(&tcp(client, dialled, SYN, b""))
        {
            led.push(ends(&after[14..]).1);
        }
    }
    assert!(led.iter().all(|to| *to == at("10.244.1.6:80")), "{led:?}");
    // When the first one is closed, its backend is free.
    node.arrive(&tcp(client, at("192.0.2.11:80"), RST, b""));
    let refusal = tcp(at(backend), client, RST | ACK, b"");
    node.sent(&refusal, Handled::ToClient);
    node.now_s += FLOW_CLOSED_S + 1;
    let led = node.led(
        &tcp(client, at("192.0.2.11:81"), SYN, b""),
        Handled::NewFlow,
    );
    assert_eq!(led, at(backend));
    let answer = tcp(at(backend), client, SYN | ACK, b"");
    assert_eq!(node.sent(&answer, Handled::ToClient).0, at("192.0.2.11:81"));
}
