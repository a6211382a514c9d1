//! The guard, brought in step with the ledger in a thread of its own: to put a program on a device takes the kernel a
//! grace period, and a node may have a hundred of them when the agent starts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::complaints::Complaints;
use super::facts::Facts;
use super::problem::{Problem, of_failures};
use super::worker::Worker;
use crate::config::AgentConfig;
use crate::dataplane::DataplaneError;
use crate::dataplane::pod::guard::{Guard, SpoofCounters, Spoofs};
use crate::error::chain;
use crate::ledger::store::LedgerDirs;
use crate::ledger::watch::{Reading, WatchError};
use crate::ledger::{Entry, Key, is_same};
use crate::model::Snapshot;
use crate::observe::status::Status;
use crate::pods::guard::{
    ExtraPolicy, GuardImage, GuardRow, Policy, Reserved, ask_for_the_untold, compile, plan,
};
use crate::pods::settings::GuardSettings;
use crate::pods::translate;
use crate::policy::protected::Protected;
use crate::source::preferred::Origin;

/// Grants are judged again at most this often: each time walks over all Services, and any event of a source may change
/// what they claim.
const JUDGE_EVERY: Duration = Duration::from_secs(1);

/// One order: what the kernel should hold.
#[derive(Debug)]
struct Order {
    wanted: GuardImage,
    /// The ledger that the plan is for. The ledger may have changed since, and a plugin may have acted on the change.
    entries: BTreeMap<Key, Entry>,
}

/// The result of an order.
#[derive(Debug)]
struct Work {
    counters: SpoofCounters,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    /// The devices that the guard is on with a row, and what failed.
    Applied(BTreeSet<u32>, Vec<DataplaneError>),
    /// The ledger has changed meanwhile: nothing was done.
    Outdated,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
enum WorkError {
    /// The program or the maps could not be read.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The ledger could not be read.
    #[error(transparent)]
    Ledger(#[from] WatchError),
}

/// Guards the Pods of this node, as the operator has decided.
pub(super) struct Guarding {
    settings: Option<GuardSettings>,
    extra: ExtraPolicy,
    /// Rows of Pods that were granted more than their own, by device.
    granted: BTreeMap<u32, GuardRow>,
    /// When grants were judged last, if any Pod asks for more than its own.
    judged: Option<Instant>,
    /// When they are to be judged again, because a source has changed since.
    judge_at: Option<Instant>,
    translation: translate::Policy,
    worker: Worker<Guard, Order, Result<Work, WorkError>>,
    counters: Option<SpoofCounters>,
    guarded: BTreeSet<u32>,
    /// The last order was planned for an older ledger.
    is_outdated: bool,
    complaints: Complaints,
    problem: Problem,
}

impl Guarding {
    /// Loads nothing until there is a ledger. If the guard is off, detaches the programs of an earlier agent.
    pub(super) fn start(config: &AgentConfig) -> Self {
        let (bpffs, dirs) = (config.place.bpffs.clone(), config.place.ledger());
        let mut problem = Problem::of("Pods are not guarded as they should be");
        if config.guard.is_none() {
            let withdrawn = Guard::withdraw(&bpffs);
            problem.set(withdrawn.err().map(|error| {
                format!(
                    "the guard of an earlier agent stays on Pods' devices, and may drop what they send: {}; \
                     run yurt-net cleanup, then start the agent again",
                    chain(&error)
                )
            }));
        }
        let granted = match config.guard {
            Some(_) => Guard::left_rows(&bpffs),
            None => BTreeMap::new(),
        };
        Self {
            settings: config.guard.clone(),
            extra: config.extra.clone(),
            granted,
            judged: None,
            judge_at: None,
            translation: config.translation.clone(),
            worker: Worker::new(move |guard, order| {
                match do_work(guard, &bpffs, &dirs, &order) {
                    Ok((guard, work)) => (Some(guard), Ok(work)),
                    // The guard is loaded anew at the next order.
                    Err(error) => (None, Err(error)),
                }
            }),
            counters: None,
            guarded: BTreeSet::new(),
            is_outdated: false,
            complaints: Complaints::about("guard"),
            problem,
        }
    }

    /// Orders the kernel to be brought in step with ledger and devices; of several orders the last one counts. Without
    /// a list of devices, what is guarded stays so.
    pub(super) fn hear(&mut self, facts: &Facts<'_>) {
        let known = facts.known;
        let (Some(settings), Some(links)) = (&self.settings, &known.links) else {
            return;
        };
        let (mut pods, mut complaints) = facts.members(&self.translation).guarded();
        let granted = std::mem::take(&mut self.granted);
        let is_told = !matches!(facts.origin, Origin::None | Origin::Checkpoint);
        let told = facts.snapshot.filter(|_| is_told);
        ask_for_the_untold(&mut pods, &granted, told);
        let is_asked = pods.iter().any(|pod| !pod.extra.is_empty());
        self.judged = is_asked.then(Instant::now);
        let nothing = (Snapshot::default(), BTreeSet::new());
        let snapshot = facts.snapshot.unwrap_or(&nothing.0);
        let local = known.view.local_addresses.as_ref().unwrap_or(&nothing.1);
        let protected = || {
            let protected = Protected::new(snapshot, &known.policy, &known.view);
            let owned = protected.listed().map(|(at, whose)| (at, whose.owner()));
            owned.collect::<Vec<_>>()
        };
        let node = (&*known.policy.node, local);
        let reserved = Reserved {
            granted,
            ..Reserved::new(node, snapshot, protected, &known.ledger.ledger, &pods)
        };
        let policy = Policy {
            extra: self.extra.clone(),
            ..settings.policy()
        };
        let (wanted, more) = compile(&pods, links, &reserved, &policy);
        complaints.extend(more);
        self.complaints.set(complaints);
        self.granted = reserved.granted_now(&wanted, &pods, told.unwrap_or(&nothing.0));
        self.worker.order(Order {
            wanted,
            entries: known.entries().clone(),
        });
    }

    /// A source has changed, perhaps an address that a Pod was granted.
    pub(super) fn doubt_grants(&mut self) {
        if let Some(judged) = self.judged {
            self.judge_at.get_or_insert(judged + JUDGE_EVERY);
        }
    }

    /// Drops the deadline of the judgement: [`Self::hear`] is being called, or there is nothing to judge any more. A
    /// deadline that stayed would be due at each turn.
    pub(super) fn settle_doubt(&mut self) {
        self.judge_at = None;
    }

    /// When to call [`Self::hear`] again, although neither the ledger nor a device has changed.
    pub(super) fn judge_at(&self) -> Option<Instant> {
        self.judge_at
    }

    /// Waits for the result of an order. Cancel safe.
    pub(super) async fn changed(&mut self) {
        let done = self.worker.done().await;
        self.is_outdated = false;
        let problem = match done {
            Ok(Ok(Work { counters, outcome })) => {
                if self.counters.is_none() {
                    info!("guarding the Pods of this node");
                }
                self.counters = Some(counters);
                match outcome {
                    Outcome::Applied(guarded, failures) => {
                        self.guarded = guarded;
                        of_failures(&failures)
                    }
                    Outcome::Outdated => {
                        self.is_outdated = true;
                        return;
                    }
                }
            }
            Ok(Err(error)) => Some(chain(&error)),
            Err(error) => Some(error.to_string()),
        };
        self.problem.set(problem);
    }

    /// The last order was planned for an older ledger, and nothing was done.
    pub(super) fn is_outdated(&self) -> bool {
        self.is_outdated
    }

    /// The guard has been loaded before.
    pub(super) fn is_loaded(&self) -> bool {
        self.counters.is_some()
    }

    /// Which Pods are guarded, what the guard found on their devices, and what fails.
    pub(super) fn report(&self, facts: &Facts<'_>, status: &mut Status) {
        let retention = &mut status.retention;
        retention.guard = match (&self.settings, self.is_loaded()) {
            (None, _) => "off".to_owned(),
            (Some(_), false) => "waiting for the first Pod".to_owned(),
            (Some(settings), true) if settings.enforce => "enforce".to_owned(),
            (Some(_), true) => "audit".to_owned(),
        };
        retention.guarded_devices = self.guarded.len();
        let Spoofs { audited, dropped } = self.spoofs(None);
        retention.audited = by_reason(&audited);
        retention.dropped = by_reason(&dropped);
        for (entry, pod) in facts.known.entries().values().zip(&mut retention.pods) {
            let Some(ifindex) = entry.host.map(|host| host.ifindex) else {
                continue;
            };
            if self.guarded.contains(&ifindex) {
                let mut links = facts.known.links.iter().flatten();
                let link = links.find(|link| link.ifindex == ifindex);
                pod.device = link.map(|link| link.name.clone());
                let Spoofs { audited, dropped } = self.spoofs(Some(ifindex));
                pod.audited = audited.values().sum();
                pod.dropped = dropped.values().sum();
            }
        }
        retention.alarms.extend(self.problem.get().cloned());
        retention.alarms.extend(self.complaints.alarms());
    }

    /// The counters of a device; without a device those of all, including devices that are gone.
    fn spoofs(&self, ifindex: Option<u32>) -> Spoofs {
        let counters = self.counters.as_ref();
        let spoofs = counters.and_then(|counters| match ifindex {
            Some(ifindex) => counters.of_device(ifindex).ok(),
            None => counters.of_all().ok(),
        });
        spoofs.unwrap_or_default()
    }
}

fn by_reason(counts: &BTreeMap<&'static str, u64>) -> BTreeMap<String, u64> {
    let counts = counts.iter();
    counts
        .map(|(reason, count)| ((*reason).to_owned(), *count))
        .collect()
}

fn do_work(
    guard: Option<Guard>,
    bpffs: &Path,
    dirs: &LedgerDirs,
    order: &Order,
) -> Result<(Guard, Work), WorkError> {
    let mut guard = match guard {
        Some(guard) => guard,
        None => Guard::load(bpffs, None)?,
    };
    // A failure is reported and stops nothing: without the guard that is held, no Pod would be guarded.
    let kept = guard.keep_pins();
    if let Ok([_, ..]) = kept.as_deref() {
        warn!(pins = ?kept, "drift: pins of the guard were removed");
    }
    let counters = guard.counters()?;
    // A plugin writes the ledger first, then the kernel. So what it has written by now has its reason in the ledger,
    // and what it writes later is not seen here and not taken for something without a reason.
    let observed = guard.observe()?;
    let is_current = is_same(Reading::take(dirs)?.ledger.entries(), &order.entries);
    let outcome = match is_current {
        false => Outcome::Outdated,
        true => {
            let applied = guard.apply(&plan(&observed, &order.wanted));
            if !applied.attached.is_empty() {
                debug!(devices = applied.attached.len(), "guard attached");
            }
            let mut guarded = observed.attached;
            guarded.extend(applied.attached);
            guarded.retain(|ifindex| order.wanted.rows.contains_key(ifindex));
            // Where our program cannot be attached, an older one guards better than none.
            let is_spared =
                |ifindex| order.wanted.rows.contains_key(&ifindex) && !guarded.contains(&ifindex);
            let strays = guard.strays().spare(is_spared).mend();
            let failures = kept.err().into_iter().chain(applied.failures).chain(strays);
            Outcome::Applied(guarded, failures.collect())
        }
    };
    Ok((guard, Work { counters, outcome }))
}
