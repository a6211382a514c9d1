//! Pods whose addresses are kept, and the guard that watches them.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::counted::{SHOWN, write_more};
use crate::device::Mac;
use crate::host::columns::columns;
use crate::ledger::State;

/// Pods whose addresses are kept, and the guard that watches them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// A plugin has written a ledger.
    pub is_on: bool,
    /// What happens to frames whose claims are not their sender's: `off`, `audit` or `enforce`.
    pub guard: String,
    /// Devices of Pods that it watches.
    pub guarded_devices: usize,
    /// What an operator should look into.
    pub alarms: Vec<String>,
    /// Frames with a wrong claim that went on, by reason.
    pub audited: BTreeMap<String, u64>,
    /// Frames that were dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Endpoints of this node that are at other addresses than a stale source says.
    pub endpoints_moved: usize,
    /// Those whose Pods are not running, whatever a stale source says.
    pub endpoints_away: usize,
    /// Endpoints whose probes fail while the source is stale. At least half of a set stay in it all the same.
    pub endpoints_failing: usize,
    /// Packets of Pods that still appear with earlier addresses, by what was done with them.
    #[serde(default)]
    pub translated_packets: BTreeMap<String, u64>,
    /// The Pods, and containers that are no Pod's.
    pub pods: Vec<GuardedPodStatus>,
}

/// An interface of a Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardedPodStatus {
    /// Namespace of the Pod; "" of a container that is no Pod's.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its interface.
    pub interface: String,
    /// Whether it runs, or its addresses are kept.
    pub state: State,
    /// The addresses that it has, or had last.
    pub addresses: Vec<IpAddr>,
    /// Addresses that it had before and has no more.
    #[serde(default)]
    pub promised: Vec<IpAddr>,
    /// Those of them at which it is still reached, and with which it still appears.
    #[serde(default)]
    pub translated: Vec<IpAddr>,
    /// Its MAC.
    pub mac: Option<Mac>,
    /// The node's device that leads to it, while the device is guarded.
    pub device: Option<String>,
    /// Frames from the Pod that claimed another's address and passed, because the guard only counts.
    pub audited: u64,
    /// Such frames that the guard dropped.
    pub dropped: u64,
}

impl GuardedPodStatus {
    /// The order in which an operator looks for them: Pods that sent what is not theirs, Pods that lost an address,
    /// Pods that run.
    fn rank(&self) -> (bool, bool, bool) {
        let is_quiet = self.audited + self.dropped == 0;
        (
            is_quiet,
            self.promised.is_empty(),
            self.state != State::Active,
        )
    }
}

impl Retention {
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        let Retention {
            is_on,
            guard,
            guarded_devices,
            alarms,
            audited,
            dropped,
            endpoints_moved,
            endpoints_away,
            endpoints_failing,
            ..
        } = self;
        if *endpoints_failing > 0 {
            writeln!(
                out,
                "probes        {endpoints_failing} endpoints of this node do not answer"
            )?;
        }
        if !is_on {
            writeln!(
                out,
                "retention     off: no Pod was made by yurt-ipam or yurt-cni"
            )?;
            return write_alarms(out, alarms);
        }
        let (audited, dropped): (u64, u64) = (audited.values().sum(), dropped.values().sum());
        writeln!(
            out,
            "guard         {guard}: {guarded_devices} Pods, {audited} wrong frames passed, {dropped} dropped"
        )?;
        if endpoints_moved + endpoints_away > 0 {
            writeln!(
                out,
                "endpoints     {endpoints_moved} of this node are elsewhere than the stale source says, {endpoints_away} are not running"
            )?;
        }
        write_alarms(out, alarms)
    }

    /// The table of its Pods: the first few, those with something to report first.
    pub(super) fn write_pods(&self, out: &mut String) -> fmt::Result {
        if self.pods.is_empty() {
            return Ok(());
        }
        let titles = [
            "POD",
            "STATE",
            "ADDRESSES",
            "HAD BEFORE",
            "MAC",
            "GUARDED ON",
            "SPOOFED",
            "DROPPED",
        ];
        let mut rows = Vec::new();
        let mut first: Vec<&GuardedPodStatus> = self.pods.iter().collect();
        first.sort_by_key(|pod| pod.rank());
        first.truncate(SHOWN);
        for pod in &first {
            let GuardedPodStatus {
                namespace,
                name,
                interface,
                state,
                addresses,
                promised,
                translated,
                mac,
                device,
                audited,
                dropped,
            } = pod;
            let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            let had = promised.iter().map(|address| {
                let is_kept = translated.contains(address);
                format!("{address} {}", if is_kept { "translated" } else { "lost" })
            });
            let had: Vec<String> = had.collect();
            let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            rows.push([
                format!("{namespace}/{name} ({interface})"),
                state.to_string(),
                addresses.join(","),
                or_none(Some(had.join(", ")).filter(|had| !had.is_empty())),
                or_none(mac.map(|mac| mac.to_string())),
                or_none(device.clone()),
                (audited + dropped).to_string(),
                dropped.to_string(),
            ]);
        }
        write!(out, "\n{}", columns(titles, rows))?;
        write_more(out, self.pods.len(), first.len(), "ledger` shows all")
    }
}

fn write_alarms(out: &mut String, alarms: &[String]) -> fmt::Result {
    for alarm in alarms {
        writeln!(out, "              ! {alarm}")?;
    }
    Ok(())
}
