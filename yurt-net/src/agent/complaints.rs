//! Wishes of Pods that cannot be granted: the status has all of them, the log the new ones.

use std::collections::BTreeSet;
use std::time::Instant;

use tracing::warn;

use super::lines::{Lines, namespace};
use crate::device::Complaint;

/// The complaints of one part of the agent.
#[derive(Debug)]
pub(super) struct Complaints {
    /// The name of that part.
    what: &'static str,
    now: Vec<Complaint>,
    lines: Lines,
}

impl Complaints {
    /// No complaints yet.
    pub(super) fn about(what: &'static str) -> Self {
        Self {
            what,
            now: Vec::new(),
            lines: Lines::default(),
        }
    }

    /// Sets the present complaints.
    pub(super) fn set(&mut self, complaints: Vec<Complaint>) {
        let known: BTreeSet<&Complaint> = self.now.iter().collect();
        let new = complaints.iter().filter(|new| !known.contains(new));
        let new: Vec<&Complaint> = new.collect();
        let name = |complaint: &&Complaint| format!("{} {}", complaint.pod, complaint.interface);
        let admitted = self.lines.admit(
            Instant::now(),
            &new,
            |complaint| namespace(&complaint.pod),
            name,
        );
        let what = self.what;
        for Complaint {
            pod,
            interface,
            reason,
        } in admitted.lines
        {
            warn!(pod, interface, reason, "{what}");
        }
        if let Some(more) = admitted.left_out {
            warn!(
                more,
                "{what}: more than these lines name; `yurt-net status` shows all"
            );
        }
        self.now = complaints;
    }

    /// The present complaints, as lines of the status.
    pub(super) fn alarms(&self) -> impl Iterator<Item = String> {
        self.now.iter().map(|complaint| {
            let Complaint {
                pod,
                interface,
                reason,
            } = complaint;
            format!("Pod {pod} ({interface}): {reason}")
        })
    }
}
