//! The parts of a plan: rows, writes, and service ports that do not fit.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Serialize;

use crate::model::{AddressFamily, Protocol};
use crate::table::{Backends, ClusterPrefixes, Scope, ServiceKey};

/// Key of a frontend row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendKey {
    /// Address.
    pub address: IpAddr,
    /// The ports and clients that the row is for.
    pub port: KeyPort,
}

/// The port part of a row's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyPort {
    /// The address is a known ClusterIP: ports of it that have no row are refused, or pass where it is on the node.
    Any,
    /// A port of a frontend, TCP or UDP, for clients of one scope. All clients look for the internal row; an external
    /// row is there only if that row says [`Outside::Apart`].
    Port(Scope, Protocol, u16),
}

impl FrontendKey {
    /// Whether the row is for packets of clients outside alone.
    pub(super) fn is_external(&self) -> bool {
        matches!(self.port, KeyPort::Port(Scope::External, ..))
    }
}

/// What clients outside this node get at an internal row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outside {
    /// Nothing: to them it is no frontend.
    #[default]
    No,
    /// The same set.
    Same,
    /// The set of the external row: its own endpoints, by the policy Local.
    Apart,
}

/// Value of a frontend row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrontendRow {
    /// Service index; 0 in a row for [`KeyPort::Any`].
    pub service: u32,
    /// Only for sockets in the node's own network namespace.
    pub is_node_only: bool,
    /// In a row for [`KeyPort::Any`]: the address is on an interface of the node.
    pub is_on_node: bool,
    /// For which other clients an internal row is, too; `No` in all others.
    pub outside: Outside,
}

/// What one service entry serves. One publish switches all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServedSet {
    /// Of one family, sorted by address and port.
    pub backends: Backends,
    /// `None` for the default terms, which most sets have.
    pub terms: Option<Box<Terms>>,
}

/// The terms on which clients get the backends of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Only clients inside one of these are admitted; empty: all are. Sorted, no range inside another, at most
    /// [`crate::table::MAX_SOURCE_RANGES`].
    pub ranges: Vec<IpNetwork>,
    /// Session affinity: seconds after its last new connection that a client stays with its backend; 0 = not at all.
    pub affinity_seconds: u32,
    /// The key of the affinity table: 47 bits, see [`ServedSet::new`].
    pub affinity_identity: u64,
    /// A client that gets no backend is dropped, not refused.
    pub is_drop: bool,
}

impl ServedSet {
    /// Default terms are left out, so that equal sets compare equal.
    pub fn new(backends: Backends, terms: Terms) -> Self {
        let terms = (terms != Terms::default()).then(|| Box::new(terms));
        Self { backends, terms }
    }

    /// Clients that are admitted; empty: all are.
    pub fn ranges(&self) -> &[IpNetwork] {
        let terms = self.terms.as_ref();
        terms.map(|terms| &*terms.ranges).unwrap_or_default()
    }

    /// Slots that it takes: one for each backend, then one for each range.
    pub fn slots(&self) -> u32 {
        u32::try_from(self.backends.len() + self.ranges().len()).unwrap_or(u32::MAX)
    }

    pub(super) fn has_same_slots(&self, other: &Self) -> bool {
        self.backends == other.backends && self.ranges() == other.ranges()
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Wait until every program that is running now has ended.
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
    /// Write a range that no reader can see yet.
    WriteSlots {
        /// First slot.
        base: u32,
        /// A slot has a backend or a range.
        set: ServedSet,
    },
    /// Switch a service to a range: one atomic store.
    Publish {
        /// Index.
        service: u32,
        /// First slot.
        base: u32,
        /// The contents of the slots.
        set: ServedSet,
        /// The last generation of this index plus one, wrapping.
        generation: u16,
    },
    /// Add or overwrite a row.
    PutFrontend(FrontendKey, FrontendRow),
    /// Remove a row.
    DeleteFrontend(FrontendKey),
}

/// Ordered writes, and the service ports that did not fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be applied in this order.
    pub ops: Vec<Op>,
    /// Service ports that do not fit, sorted.
    pub refused: Vec<Refused>,
    /// True when a further plan may find more space: worth planning again if something was refused.
    pub has_freed: bool,
}

impl Plan {
    /// Whether a set admits only some clients: the programs must then know the addresses of clients.
    pub fn asks_for_clients(&self) -> bool {
        let mut ops = self.ops.iter();
        ops.any(|op| matches!(op, Op::Publish { set, .. } if !set.ranges().is_empty()))
    }
}

/// A service port that does not fit into a map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refused {
    /// Which one.
    pub service: ServiceKey,
    /// The map that is full.
    pub map: FullMap,
    /// Whether a part of it is in the maps: a set that is valid but not complete.
    pub has_some: bool,
    /// Of the shortest of its sets that are in the maps in part: how many endpoints, of how many.
    pub part: Option<(usize, usize)>,
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
    /// All of them, each at its own number.
    pub(super) const ALL: [Self; 5] = [
        Self::Frontends4,
        Self::Frontends6,
        Self::Services,
        Self::Slots4,
        Self::Slots6,
    ];

    /// Whether its entries are those of sets, which may be in the maps in part.
    pub(super) fn is_slots(self) -> bool {
        matches!(self, Self::Slots4 | Self::Slots6)
    }

    /// The flag that makes the map larger.
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
