use proptest::prelude::*;

use super::*;
use crate::device::{HostSide, Mac, Route};
use crate::ledger::tests::{entry, key};

const BRIDGE: u32 = 2;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod_mac(device: u32) -> Mac {
    Mac([0x0a, 0x58, 0, 0, 0, u8::try_from(device).unwrap()])
}

/// A device that leads to the namespace of its own number.
fn veth(device: u32, bridge: Option<u32>) -> Link {
    Link {
        ifindex: device,
        name: format!("veth{device}"),
        kind: "veth".to_owned(),
        other_end: Some(2),
        other_end_netns: i32::try_from(device).ok(),
        controller: bridge,
        ..Link::default()
    }
}

fn client(device: u32) -> Client {
    Client {
        cookie: device.into(),
        devices: vec![device],
        claimed: ClientAddresses::default(),
    }
}

fn claiming(device: u32, claimed: &str) -> Client {
    let mut client = client(device);
    client.claimed.set(ip(claimed));
    client
}

fn route(prefix: &str, link: Option<u32>) -> Route {
    Route {
        prefix: prefix.parse().unwrap(),
        link,
        is_hole: false,
        is_ours: false,
    }
}

/// Pods 11 and 12 on a bridge.
fn bridged() -> Near {
    Near {
        links: vec![veth(11, Some(BRIDGE)), veth(12, Some(BRIDGE))],
        routes: vec![
            route("0.0.0.0/0", None),
            route("10.1.0.0/24", Some(BRIDGE)),
            route("fd00:1::/64", Some(BRIDGE)),
        ],
        neighbours: Vec::new(),
        ports: [11, 12]
            .map(|device| ((BRIDGE, pod_mac(device)), Port::Only(device)))
            .into(),
    }
}

fn at_bridge(device: u32, address: &str) -> Neighbour {
    Neighbour {
        device: BRIDGE,
        address: ip(address),
        mac: pod_mac(device),
    }
}

fn before(device: u32, address: &str) -> BTreeMap<u64, ClientAddresses> {
    let mut known = ClientAddresses::default();
    known.set(ip(address));
    BTreeMap::from([(u64::from(device), known)])
}

fn known(found: &Identities, device: u32) -> Vec<IpAddr> {
    let known = found.known.get(&u64::from(device)).copied();
    known.unwrap_or_default().iter().collect()
}

fn nobody() -> BTreeMap<u64, ClientAddresses> {
    BTreeMap::new()
}

#[test]
fn what_a_pod_put_on_its_own_interfaces_says_nothing() {
    let near = bridged();
    // An address of another network, as on its `lo`: nobody here would send that to the Pod, so nobody asks.
    let found = identify(
        &near,
        &Word::default(),
        &nobody(),
        &[claiming(11, "10.9.9.9")],
    );
    assert_eq!(found.known, BTreeMap::new());
    assert_eq!(found.questions, []);
    assert_eq!(found.open, [0]);
    // One of this network is asked for, and not believed.
    let found = identify(
        &near,
        &Word::default(),
        &nobody(),
        &[claiming(11, "10.1.0.9")],
    );
    assert_eq!(found.known, BTreeMap::new());
    let question = Question {
        device: BRIDGE,
        address: ip("10.1.0.9"),
        mac: None,
    };
    assert_eq!(found.questions, [question]);
}

#[test]
fn a_pod_that_says_by_arp_that_it_is_somebody_elsewhere_is_not_believed() {
    let mut near = bridged();
    // The kernel makes such entries of any sender's address: of an office, of a Pod of another node, of a host of the
    // LAN.
    near.routes.push(route("192.0.2.0/24", Some(3)));
    let elsewhere = ["198.51.100.9", "192.0.2.7", "2001:db8::9"];
    for address in elsewhere {
        near.neighbours = vec![at_bridge(11, address)];
        for known_before in [nobody(), before(11, address)] {
            let clients = [claiming(11, address)];
            let found = identify(&near, &Word::default(), &known_before, &clients);
            assert_eq!(found.known, BTreeMap::new(), "{address}");
            assert_eq!(found.questions, [], "{address}");
        }
    }
    // Its own is known beside them.
    near.neighbours = elsewhere.map(|address| at_bridge(11, address)).into();
    near.neighbours.push(at_bridge(11, "10.1.0.7"));
    let found = identify(&near, &Word::default(), &nobody(), &[client(11)]);
    assert_eq!(known(&found, 11), [ip("10.1.0.7")]);
}

#[test]
fn a_pod_is_no_longer_who_it_was_once_the_way_there_is_another() {
    let mut near = bridged();
    let was = before(11, "10.1.0.7");
    let found = identify(&near, &Word::default(), &was, &[client(11)]);
    assert_eq!(known(&found, 11), [ip("10.1.0.7")], "only silent");
    near.routes.push(route("10.1.0.7/32", Some(3)));
    let found = identify(&near, &Word::default(), &was, &[client(11)]);
    assert_eq!(found.known, BTreeMap::new());
}

#[test]
fn the_ledger_has_the_last_word_about_the_device_that_it_names() {
    let mut near = bridged();
    near.neighbours = vec![at_bridge(11, "10.1.0.66")];
    near.routes.push(route("10.1.0.67/32", Some(11)));
    let mut web = entry("10.1.0.2", "c1");
    web.host = Some(HostSide {
        ifindex: 11,
        other_end: Some(2),
    });
    let word = Word {
        entries: [(key("web"), web)].into(),
        ..Word::default()
    };
    let clients = [claiming(11, "10.1.0.66"), claiming(12, "10.1.0.2")];
    let found = identify(&near, &word, &before(11, "10.1.0.66"), &clients);
    assert_eq!(known(&found, 11), [ip("10.1.0.2")]);
    // The other one may claim that as it likes: nobody is even asked.
    assert!(known(&found, 12).is_empty());
    assert_eq!(found.questions, []);
    // The index was given to another device since.
    near.links[0].other_end = Some(3);
    let found = identify(&near, &word, &nobody(), &clients);
    assert_eq!(known(&found, 11), [ip("10.1.0.67")]);
}

#[test]
fn of_several_interfaces_of_a_pod_the_first_one_counts() {
    let near = Near {
        links: vec![veth(11, None), veth(12, None)],
        ..Near::default()
    };
    let at = |interface: &str, device, address| {
        let mut entry = entry(address, "c1");
        entry.host = Some(HostSide {
            ifindex: device,
            other_end: Some(2),
        });
        let key = Key {
            interface: interface.to_owned(),
            ..key("web")
        };
        (key, entry)
    };
    let word = Word {
        entries: [at("data0", 11, "10.8.0.2"), at("eth0", 12, "10.1.0.2")].into(),
        ..Word::default()
    };
    let both = Client {
        devices: vec![11, 12],
        ..client(11)
    };
    let found = identify(&near, &word, &nobody(), &[both]);
    assert_eq!(known(&found, 11), [ip("10.1.0.2")]);
}

#[test]
fn a_route_to_one_address_straight_out_of_the_device_says_whose_that_is() {
    let mut near = Near {
        links: vec![veth(11, None), veth(12, None)],
        routes: vec![
            route("10.1.0.2/32", Some(11)),
            route("fd00:1::2/128", Some(11)),
            route("10.1.0.3/32", None),
            route("10.2.0.0/24", Some(12)),
        ],
        ..Near::default()
    };
    let clients = [client(11), client(12)];
    let found = identify(&near, &Word::default(), &nobody(), &clients);
    assert_eq!(known(&found, 11), [ip("10.1.0.2"), ip("fd00:1::2")]);
    assert!(known(&found, 12).is_empty());
    // One that translation has made leads to what the Pod had, and not to what it has.
    near.routes[0].is_ours = true;
    let found = identify(&near, &Word::default(), &nobody(), &clients);
    assert_eq!(known(&found, 11), [ip("fd00:1::2")]);
}

#[test]
fn a_neighbour_is_the_pod_behind_whose_port_it_is() {
    let mut near = bridged();
    near.neighbours = vec![at_bridge(11, "10.1.0.2"), at_bridge(12, "fd00:1::3")];
    let clients = [client(11), client(12)];
    let found = identify(&near, &Word::default(), &nobody(), &clients);
    assert_eq!(known(&found, 11), [ip("10.1.0.2")]);
    assert_eq!(known(&found, 12), [ip("fd00:1::3")]);
    near.ports.insert((BRIDGE, pod_mac(11)), Port::Several);
    let found = identify(&near, &Word::default(), &nobody(), &clients);
    assert!(known(&found, 11).is_empty());
    // At the device itself no bridge is asked.
    near.routes.push(route("10.1.0.0/30", Some(11)));
    near.neighbours = vec![Neighbour {
        device: 11,
        ..at_bridge(11, "10.1.0.2")
    }];
    let found = identify(&near, &Word::default(), &nobody(), &clients);
    assert_eq!(known(&found, 11), [ip("10.1.0.2")]);
}

#[test]
fn a_pod_that_is_silent_for_a_while_stays_who_it_was_until_somebody_else_is() {
    let mut near = bridged();
    let clients = [client(11), client(12)];
    let found = identify(&near, &Word::default(), &before(11, "10.1.0.2"), &clients);
    assert_eq!(known(&found, 11), [ip("10.1.0.2")]);
    // It has another address by now.
    near.neighbours = vec![at_bridge(11, "10.1.0.5")];
    let found = identify(&near, &Word::default(), &before(11, "10.1.0.2"), &clients);
    assert_eq!(known(&found, 11), [ip("10.1.0.5")]);
    // The ledger keeps its old one for somebody.
    near.neighbours.clear();
    let mut kept = entry("10.1.0.2", "c1");
    kept.state = State::Retained;
    let word = Word {
        entries: [(key("web"), kept)].into(),
        ..Word::default()
    };
    let found = identify(&near, &word, &before(11, "10.1.0.2"), &clients);
    assert!(known(&found, 11).is_empty());
}

#[test]
fn a_pod_that_is_heard_with_several_addresses_is_known_by_the_one_that_it_had_or_dials_with() {
    let mut near = bridged();
    near.neighbours = vec![at_bridge(11, "10.1.0.2"), at_bridge(11, "10.1.0.9")];
    let word = Word::default();
    let found = identify(&near, &word, &nobody(), &[client(11)]);
    assert!(known(&found, 11).is_empty());
    let found = identify(&near, &word, &nobody(), &[claiming(11, "10.1.0.9")]);
    assert_eq!(known(&found, 11), [ip("10.1.0.9")]);
    let before = before(11, "10.1.0.2");
    let found = identify(&near, &word, &before, &[claiming(11, "10.1.0.9")]);
    assert_eq!(known(&found, 11), [ip("10.1.0.2")]);
}

#[test]
fn nobody_becomes_the_node_or_another_pod_by_answering_for_it() {
    let mut near = bridged();
    near.neighbours = vec![at_bridge(12, "10.1.0.2"), at_bridge(12, "10.1.0.1")];
    let word = Word {
        local: [ip("10.1.0.1")].into(),
        ..Word::default()
    };
    for claim in ["10.1.0.2", "10.1.0.1"] {
        let clients = [client(11), claiming(12, claim)];
        let found = identify(&near, &word, &before(11, "10.1.0.2"), &clients);
        assert_eq!(known(&found, 11), [ip("10.1.0.2")]);
        assert!(known(&found, 12).is_empty(), "{claim}");
    }
    // Once that one is gone it may.
    let found = identify(&near, &word, &before(11, "10.1.0.2"), &[client(12)]);
    assert_eq!(known(&found, 12), [ip("10.1.0.2")]);
}

#[test]
fn whoever_the_bridge_has_forgotten_is_asked_for_by_the_mac_that_it_had() {
    let mut near = bridged();
    near.neighbours = vec![at_bridge(11, "10.1.0.2")];
    near.ports.clear();
    let found = identify(
        &near,
        &Word::default(),
        &nobody(),
        &[claiming(11, "10.1.0.2")],
    );
    assert_eq!(found.questions.len(), 1);
    assert_eq!(found.questions[0].mac, Some(pod_mac(11)));
}

#[test]
fn an_uplink_and_a_device_of_another_kind_lead_to_no_pod() {
    let mut near = bridged();
    near.links[0].is_uplink = true;
    near.links[1].kind = "macvlan".to_owned();
    assert_eq!(near.devices_to(11), Vec::<u32>::new());
    assert_eq!(near.devices_to(12), Vec::<u32>::new());
}

#[test]
fn an_address_is_a_pods_where_the_way_to_it_ends_at_pods() {
    let mut near = bridged();
    near.routes.push(route("10.2.0.2/32", Some(12)));
    near.routes.push(route("10.1.0.128/25", None));
    near.routes.push(route("192.0.2.0/24", Some(99)));
    for (address, is_pods) in [
        ("10.1.0.2", true),
        ("fd00:1::2", true),
        ("10.2.0.2", true),
        ("10.1.0.129", false),
        ("192.0.2.7", false),
        ("198.51.100.1", false),
    ] {
        assert_eq!(near.leads_to_pods(ip(address)), is_pods, "{address}");
    }
}

proptest! {
    /// Whatever Pods claim, and whatever was heard of whom.
    #[test]
    fn no_two_pods_are_known_by_one_address_and_none_by_what_is_anothers(
        heard in proptest::collection::vec((11u32..15, 1u8..8), 0..12),
        claims in proptest::collection::vec(1u8..8, 4),
        known in proptest::collection::vec((11u32..15, 1u8..8), 0..4),
        kept in 1u8..8,
        own in 1u8..8,
    ) {
        let address = |last: u8| ip(&format!("10.1.0.{last}"));
        let mut near = bridged();
        near.links = (11..15).map(|device| veth(device, Some(BRIDGE))).collect();
        let ports = (11..15).map(|device| ((BRIDGE, pod_mac(device)), Port::Only(device)));
        near.ports = ports.collect();
        // A neighbour table has one MAC for an address.
        let heard: BTreeMap<u8, u32> = heard.into_iter().map(|(device, last)| (last, device)).collect();
        near.neighbours = heard
            .iter()
            .map(|(last, device)| at_bridge(*device, &address(*last).to_string()))
            .collect();
        let mut retained = entry(&address(kept).to_string(), "c1");
        retained.state = State::Retained;
        let word = Word {
            local: [address(own)].into(),
            entries: [(key("web"), retained)].into(),
            ..Word::default()
        };
        let known: BTreeMap<u8, u32> = known.into_iter().map(|(device, last)| (last, device)).collect();
        let mut before = BTreeMap::new();
        for (last, device) in &known {
            let addresses: &mut ClientAddresses = before.entry(u64::from(*device)).or_default();
            addresses.set(address(*last));
        }
        let clients: Vec<Client> = (11..15)
            .zip(&claims)
            .map(|(device, last)| claiming(device, &address(*last).to_string()))
            .collect();
        let found = identify(&near, &word, &before, &clients);
        let mut seen = BTreeSet::new();
        for (cookie, addresses) in &found.known {
            for address in addresses.iter() {
                prop_assert!(seen.insert(address), "{address} twice");
                prop_assert!(!word.local.contains(&address));
                prop_assert_ne!(address, ip(&format!("10.1.0.{kept}")));
                let was_known = before.get(cookie).is_some_and(|known| known.iter().any(|a| a == address));
                let is_heard = near.neighbours.iter().any(|one| {
                    one.address == address && u64::from(one.mac.0[5]) == *cookie
                });
                prop_assert!(was_known || is_heard, "only its own word for {address}");
            }
        }
    }
}
