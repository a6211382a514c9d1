//! What a check has found.

use serde::Serialize;

/// One line of the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) result: Outcome,
    /// What was seen.
    pub(super) detail: String,
    /// What to do; "" if there is nothing to do.
    pub(super) remedy: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Ok,
    /// Works, with a drawback.
    Warning,
    Failed,
}

impl Finding {
    pub(super) fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self {
            check,
            result: Outcome::Ok,
            detail: detail.into(),
            remedy: String::new(),
        }
    }

    pub(super) fn new(
        check: &'static str,
        result: Outcome,
        detail: impl Into<String>,
        remedy: &str,
    ) -> Self {
        Self {
            check,
            result,
            detail: detail.into(),
            remedy: remedy.to_owned(),
        }
    }
}
