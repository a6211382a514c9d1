//! `plan`, `status` and `cleanup`.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::links::PATIENCE;
use super::live::LiveError;
use crate::config::flags::{CleanupArgs, Output, PlanArgs, PolicyArgs, StatusArgs};
use crate::config::{Place, Record};
use crate::dataplane::DataplaneError;
use crate::dataplane::attach::cleanup::Cleanup;
use crate::dataplane::attach::strays::{Strays, shown};
use crate::dataplane::claim::{Claim, Owned};
use crate::dataplane::ports::ReservedPorts;
use crate::error::chain;
use crate::explain::rows::{Paint, plan_json, plan_table};
use crate::host::cgroup::cgroup;
use crate::host::clock::unix_seconds;
use crate::host::disk::errand::{SILENCE, once};
use crate::ledger::store::LedgerDirs;
use crate::ledger::watch::Reading;
use crate::model::{Snapshot, Touched};
use crate::node::NodeWatch;
use crate::node::routes::{RouteError, Routes};
use crate::observe::control::{ControlError, Request, ask};
use crate::observe::status::Status;
use crate::output::print;
use crate::pods::settings::{GuardSettings, Settings as _, SettingsError};
use crate::pods::translate::Policy;
use crate::policy::{Memo, Memory, NodeView, Reasons, compile};
use crate::source::kube::Servers;
use crate::source::preferred::Sources;
use crate::source::{SourceError, SourceSpec};
use crate::table::ServiceTable;
use crate::text;

/// An apiserver behind a slow link may need this long for all of its Services.
const SOURCE_PATIENCE: Duration = Duration::from_secs(120);
const FAILING_PATIENCE: Duration = Duration::from_secs(5);
const SOURCE_LOOK: Duration = Duration::from_millis(500);

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum VerbError {
    /// The source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A source that has to be asked.
    #[error("source {spec} gives no answer: {why}")]
    NoAnswer {
        /// The source.
        spec: String,
        /// Why not.
        why: String,
    },
    /// The agent.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A Service was asked for by name, and no names are known.
    #[error("{0}")]
    Nameless(String),
    /// Nothing has the name that was given, or too much.
    #[error("{0}")]
    NotFound(String),
    /// The kernel.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// `explain --live`.
    #[error(transparent)]
    Live(#[from] LiveError),
    /// The settings for the plugins could not be removed.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Routes.
    #[error(transparent)]
    Routes(#[from] RouteError),
    /// `cleanup` could not remove everything.
    #[error("cleanup has removed all but this: {0}")]
    Left(String),
    /// `cleanup --stay`.
    #[error("wait for the end")]
    Signal(#[source] std::io::Error),
    /// JSON in or out.
    #[error("convert to or from JSON")]
    Json(#[from] serde_json::Error),
    /// Standard output.
    #[error(transparent)]
    Output(#[from] std::io::Error),
    /// `status --wait`.
    #[error("not ready after {}: {why}", humantime::format_duration(*waited))]
    NotReady {
        /// For how long.
        waited: Duration,
        /// What it waits for.
        why: String,
    },
}

fn paint() -> Paint {
    if std::io::stdout().is_terminal() {
        Paint::Ansi
    } else {
        Paint::Plain
    }
}

/// What one reading of a source gave.
pub(super) struct Read {
    pub(super) snapshot: Snapshot,
    is_hub: bool,
}

/// Reads a source once.
pub(super) async fn load(
    source: &SourceSpec,
    node: &str,
    policy: &PolicyArgs,
) -> Result<Read, VerbError> {
    let specs = std::slice::from_ref(source);
    let mut sources = Sources::start(specs, policy.scope(node), None).await?;
    let started = Instant::now();
    loop {
        if let Some(snapshot) = sources.snapshot() {
            return Ok(Read {
                snapshot: snapshot.clone(),
                is_hub: sources.is_hub(),
            });
        }
        let error = sources.status(unix_seconds()).source_error;
        let patience = match error {
            Some(_) => FAILING_PATIENCE,
            None => SOURCE_PATIENCE,
        };
        if started.elapsed() >= patience {
            return Err(VerbError::NoAnswer {
                spec: source.to_string(),
                why: error.unwrap_or_else(|| "not all of it has arrived".to_owned()),
            });
        }
        // The answer may still be on its way; a source that only fails gets a few tries.
        let _elapsed = timeout(SOURCE_LOOK, sources.changed()).await;
    }
}

/// The interfaces of this machine. They stay unknown if netlink is missing or incomplete, as under an emulator.
pub(super) async fn interfaces() -> NodeView {
    let look = async || NodeWatch::new(Vec::new())?.view().await;
    match timeout(PATIENCE, look()).await {
        Ok(Ok(view)) => view,
        Ok(Err(error)) => {
            tracing::debug!(error = chain(&error), "the interfaces cannot be listed");
            NodeView::default()
        }
        Err(_elapsed) => NodeView::default(),
    }
}

/// What an agent of this node would do.
pub(super) struct Planned<'a> {
    pub(super) table: ServiceTable,
    pub(super) reasons: Reasons<'a>,
    pub(super) view: NodeView,
}

/// The addresses of this machine's Pods. Nothing is known without a ledger, or without the right to read it.
async fn ledger(dirs: LedgerDirs) -> BTreeSet<IpAddr> {
    match once(move || Reading::take(&dirs)).await {
        Some(Ok(reading)) => reading.ledger.addresses_of_pods().collect(),
        Some(Err(error)) => {
            tracing::debug!(error = chain(&error), "the ledger cannot be read");
            BTreeSet::new()
        }
        None => BTreeSet::new(),
    }
}

impl<'a> Planned<'a> {
    pub(super) async fn new(
        read: &'a Read,
        node: &str,
        source: &SourceSpec,
        policy: &PolicyArgs,
        dirs: LedgerDirs,
    ) -> Self {
        let Read { snapshot, is_hub } = read;
        let mut config = policy.config(node);
        let specs = std::slice::from_ref(source);
        let servers = Servers::start(specs, &policy.scope(node).access).await;
        config.protect.servers = servers.addresses();
        config.is_source_hub = *is_hub;
        let mut view = interfaces()
            .await
            .of(snapshot.nodes.get(node).map(|node| &**node));
        let is_here = view.local_addresses.is_some();
        if is_here {
            view.pods = Arc::new(ledger(dirs).await);
        }
        let memory = Memory::default();
        let mut memo = Memo::default();
        compile(
            snapshot,
            &Touched::Anything,
            &config,
            &view,
            &memory,
            &mut memo,
        );
        Self {
            table: memo.table().clone(),
            reasons: Reasons::new(snapshot, &config, &view, &memory),
            view,
        }
    }
}

/// `plan`.
pub async fn plan(args: &PlanArgs) -> Result<(), VerbError> {
    let read = load(&args.source, &args.node, &args.policy).await?;
    let dirs = args.ledger.dirs();
    let Planned { table, reasons, .. } =
        Planned::new(&read, &args.node, &args.source, &args.policy, dirs).await;
    match args.output {
        Output::Table => print(plan_table(&table, &reasons, paint()))?,
        Output::Json => print(text::json(&plan_json(&table, &reasons))? + "\n")?,
    }
    Ok(())
}

/// `status`.
pub async fn status(args: &StatusArgs) -> Result<(), VerbError> {
    let started = Instant::now();
    let status: Status = loop {
        let answer = ask(&args.place.place().sockets(), &Request::Status).await;
        let Some(wait) = args.wait else {
            break serde_json::from_value(answer?)?;
        };
        let why = match answer {
            Ok(answer) => {
                let status: Status = serde_json::from_value(answer)?;
                if status.ready {
                    break status;
                }
                why_not_ready(&status)
            }
            Err(error) => chain(&error),
        };
        if started.elapsed() >= wait {
            return Err(VerbError::NotReady { waited: wait, why });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    match args.output {
        Output::Table => print(text::plain(&status)?.table())?,
        Output::Json => print(text::json(&status)? + "\n")?,
    }
    Ok(())
}

/// What an agent that is not ready waits for: a source, the kernel, or the end of a failed repair.
pub(super) fn why_not_ready(status: &Status) -> String {
    let source = &status.source;
    let asked: Vec<&str> = source
        .sources
        .iter()
        .map(|one| one.source.as_str())
        .collect();
    // If there are several sources, the error names the one that failed.
    let is_named = |error: &str| asked.iter().any(|one| error.starts_with(one));
    let names = asked.join(", ");
    let faults: Vec<String> = status
        .degraded
        .iter()
        .map(|fault| format!("{}: {}", fault.what, fault.reason))
        .collect();
    match &source.source_error {
        _ if status.failed_applies > 0 && status.applied == 0 => {
            "the table cannot be written to the kernel's maps; the agent's log says why".to_owned()
        }
        Some(error) if status.applied == 0 && is_named(error) => format!("source {error}"),
        Some(error) if status.applied == 0 => format!("source {names}: {error}"),
        None if status.applied == 0 => format!("source {names} has not said everything yet"),
        _ if faults.is_empty() => "the programs are not attached yet".to_owned(),
        _ => faults.join("; "),
    }
}

/// `cleanup`. A part that cannot be removed does not keep the others in place.
#[expect(
    clippy::too_many_lines,
    reason = "what is removed, in the order that a plugin or an agent beside it needs"
)]
pub async fn cleanup(args: &CleanupArgs) -> Result<(), VerbError> {
    // Watched from here on: an early signal ends the verb after everything is removed, and not in the middle.
    let ended = |kind| signal(kind).map_err(VerbError::Signal);
    let told_to_end = match args.stay {
        true => Some((
            ended(SignalKind::terminate())?,
            ended(SignalKind::interrupt())?,
        )),
        false => None,
    };
    let place = args.place.place();
    let Place {
        bpffs, state_dir, ..
    } = &place;
    // Refused before anything is touched, and no agent can start meanwhile. Without a cgroup no agent can share one.
    let cgroup =
        cgroup(place.cgroup.as_deref()).map_or_else(|_| PathBuf::new(), |cgroup| cgroup.path);
    let things = place.things(cgroup.clone());
    let seen = things.clone();
    let owned = once(move || Owned::of(&seen)).await;
    let claim = Claim::take(owned.unwrap_or_else(|| Owned::without_a_disk(&things)))?;
    let pins = match Cleanup::begin(bpffs) {
        // Programs that are pinned elsewhere have to go, too.
        Err(error @ DataplaneError::NotBpffs { .. }) => Err(error),
        pins => Ok(pins?),
    };
    // Before the pins: a plugin that runs at this moment would load the guard again.
    let directory = state_dir.clone();
    let settings = once(move || {
        let guard = GuardSettings::leave(None, &directory);
        let translation = Policy::leave(None, &directory);
        (guard, translation, Record::leave(None, &directory))
    });
    let settings = settings.await;
    // The steps do not depend on each other, and a failed disk may be the reason for the cleanup.
    let hidden = Strays::out_of_sight(bpffs, &cgroup).found;
    let programs = Strays::all(&cgroup);
    let had_programs = !programs.found.is_empty();
    let programs = programs.take_off();
    let pins = pins.and_then(Cleanup::finish);
    let routes = Routes::withdraw();
    let ports = ReservedPorts::recorded_in(&place.ledger().in_memory()).release();
    for socket in place.sockets() {
        // Only a killed agent leaves it; if it is already gone, all is well.
        let _ = once(move || std::fs::remove_file(socket)).await;
    }
    drop(claim);
    let had = |removed: Option<&bool>| removed.is_some_and(|had| *had);
    let had_some = had_programs || had(pins.as_ref().ok()) || had(routes.as_ref().ok());
    let had_some = had_some || had(ports.as_ref().ok());
    let mut left = Vec::new();
    match settings {
        Some((guard, translation, record)) => {
            left.extend(guard.err().map(|error| {
                let error = chain(&error);
                format!("{error}; while it is there, yurt-cni guards new Pods")
            }));
            left.extend(translation.err().map(|error| chain(&error)));
            left.extend(record.err().map(|error| {
                let error = chain(&error);
                format!("{error}; while it is there, `load` serves again after a reboot")
            }));
        }
        None => left.push(format!(
            "{}: {SILENCE}; while guard.json is there, yurt-cni guards new Pods, and while run.json is there, `load` \
             serves again after a reboot",
            state_dir.display()
        )),
    }
    left.extend(programs.iter().map(|error| chain(error)));
    left.extend(pins.err().map(|error| chain(&error)));
    left.extend(routes.err().map(|error| chain(&error)));
    left.extend(ports.err().map(|error| chain(&error)));
    if !hidden.is_empty() {
        let hidden = shown(&hidden);
        print(format!(
            "found programs that no pin in {} leads to: {hidden}\n\
             their maps stay until the bpf file system that pins them is unmounted or emptied: findmnt -t bpf lists \
             those of this mount namespace, one below another too\n",
            bpffs.join("yurt-net").display()
        ))?;
    }
    if !left.is_empty() {
        return Err(VerbError::Left(left.join("; ")));
    }
    print(if had_some {
        "removed all maps, programs, links and routes\n"
    } else {
        "nothing to remove\n"
    })?;
    if let Some((mut terminate, mut interrupt)) = told_to_end {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::status::Degraded;
    use crate::source::preferred::FollowedSource;

    #[test]
    fn an_agent_that_is_not_ready_says_what_it_waits_for() {
        let mut status = Status::default();
        status.source.sources = vec![FollowedSource {
            source: "yurthub:http://hub".to_owned(),
            is_in_charge: false,
            is_good: false,
            age_seconds: None,
        }];
        assert_eq!(
            why_not_ready(&status),
            "source yurthub:http://hub has not said everything yet"
        );
        status.source.source_error = Some("services: connection refused".to_owned());
        assert_eq!(
            why_not_ready(&status),
            "source yurthub:http://hub: services: connection refused"
        );
        status.source.source_error = Some("yurthub:http://hub: refused; kube: refused".to_owned());
        assert_eq!(
            why_not_ready(&status),
            "source yurthub:http://hub: refused; kube: refused"
        );
        status.failed_applies = 1;
        assert!(why_not_ready(&status).contains("cannot be written to the kernel's maps"));
        // From the first table on, nothing waits for the source.
        status.applied = 1;
        assert_eq!(why_not_ready(&status), "the programs are not attached yet");
        status.degraded = ["programs", "repair"]
            .map(|what| Degraded {
                what: what.to_owned(),
                reason: format!("{what} fail"),
            })
            .into();
        assert_eq!(
            why_not_ready(&status),
            "programs: programs fail; repair: repair fail"
        );
    }
}
