//! The checkpoint beside the loop: saves happen on a blocking thread, one at a time.

use std::time::Instant;

use tokio::task::{JoinHandle, spawn_blocking};
use tracing::{error, info, warn};

use super::{CheckpointError, Contents, Occasion, Pace, Provenance, Saver, Stats};
use crate::error::chain;
use crate::model::Snapshot;
use crate::source::edition::Edition;

/// A save that has ended.
type Done = (Saver, Result<bool, CheckpointError>);

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// [`Keeper::begin`].
    Save,
    /// To take note that the checkpoint says what this edition says.
    Saved {
        /// The one that was to be saved.
        asked: Edition,
        /// The one that the checkpoint is of: an earlier one, where that says the same.
        on_disk: Edition,
    },
}

/// The checkpoint beside the loop.
pub struct Keeper {
    found: Option<Provenance>,
    /// `None` while a save is running.
    saver: Option<Saver>,
    running: Option<JoinHandle<Done>>,
    /// What is, or was last, being saved.
    asked: Edition,
    pace: Pace,
    stats: Stats,
}

impl Keeper {
    /// A keeper of what `saver` saves, that has found this.
    pub fn new(saver: Saver, found: Option<Provenance>) -> Self {
        Self {
            found,
            stats: saver.stats().clone(),
            saver: Some(saver),
            running: None,
            asked: Edition::default(),
            pace: Pace::default(),
        }
    }

    /// Where the state came from that was found at the start.
    pub fn found(&self) -> Option<&Provenance> {
        self.found.as_ref()
    }

    /// For status and metrics.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// There is a new snapshot.
    pub fn changed(&mut self) {
        self.pace.changed(Instant::now());
    }

    /// Has everything saved anew where the checkpoint has gone, or is not the one that was saved.
    pub fn look(&mut self) {
        if self.saver.as_mut().is_some_and(Saver::has_lost) {
            warn!("checkpoint: somebody has removed or replaced it; it is saved anew");
            self.changed();
        }
    }

    /// Waits until there is something to be done. Safe to cancel.
    pub async fn due(&mut self) -> Due {
        if let Some(running) = &mut self.running {
            let done = running.await;
            self.running = None;
            match done {
                Ok(done) => {
                    if let Some(on_disk) = self.take(done) {
                        let asked = self.asked;
                        return Due::Saved { asked, on_disk };
                    }
                }
                // Without its saver there is nothing to try again with.
                Err(error) => error!(%error, "checkpoint: the save has failed for good"),
            }
        }
        match self.pace.due() {
            Some(at) if self.saver.is_some() => tokio::time::sleep_until(at.into()).await,
            _ => std::future::pending().await,
        }
        Due::Save
    }

    /// Starts to save what `snapshot` says, if it is time.
    pub fn begin(&mut self, snapshot: &Snapshot, provenance: Provenance) {
        if self.pace.begin(Instant::now()) {
            self.start(snapshot, provenance, Occasion::Changes);
        }
    }

    /// There is nothing worth saving.
    pub fn skip(&mut self) {
        if self.pace.begin(Instant::now()) {
            self.pace.saved();
        }
    }

    fn start(&mut self, snapshot: &Snapshot, provenance: Provenance, occasion: Occasion) {
        let Some(mut saver) = self.saver.take() else {
            return;
        };
        self.asked = provenance.edition;
        let contents = Contents::of(snapshot);
        self.running = Some(spawn_blocking(move || {
            let result = saver.save(contents, &provenance, occasion);
            (saver, result)
        }));
    }

    /// Saves all there is, versions too: the agent ends.
    pub async fn finish(&mut self, snapshot: &Snapshot, provenance: Provenance) {
        self.wait().await;
        self.start(snapshot, provenance, Occasion::Everything);
        self.wait().await;
    }

    async fn wait(&mut self) {
        if let Some(running) = self.running.take()
            && let Ok(done) = running.await
        {
            self.take(done);
        }
    }

    /// Takes the saver back, and says what is on disk now, where that is certain.
    fn take(&mut self, (saver, result): Done) -> Option<Edition> {
        let had_error = self.stats.last_error.is_some();
        self.stats = saver.stats().clone();
        let on_disk = saver.edition();
        self.saver = Some(saver);
        match result {
            Ok(_has_written) => {
                self.pace.saved();
                if had_error {
                    info!("checkpoint: saved again");
                }
                on_disk
            }
            Err(error) => {
                self.pace.failed(Instant::now());
                error!(
                    error = chain(&error),
                    "checkpoint: not saved; after a reboot without the cloud this node would serve an older state"
                );
                None
            }
        }
    }
}
