//! The sources in order of preference, and which of them is in charge (`charge` has the rules).
//!
//! The snapshot in force is that of the source in charge. Until a source has been in charge, it is the checkpoint's.
//! Without a checkpoint there is no snapshot, and nothing is written to the kernel.
//!
//! The table does not go back in time when another source takes charge. A source that was away while another one was
//! believed forgets what it said, and lists everything again before it counts as good. YurtHub lists from its disk, so
//! it must also hear from the cloud, or hear something newer. What the checkpoint holds from another source counts as
//! that source's word, also after a reboot; so does what an earlier agent left in the maps.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::{FutureExt as _, LocalBoxFuture, pending, select_all};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::checkpoint::{Loaded, Provenance};
use super::error::SourceError;
use super::hub::is_hub;
use super::kube::{KubeSource, Scope};
use super::spec::{Api, SourceSpec};
use crate::model::{Snapshot, Touched};
use crate::table::edition::{Edition, SaidBy};

mod charge;
mod followed;
mod report;
mod status;

use charge::{Act, Charge};
use followed::FollowedFile;
pub use status::{FollowedSource, Origin, SourceStatus};

/// All sources of one agent, of which one is in charge.
pub struct Sources {
    specs: Vec<SourceSpec>,
    scope: Scope,
    /// `kube:` leads to YurtHub, as far as was known at the start.
    is_inferred_hub: bool,
    active: Vec<Option<Source>>,
    /// Whether each source answers, as the log last said.
    presence: Vec<Presence>,
    charge: Charge,
    started: Instant,
    /// What the agent booted from; dropped when a source takes charge.
    checkpoint: Option<Loaded>,
    /// How many Services are in the maps that an earlier agent left. They are in force until a source speaks.
    adopted: usize,
    /// The source that said what is in these maps, if they are newer than the checkpoint.
    adopted_of: Option<SaidBy>,
    /// The snapshot in force comes from another source than at the last call of `take_up`.
    is_other: bool,
}

enum Source {
    File(Box<FollowedFile>),
    Kube(Box<KubeSource>),
}

/// Whether a source answers, as the log last said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Unknown,
    Here,
    Lost(Instant),
}

impl Presence {
    /// Notes whether the source is good now; `error` is what keeps it from being good. Logs one line when the source is
    /// lost or gives no answer at first, and one when it is back: links go and come all day.
    fn note(&mut self, spec: &SourceSpec, is_good: bool, error: Option<String>) {
        match (*self, is_good) {
            (Self::Here, false) => {
                *self = Self::Lost(Instant::now());
                let error = error.unwrap_or_default();
                warn!(source = %spec, error, "source: lost; what it said last stays in force");
            }
            (Self::Lost(since), true) => {
                *self = Self::Here;
                let away_seconds = since.elapsed().as_secs();
                info!(source = %spec, away_seconds, "source: back");
            }
            (Self::Unknown, true) => *self = Self::Here,
            (Self::Unknown, false) => {
                // Until its first failure, its answer is on its way.
                if let Some(error) = error {
                    *self = Self::Lost(Instant::now());
                    info!(source = %spec, error, "source: gives no answer yet");
                }
            }
            (Self::Lost(_), false) | (Self::Here, true) => {}
        }
    }
}

/// Whether the snapshot in force is the cloud's present word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It is.
    Fresh,
    /// The word of a cache, of a checkpoint, or of a source that has fallen silent: it may be older than this node's
    /// own state.
    Stale,
}

impl Freshness {
    /// Whether it is the present word.
    pub fn is_fresh(self) -> bool {
        self == Self::Fresh
    }
}

impl Sources {
    /// Starts the first source. A file that cannot be read is an error if it is the only source; one whose disk does
    /// not answer is waited for later.
    pub async fn start(
        specs: &[SourceSpec],
        scope: Scope,
        checkpoint: Option<Loaded>,
    ) -> Result<Self, SourceError> {
        let inferred = SourceSpec::Kube(Api::Inferred);
        let last = checkpoint.as_ref().map(|last| &last.provenance.source);
        let is_inferred =
            specs.contains(&inferred) || last.is_some_and(|last| *last == inferred.to_string());
        let mut sources = Self {
            specs: specs.to_vec(),
            is_inferred_hub: is_inferred && scope.access.leads_to_hub().await,
            scope,
            active: specs.iter().map(|_| None).collect(),
            presence: vec![Presence::Unknown; specs.len()],
            charge: Charge::new(specs.len()),
            started: Instant::now(),
            checkpoint,
            adopted: 0,
            adopted_of: None,
            is_other: true,
        };
        if let [SourceSpec::File(path)] = specs {
            let last = sources.last_word(&specs[0]);
            let mut file = FollowedFile::start(path, last.map(|loaded| &loaded.snapshot));
            match file.first_load().await {
                // A mistake in the first manifests shows at once; manifests that were read before were good.
                Some(error) if last.is_none() => return Err(error),
                Some(_) | None => {}
            }
            sources.charge.decide(Duration::ZERO);
            sources.active[0] = Some(Source::File(Box::new(file)));
        }
        sources.decide();
        Ok(sources)
    }

    /// Tells how many Services are in the maps that an earlier agent left: a cache that lists far fewer is held back,
    /// as with a checkpoint. `newer`: the source that said them, if they are newer than the checkpoint.
    pub fn expect(&mut self, services: usize, newer: Option<SaidBy>) {
        self.adopted = services;
        self.adopted_of = newer;
        for source in self.active.iter_mut().flatten() {
            if let Source::Kube(source) = source {
                source.expect(services);
            }
        }
    }

    /// Takes up a checkpoint that the disk delivered after the start. False if a source has spoken since, because its
    /// word counts more.
    pub fn remember(&mut self, checkpoint: Loaded) -> bool {
        if self.charge.in_charge().is_some() || self.checkpoint.is_some() {
            return false;
        }
        for (spec, source) in self.specs.iter().zip(&mut self.active) {
            let is_of_it = checkpoint.provenance.source == spec.to_string();
            match source {
                Some(Source::Kube(source)) => source.learn(&checkpoint.snapshot),
                Some(Source::File(file)) if is_of_it => file.remember(&checkpoint.snapshot),
                Some(Source::File(_)) | None => {}
            }
        }
        self.checkpoint = Some(checkpoint);
        self.is_other = true;
        true
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        match self.in_charge() {
            Some((_, source)) => Some(source.snapshot()),
            None => self.checkpoint.as_ref().map(|loaded| &loaded.snapshot),
        }
    }

    /// The snapshot in force, and what may have changed since the last call.
    pub fn take_up(&mut self) -> Option<(&Snapshot, Touched)> {
        let in_charge = self.charge.in_charge();
        let source = in_charge.and_then(|index| self.active.get_mut(index)?.as_mut());
        let touched = match source {
            Some(Source::Kube(source)) => source.take_touched(),
            Some(Source::File(_)) | None => Touched::Anything,
        };
        let touched = match std::mem::take(&mut self.is_other) {
            true => Touched::Anything,
            false => touched,
        };
        Some((self.snapshot()?, touched))
    }

    /// The snapshot in force has changed, and [`Self::changed`] has not returned for it yet.
    pub fn has_untold(&self) -> bool {
        matches!(self.in_charge(), Some((_, Source::Kube(source))) if source.has_untold())
    }

    /// Where the snapshot in force comes from.
    pub fn origin(&self) -> Origin {
        match self.in_charge() {
            Some((SourceSpec::File(_), _)) => Origin::File,
            Some((_, Source::Kube(source))) if source.is_hub() => Origin::Hub,
            Some((SourceSpec::Kube(_), _)) => Origin::Live,
            None if self.checkpoint.is_some() => Origin::Checkpoint,
            None => Origin::None,
        }
    }

    /// Whether the snapshot in force is the cloud's present word.
    pub fn freshness(&self) -> Freshness {
        match self.in_charge() {
            Some((_, source)) if source.is_fresh() => Freshness::Fresh,
            Some(_) | None => Freshness::Stale,
        }
    }

    /// Also asks for the Pods of the own Node from now on.
    pub fn follow_pods(&mut self) {
        self.scope.with_pods = true;
        for source in self.active.iter_mut().flatten() {
            if let Source::Kube(source) = source {
                source.follow_pods();
            }
        }
    }

    /// An address, a link or a route of this node has changed: servers that could not be reached are asked again at
    /// once.
    pub fn network_changed(&self) {
        for source in self.active.iter().flatten() {
            if let Source::Kube(source) = source {
                source.network_changed();
            }
        }
    }

    /// Has the Pods of the own Node read again soon.
    pub fn refresh_pods(&self) {
        if let Some((_, Source::Kube(source))) = self.in_charge() {
            source.refresh_pods();
        }
    }

    /// When the Pods of the snapshot in force were known to be all that the cloud has on this node; `None`: unknown.
    pub fn pods_read_at(&self) -> Option<Instant> {
        match self.in_charge()? {
            (_, Source::Kube(source)) => source.pods_read_at(),
            (_, Source::File(_)) => None,
        }
    }

    /// The snapshot in force came from YurtHub, directly or through the checkpoint.
    pub fn is_hub(&self) -> bool {
        match (self.origin(), &self.checkpoint) {
            (Origin::Checkpoint, Some(loaded)) => {
                let spec: Option<SourceSpec> = loaded.provenance.source.parse().ok();
                matches!(spec, Some(SourceSpec::Kube(api)) if api.is_hub(self.is_inferred_hub))
            }
            (origin, _) => origin == Origin::Hub,
        }
    }

    /// What a checkpoint records about the snapshot in force, whose edition this is. The caller adds the Services that
    /// had no room. `None` while no source is in charge. `now` is in seconds since 1970.
    pub fn provenance(&self, now: u64, edition: Edition) -> Option<Provenance> {
        let (spec, source) = self.in_charge()?;
        let silence = source.silence().unwrap_or_default();
        Some(Provenance {
            source: spec.to_string(),
            synced_at: now.saturating_sub(silence.as_secs()),
            resource_versions: match source {
                Source::Kube(source) => source.versions(),
                Source::File(_) => BTreeMap::new(),
            },
            edition,
            left_out: Vec::new(),
        })
    }

    /// The source of the snapshot in force, under a name that stays the same after a restart.
    pub fn said_by(&self) -> SaidBy {
        match (self.in_charge(), &self.checkpoint) {
            (Some((spec, _)), _) => self.name(spec),
            (None, Some(loaded)) => self.name_of(loaded),
            (None, None) => SaidBy::UNKNOWN,
        }
    }

    /// The node's own YurtHub is one source under all its names.
    fn name(&self, spec: &SourceSpec) -> SaidBy {
        let is_own_hub = match spec {
            SourceSpec::Kube(Api::Hub(None)) => true,
            SourceSpec::Kube(Api::Hub(Some(server))) => is_hub(server),
            SourceSpec::Kube(api) => api.is_hub(self.is_inferred_hub),
            SourceSpec::File(_) => false,
        };
        match is_own_hub {
            true => SaidBy::of("yurthub:"),
            false => SaidBy::of(&spec.to_string()),
        }
    }

    fn name_of(&self, loaded: &Loaded) -> SaidBy {
        let source = &loaded.provenance.source;
        let spec = source.parse();
        spec.map_or_else(|_unknown| SaidBy::of(source), |spec| self.name(&spec))
    }

    /// The checkpoint, if it is of this source.
    fn last_word(&self, spec: &SourceSpec) -> Option<&Loaded> {
        let loaded = self.checkpoint.as_ref();
        loaded.filter(|loaded| loaded.provenance.source == spec.to_string())
    }

    /// Waits until the snapshot in force has changed. Safe to cancel: what is due is in `charge`, not in this future.
    pub async fn changed(&mut self) {
        loop {
            let decide_at = self.charge.decide_at().map(|at| self.started + at);
            let in_charge = self.charge.in_charge();
            let mut waits: Vec<LocalBoxFuture<'_, ()>> = Vec::with_capacity(self.active.len() + 1);
            for source in &mut self.active {
                waits.push(match source {
                    Some(source) => source.changed().boxed_local(),
                    None => pending().boxed_local(),
                });
            }
            waits.push(match decide_at {
                Some(at) => sleep_until(at).boxed_local(),
                None => pending().boxed_local(),
            });
            let (_, which, _) = select_all(waits).await;
            self.decide();
            if self.charge.in_charge() != in_charge || Some(which) == in_charge {
                return;
            }
        }
    }

    fn in_charge(&self) -> Option<(&SourceSpec, &Source)> {
        let index = self.charge.in_charge()?;
        Some((self.specs.get(index)?, self.active.get(index)?.as_ref()?))
    }

    /// Whether the word of this source may be older than what is in force, if that is another source's word.
    fn may_be_older(&self, index: usize, source: &Source) -> bool {
        let is_said_by_another = |said_by| {
            let spec = self.specs.get(index);
            spec.is_some_and(|spec| self.name(spec) != said_by)
        };
        let versions = match (self.in_charge(), self.adopted_of, &self.checkpoint) {
            (Some((_, Source::Kube(other))), _, _) => other.versions(),
            // Maps do not record resource versions.
            (Some((_, Source::File(_))), _, _) | (None, Some(_), _) | (None, None, None) => {
                BTreeMap::new()
            }
            (None, None, Some(loaded)) => loaded.provenance.resource_versions.clone(),
        };
        let is_of_another = match (self.charge.in_charge(), self.adopted_of, &self.checkpoint) {
            (Some(in_charge), _, _) => in_charge != index,
            (None, Some(said_by), _) => is_said_by_another(said_by),
            (None, None, Some(loaded)) => is_said_by_another(self.name_of(loaded)),
            (None, None, None) => false,
        };
        is_of_another && !source.is_level(&versions)
    }

    fn decide(&mut self) {
        let before = self.charge.in_charge();
        loop {
            let now = self.started.elapsed();
            let in_charge = self.charge.in_charge();
            let mut is_behind = Vec::new();
            let all = self.specs.iter().zip(&self.active).zip(&mut self.presence);
            for (index, ((spec, source), presence)) in all.enumerate() {
                if let Some(source) = source {
                    let was_here = *presence == Presence::Here;
                    presence.note(spec, source.is_good(), source.why_lost());
                    let is_other = in_charge.is_some_and(|in_charge| in_charge != index);
                    if is_other && was_here && !source.is_good() {
                        is_behind.push(index);
                    }
                }
            }
            for index in 0..self.specs.len() {
                if let Some(Some(source)) = self.active.get(index) {
                    let is_good = source.is_good() && !self.may_be_older(index, source);
                    self.charge.set_present(index, source.is_present());
                    self.charge.report(index, is_good, now);
                }
            }
            let acts = self.charge.decide(now);
            self.begin_anew(&is_behind);
            if acts.is_empty() {
                break;
            }
            for act in acts {
                self.act(act);
            }
        }
        let after = self.charge.in_charge();
        if before != after
            && let Some(spec) = after.and_then(|index| self.specs.get(index))
        {
            info!(source = %spec, "source: in charge");
            self.checkpoint = None;
            self.adopted = 0;
            self.adopted_of = None;
            self.is_other = true;
            let all = self.active.iter().enumerate();
            let is_behind = all.filter(|(index, source)| {
                Some(*index) != after && source.as_ref().is_some_and(|source| !source.is_good())
            });
            let is_behind: Vec<usize> = is_behind.map(|(index, _)| index).collect();
            self.begin_anew(&is_behind);
        }
    }

    /// Has sources that were away while another one was believed forget what they said. Otherwise they would count as
    /// complete as soon as they answer.
    fn begin_anew(&mut self, is_behind: &[usize]) {
        for index in is_behind {
            let seed = self.snapshot().cloned().unwrap_or_default();
            if let Some(Some(Source::Kube(source))) = self.active.get_mut(*index) {
                source.begin_anew(seed);
            }
        }
    }

    fn act(&mut self, act: Act) {
        let (index, source) = match act {
            Act::Stop(index) => {
                if let Some(presence) = self.presence.get_mut(index) {
                    *presence = Presence::Unknown;
                }
                (index, None)
            }
            Act::Start(index) => {
                let Some(spec) = self.specs.get(index) else {
                    return;
                };
                if self.active.get(index).is_some_and(Option::is_some) {
                    return;
                }
                if index > 0 {
                    warn!(source = %spec, "source: asked too, because no earlier one answers");
                }
                (index, Some(self.source(spec)))
            }
        };
        if let Some(place) = self.active.get_mut(index) {
            *place = source;
        }
    }

    fn source(&self, spec: &SourceSpec) -> Source {
        match spec {
            SourceSpec::File(path) => {
                let last = self.last_word(spec).map(|loaded| &loaded.snapshot);
                Source::File(Box::new(FollowedFile::start(path, last)))
            }
            SourceSpec::Kube(api) => {
                // What is known already guards against a cache that has lost half of its objects.
                let seed = self.snapshot().cloned().unwrap_or_default();
                let last = self.last_word(spec);
                let versions = last.map(|loaded| loaded.provenance.resource_versions.clone());
                let versions = versions.unwrap_or_default();
                let is_hub = api.is_hub(self.is_inferred_hub);
                let scope = self.scope.clone();
                let mut source = KubeSource::new(api.clone(), is_hub, scope, seed, &versions);
                source.expect(self.adopted);
                Source::Kube(Box::new(source))
            }
        }
    }
}

impl Source {
    async fn changed(&mut self) {
        match self {
            // Its failures are in its status, and `Presence` logs them.
            Self::File(file) => file.changed().await,
            Self::Kube(source) => source.changed().await,
        }
    }

    fn snapshot(&self) -> &Snapshot {
        match self {
            Self::File(file) => file.snapshot(),
            Self::Kube(source) => source.snapshot(),
        }
    }

    fn is_good(&self) -> bool {
        match self {
            Self::File(file) => file.is_good(),
            Self::Kube(source) => source.is_synced() && source.answers(),
        }
    }

    /// Whether its word is the present one, and not a cache's.
    fn is_fresh(&self) -> bool {
        match self {
            Self::File(_) => true,
            Self::Kube(source) => source.is_fresh(),
        }
    }

    /// Whether its word is the cloud's present one.
    fn is_present(&self) -> bool {
        match self {
            Self::File(_) => false,
            Self::Kube(source) => source.is_fresh(),
        }
    }

    /// Whether its word is at least as new as that of another source, whose watches were at these versions.
    fn is_level(&self, with: &BTreeMap<String, String>) -> bool {
        match self {
            Self::File(_) => true,
            Self::Kube(source) => source.is_level(with),
        }
    }

    fn error(&self) -> Option<String> {
        match self {
            Self::File(file) => file.error(),
            Self::Kube(source) => source.error(),
        }
    }

    /// What keeps it from being good; failures that it can do without are left out.
    fn why_lost(&self) -> Option<String> {
        match self {
            Self::File(file) => file.error(),
            Self::Kube(source) => source.why_lost(),
        }
    }

    fn silence(&self) -> Option<Duration> {
        match self {
            Self::File(_) => None,
            Self::Kube(source) => source.silence(),
        }
    }
}

#[cfg(test)]
mod tests;
