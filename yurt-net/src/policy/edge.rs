//! The addresses at which clients reach a Service on this node.
//!
//! Pure. In: a `Service`, the own `Node`, `NodeView`. Out: its `Frontend`s, conflicts, and the prefixes of the ClusterIPs.
//! Rules in order: (1) a Service has the families of its ClusterIPs, no others; (2) ClusterIP and ExternalIP always,
//! LoadBalancer and NodePort by type; (3) a NodePort is on the node's primary address of each family; (4) of two Services
//! with one address, port and protocol the first by name keeps it. Reference: kubernetes/kubernetes
//! pkg/proxy/serviceport.go and pkg/proxy/util/utils.go. Differs: there, the rules of both Services exist.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::Arc;

use super::{NodeView, PolicyConfig};
use crate::model::{
    AddressFamily, NamespacedName, Protocol, Rejection, Service, ServicePort, ServiceType, Snapshot,
};
use crate::table::{Frontend, FrontendKind, ServiceEntry};

/// Whether this proxy serves the Service at all (kube-proxy's `ShouldSkipService` and label selector).
pub(super) fn is_served(service: &Service) -> bool {
    service.service_type != ServiceType::ExternalName
        && !service.cluster_ips.is_empty()
        && !service.is_proxied_elsewhere
}

/// The addresses that NodePorts are served on: at most one of each family.
pub(super) fn node_addresses(
    snapshot: &Snapshot,
    config: &PolicyConfig,
    view: &NodeView,
    rejections: &mut Vec<Rejection>,
) -> Vec<IpAddr> {
    let node = snapshot.nodes.get(&config.node);
    let families = [
        (AddressFamily::V4, view.default_source.0.map(IpAddr::V4)),
        (AddressFamily::V6, view.default_source.1.map(IpAddr::V6)),
    ];
    let mut addresses = Vec::new();
    for (family, default_source) in families {
        let status = node.and_then(|node| {
            let mut all = node.internal_ips.iter().chain(&node.external_ips);
            all.find(|address| AddressFamily::from(**address) == family)
                .copied()
        });
        let address = match (status, &view.local_addresses) {
            (status, None) => status,
            // Without its Node a running agent still knows where its uplink is.
            (None, Some(_)) => default_source.filter(|_| node.is_none()),
            (Some(address), Some(local)) if local.contains(&address) => Some(address),
            (Some(address), Some(_)) => {
                let instead = match default_source {
                    Some(source) => format!("{source}, the source of the default route"),
                    None => "no address: there is no default route".to_owned(),
                };
                rejections.push(snapshot.reject(
                    "Node",
                    &NamespacedName::new("", config.node.as_str()),
                    format!("status address {address} is on no interface: NodePorts use {instead}"),
                ));
                default_source
            }
        };
        addresses.extend(address);
    }
    addresses
}

/// The addresses of one Service; every port is served on them.
pub(super) struct ServiceAddresses {
    fixed: Vec<(FrontendKind, IpAddr)>,
    node: Vec<IpAddr>,
}

impl ServiceAddresses {
    /// Collects them; `refused` gets what is wrong with those that are left out.
    pub(super) fn new(
        service: &Service,
        node_addresses: &[IpAddr],
        refused: &mut Vec<String>,
    ) -> Self {
        let is_balanced = service.service_type == ServiceType::LoadBalancer;
        let has_node_ports = is_balanced || service.service_type == ServiceType::NodePort;
        let balanced: &[IpAddr] = match is_balanced {
            true => &service.load_balancer_ips,
            false => &[],
        };
        let kinds = [
            (FrontendKind::ClusterIp, service.cluster_ips.as_slice()),
            (FrontendKind::ExternalIp, service.external_ips.as_slice()),
            (FrontendKind::LoadBalancer, balanced),
        ];
        let mut fixed = Vec::new();
        for (kind, addresses) in kinds {
            for &address in addresses {
                match unusable(kind, address) {
                    Some(what) => refused.push(format!("{kind} {address} is {what}")),
                    None if !has_family(service, address) => {}
                    None => fixed.push((kind, address)),
                }
            }
        }
        let node = node_addresses.iter().copied();
        let node = node.filter(|&address| has_node_ports && has_family(service, address));
        Self {
            fixed,
            node: node.collect(),
        }
    }

    /// The frontends of one port, sorted.
    pub(super) fn frontends(&self, port: &ServicePort) -> Vec<Frontend> {
        let fixed = self.fixed.iter().map(|&(kind, address)| Frontend {
            kind,
            address,
            port: port.port,
        });
        let node = self.node.iter().filter(|_| port.node_port != 0);
        let node = node.map(|&address| Frontend {
            kind: FrontendKind::NodePort,
            address,
            port: port.node_port,
        });
        let mut frontends: Vec<Frontend> = fixed.chain(node).collect();
        frontends.sort_unstable();
        frontends.dedup();
        frontends
    }
}

/// A single-stack Service does not exist in the other family, whatever other addresses it lists
/// (kube-proxy `GetClusterIPByFamily`).
pub(super) fn has_family(service: &Service, address: IpAddr) -> bool {
    let mut cluster_ips = service.cluster_ips.iter();
    cluster_ips.any(|ip| ip.is_ipv4() == address.is_ipv4())
}

/// Addresses that would take over traffic which is no Service's. The apiserver refuses most of them too
/// (ValidateNonSpecialIP); manifests in a file have passed no apiserver.
fn unusable(kind: FrontendKind, address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() || matches!(address, IpAddr::V4(v4) if v4.is_broadcast()) {
        Some("a multicast or broadcast address")
    } else if address.to_canonical() != address {
        Some("an IPv4 address written as IPv6")
    } else if link_local && kind == FrontendKind::ExternalIp {
        Some("a link-local address")
    } else {
        None
    }
}

/// A frontend that a Service does not get because another one has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lost {
    /// Index of the loser in the table.
    pub(super) loser: usize,
    /// Index of the service port that keeps the frontend.
    pub(super) winner: usize,
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

/// The frontends that more than one entry claims. A ClusterIP wins, because the cluster gave it and an external address
/// is whatever somebody wrote (CVE-2020-8554); else the lower index, for entries are in the table's order.
pub(super) fn conflicts(entries: &[Arc<ServiceEntry>]) -> Vec<Lost> {
    let mut claims: Vec<(IpAddr, u16, Protocol, bool, usize)> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        claims.extend(entry.frontends.iter().map(|f| {
            let is_given = f.kind != FrontendKind::ClusterIp;
            (f.address, f.port, entry.key.protocol, is_given, index)
        }));
    }
    claims.sort_unstable();
    let mut lost = Vec::new();
    for group in claims.chunk_by(|a, b| (a.0, a.1, a.2) == (b.0, b.1, b.2)) {
        let winner = group[0].4;
        lost.extend(
            group
                .iter()
                .filter(|claim| claim.4 != winner)
                .map(|claim| Lost {
                    loser: claim.4,
                    winner,
                    address: claim.0,
                    port: claim.1,
                }),
        );
    }
    lost.sort_unstable();
    lost.dedup();
    lost
}

#[cfg(test)]
mod tests;
