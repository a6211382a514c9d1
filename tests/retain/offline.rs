//! openyurt#2810: without the cloud a node reboots, all of its Pods get new addresses, and nobody can tell
//! EndpointSlices. The ledger knows, so the node's Services go on; once the cloud is back it is right again, and nobody
//! notices.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use yurt_net_tests::apiserver::{HubMode, Resource, objects};
use yurt_net_tests::lab::{self, Lab};

use yurt_net_tests::runtime::{Network, Node, Running, addresses, pod};

pub(crate) const NODE: &str = "edge-1";
pub(crate) const WEB: (&str, u16) = ("10.96.0.10", 80);
const DNS: (&str, u16) = ("10.96.0.53", 53);
const PATIENCE: Duration = Duration::from_secs(60);

/// A Service of the Pod `<name>-0`, and the slice that the cloud has of it.
pub(crate) fn service(
    name: &str,
    vip: (&str, u16),
    protocol: &str,
    pod: &str,
) -> Result<[Value; 2]> {
    let mut endpoint = objects::endpoint(pod.parse()?, NODE);
    endpoint["targetRef"] = json!({"kind": "Pod", "name": format!("{name}-0")});
    let mut service = objects::service(name, vip.0.parse()?, vip.1);
    let mut slice = objects::slice(&format!("{name}-1"), name, 8080, [endpoint]);
    service["spec"]["ports"][0]["protocol"] = json!(protocol);
    slice["ports"][0]["protocol"] = json!(protocol);
    for object in [&mut service, &mut slice] {
        object["metadata"]["namespace"] = json!("shop");
    }
    Ok([service, slice])
}

/// What a process of the node gets from a Service.
pub(crate) fn ask(
    edge: &lab::Node,
    transport: &str,
    (address, port): (&str, u16),
) -> Result<String> {
    let script =
        format!("exec 3<>/dev/{transport}/{address}/{port} && echo q >&3 && head -c 5 <&3");
    let output = edge
        .host()?
        .output("timeout", &["2", "bash", "-c", &script])?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What `explain` says of a client and the Service web.
pub(crate) fn explained(edge: &lab::Node) -> Result<String> {
    let to = "10.96.0.10:80/TCP";
    let output = edge.yurt_net(&["explain", "--from", "10.1.0.250", "--to", to])?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn answers(edge: &lab::Node) -> Result<[String; 2]> {
    Ok([ask(edge, "tcp", WEB)?, ask(edge, "udp", DNS)?])
}

#[track_caller]
fn wait_for_answers(edge: &lab::Node) -> Result<()> {
    let started = Instant::now();
    loop {
        let answers = answers(edge)?;
        if answers == ["web-0", "dns-0"] {
            return Ok(());
        }
        ensure!(
            started.elapsed() < PATIENCE,
            "{answers:?}\n{:#?}\n{}",
            edge.status(),
            edge.agent_log()
        );
    }
}

/// Pods whose addresses are host-local's: new ones each time.
fn plugins(node: &Node) -> Vec<Value> {
    node.bridged(json!({
        "type": "host-local", "dataDir": node.path("networks"),
        "ranges": [[{"subnet": "10.1.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
    }))
}

pub(crate) fn add(
    network: &mut Network<'_>,
    name: &'static str,
    container: &str,
) -> Result<(Running, String)> {
    let pod = pod(name, container);
    let result = network.add(&pod.sandbox);
    let running = Running::start(pod, name)?;
    Ok((running, addresses(&result).remove(0)))
}

#[test]
fn after_an_offline_reboot_services_lead_to_where_their_pods_are() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let (cloud, hub) = edge.start_cloud_and_hub()?;
    let source = format!("yurthub:{}", hub.http().url());

    let mut network = Network::new(&node, "1.0.0", plugins(&node));
    let (web, web_at) = add(&mut network, "web-0", "c1")?;
    let (dns, dns_at) = add(&mut network, "dns-0", "c2")?;
    cloud.put_all(service("web", WEB, "TCP", &web_at)?)?;
    cloud.put_all(service("dns", DNS, "UDP", &dns_at)?)?;
    let agent = edge.start_agent_from(&source, NODE, &[])?;
    edge.wait_ready()?;
    wait_for_answers(&edge)?;
    agent.terminate()?;

    // The uplink is cut, and the power.
    hub.set_mode(HubMode::Offline);
    drop((web, dns));
    edge.netns().ip("link del cni0\n")?;
    edge.lose_pins()?;
    std::fs::remove_dir_all(edge.run_dir())?;
    edge.netns().run(|| hub.restart())??;
    let agent = edge.start_agent_from(&source, NODE, &[])?;
    edge.wait_for_status("no Pod runs yet", |status| {
        status.ready && status.retention.endpoints_away == 2
    })?;
    ensure!(answers(&edge)? == ["", ""]);

    let (_web, web_now) = add(&mut network, "web-0", "c3")?;
    let (_dns, dns_now) = add(&mut network, "dns-0", "c4")?;
    ensure!(
        web_now != web_at && dns_now != dns_at,
        "{web_now} {dns_now}"
    );
    wait_for_answers(&edge)?;
    let status = edge.status()?;
    ensure!(!status.source.is_fresh && status.retention.endpoints_moved == 2);
    let explained = explained(&edge)?;
    ensure!(
        explained.contains(&format!("Pod shop/web-0 is now at {web_now}")),
        "{explained}"
    );

    // The agent dies and comes back: it knows no less, and takes its time, because the maps serve on.
    agent.kill9()?;
    let _agent = edge.start_agent_from(&source, NODE, &[])?;
    edge.wait_for_status("the agent is ready", |status| status.ready)?;
    wait_for_answers(&edge)?;

    // The cloud is back, and has heard of the new addresses by then.
    cloud.put_all(service("web", WEB, "TCP", &web_now)?)?;
    cloud.put_all(service("dns", DNS, "UDP", &dns_now)?)?;
    hub.set_mode(HubMode::Online);
    let started = Instant::now();
    loop {
        ensure!(
            answers(&edge)? == ["web-0", "dns-0"],
            "a client has noticed"
        );
        cloud.bookmark(Resource::Nodes);
        let status = edge.status()?;
        if status.source.is_fresh {
            ensure!(status.retention.endpoints_moved == 0);
            break;
        }
        ensure!(started.elapsed() < PATIENCE, "{:#?}", status.source);
    }
    ensure!(
        answers(&edge)? == ["web-0", "dns-0"],
        "a client has noticed"
    );
    Ok(())
}

#[test]
fn while_the_cloud_is_away_an_endpoint_goes_and_comes_with_its_sandbox() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let (cloud, hub) = edge.start_cloud_and_hub()?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let (first, at) = add(&mut network, "web-0", "c1")?;
    let own: IpAddr = at.parse().context("the Pod has an address")?;
    cloud.put_all(service("web", WEB, "TCP", &at)?)?;
    let _agent = edge.start_agent_from(&format!("yurthub:{}", hub.http().url()), NODE, &[])?;
    edge.wait_ready()?;
    hub.set_mode(HubMode::Offline);
    ensure!(ask(&edge, "tcp", WEB)? == "web-0");
    network.del(&first.pod.sandbox);
    drop(first);
    edge.wait_for_status("it is gone", |status| status.retention.endpoints_away == 1)?;
    ensure!(ask(&edge, "tcp", WEB)?.is_empty());
    let (_second, again) = add(&mut network, "web-0", "c2")?;
    ensure!(again.parse() == Ok(own), "{again}");
    edge.wait_for_status("it is back", |status| status.retention.endpoints_away == 0)?;
    ensure!(ask(&edge, "tcp", WEB)? == "web-0");
    Ok(())
}
