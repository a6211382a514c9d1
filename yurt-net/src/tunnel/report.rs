//! The state of the node's own devices, for `status` and metrics. Pure.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Kind;
use crate::device::Mac;

/// All devices, and what an operator has to look after.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The devices, by name.
    pub devices: Vec<DeviceReport>,
    /// Faults that an operator has to look after, one line each.
    pub alarms: Vec<String>,
}

/// A device whose addresses the agent keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceReport {
    /// Name.
    pub name: String,
    /// Which addresses are kept.
    pub kind: Kind,
    /// Its MAC; `None` if the device does not exist.
    pub mac: Option<Mac>,
    /// The MAC that it should have; `None` if that is not known yet.
    pub wanted: Option<Mac>,
    /// The address that a vxlan device sends from.
    pub underlay: Option<IpAddr>,
    /// How often the agent set its MAC because it was another one.
    pub repairs: u64,
    /// How often the agent replaced its underlay address because that had gone from the node.
    pub underlay_changes: u64,
    /// The number of peers that the agent listens for; `None` if it listens for no peers at all.
    #[serde(default)]
    pub peers: Option<u64>,
    /// How often the agent repaired entries of this device about peers.
    #[serde(default)]
    pub peer_repairs: u64,
    /// The device changes so often that the agent leaves it alone until it has been quiet for a minute.
    pub is_left_alone: bool,
}

impl Report {
    /// The report for people: a line for each device that exists, then the alarms.
    pub fn lines(&self) -> String {
        let mut out = String::new();
        for device in &self.devices {
            // Writing to a String cannot fail.
            let _ = device.write(&mut out);
        }
        for alarm in &self.alarms {
            let _ = writeln!(out, "              ! {alarm}");
        }
        out
    }
}

impl DeviceReport {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Self {
            name,
            kind: _,
            mac,
            wanted,
            underlay,
            repairs,
            underlay_changes,
            peers,
            peer_repairs,
            is_left_alone,
        } = self;
        let Some(mac) = mac else {
            return Ok(());
        };
        write!(out, "{name:<13} {mac}")?;
        match wanted {
            Some(wanted) if wanted == mac => {}
            Some(wanted) => write!(out, ", NOT {wanted}")?,
            None => write!(out, ", not recorded yet")?,
        }
        if let Some(underlay) = underlay {
            write!(out, ", from {underlay}")?;
        }
        write!(out, "; set back {repairs} times")?;
        if *underlay_changes > 0 {
            write!(out, ", underlay address changed {underlay_changes} times")?;
        }
        if let Some(peers) = peers {
            write!(
                out,
                ", listening for {peers} peers, {peer_repairs} repaired"
            )?;
        }
        writeln!(out, "{}", if *is_left_alone { "; LEFT ALONE" } else { "" })
    }
}
