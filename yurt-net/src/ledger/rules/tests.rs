use super::*;
use crate::ledger::is_same;
use crate::ledger::range::RangeConfig;
use crate::ledger::tests::key;

const NOW: Now = Now {
    at: 5000,
    since: 1_800_000_000,
};

fn sets(text: &str) -> Vec<RangeSet> {
    RangeSet::all(&serde_json::from_str::<Vec<Vec<RangeConfig>>>(text).unwrap()).unwrap()
}

/// Two addresses of each family: .2 and .3.
fn narrow() -> Vec<RangeSet> {
    sets(
        r#"[[{"subnet":"10.1.0.0/24","rangeEnd":"10.1.0.3"}],[{"subnet":"fd00::/64","rangeEnd":"fd00::3"}]]"#,
    )
}

fn who(name: &str, container: &str) -> Attachment {
    Attachment {
        key: key(name),
        uid: "5f0c".to_owned(),
        container: container.to_owned(),
        network: "edge".to_owned(),
        asker: None,
    }
}

fn nobody(_: Asker) -> bool {
    false
}

fn ips(text: &[&str]) -> Vec<IpAddr> {
    text.iter().map(|text| text.parse().unwrap()).collect()
}

/// Applies what a step says, and passes on what it answers.
fn run<T>(ledger: &mut Ledger, result: Result<(Vec<Record>, T), Refusal>) -> Result<T, Refusal> {
    let (records, answer) = result?;
    records.into_iter().for_each(|record| ledger.apply(record));
    Ok(answer)
}

fn at(at: u64) -> Now {
    Now { at, ..NOW }
}

#[track_caller]
fn give(ledger: &mut Ledger, who: &Attachment, at_time: u64) -> Vec<String> {
    let result = add(ledger, who, &narrow(), &[], at(at_time));
    let assigned = run(ledger, result).unwrap();
    assigned
        .iter()
        .map(|assigned| assigned.address.ip().to_string())
        .collect()
}

fn leave(ledger: &mut Ledger, who: &Attachment, at_time: u64) {
    for record in del(ledger, who, Assigner::Ours, nobody, at(at_time)).unwrap() {
        ledger.apply(record);
    }
}

fn state(ledger: &Ledger, name: &str) -> Option<State> {
    ledger.get(&key(name)).map(|entry| entry.state)
}

/// An interface with a MAC of such bytes.
fn seen(byte: u8) -> Seen {
    Seen {
        mac: Mac([byte; 6]),
        host: Some(HostSide {
            ifindex: u32::from(byte),
            other_end: Some(2),
        }),
    }
}

#[test]
fn pressure_takes_what_was_given_up_first_and_only_that_address() {
    let mut ledger = Ledger::default();
    let (a, b) = (who("a", "c1"), who("b", "c2"));
    give(&mut ledger, &a, 1);
    give(&mut ledger, &b, 2);
    leave(&mut ledger, &b, 3);
    leave(&mut ledger, &a, 4);
    let one_family = sets(r#"[[{"subnet":"10.1.0.0/24","rangeEnd":"10.1.0.3"}]]"#);
    let result = add(&ledger, &who("c", "c3"), &one_family, &[], at(5));
    let assigned = run(&mut ledger, result).unwrap();
    assert_eq!(assigned[0].address.ip(), ips(&["10.1.0.3"])[0]);
    // What was b's of the other family is kept for it.
    assert_eq!(ledger.get(&key("b")).unwrap().addresses, ips(&["fd00::3"]));
    // Released goes before retained, however young.
    let list = PodList {
        pods: BTreeSet::from([("shop".to_owned(), "b".to_owned())]),
        is_live: true,
        read_at: 100_000,
    };
    for record in release(&ledger, &list, at(100_000)) {
        ledger.apply(record);
    }
    assert_eq!(
        (state(&ledger, "a"), state(&ledger, "b")),
        (Some(State::Released), Some(State::Retained))
    );
    assert_eq!(
        give(&mut ledger, &who("d", "c4"), 100_001),
        ["10.1.0.2", "fd00::2"]
    );
    assert_eq!(state(&ledger, "a"), None);
}

#[test]
fn what_is_released_waits_for_its_name_until_somebody_needs_it() {
    let mut ledger = Ledger::default();
    let a = who("a", "c1");
    give(&mut ledger, &a, 1);
    leave(&mut ledger, &a, 2);
    let expired = expire(&ledger, 100, at(102));
    expired.into_iter().for_each(|record| ledger.apply(record));
    assert_eq!(state(&ledger, "a"), Some(State::Released));
    // Another gets what nobody had.
    assert_eq!(
        give(&mut ledger, &who("b", "c2"), 103),
        ["10.1.0.3", "fd00::3"]
    );
    assert_eq!(
        give(&mut ledger, &who("a", "c3"), 104),
        ["10.1.0.2", "fd00::2"]
    );
}

#[test]
fn a_ttl_counts_from_the_last_del_and_takes_nothing_from_the_living() {
    let mut ledger = Ledger::default();
    let (a, b) = (who("a", "c1"), who("b", "c2"));
    give(&mut ledger, &a, 1);
    give(&mut ledger, &b, 1);
    leave(&mut ledger, &b, 50);
    assert_eq!(expire(&ledger, 100, at(149)), []);
    assert_eq!(expire(&ledger, 100, at(150)).len(), 1);
    // A second DEL of the same sandbox does not make it younger.
    leave(&mut ledger, &b, 120);
    assert_eq!(expire(&ledger, 100, at(150)).len(), 1);
    assert_eq!(state(&ledger, "a"), Some(State::Active));
}

#[test]
fn a_requested_address_is_given_unless_it_is_anothers() {
    let mut ledger = Ledger::default();
    give(&mut ledger, &who("a", "c1"), 1);
    let b = who("b", "c2");
    let ask = |ledger: &Ledger, wanted: &[&str]| add(ledger, &b, &narrow(), &ips(wanted), NOW);
    let refusal = ask(&ledger, &["10.1.0.2"]).unwrap_err();
    assert!(
        matches!(refusal, Refusal::Taken { ref owner, .. } if *owner == key("a")),
        "{refusal}"
    );
    for nowhere in [
        &["10.1.0.1"][..],
        &["10.1.0.4"],
        &["10.1.0.3", "10.1.0.3"],
        &["fe80::1"],
    ] {
        let refusal = ask(&ledger, nowhere).unwrap_err();
        assert!(matches!(refusal, Refusal::NotInRange { .. }), "{refusal}");
    }
    let result = ask(&ledger, &["fd00::3"]);
    let assigned = run(&mut ledger, result).unwrap();
    assert_eq!(assigned.len(), 2);
    // Its own again, and another one in place of it.
    let result = ask(&ledger, &["fd00::3"]);
    run(&mut ledger, result).unwrap();
}

#[test]
fn only_live_and_fresh_lists_release_and_only_what_was_left_before() {
    let mut ledger = Ledger::default();
    let (a, b, c) = (who("a", "c1"), who("b", "c2"), who("c", "c3"));
    for who in [&a, &b] {
        give(&mut ledger, who, 1);
    }
    leave(&mut ledger, &a, 100_000);
    leave(&mut ledger, &b, 190_000);
    let result = observe(&ledger, &c, &ips(&["10.9.0.2"]), seen(2), at(1));
    run(&mut ledger, result.map(|records| (records, ()))).unwrap();
    let nobody = PodList {
        pods: BTreeSet::new(),
        is_live: true,
        read_at: 200_000,
    };
    let keys = |list: &PodList, now| {
        let records = release(&ledger, list, at(now)).into_iter();
        let names = records.map(|record| match record {
            Record::Put { key, entry } if entry.state == State::Released => key.name,
            other => panic!("{other:?}"),
        });
        names.collect::<Vec<_>>()
    };
    // b went ten seconds before: it may come again. c runs, whatever the list says.
    assert_eq!(keys(&nobody, 200_000), ["a"]);
    assert_eq!(
        keys(
            &PodList {
                is_live: false,
                ..nobody.clone()
            },
            200_000
        ),
        [""; 0]
    );
    assert_eq!(keys(&nobody, 200_001 + FRESH), [""; 0]);
    let there = BTreeSet::from([("shop".to_owned(), "a".to_owned())]);
    assert_eq!(
        keys(
            &PodList {
                pods: there,
                ..nobody
            },
            200_000
        ),
        [""; 0]
    );
}

#[test]
fn what_another_ipam_gives_wins_over_what_is_kept_and_not_over_the_living() {
    let mut ledger = Ledger::default();
    let (a, b) = (who("a", "c1"), who("b", "c2"));
    give(&mut ledger, &a, 1);
    let taken = observe(&ledger, &b, &ips(&["10.1.0.2"]), seen(2), NOW).unwrap_err();
    assert!(matches!(taken, Refusal::Taken { .. }));
    leave(&mut ledger, &a, 2);
    let result = observe(&ledger, &b, &ips(&["10.1.0.2"]), seen(2), NOW);
    run(&mut ledger, result.map(|records| (records, ()))).unwrap();
    assert_eq!(ledger.get(&key("a")).unwrap().addresses, ips(&["fd00::2"]));
    assert_eq!(ledger.get(&key("b")).unwrap().assigner, Assigner::Other);
}

#[test]
fn yurt_cni_adds_the_mac_to_what_yurt_ipam_gave_and_leaves_the_end_to_it() {
    let mut ledger = Ledger::default();
    let a = who("a", "c1");
    give(&mut ledger, &a, 1);
    let result = observe(&ledger, &a, &ips(&["10.1.0.2", "fd00::2"]), seen(2), at(2));
    run(&mut ledger, result.map(|records| (records, ()))).unwrap();
    let entry = ledger.get(&key("a")).unwrap();
    assert_eq!(
        (entry.assigner, entry.mac, entry.at),
        (Assigner::Ours, Some(Mac([2; 6])), 1)
    );
    // The main plugin has not taken the interface down yet.
    assert_eq!(del(&ledger, &a, Assigner::Other, nobody, NOW), Ok(vec![]));
    leave(&mut ledger, &a, 3);
    assert_eq!(state(&ledger, "a"), Some(State::Retained));
    // And the MAC is known when it comes back.
    give(&mut ledger, &who("a", "c2"), 4);
    assert_eq!(ledger.get(&key("a")).unwrap().mac, Some(Mac([2; 6])));
}

#[test]
fn gc_keeps_what_is_valid_and_what_is_another_networks() {
    let mut ledger = Ledger::default();
    give(&mut ledger, &who("a", "c1"), 1);
    give(&mut ledger, &who("b", "c2"), 1);
    let valid = BTreeSet::from([("c1".to_owned(), "eth0".to_owned())]);
    let names = |network, valid: &BTreeSet<_>| {
        let records = gc(&ledger, network, valid, nobody, NOW).into_iter();
        records
            .map(|record| match record {
                Record::Put { key, entry } if entry.state == State::Retained => key.name,
                other => panic!("{other:?}"),
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(names("edge", &valid), ["b"]);
    assert_eq!(names("other", &valid), [""; 0]);
    let elsewhere = BTreeSet::from([("c1".to_owned(), "net1".to_owned())]);
    assert_eq!(names("edge", &elsewhere), ["a", "b"]);
}

#[test]
fn a_reboot_keeps_names_and_forgets_containers() {
    let mut ledger = Ledger::default();
    give(&mut ledger, &who("a", "c1"), 1);
    let mut nameless = who("x", "c9");
    nameless.key = Key {
        namespace: String::new(),
        name: "c9".to_owned(),
        interface: "eth0".to_owned(),
    };
    give(&mut ledger, &nameless, 2);
    let clock = Clock {
        boot: "two".to_owned(),
        up: 9,
        wall: 0,
    };
    let draft = Draft::new(&ledger, &clock);
    assert_eq!(state(draft.ledger(), "a"), Some(State::Retained));
    assert_eq!(draft.ledger().get(&nameless.key), None);
    let again = Draft::new(draft.ledger(), &clock);
    assert_eq!(again.into_records(), []);
    // Until that is written, whoever reads it a second later reads the same.
    let later = Clock {
        up: 1009,
        wall: 1,
        ..clock
    };
    let later = Draft::new(&ledger, &later);
    assert!(is_same(draft.ledger().entries(), later.ledger().entries()));
    assert!(!is_same(draft.ledger().entries(), ledger.entries()));
}

#[test]
fn whatever_a_previous_result_leaves_out_what_yurt_ipam_gave_stays() {
    let mut ledger = Ledger::default();
    let a = who("a", "c1");
    give(&mut ledger, &a, 1);
    let before = ledger.get(&key("a")).unwrap().clone();
    for claimed in [&[][..], &["10.1.0.2"], &["10.9.0.9"]] {
        let result = observe(&ledger, &a, &ips(claimed), seen(2), at(2));
        run(&mut ledger, result.map(|records| (records, ()))).unwrap();
        let expected = Entry {
            mac: Some(Mac([2; 6])),
            host: seen(2).host,
            ..before.clone()
        };
        assert_eq!(ledger.get(&key("a")), Some(&expected), "{claimed:?}");
    }
}

#[test]
fn an_old_sandbox_that_comes_by_late_takes_nothing_back_from_the_new_one() {
    let mut ledger = Ledger::default();
    let (old, new) = (who("a", "c1"), who("a", "c2"));
    give(&mut ledger, &old, 1);
    give(&mut ledger, &new, 2);
    let addresses = ips(&["10.1.0.2", "fd00::2"]);
    let superseded = Refusal::Superseded {
        key: key("a"),
        successor: "c2".to_owned(),
    };
    assert_eq!(admit(&ledger, &old, &addresses), Err(superseded.clone()));
    let late = observe(&ledger, &old, &addresses, seen(2), at(3));
    assert_eq!(late, Err(superseded));
    assert_eq!(admit(&ledger, &new, &addresses), Ok(()));
    // Another IPAM has given it something else: it is not ours to say which of them is the newer one.
    let others = ips(&["10.9.0.2"]);
    assert_eq!(observe(&ledger, &old, &others, seen(2), at(3)), Ok(vec![]));
    leave(&mut ledger, &old, 4);
    assert_eq!(state(&ledger, "a"), Some(State::Active));
}

#[test]
fn a_sandbox_that_was_deleted_while_it_was_added_does_not_run_on_what_is_kept() {
    let mut ledger = Ledger::default();
    let web = who("web", "c1");
    let addresses = ips(&["10.1.0.2", "fd00::2"]);
    give(&mut ledger, &web, 0);
    leave(&mut ledger, &web, 1);
    let late = observe(&ledger, &web, &addresses, seen(2), at(2));
    assert!(matches!(late, Err(Refusal::Deleted { .. })), "{late:?}");
    assert_eq!(state(&ledger, "web"), Some(State::Retained));
    // The next sandbox, or the same that is made again, has them back.
    for container in ["c2", "c1"] {
        let again = who("web", container);
        give(&mut ledger, &again, 3);
        observe(&ledger, &again, &addresses, seen(2), at(4)).unwrap();
        leave(&mut ledger, &again, 5);
    }
}

#[test]
fn a_result_without_addresses_takes_none_from_a_name_that_has_some() {
    let mut ledger = Ledger::default();
    let addresses = ips(&["10.9.0.2"]);
    let (old, new) = (who("a", "c1"), who("a", "c2"));
    let result = observe(&ledger, &old, &addresses, seen(2), at(1));
    run(&mut ledger, result.map(|records| (records, ()))).unwrap();
    for who in [&old, &new] {
        assert_eq!(observe(&ledger, who, &[], seen(4), at(2)), Ok(vec![]));
    }
    for record in del(&ledger, &old, Assigner::Other, nobody, at(3)).unwrap() {
        ledger.apply(record);
    }
    assert_eq!(observe(&ledger, &new, &[], seen(4), at(4)), Ok(vec![]));
    // One that has none has a MAC to keep.
    let result = observe(&ledger, &who("b", "c3"), &[], seen(6), at(5));
    run(&mut ledger, result.map(|records| (records, ()))).unwrap();
    assert_eq!(ledger.get(&key("b")).unwrap().mac, Some(Mac([6; 6])));
}

#[test]
fn where_an_interface_comes_out_is_known_while_its_sandbox_has_it() {
    let mut ledger = Ledger::default();
    let web = who("web-0", "c1");
    let addresses = ips(&["10.1.0.2"]);
    let take = |ledger: &mut Ledger, records: Vec<Record>| {
        records.into_iter().for_each(|record| ledger.apply(record));
        ledger.get(&web.key).and_then(|entry| entry.host)
    };
    let seen = seen(7);
    let records = observe(&ledger, &web, &addresses, seen, at(1)).unwrap();
    assert_eq!(take(&mut ledger, records), seen.host);
    let records = del(&ledger, &web, Assigner::Other, nobody, at(2)).unwrap();
    assert_eq!(take(&mut ledger, records), None);
    // Of our own addresses, the interface is what is added.
    let (records, _) = add(&ledger, &web, &narrow(), &[], at(3)).unwrap();
    assert_eq!(take(&mut ledger, records), None);
    let records = observe(&ledger, &web, &addresses, seen, at(4)).unwrap();
    assert_eq!(take(&mut ledger, records), seen.host);
}

/// What another IPAM gives a Pod this time.
fn meet(ledger: &mut Ledger, who: &Attachment, addresses: &[&str], at_time: u64) {
    let result = observe(ledger, who, &ips(addresses), seen(2), at(at_time));
    run(ledger, result.map(|records| (records, ()))).unwrap();
}

#[test]
fn what_a_name_had_is_promised_to_it_while_its_network_gives_it_something_else() {
    let mut ledger = Ledger::default();
    let promised = |ledger: &Ledger| ledger.get(&key("a")).unwrap().promised.clone();
    meet(&mut ledger, &who("a", "c1"), &["10.9.0.2", "fd09::2"], 1);
    assert_eq!(promised(&ledger), ips(&[]));
    // Without a DEL, as after a reboot.
    meet(&mut ledger, &who("a", "c2"), &["10.9.0.7", "fd09::2"], 2);
    assert_eq!(promised(&ledger), ips(&["10.9.0.2"]));
    // The first one counts, not the one in between.
    meet(&mut ledger, &who("a", "c3"), &["10.9.0.8", "fd09::8"], 3);
    assert_eq!(promised(&ledger), ips(&["10.9.0.2", "fd09::2"]));
    for record in del(&ledger, &who("a", "c3"), Assigner::Other, nobody, at(4)).unwrap() {
        ledger.apply(record);
    }
    assert_eq!(promised(&ledger), ips(&["10.9.0.2", "fd09::2"]));
    meet(&mut ledger, &who("a", "c4"), &["10.9.0.2", "fd09::9"], 5);
    assert_eq!(promised(&ledger), ips(&["fd09::2"]));
}

#[test]
fn where_a_network_has_become_another_what_it_gave_is_promised() {
    let mut ledger = Ledger::default();
    let a = who("a", "c1");
    give(&mut ledger, &a, 1);
    leave(&mut ledger, &a, 2);
    let moved = sets(r#"[[{"subnet":"10.2.0.0/24"}],[{"subnet":"fd02::/64"}]]"#);
    let result = add(&ledger, &who("a", "c2"), &moved, &[], at(3));
    run(&mut ledger, result).unwrap();
    let entry = ledger.get(&key("a")).unwrap();
    assert_eq!(entry.promised, ips(&["10.1.0.2", "fd00::2"]));
    assert_eq!(entry.promised_by, Assigner::Ours);
    // And when it is as it was, the Pod has it again.
    assert_eq!(
        give(&mut ledger, &who("a", "c3"), 4),
        ["10.1.0.2", "fd00::2"]
    );
    assert_eq!(ledger.get(&key("a")).unwrap().promised, ips(&[]));
}

#[test]
fn what_is_promised_to_a_pod_that_runs_gives_way_to_what_another_ipam_gives_and_to_pressure() {
    let mut ledger = Ledger::default();
    meet(&mut ledger, &who("a", "c1"), &["10.1.0.2"], 1);
    meet(&mut ledger, &who("a", "c2"), &["10.1.0.9"], 2);
    meet(&mut ledger, &who("b", "c3"), &["10.1.0.2"], 3);
    let entry = ledger.get(&key("a")).unwrap();
    assert_eq!(
        (&entry.addresses, &entry.promised),
        (&ips(&["10.1.0.9"]), &ips(&[]))
    );

    let one_family = sets(r#"[[{"subnet":"10.1.0.0/24","rangeEnd":"10.1.0.3"}]]"#);
    let mut ledger = Ledger::default();
    meet(&mut ledger, &who("a", "c1"), &["10.1.0.2"], 1);
    meet(&mut ledger, &who("a", "c2"), &["10.1.0.9"], 2);
    for (name, expected) in [("b", "10.1.0.3"), ("c", "10.1.0.2")] {
        let result = add(&ledger, &who(name, name), &one_family, &[], at(3));
        let assigned = run(&mut ledger, result).unwrap();
        assert_eq!(assigned[0].address.ip(), ips(&[expected])[0]);
    }
    assert_eq!(ledger.get(&key("a")).unwrap().promised, ips(&[]));
}

#[test]
fn what_was_released_is_promised_to_nobody() {
    let mut ledger = Ledger::default();
    let a = who("a", "c1");
    meet(&mut ledger, &a, &["10.9.0.2"], 1);
    for record in del(&ledger, &a, Assigner::Other, nobody, at(2)).unwrap() {
        ledger.apply(record);
    }
    for record in expire(&ledger, 10, at(20)) {
        ledger.apply(record);
    }
    meet(&mut ledger, &who("a", "c2"), &["10.9.0.7"], 21);
    assert_eq!(ledger.get(&key("a")).unwrap().promised, ips(&[]));
}

#[test]
fn what_another_ipam_gave_is_never_ours_to_promise_though_yurt_ipam_gives_what_a_pod_has() {
    let mut ledger = Ledger::default();
    meet(&mut ledger, &who("a", "c1"), &["10.9.0.2"], 1);
    let own = give(&mut ledger, &who("a", "c2"), 2);
    let entry = ledger.get(&key("a")).unwrap();
    assert_eq!(own, ["10.1.0.2", "fd00::2"]);
    assert_eq!(entry.promised, ips(&["10.9.0.2"]));
    assert_eq!(
        (entry.assigner, entry.promised_by),
        (Assigner::Ours, Assigner::Other)
    );
}

#[test]
fn two_pods_that_run_never_have_one_mac() {
    let mut ledger = Ledger::default();
    meet(&mut ledger, &who("a", "c1"), &["10.9.0.2"], 1);
    assert!(!has_mac(&ledger, &who("a", "c2"), Mac([2; 6])));
    assert!(has_mac(&ledger, &who("b", "c3"), Mac([2; 6])));
    for record in del(&ledger, &who("a", "c1"), Assigner::Other, nobody, at(2)).unwrap() {
        ledger.apply(record);
    }
    assert!(!has_mac(&ledger, &who("b", "c3"), Mac([2; 6])));
}

#[test]
fn a_del_into_an_add_that_is_at_work_is_refused_and_a_gc_leaves_it_alone() {
    let mut ledger = Ledger::default();
    let asker = Asker {
        pid: 42,
        start: 7,
        asked: 9,
    };
    let mut web = who("a", "c1");
    web.asker = Some(asker);
    give(&mut ledger, &web, 1);
    let is_at_work = |process| process == asker;
    let add = web.clone();
    web.asker = None;
    let refused = del(&ledger, &web, Assigner::Ours, is_at_work, at(2)).unwrap_err();
    assert!(matches!(refused, Refusal::BeingAdded { pid, .. } if pid == asker.pid));
    let nothing = BTreeSet::new();
    assert_eq!(gc(&ledger, "edge", &nothing, is_at_work, at(2)), []);
    assert_eq!(gc(&ledger, "edge", &nothing, nobody, at(2)).len(), 1);
    // One that has begun before may have found no interface to take away.
    for (start, is_refused) in [(8, true), (9, true), (10, false)] {
        web.asker = Some(Asker { start, ..asker });
        let answer = del(&ledger, &web, Assigner::Ours, nobody, at(2));
        assert_eq!(answer.is_err(), is_refused, "{start}");
    }
    assert_eq!(ledger.get(&key("a")).unwrap().asker, add.asker);
    leave(&mut ledger, &web, 3);
    assert_eq!(state(&ledger, "a"), Some(State::Retained));
    assert_eq!(ledger.get(&key("a")).unwrap().asker, None);
}

#[test]
fn a_container_without_a_pod_is_remembered_for_what_of_its_add_comes_behind_its_del() {
    let mut ledger = Ledger::default();
    let mut nameless = who("x", "c9");
    nameless.key = Key {
        namespace: String::new(),
        name: "c9".to_owned(),
        interface: "eth0".to_owned(),
    };
    give(&mut ledger, &nameless, 1);
    let addresses = ledger.get(&nameless.key).unwrap().addresses.clone();
    leave(&mut ledger, &nameless, 2);
    let deleted =
        |result: Result<Vec<Record>, Refusal>| matches!(result, Err(Refusal::Deleted { .. }));
    assert!(deleted(observe(
        &ledger,
        &nameless,
        &addresses,
        seen(2),
        at(3)
    )));
    assert!(matches!(
        check(&ledger, &nameless, &addresses),
        Err(Refusal::Deleted { .. })
    ));
    // Anybody may have its addresses meanwhile, and it is forgotten before long.
    let mut full = ledger.clone();
    give(&mut full, &who("a", "c1"), 3);
    give(&mut full, &who("b", "c2"), 3);
    assert_eq!(full.entries().len(), 2);
    assert_eq!(expire(&ledger, u64::MAX, at(2 + OVERTAKEN - 1)), []);
    let forgotten = expire(&ledger, u64::MAX, at(2 + OVERTAKEN));
    assert_eq!(forgotten, [Record::Remove(nameless.key)]);
}
