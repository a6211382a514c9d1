//! The node's own devices keep their addresses, whoever makes them anew, with the cloud and without.

use std::fs;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::process::Command;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use serde_json::Value;
use yurt_net_tests::lab::Agent;
use yurt_net_tests::lab::Lab;
use yurt_net_tests::lab::Netns;
use yurt_net_tests::lab::Node;

use crate::world::PATIENCE;
use crate::world::World;
use crate::world::eventually;

pub(crate) const V4: &str = "flannel.1";
pub(crate) const V6: &str = "flannel-v6.1";
const BRIDGE: &str = "cni0";
const MAC4: &str = "0a:00:00:00:00:04";
const MAC6: &str = "0a:00:00:00:00:06";
const OTHER: &str = "0e:00:00:00:00:99";
/// Nobody answers there.
const NO_SOURCE: &str = "kube:http://192.0.2.253:8001";
/// What the agent must not do is not done in this time either.
const A_WHILE: Duration = Duration::from_millis(700);

/// A device as `ip` shows it.
fn link(netns: &Netns, name: &str) -> Result<Value> {
    let mut command = Command::new("ip");
    command.args(["-d", "-j", "link", "show", "dev", name]);
    netns.enter(&mut command);
    let output = command.output().context("run `ip`")?;
    ensure!(output.status.success(), "no {name}");
    let links: Value = serde_json::from_slice(&output.stdout)?;
    Ok(links[0].clone())
}

pub(crate) fn mac(node: &Node, name: &str) -> Result<String> {
    let link = link(node.netns(), name)?;
    Ok(link["address"].as_str().context("no MAC")?.to_owned())
}

fn becomes(node: &Node, name: &str, wanted: &str) -> Result<()> {
    eventually(node, || {
        let mac = mac(node, name)?;
        ensure!(mac == wanted, "{name} has {mac}, not {wanted}");
        Ok(())
    })
}

fn stays(node: &Node, name: &str, wanted: &str) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < A_WHILE {
        let mac = mac(node, name)?;
        ensure!(mac == wanted, "{name} has {mac}, not {wanted}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Makes both devices as flannel does.
pub(crate) fn make(node: &Node, mac4: &str, mac6: &str) -> Result<()> {
    node.netns().ip(&format!(
        "link add {V4} address {mac4} type vxlan id 1 dev eth0 local {} dstport 8472 nolearning\n\
         link add {V6} address {mac6} type vxlan id 1 dev eth0 local {} dstport 8472 nolearning\n\
         link set {V4} up\n\
         link set {V6} up\n",
        node.ip4(),
        node.ip6()
    ))
}

pub(crate) fn delete(node: &Node) -> Result<()> {
    node.netns().ip(&format!("link del {V4}\nlink del {V6}\n"))
}

/// An agent that nobody tells anything.
fn start_alone(node: &Node) -> Result<Agent> {
    node.start_agent_from(NO_SOURCE, node.name(), &[])
}

fn recorded(node: &Node, names: &[&str]) -> Result<()> {
    eventually(node, || {
        let text = fs::read_to_string(node.state_dir().join("vtep"))?;
        for name in names {
            ensure!(text.contains(name), "{name} is not in {text}");
        }
        Ok(())
    })
}

fn is_told(node: &Node, what: &str) -> Result<()> {
    node.wait_for_status(what, |status| {
        status
            .devices
            .alarms
            .iter()
            .any(|alarm| alarm.contains(what))
    })?;
    Ok(())
}

#[test]
fn vxlan_devices_that_are_made_again_get_their_macs_back_while_no_source_answers() -> Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("edge-1")?;
    make(&node, MAC4, MAC6)?;
    let _agent = start_alone(&node)?;
    recorded(&node, &[V4, V6])?;
    ensure!(!node.status()?.ready);
    for _ in 0..2 {
        delete(&node)?;
        make(&node, OTHER, OTHER)?;
        becomes(&node, V4, MAC4)?;
        becomes(&node, V6, MAC6)?;
    }
    // As udev does.
    node.netns()
        .ip(&format!("link set {V4} address {OTHER}\n"))?;
    becomes(&node, V4, MAC4)?;
    let link = link(node.netns(), V4)?;
    assert!(link["flags"].to_string().contains("\"UP\""), "{link}");
    Ok(())
}

#[test]
fn the_fourth_repair_in_a_minute_is_an_alarm_and_no_fight() -> Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("edge-1")?;
    make(&node, MAC4, MAC6)?;
    let _agent = start_alone(&node)?;
    recorded(&node, &[V4, V6])?;
    let change = || node.netns().ip(&format!("link set {V4} address {OTHER}\n"));
    for _ in 0..3 {
        change()?;
        becomes(&node, V4, MAC4)?;
    }
    change()?;
    is_told(&node, "leaves it alone")?;
    stays(&node, V4, OTHER)?;
    let status = node.status()?;
    let mut devices = status.devices.devices.iter();
    let device = devices.find(|device| device.name == V4).context(V4)?;
    assert!(device.is_left_alone && device.repairs == 3, "{device:?}");
    // The twin has its own account.
    node.netns()
        .ip(&format!("link set {V6} address {OTHER}\n"))?;
    becomes(&node, V6, MAC6)
}

#[test]
fn after_a_reboot_without_the_cloud_the_devices_have_their_macs() -> Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("edge-1")?;
    make(&node, MAC4, MAC6)?;
    let agent = start_alone(&node)?;
    recorded(&node, &[V4, V6])?;
    agent.kill9()?;
    node.lose_pins()?;
    delete(&node)?;
    // One is made before the agent runs, one after.
    make(&node, OTHER, OTHER)?;
    let _agent = start_alone(&node)?;
    becomes(&node, V4, MAC4)?;
    becomes(&node, V6, MAC6)?;
    delete(&node)?;
    make(&node, OTHER, OTHER)?;
    becomes(&node, V4, MAC4)?;
    becomes(&node, V6, MAC6)
}

#[test]
fn a_fresh_annotation_that_differs_for_five_seconds_wins_and_is_recorded() -> Result<()> {
    let mut world = World::single()?;
    make(world.node(0)?, MAC4, MAC6)?;
    let node = world.node(0)?.clone();
    let data = format!("{{\"VNI\":1,\"VtepMAC\":\"{OTHER}\"}}");
    world
        .manifests
        .node(&node)
        .annotation("flannel.alpha.coreos.com/backend-type", "vxlan")
        .annotation("flannel.alpha.coreos.com/backend-data", &data);
    let start = Instant::now();
    let agent = world.start(0, &[])?;
    node.netns().ip(&format!(
        "neigh add 10.250.1.0 lladdr 0a:00:00:00:01:04 dev {V4} nud permanent\n"
    ))?;
    let known = neighbours(&node, V4)?;
    eventually(&node, || {
        ensure!(mac(&node, V4)? == OTHER, "not yet");
        ensure!(neighbours(&node, V4)? == known, "a peer is forgotten");
        Ok(())
    })?;
    assert!(start.elapsed() > Duration::from_secs(5), "too early");
    recorded(&node, &[OTHER])?;
    assert_eq!(mac(&node, V6)?, MAC6);
    // It was the last word: without a source it holds.
    agent.kill9()?;
    let _agent = start_alone(&node)?;
    node.netns()
        .ip(&format!("link set {V4} address {MAC4}\n"))?;
    becomes(&node, V4, OTHER)
}

/// The permanent neighbours of a device, as `ip` shows them.
fn neighbours(node: &Node, device: &str) -> Result<Vec<String>> {
    let mut command = Command::new("ip");
    command.args(["neigh", "show", "dev", device, "nud", "permanent"]);
    node.netns().enter(&mut command);
    let output = command.output().context("run `ip`")?;
    ensure!(output.status.success(), "ip neigh");
    let mut lines: Vec<String> = String::from_utf8(output.stdout)?
        .lines()
        .map(|line| line.trim().to_owned())
        .collect();
    lines.sort();
    Ok(lines)
}

#[test]
fn neighbours_that_are_forgotten_when_a_mac_is_set_are_put_back() -> Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("edge-1")?;
    make(&node, MAC4, MAC6)?;
    // As flannel does, once for each peer.
    node.netns().ip(&format!(
        "neigh add 10.250.1.0 lladdr 0a:00:00:00:01:04 dev {V4} nud permanent\n\
         neigh add 10.250.2.0 lladdr 0a:00:00:00:02:04 dev {V4} nud permanent\n\
         neigh add fd00:250:1:: lladdr 0a:00:00:00:01:06 dev {V6} nud permanent\n"
    ))?;
    let before = [neighbours(&node, V4)?, neighbours(&node, V6)?];
    ensure!(before[0].len() == 2 && before[1].len() == 1, "{before:?}");
    let _agent = start_alone(&node)?;
    recorded(&node, &[V4, V6])?;
    node.netns().ip(&format!(
        "link set {V4} address {OTHER}\nlink set {V6} address {OTHER}\n"
    ))?;
    becomes(&node, V4, MAC4)?;
    becomes(&node, V6, MAC6)?;
    eventually(&node, || {
        let now = [neighbours(&node, V4)?, neighbours(&node, V6)?];
        ensure!(now == before, "{now:?}");
        Ok(())
    })
}

#[test]
fn a_bad_annotation_is_said_and_costs_nothing() -> Result<()> {
    let mut world = World::single()?;
    make(world.node(0)?, MAC4, MAC6)?;
    let node = world.node(0)?.clone();
    let object = world.manifests.node(&node);
    object.annotation("flannel.alpha.coreos.com/backend-data", "{}");
    let _agent = world.start(0, &[])?;
    is_told(
        &node,
        "Node edge-1: annotation flannel.alpha.coreos.com/backend-data",
    )?;
    node.netns()
        .ip(&format!("link set {V4} address {OTHER}\n"))?;
    becomes(&node, V4, MAC4)
}

/// Whether a datagram from one node arrives at another's address on the vxlan device, in time.
fn arrives(from: &Node, socket: &UdpSocket, patience: Duration) -> Result<bool> {
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let to = socket.local_addr()?;
    let sender = from.netns().run(|| UdpSocket::bind("0.0.0.0:0"))??;
    let start = Instant::now();
    while start.elapsed() < patience {
        sender.send_to(b"?", to)?;
        match socket.recv(&mut [0; 8]) {
            Ok(_) => return Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

#[test]
fn a_peer_with_permanent_entries_reaches_the_node_over_the_device_that_was_made_again() -> Result<()>
{
    let lab = Lab::new()?;
    let (node, peer) = (lab.node("edge-1")?, lab.node("edge-2")?);
    let address = |n: u8| format!("addr add 10.250.{n}.0/32 dev {V4}\n");
    make(&node, MAC4, MAC6)?;
    node.netns().ip(&address(1))?;
    make(&peer, OTHER, OTHER)?;
    peer.netns().ip(&address(2))?;
    // As flannel's peers do: the address and its MAC, and where that MAC is; for good.
    peer.netns().ip(&format!(
        "route add 10.250.1.0/32 dev {V4} src 10.250.2.0\n\
         neigh add 10.250.1.0 lladdr {MAC4} dev {V4} nud permanent\n"
    ))?;
    let mut command = Command::new("bridge");
    command.args([
        "fdb",
        "add",
        MAC4,
        "dev",
        V4,
        "dst",
        &node.ip4().to_string(),
    ]);
    command.args(["self", "permanent"]);
    peer.netns().enter(&mut command);
    ensure!(command.status()?.success(), "bridge fdb add");
    let agent = start_alone(&node)?;
    recorded(&node, &[V4])?;
    let make_again = || -> Result<UdpSocket> {
        delete(&node)?;
        make(&node, "0e:00:00:00:00:77", "0e:00:00:00:00:78")?;
        node.netns().ip(&address(1))?;
        Ok(node.netns().run(|| UdpSocket::bind("10.250.1.0:9"))??)
    };
    for _ in 0..2 {
        let socket = make_again()?;
        ensure!(arrives(&peer, &socket, PATIENCE)?, "lost");
    }
    agent.kill9()?;
    let socket = make_again()?;
    ensure!(!arrives(&peer, &socket, A_WHILE)?, "it needs no agent");
    Ok(())
}

#[test]
fn the_mac_of_a_bridge_stays_while_ports_come_and_go_and_after_a_reboot() -> Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("edge-1")?;
    let port = |name: &str, mac: &str| {
        node.netns().ip(&format!(
            "link add {name} address {mac} type veth peer name {name}x\n\
             link set {name} master {BRIDGE} up\n"
        ))
    };
    let _agent = start_alone(&node)?;
    node.netns().ip(&format!(
        "link add {BRIDGE} type bridge\nlink set {BRIDGE} up\n"
    ))?;
    let first = "0a:00:00:00:00:50";
    port("p1", first)?;
    recorded(&node, &[BRIDGE, first])?;
    assert_eq!(mac(&node, BRIDGE)?, first);
    eventually(&node, || {
        ensure!(
            node.agent_log().contains("pinned the MAC of a bridge"),
            "not pinned"
        );
        Ok(())
    })?;
    port("p2", "02:00:00:00:00:01")?;
    stays(&node, BRIDGE, first)?;
    node.netns().ip("link del p1\nlink del p2\n")?;
    stays(&node, BRIDGE, first)?;
    node.netns().ip(&format!(
        "link del {BRIDGE}\nlink add {BRIDGE} type bridge\n"
    ))?;
    becomes(&node, BRIDGE, first)?;
    port("p3", "02:00:00:00:00:01")?;
    stays(&node, BRIDGE, first)
}

#[test]
fn a_vxlan_device_follows_the_address_below_it() -> Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("edge-1")?;
    make(&node, MAC4, MAC6)?;
    let _agent = start_alone(&node)?;
    recorded(&node, &[V4, V6])?;
    let local = |name: &str, key: &str| -> Result<String> {
        let link = link(node.netns(), name)?;
        let local = link["linkinfo"]["info_data"][key].as_str();
        Ok(local.context("no local address")?.to_owned())
    };
    let start = Instant::now();
    node.netns().ip(&format!(
        "addr del {}/24 dev eth0\naddr add 192.0.2.77/24 dev eth0\n",
        node.ip4()
    ))?;
    eventually(&node, || {
        ensure!(local(V4, "local")? == "192.0.2.77", "not yet");
        Ok(())
    })?;
    assert!(start.elapsed() > Duration::from_secs(5), "too early");
    assert_eq!(mac(&node, V4)?, MAC4);
    assert_eq!(local(V6, "local6")?, node.ip6().to_string());
    let link = link(node.netns(), V4)?;
    let data = &link["linkinfo"]["info_data"];
    assert_eq!(
        (&data["learning"], &data["port"]),
        (&false.into(), &8472.into())
    );
    is_told(&node, "until flannel announces 192.0.2.77")?;
    let status = node.status()?;
    let mut devices = status.devices.devices.iter();
    let device = devices.find(|device| device.name == V4).context(V4)?;
    assert_eq!(device.underlay_changes, 1);
    Ok(())
}

#[test]
fn where_the_record_cannot_be_written_the_mac_is_kept_in_memory_and_that_is_said() -> Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("edge-1")?;
    make(&node, MAC4, MAC6)?;
    fs::create_dir(node.state_dir().join("vtep.new"))?;
    let _agent = start_alone(&node)?;
    is_told(&node, "after a reboot")?;
    delete(&node)?;
    make(&node, OTHER, OTHER)?;
    becomes(&node, V4, MAC4)?;
    becomes(&node, V6, MAC6)
}
