//! Asks the Pods of this node whether they answer, while nobody else tells: `retain::probing` says whom and when.
//!
//! At most four at a time. While the node's own link is down nobody is asked and nobody is left out: who fails then may only fail to be
//! reached. What was found before is forgotten.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use self::ask::{Failure, ask};
use super::Agent;
use super::retention::Retention;
use crate::retain::probing::{Check, Failing, Prober, checks};
use crate::source::preferred::Freshness;

mod ask;
mod grpc;

const MOST_AT_A_TIME: usize = 4;

/// See the module.
pub(super) struct Probing {
    is_on: bool,
    /// Times of `prober` are since then.
    started: Instant,
    prober: Prober,
    running: JoinSet<(Check, Result<(), Failure>)>,
    is_asking: bool,
}

impl Probing {
    /// Asks nobody yet, and never does if it is not wanted.
    pub(super) fn new(is_on: bool) -> Self {
        Self {
            is_on,
            started: Instant::now(),
            prober: Prober::default(),
            running: JoinSet::new(),
            is_asking: false,
        }
    }

    /// Asks when it is time, and waits until somebody fails or answers again. Cancel safe.
    pub(super) async fn changed(&mut self) {
        loop {
            while self.running.len() < MOST_AT_A_TIME
                && let Some(check) = self.prober.take_due(self.started.elapsed())
            {
                self.running.spawn(async move {
                    let outcome = ask(&check).await;
                    (check, outcome)
                });
            }
            let is_full = self.running.len() >= MOST_AT_A_TIME;
            let next = self.prober.next_due().filter(|_| !is_full);
            let next = next.map(|due| self.started + due);
            tokio::select! {
                () = sleep_until(next.unwrap_or(self.started)), if next.is_some() => {}
                Some(done) = self.running.join_next(), if !self.running.is_empty() => {
                    // One that panicked would have ended the agent.
                    let Ok((check, outcome)) = done else { continue };
                    let outcome = outcome.map_err(|failure| failure.to_string());
                    let outcome = outcome.as_ref().map(|&()| ()).map_err(String::as_str);
                    if self.prober.tell(&check, outcome) {
                        let Check { pod, at, .. } = &check;
                        match outcome {
                            Ok(()) => info!(%pod, %at, "answers again"),
                            Err(failure) => warn!(%pod, %at, failure, "does not answer"),
                        }
                        return;
                    }
                }
                else => std::future::pending().await,
            }
        }
    }

    fn stop(&mut self) {
        if std::mem::take(&mut self.is_asking) {
            info!("Pods of this node are no longer asked whether they answer");
            self.running = JoinSet::new();
            self.prober = Prober::default();
        }
    }
}

impl Agent {
    /// Takes up whom to ask, or leaves that to the source while it is fresh; true when the table may be another.
    pub(super) fn take_probes(&mut self, retention: &Retention, probing: &mut Probing) -> bool {
        let is_stale = self.sources.freshness() == Freshness::Stale;
        match self.sources.snapshot() {
            Some(snapshot) if probing.is_on && is_stale && retention.is_link_up() => {
                if !probing.is_asking {
                    info!("the source is stale: Pods of this node are asked whether they answer");
                }
                probing.is_asking = true;
                let wanted = checks(snapshot, self.view.truth.as_deref());
                let now = probing.started.elapsed();
                let spread = |period: Duration| period.mul_f64(fastrand::f64());
                probing.prober.set(wanted, now, spread);
            }
            _ => probing.stop(),
        }
        self.take_failing(probing)
    }

    /// Takes up who does not answer; true when that is new.
    pub(super) fn take_failing(&mut self, probing: &Probing) -> bool {
        let failing: Failing = probing.prober.failing();
        let is_new = failing != *self.view.failing;
        if is_new {
            self.view.failing = Arc::new(failing);
        }
        is_new
    }
}
