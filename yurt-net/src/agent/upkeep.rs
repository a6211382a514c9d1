//! What is in the kernel, compared with what should be there: mended by the drift timer, and told as it is.

use tokio::time::Instant;
use tracing::{error, warn};

use super::deadlines::RETRY;
use super::{Agent, AgentError};
use crate::dataplane::Dataplane as _;
use crate::dataplane::service::SocketLb;
use crate::error::{chain, distinct};
use crate::observe::selftest;
use crate::observe::status::SelfTest;
use crate::observe::status::health::Health;
use crate::policy::pods_among_services;

impl Agent {
    /// Compares the kernel with what it should hold, and mends what somebody else has changed. No step keeps another from being
    /// made; what fails is shown until a later one succeeds. True where the self-test may say something else than it last did.
    pub(super) fn repair(&mut self) -> bool {
        if self.is_holding && !self.is_adopted {
            // Programs of this agent would read a table that is not written yet.
            return false;
        }
        if self.units.claimed.is_refused() {
            // Two agents would take each other's repairs back for ever.
            return false;
        }
        // What was left out in the minute before.
        self.report_rejections(&[]);
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
        let mut failures: Vec<String> = repair
            .failures
            .iter()
            .map(|failure| chain(failure))
            .collect();
        if self.is_serving
            && let Err(failure) = self.repair_maps()
        {
            failures.push(chain(&failure));
        }
        // One reason may keep all pins from being made.
        self.failures = distinct(failures);
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
        self.deadlines.retry = Some(Instant::now() + RETRY);
        let (writes, refused) = self.write_table()?;
        self.deadlines.retry = None;
        self.report_refused(refused);
        self.status.drift_writes += writes;
        warn!(writes, "drift: maps were changed behind our back");
        Ok(())
    }

    /// Runs the self-test, whose result is shown until the next one.
    pub(super) async fn test_itself(&mut self) {
        self.self_test = match self.socket_lb {
            SocketLb::Off => SelfTest::Skipped,
            SocketLb::All | SocketLb::Host => match selftest::run(&self.cgroup.path).await {
                Ok(()) => SelfTest::Passed,
                Err(error) => SelfTest::Failed {
                    reason: chain(&error),
                },
            },
        };
        if let SelfTest::Failed { reason } = &self.self_test {
            error!(
                reason,
                "self-test: a process in another cgroup is not served"
            );
        }
    }

    /// Fills in whether Services are served, and what is not as it should be, as it is now.
    pub(super) fn fill_health(&mut self) {
        let checkpoint = self.keeper.problem();
        let snapshot = self.sources.snapshot();
        let serves = self.is_serving || self.is_holding;
        let unpinned = match serves {
            true => self.dataplane.unpinned(),
            false => Ok(None),
        };
        let health = Health {
            is_serving: self.is_serving,
            is_holding: self.is_holding,
            detached: match serves {
                true => self.dataplane.detached(),
                false => Vec::new(),
            },
            unseen: unpinned.as_ref().err().map(|error| chain(error)),
            unpinned: unpinned.ok().flatten(),
            manifests: self.sources.stale_manifests(),
            failures: &self.failures,
            unasked: self.sources.unasked(),
            unproven: self.sources.unproven(),
            refused: self.status.refused_maps(),
            ranges: snapshot.and_then(|s| pods_among_services(s, self.memo.table())),
            state: self.units.asked.state_dir.problem(),
            checkpoint: checkpoint.as_deref(),
            socket: self.units.asked.problem(),
            claim: self.units.claimed.problem(),
        };
        let (degraded, ready) = (health.degraded(), health.is_ready());
        let self_test = match (&*health.detached, &self.self_test) {
            ([], last) => last.clone(),
            (detached, SelfTest::Passed) => SelfTest::Failed {
                reason: format!("programs are not attached: {}", detached.join(", ")),
            },
            (_, last) => last.clone(),
        };
        self.status.degraded = degraded;
        self.status.ready = ready;
        self.status.self_test = self_test;
    }

    /// What a probe is told: an error where Services are not served as they should be.
    pub(super) fn health(&mut self) -> Result<String, String> {
        self.fill_health();
        match (self.status.ready, &*self.status.degraded) {
            (true, []) => Ok("ok".to_owned()),
            (true, _) => Ok(self.status.readiness()),
            (false, _) => Err(self.status.readiness()),
        }
    }
}
