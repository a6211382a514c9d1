//! Which endpoints take traffic under each traffic policy: kube-proxy's `CategorizeEndpoints`.
//!
//! Pure. In: the endpoints of one service port and family that are inside its closure, this node's name and zone. Out:
//! for each endpoint and policy, whether it is selected, else the first rule that is against it. Rules in order: (1)
//! ready ones, and where there is none, those that are terminating but still serving; (2) Cluster: hints, if every
//! ready endpoint has one and one of them is for this node, else for its zone; (3) Local: those on this node, whatever
//! the hints; here (1) looks at this node alone. Reference: kubernetes/kubernetes pkg/proxy/topology.go; KEP-1669,
//! KEP-2433, KEP-3015.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::{Endpoint, Hints, TrafficPolicy};
use crate::text;

/// An endpoint of a service port.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) at: SocketAddr,
    pub(super) endpoint: Endpoint,
    /// It runs on this node.
    pub(super) is_here: bool,
}

impl Candidate {
    fn is_lingering(&self) -> bool {
        self.endpoint.is_serving && self.endpoint.is_terminating
    }

    fn is_usable(&self) -> bool {
        self.endpoint.is_ready || self.is_lingering()
    }
}

/// The group of endpoints from which one is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tier {
    Ready,
    /// No endpoint is ready: those that are terminating and still serve.
    Lingering,
    Nobody,
}

impl Tier {
    fn of<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> Self {
        let mut tier = Self::Nobody;
        for candidate in candidates {
            if candidate.endpoint.is_ready {
                return Self::Ready;
            }
            if candidate.is_lingering() {
                tier = Self::Lingering;
            }
        }
        tier
    }
}

/// The hints that are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hinted {
    Nobody,
    Node,
    Zone,
}

/// A rule that is against an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Neither ready nor terminating.
    NotReady,
    /// Terminating, and no longer serving.
    Gone,
    /// The policy Local: it runs elsewhere.
    Elsewhere,
    /// Terminating, while others are ready.
    Lingering,
    /// Its hints name other nodes.
    OtherNodes,
    /// Its hints name other zones.
    OtherZones,
}

/// The facts that decide on each endpoint of a service port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Categories<'a> {
    node: &'a str,
    zone: &'a str,
    cluster: Tier,
    local: Tier,
    hinted: Hinted,
}

fn names(list: &[Arc<str>], wanted: &str) -> bool {
    list.iter().any(|name| **name == *wanted)
}

impl<'a> Categories<'a> {
    pub(super) fn new(candidates: &[Candidate], node: &'a str, zone: &'a str) -> Self {
        let cluster = Tier::of(candidates.iter());
        let mut categories = Self {
            node,
            zone,
            cluster,
            local: Tier::of(candidates.iter().filter(|candidate| candidate.is_here)),
            hinted: Hinted::Nobody,
        };
        if cluster == Tier::Ready {
            let is_followed = |list: fn(&Hints) -> &[Arc<str>], wanted: &str| {
                let mut has_one = false;
                let ready = candidates.iter().filter(|c| c.endpoint.is_ready);
                let has_all = ready.into_iter().all(|candidate| {
                    let list = candidate.endpoint.hints().map_or(&[][..], list);
                    has_one |= names(list, wanted);
                    !list.is_empty()
                });
                has_all && has_one
            };
            if is_followed(|hints| &hints.nodes, node) {
                categories.hinted = Hinted::Node;
            } else if is_followed(|hints| &hints.zones, zone) {
                categories.hinted = Hinted::Zone;
            }
        }
        categories
    }

    /// Some endpoint on some node is usable.
    pub(super) fn has_any(&self) -> bool {
        self.cluster != Tier::Nobody
    }

    /// The first rule that is against a candidate; `None` when it is selected.
    pub(super) fn against(&self, candidate: &Candidate, policy: TrafficPolicy) -> Option<Rule> {
        let endpoint = &candidate.endpoint;
        if !candidate.is_usable() {
            return Some(match endpoint.is_terminating {
                true => Rule::Gone,
                false => Rule::NotReady,
            });
        }
        let tier = match policy {
            TrafficPolicy::Cluster => self.cluster,
            TrafficPolicy::Local if !candidate.is_here => return Some(Rule::Elsewhere),
            TrafficPolicy::Local => self.local,
        };
        if tier == Tier::Ready && !endpoint.is_ready {
            return Some(Rule::Lingering);
        }
        if policy == TrafficPolicy::Local {
            return None;
        }
        let hints = endpoint.hints();
        match self.hinted {
            Hinted::Node if !hints.is_some_and(|h| names(&h.nodes, self.node)) => {
                Some(Rule::OtherNodes)
            }
            Hinted::Zone if !hints.is_some_and(|h| names(&h.zones, self.zone)) => {
                Some(Rule::OtherZones)
            }
            Hinted::Nobody | Hinted::Node | Hinted::Zone => None,
        }
    }

    /// Why a candidate is dropped, in words.
    pub(super) fn describe(&self, rule: Rule, candidate: &Candidate) -> String {
        let (node, zone) = (self.node, self.zone);
        let hints = candidate.endpoint.hints();
        let list = |all: &[Arc<str>]| text::message(&all.join(", ")).to_string();
        match rule {
            Rule::NotReady => "not ready".to_owned(),
            Rule::Gone => "terminating and no longer serving".to_owned(),
            Rule::Lingering => "terminating, and others are ready".to_owned(),
            Rule::Elsewhere => match candidate.endpoint.node_name() {
                Some(other) => format!(
                    "traffic policy Local: node {} is not this node",
                    text::name(other)
                ),
                None => "traffic policy Local: the endpoint has no nodeName".to_owned(),
            },
            Rule::OtherNodes => {
                let nodes = hints.map(|hints| list(&hints.nodes)).unwrap_or_default();
                format!("hints: for node {nodes}, not for {node}")
            }
            Rule::OtherZones => {
                let zones = hints.map(|hints| list(&hints.zones)).unwrap_or_default();
                format!("hints: for zone {zones}, not for {zone}")
            }
        }
    }

    /// The rule that selected the endpoints, in words.
    pub(super) fn kept(&self, policy: TrafficPolicy) -> String {
        let (tier, place) = match policy {
            TrafficPolicy::Cluster => (self.cluster, ""),
            TrafficPolicy::Local => (self.local, " on this node"),
        };
        let hinted = match self.hinted {
            Hinted::Node if policy == TrafficPolicy::Cluster => {
                format!(", hinted for node {}", self.node)
            }
            Hinted::Zone if policy == TrafficPolicy::Cluster => {
                format!(", hinted for zone {}", self.zone)
            }
            Hinted::Nobody | Hinted::Node | Hinted::Zone => String::new(),
        };
        match tier {
            Tier::Ready => format!("ready{place}{hinted}"),
            Tier::Lingering => format!("terminating but serving{place}, as none is ready"),
            Tier::Nobody => String::new(),
        }
    }
}

#[cfg(test)]
mod tests;
