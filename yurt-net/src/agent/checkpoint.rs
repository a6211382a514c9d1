//! The checkpoint: when a save is due, of what, and what the maps say of it afterwards.

use tracing::debug;

use super::Agent;
use crate::error::chain;
use crate::host::clock::unix_seconds;
use crate::source::checkpoint::Provenance;
use crate::source::checkpoint::keeper::Due;
use crate::table::edition::Edition;

impl Agent {
    /// Does what is due.
    pub(super) fn tend_checkpoint(&mut self) {
        match self.units.due.take() {
            Some(Due::Found(loaded)) => self.take_up(*loaded),
            Some(Due::Save) => self.save(),
            Some(Due::Saved { asked, on_disk }) => self.take_saved(asked, on_disk),
            None => {}
        }
    }

    /// Saves all there is: the agent ends.
    pub(super) async fn end(&mut self) {
        self.units.asked.end();
        self.units.claimed.look().await;
        if let (Some(snapshot), Some(provenance)) = (self.sources.snapshot(), self.provenance())
            && !self.units.claimed.is_refused()
        {
            self.keeper.finish(snapshot, provenance).await;
        }
    }

    fn provenance(&self) -> Option<Provenance> {
        let provenance = self.sources.provenance(unix_seconds(), self.edition)?;
        Some(Provenance {
            left_out: self.image.left_out().cloned().collect(),
            ..provenance
        })
    }

    /// Starts to save the snapshot in force, where it came from a source that may be out of reach next time.
    fn save(&mut self) {
        match (self.sources.snapshot(), self.provenance()) {
            // Another agent's is no place for this one's.
            _ if self.units.claimed.is_refused() => self.keeper.skip(),
            (Some(snapshot), Some(provenance)) => self.keeper.begin(snapshot, provenance),
            _ => self.keeper.skip(),
        }
    }

    /// Where the checkpoint says what is in force already, that is of its edition: maps that say a later one would be taken for
    /// newer than they are.
    fn take_saved(&mut self, asked: Edition, on_disk: Edition) {
        let has_news = self.has_news || self.sources.has_untold();
        if asked == self.edition && asked != on_disk && !has_news {
            self.edition = on_disk;
            if let Err(error) = self.dataplane.set_edition(on_disk, self.sources.said_by()) {
                debug!(
                    error = chain(&error),
                    "the maps are thought to be newer than the checkpoint"
                );
            }
        }
    }
}
