//! What the agent takes up of its Pods and devices, and what it passes on to those who look after them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::info;

use super::Agent;
use super::devices::Devices;
use super::probing::Probing;
use super::retention::Retention;
use crate::model::LocalPod;
use crate::node::vtep::Word;
use crate::pods::probe::checks;
use crate::pods::truth::Move;
use crate::policy::pool_peers;
use crate::source::preferred::Freshness;

impl Agent {
    /// Follows the ledger up, and its consequences for the table.
    pub(super) async fn retain(&mut self, retention: &mut Retention, probing: &mut Probing) {
        let (config, view) = (&self.config, &self.view);
        retention.update(&mut self.sources, config, view).await;
        self.tell_clients(retention);
        if self.take_truth(retention, probing) && self.status.ready {
            self.try_sync();
        }
    }

    /// What `status` says of retention.
    pub(super) fn fill_retention(&mut self, retention: &Retention) {
        let mut status = retention.status();
        if let (Some(truth), Some(snapshot)) = (&self.view.truth, self.sources.snapshot()) {
            let moves = snapshot
                .slices
                .values()
                .flat_map(|slice| truth.moves(slice));
            for (_, _, moved) in moves {
                match moved {
                    Move::To(_) => status.endpoints_moved += 1,
                    Move::Away => status.endpoints_away += 1,
                }
            }
        }
        status.endpoints_failing = self.view.failing.len();
        self.status.retention = status;
    }

    /// Takes up where Pods are and whether they answer, or leaves that to the source while it is fresh; true when that is new.
    pub(super) fn take_truth(&mut self, retention: &Retention, probing: &mut Probing) -> bool {
        let truth = match self.sources.freshness() {
            Freshness::Fresh => None,
            Freshness::Stale => retention.truth(),
        };
        let is_new = truth != self.view.truth;
        if truth.is_some() != self.view.truth.is_some() {
            match truth {
                Some(_) => {
                    info!("the source is stale: Pods of this node are where the ledger has them")
                }
                None => info!("the source is fresh: Pods are where it has them"),
            }
        }
        self.view.truth = truth;
        // They are asked where they are.
        self.take_probes(retention, probing) || is_new
    }

    /// Whether the Pods of this node may say something else to retention than at the last call.
    pub(super) fn have_pods_changed(&mut self) -> bool {
        let empty = BTreeMap::new();
        let pods = self
            .sources
            .snapshot()
            .map_or(&empty, |snapshot| &snapshot.pods);
        let is_same = |known: &Arc<LocalPod>, pod: &Arc<LocalPod>| Arc::ptr_eq(known, pod);
        let is_unchanged = self.pods.len() == pods.len()
            && self
                .pods
                .iter()
                .zip(pods.values())
                .all(|(known, pod)| is_same(known, pod));
        if !is_unchanged {
            self.pods = pods.values().cloned().collect();
        }
        !is_unchanged
    }

    /// Takes up whom to ask, or leaves that to the source while it is fresh; true when the table may be another.
    pub(super) fn take_probes(&mut self, retention: &Retention, probing: &mut Probing) -> bool {
        let is_stale = self.sources.freshness() == Freshness::Stale;
        let is_asked = probing.is_on() && is_stale && retention.is_link_up();
        match self.sources.snapshot().filter(|_| is_asked) {
            Some(snapshot) => probing.start(checks(snapshot, self.view.truth.as_deref())),
            None => probing.stop(),
        }
        self.take_failing(probing)
    }

    /// Takes up who does not answer; true when that is new.
    pub(super) fn take_failing(&mut self, probing: &Probing) -> bool {
        let failing = probing.failing();
        let is_new = failing != *self.view.failing;
        if is_new {
            self.view.failing = Arc::new(failing);
        }
        is_new
    }

    /// Passes on what the source in charge says of this node's Node, and who else is in its pool.
    pub(super) fn inform(&self, devices: &mut Devices) {
        let snapshot = self.sources.snapshot();
        let node = &self.config.node;
        let known = snapshot.and_then(|snapshot| snapshot.nodes.get(node.as_str()));
        let annotations = known.map(|node| node.annotations.clone());
        let word = Word {
            node: node.clone(),
            annotations: annotations.unwrap_or_default(),
            is_fresh: self.sources.freshness().is_fresh(),
        };
        let peers = |snapshot| move || pool_peers(snapshot, &self.config, &self.memory);
        devices.hear(word, snapshot.map(peers));
    }
}
