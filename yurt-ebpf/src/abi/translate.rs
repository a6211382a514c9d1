//! The maps of translation: the address that a Pod has, the one that was promised to it, and the flows that came in at
//! the former.

use super::address::Mac;

/// Version of the maps of translation: `yurt_xlate`, `yurt_live`, `yurt_xl_count`.
pub const TRANSLATE_ABI: u32 = 1;

/// Flows that came in at live addresses and are remembered, of all Pods together: the one that was quiet for longest
/// makes room.
pub const LIVE_FLOWS: u32 = 16384;

/// Value of `yurt_xlate`, by the index of the Pod's interface on the host's side.
///
/// Of each family: the address that the Pod has, and the one that was promised to it; both zero where nothing is
/// translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct TranslateRow {
    /// The address that the Pod has.
    pub live4: [u8; 4],
    /// The address that it is reached at, and appears with.
    pub promised4: [u8; 4],
    /// The address that the Pod has.
    pub live6: [u8; 16],
    /// The address that it is reached at, and appears with.
    pub promised6: [u8; 16],
    /// Its link-layer address, which whoever asks for a promised address is told.
    pub mac: Mac,
}

/// Key of `yurt_live`: a flow of a Pod at its live address, or a packet of such a flow that is in fragments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(8))]
pub struct LiveKey {
    /// The Pod's address; IPv4 ones are IPv4-mapped.
    pub live: [u8; 16],
    /// The other one's.
    pub remote: [u8; 16],
    /// The other one's port, or the identifier of an ICMP echo; of a packet in fragments the first half of its
    /// identification.
    pub remote_port_be: [u8; 2],
    /// The Pod's port; of a packet in fragments the second half of its identification.
    pub local_port_be: [u8; 2],
    /// IANA protocol number.
    pub protocol: u8,
    /// `LIVE_*`.
    pub kind: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// [`LiveKey::kind`]: a flow.
pub const LIVE_FLOW: u8 = 0;
/// [`LiveKey::kind`]: a packet in fragments that the Pod sends.
pub const LIVE_FRAGMENTS: u8 = 1;

/// Value of `yurt_live`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct LiveFlow {
    /// When a packet of it was seen, to within [`LIVE_STEP_NS`]; nanoseconds of `CLOCK_MONOTONIC`.
    pub last_ns: u64,
}

/// A flow without connections is over when it was quiet for so long, as conntrack has it for streams of UDP.
pub const LIVE_QUIET_NS: u64 = 120_000_000_000;
/// How far [`LiveFlow::last_ns`] may be behind: a write for every packet would cost more than it tells.
pub const LIVE_STEP_NS: u64 = 1_000_000_000;

/// What `yurt_xl_count` counts: packets, by what was done with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Translation {
    /// To a Pod, at its promised address, and led to its live one.
    ToPod = 0,
    /// From a Pod, and led to appear with its promised address.
    FromPod = 1,
    /// From a Pod, of a flow that came in at its live address.
    KeptLive = 2,
    /// From a Pod to its own promised address, and led back to it.
    ToItself = 3,
    /// Whoever asked for the promised address by ARP or neighbour discovery was answered.
    Answered = 4,
    /// It should have been translated, but its headers cannot be read: it went on unchanged.
    Unreadable = 5,
}

/// Entries of `yurt_xl_count`: a power of two, so that a number is masked into it.
pub const TRANSLATIONS: u32 = 8;
/// A name for each, as `status` prints it.
pub const TRANSLATION_NAMES: [&str; 6] = [
    "to_pod",
    "from_pod",
    "kept_live",
    "to_itself",
    "answered",
    "unreadable",
];
