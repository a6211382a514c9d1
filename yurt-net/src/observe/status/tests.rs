use super::*;
use crate::ledger::State;

fn rejection(namespace: &str, name: &str) -> Rejection {
    Rejection {
        kind: "Service".to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        source: String::new(),
        reason: "wrong".to_owned(),
    }
}

#[test]
fn ten_thousand_rejections_are_a_count_and_the_first_few_of_everybody() {
    let mut all: Vec<_> = (0..10_000)
        .map(|n| rejection("a", &n.to_string()))
        .collect();
    all.push(rejection("b", "only"));
    let mut status = Status::default();
    status.set_rejections(&all);
    let table = status.table();
    assert!(table.contains("REJECTED (10001 Service)\n"), "{table}");
    assert!(table.contains("Service b/only"), "{table}");
    assert!(
        table.contains("and 9991 more: `yurt-net plan` shows all\n"),
        "{table}"
    );
    assert!(table.lines().count() < 60, "{table}");
    assert!(text::json(&status).unwrap().len() < 20_000);
}

#[test]
fn counts_stand_below_each_other_however_long_the_names_are() {
    let mut status = Status::default();
    let long = "refuse_of_a_kind_with_a_long_name";
    status.counters = [("forward".to_owned(), 7), (long.to_owned(), 12)].into();
    let table = status.table();
    let mut lines = table
        .lines()
        .skip_while(|line| !line.starts_with("VERDICT"));
    let ends = lines.by_ref().take(3).map(str::len);
    let width = long.len() + 6;
    assert_eq!(ends.collect::<Vec<_>>(), [width; 3], "{table}");
}

#[test]
fn nothing_that_others_wrote_adds_a_line_to_the_table() {
    let evil = "x\nready         yes\x1b[2J\u{202e}";
    let mut status = Status::default();
    let lines = |status: &Status| text::plain(status).unwrap().table();
    status.set_rejections(&[rejection("a", "b")]);
    status.retention.alarms = vec!["x".to_owned()];
    status.source.source_error = Some("x".to_owned());
    let before = lines(&status);
    status.set_rejections(&[rejection(evil, evil)]);
    status.retention.alarms = vec![evil.to_owned()];
    status.source.source_error = Some(evil.to_owned());
    status.pool = evil.to_owned();
    let after = lines(&status);
    assert_eq!(after.lines().count(), before.lines().count(), "{after}");
    assert!(
        after.lines().all(|line| line.chars().all(text::is_plain)),
        "{after}"
    );
}

#[test]
fn of_many_pods_and_addresses_a_few_are_shown_and_first_those_of_which_something_is_to_be_said() {
    let pod = |name: String| GuardedPodStatus {
        namespace: "shop".to_owned(),
        name,
        interface: "eth0".to_owned(),
        state: State::Active,
        addresses: Vec::new(),
        promised: Vec::new(),
        translated: Vec::new(),
        mac: None,
        device: None,
        audited: 0,
        dropped: 0,
    };
    let mut status = Status::default();
    status.retention.pods = (0..1000).map(|n| pod(format!("quiet-{n}"))).collect();
    status.retention.pods[700].audited = 3;
    status.retention.pods[800].promised = vec![[10, 1, 0, 2].into()];
    let alone = |n: u8| LeftAlone {
        address: [10, 96, 0, n].into(),
        service: "kube-system/dns".to_owned(),
    };
    status.left_alone = (0..200).map(alone).collect();
    let table = status.table();
    for shown in [
        "quiet-700",
        "quiet-800",
        "and 990 more: `yurt-net ledger` shows all\n",
        "and 190 more: `yurt-net status -o json` shows all\n",
    ] {
        assert!(table.contains(shown), "{shown}: {table}");
    }
    assert!(table.lines().count() < 60, "{table}");
    assert!(text::json(&status).unwrap().contains("quiet-999"));
}
