use super::*;

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
