//! Packets from outside, and what was done with them.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

/// Packets from outside and of Pods, and what was done with them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PacketPath {
    /// The devices that lead outside, and whose packets are served.
    pub devices: Vec<String>,
    /// How many devices of Pods have their packets served.
    #[serde(default)]
    pub pods: usize,
    /// Packets since the maps were made, by what was done with them.
    pub packets: BTreeMap<String, u64>,
    /// Flows that were ended since the agent was started, because their endpoint went.
    #[serde(default)]
    pub ended_flows: u64,
    /// The ports that stand for clients whose backend is on another node: `12000-29999`.
    #[serde(default)]
    pub ports: String,
    /// What cannot be done, and why.
    pub problem: Option<String>,
}

impl PacketPath {
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        let devices = match &*self.devices {
            [] => "at no device".to_owned(),
            devices => format!("served at {}", devices.join(", ")),
        };
        write!(out, "packets       {devices}")?;
        if self.pods > 0 {
            write!(out, ", and of {} Pods", self.pods)?;
        }
        let counted = self.packets.iter().filter(|(_, count)| **count > 0);
        for (number, (what, count)) in counted.enumerate() {
            let before = if number == 0 { "; " } else { ", " };
            write!(out, "{before}{what} {count}")?;
        }
        if self.ended_flows > 0 {
            write!(out, "; {} flows ended", self.ended_flows)?;
        }
        writeln!(out)?;
        match &self.problem {
            Some(problem) => writeln!(out, "  !           {problem}"),
            None => Ok(()),
        }
    }
}
