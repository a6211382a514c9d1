//! From what the sources say to what is in the maps: snapshot, table, plan, writes; and once more where a write failed.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::deadlines::RETRY;
use super::{Agent, AgentError};
use crate::dataplane::service::clients::Look;
use crate::dataplane::service::clients::identity::{ClientAddresses, Word};
use crate::dataplane::{ApplyError, Dataplane as _};
use crate::error::chain;
use crate::host::clock::unix_seconds;
use crate::host::process::give_back_memory;
use crate::plan::{Plan, Refused, plan};
use crate::policy::compile;
use crate::source::checkpoint::Loaded;
use crate::source::preferred::Origin;
use crate::table::edition::Edition;

/// Plans in a row for one table: each frees space that the next one may need.
const PLANS_PER_TABLE: usize = 8;
/// How long adopted maps are left alone while only the checkpoint has something to say.
const ADOPTED_PATIENCE: Duration = Duration::from_secs(10);

impl Agent {
    /// When to [`boot`](Self::boot); `None`: not before a source answers, or it is done.
    ///
    /// Maps that an earlier agent left are newer than its checkpoint, as a rule: before the sources had their time they are left alone.
    pub(super) fn boot_at(&self) -> Option<Instant> {
        match self.sources.origin() {
            _ if self.is_serving => None,
            Origin::File | Origin::Live | Origin::Hub => Some(self.started),
            Origin::Checkpoint | Origin::None if self.is_holding => None,
            Origin::Checkpoint | Origin::None if self.dataplane.was_serving() => {
                Some(self.started + ADOPTED_PATIENCE)
            }
            Origin::Checkpoint => Some(self.started),
            Origin::None => None,
        }
    }

    /// Serves by what the sources or the checkpoint say, or by what an earlier agent left, where nobody says anything newer.
    pub(super) async fn boot(&mut self) -> Result<(), AgentError> {
        let maps = self.dataplane.found_edition().unwrap_or_default();
        self.is_holding = match self.sources.origin() {
            Origin::File | Origin::Live | Origin::Hub => false,
            Origin::Checkpoint if !self.dataplane.was_serving() => false,
            Origin::Checkpoint => {
                let found = self.keeper.found();
                !found.is_some_and(|found| found.edition.may_replace(maps))
            }
            Origin::None => true,
        };
        if !self.is_holding {
            return self.become_ready().await;
        }
        self.test_itself().await;
        warn!(
            "no source is in charge yet: what an earlier agent left in the kernel is served on as it is"
        );
        Ok(())
    }

    /// Takes up what the disk has said after the start. As at the start it counts while no source has answered.
    pub(super) fn take_up(&mut self, mut loaded: Loaded) {
        let maps = self.dataplane.found_edition();
        if let Some(maps) = maps {
            loaded.list_what_is_newer(maps);
        }
        let in_force = loaded.in_force();
        let provenance = loaded.provenance.clone();
        if !self.sources.remember(loaded) {
            return;
        }
        info!("checkpoint: taken up, because no source is in charge yet");
        self.image.remember(in_force);
        self.edition = Edition::resume(maps, Some(provenance.edition), fastrand::u64(..));
        self.status.checkpoint_synced_at = Some(provenance.synced_at);
        if std::mem::take(&mut self.is_holding) {
            warn!("what an earlier agent left is compared with the checkpoint");
        }
    }

    /// Writes the first table and attaches the programs.
    async fn become_ready(&mut self) -> Result<(), AgentError> {
        self.sync()?;
        self.dataplane.activate()?;
        self.is_serving = true;
        give_back_memory();
        self.status.adopted = self.is_adopted;
        self.test_itself().await;
        let source = self.sources.status(unix_seconds());
        if source.provenance == Origin::Checkpoint {
            warn!(
                source = source.source,
                age_seconds = source.age_seconds,
                "serving from the checkpoint: no source is in charge yet"
            );
        }
        info!(
            node = self.known.policy.node,
            pool = self.memo.table().pool,
            adopted = self.is_adopted,
            "ready"
        );
        Ok(())
    }

    /// Compiles the snapshot and writes what differs.
    pub(super) fn sync(&mut self) -> Result<(), AgentError> {
        let started = Instant::now();
        self.known.policy.is_source_hub = self.sources.is_hub();
        let has_untold = self.sources.has_untold();
        let Some((snapshot, touched)) = self.sources.take_up() else {
            return Ok(());
        };
        // Whatever fails below: what is taken up now is not taken up again. Findings about objects are no part of an edition.
        let has_news = std::mem::take(&mut self.has_news) || has_untold;
        if has_news && !touched.is_nothing() {
            self.edition = self.edition.next();
        }
        let compiled = compile(
            snapshot,
            &touched,
            &self.known.policy,
            &self.known.view,
            &self.memory,
            &mut self.memo,
        );
        self.memory = compiled.memory;
        self.units.established.suspect(compiled.lost);
        let new_rejections = compiled.new_rejections;
        self.report_rejections(&new_rejections);
        if self
            .deadlines
            .retry
            .replace(Instant::now() + RETRY)
            .is_some()
        {
            self.image = self.dataplane.observe()?;
            self.want_clients();
        }
        self.dataplane
            .set_edition(self.edition, self.sources.said_by())?;
        let (writes, refused) = self.write_table()?;
        self.deadlines.retry = None;
        self.report_refused(refused);
        self.report_left_alone();
        self.tell(|units, facts| units.established.hear(facts));
        let took = started.elapsed();
        self.keeper.changed();
        self.status.applied += 1;
        self.status.apply_durations.record(took);
        self.status.last_applied_at = Some(unix_seconds());
        self.status.last_writes = writes;
        let services = self.memo.table().services.len();
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if self.is_serving {
            // Logs are on flash, and there may be a hundred changes a second.
            debug!(services, writes, took_us, "applied");
        } else {
            info!(
                services,
                writes,
                took_us,
                pool = self.memo.table().pool,
                "applied"
            );
        }
        Ok(())
    }

    pub(super) fn try_sync(&mut self) {
        if let Err(error) = self.sync() {
            self.status.failed_applies += 1;
            error!(
                error = chain(&error),
                "apply: clients keep what was written; trying again"
            );
        }
    }

    /// Plans and applies until nothing more can be done; returns the number of writes and what does not fit.
    pub(super) fn write_table(&mut self) -> Result<(usize, Vec<Refused>), ApplyError> {
        let mut writes = 0;
        let mut planned = Plan::default();
        for _ in 0..PLANS_PER_TABLE {
            planned = plan(self.memo.table(), &mut self.image);
            self.dataplane.apply(&planned)?;
            writes += planned.ops.len();
            // To look for such a set among all would cost more than most plans.
            if planned.asks_for_clients() || self.units.clients.is_wanted() {
                self.want_clients();
            }
            if planned.refused.is_empty() || !planned.has_freed {
                break;
            }
        }
        Ok((writes, planned.refused))
    }

    /// Has clients looked for while a set of the image asks who they are.
    pub(super) fn want_clients(&mut self) {
        let is_wanted = self.image.asks_for_clients();
        if self.units.clients.want(is_wanted) && !is_wanted {
            self.set_clients(&Look::default());
        }
    }

    /// Passes on by what clients are known.
    pub(super) fn tell_clients(&mut self) {
        let (v4, v6) = self.known.view.default_source;
        self.units.clients.hear(Word {
            own: ClientAddresses { v4, v6 },
            local: self.known.view.local_addresses.clone().unwrap_or_default(),
            entries: self.known.entries().clone(),
        });
    }

    pub(super) fn set_clients(&mut self, found: &Look) {
        let written = self.dataplane.set_clients(found);
        let error = match (&found.error, &written) {
            (Some(error), _) => Some(chain(error)),
            (None, Err(error)) => Some(chain(error)),
            (None, Ok(())) => None,
        };
        self.report_clients(found.clients.len(), error);
    }
}
