//! What an agent is told, whoever has written it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::place::Place;
use crate::cni::install::Directories;
use crate::cni::install::files::Cni;
use crate::dataplane::service::SocketLb;
use crate::plan::Capacity;
use crate::pods::guard::ExtraPolicy;
use crate::pods::settings::GuardSettings;
use crate::pods::translate;
use crate::policy::{ClosureEstablished, PolicyConfig};
use crate::source::SourceSpec;
use crate::source::kube::Scope;
use crate::tunnel::Kind;

/// All that `run` needs to know.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Where the agent keeps things.
    pub place: Place,
    /// Which node this is, and where traffic may go.
    pub policy: PolicyConfig,
    /// What sources are asked for.
    pub scope: Scope,
    /// Where Services come from, in order of preference.
    pub sources: Vec<SourceSpec>,
    /// Whose sockets are served.
    pub socket_lb: SocketLb,
    /// What happens to established flows to an endpoint that is outside the closure by now.
    pub closure_established: ClosureEstablished,
    /// Entries of the table maps.
    pub capacity: Capacity,
    /// TCP sockets whose `getpeername` shows the Service.
    pub peers: u32,
    /// Clients of Services with session affinity that are remembered, for each family.
    pub affinity: u32,
    /// The CNI that the plugins are put into, and what they are told; `None`: that is left to others.
    pub cni: Option<(Cni, Directories)>,
    /// How Pods are guarded; `None`: not at all.
    pub guard: Option<GuardSettings>,
    /// What annotations of Pods may give.
    pub extra: ExtraPolicy,
    /// Which Pods are reached at addresses that they had before.
    pub translation: translate::Policy,
    /// The node's own devices that are kept: names, and what each is.
    pub devices: Vec<(String, Kind)>,
    /// What its vxlan devices know of peers is kept right.
    pub repairs_peers: bool,
    /// Pods of this node are asked whether they answer, while the source is stale.
    pub probes_endpoints: bool,
    /// How often the kernel is compared with what it should hold; `None`: never.
    pub drift_interval: Option<Duration>,
    /// Where metrics are served, over HTTP; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// An object whose programs say what they decide, in place of the embedded one.
    pub ebpf_log: Option<PathBuf>,
}
