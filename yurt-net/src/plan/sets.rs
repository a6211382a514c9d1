//! The endpoint sets of services: their slots, and the word that switches to them.
//!
//! A set that changes is copied before the old one goes, so it needs room for both. If there is too little, the set in
//! force keeps as many endpoints as it can, by the better of two ways: the endpoints of the old set that are still
//! right stay in place and grow into free slots beside them, or a copy has as many endpoints as fit. The rest of the
//! old range is free after a grace period, and a later plan does better. A full map may cost capacity, never closure.
//!
//! The slots of a set are sorted, because programs search them by halves. So a part grows in place by the endpoints
//! that sort before and after it; one that sorts into its middle waits for a copy.

use std::net::SocketAddr;
use std::ops::Range;

use super::homes::length_of;
use super::{FullMap, Op, Planner, ServedSet, ServiceImage, Terms, Unit};
use crate::model::AddressFamily;
use crate::plan::MapImage;
use crate::table::{Backends, ServiceKey};

impl Planner<'_> {
    /// A set that is new is in as a whole, or not at all; one that was in the maps before a reboot may have a part.
    pub(super) fn new_service(&mut self, key: &ServiceKey, unit: &Unit) -> Option<u32> {
        let has_room = self.has_room(key, FullMap::Services, 1, 0);
        let taken = has_room.then(|| self.with_grace(|image| image.indices.take(1)));
        let Some(index) = taken.flatten() else {
            self.refuse(key, FullMap::Services, false, 1);
            return None;
        };
        if !self.is_delta {
            self.claimed.insert(index);
        }
        let (map, slots) = (FullMap::slots(unit.family), unit.set.slots());
        let has_room = self.has_room(key, map, slots as usize, 0);
        let is_cut = self
            .most_endpoints
            .is_some_and(|most| unit.set.backends.len() > most[unit.family as usize] as usize);
        let whole = (has_room && !is_cut).then(|| self.write_slots(unit.family, &unit.set));
        let whole = whole.flatten().map(|base| (base, unit.set.clone()));
        let Some((base, served)) = whole.or_else(|| self.write_part(key, unit)) else {
            self.image.indices.free(index, 1);
            self.claimed.remove(&index);
            self.refuse(key, map, false, slots as usize);
            return None;
        };
        if served != unit.set {
            self.refuse_rest(key, unit.family, index, &served, &unit.set);
            // The space that other sets leave is for the next plan.
            self.has_retired = true;
        }
        self.image.services.insert(
            index,
            ServiceImage {
                family: unit.family,
                base,
                set: None,
            },
        );
        self.publish(index, base, served);
        Some(index)
    }

    fn write_part(&mut self, key: &ServiceKey, unit: &Unit) -> Option<(u32, ServedSet)> {
        let endpoints = self.most_endpoints?[unit.family as usize];
        let most = self.most_slots(key, unit, 0);
        let ranges = u32::try_from(unit.set.ranges().len()).unwrap_or(u32::MAX);
        let most = most.min(endpoints.saturating_add(ranges));
        let most = most.min(self.longest(unit.family));
        let part = part_of(&unit.set, most, !unit.set.ranges().is_empty())?;
        Some((self.write_slots(unit.family, &part)?, part))
    }

    /// Makes an existing service serve the set of `unit`, or the part that fits.
    pub(super) fn set(&mut self, key: &ServiceKey, index: u32, unit: &Unit) {
        let Some(service) = self.image.services.get(&index) else {
            return;
        };
        let (old_base, old) = (service.base, service.set.clone());
        if old.as_ref() == Some(&unit.set) {
            return;
        }
        let is_known = old.is_some();
        let old = old.unwrap_or_default();
        if is_known && old.has_same_slots(&unit.set) {
            self.publish(index, old_base, unit.set.clone());
            return;
        }
        let (wanted, had) = (unit.set.slots(), old.slots());
        let most = self.most_slots(key, unit, had);
        if most == wanted
            && let Some(base) = self.write_slots(unit.family, &unit.set)
        {
            self.publish(index, base, unit.set.clone());
            self.retire_slots(unit.family, old_base, had);
            return;
        }
        let most_in_a_copy = most.min(self.longest(unit.family));
        let run = still_right(&old, &unit.set);
        let grown = self.grown(unit, old_base, &run, most);
        let part = self.part_of(unit, old_base, most_in_a_copy);
        let part = part.filter(|part| part.backends.len() > grown.set.backends.len());
        let served = part.as_ref().unwrap_or(&grown.set);
        if *served != unit.set {
            self.refuse_rest(key, unit.family, index, served, &unit.set);
        }
        if is_known && *served == old {
            return;
        }
        let copied = part.and_then(|part| Some((self.write_slots(unit.family, &part)?, part)));
        match copied {
            Some((base, part)) => {
                self.publish(index, base, part);
                self.retire_slots(unit.family, old_base, had);
            }
            None => self.serve_in_place(index, unit.family, grown, old_base..old_base + had),
        }
    }

    /// The set that is served in place: `run`, which is slots of the set at `old_base`, and the endpoints for which
    /// slots beside it are free.
    fn grown(&self, unit: &Unit, old_base: u32, run: &Run, most: u32) -> Grown {
        let Run { at, set } = run;
        let kept = old_base + at.start..old_base + at.end;
        let ends = set.backends.iter().next().zip(set.backends.iter().last());
        let Some((first, last)) = ends else {
            return Grown::default();
        };
        let space = self.image.space(unit.family);
        let more = most.saturating_sub(set.slots());
        let wanted = &unit.set.backends;
        // Ranges follow the last backend.
        let room = match set.ranges().is_empty() {
            true => more.min(space.free_from(kept.end)),
            false => 0,
        };
        let after = wanted.iter().filter(|one| *one > last);
        let after: Vec<_> = after.take(room as usize).collect();
        let room = space.free_before(kept.start);
        let room = (more as usize - after.len()).min(room as usize);
        let before: Vec<_> = wanted.iter().take_while(|one| *one < first).collect();
        let before = before[before.len().saturating_sub(room)..].to_vec();
        let all = before.iter().copied().chain(set.backends.iter());
        let set = ServedSet {
            backends: all.chain(after.iter().copied()).collect(),
            terms: set.terms.clone(),
        };
        Grown {
            kept,
            before,
            after,
            set,
        }
    }

    /// Switches a service to those of its slots that stay right, and to new ones beside them; gives back the rest of
    /// `old`.
    fn serve_in_place(&mut self, index: u32, family: AddressFamily, grown: Grown, old: Range<u32>) {
        let Grown {
            kept,
            before,
            after,
            set,
        } = grown;
        if set.slots() == 0 {
            self.publish(index, 0, set);
            self.retire_slots(family, old.start, old.end - old.start);
            return;
        }
        let base = kept.start - u32::try_from(before.len()).unwrap_or_default();
        for (base, new) in [(base, before), (kept.end, after)] {
            let new = ServedSet::new(new.into_iter().collect(), Terms::default());
            if new.slots() > 0 {
                self.image.slots(family).take_at(base, new.slots());
                self.slots.push(Op::WriteSlots { base, set: new });
            }
        }
        self.publish(index, base, set);
        self.retire_slots(family, old.start, kept.start - old.start);
        self.retire_slots(family, kept.end, old.end - kept.end);
    }

    /// Makes a service serve only the slots `kept` of those that it has. Ranges, if there are any, are among them.
    /// `unit`: what it asks for.
    pub(super) fn cut(&mut self, key: &ServiceKey, index: u32, unit: &Unit, kept: Range<u32>) {
        let Some(service) = self.image.services.get(&index) else {
            return;
        };
        let (family, base) = (service.family, service.base);
        let Some(old) = service.set.clone() else {
            return;
        };
        let (ranges, all) = (old.ranges().len(), base..base + old.slots());
        let backends = old.backends.iter().skip((kept.start - base) as usize);
        let set = ServedSet {
            backends: backends.take(kept.len().saturating_sub(ranges)).collect(),
            terms: old.terms,
        };
        self.refuse_rest(key, family, index, &set, &unit.set);
        let cut = Grown {
            kept,
            set,
            ..Grown::default()
        };
        self.serve_in_place(index, family, cut, all);
    }

    /// Records that a service serves only `part` of its set. The set may grow in place, or by a longer copy.
    fn refuse_rest(
        &mut self,
        key: &ServiceKey,
        family: AddressFamily,
        index: u32,
        part: &ServedSet,
        wanted: &ServedSet,
    ) {
        let has_some = !part.backends.is_empty();
        let needs = part.backends.len() + 1 + wanted.ranges().len();
        self.refuse(key, FullMap::slots(family), has_some, needs);
        let Some(left) = self.image.left_out.get_mut(key) else {
            return;
        };
        left.is_closed |= !has_some;
        let (in_force, all) = (part.backends.len(), wanted.backends.len());
        if has_some && in_force < all {
            left.parts.insert(index, (in_force, all));
        }
    }

    /// How many slots a service has.
    fn slots_of(&self, index: u32) -> u32 {
        let service = self.image.services.get(&index);
        let set = service.and_then(|service| service.set.as_ref());
        set.map_or(0, ServedSet::slots)
    }

    /// Whether slots are free beside a service that serves a part.
    pub(super) fn has_free_beside(&self, index: u32) -> bool {
        let Some(service) = self.image.services.get(&index) else {
            return false;
        };
        let (slots, space) = (self.slots_of(index), self.image.space(service.family));
        space.free_before(service.base) > 0 || space.free_from(service.base + slots) > 0
    }

    /// The part of a set for which a copy has room. It leaves out the endpoints that sort towards the old range, which
    /// is free afterwards.
    fn part_of(&self, unit: &Unit, old_base: u32, slots: u32) -> Option<ServedSet> {
        let base = self.image.space(unit.family).find(slots)?;
        let is_end = base > old_base || !unit.set.ranges().is_empty();
        part_of(&unit.set, slots, is_end)
    }

    fn retire_slots(&mut self, family: AddressFamily, base: u32, length: u32) {
        if length > 0 {
            self.has_retired = true;
            self.image.slots(family).retire(base, length);
        }
    }

    /// The longest range that a plan may get.
    fn longest(&mut self, family: AddressFamily) -> u32 {
        self.free_sealed();
        self.image.space(family).longest()
    }

    /// Frees what earlier plans retired, by a grace period.
    pub(super) fn free_sealed(&mut self) {
        if self.image.has_sealed() {
            self.grace = true;
            self.image.end_grace();
        }
    }

    /// Makes a service serve the part of its set that its new `home` holds, if that is free.
    pub(super) fn move_to(&mut self, key: &ServiceKey, index: u32, unit: &Unit, home: &Range<u32>) {
        let Some(service) = self.image.services.get(&index) else {
            return;
        };
        let (family, base) = (service.family, service.base);
        let had = self.slots_of(index);
        let is_end = !unit.set.ranges().is_empty();
        let part = part_of(&unit.set, length_of(home), is_end).unwrap_or_else(|| unit.set.clone());
        self.image.slots(family).take_at(home.start, part.slots());
        self.slots.push(Op::WriteSlots {
            base: home.start,
            set: part.clone(),
        });
        if part != unit.set {
            self.refuse_rest(key, family, index, &part, &unit.set);
        }
        self.publish(index, home.start, part);
        self.retire_slots(family, base, had);
    }

    fn write_slots(&mut self, family: AddressFamily, set: &ServedSet) -> Option<u32> {
        let slots = set.slots();
        if slots == 0 {
            return Some(0);
        }
        let base = self.with_grace(|image| image.slots(family).take(slots))?;
        self.slots.push(Op::WriteSlots {
            base,
            set: set.clone(),
        });
        Some(base)
    }

    fn publish(&mut self, index: u32, base: u32, set: ServedSet) {
        let generation = self.image.next_generation(index);
        self.publishes.push(Op::Publish {
            service: index,
            base,
            set: set.clone(),
            generation,
        });
        if let Some(service) = self.image.services.get_mut(&index) {
            service.base = base;
            service.set = Some(set);
        }
    }

    /// Takes space. If there is none, a grace period first frees what earlier plans retired.
    fn with_grace(&mut self, take: impl Fn(&mut MapImage) -> Option<u32>) -> Option<u32> {
        take(self.image).or_else(|| {
            if !self.image.has_sealed() {
                return None;
            }
            self.grace = true;
            self.image.end_grace();
            take(self.image)
        })
    }
}

/// Slots of a set that are right in another set, too.
#[derive(Default)]
struct Run {
    /// Which of the old ones, its ranges included.
    at: Range<u32>,
    /// Their contents, on the new terms.
    set: ServedSet,
}

/// A set that is served where an old one lies.
#[derive(Default)]
struct Grown {
    /// Slots of the old one.
    kept: Range<u32>,
    /// Backends for the slots before them.
    before: Vec<SocketAddr>,
    /// Backends for the slots after them.
    after: Vec<SocketAddr>,
    /// All of it.
    set: ServedSet,
}

/// The longest run of `old` that is right in `new`, too: it can be served where it is.
fn still_right(old: &ServedSet, new: &ServedSet) -> Run {
    let ranges = old.ranges();
    let (mut best, mut run) = (0..0, 0..0);
    for (at, backend) in old.backends.iter().enumerate() {
        run = match new.backends.contains(backend) {
            true => run.start..at + 1,
            false => at + 1..at + 1,
        };
        // Ranges follow the last backend.
        let is_right = ranges.is_empty() || run.end == old.backends.len();
        if is_right && run.len() > best.len() {
            best = run.clone();
        }
    }
    if best.is_empty() || ranges != new.ranges() {
        return Run::default();
    }
    let backends = old.backends.iter().skip(best.start).take(best.len());
    let set = ServedSet {
        backends: backends.collect(),
        terms: new.terms.clone(),
    };
    let start = u32::try_from(best.start).unwrap_or_default();
    Run {
        at: start..start + set.slots(),
        set,
    }
}

/// The end or the start of a set, as much as `slots` hold; `None`: no backend fits. A part has all ranges of its set,
/// because without some of them it would shut out clients.
fn part_of(set: &ServedSet, slots: u32, is_end: bool) -> Option<ServedSet> {
    let all = set.backends.len();
    let most = (slots as usize).checked_sub(set.ranges().len())?.min(all);
    let skipped = if is_end { all - most } else { 0 };
    let backends = set.backends.iter().skip(skipped).take(most);
    let backends: Backends = backends.collect();
    (!backends.is_empty()).then(|| ServedSet {
        backends,
        terms: set.terms.clone(),
    })
}
