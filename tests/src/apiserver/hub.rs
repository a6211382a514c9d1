//! YurtHub between a node's components and the cloud's apiserver.
//!
//! | resource | the cloud is there | it is gone |
//! |---|---|---|
//! | pool scope (Services, EndpointSlices): lists and watches | from a watch cache that follows the cloud | from the same, which hears nothing |
//! | all others | asked of the cloud, and written to disk for components that are cached | lists and gets from disk, silent watches |
//!
//! The watch cache is on disk too, and is all there is after a restart without the cloud.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http::StatusCode;
use http::header;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout_at;

use super::api::Api;
use super::api::list_body;
use super::call::Answer;
use super::call::Call;
use super::call::Frames;
use super::call::Verb;
use super::disk::Corruption;
use super::disk::Disk;
use super::disk::Miss;
use super::disk::version_of;
use super::endpoint::Answers;
use super::endpoint::Endpoint;
use super::resource::Resource;
use super::resource::Target;
use super::server::FakeApiserver;

/// Components that are cached without being configured.
const AGENTS: [&str; 7] = [
    "kubelet",
    "kube-proxy",
    "flanneld",
    "coredns",
    "raven-agent-ds",
    "yurttunnel-agent",
    "yurthub",
];
/// How long after the return of the cloud a silent watch ends; up to 2 s with a real YurtHub.
const NOTICED_AFTER: Duration = Duration::from_millis(50);
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The state of YurtHub and the cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubMode {
    /// It is starting, or waits for a certificate: every request gets 503.
    NotReady,
    /// The cloud answers.
    Online,
    /// The cloud does not answer, and YurtHub has not noticed yet: watches outside the pool scope get 502.
    Gap,
    /// YurtHub knows that the cloud is gone.
    Offline,
}

#[derive(Debug)]
struct State {
    mode: HubMode,
    is_multiplexer_ready: bool,
    agents: BTreeSet<String>,
    pool_scope: BTreeSet<Resource>,
    /// The resources that YurtHub's own certificate may not read.
    needs_token: BTreeSet<Resource>,
    /// The version up to which the watch cache has followed the cloud; no entry for a resource without a list.
    followed: BTreeMap<Resource, u64>,
    disk: Disk,
    /// How often the cloud was lost: requests that were open to it then are broken.
    losses: u64,
}

#[derive(Debug)]
struct Hub {
    cloud: Arc<Api>,
    /// The multiplexer's watch cache.
    pool: Arc<Api>,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl Hub {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.send_replace(());
        result
    }

    /// Brings the watch cache up to date: by the events that it has missed or, if the cloud has forgotten some, by a
    /// list and the end of all watches.
    fn follow(&self) {
        let mut state = self.state();
        if state.mode != HubMode::Online || !state.is_multiplexer_ready {
            return;
        }
        let scope: Vec<_> = state.pool_scope.iter().copied().collect();
        let cloud = self.cloud.store();
        let is_behind = |resource: &Resource| {
            state.followed.get(resource) != Some(&cloud.table(*resource).version)
        };
        if self.pool.store().version == cloud.version && !scope.iter().any(is_behind) {
            return;
        }
        self.pool.change(|pool| {
            let history = pool.history;
            for resource in scope {
                let from = cloud.table(resource);
                let followed = state.followed.get(&resource);
                let events = followed.and_then(|version| from.events_after(*version));
                let table = pool.table_mut(resource);
                match events {
                    Some(events) => {
                        for event in events {
                            table.apply(event, history);
                        }
                    }
                    None => {
                        table.reset(from.objects.clone(), from.version);
                        table.end_watches(history);
                    }
                }
                state.followed.insert(resource, from.version);
            }
            pool.version = cloud.version;
        });
    }

    fn set_mode(&self, mode: HubMode) {
        // It knows of all changes so far.
        self.follow();
        let is_online = mode == HubMode::Online;
        self.change(|state| {
            if state.mode == HubMode::Online && matches!(mode, HubMode::Gap | HubMode::Offline) {
                state.disk.write(&self.cloud.store());
                let pool = self.pool.store();
                let followed = state.followed.keys();
                let files = followed.map(|r| (*r, Some(pool.table(*r).objects.clone())));
                state.disk.pool = files.collect();
                state.losses += 1;
            }
            state.mode = mode;
        });
        self.pool.change(|pool| {
            for resource in Resource::ALL {
                pool.table_mut(resource).is_paused = !is_online;
            }
        });
        self.follow();
    }

    /// A new process: the memory is lost. Without the cloud, what is on disk is all there is.
    fn start_anew(&self) {
        let mut state = self.state();
        state.followed.clear();
        if matches!(state.mode, HubMode::Online | HubMode::NotReady) {
            return;
        }
        let files = state.disk.pool.clone();
        self.pool.change(|pool| {
            pool.version = 0;
            for (resource, files) in files {
                let Some(files) = files else {
                    continue;
                };
                let version = version_of(&files);
                pool.version = pool.version.max(version);
                pool.table_mut(resource).reset(files, version);
                state.followed.insert(resource, version);
            }
        });
    }

    /// Lists and watches of pool scope.
    async fn multiplexed(&self, mut call: Call, resource: Resource) -> Answer {
        self.follow();
        let is_ready = {
            let state = self.state();
            state.is_multiplexer_ready && state.followed.contains_key(&resource)
        };
        if !is_ready {
            let message = "the multiplexer is not ready, please try again later";
            return Answer::status(StatusCode::TOO_MANY_REQUESTS, message);
        }
        if call.verb == Verb::List && call.parameter("resourceVersion").is_empty() {
            let any = ("resourceVersion".to_owned(), "0".to_owned());
            call.query.extend([any]);
        }
        self.pool.respond(&call).await
    }

    /// Answers that only the cloud can give.
    async fn proxied(self: &Arc<Self>, call: Call, target: Option<&Target>) -> Answer {
        let Some(target) = target else {
            return self.cloud.respond(&call).await;
        };
        let has_token = !call.header(header::AUTHORIZATION).is_empty();
        if !has_token && self.state().needs_token.contains(&target.resource) {
            return Answer::forbidden(Some(target.resource), call.verb);
        }
        let mut changes = self.changed.subscribe();
        let losses = self.state().losses;
        let mut answer = self.cloud.respond(&call).await;
        if answer.status != StatusCode::OK {
            return answer;
        }
        if call.verb == Verb::Watch {
            let hub = Arc::clone(self);
            let lost = async move {
                while hub.state().losses == losses {
                    // The hub has the sender, and is held here.
                    let _ = changes.changed().await;
                }
                io::Result::<Bytes>::Err(io::Error::other("the cloud is gone"))
            };
            let end = Box::pin(stream::once(lost));
            answer.frames = until_broken(answer.frames, end);
        } else {
            let component = component(&call);
            let mut state = self.state();
            if state.is_cached(&component) {
                state.disk.remember(&component, &call, target);
            }
        }
        answer
    }

    /// Answers without the cloud.
    fn local(self: &Arc<Self>, call: &Call, target: Option<&Target>) -> Answer {
        let Some(target) = target else {
            return bad_gateway();
        };
        let state = self.state();
        let component = component(call);
        let found = match call.verb {
            Verb::Watch if state.mode == HubMode::Gap => return bad_gateway(),
            Verb::Watch => return Answer::stream(self.silence(call)),
            Verb::Other => return bad_gateway(),
            _ if !state.is_cached(&component) => Err(Miss::OtherShape),
            Verb::List => {
                let files = state.disk.list(&component, call, target);
                files.map(|files| list_body(target, files.values(), version_of(files), ""))
            }
            Verb::Get => {
                let object = state.disk.get(&component, target);
                object.map(|object| object.typed(target.resource, target.version))
            }
        };
        match found {
            Ok(body) => Answer::json(body),
            Err(Miss::NeverCached) => Answer::not_found(target),
            Err(Miss::OtherShape) => {
                let message = format!("can not cache for {component} {}", call.path);
                Answer::status(StatusCode::BAD_REQUEST, &message)
            }
            Err(Miss::Unreadable) => {
                let message = "failed to decode the first object of the cache";
                Answer::status(StatusCode::INTERNAL_SERVER_ERROR, message)
            }
        }
    }

    /// A watch that gets no event and ends when the cloud is back, or when its time is over.
    fn silence(self: &Arc<Self>, call: &Call) -> Frames {
        let hub = Arc::clone(self);
        let mut changes = self.changed.subscribe();
        let deadline = Instant::now() + call.timeout().unwrap_or(FOR_EVER);
        let end = async move {
            while hub.state().mode != HubMode::Online {
                if timeout_at(deadline, changes.changed()).await.is_err() {
                    return stream::empty();
                }
            }
            sleep(NOTICED_AFTER).await;
            stream::empty()
        };
        Box::pin(stream::once(end).flatten())
    }
}

impl State {
    fn is_cached(&self, component: &str) -> bool {
        self.agents.contains("*") || self.agents.contains(component)
    }
}

/// These frames, until they end or the other stream breaks them off.
fn until_broken(frames: Frames, break_off: Frames) -> Frames {
    let ended = stream::once(async { None });
    let frames = frames.map(Some).chain(ended);
    let both = stream::select(frames, break_off.map(Some));
    Box::pin(
        both.take_while(|frame| ready(frame.is_some()))
            .filter_map(ready),
    )
}

fn bad_gateway() -> Answer {
    Answer::whole(StatusCode::BAD_GATEWAY, "text/plain; charset=utf-8", "")
}

/// The component that asks, by YurtHub's rule.
fn component(call: &Call) -> String {
    let agent = call.header(header::USER_AGENT);
    let name = agent.split('/').next().unwrap_or_default();
    name.to_lowercase()
}

impl Answers for Hub {
    async fn answer(self: Arc<Self>, call: Call) -> Answer {
        let mode = self.state().mode;
        if call.path.starts_with("/v1/healthz") {
            return Answer::text("OK");
        }
        if mode == HubMode::NotReady {
            let message = "yurthub is not ready";
            return Answer::status(StatusCode::SERVICE_UNAVAILABLE, message);
        }
        if call.path.starts_with("/v1/readyz") {
            return Answer::text("OK");
        }
        let target = call.target.clone();
        let target = target.as_ref();
        let pooled = target
            .map(|target| target.resource)
            .filter(|resource| self.state().pool_scope.contains(resource))
            .filter(|_resource| matches!(call.verb, Verb::List | Verb::Watch));
        match (pooled, mode) {
            (Some(resource), _) => self.multiplexed(call, resource).await,
            (None, HubMode::Online) => self.proxied(call, target).await,
            (None, _) => self.local(&call, target),
        }
    }

    async fn run(self: Arc<Self>) -> Infallible {
        let mut cloud = self.cloud.changes();
        let mut own = self.changed.subscribe();
        loop {
            cloud.borrow_and_update();
            own.borrow_and_update();
            self.follow();
            tokio::select! {
                _ = cloud.changed() => {}
                _ = own.changed() => {}
            }
        }
    }
}

/// YurtHub's HTTP listener on a node, with a [`FakeApiserver`] as its cloud. It serves its own health, too, at
/// `/v1/healthz` and `/v1/readyz`.
#[derive(Debug)]
pub struct FakeYurtHub {
    hub: Arc<Hub>,
    http: Endpoint,
}

impl FakeYurtHub {
    /// Starts one on a free port of the loopback device, online.
    pub fn start(cloud: &FakeApiserver) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::listen(address, cloud, HubMode::Online)
    }

    /// The same at a given address. One that does not start online has nothing on disk.
    pub fn listen(address: SocketAddr, cloud: &FakeApiserver, mode: HubMode) -> Result<Self> {
        let cloud = Arc::clone(cloud.api());
        let hub = Arc::new(Hub {
            pool: Arc::new(Api::new(cloud.settings)),
            cloud,
            state: Mutex::new(State {
                mode,
                is_multiplexer_ready: true,
                agents: AGENTS.map(str::to_owned).into(),
                pool_scope: [Resource::Services, Resource::EndpointSlices].into(),
                needs_token: [Resource::NodeBuckets, Resource::PoolServices].into(),
                followed: BTreeMap::new(),
                disk: Disk::default(),
                losses: 0,
            }),
            changed: watch::Sender::new(()),
        });
        hub.follow();
        let http = Endpoint::start(address, Arc::clone(&hub))?;
        Ok(Self { hub, http })
    }

    /// Faults between components and YurtHub, and the requests there. Faults beyond YurtHub belong to the cloud.
    pub fn http(&self) -> &Endpoint {
        &self.http
    }

    /// The cloud comes, goes, or is noticed to be gone. When it goes, YurtHub has on disk what components have asked
    /// for so far, in its present state, and requests that are open to the cloud break.
    pub fn set_mode(&self, mode: HubMode) {
        self.hub.set_mode(mode);
    }

    /// Whether the watch cache of the pool scope is ready: lists and watches get 429 until then.
    pub fn set_multiplexer_ready(&self, is_ready: bool) {
        self.hub
            .change(|state| state.is_multiplexer_ready = is_ready);
    }

    /// Caches this component, too, like `cache_agents` of `yurt-hub-cfg`; `*` stands for all.
    pub fn cache_agent(&self, component: &str) {
        self.hub
            .change(|state| state.agents.insert(component.to_owned()));
    }

    /// Sets the resources that are multiplexed for the pool.
    pub fn set_pool_scope(&self, resources: &[Resource]) {
        self.hub.change(|state| {
            state.pool_scope = resources.iter().copied().collect();
            let scope = &state.pool_scope;
            state
                .followed
                .retain(|resource, _| scope.contains(resource));
        });
    }

    /// Damages what is on disk of a resource. Call it without the cloud, because everything is written anew when the
    /// cloud goes. For the pool scope the damage shows after [`FakeYurtHub::restart`].
    pub fn corrupt_cache(&self, resource: Resource, corruption: Corruption) {
        self.hub
            .change(|state| state.disk.corrupt(resource, corruption));
    }

    /// Stops it with all connections, and starts it again at the same address.
    pub fn restart(&self) -> Result<()> {
        self.http.stop();
        self.hub.start_anew();
        self.http.restart()
    }
}
