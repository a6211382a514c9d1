//! What a source tells of itself, for people and metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{KubeSource, Resource};

/// What was received of one resource since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// Bytes of bodies, as they came over the wire.
    pub bytes: u64,
    /// Objects in lists and events.
    pub objects: u64,
    /// Requests for a list.
    pub lists: u64,
    /// Requests for a watch.
    pub watches: u64,
    /// Objects that watches said were added, modified or deleted.
    pub events: u64,
}

impl KubeSource {
    /// The time since the source was last heard of; `None` = never.
    pub fn silence(&self) -> Option<Duration> {
        self.last_sign().map(|at| at.elapsed())
    }

    /// What fails at present, on one line.
    pub fn error(&self) -> Option<String> {
        self.failures_of(|_| true)
    }

    /// Why it does not answer, on one line; `None` while it does, whatever may fail besides.
    pub fn why_lost(&self) -> Option<String> {
        self.failures_of(Resource::is_required)
    }

    fn failures_of(&self, is_meant: impl Fn(Resource) -> bool) -> Option<String> {
        let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let gaps = self.gaps.long();
        let gaps = gaps.filter(|resource| !self.state.has_failed(*resource));
        let gaps = gaps.map(|resource| (resource, "a list of it is on its way"));
        let failures = self.state.failures().chain(gaps);
        for (resource, why) in failures.filter(|(resource, _)| is_meant(*resource)) {
            by_reason.entry(why).or_default().push(resource.name());
        }
        let reasons = by_reason.iter();
        let reasons = reasons.map(|(why, resources)| format!("{}: {why}", resources.join(", ")));
        let all: Vec<String> = reasons.collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// What was received, by resource.
    pub fn received(&self) -> BTreeMap<&'static str, Received> {
        let counters = self.counters.iter();
        counters
            .map(|(resource, counters)| {
                let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
                let received = Received {
                    bytes: get(&counters.bytes),
                    objects: get(&counters.objects),
                    lists: get(&counters.lists),
                    watches: get(&counters.watches),
                    events: get(&counters.events),
                };
                (resource.name(), received)
            })
            .collect()
    }
}
