//! From a whole snapshot of the cluster to the table of this node.
//!
//! Pure. In: `Snapshot`, `PolicyConfig`, `NodeView`, `Memory`. Out: `ServiceTable` and the next `Memory`; it never fails.
//! Rules in order, for each Service: (1) its frontends, `edge`; (2) its endpoints, `endpoints`: where those of this node really
//! are while the snapshot is old (`retain::truth`), closure (`topology`), then kube-proxy's traffic policies (`traffic`), then probes; then (3) conflicts between Services. `Memo` only saves time (`memo`): the
//! table is the same with an empty one.
#![forbid(unsafe_code)]

mod edge;
mod endpoints;
mod established;
#[cfg(test)]
pub(crate) mod fixtures;
mod memo;
mod peers;
mod prefixes;
#[cfg(test)]
mod proptests;
pub mod protected;
mod reasons;
#[cfg(test)]
mod tests;
mod topology;
mod traffic;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

pub use self::edge::listens;
pub use self::established::{
    ClosureEstablished, Fate, Flow, Judge, Standing, SuspectBackends, Suspects,
};
pub use self::memo::Memo;
pub use self::peers::pool_peers;
use self::prefixes::GivenCidrs;
pub use self::prefixes::pods_among_services;
use self::protected::{ProtectConfig, Protected};
pub use self::reasons::{Reasons, Why};
use self::topology::Topology;
use crate::model::{Node, Rejection, Snapshot, Touched};
use crate::retain::probing::Failing;
use crate::retain::truth::Truth;
use crate::table::ServiceTable;

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
    /// What no Service may take.
    pub protect: ProtectConfig,
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
            protect: ProtectConfig::default(),
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
    /// Where its Pods are, while that is known better than the snapshot is.
    pub truth: Option<Arc<Truth>>,
    /// Backends on it whose probes fail, while nobody else tells.
    pub failing: Arc<Failing>,
}

impl NodeView {
    /// The same, where the machine is this node: it has an address that the Node says. Elsewhere it is as if nobody had looked.
    #[must_use]
    pub fn of(self, node: Option<&Node>) -> Self {
        let local = self.local_addresses.iter().flatten();
        let here: BTreeSet<&IpAddr> = local.filter(|address| !address.is_loopback()).collect();
        let mut stated = node
            .into_iter()
            .flat_map(|node| node.internal_ips.iter().chain(&node.external_ips));
        match stated.any(|address| here.contains(address)) {
            true => self,
            false => Self::default(),
        }
    }
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
    /// Where NodePorts were served, at most one address of each family.
    pub node_addresses: Vec<IpAddr>,
}

/// What compile returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled<'m> {
    /// The table, which is in the memo.
    pub table: &'m ServiceTable,
    /// Those of its rejections that the table of the memo did not have before, sorted.
    pub new_rejections: Vec<Rejection>,
    /// Backends whose established flows may have lost them: a frontend or an endpoint of the last table is gone.
    pub lost: Suspects,
    /// For the next compile.
    pub memory: Memory,
}

/// What every Service depends on, and the table as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Environment {
    topology: Topology,
    /// `topology.kubernetes.io/zone` of this node; "" when it has none.
    zone: String,
    node_addresses: Vec<IpAddr>,
    /// Those on interfaces of this machine; `None` where nobody looked.
    local_addresses: Option<BTreeSet<IpAddr>>,
    /// Where ClusterIPs come from.
    service_cidrs: GivenCidrs,
    is_behind_hub: bool,
    compat_drop_service: bool,
    compat_all_vips: bool,
    protected: Protected,
    truth: Option<Arc<Truth>>,
    failing: Arc<Failing>,
}

impl Environment {
    fn new(
        snapshot: &Snapshot,
        config: &PolicyConfig,
        view: &NodeView,
        memory: &Memory,
        rejections: &mut Vec<Rejection>,
    ) -> (Self, Memory) {
        let (topology, mut memory) = Topology::resolve(snapshot, config, memory, rejections);
        let last = &memory.node_addresses;
        memory.node_addresses = edge::node_addresses(snapshot, config, view, last, rejections);
        let node = snapshot.nodes.get(&*config.node);
        let zone = node.and_then(|node| node.labels.get(ZONE_LABEL));
        let environment = Self {
            topology,
            zone: zone.cloned().unwrap_or_default(),
            node_addresses: memory.node_addresses.clone(),
            local_addresses: view.local_addresses.clone(),
            service_cidrs: GivenCidrs::new(&config.service_cidrs, snapshot),
            is_behind_hub: match config.kubernetes_via_hub {
                ViaHub::Auto => config.is_source_hub,
                ViaHub::On => true,
                ViaHub::Off => false,
            },
            compat_drop_service: config.compat_drop_service,
            compat_all_vips: config.compat_all_vips,
            protected: Protected::new(snapshot, config, view),
            truth: view.truth.clone(),
            failing: view.failing.clone(),
        };
        (environment, memory)
    }
}

/// Compiles the table of one node.
///
/// `touched` is what may differ from the snapshot that `memo` has seen last; `Touched::Anything` is always right.
pub fn compile<'m>(
    snapshot: &Snapshot,
    touched: &Touched,
    config: &PolicyConfig,
    view: &NodeView,
    memory: &Memory,
    memo: &'m mut Memo,
) -> Compiled<'m> {
    let mut rejections = Vec::new();
    let (environment, memory) = Environment::new(snapshot, config, view, memory, &mut rejections);
    let (new_rejections, lost) = memo.update(snapshot, touched, environment, &rejections);
    Compiled {
        table: memo.table(),
        new_rejections,
        lost,
        memory,
    }
}
