//! What a source reports of itself, for people and metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use super::KubeSource;
use super::received::Received;
use super::resource::Resource;

impl KubeSource {
    /// The time since the source was last heard from; `None` = never.
    pub(crate) fn silence(&self) -> Option<Duration> {
        self.last_sign().map(|at| at.elapsed())
    }

    /// What fails at present, on one line.
    pub(crate) fn error(&self) -> Option<String> {
        self.failures_of(|_| true)
    }

    /// Why it does not answer, on one line; `None` while it answers, whatever else may fail.
    pub(crate) fn why_lost(&self) -> Option<String> {
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
    pub(crate) fn received(&self) -> BTreeMap<&'static str, Received> {
        let counters = self.counters.iter();
        counters
            .map(|(resource, counters)| (resource.name(), counters.received()))
            .collect()
    }
}
