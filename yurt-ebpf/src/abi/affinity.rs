//! Session affinity: what a service port says of it, and what is remembered of a client.

use super::service::{Backend4, Backend6};

/// Session affinity of a service port: timeout in seconds (bits 0-16), identity (17-63); 0 = none.
///
/// The identity is a hash of the Service's name and port, not the index in `yurt_svc`: what clients had is kept when
/// the maps are made anew, and shared by the entries of all frontends of the port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Affinity(pub u64);

impl Affinity {
    /// Packs the parts: 17 bits of `seconds`, which hold the day that Kubernetes allows, and 47 of `identity`.
    pub const fn new(seconds: u32, identity: u64) -> Self {
        Self(seconds as u64 & 0x1_ffff | identity << 17)
    }

    /// Whether clients are free to go to another backend each time.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 & 0x1_ffff == 0
    }

    /// Seconds after its last new connection that a client stays with its backend.
    pub const fn seconds(self) -> u32 {
        (self.0 & 0x1_ffff) as u32
    }

    /// Nanoseconds after its last new connection that a client stays with its backend.
    #[inline(always)]
    pub const fn timeout_ns(self) -> u64 {
        (self.0 & 0x1_ffff) * 1_000_000_000
    }

    /// Whose affinity it is.
    #[inline(always)]
    pub const fn identity(self) -> u64 {
        self.0 >> 17
    }
}

/// Key of `yurt_aff4` and `yurt_aff6`: a client and a service port.
///
/// A client is a network namespace: a Pod, or the node and its host-network Pods. kube-proxy takes the source address,
/// which says the same where each Pod has its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct AffinityKey {
    /// Cookie of the client's network namespace.
    pub netns: u64,
    /// [`Affinity::identity`].
    pub identity: u64,
}

/// Value of `yurt_aff4` and `yurt_aff6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct LastBackend<B> {
    /// Where the client's connections go.
    pub backend: B,
    /// When the last of these connections began, nanoseconds of `CLOCK_MONOTONIC`.
    pub last_ns: u64,
}

/// Value of `yurt_aff4`.
pub type Affinity4 = LastBackend<Backend4>;
/// Value of `yurt_aff6`.
pub type Affinity6 = LastBackend<Backend6>;
