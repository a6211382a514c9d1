//! OpenYurt's filter and kube-proxy, written a second time and another way.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::super::environment::ZONE_LABEL;
use super::super::{ClosureFailure, POOL_LABEL};
use crate::model::{Endpoint, Hints, Service, Snapshot, TrafficPolicy};
use crate::table::{Frontend, FrontendKind, Scope, Verdict};

/// OpenYurt's filter, written as YurtHub runs it: slice by slice, endpoint by endpoint, with what it gets wrong put
/// right. It looks at all snapshots so far instead of keeping a memory.
pub(super) struct Filter<'a> {
    pub(super) past: &'a [Snapshot],
    pub(super) failure: ClosureFailure,
    pub(super) flag: Option<&'a str>,
}

impl Filter<'_> {
    /// `Some("")`: in no pool. `None`: nobody knows.
    fn own_pool(&self, at: usize) -> Option<String> {
        let label = |snapshot: &Snapshot| {
            let node = snapshot.nodes.get("a1")?;
            Some(node.labels.get(POOL_LABEL).cloned().unwrap_or_default())
        };
        let remembered = match self.failure {
            ClosureFailure::LastKnown => self.past[..=at].iter().rev().find_map(label),
            ClosureFailure::Open | ClosureFailure::Closed => label(&self.past[at]),
        };
        self.flag.map(str::to_owned).or(remembered)
    }

    fn says(&self, at: usize, pool: &str, node: &str) -> Option<bool> {
        let snapshot = &self.past[at];
        if let Some(node) = snapshot.nodes.get(node) {
            return Some(
                node.labels
                    .get(POOL_LABEL)
                    .is_some_and(|label| label == pool),
            );
        }
        let buckets: Vec<_> = snapshot
            .buckets
            .values()
            .filter(|b| b.pool == pool)
            .collect();
        if !buckets.is_empty() {
            return Some(buckets.iter().any(|b| b.nodes.iter().any(|n| n == node)));
        }
        let nodes = &snapshot.pools.get(pool)?.nodes;
        Some(nodes.iter().any(|n| n == node))
    }

    fn is_in_pool(&self, pool: &str, node: &str) -> bool {
        let now = self.past.len() - 1;
        if let Some(known) = self.says(now, pool, node) {
            return known;
        }
        match self.failure {
            ClosureFailure::Open => true,
            ClosureFailure::Closed => false,
            ClosureFailure::LastKnown => {
                for at in (0..now).rev() {
                    match self.own_pool(at).as_deref() {
                        None | Some("") => {}
                        Some(then) if then != pool => return false,
                        Some(_) => {
                            if let Some(known) = self.says(at, pool, node) {
                                return known;
                            }
                        }
                    }
                }
                false
            }
        }
    }

    fn keeps(&self, keys: Option<&str>, node: Option<&str>) -> bool {
        let own_pool = self.own_pool(self.past.len() - 1);
        match (keys, node) {
            (Some("kubernetes.io/hostname"), node) => node == Some("a1"),
            (Some("openyurt.io/nodepool" | "kubernetes.io/zone"), None) => false,
            (Some("openyurt.io/nodepool" | "kubernetes.io/zone"), Some("a1")) => true,
            (Some("openyurt.io/nodepool" | "kubernetes.io/zone"), Some(node)) => {
                match own_pool.as_deref() {
                    None => self.failure == ClosureFailure::Open,
                    Some("") => false,
                    Some(pool) => self.is_in_pool(pool, node),
                }
            }
            _ => true,
        }
    }

    /// What YurtHub leaves of a Service's endpoints in the family of `any`, and of two copies the one that kube-proxy
    /// takes.
    fn endpoints(&self, service: &Service, any: IpAddr) -> BTreeMap<SocketAddr, Endpoint> {
        let snapshot = &self.past[self.past.len() - 1];
        let keys = service.topology_keys.as_deref();
        let mut copies: BTreeMap<SocketAddr, Vec<Endpoint>> = BTreeMap::new();
        for slice in snapshot.slices.values() {
            for endpoint in slice.endpoints.iter() {
                let at = SocketAddr::new(endpoint.address, slice.ports[0].port);
                if slice.service == service.name.name
                    && at.is_ipv4() == any.is_ipv4()
                    && self.keeps(keys, endpoint.node_name().map(|node| &**node))
                {
                    copies.entry(at).or_default().push(endpoint);
                }
            }
        }
        let rank = |e: &Endpoint| {
            let is_worse = [e.is_terminating, !e.is_ready, !e.is_serving];
            let is_elsewhere = e.node_name().map(|node| &**node) != Some("a1");
            (
                is_worse,
                is_elsewhere,
                e.hints().cloned(),
                e.node_name().cloned(),
            )
        };
        copies
            .into_iter()
            .filter_map(|(at, copies)| Some((at, copies.into_iter().min_by_key(rank)?)))
            .collect()
    }

    fn zone(&self) -> Option<&str> {
        let node = self.past[self.past.len() - 1].nodes.get("a1")?;
        node.labels.get(ZONE_LABEL).map(String::as_str)
    }

    /// What a row does: kube-proxy's rules for packets, one at a time, asked for one client.
    pub(super) fn row(
        &self,
        service: &Service,
        frontend: &Frontend,
        scope: Scope,
    ) -> (Verdict, Vec<SocketAddr>, bool) {
        let endpoints = self.endpoints(service, frontend.address);
        let ready: BTreeMap<_, _> = endpoints.iter().filter(|(_, e)| e.is_ready).collect();
        let lingering: BTreeMap<_, _> = endpoints
            .iter()
            .filter(|(_, e)| !e.is_ready && e.is_serving && e.is_terminating)
            .collect();
        let is_here = |e: &Endpoint| e.node_name().map(|node| &**node) == Some("a1");
        let local = |all: &BTreeMap<&SocketAddr, &Endpoint>| -> Vec<SocketAddr> {
            let here = all.iter().filter(|(_, e)| is_here(e));
            here.map(|(at, _)| **at).collect()
        };
        let is_internal = scope == Scope::Internal;
        let (is_local, is_masqueraded) = match (frontend.kind, service.external_policy) {
            (FrontendKind::ClusterIp, _) => (
                service.internal_policy == TrafficPolicy::Local,
                !is_internal,
            ),
            (_, TrafficPolicy::Local) => (!is_internal, false),
            (_, TrafficPolicy::Cluster) => (false, !is_internal),
        };
        let selected = if ready.is_empty() && lingering.is_empty() {
            return (Verdict::Refuse, Vec::new(), is_masqueraded);
        } else if is_local && !local(&ready).is_empty() {
            local(&ready)
        } else if is_local {
            local(&lingering)
        } else if ready.is_empty() {
            lingering.keys().map(|at| **at).collect()
        } else {
            let hinted = |list: fn(&Hints) -> &[Arc<str>], wanted: Option<&str>| {
                let list_of =
                    |e: &Endpoint| e.hints().map(|h| list(h).to_vec()).unwrap_or_default();
                let is_meant = |e: &Endpoint| list_of(e).iter().any(|name| Some(&**name) == wanted);
                let meant: Vec<SocketAddr> = ready
                    .iter()
                    .filter(|(_, e)| is_meant(e))
                    .map(|(at, _)| **at)
                    .collect();
                let has_unhinted = ready.values().any(|e| list_of(e).is_empty());
                (!has_unhinted && !meant.is_empty()).then_some(meant)
            };
            hinted(|h| &h.nodes, Some("a1"))
                .or_else(|| hinted(|h| &h.zones, self.zone()))
                .unwrap_or_else(|| ready.keys().map(|at| **at).collect())
        };
        match selected.is_empty() {
            true => (Verdict::Drop, selected, is_masqueraded),
            false => (Verdict::Forward, selected, is_masqueraded),
        }
    }
}
