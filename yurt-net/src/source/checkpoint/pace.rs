//! When a checkpoint is saved. Pure: the caller has the clock.
//!
//! Flash wears by writes, hardly by their bytes: on ext4 an append of 3 KB and its fsync costs 26 KB (the last block
//! once more, inode, journal). So a first change is saved within seconds, in case the node loses power next. Under
//! changes without end there is one save a minute: 1,440 a day of about 32 KB. If nothing changes, nothing is written.
//!
//! Watches may move on without anything new. Their versions are saved with the next change and when the agent stops,
//! never alone: a watch of *all* objects of a kind can go on from any old version as long as no object has changed, and
//! a changed object would have been saved. After a long rest only the own Node is read once more.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// How long a change waits for more changes.
const SETTLE: Duration = Duration::from_secs(2);
/// The time from one save of changes to the next.
const EVERY: Duration = Duration::from_secs(60);
/// The time from a failure to the next attempt. It is doubled each time, because each attempt wears a full disk, too.
const RETRY: Duration = Duration::from_secs(30);
const RETRY_AT_MOST: Duration = Duration::from_secs(10 * 60);

/// What a save is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Objects, or the source, may differ. If they do not, nothing is written.
    Changes,
    /// Also saved when only the versions or `synced_at` differ, as at the end of the agent.
    Everything,
}

/// Decides when to save.
#[derive(Debug, Default)]
pub(super) struct Pace {
    changed: Option<Instant>,
    attempted: Option<Instant>,
    failures: u32,
}

impl Pace {
    /// There is a new snapshot.
    pub(super) fn changed(&mut self, now: Instant) {
        self.changed.get_or_insert(now);
    }

    /// When to call `begin`; `None`: not before something happens.
    pub(super) fn due(&self) -> Option<Instant> {
        self.changed.map(|at| self.not_before(at + SETTLE))
    }

    fn not_before(&self, at: Instant) -> Instant {
        let pause = match self.failures.checked_sub(1) {
            None => EVERY,
            Some(before) => RETRY_AT_MOST.min(RETRY * 2u32.saturating_pow(before)),
        };
        self.attempted.map_or(at, |last| at.max(last + pause))
    }

    /// Whether to save now. The changes so far then count as saved, until `failed` is called.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let is_due = self.due().is_some_and(|due| due <= now);
        if is_due {
            self.changed = None;
            self.attempted = Some(now);
        }
        is_due
    }

    /// The save has succeeded.
    pub(super) fn saved(&mut self) {
        self.failures = 0;
    }

    /// The save has failed, and will be tried again.
    pub(super) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.attempted = Some(now);
        self.changed.get_or_insert(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_first_change_is_saved_within_seconds_and_more_of_them_once_a_minute() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut saves = Vec::new();
        for second in 0..300 {
            let now = start + SECOND * second;
            pace.changed(now);
            if pace.begin(now) {
                pace.saved();
                saves.push(second);
            }
        }
        assert_eq!(saves, [2, 62, 122, 182, 242]);
    }

    #[test]
    fn nothing_is_due_at_rest() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.due(), None);
        pace.changed(start);
        assert!(!pace.begin(start + SECOND));
        assert!(pace.begin(start + SECOND * 2));
        pace.saved();
        assert_eq!(pace.due(), None);
    }

    #[test]
    fn a_failure_is_tried_again_less_and_less_often() {
        let mut now = Instant::now();
        let mut pace = Pace::default();
        pace.changed(now);
        let mut waits = Vec::new();
        for _ in 0..7 {
            let due = pace.due().unwrap();
            waits.push((due - now).as_secs());
            now = due;
            assert!(pace.begin(now));
            pace.failed(now);
        }
        assert_eq!(waits, [2, 30, 60, 120, 240, 480, 600]);
        now = pace.due().unwrap();
        assert!(pace.begin(now));
        pace.saved();
        assert_eq!(pace.due(), None);
        pace.changed(now);
        assert_eq!(pace.due(), Some(now + EVERY));
    }
}
