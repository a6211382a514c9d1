//! The running agent: one loop that compiles what the sources say and keeps the maps in step.
//!
//! One thread, one more while the disk is written to, one while sockets are looked at, and one while clients are:
//!
//! | task | waits for | does |
//! |---|---|---|
//! | the loop (`run`) | a fact (`react::Fact`), signals | what follows from it (`react`) |
//! | one a resource (in `KubeSource`) | an apiserver | passes items and events to the loop, as bytes |
//! | a save (in `Keeper`, its own thread) | the disk | writes the checkpoint |
//! | a scan (in `Established`, its own thread) | the loop's verdict | looks at established sockets, ends those without a backend |
//! | a look (in `Clients`, its own thread) | interfaces, the ledger, a timer; only for source ranges | finds Pods' network namespaces, and which addresses this node has for them |
//! | the socket (`control::serve`) | clients of `agent.sock` | passes requests to the loop, and answers back |
//! | metrics (`observe::http`) | scrapes | passes them to the loop, and the text back |
//! | netlink (in `NodeWatch`, in `LinkWatch`) | the kernel | tells the loop that an interface or address changed |
//! | the plugins' configuration (in `CniKeeper`; only with `--cni install`) | its directory | puts the plugins into it |
//! | the guard (in `Guarding`, its own thread) | a plan | writes its maps, puts its program on devices |
//! | the node's own devices (in `OwnDevices`, its own thread) | the kernel | sets their MACs back |
//! | what is known of peers (in `Mending`; only with `--repair-peers`) | a timer, the loop | listens to them, repairs entries |
//! | a probe (in `Probing`, at most four; only with `--probe-endpoints`) | a Pod | asks it whether it answers |
//! | a release (in `Pods`, its own thread) | the ledger's lock, the disk | frees the addresses of deleted Pods |
//!
//! The loop owns all state, and alone has the units' handles: none of them knows another. A unit is started with the configuration, says
//! that there is something new (`changed`, which may be dropped at any time and loses nothing), hears what is known (`hear`), and tells how
//! things are (`report`). What follows from what is a table, in `react`. On SIGTERM and SIGINT it ends, and leaves maps, programs and
//! links as they are.

mod answers;
mod asked;
mod checkpoint;
mod claimed;
mod cni;
mod complaints;
mod deadlines;
mod devices;
mod disk;
mod established;
mod facts;
mod guarding;
mod lines;
mod mending;
mod pods;
mod probing;
mod problem;
mod react;
mod report;
mod serving;
mod steps;
mod translating;
mod upkeep;
mod worker;

use std::path::Path;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::yield_now;
use tokio::time::Instant;
use tracing::info;

use self::asked::Asked;
use self::claimed::Claimed;
use self::cni::CniKeeper;
use self::deadlines::Deadlines;
use self::devices::Devices;
use self::established::Established;
use self::facts::Known;
use self::guarding::Guarding;
use self::lines::Lines;
use self::mending::Mending;
use self::pods::Pods;
use self::probing::Probing;
use self::react::{Due, Fact, Phase};
use self::translating::Translating;
use crate::config::AgentConfig;
use crate::dataplane::load::load_from;
use crate::dataplane::service::clients::{Clients, Look};
use crate::dataplane::service::{BpfDataplane, Options, SocketLb};
use crate::dataplane::{ApplyError, Dataplane as _, DataplaneError};
use crate::error::PathError;
use crate::host::cgroup::{Cgroup, CgroupError, cgroup};
use crate::node::{NodeError, NodeWatch};
use crate::observe::status::{SelfTest, Status};
use crate::plan::MapImage;
use crate::policy::{Memo, Memory, PolicyConfig};
use crate::source::SourceError;
use crate::source::checkpoint::Loaded;
use crate::source::checkpoint::keeper::{self as saved, Keeper};
use crate::source::kube::servers;
use crate::source::preferred::{Origin, Sources};
use crate::table::edition::Edition;

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
    let cgroup = cgroup(config.place.cgroup.as_deref())?;
    // It makes this agent the only one, and the only writer of the checkpoint.
    let claimed = Claimed::start(&config.place, cgroup.path.clone()).await?;
    let mut agent = Agent::start(config, cgroup, claimed).await?;
    let mut fact = Fact::Started;
    loop {
        agent.react(fact).await?;
        // Where one thing is ready after another, those who listen on sockets are tasks that would not run.
        yield_now().await;
        fact = tokio::select! {
            fact = agent.next() => fact,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
    }
    agent.end().await;
    info!("stopping: clients go on being served by what is in the kernel");
    Ok(())
}

struct Agent {
    known: Known,
    units: Units,
    sources: Sources,
    keeper: Keeper,
    deadlines: Deadlines,
    started: Instant,
    dataplane: BpfDataplane,
    cgroup: Cgroup,
    socket_lb: SocketLb,
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
    /// The maps as they are; wrong, and to be read again, while a retry is due.
    image: MapImage,
    memory: Memory,
    /// With the table that should be in force.
    memo: Memo,
    status: Status,
    rejected: Lines,
    full: Lines,
    alone: Lines,
}

/// Those who work beside the loop, and what they have said that is not yet heard.
struct Units {
    claimed: Claimed,
    pods: Pods,
    guarding: Guarding,
    translating: Translating,
    probing: Probing,
    devices: Devices,
    mending: Option<Mending>,
    cni: Option<CniKeeper>,
    established: Established,
    node: NodeWatch,
    clients: Clients,
    found: Option<Look>,
    due: Option<saved::Due>,
    asked: Asked,
}

impl Agent {
    async fn start(
        config: AgentConfig,
        cgroup: Cgroup,
        claimed: Claimed,
    ) -> Result<Self, AgentError> {
        let mut node = NodeWatch::new()?;
        let view = node.view().await?;
        if let Some(object) = &config.ebpf_log {
            load_from(object);
        }
        let dataplane = BpfDataplane::open(Options {
            bpffs: config.place.bpffs.clone(),
            cgroup: cgroup.path.clone(),
            capacity: config.capacity,
            peers: config.peers,
            affinity: config.affinity,
            socket_lb: config.socket_lb,
        })?;
        let state_dir = &config.place.state_dir;
        // Before all that may take long: devices are made whenever flannel starts.
        let devices =
            Devices::start(&config).map_err(PathError::of("start a thread for", state_dir))?;
        let mending = Mending::start(&config);
        let ((keeper, mut loaded), asked) = tokio::join!(
            Keeper::open(state_dir.join("snapshot")),
            Asked::start(&config)
        );
        if let (Some(maps), Some(loaded)) = (dataplane.found_edition(), &mut loaded) {
            loaded.list_what_is_newer(maps);
        }
        let in_force = loaded.as_ref().map(Loaded::in_force);
        let scope = config.scope.clone();
        let mut sources = Sources::start(&config.sources, scope, loaded).await?;
        let mut image = dataplane.observe()?;
        let saved = keeper.found().map(|found| found.edition);
        let saved = saved.unwrap_or_default();
        let newer = dataplane.found_edition();
        let newer = newer.filter(|maps| !saved.may_replace(*maps));
        sources.expect(
            image.cluster_ips(),
            newer.map(|_| dataplane.found_said_by()),
        );
        // What an earlier agent left may ask already.
        let mut clients = Clients::default();
        clients.want(image.asks_for_clients());
        image.remember(in_force.unwrap_or_default());
        let mut status = Status::new(&config.policy.node);
        status.refuses_with_econnrefused = dataplane.has_set_retval();
        let programs = dataplane.programs().iter();
        status.programs = programs
            .map(|program| (program.name.to_owned(), program.verified))
            .collect();
        status.checkpoint_synced_at = keeper.found().map(|found| found.synced_at);
        status.cgroup_is_root = cgroup.is_root;
        status.cgroup.clone_from(&cgroup.path);
        status.socket_lb = config.socket_lb;
        Ok(Self {
            known: Known::new(policy(&config).await, view),
            units: Units {
                claimed,
                pods: Pods::start(&config)?,
                guarding: Guarding::start(&config),
                translating: Translating::start(&config),
                probing: Probing::start(&config),
                devices,
                mending,
                cni: CniKeeper::start(&config),
                established: Established::start(&config, dataplane.socket_maps()?),
                node,
                clients,
                found: None,
                due: None,
                asked,
            },
            deadlines: Deadlines::start(config.drift_interval),
            started: Instant::now(),
            cgroup,
            socket_lb: config.socket_lb,
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
            image,
            memory: Memory::default(),
            memo: Memo::default(),
            sources,
            keeper,
            dataplane,
            status,
            rejected: Lines::default(),
            full: Lines::default(),
            alone: Lines::default(),
        })
    }

    /// Waits for a fact. Whatever is dropped of it is kept by who said it.
    async fn next(&mut self) -> Fact {
        self.deadlines.boot = self.boot_at();
        let Units {
            pods,
            guarding,
            translating,
            probing,
            mending,
            established,
            node,
            clients,
            found,
            due,
            asked,
            devices: _,
            cni: _,
            claimed: _,
        } = &mut self.units;
        let peers = async {
            match mending {
                Some(mending) => mending.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            fact = self.deadlines.due() => fact,
            () = self.sources.changed() => Fact::SourcesSpoke,
            () = pods.changed() => Fact::PodsStirred,
            () = guarding.changed() => match guarding.is_outdated() {
                true => Fact::GuardOutdated,
                false => Fact::GuardDone,
            },
            () = translating.changed() => Fact::TranslationDone,
            () = probing.changed() => Fact::ProbeEnded,
            () = peers => Fact::PeersDue,
            () = node.changed() => Fact::NetworkStirred,
            look = clients.next() => {
                *found = Some(look);
                Fact::ClientsFound
            }
            () = established.changed() => Fact::SocketsFound,
            what = self.keeper.due() => {
                *due = Some(what);
                Fact::CheckpointStirred
            }
            () = asked.changed() => Fact::Asked,
        }
    }

    /// Does what follows from a fact, and from what that brings to light.
    async fn react(&mut self, fact: Fact) -> Result<(), AgentError> {
        let mut due = Due::default();
        due.add(fact, self.phase());
        while let Some(step) = due.next() {
            if let Some(fact) = self.take(step).await? {
                due.add(fact, self.phase());
            }
        }
        Ok(())
    }

    fn phase(&self) -> Phase {
        match (self.is_serving, self.is_holding) {
            (true, _) => Phase::Serving,
            (false, true) => Phase::Holding,
            (false, false) => Phase::Waiting,
        }
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
