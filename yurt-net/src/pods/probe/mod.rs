//! Which endpoints of this node answer, while the cloud is away: a kubelet cannot report failed readiness probes to it
//! then (openyurt#303).
//!
//! Pure. From the slices, the places of their Pods, the Pods' own readiness probes, the outcome of each probe and the
//! time, this makes the next probe and the backends that fail. The rules, in this order: (1) the readiness probes of a
//! Pod decide about all its endpoints; if none of them can be run, a TCP connect to each TCP port does. (2) An endpoint
//! fails after `failureThreshold` failures in a row, and is well again after `successThreshold` successes. (3) A tenant
//! may write slices of thousands of endpoints and ports of this node, and probes that take an hour. So there are limits
//! for the backends of a Pod, of all Pods, and for the questions of a namespace that are open at a time. How many
//! endpoints stay in a set even if their probes fail is decided by `policy`, which knows the sets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::truth::{Move, Truth};
use crate::model::{EndpointSlice, NamespacedName, Protocol, Question, ReadinessProbe, Snapshot};

/// Backends that are asked for: those of one Pod. A backend counts once for each probe of its Pod.
const MOST_OF_POD: usize = 64;
/// Those of all Pods of this node; a kubelet runs 110.
const MOST: usize = 2000;
/// Questions of one namespace that wait for their answers.
const MOST_OPEN: usize = 4;

/// An endpoint as tables have it.
pub type Backend = (SocketAddr, Protocol);

/// The backends that fail, each with the reason.
pub type Failing = BTreeMap<Backend, Arc<str>>;

/// A probe that is run periodically.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Check {
    /// The Pod that is probed.
    pub pod: NamespacedName,
    /// The Pod's address, with the probe's port.
    pub at: SocketAddr,
    /// How to probe, and how often.
    pub probe: ReadinessProbe,
}

impl Check {
    /// How long an answer may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.probe.timeout_seconds.into())
    }

    fn period(&self) -> Duration {
        Duration::from_secs(self.probe.period_seconds.into())
    }

    fn describe(&self, failure: &str) -> Arc<str> {
        let what = match self.probe.question {
            Question::Connect => "a TCP connect",
            Question::Get { .. } => "an HTTP GET",
            Question::Grpc { .. } => "a gRPC health check",
        };
        format!("{what} to Pod {} at {}: {failure}", self.pod, self.at).into()
    }
}

/// Which questions are asked.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The probes for the endpoints of this node, and the backends that each of them decides about.
    pub checks: BTreeMap<Check, BTreeSet<Backend>>,
    /// There are more than are asked.
    pub has_more: bool,
    /// How many backends each namespace has.
    of_namespace: BTreeMap<Arc<str>, usize>,
    of_pod: BTreeMap<NamespacedName, usize>,
}

impl Wanted {
    fn is_full(&self, namespace: &str) -> bool {
        let count = self.of_namespace.get(namespace);
        count.is_some_and(|count| *count >= MOST)
    }

    fn add(&mut self, check: Check, backend: Backend) {
        let namespace = check.pod.namespace.clone();
        let of_namespace = self.of_namespace.entry(namespace).or_default();
        let of_pod = self.of_pod.entry(check.pod.clone()).or_default();
        if *of_namespace >= MOST || *of_pod >= MOST_OF_POD {
            self.has_more = true;
        } else if self.checks.entry(check).or_default().insert(backend) {
            (*of_namespace, *of_pod) = (*of_namespace + 1, *of_pod + 1);
        }
    }

    /// Where all together are too many, each namespace has an even share.
    fn within_limits(mut self) -> Self {
        if self.of_namespace.values().sum::<usize>() <= MOST {
            return self;
        }
        self.has_more = true;
        let share = (MOST / self.of_namespace.len()).max(1);
        let mut left: BTreeMap<Arc<str>, usize> = BTreeMap::new();
        self.checks.retain(|check, backends| {
            let namespace = check.pod.namespace.clone();
            let left = left.entry(namespace).or_insert(share);
            let rest = left.checked_sub(backends.len());
            *left = rest.unwrap_or(*left);
            rest.is_some()
        });
        self
    }
}

/// The probes for the endpoints of this node. `truth` says where Pods are, if that is known better than from the
/// slices.
pub fn checks(snapshot: &Snapshot, truth: Option<&Truth>) -> Wanted {
    let mut wanted = Wanted::default();
    let slices = snapshot.slices.values();
    for slice in slices.filter(|slice| !slice.is_headless && !slice.pods.is_empty()) {
        for (name, backends) in local(slice, truth) {
            if wanted.is_full(&slice.name.namespace) {
                wanted.has_more = true;
                break;
            }
            let pod = NamespacedName::new(slice.name.namespace.clone(), name);
            let known = snapshot.pods.get(&pod);
            let readiness = known.map_or(&[][..], |pod| &pod.readiness);
            let mut ask = |at: SocketAddr, probe: &ReadinessProbe, backend| {
                let check = Check {
                    pod: pod.clone(),
                    at: SocketAddr::new(at.ip(), probe.port),
                    probe: probe.clone(),
                };
                wanted.add(check, backend);
            };
            for backend in backends {
                let (at, protocol) = backend;
                for probe in readiness {
                    ask(at, probe, backend);
                }
                if readiness.is_empty() && protocol == Protocol::Tcp {
                    ask(at, &ReadinessProbe::connect(at.port()), backend);
                }
            }
        }
    }
    wanted.within_limits()
}

/// The endpoints of a slice that are Pods of this node and take traffic, by Pod.
fn local<'a>(
    slice: &'a EndpointSlice,
    truth: Option<&'a Truth>,
) -> impl Iterator<Item = (Arc<str>, Vec<Backend>)> {
    let moves = truth.into_iter().flat_map(|truth| truth.moves(slice));
    let moves: BTreeMap<usize, Move> = moves.map(|(index, _, moved)| (index, moved)).collect();
    slice.pods.iter().filter_map(move |pod| {
        let index = usize::try_from(pod.endpoint).ok()?;
        let endpoint = slice.endpoints.get(index)?;
        if !endpoint.is_ready || endpoint.is_terminating {
            return None;
        }
        let address = match moves.get(&index) {
            None => endpoint.address,
            Some(Move::To(address)) => *address,
            Some(Move::Away) => return None,
        };
        // One more than are asked for: enough to tell that there are more.
        let ports = slice.ports.iter().take(MOST_OF_POD + 1);
        let backends = ports.map(|port| (SocketAddr::new(address, port.port), port.protocol));
        Some((pod.name.clone(), backends.collect()))
    })
}

/// The course of a check so far.
#[derive(Clone, Debug)]
struct Course {
    backends: BTreeSet<Backend>,
    /// When it is due next.
    due: Duration,
    is_running: bool,
    /// Outcomes in a row that contradict what is believed.
    against: u32,
    /// Why it fails; `None` if it passes.
    failure: Option<Arc<str>>,
}

/// All checks. Times count from any fixed moment.
#[derive(Clone, Debug, Default)]
pub struct Prober {
    checks: BTreeMap<Check, Course>,
}

impl Prober {
    /// Sets the checks. A check that was there before goes on; a new one is believed to pass, and is due within its
    /// period, after `spread(period)`, so that not all are due at once.
    pub fn set(
        &mut self,
        wanted: BTreeMap<Check, BTreeSet<Backend>>,
        now: Duration,
        mut spread: impl FnMut(Duration) -> Duration,
    ) {
        let mut known = std::mem::take(&mut self.checks);
        let checks = wanted.into_iter().map(|(check, backends)| {
            let course = match known.remove(&check) {
                Some(course) => Course { backends, ..course },
                None => Course {
                    backends,
                    due: now + spread(check.period()),
                    is_running: false,
                    against: 0,
                    failure: None,
                },
            };
            (check, course)
        });
        self.checks = checks.collect();
    }

    /// The check that is overdue longest, of a namespace that may ask. It is due again once its period is over and its
    /// outcome has been told.
    pub fn take_due(&mut self, now: Duration) -> Option<Check> {
        let busy = self.busy();
        let idle = self.checks.iter_mut();
        let idle = idle.filter(|(check, c)| !c.is_running && !busy.contains(&check.pod.namespace));
        let (check, course) = idle.min_by_key(|(_, course)| course.due)?;
        if course.due > now {
            return None;
        }
        course.is_running = true;
        course.due = now + check.period();
        Some(check.clone())
    }

    /// When the next check is due; `None`: not before an outcome is told.
    pub fn next_due(&self) -> Option<Duration> {
        let busy = self.busy();
        let idle = self.checks.iter();
        let idle = idle.filter(|(check, c)| !c.is_running && !busy.contains(&check.pod.namespace));
        idle.map(|(_, course)| course.due).min()
    }

    /// Namespaces with as many open questions as they may have.
    fn busy(&self) -> BTreeSet<Arc<str>> {
        let mut open: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
        let running = self.checks.iter().filter(|(_, course)| course.is_running);
        for (check, _) in running {
            *open.entry(&check.pod.namespace).or_default() += 1;
        }
        let busy = open.into_iter().filter(|(_, open)| *open >= MOST_OPEN);
        busy.map(|(namespace, _)| namespace.clone()).collect()
    }

    /// Whether somebody still wants the outcome of a check.
    pub fn is_wanted(&self, check: &Check) -> bool {
        self.checks.contains_key(check)
    }

    /// Takes up the outcome of a check, and returns whether that changes what is believed.
    pub fn tell(&mut self, check: &Check, outcome: Result<(), &str>) -> bool {
        let Some(course) = self.checks.get_mut(check) else {
            return false;
        };
        course.is_running = false;
        if outcome.is_ok() == course.failure.is_none() {
            course.against = 0;
            return false;
        }
        course.against += 1;
        let threshold = match outcome {
            Ok(()) => check.probe.success_threshold,
            Err(_) => check.probe.failure_threshold,
        };
        if course.against < threshold {
            return false;
        }
        course.against = 0;
        course.failure = outcome.err().map(|failure| check.describe(failure));
        true
    }

    /// The backends with a check that fails.
    pub fn failing(&self) -> Failing {
        let mut failing = Failing::new();
        for course in self.checks.values() {
            for backend in course.failure.iter().flat_map(|_| &course.backends) {
                if let Some(failure) = &course.failure {
                    failing.entry(*backend).or_insert_with(|| failure.clone());
                }
            }
        }
        failing
    }
}

#[cfg(test)]
mod tests;
