//! The kernel's side: use of the maps, established sockets, and the clients that are known.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::counted::SHOWN;
use crate::plan::{Capacity, FullMap};

/// The clients of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Clients {
    /// Network namespaces whose addresses the programs know; 0 while no Service has source ranges.
    pub known: usize,
    /// Why the last look did not find all of them. Source ranges refuse those that it did not find.
    pub last_error: Option<String>,
    /// Pods whose sockets are left alone, because they ask for it; their packets are served at their devices.
    #[serde(default)]
    pub left_alone: Vec<String>,
}

impl Clients {
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        if self.left_alone.is_empty() {
            return Ok(());
        }
        let first: Vec<&str> = self
            .left_alone
            .iter()
            .map(String::as_str)
            .take(SHOWN)
            .collect();
        let more = match self.left_alone.len() - first.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        writeln!(
            out,
            "left alone    the sockets of {}{more}",
            first.join(", ")
        )
    }
}

/// Use of one map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapUsage {
    /// Name.
    pub map: String,
    /// Entries in use.
    pub used: u32,
    /// Entries that fit.
    pub capacity: u32,
}

impl MapUsage {
    /// One for each table map.
    pub fn all(used: &Capacity, capacity: &Capacity) -> Vec<Self> {
        [
            (FullMap::Frontends4, used.frontends4, capacity.frontends4),
            (FullMap::Frontends6, used.frontends6, capacity.frontends6),
            (FullMap::Services, used.services, capacity.services),
            (FullMap::Slots4, used.slots4, capacity.slots4),
            (FullMap::Slots6, used.slots6, capacity.slots6),
        ]
        .map(|(map, used, capacity)| Self {
            map: map.to_string(),
            used,
            capacity,
        })
        .to_vec()
    }
}

/// Looks at established sockets, and the sockets that were ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sockets {
    /// Why this kernel does not end sockets; `None` = it does.
    pub unsupported: Option<String>,
    /// Looks so far.
    pub scans: u64,
    /// Sockets of Services seen by the last one.
    pub last_seen: usize,
    /// How long it took, in milliseconds.
    pub last_scan_ms: u64,
    /// What failed in it.
    pub last_error: Option<String>,
    /// UDP sockets ended because their endpoint was withdrawn.
    pub ended_withdrawn: u64,
    /// Sockets ended because their endpoint is outside the closure: `--closure-established=reset`.
    pub ended_outside_closure: u64,
}

impl Sockets {
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        let Sockets {
            unsupported,
            scans,
            last_scan_ms,
            last_error,
            ended_withdrawn,
            ended_outside_closure,
            ..
        } = self;
        match unsupported {
            Some(reason) => writeln!(out, "sockets       NOT ENDED: {reason}")?,
            None => writeln!(
                out,
                "sockets       {ended_withdrawn} ended (endpoint withdrawn), {ended_outside_closure} (outside the closure); \
                 {scans} scans, {last_scan_ms} ms for the last"
            )?,
        }
        if let Some(error) = last_error {
            writeln!(out, "              ! the last scan is not whole: {error}")?;
        }
        Ok(())
    }
}
