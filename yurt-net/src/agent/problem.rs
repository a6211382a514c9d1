//! One thing that may fail: in the status for as long as it fails, in the log when it begins to fail.

use std::error::Error;
use std::time::Instant;

use tracing::warn;

use super::lines::Lines;
use crate::error::{chain, distinct};

/// The failures of one piece of work as a fault, each once; `None` if it has none.
pub(super) fn of_failures(failures: &[impl Error]) -> Option<String> {
    let failures = distinct(failures.iter().map(|error| chain(error)));
    (!failures.is_empty()).then(|| failures.join("; "))
}

/// A fault that may be present.
#[derive(Debug)]
pub(super) struct Problem {
    /// The consequence, as the log words it.
    what: &'static str,
    now: Option<String>,
    lines: Lines,
}

impl Problem {
    /// No fault yet.
    pub(super) fn of(what: &'static str) -> Self {
        Self {
            what,
            now: None,
            lines: Lines::default(),
        }
    }

    /// Sets the present fault; `None`: none.
    pub(super) fn set(&mut self, problem: Option<String>) {
        if let Some(problem) = &problem
            && self.now.as_ref() != Some(problem)
        {
            let what = self.what;
            let admitted = self.lines.admit_one(Instant::now(), "", problem);
            if admitted.is_admitted {
                warn!(problem, "{what}");
            }
            if let Some(more) = admitted.left_out {
                warn!(
                    more,
                    "{what}: more often than is logged; `yurt-net status` shows the present state"
                );
            }
        }
        self.now = problem;
    }

    /// The present fault.
    pub(super) fn get(&self) -> Option<&String> {
        self.now.as_ref()
    }
}
