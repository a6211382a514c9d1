//! The state directory, whose disk may not answer: at the start, while the agent runs, and late.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tracing::error;

use crate::host::disk::errand::{Errand, SILENCE, once};
use crate::host::filesystem::takes_writes;

/// Makes the state directory; false where its disk does not answer.
pub(super) async fn make(state_dir: &Path) -> bool {
    let path = state_dir.to_owned();
    let made = once(move || fs::create_dir_all(path)).await;
    let directory = state_dir.display();
    // The node is served all the same; `status` tells as long as it is so.
    match &made {
        Some(Ok(())) => {}
        Some(Err(error)) => error!(%directory, %error, "state directory: cannot be made"),
        None => error!(%directory, "state directory: {SILENCE}"),
    }
    made.is_some()
}

/// The state directory, as it was at the last look.
pub(super) struct StateDir {
    path: PathBuf,
    errand: Errand<io::Result<()>>,
    problem: Option<String>,
}

impl StateDir {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            errand: Errand::default(),
            problem: None,
        }
    }

    /// Looks whether it takes writes.
    pub(super) async fn look(&mut self) {
        let path = self.path.clone();
        self.problem = match self.errand.run(move || takes_writes(&path)).await {
            Some(Ok(())) => None,
            Some(Err(error)) => Some(format!("takes no writes: {error}")),
            None => Some(SILENCE.to_owned()),
        };
    }

    /// What is wrong with it, and where it is.
    pub(super) fn problem(&self) -> Option<(&Path, String)> {
        let problem = self.problem.clone()?;
        Some((&self.path, problem))
    }
}
