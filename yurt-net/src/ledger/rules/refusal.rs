//! Why a request is refused.

use std::net::IpAddr;

use crate::ledger::Key;

/// A request that cannot be met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Every address has an owner that is alive.
    #[error(
        "no address is free in {ranges}: the ledger has {used} in use; enlarge the range, or have a GC or a reboot free what `yurt-net ledger` lists and no longer runs"
    )]
    Exhausted {
        /// The range set.
        ranges: String,
        /// How many are in use.
        used: usize,
    },
    /// No range set has the address, or another requested address has taken its set.
    #[error(
        "the requested address {address} is in no range, or another requested address has taken its range set"
    )]
    NotInRange {
        /// The requested address.
        address: IpAddr,
    },
    /// The address has another owner.
    #[error("address {address} belongs to {owner}, which is {state}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Its owner.
        owner: Key,
        /// What its owner is: `running`, or `expected back`.
        state: &'static str,
    },
    /// CHECK: the container is not in the ledger.
    #[error("the ledger has no active entry for {key} in container {container}")]
    Unknown {
        /// The interface.
        key: Key,
        /// The container.
        container: String,
    },
    /// CHECK, and ADD of `yurt-cni`, after a DEL that came when `yurt-ipam` had given the container its addresses.
    #[error(
        "container {container} of {key} was deleted while it was being added, and its addresses are kept for the next one"
    )]
    Deleted {
        /// The interface.
        key: Key,
        /// The container.
        container: String,
    },
    /// ADD of `yurt-cni`, for a sandbox whose Pod has a newer one, which has the addresses.
    #[error("the sandbox {successor} of {key} was added after this one and has its addresses")]
    Superseded {
        /// The interface.
        key: Key,
        /// The newer container.
        successor: String,
    },
    /// DEL, while the ADD is still at work.
    #[error(
        "container {container} of {key} was still being added, by process {pid}, when its DEL began: delete it again"
    )]
    BeingAdded {
        /// The interface.
        key: Key,
        /// The container.
        container: String,
        /// The process that is at work.
        pid: u32,
    },
    /// CHECK: the previous result and the ledger differ.
    #[error("{key} has {recorded:?} in the ledger, and {claimed:?} in the previous result")]
    Differs {
        /// The interface.
        key: Key,
        /// The addresses in the ledger.
        recorded: Vec<IpAddr>,
        /// The addresses in the previous result.
        claimed: Vec<IpAddr>,
    },
}
