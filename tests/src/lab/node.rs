//! A node of the lab.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use yurt_net::observe::status::Status;

use super::Core;
use super::Manifests;
use super::Netns;
use super::agent;
use super::agent::Agent;
use super::place::Place;
use super::pod::Pod;
use super::pod4;
use super::pod6;
use super::wire4;
use super::wire6;
use crate::apiserver::FakeApiserver;
use crate::apiserver::FakeYurtHub;
use crate::apiserver::objects;

const MANIFESTS: &str = "cluster.yaml";
const AGENT: &str = "agent";
const FIRST_POD: u8 = 10;
const PATIENCE: Duration = Duration::from_secs(60);
const STATUS_PATIENCE: Duration = Duration::from_secs(60);

/// A node: a network namespace that routes for its Pods, a cgroup subtree, a bpffs, and the
/// directories of an agent. Clones are the same node.
#[derive(Clone, Debug)]
pub struct Node(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    name: String,
    index: u8,
    place: Place,
    dir: PathBuf,
    next_pod: AtomicU8,
    host: OnceLock<Pod>,
}

impl Node {
    pub(super) fn new(core: &Arc<Core>, name: &str, index: u8, others: &[Self]) -> Result<Self> {
        // A lab may have had a node of this name: it stays until the lab goes.
        let is_taken = others.iter().any(|other| other.name() == name);
        let place = match is_taken {
            true => format!("{name}-again-{index}"),
            false => name.to_owned(),
        };
        let dir = core.remains.dir().join(&place);
        let cgroup = core.remains.cgroup().join(&place);
        core.make_cgroup(&cgroup)?;
        let node = Self(Arc::new(Parts {
            name: name.to_owned(),
            index,
            place: Place {
                core: Arc::clone(core),
                netns: core.netns(Netns::router)?,
                cgroup,
            },
            dir,
            next_pod: AtomicU8::new(FIRST_POD),
            host: OnceLock::new(),
        }));
        for dir in [node.bpffs(), node.state_dir(), node.manifests_dir()] {
            fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        }
        core.mount_bpffs(&node.bpffs())?;
        node.make_devices(others)?;
        Ok(node)
    }

    fn make_devices(&self, others: &[Self]) -> Result<()> {
        let n = self.0.index;
        // The bridge's end goes up first: otherwise the kernel lets it forward only when it next looks at changed
        // carriers, up to a second later.
        self.0.place.core.wire.ip(&format!(
            "link add node{n} type veth peer name eth0 netns {}\n\
             link set node{n} master wire0 up\n",
            self.netns().path()
        ))?;
        let mut batch = format!(
            "link set lo up\n\
             link add br0 type bridge stp_state 0 mcast_snooping 0\n\
             link set br0 up\n\
             addr add {}/24 dev br0\n\
             addr add {}/64 dev br0 nodad\n\
             link set eth0 up\n\
             addr add {}/24 dev eth0\n\
             addr add {}/64 dev eth0 nodad\n",
            pod4(n, 1),
            pod6(n, 1),
            self.ip4(),
            self.ip6(),
        );
        // Packets without a route leave by the wire, as on a real node, and are dropped there in silence.
        batch += &format!(
            "route add default via {}\nroute add default via {}\n",
            wire4(254),
            wire6(254)
        );
        for other in others {
            batch += &other.route_to_pods();
            other.0.place.netns.ip(&self.route_to_pods())?;
        }
        self.0.place.netns.ip(&batch)
    }

    /// The wire's end of this node's link.
    pub(super) fn wire_device(&self) -> String {
        format!("node{}", self.0.index)
    }

    /// The `ip` commands that route other nodes' packets to this one's Pods.
    fn route_to_pods(&self) -> String {
        format!(
            "route add {}/24 via {}\nroute add {}/64 via {}\n",
            pod4(self.0.index, 0),
            self.ip4(),
            pod6(self.0.index, 0),
            self.ip6()
        )
    }

    /// Adds a Pod: a network namespace on the node's bridge, with an IPv4 and an IPv6 address.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let host = self.0.next_pod.fetch_add(1, Ordering::Relaxed);
        self.make_pod(name, host)
            .with_context(|| format!("make Pod {name} on {}", self.name()))
    }

    fn make_pod(&self, name: &str, host: u8) -> Result<Pod> {
        let n = self.0.index;
        let (ip4, ip6) = (pod4(n, host), pod6(n, host));
        let core = &self.0.place.core;
        let netns = core.netns(Netns::host)?;
        self.0.place.netns.ip(&format!(
            "link add pod{host} type veth peer name eth0 netns {}\n\
             link set pod{host} master br0 up\n",
            netns.path()
        ))?;
        netns.ip(&format!(
            "link set lo up\n\
             link set eth0 up\n\
             addr add {ip4}/24 dev eth0\n\
             addr add {ip6}/64 dev eth0 nodad\n\
             route add default via {}\n\
             route add default via {}\n",
            pod4(n, 1),
            pod6(n, 1)
        ))?;
        let cgroup = self.0.place.cgroup.join(name);
        core.make_cgroup(&cgroup)?;
        let place = Place {
            core: Arc::clone(core),
            netns,
            cgroup,
        };
        Pod::new(name, self.name(), place, ip4, ip6)
    }

    /// A process on the node itself, like a Pod with `hostNetwork: true`.
    pub fn host(&self) -> Result<Pod> {
        if let Some(host) = self.0.host.get() {
            return Ok(host.clone());
        }
        let place = self.child_place("host")?;
        let pod = Pod::new("host", self.name(), place, self.ip4(), self.ip6())?;
        Ok(self.0.host.get_or_init(|| pod).clone())
    }

    /// A command that runs on the node itself, in a cgroup of this name below the node's, and dies with the thread that
    /// starts it.
    pub fn command(&self, cgroup: &str, program: &str) -> Result<Command> {
        self.child_place(cgroup)?.command(Path::new(program))
    }

    /// A place in the node's own network namespace, in a cgroup below the node's.
    fn child_place(&self, name: &str) -> Result<Place> {
        let place = Place {
            cgroup: self.0.place.cgroup.join(name),
            ..self.0.place.clone()
        };
        if !place.cgroup.exists() {
            place.core.make_cgroup(&place.cgroup)?;
        }
        Ok(place)
    }

    /// Replaces the node's manifests at once.
    pub fn apply(&self, manifests: &Manifests) -> Result<()> {
        manifests
            .write_to(&self.manifests_dir().join(MANIFESTS))
            .with_context(|| format!("write the manifests of {}", self.name()))
    }

    /// Starts an agent for this node, with `--node`, `--source` and the directories. Does not wait for it.
    pub fn start_agent(&self, extra: &[&str]) -> Result<Agent> {
        self.start_agent_serving(self.cgroup(), extra)
    }

    /// Like [`Self::start_agent`], for an agent that serves another cgroup than the whole node's.
    pub fn start_agent_serving(&self, cgroup: &Path, extra: &[&str]) -> Result<Agent> {
        self.start_agent_of(self.name(), &self.source(), cgroup, extra)
    }

    /// An apiserver in this node's network, which knows the node, and a YurtHub in front of it that caches what the
    /// agent asks for.
    pub fn start_cloud_and_hub(&self) -> Result<(FakeApiserver, FakeYurtHub)> {
        let cloud = self.netns().run(FakeApiserver::start)??;
        cloud.put(objects::node(self.name(), None, self.ip4().into()))?;
        let hub = self.netns().run(|| FakeYurtHub::start(&cloud))??;
        hub.cache_agent("yurt-net");
        Ok((cloud, hub))
    }

    /// Like [`Self::start_agent`], for an agent that follows another source, as a Node of that cluster.
    pub fn start_agent_from(&self, source: &str, name: &str, extra: &[&str]) -> Result<Agent> {
        self.start_agent_of(name, source, self.cgroup(), extra)
    }

    fn start_agent_of(
        &self,
        name: &str,
        source: &str,
        cgroup: &Path,
        extra: &[&str],
    ) -> Result<Agent> {
        let place = self.child_place(AGENT)?;
        let mut command = self.agent_command(&place)?;
        command.args(["run", "--node", name, "--source", source]);
        command.args(self.agent_flags(cgroup));
        command.args(extra);
        Agent::start(&place, command, self)
    }

    /// Empties the node's bpffs, as a reboot does: programs are detached, and maps are gone. The agent must have ended.
    pub fn lose_pins(&self) -> Result<()> {
        empty(&self.bpffs()).context("empty the bpffs")
    }

    /// Mounts another bpf file system over the one with the pins, as init scripts and other agents do.
    pub fn hide_pins(&self) -> Result<()> {
        self.0.place.core.mount_bpffs(&self.bpffs())
    }

    /// The agent's `status`.
    pub fn status(&self) -> Result<Status> {
        let output = self.yurt_net(&["status", "-o", "json"])?;
        if !output.status.success() {
            return Err(agent::failed(&output)).context("status");
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Waits until this holds of the agent's status. A status that cannot be had counts as not holding.
    pub fn wait_for_status(&self, what: &str, holds: impl Fn(&Status) -> bool) -> Result<Status> {
        let deadline = Instant::now() + STATUS_PATIENCE;
        loop {
            let status = self.status();
            if let Ok(status) = status
                && holds(&status)
            {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{}: not in time: {what}\n{}", self.name(), self.agent_log());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the agent has applied its first table.
    pub fn wait_ready(&self) -> Result<()> {
        let output = self.yurt_net(&["status", "--wait", "60s"])?;
        if !output.status.success() {
            return Err(agent::failed(&output))
                .with_context(|| format!("wait for the agent\n{}", self.agent_log()))
                .with_context(|| self.name().to_owned());
        }
        Ok(())
    }

    /// Runs a subcommand of the agent's program on the node, with the flags for node and directories, and returns what
    /// it printed.
    pub fn yurt_net(&self, arguments: &[&str]) -> Result<Output> {
        let place = self.child_place(AGENT)?;
        let mut command = self.agent_command(&place)?;
        command.args(arguments);
        match arguments.first() {
            Some(&"plan") => {
                command.args(["--node", self.name(), "--source"]);
                command.arg(self.source());
            }
            Some(
                &("status" | "services" | "flows" | "explain" | "check" | "monitor" | "cleanup"),
            ) => {
                command.args(self.agent_flags(self.cgroup()));
            }
            _ => {}
        }
        place.output(command, PATIENCE)
    }

    fn agent_command(&self, place: &Place) -> Result<Command> {
        place.command(&agent::program()?)
    }

    fn source(&self) -> String {
        format!("file:{}", self.manifests_dir().display())
    }

    fn agent_flags(&self, cgroup: &Path) -> Vec<String> {
        [
            ("--state-dir", self.state_dir()),
            ("--bpffs", self.bpffs()),
            ("--cgroup", cgroup.to_owned()),
            ("--run-dir", self.run_dir()),
        ]
        .into_iter()
        .flat_map(|(flag, path)| [flag.to_owned(), path.display().to_string()])
        .collect()
    }

    /// What the node's agents have logged.
    pub fn agent_log(&self) -> String {
        fs::read_to_string(self.agent_log_path()).unwrap_or_default()
    }

    pub(super) fn agent_log_path(&self) -> PathBuf {
        self.0.dir.join("agent.log")
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its IPv4 address on the wire.
    pub fn ip4(&self) -> Ipv4Addr {
        wire4(self.0.index)
    }

    /// Its IPv6 address on the wire.
    pub fn ip6(&self) -> Ipv6Addr {
        wire6(self.0.index)
    }

    /// The IPv4 network of its Pods, such as `10.244.1.0/24`.
    pub fn pod_cidr4(&self) -> String {
        format!("{}/24", pod4(self.0.index, 0))
    }

    /// The IPv6 network of its Pods.
    pub fn pod_cidr6(&self) -> String {
        format!("{}/64", pod6(self.0.index, 0))
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.0.place.netns
    }

    /// The cgroup that all its processes are below.
    pub fn cgroup(&self) -> &Path {
        &self.0.place.cgroup
    }

    /// Processor time so far of its agents and of the subcommands that were run.
    pub fn agent_cpu_time(&self) -> Result<Duration> {
        let path = self.0.place.cgroup.join(AGENT).join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let usage = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        let usage = usage.with_context(|| format!("no usage_usec in {}", path.display()))?;
        Ok(Duration::from_micros(usage.parse()?))
    }

    /// Its own BPF file system.
    pub fn bpffs(&self) -> PathBuf {
        self.0.dir.join("bpffs")
    }

    /// Where its agent pins the table maps in use.
    pub fn table_pins(&self) -> PathBuf {
        let version = yurt_ebpf::abi::TABLE_ABI;
        self.bpffs().join(format!("yurt-net/v{version}"))
    }

    /// The agent's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.0.dir.join("state")
    }

    /// The directory that a reboot empties.
    pub fn run_dir(&self) -> PathBuf {
        self.0.dir.join("run")
    }

    /// The directory that the agent's source reads.
    pub fn manifests_dir(&self) -> PathBuf {
        self.0.dir.join("manifests")
    }
}

/// Removes everything in a directory of a bpffs where pins cannot be opened to see what they are. Names with a dot are
/// the kernel's own (`bpf_lookup` in kernel/bpf/inode.c) and stay.
fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().contains(&b'.') {
            continue;
        }
        if entry.file_type()?.is_dir() {
            empty(&entry.path())?;
            fs::remove_dir(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
