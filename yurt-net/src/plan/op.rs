//! What a plan is made of: rows, writes, and what does not fit.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::model::{AddressFamily, Protocol};
use crate::table::{Backends, ClusterPrefixes, ServiceKey};

/// Key of a frontend row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendKey {
    /// Address.
    pub address: IpAddr,
    /// What the row is for.
    pub port: KeyPort,
}

/// The port part of a row's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyPort {
    /// The address is a known ClusterIP: ports of it that have no row are refused.
    Any,
    /// A frontend's port, TCP or UDP.
    Port(Protocol, u16),
}

/// Value of a frontend row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendRow {
    /// Service index; 0 in a row for [`KeyPort::Any`].
    pub service: u32,
    /// Only for sockets in the node's own network namespace.
    pub is_node_only: bool,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Wait until no program runs that started before.
    Grace,
    /// Replace the prefixes; a switch of one word.
    SetPrefixes(ClusterPrefixes),
    /// Replace a word of the filter: one atomic store.
    SetFilter {
        /// Index.
        word: u32,
        /// All of it.
        bits: u64,
    },
    /// Write a range that nobody can see yet.
    WriteSlots {
        /// First slot.
        base: u32,
        /// Backends of one family, sorted by address and port; never empty.
        backends: Backends,
    },
    /// Switch a service to a range: one atomic store.
    Publish {
        /// Index.
        service: u32,
        /// First slot.
        base: u32,
        /// Number of slots; 0 refuses.
        count: u16,
        /// One more than the last one of this index, wrapping.
        generation: u16,
    },
    /// Add or overwrite a row.
    PutFrontend(FrontendKey, FrontendRow),
    /// Remove a row.
    DeleteFrontend(FrontendKey),
}

/// Ordered writes, and what had to be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be applied in this order.
    pub ops: Vec<Op>,
    /// Service ports that do not fit, sorted.
    pub refused: Vec<Refused>,
    /// True when space was retired that a further plan can use: worth planning again if something was refused.
    pub has_retired: bool,
}

/// A service port that does not fit into a map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refused {
    /// Which one.
    pub service: ServiceKey,
    /// The map that is full.
    pub map: FullMap,
    /// What it still has: nothing, or a set that is valid but not complete.
    pub has_some: bool,
}

/// Maps that can be full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum FullMap {
    /// IPv4 frontends.
    #[serde(rename = "yurt_fe4")]
    Frontends4,
    /// IPv6 frontends.
    #[serde(rename = "yurt_fe6")]
    Frontends6,
    /// Services.
    #[serde(rename = "yurt_svc")]
    Services,
    /// IPv4 backends.
    #[serde(rename = "yurt_slot")]
    Slots4,
    /// IPv6 backends.
    #[serde(rename = "yurt_be6")]
    Slots6,
}

impl FullMap {
    /// The flag that makes it larger.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Frontends4 => "--max-frontends4",
            Self::Frontends6 => "--max-frontends6",
            Self::Services => "--max-services",
            Self::Slots4 => "--max-slots4",
            Self::Slots6 => "--max-slots6",
        }
    }
}

impl fmt::Display for FullMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Frontends4 => "yurt_fe4",
            Self::Frontends6 => "yurt_fe6",
            Self::Services => "yurt_svc",
            Self::Slots4 => "yurt_slot",
            Self::Slots6 => "yurt_be6",
        })
    }
}

impl FullMap {
    pub(super) fn frontends(family: AddressFamily) -> Self {
        match family {
            AddressFamily::V4 => Self::Frontends4,
            AddressFamily::V6 => Self::Frontends6,
        }
    }

    pub(super) fn slots(family: AddressFamily) -> Self {
        match family {
            AddressFamily::V4 => Self::Slots4,
            AddressFamily::V6 => Self::Slots6,
        }
    }
}
