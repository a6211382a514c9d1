//! The addresses at which clients reach a Service on this node.
//!
//! Pure. In: a `Service`, the own `Node`, `NodeView`. Out: the `Frontend`s that the Service asks for; `conflicts`
//! decides which it gets. Rules in order: (1) a Service has the families of its ClusterIPs and no others; (2) ClusterIP
//! and ExternalIP always, LoadBalancer and NodePort by type; (3) no LoadBalancer frontend if the Service is discarded;
//! only the load balancer addresses that PoolServices give to this pool, if there are any; neither LoadBalancer nor
//! NodePort if `listen` leaves this pool out; (4) a NodePort is on the node's primary address of each family, present
//! or last known, or on its addresses inside the operator's prefixes; (5) nothing at a protected address or port
//! (`protected`); (6) a ClusterIP that is also on an interface of this node is left to the process that listens there.
//! Reference: kubernetes/kubernetes pkg/proxy/serviceport.go and pkg/proxy/util/utils.go; openyurtio/openyurt
//! pkg/yurthub/filter/{discardcloudservice,nodeportisolation}/filter.go. Differs: those filters remove the Services of
//! (3), or leave them the addresses of all pools.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::endpoints::{has_family, shared};
use super::environment::Environment;
use super::protected::Protected;
use crate::model::{
    MAX_ADDRESSES, MAX_PORTS, PoolService, Protocol, Service, ServicePort, ServiceType, TOO_LONG,
};
use crate::table::{Frontend, FrontendKind, MAX_FRONTENDS, MAX_SOURCE_RANGES, ServiceEntry};
use crate::text;

/// Whether this proxy serves the Service at all (kube-proxy's `ShouldSkipService` and label selector).
pub(super) fn is_served(service: &Service, environment: &Environment) -> bool {
    let is_never_served = service.service_type == ServiceType::ExternalName
        || service.cluster_ips.is_empty()
        || service.is_proxied_elsewhere
        || is_of_the_cloud(service);
    let is_dropped = environment.compat_drop_service
        && (is_discarded(service) || !is_listened_to(service, environment));
    !is_never_served && !is_dropped
}

/// The ClusterIP Service that OpenYurt's discardcloudservice hides from every edge node.
fn is_of_the_cloud(service: &Service) -> bool {
    (&*service.name.namespace, &*service.name.name)
        == ("kube-system", "x-tunnel-server-internal-svc")
}

/// Annotation `svc.openyurt.io/discard`: edge nodes should reach the real load balancer (openyurt#447).
fn is_discarded(service: &Service) -> bool {
    service.service_type == ServiceType::LoadBalancer && service.is_discarded
}

/// Annotation `nodeport.openyurt.io/listen`: whether this pool gets the NodePorts and the load balancer.
fn is_listened_to(service: &Service, environment: &Environment) -> bool {
    let has_node_ports = matches!(
        service.service_type,
        ServiceType::NodePort | ServiceType::LoadBalancer
    );
    match (&service.listen, environment.topology.pool()) {
        (None, _) | (_, "") => true,
        (Some(listen), pool) => !has_node_ports || listens(listen, pool),
    }
}

/// The complaint about a list of pools that is too long and was not kept. Such a list names no pool, so no node serves
/// by mistake what the list may leave out.
pub(super) fn unread_listen(service: &Service) -> Option<String> {
    (service.listen.as_deref() == Some(TOO_LONG)).then(|| {
        "its annotation nodeport.openyurt.io/listen has more than 4096 bytes and is not read: its NodePorts and its load balancer \
         are served in no pool; name those that are left out, and * for the others"
            .to_owned()
    })
}

/// Whether `nodeport.openyurt.io/listen` names a pool. The grammar: pools separated by commas, `-pool` for a pool that
/// is left out, `*` for all others. If a pool has several entries, the first one counts, whatever its sign.
pub fn listens(listen: &str, pool: &str) -> bool {
    let first = |wanted: &str| {
        let mut entries = listen.split(',').map(str::trim);
        entries.find(|entry| entry.strip_prefix('-').unwrap_or(entry) == wanted)
    };
    match first(pool) {
        Some(entry) => entry == pool,
        None => first("*") == Some("*"),
    }
}

/// Whether clients reach a Service through its load balancer on this node.
pub(super) fn is_balanced_here(
    service: &Service,
    pool_services: &[Arc<PoolService>],
    environment: &Environment,
) -> bool {
    let pool = environment.topology.pool();
    service.service_type == ServiceType::LoadBalancer
        && !is_discarded(service)
        && is_listened_to(service, environment)
        && (pool_services.is_empty()
            || environment.compat_all_vips
            || pool_services.iter().any(|object| &*object.pool == pool))
}

/// The addresses of a Service's load balancer that this node serves.
fn balanced(
    service: &Service,
    pool_services: &[Arc<PoolService>],
    environment: &Environment,
) -> Vec<IpAddr> {
    if !is_balanced_here(service, pool_services, environment) {
        return Vec::new();
    }
    if pool_services.is_empty() || environment.compat_all_vips {
        return service.load_balancer_ips.to_vec();
    }
    let pool = environment.topology.pool();
    let ours = pool_services.iter().filter(|object| &*object.pool == pool);
    ours.flat_map(|object| object.load_balancer_ips.iter().copied())
        .collect()
}

/// Why this node does not serve an address and port that other nodes serve, as the Service's load balancer or NodePort.
/// `None`: the Service does not have it, or this node serves it.
pub(super) fn withheld(
    service: &Service,
    pool_services: &[&PoolService],
    environment: &Environment,
    to: SocketAddr,
    protocol: Protocol,
) -> Option<String> {
    let mut ports = service.ports.iter().filter(|p| p.protocol == protocol);
    let is_balanced = service.service_type == ServiceType::LoadBalancer
        && (service.load_balancer_ips.contains(&to.ip())
            || pool_services
                .iter()
                .any(|o| o.load_balancer_ips.contains(&to.ip())))
        && ports.clone().any(|port| port.port == to.port());
    let is_node_port = environment.node_addresses.contains(&to.ip())
        && ports.any(|port| port.node_port == to.port());
    let pool = environment.topology.pool();
    let (namespace, name) = (&service.name.namespace, &service.name.name);
    let has_port = service
        .ports
        .iter()
        .any(|port| port.protocol == protocol && port.port == to.port());
    let protected = |kind| {
        let refuses_at = || {
            environment
                .protected
                .refuses_at(kind, to, is_apiserver(service))
        };
        let why = environment
            .refuses(service, kind, to.ip())
            .or_else(refuses_at)?;
        Some(format!(
            "{kind} of {namespace}/{name}, not served here: it is {why}"
        ))
    };
    if has_port && service.external_ips.contains(&to.ip()) && !is_balanced {
        return protected(FrontendKind::ExternalIp);
    }
    let kind = match (is_balanced, is_node_port) {
        (true, _) => FrontendKind::LoadBalancer,
        (false, true) => FrontendKind::NodePort,
        (false, false) => return None,
    };
    let why = if is_balanced && is_discarded(service) {
        "its annotation svc.openyurt.io/discard keeps it from edge nodes".to_owned()
    } else if !is_listened_to(service, environment) {
        let listen = service.listen.as_deref().unwrap_or_default();
        let listen = text::quoted(listen);
        format!("its annotation nodeport.openyurt.io/listen {listen} leaves out pool {pool}")
    } else if is_balanced && !pool_services.is_empty() {
        format!("its PoolServices do not give it to pool {pool}")
    } else {
        return protected(kind);
    };
    Some(format!(
        "{kind} of {namespace}/{name}, not served here: {why}"
    ))
}

/// `spec.loadBalancerSourceRanges`, sorted. A family with a prefix of length 0 admits all clients, and has no ranges
/// here (kube-proxy `newBaseServiceInfo`).
pub(super) fn source_ranges(service: &Service) -> Arc<[IpNetwork]> {
    let is_open = |is_v4: bool| {
        let mut ranges = service.source_ranges.iter();
        ranges.any(|range| range.prefix() == 0 && range.is_ipv4() == is_v4)
    };
    let (is_open_v4, is_open_v6) = (is_open(true), is_open(false));
    let is_limited = |range: &IpNetwork| match range {
        IpNetwork::V4(_) => !is_open_v4,
        IpNetwork::V6(_) => !is_open_v6,
    };
    let ranges = service.source_ranges.iter().copied();
    let mut ranges: Vec<IpNetwork> = ranges.filter(is_limited).collect();
    ranges.sort_unstable();
    ranges.dedup();
    shared(ranges)
}

/// The ClusterIPs that are also on an interface of this machine, sorted, for `ServiceTable::on_node`.
pub(super) fn on_node(
    services: &[Arc<ServiceEntry>],
    local: Option<&BTreeSet<IpAddr>>,
) -> Vec<IpAddr> {
    let Some(local) = local else {
        return Vec::new();
    };
    let frontends = services.iter().flat_map(|entry| &entry.frontends);
    let cluster_ips = frontends.filter(|frontend| frontend.kind == FrontendKind::ClusterIp);
    let here = cluster_ips.map(|frontend| frontend.address);
    let here: BTreeSet<IpAddr> = here.filter(|address| local.contains(address)).collect();
    here.into_iter().collect()
}

/// The addresses of one Service. Every port is served on all of them, except where it is protected.
pub(super) struct ServiceAddresses<'a> {
    fixed: Vec<(FrontendKind, IpAddr)>,
    node: Vec<IpAddr>,
    protected: &'a Protected,
    is_apiserver: bool,
}

impl<'a> ServiceAddresses<'a> {
    /// Collects the addresses; `refused` gets the reasons of those that are left out. `ranges` are the Service's
    /// [`source_ranges`].
    pub(super) fn new(
        service: &Service,
        ranges: &[IpNetwork],
        pool_services: &[Arc<PoolService>],
        environment: &'a Environment,
        refused: &mut Vec<String>,
    ) -> Self {
        let has_node_ports = matches!(
            service.service_type,
            ServiceType::NodePort | ServiceType::LoadBalancer
        ) && is_listened_to(service, environment);
        let balanced = balanced(service, pool_services, environment);
        let kinds = [
            (FrontendKind::ClusterIp, &*service.cluster_ips),
            (FrontendKind::ExternalIp, &*service.external_ips),
            (FrontendKind::LoadBalancer, &*balanced),
        ];
        let limited: BTreeSet<IpAddr> = balanced.iter().copied().collect();
        let admitted_v4 = ranges.iter().filter(|range| range.is_ipv4()).count();
        let mut fixed = Vec::new();
        for (kind, addresses) in kinds {
            // Limited first, because the work below is repeated for each change of a slice.
            if addresses.len() > MAX_ADDRESSES {
                refused.push(format!(
                    "it has more than {MAX_ADDRESSES} addresses of kind {kind}: the others are not served here"
                ));
            }
            for &address in addresses.iter().take(MAX_ADDRESSES) {
                // An external IP that is also the load balancer's has the same source ranges.
                let is_balanced = kind != FrontendKind::ClusterIp && limited.contains(&address);
                let admitted = match address.is_ipv4() {
                    true => admitted_v4,
                    false => ranges.len() - admitted_v4,
                };
                match environment.refuses(service, kind, address) {
                    Some(what) => refused.push(format!("{kind} {address} is {what}")),
                    None if !has_family(service, address) => {}
                    None if is_balanced && admitted > MAX_SOURCE_RANGES => refused.push(format!(
                        "{kind} {address} is not served here: it admits more than {MAX_SOURCE_RANGES} source ranges; merge some"
                    )),
                    None => fixed.push((kind, address)),
                }
            }
        }
        let for_each_port = MAX_FRONTENDS / service.ports.len().clamp(1, MAX_PORTS);
        if fixed.len() > for_each_port {
            let count = fixed.len();
            refused.push(format!(
                "{count} addresses of {} ports are more than {MAX_FRONTENDS} frontends: only its first {for_each_port} \
                 addresses are served here",
                service.ports.len().min(MAX_PORTS)
            ));
            fixed.truncate(for_each_port);
        }
        let node = environment.node_addresses.iter().copied();
        let node = node.filter(|&address| has_node_ports && has_family(service, address));
        Self {
            fixed,
            node: node.collect(),
            protected: &environment.protected,
            is_apiserver: is_apiserver(service),
        }
    }

    /// The frontends of one port, sorted; `refused` gets the reasons of those that are left out.
    pub(super) fn frontends(&self, port: &ServicePort, refused: &mut Vec<String>) -> Vec<Frontend> {
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
        frontends.retain(|frontend| {
            let at = SocketAddr::new(frontend.address, frontend.port);
            let kind = frontend.kind;
            let why = self.protected.refuses_at(kind, at, self.is_apiserver);
            refused.extend(why.iter().map(|why| format!("{kind} {at} is {why}")));
            why.is_none()
        });
        frontends.sort_unstable();
        frontends.dedup();
        frontends
    }
}

/// The Service of the apiservers: default/kubernetes.
pub(super) fn is_apiserver(service: &Service) -> bool {
    (&*service.name.namespace, &*service.name.name) == ("default", "kubernetes")
}

#[cfg(test)]
mod tests;
