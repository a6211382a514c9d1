//! The rules, one by one.

use std::sync::Arc;

use super::ClosureFailure::{Closed, LastKnown, Open};
use super::ViaHub;
use super::fixtures::{World, frontends, ip, only, port, selected};
use crate::model::{EndpointPort, Protocol, Service, ServicePort, ServiceType};
use crate::table::Closure;

const HOSTNAME: Option<&str> = Some("kubernetes.io/hostname");
const NODEPOOL: Option<&str> = Some("openyurt.io/nodepool");

#[test]
fn without_the_annotation_all_ready_endpoints_are_selected() {
    let mut world = World::web(None);
    assert_eq!(
        world.selected(),
        ["10.1.0.2:8080", "10.1.1.2:8080", "10.2.0.2:8080"]
    );
    assert_eq!(only(&world.compile()).closure, Closure::None);
}

#[test]
fn an_empty_annotation_is_none() {
    let mut world = World::web(Some(""));
    assert_eq!(world.selected().len(), 3);
    assert_eq!(world.rejections(), [""; 0]);
}

#[test]
fn hostname_keeps_the_endpoints_of_this_node() {
    let mut world = World::web(HOSTNAME);
    assert_eq!(world.selected(), ["10.1.0.2:8080"]);
    assert_eq!(
        world.dropped(),
        [
            "10.1.1.2:8080 closure: node a2 is not this node",
            "10.2.0.2:8080 closure: node b1 is not this node"
        ]
    );
}

#[test]
fn nodepool_and_zone_are_synonyms_for_the_pool() {
    for keys in ["openyurt.io/nodepool", "kubernetes.io/zone"] {
        let mut world = World::web(Some(keys));
        world.pool("hangzhou", &["a1", "a2"]);
        assert_eq!(world.selected(), ["10.1.0.2:8080", "10.1.1.2:8080"]);
        assert_eq!(
            world.dropped(),
            ["10.2.0.2:8080 closure: node b1 is not in pool hangzhou"]
        );
        assert_eq!(only(&world.compile()).closure, Closure::Pool);
    }
}

#[test]
fn any_other_value_closes_nothing_and_is_a_rejection_of_the_service() {
    let lists = [
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname,openyurt.io/nodepool",
        " ",
    ];
    for keys in lists {
        for failure in [LastKnown, Open, Closed] {
            let mut world = World::web(Some(keys)).fail(failure);
            assert_eq!(world.selected().len(), 3);
            assert_eq!(only(&world.compile()).closure, Closure::None);
            let rejections = world.rejections();
            assert_eq!(rejections.len(), 1);
            assert!(rejections[0].starts_with("Service web: annotation openyurt.io/topologyKeys"));
        }
    }
}

#[test]
fn a_rejection_names_the_document_of_its_object() {
    let mut world = World::web(Some("rack"));
    let name = world.snapshot.services.keys().next().unwrap().clone();
    world.found_in("web.yaml", 3, &name);
    assert_eq!(world.compile().rejections[0].source, "web.yaml#3");
}

#[test]
fn a_node_in_no_pool_closes_pool_services_to_itself() {
    let mut world = World::web(NODEPOOL);
    world.node("a1", None, |_| ());
    world.pool("hangzhou", &["a1", "a2"]);
    let table = world.compile();
    assert_eq!(table.pool, "");
    assert_eq!(only(&table).closure, Closure::Node);
    assert_eq!(selected(only(&table)), ["10.1.0.2:8080"]);
    assert_eq!(table.rejections, []);
}

#[test]
fn the_pool_flag_wins_over_the_label() {
    let mut world = World::web(NODEPOOL);
    world.config.nodepool = Some("beijing".to_owned());
    world.pool("beijing", &["b1"]);
    assert_eq!(world.compile().pool, "beijing");
    // This node is in its own pool though the NodePool does not list it.
    assert_eq!(world.selected(), ["10.1.0.2:8080", "10.2.0.2:8080"]);
}

#[test]
fn the_key_of_the_pool_label_can_be_another() {
    let mut world = World::web(NODEPOOL);
    world.config.pool_label = "vendor.example/pool".to_owned();
    for (name, pool) in [("a1", "x"), ("a2", "y"), ("b1", "x")] {
        world.node(name, Some("ignored"), |node| {
            node.labels
                .insert("vendor.example/pool".to_owned(), pool.to_owned());
        });
    }
    assert_eq!(world.compile().pool, "x");
    assert_eq!(world.selected(), ["10.1.0.2:8080", "10.2.0.2:8080"]);
}

#[test]
fn node_labels_win_over_buckets_and_buckets_over_the_pool_status() {
    let mut world = World::web(NODEPOOL);
    world.pool("hangzhou", &["a1", "a2", "b1"]);
    assert_eq!(world.selected().len(), 3);
    world.bucket("hangzhou-1", "hangzhou", &["a1"]);
    world.bucket("beijing-1", "beijing", &["b1"]);
    assert_eq!(world.selected(), ["10.1.0.2:8080"]);
    world.bucket("hangzhou-2", "hangzhou", &["a2"]);
    assert_eq!(world.selected(), ["10.1.0.2:8080", "10.1.1.2:8080"]);
    world.node("a2", Some("beijing"), |_| ());
    world.node("b1", Some("hangzhou"), |_| ());
    assert_eq!(world.selected(), ["10.1.0.2:8080", "10.2.0.2:8080"]);
}

#[test]
fn a_node_object_without_the_label_is_no_member() {
    let mut world = World::web(NODEPOOL);
    world.pool("hangzhou", &["a1", "a2"]);
    world.node("a2", None, |_| ());
    assert_eq!(world.selected(), ["10.1.0.2:8080"]);
}

#[test]
fn a_pool_known_to_be_empty_is_refused_and_not_leaked() {
    for failure in [LastKnown, Open, Closed] {
        let mut world = World::web(NODEPOOL).fail(failure);
        world.pool("hangzhou", &["a1", "a2"]);
        world.compile();
        world.pool("hangzhou", &[]);
        world.slice(
            "web-1",
            "web",
            &[("10.1.1.2", Some("a2")), ("10.2.0.2", Some("b1"))],
        );
        assert_eq!(world.selected(), [""; 0]);
    }
}

#[test]
fn an_endpoint_without_a_node_is_outside_every_closure() {
    for failure in [LastKnown, Open, Closed] {
        for keys in [HOSTNAME, NODEPOOL] {
            let mut world = World::web(keys).fail(failure);
            world.slice("web-1", "web", &[("10.9.0.1", None)]);
            assert_eq!(
                world.dropped(),
                ["10.9.0.1:8080 closure: the endpoint has no nodeName"]
            );
        }
    }
    let mut world = World::web(None);
    world.slice("web-1", "web", &[("10.9.0.1", None)]);
    assert_eq!(world.selected(), ["10.9.0.1:8080"]);
}

#[test]
fn missing_membership_is_closed_unless_it_was_known_or_the_flag_says_open() {
    let own = "10.1.0.2:8080";
    for (failure, expected) in [
        (LastKnown, vec![own]),
        (Closed, vec![own]),
        (Open, vec![own, "10.1.1.2:8080", "10.2.0.2:8080"]),
    ] {
        assert_eq!(World::web(NODEPOOL).fail(failure).selected(), expected);
    }
    for (failure, expected) in [
        (LastKnown, vec![own, "10.1.1.2:8080"]),
        (Closed, vec![own]),
        (Open, vec![own, "10.1.1.2:8080", "10.2.0.2:8080"]),
    ] {
        let mut world = World::web(NODEPOOL).fail(failure);
        world.pool("hangzhou", &["a1", "a2"]);
        world.compile();
        world.snapshot.pools.clear();
        assert_eq!(world.selected(), expected, "{failure:?}");
        // It lasts as long as the data is missing.
        assert_eq!(world.selected(), expected, "{failure:?}");
    }
}

#[test]
fn the_memory_of_a_node_yields_to_what_is_known_now() {
    let mut world = World::web(NODEPOOL);
    world.pool("hangzhou", &["a1", "a2"]);
    world.compile();
    world.snapshot.pools.clear();
    world.node("a2", Some("beijing"), |_| ());
    assert_eq!(world.selected(), ["10.1.0.2:8080"]);
    // And what was known last is that it is gone.
    world.snapshot.nodes.remove("a2");
    assert_eq!(world.selected(), ["10.1.0.2:8080"]);
}

#[test]
fn the_memory_of_one_pool_says_nothing_about_another() {
    let mut world = World::web(NODEPOOL);
    world.pool("hangzhou", &["a1", "a2"]);
    world.compile();
    world.node("a1", Some("beijing"), |_| ());
    assert_eq!(world.selected(), ["10.1.0.2:8080"]);
}

#[test]
fn without_its_own_node_the_pool_is_empty_and_a_rejection_says_so() {
    let mut world = World::web(NODEPOOL);
    world.snapshot.nodes.clear();
    world.pool("hangzhou", &["a1", "a2"]);
    let table = world.compile();
    assert_eq!((&*table.pool, only(&table).closure), ("", Closure::Node));
    assert_eq!(selected(only(&table)), ["10.1.0.2:8080"]);
    assert_eq!(
        world.rejections(),
        [
            "Node a1: this node is not in the source: its pool, zone and addresses are unknown; \
          --node must be the Node's name"
        ]
    );
    world.config.nodepool = Some("hangzhou".to_owned());
    assert_eq!(world.selected(), ["10.1.0.2:8080", "10.1.1.2:8080"]);
    assert_eq!(world.rejections().len(), 1);
}

#[test]
fn without_its_own_node_the_closure_failure_decides_on_the_pool() {
    for (failure, pool, count) in [(LastKnown, "hangzhou", 2), (Closed, "", 1), (Open, "", 3)] {
        let mut world = World::web(NODEPOOL).fail(failure);
        world.pool("hangzhou", &["a1", "a2"]);
        world.compile();
        world.snapshot.nodes.clear();
        assert_eq!(world.compile().pool, pool);
        assert_eq!(world.selected().len(), count, "{failure:?}");
    }
}

#[test]
fn a_moved_node_a_new_annotation_and_a_new_pool_take_effect_at_once() {
    let mut world = World::web(NODEPOOL);
    world.pool("hangzhou", &["a1", "a2"]);
    world.pool("beijing", &["b1"]);
    assert_eq!(world.selected(), ["10.1.0.2:8080", "10.1.1.2:8080"]);
    world.node("a1", Some("beijing"), |_| ());
    assert_eq!(world.selected(), ["10.1.0.2:8080", "10.2.0.2:8080"]);
    world.pool("beijing", &["b1", "a2"]);
    assert_eq!(world.selected().len(), 3);
    world.service("web", |service| {
        service.topology_keys = HOSTNAME.map(Arc::from)
    });
    assert_eq!(world.selected(), ["10.1.0.2:8080"]);
}

#[test]
fn the_closure_is_named_before_the_readiness() {
    let mut world = World::web(HOSTNAME);
    world.slice_with(
        "web-1",
        "web",
        &[("10.1.0.2", Some("a1")), ("10.2.0.2", Some("b1"))],
        |s| {
            s.endpoints
                .edit(|all| all.iter_mut().for_each(|one| one.is_ready = false));
        },
    );
    assert_eq!(
        world.dropped(),
        [
            "10.1.0.2:8080 not ready",
            "10.2.0.2:8080 closure: node b1 is not this node"
        ]
    );
}

#[test]
fn of_two_copies_of_an_endpoint_the_ready_one_counts() {
    let mut world = World::web(None);
    world.slice_with("web-0", "web", &[("10.1.0.2", Some("a1"))], |slice| {
        slice.endpoints.edit(|all| all[0].is_ready = false);
    });
    assert_eq!(world.selected().len(), 3);
    assert_eq!(world.dropped(), [""; 0]);
}

#[test]
fn slices_join_by_namespace_service_port_name_and_protocol() {
    let mut world = World::web(None);
    world.slice_with("other-protocol", "web", &[("10.3.0.1", None)], |slice| {
        Arc::make_mut(&mut slice.ports)[0].protocol = Protocol::Udp;
    });
    world.slice_with("other-port", "web", &[("10.3.0.2", None)], |slice| {
        Arc::make_mut(&mut slice.ports)[0].name = Arc::default();
    });
    world.slice("other-service", "webx", &[("10.3.0.3", None)]);
    world.slice("web-2", "web", &[("10.3.0.4", None)]);
    let other = world
        .snapshot
        .slices
        .values()
        .find(|s| &*s.name.name == "web-2")
        .unwrap()
        .clone();
    let mut other = Arc::unwrap_or_clone(other);
    world.snapshot.slices.remove(&other.name);
    other.name.namespace = "elsewhere".into();
    world
        .snapshot
        .slices
        .insert(other.name.clone(), Arc::new(other));
    assert_eq!(world.selected().len(), 3);
}

#[test]
fn each_slice_has_its_own_number_for_a_port() {
    let mut world = World::web(None);
    world.slice_with(
        "web-2",
        "web",
        &[("10.1.0.2", None), ("10.1.0.9", None)],
        |slice| {
            Arc::make_mut(&mut slice.ports)[0].port = 9090;
            let second = EndpointPort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 9091,
            };
            slice.ports = [slice.ports[0].clone(), second].into();
        },
    );
    let selected = world.selected();
    assert_eq!(
        selected[..3],
        ["10.1.0.2:8080", "10.1.0.2:9090", "10.1.0.2:9091"]
    );
    assert_eq!(selected.len(), 7);
}

#[test]
fn each_family_has_its_own_endpoints_and_only_where_the_service_has_a_cluster_ip() {
    let mut world = World::web(None);
    world.slice("web-6", "web", &[("fd00:1::2", Some("a1"))]);
    world.service("web", |service| {
        service.external_ips = [ip("2001:db8::1")].into()
    });
    let table = world.compile();
    assert!(only(&table).v6.cluster.is_empty());
    assert_eq!(frontends(only(&table)), ["ClusterIP 10.96.0.10:80"]);
    world.service("web", |service| {
        service.cluster_ips = [ip("10.96.0.10"), ip("fd00:96::10")].into()
    });
    let table = world.compile();
    assert_eq!(
        only(&table).v6.cluster.to_vec(),
        ["[fd00:1::2]:8080".parse().unwrap()]
    );
    assert_eq!(
        frontends(only(&table)),
        [
            "ClusterIP 10.96.0.10:80",
            "ClusterIP [fd00:96::10]:80",
            "ExternalIP [2001:db8::1]:80"
        ]
    );
}

#[test]
fn headless_external_name_and_foreign_services_are_absent_without_a_rejection() {
    let mut world = World::web(Some("unknown"));
    for edit in [
        |s: &mut Service| s.cluster_ips = Box::from([]),
        |s: &mut Service| s.service_type = ServiceType::ExternalName,
        |s: &mut Service| s.is_proxied_elsewhere = true,
    ] {
        let mut edited = World::web(Some("unknown"));
        edited.service("web", edit);
        assert_eq!(edited.compile().services, []);
        assert_eq!(edited.rejections(), [""; 0]);
    }
    assert_eq!(world.compile().services.len(), 1);
}

#[test]
fn a_changed_slice_recompiles_its_service_and_an_equal_result_keeps_its_arc() {
    let mut world = World::web(NODEPOOL);
    world.pool("hangzhou", &["a2"]);
    world.service("api", |service| {
        service.cluster_ips = [ip("10.96.0.20")].into()
    });
    let before = world.compile();
    world.slice("web-2", "web", &[("10.1.0.2", Some("a1"))]);
    world.pool("beijing", &["b1"]);
    let same = world.compile();
    assert!(
        before
            .services
            .iter()
            .zip(&same.services)
            .all(|(a, b)| Arc::ptr_eq(a, b))
    );
    world.slice("web-2", "web", &[("10.1.0.3", Some("a1"))]);
    let after = world.compile();
    assert!(Arc::ptr_eq(&before.services[0], &after.services[0]));
    assert!(!Arc::ptr_eq(&before.services[1], &after.services[1]));
}

#[test]
fn pods_reach_the_api_through_the_hub_where_this_node_is_behind_one() {
    let mut world = World::new();
    world.service("kubernetes", |service| {
        service.ports = [port("https", 443, 0), port("other", 444, 0)].into();
    });
    world.slice_with(
        "kubernetes",
        "kubernetes",
        &[("192.0.2.1", None)],
        |slice| {
            let named = |name: &str, port| EndpointPort {
                name: name.into(),
                protocol: Protocol::Tcp,
                port,
            };
            slice.ports = [named("other", 6444), named("https", 6443)].into();
        },
    );
    let https = |world: &mut World| selected(&world.compile().services[0]);
    assert_eq!(https(&mut world), ["192.0.2.1:6443"]);
    world.config.is_source_hub = true;
    assert_eq!(https(&mut world), ["169.254.2.1:10268"]);
    let table = world.compile();
    assert_eq!(selected(&table.services[1]), ["169.254.2.1:6444"]);
    world.config.kubernetes_via_hub = ViaHub::Off;
    assert_eq!(https(&mut world), ["192.0.2.1:6443"]);
    world.config.is_source_hub = false;
    world.config.kubernetes_via_hub = ViaHub::On;
    assert_eq!(https(&mut world), ["169.254.2.1:10268"]);
    // A hub that sees an empty slice still is there; other slices are left as they are.
    for (slice, endpoints) in [
        ("kubernetes", &[][..]),
        ("kubernetes-2", &[("192.0.2.9", None)]),
    ] {
        world.slice_with(slice, "kubernetes", endpoints, |slice| {
            Arc::make_mut(&mut slice.ports)[0].name = "https".into();
        });
    }
    assert_eq!(https(&mut world), ["169.254.2.1:10268", "192.0.2.9:8080"]);
}

#[test]
fn an_ipv6_cluster_has_the_hub_at_its_ipv6_address() {
    let mut world = World::new();
    world.config.kubernetes_via_hub = ViaHub::On;
    world.service("kubernetes", |service| {
        service.cluster_ips = [ip("fd00:96::1")].into();
        service.ports = [port("https", 443, 0)].into();
    });
    world.slice_with(
        "kubernetes",
        "kubernetes",
        &[("fd00:1::1", None)],
        |slice| {
            Arc::make_mut(&mut slice.ports)[0].name = "https".into();
        },
    );
    assert_eq!(world.selected(), ["[fd00::2:1]:10268"]);
    assert_eq!(world.dropped(), [""; 0]);
}

#[test]
fn slices_of_headless_services_are_no_endpoints() {
    let mut world = World::web(None);
    world.slice_with("web-2", "web", &[("10.9.0.1", Some("a1"))], |slice| {
        slice.is_headless = true;
    });
    assert_eq!(world.selected().len(), 3);
    assert_eq!(world.dropped(), [""; 0]);
}

#[test]
fn a_port_in_two_protocols_and_ports_of_two_names_are_services_of_their_own() {
    let mut world = World::web(None);
    world.service("web", |service| {
        let udp = |name, number| ServicePort {
            protocol: Protocol::Udp,
            ..port(name, number, 0)
        };
        service.ports = [udp("dns", 53), port("dns", 53, 0), port("http", 80, 0)].into();
        service.affinity_seconds = 60;
    });
    let table = world.compile();
    let found: Vec<_> = table
        .services
        .iter()
        .map(|entry| (&*entry.key.port, entry.key.protocol, selected(entry).len()))
        .collect();
    assert_eq!(
        found,
        [
            ("dns", Protocol::Tcp, 0),
            ("dns", Protocol::Udp, 0),
            ("http", Protocol::Tcp, 3)
        ]
    );
    assert!(
        table
            .services
            .iter()
            .all(|entry| entry.affinity_seconds == 60)
    );
}

#[test]
fn a_changed_pool_service_recompiles_its_service_alone() {
    let mut world = World::web(None);
    world.service("web", |service| {
        service.service_type = ServiceType::LoadBalancer;
        service.load_balancer_ips = [ip("203.0.113.1")].into();
    });
    world.service("api", |service| {
        service.cluster_ips = [ip("10.96.0.20")].into()
    });
    let before = world.compile();
    world.pool_service("web", "hangzhou", &["203.0.113.2"]);
    let after = world.compile();
    assert!(Arc::ptr_eq(&before.services[0], &after.services[0]));
    assert_eq!(
        frontends(&after.services[1]),
        ["ClusterIP 10.96.0.10:80", "LoadBalancer 203.0.113.2:80"]
    );
}

#[test]
fn while_the_source_is_stale_an_endpoint_of_this_node_is_where_its_pod_is() {
    let mut world = World::web(None);
    world.pods("web-1", &["web-0"]);
    // As the slice has it: nothing to say.
    world.ledger(&[("web-0", Some("10.1.0.2"))]);
    assert_eq!(world.selected().len(), 3);
    assert_eq!(world.dropped(), [""; 0]);
    world.ledger(&[("web-0", Some("10.1.0.9"))]);
    assert_eq!(
        world.selected(),
        ["10.1.0.9:8080", "10.1.1.2:8080", "10.2.0.2:8080"]
    );
    assert_eq!(
        world.dropped(),
        [
            "10.1.0.2:8080 Pod default/web-0 is now at 10.1.0.9: the ledger knows, and the source is stale"
        ]
    );
    world.ledger(&[("web-0", None)]);
    assert_eq!(world.selected(), ["10.1.1.2:8080", "10.2.0.2:8080"]);
    assert_eq!(
        world.dropped(),
        [
            "10.1.0.2:8080 Pod default/web-0 is not running: the ledger knows, and the source is stale"
        ]
    );
    // Back, and then the cloud is.
    world.ledger(&[("web-0", Some("10.1.0.2"))]);
    assert_eq!(world.selected().len(), 3);
    world.ledger(&[("web-0", None)]);
    world.view.truth = None;
    assert_eq!(world.selected().len(), 3);
}

#[test]
fn what_the_ledger_has_never_heard_of_is_where_the_slice_has_it() {
    let mut world = World::web(HOSTNAME);
    world.pods("web-1", &["web-0"]);
    world.ledger(&[("other", None)]);
    assert_eq!(world.selected(), ["10.1.0.2:8080"]);
    // A Pod of the other family only has no address for this slice.
    world.ledger(&[("web-0", Some("fd00::2"))]);
    assert_eq!(world.selected(), [""; 0]);
}

#[test]
fn pods_that_have_exchanged_their_addresses_are_not_taken_for_each_other() {
    let mut world = World::new();
    let addresses = [
        ("web", "10.1.0.2", "10.96.0.10"),
        ("api", "10.1.0.3", "10.96.0.11"),
    ];
    for (name, address, cluster_ip) in addresses {
        world.service(name, |service| {
            service.cluster_ips = [ip(cluster_ip)].into()
        });
        let slice = format!("{name}-1");
        world.slice(&slice, name, &[(address, Some("a1"))]);
        world.pods(&slice, &[&format!("{name}-0")]);
    }
    world.ledger(&[("web-0", Some("10.1.0.3")), ("api-0", Some("10.1.0.2"))]);
    let table = world.compile();
    let found: Vec<_> = table
        .services
        .iter()
        .map(|entry| (&*entry.key.name, selected(entry)))
        .collect();
    let expected = [
        ("api", vec!["10.1.0.2:8080".to_owned()]),
        ("web", vec!["10.1.0.3:8080".to_owned()]),
    ];
    assert_eq!(found, expected);
}
