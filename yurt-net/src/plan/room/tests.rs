//! Who gets the room of a full map, spelled out.

use std::net::SocketAddr;

use super::super::tests::{CAPACITY, table};
use super::super::*;
use crate::dataplane::Dataplane;
use crate::dataplane::service::memory::MemoryDataplane;
use crate::model::{Protocol, TrafficPolicy};
use crate::table::{EndpointSet, Frontend, FrontendKind, Scope};

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
    served(image, "203.0.113.1")
}

/// What clients of an address get.
fn served(image: &MapImage, address: &str) -> Option<Vec<SocketAddr>> {
    let address = address.parse().unwrap();
    let port = KeyPort::Port(Scope::Internal, Protocol::Tcp, 80);
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
        let port = KeyPort::Port(Scope::Internal, Protocol::Tcp, 80);
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

fn endpoints(first: u8, count: u8) -> Vec<String> {
    let ids = first..first + count;
    ids.map(|id| format!("10.244.1.{id}:80")).collect()
}

fn bulk(backends: &[String]) -> Arc<ServiceEntry> {
    let backends: Vec<_> = backends.iter().map(String::as_str).collect();
    in_namespace("tenant", "bulk", &["198.51.100.1"], &backends)
}

fn second_dns(count: u8) -> Arc<ServiceEntry> {
    let backends = numbered(101, count);
    let backends: Vec<_> = backends.iter().map(String::as_str).collect();
    in_namespace("kube-system", "second", &["203.0.113.2"], &backends)
}

fn how_many(image: &MapImage, address: &str) -> usize {
    served(image, address).map_or(0, |all| all.len())
}

const LARGE: Capacity = Capacity {
    slots4: 256,
    ..CAPACITY
};

#[test]
fn a_large_set_gives_kube_system_a_part_and_gets_it_back_when_it_goes() {
    let (mut maps, mut image) = (MemoryDataplane::new(LARGE), MapImage::empty(LARGE));
    let (dns, bulk) = (dns(&numbered(1, 3)), bulk(&endpoints(1, 245)));
    let before = table(&[&dns, &bulk]);
    assert_eq!(settle(&before, &mut maps, &mut image).refused, []);

    let second = second_dns(20);
    let full = table(&[&dns, &second, &bulk]);
    let first = plan(&full, &mut image);
    maps.apply(&first).unwrap();
    // All slots but those of kube-system and the self-test, at every write.
    assert_eq!(how_many(&image, "198.51.100.1"), 256 - 24);
    let planned = settle(&full, &mut maps, &mut image);
    assert_eq!(how_many(&image, "203.0.113.2"), 20);
    assert_eq!(how_many(&image, "198.51.100.1"), 256 - 24);
    assert_eq!(names(&planned.refused), ["tenant/bulk"]);
    assert!(planned.refused[0].has_some);
    assert_eq!(plan(&full, &mut image).ops, []);

    // By another agent, nothing changes; by one after a reboot, it has a part again.
    let mut found = maps.observe().unwrap();
    let ops = plan(&full, &mut found).ops;
    assert!(ops.iter().all(|op| *op == Op::Grace), "{ops:?}");
    let mut anew = MapImage::empty(LARGE);
    let in_force = full.services.iter().map(|entry| entry.key.clone());
    anew.remember(in_force.collect());
    settle(&full, &mut MemoryDataplane::new(LARGE), &mut anew);
    assert_eq!(how_many(&anew, "203.0.113.2"), 20);
    assert_eq!(how_many(&anew, "198.51.100.1"), 256 - 24 - 256 / 64);

    // A copy of it has no room beside it, but where it lies there is.
    assert_eq!(settle(&before, &mut maps, &mut image).refused, []);
    assert_eq!(how_many(&image, "198.51.100.1"), 245);
}

#[test]
fn a_set_that_was_cut_down_changes_and_grows_as_far_as_there_is_room() {
    let (mut maps, mut image) = (MemoryDataplane::new(LARGE), MapImage::empty(LARGE));
    let (dns, second) = (dns(&numbered(1, 3)), second_dns(20));
    let all = endpoints(1, 250);
    let large = bulk(&all[..240]);
    settle(&table(&[&dns, &large]), &mut maps, &mut image);
    settle(&table(&[&dns, &second, &large]), &mut maps, &mut image);
    assert_eq!(how_many(&image, "198.51.100.1"), 232);
    for gone in [3, 120, 200] {
        let mut left = all.clone();
        left.remove(gone);
        let wanted = table(&[&dns, &second, &bulk(&left)]);
        settle(&wanted, &mut maps, &mut image);
        let has = how_many(&image, "198.51.100.1");
        assert!(has >= 256 - 24 - 256 / 64, "{has} of 249 without {gone}");
    }
}

#[test]
fn a_set_with_source_ranges_keeps_them_when_it_is_cut_down() {
    let (mut maps, mut image) = (MemoryDataplane::new(LARGE), MapImage::empty(LARGE));
    let dns = dns(&numbered(1, 3));
    let mut limited = ServiceEntry::clone(&bulk(&endpoints(1, 240)));
    limited.frontends[0].kind = FrontendKind::LoadBalancer;
    limited.source_ranges = ["10.0.0.0/8", "192.0.2.0/24"]
        .map(|range| range.parse().unwrap())
        .into();
    let limited = Arc::new(limited);
    settle(&table(&[&dns, &limited]), &mut maps, &mut image);
    let second = second_dns(20);
    settle(&table(&[&dns, &second, &limited]), &mut maps, &mut image);
    assert_eq!(how_many(&image, "203.0.113.2"), 20);
    // Ranges follow the last backend, so what is free behind them is of no use.
    assert_eq!(how_many(&image, "198.51.100.1"), 240 - 20);
    let sets = image
        .services()
        .values()
        .filter_map(|service| service.set.as_ref());
    let limits = sets.filter(|set| !set.ranges().is_empty());
    let limits: Vec<usize> = limits.map(|set| set.ranges().len()).collect();
    assert_eq!(limits, [2]);
}

#[test]
fn kube_system_gets_its_part_of_a_set_that_changes_in_the_same_moment() {
    let (mut maps, mut image) = (MemoryDataplane::new(LARGE), MapImage::empty(LARGE));
    let dns = dns(&numbered(1, 3));
    settle(
        &table(&[&dns, &bulk(&endpoints(1, 240))]),
        &mut maps,
        &mut image,
    );
    let second = second_dns(20);
    let wanted = table(&[&dns, &second, &bulk(&endpoints(3, 240))]);
    settle(&wanted, &mut maps, &mut image);
    assert_eq!(how_many(&image, "203.0.113.2"), 20);
    assert!(how_many(&image, "198.51.100.1") >= 256 - 24 - 256 / 64);
}

#[test]
fn where_rows_lack_who_has_most_rows_pays_and_not_who_has_most_slots() {
    let capacity = Capacity {
        frontends4: 168,
        services: 256,
        slots4: 256,
        ..CAPACITY
    };
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    let mut all = vec![dns(&numbered(1, 3))];
    for id in 0..5 {
        let backends: Vec<String> = (1..27).map(|n| format!("10.244.{id}.{n}:80")).collect();
        let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
        let at = format!("10.97.1.{id}");
        all.push(in_namespace("modest", &format!("m{id}"), &[&at], &backends));
    }
    for id in 0..4 {
        let at: Vec<String> = (0..24)
            .map(|n| format!("10.97.2.{}", id * 24 + n))
            .collect();
        let at: Vec<&str> = at.iter().map(String::as_str).collect();
        all.push(in_namespace(
            "greedy",
            &format!("g{id}"),
            &at,
            &["10.244.66.6:80"],
        ));
    }
    for id in 0..60 {
        let at = format!("10.97.3.{id}");
        all.push(in_namespace(
            &format!("ns{id}"),
            "x",
            &[&at],
            &["10.244.67.7:80"],
        ));
    }
    all.sort_by(|a, b| a.key.cmp(&b.key));
    settle(
        &table(&all.iter().collect::<Vec<_>>()),
        &mut maps,
        &mut image,
    );
    let of_dns: Vec<String> = (2..10).map(|n| format!("203.0.113.{n}")).collect();
    let of_dns: Vec<&str> = of_dns.iter().map(String::as_str).collect();
    all.push(in_namespace(
        "kube-system",
        "second",
        &of_dns,
        &["10.244.9.9:53"],
    ));
    all.sort_by(|a, b| a.key.cmp(&b.key));
    let wanted = table(&all.iter().collect::<Vec<_>>());
    for _ in 0..4 {
        let planned = plan(&wanted, &mut image);
        maps.apply(&planned).unwrap();
        let modest = names(&planned.refused);
        assert!(
            !modest.iter().any(|name| name.starts_with("modest/")),
            "{modest:?}"
        );
        assert!(
            modest
                .iter()
                .filter(|name| name.starts_with("greedy/"))
                .count()
                <= 1
        );
    }
    assert_eq!(how_many(&image, "203.0.113.9"), 1);
}

#[test]
fn what_is_in_force_at_an_address_is_what_a_client_gets_there() {
    let capacity = Capacity {
        frontends4: 3,
        ..CAPACITY
    };
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    let two = ["203.0.113.1", "10.96.0.9"];
    let one = in_namespace("a", "a", &two, &["10.244.0.1:80"]);
    let late = in_namespace("b", "b", &["203.0.113.2", "10.96.0.10"], &["10.244.0.2:80"]);
    settle(&table(&[&one, &late]), &mut maps, &mut image);
    let at = |to: &str| image.in_force(to.parse().unwrap(), Protocol::Tcp, Scope::Internal);
    for to in two {
        let backends = one.v4.cluster.clone();
        assert_eq!(at(&format!("{to}:80")), InForce::Forward(backends));
    }
    // Inside the ServiceCIDR, and outside of it.
    assert_eq!(at("10.96.0.10:80"), InForce::Refuse);
    assert_eq!(at("203.0.113.2:80"), InForce::Pass);
}

#[test]
fn clients_outside_whose_rows_have_no_room_are_refused_and_never_led_to_the_set_of_this_node() {
    let local = |external_policy| {
        let one = in_namespace(
            "a",
            "a",
            &["203.0.113.1"],
            &["10.244.0.1:80", "10.244.0.2:80"],
        );
        let mut one = ServiceEntry::clone(&one);
        one.external_policy = external_policy;
        one.v4.local = one.v4.cluster.iter().take(1).collect();
        let services = table(&[&Arc::new(one)]);
        ServiceTable {
            serves_packets: true,
            ..services
        }
    };
    // The self-test's row, and one more, or two.
    for (frontends4, has_room) in [(2, false), (3, true)] {
        let capacity = Capacity {
            frontends4,
            ..CAPACITY
        };
        let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
        settle(&local(TrafficPolicy::Cluster), &mut maps, &mut image);
        let at = |image: &MapImage, scope| {
            let to = "203.0.113.1:80".parse().unwrap();
            match image.in_force(to, Protocol::Tcp, scope) {
                InForce::Forward(backends) => backends.len(),
                InForce::Refuse => 0,
                InForce::Pass => panic!("{scope} passes"),
            }
        };
        assert_eq!(at(&image, Scope::External), 2);
        let planned = settle(&local(TrafficPolicy::Local), &mut maps, &mut image);
        assert_eq!(planned.refused.is_empty(), has_room);
        assert_eq!(at(&image, Scope::External), usize::from(has_room));
        assert_eq!(at(&image, Scope::Internal), 2);
        settle(&local(TrafficPolicy::Cluster), &mut maps, &mut image);
        assert_eq!(at(&image, Scope::External), 2);
    }
}

#[test]
fn a_service_whose_new_addresses_have_no_room_does_not_go_on_with_an_old_policy_outside() {
    let capacity = Capacity {
        frontends4: 3,
        ..CAPACITY
    };
    let (mut maps, mut image) = (MemoryDataplane::new(capacity), MapImage::empty(capacity));
    let of = |addresses: &[&str], external_policy| {
        let one = in_namespace("a", "a", addresses, &["10.244.0.1:80"]);
        let one = ServiceEntry {
            external_policy,
            ..ServiceEntry::clone(&one)
        };
        ServiceTable {
            serves_packets: true,
            ..table(&[&Arc::new(one)])
        }
    };
    settle(
        &of(&["203.0.113.1"], TrafficPolicy::Cluster),
        &mut maps,
        &mut image,
    );
    let more = ["203.0.113.1", "203.0.113.2", "203.0.113.3"];
    settle(&of(&more, TrafficPolicy::Local), &mut maps, &mut image);
    let to = "203.0.113.1:80".parse().unwrap();
    let outside = image.in_force(to, Protocol::Tcp, Scope::External);
    assert_eq!(outside, InForce::Refuse);
    assert_ne!(
        image.in_force(to, Protocol::Tcp, Scope::Internal),
        InForce::Refuse
    );
}
