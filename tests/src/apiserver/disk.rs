//! YurtHub's cache on disk: everything that components have asked for, by component and resource.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::call::Call;
use super::resource::Resource;
use super::resource::Target;
use super::selector::Filter;
use super::store::Key;
use super::store::Object;
use super::store::Store;

/// What a power cut leaves of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corruption {
    /// This many objects are lost, without a trace.
    Lose(usize),
    /// All objects are lost.
    Empty,
    /// The first file is not an object: the list fails.
    Unreadable,
}

/// Objects of one resource. `None`: they cannot be read.
pub(super) type Files = Option<BTreeMap<Key, Arc<Object>>>;

/// The version of a list that is made from files, none of which has it: the version of its newest item.
pub(super) fn version_of(files: &BTreeMap<Key, Arc<Object>>) -> u64 {
    let versions = files.values().map(|object| object.version);
    versions.max().unwrap_or(0)
}

fn damage(files: &mut Files, corruption: Corruption) {
    match corruption {
        Corruption::Unreadable => *files = None,
        Corruption::Empty => *files = Some(BTreeMap::new()),
        Corruption::Lose(count) => {
            for _ in 0..count {
                files.as_mut().and_then(BTreeMap::pop_first);
            }
        }
    }
}

/// One component's cache of one resource.
#[derive(Debug)]
struct Cache {
    /// The namespace and selectors of its list: there is only one list.
    list: Option<(Filter, Shape)>,
    /// Objects that were asked for by name.
    names: BTreeSet<Key>,
    files: Files,
}

/// The parameters by which requests have lists of their own.
type Shape = [String; 3];

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Miss {
    /// It was never asked for.
    NeverCached,
    /// Another list is cached.
    OtherShape,
    /// The cache cannot be read.
    Unreadable,
}

#[derive(Debug, Default)]
pub(super) struct Disk {
    components: BTreeMap<(String, Resource), Cache>,
    /// The files of the multiplexer.
    pub(super) pool: BTreeMap<Resource, Files>,
}

fn shape(call: &Call, target: &Target) -> Shape {
    [
        target.namespace.clone().unwrap_or_default(),
        call.parameter("labelSelector").to_owned(),
        call.parameter("fieldSelector").to_owned(),
    ]
}

fn key(target: &Target) -> Key {
    (
        target.namespace.clone().unwrap_or_default(),
        target.name.clone().unwrap_or_default(),
    )
}

impl Disk {
    /// The cloud has answered a component: what it asked for is kept from now on.
    pub(super) fn remember(&mut self, component: &str, call: &Call, target: &Target) {
        let place = (component.to_owned(), target.resource);
        let cache = self.components.entry(place).or_insert_with(|| Cache {
            list: None,
            names: BTreeSet::new(),
            files: Some(BTreeMap::new()),
        });
        if target.name.is_some() {
            cache.names.insert(key(target));
        } else if cache.list.is_none()
            && let Ok(filter) = call.filter(target)
        {
            cache.list = Some((filter, shape(call, target)));
        }
    }

    /// Writes everything that is kept, as the cloud has it now: the watches of the components would have done that.
    pub(super) fn write(&mut self, cloud: &Store) {
        for ((_component, resource), cache) in &mut self.components {
            let objects = cloud.table(*resource).objects.iter();
            let kept = objects.filter(|(key, object)| {
                let is_listed = |(filter, _shape): &(Filter, Shape)| object.is_in(filter);
                cache.list.as_ref().is_some_and(is_listed) || cache.names.contains(*key)
            });
            cache.files = Some(kept.map(|(k, o)| (k.clone(), Arc::clone(o))).collect());
        }
    }

    pub(super) fn list(
        &self,
        component: &str,
        call: &Call,
        target: &Target,
    ) -> Result<&BTreeMap<Key, Arc<Object>>, Miss> {
        let place = (component.to_owned(), target.resource);
        let cache = self.components.get(&place).ok_or(Miss::NeverCached)?;
        match &cache.list {
            Some((_filter, kept)) if *kept != shape(call, target) => Err(Miss::OtherShape),
            _ => cache.files.as_ref().ok_or(Miss::Unreadable),
        }
    }

    pub(super) fn get(&self, component: &str, target: &Target) -> Result<Arc<Object>, Miss> {
        let place = (component.to_owned(), target.resource);
        let cache = self.components.get(&place).ok_or(Miss::NeverCached)?;
        let files = cache.files.as_ref().ok_or(Miss::Unreadable)?;
        files.get(&key(target)).cloned().ok_or(Miss::NeverCached)
    }

    pub(super) fn corrupt(&mut self, resource: Resource, corruption: Corruption) {
        for ((_component, cached), cache) in &mut self.components {
            if *cached == resource {
                damage(&mut cache.files, corruption);
            }
        }
        if let Some(files) = self.pool.get_mut(&resource) {
            damage(files, corruption);
        }
    }
}
