//! The configuration of an agent, however it was written.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::place::Place;
use crate::cni::install::Directories;
use crate::cni::install::files::Cni;
use crate::dataplane::packet::PacketOptions;
use crate::dataplane::service::SocketLb;
use crate::edge::Patterns;
use crate::edge::fast::FastPath;
use crate::plan::Capacity;
use crate::pods::guard::ExtraPolicy;
use crate::pods::settings::GuardSettings;
use crate::pods::translate;
use crate::policy::{ClosureEstablished, PolicyConfig};
use crate::source::SourceSpec;
use crate::source::kube::Scope;
use crate::tunnel::Kind;

/// How packets are served.
#[derive(Clone, Debug)]
pub struct PacketConfig {
    /// Sizes and ports.
    pub options: PacketOptions,
    /// Devices that lead outside, and those of Pods.
    pub devices: Patterns,
    /// Whether packets to Pods of this node are led past the stack.
    pub fast: FastPath,
}

/// All that `run` needs to know.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Where the agent keeps things.
    pub place: Place,
    /// Which node this is, and where traffic may go.
    pub policy: PolicyConfig,
    /// The objects that the agent asks its sources for.
    pub scope: Scope,
    /// Where Services come from, in order of preference.
    pub sources: Vec<SourceSpec>,
    /// The processes whose sockets are served.
    pub socket_lb: SocketLb,
    /// What happens to an established flow whose endpoint has left the closure.
    pub closure_established: ClosureEstablished,
    /// Entries of the table maps.
    pub capacity: Capacity,
    /// TCP sockets whose `getpeername` shows the Service.
    pub tcp_peers: u32,
    /// Clients of Services with session affinity that are remembered, for each family.
    pub affinity: u32,
    /// The CNI configuration that the agent puts the plugins into, and the directories that they use; `None`: others do
    /// that.
    pub cni: Option<(Cni, Directories)>,
    /// Name patterns of devices that lead to Pods; empty for every veth device that leads out of the node's namespace.
    pub pod_devices: Vec<String>,
    /// How packets from outside are served; `None`: they are not.
    pub packets: Option<PacketConfig>,
    /// How Pods are guarded; `None`: they are not.
    pub guard: Option<GuardSettings>,
    /// Which addresses a Pod may ask for by its annotation.
    pub extra: ExtraPolicy,
    /// Which Pods are reached at addresses that they had before.
    pub translation: translate::Policy,
    /// The node's own devices that are kept: names, and what each is.
    pub devices: Vec<(String, Kind)>,
    /// The agent repairs what its vxlan devices know of peers.
    pub repairs_peers: bool,
    /// The agent probes the Pods of this node while the source is stale.
    pub probes_endpoints: bool,
    /// How often the kernel is compared with what it should hold; `None`: never.
    pub drift_interval: Option<Duration>,
    /// Address at which metrics are served over HTTP; `None`: they are not.
    pub metrics: Option<SocketAddr>,
    /// Address at which load balancers ask for the health of the node, over HTTP; `None`: nowhere.
    pub healthz: Option<SocketAddr>,
    /// An eBPF object whose programs log what they decide, in place of the embedded one.
    pub ebpf_log: Option<PathBuf>,
    /// By which the kernel ends this process where memory is short, -1000 to 1000; `None`: as it was started.
    pub oom_score_adj: Option<i16>,
}
