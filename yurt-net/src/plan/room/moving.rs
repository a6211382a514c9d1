//! Sets of tenants that lie in room which is being made: they are cut down or moved.
//!
//! No client is without an endpoint meanwhile: the part of a set that moves is written before its old slots are given
//! back. If other slots have to become free first, the whole move waits for the next plan.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{FAMILIES, KEPT_FREE};
use crate::plan::homes::{Mover, Stays, homes, length_of, share};
use crate::plan::victims::{Candidate, Placed, Victims};
use crate::plan::{FullMap, Planner};
use crate::table::ServiceKey;

/// New places of sets, by the index of the set.
pub(super) type Homes = BTreeMap<u32, Range<u32>>;

impl Planner<'_> {
    /// New places for sets that keep too little outside the windows of `victims`. `None`: the next plan decides, when
    /// slots that others share with them are free. `is_again`: this is that plan.
    pub(super) fn homes(
        &mut self,
        candidates: &[Candidate<'_>],
        victims: &Victims,
        is_again: bool,
    ) -> Option<Homes> {
        let (mut found, mut has_to_wait) = (Homes::new(), false);
        for family in FAMILIES {
            let Some(window) = victims.window(family) else {
                continue;
            };
            let stay = candidates.iter().enumerate();
            let stay = stay.filter(|(at, _)| !victims.out.contains(at));
            let sets = stay.flat_map(|(_, one)| one.sets.iter().map(move |set| (one.key, set)));
            let is_ours = |set: &Placed| set.unit.family == family && !set.slots.is_empty();
            let sets: Vec<_> = sets.filter(|(_, set)| is_ours(set)).collect();
            let moving = sets.iter().filter_map(|(_, set)| mover(set, victims));
            let (indices, movers): (Vec<u32>, Vec<Mover>) = moving.unzip();
            if movers.is_empty() {
                continue;
            }
            self.free_sealed();
            let spared = self.image.capacity.by_map()[FullMap::slots(family) as usize] / KEPT_FREE;
            let spared = u32::try_from(spared).unwrap_or(u32::MAX);
            let now = homes(&movers, self.image.space(family).beside(window), spared);
            let later = self.image.space(family).after_the_plan();
            let later = homes(&movers, later.beside(window), spared);
            has_to_wait |= homeless(&movers, &later) < homeless(&movers, &now);
            let with_homes = movers.iter().zip(&later).map(|(mover, home)| Mover {
                kept: home.as_ref().map_or(mover.kept, length_of),
                ..*mover
            });
            let is_poor = |mover: &Mover| mover.kept == 0 || !is_again && mover.kept < mover.enough;
            let mut poor: Vec<Mover> = with_homes.filter(is_poor).collect();
            poor.sort_by_key(|mover| mover.kept);
            has_to_wait |= self.share(&sets, victims, &poor);
            let housed = indices.into_iter().zip(now);
            found.extend(housed.filter_map(|(index, home)| Some((index, home?))));
        }
        (!has_to_wait).then_some(found)
    }

    /// Makes sets with slots to spare share them with `poor` ones. True if a set did.
    fn share(
        &mut self,
        sets: &[(&ServiceKey, &Placed)],
        victims: &Victims,
        poor: &[Mover],
    ) -> bool {
        let kept = sets.iter().map(|(_, set)| victims.kept(set));
        let ranges = sets.iter().map(|(_, set)| set.ranges);
        let all = kept.zip(ranges);
        let mut staying: Vec<_> = all.map(|(slots, ranges)| Stays { slots, ranges }).collect();
        if !share(&mut staying, poor) {
            return false;
        }
        for ((key, set), stays) in sets.iter().zip(staying) {
            if stays.slots != victims.kept(set) {
                self.cut(key, set.index, &set.unit, stays.slots);
            }
        }
        true
    }

    /// Cuts the sets of a service port down to what is not in the way, or moves them.
    pub(super) fn cut_down(&mut self, candidate: &Candidate<'_>, victims: &Victims, homes: &Homes) {
        let mut is_cut = false;
        for placed in &candidate.sets {
            let kept = victims.kept(placed);
            if kept == placed.slots {
                continue;
            }
            is_cut = true;
            if let Some(home) = homes.get(&placed.index) {
                self.move_to(candidate.key, placed.index, &placed.unit, home);
            } else if kept.is_empty() {
                let (map, slots) = (FullMap::slots(placed.unit.family), placed.unit.set.slots());
                self.change_unit(candidate.key, Some(&placed.unit), None);
                self.refuse(candidate.key, map, false, slots as usize);
            } else {
                self.cut(candidate.key, placed.index, &placed.unit, kept);
            }
        }
        if is_cut && let Some(left) = self.image.left_out.get_mut(candidate.key) {
            let mut indices = candidate.sets.iter().map(|placed| placed.index);
            left.has_some = indices.any(|index| self.image.services.contains_key(&index));
        }
    }
}

/// A set that should move, with its index; `None`: it keeps enough where it is.
fn mover(set: &Placed, victims: &Victims) -> Option<(u32, Mover)> {
    let kept = victims.kept(set);
    let mover = Mover {
        slots: length_of(&set.slots),
        kept: length_of(&kept),
        least: set.least(),
        enough: victims.enough(set),
    };
    (kept != set.slots && mover.kept < mover.enough).then_some((set.index, mover))
}

fn homeless(movers: &[Mover], homes: &[Option<Range<u32>>]) -> usize {
    let both = movers.iter().zip(homes);
    both.filter(|(mover, home)| mover.kept == 0 && home.is_none())
        .count()
}
