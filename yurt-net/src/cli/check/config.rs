//! Checks whether the agent accepts a configuration file.

use std::path::Path;

use super::finding::{Finding, Outcome};
use crate::config::{Unusable, read};

/// The findings for the file.
pub(super) fn findings(path: &Path) -> Vec<Finding> {
    let words = ["yurt-net", "run", "--config"].map(Into::into);
    let words = words.into_iter().chain([path.into()]).collect();
    let (outcome, told) = match read(words) {
        Ok(said) if said.warnings.is_empty() => {
            let detail = format!("{}: the agent takes it", path.display());
            return vec![Finding::ok("config", detail)];
        }
        Ok(said) => (Outcome::Warning, said.warnings),
        Err(Unusable::Settings(problems)) => (Outcome::Failed, problems),
        Err(error @ Unusable::CommandLine(_)) => (Outcome::Failed, vec![error.to_string()]),
    };
    let findings = told.into_iter();
    findings
        .map(|detail| Finding::new("config", outcome, detail, ""))
        .collect()
}
