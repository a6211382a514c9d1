//! Established flows through Services: looked at when one may have lost its backend, and ended if it has.

use std::collections::BTreeMap;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::facts::Facts;
use super::lines::Lines;
use crate::config::AgentConfig;
use crate::dataplane::service::sockets::{
    Event, Found, Outcome, Reach, Scanner, SocketMaps, support,
};
use crate::error::chain;
use crate::host::process::give_back_memory;
use crate::model::Protocol;
use crate::observe::status::{Sockets, Status};
use crate::policy::{ClosureEstablished, Fate, Flow, Judge, Standing, Suspects};
use crate::source::preferred::Origin;

/// Ends flows whose backends are gone: sockets, and with a packet path its flows, too.
pub(super) struct Established {
    policy: ClosureEstablished,
    scanner: Scanner,
    /// Backends whose established flows may have lost them since the last scan. At the start: since an agent last ran.
    suspects: Suspects,
    /// Established flows to backends that new flows do not go to.
    watched: Vec<Flow>,
    /// The scanner's last message, until the loop takes it.
    event: Option<Event>,
    report: Sockets,
    /// Packets are served, or were, so flows of the packet path are ended, too.
    has_packets: bool,
    /// How many of these were ended.
    ended_flows: u64,
    lines: Lines,
}

impl Established {
    /// Looks at nothing before there is a table to judge by.
    pub(super) fn start(config: &AgentConfig, maps: SocketMaps) -> Self {
        let policy = config.closure_established;
        let with_tcp = policy == ClosureEstablished::Reset;
        let unsupported = support(with_tcp).err().map(|error| chain(&error));
        if let Some(reason) = &unsupported {
            warn!(reason, "sockets that outlive their endpoint are not ended");
        }
        Self {
            policy,
            scanner: Scanner::new(
                maps,
                Reach {
                    has_sockets: unsupported.is_none(),
                    with_tcp,
                    bpffs: config.place.bpffs.clone(),
                },
            ),
            suspects: Suspects::all(&[Protocol::Udp, Protocol::Tcp]),
            watched: Vec::new(),
            event: None,
            report: Sockets {
                unsupported,
                ..Sockets::default()
            },
            has_packets: config.packets.is_some(),
            ended_flows: 0,
            lines: Lines::default(),
        }
    }

    /// Waits until a scan has a message. Cancel safe.
    pub(super) async fn changed(&mut self) {
        self.event = Some(self.scanner.next().await);
    }

    /// New flows no longer go to these backends.
    pub(super) fn suspect(&mut self, lost: Suspects) {
        self.suspects.merge(lost);
    }

    /// Judges the result of a scan, or starts one if a flow may have lost its backend. Not by a checkpoint, which may
    /// be older than the sockets.
    pub(super) fn hear(&mut self, facts: &Facts<'_>) {
        match self.event.take() {
            Some(Event::Found(found)) => self.judge(found, facts),
            Some(Event::Done(outcome)) => self.take(outcome),
            None => self.scan(facts),
        }
    }

    fn scan(&mut self, facts: &Facts<'_>) {
        let is_idle = self.report.unsupported.is_some() && !self.has_packets;
        if facts.origin == Origin::Checkpoint || is_idle {
            return;
        }
        let fates = self.fates(&self.watched, facts);
        for (flow, (_, fate)) in self.watched.iter().zip(fates) {
            if fate == Fate::End {
                self.suspects.add(flow.protocol, flow.backend);
            }
        }
        if !self.suspects.is_empty() {
            self.scanner.start(std::mem::take(&mut self.suspects));
        }
    }

    fn fates(&self, flows: &[Flow], facts: &Facts<'_>) -> Vec<(Standing, Fate)> {
        let Some(snapshot) = facts.snapshot else {
            return Vec::new();
        };
        let judge = Judge {
            snapshot,
            config: &facts.known.policy,
            view: &facts.known.view,
            memory: facts.memory,
            table: facts.table,
        };
        let standings = judge.standings(flows).into_iter().zip(flows);
        standings
            .map(|(standing, flow)| (standing, standing.fate(flow.protocol, self.policy)))
            .collect()
    }

    /// Says which of the flows that a scan found are to be ended.
    fn judge(&mut self, found: Found, facts: &Facts<'_>) {
        let judged = self.fates(&found.flows, facts);
        let judged = found.flows.iter().zip(judged);
        let mut doomed = BTreeMap::new();
        // The flows that the scan was to find have been seen, or are gone.
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

    /// Takes note of the result of a scan.
    fn take(&mut self, outcome: Outcome) {
        let Outcome {
            ended,
            flows,
            sockets: seen,
            took,
            error,
        } = outcome;
        let outside = ended.get(&Standing::OutsideClosure).copied();
        let outside = outside.unwrap_or_default();
        let withdrawn = ended.values().sum::<u64>() - outside;
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        if withdrawn + outside + flows > 0 {
            let (now, scan) = (Instant::now().into_std(), self.report.scans.to_string());
            let admitted = self.lines.admit_one(now, "", &scan);
            if admitted.is_admitted {
                info!(
                    withdrawn,
                    outside, flows, seen, took_ms, "ended sockets whose endpoint went"
                );
            }
            if let Some(more) = admitted.left_out {
                info!(
                    more,
                    "ended more sockets whose endpoint went than are logged; `yurt-net status` counts them"
                );
            }
        }
        let error = error.map(|error| chain(&error));
        if let Some(error) = error.as_ref()
            && self.report.last_error.as_ref() != Some(error)
        {
            warn!(error, "not all sockets could be looked at");
        }
        // A node may have had a hundred thousand sockets.
        give_back_memory();
        let report = &mut self.report;
        report.scans += 1;
        report.last_seen = seen;
        report.last_scan_ms = took_ms;
        report.last_error = error;
        report.ended_withdrawn += withdrawn;
        report.ended_outside_closure += outside;
        self.ended_flows += flows;
    }

    /// The results of scans.
    pub(super) fn report(&self, status: &mut Status) {
        status.sockets.clone_from(&self.report);
        if let Some(packets) = &mut status.packet_path {
            packets.ended_flows = self.ended_flows;
        }
    }
}
