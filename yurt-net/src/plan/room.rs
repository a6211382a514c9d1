//! Room that nobody's objects take.
//!
//! **Kept free of tenants**: the last part of each map. Newcomers and growth of tenants' Services stop before it; default/kubernetes
//! and kube-system may have it, and so may, until the next grace period, the copy of a set that does not grow: so what is in force
//! can change in a map that is full.
//!
//! **Taken from those who have most**: where that does not do for default/kubernetes or kube-system, service ports of the namespace
//! that has the greatest part are taken out, as if they were deleted. That alone frees room, after a grace period; a further plan
//! gives it to those for whom it was made, before all others. Nothing is taken out that would not make room enough.

use std::collections::{BTreeMap, BTreeSet};

use super::image::LeftOut;
use super::space::Space;
use super::turns::{Needs, comes_first};
use super::unit::units;
use super::{FrontendKey, FullMap, Planner, ServedSet};
use crate::model::AddressFamily;
use crate::table::{ServiceEntry, ServiceKey};

const FAMILIES: [AddressFamily; 2] = [AddressFamily::V4, AddressFamily::V6];

/// One of so many entries is kept free of tenants.
pub(super) const KEPT_FREE: usize = 64;

/// A service port that may be taken out.
struct Candidate<'a> {
    entry: &'a ServiceEntry,
    /// By [`FullMap`].
    has: Needs,
    slots: Vec<(AddressFamily, u32, u32)>,
}

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

    /// Whether a service port may have `needs` more entries, of which it gives back as many as `leaving` in this plan.
    pub(super) fn has_room(
        &self,
        key: &ServiceKey,
        map: FullMap,
        needs: usize,
        leaving: usize,
    ) -> bool {
        let may_have_all = comes_first(key) || needs <= leaving;
        match may_have_all {
            true => needs <= self.unused(map),
            false => needs == 0 || !self.is_making_room && needs <= self.unused_by_tenants(map),
        }
    }

    /// How many slots a set that `had` some may have of those `wanted`.
    pub(super) fn most_slots(
        &self,
        key: &ServiceKey,
        family: AddressFamily,
        wanted: u32,
        had: u32,
    ) -> u32 {
        if comes_first(key) || wanted <= had {
            return wanted;
        }
        let more = match self.is_making_room {
            true => 0,
            false => self.unused_by_tenants(FullMap::slots(family)),
        };
        wanted.min(had.saturating_add(u32::try_from(more).unwrap_or(u32::MAX)))
    }

    /// Whether it is worth to try a service port again that did not fit.
    pub(super) fn may_fit(&self, key: &ServiceKey, left: &LeftOut) -> bool {
        FullMap::ALL.into_iter().any(|map| {
            let is_set = matches!(map, FullMap::Slots4 | FullMap::Slots6) && left.has_some;
            let tenants = self.unused_by_tenants(map);
            left.asked(map).is_some_and(|needs| match is_set {
                _ if comes_first(key) => needs <= self.unused(map),
                // A part of a set is copied as a whole to grow by one.
                true => tenants > 0 && needs <= self.unused(map),
                false => needs <= tenants,
            })
        })
    }

    /// Takes out service ports of tenants for those of `first` that do not fit, where that gives them room enough.
    pub(super) fn make_room<'a>(&mut self, first: impl Iterator<Item = &'a ServiceEntry>) {
        let lacking: Vec<_> = first
            .filter(|entry| self.image.left_out.contains_key(&entry.key))
            .collect();
        if lacking.is_empty() {
            return;
        }
        let candidates = self.candidates();
        let (mut promised, mut victims) = (Needs::default(), Vec::new());
        for entry in lacking {
            let mut wanted = promised;
            let needs = Needs::of(entry, self.table).0;
            for map in FullMap::ALL {
                let asked = self.image.left_out.get(&entry.key);
                let asked = asked.and_then(|left| left.asked(map));
                wanted.0[map as usize] += asked.map_or(0, |asked| match map {
                    FullMap::Frontends4 | FullMap::Frontends6 => asked,
                    // At once, in one range, beside what it has.
                    _ => needs[map as usize].max(asked),
                });
            }
            if let Some(enough) = self.enough(&candidates, &wanted) {
                (promised, victims) = (wanted, enough);
            }
        }
        self.is_making_room = !victims.is_empty();
        for at in victims {
            self.take_out(&candidates[at], &promised);
        }
    }

    /// Service ports of tenants that are in the maps, by the place of their slots.
    fn candidates(&self) -> Vec<Candidate<'t>> {
        let tenants = self.table.services.iter().filter(|entry| {
            let left = self.image.left_out.get(&entry.key);
            !comes_first(&entry.key) && left.is_none_or(|left| left.has_some)
        });
        let mut candidates: Vec<_> = tenants.filter_map(|entry| self.candidate(entry)).collect();
        let place = |one: &Candidate<'_>| one.slots.first().map(|(_, base, _)| *base);
        candidates.sort_by_key(place);
        candidates
    }

    fn candidate(&self, entry: &'t ServiceEntry) -> Option<Candidate<'t>> {
        let (mut has, mut slots) = (Needs::default(), Vec::new());
        for family in FAMILIES {
            for unit in units(entry, family, self.table).into_iter().flatten() {
                let mut rows = unit.rows.iter().map(|(row, _)| row);
                if rows.clone().any(|row| self.puts.contains_key(row)) {
                    // It has come or changed in this very plan.
                    return None;
                }
                let index = rows.clone().find_map(|row| self.image.service_of(row));
                let Some((index, service)) =
                    index.and_then(|index| Some((index, self.image.services.get(&index)?)))
                else {
                    continue;
                };
                let is_its = |row: &&FrontendKey| self.image.service_of(row) == Some(index);
                let length = service.set.as_ref().map_or(0, ServedSet::slots);
                has.0[FullMap::frontends(family) as usize] += rows.by_ref().filter(is_its).count();
                has.0[FullMap::Services as usize] += 1;
                has.0[FullMap::slots(family) as usize] += length as usize;
                if length > 0 {
                    slots.push((family, service.base, length));
                }
            }
        }
        (has.0[FullMap::Services as usize] > 0).then_some(Candidate { entry, has, slots })
    }

    /// Which candidates have to go so that `wanted` fits once this plan is written; `None`: all of them would not do.
    fn enough(&self, candidates: &[Candidate<'_>], wanted: &Needs) -> Option<Vec<usize>> {
        let capacity = self.image.capacity;
        let mut room = self.room_after_the_plan();
        let lacks = |room: &Room, map: FullMap| room.of(map) < wanted.0[map as usize];
        let is_lacking: Vec<_> = FullMap::ALL
            .into_iter()
            .filter(|map| lacks(&room, *map))
            .collect();
        let mut held: BTreeMap<&str, (Needs, Vec<usize>)> = BTreeMap::new();
        // The last is taken first: they go in the order in which their slots lie, so that these become one range.
        for (at, one) in candidates.iter().enumerate().rev() {
            let (sum, queue) = held.entry(&one.entry.key.namespace).or_default();
            sum.add(one.has);
            if is_lacking.iter().any(|map| one.has.0[*map as usize] > 0) {
                queue.push(at);
            }
        }
        let mut order: BTreeSet<_> = held
            .iter()
            .map(|(n, (sum, _))| (sum.share(&capacity), *n))
            .collect();
        let mut victims = Vec::new();
        while is_lacking.iter().any(|map| lacks(&room, *map)) {
            let (_, namespace) = order.pop_last()?;
            let (sum, queue) = held.get_mut(namespace)?;
            let Some(at) = queue.pop() else { continue };
            sum.remove(candidates[at].has);
            order.insert((sum.share(&capacity), namespace));
            room.add(&candidates[at]);
            victims.push(at);
        }
        if let [map @ (FullMap::Slots4 | FullMap::Slots6)] = *is_lacking {
            // Only those whose slots are in the range that is long enough.
            let (start, length) = room.longest[map as usize - FullMap::Slots4 as usize];
            let is_inside = |base: u32| base >= start && base < start + length;
            victims.retain(|at| {
                let mut slots = candidates[*at].slots.iter();
                slots.any(|(family, base, _)| FullMap::slots(*family) == map && is_inside(*base))
            });
        }
        Some(victims)
    }

    fn room_after_the_plan(&self) -> Room {
        let spaces = FAMILIES.map(|family| self.image.space(family).after_the_plan());
        // Where nothing is known of the rows, those are among the deleted that somebody may still ask for.
        let of = |family| {
            let deletes = self.deletes.iter().filter(|_| self.is_delta);
            deletes.filter(move |row| AddressFamily::from(row.address) == family)
        };
        Room {
            rows: FAMILIES
                .map(|family| self.unused(FullMap::frontends(family)) + of(family).count()),
            indices: self.image.indices.after_the_plan().unused(),
            longest: [0, 1].map(|family: usize| spaces[family].longest()),
            spaces,
        }
    }

    fn take_out(&mut self, candidate: &Candidate<'_>, wanted: &Needs) {
        let (entry, key) = (candidate.entry, &candidate.entry.key);
        self.image.left_out.remove(key);
        for family in FAMILIES {
            for unit in units(entry, family, self.table).into_iter().flatten() {
                self.change_unit(key, Some(unit), None);
            }
        }
        for map in FullMap::ALL {
            let has = candidate.has.0[map as usize];
            if has > 0 && wanted.0[map as usize] > 0 {
                self.refuse(key, map, false, has);
            }
        }
    }
}

/// What there will be when a plan is written and nobody reads what it took out.
struct Room {
    rows: [usize; 2],
    indices: usize,
    spaces: [Space; 2],
    /// Start and length of the longest range of each.
    longest: [(u32, u32); 2],
}

impl Room {
    /// What can be had at once.
    fn of(&self, map: FullMap) -> usize {
        match map {
            FullMap::Frontends4 => self.rows[0],
            FullMap::Frontends6 => self.rows[1],
            FullMap::Services => self.indices,
            FullMap::Slots4 => self.longest[0].1 as usize,
            FullMap::Slots6 => self.longest[1].1 as usize,
        }
    }

    fn add(&mut self, candidate: &Candidate<'_>) {
        self.rows[0] += candidate.has.0[FullMap::Frontends4 as usize];
        self.rows[1] += candidate.has.0[FullMap::Frontends6 as usize];
        self.indices += candidate.has.0[FullMap::Services as usize];
        for (family, base, length) in &candidate.slots {
            let family = *family as usize;
            let freed = self.spaces[family].free(*base, *length);
            if freed.1 > self.longest[family].1 {
                self.longest[family] = freed;
            }
        }
    }
}
