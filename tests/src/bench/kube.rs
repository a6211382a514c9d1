//! An agent that follows an apiserver: the time to its first table, its cost, and the delay of changes.
//!
//! The apiserver is the scripted one, in a process of its own in the node's network namespace, with clusters of
//! [`Scale`]. The time that it needs to make an event does not count: timing begins when it hands the event to its
//! socket, and ends when this process sees another publish word in the mapped `yurt_svc`.

use std::fs;
use std::io;
use std::io::BufRead;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;

use super::Options;
use super::bpf::PublishWords;
use super::memory::Process;
use super::memory::steady;
use super::report::Claim;
use super::report::Measure;
use super::report::Series;
use super::stats::Summary;
use super::tables;
use super::tenants::Tenants;
use super::tenants::Upset;
use super::tenants::Which;
use super::universe::Worker;
use super::worker::Task;
use crate::apiserver::FakeApiserver;
use crate::apiserver::On;
use crate::apiserver::Resource;
use crate::apiserver::Scale;
use crate::lab::Agent;
use crate::lab::Lab;
use crate::lab::Node;

/// Name of the measure.
pub const NAME: &str = "kube";

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(1);
/// The checkpoint is written two seconds after the first change; after that nothing is left to do.
const CALM: Duration = Duration::from_secs(4);
const STORM_PER_SECOND: u32 = 100;
/// Room for all endpoints of ten thousand Services and for the ranges that wait for a grace period.
const MANY_SLOTS: &str = "--max-slots4=262144";

/// The cluster of the apiserver's process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cluster {
    services: usize,
    endpoints: usize,
    /// `openyurt.io/topologyKeys` of all Services.
    topology_keys: Option<String>,
    /// Objects of tenants, as large as an apiserver accepts them; see [`super::tenants`].
    pub(super) tenants: Option<Tenants>,
}

impl Cluster {
    /// Services of ten endpoints, without closure.
    pub(super) fn open(services: usize) -> Self {
        Self {
            services,
            endpoints: 10,
            topology_keys: None,
            tenants: None,
        }
    }

    fn scale(&self) -> Scale {
        Scale {
            services: self.services,
            endpoints: self.endpoints,
            topology_keys: self.topology_keys.clone(),
            ..Scale::default()
        }
    }

    /// Flags of an agent that differ from the defaults.
    fn flags(&self) -> &'static [&'static str] {
        // A pool has an eighth of the endpoints.
        let is_open = self.topology_keys.is_none();
        let is_large = is_open && self.services * self.endpoints > tables::CAPACITY.slots4 as usize;
        // Tenants may fill any map, and this measures time.
        if is_large || self.tenants.is_some() {
            &[MANY_SLOTS]
        } else {
            &[]
        }
    }
}

/// An order to the apiserver's process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// Change the slice of this Service; reply when the event was handed to the socket, in nanoseconds of the
    /// monotonic clock.
    Change(usize),
    /// Change this many slices a second, for this many seconds; reply with their number.
    Storm(u32, u32),
    /// Reply with the bytes that the node's loopback device has carried.
    Carried,
    /// Change the slice of this Service; reply with the time when that began, in nanoseconds of the monotonic clock.
    Begin(usize),
    /// Reply with how many nanoseconds the last change that was begun took at the apiserver itself.
    Took,
    /// Change this many of these tenants' objects a second from now on; reply with how many were changed before.
    Upset(u32, Which),
}

/// The main function of the apiserver's process: its URL on the first line, then a reply to each order.
pub(super) fn serve(cluster: &Cluster) -> Result<()> {
    let scale = cluster.scale();
    let api = Arc::new(FakeApiserver::start()?);
    api.put_all(scale.objects())?;
    let mut upset = match cluster.tenants {
        Some(tenants) => Some(Upset::start(tenants, Arc::clone(&api))?),
        None => None,
    };
    let mut changes = vec![0; cluster.services];
    let mut change = |service: usize| {
        changes[service] = 1 - changes[service];
        api.put(scale.slice(service, changes[service]))
    };
    let mut took = 0;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{:?}", api.http().url())?;
    for line in io::stdin().lock().lines() {
        let reply = match serde_json::from_str(&line?).context("parse an order")? {
            Order::Change(service) => {
                let before = api.http().bytes_sent(Resource::EndpointSlices);
                change(service)?;
                api.http().wait_until(PATIENCE, |http| {
                    http.bytes_sent(Resource::EndpointSlices) > before
                })?;
                let watches = api.http().requests_on(On::watch(Resource::EndpointSlices));
                let sent_at = watches.iter().filter_map(|watch| watch.sent_at).max();
                let age = sent_at.context("nothing was sent")?.elapsed();
                monotonic()? - u64::try_from(age.as_nanos())?
            }
            Order::Storm(per_second, seconds) => {
                let (start, count) = (Instant::now(), per_second * seconds);
                for number in 0..count {
                    let due = Duration::from_secs(1) * number / per_second;
                    thread::sleep(due.saturating_sub(start.elapsed()));
                    change(number as usize * 7919 % cluster.services)?;
                }
                u64::from(count)
            }
            Order::Carried => carried()?,
            Order::Begin(service) => {
                let begun = monotonic()?;
                change(service)?;
                took = monotonic()? - begun;
                begun
            }
            Order::Took => took,
            Order::Upset(per_second, which) => {
                let upset = upset.as_mut().context("no tenants")?;
                upset.set(per_second, which)?
            }
        };
        writeln!(stdout, "{reply}")?;
    }
    Ok(())
}

/// Nanoseconds of the clock that all processes share.
pub(super) fn monotonic() -> Result<u64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid place for the result.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error()).context("read the clock");
    }
    Ok(u64::try_from(time.tv_sec)? * 1_000_000_000 + u64::try_from(time.tv_nsec)?)
}

/// Bytes that the loopback device of this network namespace has carried, headers and all.
fn carried() -> Result<u64> {
    let devices = fs::read_to_string("/proc/thread-self/net/dev")?;
    let lo = devices
        .lines()
        .find_map(|line| line.trim().strip_prefix("lo:"));
    let received = lo.and_then(|lo| lo.split_whitespace().next());
    Ok(received.context("no loopback device")?.parse()?)
}

/// A node, and the apiserver's process on it.
pub(super) struct Setting {
    pub(super) node: Node,
    cluster: Cluster,
    pub(super) server: Worker,
    source: String,
}

impl Setting {
    pub(super) fn new(lab: &Lab, name: &str, cluster: Cluster) -> Result<Self> {
        let node = lab.node(name)?;
        let mut server = Worker::start(&node.host()?, &Task::Apiserver(cluster.clone()))?;
        let url: String = server.reply()?;
        let setting = Self {
            node,
            cluster,
            server,
            source: format!("kube:{url}"),
        };
        // The server keeps the lists that it has made; their cost does not count.
        let (agent, _) = setting.start()?;
        setting.remove(&agent)?;
        Ok(setting)
    }

    /// Starts an agent on a node without maps; returns it and the milliseconds from its start to the table in force.
    pub(super) fn start(&self) -> Result<(Agent, f64)> {
        let started = Instant::now();
        let name = self.cluster.scale().node_name(0);
        let flags = self.cluster.flags();
        let agent = self.node.start_agent_from(&self.source, &name, flags)?;
        // The maps get their final path when the programs use them.
        let maps = self.node.table_pins();
        self.wait(&agent, || Ok(maps.exists()))?;
        let took = started.elapsed().as_secs_f64() * 1e3;
        self.wait(&agent, || Ok(self.status()?["ready"] == true))?;
        let services = &self.status()?["services"];
        let is_whole = *services == self.cluster.services || self.cluster.tenants.is_some();
        ensure!(is_whole, "{services} services");
        Ok((agent, took))
    }

    fn wait(&self, agent: &Agent, holds: impl Fn() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !holds()? {
            let is_in_time = agent.is_running() && start.elapsed() < PATIENCE;
            ensure!(is_in_time, "not in time\n{}", self.node.agent_log());
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn status(&self) -> Result<Value> {
        let output = self.node.yurt_net(&["status", "-o", "json"])?;
        Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
    }

    /// Clears what a reboot clears: the agent, and everything in the kernel.
    fn reboot(&self, agent: &Agent) -> Result<()> {
        agent.kill9()?;
        let cleanup = self.node.yurt_net(&["cleanup"])?;
        let says = String::from_utf8_lossy(&cleanup.stderr);
        ensure!(cleanup.status.success(), "cleanup: {says}");
        Ok(())
    }

    /// The same, and removes the checkpoint.
    fn remove(&self, agent: &Agent) -> Result<()> {
        self.reboot(agent)?;
        remove_dir(&self.node.state_dir().join("snapshot"))
    }

    /// Starts agents without a checkpoint; the last one goes on running.
    fn fresh_starts(&self, rounds: usize) -> Result<(Agent, Fresh)> {
        let mut fresh = Fresh::default();
        loop {
            let (agent, took) = self.start()?;
            fresh.starts.push(took);
            let process = steady(agent.pid())?;
            fresh.processes.push(process);
            if fresh.starts.len() == rounds {
                return Ok((agent, fresh));
            }
            self.remove(&agent)?;
        }
    }

    /// Microseconds from an event on the wire to a changed publish word.
    fn events(&mut self, count: usize) -> Result<Vec<f64>> {
        let _gentle = Gentle::new()?;
        let words =
            PublishWords::open(&self.node.table_pins(), tables::CAPACITY.services as usize)?;
        let mut times = Vec::with_capacity(count);
        for number in 0..count {
            let before: Vec<u64> = words.read().collect();
            let service = number * 7919 % self.cluster.services;
            self.server.tell(&Order::Change(service))?;
            let start = Instant::now();
            while words.read().eq(before.iter().copied()) {
                ensure!(start.elapsed() < PATIENCE, "nothing was published");
            }
            let seen = monotonic()?;
            let sent: u64 = self.server.reply()?;
            times.push(Duration::from_nanos(seen.saturating_sub(sent)).as_secs_f64() * 1e6);
            // Each event wakes an agent at rest.
            thread::sleep(Duration::from_millis(5));
        }
        Ok(times)
    }

    /// Per cent of a core that the agent uses meanwhile.
    fn load(&mut self, seconds: u32, order: Option<Order>) -> Result<f64> {
        let (start, before) = (Instant::now(), self.node.agent_cpu_time()?);
        let _reply: Option<u64> = order.map(|order| self.server.call(&order)).transpose()?;
        thread::sleep(Duration::from_secs(seconds.into()).saturating_sub(start.elapsed()));
        let used = self.node.agent_cpu_time()?.saturating_sub(before);
        Ok(used.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0)
    }

    /// Kilobytes on the wire for an agent that is started again at once.
    fn restart(&mut self, agent: &Agent) -> Result<(Agent, f64)> {
        ensure!(agent.terminate()?.success(), "{}", self.node.agent_log());
        let before: u64 = self.server.call(&Order::Carried)?;
        let (agent, _) = self.start()?;
        self.wait(&agent, || Ok(self.status()?["provenance"] == "live"))?;
        thread::sleep(CALM);
        let carried = self.server.call::<u64>(&Order::Carried)? - before;
        Ok((agent, f64::from(u32::try_from(carried)?) / 1e3))
    }
}

/// Makes this thread run only where no other wants to: a reader that spins must not take a processor from the agent.
struct Gentle;

impl Gentle {
    fn new() -> Result<Self> {
        schedule(libc::SCHED_IDLE)?;
        Ok(Self)
    }
}

impl Drop for Gentle {
    fn drop(&mut self) {
        // Work so far was in the other scheduling class; the rest is not timed.
        let _ = schedule(libc::SCHED_OTHER);
    }
}

fn schedule(class: libc::c_int) -> Result<()> {
    // SAFETY: plain data, of which musl has more fields; zero is a value of each.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // The system call itself: musl's function does nothing, because the call applies to a thread and not to a process.
    // SAFETY: valid parameters; 0 is the calling thread.
    let set = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            class,
            &raw const parameters,
        )
    };
    if set != 0 {
        return Err(io::Error::last_os_error()).context("set the scheduling class");
    }
    Ok(())
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[derive(Default)]
struct Fresh {
    starts: Vec<f64>,
    processes: Vec<Process>,
}

impl Fresh {
    fn claims(self, of: &str, start: Option<f64>, resident: f64) -> [Claim; 4] {
        let Self { starts, processes } = self;
        let started = Claim::new(format!("start to programmed, {of}"), "ms", starts);
        let rss = processes.iter().map(|p| p.resident).collect();
        let own = processes.iter().map(|p| p.anonymous).collect();
        let peak = processes.iter().map(|p| p.peak / p.resident).collect();
        [
            match start {
                Some(start) => started.at_most(start),
                None => started,
            },
            Claim::new(format!("resident, {of}"), "MB", rss).at_most(resident),
            Claim::new("  of which its own pages", "MB", own),
            Claim::new(format!("  peak / steady, {of}"), "", peak).at_most(1.4),
        ]
    }
}

/// Runs the measure on nodes of its own.
pub fn measure(lab: &Lab, options: &Options) -> Result<Measure> {
    let rounds = if options.quick { 1 } else { 5 };
    let seconds = if options.quick { 1 } else { 10 };
    let services = options.services();
    let cluster = |services, topology_keys: Option<&str>| Cluster {
        services,
        endpoints: 10,
        topology_keys: topology_keys.map(str::to_owned),
        tenants: None,
    };
    let mut claims = Vec::new();

    let mut open = Setting::new(lab, "kube-open", cluster(services, None))?;
    let (agent, fresh) = open.fresh_starts(rounds)?;
    claims.extend(fresh.claims(&format!("{services} open"), Some(1500.0), 80.0));
    thread::sleep(CALM);
    let written = open.status()?["checkpoint"]["lastWriteMs"].as_f64();
    let written = written.context("no checkpoint")?;
    // As long as one comparison of the maps takes.
    let rest = open.load(seconds * 3, None)?;
    let events = open.events(if options.quick { 20 } else { 500 })?;
    let storm = open.load(seconds, Some(Order::Storm(STORM_PER_SECOND, seconds)))?;
    let Summary { p99, .. } = Summary::of(&events);
    let chunks = events.chunks(events.len().div_ceil(20));
    let medians = chunks.map(|chunk| Summary::of(chunk).p50).collect();
    let after_storm = steady(agent.pid())?;
    let (agent, wire) = open.restart(&agent)?;
    let mut boots = Vec::new();
    open.server.end();
    let mut agent = agent;
    for _ in 0..rounds {
        open.reboot(&agent)?;
        let took;
        (agent, took) = open.start()?;
        ensure!(open.status()?["provenance"] == "checkpoint");
        boots.push(took);
    }
    open.remove(&agent)?;
    claims.extend([
        Claim::new("event to maps, p50", "us", medians).at_most(1000.0),
        Claim::new("event to maps, p99", "us", vec![p99]).at_most(5000.0),
        Claim::new("processor at rest", "%", vec![rest]).at_most(0.5),
        Claim::new("processor at 100 changes/s", "%", vec![storm]).at_most(5.0),
        Claim::new("resident after these", "MB", vec![after_storm.resident]),
        Claim::new("restart, on the wire", "kB", vec![wire]).at_most(10.0),
        Claim::new("checkpoint write", "ms", vec![written]).at_most(100.0),
        Claim::new("boot from the checkpoint", "ms", boots).at_most(300.0),
    ]);

    for (name, services, keys, start, resident) in [
        (
            "kube-closed",
            services,
            Some("openyurt.io/nodepool"),
            Some(1500.0),
            40.0,
        ),
        ("kube-small", 1000, None, None, 16.0),
    ] {
        let setting = Setting::new(lab, name, cluster(services, keys))?;
        let (agent, fresh) = setting.fresh_starts(rounds)?;
        let of = match keys {
            Some(_) => format!("{services} closed to pools"),
            None => format!("{services} open"),
        };
        claims.extend(fresh.claims(&of, start, resident));
        setting.remove(&agent)?;
    }
    Ok(Measure {
        name: NAME,
        title: "An agent that follows an apiserver",
        method: "A real agent and a scripted apiserver in processes of their own; Services of ten endpoints in one \
                 slice, 40 nodes in 8 pools. Start: exec to programs that use the full maps. Event: from the \
                 apiserver's socket to a publish word. Processor: cpu.stat of the agent's cgroup. MB = 10^6 bytes.",
        unit: "us",
        series: vec![Series::new("one slice event to the maps", &events)],
        claims,
    })
}
