//! The memory of an agent and its maps.

use std::fs;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use super::Options;
use super::bpf;
use super::report::Claim;
use super::report::Measure;
use super::universe;
use crate::lab::Lab;
use crate::lab::Manifests;
use crate::lab::Node;

/// Name of the measure.
pub const NAME: &str = "memory";

const ENDPOINTS: usize = 10;
const STEADY_FOR: Duration = Duration::from_secs(2);
const STEADY_WITHIN: Duration = Duration::from_secs(30);

/// Runs the measure on a node of its own.
pub fn measure(lab: &Lab, options: &Options) -> Result<Measure> {
    let node = lab.node(NAME)?;
    let mut claims = Vec::new();
    let sizes: &[(usize, Option<f64>)] = match options.quick {
        true => &[(1000, Some(10.0))],
        false => &[(1000, Some(10.0)), (10_000, Some(30.0))],
    };
    for &(services, target) in sizes {
        let manifests = manifests(&node, services);
        let runs = (0..options.rounds(3))
            .map(|_| run(&node, &manifests))
            .collect::<Result<Vec<_>>>()?;
        let of = |field: fn(&Run) -> f64| runs.iter().map(field).collect();
        let what = |name| format!("{name}, {services} x {ENDPOINTS}");
        let resident = Claim::new(
            what("resident, steady"),
            "MB",
            of(|run| run.process.resident),
        );
        claims.push(match target {
            Some(target) => resident.at_most(target),
            None => resident,
        });
        let told = [
            ("  of which its own pages", of(|run| run.process.anonymous)),
            ("  of which programs and libraries", of(|run| run.files)),
            ("  of which mapped maps", of(|run| run.mapped)),
            ("resident, peak", of(|run| run.process.peak)),
            ("kernel memory of the maps", of(|run| run.maps)),
        ];
        for (name, rounds) in told {
            claims.push(Claim::new(what(name), "MB", rounds));
        }
    }
    Ok(Measure {
        name: NAME,
        title: "Memory of an agent that follows a file",
        method: "/proc/PID/status of a real agent once it is ready and no longer changes, and what \
                 fdinfo says of every pinned map; services x endpoints, default flags; MB = 10^6 bytes. \
                 Every round is an agent that starts on an empty node.",
        unit: "",
        series: Vec::new(),
        claims,
    })
}

/// Services of ten endpoints each.
fn manifests(node: &Node, services: usize) -> Manifests {
    let mut manifests = Manifests::new();
    manifests.node(node).pool("bench");
    for index in 0..services {
        let service = manifests.service(&universe::service_name(index));
        service.cluster_ip(&universe::cluster_ip(index).to_string());
        service.port(80, 8080);
        for n in 0..ENDPOINTS {
            let ip = universe::endpoint_ip(index * ENDPOINTS + n);
            service.add_endpoint(ip.into(), Some(node.name()), true);
        }
    }
    manifests
}

/// Megabytes.
struct Run {
    process: Process,
    files: f64,
    mapped: f64,
    maps: f64,
}

fn run(node: &Node, manifests: &Manifests) -> Result<Run> {
    let agent = universe::start_agent(node, manifests)?;
    let process = steady(agent.pid())?;
    let [files, mapped] = file_pages(agent.pid())?;
    let maps = bpf::map_memory(&node.bpffs().join("yurt-net"))?;
    let bytes: u64 = maps.iter().map(|(_, bytes)| bytes).sum();
    agent.kill9()?;
    let cleanup = node.yurt_net(&["cleanup"])?;
    if !cleanup.status.success() {
        bail!("cleanup: {}", String::from_utf8_lossy(&cleanup.stderr));
    }
    Ok(Run {
        process,
        files,
        mapped,
        maps: f64::from(u32::try_from(bytes)?) / 1e6,
    })
}

/// Megabytes of a process.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Process {
    pub(super) resident: f64,
    pub(super) anonymous: f64,
    pub(super) peak: f64,
}

impl Process {
    fn read(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
            let kibibytes: Option<f64> = kibibytes.and_then(|number| number.parse().ok());
            let kibibytes = kibibytes.with_context(|| format!("no {name} in {path}"))?;
            anyhow::Ok(kibibytes * 1024.0 / 1e6)
        };
        Ok(Self {
            resident: field("VmRSS:")?,
            anonymous: field("RssAnon:")?,
            peak: field("VmHWM:")?,
        })
    }
}

/// Megabytes of mapped files, and of the kernel's maps in the process's memory.
fn file_pages(pid: u32) -> Result<[f64; 2]> {
    let path = format!("/proc/{pid}/smaps");
    let smaps = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let [mut files, mut mapped] = [0.0; 2];
    let mut name = "";
    for line in smaps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields.as_slice() {
            // 5581c000-5582d000 r-xp 00012000 08:01 4242 /usr/bin/yurt-net
            [range, _, _, _, _, rest @ ..] if range.contains('-') => {
                name = rest.first().copied().unwrap_or_default();
            }
            ["Rss:", kibibytes, "kB"] => {
                let size = kibibytes.parse::<f64>()? * 1024.0 / 1e6;
                match name {
                    _ if name.contains("bpf") => mapped += size,
                    _ if name.starts_with('/') => files += size,
                    _ => {}
                }
            }
            _ => {}
        }
    }
    Ok([files, mapped])
}

/// Waits until nothing has changed for a while.
pub(super) fn steady(pid: u32) -> Result<Process> {
    let deadline = Instant::now() + STEADY_WITHIN;
    let mut since = Instant::now();
    let mut last = Process::read(pid)?;
    while since.elapsed() < STEADY_FOR && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
        let now = Process::read(pid)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}
