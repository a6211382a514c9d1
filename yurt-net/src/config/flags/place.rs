//! Flags for where things are.

use std::path::PathBuf;

use clap::Args;

use crate::config::place::Place;
use crate::ledger::store::LedgerDirs;

/// Where the agent keeps things.
#[derive(Args, Clone, Debug)]
pub struct PlaceArgs {
    /// Directory of the agent's socket and files.
    #[arg(long, default_value = "/var/lib/yurt-net", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Mount point of a bpf file system.
    #[arg(long, default_value = "/sys/fs/bpf", value_name = "DIR")]
    pub bpffs: PathBuf,
    /// cgroup v2 directory whose processes are served [default: the root of the mounted hierarchy].
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Directory in memory, emptied by a reboot: what the plugins' runDir says. The agent's socket is below
    /// it where the state directory cannot be written to.
    #[arg(long, default_value = LedgerDirs::RUN_DIR, value_name = "DIR")]
    pub run_dir: PathBuf,
}

impl PlaceArgs {
    /// The same.
    pub fn place(&self) -> Place {
        Place {
            state_dir: self.state_dir.clone(),
            bpffs: self.bpffs.clone(),
            cgroup: self.cgroup.clone(),
            run_dir: self.run_dir.clone(),
        }
    }
}

/// Where the plugins keep the ledger.
#[derive(Args, Clone, Debug)]
pub struct LedgerDirsArgs {
    /// Directory of the agent's files: what the plugins' dataDir says.
    #[arg(long, default_value = "/var/lib/yurt-net", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Directory in memory: what the plugins' runDir says.
    #[arg(long, default_value = LedgerDirs::RUN_DIR, value_name = "DIR")]
    pub run_dir: PathBuf,
}

impl LedgerDirsArgs {
    /// The same.
    pub fn dirs(&self) -> LedgerDirs {
        LedgerDirs {
            state_dir: self.state_dir.clone(),
            run_dir: self.run_dir.clone(),
        }
    }
}
