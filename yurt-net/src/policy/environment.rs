//! The inputs that all Services of a table share.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::inputs::{Memory, NodeView, PolicyConfig, ViaHub};
use super::node_addresses::node_addresses;
use super::pod_networks::{Pods, SystemEndpoints};
use super::prefixes::GivenCidrs;
use super::protected::Protected;
use super::protected::wrong_pod_cidrs;
use super::topology::Topology;
use crate::model::{Rejection, Service, Snapshot};
use crate::pods::probe::Failing;
use crate::pods::truth::Truth;
use crate::table::{FrontendKind, Standing};

/// Well-known label of a Node, shown in the table.
pub(super) const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The inputs that all Services share, and the table as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Environment {
    pub(super) topology: Topology,
    /// `topology.kubernetes.io/zone` of this node; "" when it has none.
    pub(super) zone: String,
    pub(super) node_addresses: Vec<IpAddr>,
    /// Addresses on interfaces of this machine; `None`: not known.
    pub(super) local_addresses: Option<BTreeSet<IpAddr>>,
    /// The prefixes of ClusterIPs.
    pub(super) service_cidrs: GivenCidrs,
    pub(super) is_behind_hub: bool,
    pub(super) compat_drop_service: bool,
    pub(super) compat_all_vips: bool,
    pub(super) serves_packets: bool,
    pub(super) max_health_checks: usize,
    pub(super) protected: Protected,
    /// Where Pods are.
    pub(super) pods: Pods,
    pub(super) truth: Option<Arc<Truth>>,
    pub(super) failing: Arc<Failing>,
}

impl Environment {
    /// Why a Service has no frontend of a kind at an address, whatever its port.
    pub(super) fn refuses(
        &self,
        service: &Service,
        kind: FrontendKind,
        address: IpAddr,
    ) -> Option<String> {
        let of_a_pod = || {
            let is_written = matches!(kind, FrontendKind::ExternalIp | FrontendKind::LoadBalancer);
            if !is_written || self.protected.node(address).is_some() {
                return None;
            }
            let standing = Standing::of(&service.name.namespace, &service.name.name);
            self.pods.refuses(kind, address, standing)
        };
        self.protected.refuses(kind, address).or_else(of_a_pod)
    }

    /// `last`: the environment of the last compile, if there is one.
    pub(super) fn new(
        last: Option<&Self>,
        snapshot: &Snapshot,
        config: &PolicyConfig,
        view: &NodeView,
        memory: &Memory,
        rejections: &mut Vec<Rejection>,
    ) -> (Self, Memory) {
        let (topology, mut memory) = Topology::resolve(snapshot, config, memory, rejections);
        let known = &memory.node_addresses;
        memory.node_addresses = node_addresses(snapshot, config, view, known, rejections);
        rejections.extend(wrong_pod_cidrs(snapshot));
        let node = snapshot.nodes.get(&*config.node);
        let zone = node.and_then(|node| node.labels.get(ZONE_LABEL));
        let environment = Self {
            topology,
            zone: zone.cloned().unwrap_or_default(),
            node_addresses: memory.node_addresses.clone(),
            local_addresses: view.local_addresses.clone(),
            service_cidrs: GivenCidrs::new(&config.service_cidrs, snapshot),
            is_behind_hub: match config.kubernetes_via_hub {
                ViaHub::Auto => config.is_source_hub,
                ViaHub::On => true,
                ViaHub::Off => false,
            },
            compat_drop_service: config.compat_drop_service,
            compat_all_vips: config.compat_all_vips,
            serves_packets: config.serves_packets,
            max_health_checks: config.max_health_checks,
            protected: Protected::new(snapshot, config, view),
            pods: Pods {
                ledger: view.pods.clone(),
                routes: view.pod_routes.clone(),
                system: SystemEndpoints::of(snapshot, last.map(|last| &last.pods.system)),
            },
            truth: view.truth.clone(),
            failing: view.failing.clone(),
        };
        (environment, memory)
    }
}
