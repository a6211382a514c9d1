//! What no Pod may ask for, as the cluster and the ledger say it.

use std::collections::BTreeSet;

use super::{GuardedPod, Reserved};
use crate::model::Snapshot;
use crate::policy::protected::{Protected, Whose};
use crate::policy::{NodeView, PolicyConfig};
use crate::retain::ledger::{Ledger, State};

impl Reserved {
    /// Of `pods` the owners are known otherwise; the ledger has those of Pods that are just being made, too.
    pub fn new(
        snapshot: Option<&Snapshot>,
        config: &PolicyConfig,
        view: &NodeView,
        ledger: &Ledger,
        pods: &[GuardedPod],
    ) -> Self {
        let mut reserved = Self {
            node: view.local_addresses.clone().unwrap_or_default(),
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
        let nothing = Snapshot::default();
        let snapshot = snapshot.unwrap_or(&nothing);
        // The same as no Service may take.
        for (address, whose) in Protected::new(snapshot, config, view).listed() {
            let whose = match whose {
                Whose::ThisNode => "this node".to_owned(),
                Whose::Protected => "the operator (--protect)".to_owned(),
                Whose::Node(name) => format!("Node {name}"),
                Whose::Hub => "YurtHub".to_owned(),
                Whose::Server => "an apiserver".to_owned(),
                Whose::Special(what) => what.to_owned(),
            };
            reserved.hosts.insert(address, whose);
        }
        reserved.take_up(snapshot);
        reserved
    }

    fn take_up(&mut self, snapshot: &Snapshot) {
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
    }
}
