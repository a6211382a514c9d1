//! What is in the kernel, compared with what should be there: mended by the drift timer, and told as it is.

use tracing::{error, warn};

use super::serving::Serving;
use crate::config::AgentConfig;
use crate::dataplane::service::SocketLb;
use crate::error::{chain, distinct};
use crate::host::cgroup::Cgroup;
use crate::observe::selftest;
use crate::observe::status::{SelfTest, Status};

/// Looks after what is served, and whether it is.
pub(super) struct Upkeep {
    cgroup: Cgroup,
    socket_lb: SocketLb,
    /// What the last repair could not mend.
    failures: Vec<String>,
    /// The last one.
    self_test: SelfTest,
    /// Programs that were attached again.
    programs: usize,
}

impl Upkeep {
    /// Does nothing yet.
    pub(super) fn start(config: &AgentConfig, cgroup: Cgroup) -> Self {
        Self {
            cgroup,
            socket_lb: config.socket_lb,
            failures: Vec::new(),
            self_test: SelfTest::Pending,
            programs: 0,
        }
    }

    /// Compares the kernel with what it should hold, and mends what somebody else has changed. No step keeps another
    /// from being made; what fails is shown until a later one succeeds. True where the self-test may say something else
    /// than it last did.
    pub(super) fn repair(&mut self, serving: &mut Serving) -> bool {
        if !serving.may_attach() {
            return false;
        }
        let (repair, maps) = serving.repair();
        if !repair.programs.is_empty() {
            self.programs += repair.programs.len();
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
        let failures = failures.chain(maps.err().map(|failure| chain(&failure)));
        // One reason may keep all pins from being made.
        self.failures = distinct(failures.collect::<Vec<_>>());
        for failure in &self.failures {
            error!(
                error = failure,
                "drift: could not be repaired; trying again"
            );
        }
        let is_failed = matches!(self.self_test, SelfTest::Failed { .. });
        !repair.programs.is_empty() || is_failed
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

    /// What the last repair could not mend.
    pub(super) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Whom the programs serve, and whether they do. `detached`: programs that are not attached by now.
    pub(super) fn report(&self, detached: &[&str], status: &mut Status) {
        status.cgroup.clone_from(&self.cgroup.path);
        status.cgroup_is_root = self.cgroup.is_root;
        status.socket_lb = self.socket_lb;
        status.drift_links = self.programs;
        status.self_test = match (detached, &self.self_test) {
            ([_, ..], SelfTest::Passed) => SelfTest::Failed {
                reason: format!("programs are not attached: {}", detached.join(", ")),
            },
            (_, last) => last.clone(),
        };
    }
}
