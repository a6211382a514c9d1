use super::*;
use crate::host::limit::{MINUTE, REPAIRS};

pub(super) const DEVICE: &str = "flannel.1";
const UNDERLAY: u32 = 2;

pub(super) fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

/// Where a peer is.
pub(super) fn at(peer: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, peer])
}

/// Its address in the tunnel.
pub(super) fn inside(peer: u8) -> IpAddr {
    IpAddr::from([10, 250, peer, 0])
}

fn subnet(peer: u8) -> IpNetwork {
    IpNetwork::new(inside(peer), 24).unwrap()
}

/// One of its Pods.
fn pod(peer: u8) -> IpAddr {
    IpAddr::from([10, 250, peer, 7])
}

pub(super) fn peer(number: u8) -> Peer {
    Peer {
        node: format!("edge-{number}").into(),
        addresses: [pod(number)].into(),
    }
}

/// The tunnel of a node that knows these peers by these MACs.
pub(super) fn tunnel(peers: &[(u8, u8)]) -> Tunnel {
    let peers = peers.iter();
    Tunnel {
        ifindex: 7,
        mac: mac(100),
        vni: 1,
        port: 8472,
        underlay: Some(UNDERLAY),
        forwarding: peers
            .clone()
            .map(|&(peer, last)| (mac(last), at(peer)))
            .collect(),
        others: BTreeSet::new(),
        neighbours: peers
            .clone()
            .map(|&(peer, last)| (inside(peer), mac(last)))
            .collect(),
        routes: peers
            .map(|&(peer, _)| (subnet(peer), Some(inside(peer))))
            .collect(),
    }
}

pub(super) fn tunnels(tunnel: Tunnel) -> BTreeMap<String, Tunnel> {
    [(DEVICE.to_owned(), tunnel)].into()
}

pub(super) fn listened(peer: u8, known: u8) -> Listened {
    Listened {
        ifindex: UNDERLAY,
        peer: at(peer),
        vni: 1,
        port: 8472,
        known: mac(known),
    }
}

/// A node that knows peers 1 and 2 by MACs 1 and 2.
fn knowing() -> Mender {
    let mut mender = Mender::default();
    mender.hear(vec![peer(1), peer(2)]);
    mender.see(tunnels(tunnel(&[(1, 1), (2, 2)])));
    assert_eq!(mender.decide(0), []);
    mender
}

/// Peer 1, known by MAC 1, is heard like this each second from `start` on; the repairs of that time, each with when it
/// was.
fn hear(mender: &mut Mender, start: u64, seconds: &[Heard]) -> Vec<(u64, Mac)> {
    let mut repairs = Vec::new();
    for (now, heard) in (start..).step_by(1_000).zip(seconds) {
        mender.notice(&listened(1, 1), *heard, now);
        for repair in mender.decide(now) {
            assert_eq!((repair.peer, repair.from), (at(1), mac(1)));
            repairs.push((now, repair.to));
        }
    }
    repairs
}

const NOTHING: Heard = heard(false, Others::None);
const KNOWN: Heard = heard(true, Others::None);
const OTHER: Heard = heard(false, Others::One(Mac([2, 0, 0, 0, 0, 9])));
const SEVERAL: Heard = heard(false, Others::Several);

const fn heard(is_known: bool, others: Others) -> Heard {
    Heard { is_known, others }
}

fn other(last: u8) -> Heard {
    heard(false, Others::One(mac(last)))
}

#[track_caller]
fn alarm(mender: &Mender, words: &str) {
    let alarms = mender.report().alarms;
    assert!(alarms.len() == 1 && alarms[0].contains(words), "{alarms:?}");
}

#[test]
fn a_peer_that_sends_with_another_mac_for_five_seconds_is_known_by_it() {
    let mut mender = knowing();
    let expected = [listened(1, 1), listened(2, 2)].into();
    assert_eq!(mender.listened(), expected);
    assert_eq!(hear(&mut mender, 0, &[OTHER; 5]), []);
    mender.notice(&listened(1, 1), NOTHING, SETTLED);
    let repair = Repair {
        device: DEVICE.to_owned(),
        ifindex: 7,
        node: "edge-1".into(),
        peer: at(1),
        from: mac(1),
        to: mac(9),
        neighbours: vec![inside(1)],
    };
    assert_eq!(mender.decide(SETTLED), std::slice::from_ref(&repair));
    assert_eq!(mender.report().repairs, BTreeMap::new());
    mender.repaired(&repair);
    assert_eq!(mender.report().repairs, [(DEVICE.to_owned(), 1)].into());
    let report = mender.report();
    assert_eq!(report.listened, [(DEVICE.to_owned(), 2)].into());
    assert_eq!(report.alarms, [""; 0]);
    // What it was known by is heard of no more.
    mender.see(tunnels(tunnel(&[(1, 9), (2, 2)])));
    assert!(mender.listened().contains(&listened(1, 9)));
    assert_eq!(hear(&mut mender, 6_000, &[KNOWN, OTHER, OTHER]), []);
}

#[test]
fn a_peer_that_is_seldom_heard_is_believed_after_three_sightings() {
    let mut mender = knowing();
    let mut seconds = [NOTHING; 51];
    (seconds[0], seconds[20], seconds[50]) = (OTHER, OTHER, OTHER);
    assert_eq!(hear(&mut mender, 0, &seconds), [(50_000, mac(9))]);
}

#[test]
fn while_the_known_mac_is_heard_nothing_else_is_believed() {
    let mut mender = knowing();
    let seconds = [OTHER, OTHER, OTHER, OTHER, KNOWN].repeat(20);
    assert_eq!(hear(&mut mender, 0, &seconds), []);
    let several = [OTHER, SEVERAL].repeat(20);
    assert_eq!(hear(&mut mender, 200_000, &several), []);
    let changing: Vec<Heard> = (0..40).map(|n| other(10 + n % 2)).collect();
    assert_eq!(hear(&mut mender, 400_000, &changing), []);
}

#[test]
fn what_was_heard_long_ago_does_not_count() {
    let mut mender = knowing();
    let mut seconds = [NOTHING; 130];
    (seconds[0], seconds[1], seconds[62], seconds[123]) = (OTHER, OTHER, OTHER, OTHER);
    assert_eq!(hear(&mut mender, 0, &seconds), []);
}

#[test]
fn a_mac_that_is_somebody_else_s_is_not_believed_and_that_is_said() {
    for (last, whose) in [(2, "known to be at 192.0.2.2"), (100, "this node's own")] {
        let mut mender = knowing();
        assert_eq!(hear(&mut mender, 0, &[other(last); 10]), [], "{last}");
        alarm(&mender, whose);
        alarm(&mender, "Node edge-1 sends from 192.0.2.1");
        hear(&mut mender, 10_000, &[KNOWN]);
        assert_eq!(mender.report().alarms, [""; 0]);
    }
    let mut mender = knowing();
    let group = heard(false, Others::One(Mac([1, 0, 0x5e, 0, 0, 1])));
    assert_eq!(hear(&mut mender, 0, &[group; 10]), []);
    alarm(&mender, "not the MAC of any device");
}

#[test]
fn two_peers_that_send_with_one_mac_at_the_same_time_are_not_both_given_it() {
    let mut mender = knowing();
    for now in (0..=SETTLED).step_by(1_000) {
        mender.notice(&listened(1, 1), OTHER, now);
        mender.notice(&listened(2, 2), OTHER, now);
        let repairs = mender.decide(now);
        let repairs: Vec<_> = repairs.iter().map(|r| (r.peer, r.to)).collect();
        let expected: &[_] = if now < SETTLED {
            &[]
        } else {
            &[(at(1), mac(9))]
        };
        assert_eq!(repairs, expected, "{now}");
    }
    alarm(&mender, "known to be at 192.0.2.1");
}

#[test]
fn nodes_that_are_no_peers_are_neither_listened_for_nor_repaired() {
    let mut mender = knowing();
    mender.hear(vec![peer(2)]);
    mender.see(tunnels(tunnel(&[(1, 1), (2, 2)])));
    assert_eq!(mender.listened(), [listened(2, 2)].into());
    assert_eq!(hear(&mut mender, 0, &[OTHER; 10]), []);
}

#[test]
fn an_address_that_two_nodes_have_says_nothing() {
    let mut mender = knowing();
    let twin = Peer {
        addresses: [at(1), pod(3)].into(),
        ..peer(3)
    };
    mender.hear(vec![peer(1), peer(2), twin]);
    mender.see(tunnels(tunnel(&[(1, 1), (2, 2), (3, 3)])));
    assert_eq!(mender.listened(), [listened(2, 2)].into());
    assert_eq!(hear(&mut mender, 0, &[OTHER; 10]), []);
}

#[test]
fn a_peer_without_a_neighbour_or_with_two_macs_is_left_alone() {
    let mut without = tunnel(&[(1, 1)]);
    without.neighbours.clear();
    let mut two = tunnel(&[(1, 1)]);
    two.forwarding.insert(mac(5), at(1));
    two.neighbours.insert(inside(8), mac(5));
    for tunnel in [without, two] {
        let mut mender = knowing();
        mender.see(tunnels(tunnel));
        assert_eq!(mender.listened(), BTreeSet::new());
        assert_eq!(hear(&mut mender, 0, &[OTHER; 10]), []);
    }
}

#[test]
fn entries_that_lead_to_a_mac_without_a_neighbour_do_not_matter() {
    let mut mender = knowing();
    let mut entries = tunnel(&[(1, 1), (2, 2)]);
    entries.forwarding.insert(mac(9), at(1));
    mender.see(tunnels(entries));
    let repairs = hear(&mut mender, 0, &[OTHER; 6]);
    assert_eq!(repairs, [(SETTLED, mac(9))], "half of a repair was done");
}

#[test]
fn the_fourth_repair_in_a_minute_is_an_alarm_and_the_peer_is_left_alone_until_a_minute_is_quiet() {
    let mut mender = knowing();
    // It works, and somebody undoes it each time.
    let repairs = hear(&mut mender, 0, &[OTHER; 60]);
    assert_eq!(repairs.len(), REPAIRS, "{repairs:?}");
    alarm(&mender, "again and again");
    // Since the fourth was asked for, nobody has said anything else.
    let repairs = hear(&mut mender, 60_000, &[OTHER; 9]);
    assert_eq!(repairs, [(8_000 + MINUTE, mac(9))]);
    assert_eq!(mender.report().alarms, [""; 0]);
}

#[test]
fn what_was_seen_before_it_was_left_alone_does_not_count_when_that_is_over() {
    let mut mender = knowing();
    assert_eq!(hear(&mut mender, 0, &[OTHER; 10]).len(), REPAIRS);
    assert_eq!(hear(&mut mender, 10_000, &[NOTHING; 120]), []);
}

#[test]
fn what_somebody_else_wrote_is_right_again_once_it_is_heard_whatever_else_is() {
    let mut mender = knowing();
    assert_eq!(hear(&mut mender, 0, &[OTHER; 6]), [(SETTLED, mac(9))]);
    // It is away for a look.
    mender.see(tunnels(tunnel(&[(2, 2)])));
    assert_eq!(mender.decide(5_500), []);
    mender.see(tunnels(tunnel(&[(1, 9), (2, 2)])));
    // Whoever sends with 9 goes on, and the peer itself is there again.
    let both = heard(true, Others::One(mac(1)));
    let repairs: Vec<_> = (6_000..13_000)
        .step_by(1_000)
        .flat_map(|now| {
            mender.notice(&listened(1, 9), both, now);
            mender.decide(now)
        })
        .map(|repair| (repair.from, repair.to))
        .collect();
    assert_eq!(repairs.first(), Some(&(mac(9), mac(1))));
    // It is as it was: both are heard, and what was written is believed.
    mender.see(tunnels(tunnel(&[(1, 1), (2, 2)])));
    let both = heard(true, Others::One(mac(9)));
    assert_eq!(hear(&mut mender, 20_000, &[both; 20]), []);
    // What nobody else wrote is not right for that.
    let mut mender = knowing();
    let both = heard(true, Others::One(mac(9)));
    assert_eq!(hear(&mut mender, 0, &[both; 20]), []);
}

#[test]
fn a_peer_that_is_away_for_a_look_does_not_get_more_repairs_by_that() {
    let mut mender = knowing();
    let mut repairs = Vec::new();
    for start in (0..50_000).step_by(10_000) {
        repairs.extend(hear(&mut mender, start, &[OTHER; 6]));
        mender.see(tunnels(tunnel(&[(2, 2)])));
        mender.decide(start + 6_000);
        mender.see(tunnels(tunnel(&[(1, 1), (2, 2)])));
    }
    assert_eq!(repairs.len(), REPAIRS, "{repairs:?}");
    mender.see(tunnels(tunnel(&[(2, 2)])));
    mender.decide(50_000 + 2 * MINUTE);
    assert!(mender.known.is_empty(), "nothing is kept for ever");
}

#[test]
fn a_mac_that_is_in_another_kind_of_entry_is_somebody_else_s() {
    let mut mender = knowing();
    let mut entries = tunnel(&[(1, 1), (2, 2)]);
    entries.others.insert(mac(9));
    mender.see(tunnels(entries));
    assert_eq!(hear(&mut mender, 0, &[OTHER; 10]), []);
    alarm(&mender, "not flannel's");
}

#[test]
fn a_node_that_is_found_at_two_addresses_is_at_none() {
    let mut mender = knowing();
    let twice = Peer {
        addresses: [pod(1), pod(2)].into(),
        ..peer(1)
    };
    mender.hear(vec![twice]);
    mender.see(tunnels(tunnel(&[(1, 1), (2, 2)])));
    assert_eq!(mender.listened(), BTreeSet::new());
}

#[test]
fn a_peer_is_where_what_is_sent_to_its_addresses_goes() {
    let mut tunnel = tunnel(&[(1, 1), (2, 2)]);
    // A route without a gateway, and a wider one.
    tunnel
        .routes
        .push(("10.0.0.0/8".parse().unwrap(), Some(inside(2))));
    let single = IpAddr::from([10, 9, 9, 9]);
    tunnel.routes.push((single.into(), None));
    tunnel.neighbours.insert(single, mac(1));
    let find = |address: IpAddr| {
        let peer = Peer {
            addresses: [address].into(),
            ..peer(1)
        };
        let found = Seen::new(tunnel.clone(), &[peer]).peers;
        found.into_keys().next()
    };
    assert_eq!(find(pod(1)), Some(at(1)));
    assert_eq!(find(at(2)), Some(at(2)), "its own address");
    assert_eq!(find(single), Some(at(1)));
    assert_eq!(find(IpAddr::from([10, 99, 0, 1])), Some(at(2)));
    assert_eq!(find(IpAddr::from([192, 168, 0, 1])), None);
    assert_eq!(find("fd00::1".parse().unwrap()), None);
}
