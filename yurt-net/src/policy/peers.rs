//! The other nodes of this node's pool, and their addresses.
//!
//! Pure. In: a snapshot, `PolicyConfig`, `Memory`. Out: the Nodes that are certainly members, with the addresses known
//! of them: those of their Node objects, if the source has these, and of some endpoints that they run. A node not known
//! to be in the pool is not a peer; with `--closure-failure=last-known` a member stays one while data is missing.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::inputs::{Memory, PolicyConfig};
use super::topology::Topology;
use crate::model::Snapshot;
use crate::tunnel::peers::Peer;

/// Endpoints of each family and Node. One would be enough if every endpoint were in the Pods' network.
const MOST_ENDPOINTS: usize = 4;

/// The other nodes that are certainly in the pool of this one, with their addresses.
pub fn pool_peers(snapshot: &Snapshot, config: &PolicyConfig, memory: &Memory) -> Vec<Peer> {
    let (topology, _) = Topology::resolve(snapshot, config, memory, &mut Vec::new());
    if topology.pool().is_empty() {
        return Vec::new();
    }
    let mut peers: BTreeMap<Arc<str>, Option<BTreeSet<IpAddr>>> = BTreeMap::new();
    let mut add = |node: &Arc<str>, address: IpAddr, most: Option<usize>| {
        let peer = peers.entry(Arc::clone(node));
        let peer = peer.or_insert_with(|| topology.is_peer(node).then(BTreeSet::new));
        if let Some(addresses) = peer {
            let of_family = |known: &&IpAddr| known.is_ipv4() == address.is_ipv4();
            // The filter looks through all of them, so it is used only where they are few.
            if most.is_none_or(|most| addresses.iter().filter(of_family).count() < most) {
                addresses.insert(address);
            }
        }
    };
    let endpoints = snapshot
        .slices
        .values()
        .flat_map(|slice| slice.endpoints.iter());
    for endpoint in endpoints {
        if let Some(node) = endpoint.node_name() {
            add(node, endpoint.address, Some(MOST_ENDPOINTS));
        }
    }
    for node in snapshot.nodes.values() {
        for address in &node.internal_ips {
            add(&node.name, *address, None);
        }
    }
    let peers = peers.into_iter();
    peers
        .filter_map(|(node, addresses)| {
            Some(Peer {
                node,
                addresses: addresses?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::fixtures::{World, ip};

    fn peers(world: &World) -> Vec<(String, Vec<IpAddr>)> {
        let peers = pool_peers(&world.snapshot, &world.config, &Memory::default());
        let peers = peers.into_iter();
        peers
            .map(|Peer { node, addresses }| (node.to_string(), addresses.into_iter().collect()))
            .collect()
    }

    fn named(peers: &[(&str, &[&str])]) -> Vec<(String, Vec<IpAddr>)> {
        let peers = peers.iter();
        peers
            .map(|(node, addresses)| {
                let addresses = addresses.iter().map(|address| ip(address));
                ((*node).to_owned(), addresses.collect())
            })
            .collect()
    }

    #[test]
    fn peers_are_the_other_members_with_addresses_that_are_there() {
        let mut world = World::web(None);
        world.pool("hangzhou", &["a1", "a2", "a3"]);
        world.pool("shanghai", &["b1"]);
        let endpoints = [("10.1.2.2", Some("a3")), ("10.1.9.9", None)];
        world.slice("db-1", "db", &endpoints);
        let by_endpoints: &[(&str, &[&str])] = &[("a2", &["10.1.1.2"]), ("a3", &["10.1.2.2"])];
        assert_eq!(peers(&world), named(by_endpoints));
        world.node("a2", Some("hangzhou"), |node| {
            node.internal_ips = vec![ip("192.0.2.12")];
        });
        world.node("a3", Some("shanghai"), |node| {
            node.internal_ips = vec![ip("192.0.2.13")];
        });
        let by_nodes: &[(&str, &[&str])] = &[("a2", &["10.1.1.2", "192.0.2.12"])];
        assert_eq!(peers(&world), named(by_nodes), "a Node's own label wins");
    }

    #[test]
    fn a_node_in_no_pool_has_no_peers_and_neither_has_one_whose_pool_nobody_lists() {
        let mut world = World::web(None);
        assert_eq!(peers(&world), []);
        world.node("a1", None, |_| {});
        world.node("a2", None, |node| {
            node.internal_ips = vec![ip("192.0.2.12")]
        });
        assert_eq!(peers(&world), []);
    }

    #[test]
    fn of_a_node_with_many_endpoints_a_few_are_enough() {
        let mut world = World::web(None);
        world.pool("hangzhou", &["a1", "a2"]);
        let many: Vec<String> = (1..100).map(|last| format!("10.1.1.{last}")).collect();
        let many: Vec<_> = many
            .iter()
            .map(|address| (&**address, Some("a2")))
            .collect();
        world.slice("many-1", "many", &many);
        let peers = peers(&world);
        assert_eq!(peers.len(), 1);
        assert_eq!(peers[0].1.len(), MOST_ENDPOINTS);
    }
}
