//! Which addresses a frame claims for its sender, and whether they are the sender's: the guard's decision, without the
//! hook.
//!
//! Pure and `no_std`: runs in the kernel over a packet and in tests over bytes. Of a Pod in `yurt_guard` every claim is
//! judged:
//!
//! | frame | must be the Pod's | goes on as well |
//! |---|---|---|
//! | any | source link-layer address | |
//! | VLAN-tagged | nothing helps: a Pod's interface is on one network | |
//! | IPv4 | source | `0.0.0.0`: a DHCP request to `255.255.255.255`; IGMP (RFC 3376, 4.2.13) |
//! | DHCP to a server (port 67) | `chaddr`, whatever the message: a release in another's name takes that one's address | |
//! | ARP | sender's link-layer and IPv4 address | sender `0.0.0.0` that probes for the Pod's own (RFC 5227) |
//! | IPv6 | source, link-local ones too | `::` to a multicast address: duplicate address detection, MLD (RFC 3590) |
//! | neighbour solicitation, router solicitation | link-layer address options; from `::` the target too | |
//! | neighbour advertisement | target, link-layer address options | |
//! | router advertisement, redirect | nothing helps: a Pod is no router of its link | |
//! | DHCP or DHCPv6 to a client (port 68, 546), from whatever port | nothing helps: a Pod is no server of its link | |
//! | neighbour discovery behind extension headers or in fragments | nothing helps: nobody sends it so (RFC 6980, RFC 7113) | MLD |
//!
//! A neighbour discovery message with two link-layer addresses is wrong as well, and so are more options or extension
//! headers than anyone sends.
//!
//! Destinations claim nothing. A first fragment is read as a whole packet is: it has all headers (RFC 7112). Later ones
//! have the source in their own header, and are not looked into. Of a Pod that `yurt_guard` does not know only this
//! is judged: does it use an address, of IP or of the link, that `yurt_owner` gives to somebody else? So is what a Pod
//! was allowed beside its own.

use core::mem::offset_of;

use crate::abi::{
    GUARD_AUDIT, GUARD_ENFORCE, GUARD_MACS, GUARD_PREFIXES, GuardRow, OwnerRow, PlainRow, Prefix4,
    Prefix6, Reason, Words, bytes, mapped_words, words,
};
use crate::frame::ip::{
    DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ICMPV6, IGMP, Ipv4Header, Ipv6Addresses, Ipv6Header,
    NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, Part, REDIRECT, ROUTER_ADVERTISEMENT,
    ROUTER_SOLICITATION, ROUTING, TCP, UDP, Upper,
};
use crate::frame::{
    ETH, ETH_ARP, ETH_IPV4, ETH_IPV6, ETH_SERVICE_VLAN, ETH_SOURCE, ETH_TYPE, ETH_VLAN, Frame,
};

/// `yurt_owner`.
pub trait Owners {
    /// The owner of an address, or `nobody`. IPv4 addresses are IPv4-mapped, link-layer addresses as [`mac_key`] makes
    /// them.
    fn owner_or(&self, nobody: OwnerRow, addr: &[u8; 16]) -> OwnerRow;
}

/// The Pod that has sent a frame.
#[derive(Clone, Copy)]
pub struct Sender<'a, O> {
    /// The Pod's interface on the host's side.
    pub ifindex: u32,
    /// The addresses that it may use; `None` if nothing is known of its Pod.
    pub row: Option<&'a GuardRow>,
    /// The owners of addresses.
    pub owners: &'a O,
}

/// What a frame says of its sender.
///
/// Gathered first and judged then, so that every rule is in the program once. Every field has a value, whatever is
/// claimed: the compiler may look at one that it does not need, and the verifier takes none that is not written.
#[derive(Clone, Copy, Debug)]
pub struct Claims {
    /// Source link-layer address.
    mac: u64,
    /// The sender's link-layer address inside the packet; `mac` if there is none.
    inner_mac: u64,
    /// The reason to report where `inner_mac` is wrong.
    inner_reason: Reason,
    /// IPv4 address; 0 if there is none.
    v4: u32,
    /// The reason to report where `v4` is wrong.
    v4_reason: Reason,
    /// IPv6 source; `::` if there is none.
    source6: Words,
    /// IPv6 address that neighbour discovery is about; `::` if there is none.
    target6: Words,
    /// Why the frame is wrong whatever addresses it claims; `None` where it is not.
    wrong: Option<Reason>,
}

/// The fault of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// The first wrong claim.
    pub reason: Option<Reason>,
    /// Whether the frame claims an address whose owner wants that dropped.
    pub is_enforced_by_owner: bool,
}

const UNSPECIFIED: Words = (0, 0);

const IPV4_PAYLOAD: usize = ETH + size_of::<Ipv4Header>();
const IPV6_LENGTH: usize = ETH + offset_of!(Ipv6Header, length);
const IPV6_ADDRESSES: usize = ETH + Ipv6Header::ADDRESSES;
const IPV6_PAYLOAD: usize = ETH + Ipv6Header::LENGTH;

/// Offset of the destination port in a UDP header. It alone tells a server's message: clients listen there, whatever
/// port it comes from.
const UDP_TO: usize = 2;
const DHCP_SERVER: u16 = 67u16.to_be();
const DHCP_CLIENT: u16 = 68u16.to_be();
const DHCPV6_CLIENT: u16 = 546u16.to_be();
/// Offset of `chaddr`, the client's link-layer address, from the UDP header on.
const DHCP_CHADDR: usize = 8 + 28;

const ARP_FORMAT: usize = ETH;
/// Ethernet and IPv4, in lengths of 6 and 4.
const ARP_ETHERNET_IPV4: u64 = 0x0001_0800_0604_0000u64.to_be();
const ARP_FORMAT_MASK: u64 = 0xffff_ffff_ffff_0000u64.to_be();
const ARP_SENDER_MAC: usize = ETH + 8;
const ARP_SENDER: usize = ETH + 14;
const ARP_TARGET: usize = ETH + 24;

/// Source and target link-layer address.
const ND_LINK_LAYER: [u8; 2] = [1, 2];
/// More options than any sender has: the walk over them needs an end.
const MAX_ND_OPTIONS: usize = 4;

/// Key of a link-layer address in `yurt_owner`, beside those of IP: where multicast addresses are, which are nobody's.
pub const fn mac_key([a, b, c, d, e, f]: [u8; 6]) -> [u8; 16] {
    [0xff, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, e, f, 0, 0]
}

/// The same of an address that [`mac_at`] has read.
const fn mac_words(mac: u64) -> Words {
    (u64::from_ne_bytes([0xff, 0, 0, 0, 0, 0, 0, 0]), mac.to_le())
}

/// A link-layer address in the form that [`mac_at`] reads.
const fn mac_word([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

#[inline(always)]
fn mac_at<F: Frame + ?Sized>(frame: &F, at: usize) -> Option<u64> {
    let head: u32 = frame.near(at)?;
    let tail: u16 = frame.near(at + 4)?;
    let (head, tail) = (u32::from_le(head), u16::from_le(tail));
    Some(u64::from(tail) << 32 | u64::from(head))
}

impl Prefix4 {
    #[inline(always)]
    const fn contains(&self, addr: u32) -> bool {
        (addr ^ u32::from_ne_bytes(self.addr)) & u32::from_ne_bytes(self.mask) == 0
    }
}

impl Prefix6 {
    #[inline(always)]
    const fn contains(&self, (high, low): Words) -> bool {
        let (addr_high, addr_low) = words(&self.addr);
        let (mask_high, mask_low) = words(&self.mask);
        (high ^ addr_high) & mask_high | (low ^ addr_low) & mask_low == 0
    }
}

impl<O: Owners> Sender<'_, O> {
    #[inline(always)]
    fn listing_mac(&self, mac: u64) -> Listing {
        let Some(row) = self.row else {
            return Listing::Unknown;
        };
        if row.macs_len == 0 {
            return Listing::Unknown;
        }
        for (index, known) in (0u32..).zip(&row.macs).take(GUARD_MACS) {
            if index >= row.macs_len {
                break;
            }
            if mac == mac_word(known.addr) {
                return Listing::at(index, 1);
            }
        }
        Listing::Absent
    }

    #[inline(always)]
    fn listing4(&self, addr: u32) -> Listing {
        let Some(row) = self.row else {
            return Listing::Unknown;
        };
        for (index, prefix) in (0u32..).zip(&row.v4).take(GUARD_PREFIXES) {
            if index >= row.v4_len {
                break;
            }
            if prefix.contains(addr) {
                return Listing::at(index, row.v4_own);
            }
        }
        Listing::Absent
    }

    #[inline(always)]
    fn listing6(&self, addr: Words) -> Listing {
        let Some(row) = self.row else {
            return Listing::Unknown;
        };
        for (index, prefix) in (0u32..).zip(&row.v6).take(GUARD_PREFIXES) {
            if index >= row.v6_len {
                break;
            }
            if prefix.contains(addr) {
                return Listing::at(index, row.v6_own);
            }
        }
        Listing::Absent
    }
}

/// How the sender's row lists an address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listing {
    /// There is no row, or it lists no address of this kind.
    Unknown,
    /// Not listed.
    Absent,
    /// It is the Pod's own.
    Own,
    /// The Pod may use it as long as it has no owner.
    Extra,
}

impl Listing {
    #[inline(always)]
    const fn at(index: u32, own: u32) -> Self {
        if index < own { Self::Own } else { Self::Extra }
    }
}

impl Finding {
    #[inline(always)]
    fn blame(&mut self, reason: Reason) {
        if self.reason.is_none() {
            self.reason = Some(reason);
        }
    }

    #[inline(always)]
    fn judge_address<O: Owners>(
        &mut self,
        sender: &Sender<'_, O>,
        listing: Listing,
        reason: Reason,
        addr: Words,
    ) {
        if listing == Listing::Own {
            return;
        }
        let nobody = OwnerRow {
            ifindex: sender.ifindex,
            mode: GUARD_AUDIT,
        };
        let owner = sender.owners.owner_or(nobody, &bytes(addr));
        let is_anothers = owner.ifindex != sender.ifindex;
        if listing == Listing::Absent || is_anothers {
            self.blame(reason);
        }
        self.is_enforced_by_owner |= is_anothers && owner.mode == GUARD_ENFORCE;
    }
}

/// Whether a frame is right and from the first addresses of a Pod, as nearly all are. May be false for a valid frame,
/// never true for a spoofed one.
#[inline(always)]
pub fn is_plain<F: Frame + ?Sized>(frame: &F, is_tagged: bool, row: &PlainRow) -> bool {
    is_plain_or_short(frame, is_tagged, row).unwrap_or(false)
}

#[inline(always)]
fn is_plain_or_short<F: Frame + ?Sized>(
    frame: &F,
    is_tagged: bool,
    row: &PlainRow,
) -> Option<bool> {
    let mac = mac_word(row.mac.addr);
    if is_tagged || mac_at(frame, ETH_SOURCE)? != mac {
        return Some(false);
    }
    let v4 = u32::from_ne_bytes(row.v4);
    match frame.near(ETH_TYPE)? {
        ETH_IPV4 => {
            let header: Ipv4Header = frame.near(ETH)?;
            if v4 == 0 || header.source != v4 {
                return Some(false);
            }
            Some(match header.protocol {
                // With options the ports are elsewhere. A later fragment has none there, and may only look less plain.
                UDP => {
                    let to: u16 = frame.near(IPV4_PAYLOAD + UDP_TO)?;
                    header.first == Ipv4Header::PLAIN && to != DHCP_SERVER && to != DHCP_CLIENT
                }
                _ => true,
            })
        }
        ETH_IPV6 => {
            let header: Ipv6Header = frame.near(ETH)?;
            let addresses: Ipv6Addresses = frame.near(IPV6_ADDRESSES)?;
            let v6 = words(&row.v6);
            if v6 == UNSPECIFIED || addresses.source() != v6 {
                return Some(false);
            }
            Some(match header.next {
                TCP => true,
                UDP => frame.near::<u16>(IPV6_PAYLOAD + UDP_TO)? != DHCPV6_CLIENT,
                ICMPV6 => !(ROUTER_SOLICITATION..=REDIRECT).contains(&frame.near(IPV6_PAYLOAD)?),
                _ => false,
            })
        }
        ETH_ARP => Some(
            v4 != 0
                && frame.near::<u32>(ARP_SENDER)? == v4
                && mac_at(frame, ARP_SENDER_MAC)? == mac
                && frame.near::<u64>(ARP_FORMAT)? & ARP_FORMAT_MASK == ARP_ETHERNET_IPV4,
        ),
        _ => Some(false),
    }
}

impl Claims {
    /// Reads the claims; `None` when the frame, or the readable part of it, ends before all were seen.
    ///
    /// `is_tagged`: the frame came with a VLAN tag, which the kernel has taken off.
    #[inline(always)]
    pub fn of<F: Frame + ?Sized>(frame: &F, is_tagged: bool) -> Option<Self> {
        let mac = mac_at(frame, ETH_SOURCE)?;
        let mut claims = Self {
            mac,
            inner_mac: mac,
            inner_reason: Reason::Mac,
            v4: 0,
            v4_reason: Reason::Ipv4,
            source6: UNSPECIFIED,
            target6: UNSPECIFIED,
            wrong: None,
        };
        match frame.near(ETH_TYPE)? {
            ETH_IPV4 => claims.read_ipv4(frame)?,
            ETH_IPV6 => claims.read_ipv6(frame)?,
            ETH_ARP => claims.read_arp(frame)?,
            ETH_VLAN | ETH_SERVICE_VLAN => claims.wrong = Some(Reason::Vlan),
            _ => {}
        }
        if is_tagged {
            claims.wrong = Some(Reason::Vlan);
        }
        Some(claims)
    }

    /// Judges the claims of a frame.
    #[inline(always)]
    pub fn judge<O: Owners>(&self, sender: &Sender<'_, O>) -> Finding {
        let mut finding = Finding::default();
        let listing = sender.listing_mac(self.mac);
        finding.judge_address(sender, listing, Reason::Mac, mac_words(self.mac));
        if self.v4 != 0 {
            let listing = sender.listing4(self.v4);
            finding.judge_address(sender, listing, self.v4_reason, mapped_words(self.v4));
        }
        if self.source6 != UNSPECIFIED {
            let [first, second, ..] = self.source6.0.to_ne_bytes();
            let is_link_local = first == 0xfe && second & 0xc0 == 0x80;
            let reason = if is_link_local {
                Reason::LinkLocal
            } else {
                Reason::Ipv6
            };
            let listing = sender.listing6(self.source6);
            finding.judge_address(sender, listing, reason, self.source6);
        }
        // One that is the frame's own has been judged.
        if self.inner_mac != self.mac {
            let listing = sender.listing_mac(self.inner_mac);
            let addr = mac_words(self.inner_mac);
            finding.judge_address(sender, listing, self.inner_reason, addr);
        }
        if self.target6 != UNSPECIFIED {
            let listing = sender.listing6(self.target6);
            finding.judge_address(sender, listing, Reason::Nd, self.target6);
        }
        if let Some(reason) = self.wrong
            && sender.row.is_some()
        {
            finding.blame(reason);
        }
        finding
    }

    #[inline(always)]
    fn read_ipv4<F: Frame + ?Sized>(&mut self, frame: &F) -> Option<()> {
        let header: Ipv4Header = frame.near(ETH)?;
        let (source, destination) = (header.source, header.destination);
        let payload = ETH + header.length();
        let udp_to = if header.protocol == UDP && header.part() != Part::Later {
            frame.far(payload + UDP_TO)?
        } else {
            0
        };
        if udp_to == DHCP_SERVER {
            self.inner_mac = mac_word(frame.far(payload + DHCP_CHADDR)?);
            self.inner_reason = Reason::Dhcp;
        }
        if source != 0 {
            self.v4 = source;
            if udp_to == DHCP_CLIENT {
                self.wrong = Some(Reason::Dhcp);
            }
            return Some(());
        }
        let [first, ..] = destination.to_ne_bytes();
        let is_request = udp_to == DHCP_SERVER && destination == u32::MAX;
        if !is_request && (header.protocol != IGMP || first & 0xf0 != 0xe0) {
            self.wrong = Some(Reason::Ipv4);
        }
        Some(())
    }

    #[inline(always)]
    fn read_arp<F: Frame + ?Sized>(&mut self, frame: &F) -> Option<()> {
        if frame.near::<u64>(ARP_FORMAT)? & ARP_FORMAT_MASK != ARP_ETHERNET_IPV4 {
            self.wrong = Some(Reason::Malformed);
            return Some(());
        }
        self.inner_mac = mac_at(frame, ARP_SENDER_MAC)?;
        self.inner_reason = Reason::Arp;
        // From no address, a request means: this is to be mine.
        self.v4 = match frame.near(ARP_SENDER)? {
            0 => frame.near(ARP_TARGET)?,
            sender => sender,
        };
        self.v4_reason = Reason::Arp;
        Some(())
    }

    #[inline(always)]
    fn read_ipv6<F: Frame + ?Sized>(&mut self, frame: &F) -> Option<()> {
        let header: Ipv6Header = frame.near(ETH)?;
        let addresses: Ipv6Addresses = frame.near(IPV6_ADDRESSES)?;
        self.source6 = addresses.source();
        let [first, ..] = addresses.destination().0.to_ne_bytes();
        if self.source6 == UNSPECIFIED && first != 0xff {
            self.wrong = Some(Reason::Ipv6);
        }
        match header.next {
            ICMPV6 => self.read_icmpv6(frame, frame.near(IPV6_PAYLOAD)?, IPV6_PAYLOAD),
            UDP => {
                if frame.near::<u16>(IPV6_PAYLOAD + UDP_TO)? == DHCPV6_CLIENT {
                    self.wrong = Some(Reason::Dhcp);
                }
                Some(())
            }
            next @ (HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) => {
                self.read_behind_extensions(frame, next)
            }
            _ => Some(()),
        }
    }

    #[inline(always)]
    fn read_behind_extensions<F: Frame + ?Sized>(&mut self, frame: &F, first: u8) -> Option<()> {
        let is_walked =
            |next| matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS);
        let Upper {
            protocol, at, part, ..
        } = Upper::find(frame, first, IPV6_PAYLOAD, is_walked);
        match part {
            Part::Whole | Part::First => {}
            Part::Later => return Some(()),
            Part::Unreadable => return None,
        }
        match protocol {
            ICMPV6 => {
                let kind = frame.far(at)?;
                if (ROUTER_SOLICITATION..=REDIRECT).contains(&kind) {
                    self.wrong = Some(Reason::Nd);
                }
                self.read_icmpv6(frame, kind, at)
            }
            UDP => {
                if frame.far::<u16>(at + UDP_TO)? == DHCPV6_CLIENT {
                    self.wrong = Some(Reason::Dhcp);
                }
                Some(())
            }
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS => {
                self.wrong = Some(Reason::Malformed);
                Some(())
            }
            _ => Some(()),
        }
    }

    #[inline(always)]
    fn read_icmpv6<F: Frame + ?Sized>(&mut self, frame: &F, kind: u8, at: usize) -> Option<()> {
        let options = match kind {
            ROUTER_SOLICITATION => at + 8,
            NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => at + 24,
            ROUTER_ADVERTISEMENT | REDIRECT => {
                self.wrong = Some(Reason::Nd);
                return Some(());
            }
            _ => return Some(()),
        };
        // From no address, a solicitation means: this is to be mine.
        if kind == NEIGHBOUR_ADVERTISEMENT
            || kind == NEIGHBOUR_SOLICITATION && self.source6 == UNSPECIFIED
        {
            self.target6 = words(&frame.far(at + 8)?);
        }
        let end = IPV6_PAYLOAD + usize::from(u16::from_be(frame.near(IPV6_LENGTH)?));
        self.read_nd_options(frame, options, end)
    }

    #[inline(always)]
    fn read_nd_options<F: Frame + ?Sized>(
        &mut self,
        frame: &F,
        mut at: usize,
        end: usize,
    ) -> Option<()> {
        for _ in 0..MAX_ND_OPTIONS {
            if at + 8 > end {
                return Some(());
            }
            let [kind, length, mac @ ..]: [u8; 8] = frame.far(at)?;
            if ND_LINK_LAYER.contains(&kind) {
                let mac = mac_word(mac);
                if self.inner_reason == Reason::Nd && self.inner_mac != mac {
                    self.wrong = Some(Reason::Nd);
                }
                self.inner_mac = mac;
                self.inner_reason = Reason::Nd;
            }
            if length == 0 {
                break;
            }
            at += usize::from(length) * 8;
        }
        if at + 8 <= end {
            self.wrong = Some(Reason::Malformed);
        }
        Some(())
    }
}

#[cfg(test)]
mod proptests;
#[cfg(test)]
pub(crate) mod tests;
