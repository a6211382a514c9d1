//! One thing that may fail: in the status as long as it does, in the log when it begins to.

use tracing::warn;

/// What fails at present.
#[derive(Debug)]
pub(super) struct Problem {
    /// What does not work then, as the log says it.
    what: &'static str,
    now: Option<String>,
}

impl Problem {
    /// Nothing fails yet.
    pub(super) fn of(what: &'static str) -> Self {
        Self { what, now: None }
    }

    /// How it is now; `None`: as it should be.
    pub(super) fn set(&mut self, problem: Option<String>) {
        if let Some(problem) = &problem
            && self.now.as_ref() != Some(problem)
        {
            warn!(problem, "{}", self.what);
        }
        self.now = problem;
    }

    /// How it is.
    pub(super) fn get(&self) -> Option<&String> {
        self.now.as_ref()
    }
}
