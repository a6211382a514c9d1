//! Why a request is refused.

use std::net::IpAddr;

use crate::ledger::Key;

/// A request that cannot be met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Every address has an owner that is alive.
    #[error(
        "no address is free in {ranges}: {used} are in use as far as the ledger knows; enlarge the range, or end what `yurt-net ledger` lists and no longer runs with a GC or a reboot"
    )]
    Exhausted {
        /// The range set.
        ranges: String,
        /// How many are in use.
        used: usize,
    },
    /// No range set has it, or another address that was asked for has taken its set.
    #[error(
        "the requested address {address} is in none of the ranges, or one too many in its range set"
    )]
    NotInRange {
        /// What was asked for.
        address: IpAddr,
    },
    /// The address is another Pod's.
    #[error("address {address} belongs to {owner}, which is {state}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Its owner.
        owner: Key,
        /// `running`, or `expected back`.
        state: &'static str,
    },
    /// CHECK: the container is not in the ledger.
    #[error("the ledger has no active entry for {key} in container {container}")]
    Unknown {
        /// Who.
        key: Key,
        /// In which container.
        container: String,
    },
    /// CHECK, and ADD of `yurt-cni`, for a container that DEL has come for since `yurt-ipam` gave it addresses.
    #[error(
        "container {container} of {key} was deleted while it was being added, and its addresses are kept for the next one"
    )]
    Deleted {
        /// Who.
        key: Key,
        /// In which container.
        container: String,
    },
    /// ADD of `yurt-cni`, for a sandbox whose Pod has a newer one: the addresses are that one's.
    #[error("the sandbox {successor} of {key} was added after this one and has its addresses")]
    Superseded {
        /// Who.
        key: Key,
        /// The newer container.
        successor: String,
    },
    /// DEL: the ADD is still at work.
    #[error(
        "container {container} of {key} was still being added, by process {pid}, when its DEL began: it is to be deleted again"
    )]
    BeingAdded {
        /// Who.
        key: Key,
        /// In which container.
        container: String,
        /// The process that does.
        pid: u32,
    },
    /// CHECK.
    #[error("{key} has {recorded:?} in the ledger, and {claimed:?} in the previous result")]
    Differs {
        /// Who.
        key: Key,
        /// In the ledger.
        recorded: Vec<IpAddr>,
        /// In the request.
        claimed: Vec<IpAddr>,
    },
}
