use super::*;
use crate::ledger::tests::{entry, key};

fn files(list: &[(&str, &str)]) -> Vec<Leftover> {
    let owned = |(name, contents): &(&str, &str)| ((*name).to_owned(), (*contents).to_owned());
    list.iter().map(owned).collect()
}

fn adopted(ledger: &Ledger, list: &[(&str, &str)]) -> Vec<String> {
    adopted_by(ledger, list, None)
}

fn adopted_by(ledger: &Ledger, list: &[(&str, &str)], living: Option<&Living>) -> Vec<String> {
    let now = Now { at: 7, since: 8 };
    let records = adopt(ledger, "edge", &files(list), living, now);
    assert_eq!(records.last(), Some(&Record::Adopted("edge".to_owned())));
    let entries = records.iter().filter_map(|record| match record {
        Record::Put { key, entry } => {
            let addresses: Vec<_> = entry.addresses.iter().map(IpAddr::to_string).collect();
            Some(format!(
                "{key}: {} {} {}",
                addresses.join(" "),
                entry.state,
                entry.container
            ))
        }
        _ => None,
    });
    entries.collect()
}

#[test]
fn files_of_all_ages_are_understood() {
    let found = adopted(
        &Ledger::default(),
        &[
            ("10.1.0.2", "c1\r\neth0"),
            ("fd00::2", "c1\r\neth0"),
            ("10.1.0.2_shop_web-0", ""),
            ("fd00::2_shop_web-0", ""),
            // Before it wrote down the interface, and one that no Pod is known for.
            ("10.1.0.3", "c2\n"),
            ("10.1.0.4", "c3\nnet1"),
            // The Pod is gone or will be back; a second address of a family is a leftover.
            ("10.1.0.5_shop_web-1", ""),
            ("10.1.0.6_shop_web-1", ""),
            // The address has gone to another container: its mapping was renamed, or never made.
            ("last_reserved_ip.0", "10.1.0.4"),
            ("lock", ""),
            ("10.1.0.9", ""),
            ("10.1.0.9_shop", ""),
        ],
    );
    assert_eq!(
        found,
        [
            "container c2 (eth0): 10.1.0.3 active c2",
            "container c3 (net1): 10.1.0.4 active c3",
            "Pod shop/web-0 (eth0): 10.1.0.2 fd00::2 active c1",
            "Pod shop/web-1 (eth0): 10.1.0.5 retained ",
        ]
    );
}

#[test]
fn the_ledger_knows_better_and_is_asked_once() {
    let mut ledger = Ledger::default();
    ledger.apply(Record::Put {
        key: key("web-0"),
        entry: entry("10.1.0.2", "c1"),
    });
    let found = adopted(
        &ledger,
        &[
            ("10.1.0.2", "old"),
            ("10.1.0.7_shop_web-0", ""),
            ("10.1.0.8_shop_web-8", ""),
        ],
    );
    assert_eq!(found, ["Pod shop/web-8 (eth0): 10.1.0.8 retained "]);
    ledger.apply(Record::Adopted("edge".to_owned()));
    let again = adopt(
        &ledger,
        "edge",
        &files(&[("10.1.0.8", "c8")]),
        None,
        Now::default(),
    );
    assert_eq!(again, []);
}

#[test]
fn an_address_that_a_container_has_is_taken_though_its_pod_is_known_with_another() {
    let mut ledger = Ledger::default();
    ledger.apply(Record::Put {
        key: key("web-0"),
        entry: entry("10.1.0.2", "c1"),
    });
    let found = adopted(
        &ledger,
        &[
            ("10.1.0.7", "c7\neth0"),
            ("10.1.0.7_shop_web-0", ""),
            ("fd00::7", "c7\neth0"),
            ("fd00::7_shop_web-0", ""),
        ],
    );
    assert_eq!(found, ["container c7 (eth0): 10.1.0.7 fd00::7 active c7"]);
}

#[test]
fn a_file_that_a_power_cut_left_is_nobodys() {
    let zeros = "\0".repeat(64);
    let list = [
        ("10.1.0.2", zeros.as_str()),
        ("10.1.0.3", "c\u{1b}[2J1\neth0"),
        ("10.1.0.4", "c2\n\0\0\0\0"),
        ("10.1.0.5", "c\u{fffd}3"),
    ];
    // Of the third only the interface is not known.
    let found = adopted(&Ledger::default(), &list);
    assert_eq!(found, ["container c2 (eth0): 10.1.0.4 active c2"]);
}

#[test]
fn what_no_namespace_has_and_no_process_names_is_not_in_use() {
    let list = [
        // A Pod that runs; one that took its address off its interface; one that is being added.
        ("10.1.0.2", "c1\neth0"),
        ("fd00::2", "c1\neth0"),
        ("10.1.0.3", "c2\neth0"),
        ("10.1.0.4", "c3\neth0"),
        // Gone: with a Pod's name, and without. The ID of the second is a part of a word that is said.
        ("10.1.0.5", "c4\neth0"),
        ("10.1.0.5_shop_web-4", ""),
        ("10.1.0.6", "c5\neth0"),
    ];
    let living = Living {
        // The other one of c1 is being looked for (it is tentative).
        addresses: BTreeSet::from(["127.0.0.1", "10.1.0.2"].map(|one| one.parse().unwrap())),
        named: ["c2", "c3"].map(str::to_owned).into(),
    };
    assert_eq!(
        adopted_by(&Ledger::default(), &list, Some(&living)),
        [
            "container c1 (eth0): 10.1.0.2 fd00::2 active c1",
            "container c2 (eth0): 10.1.0.3 active c2",
            "container c3 (eth0): 10.1.0.4 active c3",
            "container c5 (eth0): 10.1.0.6 released c5",
            "Pod shop/web-4 (eth0): 10.1.0.5 retained c4",
        ]
    );
}

#[test]
fn a_pod_has_the_address_of_its_container_that_lives_and_not_that_of_one_that_is_gone() {
    for (gone, lives) in [("10.1.0.2", "10.1.0.3"), ("10.1.0.3", "10.1.0.2")] {
        let of = |address| format!("{address}_shop_web-0");
        let list = [
            (gone, "old\neth0"),
            (lives, "new\neth0"),
            (&of(gone), ""),
            (&of(lives), ""),
        ];
        let living = Living {
            addresses: BTreeSet::from([lives.parse().unwrap()]),
            named: BTreeSet::new(),
        };
        assert_eq!(
            adopted_by(&Ledger::default(), &list, Some(&living)),
            [
                format!("container old (eth0): {gone} released old"),
                format!("Pod shop/web-0 (eth0): {lives} active new"),
            ]
        );
    }
}
