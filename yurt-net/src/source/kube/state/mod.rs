//! What is known of the cluster: lists and events go in, one whole snapshot is there.
//!
//! Pure; `now` is the time since the source was started. Two rules keep it from shrinking for a wrong reason:
//!
//! - A list takes effect when its last byte has arrived, never before. An object that cannot be decoded keeps its last
//!   good version; one that cannot be told from others may be any, so with it all stay that its list does not name. A
//!   list of which nothing can be read is no word of what there is.
//! - A list from a cache that is empty, or has less than half of the last good objects, is held back: YurtHub's cache
//!   may be half written, or rebuilt from files. It takes effect when a list says the same [`CONFIRM_AFTER`] later,
//!   when an event shows that the cache is alive, or after [`LONGEST_HOLD`]. One without default/kubernetes, which
//!   every apiserver makes again at once, is of no cluster: neither repetition nor time makes it true. A live apiserver
//!   is believed at once.
//!
//! An object that has lost what nobody takes away, as a Node all of its labels, keeps its last good version, too.
#![forbid(unsafe_code)]

mod list;
mod rejections;
mod stripped;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use list::List;
use rejections::{SHOWN_REJECTIONS, cut, keeping};
use stripped::{lost, stripped};

use super::follow::CONFIRM_AFTER;
use super::resource::Resource;
use crate::model::{NamespacedName, Rejection, Snapshot, Touched};
use crate::source::decode::{self, ItemError, Names, Object, ObjectId, OtherObject};
use crate::source::objects;
use crate::source::room::Room;

/// After so many failed reads of a Node, within about seven seconds, the agent goes on without it.
const NODE_TRIES: u32 = 4;
/// A list is held back no longer than this.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// The cluster, as far as lists and events have reported it.
#[derive(Debug)]
pub(super) struct ClusterState {
    /// Name of the own Node.
    node: String,
    snapshot: Snapshot,
    touched: Touched,
    /// The snapshot does not have all present rejections yet.
    has_other_rejections: bool,
    names: Names,
    /// Answers come from a cache, which may be older than what is known.
    is_cache: bool,
    known: BTreeMap<Resource, Known>,
    /// Of the slices in the snapshot.
    room: Room,
}

/// What is known of one resource.
#[derive(Debug, Default)]
struct Known {
    /// A list that is arriving.
    arriving: List,
    held: Option<Held>,
    /// A list or a watch has succeeded since the start.
    is_confirmed: bool,
    /// Another source than this one has so many in force. It does not name them.
    expected: usize,
    /// The request has changed: the next list has other objects than the last one.
    is_renewed: bool,
    failure: Option<String>,
    /// Failed requests in a row.
    failures: u32,
    /// The last request has failed because the resource does not exist.
    is_absent: bool,
    rejections: BTreeMap<NamespacedName, Rejection>,
    version: String,
}

#[derive(Debug)]
struct Held {
    list: List,
    /// It lacks what every cluster has.
    is_of_no_cluster: bool,
    version: String,
    since: Duration,
    /// Since when lists have been the same as this one.
    unchanged_since: Duration,
}

/// A list that is held back, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeldList {
    /// The resource.
    pub(crate) resource: &'static str,
    /// Objects that stay in force.
    pub(crate) have: usize,
    /// Objects that the list has.
    pub(crate) offered: usize,
    /// It lacks default/kubernetes, so that no repetition confirms it.
    pub(crate) is_of_no_cluster: bool,
}

/// What was done with a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listed {
    /// It is in force; whether that changed anything.
    Used { has_changed: bool },
    /// It is held back.
    Held,
}

impl ClusterState {
    /// Starts from what an earlier agent knew, or another source reports. Its findings about its own input do not
    /// concern this source.
    pub(super) fn new(
        node: &str,
        mut seed: Snapshot,
        versions: &BTreeMap<String, String>,
        is_cache: bool,
    ) -> Self {
        seed.manifests.clear();
        seed.rejections.clear();
        let known = Resource::ALL.map(|resource| {
            let known = Known {
                version: versions.get(resource.name()).cloned().unwrap_or_default(),
                ..Known::default()
            };
            (resource, known)
        });
        Self {
            node: node.to_owned(),
            room: Room::of(seed.slices.values()),
            snapshot: seed,
            touched: Touched::Anything,
            has_other_rejections: false,
            names: Names::of_node(node),
            is_cache,
            known: known.into(),
        }
    }

    /// Starts from this, which was found late, if nothing was reported yet.
    pub(super) fn learn(&mut self, seed: &Snapshot) {
        if self.known.values().any(|known| known.is_confirmed) {
            return;
        }
        self.snapshot = seed.clone();
        self.snapshot.manifests.clear();
        self.snapshot.rejections.clear();
        self.room = Room::of(self.snapshot.slices.values());
        self.touched = Touched::Anything;
    }

    /// Answers come from a cache from now on, or no longer. What the other server has reported, and its lists that are
    /// held back, are not confirmed by this one.
    pub(super) fn set_cache(&mut self, is_cache: bool) {
        self.is_cache = is_cache;
        for known in self.known.values_mut() {
            known.held = None;
        }
    }

    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// What may differ from the snapshot at the last call.
    pub(super) fn take_touched(&mut self) -> Touched {
        if self.has_other_rejections {
            self.collect_rejections();
        }
        self.touched.take()
    }

    /// The version that a watch would go on from; `None`: a list comes first.
    pub(super) fn version(&self, resource: Resource) -> Option<String> {
        let known = self.known.get(&resource)?;
        (!known.version.is_empty()).then(|| known.version.clone())
    }

    /// All versions, for the next agent.
    pub(super) fn versions(&self) -> BTreeMap<String, String> {
        let known = self.known.iter();
        let known = known.filter(|(_, known)| !known.version.is_empty());
        known
            .map(|(resource, known)| (resource.name().to_owned(), known.version.clone()))
            .collect()
    }

    /// Nothing is known from this source, neither now nor from an earlier agent's time.
    pub(super) fn is_blank(&self) -> bool {
        let mut known = self.known.values();
        known.all(|known| known.version.is_empty() && !known.is_confirmed)
    }

    /// A list or a watch of it has succeeded since the start.
    pub(super) fn is_confirmed(&self, resource: Resource) -> bool {
        self.known.get(&resource).is_some_and(|k| k.is_confirmed)
    }

    /// It has been requested, with or without success. The Node's pool decides which endpoints its clients get, and a
    /// refusal for a moment says nothing about the Node: it is requested [`NODE_TRIES`] times.
    pub(super) fn is_settled(&self, resource: Resource) -> bool {
        let has_failed = |known: &Known| match resource {
            Resource::Nodes => known.is_absent || known.failures >= NODE_TRIES,
            _ => known.failure.is_some(),
        };
        let known = self.known.get(&resource);
        known.is_some_and(|known| known.is_confirmed || has_failed(known))
    }

    /// Why the last request failed; `None` when it did not.
    pub(super) fn failures(&self) -> impl Iterator<Item = (Resource, &str)> {
        self.known
            .iter()
            .filter_map(|(resource, known)| Some((*resource, known.failure.as_deref()?)))
    }

    /// The lists that are held back.
    pub(super) fn held(&self) -> impl Iterator<Item = HeldList> {
        self.known.iter().filter_map(|(resource, known)| {
            let held = known.held.as_ref()?;
            Some(HeldList {
                resource: resource.name(),
                have: self.count(*resource).max(known.expected),
                offered: held.list.objects.len(),
                is_of_no_cluster: held.is_of_no_cluster,
            })
        })
    }

    /// Objects of it in force.
    pub(super) fn count(&self, resource: Resource) -> usize {
        objects::count(&self.snapshot, resource.kind())
    }

    /// Until a list is used: so many Services are in force, with endpoints, in maps that an earlier agent left.
    pub(super) fn expect(&mut self, services: usize) {
        for (resource, count) in [
            (Resource::Services, services),
            (Resource::EndpointSlices, services.min(1)),
        ] {
            self.known.entry(resource).or_default().expected = count;
        }
    }

    /// From now on it is requested in another shape: fewer objects will be no sign of a broken cache.
    pub(super) fn renew(&mut self, resource: Resource) {
        let known = self.known.entry(resource).or_default();
        known.is_renewed = true;
        known.held = None;
        known.version.clear();
    }

    /// The next item of the list that is arriving.
    pub(super) fn item(&mut self, resource: Resource, api_version: &str, json: &[u8]) {
        let list = &mut self.known.entry(resource).or_default().arriving;
        if list.other.is_some() {
            return;
        }
        let decoded = decode::item(json, resource.kind().name(), api_version, &mut self.names);
        list.items += 1;
        match decoded {
            Err(ItemError::Other(other)) => list.other = Some(other),
            Ok(None) => {}
            Ok(Some(mut object)) => {
                list.read += 1;
                let name = object.name();
                let old = objects::get(&self.snapshot, object.id());
                if let Some(lost) = old.as_ref().and_then(|old| lost(old, &object, &self.node)) {
                    let rejection = stripped(object.kind(), &name, lost);
                    list.rejections.insert(name, keeping(rejection, true));
                    list.objects.extend(old.map(|old| (old.name(), old)));
                    return;
                }
                if let Object::EndpointSlice(slice) = &mut object
                    && let Some(reason) = list.room.admit(slice)
                {
                    list.rejections.insert(name.clone(), cut(&name, reason));
                }
                // The old one of two equal objects: nothing compiled from it has to be compiled again.
                let object = old.filter(|old| *old == object).unwrap_or(object);
                list.objects.insert(name, object);
            }
            Err(ItemError::Rejected(rejection)) => {
                let name = NamespacedName::new(&*rejection.namespace, &*rejection.name);
                let id = ObjectId {
                    kind: resource.kind().name(),
                    namespace: &rejection.namespace,
                    name: &rejection.name,
                };
                let old = objects::get(&self.snapshot, id);
                list.has_nameless |= rejection.name.is_empty();
                let rejection = keeping(rejection, old.is_some());
                if let Some(old) = old {
                    list.read += 1;
                    list.keep(old);
                }
                list.rejections.insert(name, rejection);
            }
        }
    }

    /// Gives up the list that has arrived if it is not of what was asked for; returns why.
    pub(super) fn refuse_list(&mut self, resource: Resource) -> Option<OtherObject> {
        let arriving = &mut self.known.get_mut(&resource)?.arriving;
        let other = arriving.other.take()?;
        *arriving = List::default();
        Some(other)
    }

    /// The list that was arriving will not be whole.
    pub(super) fn abandon_list(&mut self, resource: Resource) {
        self.known.entry(resource).or_default().arriving = List::default();
    }

    /// The list that was arriving is whole.
    pub(super) fn listed(&mut self, resource: Resource, version: &str, now: Duration) -> Listed {
        let known = self.known.entry(resource).or_default();
        let mut list = std::mem::take(&mut known.arriving);
        let known_of_others = known.expected;
        if list.is_unreadable() && self.count(resource) == 0 && known_of_others > 0 {
            self.failed(resource, list.unreadable(), false);
            return Listed::Held;
        }
        if list.may_be_any() {
            let kind = resource.kind();
            list.keep_unnamed(kind, objects::all(&self.snapshot, kind));
        }
        if self.is_suspect(resource, &list) {
            let is_of_no_cluster = self.is_of_no_cluster(resource, &list);
            let known = self.known.entry(resource).or_default();
            let mut held = known.held.take();
            if !is_of_no_cluster {
                // A list that is of no cluster does not confirm another one.
                held = held.filter(|held| !held.is_of_no_cluster);
            }
            let same = held
                .as_ref()
                .filter(|held| held.list.says_the_same_as(&list));
            let unchanged_since = same.map_or(now, |held| held.unchanged_since);
            let since = held.as_ref().map_or(now, |held| held.since);
            let is_confirmed = now.saturating_sub(unchanged_since) >= CONFIRM_AFTER;
            let is_over = now.saturating_sub(since) >= LONGEST_HOLD;
            if is_of_no_cluster || (!is_confirmed && !is_over) {
                if is_of_no_cluster && is_over {
                    // Other sources are asked, if there are any.
                    let why = "a cache that lists no default/kubernetes is of no cluster";
                    known.failure = Some(why.to_owned());
                }
                known.held = Some(Held {
                    list,
                    is_of_no_cluster,
                    version: version.to_owned(),
                    since,
                    unchanged_since,
                });
                return Listed::Held;
            }
        }
        let has_changed = self.use_list(resource, list, version);
        Listed::Used { has_changed }
    }

    /// A list with far fewer objects than are in force, from a cache that may have lost them.
    fn is_suspect(&self, resource: Resource, list: &List) -> bool {
        let known = self.known.get(&resource);
        let expected = known.map_or(0, |known| known.expected);
        let is_renewed = known.is_some_and(|known| known.is_renewed);
        let have = self.count(resource).max(expected);
        self.is_cache && !is_renewed && list.objects.len() * 2 < have
    }

    /// It lacks what every cluster has, and what this one is known to have; or nothing is known of this one.
    fn is_of_no_cluster(&self, resource: Resource, list: &List) -> bool {
        let name = NamespacedName::new("default", "kubernetes");
        let is_known = match resource {
            Resource::Services => self.snapshot.services.contains_key(&name),
            Resource::EndpointSlices => self.snapshot.slices.contains_key(&name),
            _ => return false,
        };
        let known = self.known.get(&resource);
        let is_expected = known.is_some_and(|known| known.expected > 0);
        (is_known || is_expected) && !list.objects.contains_key(&name)
    }

    fn use_list(&mut self, resource: Resource, list: List, version: &str) -> bool {
        let known = self.known.entry(resource).or_default();
        known.held = None;
        (known.expected, known.is_renewed) = (0, false);
        known.is_confirmed = true;
        (known.failure, known.failures) = (None, 0);
        version.clone_into(&mut known.version);
        let has_new_rejections = known.rejections != list.rejections;
        known.rejections = list.rejections;
        if resource == Resource::EndpointSlices {
            self.room = list.room;
        }
        let has_changed = objects::replace(&mut self.snapshot, resource.kind(), list.objects);
        if resource.is_of_table() {
            self.touched = Touched::Anything;
        }
        self.names.prune();
        if has_new_rejections {
            self.collect_rejections();
        }
        has_changed || has_new_rejections
    }

    /// Uses the lists that were held back long enough; true if that changed something.
    pub(super) fn release(&mut self, now: Duration) -> bool {
        let mut has_changed = false;
        for resource in Resource::ALL {
            let is_due = |held: &Held| {
                !held.is_of_no_cluster && now.saturating_sub(held.since) >= LONGEST_HOLD
            };
            if self
                .known
                .get(&resource)
                .is_some_and(|k| k.held.as_ref().is_some_and(is_due))
            {
                has_changed |= self.use_held(resource);
            }
        }
        has_changed
    }

    /// When [`Self::release`] has something to do.
    pub(super) fn release_at(&self) -> Option<Duration> {
        let held = self.known.values().filter_map(|known| known.held.as_ref());
        let held = held.filter(|held| !held.is_of_no_cluster);
        held.map(|held| held.since + LONGEST_HOLD).min()
    }

    fn use_held(&mut self, resource: Resource) -> bool {
        let held = self.known.entry(resource).or_default().held.take();
        held.is_some_and(|held| self.use_list(resource, held.list, &held.version))
    }

    /// Uses what is held back, because an event shows that the cache is alive. A list that is of no cluster is still
    /// being filled: the event is one more of its objects, and the list is used when it is of a cluster, or holds
    /// enough.
    fn confirm_held(&mut self, resource: Resource, event: Option<Object>) -> bool {
        let known = self.known.entry(resource).or_default();
        let Some(mut held) = known.held.take() else {
            return false;
        };
        if held.is_of_no_cluster {
            if let Some(object) = event {
                held.list.objects.insert(object.name(), object);
            }
            held.is_of_no_cluster = self.is_of_no_cluster(resource, &held.list);
            if held.is_of_no_cluster && self.is_suspect(resource, &held.list) {
                self.known.entry(resource).or_default().held = Some(held);
                return false;
            }
        }
        self.use_list(resource, held.list, &held.version)
    }

    /// The last request has failed.
    pub(super) fn has_failed(&self, resource: Resource) -> bool {
        let known = self.known.get(&resource);
        known.is_some_and(|known| known.failure.is_some())
    }

    /// A watch from a known version was accepted.
    pub(super) fn watching(&mut self, resource: Resource) {
        let known = self.known.entry(resource).or_default();
        known.is_confirmed |= known.held.is_none();
        if known
            .held
            .as_ref()
            .is_none_or(|held| !held.is_of_no_cluster)
        {
            known.failure = None;
        }
        known.failures = 0;
    }

    /// A request has failed: everything that is known stays.
    pub(super) fn failed(&mut self, resource: Resource, why: String, is_absent: bool) {
        let known = self.known.entry(resource).or_default();
        (known.failure, known.is_absent) = (Some(why), is_absent);
        known.failures = known.failures.saturating_add(1);
    }

    /// Earlier findings about it are out of date.
    pub(super) fn doubt(&mut self, resource: Resource) {
        self.known.entry(resource).or_default().is_confirmed = false;
    }

    /// Nothing has happened up to this version.
    pub(super) fn bookmark(&mut self, resource: Resource, version: &str) {
        let known = self.known.entry(resource).or_default();
        if known.held.is_none() {
            version.clone_into(&mut known.version);
        }
    }

    /// An object was added or modified; true when that changed something.
    pub(super) fn put(
        &mut self,
        resource: Resource,
        api_version: &str,
        json: &[u8],
        version: &str,
    ) -> bool {
        let kind = resource.kind().name();
        let item = match decode::item(json, kind, api_version, &mut self.names) {
            // Its task refuses it, and lists anew.
            Err(ItemError::Other(_)) => return false,
            Err(ItemError::Rejected(rejection)) => Err(rejection),
            Ok(item) => Ok(item),
        };
        let event = item.as_ref().ok().cloned().flatten();
        let mut has_changed = self.confirm_held(resource, event);
        self.bookmark(resource, version);
        match item {
            Ok(Some(mut object)) => {
                let name = object.name();
                let old = objects::get(&self.snapshot, object.id());
                if let Some(lost) = old.and_then(|old| lost(&old, &object, &self.node)) {
                    let rejection = stripped(object.kind(), &name, lost);
                    return has_changed | self.reject(resource, keeping(rejection, true));
                }
                let reason = self.make_room(&mut object);
                has_changed |= match reason {
                    None => self.forgive(resource, &name),
                    Some(reason) => self.reject(resource, cut(&name, reason)),
                };
                self.touch(resource, name);
                has_changed | objects::put(&mut self.snapshot, &object)
            }
            // It does not concern us any more, as a slice without its service name.
            Ok(None) => has_changed | self.remove(resource, json),
            Err(rejection) => {
                let id = ObjectId {
                    kind,
                    namespace: &rejection.namespace,
                    name: &rejection.name,
                };
                let is_known = objects::get(&self.snapshot, id).is_some();
                self.reject(resource, keeping(rejection, is_known));
                true
            }
        }
    }

    /// Cuts off what a slice has more than its Service may have in the snapshot; returns what to report about that.
    fn make_room(&mut self, object: &mut Object) -> Option<String> {
        let Object::EndpointSlice(slice) = object else {
            return None;
        };
        if let Some(old) = self.snapshot.slices.get(&slice.name) {
            self.room.release(old);
        }
        self.room.admit(slice)
    }

    /// An object was deleted; true when that changed something.
    pub(super) fn delete(&mut self, resource: Resource, json: &[u8], version: &str) -> bool {
        let has_changed = self.confirm_held(resource, None);
        self.bookmark(resource, version);
        has_changed | self.remove(resource, json)
    }

    fn remove(&mut self, resource: Resource, json: &[u8]) -> bool {
        #[derive(Deserialize)]
        struct Named {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        struct Metadata {
            #[serde(default)]
            namespace: String,
            name: String,
        }
        let Ok(Named { metadata }) = serde_json::from_slice(json) else {
            return false;
        };
        let id = ObjectId {
            kind: resource.kind().name(),
            namespace: &metadata.namespace,
            name: &metadata.name,
        };
        let name = NamespacedName::new(&*metadata.namespace, &*metadata.name);
        if resource == Resource::EndpointSlices
            && let Some(old) = self.snapshot.slices.get(&name)
        {
            self.room.release(old);
        }
        let has_changed = objects::remove(&mut self.snapshot, id);
        let has_changed = has_changed | self.forgive(resource, &name);
        self.touch(resource, name);
        has_changed
    }

    fn touch(&mut self, resource: Resource, name: NamespacedName) {
        match resource {
            Resource::EndpointSlices => self.touched.slice(name),
            Resource::Pods => {}
            _ => self.touched = Touched::Anything,
        }
    }

    /// Remembers a rejection; true if it is a new one.
    fn reject(&mut self, resource: Resource, rejection: Rejection) -> bool {
        let name = NamespacedName::new(&*rejection.namespace, &*rejection.name);
        let known = self.known.entry(resource).or_default();
        let is_new = known.rejections.get(&name) != Some(&rejection);
        if is_new {
            known.rejections.insert(name, rejection);
            self.rejections_changed();
        }
        is_new
    }

    /// Forgets a rejection; true when there was one.
    fn forgive(&mut self, resource: Resource, name: &NamespacedName) -> bool {
        let known = self.known.entry(resource).or_default();
        let was_rejected = known.rejections.remove(name).is_some();
        if was_rejected {
            self.rejections_changed();
        }
        was_rejected
    }

    /// A few are in the snapshot at once; many when it is taken up. A list that is copied at each of 20,000 events
    /// costs a minute.
    fn rejections_changed(&mut self) {
        let all = self.known.values().map(|known| known.rejections.len());
        self.has_other_rejections = true;
        if all.sum::<usize>() <= SHOWN_REJECTIONS {
            self.collect_rejections();
        }
    }

    /// Reports so many that each namespace has one, and how many more there are.
    fn collect_rejections(&mut self) {
        self.has_other_rejections = false;
        let known = self.known.values();
        let all: Vec<&Rejection> = known.flat_map(|known| known.rejections.values()).collect();
        self.snapshot.rejections = rejections::shown(&all);
    }
}

#[cfg(test)]
mod tests;
