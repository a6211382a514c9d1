//! What was said at the health ports, and which of them are not listened on.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::counted::{SHOWN, write_more};

/// The health ports of this node and of Services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthPorts {
    /// Services whose `healthCheckNodePort` is answered.
    pub services: usize,
    /// Ports that are not listened on, each with whose it is and why.
    pub problems: Vec<String>,
    /// `/healthz` of the node since the start: 200, and 503.
    pub healthz: [u64; 2],
    /// `/livez`, likewise.
    pub livez: [u64; 2],
}

impl HealthPorts {
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        if self.services > 0 || !self.problems.is_empty() {
            writeln!(out, "health checks {} Services answered", self.services)?;
        }
        let mut first = self.problems.iter().take(SHOWN);
        first.try_for_each(|problem| writeln!(out, "  !           {problem}"))?;
        write_more(out, self.problems.len(), SHOWN, "status -o json` shows all")
    }
}
