//! The endpoints of a service port: slices joined, closed, and sorted by traffic policy.
//!
//! Pure. In: a Service, its slices, `Environment`. Out: `EndpointSet`s. Rules in order: (0) where Pods of this node
//! really are, `pods::truth`, while the snapshot is old, and addresses that no host has left out; (1) slice ports of
//! equal name and protocol; (2) closure, `topology`; (3) of two copies of an address and port the one that is not
//! terminating speaks; (4) `traffic`; (5) probes, where they are asked. Reference: kubernetes/kubernetes
//! pkg/proxy/endpointslicecache.go; behind a YurtHub, openyurtio/openyurt
//! pkg/yurthub/filter/forwardkubesvctraffic/filter.go.
#![forbid(unsafe_code)]

/// A single-stack Service does not exist in the other family, whatever other addresses it lists
/// (kube-proxy `GetClusterIPByFamily`).
pub(super) fn has_family(service: &Service, address: IpAddr) -> bool {
    let mut cluster_ips = service.cluster_ips.iter();
    cluster_ips.any(|ip| ip.is_ipv4() == address.is_ipv4())
}

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use super::environment::Environment;
use super::protected::{HUB_PORT, HUB_V4, HUB_V6, is_hub, special};
use super::topology::Outside;
use super::traffic::{Candidate, Categories};
use crate::model::{
    AddressFamily, Endpoint, EndpointSlice, MAX_PORTS, Protocol, Service, ServicePort,
    TrafficPolicy,
};
use crate::pods::probe::Failing;
use crate::pods::truth::Move;
use crate::table::{Backends, Closure, EndpointSet, Frontend, FrontendKind, MAX_ENDPOINTS};
use crate::text;

/// The slice as the policy reads it. That of the apiserver itself leads to YurtHub where this node is behind one, so
/// that Pods reach the API while the cloud is away; endpoints of this node are where their Pods are.
fn seen<'a>(slice: &'a EndpointSlice, environment: &Environment) -> Cow<'a, EndpointSlice> {
    if !(is_apiserver_slice(slice) && environment.is_behind_hub) {
        let truth = environment.truth.iter();
        let mut moves = truth.flat_map(|truth| truth.moves(slice)).peekable();
        if moves.peek().is_none() {
            return Cow::Borrowed(slice);
        }
        let mut endpoints: Vec<Endpoint> = slice.endpoints.iter().collect();
        let mut away = BTreeSet::new();
        for (index, _, moved) in moves {
            match moved {
                Move::To(address) => endpoints[index].address = address,
                Move::Away => {
                    away.insert(index);
                }
            }
        }
        let mut indices = 0..;
        endpoints.retain(|_| indices.next().is_some_and(|index| !away.contains(&index)));
        return Cow::Owned(EndpointSlice {
            endpoints: endpoints.into(),
            // They have served their purpose here.
            pods: Box::default(),
            ..slice.clone()
        });
    }
    let mut slice = slice.clone();
    if let Some(https) = Arc::make_mut(&mut slice.ports)
        .iter_mut()
        .find(|port| &*port.name == "https")
    {
        https.port = HUB_PORT;
    }
    slice.endpoints = vec![Endpoint {
        address: match slice.family {
            AddressFamily::V4 => HUB_V4.into(),
            AddressFamily::V6 => HUB_V6.into(),
        },
        is_ready: true,
        is_serving: true,
        is_terminating: false,
        placement: None,
    }]
    .into();
    Cow::Owned(slice)
}

/// Whether a slice is that of the apiservers.
fn is_apiserver_slice(slice: &EndpointSlice) -> bool {
    (&*slice.name.namespace, &*slice.name.name) == ("default", "kubernetes")
}

/// The slices of a Service as the policy reads them, and where in them each port is.
pub(super) struct Slices<'a> {
    all: Vec<Cow<'a, EndpointSlice>>,
    /// Indices of a slice and of a port in it, sorted by name and protocol of the port: a Service may have a thousand
    /// ports and a thousand slices.
    by_port: SmallVec<[(u32, u32); 2]>,
}

impl<'a> Slices<'a> {
    /// All of them.
    pub(super) fn new(
        slices: impl IntoIterator<Item = &'a Arc<EndpointSlice>>,
        environment: &Environment,
    ) -> Self {
        let slices = slices.into_iter();
        let mut all = Self {
            all: slices.map(|slice| seen(slice, environment)).collect(),
            by_port: SmallVec::new(),
        };
        all.index();
        all
    }

    fn index(&mut self) {
        self.by_port.clear();
        for (at, slice) in (0u32..).zip(&self.all) {
            let ports = (0u32..).zip(slice.ports.iter().take(MAX_PORTS));
            self.by_port.extend(ports.map(|(port, _)| (at, port)));
        }
        let all = &self.all;
        let key = |&(slice, port): &(u32, u32)| {
            let port = &all[slice as usize].ports[port as usize];
            (&*port.name, port.protocol)
        };
        self.by_port.sort_by(|a, b| key(a).cmp(&key(b)));
    }

    /// The slices that have a port, with the number that it has there: each has its own, for Pods may resolve a named
    /// targetPort differently.
    fn with_port(
        &self,
        name: &str,
        protocol: Protocol,
    ) -> impl Iterator<Item = (&EndpointSlice, u16)> {
        let at = |&(slice, port): &(u32, u32)| {
            let slice = &*self.all[slice as usize];
            (slice, &slice.ports[port as usize])
        };
        let key = move |place: &(u32, u32)| {
            let (_, port) = at(place);
            (&*port.name, port.protocol)
        };
        let first = self
            .by_port
            .partition_point(|place| key(place) < (name, protocol));
        let places = self.by_port.iter().skip(first).map(at);
        places
            .take_while(move |(_, port)| (&*port.name, port.protocol) == (name, protocol))
            .map(|(slice, port)| (slice, port.port))
    }

    /// How many endpoints on this node are ready, on any port. One of two families counts once: the more of them there
    /// are in either.
    pub(super) fn ready_here(&self, environment: &Environment) -> usize {
        let with_ports = self.all.iter().filter(|slice| !slice.ports.is_empty());
        let ready = with_ports.flat_map(|slice| {
            let endpoints = slice.endpoints.iter();
            endpoints.filter(move |endpoint| {
                endpoint.is_ready
                    && environment.topology.is_here(endpoint)
                    && unfit(slice, endpoint.address, environment).is_none()
            })
        });
        let addresses: BTreeSet<IpAddr> = ready.map(|endpoint| endpoint.address).collect();
        let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
        v4.max(addresses.len() - v4)
    }

    /// The complaints about endpoints that take no traffic on any node.
    pub(super) fn unfit(&self, environment: &Environment) -> Vec<String> {
        let mut reasons = Vec::new();
        for slice in &self.all {
            let why = |endpoint: Endpoint| {
                let outside = unfit(slice, endpoint.address, environment)?;
                Some(environment.topology.describe(outside, &endpoint))
            };
            let mut all = slice.endpoints.iter().filter_map(why);
            let Some(first) = all.next() else { continue };
            let name = text::name(&slice.name.name);
            reasons.push(match all.count() {
                0 => format!("EndpointSlice {name}: an endpoint is left out: {first}"),
                more => format!(
                    "EndpointSlice {name}: {} endpoints are left out, the first because {first}",
                    more + 1
                ),
            });
        }
        // Slices are in no order.
        reasons.sort_unstable();
        reasons
    }

    /// Leaves out endpoints and ports beyond the limits of one Service; returns the complaints about them.
    pub(super) fn keep_within_limits(&mut self, ports: &[&ServicePort]) -> Vec<String> {
        let mut reasons = Vec::new();
        for slice in self
            .all
            .iter()
            .filter(|slice| slice.ports.len() > MAX_PORTS)
        {
            let name = text::name(&slice.name.name);
            reasons.push(format!(
                "EndpointSlice {name} has more than {MAX_PORTS} ports: those after the first {MAX_PORTS} are left out"
            ));
        }
        let wanted = ports
            .iter()
            .flat_map(|port| self.with_port(&port.name, port.protocol));
        let endpoints: usize = wanted.map(|(slice, _)| slice.endpoints.len()).sum();
        if endpoints <= MAX_ENDPOINTS {
            return reasons;
        }
        // In an order that does not depend on when they came.
        self.all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let wanted: BTreeSet<_> = ports.iter().map(|p| (&*p.name, p.protocol)).collect();
        let mut left = MAX_ENDPOINTS;
        for slice in &mut self.all {
            let ports = slice.ports.iter().take(MAX_PORTS);
            let served = ports.filter(|p| wanted.contains(&(&*p.name, p.protocol)));
            let served = served.count();
            let most = left.checked_div(served).unwrap_or(usize::MAX);
            if slice.endpoints.len() > most {
                let mut cut = slice.clone().into_owned();
                cut.endpoints.truncate(most);
                *slice = Cow::Owned(cut);
            }
            left -= served * slice.endpoints.len();
        }
        self.index();
        reasons.push(format!(
            "its ports have {endpoints} endpoints, and at most {MAX_ENDPOINTS} are served: those of the last EndpointSlices \
             by name are left out"
        ));
        reasons
    }
}

/// Why an address takes no traffic from any client. An apiserver refuses most of these (ValidateEndpointIP), so only
/// manifests have them; kube-proxy skips the others one by one (endpointslicecache.go).
fn unfit(slice: &EndpointSlice, address: IpAddr, environment: &Environment) -> Option<Outside> {
    if AddressFamily::from(address) != slice.family {
        return Some(Outside::OtherFamily(slice.family));
    }
    if let Some(what) = special(address) {
        let is_ours = is_apiserver_slice(slice) && is_hub(address);
        return (!is_ours).then_some(Outside::NoHost(what));
    }
    let is_virtual = environment.service_cidrs.contain(address);
    is_virtual.then_some(Outside::NoHost("an address of Services"))
}

/// The endpoints of one port in the family of `any` that are inside the closure, sorted, each once; `outside` gets the
/// others. A copy outside the closure does not count: YurtHub removes it before a proxy sees it.
pub(super) fn candidates(
    port: &ServicePort,
    any: IpAddr,
    closure: Closure,
    slices: &Slices<'_>,
    environment: &Environment,
    mut outside: impl FnMut(SocketAddr, &Endpoint, Outside),
) -> Vec<Candidate> {
    let topology = &environment.topology;
    let mut found = Vec::new();
    let with_port = slices.with_port(&port.name, port.protocol);
    for (slice, number) in with_port.filter(|(slice, _)| slice.family == any.into()) {
        for endpoint in slice.endpoints.iter() {
            let at = SocketAddr::new(endpoint.address, number);
            let unfit = unfit(slice, endpoint.address, environment);
            match unfit.or_else(|| topology.outside(closure, &endpoint)) {
                Some(reason) => outside(at, &endpoint, reason),
                None => found.push(Candidate {
                    at,
                    is_here: topology.is_here(&endpoint),
                    endpoint,
                }),
            }
        }
    }
    // While a Pod moves from slice to slice it is in both, and an address may be given to a new Pod before the old one
    // is gone. The best copy counts; any order that does not depend on slices will do.
    let rank = |c: &Candidate| {
        let e = &c.endpoint;
        (e.is_terminating, !e.is_ready, !e.is_serving, !c.is_here)
    };
    found.sort_unstable_by(|a, b| {
        let by_rest = || {
            let [a, b] = [a, b].map(|c| (c.endpoint.hints(), c.endpoint.node_name()));
            a.cmp(&b)
        };
        (a.at, rank(a)).cmp(&(b.at, rank(b))).then_with(by_rest)
    });
    found.dedup_by_key(|candidate| candidate.at);
    found
}

/// Selected endpoints whose probes fail, with the failure; at most half of all, so never the last one: if most fail,
/// the probe itself may be wrong.
pub(super) fn ejected<'a>(
    selected: &[&Candidate],
    protocol: Protocol,
    failing: &'a Failing,
) -> BTreeMap<SocketAddr, &'a str> {
    let here = selected.iter().filter(|candidate| candidate.is_here);
    let failing = here.filter_map(|candidate| {
        let failure = failing.get(&(candidate.at, protocol))?;
        Some((candidate.at, &**failure))
    });
    failing.take(selected.len() / 2).collect()
}

/// The empty list is one for all.
pub(super) fn shared<T>(list: Vec<T>) -> Arc<[T]> {
    match list.is_empty() {
        true => Arc::default(),
        false => list.into(),
    }
}

/// The endpoints of one port in the family of `any`, for the frontends that it has.
pub(super) fn endpoint_set(
    service: &Service,
    port: &ServicePort,
    any: IpAddr,
    closure: Closure,
    slices: &Slices<'_>,
    frontends: &[Frontend],
    environment: &Environment,
) -> EndpointSet {
    if !has_family(service, any) {
        return EndpointSet::default();
    }
    let candidates = candidates(port, any, closure, slices, environment, |_, _, _| ());
    let categories = Categories::new(&candidates, environment.topology.node(), &environment.zone);
    let is_external =
        |f: &Frontend| f.kind != FrontendKind::ClusterIp && f.address.is_ipv4() == any.is_ipv4();
    let has_external = frontends.iter().any(is_external);
    let select = |policy| -> Backends {
        let selected = candidates
            .iter()
            .filter(|candidate| categories.against(candidate, policy).is_none());
        let failing = &environment.failing;
        if failing.is_empty() {
            return selected.map(|candidate| candidate.at).collect();
        }
        let selected: Vec<&Candidate> = selected.collect();
        let ejected = ejected(&selected, port.protocol, failing);
        let selected = selected.iter().map(|candidate| candidate.at);
        selected.filter(|at| !ejected.contains_key(at)).collect()
    };
    let uses_cluster = service.internal_policy == TrafficPolicy::Cluster || has_external;
    let uses_local = service.internal_policy == TrafficPolicy::Local
        || (service.external_policy == TrafficPolicy::Local && has_external);
    let cluster = match uses_cluster {
        true => select(TrafficPolicy::Cluster),
        false => Backends::default(),
    };
    let local = match uses_local {
        true => select(TrafficPolicy::Local),
        false => Backends::default(),
    };
    EndpointSet {
        local: if local == cluster {
            cluster.clone()
        } else {
            local
        },
        cluster,
        has_any: categories.has_any(),
    }
}
