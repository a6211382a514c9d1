//! Nodes with agents, one set of manifests, and a way to know that a change of them is in force.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Output;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use serde_json::Value;
use yurt_net_tests::lab::Agent;
use yurt_net_tests::lab::Lab;
use yurt_net_tests::lab::Manifests;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;
use yurt_net_tests::lab::Tally;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Sooner than any packet is given up.
const AT_ONCE: Duration = Duration::from_millis(500);
/// A Service whose annotation nobody knows: its rejection in the status tells which manifests are in force.
const MARKER: &str = "zz-marker";
const MARKER_IP: &str = "10.96.255.254";

/// A lab, the manifests of its cluster, and who has an agent.
pub(crate) struct World {
    // Dropped in this order: no handle outlives what it is a handle to.
    pub(crate) nodes: Vec<Node>,
    pub(crate) manifests: Manifests,
    with_agent: BTreeSet<String>,
    generation: u32,
    /// A Pod goes with its last handle.
    backends: RefCell<Vec<Pod>>,
    pub(crate) lab: Lab,
}

impl World {
    /// Nodes and their pools; "" for none.
    pub(crate) fn new(nodes: &[(&str, &str)]) -> Result<Self> {
        let mut world = Self {
            nodes: Vec::new(),
            manifests: Manifests::new(),
            with_agent: BTreeSet::new(),
            generation: 0,
            backends: RefCell::default(),
            lab: Lab::new()?,
        };
        for (name, pool) in nodes {
            let node = world.lab.node(name)?;
            let object = world.manifests.node(&node);
            if !pool.is_empty() {
                object.pool(pool);
            }
            world.nodes.push(node);
        }
        Ok(world)
    }

    /// One node, in pool hangzhou.
    pub(crate) fn single() -> Result<Self> {
        Self::new(&[("edge-1", "hangzhou")])
    }

    /// Node number `index`.
    pub(crate) fn node(&self, index: usize) -> Result<&Node> {
        self.nodes.get(index).context("no such node")
    }

    /// A Pod on a node that answers TCP and UDP on port 8080.
    pub(crate) fn backend(&self, node: usize, name: &str) -> Result<Pod> {
        let pod = self.node(node)?.pod(name)?;
        pod.serve_tcp(8080)?.serve_udp(8080)?;
        self.backends.borrow_mut().push(pod.clone());
        Ok(pod)
    }

    /// Several of them.
    pub(crate) fn backends<const N: usize>(
        &self,
        node: usize,
        names: [&str; N],
    ) -> Result<[Pod; N]> {
        let pods: Vec<Pod> = names
            .iter()
            .map(|name| self.backend(node, name))
            .collect::<Result<_>>()?;
        pods.try_into()
            .ok()
            .context("as many Pods as there are names")
    }

    /// Writes the manifests, starts an agent on a node, and waits until it is ready.
    pub(crate) fn start(&mut self, node: usize, flags: &[&str]) -> Result<Agent> {
        self.write()?;
        let name = self.node(node)?.name().to_owned();
        let agent = self.node(node)?.start_agent(flags)?;
        self.node(node)?.wait_ready()?;
        self.with_agent.insert(name);
        Ok(agent)
    }

    /// Kills an agent and starts another one with the manifests as they are now, and waits until it is ready.
    pub(crate) fn restart(&mut self, agent: &Agent, node: usize, flags: &[&str]) -> Result<Agent> {
        agent.kill9()?;
        self.start(node, flags)
    }

    /// Writes the manifests for all nodes, and waits for nothing.
    pub(crate) fn write(&mut self) -> Result<()> {
        self.generation += 1;
        let keys = format!("generation-{}", self.generation);
        self.manifests.remove_service(MARKER);
        self.manifests
            .service(MARKER)
            .cluster_ip(MARKER_IP)
            .topology_keys(&keys)
            .port(1, 1);
        self.lab.apply(&self.manifests)
    }

    /// Writes the manifests, and waits until they are in force wherever there is an agent.
    pub(crate) fn apply(&mut self) -> Result<()> {
        self.write()?;
        self.wait_effective()
    }

    /// Waits until the last manifests are in force.
    pub(crate) fn wait_effective(&self) -> Result<()> {
        let marker = format!("\"generation-{}\"", self.generation);
        for node in &self.nodes {
            if self.with_agent.contains(node.name()) {
                eventually(node, || {
                    let status = status(node)?;
                    let is_in_force = rejections(&status)
                        .iter()
                        .any(|reason| reason.contains(&marker));
                    ensure!(is_in_force, "{marker} is not in force: {status}");
                    Ok(())
                })?;
            }
        }
        Ok(())
    }
}

/// Tries again and again until it works; what it says last is the error, with the agent's log.
pub(crate) fn eventually<T>(node: &Node, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(e) if start.elapsed() > PATIENCE => {
                return Err(e).with_context(|| format!("log:\n{}", node.agent_log()));
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// What the agent of a node says of itself.
pub(crate) fn status(node: &Node) -> Result<Value> {
    json(&node.yurt_net(&["status", "-o", "json"])?)
}

/// The reasons of the rejections in a status.
pub(crate) fn rejections(status: &Value) -> Vec<&str> {
    let list = status["rejections"].as_array();
    list.into_iter()
        .flatten()
        .filter_map(|rejection| rejection["reason"].as_str())
        .collect()
}

/// The answer of the running agent to `explain`.
pub(crate) fn explain(node: &Node, from: &str, to: &str) -> Result<Value> {
    json(&node.yurt_net(&["explain", "--from", from, "--to", to, "-o", "json"])?)
}

/// The JSON that a verb has printed; it must have succeeded.
pub(crate) fn json(output: &Output) -> Result<Value> {
    ensure!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).context("parse what was printed")
}

/// All that a run of the program said.
pub(crate) fn said(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// `address:port` as IPv6 sockets write IPv4.
pub(crate) fn mapped(to: &str) -> Result<String> {
    Ok(match to.parse()? {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        SocketAddr::V6(_) => bail!("{to} is IPv6"),
    }
    .to_string())
}

/// Connects 40 times and returns who answered: all of a few, but once in some ten thousand runs.
pub(crate) fn who_answers(client: &Pod, to: &str) -> Result<BTreeSet<String>> {
    let tally = client.connect_many(Tcp, to, 40)?;
    ensure!(tally.failed() == 0, "{to}: {tally:?}");
    Ok(tally.answers.into_keys().collect())
}

/// Checks that all connects of a tally were answered.
pub(crate) fn all_answered(tally: &Tally) -> Result<()> {
    ensure!(tally.failed() == 0 && tally.answered() > 0, "{tally:?}");
    Ok(())
}

/// Checks that TCP connect, UDP connect and UDP sendmsg are refused at once, by the call itself.
pub(crate) fn is_refused(client: &Pod, to: &str) -> Result<()> {
    is_refused_by(client, Tcp, to)?;
    is_refused_by(client, Udp, to)
}

/// The same for one protocol.
pub(crate) fn is_refused_by(client: &Pod, proto: Proto, to: &str) -> Result<()> {
    fails_with(client, proto, to, "ECONNREFUSED")
}

/// The error of a call that a hook refuses: `chosen`, which it chooses, but where `YURT_LAB_REFUSAL` names another: on
/// kernels below about Linux 6.1 it cannot choose. Whoever boots such a kernel says so; the agent is not asked.
pub(crate) fn refusal(chosen: &str) -> String {
    std::env::var("YURT_LAB_REFUSAL").unwrap_or_else(|_| chosen.to_owned())
}

/// Checks that connect, and sendmsg for UDP, are refused with `errno` at once.
pub(crate) fn fails_with(client: &Pod, proto: Proto, to: &str, errno: &str) -> Result<()> {
    let errno = refusal(errno);
    let who = client.name();
    let start = Instant::now();
    loop {
        let attempt = client.attempt(proto, to)?;
        let failure = attempt.failure.as_ref().map(ToString::to_string);
        ensure!(
            failure == Some(format!("connect: {errno}")),
            "{who} {proto:?} {to}: {attempt:?}"
        );
        // What waits for a packet waits each time; what is kept waiting by a busy machine does not.
        if attempt.took < AT_ONCE {
            break;
        }
        ensure!(
            start.elapsed() < PATIENCE,
            "{who} {proto:?} {to}: {attempt:?}"
        );
    }
    if proto == Udp {
        for reply in client.datagrams(&[to, to], false)? {
            let failure = reply.failure.as_ref().map(ToString::to_string);
            ensure!(
                failure == Some(format!("send: {errno}")),
                "{who} {to}: {reply:?}"
            );
        }
    }
    Ok(())
}

/// Set of names.
pub(crate) fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}
