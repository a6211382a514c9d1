//! The running agent: one loop that compiles what the sources say and keeps the maps in step.
//!
//! One thread, one more while the disk is written to, one while sockets are looked at, and one while clients are:
//!
//! | task | waits for | does |
//! |---|---|---|
//! | the loop (`run`) | sources, addresses, drift timer, retry timer, requests, signals | everything else |
//! | one a resource (in `KubeSource`) | an apiserver | passes items and events to the loop, as bytes |
//! | a save (in `Keeper`, its own thread) | the disk | writes the checkpoint |
//! | a scan (in `Scanner`, its own thread) | the loop's verdict | looks at established sockets, ends those without a backend |
//! | a look (in `Clients`, its own thread) | interfaces, the ledger, a timer; only for source ranges | finds Pods' network namespaces, and which addresses this node has for them |
//! | the socket (`control::serve`) | clients of `agent.sock` | passes requests to the loop, and answers back |
//! | metrics (`observe::http`) | scrapes | passes them to the loop, and the text back |
//! | netlink (in `NodeWatch`, in `LinkWatch`) | the kernel | tells the loop that an interface or address changed |
//! | the plugins' configuration (in `CniKeeper`; only with `--cni install`) | its directory | puts the plugins into it |
//! | the guard (in `Guarding`, its own thread) | a plan | writes its maps, puts its program on devices |
//! | the node's own devices (in `OwnDevices`, its own thread) | the kernel | sets their MACs back |
//! | what is known of peers (in `Mending`; only with `--repair-peers`) | a timer, the loop | listens to them, repairs entries |
//! | a probe (in `Probing`, at most four; only with `--probe-endpoints`) | a Pod | asks it whether it answers |
//! | a release (in `Retention`, its own thread) | the ledger's lock, the disk | frees the addresses of deleted Pods |
//!
//! The loop owns all state. On SIGTERM and SIGINT it ends, and leaves maps, programs and links as they are.

mod cni;
mod complaints;
mod devices;
mod disk;
mod established;
mod guarding;
mod lines;
mod mending;
mod pods;
mod probing;
mod report;
mod retention;
mod serving;
mod translating;
mod upkeep;
mod worker;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::config::AgentConfig;
use crate::dataplane::claim::{Claim, Owned};
use crate::dataplane::service::clients::Clients;
use crate::dataplane::service::sockets::{self, Event, Scanner};
use crate::dataplane::service::{BpfDataplane, Options};
use crate::dataplane::{ApplyError, Dataplane, DataplaneError};
use crate::error::{PathError, chain};
use crate::host::cgroup::{Cgroup, CgroupError, cgroup};
use crate::host::clock::unix_seconds;
use crate::host::process::Process;
use crate::model::{LocalPod, Protocol};
use crate::node::{NodeError, NodeWatch};
use crate::observe::control::{self, Request};
use crate::observe::http::{self, Question};
use crate::observe::metrics;
use crate::observe::status::{MapUsage, SelfTest, Status};
use crate::plan::MapImage;
use crate::policy::{ClosureEstablished, Flow, Memo, Memory, NodeView, PolicyConfig, Suspects};
use crate::source::SourceError;
use crate::source::checkpoint::{Due, Keeper, Loaded, Provenance};
use crate::source::kube::servers;
use crate::source::preferred::{Origin, Sources};
use crate::table::edition::Edition;

use devices::Devices;
use disk::StateDir;
use lines::Lines;
use probing::Probing;
use retention::Retention;

const RETRY: Duration = Duration::from_secs(1);
/// Before the first table, `explain` cannot say anything.
const NO_TABLE: &str = "no source has answered since its start, so it cannot say why what is in the kernel is as it is: \
    see `yurt-net status`";
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Why the agent does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The machine is not set up.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The source cannot be read at start. Later the last good state is kept instead.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Maps, programs, links.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// A plan.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Addresses.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A directory, a socket, a signal.
    #[error(transparent)]
    Io(#[from] PathError),
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: AgentConfig) -> Result<(), AgentError> {
    let mut terminate =
        signal(SignalKind::terminate()).map_err(PathError::of("handle", Path::new("SIGTERM")))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(PathError::of("handle", Path::new("SIGINT")))?;
    let Cgroup {
        path: cgroup,
        is_root,
    } = cgroup(config.place.cgroup.as_deref())?;
    let state_dir = &config.place.state_dir;
    let bpffs = &config.place.bpffs;
    // It makes this agent the only one, and the only writer of the checkpoint.
    let owned = match disk::make(state_dir).await {
        true => Owned::found(&cgroup, bpffs, state_dir).await,
        false => Owned::of(&cgroup, bpffs, None),
    };
    let _claim = Claim::take(owned)?;
    let mut watch = NodeWatch::new()?;
    let view = watch.view().await?;
    let dataplane = BpfDataplane::open(Options {
        bpffs: config.place.bpffs.clone(),
        cgroup: cgroup.clone(),
        capacity: config.capacity,
        peers: config.peers,
        affinity: config.affinity,
        socket_lb: config.socket_lb,
    })?;
    // Before all that may take long: devices are made whenever flannel starts.
    let mut devices =
        Devices::start(&config).map_err(PathError::of("start a thread for", state_dir))?;
    let (sender, mut requests) = mpsc::channel(16);
    let (keeper, socket) = tokio::join!(
        Keeper::open(state_dir.join("snapshot")),
        control::serve(config.place.sockets(), sender)
    );
    let (keeper, mut loaded) = keeper;
    if let (Some(maps), Some(loaded)) = (dataplane.found_edition(), &mut loaded) {
        loaded.list_what_is_newer(maps);
    }
    let in_force = loaded.as_ref().map(Loaded::in_force);
    let sources = Sources::start(&config.sources, config.scope.clone(), loaded).await?;
    let (sender, mut scrapes) = mpsc::channel(1);
    let metrics = config.metrics.map(|address| http::serve(address, sender));

    let policy = policy(&config).await;
    let mut agent = Agent::new(&config, policy, view, sources, keeper, dataplane, socket)?;
    agent.image.remember(in_force.unwrap_or_default());
    agent.status.cgroup_is_root = is_root;
    agent.status.socket_lb = config.socket_lb;
    agent.status.cgroup.clone_from(&cgroup);
    let mut retention = Retention::start(&config)?;
    let mut probing = Probing::new(config.probes_endpoints);
    agent.retain(&mut retention, &mut probing).await;
    agent.inform(&mut devices);
    let drift_interval = config.drift_interval.unwrap_or(NEVER).min(NEVER);
    let mut next_drift = Instant::now() + drift_interval;
    loop {
        // Where one thing is ready after another, those who listen on sockets are tasks that would not run.
        yield_now().await;
        let boot = agent.boot_at();
        let retry = agent.retry_at;
        tokio::select! {
            () = sleep_until(boot.unwrap_or_else(Instant::now)), if boot.is_some() => {
                agent.boot(config.socket_lb, &cgroup).await?;
            }
            () = agent.sources.changed() => {
                agent.has_news = true;
                agent.inform(&mut devices);
                if agent.have_pods_changed() {
                    agent.retain(&mut retention, &mut probing).await;
                }
                agent.take_truth(&retention, &mut probing);
                if agent.is_serving {
                    agent.try_sync();
                }
            }
            () = retention.changed() => agent.retain(&mut retention, &mut probing).await,
            () = devices.due() => agent.inform(&mut devices),
            () = probing.changed() => {
                if agent.take_failing(&probing) && agent.is_serving {
                    agent.try_sync();
                }
            }
            () = watch.changed() => {
                agent.sources.network_changed();
                agent.clients.interfaces_changed();
                match watch.view().await {
                    Ok(mut view) => {
                        view.truth.clone_from(&agent.view.truth);
                        view.failing.clone_from(&agent.view.failing);
                        if view == agent.view {
                            continue;
                        }
                        agent.view = view;
                        agent.tell_clients(&retention);
                        if agent.is_serving {
                            agent.try_sync();
                        }
                    }
                    Err(error) => warn!(error = chain(&error), "addresses: keeping the last known"),
                }
            },
            found = agent.clients.next() => agent.set_clients(&found),
            () = sleep_until(next_drift) => {
                next_drift = Instant::now() + drift_interval;
                if agent.is_serving || agent.is_holding {
                    if agent.repair() {
                        agent.test_itself(config.socket_lb, &cgroup).await;
                    }
                    give_back_memory();
                }
                agent.keeper.look();
                agent.retain(&mut retention, &mut probing).await;
                agent.inform(&mut devices);
            }
            () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => agent.try_sync(),
            event = agent.scanner.next() => match event {
                Event::Found(found) => agent.judge(found),
                Event::Done(outcome) => agent.report_scan(outcome),
            },
            due = agent.keeper.due() => match due {
                Due::Found(loaded) => agent.take_up(*loaded),
                Due::Save => agent.save(),
                Due::Saved { asked, on_disk } => agent.take_saved(asked, on_disk),
            },
            Some(request) = requests.recv() => {
                agent.state_dir.look().await;
                agent.fill_retention(&retention);
                agent.status.devices = devices.report();
                let pod = match request.request {
                    Request::Explain(flow) => retention.pod_at(flow.from).await,
                    Request::Status => None,
                };
                agent.answer(request, pod);
            }
            Some(scrape) = scrapes.recv() => {
                agent.state_dir.look().await;
                agent.fill_retention(&retention);
                agent.status.devices = devices.report();
                agent.show_metrics(scrape);
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    drop(metrics);
    agent.save_all().await;
    info!("stopping: clients go on being served by what is in the kernel");
    Ok(())
}

struct Agent {
    config: PolicyConfig,
    view: NodeView,
    sources: Sources,
    keeper: Keeper,
    started: Instant,
    dataplane: BpfDataplane,
    is_adopted: bool,
    /// The first table is applied, and the programs were attached.
    is_serving: bool,
    /// What an earlier agent left is served on as it is, until a source answers.
    is_holding: bool,
    /// Of what the sources say, or have said last.
    edition: Edition,
    /// What the sources say differs from that edition.
    has_news: bool,
    /// What the last repair could not mend.
    failures: Vec<String>,
    /// The last one.
    self_test: SelfTest,
    /// The maps as they are; wrong, and to be read again, while there is a `retry_at`.
    image: MapImage,
    /// The last attempt to write failed: when to try again.
    retry_at: Option<Instant>,
    memory: Memory,
    /// With the table that should be in force.
    memo: Memo,
    established: ClosureEstablished,
    scanner: Scanner,
    clients: Clients,
    /// Backends whose established flows may have lost them since the last scan; at first, while no agent was there.
    suspects: Suspects,
    /// The Pods of this node, as retention has seen them last.
    pods: Vec<Arc<LocalPod>>,
    /// Established flows whose backends new flows do not go to.
    watched: Vec<Flow>,
    state_dir: StateDir,
    socket: control::Server,
    status: Status,
    rejected: Lines,
    full: Lines,
    ended: Lines,
}

impl Agent {
    fn new(
        told: &AgentConfig,
        config: PolicyConfig,
        view: NodeView,
        mut sources: Sources,
        keeper: Keeper,
        dataplane: BpfDataplane,
        socket: control::Server,
    ) -> Result<Self, AgentError> {
        let image = dataplane.observe()?;
        sources.expect(image.cluster_ips());
        let mut status = Status::new(&config.node);
        status.refuses_with_econnrefused = dataplane.has_set_retval();
        status.programs = dataplane
            .programs()
            .iter()
            .map(|program| (program.name.to_owned(), program.verified))
            .collect();
        status.checkpoint_synced_at = keeper.found().map(|found| found.synced_at);
        let established = told.closure_established;
        let with_tcp = established == ClosureEstablished::Reset;
        if let Err(error) = sockets::support(with_tcp) {
            let reason = chain(&error);
            warn!(reason, "sockets that outlive their endpoint are not ended");
            status.sockets.unsupported = Some(reason);
        }
        let scanner = Scanner::new(dataplane.socket_maps()?, with_tcp);
        // What an earlier agent left may ask already.
        let mut clients = Clients::default();
        clients.want(image.asks_for_clients());
        Ok(Self {
            is_adopted: dataplane.is_adopted(),
            is_serving: false,
            is_holding: false,
            edition: Edition::resume(
                dataplane.found_edition(),
                keeper.found().map(|found| found.edition),
                fastrand::u64(..),
            ),
            has_news: matches!(sources.origin(), Origin::File | Origin::Live | Origin::Hub),
            failures: Vec::new(),
            self_test: SelfTest::Pending,
            config,
            view,
            sources,
            keeper,
            started: Instant::now(),
            image,
            retry_at: None,
            dataplane,
            memory: Memory::default(),
            memo: Memo::default(),
            established,
            scanner,
            clients,
            suspects: Suspects::all(&[Protocol::Udp, Protocol::Tcp]),
            pods: Vec::new(),
            watched: Vec::new(),
            state_dir: StateDir::new(told.place.state_dir.clone()),
            socket,
            status,
            rejected: Lines::default(),
            full: Lines::default(),
            ended: Lines::default(),
        })
    }

    fn provenance(&self) -> Option<Provenance> {
        let provenance = self.sources.provenance(unix_seconds(), self.edition)?;
        Some(Provenance {
            left_out: self.image.left_out().cloned().collect(),
            ..provenance
        })
    }

    /// Starts to save the snapshot in force, where it came from a source that may be out of reach next time.
    fn save(&mut self) {
        match (self.sources.snapshot(), self.provenance()) {
            (Some(snapshot), Some(provenance)) => self.keeper.begin(snapshot, provenance),
            _ => self.keeper.skip(),
        }
    }

    /// Where the checkpoint says what is in force already, that is of its edition: maps that say a later one would be taken for
    /// newer than they are.
    fn take_saved(&mut self, asked: Edition, on_disk: Edition) {
        let has_news = self.has_news || self.sources.has_untold();
        if asked == self.edition && asked != on_disk && !has_news {
            self.edition = on_disk;
            if let Err(error) = self.dataplane.set_edition(on_disk) {
                debug!(
                    error = chain(&error),
                    "the maps are thought to be newer than the checkpoint"
                );
            }
        }
    }

    async fn save_all(&mut self) {
        if let (Some(snapshot), Some(provenance)) = (self.sources.snapshot(), self.provenance()) {
            self.keeper.finish(snapshot, provenance).await;
        }
    }

    /// `pod`: whoever asks for a verdict is a Pod of this node, at this address.
    fn answer(&mut self, request: control::Call, pod: Option<IpAddr>) {
        let reply = match request.request {
            Request::Status => match self.fill_status() {
                Ok(()) => serde_json::to_value(&self.status),
                Err(error) => Ok(control::error_reply(&chain(&error))),
            },
            // A table that nobody has said anything of knows no Service, and the kernel may serve them all.
            Request::Explain(_) if !self.is_serving => Ok(control::error_reply(NO_TABLE)),
            Request::Explain(flow) => serde_json::to_value(self.explain(flow, pod)),
        };
        let reply = reply.unwrap_or_else(|error| control::error_reply(&error.to_string()));
        if request.reply.send(reply).is_err() {
            debug!("a client of the socket did not wait for its answer");
        }
    }

    fn show_metrics(&mut self, scrape: http::Scrape) {
        let answer = match scrape.question {
            Question::Metrics => match self.fill_status() {
                Ok(()) => Ok(metrics::render(&self.status)),
                Err(error) => Err(chain(&error)),
            },
            Question::Health => self.health(),
        };
        if scrape.reply.send(answer).is_err() {
            debug!("a scrape was given up");
        }
    }

    fn fill_status(&mut self) -> Result<(), DataplaneError> {
        self.fill_health();
        let (usage, capacity) = (self.image.usage(), self.image.capacity());
        let status = &mut self.status;
        status.source = self.sources.status(unix_seconds());
        status.checkpoint.clone_from(self.keeper.stats());
        status.pool.clone_from(&self.memo.table().pool);
        status.services = self.memo.table().services.len();
        status.set_rejections(&self.memo.table().rejections);
        status.maps = MapUsage::all(&usage, &capacity);
        status.process = Process::current();
        let counters = self.dataplane.counters()?;
        status.counters = counters
            .iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect();
        Ok(())
    }
}

/// The policy, with what this agent and its sources must be left.
async fn policy(config: &AgentConfig) -> PolicyConfig {
    let mut policy = config.policy.clone();
    policy.protect.servers = servers(&config.sources, &config.scope.access).await;
    let metrics = config.metrics.iter();
    policy.protect.agent_ports = metrics.map(|address| address.port()).collect();
    policy
}

/// What was decoded, compiled and dropped on the way is worth more to the node than to the allocator.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a call without pointers.
    unsafe {
        libc::malloc_trim(0);
    }
}
