//! What the checks look at, and what they find.

use std::fmt;

/// A source file.
pub(crate) struct File {
    /// Path from the workspace root.
    pub(crate) name: String,
    /// Contents.
    pub(crate) text: String,
}

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) place: String,
    pub(crate) rule: String,
    pub(crate) remedy: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            place,
            rule,
            remedy,
        } = self;
        write!(f, "{place}: {rule}; {remedy}")
    }
}
