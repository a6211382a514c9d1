use super::*;

fn sets(text: &str) -> Result<Vec<RangeSet>, RangeError> {
    RangeSet::all(&serde_json::from_str::<Vec<Vec<RangeConfig>>>(text).unwrap())
}

fn addresses(text: &str, last: Option<&str>) -> Vec<String> {
    let last = last.map(|last| last.parse().unwrap());
    let set = &sets(text).unwrap()[0];
    set.after(last).map(|address| address.to_string()).collect()
}

#[test]
fn network_gateway_and_broadcast_are_nobodys() {
    let all = addresses(r#"[[{"subnet":"10.1.0.0/29"}]]"#, None);
    assert_eq!(
        all,
        ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]
    );
    let elsewhere = addresses(r#"[[{"subnet":"10.1.0.0/29","gateway":"10.1.0.4"}]]"#, None);
    assert_eq!(
        elsewhere,
        ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.5", "10.1.0.6"]
    );
    let whole = r#"[[{"subnet":"10.1.0.0/29","rangeStart":"10.1.0.0","rangeEnd":"10.1.0.7"}]]"#;
    assert_eq!(addresses(whole, None), all);
    // There is no broadcast in IPv6.
    let v6 = addresses(r#"[[{"subnet":"fd00::/126"}]]"#, None);
    assert_eq!(v6, ["fd00::2", "fd00::3"]);
}

#[test]
fn addresses_come_in_turn_through_all_ranges_and_around() {
    let two = r#"[[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.7","rangeEnd":"10.1.0.9"},{"subnet":"10.2.0.0/30"}]]"#;
    let all = ["10.1.0.7", "10.1.0.8", "10.1.0.9", "10.2.0.2"];
    assert_eq!(addresses(two, None), all);
    assert_eq!(
        addresses(two, Some("10.1.0.7")),
        ["10.1.0.8", "10.1.0.9", "10.2.0.2", "10.1.0.7"]
    );
    assert_eq!(
        addresses(two, Some("10.1.0.9")),
        ["10.2.0.2", "10.1.0.7", "10.1.0.8", "10.1.0.9"]
    );
    assert_eq!(
        addresses(two, Some("10.2.0.2")),
        ["10.1.0.7", "10.1.0.8", "10.1.0.9", "10.2.0.2"]
    );
    // Of a range that was there once.
    assert_eq!(addresses(two, Some("10.3.0.2")), all);
    let huge =
        r#"[[{"subnet":"fd00::/8","rangeStart":"fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}]]"#;
    assert_eq!(addresses(huge, None).len(), 1);
}

#[test]
fn an_address_comes_with_its_prefix_length_and_gateway() {
    let two = sets(r#"[[{"subnet":"10.1.0.0/24"},{"subnet":"10.2.0.0/16","gateway":"10.2.9.9"}]]"#)
        .unwrap();
    let assigned = two[0].assign("10.2.3.4".parse().unwrap()).unwrap();
    assert_eq!(assigned.address.to_string(), "10.2.3.4/16");
    assert_eq!(assigned.gateway.to_string(), "10.2.9.9");
    for none in [
        "10.1.0.0",
        "10.1.0.1",
        "10.1.0.255",
        "10.2.9.9",
        "10.3.0.1",
        "fd00::1",
    ] {
        assert_eq!(two[0].assign(none.parse().unwrap()), None, "{none}");
    }
}

#[test]
fn ranges_that_make_no_sense_are_told_in_words() {
    for (text, words) in [
        (r#"[[{"subnet":"10.1.0.5/24"}]]"#, "write 10.1.0.0/24"),
        (r#"[[{"subnet":"10.1.0.0/31"}]]"#, "too small"),
        (r#"[[{"subnet":"fd00::/127"}]]"#, "too small"),
        (
            r#"[[{"subnet":"10.1.0.0/24","rangeStart":"10.2.0.1"}]]"#,
            "rangeStart 10.2.0.1 is not in subnet",
        ),
        (
            r#"[[{"subnet":"10.1.0.0/24","rangeEnd":"fd00::1"}]]"#,
            "rangeEnd fd00::1 is not in subnet",
        ),
        (
            r#"[[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.9","rangeEnd":"10.1.0.3"}]]"#,
            "is after",
        ),
        (
            r#"[[{"subnet":"10.1.0.0/24"},{"subnet":"fd00::/64"}]]"#,
            "mixes",
        ),
        (
            r#"[[{"subnet":"10.1.0.0/24"}],[{"subnet":"10.1.0.0/16"}]]"#,
            "overlap",
        ),
        ("[[]]", "empty"),
        ("[]", "no ranges"),
    ] {
        let error = sets(text).unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
    // Parts of one subnet are not the same addresses.
    sets(r#"[[{"subnet":"10.1.0.0/24","rangeEnd":"10.1.0.9"}],[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.10"}]]"#).unwrap();
}
