//! From the table that should be in the kernel and the maps as they are, to the writes between them.
//!
//! Pure. In: `ServiceTable`, `MapImage`. Out: `Plan`, an ordered list of writes, and the image as it is after them.
//!
//! Every prefix of a plan is safe: whatever was written when the agent was killed, a lookup finds a valid backend of
//! the old set or of the new one, or is refused, and planning again from there converges. The order that gives this:
//!
//! 1. slots, into ranges that no reader can see,
//! 2. publish words, each one atomic store,
//! 3. the filter, grown by the addresses of new frontends,
//! 4. new and moved frontends, first those that others send clients outside to,
//! 5. prefixes, 6. frontends that are gone,
//! 7. the filter without their addresses.
//!
//! What a reader may still hold (an old range, the index of a deleted service) is *retired*: it is used again only
//! after a [`Op::Grace`]. Space is counted before anything is written; what does not fit is left out whole, and what is
//! in force keeps as many endpoints as it can (`sets.rs`). Who gets the room of a full map is said in `turns.rs`,
//! `room`, `victims` and `homes`.

mod change;
mod filter;
mod homes;
mod image;
mod op;
#[cfg(test)]
mod proptests;
mod room;
mod sets;
mod space;
#[cfg(test)]
mod tests;
mod turns;
mod unit;
mod victims;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use change::{Change, all_new, changes};
pub use filter::Filter;
use homes::level;
pub use image::{Capacity, InForce, MapImage, Observed, ServiceImage};
pub use op::{
    FrontendKey, FrontendRow, FullMap, KeyPort, Op, Outside, Plan, Refused, ServedSet, Terms,
};
use turns::{Needs, comes_first, in_turns};
pub use unit::{SELF_TEST_V4, SELF_TEST_V6};
use unit::{Unit, known_addresses, units};

use crate::model::AddressFamily;
use crate::table::{ClusterPrefixes, ServiceEntry, ServiceKey, ServiceTable};

/// Plans the writes that turn `image` into `table`, and leaves `image` as it is after them.
///
/// If applying fails part way, `image` is wrong: observe again.
pub fn plan(table: &ServiceTable, image: &mut MapImage) -> Plan {
    let mut planner = Planner {
        is_delta: image.table.is_some()
            && image.prefixes == table.cluster_prefixes
            && image.on_node == table.on_node
            && image.serves_packets == table.serves_packets,
        table,
        image,
        grace: false,
        slots: Vec::new(),
        publishes: Vec::new(),
        puts: BTreeMap::new(),
        new_rows: [0; 2],
        deletes: BTreeSet::new(),
        claimed: BTreeSet::new(),
        rows_by_index: BTreeMap::new(),
        has_retired: false,
        is_making_room: false,
        most_endpoints: None,
    };
    planner.run()
}

struct Planner<'a> {
    /// The image was planned from `image.table`: what has the same `Arc` there is not looked at.
    is_delta: bool,
    table: &'a ServiceTable,
    image: &'a mut MapImage,
    grace: bool,
    slots: Vec<Op>,
    publishes: Vec<Op>,
    puts: BTreeMap<FrontendKey, FrontendRow>,
    /// Rows of `puts` that are not in the image yet, by family: they count towards the peak.
    new_rows: [usize; 2],
    deletes: BTreeSet<FrontendKey>,
    /// Service indices that a unit of this plan holds. Like the next field, it is only kept when not `is_delta`.
    claimed: BTreeSet<u32>,
    rows_by_index: BTreeMap<u32, Vec<FrontendKey>>,
    has_retired: bool,
    /// Tenants have lost room to Services that come first; no other Service gets it.
    is_making_room: bool,
    /// Newcomers were in the maps before a reboot, and may have a part of their set: this many endpoints, by family.
    most_endpoints: Option<[u32; 2]>,
}

impl Planner<'_> {
    fn run(&mut self) -> Plan {
        let desired = &*self.table.services;
        let old_prefixes = self.image.prefixes.clone();
        let mut table = self.image.table.take().unwrap_or_default();
        let changes = if self.is_delta {
            changes(&table, desired)
        } else {
            self.image.left_out.clear();
            self.image.on_node.clone_from(&self.table.on_node);
            self.image.serves_packets = self.table.serves_packets;
            all_new(desired)
        };
        let is_same_length = self.is_delta && changes.iter().all(Change::is_replacement);
        if is_same_length {
            // A table is long and a change short: cloning the unchanged entries would be most of the work.
            for Change { at, new, .. } in &changes {
                if let Some(new) = new {
                    table[*at] = new.clone();
                }
            }
        } else {
            table.clear();
            table.extend_from_slice(desired);
        }
        if !self.is_delta {
            // No table tells which rows are still wanted: all are deleted, unless a unit below asks for them.
            self.deletes = self.image.frontends.keys().copied().collect();
            self.image.addresses.clear();
            for key in self.image.frontends.keys() {
                if let Some(index) = self.image.service_of(key) {
                    self.rows_by_index.entry(index).or_default().push(*key);
                }
            }
        }
        let retries = self.retries(desired, &changes);
        let changes = changes.into_iter().chain(retries);
        let (gone, changes): (Vec<_>, Vec<_>) = changes.partition(|change| change.new.is_none());
        // Service ports that are in the maps keep their place before new ones take any: a full map keeps what it has.
        let (present, absent): (Vec<_>, Vec<_>) = changes
            .into_iter()
            .partition(|change| self.is_in_place(change));
        let remembered = std::mem::take(&mut self.image.remembered);
        let has_place = |entry: &ServiceEntry| !self.is_left_out(&entry.key);
        let (capacity, room) = (self.image.capacity, self.room_for_tenants());
        let (were, absent): (Vec<_>, Vec<_>) = absent
            .into_iter()
            .partition(|change| change.key().is_some_and(|key| remembered.contains(key)));
        let were = in_turns(were, self.table, room, &capacity, has_place);
        let absent = in_turns(absent, self.table, room, &capacity, has_place);
        let is_first = |change: &Change| change.key().is_some_and(comes_first);
        let split = |changes: Vec<Change>| changes.into_iter().partition::<Vec<_>, _>(is_first);
        let [
            (mut first, mut present),
            (first_were, were),
            (first_absent, absent),
        ] = [present, were, absent].map(split);
        first.extend(first_were);
        first.extend(first_absent);
        // Room is being made for these: they would take what others are to move to.
        let (next, first) = first
            .into_iter()
            .partition::<Vec<_>, _>(|change| self.is_next(change));
        self.change_all(&gone);
        self.change_all(&first);
        self.make_room(&first, &next, [&present, &were, &absent]);
        if self.is_making_room {
            // No tenant gets more in this plan, and a set that was cut must not be planned as if it were whole.
            present.retain(|change| !change.is_retry());
        }
        self.change_all(&present);
        self.change_remembered(&were);
        self.change_all(&absent);
        let plan = self.finish(&old_prefixes);
        self.image.table = Some(table);
        plan
    }

    fn change_all(&mut self, changes: &[Change]) {
        for Change { old, new, .. } in changes {
            self.change(old.as_deref(), new.as_deref());
        }
    }

    /// Service ports that were in the maps before a reboot emptied them. Where not all of them fit, each has as many
    /// endpoints as there is room for, and none is without any.
    fn change_remembered(&mut self, were: &[Change]) {
        let (mut all, room) = (Needs::default(), self.room_for_tenants());
        for entry in were.iter().filter_map(|change| change.new.as_deref()) {
            all.add(Needs::of(entry, self.table));
        }
        if all.fit_into(room) {
            return self.change_all(were);
        }
        let units_of = |entry: &Arc<ServiceEntry>, family| units(entry, family, self.table);
        self.most_endpoints = Some([AddressFamily::V4, AddressFamily::V6].map(|family| {
            let entries = were.iter().filter_map(|change| change.new.as_ref());
            let sets = entries.flat_map(|entry| units_of(entry, family).into_iter().flatten());
            let (mut endpoints, mut ranges) = (Vec::new(), 0);
            for unit in sets {
                let all = unit.set.slots();
                let of_ranges = u32::try_from(unit.set.ranges().len()).unwrap_or(all);
                ranges += of_ranges;
                endpoints.push(all - of_ranges);
            }
            let room = u32::try_from(room[FullMap::slots(family) as usize]).unwrap_or(u32::MAX);
            level(endpoints, room.saturating_sub(ranges))
        }));
        self.change_all(were);
        self.most_endpoints = None;
    }

    /// Unchanged service ports that did not fit, and may fit now. Others are not tried again: with each change of
    /// another Service, trying one that asks for a thousand rows would cost more than the change itself. Who
    /// has the shortest part comes first.
    fn retries(&self, desired: &[Arc<ServiceEntry>], changes: &[Change]) -> Vec<Change> {
        let changed: BTreeSet<_> = changes.iter().filter_map(Change::key).collect();
        if self.image.left_out.is_empty() {
            return Vec::new();
        }
        let (left_out, longest) = (self.image.left_out.iter(), self.longest_free());
        let may_fit = left_out.filter(|(key, left)| self.may_fit(key, left, longest));
        let same = may_fit.filter(|(key, _)| !changed.contains(key));
        let mut same: Vec<_> = same.collect();
        same.sort_by_key(|(_, left)| left.parts.values().min().copied());
        let retry = same.into_iter().filter_map(|(key, _)| {
            let at = desired.binary_search_by(|entry| entry.key.cmp(key)).ok()?;
            Some(Change {
                at,
                old: Some(desired[at].clone()),
                new: Some(desired[at].clone()),
            })
        });
        retry.collect()
    }

    /// Whether it changes a service port that is in the maps: those come before the others.
    fn is_in_place(&self, change: &Change) -> bool {
        match (&change.old, &change.new) {
            (Some(old), _) => !self.is_left_out(&old.key),
            (None, Some(new)) => self.is_present(new),
            (None, None) => false,
        }
    }

    /// Whether the last plan had no room for any part of a service port.
    fn is_left_out(&self, key: &ServiceKey) -> bool {
        let left = self.image.left_out.get(key);
        left.is_some_and(|left| !left.has_some)
    }

    /// Whether it is tried again because room is being made for it.
    fn is_next(&self, change: &Change) -> bool {
        let left = change.key().and_then(|key| self.image.left_out.get(key));
        change.is_retry() && left.is_some_and(|left| left.is_next)
    }

    fn finish(&mut self, old_prefixes: &ClusterPrefixes) -> Plan {
        let mut ops = Vec::with_capacity(
            2 + self.slots.len() + self.publishes.len() + self.puts.len() + self.deletes.len(),
        );
        let is_new_prefixes = *old_prefixes != self.table.cluster_prefixes;
        if self.grace || (is_new_prefixes && !self.image.is_prefix_buffer_free) {
            ops.push(Op::Grace);
            self.image.end_grace();
        }
        ops.append(&mut self.slots);
        ops.append(&mut self.publishes);
        self.grow_filter(&mut ops);
        let puts = std::mem::take(&mut self.puts);
        // Those that internal rows send clients outside to are there before these say so; below they go after them.
        for is_external in [true, false] {
            for (key, row) in puts
                .iter()
                .filter(|(key, _)| key.is_external() == is_external)
            {
                ops.push(Op::PutFrontend(*key, *row));
            }
        }
        self.image.insert_rows(puts);
        if is_new_prefixes {
            // After the rows of new ClusterIPs, before those of old ones go.
            self.image.prefixes = self.table.cluster_prefixes.clone();
            self.image.is_prefix_buffer_free = false;
            ops.push(Op::SetPrefixes(self.image.prefixes.clone()));
        }
        let has_deleted = !self.deletes.is_empty();
        let may_shrink = !self.is_delta || has_deleted;
        for key in std::mem::take(&mut self.deletes) {
            self.image.remove_row(&key);
            ops.push(Op::DeleteFrontend(key));
        }
        if may_shrink {
            // Addresses share bits: only the whole set of remaining addresses tells which bits are needed.
            let mut left = Filter::default();
            let addresses = self.image.frontends.keys().map(|key| key.address);
            addresses.for_each(|address| left.insert(address));
            self.set_filter(left, &mut ops);
        }
        if !self.is_delta {
            self.has_retired |= self.image.retire_unclaimed(&self.claimed);
            self.image.close_gaps();
        }
        self.image.seal_retired();
        let left_out = self.image.left_out.iter();
        Plan {
            ops,
            refused: left_out.filter_map(|(key, left)| left.told(key)).collect(),
            has_freed: self.has_retired || has_deleted,
        }
    }

    /// Lets addresses through before their rows are written: a reader in between finds no row and passes, as before.
    fn grow_filter(&mut self, ops: &mut Vec<Op>) {
        if self.is_delta && self.puts.is_empty() {
            return;
        }
        let mut grown = self.image.filter.clone();
        let new = self.puts.keys();
        let present = self.image.frontends.keys().filter(|_| !self.is_delta);
        let addresses = new.chain(present).map(|key| key.address);
        addresses.for_each(|address| grown.insert(address));
        self.set_filter(grown, ops);
    }

    fn set_filter(&mut self, filter: Filter, ops: &mut Vec<Op>) {
        let changes = self.image.filter.changes(&filter);
        ops.extend(
            changes
                .into_iter()
                .map(|(word, bits)| Op::SetFilter { word, bits }),
        );
        self.image.filter = filter;
    }

    fn change(&mut self, old: Option<&ServiceEntry>, new: Option<&ServiceEntry>) {
        let Some(key) = old.or(new).map(|entry| &entry.key) else {
            return;
        };
        self.image.left_out.remove(key);
        let mut has_some = false;
        for family in [AddressFamily::V4, AddressFamily::V6] {
            let units_of =
                |entry: Option<&ServiceEntry>| entry.map(|entry| units(entry, family, self.table));
            let old_units = units_of(old).unwrap_or_default();
            let new_units = units_of(new).unwrap_or_default();
            for (old_unit, new_unit) in old_units.into_iter().zip(new_units) {
                has_some |= self.change_unit(key, old_unit.as_ref(), new_unit.as_ref());
            }
        }
        if let Some(left) = self.image.left_out.get_mut(key) {
            left.has_some |= has_some;
        }
        self.change_addresses(old, new);
    }

    /// Whether the new unit has a place afterwards.
    fn change_unit(
        &mut self,
        key: &ServiceKey,
        old_unit: Option<&Unit>,
        new_unit: Option<&Unit>,
    ) -> bool {
        let old_rows = old_unit.map_or(&[][..], |unit| &unit.rows);
        // Not all of them are there where the map was full.
        let mut present = old_rows.iter();
        let index = present.find_map(|(row, _)| self.image.service_of(row));
        let kept = match new_unit {
            Some(unit) => {
                let stays = |row: &FrontendKey| unit.rows.iter().any(|(new, _)| new == row);
                let leaving = old_rows.iter().filter(|(row, _)| !stays(row)).count();
                self.place(key, index, unit, leaving).then_some(unit)
            }
            None => {
                if let Some(index) = index {
                    self.retire_service(index);
                }
                None
            }
        };
        let has_place = kept.is_some();
        if old_rows.is_empty() {
            return has_place;
        }
        let kept = kept.iter().flat_map(|unit| &unit.rows);
        let kept: BTreeSet<FrontendKey> = kept.map(|(row, _)| *row).collect();
        for (row, _) in old_rows {
            // Another unit or service may have taken the row over in this plan.
            if !kept.contains(row) && !self.puts.contains_key(row) {
                self.delete(*row);
            }
        }
        has_place
    }

    /// Whether rows of this service are there already (and were not planned from its last version).
    fn is_present(&self, entry: &ServiceEntry) -> bool {
        let has_row = |family| {
            let units = units(entry, family, self.table).into_iter();
            let mut rows = units.flatten().flat_map(|unit| unit.rows);
            rows.any(|(row, _)| self.image.frontends.contains_key(&row))
        };
        // New maps are filled at once: whoever looks for ten thousand services in them does everything twice.
        !self.image.frontends.is_empty()
            && [AddressFamily::V4, AddressFamily::V6]
                .into_iter()
                .any(has_row)
    }

    /// Programs a unit, in the place that it has (`index`) or in a new one, while as many rows as `leaving` lose
    /// theirs. False when it has none afterwards.
    fn place(&mut self, key: &ServiceKey, index: Option<u32>, unit: &Unit, leaving: usize) -> bool {
        let index = index.or_else(|| self.adoptable(unit));
        if let Some(index) = index
            && !self.is_delta
        {
            self.claimed.insert(index);
        }
        let is_new = |row: &FrontendKey| {
            !self.image.frontends.contains_key(row) && !self.puts.contains_key(row)
        };
        let needed = unit.rows.iter().filter(|(row, _)| is_new(row)).count();
        let map = FullMap::frontends(unit.family);
        if !self.has_room(key, map, needed, leaving) {
            self.refuse(key, map, index.is_some(), needed);
            let Some(index) = index else { return false };
            // What is present stays, with what it serves now, and to those whom it serves now.
            self.set(key, index, unit);
            for (key, row) in &unit.rows {
                if self.image.service_of(key) == Some(index) {
                    self.put_for(index, *key, *row);
                }
            }
            return true;
        }
        let index = match index {
            Some(index) => {
                self.set(key, index, unit);
                index
            }
            None => match self.new_service(key, unit) {
                Some(index) => index,
                None => return false,
            },
        };
        for (key, row) in &unit.rows {
            self.put_for(index, *key, *row);
        }
        true
    }

    fn put_for(&mut self, service: u32, key: FrontendKey, row: FrontendRow) {
        self.put(key, FrontendRow { service, ..row });
    }

    fn put(&mut self, key: FrontendKey, row: FrontendRow) {
        self.deletes.remove(&key);
        let present = self.image.frontends.get(&key);
        if present == Some(&row) {
            self.puts.remove(&key);
            return;
        }
        let is_new = present.is_none();
        if self.puts.insert(key, row).is_none() && is_new {
            self.new_rows[slot(key.address)] += 1;
        }
    }

    fn delete(&mut self, key: FrontendKey) {
        if self.puts.remove(&key).is_some() && !self.image.frontends.contains_key(&key) {
            self.new_rows[slot(key.address)] -= 1;
        } else if self.image.frontends.contains_key(&key) {
            self.deletes.insert(key);
        }
    }

    /// Rows that there will be at the peak: puts precede deletes.
    fn rows_of(&self, family: AddressFamily) -> usize {
        self.image.rows(family) + self.new_rows[family as usize]
    }

    /// Not knowing how the image came about: the index that rows of this unit point to already.
    ///
    /// Not one that rows of others point to as well: until those rows are gone and their readers done, their clients
    /// would get backends of a service that they did not dial. Nor one that clients outside share who are to have
    /// another set: they would get the new one of this node before the row says so.
    fn adoptable(&self, unit: &Unit) -> Option<u32> {
        if self.is_delta {
            return None;
        }
        unit.rows.iter().find_map(|(row, _)| {
            let index = self.image.service_of(row)?;
            let service = self.image.services.get(&index)?;
            let is_free = service.family == unit.family && !self.claimed.contains(&index);
            let is_ours_alone = || {
                let ours: BTreeSet<FrontendKey> = unit.rows.iter().map(|(row, _)| *row).collect();
                let rows = self
                    .rows_by_index
                    .get(&index)
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                rows.iter().all(|other| ours.contains(other))
            };
            let is_shared = || {
                unit.rows.iter().any(|(key, row)| {
                    let present = self.image.frontends.get(key);
                    let was_same = |present: &FrontendRow| {
                        present.service == index && present.outside == Outside::Same
                    };
                    row.outside == Outside::Apart && present.is_some_and(was_same)
                })
            };
            (is_free && is_ours_alone() && !is_shared()).then_some(index)
        })
    }

    fn retire_service(&mut self, index: u32) {
        self.has_retired = true;
        self.image.retire_service(index);
    }

    /// `needs` more entries of `map` were asked for.
    fn refuse(&mut self, service: &ServiceKey, map: FullMap, has_some: bool, needs: usize) {
        let left_out = self.image.left_out.entry(service.clone()).or_default();
        left_out.has_some |= has_some;
        // It is worth another try as soon as the most modest of its units may fit.
        left_out.ask(map, needs);
    }

    /// Keeps the rows that say which ClusterIPs are known.
    fn change_addresses(&mut self, old: Option<&ServiceEntry>, new: Option<&ServiceEntry>) {
        for address in old
            .into_iter()
            .flat_map(|entry| known_addresses(entry, self.table))
        {
            let Some(users) = self.image.addresses.get_mut(&address) else {
                continue;
            };
            *users -= 1;
            if *users == 0 {
                self.image.addresses.remove(&address);
                self.delete(FrontendKey {
                    address,
                    port: KeyPort::Any,
                });
            }
        }
        let Some(new) = new else { return };
        for address in known_addresses(new, self.table) {
            let key = FrontendKey {
                address,
                port: KeyPort::Any,
            };
            let family = AddressFamily::from(address);
            let is_new = !self.image.frontends.contains_key(&key) && !self.puts.contains_key(&key);
            // A user of a row that has no room is one all the same: when it has, it is there for all of them.
            *self.image.addresses.entry(address).or_default() += 1;
            let map = FullMap::frontends(family);
            if is_new && !self.has_room(&new.key, map, 1, 0) {
                self.refuse(&new.key, map, true, 1);
                continue;
            }
            self.put(
                key,
                FrontendRow {
                    is_on_node: self.table.is_on_node(address),
                    ..FrontendRow::default()
                },
            );
        }
    }
}

/// Index of an address' family in arrays of two.
fn slot(address: IpAddr) -> usize {
    AddressFamily::from(address) as usize
}
