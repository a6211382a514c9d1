//! What all these tests share: a node with a client and four backends, and Services between them.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use yurt_net::dataplane::Dataplane;
use yurt_net::dataplane::service::{BpfDataplane, Options, SocketLb};
use yurt_net::model::Touched;
use yurt_net::observe::status::Status;
use yurt_net::plan::{Capacity, Plan, plan};
use yurt_net::policy::{Memo, Memory, NodeView, PolicyConfig, compile};
use yurt_net::source::file::FileSource;
use yurt_net::source::preferred::Origin;
use yurt_net::table::ServiceTable;
use yurt_net_tests::lab::{Agent, Cloud, Lab, Manifests, Node, Pod, Proto, Tally};

/// Where ClusterIPs come from: an address that no Service has is refused.
pub(crate) const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:96::/64"];
/// Small, for the kernel clears new maps.
pub(crate) const CAPACITY: Capacity = Capacity {
    frontends4: 256,
    frontends6: 128,
    services: 256,
    slots4: 512,
    slots6: 256,
};
/// Other values of all the same flags.
pub(crate) const OTHER_CAPACITY: Capacity = Capacity {
    frontends4: 300,
    frontends6: 150,
    services: 300,
    slots4: 600,
    slots6: 300,
};
const PEERS: u32 = 16384;
const PATIENCE: Duration = Duration::from_secs(60);

/// One node, a client and four backends on it.
pub(crate) struct World {
    // Fields are dropped in this order: handles before the lab.
    pub(crate) client: Pod,
    pub(crate) a: Pod,
    pub(crate) b: Pod,
    pub(crate) c: Pod,
    pub(crate) d: Pod,
    pub(crate) node: Node,
    pub(crate) lab: Lab,
}

/// Address and port of a Service, both families: `vip(10)` is `10.96.0.10:80` and `[fd00:96::10]:80`.
pub(crate) fn vip(number: u8) -> [String; 2] {
    [
        format!("10.96.0.{number}:80"),
        format!("[fd00:96::{number}]:80"),
    ]
}

/// The flags of `run` for a capacity.
pub(crate) fn flags(capacity: &Capacity) -> Vec<String> {
    let mut flags: Vec<String> = [
        ("--max-frontends4", capacity.frontends4),
        ("--max-frontends6", capacity.frontends6),
        ("--max-services", capacity.services),
        ("--max-slots4", capacity.slots4),
        ("--max-slots6", capacity.slots6),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value.to_string()])
    .collect();
    for cidr in SERVICE_CIDRS {
        flags.extend(["--service-cidr".to_owned(), cidr.to_owned()]);
    }
    flags
}

impl World {
    pub(crate) fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let node = lab.node("edge-1")?;
        let client = node.pod("client")?;
        let server = |name| node.pod(name)?.serve_tcp(8080)?.serve_udp(8080);
        Ok(Self {
            client,
            a: server("a")?,
            b: server("b")?,
            c: server("c")?,
            d: server("d")?,
            node,
            lab,
        })
    }

    /// Manifests with the node and these Services: name, number of the VIP, backends.
    pub(crate) fn manifests<'a>(
        &self,
        services: impl IntoIterator<Item = (&'a str, u8, Vec<&'a Pod>)>,
    ) -> Manifests {
        let mut manifests = Manifests::new();
        manifests.node(&self.node);
        for (name, number, backends) in services {
            manifests
                .service(name)
                .cluster_ip(&format!("10.96.0.{number}"))
                .cluster_ip(&format!("fd00:96::{number}"))
                .port(80, 8080)
                .udp_port(80, 8080)
                .endpoints(backends);
        }
        manifests
    }

    /// Manifests with just the Service `web` at [`vip`]`(10)`.
    pub(crate) fn web<'a>(&self, backends: impl IntoIterator<Item = &'a Pod>) -> Manifests {
        self.manifests([("web", 10, backends.into_iter().collect())])
    }

    pub(crate) fn start(&self, capacity: &Capacity, extra: &[&str]) -> Result<Agent> {
        self.node.start_agent(&with(&flags(capacity), extra))
    }

    /// Starts an agent that follows an apiserver.
    pub(crate) fn start_from(
        &self,
        source: &str,
        capacity: &Capacity,
        extra: &[&str],
    ) -> Result<Agent> {
        let node = &self.node;
        node.start_agent_from(source, node.name(), &with(&flags(capacity), extra))
    }

    /// Waits until there is a checkpoint.
    pub(crate) fn is_remembered(&self) -> Result<Status> {
        let saved = |status: &Status| status.checkpoint.writes > 0;
        self.node.wait_for_status("a checkpoint", saved)
    }

    /// The node is rebooted while the cloud is away. The agent is another one afterwards.
    pub(crate) fn loses_power(&self, agent: &Agent, cloud: &Cloud) -> Result<()> {
        agent.kill9()?;
        cloud.kill9()?;
        self.node.lose_pins()
    }

    /// Waits until what is in force is from the checkpoint.
    pub(crate) fn is_from_checkpoint(&self) -> Result<Status> {
        let is_so = |status: &Status| status.source.provenance == Origin::Checkpoint;
        self.node.wait_for_status("its checkpoint", is_so)
    }

    /// Starts an agent and waits until it has applied its first table.
    pub(crate) fn start_ready(&self, capacity: &Capacity, extra: &[&str]) -> Result<Agent> {
        let agent = self.start(capacity, extra)?;
        self.wait_ready(&agent)?;
        Ok(agent)
    }

    /// As the lab's own, but of this agent and not of one before it.
    pub(crate) fn wait_ready(&self, agent: &Agent) -> Result<()> {
        self.wait_for("this agent to be ready", || {
            ensure!(
                agent.is_running(),
                "the agent ended:\n{}",
                self.node.agent_log()
            );
            Ok(self
                .status()
                .is_ok_and(|status| status.ready && status.pid == agent.pid()))
        })
    }

    pub(crate) fn status(&self) -> Result<Status> {
        let output = self.node.yurt_net(&["status", "-o", "json"])?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Waits until `is_so`, which is asked again and again; errors end it at once.
    pub(crate) fn wait_for(
        &self,
        what: &str,
        mut is_so: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !is_so()? {
            ensure!(
                Instant::now() < deadline,
                "waited for {what}; the agent's log:\n{}",
                self.node.agent_log()
            );
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Asserts what becomes of connects to a VIP, by both families and protocols: these answer, all of them or some,
    /// or the call is refused, if that is allowed.
    pub(crate) fn expect(&self, number: u8, may_answer: &[&Pod], may_refuse: bool) -> Result<()> {
        for to in vip(number) {
            for proto in [Proto::Tcp, Proto::Udp] {
                let tally = self.client.connect_many(proto, &to, 6)?;
                check(&tally, may_answer, may_refuse).with_context(|| format!("{proto:?} {to}"))?;
            }
        }
        Ok(())
    }

    /// Waits until connects to a VIP reach exactly these, then asserts it of more connects.
    pub(crate) fn converges(&self, number: u8, backends: &[&Pod]) -> Result<()> {
        let [to, _] = vip(number);
        self.wait_for("the right backends", || {
            let tally = self.client.connect_many(Proto::Tcp, &to, 40)?;
            let mut wanted: Vec<_> = backends.iter().map(|pod| pod.name()).collect();
            wanted.sort_unstable();
            Ok(tally.failed() == 0 && tally.answers.keys().eq(wanted))
        })?;
        self.expect(number, backends, false)
    }

    /// Opens the kernel's side of an agent in this process.
    pub(crate) fn open(&self, capacity: Capacity) -> Result<BpfDataplane> {
        let options = Options {
            bpffs: self.node.bpffs(),
            cgroup: self.node.cgroup().to_owned(),
            capacity,
            tcp_peers: PEERS,
            affinity: 1,
            socket_lb: SocketLb::All,
            serves_packets: false,
        };
        Ok(self.node.netns().run(|| BpfDataplane::open(options))??)
    }

    /// The table that the node's agent would make of its manifests.
    pub(crate) fn table(&self) -> Result<ServiceTable> {
        let snapshot = FileSource::new(self.node.manifests_dir()).load()?;
        let mut config = PolicyConfig::new(self.node.name());
        for cidr in SERVICE_CIDRS {
            config.service_cidrs.push(cidr.parse()?);
        }
        let (view, memory) = (NodeView::default(), Memory::default());
        Ok(compile(
            &snapshot,
            &Touched::Anything,
            &config,
            &view,
            &memory,
            &mut Memo::default(),
        )
        .table
        .clone())
    }

    /// Plans the table of `manifests` into the maps, as an agent does. Also leaves the manifests on the node.
    pub(crate) fn planned(&self, dataplane: &BpfDataplane, manifests: &Manifests) -> Result<Plan> {
        self.node.apply(manifests)?;
        let planned = plan(&self.table()?, &mut dataplane.observe()?);
        ensure!(planned.refused.is_empty(), "{:?}", planned.refused);
        Ok(planned)
    }

    /// Every pin, by its path below the bpffs.
    pub(crate) fn pins(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        list(&self.node.bpffs(), "", &mut found)?;
        Ok(found)
    }
}

fn with<'a>(flags: &'a [String], extra: &[&'a str]) -> Vec<&'a str> {
    let flags = flags.iter().map(String::as_str);
    flags.chain(extra.iter().copied()).collect()
}

fn list(dir: &Path, prefix: &str, found: &mut Vec<String>) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = format!("{prefix}/{}", entry.file_name().display());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &name, found)?;
        } else {
            found.push(name);
        }
    }
    Ok(())
}

/// Asserts that only these have answered, and that nothing failed but, where allowed, by refusal.
pub(crate) fn check(tally: &Tally, may_answer: &[&Pod], may_refuse: bool) -> Result<()> {
    let is_known = |name: &String| may_answer.iter().any(|pod| pod.name() == name);
    let failed = if may_refuse {
        tally.failed() - tally.error("ECONNREFUSED")
    } else {
        tally.failed()
    };
    if failed == 0 && tally.answers.keys().all(is_known) {
        return Ok(());
    }
    let names: Vec<_> = may_answer.iter().map(|pod| pod.name()).collect();
    Err(anyhow!(
        "may answer {names:?}, may refuse {may_refuse}: {tally:?}"
    ))
}

/// Numbers that differ from run to run; the seed is shown with a failure.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Self {
        use std::hash::{BuildHasher as _, RandomState};
        let seed = RandomState::new().hash_one(0) | 1;
        eprintln!("seed {seed}");
        Self(seed)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Makes the first of the planned writes, as an agent that is killed then.
pub(crate) fn apply_first(
    dataplane: &mut BpfDataplane,
    planned: &Plan,
    count: usize,
) -> Result<()> {
    dataplane.apply(&Plan {
        ops: planned.ops[..count].to_vec(),
        ..Plan::default()
    })?;
    Ok(())
}
