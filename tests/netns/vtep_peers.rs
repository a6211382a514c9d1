//! What a node knows of its peers' tunnels is repaired when a peer is seen to send with another MAC.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::process::Command;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Agent;
use yurt_net_tests::lab::Netns;
use yurt_net_tests::lab::Node;

use crate::vtep::V4;
use crate::vtep::V6;
use crate::vtep::delete;
use crate::vtep::mac;
use crate::vtep::make;
use crate::world::World;
use crate::world::eventually;

const FLAG: &str = "--repair-peers";
/// Longer than evidence takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the agent must not do is not done in this time either.
const LONG_ENOUGH: Duration = Duration::from_secs(12);
const BETWEEN: Duration = Duration::from_millis(200);

/// The node with the agent, a peer in its pool, and one in another.
const HOME: usize = 0;
const PEER: usize = 1;
const STRANGER: usize = 2;

/// MACs of a node's devices, after it was made so often.
fn macs(node: usize, generation: u8) -> [String; 2] {
    [4, 6].map(|family| format!("0a:00:00:0{generation}:0{node}:0{family}"))
}

fn inside4(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 250, byte(node), 0)
}

fn inside6(node: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 250, 0, byte(node).into(), 0, 0, 0, 0)
}

/// A Pod that is there, as far as anybody says.
fn pod4(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 250, byte(node), 7)
}

fn pod6(node: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 250, 0, byte(node).into(), 0, 0, 0, 7)
}

fn byte(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// Three nodes whose tunnels know each other.
struct Pools {
    world: World,
    generations: [u8; 3],
}

impl Pools {
    fn new() -> Result<Self> {
        let mut world = World::new(&[
            ("edge-1", "hangzhou"),
            ("edge-2", "hangzhou"),
            ("edge-3", "shanghai"),
        ])?;
        // Of the other Nodes an agent knows only where endpoints are.
        let [peer, stranger] = [PEER, STRANGER].map(|index| world.nodes[index].name().to_owned());
        let service = world.manifests.service("web");
        service.cluster_ip("10.96.0.10").port(80, 8080);
        for (index, node) in [(PEER, peer), (STRANGER, stranger)] {
            service.add_endpoint(pod4(index).into(), Some(&node), true);
            service.add_endpoint(pod6(index).into(), Some(&node), true);
        }
        let pools = Self {
            world,
            generations: [0; 3],
        };
        for node in [HOME, PEER, STRANGER] {
            pools.make(node)?;
        }
        Ok(pools)
    }

    fn node(&self, index: usize) -> Result<&Node> {
        self.world.node(index)
    }

    /// Makes a node's devices, which know the others as those are now: what flannel does when it starts.
    fn make(&self, index: usize) -> Result<()> {
        let node = self.node(index)?;
        let [mac4, mac6] = macs(index, self.generations[index]);
        make(node, &mac4, &mac6)?;
        node.netns().ip(&format!(
            "addr add {}/32 dev {V4}\naddr add {}/128 dev {V6} nodad\n",
            inside4(index),
            inside6(index)
        ))?;
        for other in [HOME, PEER, STRANGER] {
            if other != index {
                self.know(index, other)?;
            }
        }
        Ok(())
    }

    fn know(&self, index: usize, other: usize) -> Result<()> {
        let (netns, peer) = (self.node(index)?.netns(), self.node(other)?);
        let [mac4, mac6] = macs(other, self.generations[other]);
        let (to4, to6) = (inside4(other), inside6(other));
        netns.ip(&format!(
            "route add {to4}/24 via {to4} dev {V4} src {} onlink\n\
             route add {to6}/64 via {to6} dev {V6} src {} onlink\n\
             neigh add {to4} lladdr {mac4} dev {V4} nud permanent\n\
             neigh add {to6} lladdr {mac6} dev {V6} nud permanent\n",
            inside4(index),
            inside6(index)
        ))?;
        forward(netns, V4, &mac4, peer.ip4().into())?;
        forward(netns, V6, &mac6, peer.ip6().into())
    }

    /// A node's devices are made again, with other MACs; nobody tells the others.
    fn change(&mut self, index: usize) -> Result<()> {
        delete(self.node(index)?)?;
        self.generations[index] += 1;
        self.make(index)
    }

    /// An agent that knows the pools from its checkpoint, and whose cloud is gone.
    fn start_cut_off(&self, flags: &[&str]) -> Result<Agent> {
        let node = self.node(HOME)?;
        let cloud = self.world.lab.cloud()?;
        cloud.apply(&self.world.manifests)?;
        cloud.start()?;
        let start = || node.start_agent_from(&cloud.source(), node.name(), flags);
        let agent = start()?;
        node.wait_for_status("a checkpoint", |status| status.checkpoint.writes > 0)?;
        cloud.kill9()?;
        ensure!(agent.terminate()?.success(), "the first agent");
        start()
    }

    /// Whether a node gets an answer to what it asks another, while both talk, in time.
    fn is_answered(&self, from: usize, to: usize, is_v6: bool, patience: Duration) -> Result<bool> {
        let address = |index: usize| match is_v6 {
            true => IpAddr::from(inside6(index)),
            false => IpAddr::from(inside4(index)),
        };
        let bind = |index: usize| -> Result<UdpSocket> {
            let at = SocketAddr::new(address(index), 0);
            let socket = self.node(index)?.netns().run(|| UdpSocket::bind(at))??;
            socket.set_read_timeout(Some(BETWEEN))?;
            Ok(socket)
        };
        let (asks, answers) = (bind(from)?, bind(to)?);
        let start = Instant::now();
        while start.elapsed() < patience {
            answers.send_to(b"talk", asks.local_addr()?)?;
            asks.send_to(b"?", answers.local_addr()?)?;
            if answers.recv(&mut [0; 8]).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The home node does get an answer.
    fn wait_for_answer(&self, to: usize) -> Result<()> {
        for is_v6 in [false, true] {
            let is_answered = self.is_answered(HOME, to, is_v6, PATIENCE)?;
            let log = || self.world.nodes[HOME].agent_log();
            ensure!(is_answered, "is_v6 = {is_v6}: no answer; log:\n{}", log());
        }
        Ok(())
    }

    /// The MAC by which the home node knows another, by neighbour; and that one forwarding entry, no more, leads there.
    fn known(&self, other: usize) -> Result<[String; 2]> {
        let peer = self.node(other)?;
        let netns = self.node(HOME)?.netns();
        let known = |device: &str, inside: String, underlay: String| -> Result<String> {
            let neighbour = run(netns, "ip", &["neigh", "show", &inside, "dev", device])?;
            let mac = neighbour.split_whitespace().nth(2).context("no MAC")?;
            ensure!(neighbour.contains("PERMANENT"), "{neighbour}");
            let entries = run(netns, "bridge", &["fdb", "show", "dev", device])?;
            let leads = |line: &&str| line.contains(&format!("dst {underlay} "));
            let leading: Vec<&str> = entries.lines().filter(leads).collect();
            let is_right = leading.len() == 1 && leading[0].starts_with(mac);
            ensure!(is_right, "{device}: {mac} and {leading:?}");
            Ok(mac.to_owned())
        };
        let (inside4, inside6) = (inside4(other).to_string(), inside6(other).to_string());
        Ok([
            known(V4, inside4, peer.ip4().to_string())?,
            known(V6, inside6, peer.ip6().to_string())?,
        ])
    }

    fn become_known(&self, other: usize, macs: &[String; 2]) -> Result<()> {
        eventually(self.node(HOME)?, || {
            let known = self.known(other)?;
            ensure!(known == *macs, "{known:?}, not {macs:?}");
            Ok(())
        })
    }

    fn repairs(&self) -> Result<[u64; 2]> {
        let report = self.node(HOME)?.status()?.devices;
        let of = |name| {
            let mut devices = report.devices.iter();
            let device = devices.find(|device| device.name == name);
            device.map_or(0, |device| device.peer_repairs)
        };
        Ok([of(V4), of(V6)])
    }
}

fn run(netns: &Netns, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    netns.enter(&mut command);
    let output = command.output().with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program} {arguments:?}");
    Ok(String::from_utf8(output.stdout)?)
}

fn forward(netns: &Netns, device: &str, mac: &str, to: IpAddr) -> Result<()> {
    let to = to.to_string();
    let words = ["fdb", "add", mac, "dev", device, "dst", &to];
    run(
        netns,
        "bridge",
        &[&words[..], &["self", "permanent"]].concat(),
    )
    .map(drop)
}

/// A frame in the tunnel, as the payload of its outer packet: only its source matters.
fn payload(vni: u8, source: [u8; 6]) -> Vec<u8> {
    let header = [0x08, 0, 0, 0, 0, 0, vni, 0];
    let destination = [0x0a, 0, 0, 0, 0, 0];
    [&header[..], &destination, &source, &[0x08, 0x00], &[0; 28]].concat()
}

#[test]
fn a_peer_that_came_back_with_another_mac_is_reached_again_without_the_cloud() -> Result<()> {
    let mut pools = Pools::new()?;
    let _agent = pools.start_cut_off(&[FLAG])?;
    pools.wait_for_answer(PEER)?;
    pools.change(PEER)?;
    pools.change(STRANGER)?;
    let lost = Duration::from_secs(2);
    assert!(!pools.is_answered(HOME, PEER, false, lost)?, "no change");
    pools.wait_for_answer(PEER)?;
    pools.become_known(PEER, &macs(PEER, 1))?;
    assert_eq!(pools.repairs()?, [1, 1]);
    // Of another pool nothing is believed.
    assert!(!pools.is_answered(HOME, STRANGER, false, LONG_ENOUGH)?);
    assert_eq!(pools.known(STRANGER)?, macs(STRANGER, 0));
    assert_eq!(pools.repairs()?, [1, 1]);
    let alarms = pools.node(HOME)?.status()?.devices.alarms;
    assert!(
        !alarms.iter().any(|alarm| alarm.contains("peer")),
        "{alarms:?}"
    );
    Ok(())
}

#[test]
fn without_the_flag_entries_about_peers_are_left_as_they_are() -> Result<()> {
    let mut pools = Pools::new()?;
    let _agent = pools.start_cut_off(&[])?;
    pools.change(PEER)?;
    assert!(!pools.is_answered(HOME, PEER, false, LONG_ENOUGH)?);
    assert_eq!(pools.known(PEER)?, macs(PEER, 0));
    Ok(())
}

#[test]
fn whoever_sends_with_a_peer_s_address_is_not_believed_while_the_peer_is_heard() -> Result<()> {
    let pools = Pools::new()?;
    let _agent = pools.start_cut_off(&[FLAG])?;
    let (home, peer) = (pools.node(HOME)?, pools.node(PEER)?);
    let stranger = pools.node(STRANGER)?.netns();
    // It has the peer's address too, and asks nobody for the way to the node, which would tell it.
    stranger.ip(&format!(
        "addr add {}/32 dev lo\nneigh replace {} lladdr {} dev eth0 nud permanent\n",
        peer.ip4(),
        home.ip4(),
        mac(home, "eth0")?,
    ))?;
    let lies = stranger.run(|| UdpSocket::bind((peer.ip4(), 0)))??;
    let lie = |source: [u8; 6]| lies.send_to(&payload(1, source), (home.ip4(), 8472));
    let source = [0x0e, 0, 0, 0, 0, 0x66];
    let start = Instant::now();
    while start.elapsed() < LONG_ENOUGH {
        lie(source)?;
        assert!(pools.is_answered(HOME, PEER, false, PATIENCE)?);
        thread::sleep(BETWEEN);
    }
    assert_eq!(pools.known(PEER)?, macs(PEER, 0));
    // While it is silent, it is believed. Its entries lead to it all the same.
    let start = Instant::now();
    while pools.repairs()? == [0, 0] {
        ensure!(start.elapsed() < PATIENCE, "nothing is listened to at all");
        lie(source)?;
        thread::sleep(BETWEEN);
    }
    assert_eq!(pools.known(PEER)?[0], "0e:00:00:00:00:66");
    // And when it is heard again, the lie counts no more, although it goes on.
    let start = Instant::now();
    while !pools.is_answered(HOME, PEER, false, BETWEEN)? {
        ensure!(start.elapsed() < PATIENCE, "it goes on to count");
        lie(source)?;
    }
    pools.become_known(PEER, &macs(PEER, 0))?;
    Ok(())
}
