//! The decision over tables made up here. What whole plans do to readers is tested with the planner.

use std::cell::Cell;

use super::*;
use crate::abi::{FILTER_WORDS, Prefix4, Prefix6, SCOPE_INTERNAL, TcpPeer, mapped};

#[derive(Default)]
pub(super) struct Fake {
    /// Answers to lookups of the frontend, one after the other; the last one stays.
    pub(super) frontend: Vec<Option<FrontendValue>>,
    pub(super) lookups: Cell<usize>,
    pub(super) address: Option<FrontendValue>,
    pub(super) word: Option<PublishWord>,
    pub(super) backends4: Vec<Backend4>,
    pub(super) backends6: Vec<Backend6>,
    pub(super) conf: Conf,
    pub(super) random: u32,
    pub(super) is_in_node_netns: bool,
    pub(super) client: Option<NetnsRow>,
    /// The word of every place; else all bits are set.
    pub(super) filter: Option<u64>,
}

impl Fake {
    fn answer(&self, scope: u8) -> Option<FrontendValue> {
        if scope == SCOPE_ADDRESS {
            return self.address;
        }
        let number = self.lookups.get();
        self.lookups.set(number + 1);
        *self.frontend.get(number).or(self.frontend.last())?
    }
}

impl Tables for Fake {
    fn filter(&self, _: u32) -> Option<u64> {
        self.filter.or(Some(u64::MAX))
    }
    fn frontend4(&self, key: &FrontendKey4) -> Option<FrontendValue> {
        self.answer(key.scope)
    }
    fn frontend6(&self, key: &FrontendKey6) -> Option<FrontendValue> {
        self.answer(key.scope)
    }
    fn publish_word(&self, service: u32) -> Option<PublishWord> {
        self.word.filter(|_| service == 7)
    }
    fn backend4(&self, slot: u32) -> Option<Backend4> {
        self.backends4.get(slot as usize).copied()
    }
    fn backend6(&self, slot: u32) -> Option<Backend6> {
        self.backends6.get(slot as usize).copied()
    }
    fn conf(&self) -> Option<&Conf> {
        Some(&self.conf)
    }
    fn affinity(&self, _: u32) -> Affinity {
        Affinity::default()
    }
}

impl Dialer for Fake {
    fn random(&self) -> u32 {
        self.random
    }
    fn is_in_node_netns(&self) -> bool {
        self.is_in_node_netns
    }
    fn client(&self) -> Option<NetnsRow> {
        self.client
    }
}

const KEY: FrontendKey4 = FrontendKey4 {
    addr: [10, 96, 0, 10],
    port_be: [0, 80],
    protocol: 6,
    scope: SCOPE_INTERNAL,
};

fn value(key: &FrontendKey4) -> FrontendValue {
    FrontendValue::new(7, key.fingerprint(), 0)
}

fn foreign() -> FrontendValue {
    value(&FrontendKey4 {
        addr: [10, 96, 0, 11],
        ..KEY
    })
}

fn with_prefix(flags: u32) -> Fake {
    let mut fake = Fake {
        frontend: vec![None],
        ..Fake::default()
    };
    // The half that is not in force must not matter.
    fake.conf.prefixes[0].v4_len = 1;
    fake.conf.active_prefixes = 1;
    fake.conf.prefixes[1].flags = flags;
    fake.conf.prefixes[1].v4_len = 1;
    fake.conf.prefixes[1].v4[0] = Prefix4 {
        addr: [10, 96, 0, 0],
        mask: [255, 255, 0, 0],
    };
    fake.conf.prefixes[1].v6_len = 2;
    let mut addr = [0; 16];
    addr[0] = 0xfd;
    let mut mask = [0; 16];
    mask[..8].fill(255);
    fake.conf.prefixes[1].v6[1] = Prefix6 { addr, mask };
    fake.conf.prefixes[1].v6[0] = Prefix6 {
        addr: [1; 16],
        mask: [255; 16],
    };
    fake
}

#[test]
fn an_address_outside_the_filter_and_the_prefixes_costs_no_lookup() {
    let fake = Fake {
        filter: Some(0),
        ..with_prefix(0)
    };
    let elsewhere = FrontendKey4 {
        addr: [192, 0, 2, 1],
        ..KEY
    };
    assert_eq!(resolve4(&fake, &fake, &elsewhere), Resolved::Pass);
    let elsewhere = FrontendKey6::default();
    assert_eq!(resolve6(&fake, &fake, &elsewhere), Resolved::Pass);
    assert_eq!(fake.lookups.get(), 0);
}

#[test]
fn what_the_filter_alone_passes_is_what_a_whole_look_passes() {
    for (filter, flags) in [
        (None, 0),
        (Some(0), 0),
        (Some(0), PREFIXES_ARE_SERVICE_CIDRS),
    ] {
        let fake = Fake {
            filter,
            ..with_prefix(flags)
        };
        let is_passed = filter == Some(0) && flags == 0;
        assert_eq!(passes4(&fake, KEY.addr), is_passed);
        if is_passed {
            assert_eq!(resolve4(&fake, &fake, &KEY), Resolved::Pass);
        }
    }
}

#[test]
fn inside_a_service_cidr_all_is_refused_and_the_filter_says_what_a_service_has() {
    let v6 = FrontendKey6 {
        addr: [0xfd; 16],
        ..FrontendKey6::default()
    };
    for (filter, counter) in [
        (None, Counter::RefuseUnknownPort),
        (Some(0), Counter::RefuseUnallocated),
    ] {
        let mut fake = Fake {
            filter,
            ..with_prefix(PREFIXES_ARE_SERVICE_CIDRS)
        };
        // No row is needed for that, and one that is there changes nothing.
        for address in [None, Some(FrontendValue::new(0, 0, 0))] {
            fake.address = address;
            assert_eq!(resolve4(&fake, &fake, &KEY), Resolved::Refuse(counter));
            let set = &mut fake.conf.prefixes[fake.conf.active_prefixes as usize];
            (set.v6_len, set.v6[0]) = (1, Prefix6::default());
            assert_eq!(resolve6(&fake, &fake, &v6), Resolved::Refuse(counter));
        }
    }
}

#[test]
fn addresses_of_a_service_network_spread_over_the_filter() {
    let mut words = vec![0u64; FILTER_WORDS as usize];
    let cluster_ip = |index: u32| 0x0a60_0000 + index;
    for place in (0..20_000).map(|index| FilterPlace::of4(cluster_ip(index))) {
        words[place.word as usize] |= place.bits;
    }
    let pods = (0..10_000).map(|index| 0x0af4_0000 + index);
    let in_vain = pods
        .map(FilterPlace::of4)
        .filter(|place| place.is_in(words[place.word as usize]))
        .count();
    assert!(in_vain < 500, "{in_vain} of 10,000");
}

#[test]
fn a_hit_costs_one_lookup_and_hands_out_the_word() {
    let word = PublishWord::new(3, 2, 9);
    let fake = Fake {
        frontend: vec![Some(value(&KEY))],
        word: Some(word),
        ..Fake::default()
    };
    assert_eq!(resolve4(&fake, &fake, &KEY), Resolved::Service(word, 7));
    assert_eq!(fake.lookups.get(), 1);
}

#[test]
fn a_reused_element_is_looked_up_once_more_then_refused() {
    let word = Some(PublishWord::new(3, 2, 9));
    let once = Fake {
        frontend: vec![Some(foreign()), Some(value(&KEY))],
        word,
        ..Fake::default()
    };
    assert!(matches!(
        resolve4(&once, &once, &KEY),
        Resolved::Service(..)
    ));
    let twice = Fake {
        frontend: vec![Some(foreign())],
        word,
        ..Fake::default()
    };
    assert_eq!(
        resolve4(&twice, &twice, &KEY),
        Resolved::Refuse(Counter::RefuseInconsistent)
    );
    assert_eq!(twice.lookups.get(), 2);
    let gone = Fake {
        frontend: vec![Some(foreign()), None],
        word,
        ..Fake::default()
    };
    assert_eq!(resolve4(&gone, &gone, &KEY), Resolved::Pass);
}

#[test]
fn an_empty_set_refuses_and_an_index_beyond_the_map_never_passes() {
    let frontend = vec![Some(value(&KEY))];
    let empty = Fake {
        frontend: frontend.clone(),
        word: Some(PublishWord::new(0, 0, 1)),
        ..Fake::default()
    };
    assert_eq!(
        resolve4(&empty, &empty, &KEY),
        Resolved::Refuse(Counter::RefuseNoEndpoint)
    );
    let beyond = Fake {
        frontend,
        word: None,
        ..Fake::default()
    };
    assert_eq!(
        resolve4(&beyond, &beyond, &KEY),
        Resolved::Refuse(Counter::RefuseInconsistent)
    );
}

#[test]
fn an_empty_set_whose_endpoints_are_elsewhere_drops() {
    let fake = Fake {
        frontend: vec![Some(value(&KEY))],
        word: Some(PublishWord::new(0, 0, 1).with_drop()),
        ..Fake::default()
    };
    let seen = resolve4(&fake, &fake, &KEY);
    assert_eq!(seen, Resolved::Refuse(Counter::DropNoLocalEndpoint));
    assert!(Counter::DropNoLocalEndpoint.is_drop() && !Counter::RefuseNoEndpoint.is_drop());
}

fn client(addr4: [u8; 4]) -> Option<NetnsRow> {
    Some(NetnsRow {
        addr4,
        ..NetnsRow::default()
    })
}

#[test]
fn source_ranges_stand_before_the_endpoints_and_unknown_clients_are_in_none() {
    let ranges = [
        Backend4::range([10, 1, 0, 0], [255, 255, 0, 0]),
        Backend4::range([192, 0, 2, 7], [255; 4]),
    ];
    let backend = Backend4 {
        addr: [10, 244, 0, 1],
        ..Backend4::default()
    };
    let word = PublishWord::new(1, 1, 1).with_ranges(2);
    let slots = [
        &[backend; 2],
        &ranges[..],
        &[Backend4::range([0; 4], [0; 4])],
    ]
    .concat();
    let dial = |client, word| {
        let fake = Fake {
            frontend: vec![Some(value(&KEY))],
            word: Some(word),
            backends4: slots.clone(),
            client,
            ..Fake::default()
        };
        resolve4(&fake, &fake, &KEY)
    };
    for inside in [[10, 1, 2, 3], [192, 0, 2, 7]] {
        assert_eq!(dial(client(inside), word), Resolved::Service(word, 7));
    }
    // What lies behind the ranges must not matter.
    for outside in [[10, 2, 2, 3], [192, 0, 2, 8]] {
        assert_eq!(
            dial(client(outside), word),
            Resolved::Refuse(Counter::DropSourceRange)
        );
    }
    for unknown in [None, client([0; 4])] {
        assert_eq!(
            dial(unknown, word),
            Resolved::Refuse(Counter::RefuseUnknownClient)
        );
    }
    let empty = PublishWord::new(2, 0, 1).with_ranges(2);
    let inside = dial(client([10, 1, 2, 3]), empty);
    assert_eq!(inside, Resolved::Refuse(Counter::RefuseNoEndpoint));
    let outside = dial(client([10, 2, 2, 3]), empty);
    assert_eq!(outside, Resolved::Refuse(Counter::DropSourceRange));
}

#[test]
fn a_client_without_an_address_of_the_family_is_unknown() {
    let key = FrontendKey6::default();
    let frontend = FrontendValue::new(7, key.fingerprint(), 0);
    let fake = Fake {
        frontend: vec![Some(frontend)],
        word: Some(PublishWord::new(0, 0, 1).with_ranges(1)),
        backends6: vec![Backend6::range([0; 16], 0)],
        client: client([10, 1, 2, 3]),
        ..Fake::default()
    };
    assert_eq!(
        resolve6(&fake, &fake, &key),
        Resolved::Refuse(Counter::RefuseUnknownClient)
    );
}

#[test]
fn what_has_no_row_passes_at_an_address_of_the_node_and_only_if_the_flag_is_its_own() {
    let v6 = FrontendKey6::default();
    for flags in [0, PREFIXES_ARE_SERVICE_CIDRS] {
        let mut fake = with_prefix(flags);
        let known = KEY.address_only().fingerprint();
        fake.address = Some(FrontendValue::new(0, known, FRONTEND_ON_NODE));
        assert_eq!(resolve4(&fake, &fake, &KEY), Resolved::Pass);
        // The element is another key's by now.
        fake.address = Some(FrontendValue::new(0, known ^ 1, FRONTEND_ON_NODE));
        let refused = Resolved::Refuse(Counter::RefuseUnknownPort);
        assert_eq!(resolve4(&fake, &fake, &KEY), refused);

        let set = &mut fake.conf.prefixes[fake.conf.active_prefixes as usize];
        (set.v6_len, set.v6[0]) = (1, Prefix6::default());
        assert_eq!(resolve6(&fake, &fake, &v6), refused);
        let known = v6.address_only().fingerprint();
        fake.address = Some(FrontendValue::new(0, known, FRONTEND_ON_NODE));
        assert_eq!(resolve6(&fake, &fake, &v6), Resolved::Pass);
    }
}

#[test]
fn inside_the_prefixes_known_addresses_are_refused_and_others_only_in_a_service_cidr() {
    let mut fake = with_prefix(0);
    assert_eq!(resolve4(&fake, &fake, &KEY), Resolved::Pass);
    fake.address = Some(FrontendValue::new(0, 0, 0));
    assert_eq!(
        resolve4(&fake, &fake, &KEY),
        Resolved::Refuse(Counter::RefuseUnknownPort)
    );
    let outside = FrontendKey4 {
        addr: [10, 97, 0, 10],
        ..KEY
    };
    assert_eq!(resolve4(&fake, &fake, &outside), Resolved::Pass);

    let fake = Fake {
        filter: Some(0),
        ..with_prefix(PREFIXES_ARE_SERVICE_CIDRS)
    };
    assert_eq!(
        resolve4(&fake, &fake, &KEY),
        Resolved::Refuse(Counter::RefuseUnallocated)
    );
    assert_eq!(resolve4(&fake, &fake, &outside), Resolved::Pass);
    let mut addr = [0; 16];
    (addr[0], addr[15]) = (0xfd, 9);
    let key = FrontendKey6 {
        addr,
        port_be: [0, 80],
        protocol: 6,
        scope: 0,
        pad: [0; 4],
    };
    assert_eq!(
        resolve6(&fake, &fake, &key),
        Resolved::Refuse(Counter::RefuseUnallocated)
    );
    addr[7] = 1;
    assert_eq!(
        resolve6(&fake, &fake, &FrontendKey6 { addr, ..key }),
        Resolved::Pass
    );
}

#[test]
fn loopback_node_ports_are_for_the_node_alone_on_all_of_127() {
    let key = FrontendKey4 {
        addr: [127, 0, 0, 1],
        ..KEY
    };
    let frontend = FrontendValue::new(7, key.fingerprint(), FRONTEND_NODE_ONLY);
    let word = PublishWord::new(0, 1, 1);
    let mut fake = Fake {
        frontend: vec![Some(frontend)],
        word: Some(word),
        ..Fake::default()
    };
    let dialled = FrontendKey4 {
        addr: [127, 1, 2, 3],
        ..KEY
    };
    assert_eq!(resolve4(&fake, &fake, &dialled), Resolved::Pass);
    fake.is_in_node_netns = true;
    assert_eq!(resolve4(&fake, &fake, &dialled), Resolved::Service(word, 7));
}

#[test]
fn every_slot_is_equally_likely() {
    let word = PublishWord::new(100, 3, 1);
    let mut counts = [0u32; 3];
    for step in 0..30_000u32 {
        let fake = Fake {
            random: step * (u32::MAX / 30_000),
            ..Fake::default()
        };
        counts[(random_slot(&fake, word) - 100) as usize] += 1;
    }
    assert!(
        counts.iter().all(|count| count.abs_diff(10_000) <= 1),
        "{counts:?}"
    );
    let last = Fake {
        random: u32::MAX,
        ..Fake::default()
    };
    assert_eq!(random_slot(&last, word), 102);
}

fn peer(id: u8, backend: u8) -> UdpPeer {
    UdpPeer {
        vip: mapped([10, 96, 0, id]),
        backend: mapped([10, 244, 0, backend]),
        word: 1,
        vip_port_be: [0, 53],
        backend_port_be: [0, 5],
        used: 0,
    }
}

fn shown(peers: &UdpPeers, backend: u8) -> Option<u8> {
    peers
        .shown(&mapped([10, 244, 0, backend]), [0, 5])
        .map(|(vip, _)| vip[15])
}

#[test]
fn a_reply_shows_the_address_last_sent_to_through_that_backend() {
    let mut peers = UdpPeers::default();
    peers.remember(&peer(1, 9));
    peers.remember(&peer(2, 9));
    assert_eq!(shown(&peers, 9), Some(2));
    let now = peers.tick();
    peers.find(&mapped([10, 96, 0, 1]), [0, 53]).unwrap().used = now;
    assert_eq!(shown(&peers, 9), Some(1));
    assert_eq!(shown(&peers, 8), None);
    peers.dialled_directly(&mapped([10, 244, 0, 9]), [0, 5]);
    assert_eq!(
        shown(&peers, 9),
        None,
        "the backend itself was dialled last"
    );
    peers.remember(&peer(2, 9));
    assert_eq!(shown(&peers, 9), Some(2));
}

#[test]
fn the_order_of_sends_survives_the_wrap_of_the_clock() {
    let mut peers = UdpPeers {
        clock: u32::MAX - 1,
        ..UdpPeers::default()
    };
    peers.remember(&peer(1, 9));
    peers.remember(&peer(2, 9));
    assert!(peers.clock < 10);
    assert_eq!(shown(&peers, 9), Some(2));
}

#[test]
fn eight_destinations_are_kept_and_the_ninth_takes_the_place_of_the_first() {
    let mut peers = UdpPeers::default();
    for id in 1..=8 {
        peers.remember(&peer(id, id));
    }
    peers.remember(&peer(3, 33));
    for id in [1, 2, 4, 8] {
        assert_eq!(shown(&peers, id), Some(id));
    }
    assert_eq!((shown(&peers, 3), shown(&peers, 33)), (None, Some(3)));
    peers.remember(&peer(9, 9));
    assert_eq!(
        (shown(&peers, 1), shown(&peers, 2), shown(&peers, 9)),
        (None, Some(2), Some(9))
    );
}

#[test]
fn an_entry_of_another_socket_another_peer_or_half_written_is_not_shown() {
    let (vip, peer) = (mapped([10, 96, 0, 10]), mapped([10, 244, 0, 1]));
    let entry = TcpPeer::new(42, vip, [0, 80], peer);
    assert!(entry.is_of(42, &peer));
    assert!(!entry.is_of(43, &peer));
    assert!(!entry.is_of(42, &mapped([10, 244, 0, 2])));
    assert!(
        !TcpPeer {
            vip: mapped([10, 96, 0, 11]),
            ..entry
        }
        .is_of(42, &peer)
    );
    assert!(
        !TcpPeer {
            vip_port_be: [0, 81],
            ..entry
        }
        .is_of(42, &peer)
    );
    assert!(!TcpPeer::default().is_of(0, &[0; 16]));
}
