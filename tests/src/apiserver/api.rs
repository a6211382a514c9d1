//! The reading half of an apiserver over one store: get, list, watch.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::StatusCode;
use http::header;
use serde_json::Value;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::timeout_at;

use super::call::Answer;
use super::call::Call;
use super::call::Edit;
use super::call::Verb;
use super::call::status_object;
use super::resource::Resource;
use super::resource::Target;
use super::store::Object;
use super::store::Store;
use super::store::Table;
use super::watch::Watch;

/// Smaller bodies are not compressed; this is the apiserver's own limit.
const GZIP_FROM: usize = 128 * 1024;
/// The apiserver's own compression level.
const GZIP_LEVEL: u32 = 4;
/// For how many clients lists in pages are kept.
const PAGED_LISTS: usize = 8;
/// How many bodies a resource keeps between two of its changes.
const BODIES: usize = 8;

/// The server's behaviour without a script.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The time between two bookmarks of a watch that allows them.
    pub bookmark_every: Duration,
    /// How long a request for a future version waits for it.
    pub future_wait: Duration,
    /// Whether a watch from a future version gets no events until that version comes, instead of an error.
    pub is_future_watch_silent: bool,
    /// A cluster with a past: the first objects come after this version, and everything before it is forgotten. `None`:
    /// a new cluster.
    pub first_version: Option<u64>,
    /// How many changes of a resource watches can go back.
    pub history: usize,
    /// Whether `sendInitialEvents` is known.
    pub has_watch_list: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bookmark_every: Duration::from_secs(60),
            future_wait: Duration::from_secs(3),
            is_future_watch_silent: false,
            first_version: None,
            history: 10_000,
            has_watch_list: true,
        }
    }
}

/// A list of which a client has seen only a part.
#[derive(Debug)]
struct PagedList {
    resource: Resource,
    version: u64,
    items: Arc<[Arc<Object>]>,
}

/// A store that answers requests.
#[derive(Debug)]
pub(super) struct Api {
    store: Mutex<Store>,
    paged: Mutex<VecDeque<PagedList>>,
    changed: watch::Sender<()>,
    pub(super) settings: Settings,
}

impl Api {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            store: Mutex::new(Store::new(settings.history)),
            paged: Mutex::default(),
            changed: watch::Sender::new(()),
            settings,
        }
    }

    /// Read-only. Changes are made in [`Api::change`], which wakes the watches.
    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let result = change(&mut self.store());
        self.changed.send_replace(());
        result
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) async fn respond(self: &Arc<Self>, call: &Call) -> Answer {
        let Some(target) = &call.target else {
            return self.other(call);
        };
        if !self.is_served(target) {
            let unnamed = Target {
                name: None,
                ..target.clone()
            };
            return Answer::not_found(&unnamed);
        }
        let result = match call.verb {
            Verb::Get => Ok(self.get(target)),
            Verb::List => self.list(call, target).await,
            Verb::Watch => self.watch(call, target).await,
            Verb::Other => Err(Answer::status(
                StatusCode::METHOD_NOT_ALLOWED,
                "the server does not allow this method on the requested resource",
            )),
        };
        result.unwrap_or_else(|refusal| refusal)
    }

    fn is_served(&self, target: &Target) -> bool {
        let store = self.store();
        let versions = &store.table(target.resource).versions;
        versions.contains(&target.version)
    }

    /// Answers requests that are not about objects.
    fn other(&self, call: &Call) -> Answer {
        let parts: Vec<&str> = call.path.trim_matches('/').split('/').collect();
        match parts.as_slice() {
            ["healthz" | "livez" | "readyz", ..] => Answer::text("ok"),
            ["version"] => Answer::json(
                json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0"}).to_string(),
            ),
            ["api", version] => self.resources("", version),
            ["apis", group, version] => self.resources(group, version),
            _ => {
                let message = "the server could not find the requested resource";
                Answer::status(StatusCode::NOT_FOUND, message)
            }
        }
    }

    fn resources(&self, group: &str, version: &str) -> Answer {
        let store = self.store();
        let served = Resource::ALL.into_iter().filter(|resource| {
            resource.shape().group == group && store.table(*resource).versions.contains(&version)
        });
        let resources: Vec<_> = served
            .map(|resource| {
                json!({
                    "name": resource.plural(),
                    "singularName": resource.kind().to_lowercase(),
                    "namespaced": resource.shape().is_namespaced,
                    "kind": resource.kind(),
                    "verbs": ["get", "list", "watch"],
                })
            })
            .collect();
        if resources.is_empty() {
            let message = "the server could not find the requested resource";
            return Answer::status(StatusCode::NOT_FOUND, message);
        }
        let group_version = match group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        };
        let list = json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group_version,
            "resources": resources,
        });
        Answer::json(list.to_string())
    }

    fn get(&self, target: &Target) -> Answer {
        let store = self.store();
        let key = (
            target.namespace.clone().unwrap_or_default(),
            target.name.clone().unwrap_or_default(),
        );
        match store.table(target.resource).objects.get(&key) {
            Some(object) => Answer::json(object.typed(target.resource, target.version)),
            None => Answer::not_found(target),
        }
    }

    /// Waits until a version has come, or refuses like the apiserver.
    async fn reach(&self, version: u64) -> Result<(), Answer> {
        let mut changes = self.changes();
        let deadline = Instant::now() + self.settings.future_wait;
        loop {
            changes.borrow_and_update();
            let current = self.store().version;
            if version <= current {
                return Ok(());
            }
            if timeout_at(deadline, changes.changed()).await.is_err() {
                let message = format!("Too large resource version: {version}, current: {current}");
                let status = Answer::status(StatusCode::GATEWAY_TIMEOUT, &message);
                return Err(status.with(header::RETRY_AFTER, "1"));
            }
        }
    }

    async fn list(&self, call: &Call, target: &Target) -> Result<Answer, Answer> {
        let filter = call.filter(target)?;
        let asked = call.version()?;
        if let Some(version) = asked {
            self.reach(version).await?;
        }
        let limit = match call.parameter("limit").parse() {
            // The watch cache has no pages.
            Ok(limit) if limit > 0 && asked != Some(0) => Some(limit),
            _ => None,
        };
        if !call.parameter("continue").is_empty() {
            let page = self.next_page(call.parameter("continue"), target, limit);
            return Ok(encode(call, page?.into()));
        }
        let mut store = self.store();
        let newest = store.version;
        let table = store.table_mut(target.resource);
        if call.parameter("resourceVersionMatch") == "Exact" && asked < Some(table.version) {
            return Err(expired());
        }
        if let Some(edit) = call.edit {
            return Ok(Answer::json(edited_list(table, target, &filter, edit)));
        }
        // The watch cache knows the changes of its resource; a list that must be new knows all changes.
        let version = match asked {
            Some(0) => table.version,
            _ => newest,
        };
        if let Some(limit) = limit {
            let items = table.objects.values().filter(|o| o.is_in(&filter));
            let items: Arc<[_]> = items.cloned().collect();
            if items.len() > limit {
                drop(store);
                let list = PagedList {
                    resource: target.resource,
                    version,
                    items,
                };
                return Ok(encode(call, self.first_page(list, target, limit).into()));
            }
        }
        let is_gzip = call.wants_gzip();
        let key = format!(
            "{} {:?} {:?} {:?} {version}",
            target.version,
            target.namespace,
            call.parameter("labelSelector"),
            call.parameter("fieldSelector")
        );
        let plain = match table.bodies.get(&key) {
            Some(body) => body.clone(),
            None => {
                if table.bodies.len() >= BODIES {
                    table.bodies.clear();
                }
                let items = table.objects.values().filter(|o| o.is_in(&filter));
                let body: Bytes = list_body(target, items, version, "").into();
                table.bodies.insert(key.clone(), body.clone());
                body
            }
        };
        if call.wants_metadata() {
            return Ok(encode(call, plain));
        }
        if !is_gzip || plain.len() <= GZIP_FROM {
            return Ok(Answer::json(plain));
        }
        let packed = table
            .bodies
            .entry(format!("gzip {key}"))
            .or_insert_with(|| gzip(&plain).into());
        Ok(Answer::json(packed.clone()).with(header::CONTENT_ENCODING, "gzip"))
    }

    fn first_page(&self, list: PagedList, target: &Target, limit: usize) -> Vec<u8> {
        let token = format!("{}:{limit}", list.version);
        let rest = list.items.len() - limit;
        let body = page_body(target, &list.items[..limit], list.version, &token, rest);
        let mut paged = self.paged.lock().unwrap_or_else(PoisonError::into_inner);
        paged.push_back(list);
        if paged.len() > PAGED_LISTS {
            paged.pop_front();
        }
        body
    }

    fn next_page(
        &self,
        token: &str,
        target: &Target,
        limit: Option<usize>,
    ) -> Result<Vec<u8>, Answer> {
        let invalid = || Answer::status(StatusCode::BAD_REQUEST, "continue key is not valid");
        let (version, start) = token.split_once(':').ok_or_else(invalid)?;
        let version: u64 = version.parse().map_err(|_error| invalid())?;
        let start: usize = start.parse().map_err(|_error| invalid())?;
        if version < self.store().table(target.resource).oldest {
            return Err(expired());
        }
        let paged = self.paged.lock().unwrap_or_else(PoisonError::into_inner);
        let list = paged
            .iter()
            .find(|list| list.resource == target.resource && list.version == version)
            .ok_or_else(expired)?;
        let rest = list.items.get(start..).ok_or_else(invalid)?;
        let length = limit.unwrap_or(rest.len()).min(rest.len());
        let left = rest.len() - length;
        let token = match left {
            0 => String::new(),
            _ => format!("{version}:{}", start + length),
        };
        Ok(page_body(target, &rest[..length], version, &token, left))
    }

    async fn watch(self: &Arc<Self>, call: &Call, target: &Target) -> Result<Answer, Answer> {
        let filter = call.filter(target)?;
        let asked = call.version()?;
        let sends_initial = call.is_set("sendInitialEvents");
        if sends_initial && !self.settings.has_watch_list {
            let message =
                "sendInitialEvents: Forbidden: unless the WatchList feature gate is enabled";
            return Err(Answer::status(StatusCode::UNPROCESSABLE_ENTITY, message));
        }
        if let Some(version) = asked
            && !self.settings.is_future_watch_silent
        {
            self.reach(version).await?;
        }
        let watch = Watch::open(Arc::clone(self), target, filter, call, asked, sends_initial);
        Ok(Answer::stream(watch.into_frames()))
    }

    /// Makes the body of the list that a client without selectors asks for first, so that this client does not wait for
    /// it.
    pub(super) async fn prepare(self: &Arc<Self>, resource: Resource) {
        let uri = format!("{}?resourceVersion=0", resource.path());
        let request = http::Request::get(uri).header(header::ACCEPT_ENCODING, "gzip");
        if let Ok(request) = request.body(()) {
            self.respond(&Call::new(&request.into_parts().0)).await;
        }
    }
}

fn expired() -> Answer {
    let message = "The provided continue parameter is too old to display a consistent list result";
    Answer::status(StatusCode::GONE, message)
}

/// The event with which a watch from a version that is too old begins and ends.
pub(super) fn expired_line(asked: u64, oldest: u64) -> Bytes {
    let message = format!("too old resource version: {asked} ({oldest})");
    let line = json!({"type": "ERROR", "object": status_object(StatusCode::GONE, &message)});
    format!("{line}\n").into()
}

fn edited_list(
    table: &Table,
    target: &Target,
    filter: &super::selector::Filter,
    edit: Edit,
) -> Vec<u8> {
    let (count, version) = match edit {
        Edit::Items(count) => (count, table.version),
        Edit::Version(version) => (usize::MAX, version),
    };
    let items = table.objects.values().filter(|o| o.is_in(filter));
    list_body(target, items.take(count), version, "")
}

fn page_body(
    target: &Target,
    items: &[Arc<Object>],
    version: u64,
    token: &str,
    rest: usize,
) -> Vec<u8> {
    let mut more = String::new();
    if rest > 0 {
        let _ = write!(more, r#","continue":"{token}","remainingItemCount":{rest}"#);
    }
    list_body(target, items.iter(), version, &more)
}

/// A list. Two encoders write built-in kinds and custom resources: the first one puts the version first and leaves kind
/// and apiVersion out of items, the second one puts it last and includes them.
pub(super) fn list_body<'a>(
    target: &Target,
    items: impl Iterator<Item = &'a Arc<Object>>,
    version: u64,
    more: &str,
) -> Vec<u8> {
    let kind = target.resource.kind();
    let api_version = target.resource.api_version(target.version);
    let is_custom = target.resource.shape().is_custom;
    let mut body = if is_custom {
        format!(r#"{{"apiVersion":"{api_version}","items":["#)
    } else {
        format!(
            r#"{{"kind":"{kind}List","apiVersion":"{api_version}","metadata":{{"resourceVersion":"{version}"{more}}},"items":["#
        )
    }
    .into_bytes();
    for (index, item) in items.enumerate() {
        if index > 0 {
            body.push(b',');
        }
        if is_custom {
            body.extend(item.typed(target.resource, target.version));
        } else {
            body.extend_from_slice(&item.json);
        }
    }
    let end = if is_custom {
        // All members that it can have, in alphabetical order.
        let more = if more.is_empty() {
            r#""continue":"""#
        } else {
            &more[1..]
        };
        format!(r#"],"kind":"{kind}List","metadata":{{{more},"resourceVersion":"{version}"}}}}"#)
    } else {
        "]}".to_owned()
    };
    body.extend_from_slice(end.as_bytes());
    body.push(b'\n');
    body
}

fn encode(call: &Call, body: Bytes) -> Answer {
    let body = match call.wants_metadata() {
        true => metadata_only(&body),
        false => body,
    };
    if call.wants_gzip() && body.len() > GZIP_FROM {
        return Answer::json(gzip(&body)).with(header::CONTENT_ENCODING, "gzip");
    }
    Answer::json(body)
}

/// A list of the same objects, with their metadata alone.
fn metadata_only(list: &[u8]) -> Bytes {
    // It was made here, from objects that were parsed.
    let mut list: Value = serde_json::from_slice(list).unwrap_or_default();
    list["kind"] = json!("PartialObjectMetadataList");
    list["apiVersion"] = json!("meta.k8s.io/v1");
    for item in list["items"].as_array_mut().into_iter().flatten() {
        *item = json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": item["metadata"],
        });
    }
    list.to_string().into()
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(GZIP_LEVEL));
    // Writing to memory cannot fail.
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default()
}
