//! Two pools of two nodes, one Service, real agents and real sockets: who answers whom, before and after a node moves,
//! a pool empties, every agent is killed, and all nodes reboot without the cloud. Meanwhile Pods keep their addresses.
//!
//! Run by `cargo xtask demo`, as root. Exits with 1 when an answer came from another pool, a connect
//! failed, or anything was left behind.
#![expect(clippy::print_stdout, reason = "its output is what the demo is for")]

mod offline;
mod retention;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::env;
use std::io;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::anyhow;
use yurt_net_tests::lab;
use yurt_net_tests::lab::Agent;
use yurt_net_tests::lab::Inventory;
use yurt_net_tests::lab::Lab;
use yurt_net_tests::lab::Manifests;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Tally;
use yurt_net_tests::lab::Traffic;
use yurt_net_tests::matrix::Expected;
use yurt_net_tests::matrix::Matrix;

const NODES: [(&str, &str); 4] = [
    ("edge-a1", HANGZHOU),
    ("edge-a2", HANGZHOU),
    ("edge-b1", BEIJING),
    ("edge-b2", BEIJING),
];
const HANGZHOU: &str = "hangzhou";
const BEIJING: &str = "beijing";
const MOVING: &str = "edge-a2";
const CLUSTER_IP: &str = "10.96.0.10";
const VIP: &str = "10.96.0.10:80";
const CONNECTS: u32 = 500;
/// Enough connects to see every backend of a pool, except about once in some hundred runs; then it tries again.
const SAMPLE: u32 = 40;
const EFFECTIVE_WITHIN: Duration = Duration::from_secs(5);
const DEAD_FOR: Duration = Duration::from_secs(2);
const TRAFFIC_THREADS: u32 = 2;
const TRAFFIC_PAUSE: Duration = Duration::from_millis(2);

fn main() -> ExitCode {
    let start = Instant::now();
    let result = run();
    if lab::interrupted() {
        // The signal thread removes the lab and then ends the process.
        loop {
            thread::park();
        }
    }
    match result {
        Ok(Outcome { connects, faults }) if faults.is_empty() => {
            println!(
                "\nPASS: {} connects, 0 foreign, 0 failed, nothing left behind ({})",
                grouped(connects),
                seconds(start)
            );
            ExitCode::SUCCESS
        }
        Ok(Outcome { faults, .. }) => {
            println!("\nFAIL:");
            for fault in faults {
                println!("  {fault}");
            }
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("\ndemo: {e:#}");
            ExitCode::FAILURE
        }
    }
}

struct Outcome {
    connects: u64,
    faults: Vec<String>,
}

fn run() -> Result<Outcome> {
    lab::tear_down_on_signals()?;
    let mut demo = Demo::new()?;
    let result = demo.all_scenes();
    let inventory = demo.lab.inventory();
    let (connects, colour) = (demo.connects, demo.colour);
    let mut faults = std::mem::take(&mut demo.faults);
    let start = Instant::now();
    // The lab is dropped first, then the handles that keep its namespaces open.
    drop(demo);
    result?;
    heading(colour, "Nothing is left behind");
    faults.extend(look_for_leftovers(&inventory, start)?);
    Ok(Outcome { connects, faults })
}

fn look_for_leftovers(inventory: &Inventory, start: Instant) -> Result<Vec<String>> {
    let found = inventory.leftovers()?;
    println!(
        "  {} {} processes and {} namespaces gone, no cgroup, mount or directory left  {}",
        mark(found.is_empty()),
        inventory.processes(),
        inventory.namespaces(),
        seconds(start)
    );
    Ok(found
        .iter()
        .map(|it| format!("left behind: {it}"))
        .collect())
}

struct Demo {
    lab: Lab,
    nodes: BTreeMap<String, Node>,
    /// The pool of each node, by the manifests.
    pools: BTreeMap<String, &'static str>,
    clients: BTreeMap<String, Pod>,
    backends: Vec<Pod>,
    agents: BTreeMap<String, Agent>,
    manifests: Manifests,
    connects: u64,
    faults: Vec<String>,
    colour: bool,
}

impl Demo {
    fn new() -> Result<Self> {
        let colour = io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none();
        let start = Instant::now();
        let mut demo = Self {
            lab: Lab::new()?,
            nodes: BTreeMap::new(),
            pools: BTreeMap::new(),
            clients: BTreeMap::new(),
            backends: Vec::new(),
            agents: BTreeMap::new(),
            manifests: Manifests::new(),
            connects: 0,
            faults: Vec::new(),
            colour,
        };
        for (name, pool) in NODES {
            let node = demo.lab.node(name)?;
            let short = name.trim_start_matches("edge-");
            for n in 1..=2 {
                let backend = node.pod(&format!("{short}-{n}"))?.serve_tcp(8080)?;
                demo.backends.push(backend);
            }
            demo.clients.insert(name.to_owned(), node.pod("client")?);
            demo.manifests.node(&node).pool(pool);
            demo.pools.insert(name.to_owned(), pool);
            demo.nodes.insert(name.to_owned(), node);
        }
        demo.manifests
            .service("web")
            .cluster_ip(CLUSTER_IP)
            .topology_keys("openyurt.io/nodepool")
            .port(80, 8080)
            .endpoints(&demo.backends);
        println!("Service web, {VIP}, openyurt.io/topologyKeys: openyurt.io/nodepool");
        println!(
            "  {} 4 nodes and 12 Pods in namespaces  {}",
            mark(true),
            seconds(start)
        );
        Ok(demo)
    }

    fn all_scenes(&mut self) -> Result<()> {
        self.scene_pools_are_closed()?;
        self.scene_a_node_moves()?;
        self.scene_a_pool_is_empty()?;
        self.scene_every_agent_is_killed()?;
        self.scene_an_agent_comes_back_to_changed_manifests()?;
        self.scene_the_nodes_reboot_without_the_cloud()?;
        self.scene_pods_keep_their_addresses()
    }

    fn scene_pools_are_closed(&mut self) -> Result<()> {
        self.heading("Every client is answered by its own pool");
        let start = Instant::now();
        self.lab.apply(&self.manifests)?;
        let names: Vec<_> = self.nodes.keys().cloned().collect();
        self.start_agents(&names)?;
        println!(
            "  {} an agent on every node is ready  {}",
            mark(true),
            seconds(start)
        );
        let expected = |_: &str| Expected::Answers;
        self.wait_until_effective("every client meets the backends of its pool", &expected)?;
        self.connect_and_judge(&expected)
    }

    fn scene_a_node_moves(&mut self) -> Result<()> {
        self.heading(&format!("{MOVING} moves from {HANGZHOU} to {BEIJING}"));
        self.move_node(BEIJING)?;
        self.lab.apply(&self.manifests)?;
        let expected = |_: &str| Expected::Answers;
        self.wait_until_effective("effective on all nodes", &expected)?;
        self.connect_and_judge(&expected)
    }

    fn scene_a_pool_is_empty(&mut self) -> Result<()> {
        self.heading(&format!("{BEIJING} loses its last backend"));
        let all = self.manifests.clone();
        let left: Vec<_> = self
            .backends
            .iter()
            .filter(|pod| self.pools.get(pod.node()) != Some(&BEIJING))
            .cloned()
            .collect();
        self.manifests.service("web").endpoints(&left);
        self.lab.apply(&self.manifests)?;
        let pools = self.pools.clone();
        let expected = move |node: &str| match pools.get(node) {
            Some(&BEIJING) => Expected::Refusals,
            _ => Expected::Answers,
        };
        self.wait_until_effective("effective on all nodes", &expected)?;
        self.connect_and_judge(&expected)?;
        self.manifests = all;
        self.lab.apply(&self.manifests)?;
        self.wait_until_effective("its backends are back", &|_: &str| Expected::Answers)
    }

    fn scene_every_agent_is_killed(&mut self) -> Result<()> {
        self.heading("Every agent is killed (SIGKILL) while all clients connect without pause");
        let held: Vec<_> = self
            .clients
            .values()
            .map(|client| client.hold(Tcp, VIP))
            .collect::<Result<_>>()?;
        let start = Instant::now();
        let traffic = self.start_traffic()?;
        thread::sleep(Duration::from_millis(200));
        for (name, agent) in &self.agents {
            if !agent.is_running() {
                self.faults
                    .push(format!("the agent of {name} had ended by itself"));
            }
            agent.kill9()?;
        }
        self.agents.clear();
        thread::sleep(DEAD_FOR);
        self.judge_tallies(stop(traffic)?, &|_: &str| Expected::Answers, start);
        let alive = held
            .iter()
            .map(|connection| Ok(u64::from(connection.ping()?.failure.is_none())))
            .sum::<Result<u64>>()?;
        let is_fine = alive == 4;
        println!(
            "  {} {alive} of 4 long-lived connections still answer",
            mark(is_fine)
        );
        if !is_fine {
            let gone = 4 - alive;
            self.faults.push(format!(
                "{gone} long-lived connections broke when the agents died"
            ));
        }
        Ok(())
    }

    fn scene_an_agent_comes_back_to_changed_manifests(&mut self) -> Result<()> {
        self.heading(&format!(
            "While the agents are dead {MOVING} moves back; its agent is started"
        ));
        let traffic = self.start_traffic()?;
        let before = self.pools.clone();
        self.move_node(HANGZHOU)?;
        self.lab.apply(&self.manifests)?;
        let start = Instant::now();
        self.start_agents(&[MOVING.to_owned()])?;
        println!("  {} ready  {}", mark(true), seconds(start));
        let answers = |_: &str| Expected::Answers;
        let moving = [MOVING.to_owned()];
        let what = format!("{MOVING} is back in {HANGZHOU}");
        self.wait_for(&what, &moving, &answers)?;
        // Its neighbours have no agent: they follow the table in their kernel.
        let after = std::mem::replace(&mut self.pools, before);
        let neighbours: Vec<_> = self
            .nodes
            .keys()
            .filter(|n| *n != MOVING)
            .cloned()
            .collect();
        let what = "its neighbours, without an agent, go on by their last table";
        self.wait_for(what, &neighbours, &answers)?;
        self.pools = after;
        let start = Instant::now();
        self.start_agents(&neighbours)?;
        println!(
            "  {} the other agents are ready too  {}",
            mark(true),
            seconds(start)
        );
        self.wait_until_effective("effective on all nodes", &answers)?;
        self.judge_failures(stop(traffic)?, "agents were started");
        self.connect_and_judge(&|_: &str| Expected::Answers)
    }

    /// For traffic during which the answering backends change: no connect may fail all the same.
    fn judge_failures(&mut self, tallies: BTreeMap<String, Tally>, meanwhile: &str) {
        let mut total = Tally::default();
        tallies.into_values().for_each(|tally| total.merge(tally));
        self.connects += total.connects();
        println!(
            "  {} {} connects while {meanwhile}: {} failed",
            mark(total.failed() == 0),
            grouped(total.connects()),
            total.failed()
        );
        for (errno, count) in total.errors {
            let fault = format!("{count} times {errno} while {meanwhile}");
            self.faults.push(fault);
        }
    }

    fn move_node(&mut self, pool: &'static str) -> Result<()> {
        let node = self.nodes.get(MOVING).context("no such node")?;
        self.manifests.node(node).pool(pool);
        self.pools.insert(MOVING.to_owned(), pool);
        Ok(())
    }

    fn start_agents(&mut self, names: &[String]) -> Result<()> {
        for name in names {
            let node = self.nodes.get(name).context("no such node")?;
            self.agents.insert(name.clone(), node.start_agent(&[])?);
        }
        in_parallel(names, |name| {
            self.nodes.get(name).context("no such node")?.wait_ready()
        })?;
        Ok(())
    }

    fn start_traffic(&self) -> Result<BTreeMap<String, Traffic>> {
        self.clients
            .iter()
            .map(|(name, client)| {
                let traffic = client.start_traffic(Tcp, VIP, TRAFFIC_THREADS, TRAFFIC_PAUSE)?;
                Ok((name.clone(), traffic))
            })
            .collect()
    }

    /// Waits until every client meets all backends of its pool and no other, or is refused. If that does not happen, it
    /// is a fault, and the table that follows shows it.
    fn wait_until_effective(
        &mut self,
        what: &str,
        expected: &(impl Fn(&str) -> Expected + Sync),
    ) -> Result<()> {
        let names: Vec<_> = self.clients.keys().cloned().collect();
        self.wait_for(what, &names, expected)
    }

    fn wait_for(
        &mut self,
        what: &str,
        names: &[String],
        expected: &(impl Fn(&str) -> Expected + Sync),
    ) -> Result<()> {
        let start = Instant::now();
        let demo = &*self;
        let faults: Vec<_> = in_parallel(names, |name| {
            let own: BTreeSet<_> = match expected(name) {
                Expected::Answers => demo.backends_of(demo.pool_of(name)).into_iter().collect(),
                Expected::Refusals => BTreeSet::new(),
            };
            loop {
                let tally = demo.client(name)?.connect_many(Tcp, VIP, SAMPLE)?;
                let answers: BTreeSet<_> = tally.answers.keys().cloned().collect();
                let refused = tally.error("ECONNREFUSED") == u64::from(SAMPLE);
                if answers == own && (tally.failed() == 0 || refused) {
                    return Ok(None);
                }
                if start.elapsed() > EFFECTIVE_WITHIN {
                    return Ok(Some(format!(
                        "{what} on {name}: not within {EFFECTIVE_WITHIN:?}, {SAMPLE} connects gave \
                         answers {:?} and errors {:?}",
                        tally.answers, tally.errors
                    )));
                }
            }
        })?
        .into_iter()
        .flatten()
        .collect();
        println!("  {} {what}  {}", mark(faults.is_empty()), seconds(start));
        self.faults.extend(faults);
        Ok(())
    }

    fn connect_and_judge(&mut self, expected: &impl Fn(&str) -> Expected) -> Result<()> {
        let start = Instant::now();
        let names: Vec<_> = self.clients.keys().cloned().collect();
        let tallies = in_parallel(&names, |name| {
            self.client(name)?.connect_many(Tcp, VIP, CONNECTS)
        })?;
        self.judge_tallies(names.into_iter().zip(tallies).collect(), expected, start);
        Ok(())
    }

    fn judge_tallies(
        &mut self,
        tallies: BTreeMap<String, Tally>,
        expected: &impl Fn(&str) -> Expected,
        start: Instant,
    ) {
        let pools = [HANGZHOU, BEIJING].map(|pool| (pool.to_owned(), self.backends_of(pool)));
        let mut matrix = Matrix::new(pools.into());
        for (name, tally) in tallies {
            let pool = self.pool_of(&name);
            matrix.row(&name, pool, expected(&name), tally);
        }
        print!("{}", matrix.render(self.colour));
        let refused = match matrix.refused() {
            0 => String::new(),
            n => format!(", {} refused with ECONNREFUSED", grouped(n)),
        };
        println!(
            "  {} {} connects{refused}: {} foreign, {} failed  {}",
            mark(matrix.faults().is_empty()),
            grouped(matrix.connects()),
            matrix.foreign(),
            matrix.failed(),
            seconds(start)
        );
        self.connects += matrix.connects();
        self.faults.extend(matrix.faults());
    }

    fn pool_of(&self, node: &str) -> &'static str {
        self.pools.get(node).copied().unwrap_or_default()
    }

    fn backends_of(&self, pool: &str) -> Vec<String> {
        self.backends
            .iter()
            .filter(|pod| self.pool_of(pod.node()) == pool)
            .map(|pod| pod.name().to_owned())
            .collect()
    }

    fn client(&self, node: &str) -> Result<&Pod> {
        self.clients.get(node).context("no such client")
    }

    fn heading(&self, text: &str) {
        heading(self.colour, text);
    }
}

fn stop(traffic: BTreeMap<String, Traffic>) -> Result<BTreeMap<String, Tally>> {
    traffic
        .into_iter()
        .map(|(name, traffic)| Ok((name, traffic.stop()?)))
        .collect()
}

/// Runs `f` for every name at once and returns the results in the names' order.
fn in_parallel<T: Send>(names: &[String], f: impl Fn(&str) -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let threads: Vec<_> = names.iter().map(|name| scope.spawn(|| f(name))).collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_panic| anyhow!("a thread panicked"))?
            })
            .collect()
    })
}

fn heading(colour: bool, text: &str) {
    if colour {
        println!("\n\x1b[1m{text}\x1b[0m");
    } else {
        println!("\n{text}");
    }
}

fn mark(is_fine: bool) -> &'static str {
    if is_fine { "✓" } else { "✗" }
}

fn seconds(start: Instant) -> String {
    let took = start.elapsed();
    if took < Duration::from_secs(1) {
        format!("{} ms", took.as_millis())
    } else {
        format!("{:.1} s", took.as_secs_f32())
    }
}

/// Writes 12345 as 12,345.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
