//! The agent ends, in every way, and starts again: clients notice nothing.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Connection;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;
use yurt_net_tests::lab::Traffic;

use crate::kernel;
use crate::world::World;
use crate::world::all_answered;
use crate::world::eventually;
use crate::world::names;
use crate::world::status;
use crate::world::who_answers;

const VIP: &str = "10.96.0.10:80";
const VIP6: &str = "[fd00:96::10]:80";

/// Long-lived connections and an endless stream of new ones.
struct Load {
    held: Vec<(Proto, Connection)>,
    traffic: Vec<Traffic>,
}

impl Load {
    fn start(client: &Pod) -> Result<Self> {
        let mut load = Self {
            held: Vec::new(),
            traffic: Vec::new(),
        };
        for (proto, to) in [(Tcp, VIP), (Udp, VIP), (Tcp, VIP6), (Udp, VIP6)] {
            for _ in 0..10 {
                load.held.push((proto, client.hold(proto, to)?));
            }
            let pause = Duration::from_millis(1);
            load.traffic
                .push(client.start_traffic(proto, to, 1, pause)?);
        }
        Ok(load)
    }

    fn stop(self, node: &Node) -> Result<()> {
        self.stop_after(node, |_| None)
    }

    /// The same, where held connections may have failed with this errno.
    fn stop_after(self, node: &Node, errno: impl Fn(Proto) -> Option<&'static str>) -> Result<()> {
        for traffic in self.traffic {
            eventually(node, || {
                let tally = traffic.peek()?;
                ensure!(tally.connects() > 100, "{tally:?}");
                Ok(())
            })?;
            all_answered(&traffic.stop()?)?;
        }
        for (proto, connection) in &self.held {
            let attempt = connection.ping()?;
            let failed = attempt.failure.as_ref().map(|failure| &*failure.errno);
            assert_eq!(failed, errno(*proto), "{attempt:?}");
            if failed.is_some() {
                continue;
            }
            // After so many connects an old TCP socket may show its backend.
            let peer = attempt.peer.context("no peer")?;
            let is_vip = attempt.peer == connection.opened().peer;
            assert!(is_vip || peer.port() == 8080, "{attempt:?}");
        }
        Ok(())
    }
}

fn with_two_backends() -> Result<(World, [Pod; 2], Pod)> {
    let mut world = World::single()?;
    let backends = world.backends(0, ["a", "b"])?;
    let client = world.node(0)?.pod("client")?;
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10").cluster_ip("fd00:96::10");
    web.port(80, 8080).udp_port(80, 8080).endpoints(&backends);
    Ok((world, backends, client))
}

fn restart(node: &Node) -> Result<yurt_net_tests::lab::Agent> {
    let agent = node.start_agent(&[])?;
    node.wait_ready()?;
    Ok(agent)
}

#[test]
fn killing_and_starting_the_agent_under_load_fails_no_connect_and_writes_nothing() -> Result<()> {
    let (mut world, _backends, client) = with_two_backends()?;
    let mut agent = world.start(0, &[])?;
    let node = world.node(0)?;
    let before = kernel::pins(&node.bpffs().join("yurt-net"))?;
    assert!(before.len() >= 8 + 6 + 4, "{before:?}");
    let load = Load::start(&client)?;
    for _ in 0..5 {
        agent.kill9()?;
        assert_eq!(kernel::pins(&node.bpffs().join("yurt-net"))?, before);
        assert_eq!(who_answers(&client, VIP)?, names(["a", "b"]));
        agent = restart(node)?;
        assert_eq!(kernel::pins(&node.bpffs().join("yurt-net"))?, before);
        let status = status(node)?;
        assert_eq!(status["adopted"], true, "{status}");
        assert_eq!(status["lastWrites"], 0, "{status}");
    }
    load.stop(node)
}

#[test]
fn terminating_the_agent_ends_it_with_zero_and_detaches_nothing() -> Result<()> {
    let (mut world, _backends, client) = with_two_backends()?;
    let agent = world.start(0, &[])?;
    let node = world.node(0)?;
    let before = kernel::pins(&node.bpffs().join("yurt-net"))?;
    let load = Load::start(&client)?;
    let ended = agent.terminate()?;
    assert_eq!(ended.code(), Some(0), "{ended}");
    assert_eq!(kernel::pins(&node.bpffs().join("yurt-net"))?, before);
    assert_eq!(who_answers(&client, VIP)?, names(["a", "b"]));
    restart(node)?;
    assert_eq!(kernel::pins(&node.bpffs().join("yurt-net"))?, before);
    load.stop(node)
}

#[test]
fn what_has_changed_while_the_agent_was_dead_is_in_force_when_it_is_ready() -> Result<()> {
    let (mut world, [a, b], client) = with_two_backends()?;
    let agent = world.start(0, &[])?;
    let to_a = client.hold(Tcp, VIP)?;
    agent.kill9()?;
    world.manifests.service("web").endpoints([&b]);
    world
        .manifests
        .service("new")
        .cluster_ip("10.96.0.11")
        .port(80, 8080)
        .endpoints([&a]);
    world.write()?;
    assert_eq!(who_answers(&client, VIP)?, names(["a", "b"]));
    restart(world.node(0)?)?;
    assert_eq!(who_answers(&client, VIP)?, names(["b"]));
    assert_eq!(who_answers(&client, "10.96.0.11:80")?, names(["a"]));
    assert_eq!(to_a.ping()?.failure, None);
    Ok(())
}

#[test]
fn an_agent_with_other_map_sizes_takes_over_without_a_failed_connect() -> Result<()> {
    let (mut world, _backends, client) = with_two_backends()?;
    let agent = world.start(0, &[])?;
    let node = world.node(0)?;
    let load = Load::start(&client)?;
    agent.terminate()?;
    let _agent = node.start_agent(&["--max-services", "100", "--max-slots4", "1000"])?;
    node.wait_ready()?;
    assert_eq!(status(node)?["adopted"], false);
    assert_eq!(who_answers(&client, VIP)?, names(["a", "b"]));
    load.stop(node)
}

#[test]
fn endpoints_that_flap_a_hundred_times_under_load_fail_no_connect() -> Result<()> {
    let mut world = World::single()?;
    let backends = world.backends(0, ["a", "b", "c"])?;
    let node = world.node(0)?;
    let (client, judge) = (node.pod("client")?, node.pod("judge")?);
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10").cluster_ip("fd00:96::10");
    web.port(80, 8080).udp_port(80, 8080).endpoints(&backends);
    let _agent = world.start(0, &[])?;
    let load = Load::start(&client)?;
    for withdrawn in backends.iter().cycle().take(100) {
        let left = backends.iter().filter(|pod| pod.name() != withdrawn.name());
        world.manifests.service("web").endpoints(left);
        world.apply()?;
        for to in [VIP, VIP6] {
            let tally = judge.connect_many(Tcp, to, 10)?;
            all_answered(&tally)?;
            assert!(!tally.answers.contains_key(withdrawn.name()), "{tally:?}");
        }
    }
    // Each of the backends went once, and took its connected UDP sockets along.
    load.stop_after(world.node(0)?, |proto| match proto {
        Tcp => None,
        Udp => Some("EDESTADDRREQ"),
    })
}

/// They are megabytes, and parsing them takes twice the memory of a small node's agent.
#[test]
fn a_start_does_not_read_the_kernels_types() -> Result<()> {
    let (mut world, _backends, _client) = with_two_backends()?;
    let agent = world.start(0, &[])?;
    let types = fs::metadata("/sys/kernel/btf/vmlinux").context("the kernel's types")?;
    let io = fs::read_to_string(format!("/proc/{}/io", agent.pid()))?;
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    let read: u64 = read.context("no rchar")?.parse()?;
    assert!(read < types.len(), "{read} bytes of {}", types.len());
    Ok(())
}
