//! Single plans, spelled out.

use std::net::SocketAddr;

use super::*;
use crate::dataplane::Dataplane;
use crate::dataplane::service::memory::MemoryDataplane;
use crate::model::Protocol;
use crate::table::{EndpointSet, Frontend, FrontendKind};

const CAPACITY: Capacity = Capacity {
    frontends4: 16,
    frontends6: 16,
    services: 8,
    slots4: 8,
    slots6: 8,
};

fn service(name: &str, address: &str, backends: &[&str]) -> Arc<ServiceEntry> {
    let address: IpAddr = address.parse().unwrap();
    let key = ServiceKey {
        namespace: "default".into(),
        name: name.into(),
        port: Arc::default(),
        protocol: Protocol::Tcp,
    };
    Arc::new(ServiceEntry {
        frontends: [Frontend {
            kind: FrontendKind::ClusterIp,
            address,
            port: 80,
        }]
        .into(),
        v4: EndpointSet::cluster(backends.iter().map(|backend| backend.parse().unwrap())),
        ..ServiceEntry::new(key)
    })
}

fn table(services: &[&Arc<ServiceEntry>]) -> ServiceTable {
    let prefixes = vec!["10.96.0.0/24".parse().unwrap()];
    ServiceTable {
        services: services.iter().map(|entry| (*entry).clone()).collect(),
        cluster_prefixes: ClusterPrefixes {
            prefixes,
            are_service_cidrs: true,
        },
        ..ServiceTable::default()
    }
}

/// The self-test's rows are in every table: they are there before the plans of a test.
fn start() -> (MemoryDataplane, MapImage) {
    let mut maps = MemoryDataplane::new(CAPACITY);
    let mut image = MapImage::empty(CAPACITY);
    maps.apply(&plan(&table(&[]), &mut image)).unwrap();
    (maps, image)
}

fn kinds(plan: &Plan) -> Vec<&'static str> {
    plan.ops
        .iter()
        .map(|op| match op {
            Op::Grace => "grace",
            Op::SetPrefixes(_) => "prefixes",
            Op::SetFilter { .. } => "filter",
            Op::WriteSlots { .. } => "slots",
            Op::Publish { .. } => "publish",
            Op::PutFrontend(..) => "put",
            Op::DeleteFrontend(_) => "delete",
        })
        .collect()
}

#[test]
fn a_new_service_shows_its_frontend_last_and_a_deleted_one_just_loses_it() {
    let (_, mut image) = start();
    let web = service("web", "10.96.0.10", &["10.244.0.1:80", "10.244.0.2:80"]);
    let added = plan(&table(&[&web]), &mut image);
    assert_eq!(kinds(&added), ["slots", "publish", "filter", "put"]);
    let removed = plan(&table(&[]), &mut image);
    assert_eq!(kinds(&removed), ["delete", "filter"]);
}

#[test]
fn changed_endpoints_are_new_slots_and_one_publish() {
    let (_, mut image) = start();
    plan(
        &table(&[&service("web", "10.96.0.10", &["10.244.0.1:80"])]),
        &mut image,
    );
    let changed = service("web", "10.96.0.10", &["10.244.0.2:80"]);
    assert_eq!(
        kinds(&plan(&table(&[&changed]), &mut image)),
        ["slots", "publish"]
    );
}

#[test]
fn space_that_readers_may_still_see_is_used_again_only_after_a_grace_period() {
    let (mut maps, mut image) = start();
    // Seven slots of eight are free, and each set is copied before the old one goes.
    for round in 0..4 {
        let backend = format!("10.244.0.{round}:80");
        let set = [backend.as_str(), "10.244.1.1:80", "10.244.1.2:80"];
        let planned = plan(&table(&[&service("web", "10.96.0.10", &set)]), &mut image);
        let has_grace = planned.ops.first() == Some(&Op::Grace);
        assert_eq!(has_grace, round >= 2, "round {round}: {:?}", planned.ops);
        assert_eq!(planned.refused, []);
        maps.apply(&planned).unwrap();
    }
}

#[test]
fn a_swap_at_full_capacity_happens_in_two_plans() {
    let (mut maps, mut image) = start();
    let seven: Vec<String> = (1..=7).map(|id| format!("10.244.0.{id}:80")).collect();
    let seven: Vec<&str> = seven.iter().map(String::as_str).collect();
    maps.apply(&plan(
        &table(&[&service("a", "10.96.0.10", &seven)]),
        &mut image,
    ))
    .unwrap();
    let wanted = table(&[&service("b", "10.96.0.11", &seven)]);
    let first = plan(&wanted, &mut image);
    maps.apply(&first).unwrap();
    assert_eq!(first.refused.len(), 1);
    assert!(first.has_freed);
    let second = plan(&wanted, &mut image);
    maps.apply(&second).unwrap();
    assert_eq!(second.refused, []);
    assert_eq!(second.ops.first(), Some(&Op::Grace));
}

#[test]
fn of_twenty_services_in_maps_for_eight_none_is_half_programmed_and_the_first_by_name_win() {
    let (mut maps, mut image) = start();
    let services: Vec<_> = (0..20)
        .map(|id| {
            service(
                &format!("s{id:02}"),
                &format!("10.96.0.{id}"),
                &["10.244.0.1:80"],
            )
        })
        .collect();
    let all = table(&services.iter().collect::<Vec<_>>());
    let planned = plan(&all, &mut image);
    maps.apply(&planned).unwrap();
    // Eight service indices, two of them the self-test's; eight slots, one of them the self-test's.
    let refused: Vec<_> = planned
        .refused
        .iter()
        .map(|refused| &*refused.service.name)
        .collect();
    assert_eq!(refused.len(), 14);
    assert_eq!(refused.first(), Some(&"s06"));
    assert!(
        planned
            .refused
            .iter()
            .all(|refused| refused.map == FullMap::Services)
    );
    assert!(maps.holds(&image).unwrap());
    assert_eq!(maps.observe().unwrap().services().len(), 8);
    // Room again: the next ones enter.
    let fewer = table(&services[10..].iter().collect::<Vec<_>>());
    for _ in 0..2 {
        maps.apply(&plan(&fewer, &mut image)).unwrap();
    }
    assert_eq!(maps.observe().unwrap().services().len(), 8);
    assert!(
        image
            .frontends()
            .keys()
            .any(|key| key.address == "10.96.0.10".parse::<IpAddr>().unwrap())
    );
}

#[test]
fn a_set_that_grew_beyond_the_map_keeps_what_is_right_and_gets_what_there_is_room_for() {
    let (mut maps, mut image) = start();
    let old = ["10.244.0.1:80", "10.244.0.2:80", "10.244.0.3:80"];
    maps.apply(&plan(
        &table(&[&service("web", "10.96.0.10", &old)]),
        &mut image,
    ))
    .unwrap();
    let grown: Vec<String> = (2..=9).map(|id| format!("10.244.0.{id}:80")).collect();
    let grown: Vec<&str> = grown.iter().map(String::as_str).collect();
    let planned = plan(&table(&[&service("web", "10.96.0.10", &grown)]), &mut image);
    maps.apply(&planned).unwrap();
    assert!(planned.refused[0].has_some);
    let kept = maps
        .observe()
        .unwrap()
        .services()
        .values()
        .filter_map(|service| Some(service.set.as_ref()?.backends.clone()))
        .find(|backends| backends.len() > 1)
        .unwrap()
        .to_vec();
    // Four of the eight slots are neither the self-test's nor those of the old set.
    let expected = [2, 3, 4, 5].map(|id| format!("10.244.0.{id}:80").parse().unwrap());
    assert_eq!(kept, expected);
}

#[test]
fn a_frontend_that_moves_between_services_is_overwritten_not_removed() {
    let (_, mut image) = start();
    let old = table(&[&service("a", "10.96.0.10", &["10.244.0.1:80"])]);
    plan(&old, &mut image);
    let moved = plan(
        &table(&[&service("b", "10.96.0.10", &["10.244.0.2:80"])]),
        &mut image,
    );
    assert_eq!(kinds(&moved), ["slots", "publish", "put"]);
}

#[test]
fn new_maps_go_on_counting_generations_where_they_are_told_to() {
    let web = service("web", "10.96.0.10", &["10.1.0.2:8080"]);
    let mut image = MapImage::empty(CAPACITY).counting_from(u16::MAX - 1);
    let planned = plan(&table(&[&web]), &mut image);
    let generations = planned.ops.iter().filter_map(|op| match op {
        Op::Publish { generation, .. } => Some(*generation),
        _ => None,
    });
    assert!(
        generations
            .into_iter()
            .all(|generation| generation == u16::MAX)
    );
}

fn limited(ranges: &[&str], affinity_seconds: u32) -> Arc<ServiceEntry> {
    let web = service("web", "10.96.0.10", &["10.244.0.1:80"]);
    let mut web = ServiceEntry::clone(&web);
    let balancer = Frontend {
        kind: FrontendKind::LoadBalancer,
        address: "203.0.113.1".parse().unwrap(),
        port: 80,
    };
    web.frontends = [&*web.frontends, &[balancer]].concat().into();
    web.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    web.affinity_seconds = affinity_seconds;
    Arc::new(web)
}

#[test]
fn other_source_ranges_are_one_publish_with_the_endpoints() {
    let (_, mut image) = start();
    plan(&table(&[&limited(&["10.0.0.0/8"], 0)]), &mut image);
    let changed = plan(
        &table(&[&limited(&["10.1.0.0/16", "192.0.2.0/24"], 0)]),
        &mut image,
    );
    assert_eq!(kinds(&changed), ["slots", "publish"]);
    assert!(changed.asks_for_clients());
}

#[test]
fn a_frontend_gets_its_first_source_ranges_by_moving_to_a_set_that_has_them() {
    let (_, mut image) = start();
    plan(&table(&[&limited(&[], 0)]), &mut image);
    assert!(!image.asks_for_clients());
    let limited = plan(&table(&[&limited(&["10.0.0.0/8"], 0)]), &mut image);
    assert_eq!(kinds(&limited), ["slots", "publish", "put"]);
    assert!(image.asks_for_clients());
}

#[test]
fn an_external_ip_that_is_the_load_balancers_too_is_behind_its_ranges_at_every_write() {
    let (mut maps, mut image) = start();
    let shared = |backends: &[&str]| {
        let mut web = ServiceEntry::clone(&limited(&["10.0.0.0/8"], 0));
        let external = Frontend {
            kind: FrontendKind::ExternalIp,
            ..web.frontends[1]
        };
        web.frontends = [&[web.frontends[0], external], &web.frontends[1..]]
            .concat()
            .into();
        web.v4 = EndpointSet::cluster(backends.iter().map(|backend| backend.parse().unwrap()));
        Arc::new(web)
    };
    // Nobody is known, so nobody is inside.
    let key = yurt_ebpf::abi::FrontendKey4 {
        addr: [203, 0, 113, 1],
        port_be: 80u16.to_be_bytes(),
        protocol: 6,
        scope: yurt_ebpf::abi::SCOPE_INTERNAL,
    };
    let mut is_there = false;
    for backends in [
        &[][..],
        &["10.244.0.1:80"],
        &["10.244.0.1:80", "10.244.0.2:80"],
        &[],
    ] {
        for op in plan(&table(&[&shared(backends)]), &mut image).ops {
            maps.apply(&Plan {
                ops: vec![op],
                ..Plan::default()
            })
            .unwrap();
            let seen = yurt_ebpf::select::resolve4(&maps, &maps, &key);
            is_there |= seen != yurt_ebpf::select::Resolved::Pass;
            let is_kept_out = matches!(seen, yurt_ebpf::select::Resolved::Refuse(_));
            assert!(is_kept_out || !is_there, "{seen:?}");
        }
    }
    assert!(is_there);
    assert!(maps.holds(&image).unwrap());
}

#[test]
fn affinity_alone_changes_without_a_new_set() {
    let (_, mut image) = start();
    plan(&table(&[&limited(&[], 0)]), &mut image);
    let sticky = plan(&table(&[&limited(&[], 600)]), &mut image);
    assert_eq!(kinds(&sticky), ["publish"]);
}

#[test]
fn source_ranges_with_bits_of_hosts_are_no_drift() {
    let (mut maps, _) = start();
    let table = table(&[&limited(&["10.1.2.3/8"], 0)]);
    let mut image = maps.observe().unwrap();
    maps.apply(&plan(&table, &mut image)).unwrap();
    assert!(maps.holds(&image).unwrap());
}

fn in_namespace(
    namespace: &str,
    name: &str,
    addresses: &[&str],
    backends: &[&str],
) -> Arc<ServiceEntry> {
    let key = ServiceKey {
        namespace: namespace.into(),
        name: name.into(),
        port: Arc::default(),
        protocol: Protocol::Tcp,
    };
    let backends: Vec<SocketAddr> = backends.iter().map(|at| at.parse().unwrap()).collect();
    let of = |is_v4: bool| {
        let ours = backends.iter().filter(|at| at.is_ipv4() == is_v4);
        EndpointSet::cluster(ours.copied())
    };
    let frontends = addresses.iter().map(|address| Frontend {
        kind: FrontendKind::ExternalIp,
        address: address.parse().unwrap(),
        port: 80,
    });
    Arc::new(ServiceEntry {
        frontends: frontends.collect(),
        v4: of(true),
        v6: of(false),
        ..ServiceEntry::new(key)
    })
}

/// As the agent does it.
fn settle(wanted: &ServiceTable, maps: &mut MemoryDataplane, image: &mut MapImage) -> Plan {
    let mut planned = Plan::default();
    for _ in 0..8 {
        planned = plan(wanted, image);
        maps.apply(&planned).unwrap();
        if planned.refused.is_empty() || !planned.has_freed {
            break;
        }
    }
    assert!(maps.holds(image).unwrap());
    planned
}

fn names(refused: &[Refused]) -> Vec<String> {
    let names = refused.iter();
    let names =
        names.map(|Refused { service, .. }| format!("{}/{}", service.namespace, service.name));
    names.collect()
}

#[test]
fn of_what_does_not_fit_the_apiserver_and_dns_come_first_then_namespaces_in_turns() {
    let capacity = Capacity {
        frontends4: 24,
        services: 64,
        slots4: 64,
        ..CAPACITY
    };
    let external: Vec<String> = (1..=5).map(|id| format!("198.51.100.{id}")).collect();
    let external: Vec<&str> = external.iter().map(String::as_str).collect();
    let at = |id: u8| format!("203.0.113.{id}");
    let mut services: Vec<_> = (0..30)
        .map(|port| {
            let mut greedy = ServiceEntry::clone(&in_namespace(
                "a-tenant",
                "s",
                &external,
                &["10.244.0.1:80"],
            ));
            greedy.key.port = format!("p{port:02}").into();
            greedy.frontends.iter_mut().for_each(|f| f.port += port);
            Arc::new(greedy)
        })
        .collect();
    for (id, (namespace, name)) in (1..).zip([
        ("default", "kubernetes"),
        ("kube-system", "kube-dns"),
        ("z-tenant", "a"),
        ("z-tenant", "b"),
    ]) {
        services.push(in_namespace(
            namespace,
            name,
            &[&at(id)],
            &["10.244.0.2:80"],
        ));
    }
    let mut maps = MemoryDataplane::new(capacity);
    let mut image = MapImage::empty(capacity);
    let planned = settle(
        &table(&services.iter().collect::<Vec<_>>()),
        &mut maps,
        &mut image,
    );
    // 24 rows: the self-test, four Services, and three of thirty ports with five addresses each.
    assert_eq!(planned.refused.len(), 27);
    let left_out: BTreeSet<String> = names(&planned.refused).into_iter().collect();
    assert_eq!(left_out, BTreeSet::from(["a-tenant/s".to_owned()]));
}

#[test]
fn who_has_less_comes_before_who_has_more_when_there_is_room_again() {
    let capacity = Capacity {
        frontends4: 5,
        ..CAPACITY
    };
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    let one = |namespace, name, id: u8| {
        in_namespace(
            namespace,
            name,
            &[&format!("203.0.113.{id}")],
            &["10.244.0.1:80"],
        )
    };
    let rich: Vec<_> = [("a", 1), ("b", 2), ("c", 3), ("d", 4)]
        .map(|(name, id)| one("rich", name, id))
        .into();
    settle(
        &table(&rich.iter().collect::<Vec<_>>()),
        &mut maps,
        &mut image,
    );
    // The namespace that has all of the room asks for more, by a name before the poor one's, and gives one back.
    let (more, poor) = (one("rich", "aa", 5), one("sober", "s", 6));
    let wanted = [&rich[0], &more, &rich[1], &rich[2], &poor];
    let planned = settle(&table(&wanted), &mut maps, &mut image);
    assert_eq!(names(&planned.refused), ["rich/aa"]);
}

#[test]
fn who_was_in_a_full_map_is_in_it_after_a_reboot() {
    let capacity = Capacity {
        frontends4: 5,
        ..CAPACITY
    };
    let one = |namespace, id: u8| {
        let at = format!("203.0.113.{id}");
        in_namespace(namespace, &id.to_string(), &[&at], &["10.244.0.1:80"])
    };
    let rich: Vec<_> = (1..=4).map(|id| one("rich", id)).collect();
    let poor = one("a-poor", 5);
    let before = table(&rich.iter().collect::<Vec<_>>());
    let all = table(&rich.iter().chain([&poor]).collect::<Vec<_>>());
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    settle(&before, &mut maps, &mut image);
    let planned = settle(&all, &mut maps, &mut image);
    assert_eq!(names(&planned.refused), ["a-poor/5"]);
    let left_out: Vec<_> = image.left_out().cloned().collect();
    assert_eq!(left_out, std::slice::from_ref(&poor.key));

    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    image.remember(rich.iter().map(|entry| entry.key.clone()).collect());
    let planned = settle(&all, &mut maps, &mut image);
    assert_eq!(names(&planned.refused), ["a-poor/5"]);
    // It is of the maps of then: from the next plan on, what is in the maps counts.
    let gone = table(&[&rich[0], &rich[1], &poor]);
    settle(&gone, &mut maps, &mut image);
    let planned = settle(&all, &mut maps, &mut image);
    assert_eq!(planned.refused.len(), 1);
    assert_ne!(names(&planned.refused), ["a-poor/5"]);

    // Where nothing is remembered, turns decide.
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    let planned = settle(&all, &mut maps, &mut image);
    assert_ne!(names(&planned.refused), ["a-poor/5"]);
}

#[test]
fn a_port_that_did_not_fit_in_one_family_gets_the_other_when_that_has_room() {
    let capacity = Capacity {
        frontends4: 2,
        frontends6: 2,
        ..CAPACITY
    };
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    let four = in_namespace("a", "four", &["203.0.113.1"], &["10.244.0.1:80"]);
    let six = in_namespace("a", "six", &["2001:db8::1"], &["[fd00::1]:80"]);
    let both = in_namespace(
        "a",
        "web",
        &["203.0.113.2", "2001:db8::2"],
        &["10.244.0.1:80", "[fd00::1]:80"],
    );
    let planned = settle(&table(&[&four, &six, &both]), &mut maps, &mut image);
    assert_eq!(names(&planned.refused), ["a/web"]);
    assert!(!planned.refused[0].has_some);
    let planned = settle(&table(&[&four, &both]), &mut maps, &mut image);
    assert_eq!(names(&planned.refused), ["a/web"]);
    assert!(planned.refused[0].has_some);
    let rows = image.frontends().keys();
    let addresses: BTreeSet<IpAddr> = rows.map(|key| key.address).collect();
    assert!(addresses.contains(&"2001:db8::2".parse().unwrap()));
}

#[test]
fn rows_that_a_service_gives_back_are_given_to_who_was_left_out() {
    let capacity = Capacity {
        frontends4: 3,
        ..CAPACITY
    };
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    let two = in_namespace(
        "a",
        "a",
        &["203.0.113.1", "203.0.113.2"],
        &["10.244.0.1:80"],
    );
    let waiting = in_namespace("b", "b", &["203.0.113.3"], &["10.244.0.1:80"]);
    settle(&table(&[&two]), &mut maps, &mut image);
    let planned = settle(&table(&[&two, &waiting]), &mut maps, &mut image);
    assert_eq!(names(&planned.refused), ["b/b"]);
    let one = in_namespace("a", "a", &["203.0.113.1"], &["10.244.0.1:80"]);
    let planned = settle(&table(&[&one, &waiting]), &mut maps, &mut image);
    assert_eq!(planned.refused, []);
}

#[test]
fn to_change_does_not_bring_a_service_that_was_left_out_ahead_of_others() {
    let capacity = Capacity {
        frontends4: 3,
        ..CAPACITY
    };
    let mut image = MapImage::empty(capacity);
    let two = in_namespace(
        "x",
        "x",
        &["203.0.113.1", "203.0.113.2"],
        &["10.244.0.1:80"],
    );
    let tenant = |backend| in_namespace("x", "a", &["203.0.113.3"], &[backend]);
    let restless = tenant("10.244.0.1:80");
    let other = in_namespace("z", "z", &["203.0.113.4"], &["10.244.0.1:80"]);
    assert_eq!(plan(&table(&[&two]), &mut image).refused, []);
    let all = table(&[&restless, &two, &other]);
    assert_eq!(names(&plan(&all, &mut image).refused), ["x/a", "z/z"]);
    // One row is free, and nobody has planned since.
    let one = in_namespace("x", "x", &["203.0.113.1"], &["10.244.0.1:80"]);
    plan(&table(&[&restless, &one, &other]), &mut image);
    let changed = tenant("10.244.0.2:80");
    let planned = plan(&table(&[&changed, &one, &other]), &mut image);
    assert_eq!(names(&planned.refused), ["x/a"]);
}

fn numbered(from: u8, count: u8) -> Vec<String> {
    (from..from + count)
        .map(|id| format!("10.244.9.{id}:53"))
        .collect()
}

fn dns(backends: &[String]) -> Arc<ServiceEntry> {
    let backends: Vec<_> = backends.iter().map(String::as_str).collect();
    in_namespace("kube-system", "kube-dns", &["203.0.113.1"], &backends)
}

/// Maps in which a tenant has one slot for each of its Services, and asks for more than there are.
fn filled(dns: &Arc<ServiceEntry>) -> (MemoryDataplane, MapImage, Vec<Arc<ServiceEntry>>) {
    let capacity = Capacity {
        frontends4: 128,
        services: 128,
        slots4: 32,
        ..CAPACITY
    };
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    let tenants = (0..60).map(|id| {
        let address = format!("198.51.100.{id}");
        in_namespace(
            "tenant",
            &format!("t{id:02}"),
            &[&address],
            &["10.244.1.1:80"],
        )
    });
    let mut all: Vec<_> = tenants.collect();
    all.insert(0, dns.clone());
    settle(
        &table(&all.iter().collect::<Vec<_>>()),
        &mut maps,
        &mut image,
    );
    assert_eq!(image.usage().slots4, 32);
    (maps, image, all)
}

/// What clients of kube-dns get.
fn dns_serves(image: &MapImage) -> Option<Vec<SocketAddr>> {
    let address = "203.0.113.1".parse().unwrap();
    let port = KeyPort::Port(Protocol::Tcp, 80);
    let index = image.service_of(&FrontendKey { address, port })?;
    Some(image.services[&index].set.as_ref()?.backends.to_vec())
}

#[test]
fn kube_dns_that_grows_in_a_full_map_gets_all_its_endpoints_at_the_cost_of_who_has_most() {
    let (mut maps, mut image, mut all) = filled(&dns(&numbered(1, 3)));
    for backends in [
        numbered(11, 5),
        numbered(21, 9),
        numbered(31, 9),
        numbered(41, 2),
    ] {
        all[0] = dns(&backends);
        let wanted = table(&all.iter().collect::<Vec<_>>());
        let planned = settle(&wanted, &mut maps, &mut image);
        assert_eq!(dns_serves(&image).unwrap(), all[0].v4.cluster.to_vec());
        assert!(
            names(&planned.refused)
                .iter()
                .all(|name| name.starts_with("tenant/"))
        );
        // And nobody more than has to.
        let served = 61 - planned.refused.len();
        assert_eq!(served, 32 - backends.len(), "{backends:?}");
    }
}

#[test]
fn kube_dns_that_is_made_anew_or_comes_late_gets_its_place_in_a_full_map() {
    let (mut maps, mut image, mut all) = filled(&dns(&numbered(1, 3)));
    let without = table(&all[1..].iter().collect::<Vec<_>>());
    settle(&without, &mut maps, &mut image);
    assert_eq!(dns_serves(&image), None);
    all[0] = dns(&numbered(11, 3));
    let wanted = table(&all.iter().collect::<Vec<_>>());
    settle(&wanted, &mut maps, &mut image);
    assert_eq!(dns_serves(&image).unwrap().len(), 3);
    // And from an agent that finds a map that is full of a tenant's.
    settle(&without, &mut maps, &mut image);
    let mut found = maps.observe().unwrap();
    settle(&wanted, &mut maps, &mut found);
    assert_eq!(dns_serves(&found).unwrap().len(), 3);
}

#[test]
fn who_asks_for_more_than_there_is_takes_nobody_out_for_nothing() {
    let (mut maps, mut image, mut all) = filled(&dns(&numbered(1, 3)));
    let before = image.usage().services;
    all[0] = dns(&numbered(11, 40));
    let wanted = table(&all.iter().collect::<Vec<_>>());
    let planned = settle(&wanted, &mut maps, &mut image);
    assert_eq!(image.usage().services, before);
    assert_eq!(
        dns_serves(&image).unwrap().len(),
        3,
        "as many as it had room for"
    );
    assert!(names(&planned.refused).contains(&"kube-system/kube-dns".to_owned()));
}

#[test]
fn a_set_in_a_full_map_serves_what_is_still_right_at_every_write() {
    let (mut maps, mut image, mut all) = filled(&dns(&numbered(1, 3)));
    // Two of three stay; the copy has no room yet.
    all[0] = dns(&[numbered(2, 2), numbered(9, 1)].concat());
    let wanted = table(&all.iter().collect::<Vec<_>>());
    let known: BTreeSet<SocketAddr> = all[0].v4.cluster.iter().collect();
    let planned = plan(&wanted, &mut image);
    maps.apply(&planned).unwrap();
    let kept = dns_serves(&image).unwrap();
    assert_eq!(kept.len(), 2);
    assert!(kept.iter().all(|at| known.contains(at)));
    assert!(maps.holds(&image).unwrap());
    settle(&wanted, &mut maps, &mut image);
    assert_eq!(dns_serves(&image).unwrap().len(), 3);
}

#[test]
fn kube_dns_that_is_made_anew_gets_its_rows_from_a_tenant_where_known_addresses_take_rows_too() {
    let capacity = Capacity {
        frontends4: 64,
        services: 128,
        slots4: 128,
        ..CAPACITY
    };
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    let in_cluster = |namespace: &str, name: &str, last: u8| {
        let address = format!("10.96.0.{last}");
        let entry = in_namespace(namespace, name, &[&address], &["10.244.1.1:80"]);
        let mut entry = ServiceEntry::clone(&entry);
        entry.frontends[0].kind = FrontendKind::ClusterIp;
        Arc::new(entry)
    };
    let mut all = vec![in_cluster("kube-system", "kube-dns", 250)];
    all.extend((1..60).map(|id| in_cluster("tenant", &format!("t{id:02}"), id)));
    // Guessed from what ClusterIPs there are, so they change with each of them.
    let of = |services: &[Arc<ServiceEntry>], prefix: &str| {
        let mut table = table(&services.iter().collect::<Vec<_>>());
        table.cluster_prefixes = ClusterPrefixes {
            prefixes: vec![prefix.parse().unwrap()],
            are_service_cidrs: false,
        };
        table
    };
    let (with, without) = (of(&all, "10.96.0.0/24"), of(&all[1..], "10.96.0.0/26"));
    let is_there = |image: &MapImage| {
        let address = "10.96.0.250".parse().unwrap();
        let port = KeyPort::Port(Protocol::Tcp, 80);
        image.service_of(&FrontendKey { address, port }).is_some()
    };
    for _ in 0..3 {
        settle(&with, &mut maps, &mut image);
        assert!(is_there(&image));
        settle(&without, &mut maps, &mut image);
        assert!(!is_there(&image));
        let mut found = maps.observe().unwrap();
        settle(&with, &mut maps.clone(), &mut found);
        assert!(is_there(&found), "by another agent");
    }
}
