//! Whoever reads while a plan is written, and whoever starts after it was written in part.

use super::*;

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
            for (dialled, scope) in everybody() {
                if let Resolved::Service(word, service) = resolve(&maps, dialled, scope) {
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
            // Where packets are not served any more, no program looks for what clients outside get.
            let is_off = old.serves_packets && !new.serves_packets;
            let mut stopped = maps.clone();
            for op in &planned.ops {
                for (dialled, scope) in everybody() {
                    let seen = answer(&stopped, dialled, scope);
                    let before = expected(&old, dialled, scope);
                    let after = expected(new, dialled, scope);
                    // A frontend that comes or goes may be refused meanwhile; one that stays is one of both, whole.
                    let is_both = matches!(before, Answer::Backends(_))
                        && matches!(after, Answer::Backends(_));
                    prop_assert!(
                        seen == before
                            || seen == after
                            || scope == Scope::External && is_off
                            || Some(&seen) == of_old_owner(&old, new, dialled, scope).as_ref()
                            || (!is_both && seen == Answer::Refuse),
                        "before {:?}: {:?} {} gets {:?}, neither {:?} nor {:?}",
                        op, dialled, scope, seen, before, after
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
                // Whose what it has dialled is by now, it may be answered for, too: there may be no other row at that
                // index.
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
