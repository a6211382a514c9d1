//! Where a `Snapshot` comes from: watch (I/O in), then decode (foreign to model).
//!
//! A source hands out whole snapshots only. What it cannot reach at all is an error that leaves the caller's
//! last good state alone; what is wrong with one object is a `Rejection` inside the snapshot.

use std::io;
use std::path::PathBuf;
use std::str::FromStr;

pub mod checkpoint;
pub mod decode;
pub mod file;
pub mod kube;
mod objects;

/// The value of `--source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSpec {
    /// `file:PATH`: a file or a directory of manifests.
    File(PathBuf),
}

impl FromStr for SourceSpec {
    type Err = SpecError;

    fn from_str(spec: &str) -> Result<Self, SpecError> {
        match spec.strip_prefix("file:") {
            Some("") => Err(SpecError::NoPath),
            Some(path) => Ok(Self::File(PathBuf::from(path))),
            None => Err(SpecError::Unsupported {
                spec: spec.to_owned(),
            }),
        }
    }
}

/// A `--source` that cannot be understood: bad usage, known before anything is read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No known scheme.
    #[error(
        "source {spec:?} is not supported: expected file:PATH, a file or directory of manifests"
    )]
    Unsupported {
        /// As given.
        spec: String,
    },
    /// `file:` alone.
    #[error("source \"file:\" names no path: expected file:PATH, a file or directory of manifests")]
    NoPath,
}

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
    #[error("source {} is neither a file nor a directory", path.display())]
    NotAFile {
        /// The path given to `file:`.
        path: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_file_sources_are_understood_and_the_error_says_so() {
        assert_eq!(
            "file:/etc/manifests".parse(),
            Ok(SourceSpec::File(PathBuf::from("/etc/manifests")))
        );
        assert_eq!("file:".parse::<SourceSpec>(), Err(SpecError::NoPath));
        for spec in [
            "",
            "kube:",
            "yurthub:http://127.0.0.1",
            "/etc/manifests",
            "File:x",
        ] {
            let error = spec.parse::<SourceSpec>().unwrap_err();
            assert!(error.to_string().contains("file:PATH"), "{error}");
        }
    }
}
