//! Which endpoints of this node answer, for the time when nobody tells: a kubelet's word of a failed readiness probe does not reach a
//! cloud that is away (openyurt#303).
//!
//! Pure. In: the slices, where their Pods are, the Pods' own readiness probes, the outcome of each question, the time. Out: what to ask next,
//! and which backends fail. Rules in order: (1) a Pod's readiness probes speak for all of its endpoints; where none can be asked, a TCP
//! connect for each TCP port; (2) an endpoint is believed until `failureThreshold` failures in a row, and again after
//! `successThreshold` answers. That some have to stay in whatever their probes say is for `policy` to see to, which knows the sets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::truth::{Move, Truth};
use crate::model::{EndpointSlice, NamespacedName, Protocol, Question, ReadinessProbe, Snapshot};

/// An endpoint as tables have it.
pub type Backend = (SocketAddr, Protocol);

/// Backends that fail, with what is said of them.
pub type Failing = BTreeMap<Backend, Arc<str>>;

/// A question that is asked periodically.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Check {
    /// The Pod that is asked.
    pub pod: NamespacedName,
    /// Its address, with the probe's port.
    pub at: SocketAddr,
    /// What is asked, and how often.
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

/// What to ask about the endpoints of this node, and which backends each answer decides on. `truth` is where Pods are, if that is
/// known better than the slices are.
pub fn checks(snapshot: &Snapshot, truth: Option<&Truth>) -> BTreeMap<Check, BTreeSet<Backend>> {
    let mut checks: BTreeMap<Check, BTreeSet<Backend>> = BTreeMap::new();
    let slices = snapshot.slices.values();
    for slice in slices.filter(|slice| !slice.is_headless && !slice.pods.is_empty()) {
        for (name, backends) in local(slice, truth) {
            let pod = NamespacedName::new(slice.name.namespace.clone(), name);
            let known = snapshot.pods.get(&pod);
            let readiness = known.map_or(&[][..], |pod| &pod.readiness);
            let mut ask = |at: SocketAddr, probe: &ReadinessProbe, backend| {
                let check = Check {
                    pod: pod.clone(),
                    at: SocketAddr::new(at.ip(), probe.port),
                    probe: probe.clone(),
                };
                checks.entry(check).or_default().insert(backend);
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
    checks
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
        let ports = slice.ports.iter();
        let backends = ports.map(|port| (SocketAddr::new(address, port.port), port.protocol));
        Some((pod.name.clone(), backends.collect()))
    })
}

/// How it went so far with a check.
#[derive(Clone, Debug)]
struct Course {
    backends: BTreeSet<Backend>,
    /// When to ask next.
    due: Duration,
    is_running: bool,
    /// Outcomes in a row that speak against what is believed.
    against: u32,
    /// Why it fails; `None`: it passes.
    failure: Option<Arc<str>>,
}

/// All checks. Times are since any one moment.
#[derive(Clone, Debug, Default)]
pub struct Prober {
    checks: BTreeMap<Check, Course>,
}

impl Prober {
    /// Takes up what is to be asked from now on. What was asked before goes on where it was; what is new is believed at first, and asked
    /// within its period: after `spread(period)`, so that not all are asked at once.
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

    /// The check that is due longest. It is not due again before its period is over and its outcome is told.
    pub fn take_due(&mut self, now: Duration) -> Option<Check> {
        let idle = self.checks.iter_mut().filter(|(_, c)| !c.is_running);
        let (check, course) = idle.min_by_key(|(_, course)| course.due)?;
        if course.due > now {
            return None;
        }
        course.is_running = true;
        course.due = now + check.period();
        Some(check.clone())
    }

    /// When the next one is due.
    pub fn next_due(&self) -> Option<Duration> {
        let idle = self.checks.values().filter(|course| !course.is_running);
        idle.map(|course| course.due).min()
    }

    /// What came of a check; true when it is believed to be something else than before.
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

    /// The backends of which a check fails.
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
