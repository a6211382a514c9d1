//! A service port as the maps see it: rows and backends of one family. And the one that is always there, the probe.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::{FrontendKey, KeyPort};
use crate::model::{AddressFamily, Protocol};
use crate::table::{
    Closure, ClusterPrefixes, EndpointSet, Frontend, FrontendKind, ServiceEntry, ServiceKey,
    Verdict,
};

/// One family of one service port, as the maps see it.
pub(super) struct Unit {
    pub(super) family: AddressFamily,
    pub(super) rows: Vec<(FrontendKey, bool)>,
    pub(super) backends: Arc<[SocketAddr]>,
}

/// The rows and backends of one family; `None` when no row is needed.
pub(super) fn unit(
    entry: &ServiceEntry,
    family: AddressFamily,
    prefixes: &ClusterPrefixes,
) -> Option<Unit> {
    let protocol = entry.key.protocol;
    if protocol == Protocol::Sctp {
        return None;
    }
    let is_ours = |frontend: &&Frontend| AddressFamily::from(frontend.address) == family;
    let mut rows = Vec::new();
    for frontend in entry.frontends.iter().filter(is_ours) {
        let port = KeyPort::Port(protocol, frontend.port);
        // A ClusterIP without endpoints is refused by what is known of its address.
        let is_refused_by_address = frontend.kind == FrontendKind::ClusterIp
            && entry.verdict(frontend.address) == Verdict::Refuse
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
    let backends = match family {
        AddressFamily::V4 => entry.v4.selected.clone(),
        AddressFamily::V6 => entry.v6.selected.clone(),
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
    let loopback = |address: IpAddr| EndpointSet {
        selected: Arc::new([SocketAddr::new(address, 9)]),
        dropped: Vec::new(),
    };
    Arc::new(ServiceEntry {
        key: ServiceKey {
            namespace: String::new(),
            name: "yurt-net-probe".to_owned(),
            port: String::new(),
            protocol: Protocol::Udp,
        },
        closure: Closure::None,
        frontends: vec![frontend(PROBE_V4), frontend(PROBE_V6)],
        v4: loopback(Ipv4Addr::LOCALHOST.into()),
        v6: loopback(Ipv6Addr::LOCALHOST.into()),
    })
}
