//! The running agent: one loop that compiles what the sources say and keeps the maps in step.
//!
//! One thread, one more while the disk is written to, one while sockets are looked at, and one while clients are:
//!
//! | task | waits for | does |
//! |---|---|---|
//! | the loop (`run`) | a fact (`react::Fact`), signals | what follows from it (`react`) |
//! | one a resource (in `KubeSource`) | an apiserver | passes items and events to the loop, as bytes |
//! | a save (in `Checkpoint`, its own thread) | the disk | writes the checkpoint |
//! | a record (in `Recorded`, its own thread) | the disk | leaves the flags for `load` |
//! | a scan (in `Established`, its own thread) | the loop's verdict | looks at established sockets, ends those without a backend |
//! | a look (in `Clients`, its own thread) | interfaces, the ledger, a timer; only for source ranges | finds Pods' network namespaces, and which addresses this node has for them |
//! | the socket (`control::serve`) | clients of `agent.sock` | passes requests to the loop, and answers back |
//! | a look (in `Servers`, its own thread) | a timer, the network; only for names | looks up where apiservers are, which Services may not take |
//! | metrics (`observe::http`) | scrapes | passes them to the loop, and the text back |
//! | health (in `Health`) | load balancers | answers by what it was told last |
//! | netlink (in `NodeWatch`, in `LinkWatch`) | the kernel | tells the loop that an interface or address changed |
//! | a look (in `Configured`, its own thread; only with `--config`) | a timer | sees whether the file has changed, and reads it |
//! | the plugins' configuration (in `CniKeeper`; only with `--cni install`) | its directory | puts the plugins into it |
//! | the guard (in `Guarding`, its own thread) | a plan | writes its maps, puts its program on devices |
//! | the packet path (in `Packets`, its own thread) | the node's devices | loads its programs, puts them on devices |
//! | the node's own devices (in `OwnDevices`, its own thread) | the kernel | sets their MACs back |
//! | what is known of peers (in `Mending`; only with `--repair-peers`) | a timer, the loop | listens to them, repairs entries |
//! | a probe (in `Probing`, at most four; only with `--probe-endpoints`) | a Pod | asks it whether it answers |
//! | a release (in `Pods`, its own thread) | the ledger's lock, the disk | frees the addresses of deleted Pods |
//!
//! The loop owns what is known and what is served. It alone has the units' handles: no unit knows another. A unit is
//! started with the configuration, says that it has something new (`changed`, which may be dropped at any time and
//! loses nothing), is told what is known (`hear`), and reports its state (`report`). The table in `react` says what
//! follows from what. On SIGTERM and SIGINT the agent ends, and leaves maps, programs and links as they are.

mod answers;
mod asked;
mod checkpoint;
mod claimed;
mod clients;
mod cni;
mod complaints;
mod configured;
mod deadlines;
mod devices;
mod disk;
mod error;
mod established;
mod facts;
mod fast;
mod guarding;
mod health;
mod lines;
mod loading;
mod mending;
mod packets;
mod pods;
mod probing;
mod problem;
mod react;
mod recorded;
mod serving;
mod steps;
mod told;
mod translating;
mod upkeep;
mod worker;

use std::path::Path;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::yield_now;
use tracing::info;

use self::asked::Asked;
use self::checkpoint::Checkpoint;
use self::claimed::Claimed;
use self::clients::Clients;
use self::cni::CniKeeper;
use self::configured::Configured;
use self::deadlines::Deadlines;
use self::devices::Devices;
pub use self::error::AgentError;
use self::established::Established;
use self::facts::Known;
use self::guarding::Guarding;
use self::health::Health;
pub use self::loading::{Load, load};
use self::mending::Mending;
use self::packets::Packets;
use self::pods::Pods;
use self::probing::Probing;
use self::react::{Due, Fact};
use self::recorded::Recorded;
use self::serving::Serving;
use self::translating::Translating;
use self::upkeep::Upkeep;
use crate::config::{AgentConfig, Record, Written};
use crate::dataplane::load::load_from;
use crate::error::PathError;
use crate::host::cgroup::{Cgroup, cgroup};
use crate::node::NodeWatch;
use crate::source::checkpoint::Loaded;
use crate::source::kube::Servers;
use crate::source::preferred::Sources;

/// Runs until SIGTERM or SIGINT. `record`: what the configuration was decoded from, to be left for `load`. `written`:
/// the file that is part of it, to be followed.
pub async fn run(
    config: AgentConfig,
    record: Record,
    written: Option<Written>,
) -> Result<(), AgentError> {
    let mut terminate =
        signal(SignalKind::terminate()).map_err(PathError::of("handle", Path::new("SIGTERM")))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(PathError::of("handle", Path::new("SIGINT")))?;
    configured::score(&config);
    let cgroup = cgroup(config.place.cgroup.as_deref())?;
    // Makes this agent the only one, and the only writer of the checkpoint.
    let claimed = Claimed::start(&config.place, cgroup.path.clone()).await?;
    let mut agent = Agent::start(config, record, written, cgroup, claimed).await?;
    let mut fact = Fact::Started;
    loop {
        agent.react(fact).await?;
        // If facts never run out, the tasks that listen on sockets would not run.
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
    sources: Sources,
    serving: Serving,
    units: Units,
    deadlines: Deadlines,
}

/// The units that work beside the loop.
struct Units {
    claimed: Claimed,
    checkpoint: Checkpoint,
    upkeep: Upkeep,
    pods: Pods,
    guarding: Guarding,
    translating: Translating,
    packets: Packets,
    probing: Probing,
    devices: Devices,
    mending: Option<Mending>,
    cni: Option<CniKeeper>,
    established: Established,
    servers: Servers,
    node: NodeWatch,
    clients: Clients,
    health: Health,
    asked: Asked,
    configured: Configured,
    recorded: Recorded,
}

impl Agent {
    async fn start(
        config: AgentConfig,
        record: Record,
        written: Option<Written>,
        cgroup: Cgroup,
        claimed: Claimed,
    ) -> Result<Self, AgentError> {
        let mut node = NodeWatch::new(config.pod_devices.clone())?;
        let view = node.view().await?;
        if let Some(object) = &config.ebpf_log {
            load_from(object);
        }
        let mut serving = Serving::start(&config, &cgroup)?;
        let state_dir = &config.place.state_dir;
        // Before anything that may take long: flannel makes devices whenever it starts.
        let devices =
            Devices::start(&config).map_err(PathError::of("start a thread for", state_dir))?;
        let mending = Mending::start(&config);
        let ((checkpoint, mut loaded), asked) =
            tokio::join!(Checkpoint::start(&config), Asked::start(&config));
        if let Some(loaded) = &mut loaded {
            serving.list_what_is_newer(loaded);
        }
        let in_force = loaded.as_ref().map(Loaded::in_force).unwrap_or_default();
        let mut sources = Sources::start(&config.sources, config.scope.clone(), loaded).await?;
        serving.expect(&mut sources, checkpoint.edition(), in_force);
        let mut clients = Clients::start(&config);
        clients.follow(&mut serving);
        let servers = Servers::start(&config.sources, &config.scope.access).await;
        Ok(Self {
            known: Known::new(configured::policy(&config, servers.addresses()), view),
            units: Units {
                claimed,
                checkpoint,
                upkeep: Upkeep::start(&config, cgroup),
                pods: Pods::start(&config)?,
                guarding: Guarding::start(&config),
                translating: Translating::start(&config),
                packets: Packets::start(&config),
                probing: Probing::start(&config),
                devices,
                mending,
                cni: CniKeeper::start(&config),
                established: Established::start(&config, serving.socket_maps()?),
                servers,
                node,
                clients,
                health: Health::start(&config),
                asked,
                configured: Configured::start(written),
                recorded: Recorded::start(&config.place, record),
            },
            deadlines: Deadlines::start(config.drift_interval),
            sources,
            serving,
        })
    }

    /// Waits for a fact. May be dropped at any time: the unit with the news keeps it.
    async fn next(&mut self) -> Fact {
        self.deadlines.boot = self.serving.begin_at(self.sources.origin());
        self.deadlines.retry = self.serving.retry_at();
        self.deadlines.grants = self.units.guarding.judge_at();
        let Units {
            pods,
            guarding,
            translating,
            packets,
            probing,
            mending,
            established,
            servers,
            node,
            clients,
            checkpoint,
            asked,
            configured,
            claimed: _,
            upkeep: _,
            health: _,
            devices: _,
            cni: _,
            recorded: _,
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
            () = packets.changed() => Fact::PacketsDone,
            () = probing.changed() => Fact::ProbeEnded,
            () = peers => Fact::PeersDue,
            () = node.changed() => Fact::NetworkStirred,
            () = clients.changed() => Fact::ClientsFound,
            () = servers.changed() => Fact::ServersChanged,
            () = established.changed() => Fact::SocketsFound,
            () = checkpoint.changed() => Fact::CheckpointStirred,
            () = asked.changed() => Fact::Asked,
            () = configured.changed() => Fact::ConfigurationWritten,
        }
    }

    /// Takes the steps that follow from a fact, and from the facts that these steps bring to light.
    async fn react(&mut self, fact: Fact) -> Result<(), AgentError> {
        let mut due = Due::default();
        due.add(fact, self.serving.phase());
        while let Some(step) = due.next() {
            if let Some(fact) = self.take(step).await? {
                due.add(fact, self.serving.phase());
            }
        }
        Ok(())
    }
}
