//! Why a source cannot be read at all.

use std::io;
use std::path::PathBuf;

/// A source that could not be read as a whole. The last good snapshot stays in force.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The path itself is absent or cannot be examined.
    #[error("examining source {}", path.display())]
    Examine {
        /// The path given to `file:`.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path is a directory that cannot be listed.
    #[error("listing source {}", path.display())]
    List {
        /// The path given to `file:`.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path is a single file that cannot be read.
    #[error("reading source {}", path.display())]
    Read {
        /// The path given to `file:`.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path is neither a file nor a directory.
    #[error(
        "source {} is neither a file nor a directory: what comes from a pipe cannot be read again, so write it to a file, and name that",
        path.display()
    )]
    NotAFile {
        /// The path given to `file:`.
        path: PathBuf,
    },
}
