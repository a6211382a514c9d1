//! What holds for every cluster and every order of events.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proptest::collection::{btree_set, vec};
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

use super::established::lost;
use super::fixtures::{World, ip, port};
use super::{ClosureFailure, Memo, POOL_LABEL, compile};
use crate::model::{
    Endpoint, EndpointPod, EndpointSlice, Hints, Kind, NamespacedName, Placement, Service,
    ServiceType, Snapshot, Touched, TrafficPolicy,
};
use crate::table::{Frontend, FrontendKind, Scope, ServiceEntry, ServiceTable, Verdict};

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
enum Edit {
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
struct ServiceShape {
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
        (
            select(&KEYS[..]),
            0u8..6,
            of(0u8..6),
            any::<bool>(),
            0u16..3,
        ),
        (select(&POLICIES[..]), select(&POLICIES[..]), any::<bool>()),
        (select(&LISTENS[..]), prop::bool::weighted(0.1), 0u64..3),
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

fn apply(world: &mut World, edit: &Edit) {
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
            service.load_balancer_ips = [ip(&format!("203.0.113.{}", shape.address))].into();
            service.internal_policy = shape.internal;
            service.external_policy = shape.external_policy;
            service.listen = shape.listen.map(Arc::from);
            service.is_discarded = shape.is_discarded;
            service.created_at = shape.created_at;
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
            let zone =
                zone.map(|zone| (super::environment::ZONE_LABEL.to_owned(), zone.to_owned()));
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
enum Aside {
    Headless(u8),
    Cidr(u8, bool),
    /// The source says something of an object, and where another one was read.
    Said(&'static str, bool, &'static str),
    LocalAddress(u8),
    /// Where Pods are, or gone; `None`: the slices are right.
    Ledger(Option<Vec<(u8, Option<u8>)>>),
    /// Whose probes fail.
    Failing(BTreeSet<u8>),
}

fn aside() -> impl Strategy<Value = Aside> {
    prop_oneof![
        2 => (0u8..6).prop_map(Aside::Headless),
        1 => (0u8..2, any::<bool>()).prop_map(|(id, is_there)| Aside::Cidr(id, is_there)),
        1 => (select(&SERVICES[..]), any::<bool>(), select(&["", "a.yaml#1", "b.yaml#2"][..]))
            .prop_map(|(name, is_wrong, origin)| Aside::Said(name, is_wrong, origin)),
        1 => (11u8..13).prop_map(Aside::LocalAddress),
        3 => of(vec((0u8..6, of(0u8..6)), 0..4)).prop_map(Aside::Ledger),
        3 => btree_set(0u8..6, 0..4).prop_map(Aside::Failing),
    ]
}

fn set_aside(world: &mut World, aside: &Aside) {
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

/// As a source says it.
fn touched(edits: &[Edit], aside: Option<&Aside>) -> Touched {
    let edits = edits.iter().map(|edit| match edit {
        Edit::Slice(id, _) => Some(*id),
        _ => None,
    });
    // The source knows nothing of the ledger.
    let aside = aside.filter(|aside| !matches!(aside, Aside::Ledger(_)));
    let aside = aside.map(|aside| match aside {
        Aside::Headless(id) => Some(*id),
        _ => None,
    });
    let ids: Option<Vec<u8>> = edits.chain(aside).collect();
    let name = |id| NamespacedName::new("default", format!("slice-{id}"));
    match ids {
        Some(ids) => Touched::Slices(ids.into_iter().map(name).collect()),
        None => Touched::Anything,
    }
}

/// What an operator chooses: `--closure-failure`, `--nodepool`, `--compat-drop-service` and `--compat-all-vips`.
type Start = (ClosureFailure, Option<&'static str>, [bool; 2]);

fn start() -> impl Strategy<Value = Start> {
    use ClosureFailure::{Closed, LastKnown, Open};
    (
        select(&[LastKnown, Open, Closed][..]),
        prop::option::weighted(0.2, select(&POOLS[..])),
        [prop::bool::weighted(0.2), prop::bool::weighted(0.2)],
    )
}

fn world((failure, flag, compat): Start) -> World {
    let mut world = World::new().fail(failure);
    world.config.nodepool = flag.map(str::to_owned);
    [
        world.config.compat_drop_service,
        world.config.compat_all_vips,
    ] = compat;
    world
}

fn table_of(world: &World, snapshot: &Snapshot) -> ServiceTable {
    let World {
        config,
        view,
        memory,
        ..
    } = world;
    let mut memo = Memo::default();
    compile(
        snapshot,
        &Touched::Anything,
        config,
        view,
        memory,
        &mut memo,
    )
    .table
    .clone()
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

    /// What YurtHub leaves of a Service's endpoints in the family of `any`, and of two copies the one that kube-proxy
    /// takes.
    fn endpoints(&self, service: &Service, any: IpAddr) -> BTreeMap<SocketAddr, Endpoint> {
        let snapshot = &self.past[self.past.len() - 1];
        let keys = service.topology_keys.as_deref();
        let mut copies: BTreeMap<SocketAddr, Vec<Endpoint>> = BTreeMap::new();
        for slice in snapshot.slices.values() {
            for endpoint in slice.endpoints.iter() {
                let at = SocketAddr::new(endpoint.address, slice.ports[0].port);
                if slice.service == service.name.name
                    && at.is_ipv4() == any.is_ipv4()
                    && self.keeps(keys, endpoint.node_name().map(|node| &**node))
                {
                    copies.entry(at).or_default().push(endpoint);
                }
            }
        }
        let rank = |e: &Endpoint| {
            let is_worse = [e.is_terminating, !e.is_ready, !e.is_serving];
            let is_elsewhere = e.node_name().map(|node| &**node) != Some("a1");
            (
                is_worse,
                is_elsewhere,
                e.hints().cloned(),
                e.node_name().cloned(),
            )
        };
        copies
            .into_iter()
            .filter_map(|(at, copies)| Some((at, copies.into_iter().min_by_key(rank)?)))
            .collect()
    }

    fn zone(&self) -> Option<&str> {
        let node = self.past[self.past.len() - 1].nodes.get("a1")?;
        node.labels
            .get(super::environment::ZONE_LABEL)
            .map(String::as_str)
    }

    /// What a row does: kube-proxy's rules for packets, one at a time, asked for one client.
    fn row(
        &self,
        service: &Service,
        frontend: &Frontend,
        scope: Scope,
    ) -> (Verdict, Vec<SocketAddr>, bool) {
        let endpoints = self.endpoints(service, frontend.address);
        let ready: BTreeMap<_, _> = endpoints.iter().filter(|(_, e)| e.is_ready).collect();
        let lingering: BTreeMap<_, _> = endpoints
            .iter()
            .filter(|(_, e)| !e.is_ready && e.is_serving && e.is_terminating)
            .collect();
        let is_here = |e: &Endpoint| e.node_name().map(|node| &**node) == Some("a1");
        let local = |all: &BTreeMap<&SocketAddr, &Endpoint>| -> Vec<SocketAddr> {
            let here = all.iter().filter(|(_, e)| is_here(e));
            here.map(|(at, _)| **at).collect()
        };
        let is_internal = scope == Scope::Internal;
        let (is_local, is_masqueraded) = match (frontend.kind, service.external_policy) {
            (FrontendKind::ClusterIp, _) => (
                service.internal_policy == TrafficPolicy::Local,
                !is_internal,
            ),
            (_, TrafficPolicy::Local) => (!is_internal, false),
            (_, TrafficPolicy::Cluster) => (false, !is_internal),
        };
        let selected = if ready.is_empty() && lingering.is_empty() {
            return (Verdict::Refuse, Vec::new(), is_masqueraded);
        } else if is_local && !local(&ready).is_empty() {
            local(&ready)
        } else if is_local {
            local(&lingering)
        } else if ready.is_empty() {
            lingering.keys().map(|at| **at).collect()
        } else {
            let hinted = |list: fn(&Hints) -> &[Arc<str>], wanted: Option<&str>| {
                let list_of =
                    |e: &Endpoint| e.hints().map(|h| list(h).to_vec()).unwrap_or_default();
                let is_meant = |e: &Endpoint| list_of(e).iter().any(|name| Some(&**name) == wanted);
                let meant: Vec<SocketAddr> = ready
                    .iter()
                    .filter(|(_, e)| is_meant(e))
                    .map(|(at, _)| **at)
                    .collect();
                let has_unhinted = ready.values().any(|e| list_of(e).is_empty());
                (!has_unhinted && !meant.is_empty()).then_some(meant)
            };
            hinted(|h| &h.nodes, Some("a1"))
                .or_else(|| hinted(|h| &h.zones, self.zone()))
                .unwrap_or_else(|| ready.keys().map(|at| **at).collect())
        };
        match selected.is_empty() {
            true => (Verdict::Drop, selected, is_masqueraded),
            false => (Verdict::Forward, selected, is_masqueraded),
        }
    }
}

proptest! {
    #[test]
    fn every_endpoint_is_selected_or_dropped_for_a_reason(
        start in start(), edits in vec(edit(), 1..30)
    ) {
        let mut world = world(start);
        for edit in &edits {
            apply(&mut world, edit);
            let table = world.compile();
            let reasons = world.reasons();
            for entry in &table.services {
                let slices = world.snapshot.slices.values();
                let all: BTreeSet<SocketAddr> = slices
                    .filter(|slice| slice.service == entry.key.name)
                    .flat_map(|slice| slice.endpoints.iter().map(|e| (e, slice.ports[0].port)))
                    .map(|(endpoint, port)| SocketAddr::new(endpoint.address, port))
                    .collect();
                for frontend in &entry.frontends {
                    for scope in [Scope::Internal, Scope::External] {
                        let why = reasons.why(entry, frontend, scope);
                        let selected = entry.endpoints(frontend, scope).to_vec();
                        prop_assert!(selected.is_sorted_by(|a, b| a < b));
                        prop_assert!(why.dropped.is_sorted_by(|a, b| a.endpoint < b.endpoint));
                        prop_assert_eq!(why.kept.is_empty(), selected.is_empty());
                        let mut named: Vec<SocketAddr> = why.dropped.iter().map(|d| d.endpoint).collect();
                        named.extend(&selected);
                        named.sort();
                        let of_family = all.iter().filter(|at| at.is_ipv4() == frontend.address.is_ipv4());
                        prop_assert!(of_family.eq(&named), "{:?} {:?}", all, named);
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
            for endpoint in slice.endpoints.iter() {
                number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let name = NamespacedName::new("default", format!("{number:020}"));
                let alone = EndpointSlice {
                    pods: Box::default(),
                    name: name.clone(),
                    endpoints: vec![endpoint].into(),
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
            service.cluster_ips = [ip("10.96.0.99")].into();
            service.external_ips = [ip("127.0.0.1"), ip("10.96.0.1")].into();
            service.topology_keys = Some("rack".into());
        });
        let name = NamespacedName::new("default", victim);
        if world.snapshot.services.contains_key(&name) {
            world.service(victim, |service| {
                service.topology_keys = Some("a,b".into());
                service.external_ips = service.external_ips.iter().copied().chain([ip("::1")]).collect();
                service.ports = service.ports.iter().chain(service.ports.first()).cloned().collect();
            });
        }
        let after = world.compile();
        let is_other = |entry: &&Arc<ServiceEntry>| ![victim, "zulu"].contains(&&*entry.key.name);
        let before = before.services.iter().filter(is_other);
        let after = after.services.iter().filter(is_other);
        prop_assert!(before.eq(after));
    }

    #[test]
    fn memoised_compile_equals_fresh_compile(
        start in start(), batches in vec((vec(edit(), 1..4), of(aside())), 1..30)
    ) {
        let mut world = world(start);
        let mut last = ServiceTable::default();
        for (edits, aside) in &batches {
            edits.iter().for_each(|edit| apply(&mut world, edit));
            if let Some(aside) = aside {
                set_aside(&mut world, aside);
            }
            let touched = touched(edits, aside.as_ref());
            let fresh = table_of(&world, &world.snapshot);
            let World { snapshot, config, view, memory, memo, .. } = &mut world;
            let compiled = compile(snapshot, &touched, config, view, memory, memo);
            prop_assert_eq!(&fresh, compiled.table);
            let new = fresh.rejections.iter().filter(|r| !last.rejections.contains(r));
            prop_assert!(new.eq(&compiled.new_rejections));
            prop_assert_eq!(lost(&last.services, &compiled.table.services), compiled.lost);
            for entry in &compiled.table.services {
                let old = last.services.iter().find(|old| *old == entry);
                prop_assert!(old.is_none_or(|old| Arc::ptr_eq(old, entry)));
            }
            *memory = compiled.memory;
            last = fresh;
            last.services.clone_from(&world.memo.table().services);
        }
    }

    #[test]
    fn a_ledger_that_says_what_the_slices_say_changes_nothing_and_one_that_says_more_leads_only_to_the_living(
        start in start(), edits in vec(edit(), 1..30), gone in vec(0u8..6, 0..3),
    ) {
        let mut world = world(start);
        edits.iter().for_each(|edit| apply(&mut world, edit));
        let pods: Vec<(String, String)> = (0..6)
            .map(|n| (format!("pod-{n}"), format!("10.1.0.{n}")))
            .collect();
        let mut ledger: Vec<(&str, Option<&str>)> = pods
            .iter()
            .map(|(name, at)| (name.as_str(), Some(at.as_str())))
            .collect();
        // The ledger knows one family of them; slices of the other would lose theirs.
        let is_v4 = |slice: &Arc<EndpointSlice>| slice.family == crate::model::AddressFamily::V4;
        world.snapshot.slices.retain(|_, slice| is_v4(slice));
        let believed = world.compile();
        world.ledger(&ledger);
        prop_assert_eq!(world.compile(), believed);
        for n in &gone {
            ledger[usize::from(*n)].1 = None;
        }
        world.ledger(&ledger);
        let table = world.compile();
        let elsewhere: BTreeSet<IpAddr> = world
            .snapshot
            .slices
            .values()
            .flat_map(|slice| slice.endpoints.iter())
            .filter(|endpoint| endpoint.node_name().map(|node| &**node) != Some("a1"))
            .map(|endpoint| endpoint.address)
            .collect();
        for entry in &table.services {
            for backend in entry.v4.cluster.iter().chain(entry.v4.local.iter()) {
                let is_gone = gone.iter().any(|n| backend.ip() == ip(&format!("10.1.0.{n}")));
                prop_assert!(!is_gone || elsewhere.contains(&backend.ip()));
            }
        }
    }

    #[test]
    fn kube_proxy_behind_openyurts_filter_put_right_does_the_same(
        start in start(), edits in vec(edit(), 1..40)
    ) {
        let mut world = world(start);
        let mut past = vec![];
        for edit in &edits {
            apply(&mut world, edit);
            past.push(world.snapshot.clone());
            let filter = Filter { past: &past, failure: start.0, flag: start.1 };
            for entry in &world.compile().services {
                let name = NamespacedName::new("default", entry.key.name.clone());
                let service = &world.snapshot.services[&name];
                for frontend in &entry.frontends {
                    for scope in [Scope::Internal, Scope::External] {
                        let row = (
                            entry.verdict(frontend, scope),
                            entry.endpoints(frontend, scope).to_vec(),
                            entry.is_masqueraded(frontend.kind, scope),
                        );
                        prop_assert_eq!(filter.row(service, frontend, scope), row);
                    }
                }
            }
        }
    }

    #[test]
    fn frontends_are_those_that_the_service_its_pool_and_its_annotations_give(
        start in start(), edits in vec(edit(), 1..30)
    ) {
        let mut world = world(start);
        edits.iter().for_each(|edit| apply(&mut world, edit));
        let table = world.compile();
        let [is_dropping, has_all_vips] = start.2;
        for service in world.snapshot.services.values() {
            let own = table.services.iter().filter(|entry| entry.key.name == service.name.name);
            let kinds = |wanted| own.clone().flat_map(|e| &e.frontends).filter(move |f| f.kind == wanted);
            let is_isolated = match (service.listen.as_deref(), &*table.pool) {
                (None | Some("*"), _) | (_, "") => false,
                (Some("-hangzhou,*"), pool) => pool == "hangzhou",
                (Some(listed), pool) => listed != pool,
            };
            let is_balanced = service.service_type == ServiceType::LoadBalancer;
            let is_discarded = is_balanced && service.is_discarded;
            prop_assert_eq!(own.clone().count() == 0, is_dropping && (is_isolated || is_discarded));
            if is_isolated {
                prop_assert_eq!(kinds(FrontendKind::NodePort).count(), 0);
            }
            if is_isolated || is_discarded || !is_balanced {
                prop_assert_eq!(kinds(FrontendKind::LoadBalancer).count(), 0);
            }
            let shared_out: Vec<_> = world
                .snapshot
                .pool_services
                .values()
                .filter(|object| object.service == service.name.name)
                .collect();
            for frontend in kinds(FrontendKind::LoadBalancer) {
                let is_ours = shared_out.iter().any(|object| {
                    *object.pool == *table.pool && object.load_balancer_ips.contains(&frontend.address)
                });
                let is_plain = service.load_balancer_ips.contains(&frontend.address)
                    && (shared_out.is_empty() || has_all_vips);
                prop_assert!(is_plain || (is_ours && !has_all_vips));
            }
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
                    Edit::PoolService(service, pool, _) => format!("{service} in {pool}"),
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
            let mut world = world((failure, start.1, start.2));
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
                service.cluster_ips = [ip(&format!("10.{a}.{}.{d}", u16::from(*b) * 60 + u16::from(c / 250)))].into();
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
