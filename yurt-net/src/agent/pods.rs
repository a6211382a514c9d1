//! The Pods of this node: follows the ledger that the plugins write and the devices that lead to Pods, writes settings
//! for the plugins, and releases the addresses of deleted Pods.
//!
//! Failures here keep no Service from being served: `status` shows them, and the next change or tick tries again. Until
//! a plugin has written a ledger, nothing is loaded and no Pod is probed.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::facts::{Facts, Known};
use super::problem::Problem;
use crate::config::AgentConfig;
use crate::device::Link;
use crate::error::chain;
use crate::host::clock::Clock;
use crate::host::disk::errand::{Errand, SILENCE};
use crate::ledger::State;
use crate::ledger::rules::{Draft, PodList, release};
use crate::ledger::store::{LedgerDirs, Lock, Store};
use crate::ledger::watch::{LedgerWatch, Reading, WatchError};
use crate::node::{LinkWatch, NodeError};
use crate::observe::status::{GuardedPodStatus, Status};
use crate::pods::settings::{GuardSettings, Settings as _};
use crate::pods::translate;

/// How long the ledger's lock is waited for. Plugins hold it for milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Follows ledger and devices.
pub(super) struct Pods {
    dirs: LedgerDirs,
    settings: Option<GuardSettings>,
    translation: translate::Policy,
    watch: Option<LedgerWatch>,
    links: LinkWatch,
    /// An errand, because the disk may not answer.
    follow: Errand<Result<LedgerWatch, WatchError>>,
    read: Errand<Result<Reading, WatchError>>,
    leave: Errand<Result<(), String>>,
    releasing: Option<JoinHandle<Result<usize, WatchError>>>,
    alarms: Vec<String>,
    following: Problem,
    reading: Problem,
    listing: Problem,
    leaving: Problem,
    release: Problem,
}

impl Pods {
    /// Starts to follow; the first [`Self::read`] finds what is there already.
    pub(super) fn start(config: &AgentConfig) -> Result<Self, NodeError> {
        Ok(Self {
            dirs: config.place.ledger(),
            settings: config.guard.clone(),
            translation: config.translation.clone(),
            watch: None,
            links: LinkWatch::new()?,
            follow: Errand::default(),
            read: Errand::default(),
            leave: Errand::default(),
            releasing: None,
            alarms: Vec::new(),
            following: Problem::of("the ledger is not followed"),
            reading: Problem::of("the ledger cannot be read; what it said last is in force"),
            listing: Problem::of("devices cannot be listed; the last known ones are in force"),
            leaving: Problem::of("settings for yurt-cni cannot be written"),
            release: Problem::of("addresses of deleted Pods cannot be released"),
        })
    }

    /// Waits until there is something to [`Self::read`]. Cancel safe.
    pub(super) async fn changed(&mut self) {
        loop {
            let ledger = async {
                match &mut self.watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            let released = async {
                match &mut self.releasing {
                    Some(task) => task.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = ledger => return,
                // The watch is opened again by the next call.
                _late = self.follow.late() => return,
                _late = self.read.late() => return,
                _late = self.leave.late() => return,
                () = self.links.changed() => return,
                result = released => {
                    self.releasing = None;
                    let problem = match result {
                        Ok(Ok(count)) => {
                            if count > 0 {
                                info!(count, "released the addresses of Pods that were deleted");
                            }
                            None
                        }
                        Ok(Err(error)) => Some(chain(&error)),
                        Err(error) => Some(error.to_string()),
                    };
                    self.release.set(problem);
                }
            }
        }
    }

    /// Reads the ledger; `None`: it cannot be read. If the directory is this agent's, leaves the settings for plugins
    /// there.
    pub(super) async fn read(&mut self, is_ours: bool) -> Option<Reading> {
        self.keep_watching().await;
        match self.ask_the_disk(is_ours).await {
            Ok(reading) => {
                for alarm in &reading.alarms {
                    if !self.alarms.contains(alarm) {
                        warn!(alarm, "ledger");
                    }
                }
                self.alarms.clone_from(&reading.alarms);
                self.reading.set(None);
                Some(reading)
            }
            Err(problem) => {
                self.reading.set(Some(problem));
                None
            }
        }
    }

    /// Lists the devices; `None` where they cannot be.
    pub(super) async fn list_devices(&mut self) -> Option<Vec<Link>> {
        let listed = self.links.links().await;
        self.listing
            .set(listed.as_ref().err().map(|error| chain(error)));
        listed.ok()
    }

    /// Reads the ledger. Also writes the settings for plugins, if they differ, are missing, or were changed by another
    /// process. Does not write them into the directory of another agent, whose settings guard its own Pods.
    async fn ask_the_disk(&mut self, is_ours: bool) -> Result<Reading, String> {
        let settings = self.settings.clone();
        let translation = self.translation.clone();
        let directory = self.dirs.state_dir.clone();
        let leave = move || match is_ours {
            true => leave_settings(settings.as_ref(), &translation, &directory),
            false => Ok(()),
        };
        let dirs = self.dirs.clone();
        let (left, read) = tokio::join!(
            self.leave.run(leave),
            self.read.run(move || Reading::take(&dirs))
        );
        let silence = || format!("{}: {SILENCE}", self.dirs.state_dir.display());
        self.leaving
            .set(left.unwrap_or_else(|| Err(silence())).err());
        match read {
            Some(read) => read.map_err(|error| chain(&error)),
            None => Err(silence()),
        }
    }

    /// Follows the ledger, also in a directory that was made anew. What was written before this call is found by the
    /// reading after it.
    async fn keep_watching(&mut self) {
        if self.watch.as_ref().is_some_and(|watch| !watch.is_over()) {
            return;
        }
        let dirs = self.dirs.clone();
        let made = self.follow.run(move || LedgerWatch::new(&dirs)).await;
        let (watch, problem) = match made {
            Some(Ok(watch)) => (Some(watch), None),
            Some(Err(error)) => (None, Some(chain(&error))),
            None => {
                let run_dir = self.dirs.run_dir.display();
                (None, Some(format!("{run_dir}: {SILENCE}")))
            }
        };
        let problem = problem.map(|why| format!("it is read only from time to time: {why}"));
        self.following.set(problem);
        self.watch = watch;
    }

    /// Returns the address, if it belongs to a Pod of this node: by the ledger, or because its route leads to one. A
    /// node may have no `podCIDR`.
    pub(super) async fn pod_at(&self, known: &Known, address: IpAddr) -> Option<IpAddr> {
        let mut entries = known.entries().values();
        let is_known =
            entries.any(|entry| entry.state == State::Active && entry.addresses.contains(&address));
        if is_known {
            return Some(address);
        }
        // If the devices cannot be looked at, the ledger alone decides.
        let is_near = self.links.leads_to_pods(address).await.unwrap_or_default();
        is_near.then_some(address)
    }

    /// Releases the addresses that are kept for deleted Pods, if the cloud's present word has no such Pods. Another
    /// thread waits for the disk.
    pub(super) fn hear(&mut self, facts: &Facts<'_>) {
        let (None, Some(age), Some(snapshot)) = (&self.releasing, facts.pods_age, facts.snapshot)
        else {
            return;
        };
        let Reading { ledger, now, .. } = &facts.known.ledger;
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let list = PodList {
            pods: snapshot
                .pods
                .keys()
                .map(|name| (name.namespace.to_string(), name.name.to_string()))
                .collect(),
            is_live: true,
            read_at: now.at.saturating_sub(age),
        };
        if release(ledger, &list, *now).is_empty() {
            return;
        }
        let dirs = self.dirs.clone();
        self.releasing = Some(tokio::task::spawn_blocking(move || {
            let lock = Lock::take(&dirs, LOCK_PATIENCE)?;
            let mut store = Store::open(&dirs)?;
            let mut draft = Draft::new(store.ledger(), &Clock::read()?);
            // A Pod may have come back meanwhile.
            let released = release(draft.ledger(), &list, draft.now());
            let count = released.len();
            draft.take(released);
            store.commit(draft.into_records())?;
            lock.check()?;
            Ok(count)
        }));
    }

    /// What the ledger has, and what fails in following it. Other units add what they know of the same Pods.
    pub(super) fn report(&self, facts: &Facts<'_>, status: &mut Status) {
        let (known, retention) = (facts.known, &mut status.retention);
        retention.is_on = known.has_ledger();
        retention.pods = known
            .entries()
            .iter()
            .map(|(key, entry)| GuardedPodStatus {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                interface: key.interface.clone(),
                state: entry.state,
                addresses: entry.addresses.clone(),
                promised: entry.promised.clone(),
                translated: Vec::new(),
                mac: entry.mac,
                device: None,
                audited: 0,
                dropped: 0,
            })
            .collect();
        let problems = [
            &self.following,
            &self.reading,
            &self.listing,
            &self.leaving,
            &self.release,
        ];
        let problems = problems.into_iter().filter_map(Problem::get);
        let alarms = self.alarms.iter().chain(problems);
        retention.alarms.extend(alarms.cloned());
    }
}

fn leave_settings(
    settings: Option<&GuardSettings>,
    translation: &translate::Policy,
    directory: &Path,
) -> Result<(), String> {
    let translation = Some(translation).filter(|it| **it != translate::Policy::default());
    let guard = GuardSettings::leave(settings, directory).map_err(|error| {
        format!(
            "new Pods are guarded only once the agent has seen them: {}",
            chain(&error)
        )
    });
    let translate = translate::Policy::leave(translation, directory).map_err(|error| {
        format!(
            "new Pods may have another MAC than the addresses that are kept for them: {}",
            chain(&error)
        )
    });
    guard.and(translate)
}
