//! From a whole snapshot of the cluster to the table of this node.
//!
//! Pure. In: `Snapshot`, `PolicyConfig`, `NodeView`, `Memory`. Out: `ServiceTable` and the next `Memory`; it never fails.
//! Rules in order, for each Service: (1) its frontends, `edge`; (2) its endpoints, `endpoints`: closure (`topology`), then
//! kube-proxy's traffic policies (`traffic`); then (3) conflicts between Services. `Memo` only saves time: the result is
//! the same with an empty one.
#![forbid(unsafe_code)]

mod edge;
mod endpoints;
mod established;
#[cfg(test)]
pub(crate) mod fixtures;
mod prefixes;
#[cfg(test)]
mod proptests;
mod reasons;
#[cfg(test)]
mod tests;
mod topology;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use self::edge::ServiceAddresses;
use self::endpoints::{all_seen, endpoint_set};
pub use self::established::{ClosureEstablished, Fate, Flow, Judge, Standing, has_lost};
pub use self::reasons::{Reasons, Why};
use self::topology::Topology;
use crate::model::{
    EndpointSlice, NamespacedName, PoolService, Rejection, Service, ServicePort, Snapshot,
};
use crate::table::{ServiceEntry, ServiceKey, ServiceTable};

/// Label of a Node that names its pool, unless a build of OpenYurt changed it.
pub const POOL_LABEL: &str = "apps.openyurt.io/nodepool";

/// Well-known label of a Node, shown in the table.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// What the operator decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyConfig {
    /// Name of this node's Node object.
    pub node: String,
    /// `--nodepool`: the pool, whatever the label of the Node says.
    pub nodepool: Option<String>,
    /// Key of the label that names a Node's pool.
    pub pool_label: String,
    /// What counts as inside a closure while data is missing.
    pub closure_failure: ClosureFailure,
    /// `--service-cidr`: where ClusterIPs come from; empty = ask the ServiceCIDR objects.
    pub service_cidrs: Vec<IpNetwork>,
    /// `--kubernetes-via-hub`: endpoints of default/kubernetes.
    pub kubernetes_via_hub: ViaHub,
    /// The source in charge is a YurtHub: the agent keeps it right.
    pub is_source_hub: bool,
    /// `--compat-drop-service`: a Service whose NodePorts or load balancer are not for this node is not served at all.
    pub compat_drop_service: bool,
    /// `--compat-all-vips`: the load balancer's addresses of every pool are served.
    pub compat_all_vips: bool,
}

impl PolicyConfig {
    /// The defaults, for one node.
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            nodepool: None,
            pool_label: POOL_LABEL.to_owned(),
            closure_failure: ClosureFailure::default(),
            service_cidrs: Vec::new(),
            kubernetes_via_hub: ViaHub::default(),
            is_source_hub: false,
            compat_drop_service: false,
            compat_all_vips: false,
        }
    }
}

/// `--closure-failure`: a Service is closed to the pool, and nothing says whether a node is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClosureFailure {
    /// Inside if it was when that was last known; else outside.
    #[default]
    LastKnown,
    /// Inside, as OpenYurt's YurtHub has it.
    Open,
    /// Outside.
    Closed,
}

/// `--kubernetes-via-hub`: whether Pods that dial default/kubernetes reach YurtHub in place of the apiserver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ViaHub {
    /// While the source in charge is a YurtHub.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// What this machine knows of its own addresses; empty where there is no machine, as for `plan`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Addresses on its interfaces; `None` = not looked at, the Node's status is believed.
    pub local_addresses: Option<BTreeSet<IpAddr>>,
    /// Source addresses of its default routes.
    pub default_source: (Option<Ipv4Addr>, Option<Ipv6Addr>),
}

/// What compile knew of the pool, for the time when data is missing. To be kept across snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The pool that the own Node's label named; "" = the Node was in no pool.
    pub own_pool: Option<String>,
    /// The pool of `members`.
    pub members_of: String,
    /// Nodes in that pool.
    pub members: BTreeSet<String>,
}

/// What compile returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The table.
    pub table: ServiceTable,
    /// For the next compile.
    pub memory: Memory,
}

/// The results of the last compile. A Service whose inputs are the same objects is not compiled again, and an
/// entry that comes out equal keeps its `Arc`.
#[derive(Clone, Debug, Default)]
pub struct Memo {
    environment: Option<Environment>,
    /// Sorted by name.
    services: Vec<Remembered>,
}

/// What every Service depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Environment {
    topology: Topology,
    /// `topology.kubernetes.io/zone` of this node; "" when it has none.
    zone: String,
    node_addresses: Vec<IpAddr>,
    is_behind_hub: bool,
    compat_drop_service: bool,
    compat_all_vips: bool,
}

impl Environment {
    fn new(
        snapshot: &Snapshot,
        config: &PolicyConfig,
        view: &NodeView,
        memory: &Memory,
        rejections: &mut Vec<Rejection>,
    ) -> (Self, Memory) {
        let (topology, memory) = Topology::resolve(snapshot, config, memory, rejections);
        let node = snapshot.nodes.get(&config.node);
        let zone = node.and_then(|node| node.labels.get(ZONE_LABEL));
        let environment = Self {
            topology,
            zone: zone.cloned().unwrap_or_default(),
            node_addresses: edge::node_addresses(snapshot, config, view, rejections),
            is_behind_hub: match config.kubernetes_via_hub {
                ViaHub::Auto => config.is_source_hub,
                ViaHub::On => true,
                ViaHub::Off => false,
            },
            compat_drop_service: config.compat_drop_service,
            compat_all_vips: config.compat_all_vips,
        };
        (environment, memory)
    }
}

/// One Service, what it was compiled from and to. It holds its inputs, so their addresses are not used again
/// while they stand for them.
#[derive(Clone, Debug)]
struct Remembered {
    service: Arc<Service>,
    slices: Vec<Arc<EndpointSlice>>,
    pool_services: Vec<Arc<PoolService>>,
    /// With every frontend that the Service asks for.
    entries: Vec<Arc<ServiceEntry>>,
    /// Without those that another Service has: what the table shows.
    shown: Vec<Arc<ServiceEntry>>,
    /// Reasons of rejections of the Service.
    reasons: Vec<String>,
}

/// Compiles the table of one node.
pub fn compile(
    snapshot: &Snapshot,
    config: &PolicyConfig,
    view: &NodeView,
    memory: &Memory,
    memo: &mut Memo,
) -> Compiled {
    let mut rejections = snapshot.rejections.clone();
    let (environment, memory) = Environment::new(snapshot, config, view, memory, &mut rejections);
    let is_same = memo.environment.as_ref() == Some(&environment);
    let mut services = compile_services(snapshot, &environment, is_same, &mut memo.services);
    let conflicts = settle_conflicts(&mut services);

    let mut cluster_ips = Vec::new();
    for remembered in &services {
        let name = &remembered.service.name;
        let reasons = remembered.reasons.iter().cloned();
        rejections.extend(reasons.map(|reason| snapshot.reject("Service", name, reason)));
        cluster_ips.extend(&remembered.service.cluster_ips);
    }
    for (loser, reason) in conflicts {
        rejections.push(snapshot.reject("Service", &loser, reason));
    }
    let cluster_prefixes = prefixes::cluster_prefixes(
        &config.service_cidrs,
        snapshot,
        &cluster_ips,
        &mut rejections,
    );
    rejections.sort_unstable();
    rejections.dedup();

    let table = ServiceTable {
        node: config.node.clone(),
        pool: environment.topology.pool().to_owned(),
        zone: environment.zone.clone(),
        services: services
            .iter()
            .flat_map(|s| s.shown.iter().cloned())
            .collect(),
        cluster_prefixes,
        rejections,
    };
    *memo = Memo {
        environment: Some(environment),
        services,
    };
    Compiled { table, memory }
}

/// Joins Services with their slices and with what is remembered of them: all three are walked in the order of names.
fn compile_services(
    snapshot: &Snapshot,
    environment: &Environment,
    is_same_environment: bool,
    memo: &mut Vec<Remembered>,
) -> Vec<Remembered> {
    let mut index: Vec<(&str, &str, &Arc<EndpointSlice>)> = snapshot
        .slices
        .values()
        .filter(|slice| !slice.is_headless)
        .map(|slice| (&*slice.name.namespace, &*slice.service, slice))
        .collect();
    // Stable: the slices of one Service stay in the order of their names.
    index.sort_by_key(|&(namespace, service, _)| (namespace, service));
    let mut index = index.into_iter().peekable();
    let mut memo = std::mem::take(memo).into_iter().peekable();
    let mut pool_services: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for object in snapshot.pool_services.values() {
        let name = (&*object.name.namespace, &*object.service);
        pool_services.entry(name).or_default().push(object);
    }

    let mut compiled = Vec::with_capacity(snapshot.services.len());
    for service in snapshot.services.values() {
        if !edge::is_served(service, environment) {
            continue;
        }
        let name = (&*service.name.namespace, &*service.name.name);
        while index.next_if(|slice| (slice.0, slice.1) < name).is_some() {}
        let slices: Vec<_> =
            std::iter::from_fn(|| index.next_if(|slice| (slice.0, slice.1) == name))
                .map(|slice| slice.2)
                .collect();
        let pools = pool_services.remove(&name).unwrap_or_default();
        compiled.push(match take_remembered(&mut memo, &service.name) {
            Some(old)
                if is_same_environment
                    && Arc::ptr_eq(&old.service, service)
                    && is_same(&old.slices, &slices)
                    && is_same(&old.pool_services, &pools) =>
            {
                old
            }
            old => compile_service(service, &slices, &pools, environment, old),
        });
    }
    compiled
}

fn take_remembered(
    memo: &mut Peekable<impl Iterator<Item = Remembered>>,
    name: &NamespacedName,
) -> Option<Remembered> {
    while memo.next_if(|old| old.service.name < *name).is_some() {}
    memo.next_if(|old| old.service.name == *name)
}

/// Identity, not equality: sources keep the `Arc` of what did not change.
fn is_same<T>(old: &[Arc<T>], new: &[&Arc<T>]) -> bool {
    old.len() == new.len() && old.iter().zip(new).all(|(old, new)| Arc::ptr_eq(old, new))
}

fn compile_service(
    service: &Arc<Service>,
    slices: &[&Arc<EndpointSlice>],
    pool_services: &[&Arc<PoolService>],
    environment: &Environment,
    old: Option<Remembered>,
) -> Remembered {
    let mut reasons = Vec::new();
    let topology_keys = service.topology_keys.as_deref();
    let (closure, unknown_key) = environment.topology.closure(topology_keys);
    reasons.extend(unknown_key);
    let addresses = ServiceAddresses::new(service, pool_services, environment, &mut reasons);
    let source_ranges = edge::source_ranges(service);
    let seen = all_seen(slices, environment);

    let mut ports: Vec<&ServicePort> = service.ports.iter().collect();
    ports.sort_by_key(|port| (&port.name, port.protocol));
    let (old_entries, old_shown) = match old {
        Some(old) => (old.entries, old.shown),
        None => Default::default(),
    };
    let mut entries: Vec<Arc<ServiceEntry>> = Vec::with_capacity(ports.len());
    for port in ports {
        let key = ServiceKey {
            namespace: service.name.namespace.clone(),
            name: service.name.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
        };
        if entries.last().is_some_and(|last| last.key == key) {
            reasons.push(format!(
                "port {:?} with {} is there twice: the later one is left out",
                key.port, key.protocol
            ));
            continue;
        }
        let frontends = addresses.frontends(port);
        let set =
            |any: IpAddr| endpoint_set(service, port, any, closure, &seen, &frontends, environment);
        let entry = ServiceEntry {
            key,
            closure,
            internal_policy: service.internal_policy,
            external_policy: service.external_policy,
            affinity_seconds: service.affinity_seconds,
            source_ranges: source_ranges.clone(),
            v4: set(Ipv4Addr::UNSPECIFIED.into()),
            v6: set(Ipv6Addr::UNSPECIFIED.into()),
            frontends,
        };
        // What was shown goes first: it is what the last table holds.
        entries.push(keep_equal(old_shown.iter().chain(&old_entries), entry));
    }
    Remembered {
        service: service.clone(),
        slices: slices.iter().map(|&slice| slice.clone()).collect(),
        pool_services: pool_services.iter().map(|&object| object.clone()).collect(),
        entries,
        shown: old_shown,
        reasons,
    }
}

fn keep_equal<'a>(
    old: impl IntoIterator<Item = &'a Arc<ServiceEntry>>,
    entry: ServiceEntry,
) -> Arc<ServiceEntry> {
    match old.into_iter().find(|old| ***old == entry) {
        Some(old) => old.clone(),
        None => Arc::new(entry),
    }
}

/// Takes from each service port the frontends that an earlier one has; returns losers with the reason.
fn settle_conflicts(services: &mut [Remembered]) -> Vec<(NamespacedName, String)> {
    let entries: Vec<_> = services
        .iter()
        .flat_map(|s| s.entries.iter().cloned())
        .collect();
    let lost = edge::conflicts(&entries);
    let mut reasons = Vec::with_capacity(lost.len());
    let mut losses = lost.iter().peekable();
    let mut first = 0;
    for remembered in services {
        let range = first..first + remembered.entries.len();
        first = range.end;
        if losses.peek().is_none_or(|loss| loss.loser >= range.end) {
            let mut pairs = remembered.shown.iter().zip(&remembered.entries);
            let is_same = pairs.all(|(shown, entry)| Arc::ptr_eq(shown, entry));
            if !is_same || remembered.shown.len() != remembered.entries.len() {
                remembered.shown.clone_from(&remembered.entries);
            }
            continue;
        }
        let mut shown = Vec::with_capacity(range.len());
        for (index, entry) in range.zip(&remembered.entries) {
            let mut pruned = ServiceEntry::clone(entry);
            while let Some(loss) = losses.next_if(|loss| loss.loser == index) {
                pruned
                    .frontends
                    .retain(|f| (f.address, f.port) != (loss.address, loss.port));
                let protocol = entry.key.protocol;
                let endpoint = SocketAddr::new(loss.address, loss.port);
                let winner = &entries[loss.winner].key;
                let reason = format!(
                    "{endpoint}/{protocol} belongs to {winner} (a ClusterIP, or first by name)"
                );
                reasons.push((remembered.service.name.clone(), reason));
            }
            shown.push(match pruned == **entry {
                true => entry.clone(),
                false => keep_equal(&remembered.shown, pruned),
            });
        }
        remembered.shown = shown;
    }
    reasons
}
