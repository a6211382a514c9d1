//! Flags for probes.

use clap::Args;

/// Endpoints of this node that do not answer.
#[derive(Args, Clone, Copy, Debug)]
pub struct ProbeArgs {
    /// While the source is stale, ask the Pods of this node by their readinessProbes, else by a TCP connect, and leave
    /// those that do not answer out of Services: never the last endpoint, nor more than half of a set. See
    /// docs/retention.md.
    #[arg(long)]
    pub probe_endpoints: bool,
}
