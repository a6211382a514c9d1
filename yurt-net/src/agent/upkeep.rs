//! What is in the kernel, compared with what should be there: mended by the drift timer, and told as it is.

use std::path::Path;

use tokio::time::Instant;
use tracing::{error, warn};

use super::{Agent, AgentError, RETRY};
use crate::dataplane::Dataplane as _;
use crate::dataplane::bpf::SocketLb;
use crate::error::chain;
use crate::policy::pods_among_services;
use crate::status::{Degraded, SelfTest};

impl Agent {
    /// Compares the kernel with what it should hold, and mends what somebody else has changed. No step keeps another from being
    /// made; what fails is shown until a later one succeeds. True where the self-test may say something else than it last did.
    pub(super) fn repair(&mut self) -> bool {
        let repair = self.dataplane.repair();
        if !repair.programs.is_empty() {
            self.status.drift_links += repair.programs.len();
            warn!(
                programs = repair.programs.join(","),
                "drift: programs were detached or replaced, or their links' pins removed"
            );
        }
        if !repair.pins.is_empty() {
            warn!(
                maps = repair.pins.join(","),
                "drift: pins of maps were removed"
            );
        }
        let failures = repair.failures.iter().map(|failure| chain(failure));
        self.failures = failures.collect();
        if let Err(failure) = self.repair_maps() {
            self.failures.push(chain(&failure));
        }
        for failure in &self.failures {
            error!(
                error = failure,
                "drift: could not be repaired; trying again"
            );
        }
        let is_failed = matches!(self.self_test, SelfTest::Failed { .. });
        !repair.programs.is_empty() || is_failed
    }

    fn repair_maps(&mut self) -> Result<(), AgentError> {
        if self.dataplane.holds(&self.image)? {
            return Ok(());
        }
        self.image = self.dataplane.observe()?;
        self.retry_at = Some(Instant::now() + RETRY);
        let (writes, refused) = self.write_table()?;
        self.retry_at = None;
        self.report_refused(refused);
        self.status.drift_writes += writes;
        warn!(writes, "drift: maps were changed behind our back");
        Ok(())
    }

    /// Runs the self-test, whose result is shown until the next one.
    pub(super) async fn test_itself(&mut self, socket_lb: SocketLb, cgroup: &Path) {
        self.self_test = match socket_lb {
            SocketLb::Off => SelfTest::Skipped,
            SocketLb::All | SocketLb::Host => SelfTest::run(cgroup).await,
        };
        if let SelfTest::Failed { reason } = &self.self_test {
            error!(
                reason,
                "self-test: a process in another cgroup is not served"
            );
        }
    }

    /// Fills in what of the kernel's side is not as it should be, as it is now.
    pub(super) fn fill_faults(&mut self) {
        let mut degraded = Vec::new();
        let mut say = |what: &str, reason: String| {
            degraded.push(Degraded {
                what: what.to_owned(),
                reason,
            });
        };
        let detached = match self.is_serving {
            true => self.dataplane.detached(),
            false => Vec::new(),
        };
        if !detached.is_empty() {
            let names = detached.join(", ");
            say("programs", format!("not attached: {names}"));
        }
        if self.is_serving
            && let Some((first, count)) = self.dataplane.unpinned()
        {
            let first = first.display();
            say(
                "pins",
                format!(
                    "{count} are not there, {first} first: Services would end with this process; is a bpf file system mounted there?"
                ),
            );
        }
        for failure in &self.failures {
            say("repair", failure.clone());
        }
        let unasked = self.sources.unasked();
        if !unasked.is_empty() {
            let names = unasked.join(", ");
            say(
                "source",
                format!("the checkpoint is in force, and not asked yet: {names}"),
            );
        }
        let snapshot = self.sources.snapshot();
        if let Some(reason) = snapshot.and_then(|s| pods_among_services(s, self.memo.table())) {
            say("ranges", reason);
        }
        self.status.degraded = degraded;
        self.status.ready = self.is_serving && detached.is_empty() && self.failures.is_empty();
        self.status.self_test = match (detached.is_empty(), &self.self_test) {
            (false, SelfTest::Passed) => SelfTest::Failed {
                reason: format!("programs are not attached: {}", detached.join(", ")),
            },
            (_, last) => last.clone(),
        };
    }
}
