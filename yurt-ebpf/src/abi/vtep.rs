//! The map that tells from which link-layer addresses peers send through vxlan tunnels.
//!
//! It is an agent's own and is not pinned, so it has no version.

use super::address::Mac;

/// Most entries of `yurt_vtep`: peers of one pool, for each tunnel that leads to them.
pub const VTEP_PEERS: u32 = 1024;

/// Key of `yurt_vtep`: who sends, and into which tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(8))]
pub struct VtepKey {
    /// Where outer packets come from; IPv4 addresses are IPv4-mapped.
    pub underlay: [u8; 16],
    /// Network identifier.
    pub vni: u32,
    /// UDP port that they are sent to.
    pub port_be: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
}

/// Value of `yurt_vtep`, one for each CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct VtepSeen {
    /// The source of inner frames that this node knows of the peer; the agent sets it.
    pub known: Mac,
    /// The last source that was another one; zero before the first.
    pub other: Mac,
    /// Frames from `known`.
    pub known_frames: u64,
    /// Frames from others.
    pub other_frames: u64,
    /// How often `other` has changed.
    pub others: u64,
}

impl VtepSeen {
    /// Notes a frame.
    #[inline(always)]
    pub fn note(&mut self, source: [u8; 6]) {
        if source == self.known.addr {
            self.known_frames += 1;
            return;
        }
        self.other_frames += 1;
        if source != self.other.addr {
            self.other.addr = source;
            self.others += 1;
        }
    }
}
