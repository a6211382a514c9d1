//! Why a request fails, and what the container runtime is told then.

use std::io;
use std::net::AddrParseError;
use std::path::PathBuf;

use super::interface::LinkError;
use crate::device::Mac;
use crate::error::PathError;
use crate::ledger::range::RangeError;
use crate::ledger::rules::Refusal;
use crate::ledger::store::LedgerError;

/// Why a request fails. Codes below 100 are those of the CNI specification.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// A version of the protocol that these plugins do not speak.
    #[error("cniVersion {version:?} is not supported: use 0.3.1, 0.4.0, 1.0.0 or 1.1.0")]
    Version {
        /// What the configuration says.
        version: String,
    },
    /// The verb is newer than the configuration's version.
    #[error("this verb needs cniVersion {since} or later in the configuration")]
    TooOld {
        /// The first version that has it.
        since: &'static str,
    },
    /// A variable of the environment is missing or wrong.
    #[error("{name} {problem}")]
    Environment {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Standard input cannot be read.
    #[error("read the configuration from standard input")]
    Input(#[source] io::Error),
    /// The configuration is not the JSON that it should be.
    #[error("the configuration cannot be read")]
    Decode(#[source] serde_json::Error),
    /// The network has no name.
    #[error("the configuration has no name: the network must be called something")]
    NoName,
    /// The network's name cannot be part of a path.
    #[error(
        "the network's name {name:?} holds what no such name may hold: letters, digits, `_`, `.` and `-`, first a letter or digit"
    )]
    BadName {
        /// What it says.
        name: String,
    },
    /// A path is relative, so that it would depend on the caller's directory.
    #[error("{key} {path:?} is not an absolute path")]
    Relative {
        /// Which.
        key: &'static str,
        /// What it says.
        path: String,
    },
    /// The ranges of addresses are wrong.
    #[error("the ranges cannot be used")]
    Ranges(#[from] RangeError),
    /// `yurt-cni` is alone in the list, or first.
    #[error("there is no prevResult: yurt-cni comes after the main plugin in the list")]
    NoPreviousResult,
    /// GC without the list of what is to stay would take the addresses of all Pods.
    #[error("there is no cni.dev/valid-attachments: GC needs the list of what is to stay")]
    NoAttachments,
    /// The address asked for by `IP=` or `ips` is not one.
    #[error("the requested address {text:?} is not an IP address")]
    Requested {
        /// As asked for.
        text: String,
        /// Why not.
        #[source]
        source: AddrParseError,
    },
    /// The ledger's rules refuse it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The ledger cannot be read or written.
    #[error("the ledger cannot be used")]
    Ledger(#[from] LedgerError),
    /// A clock of this machine cannot be read.
    #[error(transparent)]
    Clock(#[from] PathError),
    /// A file of this machine cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The Pod's network namespace cannot be opened.
    #[error("open the network namespace {path:?}")]
    Netns {
        /// As the runtime names it.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The Pod's interface cannot be read or set.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// CHECK: the interface has another MAC than it was given.
    #[error("{interface} has the MAC {actual}, and {claimed} in the previous result")]
    OtherMac {
        /// The interface.
        interface: String,
        /// What it has.
        actual: Mac,
        /// What it was given.
        claimed: Mac,
    },
}

impl CniError {
    pub(super) fn code(&self) -> u32 {
        match self {
            Self::Version { .. } | Self::TooOld { .. } => 1,
            Self::Environment { .. } => 4,
            Self::Input(_)
            | Self::Clock(_)
            | Self::Read { .. }
            | Self::Netns { .. }
            | Self::Link(_) => 5,
            Self::Ledger(LedgerError::Locked { .. } | LedgerError::LockLost { .. })
            | Self::Refused(Refusal::BeingAdded { .. }) => 11,
            Self::Ledger(_) => 5,
            Self::Decode(_) => 6,
            Self::NoName
            | Self::BadName { .. }
            | Self::Relative { .. }
            | Self::Ranges(_)
            | Self::NoPreviousResult
            | Self::NoAttachments
            | Self::Requested { .. } => 7,
            // To be tried again: addresses become free as Pods go.
            Self::Refused(Refusal::Exhausted { .. }) => 11,
            Self::Refused(Refusal::NotInRange { .. }) => 100,
            Self::Refused(Refusal::Taken { .. }) => 101,
            Self::Refused(
                Refusal::Unknown { .. }
                | Refusal::Differs { .. }
                | Refusal::Deleted { .. }
                | Refusal::Superseded { .. },
            )
            | Self::OtherMac { .. } => 102,
        }
    }
}
