//! `load`: puts the Services of the checkpoint into the kernel before kubelet starts, without an agent.

use std::io;

use super::check::{needs_newer, release};
use super::ledger::age;
use crate::agent::{self, AgentError, Load};
use crate::config::Record;
use crate::config::flags::LoadArgs;
use crate::host::clock::unix_seconds;
use crate::host::disk::errand::{SILENCE, once};
use crate::observe::status::SelfTest;
use crate::output::print;
use crate::pods::settings::{Settings as _, SettingsError};
use crate::text;

/// Why nothing was loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// On this kernel kube-proxy, or whatever serves this node, is left alone.
    #[error("nothing was loaded: {remedy}, and this is Linux {release}")]
    OldKernel {
        /// The kernel's.
        release: String,
        /// The oldest that will do.
        remedy: String,
    },
    /// The disk.
    #[error("{0}: {SILENCE}")]
    Silent(String),
    /// What an agent left.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The agent of another version left it.
    #[error("{path}: this version does not know what an agent was told: {}", text::line(error.trim()))]
    Record {
        /// The file.
        path: String,
        /// The cause.
        error: String,
    },
    /// The kernel.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The checkpoint.
    #[error("nothing was loaded: {0}")]
    Checkpoint(String),
    /// What is in force does not work.
    #[error("{0} is in force, but a process in another cgroup is not served: {1}")]
    SelfTest(String, String),
    /// Standard output.
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// Loads, and says what was loaded. That there is nothing to load is no error.
pub async fn load(args: &LoadArgs) -> Result<(), LoadError> {
    let release = release();
    if let Some(remedy) = needs_newer(&release) {
        return Err(LoadError::OldKernel { release, remedy });
    }
    let state_dir = args.state_dir.clone();
    let record = once(move || Record::load(&state_dir)).await;
    let record = record.ok_or_else(|| LoadError::Silent(args.state_dir.display().to_string()))?;
    let Some(record) = record? else {
        return Ok(print("nothing to load: no agent has served this node\n")?);
    };
    let config = record
        .config(&args.state_dir)
        .map_err(|error| LoadError::Record {
            path: args.state_dir.join(Record::FILE).display().to_string(),
            error,
        })?;
    let what = match agent::load(config).await? {
        Load::Before => "nothing to load: a table is in force already\n".to_owned(),
        Load::Nothing(None) => "nothing to load: there is no checkpoint\n".to_owned(),
        Load::Nothing(Some(problem)) => return Err(LoadError::Checkpoint(problem)),
        Load::Served {
            ports,
            synced_at,
            self_test,
        } => {
            // A machine without a clock of its own does not know the time yet.
            let age = unix_seconds().checked_sub(synced_at).map(age);
            let age = age.map_or_else(|| "of unknown age".to_owned(), |age| format!("{age} old"));
            let what = format!("a table of {ports} service ports ({age})");
            match self_test {
                SelfTest::Failed { reason } => return Err(LoadError::SelfTest(what, reason)),
                _ => format!("{what} is in force until an agent starts\n"),
            }
        }
    };
    Ok(print(what)?)
}
