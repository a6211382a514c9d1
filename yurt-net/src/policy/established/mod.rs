//! The fate of flows that were established before the table changed.
//!
//! Pure. In: the table, the snapshot that it was compiled from, and flows: the frontend that a client dialled, and its
//! backend. Out: how the backend stands with the Service now, and from that the fate of the flow. Rules in order: (1)
//! the backend is among the endpoints of the frontend; (2) it is a serving endpoint of the Service inside the closure,
//! which traffic policy, hints or readier ones keep new flows from: as for kube-proxy, that is no reason to end old
//! ones; (3) it is a serving endpoint outside the closure; (4) it does not serve. Reference: kubernetes/kubernetes
//! pkg/proxy/conntrack/cleanup.go.
#![forbid(unsafe_code)]

mod suspects;

pub use self::suspects::{Backends as SuspectBackends, Suspects};

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::endpoints::{Slices, candidates};
use super::environment::Environment;
use super::inputs::{Memory, NodeView, PolicyConfig};
use crate::model::{Endpoint, EndpointSlice, NamespacedName, Protocol, Snapshot};
use crate::table::{Backends, Frontend, FrontendKind, Scope, ServiceEntry, ServiceTable};

/// `--closure-established`: what happens to established flows to a backend that serves, but is now outside the closure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClosureEstablished {
    /// They live on until they end by themselves.
    #[default]
    Keep,
    /// They are ended, TCP too.
    Reset,
}

/// The frontend that a client dialled, and its backend. IPv4 addresses are plain, never IPv4-mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The frontend.
    pub frontend: SocketAddr,
    /// The endpoint.
    pub backend: SocketAddr,
}

/// How a backend stands with the Service whose frontend was dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// New flows go there.
    InForce,
    /// It serves inside the closure, but new flows go to others.
    Serving,
    /// It serves outside the closure.
    OutsideClosure,
    /// It does not serve the Service any more, or nothing here has the frontend.
    Withdrawn,
}

/// The action for a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// No action, now or later, until the table changes again.
    Keep,
    /// No action yet, but the agent watches: no table will show the end of its backend.
    Watch,
    /// It is ended.
    End,
}

impl Standing {
    /// The fate of a flow whose backend has this standing. TCP notices a dead peer by itself, so its flows to a
    /// withdrawn backend are left alone.
    pub fn fate(self, protocol: Protocol, mode: ClosureEstablished) -> Fate {
        match (self, mode) {
            (Self::InForce, _) => Fate::Keep,
            (Self::Serving, _) => Fate::Watch,
            (Self::OutsideClosure, ClosureEstablished::Keep) => Fate::Watch,
            (Self::OutsideClosure, ClosureEstablished::Reset) => Fate::End,
            (Self::Withdrawn, _) if protocol == Protocol::Udp => Fate::End,
            (Self::Withdrawn, _) => Fate::Keep,
        }
    }
}

/// The backends whose flows may have lost them from one table to the next. Both are sorted.
pub(super) fn lost(old: &[Arc<ServiceEntry>], new: &[Arc<ServiceEntry>]) -> Suspects {
    let mut new = new.iter().peekable();
    let mut lost = Suspects::default();
    for old in old {
        while new.next_if(|new| new.key < old.key).is_some() {}
        match new.next_if(|new| new.key == old.key) {
            Some(new) if Arc::ptr_eq(old, new) => {}
            new => lost_by(old, new.map(|new| &**new), &mut lost),
        }
    }
    lost
}

/// Adds those of one service port; `None`: it is gone. Too many do no harm: the caller examines the flows next.
pub(super) fn lost_by(old: &ServiceEntry, new: Option<&ServiceEntry>, lost: &mut Suspects) {
    let is_kept = |new: &ServiceEntry| {
        let mut frontends = old.frontends.iter();
        old.internal_policy == new.internal_policy
            && frontends.all(|frontend| new.frontends.binary_search(frontend).is_ok())
    };
    // The frontend is gone or has another policy: it has lost all its backends.
    let new = new.filter(|new| is_kept(new));
    let sets = |entry: &ServiceEntry| {
        let [v4, v6] = [&entry.v4, &entry.v6];
        [&v4.cluster, &v4.local, &v6.cluster, &v6.local].map(Backends::clone)
    };
    let new = new.map(sets).unwrap_or_default();
    let protocol = old.key.protocol;
    for (old, new) in sets(old).iter().zip(&new) {
        for backend in old.iter().filter(|backend| !new.contains(*backend)) {
            lost.add(protocol, backend);
        }
    }
}

/// Judges flows over one snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Judge<'a> {
    /// As `compile` had it.
    pub snapshot: &'a Snapshot,
    /// As `compile` had it.
    pub config: &'a PolicyConfig,
    /// As `compile` had it.
    pub view: &'a NodeView,
    /// As `compile` had it, or returned it.
    pub memory: &'a Memory,
    /// The table that `compile` made of them.
    pub table: &'a ServiceTable,
}

impl Judge<'_> {
    /// How the backend of each flow stands, in the order of the flows.
    pub fn standings(&self, flows: &[Flow]) -> Vec<Standing> {
        let entries = self.entries(flows);
        let mut doubtful = BTreeSet::new();
        for flow in flows {
            if let Some((entry, kind)) = entries.get(&dialled(flow))
                && !is_in_force(entry, *kind, flow)
            {
                doubtful.insert((&*entry.key.namespace, &*entry.key.name));
            }
        }
        // Mostly every backend is in force. Only for others are the slices read.
        let mut slices: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut environment = None;
        if !doubtful.is_empty() {
            for slice in self.snapshot.slices.values().filter(|s| !s.is_headless) {
                let name = (&*slice.name.namespace, &*slice.service);
                if doubtful.contains(&name) {
                    slices.entry(name).or_default().push(slice);
                }
            }
            let (config, view) = (self.config, self.view);
            let rejections = &mut Vec::new();
            let made = Environment::new(None, self.snapshot, config, view, self.memory, rejections);
            environment = Some(made.0);
        }
        let stand = |flow: &Flow| {
            let (entry, kind) = entries.get(&dialled(flow))?;
            if is_in_force(entry, *kind, flow) {
                return Some(Standing::InForce);
            }
            let name = (&*entry.key.namespace, &*entry.key.name);
            let slices = slices.get(&name)?;
            self.out_of_force(entry, flow, slices, environment.as_ref()?)
        };
        let stand = |flow| stand(flow).unwrap_or(Standing::Withdrawn);
        flows.iter().map(stand).collect()
    }

    /// The standing of a backend that is not in force; `None`: it does not serve.
    fn out_of_force(
        &self,
        entry: &ServiceEntry,
        flow: &Flow,
        slices: &[&Arc<EndpointSlice>],
        environment: &Environment,
    ) -> Option<Standing> {
        let key = &entry.key;
        let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
        let mut ports = self.snapshot.services.get(&name)?.ports.iter();
        let port = ports.find(|p| p.name == key.port && p.protocol == key.protocol)?;
        let is_usable = |endpoint: &Endpoint| endpoint.is_ready || endpoint.is_serving;
        let slices = Slices::new(slices.iter().copied(), environment);
        let mut is_outside = false;
        let inside = candidates(
            port,
            flow.backend.ip(),
            entry.closure,
            &slices,
            environment,
            |at, endpoint, _| is_outside |= at == flow.backend && is_usable(endpoint),
        );
        let mut inside = inside.iter().filter(|c| c.at == flow.backend);
        if inside.any(|candidate| is_usable(&candidate.endpoint)) {
            Some(Standing::Serving)
        } else {
            is_outside.then_some(Standing::OutsideClosure)
        }
    }

    /// The service ports of the frontends that were dialled, by one walk over the table.
    fn entries(&self, flows: &[Flow]) -> BTreeMap<Dialled, (&ServiceEntry, FrontendKind)> {
        let wanted: BTreeSet<Dialled> = flows.iter().map(dialled).collect();
        let mut found = BTreeMap::new();
        if wanted.is_empty() {
            // This runs at each change of any Service, and the walk would be a third of its cost.
            return found;
        }
        let mut by_node_port = BTreeMap::new();
        for entry in &self.table.services {
            for frontend in &entry.frontends {
                // Loopback NodePorts follow from the others and are not listed.
                let loopback = match (frontend.kind, frontend.address) {
                    (FrontendKind::NodePort, IpAddr::V4(_)) => Some(Ipv4Addr::LOCALHOST.into()),
                    (FrontendKind::NodePort, IpAddr::V6(_)) => Some(Ipv6Addr::LOCALHOST.into()),
                    _ => None,
                };
                if loopback.is_some() {
                    let node_port = (entry.key.protocol, frontend.port);
                    by_node_port.insert((node_port, frontend.address.is_ipv4()), &**entry);
                }
                for address in std::iter::once(frontend.address).chain(loopback) {
                    let dialled = (entry.key.protocol, SocketAddr::new(address, frontend.port));
                    if wanted.contains(&dialled) {
                        found.insert(dialled, (&**entry, frontend.kind));
                    }
                }
            }
        }
        // A client that dialled a NodePort at an address that the node no longer has keeps its flow.
        for dialled in wanted {
            let (protocol, to) = dialled;
            let node_port = ((protocol, to.port()), to.is_ipv4());
            if let Some(entry) = by_node_port.get(&node_port) {
                let by_port = (*entry, FrontendKind::NodePort);
                found.entry(dialled).or_insert(by_port);
            }
        }
        found
    }
}

type Dialled = (Protocol, SocketAddr);

/// The frontend that was dialled; all of 127.0.0.0/8 is 127.0.0.1, as for the programs.
fn dialled(flow: &Flow) -> Dialled {
    let address = match flow.frontend.ip() {
        IpAddr::V4(address) if address.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        address => address,
    };
    (
        flow.protocol,
        SocketAddr::new(address, flow.frontend.port()),
    )
}

fn is_in_force(entry: &ServiceEntry, kind: FrontendKind, flow: &Flow) -> bool {
    let frontend = Frontend {
        kind,
        address: flow.frontend.ip(),
        port: flow.frontend.port(),
    };
    let endpoints = entry.endpoints(&frontend, Scope::Internal);
    endpoints.contains(flow.backend)
}

#[cfg(test)]
mod tests;
