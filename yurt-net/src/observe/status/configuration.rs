//! The configuration file: whether what it says is in force.

use std::fmt::{self, Write as _};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::counted::{SHOWN, write_more};
use crate::text;

/// The configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    /// Where it is.
    pub file: PathBuf,
    /// Why what it says now is not in force, each with its line.
    pub problems: Vec<String>,
    /// Flags for which it has other values than at the start of the agent, and that wait for a restart.
    pub waiting: Vec<String>,
}

impl Configuration {
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        let state = match (&*self.problems, &*self.waiting) {
            ([], []) => String::new(),
            ([], waiting) => format!(": {} wait for a restart", waiting.join(" ")),
            _ => ": refused, and what it said before is in force".to_owned(),
        };
        writeln!(out, "configuration {}{state}", self.file.display())?;
        let mut first = self.problems.iter().take(SHOWN);
        first.try_for_each(|problem| writeln!(out, "  !           {}", text::message(problem)))?;
        write_more(out, self.problems.len(), SHOWN, "status -o json` shows all")
    }
}
