//! Probes the Pods of this node while no source can say whether they are ready. `pods::probe` decides which Pods, and
//! when.
//!
//! At most 64 at a time, and four of one namespace, so that slow Pods do not keep others from being asked. While the
//! node's own link is down, no Pod is asked and none is left out, because a probe could fail only by the link; earlier
//! results are forgotten.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use self::ask::ask;
use self::failure::Failure;
use super::facts::Facts;
use super::lines::Lines;
use crate::config::AgentConfig;
use crate::pods::probe::{Check, Failing, Prober, Wanted, checks};

mod ask;
mod failure;
mod grpc;

const MOST_AT_A_TIME: usize = 64;

/// Asks Pods, if the operator wants that.
pub(super) struct Probing {
    is_on: bool,
    /// The times in `prober` count from here.
    started: Instant,
    prober: Prober,
    running: JoinSet<(Check, Result<(), Failure>)>,
    /// Checks that run or have just ended.
    handles: BTreeMap<Check, AbortHandle>,
    is_asking: bool,
    /// The log has said that not all Pods are asked. It says so once until the source is fresh again, because an author
    /// of slices could cross the limit again and again.
    has_told_more: bool,
    lines: Lines,
}

impl Probing {
    /// Asks no Pod yet, and never does if the operator does not want that.
    pub(super) fn start(config: &AgentConfig) -> Self {
        Self {
            is_on: config.probes_endpoints,
            started: Instant::now(),
            prober: Prober::default(),
            running: JoinSet::new(),
            handles: BTreeMap::new(),
            is_asking: false,
            has_told_more: false,
            lines: Lines::default(),
        }
    }

    /// Asks when it is time, and waits until the state of a Pod changes. Cancel safe.
    pub(super) async fn changed(&mut self) {
        loop {
            while self.running.len() < MOST_AT_A_TIME
                && let Some(check) = self.prober.take_due(self.started.elapsed())
            {
                let asked = check.clone();
                let handle = self.running.spawn(async move {
                    let outcome = ask(&asked).await;
                    (asked, outcome)
                });
                self.handles.insert(check, handle);
            }
            let is_full = self.running.len() >= MOST_AT_A_TIME;
            let next = self.prober.next_due().filter(|_| !is_full);
            let next = next.map(|due| self.started + due);
            tokio::select! {
                () = sleep_until(next.unwrap_or(self.started)), if next.is_some() => {}
                Some(done) = self.running.join_next(), if !self.running.is_empty() => {
                    // A check that is no longer wanted. A panic in a check would have ended the agent.
                    let Ok((check, outcome)) = done else { continue };
                    let outcome = outcome.map_err(|failure| failure.to_string());
                    let outcome = outcome.as_ref().map(|&()| ()).map_err(String::as_str);
                    if self.prober.tell(&check, outcome) {
                        let Check { pod, at, .. } = &check;
                        let outcome = outcome.err();
                        let what = format!("{pod} {at} {}", outcome.is_none());
                        let now = Instant::now().into_std();
                        let admitted = self.lines.admit_one(now, &pod.namespace, &what);
                        if admitted.is_admitted {
                            match outcome {
                                None => info!(%pod, %at, "answers again"),
                                Some(failure) => warn!(%pod, %at, failure, "does not answer"),
                            }
                        }
                        if let Some(more) = admitted.left_out {
                            info!(more, "more Pods began or stopped answering than are logged");
                        }
                        return;
                    }
                }
                else => std::future::pending().await,
            }
        }
    }

    /// Whether the operator wants Pods to be asked.
    pub(super) fn is_on(&self) -> bool {
        self.is_on
    }

    /// Takes which Pods to ask. While the source is fresh, or no link leads out of this node, no Pod is asked.
    pub(super) fn hear(&mut self, facts: &Facts<'_>) {
        let known = facts.known;
        let is_asked = self.is_on && !facts.freshness.is_fresh() && known.is_link_up();
        match facts.snapshot.filter(|_| is_asked) {
            Some(snapshot) => self.ask_these(checks(snapshot, known.view.truth.as_deref())),
            None => self.stop(),
        }
    }

    /// Asks these from now on. Those that were asked before go on as they were.
    fn ask_these(&mut self, wanted: Wanted) {
        if !self.is_asking {
            info!("the source is stale: Pods of this node are asked whether they answer");
        }
        self.is_asking = true;
        let now = self.started.elapsed();
        let spread = |period: Duration| period.mul_f64(fastrand::f64());
        if wanted.has_more && !std::mem::replace(&mut self.has_told_more, true) {
            warn!(
                "Pods of this node have more endpoints than are asked: the others are believed to answer"
            );
        }
        self.prober.set(wanted.checks, now, spread);
        let prober = &self.prober;
        self.handles.retain(|check, handle| {
            let is_wanted = prober.is_wanted(check);
            if !is_wanted {
                handle.abort();
            }
            is_wanted && !handle.is_finished()
        });
    }

    /// The backends that do not answer.
    pub(super) fn failing(&self) -> Failing {
        self.prober.failing()
    }

    /// Asks no Pod any more, and forgets the results.
    fn stop(&mut self) {
        if std::mem::take(&mut self.is_asking) {
            info!("Pods of this node are no longer asked whether they answer");
            self.running = JoinSet::new();
            self.handles.clear();
            self.has_told_more = false;
            self.prober = Prober::default();
        }
    }
}
