//! A refusal: the ICMP error "port unreachable", made of the packet that is refused.

use crate::abi::bytes;
use crate::frame::ETH;
use crate::frame::ip::{ICMP, ICMPV6, Ip, Part, SCTP, TCP, UDP};
use crate::frame::sum::{fold, sum_of};
use crate::rewrite::{Packet, turn};

/// A frame that can be made longer and shorter.
pub trait Resize: Packet {
    /// Cuts it there, or fills it up with zeros. `None` where a checksum that the device is to put in would be cut off.
    fn set_length(&mut self, length: usize) -> Option<()>;
    /// Puts so many bytes, whatever is in them, behind the link-layer header.
    fn make_room(&mut self, bytes: usize) -> Option<()>;
}

const IPV4: usize = 20;
const IPV6: usize = 40;
const ICMP_HEADER: usize = 8;
/// Of the shortest extension headers, a fragment's among them.
const EXTENSION: usize = 8;
/// As of all that a host sends.
const HOPS: u8 = 64;
/// Precedence of errors (RFC 1812, 4.3.2.5): internetwork control.
const CONTROL: u8 = 0xc0;
const DONT_FRAGMENT: u8 = 0x40;
/// Type and code.
const UNREACHABLE4: [u8; 2] = [3, 3];
const UNREACHABLE6: [u8; 2] = [1, 4];

/// Makes of a packet its refusal, which goes back to where the packet came from: from the address that it was sent to,
/// with its headers as they came. `None` where there must be none (RFC 1122, 3.2.2) or can be none: the packet is to be
/// dropped then.
///
/// `is_told`: whether the host at this address, IPv4-mapped for IPv4, is told of one more. Of the payload only the
/// transport header is quoted. By it a host knows whose socket it is, and a refusal fits into every link.
#[inline(always)]
pub fn refuse<P: Resize>(
    packet: &mut P,
    is_v6: bool,
    is_told: impl FnOnce(&[u8; 16]) -> bool,
) -> Option<()> {
    let ip = Ip::read(packet, ETH, is_v6)?;
    let has_ports = matches!(ip.part, Part::Whole | Part::First);
    if !has_ports || !is_from_a_host(&ip) || !is_told(&bytes(ip.source)) {
        return None;
    }
    let Quoted { length, sum } = quote(packet, &ip)?;
    if is_v6 {
        packet.make_room(IPV6 + ICMP_HEADER)?;
        refuse6(packet, length, sum, ip.payload - ip.at - IPV6)?;
    } else {
        packet.make_room(IPV4 + ICMP_HEADER)?;
        refuse4(packet, length, sum)?;
    }
    turn(packet)
}

/// Whether another host has sent it, and one alone.
#[inline(always)]
fn is_from_a_host(ip: &Ip) -> bool {
    let (high, low) = ip.source;
    if ip.is_v6 {
        let is_none_or_loopback = high == 0 && u64::from_be(low) <= 1;
        high.to_ne_bytes()[0] != 0xff && !is_none_or_loopback
    } else {
        let first = low.to_ne_bytes()[4];
        first != 0 && first != 127 && first < 224
    }
}

/// What is left of a packet: its length from the IP header on, and the sum of its transport header as that will be on
/// the wire.
struct Quoted {
    length: usize,
    sum: u64,
}

/// Cuts a packet behind its transport header.
#[inline(always)]
fn quote<P: Resize>(packet: &mut P, ip: &Ip) -> Option<Quoted> {
    let (length, sum) = match ip.protocol {
        TCP => (20, cut::<_, 20>(packet, ip.payload, 16, true)?),
        UDP => (8, cut::<_, 8>(packet, ip.payload, 6, true)?),
        // What a device puts in there is a sum of another kind.
        SCTP => (12, cut::<_, 12>(packet, ip.payload, 8, false)?),
        _ => return None,
    };
    Some(Quoted {
        length: ip.payload - ip.at + length,
        sum,
    })
}

/// Cuts a packet behind the `N` bytes of its transport header, whose checksum is `sum_at`; returns their sum. A device
/// that is to put the checksum in does so in a refusal, too: it sums up what is left, so that the whole of it comes to
/// the complement of what is in the place of the checksum until then (`Documentation/networking/checksum-offloads.rst`
/// of Linux, LCO).
#[inline(always)]
fn cut<P: Resize, const N: usize>(
    packet: &mut P,
    at: usize,
    sum_at: usize,
    can_be_left_to_a_device: bool,
) -> Option<u64> {
    let header: [u8; N] = packet.far(at)?;
    // Nobody but the kernel knows whose work the checksum is, and it tells by what it refuses.
    if packet.set_length(at + sum_at + 1).is_none() {
        if !can_be_left_to_a_device {
            return None;
        }
        packet.set_length(at + N)?;
        let until_then = u16::from_ne_bytes([header[sum_at], header[sum_at + 1]]);
        return Some(u64::from(!until_then));
    }
    packet.set_length(at + N)?;
    packet.store(at, header, false)?;
    Some(sum_of(&header))
}

/// Writes the headers of IPv4 and ICMP before a packet of this length, whose transport header has this sum.
#[inline(always)]
fn refuse4<P: Resize>(packet: &mut P, length: usize, sum: u64) -> Option<()> {
    let [.., high, low] = (IPV4 + ICMP_HEADER + length).to_be_bytes();
    let [a, b, c, d, e, f, g, h]: [u8; 8] = packet.far(ETH + IPV4 + ICMP_HEADER + 12)?;
    let before = [0x45, CONTROL, high, low, 0, 0, DONT_FRAGMENT, 0, HOPS, ICMP];
    let addresses = [e, f, g, h, a, b, c, d];
    let header_sum = (!fold(sum_of(&before) + sum_of(&addresses))).to_ne_bytes();
    packet.store(ETH, before, false)?;
    packet.store(ETH + 10, header_sum, false)?;
    packet.store(ETH + 12, addresses, false)?;
    // A header that has its checksum adds nothing to a sum.
    let [y, z] = (!fold(sum_of(&UNREACHABLE4) + sum)).to_ne_bytes();
    let [kind, code] = UNREACHABLE4;
    packet.store(ETH + IPV4, [kind, code, y, z, 0, 0, 0, 0], false)
}

/// The same of IPv6. Extension headers of the packet have so many bytes.
#[inline(always)]
fn refuse6<P: Resize>(
    packet: &mut P,
    length: usize,
    mut sum: u64,
    extensions: usize,
) -> Option<()> {
    let quoted = ETH + IPV6 + ICMP_HEADER;
    let first: [u8; 8] = packet.far(quoted)?;
    sum += sum_of(&first);
    match extensions {
        0 => {}
        EXTENSION => sum += sum_of::<EXTENSION>(&packet.far(quoted + IPV6)?),
        _ => return None,
    }
    for (from, to) in [(quoted + 24, ETH + 8), (quoted + 8, ETH + 24)] {
        let address: [u8; 16] = packet.far(from)?;
        packet.store(to, address, false)?;
        // Once as it is quoted, and once more because the checksum is about the addresses, too.
        sum += 2 * sum_of(&address);
    }
    let [.., high, low] = (ICMP_HEADER + length).to_be_bytes();
    packet.store(ETH, [0x60, 0, 0, 0, high, low, ICMPV6, HOPS], false)?;
    sum += sum_of(&[high, low, 0, ICMPV6]) + sum_of(&UNREACHABLE6);
    let [y, z] = (!fold(sum)).to_ne_bytes();
    let [kind, code] = UNREACHABLE6;
    packet.store(ETH + IPV6, [kind, code, y, z, 0, 0, 0, 0], false)
}

#[cfg(test)]
mod tests;
