//! The endpoints of a service port: slices joined, closed, and sorted by traffic policy.
//!
//! Pure. In: a Service, its slices, `Environment`. Out: `EndpointSet`s. Rules in order: (0) where Pods of this node really are,
//! `retain::truth`, while the snapshot is old; (1) slice ports of equal name and protocol; (2) closure, `topology`; (3) of two copies of an address and port the one that is not terminating speaks;
//! (4) `traffic`; (5) probes, where they are asked. Reference: kubernetes/kubernetes pkg/proxy/endpointslicecache.go; behind a YurtHub,
//! openyurtio/openyurt pkg/yurthub/filter/forwardkubesvctraffic/filter.go.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::Environment;
use super::edge::has_family;
use super::topology::Outside;
use super::traffic::{Candidate, Categories};
use crate::model::{
    AddressFamily, Endpoint, EndpointSlice, Protocol, Service, ServicePort, TrafficPolicy,
};
use crate::retain::probing::Failing;
use crate::retain::truth::Move;
use crate::table::{Backends, Closure, EndpointSet, Frontend, FrontendKind};

/// YurtHub's dummy interface and secure port (`DefaultDummyIfIP4`, `DefaultDummyIfIP6`, cmd/yurthub/app/options/options.go).
const HUB_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 1);
const HUB_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 2, 1);
const HUB_PORT: u16 = 10268;

/// The slice as the policy reads it. That of the apiserver itself leads to YurtHub where this node is behind one, so that
/// Pods reach the API while the cloud is away; endpoints of this node are where their Pods are.
fn seen<'a>(slice: &'a EndpointSlice, environment: &Environment) -> Cow<'a, EndpointSlice> {
    let is_apiserver = (&*slice.name.namespace, &*slice.name.name) == ("default", "kubernetes");
    if !(is_apiserver && environment.is_behind_hub) {
        let truth = environment.truth.iter();
        let mut moves = truth.flat_map(|truth| truth.moves(slice)).peekable();
        if moves.peek().is_none() {
            return Cow::Borrowed(slice);
        }
        let mut endpoints = slice.endpoints.to_vec();
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
            // They were of use here.
            pods: Box::default(),
            ..slice.clone()
        });
    }
    let mut slice = slice.clone();
    if let Some(https) = slice.ports.iter_mut().find(|port| &*port.name == "https") {
        https.port = HUB_PORT;
    }
    slice.endpoints = Box::new([Endpoint {
        address: match slice.family {
            AddressFamily::V4 => HUB_V4.into(),
            AddressFamily::V6 => HUB_V6.into(),
        },
        is_ready: true,
        is_serving: true,
        is_terminating: false,
        node_name: None,
        hints: None,
    }]);
    Cow::Owned(slice)
}

/// The slices of a Service as the policy reads them.
pub(super) fn all_seen<'a>(
    slices: impl IntoIterator<Item = &'a Arc<EndpointSlice>>,
    environment: &Environment,
) -> Vec<Cow<'a, EndpointSlice>> {
    slices
        .into_iter()
        .map(|slice| seen(slice, environment))
        .collect()
}

/// The endpoints of one port in the family of `any` that are inside the closure, sorted, each once; `outside` gets the
/// others. Copies outside do not speak: YurtHub takes them away before a proxy sees them.
pub(super) fn candidates<'a>(
    port: &ServicePort,
    any: IpAddr,
    closure: Closure,
    slices: &'a [Cow<'_, EndpointSlice>],
    environment: &Environment,
    mut outside: impl FnMut(SocketAddr, &'a Endpoint, Outside),
) -> Vec<Candidate<'a>> {
    let topology = &environment.topology;
    let mut found = Vec::new();
    for slice in slices.iter().filter(|slice| slice.family == any.into()) {
        // Each slice has its own number for the same port name: Pods may resolve a named targetPort differently.
        let mut ports = slice.ports.iter();
        while let Some(slice_port) =
            ports.find(|p| p.name == port.name && p.protocol == port.protocol)
        {
            let endpoints = slice.endpoints.iter();
            for endpoint in endpoints.filter(|e| e.address.is_ipv4() == any.is_ipv4()) {
                let at = SocketAddr::new(endpoint.address, slice_port.port);
                match topology.outside(closure, endpoint) {
                    Some(reason) => outside(at, endpoint, reason),
                    None => found.push(Candidate {
                        at,
                        endpoint,
                        is_here: topology.is_here(endpoint),
                    }),
                }
            }
        }
    }
    // While a Pod moves from slice to slice it is in both, and an address may be given to a new Pod before the old one is
    // gone. Of several that live the best speaks: any order that does not depend on slices will do.
    let rank = |c: &Candidate<'a>| {
        let e = c.endpoint;
        (e.is_terminating, !e.is_ready, !e.is_serving, !c.is_here)
    };
    found.sort_unstable_by(|a, b| {
        let by_rest = || {
            (&a.endpoint.hints, &a.endpoint.node_name)
                .cmp(&(&b.endpoint.hints, &b.endpoint.node_name))
        };
        (a.at, rank(a)).cmp(&(b.at, rank(b))).then_with(by_rest)
    });
    found.dedup_by_key(|candidate| candidate.at);
    found
}

/// Those of the selected whose probes fail, with what is said of them; at most half of all, so never the last one: where most fail,
/// it may be the question that is wrong.
pub(super) fn ejected<'a>(
    selected: &[&Candidate<'_>],
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
    slices: &[Cow<'_, EndpointSlice>],
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
        let selected: Vec<&Candidate<'_>> = selected.collect();
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
