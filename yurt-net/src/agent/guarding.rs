//! The guard, brought in step with the ledger in a thread of its own: to put a program on a device takes the kernel a grace period, and a
//! node may have a hundred of them when the agent starts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tracing::{debug, info, warn};

use super::worker::Worker;
use crate::dataplane::DataplaneError;
use crate::dataplane::pod::guard::{Guard, SpoofCounters, Spoofs};
use crate::error::{chain, distinct};
use crate::ledger::store::LedgerDirs;
use crate::ledger::watch::{Reading, WatchError};
use crate::ledger::{Entry, Key, is_same};
use crate::pods::guard::{GuardImage, plan};

/// What is to be done.
#[derive(Debug)]
struct Order {
    wanted: GuardImage,
    /// What it was planned for: the ledger may say more by now, and a plugin may have acted on that already.
    entries: BTreeMap<Key, Entry>,
}

/// What has come of it.
#[derive(Debug)]
struct Work {
    counters: SpoofCounters,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    /// The devices that the guard is on with a row, and what failed.
    Applied(BTreeSet<u32>, Vec<DataplaneError>),
    /// The ledger says something else meanwhile: nothing was done.
    Outdated,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
enum WorkError {
    /// Program and maps.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] WatchError),
}

/// See the module.
pub(super) struct Guarding {
    worker: Worker<Guard, Order, Result<Work, WorkError>>,
    counters: Option<SpoofCounters>,
    guarded: BTreeSet<u32>,
    problem: Option<String>,
}

impl Guarding {
    /// Nothing is loaded before the first [`Self::bring_to`].
    pub(super) fn new(bpffs: PathBuf, place: LedgerDirs) -> Self {
        Self {
            worker: Worker::new(move |guard, order| {
                match do_work(guard, &bpffs, &place, &order) {
                    Ok((guard, work)) => (Some(guard), Ok(work)),
                    // It is loaded anew next time.
                    Err(error) => (None, Err(error)),
                }
            }),
            counters: None,
            guarded: BTreeSet::new(),
            problem: None,
        }
    }

    /// Has the kernel brought in step with what was planned for these entries; the last order counts.
    pub(super) fn bring_to(&mut self, wanted: GuardImage, entries: &BTreeMap<Key, Entry>) {
        self.worker.order(Order {
            wanted,
            entries: entries.clone(),
        });
    }

    /// Waits for the thread; true when it must be planned anew. Cancel safe.
    pub(super) async fn done(&mut self) -> bool {
        let mut is_outdated = false;
        match self.worker.done().await {
            Ok(Ok(Work { counters, outcome })) => {
                if self.counters.is_none() {
                    info!("guarding the Pods of this node");
                }
                self.counters = Some(counters);
                match outcome {
                    Outcome::Applied(guarded, failures) => {
                        self.guarded = guarded;
                        let failures: Vec<String> =
                            distinct(failures.iter().map(|error| chain(error)));
                        self.problem = (!failures.is_empty()).then(|| failures.join("; "));
                    }
                    Outcome::Outdated => is_outdated = true,
                }
            }
            Ok(Err(error)) => self.problem = Some(chain(&error)),
            Err(error) => self.problem = Some(error.to_string()),
        }
        is_outdated
    }

    /// It has been loaded once.
    pub(super) fn is_loaded(&self) -> bool {
        self.counters.is_some()
    }

    /// Devices of Pods that it is on, with a row for each.
    pub(super) fn guarded(&self) -> &BTreeSet<u32> {
        &self.guarded
    }

    /// What fails at present.
    pub(super) fn problem(&self) -> Option<&String> {
        self.problem.as_ref()
    }

    /// What was found on a device; on all of them, those that are gone too, where none is named.
    pub(super) fn spoofs(&self, ifindex: Option<u32>) -> Spoofs {
        let counters = self.counters.as_ref();
        let spoofs = counters.and_then(|counters| match ifindex {
            Some(ifindex) => counters.of_device(ifindex).ok(),
            None => counters.of_all().ok(),
        });
        spoofs.unwrap_or_default()
    }
}

fn do_work(
    guard: Option<Guard>,
    bpffs: &Path,
    place: &LedgerDirs,
    order: &Order,
) -> Result<(Guard, Work), WorkError> {
    let mut guard = match guard {
        Some(guard) => guard,
        None => Guard::load(bpffs, None)?,
    };
    // A failure costs nothing else: without the guard that is held, no Pod would be guarded.
    let kept = guard.keep_pins();
    if let Ok([_, ..]) = kept.as_deref() {
        warn!(pins = ?kept, "drift: pins of the guard were removed");
    }
    let counters = guard.counters()?;
    // What a plugin writes after this look is not seen, so it is not taken for something that has no reason; what it has written
    // before has its reason in the ledger, which it writes first.
    let observed = guard.observe()?;
    let is_current = is_same(Reading::take(place)?.ledger.entries(), &order.entries);
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
            // Where ours cannot be attached, what there is guards better than nothing.
            let is_spared =
                |ifindex| order.wanted.rows.contains_key(&ifindex) && !guarded.contains(&ifindex);
            let strays = guard.strays().spare(is_spared).mend();
            let failures = kept.err().into_iter().chain(applied.failures).chain(strays);
            Outcome::Applied(guarded, failures.collect())
        }
    };
    Ok((guard, Work { counters, outcome }))
}
