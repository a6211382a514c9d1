//! Two Services that ask for one address, port and protocol.
//!
//! Pure. In: service ports with every frontend that they ask for. Out: the frontends that they do not get, and the rule
//! that decided. Differs from kube-proxy, where the rules of both exist (pkg/proxy/serviceport.go).
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::Arc;

use crate::model::Protocol;
use crate::table::{FrontendKind, ServiceEntry};

/// A service port that asks for its frontends.
pub(super) struct Claimant {
    pub(super) entry: Arc<ServiceEntry>,
    /// `creationTimestamp` of its Service, seconds since 1970; 0 = not known.
    pub(super) created_at: u64,
}

/// A frontend that a Service does not get because another one has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lost {
    /// Index of the loser in the table.
    pub(super) loser: usize,
    /// Index of the service port that keeps the frontend.
    pub(super) winner: usize,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// The rule that decided, in words.
    pub(super) why: &'static str,
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

/// The frontends that more than one of them claims; they are in the table's order.
///
/// Rules in order: (1) authority; (2) default/kubernetes and kube-system before tenants; (3) the older Service, so that
/// a new one takes nothing that is in force; a Service of unknown age counts as the youngest; (4) the first by name.
pub(super) fn losses(claimants: &[Claimant]) -> Vec<Lost> {
    let mut claims: Vec<(IpAddr, u16, Protocol, usize, FrontendKind)> = Vec::new();
    for (index, Claimant { entry, .. }) in claimants.iter().enumerate() {
        let protocol = entry.key.protocol;
        let frontends = entry.frontends.iter();
        claims.extend(frontends.map(|f| (f.address, f.port, protocol, index, f.kind)));
    }
    claims.sort_unstable();
    let mut lost = Vec::new();
    for group in claims.chunk_by(|a, b| (a.0, a.1, a.2) == (b.0, b.1, b.2)) {
        if group.iter().all(|claim| claim.3 == group[0].3) {
            continue;
        }
        // Each claimant once, by the best of its kinds.
        let one_each = group.chunk_by(|a, b| a.3 == b.3);
        let ranks = one_each.filter_map(|claims| {
            let index = claims[0].3;
            let authority = claims.iter().map(|claim| authority(claim.4)).min()?;
            let Claimant { entry, created_at } = &claimants[index];
            // 0, which is not known, becomes the largest.
            let age = created_at.wrapping_sub(1);
            Some((authority, entry.key.standing(), age, index))
        });
        let ranks: Vec<_> = ranks.collect();
        let Some(winner) = ranks.iter().min() else {
            continue;
        };
        let losers = ranks.iter().filter(|rank| *rank != winner);
        lost.extend(losers.map(|loser| Lost {
            loser: loser.3,
            winner: winner.3,
            address: group[0].0,
            port: group[0].1,
            why: match () {
                () if winner.0 < loser.0 && winner.0 == 0 => "a ClusterIP comes first",
                () if winner.0 < loser.0 => {
                    "a load balancer's address or a NodePort comes before an external IP"
                }
                () if winner.1 < loser.1 => "default/kubernetes and kube-system come first",
                () if winner.2 < loser.2 => "the older Service comes first",
                () => "the first by name keeps it",
            },
        }));
    }
    lost.sort_unstable();
    lost
}

#[cfg(test)]
mod tests;
