//! The task of one resource: sends the requests that [`super::follow`] decides on, and hands the answers over as bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, RETRY_AFTER, USER_AGENT};
use http::{Request as HttpRequest, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::body::{BodyError, Inflate, LineScanner, ListEnd, ListScanner, WatchEvent, watch_event};
use super::connection::{Connection, Loss, Told};
use super::extent::Extent;
use super::failure::RequestError;
use super::follow::{Failure, Follower, Request};
use super::received::Counters;
use super::resource::{Resource, Shape};
use super::wire::Wire;
use crate::error::chain;
use crate::source::decode::OtherObject;

/// The media type of whole objects.
const OBJECTS: &str = "application/json";
/// What every object has, for a list of which only its own version counts: a Node, or a slice of a hundred endpoints,
/// is 30 KB. A server that knows no such lists sends the whole object.
const METADATA: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
/// Bytes that are taken apart at a time: a piece of a compressed list becomes twenty times as large.
const PIECE_BYTES: usize = 4096;
/// Bytes of one resource that may wait for the loop; at least one object may. Other news waits behind them, and they
/// take memory.
pub(super) const WAITING_BYTES: usize = 1 << 20;
/// The time from the request to the headers of the answer; a large list over a slow link begins late.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Most bytes that are read of an answer that gives the reason of a failure.
const EXPLANATION_BYTES: usize = 64 << 10;
const EXPLANATION_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest silence between two pieces of a list.
const LIST_SILENCE: Duration = Duration::from_secs(30);
/// The longest silence between two pieces of a watch. An apiserver sends a bookmark every minute, so a longer silence
/// means a server that hangs (a dead connection shows sooner), or a hub without its cloud. Another request costs a few
/// hundred bytes.
const WATCH_SILENCE: Duration = Duration::from_secs(150);
/// The time between two reads of the Pods that YurtHub lists itself; it is shorter when a reader asks.
const PODS_INTERVAL: Duration = Duration::from_secs(60);
/// YurtHub may start later than the agent. If this many tries, [`PODS_RETRY`] apart, get no answer, YurtHub lists no
/// Pods.
const PODS_TRIES: u32 = 6;
const PODS_RETRY: Duration = Duration::from_secs(5);
/// How long one watch lives; spread, so that a fleet does not come back in one moment.
const WATCH_SECONDS: std::ops::Range<u64> = 300..600;

/// What a task sends to the source.
pub(super) struct Update {
    pub(super) resource: Resource,
    /// The generation of the resource's task: a replaced task may have left something behind.
    pub(super) generation: u64,
    pub(super) news: News,
    /// The message's share of [`WAITING_BYTES`].
    pub(super) room: OwnedSemaphorePermit,
}

/// A message of a task.
pub(super) enum News {
    /// The next items of a list.
    Items {
        api_version: &'static str,
        items: Vec<Bytes>,
    },
    /// The list is whole. Answered with whether it is held back, or why it is no list of what was asked for.
    Listed {
        version: String,
        is_held: oneshot::Sender<Result<bool, OtherObject>>,
    },
    /// A watch goes on where the last answer was. Answered with whether that is enough.
    Watching {
        is_enough: oneshot::Sender<bool>,
    },
    Put {
        api_version: &'static str,
        object: Bytes,
        version: String,
    },
    Delete {
        object: Bytes,
        version: String,
    },
    Bookmark {
        version: String,
    },
    /// A watch has ended in the usual way. What follows is on its way.
    Ended,
    Failed {
        why: String,
        is_list: bool,
        failure: Failure,
    },
}

impl News {
    /// How large its objects are.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Items { items, .. } => items.iter().map(Bytes::len).sum(),
            Self::Put { object, .. } | Self::Delete { object, .. } => object.len(),
            Self::Listed { .. }
            | Self::Watching { .. }
            | Self::Bookmark { .. }
            | Self::Ended
            | Self::Failed { .. } => 0,
        }
    }
}

/// Follows one resource until it is dropped.
pub(super) struct Task {
    pub(super) generation: u64,
    pub(super) follower: Follower,
    pub(super) shape: Shape,
    pub(super) connection: Arc<Connection>,
    /// The connection of the last request.
    pub(super) wire: Option<Wire>,
    /// The server at its other end is not behind what is known: see [`Task::compare`].
    pub(super) is_compared: bool,
    pub(super) told: Told,
    pub(super) sender: mpsc::Sender<Update>,
    /// The bytes that may still wait, of [`WAITING_BYTES`].
    pub(super) room: Arc<Semaphore>,
    pub(super) counters: Arc<Counters>,
    /// For Pods: a reader cannot wait for [`PODS_INTERVAL`].
    pub(super) is_asked_for: Arc<Notify>,
}

impl Task {
    /// Runs the task; never ends by itself.
    pub(super) async fn run(mut self) {
        if self.shape.resource == Resource::Pods && self.poll_pods().await.is_err() {
            return;
        }
        loop {
            let request = self.follower.next().clone();
            let started = Instant::now();
            let wait = match self.attempt(&request).await {
                Ok(()) if request.is_list() => self.follower.goes_on(),
                Ok(()) => {
                    if self.tell(News::Ended).await.is_err() {
                        return;
                    }
                    self.follower.ended(started.elapsed())
                }
                Err(RequestError::Gone) => return,
                Err(error) => {
                    if error.is_silence() {
                        self.connection.is_silent(self.shape.resource);
                    }
                    // A certificate that is not accepted any more goes with its connection.
                    let is_usable = matches!(&error, RequestError::Status { status, .. } if *status != StatusCode::UNAUTHORIZED);
                    if !is_usable {
                        self.wire = None;
                    }
                    let failure = error.failure();
                    let wait = self.follower.failed(failure);
                    let is_normal = match failure {
                        Failure::Expired | Failure::Silence => !request.is_list(),
                        // Another version of the API is requested first.
                        Failure::Status(404, _) => self.follower.api_version() != 0,
                        _ => false,
                    };
                    let news = match is_normal {
                        true => News::Ended,
                        false => News::Failed {
                            why: chain(&error),
                            is_list: request.is_list(),
                            failure,
                        },
                    };
                    if self.tell(news).await.is_err() {
                        return;
                    }
                    wait
                }
            };
            self.rest(wait).await;
        }
    }

    /// One request and its whole answer, unless all connections are taken for dead meanwhile, or the version that the
    /// watch began from is lost.
    async fn attempt(&mut self, request: &Request) -> Result<(), RequestError> {
        let mut told = self.told.clone();
        let asking: BoxFuture<'_, _> = match request {
            Request::List { is_latest } => self.list(*is_latest).boxed(),
            Request::Watch { version, limit } => self.watch(version, *limit).boxed(),
        };
        let result = tokio::select! {
            result = asking => result,
            loss = told.loss(!request.is_list()) => Err(match loss {
                Loss::Connections => RequestError::Dead,
                Loss::Versions => RequestError::Rewound,
            }),
        };
        match result {
            Err(RequestError::Dead) => self.told.has_died(),
            Err(RequestError::Rewound) => self.told.is_current(),
            _ => {}
        }
        result
    }

    /// Waits; ends at once if there is news of the server or of the network since the connection was made.
    async fn rest(&mut self, wait: Duration) {
        if wait.is_zero() {
            return;
        }
        tokio::select! {
            is_death = self.told.news() => {
                if is_death {
                    self.wire = None;
                }
                self.follower.reconnected();
            }
            () = sleep(wait.mul_f64(0.75 + fastrand::f64() / 2.0)) => {}
        }
    }

    /// Reads the list that YurtHub keeps of this node's Pods again and again: it costs the uplink nothing. Returns if
    /// there is no such list; the only error is that the source has gone.
    async fn poll_pods(&self) -> Result<(), RequestError> {
        let mut failures = 0;
        let mut has_worked = false;
        while self.connection.lists_pods() {
            match self.list_pods().await {
                Ok(()) => {
                    (failures, has_worked) = (0, true);
                    // No event reports that it has changed.
                    let _elapsed = timeout(PODS_INTERVAL, self.is_asked_for.notified()).await;
                }
                Err(RequestError::Gone) => return Err(RequestError::Gone),
                Err(error) => {
                    failures += 1;
                    let is_there = has_worked || !matches!(error, RequestError::Status { .. });
                    if !is_there || (failures >= PODS_TRIES && !has_worked) {
                        tracing::debug!(error = chain(&error), "YurtHub lists no Pods");
                        return Ok(());
                    }
                    let why = format!("YurtHub's list of Pods: {}", chain(&error));
                    let news = News::Failed {
                        why,
                        is_list: true,
                        failure: error.failure(),
                    };
                    self.tell(news).await?;
                    sleep(PODS_RETRY).await;
                }
            }
        }
        Ok(())
    }

    async fn list_pods(&self) -> Result<(), RequestError> {
        count(&self.counters.lists, 1);
        let mut wire = self.connection.open_pods().await?;
        let response = send(&mut wire, "/pods", OBJECTS, "gzip").await?;
        let response = ok(&wire, response).await?;
        let mut extent = Extent::of(self.shape.resource);
        self.items(response, Some(self.api_version()), &mut extent)
            .await?;
        self.tell_listed(String::new()).await?;
        Ok(())
    }

    fn api_version(&self) -> &'static str {
        let versions = self.shape.resource.api_versions();
        versions.get(self.follower.api_version()).unwrap_or(&"")
    }

    async fn list(&mut self, is_latest: bool) -> Result<(), RequestError> {
        let api_version = self.api_version();
        let mut extent = Extent::of(self.shape.resource);
        let mut page: Option<String> = None;
        let version = loop {
            let uri = match page.as_deref() {
                Some(token) => self.shape.page(api_version, token),
                None => self.shape.list(api_version, is_latest),
            };
            count(&self.counters.lists, 1);
            let response = self.get(&uri, OBJECTS, "gzip").await?;
            let end = self.items(response, Some(api_version), &mut extent).await?;
            let Some(next) = end.next_page else {
                break end.version;
            };
            extent.page(&next)?;
            page = Some(next);
        };
        let is_held = self.tell_listed(version.clone()).await?;
        self.follower.listed(version, is_held);
        self.is_compared = true;
        self.told.is_current();
        Ok(())
    }

    /// Hands over the items of a list, or of a page of it, if they are wanted as items of an API version.
    async fn items(
        &self,
        response: Response<Incoming>,
        wanted: Option<&'static str>,
        extent: &mut Extent,
    ) -> Result<ListEnd, RequestError> {
        let is_gzip = response
            .headers()
            .get(CONTENT_ENCODING)
            .is_some_and(|encoding| encoding == "gzip");
        let mut inflate = Inflate::new(is_gzip);
        let mut scanner = ListScanner::default();
        let mut body = response.into_body();
        while let Some(chunk) = self.chunk(&mut body, LIST_SILENCE).await? {
            for piece in chunk.chunks(PIECE_BYTES) {
                let mut items = Vec::new();
                inflate.push(piece, |bytes| {
                    scanner.push(bytes, |item| items.push(Bytes::copy_from_slice(item)))
                })?;
                self.tell_items(wanted, items, extent).await?;
            }
        }
        let mut items = Vec::new();
        inflate
            .finish(|bytes| scanner.push(bytes, |item| items.push(Bytes::copy_from_slice(item))))?;
        self.tell_items(wanted, items, extent).await?;
        let end = scanner.finish()?;
        match wanted {
            Some(_) => Ok(end.of_kind(self.shape.resource.kind().name())?),
            // Only the server's version was requested: metadata may have a kind of its own.
            None => Ok(end),
        }
    }

    /// The items that were handed over are a whole list; returns whether it is held back.
    async fn tell_listed(&self, version: String) -> Result<bool, RequestError> {
        let (is_held, answer) = oneshot::channel();
        self.tell(News::Listed { version, is_held }).await?;
        let answer = answer.await.map_err(|_closed| RequestError::Gone)?;
        answer.map_err(|other| BodyError::from(other).into())
    }

    /// A watch was accepted; an error if what was missed is to be listed all the same.
    async fn tell_watching(&self) -> Result<(), RequestError> {
        let (is_enough, answer) = oneshot::channel();
        self.tell(News::Watching { is_enough }).await?;
        match answer.await.map_err(|_closed| RequestError::Gone)? {
            true => Ok(()),
            false => Err(RequestError::Expired {
                message: "another source was believed meanwhile".to_owned(),
            }),
        }
    }

    async fn watch(&mut self, version: &str, limit: Option<Duration>) -> Result<(), RequestError> {
        let api_version = self.api_version();
        let seconds = match limit {
            Some(limit) => limit.as_secs(),
            None => fastrand::u64(WATCH_SECONDS),
        };
        let uri = self.shape.watch(api_version, version, seconds);
        count(&self.counters.watches, 1);
        // The task does not wait for a server that does not end the watch in time.
        let end = Instant::now() + Duration::from_secs(seconds + 15);
        let mut has_compared = false;
        let response = loop {
            if self.is_doubted() && !has_compared {
                self.compare(version).await?;
                has_compared = true;
            }
            let response = self.get(&uri, OBJECTS, "identity").await?;
            // A connection that was lost just now does not lead to the server that was compared, so that is asked once
            // more. But once only: some servers close each connection after its answer, as an apiserver does while it
            // shuts down.
            if has_compared || !self.is_doubted() {
                break response;
            }
            self.wire = None;
        };
        self.tell_watching().await?;
        let kind = self.shape.resource.kind().name();
        let mut lines = LineScanner::default();
        let mut body = response.into_body();
        loop {
            let chunk = match timeout_at(end, self.chunk(&mut body, WATCH_SILENCE)).await {
                Ok(chunk) => chunk?,
                Err(_elapsed) => None,
            };
            let Some(chunk) = chunk else { return Ok(()) };
            let mut news = Vec::new();
            let mut failed = None;
            lines.push(&chunk, |line| -> Result<(), BodyError> {
                if failed.is_some() || line.trim_ascii().is_empty() {
                    return Ok(());
                }
                match watch_event(line, kind, api_version)? {
                    WatchEvent::Put { object, version } => news.push(News::Put {
                        api_version,
                        object: Bytes::copy_from_slice(object),
                        version,
                    }),
                    WatchEvent::Delete { object, version } => news.push(News::Delete {
                        object: Bytes::copy_from_slice(object),
                        version,
                    }),
                    WatchEvent::Bookmark { version } => news.push(News::Bookmark { version }),
                    WatchEvent::Error { code: 410, message } => {
                        failed = Some(RequestError::Expired { message });
                    }
                    WatchEvent::Error { code, message } => {
                        failed = Some(RequestError::Watch { code, message });
                    }
                    WatchEvent::Unknown { kind } => {
                        tracing::debug!(kind, "an event of this type is not known: ignored");
                    }
                }
                Ok(())
            })?;
            for event in news {
                let version = match &event {
                    News::Put { version, .. }
                    | News::Delete { version, .. }
                    | News::Bookmark { version } => version.clone(),
                    _ => String::new(),
                };
                if !matches!(event, News::Bookmark { .. }) {
                    count(&self.counters.objects, 1);
                    count(&self.counters.events, 1);
                }
                self.tell(event).await?;
                // Not before: this may end at any await, and the event would be missed.
                self.follower.advanced(version);
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
    }

    /// Whether the server of a connection may be behind what is known.
    fn is_doubted(&self) -> bool {
        let is_new = !self.is_compared || self.wire.as_ref().is_none_or(|wire| !wire.is_open());
        is_new && self.shape.resource.is_cheap_to_probe() && !self.follower.is_cache()
    }

    /// Asks a new server for its version. A watch from a version that is yet to come gets no events until it has come
    /// (kubernetes pkg/storage/cacher), and an apiserver whose etcd was restored from a backup, or has lost its last
    /// writes, gives the same versions once more. Versions are compared as numbers, which apiservers promise to be
    /// possible (KEP-5504).
    async fn compare(&mut self, version: &str) -> Result<(), RequestError> {
        let uri = self.shape.probe(self.api_version());
        let response = self.get(&uri, METADATA, "gzip").await?;
        let mut extent = Extent::of(self.shape.resource);
        let now = self.items(response, None, &mut extent).await?.version;
        self.is_compared = true;
        let is_behind = match (now.parse::<u64>(), version.parse::<u64>()) {
            (Ok(now), Ok(known)) => now < known,
            _ => false,
        };
        if !is_behind {
            return Ok(());
        }
        tracing::warn!(
            resource = %self.shape.resource,
            known = version,
            now,
            "source: the apiserver's versions have gone back, as after a restore of its etcd: all of it is listed anew"
        );
        self.connection.has_rewound();
        Err(RequestError::Rewound)
    }

    async fn get(
        &mut self,
        uri: &str,
        accept: &str,
        encoding: &str,
    ) -> Result<Response<Incoming>, RequestError> {
        // The server may have closed the connections that were open: that says nothing about the next one.
        if let Some(mut wire) = self.wire.take().filter(Wire::is_open)
            && let Ok(response) = send(&mut wire, uri, accept, encoding).await
        {
            return ok(self.wire.insert(wire), response).await;
        }
        self.is_compared = false;
        let mut wire = self.connection.open(self.shape.resource).await?;
        self.told.is_heard();
        let response = send(&mut wire, uri, accept, encoding).await?;
        ok(self.wire.insert(wire), response).await
    }

    /// The next piece of a body; `None` at its end.
    async fn chunk(
        &self,
        body: &mut Incoming,
        silence: Duration,
    ) -> Result<Option<Bytes>, RequestError> {
        loop {
            let frame = timeout(silence, body.frame())
                .await
                .map_err(|_elapsed| RequestError::Silence(silence))?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(RequestError::Broken)?;
            if let Ok(data) = frame.into_data() {
                count(
                    &self.counters.bytes,
                    u64::try_from(data.len()).unwrap_or_default(),
                );
                return Ok(Some(data));
            }
        }
    }

    async fn tell_items(
        &self,
        wanted: Option<&'static str>,
        items: Vec<Bytes>,
        extent: &mut Extent,
    ) -> Result<(), RequestError> {
        items
            .iter()
            .try_for_each(|item| extent.object(item.len()))?;
        let Some(api_version) = wanted.filter(|_| !items.is_empty()) else {
            return Ok(());
        };
        count(
            &self.counters.objects,
            u64::try_from(items.len()).unwrap_or_default(),
        );
        self.tell(News::Items { api_version, items }).await
    }

    async fn tell(&self, news: News) -> Result<(), RequestError> {
        let bytes = news.bytes().min(WAITING_BYTES);
        let room = Arc::clone(&self.room);
        let room = room.acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX));
        let update = Update {
            resource: self.shape.resource,
            generation: self.generation,
            news,
            room: room.await.map_err(|_closed| RequestError::Gone)?,
        };
        let sent = self.sender.send(update).await;
        sent.map_err(|_closed| RequestError::Gone)
    }
}

async fn send(
    wire: &mut Wire,
    uri: &str,
    accept: &str,
    encoding: &str,
) -> Result<Response<Incoming>, RequestError> {
    let request = HttpRequest::get(uri)
        .header(ACCEPT, accept)
        .header(ACCEPT_ENCODING, encoding)
        .header(USER_AGENT, concat!("yurt-net/", env!("CARGO_PKG_VERSION")))
        .body(())
        .map_err(|error| RequestError::Send(error.into()))?;
    timeout(ANSWER_TIMEOUT, wire.send(request))
        .await
        .map_err(|_elapsed| RequestError::Silence(ANSWER_TIMEOUT))?
        .map_err(RequestError::Send)
}

/// Accepts only a whole answer (status 200).
async fn ok(wire: &Wire, response: Response<Incoming>) -> Result<Response<Incoming>, RequestError> {
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(response);
    }
    let retry_after = response.headers().get(RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    // Read to its end, so that the connection can be used again.
    let rest = Limited::new(response.into_body(), EXPLANATION_BYTES);
    let _explanation = timeout(EXPLANATION_TIMEOUT, rest.collect()).await;
    Err(RequestError::Status {
        status,
        retry_after: retry_after.map(Duration::from_secs),
        is_anonymous: wire.keeps_credentials_back(),
    })
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
