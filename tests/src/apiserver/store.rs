//! The objects, their versions, and their changes. No I/O and no clock.
//!
//! Each resource has a log of what its watches have to be told: changes, and what a script has put between them. A
//! watch is a position in that log. Positions count from the start of the server and are never reused.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::Context;
use anyhow::Result;
use bytes::Bytes;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::resource::Resource;
use super::selector::Filter;

/// Versions of a real cluster are large numbers, too.
const FIRST_VERSION: u64 = 1000;
const CREATED: &str = "2026-01-01T00:00:00Z";

/// Namespace ("" for cluster-scoped objects) and name.
pub(super) type Key = (String, String);

/// An object in the form in which it is sent.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) key: Key,
    pub(super) labels: BTreeMap<String, String>,
    /// `spec.nodeName`: the field that Pods are selected by.
    node_name: String,
    pub(super) version: u64,
    uid: String,
    /// Without kind and apiVersion; metadata comes first, as in all built-in kinds.
    pub(super) json: Bytes,
}

impl Object {
    fn new(mut value: Value, version: u64, uid: String) -> Result<Self> {
        let key = key_of(&value)?;
        let metadata = &mut value["metadata"];
        metadata["resourceVersion"] = json!(version.to_string());
        metadata["uid"] = json!(uid);
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = json!(CREATED);
        }
        let node_name = value["spec"]["nodeName"].as_str().unwrap_or_default();
        let node_name = node_name.to_owned();
        let labels = value["metadata"]["labels"]
            .as_object()
            .into_iter()
            .flatten();
        let labels = labels
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect();
        let mut members = match value {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        members.remove("kind");
        members.remove("apiVersion");
        let metadata = members.remove("metadata").unwrap_or_default();
        let mut json = br#"{"metadata":"#.to_vec();
        serde_json::to_writer(&mut json, &metadata)?;
        for (name, member) in &members {
            json.push(b',');
            serde_json::to_writer(&mut json, name)?;
            json.push(b':');
            serde_json::to_writer(&mut json, member)?;
        }
        json.push(b'}');
        Ok(Self {
            key,
            labels,
            node_name,
            version,
            uid,
            json: json.into(),
        })
    }

    pub(super) fn is_in(&self, filter: &Filter) -> bool {
        filter.matches(&self.key.0, &self.key.1, &self.node_name, &self.labels)
    }

    /// The whole object, in one of its resource's versions.
    pub(super) fn typed(&self, resource: Resource, version: &str) -> Vec<u8> {
        let api_version = resource.api_version(version);
        let kind = resource.kind();
        let mut json = if resource.shape().is_custom {
            format!(r#"{{"apiVersion":"{api_version}","kind":"{kind}","#)
        } else {
            format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","#)
        }
        .into_bytes();
        json.extend_from_slice(&self.json[1..]);
        json
    }

    fn value(&self, resource: Resource) -> Result<Value> {
        let version = resource.shape().versions.last().unwrap_or(&"v1");
        Ok(serde_json::from_slice(&self.typed(resource, version))?)
    }
}

fn key_of(object: &Value) -> Result<Key> {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().context("no metadata.name")?;
    let resource = Resource::of(object).context("not of a kind that is served")?;
    let namespace = match metadata["namespace"].as_str() {
        _ if !resource.shape().is_namespaced => "",
        Some(namespace) => namespace,
        None => "default",
    };
    Ok((namespace.to_owned(), name.to_owned()))
}

/// One change of one object.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) version: u64,
    /// The object after the change; for a deleted object its last state, with the version of the deletion.
    pub(super) object: Arc<Object>,
    pub(super) before: Option<Arc<Object>>,
    pub(super) is_deletion: bool,
}

/// A message to watches.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    Event(Event),
    /// A line for the present watches.
    Line(Bytes),
    /// The present watches end.
    End,
}

/// One resource.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) objects: BTreeMap<Key, Arc<Object>>,
    /// The version of the last change that is known here, as in a watch cache.
    pub(super) version: u64,
    /// A watch from an older version has missed changes that are no longer in the log.
    pub(super) oldest: u64,
    log: VecDeque<Entry>,
    /// The position of the log's first entry.
    log_start: u64,
    /// Watches get no events.
    pub(super) is_paused: bool,
    /// Counts how often all watches were ended, for those that are paused.
    pub(super) ends: u64,
    /// The versions that are served, if not all are.
    pub(super) versions: Vec<&'static str>,
    /// Bodies of lists, by everything that they depend on.
    pub(super) bodies: BTreeMap<String, Bytes>,
}

impl Table {
    fn new(resource: Resource, version: u64) -> Self {
        Self {
            objects: BTreeMap::new(),
            version,
            oldest: version,
            log: VecDeque::new(),
            log_start: 0,
            is_paused: false,
            ends: 0,
            versions: resource.shape().versions.to_vec(),
            bodies: BTreeMap::new(),
        }
    }

    /// The position of the next entry.
    pub(super) fn log_end(&self) -> u64 {
        let length = u64::try_from(self.log.len()).unwrap_or(u64::MAX);
        self.log_start + length
    }

    /// `None` past the end; `Err` if the log no longer has the position.
    pub(super) fn entry(&self, position: u64) -> Result<Option<&Entry>, ()> {
        let index = position.checked_sub(self.log_start).ok_or(())?;
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        Ok(self.log.get(index))
    }

    /// The position where a watch from this version starts. What scripts have put between the changes after that is not
    /// for it.
    pub(super) fn position_after(&self, version: u64) -> u64 {
        let is_newer =
            |entry: &Entry| matches!(entry, Entry::Event(event) if event.version > version);
        match self.log.iter().position(is_newer) {
            Some(index) => self.log_start + u64::try_from(index).unwrap_or(0),
            None => self.log_end(),
        }
    }

    pub(super) fn push(&mut self, entry: Entry, history: usize) {
        self.log.push_back(entry);
        while self.log.len() > history {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some(entry) = self.log.pop_front() {
            self.log_start += 1;
            if let Entry::Event(event) = entry {
                self.oldest = self.oldest.max(event.version);
            }
        }
    }

    /// Forgets the history. Watches that are up to date do not notice.
    pub(super) fn compact(&mut self, version: u64) {
        while !self.log.is_empty() {
            self.forget_first();
        }
        self.oldest = version;
    }

    pub(super) fn end_watches(&mut self, history: usize) {
        self.ends += 1;
        self.push(Entry::End, history);
    }

    /// The last change.
    pub(super) fn last_event(&self) -> Option<&Event> {
        self.log.iter().rev().find_map(|entry| match entry {
            Entry::Event(event) => Some(event),
            Entry::Line(_) | Entry::End => None,
        })
    }

    /// Applies a change that was made elsewhere.
    pub(super) fn apply(&mut self, event: Event, history: usize) {
        let key = event.object.key.clone();
        if event.is_deletion {
            self.objects.remove(&key);
        } else {
            self.objects.insert(key, Arc::clone(&event.object));
        }
        self.version = event.version;
        self.bodies.clear();
        self.push(Entry::Event(event), history);
    }
    /// The changes after a version; `None` if they are not all known.
    pub(super) fn events_after(&self, version: u64) -> Option<Vec<Event>> {
        if version < self.oldest || version > self.version {
            return None;
        }
        let events = self.log.iter().filter_map(|entry| match entry {
            Entry::Event(event) if event.version > version => Some(event.clone()),
            _ => None,
        });
        Some(events.collect())
    }

    /// Takes these objects, without any history.
    pub(super) fn reset(&mut self, objects: BTreeMap<Key, Arc<Object>>, version: u64) {
        self.objects = objects;
        self.version = version;
        self.bodies.clear();
        self.compact(version);
    }
}

/// All resources.
#[derive(Debug)]
pub(super) struct Store {
    /// The version of the last change to any resource.
    pub(super) version: u64,
    /// How many entries a log holds.
    pub(super) history: usize,
    tables: BTreeMap<Resource, Table>,
    uids: u64,
}

impl Store {
    pub(super) fn new(history: usize) -> Self {
        let version = FIRST_VERSION;
        let table = |resource| (resource, Table::new(resource, version));
        Self {
            version,
            history,
            tables: Resource::ALL.into_iter().map(table).collect(),
            uids: 0,
        }
    }

    pub(super) fn table(&self, resource: Resource) -> &Table {
        &self.tables[&resource]
    }

    pub(super) fn table_mut(&mut self, resource: Resource) -> &mut Table {
        let version = self.version;
        let table = self.tables.entry(resource);
        table.or_insert_with(|| Table::new(resource, version))
    }

    /// Creates or replaces an object; returns its version. An object that is equal to the present one stays as it is.
    pub(super) fn put(&mut self, value: Value) -> Result<u64> {
        let resource = Resource::of(&value).context("not of a kind that is served")?;
        let key = key_of(&value)?;
        let before = self.table(resource).objects.get(&key).cloned();
        let uid = match &before {
            Some(before) => {
                let same = Object::new(value.clone(), before.version, before.uid.clone())?;
                if same.json == before.json {
                    return Ok(before.version);
                }
                before.uid.clone()
            }
            None => {
                self.uids += 1;
                format!("00000000-0000-4000-8000-{:012x}", self.uids)
            }
        };
        let version = self.version + 1;
        let object = Arc::new(Object::new(value, version, uid)?);
        self.version = version;
        let history = self.history;
        let event = Event {
            version,
            object,
            before,
            is_deletion: false,
        };
        self.table_mut(resource).apply(event, history);
        Ok(version)
    }

    /// Deletes an object; returns whether it was there.
    pub(super) fn delete(&mut self, resource: Resource, key: &Key) -> Result<bool> {
        let Some(before) = self.table(resource).objects.get(key).cloned() else {
            return Ok(false);
        };
        let version = self.version + 1;
        let object = Object::new(before.value(resource)?, version, before.uid.clone())?;
        self.version = version;
        let history = self.history;
        let event = Event {
            version,
            object: Arc::new(object),
            before: Some(before),
            is_deletion: true,
        };
        self.table_mut(resource).apply(event, history);
        Ok(true)
    }

    /// Makes these the only objects of all resources, by as few changes as possible.
    pub(super) fn replace_all(&mut self, values: Vec<Value>) -> Result<()> {
        let mut gone: BTreeMap<Resource, Vec<Key>> = BTreeMap::new();
        let mut wanted = Vec::new();
        for value in &values {
            wanted.push((
                Resource::of(value).context("not of a kind that is served")?,
                key_of(value)?,
            ));
        }
        wanted.sort();
        for (resource, table) in &self.tables {
            let keys = table.objects.keys().cloned();
            let keys = keys.filter(|key| wanted.binary_search(&(*resource, key.clone())).is_err());
            gone.insert(*resource, keys.collect());
        }
        for value in values {
            self.put(value)?;
        }
        for (resource, keys) in gone {
            for key in keys {
                self.delete(resource, &key)?;
            }
        }
        Ok(())
    }

    /// The object, in the newest version of its kind.
    pub(super) fn get(&self, resource: Resource, key: &Key) -> Result<Option<Value>> {
        let object = self.table(resource).objects.get(key);
        object.map(|object| object.value(resource)).transpose()
    }

    /// Goes back to an earlier version, as if the datastore had been restored from a backup: the objects stay, the
    /// history is gone, and later changes have versions that were used before.
    pub(super) fn rewind(&mut self, version: u64) {
        self.version = version;
        for table in self.tables.values_mut() {
            table.version = version;
            table.bodies.clear();
            table.compact(version);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, nodes: &[&str]) -> Value {
        json!({
            "apiVersion": "apps.openyurt.io/v1beta2",
            "kind": "NodePool",
            "metadata": {"name": name},
            "status": {"nodes": nodes},
        })
    }

    #[test]
    fn versions_only_grow_with_changes() {
        let mut store = Store::new(10);
        assert_eq!(store.put(pool("a", &[])).unwrap(), FIRST_VERSION + 1);
        assert_eq!(store.put(pool("a", &[])).unwrap(), FIRST_VERSION + 1);
        assert_eq!(store.put(pool("a", &["n"])).unwrap(), FIRST_VERSION + 2);
        let values = vec![pool("a", &["n"]), pool("b", &[])];
        store.replace_all(values).unwrap();
        assert_eq!(store.version, FIRST_VERSION + 3);
        store.replace_all(vec![pool("b", &[])]).unwrap();
        assert_eq!(store.version, FIRST_VERSION + 4);
        let table = store.table(Resource::NodePools);
        assert_eq!(table.objects.len(), 1);
        assert!(table.last_event().is_some_and(|event| event.is_deletion));
    }

    #[test]
    fn a_short_history_forgets() {
        let mut store = Store::new(2);
        for name in ["a", "b", "c"] {
            store.put(pool(name, &[])).unwrap();
        }
        let table = store.table(Resource::NodePools);
        assert_eq!(table.oldest, FIRST_VERSION + 1);
        assert_eq!(table.position_after(FIRST_VERSION + 2), 2);
    }
}
