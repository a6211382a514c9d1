//! A Pod whose network has given it another address is reached at the one that it had, and appears with it.

use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use yurt_net::observe::status::{GuardedPodStatus, Status};
use yurt_net_tests::apiserver::{FakeApiserver, objects};
use yurt_net_tests::lab::{self, Lab, Manifests, Netns};
use yurt_net_tests::runtime::{Network, Node, Running, addresses, ip, mac, pod};

use crate::agent::{checked, shown};

const NODE: &str = "edge-1";
const PATIENCE: Duration = Duration::from_secs(60);
/// In which an answer would have come.
const SILENCE: Duration = Duration::from_secs(2);
/// Bridges come and go here faster than the agent is willing to set a MAC back.
const NO_PIN: &str = "--pin-bridge=";
const KEEP: &str = "yurt-net.openyurt.io/keep-address";

/// What somebody there gets from port 8080 of an address.
fn ask(from: &Netns, address: &str) -> Result<String> {
    ask_for(PATIENCE, from, address)
}

/// The same, if it comes in time.
fn ask_for(patience: Duration, from: &Netns, address: &str) -> Result<String> {
    let to = SocketAddr::new(address.parse()?, 8080);
    let answer = from.run(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    answer.with_context(|| format!("ask {address}"))
}

/// The address that `to` sees, at one of its own, when `from` begins.
fn appears_as(from: &Netns, to: &Netns, address: &str) -> Result<IpAddr> {
    let address: IpAddr = address.parse()?;
    let listener = to.run(|| UdpSocket::bind((address, 0)))??;
    listener.set_read_timeout(Some(PATIENCE))?;
    let at = listener.local_addr()?;
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    from.run(|| UdpSocket::bind(any)?.send_to(b"!", at))??;
    Ok(listener.recv_from(&mut [0; 1])?.1.ip())
}

/// The addresses that a Pod is reached at and has not.
fn translated(status: &Status, name: &str) -> Vec<String> {
    let pod = shown(status, name);
    let translated = pod.iter().flat_map(|pod| &pod.translated);
    translated.map(IpAddr::to_string).collect()
}

fn wait_until_translated(edge: &lab::Node, expected: &[&str]) -> Result<Status> {
    edge.wait_for_status("the Pod is translated as it should be", |status| {
        translated(status, "web-0") == expected
    })
}

/// Our routes of an address, of the node.
fn routes(edge: &lab::Node) -> Vec<Value> {
    ["-4", "-6"]
        .iter()
        .flat_map(|family| {
            let routes = ip(edge.netns(), &[family, "route", "show", "proto", "121"]);
            routes.as_array().cloned().unwrap_or_default()
        })
        .collect()
}

/// A bridge with another IPAM, which gives addresses from `start` on.
fn others(node: &Node, start: &str) -> Vec<Value> {
    node.bridged(json!({
        "type": "host-local", "dataDir": node.path("networks"),
        "ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": start}]], "routes": [{"dst": "0.0.0.0/0"}],
    }))
}

/// A Pod that had 10.1.0.2, and has 10.1.0.100 by now.
fn come_back(network: &mut Network<'_>) -> Result<Running> {
    let (first, web) = (pod("web-0", "c1"), pod("web-0", "c2"));
    network.add(&first.sandbox);
    network.del(&first.sandbox);
    network.plugins = others(network.node, "10.1.0.100");
    network.add(&web.sandbox);
    Running::start(web, "web-0")
}

#[test]
fn what_another_ipam_leaves_out_is_kept_for_a_pod_with_its_mac_through_restart_and_reboot()
-> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let flags = [
        "--translate=on",
        "--translate-exclusive=10.1.0.0/28",
        "--guard=enforce",
        NO_PIN,
    ];
    let agent = edge.start_agent(&flags)?;
    edge.wait_ready()?;
    let mut network = Network::new(&node, "1.0.0", others(&node, "10.1.0.2"));
    let (first, plain) = (pod("web-0", "c1"), pod("plain-0", "c2"));
    let had = mac(&network.add(&first.sandbox));
    network.plugins = others(&node, "10.1.0.40");
    ensure!(addresses(&network.add(&plain.sandbox)) == ["10.1.0.40"]);

    // The other IPAM forgets who had what, and is told to leave the first addresses out.
    network.del(&first.sandbox);
    network.del(&plain.sandbox);
    network.plugins = others(&node, "10.1.0.100");
    let web = pod("web-0", "c3");
    let result = network.add(&web.sandbox);
    ensure!(addresses(&result) == ["10.1.0.100"]);
    ensure!(mac(&result) == had, "{result} {had}");
    let web = Running::start(web, "web-0")?;
    let (plain, other) = (pod("plain-0", "c4"), pod("other-0", "c5"));
    for pod in [&plain, &other] {
        network.add(&pod.sandbox);
    }
    wait_until_translated(&edge, &["10.1.0.2"])?;
    let works = || -> Result<()> {
        for from in [&other.netns, edge.netns()] {
            for address in ["10.1.0.2", "10.1.0.100"] {
                ensure!(ask(from, address)? == "web-0", "{address}");
            }
        }
        let seen = appears_as(&web.pod.netns, &other.netns, "10.1.0.102")?;
        ensure!(seen.to_string() == "10.1.0.2", "{seen}");
        Ok(())
    };
    works()?;
    // What that IPAM may give to others is not kept, and the reason is said.
    let reason = "plain-0 (eth0): not translated: another IPAM may give 10.1.0.40 to another Pod";
    let status = edge.wait_for_status(reason, |status| {
        let reasons = &status.retention.alarms;
        reasons.len() == 1 && reasons[0].contains(reason)
    })?;
    ensure!(translated(&status, "plain-0").is_empty());
    // The guard knows both addresses as the Pod's own.
    ensure!(shown(&status, "web-0").is_some_and(|pod| pod.dropped == 0));
    let (result, detail) = checked(&edge, "translated")?.remove(0);
    ensure!(result == "warning" && detail.contains("plain-0") && !detail.contains("web-0"));

    // Nobody needs the agent for it, and the next one finds it.
    agent.kill9()?;
    works()?;
    let agent = edge.start_agent(&flags)?;
    edge.wait_ready()?;
    wait_until_translated(&edge, &["10.1.0.2"])?;
    works()?;
    agent.kill9()?;
    drop(web);

    // The power is cut: pins, sandboxes and the bridge are gone.
    drop((plain, other));
    edge.netns().ip("link del cni0\n")?;
    edge.lose_pins()?;
    fs::remove_dir_all(edge.run_dir())?;
    let _agent = edge.start_agent(&flags)?;
    let web = pod("web-0", "c6");
    let result = network.add(&web.sandbox);
    ensure!(
        addresses(&result) != ["10.1.0.2"] && mac(&result) == had,
        "{result}"
    );
    wait_until_translated(&edge, &["10.1.0.2"])?;
    let web = Running::start(web, "web-0")?;
    ensure!(ask(edge.netns(), "10.1.0.2")? == "web-0");
    drop(web);
    Ok(())
}

#[test]
fn a_pod_says_by_an_annotation_that_it_keeps_its_address_where_its_network_has_become_another()
-> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let api = edge.netns().run(FakeApiserver::start)??;
    api.put(objects::node(NODE, None, edge.ip4().into()))?;
    let mut object = objects::pod("web-0", NODE);
    object["metadata"]["namespace"] = json!("shop");
    object["metadata"]["annotations"] = json!({KEEP: "true"});
    api.put(object.clone())?;
    let source = format!("kube:{}", api.http().url());
    let agent = edge.start_agent_from(&source, NODE, &[NO_PIN])?;
    edge.wait_ready()?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let first = pod("web-0", "c1");
    let had = network.add(&first.sandbox);
    ensure!(addresses(&had) == ["10.1.0.2", "fd00:1::2"]);
    network.del(&first.sandbox);
    // The node has another range.
    edge.netns().ip("link del cni0\n")?;
    let mut ipam = node.ipam();
    ipam["ranges"] = json!([[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd00:2::/64"}]]);
    network.plugins = node.bridged(ipam);
    let (web, other) = (pod("web-0", "c2"), pod("other-0", "c3"));
    let result = network.add(&web.sandbox);
    ensure!(addresses(&result) == ["10.2.0.2", "fd00:2::2"] && mac(&result) == mac(&had));
    network.add(&other.sandbox);
    let status = wait_until_translated(&edge, &["10.1.0.2", "fd00:1::2"])?;
    ensure!(status.retention.alarms.is_empty(), "{status:#?}");
    ensure!(routes(&edge).len() == 2, "{:?}", routes(&edge));
    let web = Running::start(web, "web-0")?;
    for from in [&other.netns, edge.netns()] {
        for address in ["10.1.0.2", "10.2.0.2"] {
            ensure!(ask(from, address)? == "web-0", "{address}");
        }
    }
    for (own, had) in [("10.2.0.3", "10.1.0.2"), ("fd00:2::3", "fd00:1::2")] {
        let seen = appears_as(&web.pod.netns, &other.netns, own)?;
        ensure!(seen.to_string() == had, "{seen} {had}");
    }
    ensure!(checked(&edge, "translated")?.remove(0).0 == "ok");
    let packets = edge.status()?.retention.translated_packets;
    ensure!(
        packets["to_pod"] > 0 && packets["from_pod"] > 0,
        "{packets:?}"
    );

    // One that cannot be asked what Pods say leaves what it finds.
    agent.kill9()?;
    let nowhere = edge.start_agent_from("kube:http://127.0.0.1:9", NODE, &[NO_PIN])?;
    edge.wait_for_status("the ledger is read", |status| {
        status.retention.is_on && translated(status, "web-0").len() == 2
    })?;
    ensure!(ask(&other.netns, "10.1.0.2")? == "web-0");
    nowhere.kill9()?;

    // The Pod takes it back.
    let _agent = edge.start_agent_from(&source, NODE, &[NO_PIN])?;
    wait_until_translated(&edge, &["10.1.0.2", "fd00:1::2"])?;
    object["metadata"]["annotations"] = json!({KEEP: "yes"});
    api.put(object.clone())?;
    let status = wait_until_translated(&edge, &[])?;
    let alarm = status.retention.alarms.first().context("no alarm")?;
    ensure!(alarm.contains("\"yes\" is neither"), "{alarm}");
    let GuardedPodStatus { promised, .. } = shown(&status, "web-0").context("no such Pod")?;
    ensure!(promised.len() == 2, "{promised:?}");
    ensure!(ask(&other.netns, "10.2.0.2")? == "web-0" && routes(&edge).is_empty());
    object["metadata"]["annotations"] = json!({KEEP: "true"});
    api.put(object)?;
    wait_until_translated(&edge, &["10.1.0.2", "fd00:1::2"])?;
    Ok(())
}

#[test]
fn after_a_cleanup_nothing_is_translated_and_no_route_is_left() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let agent = edge.start_agent(&["--translate=on", NO_PIN])?;
    edge.wait_ready()?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let first = pod("web-0", "c1");
    network.add(&first.sandbox);
    network.del(&first.sandbox);
    edge.netns().ip("link del cni0\n")?;
    let mut ipam = node.ipam();
    ipam["ranges"] = json!([[{"subnet": "10.2.0.0/24"}]]);
    network.plugins = node.bridged(ipam);
    let web = pod("web-0", "c2");
    network.add(&web.sandbox);
    wait_until_translated(&edge, &["10.1.0.2"])?;
    ensure!(routes(&edge).len() == 1);
    agent.terminate()?;
    let output = edge.yurt_net(&["cleanup"])?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(routes(&edge).is_empty() && !edge.bpffs().join("yurt-net").exists());
    let web = Running::start(web, "web-0")?;
    ensure!(ask(edge.netns(), "10.2.0.2")? == "web-0");
    ensure!(ask_for(SILENCE, edge.netns(), "10.1.0.2").is_err());
    drop(web);
    Ok(())
}

/// The names in a directory, in their order.
fn names(dir: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

#[test]
fn pins_of_translation_that_are_removed_stop_no_packet_and_come_back() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let flags = [
        "--translate=on",
        "--translate-exclusive=10.1.0.0/28",
        "--guard=enforce",
        "--drift-interval=1",
        NO_PIN,
    ];
    let agent = edge.start_agent(&flags)?;
    edge.wait_ready()?;
    let mut network = Network::new(&node, "1.0.0", others(&node, "10.1.0.2"));
    let web = come_back(&mut network)?;
    let other = pod("other-0", "c3");
    network.add(&other.sandbox);
    wait_until_translated(&edge, &["10.1.0.2"])?;
    let works = |when: &str| -> Result<()> {
        for from in [&other.netns, edge.netns()] {
            for address in ["10.1.0.2", "10.1.0.100"] {
                ensure!(ask(from, address).context(when.to_owned())? == "web-0");
            }
        }
        let seen = appears_as(&web.pod.netns, &other.netns, "10.1.0.101")?;
        ensure!(seen.to_string() == "10.1.0.2", "{when}: {seen}");
        Ok(())
    };
    works("before")?;

    let root = edge.bpffs().join("yurt-net");
    let is_translation = |name: &OsString| name.as_encoded_bytes().starts_with(b"translate-v");
    let dir = names(&root).into_iter().find(is_translation);
    let dir = root.join(dir.context("translation is pinned")?);
    let pins = names(&dir);
    ensure!(pins.len() > 2, "{pins:?}");
    let places = pins.iter().map(|name| dir.join(name));
    for gone in places.chain([dir.clone(), root.clone()]) {
        let when = format!("{} went", gone.display());
        match gone.is_dir() {
            true => fs::remove_dir_all(&gone)?,
            false => fs::remove_file(&gone)?,
        }
        works(&when)?;
        edge.wait_for_status(&when, |status| {
            let is_well = status.degraded.is_empty() && status.retention.alarms.is_empty();
            names(&dir) == pins && is_well && translated(status, "web-0") == ["10.1.0.2"]
        })?;
        works(&when)?;
    }
    // What is pinned is what is in use: the next agent takes it over.
    agent.kill9()?;
    works("without an agent")?;
    let _agent = edge.start_agent(&flags)?;
    edge.wait_ready()?;
    wait_until_translated(&edge, &["10.1.0.2"])?;
    works("with the next agent")
}

#[test]
fn translation_whose_pins_another_bpffs_hides_is_taken_over_or_back() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let flags = [
        "--translate=on",
        "--translate-exclusive=10.1.0.0/28",
        NO_PIN,
    ];
    let agent = edge.start_agent(&flags)?;
    edge.wait_ready()?;
    let mut network = Network::new(&node, "1.0.0", others(&node, "10.1.0.2"));
    let web = come_back(&mut network)?;
    wait_until_translated(&edge, &["10.1.0.2"])?;
    let works = || Ok::<_, anyhow::Error>(ask(edge.netns(), "10.1.0.2")? == "web-0");
    ensure!(works()?);
    agent.kill9()?;

    edge.hide_pins()?;
    ensure!(works()?);
    // One that cannot be asked what Pods say leaves what it finds, by a table of its own.
    let exclusive = ["--translate-exclusive=10.1.0.0/28", NO_PIN];
    let nowhere = edge.start_agent_from("kube:http://127.0.0.1:9", NODE, &exclusive)?;
    wait_until_translated(&edge, &["10.1.0.2"])?;
    ensure!(
        works()?
            && edge
                .agent_log()
                .contains("yurt_xlate_out and 1 more on device")
    );
    nowhere.kill9()?;

    // And nothing stays that is not wanted.
    edge.hide_pins()?;
    let _agent = edge.start_agent(&[NO_PIN])?;
    edge.wait_for_status("no route is left", |_| routes(&edge).is_empty())?;
    ensure!(ask(edge.netns(), "10.1.0.100")? == "web-0");
    ensure!(ask_for(SILENCE, edge.netns(), "10.1.0.2").is_err());
    drop(web);
    Ok(())
}

#[test]
fn a_guarded_and_translated_pod_that_bypasses_its_sockets_is_served_with_its_own_address()
-> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let mut manifests = Manifests::new();
    manifests.node(&edge);
    let web = manifests.service("web");
    web.cluster_ip("10.96.0.10")
        .port(8080, 8080)
        .udp_port(9, 8080);
    web.add_endpoint("10.1.0.101".parse()?, Some(NODE), true);
    edge.apply(&manifests)?;
    let _agent = edge.start_agent(&[
        "--translate=on",
        "--translate-exclusive=10.1.0.0/28",
        "--guard=enforce",
        "--packet-path=on",
        "--socket-lb=host",
        NO_PIN,
    ])?;
    edge.wait_ready()?;
    let mut network = Network::new(&node, "1.0.0", others(&node, "10.1.0.2"));
    let web = come_back(&mut network)?;
    let other = pod("other-0", "c3");
    ensure!(addresses(&network.add(&other.sandbox)) == ["10.1.0.101"]);
    let other = Running::start(other, "other-0")?;
    wait_until_translated(&edge, &["10.1.0.2"])?;
    edge.wait_for_status("both Pods are served", |status| {
        let packets = status.packet_path.as_ref();
        packets.is_some_and(|packets| packets.pods == 2)
    })?;
    // With flows behind translation, or on the way back before it, the answer would come from the Pod that gives it.
    let before = edge.status()?.retention.translated_packets;
    ensure!(ask(&web.pod.netns, "10.96.0.10")? == "other-0");
    let after = edge.status()?.retention.translated_packets;
    for what in ["from_pod", "to_pod"] {
        ensure!(after[what] > before[what], "{what}: {before:?} {after:?}");
    }
    // What the guard drops begins no flow.
    let begun = || -> Result<u64> {
        let packets = edge.status()?.packet_path.context("packets")?.packets;
        Ok(packets.get("new_flow").copied().unwrap_or_default())
    };
    let say = |from: &str| -> Result<()> {
        let from: IpAddr = from.parse()?;
        let vip: SocketAddr = "10.96.0.10:9".parse()?;
        let send = || UdpSocket::bind((from, 0))?.send_to(b"!", vip);
        web.pod.netns.run(send)??;
        Ok(())
    };
    web.pod.netns.ip("addr add 10.1.0.77/32 dev eth0\n")?;
    let flows = begun()?;
    say("10.1.0.77")?;
    edge.wait_for_status("the guard has dropped it", |status| {
        shown(status, "web-0").is_some_and(|pod| pod.dropped > 0)
    })?;
    assert_eq!(begun()?, flows);
    say("10.1.0.100")?;
    edge.wait_for_status("a flow has begun", |_| begun().is_ok_and(|now| now > flows))?;
    drop((web, other));
    Ok(())
}
