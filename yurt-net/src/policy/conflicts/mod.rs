//! Two Services that ask for one address, port and protocol.
//!
//! Pure. In: service ports with every frontend that they ask for, and the places that are to be settled. Out: the
//! frontends that they do not get there, and the rule that decided. Differs from kube-proxy, where the rules of both
//! exist (pkg/proxy/serviceport.go).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::model::{NamespacedName, Protocol};
use crate::table::{FrontendKind, ServiceEntry, ServiceKey, Standing};

/// Where more service ports than this ask for one place, losers are not told which of them has it: whoever has it may
/// let it go and take it again, and what all the others are told would change each time.
const CROWD: usize = 50;

/// An address, port and protocol: one Service has it.
pub(super) type Place = (IpAddr, u16, Protocol);

/// Places whose owners are not settled, because who asks for them has changed.
pub(super) enum Places {
    /// Every place.
    All,
    /// These.
    These(BTreeSet<Place>),
}

impl Places {
    /// No place.
    pub(super) fn none() -> Self {
        Self::These(BTreeSet::new())
    }

    pub(super) fn are_none(&self) -> bool {
        matches!(self, Self::These(places) if places.is_empty())
    }

    pub(super) fn contain(&self, place: Place) -> bool {
        match self {
            Self::All => true,
            Self::These(places) => places.contains(&place),
        }
    }

    /// Adds those at which a load balancer asks for endpoints, by the addresses of this node.
    pub(super) fn add_health_check(&mut self, own: impl Iterator<Item = IpAddr>, port: u16) {
        if let Self::These(places) = self {
            places.extend(own.map(|address| (address, port, Protocol::Tcp)));
        }
    }

    /// Adds those that a service port asks for.
    pub(super) fn add(&mut self, entry: &ServiceEntry) {
        if let Self::These(places) = self {
            let protocol = entry.key.protocol;
            let frontends = entry.frontends.iter();
            places.extend(frontends.map(|f| (f.address, f.port, protocol)));
        }
    }
}

/// A service port that asks for its frontends.
pub(super) struct Claimant<'a> {
    /// Index of its Service among all.
    pub(super) service: usize,
    /// Index of the port among those of the Service.
    pub(super) index: u16,
    pub(super) entry: &'a ServiceEntry,
    /// `creationTimestamp` of its Service, seconds since 1970; 0 = not known.
    pub(super) created_at: u64,
}

/// A frontend that a Service does not get because another one has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Loss {
    /// Index of the loser among the ports of its Service.
    pub(super) index: u16,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    protocol: Protocol,
    /// Who keeps the frontend; one allocation for all losers.
    winner: Arc<Winner>,
    why: Why,
}

/// Who keeps a frontend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Winner {
    /// A service port.
    Port(ServiceKey),
    /// The Service whose load balancer asks there for endpoints.
    HealthCheck(NamespacedName),
    /// One of those, where many ask.
    OneOfMany,
}

impl fmt::Display for Winner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(key) => key.fmt(f),
            Self::HealthCheck(service) => service.fmt(f),
            Self::OneOfMany => f.write_str("another Service"),
        }
    }
}

/// The rule that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    Many,
    HealthCheck,
    ClusterIp,
    External,
    System,
    Age,
    Name,
}

/// The place of a claimant among those of one place: authority, standing, age, index.
type Rank = (u8, Standing, u64, usize);

impl Why {
    fn of(winner: &Rank, loser: &Rank) -> Self {
        match () {
            () if winner.0 < loser.0 && winner.0 == 0 => Self::ClusterIp,
            () if winner.0 < loser.0 => Self::External,
            () if winner.1 < loser.1 => Self::System,
            () if winner.2 < loser.2 => Self::Age,
            () => Self::Name,
        }
    }
}

impl Loss {
    pub(super) fn place(&self) -> Place {
        (self.address, self.port, self.protocol)
    }

    /// In words.
    pub(super) fn told(&self) -> String {
        let why = match self.why {
            Why::Many => "many ask for it, and `yurt-net explain` names the one that has it",
            Why::HealthCheck => "it is its healthCheckNodePort, at an address of this node",
            Why::ClusterIp => "a ClusterIP comes first",
            Why::External => "a load balancer's address or a NodePort comes before an external IP",
            Why::System => "default/kubernetes and kube-system come first",
            Why::Age => "the older Service comes first",
            Why::Name => "the first by name keeps it",
        };
        let endpoint = SocketAddr::new(self.address, self.port);
        let (protocol, winner) = (self.protocol, &self.winner);
        format!("{endpoint}/{protocol} belongs to {winner}: {why}")
    }
}

/// How far the author of an address of this kind is trusted; 0 is most: the cluster allocates ClusterIPs; a load
/// balancer's addresses are a controller's word, and a NodePort is the apiserver's; an external IP is whatever somebody
/// wrote (CVE-2020-8554).
fn authority(kind: FrontendKind) -> u8 {
    match kind {
        FrontendKind::ClusterIp => 0,
        FrontendKind::LoadBalancer | FrontendKind::NodePort => 1,
        FrontendKind::ExternalIp => 2,
    }
}

/// The frontends at `places` that more than one of all service ports claims, with the index of the loser's Service, in
/// the order of these.
///
/// Rules in order: (1) a `healthCheckNodePort` at an address of this node, which is `reserved`, before an address that
/// somebody has written: the apiserver has allocated it, as it allocates NodePorts and ClusterIPs; (2) authority; (3)
/// default/kubernetes and kube-system before tenants; (4) the older Service, so that a new one takes nothing that is in
/// force; a Service of unknown age counts as the youngest; (5) the first by name.
pub(super) fn losses<'a>(
    all: impl Iterator<Item = Claimant<'a>>,
    places: &Places,
    reserved: impl Fn(Place) -> Option<&'a NamespacedName>,
) -> Vec<(usize, Loss)> {
    let (mut claims, mut claimants) = (Vec::new(), Vec::new());
    for claimant in all {
        let (index, before) = (claimants.len(), claims.len());
        for frontend in &claimant.entry.frontends {
            let place = (frontend.address, frontend.port, claimant.entry.key.protocol);
            if places.contain(place) {
                claims.push((place, index, frontend.kind));
            }
        }
        if claims.len() > before {
            claimants.push(claimant);
        }
    }
    claims.sort_unstable();
    let mut lost = Vec::new();
    for group in claims.chunk_by(|a, b| a.0 == b.0) {
        let place = group[0].0;
        let (address, port, protocol) = place;
        let mut lose = |loser: usize, winner: &Arc<Winner>, why| {
            let Claimant { service, index, .. } = claimants[loser];
            let winner = winner.clone();
            let why = match *winner {
                Winner::OneOfMany => Why::Many,
                _ => why,
            };
            lost.push((
                service,
                Loss {
                    index,
                    address,
                    port,
                    protocol,
                    winner,
                    why,
                },
            ));
        };
        let owner = reserved(place);
        if group.iter().all(|claim| claim.1 == group[0].1) && owner.is_none() {
            continue;
        }
        let is_crowd = group.chunk_by(|a, b| a.1 == b.1).nth(CROWD).is_some();
        let named = |winner| match is_crowd {
            true => Arc::new(Winner::OneOfMany),
            false => Arc::new(winner),
        };
        let owner = owner.map(|owner| named(Winner::HealthCheck(owner.clone())));
        // Each claimant once, by the best of its kinds.
        let one_each = group.chunk_by(|a, b| a.1 == b.1);
        let ranks = one_each.filter_map(|claims| {
            let index = claims[0].1;
            let is_allocated =
                |kind| matches!(kind, FrontendKind::NodePort | FrontendKind::ClusterIp);
            if let Some(owner) = &owner
                && !claims.iter().any(|claim| is_allocated(claim.2))
            {
                lose(index, owner, Why::HealthCheck);
                return None;
            }
            let authority = claims.iter().map(|claim| authority(claim.2)).min()?;
            let Claimant {
                entry, created_at, ..
            } = &claimants[index];
            // 0, which is not known, becomes the largest.
            let age = created_at.wrapping_sub(1);
            Some((authority, entry.key.standing(), age, index))
        });
        let ranks: Vec<Rank> = ranks.collect();
        let Some(winner) = ranks.iter().min() else {
            continue;
        };
        let key = claimants[winner.3].entry.key.clone();
        let key = named(Winner::Port(key));
        for loser in ranks.iter().filter(|rank| *rank != winner) {
            lose(loser.3, &key, Why::of(winner, loser));
        }
    }
    lost.sort_unstable();
    lost
}

#[cfg(test)]
mod tests;
