//! Parallel universes: the same client and server on nodes of their own, which differ in what is between the two.

use std::env;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Stdio;
use std::thread;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use super::bpf;
use super::worker::Batch;
use super::worker::Ends;
use super::worker::Task;
use crate::lab::Agent;
use crate::lab::Lab;
use crate::lab::Manifests;
use crate::lab::Node;
use crate::lab::Pod;

const SERVER_PORT: u16 = 8080;
const SERVICE_PORT: u16 = 80;
/// Last part of the server's second address.
const SECOND: u8 = 200;
/// `status --wait` gives up after ten seconds.
const READY_TRIES: usize = 12;

/// What is between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// Nothing.
    Nothing,
    /// A program that does nothing, at every hook that yurt-net uses.
    EmptyHooks,
    /// An agent with this many Services; the client dials the one in the middle by its ClusterIP.
    Services(usize),
}

/// A client and a server, and what is between them.
pub struct Universe {
    worker: Worker,
    _hooks: Vec<OwnedFd>,
    agent: Option<Agent>,
    /// Hold their network namespaces.
    _pods: [Pod; 2],
}

impl Universe {
    /// Makes the node, the Pods, what is between them, and the worker.
    pub fn new(lab: &Lab, name: &str, between: Between) -> Result<Self> {
        let node = lab.node(name)?;
        let (client, server) = (node.pod("client")?, node.pod("server")?);
        let direct = server_addresses(&server, &[SECOND])?;
        let mut dial = direct.clone();
        // A server that is not bound to one address answers from its first one.
        let mut dial_udp = direct[0];
        let mut hooks = Vec::new();
        let mut agent = None;
        match between {
            Between::Nothing => {}
            Between::EmptyHooks => hooks = bpf::attach_empty_hooks(node.cgroup())?,
            Between::Services(count) => {
                let mut manifests = Manifests::new();
                manifests.node(&node).pool("bench");
                let middle = count / 2;
                for index in 0..count {
                    let service = manifests.service(&service_name(index));
                    service.cluster_ip(&cluster_ip(index).to_string());
                    service.port(SERVICE_PORT, SERVER_PORT);
                    let elsewhere = [0, 1].map(|n| endpoint_ip(index * 2 + n));
                    let here = [*direct[0].ip(), *direct[1].ip()];
                    for ip in if index == middle { here } else { elsewhere } {
                        service.add_endpoint(ip.into(), Some(node.name()), true);
                    }
                }
                let udp = manifests.service("udp");
                udp.cluster_ip(&cluster_ip(count).to_string());
                udp.udp_port(SERVICE_PORT, SERVER_PORT);
                udp.add_endpoint((*dial_udp.ip()).into(), Some(node.name()), true);
                agent = Some(start_agent(&node, &manifests)?);
                dial_udp = SocketAddrV4::new(cluster_ip(count), SERVICE_PORT);
                dial = vec![SocketAddrV4::new(cluster_ip(middle), SERVICE_PORT)];
            }
        }
        let ends = Ends {
            server_netns: server.netns().path().into(),
            server_port: SERVER_PORT,
            direct,
            dial,
            dial_udp,
            cpu: last_cpu(),
        };
        Ok(Self {
            worker: Worker::start(&client, &Task::Batches(ends))?,
            _hooks: hooks,
            agent,
            _pods: [client, server],
        })
    }

    /// Runs a batch; returns the nanoseconds of each sample.
    pub fn run(&mut self, batch: Batch) -> Result<Vec<f64>> {
        self.worker.call(&batch)
    }
}

impl Drop for Universe {
    fn drop(&mut self) {
        // The lab would end it later, but until then it would disturb others.
        if let Some(agent) = self.agent.take() {
            let _ = agent.kill9();
        }
    }
}

/// Gives the server further addresses on its node's network; all of them, with the server's port.
pub fn server_addresses(server: &Pod, more: &[u8]) -> Result<Vec<SocketAddrV4>> {
    let mut addresses = vec![server.ip4()];
    let [a, b, c, _] = server.ip4().octets();
    for &host in more {
        let ip = Ipv4Addr::new(a, b, c, host);
        server.netns().ip(&format!("addr add {ip}/24 dev eth0\n"))?;
        addresses.push(ip);
    }
    let with_port = |ip| SocketAddrV4::new(ip, SERVER_PORT);
    Ok(addresses.into_iter().map(with_port).collect())
}

/// Starts an agent with these manifests and waits until its table is in force.
pub fn start_agent(node: &Node, manifests: &Manifests) -> Result<Agent> {
    start_agent_with(node, manifests, &[])
}

/// The same, with more flags.
pub fn start_agent_with(node: &Node, manifests: &Manifests, flags: &[&str]) -> Result<Agent> {
    node.apply(manifests)?;
    let agent = node.start_agent(flags)?;
    for _ in 1..READY_TRIES {
        if node.wait_ready().is_ok() {
            return Ok(agent);
        }
        if !agent.is_running() {
            bail!(
                "the agent of {} has ended\n{}",
                node.name(),
                node.agent_log()
            );
        }
    }
    node.wait_ready()?;
    Ok(agent)
}

/// Name of a Service; they sort by number.
pub fn service_name(index: usize) -> String {
    format!("service-{index:05}")
}

/// ClusterIP of a Service.
pub fn cluster_ip(index: usize) -> Ipv4Addr {
    address([10, 96], index)
}

/// Address of an endpoint that nobody listens on.
pub fn endpoint_ip(index: usize) -> Ipv4Addr {
    let [low, high] = [index % 60_000, index / 60_000];
    address([10, 128 + u8::try_from(high).unwrap_or(u8::MAX / 2)], low)
}

fn address([a, b]: [u8; 2], index: usize) -> Ipv4Addr {
    let part = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    Ipv4Addr::new(a, b, part(index / 250), part(index % 250 + 1))
}

/// The CPU of the workers: the agents and the bench may have the others.
pub fn last_cpu() -> usize {
    cpus() - 1
}

/// How many CPUs there are.
pub fn cpus() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// A worker process in a Pod, and the pipes to it. It ends with its stdin.
pub struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts one.
    pub fn start(pod: &Pod, task: &Task) -> Result<Self> {
        let program = program()?;
        let mut child = pod
            .command(program.to_str().context("path of this program")?)?
            .args(["worker", &serde_json::to_string(task)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a worker")?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("stdout of a worker")?;
        Ok(Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }

    /// Sends it an order, and waits for its reply.
    pub fn call<T: serde::de::DeserializeOwned>(
        &mut self,
        request: &impl serde::Serialize,
    ) -> Result<T> {
        self.tell(request)?;
        self.reply()
    }

    /// Sends it an order.
    pub fn tell(&mut self, request: &impl serde::Serialize) -> Result<()> {
        let line = serde_json::to_string(request)?;
        let stdin = self.stdin.as_mut().context("the worker was stopped")?;
        writeln!(stdin, "{line}").context("the worker has ended")
    }

    /// The next line that it prints.
    pub fn reply<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            bail!("a worker has ended early: {}", self.child.wait()?);
        }
        serde_json::from_str(&line).context("parse a worker's reply")
    }
}

impl Worker {
    /// Ends it.
    pub fn end(&mut self) {
        drop(self.stdin.take());
        // A worker that connects until it is stopped is stopped now; one that has ended ignores this.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

/// The bench's own program; it is beside this one if this code runs in a test.
fn program() -> Result<std::path::PathBuf> {
    let here = env::current_exe().context("find this program")?;
    here.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("bench"))
        .find(|path| path.is_file())
        .with_context(|| format!("no bench near {}", here.display()))
}
