//! The verdict of every kind of flow.

use super::{Explanation, Flow, FlowVerdict, OwnAddresses, explain};
use crate::model::{Protocol, ServiceType};
use crate::policy::fixtures::{World, ip, port};

fn world() -> World {
    let mut world = World::web(Some("openyurt.io/nodepool"));
    world.pool("hangzhou", &["a1", "a2"]);
    world.slice(
        "host",
        "other",
        &[("10.77.0.1", Some("a1")), ("10.77.0.2", Some("a2"))],
    );
    world.service("web", |service| {
        service.service_type = ServiceType::NodePort;
        service.ports = vec![port("http", 80, 30080)];
    });
    world
}

fn ask(world: &mut World, from: &str, to: &str, protocol: Protocol) -> Explanation {
    let own = OwnAddresses::new(&world.snapshot, "a1");
    let flow = Flow {
        from: ip(from),
        to: to.parse().unwrap(),
        protocol,
    };
    let table = world.compile();
    explain(&table, &world.reasons(), &own, flow)
}

fn tcp(from: &str, to: &str) -> Explanation {
    ask(&mut world(), from, to, Protocol::Tcp)
}

#[test]
fn a_flow_to_a_frontend_goes_to_its_endpoints() {
    let found = tcp("10.1.0.9", "10.96.0.10:80");
    assert_eq!(
        serde_json::to_string(&found).unwrap(),
        r#"{"verdict":"forward","endpoints":["10.1.0.2:8080","10.1.1.2:8080"],"masquerade":false,"service":"default/web:http","reason":"ClusterIP of default/web:http, closed to pool hangzhou, client is this node or one of its Pods: endpoints 2 (ready), left out 1; 10.2.0.2:8080: closure: node b1 is not in pool hangzhou"}"#
    );
}

#[test]
fn only_outsiders_are_masqueraded() {
    for from in [
        "127.0.0.1",
        "192.0.2.11",
        "10.1.0.200",
        "10.77.0.1",
        "::ffff:10.1.0.1",
    ] {
        assert!(!tcp(from, "10.96.0.10:80").masquerade, "{from}");
    }
    for from in ["192.0.2.12", "10.1.1.1", "10.77.0.2"] {
        assert!(tcp(from, "10.96.0.10:80").masquerade, "{from}");
    }
}

#[test]
fn node_ports_answer_on_loopback_to_the_node_itself() {
    for (from, to, verdict) in [
        ("127.0.0.1", "127.0.0.1:30080", FlowVerdict::Forward),
        ("192.0.2.11", "127.0.0.53:30080", FlowVerdict::Forward),
        (
            "127.0.0.1",
            "[::ffff:127.0.0.1]:30080",
            FlowVerdict::Forward,
        ),
        ("10.1.0.9", "127.0.0.1:30080", FlowVerdict::Pass),
        ("10.1.0.9", "192.0.2.11:30080", FlowVerdict::Forward),
        ("127.0.0.1", "127.0.0.1:80", FlowVerdict::Pass),
        // The node has no IPv6 address, and the Service no IPv6 family.
        ("::1", "[::1]:30080", FlowVerdict::Pass),
    ] {
        assert_eq!(tcp(from, to).verdict, verdict, "{from} {to}");
    }
}

#[test]
fn an_unknown_port_of_a_known_cluster_ip_is_refused() {
    let found = tcp("10.1.0.9", "10.96.0.10:81");
    assert_eq!((found.verdict, &*found.service), (FlowVerdict::Refuse, ""));
    assert_eq!(
        found.reason,
        "10.96.0.10 is the ClusterIP of default/web, which has no port 81/TCP"
    );
    let udp = ask(&mut world(), "10.1.0.9", "10.96.0.10:80", Protocol::Udp);
    assert_eq!(udp.verdict, FlowVerdict::Refuse);
}

#[test]
fn an_unallocated_address_is_refused_only_inside_a_service_cidr() {
    assert_eq!(tcp("10.1.0.9", "10.96.0.11:80").verdict, FlowVerdict::Pass);
    let mut world = world();
    world.service_cidr("kubernetes", &["10.96.0.0/12"]);
    let inside = ask(&mut world, "10.1.0.9", "10.96.0.11:80", Protocol::Tcp);
    assert_eq!(inside.verdict, FlowVerdict::Refuse);
    assert_eq!(
        inside.reason,
        "10.96.0.11 is in the service CIDR 10.96.0.0/12 and belongs to no Service"
    );
    let outside = ask(&mut world, "10.1.0.9", "10.112.0.1:80", Protocol::Tcp);
    assert_eq!(outside.verdict, FlowVerdict::Pass);
}

#[test]
fn a_refusal_says_which_rule_dropped_the_endpoints() {
    let mut world = world();
    world.slice("web-1", "web", &[("10.2.0.2", Some("b1"))]);
    let found = ask(&mut world, "10.1.0.9", "10.96.0.10:80", Protocol::Tcp);
    assert_eq!(
        (found.verdict, found.endpoints.len()),
        (FlowVerdict::Refuse, 0)
    );
    assert!(
        found.reason.ends_with(
            "none of its endpoints may take it; 10.2.0.2:8080: closure: node b1 is not in pool hangzhou"
        ),
        "{}",
        found.reason
    );
    world.slice("web-1", "web", &[]);
    let found = ask(&mut world, "10.1.0.9", "10.96.0.10:80", Protocol::Tcp);
    assert!(
        found.reason.ends_with("it has no endpoints"),
        "{}",
        found.reason
    );
}
