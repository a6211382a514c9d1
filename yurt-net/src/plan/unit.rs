//! A service port as the maps see it: rows and backends of one family. And the self-test's, which is always there.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::op::{FrontendKey, FrontendRow, KeyPort, Outside, ServedSet, Terms};
use crate::model::{AddressFamily, Protocol, TrafficPolicy};
use crate::table::{
    EndpointSet, Frontend, FrontendKind, Scope, ServiceEntry, ServiceKey, ServiceTable,
};

/// The frontends of one family of one service port that share their endpoints, as the maps see them.
pub(super) struct Unit {
    pub(super) family: AddressFamily,
    /// Their values lack the index of the service.
    pub(super) rows: Vec<(FrontendKey, FrontendRow)>,
    pub(super) set: ServedSet,
}

/// The most backends that a publish word counts. Further endpoints of a service take no traffic.
const MAX_BACKENDS: usize = u16::MAX as usize;

/// A group of frontends that share their endpoints. A frontend that changes its group moves to another entry, so no
/// reader sees it with the endpoints or ranges of the other group.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    /// Policy Cluster.
    Cluster,
    /// Policy Local.
    Local,
    /// Policy Cluster, for the clients in some ranges.
    Limited,
    /// Policy Local, for clients outside only: those of this node have another policy at the same frontends.
    Outside,
    /// The same, for the clients in some ranges.
    OutsideLimited,
}

impl Group {
    const ALL: [Self; 5] = [
        Self::Cluster,
        Self::Local,
        Self::Limited,
        Self::Outside,
        Self::OutsideLimited,
    ];

    /// Whose rows these are.
    fn scope(self) -> Scope {
        match self {
            Self::Cluster | Self::Local | Self::Limited => Scope::Internal,
            Self::Outside | Self::OutsideLimited => Scope::External,
        }
    }

    /// The group of a frontend for clients of `scope`; `None`: clients outside have no rows of their own there.
    fn of(entry: &ServiceEntry, frontend: &Frontend, scope: Scope) -> Option<Self> {
        let is_limited = || entry.admitted(frontend).next().is_some();
        let policy = entry.policy(frontend.kind, Scope::Internal);
        Some(match (scope, policy) {
            (Scope::Internal, TrafficPolicy::Local) => Self::Local,
            (Scope::Internal, TrafficPolicy::Cluster) if is_limited() => Self::Limited,
            (Scope::Internal, TrafficPolicy::Cluster) => Self::Cluster,
            (Scope::External, _) if !is_apart(entry, frontend) => return None,
            (Scope::External, _) if is_limited() => Self::OutsideLimited,
            (Scope::External, _) => Self::Outside,
        })
    }
}

/// Whether an external frontend has the address and port of its own Service's ClusterIP: then the ClusterIP's answer
/// holds for both.
fn is_cluster_ip_too(entry: &ServiceEntry, frontend: &Frontend, table: &ServiceTable) -> bool {
    let kind = FrontendKind::ClusterIp;
    frontend.kind != kind
        && !table.is_on_node(frontend.address)
        && entry
            .frontends
            .binary_search(&Frontend { kind, ..*frontend })
            .is_ok()
}

/// Whether clients outside get other endpoints at a frontend than those of this node. Then the external policy is
/// Local, so their address is kept.
fn is_apart(entry: &ServiceEntry, frontend: &Frontend) -> bool {
    let policy = |scope| entry.policy(frontend.kind, scope);
    policy(Scope::External) != policy(Scope::Internal)
}

/// The units of one family.
pub(super) fn units(
    entry: &ServiceEntry,
    family: AddressFamily,
    table: &ServiceTable,
) -> [Option<Unit>; Group::ALL.len()] {
    Group::ALL.map(|group| unit(entry, family, group, table))
}

/// The rows and backends of the frontends of a group; `None` when no row is needed.
fn unit(
    entry: &ServiceEntry,
    family: AddressFamily,
    group: Group,
    table: &ServiceTable,
) -> Option<Unit> {
    let protocol = entry.key.protocol;
    let scope = group.scope();
    let is_external = scope == Scope::External;
    if protocol == Protocol::Sctp || is_external && !table.serves_packets {
        return None;
    }
    let is_ours = |frontend: &&Frontend| {
        AddressFamily::from(frontend.address) == family
            && Group::of(entry, frontend, scope) == Some(group)
            && !is_cluster_ip_too(entry, frontend, table)
    };
    let (mut rows, mut known) = (Vec::new(), BTreeSet::new());
    for frontend in entry.frontends.iter().filter(is_ours) {
        let port = KeyPort::Port(scope, protocol, frontend.port);
        let address = frontend.address;
        let key = FrontendKey { address, port };
        // An external IP may be the load balancer's address too; loopback is added below.
        let is_left_alone = address.is_loopback() || table.leaves_alone(frontend);
        if !is_left_alone && known.insert(key) {
            let outside = outside(entry, frontend, scope, table);
            let row = FrontendRow {
                outside,
                ..FrontendRow::default()
            };
            rows.push((key, row));
        }
        if frontend.kind == FrontendKind::NodePort && !is_external {
            let address = match family {
                AddressFamily::V4 => Ipv4Addr::LOCALHOST.into(),
                AddressFamily::V6 => Ipv6Addr::LOCALHOST.into(),
            };
            let key = FrontendKey { address, port };
            if known.insert(key) {
                let row = FrontendRow {
                    is_node_only: true,
                    ..FrontendRow::default()
                };
                rows.push((key, row));
            }
        }
    }
    let first = entry.frontends.iter().find(is_ours)?;
    let ranges = disjoint(entry.admitted(first));
    let endpoints = match family {
        AddressFamily::V4 => &entry.v4,
        AddressFamily::V6 => &entry.v6,
    };
    let backends = match group {
        Group::Cluster | Group::Limited => endpoints.cluster.clone(),
        Group::Local | Group::Outside | Group::OutsideLimited => endpoints.local.clone(),
    };
    let backends = match backends.len() > MAX_BACKENDS {
        true => backends.iter().take(MAX_BACKENDS).collect(),
        false => backends,
    };
    let affinity_identity = match entry.affinity_seconds {
        0 => 0,
        _ => identity(&entry.key),
    };
    let terms = Terms {
        ranges,
        affinity_seconds: entry.affinity_seconds,
        affinity_identity,
        is_drop: backends.is_empty() && endpoints.has_any,
    };
    (!rows.is_empty()).then(|| Unit {
        family,
        rows,
        set: ServedSet::new(backends, terms),
    })
}

/// What clients outside get at a row for clients of `scope`. The rows of the self-test, which are in no namespace, lead
/// to loopback, where no other client comes.
fn outside(
    entry: &ServiceEntry,
    frontend: &Frontend,
    scope: Scope,
    table: &ServiceTable,
) -> Outside {
    let is_self_test = entry.key.namespace.is_empty();
    match scope {
        Scope::Internal if table.serves_packets && !is_self_test => {
            match is_apart(entry, frontend) {
                true => Outside::Apart,
                false => Outside::Same,
            }
        }
        Scope::Internal | Scope::External => Outside::No,
    }
}

/// The same addresses as sorted ranges, no range inside another and without host bits: programs use a binary search.
fn disjoint<'a>(ranges: impl Iterator<Item = &'a IpNetwork>) -> Vec<IpNetwork> {
    let whole = ranges.filter_map(|range| IpNetwork::new(range.network(), range.prefix()).ok());
    let mut ranges: Vec<IpNetwork> = whole.collect();
    ranges.sort_unstable_by_key(|range| (range.network(), range.prefix()));
    let mut last: Option<IpNetwork> = None;
    ranges.retain(|range| {
        let is_inside = last.is_some_and(|last| last.contains(range.network()));
        last = last.filter(|_| is_inside).or(Some(*range));
        !is_inside
    });
    ranges
}

/// 47 bits that tell one service port from all others, and stay the same from one agent to the next: FNV-1a, mixed.
/// Among ten thousand ports with affinity, two are alike once in three million clusters.
fn identity(key: &ServiceKey) -> u64 {
    let ServiceKey {
        namespace,
        name,
        port,
        protocol,
    } = key;
    let protocol: &[u8] = match protocol {
        Protocol::Tcp => b"TCP",
        Protocol::Udp => b"UDP",
        Protocol::Sctp => b"SCTP",
    };
    let parts = [
        namespace.as_bytes(),
        name.as_bytes(),
        port.as_bytes(),
        protocol,
    ];
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        // No name has a slash: it ends each part.
        for byte in part.iter().chain(b"/") {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 17
}

/// The ClusterIPs that need a row of their own: to be known, or to be left alone.
pub(super) fn known_addresses<'a>(
    entry: &'a ServiceEntry,
    table: &'a ServiceTable,
) -> impl Iterator<Item = IpAddr> + 'a {
    let prefixes = &table.cluster_prefixes;
    entry
        .frontends
        .iter()
        .filter(|frontend| frontend.kind == FrontendKind::ClusterIp)
        .map(|frontend| frontend.address)
        .filter(|address| prefixes.contain(*address))
        .filter(|address| !prefixes.are_service_cidrs || table.is_on_node(*address))
}

/// Where the self-test dials, by UDP: the IPv4 dummy address of RFC 7600. Its row leads to the discard port of
/// loopback.
pub const SELF_TEST_V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)), 9);
/// The same for IPv6: an address of the discard prefix of RFC 6666.
pub const SELF_TEST_V6: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 9)), 9);

/// The service behind [`SELF_TEST_V4`] and [`SELF_TEST_V6`]; it sorts before all others.
pub(super) fn self_test() -> Arc<ServiceEntry> {
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
        frontends: [frontend(SELF_TEST_V4), frontend(SELF_TEST_V6)].into(),
        v4: loopback(Ipv4Addr::LOCALHOST.into()),
        v6: loopback(Ipv6Addr::LOCALHOST.into()),
        ..ServiceEntry::new(key)
    })
}
