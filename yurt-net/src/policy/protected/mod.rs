//! Addresses and ports that no Service may take: those by which this node, its agents and its operator reach each
//! other.
//!
//! Pure. In: `ProtectConfig`, Nodes, the endpoints of default/kubernetes, `NodeView`. Out: the owner of an address or
//! of an address and port, and why a frontend must not be there. Otherwise whoever writes `externalIPs`, a load
//! balancer's status or a NodePort could come between the node and its apiserver (CVE-2020-8554), and stay there over a
//! reboot, because the checkpoint remembers it. Rules in order, by kind of frontend:
//!
//! | what | ExternalIP | LoadBalancer | NodePort | ClusterIP |
//! |---|---|---|---|---|
//! | unspecified, loopback, multicast, broadcast; the self-test's | no | no | - | no |
//! | link-local, YurtHub's addresses | no | no | - | not YurtHub's ports there |
//! | address and port of an apiserver, of a configured YurtHub; `--protect` | no | no | no | no, but default/kubernetes |
//! | addresses of this Node, and of others whose objects the source has | no | not the lifelines' ports | likewise | yes |
//! | inside the podCIDRs of this Node, and of others whose objects the source has, unless Nodes are in there, too | no | no | - | yes |
//! | a Pod's of this node, by the ledger or a route; not a Node's (`pod_networks`) | no | no | - | yes |
//! | an endpoint's in kube-system, for Services of other namespaces (`pod_networks`) | no | yes | - | yes |
//! | the node's nameservers, at the ports of DNS | no | yes | no, also where one is a loopback address | yes |
//!
//! Other Nodes are known from `file:` alone. From an apiserver or YurtHub the agent asks for its own Node only: in a
//! large cluster each Node changes every few minutes, and all of them are more than an uplink and a small board can
//! take. There `--protect` names the Nodes that matter.
//!
//! In a small cluster the nodes themselves are often the load balancer (k3s' ServiceLB, kube-vip), so their addresses
//! are served, except for their lifelines. Nodes may also ask a DNS server of their own cluster, by a load balancer's
//! address or a ClusterIP.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::inputs::{NodeView, Place, PolicyConfig, ProtectConfig};
use super::pod_networks::{NOBODYS, Networks, pod_cidrs};
use crate::model::{Kind, NamespacedName, Rejection, Snapshot};
use crate::plan::{SELF_TEST_V4, SELF_TEST_V6};
use crate::table::FrontendKind;
use crate::text;

/// YurtHub's dummy interface (`DefaultDummyIfIP4`, `DefaultDummyIfIP6`, openyurt cmd/yurthub/app/options/options.go).
pub(super) const HUB_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 1);
/// YurtHub's address for IPv6.
pub(super) const HUB_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 2, 1);
/// YurtHub's secure port.
pub(super) const HUB_PORT: u16 = 10268;
/// All ports of YurtHub: proxy, metrics and Pods, secure proxy, secure proxy of a dummy interface.
const HUB_PORTS: [u16; 4] = [10261, 10267, HUB_PORT, 10269];
/// Other ports by which a node is reached or checked: sshd, the kubelet, the health check of load balancers.
const NODE_PORTS: [u16; 3] = [22, 10250, 10256];
/// DNS (RFC 1035) and DNS over TLS (RFC 7858).
const DNS_PORTS: [u16; 2] = [53, 853];

/// The owner of an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whose {
    /// Protected by the operator (`--protect`).
    Protected,
    /// On this node, or in its Node's status.
    ThisNode,
    /// In the status of the Node of this name.
    Node(Arc<str>),
    /// YurtHub's.
    Hub,
    /// An apiserver's, or a configured YurtHub's.
    Server,
    /// A nameserver that this node asks.
    Nameserver,
    /// Unspecified, loopback, link-local, multicast, or the self-test's.
    Special(&'static str),
}

impl Whose {
    /// Ends the sentence "ADDRESS belongs to ...".
    pub fn owner(&self) -> String {
        match self {
            Self::Protected => "the operator (--protect)".to_owned(),
            Self::ThisNode => "this node".to_owned(),
            Self::Node(name) => format!("Node {name}"),
            Self::Hub => "YurtHub".to_owned(),
            Self::Server => "an apiserver".to_owned(),
            Self::Nameserver => "a nameserver of this node".to_owned(),
            Self::Special(what) => (*what).to_owned(),
        }
    }
}

impl fmt::Display for Whose {
    /// Ends the sentence "ADDRESS is ...".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protected => f.write_str("protected by --protect"),
            Self::ThisNode => f.write_str("an address of this node"),
            Self::Node(name) => write!(f, "an address of Node {name}"),
            Self::Hub => f.write_str("YurtHub's address"),
            Self::Server => f.write_str("where nodes reach the apiserver"),
            Self::Nameserver => f.write_str("where this node looks up names"),
            Self::Special(what) => f.write_str(what),
        }
    }
}

/// The addresses and ports of one node that no frontend may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protected {
    /// The addresses of Nodes and of this machine, sorted.
    nodes: Vec<(IpAddr, Whose)>,
    /// The podCIDRs of Nodes. The kubelet probes Pods there, and members of a database reach each other there.
    pods: Networks<Arc<str>>,
    /// Apiservers, sorted.
    servers: Vec<SocketAddr>,
    nameservers: BTreeSet<IpAddr>,
    config: ProtectConfig,
}

impl Protected {
    /// Collects what is protected.
    pub fn new(snapshot: &Snapshot, config: &PolicyConfig, view: &NodeView) -> Self {
        let mut nodes: Vec<(IpAddr, Whose)> = Vec::new();
        for node in snapshot.nodes.values() {
            let addresses = node.internal_ips.iter().chain(&node.external_ips);
            nodes.extend(addresses.map(|address| match *node.name == *config.node {
                true => (*address, Whose::ThisNode),
                false => (*address, Whose::Node(node.name.clone())),
            }));
        }
        let local = view.local_addresses.iter().flatten();
        nodes.extend(local.map(|address| (*address, Whose::ThisNode)));
        nodes.sort_unstable();
        nodes.dedup_by(|next, kept| next.0 == kept.0);
        let pods = pod_cidrs(snapshot).filter(|(_, _, is_wrong)| !is_wrong);
        let mut servers = config.protect.servers.clone();
        // The apiservers' own controller writes these addresses.
        let own = NamespacedName::new("default", "kubernetes");
        if let Some(slice) = snapshot
            .slices
            .get(&own)
            .filter(|s| *s.service == *own.name)
        {
            let places = slice.endpoints.iter().flat_map(|endpoint| {
                let ports = slice.ports.iter().map(|port| port.port);
                ports.map(move |port| SocketAddr::new(endpoint.address, port))
            });
            servers.extend(places);
        }
        servers.sort_unstable();
        servers.dedup();
        Self {
            nodes,
            pods: pods
                .map(|(cidr, node, _)| (cidr, node.name.clone()))
                .collect(),
            servers,
            nameservers: view.nameservers.clone(),
            config: config.protect.clone(),
        }
    }

    /// The owner of an address, whatever the port; `None` if it has no known owner.
    pub fn whose(&self, address: IpAddr) -> Option<Whose> {
        let address = address.to_canonical();
        if is_hub(address) {
            return Some(Whose::Hub);
        }
        if let Some(what) = special(address) {
            return Some(Whose::Special(what));
        }
        if self.servers.iter().any(|at| at.ip() == address) {
            return Some(Whose::Server);
        }
        if self.nameservers.contains(&address) {
            return Some(Whose::Nameserver);
        }
        if self
            .config
            .given
            .iter()
            .any(|place| place.address == address)
        {
            return Some(Whose::Protected);
        }
        self.node(address).cloned()
    }

    /// Every address that can be listed, and its owner. Some addresses come twice.
    pub fn listed(&self) -> impl Iterator<Item = (IpAddr, Whose)> {
        let nodes = self.nodes.iter().map(|(address, _)| *address);
        let servers = self.servers.iter().map(SocketAddr::ip);
        let given = self.config.given.iter().map(|place| place.address);
        let nameservers = self.nameservers.iter().copied();
        let ours = [
            HUB_V4.into(),
            HUB_V6.into(),
            SELF_TEST_V4.ip(),
            SELF_TEST_V6.ip(),
        ];
        let all = nodes
            .chain(servers)
            .chain(nameservers)
            .chain(given)
            .chain(ours);
        all.filter_map(|address| Some((address, self.whose(address)?)))
    }

    /// The addresses of this node.
    pub(super) fn own(&self) -> impl Iterator<Item = IpAddr> {
        let own = self
            .nodes
            .iter()
            .filter(|(_, whose)| *whose == Whose::ThisNode);
        own.map(|(address, _)| *address)
    }

    /// Whether an address is this node's.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        self.node(address) == Some(&Whose::ThisNode)
    }

    /// The Node, if an address is one's.
    pub(super) fn node(&self, address: IpAddr) -> Option<&Whose> {
        let found = self
            .nodes
            .binary_search_by(|(other, _)| other.cmp(&address));
        found.ok().map(|at| &self.nodes[at].1)
    }

    /// Why no frontend of this kind may have an address, whatever its port.
    pub(super) fn refuses(&self, kind: FrontendKind, address: IpAddr) -> Option<String> {
        if address.to_canonical() != address {
            return Some("an IPv4 address written as IPv6".to_owned());
        }
        let is_external = matches!(kind, FrontendKind::ExternalIp | FrontendKind::LoadBalancer);
        let whose = match special(address) {
            Some(what) if is_external || !is_link_local(address) => Whose::Special(what),
            _ if is_external && is_hub(address) => Whose::Hub,
            _ => match self.node(address) {
                Some(whose) if kind == FrontendKind::ExternalIp => {
                    return Some(format!(
                        "{whose}, which no external IP may take: a NodePort or a load balancer serves it"
                    ));
                }
                whose => {
                    if is_external
                        && whose.is_none()
                        && let Some((cidr, node)) = self.pods.find(address)
                    {
                        let node = text::name(node);
                        return Some(format!(
                            "an address of Pods ({cidr} of Node {node}){NOBODYS}"
                        ));
                    }
                    let is_admitted = self.config.external_ips.admit(address);
                    let is_left_out = kind == FrontendKind::ExternalIp && !is_admitted;
                    return is_left_out.then(|| "left out by --external-ips".to_owned());
                }
            },
        };
        Some(whose.to_string())
    }

    /// Why this agent must not listen on a TCP port of all addresses of this node for a Service. The address of an
    /// apiserver does not matter: one on this node may not be up yet, and the listener would take its port.
    pub(super) fn refuses_listener(&self, port: u16) -> Option<String> {
        let is_here = |address: IpAddr| address.is_loopback() || self.is_own(address);
        let mut given = self.config.given.iter();
        if given.any(|place| place.port.map_or(is_here(place.address), |own| own == port)) {
            return Some(Whose::Protected.to_string());
        }
        if self.servers.iter().any(|server| server.port() == port) {
            return Some("a port of an apiserver".to_owned());
        }
        if DNS_PORTS.contains(&port) && self.nameservers.iter().copied().any(is_here) {
            return Some(Whose::Nameserver.to_string());
        }
        self.is_lifeline(port)
            .then(|| "a port by which the node is reached".to_owned())
    }

    fn is_lifeline(&self, port: u16) -> bool {
        let all = [&HUB_PORTS[..], &NODE_PORTS[..], &self.config.agent_ports];
        all.iter().any(|ports| ports.contains(&port))
    }

    /// Why no frontend of this kind may have an address and port. `is_apiserver`: the frontend is of the Service
    /// default/kubernetes, whose ClusterIP Pods find in their environment as the apiserver's.
    pub(super) fn refuses_at(
        &self,
        kind: FrontendKind,
        at: SocketAddr,
        is_apiserver: bool,
    ) -> Option<String> {
        let is_node_port = kind == FrontendKind::NodePort;
        let is_cluster_ip = kind == FrontendKind::ClusterIp;
        // A NodePort also answers at every loopback address of its family.
        let answers_at = |address: IpAddr| {
            let is_loopback = address.is_loopback() && address.is_ipv4() == at.is_ipv4();
            address == at.ip() || is_node_port && is_loopback
        };
        let told = |whose: Whose, address: IpAddr| match address == at.ip() {
            true => whose.to_string(),
            false => format!("{whose} ({address}): NodePorts answer on loopback, too"),
        };
        let mut given = self.config.given.iter();
        let is_given = |place: &&Place| {
            answers_at(place.address) && place.port.is_none_or(|port| port == at.port())
        };
        if let Some(place) = given.find(is_given) {
            return Some(told(Whose::Protected, place.address));
        }
        let mut servers = self.servers.iter();
        let is_server = |place: &&SocketAddr| place.port() == at.port() && answers_at(place.ip());
        let server = servers.find(is_server);
        if let Some(server) = server.filter(|_| !(is_cluster_ip && is_apiserver)) {
            return Some(told(Whose::Server, server.ip()));
        }
        if DNS_PORTS.contains(&at.port())
            && matches!(kind, FrontendKind::ExternalIp | FrontendKind::NodePort)
            && let Some(nameserver) = self.nameservers.iter().find(|one| answers_at(**one))
        {
            return Some(told(Whose::Nameserver, *nameserver));
        }
        let is_hub_port = HUB_PORTS.contains(&at.port());
        if is_cluster_ip {
            return (is_hub(at.ip()) && is_hub_port).then(|| Whose::Hub.to_string());
        }
        let whose = match is_node_port {
            true => &Whose::ThisNode,
            false => self.node(at.ip())?,
        };
        self.is_lifeline(at.port())
            .then(|| format!("{whose}, at a port by which the node is reached"))
    }
}

/// podCIDRs that say nothing of where Pods are, because Nodes are there.
pub(super) fn wrong_pod_cidrs(snapshot: &Snapshot) -> impl Iterator<Item = Rejection> {
    let wrong = pod_cidrs(snapshot).filter(|(_, _, is_wrong)| *is_wrong);
    let mut places = snapshot.places();
    wrong.map(move |(cidr, node, _)| {
        let reason = format!(
            "podCIDR {cidr} has addresses of Nodes in it, so external IPs inside are not taken for those of Pods: give its \
             Pods another range"
        );
        places.reject(Kind::Node, &NamespacedName::new("", node.name.clone()), reason)
    })
}

pub(super) fn is_hub(address: IpAddr) -> bool {
    address == IpAddr::V4(HUB_V4) || address == IpAddr::V6(HUB_V6)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// What kind of address it is, if no host of a network can have it. The apiserver refuses most of them as well
/// (ValidateNonSpecialIP), but manifests in a file have passed no apiserver.
pub(super) fn special(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() || matches!(address, IpAddr::V4(v4) if v4.is_broadcast()) {
        Some("a multicast or broadcast address")
    } else if is_link_local(address) {
        Some("a link-local address")
    } else if [SELF_TEST_V4.ip(), SELF_TEST_V6.ip()].contains(&address) {
        Some("the address of the self-test")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
