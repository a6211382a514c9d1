//! How many endpoints of one Service are kept, how many different hints the endpoints of a slice may have, and what is
//! said where names of nodes were too many (`decode::names`).
//!
//! Pure. A tenant may write a thousand slices of a thousand endpoints, which take 50 MB decoded. What is beyond the
//! limit is cut off before it is in a snapshot, in the order in which slices come; a list and a directory come in the
//! order of names. What was cut off is forgotten: it is back when its slice is read again.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use crate::model::{EndpointSlice, Hints, Placement, TOO_MANY_PLACES};
use crate::table::MAX_ENDPOINTS;

/// Zones, nodes, or sets of both, that the hints of one slice may name, those aside that name an endpoint's own node. A
/// controller names the zones of a cluster.
const MAX_HINTS: usize = 100;

/// Endpoints that are kept, by Service.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// By the hash of its name: there may be ten thousand, and no table depends on it.
    kept: BTreeMap<u64, usize>,
    names: RandomState,
}

impl Room {
    /// What slices that are known already take.
    pub(super) fn of<'a>(slices: impl IntoIterator<Item = &'a Arc<EndpointSlice>>) -> Self {
        let mut room = Self::default();
        for slice in slices {
            *room.kept_of(slice) += slice.endpoints.len();
        }
        room
    }

    /// Takes a slice in, and cuts off what is too much; returns what to report about that.
    pub(super) fn admit(&mut self, slice: &mut Arc<EndpointSlice>) -> Option<String> {
        let hints = without_hints_of_too_many(slice);
        let told = [hints, with_names_of_too_many(slice)].into_iter().flatten();
        let told: Vec<String> = told.collect();
        let told = (!told.is_empty()).then(|| told.join("; "));
        let kept = self.kept_of(slice);
        let (count, most) = (slice.endpoints.len(), MAX_ENDPOINTS.saturating_sub(*kept));
        *kept += count.min(most);
        if count <= most {
            return told;
        }
        let slice = Arc::make_mut(slice);
        slice.endpoints.truncate(most);
        let is_kept = |index: u32| usize::try_from(index).is_ok_and(|index| index < most);
        let pods = slice.pods.iter();
        slice.pods = pods.filter(|pod| is_kept(pod.endpoint)).cloned().collect();
        let cut = format!(
            "its Service has more than {MAX_ENDPOINTS} endpoints: {} of this slice's {count} are left out until it is read again",
            count - most
        );
        Some(match told {
            Some(told) => format!("{cut}; {told}"),
            None => cut,
        })
    }

    /// A slice is gone, or is about to be replaced.
    pub(super) fn release(&mut self, slice: &EndpointSlice) {
        let kept = self.kept_of(slice);
        *kept = kept.saturating_sub(slice.endpoints.len());
        if *kept == 0 {
            let service = self.key(slice);
            self.kept.remove(&service);
        }
    }

    fn key(&self, slice: &EndpointSlice) -> u64 {
        self.names
            .hash_one((&*slice.name.namespace, &*slice.service))
    }

    fn kept_of(&mut self, slice: &EndpointSlice) -> &mut usize {
        let service = self.key(slice);
        self.kept.entry(service).or_default()
    }
}

/// A thousand endpoints of a slice may each have other hints, which take a hundred times as much as their addresses.
/// Without hints they are for all clients, as they are if one of them has none.
fn without_hints_of_too_many(slice: &mut Arc<EndpointSlice>) -> Option<String> {
    let is_own = |placement: &Placement, hints: &Hints| {
        hints.zones.is_empty() && hints.nodes.iter().eq(&placement.node_name)
    };
    let placements = slice.endpoints.placements();
    let hints = placements.filter_map(|placement| Some((placement, placement.hints.as_deref()?)));
    let others = hints.filter(|(placement, hints)| !is_own(placement, hints));
    let others: BTreeSet<&Hints> = others.map(|(_, hints)| hints).collect();
    let count = others.len();
    if count <= MAX_HINTS {
        return None;
    }
    let mut placements = BTreeMap::new();
    Arc::make_mut(slice).endpoints.edit(|all| {
        for endpoint in all {
            let node = endpoint.node_name().cloned();
            let placement = placements.entry(node).or_insert_with_key(|node| {
                Placement::new(node.clone(), Hints::default()).map(Arc::new)
            });
            endpoint.placement.clone_from(placement);
        }
    });
    Some(format!(
        "its hints differ in {count} ways, {MAX_HINTS} are kept at most: its endpoints are taken to have none"
    ))
}

/// What to report of endpoints whose nodes or zones have lost their names.
fn with_names_of_too_many(slice: &EndpointSlice) -> Option<String> {
    let is_lost = |name: &Arc<str>| **name == *TOO_MANY_PLACES;
    let has_lost = |placement: &&Placement| {
        let hints = placement.hints.iter();
        let mut hinted = hints.flat_map(|hints| hints.zones.iter().chain(&hints.nodes));
        placement.node_name.as_ref().is_some_and(is_lost) || hinted.any(is_lost)
    };
    let count = slice.endpoints.placements().filter(has_lost).count();
    (count > 0).then(|| {
        format!(
            "EndpointSlices name more nodes and zones than are kept: {count} of its endpoints are taken to be on a node \
             that nobody knows"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::model::{AddressFamily, Endpoint, EndpointPod, NamespacedName};

    fn slice(name: u8, service: u8, endpoints: usize) -> Arc<EndpointSlice> {
        let endpoint = Endpoint {
            address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
            is_ready: true,
            is_serving: true,
            is_terminating: false,
            placement: None,
        };
        let last = u32::try_from(endpoints).unwrap().checked_sub(1);
        let pod = |endpoint| EndpointPod {
            endpoint,
            name: "pod".into(),
        };
        Arc::new(EndpointSlice {
            name: NamespacedName::new("default", name.to_string()),
            service: service.to_string().into(),
            family: AddressFamily::V4,
            is_headless: false,
            ports: Arc::default(),
            endpoints: vec![endpoint; endpoints].into(),
            pods: last.map(pod).into_iter().collect(),
        })
    }

    #[test]
    fn a_slice_beyond_the_limit_is_cut_and_told_and_other_services_are_not() {
        let mut room = Room::default();
        let mut slices: Vec<_> = (0..70).map(|name| slice(name, 1, 1000)).collect();
        let told: Vec<_> = slices.iter_mut().map(|s| room.admit(s)).collect();
        assert!(told[..65].iter().all(Option::is_none));
        assert_eq!(slices[65].endpoints.len(), MAX_ENDPOINTS - 65_000);
        assert_eq!(
            told[65].as_deref(),
            Some(
                "its Service has more than 65536 endpoints: 464 of this slice's 1000 are left out until it is read again"
            )
        );
        assert!(slices[65].pods.is_empty(), "its Pod is of no endpoint");
        assert!(slices[66].endpoints.is_empty() && told[66].is_some());
        assert_eq!(room.admit(&mut slice(71, 2, 1000)), None);
        // What goes makes room for what is read next.
        room.release(&slices[0]);
        assert_eq!(room.admit(&mut slice(72, 1, 1000)), None);
    }

    fn hinted(count: u8, hints: impl Fn(&str) -> Hints) -> Arc<EndpointSlice> {
        let mut slice = slice(1, 1, count.into());
        let endpoints = &mut Arc::make_mut(&mut slice).endpoints;
        endpoints.edit(|all| {
            for (n, endpoint) in all.iter_mut().enumerate() {
                let node = format!("node-{n}");
                let hints = hints(&node);
                endpoint.placement = Placement::new(Some(node.into()), hints).map(Arc::new);
            }
        });
        slice
    }

    #[test]
    fn a_slice_whose_hints_name_ever_others_is_taken_to_have_none_and_told() {
        let zones = |node: &str| Hints {
            zones: [format!("zone-of-{node}").into()].into(),
            nodes: Box::default(),
        };
        let mut room = Room::default();
        let mut some = hinted(100, zones);
        assert_eq!(room.admit(&mut some), None);
        assert!(some.endpoints.iter().all(|e| e.hints().is_some()));
        let mut many = hinted(101, zones);
        let told = "its hints differ in 101 ways, 100 are kept at most: its endpoints are taken to have none";
        assert_eq!(room.admit(&mut many).as_deref(), Some(told));
        assert!(many.endpoints.iter().all(|e| e.hints().is_none()));
        assert_eq!(
            many.endpoints
                .get(7)
                .unwrap()
                .node_name()
                .map(|node| &**node),
            Some("node-7")
        );
        // As a controller does that prefers the same node.
        let same_node = |node: &str| Hints {
            zones: Box::default(),
            nodes: [node.into()].into(),
        };
        assert_eq!(room.admit(&mut hinted(200, same_node)), None);
        // One does not hide the other.
        for n in 2..69 {
            room.admit(&mut slice(n, 1, 1000));
        }
        let both = room.admit(&mut hinted(101, zones)).unwrap();
        assert!(
            both.contains(": 101 of this slice's 101 are left out"),
            "{both}"
        );
        assert!(both.ends_with(told), "{both}");
    }

    #[test]
    fn endpoints_whose_nodes_have_lost_their_names_are_told() {
        let mut one = slice(1, 1, 3);
        assert_eq!(Room::default().admit(&mut one), None);
        let lost = Placement::new(Some(TOO_MANY_PLACES.into()), Hints::default()).map(Arc::new);
        Arc::make_mut(&mut one)
            .endpoints
            .edit(|all| all[1].placement = lost);
        let told = Room::default().admit(&mut one).unwrap();
        assert!(told.contains("1 of its endpoints"), "{told}");
        assert_eq!(one.endpoints.len(), 3);
    }

    proptest! {
        /// Whatever comes, goes and is replaced: no Service has more than the limit, and nothing is cut while there is
        /// room.
        #[test]
        fn a_service_has_its_limit_and_not_less(
            events in prop::collection::vec((0..12u8, 0..2u8, prop_oneof![Just(0usize), 1..30_000usize]), 1..40)
        ) {
            let mut room = Room::default();
            let mut known: BTreeMap<u8, Arc<EndpointSlice>> = BTreeMap::new();
            for (name, service, endpoints) in events {
                if let Some(old) = known.remove(&name) {
                    room.release(&old);
                }
                let mut new = slice(name, service, endpoints);
                let owner = Arc::clone(&new.service);
                let others = known.values().filter(|s| s.service == owner);
                let others: usize = others.map(|s| s.endpoints.len()).sum();
                let told = room.admit(&mut new);
                let most = MAX_ENDPOINTS - others;
                prop_assert_eq!(new.endpoints.len(), endpoints.min(most));
                prop_assert_eq!(told.is_some(), endpoints > most);
                known.insert(name, new);
            }
            let fresh = Room::of(known.values());
            let sum = |room: &Room| room.kept.values().sum::<usize>();
            prop_assert_eq!(sum(&fresh), sum(&room));
        }
    }
}
