//! Translation's decision, without the hook: which address a packet of a Pod gets, and how the packet is changed.
//!
//! Pure and `no_std`: runs in the kernel over a packet and in tests over bytes. A Pod has a *live* address, which its
//! CNI gave it, and a *promised* one, which it had before. Both work:
//!
//! | packet | what happens |
//! |---|---|
//! | to the promised address | is sent to the live one |
//! | to the live address | unchanged; its flow is remembered |
//! | from the live address, of a remembered flow | unchanged |
//! | from the live address, of any other flow | gets the promised address as its source |
//! | from the live address to a multicast address | unchanged: the promised address may not belong to this link |
//! | an ICMP error | like the packet that it quotes, which is changed, too |
//! | a later fragment | like the first one |
//! | ARP request, neighbour solicitation for the promised address | answered in the Pod's name |
//! | other neighbour discovery and multicast; VLANs; anything that is not IP | unchanged |
//!
//! So only flows that came in at the live address have to be remembered. A flow that is forgotten appears with the
//! promised address; flows at the promised address survive everything. **A first packet decides anew**: TCP's SYN and
//! an echo request leave from the promised address, whatever is remembered. **The address that was used last counts**:
//! in protocols without connections, a packet to the promised address forgets that the flow was at the live one.
//!
//! The Pod cannot tell apart two connections from one port of a host to one port of the Pod, one at each address: its
//! stack refuses the second one. Clients choose their ports so that this does not happen in practice.
//!
//! A packet whose headers cannot be read (routing headers, AH, too many extension headers, an end before the ports)
//! passes unchanged, and is counted. The checksum of SCTP does not cover addresses. Flows of ESP, GRE and the like are
//! told apart by addresses alone.

use crate::abi::{
    LIVE_FLOW, LIVE_FRAGMENTS, LiveKey, TranslateRow, Translation, Words, bytes, mapped_words,
    words,
};
use crate::frame::ip::{Ip, Part, Ports, Role, Side, TCP, Talk, UDP};
use crate::frame::sum::{adjust, both, change, change_of_sum};
use crate::frame::{ETH, ETH_ARP, ETH_IPV4, ETH_IPV6, ETH_TYPE, Frame};

mod answer;
pub mod flow;
pub mod hop;
pub mod refusal;

pub use self::answer::{ADVERTISEMENT_FRAME, Asker, arp, neighbour};

/// How a checksum of TCP, UDP or ICMP is updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Addresses of the pseudo header have changed.
    Addresses,
    /// The same in UDP, where zero means that there is no checksum, and a sum of zero is sent as all ones.
    AddressesOfUdp,
    /// Bytes that the checksum covers have changed.
    Bytes,
    /// The same in UDP.
    BytesOfUdp,
}

/// A frame that can be changed. Offsets count from the Ethernet header; `None` means beyond the end.
pub trait Packet: Frame {
    /// Whether there is an Ethernet header. Packets of layer-3 devices have none.
    fn has_link_header(&self) -> bool {
        true
    }
    /// Stores bytes. `is_summed`: a checksum is updated too, so the sum over the packet stays the same.
    fn store<const N: usize>(&mut self, at: usize, to: [u8; N], is_summed: bool) -> Option<()>;
    /// Updates the checksum of an IPv4 header.
    fn follow_header(&mut self, at: usize, change: u32) -> Option<()>;
    /// Updates a checksum behind the IP header.
    fn follow(&mut self, at: usize, change: u32, how: Follow) -> Option<()>;
}

/// The map `yurt_live`: flows that came in at the live address.
pub trait Flows {
    /// Whether a flow is remembered. `fades`: a flow that was quiet for too long is not.
    fn is_live(&mut self, key: &LiveKey, fades: bool) -> bool;
    /// Remembers a flow.
    fn remember(&mut self, key: &LiveKey);
    /// Forgets a flow.
    fn forget(&mut self, key: &LiveKey);
}

/// What the hook does with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it on unchanged.
    Pass,
    /// Pass it on, and count it.
    Counted(Translation),
    /// Send it back to the Pod that sent it.
    Back,
    /// Answer it, if it is an ARP request for the promised address.
    Arp([u8; 4]),
    /// Answer it, if it is a neighbour solicitation for the promised address.
    Neighbour([u8; 16]),
}

/// The addresses of a Pod, of one family.
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

    /// The key of a flow between this Pod and a remote host.
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

/// Whether a frame is IPv6; the verdict on it if it cannot be translated.
#[inline(always)]
fn family<P: Packet>(packet: &P, row: &TranslateRow) -> Result<bool, Verdict> {
    match packet.far(ETH_TYPE) {
        Some(ETH_IPV4) => Ok(false),
        Some(ETH_IPV6) => Ok(true),
        Some(ETH_ARP) if row.promised4 != [0; 4] => Err(Verdict::Arp(row.promised4)),
        _ => Err(Verdict::Pass),
    }
}

/// Decides about a frame on its way to the Pod.
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
            // An answer to a flow that the Pod has opened says nothing new.
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
        replace_inner(packet, &ip, Side::Source, pair.promised, pair.live);
    }
    match rewrite(packet, &ip, Side::Destination, pair.live) {
        Some(()) => Verdict::Counted(Translation::ToPod),
        None => Verdict::Counted(Translation::Unreadable),
    }
}

/// Decides about a frame that the Pod has sent.
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
            replace_inner(packet, &ip, Side::Destination, pair.live, pair.promised);
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

/// Whether the destination is a multicast or broadcast address.
#[inline(always)]
fn is_group(ip: &Ip) -> bool {
    let (high, low) = ip.destination;
    if ip.is_v6 {
        high.to_ne_bytes()[0] == 0xff
    } else {
        low.to_ne_bytes()[4] >= 224
    }
}

/// The key that all fragments of a packet from the Pod share.
#[inline(always)]
fn fragments(pair: &Pair, ip: &Ip) -> LiveKey {
    let [a, b, c, d] = ip.id;
    LiveKey {
        kind: LIVE_FRAGMENTS,
        ..pair.key(ip.destination, [a, b], [c, d], ip.protocol)
    }
}

/// Whether an ICMP error from the Pod is about a packet that came in at its live address.
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

/// Length of the header of an ICMP error. The beginning of the packet that it is about follows.
const ICMP_HEADER: usize = 8;

/// Rewrites an address of a packet.
#[inline(always)]
fn rewrite<P: Packet>(packet: &mut P, ip: &Ip, side: Side, to: Words) -> Option<()> {
    let change = change(ip.address(side), to);
    let sum_at = ip.sum_at();
    // What may fail comes first, while nothing has changed.
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

/// Rewrites an address of the packet that an ICMP error quotes, if it is `from`.
#[inline(always)]
fn replace_inner<P: Packet>(packet: &mut P, ip: &Ip, side: Side, from: Words, to: Words) {
    let Some(inner) = Ip::read(packet, ip.payload + ICMP_HEADER, ip.is_v6) else {
        return;
    };
    if inner.address(side) == from {
        rewrite_inner(packet, ip, &inner, side, to, None);
    }
}

/// Rewrites an address of the packet that an ICMP error quotes, and with `ports` its port from the first to the second
/// of them. The checksums of the quoted packet and of the error are updated, as far as the quotation includes them.
#[inline(always)]
fn rewrite_inner<P: Packet>(
    packet: &mut P,
    ip: &Ip,
    inner: &Ip,
    side: Side,
    to: Words,
    ports: Option<([u8; 2], [u8; 2])>,
) {
    let address = change(inner.address(side), to);
    let mut ends = address;
    if let Some((from, to)) = ports {
        let at = match side {
            Side::Source => inner.payload,
            Side::Destination => inner.payload + 2,
        };
        if packet.store(at, to, true).is_some() {
            ends = both(ends, change_of_sum(from, to));
        }
    }
    let mut all = ends;
    if !inner.is_v6
        && let Some(more) = replace_sum(packet, inner.at + 10, address, false)
    {
        all = both(all, more);
    }
    if let Some(at) = inner.sum_at()
        && let Some(more) = replace_sum(packet, at, ends, inner.protocol == UDP)
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

/// Updates a checksum in a quoted packet, and returns how that changes the sum of the message; `None` if it is not
/// included.
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

/// The IPv4 address in an IPv4-mapped one.
#[inline(always)]
fn tail4((_, low): Words) -> [u8; 4] {
    let [_, _, _, _, a, b, c, d] = low.to_ne_bytes();
    [a, b, c, d]
}

/// Sends a frame back to where it came from.
#[inline(always)]
fn turn<P: Packet>(packet: &mut P) -> Option<()> {
    if !packet.has_link_header() {
        return Some(());
    }
    let [a, b, c, d, e, f, g, h, i, j, k, l]: [u8; 12] = packet.far(0)?;
    // No checksum covers these bytes.
    packet.store(0, [g, h, i, j, k, l, a, b, c, d, e, f], true)
}

#[cfg(test)]
mod tests;
