//! Why an endpoint takes traffic here, or does not.
//!
//! Pure. In: the inputs of `compile`. Out: for a frontend and a scope, the rule that kept endpoints, and each endpoint
//! that was dropped with the first rule that dropped it; if none is left, the EndpointSlices that give no endpoint. The
//! table has no reasons: a node of one pool sees the endpoints of all others, and the agent would hold a reason for
//! each. The same code finds them again when `explain` or `plan` asks.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::edge;
use super::endpoints::{Slices, candidates, ejected};
use super::environment::Environment;
use super::inputs::{Memory, NodeView, PolicyConfig};
use super::traffic::Categories;
use crate::model::{
    AddressFamily, EndpointPort, EndpointSlice, NamespacedName, PoolService, Protocol, Service,
    ServicePort, ServiceType, Snapshot,
};
use crate::pods::truth::Move;
use crate::table::{Dropped, Frontend, Scope, ServiceEntry, ServiceKey};
use crate::text;

/// So many EndpointSlices of one Service, and ports of one of them, are named as useless; more are not.
const SAID: usize = 3;
/// So many EndpointSlices are examined that sort behind a Service's name.
const LOOKED_AT: usize = 100;

/// Answers for one snapshot.
#[derive(Clone, Debug)]
pub struct Reasons<'a> {
    snapshot: &'a Snapshot,
    environment: Environment,
    slices: BTreeMap<(&'a str, &'a str), Vec<&'a Arc<EndpointSlice>>>,
}

/// The answer for one frontend and scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Why {
    /// The rule that kept the endpoints which take traffic; "" when there are none.
    pub kept: String,
    /// The others, sorted.
    pub dropped: Vec<Dropped>,
    /// Where no endpoint takes traffic: a few clauses for people, which name the EndpointSlices that give none, or say
    /// that the Service has no EndpointSlice.
    pub idle: Vec<String>,
}

impl<'a> Reasons<'a> {
    /// The arguments are those that `compile` had; its `Memory` may be the one that it returned.
    pub fn new(
        snapshot: &'a Snapshot,
        config: &PolicyConfig,
        view: &NodeView,
        memory: &Memory,
    ) -> Self {
        let (environment, _) =
            Environment::new(None, snapshot, config, view, memory, &mut Vec::new());
        let mut slices: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for slice in snapshot.slices.values() {
            let name = (&*slice.name.namespace, &*slice.service);
            slices.entry(name).or_default().push(slice);
        }
        Self {
            snapshot,
            environment,
            slices,
        }
    }

    /// Whether the interfaces of the node are known.
    pub fn see_interfaces(&self) -> bool {
        self.environment.local_addresses.is_some()
    }

    /// The Service whose frontend this is on other nodes but not on this one, and why; in words.
    pub fn withheld(&self, to: SocketAddr, protocol: Protocol) -> Option<String> {
        self.snapshot.services.values().find_map(|service| {
            let is_its = |object: &&PoolService| {
                object.name.namespace == service.name.namespace
                    && *object.service == *service.name.name
            };
            let pool_services = self.snapshot.pool_services.values().map(|object| &**object);
            let pool_services: Vec<&PoolService> = pool_services.filter(is_its).collect();
            edge::withheld(service, &pool_services, &self.environment, to, protocol)
        })
    }

    /// Other Services that ask for an address and port which `key` has. Each has a rejection that says so.
    pub fn rivals(
        &self,
        key: &ServiceKey,
        to: SocketAddr,
        protocol: Protocol,
    ) -> impl Iterator<Item = &NamespacedName> {
        let owner = (&*key.namespace, &*key.name);
        let asks = move |service: &&Arc<Service>| {
            let is_balanced = service.service_type == ServiceType::LoadBalancer
                && service.load_balancer_ips.contains(&to.ip());
            let mut ports = service.ports.iter();
            (is_balanced || service.external_ips.contains(&to.ip()))
                && ports.any(|port| (port.protocol, port.port) == (protocol, to.port()))
                && (&*service.name.namespace, &*service.name.name) != owner
                && edge::is_served(service, &self.environment)
        };
        let services = self.snapshot.services.values().filter(asks);
        services.map(|service| &service.name)
    }

    /// The endpoints of a port, as their slices have them, whose Pods are somewhere else.
    fn moved<'s>(
        &'s self,
        slices: impl Iterator<Item = &'s Arc<EndpointSlice>>,
        port: &ServicePort,
        any: IpAddr,
    ) -> Vec<Dropped> {
        let mut moved = Vec::new();
        for slice in slices.filter(|slice| slice.family == any.into()) {
            let ports = slice.ports.iter();
            let ports: Vec<u16> = ports
                .filter(|p| p.name == port.name && p.protocol == port.protocol)
                .map(|p| p.port)
                .collect();
            let truth = self.environment.truth.iter();
            for (index, pod, to) in truth.flat_map(|truth| truth.moves(slice)) {
                let Some(endpoint) = slice.endpoints.get(index) else {
                    continue;
                };
                let namespace = &slice.name.namespace;
                let reason = match to {
                    Move::To(address) => format!(
                        "Pod {namespace}/{pod} is now at {address}: the ledger knows, and the source is stale"
                    ),
                    Move::Away => format!(
                        "Pod {namespace}/{pod} is not running: the ledger knows, and the source is stale"
                    ),
                };
                moved.extend(ports.iter().map(|port| Dropped {
                    endpoint: SocketAddr::new(endpoint.address, *port),
                    reason: reason.clone(),
                }));
            }
        }
        moved
    }

    /// Why the endpoints of a frontend are what they are for clients of `scope`.
    pub fn why(&self, entry: &ServiceEntry, frontend: &Frontend, scope: Scope) -> Why {
        let key = &entry.key;
        let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
        let Some(service) = self.snapshot.services.get(&name) else {
            return Why::default();
        };
        let mut ports = service.ports.iter();
        let Some(port) = ports.find(|p| p.name == key.port && p.protocol == key.protocol) else {
            return Why::default();
        };
        let labelled = self.slices.get(&(&*key.namespace, &*key.name));
        let served = || {
            let slices = labelled.into_iter().flatten().copied();
            slices.filter(|slice| !slice.is_headless)
        };
        let moved = self.moved(served(), port, frontend.address);
        let slices = Slices::new(served(), &self.environment);
        let topology = &self.environment.topology;
        let mut outside = Vec::new();
        let candidates = candidates(
            port,
            frontend.address,
            entry.closure,
            &slices,
            &self.environment,
            |at, endpoint, reason| outside.push((at, topology.describe(reason, endpoint))),
        );
        let categories = Categories::new(&candidates, topology.node(), &self.environment.zone);
        let policy = entry.policy(frontend.kind, scope);
        let mut selected = Vec::new();
        let mut dropped = Vec::new();
        for candidate in &candidates {
            match categories.against(candidate, policy) {
                None => selected.push(candidate),
                Some(rule) => dropped.push(Dropped {
                    endpoint: candidate.at,
                    reason: categories.describe(rule, candidate),
                }),
            }
        }
        let ejected = ejected(&selected, port.protocol, &self.environment.failing);
        dropped.extend(ejected.into_iter().map(|(endpoint, failure)| Dropped {
            endpoint,
            reason: format!("{failure}, and the source is stale"),
        }));
        outside.retain(|(at, _)| {
            candidates
                .binary_search_by(|candidate| candidate.at.cmp(at))
                .is_err()
        });
        let outside = outside.into_iter();
        dropped.extend(outside.map(|(endpoint, reason)| Dropped { endpoint, reason }));
        dropped.extend(moved);
        dropped.sort_unstable();
        dropped.dedup_by(|next, kept| next.endpoint == kept.endpoint);
        let (kept, idle) = match selected.is_empty() {
            false => (categories.kept(policy), Vec::new()),
            true => {
                let labelled = labelled.map_or(&[][..], Vec::as_slice);
                (String::new(), self.idle(&name, labelled, port, frontend))
            }
        };
        Why {
            kept,
            dropped,
            idle,
        }
    }

    /// The EndpointSlices of a Service that give a port no endpoint, and why; in words.
    fn idle(
        &self,
        service: &NamespacedName,
        labelled: &[&Arc<EndpointSlice>],
        port: &ServicePort,
        frontend: &Frontend,
    ) -> Vec<String> {
        let mut said = Vec::new();
        if labelled.is_empty() {
            let NamespacedName { namespace, name } = service;
            said.push(format!(
                "no EndpointSlice in namespace {} has the label kubernetes.io/service-name={}",
                text::name(namespace),
                text::name(name)
            ));
            said.extend(self.mislabelled(service));
            return said;
        }
        let family = AddressFamily::from(frontend.address);
        let idle = labelled.iter().filter_map(|slice| {
            let why = without_endpoint(slice, port, family)?;
            let name = text::name(&slice.name.name);
            Some(format!("EndpointSlice {name} {why}"))
        });
        let mut idle = idle.peekable();
        said.extend(idle.by_ref().take(SAID));
        if idle.peek().is_some() {
            said.push("and others".to_owned());
        }
        said
    }

    /// EndpointSlices that the controller would name so for the Service, but whose label names no Service.
    fn mislabelled(&self, service: &NamespacedName) -> Vec<String> {
        let named = self.snapshot.slices.range(service.clone()..);
        let named = named.take(LOOKED_AT).map(|(_, slice)| slice);
        let named = named.take_while(|slice| {
            slice.name.namespace == service.namespace && slice.name.name.starts_with(&*service.name)
        });
        let nobodys = named.filter(|slice| !self.snapshot.services.contains_key(&slice.owner()));
        let clauses = nobodys.map(|slice| {
            let (name, label) = (text::name(&slice.name.name), text::name(&slice.service));
            format!("EndpointSlice {name} has it with {label}, and no such Service exists")
        });
        clauses.take(SAID).collect()
    }
}

/// Why a slice has no endpoint for a port in a family, as the end of a sentence; `None` when it has.
fn without_endpoint(
    slice: &EndpointSlice,
    port: &ServicePort,
    family: AddressFamily,
) -> Option<String> {
    if slice.is_headless {
        return Some("has the label service.kubernetes.io/headless".to_owned());
    }
    if slice.endpoints.is_empty() {
        return Some("is empty".to_owned());
    }
    if slice.family != family {
        let [has, wanted] = [slice.family, family].map(|family| match family {
            AddressFamily::V4 => "IPv4",
            AddressFamily::V6 => "IPv6",
        });
        let count = slice.endpoints.len();
        return Some(format!(
            "has {count} endpoints by {has} and none by {wanted}"
        ));
    }
    let is_it = |p: &&EndpointPort| p.name == port.name && p.protocol == port.protocol;
    if slice.ports.iter().any(|p| is_it(&p)) {
        return None;
    }
    let wanted = format!("{} with {}", text::quoted(&port.name), port.protocol);
    let first = slice.ports.iter().take(SAID);
    let has: Vec<String> = first
        .map(|p| format!("{} with {}", text::quoted(&p.name), p.protocol))
        .collect();
    Some(match slice.ports.len().checked_sub(SAID) {
        None if has.is_empty() => format!("has no port with a number, and so none called {wanted}"),
        Some(more @ 1..) => {
            format!(
                "has no port {wanted}, only {} and {more} more",
                has.join(", ")
            )
        }
        _ => format!("has no port {wanted}, only {}", has.join(", ")),
    })
}
