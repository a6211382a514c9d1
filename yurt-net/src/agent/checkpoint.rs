//! The checkpoint: what the disk held at the start or delivers later, and when a save is due.

use super::facts::Facts;
use crate::config::AgentConfig;
use crate::observe::status::Status;
use crate::source::checkpoint::keeper::{Due, Keeper};
use crate::source::checkpoint::{Loaded, Provenance};
use crate::table::edition::Edition;

/// Keeps the checkpoint.
pub(super) struct Checkpoint {
    keeper: Keeper,
    due: Option<Due>,
    /// When the checkpoint that was taken up was true, in seconds since 1970.
    synced_at: Option<u64>,
}

impl Checkpoint {
    /// Reads the checkpoint, if its disk answers at once.
    pub(super) async fn start(config: &AgentConfig) -> (Self, Option<Loaded>) {
        let directory = config.place.checkpoint();
        let (keeper, loaded) = Keeper::open(directory).await;
        let checkpoint = Self {
            synced_at: keeper.found().map(|found| found.synced_at),
            keeper,
            due: None,
        };
        (checkpoint, loaded)
    }

    /// Waits until something is [`due`](Self::take_due). Cancel safe.
    pub(super) async fn changed(&mut self) {
        self.due = Some(self.keeper.due().await);
    }

    /// The next thing to do.
    pub(super) fn take_due(&mut self) -> Option<Due> {
        self.due.take()
    }

    /// The edition of what was found at the start.
    pub(super) fn edition(&self) -> Option<Edition> {
        self.keeper.found().map(|found| found.edition)
    }

    /// A checkpoint that the disk delivered late is in force now.
    pub(super) fn took_up(&mut self, synced_at: u64) {
        self.synced_at = Some(synced_at);
    }

    /// There is a new table to save.
    pub(super) fn note_change(&mut self) {
        self.keeper.changed();
    }

    /// Looks whether the checkpoint is still the one that was saved. If not, everything is saved anew.
    pub(super) fn look(&mut self) {
        self.keeper.look();
    }

    /// Begins a save of the snapshot in force. Without a `provenance` nothing is worth saving.
    pub(super) fn hear(&mut self, facts: &Facts<'_>, provenance: Option<Provenance>) {
        match (facts.snapshot, provenance) {
            (Some(snapshot), Some(provenance)) => self.keeper.begin(snapshot, provenance),
            _ => self.keeper.skip(),
        }
    }

    /// Saves everything, because the agent ends.
    pub(super) async fn end(&mut self, facts: &Facts<'_>, provenance: Option<Provenance>) {
        if let (Some(snapshot), Some(provenance)) = (facts.snapshot, provenance) {
            self.keeper.finish(snapshot, provenance).await;
        }
    }

    /// Why the checkpoint cannot be kept in step.
    pub(super) fn problem(&self) -> Option<String> {
        self.keeper.problem()
    }

    /// The checkpoint on disk, and the faults that were found there.
    pub(super) fn report(&self, status: &mut Status) {
        status.checkpoint.clone_from(self.keeper.stats());
        status.checkpoint_synced_at = self.synced_at;
    }
}
