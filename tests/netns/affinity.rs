//! Session affinity: a client stays with its endpoint, at whatever address it dials the Service port, until it has been
//! silent for the timeout or the endpoint may not take its traffic any more.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Agent;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;

use crate::world::PATIENCE;
use crate::world::World;
use crate::world::mapped;
use crate::world::names;
use crate::world::who_answers;

const VIP: &str = "10.96.0.10:80";
const NODE_PORT: u16 = 30080;
/// Eight, so that two choices that are free are seldom the same.
const BACKENDS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

struct Stage {
    backends: [Pod; 8],
    client: Pod,
    agent: Agent,
    world: World,
}

impl Stage {
    /// A Service with every kind of frontend, and an agent.
    fn new(seconds: u32) -> Result<Self> {
        let mut world = World::single()?;
        let backends = world.backends(0, BACKENDS)?;
        let client = world.node(0)?.pod("client")?;
        let web = world.manifests.service("web");
        web.cluster_ip("10.96.0.10").cluster_ip("fd00:96::10");
        web.external_ip("198.51.100.10")
            .load_balancer_ip("203.0.113.10");
        web.node_port(Tcp, 80, 8080, NODE_PORT).udp_port(53, 8080);
        web.endpoints(&backends).affinity(seconds);
        let agent = world.start(0, &[])?;
        Ok(Self {
            backends,
            client,
            agent,
            world,
        })
    }

    fn node_port(&self) -> Result<String> {
        Ok(format!("{}:{NODE_PORT}", self.world.node(0)?.ip4()))
    }

    /// The others of the backends.
    fn without(&self, name: &str) -> impl Iterator<Item = &Pod> {
        let name = name.to_owned();
        self.backends.iter().filter(move |pod| pod.name() != name)
    }
}

/// The one endpoint that answers.
fn stays_with(client: &Pod, to: &str) -> Result<String> {
    let who = who_answers(client, to)?;
    ensure!(who.len() == 1, "{} {to}: {who:?}", client.name());
    who.into_iter().next().context("nobody")
}

/// The one endpoint that answers the first of a few connects.
fn answers_once(client: &Pod, proto: Proto, to: &str) -> Result<String> {
    let attempt = client.attempt(proto, to)?;
    let answer = attempt.answer().map(str::to_owned);
    answer.with_context(|| format!("{to}: {attempt:?}"))
}

#[test]
fn a_client_stays_with_its_endpoint_at_every_frontend_of_the_service_port() -> Result<()> {
    let stage = Stage::new(600)?;
    let host = stage.world.node(0)?.host()?;
    let frontends = [
        VIP.to_owned(),
        mapped(VIP)?,
        "198.51.100.10:80".to_owned(),
        "203.0.113.10:80".to_owned(),
        stage.node_port()?,
    ];
    for client in [&stage.client, &host] {
        let who = stays_with(client, VIP)?;
        for to in &frontends {
            assert_eq!(stays_with(client, to)?, who, "{} {to}", client.name());
        }
    }
    // IPv6 endpoints are others.
    stays_with(&stage.client, "[fd00:96::10]:80")?;
    Ok(())
}

#[test]
fn clients_and_service_ports_have_a_memory_each() -> Result<()> {
    let stage = Stage::new(600)?;
    let node = stage.world.node(0)?;
    let clients: Vec<Pod> = (0..12)
        .map(|number| node.pod(&format!("client-{number}")))
        .collect::<Result<_>>()?;
    let mut of_tcp = BTreeSet::new();
    let mut has_two = false;
    for client in &clients {
        let who = stays_with(client, VIP)?;
        // Unconnected sockets, each new.
        let udp: BTreeSet<String> = (0..6)
            .map(|_| answers_once(client, Udp, "10.96.0.10:53"))
            .collect::<Result<_>>()?;
        assert_eq!(udp.len(), 1, "{udp:?}");
        has_two |= !udp.contains(&who);
        of_tcp.insert(who);
    }
    assert!(of_tcp.len() > 1, "{of_tcp:?}");
    assert!(has_two, "TCP and UDP share a memory");
    Ok(())
}

#[test]
fn the_memory_ends_the_timeout_after_the_last_new_connection_and_not_before() -> Result<()> {
    let stage = Stage::new(3)?;
    let mut last = Instant::now();
    let mut first = answers_once(&stage.client, Tcp, VIP)?;
    // Five seconds in all: each new connection starts the time anew.
    let (begun, mut kept) = (Instant::now(), 0);
    while kept < 5 {
        sleep(Duration::from_secs(1));
        let now = Instant::now();
        let who = answers_once(&stage.client, Tcp, VIP)?;
        kept += 1;
        // Nothing is said by a machine that has kept this process waiting for as long as that.
        if last.elapsed() >= Duration::from_secs(2) {
            ensure!(
                begun.elapsed() < PATIENCE,
                "never two connections in two seconds"
            );
            (first, kept) = (who, 0);
        } else {
            assert_eq!(who, first);
        }
        last = now;
    }
    // A connection that goes on is no new one.
    let held = stage.client.hold(Tcp, VIP)?;
    let first = held.opened().answer().context("nobody")?.to_owned();
    let mut later = BTreeSet::new();
    for _ in 0..4 {
        sleep(Duration::from_millis(3_100));
        let pong = held.ping()?;
        ensure!(pong.answer() == Some(&*first), "{pong:?}");
        later.insert(answers_once(&stage.client, Tcp, VIP)?);
    }
    // All four the first one again: once in 4,096 runs.
    assert_ne!(later, BTreeSet::from([first]));
    Ok(())
}

#[test]
fn an_endpoint_that_may_not_take_traffic_loses_its_clients_and_the_next_one_keeps_them()
-> Result<()> {
    let mut stage = Stage::new(600)?;
    let first = stays_with(&stage.client, VIP)?;
    let left: Vec<Pod> = stage.without(&first).cloned().collect();
    stage.world.manifests.service("web").endpoints(&left);
    stage.world.apply()?;
    let second = stays_with(&stage.client, VIP)?;
    assert_ne!(second, first);
    // Terminating is as gone, while others are ready; and who is back has no claim.
    let terminating = stage.backends.iter().find(|pod| pod.name() == second);
    let terminating = terminating.context("the second")?.clone();
    let others: Vec<Pod> = stage.without(&second).cloned().collect();
    let web = stage.world.manifests.service("web");
    web.endpoints(&others).terminating(&terminating);
    stage.world.apply()?;
    let third = stays_with(&stage.client, VIP)?;
    assert_ne!(third, second);
    let all = stage.backends.clone();
    stage.world.manifests.service("web").endpoints(&all);
    stage.world.apply()?;
    assert_eq!(stays_with(&stage.client, VIP)?, third);
    Ok(())
}

#[test]
fn affinity_is_switched_on_and_off_under_clients_that_are_there() -> Result<()> {
    let mut stage = Stage::new(0)?;
    assert!(who_answers(&stage.client, VIP)?.len() > 1);
    stage.world.manifests.service("web").affinity(600);
    stage.world.apply()?;
    stays_with(&stage.client, VIP)?;
    stage.world.manifests.service("web").affinity(0);
    stage.world.apply()?;
    assert!(who_answers(&stage.client, VIP)?.len() > 1);
    Ok(())
}

#[test]
fn clients_stay_where_they_are_when_the_agent_is_killed_and_when_maps_are_made_anew() -> Result<()>
{
    let mut stage = Stage::new(600)?;
    let who = stays_with(&stage.client, VIP)?;
    let agent = stage.world.restart(&stage.agent, 0, &[])?;
    assert_eq!(stays_with(&stage.client, VIP)?, who);
    // Another capacity is another set of maps, with other indices.
    let aaa = stage.world.manifests.service("aaa");
    aaa.cluster_ip("10.96.0.9").port(80, 8080);
    stage.world.restart(&agent, 0, &["--max-slots4", "4096"])?;
    assert_eq!(stays_with(&stage.client, VIP)?, who);
    Ok(())
}

#[test]
fn a_connect_without_affinity_goes_to_every_endpoint() -> Result<()> {
    let stage = Stage::new(0)?;
    let tally = stage.client.connect_many(Tcp, VIP, 200)?;
    let who: BTreeSet<String> = tally.answers.into_keys().collect();
    assert_eq!(who, names(BACKENDS));
    Ok(())
}
