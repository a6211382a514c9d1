//! Where the Pods of Nodes are, by address.
//!
//! Pure. In: the podCIDRs of the Nodes whose objects the source has. There may be thousands, and a tenant may ask for
//! thousands of addresses: an address is looked up once for each length of prefix that there is, not once for each
//! Node.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::model::{Node, Snapshot};

/// podCIDRs, and the Node of each: of several with the same one the first by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PodNetworks {
    nodes: BTreeMap<IpNetwork, Arc<str>>,
    /// Of which there are some: whether of IPv6, and their length.
    lengths: BTreeSet<(bool, u8)>,
}

impl<'a> FromIterator<(IpNetwork, &'a Arc<Node>)> for PodNetworks {
    fn from_iter<I: IntoIterator<Item = (IpNetwork, &'a Arc<Node>)>>(all: I) -> Self {
        let mut networks = Self::default();
        for (cidr, node) in all {
            networks.lengths.insert((cidr.is_ipv6(), cidr.prefix()));
            let known = networks.nodes.entry(cidr);
            known.or_insert_with(|| node.name.clone());
        }
        networks
    }
}

impl PodNetworks {
    /// The longest podCIDR that an address is in, and its Node.
    pub(super) fn find(&self, address: IpAddr) -> Option<(IpNetwork, &Arc<str>)> {
        let lengths = self.lengths.iter().rev();
        let mut lengths = lengths.filter(|(is_ipv6, _)| *is_ipv6 == address.is_ipv6());
        lengths.find_map(|(_, length)| {
            let first = IpNetwork::new(address, *length).ok()?.network();
            let network = IpNetwork::new(first, *length).ok()?;
            Some((network, self.nodes.get(&network)?))
        })
    }
}

/// All podCIDRs, in the order of their Nodes, and whether each is wrong: Pods are not where Nodes are, so it is
/// somebody's mistake, and `0.0.0.0/0` would be everybody's.
pub(super) fn pod_cidrs(
    snapshot: &Snapshot,
) -> impl Iterator<Item = (IpNetwork, &Arc<Node>, bool)> {
    let nodes = snapshot.nodes.values();
    let addresses = nodes.flat_map(|node| node.internal_ips.iter().chain(&node.external_ips));
    let addresses: BTreeSet<IpAddr> = addresses.copied().collect();
    let cidrs = snapshot.nodes.values();
    let cidrs = cidrs.flat_map(|node| node.pod_cidrs.iter().map(move |cidr| (*cidr, node)));
    cidrs.map(move |(cidr, node)| {
        let next = addresses.range(cidr.network()..).next();
        let is_around = next.is_some_and(|address| cidr.contains(*address));
        (cidr, node, is_around || cidr.prefix() == 0)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::fixtures::World;

    proptest! {
        #[test]
        fn an_address_is_found_where_a_walk_over_all_finds_it(
            cidrs in prop::collection::vec((any::<[u8; 2]>(), 0..=32u8, 0..3usize), 0..12),
            tail in any::<[u8; 2]>(),
        ) {
            let mut world = World::empty();
            for name in 0..3 {
                let own = cidrs.iter().filter(|(_, _, node)| *node == name);
                let own = own.filter_map(|([a, b], length, _)| {
                    let any = IpNetwork::new([10, *a & 3, *b & 3, 0].into(), *length).ok()?;
                    IpNetwork::new(any.network(), *length).ok()
                });
                world.node(&format!("n{name}"), None, |node| node.pod_cidrs = own.collect());
            }
            let address = IpAddr::from([10, tail[0] & 3, tail[1] & 3, 7]);
            let all: Vec<_> = pod_cidrs(&world.snapshot).map(|(cidr, node, _)| (cidr, node)).collect();
            let networks: PodNetworks = all.iter().copied().collect();
            let around = all.iter().filter(|(cidr, _)| cidr.contains(address));
            let longest = around.clone().map(|(cidr, _)| cidr.prefix()).max();
            let mut around = around.filter(|(cidr, _)| Some(cidr.prefix()) == longest);
            let expected = around.next().map(|(cidr, node)| (*cidr, &node.name));
            prop_assert_eq!(networks.find(address), expected);
            prop_assert_eq!(networks.find("fd00::1".parse().unwrap()), None);
        }
    }
}
