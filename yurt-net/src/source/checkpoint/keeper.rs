//! The checkpoint beside the loop: saves happen on a blocking thread, one at a time.

use std::time::Instant;

use tokio::task::{JoinHandle, spawn_blocking};
use tracing::{error, info};

use super::{CheckpointError, Contents, Occasion, Pace, Provenance, Saver, Stats};
use crate::error::chain;
use crate::model::Snapshot;

/// A save that has ended.
type Done = (Saver, Result<bool, CheckpointError>);

/// See the module.
pub struct Keeper {
    /// `None` while a save is running.
    saver: Option<Saver>,
    running: Option<JoinHandle<Done>>,
    pace: Pace,
    stats: Stats,
}

impl Keeper {
    /// A keeper of what `saver` saves.
    pub fn new(saver: Saver) -> Self {
        Self {
            stats: saver.stats().clone(),
            saver: Some(saver),
            running: None,
            pace: Pace::default(),
        }
    }

    /// For status and metrics.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// There is a new snapshot.
    pub fn changed(&mut self) {
        self.pace.changed(Instant::now());
    }

    /// Waits until there is something for [`Self::begin`]. Safe to cancel.
    pub async fn due(&mut self) {
        if let Some(running) = &mut self.running {
            let done = running.await;
            self.running = None;
            match done {
                Ok(done) => self.take(done),
                // Without its saver there is nothing to try again with.
                Err(error) => error!(%error, "checkpoint: the save has failed for good"),
            }
        }
        match self.pace.due() {
            Some(at) if self.saver.is_some() => tokio::time::sleep_until(at.into()).await,
            _ => std::future::pending().await,
        }
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

    fn take(&mut self, (saver, result): Done) {
        let had_error = self.stats.last_error.is_some();
        self.stats = saver.stats().clone();
        self.saver = Some(saver);
        match result {
            Ok(_has_written) => {
                self.pace.saved();
                if had_error {
                    info!("checkpoint: saved again");
                }
            }
            Err(error) => {
                self.pace.failed(Instant::now());
                error!(
                    error = chain(&error),
                    "checkpoint: not saved; after a reboot without the cloud this node would serve an older state"
                );
            }
        }
    }
}
