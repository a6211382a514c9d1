//! The cases of kube-proxy's `TestCategorizeEndpoints` (pkg/proxy/topology_test.go), in our words, and what follows
//! from them.

use std::sync::Arc;

use crate::model::{Endpoint, Hints, Placement, ServiceType, TrafficPolicy};
use crate::policy::fixtures::{World, only, port, rows, words};
use crate::table::{Backends, EndpointSet, FrontendKind, Scope};

/// The last part of an address, and what is known of the endpoint: `ready`, `serving`, `terminating`, `here`, and hints
/// as `zone:NAME` and `node:NAME`.
type Given = (u8, &'static str);

fn endpoint(&(last, words): &Given) -> Endpoint {
    let words: Vec<&str> = words.split(' ').collect();
    let hinted = |kind: &str| -> Box<[Arc<str>]> {
        let names = words.iter().filter_map(|word| word.strip_prefix(kind));
        names.map(Arc::from).collect()
    };
    let hints = Hints {
        zones: hinted("zone:"),
        nodes: hinted("node:"),
    };
    let is_here = words.contains(&"here");
    Endpoint {
        address: [10, 0, 0, last].into(),
        is_ready: words.contains(&"ready"),
        is_serving: words.contains(&"serving"),
        is_terminating: words.contains(&"terminating"),
        placement: Placement::new(Some(if is_here { "a1" } else { "b1" }.into()), hints)
            .map(Arc::new),
    }
}

/// How a Service is set up: `itp` and `etp` for the policies Local, `nodeport` if it can be reached from outside.
fn world(zone: &str, setup: &str, given: &[Given]) -> World {
    let mut world = World::web(None);
    world.node("a1", None, |node| {
        node.internal_ips = vec![[192, 0, 2, 11].into()];
        if !zone.is_empty() {
            let key = "topology.kubernetes.io/zone".to_owned();
            node.labels.insert(key, zone.to_owned());
        }
    });
    let policy = |word: &str| match setup.contains(word) {
        true => TrafficPolicy::Local,
        false => TrafficPolicy::Cluster,
    };
    world.service("web", |service| {
        service.internal_policy = policy("itp");
        service.external_policy = policy("etp");
        if setup.contains("nodeport") {
            service.service_type = ServiceType::NodePort;
            service.ports = [port("http", 80, 30080)].into();
        }
    });
    world.slice_with("web-1", "web", &[], |slice| {
        slice.endpoints = given.iter().map(endpoint).collect();
    });
    world
}

fn last_parts(set: &Backends) -> Vec<u8> {
    set.iter()
        .map(|at| match at {
            std::net::SocketAddr::V4(v4) => v4.ip().octets()[3],
            std::net::SocketAddr::V6(_) => 0,
        })
        .collect()
}

#[test]
fn the_cases_of_kube_proxy_come_out_as_there() {
    const ZONES: &[Given] = &[
        (3, "ready zone:a"),
        (4, "ready zone:b"),
        (5, "ready zone:c"),
        (6, "ready zone:a"),
    ];
    const ZONES_HERE: &[Given] = &[
        (3, "ready zone:a here"),
        (4, "ready zone:b here"),
        (5, "ready zone:c"),
        (6, "ready zone:a"),
    ];
    const NODES: &[Given] = &[
        (3, "ready zone:a node:a1"),
        (4, "ready zone:b node:a2"),
        (5, "ready zone:c node:a3"),
        (6, "ready zone:a node:a4"),
    ];
    const FAR: &[Given] = &[(0, "ready"), (1, "ready")];
    const NEAR_AND_FAR: &[Given] = &[(0, "ready here"), (1, "ready")];
    const FAR_AND_NEAR: &[Given] = &[(0, "ready"), (1, "ready here")];
    // Zone of the node, set-up, endpoints; then those of the policies Cluster and Local, and whether any node has one.
    type Case = (
        &'static str,
        &'static str,
        &'static [Given],
        &'static [u8],
        &'static [u8],
        bool,
    );
    let cases: &[Case] = &[
        // Every endpoint is hinted, and some for this zone.
        ("a", "", ZONES, &[3, 6], &[], true),
        // Hints say nothing about local endpoints.
        ("a", "etp nodeport", ZONES_HERE, &[3, 6], &[3, 4], true),
        ("a", "itp nodeport", ZONES_HERE, &[3, 6], &[3, 4], true),
        // The node has no zone, an empty one, one for which there is no endpoint.
        ("", "", &[(3, "ready zone:a")], &[3], &[], true),
        ("b", "", &[(3, "ready zone:a")], &[3], &[], true),
        // Those that are not ready are not asked for hints.
        (
            "a",
            "",
            &[
                (3, "ready zone:a"),
                (4, "ready zone:b"),
                (5, "ready zone:c"),
                (6, "zone:a"),
            ],
            &[3],
            &[],
            true,
        ),
        (
            "a",
            "",
            &[
                (3, "zone:a"),
                (4, "ready zone:b"),
                (5, "ready zone:c"),
                (6, "zone:a"),
            ],
            &[4, 5],
            &[],
            true,
        ),
        // One without a hint turns hints off.
        (
            "a",
            "",
            &[
                (3, "ready zone:a"),
                (4, "ready zone:b"),
                (5, "ready"),
                (6, "ready zone:a"),
            ],
            &[3, 4, 5, 6],
            &[],
            true,
        ),
        // Several zones in a hint.
        (
            "c",
            "",
            &[
                (3, "ready zone:a zone:b zone:c"),
                (4, "ready zone:b zone:c"),
                (5, "ready zone:b zone:d"),
                (6, "ready zone:c"),
            ],
            &[3, 4, 6],
            &[],
            true,
        ),
        // The node comes before the zone; the gate that turned this off is locked since 1.35.
        ("a", "", NODES, &[3], &[], true),
        (
            "a",
            "",
            &[
                (3, "ready zone:a node:a1"),
                (4, "ready"),
                (5, "ready zone:c node:a3"),
                (6, "ready zone:a node:a4"),
            ],
            &[3, 4, 5, 6],
            &[],
            true,
        ),
        (
            "a",
            "",
            &[
                (3, "ready zone:a node:a9"),
                (4, "ready zone:b node:a2"),
                (5, "ready zone:c node:a3"),
                (6, "ready zone:a node:a4"),
            ],
            &[3, 6],
            &[],
            true,
        ),
        // Neither list contains the other.
        (
            "a",
            "etp nodeport",
            &[
                (0, "ready zone:a here"),
                (1, "ready zone:b here"),
                (2, "ready zone:a"),
                (3, "ready zone:b"),
            ],
            &[0, 2],
            &[0, 1],
            true,
        ),
        // Local for clients inside.
        ("", "itp", &[], &[], &[], false),
        ("", "itp", FAR, &[], &[], true),
        (
            "",
            "itp",
            &[(0, "ready here"), (1, "ready here")],
            &[],
            &[0, 1],
            true,
        ),
        ("", "itp", NEAR_AND_FAR, &[], &[0], true),
        // Readiness.
        ("", "", &[(0, ""), (1, "")], &[], &[], false),
        ("", "", &[(0, ""), (1, "ready")], &[1], &[], true),
        (
            "",
            "",
            &[(0, "serving terminating here"), (1, "serving terminating")],
            &[0, 1],
            &[],
            true,
        ),
        // Both policies.
        ("", "itp nodeport", NEAR_AND_FAR, &[0, 1], &[0], true),
        ("", "etp nodeport", NEAR_AND_FAR, &[0, 1], &[0], true),
        ("", "itp etp nodeport", NEAR_AND_FAR, &[0, 1], &[0], true),
        ("", "itp etp nodeport", FAR, &[0, 1], &[], true),
        (
            "",
            "itp etp nodeport",
            &[(0, "serving terminating"), (1, "serving terminating")],
            &[0, 1],
            &[],
            true,
        ),
        // Each policy falls back on its own.
        (
            "",
            "etp nodeport",
            &[
                (0, "ready"),
                (1, "here"),
                (2, "serving terminating here"),
                (3, "serving terminating"),
            ],
            &[0],
            &[2],
            true,
        ),
        // What cannot be reached from outside has no use for the external policy, nor one for the policy Cluster.
        ("", "etp", FAR_AND_NEAR, &[0, 1], &[], true),
        ("", "itp", FAR_AND_NEAR, &[], &[1], true),
        // Nothing, and nothing usable.
        ("", "", &[], &[], &[], false),
        ("a", "", &[(0, "")], &[], &[], false),
    ];
    for (zone, setup, given, cluster, local, has_any) in cases {
        let table = world(zone, setup, given).compile();
        let set: &EndpointSet = &only(&table).v4;
        let found = (
            last_parts(&set.cluster),
            last_parts(&set.local),
            set.has_any,
        );
        let expected = (cluster.to_vec(), local.to_vec(), *has_any);
        assert_eq!(found, expected, "{zone} {setup} {given:?}");
    }
}

#[test]
fn without_an_endpoint_on_any_node_every_frontend_refuses() {
    for setup in [
        "nodeport",
        "itp nodeport",
        "etp nodeport",
        "itp etp nodeport",
    ] {
        for given in [&[][..], &[(0, ""), (1, "here terminating")]] {
            let table = world("", setup, given).compile();
            let entry = only(&table);
            let rows = rows(entry);
            assert!(rows.iter().all(|row| row.contains("Refuse")), "{rows:?}");
        }
    }
}

#[test]
fn the_policy_local_drops_clients_where_only_other_nodes_have_endpoints() {
    let rows = |setup: &str| rows(only(&world("", setup, &[(1, "ready")]).compile()));
    assert_eq!(
        rows("itp nodeport"),
        [
            "ClusterIP internal Drop",
            "ClusterIP external masquerade Drop",
            "NodePort internal Forward 10.0.0.1",
            "NodePort external masquerade Forward 10.0.0.1",
        ]
    );
    assert_eq!(
        rows("etp nodeport"),
        [
            "ClusterIP internal Forward 10.0.0.1",
            "ClusterIP external masquerade Forward 10.0.0.1",
            "NodePort internal Forward 10.0.0.1",
            "NodePort external Drop",
        ]
    );
}

#[test]
fn clients_of_this_node_reach_external_addresses_whatever_the_external_policy() {
    let given = [(1, "ready here"), (2, "ready")];
    let table = world("", "itp etp nodeport", &given).compile();
    assert_eq!(
        rows(only(&table)),
        [
            "ClusterIP internal Forward 10.0.0.1",
            "ClusterIP external masquerade Forward 10.0.0.1",
            "NodePort internal Forward 10.0.0.1 10.0.0.2",
            "NodePort external Forward 10.0.0.1",
        ]
    );
}

#[test]
fn each_dropped_endpoint_has_the_first_rule_that_is_against_it() {
    let given = [
        (1, "ready here node:a1 zone:z"),
        (2, "ready node:a2 node:a3 zone:z"),
        (3, ""),
        (4, "terminating"),
        (5, "serving terminating here"),
        (6, "serving terminating"),
    ];
    let mut world = world("z", "itp etp nodeport", &given);
    let table = world.compile();
    let entry = only(&table);
    let why = |kind, scope| {
        let mut frontends = entry.frontends.iter();
        let frontend = frontends.find(|f| f.kind == kind).unwrap();
        let why = world.reasons().why(entry, frontend, scope);
        (why.kept, why.dropped.iter().map(words).collect::<Vec<_>>())
    };
    let (kept, dropped) = why(FrontendKind::NodePort, Scope::Internal);
    assert_eq!(kept, "ready, hinted for node a1");
    assert_eq!(
        dropped,
        [
            "10.0.0.2:8080 hints: for node a2, a3, not for a1",
            "10.0.0.3:8080 not ready",
            "10.0.0.4:8080 terminating and no longer serving",
            "10.0.0.5:8080 terminating, and others are ready",
            "10.0.0.6:8080 terminating, and others are ready",
        ]
    );
    let (kept, dropped) = why(FrontendKind::ClusterIp, Scope::Internal);
    assert_eq!(kept, "ready on this node");
    assert_eq!(
        dropped,
        [
            "10.0.0.2:8080 traffic policy Local: node b1 is not this node",
            "10.0.0.3:8080 not ready",
            "10.0.0.4:8080 terminating and no longer serving",
            "10.0.0.5:8080 terminating, and others are ready",
            "10.0.0.6:8080 traffic policy Local: node b1 is not this node",
        ]
    );
}

#[test]
fn the_words_for_zones_and_for_the_last_ones_that_serve() {
    let mut zoned = world("z", "", &[(1, "ready zone:z"), (2, "ready zone:y")]);
    assert_eq!(
        zoned.dropped(),
        ["10.0.0.2:8080 hints: for zone y, not for z"]
    );
    let lingering = [(1, "serving terminating here"), (2, "serving terminating")];
    for (setup, kept) in [
        ("", "terminating but serving, as none is ready"),
        (
            "itp",
            "terminating but serving on this node, as none is ready",
        ),
    ] {
        let mut world = world("z", setup, &lingering);
        let table = world.compile();
        let entry = only(&table);
        let why = world
            .reasons()
            .why(entry, &entry.frontends[0], Scope::Internal);
        assert_eq!(why.kept, kept);
    }
}

#[test]
fn closure_comes_first_and_hints_and_fallbacks_see_only_what_is_inside() {
    // Outside, there is a ready endpoint without a hint; inside, all are hinted, and one lingers.
    let given = [
        (1, "ready zone:z here"),
        (2, "ready zone:y here"),
        (3, "ready"),
    ];
    let mut hinted = world("z", "", &given);
    hinted.service("web", |service| {
        service.topology_keys = Some("kubernetes.io/hostname".into());
    });
    assert_eq!(hinted.selected(), ["10.0.0.1:8080"]);
    let mut lingering = world("z", "", &[(1, "serving terminating here"), (2, "ready")]);
    lingering.service("web", |service| {
        service.topology_keys = Some("kubernetes.io/hostname".into());
    });
    assert_eq!(lingering.selected(), ["10.0.0.1:8080"]);
    // What is usable outside the closure is nobody's: refused, not dropped.
    let mut elsewhere = world("z", "itp", &[(1, "ready")]);
    elsewhere.service("web", |service| {
        service.topology_keys = Some("kubernetes.io/hostname".into());
    });
    assert_eq!(
        rows(only(&elsewhere.compile())),
        [
            "ClusterIP internal Refuse",
            "ClusterIP external masquerade Refuse"
        ]
    );
}

#[test]
fn of_two_copies_the_one_that_is_not_terminating_speaks() {
    for (copies, selected) in [
        (["serving terminating", "ready"], &["10.0.0.1:8080"][..]),
        (["ready terminating", ""], &[]),
        (["serving terminating", ""], &[]),
        (["", "ready"], &["10.0.0.1:8080"]),
    ] {
        for order in [[0, 1], [1, 0]] {
            let given = order.map(|at| (1, copies[at]));
            assert_eq!(world("", "", &given).selected(), selected, "{given:?}");
            let mut split = world("", "", &given[..1]);
            split.slice_with("web-0", "web", &[], |slice| {
                slice.endpoints = given[1..].iter().map(endpoint).collect();
            });
            assert_eq!(split.selected(), selected, "{given:?}");
        }
    }
}
