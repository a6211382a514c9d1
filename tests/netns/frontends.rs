//! Every address at which clients reach a Service.

use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Agent;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;

use crate::world::World;
use crate::world::mapped;

const NODE_PORT: u16 = 30080;

/// A node, a Service of every kind, and its clients.
struct Stage {
    pod: Pod,
    host: Pod,
    _agent: Agent,
    world: World,
}

impl Stage {
    fn new() -> Result<Self> {
        let mut world = World::single()?;
        let backends = world.backends(0, ["a", "b"])?;
        let web = world.manifests.service("web");
        web.cluster_ip("10.96.0.10").cluster_ip("fd00:96::10");
        web.external_ip("198.51.100.10")
            .external_ip("2001:db8:100::10");
        web.load_balancer_ip("203.0.113.10")
            .load_balancer_ip("2001:db8:113::10");
        web.node_port(Tcp, 80, 8080, NODE_PORT)
            .node_port(Udp, 80, 8080, NODE_PORT);
        web.endpoints(&backends);
        let agent = world.start(0, &[])?;
        let node = world.node(0)?;
        Ok(Self {
            pod: node.pod("client")?,
            host: node.host()?,
            _agent: agent,
            world,
        })
    }
}

/// Answered by a backend, and every call shows the address that was dialled.
fn is_served(client: &Pod, proto: Proto, to: &str) -> Result<()> {
    let attempt = client.attempt(proto, to)?;
    let who = client.name();
    ensure!(
        matches!(attempt.answer(), Some("a" | "b")),
        "{who} {proto:?} {to}: {attempt:?}"
    );
    ensure!(
        attempt.peer == Some(to.parse()?),
        "{who} {proto:?} {to}: {attempt:?}"
    );
    if proto == Udp {
        for reply in client.datagrams(&[to, to, to], false)? {
            let is_answered = matches!(reply.answer.as_deref(), Some("a" | "b"));
            ensure!(
                is_answered && reply.from == Some(reply.to),
                "{who} {to}: {reply:?}"
            );
        }
    }
    Ok(())
}

fn are_served(clients: &[&Pod], addresses: &[&str]) -> Result<()> {
    for client in clients {
        for to in addresses {
            for proto in [Tcp, Udp] {
                is_served(client, proto, to)?;
                if to.parse::<std::net::SocketAddr>()?.is_ipv4() {
                    is_served(client, proto, &mapped(to)?)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn pods_and_host_processes_reach_the_cluster_ip_external_ip_and_load_balancer_ip() -> Result<()> {
    let stage = Stage::new()?;
    are_served(
        &[&stage.pod, &stage.host],
        &[
            "10.96.0.10:80",
            "[fd00:96::10]:80",
            "198.51.100.10:80",
            "[2001:db8:100::10]:80",
            "203.0.113.10:80",
            "[2001:db8:113::10]:80",
        ],
    )
}

#[test]
fn pods_and_host_processes_reach_the_node_port_at_the_nodes_own_address() -> Result<()> {
    let stage = Stage::new()?;
    let node = stage.world.node(0)?;
    let v4 = format!("{}:{NODE_PORT}", node.ip4());
    let v6 = format!("[{}]:{NODE_PORT}", node.ip6());
    are_served(&[&stage.pod, &stage.host], &[&v4, &v6])
}

#[test]
fn host_processes_reach_the_node_port_on_all_of_loopback() -> Result<()> {
    let stage = Stage::new()?;
    are_served(
        &[&stage.host],
        &["127.0.0.1:30080", "127.1.2.3:30080", "[::1]:30080"],
    )
}

#[test]
fn a_pods_own_loopback_is_the_pods() -> Result<()> {
    let stage = Stage::new()?;
    let loopback = ["127.0.0.1:30080", "[::1]:30080"];
    for to in loopback {
        let attempt = stage.pod.attempt(Tcp, to)?;
        assert_eq!(attempt.errno(), Some("ECONNREFUSED"), "{attempt:?}");
    }
    stage.pod.serve_tcp(NODE_PORT)?.serve_udp(NODE_PORT)?;
    for to in loopback {
        for proto in [Tcp, Udp] {
            let attempt = stage.pod.attempt(proto, to)?;
            assert_eq!(attempt.answer(), Some("client"), "{attempt:?}");
        }
    }
    Ok(())
}

#[test]
fn a_pod_that_is_its_services_only_endpoint_reaches_itself() -> Result<()> {
    let mut world = World::single()?;
    let alone = world.backend(0, "alone")?;
    world
        .manifests
        .service("web")
        .cluster_ip("10.96.0.10")
        .port(80, 8080)
        .endpoints([&alone]);
    let _agent = world.start(0, &[])?;
    assert_eq!(alone.get("10.96.0.10:80")?, "alone");
    Ok(())
}
