//! Which of several sources is in charge. Preference, never a merge.
//!
//! Pure; `now` is the time since the start. Each source is idle, asked (and may be good or not), and one of those that
//! were ever good is in charge:
//!
//! | rule | |
//! |---|---|
//! | 1 | The first source is always asked; a later one when no source before it was good for [`PATIENCE`]. |
//! | 2 | A source that is good takes charge if none is in charge, if the one in charge comes later, or if that one was not good for [`PATIENCE`]; at once, if that one flaps and its own word is the cloud's present one. |
//! | 3 | A later source than the one in charge is let go once that one was good for [`REST`]. |
//! | 4 | Nobody loses charge for being bad alone: what it last said stays in force until another source is good. |
//! | 5 | A source that was lost before it had been good for [`REST`] flaps. While another one is good, it takes charge again only when it has been good for [`PATIENCE`]. |
//!
//! While one source is in charge, another one counts as good only if its word is not older.
#![forbid(unsafe_code)]

use std::time::Duration;

/// A source that is not good is waited for this long before the next one is asked.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// A source that is good again has to stay so for this long before the others are let go.
pub(super) const REST: Duration = Duration::from_secs(30);

/// The state of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Not asked.
    Idle,
    /// It has been read completely and answers, since this time.
    Good(Duration),
    /// It has been asked, and is not good since this time.
    Bad(Duration),
}

/// One source: its state, and whether that lasts.
#[derive(Clone, Copy, Debug)]
struct Source {
    standing: Standing,
    /// Rule 5: it was lost soon after it had become good.
    flaps: bool,
    /// What it says is the cloud's present word. A file's is not: it may hold two Services for an emergency.
    is_present: bool,
}

impl Source {
    const IDLE: Self = Self {
        standing: Standing::Idle,
        flaps: false,
        is_present: false,
    };

    /// How long this source may be in charge without being good before `other` takes charge.
    fn patience_with(&self, other: &Self) -> Duration {
        match self.flaps && other.is_present {
            true => Duration::ZERO,
            false => PATIENCE,
        }
    }

    /// How long it has to be good before it takes charge from another good source.
    fn probation(&self) -> Duration {
        if self.flaps { PATIENCE } else { Duration::ZERO }
    }
}

/// Which of the sources is in charge, and what decides that.
#[derive(Clone, Debug)]
pub(super) struct Charge {
    sources: Vec<Source>,
    in_charge: Option<usize>,
    /// When the rules were last applied: everything that was due by then is settled.
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
    /// No source is asked yet.
    pub(super) fn new(sources: usize) -> Self {
        Self {
            sources: vec![Source::IDLE; sources],
            in_charge: None,
            decided: None,
        }
    }

    /// The source whose word counts.
    pub(super) fn in_charge(&self) -> Option<usize> {
        self.in_charge
    }

    /// Tells the present state of a source that is asked.
    pub(super) fn report(&mut self, source: usize, is_good: bool, now: Duration) {
        if let Some(source) = self.sources.get_mut(source) {
            source.standing = match (source.standing, is_good) {
                (Standing::Good(since), true) => Standing::Good(since),
                (Standing::Good(since), false) => {
                    source.flaps = now.saturating_sub(since) < REST;
                    Standing::Bad(now)
                }
                (Standing::Bad(since), false) => Standing::Bad(since),
                (_, true) => Standing::Good(now),
                (_, false) => Standing::Bad(now),
            };
        }
    }

    /// Says whether what a source says is the cloud's present word.
    pub(super) fn set_present(&mut self, source: usize, is_present: bool) {
        if let Some(source) = self.sources.get_mut(source) {
            source.is_present = is_present;
        }
    }

    /// Applies the rules.
    pub(super) fn decide(&mut self, now: Duration) -> Vec<Act> {
        self.decided = Some(now);
        let waited = |since: Duration, patience| now.saturating_sub(since) >= patience;
        let mut acts = Vec::new();
        // Rule 1.
        for (index, source) in self.sources.iter_mut().enumerate() {
            if source.standing == Standing::Idle {
                source.standing = Standing::Bad(now);
                acts.push(Act::Start(index));
            }
            if !matches!(source.standing, Standing::Bad(since) if waited(since, PATIENCE)) {
                break;
            }
        }
        // The source that takes charge may itself give way at once, to one before it. The loop ends, because a good
        // source gives way only to earlier ones.
        while let Some(better) = self.best(now) {
            self.in_charge = Some(better);
        }
        // Rule 3.
        if let Some(index) = self.in_charge
            && let Some(Standing::Good(since)) = self.sources.get(index).map(|s| s.standing)
            && waited(since, REST)
        {
            for (index, source) in self.sources.iter_mut().enumerate().skip(index + 1) {
                if source.standing != Standing::Idle {
                    *source = Source::IDLE;
                    acts.push(Act::Stop(index));
                }
            }
        }
        acts
    }

    /// The source that takes charge by rules 2, 4 and 5; `None`: no change.
    fn best(&self, now: Duration) -> Option<usize> {
        let has_lasted = |since: Duration, wait| now.saturating_sub(since) >= wait;
        let holder = self.in_charge.and_then(|index| self.sources.get(index));
        let takes_charge = |(index, source): (usize, &Source)| {
            let Standing::Good(good_since) = source.standing else {
                return false;
            };
            let comes_earlier = self.in_charge.is_none_or(|current| index < current);
            match holder.map(|holder| (holder, holder.standing)) {
                Some((_, Standing::Good(_))) => {
                    comes_earlier && has_lasted(good_since, source.probation())
                }
                Some((holder, Standing::Bad(bad_since))) => {
                    comes_earlier || has_lasted(bad_since, holder.patience_with(source))
                }
                Some((_, Standing::Idle)) | None => true,
            }
        };
        self.sources.iter().enumerate().position(takes_charge)
    }

    /// Sources that are not asked.
    pub(super) fn idle(&self) -> impl Iterator<Item = usize> {
        let sources = self.sources.iter().enumerate();
        sources.filter_map(|(index, s)| (s.standing == Standing::Idle).then_some(index))
    }

    /// When [`Self::decide`] may decide otherwise although nothing is reported. What has become due stays due until
    /// `decide` is called, however late that is: the caller may have been busy.
    pub(super) fn decide_at(&self) -> Option<Duration> {
        let mut later = self.sources.iter().skip(1);
        let is_alone = later.all(|source| source.standing == Standing::Idle);
        let sources = self.sources.iter();
        let waits = sources.flat_map(|source| match source.standing {
            Standing::Idle => [None, None],
            Standing::Bad(since) => [Some(since + PATIENCE), None],
            Standing::Good(_) if is_alone => [None, None],
            Standing::Good(since) => [REST, source.probation()].map(|wait| Some(since + wait)),
        });
        let waits = waits.flatten();
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
    fn a_short_failure_does_not_hand_over_from_a_source_that_has_lasted() {
        let mut charge = Charge::new(3);
        charge.decide(at(0));
        charge.decide(at(10));
        charge.decide(at(20));
        charge.report(2, true, at(21));
        charge.report(1, true, at(22));
        charge.decide(at(22));
        // The last source stays asked for as long as the one in charge has to last.
        charge.report(1, false, at(52));
        charge.decide(at(52));
        charge.decide(at(61));
        assert_eq!(charge.in_charge(), Some(1));
        charge.decide(at(62));
        assert_eq!(charge.in_charge(), Some(2));
    }

    /// How many seconds a first source was in charge and not good, if it is good for `up` seconds and away for `down`
    /// seconds in turns, beside a second source that is always good.
    fn silence_beside_a_good_source(up: u64, down: u64) -> usize {
        let mut charge = Charge::new(2);
        charge.set_present(1, true);
        charge.decide(at(0));
        charge.decide(at(10));
        charge.report(1, true, at(10));
        charge.decide(at(10));
        let is_silent = |seconds: &u64| {
            let is_up = seconds % (up + down) < up;
            charge.report(0, is_up, at(10 + seconds));
            charge.decide(at(10 + seconds));
            charge.in_charge() == Some(0) && !is_up
        };
        (0..20 * (up + down)).filter(is_silent).count()
    }

    #[test]
    fn a_first_source_that_flaps_is_never_waited_for_while_a_second_one_is_good() {
        for (up, down) in [(3, 3), (3, 12), (1, 1), (9, 2), (29, 1), (1, 30)] {
            let silence = silence_beside_a_good_source(up, down);
            assert_eq!(silence, 0, "good for {up} s, away for {down} s");
        }
    }

    #[test]
    fn a_blip_never_hands_over_to_a_source_that_may_know_less_however_often_it_comes() {
        for (up, down) in [(19, 1), (9, 2), (3, 3), (1, 9)] {
            let mut charge = Charge::new(2);
            charge.decide(at(0));
            charge.decide(at(10));
            charge.report(1, true, at(10));
            charge.decide(at(10));
            // It comes back, for long enough to be believed.
            charge.report(0, true, at(20));
            charge.decide(at(20));
            for seconds in 20..20 + 20 * (up + down) {
                let is_up = (seconds - 20) % (up + down) < up;
                charge.report(0, is_up, at(seconds));
                charge.decide(at(seconds));
                assert_eq!(
                    charge.in_charge(),
                    Some(0),
                    "good for {up} s, away for {down} s"
                );
            }
        }
    }

    #[test]
    fn one_decision_is_enough_where_the_one_that_takes_charge_gives_way_to_another() {
        let mut charge = Charge::new(3);
        charge.set_present(2, true);
        for seconds in [0, 10, 20] {
            charge.decide(at(seconds));
        }
        charge.report(0, true, at(20));
        charge.decide(at(20));
        // The first source flaps: the last one, whose word is the present one, takes its place at once, and the second
        // comes before the last.
        charge.report(1, true, at(21));
        charge.report(2, true, at(21));
        charge.report(0, false, at(21));
        charge.decide(at(21));
        assert_eq!(charge.in_charge(), Some(1));
        charge.decide(at(21));
        assert_eq!(charge.in_charge(), Some(1));
    }

    #[test]
    fn a_source_that_flapped_is_believed_again_once_it_has_been_good_for_a_while() {
        let mut charge = Charge::new(2);
        charge.set_present(1, true);
        charge.decide(at(0));
        charge.decide(at(10));
        charge.report(1, true, at(11));
        charge.report(0, true, at(12));
        charge.decide(at(12));
        charge.report(0, false, at(14));
        charge.decide(at(14));
        assert_eq!(charge.in_charge(), Some(1));
        charge.report(0, true, at(20));
        charge.decide(at(20));
        assert_eq!(charge.decide_at(), Some(at(30)));
        charge.decide(at(29));
        assert_eq!(charge.in_charge(), Some(1));
        charge.decide(at(30));
        assert_eq!(charge.in_charge(), Some(0));
        // Where no other source is good, there is nothing to wait for.
        charge.report(0, false, at(31));
        charge.decide(at(50));
        charge.report(1, false, at(51));
        charge.report(0, true, at(52));
        charge.decide(at(52));
        assert_eq!(charge.in_charge(), Some(0));
    }

    proptest! {
        #[test]
        fn what_has_fallen_due_stays_due_until_it_is_decided(
            turns in vec((0..3usize, any::<bool>(), 0..40u64, any::<bool>()), 1..60),
            are_present in any::<[bool; 3]>(),
        ) {
            let mut charge = Charge::new(3);
            let mut now = Duration::ZERO;
            for (source, is_present) in are_present.into_iter().enumerate() {
                charge.set_present(source, is_present);
            }
            charge.decide(now);
            for (source, is_good, seconds, is_looked_at) in turns {
                // Nobody reports on a source that is not asked.
                if charge.sources[source].standing != Standing::Idle {
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
