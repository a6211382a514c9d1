//! The verdict for one flow, and why, in words.
//!
//! Pure. In: `ServiceTable`, `Reasons`, `OwnAddresses`, a flow. Out: `Explanation`. Rules in order: (1) the client is
//! internal when it is this node or one of its Pods; (2) a load balancer drops clients outside its source ranges; (3) a
//! ClusterIP that is also on an interface of this node passes, and else the row of the frontend counts, as `plan`
//! prints it; (4) on loopback, the node's own NodePorts; (5) a known ClusterIP with an unknown port is refused, and so
//! is an unallocated address inside a ServiceCIDR (pkg/proxy/nftables/proxier.go drops the latter; a refusal tells the
//! client at once); (6) all else passes.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

pub use super::rows::FlowVerdict;
use super::rows::Row;
use crate::model::{Protocol, Snapshot, TrafficPolicy};
use crate::plan::{InForce, Refused};
use crate::policy::Reasons;
use crate::table::{Closure, Dropped, Frontend, FrontendKind, Scope, ServiceEntry, ServiceTable};

/// The addresses of clients on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnAddresses {
    /// The addresses of the node itself.
    pub node: BTreeSet<IpAddr>,
    /// The node's `podCIDRs`.
    pub pod_cidrs: Vec<IpNetwork>,
    /// The addresses of endpoints on this node, and of its other known Pods.
    pub pods: BTreeSet<IpAddr>,
}

impl OwnAddresses {
    /// Collects them from a snapshot.
    pub fn new(snapshot: &Snapshot, node: &str) -> Self {
        let mut own = Self::default();
        if let Some(node) = snapshot.nodes.get(node) {
            own.node
                .extend(node.internal_ips.iter().chain(&node.external_ips));
            own.pod_cidrs.clone_from(&node.pod_cidrs);
        }
        let endpoints = snapshot
            .slices
            .values()
            .flat_map(|slice| slice.endpoints.iter());
        let local = endpoints.filter(|e| e.node_name().is_some_and(|name| **name == *node));
        own.pods = local.map(|endpoint| endpoint.address).collect();
        own
    }

    fn is_node(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.node.contains(&address)
    }

    /// Whether a client is of this node.
    pub fn scope(&self, from: IpAddr) -> Scope {
        match self.is_internal(from.to_canonical()) {
            true => Scope::Internal,
            false => Scope::External,
        }
    }

    fn is_internal(&self, address: IpAddr) -> bool {
        self.is_node(address)
            || self
                .pod_cidrs
                .iter()
                .any(|network| network.contains(address))
            || self.pods.contains(&address)
    }
}

/// A new connection, or the first datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dial {
    /// The client's address.
    pub from: IpAddr,
    /// The address and port that it dials.
    pub to: SocketAddr,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// The object that `explain -o json` prints. Names and order of the fields are a contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The fate of the flow.
    pub verdict: FlowVerdict,
    /// Sorted; empty unless `forward`.
    pub endpoints: Vec<SocketAddr>,
    /// Endpoints on other nodes see this node's address instead of the client's; those here see the client.
    pub masquerade: bool,
    /// `ns/name:port`; "" when it is no service port's.
    pub service: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Explanation {
    /// For people: the verdict, its reason, and where it goes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.verdict, self.reason)?;
        if !self.service.is_empty() {
            writeln!(f, "  service     {}", self.service)?;
        }
        for endpoint in &self.endpoints {
            writeln!(f, "  endpoint    {endpoint}")?;
        }
        if self.masquerade {
            writeln!(
                f,
                "  masquerade  yes: endpoints on other nodes see this node's address"
            )?;
        }
        Ok(())
    }
}

impl Explanation {
    /// The verdict in force where the maps lack a part of the table. `in_force`: their contents for the flow; `None`:
    /// not known.
    #[must_use]
    pub fn with_a_full_map(mut self, refused: &Refused, in_force: Option<InForce>) -> Self {
        let (map, flag) = (refused.map, refused.map.flag());
        let is_forwarded = self.verdict == FlowVerdict::Forward;
        let (verdict, what) = match in_force {
            // Source ranges do not admit the client, or no endpoint is here: room in the maps would change nothing.
            _ if self.verdict == FlowVerdict::Drop => return self,
            Some(InForce::Forward(some)) if is_forwarded && some.len() < self.endpoints.len() => {
                let what = format!(
                    "only {} of {} endpoints are in force",
                    some.len(),
                    self.endpoints.len()
                );
                self.endpoints = some.to_vec();
                (FlowVerdict::Forward, what)
            }
            Some(InForce::Forward(_)) if is_forwarded => return self,
            Some(InForce::Refuse) => (FlowVerdict::Refuse, "it is not in force".to_owned()),
            Some(InForce::Pass) => {
                let what = "it is not in force, so the flow goes its way untouched";
                (FlowVerdict::Pass, what.to_owned())
            }
            Some(InForce::Forward(_)) | None if refused.has_some => {
                (self.verdict, "not all of it is in force".to_owned())
            }
            Some(InForce::Forward(_)) | None => (self.verdict, "it is not in force".to_owned()),
        };
        if verdict != FlowVerdict::Forward {
            self.endpoints.clear();
            self.masquerade = false;
        }
        self.verdict = verdict;
        self.reason += &format!("; but {what}: {map} is full, raise {flag}");
        self
    }
}

/// The verdict for one flow, and the reasons for it.
pub fn explain(
    table: &ServiceTable,
    reasons: &Reasons<'_>,
    own: &OwnAddresses,
    dial: Dial,
) -> Explanation {
    // An IPv6 socket dials IPv4 by mapped addresses, and the programs decide by the IPv4 address.
    let from = dial.from.to_canonical();
    let to = SocketAddr::new(dial.to.ip().to_canonical(), dial.to.port());
    let scope = own.scope(from);
    let found = table.services.iter().find_map(|entry| {
        let is_dialled = |f: &&_| dials(f, to, from, own) && !table.leaves_alone(f);
        let frontend = entry.frontends.iter().find(is_dialled)?;
        (entry.key.protocol == dial.protocol).then_some((entry, frontend))
    });
    if let Some((entry, frontend)) = found {
        let row = Row::new(table, entry, reasons, frontend, scope);
        let is_admitted = admits(&row, from, own);
        let verdict = match is_admitted {
            true => row.verdict,
            false => FlowVerdict::Drop,
        };
        let is_forwarded = verdict == FlowVerdict::Forward;
        return Explanation {
            verdict,
            endpoints: match is_forwarded {
                true => row.endpoints.to_vec(),
                false => Vec::new(),
            },
            masquerade: row.masquerade && is_forwarded,
            service: entry.key.to_string(),
            reason: match is_admitted {
                true => row_reason(table, entry, &row) + &rivals(reasons, entry, to),
                false => range_reason(entry, &row, from),
            },
        };
    }
    let (verdict, reason) = no_frontend(table, reasons, to, dial.protocol);
    Explanation {
        verdict,
        endpoints: Vec::new(),
        masquerade: false,
        service: String::new(),
        reason,
    }
}

/// NodePorts also answer on loopback, to sockets of the node itself: a Pod's loopback is the Pod's.
fn dials(frontend: &Frontend, to: SocketAddr, from: IpAddr, own: &OwnAddresses) -> bool {
    let is_node_port = frontend.kind == FrontendKind::NodePort;
    let by_loopback = is_node_port
        && to.ip().is_loopback()
        && to.is_ipv4() == frontend.address.is_ipv4()
        && (own.is_node(from) || from == frontend.address);
    frontend.port == to.port() && (frontend.address == to.ip() || by_loopback)
}

/// Whether the source ranges admit a client. A request of this node to an address of the load balancer that it carries
/// itself has that address as its source, so ranges that admit the node admit it (pkg/proxy/iptables/proxier.go). For a
/// client on loopback it is not known yet from which of its addresses the node will dial.
fn admits(row: &Row<'_>, from: IpAddr, own: &OwnAddresses) -> bool {
    let contain = |address: IpAddr| {
        row.source_ranges
            .iter()
            .any(|range| range.contains(address))
    };
    let is_this_node = from.is_loopback() || from == row.address;
    row.source_ranges.is_empty()
        || contain(from)
        || (is_this_node && own.node.iter().any(|address| contain(*address)))
}

fn range_reason(entry: &ServiceEntry, row: &Row<'_>, from: IpAddr) -> String {
    let ranges: Vec<String> = row.source_ranges.iter().map(ToString::to_string).collect();
    format!(
        "{} of {}: the client {from} is in none of its source ranges {}",
        row.kind,
        entry.key,
        ranges.join(", ")
    )
}

fn row_reason(table: &ServiceTable, entry: &ServiceEntry, row: &Row<'_>) -> String {
    let client = match row.scope {
        Scope::Internal => "this node or one of its Pods",
        Scope::External => "outside this node",
    };
    let closure = match entry.closure {
        Closure::None => "no closure".to_owned(),
        Closure::Node => format!("closed to node {}", table.node),
        Closure::Pool => format!("closed to pool {}", table.pool),
    };
    let policy = match entry.policy(row.kind, row.scope) {
        TrafficPolicy::Cluster => "",
        TrafficPolicy::Local => ", traffic policy Local",
    };
    let count = row.endpoints.len();
    let fate = match (row.verdict, row.dropped.len()) {
        (FlowVerdict::Forward, 0) => format!("endpoints {count} ({})", row.kept),
        (FlowVerdict::Forward, left) => {
            format!("endpoints {count} ({}), left out {left}", row.kept)
        }
        (FlowVerdict::Refuse, 0) => "it has no endpoints".to_owned(),
        (FlowVerdict::Refuse, _) => "none of its endpoints may take it".to_owned(),
        (FlowVerdict::Drop, _) => "all that may take it are on other nodes".to_owned(),
        (FlowVerdict::Pass, _) => "an interface of this node has its address".to_owned(),
    };
    let affinity = match (row.verdict, entry.affinity_seconds) {
        (FlowVerdict::Forward, seconds @ 1..) => {
            format!(", each client stays with one for {seconds} s")
        }
        _ => String::new(),
    };
    let unserved = match (row.is_served, entry.key.protocol) {
        (true, _) => "",
        (false, Protocol::Sctp) => "; SCTP is listed only, nothing enforces it",
        (false, _) => {
            "; only the packet path would do this, and it is off (--packet-path): nothing enforces it"
        }
    };
    let (kind, why) = (row.kind, why(&row.dropped));
    let idle: String = row
        .idle
        .iter()
        .map(|clause| format!("; {clause}"))
        .collect();
    format!(
        "{kind} of {}, {closure}{policy}, client is {client}: {fate}{affinity}{why}{idle}{unserved}",
        entry.key
    )
}

/// A few of the Services that ask for the same address and port; the end of a sentence.
fn rivals(reasons: &Reasons<'_>, entry: &ServiceEntry, to: SocketAddr) -> String {
    let mut all = reasons.rivals(&entry.key, to, entry.key.protocol);
    let few = all.by_ref().take(3);
    let mut said: String = few
        .map(|name| format!("; {name} asks for the same address and port, and does not get it"))
        .collect();
    match all.count() {
        0 => {}
        more => said += &format!("; and {more} more do"),
    }
    said
}

/// The reasons of a few dropped endpoints.
fn why(dropped: &[Dropped]) -> String {
    let few = dropped.iter().take(3);
    let mut text: String = few
        .map(|d| format!("; {}: {}", d.endpoint, d.reason))
        .collect();
    if dropped.len() > 3 {
        text += &format!("; and {} more", dropped.len() - 3);
    }
    text
}

/// The address and port are no frontend.
fn no_frontend(
    table: &ServiceTable,
    reasons: &Reasons<'_>,
    to: SocketAddr,
    protocol: Protocol,
) -> (FlowVerdict, String) {
    let address = to.ip();
    let owner = table.services.iter().find(|entry| {
        let mut frontends = entry.frontends.iter();
        frontends.any(|f| f.kind == FrontendKind::ClusterIp && f.address == address)
    });
    if let Some(owner) = owner {
        let (namespace, name) = (&owner.key.namespace, &owner.key.name);
        if table.is_on_node(address) {
            let reason = format!(
                "{address} is the ClusterIP of {namespace}/{name} and on an interface of this node: it is left to the process \
                 that listens there, as a node-local DNS cache does"
            );
            return (FlowVerdict::Pass, reason);
        }
        let port = to.port();
        let reason = format!(
            "{address} is the ClusterIP of {namespace}/{name}, which has no port {port}/{protocol}"
        );
        return (FlowVerdict::Refuse, reason);
    }
    let prefixes = &table.cluster_prefixes;
    let inside = prefixes.prefixes.iter().find(|p| p.contains(address));
    match inside.filter(|_| prefixes.are_service_cidrs) {
        Some(cidr) => (
            FlowVerdict::Refuse,
            format!("{address} is in the service CIDR {cidr} and belongs to no Service"),
        ),
        None => (
            FlowVerdict::Pass,
            match reasons.withheld(to, protocol) {
                Some(whose) => format!("{to}/{protocol} is a {whose}; it goes its way untouched"),
                None => format!(
                    "{to}/{protocol} is no frontend of any Service: it goes its way untouched"
                ),
            },
        ),
    }
}

#[cfg(test)]
mod tests;
