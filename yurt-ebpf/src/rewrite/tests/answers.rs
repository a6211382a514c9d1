//! What ARP and neighbour discovery are answered in a Pod's name.

use std::net::{Ipv4Addr, Ipv6Addr};

use yurt_frames::guard::{
    ALL_NODES, OTHER, POD, advertised, advertisement, discovery, group_mac, option, sent,
    solicitation,
};
use yurt_frames::{Arp, Packet as Sent, eth, flaws};

use super::super::answer::{ARP_FRAME, SOLICITATION_FRAME};
use super::super::*;
use super::{casts, octets};

#[test]
fn who_asks_by_arp_is_told_the_pods_mac_and_who_wants_the_address_that_it_is_taken() {
    let [v4, _] = casts();
    let promised: [u8; 4] = octets(v4.promised);
    let target = Ipv4Addr::from(promised);
    let frame = |message: Arp| -> [u8; ARP_FRAME] {
        let frame = sent(OTHER.mac, message);
        frame[..ARP_FRAME].try_into().unwrap()
    };
    let ask = |sender, target| frame(Arp::request((OTHER.mac, sender), target));
    for sender in [OTHER.v4, Ipv4Addr::UNSPECIFIED] {
        let answer = arp(&ask(sender, target), promised, POD.mac, Asker::Anybody).unwrap();
        let expected = Arp::answer((POD.mac, target), (OTHER.mac, sender));
        let expected = eth(POD.mac, OTHER.mac).then(expected);
        assert_eq!(answer.to_vec(), expected.bytes());
        let itself = arp(&ask(sender, target), promised, POD.mac, Asker::Itself);
        assert_eq!(itself.is_some(), sender == OTHER.v4);
    }
    let told = Arp::answer((OTHER.mac, OTHER.v4), ([0; 6], target));
    for other in [frame(told), ask(target, POD.v4)] {
        assert_eq!(arp(&other, promised, POD.mac, Asker::Anybody), None);
    }
}

#[test]
fn who_asks_by_neighbour_discovery_is_told_and_who_wants_the_address_that_it_is_taken() {
    let [_, v6] = casts();
    let promised: [u8; 16] = octets(v6.promised);
    let target = Ipv6Addr::from(promised);
    let frame = |packet: Sent| -> [u8; SOLICITATION_FRAME] {
        let frame = sent(OTHER.mac, packet);
        frame[..SOLICITATION_FRAME].try_into().unwrap()
    };
    let asks = solicitation(OTHER.v6, target, &option(1, OTHER.mac));
    let asked = frame(asks);
    let answer = neighbour(&asked, &promised, POD.mac, Asker::Anybody).unwrap();
    // It answers a question.
    let message = advertised(0x60, target, POD.mac);
    let expected = eth(POD.mac, OTHER.mac).then(discovery(target, OTHER.v6, message));
    assert_eq!(flaws(&answer), [""; 0]);
    assert_eq!(answer.to_vec(), expected.bytes());
    assert!(neighbour(&asked, &promised, POD.mac, Asker::Itself).is_some());

    let wanted = frame(solicitation(Ipv6Addr::UNSPECIFIED, target, &[]));
    let answer = neighbour(&wanted, &promised, POD.mac, Asker::Anybody).unwrap();
    let to_all = eth(POD.mac, group_mac(ALL_NODES));
    let expected = to_all.then(advertisement(target, target, POD.mac));
    assert_eq!(flaws(&answer), [""; 0]);
    assert_eq!(answer.to_vec(), expected.bytes());
    assert_eq!(neighbour(&wanted, &promised, POD.mac, Asker::Itself), None);

    let of_others = frame(solicitation(OTHER.v6, POD.v6, &option(1, OTHER.mac)));
    let mut from_afar = asked;
    from_afar[21] = 64;
    for other in [of_others, from_afar] {
        assert_eq!(neighbour(&other, &promised, POD.mac, Asker::Anybody), None);
    }
}
