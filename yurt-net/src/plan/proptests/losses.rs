//! What tenants keep, whatever kube-system and others ask for, and whoever is killed.

use super::*;

/// What may happen.
#[derive(Clone, Debug)]
enum Step {
    /// One of kube-system's Services asks for so many endpoints.
    System(usize, usize),
    /// A tenant's Service asks for so many, from this one on. 0: it goes.
    Tenant(usize, usize, usize),
    /// Another agent finds the maps, perhaps before this one has written all of a plan.
    Killed(usize),
    /// The maps are new.
    Reboot,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3usize, 0..40usize).prop_map(|(which, count)| Step::System(which, count)),
        3 => (0..16usize, 0..60usize, 0..40usize)
            .prop_map(|(which, count, first)| Step::Tenant(which, count, first)),
        1 => (0..12usize).prop_map(Step::Killed),
        1 => Just(Step::Reboot),
    ]
}

/// `count` endpoints from `first` on, some of which others of the same Service have, too.
fn with(entry: &ServiceEntry, first: usize, count: usize) -> Arc<ServiceEntry> {
    let last = |id| u8::try_from(id).unwrap();
    let at = |id| SocketAddr::new(Ipv4Addr::new(10, 9, 9, last(id)).into(), 8080);
    let v4 = EndpointSet::cluster((first..first + count).map(at));
    Arc::new(ServiceEntry {
        v4,
        ..entry.clone()
    })
}

/// How many endpoints a client gets; `None`: it is left out.
fn served(maps: &MemoryDataplane, entry: &ServiceEntry) -> Option<usize> {
    let frontend = entry.frontends.first().unwrap();
    let dialled = (frontend.address, frontend.port, Protocol::Tcp);
    match answer(maps, dialled, Scope::Internal) {
        Answer::Backends(seen) => Some(seen.len()),
        Answer::Refuse | Answer::Drop => Some(0),
        Answer::Pass => None,
    }
}

proptest! {
    #![proptest_config(crate::cases::cases(128))]

    #[test]
    fn no_service_in_force_is_ever_without_an_endpoint_while_there_is_a_slot_for_each(
        tenants in proptest::collection::vec((0..3usize, 1..50usize), 1..16),
        steps in proptest::collection::vec(step(), 1..12),
        slots4 in 250..320u32,
    ) {
        // kube-system has at most 117 slots, and as many for copies of all its sets at once.
        let capacity = Capacity { slots4, ..ROOMY };
        let (mut maps, mut image) = (empty(capacity), MapImage::empty(capacity));
        let names = ["a-tenant", "tenant-b", "z-tenant"];
        let mut all: BTreeMap<ServiceKey, Arc<ServiceEntry>> = BTreeMap::new();
        for (id, (namespace, backends)) in tenants.iter().enumerate() {
            let entry = tenant(names[*namespace], id, 1, *backends);
            all.insert(entry.key.clone(), entry);
        }
        let mut old: BTreeMap<ServiceKey, Arc<ServiceEntry>> = BTreeMap::new();
        for step in std::iter::once(None).chain(steps.iter().map(Some)) {
            let (mut is_reboot, mut crash) = (false, None);
            match step {
                None => {}
                Some(Step::System(which, count)) => {
                    let entry = with(&tenant("kube-system", *which, 1, 0), 0, *count);
                    all.insert(entry.key.clone(), entry);
                }
                Some(Step::Tenant(which, count, first)) => {
                    let tenants: Vec<_> = all.keys().filter(|key| !comes_first(key)).cloned().collect();
                    let Some(key) = tenants.get(which % tenants.len().max(1)) else { continue };
                    match count {
                        0 => drop(all.remove(key)),
                        _ => drop(all.insert(key.clone(), with(&all[key], *first, *count))),
                    }
                }
                Some(Step::Killed(after)) => crash = Some(*after),
                Some(Step::Reboot) => is_reboot = true,
            }
            let table = ServiceTable {
                services: all.values().cloned().collect(),
                ..ServiceTable::default()
            };
            let before = maps.clone();
            if is_reboot {
                let left_out: BTreeSet<_> = image.left_out().cloned().collect();
                let in_force = old.keys().filter(|key| !left_out.contains(*key));
                let in_force = in_force.cloned().collect();
                (maps, image) = (empty(capacity), MapImage::empty(capacity));
                image.remember(in_force);
            }
            if let Some(after) = crash {
                // It was about to write this, for another kube-system.
                let mut other = all.clone();
                for which in 0..3 {
                    let entry = with(&tenant("kube-system", which, 1, 0), 0, 39 - which);
                    other.insert(entry.key.clone(), entry);
                }
                let other = ServiceTable { services: other.into_values().collect(), ..table.clone() };
                let mut left = after;
                'written: for _ in 0..8 {
                    let planned = plan(&other, &mut image);
                    for op in planned.ops {
                        if left == 0 {
                            break 'written;
                        }
                        left -= 1;
                        maps.apply(&Plan { ops: vec![op], ..Plan::default() }).unwrap();
                    }
                    if planned.refused.is_empty() || !planned.has_freed {
                        break;
                    }
                }
                image = maps.observe().unwrap();
            }
            let mut is_settled = false;
            for _ in 0..8 {
                let planned = plan(&table, &mut image);
                for op in planned.ops {
                    maps.apply(&Plan { ops: vec![op.clone()], ..Plan::default() }).unwrap();
                    for entry in all.values().filter(|_| !is_reboot) {
                        let is_same = old.get(&entry.key).is_some_and(|was| was == entry);
                        if is_same && served(&before, entry) > Some(0) {
                            let now = served(&maps, entry);
                            prop_assert!(now > Some(0), "{}: {now:?} after {op:?}", entry.key);
                        }
                    }
                }
                if planned.refused.is_empty() || !planned.has_freed {
                    is_settled = true;
                    break;
                }
            }
            prop_assert!(is_settled);
            prop_assert!(maps.holds(&image).unwrap());
            prop_assert_eq!(plan(&table, &mut image).ops, vec![]);
            let ops = plan(&table, &mut maps.observe().unwrap()).ops;
            prop_assert!(ops.iter().all(|op| *op == Op::Grace), "another agent: {ops:?}");
            for entry in all.values() {
                let (wanted, now) = (entry.v4.cluster.len(), served(&maps, entry));
                let was_in_force = old.contains_key(&entry.key) && served(&before, entry).is_some();
                if comes_first(&entry.key) {
                    prop_assert_eq!(now, Some(wanted), "{}", entry.key);
                } else if was_in_force {
                    prop_assert!(now > Some(0), "{}: {now:?}", entry.key);
                }
            }
            old = all.clone();
        }
    }
}
