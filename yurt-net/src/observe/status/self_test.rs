//! How the last self-test ended.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether Services are translated for a process in another cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "result")]
pub enum SelfTest {
    /// Not tried yet.
    #[default]
    Pending,
    /// They are.
    Passed,
    /// They are not meant to be: `--socket-lb off`.
    Skipped,
    /// They are not.
    Failed {
        /// What was seen instead.
        reason: String,
    },
}

impl fmt::Display for SelfTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.write_str("pending"),
            Self::Passed => f.write_str("passed: a process in another cgroup is served"),
            Self::Skipped => f.write_str("skipped: --socket-lb is off"),
            Self::Failed { reason } => write!(f, "FAILED: {reason}"),
        }
    }
}
