//! What a first packet leads to.

use super::*;

#[test]
fn clients_outside_get_what_rows_say_of_them() {
    let mut node = Node::new();
    let inside = node.serve(TCP, &["192.0.2.11:80"], &["10.244.2.5:80"]);
    let outside = node.add(&["10.244.1.5:80"]);
    let nobody = node.add(&[]);
    let (client, addr) = (at("198.51.100.7:40000"), ip("192.0.2.11"));
    let dial = tcp(client, at("192.0.2.11:80"), SYN, b"");
    let row = |scope| (addr, 80, TCP, scope);
    let index = |index: usize| u32::try_from(index).unwrap();
    node.rows
        .insert(row(SCOPE_INTERNAL), (index(inside), FRONTEND_OUTSIDE_APART));
    // The agent writes the other row first: without it nobody is led anywhere.
    node.is_handled(&dial, Handled::DropInconsistent);
    node.rows.insert(row(SCOPE_EXTERNAL), (index(outside), 0));
    assert_eq!(node.led(&dial, Handled::NewFlow), at("10.244.1.5:80"));
    node.rows.insert(row(SCOPE_EXTERNAL), (index(nobody), 0));
    node.is_handled(&dial, Handled::RefuseNoEndpoint);
    node.services[nobody].word = node.services[nobody].word.with_drop();
    node.is_handled(&dial, Handled::DropNoLocalEndpoint);
    // A row for this node alone.
    node.rows.insert(row(SCOPE_INTERNAL), (index(inside), 0));
    assert_eq!(node.arrive(&dial), (Verdict::Pass, frame(&dial)));
}

#[test]
fn a_client_outside_the_ranges_of_a_service_is_dropped() {
    let mut node = Node::new();
    let index = node.serve(TCP, &["203.0.113.9:80"], &["10.244.1.5:80"]);
    let range = Backend4::range([198, 51, 100, 0], [255, 255, 255, 0]);
    let slot = u32::try_from(node.slots.len()).unwrap();
    node.ranges.insert(slot, range);
    node.services[index].word = node.services[index].word.with_ranges(1);
    let dial = |client: &str| tcp(at(client), at("203.0.113.9:80"), SYN, b"");
    node.led(&dial("198.51.100.7:40000"), Handled::NewFlow);
    node.is_handled(&dial("198.51.101.7:40000"), Handled::DropSourceRange);
}

#[test]
fn a_client_with_affinity_is_known_by_its_address_at_every_frontend() {
    for v6 in [false, true] {
        let mut node = Node::new();
        let backends: Vec<String> = (1..=50)
            .map(|host| match v6 {
                false => format!("10.244.1.{host}:80"),
                true => format!("[fd00:244:1::{host}]:80"),
            })
            .collect();
        let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
        let (client, frontends) = match v6 {
            false => (ip("198.51.100.7"), ["192.0.2.11:80", "203.0.113.9:80"]),
            true => (
                ip("2001:db8:9::7"),
                ["[2001:db8::11]:80", "[2001:db8::9]:80"],
            ),
        };
        let index = node.serve(TCP, &frontends, &backends);
        node.services[index].affinity = Affinity::new(600, 77);
        let mut led: Vec<SocketAddr> = (0..20_u16)
            .map(|number| {
                let dialled = at(frontends[usize::from(number % 2)]);
                let client = SocketAddr::new(client, 40000 + number);
                node.led(&tcp(client, dialled, SYN, b""), Handled::NewFlow)
            })
            .collect();
        led.dedup();
        assert_eq!(led.len(), 1, "{led:?}");
    }
}

#[test]
fn what_comes_from_outside_for_a_loopback_address_is_dropped() {
    let mut node = Node::new();
    for (from, to) in [
        ("198.51.100.7:1", "127.0.0.1:80"),
        ("[2001:db8::7]:1", "[::1]:80"),
    ] {
        let (from, to) = (at(from), at(to));
        let packets = [
            tcp(from, to, SYN, b""),
            host_to_host(from, to).ping(7),
            host_to_host(from, to).sctp(1, 2),
            host_to_host(to, from).udp(1, 2),
        ];
        let fragments = udp(from, to, &[7; 40]).fragments(9, &[24]);
        for packet in packets.into_iter().chain(fragments) {
            node.is_handled(&packet, Handled::DropLoopback);
        }
    }
}

#[test]
fn an_address_of_the_link_is_no_frontend_outside_whatever_the_table_says() {
    let mut node = Node::new();
    for (from, to, backend) in [
        ("198.51.100.7:1", "169.254.20.10:53", "10.244.1.5:53"),
        ("[2001:db8::7]:1", "[fe80::10]:53", "[fd00:244:1::5]:53"),
    ] {
        node.serve(UDP, &[to], &[backend]);
        let packet = udp(at(from), at(to), b"?");
        assert_eq!(node.arrive(&packet), (Verdict::Pass, frame(&packet)));
    }
}

#[test]
fn unknown_ports_and_unallocated_addresses_of_services_are_refused() {
    let mut node = Node::new();
    node.conf.prefixes[0].v4_len = 1;
    node.conf.prefixes[0].flags = PREFIXES_ARE_SERVICE_CIDRS;
    node.conf.prefixes[0].v4[0] = Prefix4 {
        addr: [10, 96, 0, 0],
        mask: [255, 255, 0, 0],
    };
    node.serve(TCP, &["10.96.0.10:80"], &["10.244.1.5:80"]);
    let dial = |to: &str| tcp(at("198.51.100.7:40000"), at(to), SYN, b"");
    node.led(&dial("10.96.0.10:80"), Handled::NewFlow);
    node.is_handled(&dial("10.96.0.10:81"), Handled::RefuseUnknownPort);
}

#[test]
fn what_is_of_no_flow_and_no_service_goes_on_unchanged() {
    let mut node = Node::new();
    node.serve(UDP, &["192.0.2.11:53"], &["10.244.1.5:53"]);
    let (client, dialled) = (at("198.51.100.7:40000"), at("192.0.2.11:53"));
    let between = || host_to_host(client, dialled);
    let fragments = udp(client, at("192.0.2.11:54"), &[7; 40]).fragments(9, &[24]);
    let packets = [
        tcp(client, at("192.0.2.11:22"), SYN, b""),
        tcp(client, at("192.0.2.11:53"), ACK, b""),
        udp(client, at("192.0.2.11:54"), b"?"),
        between().ping(7),
        between().sctp(client.port(), dialled.port()),
    ];
    for packet in packets.into_iter().chain(fragments) {
        assert_eq!(node.arrive(&packet), (Verdict::Pass, frame(&packet)));
        for is_forwarded in [false, true] {
            let left = node.leave(&packet, is_forwarded);
            assert_eq!(left, (Verdict::Pass, frame(&packet)));
        }
    }
    assert!(node.flows4.up.is_empty() && node.flows4.opening.is_empty());
}

#[test]
fn a_flow_that_cannot_be_remembered_is_not_begun() {
    let mut node = Node::new();
    node.serve(UDP, &["192.0.2.11:53"], &["10.244.1.5:53"]);
    node.flows4.is_full = true;
    let ask = udp(at("198.51.100.7:40000"), at("192.0.2.11:53"), b"?");
    node.is_handled(&ask, Handled::DropInconsistent);
}

#[test]
fn a_client_outside_has_no_key_of_affinity_that_a_network_namespace_has() {
    let (_, client) = [198, 51, 100, 7].client();
    let key = AffinityKey {
        netns: client,
        identity: 1,
    };
    assert!(key.netns > u64::MAX / 2);
}
