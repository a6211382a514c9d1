//! The cost of the packet path for clients outside: the same operations through a NodePort and directly to the Pod, in
//! turns.
//!
//! Each universe is a host outside, a node that the lab's wire connects it to, and a server in a Pod of that node or of
//! another one. Packets directly to the Pod are forwarded by the kernel alone, both ways through the same nodes.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;

use super::Options;
use super::report::Claim;
use super::report::Measure;
use super::report::Noise;
use super::report::Series;
use super::stats;
use super::stats::Random;
use super::universe::Worker;
use super::universe::cluster_ip;
use super::universe::endpoint_ip;
use super::universe::last_cpu;
use super::universe::service_name;
use super::universe::start_agent_with;
use super::worker::Batch;
use super::worker::Ends;
use super::worker::Op;
use super::worker::Task;
use crate::lab::Agent;
use crate::lab::Lab;
use crate::lab::Manifests;
use crate::lab::Node;
use crate::lab::Pod;
use crate::lab::Proto;

/// Names of the measures.
pub const NAMES: [&str; 3] = ["outside-connect", "outside-exchange", "outside-udp"];

const SERVER_PORT: u16 = 8080;
const NODE_PORT: u16 = 30080;
/// How many Services the rules in kube-proxy's shape have.
const RULED: usize = 1000;
/// How often the universes are made anew; see the module `latency`.
const LIVES: usize = 3;

const DIRECT: usize = 0;
const CONTROL: usize = 1;
const ONE: usize = 2;
const MANY: usize = 3;
const RULES: usize = 4;
const FAR_DIRECT: usize = 5;
const FAR: usize = 6;

/// How the client reaches the server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// By its own address.
    Forwarding,
    /// By a NodePort, with an agent and this many Services.
    Agent(usize),
    /// By a NodePort, with rules for iptables in kube-proxy's shape and this many Services.
    Rules(usize),
}

/// Runs the measures of [`NAMES`] that are wanted.
pub fn measure(
    lab: &Lab,
    options: &Options,
    wanted: &[&'static str],
    mut progress: impl FnMut(&str),
) -> Result<Vec<Measure>> {
    let universes = [
        ("to the Pod".to_owned(), By::Forwarding, false),
        ("to the Pod again".to_owned(), By::Forwarding, false),
        ("1 service".to_owned(), By::Agent(1), false),
        (
            format!("{} services", options.services()),
            By::Agent(options.services()),
            false,
        ),
        (
            format!("iptables, {RULED} services"),
            By::Rules(RULED),
            false,
        ),
        ("to a Pod elsewhere".to_owned(), By::Forwarding, true),
        ("1 service, elsewhere".to_owned(), By::Agent(1), true),
    ];
    let mut all = vec![Rounds::new(universes.iter().map(|(name, ..)| name.clone())); wanted.len()];
    let lives = if options.quick { 1 } else { LIVES };
    for life in 0..lives {
        progress(&format!("hosts outside, {} of {lives}", life + 1));
        let mut made = Vec::new();
        for (index, (_, by, is_elsewhere)) in universes.iter().enumerate() {
            let name = format!("pk{index}-{life}");
            made.push(Universe::new(lab, &name, *by, *is_elsewhere)?);
        }
        // What the agents have just done must end before anything is timed.
        thread::sleep(Duration::from_secs(1));
        for (name, rounds) in wanted.iter().zip(&mut all) {
            progress(name);
            let op = match *name {
                "outside-connect" => Op::Connect,
                "outside-exchange" => Op::Exchange,
                _ => Op::Udp,
            };
            let batch = options.batch(op, 300, 1);
            rounds.run(&mut made, batch, options.rounds(15))?;
        }
    }
    Ok(std::iter::zip(wanted, &all)
        .map(|(name, rounds)| judged(name, rounds))
        .collect())
}

fn judged(name: &'static str, rounds: &Rounds) -> Measure {
    let (title, method, claims) = match name {
        "outside-connect" => (
            "TCP connect from outside by NodePort",
            "connect() of a new TCP socket of a host outside, timed alone. Ratios of the medians of a round.",
            vec![
                rounds.judged(ONE, DIRECT, 1.03),
                rounds.judged(MANY, ONE, 1.02),
                rounds.judged(ONE, RULES, 0.80),
                rounds.judged(FAR, FAR_DIRECT, 1.05),
                rounds.ratio(RULES, DIRECT),
                rounds.ratio(CONTROL, DIRECT),
            ],
        ),
        "outside-exchange" => (
            "Question and answer in a connection from outside by NodePort",
            "send, receive at the server, send, receive at the client, in one connection. Ratios of the medians of a round.",
            vec![
                // A rate of 0.98.
                rounds.judged(ONE, DIRECT, 1.02),
                rounds.judged(MANY, DIRECT, 1.02),
                rounds.judged(FAR, FAR_DIRECT, 1.02),
                rounds.ratio(RULES, DIRECT),
                rounds.ratio(CONTROL, DIRECT),
            ],
        ),
        _ => (
            "UDP question and answer from outside by NodePort",
            "sendto, recvfrom at the server, sendto, recvfrom at the client, from one port. Ratios of the medians of a round.",
            vec![
                // A rate of 0.95.
                rounds.judged(ONE, DIRECT, 1.05),
                rounds.judged(FAR, FAR_DIRECT, 1.05),
                rounds.ratio(RULES, DIRECT),
                rounds.ratio(CONTROL, DIRECT),
            ],
        ),
    };
    Measure {
        name,
        title,
        method,
        unit: "us",
        series: rounds.series(),
        claims,
    }
}

/// A host outside, a server, and the nodes between them.
struct Universe {
    worker: Worker,
    agent: Option<Agent>,
    /// Hold their network namespaces.
    _pods: [Pod; 2],
}

impl Universe {
    fn new(lab: &Lab, name: &str, by: By, is_elsewhere: bool) -> Result<Self> {
        let (node, outside) = (
            lab.node(&format!("{name}-n"))?,
            lab.node(&format!("{name}-o"))?,
        );
        let home = match is_elsewhere {
            true => lab.node(&format!("{name}-e"))?,
            false => node.clone(),
        };
        let (client, server) = (outside.host()?, home.pod("server")?);
        let to_pod = SocketAddrV4::new(server.ip4(), SERVER_PORT);
        if is_elsewhere {
            // Both ways lead through the node in between, as with a Service.
            let cidr = home.pod_cidr4();
            outside
                .netns()
                .ip(&format!("route replace {cidr} via {}", node.ip4()))?;
            home.netns().ip(&format!(
                "route add {}/32 via {}",
                outside.ip4(),
                node.ip4()
            ))?;
        }
        let mut agent = None;
        match by {
            By::Forwarding => {}
            By::Agent(count) => {
                let manifests = services(&node, &home, &server, count);
                agent = Some(start_agent_with(&node, &manifests, &["--packet-path=on"])?);
                wait_served(&node)?;
            }
            By::Rules(count) => restore(&node, &rules(server.ip4(), count)?)?,
        }
        let dial = match by {
            By::Forwarding => to_pod,
            By::Agent(_) | By::Rules(_) => SocketAddrV4::new(node.ip4(), NODE_PORT),
        };
        let ends = Ends {
            server_netns: server.netns().path().into(),
            server_port: SERVER_PORT,
            direct: vec![to_pod],
            dial: vec![dial],
            dial_udp: dial,
            cpu: last_cpu(),
        };
        Ok(Self {
            worker: Worker::start(&client, &Task::Batches(ends))?,
            agent,
            _pods: [client, server],
        })
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

/// This many Services; the one in the middle has the server and the NodePort.
fn services(node: &Node, home: &Node, server: &Pod, count: usize) -> Manifests {
    let mut manifests = Manifests::new();
    manifests.node(node).pool("bench");
    if home.name() != node.name() {
        manifests.node(home).pool("bench");
    }
    for index in 0..count {
        let service = manifests.service(&service_name(index));
        service.cluster_ip(&cluster_ip(index).to_string());
        if index == count / 2 {
            service.node_port(Proto::Tcp, 80, SERVER_PORT, NODE_PORT);
            service.node_port(Proto::Udp, 80, SERVER_PORT, NODE_PORT);
            service.add_endpoint(server.ip4().into(), Some(home.name()), true);
        } else {
            service.port(80, SERVER_PORT);
            service.add_endpoint(endpoint_ip(index).into(), Some(home.name()), true);
        }
    }
    manifests
}

fn wait_served(node: &Node) -> Result<()> {
    node.wait_for_status("packets are served", |status| {
        let packets = status.packet_path.as_ref();
        packets.is_some_and(|packets| !packets.devices.is_empty())
    })?;
    Ok(())
}

/// Rules for `iptables-restore` in kube-proxy's shape: a chain for each Service and for each endpoint, all Services in
/// one list, and marks for what has to be masqueraded. NodePorts come last.
fn rules(server: Ipv4Addr, count: usize) -> Result<String> {
    let mut chains = String::new();
    let mut list = String::new();
    let mut bodies = String::new();
    for index in 0..count {
        let (ip, endpoint) = (cluster_ip(index), endpoint_ip(index));
        let (svc, sep) = (
            format!("KUBE-SVC-{index:05}"),
            format!("KUBE-SEP-{index:05}"),
        );
        writeln!(chains, ":{svc} - [0:0]\n:{sep} - [0:0]")?;
        writeln!(
            list,
            "-A KUBE-SERVICES -d {ip}/32 -p tcp -m tcp --dport 80 -j {svc}"
        )?;
        writeln!(bodies, "-A {svc} -j {sep}")?;
        writeln!(bodies, "-A {sep} -s {endpoint}/32 -j KUBE-MARK-MASQ")?;
        writeln!(
            bodies,
            "-A {sep} -p tcp -m tcp -j DNAT --to-destination {endpoint}:{SERVER_PORT}"
        )?;
    }
    for protocol in ["tcp", "udp"] {
        let (ext, sep) = (
            format!("KUBE-EXT-{protocol}"),
            format!("KUBE-SEP-{protocol}"),
        );
        writeln!(chains, ":{ext} - [0:0]\n:{sep} - [0:0]")?;
        writeln!(
            bodies,
            "-A KUBE-NODEPORTS -p {protocol} -m {protocol} --dport {NODE_PORT} -j {ext}"
        )?;
        writeln!(bodies, "-A {ext} -j KUBE-MARK-MASQ\n-A {ext} -j {sep}")?;
        writeln!(
            bodies,
            "-A {sep} -p {protocol} -m {protocol} -j DNAT --to-destination {server}:{SERVER_PORT}"
        )?;
    }
    Ok(format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n{chains}\
         -A PREROUTING -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n-A KUBE-POSTROUTING -j MASQUERADE\n\
         {list}-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n{bodies}COMMIT\n"
    ))
}

/// Loads them on a node.
fn restore(node: &Node, rules: &str) -> Result<()> {
    let rules = rules.to_owned();
    let restored = node.netns().run(move || -> Result<_> {
        let mut child = Command::new("iptables-restore")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start iptables-restore (apt-get install iptables)")?;
        child
            .stdin
            .take()
            .context("its stdin")?
            .write_all(rules.as_bytes())?;
        Ok(child.wait_with_output()?)
    })??;
    ensure!(
        restored.status.success(),
        "iptables-restore: {}",
        String::from_utf8_lossy(&restored.stderr)
    );
    Ok(())
}

/// Nanoseconds, by universe.
#[derive(Clone)]
struct Rounds {
    names: Vec<String>,
    medians: Vec<Vec<f64>>,
    samples: Vec<Vec<f64>>,
}

impl Rounds {
    fn new(names: impl Iterator<Item = String>) -> Self {
        let names: Vec<String> = names.collect();
        let none = vec![Vec::new(); names.len()];
        Self {
            names,
            medians: none.clone(),
            samples: none,
        }
    }

    /// One batch in each universe, `count` times, in a changing order.
    fn run(&mut self, universes: &mut [Universe], batch: Batch, count: usize) -> Result<()> {
        let mut random = Random(0);
        let mut order: Vec<usize> = (0..universes.len()).collect();
        for _ in 0..count {
            random.shuffle(&mut order);
            for &index in &order {
                let samples: Vec<f64> = universes[index]
                    .worker
                    .call(&batch)
                    .with_context(|| self.names[index].clone())?;
                self.medians[index].push(stats::median(&samples));
                self.samples[index].extend(samples);
            }
        }
        Ok(())
    }

    fn series(&self) -> Vec<Series> {
        let micros = |samples: &Vec<f64>| samples.iter().map(|it| it * 1e-3).collect::<Vec<_>>();
        std::iter::zip(&self.names, &self.samples)
            .map(|(name, samples)| Series::new(name, &micros(samples)))
            .collect()
    }

    fn judged(&self, what: usize, to: usize, target: f64) -> Claim {
        let noise = Noise {
            floor: (self.ratio(CONTROL, DIRECT).measured - 1.0).abs(),
            margin: (target - 1.0).abs(),
        };
        self.ratio(what, to).at_most_above_noise(target, noise)
    }

    fn ratio(&self, what: usize, to: usize) -> Claim {
        let pairs = std::iter::zip(&self.medians[what], &self.medians[to]);
        let rounds = pairs.map(|(a, b)| a / b).collect();
        let [what, to] = [what, to].map(|index| &self.names[index]);
        Claim::new(format!("{what} / {to}"), "", rounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_have_a_chain_for_each_service_and_come_to_the_node_port_last() -> Result<()> {
        let rules = rules(Ipv4Addr::new(10, 244, 1, 2), 3)?;
        let of_services = rules
            .lines()
            .filter(|line| line.starts_with("-A KUBE-SERVICES"));
        let of_services: Vec<&str> = of_services.collect();
        assert_eq!(of_services.len(), 4);
        assert!(of_services[3].contains("KUBE-NODEPORTS"));
        assert_eq!(
            rules
                .matches("DNAT --to-destination 10.244.1.2:8080")
                .count(),
            2
        );
        Ok(())
    }
}
