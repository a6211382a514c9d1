//! Room in the maps that is kept free, and room that is taken from tenants.
//!
//! **Kept free of tenants**: the last part of each map. New Services of tenants, and growth of theirs, stop before it.
//! default/kubernetes and kube-system may use it. So may, until the next grace period, the copy of a set that does not
//! grow: so a set can be changed even when the map is full.
//!
//! **Taken from the largest users**: if that part is not enough for default/kubernetes or kube-system, `victims`
//! decides what tenants lose. This room becomes free after a grace period, for those Services only: tenants get nothing
//! more in the same plan, and come after those Services in the next one. Sets that lie in this room move first
//! (`moving.rs`).

mod moving;

use std::collections::BTreeSet;

use super::change::Change;
use super::image::LeftOut;
use super::turns::{Needs, comes_first};
use super::unit::{Unit, units};
use super::victims::{Candidate, Placed, Room, Victims, victims};
use super::{FrontendKey, FullMap, Planner, ServedSet};
use crate::model::AddressFamily;
use crate::table::{ServiceEntry, ServiceKey};

const FAMILIES: [AddressFamily; 2] = [AddressFamily::V4, AddressFamily::V6];

/// One in this many entries is kept free of tenants.
pub(super) const KEPT_FREE: usize = 64;

impl<'t> Planner<'t> {
    fn unused(&self, map: FullMap) -> usize {
        let rows = |family| {
            let all = self.image.capacity.frontends(family);
            all.saturating_sub(self.rows_of(family))
        };
        match map {
            FullMap::Frontends4 => rows(AddressFamily::V4),
            FullMap::Frontends6 => rows(AddressFamily::V6),
            FullMap::Services => self.image.indices.unused(),
            FullMap::Slots4 => self.image.unused_slots(AddressFamily::V4),
            FullMap::Slots6 => self.image.unused_slots(AddressFamily::V6),
        }
    }

    fn unused_by_tenants(&self, map: FullMap) -> usize {
        let kept_free = self.image.capacity.by_map()[map as usize] / KEPT_FREE;
        self.unused(map).saturating_sub(kept_free)
    }

    /// What tenants may still get of each map, by [`FullMap`].
    pub(super) fn room_for_tenants(&self) -> [usize; 5] {
        FullMap::ALL.map(|map| self.unused_by_tenants(map))
    }

    /// Whether a service port may have `needs` more entries, if it gives back `leaving` of them in this plan.
    pub(super) fn has_room(
        &self,
        key: &ServiceKey,
        map: FullMap,
        needs: usize,
        leaving: usize,
    ) -> bool {
        // After a reboot there is room for all rows that there were before.
        let was_there = self.most_endpoints.is_some() && !map.is_slots();
        let may_have_all = comes_first(key) || needs <= leaving || was_there;
        match may_have_all {
            true => needs <= self.unused(map),
            false => needs == 0 || !self.is_making_room && needs <= self.unused_by_tenants(map),
        }
    }

    /// How many slots the set of a unit may have, if it `had` so many before.
    pub(super) fn most_slots(&self, key: &ServiceKey, unit: &Unit, had: u32) -> u32 {
        let wanted = unit.set.slots();
        if comes_first(key) || wanted <= had {
            return wanted;
        }
        let map = FullMap::slots(unit.family);
        let more = match self.is_making_room {
            true => 0,
            false => self.unused_by_tenants(map),
        };
        let ranges = unit.set.ranges().len();
        // A Service that is in force keeps one endpoint, before any room is kept free.
        let least = match !self.is_making_room && ranges < self.unused(map) {
            true => ranges + 1,
            false => 0,
        };
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        wanted.min(had.saturating_add(count(more)).max(count(least)))
    }

    /// The length of the longest free range of each family, without waiting for a grace period.
    pub(super) fn longest_free(&self) -> [u32; 2] {
        FAMILIES.map(|family| self.image.space(family).longest())
    }

    /// Whether to try again a service port that did not fit. If it failed for its size or place, it waits until more
    /// room is free, because it may be large. `longest`: see [`Self::longest_free`].
    pub(super) fn may_fit(&self, key: &ServiceKey, left: &LeftOut, longest: [u32; 2]) -> bool {
        let mut maps = FullMap::ALL.into_iter();
        left.is_next
            || maps.any(|map| {
                let Some(needs) = left.asked(map) else {
                    return false;
                };
                let room = match comes_first(key) || left.is_closed {
                    true => self.unused(map),
                    false => self.unused_by_tenants(map),
                };
                let longest = match map {
                    FullMap::Slots4 => longest[0],
                    FullMap::Slots6 => longest[1],
                    _ => return needs <= room,
                };
                // A set that is in the maps in part can grow by as little as one slot.
                let least = if left.has_some { 1 } else { needs };
                let has_place = || {
                    self.image.has_sealed()
                        || needs <= longest as usize
                        || left.parts.keys().any(|index| self.has_free_beside(*index))
                };
                least <= room && has_place()
            })
    }

    /// Takes from tenants what the Services of `first` and `next` lack, if that makes enough room. Only if it does not,
    /// the changes in `next` are planned. `others` are not planned yet.
    pub(super) fn make_room(
        &mut self,
        first: &[Change],
        next: &[Change],
        others: [&Vec<Change>; 3],
    ) {
        let entries = first.iter().chain(next);
        let entries = entries.filter_map(|change| change.new.as_deref());
        let lacking: Vec<_> = entries
            .filter(|entry| self.image.left_out.contains_key(&entry.key))
            .collect();
        if lacking.is_empty() {
            return;
        }
        // The image still has these as they were, while the table already says what they will be.
        let changing: BTreeSet<&ServiceKey> = match self.is_delta {
            true => {
                let changing = others.iter().flat_map(|changes| &**changes);
                let changing = changing.filter(|change| !change.is_retry());
                changing.filter_map(Change::key).collect()
            }
            false => BTreeSet::new(),
        };
        let mut left = lacking.iter().map(|entry| &self.image.left_out[&entry.key]);
        let is_again = left.any(|left| left.is_next);
        let candidates = self.candidates(&changing);
        let room = self.room_after_the_plan();
        let (mut promised, mut found, mut has_next) = (Needs::default(), Victims::default(), false);
        for entry in &lacking {
            let mut wanted = promised;
            let needs = Needs::of(entry, self.table).0;
            for map in FullMap::ALL {
                let asked = self.image.left_out.get(&entry.key);
                let asked = asked.and_then(|left| left.asked(map));
                wanted.0[map as usize] += asked.map_or(0, |asked| match map {
                    FullMap::Frontends4 | FullMap::Frontends6 => asked,
                    // A set needs its slots at once, in one range, beside those that it has.
                    _ => needs[map as usize].max(asked),
                });
            }
            match victims(&candidates, &wanted, room.clone(), &self.image.capacity) {
                Some(enough) => (promised, found) = (wanted, enough),
                None => has_next |= !changing.is_empty(),
            }
        }
        self.is_making_room = !found.is_empty();
        if !self.is_making_room {
            self.change_all(next);
        }
        let homes = self.homes(&candidates, &found, is_again);
        has_next |= homes.is_none();
        for entry in lacking {
            if let Some(left) = self.image.left_out.get_mut(&entry.key) {
                left.is_next = has_next;
            }
        }
        self.has_retired |= has_next;
        let Some(homes) = homes else { return };
        for at in &found.out {
            self.take_out(&candidates[*at], &promised);
        }
        for (at, candidate) in candidates.iter().enumerate() {
            if !found.out.contains(&at) {
                self.cut_down(candidate, &found, &homes);
            }
        }
    }

    /// Service ports of tenants that are in the maps and are not `changing`.
    fn candidates(&self, changing: &BTreeSet<&ServiceKey>) -> Vec<Candidate<'t>> {
        let tenants = self.table.services.iter().filter(|entry| {
            let left = self.image.left_out.get(&entry.key);
            let is_there = left.is_none_or(|left| left.has_some);
            !comes_first(&entry.key) && is_there && !changing.contains(&entry.key)
        });
        tenants.filter_map(|entry| self.candidate(entry)).collect()
    }

    fn candidate(&self, entry: &'t ServiceEntry) -> Option<Candidate<'t>> {
        let (mut has, mut sets) = (Needs::default(), Vec::new());
        for family in FAMILIES {
            for unit in units(entry, family, self.table).into_iter().flatten() {
                let rows = || unit.rows.iter().map(|(row, _)| row);
                if rows().any(|row| self.puts.contains_key(row)) {
                    // Another service port has taken the row over in this plan.
                    return None;
                }
                let index = match self.is_delta {
                    true => rows().find_map(|row| self.image.service_of(row)),
                    false => self.adoptable(&unit),
                };
                let Some((index, service)) =
                    index.and_then(|index| Some((index, self.image.services.get(&index)?)))
                else {
                    continue;
                };
                let is_its = |row: &&FrontendKey| self.image.service_of(row) == Some(index);
                let length = service.set.as_ref().map_or(0, ServedSet::slots);
                has.0[FullMap::frontends(family) as usize] += rows().filter(is_its).count();
                has.0[FullMap::Services as usize] += 1;
                has.0[FullMap::slots(family) as usize] += length as usize;
                let ranges = service.set.as_ref().map_or(0, |set| set.ranges().len());
                sets.push(Placed {
                    slots: service.base..service.base + length,
                    ranges: u32::try_from(ranges).unwrap_or(u32::MAX),
                    index,
                    unit,
                });
            }
        }
        let key = &entry.key;
        (!sets.is_empty()).then_some(Candidate { key, has, sets })
    }

    fn room_after_the_plan(&self) -> Room {
        // Without a delta, `deletes` also has rows that a service port may still ask for.
        let of = |family| {
            let deletes = self.deletes.iter().filter(|_| self.is_delta);
            deletes.filter(move |row| AddressFamily::from(row.address) == family)
        };
        let [rows4, rows6] =
            FAMILIES.map(|family| self.unused(FullMap::frontends(family)) + of(family).count());
        Room {
            rows: [rows4, rows6, self.image.indices.after_the_plan().unused()],
            slots: FAMILIES.map(|family| self.image.space(family).after_the_plan()),
        }
    }

    /// Takes a service port out, as if it were deleted, to make the room that is `wanted`.
    fn take_out(&mut self, candidate: &Candidate<'_>, wanted: &Needs) {
        self.image.left_out.remove(candidate.key);
        for placed in &candidate.sets {
            self.change_unit(candidate.key, Some(&placed.unit), None);
        }
        for map in FullMap::ALL {
            let has = candidate.has.0[map as usize];
            if has > 0 && wanted.0[map as usize] > 0 {
                self.refuse(candidate.key, map, false, has);
            }
        }
    }
}

#[cfg(test)]
mod tests;
