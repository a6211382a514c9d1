//! Faults of the checksums of a frame, found without the layers that frames are made of.

use std::net::IpAddr;

use crate::protocol::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, ROUTING, TCP, UDP};

const ETHERNET: usize = 14;

/// What is wrong with the checksums of an IP packet in a frame, and whether all of it is there. What an ICMP error
/// holds is looked at as well, as far as it is whole; of fragments only the header is.
pub fn flaws(frame: &[u8]) -> Vec<String> {
    let mut flaws = Vec::new();
    let packet = frame.get(ETHERNET..).unwrap_or_default();
    if length(packet).is_none_or(|length| length > packet.len()) {
        flaws.push("the length of the packet".into());
    }
    look(packet, "packet", &mut flaws);
    flaws
}

/// Source and destination of an IP packet.
pub fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    fn at<const N: usize>(packet: &[u8], at: usize) -> [u8; N] {
        std::array::from_fn(|byte| packet[at + byte])
    }
    match packet[0] >> 4 {
        4 => (at::<4>(packet, 12).into(), at::<4>(packet, 16).into()),
        _ => (at::<16>(packet, 8).into(), at::<16>(packet, 24).into()),
    }
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let pair = bytes.get(at..at + 2)?;
    Some(usize::from(u16::from_be_bytes([pair[0], pair[1]])))
}

/// The length that a packet says it has.
fn length(packet: &[u8]) -> Option<usize> {
    match packet.first()? >> 4 {
        4 => word(packet, 2),
        _ => word(packet, 4).map(|payload| 40 + payload),
    }
}

/// Whether the sum of the Internet over what has its checksum in it is as it should be.
fn is_right(bytes: &[u8]) -> bool {
    let (words, last) = bytes.as_chunks::<2>();
    let odd = last.first().map_or(0, |byte| usize::from(*byte) << 8);
    let words = words
        .iter()
        .map(|pair| usize::from(u16::from_be_bytes(*pair)));
    let sum = words.sum::<usize>() + odd;
    sum > 0 && sum % 0xffff == 0
}

/// Offset of the checksum in what is behind an IP header, and whether it is about addresses too.
fn sum_at(protocol: u8) -> Option<(usize, bool)> {
    match protocol {
        TCP => Some((16, true)),
        UDP => Some((6, true)),
        ICMP => Some((2, false)),
        ICMPV6 => Some((2, true)),
        _ => None,
    }
}

/// The payload behind the IP headers, its protocol, and its length by the IP header.
struct Payload<'a> {
    protocol: u8,
    bytes: &'a [u8],
    length: usize,
}

impl<'a> Payload<'a> {
    /// `None` of a fragment, and of a packet that ends before.
    fn of(packet: &'a [u8]) -> Option<Self> {
        if packet.first()? >> 4 == 4 {
            let header = usize::from(packet[0] & 0xf) * 4;
            let is_whole = word(packet, 6)? & 0x3fff == 0;
            let payload = Self {
                protocol: *packet.get(9)?,
                bytes: packet.get(header..)?,
                length: word(packet, 2)?.checked_sub(header)?,
            };
            return is_whole.then_some(payload);
        }
        let mut payload = Self {
            protocol: *packet.get(6)?,
            bytes: packet.get(40..)?,
            length: word(packet, 4)?,
        };
        while matches!(payload.protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
            let header = 8 + usize::from(*payload.bytes.get(1)?) * 8;
            payload = Self {
                protocol: payload.bytes[0],
                bytes: payload.bytes.get(header..)?,
                length: payload.length.checked_sub(header)?,
            };
        }
        (payload.protocol != FRAGMENT).then_some(payload)
    }
}

/// `None` once there is no more of it to look at.
fn look(packet: &[u8], what: &str, flaws: &mut Vec<String>) -> Option<()> {
    let is_v4 = packet.first()? >> 4 == 4;
    let header = usize::from(packet[0] & 0xf) * 4;
    if is_v4 && !is_right(packet.get(..header)?) {
        flaws.push(format!("the header of the {what}"));
    }
    let Payload {
        protocol,
        bytes,
        length,
    } = Payload::of(packet)?;
    let (sum_at, is_about_addresses) = sum_at(protocol)?;
    let payload = bytes.get(..length)?;
    let mut summed = payload.to_vec();
    if payload.len() % 2 == 1 {
        summed.push(0);
    }
    if is_about_addresses {
        let addresses = if is_v4 { 12..20 } else { 8..40 };
        summed.extend(packet.get(addresses)?);
        summed.extend([0, protocol]);
        summed.extend(u16::try_from(length).unwrap_or(0).to_be_bytes());
    }
    let is_none = protocol == UDP && word(payload, sum_at)? == 0;
    if !is_none && !is_right(&summed) {
        flaws.push(format!("the payload of the {what}"));
    }
    let is_error = match protocol {
        ICMP => matches!(payload[0], 3 | 11 | 12),
        ICMPV6 => payload[0] < 128,
        _ => false,
    };
    if is_error {
        look(payload.get(8..)?, "packet inside", flaws)?;
    }
    Some(())
}
