//! The ports at which load balancers ask this node whether a Service has endpoints here.
//!
//! Pure. In: a Service with its slices; then all health checks that Services ask for. Out: `HealthCheck`s, at most one
//! for each port. Rules in order: (1) a load balancer with `externalTrafficPolicy: Local` and a `healthCheckNodePort`,
//! if this node serves it; (2) its ready endpoints on this node count, each address once, whatever their ports; (3) no
//! port by which the node is reached (`protected`); (4) no TCP NodePort, because connections to it never reach the
//! listener; a load balancer does not have the port at an address of this node (`conflicts`); (5) of several Services
//! the first by precedence, age and name; (6) at most `MAX_HEALTH_CHECKS`, or fewer where the agent may open few files:
//! first those of Services that come before tenants, then the first one of each namespace, the second one of each, and
//! so on. Reference: kubernetes/kubernetes pkg/proxy/healthcheck/service_health.go and
//! pkg/proxy/endpointschangetracker.go. Differs: there, no port is protected, and the first to bind has it.
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

/// Why a Service does not have its health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// This Service has the port as a NodePort.
    NodePort(NamespacedName),
    /// This Service has its health check there, and comes first.
    Another(NamespacedName),
    /// There are more than so many.
    TooMany(usize),
}

impl Refusal {
    /// In words, with the port that was asked for.
    pub(super) fn told(&self, port: u16) -> String {
        let why = match self {
            Self::NodePort(of) => format!("a NodePort of {of}"),
            Self::Another(of) => format!("that of {of}, which comes first"),
            Self::TooMany(most) => {
                let short = match most < &MAX_HEALTH_CHECKS {
                    true => {
                        ", and the agent may open no files for more: raise its limit of open files (RLIMIT_NOFILE)"
                    }
                    false => "",
                };
                format!("one too many: namespaces share the {most} of this node evenly{short}")
            }
        };
        format!("healthCheckNodePort {port} is {why}")
    }
}

/// The health checks that are served, sorted by port; the others by their Services.
pub(super) fn settle<'a>(
    mut asked: Vec<Asked>,
    entries: impl Iterator<Item = &'a Arc<ServiceEntry>>,
    most: usize,
) -> (Vec<HealthCheck>, BTreeMap<NamespacedName, Refusal>) {
    if asked.is_empty() {
        return (Vec::new(), BTreeMap::new());
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
    let (mut refused, mut order) = (BTreeMap::new(), Vec::new());
    for (_, check) in asked {
        let port = check.port;
        let why = if let Some(key) = node_ports.get(&port) {
            Refusal::NodePort(NamespacedName::new(key.namespace.clone(), key.name.clone()))
        } else if let Some(other) = served.get(&port) {
            Refusal::Another(other.service.clone())
        } else {
            order.push(port);
            served.insert(port, check);
            continue;
        };
        refused.insert(check.service, why);
    }
    // Otherwise one namespace with many checks would take the places of all others, on every node.
    let turns = text::in_turns(&order, most, |port| {
        let NamespacedName { namespace, name } = &served.get(port)?.service;
        Some(match Standing::of(namespace, name) {
            Standing::Tenant => (true, &**namespace, 0),
            // These come in the first turn.
            _ => (false, "", *port),
        })
    });
    let kept: BTreeSet<u16> = turns.into_iter().copied().collect();
    for port in order.iter().filter(|port| !kept.contains(port)) {
        let check = served.remove(port);
        refused.extend(check.map(|check| (check.service, Refusal::TooMany(most))));
    }
    (served.into_values().collect(), refused)
}

#[cfg(test)]
mod tests;
