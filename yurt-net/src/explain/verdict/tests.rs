//! The verdict of every kind of flow.

use super::{Dial, Explanation, FlowVerdict, OwnAddresses, explain};
use crate::model::{
    AddressFamily, EndpointPort, EndpointSlice, Endpoints, Protocol, ServiceType, TrafficPolicy,
};
use crate::plan::{FullMap, InForce, Refused};
use crate::policy::fixtures::{World, ip, port};
use crate::table::Backends;

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
        service.ports = [port("http", 80, 30080)].into();
    });
    world
}

fn ask(world: &mut World, from: &str, to: &str, protocol: Protocol) -> Explanation {
    let own = OwnAddresses::new(&world.snapshot, "a1");
    let dial = Dial {
        from: ip(from),
        to: to.parse().unwrap(),
        protocol,
    };
    let table = world.compile();
    explain(&table, &world.reasons(), &own, dial)
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
fn a_cluster_ip_on_an_interface_of_this_node_is_left_alone_whatever_the_port() {
    let mut world = world();
    world.view.local_addresses = Some([ip("10.96.0.10"), ip("192.0.2.11")].into());
    for to in ["10.96.0.10:80", "10.96.0.10:9253", "[::ffff:10.96.0.10]:80"] {
        let found = ask(&mut world, "10.1.0.9", to, Protocol::Tcp);
        assert_eq!(found.verdict, FlowVerdict::Pass, "{to}");
        assert_eq!(
            found.reason,
            "10.96.0.10 is the ClusterIP of default/web and on an interface of this node: it is left to the process that \
             listens there, as a node-local DNS cache does"
        );
    }
    // NodePorts are at addresses of the node, and served.
    let node_port = ask(&mut world, "10.1.0.9", "192.0.2.11:30080", Protocol::Tcp);
    assert_eq!(node_port.verdict, FlowVerdict::Forward);
}

#[test]
fn it_is_said_who_else_asks_for_an_address_and_does_not_get_it() {
    let mut world = world();
    world.service("web", |service| {
        service.service_type = ServiceType::LoadBalancer;
        service.load_balancer_ips = [ip("203.0.113.9")].into();
    });
    world.service("api", |service| {
        service.cluster_ips = [ip("10.96.0.20")].into();
        service.external_ips = [ip("203.0.113.9")].into();
    });
    let found = ask(&mut world, "10.1.0.9", "203.0.113.9:80", Protocol::Tcp);
    assert_eq!(found.service, "default/web:http");
    let end = "; default/api asks for the same address and port, and does not get it";
    assert!(found.reason.ends_with(end), "{}", found.reason);
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
        found
            .reason
            .ends_with("it has no endpoints; EndpointSlice web-1 is empty"),
        "{}",
        found.reason
    );
}

/// What is said of `default/web`, whose only EndpointSlice is the one that `edit` is done to.
fn refused(edit: impl FnOnce(&mut EndpointSlice)) -> String {
    let mut world = world();
    world.service("web", |service| service.topology_keys = None);
    let endpoints = [("10.1.0.2", Some("a1")), ("10.2.0.2", Some("b1"))];
    world.slice_with("web-1", "web", &endpoints, edit);
    let found = ask(&mut world, "10.1.0.9", "10.96.0.10:80", Protocol::Tcp);
    assert_eq!(found.verdict, FlowVerdict::Refuse, "{}", found.reason);
    found.reason
}

#[test]
fn a_refusal_says_which_endpoints_exist_and_why_none_counts() {
    let not_ready = |slice: &mut EndpointSlice| {
        slice.endpoints.edit(|all| {
            for endpoint in all {
                (endpoint.is_ready, endpoint.is_serving) = (false, false);
            }
        });
    };
    let gone = |slice: &mut EndpointSlice| {
        not_ready(slice);
        slice.endpoints.edit(|all| {
            for endpoint in all {
                endpoint.is_terminating = true;
            }
        });
    };
    let of_v6 = |slice: &mut EndpointSlice| {
        slice.family = AddressFamily::V6;
        slice.endpoints.edit(|all| {
            for (n, endpoint) in (2..).zip(all) {
                endpoint.address = ip(&format!("fd00::{n}"));
            }
        });
    };
    let many_ports = |slice: &mut EndpointSlice| {
        let one = slice.ports[0].clone();
        let named = ["a", "b", "c", "d", "e"].map(|name| EndpointPort {
            name: name.into(),
            ..one.clone()
        });
        slice.ports = named.into();
    };
    type Edit<'a> = &'a dyn Fn(&mut EndpointSlice);
    let cases: [(Edit<'_>, &str); 9] = [
        (
            &|slice| std::sync::Arc::make_mut(&mut slice.ports)[0].name = "web".into(),
            "it has no endpoints; EndpointSlice web-1 has no port \"http\" with TCP, only \"web\" with TCP",
        ),
        (
            &|slice| std::sync::Arc::make_mut(&mut slice.ports)[0].protocol = Protocol::Udp,
            "EndpointSlice web-1 has no port \"http\" with TCP, only \"http\" with UDP",
        ),
        (
            &many_ports,
            "only \"a\" with TCP, \"b\" with TCP, \"c\" with TCP and 2 more",
        ),
        (
            &|slice| slice.ports = std::sync::Arc::default(),
            "EndpointSlice web-1 has no port with a number, and so none called \"http\" with TCP",
        ),
        (
            &of_v6,
            "EndpointSlice web-1 has 2 endpoints by IPv6 and none by IPv4",
        ),
        (
            &|slice| slice.endpoints = Endpoints::default(),
            "EndpointSlice web-1 is empty",
        ),
        (
            &|slice| slice.is_headless = true,
            "EndpointSlice web-1 has the label service.kubernetes.io/headless",
        ),
        (
            &not_ready,
            "none of its endpoints may take it; 10.1.0.2:8080: not ready; 10.2.0.2:8080: not ready",
        ),
        (&gone, "10.1.0.2:8080: terminating and no longer serving"),
    ];
    for (edit, expected) in cases {
        let reason = refused(edit);
        assert!(reason.contains(expected), "{reason}\nlacks {expected}");
    }
}

#[test]
fn a_refusal_says_that_no_slice_is_labelled_and_which_ones_label_is_wrong() {
    let reason = refused(|slice| slice.service = "wbe".into());
    assert!(
        reason.ends_with(
            "it has no endpoints; no EndpointSlice in namespace default has the label \
             kubernetes.io/service-name=web; EndpointSlice web-1 has it with wbe, and no such Service exists"
        ),
        "{reason}"
    );
    // That of another Service is that one's, whatever its name.
    let mut world = world();
    world.service("other", |service| {
        service.cluster_ips = [ip("10.96.0.11")].into()
    });
    world.slice("web-1", "other", &[("10.1.0.2", Some("a1"))]);
    let found = ask(&mut world, "10.1.0.9", "10.96.0.10:80", Protocol::Tcp);
    assert!(
        found.reason.ends_with("kubernetes.io/service-name=web"),
        "{}",
        found.reason
    );
}

#[test]
fn the_closed_and_the_useless_are_told_apart_where_a_service_has_both() {
    let mut world = world();
    world.slice("web-1", "web", &[("10.2.0.2", Some("b1"))]);
    for n in 2..7 {
        world.slice_with(
            &format!("web-{n}"),
            "web",
            &[("10.1.0.3", Some("a1"))],
            |slice| std::sync::Arc::make_mut(&mut slice.ports)[0].name = "metrics".into(),
        );
    }
    let found = ask(&mut world, "10.1.0.9", "10.96.0.10:80", Protocol::Tcp);
    let said = found.reason;
    assert!(
        said.contains("10.2.0.2:8080: closure: node b1 is not in pool hangzhou"),
        "{said}"
    );
    assert!(
        said.contains("EndpointSlice web-2 has no port \"http\" with TCP"),
        "{said}"
    );
    assert!(
        said.ends_with("; and others") && !said.contains("web-5"),
        "{said}"
    );
    // Where one endpoint is left, nothing is said of the rest.
    world.slice("web-7", "web", &[("10.1.0.4", Some("a1"))]);
    let found = ask(&mut world, "10.1.0.9", "10.96.0.10:80", Protocol::Tcp);
    assert_eq!(found.verdict, FlowVerdict::Forward);
    assert!(!found.reason.contains("metrics"), "{}", found.reason);
}

#[test]
fn both_scopes_have_their_policy_their_endpoints_and_the_reason() {
    let mut world = world();
    world.service("web", |service| {
        service.topology_keys = None;
        service.external_policy = TrafficPolicy::Local;
        service.affinity_seconds = 60;
    });
    let pod = ask(&mut world, "10.1.0.9", "192.0.2.11:30080", Protocol::Tcp);
    assert_eq!(
        pod.reason,
        "NodePort of default/web:http, no closure, client is this node or one of its Pods: endpoints 3 (ready), \
         each client stays with one for 60 s"
    );
    let other = ask(
        &mut world,
        "198.51.100.1",
        "192.0.2.11:30080",
        Protocol::Tcp,
    );
    assert_eq!(
        (other.verdict, other.masquerade, other.endpoints.len()),
        (FlowVerdict::Forward, false, 1)
    );
    assert_eq!(
        other.reason,
        "NodePort of default/web:http, no closure, traffic policy Local, client is outside this node: \
         endpoints 1 (ready on this node), left out 2, each client stays with one for 60 s; \
         10.1.1.2:8080: traffic policy Local: node a2 is not this node; \
         10.2.0.2:8080: traffic policy Local: node b1 is not this node; \
         only the packet path would do this, and it is off (--packet-path): nothing enforces it"
    );
    world.slice("web-1", "web", &[("10.2.0.2", Some("b1"))]);
    let other = ask(
        &mut world,
        "198.51.100.1",
        "192.0.2.11:30080",
        Protocol::Tcp,
    );
    assert_eq!(
        (other.verdict, other.masquerade),
        (FlowVerdict::Drop, false)
    );
    assert!(
        other.reason.ends_with(
            "all that may take it are on other nodes; \
             10.2.0.2:8080: traffic policy Local: node b1 is not this node; \
             only the packet path would do this, and it is off (--packet-path): nothing enforces it"
        ),
        "{}",
        other.reason
    );
}

#[test]
fn a_load_balancer_drops_clients_outside_its_source_ranges_pods_too() {
    let mut world = world();
    world.service("web", |service| {
        service.service_type = ServiceType::LoadBalancer;
        service.load_balancer_ips = [ip("203.0.113.1")].into();
        service.source_ranges = [
            "192.0.2.0/24".parse().unwrap(),
            "10.9.0.0/16".parse().unwrap(),
        ]
        .into();
    });
    for (from, verdict) in [
        ("192.0.2.11", FlowVerdict::Forward),
        ("10.9.0.1", FlowVerdict::Forward),
        ("::ffff:10.9.0.1", FlowVerdict::Forward),
        // The node itself, whose address is inside.
        ("127.0.0.1", FlowVerdict::Forward),
        ("203.0.113.1", FlowVerdict::Forward),
        ("10.1.0.9", FlowVerdict::Drop),
        ("198.51.100.1", FlowVerdict::Drop),
    ] {
        let found = ask(&mut world, from, "203.0.113.1:80", Protocol::Tcp);
        assert_eq!(found.verdict, verdict, "{from}: {}", found.reason);
        let by_node_port = ask(&mut world, from, "192.0.2.11:30080", Protocol::Tcp);
        assert_eq!(by_node_port.verdict, FlowVerdict::Forward, "{from}");
    }
    let found = ask(&mut world, "10.1.0.9", "203.0.113.1:80", Protocol::Tcp);
    assert_eq!(found.endpoints, []);
    assert_eq!(
        found.reason,
        "LoadBalancer of default/web:http: the client 10.1.0.9 is in none of its source ranges 10.9.0.0/16, 192.0.2.0/24"
    );
    world.service("web", |service| {
        service.source_ranges = ["10.9.0.0/16".parse().unwrap()].into()
    });
    for from in ["127.0.0.1", "203.0.113.1", "192.0.2.11"] {
        let found = ask(&mut world, from, "203.0.113.1:80", Protocol::Tcp);
        assert_eq!(found.verdict, FlowVerdict::Drop, "{from}");
    }
}

#[test]
fn with_a_packet_path_a_client_outside_gets_what_is_said_and_sctp_still_nothing() {
    let mut world = world();
    world.config.serves_packets = true;
    for (from, to) in [
        ("198.51.100.1", "192.0.2.11:30080"),
        ("198.51.100.1", "10.96.0.10:80"),
        ("10.1.0.9", "10.96.0.10:80"),
    ] {
        let found = ask(&mut world, from, to, Protocol::Tcp);
        assert_eq!(found.verdict, FlowVerdict::Forward);
        assert!(
            !found.reason.contains("nothing enforces it"),
            "{}",
            found.reason
        );
    }
    world.service("web", |service| service.ports[0].protocol = Protocol::Sctp);
    for from in ["198.51.100.1", "10.1.0.9"] {
        let found = ask(&mut world, from, "10.96.0.10:80", Protocol::Sctp);
        assert!(
            found
                .reason
                .ends_with("; SCTP is listed only, nothing enforces it")
        );
    }
}

#[test]
fn sctp_is_explained_as_what_nothing_enforces() {
    let mut world = world();
    world.service("web", |service| service.ports[0].protocol = Protocol::Sctp);
    world.slice_with("web-1", "web", &[("10.1.0.2", Some("a1"))], |slice| {
        std::sync::Arc::make_mut(&mut slice.ports)[0].protocol = Protocol::Sctp;
    });
    let found = ask(&mut world, "10.1.0.9", "10.96.0.10:80", Protocol::Sctp);
    assert_eq!(found.verdict, FlowVerdict::Forward);
    assert!(
        found.reason.ends_with("nothing enforces it"),
        "{}",
        found.reason
    );
}

#[test]
fn an_address_that_is_withheld_from_this_node_is_said_to_be() {
    let vip = "203.0.113.7";
    let mut world = World::web(None);
    world.pool("hangzhou", &["a1"]);
    world.service("web", |service| {
        service.service_type = ServiceType::LoadBalancer;
        service.load_balancer_ips = [ip(vip)].into();
        service.ports = [port("http", 80, 30080)].into();
    });
    let said = |world: &mut World, to: &str| {
        let found = ask(world, "10.1.0.9", to, Protocol::Tcp);
        (found.verdict, found.reason)
    };
    let (at_vip, at_node) = ("203.0.113.7:80", "192.0.2.11:30080");
    assert_eq!(said(&mut world, at_vip).0, FlowVerdict::Forward);

    world.pool_service("web", "beijing", &[vip]);
    let (verdict, reason) = said(&mut world, at_vip);
    assert_eq!(verdict, FlowVerdict::Pass);
    assert!(
        reason.contains("do not give it to pool hangzhou"),
        "{reason}"
    );
    assert_eq!(said(&mut world, at_node).0, FlowVerdict::Forward);
    // Another port was never the Service's.
    let (_, reason) = said(&mut world, "203.0.113.7:81");
    assert!(reason.contains("no frontend of any Service"), "{reason}");

    world.service("web", |service| service.listen = Some("beijing".into()));
    for to in [at_vip, at_node] {
        let (verdict, reason) = said(&mut world, to);
        assert_eq!(verdict, FlowVerdict::Pass, "{to}");
        assert!(
            reason.contains("listen \"beijing\" leaves out pool hangzhou"),
            "{reason}"
        );
    }

    world.service("web", |service| {
        service.listen = None;
        service.is_discarded = true;
    });
    let (verdict, reason) = said(&mut world, at_vip);
    assert_eq!(verdict, FlowVerdict::Pass);
    assert!(reason.contains("svc.openyurt.io/discard"), "{reason}");
    assert!(reason.contains("LoadBalancer of default/web"), "{reason}");
}

#[test]
fn what_a_full_map_has_no_room_for_is_told_as_it_is() {
    let found = || tcp("10.1.0.9", "10.96.0.10:80");
    let refused = |has_some| Refused {
        service: world().compile().services[0].key.clone(),
        map: FullMap::Slots4,
        has_some,
        part: None,
    };
    let told = |has_some, in_force| found().with_a_full_map(&refused(has_some), Some(in_force));
    let all: Backends = found().endpoints.into_iter().collect();
    let part: Backends = all.iter().take(1).collect();

    let in_part = told(true, InForce::Forward(part.clone()));
    assert_eq!(in_part.verdict, FlowVerdict::Forward);
    assert_eq!(in_part.endpoints, part.to_vec());
    let how = format!(
        "; but only 1 of {} endpoints are in force: yurt_slot is full, raise --max-slots4",
        all.len()
    );
    assert!(in_part.reason.ends_with(&how), "{}", in_part.reason);
    assert_eq!(
        told(true, InForce::Forward(all)),
        found(),
        "another port of it lacks something"
    );

    let out = told(false, InForce::Refuse);
    assert_eq!((out.verdict, out.endpoints.len()), (FlowVerdict::Refuse, 0));
    let how = "; but it is not in force: yurt_slot is full, raise --max-slots4";
    assert!(out.reason.ends_with(how), "{}", out.reason);
    assert_eq!(told(false, InForce::Pass).verdict, FlowVerdict::Pass);
    let unknown = found().with_a_full_map(&refused(false), None);
    assert_eq!(unknown.verdict, FlowVerdict::Forward);
    assert!(unknown.reason.ends_with(how), "{}", unknown.reason);
}
