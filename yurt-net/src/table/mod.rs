//! The compiled table: what every Service frontend of this node does, and why.
//!
//! Pure. Built by `policy::compile`, shown by `plan` and `explain`, written to the kernel by `plan::plan`. It holds the
//! usable endpoints; `policy::Reasons` finds out, when asked, why the others are not used.
//!
//! Services that did not change keep their `Arc` from one table to the next, so comparing two tables
//! costs one pointer comparison for each service port.

mod backends;
pub mod edition;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

pub use self::backends::Backends;
use crate::model::{NamespacedName, Protocol, Rejection, TrafficPolicy};

/// Most prefixes of one family in `ClusterPrefixes`: the kernel scans them one by one on every miss.
pub const MAX_PREFIXES: usize = 16;

pub use crate::model::MAX_SOURCE_RANGES;

/// Frontends of one Service, over all of its ports: a fifth of what the map holds by default.
pub const MAX_FRONTENDS: usize = 4096;

/// Endpoints of one Service, over all of its ports: as many as one publish word counts, and twice what the map holds by
/// default.
pub const MAX_ENDPOINTS: usize = 1 << 16;

/// Health checks of load balancers that a node serves: each has a listening socket.
pub const MAX_HEALTH_CHECKS: usize = 500;

/// The whole table of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTable {
    /// This node.
    pub node: String,
    /// Its pool; "" when it is in none.
    pub pool: String,
    /// Its `topology.kubernetes.io/zone`; "" when it has none.
    pub zone: String,
    /// Service ports, sorted by namespace, name, port name, protocol.
    pub services: Vec<Arc<ServiceEntry>>,
    /// Prefixes that ClusterIPs come from.
    pub cluster_prefixes: ClusterPrefixes,
    /// ClusterIPs that are also on an interface of this node, sorted: they are left to the process that listens there,
    /// as NodeLocal DNSCache does on that of kube-dns.
    pub on_node: Vec<IpAddr>,
    /// Packets of clients outside this node are served, too, and not only its sockets: `--packet-path`.
    pub serves_packets: bool,
    /// Where load balancers ask for endpoints on this node, sorted by port.
    pub health_checks: Vec<HealthCheck>,
    /// The faults of single objects, sorted. What is said again keeps its `Arc`.
    pub rejections: Vec<Arc<Rejection>>,
}

/// A `healthCheckNodePort`, and what is said there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// TCP port, on every address of this node.
    pub port: u16,
    /// The Service that has it.
    pub service: NamespacedName,
    /// Addresses on this node that are ready; a load balancer sends nothing to a node that has none.
    pub local_endpoints: usize,
}

impl ServiceTable {
    /// Whether a frontend is left to a process of this node, see [`Self::on_node`]. Other frontends at a node's
    /// addresses are served: NodePorts, and load balancers of clusters whose nodes are the load balancer.
    pub fn leaves_alone(&self, frontend: &Frontend) -> bool {
        frontend.kind == FrontendKind::ClusterIp && self.is_on_node(frontend.address)
    }

    /// Whether an address is one of [`Self::on_node`].
    pub fn is_on_node(&self, address: IpAddr) -> bool {
        self.on_node.binary_search(&address).is_ok()
    }
}

/// The prefixes inside which an address that is no frontend is refused or looked at twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterPrefixes {
    /// At most `MAX_PREFIXES` of each family, sorted.
    pub prefixes: Vec<IpNetwork>,
    /// True when they are the cluster's ServiceCIDRs: an unallocated address inside is refused. False when they
    /// only cover the known ClusterIPs: just the unknown ports of known ClusterIPs are.
    pub are_service_cidrs: bool,
}

impl ClusterPrefixes {
    /// Whether `address` is inside one of the prefixes.
    pub fn contain(&self, address: IpAddr) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(address))
    }
}

/// One port of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Identity, as kube-proxy's ServicePortName: namespace, name, port name and protocol.
    pub key: ServiceKey,
    /// The closure in force.
    pub closure: Closure,
    /// Which endpoints clients of the ClusterIP are led to.
    pub internal_policy: TrafficPolicy,
    /// Which endpoints clients outside this node are led to that dial any other frontend.
    pub external_policy: TrafficPolicy,
    /// How long a client stays with its endpoint after its last new connection, over all frontends; 0 = not at all.
    pub affinity_seconds: u32,
    /// Clients that the LoadBalancer frontends admit, sorted. A family without a range admits all.
    pub source_ranges: Arc<[IpNetwork]>,
    /// Frontends, sorted by kind, address, port.
    pub frontends: Box<[Frontend]>,
    /// Endpoints of IPv4.
    pub v4: EndpointSet,
    /// Endpoints of IPv6.
    pub v6: EndpointSet,
}

/// Namespace, name, port name and protocol; sorts in this order, bytewise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service name.
    pub name: Arc<str>,
    /// Port name; "" when unnamed.
    pub port: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
}

/// The namespace of what a cluster itself needs.
pub const SYSTEM_NAMESPACE: &str = "kube-system";

/// The precedence of a Service: nothing works without the first two kinds, and no tenant writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// default/kubernetes.
    Apiserver,
    /// A Service of kube-system.
    System,
    /// Any other.
    Tenant,
}

impl Standing {
    /// That of the Service of this name.
    pub fn of(namespace: &str, name: &str) -> Self {
        match (namespace, name) {
            ("default", "kubernetes") => Self::Apiserver,
            (SYSTEM_NAMESPACE, _) => Self::System,
            _ => Self::Tenant,
        }
    }
}

impl ServiceKey {
    /// The precedence of its Service.
    pub fn standing(&self) -> Standing {
        Standing::of(&self.namespace, &self.name)
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.name, self.port)
    }
}

/// How far the traffic of a Service may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Closure {
    /// Everywhere.
    None,
    /// To endpoints on this node.
    Node,
    /// To endpoints on nodes of this node's pool.
    Pool,
}

impl fmt::Display for Closure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Node => "node",
            Self::Pool => "pool",
        })
    }
}

/// An address and port that clients dial. The protocol is the service port's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontend {
    /// Where it comes from.
    pub kind: FrontendKind,
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
}

/// Kinds of frontends; they sort alphabetically.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// `spec.externalIPs`.
    #[serde(rename = "ExternalIP")]
    ExternalIp,
    /// `status.loadBalancer.ingress[].ip`.
    LoadBalancer,
    /// A node address and `nodePort`. Loopback follows from it and is not listed.
    NodePort,
}

impl fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "ClusterIP",
            Self::ExternalIp => "ExternalIP",
            Self::LoadBalancer => "LoadBalancer",
            Self::NodePort => "NodePort",
        })
    }
}

/// The endpoints of one service port in one family, inside its closure. Each list is sorted by address, then port,
/// without duplicates; kube-proxy's `CategorizeEndpoints` (pkg/proxy/topology.go).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSet {
    /// Under the policy Cluster; empty when no frontend has it.
    pub cluster: Backends,
    /// Under the policy Local; empty when no frontend has it.
    pub local: Backends,
    /// Some endpoint is usable on some node: who gets none of them here is dropped, not refused.
    pub has_any: bool,
}

/// An endpoint that takes no traffic here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Dropped {
    /// Its address and port.
    pub endpoint: SocketAddr,
    /// The first rule that dropped it, in words.
    pub reason: String,
}

/// The place of a client: a process on this node or in one of its Pods, or a client outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// This node and its Pods.
    Internal,
    /// Everybody else.
    External,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Internal => "internal",
            Self::External => "external",
        })
    }
}

/// The fate of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// To one of the endpoints, each equally likely.
    Forward,
    /// `ECONNREFUSED`: there is no endpoint that may take it, on any node.
    Refuse,
    /// Silence; `EHOSTUNREACH` on a socket of this node, which has an error to give: the policy is Local, and the
    /// usable endpoints are on other nodes.
    Drop,
}

impl EndpointSet {
    /// Keeps the addresses of another set in place of its own, where they are the same ones.
    pub fn share(&mut self, other: &Self) {
        self.cluster.share(&other.cluster);
        // Where both policies lead to the same ones, they have one list.
        self.local.share(&self.cluster);
        self.local.share(&other.local);
    }

    /// Endpoints under the policy Cluster alone.
    pub fn cluster(endpoints: impl IntoIterator<Item = SocketAddr>) -> Self {
        let cluster: Backends = endpoints.into_iter().collect();
        Self {
            has_any: !cluster.is_empty(),
            cluster,
            local: Backends::default(),
        }
    }
}

impl ServiceEntry {
    /// A service port without a frontend, an endpoint, or anything that is not the default.
    pub fn new(key: ServiceKey) -> Self {
        Self {
            key,
            closure: Closure::None,
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity_seconds: 0,
            source_ranges: Arc::default(),
            frontends: Box::default(),
            v4: EndpointSet::default(),
            v6: EndpointSet::default(),
        }
    }

    /// The endpoints of a family.
    pub fn set(&self, address: IpAddr) -> &EndpointSet {
        if address.is_ipv4() {
            &self.v4
        } else {
            &self.v6
        }
    }

    /// The policy of a frontend for clients of `scope`. Those of this node that dial an external address are led as if
    /// they had gone out to the load balancer and come back: to any endpoint (pkg/proxy/iptables/proxier.go).
    pub fn policy(&self, kind: FrontendKind, scope: Scope) -> TrafficPolicy {
        match (kind, scope) {
            (FrontendKind::ClusterIp, _) => self.internal_policy,
            (_, Scope::Internal) => TrafficPolicy::Cluster,
            (_, Scope::External) => self.external_policy,
        }
    }

    /// The endpoints of a frontend for clients of `scope`.
    pub fn endpoints(&self, frontend: &Frontend, scope: Scope) -> &Backends {
        let set = self.set(frontend.address);
        match self.policy(frontend.kind, scope) {
            TrafficPolicy::Cluster => &set.cluster,
            TrafficPolicy::Local => &set.local,
        }
    }

    /// The verdict at a frontend for clients of `scope`; the source ranges come before it.
    pub fn verdict(&self, frontend: &Frontend, scope: Scope) -> Verdict {
        if !self.endpoints(frontend, scope).is_empty() {
            Verdict::Forward
        } else if self.set(frontend.address).has_any {
            Verdict::Drop
        } else {
            Verdict::Refuse
        }
    }

    /// Whether endpoints on other nodes see this node's address instead of the client's: those here see the client.
    /// Sockets of this node dial the endpoint themselves; of the others, those that the policy Local keeps on this node
    /// need no way back over it.
    pub fn is_masqueraded(&self, kind: FrontendKind, scope: Scope) -> bool {
        let is_kept_here = kind != FrontendKind::ClusterIp
            && self.policy(kind, Scope::External) == TrafficPolicy::Local;
        scope == Scope::External && !is_kept_here
    }

    /// The clients that a frontend admits, sorted; none = all. An external IP that is the load balancer's too admits
    /// the same: at one address and port there is one answer, and it is the narrower one.
    pub fn admitted(&self, frontend: &Frontend) -> impl Iterator<Item = &IpNetwork> {
        let is_ours = |range: &&IpNetwork| range.is_ipv4() == frontend.address.is_ipv4();
        let balanced = Frontend {
            kind: FrontendKind::LoadBalancer,
            ..*frontend
        };
        let is_limited =
            !self.source_ranges.is_empty() && self.frontends.binary_search(&balanced).is_ok();
        self.source_ranges
            .iter()
            .filter(move |range| is_limited && is_ours(range))
    }
}
