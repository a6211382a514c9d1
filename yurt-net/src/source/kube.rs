//! `kube:` and `yurthub:`: the cluster as an apiserver tells it, live or from YurtHub's cache.
//!
//! One task for each resource asks and listens ([`follow`] says what for); it hands items and events over as bytes, so
//! that nothing is decoded twice and a list is never in memory whole. [`KubeSource`] decodes them into [`state`].
//!
//! The only user of kube-rs: its configuration, credentials and TLS are used, its objects and caches are not, because
//! they keep many times what is needed here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, RETRY_AFTER, USER_AGENT};
use http::{Request as HttpRequest, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::agent::chain;
use crate::model::Snapshot;

mod body;
mod follow;
mod resource;
mod state;

use body::{BodyError, Inflate, LineScanner, ListScanner, WatchEvent};
use follow::{Failure, Follower, Request};
use resource::Shape;
use state::{ClusterState, Listed};

pub use resource::Resource;
pub use state::HeldList;

/// Where YurtHub listens (openyurt cmd/yurthub/app/options): on loopback, and on its dummy interface.
const YURTHUB: [&str; 2] = ["http://127.0.0.1:10261", "http://169.254.2.1:10261"];
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From the request to the headers of the answer; a large list over a slow link begins late.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two pieces of a list.
const LIST_SILENCE: Duration = Duration::from_secs(30);
/// Between two pieces of a watch: an apiserver sends a bookmark every minute, so a longer silence is a dead
/// connection, or a hub without its cloud. To ask again costs a few hundred bytes.
const WATCH_SILENCE: Duration = Duration::from_secs(150);
/// How long one watch lives; spread, so that a fleet does not come back in one moment.
const WATCH_SECONDS: std::ops::Range<u64> = 300..600;
/// What is optional is not waited for longer than this once Services and slices are here.
const OPTIONAL_PATIENCE: Duration = Duration::from_secs(3);
/// A source that cannot be configured (no kubeconfig yet) is tried again after this long.
const CONFIG_RETRY: Duration = Duration::from_secs(10);
/// Events taken up in one go.
const BATCH: usize = 1024;

/// Where the API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Api {
    /// `kube:`: $KUBECONFIG, ~/.kube/config, or the ServiceAccount of a Pod.
    Inferred,
    /// `kube:URL`: an apiserver, with the ServiceAccount's token where there is one.
    Server(Uri),
    /// `yurthub:` or `yurthub:URL`.
    Hub(Option<Uri>),
}

impl Api {
    fn is_cache(&self) -> bool {
        matches!(self, Self::Hub(_))
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Name of the own Node.
    pub node: String,
    /// `--nodepool`.
    pub pool: Option<String>,
    /// Label of a Node that names its pool.
    pub pool_label: String,
}

/// What was received of one resource since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Bytes of bodies, as they came over the wire.
    pub bytes: u64,
    /// Objects in lists and events.
    pub objects: u64,
    /// Requests for a list.
    pub lists: u64,
    /// Requests for a watch.
    pub watches: u64,
}

#[derive(Debug, Default)]
struct Counters {
    bytes: AtomicU64,
    objects: AtomicU64,
    lists: AtomicU64,
    watches: AtomicU64,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
enum ClientError {
    #[error("no kubeconfig can be used ({kubeconfig}) and no ServiceAccount ({in_cluster})")]
    Infer {
        kubeconfig: String,
        in_cluster: String,
    },
    #[error("configuring the client for {url}")]
    Build {
        url: String,
        #[source]
        source: Box<kube::Error>,
    },
}

/// The source `kube:` or `yurthub:`.
pub struct KubeSource {
    api: Api,
    scope: Scope,
    state: ClusterState,
    started: Instant,
    /// Services and slices are here since.
    required_since: Option<Instant>,
    is_synced: bool,
    pool: Option<String>,
    connection: Option<Arc<Connection>>,
    next_attempt: Instant,
    config_error: Option<String>,
    /// The task of each resource, and its generation.
    tasks: BTreeMap<Resource, (u64, JoinSet<()>)>,
    generation: u64,
    sender: mpsc::Sender<Update>,
    updates: mpsc::Receiver<Update>,
    counters: BTreeMap<Resource, Arc<Counters>>,
    last_contact: Option<Instant>,
}

/// From a task to the source.
struct Update {
    resource: Resource,
    /// Which of the resource's tasks it is from: a replaced one may have left something behind.
    generation: u64,
    news: News,
}

enum News {
    /// The next items of a list.
    Items {
        api_version: &'static str,
        items: Vec<Bytes>,
    },
    /// The list is whole. Answered with whether it is held back.
    Listed {
        version: String,
        is_held: oneshot::Sender<bool>,
    },
    Watching,
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
    Failed {
        why: String,
        is_list: bool,
    },
}

impl KubeSource {
    /// A source that has asked nothing yet. `seed` and `versions` are what an earlier agent knew from the same source.
    pub fn new(
        api: Api,
        scope: Scope,
        seed: Snapshot,
        versions: &BTreeMap<String, String>,
    ) -> Self {
        let (sender, updates) = mpsc::channel(64);
        let now = Instant::now();
        Self {
            state: ClusterState::new(seed, versions, api.is_cache()),
            api,
            scope,
            started: now,
            required_since: None,
            is_synced: false,
            pool: None,
            connection: None,
            next_attempt: now,
            config_error: None,
            tasks: BTreeMap::new(),
            generation: 0,
            sender,
            updates,
            counters: Resource::ALL
                .map(|resource| (resource, Arc::default()))
                .into(),
            last_contact: None,
        }
    }

    /// What is known of the cluster. Until [`Self::is_synced`] it is the seed, or a part.
    pub fn snapshot(&self) -> &Snapshot {
        self.state.snapshot()
    }

    /// Everything that a table needs has been read since the start.
    pub fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// What a table needs is being followed at present.
    pub fn answers(&self) -> bool {
        let mut failures = self.state.failures();
        self.connection.is_some() && failures.all(|(resource, _)| !resource.is_required())
    }

    /// Where watches go on, by resource.
    pub fn versions(&self) -> BTreeMap<String, String> {
        self.state.versions()
    }

    /// Lists that are held back.
    pub fn held(&self) -> Vec<HeldList> {
        self.state.held().collect()
    }

    /// The time since the source was last heard of; `None` = never.
    pub fn silence(&self) -> Option<Duration> {
        self.last_contact.map(|at| at.elapsed())
    }

    /// What fails at present, on one line.
    pub fn error(&self) -> Option<String> {
        let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (resource, why) in self.state.failures() {
            by_reason.entry(why).or_default().push(resource.name());
        }
        let reasons = by_reason.iter();
        let reasons = reasons.map(|(why, resources)| format!("{}: {why}", resources.join(", ")));
        let all: Vec<String> = self.config_error.iter().cloned().chain(reasons).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// What was received, by resource.
    pub fn received(&self) -> BTreeMap<&'static str, Received> {
        let counters = self.counters.iter();
        counters
            .map(|(resource, counters)| {
                let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
                let received = Received {
                    bytes: get(&counters.bytes),
                    objects: get(&counters.objects),
                    lists: get(&counters.lists),
                    watches: get(&counters.watches),
                };
                (resource.name(), received)
            })
            .collect()
    }

    /// Waits until the snapshot or what is said about it has changed. Safe to cancel. Must be called inside a tokio
    /// runtime.
    pub async fn changed(&mut self) {
        loop {
            if self.connection.is_none() {
                self.connect().await;
            }
            let deadline = self.deadline();
            let first = tokio::select! {
                update = self.updates.recv() => update,
                () = sleep_until(deadline) => None,
            };
            let mut has_changed = self.state.release(self.started.elapsed());
            let mut update = first;
            for _ in 0..BATCH {
                let Some(taken) = update else { break };
                has_changed |= self.take(taken);
                update = self.updates.try_recv().ok();
            }
            let was_synced = self.is_synced;
            self.follow_pool();
            self.is_synced = self.is_synced || self.is_complete();
            if has_changed || was_synced != self.is_synced {
                return;
            }
        }
    }

    /// When there is something to do even if nothing arrives.
    fn deadline(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let release = self.state.release_at().map(|at| self.started + at);
        let patience = self.required_since.filter(|_| !self.is_synced);
        let patience = patience.map(|since| since + OPTIONAL_PATIENCE);
        let config = self.connection.is_none().then_some(self.next_attempt);
        let all = [release, patience, config];
        all.into_iter().flatten().min().unwrap_or(far)
    }

    fn is_complete(&mut self) -> bool {
        let mut all = Resource::ALL.into_iter();
        if !all.all(|r| !r.is_required() || self.state.is_confirmed(r)) {
            return false;
        }
        let since = *self.required_since.get_or_insert_with(Instant::now);
        let mut all = Resource::ALL.into_iter();
        let is_settled = all.all(|r| self.state.is_settled(r) || !self.tasks.contains_key(&r));
        // The pool's resources are asked for once the Node has said which pool that is.
        is_settled || since.elapsed() >= OPTIONAL_PATIENCE
    }

    async fn connect(&mut self) {
        sleep_until(self.next_attempt).await;
        self.next_attempt = Instant::now() + CONFIG_RETRY;
        match Connection::new(&self.api).await {
            Ok(connection) => {
                self.config_error = None;
                self.connection = Some(Arc::new(connection));
                for resource in Resource::ALL {
                    if !resource.is_of_pool() {
                        self.follow(resource, self.name_of(resource));
                    }
                }
                self.follow_pool();
            }
            Err(error) => {
                let error = chain(&error);
                if self.config_error.as_ref() != Some(&error) {
                    tracing::warn!(error, "source: not configured; trying again");
                }
                self.config_error = Some(error);
            }
        }
    }

    fn name_of(&self, resource: Resource) -> String {
        match resource {
            Resource::Nodes => self.scope.node.clone(),
            _ => String::new(),
        }
    }

    /// Asks for what is of the pool, as soon as it is known which one that is, and again when it is another one.
    fn follow_pool(&mut self) {
        if self.connection.is_none() {
            return;
        }
        let label = || {
            let node = self.state.snapshot().nodes.get(&self.scope.node)?;
            node.labels.get(&self.scope.pool_label).cloned()
        };
        let pool = self.scope.pool.clone().or_else(label);
        let pool = pool.filter(|pool| !pool.is_empty());
        if pool == self.pool || pool.is_none() {
            return;
        }
        let is_first = self.pool.is_none();
        self.pool.clone_from(&pool);
        for resource in Resource::ALL {
            if resource.is_of_pool() {
                if !is_first {
                    self.state.renew(resource);
                }
                self.follow(resource, pool.clone().unwrap_or_default());
            }
        }
    }

    /// Starts the task of a resource, in place of an earlier one.
    fn follow(&mut self, resource: Resource, name: String) {
        let Some(connection) = self.connection.clone() else {
            return;
        };
        let counters = self.counters.entry(resource).or_default().clone();
        self.generation += 1;
        self.state.abandon_list(resource);
        let task = Task {
            generation: self.generation,
            follower: Follower::new(
                self.state.version(resource),
                resource.api_versions().len(),
                resource.is_required(),
            ),
            shape: Shape { resource, name },
            connection,
            sender: self.sender.clone(),
            counters,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(task.run());
        // Dropping the old set ends its task.
        self.tasks.insert(resource, (self.generation, tasks));
    }

    /// Takes up one update; true when that changed the snapshot.
    fn take(&mut self, update: Update) -> bool {
        let Update {
            resource,
            generation,
            news,
        } = update;
        if self
            .tasks
            .get(&resource)
            .is_none_or(|task| task.0 != generation)
        {
            return false;
        }
        if !matches!(news, News::Failed { .. }) {
            self.last_contact = Some(Instant::now());
        }
        let state = &mut self.state;
        match news {
            News::Items { api_version, items } => {
                for item in items {
                    state.item(resource, api_version, &item);
                }
                false
            }
            News::Listed { version, is_held } => {
                let listed = state.listed(resource, &version, self.started.elapsed());
                // The task may have been replaced meanwhile.
                let _gone = is_held.send(listed == Listed::Held);
                match listed {
                    Listed::Used { has_changed } => has_changed,
                    Listed::Held => {
                        for held in state.held() {
                            tracing::warn!(
                                resource = held.resource,
                                have = held.have,
                                offered = held.offered,
                                "source: the cache offers far less than it had; held back until it is confirmed"
                            );
                        }
                        false
                    }
                }
            }
            News::Watching => {
                state.watching(resource);
                false
            }
            News::Put {
                api_version,
                object,
                version,
            } => state.put(resource, api_version, &object, &version),
            News::Delete { object, version } => state.delete(resource, &object, &version),
            News::Bookmark { version } => {
                state.bookmark(resource, &version);
                false
            }
            News::Failed { why, is_list } => {
                if is_list {
                    state.abandon_list(resource);
                }
                let is_new = state
                    .failures()
                    .all(|(failed, reason)| failed != resource && reason != why);
                if is_new {
                    tracing::warn!(%resource, why, "source: keeping what is known");
                }
                state.failed(resource, why);
                false
            }
        }
    }
}

/// Clients of one API.
struct Connection {
    /// Tried in turn.
    servers: Vec<Client>,
    /// Index of the one in use.
    current: AtomicUsize,
    /// The same with the ServiceAccount's token, for what YurtHub may not read by its own rights.
    with_token: Vec<Client>,
}

impl Connection {
    async fn new(api: &Api) -> Result<Self, ClientError> {
        let token = Path::new(SERVICE_ACCOUNT_TOKEN);
        let has_token = token.exists();
        let token = has_token.then(|| token.to_owned());
        let (servers, with_token) = match api {
            Api::Inferred => {
                // In-cluster comes second, as for kubectl; it reads the address from the environment, without DNS.
                let options = KubeConfigOptions::default();
                let config = match Config::from_kubeconfig(&options).await {
                    Ok(config) => config,
                    Err(kubeconfig) => {
                        Config::incluster_env().map_err(|in_cluster| ClientError::Infer {
                            kubeconfig: chain(&kubeconfig),
                            in_cluster: chain(&in_cluster),
                        })?
                    }
                };
                (vec![client(config)?], Vec::new())
            }
            Api::Server(url) => (vec![client(config(url.clone(), token))?], Vec::new()),
            Api::Hub(url) => {
                let urls = match url {
                    Some(url) => vec![url.clone()],
                    None => YURTHUB.map(Uri::from_static).to_vec(),
                };
                let clients = |token: Option<PathBuf>| {
                    let configs = urls.iter().map(|url| config(url.clone(), token.clone()));
                    configs.map(client).collect::<Result<Vec<_>, _>>()
                };
                let with_token = match token {
                    Some(token) => clients(Some(token))?,
                    None => Vec::new(),
                };
                (clients(None)?, with_token)
            }
        };
        Ok(Self {
            servers,
            current: AtomicUsize::new(0),
            with_token,
        })
    }

    fn client(&self, resource: Resource) -> Option<&Client> {
        let clients = match resource.needs_token_at_hub() && !self.with_token.is_empty() {
            true => &self.with_token,
            false => &self.servers,
        };
        clients.get(self.current.load(Ordering::Relaxed) % clients.len())
    }

    /// Goes to the next server, after the one in use could not be reached.
    fn rotate(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }
}

fn config(url: Uri, token_file: Option<PathBuf>) -> Config {
    let mut config = Config::new(url);
    config.auth_info.token_file = token_file.map(|path| path.display().to_string());
    config
}

fn client(mut config: Config) -> Result<Client, ClientError> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Silence is judged here, by what was asked for.
    config.read_timeout = None;
    config.default_retry = false;
    config.proxy_url = None;
    let url = config.cluster_url.to_string();
    Client::try_from(config).map_err(|source| ClientError::Build {
        url,
        source: Box::new(source),
    })
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("no answer: {}", root(.0))]
    Send(Box<kube::Error>),
    #[error("no answer within {} s", .0.as_secs())]
    Silence(Duration),
    #[error("the answer broke off: {}", root(.0))]
    Broken(Box<kube::Error>),
    #[error("{status}")]
    Status {
        status: StatusCode,
        retry_after: Option<Duration>,
    },
    #[error("the version is too old: {message}")]
    Expired { message: String },
    #[error("the watch failed with {code}: {message}")]
    Watch { code: u16, message: String },
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error("the source has gone")]
    Gone,
}

impl RequestError {
    fn failure(&self) -> Failure {
        match self {
            Self::Send(_) | Self::Broken(_) | Self::Gone => Failure::Transport,
            Self::Silence(_) => Failure::Silence,
            Self::Status {
                status: StatusCode::GONE,
                ..
            }
            | Self::Expired { .. } => Failure::Expired,
            Self::Status {
                status,
                retry_after,
            } => Failure::Status(status.as_u16(), *retry_after),
            Self::Watch { code, .. } => Failure::Status(*code, None),
            Self::Body(BodyError::Cut) => Failure::Transport,
            Self::Body(_) => Failure::Garbage,
        }
    }
}

/// Follows one resource until it is dropped.
struct Task {
    generation: u64,
    follower: Follower,
    shape: Shape,
    connection: Arc<Connection>,
    sender: mpsc::Sender<Update>,
    counters: Arc<Counters>,
}

impl Task {
    async fn run(mut self) {
        loop {
            let request = self.follower.next().clone();
            let started = Instant::now();
            let result = match &request {
                Request::List => self.list().await,
                Request::Watch { version, limit } => self.watch(version, *limit).await,
            };
            let wait = match result {
                Ok(()) if request == Request::List => Duration::ZERO,
                Ok(()) => self.follower.ended(started.elapsed()),
                Err(RequestError::Gone) => return,
                Err(error) => {
                    if matches!(error, RequestError::Send(_)) {
                        self.connection.rotate();
                    }
                    let failure = error.failure();
                    let wait = self.follower.failed(failure);
                    let is_normal = match failure {
                        Failure::Expired | Failure::Silence => request != Request::List,
                        // Another version of the API is asked for first.
                        Failure::Status(404, _) => self.follower.api_version() != 0,
                        _ => false,
                    };
                    if !is_normal {
                        let news = News::Failed {
                            why: chain(&error),
                            is_list: request == Request::List,
                        };
                        if self.tell(news).await.is_err() {
                            return;
                        }
                    }
                    wait
                }
            };
            sleep(wait.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
        }
    }

    fn api_version(&self) -> &'static str {
        let versions = self.shape.resource.api_versions();
        versions.get(self.follower.api_version()).unwrap_or(&"")
    }

    async fn list(&mut self) -> Result<(), RequestError> {
        let api_version = self.api_version();
        let mut page: Option<String> = None;
        let version = loop {
            let uri = self.shape.list(api_version, page.as_deref());
            count(&self.counters.lists, 1);
            let response = self.get(&uri, "gzip").await?;
            let is_gzip = response
                .headers()
                .get(CONTENT_ENCODING)
                .is_some_and(|encoding| encoding == "gzip");
            let mut inflate = Inflate::new(is_gzip);
            let mut scanner = ListScanner::default();
            let mut body = response.into_body();
            while let Some(chunk) = self.chunk(&mut body, LIST_SILENCE).await? {
                let mut items = Vec::new();
                inflate.push(&chunk, |bytes| {
                    scanner.push(bytes, |item| items.push(Bytes::copy_from_slice(item)))
                })?;
                self.tell_items(api_version, items).await?;
            }
            let mut items = Vec::new();
            inflate.finish(|bytes| {
                scanner.push(bytes, |item| items.push(Bytes::copy_from_slice(item)))
            })?;
            self.tell_items(api_version, items).await?;
            let end = scanner.finish()?;
            match end.next_page {
                Some(next) => page = Some(next),
                None => break end.version,
            }
        };
        let (sender, receiver) = oneshot::channel();
        let news = News::Listed {
            version: version.clone(),
            is_held: sender,
        };
        self.tell(news).await?;
        let is_held = receiver.await.map_err(|_closed| RequestError::Gone)?;
        self.follower.listed(version, is_held);
        Ok(())
    }

    async fn watch(&mut self, version: &str, limit: Option<Duration>) -> Result<(), RequestError> {
        let api_version = self.api_version();
        let seconds = match limit {
            Some(limit) => limit.as_secs(),
            None => fastrand::u64(WATCH_SECONDS),
        };
        let uri = self.shape.watch(api_version, version, seconds);
        count(&self.counters.watches, 1);
        // A server that does not end the watch in time is not waited for.
        let end = Instant::now() + Duration::from_secs(seconds + 15);
        let response = self.get(&uri, "identity").await?;
        self.tell(News::Watching).await?;
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
                match body::watch_event(line)? {
                    WatchEvent::Put { object, version } => news.push(News::Put {
                        api_version,
                        object: Bytes::copy_from_slice(object.get().as_bytes()),
                        version,
                    }),
                    WatchEvent::Delete { object, version } => news.push(News::Delete {
                        object: Bytes::copy_from_slice(object.get().as_bytes()),
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
                if let News::Put { version, .. }
                | News::Delete { version, .. }
                | News::Bookmark { version } = &event
                {
                    self.follower.advanced(version.clone());
                }
                if !matches!(event, News::Bookmark { .. }) {
                    count(&self.counters.objects, 1);
                }
                self.tell(event).await?;
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
    }

    async fn get(&self, uri: &str, encoding: &str) -> Result<Response<Body>, RequestError> {
        let request = HttpRequest::get(uri)
            .header(ACCEPT, "application/json")
            .header(ACCEPT_ENCODING, encoding)
            .header(USER_AGENT, concat!("yurt-net/", env!("CARGO_PKG_VERSION")))
            .body(Body::empty())
            .map_err(|error| RequestError::Send(Box::new(kube::Error::HttpError(error))))?;
        let Some(client) = self.connection.client(self.shape.resource) else {
            return Err(RequestError::Gone);
        };
        let response = timeout(ANSWER_TIMEOUT, client.send(request))
            .await
            .map_err(|_elapsed| RequestError::Silence(ANSWER_TIMEOUT))?
            .map_err(|error| RequestError::Send(Box::new(error)))?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
        Err(RequestError::Status {
            status,
            retry_after: retry_after.map(Duration::from_secs),
        })
    }

    /// The next piece of a body; `None` at its end.
    async fn chunk(
        &self,
        body: &mut Body,
        silence: Duration,
    ) -> Result<Option<Bytes>, RequestError> {
        loop {
            let frame = timeout(silence, body.frame())
                .await
                .map_err(|_elapsed| RequestError::Silence(silence))?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| RequestError::Broken(Box::new(error)))?;
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
        api_version: &'static str,
        items: Vec<Bytes>,
    ) -> Result<(), RequestError> {
        if items.is_empty() {
            return Ok(());
        }
        count(
            &self.counters.objects,
            u64::try_from(items.len()).unwrap_or_default(),
        );
        self.tell(News::Items { api_version, items }).await
    }

    async fn tell(&self, news: News) -> Result<(), RequestError> {
        let update = Update {
            resource: self.shape.resource,
            generation: self.generation,
            news,
        };
        let sent = self.sender.send(update).await;
        sent.map_err(|_closed| RequestError::Gone)
    }
}

/// The innermost cause: the layers above it only say that there was one.
fn root(error: &kube::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
