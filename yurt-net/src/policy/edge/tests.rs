//! Frontends, their conflicts, and the prefixes of ClusterIPs.

use std::sync::Arc;

use crate::model::{Protocol, Service, ServiceType};
use crate::policy::fixtures::{World, frontends, ip, only, port};
use crate::table::MAX_PREFIXES;

#[test]
fn the_type_decides_which_frontends_there_are() {
    let mut world = World::web(None);
    let fill = |service: &mut Service, service_type| {
        service.service_type = service_type;
        service.external_ips = vec![ip("198.51.100.7")];
        service.load_balancer_ips = vec![ip("203.0.113.9")];
        service.ports = vec![port("http", 80, 30080), port("https", 443, 0)];
    };
    let common = ["ClusterIP 10.96.0.10:80", "ExternalIP 198.51.100.7:80"];
    let node_port = "NodePort 192.0.2.11:30080";
    for (service_type, more) in [
        (ServiceType::ClusterIp, vec![]),
        (ServiceType::NodePort, vec![node_port]),
        (
            ServiceType::LoadBalancer,
            vec!["LoadBalancer 203.0.113.9:80", node_port],
        ),
    ] {
        world.service("web", |service| fill(service, service_type));
        let table = world.compile();
        assert_eq!(frontends(&table.services[0]), [&common[..], &more].concat());
        assert!(
            !frontends(&table.services[1])
                .iter()
                .any(|f| f.starts_with("NodePort"))
        );
    }
}

#[test]
fn addresses_that_are_nobodys_to_give_are_refused() {
    let mut world = World::web(None);
    world.service("web", |service| {
        let refused = [
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "169.254.1.1",
            "198.51.100.7",
        ];
        service.external_ips = refused.map(ip).to_vec();
        service.cluster_ips.push(ip("::ffff:10.0.0.1"));
    });
    assert_eq!(
        frontends(only(&world.compile())),
        ["ClusterIP 10.96.0.10:80", "ExternalIP 198.51.100.7:80"]
    );
    assert_eq!(world.rejections().len(), 5);
}

#[test]
fn a_node_port_is_on_the_first_internal_address_of_each_family_else_external() {
    let mut world = World::web(None);
    world.service("web", |service| {
        service.service_type = ServiceType::NodePort;
        service.ports = vec![port("http", 80, 30080)];
        service.cluster_ips.push(ip("fd00:96::10"));
    });
    world.node("a1", None, |node| {
        node.internal_ips = vec![ip("192.0.2.11"), ip("192.0.2.12")];
        node.external_ips = vec![ip("198.51.100.1"), ip("2001:db8::11")];
    });
    let node_ports = |world: &mut World| -> Vec<String> {
        let table = world.compile();
        let mut all = frontends(only(&table));
        all.retain(|f| f.starts_with("NodePort"));
        all
    };
    assert_eq!(
        node_ports(&mut world),
        ["NodePort 192.0.2.11:30080", "NodePort [2001:db8::11]:30080"]
    );
    // On a machine, the address must be there.
    world.view.local_addresses = Some([ip("192.0.2.11"), ip("192.0.2.77")].into());
    world.view.default_source = (Some([192, 0, 2, 77].into()), None);
    assert_eq!(node_ports(&mut world), ["NodePort 192.0.2.11:30080"]);
    assert_eq!(
        world.rejections(),
        [
            "Node a1: status address 2001:db8::11 is on no interface: NodePorts use no address: \
          there is no default route"
        ]
    );
    world.view.local_addresses = Some([ip("192.0.2.77"), ip("2001:db8::11")].into());
    assert_eq!(
        node_ports(&mut world),
        ["NodePort 192.0.2.77:30080", "NodePort [2001:db8::11]:30080"]
    );
    assert_eq!(world.rejections().len(), 1);
}

#[test]
fn of_two_services_with_one_frontend_the_first_by_name_keeps_it() {
    let mut world = World::web(None);
    let shared = || vec![ip("203.0.113.1")];
    world.service("web", |service| service.external_ips = shared());
    world.service("api", |service| {
        service.cluster_ips = vec![ip("10.96.0.20")];
        service.external_ips = shared();
    });
    let table = world.compile();
    assert_eq!(
        frontends(&table.services[0]),
        ["ClusterIP 10.96.0.20:80", "ExternalIP 203.0.113.1:80"]
    );
    assert_eq!(frontends(&table.services[1]), ["ClusterIP 10.96.0.10:80"]);
    assert_eq!(
        world.rejections(),
        [
            "Service web: 203.0.113.1:80/TCP belongs to default/api:http (a ClusterIP, or first by name)"
        ]
    );
}

#[test]
fn nobody_takes_a_cluster_ip_over_by_naming_it_as_an_external_address() {
    let mut world = World::web(None);
    world.service("api", |service| {
        service.cluster_ips = vec![ip("10.96.0.20")];
        service.external_ips = vec![ip("10.96.0.10")];
    });
    let table = world.compile();
    assert_eq!(frontends(&table.services[0]), ["ClusterIP 10.96.0.20:80"]);
    assert_eq!(frontends(&table.services[1]), ["ClusterIP 10.96.0.10:80"]);
    assert_eq!(
        world.rejections(),
        [
            "Service api: 10.96.0.10:80/TCP belongs to default/web:http (a ClusterIP, or first by name)"
        ]
    );
    // And gets it back when the other one lets go.
    let again = world.compile();
    assert!(Arc::ptr_eq(&table.services[0], &again.services[0]));
    world.service("web", |service| {
        service.cluster_ips = vec![ip("10.96.0.11")]
    });
    assert_eq!(
        frontends(&world.compile().services[0]),
        ["ClusterIP 10.96.0.20:80", "ExternalIP 10.96.0.10:80"]
    );
    assert_eq!(world.rejections(), [""; 0]);
}

#[test]
fn the_same_port_number_with_another_protocol_is_another_frontend() {
    let mut world = World::web(None);
    world.service("web", |service| {
        let mut dns = port("http", 80, 0);
        dns.protocol = Protocol::Udp;
        let mut sctp = port("http", 80, 0);
        sctp.protocol = Protocol::Sctp;
        service.ports.extend([dns, sctp, port("http", 81, 0)]);
    });
    let table = world.compile();
    let protocols: Vec<_> = table
        .services
        .iter()
        .map(|entry| entry.key.protocol)
        .collect();
    assert_eq!(protocols, [Protocol::Sctp, Protocol::Tcp, Protocol::Udp]);
    // A second TCP port of the same name has no key of its own.
    assert_eq!(
        world.rejections(),
        ["Service web: port \"http\" with TCP is there twice: the later one is left out"]
    );
}

fn prefixes(world: &mut World) -> (Vec<String>, bool) {
    let found = world.compile().cluster_prefixes;
    let prefixes = found.prefixes.iter().map(ToString::to_string).collect();
    (prefixes, found.are_service_cidrs)
}

#[test]
fn cluster_prefixes_are_the_flag_else_the_objects_else_a_cover() {
    let mut world = World::web(None);
    let known = |prefixes: &[&str], are_cidrs| {
        let prefixes: Vec<_> = prefixes.iter().map(|&p| p.to_owned()).collect();
        (prefixes, are_cidrs)
    };
    assert_eq!(prefixes(&mut world), known(&["10.96.0.10/32"], false));
    world.service("api", |service| service.cluster_ips = vec![ip("10.96.0.1")]);
    assert_eq!(prefixes(&mut world), known(&["10.96.0.0/28"], false));
    world.service_cidr("kubernetes", &["10.96.0.0/12", "fd00:96::/108"]);
    assert_eq!(
        prefixes(&mut world),
        known(&["10.96.0.0/12", "fd00:96::/108"], true)
    );
    world.config.service_cidrs = vec!["10.96.0.0/28".parse().unwrap()];
    assert_eq!(prefixes(&mut world), known(&["10.96.0.0/28"], true));
    // A ClusterIP outside what the flag says still counts, exactly.
    world.service("old", |service| service.cluster_ips = vec![ip("10.90.0.1")]);
    assert_eq!(
        prefixes(&mut world),
        known(&["10.90.0.1/32", "10.96.0.0/28"], true)
    );
    assert_eq!(world.rejections(), [""; 0]);
}

#[test]
fn too_many_service_cidrs_are_covered_and_rejected() {
    let mut world = World::web(None);
    for block in 0..20 {
        world.service_cidr(
            &format!("cidr-{block:02}"),
            &[&format!("10.{}.0.0/24", block * 2)],
        );
    }
    let (found, are_service_cidrs) = prefixes(&mut world);
    assert_eq!((found.len(), are_service_cidrs), (MAX_PREFIXES, false));
    assert_eq!(world.rejections().len(), 1);
}

#[test]
fn the_default_route_stands_in_for_an_absent_node_and_adds_no_family_to_a_known_one() {
    let mut world = World::web(None);
    world.service("web", |service| {
        service.service_type = ServiceType::NodePort;
        service.ports = vec![port("http", 80, 30080)];
        service.cluster_ips.push(ip("fd00:96::10"));
    });
    world.view.local_addresses = Some([ip("192.0.2.11"), ip("2001:db8::77")].into());
    world.view.default_source = (
        Some([192, 0, 2, 77].into()),
        Some("2001:db8::77".parse().unwrap()),
    );
    let known = frontends(only(&world.compile()));
    assert_eq!(known[2..], ["NodePort 192.0.2.11:30080"]);
    world.snapshot.nodes.clear();
    let absent = frontends(only(&world.compile()));
    assert_eq!(
        absent[2..],
        ["NodePort 192.0.2.77:30080", "NodePort [2001:db8::77]:30080"]
    );
    // `plan` looks at no machine, so there the addresses are unknown.
    world.view = Default::default();
    assert_eq!(frontends(only(&world.compile())).len(), 2);
}

#[test]
fn a_single_stack_service_has_no_node_port_in_the_other_family() {
    let mut world = World::web(None);
    world.node("a1", None, |node| {
        node.internal_ips = vec![ip("2001:db8::11")]
    });
    world.service("web", |service| {
        service.service_type = ServiceType::NodePort;
        service.ports = vec![port("http", 80, 30080)];
    });
    assert_eq!(
        frontends(only(&world.compile())),
        ["ClusterIP 10.96.0.10:80"]
    );
}

#[test]
fn two_halves_of_a_service_cidr_are_one_prefix_and_a_part_of_one_is_none() {
    let mut world = World::web(None);
    world.service_cidr("low", &["10.96.0.0/25", "10.96.0.64/26"]);
    world.service_cidr("high", &["10.96.0.128/25"]);
    assert_eq!(
        prefixes(&mut world),
        (vec!["10.96.0.0/24".to_owned()], true)
    );
}

#[test]
fn many_cluster_ips_outside_the_service_cidrs_switch_refusing_off_and_say_so() {
    let mut world = World::web(None);
    world.service_cidr("wrong", &["172.16.0.0/24"]);
    for n in 0..20 {
        let cluster_ip = ip(&format!("10.{}.0.1", n * 2));
        world.service(&format!("s{n}"), |service| {
            service.cluster_ips = vec![cluster_ip]
        });
    }
    let (found, are_service_cidrs) = prefixes(&mut world);
    assert!(found.len() <= MAX_PREFIXES);
    assert!(!are_service_cidrs);
    assert_eq!(
        world.rejections(),
        [
            "ServiceCIDR wrong: many ClusterIPs are outside the service CIDRs: \
          connections to unallocated ClusterIPs are not refused"
        ]
    );
}
