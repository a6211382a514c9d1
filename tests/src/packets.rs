//! Packets with all their checksums, and whether those are right: made and checked here by themselves, without the code that is tested.

use std::net::IpAddr;
use std::net::SocketAddr;

/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// SCTP.
pub const SCTP: u8 = 132;
/// A flag of TCP.
pub const SYN: u8 = 0x02;
/// A flag of TCP.
pub const ACK: u8 = 0x10;

const ETH: usize = 14;
/// Where the frames go, and where they come from.
pub const MACS: [[u8; 6]; 2] = [[0x0a, 0x58, 10, 244, 1, 10], [0x0a, 0x58, 10, 244, 1, 11]];

/// The sum of the Internet (RFC 1071) over some pieces, each of an even length but the last.
fn sum(pieces: &[&[u8]]) -> u16 {
    let mut sum: u32 = 0;
    for pair in pieces.concat().chunks(2) {
        sum += u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// The bytes of an address.
pub fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().into(),
        IpAddr::V6(addr) => addr.octets().into(),
    }
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

fn pseudo(source: &[u8], to: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    let length = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    [source, to, &length, &[0, protocol]].concat()
}

/// Offset of the checksum in what is behind an IP header, and whether it is about addresses too.
fn sum_at(protocol: u8) -> Option<(usize, bool)> {
    match protocol {
        TCP => Some((16, true)),
        UDP => Some((6, true)),
        1 => Some((2, false)),
        58 => Some((2, true)),
        _ => None,
    }
}

/// An IP packet; the checksum in its payload is set.
pub fn ip(source: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (source, to) = (octets(source), octets(to));
    let mut payload = payload.to_vec();
    if let Some((at, has_pseudo)) = sum_at(protocol) {
        payload[at..at + 2].fill(0);
        let pseudo = match has_pseudo {
            true => pseudo(&source, &to, protocol, payload.len()),
            false => Vec::new(),
        };
        let mut found = !sum(&[&pseudo, &payload]);
        if protocol == UDP && found == 0 {
            found = u16::MAX;
        }
        payload[at..at + 2].copy_from_slice(&found.to_be_bytes());
    }
    header(&source, &to, protocol, &payload)
}

/// A header before a payload.
fn header(source: &[u8], to: &[u8], protocol: u8, payload: &[u8]) -> Vec<u8> {
    if source.len() == 16 {
        let [high, low] = length(payload.len());
        let head = [0x60, 0, 0, 0, high, low, protocol, 61];
        return [&head[..], source, to, payload].concat();
    }
    let [high, low] = length(20 + payload.len());
    let head = [0x45, 0, high, low, 0x12, 0x34, 0, 0, 61, protocol, 0, 0];
    let mut header = [&head[..], source, to].concat();
    let found = !sum(&[&header]);
    header[10..12].copy_from_slice(&found.to_be_bytes());
    [header, payload.to_vec()].concat()
}

/// A frame around an IP packet.
pub fn frame(packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = match packet[0] >> 4 {
        4 => [8, 0],
        _ => [0x86, 0xdd],
    };
    [&MACS[0][..], &MACS[1], &kind, packet].concat()
}

/// A TCP segment as an IP packet.
pub fn tcp(source: SocketAddr, to: SocketAddr, flags: u8, data: &[u8]) -> Vec<u8> {
    let (from_port, to_port) = (source.port().to_be_bytes(), to.port().to_be_bytes());
    let rest = [0, 0, 0, 7, 0, 0, 0, 9, 0x50, flags, 0x20, 0, 0, 0, 0, 0];
    ip(
        source.ip(),
        to.ip(),
        TCP,
        &[&from_port[..], &to_port, &rest, data].concat(),
    )
}

/// A UDP datagram as an IP packet.
pub fn udp(source: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let (from_port, to_port) = (source.port().to_be_bytes(), to.port().to_be_bytes());
    let length = length(8 + data.len());
    let datagram = [&from_port[..], &to_port, &length, &[0, 0], data].concat();
    ip(source.ip(), to.ip(), UDP, &datagram)
}

/// The same packet without a checksum of UDP.
pub fn without_sum(mut packet: Vec<u8>) -> Vec<u8> {
    let at = payload_at(&packet) + 6;
    packet[at..at + 2].fill(0);
    packet
}

/// An SCTP packet: its checksum is about itself only.
pub fn sctp(source: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (from_port, to_port) = (source.port().to_be_bytes(), to.port().to_be_bytes());
    let packet = [&from_port[..], &to_port, &[1, 2, 3, 4, 5, 6, 7, 8], &[0; 8]].concat();
    ip(source.ip(), to.ip(), SCTP, &packet)
}

/// A ping, or its answer, as an IP packet.
pub fn echo(source: IpAddr, to: IpAddr, is_answer: bool, id: u16) -> Vec<u8> {
    let (protocol, kind) = match (source.is_ipv4(), is_answer) {
        (true, false) => (1, 8),
        (true, true) => (1, 0),
        (false, false) => (58, 128),
        (false, true) => (58, 129),
    };
    let [high, low] = id.to_be_bytes();
    let message = [kind, 0, 0, 0, high, low, 0, 1, b'p', b'i', b'n', b'g'];
    ip(source, to, protocol, &message)
}

/// An ICMP error about a packet, of which it holds so many bytes, as an IP packet: a port is unreachable, or it is too big.
pub fn error(source: IpAddr, to: IpAddr, is_too_big: bool, about: &[u8]) -> Vec<u8> {
    let (protocol, head) = match (source.is_ipv4(), is_too_big) {
        (true, false) => (1, [3, 3, 0, 0, 0, 0, 0, 0]),
        (true, true) => (1, [3, 4, 0, 0, 0, 0, 5, 0]),
        (false, false) => (58, [1, 4, 0, 0, 0, 0, 0, 0]),
        (false, true) => (58, [2, 0, 0, 0, 0, 0, 5, 0]),
    };
    ip(source, to, protocol, &[&head[..], about].concat())
}

/// A packet in two fragments, cut behind so many bytes of its payload (a multiple of 8).
pub fn fragments(packet: &[u8], id: u16, cut: usize) -> [Vec<u8>; 2] {
    let (header_end, is_v4) = (payload_at(packet), packet[0] >> 4 == 4);
    let (first, second) = packet[header_end..].split_at(cut);
    let offset = u16::try_from(cut).unwrap_or(0);
    let (source, to) = addresses(packet);
    let protocol = protocol(packet);
    let of = |payload: &[u8], offset: u16, is_more: bool| {
        if !is_v4 {
            let [high, low] = (offset | u16::from(is_more)).to_be_bytes();
            let [i, j] = id.to_be_bytes();
            let head = [protocol, 0, high, low, 0, 0, i, j];
            return header(&source, &to, 44, &[&head[..], payload].concat());
        }
        let mut packet = header(&source, &to, protocol, payload);
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        let fragment = (offset / 8) | if is_more { 0x2000 } else { 0 };
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[10..12].fill(0);
        let found = !sum(&[&packet[..20]]);
        packet[10..12].copy_from_slice(&found.to_be_bytes());
        packet
    };
    [of(first, 0, true), of(second, offset, false)]
}

/// An IPv6 packet with a header in between: of this kind, before what the packet has.
pub fn extended(packet: &[u8], kind: u8, count: usize) -> Vec<u8> {
    let (source, to) = addresses(packet);
    let mut payload = packet[40..].to_vec();
    let mut next = packet[6];
    for _ in 0..count {
        payload = [&[next, 0, 1, 4, 0, 0, 0, 0][..], &payload].concat();
        next = kind;
    }
    header(&source, &to, next, &payload)
}

fn payload_at(packet: &[u8]) -> usize {
    match packet[0] >> 4 {
        4 => usize::from(packet[0] & 0xf) * 4,
        _ => 40,
    }
}

fn protocol(packet: &[u8]) -> u8 {
    match packet[0] >> 4 {
        4 => packet[9],
        _ => packet[6],
    }
}

/// Source and destination of an IP packet.
pub fn addresses(packet: &[u8]) -> (Vec<u8>, Vec<u8>) {
    match packet[0] >> 4 {
        4 => (packet[12..16].into(), packet[16..20].into()),
        _ => (packet[8..24].into(), packet[24..40].into()),
    }
}

/// What is wrong with the checksums of a frame; what an error holds is looked at as well, as far as it is whole.
pub fn flaws(frame: &[u8]) -> Vec<String> {
    let mut flaws = Vec::new();
    look(&frame[ETH..], "packet", &mut flaws);
    flaws
}

fn look(packet: &[u8], what: &str, flaws: &mut Vec<String>) {
    let at = payload_at(packet);
    if packet[0] >> 4 == 4 && sum(&[&packet[..at]]) != u16::MAX {
        flaws.push(format!("the header of the {what}"));
    }
    let (source, to) = addresses(packet);
    let (mut protocol, mut payload) = (protocol(packet), &packet[at..]);
    while matches!(protocol, 0 | 60) {
        protocol = payload[0];
        payload = &payload[8 + usize::from(payload[1]) * 8..];
    }
    let Some((sum_at, has_pseudo)) = sum_at(protocol) else {
        return;
    };
    let said = match packet[0] >> 4 {
        4 => usize::from(u16::from_be_bytes([packet[2], packet[3]])) - at,
        _ => {
            usize::from(u16::from_be_bytes([packet[4], packet[5]]))
                - (packet.len() - 40 - payload.len())
        }
    };
    // The beginning of a packet.
    if payload.len() < said {
        return;
    }
    let payload = &payload[..said];
    let pseudo = match has_pseudo {
        true => pseudo(&source, &to, protocol, said),
        false => Vec::new(),
    };
    let is_none = protocol == UDP && payload[sum_at..sum_at + 2] == [0, 0];
    if !is_none && sum(&[&pseudo, payload]) != u16::MAX {
        flaws.push(format!("the payload of the {what}"));
    }
    let is_error = match protocol {
        1 => matches!(payload[0], 3 | 11 | 12),
        58 => payload[0] < 128,
        _ => false,
    };
    if is_error {
        look(&payload[8..], "packet inside", flaws);
    }
}
