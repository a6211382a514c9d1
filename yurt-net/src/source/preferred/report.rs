//! What the sources report about themselves.

use super::status::{FollowedSource, Origin, SourceStatus};
use super::{Source, Sources};

impl Sources {
    /// Manifests that cannot be read completely, and why: what they said last is in force.
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
            // A node that lost its clock with its power may be years behind the checkpoint.
            let age = now.saturating_sub(loaded.provenance.synced_at);
            status.age_seconds = age.max(self.started.elapsed().as_secs());
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
                // Some specs end with a colon.
                let colon = if spec.ends_with(':') { "" } else { ":" };
                *text += &match self.specs.len() {
                    1 => error,
                    _ => format!("{separator}{spec}{colon} {error}"),
                };
            }
            if self.is_unproven(index, source) {
                status.held_lists.push(format!(
                    "{spec}: all lists, because they may be older than what is in force, until an event shows that it hears the cloud"
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

    /// Sources before the one in charge that have answered completely, but whose word may be older.
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

    /// Sources that are not asked, although only the checkpoint says what to serve.
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
