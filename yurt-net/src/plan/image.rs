//! The maps as the planner sees them: their contents, and the space that may be written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::filter::Filter;
use super::op::{FrontendKey, FrontendRow, FullMap, KeyPort, Outside, Refused, ServedSet};
use super::space::Space;
use crate::model::{AddressFamily, Protocol};
use crate::table::{Backends, ClusterPrefixes, Scope, ServiceEntry, ServiceKey};

/// Entries that each map holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// `yurt_fe4`.
    pub frontends4: u32,
    /// `yurt_fe6`.
    pub frontends6: u32,
    /// `yurt_svc`.
    pub services: u32,
    /// `yurt_slot`.
    pub slots4: u32,
    /// `yurt_be6`.
    pub slots6: u32,
}

impl Capacity {
    /// Frontend rows of a family.
    pub fn frontends(&self, family: AddressFamily) -> usize {
        (match family {
            AddressFamily::V4 => self.frontends4,
            AddressFamily::V6 => self.frontends6,
        }) as usize
    }

    /// Entries of each map, by [`FullMap`].
    pub(super) fn by_map(&self) -> [usize; 5] {
        let Self {
            frontends4,
            frontends6,
            services,
            slots4,
            slots6,
        } = *self;
        [frontends4, frontends6, services, slots4, slots6].map(|entries| entries as usize)
    }
}

/// One published service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceImage {
    /// Which slots `base` points into.
    pub family: AddressFamily,
    /// First slot; 0 when it has no slots.
    pub base: u32,
    /// The contents of the slots; `None` when no plan writes such contents (damaged, overlapping, unsorted).
    pub set: Option<ServedSet>,
}

/// The content of the table maps.
#[derive(Clone, Debug)]
pub struct MapImage {
    pub(super) capacity: Capacity,
    pub(super) frontends: BTreeMap<FrontendKey, FrontendRow>,
    row_counts: [usize; 2],
    /// Published services by index.
    pub(super) services: BTreeMap<u32, ServiceImage>,
    /// Last generation of each index that was ever published.
    generations: BTreeMap<u32, u16>,
    /// Generation of an index that was never published.
    first_generation: u16,
    pub(super) prefixes: ClusterPrefixes,
    /// ClusterIPs of `table` that the programs leave alone.
    pub(super) on_node: Vec<IpAddr>,
    /// `table` serves clients outside this node, too.
    pub(super) serves_packets: bool,
    /// The filter for the addresses in `frontends`.
    pub(super) filter: Filter,
    /// No reader uses the inactive half of the prefixes.
    pub(super) is_prefix_buffer_free: bool,
    pub(super) indices: Space,
    slots4: Space,
    slots6: Space,
    /// Users of each [`KeyPort::Any`] row.
    pub(super) addresses: BTreeMap<IpAddr, u32>,
    /// The table that this image was planned from; `None`: not known.
    pub(super) table: Option<Vec<Arc<ServiceEntry>>>,
    /// Service ports of the table that are not in the maps, or only in part.
    pub(super) left_out: BTreeMap<ServiceKey, LeftOut>,
    /// Service ports that were in the maps before a reboot emptied them; until the first plan.
    pub(super) remembered: BTreeSet<ServiceKey>,
}

/// A service port that did not fit when it was planned last.
#[derive(Clone, Debug, Default)]
pub(super) struct LeftOut {
    /// The fewest entries of each map, by [`FullMap`], that a unit of it asked for and did not get; 0: none did.
    needs: [u32; 5],
    /// A part of it is in the maps.
    pub(super) has_some: bool,
    /// Its services that serve a part of their set, by index: how many endpoints of how many.
    pub(super) parts: BTreeMap<u32, (usize, usize)>,
    /// One of its services is in the maps, and serves none of its endpoints.
    pub(super) is_closed: bool,
    /// The next plan makes room for it: tenants were changing, or other sets have to move first.
    pub(super) is_next: bool,
}

impl LeftOut {
    /// A unit asked for `needs` entries of `map` and did not get them.
    pub(super) fn ask(&mut self, map: FullMap, needs: usize) {
        let least = &mut self.needs[map as usize];
        let needs = u32::try_from(needs).unwrap_or(u32::MAX);
        *least = if *least == 0 {
            needs
        } else {
            needs.min(*least)
        };
    }

    /// How many entries of a map would be enough for the smallest of its units that did not fit.
    pub(super) fn asked(&self, map: FullMap) -> Option<usize> {
        let needs = self.needs[map as usize];
        (needs > 0).then_some(needs as usize)
    }

    /// The form in which a plan reports it.
    pub(super) fn told(&self, key: &ServiceKey) -> Option<Refused> {
        Some(Refused {
            service: key.clone(),
            map: *FullMap::ALL
                .iter()
                .find(|map| self.needs[**map as usize] > 0)?,
            has_some: self.has_some,
            part: self.parts.values().copied().min(),
        })
    }
}

/// The contents of the maps for a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InForce {
    /// These endpoints.
    Forward(Backends),
    /// A refusal.
    Refuse,
    /// No row: the flow passes.
    Pass,
}

/// The contents of the maps as they were read; see [`MapImage::observed`].
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Rows. A row whose value cannot be right (fingerprint, index) has a service index beyond the capacity.
    pub frontends: BTreeMap<FrontendKey, FrontendRow>,
    /// Services that rows point to.
    pub services: BTreeMap<u32, ServiceImage>,
    /// The generation of every index.
    pub generations: BTreeMap<u32, u16>,
    /// The prefixes in force.
    pub prefixes: ClusterPrefixes,
    /// The filter.
    pub filter: Filter,
}

impl MapImage {
    /// Maps that were just made.
    pub fn empty(capacity: Capacity) -> Self {
        Self {
            capacity,
            frontends: BTreeMap::new(),
            row_counts: [0; 2],
            services: BTreeMap::new(),
            generations: BTreeMap::new(),
            first_generation: 0,
            prefixes: ClusterPrefixes::default(),
            on_node: Vec::new(),
            serves_packets: false,
            filter: Filter::default(),
            is_prefix_buffer_free: true,
            indices: Space::new(capacity.services),
            slots4: Space::new(capacity.slots4),
            slots6: Space::new(capacity.slots6),
            addresses: BTreeMap::new(),
            table: None,
            left_out: BTreeMap::new(),
            remembered: BTreeSet::new(),
        }
    }

    /// Says which service ports were in the maps before they were emptied: the first plan puts these in first.
    pub fn remember(&mut self, in_force: BTreeSet<ServiceKey>) {
        if self.frontends.is_empty() {
            self.remembered = in_force;
        }
    }

    /// Service ports that are not in the maps at all, for lack of room.
    pub fn left_out(&self) -> impl Iterator<Item = &ServiceKey> {
        let left_out = self.left_out.iter();
        left_out.filter_map(|(key, left)| (!left.has_some).then_some(key))
    }

    /// How the last plan refused a service port; `None`: all of it is in the maps.
    pub fn refused(&self, key: &ServiceKey) -> Option<Refused> {
        self.left_out.get(key)?.told(key)
    }

    /// The contents of the maps for a new flow of a client of `scope`, without regard to source ranges.
    pub fn in_force(&self, to: SocketAddr, protocol: Protocol, scope: Scope) -> InForce {
        let address = to.ip();
        let row = |scope| {
            let port = KeyPort::Port(scope, protocol, to.port());
            self.frontends.get(&FrontendKey { address, port })
        };
        if let Some(internal) = row(Scope::Internal) {
            let theirs = match (scope, internal.outside) {
                (Scope::Internal, _) | (Scope::External, Outside::Same) => Some(internal),
                (Scope::External, Outside::Apart) => row(Scope::External),
                (Scope::External, Outside::No) => return InForce::Pass,
            };
            let service = theirs.and_then(|row| self.services.get(&row.service));
            let set = service.and_then(|service| service.set.as_ref());
            let backends = set.map(|set| &set.backends);
            let backends = backends.filter(|backends| !backends.is_empty());
            return backends.map_or(InForce::Refuse, |some| InForce::Forward(some.clone()));
        }
        let port = KeyPort::Any;
        match self.frontends.get(&FrontendKey { address, port }) {
            _ if !self.prefixes.contain(address) => InForce::Pass,
            Some(row) if row.is_on_node => InForce::Pass,
            None if !self.prefixes.are_service_cidrs => InForce::Pass,
            _ => InForce::Refuse,
        }
    }

    /// Maps that an earlier agent has written, perhaps only in part.
    pub fn observed(capacity: Capacity, observed: Observed) -> Self {
        let Observed {
            frontends,
            mut services,
            generations,
            prefixes,
            filter,
        } = observed;
        services.retain(|index, _| *index < capacity.services);
        let mut image = Self {
            generations,
            prefixes,
            filter,
            ..Self::empty(capacity)
        };
        image.is_prefix_buffer_free = false;
        for key in frontends.keys() {
            image.row_counts[AddressFamily::from(key.address) as usize] += 1;
        }
        image.frontends = frontends;
        image.indices = Space::around(capacity.services, services.keys().map(|index| (*index, 1)));
        image.slots4 = used(&mut services, AddressFamily::V4, capacity.slots4);
        image.slots6 = used(&mut services, AddressFamily::V6, capacity.slots6);
        image.services = services;
        image
    }

    /// Counts the generations of indices that were never published from here on.
    ///
    /// Sockets outlive maps, and remember a publish word. If every map counted from 0, a word of new maps could equal
    /// the word of another set in old maps.
    #[must_use]
    pub fn counting_from(mut self, generation: u16) -> Self {
        self.first_generation = generation;
        self
    }

    /// Rows of each family, services, and slots in use, as `status` shows them.
    pub fn usage(&self) -> Capacity {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let slots = |family| {
            let of_family = self
                .services
                .values()
                .filter(|service| service.family == family);
            of_family
                .filter_map(|service| Some(service.set.as_ref()?.slots()))
                .sum()
        };
        Capacity {
            frontends4: count(self.row_counts[0]),
            frontends6: count(self.row_counts[1]),
            services: count(self.services.len()),
            slots4: slots(AddressFamily::V4),
            slots6: slots(AddressFamily::V6),
        }
    }

    /// How many Services have a ClusterIP.
    pub fn cluster_ips(&self) -> usize {
        let known = self.frontends.keys().filter(|key| key.port == KeyPort::Any);
        let (v4, v6): (Vec<&FrontendKey>, Vec<_>) = known.partition(|key| key.address.is_ipv4());
        v4.len().max(v6.len())
    }

    /// Whether a set admits only some clients.
    pub fn asks_for_clients(&self) -> bool {
        let mut sets = self
            .services
            .values()
            .filter_map(|service| service.set.as_ref());
        sets.any(|set| !set.ranges().is_empty())
    }

    /// The capacities of the maps.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Rows.
    pub fn frontends(&self) -> &BTreeMap<FrontendKey, FrontendRow> {
        &self.frontends
    }

    /// Published services, by index.
    pub fn services(&self) -> &BTreeMap<u32, ServiceImage> {
        &self.services
    }

    /// The prefixes in force.
    pub fn prefixes(&self) -> &ClusterPrefixes {
        &self.prefixes
    }

    /// The filter.
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    pub(super) fn rows(&self, family: AddressFamily) -> usize {
        self.row_counts[family as usize]
    }

    /// Adds rows, or changes those that there are.
    pub(super) fn insert_rows(&mut self, mut rows: BTreeMap<FrontendKey, FrontendRow>) {
        let are_many = rows.len() > self.frontends.len();
        let new = rows.keys().filter(|key| !self.frontends.contains_key(key));
        for key in new {
            self.row_counts[AddressFamily::from(key.address) as usize] += 1;
        }
        match are_many {
            // Both are gone through once, where each row of empty maps would look for its place.
            true => self.frontends.append(&mut rows),
            false => self.frontends.extend(rows),
        }
    }

    pub(super) fn remove_row(&mut self, key: &FrontendKey) {
        if self.frontends.remove(key).is_some() {
            self.row_counts[AddressFamily::from(key.address) as usize] -= 1;
        }
    }

    /// The service that a frontend row points to.
    pub(super) fn service_of(&self, key: &FrontendKey) -> Option<u32> {
        match key.port {
            KeyPort::Any => None,
            KeyPort::Port(..) => self.frontends.get(key).map(|row| row.service),
        }
    }

    /// Slots that a plan may get, in one piece or not.
    pub(super) fn unused_slots(&self, family: AddressFamily) -> usize {
        match family {
            AddressFamily::V4 => self.slots4.unused(),
            AddressFamily::V6 => self.slots6.unused(),
        }
    }

    pub(super) fn space(&self, family: AddressFamily) -> &Space {
        match family {
            AddressFamily::V4 => &self.slots4,
            AddressFamily::V6 => &self.slots6,
        }
    }

    pub(super) fn slots(&mut self, family: AddressFamily) -> &mut Space {
        match family {
            AddressFamily::V4 => &mut self.slots4,
            AddressFamily::V6 => &mut self.slots6,
        }
    }

    pub(super) fn next_generation(&mut self, index: u32) -> u16 {
        let first = self.first_generation;
        let generation = self.generations.entry(index).or_insert(first);
        *generation = generation.wrapping_add(1);
        *generation
    }

    pub(super) fn retire_service(&mut self, index: u32) {
        let Some(service) = self.services.remove(&index) else {
            return;
        };
        self.indices.retire(index, 1);
        let slots = service.set.map_or(0, |set| set.slots());
        if slots > 0 {
            self.slots(service.family).retire(service.base, slots);
        }
    }

    /// Retires every service that is not in `claimed`; true when there was one.
    pub(super) fn retire_unclaimed(&mut self, claimed: &BTreeSet<u32>) -> bool {
        let gone: Vec<u32> = self
            .services
            .keys()
            .copied()
            .filter(|index| !claimed.contains(index))
            .collect();
        for index in &gone {
            self.retire_service(*index);
        }
        !gone.is_empty()
    }

    pub(super) fn has_sealed(&self) -> bool {
        [&self.indices, &self.slots4, &self.slots6]
            .into_iter()
            .any(Space::has_sealed)
    }

    /// Builds each map again: one that grew has gaps.
    pub(super) fn close_gaps(&mut self) {
        fn close<K: Ord, V>(all: &mut BTreeMap<K, V>) {
            *all = std::mem::take(all).into_iter().collect();
        }
        close(&mut self.frontends);
        close(&mut self.services);
        close(&mut self.generations);
        close(&mut self.addresses);
        close(&mut self.left_out);
    }

    pub(super) fn end_grace(&mut self) {
        self.is_prefix_buffer_free = true;
        for space in [&mut self.indices, &mut self.slots4, &mut self.slots6] {
            space.end_grace();
        }
    }

    pub(super) fn seal_retired(&mut self) {
        for space in [&mut self.indices, &mut self.slots4, &mut self.slots6] {
            space.seal();
        }
    }
}

/// The space around the ranges of a family. A service whose range overlaps an earlier one is marked as damaged.
fn used(services: &mut BTreeMap<u32, ServiceImage>, family: AddressFamily, capacity: u32) -> Space {
    let mut ranges: Vec<(u32, u32, u32)> = services
        .iter()
        .filter(|(_, service)| service.family == family)
        .filter_map(|(index, service)| {
            let length = service.set.as_ref()?.slots();
            (length > 0).then_some((service.base, length, *index))
        })
        .collect();
    ranges.sort_unstable();
    let mut end = 0;
    ranges.retain(|&(base, length, index)| {
        let is_whole = base >= end && base.checked_add(length).is_some_and(|end| end <= capacity);
        if is_whole {
            end = base + length;
        } else if let Some(service) = services.get_mut(&index) {
            service.set = None;
        }
        is_whole
    });
    Space::around(
        capacity,
        ranges.into_iter().map(|(base, length, _)| (base, length)),
    )
}
