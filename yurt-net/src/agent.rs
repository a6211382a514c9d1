//! The running agent: one loop that compiles what the sources say and keeps the maps in step.
//!
//! One thread, three kinds of tasks:
//!
//! | task | waits for | does |
//! |---|---|---|
//! | the loop (`Agent::run`) | source, addresses, drift timer, retry timer, requests, signals | everything else |
//! | the socket (`control::serve`) | clients of `agent.sock` | passes requests to the loop, and answers back |
//! | netlink (in `NodeWatch`) | the kernel | tells the loop that an address changed |
//!
//! The loop owns all state. On SIGTERM and SIGINT it ends, and leaves maps, programs and links as they are.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use crate::cli::explain::{OwnAddresses, explain};
use crate::config::{ConfigError, RunArgs, cgroup};
use crate::control::{self, Request};
use crate::dataplane::bpf::{BpfDataplane, Options, SocketLb};
use crate::dataplane::{ApplyError, Dataplane, DataplaneError};
use crate::model::{Rejection, Snapshot};
use crate::node::{NodeError, NodeWatch};
use crate::plan::{MapImage, Plan, Refused, plan};
use crate::policy::{Memo, Memory, NodeView, PolicyConfig, compile};
use crate::source::file::FileSource;
use crate::source::{SourceError, SourceSpec};
use crate::status::{MapUsage, RefusedService, SelfTest, Status};
use crate::table::ServiceTable;

/// Plans in a row for one table: the first frees space that the second may need.
const PLANS_PER_TABLE: usize = 3;
const RETRY: Duration = Duration::from_secs(1);
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Why the agent does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The machine is not set up.
    #[error(transparent)]
    Config(#[from] ConfigError),
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
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: &RunArgs) -> Result<(), AgentError> {
    let io = |operation, path: &PathBuf| {
        let path = path.clone();
        move |source| AgentError::Io {
            operation,
            path,
            source,
        }
    };
    let mut terminate =
        signal(SignalKind::terminate()).map_err(io("handle", &PathBuf::from("SIGTERM")))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(io("handle", &PathBuf::from("SIGINT")))?;
    let cgroup = cgroup(&args.place)?;
    let state_dir = &args.place.state_dir;
    std::fs::create_dir_all(state_dir).map_err(io("create", state_dir))?;

    let mut watch = NodeWatch::new()?;
    let view = watch.view().await?;
    let SourceSpec::File(path) = &args.source;
    let mut source = FileSource::new(path);
    let snapshot = source.load()?;

    let dataplane = BpfDataplane::open(Options {
        bpffs: args.place.bpffs.clone(),
        cgroup: cgroup.clone(),
        capacity: args.capacity(),
        peers: args.peers,
        socket_lb: args.socket_lb,
    })?;
    let (sender, mut requests) = mpsc::channel(16);
    let socket = state_dir.join("agent.sock");
    let server = control::serve(&socket, sender).map_err(io("listen on", &socket))?;

    let mut agent = Agent::new(args.policy.config(&args.node), view, snapshot, dataplane)?;
    agent.status.source = format!("file:{}", path.display());
    agent.sync()?;
    agent.dataplane.activate()?;
    agent.status.ready = true;
    agent.status.adopted = agent.is_adopted;
    agent.status.self_test = match args.socket_lb {
        SocketLb::Off => SelfTest::Skipped,
        SocketLb::All | SocketLb::Host => SelfTest::run(&cgroup).await,
    };
    if let SelfTest::Failed { reason } = &agent.status.self_test {
        error!(
            reason,
            "self-test: a process in another cgroup is not served"
        );
    }
    info!(
        node = agent.config.node,
        pool = agent.table.pool,
        adopted = agent.is_adopted,
        "ready"
    );

    let drift_interval = match args.drift_interval {
        0 => NEVER,
        seconds => Duration::from_secs(seconds),
    };
    let mut next_drift = tokio::time::Instant::now() + drift_interval;
    loop {
        tokio::select! {
            () = source.changed() => match source.load() {
                Ok(snapshot) => {
                    agent.status.source_error = None;
                    agent.snapshot = snapshot;
                    agent.try_sync();
                }
                Err(error) => {
                    let error = chain(&error);
                    warn!(error, "source: keeping the last good state");
                    agent.status.source_error = Some(error);
                }
            },
            () = watch.changed() => match watch.view().await {
                Ok(view) if view == agent.view => {}
                Ok(view) => {
                    agent.view = view;
                    agent.try_sync();
                }
                Err(error) => warn!(error = chain(&error), "addresses: keeping the last known"),
            },
            () = tokio::time::sleep_until(next_drift) => {
                next_drift = tokio::time::Instant::now() + drift_interval;
                agent.repair();
            }
            () = tokio::time::sleep_until(agent.retry_at.unwrap_or(next_drift)), if agent.retry_at.is_some() => {
                agent.try_sync();
            }
            Some(request) = requests.recv() => agent.answer(request),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    drop(server);
    info!("stopping: clients go on being served by what is in the kernel");
    Ok(())
}

struct Agent {
    config: PolicyConfig,
    view: NodeView,
    snapshot: Snapshot,
    dataplane: BpfDataplane,
    is_adopted: bool,
    /// The maps as they are; wrong, and to be read again, while `retry_at` is set.
    image: MapImage,
    retry_at: Option<tokio::time::Instant>,
    memory: Memory,
    memo: Memo,
    table: ServiceTable,
    status: Status,
}

impl Agent {
    fn new(
        config: PolicyConfig,
        view: NodeView,
        snapshot: Snapshot,
        dataplane: BpfDataplane,
    ) -> Result<Self, AgentError> {
        let image = dataplane.observe()?;
        let status = Status::new(&config.node, &dataplane);
        Ok(Self {
            is_adopted: dataplane.is_adopted(),
            config,
            view,
            snapshot,
            image,
            retry_at: None,
            dataplane,
            memory: Memory::default(),
            memo: Memo::default(),
            table: ServiceTable::default(),
            status,
        })
    }

    /// Compiles the snapshot and writes what differs.
    fn sync(&mut self) -> Result<(), AgentError> {
        let started = Instant::now();
        if self.retry_at.replace(retry_time()).is_some() {
            self.image = self.dataplane.observe()?;
        }
        let compiled = compile(
            &self.snapshot,
            &self.config,
            &self.view,
            &self.memory,
            &mut self.memo,
        );
        self.memory = compiled.memory;
        self.report_rejections(&compiled.table.rejections);
        self.table = compiled.table;
        let (writes, refused) = self.write_table()?;
        self.retry_at = None;
        self.report_refused(refused);
        let took = started.elapsed();
        self.status.applied += 1;
        self.status.last_writes = writes;
        // What was decoded, compiled and dropped on the way is worth more to the node than to the allocator.
        // SAFETY: a call without pointers.
        unsafe { libc::malloc_trim(0) };
        if writes > 0 || !self.status.ready {
            let usage = self.image.usage();
            info!(
                services = self.table.services.len(),
                frontends = usage.frontends4 + usage.frontends6,
                endpoints = usage.slots4 + usage.slots6,
                writes,
                took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                pool = self.table.pool,
                "applied"
            );
        }
        Ok(())
    }

    fn try_sync(&mut self) {
        if let Err(error) = self.sync() {
            error!(
                error = chain(&error),
                "apply: clients keep what was written; trying again"
            );
        }
    }

    /// Plans and applies until nothing more can be done; returns the number of writes and what does not fit.
    fn write_table(&mut self) -> Result<(usize, Vec<Refused>), ApplyError> {
        let mut writes = 0;
        let mut planned = Plan::default();
        for _ in 0..PLANS_PER_TABLE {
            planned = plan(&self.table, &mut self.image);
            self.dataplane.apply(&planned)?;
            writes += planned.ops.len();
            if planned.refused.is_empty() || !planned.has_retired {
                break;
            }
        }
        Ok((writes, planned.refused))
    }

    /// Compares the kernel with what it should hold, and mends what somebody else has changed.
    fn repair(&mut self) {
        if let Err(error) = self.try_repair() {
            error!(
                error = chain(&error),
                "drift: could not be repaired; trying again"
            );
        }
    }

    fn try_repair(&mut self) -> Result<(), AgentError> {
        let programs = self.dataplane.repair()?;
        if !programs.is_empty() {
            self.status.drift_links += programs.len();
            warn!(
                programs = programs.join(","),
                "drift: programs were detached or replaced"
            );
        }
        let observed = self.dataplane.observe()?;
        if observed.is_same_content(&self.image) {
            return Ok(());
        }
        self.image = observed;
        self.retry_at = Some(retry_time());
        let (writes, refused) = self.write_table()?;
        self.retry_at = None;
        self.report_refused(refused);
        self.status.drift_writes += writes;
        warn!(writes, "drift: maps were changed behind our back");
        Ok(())
    }

    /// One line for each rejection that is new.
    fn report_rejections(&self, rejections: &[Rejection]) {
        for rejection in rejections {
            if self.table.rejections.binary_search(rejection).is_err() {
                let Rejection {
                    kind,
                    namespace,
                    name,
                    source,
                    reason,
                } = rejection;
                warn!(kind, namespace, name, source, reason, "rejected");
            }
        }
    }

    fn report_refused(&mut self, refused: Vec<Refused>) {
        let refused: Vec<RefusedService> = refused.iter().map(RefusedService::from).collect();
        if !refused.is_empty() && refused != self.status.refused {
            let mut by_map: BTreeMap<&str, usize> = BTreeMap::new();
            for service in &refused {
                *by_map.entry(&service.map).or_default() += 1;
            }
            for (map, services) in by_map {
                let first = refused.iter().find(|service| service.map == map);
                let (first, flag) = first.map_or(("", ""), |first| (&first.service, &first.flag));
                error!(
                    map,
                    services, first, flag, "map full: these service ports do not fit"
                );
            }
        }
        self.status.refused = refused;
    }

    fn answer(&mut self, request: control::Call) {
        let reply = match request.request {
            Request::Status => match self.fill_status() {
                Ok(()) => serde_json::to_value(&self.status),
                Err(error) => Ok(control::error_reply(&chain(&error))),
            },
            Request::Explain(flow) => {
                let mut own = OwnAddresses::new(&self.snapshot, &self.config.node);
                own.node.extend(self.view.local_addresses.iter().flatten());
                serde_json::to_value(explain(&self.table, &own, flow))
            }
        };
        let reply = reply.unwrap_or_else(|error| control::error_reply(&error.to_string()));
        if request.reply.send(reply).is_err() {
            debug!("a client of the socket did not wait for its answer");
        }
    }

    fn fill_status(&mut self) -> Result<(), DataplaneError> {
        let (usage, capacity) = (self.image.usage(), self.image.capacity());
        let status = &mut self.status;
        status.pool.clone_from(&self.table.pool);
        status.services = self.table.services.len();
        status.rejections.clone_from(&self.table.rejections);
        status.maps = MapUsage::all(&usage, &capacity);
        let counters = self.dataplane.counters()?;
        status.counters = counters
            .iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect();
        Ok(())
    }
}

/// When to try again what is tried now.
fn retry_time() -> tokio::time::Instant {
    tokio::time::Instant::now() + RETRY
}

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
