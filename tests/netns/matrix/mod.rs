//! Every client at every kind of address, by each policy, closure and state of endpoints: what packets and sockets get
//! is what the resolver says.

mod cells;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::anyhow;
use anyhow::ensure;
use yurt_net::explain::verdict::FlowVerdict;
use yurt_net_tests::lab::Agent;
use yurt_net_tests::lab::Attempt;
use yurt_net_tests::lab::Node;

use self::cells::Backends;
use self::cells::Cell;
use self::cells::Client;
use self::cells::Named;
use self::cells::Path;
use self::cells::Service;
use crate::capture::Tap;
use crate::world::World;

const DIALS: usize = 2;
/// So many dials meet each of three endpoints, but once in ten thousand million times.
const ENOUGH_TO_MEET_ALL: usize = 60;
const AT_ONCE: usize = 16;
/// Where each only waits.
const SILENT_AT_ONCE: usize = 128;
const PATIENCE: Duration = Duration::from_secs(10);
/// For what is dropped, which a counter proves.
const SILENCE: Duration = Duration::from_millis(300);
/// Those that decide.
const AGENTS: [usize; 2] = [0, 1];
/// Clients choose their ports at random, and may dial two frontends of a Service from the same; the next try differs.
const MAY_HAPPEN: &[&str] = &["drop_clash"];

/// Two nodes with agents in a pool, one without an agent in another one, and a host that is no Node.
struct Stage {
    clients: Vec<Client>,
    backends: Backends,
    world: World,
}

impl Stage {
    fn new() -> Result<Self> {
        let mut world = World::new(&[
            ("edge-1", "hangzhou"),
            ("edge-2", "hangzhou"),
            ("edge-3", "beijing"),
        ])?;
        let outside = world.lab.node("outside")?;
        let backends = Backends {
            near: world.node(0)?.pod("near")?,
            host: world.node(0)?.host()?,
            far: world.node(1)?.pod("far")?,
            foreign: world.node(2)?.pod("foreign")?,
        };
        for service in Service::all() {
            for pod in backends.all() {
                pod.serve_telling(service.target())?;
            }
            service.write(&mut world.manifests, &backends);
        }
        for netns in [world.node(2)?.netns(), outside.netns()] {
            let (via4, via6) = (world.node(0)?.ip4(), world.node(0)?.ip6());
            for to in ["10.96.0.0/16", "203.0.113.0/24", "198.51.100.0/24"] {
                netns.ip(&format!("route add {to} via {via4}"))?;
            }
            for to in ["fd00:96::/64", "2001:db8:77::/64", "2001:db8:100::/64"] {
                netns.ip(&format!("route add {to} via {via6}"))?;
            }
        }
        let client = |name, node: &Node, is_host: bool, path, home| -> Result<Client> {
            let pod = match is_host {
                true => node.host()?,
                false => node.pod("client")?,
            };
            let mut addresses = vec![IpAddr::from(pod.ip4()), pod.ip6().into()];
            if is_host {
                addresses.extend(gateways(node)?);
            }
            Ok(Client {
                name,
                pod,
                path,
                home,
                addresses,
            })
        };
        let [one, two, three] = [0, 1, 2].map(|index| world.node(index));
        let (one, two, three) = (one?, two?, three?);
        let clients = vec![
            client("Pod", one, false, Path::Sockets, 0)?,
            client("host", one, true, Path::Sockets, 0)?,
            client("Pod without sockets", two, false, Path::PodDevice, 1)?,
            client("host of the other node", two, true, Path::Sockets, 1)?,
            client("Pod of another node", three, false, Path::Uplink, 0)?,
            client("host of another node", three, true, Path::Uplink, 0)?,
            client("host outside", &outside, true, Path::Uplink, 0)?,
        ];
        Ok(Self {
            clients,
            backends,
            world,
        })
    }

    fn start(&mut self) -> Result<Vec<Agent>> {
        let mut agents = Vec::new();
        for (node, more) in AGENTS.into_iter().zip([None, Some("--socket-lb=host")]) {
            let flags: Vec<&str> = Some("--packet-path=on").into_iter().chain(more).collect();
            agents.push(self.world.start(node, &flags)?);
        }
        for node in AGENTS {
            let pods = match node {
                0 => 0,
                _ => 2,
            };
            self.world
                .node(node)?
                .wait_for_status("packets are served", |status| {
                    let packets = status.packet_path.as_ref();
                    packets.is_some_and(|it| it.devices == ["eth0"] && it.pods >= pods)
                })?;
        }
        self.world.wait_effective()?;
        Ok(agents)
    }

    /// What each node with an agent has done with packets, by its name.
    fn counts(&self) -> Result<Vec<BTreeMap<String, u64>>> {
        let counts = AGENTS.into_iter().map(|node| {
            let packets = self.world.node(node)?.status()?.packet_path;
            let packets = packets.context("packets are served")?.packets;
            Ok(packets
                .into_iter()
                .map(|(name, n)| (name.to_string(), n))
                .collect())
        });
        counts.collect()
    }

    /// All clients at once dial their cells, each so often; the results in the order of the cells.
    fn dial(&self, cells: &[&Cell], dials: usize, patience: Duration) -> Result<Vec<Vec<Attempt>>> {
        let at_once = match patience {
            SILENCE => SILENT_AT_ONCE,
            _ => AT_ONCE,
        };
        let mut results: Vec<Vec<Attempt>> = cells.iter().map(|_| Vec::new()).collect();
        let tried = thread::scope(|scope| {
            let clients = self.clients.iter().enumerate().map(|(index, client)| {
                let own = (0..cells.len()).filter(move |at| cells[*at].client == index);
                let own: Vec<usize> = own.flat_map(|at| vec![at; dials]).collect();
                let to: Vec<_> = own
                    .iter()
                    .map(|at| (cells[*at].proto, cells[*at].to))
                    .collect();
                let tried = scope.spawn(move || client.pod.attempt_all(&to, at_once, patience));
                (own, tried)
            });
            let clients: Vec<_> = clients.collect();
            let tried = clients.into_iter().map(|(own, tried)| {
                let attempts = tried
                    .join()
                    .map_err(|_panic| anyhow!("a client panicked"))??;
                anyhow::Ok(own.into_iter().zip(attempts).collect::<Vec<_>>())
            });
            tried.collect::<Result<Vec<_>>>()
        })?;
        for (at, attempt) in tried.into_iter().flatten() {
            results[at].push(attempt);
        }
        Ok(results)
    }

    fn named<'a>(&'a self, cell: &'a Cell) -> Result<Named<'a>> {
        let client = &self.clients[cell.client];
        Ok(Named(cell, client, self.world.node(cell.node)?))
    }

    fn faults(&self, cells: &[&Cell], results: &[Vec<Attempt>]) -> Result<Vec<String>> {
        let mut faults = Vec::new();
        for (cell, attempts) in cells.iter().zip(results) {
            for attempt in attempts {
                let answer = match (attempt.answer(), attempt.errno()) {
                    (Some(answer), _) => Ok(answer),
                    (None, errno) => Err(errno.unwrap_or("nothing at all")),
                };
                let client = &self.clients[cell.client];
                let fault = cell.fault(client, &self.backends, &self.world.nodes, answer)?;
                faults.extend(match fault {
                    Some(fault) => Some(format!("{}: {fault}", self.named(cell)?)),
                    None => None,
                });
            }
        }
        Ok(faults)
    }

    /// Whoever may answer a client has, where enough was asked.
    fn missed(&self, cells: &[&Cell], results: &[Vec<Attempt>]) -> Result<Vec<String>> {
        let mut groups: BTreeMap<_, (usize, BTreeSet<String>)> = BTreeMap::new();
        for (cell, attempts) in cells.iter().zip(results) {
            let endpoints = cell.endpoints(&self.backends)?;
            let names: BTreeSet<String> = endpoints.iter().map(|pod| pod.name().into()).collect();
            let group = groups.entry((cell.client, cell.node, names)).or_default();
            group.0 += attempts.len();
            let answers = attempts.iter().filter_map(Attempt::answer);
            let answers = answers.filter_map(|answer| answer.split(',').next());
            group.1.extend(answers.map(str::to_owned));
        }
        ensure!(!groups.is_empty());
        let missed = groups
            .into_iter()
            .filter_map(|((client, _, names), (dials, seen))| {
                let is_missed = dials >= ENOUGH_TO_MEET_ALL && seen != names;
                let name = self.clients[client].name;
                is_missed.then(|| format!("{name} met {seen:?} of {names:?} in {dials} dials"))
            });
        Ok(missed.collect())
    }
}

/// A node's addresses among its Pods, which its processes have towards those.
fn gateways(node: &Node) -> Result<[IpAddr; 2]> {
    let first = |cidr: String| -> Result<IpAddr> {
        let network: ipnetwork::IpNetwork = cidr.parse()?;
        network.iter().nth(1).context("an empty network")
    };
    Ok([first(node.pod_cidr4())?, first(node.pod_cidr6())?])
}

#[test]
fn whoever_dials_whatever_gets_what_the_resolver_says() -> Result<()> {
    let mut stage = Stage::new()?;
    let agents = stage.start()?;
    let cells = Cell::all(&stage.clients, &stage.world.nodes)?;
    let taps = AGENTS.map(|node| Tap::start(stage.world.node(node)?, "eth0"));
    let (silent, told): (Vec<&Cell>, Vec<&Cell>) = cells.iter().partition(|it| it.is_silent());
    // Both kinds are there, or nothing was tried.
    ensure!(silent.len() > 100 && told.len() > 1000);

    let results = stage.dial(&told, DIALS, PATIENCE)?;
    let mut faults = stage.faults(&told, &results)?;
    faults.extend(stage.missed(&told, &results)?);
    let before = stage.counts()?;
    for (node, counts) in AGENTS.into_iter().zip(&before) {
        let unexpected = counts.iter().filter(|(what, count)| {
            what.starts_with("drop") && **count > 0 && !MAY_HAPPEN.contains(&what.as_str())
        });
        let unexpected: Vec<_> = unexpected.collect();
        if !unexpected.is_empty() {
            faults.push(format!(
                "node {node} dropped what nobody should: {unexpected:?}"
            ));
        }
        let refused = told.iter().filter(|cell| {
            let is_refused = cell.explanation.verdict == FlowVerdict::Refuse;
            is_refused && cell.node == node && cell.path != Path::Sockets
        });
        let (refused, counted) = (refused.count(), count(counts, "refuse_no_endpoint"));
        if counted < u64::try_from(DIALS * refused)? {
            faults.push(format!(
                "node {node} counts {counted} refusals of {refused} cells"
            ));
        }
    }

    let results = stage.dial(&silent, 1, SILENCE)?;
    faults.extend(stage.faults(&silent, &results)?);
    let after = stage.counts()?;
    for node in AGENTS {
        let dropped = silent.iter().filter(|cell| cell.node == node).count();
        let what = "drop_no_local_endpoint";
        let counted = count(&after[node], what) - count(&before[node], what);
        if counted < u64::try_from(dropped)? {
            faults.push(format!(
                "node {node} counts {counted} drops of {dropped} cells"
            ));
        }
    }

    // Without the agents it is the same.
    for agent in agents {
        agent.kill9()?;
    }
    for (cells, patience) in [(&told, PATIENCE), (&silent, SILENCE)] {
        let results = stage.dial(cells, 1, patience)?;
        let without = stage.faults(cells, &results)?.into_iter();
        faults.extend(without.map(|fault| format!("without an agent: {fault}")));
    }

    let foreign = [
        IpAddr::from(stage.backends.foreign.ip4()),
        stage.backends.foreign.ip6().into(),
    ];
    for tap in taps {
        let seen = tap?.stop()?;
        let (mut left, mut open) = (0, 0);
        for service in Service::all() {
            let to_foreign = foreign.iter().map(|to| (*to, service.target()));
            let packets: u64 = to_foreign.filter_map(|to| seen.get(&to)).sum();
            match service.is_closed {
                true => left += packets,
                false => open += packets,
            }
        }
        if left > 0 {
            faults.push(format!(
                "{left} packets of closed Services left for the other pool"
            ));
        }
        // What was captured could have been there.
        ensure!(open > 0, "no packet of an open Service was seen");
    }
    let (count, all) = (faults.len(), cells.len());
    ensure!(
        count == 0,
        "{count} differences in {all} cells:\n{}",
        faults.join("\n")
    );
    Ok(())
}

fn count(counts: &BTreeMap<String, u64>, what: &str) -> u64 {
    counts.get(what).copied().unwrap_or_default()
}
