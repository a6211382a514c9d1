//! How this agent was told to run, left in the state directory for `load`.

use std::path::PathBuf;

use futures_util::future::FutureExt as _;

use super::problem::Problem;
use crate::config::Record;
use crate::config::place::Place;
use crate::error::chain;
use crate::host::disk::errand::Errand;
use crate::pods::settings::{Settings as _, SettingsError};

/// Keeps the record.
pub(super) struct Recorded {
    state_dir: PathBuf,
    record: Record,
    errand: Errand<Result<(), SettingsError>>,
    problem: Problem,
}

impl Recorded {
    /// Writes nothing yet.
    pub(super) fn start(place: &Place, record: Record) -> Self {
        Self {
            state_dir: place.state_dir.clone(),
            record,
            errand: Errand::default(),
            problem: Problem::of("the flags of this agent could not be left for `load`"),
        }
    }

    /// The agent is told something else.
    pub(super) fn hear(&mut self, record: Record) {
        self.record = record;
    }

    /// Has the record written, unless it is on the disk; whether that worked is known the next time.
    pub(super) fn keep(&mut self) {
        // A disk that does not answer is told of with the checkpoint, which is on it, too.
        if self.errand.is_outstanding() {
            return;
        }
        if let Some(Some(kept)) = self.errand.late().now_or_never() {
            self.problem.set(kept.err().map(|error| chain(&error)));
        }
        let (record, state_dir) = (self.record.clone(), self.state_dir.clone());
        self.errand
            .begin(move || Record::leave(Some(&record), &state_dir));
    }
}
