//! Maps that do not hold all that is asked for.

use super::*;
use crate::plan::room::KEPT_FREE;

/// A service port of which a plan could serve more than there is, and why.
fn what_fits(image: &MapImage, table: &ServiceTable) -> Option<String> {
    let all = table.services.iter();
    let all = all.flat_map(|entry| [AddressFamily::V4, AddressFamily::V6].map(|f| (entry, f)));
    let mut all = all.flat_map(|(entry, family)| {
        let units = units(entry, family, table).into_iter().flatten();
        units.map(move |unit| (entry, unit))
    });
    let left = |unused: usize, map: FullMap, key: &ServiceKey| {
        let kept = match comes_first(key) {
            true => 0,
            false => image.capacity.by_map()[map as usize] / KEPT_FREE,
        };
        unused.saturating_sub(kept)
    };
    all.find_map(|(entry, unit)| {
        let space = image.space(unit.family).after_the_plan();
        let index = unit.rows.iter().find_map(|(row, _)| image.service_of(row));
        let room = left(space.unused(), FullMap::slots(unit.family), &entry.key);
        let wanted = unit.set.slots();
        let Some(index) = index else {
            let unused = image.indices.after_the_plan().unused();
            let indices = left(unused, FullMap::Services, &entry.key);
            let unused = image.capacity.frontends(unit.family) - image.rows(unit.family);
            let rows = left(unused, FullMap::frontends(unit.family), &entry.key);
            let is_new = |row: &FrontendKey| !image.frontends.contains_key(row);
            let needs = unit.rows.iter().filter(|(row, _)| is_new(row)).count();
            let fits = needs <= rows
                && indices >= 1
                && wanted as usize <= room
                && wanted <= space.longest();
            return fits.then(|| format!("{} has room for {wanted}", entry.key));
        };
        let service = &image.services[&index];
        let has = service.set.as_ref()?;
        if *has == unit.set {
            return None;
        }
        let most = wanted.min(has.slots() + u32::try_from(room).unwrap());
        let (start, end) = (service.base, service.base + has.slots());
        let ends = has.backends.iter().next().zip(has.backends.iter().last());
        let lacks =
            |is_beyond: &dyn Fn(SocketAddr) -> bool| unit.set.backends.iter().any(is_beyond);
        let grows = ends.is_some_and(|(first, last)| {
            let before = space.free_before(start) > 0 && lacks(&|one| one < first);
            let after = space.free_from(end) > 0 && lacks(&|one| one > last);
            before || after && has.ranges().is_empty()
        });
        // Nobody is let in by ranges of which some are missing.
        let ranges = u32::try_from(unit.set.ranges().len()).unwrap();
        let copied = most.min(space.longest());
        let fits = most > has.slots() && (grows || copied > has.slots().max(ranges));
        fits.then(|| format!("{} has {} of {wanted}, and room", entry.key, has.slots()))
    })
}

/// No row leads to an index that nobody has: the next one who gets it would be served there.
fn assert_rows_lead_somewhere(image: &MapImage) {
    for key in image.frontends.keys() {
        let service = image.service_of(key);
        assert!(
            service.is_none_or(|index| image.services.contains_key(&index)),
            "{key:?}"
        );
    }
}

proptest! {
    #![proptest_config(crate::cases::cases(96))]

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
            for (dialled, scope) in everybody() {
                let seen = answer(&maps, dialled, scope);
                let wanted = expected(table, dialled, scope);
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
            assert_rows_lead_somewhere(&image);
            let again = plan(table, &mut image);
            prop_assert_eq!(again.ops, vec![]);
            prop_assert_eq!(&again.refused, &before);
            prop_assert_eq!(what_fits(&image, table), None);
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
            answer(maps, (frontend.address, frontend.port, Protocol::Tcp), Scope::Internal)
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
            assert_rows_lead_somewhere(&image);
            prop_assert_eq!(plan(&table, &mut image).ops, vec![]);
            prop_assert_eq!(what_fits(&image, &table), None);
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
    fn what_kube_system_lacks_is_cut_from_those_who_have_most_and_they_keep_all_else(
        tenants in proptest::collection::vec((0..3usize, 1..150usize), 1..8),
        steps in proptest::collection::vec((0..6usize, 0..16usize, 0..100usize), 1..8),
        slots4 in 200..300u32,
    ) {
        let capacity = Capacity { slots4, ..ROOMY };
        let (mut maps, mut image) = (empty(capacity), MapImage::empty(capacity));
        let names = ["a-tenant", "tenant-b", "z-tenant"];
        let with = |entry: &ServiceEntry, ids: std::ops::Range<usize>| {
            let last = |id: usize| u8::try_from(id).unwrap();
            let at = |id| Ipv4Addr::new(10, 9, 9, last(id)).into();
            let v4 = EndpointSet::cluster(ids.map(|id| SocketAddr::new(at(id), 8080)));
            Arc::new(ServiceEntry { v4, ..entry.clone() })
        };
        let mut all: BTreeMap<ServiceKey, Arc<ServiceEntry>> = BTreeMap::new();
        for (id, (namespace, backends)) in tenants.iter().enumerate() {
            let entry = tenant(names[*namespace], id, 1, *backends);
            all.insert(entry.key.clone(), entry);
        }
        let served = |maps: &MemoryDataplane, entry: &ServiceEntry| {
            let frontend = entry.frontends.first().unwrap();
            match answer(maps, (frontend.address, frontend.port, Protocol::Tcp), Scope::Internal) {
                Answer::Backends(seen) => seen.len(),
                _ => 0,
            }
        };
        let mut old = ServiceTable::default();
        let first = std::iter::once(None);
        for step in first.chain(steps.iter().map(Some)) {
            if let Some((which, count, offset)) = step {
                // Three of kube-system, then tenants', whose endpoints change.
                let entry = match which {
                    0..3 => tenant("kube-system", *which, 1, 0),
                    _ => all.values().nth(*which).unwrap_or_else(|| all.values().next().unwrap()).clone(),
                };
                let is_first = comes_first(&entry.key);
                let count = if is_first { *count } else { count * 8 };
                let changed = match count {
                    0 => None,
                    _ => Some(with(&entry, *offset..*offset + count)),
                };
                match changed {
                    Some(changed) => { all.insert(entry.key.clone(), changed); }
                    None => { all.remove(&entry.key); }
                }
                if all.is_empty() {
                    break;
                }
            }
            let table = ServiceTable { services: all.values().cloned().collect(), ..ServiceTable::default() };
            let before = maps.clone();
            settle(&mut maps, &mut image, &table);
            prop_assert!(maps.holds(&image).unwrap());
            assert_rows_lead_somewhere(&image);
            prop_assert_eq!(plan(&table, &mut image).ops, vec![]);
            prop_assert_eq!(what_fits(&image, &table), None);
            let ops = plan(&table, &mut maps.observe().unwrap()).ops;
            prop_assert!(ops.iter().all(|op| *op == Op::Grace), "another agent: {ops:?}");
            for entry in all.values() {
                let (wanted, now) = (entry.v4.cluster.len(), served(&maps, entry));
                if comes_first(&entry.key) {
                    prop_assert_eq!(now, wanted, "{}", entry.key);
                } else if old.services.iter().any(|was| was == entry) {
                    // A window of 45 slots, as much as all of kube-system's together, reaches into it at one end, or
                    // leaves the longer side of what it does not reach.
                    let had = served(&before, entry);
                    prop_assert!(now >= had.saturating_sub(45) / 2, "{}: {now} of {had}", entry.key);
                    prop_assert!(now > 0 || had <= 45, "{}: {now} of {had}", entry.key);
                }
            }
            old = table;
        }
    }
}
