//! From a whole snapshot of the cluster to the table of this node.
//!
//! Pure. In: `Snapshot`, `PolicyConfig`, `NodeView`, `Memory`. Out: `ServiceTable` and the next `Memory`; it never
//! fails. Rules in order, for each Service: (1) its frontends, `edge`; (2) its endpoints, `endpoints`: where those of
//! this node really are while the snapshot is old (`pods::truth`), closure (`topology`), then kube-proxy's traffic
//! policies (`traffic`), then probes; (3) the port at which its load balancer asks for endpoints here, `health`; then
//! (4) conflicts between Services. `Memo` only saves time (`memo`): the table is the same with an empty one.
#![forbid(unsafe_code)]

mod conflicts;
mod edge;
mod endpoints;
mod environment;
mod established;
#[cfg(test)]
pub(crate) mod fixtures;
mod health;
mod inputs;
mod memo;
mod node_addresses;
mod peers;
mod pod_networks;
mod prefixes;
#[cfg(test)]
mod proptests;
pub mod protected;
mod reasons;
#[cfg(test)]
mod tests;
mod topology;
mod traffic;

use std::sync::Arc;

pub use self::edge::listens;
use self::environment::Environment;
pub use self::established::{
    ClosureEstablished, Fate, Flow, Judge, Standing, SuspectBackends, Suspects,
};
pub use self::inputs::{
    ClosureFailure, ExternalIps, HEALTH_CHECK_SHARE, METRICS_PORT, Memory, NodePortAddresses,
    NodeView, POOL_LABEL, Place, PolicyConfig, ProtectConfig, ViaHub,
};
pub use self::memo::Memo;
pub use self::peers::pool_peers;
pub use self::pod_networks::Networks;
pub use self::prefixes::pods_among_services;
pub use self::reasons::{Reasons, Why};
use crate::model::{Rejection, Snapshot, Touched};
use crate::table::ServiceTable;

/// The result of compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled<'m> {
    /// The table, which is in the memo.
    pub table: &'m ServiceTable,
    /// Rejections that the last table of the memo did not have, sorted.
    pub new_rejections: Vec<Arc<Rejection>>,
    /// Backends whose established flows may have lost them: a frontend or an endpoint of the last table is gone.
    pub lost: Suspects,
    /// For the next compile.
    pub memory: Memory,
}

/// Compiles the table of one node.
///
/// `touched` is what may differ from the snapshot that `memo` has seen last; `Touched::Anything` is always right.
pub fn compile<'m>(
    snapshot: &Snapshot,
    touched: &Touched,
    config: &PolicyConfig,
    view: &NodeView,
    memory: &Memory,
    memo: &'m mut Memo,
) -> Compiled<'m> {
    let mut rejections = Vec::new();
    let last = memo.environment();
    let (environment, memory) =
        Environment::new(last, snapshot, config, view, memory, &mut rejections);
    let (new_rejections, lost) = memo.update(snapshot, touched, environment, &rejections);
    Compiled {
        table: memo.table(),
        new_rejections,
        lost,
        memory,
    }
}
