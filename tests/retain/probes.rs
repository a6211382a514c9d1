//! openyurt#303: while the cloud is away, nobody hears of a readiness probe that fails. With `--probe-endpoints` the
//! agent asks itself.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use yurt_net_tests::apiserver::{FakeApiserver, HubMode, PodsServer, Resource, objects};
use yurt_net_tests::lab::{self, Lab};
use yurt_net_tests::runtime::{Network, Node, Running};

use crate::offline::{NODE, WEB, add, ask, explained, service};

/// Where Pods say that they are ready.
const READY: u16 = 8081;

/// A Pod that is ready while somebody listens on [`READY`].
fn pod(name: &str) -> Value {
    let mut pod = objects::pod(name, NODE);
    pod["metadata"]["namespace"] = json!("shop");
    pod["spec"]["containers"][0]["readinessProbe"] = json!({
        "tcpSocket": {"port": READY}, "periodSeconds": 1, "failureThreshold": 2,
    });
    pod
}

fn be_ready(pod: &Running) -> Result<TcpListener> {
    Ok(pod
        .pod
        .netns
        .run(|| TcpListener::bind(("0.0.0.0", READY)))??)
}

fn wait_for_failing(edge: &lab::Node, count: usize) -> Result<()> {
    edge.wait_for_status("so many endpoints fail", |status| {
        status.retention.endpoints_failing == count
    })?;
    Ok(())
}

/// Who answers, of enough connects that everybody would.
fn who_answers(edge: &lab::Node) -> Result<Vec<String>> {
    let answers = (0..16).map(|_| ask(edge, "tcp", WEB));
    let mut answers = answers.collect::<Result<Vec<_>>>()?;
    answers.sort();
    answers.dedup();
    Ok(answers)
}

#[test]
fn while_the_cloud_is_away_a_pod_that_is_not_ready_takes_no_traffic_and_is_back_when_it_is()
-> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let (cloud, hub) = edge.start_cloud_and_hub()?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let (web_0, at_0) = add(&mut network, "web-0", "c1")?;
    let (web_1, at_1) = add(&mut network, "web-1", "c2")?;
    let [web, mut slice] = service("web", WEB, "TCP", &at_0)?;
    let mut second = slice["endpoints"][0].clone();
    second["addresses"] = json!([at_1]);
    second["targetRef"]["name"] = json!("web-1");
    if let Some(endpoints) = slice["endpoints"].as_array_mut() {
        endpoints.push(second);
    }
    cloud.put_all([web, slice])?;
    let localhost = Ipv4Addr::LOCALHOST.into();
    let pods = edge.netns().run(|| PodsServer::start(localhost))??;
    pods.set(&[pod("web-0"), pod("web-1")]);
    let (mut ready_0, ready_1) = (Some(be_ready(&web_0)?), be_ready(&web_1)?);
    // No bookmark has come yet: what the hub says may be old.
    let source = format!("yurthub:{}", hub.http().url());
    let _agent = edge.start_agent_from(&source, NODE, &["--probe-endpoints"])?;
    edge.wait_ready()?;
    hub.set_mode(HubMode::Offline);
    ensure!(who_answers(&edge)? == ["web-0", "web-1"]);

    ready_0.take();
    wait_for_failing(&edge, 1)?;
    ensure!(who_answers(&edge)? == ["web-1"]);
    let explained = explained(&edge)?;
    let reason = format!("a TCP connect to Pod shop/web-0 at {at_0}:{READY}: ");
    ensure!(explained.contains(&reason), "{explained}");

    // Of two one stays, whatever is said of them.
    drop(ready_1);
    wait_for_failing(&edge, 2)?;
    ensure!(who_answers(&edge)?.len() == 1);
    ready_0 = Some(be_ready(&web_0)?);
    wait_for_failing(&edge, 1)?;
    ensure!(who_answers(&edge)? == ["web-0"]);

    // Without a link nobody is judged, and with it again everybody anew.
    edge.netns().ip("link set eth0 down\n")?;
    wait_for_failing(&edge, 0)?;
    ensure!(who_answers(&edge)? == ["web-0", "web-1"]);
    edge.netns()
        .ip("link set eth0 up\nroute add default dev eth0\n")?;
    wait_for_failing(&edge, 1)?;
    ensure!(who_answers(&edge)? == ["web-0"]);

    // The cloud is back, and its word counts.
    hub.set_mode(HubMode::Online);
    edge.wait_for_status("the source is fresh", |status| {
        cloud.bookmark(Resource::Nodes);
        status.source.is_fresh && status.retention.endpoints_failing == 0
    })?;
    ensure!(who_answers(&edge)? == ["web-0", "web-1"]);
    drop(ready_0);
    Ok(())
}

#[test]
fn while_the_source_is_fresh_nobody_is_asked() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let cloud = edge.netns().run(FakeApiserver::start)??;
    cloud.put(objects::node(NODE, None, edge.ip4().into()))?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let (web, at) = add(&mut network, "web-0", "c1")?;
    cloud.put_all(service("web", WEB, "TCP", &at)?)?;
    cloud.put(pod("web-0"))?;
    // Whoever asks is kept here: nobody accepts.
    let ready = be_ready(&web)?;
    ready.set_nonblocking(true)?;
    let source = format!("kube:{}", cloud.http().url());
    let _agent = edge.start_agent_from(&source, NODE, &["--probe-endpoints"])?;
    edge.wait_ready()?;
    let started = Instant::now();
    edge.wait_for_status("three periods are over, and it is fresh", |status| {
        status.source.is_fresh && started.elapsed() > Duration::from_secs(3)
    })?;
    ensure!(ready.accept().is_err(), "it was asked");
    Ok(())
}
