//! Which address a packet of a Pod gets, and how the packet is changed: translation's decision, without the hook.
//!
//! Pure and `no_std`: runs in the kernel over a packet and in tests over bytes. A Pod has a *live* address, which its CNI
//! gave it, and a *promised* one, which it had before. Both work:
//!
//! | packet | what happens |
//! |---|---|
//! | to the promised address | goes to the live one |
//! | to the live address | as it is; its flow is remembered |
//! | from the live address, of a flow that is remembered | as it is |
//! | from the live address, any other | appears to come from the promised one |
//! | from the live address to a group | as it is: groups are the link's, where the promised address may not belong |
//! | an ICMP error | as the packet in it, which is changed too |
//! | a later fragment | as the first one |
//! | ARP request, neighbour solicitation for the promised address | answered in the Pod's name |
//! | neighbour discovery and groups otherwise; VLANs; anything that is not IP | as it is |
//!
//! So only flows that came in at the live address need memory. A flow that is forgotten appears with the promised address; flows at
//! that one survive everything. **A first packet decides anew** (TCP's SYN, an echo request): it comes from the
//! promised address whatever is remembered. **The last one asked for counts**: a packet to the promised address of a flow
//! without connections forgets that it was at the live one.
//!
//! Two connections from one port of one host to one port of the Pod, one at each address, are one to the Pod: the second is
//! refused by its stack. Clients choose their ports so that this does not happen in practice.
//!
//! A packet whose headers cannot be read (routing headers, AH, more extension headers than anyone sends, an end before the ports)
//! goes on unchanged, and is counted. SCTP has no checksum over addresses; ESP, GRE and others are told apart by addresses alone.

use crate::abi::{
    LIVE_FLOW, LIVE_FRAGMENTS, LiveKey, TranslateRow, Translation, Words, bytes, mapped_words,
    words,
};
use crate::frame::ip::{Ip, Part, Ports, Role, Side, TCP, Talk, UDP};
use crate::frame::sum::{adjust, both, change, change_of_sum};
use crate::frame::{ETH, ETH_ARP, ETH_IPV4, ETH_IPV6, ETH_TYPE, Frame};

mod answer;
pub mod flow;

pub use self::answer::{ADVERTISEMENT_FRAME, Asker, arp, neighbour};

/// How a checksum of TCP, UDP or ICMP takes part in a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Addresses changed, which it is about.
    Addresses,
    /// The same of UDP: zero means that there is none, and none becomes zero.
    AddressesOfUdp,
    /// Bytes changed that it is about.
    Bytes,
    /// The same of UDP.
    BytesOfUdp,
}

/// A frame that can be changed, from its Ethernet header on. Offsets are from there; `None` is beyond the end.
pub trait Packet: Frame {
    /// Puts bytes there. `is_summed`: a checksum follows, so that the sum of the packet is the same.
    fn store<const N: usize>(&mut self, at: usize, to: [u8; N], is_summed: bool) -> Option<()>;
    /// Has the checksum of an IPv4 header follow.
    fn follow_header(&mut self, at: usize, change: u32) -> Option<()>;
    /// Has a checksum of what is behind the header follow.
    fn follow(&mut self, at: usize, change: u32, how: Follow) -> Option<()>;
}

/// `yurt_live`.
pub trait Flows {
    /// Whether a flow is remembered; `fades`: only while it is not quiet for too long.
    fn is_live(&mut self, key: &LiveKey, fades: bool) -> bool;
    /// Remembers one.
    fn remember(&mut self, key: &LiveKey);
    /// Forgets one.
    fn forget(&mut self, key: &LiveKey);
}

/// What is done with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on unchanged.
    Pass,
    /// It goes on, and is counted.
    Counted(Translation),
    /// It goes back to the Pod that sent it.
    Back,
    /// It may be a request by ARP for the promised address.
    Arp([u8; 4]),
    /// It may be one by neighbour discovery.
    Neighbour([u8; 16]),
}

/// The addresses of a Pod of one family.
#[derive(Clone, Copy)]
struct Pair {
    live: Words,
    promised: Words,
}

impl Pair {
    #[inline(always)]
    fn of(row: &TranslateRow, is_v6: bool) -> Option<Self> {
        let none = if is_v6 {
            row.promised6 == [0; 16]
        } else {
            row.promised4 == [0; 4]
        };
        if none {
            return None;
        }
        Some(if is_v6 {
            Self {
                live: words(&row.live6),
                promised: words(&row.promised6),
            }
        } else {
            Self {
                live: mapped_words(u32::from_ne_bytes(row.live4)),
                promised: mapped_words(u32::from_ne_bytes(row.promised4)),
            }
        })
    }

    /// The flow of a packet between this Pod and another one.
    #[inline(always)]
    fn key(
        &self,
        remote: Words,
        remote_port_be: [u8; 2],
        local_port_be: [u8; 2],
        protocol: u8,
    ) -> LiveKey {
        LiveKey {
            live: bytes(self.live),
            remote: bytes(remote),
            remote_port_be,
            local_port_be,
            protocol,
            kind: LIVE_FLOW,
            pad: [0; 2],
        }
    }
}

/// Whether a frame that may be translated is of IPv6, else the verdict on it.
#[inline(always)]
fn family<P: Packet>(packet: &P, row: &TranslateRow) -> Result<bool, Verdict> {
    match packet.far(ETH_TYPE) {
        Some(ETH_IPV4) => Ok(false),
        Some(ETH_IPV6) => Ok(true),
        Some(ETH_ARP) if row.promised4 != [0; 4] => Err(Verdict::Arp(row.promised4)),
        _ => Err(Verdict::Pass),
    }
}

/// A frame on its way to the Pod.
#[inline(always)]
pub fn to_pod<P: Packet, F: Flows>(packet: &mut P, row: &TranslateRow, flows: &mut F) -> Verdict {
    let is_v6 = match family(packet, row) {
        Ok(is_v6) => is_v6,
        Err(verdict) => return verdict,
    };
    let Some(pair) = Pair::of(row, is_v6) else {
        return Verdict::Pass;
    };
    let Some(ip) = Ip::read(packet, ETH, is_v6) else {
        return Verdict::Pass;
    };
    let talk = match ip.part {
        Part::Whole | Part::First => ip.talk(packet),
        Part::Later | Part::Unreadable => None,
    };
    if let Some(Talk::Link) = talk {
        return Verdict::Neighbour(bytes(pair.promised));
    }
    let is_promised = ip.destination == pair.promised;
    if !is_promised && ip.destination != pair.live {
        return Verdict::Pass;
    }
    if let Some(Talk::Flow { ports, role }) = talk {
        let key = pair.key(ip.source, ports.source, ports.destination, ip.protocol);
        if !is_promised {
            // An answer to what the Pod has opened says nothing new.
            if role != Role::Answers {
                flows.remember(&key);
            }
        } else if role == Role::Opens || role == Role::Any && ip.protocol != TCP {
            flows.forget(&key);
        }
    }
    if !is_promised {
        return Verdict::Pass;
    }
    let is_readable = talk.is_some() || ip.part == Part::Later;
    if !is_readable {
        return Verdict::Counted(Translation::Unreadable);
    }
    if let Some(Talk::Error) = talk {
        rewrite_inner(packet, &ip, Side::Source, pair.promised, pair.live);
    }
    match rewrite(packet, &ip, Side::Destination, pair.live) {
        Some(()) => Verdict::Counted(Translation::ToPod),
        None => Verdict::Counted(Translation::Unreadable),
    }
}

/// A frame that the Pod has sent.
#[inline(always)]
pub fn from_pod<P: Packet, F: Flows>(packet: &mut P, row: &TranslateRow, flows: &mut F) -> Verdict {
    let is_v6 = match family(packet, row) {
        Ok(is_v6) => is_v6,
        Err(verdict) => return verdict,
    };
    let Some(pair) = Pair::of(row, is_v6) else {
        return Verdict::Pass;
    };
    let Some(ip) = Ip::read(packet, ETH, is_v6) else {
        return Verdict::Pass;
    };
    let talk = match ip.part {
        Part::Whole | Part::First => ip.talk(packet),
        Part::Later | Part::Unreadable => None,
    };
    if let Some(Talk::Link) = talk {
        return Verdict::Neighbour(bytes(pair.promised));
    }
    if ip.source != pair.live || is_group(&ip) {
        return Verdict::Pass;
    }
    let is_live = match talk {
        Some(Talk::Flow { ports, role }) => {
            let key = pair.key(ip.destination, ports.destination, ports.source, ip.protocol);
            if role == Role::Opens {
                if ip.protocol == TCP {
                    flows.forget(&key);
                }
                false
            } else {
                flows.is_live(&key, ip.protocol != TCP)
            }
        }
        Some(Talk::Error) => is_error_about_live(packet, &ip, &pair, flows),
        Some(Talk::Link) | None if ip.part == Part::Later => {
            flows.is_live(&fragments(&pair, &ip), true)
        }
        Some(Talk::Link) | None => return Verdict::Counted(Translation::Unreadable),
    };
    if ip.part == Part::First {
        if is_live {
            flows.remember(&fragments(&pair, &ip));
        } else {
            flows.forget(&fragments(&pair, &ip));
        }
    }
    if !is_live {
        if let Some(Talk::Error) = talk {
            rewrite_inner(packet, &ip, Side::Destination, pair.live, pair.promised);
        }
        if rewrite(packet, &ip, Side::Source, pair.promised).is_none() {
            return Verdict::Counted(Translation::Unreadable);
        }
    }
    if ip.destination == pair.promised {
        return match turn(packet) {
            Some(()) => Verdict::Back,
            None => Verdict::Counted(Translation::Unreadable),
        };
    }
    Verdict::Counted(if is_live {
        Translation::KeptLive
    } else {
        Translation::FromPod
    })
}

/// Whether it is sent to a group or a broadcast address.
#[inline(always)]
fn is_group(ip: &Ip) -> bool {
    let (high, low) = ip.destination;
    if ip.is_v6 {
        high.to_ne_bytes()[0] == 0xff
    } else {
        low.to_ne_bytes()[4] >= 224
    }
}

/// What the fragments of a packet that the Pod sends have in common.
#[inline(always)]
fn fragments(pair: &Pair, ip: &Ip) -> LiveKey {
    let [a, b, c, d] = ip.id;
    LiveKey {
        kind: LIVE_FRAGMENTS,
        ..pair.key(ip.destination, [a, b], [c, d], ip.protocol)
    }
}

/// Whether an error that the Pod sends is about a packet that came in at its live address.
#[inline(always)]
fn is_error_about_live<P: Packet, F: Flows>(
    packet: &P,
    ip: &Ip,
    pair: &Pair,
    flows: &mut F,
) -> bool {
    let Some(inner) = Ip::read(packet, ip.payload + ICMP_HEADER, ip.is_v6) else {
        return false;
    };
    if inner.destination != pair.live || !matches!(inner.part, Part::Whole | Part::First) {
        return false;
    }
    let Some(Ports {
        source,
        destination,
    }) = inner.ports(packet)
    else {
        return false;
    };
    let key = pair.key(inner.source, source, destination, inner.protocol);
    flows.is_live(&key, inner.protocol != TCP)
}

/// Of an error; the beginning of the packet follows.
const ICMP_HEADER: usize = 8;

/// Gives a packet another address.
#[inline(always)]
fn rewrite<P: Packet>(packet: &mut P, ip: &Ip, side: Side, to: Words) -> Option<()> {
    let change = change(ip.address(side), to);
    let sum_at = ip.sum_at();
    // What may fail comes first: then nothing has changed.
    if let Some(at) = sum_at {
        let how = if ip.protocol == UDP {
            Follow::AddressesOfUdp
        } else {
            Follow::Addresses
        };
        packet.follow(at, change, how)?;
    }
    let at = ip.address_at(side);
    if ip.is_v6 {
        packet.store(at, bytes(to), sum_at.is_some())
    } else {
        packet.follow_header(ip.at + 10, change)?;
        packet.store(at, tail4(to), true)
    }
}

/// Gives the packet that an error holds the beginning of another address, if it has the one that is to be changed. Its own checksums
/// and that of the error follow, as far as they are there.
#[inline(always)]
fn rewrite_inner<P: Packet>(packet: &mut P, ip: &Ip, side: Side, from: Words, to: Words) {
    let Some(inner) = Ip::read(packet, ip.payload + ICMP_HEADER, ip.is_v6) else {
        return;
    };
    if inner.address(side) != from {
        return;
    }
    let address = change(from, to);
    let mut all = address;
    if !inner.is_v6
        && let Some(more) = replace_sum(packet, inner.at + 10, address, false)
    {
        all = both(all, more);
    }
    if let Some(at) = inner.sum_at()
        && let Some(more) = replace_sum(packet, at, address, inner.protocol == UDP)
    {
        all = both(all, more);
    }
    let at = inner.address_at(side);
    let _ = if inner.is_v6 {
        packet.store(at, bytes(to), true)
    } else {
        packet.store(at, tail4(to), true)
    };
    let _ = packet.follow(ip.payload + 2, all, Follow::Bytes);
}

/// Has a checksum inside a message follow; what that changes in the message. `None` where it has not all of it.
#[inline(always)]
fn replace_sum<P: Packet>(packet: &mut P, at: usize, change: u32, is_udp: bool) -> Option<u32> {
    let old: [u8; 2] = packet.far(at)?;
    if is_udp && old == [0; 2] {
        return None;
    }
    let mut new = adjust(old, change);
    if is_udp && new == [0; 2] {
        new = [0xff; 2];
    }
    packet.store(at, new, true)?;
    Some(change_of_sum(old, new))
}

/// The IPv4 address of an IPv4-mapped one.
#[inline(always)]
fn tail4((_, low): Words) -> [u8; 4] {
    let [_, _, _, _, a, b, c, d] = low.to_ne_bytes();
    [a, b, c, d]
}

/// Sends a frame to where it came from.
#[inline(always)]
fn turn<P: Packet>(packet: &mut P) -> Option<()> {
    let [a, b, c, d, e, f, g, h, i, j, k, l]: [u8; 12] = packet.far(0)?;
    // Of no checksum.
    packet.store(0, [g, h, i, j, k, l, a, b, c, d, e, f], true)
}

#[cfg(test)]
mod tests;
