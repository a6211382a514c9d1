//! The delay for others beside tenants who write as much as an apiserver accepts.
//!
//! A hundred objects of up to 1.5 MB, each large in another way. While some of them are changed again and again, the
//! slice of another tenant's Service is changed, and `status` and `/healthz` are asked for.

use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use super::Options;
use super::bpf::PublishWords;
use super::kube::Cluster;
use super::kube::Order;
use super::kube::Setting;
use super::kube::monotonic;
use super::memory::steady;
use super::report::Claim;
use super::report::Measure;
use super::report::Series;
use super::stats::Summary;
use super::tables;
use crate::apiserver::FakeApiserver;
use crate::apiserver::objects;
use crate::lab::Node;

/// Name of the measure.
pub const NAME: &str = "tenants";

/// How many other Services there are.
const OTHERS: usize = 100;
/// The Service that is watched.
const WATCHED: usize = 7;
const PATIENCE: Duration = Duration::from_secs(120);
/// The time from one change of the watched Service to the next, and from one question to the next.
const PAUSE: Duration = Duration::from_millis(40);
/// How many of the tenants' objects change in a second: 15 MB.
const PER_SECOND: u32 = 10;
/// How often each of them is rewritten with other names: the memory for old names must be given back.
const REWRITES: usize = 10;
/// The agent's default.
const METRICS_PORT: u16 = 10249;

/// What tenants write.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Tenants {
    /// Objects of each way to be large.
    of_each: usize,
    /// Slices of a thousand endpoints, all of one Service.
    slices: usize,
}

/// How an object is large, in the order of [`large`].
const WAYS: [&str; 10] = [
    "source ranges",
    "external IPs",
    "ports",
    "addresses of an endpoint",
    "names of nodes and zones",
    "a slice that does not decode",
    "managed fields",
    "labels",
    "addresses of a load balancer",
    "topology keys",
];
/// Which of the tenants' objects change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Which {
    All,
    /// Those that are large in this way, counted in [`WAYS`].
    Way(usize),
}

impl Tenants {
    fn objects(self) -> Vec<Value> {
        let large = (0..self.of_each * WAYS.len()).flat_map(|n| large(n, 0));
        let slices = (0..self.slices).map(|n| {
            let endpoints = (0..1000).map(|e| {
                let address = address(10 << 24 | 1 << 23, n * 1000 + e);
                objects::endpoint(address.into(), "edge-0000")
            });
            of_tenant(objects::slice(
                &format!("crowd-{n:05}"),
                "crowd",
                8080,
                endpoints,
            ))
        });
        let crowd = (self.slices > 0).then(|| service("crowd", 90));
        large.chain(slices).chain(crowd).collect()
    }
}

fn address(first: u32, number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(first + u32::try_from(number).unwrap_or_default())
}

fn of_tenant(mut object: Value) -> Value {
    object["metadata"]["namespace"] = json!("tenant");
    object
}

fn service(name: &str, number: usize) -> Value {
    let ip = address(u32::from(Ipv4Addr::new(10, 96, 100, 0)), number);
    of_tenant(objects::service(name, ip.into(), 80))
}

/// A large object and what belongs to it. Another version has other contents, and other names wherever it has many.
fn large(number: usize, version: usize) -> Vec<Value> {
    let name = format!("large-{number:03}");
    let mut service = service(&name, number);
    service["metadata"]["annotations"]["version"] = json!(version.to_string());
    let many = |first: [u8; 4], count: usize| -> Vec<Ipv4Addr> {
        let first = u32::from(Ipv4Addr::from(first));
        (0..count)
            .map(|n| address(first, n * 2 + version))
            .collect()
    };
    let slice = |count: usize| {
        let endpoints = many([10, 200, 0, 0], count);
        let endpoints = endpoints
            .into_iter()
            .map(|ip| objects::endpoint(ip.into(), "edge-0000"));
        let mut slice = of_tenant(objects::slice(&format!("{name}-x"), &name, 8080, endpoints));
        slice["metadata"]["annotations"]["version"] = json!(version.to_string());
        slice
    };
    match number % WAYS.len() {
        0 => {
            service["spec"]["type"] = json!("LoadBalancer");
            service["status"]["loadBalancer"] = json!({"ingress": [{"ip": "198.51.100.1"}]});
            let ranges = many([11, 0, 0, 0], 60_000);
            let ranges = ranges.iter().map(|ip| json!(format!("{ip}/32")));
            service["spec"]["loadBalancerSourceRanges"] = ranges.collect();
            vec![service, slice(10)]
        }
        1 => {
            service["spec"]["externalIPs"] = json!(many([12, 0, 0, 0], 60_000));
            vec![service, slice(10)]
        }
        2 => {
            let port = |n: usize| format!("port-{version}-{n}");
            let ports = (0..10_000).map(
                |n| json!({"name": port(n), "protocol": "TCP", "port": n + 1, "targetPort": 8080}),
            );
            service["spec"]["ports"] = ports.collect();
            let mut slice = slice(10);
            let ports = (0..10_000)
                .map(|n| json!({"name": port(n), "protocol": "TCP", "port": n % 60_000 + 1}));
            slice["ports"] = ports.collect();
            vec![service, slice]
        }
        // Of a hundred addresses of an endpoint only one counts.
        3 => {
            let mut slice = slice(1000);
            if let Some(endpoints) = slice["endpoints"].as_array_mut() {
                for endpoint in endpoints {
                    let first = endpoint["addresses"][0].clone();
                    let more = many([10, 220, 0, 0], 90).into_iter().map(|ip| json!(ip));
                    endpoint["addresses"] = std::iter::once(first).chain(more).collect();
                }
            }
            vec![service, slice]
        }
        // Each endpoint is on a node of its own, with a long name.
        4 => {
            let mut slice = slice(1000);
            if let Some(endpoints) = slice["endpoints"].as_array_mut() {
                for (n, endpoint) in endpoints.iter_mut().enumerate() {
                    endpoint["nodeName"] =
                        json!(format!("{name}-{version:04}-{n:04}-{}", "n".repeat(225)));
                    let zones = (0..8).map(
                        |z| json!({"name": format!("{version:04}-{n:04}-{z}-{}", "z".repeat(50))}),
                    );
                    endpoint["hints"]["forZones"] = zones.collect();
                }
            }
            vec![service, slice]
        }
        // It does not decode, which shows only at its end.
        5 => {
            let mut slice = slice(10_000);
            slice["endpoints"][9999]["conditions"]["ready"] = json!("maybe");
            vec![service, slice]
        }
        6 => {
            service["metadata"]["managedFields"] = json!([{"manager": "m".repeat(1 << 20)}]);
            vec![service, slice(10)]
        }
        7 => {
            let labels =
                (0..40_000).map(|n| (format!("label-{version}-{n}"), json!("x".repeat(10))));
            service["metadata"]["labels"] = Value::Object(labels.collect());
            vec![service, slice(10)]
        }
        8 => {
            service["spec"]["type"] = json!("LoadBalancer");
            let ingress = many([13, 0, 0, 0], 40_000);
            let ingress = ingress.iter().map(|ip| json!({"ip": ip}));
            service["status"]["loadBalancer"]["ingress"] = ingress.collect();
            vec![service, slice(10)]
        }
        _ => {
            let keys = "openyurt.io/nodepool,".repeat(12_000);
            service["metadata"]["annotations"]["openyurt.io/topologyKeys"] = json!(keys);
            vec![service, slice(10)]
        }
    }
}

/// Changes tenants' objects one after the other, on a thread of its own.
pub(super) struct Upset {
    orders: mpsc::Sender<(u32, Which)>,
    done: Arc<AtomicU32>,
}

impl Upset {
    /// Puts the tenants' objects, and changes nothing yet.
    pub(super) fn start(tenants: Tenants, api: Arc<FakeApiserver>) -> Result<Self> {
        api.put_all(tenants.objects())?;
        let (orders, ordered) = mpsc::channel();
        let done: Arc<AtomicU32> = Arc::default();
        let changed = Arc::clone(&done);
        thread::spawn(move || {
            let objects = tenants.of_each * WAYS.len();
            let (mut per_second, mut which) = (0, Which::All);
            let (mut turn, mut due) = (0, Instant::now());
            loop {
                let order = match per_second {
                    0 => ordered
                        .recv()
                        .map_err(|_gone| RecvTimeoutError::Disconnected),
                    _ => ordered.recv_timeout(due.saturating_duration_since(Instant::now())),
                };
                match order {
                    Ok(order) => {
                        (per_second, which) = order;
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {}
                }
                due = Instant::now() + Duration::from_secs(1) / per_second;
                let number = match which {
                    Which::All => turn * 7 % objects,
                    Which::Way(way) => turn % tenants.of_each * WAYS.len() + way,
                };
                let others = match which {
                    Which::All => objects,
                    Which::Way(_) => tenants.of_each,
                };
                if api.put_all(large(number, 1 + turn / others)).is_err() {
                    return;
                }
                changed.fetch_add(1, Ordering::Relaxed);
                turn += 1;
            }
        });
        Ok(Self { orders, done })
    }

    /// Changes this many of these a second from now on; returns how many were changed before.
    pub(super) fn set(&mut self, per_second: u32, which: Which) -> Result<u64> {
        self.orders.send((per_second, which))?;
        Ok(u64::from(self.done.swap(0, Ordering::Relaxed)))
    }
}

/// Milliseconds of the agent's processor time for each change of an object that is large in this way.
fn cost(setting: &mut Setting, way: usize, count: u32) -> Result<f64> {
    let seconds = u64::from(count.div_ceil(PER_SECOND));
    let _before: u64 = setting
        .server
        .call(&Order::Upset(PER_SECOND, Which::Way(way)))?;
    // The first changes also give back what another kind of objects needed.
    thread::sleep(Duration::from_secs(1));
    let used = setting.node.agent_cpu_time()?;
    let _warm: u64 = setting
        .server
        .call(&Order::Upset(PER_SECOND, Which::Way(way)))?;
    thread::sleep(Duration::from_secs(seconds));
    let done: u64 = setting.server.call(&Order::Upset(0, Which::All))?;
    thread::sleep(Duration::from_secs(1));
    let used = setting.node.agent_cpu_time()?.saturating_sub(used);
    Ok(used.as_secs_f64() * 1e3 / f64::from(u32::try_from(done)?.max(1)))
}

/// Makes tenants change objects as fast as they can, this many or a few more; returns how many.
fn rewrite(setting: &mut Setting, count: usize) -> Result<u64> {
    let wanted = u64::try_from(count)?;
    let (start, mut done) = (Instant::now(), 0);
    while done < wanted {
        ensure!(
            start.elapsed() < PATIENCE * 10,
            "{done} of {wanted} changes"
        );
        done += setting
            .server
            .call::<u64>(&Order::Upset(1_000_000, Which::All))?;
        thread::sleep(PAUSE);
    }
    done += setting.server.call::<u64>(&Order::Upset(0, Which::All))?;
    Ok(done)
}

/// Milliseconds from changes of the watched Service to its publish word.
struct Changes {
    /// From their begin at the apiserver.
    whole: Vec<f64>,
    /// What the apiserver itself needed, which also writes the tenants' objects, one after the other.
    at_apiserver: Vec<f64>,
}

fn changes(
    setting: &mut Setting,
    words: &PublishWords,
    at: usize,
    count: usize,
) -> Result<Changes> {
    let (mut whole, mut at_apiserver) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let milliseconds = |nanoseconds| Duration::from_nanos(nanoseconds).as_secs_f64() * 1e3;
    for _ in 0..count {
        let before = words.at(at);
        setting.server.tell(&Order::Begin(WATCHED))?;
        let start = Instant::now();
        while words.at(at) == before {
            ensure!(start.elapsed() < PATIENCE, "nothing was published");
            thread::sleep(Duration::from_micros(50));
        }
        let seen = monotonic()?;
        let begun: u64 = setting.server.reply()?;
        whole.push(milliseconds(seen.saturating_sub(begun)));
        at_apiserver.push(milliseconds(setting.server.call(&Order::Took)?));
        thread::sleep(PAUSE);
    }
    Ok(Changes {
        whole,
        at_apiserver,
    })
}

/// The service index of the watched Service: the one whose word changes each time. Others may change meanwhile, for the
/// self-test.
fn index_of_watched(setting: &mut Setting, words: &PublishWords) -> Result<usize> {
    let mut found: Option<Vec<usize>> = None;
    for _ in 0..3 {
        let before: Vec<u64> = words.read().collect();
        let _begun: u64 = setting.server.call(&Order::Begin(WATCHED))?;
        thread::sleep(Duration::from_secs(1));
        let now = words.read().zip(&before).enumerate();
        let changed = now.filter(|(_, (now, was))| now != *was);
        let changed: Vec<usize> = changed.map(|(at, _)| at).collect();
        found = Some(match found {
            Some(found) => found
                .into_iter()
                .filter(|at| changed.contains(at))
                .collect(),
            None => changed,
        });
    }
    let found = found.unwrap_or_default();
    ensure!(found.len() == 1, "these words change: {found:?}");
    Ok(found[0])
}

/// Milliseconds of something that is repeated until it is stopped.
fn again_and_again(stop: &AtomicBool, act: impl Fn() -> Result<()>) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        act()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        thread::sleep(PAUSE);
    }
    Ok(times)
}

fn status(node: &Node) -> Result<()> {
    let output = node.yurt_net(&["status", "-o", "json"])?;
    ensure!(output.status.success(), "status failed");
    Ok(())
}

fn healthz(node: &Node) -> Result<()> {
    node.netns().run(|| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT));
        let mut stream = TcpStream::connect(address).context("connect to /healthz")?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(())
    })?
}

/// Runs the measure on nodes of its own.
pub fn measure(lab: &crate::lab::Lab, options: &Options) -> Result<Measure> {
    let count = if options.quick { 20 } else { 300 };
    let mut claims = Vec::new();
    let mut samples = Vec::new();
    let settings = [
        ("tenants", "100 objects of 1.5 MB", 10, 0),
        ("crowd", "1000 slices of 1000", 0, 1000),
    ];
    for (name, what, of_each, slices) in settings {
        let slices = if options.quick { slices / 10 } else { slices };
        let mut cluster = Cluster::open(OTHERS);
        cluster.tenants = Some(Tenants { of_each, slices });
        let mut setting = Setting::new(lab, name, cluster)?;
        let (agent, started) = setting.start()?;
        let process = steady(agent.pid())?;
        let words = PublishWords::open(
            &setting.node.table_pins(),
            tables::CAPACITY.services as usize,
        )?;
        let at = index_of_watched(&mut setting, &words)?;
        thread::sleep(Duration::from_secs(3));
        let calm = changes(&mut setting, &words, at, count)?;
        let mut add = |of: &str, times: Vec<f64>, most: Option<f64>| {
            let Summary { p99, .. } = Summary::of(&times);
            let claim = Claim::new(format!("{of}, p99, {what}"), "ms", vec![p99]);
            claims.push(match most {
                Some(most) => claim.at_most(most),
                None => claim,
            });
        };
        add("another Service's change, at rest", calm.whole, Some(100.0));
        if of_each > 0 {
            let _before: u64 = setting.server.call(&Order::Upset(PER_SECOND, Which::All))?;
            let stop = AtomicBool::new(false);
            let node = setting.node.clone();
            let started = Instant::now();
            let (upset, statuses, health) = thread::scope(|scope| {
                let statuses = scope.spawn(|| again_and_again(&stop, || status(&node)));
                let health = scope.spawn(|| again_and_again(&stop, || healthz(&node)));
                let upset = changes(&mut setting, &words, at, count);
                stop.store(true, Ordering::Relaxed);
                let joined = |times: thread::ScopedJoinHandle<'_, Result<Vec<f64>>>| {
                    times
                        .join()
                        .map_err(|_panic| anyhow::anyhow!("a thread panicked"))?
                };
                anyhow::Ok((upset?, joined(statuses)?, joined(health)?))
            })?;
            let took = started.elapsed();
            let done: u64 = setting.server.call(&Order::Upset(0, Which::All))?;
            samples.clone_from(&upset.whole);
            add("  while they change", upset.whole, Some(100.0));
            add("  of which at the apiserver", upset.at_apiserver, None);
            add("  status meanwhile", statuses, Some(100.0));
            add("  /healthz meanwhile", health, Some(100.0));
            let rate = f64::from(u32::try_from(done)?) / took.as_secs_f64();
            claims.push(Claim::new(
                "  their changes, each up to 1.5 MB",
                "/s",
                vec![rate],
            ));
            // All at once, and the watched Service's behind them.
            let _before: u64 = setting.server.call(&Order::Upset(1_000_000, Which::All))?;
            thread::sleep(Duration::from_secs(3));
            let burst = changes(&mut setting, &words, at, count / 10)?;
            let done: u64 = setting.server.call(&Order::Upset(0, Which::All))?;
            let Summary { p50, p99, .. } = Summary::of(&burst.whole);
            claims.push(Claim::new(
                "  without a pause between them, p50",
                "ms",
                vec![p50],
            ));
            claims.push(Claim::new("  the same, p99", "ms", vec![p99]));
            claims.push(Claim::new(
                "  the same, changes",
                "",
                vec![f64::from(u32::try_from(done)?)],
            ));
        }
        if of_each > 0 {
            for (way, what) in WAYS.iter().enumerate() {
                let cost = cost(&mut setting, way, if options.quick { 10 } else { 50 })?;
                claims.push(Claim::new(
                    format!("  the agent's processor time for a change of {what}"),
                    "ms",
                    vec![cost],
                ));
            }
            let rewrites = if options.quick { 1 } else { REWRITES };
            let rewritten = rewrite(&mut setting, of_each * WAYS.len() * rewrites)?;
            let rewritten = f64::from(u32::try_from(rewritten)?);
            claims.push(Claim::new(
                "  then objects written anew, with other names",
                "",
                vec![rewritten],
            ));
        }
        let after = steady(agent.pid())?;
        claims.push(Claim::new(
            format!("start to programmed, {what}"),
            "ms",
            vec![started],
        ));
        claims.push(
            Claim::new(format!("resident, {what}"), "MB", vec![process.resident]).at_most(64.0),
        );
        claims.push(Claim::new(
            "  of which its own pages",
            "MB",
            vec![process.anonymous],
        ));
        claims.push(Claim::new("  after the changes", "MB", vec![after.resident]).at_most(64.0));
        claims.push(Claim::new("  peak", "MB", vec![after.peak]));
        agent.kill9()?;
    }
    Ok(Measure {
        name: NAME,
        title: "Beside tenants who write as much as an apiserver takes",
        method: "A real agent and a scripted apiserver; 100 Services of ten endpoints each and what tenants have. From the \
                 begin of a change of one of the 100 at the apiserver to its publish word, what the server needs \
                 included; status is a process, /healthz a connection. MB = 10^6 bytes.",
        unit: "ms",
        series: vec![Series::new(
            "another Service's change while they change",
            &samples,
        )],
        claims,
    })
}
