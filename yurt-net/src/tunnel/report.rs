//! How the node's own devices are. Pure.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Kind;
use crate::device::Mac;

/// For `status` and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The devices, by name.
    pub devices: Vec<DeviceReport>,
    /// What an operator should look after.
    pub alarms: Vec<String>,
}

/// A device whose addresses are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceReport {
    /// Name.
    pub name: String,
    /// What is kept.
    pub kind: Kind,
    /// Its MAC; `None`: it is not there.
    pub mac: Option<Mac>,
    /// The MAC that it should have; `None`: nothing is known yet.
    pub wanted: Option<Mac>,
    /// Where a vxlan device sends from.
    pub underlay: Option<IpAddr>,
    /// How often its MAC was set because it was another.
    pub repairs: u64,
    /// How often its underlay address was gone and another was taken.
    pub underlay_changes: u64,
    /// How many peers are listened for; `None`: none shall be.
    #[serde(default)]
    pub peers: Option<u64>,
    /// How often entries of it about peers were repaired.
    #[serde(default)]
    pub peer_repairs: u64,
    /// It is changed so often that it is left alone, until a minute is quiet.
    pub is_left_alone: bool,
}

impl Report {
    /// For people: a line for each device that is there, and the alarms.
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
            None => write!(out, ", not written down yet")?,
        }
        if let Some(underlay) = underlay {
            write!(out, ", from {underlay}")?;
        }
        write!(out, "; set back {repairs} times")?;
        if *underlay_changes > 0 {
            write!(out, ", the address below changed {underlay_changes} times")?;
        }
        if let Some(peers) = peers {
            write!(out, ", {peers} peers listened to, {peer_repairs} repaired")?;
        }
        writeln!(out, "{}", if *is_left_alone { "; LEFT ALONE" } else { "" })
    }
}
