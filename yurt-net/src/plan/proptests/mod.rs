//! Plans against the code that the kernel runs: after every single write, what does a client get?

mod losses;
mod room;
mod safety;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use proptest::prelude::*;
use yurt_ebpf::abi::{
    Counter, FRONTEND_OUTSIDE, FRONTEND_OUTSIDE_APART, FrontendKey4, FrontendKey6, FrontendValue,
    NetnsRow, PublishWord, SCOPE_EXTERNAL, SCOPE_INTERNAL,
};
use yurt_ebpf::select::{Resolved, Tables, resolve4, resolve6, stamp};

use super::*;
use crate::dataplane::Dataplane;
use crate::dataplane::service::memory::MemoryDataplane;
use crate::model::{Protocol, TrafficPolicy};
use crate::table::{EndpointSet, Frontend, FrontendKind, Scope};

const ROOMY: Capacity = Capacity {
    frontends4: 256,
    frontends6: 256,
    services: 192,
    slots4: 512,
    slots6: 512,
};

/// What a client gets at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Pass,
    Refuse,
    Drop,
    Backends(Vec<SocketAddr>),
}

type Dialled = (IpAddr, u16, Protocol);

/// A key as the programs look it up.
#[derive(Clone, Copy)]
enum LookedUp {
    V4(FrontendKey4),
    V6(FrontendKey6),
}

impl LookedUp {
    fn new((address, port, protocol): Dialled, scope: Scope) -> Self {
        let (port_be, protocol) = (port.to_be_bytes(), protocol.number());
        let scope = match scope {
            Scope::Internal => SCOPE_INTERNAL,
            Scope::External => SCOPE_EXTERNAL,
        };
        match address {
            IpAddr::V4(addr) => Self::V4(FrontendKey4 {
                addr: addr.octets(),
                port_be,
                protocol,
                scope,
            }),
            IpAddr::V6(addr) => Self::V6(FrontendKey6 {
                addr: addr.octets(),
                port_be,
                protocol,
                scope,
                pad: [0; 4],
            }),
        }
    }

    fn value(&self, maps: &MemoryDataplane) -> Option<FrontendValue> {
        match self {
            Self::V4(key) => maps.frontend4(key),
            Self::V6(key) => maps.frontend6(key),
        }
    }

    fn resolve(&self, maps: &MemoryDataplane) -> Resolved {
        match self {
            Self::V4(key) => resolve4(maps, maps, key),
            Self::V6(key) => resolve6(maps, maps, key),
        }
    }
}

/// Which row a client of `scope` comes to, as the programs find it: those outside look at the internal one first.
enum Found {
    Row(LookedUp),
    /// To this client, it is no frontend.
    Nothing,
    /// The row that the internal one speaks of is not there.
    Lost,
}

fn find(maps: &MemoryDataplane, dialled: Dialled, scope: Scope) -> Found {
    let internal = LookedUp::new(dialled, Scope::Internal);
    let value = internal.value(maps).filter(|_| scope == Scope::External);
    // An address without a row is a miss for everybody.
    let Some(value) = value else {
        return Found::Row(internal);
    };
    if value.flags() & FRONTEND_OUTSIDE_APART != 0 {
        let external = LookedUp::new(dialled, Scope::External);
        return match external.value(maps) {
            Some(_) => Found::Row(external),
            None => Found::Lost,
        };
    }
    match value.flags() & FRONTEND_OUTSIDE {
        0 => Found::Nothing,
        _ => Found::Row(internal),
    }
}

fn resolve(maps: &MemoryDataplane, dialled: Dialled, scope: Scope) -> Resolved {
    match find(maps, dialled, scope) {
        Found::Row(key) => key.resolve(maps),
        Found::Nothing => Resolved::Pass,
        Found::Lost => Resolved::Refuse(Counter::RefuseInconsistent),
    }
}

fn backends(maps: &MemoryDataplane, is_v4: bool, word: PublishWord) -> Vec<SocketAddr> {
    (word.base()..word.base() + u32::from(word.count()))
        .map(|slot| {
            if is_v4 {
                let backend = Tables::backend4(maps, slot).unwrap();
                SocketAddr::new(backend.addr.into(), u16::from_be_bytes(backend.port_be))
            } else {
                let backend = Tables::backend6(maps, slot).unwrap();
                SocketAddr::new(backend.addr.into(), u16::from_be_bytes(backend.port_be))
            }
        })
        .collect()
}

const SCOPES: [Scope; 2] = [Scope::Internal, Scope::External];

fn answer(maps: &MemoryDataplane, dialled: Dialled, scope: Scope) -> Answer {
    match resolve(maps, dialled, scope) {
        Resolved::Pass => Answer::Pass,
        Resolved::Refuse(reason) if reason.is_drop() => Answer::Drop,
        Resolved::Refuse(_) => Answer::Refuse,
        Resolved::Service(word, _) => Answer::Backends(backends(maps, dialled.0.is_ipv4(), word)),
    }
}

/// The service whose frontend it is, and that frontend.
fn owner(
    table: &ServiceTable,
    (address, port, protocol): Dialled,
) -> Option<(&ServiceEntry, &Frontend)> {
    let is_dialled = |frontend: &&Frontend| {
        let is_loopback = frontend.kind == FrontendKind::NodePort
            && address.is_loopback()
            && address.is_ipv4() == frontend.address.is_ipv4();
        frontend.port == port && (frontend.address == address || is_loopback)
    };
    let mut entries = table
        .services
        .iter()
        .filter(|entry| entry.key.protocol == protocol);
    entries.find_map(|entry| {
        let frontend = entry.frontends.iter().find(is_dialled)?;
        Some((&**entry, frontend))
    })
}

/// Who dials in every test.
const CLIENT: NetnsRow = NetnsRow {
    class: 0,
    addr4: [10, 1, 2, 3],
    addr6: [0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3],
};

/// What `entry` has for those whom `terms` admits, under its policy.
fn endpoints_on_terms_of(
    terms: &ServiceEntry,
    entry: &ServiceEntry,
    frontend: &Frontend,
    scope: Scope,
) -> Answer {
    let client: IpAddr = match frontend.address {
        IpAddr::V4(_) => CLIENT.addr4.into(),
        IpAddr::V6(_) => CLIENT.addr6.into(),
    };
    let mut ranges = terms.admitted(frontend).peekable();
    if ranges.peek().is_some() && !ranges.any(|range| range.contains(client)) {
        return Answer::Drop;
    }
    let policy = terms.policy(frontend.kind, scope);
    match whole_set(entry, frontend.address, policy) {
        Answer::Backends(none) if none.is_empty() => match entry.set(frontend.address).has_any {
            true => Answer::Drop,
            false => Answer::Refuse,
        },
        some => some,
    }
}

fn whole_set(entry: &ServiceEntry, address: IpAddr, policy: TrafficPolicy) -> Answer {
    let set = entry.set(address);
    match policy {
        TrafficPolicy::Cluster => Answer::Backends(set.cluster.to_vec()),
        TrafficPolicy::Local => Answer::Backends(set.local.to_vec()),
    }
}

/// What the endpoints are now of the service whose frontend it was, on the old terms: until its row goes or moves.
fn of_old_owner(
    old: &ServiceTable,
    new: &ServiceTable,
    dialled: Dialled,
    scope: Scope,
) -> Option<Answer> {
    let (entry, frontend) = owner(old, dialled)?;
    let mut services = new.services.iter();
    let now = services.find(|now| now.key == entry.key)?;
    Some(endpoints_on_terms_of(entry, now, frontend, scope))
}

/// What the table says a client gets.
fn expected(table: &ServiceTable, dialled: Dialled, scope: Scope) -> Answer {
    let address = dialled.0;
    // Loopback is the node's own.
    let is_served = scope == Scope::Internal || table.serves_packets && !address.is_loopback();
    match owner(table, dialled) {
        Some((_, frontend)) if table.leaves_alone(frontend) => return Answer::Pass,
        Some(_) if !is_served => return Answer::Pass,
        Some((entry, frontend)) => return endpoints_on_terms_of(entry, entry, frontend, scope),
        None if table.is_on_node(address) => return Answer::Pass,
        None => {}
    }
    let is_known = table
        .services
        .iter()
        .flat_map(|entry| &entry.frontends)
        .any(|frontend| frontend.kind == FrontendKind::ClusterIp && frontend.address == address);
    let prefixes = &table.cluster_prefixes;
    if prefixes.contain(address) && (is_known || prefixes.are_service_cidrs) {
        Answer::Refuse
    } else {
        Answer::Pass
    }
}

/// Everything that the generated tables can mention, and a little more.
fn universe() -> Vec<Dialled> {
    let mut all = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for service in 0..7u8 {
            for port in [80, 81] {
                all.push((cluster_ip4(service), port, protocol));
                all.push((cluster_ip6(service), port, protocol));
            }
            all.push((balancer4(service), 80, protocol));
            all.push((balancer6(service), 80, protocol));
            let node_port = 30000 + u16::from(service);
            for address in ["192.0.2.1", "127.0.0.1", "::1", "2001:db8::1"] {
                all.push((address.parse().unwrap(), node_port, protocol));
            }
        }
        all.push(("203.0.113.1".parse().unwrap(), 80, protocol));
    }
    all
}

/// Whoever dials any of it.
fn everybody() -> impl Iterator<Item = (Dialled, Scope)> {
    let all = universe().into_iter();
    all.flat_map(|dialled| SCOPES.map(|scope| (dialled, scope)))
}

fn cluster_ip4(service: u8) -> IpAddr {
    Ipv4Addr::new(10, 96, 0, service).into()
}

fn cluster_ip6(service: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(service)).into()
}

fn balancer4(service: u8) -> IpAddr {
    Ipv4Addr::new(198, 51, 100, service).into()
}

fn balancer6(service: u8) -> IpAddr {
    Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, u16::from(service)).into()
}

/// What a generated service is made of.
#[derive(Clone, Debug)]
struct Shape {
    has_node_port: bool,
    has_external: bool,
    /// With these source ranges.
    balancer: Option<BTreeSet<&'static str>>,
    affinity_seconds: u32,
    /// Internal and external.
    policies: (TrafficPolicy, TrafficPolicy),
    endpoints: BTreeSet<u8>,
}

fn shape() -> impl Strategy<Value = Shape> {
    let ranges = [
        "10.0.0.0/8",
        "10.1.2.3/32",
        "192.0.2.0/24",
        "fd01::/16",
        "fd01::3/128",
        "fd09::/33",
    ];
    let ranges = proptest::sample::subsequence(ranges.to_vec(), 0..4);
    let policy = || proptest::sample::select(&[TrafficPolicy::Cluster, TrafficPolicy::Local][..]);
    (
        any::<bool>(),
        any::<bool>(),
        proptest::option::of(ranges),
        proptest::sample::select(&[0, 0, 600, 86_400][..]),
        (policy(), policy()),
        proptest::collection::btree_set(1..7u8, 0..5),
    )
        .prop_map(
            |(has_node_port, has_external, balancer, affinity_seconds, policies, endpoints)| {
                Shape {
                    has_node_port,
                    has_external,
                    balancer: balancer.map(|ranges| ranges.into_iter().collect()),
                    affinity_seconds,
                    policies,
                    endpoints,
                }
            },
        )
}

fn entry(service: u8, protocol: Protocol, shape: &Shape) -> Arc<ServiceEntry> {
    let Shape {
        has_node_port,
        has_external,
        balancer,
        affinity_seconds,
        policies,
        endpoints,
    } = shape;
    let mut frontends = vec![
        Frontend {
            kind: FrontendKind::ClusterIp,
            address: cluster_ip4(service),
            port: 80,
        },
        Frontend {
            kind: FrontendKind::ClusterIp,
            address: cluster_ip6(service),
            port: 80,
        },
    ];
    if *has_external {
        let address = "203.0.113.1".parse().unwrap();
        frontends.push(Frontend {
            kind: FrontendKind::ExternalIp,
            address,
            port: 80,
        });
    }
    if *has_node_port {
        for address in ["192.0.2.1", "2001:db8::1"] {
            let (kind, address) = (FrontendKind::NodePort, address.parse().unwrap());
            frontends.push(Frontend {
                kind,
                address,
                port: 30000 + u16::from(service),
            });
        }
    }
    if balancer.is_some() {
        for address in [balancer4(service), balancer6(service)] {
            let kind = FrontendKind::LoadBalancer;
            frontends.push(Frontend {
                kind,
                address,
                port: 80,
            });
        }
    }
    let source_ranges = balancer.iter().flatten();
    let set = |address: fn(u8) -> IpAddr| {
        let at = |id: &u8| SocketAddr::new(address(*id), 8080);
        EndpointSet {
            local: endpoints.iter().filter(|id| *id % 2 == 0).map(at).collect(),
            ..EndpointSet::cluster(endpoints.iter().map(at))
        }
    };
    let key = ServiceKey {
        namespace: "default".into(),
        name: format!("s{service}").into(),
        port: Arc::default(),
        protocol,
    };
    Arc::new(ServiceEntry {
        internal_policy: policies.0,
        external_policy: policies.1,
        affinity_seconds: *affinity_seconds,
        source_ranges: source_ranges.map(|range| range.parse().unwrap()).collect(),
        frontends: frontends.into(),
        v4: set(|id| Ipv4Addr::new(10, 244, 0, id).into()),
        v6: set(|id| Ipv6Addr::new(0xfd00, 244, 0, 0, 0, 0, 0, u16::from(id)).into()),
        ..ServiceEntry::new(key)
    })
}

fn entries() -> impl Strategy<Value = Vec<Arc<ServiceEntry>>> {
    let all = proptest::collection::btree_map((0..6u8, any::<bool>()), shape(), 0..8);
    (all, 0..6u8).prop_map(|(all, external)| {
        let mut entries: Vec<_> = all
            .iter()
            .map(|(&(service, is_tcp), shape)| {
                let protocol = if is_tcp { Protocol::Tcp } else { Protocol::Udp };
                // One service at most has the external address, as the compiler sees to.
                let has_external = shape.has_external && service == external;
                let shape = Shape {
                    has_external,
                    ..shape.clone()
                };
                entry(service, protocol, &shape)
            })
            .collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        entries
    })
}

fn tables(count: usize) -> impl Strategy<Value = Vec<ServiceTable>> {
    let on_node = proptest::collection::btree_set(0..6u8, 0..3);
    // An agent is started again where that changes.
    let serves_packets = proptest::bool::weighted(0.8);
    let table = (
        entries(),
        on_node,
        any::<bool>(),
        any::<bool>(),
        serves_packets,
    );
    proptest::collection::vec(table, 1..=count).prop_map(|tables| {
        let mut before: BTreeMap<ServiceKey, Arc<ServiceEntry>> = BTreeMap::new();
        tables
            .into_iter()
            .map(
                |(services, on_node, are_service_cidrs, is_wide, serves_packets)| {
                    // What is equal keeps its `Arc`, as it does in the compiler.
                    let services: Vec<_> = services
                        .into_iter()
                        .map(|entry| match before.get(&entry.key) {
                            Some(old) if *old == entry => old.clone(),
                            _ => entry,
                        })
                        .collect();
                    before = services
                        .iter()
                        .map(|entry| (entry.key.clone(), entry.clone()))
                        .collect();
                    let v4 = if is_wide {
                        "10.96.0.0/16"
                    } else {
                        "10.96.0.0/29"
                    };
                    let prefixes = vec![v4.parse().unwrap(), "fd00::/125".parse().unwrap()];
                    let has = |address: &IpAddr| {
                        let mut frontends = services.iter().flat_map(|entry| &entry.frontends);
                        frontends.any(|frontend| frontend.address == *address)
                    };
                    let on_node = on_node
                        .iter()
                        .flat_map(|id| [cluster_ip4(*id), cluster_ip6(*id)]);
                    let on_node: BTreeSet<IpAddr> = on_node.filter(has).collect();
                    ServiceTable {
                        services,
                        on_node: on_node.into_iter().collect(),
                        serves_packets,
                        cluster_prefixes: ClusterPrefixes {
                            prefixes,
                            are_service_cidrs,
                        },
                        ..ServiceTable::default()
                    }
                },
            )
            .collect()
    })
}

/// A service port of a tenant: external addresses that nobody else has, and endpoints.
fn tenant(namespace: &str, id: usize, rows: usize, backends: usize) -> Arc<ServiceEntry> {
    let byte = |number: usize| u8::try_from(number).unwrap();
    let which = namespace.bytes().last().unwrap();
    let key = ServiceKey {
        namespace: namespace.into(),
        name: format!("s{id}").into(),
        port: Arc::default(),
        protocol: Protocol::Tcp,
    };
    let frontends = (0..rows).map(|row| Frontend {
        kind: FrontendKind::ExternalIp,
        address: Ipv4Addr::new(198, which, byte(id), byte(row)).into(),
        port: 80,
    });
    let at = |backend| {
        SocketAddr::new(
            Ipv4Addr::new(10, which, byte(id), byte(backend)).into(),
            8080,
        )
    };
    Arc::new(ServiceEntry {
        frontends: frontends.collect(),
        v4: EndpointSet::cluster((0..backends).map(at)),
        ..ServiceEntry::new(key)
    })
}

fn empty(capacity: Capacity) -> MemoryDataplane {
    let mut maps = MemoryDataplane::new(capacity);
    maps.client = Some(CLIENT);
    maps
}

fn settle(maps: &mut MemoryDataplane, image: &mut MapImage, table: &ServiceTable) -> Vec<Refused> {
    let mut refused = Vec::new();
    for _ in 0..8 {
        let planned = plan(table, image);
        maps.apply(&planned).unwrap();
        refused.clone_from(&planned.refused);
        if refused.is_empty() || !planned.has_freed {
            break;
        }
    }
    refused
}

fn assert_yields(maps: &MemoryDataplane, table: &ServiceTable) {
    for (dialled, scope) in everybody() {
        assert_eq!(
            answer(maps, dialled, scope),
            expected(table, dialled, scope),
            "{dialled:?} {scope}"
        );
        if let Resolved::Service(_, service) = resolve(maps, dialled, scope) {
            let wanted = owner(table, dialled).unwrap().0.affinity_seconds;
            assert_eq!(
                maps.affinity(service).seconds(),
                wanted,
                "{dialled:?} {scope}"
            );
        }
    }
}

/// Every row is seen, and nothing else costs a look.
fn assert_filter_is_exact(maps: &MemoryDataplane) {
    let found = maps.observe().unwrap();
    let mut exact = Filter::default();
    for key in found.frontends().keys() {
        exact.insert(key.address);
    }
    assert_eq!(*found.filter(), exact);
}

/// A reader that looked before and acts later: between two loads, programs can be interrupted for long.
struct Reader {
    dialled: Dialled,
    /// The services whose frontend it was before and after the plan in which the reader looked.
    owners: Vec<ServiceKey>,
    /// The value of the frontend row.
    service: Option<u32>,
    /// The publish word, and the set that it stood for.
    word: Option<(PublishWord, Vec<SocketAddr>)>,
}

fn readers(maps: &MemoryDataplane, tables: [&ServiceTable; 2]) -> Vec<Reader> {
    everybody()
        .map(|(dialled, scope)| {
            // Where those outside have no row of their own, they see what others see, or nothing.
            let key = LookedUp::new(dialled, scope);
            let value = key.value(maps);
            let word = match key.resolve(maps) {
                Resolved::Service(word, _) => {
                    Some((word, backends(maps, dialled.0.is_ipv4(), word)))
                }
                _ => None,
            };
            let owners = tables
                .into_iter()
                .filter_map(|table| Some(owner(table, dialled)?.0));
            let owners = owners.map(|entry| entry.key.clone()).collect();
            Reader {
                dialled,
                owners,
                service: value.map(|value| value.service()),
                word,
            }
        })
        .filter(|reader| reader.service.is_some() || reader.word.is_some())
        .collect()
}
