//! Where things are on a machine.

use std::path::PathBuf;

use crate::cni::install::Directories;
use crate::dataplane::claim::Things;
use crate::ledger::store::LedgerDirs;

/// Where the agent keeps things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Directory of the agent's socket and files.
    pub state_dir: PathBuf,
    /// Mount point of a bpf file system.
    pub bpffs: PathBuf,
    /// cgroup v2 directory whose processes are served; `None`: the root of the mounted hierarchy.
    pub cgroup: Option<PathBuf>,
    /// Directory in memory, emptied by a reboot.
    pub run_dir: PathBuf,
}

impl Place {
    /// The directories that the plugins are configured with.
    pub fn directories(&self) -> Directories {
        Directories {
            data_dir: self.state_dir.display().to_string(),
            run_dir: self.run_dir.display().to_string(),
        }
    }

    /// Directory of the checkpoint.
    pub fn checkpoint(&self) -> PathBuf {
        self.state_dir.join("snapshot")
    }

    /// Paths of the agent's socket, the better one first.
    pub fn sockets(&self) -> [PathBuf; 2] {
        [self.state_dir.clone(), self.ledger().in_memory()].map(|dir| dir.join("agent.sock"))
    }

    /// The things that an agent for this cgroup owns.
    pub fn things(&self, cgroup: PathBuf) -> Things {
        Things {
            cgroup,
            bpffs: self.bpffs.clone(),
            state_dir: self.state_dir.clone(),
            memory: self.ledger().in_memory(),
        }
    }

    /// Where the plugins keep the ledger.
    pub fn ledger(&self) -> LedgerDirs {
        LedgerDirs {
            state_dir: self.state_dir.clone(),
            run_dir: self.run_dir.clone(),
        }
    }
}
