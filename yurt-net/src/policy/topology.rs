//! How far the traffic of a Service may go: OpenYurt's service topology.
//!
//! Pure. In: Nodes, NodePools, NodeBuckets, `Memory`. Out: the closure in force, and for an endpoint whether it is
//! inside. Rules in order: (1) own pool: `--nodepool`, else the label of the own Node; (2) a node in no pool closes
//! pool Services to itself; (3) this node is a member of its pool; (4) other nodes: the label of a Node at hand, else
//! NodeBuckets of the pool, else its NodePool's status; (5) what none of them says, `--closure-failure` decides.
//! Reference: openyurtio/openyurt pkg/yurthub/filter/servicetopology/filter.go. Differs: it lets all through where data
//! is missing.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::inputs::{ClosureFailure, Memory, PolicyConfig};
use crate::model::{AddressFamily, Endpoint, Kind, NamespacedName, Rejection, Snapshot};
use crate::table::Closure;
use crate::text;

/// The pool of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
enum OwnPool {
    Known(Arc<str>),
    /// The Node is known and carries no pool label.
    InNone,
    /// Not known: neither an object nor the memory has the Node.
    Unknown,
}

/// Whether a node is in this node's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    Yes,
    No,
    Unknown,
}

/// Why an endpoint is outside a closure, or takes traffic from no client at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outside {
    /// Its address is not of the family of its slice, which this is.
    OtherFamily(AddressFamily),
    /// No host can have its address, which is of this kind.
    NoHost(&'static str),
    /// Closure to this node: it runs on another one.
    OtherNode,
    /// Closure to the pool: its node is not a member.
    OtherPool,
    /// It belongs to no node and no pool.
    NoNodeName,
    /// Closure to the pool: nothing says who its members are.
    Unknown,
}

/// The members of this node's pool, as far as one snapshot and the memory tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Topology {
    node: Arc<str>,
    pool: OwnPool,
    /// Nodes that a Node object, a NodeBucket or the NodePool's status mentions.
    known: BTreeMap<String, bool>,
    /// A NodeBucket or the NodePool lists the members: a node that is not in `known` is not a member.
    is_listed: bool,
    /// Members when they were last known; empty unless `--closure-failure=last-known`.
    remembered: BTreeSet<String>,
    failure: ClosureFailure,
}

impl Topology {
    /// Reads the snapshot; returns what is worth remembering of it, too.
    pub(super) fn resolve(
        snapshot: &Snapshot,
        config: &PolicyConfig,
        memory: &Memory,
        rejections: &mut Vec<Rejection>,
    ) -> (Self, Memory) {
        let own_label = snapshot.nodes.get(&*config.node).map(|node| {
            let label = node.labels.get(&config.pool_label);
            label.cloned().unwrap_or_default()
        });
        let pool_flag = config.nodepool.as_ref().filter(|name| !name.is_empty());
        let uses_memory = config.closure_failure == ClosureFailure::LastKnown;
        let remembered_pool = memory.own_pool.as_ref().filter(|_| uses_memory);
        let pool = match pool_flag.or(own_label.as_ref()).or(remembered_pool) {
            Some(name) if name.is_empty() => OwnPool::InNone,
            Some(name) => OwnPool::Known(name.as_str().into()),
            None => OwnPool::Unknown,
        };
        if own_label.is_none() {
            let pool_source = match (pool_flag, remembered_pool) {
                (Some(_), _) => "its zone and its addresses are unknown",
                (None, Some(_)) => {
                    "its pool is the last known one, its zone and its addresses are unknown"
                }
                (None, None) => "its pool, zone and addresses are unknown",
            };
            rejections.push(snapshot.reject(
                Kind::Node,
                &NamespacedName::new("", config.node.as_str()),
                format!(
                    "this node is not in the source: {pool_source}; --node must be the Node's name"
                ),
            ));
        }

        let mut topology = Self {
            node: config.node.as_str().into(),
            pool,
            known: BTreeMap::new(),
            is_listed: false,
            remembered: BTreeSet::new(),
            failure: config.closure_failure,
        };
        let mut memory = Memory {
            own_pool: own_label.or_else(|| memory.own_pool.clone()),
            ..memory.clone()
        };
        if let OwnPool::Known(pool) = topology.pool.clone() {
            topology.read_members(snapshot, &config.pool_label, &pool);
            if memory.members_of != *pool {
                memory.members_of = pool.to_string();
                memory.members.clear();
            }
            let known = &topology.known;
            memory
                .members
                .retain(|node| !topology.is_listed && !known.contains_key(node));
            if uses_memory {
                topology.remembered = memory.members.clone();
            }
            let members = known.iter().filter(|(_, is_member)| **is_member);
            memory.members.extend(members.map(|(node, _)| node.clone()));
        }
        (topology, memory)
    }

    fn read_members(&mut self, snapshot: &Snapshot, pool_label: &str, pool: &str) {
        let buckets = snapshot.buckets.values().filter(|b| b.pool == pool);
        let mut lists: Vec<&[String]> = buckets.map(|bucket| bucket.nodes.as_slice()).collect();
        if lists.is_empty() {
            lists.extend(snapshot.pools.get(pool).map(|p| p.nodes.as_slice()));
        }
        self.is_listed = !lists.is_empty();
        let listed = lists.into_iter().flatten();
        self.known = listed.map(|node| (node.clone(), true)).collect();
        // A Node's own label is newer than what a controller has copied from it, so it has the last word.
        for (name, node) in &snapshot.nodes {
            let is_member = node.labels.get(pool_label).is_some_and(|p| p == pool);
            self.known.insert(name.to_string(), is_member);
        }
    }

    /// Name of the own pool; "" when it is in none, or none is known.
    pub(super) fn pool(&self) -> &str {
        match &self.pool {
            OwnPool::Known(pool) => pool,
            OwnPool::InNone | OwnPool::Unknown => "",
        }
    }

    /// The closure in force for a value of the annotation `openyurt.io/topologyKeys`, and what is wrong with the value.
    pub(super) fn closure(&self, topology_keys: Option<&str>) -> (Closure, Option<String>) {
        match topology_keys {
            None | Some("") => (Closure::None, None),
            Some("kubernetes.io/hostname") => (Closure::Node, None),
            // kubernetes.io/zone is a synonym, and has nothing to do with topology.kubernetes.io/zone.
            Some("openyurt.io/nodepool" | "kubernetes.io/zone") => (self.pool_closure(), None),
            Some(unknown) => (
                Closure::None,
                Some(format!(
                    "annotation openyurt.io/topologyKeys: unknown value {}, so its traffic is not closed; \
                     known are kubernetes.io/hostname, openyurt.io/nodepool and kubernetes.io/zone",
                    text::quoted(unknown)
                )),
            ),
        }
    }

    /// This node is a member of its pool whichever that is: with the pool unknown, its own endpoints are the
    /// ones that are certainly inside.
    fn pool_closure(&self) -> Closure {
        match (&self.pool, self.failure) {
            (OwnPool::Known(_), _) | (OwnPool::Unknown, ClosureFailure::Open) => Closure::Pool,
            (OwnPool::InNone | OwnPool::Unknown, _) => Closure::Node,
        }
    }

    fn member(&self, node: &str) -> Member {
        if *node == *self.node {
            return Member::Yes;
        }
        match self.known.get(node) {
            Some(true) => Member::Yes,
            Some(false) => Member::No,
            None if self.is_listed => Member::No,
            None if self.remembered.contains(node) => Member::Yes,
            None => Member::Unknown,
        }
    }

    /// Another node that certainly is in this node's pool.
    pub(super) fn is_peer(&self, node: &str) -> bool {
        *node != *self.node && self.member(node) == Member::Yes
    }

    /// This node.
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// The endpoint runs on this node.
    pub(super) fn is_here(&self, endpoint: &Endpoint) -> bool {
        endpoint
            .node_name()
            .is_some_and(|node| **node == *self.node)
    }

    /// Why an endpoint is outside the closure; `None` when it is inside.
    pub(super) fn outside(&self, closure: Closure, endpoint: &Endpoint) -> Option<Outside> {
        let node = match (closure, endpoint.node_name()) {
            (Closure::None, _) => return None,
            (Closure::Node | Closure::Pool, None) => return Some(Outside::NoNodeName),
            (Closure::Node, Some(node)) if **node == *self.node => return None,
            (Closure::Node, Some(_)) => return Some(Outside::OtherNode),
            (Closure::Pool, Some(node)) => node,
        };
        match self.member(node) {
            Member::Yes => None,
            Member::No => Some(Outside::OtherPool),
            Member::Unknown if self.failure == ClosureFailure::Open => None,
            Member::Unknown => Some(Outside::Unknown),
        }
    }

    /// The reason in words.
    pub(super) fn describe(&self, outside: Outside, endpoint: &Endpoint) -> String {
        let node = text::name(endpoint.node_name().map_or("", |node| node));
        let pool = self.pool();
        match outside {
            Outside::OtherNode => format!("closure: node {node} is not this node"),
            Outside::OtherPool => format!("closure: node {node} is not in pool {pool}"),
            Outside::OtherFamily(family) => {
                format!("{} in a slice of addressType {family}", endpoint.address)
            }
            Outside::NoHost(what) => format!("{} is {what}", endpoint.address),
            Outside::NoNodeName => "closure: the endpoint has no nodeName".to_owned(),
            Outside::Unknown => format!(
                "closure: nothing says whether node {node} is in pool {pool} (no Node, NodeBucket or NodePool)"
            ),
        }
    }
}
