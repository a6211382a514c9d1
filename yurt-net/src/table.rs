//! The compiled table: what every Service frontend of this node does, and why.
//!
//! Pure. Built by `policy::compile`, shown by `plan` and `explain`, written to the kernel by `plan::plan`.
//! Services that did not change keep their `Arc` from one table to the next, so comparing two tables
//! costs one pointer comparison for each service port.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::Serialize;

use crate::model::{Protocol, Rejection};

/// Most prefixes of one family in `ClusterPrefixes`: the kernel scans them one by one on every miss.
pub const MAX_PREFIXES: usize = 16;

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
    /// What was wrong with single objects, sorted.
    pub rejections: Vec<Rejection>,
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
    /// Frontends, sorted by kind, address, port.
    pub frontends: Vec<Frontend>,
    /// Endpoints of each family.
    pub v4: EndpointSet,
    /// See `v4`.
    pub v6: EndpointSet,
}

/// Namespace, name, port name and protocol; sorts in this order, bytewise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: String,
    /// Service name.
    pub name: String,
    /// Port name; "" when unnamed.
    pub port: String,
    /// Protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.name, self.port)
    }
}

/// How far the traffic of a Service may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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

/// The endpoints of one service port in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSet {
    /// May take traffic: sorted by address, then port, without duplicates.
    pub selected: Arc<[SocketAddr]>,
    /// May not, and the rule that says so; sorted.
    pub dropped: Vec<Dropped>,
}

/// An endpoint that takes no traffic here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dropped {
    /// Its address and port.
    pub endpoint: SocketAddr,
    /// The first rule that dropped it.
    pub reason: DropReason,
}

/// Rules that drop an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropReason {
    /// Closure to this node: it runs on another one.
    OtherNode {
        /// The endpoint's node.
        node: Arc<str>,
    },
    /// Closure to the pool: its node is not a member.
    OtherPool {
        /// The endpoint's node.
        node: Arc<str>,
        /// This node's pool.
        pool: Arc<str>,
    },
    /// Closure: the endpoint has no `nodeName`, so it belongs to no node and no pool.
    NoNodeName,
    /// Closure to the pool: nothing says who its members are.
    UnknownMembership {
        /// The endpoint's node.
        node: Arc<str>,
        /// This node's pool.
        pool: Arc<str>,
    },
    /// `conditions.ready` is false. Last: of two copies of an endpoint the ready one speaks.
    NotReady,
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady => f.write_str("not ready"),
            Self::OtherNode { node } => write!(f, "closure: node {node} is not this node"),
            Self::OtherPool { node, pool } => {
                write!(f, "closure: node {node} is not in pool {pool}")
            }
            Self::NoNodeName => f.write_str("closure: the endpoint has no nodeName"),
            Self::UnknownMembership { node, pool } => write!(
                f,
                "closure: nothing says whether node {node} is in pool {pool} (no Node, NodeBucket or NodePool)"
            ),
        }
    }
}

/// Who dials: a process on this node or in one of its Pods, or somebody outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// This node and its Pods.
    Internal,
    /// Everybody else.
    External,
}

/// What happens to a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// To one of the endpoints, each equally likely.
    Forward,
    /// `ECONNREFUSED`: there is no endpoint that may take it.
    Refuse,
}

impl ServiceEntry {
    /// The endpoints that answer at `address`.
    pub fn endpoints(&self, address: IpAddr) -> &EndpointSet {
        if address.is_ipv4() {
            &self.v4
        } else {
            &self.v6
        }
    }

    /// The verdict at `address`.
    pub fn verdict(&self, address: IpAddr) -> Verdict {
        if self.endpoints(address).selected.is_empty() {
            Verdict::Refuse
        } else {
            Verdict::Forward
        }
    }
}
