//! Errors as words.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

/// What the operating system did not do with a file, a directory, or whatever else has a path.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct PathError {
    /// What was tried, as a verb.
    pub operation: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

impl PathError {
    /// For `map_err`.
    pub fn of(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self {
            operation,
            path: path.clone(),
            source,
        }
    }
}

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_path_says_what_was_tried_on_what_and_why_not() {
        let error = PathError::of("read", Path::new("/a/b"))(io::ErrorKind::NotFound.into());
        assert_eq!(chain(&error), "read /a/b: entity not found");
    }
}
