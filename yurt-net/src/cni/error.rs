//! The reasons why a request fails, and what the container runtime is told.

use std::io;
use std::net::AddrParseError;
use std::path::PathBuf;

use super::interface::LinkError;
use crate::device::Mac;
use crate::error::PathError;
use crate::ledger::range::RangeError;
use crate::ledger::rules::Refusal;
use crate::ledger::store::LedgerError;

/// The reason why a request fails. Codes below 100 are those of the CNI specification.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// A version of the protocol that these plugins do not speak.
    #[error("cniVersion {version:?} is not supported: use 0.3.1, 0.4.0, 1.0.0 or 1.1.0")]
    Version {
        /// The version in the configuration.
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
        /// Its fault.
        problem: &'static str,
    },
    /// Standard input cannot be read.
    #[error("read the configuration from standard input")]
    Input(#[source] io::Error),
    /// The configuration is not the JSON that it should be.
    #[error("the configuration cannot be read")]
    Decode(#[source] serde_json::Error),
    /// The network has no name.
    #[error("the configuration has no name: name the network")]
    NoName,
    /// The network's name cannot be part of a path.
    #[error(
        "the network's name {name:?} is not valid: use letters, digits, `_`, `.` and `-`, beginning with a letter or digit"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// A path is relative, so it would depend on the caller's directory.
    #[error("{key} {path:?} is not an absolute path")]
    Relative {
        /// Its key in the configuration.
        key: &'static str,
        /// The path.
        path: String,
    },
    /// The ranges of addresses are wrong.
    #[error("the ranges cannot be used")]
    Ranges(#[from] RangeError),
    /// `yurt-cni` is alone in the list, or comes first.
    #[error("there is no prevResult: yurt-cni comes after the main plugin in the list")]
    NoPreviousResult,
    /// GC without the list of attachments to keep would free the addresses of all Pods.
    #[error("there is no cni.dev/valid-attachments: GC needs the list of attachments to keep")]
    NoAttachments,
    /// The address in `IP=` or `ips` is not an IP address.
    #[error("the requested address {text:?} is not an IP address")]
    Requested {
        /// The text.
        text: String,
        /// The parser's error.
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
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The Pod's network namespace cannot be opened.
    #[error("open the network namespace {path:?}")]
    Netns {
        /// The path that the runtime names.
        path: String,
        /// The cause.
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
        /// The MAC that it has.
        actual: Mac,
        /// The MAC in the previous result.
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
            // The runtime should try again: addresses become free as Pods go.
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
