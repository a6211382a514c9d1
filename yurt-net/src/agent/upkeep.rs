//! The kernel, compared with what it should hold: repaired by the drift timer, and reported.

use tracing::{error, warn};

use super::serving::Serving;
use crate::config::AgentConfig;
use crate::dataplane::service::SocketLb;
use crate::error::{chain, distinct};
use crate::host::cgroup::Cgroup;
use crate::observe::selftest;
use crate::observe::status::{SelfTest, Status};

/// Repairs what is served, and tests whether it is.
pub(super) struct Upkeep {
    cgroup: Cgroup,
    socket_lb: SocketLb,
    /// What the last repair could not mend.
    failures: Vec<String>,
    /// The result of the last self-test.
    self_test: SelfTest,
    /// How many programs were attached again.
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

    /// Compares the kernel with what it should hold, and repairs what another process has changed. A failed step stops
    /// no other one; failures are shown until a later repair succeeds. True if the self-test may have another result
    /// now.
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
        // One cause may keep all pins from being made.
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

    /// Runs the self-test. Its result is shown until the next one.
    pub(super) async fn test_itself(&mut self) {
        self.self_test = self_test(self.socket_lb, &self.cgroup).await;
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

    /// Which processes are served, and whether that works. `detached`: programs that are not attached now.
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

/// Whether a process in another cgroup is served.
pub(super) async fn self_test(socket_lb: SocketLb, cgroup: &Cgroup) -> SelfTest {
    match socket_lb {
        SocketLb::Off => SelfTest::Skipped,
        SocketLb::All | SocketLb::Host => match selftest::run(&cgroup.path).await {
            Ok(()) => SelfTest::Passed,
            Err(error) => SelfTest::Failed {
                reason: chain(&error),
            },
        },
    }
}
