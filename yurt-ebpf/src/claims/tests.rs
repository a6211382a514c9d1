use std::collections::BTreeMap;

use yurt_frames::guard::{Host, OTHER, POD, advertisement, fixtures, sent};
use yurt_frames::protocol::{UDP, VRRP};
use yurt_frames::{ACK, Arp, eth, ip};

use super::*;
use crate::abi::{GUARD_AUDIT, Mac, REASON_NAMES};

pub(super) type Owned = BTreeMap<[u8; 16], OwnerRow>;

impl Owners for Owned {
    fn owner_or(&self, nobody: OwnerRow, addr: &[u8; 16]) -> OwnerRow {
        self.get(addr).copied().unwrap_or(nobody)
    }
}

pub(super) const IFINDEX: u32 = 7;

pub(super) fn row(host: Host) -> GuardRow {
    let mut row = GuardRow {
        mode: GUARD_AUDIT,
        macs_len: 1,
        v4_own: 1,
        v4_len: 1,
        v6_own: 2,
        v6_len: 2,
        ..GuardRow::default()
    };
    row.macs[0].addr = host.mac;
    row.v4[0] = Prefix4 {
        addr: host.v4.octets(),
        mask: [0xff; 4],
    };
    for (prefix, addr) in row.v6.iter_mut().zip([host.v6, host.link_local]) {
        *prefix = Prefix6 {
            addr: addr.octets(),
            mask: [0xff; 16],
        };
    }
    row
}

/// The same in short.
fn plain(row: &GuardRow) -> PlainRow {
    PlainRow {
        ifindex: IFINDEX,
        v4: row.v4[0].addr,
        mac: row.macs[0],
        v6: row.v6[0].addr,
    }
}

#[test]
fn what_pods_send_all_the_time_is_plain() {
    let plain = plain(&row(POD));
    let [v4, v6] = [ip(POD.v4, OTHER.v4), ip(POD.v6, OTHER.v6)];
    for frame in [
        sent(POD.mac, v4.clone().tcp(1, 2, ACK)),
        sent(POD.mac, v4.clone().udp(1, 2)),
        sent(POD.mac, v4.ping(1)),
        sent(POD.mac, v6.clone().tcp(1, 2, ACK)),
        sent(POD.mac, v6.clone().udp(1, 2)),
        sent(POD.mac, v6.ping(1)),
        sent(POD.mac, Arp::request((POD.mac, POD.v4), OTHER.v4)),
    ] {
        assert!(is_plain(frame.as_slice(), false, &plain), "{frame:x?}");
        assert!(!is_plain(frame.as_slice(), false, &PlainRow::default()));
    }
}

#[test]
fn a_row_that_is_not_written_yet_is_nobodys() {
    let nobody = PlainRow {
        mac: row(POD).macs[0],
        ..PlainRow::default()
    };
    let any4 = std::net::Ipv4Addr::UNSPECIFIED;
    let any6 = std::net::Ipv6Addr::UNSPECIFIED;
    for frame in [
        sent(POD.mac, ip(any4, OTHER.v4).tcp(1, 2, ACK)),
        sent(POD.mac, ip(any6, OTHER.v6).udp(1, 2)),
        sent(POD.mac, Arp::request((POD.mac, any4), OTHER.v4)),
    ] {
        assert!(!is_plain(frame.as_slice(), false, &nobody), "{frame:x?}");
    }
}

fn owned(host: Host, owner: OwnerRow) -> Owned {
    let addrs = [host.v4.to_ipv6_mapped(), host.v6, host.link_local];
    addrs.map(|addr| (addr.octets(), owner)).into()
}

pub(super) fn find(frame: &[u8], row: Option<&GuardRow>, owners: &Owned) -> Option<Finding> {
    let sender = Sender {
        ifindex: IFINDEX,
        row,
        owners,
    };
    let claims = Claims::of(frame, false);
    let finding = claims.map(|claims| claims.judge(&sender));
    let is_plain = row.is_some_and(|row| is_plain(frame, false, &plain(row)));
    let is_right = finding.is_some_and(|finding| finding.reason.is_none());
    assert!(!is_plain || is_right, "{finding:?}");
    finding
}

fn reason(frame: &[u8], row: Option<&GuardRow>, owners: &Owned) -> Option<Reason> {
    let finding = find(frame, row, owners);
    finding.expect("not read to the end").reason
}

#[test]
fn what_a_pod_does_is_judged_as_the_table_of_fixtures_says() {
    let row = row(POD);
    for fixture in fixtures() {
        let finding = find(&fixture.frame, Some(&row), &Owned::new());
        // The program says so of frames that end too early.
        let malformed = Finding {
            reason: Some(Reason::Malformed),
            is_enforced_by_owner: false,
        };
        let finding = finding.unwrap_or(malformed);
        let reason = finding.reason.map(|reason| REASON_NAMES[reason as usize]);
        assert_eq!(reason, fixture.reason, "{}", fixture.name);
        assert!(!finding.is_enforced_by_owner, "{}", fixture.name);
    }
}

#[test]
fn a_pod_of_which_nothing_is_known_may_do_what_takes_nobodys_address() {
    for fixture in fixtures() {
        let finding = find(&fixture.frame, None, &Owned::new());
        let reason = finding.and_then(|finding| finding.reason);
        assert_eq!(reason, None, "{}", fixture.name);
    }
}

#[test]
fn a_pod_of_which_nothing_is_known_may_not_use_an_address_that_is_anothers() {
    let away = OwnerRow {
        ifindex: 0,
        mode: GUARD_AUDIT,
    };
    let owners = owned(OTHER, away);
    let claims = [
        (Reason::Ipv4, sent(POD.mac, ip(OTHER.v4, POD.v4).udp(1, 2))),
        (
            Reason::Arp,
            sent(
                POD.mac,
                Arp::answer((POD.mac, OTHER.v4), ([0; 6], OTHER.v4)),
            ),
        ),
        (Reason::Ipv6, sent(POD.mac, ip(OTHER.v6, POD.v6).udp(1, 2))),
        (
            Reason::LinkLocal,
            sent(POD.mac, ip(OTHER.link_local, POD.v6).udp(1, 2)),
        ),
        (
            Reason::Nd,
            sent(POD.mac, advertisement(POD.v6, OTHER.v6, POD.mac)),
        ),
    ];
    for (expected, frame) in claims {
        assert_eq!(reason(&frame, None, &owners), Some(expected));
    }
    assert_eq!(
        reason(
            &sent(POD.mac, ip(POD.v4, OTHER.v4).raw(UDP, &[])),
            None,
            &owners
        ),
        None
    );
}

#[test]
fn the_owner_of_an_address_uses_it_whatever_is_known_of_its_pod() {
    let owner = OwnerRow {
        ifindex: IFINDEX,
        mode: GUARD_ENFORCE,
    };
    let owners = owned(OTHER, owner);
    let frame = sent(OTHER.mac, ip(OTHER.v4, POD.v4).raw(UDP, &[]));
    assert_eq!(reason(&frame, None, &owners), None);
}

#[test]
fn an_owner_who_enforces_is_obeyed_by_a_pod_that_is_only_audited() {
    let row = row(POD);
    let mut owner = OwnerRow {
        ifindex: 9,
        mode: GUARD_ENFORCE,
    };
    let frame = sent(POD.mac, ip(OTHER.v4, POD.v4).raw(UDP, &[]));
    let finding = find(&frame, Some(&row), &owned(OTHER, owner)).unwrap();
    assert!(finding.is_enforced_by_owner);
    // Nor does a second wrong claim hide the first.
    let source = "fe80::bad".parse().unwrap();
    let advertised = sent(OTHER.mac, advertisement(source, OTHER.v6, POD.mac));
    let finding = find(&advertised, Some(&row), &owned(OTHER, owner)).unwrap();
    assert_eq!(finding.reason, Some(Reason::Mac));
    assert!(finding.is_enforced_by_owner);
    owner.mode = GUARD_AUDIT;
    let finding = find(&frame, Some(&row), &owned(OTHER, owner)).unwrap();
    assert_eq!(finding.reason, Some(Reason::Ipv4));
    assert!(!finding.is_enforced_by_owner);
}

#[test]
fn extra_addresses_are_used_but_not_where_they_are_anothers() {
    let mut row = row(POD);
    row.v4[1] = Prefix4 {
        addr: [10, 244, 1, 0],
        mask: [255, 255, 255, 0],
    };
    row.v4_len = 2;
    row.v6[2] = Prefix6 {
        addr: OTHER.v6.octets(),
        mask: [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
    };
    row.v6_len = 3;
    row.macs[1] = Mac {
        addr: [0, 0, 0x5e, 0, 1, 51],
        pad: [0; 2],
    };
    row.macs_len = 2;
    let vrrp = ip([10, 244, 1, 99], OTHER.v4).raw(VRRP, &[]);
    let vrrp = sent(row.macs[1].addr, vrrp);
    let away = OwnerRow::default();
    let taken = [
        sent(POD.mac, ip(OTHER.v4, POD.v4).raw(UDP, &[])),
        sent(POD.mac, ip(OTHER.v6, POD.v6).udp(1, 2)),
    ];
    assert_eq!(reason(&vrrp, Some(&row), &owned(OTHER, away)), None);
    for frame in &taken {
        assert_eq!(reason(frame, Some(&row), &Owned::new()), None);
        assert!(reason(frame, Some(&row), &owned(OTHER, away)).is_some());
    }
}

#[test]
fn a_link_layer_address_that_is_anothers_is_used_by_nobody_else_whatever_was_allowed() {
    let owner = OwnerRow {
        ifindex: 9,
        mode: GUARD_ENFORCE,
    };
    let owners: Owned = [(mac_key(OTHER.mac), owner)].into();
    let mut allowed = row(POD);
    allowed.macs[1].addr = OTHER.mac;
    allowed.macs_len = 2;
    let any = GuardRow {
        macs_len: 0,
        ..row(POD)
    };
    let stolen = sent(OTHER.mac, ip(POD.v4, POD.v4).udp(1, 2));
    let answered = Arp::answer((OTHER.mac, POD.v4), ([0; 6], OTHER.v4));
    let answered = sent(POD.mac, answered);
    for (of, known) in [
        ("a Pod that was allowed it", Some(&allowed)),
        ("a Pod that may use any", Some(&any)),
        ("a Pod of which nothing is known", None),
        ("a Pod that is audited", Some(&row(POD))),
    ] {
        for (frame, reason) in [(&stolen, Reason::Mac), (&answered, Reason::Arp)] {
            let finding = find(frame, known, &owners).unwrap();
            assert_eq!(finding.reason, Some(reason), "{of}");
            assert!(finding.is_enforced_by_owner, "{of}");
        }
    }
    // Where nobody has it, what was allowed is.
    assert_eq!(reason(&stolen, Some(&allowed), &Owned::new()), None);
    // And its owner's own is, whatever else is said of it.
    let own: Owned = [(mac_key(POD.mac), owner)].into();
    let frame = sent(POD.mac, ip(POD.v4, OTHER.v4).ping(1));
    assert_eq!(reason(&frame, Some(&row(POD)), &own), None);
}

#[test]
fn a_tag_that_the_kernel_has_taken_off_counts_as_one_in_the_frame() {
    let (row, owners) = (row(POD), Owned::new());
    let frame = sent(POD.mac, ip(POD.v4, OTHER.v4).raw(UDP, &[]));
    let sender = Sender {
        ifindex: IFINDEX,
        row: Some(&row),
        owners: &owners,
    };
    let claims = Claims::of(frame.as_slice(), true).unwrap();
    assert_eq!(claims.judge(&sender).reason, Some(Reason::Vlan));
    assert!(!is_plain(frame.as_slice(), true, &plain(&row)));
    let tagged = eth(POD.mac, OTHER.mac).vlan(1).ip(POD.v4, OTHER.v4);
    let tagged = tagged.raw(UDP, &[]).padded();
    assert_eq!(reason(&tagged, Some(&row), &owners), Some(Reason::Vlan));
}
