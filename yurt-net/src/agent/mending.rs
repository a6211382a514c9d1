//! Keeps what this node knows of its peers' tunnels right, if the operator wants that: `tunnel::peers` decides what to
//! change.
//!
//! A task of its own, which does little: it looks at a map once a second. It looks at the entries only when a peer was
//! heard with another MAC than the known one, and every half minute.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;

use super::facts::Facts;
use crate::config::AgentConfig;
use crate::dataplane::DataplaneError;
use crate::dataplane::tunnel::Listener;
use crate::error::chain;
use crate::node::peers::{Entries, EntriesError};
use crate::observe::status::Status;
use crate::policy::pool_peers;
use crate::tunnel::Kind;
use crate::tunnel::peers::{Mender, MenderReport, Others, Peer, Repair};

/// How often the map is looked at while the task listens to peers.
const LISTEN: Duration = Duration::from_secs(1);
/// How often the entries are looked at in any case.
const LOOK: Duration = Duration::from_secs(30);
/// How long a list of peers is used: pools change seldom, and finding their members takes a walk over all endpoints.
const PEERS_AGE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum MendError {
    #[error(transparent)]
    Entries(#[from] EntriesError),
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
}

/// The agent's end of the task. The task ends when this is dropped.
pub(super) struct Mending {
    peers: watch::Sender<Vec<Peer>>,
    report: watch::Receiver<MenderReport>,
    task: JoinHandle<()>,
    /// When the agent may look for the peers again.
    peers_at: Instant,
    /// The time of the next look.
    are_peers_due: bool,
}

impl Drop for Mending {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Mending {
    /// Looks after the vxlan devices of the configuration from now on; `None` if the operator does not want that. In
    /// the network namespace of the caller.
    pub(super) fn start(config: &AgentConfig) -> Option<Self> {
        if !config.repairs_peers {
            return None;
        }
        let vteps = config.devices.iter();
        let vteps = vteps.filter(|(_, kind)| *kind == Kind::Vtep);
        let (peers, heard) = watch::channel(Vec::new());
        let (reports, report) = watch::channel(MenderReport::default());
        let task = Task {
            devices: vteps.map(|(name, _)| name.clone()).collect(),
            mender: Mender::default(),
            entries: None,
            listener: None,
            peers: heard,
            reports,
            start: Instant::now(),
            seen_at: None,
            problems: Vec::new(),
        };
        Some(Self {
            peers,
            report,
            task: tokio::spawn(task.run()),
            peers_at: Instant::now(),
            are_peers_due: false,
        })
    }

    /// Waits until it is time for the next [`Self::hear`]. Cancel safe.
    pub(super) async fn changed(&self) {
        match self.are_peers_due {
            true => sleep_until(self.peers_at).await,
            false => std::future::pending().await,
        }
    }

    /// Finds the peers, if it is time, and passes them on if they have changed.
    pub(super) fn hear(&mut self, facts: &Facts<'_>) {
        let now = Instant::now();
        self.are_peers_due = now < self.peers_at;
        let Some(snapshot) = facts.snapshot.filter(|_| !self.are_peers_due) else {
            return;
        };
        self.peers_at = now + PEERS_AGE;
        let peers = pool_peers(snapshot, &facts.known.policy, facts.memory);
        self.peers.send_if_modified(|known| {
            let is_new = *known != peers;
            *known = peers;
            is_new
        });
    }

    /// Adds the peers that are listened for, and the repairs, to the report of the devices.
    pub(super) fn report(&self, status: &mut Status) {
        let mended = self.report.borrow();
        for device in &mut status.devices.devices {
            let of = |counts: &BTreeMap<String, u64>| counts.get(&device.name).copied();
            device.peers = of(&mended.listened);
            device.peer_repairs = of(&mended.repairs).unwrap_or_default();
        }
        status.devices.alarms.extend(mended.alarms.iter().cloned());
    }
}

struct Task {
    devices: Vec<String>,
    mender: Mender,
    entries: Option<Entries>,
    /// Only while there are peers to listen for.
    listener: Option<Listener>,
    peers: watch::Receiver<Vec<Peer>>,
    reports: watch::Sender<MenderReport>,
    start: Instant,
    /// When the entries were last looked at; `None`: a look is due.
    seen_at: Option<Instant>,
    problems: Vec<String>,
}

impl Task {
    async fn run(mut self) {
        loop {
            self.problems.clear();
            if let Err(error) = self.look().await {
                self.problems.push(chain(&error));
                // The netlink connection may have ended, so it is opened anew.
                (self.entries, self.seen_at) = (None, None);
            }
            self.publish();
            let interval = match self.listener {
                Some(_) => LISTEN,
                None => LOOK,
            };
            tokio::select! {
                changed = self.peers.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.mender.hear(self.peers.borrow_and_update().clone());
                    self.seen_at = None;
                }
                () = sleep(interval) => {}
            }
        }
    }

    /// Looks at what there is, repairs what is to be repaired, and goes on to listen.
    async fn look(&mut self) -> Result<(), MendError> {
        let heard = match &mut self.listener {
            Some(listener) => listener.heard()?,
            None => Vec::new(),
        };
        let is_news = heard.iter().any(|(_, heard)| heard.others != Others::None);
        let is_old = self.seen_at.is_none_or(|at| at.elapsed() >= LOOK);
        if !is_news && !is_old && !self.mender.is_in_doubt() {
            return Ok(());
        }
        self.see().await?;
        let now = millis(self.start.elapsed());
        for (listened, heard) in heard {
            self.mender.notice(&listened, heard, now);
        }
        let repairs = self.mender.decide(now);
        for repair in &repairs {
            self.repair(repair).await;
        }
        if !repairs.is_empty() {
            self.see().await?;
        }
        let wanted = self.mender.listened();
        if wanted.is_empty() {
            self.listener = None;
            return Ok(());
        }
        let listener = match &mut self.listener {
            Some(listener) => listener,
            none => none.insert(Listener::open()?),
        };
        if wanted.len() > Listener::MOST {
            let problem = format!(
                "{} of {} peers are listened to",
                Listener::MOST,
                wanted.len()
            );
            self.problems.push(problem);
        }
        let failures = listener.listen(&wanted);
        if !failures.is_empty() {
            self.seen_at = None;
        }
        let failures = failures.iter().map(|failure| chain(failure));
        self.problems.extend(failures);
        Ok(())
    }

    async fn see(&mut self) -> Result<(), MendError> {
        let entries = match &mut self.entries {
            Some(entries) => entries,
            none => none.insert(Entries::open()?),
        };
        self.mender.see(entries.tunnels(&self.devices).await?);
        self.seen_at = Some(Instant::now());
        Ok(())
    }

    async fn repair(&mut self, repair: &Repair) {
        let Some(entries) = &self.entries else {
            return;
        };
        let Repair {
            device,
            node,
            peer,
            from,
            to,
            ..
        } = repair;
        match entries.repair(repair).await {
            Ok(()) => {
                self.mender.repaired(repair);
                warn!(device, %node, %peer, %from, %to, "a peer has another MAC: its entries have it now");
            }
            Err(error) => self.problems.push(chain(&error)),
        }
    }

    /// Publishes the state, and logs what is newly wrong.
    fn publish(&self) {
        let mut report = self.mender.report();
        let problems = self.problems.iter();
        let problems = problems.map(|problem| format!("entries about peers: {problem}"));
        report.alarms.extend(problems);
        self.reports.send_if_modified(|known| {
            for alarm in &report.alarms {
                if !known.alarms.contains(alarm) {
                    warn!(alarm, "peers of this node's tunnels");
                }
            }
            let is_new = *known != report;
            *known = report;
            is_new
        });
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
