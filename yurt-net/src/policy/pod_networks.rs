//! Where Pods are, by address: an external IP or a load balancer there would answer for a Pod.
//!
//! Pure. In: the podCIDRs of the Nodes whose objects the source has, the routes of this node, the endpoints of
//! kube-system. There may be thousands, and a tenant may ask for thousands of addresses: an address is looked up once
//! for each length of prefix that there is, not once for each Node.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::model::{EndpointSlice, NamespacedName, Node, PoolService, Service, Snapshot};
use crate::table::{FrontendKind, SYSTEM_NAMESPACE, Standing};

/// Networks, and what belongs to each: of several equal ones, to the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks<T> {
    all: BTreeMap<IpNetwork, T>,
    /// Of which there are some: whether of IPv6, and their length.
    lengths: BTreeSet<(bool, u8)>,
}

impl<T> Default for Networks<T> {
    fn default() -> Self {
        Self {
            all: BTreeMap::new(),
            lengths: BTreeSet::new(),
        }
    }
}

impl<T> FromIterator<(IpNetwork, T)> for Networks<T> {
    fn from_iter<I: IntoIterator<Item = (IpNetwork, T)>>(all: I) -> Self {
        let mut networks = Self::default();
        for (network, of) in all {
            networks
                .lengths
                .insert((network.is_ipv6(), network.prefix()));
            networks.all.entry(network).or_insert(of);
        }
        networks
    }
}

impl<T> Networks<T> {
    /// The longest one that an address is in.
    pub(super) fn find(&self, address: IpAddr) -> Option<(IpNetwork, &T)> {
        let lengths = self.lengths.iter().rev();
        let mut lengths = lengths.filter(|(is_ipv6, _)| *is_ipv6 == address.is_ipv6());
        lengths.find_map(|(_, length)| {
            let first = IpNetwork::new(address, *length).ok()?.network();
            let network = IpNetwork::new(first, *length).ok()?;
            Some((network, self.all.get(&network)?))
        })
    }

    /// Those that only one of two has.
    pub(super) fn differing<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = IpNetwork> {
        let of = |these: &'a Self, those: &'a Self| {
            let all = these.all.keys().copied();
            all.filter(|network| !those.all.contains_key(network))
        };
        of(self, other).chain(of(other, self))
    }
}

/// The addresses of the endpoints in kube-system. No tenant writes those. An endpoint of another namespace is wherever
/// its author likes: whoever believed it would let him take the external IPs of others away.
#[derive(Clone, Debug, Default)]
pub(super) struct SystemEndpoints {
    /// While they are held, an equal address in memory means the same slice.
    slices: Vec<Arc<EndpointSlice>>,
    addresses: BTreeSet<IpAddr>,
}

impl PartialEq for SystemEndpoints {
    fn eq(&self, other: &Self) -> bool {
        self.addresses == other.addresses
    }
}

impl Eq for SystemEndpoints {}

impl SystemEndpoints {
    /// Those of a snapshot; `last` ones again if their slices are the same.
    pub(super) fn of(snapshot: &Snapshot, last: Option<&Arc<Self>>) -> Arc<Self> {
        let first = NamespacedName::new(SYSTEM_NAMESPACE, "");
        let slices = snapshot.slices.range(first..).map(|(_, slice)| slice);
        let slices = slices.take_while(|slice| *slice.name.namespace == *SYSTEM_NAMESPACE);
        if let Some(last) = last {
            let mut known = last.slices.iter();
            let is_same = |slice: &Arc<EndpointSlice>| {
                known.next().is_some_and(|known| Arc::ptr_eq(known, slice))
            };
            if slices.clone().all(is_same) && slices.clone().count() == last.slices.len() {
                return Arc::clone(last);
            }
        }
        let slices: Vec<_> = slices.cloned().collect();
        let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter());
        Arc::new(Self {
            addresses: endpoints.map(|endpoint| endpoint.address).collect(),
            slices,
        })
    }
}

/// Where Pods are, by what changes often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pods {
    /// The addresses of this node's Pods, by the ledger.
    pub(super) ledger: Arc<BTreeSet<IpAddr>>,
    /// Where this node's own routes lead to its Pods.
    pub(super) routes: Arc<Networks<()>>,
    pub(super) system: Arc<SystemEndpoints>,
}

impl Pods {
    /// Why a Service must not have an external IP, or an address of its load balancer.
    pub(super) fn refuses(
        &self,
        kind: FrontendKind,
        address: IpAddr,
        standing: Standing,
    ) -> Option<String> {
        if self.ledger.contains(&address) {
            return Some(format!("the address of a Pod of this node{NOBODYS}"));
        }
        if let Some((network, ())) = self.routes.find(address) {
            return Some(format!(
                "an address of Pods ({network} by a route of this node){NOBODYS}"
            ));
        }
        // Endpoints may be Nodes, and a Node's address may be a load balancer's.
        let is_of_another = kind == FrontendKind::ExternalIp && standing == Standing::Tenant;
        (is_of_another && self.system.addresses.contains(&address)).then(|| {
            "the address of an endpoint in kube-system, which no external IP of another namespace may take".to_owned()
        })
    }

    /// Where something has come or gone.
    pub(super) fn moved(&self, other: &Self) -> Networks<()> {
        let ledger = self.ledger.symmetric_difference(&other.ledger);
        let [ours, theirs] = [self, other].map(|pods| &pods.system.addresses);
        let addresses = ledger.chain(ours.symmetric_difference(theirs));
        let addresses = addresses.map(|address| IpNetwork::from(*address));
        let networks = self.routes.differing(&other.routes).chain(addresses);
        networks.map(|network| (network, ())).collect()
    }
}

/// Whether a Service asks for an address in one of these networks.
pub(super) fn asks_for(
    networks: &Networks<()>,
    service: &Service,
    pool_services: &[Arc<PoolService>],
) -> bool {
    let balanced = pool_services.iter().flat_map(|of| &of.load_balancer_ips);
    let asked = service
        .external_ips
        .iter()
        .chain(&service.load_balancer_ips);
    let mut asked = asked.chain(balanced);
    asked.any(|address| networks.find(*address).is_some())
}

/// Ends the sentence "ADDRESS is an address of Pods ...".
pub(super) const NOBODYS: &str = ", which no external IP and no load balancer may take";

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
            let named = all.iter().map(|(cidr, node)| (*cidr, node.name.clone()));
            let networks: Networks<Arc<str>> = named.collect();
            let around = all.iter().filter(|(cidr, _)| cidr.contains(address));
            let longest = around.clone().map(|(cidr, _)| cidr.prefix()).max();
            let mut around = around.filter(|(cidr, _)| Some(cidr.prefix()) == longest);
            let expected = around.next().map(|(cidr, node)| (*cidr, &node.name));
            prop_assert_eq!(networks.find(address), expected);
            prop_assert_eq!(networks.find("fd00::1".parse().unwrap()), None);
        }
    }
}
