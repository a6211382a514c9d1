//! Where sets go whose slots are taken from tenants.
//!
//! Pure. In: sets that have to move, and the free slots beside that range. Out: a home for each of them, which holds at
//! least one endpoint and all source ranges of its set. No set is without a home while slots are free for it, in
//! whatever gaps: each gets the least that it needs, and an even share of the rest.
//!
//! Where too few slots are free, the largest of the sets that stay **share** theirs: a set gives up at most half of
//! what it has to one that has to move.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::ops::Range;

/// A set that has to move, or should.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mover {
    /// Slots that it has.
    pub(super) slots: u32,
    /// How many of them it may keep where they are.
    pub(super) kept: u32,
    /// The fewest slots that are of use to it: for one endpoint and all its source ranges.
    pub(super) least: u32,
    /// With fewer slots it has less than half of what others have.
    pub(super) enough: u32,
}

/// Slots of a set that stays.
#[derive(Clone, Debug)]
pub(super) struct Stays {
    /// Which it keeps.
    pub(super) slots: Range<u32>,
    /// How many of them, at their end, are source ranges.
    pub(super) ranges: u32,
}

impl Stays {
    fn endpoints(&self) -> u32 {
        length_of(&self.slots).saturating_sub(self.ranges)
    }

    /// Gives slots away; source ranges follow the last endpoint, so a set with ranges gives its first ones.
    fn give(&mut self, slots: u32) {
        match self.ranges {
            0 => self.slots.end -= slots,
            _ => self.slots.start += slots,
        }
    }
}

pub(super) fn length_of(slots: &Range<u32>) -> u32 {
    slots.end - slots.start
}

/// The home of each mover; `None`: no free extent (start and length) holds more of it than it keeps. As long as all of
/// them have their least, `spared` slots stay free.
pub(super) fn homes(
    movers: &[Mover],
    free: impl Iterator<Item = (u32, u32)>,
    spared: u32,
) -> Vec<Option<Range<u32>>> {
    let mut free: BTreeSet<(u32, u32)> = free.map(|(base, length)| (length, base)).collect();
    let due = |mover: &Mover| if mover.kept > 0 { 0 } else { mover.least };
    let all: u32 = free.iter().map(|(length, _)| *length).sum();
    let least: u32 = movers.iter().map(due).sum();
    let mut rest = all.saturating_sub(spared).saturating_sub(least);
    // Ranges need slots side by side, so they choose first; then the smallest, so that what they leave is for others.
    let mut order: Vec<usize> = (0..movers.len()).collect();
    order.sort_by_key(|at| {
        let Mover {
            slots, kept, least, ..
        } = movers[*at];
        (kept > 0, Reverse(least), slots)
    });
    let mut homes = vec![None; movers.len()];
    for (at, waiting) in order.into_iter().zip((1..=movers.len()).rev()) {
        let Mover {
            slots, kept, least, ..
        } = movers[at];
        let due = due(&movers[at]);
        let share = rest / u32::try_from(waiting).unwrap_or(u32::MAX);
        let wanted = due + share.min(slots.saturating_sub(due));
        // The shortest extent that is long enough, else the longest.
        let found = free.range((wanted, 0)..).next().or(free.last());
        let Some(&(length, base)) = found else { break };
        let taken = wanted.min(length);
        if taken < least || taken <= kept {
            continue;
        }
        free.remove(&(length, base));
        rest -= taken - due;
        if length > taken {
            free.insert((length - taken, base + taken));
        }
        homes[at] = Some(base..base + taken);
    }
    homes
}

/// Has the largest of the sets that stay give up slots: for movers that would be without a home as many as possible,
/// for others only what leaves enough to both. True if one did.
pub(super) fn share(staying: &mut [Stays], poor: &[Mover]) -> bool {
    let sizes = staying.iter().map(Stays::endpoints).zip(0..);
    let mut largest: BinaryHeap<(u32, usize)> = sizes.collect();
    let mut has_given = false;
    for Mover {
        slots,
        kept,
        least,
        enough,
    } in poor
    {
        let Some((endpoints, at)) = largest.pop() else {
            break;
        };
        let half = (endpoints / 2).min(*slots);
        let given = match half >= *enough {
            true => half,
            false if *kept > 0 => 0,
            false => half.max(*least),
        };
        if 0 < given && given < endpoints {
            staying[at].give(given);
            has_given = true;
        }
        largest.push((staying[at].endpoints(), at));
    }
    has_given
}

/// How many endpoints each of some sets may have, so that all of them have as many as fit into `room`: at least one.
/// In: how many each asks for.
pub(super) fn level(mut sets: Vec<u32>, room: u32) -> u32 {
    sets.sort_unstable();
    let mut room = room;
    for (waiting, wanted) in (1..=sets.len()).rev().zip(sets) {
        let even = room / u32::try_from(waiting).unwrap_or(u32::MAX);
        if wanted > even {
            return even.max(1);
        }
        room -= wanted;
    }
    u32::MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// It keeps nothing where it is.
    fn mover(slots: u32, least: u32) -> Mover {
        Mover {
            slots,
            kept: 0,
            least,
            enough: slots,
        }
    }

    #[test]
    fn who_has_to_move_shares_what_is_free_evenly_and_a_small_set_moves_whole() {
        let movers = [60, 2, 61].map(|slots| mover(slots, 1));
        let free = [(100, 40), (300, 3)].into_iter();
        let homes = homes(&movers, free, 4);
        let lengths: Vec<u32> = homes.iter().flatten().map(length_of).collect();
        assert_eq!(lengths, [18, 2, 19]);
    }

    #[test]
    fn a_set_with_source_ranges_moves_with_all_of_them_or_not_at_all() {
        let movers = [mover(9, 4), mover(9, 1)];
        let single = (0..8).map(|at| (at * 10, 1));
        let found = homes(&movers, single, 0);
        assert_eq!((found[0].is_some(), found[1].is_some()), (false, true));
        let mut staying = [Stays {
            slots: 0..30,
            ranges: 2,
        }];
        assert!(share(&mut staying, &movers[..1]));
        assert_eq!(
            staying[0].slots,
            9..30,
            "it keeps its end, where its ranges are"
        );
    }

    #[test]
    fn nobody_gives_his_last_endpoint() {
        let movers = [mover(5, 1); 3];
        let mut staying = [
            Stays {
                slots: 0..2,
                ranges: 0,
            },
            Stays {
                slots: 7..8,
                ranges: 0,
            },
        ];
        assert!(share(&mut staying, &movers));
        assert_eq!(staying.map(|one| one.slots), [0..1, 7..8]);
    }

    #[test]
    fn who_keeps_little_gets_more_where_that_leaves_enough_to_the_largest() {
        let poor = Mover {
            slots: 60,
            kept: 4,
            least: 1,
            enough: 24,
        };
        let of = |length| {
            [Stays {
                slots: 0..length,
                ranges: 0,
            }]
        };
        assert!(!share(&mut of(47), &[poor]));
        let mut staying = of(66);
        assert!(share(&mut staying, &[poor]));
        assert_eq!(staying[0].slots, 0..33);
        // It moves only for more than it keeps.
        let homes_of = |length| homes(&[poor], [(0, length)].into_iter(), 0);
        assert_eq!(homes_of(4), [None]);
        assert_eq!(homes_of(5), [Some(0..5)]);
    }

    #[test]
    fn all_have_as_many_as_there_is_room_for_and_at_least_one() {
        assert_eq!(level(vec![5, 3, 2], 10), u32::MAX);
        assert_eq!(level(vec![60, 2, 61], 40), 19);
        assert_eq!(level(vec![3; 9], 4), 1);
        assert_eq!(level(Vec::new(), 0), u32::MAX);
    }

    proptest! {
        #[test]
        fn no_set_without_ranges_is_homeless_while_a_slot_is_free(
            sizes in proptest::collection::vec(1..40u32, 1..12),
            gaps in proptest::collection::vec(1..20u32, 0..12),
            spared in 0..20u32,
        ) {
            let movers: Vec<_> = sizes.iter().map(|slots| mover(*slots, 1)).collect();
            let free: Vec<(u32, u32)> = (0..).map(|at| at * 100).zip(gaps).collect();
            let all: u32 = free.iter().map(|(_, length)| *length).sum();
            let homes = homes(&movers, free.iter().copied(), spared);
            let housed = homes.iter().flatten().count();
            prop_assert_eq!(housed, movers.len().min(all as usize));
            let mut taken: Vec<_> = homes.into_iter().flatten().collect();
            taken.sort_by_key(|home| home.start);
            prop_assert!(taken.windows(2).all(|two| two[0].end <= two[1].start));
            let is_free = |home: &Range<u32>| {
                let mut free = free.iter();
                free.any(|(base, length)| *base <= home.start && home.end <= base + length)
            };
            prop_assert!(taken.iter().all(|home| !home.is_empty() && is_free(home)));
        }
    }
}
