//! Flags for what the agent asks its sources, and for where traffic may go.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ipnetwork::IpNetwork;

use crate::policy::{
    ClosureFailure, ExternalIps, NodePortAddresses, Place, PolicyConfig, ProtectConfig, ViaHub,
};
use crate::source::kube::{Access, Scope};
use crate::table::MAX_HEALTH_CHECKS;

/// What the agent asks its sources, and where traffic may go.
#[derive(Args, Clone, Debug)]
pub struct PolicyArgs {
    /// Certificates, in PEM, of those who may sign an apiserver's certificate. [default: the kubeconfig's, else the
    /// ServiceAccount's ca.crt, else the system's] Read anew for each connection.
    #[arg(long, value_name = "FILE")]
    pub kube_ca: Option<PathBuf>,
    /// Kubeconfig of `kube:` [default: $KUBECONFIG, else ~/.kube/config].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
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
    /// As OpenYurt: where nodeport.openyurt.io/listen or svc.openyurt.io/discard takes frontends away, take the whole
    /// Service.
    #[arg(long)]
    pub compat_drop_service: bool,
    /// As OpenYurt: serve a Service's load balancer addresses of every pool, whatever its PoolServices say.
    #[arg(long)]
    pub compat_all_vips: bool,
    /// Address, or one port of it, that no Service may take; repeatable. Apiservers, YurtHub and addresses of this node
    /// are protected anyway; those of other nodes only where the source is `file:`.
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub protect: Vec<Place>,
    /// Which external IPs of Services are served: all that are not protected, none, or those inside prefixes.
    #[arg(long, default_value = "all", value_name = "all|none|CIDR,..")]
    pub external_ips: ExternalIps,
    /// Where NodePorts are served: at the primary address of each family of this node, or at its addresses inside
    /// prefixes, of which there are at most 16.
    #[arg(long, default_value = "primary", value_name = "primary|CIDR,..")]
    pub nodeport_addresses: NodePortAddresses,
    /// Serve packets from outside this node, and of Pods that bypass their sockets, at NodePorts, load balancers,
    /// external IPs and ClusterIPs.
    #[arg(long, default_value = "off", value_enum)]
    pub packet_path: PacketPathArg,
}

/// `--packet-path`: whether clients outside this node, and Pods that bypass their sockets, are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PacketPathArg {
    /// Only sockets of this node are.
    Off,
    /// They are, too.
    On,
}

/// `--kubernetes-via-hub`, as [`ViaHub`] has it.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ViaHubArg {
    /// While the source in charge is a YurtHub.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// `--closure-failure`, as [`ClosureFailure`] has it.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ClosureFailureArg {
    /// Such endpoints are inside if they were when that was last known, else outside.
    LastKnown,
    /// Such endpoints are inside.
    Open,
    /// Such endpoints are outside.
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
            access: Access {
                kubeconfig: self.kubeconfig.clone(),
                ..Access::from_env(self.kube_ca.clone())
            },
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
            serves_packets: self.packet_path == PacketPathArg::On,
            node_ports: self.nodeport_addresses.clone(),
            protect: ProtectConfig {
                given: self.protect.clone(),
                external_ips: self.external_ips.clone(),
                ..ProtectConfig::default()
            },
            max_health_checks: MAX_HEALTH_CHECKS,
        }
    }
}
