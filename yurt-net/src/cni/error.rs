//! Why a request is not met, and what a container runtime is told then.

use std::io;
use std::net::AddrParseError;
use std::path::PathBuf;

use super::interface::LinkError;
use crate::device::Mac;
use crate::error::PathError;
use crate::ledger::range::RangeError;
use crate::ledger::rules::Refusal;
use crate::ledger::store::LedgerError;

/// Why a request is not met. The specification has the codes up to 99.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// Not one of ours.
    #[error("cniVersion {version:?} is not supported: use 0.3.1, 0.4.0, 1.0.0 or 1.1.0")]
    Version {
        /// What the configuration says.
        version: String,
    },
    /// The configuration is older than the verb.
    #[error("this verb needs cniVersion {since} or later in the configuration")]
    TooOld {
        /// The first version that has it.
        since: &'static str,
    },
    /// A variable.
    #[error("{name} {problem}")]
    Environment {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Standard input.
    #[error("read the configuration from standard input")]
    Input(#[source] io::Error),
    /// Not the JSON that it should be.
    #[error("the configuration cannot be read")]
    Decode(#[source] serde_json::Error),
    /// No name.
    #[error("the configuration has no name: the network must be called something")]
    NoName,
    /// It becomes a part of paths.
    #[error(
        "the network's name {name:?} holds what no such name may hold: letters, digits, `_`, `.` and `-`, first a letter or digit"
    )]
    BadName {
        /// What it says.
        name: String,
    },
    /// A relative path depends on who calls.
    #[error("{key} {path:?} is not an absolute path")]
    Relative {
        /// Which.
        key: &'static str,
        /// What it says.
        path: String,
    },
    /// The ranges.
    #[error("the ranges cannot be used")]
    Ranges(#[from] RangeError),
    /// `yurt-cni` alone, or first.
    #[error("there is no prevResult: yurt-cni comes after the main plugin in the list")]
    NoPreviousResult,
    /// GC of what is not in a list that is not there would take from everybody.
    #[error("there is no cni.dev/valid-attachments: GC needs the list of what is to stay")]
    NoAttachments,
    /// `IP=`, `ips`.
    #[error("the requested address {text:?} is not an IP address")]
    Requested {
        /// As asked for.
        text: String,
        /// Why not.
        #[source]
        source: AddrParseError,
    },
    /// The rules.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The ledger.
    #[error("the ledger cannot be used")]
    Ledger(#[from] LedgerError),
    /// The clocks of this machine.
    #[error(transparent)]
    Clock(#[from] PathError),
    /// Files of this machine.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The Pod's namespace.
    #[error("open the network namespace {path:?}")]
    Netns {
        /// As the runtime names it.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The Pod's interface.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// CHECK.
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
            // Pods go.
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
