//! Which of several sources is in charge. Preference, never a merge.
//!
//! Pure; `now` is the time since the start. Each source is idle, asked (and may be good or not), and one of those that
//! were ever good is in charge:
//!
//! | rule | |
//! |---|---|
//! | 1 | The first source is always asked; a later one when no source before it was good for [`PATIENCE`]. |
//! | 2 | A source that is good takes charge if none is in charge, if the one in charge comes later, or if that one was not good for [`PATIENCE`]. |
//! | 3 | A later source than the one in charge is let go once that one was good for [`REST`]. |
//! | 4 | Nobody loses charge for being bad alone: what it last said stays in force until another source is good. |
//!
//! While one is in charge, another counts as good only if what it says is not older.
#![forbid(unsafe_code)]

use std::time::Duration;

/// A source that is not good is waited for this long before the next one is asked.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// A source that is good again has to stay so for this long before the others are let go.
pub(super) const REST: Duration = Duration::from_secs(30);

/// How one source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Not asked.
    Idle,
    /// All of it is read, and it still answers, since then.
    Good(Duration),
    /// Asked, and not good since then.
    Bad(Duration),
}

/// The standing of each source, and which of them is in charge.
#[derive(Clone, Debug)]
pub(super) struct Charge {
    sources: Vec<Standing>,
    in_charge: Option<usize>,
    /// When the rules were applied last: what fell due until then is settled.
    decided: Option<Duration>,
}

/// What to do about a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Ask it.
    Start(usize),
    /// Let it go.
    Stop(usize),
}

impl Charge {
    /// None is asked yet.
    pub(super) fn new(sources: usize) -> Self {
        Self {
            sources: vec![Standing::Idle; sources],
            in_charge: None,
            decided: None,
        }
    }

    /// The source whose word counts.
    pub(super) fn in_charge(&self) -> Option<usize> {
        self.in_charge
    }

    /// Says how a source that is asked is now.
    pub(super) fn report(&mut self, source: usize, is_good: bool, now: Duration) {
        if let Some(standing) = self.sources.get_mut(source) {
            *standing = match (*standing, is_good) {
                (Standing::Good(since), true) => Standing::Good(since),
                (Standing::Bad(since), false) => Standing::Bad(since),
                (_, true) => Standing::Good(now),
                (_, false) => Standing::Bad(now),
            };
        }
    }

    /// Applies the rules.
    pub(super) fn decide(&mut self, now: Duration) -> Vec<Act> {
        self.decided = Some(now);
        let waited = |since: Duration| now.saturating_sub(since) >= PATIENCE;
        let mut acts = Vec::new();
        // Rule 1.
        for (index, standing) in self.sources.iter_mut().enumerate() {
            if *standing == Standing::Idle {
                *standing = Standing::Bad(now);
                acts.push(Act::Start(index));
            }
            if !matches!(standing, Standing::Bad(since) if waited(*since)) {
                break;
            }
        }
        // Rules 2 and 4.
        let is_good = |standing: &Standing| matches!(standing, Standing::Good(_));
        let best = self.sources.iter().position(is_good);
        self.in_charge = match (self.in_charge, best) {
            (Some(current), Some(best)) if best > current => match self.sources.get(current) {
                Some(Standing::Bad(since)) if !waited(*since) => Some(current),
                _ => Some(best),
            },
            (current, best) => best.or(current),
        };
        // Rule 3.
        if let Some(Some(Standing::Good(since))) = self.in_charge.map(|i| self.sources.get(i))
            && now.saturating_sub(*since) >= REST
        {
            let after = self.in_charge.map_or(0, |i| i + 1);
            for (index, standing) in self.sources.iter_mut().enumerate().skip(after) {
                if *standing != Standing::Idle {
                    *standing = Standing::Idle;
                    acts.push(Act::Stop(index));
                }
            }
        }
        acts
    }

    /// Sources that are not asked.
    pub(super) fn idle(&self) -> impl Iterator<Item = usize> {
        let sources = self.sources.iter().enumerate();
        sources.filter_map(|(index, standing)| (*standing == Standing::Idle).then_some(index))
    }

    /// When [`Self::decide`] may come to something else although nothing is reported. What has fallen due since it was called
    /// last stays due, however late anybody looks: a deadline is a state, and whoever waits for it may have been busy.
    pub(super) fn decide_at(&self) -> Option<Duration> {
        let is_alone = self.sources.iter().skip(1).all(|s| *s == Standing::Idle);
        let waits = self.sources.iter().filter_map(|standing| match standing {
            Standing::Idle => None,
            Standing::Bad(since) => Some(*since + PATIENCE),
            Standing::Good(since) => (!is_alone).then(|| *since + REST),
        });
        waits.filter(|at| Some(*at) > self.decided).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_source_that_is_good_takes_charge_and_the_others_are_not_asked() {
        let mut charge = Charge::new(3);
        assert_eq!(charge.decide(at(0)), [Act::Start(0)]);
        assert_eq!(charge.in_charge(), None);
        charge.report(0, true, at(1));
        assert_eq!(charge.decide(at(1)), []);
        assert_eq!(charge.in_charge(), Some(0));
        assert_eq!(charge.decide(at(1000)), []);
        assert_eq!(charge.decide_at(), None);
    }

    #[test]
    fn the_next_source_is_asked_after_a_while_and_gives_way_at_once() {
        let mut charge = Charge::new(2);
        charge.decide(at(0));
        charge.report(0, false, at(1));
        assert_eq!(charge.decide_at(), Some(PATIENCE));
        assert_eq!(charge.decide(at(9)), []);
        assert_eq!(charge.decide(at(10)), [Act::Start(1)]);
        charge.report(1, true, at(12));
        charge.decide(at(12));
        assert_eq!(charge.in_charge(), Some(1));
        charge.report(0, true, at(20));
        assert_eq!(charge.decide(at(20)), []);
        assert_eq!(charge.in_charge(), Some(0));
        assert_eq!(charge.decide(at(49)), []);
        assert_eq!(charge.decide(at(50)), [Act::Stop(1)]);
    }

    #[test]
    fn a_source_that_stays_away_is_not_decided_about_again_and_again() {
        for sources in [1, 2] {
            let mut charge = Charge::new(sources);
            charge.decide(at(0));
            charge.decide(at(10));
            charge.decide(at(20));
            assert_eq!(charge.decide_at(), None, "{sources} sources");
        }
    }

    #[test]
    fn a_source_in_charge_may_fail_for_a_while() {
        let mut charge = Charge::new(2);
        charge.decide(at(0));
        charge.report(0, true, at(1));
        charge.decide(at(1));
        charge.report(0, false, at(100));
        assert_eq!(charge.decide(at(105)), []);
        assert_eq!(charge.decide(at(110)), [Act::Start(1)]);
        // Nobody is good: what was said last stays.
        assert_eq!(charge.in_charge(), Some(0));
        charge.report(1, true, at(111));
        charge.decide(at(111));
        assert_eq!(charge.in_charge(), Some(1));
        charge.report(1, false, at(112));
        charge.decide(at(200));
        assert_eq!(charge.in_charge(), Some(1));
    }

    #[test]
    fn a_short_failure_does_not_hand_over_to_a_source_that_is_still_asked() {
        let mut charge = Charge::new(2);
        charge.decide(at(0));
        charge.decide(at(10));
        charge.report(1, true, at(11));
        charge.report(0, true, at(12));
        charge.decide(at(12));
        charge.report(0, false, at(13));
        charge.decide(at(14));
        assert_eq!(charge.in_charge(), Some(0));
        charge.decide(at(23));
        assert_eq!(charge.in_charge(), Some(1));
    }

    proptest! {
        #[test]
        fn what_has_fallen_due_stays_due_until_it_is_decided(
            turns in vec((0..3usize, any::<bool>(), 0..40u64, any::<bool>()), 1..60),
        ) {
            let mut charge = Charge::new(3);
            let mut now = Duration::ZERO;
            charge.decide(now);
            for (source, is_good, seconds, is_looked_at) in turns {
                // Nobody reports on a source that is not asked.
                if charge.sources[source] != Standing::Idle {
                    charge.report(source, is_good, now);
                    charge.decide(now);
                }
                now += at(seconds);
                let mut prompt = charge.clone();
                let acts = prompt.decide(now);
                if !acts.is_empty() || prompt.in_charge != charge.in_charge {
                    let due = charge.decide_at();
                    prop_assert!(due.is_some_and(|due| due <= now), "{charge:?} at {now:?}");
                }
                if is_looked_at {
                    charge.decide(now);
                }
            }
        }
    }
}
