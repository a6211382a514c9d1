//! What holds for every cluster and every order of events.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

use super::fixtures::{World, ip, port};
use super::{ClosureFailure, Memo, POOL_LABEL, compile};
use crate::model::{EndpointSlice, NamespacedName, ServiceType, Snapshot};
use crate::table::{Scope, ServiceEntry, ServiceKey, ServiceTable};

const SERVICES: [&str; 3] = ["alpha", "beta", "gamma"];
const NODES: [&str; 4] = ["a1", "a2", "b1", "c1"];
const POOLS: [&str; 2] = ["hangzhou", "beijing"];
const KEYS: [Option<&str>; 6] = [
    None,
    Some(""),
    Some("rack"),
    Some("kubernetes.io/hostname"),
    Some("openyurt.io/nodepool"),
    Some("kubernetes.io/zone"),
];

/// One endpoint: address, node, readiness, of which family.
type Member = (u8, Option<&'static str>, bool);

#[derive(Clone, Debug)]
enum Edit {
    Service(&'static str, Option<ServiceShape>),
    Slice(u8, Option<SliceShape>),
    /// `None` = no such Node, `Some(None)` = a Node without the label.
    Node(&'static str, Option<Option<&'static str>>),
    Pool(&'static str, Option<Vec<&'static str>>),
    Bucket(u8, Option<(&'static str, Vec<&'static str>)>),
}

#[derive(Clone, Debug)]
struct ServiceShape {
    keys: Option<&'static str>,
    address: u8,
    external: Option<u8>,
    is_dual_stack: bool,
    node_port: u16,
}

#[derive(Clone, Debug)]
struct SliceShape {
    service: &'static str,
    port: u16,
    is_v6: bool,
    members: Vec<Member>,
}

fn edit() -> impl Strategy<Value = Edit> {
    let nodes = || vec(select(&NODES[..]), 0..4);
    let service = (
        select(&KEYS[..]),
        0u8..6,
        of(0u8..6),
        any::<bool>(),
        0u16..3,
    );
    let service =
        service.prop_map(
            |(keys, address, external, is_dual_stack, node_port)| ServiceShape {
                keys,
                address,
                external,
                is_dual_stack,
                node_port,
            },
        );
    let member = (0u8..6, of(select(&NODES[..])), prop::bool::weighted(0.8));
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
        2 => (select(&NODES[..]), prop::option::weighted(0.6, of(select(&POOLS[..]))))
            .prop_map(|(name, pool)| Edit::Node(name, pool)),
        2 => (select(&POOLS[..]), prop::option::weighted(0.7, nodes()))
            .prop_map(|(name, nodes)| Edit::Pool(name, nodes)),
        1 => (0u8..3, of((select(&POOLS[..]), nodes()))).prop_map(|(id, b)| Edit::Bucket(id, b)),
    ]
}

fn apply(world: &mut World, edit: &Edit) {
    let snapshot = &mut world.snapshot;
    match edit {
        Edit::Service(name, None) => {
            snapshot
                .services
                .remove(&NamespacedName::new("default", *name));
        }
        Edit::Service(name, Some(shape)) => world.service(name, |service| {
            service.topology_keys = shape.keys.map(str::to_owned);
            service.cluster_ips = vec![ip(&format!("10.96.0.{}", shape.address))];
            if shape.is_dual_stack {
                service
                    .cluster_ips
                    .push(ip(&format!("fd00:96::{}", shape.address)));
            }
            let external = shape.external.iter();
            service.external_ips = external.map(|n| ip(&format!("10.96.0.{n}"))).collect();
            service.service_type = ServiceType::NodePort;
            service.ports = vec![port("http", 80, shape.node_port)];
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
                .map(|m| format!("{prefix}{}", m.0))
                .collect();
            let members = addresses.iter().zip(&shape.members);
            let members: Vec<_> = members
                .map(|(address, m)| (address.as_str(), m.1))
                .collect();
            world.slice_with(&format!("slice-{id}"), shape.service, &members, |slice| {
                slice.ports[0].port = shape.port;
                for (endpoint, member) in slice.endpoints.iter_mut().zip(&shape.members) {
                    endpoint.is_ready = member.2;
                }
            });
        }
        Edit::Node(name, None) => {
            snapshot.nodes.remove(*name);
        }
        Edit::Node(name, Some(pool)) => world.node(name, *pool, |node| {
            node.internal_ips = vec![ip("192.0.2.11"), ip("fd00:2::11")];
        }),
        Edit::Pool(name, None) => {
            snapshot.pools.remove(*name);
        }
        Edit::Pool(name, Some(nodes)) => world.pool(name, nodes),
        Edit::Bucket(id, None) => {
            snapshot.buckets.remove(&format!("bucket-{id}"));
        }
        Edit::Bucket(id, Some((pool, nodes))) => {
            world.bucket(&format!("bucket-{id}"), pool, nodes);
        }
    }
}

prop_compose! {
    /// A cluster that knows this node, with an operator's choices.
    fn start()(
        failure in select(&[ClosureFailure::LastKnown, ClosureFailure::Open, ClosureFailure::Closed][..]),
        flag in prop::option::weighted(0.2, select(&POOLS[..])),
    ) -> (ClosureFailure, Option<&'static str>) {
        (failure, flag)
    }
}

fn world((failure, flag): (ClosureFailure, Option<&'static str>)) -> World {
    let mut world = World::new().fail(failure);
    world.config.nodepool = flag.map(str::to_owned);
    world
}

fn table_of(world: &World, snapshot: &Snapshot) -> ServiceTable {
    let World {
        config,
        view,
        memory,
        ..
    } = world;
    compile(snapshot, config, view, memory, &mut Memo::default()).table
}

fn all_selected(entry: &ServiceEntry) -> BTreeSet<SocketAddr> {
    let sets = [&entry.v4, &entry.v6];
    sets.iter()
        .flat_map(|set| set.cluster.iter().chain(set.local.iter()))
        .copied()
        .collect()
}

fn by_key(table: &ServiceTable) -> BTreeMap<&ServiceKey, &ServiceEntry> {
    table
        .services
        .iter()
        .map(|entry| (&entry.key, &**entry))
        .collect()
}

/// OpenYurt's filter, written as YurtHub runs it: slice by slice, endpoint by endpoint, with what it gets wrong put
/// right. It looks at all snapshots so far instead of keeping a memory.
struct Filter<'a> {
    past: &'a [Snapshot],
    failure: ClosureFailure,
    flag: Option<&'a str>,
}

impl Filter<'_> {
    /// `Some("")`: in no pool. `None`: nobody knows.
    fn own_pool(&self, at: usize) -> Option<String> {
        let label = |snapshot: &Snapshot| {
            let node = snapshot.nodes.get("a1")?;
            Some(node.labels.get(POOL_LABEL).cloned().unwrap_or_default())
        };
        let remembered = match self.failure {
            ClosureFailure::LastKnown => self.past[..=at].iter().rev().find_map(label),
            ClosureFailure::Open | ClosureFailure::Closed => label(&self.past[at]),
        };
        self.flag.map(str::to_owned).or(remembered)
    }

    fn says(&self, at: usize, pool: &str, node: &str) -> Option<bool> {
        let snapshot = &self.past[at];
        if let Some(node) = snapshot.nodes.get(node) {
            return Some(
                node.labels
                    .get(POOL_LABEL)
                    .is_some_and(|label| label == pool),
            );
        }
        let buckets: Vec<_> = snapshot
            .buckets
            .values()
            .filter(|b| b.pool == pool)
            .collect();
        if !buckets.is_empty() {
            return Some(buckets.iter().any(|b| b.nodes.iter().any(|n| n == node)));
        }
        let nodes = &snapshot.pools.get(pool)?.nodes;
        Some(nodes.iter().any(|n| n == node))
    }

    fn is_in_pool(&self, pool: &str, node: &str) -> bool {
        let now = self.past.len() - 1;
        if let Some(known) = self.says(now, pool, node) {
            return known;
        }
        match self.failure {
            ClosureFailure::Open => true,
            ClosureFailure::Closed => false,
            ClosureFailure::LastKnown => {
                for at in (0..now).rev() {
                    match self.own_pool(at).as_deref() {
                        None | Some("") => {}
                        Some(then) if then != pool => return false,
                        Some(_) => {
                            if let Some(known) = self.says(at, pool, node) {
                                return known;
                            }
                        }
                    }
                }
                false
            }
        }
    }

    fn keeps(&self, keys: Option<&str>, node: Option<&str>) -> bool {
        let own_pool = self.own_pool(self.past.len() - 1);
        match (keys, node) {
            (Some("kubernetes.io/hostname"), node) => node == Some("a1"),
            (Some("openyurt.io/nodepool" | "kubernetes.io/zone"), None) => false,
            (Some("openyurt.io/nodepool" | "kubernetes.io/zone"), Some("a1")) => true,
            (Some("openyurt.io/nodepool" | "kubernetes.io/zone"), Some(node)) => {
                match own_pool.as_deref() {
                    None => self.failure == ClosureFailure::Open,
                    Some("") => false,
                    Some(pool) => self.is_in_pool(pool, node),
                }
            }
            _ => true,
        }
    }

    fn selected(&self) -> BTreeMap<String, BTreeSet<SocketAddr>> {
        let snapshot = &self.past[self.past.len() - 1];
        let mut selected = BTreeMap::new();
        for service in snapshot.services.values() {
            let kept: &mut BTreeSet<_> = selected.entry(service.name.name.clone()).or_default();
            for slice in snapshot
                .slices
                .values()
                .filter(|s| s.service == service.name.name)
            {
                for endpoint in slice.endpoints.iter().filter(|e| e.is_ready) {
                    let has_family = |ip: &IpAddr| ip.is_ipv4() == endpoint.address.is_ipv4();
                    let keys = service.topology_keys.as_deref();
                    if service.cluster_ips.iter().any(has_family)
                        && self.keeps(keys, endpoint.node_name.as_deref())
                    {
                        kept.insert(SocketAddr::new(endpoint.address, slice.ports[0].port));
                    }
                }
            }
        }
        selected
    }
}

proptest! {
    #[test]
    fn every_backend_is_an_eligible_endpoint(
        start in start(), edits in vec(edit(), 1..30)
    ) {
        let mut world = world(start);
        for edit in &edits {
            apply(&mut world, edit);
            let table = world.compile();
            for entry in &table.services {
                let slices = world.snapshot.slices.values();
                let ready: BTreeSet<SocketAddr> = slices
                    .filter(|slice| slice.service == entry.key.name)
                    .flat_map(|slice| slice.endpoints.iter().map(|e| (e, slice.ports[0].port)))
                    .filter(|(endpoint, _)| endpoint.is_ready)
                    .map(|(endpoint, port)| SocketAddr::new(endpoint.address, port))
                    .collect();
                prop_assert!(all_selected(entry).is_subset(&ready));
                for set in [&entry.v4, &entry.v6] {
                    prop_assert!(set.cluster.is_sorted_by(|a, b| a < b));
                    prop_assert!(set.local.is_sorted_by(|a, b| a < b));
                }
                for frontend in &entry.frontends {
                    for scope in [Scope::Internal, Scope::External] {
                        let selected = entry.endpoints(frontend, scope);
                        let dropped = world.reasons().why(entry, frontend, scope).dropped;
                        prop_assert!(dropped.is_sorted_by(|a, b| a.endpoint < b.endpoint));
                        prop_assert!(dropped.iter().all(|d| !selected.contains(&d.endpoint)));
                    }
                }
            }
        }
    }

    #[test]
    fn slice_order_and_slicing_do_not_matter(
        start in start(), edits in vec(edit(), 1..30), salt in any::<u64>()
    ) {
        let mut world = world(start);
        edits.iter().for_each(|edit| apply(&mut world, edit));
        let mut sliced = world.snapshot.clone();
        sliced.slices.clear();
        let mut number = salt;
        for slice in world.snapshot.slices.values() {
            for endpoint in &slice.endpoints {
                number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let name = NamespacedName::new("default", format!("{number:020}"));
                let alone = EndpointSlice {
                    name: name.clone(),
                    endpoints: Box::new([endpoint.clone()]),
                    ..EndpointSlice::clone(slice)
                };
                sliced.slices.insert(name, Arc::new(alone));
            }
        }
        prop_assert_eq!(table_of(&world, &world.snapshot), table_of(&world, &sliced));
    }

    #[test]
    fn one_bad_object_changes_only_its_own_service(
        start in start(), edits in vec(edit(), 1..30), victim in select(&SERVICES[..])
    ) {
        let mut world = world(start);
        edits.iter().for_each(|edit| apply(&mut world, edit));
        let before = world.compile();
        world.service("zulu", |service| {
            service.cluster_ips = vec![ip("10.96.0.99")];
            service.external_ips = vec![ip("127.0.0.1"), ip("10.96.0.1")];
            service.topology_keys = Some("rack".to_owned());
        });
        let name = NamespacedName::new("default", victim);
        if world.snapshot.services.contains_key(&name) {
            world.service(victim, |service| {
                service.topology_keys = Some("a,b".to_owned());
                service.external_ips.push(ip("::1"));
                service.ports.push(service.ports[0].clone());
            });
        }
        let after = world.compile();
        let is_other = |entry: &&Arc<ServiceEntry>| ![victim, "zulu"].contains(&&*entry.key.name);
        let before = before.services.iter().filter(is_other);
        let after = after.services.iter().filter(is_other);
        prop_assert!(before.eq(after));
    }

    #[test]
    fn topology_never_widens_eligibility(start in start(), edits in vec(edit(), 1..30)) {
        let mut world = world(start);
        for edit in &edits {
            apply(&mut world, edit);
            let closed = world.compile();
            let mut open = world.snapshot.clone();
            for service in open.services.values_mut() {
                Arc::make_mut(service).topology_keys = None;
            }
            let open = table_of(&world, &open);
            let open = by_key(&open);
            for entry in &closed.services {
                prop_assert!(all_selected(entry).is_subset(&all_selected(open[&entry.key])));
            }
        }
    }

    #[test]
    fn memoised_compile_equals_fresh_compile(start in start(), edits in vec(edit(), 1..40)) {
        let mut world = world(start);
        let mut last = ServiceTable::default();
        for edit in &edits {
            apply(&mut world, edit);
            let fresh = table_of(&world, &world.snapshot);
            let memoised = world.compile();
            prop_assert_eq!(&fresh, &memoised);
            let last_entries: Vec<_> = last.services.iter().collect();
            for entry in &memoised.services {
                let old = last_entries.iter().find(|old| old == &&entry);
                prop_assert!(old.is_none_or(|old| Arc::ptr_eq(old, entry)));
            }
            last = memoised;
        }
    }

    #[test]
    fn openyurts_filter_put_right_equals_compile(start in start(), edits in vec(edit(), 1..40)) {
        let mut world = world(start);
        let mut past = vec![];
        for edit in &edits {
            apply(&mut world, edit);
            past.push(world.snapshot.clone());
            let filter = Filter { past: &past, failure: start.0, flag: start.1 };
            let table = world.compile();
            let compiled: BTreeMap<String, BTreeSet<SocketAddr>> = table
                .services
                .iter()
                .map(|entry| (entry.key.name.clone(), all_selected(entry)))
                .collect();
            prop_assert_eq!(filter.selected(), compiled);
        }
    }

    #[test]
    fn the_order_of_events_does_not_matter(
        start in start(), edits in vec(edit(), 1..30).prop_flat_map(|edits| {
            // Of several edits of one object only the last one counts in any order.
            let mut last = BTreeMap::new();
            for edit in edits {
                let object = match &edit {
                    Edit::Service(name, _) => format!("service {name}"),
                    Edit::Slice(id, _) => format!("slice {id}"),
                    Edit::Node(name, _) => format!("node {name}"),
                    Edit::Pool(name, _) => format!("pool {name}"),
                    Edit::Bucket(id, _) => format!("bucket {id}"),
                };
                last.insert(object, edit);
            }
            let edits: Vec<Edit> = last.into_values().collect();
            (Just(edits.clone()), Just(edits).prop_shuffle())
        })
    ) {
        // What was last known depends on the order by its nature.
        let failure = match start.0 {
            ClosureFailure::LastKnown => ClosureFailure::Closed,
            other => other,
        };
        let tables = [&edits.0, &edits.1].map(|edits| {
            let mut world = world((failure, start.1));
            for edit in edits {
                apply(&mut world, edit);
                world.compile();
            }
            world.compile()
        });
        prop_assert_eq!(&tables[0], &tables[1]);
    }

    #[test]
    fn each_frontend_has_one_owner(start in start(), edits in vec(edit(), 1..30)) {
        let mut world = world(start);
        for edit in &edits {
            apply(&mut world, edit);
        }
        let table = world.compile();
        let mut owners = BTreeMap::new();
        for entry in &table.services {
            for frontend in &entry.frontends {
                let claim = (frontend.address, frontend.port, entry.key.protocol);
                let owner = owners.entry(claim).or_insert(&entry.key);
                prop_assert_eq!(*owner, &entry.key);
            }
        }
    }

    #[test]
    fn prefixes_cover_every_cluster_ip_and_are_few(
        last in vec((0u8..4, 0u8..4, any::<u8>(), any::<u8>()), 0..80),
        cidrs in vec((any::<u8>(), 8u8..33), 0..20),
    ) {
        let mut world = World::new();
        for (n, (a, b, c, d)) in last.iter().enumerate() {
            world.service(&format!("s{n}"), |service| {
                service.cluster_ips = vec![ip(&format!("10.{a}.{}.{d}", u16::from(*b) * 60 + u16::from(c / 250)))];
            });
        }
        for (n, (a, length)) in cidrs.iter().enumerate() {
            world.service_cidr(&format!("c{n:02}"), &[&format!("10.{a}.0.0/{length}")]);
        }
        let table = world.compile();
        let found = &table.cluster_prefixes;
        prop_assert!(found.prefixes.len() <= crate::table::MAX_PREFIXES);
        prop_assert!(found.prefixes.is_sorted());
        for entry in &table.services {
            for frontend in &entry.frontends {
                prop_assert!(found.prefixes.iter().any(|p| p.contains(frontend.address)));
            }
        }
        if found.are_service_cidrs {
            // Nothing is refused that is neither given nor a known ClusterIP.
            let given: Vec<ipnetwork::IpNetwork> = world.snapshot.service_cidrs.values()
                .flat_map(|cidr| cidr.cidrs.clone()).collect();
            let is_owned = |address| {
                let mut frontends = table.services.iter().flat_map(|entry| &entry.frontends);
                given.iter().any(|cidr| cidr.contains(address))
                    || frontends.any(|frontend| frontend.address == address)
            };
            for prefix in &found.prefixes {
                prop_assert!(is_owned(prefix.network()) && is_owned(prefix.broadcast()));
            }
        }
    }
}
