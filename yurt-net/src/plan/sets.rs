//! What services serve: their slots, and the word that switches to them.
//!
//! A set that changes is copied before the old one goes, so it needs room beside it. Where there is too little, what is in force
//! keeps as many endpoints as it can: those of the old set that are still right where they are, or as many as there is a range
//! for. Its old range is free after a grace period, so a further plan does better. A full map may cost capacity, never closure.

use super::{FullMap, Op, Planner, ServedSet, ServiceImage, Unit};
use crate::model::AddressFamily;
use crate::plan::MapImage;
use crate::table::{Backends, ServiceKey};

impl Planner<'_> {
    /// A newcomer is in as a whole, or not at all.
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
        let taken = has_room.then(|| self.write_slots(unit.family, &unit.set));
        let Some(base) = taken.flatten() else {
            self.image.indices.free(index, 1);
            self.claimed.remove(&index);
            self.refuse(key, map, false, slots as usize);
            return None;
        };
        self.image.services.insert(
            index,
            ServiceImage {
                family: unit.family,
                base,
                set: None,
            },
        );
        self.publish(index, base, unit.set.clone());
        Some(index)
    }

    /// Has an existing service serve the set of `unit`, or what there is room for.
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
        let most = self.most_slots(key, unit.family, wanted, had);
        if most == wanted
            && let Some(base) = self.write_slots(unit.family, &unit.set)
        {
            self.publish(index, base, unit.set.clone());
            self.retire_slots(unit.family, old_base, had);
            return;
        }
        let (from, kept) = still_right(&old, &unit.set);
        let most = most.min(self.longest(unit.family));
        let part = part_of(&unit.set, &old, most);
        let part = part.filter(|part| part.backends.len() > kept.backends.len());
        let served = part.as_ref().unwrap_or(&kept);
        let map = FullMap::slots(unit.family);
        self.refuse(
            key,
            map,
            !served.backends.is_empty(),
            served.slots() as usize + 1,
        );
        if is_known && *served == old {
            return;
        }
        let written = part.and_then(|part| Some((self.write_slots(unit.family, &part)?, part)));
        match written {
            Some((base, part)) => {
                self.publish(index, base, part);
                self.retire_slots(unit.family, old_base, had);
            }
            None => {
                let (slots, base) = (kept.slots(), old_base + from);
                self.publish(index, if slots == 0 { 0 } else { base }, kept);
                self.retire_slots(unit.family, old_base, from);
                self.retire_slots(unit.family, base + slots, had - from - slots);
            }
        }
    }

    fn retire_slots(&mut self, family: AddressFamily, base: u32, length: u32) {
        if length > 0 {
            self.has_retired = true;
            self.image.slots(family).retire(base, length);
        }
    }

    /// The longest range that a plan may get.
    fn longest(&mut self, family: AddressFamily) -> u32 {
        if self.image.has_sealed() {
            self.grace = true;
            self.image.end_grace();
        }
        self.image.slots(family).longest().1
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

    /// Takes space; if there is none, what was retired by earlier plans becomes free by a grace period.
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

/// The longest run of `old` that is right in `new`, too, and how many slots are before it: it can be served where it is.
fn still_right(old: &ServedSet, new: &ServedSet) -> (u32, ServedSet) {
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
        return (0, ServedSet::default());
    }
    let backends = old.backends.iter().skip(best.start).take(best.len());
    let kept = ServedSet {
        backends: backends.collect(),
        terms: new.terms.clone(),
    };
    (u32::try_from(best.start).unwrap_or_default(), kept)
}

/// As much of `new` as `slots` hold, of what clients know first; `None`: no backend. Ranges are all there, or nobody is let in.
fn part_of(new: &ServedSet, old: &ServedSet, slots: u32) -> Option<ServedSet> {
    let most = (slots as usize).checked_sub(new.ranges().len())?;
    let is_known = |backend: &std::net::SocketAddr| old.backends.contains(*backend);
    let known = new.backends.iter().filter(is_known);
    let others = new.backends.iter().filter(|backend| !is_known(backend));
    let mut backends: Vec<_> = known.chain(others).take(most).collect();
    backends.sort_unstable();
    let backends: Backends = backends.into_iter().collect();
    (!backends.is_empty()).then(|| ServedSet {
        backends,
        terms: new.terms.clone(),
    })
}
