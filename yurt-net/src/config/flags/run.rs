//! Flags of `run`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::cni::{CniKeepArg, CniPlaceArgs};
use super::devices::DeviceArgs;
use super::kube_proxy::ProxyArgs;
use super::packets::PacketArgs;
use super::place::PlaceArgs;
use super::policy::{PacketPathArg, PolicyArgs};
use super::probes::ProbeArgs;
use super::translate::TranslateArgs;
use super::values::{LogFormat, duration};
use crate::config::agent::AgentConfig;
use crate::config::file::bind;
use crate::dataplane::service::SocketLb;
use crate::plan::Capacity;
use crate::pods::guard::{Askers, ExtraPolicy, ShortestPrefixes};
use crate::pods::settings::GuardSettings;
use crate::policy::ClosureEstablished;
use crate::source::SourceSpec;

/// A comparison of full maps takes a few hundredths of a second.
const LEAST_DRIFT_INTERVAL: Duration = Duration::from_secs(1);

/// `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Name of this node, as the Node object has it.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node: String,
    /// Where Services come from; repeatable, in order of preference. kube: (kubeconfig or ServiceAccount), kube:URL,
    /// yurthub:, yurthub:URL, or file:PATH (a file or a directory of Kubernetes manifests). Followed for changes.
    #[arg(long, value_name = "SRC", required = true)]
    pub source: Vec<SourceSpec>,
    /// File with a KubeProxyConfiguration, or with a YurtNetConfiguration, which has a field for each flag, or with
    /// both. What the command line says counts instead. With it, the node is by default the one with this machine's
    /// name, and the source kube:. See docs/configuration.md.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the agent keeps things.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Policy.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Whose sockets are served.
    #[arg(long, value_enum, default_value = "all")]
    pub socket_lb: SocketLbArg,
    /// What happens to established flows, TCP too, to an endpoint that serves but is outside the closure by now: keep
    /// them, or reset them. New flows never go there. UDP sockets whose endpoint is gone are ended either way.
    #[arg(long, value_enum, default_value = "keep")]
    pub closure_established: ClosureEstablishedArg,
    /// IPv4 frontends: addresses and ports of Services, and a ClusterIP each without a known service CIDR. 80 bytes.
    #[arg(long, default_value_t = 20480, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_frontends4: u32,
    /// IPv6 frontends. 96 bytes.
    #[arg(long, default_value_t = 8192, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_frontends6: u32,
    /// Service ports, for each family. 16 bytes.
    #[arg(long, default_value_t = 16384, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_services: u32,
    /// IPv4 endpoints, and room for those of the largest change. 8 bytes.
    #[arg(long, default_value_t = 32768, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub max_slots4: u32,
    /// IPv6 endpoints, likewise. 24 bytes.
    #[arg(long, default_value_t = 8192, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub max_slots6: u32,
    /// TCP sockets whose getpeername shows the Service; an older one may show its backend. 32 bytes.
    #[arg(long, default_value_t = 16384, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub peers: u32,
    /// Clients of Services with session affinity that are remembered, for each family; the one that dialled longest ago
    /// makes room. A client is a Pod, or the node, and counts once for each such Service port. 96 and 112 bytes.
    #[arg(long, default_value_t = 2048, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub max_affinity: u32,
    /// Packets from outside.
    #[command(flatten)]
    pub packets: PacketArgs,
    /// Whether the CNI plugins are put into this node's configuration, and kept there.
    #[arg(long, value_enum, default_value = "off")]
    pub cni: CniKeepArg,
    /// Where the node's CNI is.
    #[command(flatten)]
    pub cni_place: CniPlaceArgs,
    /// Whether a Pod may use only its own addresses. Pods that yurt-cni knows are guarded; see docs/retention.md.
    #[arg(long, value_enum, default_value = "audit")]
    pub guard: GuardArg,
    /// Namespace whose Pods are guarded by `enforce` while others are not; repeatable.
    #[arg(long, value_name = "NAME")]
    pub guard_enforce_namespace: Vec<String>,
    /// Namespaces, between commas, whose Pods may ask for addresses beside their own by the annotation
    /// yurt-net.openyurt.io/extra-addresses; or all, or none. An address that belongs to somebody else is never given.
    #[arg(long, default_value = "all", value_name = "all|none|NAMESPACE,..")]
    pub guard_extra: Askers,
    /// The shortest prefixes that such an annotation may name, of IPv4 and of IPv6.
    #[arg(long, default_value_t, value_name = "/V4,/V6")]
    pub guard_extra_prefix: ShortestPrefixes,
    /// Devices that lead to Pods, with * and ?; repeatable [default: veth devices whose other end is in another
    /// namespace].
    #[arg(long, value_name = "GLOB")]
    pub device: Vec<String>,
    /// Translation.
    #[command(flatten)]
    pub translate: TranslateArgs,
    /// Own devices.
    #[command(flatten)]
    pub devices: DeviceArgs,
    /// Probes.
    #[command(flatten)]
    pub probes: ProbeArgs,
    /// How often the maps and links are compared with what they should be, as 30s or 1m: at most once a second; 0 =
    /// never.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
    pub drift_interval: Duration,
    /// Where metrics are served, over HTTP; "" or port 0 = nowhere. While the port is taken, by kube-proxy for example,
    /// it is tried again.
    #[arg(long, default_value = "127.0.0.1:10249", value_name = "ADDR:PORT", value_parser = bind_address::<10249>)]
    pub metrics_bind_address: BindAddress,
    /// Where the health of this node is served to load balancers, /healthz and /livez; "" or port 0 = nowhere. 0.0.0.0
    /// stands for all addresses of both families. The health checks of Services have ports of their own.
    #[arg(long, default_value = "0.0.0.0:10256", value_name = "ADDR:PORT", value_parser = bind_address::<10256>)]
    pub healthz_bind_address: BindAddress,
    /// For debugging: an eBPF object whose programs log what they decide. `cargo xtask build-ebpf --log` makes it; it
    /// must be of the same version as the agent. The embedded programs log nothing.
    #[arg(long, value_name = "FILE")]
    pub ebpf_log: Option<PathBuf>,
    /// Score of this process by which the kernel ends processes where memory is short, -1000 to 1000: the lowest is
    /// ended last [default: as it was started].
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i16).range(-1000..=1000))]
    pub oom_score_adj: Option<i16>,
    /// Form of the log.
    #[arg(long, value_enum, default_value = "auto")]
    pub log_format: LogFormat,
    /// How much is logged, as klog has it: from 4 on what is for debugging, too. $RUST_LOG counts instead.
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub v: u32,
    /// Flags of kube-proxy.
    #[command(flatten)]
    pub kube_proxy: ProxyArgs,
}

/// What happens to frames that claim an address which is not their sender's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GuardArg {
    /// Frames are not checked.
    Off,
    /// Such frames are counted, and pass.
    Audit,
    /// Such frames are counted, and dropped.
    Enforce,
}

/// Whose sockets are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SocketLbArg {
    /// Every process of the node and its Pods.
    All,
    /// Only processes in the node's own network namespace: for meshes and VM Pods. Pods are left without any Service,
    /// their DNS too, unless their packets are served (--packet-path=on), or something else serves them.
    Host,
    /// No process: the agent writes its maps, and serves nobody but by packets (--packet-path=on).
    Off,
}

/// What happens to an established flow whose backend still serves, but has left the closure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ClosureEstablishedArg {
    /// Such flows live on until they end by themselves.
    Keep,
    /// Such flows are reset, TCP too.
    Reset,
}

/// Where something is served; `None` = nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindAddress(pub Option<SocketAddr>);

/// With this port where the text has none.
fn bind_address<const PORT: u16>(text: &str) -> Result<BindAddress, &'static str> {
    if text.is_empty() {
        return Ok(BindAddress(None));
    }
    let address = bind(text, PORT);
    let address =
        address.ok_or("expected ADDR:PORT, as 127.0.0.1:10249 or [::1]:10249, or nothing")?;
    Ok(BindAddress((address.port() != 0).then_some(address)))
}

impl RunArgs {
    /// These flags as the agent's configuration.
    pub fn config(&self) -> AgentConfig {
        let place = self.place.place();
        AgentConfig {
            policy: self.policy.config(&self.node),
            scope: self.policy.scope(&self.node),
            sources: self.source.clone(),
            socket_lb: match self.socket_lb {
                SocketLbArg::All => SocketLb::All,
                SocketLbArg::Host => SocketLb::Host,
                SocketLbArg::Off => SocketLb::Off,
            },
            closure_established: match self.closure_established {
                ClosureEstablishedArg::Keep => ClosureEstablished::Keep,
                ClosureEstablishedArg::Reset => ClosureEstablished::Reset,
            },
            capacity: self.capacity(),
            tcp_peers: self.peers,
            affinity: self.max_affinity,
            cni: (self.cni == CniKeepArg::Install)
                .then(|| (self.cni_place.cni(), place.directories())),
            packets: (self.policy.packet_path == PacketPathArg::On)
                .then(|| self.packets.config(&self.device)),
            pod_devices: self.device.clone(),
            guard: self.guard_settings(),
            extra: self.extra_policy(),
            translation: self.translate.policy(),
            devices: self.devices.kept(),
            repairs_peers: self.devices.repair_peers,
            probes_endpoints: self.probes.probe_endpoints,
            drift_interval: (!self.drift_interval.is_zero())
                .then(|| self.drift_interval.max(LEAST_DRIFT_INTERVAL)),
            metrics: self.metrics_bind_address.0,
            healthz: self.healthz_bind_address.0,
            ebpf_log: self.ebpf_log.clone(),
            oom_score_adj: self.oom_score_adj,
            place,
        }
    }

    /// How Pods are guarded; `None`: they are not.
    fn guard_settings(&self) -> Option<GuardSettings> {
        (self.guard != GuardArg::Off).then(|| GuardSettings {
            bpffs: self.place.bpffs.clone(),
            enforce: self.guard == GuardArg::Enforce,
            enforced_namespaces: self.guard_enforce_namespace.iter().cloned().collect(),
            devices: self.device.clone(),
        })
    }

    /// Which addresses a Pod may ask for by its annotation.
    fn extra_policy(&self) -> ExtraPolicy {
        ExtraPolicy {
            askers: self.guard_extra.clone(),
            shortest: self.guard_extra_prefix,
        }
    }

    /// The capacity flags.
    fn capacity(&self) -> Capacity {
        Capacity {
            frontends4: self.max_frontends4,
            frontends6: self.max_frontends6,
            services: self.max_services,
            slots4: self.max_slots4,
            slots6: self.max_slots6,
        }
    }
}
