//! The command line, and where things are on a machine.

mod cgroup;
mod cni;
mod devices;
mod probes;
mod translate;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;

pub use self::cgroup::{Cgroup, ConfigError, cgroup, cgroup_mounts};
pub use self::cni::{CniArgs, CniKeepArg, CniPlaceArgs, CniVerb};
pub use self::devices::DeviceArgs;
pub use self::probes::ProbeArgs;
pub use self::translate::TranslateArgs;
use crate::cni::install::Directories;
use crate::dataplane::service::SocketLb;
use crate::guard::{Askers, ExtraPolicy, ShortestPrefixes};
use crate::ledger::store::LedgerDirs;
use crate::model::Protocol;
use crate::plan::Capacity;
use crate::policy::{ClosureEstablished, ClosureFailure, PolicyConfig, ViaHub};
use crate::policy::{ExternalIps, Place, ProtectConfig};
use crate::retain::settings::GuardSettings;
use crate::source::SourceSpec;
use crate::source::kube::{Access, Scope};

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
    Run(RunArgs),
    /// Print the table that a node would have; on that node, with what its interfaces change. Needs no root and no kernel support.
    Plan(PlanArgs),
    /// Print the verdict for one flow, and why. From the running agent, or from a source.
    Explain(ExplainArgs),
    /// Print how the running agent is.
    Status(StatusArgs),
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
    /// What plugins are told of it.
    pub fn directories(&self) -> Directories {
        Directories {
            data_dir: self.state_dir.display().to_string(),
            run_dir: self.run_dir.display().to_string(),
        }
    }

    /// Where the agent's socket may lie.
    pub fn sockets(&self) -> [PathBuf; 2] {
        [self.state_dir.clone(), self.ledger().in_memory()].map(|dir| dir.join("agent.sock"))
    }

    /// Where the plugins keep the ledger.
    pub fn ledger(&self) -> LedgerDirs {
        LedgerDirs {
            state_dir: self.state_dir.clone(),
            run_dir: self.run_dir.clone(),
        }
    }
}

/// What happens to frames that claim an address which is not their sender's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GuardArg {
    /// Nobody looks.
    Off,
    /// They are counted.
    Audit,
    /// They are dropped.
    Enforce,
}

/// What is asked of sources, and what decides where traffic may go.
#[derive(Args, Clone, Debug)]
pub struct PolicyArgs {
    /// Certificates, in PEM, of those who may sign an apiserver's certificate. [default: the kubeconfig's, else the
    /// ServiceAccount's ca.crt, else the system's] Read anew for each connection.
    #[arg(long, value_name = "FILE")]
    pub kube_ca: Option<PathBuf>,
    /// This node's pool; wins over the Node's label.
    #[arg(long, value_name = "NAME")]
    pub nodepool: Option<String>,
    /// Label of a Node that names its pool.
    #[arg(long, default_value = "apps.openyurt.io/nodepool", value_name = "KEY")]
    pub nodepool_label: String,
    /// Endpoints of closed Services on nodes of which nothing is known.
    #[arg(long, default_value = "last-known", value_enum)]
    pub closure_failure: ClosureFailureArg,
    /// Prefix that ClusterIPs are allocated from; repeatable. Unallocated addresses inside are refused.
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Vec<IpNetwork>,
    /// Lead default/kubernetes to YurtHub on this node [auto: while the source in charge is a YurtHub].
    #[arg(long, default_value = "auto", value_enum)]
    pub kubernetes_via_hub: ViaHubArg,
    /// As OpenYurt: where nodeport.openyurt.io/listen or svc.openyurt.io/discard takes frontends away, take the whole Service.
    #[arg(long)]
    pub compat_drop_service: bool,
    /// As OpenYurt: serve a Service's load balancer addresses of every pool, whatever its PoolServices say.
    #[arg(long)]
    pub compat_all_vips: bool,
    /// Address, or one port of it, that no Service may take; repeatable. Apiservers, YurtHub and addresses of nodes are
    /// protected anyway.
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub protect: Vec<Place>,
    /// Which external IPs of Services are served: all that are not protected, none, or those inside prefixes.
    #[arg(long, default_value = "all", value_name = "all|none|CIDR,..")]
    pub external_ips: ExternalIps,
}

/// See [`ViaHub`].
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ViaHubArg {
    /// While the source in charge is a YurtHub.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// See [`ClosureFailure`].
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ClosureFailureArg {
    /// Inside if they were when that was last known, else outside.
    LastKnown,
    /// Inside.
    Open,
    /// Outside.
    Closed,
}

impl PolicyArgs {
    /// What sources ask for on behalf of `node`.
    pub fn scope(&self, node: &str) -> Scope {
        Scope {
            node: node.to_owned(),
            pool: self.nodepool.clone(),
            pool_label: self.nodepool_label.clone(),
            with_pods: false,
            access: Access::from_env(self.kube_ca.clone()),
        }
    }

    /// The policy of `node`.
    pub fn config(&self, node: &str) -> PolicyConfig {
        PolicyConfig {
            node: node.to_owned(),
            nodepool: self.nodepool.clone(),
            pool_label: self.nodepool_label.clone(),
            closure_failure: match self.closure_failure {
                ClosureFailureArg::LastKnown => ClosureFailure::LastKnown,
                ClosureFailureArg::Open => ClosureFailure::Open,
                ClosureFailureArg::Closed => ClosureFailure::Closed,
            },
            service_cidrs: self.service_cidr.clone(),
            kubernetes_via_hub: match self.kubernetes_via_hub {
                ViaHubArg::Auto => ViaHub::Auto,
                ViaHubArg::On => ViaHub::On,
                ViaHubArg::Off => ViaHub::Off,
            },
            is_source_hub: false,
            compat_drop_service: self.compat_drop_service,
            compat_all_vips: self.compat_all_vips,
            protect: ProtectConfig {
                given: self.protect.clone(),
                external_ips: self.external_ips.clone(),
                ..ProtectConfig::default()
            },
        }
    }
}

/// Form of what is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs: the contract.
    Json,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// Lines for people.
    Text,
    /// One object a line.
    Json,
}

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
    /// Where the agent keeps things.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Policy.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Whose sockets are served.
    #[arg(long, value_enum, default_value = "all")]
    pub socket_lb: SocketLb,
    /// What happens to established flows, TCP too, to an endpoint that serves but is outside the closure by now: keep them,
    /// or reset them. New flows never go there. UDP sockets whose endpoint is gone are ended either way.
    #[arg(long, value_enum, default_value = "keep")]
    pub closure_established: ClosureEstablished,
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
    /// Clients of Services with session affinity that are remembered, for each family; the one that dialled longest ago makes
    /// room. A client is a Pod, or the node, and counts once for each such Service port. 96 and 112 bytes.
    #[arg(long, default_value_t = 2048, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub max_affinity: u32,
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
    /// Whose Pods may ask for addresses beside their own, by the annotation yurt-net.openyurt.io/extra-addresses: all, none,
    /// or those of namespaces between commas. What is another's is never given.
    #[arg(long, default_value = "all", value_name = "all|none|NAMESPACE,..")]
    pub guard_extra: Askers,
    /// The shortest prefixes that such an annotation may name, of IPv4 and of IPv6.
    #[arg(long, default_value_t, value_name = "/V4,/V6")]
    pub guard_extra_prefix: ShortestPrefixes,
    /// Devices that lead to Pods, with * and ?; repeatable [default: veth devices whose other end is in another namespace].
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
    /// How often the maps and links are compared with what they should be, as 30s or 1m; 0 = never.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = parse_duration)]
    pub drift_interval: Duration,
    /// Where metrics are served, over HTTP; "" or port 0 = nowhere. While the port is taken, by kube-proxy for example, it is
    /// tried again.
    #[arg(long, default_value = "127.0.0.1:10249", value_name = "ADDR:PORT")]
    pub metrics_bind_address: BindAddress,
    /// Form of the log.
    #[arg(long, value_enum, default_value = "auto")]
    pub log_format: LogFormat,
}

/// Where something is served; `None` = nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindAddress(pub Option<SocketAddr>);

impl std::str::FromStr for BindAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected ADDR:PORT, as 127.0.0.1:10249 or [::1]:10249, or nothing";
        if text.is_empty() {
            return Ok(Self(None));
        }
        let address: SocketAddr = text.parse().ok().ok_or(EXPECTED)?;
        Ok(Self((address.port() != 0).then_some(address)))
    }
}

impl RunArgs {
    /// How Pods are guarded; `None`: not at all.
    pub fn guard_settings(&self) -> Option<GuardSettings> {
        (self.guard != GuardArg::Off).then(|| GuardSettings {
            bpffs: self.place.bpffs.clone(),
            enforce: self.guard == GuardArg::Enforce,
            enforced_namespaces: self.guard_enforce_namespace.iter().cloned().collect(),
            devices: self.device.clone(),
        })
    }

    /// What annotations may give.
    pub fn extra_policy(&self) -> ExtraPolicy {
        ExtraPolicy {
            askers: self.guard_extra.clone(),
            shortest: self.guard_extra_prefix,
        }
    }

    /// The capacity flags.
    pub fn capacity(&self) -> Capacity {
        Capacity {
            frontends4: self.max_frontends4,
            frontends6: self.max_frontends6,
            services: self.max_services,
            slots4: self.max_slots4,
            slots6: self.max_slots6,
        }
    }
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
    /// Form.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// Address of the client.
    #[arg(long, value_name = "ADDR")]
    pub from: IpAddr,
    /// What it dials, as `10.96.0.10:80/TCP` or `[fd00::10]:53/UDP`.
    #[arg(long, value_name = "ADDR:PORT/PROTO")]
    pub to: Destination,
    /// Name of the node; with --source.
    #[arg(long, env = "NODE_NAME", value_name = "NAME", requires = "source")]
    pub node: Option<String>,
    /// Ask this source instead of the running agent.
    #[arg(long, value_name = "SRC", requires = "node")]
    pub source: Option<SourceSpec>,
    /// Where the agent keeps things.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Policy; with --source.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Form.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// Address, port and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Address and port.
    pub address: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}

impl std::str::FromStr for Destination {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str =
            "expected ADDR:PORT/PROTO, as 10.96.0.10:80/TCP or [fd00::10]:53/UDP";
        let (address, protocol) = text.rsplit_once('/').ok_or(EXPECTED)?;
        let address = address.parse().ok().ok_or(EXPECTED)?;
        let protocol = match protocol.to_ascii_uppercase().as_str() {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            _ => return Err(EXPECTED),
        };
        Ok(Self { address, protocol })
    }
}

/// `status`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Where the agent keeps things.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Wait at most this long until the first table is applied, as 10s, 1m or 500ms.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub wait: Option<Duration>,
    /// Form.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Where the agent keeps things.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Where the node's CNI is.
    #[command(flatten)]
    pub cni: CniPlaceArgs,
    /// Form.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// `ledger`.
#[derive(Args, Clone, Debug)]
pub struct LedgerArgs {
    /// Directory of the agent's files: what the plugins' dataDir says.
    #[arg(long, default_value = "/var/lib/yurt-net", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Directory in memory: what the plugins' runDir says.
    #[arg(long, default_value = LedgerDirs::RUN_DIR, value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Form.
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

/// A number alone is seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}: expected a time such as 30s, 1m, 1m30s or 500ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_in_both_families() {
        let v4: Destination = "10.96.0.10:80/tcp".parse().unwrap();
        assert_eq!((v4.address.port(), v4.protocol), (80, Protocol::Tcp));
        let v6: Destination = "[fd00::10]:53/UDP".parse().unwrap();
        assert_eq!(
            (v6.address.to_string().as_str(), v6.protocol),
            ("[fd00::10]:53", Protocol::Udp)
        );
        for bad in [
            "10.96.0.10:80",
            "10.96.0.10/TCP",
            "fd00::10:53/UDP",
            "1.2.3.4:1/ICMP",
        ] {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
    }

    #[test]
    fn metrics_are_served_where_kube_proxy_has_them_unless_told_otherwise() {
        let parse = |more: &[&str]| {
            let words = ["yurt-net", "run", "--node", "a1", "--source", "file:x"];
            let cli = Cli::try_parse_from(words.iter().chain(more));
            match cli.map(|cli| cli.command) {
                Ok(Command::Run(args)) => Ok(args.metrics_bind_address.0),
                Ok(_) => unreachable!(),
                Err(error) => Err(error.to_string()),
            }
        };
        let at = |text: &str| Ok(Some(text.parse().unwrap()));
        assert_eq!(parse(&[]), at("127.0.0.1:10249"));
        assert_eq!(parse(&["--metrics-bind-address=[::]:9"]), at("[::]:9"));
        assert_eq!(parse(&["--metrics-bind-address="]), Ok(None));
        assert_eq!(parse(&["--metrics-bind-address", "0.0.0.0:0"]), Ok(None));
        let error = parse(&["--metrics-bind-address=10249"]).unwrap_err();
        assert!(error.contains("expected ADDR:PORT"), "{error}");
    }

    #[test]
    fn times_are_read_with_units_and_a_number_alone_is_seconds() {
        for (text, millis) in [
            ("10", 10_000),
            ("0", 0),
            ("10s", 10_000),
            ("1m", 60_000),
            ("1m30s", 90_000),
            ("2h", 7_200_000),
            ("500ms", 500),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in ["soon", "", "10x", "-1s", "1e3", "99999999999999999999s"] {
            assert!(
                parse_duration(text).unwrap_err().contains("such as 30s"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_the_plugins_are_told_stands_before_or_behind_what_to_do() {
        for words in [
            "cni --cni-conf-dir /c --state-dir /s install",
            "cni install --cni-conf-dir /c --state-dir /s",
        ] {
            let words = std::iter::once("yurt-net").chain(words.split(' '));
            let Command::Cni(args) = Cli::try_parse_from(words).unwrap().command else {
                unreachable!()
            };
            let (conf_dir, state_dir) = (args.cni.cni_conf_dir, args.state_dir);
            assert_eq!((conf_dir, state_dir), ("/c".into(), "/s".into()));
        }
    }

    #[test]
    fn run_plan_and_explain_take_the_same_policy() {
        let flags = [
            "--kubernetes-via-hub=off",
            "--compat-drop-service",
            "--compat-all-vips",
        ];
        let source = ["--node", "a1", "--source", "file:x"];
        let flow = ["--from", "10.1.0.2", "--to", "10.96.0.10:80/TCP"];
        for (verb, more) in [("run", &[][..]), ("plan", &[]), ("explain", &flow)] {
            let parse = |flags: &[&str]| {
                let head = ["yurt-net", verb];
                let all = head.iter().chain(&source).chain(more).chain(flags);
                match Cli::try_parse_from(all).unwrap().command {
                    Command::Run(args) => args.policy,
                    Command::Plan(args) => args.policy,
                    Command::Explain(args) => args.policy,
                    _ => unreachable!(),
                }
                .config("a1")
            };
            assert_eq!(parse(&[]), PolicyConfig::new("a1"), "{verb}");
            let config = parse(&flags);
            assert_eq!(config.kubernetes_via_hub, ViaHub::Off);
            assert!(config.compat_drop_service && config.compat_all_vips);
        }
    }
}
