//! The command line: each verb's flags, and how they are decoded.

mod cni;
mod devices;
mod explain;
mod flows;
mod kube_proxy;
mod monitor;
mod packets;
mod place;
mod policy;
mod probes;
mod run;
mod services;
#[cfg(test)]
mod tests;
mod translate;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

pub use self::cni::{CniArgs, CniKeepArg, CniPlaceArgs, CniVerb};
pub use self::explain::{Client, ExplainArgs};
pub use self::flows::{FlowsArgs, To};
pub use self::kube_proxy::ProxyArgs;
pub use self::monitor::MonitorArgs;
pub use self::place::{LedgerDirsArgs, PlaceArgs};
pub use self::policy::PolicyArgs;
pub use self::run::RunArgs;
pub use self::services::{Form, ServicesArgs};
use self::values::duration;
pub use self::values::{Destination, LogFormat, Output};
use crate::source::SourceSpec;

/// Service closure for OpenYurt edge nodes, in eBPF, in place of kube-proxy.
#[derive(Parser)]
#[command(name = "yurt-net", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Verbs.
#[derive(Subcommand)]
pub enum Command {
    /// Serve this node: follow the source, keep the kernel's maps in step. Stopping it changes nothing for clients.
    Run(Box<RunArgs>),
    /// Serve what the checkpoint says, without an agent, as the last one was told to: for a boot, before kubelet
    /// starts. The agent takes it over.
    Load(LoadArgs),
    /// Print the table that a node would have; on that node, with what its interfaces change. Needs no root and no
    /// kernel support.
    Plan(PlanArgs),
    /// Print the verdict for one flow, and why. From the running agent, or from a source. Pods and Services may be
    /// named.
    Explain(ExplainArgs),
    /// Print the status of the running agent.
    Status(StatusArgs),
    /// Print the Services that the kernel serves on this node, with their endpoints. Needs no running agent: names are
    /// then those of its checkpoint.
    Services(ServicesArgs),
    /// Print the flows of clients whose packets are served (--packet-path), the latest first. Needs no running agent,
    /// but for names.
    Flows(FlowsArgs),
    /// Print refusals and drops as they happen: who dialled which Service, and why it failed. Needs no running agent,
    /// but for names. Costs nothing while nobody looks.
    Monitor(MonitorArgs),
    /// Check that this machine can run the agent, and that Services are really translated.
    Check(CheckArgs),
    /// Print which addresses Pods of this node have, and which are kept for them. Needs no running agent.
    Ledger(LedgerArgs),
    /// Put the CNI plugins into this node's configuration, or take them out again. What else is in it stays.
    Cni(CniArgs),
    /// Remove every pin of yurt-net, and with them its programs and maps. Services stop working.
    Cleanup(CleanupArgs),
    /// Self-test child: dials the probe address from its own cgroup.
    #[command(hide = true)]
    Probe,
}

/// `load`.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Directory of the agent's files: its checkpoint, and how it was told to run.
    #[arg(long, default_value = "/var/lib/yurt-net", value_name = "DIR")]
    pub state_dir: PathBuf,
}

/// `plan`.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// Name of the node.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node: String,
    /// kube:, kube:URL, yurthub:, yurthub:URL, or file:PATH (a file or a directory of Kubernetes manifests).
    #[arg(long, value_name = "SRC")]
    pub source: SourceSpec,
    /// Policy.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Where the ledger is, if this machine is the node.
    #[command(flatten)]
    pub ledger: LedgerDirsArgs,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `status`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Where the agent keeps things.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Wait at most this long until the first table is applied, as 10s, 1m or 500ms.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub wait: Option<Duration>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Check this configuration file, as run --config takes it, and nothing else. Needs no root.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the agent keeps things.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Where the node's CNI is.
    #[command(flatten)]
    pub cni: CniPlaceArgs,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `ledger`.
#[derive(Args, Clone, Debug)]
pub struct LedgerArgs {
    /// Where the ledger is.
    #[command(flatten)]
    pub ledger: LedgerDirsArgs,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `cleanup`.
#[derive(Args, Clone, Debug)]
pub struct CleanupArgs {
    /// Where the agent keeps things.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Do not end when it is done: what a DaemonSet runs is started again when it ends.
    #[arg(long)]
    pub stay: bool,
}
