//! Packets from outside, and what was done with them.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::counted::{SHOWN, write_more};

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
    /// Whether packets are led past the stack; `None`: `--fast-path=off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fast_path: Option<FastPath>,
    /// What cannot be done, and why.
    pub problem: Option<String>,
}

/// Packets to Pods of this node, and their answers, past the stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FastPath {
    /// It is taken now.
    pub is_taken: bool,
    /// To how many addresses of Pods.
    pub addresses: usize,
    /// What of others would be skipped, or is (`--fast-path=on`), and what fails.
    pub reasons: Vec<String>,
    /// Devices of Pods that are left to the stack, and why.
    pub left_to_the_stack: Vec<String>,
}

impl FastPath {
    fn write(&self, out: &mut String) -> fmt::Result {
        match self.is_taken {
            true => write!(out, "fast path     to {} addresses of Pods", self.addresses)?,
            false => write!(out, "fast path     not taken")?,
        }
        let before = if self.is_taken { "; skips " } else { ": " };
        if !self.reasons.is_empty() {
            write!(out, "{before}{}", self.reasons.join("; "))?;
        }
        writeln!(out)?;
        let mut first = self.left_to_the_stack.iter().take(SHOWN);
        first.try_for_each(|one| writeln!(out, "  stack       {one}"))?;
        write_more(
            out,
            self.left_to_the_stack.len(),
            SHOWN,
            "status -o json` shows all",
        )
    }
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
        if let Some(fast) = &self.fast_path {
            fast.write(out)?;
        }
        match &self.problem {
            Some(problem) => writeln!(out, "  !           {problem}"),
            None => Ok(()),
        }
    }
}
