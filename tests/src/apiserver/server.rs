//! The apiserver: objects go in, lists and events come out.

use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use serde_json::Value;

use super::api::Api;
use super::api::Settings;
use super::api::expired_line;
use super::call::Answer;
use super::call::Call;
use super::endpoint::Answers;
use super::endpoint::Endpoint;
use super::resource::Resource;
use super::store::Entry;
use super::watch::bookmark_of;
use super::watch::line;

impl Answers for Api {
    async fn answer(self: Arc<Self>, call: Call) -> Answer {
        self.respond(&call).await
    }
}

/// A scripted apiserver. All methods may be called from anywhere, in a runtime or not.
#[derive(Debug)]
pub struct FakeApiserver {
    api: Arc<Api>,
    http: Endpoint,
}

impl FakeApiserver {
    /// Starts one on a free port of the loopback device.
    pub fn start() -> Result<Self> {
        Self::with(Settings::default())
    }

    /// The same, with other settings.
    pub fn with(settings: Settings) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::listen(address, settings, Vec::new())
    }

    /// The same at a given address, with objects that are there before any client can ask.
    pub fn listen(address: SocketAddr, settings: Settings, objects: Vec<Value>) -> Result<Self> {
        let api = Arc::new(Api::new(settings));
        api.change(|store| {
            let Some(first) = settings.first_version else {
                return store.replace_all(objects);
            };
            store.version = first;
            store.replace_all(objects)?;
            let version = store.version;
            for resource in Resource::ALL {
                store.table_mut(resource).compact(version);
            }
            Ok(())
        })?;
        let http = Endpoint::start(address, Arc::clone(&api))?;
        Ok(Self { api, http })
    }

    /// The faults, and the requests so far.
    pub fn http(&self) -> &Endpoint {
        &self.http
    }

    pub(super) fn api(&self) -> &Arc<Api> {
        &self.api
    }

    /// Creates or replaces an object; returns its version. An object that is equal to the present one stays as it is,
    /// without an event.
    pub fn put(&self, object: Value) -> Result<u64> {
        self.api.change(|store| store.put(object))
    }

    /// The same for several objects, one after the other.
    pub fn put_all(&self, objects: impl IntoIterator<Item = Value>) -> Result<()> {
        self.api.change(|store| {
            for object in objects {
                store.put(object)?;
            }
            Ok(())
        })
    }

    /// Makes these the only objects, by as few changes as possible.
    pub fn replace_all(&self, objects: Vec<Value>) -> Result<()> {
        self.api.change(|store| store.replace_all(objects))
    }

    /// Deletes an object; returns whether it was there. The namespace of a cluster-scoped object is the empty string.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<bool> {
        let key = (namespace.to_owned(), name.to_owned());
        self.api.change(|store| store.delete(resource, &key))
    }

    /// The present state of an object.
    pub fn get(&self, resource: Resource, namespace: &str, name: &str) -> Result<Option<Value>> {
        let key = (namespace.to_owned(), name.to_owned());
        self.api.store().get(resource, &key)
    }

    /// Changes an object in place; returns its new version.
    pub fn edit(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        edit: impl FnOnce(&mut Value),
    ) -> Result<u64> {
        let key = (namespace.to_owned(), name.to_owned());
        self.api.change(|store| {
            let object = store.get(resource, &key)?;
            let mut object = object.with_context(|| format!("no {resource:?} {key:?}"))?;
            edit(&mut object);
            store.put(object)
        })
    }

    /// The version of the last change to any object.
    pub fn version(&self) -> u64 {
        self.api.store().version
    }

    /// Serves only these versions of a resource; none: its CustomResourceDefinition is missing.
    pub fn serve_versions(&self, resource: Resource, versions: &[&str]) {
        self.api.change(|store| {
            let known = resource.shape().versions.iter().copied();
            let served = known.filter(|version| versions.contains(version)).collect();
            store.table_mut(resource).versions = served;
        });
    }

    /// Watches of this resource get no events until [`FakeApiserver::resume`]; lists are up to date as ever. So events
    /// of different resources can come in any order.
    pub fn pause(&self, resource: Resource) {
        self.api
            .change(|store| store.table_mut(resource).is_paused = true);
    }

    /// Watches of this resource get all events that they have missed.
    pub fn resume(&self, resource: Resource) {
        self.api
            .change(|store| store.table_mut(resource).is_paused = false);
    }

    /// Forgets the history of all resources: a watch from an older version gets 410.
    pub fn compact(&self) {
        self.api.change(|store| {
            let version = store.version;
            for resource in Resource::ALL {
                store.table_mut(resource).compact(version);
            }
        });
    }

    /// Goes back to an earlier version, like a cluster whose datastore was restored: the objects stay as they are, and
    /// the history is gone. Open watches are ended.
    pub fn rewind(&self, version: u64) {
        self.api.change(|store| {
            store.rewind(version);
            let history = store.history;
            for resource in Resource::ALL {
                store.table_mut(resource).end_watches(history);
            }
        });
    }

    /// Sets the version from which later ones go on: the next change has one more.
    pub fn advance(&self, version: u64) {
        self.api
            .change(|store| store.version = store.version.max(version));
    }

    /// Ends all watches of a resource cleanly.
    pub fn end_watches(&self, resource: Resource) {
        self.api.change(|store| {
            let history = store.history;
            store.table_mut(resource).end_watches(history);
        });
    }

    /// Ends all watches cleanly, all at once.
    pub fn end_all_watches(&self) {
        self.api.change(|store| {
            let history = store.history;
            for resource in Resource::ALL {
                store.table_mut(resource).end_watches(history);
            }
        });
    }

    /// Sends all watches of a resource a 410, and ends them.
    pub fn expire_watches(&self, resource: Resource) {
        let version = self.version();
        self.inject(resource, expired_line(version, version));
        self.end_watches(resource);
    }

    /// Sends all watches of a resource a bookmark, whether they want it or not, with the version of the last change to
    /// any object.
    pub fn bookmark(&self, resource: Resource) {
        self.api.change(|store| {
            let version = store.version;
            let history = store.history;
            let api_version = resource.shape().versions.last().unwrap_or(&"v1");
            let table = store.table_mut(resource);
            table.version = version;
            let line = bookmark_of(resource, api_version, version, "");
            table.push(Entry::Line(line), history);
        });
    }

    /// Sends all watches of a resource its last change again.
    pub fn repeat_last_event(&self, resource: Resource) {
        self.api.change(|store| {
            let history = store.history;
            let table = store.table_mut(resource);
            if let Some(event) = table.last_event() {
                let change = match (event.is_deletion, event.before.is_some()) {
                    (true, _) => "DELETED",
                    (false, true) => "MODIFIED",
                    (false, false) => "ADDED",
                };
                let version = resource.shape().versions.last().unwrap_or(&"v1");
                let line = line(change, &event.object, resource, version);
                table.push(Entry::Line(line), history);
            }
        });
    }

    /// Sends all watches of a resource these bytes between two events. A line has to end with a newline.
    pub fn inject(&self, resource: Resource, bytes: impl Into<bytes::Bytes>) {
        let line = bytes.into();
        self.api.change(|store| {
            let history = store.history;
            store.table_mut(resource).push(Entry::Line(line), history);
        });
    }

    /// Makes the lists before the first client asks, so that it only waits for the wire.
    pub fn prepare_lists(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        let api = Arc::clone(&self.api);
        // On another thread, because the caller's may be in a runtime.
        let prepare = std::thread::spawn(move || {
            runtime.block_on(async {
                for resource in Resource::ALL {
                    api.prepare(resource).await;
                }
            });
        });
        let _ = prepare.join();
        Ok(())
    }

    /// Blocks this thread until this many watches of a resource are open.
    pub fn wait_for_watches(&self, resource: Resource, count: usize) -> Result<()> {
        let patience = Duration::from_secs(60);
        self.http
            .wait_until(patience, |http| http.open_watches(resource) == count)
    }
}
