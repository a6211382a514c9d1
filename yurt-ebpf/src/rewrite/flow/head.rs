//! What the packet path reads of a packet, and how it changes it.

use super::address::Address;
use crate::abi::{FLOW_SERVED, FlowKey};
use crate::frame::ip::{Ip, Part, Side, TCP, UDP};
use crate::frame::sum::change_of_sum;
use crate::rewrite::{Follow, Packet, rewrite};

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

/// A packet of TCP or UDP, as far as it is read.
pub(super) struct Head {
    pub(super) ip: Ip,
    pub(super) source_port_be: [u8; 2],
    pub(super) destination_port_be: [u8; 2],
    /// Of TCP, as the next two: the number of its first byte.
    pub(super) sequence: u32,
    /// The byte that is expected next.
    pub(super) acknowledged: u32,
    pub(super) flags: u8,
}

impl Head {
    #[inline(always)]
    pub(super) fn of<P: Packet>(packet: &P, ip: Ip) -> Option<Self> {
        if !matches!(ip.part, Part::Whole | Part::First) {
            return None;
        }
        let mut head = Self {
            source_port_be: [0; 2],
            destination_port_be: [0; 2],
            sequence: 0,
            acknowledged: 0,
            flags: 0,
            ip,
        };
        match head.ip.protocol {
            TCP => {
                let [a, b, c, d, s0, s1, s2, s3, a0, a1, a2, a3, _, flags]: [u8; 14] =
                    packet.far(head.ip.payload)?;
                (head.source_port_be, head.destination_port_be) = ([a, b], [c, d]);
                head.sequence = u32::from_be_bytes([s0, s1, s2, s3]);
                head.acknowledged = u32::from_be_bytes([a0, a1, a2, a3]);
                head.flags = flags;
            }
            UDP => {
                let [a, b, c, d] = packet.far(head.ip.payload)?;
                (head.source_port_be, head.destination_port_be) = ([a, b], [c, d]);
            }
            _ => return None,
        }
        Some(head)
    }

    #[inline(always)]
    pub(super) fn is_tcp(&self) -> bool {
        self.ip.protocol == TCP
    }

    /// Whether it opens a connection.
    #[inline(always)]
    pub(super) fn opens(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }

    /// Whether its sender ends a connection.
    #[inline(always)]
    pub(super) fn ends(&self) -> bool {
        self.flags & (FIN | RST) != 0
    }

    /// Writes its key, in its own direction.
    #[inline(always)]
    pub(super) fn key<A: Address>(&self, key: &mut FlowKey<A>, place: u8) {
        key.source = A::of(self.ip.source);
        key.destination = A::of(self.ip.destination);
        key.source_port_be = self.source_port_be;
        key.destination_port_be = self.destination_port_be;
        key.protocol = self.ip.protocol;
        key.place = place;
    }

    /// Writes the key of the flow that it is an answer of.
    #[inline(always)]
    pub(super) fn answer_key<A: Address>(&self, key: &mut FlowKey<A>) {
        key.source = A::of(self.ip.destination);
        key.destination = A::of(self.ip.source);
        key.source_port_be = self.destination_port_be;
        key.destination_port_be = self.source_port_be;
        key.protocol = self.ip.protocol;
        key.place = FLOW_SERVED;
    }

    /// Gives it another address and port on one side.
    #[inline(always)]
    pub(super) fn rewrite<A: Address, P: Packet>(
        &self,
        packet: &mut P,
        side: Side,
        (to, port_be): (A, [u8; 2]),
    ) -> Option<()> {
        let (old_port, at) = match side {
            Side::Source => (self.source_port_be, self.ip.payload),
            Side::Destination => (self.destination_port_be, self.ip.payload + 2),
        };
        if u16::from_ne_bytes(old_port) != u16::from_ne_bytes(port_be) {
            let how = match self.ip.protocol {
                UDP => Follow::BytesOfUdp,
                _ => Follow::Bytes,
            };
            packet.follow(self.ip.sum_at()?, change_of_sum(old_port, port_be), how)?;
            packet.store(at, port_be, true)?;
        }
        rewrite(packet, &self.ip, side, to.words())
    }
}
