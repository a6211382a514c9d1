//! What tenants lose to kube-system, and what they keep.

use super::*;

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

/// `count` endpoints of a Service that is known by the last byte of its address.
fn small(namespace: &str, id: u8, family: AddressFamily, count: u8) -> Arc<ServiceEntry> {
    let backend = |n| match family {
        AddressFamily::V4 => format!("10.244.{id}.{n}:80"),
        AddressFamily::V6 => format!("[fd00:{id}::{n:x}]:80"),
    };
    let backends: Vec<String> = (1..=count).map(backend).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    in_namespace(
        namespace,
        &format!("s{id:03}"),
        &[&at(id, family)],
        &backends,
    )
}

fn at(id: u8, family: AddressFamily) -> String {
    match family {
        AddressFamily::V4 => format!("203.0.113.{id}"),
        AddressFamily::V6 => format!("2001:db8::{id:x}"),
    }
}

/// Maps of 512 slots: a Service of kube-system with some endpoints, and tenants by how many they have.
struct Crowd {
    family: AddressFamily,
    maps: MemoryDataplane,
    image: MapImage,
    tenants: Vec<Arc<ServiceEntry>>,
}

const SYSTEM: u8 = 250;

impl Crowd {
    fn new(family: AddressFamily, system: u8, tenants: &[u8]) -> Self {
        let capacity = Capacity {
            slots4: 512,
            slots6: 512,
            services: 1024,
            frontends4: 512,
            frontends6: 512,
        };
        let tenants = (1..).zip(tenants);
        let tenants = tenants.map(|(id, count)| small(&format!("n{}", id % 3), id, family, *count));
        let mut crowd = Self {
            family,
            maps: MemoryDataplane::new(capacity),
            image: MapImage::empty(capacity),
            tenants: tenants.collect(),
        };
        assert_eq!(crowd.grow(system), []);
        crowd
    }

    fn table(&self, system: u8) -> ServiceTable {
        let system = small("kube-system", SYSTEM, self.family, system);
        let mut all: Vec<_> = self.tenants.iter().chain([&system]).collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        table(&all)
    }

    /// Has kube-system's Service as many endpoints. Whatever is written last, whoever has an endpoint keeps one.
    fn grow(&mut self, system: u8) -> Vec<Refused> {
        let wanted = self.table(system);
        let had = self.has();
        let mut planned = Plan::default();
        for _ in 0..8 {
            planned = plan(&wanted, &mut self.image);
            for op in &planned.ops {
                let ops = vec![op.clone()];
                self.maps
                    .apply(&Plan {
                        ops,
                        ..Plan::default()
                    })
                    .unwrap();
                let mut seen = self.maps.observe().unwrap();
                std::mem::swap(&mut self.image, &mut seen);
                let has = self.has();
                std::mem::swap(&mut self.image, &mut seen);
                let both = had.iter().zip(&has).zip(&self.tenants);
                for ((had, has), tenant) in both {
                    assert!(*had == 0 || *has > 0, "{} after {op:?}", tenant.key);
                }
            }
            if planned.refused.is_empty() || !planned.has_freed {
                break;
            }
        }
        assert!(self.maps.holds(&self.image).unwrap());
        assert_eq!(
            how_many(&self.image, &at(SYSTEM, self.family)),
            usize::from(system)
        );
        assert_eq!(plan(&wanted, &mut self.image).ops, []);
        planned.refused
    }

    /// How many endpoints each tenant's Service has in force.
    fn has(&self) -> Vec<usize> {
        let ids = (1..).take(self.tenants.len());
        ids.map(|id| how_many(&self.image, &at(id, self.family)))
            .collect()
    }
}

#[test]
fn tenants_that_lie_in_what_kube_system_grows_into_keep_a_part_of_their_endpoints() {
    for family in [AddressFamily::V4, AddressFamily::V6] {
        let tenants = [60, 61, 62, 63, 64, 65, 66, 59];
        for system in [120, 200] {
            let mut crowd = Crowd::new(family, 3, &tenants);
            let refused = crowd.grow(system);
            let has = crowd.has();
            // An even share would be 48, or 38.
            assert!(has.iter().all(|has| *has >= 20), "{has:?}");
            // Little is free but for what newcomers and growth leave.
            let used = has.iter().sum::<usize>() + usize::from(system);
            assert!(used >= 512 - 2 * 512 / 64, "{has:?}");
            assert!(
                refused.iter().all(|refused| refused.has_some),
                "{refused:?}"
            );

            // By another agent nothing changes.
            let mut found = crowd.maps.observe().unwrap();
            let ops = plan(&crowd.table(system), &mut found).ops;
            assert!(ops.iter().all(|op| *op == Op::Grace), "{ops:?}");

            // A reboot empties the maps, and may share otherwise.
            let mut image = MapImage::empty(crowd.image.capacity());
            image.remember(
                crowd
                    .tenants
                    .iter()
                    .map(|entry| entry.key.clone())
                    .collect(),
            );
            crowd.maps = MemoryDataplane::new(crowd.image.capacity());
            crowd.image = image;
            crowd.grow(system);
            let has = crowd.has();
            assert!(has.iter().all(|has| *has >= 30), "{has:?}");

            // What was taken is given back, but for gaps that are too short for a copy.
            crowd.grow(3);
            let has = crowd.has();
            assert!(has.iter().sum::<usize>() >= 430, "{has:?}");
        }
    }
}

#[test]
fn small_services_in_one_large_range_move_and_lose_nothing_while_others_have_much() {
    let mut tenants = vec![2; 100];
    tenants.extend([100, 150]);
    let mut crowd = Crowd::new(AddressFamily::V4, 3, &tenants);
    for system in [150, 240, 20, 200] {
        crowd.grow(system);
        let has = crowd.has();
        assert!(has.iter().all(|has| *has > 0), "{has:?}");
    }
}

#[test]
fn where_nothing_is_free_the_largest_share_with_those_who_have_to_move() {
    // One slot for each of the tenants, and one for each of kube-system's and the self-test's.
    let mut tenants = vec![1; 150];
    tenants.extend([175, 175]);
    let mut crowd = Crowd::new(AddressFamily::V4, 3, &tenants);
    for system in [100, 150, 200] {
        crowd.grow(system);
        let has = crowd.has();
        assert!(has.iter().all(|has| *has > 0), "{system}: {has:?}");
    }
}

#[test]
fn the_first_endpoint_of_a_service_that_had_none_gets_a_slot_that_is_kept_free() {
    let mut crowd = Crowd::new(AddressFamily::V4, 3, &[0, 240, 240, 20]);
    assert_eq!(crowd.image.usage().slots4, 504);
    crowd.tenants[0] = small("n1", 1, AddressFamily::V4, 3);
    let refused = crowd.grow(3);
    assert_eq!(crowd.has()[0], 1);
    assert_eq!(names(&refused), ["n1/s001"]);
}
