//! The ports at which load balancers ask this node whether a Service has endpoints here.
//!
//! Pure. In: a Service with its slices; then all health checks that Services ask for. Out: `HealthCheck`s, at most one
//! for each port. Rules in order: (1) a load balancer with `externalTrafficPolicy: Local` and a `healthCheckNodePort`,
//! if this node serves it; (2) its ready endpoints on this node count, each address once, whatever their ports; (3) no
//! port by which the node is reached (`protected`); (4) no TCP NodePort, because connections to it never reach the
//! listener; (5) of several Services the first by precedence, age and name; (6) at most `MAX_HEALTH_CHECKS`: first
//! those of Services that come before tenants, then the first one of each namespace, the second one of each, and so on.
//! Reference: kubernetes/kubernetes pkg/proxy/healthcheck/service_health.go and pkg/proxy/endpointschangetracker.go.
//! Differs: there, no port is protected, and the first to bind has it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::edge;
use super::endpoints::Slices;
use super::environment::Environment;
use crate::model::{NamespacedName, PoolService, Protocol, Service, TrafficPolicy};
use crate::table::{FrontendKind, HealthCheck, MAX_HEALTH_CHECKS, ServiceEntry, Standing};
use crate::text;

/// The health check that one Service asks for; `refused` gets the reason if it cannot have it.
pub(super) fn health_check(
    service: &Service,
    pool_services: &[Arc<PoolService>],
    slices: &Slices<'_>,
    environment: &Environment,
    refused: &mut Vec<String>,
) -> Option<HealthCheck> {
    let port = service.health_check_node_port;
    if port == 0
        || service.external_policy != TrafficPolicy::Local
        || !edge::is_balanced_here(service, pool_services, environment)
    {
        return None;
    }
    if let Some(why) = environment.protected.refuses_listener(port) {
        refused.push(format!("healthCheckNodePort {port} is {why}"));
        return None;
    }
    Some(HealthCheck {
        port,
        service: service.name.clone(),
        local_endpoints: slices.ready_here(environment),
    })
}

/// A health check, and when its Service was made: seconds since 1970; 0 = unknown.
pub(super) type Asked = (u64, HealthCheck);

/// The health checks that are served, sorted by port; the others with the reason.
pub(super) fn settle<'a>(
    mut asked: Vec<Asked>,
    entries: impl Iterator<Item = &'a Arc<ServiceEntry>>,
) -> (Vec<HealthCheck>, Vec<(NamespacedName, String)>) {
    if asked.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let mut node_ports = BTreeMap::new();
    for entry in entries.filter(|entry| entry.key.protocol == Protocol::Tcp) {
        let of_node = |kind| kind == FrontendKind::NodePort;
        for frontend in entry.frontends.iter().filter(|f| of_node(f.kind)) {
            node_ports.entry(frontend.port).or_insert(&entry.key);
        }
    }
    asked.sort_by(|(a_made, a), (b_made, b)| {
        let rank = |made: u64, check: &HealthCheck| {
            let NamespacedName { namespace, name } = &check.service;
            // 0, which means unknown, becomes the largest.
            (Standing::of(namespace, name), made.wrapping_sub(1))
        };
        let by_name = || a.service.cmp(&b.service);
        rank(*a_made, a).cmp(&rank(*b_made, b)).then_with(by_name)
    });
    let mut served: BTreeMap<u16, HealthCheck> = BTreeMap::new();
    let (mut refused, mut order) = (Vec::new(), Vec::new());
    for (_, check) in asked {
        let port = check.port;
        let why = if let Some(key) = node_ports.get(&port) {
            format!("a NodePort of {}/{}", key.namespace, key.name)
        } else if let Some(other) = served.get(&port) {
            format!("that of {}, which comes first", other.service)
        } else {
            order.push(port);
            served.insert(port, check);
            continue;
        };
        refused.push(refusal(check, &why));
    }
    // Otherwise one namespace with many checks would take the places of all others, on every node.
    let turns = text::in_turns(&order, MAX_HEALTH_CHECKS, |port| {
        let NamespacedName { namespace, name } = &served.get(port)?.service;
        Some(match Standing::of(namespace, name) {
            Standing::Tenant => (true, &**namespace, 0),
            // These come in the first turn.
            _ => (false, "", *port),
        })
    });
    let kept: BTreeSet<u16> = turns.into_iter().copied().collect();
    let why = format!("one too many: namespaces share the {MAX_HEALTH_CHECKS} of this node evenly");
    for port in order.iter().filter(|port| !kept.contains(port)) {
        refused.extend(served.remove(port).map(|check| refusal(check, &why)));
    }
    (served.into_values().collect(), refused)
}

fn refusal(check: HealthCheck, why: &str) -> (NamespacedName, String) {
    let reason = format!("healthCheckNodePort {} is {why}", check.port);
    (check.service, reason)
}

#[cfg(test)]
mod tests;
