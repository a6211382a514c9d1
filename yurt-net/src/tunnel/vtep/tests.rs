use super::*;
use crate::host::limit::{MINUTE, REPAIRS};

pub(super) const VTEP: &str = "flannel.1";
const BRIDGE: &str = "cni0";
const HOME: &str = "192.0.2.11";

pub(super) fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

pub(super) fn keeper(records: &[(&str, u8)]) -> Keeper {
    let devices = [
        (VTEP, Kind::Vtep),
        ("flannel-v6.1", Kind::Vtep),
        (BRIDGE, Kind::Bridge),
    ];
    let records = records.iter();
    Keeper::new(
        devices.map(|(name, kind)| (name.to_owned(), kind)),
        &records
            .map(|&(name, last)| (name.to_owned(), mac(last)))
            .collect(),
    )
}

pub(super) fn vxlan(ifindex: u32, last: u8) -> Device {
    Device {
        ifindex,
        mac: mac(last),
        what: What::Vxlan(Vxlan {
            vni: 1,
            port: 8472,
            local: HOME.parse().ok(),
            underlay: Some(2),
        }),
    }
}

fn bridge(ifindex: u32, last: u8, has_ports: bool) -> Device {
    Device {
        ifindex,
        mac: mac(last),
        what: What::Bridge { has_ports },
    }
}

pub(super) fn announced(last: u8) -> Announced {
    let peers = AnnouncedVtep {
        mac: mac(last),
        underlay: HOME.parse().ok(),
    };
    Announced {
        devices: [(VTEP.to_owned(), peers)].into(),
        complaints: Vec::new(),
    }
}

fn underlay(addresses: &[(u32, &str)], default: Option<&str>) -> Underlay {
    let addresses = addresses.iter();
    Underlay {
        by_interface: addresses
            .map(|&(index, address)| (index, address.parse().unwrap()))
            .collect(),
        default_source: (default.map(|address| address.parse().unwrap()), None),
    }
}

/// The MAC that the device is given, if it is given one.
#[track_caller]
fn set(actions: &[Action]) -> Option<Mac> {
    let macs = actions.iter().filter_map(|action| match action {
        Action::SetMac { to, .. } => Some(*to),
        _ => None,
    });
    let macs: Vec<Mac> = macs.collect();
    assert!(macs.len() < 2, "{actions:?}");
    macs.first().copied()
}

fn recorded(keeper: &Keeper, name: &str) -> Option<Mac> {
    keeper.records().get(name).copied()
}

#[test]
fn the_first_mac_of_a_device_is_written_down_and_left_as_it_is() {
    let mut keeper = keeper(&[]);
    keeper.see(VTEP, Some(vxlan(7, 1)), 0);
    assert_eq!(keeper.decide(0), [Action::Save]);
    assert_eq!(recorded(&keeper, VTEP), Some(mac(1)));
    assert_eq!(keeper.decide(0), []);
}

#[test]
fn a_device_that_is_made_again_gets_its_recorded_mac_at_once() {
    let mut keeper = keeper(&[(VTEP, 1)]);
    keeper.see(VTEP, Some(vxlan(7, 9)), 0);
    let action = Action::SetMac {
        name: VTEP.to_owned(),
        ifindex: 7,
        from: mac(9),
        to: mac(1),
    };
    assert_eq!(keeper.decide(0), [action]);
    assert_eq!(keeper.report().devices[1].repairs, 0, "not the twin");
    let report = keeper.report();
    let device = report.devices.iter().find(|device| device.name == VTEP);
    assert_eq!(device.unwrap().repairs, 1);
}

#[test]
fn an_annotation_that_is_not_fresh_changes_nothing() {
    let mut keeper = keeper(&[(VTEP, 1)]);
    keeper.hear(announced(2), false, 0);
    keeper.see(VTEP, Some(vxlan(7, 1)), 0);
    assert_eq!(keeper.decide(0), []);
    assert_eq!(keeper.decide(10 * SETTLED), []);
    assert_eq!(recorded(&keeper, VTEP), Some(mac(1)));
}

#[test]
fn a_fresh_annotation_that_differs_for_five_seconds_wins_and_the_record_follows() {
    let mut keeper = keeper(&[(VTEP, 1)]);
    keeper.see(VTEP, Some(vxlan(7, 1)), 0);
    keeper.hear(announced(2), true, 1000);
    assert_eq!(keeper.decide(1000), []);
    assert_eq!(keeper.due(), Some(1000 + SETTLED));
    assert_eq!(keeper.decide(999 + SETTLED), []);
    let actions = keeper.decide(1000 + SETTLED);
    assert_eq!(set(&actions), Some(mac(2)));
    assert!(actions.contains(&Action::Save));
    assert_eq!(recorded(&keeper, VTEP), Some(mac(2)));
}

#[test]
fn an_annotation_that_was_not_fresh_in_between_begins_anew() {
    let mut keeper = keeper(&[(VTEP, 1)]);
    keeper.see(VTEP, Some(vxlan(7, 1)), 0);
    keeper.hear(announced(2), true, 0);
    assert_eq!(keeper.decide(0), []);
    keeper.hear(announced(2), false, 3000);
    keeper.hear(announced(2), true, 4000);
    assert_eq!(keeper.decide(SETTLED), []);
    assert_eq!(set(&keeper.decide(4000 + SETTLED)), Some(mac(2)));
}

#[test]
fn a_device_that_is_as_peers_hold_it_is_right_at_once() {
    let mut keeper = keeper(&[(VTEP, 1)]);
    keeper.hear(announced(2), true, 0);
    keeper.see(VTEP, Some(vxlan(7, 2)), 10);
    assert_eq!(keeper.decide(10), [Action::Save]);
    assert_eq!(recorded(&keeper, VTEP), Some(mac(2)));
}

#[test]
fn a_device_without_a_record_waits_for_a_fresh_annotation_that_differs() {
    let mut keeper = keeper(&[]);
    keeper.hear(announced(2), true, 0);
    keeper.see(VTEP, Some(vxlan(7, 1)), 10);
    assert_eq!(keeper.decide(10), []);
    assert_eq!(recorded(&keeper, VTEP), None);
    assert_eq!(set(&keeper.decide(SETTLED)), Some(mac(2)));
}

#[test]
fn the_fourth_repair_in_a_minute_is_an_alarm_and_the_device_is_left_alone_until_a_minute_is_quiet()
{
    let mut keeper = keeper(&[(VTEP, 1)]);
    for (n, at) in (0..REPAIRS).zip([0, 10, 20]) {
        keeper.see(VTEP, Some(vxlan(7, 9)), at);
        assert_eq!(set(&keeper.decide(at)), Some(mac(1)), "{n}");
        keeper.see(VTEP, Some(vxlan(7, 1)), at);
    }
    assert_eq!(keeper.report().alarms, [""; 0]);
    keeper.see(VTEP, Some(vxlan(7, 9)), 30);
    assert_eq!(keeper.decide(30), []);
    let alarms = keeper.report().alarms;
    assert!(
        alarms[0].starts_with("flannel.1: another program changes its MAC"),
        "{alarms:?}"
    );
    // It goes on, more slowly.
    keeper.see(VTEP, Some(vxlan(7, 8)), 50_000);
    assert_eq!(keeper.decide(30 + MINUTE), []);
    assert_eq!(keeper.due(), Some(50_000 + MINUTE));
    assert_eq!(set(&keeper.decide(50_000 + MINUTE)), Some(mac(1)));
    keeper.see(VTEP, Some(vxlan(7, 1)), 50_000 + MINUTE);
    assert_eq!(keeper.report().alarms, [""; 0]);
}

#[test]
fn what_has_failed_is_tried_again_and_counts() {
    let mut keeper = keeper(&[(VTEP, 1)]);
    keeper.see(VTEP, Some(vxlan(7, 9)), 0);
    let mut tried = Vec::new();
    let mut now = 0;
    while now < MINUTE {
        if set(&keeper.decide(now)).is_some() {
            tried.push(now);
            keeper.failed(VTEP, now);
        }
        now = keeper.due().unwrap_or(MINUTE);
    }
    assert_eq!(tried, [0, AGAIN, 2 * AGAIN]);
}

#[test]
fn a_bridge_is_pinned_once_it_has_a_port_and_as_it_was_after_a_reboot() {
    let mut first = keeper(&[]);
    first.see(BRIDGE, Some(bridge(3, 7, false)), 0);
    assert_eq!(first.decide(0), [], "nobody has learnt its MAC yet");
    first.see(BRIDGE, Some(bridge(3, 1, true)), 10);
    let actions = first.decide(10);
    assert_eq!(set(&actions), Some(mac(1)), "what it has, set by somebody");
    assert_eq!(recorded(&first, BRIDGE), Some(mac(1)));
    assert_eq!(first.decide(20), []);
    let report = first.report();
    let device = report.devices.iter().find(|device| device.name == BRIDGE);
    assert_eq!(device.unwrap().repairs, 0, "that was none");

    let mut rebooted = keeper(&[(BRIDGE, 1)]);
    rebooted.see(BRIDGE, Some(bridge(4, 8, false)), 0);
    assert_eq!(set(&rebooted.decide(0)), Some(mac(1)));
}

#[test]
fn a_device_that_is_something_else_is_left_alone_and_said() {
    let mut keeper = keeper(&[(VTEP, 1)]);
    let mut device = vxlan(7, 9);
    device.what = What::Other;
    keeper.see(VTEP, Some(device), 0);
    assert_eq!(keeper.decide(0), []);
    let alarms = keeper.report().alarms;
    assert!(alarms[0].contains("is not a vxlan device"), "{alarms:?}");
}

#[test]
fn the_local_side_follows_an_underlay_address_that_is_gone_for_five_seconds() {
    let mut keeper = keeper(&[(VTEP, 1)]);
    keeper.hear(announced(1), false, 0);
    keeper.see(VTEP, Some(vxlan(7, 1)), 0);
    keeper.see_underlay(underlay(&[(2, HOME)], Some(HOME)));
    assert_eq!(keeper.decide(0), []);
    let moved = underlay(
        &[(2, "169.254.1.1"), (2, "192.0.2.77"), (3, "198.51.100.1")],
        Some("198.51.100.1"),
    );
    keeper.see_underlay(moved);
    assert_eq!(keeper.decide(1000), []);
    assert_eq!(keeper.due(), Some(1000 + SETTLED));
    let action = Action::SetLocal {
        name: VTEP.to_owned(),
        ifindex: 7,
        vni: 1,
        from: HOME.parse().unwrap(),
        to: "192.0.2.77".parse().unwrap(),
    };
    assert_eq!(
        keeper.decide(1000 + SETTLED),
        [action],
        "of its own interface"
    );
    let mut device = vxlan(7, 1);
    if let What::Vxlan(vxlan) = &mut device.what {
        vxlan.local = "192.0.2.77".parse().ok();
    }
    keeper.see(VTEP, Some(device), 7000);
    assert_eq!(keeper.decide(7000), []);
    let alarms = keeper.report().alarms;
    assert!(alarms[0].contains("restart flannel"), "{alarms:?}");
    let mut told = announced(1);
    for peers in told.devices.values_mut() {
        peers.underlay = "192.0.2.77".parse().ok();
    }
    keeper.hear(told, true, 8000);
    keeper.decide(8000);
    assert_eq!(keeper.report().alarms, [""; 0]);
}

#[test]
fn an_underlay_address_that_comes_back_in_time_changes_nothing() {
    let mut keeper = keeper(&[(VTEP, 1)]);
    keeper.see(VTEP, Some(vxlan(7, 1)), 0);
    keeper.see_underlay(underlay(&[(2, "192.0.2.77")], None));
    assert_eq!(keeper.decide(0), []);
    keeper.see_underlay(underlay(&[(2, HOME)], None));
    assert_eq!(keeper.decide(4000), []);
    keeper.see_underlay(underlay(&[(2, "192.0.2.77")], None));
    assert_eq!(keeper.decide(6000), []);
    assert_eq!(keeper.decide(6000 + SETTLED).len(), 1);
}

#[test]
fn with_no_other_address_the_device_stays_and_an_alarm_says_so() {
    let mut keeper = keeper(&[(VTEP, 1)]);
    keeper.see(VTEP, Some(vxlan(7, 1)), 0);
    keeper.see_underlay(underlay(&[(3, "198.51.100.1")], Some("198.51.100.1")));
    keeper.decide(0);
    assert_eq!(keeper.decide(SETTLED), []);
    let alarms = keeper.report().alarms;
    assert!(alarms[0].contains("no other address"), "{alarms:?}");
}

fn read(annotations: &[(&str, &str)]) -> Announced {
    let annotations = annotations.iter();
    let annotations = annotations
        .map(|&(key, value)| (format!("flannel.alpha.coreos.com/{key}"), value.to_owned()));
    Announced::read("edge-1", &annotations.collect())
}

#[test]
fn flannel_s_annotations_are_read_for_both_families() {
    let read = read(&[
        ("backend-type", "vxlan"),
        ("backend-data", r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#),
        (
            "backend-v6-data",
            r#"{"VNI":4096,"VtepMAC":"02:00:00:00:00:02"}"#,
        ),
        ("public-ip", HOME),
        ("public-ipv6", "2001:db8::b"),
    ]);
    let peers = |last, underlay: &str| AnnouncedVtep {
        mac: mac(last),
        underlay: underlay.parse().ok(),
    };
    let devices = [
        (VTEP.to_owned(), peers(1, HOME)),
        ("flannel-v6.4096".to_owned(), peers(2, "2001:db8::b")),
    ];
    assert_eq!(read.devices, devices.into());
    assert_eq!(read.complaints, [""; 0]);
}

#[test]
fn a_bad_annotation_costs_its_own_family_and_names_node_and_remedy() {
    for bad in [
        "{",
        r#"{"VNI":1}"#,
        r#"{"VNI":1,"VtepMAC":"zz"}"#,
        r#"{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}"#,
        r#"{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}"#,
    ] {
        let read = read(&[
            ("backend-data", bad),
            (
                "backend-v6-data",
                r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}"#,
            ),
        ]);
        let names: Vec<_> = read.devices.keys().collect();
        assert_eq!(names, ["flannel-v6.1"], "{bad}");
        let complaint = &read.complaints[0];
        for part in ["Node edge-1", "backend-data", "restart flannel"] {
            assert!(complaint.contains(part), "{complaint}");
        }
    }
}

#[test]
fn another_backend_s_annotations_are_no_complaint() {
    let wireguard = [
        ("backend-type", "wireguard"),
        ("backend-data", r#"{"PublicKey":"x"}"#),
    ];
    assert_eq!(read(&wireguard), Announced::default());
    let none = [("backend-type", "vxlan"), ("backend-data", "null")];
    assert_eq!(read(&none), Announced::default());
}
