//! How the sources are, for people and for metrics.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::kube::Received;
use super::{Source, Sources};

/// Where the snapshot in force comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// There is none yet.
    #[default]
    None,
    /// From an apiserver.
    Live,
    /// From YurtHub, which may be answering from its cache.
    Hub,
    /// From manifests.
    File,
    /// From the checkpoint: no source is in charge since the start.
    Checkpoint,
}

/// For status and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// The source in charge, as given; that of the checkpoint while none is.
    pub source: String,
    /// What the snapshot in force is.
    pub provenance: Origin,
    /// It is the cloud's present word, and not a cache's.
    pub is_fresh: bool,
    /// Seconds since the source in charge was last heard of, or since the checkpoint was true.
    pub age_seconds: u64,
    /// The sources that are followed, in order of preference.
    pub sources: Vec<FollowedSource>,
    /// What fails at present; what was known before is in force.
    pub source_error: Option<String>,
    /// Lists of a cache that are held back.
    pub held_lists: Vec<String>,
    /// What was received since the start, by resource.
    pub received: BTreeMap<String, Received>,
}

/// One of the sources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FollowedSource {
    /// As given.
    pub source: String,
    /// The table comes from it.
    pub is_in_charge: bool,
    /// It has answered whole, and answers.
    pub is_good: bool,
    /// Seconds since it was last heard of; `None`: never, or it is a file.
    pub age_seconds: Option<u64>,
}

impl Sources {
    /// Manifests that cannot be read, or not all of them, and why: what they said last is in force.
    pub fn stale_manifests(&self) -> Vec<String> {
        let mut stale = Vec::new();
        for source in self.active.iter().flatten() {
            if let Source::File(file) = source {
                stale.extend(file.stale());
            }
        }
        stale
    }

    /// For status and metrics; `now` is in seconds since 1970.
    pub fn status(&self, now: u64) -> SourceStatus {
        let mut status = SourceStatus {
            provenance: self.origin(),
            is_fresh: self.freshness().is_fresh(),
            ..SourceStatus::default()
        };
        if let Some((spec, source)) = self.in_charge() {
            status.source = spec.to_string();
            status.age_seconds = source.silence().unwrap_or_default().as_secs();
        } else if let Some(loaded) = &self.checkpoint {
            status.source.clone_from(&loaded.provenance.source);
            status.age_seconds = now.saturating_sub(loaded.provenance.synced_at);
        }
        let in_charge = self.charge.in_charge();
        for (index, (spec, source)) in self.specs.iter().zip(&self.active).enumerate() {
            let Some(source) = source else { continue };
            status.sources.push(FollowedSource {
                source: spec.to_string(),
                is_in_charge: in_charge == Some(index),
                is_good: source.is_good(),
                age_seconds: source.silence().map(|silence| silence.as_secs()),
            });
            if let Some(error) = source.error() {
                let text = status.source_error.get_or_insert_default();
                let separator = if text.is_empty() { "" } else { "; " };
                let spec = spec.to_string();
                // Some end with one.
                let colon = if spec.ends_with(':') { "" } else { ":" };
                *text += &match self.specs.len() {
                    1 => error,
                    _ => format!("{separator}{spec}{colon} {error}"),
                };
            }
            if self.is_unproven(index, source) {
                status.held_lists.push(format!(
                    "{spec}: all, until the cloud is heard through it: it may be older than what is in force"
                ));
            }
            let Source::Kube(source) = source else {
                continue;
            };
            status.held_lists.extend(source.held().iter().map(|held| {
                let until = match held.is_of_no_cluster {
                    true => "without default/kubernetes, so that it is of no cluster",
                    false => "until it is confirmed",
                };
                format!(
                    "{}: a list of {} instead of {}, {until}",
                    held.resource, held.offered, held.have
                )
            }));
            for (resource, received) in source.received() {
                let sum = status.received.entry(resource.to_owned()).or_default();
                sum.bytes += received.bytes;
                sum.objects += received.objects;
                sum.lists += received.lists;
                sum.watches += received.watches;
                sum.events += received.events;
            }
        }
        status
    }

    /// Sources before the one in charge that have said all, but may be older than what is in force.
    pub fn unproven(&self) -> Vec<String> {
        let all = self.specs.iter().zip(&self.active).enumerate();
        let unproven = all.filter(|(index, (_, source))| {
            let source = source.as_ref();
            source.is_some_and(|source| self.is_unproven(*index, source))
        });
        unproven.map(|(_, (spec, _))| spec.to_string()).collect()
    }

    fn is_unproven(&self, index: usize, source: &Source) -> bool {
        let in_charge = self.charge.in_charge();
        let is_first = in_charge.is_none_or(|in_charge| index < in_charge);
        is_first && source.is_good() && self.may_be_older(index, source)
    }

    /// Sources that are not asked although only the checkpoint has something to say.
    pub fn unasked(&self) -> Vec<String> {
        match self.origin() {
            Origin::Checkpoint => {
                let specs = self.charge.idle().filter_map(|index| self.specs.get(index));
                specs.map(ToString::to_string).collect()
            }
            _ => Vec::new(),
        }
    }
}
