//! What the kernel holds of the guard, and the writes from one such image to another. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::pod::Extra;
use crate::device::Mac;

/// What happens to a frame that claims what is not its sender's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// It is counted.
    #[default]
    Audit,
    /// And dropped.
    Enforce,
}

/// What a Pod may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardRow {
    /// What happens otherwise.
    pub mode: Mode,
    /// Link-layer addresses, its own first; empty: any.
    pub macs: Vec<[u8; 6]>,
    /// Its own addresses, link-local ones too.
    pub own: Vec<IpNetwork>,
    /// Others, where nobody owns them.
    pub extra: Vec<IpNetwork>,
}

impl GuardRow {
    /// What an annotation has given the Pod.
    pub(super) fn granted(&self) -> Extra {
        Extra {
            prefixes: self.extra.clone(),
            macs: self.macs.iter().skip(1).copied().collect(),
        }
    }

    /// Whether that is anything.
    pub(super) fn is_granted_more(&self) -> bool {
        !self.extra.is_empty() || self.macs.len() > 1
    }
}

/// What a frame names its sender by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// An address.
    Ip(IpAddr),
    /// A link-layer address.
    Mac([u8; 6]),
}

impl From<IpAddr> for Identity {
    fn from(address: IpAddr) -> Self {
        Self::Ip(address)
    }
}

impl From<[u8; 6]> for Identity {
    fn from(mac: [u8; 6]) -> Self {
        Self::Mac(mac)
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Mac(mac) => write!(f, "{}", Mac(*mac)),
        }
    }
}

/// Whose an identity is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The device of the Pod; `None` while it is away.
    pub ifindex: Option<u32>,
    /// What happens to frames of others that claim it.
    pub mode: Mode,
}

/// All that the kernel holds, or should.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardImage {
    /// By device.
    pub rows: BTreeMap<u32, GuardRow>,
    /// By address, of IP and of the link.
    pub owners: BTreeMap<Identity, Owner>,
    /// The devices that the guard is on.
    pub attached: BTreeSet<u32>,
    /// Devices that it was on, and is no more: somebody has detached it, or they are gone.
    pub lost: BTreeSet<u32>,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuardOp {
    /// A Pod may use this.
    PutRow(u32, GuardRow),
    /// An identity is this one's.
    PutOwner(Identity, Owner),
    /// The guard is to be on this device.
    Attach(u32),
    /// The guard is to be on this device no more, and what it counted there is to be forgotten.
    Detach(u32),
    /// Nothing is known of the Pod on this device any more.
    DeleteRow(u32),
    /// An identity is nobody's.
    DeleteOwner(Identity),
}

/// The writes from one image to another, in an order of which every prefix is safe: what a Pod may use is written before
/// the guard is on its device, and goes after it.
pub fn plan(observed: &GuardImage, wanted: &GuardImage) -> Vec<GuardOp> {
    let mut ops = Vec::new();
    for (ifindex, row) in &wanted.rows {
        if observed.rows.get(ifindex) != Some(row) {
            ops.push(GuardOp::PutRow(*ifindex, row.clone()));
        }
    }
    for (addr, owner) in &wanted.owners {
        if observed.owners.get(addr) != Some(owner) {
            ops.push(GuardOp::PutOwner(*addr, *owner));
        }
    }
    let attach = wanted.attached.difference(&observed.attached);
    ops.extend(attach.copied().map(GuardOp::Attach));
    let ever = observed.attached.union(&observed.lost);
    let detach = ever.filter(|ifindex| !wanted.attached.contains(ifindex));
    ops.extend(detach.copied().map(GuardOp::Detach));
    let rows = observed.rows.keys();
    let rows = rows.filter(|ifindex| !wanted.rows.contains_key(ifindex));
    ops.extend(rows.copied().map(GuardOp::DeleteRow));
    let owners = observed.owners.keys();
    let owners = owners.filter(|addr| !wanted.owners.contains_key(addr));
    ops.extend(owners.copied().map(GuardOp::DeleteOwner));
    ops
}
