//! Frames made by the layers, read by an independent parser.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::guard::{OTHER, POD};
use super::*;

/// The checksums that etherparse finds right, by name.
fn right(frame: &[u8]) -> Vec<&'static str> {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let mut right = Vec::new();
    let (ip4, ip6) = match packet.net {
        Some(NetSlice::Ipv4(net)) => {
            let header = net.header().to_header();
            if header.header_checksum == header.calc_header_checksum() {
                right.push("ip");
            }
            (Some(header), None)
        }
        Some(NetSlice::Ipv6(net)) => (None, Some(net.header().to_header())),
        other => panic!("{other:?}"),
    };
    let is_right = match packet.transport {
        Some(TransportSlice::Udp(udp)) => {
            let header = udp.to_header();
            let sum = match (ip4, ip6) {
                (Some(ip), _) => header.calc_checksum_ipv4(&ip, udp.payload()),
                (_, Some(ip)) => header.calc_checksum_ipv6(&ip, udp.payload()),
                _ => unreachable!(),
            };
            sum == Ok(header.checksum)
        }
        Some(TransportSlice::Tcp(tcp)) => {
            let header = tcp.to_header();
            let sum = match (ip4, ip6) {
                (Some(ip), _) => header.calc_checksum_ipv4(&ip, tcp.payload()),
                (_, Some(ip)) => header.calc_checksum_ipv6(&ip, tcp.payload()),
                _ => unreachable!(),
            };
            sum == Ok(header.checksum)
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let sum = icmp.icmp_type().calc_checksum(icmp.payload());
            sum == icmp.checksum()
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let ip = ip6.unwrap();
            icmp.is_checksum_valid(ip.source, ip.destination)
        }
        Some(TransportSlice::Igmp(_)) | None => return right,
    };
    if is_right {
        right.push("payload");
    }
    right
}

/// Everything that two hosts send each other, of both families, some with an odd length.
fn packets() -> Vec<Packet> {
    let mut packets = Vec::new();
    for start in [ip(POD.v4, OTHER.v4), ip(POD.v6, OTHER.v6)] {
        let start = eth(POD.mac, OTHER.mac).then(start);
        let whole = start.clone().tcp(1, 2, ACK).data(b"hello").bytes();
        // The packet, and the least of it that a router may send.
        let (about, beginning) = (&whole[14..], &whole[14..whole.len() - 17]);
        packets.extend([
            start.clone().tcp(40000, 80, SYN),
            start.clone().tcp(40000, 80, ACK).data(b"hello"),
            start.clone().udp(40000, 53),
            start.clone().udp(40000, 53).data(b"odd"),
            start.clone().ping(7),
            start.clone().pong(7),
            start.clone().port_unreachable(about),
            start.clone().too_big(1280, about),
            start.time_exceeded(beginning),
        ]);
    }
    packets
}

#[test]
fn another_parser_finds_every_checksum_right() {
    for packet in packets() {
        let frame = packet.bytes();
        let is_v4 = frame[12..14] == [8, 0];
        let expected: &[_] = if is_v4 {
            &["ip", "payload"]
        } else {
            &["payload"]
        };
        assert_eq!(right(&frame), expected, "{packet:?}");
        assert_eq!(flaws(&frame), [""; 0], "{packet:?}");
    }
}

#[test]
fn one_wrong_bit_behind_the_link_layer_is_a_flaw() {
    for packet in packets() {
        let frame = packet.bytes();
        let is_v4 = frame[12..14] == [8, 0];
        // Of IPv4 the addresses; of IPv6 too; and what is inside.
        let from = if is_v4 { 14 + 12 } else { 14 + 8 };
        for at in from..frame.len() {
            let mut frame = frame.clone();
            frame[at] ^= 1;
            assert!(!flaws(&frame).is_empty(), "byte {at} of {packet:?}");
        }
    }
}

#[test]
fn a_packet_that_ends_too_early_is_a_flaw() {
    for packet in packets() {
        let frame = packet.bytes();
        let cut = &frame[..frame.len() - 1];
        assert!(!flaws(cut).is_empty(), "{packet:?}");
    }
}

#[test]
fn each_field_can_be_wrong() {
    let [a, b] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
    let header = Ipv4 {
        ttl: 1,
        tos: 2,
        id: 0x0304,
        fragment: 0x0506,
        version_and_length: Some(0x65),
        total_length: Some(0x0708),
        protocol: Some(9),
        checksum: Some(0x0a0b),
        ..Ipv4::new(a, b)
    };
    let bytes = Packet::from(header).data(b"x").bytes();
    let expected = [
        0x65, 2, 7, 8, 3, 4, 5, 6, 1, 9, 10, 11, 10, 0, 0, 1, 10, 0, 0, 2, b'x',
    ];
    assert_eq!(bytes, expected);
    let header = Ipv6 {
        payload_length: Some(0x0102),
        next: Some(3),
        hop_limit: 4,
        ..Ipv6::new(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST)
    };
    assert_eq!(
        Packet::from(header).bytes()[..8],
        [0x60, 0, 0, 0, 1, 2, 3, 4]
    );
    let udp = Udp {
        length: Some(3),
        checksum: Some(4),
        ..Udp::new(1, 2)
    };
    assert_eq!(Packet::from(udp).bytes(), [0, 1, 0, 2, 0, 3, 0, 4]);
    let tcp = Tcp {
        offset: Some(0xf0),
        checksum: Some(5),
        ..Tcp::new(1, 2, SYN)
    };
    let bytes = Packet::from(tcp).bytes();
    assert_eq!((bytes[12], &bytes[16..18]), (0xf0, &[0, 5][..]));
    let frame = Ethernet {
        kind: Some(0x88cc),
        ..Ethernet::new(POD.mac, OTHER.mac)
    };
    let bytes = Packet::from(frame).ip(a, b).bytes();
    assert_eq!((&bytes[12..14], bytes[14]), (&[0x88, 0xcc][..], 0x45));
}

#[test]
fn a_tag_stands_between_the_addresses_and_the_packet() {
    let inside = ip(POD.v4, OTHER.v4).udp(1, 2);
    let plain = eth(POD.mac, OTHER.mac).then(inside.clone()).bytes();
    let tagged = eth(POD.mac, OTHER.mac).vlan(100).then(inside).bytes();
    assert_eq!(tagged[..12], plain[..12]);
    assert_eq!(tagged[12..16], [0x81, 0, 0, 100]);
    assert_eq!(tagged[16..], plain[12..]);
}

#[test]
fn fragments_are_the_packet_again_once_they_are_put_together() {
    for start in [ip(POD.v4, OTHER.v4), ip(POD.v6, OTHER.v6)] {
        let start = eth(POD.mac, OTHER.mac).then(start);
        let whole = start.udp(40000, 53).data(&[7; 101]);
        let fragments = whole.fragments(9, &[8, 48]);
        let mut payload: Vec<u8> = Vec::new();
        for (at, fragment) in fragments.iter().enumerate() {
            let frame = fragment.bytes();
            let parsed = SlicedPacket::from_ethernet(&frame).unwrap();
            let (offset, is_more, id, bytes) = match parsed.net.unwrap() {
                NetSlice::Ipv4(net) => {
                    let header = net.header();
                    let offset = usize::from(header.fragments_offset().value()) * 8;
                    assert_eq!(right(&frame), ["ip"]);
                    let id = u32::from(header.identification());
                    (offset, header.more_fragments(), id, net.payload().payload)
                }
                NetSlice::Ipv6(net) => {
                    let header = net.extensions().clone().into_iter().next();
                    let Some(etherparse::Ipv6ExtensionSlice::Fragment(header)) = header else {
                        panic!("no header of a fragment: {header:?}");
                    };
                    let offset = usize::from(header.fragment_offset().value()) * 8;
                    let bytes = net.payload().payload;
                    (
                        offset,
                        header.more_fragments(),
                        header.identification(),
                        bytes,
                    )
                }
                other => panic!("{other:?}"),
            };
            assert_eq!((offset, id), (payload.len(), 9));
            assert_eq!(is_more, at < 2);
            assert_eq!(flaws(&frame), [""; 0]);
            payload.extend(bytes);
        }
        let bytes = whole.bytes();
        assert_eq!(payload, bytes[bytes.len() - payload.len()..]);
        assert_eq!(payload.len(), 109);
    }
}

#[test]
fn a_frame_in_a_tunnel_has_its_own_checksums() {
    let inner = eth(POD.mac, OTHER.mac).ip(POD.v6, OTHER.v6).udp(1, 2);
    let outer = eth(OTHER.mac, POD.mac).ip([192, 0, 2, 1], [192, 0, 2, 2]);
    let frame = outer.udp(50000, 8472).vxlan(7).then(inner.clone()).bytes();
    assert_eq!(right(&frame), ["ip", "payload"]);
    assert_eq!(frame[42..50], [8, 0, 0, 0, 0, 0, 7, 0]);
    assert_eq!(frame[50..], inner.bytes());
}

#[test]
fn the_checksum_of_sctp_is_the_one_of_its_rfc() {
    // The check value of CRC-32C, in the order in which SCTP sends it.
    assert_eq!(sum::crc32c(b"123456789"), 0xe306_9283_u32.to_le_bytes());
}
