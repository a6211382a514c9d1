//! Plans against the code that the kernel runs: after every single write, what does a client get?

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use proptest::prelude::*;
use yurt_ebpf::abi::{FrontendKey4, FrontendKey6, NetnsRow, PublishWord, SCOPE_INTERNAL};
use yurt_ebpf::select::{Resolved, Tables, resolve4, resolve6, stamp};

use super::*;
use crate::dataplane::Dataplane;
use crate::dataplane::service::memory::MemoryDataplane;
use crate::model::{Protocol, TrafficPolicy};
use crate::table::{EndpointSet, Frontend, FrontendKind, Scope};

const ROOMY: Capacity = Capacity {
    frontends4: 256,
    frontends6: 256,
    services: 128,
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

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn resolve(maps: &MemoryDataplane, (address, port, protocol): Dialled) -> Resolved {
    let (port_be, protocol) = (port.to_be_bytes(), protocol_number(protocol));
    let scope = SCOPE_INTERNAL;
    match address {
        IpAddr::V4(addr) => resolve4(
            maps,
            maps,
            &FrontendKey4 {
                addr: addr.octets(),
                port_be,
                protocol,
                scope,
            },
        ),
        IpAddr::V6(addr) => {
            let (addr, pad) = (addr.octets(), [0; 4]);
            resolve6(
                maps,
                maps,
                &FrontendKey6 {
                    addr,
                    port_be,
                    protocol,
                    scope,
                    pad,
                },
            )
        }
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

fn answer(maps: &MemoryDataplane, dialled: Dialled) -> Answer {
    match resolve(maps, dialled) {
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

fn endpoints(entry: &ServiceEntry, frontend: &Frontend) -> Answer {
    endpoints_on_terms_of(entry, entry, frontend)
}

/// What `entry` has for those whom `terms` admits, under its policy.
fn endpoints_on_terms_of(
    terms: &ServiceEntry,
    entry: &ServiceEntry,
    frontend: &Frontend,
) -> Answer {
    let client: IpAddr = match frontend.address {
        IpAddr::V4(_) => CLIENT.addr4.into(),
        IpAddr::V6(_) => CLIENT.addr6.into(),
    };
    let mut ranges = terms.admitted(frontend).peekable();
    if ranges.peek().is_some() && !ranges.any(|range| range.contains(client)) {
        return Answer::Drop;
    }
    let policy = terms.policy(frontend.kind, Scope::Internal);
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
fn of_old_owner(old: &ServiceTable, new: &ServiceTable, dialled: Dialled) -> Option<Answer> {
    let (entry, frontend) = owner(old, dialled)?;
    let mut services = new.services.iter();
    let now = services.find(|now| now.key == entry.key)?;
    Some(endpoints_on_terms_of(entry, now, frontend))
}

/// What the table says a client gets.
fn expected(table: &ServiceTable, dialled: Dialled) -> Answer {
    let address = dialled.0;
    match owner(table, dialled) {
        Some((_, frontend)) if table.leaves_alone(frontend) => return Answer::Pass,
        Some((entry, frontend)) => return endpoints(entry, frontend),
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
    internal_policy: TrafficPolicy,
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
    (
        any::<bool>(),
        any::<bool>(),
        proptest::option::of(ranges),
        proptest::sample::select(&[0, 0, 600, 86_400][..]),
        proptest::sample::select(&[TrafficPolicy::Cluster, TrafficPolicy::Local][..]),
        proptest::collection::btree_set(1..7u8, 0..5),
    )
        .prop_map(
            |(
                has_node_port,
                has_external,
                balancer,
                affinity_seconds,
                internal_policy,
                endpoints,
            )| {
                Shape {
                    has_node_port,
                    has_external,
                    balancer: balancer.map(|ranges| ranges.into_iter().collect()),
                    affinity_seconds,
                    internal_policy,
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
        internal_policy,
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
        internal_policy: *internal_policy,
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
    let table = (entries(), on_node, any::<bool>(), any::<bool>());
    proptest::collection::vec(table, 1..=count).prop_map(|tables| {
        let mut before: BTreeMap<ServiceKey, Arc<ServiceEntry>> = BTreeMap::new();
        tables
            .into_iter()
            .map(|(services, on_node, are_service_cidrs, is_wide)| {
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
                    cluster_prefixes: ClusterPrefixes {
                        prefixes,
                        are_service_cidrs,
                    },
                    ..ServiceTable::default()
                }
            })
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
    for dialled in universe() {
        assert_eq!(
            answer(maps, dialled),
            expected(table, dialled),
            "{dialled:?}"
        );
        if let Resolved::Service(_, service) = resolve(maps, dialled) {
            let wanted = owner(table, dialled).unwrap().0.affinity_seconds;
            assert_eq!(maps.affinity(service).seconds(), wanted, "{dialled:?}");
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
    universe()
        .into_iter()
        .map(|dialled| {
            let (port_be, protocol) = (dialled.1.to_be_bytes(), protocol_number(dialled.2));
            let scope = SCOPE_INTERNAL;
            let value = match dialled.0 {
                IpAddr::V4(addr) => {
                    let addr = addr.octets();
                    maps.frontend4(&FrontendKey4 {
                        addr,
                        port_be,
                        protocol,
                        scope,
                    })
                }
                IpAddr::V6(addr) => {
                    let (addr, pad) = (addr.octets(), [0; 4]);
                    maps.frontend6(&FrontendKey6 {
                        addr,
                        port_be,
                        protocol,
                        scope,
                        pad,
                    })
                }
            };
            let word = match resolve(maps, dialled) {
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
        .collect()
}

proptest! {
    #![proptest_config(crate::cases::cases(96))]

    #[test]
    fn applying_the_plan_yields_the_table(tables in tables(6)) {
        let mut maps = empty(ROOMY);
        let mut image = MapImage::empty(ROOMY);
        for table in &tables {
            prop_assert_eq!(settle(&mut maps, &mut image, table), vec![]);
            assert_yields(&maps, table);
            prop_assert!(maps.holds(&image).unwrap());
            assert_filter_is_exact(&maps);
        }
    }

    #[test]
    fn plan_of_equal_is_empty(tables in tables(3)) {
        let mut maps = empty(ROOMY);
        let mut image = MapImage::empty(ROOMY);
        for table in &tables {
            settle(&mut maps, &mut image, table);
            prop_assert_eq!(plan(table, &mut image).ops, vec![]);
            // An agent that starts anew, and reads the maps, finds nothing to do either.
            prop_assert_eq!(plan(table, &mut maps.observe().unwrap()).ops, vec![]);
        }
    }

    #[test]
    fn a_full_map_costs_whole_services_and_never_closure(
        tables in tables(5),
        frontends4 in 3..16u32,
        slots4 in 1..12u32,
        services in 3..12u32,
    ) {
        let capacity = Capacity { frontends4, slots4, services, ..ROOMY };
        let mut maps = empty(capacity);
        let mut image = MapImage::empty(capacity);
        for table in &tables {
            // `apply` fails when a map would overflow.
            let refused = settle(&mut maps, &mut image, table);
            let names: BTreeSet<_> = refused.iter().map(|refused| &refused.service).collect();
            for dialled in universe() {
                let (seen, wanted) = (answer(&maps, dialled), expected(table, dialled));
                let owner = table.services.iter().find(|entry| {
                    entry.key.protocol == dialled.2
                        && entry.frontends.iter().any(|f| f.address == dialled.0 && f.port == dialled.1)
                });
                let is_refused = owner.is_some_and(|entry| names.contains(&entry.key));
                match (&seen, &wanted) {
                    (Answer::Backends(seen), Answer::Backends(wanted)) => {
                        prop_assert!(seen.iter().all(|backend| wanted.contains(backend)));
                        prop_assert!(is_refused || !names.is_empty() || seen == wanted);
                    }
                    (Answer::Backends(seen), _) => {
                        // Loopback rows have no owner above; nobody else may be served by what is gone.
                        prop_assert!(dialled.0.is_loopback(), "{:?} still gets {:?}", dialled, seen);
                    }
                    _ => {}
                }
                if names.is_empty() {
                    prop_assert_eq!(seen, wanted);
                }
            }
            // What does not fit is not tried again and again, and is told as long as it is left out.
            settle(&mut maps, &mut image, table);
            let before = settle(&mut maps, &mut image, table);
            let again = plan(table, &mut image);
            prop_assert!(again.ops.iter().all(|op| *op == Op::Grace), "{:?}", again.ops);
            prop_assert_eq!(&again.refused, &before);
        }
        // Nothing of what did not fit has stayed: all of the room is there again.
        settle(&mut maps, &mut image, &ServiceTable::default());
        let mut fresh = MapImage::empty(capacity);
        settle(&mut empty(capacity), &mut fresh, &ServiceTable::default());
        prop_assert_eq!(image.usage(), fresh.usage());
        prop_assert_eq!(image.frontends(), fresh.frontends());
    }

    #[test]
    fn a_namespace_within_its_even_share_has_all_that_it_asks_for_and_nobody_loses_what_he_has(
        asked in proptest::collection::vec(proptest::collection::vec((1..5usize, 0..6usize), 1..8), 1..5),
        later in proptest::collection::vec((1..5usize, 0..6usize), 0..6),
        frontends4 in 3..60u32,
        slots4 in 3..60u32,
        services in 3..30u32,
    ) {
        let capacity = Capacity { frontends4, slots4, services, ..ROOMY };
        let namespaces = ["a", "b", "c", "d"];
        let services_of = |namespace: &str, asked: &[(usize, usize)], first: usize| {
            let all = (first..).zip(asked);
            let all = all.map(|(id, (rows, backends))| tenant(namespace, id, *rows, *backends));
            all.collect::<Vec<_>>()
        };
        let all = namespaces.iter().zip(&asked);
        let mut wanted: Vec<_> = all.flat_map(|(n, asked)| services_of(n, asked, 0)).collect();
        let table_of = |services: &[Arc<ServiceEntry>]| ServiceTable {
            services: services.to_vec(),
            ..ServiceTable::default()
        };
        let (mut maps, mut image) = (empty(capacity), MapImage::empty(capacity));
        let table = table_of(&wanted);
        let refused = settle(&mut maps, &mut image, &table);
        // The self-test has a row, an index and a slot of each family.
        let all = [(frontends4, 1.0), (services, 2.0), (slots4, 1.0)];
        for (namespace, own) in namespaces.iter().zip(&asked) {
            let sum = |one: fn(&(usize, usize)) -> usize| own.iter().map(one).sum::<usize>();
            let needs = [sum(|own| own.0), own.len(), sum(|own| own.1)];
            let parts = needs.iter().zip(all).map(|(needs, (all, _))| *needs as f64 / f64::from(all));
            let left = all.map(|(all, probe)| 1.0 - (probe + f64::from(all / 64)) / f64::from(all));
            let (part, left) = (parts.fold(0.0, f64::max), left.into_iter().fold(1.0, f64::min));
            if part * asked.len() as f64 <= left {
                let lacks = refused.iter().find(|refused| *refused.service.namespace == **namespace);
                prop_assert!(lacks.is_none(), "{namespace}: {lacks:?}");
            }
        }
        // Newcomers of a tenant take nothing from those who are there.
        let served = |refused: &[Refused], services: &[Arc<ServiceEntry>]| {
            let is_refused = |key: &ServiceKey| refused.iter().any(|refused| refused.service == *key);
            let keys = services.iter().map(|entry| entry.key.clone());
            keys.filter(|key| !is_refused(key)).collect::<BTreeSet<_>>()
        };
        let before = served(&refused, &wanted);
        wanted.extend(services_of("b", &later, 100));
        wanted.sort_by(|a, b| a.key.cmp(&b.key));
        let table = table_of(&wanted);
        let mut found = maps.observe().unwrap();
        let after = served(&settle(&mut maps.clone(), &mut found, &table), &wanted);
        prop_assert!(before.is_subset(&after), "by another agent: {before:?} {after:?}");
        let after = served(&settle(&mut maps, &mut image, &table), &wanted);
        prop_assert!(before.is_subset(&after), "{before:?} {after:?}");
    }

    #[test]
    fn whoever_fills_the_maps_kube_system_has_its_place_and_nobody_who_stays_in_force_loses_endpoints(
        tenants in proptest::collection::vec((0..3usize, 1..4usize, 0..6usize), 1..40),
        steps in proptest::collection::vec(
            (0..40usize, proptest::collection::btree_set(0..12usize, 0..8), any::<bool>()), 1..8),
        system in proptest::collection::vec((1..3usize, proptest::collection::btree_set(0..9usize, 1..6)), 1..4),
        frontends4 in 16..60u32,
        slots4 in 100..250u32,
        services in 12..60u32,
        is_late in any::<bool>(),
    ) {
        let capacity = Capacity { frontends4, slots4, services, ..ROOMY };
        let (mut maps, mut image) = (empty(capacity), MapImage::empty(capacity));
        let names = ["a-tenant", "tenant-b", "z-tenant"];
        let with = |entry: &ServiceEntry, backends: &BTreeSet<usize>| {
            let last = |id: &usize| u8::try_from(*id).unwrap();
            let at = |id: &usize| SocketAddr::new(Ipv4Addr::new(10, 9, 9, last(id)).into(), 8080);
            let v4 = EndpointSet::cluster(backends.iter().map(at));
            Arc::new(ServiceEntry { v4, ..entry.clone() })
        };
        let mut all: BTreeMap<ServiceKey, Arc<ServiceEntry>> = BTreeMap::new();
        for (id, (namespace, rows, backends)) in tenants.iter().enumerate() {
            let entry = tenant(names[*namespace], id, *rows, *backends);
            all.insert(entry.key.clone(), entry);
        }
        let first: Vec<_> = system.iter().enumerate().map(|(id, (rows, backends))| {
            with(&tenant("kube-system", id, *rows, 0), backends)
        }).collect();
        let table_of = |all: &BTreeMap<ServiceKey, Arc<ServiceEntry>>| ServiceTable {
            services: all.values().cloned().collect(),
            ..ServiceTable::default()
        };
        if !is_late {
            all.extend(first.iter().map(|entry| (entry.key.clone(), entry.clone())));
        }
        let served = |maps: &MemoryDataplane, entry: &ServiceEntry| {
            let frontend = entry.frontends.first().unwrap();
            answer(maps, (frontend.address, frontend.port, Protocol::Tcp))
        };
        let mut old = ServiceTable::default();
        for (which, backends, is_systems) in std::iter::once(None).chain(steps.iter().map(Some)).map(|step| {
            step.map_or((0, None, false), |(which, backends, is_systems)| (*which, Some(backends), *is_systems))
        }) {
            if let Some(backends) = backends {
                all.extend(first.iter().map(|entry| (entry.key.clone(), entry.clone())));
                let ours: Vec<_> = all.keys().filter(|key| (&*key.namespace == "kube-system") == is_systems).cloned().collect();
                let key = &ours[which % ours.len()];
                let changed = with(&all[key], backends);
                all.insert(key.clone(), changed);
            }
            let table = table_of(&all);
            let before = maps.clone();
            for _ in 0..8 {
                let planned = plan(&table, &mut image);
                // Whatever was written last, nobody gets what neither table gives.
                for op in &planned.ops {
                    maps.apply(&Plan { ops: vec![op.clone()], ..Plan::default() }).unwrap();
                    for entry in all.values() {
                        let Answer::Backends(seen) = served(&maps, entry) else { continue };
                        let was = old.services.iter().find(|was| was.key == entry.key);
                        let allowed = |at: &SocketAddr| {
                            entry.v4.cluster.contains(*at) || was.is_some_and(|was| was.v4.cluster.contains(*at))
                        };
                        prop_assert!(seen.iter().all(allowed), "{}: {seen:?}", entry.key);
                    }
                }
                if planned.refused.is_empty() || !planned.has_freed {
                    break;
                }
            }
            prop_assert!(maps.holds(&image).unwrap());
            for entry in all.values() {
                let wanted = entry.v4.cluster.len();
                let now = match served(&maps, entry) {
                    Answer::Backends(seen) => {
                        prop_assert!(seen.iter().all(|at| entry.v4.cluster.contains(*at)));
                        Some(seen.len())
                    }
                    Answer::Refuse => Some(0),
                    _ => None,
                };
                if &*entry.key.namespace == "kube-system" {
                    // Its sets and the self-test's leave a range that is long enough for the copy of each.
                    prop_assert_eq!(now, Some(wanted), "{} in {:?}", &entry.key, capacity);
                } else if old.services.iter().any(|was| was == entry)
                    && let Answer::Backends(had) = served(&before, entry)
                {
                    // It is as it was, or it has grown, or it was taken out whole.
                    prop_assert!(now.is_none() || now >= Some(had.len()), "{}: {now:?}", entry.key);
                }
            }
            old = table;
        }
    }

    #[test]
    fn a_udp_socket_that_finds_its_stamp_again_finds_the_set_that_it_knew(
        tables in tables(12),
        slots4 in 4..12u32,
        slots6 in 4..12u32,
    ) {
        // Slots are used again at once, indices seldom.
        let mut maps = empty(Capacity { slots4, slots6, ..ROOMY });
        let mut image = MapImage::empty(Capacity { slots4, slots6, ..ROOMY });
        let mut known: BTreeMap<(bool, u64), Vec<SocketAddr>> = BTreeMap::new();
        for table in &tables {
            settle(&mut maps, &mut image, table);
            for dialled in universe() {
                if let Resolved::Service(word, service) = resolve(&maps, dialled) {
                    let set = backends(&maps, dialled.0.is_ipv4(), word);
                    let seen = (dialled.0.is_ipv4(), stamp(word, service));
                    let first = known.entry(seen).or_insert(set.clone());
                    prop_assert_eq!(&*first, &set);
                }
            }
        }
    }

    #[test]
    fn what_was_damaged_is_found_and_mended(tables in tables(2), damage in any::<[u32; 6]>()) {
        let mut maps = empty(ROOMY);
        let mut image = MapImage::empty(ROOMY);
        for table in &tables {
            settle(&mut maps, &mut image, table);
        }
        maps.damage(damage);
        let mut found = maps.observe().unwrap();
        let table = tables.last().unwrap();
        if maps.holds(&image).unwrap() {
            prop_assert_eq!(plan(table, &mut found).ops, vec![]);
        }
        settle(&mut maps, &mut found, table);
        prop_assert!(maps.holds(&found).unwrap());
        assert_yields(&maps, table);
        assert_filter_is_exact(&maps);
    }
}

proptest! {
    // Each op of each case is a crash, a restart and a look at everything.
    #![proptest_config(crate::cases::cases(32))]

    #[test]
    fn every_prefix_is_safe_and_any_crash_point_converges(tables in tables(4)) {
        let mut maps = empty(ROOMY);
        let mut image = MapImage::empty(ROOMY);
        let mut old = ServiceTable::default();
        for new in &tables {
            let planned = plan(new, &mut image);
            let mut stopped = maps.clone();
            for op in &planned.ops {
                for dialled in universe() {
                    let seen = answer(&stopped, dialled);
                    let (before, after) = (expected(&old, dialled), expected(new, dialled));
                    // A frontend that comes or goes may be refused meanwhile; one that stays is one of both, whole.
                    let is_both = matches!(before, Answer::Backends(_))
                        && matches!(after, Answer::Backends(_));
                    prop_assert!(
                        seen == before
                            || seen == after
                            || Some(&seen) == of_old_owner(&old, new, dialled).as_ref()
                            || (!is_both && seen == Answer::Refuse),
                        "before {:?}: {:?} gets {:?}, neither {:?} nor {:?}",
                        op, dialled, seen, before, after
                    );
                }
                let mut restarted = stopped.clone();
                let mut found = restarted.observe().unwrap();
                // A reader that the filter turns away looks no further.
                for key in found.frontends().keys() {
                    prop_assert!(found.filter().lets_through(key.address), "before {:?}: {:?}", op, key);
                }
                settle(&mut restarted, &mut found, new);
                assert_yields(&restarted, new);
                assert_filter_is_exact(&restarted);
                let one = Plan { ops: vec![op.clone()], ..Plan::default() };
                stopped.apply(&one).unwrap();
            }
            maps.apply(&planned).unwrap();
            old = new.clone();
        }
    }

    #[test]
    fn a_reader_that_was_interrupted_never_sees_the_set_of_another_service(tables in tables(5)) {
        let mut maps = empty(ROOMY);
        let mut image = MapImage::empty(ROOMY);
        // Readers, and the sets that their service has had since.
        let mut waiting: Vec<(Reader, Vec<Answer>)> = Vec::new();
        let mut old = ServiceTable::default();
        for new in &tables {
            let sets = |reader: &Reader, table: &ServiceTable| {
                let of_owners = table.services.iter().filter(|entry| reader.owners.contains(&entry.key));
                let sets = of_owners.flat_map(|entry| {
                    [TrafficPolicy::Cluster, TrafficPolicy::Local]
                        .map(|policy| whole_set(entry, reader.dialled.0, policy))
                });
                sets.collect::<Vec<_>>()
            };
            for (reader, allowed) in &mut waiting {
                // Whose what it has dialled is by now, it may be answered for, too: there may be no other row at that index.
                reader.owners.extend(owner(new, reader.dialled).map(|(entry, _)| entry.key.clone()));
                allowed.extend(sets(reader, new));
            }
            for op in &plan(new, &mut image).ops {
                waiting.extend(readers(&maps, [&old, new]).into_iter().map(|reader| {
                    let allowed = [sets(&reader, &old), sets(&reader, new)].concat();
                    (reader, allowed)
                }));
                maps.apply(&Plan { ops: vec![op.clone()], ..Plan::default() }).unwrap();
                if *op == Op::Grace {
                    waiting.clear();
                }
                for (reader, allowed) in &waiting {
                    let is_v4 = reader.dialled.0.is_ipv4();
                    if let Some((word, set)) = &reader.word {
                        prop_assert_eq!(&backends(&maps, is_v4, *word), set);
                    }
                    if let Some(service) = reader.service {
                        let word = maps.publish_word(service).unwrap();
                        let seen = match word.count() {
                            0 => Answer::Refuse,
                            _ => Answer::Backends(backends(&maps, is_v4, word)),
                        };
                        prop_assert!(
                            seen == Answer::Refuse || allowed.contains(&seen),
                            "{:?} gets {:?}", reader.dialled, seen
                        );
                    }
                }
            }
            old = new.clone();
        }
    }
}
