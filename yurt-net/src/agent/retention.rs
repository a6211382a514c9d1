//! Retention in the agent: it follows the ledger that the plugins write, guards the Pods in it, and has those released whose
//! objects are gone.
//!
//! Nothing here keeps Services from being served: what fails is said in `status`, and tried again with the next change or tick.
//! While no plugin has ever written a ledger, nothing is loaded and nobody is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use super::cni::CniKeeper;
use super::complaints::Complaints;
use super::guarding::Guarding;
use super::translating::Translating;
use crate::config::AgentConfig;
use crate::dataplane::pod::guard::{Guard, Spoofs};
use crate::device::{Complaint, Link};
use crate::error::chain;
use crate::host::clock::Clock;
use crate::host::disk::errand::{Errand, SILENCE};
use crate::ledger::rules::{Draft, PodList, release};
use crate::ledger::store::{LedgerDirs, Lock, Store};
use crate::ledger::watch::{LedgerWatch, Reading, WatchError};
use crate::ledger::{Entry, Key, State, is_same};
use crate::model::Snapshot;
use crate::node::{LinkWatch, NodeError};
use crate::observe::status::{self, GuardedPodStatus};
use crate::pods::guard::{ExtraPolicy, Policy, Reserved, compile};
use crate::pods::members::Members;
use crate::pods::settings::{GuardSettings, Settings as _};
use crate::pods::translate;
use crate::pods::truth::Truth;
use crate::policy::protected::Protected;
use crate::policy::{NodeView, PolicyConfig};
use crate::source::preferred::Sources;

/// Plugins are at the ledger for milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Retention {
    place: LedgerDirs,
    settings: Option<GuardSettings>,
    extra: ExtraPolicy,
    watch: Option<LedgerWatch>,
    links: LinkWatch,
    /// The last good ones.
    reading: Reading,
    /// The disk may not answer.
    read: Errand<Result<Reading, WatchError>>,
    leave: Errand<Result<(), String>>,
    /// `None`: they could not be listed yet.
    devices: Option<Vec<Link>>,
    /// Pods are asked for, and devices are looked at, whether a plugin has written or not.
    is_probing: bool,
    guarding: Guarding,
    translating: Translating,
    cni: Option<CniKeeper>,
    complaints: Complaints,
    releasing: Option<JoinHandle<Result<usize, WatchError>>>,
    /// Why not all is as it should be, as it was said last.
    problems: Problems,
}

/// What fails at present.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Problems {
    watch: Option<String>,
    ledger: Option<String>,
    devices: Option<String>,
    settings: Option<String>,
    guard: Option<String>,
    translation: Option<String>,
    release: Option<String>,
}

impl Retention {
    /// Starts to follow; what is there already is found by the first [`Self::update`].
    pub(super) fn start(config: &AgentConfig) -> Result<Self, NodeError> {
        let place = config.place.ledger();
        let settings = config.guard.clone();
        let withdrawn = match settings {
            None => Guard::withdraw(&config.place.bpffs),
            Some(_) => Ok(()),
        };
        let translation = config.translation.clone();
        let mut retention = Self {
            watch: None,
            settings,
            extra: config.extra.clone(),
            links: LinkWatch::new()?,
            reading: Reading::default(),
            read: Errand::default(),
            leave: Errand::default(),
            devices: None,
            is_probing: config.probes_endpoints,
            guarding: Guarding::new(config.place.bpffs.clone(), place.clone()),
            translating: Translating::new(config.place.bpffs.clone(), translation),
            place,
            cni: config
                .cni
                .clone()
                .map(|(cni, directories)| CniKeeper::start(cni, directories)),
            complaints: Complaints::about("guard"),
            releasing: None,
            problems: Problems::default(),
        };
        let problem = withdrawn.err().map(|error| {
            format!(
                "the guard of an earlier agent stays on Pods' devices, and may drop what they send: {}; \
                 run yurt-net cleanup, then start the agent again",
                chain(&error)
            )
        });
        set(&mut retention.problems.guard, "guard", problem);
        Ok(retention)
    }

    /// Leaves what plugins go by where they look for it, whoever has taken it away or changed it since. Writes only what differs.
    /// Beside it, reads the ledger.
    async fn ask_the_disk(&mut self) -> Result<Reading, String> {
        let settings = self.settings.clone();
        let translation = self.translating.policy().clone();
        let directory = self.place.state_dir.clone();
        let leave = move || leave_settings(settings.as_ref(), &translation, &directory);
        let place = self.place.clone();
        let (left, read) = tokio::join!(
            self.leave.run(leave),
            self.read.run(move || Reading::take(&place))
        );
        let silence = || format!("{}: {SILENCE}", self.place.state_dir.display());
        let problem = left.unwrap_or_else(|| Err(silence())).err();
        set(
            &mut self.problems.settings,
            "settings for yurt-cni",
            problem,
        );
        match read {
            Some(read) => read.map_err(|error| chain(&error)),
            None => Err(silence()),
        }
    }

    /// Follows the ledger, wherever its directory was made anew. What is written before this is found by the reading after it.
    fn keep_watching(&mut self) {
        if self.watch.as_ref().is_some_and(|watch| !watch.is_over()) {
            return;
        }
        let watch = LedgerWatch::new(&self.place);
        let problem = watch.as_ref().err();
        let problem =
            problem.map(|error| format!("it is read only every now and then: {}", chain(error)));
        set(&mut self.problems.watch, "following the ledger", problem);
        self.watch = watch.ok();
    }

    /// Waits until something asks for an [`Self::update`]. Cancel safe.
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
                // All of it is asked for again.
                _late = self.read.late() => return,
                _late = self.leave.late() => return,
                () = self.links.changed() => return,
                is_outdated = self.guarding.done() => {
                    let problem = self.guarding.problem().cloned();
                    set(&mut self.problems.guard, "guard", problem);
                    if is_outdated {
                        return;
                    }
                }
                () = self.translating.done() => {
                    let problem = self.translating.problem().cloned();
                    set(&mut self.problems.translation, "translation", problem);
                }
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
                    set(&mut self.problems.release, "release", problem);
                }
            }
        }
    }

    /// The address, if a Pod of this node is there: by the ledger, or because it leads to one. A node may have no `podCIDR`.
    pub(super) async fn pod_at(&self, address: IpAddr) -> Option<IpAddr> {
        let mut entries = self.entries().values();
        let is_known =
            entries.any(|entry| entry.state == State::Active && entry.addresses.contains(&address));
        if is_known {
            return Some(address);
        }
        // Who cannot look says what it would say without.
        let is_near = self.links.leads_to_pods(address).await.unwrap_or_default();
        is_near.then_some(address)
    }

    /// Whose addresses are whose, as the ledger has it.
    pub(super) fn entries(&self) -> &BTreeMap<Key, Entry> {
        self.reading.ledger.entries()
    }

    /// Where Pods of this node are; `None` where no plugin tells.
    pub(super) fn truth(&self) -> Option<Arc<Truth>> {
        let devices = self.devices.as_deref();
        self.is_on()
            .then(|| Arc::new(Truth::new(&self.reading.ledger, devices)))
    }

    /// A plugin has written the ledger once.
    fn is_on(&self) -> bool {
        !self.reading.ledger.entries().is_empty() || self.guarding.is_loaded()
    }

    /// Reads what there is, and brings the kernel and the ledger in step with it.
    pub(super) async fn update(
        &mut self,
        sources: &mut Sources,
        config: &PolicyConfig,
        view: &NodeView,
    ) {
        self.keep_watching();
        match self.ask_the_disk().await {
            Ok(reading) => {
                if reading.alarms != self.reading.alarms {
                    for alarm in &reading.alarms {
                        warn!(alarm, "ledger");
                    }
                }
                let has_changed = !is_same(reading.ledger.entries(), self.entries());
                self.reading = reading;
                set(&mut self.problems.ledger, "ledger", None);
                if has_changed {
                    sources.refresh_pods();
                }
            }
            Err(problem) => set(&mut self.problems.ledger, "ledger", Some(problem)),
        }
        if !self.is_on() && !self.is_probing {
            return;
        }
        sources.follow_pods();
        // After the ledger: a device is there before its Pod is in it.
        let problem = match self.links.links().await {
            Ok(links) => {
                self.devices = Some(links);
                None
            }
            Err(error) => Some(chain(&error)),
        };
        set(&mut self.problems.devices, "devices", problem);
        if self.is_on() {
            self.guard_pods(sources.snapshot(), config, view);
            // Without a list of devices there is none that could be translated: what is, stays.
            if let Some(devices) = &self.devices {
                let local = view.local_addresses.as_ref();
                let members = self.members(sources.snapshot());
                let (candidates, owners) = (members.candidates(), members.owners());
                self.translating.update(candidates, owners, devices, local);
            }
            self.release(sources);
        }
    }

    /// A default route leads out of a device that is up. Where nobody has looked, none is known.
    pub(super) fn is_link_up(&self) -> bool {
        let mut devices = self.devices.iter().flatten();
        devices.any(|device| device.is_uplink && device.has_carrier)
    }

    fn members<'a>(&'a self, snapshot: Option<&'a Snapshot>) -> Members<'a> {
        Members {
            ledger: &self.reading.ledger,
            now: self.reading.now,
            snapshot,
            translation: self.translating.policy(),
        }
    }

    fn guard_pods(&mut self, snapshot: Option<&Snapshot>, config: &PolicyConfig, view: &NodeView) {
        let (Some(settings), Some(devices)) = (&self.settings, &self.devices) else {
            return;
        };
        let (pods, mut complaints) = self.members(snapshot).guarded();
        let nothing = (Snapshot::default(), BTreeSet::new());
        let snapshot = snapshot.unwrap_or(&nothing.0);
        let local = view.local_addresses.as_ref().unwrap_or(&nothing.1);
        let protected = || {
            let protected = Protected::new(snapshot, config, view);
            let owned = protected.listed().map(|(at, whose)| (at, whose.owner()));
            owned.collect::<Vec<_>>()
        };
        let node = (&*config.node, local);
        let reserved = Reserved::new(node, snapshot, protected, &self.reading.ledger, &pods);
        let policy = Policy {
            extra: self.extra.clone(),
            ..settings.policy()
        };
        let (wanted, more) = compile(&pods, devices, &reserved, &policy);
        complaints.extend(more);
        self.complaints.set(complaints);
        self.guarding
            .bring_to(wanted, self.reading.ledger.entries());
    }

    /// Has what is kept for deleted Pods released, where the cloud's present word says so. The disk is waited for elsewhere.
    fn release(&mut self, sources: &Sources) {
        let (None, Some(read_at), Some(snapshot)) =
            (&self.releasing, sources.pods_read_at(), sources.snapshot())
        else {
            return;
        };
        let age = Instant::now().saturating_duration_since(read_at);
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let list = PodList {
            pods: snapshot
                .pods
                .keys()
                .map(|name| (name.namespace.to_string(), name.name.to_string()))
                .collect(),
            is_live: true,
            read_at: self.reading.now.at.saturating_sub(age),
        };
        if release(&self.reading.ledger, &list, self.reading.now).is_empty() {
            return;
        }
        let place = self.place.clone();
        self.releasing = Some(tokio::task::spawn_blocking(move || {
            let lock = Lock::take(&place, LOCK_PATIENCE)?;
            let mut store = Store::open(&place)?;
            let mut draft = Draft::new(store.ledger(), &Clock::read()?);
            // A Pod may have come back since.
            let released = release(draft.ledger(), &list, draft.now());
            let count = released.len();
            draft.take(released);
            store.commit(draft.into_records())?;
            lock.check()?;
            Ok(count)
        }));
    }

    /// For `status` and metrics.
    pub(super) fn status(&self) -> status::Retention {
        let mut pods = Vec::new();
        for (key, entry) in self.reading.ledger.entries() {
            pods.push(self.pod_status(key, entry));
        }
        let Spoofs { audited, dropped } = self.guarding.spoofs(None);
        let Problems {
            watch,
            ledger,
            devices,
            settings,
            guard,
            translation,
            release,
        } = self.problems.clone();
        let cni = self.cni.as_ref().and_then(CniKeeper::problem);
        let problems = [
            cni,
            watch,
            ledger,
            devices,
            settings,
            guard,
            translation,
            release,
        ];
        let problems = problems.into_iter().flatten();
        let complaints = self.complaints.iter().chain(self.translating.complaints());
        let complaints = complaints.map(|complaint| {
            let Complaint {
                pod,
                interface,
                reason,
            } = complaint;
            format!("Pod {pod} ({interface}): {reason}")
        });
        status::Retention {
            is_on: self.is_on(),
            guard: match (&self.settings, self.guarding.is_loaded()) {
                (None, _) => "off".to_owned(),
                (Some(_), false) => "waiting for the first Pod".to_owned(),
                (Some(settings), true) if settings.enforce => "enforce".to_owned(),
                (Some(_), true) => "audit".to_owned(),
            },
            guarded_devices: self.guarding.guarded().len(),
            alarms: self
                .reading
                .alarms
                .iter()
                .cloned()
                .chain(problems)
                .chain(complaints)
                .collect(),
            audited: by_reason(&audited),
            dropped: by_reason(&dropped),
            endpoints_moved: 0,
            endpoints_away: 0,
            endpoints_failing: 0,
            translated_packets: self
                .translating
                .packets()
                .into_iter()
                .map(|(what, count)| (what.to_owned(), count))
                .collect(),
            pods,
        }
    }

    fn pod_status(&self, key: &Key, entry: &Entry) -> GuardedPodStatus {
        let ifindex = entry.host.map(|host| host.ifindex);
        let ifindex = ifindex.filter(|ifindex| self.guarding.guarded().contains(ifindex));
        let Spoofs { audited, dropped } = match ifindex {
            Some(ifindex) => self.guarding.spoofs(Some(ifindex)),
            None => Spoofs::default(),
        };
        let device = ifindex.and_then(|ifindex| {
            let mut devices = self.devices.iter().flatten();
            devices.find(|device| device.ifindex == ifindex)
        });
        GuardedPodStatus {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            interface: key.interface.clone(),
            state: entry.state,
            addresses: entry.addresses.clone(),
            promised: entry.promised.clone(),
            translated: entry
                .host
                .and_then(|host| self.translating.translated().get(&host.ifindex))
                .cloned()
                .unwrap_or_default(),
            mac: entry.mac,
            device: device.map(|device| device.name.clone()),
            audited: audited.values().sum(),
            dropped: dropped.values().sum(),
        }
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

/// Says what fails when it begins to.
fn set(known: &mut Option<String>, what: &str, problem: Option<String>) {
    if let Some(problem) = &problem
        && known.as_ref() != Some(problem)
    {
        warn!(what, problem, "retention is not as it should be");
    }
    *known = problem;
}

fn by_reason(counts: &BTreeMap<&'static str, u64>) -> BTreeMap<String, u64> {
    let counts = counts.iter();
    counts
        .map(|(reason, count)| ((*reason).to_owned(), *count))
        .collect()
}
