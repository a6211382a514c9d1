//! The inputs of a table beside the snapshot: the operator's settings, facts about this machine, and the memory of
//! earlier tables.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::pod_networks::Networks;
use crate::model::Node;
use crate::pods::probe::Failing;
use crate::pods::truth::Truth;
use crate::table::MAX_HEALTH_CHECKS;

/// Label of a Node that names its pool, unless a build of OpenYurt changed it.
pub const POOL_LABEL: &str = "apps.openyurt.io/nodepool";

/// Where the agent's metrics are unless told otherwise.
pub const METRICS_PORT: u16 = 10249;

/// Health checks have at most one of so many files that the agent may have open. Whoever writes Services decides how
/// many there are, and the agent opens files for each Pod.
pub const HEALTH_CHECK_SHARE: usize = 4;

/// The operator's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyConfig {
    /// Name of this node's Node object.
    pub node: String,
    /// `--nodepool`: the pool, whatever the label of the Node says.
    pub nodepool: Option<String>,
    /// Key of the label that names a Node's pool.
    pub pool_label: String,
    /// Which nodes count as inside a closure while data is missing.
    pub closure_failure: ClosureFailure,
    /// `--service-cidr`: the prefixes of ClusterIPs; empty: the ServiceCIDR objects say.
    pub service_cidrs: Vec<IpNetwork>,
    /// `--kubernetes-via-hub`: endpoints of default/kubernetes.
    pub kubernetes_via_hub: ViaHub,
    /// The source in charge is a YurtHub; the agent updates this.
    pub is_source_hub: bool,
    /// `--compat-drop-service`: a Service whose NodePorts or load balancer are not for this node is not served at all.
    pub compat_drop_service: bool,
    /// `--compat-all-vips`: the load balancer's addresses of every pool are served.
    pub compat_all_vips: bool,
    /// `--packet-path`: packets of clients outside this node are served, too.
    pub serves_packets: bool,
    /// `--nodeport-addresses`: where NodePorts are served.
    pub node_ports: NodePortAddresses,
    /// Addresses and ports that no Service may take.
    pub protect: ProtectConfig,
    /// Health checks of load balancers that this node has sockets for.
    pub max_health_checks: usize,
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
            serves_packets: false,
            node_ports: NodePortAddresses::default(),
            protect: ProtectConfig::default(),
            max_health_checks: MAX_HEALTH_CHECKS,
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

/// This machine's own addresses; empty if this machine is not the node, as for `plan`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Addresses on its interfaces; `None`: not known, and the Node's status counts.
    pub local_addresses: Option<BTreeSet<IpAddr>>,
    /// Source addresses of its default routes.
    pub default_source: (Option<Ipv4Addr>, Option<Ipv6Addr>),
    /// The nameservers that its processes ask.
    pub nameservers: BTreeSet<IpAddr>,
    /// The addresses of its Pods, by the ledger.
    pub pods: Arc<BTreeSet<IpAddr>>,
    /// Where its routes lead to its Pods.
    pub pod_routes: Arc<Networks<()>>,
    /// Where its Pods are, while that is known better than the snapshot is.
    pub truth: Option<Arc<Truth>>,
    /// Backends on it whose probes fail, while nobody else tells.
    pub failing: Arc<Failing>,
}

impl NodeView {
    /// The view, if this machine is the node: it has an address of the Node. Otherwise an empty view.
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

/// What an earlier compile knew of the pool, for the time when data is missing. The caller keeps it across snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The pool that the own Node's label named; "" = the Node was in no pool.
    pub own_pool: Option<String>,
    /// The pool of `members`.
    pub members_of: String,
    /// Nodes in that pool.
    pub members: BTreeSet<String>,
    /// Where NodePorts were served.
    pub node_addresses: Vec<IpAddr>,
}

/// Protected addresses and ports, from the operator and the sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtectConfig {
    /// `--protect`.
    pub given: Vec<Place>,
    /// Apiservers and YurtHubs of `--source`, of the kubeconfig and of the environment.
    pub servers: Vec<SocketAddr>,
    /// Ports of this agent.
    pub agent_ports: Vec<u16>,
    /// `--external-ips`.
    pub external_ips: ExternalIps,
}

impl Default for ProtectConfig {
    fn default() -> Self {
        Self {
            given: Vec::new(),
            servers: Vec::new(),
            agent_ports: vec![METRICS_PORT],
            external_ips: ExternalIps::All,
        }
    }
}

/// A value of `--protect`: an address, or one port of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Address.
    pub address: IpAddr,
    /// Port; `None` = all.
    pub port: Option<u16>,
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(at) = text.parse::<SocketAddr>() {
            let address = at.ip().to_canonical();
            let port = Some(at.port());
            return Ok(Self { address, port });
        }
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        let address: Result<IpAddr, _> = bare.unwrap_or(text).parse();
        match address {
            Ok(address) => Ok(Self {
                address: address.to_canonical(),
                port: None,
            }),
            Err(_) => {
                Err("expected ADDR or ADDR:PORT, as 192.0.2.1, 192.0.2.1:6443 or [fd00::1]:6443")
            }
        }
    }
}

/// `--nodeport-addresses`: the addresses of this node at which NodePorts are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The primary address of each family.
    #[default]
    Primary,
    /// Those inside these prefixes.
    Inside(Vec<IpNetwork>),
}

impl FromStr for NodePortAddresses {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "primary" {
            return Ok(Self::Primary);
        }
        let networks = text
            .split(',')
            .map(|network| network.trim().parse::<IpNetwork>());
        let networks: Result<Vec<IpNetwork>, _> = networks.collect();
        match networks {
            Ok(networks) if text.matches(',').count() < text.matches('/').count() => {
                Ok(Self::Inside(networks))
            }
            _ => Err("expected primary, or prefixes between commas, as 192.0.2.0/24,2001:db8::/64"),
        }
    }
}

/// `--external-ips`: which `spec.externalIPs` are served at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ExternalIps {
    /// All that are not protected.
    #[default]
    All,
    /// No external IP.
    None,
    /// Those inside these prefixes that are not protected.
    Inside(Vec<IpNetwork>),
}

impl ExternalIps {
    pub(super) fn admit(&self, address: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Inside(networks) => networks.iter().any(|network| network.contains(address)),
        }
    }
}

impl FromStr for ExternalIps {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "all" => return Ok(Self::All),
            "none" => return Ok(Self::None),
            _ => {}
        }
        let networks = text.split(',').map(|one| one.trim().parse().ok()).collect();
        let networks: Option<Vec<IpNetwork>> = networks;
        let expected = "expected all, none, or prefixes as 198.51.100.0/24,2001:db8::/32";
        networks.map(Self::Inside).ok_or(expected)
    }
}
