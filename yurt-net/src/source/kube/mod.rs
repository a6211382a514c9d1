//! `kube:` and `yurthub:`: the cluster as an apiserver reports it, live or from YurtHub's cache.
//!
//! One task for each resource sends requests and listens (`follow` decides which requests). It hands items and events
//! over as bytes, so that nothing is decoded twice and a list is never in memory whole. `KubeSource` decodes them into
//! `state`.
//!
//! The only user of kube-rs: kubeconfigs and their credentials are read with it (`access`). Its client is not used,
//! because it cannot tell whom it is connected to (`wire` does); its objects and caches are not, because they keep many
//! times what is needed here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep_until};

use crate::model::{Snapshot, Touched};
use crate::source::spec::Api;

mod access;
pub mod body;
mod connection;
mod extent;
mod failure;
mod files;
mod follow;
mod gaps;
mod head;
mod plugin;
mod pods;
mod received;
mod report;
mod resource;
mod servers;
mod state;
mod task;
mod wire;

use connection::Connection;
use follow::Follower;
use gaps::Gaps;
use pods::PodsList;
use received::Counters;
use resource::Shape;
use state::{ClusterState, Listed};
use task::{News, Task, Update, WAITING_BYTES};

pub use access::Access;
pub use received::Received;
pub use resource::Resource;
pub use servers::Servers;
pub(crate) use state::HeldList;

/// Optional resources are waited for no longer than this once Services and slices are here.
const OPTIONAL_PATIENCE: Duration = Duration::from_secs(3);
/// The Node is waited for longer: without its pool a node would serve, for a while, endpoints that it must not.
const NODE_PATIENCE: Duration = Duration::from_secs(30);
/// Events that wait; also pieces of lists, which are tens of kilobytes.
const QUEUE: usize = 32;
/// Events taken up at a time, and bytes of objects: other work of the loop waits for them.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 256 << 10;
/// A change waits no longer than this for others that follow it: each report compiles everything that it touches.
const GATHER_FOR: Duration = Duration::from_millis(20);
/// An apiserver counts as the cloud's present word for this long after its last sign of life, such as the answer to a
/// probe.
pub(crate) const FRESH_FOR: Duration = Duration::from_secs(10);
/// The same for a hub, after the cloud was last heard through it: only the hub probes that connection. An apiserver
/// sends a bookmark a minute on every watch (kubernetes pkg/storage/cacher), so this is two of them, and some delay.
pub(crate) const FRESH_FOR_AT_HUB: Duration = Duration::from_secs(150);
const _: () = assert!(wire::DEAD_AFTER.as_secs() <= FRESH_FOR.as_secs());

/// What to request.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Name of the own Node.
    pub node: String,
    /// `--nodepool`.
    pub pool: Option<String>,
    /// Label of a Node that names its pool.
    pub pool_label: String,
    /// Whether to request the Pods of the own Node.
    pub with_pods: bool,
    /// What apiservers are reached with.
    pub access: Access,
}

/// The source `kube:` or `yurthub:`.
pub(crate) struct KubeSource {
    /// It may answer from a cache.
    is_hub: bool,
    scope: Scope,
    state: ClusterState,
    started: Instant,
    /// Services and slices are here since.
    required_since: Option<Instant>,
    is_synced: bool,
    /// Another source was believed after this one. Until this one has listed everything, it lists instead of watching:
    /// a watch would begin with the table of that time.
    is_behind: bool,
    pool: Option<String>,
    connection: Arc<Connection>,
    /// The task of each resource, and its generation.
    tasks: BTreeMap<Resource, (u64, JoinSet<()>)>,
    generation: u64,
    sender: mpsc::Sender<Update>,
    updates: mpsc::Receiver<Update>,
    counters: BTreeMap<Resource, Arc<Counters>>,
    last_contact: Option<Instant>,
    /// The cloud itself was heard: see [`Self::is_fresh`].
    last_word: Option<Instant>,
    /// The cloud has sent a bookmark, behind all that had happened.
    has_bookmark: bool,
    /// The versions of the last events of what a table needs.
    events: BTreeMap<Resource, u64>,
    gaps: Gaps,
    /// What [`Self::changed`] has reported, or has yet to report: whether it is synced and answers, and
    /// [`Self::is_fresh`].
    was_good: bool,
    was_fresh: bool,
    /// Since when [`Self::changed`] has something to report.
    untold_since: Option<Instant>,
    pods: PodsList,
}

impl KubeSource {
    /// A source that has asked nothing yet, and may be YurtHub: a guess until a server was dialled. `seed` is what is
    /// known already, and `versions` are those of an earlier agent's watches of the same source.
    pub(crate) fn new(
        api: Api,
        is_hub: bool,
        scope: Scope,
        seed: Snapshot,
        versions: &BTreeMap<String, String>,
    ) -> Self {
        let (sender, updates) = mpsc::channel(QUEUE);
        let now = Instant::now();
        let connection = Connection::new(&api, is_hub, scope.access.clone());
        Self {
            is_behind: versions.is_empty() && seed != Snapshot::default(),
            state: ClusterState::new(&scope.node, seed, versions, is_hub),
            connection: Arc::new(connection),
            is_hub,
            scope,
            started: now,
            required_since: None,
            is_synced: false,
            pool: None,
            tasks: BTreeMap::new(),
            generation: 0,
            sender,
            updates,
            counters: Resource::ALL
                .map(|resource| (resource, Arc::default()))
                .into(),
            last_contact: None,
            last_word: None,
            has_bookmark: false,
            events: BTreeMap::new(),
            gaps: Gaps::default(),
            was_good: false,
            was_fresh: false,
            untold_since: None,
            pods: PodsList::default(),
        }
    }

    /// Used until it reports its own number: so many Services are in force, in maps that an earlier agent left.
    pub(crate) fn expect(&mut self, services: usize) {
        self.state.expect(services);
    }

    /// Adds what an earlier agent knew, where this source has not reported anything itself.
    pub(crate) fn learn(&mut self, known: &Snapshot) {
        self.state.learn(known);
    }

    /// Forgets what it reported: another source was believed meanwhile, and the `seed` is in force now. This source
    /// lists everything before it is synced again.
    pub(crate) fn begin_anew(&mut self, seed: Snapshot) {
        self.is_behind = true;
        if self.state.is_blank() {
            // Its first report is under way, and will be current.
            return;
        }
        // Dropping them ends them.
        self.tasks.clear();
        self.state = ClusterState::new(&self.scope.node, seed, &BTreeMap::new(), self.is_hub);
        (self.required_since, self.is_synced) = (None, false);
        (self.last_word, self.has_bookmark) = (None, false);
        self.events.clear();
        (self.was_good, self.was_fresh) = (false, false);
        (self.pool, self.pods.read) = (None, None);
    }

    /// It is YurtHub, which may answer from its cache.
    pub(crate) fn is_hub(&self) -> bool {
        self.is_hub
    }

    /// Asks for the Pods of the own Node from now on.
    pub(crate) fn follow_pods(&mut self) {
        if !std::mem::replace(&mut self.scope.with_pods, true) && self.is_asked() {
            self.follow(Resource::Pods, self.name_of(Resource::Pods));
        }
    }

    /// An address, a link or a route of this node has changed: a server that could not be reached is asked at once.
    pub(crate) fn network_changed(&self) {
        self.connection.network_changed();
    }

    /// Has the Pods of the own Node read again soon, where no watch follows them.
    pub(crate) fn refresh_pods(&self) {
        self.pods.is_asked_for.notify_one();
    }

    /// When the Pods of the own Node were all of those that the cloud has; `None`: never, or it is not known.
    pub(crate) fn pods_read_at(&self) -> Option<Instant> {
        let (at, is_followed) = self.pods.read?;
        self.fresh_until()?;
        Some(if is_followed { Instant::now() } else { at })
    }

    /// Its state is the cloud's present word.
    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh_until().is_some()
    }

    /// Its state is not older than that of another source, whose watches were at these versions. An event from behind a
    /// hub is the cloud's word, but others may follow at once; when a bookmark comes, within a minute, all of them are
    /// here.
    pub(crate) fn is_level(&self, with: &BTreeMap<String, String>) -> bool {
        let has_word = self.is_fresh() && (self.has_bookmark || !self.is_hub);
        has_word || self.is_beyond(with)
    }

    /// Versions show it, whether the cloud can be reached or not: nothing that a table needs has an older version, and
    /// something has happened since. A cluster has one sequence of versions, and a hub passes events on in that order.
    fn is_beyond(&self, known: &BTreeMap<String, String>) -> bool {
        let number = |version: &String| version.parse::<u64>().ok();
        let own = self.state.versions();
        let mut has_event = false;
        let mut required = Resource::ALL.into_iter().filter(|all| all.is_required());
        required.all(|resource| {
            let known = known.get(resource.name()).and_then(number);
            let own = own.get(resource.name()).and_then(number);
            has_event |= self.events.get(&resource).copied() > known;
            known.is_some() && own >= known
        }) && has_event
    }

    /// Until when it is fresh, unless more is heard.
    ///
    /// For an apiserver any answer counts. While the cloud is out of reach, YurtHub answers a LIST from its disk, and a
    /// WATCH with silence; so for a hub only events and bookmarks count, and only of what it relays (openyurt
    /// pkg/yurthub/proxy/local).
    fn fresh_until(&self) -> Option<Instant> {
        if self.gaps.long().next().is_some() {
            return None;
        }
        let until = match self.is_hub {
            true => self.last_word? + FRESH_FOR_AT_HUB,
            // For an apiserver that answers, it is enough that its machine answers probes.
            false if self.answers() => self.last_sign()? + FRESH_FOR,
            false => self.last_contact? + FRESH_FOR,
        };
        (self.is_synced && until > Instant::now()).then_some(until)
    }

    /// When the source was last heard from, including answers to probes.
    fn last_sign(&self) -> Option<Instant> {
        match self.is_hub {
            true => self.last_contact,
            false => self.last_contact.max(self.connection.heard()),
        }
    }

    /// What is known of the cluster. Until it is synced this is the seed, or a part.
    pub(crate) fn snapshot(&self) -> &Snapshot {
        self.state.snapshot()
    }

    /// What may differ from the snapshot at the last call.
    pub(crate) fn take_touched(&mut self) -> Touched {
        self.state.take_touched()
    }

    /// Everything that a table needs has been read since the start.
    pub(crate) fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// What a table needs is followed at present.
    pub(crate) fn answers(&self) -> bool {
        self.is_asked() && self.why_lost().is_none()
    }

    /// Its tasks run.
    fn is_asked(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// Where watches go on, by resource.
    pub(crate) fn versions(&self) -> BTreeMap<String, String> {
        self.state.versions()
    }

    /// Lists that are held back.
    pub(crate) fn held(&self) -> Vec<HeldList> {
        self.state.held().collect()
    }

    /// Waits until the snapshot has changed, or whether the source is synced and answers, or is fresh; then for what
    /// comes right behind it, so that a burst is one report. Safe to cancel: what is yet to be reported is in
    /// `untold_since`. Must be called inside a tokio runtime.
    pub(crate) async fn changed(&mut self) {
        self.ask();
        loop {
            let next = match self.untold_since {
                Some(since) => {
                    let is_over = since.elapsed() >= GATHER_FOR;
                    let next = (!is_over).then(|| self.updates.try_recv().ok()).flatten();
                    if next.is_none() {
                        self.untold_since = None;
                        return;
                    }
                    next
                }
                None => {
                    let deadline = self.deadline();
                    tokio::select! {
                        update = self.updates.recv() => update,
                        () = sleep_until(deadline) => None,
                    }
                }
            };
            self.take_batch(next);
            // A list may be a hundred megabytes. Other work in the loop gets its turn, and so do the tasks that bring
            // what follows.
            yield_now().await;
        }
    }

    /// The snapshot has changed, or something else that [`Self::changed`] waits for, and it has not reported that yet.
    pub(crate) fn has_untold(&self) -> bool {
        self.untold_since.is_some()
    }

    /// Takes up this update and some of those that wait behind it, and whatever is due.
    fn take_batch(&mut self, mut next: Option<Update>) {
        let was = (self.was_good, self.was_fresh);
        self.follow_server();
        let mut has_changed = self.state.release(self.started.elapsed());
        let (mut taken, mut bytes) = (0, 0);
        while let Some(update) = next {
            (taken, bytes) = (taken + 1, bytes + update.news.bytes());
            has_changed |= self.take(update);
            let is_enough = taken >= BATCH || bytes >= BATCH_BYTES;
            next = (!is_enough).then(|| self.updates.try_recv().ok()).flatten();
        }
        self.follow_pool();
        self.is_synced = self.is_synced || self.is_complete();
        (self.was_good, self.was_fresh) = (self.is_synced && self.answers(), self.is_fresh());
        if has_changed || was != (self.was_good, self.was_fresh) {
            self.untold_since.get_or_insert_with(Instant::now);
        }
    }

    /// When there is something to do even if nothing arrives.
    fn deadline(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let release = self.state.release_at().map(|at| self.started + at);
        let patience = self.required_since.filter(|_| !self.is_synced);
        let patience = patience.map(|since| since + self.patience());
        // It may have passed while nothing waited here, and is due until it is reported.
        let stale = self.was_fresh.then(|| self.fresh_until());
        let stale = stale.map(|until| until.unwrap_or_else(Instant::now));
        let is_untold = self.was_good || self.was_fresh;
        let gap = self.gaps.is_long_at().filter(|_| is_untold);
        [release, patience, stale, gap]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(far)
    }

    fn is_complete(&mut self) -> bool {
        let mut all = Resource::ALL.into_iter();
        if !all.all(|r| !r.is_required() || self.state.is_confirmed(r)) {
            return false;
        }
        let since = *self.required_since.get_or_insert_with(Instant::now);
        // The pool's resources are requested once the Node has named its pool.
        let is_settled = Resource::ALL.into_iter().all(|r| self.is_settled(r));
        is_settled || since.elapsed() >= self.patience()
    }

    /// It is not waited for.
    fn is_settled(&self, resource: Resource) -> bool {
        let is_asked = self.tasks.contains_key(&resource);
        !resource.is_of_table() || !is_asked || self.state.is_settled(resource)
    }

    /// How long unsettled resources are waited for, once Services and slices are here.
    fn patience(&self) -> Duration {
        match self.is_settled(Resource::Nodes) {
            true => OPTIONAL_PATIENCE,
            false => NODE_PATIENCE,
        }
    }

    /// Starts the tasks.
    fn ask(&mut self) {
        if self.is_asked() {
            return;
        }
        self.gaps.open();
        for resource in Resource::ALL {
            if !resource.is_of_pool() && (resource.is_of_table() || self.scope.with_pods) {
                self.follow(resource, self.name_of(resource));
            }
        }
        self.follow_pool();
    }

    fn name_of(&self, resource: Resource) -> String {
        match resource {
            Resource::Nodes | Resource::Pods => self.scope.node.clone(),
            _ => String::new(),
        }
    }

    /// Requests the resources of the pool, as soon as its name is known, and again when it changes.
    fn follow_pool(&mut self) {
        let label = || {
            let node = self.state.snapshot().nodes.get(&*self.scope.node)?;
            node.labels.get(&self.scope.pool_label).cloned()
        };
        let pool = self.scope.pool.clone().or_else(label);
        let pool = pool.filter(|pool| !pool.is_empty());
        if pool == self.pool || pool.is_none() {
            return;
        }
        let is_first = self.pool.is_none();
        self.pool.clone_from(&pool);
        // An earlier agent may have asked for another pool: what it knew of that is no start for this one.
        let mut known = self.state.snapshot().pools.keys();
        let is_seeded = is_first && known.all(|name| Some(&**name) == self.pool.as_deref());
        for resource in Resource::ALL {
            if resource.is_of_pool() {
                if !is_seeded {
                    self.state.renew(resource);
                }
                self.follow(resource, pool.clone().unwrap_or_default());
            }
        }
    }

    /// Requests everything again if an apiserver was taken for a hub, or a hub for an apiserver: a cache is trusted
    /// less.
    fn follow_server(&mut self) {
        if self.connection.is_hub() == self.is_hub {
            return;
        }
        self.is_hub = self.connection.is_hub();
        self.state.set_cache(self.is_hub);
        for resource in self.tasks.keys().copied().collect::<Vec<_>>() {
            let name = match resource.is_of_pool() {
                true => self.pool.clone().unwrap_or_default(),
                false => self.name_of(resource),
            };
            self.follow(resource, name);
        }
    }

    /// Starts the task of a resource, in place of an earlier one.
    fn follow(&mut self, resource: Resource, name: String) {
        let counters = self.counters.entry(resource).or_default().clone();
        self.generation += 1;
        self.state.abandon_list(resource);
        let follower = Follower::new(
            self.state.version(resource),
            resource.api_versions().len(),
            resource.is_required(),
            self.is_hub,
        );
        let task = Task {
            generation: self.generation,
            follower: match self.is_behind {
                true => follower.superseding(),
                false => follower,
            },
            shape: Shape { resource, name },
            connection: Arc::clone(&self.connection),
            wire: None,
            is_compared: false,
            told: self.connection.told(),
            sender: self.sender.clone(),
            room: Arc::new(Semaphore::new(WAITING_BYTES)),
            counters,
            is_asked_for: Arc::clone(&self.pods.is_asked_for),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(task.run());
        // Dropping the old set ends its task.
        self.tasks.insert(resource, (self.generation, tasks));
    }

    /// Takes up one update; true when that changed the snapshot.
    #[expect(
        clippy::too_many_lines,
        reason = "one arm for each update; what they share is below it"
    )]
    fn take(&mut self, update: Update) -> bool {
        let Update {
            resource,
            generation,
            news,
            room: _room,
        } = update;
        if self
            .tasks
            .get(&resource)
            .is_none_or(|task| task.0 != generation)
        {
            return false;
        }
        if !matches!(news, News::Failed { .. } | News::Ended) {
            self.last_contact = Some(Instant::now());
        }
        let is_listed = matches!(news, News::Listed { .. });
        let refused = is_listed
            .then(|| self.state.refuse_list(resource))
            .flatten();
        let news = match (news, refused) {
            (News::Listed { is_held, .. }, Some(other)) => {
                // Its task fails, and says so.
                let _gone = is_held.send(Err(other));
                return false;
            }
            (news, _) => news,
        };
        if resource == Resource::Pods {
            self.pods.note(&news);
        }
        self.gaps.note(resource, &news);
        if matches!(
            news,
            News::Put { .. } | News::Delete { .. } | News::Bookmark { .. }
        ) && !resource.is_multiplexed()
        {
            self.last_word = Some(Instant::now());
            self.has_bookmark |= matches!(news, News::Bookmark { .. });
        }
        if let News::Put { version, .. } | News::Delete { version, .. } = &news
            && resource.is_required()
            && let Ok(version) = version.parse()
        {
            self.events.insert(resource, version);
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
                let _gone = is_held.send(Ok(listed == Listed::Held));
                match listed {
                    Listed::Used { has_changed } => has_changed,
                    Listed::Held => {
                        for held in state.held().filter(|h| h.resource == resource.name()) {
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
            News::Watching { is_enough } => {
                let is_gap = self.is_behind && !self.is_synced && state.has_failed(resource);
                if !is_gap {
                    state.watching(resource);
                }
                let _gone = is_enough.send(!is_gap);
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
            News::Ended => false,
            News::Failed {
                why,
                is_list,
                failure,
            } => {
                if is_list {
                    state.abandon_list(resource);
                }
                let is_new = state
                    .failures()
                    .all(|(failed, reason)| failed != resource && reason != why);
                // The loss of a source that was there before is reported once, for the source as a whole, and not again
                // for each resource.
                let is_told = resource.is_required() || failure.is_of_server();
                match self.is_synced && is_told {
                    true => tracing::debug!(%resource, why, "source: keeping what is known"),
                    false if is_new => {
                        tracing::warn!(%resource, why, "source: keeping what is known");
                    }
                    false => {}
                }
                state.failed(resource, why, failure.is_absent());
                if self.is_behind && !self.is_synced {
                    state.doubt(resource);
                }
                false
            }
        }
    }
}

#[cfg(test)]
pub(in crate::source) mod tests;
