//! Services in checkpoints of version 5: without their health check port. Pure.

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
    created_at: u64,
    rest: Rest,
}

/// The fields that versions 4 and 5 share. In postcard, a struct within another is written like its fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rest {
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

impl Rest {
    /// The Service of the model.
    pub(super) fn of(self, name: NamespacedName, created_at: u64) -> model::Service {
        model::Service {
            name,
            created_at,
            service_type: self.service_type,
            cluster_ips: self.cluster_ips,
            external_ips: self.external_ips,
            load_balancer_ips: self.load_balancer_ips,
            ports: self.ports,
            internal_policy: self.internal_policy,
            external_policy: self.external_policy,
            affinity_seconds: self.affinity_seconds,
            source_ranges: self.source_ranges,
            topology_keys: self.topology_keys,
            // Version 4 kept annotations of any length.
            listen: self.listen.map(|listen| match listen.len() {
                ..=4096 => listen,
                _ => TOO_LONG.into(),
            }),
            is_discarded: self.is_discarded,
            is_proxied_elsewhere: self.is_proxied_elsewhere,
            health_check_node_port: 0,
        }
    }
}

impl From<Service> for model::Service {
    fn from(old: Service) -> Self {
        old.rest.of(old.name, old.created_at)
    }
}

#[cfg(test)]
impl From<&model::Service> for Rest {
    fn from(service: &model::Service) -> Self {
        let service = service.clone();
        Self {
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

#[cfg(test)]
impl From<model::Service> for Service {
    fn from(service: model::Service) -> Self {
        Self {
            rest: Rest::from(&service),
            name: service.name,
            created_at: service.created_at,
        }
    }
}
