//! Pods that bypass their sockets: what they dial leaves them as packets, and is served at their devices.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Agent;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;

use crate::capture::Capture;
use crate::outside::Stage;
use crate::world::World;
use crate::world::all_answered;
use crate::world::names;

const ON: &[&str] = &["--packet-path=on", "--socket-lb=host"];
const POOL: &str = "openyurt.io/nodepool";

/// The stage, and a Pod of the first node that dials.
struct Inside {
    pod: Pod,
    stage: Stage,
}

impl Inside {
    fn new() -> Result<Self> {
        let stage = Stage::new()?;
        let pod = stage.world.node(0)?.pod("dialler")?;
        Ok(Self { pod, stage })
    }

    fn start(&mut self, backends: &[&Pod]) -> Result<Agent> {
        let agent = self.stage.start_with(backends, &["--socket-lb=host"])?;
        let pods = 2;
        let node = self.stage.world.node(0)?;
        node.wait_for_status("Pods are served", |status| {
            let packets = status.packet_path.as_ref();
            packets.is_some_and(|packets| packets.pods == pods)
        })?;
        Ok(agent)
    }

    /// All kinds of addresses, of both families.
    fn frontends(&self) -> Result<Vec<String>> {
        let mut frontends = self.stage.frontends()?;
        frontends.extend(["10.96.0.10:80", "[fd00:96::10]:80"].map(str::to_owned));
        Ok(frontends)
    }
}

#[test]
fn a_pod_without_sockets_reaches_backends_here_and_elsewhere_at_every_frontend() -> Result<()> {
    let mut inside = Inside::new()?;
    let (near, far) = (inside.stage.near.clone(), inside.stage.far.clone());
    let agent = inside.start(&[&near, &far])?;
    let mut held = Vec::new();
    for to in inside.frontends()? {
        for proto in [Tcp, Udp] {
            let tally = inside.pod.connect_many(proto, &to, 16)?;
            all_answered(&tally)?;
            let who: BTreeSet<String> = tally.answers.into_keys().collect();
            assert_eq!(who, names(["near", "far"]), "{proto:?} {to}");
        }
        held.push((inside.pod.hold(Tcp, &to)?, to));
    }
    ensure!(inside.stage.count("new_flow")? > 0 && inside.stage.count("to_client")? > 0);
    assert_eq!(inside.stage.count("drop_no_port")?, 0);
    // A backend elsewhere sees the Pod itself.
    let flows = inside
        .stage
        .world
        .node(0)?
        .yurt_net(&["flows", "-o", "json"])?;
    let flows = crate::world::json(&flows)?;
    for flow in flows["flows"].as_array().into_iter().flatten() {
        ensure!(flow["masquerade"].is_null(), "{flow}");
    }
    // Without an agent, what is up goes on, and more begins.
    agent.kill9()?;
    for (flow, to) in &held {
        ensure!(flow.ping()?.answer == flow.opened().answer, "{to}");
        all_answered(&inside.pod.connect_many(Udp, to, 4)?)?;
        all_answered(&inside.pod.connect_many(Tcp, to, 4)?)?;
    }
    Ok(())
}

#[test]
fn a_pod_that_serves_itself_reaches_itself_through_its_service() -> Result<()> {
    let mut inside = Inside::new()?;
    let pod = inside.pod.clone();
    pod.serve_tcp(8080)?.serve_udp(8080)?;
    let _agent = inside.start(&[&pod])?;
    for to in inside.frontends()? {
        for proto in [Tcp, Udp] {
            let tally = pod.connect_many(proto, &to, 8)?;
            all_answered(&tally)?;
            assert_eq!(tally.answers.len(), 1, "{tally:?}");
        }
        let held = pod.hold(Tcp, &to)?;
        for _ in 0..3 {
            assert_eq!(held.ping()?.answer.as_deref(), Some("dialler"), "{to}");
        }
    }
    Ok(())
}

#[test]
fn a_pod_is_refused_at_once_where_nobody_may_answer_and_nothing_leaves_the_pool() -> Result<()> {
    let mut world = World::new(&[("edge-1", "hangzhou"), ("edge-2", "beijing")])?;
    let foreign = world.backend(1, "foreign")?;
    let pod = world.node(0)?.pod("dialler")?;
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10").cluster_ip("fd00:96::10");
    web.port(80, 8080).udp_port(80, 8080).topology_keys(POOL);
    web.endpoints([&foreign]);
    let _agent = world.start(0, ON)?;
    world
        .node(0)?
        .wait_for_status("Pods are served", |status| {
            let packets = status.packet_path.as_ref();
            packets.is_some_and(|packets| packets.pods == 1)
        })?;
    let mut capture = Capture::start(world.node(0)?)?;
    for to in ["10.96.0.10:80", "[fd00:96::10]:80"] {
        for proto in [Tcp, Udp] {
            let attempt = pod.attempt(proto, to)?;
            assert_eq!(attempt.errno(), Some("ECONNREFUSED"), "{proto:?} {to}");
        }
    }
    let there: [IpAddr; 2] = [foreign.ip4().into(), foreign.ip6().into()];
    let mut seen = capture.destinations()?;
    seen.retain(|to| there.contains(to));
    assert_eq!(seen, [] as [IpAddr; 0]);
    // Open again, it is reached: what was captured could have been there.
    world.manifests.service("web").topology_keys("");
    world.apply()?;
    assert_eq!(pod.get("10.96.0.10:80")?, "foreign");
    ensure!(capture.destinations()?.contains(&there[0]));
    Ok(())
}
