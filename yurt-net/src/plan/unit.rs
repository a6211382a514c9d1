//! A service port as the maps see it: rows and backends of one family. And the one that is always there, the probe.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::{FrontendKey, KeyPort};
use crate::model::{AddressFamily, Protocol, TrafficPolicy};
use crate::table::{
    Backends, ClusterPrefixes, EndpointSet, Frontend, FrontendKind, Scope, ServiceEntry,
    ServiceKey, Verdict,
};

/// The frontends of one family of one service port that share their endpoints, as the maps see them.
pub(super) struct Unit {
    pub(super) family: AddressFamily,
    pub(super) rows: Vec<(FrontendKey, bool)>,
    pub(super) backends: Backends,
}

/// The units of one family: the frontends under the policy Cluster, and those under Local. A frontend whose policy changes
/// moves from one to the other, so no reader sees the endpoints of a policy that it is not under.
///
/// Sockets of this node dial, so these are the endpoints for the scope internal. A set that is empty because what is
/// usable is elsewhere (`Verdict::Drop`) is refused as one with no endpoint is.
pub(super) fn units(
    entry: &ServiceEntry,
    family: AddressFamily,
    prefixes: &ClusterPrefixes,
) -> [Option<Unit>; 2] {
    [TrafficPolicy::Cluster, TrafficPolicy::Local]
        .map(|policy| unit(entry, family, policy, prefixes))
}

/// The rows and backends of the frontends with this policy; `None` when no row is needed.
fn unit(
    entry: &ServiceEntry,
    family: AddressFamily,
    policy: TrafficPolicy,
    prefixes: &ClusterPrefixes,
) -> Option<Unit> {
    let protocol = entry.key.protocol;
    if protocol == Protocol::Sctp {
        return None;
    }
    let is_ours = |frontend: &&Frontend| {
        AddressFamily::from(frontend.address) == family
            && entry.policy(frontend.kind, Scope::Internal) == policy
    };
    let mut rows = Vec::new();
    for frontend in entry.frontends.iter().filter(is_ours) {
        let port = KeyPort::Port(protocol, frontend.port);
        // A ClusterIP without endpoints is refused by what is known of its address.
        let is_refused_by_address = frontend.kind == FrontendKind::ClusterIp
            && entry.verdict(frontend, Scope::Internal) == Verdict::Refuse
            && prefixes.contain(frontend.address);
        if !is_refused_by_address {
            rows.push((
                FrontendKey {
                    address: frontend.address,
                    port,
                },
                false,
            ));
        }
        if frontend.kind == FrontendKind::NodePort {
            let address = match family {
                AddressFamily::V4 => Ipv4Addr::LOCALHOST.into(),
                AddressFamily::V6 => Ipv6Addr::LOCALHOST.into(),
            };
            let loopback = (FrontendKey { address, port }, true);
            if !rows.contains(&loopback) {
                rows.push(loopback);
            }
        }
    }
    let set = match family {
        AddressFamily::V4 => &entry.v4,
        AddressFamily::V6 => &entry.v6,
    };
    let backends = match policy {
        TrafficPolicy::Cluster => set.cluster.clone(),
        TrafficPolicy::Local => set.local.clone(),
    };
    (!rows.is_empty()).then_some(Unit {
        family,
        rows,
        backends,
    })
}

/// The ClusterIPs that need a row of their own to be known.
pub(super) fn known_addresses<'a>(
    entry: &'a ServiceEntry,
    prefixes: &'a ClusterPrefixes,
) -> impl Iterator<Item = IpAddr> + 'a {
    entry
        .frontends
        .iter()
        .filter(|frontend| frontend.kind == FrontendKind::ClusterIp)
        .map(|frontend| frontend.address)
        .filter(|address| !prefixes.are_service_cidrs && prefixes.contain(*address))
}

/// Where the self-test dials, by UDP: the IPv4 dummy address of RFC 7600. Its row leads to the discard port of loopback.
pub const PROBE_V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)), 9);
/// See [`PROBE_V4`]; an address of the discard prefix of RFC 6666.
pub const PROBE_V6: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 9)), 9);

/// The service behind [`PROBE_V4`] and [`PROBE_V6`]; it sorts before all others.
pub(super) fn probe() -> Arc<ServiceEntry> {
    let frontend = |at: SocketAddr| Frontend {
        kind: FrontendKind::ExternalIp,
        address: at.ip(),
        port: at.port(),
    };
    let loopback = |address: IpAddr| EndpointSet::cluster([SocketAddr::new(address, 9)]);
    let key = ServiceKey {
        namespace: Arc::default(),
        name: "yurt-net-probe".into(),
        port: Arc::default(),
        protocol: Protocol::Udp,
    };
    Arc::new(ServiceEntry {
        frontends: [frontend(PROBE_V4), frontend(PROBE_V6)].into(),
        v4: loopback(Ipv4Addr::LOCALHOST.into()),
        v6: loopback(Ipv6Addr::LOCALHOST.into()),
        ..ServiceEntry::new(key)
    })
}
