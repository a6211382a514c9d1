//! The errors that end an agent.

use crate::dataplane::{ApplyError, DataplaneError};
use crate::error::PathError;
use crate::host::cgroup::CgroupError;
use crate::node::NodeError;
use crate::source::SourceError;

/// Why the agent does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No cgroup2 hierarchy was found, or not at the path that was given.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A source could not be read at the start. Later the last good state is kept instead.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Maps, programs or links could not be opened or made.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The first table could not be written.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Addresses or devices could not be read.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A thread could not be started, or a signal not be handled.
    #[error(transparent)]
    Io(#[from] PathError),
}
