//! The guard's maps: what each Pod may use, which Pod owns an address, and which frames were wrong.

use super::address::{Mac, Prefix4, Prefix6};

/// Version of the guard's maps: `yurt_guard`, `yurt_plain`, `yurt_owner`, `yurt_spoof`, `yurt_spoof_all`.
pub const GUARD_ABI: u32 = 1;

/// Most link-layer addresses in a [`GuardRow`].
pub const GUARD_MACS: usize = 4;
/// Most prefixes of one family in a [`GuardRow`].
pub const GUARD_PREFIXES: usize = 8;

/// [`GuardRow::mode`], [`OwnerRow::mode`]: wrong frames are counted.
pub const GUARD_AUDIT: u32 = 0;
/// [`GuardRow::mode`], [`OwnerRow::mode`]: wrong frames are counted and dropped.
pub const GUARD_ENFORCE: u32 = 1;

/// Value of `yurt_guard`, by the index of the Pod's interface on the host's side: what the Pod may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct GuardRow {
    /// `GUARD_*`.
    pub mode: u32,
    /// Valid entries of `macs`; with 0 the Pod may use any.
    pub macs_len: u32,
    /// How many entries of `v4`, from the first, are the Pod's own, whatever `yurt_owner` says. It may use the others
    /// while no other interface owns them.
    pub v4_own: u32,
    /// Valid entries of `v4`.
    pub v4_len: u32,
    /// As `v4_own`.
    pub v6_own: u32,
    /// Valid entries of `v6`.
    pub v6_len: u32,
    /// Link-layer addresses; the first is the Pod's own, whatever `yurt_owner` says.
    pub macs: [Mac; GUARD_MACS],
    /// IPv4 addresses, as prefixes.
    pub v4: [Prefix4; GUARD_PREFIXES],
    /// IPv6 addresses, as prefixes; link-local ones too.
    pub v6: [Prefix6; GUARD_PREFIXES],
}

/// Entries of `yurt_plain`: a power of two.
pub const GUARD_PLAIN: u32 = 1024;

/// Value of `yurt_plain`, at the index of the interface modulo [`GUARD_PLAIN`]: of a [`GuardRow`] what nearly all
/// frames need, without a hash lookup. Lossy on purpose: where two interfaces share a place, one of them uses the hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct PlainRow {
    /// The interface; 0 where the entry is free, and while the rest of it is written.
    pub ifindex: u32,
    /// Its Pod's first IPv4 address; zero when it has none.
    pub v4: [u8; 4],
    /// Its Pod's own link-layer address.
    pub mac: Mac,
    /// Its Pod's first IPv6 address; zero when it has none.
    pub v6: [u8; 16],
}

impl PlainRow {
    /// Where an interface has its entry.
    #[inline(always)]
    pub const fn place(ifindex: u32) -> u32 {
        ifindex & (GUARD_PLAIN - 1)
    }
}

/// Value of `yurt_owner`, by address (IPv4 ones are IPv4-mapped, link-layer ones at `ff00::a:b:c:0`): the one interface
/// that may use it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct OwnerRow {
    /// The Pod's interface on the host's side; 0 while the address is kept for a Pod that is away.
    pub ifindex: u32,
    /// `GUARD_*` of the owner: whether another's use of the address is dropped, whatever that other's own mode.
    pub mode: u32,
}

/// Value of `yurt_spoof`, by interface, and of `yurt_spoof_all`: frames by [`Reason`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct SpoofCounts {
    /// Frames that went on.
    pub audited: [u64; REASON_PLACES],
    /// Frames that were dropped.
    pub dropped: [u64; REASON_PLACES],
}

/// What a frame claims that is not the sender's; the first of them, where there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// A source link-layer address.
    Mac = 0,
    /// An IPv4 source.
    Ipv4 = 1,
    /// An IPv6 source that is not link-local.
    Ipv6 = 2,
    /// A link-local IPv6 source.
    LinkLocal = 3,
    /// The sender of an ARP message, or what an ARP probe asks for.
    Arp = 4,
    /// What a neighbour advertisement, a duplicate address detection or a link-layer address option claims; to be a
    /// router.
    Nd = 5,
    /// Another's link-layer address in a DHCP request, or to be a DHCP server.
    Dhcp = 6,
    /// A VLAN tag: to be on another network.
    Vlan = 7,
    /// Headers that end before they say what is claimed, or hide it.
    Malformed = 8,
}

/// Places for reasons: a power of two, so that a program masks an index instead of comparing it.
pub const REASON_PLACES: usize = 16;
/// A name for each reason, as `status` prints it.
pub const REASON_NAMES: [&str; 9] = [
    "mac",
    "ipv4",
    "ipv6",
    "link_local",
    "arp",
    "nd",
    "dhcp",
    "vlan",
    "malformed",
];
