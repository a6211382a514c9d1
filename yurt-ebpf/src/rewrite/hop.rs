//! What a router does to a packet, where this node leads one past its own stack.

use super::Packet;
use super::flow::Address;
use crate::frame::ETH;
use crate::frame::ip::{Ip, Part, TCP, UDP};

/// Offset of the time to live in an IPv4 header: protocol and checksum follow.
const TTL: usize = ETH + 8;
/// Offset of the hop limit in an IPv6 header.
const HOP_LIMIT: usize = ETH + 7;
/// Bytes of the headers without options.
const HEADERS: [usize; 2] = [20, 40];

/// The addresses of a packet that may be led past the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends<A> {
    /// Where it comes from.
    pub source: A,
    /// Where it goes.
    pub destination: A,
}

impl<A: Address> Ends<A> {
    /// Of a whole packet of TCP or UDP without options. All else is the stack's: it reads options, and puts fragments
    /// together, for which it needs all of them.
    #[inline(always)]
    pub fn of<P: Packet>(packet: &P) -> Option<Self> {
        let ip = Ip::read(packet, ETH, A::IS_V6)?;
        let is_plain = ip.part == Part::Whole
            && ip.payload == ETH + HEADERS[usize::from(A::IS_V6)]
            && matches!(ip.protocol, TCP | UDP);
        is_plain.then_some(Self {
            source: A::of(ip.source),
            destination: A::of(ip.destination),
        })
    }
}

/// Takes a hop off a packet; `None` where it has none left, and is unchanged.
#[inline(always)]
pub fn take_hop<A: Address, P: Packet>(packet: &mut P) -> Option<()> {
    if A::IS_V6 {
        let [limit]: [u8; 1] = packet.far(HOP_LIMIT)?;
        return match limit {
            0 | 1 => None,
            // No checksum of the header balances it.
            limit => packet.store(HOP_LIMIT, [limit - 1], false),
        };
    }
    let [ttl, protocol, high, low]: [u8; 4] = packet.far(TTL)?;
    if ttl <= 1 {
        return None;
    }
    // As `ip_decrease_ttl` (include/net/ip.h) has it.
    let sum = u32::from(u16::from_be_bytes([high, low])) + 0x100;
    let sum = sum + u32::from(sum >= 0xffff);
    let [.., high, low] = sum.to_be_bytes();
    packet.store(TTL, [ttl - 1, protocol, high, low], true)
}

/// Addresses a frame anew: who it goes to, and who it comes from.
#[inline(always)]
pub fn address<P: Packet>(packet: &mut P, macs: [u8; 12]) -> Option<()> {
    // No checksum is about them.
    packet.store(0, macs, true)
}
