//! The state directory, whose disk may not answer.

use std::io;
use std::path::{Path, PathBuf};

use crate::host::disk::errand::{Errand, SILENCE};
use crate::host::filesystem::takes_writes;

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

    /// The fault, with the path of the directory.
    pub(super) fn problem(&self) -> Option<(&Path, String)> {
        let problem = self.problem.clone()?;
        Some((&self.path, problem))
    }
}
