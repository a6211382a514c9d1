//! The guard's end: it is taken off where it is switched off or where nobody keeps its maps, and nowhere else.

use std::fs;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use yurt_net::observe::status::Status;
use yurt_net_tests::lab::{self, Lab, Netns};
use yurt_net_tests::runtime::{Answer, Network, Node, Sandbox, addresses, ip, pod};

use crate::agent::{NODE, PATIENCE, checked, found, shown, spoof};

#[test]
fn a_guard_that_is_switched_off_is_on_no_device() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let agent = edge.start_agent(&[])?;
    edge.wait_ready()?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let web = pod("web-0", "c1");
    network.add(&web.sandbox);
    let guarded = |status: &Status| shown(status, "web-0").is_some_and(|pod| pod.device.is_some());
    edge.wait_for_status("the Pod is guarded", guarded)?;
    agent.kill9()?;
    let agent = edge.start_agent(&["--guard=off"])?;
    edge.wait_ready()?;
    let later = pod("web-1", "c2");
    network.add(&later.sandbox);
    let status = edge.wait_for_status("both Pods are shown", |status| {
        shown(status, "web-0").is_some() && shown(status, "web-1").is_some()
    })?;
    ensure!(status.retention.guard == "off" && !guarded(&status));
    agent.kill9()?;
    // Neither was looked at meanwhile.
    spoof(&web.netns, "10.1.0.99")?;
    spoof(&later.netns, "10.1.0.98")?;
    let _agent = edge.start_agent(&[])?;
    edge.wait_for_status("the Pods are guarded again", |status| {
        guarded(status) && shown(status, "web-1").is_some_and(|pod| pod.device.is_some())
    })?;
    ensure!(found(&edge, "web-0")? == (0, 0) && found(&edge, "web-1")? == (0, 0));
    Ok(())
}

/// Datagrams from an address that the Pod has given itself come to the gateway, or do not.
fn spoofs(edge: &lab::Node, netns: &Netns, address: &str, is_heard: bool) -> Result<()> {
    let gateway = edge.netns().run(|| UdpSocket::bind("10.1.0.1:9"))??;
    // What would come has come by then, nearly always.
    gateway.set_read_timeout(Some(Duration::from_millis(300)))?;
    let deadline = Instant::now() + PATIENCE;
    // The first ones may go with a neighbour entry of a Pod whose ARP was dropped a moment ago.
    loop {
        spoof(netns, address)?;
        let heard = gateway.recv(&mut [0]);
        match (heard.is_ok(), is_heard) {
            (true, true) | (false, false) => return Ok(()),
            (true, false) => bail!("{address} is heard"),
            (false, true) => ensure!(Instant::now() < deadline, "{address}: {heard:?}"),
        }
    }
}

#[test]
fn a_guard_whose_pins_another_bpffs_hides_drops_nothing_any_more() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let enforce = ["--guard=enforce", "--drift-interval=1"];
    let agent = edge.start_agent(&enforce)?;
    edge.wait_ready()?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let web = pod("web-0", "c1");
    network.add(&web.sandbox);
    let guarded = |status: &Status| shown(status, "web-0").is_some_and(|pod| pod.device.is_some());
    edge.wait_for_status("the Pod is guarded", guarded)?;
    spoofs(&edge, &web.netns, "10.1.0.90", false)?;
    agent.kill9()?;

    // Who finds no pins guards anew, and by its own maps alone.
    edge.hide_pins()?;
    let (outcome, detail) = checked(&edge, "pins")?.remove(0);
    ensure!(
        outcome == "warning" && detail.contains("yurt_guard_in on device"),
        "{detail}"
    );
    let agent = edge.start_agent(&["--guard=audit", "--drift-interval=1"])?;
    edge.wait_for_status("the Pod is guarded again", guarded)?;
    spoofs(&edge, &web.netns, "10.1.0.91", true)?;
    let (audited, dropped) = found(&edge, "web-0")?;
    ensure!(audited > 0 && dropped == 0, "{audited} {dropped}");
    ensure!(edge.status()?.retention.alarms.is_empty());
    ensure!(edge.agent_log().contains("yurt_guard_in on device"));
    ensure!(checked(&edge, "pins")?.is_empty());
    agent.kill9()?;

    // Who guards nobody takes it off as well, and so does the way back.
    let agent = edge.start_agent(&enforce)?;
    edge.wait_for_status("the Pod is guarded once more", |status| {
        guarded(status) && status.retention.guard == "enforce"
    })?;
    spoofs(&edge, &web.netns, "10.1.0.92", false)?;
    agent.kill9()?;
    edge.hide_pins()?;
    let agent = edge.start_agent(&["--guard=off"])?;
    edge.wait_ready()?;
    spoofs(&edge, &web.netns, "10.1.0.93", true)?;
    agent.kill9()?;
    let agent = edge.start_agent(&enforce)?;
    edge.wait_for_status("the Pod is guarded at last", guarded)?;
    spoofs(&edge, &web.netns, "10.1.0.94", false)?;
    agent.kill9()?;
    edge.hide_pins()?;
    let output = edge.yurt_net(&["cleanup"])?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{output:?}");
    ensure!(
        told.contains("findmnt") && told.contains("removed all"),
        "{told}"
    );
    spoofs(&edge, &web.netns, "10.1.0.95", true)?;
    let output = edge.yurt_net(&["cleanup"])?;
    ensure!(output.stdout == b"nothing to remove\n", "{output:?}");
    Ok(())
}

#[test]
fn pins_that_are_removed_leave_no_pod_unguarded_and_come_back() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let _agent = edge.start_agent(&["--guard", "enforce", "--drift-interval", "1"])?;
    edge.wait_ready()?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let web = pod("web-0", "c1");
    network.add(&web.sandbox);
    let is_guarded = |status: &Status| {
        let device = shown(status, "web-0").and_then(|pod| pod.device.as_ref());
        device.is_some() && status.retention.alarms.is_empty() && status.degraded.is_empty()
    };
    edge.wait_for_status("the Pod is guarded", is_guarded)?;
    let root = edge.bpffs().join("yurt-net");
    fs::remove_dir_all(&root)?;
    let (_, before) = found(&edge, "web-0")?;
    spoof(&web.netns, "10.1.0.99")?;
    let (audited, dropped) = found(&edge, "web-0")?;
    ensure!(
        dropped > before && audited == 0,
        "{dropped} dropped, {audited} went on"
    );
    edge.wait_for_status("all pins are back", |status| {
        let is_there =
            |name: &str| fs::read_dir(root.join(name)).is_ok_and(|mut d| d.next().is_some());
        is_guarded(status) && ["guard-v1", "tc", "links"].into_iter().all(is_there)
    })?;
    let (_, before) = found(&edge, "web-0")?;
    spoof(&web.netns, "10.1.0.98")?;
    edge.wait_for_status("another spoofed frame is dropped", |status| {
        shown(status, "web-0").is_some_and(|pod| pod.dropped > before)
    })?;
    Ok(())
}

/// A node whose agent has said that Pods are guarded, and is gone: there is nobody who would put anything right.
fn enforced(lab: &Lab) -> Result<(lab::Node, Node)> {
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let agent = edge.start_agent(&["--guard=enforce"])?;
    edge.wait_ready()?;
    agent.kill9()?;
    Ok((edge, node))
}

/// The part of an ADD that `yurt-cni` has, after a main plugin that has said this.
fn chained(node: &Node, sandbox: &Sandbox, previous: &Value) -> Answer {
    let mut config = node.chained();
    config["cniVersion"] = "1.0.0".into();
    config["name"] = "edge".into();
    config["prevResult"] = previous.clone();
    node.call("ADD", sandbox, &config)
}

/// A runtime that has given a sandbox up does not always end its ADD.
#[test]
fn a_sandbox_whose_add_ends_after_its_successors_is_refused_and_takes_nothing_from_it() -> Result<()>
{
    let lab = Lab::new()?;
    let (edge, node) = enforced(&lab)?;
    let bridge = node.bridged(node.ipam()).remove(0);
    let mut begun = Network::new(&node, "1.0.0", vec![bridge]);
    let (old, new) = (pod("web-0", "c1"), pod("web-0", "c2"));
    let previous = begun.add(&old.sandbox);
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let address = addresses(&network.add(&new.sandbox)).remove(0);
    ensure!(addresses(&previous)[0] == address, "{previous}");
    let macs = || [&old, &new].map(|pod| ip(&pod.netns, &["link", "show", "dev", "eth0"]));
    let before = macs();
    let answer = chained(&node, &old.sandbox, &previous);
    ensure!(
        answer.json["code"] == 102 && answer.stderr.is_empty(),
        "{answer:?}"
    );
    ensure!(macs() == before, "{before:?}");
    spoofs(&edge, &new.netns, &address, true)?;
    spoofs(&edge, &old.netns, &address, false)
}

#[test]
fn a_pod_whose_result_names_no_address_may_use_those_that_it_was_given() -> Result<()> {
    let lab = Lab::new()?;
    let (edge, node) = enforced(&lab)?;
    let bridge = node.bridged(node.ipam()).remove(0);
    let web = pod("web-0", "c1");
    let mut previous = Network::new(&node, "1.0.0", vec![bridge]).add(&web.sandbox);
    let address = addresses(&previous).remove(0);
    previous["ips"] = json!([]);
    let answer = chained(&node, &web.sandbox, &previous);
    ensure!(answer.is_ok && answer.stderr.is_empty(), "{answer:?}");
    spoofs(&edge, &web.netns, &address, true)?;
    spoofs(&edge, &web.netns, "10.1.0.99", false)
}

#[test]
fn a_pod_may_use_what_is_promised_to_it_and_no_other_pod_may() -> Result<()> {
    let lab = Lab::new()?;
    let (edge, node) = enforced(&lab)?;
    let ranges = |from: &str, to: &str| {
        let mut ipam = node.ipam();
        ipam["ranges"] = json!([[{"subnet": "10.1.0.0/24", "rangeStart": from, "rangeEnd": to}]]);
        node.bridged(ipam)
    };
    let mut network = Network::new(&node, "1.0.0", ranges("10.1.0.2", "10.1.0.9"));
    let before = pod("web-0", "c1");
    ensure!(addresses(&network.add(&before.sandbox)) == ["10.1.0.2"]);
    network.del(&before.sandbox);
    network.plugins = ranges("10.1.0.100", "10.1.0.109");
    let (web, other) = (pod("web-0", "c2"), pod("other-0", "c3"));
    ensure!(addresses(&network.add(&web.sandbox)) == ["10.1.0.100"]);
    network.add(&other.sandbox);
    spoofs(&edge, &web.netns, "10.1.0.2", true)?;
    spoofs(&edge, &other.netns, "10.1.0.2", false)
}
