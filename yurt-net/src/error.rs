//! Errors as text.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use crate::text::message;

/// An operation on a path that the operating system has refused.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct PathError {
    /// The operation, as a verb.
    pub operation: &'static str,
    /// The path.
    pub path: PathBuf,
    /// The cause.
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

/// The error's own text, or a text of ours if the error's is written for programmers.
pub fn words(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    // rustls goes on with a link to its manual.
    match text.starts_with("peer closed connection without sending TLS close_notify") {
        true => "the connection was cut: the other end did not close it".to_owned(),
        false => text,
    }
}

/// An error and its causes on one line. Each is cut to the length of a message, because a server may say anything.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = message(&words(error)).to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&message(&words(error)).to_string());
        cause = error.source();
    }
    text
}

/// Each of many texts once, with the number of times that it occurs, in the order of first occurrence.
pub fn distinct(texts: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for text in texts {
        match counts.iter_mut().find(|(known, _)| *known == text) {
            Some((_, count)) => *count += 1,
            None => counts.push((text, 1)),
        }
    }
    let counts = counts.into_iter();
    counts
        .map(|(text, count)| match count {
            1 => text,
            _ => format!("{text} ({count} times)"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_path_says_what_was_tried_on_what_and_why_not() {
        let error = PathError::of("read", Path::new("/a/b"))(io::ErrorKind::NotFound.into());
        assert_eq!(chain(&error), "read /a/b: entity not found");
    }

    #[test]
    fn what_a_server_says_is_cut_and_its_cause_is_told_all_the_same() {
        #[derive(Debug, thiserror::Error)]
        #[error("the server says: {said}")]
        struct Refused {
            said: String,
            source: io::Error,
        }
        let error = Refused {
            said: "no\n".repeat(50_000),
            source: io::ErrorKind::NotFound.into(),
        };
        let told = chain(&error);
        assert!(told.len() < 2000, "{}", told.len());
        assert!(told.starts_with("the server says: no\\nno"), "{told}");
        assert!(told.ends_with("...: entity not found"), "{told}");
    }

    #[test]
    fn a_tls_connection_that_was_cut_is_told_in_a_sentence_without_a_link() {
        let told = "peer closed connection without sending TLS close_notify: \
                    https://docs.rs/rustls/latest/rustls/manual/_03_howto/index.html#unexpected-eof";
        let cut = io::Error::new(io::ErrorKind::UnexpectedEof, told);
        let error = PathError::of("read", Path::new("answer"))(cut);
        assert_eq!(
            chain(&error),
            "read answer: the connection was cut: the other end did not close it"
        );
    }

    #[test]
    fn the_same_text_many_times_is_told_once_with_a_count() {
        let texts = ["a", "b", "a", "c", "a"].map(str::to_owned);
        assert_eq!(distinct(texts), ["a (3 times)", "b", "c"]);
    }
}
