//! How the agent is: what `status` prints, and `observe::metrics` for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::dataplane::service::{BpfDataplane, SocketLb};
use crate::device::Mac;
use crate::host::columns::columns;
use crate::host::durations::Durations;
use crate::host::process::Process;
use crate::ledger::State;
use crate::model::Rejection;
use crate::plan::{Capacity, FullMap};
use crate::selftest;
use crate::source::checkpoint::Stats;
use crate::source::preferred::{Origin, SourceStatus};
use crate::text;
use crate::tunnel::report::Report;
use counted::{counts, write_counts, write_more};
pub use left_alone::LeftAlone;
pub use refused::RefusedService;

/// Objects and Service ports of one list that a status names. There may be tens of thousands, and it is asked for every second.
const KEPT: usize = 100;
/// Those that its table names.
const SHOWN: usize = 10;

/// All of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Process of the agent.
    pub pid: u32,
    /// This node.
    pub node: String,
    /// Its pool; "" = none.
    pub pool: String,
    /// The first table is applied, the programs are attached now, and the last repair has mended all it found.
    pub ready: bool,
    /// What is not as it should be, as it is now.
    #[serde(default)]
    pub degraded: Vec<Degraded>,
    /// The pins of an earlier agent were taken over at start.
    pub adopted: bool,
    /// Where the table comes from.
    #[serde(flatten)]
    pub source: SourceStatus,
    /// Seconds since 1970 when the checkpoint that the agent booted from was true; `None` = there was none.
    pub checkpoint_synced_at: Option<u64>,
    /// The checkpoint on disk.
    pub checkpoint: Stats,
    /// Service ports in the table.
    pub services: usize,
    /// ClusterIPs that are not served, because an interface of this node has them.
    #[serde(default)]
    pub left_alone: Vec<LeftAlone>,
    /// Tables applied since the start.
    pub applied: u64,
    /// Those that could not be applied, and were tried again.
    pub failed_applies: u64,
    /// How long each of the applied ones took, from what the sources say to what is in the maps.
    pub apply_durations: Durations,
    /// When the last of them was, in seconds since 1970.
    pub last_applied_at: Option<u64>,
    /// Writes for the last of them.
    pub last_writes: usize,
    /// Use of the maps.
    pub maps: Vec<MapUsage>,
    /// Service ports that did not fit: the first few.
    pub refused: Vec<RefusedService>,
    /// All of them, by map.
    #[serde(default)]
    pub refused_by_map: BTreeMap<String, usize>,
    /// Objects that are wrong: the first few. `plan` shows all.
    pub rejections: Vec<Rejection>,
    /// What is wrong in all, by kind of the object.
    #[serde(default)]
    pub rejected_by_kind: BTreeMap<String, usize>,
    /// Verdicts since the maps were made.
    pub counters: BTreeMap<String, u64>,
    /// Map writes that somebody else's changes made necessary.
    pub drift_writes: usize,
    /// Programs that had to be attached again.
    pub drift_links: usize,
    /// A refused call fails with ECONNREFUSED; else with EPERM, because this kernel cannot say more.
    pub refuses_with_econnrefused: bool,
    /// Established sockets whose backend went.
    pub sockets: Sockets,
    /// Who dials, as far as source ranges ask.
    pub clients: Clients,
    /// Pods whose addresses are kept.
    pub retention: Retention,
    /// The node's own devices whose addresses are kept.
    pub devices: Report,
    /// The cgroup that the programs are attached to: processes in it and below it are served.
    #[serde(default)]
    pub cgroup: PathBuf,
    /// It is the root of the hierarchy: every process of the machine is served.
    #[serde(default)]
    pub cgroup_is_root: bool,
    /// Whose sockets are served.
    #[serde(default)]
    pub socket_lb: SocketLb,
    /// Whether a process in another cgroup is served.
    pub self_test: SelfTest,
    /// Programs, and the instructions that the verifier looked at.
    pub programs: BTreeMap<String, u32>,
    /// Memory and processor time; `None` where `/proc` does not say.
    pub process: Option<Process>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degraded {
    /// In a word: it labels a metric.
    pub what: String,
    /// Why, for people.
    pub reason: String,
}

/// Pods whose addresses are kept, and who watches over them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// A plugin has written a ledger.
    pub is_on: bool,
    /// What happens to frames that claim what is not their sender's: `off`, `audit` or `enforce`.
    pub guard: String,
    /// Devices of Pods that it watches.
    pub guarded_devices: usize,
    /// What an operator should look after.
    pub alarms: Vec<String>,
    /// Frames that were found fault with and went on, by reason.
    pub audited: BTreeMap<String, u64>,
    /// Frames that did not, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Endpoints of this node that are at other addresses than a stale source says.
    pub endpoints_moved: usize,
    /// Those whose Pods are not running, whatever a stale source says.
    pub endpoints_away: usize,
    /// Those whose probes fail while the source is stale; at least half of a set stay in it all the same.
    pub endpoints_failing: usize,
    /// Packets of Pods that appear with addresses that they had, by what was done with them.
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
    /// Those that it had before, and was given others.
    #[serde(default)]
    pub promised: Vec<IpAddr>,
    /// Those of them that it is reached at, and appears with.
    #[serde(default)]
    pub translated: Vec<IpAddr>,
    /// Its MAC.
    pub mac: Option<Mac>,
    /// The node's device that leads to it, while that is guarded.
    pub device: Option<String>,
    /// Frames from it that claimed what is not its own, and went on.
    pub audited: u64,
    /// And those that did not.
    pub dropped: u64,
}

/// The clients of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Clients {
    /// Network namespaces whose addresses the programs know; 0 while no Service has source ranges.
    pub known: usize,
    /// Why the last look did not find all; those that it did not find are refused where there are source ranges.
    pub last_error: Option<String>,
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

/// Looks at established sockets, and their ends.
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
    /// What went wrong in it.
    pub last_error: Option<String>,
    /// UDP sockets ended because their endpoint was withdrawn.
    pub ended_withdrawn: u64,
    /// Sockets ended because their endpoint is outside the closure: `--closure-established=reset`.
    pub ended_outside_closure: u64,
}

/// Whether Services are translated for a process in another cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "result")]
pub enum SelfTest {
    /// Not tried yet.
    #[default]
    Pending,
    /// They are.
    Passed,
    /// They are not meant to be: `--socket-lb off`.
    Skipped,
    /// They are not.
    Failed {
        /// What was seen instead.
        reason: String,
    },
}

impl SelfTest {
    /// Runs it, with a child in a cgroup of its own below `cgroup`.
    pub async fn run(cgroup: &Path) -> Self {
        match selftest::run(cgroup).await {
            Ok(()) => Self::Passed,
            Err(error) => Self::Failed {
                reason: crate::error::chain(&error),
            },
        }
    }
}

impl Status {
    /// An agent that has done nothing yet.
    pub fn new(node: &str, dataplane: &BpfDataplane) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            node: node.to_owned(),
            refuses_with_econnrefused: dataplane.has_set_retval(),
            programs: dataplane
                .programs()
                .iter()
                .map(|program| (program.name.to_owned(), program.verified))
                .collect(),
            ..Self::default()
        }
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut text);
        text
    }

    /// Whether it is ready, and what is degraded, in one line.
    pub fn readiness(&self) -> String {
        let faults = self.degraded.iter();
        let faults = faults.map(|Degraded { what, reason }| format!("{what}: {reason}"));
        let faults: Vec<String> = faults.collect();
        match (self.ready, &*faults) {
            (true, []) => "yes".to_owned(),
            (false, []) => "no".to_owned(),
            (true, faults) => format!("degraded: {}", faults.join("; ")),
            (false, faults) => format!("no: {}", faults.join("; ")),
        }
    }

    /// Tells of these objects.
    pub fn set_rejections(&mut self, all: &[Rejection]) {
        let first = text::in_turns(all, KEPT, |rejection| &rejection.namespace);
        self.rejections = first.into_iter().cloned().collect();
        self.rejected_by_kind = counts(all.iter().map(|rejection| rejection.kind.as_str()));
    }

    fn write_source(&self, out: &mut String) -> std::fmt::Result {
        let SourceStatus {
            source,
            provenance,
            is_fresh,
            age_seconds,
            source_error,
            held_lists,
            received,
            sources: _,
        } = &self.source;
        let what = match provenance {
            Origin::None => "nothing yet".to_owned(),
            Origin::File => "manifests".to_owned(),
            Origin::Live | Origin::Hub => format!("heard of {age_seconds} s ago"),
            Origin::Checkpoint => {
                format!("CHECKPOINT of {age_seconds} s ago; no source has answered since the start")
            }
        };
        writeln!(out, "source        {source} ({what})")?;
        if !is_fresh {
            writeln!(
                out,
                "              ! stale: it may be older than what this node knows itself"
            )?;
        }
        if let Some(error) = source_error {
            writeln!(
                out,
                "              ! {error}; the last good state is in force"
            )?;
        }
        for held in held_lists {
            writeln!(out, "              ! held back: {held}")?;
        }
        if !received.is_empty() {
            let bytes: u64 = received.values().map(|received| received.bytes).sum();
            let objects: u64 = received.values().map(|received| received.objects).sum();
            writeln!(out, "received      {objects} objects, {bytes} bytes")?;
        }
        let Stats {
            bytes_written,
            writes,
            last_error,
            ..
        } = &self.checkpoint;
        if *writes > 0 {
            writeln!(out, "checkpoint    {writes} writes, {bytes_written} bytes")?;
        }
        if let Some(error) = last_error {
            writeln!(out, "checkpoint    NOT SAVED: {error}")?;
        }
        Ok(())
    }

    fn write_sockets(&self, out: &mut String) -> std::fmt::Result {
        let Sockets {
            unsupported,
            scans,
            last_scan_ms,
            last_error,
            ended_withdrawn,
            ended_outside_closure,
            ..
        } = &self.sockets;
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

    fn write_retention(&self, out: &mut String) -> std::fmt::Result {
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
        } = &self.retention;
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
            "guard         {guard}: {guarded_devices} Pods, {audited} frames found fault with, {dropped} dropped"
        )?;
        if endpoints_moved + endpoints_away > 0 {
            writeln!(
                out,
                "endpoints     {endpoints_moved} of this node are elsewhere than the stale source says, {endpoints_away} are not running"
            )?;
        }
        write_alarms(out, alarms)
    }

    fn write_pods(&self, out: &mut String) -> std::fmt::Result {
        if self.retention.pods.is_empty() {
            return Ok(());
        }
        let head = [
            "POD",
            "STATE",
            "ADDRESSES",
            "HAD BEFORE",
            "MAC",
            "GUARDED ON",
            "SPOOFED",
            "DROPPED",
        ];
        let mut lines = vec![head.map(str::to_owned)];
        for pod in &self.retention.pods {
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
            lines.push([
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
        write!(out, "\n{}", columns(&lines))
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let or_none = |text: &str| {
            if text.is_empty() {
                "(none)".to_owned()
            } else {
                text.to_owned()
            }
        };
        writeln!(out, "node          {}", self.node)?;
        writeln!(out, "pool          {}", or_none(&self.pool))?;
        writeln!(out, "ready         {}", self.readiness())?;
        writeln!(out, "agent         {} (pid {})", self.version, self.pid)?;
        let adopted = if self.adopted {
            "taken over from an earlier agent"
        } else {
            "new"
        };
        writeln!(out, "maps          {adopted}")?;
        self.write_source(out)?;
        let self_test = match &self.self_test {
            SelfTest::Pending => "pending".to_owned(),
            SelfTest::Passed => "passed: a process in another cgroup is served".to_owned(),
            SelfTest::Skipped => "skipped: --socket-lb is off".to_owned(),
            SelfTest::Failed { reason } => format!("FAILED: {reason}"),
        };
        writeln!(out, "self-test     {self_test}")?;
        if self.socket_lb == SocketLb::Host {
            writeln!(
                out,
                "serving       the node's own sockets only: Pods have no Service (--socket-lb=host)"
            )?;
        }
        let only = if self.cgroup_is_root {
            ""
        } else {
            ": only processes below it are served"
        };
        writeln!(out, "cgroup        {}{only}", self.cgroup.display())?;
        let errno = if self.refuses_with_econnrefused {
            "ECONNREFUSED"
        } else {
            "EPERM (old kernel)"
        };
        writeln!(out, "refusals      {errno}")?;
        self.write_sockets(out)?;
        self.write_retention(out)?;
        out.write_str(&self.devices.lines())?;
        writeln!(out, "service ports {}", self.services)?;
        self.left_alone.iter().try_for_each(|one| one.write(out))?;
        writeln!(
            out,
            "tables        {} applied, {} writes for the last",
            self.applied, self.last_writes
        )?;
        let (writes, links) = (self.drift_writes, self.drift_links);
        writeln!(
            out,
            "drift         {writes} writes and {links} programs repaired"
        )?;
        writeln!(out, "\nMAP         USED  CAPACITY")?;
        for MapUsage {
            map,
            used,
            capacity,
        } in &self.maps
        {
            writeln!(out, "{map:<10} {used:>5}  {capacity:>8}")?;
        }
        writeln!(out, "\nVERDICT              COUNT")?;
        for (name, count) in &self.counters {
            writeln!(out, "{name:<20} {count:>5}")?;
        }
        self.write_pods(out)?;
        if !self.refused.is_empty() {
            let all = write_counts(out, "DOES NOT FIT", &self.refused_by_map)?;
            let shown = text::in_turns(&self.refused, SHOWN, |refused| {
                refused.service.split('/').next()
            });
            for RefusedService {
                service,
                map,
                flag,
                has_some,
            } in &shown
            {
                let what = if *has_some { "incomplete" } else { "left out" };
                writeln!(out, "{service}  {what}: {map} is full, raise {flag}")?;
            }
            write_more(out, all, shown.len(), "explain` says it of one address")?;
        }
        if !self.rejections.is_empty() {
            let all = write_counts(out, "REJECTED", &self.rejected_by_kind)?;
            let shown = text::in_turns(&self.rejections, SHOWN, |r| &r.namespace);
            for Rejection {
                kind,
                namespace,
                name,
                source,
                reason,
            } in &shown
            {
                let slash = if namespace.is_empty() { "" } else { "/" };
                writeln!(out, "{kind} {namespace}{slash}{name} ({source}): {reason}")?;
            }
            write_more(out, all, shown.len(), "plan` shows all")?;
        }
        Ok(())
    }
}

fn write_alarms(out: &mut String, alarms: &[String]) -> std::fmt::Result {
    for alarm in alarms {
        writeln!(out, "              ! {alarm}")?;
    }
    Ok(())
}

mod counted;
pub mod health;
mod left_alone;
mod refused;
#[cfg(test)]
mod tests;
