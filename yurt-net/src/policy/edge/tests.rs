//! Frontends.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;

use crate::model::{NamespacedName, Service, ServiceType};
use crate::policy::fixtures::{World, frontends, ip, only, port};
use crate::policy::{NodeView, Suspects};
use crate::table::Frontend;

#[test]
fn the_type_decides_which_frontends_there_are() {
    let mut world = World::web(None);
    let fill = |service: &mut Service, service_type| {
        service.service_type = service_type;
        service.external_ips = [ip("198.51.100.7")].into();
        service.load_balancer_ips = [ip("203.0.113.9")].into();
        service.ports = [port("http", 80, 30080), port("https", 443, 0)].into();
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
        service.external_ips = refused.map(ip).to_vec().into();
        service.cluster_ips = [ip("10.96.0.10"), ip("::ffff:10.0.0.1")].into();
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
        service.ports = [port("http", 80, 30080)].into();
        service.cluster_ips = [ip("10.96.0.10"), ip("fd00:96::10")].into();
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
    assert_eq!(
        node_ports(&mut world),
        ["NodePort 192.0.2.11:30080", "NodePort [2001:db8::11]:30080"]
    );
    assert_eq!(
        world.rejections(),
        [
            "Node a1: status address 2001:db8::11 is on no interface: NodePorts stay there until another address takes \
             its place"
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
fn an_address_of_the_node_that_goes_is_kept_until_another_takes_its_place() {
    let mut world = World::web(None);
    world.service("web", |service| {
        service.service_type = ServiceType::NodePort;
        service.ports = [port("http", 80, 30080)].into();
        service.cluster_ips = [ip("10.96.0.10")].into();
    });
    world.node("a1", None, |node| {
        node.internal_ips = vec![ip("192.0.2.11")]
    });
    let (own, other) = (ip("192.0.2.11"), ip("192.0.2.77"));
    let node_port = |world: &mut World| -> Vec<String> {
        let mut all = frontends(only(&world.compile()));
        all.retain(|f| f.starts_with("NodePort"));
        all
    };
    let route = |address: Option<u8>| (address.map(|last| [192, 0, 2, last].into()), None);
    for (what, local, source, at) in [
        ("all is well", vec![own], route(Some(11)), "192.0.2.11"),
        ("the link goes", vec![], route(None), "192.0.2.11"),
        (
            "another comes, without a route",
            vec![other],
            route(None),
            "192.0.2.11",
        ),
        ("and has one", vec![other], route(Some(77)), "192.0.2.77"),
        ("that goes, too", vec![], route(None), "192.0.2.77"),
        (
            "the first is back",
            vec![own],
            route(Some(11)),
            "192.0.2.11",
        ),
    ] {
        world.view.local_addresses = Some(local.into_iter().collect());
        world.view.default_source = source;
        assert_eq!(
            node_port(&mut world),
            [format!("NodePort {at}:30080")],
            "{what}"
        );
    }
    // An agent that starts while the link is down.
    world.memory = crate::policy::Memory::default();
    world.view.local_addresses = Some([].into());
    world.view.default_source = route(None);
    assert_eq!(node_port(&mut world), ["NodePort 192.0.2.11:30080"]);
    // Nothing tells of any address: loopback is there all the same.
    world.memory = crate::policy::Memory::default();
    world.snapshot.nodes.clear();
    assert_eq!(node_port(&mut world), ["NodePort 127.0.0.1:30080"]);
}

#[test]
fn a_list_of_pools_that_was_too_long_to_keep_opens_no_node_port_and_says_so() {
    let mut world = World::web(None);
    world.service("web", |service| {
        service.service_type = ServiceType::NodePort;
        service.ports = [port("http", 80, 30080)].into();
        service.listen = Some(crate::model::TOO_LONG.into());
    });
    assert_eq!(
        frontends(only(&world.compile())),
        ["ClusterIP 10.96.0.10:80"]
    );
    let told = world.rejections();
    let [told] = told.as_slice() else {
        panic!("{told:?}");
    };
    assert!(told.starts_with("Service web: its annotation nodeport.openyurt.io/listen"));
    // With the flag there is no Service left to say it of.
    world.config.compat_drop_service = true;
    assert_eq!(world.rejections().len(), 1);
}

#[test]
fn what_a_machine_has_on_its_interfaces_says_something_of_the_node_that_it_is_and_of_no_other() {
    let mut world = World::web(None);
    world.node("loop", None, |node| {
        node.internal_ips = vec![ip("127.0.0.1")];
    });
    let view = |addresses: &[&str]| NodeView {
        local_addresses: Some(addresses.iter().map(|address| ip(address)).collect()),
        ..NodeView::default()
    };
    let here = view(&["127.0.0.1", "10.96.0.10", "192.0.2.11"]);
    let node = |name: &str| world.snapshot.nodes.get(name).map(|node| &**node);
    assert_eq!(here.clone().of(node("a1")), here);
    for other in ["a2", "loop", "unknown"] {
        assert_eq!(here.clone().of(node(other)), NodeView::default(), "{other}");
    }
}

#[test]
fn a_cluster_ip_that_an_interface_of_this_node_has_is_left_alone_until_it_has_not() {
    let mut world = World::web(None);
    world.service("web", |service| {
        service.service_type = ServiceType::LoadBalancer;
        service.load_balancer_ips = [ip("203.0.113.9")].into();
        service.cluster_ips = [ip("10.96.0.10"), ip("fd00:96::10")].into();
    });
    let here = ["10.96.0.10", "203.0.113.9", "192.0.2.11", "fd00:96::11"].map(ip);
    let table = world.compile();
    assert!(table.on_node.is_empty());
    world.view.local_addresses = Some(here.into());
    let with = world.compile();
    assert_eq!(with.on_node, [ip("10.96.0.10")]);
    let left_alone = with.services[0].frontends.iter();
    let left_alone: Vec<_> = left_alone.filter(|f| with.leaves_alone(f)).collect();
    assert_eq!(left_alone.len(), 1, "{left_alone:?}");
    // Nothing is wrong with it, and no socket has lost its endpoint.
    assert_eq!(world.lost, Suspects::default());
    assert_eq!(world.rejections(), [""; 0]);
    world.view.local_addresses = Some(here[1..].iter().copied().collect());
    assert!(world.compile().on_node.is_empty());
}

#[test]
fn the_default_route_stands_in_for_an_absent_node_and_adds_no_family_to_a_known_one() {
    let mut world = World::web(None);
    world.service("web", |service| {
        service.service_type = ServiceType::NodePort;
        service.ports = [port("http", 80, 30080)].into();
        service.cluster_ips = [ip("10.96.0.10"), ip("fd00:96::10")].into();
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
        service.ports = [port("http", 80, 30080)].into();
    });
    assert_eq!(
        frontends(only(&world.compile())),
        ["ClusterIP 10.96.0.10:80"]
    );
}

/// `web` as a load balancer with a NodePort and an external address.
fn balanced() -> World {
    let mut world = World::web(None);
    world.service("web", |service| {
        service.service_type = ServiceType::LoadBalancer;
        service.external_ips = [ip("198.51.100.7")].into();
        service.load_balancer_ips = [ip("203.0.113.1"), ip("203.0.113.2")].into();
        service.ports = [port("http", 80, 30080)].into();
    });
    world
}

const CLUSTER_IP: &str = "ClusterIP 10.96.0.10:80";
const EXTERNAL_IP: &str = "ExternalIP 198.51.100.7:80";
const BALANCED: [&str; 2] = ["LoadBalancer 203.0.113.1:80", "LoadBalancer 203.0.113.2:80"];
const NODE_PORT: &str = "NodePort 192.0.2.11:30080";

fn all_frontends(world: &mut World) -> Vec<String> {
    let table = world.compile();
    table
        .services
        .iter()
        .flat_map(|entry| frontends(entry))
        .collect()
}

#[test]
fn the_listen_grammar_is_openyurts() {
    for (listen, pool, is_kept) in [
        ("foo", "foo", true),
        ("foo", "bar", false),
        ("-foo", "foo", false),
        ("-foo", "bar", false),
        ("*", "foo", true),
        ("-foo,*", "foo", false),
        ("-foo,*", "bar", true),
        ("*,-foo", "foo", false),
        // The first of two entries of a name counts.
        ("foo,-foo", "foo", true),
        ("-foo,foo", "foo", false),
        ("-*,*", "foo", false),
        ("*,-*", "foo", true),
        // Blanks around entries, not inside them.
        (" foo ,\t-bar", "foo", true),
        ("- foo", "foo", false),
        ("- foo,foo", "foo", true),
        // Entries without a name are none.
        ("", "foo", false),
        (" ", "foo", false),
        (",-,,", "foo", false),
        (",-,*", "foo", true),
        // One sign only.
        ("--foo", "foo", false),
        ("--foo,foo", "foo", true),
        ("foo bar", "foo", false),
        ("Foo", "foo", false),
    ] {
        assert_eq!(super::listens(listen, pool), is_kept, "{listen:?} {pool}");
    }
}

/// `getNodePoolConfiguration` and `isNodePoolEnabled` of nodeportisolation/filter.go, as sets.
fn listens_by_sets(listen: &str, pool: &str) -> bool {
    let (mut names, mut entries) = (BTreeSet::new(), BTreeSet::new());
    for entry in listen.split(',') {
        let entry = entry.trim();
        let name = entry.strip_prefix('-').unwrap_or(entry);
        if !name.is_empty() && names.insert(name.to_owned()) {
            entries.insert(entry.to_owned());
        }
    }
    if entries.contains(pool) {
        return true;
    }
    !entries.contains(&format!("-{pool}")) && entries.contains("*")
}

proptest! {
    #[test]
    fn listening_is_what_openyurts_sets_say(
        listen in "([-* ,]|foo|bar|f){0,8}",
        pool in select(&["foo", "bar", "f"][..]),
    ) {
        prop_assert_eq!(super::listens(&listen, pool), listens_by_sets(&listen, pool));
    }
}

#[test]
fn a_pool_that_is_not_listened_to_keeps_the_cluster_ip() {
    let mut world = balanced();
    let listen = |world: &mut World, value: Option<&str>| {
        world.service("web", |service| service.listen = value.map(Arc::from));
        all_frontends(world)
    };
    let all = [&[CLUSTER_IP, EXTERNAL_IP][..], &BALANCED, &[NODE_PORT]].concat();
    assert_eq!(listen(&mut world, None), all);
    assert_eq!(listen(&mut world, Some("hangzhou")), all);
    assert_eq!(
        listen(&mut world, Some("beijing")),
        [CLUSTER_IP, EXTERNAL_IP]
    );
    assert_eq!(world.rejections(), [""; 0]);
    world.config.compat_drop_service = true;
    assert_eq!(listen(&mut world, Some("beijing")), [""; 0]);
    assert_eq!(listen(&mut world, Some("*")), all);
    // A node in no pool listens, as without OpenYurt.
    world.node("a1", None, |node| {
        node.internal_ips = vec![ip("192.0.2.11")]
    });
    assert_eq!(listen(&mut world, Some("beijing")), all);
}

#[test]
fn listening_means_nothing_to_a_service_without_node_ports() {
    let mut world = World::web(None);
    world.config.compat_drop_service = true;
    world.service("web", |service| {
        service.external_ips = [ip("198.51.100.7")].into();
        service.listen = Some("beijing".into());
    });
    assert_eq!(all_frontends(&mut world), [CLUSTER_IP, EXTERNAL_IP]);
}

#[test]
fn a_discarded_load_balancer_keeps_all_but_its_own_addresses() {
    let mut world = balanced();
    world.service("web", |service| service.is_discarded = true);
    assert_eq!(
        all_frontends(&mut world),
        [CLUSTER_IP, EXTERNAL_IP, NODE_PORT]
    );
    world.config.compat_drop_service = true;
    assert_eq!(all_frontends(&mut world), [""; 0]);
    world.service("web", |service| {
        service.service_type = ServiceType::NodePort
    });
    assert_eq!(
        all_frontends(&mut world),
        [CLUSTER_IP, EXTERNAL_IP, NODE_PORT]
    );
}

#[test]
fn the_clouds_tunnel_is_served_on_no_edge_node() {
    let mut world = World::web(None);
    let name = NamespacedName::new("kube-system", "x-tunnel-server-internal-svc");
    let mut service = Service::clone(world.snapshot.services.values().next().unwrap());
    service.name = name.clone();
    service.cluster_ips = [ip("10.96.0.77")].into();
    world.snapshot.services.insert(name, Arc::new(service));
    assert_eq!(all_frontends(&mut world), [CLUSTER_IP]);
}

#[test]
fn pool_services_share_a_load_balancers_addresses_out() {
    let mut world = balanced();
    let balanced = |world: &mut World| {
        let mut all = all_frontends(world);
        all.retain(|frontend| frontend.starts_with("LoadBalancer"));
        all
    };
    assert_eq!(balanced(&mut world), BALANCED);
    world.pool_service("web", "beijing", &["203.0.113.2"]);
    assert_eq!(balanced(&mut world), [""; 0]);
    world.pool_service("web", "hangzhou", &["203.0.113.1", "203.0.113.3"]);
    assert_eq!(
        balanced(&mut world),
        ["LoadBalancer 203.0.113.1:80", "LoadBalancer 203.0.113.3:80"]
    );
    // That of another Service says nothing.
    world.service("api", |service| {
        service.cluster_ips = [ip("10.96.0.20")].into()
    });
    world.pool_service("api", "hangzhou", &["203.0.113.9"]);
    assert_eq!(balanced(&mut world).len(), 2);
    world.config.compat_all_vips = true;
    assert_eq!(balanced(&mut world), BALANCED);
    world.config.compat_all_vips = false;
    world.snapshot.pool_services.clear();
    assert_eq!(balanced(&mut world), BALANCED);
}

#[test]
fn a_node_in_no_pool_has_none_of_the_addresses_that_are_shared_out() {
    let mut world = balanced();
    world.pool_service("web", "hangzhou", &["203.0.113.1"]);
    world.node("a1", None, |node| {
        node.internal_ips = vec![ip("192.0.2.11")]
    });
    assert_eq!(
        all_frontends(&mut world),
        [CLUSTER_IP, EXTERNAL_IP, NODE_PORT]
    );
}

#[test]
fn source_ranges_are_those_of_the_family_and_a_zero_prefix_admits_all() {
    let mut world = balanced();
    let mut admitted = |ranges: &[&str]| {
        world.service("web", |service| {
            service.cluster_ips = [ip("10.96.0.10"), ip("fd00:96::10")].into();
            service.load_balancer_ips = [ip("203.0.113.1"), ip("2001:db8::1")].into();
            service.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        });
        let table = world.compile();
        let entry = only(&table);
        let of =
            |f: &Frontend| -> Vec<String> { entry.admitted(f).map(ToString::to_string).collect() };
        let mut all: Vec<String> = entry
            .frontends
            .iter()
            .map(|f| format!("{} {}", f.kind, of(f).join(" ")))
            .collect();
        all.retain(|line| !line.ends_with(' '));
        all
    };
    assert_eq!(admitted(&[]), [""; 0]);
    assert_eq!(
        admitted(&["198.51.100.0/24", "10.0.0.0/8", "198.51.100.0/24"]),
        ["LoadBalancer 10.0.0.0/8 198.51.100.0/24"]
    );
    assert_eq!(
        admitted(&["10.0.0.0/8", "0.0.0.0/0", "fd00::/8"]),
        ["LoadBalancer fd00::/8"]
    );
    assert_eq!(admitted(&["0.0.0.0/0", "::/0"]), [""; 0]);
}

#[test]
fn an_address_with_more_source_ranges_than_can_be_is_left_to_the_network_by_whatever_name() {
    let mut world = World::web(None);
    let ranges = (0..=127).map(|number| format!("10.9.{number}.0/24"));
    let ranges: Vec<_> = ranges.map(|range| range.parse().unwrap()).collect();
    for (count, served) in [(127, true), (128, false)] {
        world.service("web", |service| {
            service.service_type = ServiceType::LoadBalancer;
            service.external_ips = [ip("203.0.113.9"), ip("198.51.100.7")].into();
            service.load_balancer_ips = [ip("203.0.113.9")].into();
            service.source_ranges = ranges[..count].into();
        });
        let table = world.compile();
        let shown = frontends(only(&table));
        let of_balancer = shown.iter().filter(|shown| shown.contains("203.0.113.9"));
        assert_eq!(of_balancer.count(), if served { 2 } else { 0 }, "{shown:?}");
        assert!(
            shown.contains(&"ExternalIP 198.51.100.7:80".to_owned()),
            "{shown:?}"
        );
        assert_eq!(
            table.rejections.is_empty(),
            served,
            "{:?}",
            table.rejections
        );
    }
}
