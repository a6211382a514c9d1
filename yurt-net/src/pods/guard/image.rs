//! The state of the guard in the kernel, and the writes from one state to another. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::pod::Extra;
use crate::device::Mac;

/// What the program does with a frame whose sender is spoofed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Count it, and let it pass.
    #[default]
    Audit,
    /// Count it, and drop it.
    Enforce,
}

/// The addresses that a Pod may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardRow {
    /// What happens to frames with other addresses.
    pub mode: Mode,
    /// Its link-layer addresses, its own first; empty if it may use any.
    pub macs: Vec<[u8; 6]>,
    /// Its own addresses, including link-local ones.
    pub own: Vec<IpNetwork>,
    /// Further addresses, which it may use as long as they have no owner.
    pub extra: Vec<IpNetwork>,
}

impl GuardRow {
    /// What an annotation has granted the Pod.
    pub(super) fn granted(&self) -> Extra {
        Extra {
            prefixes: self.extra.clone(),
            macs: self.macs.iter().skip(1).copied().collect(),
        }
    }

    /// Whether an annotation has granted the Pod anything.
    pub(super) fn is_granted_more(&self) -> bool {
        !self.extra.is_empty() || self.macs.len() > 1
    }
}

/// An address by which a frame identifies its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// An IP address.
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

/// The owner of an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The device of the Pod; `None` while the Pod is away.
    pub ifindex: Option<u32>,
    /// What happens to frames of other Pods with this identity.
    pub mode: Mode,
}

/// The state of the guard in the kernel, as it is or as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardImage {
    /// The rows, by index of the device.
    pub rows: BTreeMap<u32, GuardRow>,
    /// The owners, by IP address or link-layer address.
    pub owners: BTreeMap<Identity, Owner>,
    /// The devices that the program is attached to.
    pub attached: BTreeSet<u32>,
    /// The devices that it was attached to once and no longer is, because another program detached it or the device is
    /// gone.
    pub lost: BTreeSet<u32>,
}

/// A write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuardOp {
    /// Put the row of a device.
    PutRow(u32, GuardRow),
    /// Put the owner of an identity.
    PutOwner(Identity, Owner),
    /// Attach the program to a device.
    Attach(u32),
    /// Detach the program from a device, and forget its counters.
    Detach(u32),
    /// Delete the row of a device.
    DeleteRow(u32),
    /// Delete the owner of an identity.
    DeleteOwner(Identity),
}

/// The writes from one state to another. Every prefix of them is safe: a row is written before the program is attached
/// to its device, and deleted after the program is detached.
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
