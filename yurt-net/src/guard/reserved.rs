//! What no Pod may ask for, as the cluster and the ledger say it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{GuardedPod, Reserved};
use crate::model::Snapshot;
use crate::retain::ledger::{Ledger, State};

/// Where OpenYurt's hub listens unless it is told otherwise (cmd/yurthub/app/options: `HubAgentDummyIfIP`).
const HUB: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 2, 1)),
];

impl Reserved {
    /// `local`: addresses on this node's interfaces. Of `pods` the owners are known otherwise; the ledger has those of Pods that
    /// are just being made, too.
    pub fn new(
        local: &BTreeSet<IpAddr>,
        snapshot: Option<&Snapshot>,
        ledger: &Ledger,
        pods: &[GuardedPod],
    ) -> Self {
        let mut reserved = Self {
            node: local.clone(),
            ..Self::default()
        };
        // For everybody else only that counts: what follows is a walk over all Services.
        if pods.iter().all(|pod| pod.extra.is_empty()) {
            return reserved;
        }
        let known: BTreeSet<(&str, &str, &str)> = pods
            .iter()
            .map(|pod| (&*pod.namespace, &*pod.name, &*pod.interface))
            .collect();
        for (key, entry) in ledger.entries() {
            let is_known = known.contains(&(&*key.namespace, &*key.name, &*key.interface));
            // What was released is nobody's.
            if !is_known && entry.state != State::Released {
                let whose = format!("Pod {}/{}", key.namespace, key.name);
                let owned = entry.owned().map(|address| (address, whose.clone()));
                reserved.hosts.extend(owned);
            }
        }
        for address in HUB {
            reserved.hosts.insert(address, "YurtHub".to_owned());
        }
        if let Some(snapshot) = snapshot {
            reserved.take_up(snapshot);
        }
        reserved
    }

    fn take_up(&mut self, snapshot: &Snapshot) {
        for node in snapshot.nodes.values() {
            for address in node.internal_ips.iter().chain(&node.external_ips) {
                let whose = format!("Node {}", node.name);
                self.hosts.insert(*address, whose);
            }
        }
        for cidr in snapshot.service_cidrs.values() {
            let prefixes = cidr.cidrs.iter();
            let whose = "the Services of this cluster";
            self.networks
                .extend(prefixes.map(|prefix| (*prefix, whose.to_owned())));
        }
        // Where nothing says which prefix the ClusterIPs are from.
        for service in snapshot.services.values() {
            for address in &service.cluster_ips {
                let whose = format!("Service {}", service.name);
                self.hosts.insert(*address, whose);
            }
        }
        let apiservers = snapshot
            .slices
            .values()
            .filter(|slice| &*slice.name.namespace == "default" && &*slice.service == "kubernetes");
        for endpoint in apiservers.flat_map(|slice| &slice.endpoints) {
            self.hosts
                .insert(endpoint.address, "an apiserver".to_owned());
        }
    }
}
