//! Sockets that are connected through Services: looked at when one may have lost its backend, and judged.

use std::collections::BTreeMap;

use tracing::debug;

use super::Agent;
use crate::dataplane::service::sockets::Found;
use crate::policy::{Fate, Flow, Judge, Standing};
use crate::source::preferred::Origin;

impl Agent {
    /// Looks at the established sockets, where one may have lost its backend. Not for what a checkpoint says: it may be older
    /// than the sockets.
    pub(super) fn scan_if_due(&mut self) {
        let is_hearsay = self.sources.origin() == Origin::Checkpoint;
        if is_hearsay || self.status.sockets.unsupported.is_some() {
            return;
        }
        let fates = self.fates(&self.watched);
        for (flow, (_, fate)) in self.watched.iter().zip(fates) {
            if fate == Fate::End {
                self.suspects.add(flow.protocol, flow.backend);
            }
        }
        if !self.suspects.is_empty() {
            self.scanner.start(std::mem::take(&mut self.suspects));
        }
    }

    fn fates(&self, flows: &[Flow]) -> Vec<(Standing, Fate)> {
        let Some(snapshot) = self.sources.snapshot() else {
            return Vec::new();
        };
        let judge = Judge {
            snapshot,
            config: &self.config,
            view: &self.view,
            memory: &self.memory,
            table: self.memo.table(),
        };
        let standings = judge.standings(flows).into_iter().zip(flows);
        standings
            .map(|(standing, flow)| (standing, standing.fate(flow.protocol, self.established)))
            .collect()
    }

    /// Says which of the flows that a scan found are to be ended.
    pub(super) fn judge(&mut self, found: Found) {
        let judged = self.fates(&found.flows);
        let judged = found.flows.iter().zip(judged);
        let mut doomed = BTreeMap::new();
        // Those that were looked for are seen, or are no more.
        let suspects = &found.suspects;
        self.watched
            .retain(|flow| !suspects.contains(flow.protocol, flow.backend));
        for (flow, (standing, fate)) in judged {
            match fate {
                Fate::Keep => {}
                Fate::Watch => self.watched.push(*flow),
                Fate::End => {
                    debug!(?flow, ?standing, "ending the sockets of a flow");
                    doomed.insert(*flow, standing);
                }
            }
        }
        found.end(doomed);
    }
}
