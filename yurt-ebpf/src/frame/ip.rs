//! IP headers, and what they say of what follows.

use super::{Frame, Wire};
use crate::abi::{Words, mapped_words};

// Protocol numbers (IANA).
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// SCTP.
pub const SCTP: u8 = 132;
pub(crate) const ICMP: u8 = 1;
pub(crate) const IGMP: u8 = 2;
/// ICMPv6.
pub const ICMPV6: u8 = 58;
const UDP_LITE: u8 = 136;
const DCCP: u8 = 33;

// Extension headers of IPv6; IPv4 has AH as well.
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;
/// More than anyone sends: the walk over them needs an end.
const MAX_EXTENSION_HEADERS: usize = 4;

// Types of ICMPv6.
pub(crate) const ROUTER_SOLICITATION: u8 = 133;
pub(crate) const ROUTER_ADVERTISEMENT: u8 = 134;
pub(crate) const NEIGHBOUR_SOLICITATION: u8 = 135;
pub(crate) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
pub(crate) const REDIRECT: u8 = 137;

const FRAGMENT4_OFFSET: u16 = 0x1fff_u16.to_be();
const FRAGMENT4_MORE: u16 = 0x2000_u16.to_be();
const FRAGMENT6_OFFSET: u16 = 0xfff8_u16.to_be();
const FRAGMENT6_MORE: u16 = 1_u16.to_be();

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// An IPv4 header without its options.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Ipv4Header {
    /// Version, and the length in words of 32 bits.
    pub first: u8,
    /// Type of service.
    pub service: u8,
    /// Length of the packet in bytes, in network byte order.
    pub length: u16,
    /// Identification: equal in all fragments of a packet.
    pub id: [u8; 2],
    /// Flags and offset of a fragment, in network byte order.
    pub fragment: u16,
    /// Hops that are left.
    pub ttl: u8,
    /// What follows.
    pub protocol: u8,
    /// Checksum of the header.
    pub checksum: [u8; 2],
    /// As in memory.
    pub source: u32,
    /// As in memory.
    pub destination: u32,
}

const _: () = assert!(size_of::<Ipv4Header>() == 20);
// SAFETY: integers and bytes, which fill the size.
unsafe impl Wire for Ipv4Header {}

impl Ipv4Header {
    /// First byte of a header of version 4 without options.
    pub(crate) const PLAIN: u8 = 0x45;

    /// Whether the version is 4, and the header no shorter than it must be.
    #[inline(always)]
    pub const fn is_valid(&self) -> bool {
        self.first >> 4 == 4 && self.first & 0xf >= 5
    }

    /// Length of the header with its options, in bytes.
    #[inline(always)]
    pub const fn length(&self) -> usize {
        (self.first & 0xf) as usize * 4
    }

    /// Which part of a packet this is.
    #[inline(always)]
    pub const fn part(&self) -> Part {
        if self.fragment & FRAGMENT4_OFFSET != 0 {
            Part::Later
        } else if self.fragment & FRAGMENT4_MORE != 0 {
            Part::First
        } else {
            Part::Whole
        }
    }
}

/// An IPv6 header up to its addresses.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Ipv6Header {
    /// Version, and the beginning of the traffic class.
    pub first: u8,
    /// Traffic class and flow label.
    pub flow: [u8; 3],
    /// Bytes that follow, in network byte order.
    pub length: u16,
    /// What follows.
    pub next: u8,
    /// Hops that are left.
    pub hops: u8,
}

const _: () = assert!(size_of::<Ipv6Header>() == Ipv6Header::ADDRESSES);
// SAFETY: integers and bytes, which fill the size.
unsafe impl Wire for Ipv6Header {}

impl Ipv6Header {
    /// Offset of its [`Ipv6Addresses`].
    pub const ADDRESSES: usize = 8;
    /// Length of the header with its addresses, in bytes.
    pub const LENGTH: usize = Self::ADDRESSES + size_of::<Ipv6Addresses>();

    /// Whether the version is 6.
    #[inline(always)]
    pub const fn is_valid(&self) -> bool {
        self.first >> 4 == 6
    }
}

/// The addresses of an IPv6 header. They are read apart: with both in one, the verifier has half as many paths again to
/// walk through the programs of translation.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Ipv6Addresses {
    source: [u64; 2],
    destination: [u64; 2],
}

// SAFETY: integers, which fill the size.
unsafe impl Wire for Ipv6Addresses {}

impl Ipv6Addresses {
    #[inline(always)]
    pub(crate) const fn source(&self) -> Words {
        let [high, low] = self.source;
        (high, low)
    }

    #[inline(always)]
    pub(crate) const fn destination(&self) -> Words {
        let [high, low] = self.destination;
        (high, low)
    }
}

/// What is behind the extension headers of an IPv6 packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Upper {
    /// Its protocol; still that of an extension header where there are more than anyone sends.
    pub(crate) protocol: u8,
    /// Its offset.
    pub(crate) at: usize,
    pub(crate) part: Part,
    /// Identification, which all fragments of a packet share.
    pub(crate) id: [u8; 4],
}

impl Upper {
    /// Walks over the extension headers that hide nothing. A packet in which one of them has no end is unreadable.
    #[inline(always)]
    pub(crate) fn find<F: Frame + ?Sized>(
        frame: &F,
        next: u8,
        at: usize,
        is_walked: impl Fn(u8) -> bool,
    ) -> Self {
        let mut upper = Self {
            protocol: next,
            at,
            part: Part::Whole,
            id: [0; 4],
        };
        for _ in 0..MAX_EXTENSION_HEADERS {
            if !is_walked(upper.protocol) {
                break;
            }
            let Some([next, length, high, low, id @ ..]) = frame.far::<[u8; 8]>(upper.at) else {
                upper.part = Part::Unreadable;
                return upper;
            };
            upper.at += 8;
            if upper.protocol == FRAGMENT {
                let fragment = u16::from_ne_bytes([high, low]);
                upper.id = id;
                if fragment & FRAGMENT6_OFFSET != 0 {
                    upper.protocol = next;
                    upper.part = Part::Later;
                    return upper;
                }
                // Without any more of them it is whole (RFC 6946).
                if fragment & FRAGMENT6_MORE != 0 {
                    upper.part = Part::First;
                }
            } else {
                upper.at += usize::from(length) * 8;
            }
            upper.protocol = next;
        }
        upper
    }
}

/// Which part of a packet is at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment, which has the headers.
    First,
    /// A later fragment, without headers.
    Later,
    /// A packet of which nobody can tell where its payload begins, or whose checksums are about more than its
    /// addresses.
    Unreadable,
}

/// An IP header, and what it says of what follows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ip {
    pub(crate) is_v6: bool,
    /// Offset of the header.
    pub(crate) at: usize,
    pub(crate) source: Words,
    pub(crate) destination: Words,
    /// Protocol of the payload, behind extension headers.
    pub(crate) protocol: u8,
    /// Offset of the payload.
    pub(crate) payload: usize,
    pub(crate) part: Part,
    /// Identification, which all fragments of a packet share.
    pub(crate) id: [u8; 4],
}

/// One of the two addresses of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

impl Ip {
    /// Reads the header at an offset; `None` when no header of that family is there.
    #[inline(always)]
    pub(crate) fn read<F: Frame + ?Sized>(frame: &F, at: usize, is_v6: bool) -> Option<Self> {
        if is_v6 {
            Self::read_v6(frame, at)
        } else {
            Self::read_v4(frame, at)
        }
    }

    #[inline(always)]
    fn read_v4<F: Frame + ?Sized>(frame: &F, at: usize) -> Option<Self> {
        let header: Ipv4Header = frame.far(at)?;
        if !header.is_valid() {
            return None;
        }
        let [i, j] = header.id;
        Some(Self {
            is_v6: false,
            at,
            source: mapped_words(header.source),
            destination: mapped_words(header.destination),
            protocol: header.protocol,
            payload: at + header.length(),
            part: match header.protocol {
                AUTHENTICATION => Part::Unreadable,
                _ => header.part(),
            },
            id: [i, j, 0, 0],
        })
    }

    #[inline(always)]
    fn read_v6<F: Frame + ?Sized>(frame: &F, at: usize) -> Option<Self> {
        let header: Ipv6Header = frame.far(at)?;
        if !header.is_valid() {
            return None;
        }
        let addresses: Ipv6Addresses = frame.far(at + Ipv6Header::ADDRESSES)?;
        let is_walked = |next| matches!(next, HOP_BY_HOP | FRAGMENT | DESTINATION_OPTIONS);
        let upper = Upper::find(frame, header.next, at + Ipv6Header::LENGTH, is_walked);
        Some(Self {
            is_v6: true,
            at,
            source: addresses.source(),
            destination: addresses.destination(),
            protocol: upper.protocol,
            payload: upper.at,
            part: match upper.part {
                Part::Whole | Part::First
                    if matches!(
                        upper.protocol,
                        HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS | AUTHENTICATION
                    ) =>
                {
                    Part::Unreadable
                }
                part => part,
            },
            id: upper.id,
        })
    }

    #[inline(always)]
    pub(crate) fn address(&self, side: Side) -> Words {
        match side {
            Side::Source => self.source,
            Side::Destination => self.destination,
        }
    }

    /// Offset of an address.
    #[inline(always)]
    pub(crate) fn address_at(&self, side: Side) -> usize {
        match (self.is_v6, side) {
            (false, Side::Source) => self.at + 12,
            (false, Side::Destination) => self.at + 16,
            (true, Side::Source) => self.at + 8,
            (true, Side::Destination) => self.at + 24,
        }
    }

    /// Offset of the payload's checksum where it covers the addresses, too.
    #[inline(always)]
    pub(crate) fn sum_at(&self) -> Option<usize> {
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
    pub(crate) fn is_icmp(&self) -> bool {
        self.protocol == if self.is_v6 { ICMPV6 } else { ICMP }
    }

    /// What the packet is about; `None` when it ends before that can be told. Not for a [`Part::Later`].
    #[inline(always)]
    pub(crate) fn talk<F: Frame + ?Sized>(&self, frame: &F) -> Option<Talk> {
        if self.is_icmp() {
            return self.icmp(frame);
        }
        let talk = Talk::Flow {
            ports: self.ports(frame)?,
            role: Role::Any,
        };
        if self.protocol != TCP {
            return Some(talk);
        }
        let flags: u8 = frame.far(self.payload + 13)?;
        Some(match talk {
            Talk::Flow { ports, .. } if flags & (SYN | ACK) == SYN => Talk::Flow {
                ports,
                role: Role::Opens,
            },
            talk => talk,
        })
    }

    #[inline(always)]
    fn icmp<F: Frame + ?Sized>(&self, frame: &F) -> Option<Talk> {
        let [kind, _, _, _, high, low, _, _]: [u8; 8] = frame.far(self.payload)?;
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

    /// The ports, or what stands in for them: nothing else of a packet is sure to be in an error about it.
    #[inline(always)]
    pub(crate) fn ports<F: Frame + ?Sized>(&self, frame: &F) -> Option<Ports> {
        if self.is_icmp() {
            let id = frame.far(self.payload + 4)?;
            return Some(Ports {
                source: id,
                destination: id,
            });
        }
        match self.protocol {
            TCP | UDP | UDP_LITE | SCTP | DCCP => {
                let [a, b, c, d] = frame.far(self.payload)?;
                Some(Ports {
                    source: [a, b],
                    destination: [c, d],
                })
            }
            // Flows of other protocols are told apart by their addresses alone.
            _ => Some(Ports::default()),
        }
    }
}

/// Ports as they are in the packet; of an ICMP echo its identifier, twice.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ports {
    pub(crate) source: [u8; 2],
    pub(crate) destination: [u8; 2],
}

/// The part that a packet plays in its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It opens the flow.
    Opens,
    /// It answers the packet that opened the flow.
    Answers,
    /// Any other packet, or one that cannot be told apart.
    Any,
}

/// What a packet is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Talk {
    /// A flow.
    Flow { ports: Ports, role: Role },
    /// An error about another packet, whose beginning it holds.
    Error,
    /// The link itself (neighbour discovery, groups): no router forwards it.
    Link,
}
