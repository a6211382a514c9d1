//! What no Pod may ask for, according to the cluster and the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::claims::Word;
use super::extra::Reserved;
use super::image::{GuardImage, GuardRow};
use super::pod::GuardedPod;
use super::prefix::last;
use crate::ledger::{Ledger, State};
use crate::model::{NamespacedName, Snapshot};

impl Reserved {
    /// What is reserved on the Node with this name and these addresses. The owners of the addresses of `pods` are known
    /// from `pods` itself; the ledger adds those of Pods that are just being made. `protected` names the addresses that
    /// no Service may take either, and their owners; it is called only if a Pod asks for anything.
    pub fn new<P: IntoIterator<Item = (IpAddr, String)>>(
        (node, addresses): (&str, &BTreeSet<IpAddr>),
        snapshot: &Snapshot,
        protected: impl FnOnce() -> P,
        ledger: &Ledger,
        pods: &[GuardedPod],
    ) -> Self {
        let mut reserved = Self {
            node: addresses.clone(),
            ..Self::default()
        };
        // If no Pod asks for anything, the walk over all Services below is not worth its cost.
        if pods.iter().all(|pod| pod.extra.is_empty()) {
            return reserved;
        }
        let known: BTreeSet<(&str, &str, &str)> = pods
            .iter()
            .map(|pod| (&*pod.namespace, &*pod.name, &*pod.interface))
            .collect();
        for (key, entry) in ledger.entries() {
            let is_known = known.contains(&(&*key.namespace, &*key.name, &*key.interface));
            // A released address has no owner.
            if !is_known && entry.state != State::Released {
                let whose = format!("Pod {}/{}", key.namespace, key.name);
                let owned = entry.owned().map(|address| (address, whose.clone()));
                reserved.hosts.extend(owned);
            }
        }
        reserved.hosts.extend(protected());
        reserved.take_up_cluster_ips(snapshot);
        reserved.take_up_nodes(snapshot, node);
        reserved.take_up_claims(snapshot, node, pods);
        reserved
    }

    /// What counts as granted from now on: what is granted now, and what was granted before to Pods whose annotations
    /// no source has told yet.
    pub fn granted_now(
        self,
        image: &GuardImage,
        pods: &[GuardedPod],
        snapshot: &Snapshot,
    ) -> BTreeMap<u32, GuardRow> {
        let is_known = |pod: &&GuardedPod| {
            let name = NamespacedName::new(pod.namespace.as_str(), pod.name.as_str());
            snapshot.pods.contains_key(&name)
        };
        let known = pods.iter().filter(is_known);
        let known: BTreeSet<u32> = known.filter_map(|pod| Some(pod.host?.ifindex)).collect();
        let mut granted = self.granted;
        granted.retain(|ifindex, row| {
            let is_there = image.attached.contains(ifindex) && row.is_granted_more();
            is_there && !known.contains(ifindex)
        });
        let rows = image.rows.iter().filter(|(_, row)| row.is_granted_more());
        granted.extend(rows.map(|(ifindex, row)| (*ifindex, row.clone())));
        granted
    }

    /// Adds the addresses of Pods of other nodes.
    fn take_up_nodes(&mut self, snapshot: &Snapshot, node: &str) {
        let others = snapshot.nodes.values().filter(|other| &*other.name != node);
        for other in others {
            let whose = format!("the Pods of Node {}", other.name);
            let cidrs = other.pod_cidrs.iter();
            self.networks
                .extend(cidrs.map(|cidr| (*cidr, whose.clone())));
        }
    }

    /// Adds the ClusterIPs, and the prefixes that the cluster allocates them from.
    fn take_up_cluster_ips(&mut self, snapshot: &Snapshot) {
        for cidr in snapshot.service_cidrs.values() {
            let prefixes = cidr.cidrs.iter();
            let whose = "the Services of this cluster";
            self.networks
                .extend(prefixes.map(|prefix| (*prefix, whose.to_owned())));
        }
        // If the prefixes are not known, single ClusterIPs count.
        for service in snapshot.services.values() {
            for address in &service.cluster_ips {
                let whose = format!("Service {}", service.name);
                self.hosts.insert(*address, whose);
            }
        }
    }

    /// Adds what Services and EndpointSlices say of addresses that a Pod asks for. Endpoints that are Pods of this node
    /// are left out, because the ledger knows them better.
    fn take_up_claims(&mut self, snapshot: &Snapshot, node: &str, pods: &[GuardedPod]) {
        let wishes = Ranges::new(pods.iter().flat_map(|pod| &pod.extra.prefixes));
        let known: BTreeSet<IpAddr> = pods
            .iter()
            .flat_map(|pod| &pod.addresses)
            .copied()
            .collect();
        let mut claim = |address: IpAddr, word: Word, by: &NamespacedName, what: &str, at: &str| {
            if wishes.contain(address) {
                let word = match is_clusters(by) && word == Word::Author {
                    true => Word::Cluster,
                    false => word,
                };
                let claims = self.claims.entry(address).or_default();
                claims.add(word, by, what, at);
            }
        };
        for service in snapshot.services.values() {
            for address in &service.load_balancer_ips {
                claim(*address, Word::Controller, &service.name, BALANCER, "");
            }
            for address in &service.external_ips {
                claim(*address, Word::Author, &service.name, "Service", "");
            }
        }
        for object in snapshot.pool_services.values() {
            for address in &object.load_balancer_ips {
                claim(*address, Word::Controller, &object.owner(), BALANCER, "");
            }
        }
        for slice in snapshot.slices.values() {
            for (index, endpoint) in slice.endpoints.iter().enumerate() {
                if known.contains(&endpoint.address) || !wishes.contain(endpoint.address) {
                    continue;
                }
                let mut pods = slice.pods.iter();
                let is_pod = pods.any(|pod| usize::try_from(pod.endpoint) == Ok(index));
                let at = endpoint.node_name().map_or("", |at| &**at);
                let at = if at == node && !is_pod { "" } else { at };
                claim(endpoint.address, Word::Author, &slice.owner(), ENDPOINT, at);
            }
        }
    }
}

/// The owner that a claim names, before the name of the Service.
const BALANCER: &str = "the load balancer of Service";
const ENDPOINT: &str = "an endpoint of Service";

/// Whether tenants cannot write this Service.
fn is_clusters(service: &NamespacedName) -> bool {
    &*service.namespace == "kube-system"
        || (&*service.namespace, &*service.name) == ("default", "kubernetes")
}

/// Prefixes as ranges that do not overlap, with the first and the last address of each.
struct Ranges(BTreeMap<IpAddr, IpAddr>);

impl Ranges {
    fn new<'a>(prefixes: impl Iterator<Item = &'a IpNetwork>) -> Self {
        let mut all: Vec<(IpAddr, IpAddr)> = prefixes
            .map(|prefix| (prefix.network(), last(prefix)))
            .collect();
        // If two prefixes overlap, one contains the other: the longer range comes first.
        all.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        let mut ranges = Self(BTreeMap::new());
        for (from, to) in all {
            if !ranges.contain(from) {
                ranges.0.insert(from, to);
            }
        }
        ranges
    }

    fn contain(&self, address: IpAddr) -> bool {
        let before = self.0.range(..=address).next_back();
        before.is_some_and(|(_, to)| address <= *to)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn prefix() -> impl Strategy<Value = IpNetwork> {
        let v4 = (any::<[u8; 2]>(), 20..=32u8)
            .prop_map(|([a, b], bits)| IpNetwork::new([10, 0, a, b].into(), bits));
        let v6 = (any::<[u8; 2]>(), 110..=128u8).prop_map(|([a, b], bits)| {
            let low = u16::from_be_bytes([a, b]);
            IpNetwork::new([0xfd00, 0, 0, 0, 0, 0, 0, low].into(), bits)
        });
        prop_oneof![v4, v6].prop_map(Result::unwrap)
    }

    proptest! {
        #[test]
        fn ranges_hold_what_any_of_the_prefixes_holds(
            prefixes in vec(prefix(), 0..8),
            asked in vec(prefix(), 1..8),
        ) {
            let ranges = Ranges::new(prefixes.iter());
            for address in asked.iter().map(IpNetwork::ip) {
                let expected = prefixes.iter().any(|prefix| prefix.contains(address));
                prop_assert_eq!(ranges.contain(address), expected, "{}", address);
            }
        }
    }
}
