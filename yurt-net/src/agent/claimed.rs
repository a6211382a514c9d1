//! The directories that this agent claims for itself: at the start, and again when one is made or mounted over while it
//! runs.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use tracing::error;

use super::problem::Problem;
use crate::config::place::Place;
use crate::dataplane::DataplaneError;
use crate::dataplane::claim::{Claim, Owned, Things};
use crate::error::chain;
use crate::host::disk::errand::{Errand, SILENCE, once};

/// The claim of this agent.
pub(super) struct Claimed {
    claim: Claim,
    things: Things,
    errand: Errand<Owned>,
    /// Another agent owns some of it.
    is_refused: bool,
    problem: Problem,
}

impl Claimed {
    /// Makes the directories and claims all of them. Fails if another process has one of them, and names that process.
    /// A directory that cannot be made, or whose disk does not answer, is claimed later.
    pub(super) async fn start(place: &Place, cgroup: PathBuf) -> Result<Self, DataplaneError> {
        let things = place.things(cgroup);
        // The plugins use the same mode for the directory in memory: the first process makes it.
        let directories = [(&things.state_dir, 0o755), (&things.memory, 0o700)];
        let mut answers = true;
        for (directory, mode) in directories {
            answers &= make(directory, mode).await;
        }
        let mut errand = Errand::default();
        let seen = things.clone();
        let owned = match answers {
            true => errand.run(move || Owned::of(&seen)).await,
            false => None,
        };
        let owned = owned.unwrap_or_else(|| Owned::without_a_disk(&things));
        Ok(Self {
            claim: Claim::take(owned)?,
            things,
            errand,
            is_refused: false,
            problem: Problem::of("not all that this agent uses is its own"),
        })
    }

    /// Claims what has come since.
    pub(super) async fn look(&mut self) {
        let things = self.things.clone();
        let owned = self.errand.run(move || Owned::of(&things)).await;
        // A directory on a disk that does not answer stays claimed as it was.
        let owned = owned.unwrap_or_else(|| Owned::without_a_disk(&self.things));
        let renewed = self.claim.renew(owned);
        self.is_refused = matches!(renewed, Err(DataplaneError::InUse { .. }));
        self.problem.set(renewed.err().map(|error| chain(&error)));
    }

    /// Another agent owns some of it, so nothing is written there.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// Why this agent does not have everything for itself.
    pub(super) fn problem(&self) -> Option<&String> {
        self.problem.get()
    }
}

/// Makes a directory with this mode, whatever the umask; false where its disk does not answer.
async fn make(directory: &Path, mode: u32) -> bool {
    let path = directory.to_owned();
    let made: Option<io::Result<()>> =
        once(move || DirBuilder::new().recursive(true).mode(mode).create(path)).await;
    let directory = directory.display();
    // The node is served all the same; `status` reports the fault as long as it lasts.
    match &made {
        Some(Ok(())) => {}
        Some(Err(error)) => error!(%directory, %error, "a directory of the agent cannot be made"),
        None => error!(%directory, "a directory of the agent: {SILENCE}"),
    }
    made.is_some()
}
