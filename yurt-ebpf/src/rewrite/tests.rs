use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use yurt_frames::guard::{OTHER, POD};
use yurt_frames::protocol::{AH, DESTINATION_OPTIONS, GRE, HOP_BY_HOP, ROUTING};
use yurt_frames::{
    ACK, Extension, Icmp, Ipv4, Packet as Sent, SYN, Udp, addresses, eth, flaws, ip, tcp, udp,
};

use super::*;
use crate::abi::Mac;
use crate::frame::Wire;

mod answers;

pub(super) fn frame(packet: &Sent) -> Vec<u8> {
    eth(OTHER.mac, POD.mac).then(packet.clone()).bytes()
}

pub(super) fn octets<const N: usize>(addr: IpAddr) -> [u8; N] {
    let bytes = match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    bytes.try_into().unwrap()
}

/// A frame whose checksums are as they are on a wire.
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Frame for Bytes {
    fn far<T: Wire>(&self, at: usize) -> Option<T> {
        self.0.far(at)
    }
}

impl Packet for Bytes {
    fn store<const N: usize>(&mut self, at: usize, to: [u8; N], _: bool) -> Option<()> {
        self.0.get_mut(at..at + N)?.copy_from_slice(&to);
        Some(())
    }

    fn follow_header(&mut self, at: usize, change: u32) -> Option<()> {
        let old = self.far(at)?;
        self.store(at, adjust(old, change), true)
    }

    fn follow(&mut self, at: usize, change: u32, how: Follow) -> Option<()> {
        let old = self.far(at)?;
        let is_udp = matches!(how, Follow::AddressesOfUdp | Follow::BytesOfUdp);
        if is_udp && old == [0; 2] {
            return Some(());
        }
        let new = adjust(old, change);
        let new = if is_udp && new == [0; 2] {
            [0xff; 2]
        } else {
            new
        };
        self.store(at, new, true)
    }
}

#[derive(Default)]
struct Remembered(BTreeSet<LiveKey>);

impl Flows for Remembered {
    fn is_live(&mut self, key: &LiveKey, _: bool) -> bool {
        self.0.contains(key)
    }

    fn remember(&mut self, key: &LiveKey) {
        self.0.insert(*key);
    }

    fn forget(&mut self, key: &LiveKey) {
        self.0.remove(key);
    }
}

/// A Pod, and who talks to it, of one family.
#[derive(Clone, Copy)]
struct Cast {
    live: IpAddr,
    promised: IpAddr,
    remote: IpAddr,
}

fn casts() -> [Cast; 2] {
    let cast = |[live, promised, remote]: [&str; 3]| Cast {
        live: live.parse().unwrap(),
        promised: promised.parse().unwrap(),
        remote: remote.parse().unwrap(),
    };
    [
        cast(["10.244.1.20", "10.99.0.5", "192.0.2.7"]),
        cast(["fd00:244:1::20", "fd00:99::5", "2001:db8::7"]),
    ]
}

fn row() -> TranslateRow {
    let [v4, v6] = casts();
    TranslateRow {
        live4: octets(v4.live),
        promised4: octets(v4.promised),
        live6: octets(v6.live),
        promised6: octets(v6.promised),
        mac: Mac {
            addr: POD.mac,
            pad: [0; 2],
        },
    }
}

fn at(addr: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(addr, port)
}

/// A datagram without a checksum.
pub(super) fn without_sum(from: SocketAddr, to: SocketAddr) -> Sent {
    let header = Udp {
        checksum: Some(0),
        ..Udp::new(from.port(), to.port())
    };
    ip(from.ip(), to.ip()).then(header).data(b"none")
}

/// What a host or a router says that a packet, or its beginning, has come to.
fn errors(source: IpAddr, to: IpAddr, about: &[u8]) -> [Sent; 3] {
    let error = ip(source, to);
    [
        error.clone().port_unreachable(about),
        error.clone().too_big(1280, about),
        error.time_exceeded(about),
    ]
}

/// The Pod's side of a link.
#[derive(Default)]
struct Link(Remembered);

impl Link {
    #[track_caller]
    fn deliver(&mut self, packet: &Sent) -> (Verdict, Vec<u8>) {
        let mut bytes = Bytes(frame(packet));
        let verdict = to_pod(&mut bytes, &row(), &mut self.0);
        (verdict, bytes.0)
    }

    #[track_caller]
    fn send(&mut self, packet: &Sent) -> (Verdict, Vec<u8>) {
        let mut bytes = Bytes(frame(packet));
        let verdict = from_pod(&mut bytes, &row(), &mut self.0);
        (verdict, bytes.0)
    }

    /// Comes to the Pod as if it had been sent to another address, and in all else as it was.
    #[track_caller]
    fn is_led(&mut self, packet: &Sent, expected: &Sent) {
        let (verdict, after) = self.deliver(packet);
        assert_eq!(verdict, Verdict::Counted(Translation::ToPod));
        assert_eq!(after, frame(expected));
        assert_eq!(flaws(&after), [""; 0]);
    }

    #[track_caller]
    fn appears(&mut self, packet: &Sent, expected: &Sent) {
        let (verdict, after) = self.send(packet);
        assert_eq!(verdict, Verdict::Counted(Translation::FromPod));
        assert_eq!(after, frame(expected));
        assert_eq!(flaws(&after), [""; 0]);
    }

    #[track_caller]
    fn arrives_as_it_was(&mut self, packet: &Sent) {
        assert_eq!(self.deliver(packet), (Verdict::Pass, frame(packet)));
    }

    #[track_caller]
    fn leaves_as_it_was(&mut self, packet: &Sent, verdict: Verdict) {
        assert_eq!(self.send(packet), (verdict, frame(packet)));
    }
}

const KEPT: Verdict = Verdict::Counted(Translation::KeptLive);
const UNREADABLE: Verdict = Verdict::Counted(Translation::Unreadable);

/// What two hosts send each other, in all protocols: from one port to another, with flags of TCP.
fn talks(source: IpAddr, to: IpAddr, flags: u8) -> Vec<Sent> {
    let (from, to_port) = (at(source, 40000), at(to, 80));
    vec![
        tcp(from, to_port, flags, b"hello"),
        udp(from, to_port, b"hello"),
        udp(from, to_port, b"odd"),
        ip(source, to).sctp(40000, 80),
        match flags & ACK {
            0 => ip(source, to).ping(77),
            _ => ip(source, to).pong(77),
        },
        ip(source, to).raw(GRE, &[0, 0, 8, 0, 1, 2, 3]),
    ]
}

#[test]
fn what_is_sent_to_the_promised_address_comes_to_the_live_one_with_all_checksums_right() {
    for Cast {
        live,
        promised,
        remote,
    } in casts()
    {
        for flags in [SYN, ACK] {
            let sent = talks(remote, promised, flags);
            for (packet, expected) in sent.iter().zip(talks(remote, live, flags)) {
                Link::default().is_led(packet, &expected);
            }
        }
    }
}

#[test]
fn what_a_pod_begins_and_what_it_answers_at_the_promised_address_comes_from_there() {
    for Cast {
        live,
        promised,
        remote,
    } in casts()
    {
        for flags in [SYN, ACK, SYN | ACK] {
            let sent = talks(live, remote, flags);
            for (packet, expected) in sent.iter().zip(talks(promised, remote, flags)) {
                Link::default().appears(packet, &expected);
            }
        }
    }
}

#[test]
fn a_flow_that_came_in_at_the_live_address_keeps_it() {
    for Cast { live, remote, .. } in casts() {
        let (client, server) = (at(remote, 40000), at(live, 80));
        for (question, answer) in [
            (
                tcp(client, server, SYN, b""),
                tcp(server, client, SYN | ACK, b""),
            ),
            (
                tcp(client, server, ACK, b"x"),
                tcp(server, client, ACK, b"y"),
            ),
            (udp(client, server, b"x"), udp(server, client, b"y")),
            (
                ip(remote, live).sctp(40000, 80),
                ip(live, remote).sctp(80, 40000),
            ),
            (ip(remote, live).ping(9), ip(live, remote).pong(9)),
        ] {
            let mut link = Link::default();
            link.arrives_as_it_was(&question);
            link.leaves_as_it_was(&answer, KEPT);
        }
    }
}

#[test]
fn other_flows_of_the_same_hosts_are_not_taken_for_the_one_that_is_remembered() {
    for Cast {
        live,
        promised,
        remote,
    } in casts()
    {
        let mut link = Link::default();
        link.arrives_as_it_was(&udp(at(remote, 40000), at(live, 80), b"x"));
        link.arrives_as_it_was(&ip(remote, live).ping(9));
        for (from, to) in [(80, 40001), (81, 40000)] {
            let of = |addr| udp(at(addr, from), at(remote, to), b"y");
            link.appears(&of(live), &of(promised));
        }
        let of = |addr| tcp(at(addr, 80), at(remote, 40000), ACK, b"y");
        link.appears(&of(live), &of(promised));
        // It pings the other one, by chance with the same identifier.
        link.appears(&ip(live, remote).ping(9), &ip(promised, remote).ping(9));
        // The answer to that is none to remember.
        let mut link = Link::default();
        link.arrives_as_it_was(&ip(remote, live).pong(5));
        link.appears(&ip(live, remote).pong(5), &ip(promised, remote).pong(5));
    }
}

#[test]
fn the_first_packet_of_a_connection_decides_anew_and_the_last_address_asked_for_counts() {
    for Cast {
        live,
        promised,
        remote,
    } in casts()
    {
        let (client, web) = (at(remote, 40000), 80);
        let mut link = Link::default();
        link.arrives_as_it_was(&tcp(client, at(live, web), SYN, b""));
        let of = |addr, flags| tcp(at(addr, web), client, flags, b"");
        link.leaves_as_it_was(&of(live, SYN | ACK), KEPT);
        // The Pod dials from that very port.
        link.appears(&of(live, SYN), &of(promised, SYN));
        link.appears(&of(live, ACK), &of(promised, ACK));

        let to = |addr, flags| tcp(client, at(addr, web), flags, b"");
        link.arrives_as_it_was(&to(live, SYN));
        // What is late of an old connection changes nothing; a new one does.
        link.is_led(&to(promised, ACK), &to(live, ACK));
        link.leaves_as_it_was(&of(live, ACK), KEPT);
        link.is_led(&to(promised, SYN), &to(live, SYN));
        link.appears(&of(live, SYN | ACK), &of(promised, SYN | ACK));

        let (ask, answer) = (
            |addr| udp(client, at(addr, web), b"x"),
            |addr| udp(at(addr, web), client, b"y"),
        );
        link.arrives_as_it_was(&ask(live));
        link.is_led(&ask(promised), &ask(live));
        link.appears(&answer(live), &answer(promised));
        link.arrives_as_it_was(&ask(live));
        link.leaves_as_it_was(&answer(live), KEPT);
        link.arrives_as_it_was(&ip(remote, live).ping(3));
        link.is_led(&ip(remote, promised).ping(3), &ip(remote, live).ping(3));
        link.appears(&ip(live, remote).pong(3), &ip(promised, remote).pong(3));
    }
}

#[test]
fn udp_without_a_checksum_stays_without_and_with_one_never_loses_it() {
    for Cast {
        live,
        promised,
        remote,
    } in casts()
    {
        let (client, port) = (at(remote, 40000), 53);
        let to = |addr| without_sum(client, at(addr, port));
        Link::default().is_led(&to(promised), &to(live));
        // Some of so many sums are zero, which is sent as its complement.
        for n in 0..=u16::MAX {
            let data = n.to_be_bytes();
            let (packet, expected) = (
                udp(client, at(promised, port), &data),
                udp(client, at(live, port), &data),
            );
            assert_eq!(Link::default().deliver(&packet).1, frame(&expected), "{n}");
        }
    }
}

#[test]
fn an_error_about_what_the_pod_has_sent_comes_with_the_packet_as_the_pod_has_sent_it() {
    for Cast {
        live,
        promised,
        remote,
    } in casts()
    {
        let router: IpAddr = if live.is_ipv4() {
            "198.51.100.1"
        } else {
            "2001:db8:1::1"
        }
        .parse()
        .unwrap();
        let header = if live.is_ipv4() { 20 } else { 40 };
        let sent = |addr| {
            let from = at(addr, 40000);
            [
                tcp(from, at(remote, 80), ACK, b"hello"),
                udp(from, at(remote, 80), b"hello"),
                without_sum(from, at(remote, 80)),
                ip(addr, remote).ping(7),
                ip(addr, remote).sctp(40000, 80),
            ]
        };
        for (packet, expected) in sent(promised).iter().zip(sent(live)) {
            let (packet, expected) = (packet.bytes(), expected.bytes());
            // Routers of old send eight bytes behind the header.
            for length in [packet.len(), header + 8] {
                let told = errors(router, promised, &packet[..length]);
                let expected = errors(router, live, &expected[..length]);
                for (to_pod, expected) in told.iter().zip(&expected) {
                    Link::default().is_led(to_pod, expected);
                }
            }
        }
    }
}

#[test]
fn an_error_of_the_pod_is_about_the_packet_as_it_was_sent() {
    for Cast {
        live,
        promised,
        remote,
    } in casts()
    {
        let asked = |addr| udp(at(remote, 40000), at(addr, 9), b"nobody there");
        let told = |addr| ip(addr, remote).port_unreachable(&asked(addr).bytes());
        let mut link = Link::default();
        link.is_led(&asked(promised), &asked(live));
        link.appears(&told(live), &told(promised));
        link.arrives_as_it_was(&asked(live));
        link.leaves_as_it_was(&told(live), KEPT);
        // About a flow at the promised address, while another one is at the live one.
        let other = |addr| udp(at(remote, 40001), at(addr, 9), b"nobody there");
        link.appears(
            &ip(live, remote).port_unreachable(&other(live).bytes()),
            &ip(promised, remote).port_unreachable(&other(promised).bytes()),
        );
    }
}

#[test]
fn later_fragments_go_where_the_first_one_went() {
    for Cast {
        live,
        promised,
        remote,
    } in casts()
    {
        let (client, port) = (at(remote, 40000), 53);
        let data = [7; 40];
        let mut link = Link::default();
        let to = |addr| udp(client, at(addr, port), &data).fragments(5, &[24]);
        for (packet, expected) in to(promised).iter().zip(to(live)) {
            assert_eq!(link.deliver(packet).1, frame(&expected));
        }
        let from = |addr, id| udp(at(addr, port), client, &data).fragments(id, &[24]);
        for (packet, expected) in from(live, 6).iter().zip(from(promised, 6)) {
            assert_eq!(
                link.send(packet),
                (Verdict::Counted(Translation::FromPod), frame(&expected))
            );
        }
        for packet in to(live) {
            link.arrives_as_it_was(&packet);
        }
        for packet in from(live, 7) {
            link.leaves_as_it_was(&packet, KEPT);
        }
        // The identification is used again, for another flow.
        let other = |addr| udp(at(addr, 54), client, &data).fragments(7, &[24]);
        for (packet, expected) in other(live).iter().zip(other(promised)) {
            assert_eq!(link.send(packet).1, frame(&expected));
        }
    }
}

#[test]
fn a_packet_that_a_pod_sends_to_its_own_promised_address_comes_back_to_it() {
    for Cast { live, promised, .. } in casts() {
        let sent = |from, to| tcp(at(from, 40000), at(to, 80), SYN, b"");
        let mut link = Link::default();
        let (verdict, after) = link.send(&sent(live, promised));
        assert_eq!(verdict, Verdict::Back);
        let expected = frame(&sent(promised, promised));
        assert_eq!(after[..12], [OTHER.mac, POD.mac].concat());
        assert_eq!(after[12..], expected[12..]);
        // Out of the device again.
        link.is_led(&sent(promised, promised), &sent(promised, live));
    }
}

#[test]
fn groups_neighbours_and_whatever_is_not_the_pods_are_left_alone() {
    let [v4, v6] = casts();
    let mdns =
        |from: IpAddr, group: &str| udp(at(from, 5353), at(group.parse().unwrap(), 5353), b"x");
    let mut link = Link::default();
    link.leaves_as_it_was(&mdns(v4.live, "224.0.0.251"), Verdict::Pass);
    link.leaves_as_it_was(&mdns(v4.live, "255.255.255.255"), Verdict::Pass);
    link.leaves_as_it_was(&mdns(v6.live, "ff02::fb"), Verdict::Pass);
    for Cast {
        live,
        promised,
        remote,
    } in casts()
    {
        let other = |from, to| tcp(at(from, 1), at(to, 2), SYN, b"");
        // As one that has the promised address itself sends.
        link.leaves_as_it_was(&other(promised, remote), Verdict::Pass);
        link.leaves_as_it_was(&other(remote, live), Verdict::Pass);
        link.arrives_as_it_was(&other(live, remote));
        assert!(link.0.0.is_empty());
    }
    let solicitation = ip(v6.remote, v6.live).then(Icmp::new(135));
    let solicitation = solicitation.data(&octets::<16>(v6.live));
    let verdict = Verdict::Neighbour(row().promised6);
    assert_eq!(link.deliver(&solicitation), (verdict, frame(&solicitation)));
    let report = ip(v6.live, v6.remote).then(Icmp::new(143));
    link.leaves_as_it_was(&report, verdict);
    for row in [
        TranslateRow {
            promised4: [0; 4],
            ..row()
        },
        TranslateRow {
            promised6: [0; 16],
            ..row()
        },
    ] {
        let cast = if row.promised4 == [0; 4] { v4 } else { v6 };
        let packet = frame(&tcp(at(cast.live, 1), at(cast.remote, 2), SYN, b""));
        let mut bytes = Bytes(packet.clone());
        assert_eq!(
            from_pod(&mut bytes, &row, &mut Remembered::default()),
            Verdict::Pass
        );
        assert_eq!(bytes.0, packet);
    }
}

#[test]
fn extension_headers_are_walked_and_what_is_beyond_us_goes_as_it_was_and_is_counted() {
    let [
        _,
        Cast {
            live,
            promised,
            remote,
        },
    ] = casts();
    let extended = |source: IpAddr, to: IpAddr, kind, count| {
        let headers = vec![Extension::padding(kind); count];
        let packet = headers.into_iter().fold(ip(source, to), Sent::then);
        packet.tcp(80, 40000, ACK).data(b"x")
    };
    for (kind, count) in [
        (DESTINATION_OPTIONS, 1),
        (HOP_BY_HOP, 1),
        (DESTINATION_OPTIONS, 4),
    ] {
        let of = |addr| extended(addr, remote, kind, count);
        Link::default().appears(&of(live), &of(promised));
    }
    for (kind, count) in [(DESTINATION_OPTIONS, 5), (ROUTING, 1), (AH, 1)] {
        Link::default().leaves_as_it_was(&extended(live, remote, kind, count), UNREADABLE);
        let packet = extended(remote, promised, kind, count);
        let arrived = Link::default().deliver(&packet);
        assert_eq!(arrived, (UNREADABLE, frame(&packet)));
    }
}

#[test]
fn a_packet_that_is_signed_with_its_addresses_goes_as_it_was_in_fragments_too() {
    let v4 = |addr| Ipv4Addr::from(octets(addr));
    let [Cast { live, remote, .. }, _] = casts();
    // Whole, the first of several, a later one.
    for fragment in [0u16, 0x2000, 0x0010] {
        let header = Ipv4 {
            fragment,
            protocol: Some(AH),
            ..Ipv4::new(v4(live), v4(remote))
        };
        let packet = Sent::from(header).udp(80, 40000).data(b"x");
        Link::default().leaves_as_it_was(&packet, UNREADABLE);
    }
}

#[test]
fn whatever_is_cut_off_a_packet_is_no_panic_and_leaves_it_as_it_was_or_right() {
    for Cast {
        live,
        promised,
        remote,
    } in casts()
    {
        let inner = tcp(at(promised, 1), at(remote, 2), ACK, b"hello");
        for packet in [
            tcp(at(remote, 1), at(promised, 2), SYN, b""),
            udp(at(remote, 1), at(promised, 2), b""),
            ip(remote, promised).ping(1),
            ip(remote, promised).too_big(1280, &inner.bytes()),
        ] {
            let frame = frame(&packet);
            for length in 14..frame.len() {
                let cut = &frame[..length];
                let mut bytes = Bytes(cut.to_vec());
                match to_pod(&mut bytes, &row(), &mut Remembered::default()) {
                    Verdict::Counted(Translation::ToPod) => {
                        let (_, to) = addresses(&bytes.0[14..]);
                        assert_eq!(to, live);
                    }
                    _ => assert_eq!(bytes.0, cut),
                }
            }
        }
    }
}

#[test]
fn a_frame_may_be_shorter_than_its_headers() {
    for length in 0..14 {
        let short = vec![8; length];
        let mut bytes = Bytes(short.clone());
        assert_eq!(
            to_pod(&mut bytes, &row(), &mut Remembered::default()),
            Verdict::Pass
        );
        assert_eq!(
            from_pod(&mut bytes, &row(), &mut Remembered::default()),
            Verdict::Pass
        );
        assert_eq!(bytes.0, short);
    }
}
