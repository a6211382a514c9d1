//! How the agent is: what `status` prints, and `observe::metrics` shows to Prometheus. Each room of the house has a
//! file.

mod configuration;
mod counted;
mod dataplane;
pub mod health;
mod health_ports;
mod left_alone;
mod packets;
mod refused;
mod retention;
mod self_test;
mod source;
#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::configuration::Configuration;
use self::counted::{KEPT, SHOWN, counts, write_counts, write_more};
pub use self::dataplane::{Clients, MapUsage, Sockets};
pub use self::health::Degraded;
pub use self::health_ports::HealthPorts;
pub use self::left_alone::LeftAlone;
pub use self::packets::{FastPath, PacketPath};
pub use self::refused::{DoesNotFit, RefusedService};
pub use self::retention::{GuardedPodStatus, Retention};
pub use self::self_test::SelfTest;
use crate::dataplane::service::SocketLb;
use crate::host::durations::Durations;
use crate::host::process::Process;
use crate::model::Rejection;
use crate::source::checkpoint::Stats;
use crate::source::preferred::SourceStatus;
use crate::text;
use crate::tunnel::report::Report;

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
    /// Map writes that changes by others made necessary.
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
    /// Packets from outside and of Pods; `None`: they are not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet_path: Option<PacketPath>,
    /// Where load balancers ask whether to send clients here.
    #[serde(default)]
    pub health_ports: HealthPorts,
    /// The configuration file; `None`: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<Configuration>,
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

impl Status {
    /// This process as the agent of a node, which has done nothing yet.
    pub fn new(node: &str) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            node: node.to_owned(),
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
    pub fn set_rejections(&mut self, all: &[impl Borrow<Rejection>]) {
        let all: Vec<&Rejection> = all.iter().map(Borrow::borrow).collect();
        let first = text::in_turns(&all, KEPT, |rejection| {
            text::by_namespace(&rejection.namespace)
        });
        self.rejections = first.into_iter().copied().cloned().collect();
        self.rejected_by_kind = counts(all.iter().map(|rejection| rejection.kind.as_str()));
    }

    /// Tells of these Service ports.
    pub fn set_refused(&mut self, DoesNotFit { first, by_map }: &DoesNotFit) {
        self.refused.clone_from(first);
        self.refused_by_map.clone_from(by_map);
    }

    #[expect(
        clippy::too_many_lines,
        reason = "the lines of the table, from the first to the last"
    )]
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
        source::write(&self.source, &self.checkpoint, out)?;
        writeln!(out, "self-test     {}", self.self_test)?;
        if self.socket_lb == SocketLb::Host && self.packet_path.is_none() {
            writeln!(
                out,
                "serving       the node's own sockets only: Pods have no Service (--socket-lb=host)"
            )?;
        }
        self.clients.write(out)?;
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
        self.sockets.write(out)?;
        if let Some(packets) = &self.packet_path {
            packets.write(out)?;
        }
        self.health_ports.write(out)?;
        if let Some(configuration) = &self.configuration {
            configuration.write(out)?;
        }
        self.retention.write(out)?;
        out.write_str(&self.devices.lines())?;
        writeln!(out, "service ports {}", self.services)?;
        let mut first = self.left_alone.iter().take(SHOWN);
        first.try_for_each(|one| one.write(out))?;
        write_more(
            out,
            self.left_alone.len(),
            SHOWN,
            "status -o json` shows all",
        )?;
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
        let names = self.counters.keys().map(|name| name.chars().count());
        let width = names.max().unwrap_or(0).max(20);
        writeln!(out, "\n{:<width$} COUNT", "VERDICT")?;
        for (name, count) in &self.counters {
            writeln!(out, "{name:<width$} {count:>5}")?;
        }
        self.retention.write_pods(out)?;
        if !self.refused.is_empty() {
            let all = write_counts(out, "DOES NOT FIT", &self.refused_by_map)?;
            let shown = text::in_turns(&self.refused, SHOWN, |refused| {
                text::by_namespace(refused.service.split('/').next().unwrap_or_default())
            });
            for RefusedService {
                service,
                map,
                flag,
                has_some,
                endpoints_in_force,
                endpoints,
            } in &shown
            {
                let what = match (endpoints_in_force, endpoints, has_some) {
                    (Some(some), Some(all), _) => format!("{some} of {all} endpoints in force"),
                    (.., true) => "incomplete".to_owned(),
                    (.., false) => "left out".to_owned(),
                };
                writeln!(out, "{service}  {what}: {map} is full, raise {flag}")?;
            }
            write_more(out, all, shown.len(), "explain` says it of one address")?;
        }
        if !self.rejections.is_empty() {
            let all = write_counts(out, "REJECTED", &self.rejected_by_kind)?;
            let shown = text::in_turns(&self.rejections, SHOWN, |r| {
                text::by_namespace(&r.namespace)
            });
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
