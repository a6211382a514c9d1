//! The order in which Services get room, when not all of them fit.
//!
//! Pure. In: service ports that are not in the maps, and the whole table. Out: the order in which they get room. Rules
//! in order: (1) what is in the maps stays there, which the planner ensures, unless `room` makes room; (2) the
//! self-test; (3) default/kubernetes, then kube-system; (4) the others, each namespace in turn: the next is the one
//! that has the smallest share of the room once its next service port is in; (5) by name.
//!
//! So a namespace that asks for no more than its even share gets all of it, whatever others ask for: until its last
//! service port is in, no other namespace gets more than it. The share of a namespace is its part of the map of which
//! it has the largest part.

use std::collections::BTreeMap;

use super::change::Change;
use super::image::Capacity;
use super::op::FullMap;
use crate::model::{Protocol, TrafficPolicy};
use crate::table::{EndpointSet, FrontendKind, ServiceEntry, ServiceKey, ServiceTable, Standing};

/// Entries of each map, by [`FullMap`].
#[derive(Clone, Copy, Default)]
pub(super) struct Needs(pub(super) [usize; 5]);

impl Needs {
    /// The entries that a service port takes, or a little more: an external IP that is also the load balancer's is one
    /// row, and so is the row by which a ClusterIP of several ports is known.
    pub(super) fn of(entry: &ServiceEntry, table: &ServiceTable) -> Self {
        let mut needs = Self::default();
        if entry.key.protocol == Protocol::Sctp {
            return needs;
        }
        for is_v4 in [true, false] {
            let (rows, slots, set) = match is_v4 {
                true => (FullMap::Frontends4, FullMap::Slots4, &entry.v4),
                false => (FullMap::Frontends6, FullMap::Slots6, &entry.v6),
            };
            let ranges = entry.source_ranges.iter();
            let ranges = ranges.filter(|range| range.is_ipv4() == is_v4).count();
            let (mut is_cluster, mut is_local, mut is_limited) = (false, false, false);
            let (mut is_outside, mut is_outside_limited) = (false, false);
            let is_apart = table.serves_packets && entry.external_policy == TrafficPolicy::Local;
            let frontends = entry.frontends.iter();
            for frontend in frontends.filter(|f| f.address.is_ipv4() == is_v4) {
                needs.0[rows as usize] += 1;
                if is_apart && frontend.kind != FrontendKind::ClusterIp {
                    needs.0[rows as usize] += 1;
                    match entry.admitted(frontend).next() {
                        Some(_) => is_outside_limited = true,
                        None => is_outside = true,
                    }
                }
                match frontend.kind {
                    FrontendKind::ClusterIp => {
                        needs.0[rows as usize] +=
                            usize::from(!table.cluster_prefixes.are_service_cidrs);
                        is_local |= entry.internal_policy == TrafficPolicy::Local;
                        is_cluster |= entry.internal_policy == TrafficPolicy::Cluster;
                    }
                    FrontendKind::LoadBalancer if ranges > 0 => is_limited = true,
                    FrontendKind::LoadBalancer | FrontendKind::ExternalIp => is_cluster = true,
                    // A NodePort has a row on loopback, too.
                    FrontendKind::NodePort => {
                        needs.0[rows as usize] += 1;
                        is_cluster = true;
                    }
                }
            }
            let EndpointSet { cluster, local, .. } = set;
            let sets = [
                (is_cluster, cluster.len()),
                (is_local, local.len()),
                (is_limited, cluster.len() + ranges),
                (is_outside, local.len()),
                (is_outside_limited, local.len() + ranges),
            ];
            for (_, length) in sets.iter().filter(|(is_there, _)| *is_there) {
                needs.0[FullMap::Services as usize] += 1;
                needs.0[slots as usize] += length;
            }
        }
        needs
    }

    pub(super) fn add(&mut self, other: Self) {
        for (mine, others) in self.0.iter_mut().zip(other.0) {
            *mine += others;
        }
    }

    pub(super) fn remove(&mut self, other: Self) {
        for (mine, others) in self.0.iter_mut().zip(other.0) {
            *mine = mine.saturating_sub(others);
        }
    }

    pub(super) fn fit_into(&self, room: [usize; 5]) -> bool {
        self.0.iter().zip(room).all(|(needs, room)| *needs <= room)
    }

    /// The greatest share of any map, in millionths.
    pub(super) fn share(&self, capacity: &Capacity) -> usize {
        let parts = self.0.iter().zip(capacity.by_map());
        let parts = parts.map(|(needs, all)| needs.saturating_mul(1_000_000) / all.max(1));
        parts.max().unwrap_or_default()
    }
}

/// Which of the rules (2) to (4) applies to a service port; those of the self-test have no namespace.
fn class(key: &ServiceKey) -> Option<Standing> {
    (!key.namespace.is_empty()).then(|| key.standing())
}

/// Whether nothing works without it, and no tenant writes it.
pub(super) fn comes_first(key: &ServiceKey) -> bool {
    class(key) != Some(Standing::Tenant)
}

/// Puts service ports into the order in which they get room. `room` is what is left of each map; `has_place` says
/// whether a service port of the table is in the maps.
pub(super) fn in_turns(
    mut absent: Vec<Change>,
    table: &ServiceTable,
    room: [usize; 5],
    capacity: &Capacity,
    has_place: impl Fn(&ServiceEntry) -> bool,
) -> Vec<Change> {
    absent.sort_by(|a, b| a.key().cmp(&b.key()));
    let class_of = |change: &Change| change.key().and_then(class);
    let mut all = Needs::default();
    let needs = absent.iter().map(|change| {
        let needs = change.new.as_deref().map(|entry| Needs::of(entry, table));
        needs.unwrap_or_default()
    });
    let needs: Vec<Needs> = needs.inspect(|needs| all.add(*needs)).collect();
    if absent.len() < 2 || all.fit_into(room) {
        // The room may be enough for all of them, and yet no range of slots be long enough for each.
        absent.sort_by_key(class_of);
        return absent;
    }
    let mut held: BTreeMap<&str, Needs> = BTreeMap::new();
    let mut waiting = absent.iter().filter_map(Change::key).peekable();
    for entry in &table.services {
        while waiting.next_if(|key| **key < entry.key).is_some() {}
        if waiting.peek().is_none_or(|key| **key != entry.key) && has_place(entry) {
            let of_namespace = held.entry(&entry.key.namespace).or_default();
            of_namespace.add(Needs::of(entry, table));
        }
    }
    let turns = absent.iter().zip(&needs).map(|(change, needs)| {
        let Some((key, _)) = change.key().zip(change.new.as_ref()) else {
            return (None, 0);
        };
        let of_namespace = held.entry(&key.namespace).or_default();
        of_namespace.add(*needs);
        match class(key) {
            class @ Some(Standing::Tenant) => (class, of_namespace.share(capacity)),
            class => (class, 0),
        }
    });
    let turns: Vec<(Option<Standing>, usize)> = turns.collect();
    let mut in_turns: Vec<_> = turns.into_iter().zip(absent).collect();
    in_turns.sort_by_key(|(turn, _)| *turn);
    in_turns.into_iter().map(|(_, change)| change).collect()
}
