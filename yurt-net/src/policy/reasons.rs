//! Why an endpoint takes traffic here, or does not.
//!
//! Pure. In: what `compile` had. Out: for a frontend and a scope the rule that kept endpoints, and each endpoint that was
//! dropped with the first rule that did it. The table holds none of this: a node of one pool sees the endpoints of
//! all others, and the running agent would hold a reason for each. It is found again by the same code when somebody asks.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::endpoints::{Slices, candidates, ejected};
use super::traffic::Categories;
use super::{Environment, Memory, NodeView, PolicyConfig, edge};
use crate::model::{EndpointSlice, NamespacedName, PoolService, Protocol, ServicePort, Snapshot};
use crate::retain::truth::Move;
use crate::table::{Dropped, Frontend, Scope, ServiceEntry};

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
    /// What the endpoints that take traffic have in common; "" when there are none.
    pub kept: String,
    /// The others, sorted.
    pub dropped: Vec<Dropped>,
}

impl<'a> Reasons<'a> {
    /// The arguments are those that `compile` had; its `Memory` may be the one that it returned.
    pub fn new(
        snapshot: &'a Snapshot,
        config: &PolicyConfig,
        view: &NodeView,
        memory: &Memory,
    ) -> Self {
        let (environment, _) = Environment::new(snapshot, config, view, memory, &mut Vec::new());
        let mut slices: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for slice in snapshot.slices.values().filter(|slice| !slice.is_headless) {
            let name = (&*slice.name.namespace, &*slice.service);
            slices.entry(name).or_default().push(slice);
        }
        Self {
            snapshot,
            environment,
            slices,
        }
    }

    /// Whose address and port this is that is a frontend on other nodes but not on this one, and why.
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
                let namespace = &slice.name.namespace;
                let reason = match to {
                    Move::To(address) => format!(
                        "Pod {namespace}/{pod} is at {address} by now: the ledger knows, and the source is stale"
                    ),
                    Move::Away => format!(
                        "Pod {namespace}/{pod} is not running: the ledger knows, and the source is stale"
                    ),
                };
                let address = slice.endpoints[index].address;
                moved.extend(ports.iter().map(|port| Dropped {
                    endpoint: SocketAddr::new(address, *port),
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
        let slices = self.slices.get(&(&*key.namespace, &*key.name));
        let moved = self.moved(
            slices.into_iter().flatten().copied(),
            port,
            frontend.address,
        );
        let slices = Slices::new(slices.into_iter().flatten().copied(), &self.environment);
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
        Why {
            kept: match selected.is_empty() {
                false => categories.kept(policy),
                true => String::new(),
            },
            dropped,
        }
    }
}
