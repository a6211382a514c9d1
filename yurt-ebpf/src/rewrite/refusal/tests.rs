use std::net::{Ipv6Addr, SocketAddr};

use yurt_frames::guard::{OTHER, POD};
use yurt_frames::protocol::DESTINATION_OPTIONS;
use yurt_frames::{ACK, Extension, Ipv4, Packet as Sent, SYN, eth, flaws, ip, tcp, udp};

use super::*;
use crate::frame::{Frame, Wire};
use crate::rewrite::tests::{Bytes, frame, without_sum};
use crate::rewrite::{Follow, Packet};

const ETHERNET: usize = 14;

/// A frame in the kernel; a device may be left to put its checksum in, over all from `start` on.
struct Buffer {
    bytes: Bytes,
    left: Option<Left>,
}

#[derive(Clone, Copy)]
struct Left {
    start: usize,
    sum_at: usize,
}

impl Frame for Buffer {
    fn far<T: Wire>(&self, at: usize) -> Option<T> {
        self.bytes.far(at)
    }
}

impl Packet for Buffer {
    fn store<const N: usize>(&mut self, at: usize, to: [u8; N], is_summed: bool) -> Option<()> {
        self.bytes.store(at, to, is_summed)
    }

    fn follow_header(&mut self, at: usize, change: u32) -> Option<()> {
        self.bytes.follow_header(at, change)
    }

    fn follow(&mut self, at: usize, change: u32, how: Follow) -> Option<()> {
        self.bytes.follow(at, change, how)
    }
}

impl Resize for Buffer {
    fn set_length(&mut self, length: usize) -> Option<()> {
        if self.left.is_some_and(|left| length < left.sum_at + 2) {
            return None;
        }
        self.bytes.0.resize(length, 0);
        Some(())
    }

    fn make_room(&mut self, bytes: usize) -> Option<()> {
        let room = vec![0xaa; bytes];
        self.bytes.0.splice(ETHERNET..ETHERNET, room);
        if let Some(left) = &mut self.left {
            left.start += bytes;
            left.sum_at += bytes;
        }
        Some(())
    }
}

impl Buffer {
    fn of(bytes: Vec<u8>) -> Self {
        Self {
            bytes: Bytes(bytes),
            left: None,
        }
    }

    /// As a host leaves it to its device: in the place of the checksum is the sum of addresses, length and protocol,
    /// which makes a packet with its checksum come to nothing.
    fn left_to_a_device(mut bytes: Vec<u8>, start: usize, sum_at: usize) -> Self {
        let until_then = !fold(sum_of_all(&bytes[start..]));
        let sum_at = start + sum_at;
        bytes[sum_at..sum_at + 2].copy_from_slice(&until_then.to_ne_bytes());
        Self {
            bytes: Bytes(bytes),
            left: Some(Left { start, sum_at }),
        }
    }

    /// As it is on the wire.
    fn sent(self) -> Vec<u8> {
        let mut bytes = self.bytes.0;
        if let Some(Left { start, sum_at }) = self.left {
            let sum = !fold(sum_of_all(&bytes[start..]));
            bytes[sum_at..sum_at + 2].copy_from_slice(&sum.to_ne_bytes());
        }
        bytes
    }
}

fn sum_of_all(bytes: &[u8]) -> u64 {
    let pairs = bytes.chunks(2);
    pairs
        .map(|pair| u64::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum()
}

/// A client and what it dials, of each family.
fn casts() -> [(SocketAddr, SocketAddr); 2] {
    [
        ("198.51.100.7:40000", "203.0.113.9:80"),
        ("[2001:db8:9::7]:40000", "[2001:db8:77::9]:80"),
    ]
    .map(|(client, dialled)| (client.parse().unwrap(), dialled.parse().unwrap()))
}

/// The refusal of a packet of which this is quoted.
fn refusal(client: SocketAddr, dialled: SocketAddr, quoted: &[u8]) -> Vec<u8> {
    let frame = eth(POD.mac, OTHER.mac);
    let packet = match (dialled, client) {
        (SocketAddr::V4(dialled), SocketAddr::V4(client)) => frame.then(Ipv4 {
            tos: 0xc0,
            id: 0,
            fragment: 0x4000,
            ..Ipv4::new(*dialled.ip(), *client.ip())
        }),
        _ => frame.ip(dialled.ip(), client.ip()),
    };
    packet.port_unreachable(quoted).bytes()
}

fn refused(mut buffer: Buffer, is_v6: bool) -> Option<Vec<u8>> {
    refuse(&mut buffer, is_v6, |_| true).map(|()| buffer.sent())
}

#[test]
fn a_refusal_comes_from_the_address_that_was_dialled_with_the_headers_as_they_were_sent() {
    for (client, dialled) in casts() {
        let is_v6 = client.is_ipv6();
        let header = if is_v6 { 40 } else { 20 };
        let packets = [
            (tcp(client, dialled, SYN, b""), 20),
            (tcp(client, dialled, SYN, b"sent at once"), 20),
            (udp(client, dialled, b""), 8),
            (udp(client, dialled, &[7; 1400]), 8),
            (without_sum(client, dialled), 8),
            (
                ip(client.ip(), dialled.ip()).sctp(40000, 80).data(b"chunk"),
                12,
            ),
        ];
        for (packet, transport) in packets {
            let quoted = &packet.bytes()[..header + transport];
            let expected = refusal(client, dialled, quoted);
            // Short frames are filled up on the way.
            let mut padded = frame(&packet);
            padded.resize(padded.len().max(60), 0);
            for bytes in [frame(&packet), padded] {
                let after = refused(Buffer::of(bytes), is_v6).unwrap();
                assert_eq!(after, expected);
                assert_eq!(flaws(&after), [""; 0]);
            }
        }
    }
}

#[test]
fn a_refusal_of_what_a_device_was_to_put_a_checksum_in_is_right_on_the_wire() {
    for (client, dialled) in casts() {
        let is_v6 = client.is_ipv6();
        let header = ETHERNET + if is_v6 { 40 } else { 20 };
        let packets = [
            (tcp(client, dialled, SYN, b""), 20, 16),
            (tcp(client, dialled, SYN, b"odd"), 20, 16),
            (udp(client, dialled, b""), 8, 6),
            (udp(client, dialled, &[7; 1401]), 8, 6),
        ];
        for (packet, transport, sum_at) in packets {
            let sent = frame(&packet);
            let left = Buffer::left_to_a_device(sent.clone(), header, sum_at);
            let after = refused(left, is_v6).unwrap();
            assert_eq!(flaws(&after), [""; 0]);
            // All but the checksum of what is quoted, which is about what was cut off as well.
            let quoted = &after[after.len() - transport..];
            assert_eq!(quoted[..sum_at], sent[header..header + sum_at]);
            let length = header - ETHERNET + transport;
            assert_eq!(after.len(), header + 8 + length);
            assert_eq!(
                after[header + 8..after.len() - transport],
                sent[ETHERNET..header]
            );
        }
        // Of SCTP the kernel alone knows how.
        let sctp = frame(&ip(client.ip(), dialled.ip()).sctp(40000, 80));
        assert_eq!(
            refused(Buffer::left_to_a_device(sctp, header, 8), is_v6),
            None
        );
    }
}

#[test]
fn options_and_the_header_of_a_first_fragment_are_quoted() {
    let [(client, dialled), (client6, dialled6)] = casts();
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (client, dialled) else {
        panic!("of IPv4");
    };
    let options = Ipv4 {
        options: vec![1; 8],
        ..Ipv4::new(*from.ip(), *to.ip())
    };
    let packet = Sent::from(options).udp(40000, 80).data(b"?");
    let after = refused(Buffer::of(frame(&packet)), false).unwrap();
    assert_eq!(after, refusal(client, dialled, &packet.bytes()[..36]));

    for (client, dialled, quoted) in [(client, dialled, 28), (client6, dialled6, 56)] {
        let is_v6 = client.is_ipv6();
        let fragments = udp(client, dialled, &[7; 80]).fragments(9, &[48]);
        let after = refused(Buffer::of(frame(&fragments[0])), is_v6).unwrap();
        let expected = refusal(client, dialled, &fragments[0].bytes()[..quoted]);
        assert_eq!(after, expected);
        assert_eq!(flaws(&after), [""; 0]);
        // A later one has no ports by which it could be known.
        assert_eq!(refused(Buffer::of(frame(&fragments[1])), is_v6), None);
    }
}

#[test]
fn nobody_is_told_who_is_no_single_host_and_of_no_error() {
    let sources = [
        "0.0.0.0:1",
        "127.0.0.1:1",
        "224.0.0.1:1",
        "255.255.255.255:1",
        "[::]:1",
        "[::1]:1",
        "[ff02::1]:1",
    ];
    let [(client, dialled), (client6, dialled6)] = casts();
    for source in sources {
        let source: SocketAddr = source.parse().unwrap();
        let to = if source.is_ipv6() { dialled6 } else { dialled };
        let packet = udp(source, to, b"?");
        assert_eq!(refused(Buffer::of(frame(&packet)), source.is_ipv6()), None);
    }
    for (client, dialled) in [(client, dialled), (client6, dialled6)] {
        let between = || ip(client.ip(), dialled.ip());
        let about = tcp(dialled, client, ACK, b"").bytes();
        for packet in [between().port_unreachable(&about), between().ping(7)] {
            assert_eq!(refused(Buffer::of(frame(&packet)), client.is_ipv6()), None);
        }
    }
    let hidden = ip(client6.ip(), dialled6.ip())
        .then(Extension {
            body: [&[1, 12][..], &[0; 12]].concat(),
            ..Extension::padding(DESTINATION_OPTIONS)
        })
        .udp(40000, 80);
    assert_eq!(refused(Buffer::of(frame(&hidden)), true), None);
}

#[test]
fn a_host_is_known_by_its_address_and_told_no_more_than_it_may_be() {
    let [(client, dialled), (client6, dialled6)] = casts();
    for (client, dialled, mapped) in [
        (client, dialled, "::ffff:198.51.100.7"),
        (client6, dialled6, "2001:db8:9::7"),
    ] {
        let mapped: Ipv6Addr = mapped.parse().unwrap();
        for may_be in [true, false] {
            let mut buffer = Buffer::of(frame(&udp(client, dialled, b"?")));
            let is_told = |host: &[u8; 16]| *host == mapped.octets() && may_be;
            let after = refuse(&mut buffer, client.is_ipv6(), is_told);
            assert_eq!(after.is_some(), may_be);
        }
    }
}

#[test]
fn whatever_is_cut_off_a_packet_there_is_a_right_refusal_or_none() {
    for (client, dialled) in casts() {
        for packet in [
            tcp(client, dialled, SYN, b"data"),
            udp(client, dialled, b"data"),
        ] {
            let whole = frame(&packet);
            for length in 0..=whole.len() {
                let cut = Buffer::of(whole[..length].to_vec());
                if let Some(after) = refused(cut, client.is_ipv6()) {
                    assert_eq!(flaws(&after), [""; 0], "{length}");
                }
            }
        }
    }
}
