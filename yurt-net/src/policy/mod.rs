//! From a whole snapshot of the cluster to the table of this node.
//!
//! Pure. In: `Snapshot`, `PolicyConfig`, `NodeView`, `Memory`. Out: `ServiceTable` and the next `Memory`; it never fails.
//! Rules in order, for each Service: (1) its frontends, `edge`; (2) slice ports of equal name and protocol; (3) ready;
//! (4) closure, `topology`; then (5) conflicts between Services. Reference: kubernetes/kubernetes
//! pkg/proxy/endpointslicecache.go. `Memo` only saves time: the result is the same with an empty one.
#![forbid(unsafe_code)]

mod edge;
#[cfg(test)]
pub(crate) mod fixtures;
mod prefixes;
#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;
mod topology;

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use self::edge::ServiceAddresses;
use self::topology::Topology;
use crate::model::{EndpointSlice, NamespacedName, Service, ServicePort, Snapshot};
use crate::table::{
    Closure, DropReason, Dropped, EndpointSet, ServiceEntry, ServiceKey, ServiceTable,
};

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
    node_addresses: Vec<IpAddr>,
}

/// One Service, what it was compiled from and to. It holds its inputs, so their addresses are not used again
/// while they stand for them.
#[derive(Clone, Debug)]
struct Remembered {
    service: Arc<Service>,
    slices: Vec<Arc<EndpointSlice>>,
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
    let (topology, memory) = Topology::resolve(snapshot, config, memory, &mut rejections);
    let environment = Environment {
        node_addresses: edge::node_addresses(snapshot, config, view, &mut rejections),
        topology,
    };
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

    let node = snapshot.nodes.get(&config.node);
    let zone = node.and_then(|node| node.labels.get(ZONE_LABEL));
    let table = ServiceTable {
        node: config.node.clone(),
        pool: environment.topology.pool().to_owned(),
        zone: zone.cloned().unwrap_or_default(),
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
        .map(|slice| (&*slice.name.namespace, &*slice.service, slice))
        .collect();
    // Stable: the slices of one Service stay in the order of their names.
    index.sort_by_key(|&(namespace, service, _)| (namespace, service));
    let mut index = index.into_iter().peekable();
    let mut memo = std::mem::take(memo).into_iter().peekable();

    let mut compiled = Vec::with_capacity(snapshot.services.len());
    for service in snapshot.services.values() {
        if !edge::is_served(service) {
            continue;
        }
        let name = (&*service.name.namespace, &*service.name.name);
        while index.next_if(|slice| (slice.0, slice.1) < name).is_some() {}
        let slices: Vec<_> =
            std::iter::from_fn(|| index.next_if(|slice| (slice.0, slice.1) == name))
                .map(|slice| slice.2)
                .collect();
        compiled.push(match take_remembered(&mut memo, &service.name) {
            Some(old) if is_same_environment && is_from(&old, service, &slices) => old,
            old => compile_service(service, &slices, environment, old),
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
fn is_from(old: &Remembered, service: &Arc<Service>, slices: &[&Arc<EndpointSlice>]) -> bool {
    Arc::ptr_eq(&old.service, service)
        && old.slices.len() == slices.len()
        && old
            .slices
            .iter()
            .zip(slices)
            .all(|(old, new)| Arc::ptr_eq(old, new))
}

fn compile_service(
    service: &Arc<Service>,
    slices: &[&Arc<EndpointSlice>],
    environment: &Environment,
    old: Option<Remembered>,
) -> Remembered {
    let topology = &environment.topology;
    let mut reasons = Vec::new();
    let (closure, unknown_key) = topology.closure(service.topology_keys.as_deref());
    reasons.extend(unknown_key);
    let addresses = ServiceAddresses::new(service, &environment.node_addresses, &mut reasons);

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
        let set = |any: IpAddr| match edge::has_family(service, any) {
            true => endpoint_set(port, any, closure, slices, topology),
            false => EndpointSet::default(),
        };
        let entry = ServiceEntry {
            key,
            closure,
            frontends: addresses.frontends(port),
            v4: set(Ipv4Addr::UNSPECIFIED.into()),
            v6: set(Ipv6Addr::UNSPECIFIED.into()),
        };
        // What was shown goes first: it is what the last table holds.
        entries.push(keep_equal(old_shown.iter().chain(&old_entries), entry));
    }
    Remembered {
        service: service.clone(),
        slices: slices.iter().map(|&slice| slice.clone()).collect(),
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

/// The endpoints of one port in the family of `any`. Copies in several slices are one endpoint, and the best
/// of them speaks: while a Pod moves from slice to slice it is in both, or in one with older conditions.
fn endpoint_set(
    port: &ServicePort,
    any: IpAddr,
    closure: Closure,
    slices: &[&Arc<EndpointSlice>],
    topology: &Topology,
) -> EndpointSet {
    let mut found = Vec::new();
    for slice in slices.iter().filter(|slice| slice.family == any.into()) {
        // Each slice has its own number for the same port name: Pods may resolve a named targetPort differently.
        let mut ports = slice.ports.iter();
        while let Some(slice_port) =
            ports.find(|p| p.name == port.name && p.protocol == port.protocol)
        {
            let endpoints = slice.endpoints.iter();
            for endpoint in endpoints.filter(|e| e.address.is_ipv4() == any.is_ipv4()) {
                let reason = match endpoint.is_ready {
                    true => topology.outside(closure, endpoint),
                    false => Some(DropReason::NotReady),
                };
                found.push((SocketAddr::new(endpoint.address, slice_port.port), reason));
            }
        }
    }
    // `None` sorts first, and `NotReady` last.
    found.sort_unstable();
    found.dedup_by(|next, kept| next.0 == kept.0);
    let selected = found.iter().filter(|(_, reason)| reason.is_none());
    let selected = selected.map(|(endpoint, _)| *endpoint).collect();
    let dropped = found
        .into_iter()
        .filter_map(|(endpoint, reason)| reason.map(|reason| Dropped { endpoint, reason }));
    EndpointSet {
        selected,
        dropped: dropped.collect(),
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
