//! Flags for the node's CNI.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::cni::install::files::Cni;
use crate::cni::install::run::Host;
use crate::ledger::store::LedgerDirs;

/// Where the node's CNI is.
#[derive(Args, Clone, Debug)]
pub struct CniPlaceArgs {
    /// Directory of CNI configurations, of which runtimes take the first by name.
    #[arg(
        long,
        global = true,
        default_value = "/etc/cni/net.d",
        value_name = "DIR"
    )]
    pub cni_conf_dir: PathBuf,
    /// Directory of CNI plugins.
    #[arg(
        long,
        global = true,
        default_value = "/opt/cni/bin",
        value_name = "DIR"
    )]
    pub cni_bin_dir: PathBuf,
}

impl CniPlaceArgs {
    /// The same.
    pub fn cni(&self) -> Cni {
        Cni {
            conf_dir: self.cni_conf_dir.clone(),
            bin_dir: self.cni_bin_dir.clone(),
            program: "/proc/self/exe".into(),
            host: Host::find(),
        }
    }
}

/// `cni`.
#[derive(Args, Clone, Debug)]
pub struct CniArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: CniVerb,
    /// Where the node's CNI is.
    #[command(flatten)]
    pub cni: CniPlaceArgs,
    /// The plugins' dataDir: the agent's state directory.
    #[arg(
        long,
        global = true,
        default_value = "/var/lib/yurt-net",
        value_name = "DIR"
    )]
    pub state_dir: PathBuf,
    /// The plugins' runDir: the agent's run directory.
    #[arg(long, global = true, default_value = LedgerDirs::RUN_DIR, value_name = "DIR")]
    pub run_dir: PathBuf,
}

/// What to do with the plugins.
#[derive(Subcommand, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CniVerb {
    /// Install them, and put them into the configuration. Safe to repeat.
    Install,
    /// Take them out of the configuration, with host-local in the place of yurt-ipam, and remove them.
    Uninstall,
}

/// Whether the agent installs the CNI plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CniKeepArg {
    /// The agent leaves the node's CNI configuration alone.
    Off,
    /// The agent installs the plugins, and puts them back when another program has written the configuration anew.
    Install,
}
