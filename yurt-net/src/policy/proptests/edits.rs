//! Edits of a cluster, as proptest makes them up.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::collection::{btree_set, vec};
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::environment::ZONE_LABEL;
use super::super::fixtures::{World, ip, port};
use crate::model::{
    EndpointPod, Hints, Kind, NamespacedName, Placement, ServiceType, Touched, TrafficPolicy,
};

pub(super) const SERVICES: [&str; 3] = ["alpha", "beta", "gamma"];
const NODES: [&str; 4] = ["a1", "a2", "b1", "c1"];
pub(super) const POOLS: [&str; 2] = ["hangzhou", "beijing"];
const KEYS: [Option<&str>; 6] = [
    None,
    Some(""),
    Some("rack"),
    Some("kubernetes.io/hostname"),
    Some("openyurt.io/nodepool"),
    Some("kubernetes.io/zone"),
];

const ZONES: [&str; 2] = ["z1", "z2"];
const LISTENS: [Option<&str>; 5] = [
    None,
    Some("*"),
    Some("hangzhou"),
    Some("-hangzhou,*"),
    Some("beijing"),
];
const POLICIES: [TrafficPolicy; 2] = [TrafficPolicy::Cluster, TrafficPolicy::Local];

/// One endpoint.
#[derive(Clone, Debug)]
struct Member {
    address: u8,
    node: Option<&'static str>,
    /// `ready`, `serving`, `terminating`.
    conditions: (bool, bool, bool),
    zones: Vec<&'static str>,
    nodes: Vec<&'static str>,
}

#[derive(Clone, Debug)]
pub(super) enum Edit {
    Service(&'static str, Option<ServiceShape>),
    Slice(u8, Option<SliceShape>),
    /// `None` = no such Node; else its pool and zone.
    Node(
        &'static str,
        Option<(Option<&'static str>, Option<&'static str>)>,
    ),
    Pool(&'static str, Option<Vec<&'static str>>),
    Bucket(u8, Option<(&'static str, Vec<&'static str>)>),
    /// The address of a Service in a pool.
    PoolService(&'static str, &'static str, Option<u8>),
}

#[derive(Clone, Debug)]
pub(super) struct ServiceShape {
    keys: Option<&'static str>,
    address: u8,
    external: Option<u8>,
    is_dual_stack: bool,
    node_port: u16,
    internal: TrafficPolicy,
    external_policy: TrafficPolicy,
    is_balanced: bool,
    listen: Option<&'static str>,
    is_discarded: bool,
    created_at: u64,
    /// 0 = none.
    health_check_port: u16,
}

#[derive(Clone, Debug)]
pub(super) struct SliceShape {
    service: &'static str,
    port: u16,
    is_v6: bool,
    members: Vec<Member>,
}

pub(super) fn edit() -> impl Strategy<Value = Edit> {
    let nodes = || vec(select(&NODES[..]), 0..4);
    let service = (
        (
            select(&KEYS[..]),
            0u8..6,
            of(0u8..6),
            any::<bool>(),
            0u16..3,
        ),
        (select(&POLICIES[..]), select(&POLICIES[..]), any::<bool>()),
        (
            select(&LISTENS[..]),
            prop::bool::weighted(0.1),
            0u64..3,
            select(&[0u16, 1, 2, 80][..]),
        ),
    );
    let service = service.prop_map(|(addresses, traffic, openyurt)| ServiceShape {
        keys: addresses.0,
        address: addresses.1,
        external: addresses.2,
        is_dual_stack: addresses.3,
        node_port: addresses.4,
        internal: traffic.0,
        external_policy: traffic.1,
        is_balanced: traffic.2,
        listen: openyurt.0,
        is_discarded: openyurt.1,
        created_at: openyurt.2,
        health_check_port: openyurt.3,
    });
    let conditions = prop_oneof![
        3 => Just((true, true, false)),
        1 => Just((false, true, true)),
        1 => any::<(bool, bool, bool)>(),
    ];
    let member = (
        (0u8..6, of(select(&NODES[..])), conditions),
        (vec(select(&ZONES[..]), 0..3), vec(select(&NODES[..]), 0..3)),
        prop::bool::weighted(0.7),
    );
    let member = member.prop_map(|((address, node, conditions), hints, is_hinted)| {
        let (zones, nodes) = if is_hinted { hints } else { Default::default() };
        Member {
            address,
            node,
            conditions,
            zones,
            nodes,
        }
    });
    let slice = (
        select(&SERVICES[..]),
        8080u16..8082,
        prop::bool::weighted(0.2),
        vec(member, 0..5),
    );
    let slice = slice.prop_map(|(service, port, is_v6, members)| SliceShape {
        service,
        port,
        is_v6,
        members,
    });
    prop_oneof![
        3 => (select(&SERVICES[..]), prop::option::weighted(0.9, service))
            .prop_map(|(name, shape)| Edit::Service(name, shape)),
        4 => (0u8..6, prop::option::weighted(0.9, slice)).prop_map(|(id, s)| Edit::Slice(id, s)),
        2 => (select(&NODES[..]), prop::option::weighted(0.6, (of(select(&POOLS[..])), of(select(&ZONES[..])))))
            .prop_map(|(name, labels)| Edit::Node(name, labels)),
        1 => (select(&SERVICES[..]), select(&POOLS[..]), of(0u8..4))
            .prop_map(|(service, pool, address)| Edit::PoolService(service, pool, address)),
        2 => (select(&POOLS[..]), prop::option::weighted(0.7, nodes()))
            .prop_map(|(name, nodes)| Edit::Pool(name, nodes)),
        1 => (0u8..3, of((select(&POOLS[..]), nodes()))).prop_map(|(id, b)| Edit::Bucket(id, b)),
    ]
}

pub(super) fn apply(world: &mut World, edit: &Edit) {
    let snapshot = &mut world.snapshot;
    match edit {
        Edit::Service(name, None) => {
            snapshot
                .services
                .remove(&NamespacedName::new("default", *name));
        }
        Edit::Service(name, Some(shape)) => world.service(name, |service| {
            service.topology_keys = shape.keys.map(Arc::from);
            let v4 = ip(&format!("10.96.0.{}", shape.address));
            let v6 = ip(&format!("fd00:96::{}", shape.address));
            service.cluster_ips = match shape.is_dual_stack {
                true => [v4, v6].into(),
                false => [v4].into(),
            };
            let external = shape.external.iter();
            service.external_ips = external.map(|n| ip(&format!("10.96.0.{n}"))).collect();
            service.service_type = match shape.is_balanced {
                true => ServiceType::LoadBalancer,
                false => ServiceType::NodePort,
            };
            let balanced = ip(&format!("203.0.113.{}", shape.address));
            service.load_balancer_ips = [balanced, ip("192.0.2.11")].into();
            service.internal_policy = shape.internal;
            service.external_policy = shape.external_policy;
            service.listen = shape.listen.map(Arc::from);
            service.is_discarded = shape.is_discarded;
            service.created_at = shape.created_at;
            service.health_check_node_port = shape.health_check_port;
            service.ports = [port("http", 80, shape.node_port)].into();
        }),
        Edit::Slice(id, None) => {
            snapshot
                .slices
                .remove(&NamespacedName::new("default", format!("slice-{id}")));
        }
        Edit::Slice(id, Some(shape)) => {
            let prefix = if shape.is_v6 { "fd00:1::" } else { "10.1.0." };
            let addresses: Vec<String> = shape
                .members
                .iter()
                .map(|m| format!("{prefix}{}", m.address))
                .collect();
            let members = addresses.iter().zip(&shape.members);
            let members: Vec<_> = members
                .map(|(address, m)| (address.as_str(), m.node))
                .collect();
            world.slice_with(&format!("slice-{id}"), shape.service, &members, |slice| {
                Arc::make_mut(&mut slice.ports)[0].port = shape.port;
                slice.endpoints.edit(|all| {
                    for (endpoint, member) in all.iter_mut().zip(&shape.members) {
                        let (is_ready, is_serving, is_terminating) = member.conditions;
                        endpoint.is_ready = is_ready;
                        endpoint.is_serving = is_serving;
                        endpoint.is_terminating = is_terminating;
                        let hints = Hints {
                            zones: member.zones.iter().copied().map(Arc::from).collect(),
                            nodes: member.nodes.iter().copied().map(Arc::from).collect(),
                        };
                        endpoint.placement =
                            Placement::new(endpoint.node_name().cloned(), hints).map(Arc::new);
                    }
                });
                // A Pod keeps its name, whatever its address.
                let here = (0..).zip(&shape.members);
                let here = here.filter(|(_, member)| member.node == Some("a1"));
                slice.pods = here
                    .map(|(endpoint, member)| EndpointPod {
                        endpoint,
                        name: format!("pod-{}", member.address).into(),
                    })
                    .collect();
            });
        }
        Edit::Node(name, None) => {
            snapshot.nodes.remove(*name);
        }
        Edit::Node(name, Some((pool, zone))) => world.node(name, *pool, |node| {
            node.internal_ips = vec![ip("192.0.2.11"), ip("fd00:2::11")];
            let zone = zone.map(|zone| (ZONE_LABEL.to_owned(), zone.to_owned()));
            node.labels.extend(zone);
        }),
        Edit::Pool(name, None) => {
            snapshot.pools.remove(*name);
        }
        Edit::Pool(name, Some(nodes)) => world.pool(name, nodes),
        Edit::PoolService(service, pool, None) => {
            let name = NamespacedName::new("default", format!("{service}-{pool}"));
            snapshot.pool_services.remove(&name);
        }
        Edit::PoolService(service, pool, Some(address)) => {
            world.pool_service(service, pool, &[&format!("203.0.113.{address}")]);
        }
        Edit::Bucket(id, None) => {
            snapshot.buckets.remove(&*format!("bucket-{id}"));
        }
        Edit::Bucket(id, Some((pool, nodes))) => {
            world.bucket(&format!("bucket-{id}"), pool, nodes);
        }
    }
}

/// What only the memo has to notice: the other properties have no use for it.
#[derive(Clone, Debug)]
pub(super) enum Aside {
    Headless(u8),
    Cidr(u8, bool),
    /// The source says something of an object, and where another one was read.
    Said(&'static str, bool, &'static str),
    LocalAddress(u8),
    /// Where Pods are, or gone; `None`: the slices are right.
    Ledger(Option<Vec<(u8, Option<u8>)>>),
    /// Whose probes fail.
    Failing(BTreeSet<u8>),
    /// Where Pods are by the ledger.
    Pods(BTreeSet<u8>),
    /// Where routes lead to Pods.
    Routes(BTreeSet<u8>),
    /// Where the endpoints in kube-system are.
    System(BTreeSet<u8>),
}

pub(super) fn aside() -> impl Strategy<Value = Aside> {
    prop_oneof![
        2 => (0u8..6).prop_map(Aside::Headless),
        1 => (0u8..2, any::<bool>()).prop_map(|(id, is_there)| Aside::Cidr(id, is_there)),
        1 => (select(&SERVICES[..]), any::<bool>(), select(&["", "a.yaml#1", "b.yaml#2"][..]))
            .prop_map(|(name, is_wrong, origin)| Aside::Said(name, is_wrong, origin)),
        1 => (11u8..13).prop_map(Aside::LocalAddress),
        3 => of(vec((0u8..6, of(0u8..6)), 0..4)).prop_map(Aside::Ledger),
        3 => btree_set(0u8..6, 0..4).prop_map(Aside::Failing),
        2 => btree_set(0u8..6, 0..4).prop_map(Aside::Pods),
        1 => btree_set(0u8..6, 0..4).prop_map(Aside::Routes),
        1 => btree_set(0u8..6, 0..4).prop_map(Aside::System),
    ]
}

pub(super) fn set_aside(world: &mut World, aside: &Aside) {
    match *aside {
        Aside::Ledger(None) => world.view.truth = None,
        Aside::Ledger(Some(ref pods)) => {
            let pods: Vec<_> = pods
                .iter()
                .map(|(pod, at)| {
                    let at = at.map(|at| format!("10.1.0.{at}"));
                    (format!("pod-{pod}"), at)
                })
                .collect();
            let pods: Vec<_> = pods
                .iter()
                .map(|(pod, at)| (pod.as_str(), at.as_deref()))
                .collect();
            world.ledger(&pods);
        }
        Aside::Failing(ref addresses) => {
            let addresses: Vec<_> = addresses.iter().map(|at| format!("10.1.0.{at}")).collect();
            let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
            world.failing(&addresses);
        }
        Aside::Pods(ref addresses) => {
            let addresses = addresses.iter().map(|at| ip(&format!("10.96.0.{at}")));
            world.view.pods = Arc::new(addresses.collect());
        }
        Aside::Routes(ref addresses) => {
            let hosts = addresses.iter().map(|at| ip(&format!("203.0.113.{at}")));
            world.view.pod_routes = Arc::new(hosts.map(|host| (host.into(), ())).collect());
        }
        Aside::System(ref addresses) => {
            let addresses: Vec<_> = addresses.iter().map(|at| format!("10.96.0.{at}")).collect();
            let endpoints: Vec<_> = addresses.iter().map(|at| (at.as_str(), None)).collect();
            world.slice("dns", "dns", &endpoints);
            let old = NamespacedName::new("default", "dns");
            let mut slice = world.snapshot.slices.remove(&old).unwrap();
            let slice_of_system = Arc::make_mut(&mut slice);
            slice_of_system.name = system();
            let name = slice.name.clone();
            world.snapshot.slices.insert(name, slice);
        }
        Aside::Headless(id) => {
            let name = NamespacedName::new("default", format!("slice-{id}"));
            if let Some(slice) = world.snapshot.slices.get_mut(&name) {
                let slice = Arc::make_mut(slice);
                slice.is_headless = !slice.is_headless;
            }
        }
        Aside::Cidr(id, true) => {
            world.service_cidr(&format!("c{id}"), &[&format!("10.{}.0.0/16", 95 + id)]);
        }
        Aside::Cidr(id, false) => {
            world.snapshot.service_cidrs.remove(&*format!("c{id}"));
        }
        Aside::Said(name, is_wrong, origin) => {
            let name = NamespacedName::new("default", name);
            let snapshot = &mut world.snapshot;
            let rejection = snapshot.reject(Kind::Service, &name, "is wrong".to_owned());
            snapshot
                .rejections
                .retain(|other| *other.name != *name.name);
            snapshot.rejections.extend(is_wrong.then_some(rejection));
            world.found_in(origin, 1, &name);
        }
        Aside::LocalAddress(last) => {
            world.view.local_addresses = Some([ip(&format!("192.0.2.{last}"))].into());
        }
    }
}

/// The slice in kube-system.
fn system() -> NamespacedName {
    NamespacedName::new("kube-system", "dns")
}

/// As a source says it.
pub(super) fn touched(edits: &[Edit], aside: Option<&Aside>) -> Touched {
    let edits = edits.iter().map(|edit| match edit {
        Edit::Slice(id, _) => Some(*id),
        _ => None,
    });
    // The source knows nothing of the ledger.
    let aside = aside
        .filter(|aside| !matches!(aside, Aside::Ledger(_) | Aside::Pods(_) | Aside::Routes(_)));
    let is_system = matches!(aside, Some(Aside::System(_)));
    let aside = aside.filter(|_| !is_system).map(|aside| match aside {
        Aside::Headless(id) => Some(*id),
        _ => None,
    });
    let ids: Option<Vec<u8>> = edits.chain(aside).collect();
    let name = |id| NamespacedName::new("default", format!("slice-{id}"));
    match ids {
        Some(ids) => {
            let names = ids.into_iter().map(name);
            Touched::Slices(names.chain(is_system.then(system)).collect())
        }
        None => Touched::Anything,
    }
}
