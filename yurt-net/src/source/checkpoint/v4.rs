//! Services as checkpoints up to version 4 have them: nothing says when they were made. Pure.

#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::model::{self, NamespacedName, ServicePort, ServiceType, TOO_LONG, TrafficPolicy};

/// See [`model::Service`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Service {
    name: NamespacedName,
    service_type: ServiceType,
    cluster_ips: Box<[IpAddr]>,
    external_ips: Box<[IpAddr]>,
    load_balancer_ips: Box<[IpAddr]>,
    ports: Box<[ServicePort]>,
    internal_policy: TrafficPolicy,
    external_policy: TrafficPolicy,
    affinity_seconds: u32,
    source_ranges: Box<[IpNetwork]>,
    topology_keys: Option<Arc<str>>,
    listen: Option<Arc<str>>,
    is_discarded: bool,
    is_proxied_elsewhere: bool,
}

impl From<Service> for model::Service {
    fn from(old: Service) -> Self {
        Self {
            created_at: 0,
            name: old.name,
            service_type: old.service_type,
            cluster_ips: old.cluster_ips,
            external_ips: old.external_ips,
            load_balancer_ips: old.load_balancer_ips,
            ports: old.ports,
            internal_policy: old.internal_policy,
            external_policy: old.external_policy,
            affinity_seconds: old.affinity_seconds,
            source_ranges: old.source_ranges,
            topology_keys: old.topology_keys,
            // They were kept whole, whatever their length.
            listen: old.listen.map(|listen| match listen.len() {
                ..=4096 => listen,
                _ => TOO_LONG.into(),
            }),
            is_discarded: old.is_discarded,
            is_proxied_elsewhere: old.is_proxied_elsewhere,
        }
    }
}

#[cfg(test)]
impl From<model::Service> for Service {
    fn from(service: model::Service) -> Self {
        Self {
            name: service.name,
            service_type: service.service_type,
            cluster_ips: service.cluster_ips,
            external_ips: service.external_ips,
            load_balancer_ips: service.load_balancer_ips,
            ports: service.ports,
            internal_policy: service.internal_policy,
            external_policy: service.external_policy,
            affinity_seconds: service.affinity_seconds,
            source_ranges: service.source_ranges,
            topology_keys: service.topology_keys,
            listen: service.listen,
            is_discarded: service.is_discarded,
            is_proxied_elsewhere: service.is_proxied_elsewhere,
        }
    }
}
