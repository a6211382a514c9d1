//! Pods that bypass their sockets: what they dial leaves them as packets, and is served at their devices.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Agent;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;

use crate::capture::Capture;
use crate::monitor::keep;
use crate::outside::Stage;
use crate::world::World;
use crate::world::all_answered;
use crate::world::explain;
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

/// A node whose sockets are served, two of its Pods, and a Service whose endpoint is outside its closure.
struct Asking {
    inside: Inside,
    beside: Pod,
    foreign: [IpAddr; 2],
}

const CLOSED: [&str; 2] = ["10.96.0.66:80", "[fd00:96::66]:80"];
const OPEN: [&str; 2] = ["10.96.0.10:80", "[fd00:96::10]:80"];

impl Asking {
    fn new() -> Result<Self> {
        let mut inside = Inside::new()?;
        let beside = inside.stage.world.node(0)?.pod("beside")?;
        let near = inside.stage.near.clone();
        inside.stage.lead_to(&[&near]);
        let world = &mut inside.stage.world;
        let foreign = world.backend(2, "foreign")?;
        let closed = world.manifests.service("closed");
        closed.cluster_ip("10.96.0.66").cluster_ip("fd00:96::66");
        closed.port(80, 8080).udp_port(80, 8080);
        closed.topology_keys(POOL).endpoints([&foreign]);
        keep(world.node(0)?, &inside.pod)?;
        let foreign = [foreign.ip4().into(), foreign.ip6().into()];
        Ok(Self {
            inside,
            beside,
            foreign,
        })
    }

    /// Has the cloud say this of the Pod's sockets.
    fn ask(&self, value: Option<&str>) -> Result<()> {
        let annotations = value.map_or_else(String::new, |value| {
            format!("  annotations:\n    yurt-net.openyurt.io/socket-lb: {value:?}\n")
        });
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: shop\n  name: dialler\n{annotations}\
             spec:\n  nodeName: edge-1\n"
        );
        let place = self.inside.stage.world.node(0)?.manifests_dir();
        // A dotfile is no manifest.
        fs::write(place.join(".pod.new"), text)?;
        fs::rename(place.join(".pod.new"), place.join("pod.yaml"))?;
        Ok(())
    }

    fn wait(&self, left_alone: &[&str]) -> Result<()> {
        let node = self.inside.stage.world.node(0)?;
        node.wait_for_status("the right sockets are left alone", |status| {
            status.clients.left_alone == left_alone
        })?;
        Ok(())
    }

    /// How many flows begin at devices while this Pod reaches what is open, and is refused what is closed.
    fn flows(&self, pod: &Pod) -> Result<u64> {
        let before = self.inside.stage.count("new_flow")?;
        self.works(pod)?;
        Ok(self.inside.stage.count("new_flow")? - before)
    }

    fn works(&self, pod: &Pod) -> Result<()> {
        let mut capture = Capture::start(self.inside.stage.world.node(0)?)?;
        for proto in [Tcp, Udp] {
            for to in OPEN {
                let tally = pod.connect_many(proto, to, 1)?;
                all_answered(&tally)?;
                assert_eq!(tally.answers.into_keys().collect::<Vec<_>>(), ["near"]);
            }
            for to in CLOSED {
                let attempt = pod.attempt(proto, to)?;
                assert_eq!(attempt.errno(), Some("ECONNREFUSED"), "{proto:?} {to}");
            }
        }
        let mut seen = capture.destinations()?;
        seen.retain(|to| self.foreign.contains(to));
        assert_eq!(seen, [] as [IpAddr; 0]);
        Ok(())
    }
}

#[test]
fn a_pod_that_asks_for_it_is_served_at_its_device_and_no_other_pod_is() -> Result<()> {
    let mut asking = Asking::new()?;
    asking.ask(Some("off"))?;
    let flags = ["--packet-path=on"];
    let agent = asking.inside.stage.world.start(0, &flags)?;
    asking.wait(&["shop/dialler"])?;
    let (pod, beside) = (asking.inside.pod.clone(), asking.beside.clone());
    assert_eq!(asking.flows(&pod)?, 4);
    assert_eq!(asking.flows(&beside)?, 0);
    let node = asking.inside.stage.world.node(0)?.clone();
    let said = explain(&node, &pod.ip4().to_string(), "10.96.0.10:80/TCP")?;
    let reason = said["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("sockets are left alone"), "{said}");
    let shown = node.yurt_net(&["status"])?;
    let shown = String::from_utf8(shown.stdout)?;
    ensure!(
        shown.contains("left alone    the sockets of shop/dialler"),
        "{shown}"
    );

    // Without an agent, and from the first moment of the next one.
    let before = asking.inside.stage.count("new_flow")?;
    agent.kill9()?;
    asking.works(&pod)?;
    let agent = asking.inside.stage.world.start(0, &flags)?;
    asking.works(&pod)?;
    asking.wait(&["shop/dialler"])?;
    node.wait_for_status("Pods are served", |status| {
        let packets = status.packet_path.as_ref();
        packets.is_some_and(|packets| packets.pods == 3)
    })?;
    assert_eq!(asking.inside.stage.count("new_flow")? - before, 8);
    assert_eq!(asking.flows(&pod)?, 4);

    // What is not understood is told, and gives nothing.
    asking.ask(Some("on"))?;
    asking.wait(&[])?;
    let status = node.status()?;
    let alarms = &status.retention.alarms;
    ensure!(
        alarms.iter().any(|alarm| alarm.contains("is not \"off\"")),
        "{alarms:?}"
    );
    assert_eq!(asking.flows(&pod)?, 0);
    asking.ask(Some("off"))?;
    asking.wait(&["shop/dialler"])?;
    assert_eq!(asking.flows(&pod)?, 4);
    asking.ask(None)?;
    asking.wait(&[])?;
    assert_eq!(asking.flows(&pod)?, 0);
    drop(agent);
    Ok(())
}

#[test]
fn a_pod_that_asks_for_it_where_no_packets_are_served_is_served_at_its_sockets() -> Result<()> {
    let mut asking = Asking::new()?;
    asking.ask(Some("off"))?;
    let agent = asking.inside.stage.world.start(0, &["--packet-path=on"])?;
    asking.wait(&["shop/dialler"])?;
    agent.kill9()?;
    let _agent = asking.inside.stage.world.start(0, &[])?;
    let pod = asking.inside.pod.clone();
    asking.works(&pod)?;
    asking.wait(&[])?;
    let node = asking.inside.stage.world.node(0)?;
    node.wait_for_status("it says why", |status| {
        let mut alarms = status.retention.alarms.iter();
        alarms.any(|alarm| alarm.contains("shop/dialler") && alarm.contains("--packet-path=on"))
    })?;
    asking.works(&pod)
}
