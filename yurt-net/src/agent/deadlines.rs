//! Deadlines of the loop. A deadline is a state: one that passes while the loop does something else is due at the next
//! turn.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::react::Fact;

/// How soon a write that has failed is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// In effect never: no clock goes that far.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// When each of these is due.
#[derive(Debug)]
pub(super) struct Deadlines {
    /// To serve for the first time; `None`: not before a source answers, or it is done.
    pub(super) boot: Option<Instant>,
    /// To repeat a write that has failed.
    pub(super) retry: Option<Instant>,
    /// To judge again what Pods were granted beyond their own addresses; `None`: no source has changed.
    pub(super) grants: Option<Instant>,
    /// To compare the kernel with what it should hold; `None`: never.
    drift: Option<Instant>,
    interval: Duration,
}

impl Deadlines {
    /// `interval`: how often the kernel is compared; `None`: never.
    pub(super) fn start(interval: Option<Duration>) -> Self {
        let mut deadlines = Self {
            boot: None,
            retry: None,
            grants: None,
            drift: None,
            interval: NEVER,
        };
        deadlines.set_drift(interval);
        deadlines
    }

    /// Sets how often the kernel is compared, from now on; `None`: never.
    pub(super) fn set_drift(&mut self, interval: Option<Duration>) {
        let interval = interval.map(|interval| interval.min(NEVER));
        self.drift = interval.map(|interval| Instant::now() + interval);
        self.interval = interval.unwrap_or(NEVER);
    }

    /// Waits for the first deadline, and says what is due. Cancel safe.
    pub(super) async fn due(&mut self) -> Fact {
        let all = [
            (self.boot, Fact::BootDue),
            (self.retry, Fact::RetryDue),
            (self.grants, Fact::GrantsDue),
            (self.drift, Fact::DriftDue),
        ];
        let first = all
            .iter()
            .filter_map(|(at, fact)| Some(((*at)?, *fact)))
            .min_by_key(|(at, _)| *at);
        let Some((at, fact)) = first else {
            return std::future::pending().await;
        };
        sleep_until(at).await;
        // The steps that follow set the other deadlines anew.
        if fact == Fact::DriftDue {
            self.drift = Some(Instant::now() + self.interval);
        }
        fact
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The facts that are due within `turns` turns of a loop in which something else is ready first each time.
    async fn seen(deadlines: &mut Deadlines, turns: usize, turn: Duration) -> Vec<Fact> {
        let mut seen = Vec::new();
        for _ in 0..turns {
            // Another branch wins just as a deadline passes: the future is dropped before it is polled again.
            let other = tokio::time::sleep(turn);
            tokio::select! {
                biased;
                () = other => {}
                fact = deadlines.due() => {
                    seen.push(fact);
                    match fact {
                        Fact::BootDue => deadlines.boot = None,
                        Fact::GrantsDue => deadlines.grants = None,
                        _ => deadlines.retry = None,
                    }
                }
            }
        }
        seen
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_passes_while_another_branch_wins_is_due_at_the_next_turn() {
        // The other branch wins a moment before each deadline, at it, and after it.
        for turn in [SECOND - Duration::from_millis(1), SECOND, 2 * SECOND] {
            let mut deadlines = Deadlines::start(Some(3 * SECOND));
            deadlines.boot = Some(Instant::now() + SECOND);
            deadlines.retry = Some(Instant::now() + 2 * SECOND);
            deadlines.grants = Some(Instant::now() + 2 * SECOND);
            let seen = seen(&mut deadlines, 20, turn).await;
            for fact in [
                Fact::BootDue,
                Fact::RetryDue,
                Fact::GrantsDue,
                Fact::DriftDue,
            ] {
                assert!(seen.contains(&fact), "{turn:?}: {seen:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_never_due_waits_for_ever_and_the_first_deadline_comes_first() {
        let mut deadlines = Deadlines::start(None);
        let day = Duration::from_secs(24 * 3600);
        assert!(tokio::time::timeout(day, deadlines.due()).await.is_err());
        deadlines.retry = Some(Instant::now() + SECOND);
        deadlines.boot = Some(Instant::now());
        assert_eq!(deadlines.due().await, Fact::BootDue);
        deadlines.boot = None;
        assert_eq!(deadlines.due().await, Fact::RetryDue);
    }

    #[tokio::test(start_paused = true)]
    async fn the_kernel_is_compared_once_in_each_interval() {
        let mut deadlines = Deadlines::start(Some(30 * SECOND));
        let start = Instant::now();
        for n in 1..=3 {
            assert_eq!(deadlines.due().await, Fact::DriftDue);
            assert_eq!(start.elapsed(), 30 * SECOND * n);
        }
    }
}
