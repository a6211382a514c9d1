//! The headers of a packet, as far as translation looks into them.

use super::Packet;
use crate::abi::words;
use crate::claims::{Words, mapped};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;
const DCCP: u8 = 33;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// More than anyone sends.
const MAX_EXTENSION_HEADERS: usize = 4;

const FRAGMENT4_OFFSET: u16 = 0x1fff;
const FRAGMENT4_MORE: u16 = 0x2000;
const FRAGMENT6_OFFSET: u16 = 0xfff8;
const FRAGMENT6_MORE: u16 = 1;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// What of a packet is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All.
    Whole,
    /// A fragment, with the headers.
    First,
    /// A fragment without them.
    Later,
    /// It cannot be told where what comes next begins, or its addresses are not all that its checksums are about.
    Unreadable,
}

/// An IP header, and what it says of what follows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ip {
    pub(super) is_v6: bool,
    /// Offset of the header.
    pub(super) at: usize,
    pub(super) source: Words,
    pub(super) destination: Words,
    /// What follows, behind extension headers.
    pub(super) protocol: u8,
    /// Offset of that.
    pub(super) payload: usize,
    pub(super) part: Part,
    /// Of fragments: what they have in common.
    pub(super) id: [u8; 4],
}

/// Which of two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

impl Ip {
    /// The header at an offset; `None` when there is none of that family.
    #[inline(always)]
    pub(super) fn read<P: Packet>(packet: &P, at: usize, is_v6: bool) -> Option<Self> {
        if is_v6 {
            Self::read_v6(packet, at)
        } else {
            Self::read_v4(packet, at)
        }
    }

    #[inline(always)]
    fn read_v4<P: Packet>(packet: &P, at: usize) -> Option<Self> {
        let header: [u8; 20] = packet.load(at)?;
        let [
            first,
            _,
            _,
            _,
            i,
            j,
            f,
            g,
            _,
            protocol,
            _,
            _,
            a,
            b,
            c,
            d,
            e,
            h,
            k,
            l,
        ] = header;
        if first >> 4 != 4 || first & 0xf < 5 {
            return None;
        }
        let fragment = u16::from_be_bytes([f, g]);
        Some(Self {
            is_v6: false,
            at,
            source: mapped(u32::from_ne_bytes([a, b, c, d])),
            destination: mapped(u32::from_ne_bytes([e, h, k, l])),
            protocol,
            payload: at + usize::from(first & 0xf) * 4,
            part: if protocol == AUTHENTICATION {
                Part::Unreadable
            } else if fragment & FRAGMENT4_OFFSET != 0 {
                Part::Later
            } else if fragment & FRAGMENT4_MORE != 0 {
                Part::First
            } else {
                Part::Whole
            },
            id: [i, j, 0, 0],
        })
    }

    #[inline(always)]
    fn read_v6<P: Packet>(packet: &P, at: usize) -> Option<Self> {
        let [first, _, _, _, _, _, next, _]: [u8; 8] = packet.load(at)?;
        if first >> 4 != 6 {
            return None;
        }
        let mut ip = Self {
            is_v6: true,
            at,
            source: words(&packet.load(at + 8)?),
            destination: words(&packet.load(at + 24)?),
            protocol: next,
            payload: at + 40,
            part: Part::Whole,
            id: [0; 4],
        };
        for _ in 0..MAX_EXTENSION_HEADERS {
            if !matches!(ip.protocol, HOP_BY_HOP | FRAGMENT | DESTINATION_OPTIONS) {
                break;
            }
            let Some([next, length, high, low, a, b, c, d]) = packet.load::<8>(ip.payload) else {
                ip.part = Part::Unreadable;
                return Some(ip);
            };
            ip.payload += 8;
            if ip.protocol == FRAGMENT {
                let fragment = u16::from_be_bytes([high, low]);
                ip.id = [a, b, c, d];
                ip.protocol = next;
                if fragment & FRAGMENT6_OFFSET != 0 {
                    ip.part = Part::Later;
                    return Some(ip);
                }
                // Without any more of them it is whole (RFC 6946).
                if fragment & FRAGMENT6_MORE != 0 {
                    ip.part = Part::First;
                }
            } else {
                ip.payload += usize::from(length) * 8;
                ip.protocol = next;
            }
        }
        if matches!(
            ip.protocol,
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS | AUTHENTICATION
        ) {
            ip.part = Part::Unreadable;
        }
        Some(ip)
    }

    #[inline(always)]
    pub(super) fn address(&self, side: Side) -> Words {
        match side {
            Side::Source => self.source,
            Side::Destination => self.destination,
        }
    }

    /// Offset of an address.
    #[inline(always)]
    pub(super) fn address_at(&self, side: Side) -> usize {
        match (self.is_v6, side) {
            (false, Side::Source) => self.at + 12,
            (false, Side::Destination) => self.at + 16,
            (true, Side::Source) => self.at + 8,
            (true, Side::Destination) => self.at + 24,
        }
    }

    /// Offset of the checksum that is about the addresses too; `None` where there is none.
    #[inline(always)]
    pub(super) fn sum_at(&self) -> Option<usize> {
        if self.part == Part::Later {
            return None;
        }
        match self.protocol {
            TCP => Some(self.payload + 16),
            UDP | UDP_LITE | DCCP => Some(self.payload + 6),
            ICMPV6 if self.is_v6 => Some(self.payload + 2),
            _ => None,
        }
    }

    #[inline(always)]
    fn is_icmp(&self) -> bool {
        self.protocol == if self.is_v6 { ICMPV6 } else { ICMP }
    }

    /// What the packet is about; `None` when it ends before it says so. It is no [`Part::Later`].
    #[inline(always)]
    pub(super) fn talk<P: Packet>(&self, packet: &P) -> Option<Talk> {
        if self.is_icmp() {
            return self.icmp(packet);
        }
        let talk = Talk::Flow {
            ports: self.ports(packet)?,
            role: Role::Any,
        };
        if self.protocol != TCP {
            return Some(talk);
        }
        let [flags] = packet.load(self.payload + 13)?;
        Some(match talk {
            Talk::Flow { ports, .. } if flags & (SYN | ACK) == SYN => Talk::Flow {
                ports,
                role: Role::Opens,
            },
            talk => talk,
        })
    }

    #[inline(always)]
    fn icmp<P: Packet>(&self, packet: &P) -> Option<Talk> {
        let [kind, _, _, _, high, low, _, _]: [u8; 8] = packet.load(self.payload)?;
        let echo = |role| Talk::Flow {
            ports: Ports {
                source: [high, low],
                destination: [high, low],
            },
            role,
        };
        Some(match (self.is_v6, kind) {
            // Echo and time stamp.
            (false, 8 | 13) | (true, 128) => echo(Role::Opens),
            (false, 0 | 14) | (true, 129) => echo(Role::Answers),
            // Unreachable, too big, time exceeded, parameter problem; source quench and redirect of old.
            (false, 3 | 4 | 5 | 11 | 12) | (true, 1..=4) => Talk::Error,
            // Groups and neighbours.
            (true, 130..=137 | 143) => Talk::Link,
            _ => Talk::Flow {
                ports: Ports::default(),
                role: Role::Any,
            },
        })
    }

    /// The ports, or what stands for them; errors have only these of a packet.
    #[inline(always)]
    pub(super) fn ports<P: Packet>(&self, packet: &P) -> Option<Ports> {
        if self.is_icmp() {
            let id = packet.load(self.payload + 4)?;
            return Some(Ports {
                source: id,
                destination: id,
            });
        }
        match self.protocol {
            TCP | UDP | UDP_LITE | SCTP | DCCP => {
                let [a, b, c, d] = packet.load(self.payload)?;
                Some(Ports {
                    source: [a, b],
                    destination: [c, d],
                })
            }
            // The addresses have to do.
            _ => Some(Ports::default()),
        }
    }
}

/// Ports as they are in the packet; of an ICMP echo its identifier, twice.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ports {
    pub(super) source: [u8; 2],
    pub(super) destination: [u8; 2],
}

/// What a packet is to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The first one.
    Opens,
    /// It answers one that opened.
    Answers,
    /// Any.
    Any,
}

/// What a packet is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Talk {
    /// A flow.
    Flow { ports: Ports, role: Role },
    /// What has become of another packet, which it holds the beginning of.
    Error,
    /// The link itself: nobody behind it ever sees that.
    Link,
}
