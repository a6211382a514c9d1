//! Flows of clients outside: as `flows` lists them, and their end when their backend goes; and what of the node is in
//! their way.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use serde_json::Value;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::UdpSocket;

use crate::outside::NODE_PORT;
use crate::outside::Stage;
use crate::world::eventually;
use crate::world::json;
use crate::world::said;

const LOCAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// The flows that are listed.
fn flows(node: &Node, flags: &[&str]) -> Result<Vec<Value>> {
    let arguments = ["flows", "-o", "json"].iter().chain(flags);
    let arguments: Vec<&str> = arguments.copied().collect();
    let listed = json(&node.yurt_net(&arguments)?)?;
    let flows = listed["flows"].as_array().context("a list of flows")?;
    Ok(flows.clone())
}

#[test]
fn flows_are_listed_with_the_names_of_their_services_and_without_an_agent_with_those_of_its_checkpoint()
-> Result<()> {
    let mut stage = Stage::new()?;
    let far = stage.far.clone();
    let agent = stage.start(&[&far])?;
    let frontends = stage.frontends()?;
    let mut held = Vec::new();
    for to in &frontends {
        held.push(stage.client.hold(Tcp, to)?);
    }
    let node = stage.world.node(0)?;
    for (to, flow) in frontends.iter().zip(&held) {
        ensure!(flow.ping()?.answer.as_deref() == Some("far"));
        let found = flows(node, &["--to", to])?;
        let [row] = &*found else {
            panic!("{to}: {found:?}");
        };
        let (backend, masquerade) = match to.starts_with('[') {
            true => (
                format!("[{}]:8080", far.ip6()),
                format!("[{}]:", node.ip6()),
            ),
            false => (format!("{}:8080", far.ip4()), format!("{}:", node.ip4())),
        };
        let service = row["service"].as_str().unwrap_or_default();
        ensure!(service.starts_with("default/web"), "{row}");
        ensure!(
            row["dialled"] == **to && row["backend"] == *backend,
            "{row}"
        );
        let shown = row["masquerade"].as_str().unwrap_or_default();
        ensure!(shown.starts_with(&masquerade), "{row}");
        ensure!(row["device"] == "eth0" && row["state"] == "up", "{row}");
        ensure!(row["protocol"] == "TCP", "{row}");
    }
    let of_the_service = flows(node, &["--to", "default/web"])?;
    assert_eq!(of_the_service.len(), frontends.len());
    assert_eq!(flows(node, &["--to", "default/other"])?.len(), 0);
    assert_eq!(flows(node, &["--from", "198.51.100.1"])?.len(), 0);
    let cut = json(&node.yurt_net(&["flows", "--limit", "1", "-o", "json"])?)?;
    assert_eq!(cut["flows"].as_array().map(Vec::len), Some(1));
    ensure!(cut["leftOut"].as_u64() >= Some(3), "{cut}");

    node.wait_for_status("a checkpoint", |status| status.checkpoint.writes > 0)?;
    agent.kill9()?;
    let listed = json(&node.yurt_net(&["flows", "-o", "json"])?)?;
    let all = listed["flows"].as_array().context("a list of flows")?;
    ensure!(all.len() >= frontends.len(), "{listed}");
    for row in all {
        let service = row["service"].as_str().unwrap_or_default();
        ensure!(service.starts_with("default/web"), "{listed}");
        ensure!(row["device"] == "eth0", "{row}");
    }
    let remark = listed["remark"].as_str().unwrap_or_default();
    ensure!(remark.contains("checkpoint"), "{listed}");
    let named = flows(node, &["--to", "default/web"])?;
    assert_eq!(named.len(), frontends.len());

    // Without that, too, they have no names.
    for name in ["checkpoint", "checkpoint.old"] {
        let _not_there = fs::remove_file(node.state_dir().join("snapshot").join(name));
    }
    let listed = json(&node.yurt_net(&["flows", "-o", "json"])?)?;
    let all = listed["flows"].as_array().context("a list of flows")?;
    ensure!(all.iter().all(|row| row["service"].is_null()), "{listed}");
    let remark = listed["remark"].as_str().unwrap_or_default();
    ensure!(remark.contains("no agent answers"), "{listed}");
    let nameless = node.yurt_net(&["flows", "--to", "default/web"])?;
    ensure!(!nameless.status.success(), "{}", said(&nameless));
    Ok(())
}

/// Asks until this one answers, from the same port.
fn is_answered_by(node: &Node, socket: &UdpSocket, to: &str, who: &str) -> Result<()> {
    eventually(node, || {
        let outcomes = socket.ask(to, 1)?;
        let [outcome] = &*outcomes else {
            panic!("{outcomes:?}");
        };
        ensure!(outcome.answer.as_deref() == Some(who), "{to}: {outcome:?}");
        Ok(())
    })
}

#[test]
fn a_client_of_datagrams_with_a_fixed_port_is_led_to_the_next_backend_when_its_own_goes()
-> Result<()> {
    let mut stage = Stage::new()?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    let _agent = stage.start(&[&near])?;
    let mut sockets = Vec::new();
    for to in stage.frontends()? {
        if !to.contains(&NODE_PORT.to_string()) {
            continue;
        }
        let socket = stage.client.udp_socket(to.starts_with('['))?;
        is_answered_by(stage.world.node(0)?, &socket, &to, "near")?;
        let held = stage.client.hold(Tcp, &to)?;
        sockets.push((socket, held, to));
    }
    // Each lives on, and would answer: only the end of the flow leads to the next one, on this node or another.
    for next in [&far, &near, &far] {
        stage.lead_to(&[next]);
        stage.world.apply()?;
        for (socket, held, to) in &sockets {
            is_answered_by(stage.world.node(0)?, socket, to, next.name())?;
            // Connections notice by themselves when their peer is gone, and this one is not.
            ensure!(held.ping()?.answer.as_deref() == Some("near"));
        }
    }
    let node = stage.world.node(0)?;
    node.wait_for_status("ends of flows are counted", |status| {
        let packets = status.packet_path.as_ref();
        packets.is_some_and(|packets| packets.ended_flows >= 6)
    })?;
    Ok(())
}

#[test]
fn established_flows_of_clients_outside_to_a_node_that_moved_pools_are_reset_on_demand()
-> Result<()> {
    let mut stage = Stage::new()?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    let web = stage.world.manifests.service("web");
    web.topology_keys("openyurt.io/nodepool");
    let _agent = stage.start_with(&[&near, &far], &["--closure-established", "reset"])?;
    let mut held = Vec::new();
    // The node itself says so at once when it does not know a flow; a load balancer's address is left in silence.
    let mut node_ports = stage.frontends()?;
    node_ports.retain(|to| to.contains(&NODE_PORT.to_string()));
    for to in &node_ports {
        // Both are met among so many but once in a million times.
        for _ in 0..20 {
            held.push(stage.client.hold(Tcp, to)?);
        }
    }
    let is_of = |name: &str| {
        let of = held
            .iter()
            .filter(|flow| flow.opened().answer.as_deref() == Some(name));
        of.collect::<Vec<_>>()
    };
    let (kept, reset) = (is_of("near"), is_of("far"));
    ensure!(!kept.is_empty() && !reset.is_empty());
    let other = stage.world.node(1)?.clone();
    stage.world.manifests.node(&other).pool("beijing");
    stage.world.apply()?;
    let node = stage.world.node(0)?;
    let wanted = u64::try_from(reset.len())?;
    node.wait_for_status("flows outside the closure are ended", |status| {
        let packets = status.packet_path.as_ref();
        packets.is_some_and(|packets| packets.ended_flows >= wanted)
    })?;
    for flow in reset {
        ensure!(flow.ping()?.answer.is_none());
    }
    for flow in kept {
        ensure!(flow.ping()?.answer.as_deref() == Some("near"));
    }
    Ok(())
}

/// Writes a setting of a node.
fn set(node: &Node, path: &'static str, value: &str) -> Result<()> {
    let value = value.to_owned();
    node.netns().run(move || fs::write(path, value))??;
    Ok(())
}

/// Reads it at once: the kernel answers only the first read of a list.
fn get(node: &Node, path: &'static str) -> Result<String> {
    let read = move || {
        let mut buffer = vec![0; 1 << 18];
        let length = fs::File::open(path)?.read(&mut buffer)?;
        buffer.truncate(length);
        Ok::<_, std::io::Error>(buffer)
    };
    let value = String::from_utf8(node.netns().run(read)??)?;
    Ok(value.trim().to_owned())
}

#[test]
fn what_others_have_reserved_stays_however_long_their_list_is() -> Result<()> {
    let mut stage = Stage::new()?;
    let near = stage.near.clone();
    let node = stage.world.node(0)?.clone();
    set(&node, LOCAL, "29900 60999")?;
    // Longer than a page.
    let ports: Vec<String> = (0..1500).map(|n| (10_001 + 2 * n).to_string()).collect();
    let others = ports.join(",");
    set(&node, RESERVED, &others)?;
    assert_eq!(get(&node, RESERVED)?, others);
    let agent = stage.start(&[&near])?;
    assert_eq!(get(&node, RESERVED)?, format!("{others},29900-29999"));
    let line = checked(&node)?;
    ensure!(line.starts_with("ok"), "{line}");
    agent.terminate()?;
    let output = node.yurt_net(&["cleanup"])?;
    ensure!(output.status.success(), "{}", said(&output));
    assert_eq!(get(&node, RESERVED)?, others);
    Ok(())
}

#[test]
fn a_list_that_others_write_over_ours_gets_ours_again_and_keeps_what_is_theirs() -> Result<()> {
    let mut stage = Stage::new()?;
    let near = stage.near.clone();
    let node = stage.world.node(0)?.clone();
    set(&node, LOCAL, "29900 60999")?;
    let agent = stage.start_with(&[&near], &["--drift-interval", "1s"])?;
    assert_eq!(get(&node, RESERVED)?, "29900-29999");
    // As `sysctl --system` does, whenever a package brings a setting.
    set(&node, RESERVED, "80,29950")?;
    eventually(&node, || {
        ensure!(get(&node, RESERVED)? == "80,29900-29999");
        Ok(())
    })?;
    agent.terminate()?;
    let output = node.yurt_net(&["cleanup"])?;
    ensure!(output.status.success(), "{}", said(&output));
    assert_eq!(get(&node, RESERVED)?, "80,29950");
    Ok(())
}

/// The line of `check` about packets.
fn checked(node: &Node) -> Result<String> {
    let output = said(&node.yurt_net(&["check"])?);
    let mut lines = output.lines();
    let line = lines.find(|line| line.contains(" packets "));
    Ok(line.with_context(|| output.clone())?.to_owned())
}

#[test]
fn ports_of_ours_are_reserved_and_given_back_and_check_says_what_is_in_the_way() -> Result<()> {
    let mut stage = Stage::new()?;
    let near = stage.near.clone();
    let node = stage.world.node(0)?.clone();
    set(&node, LOCAL, "29900 60999")?;
    set(&node, RESERVED, "7,29950")?;
    let agent = stage.start(&[&near])?;
    assert_eq!(get(&node, RESERVED)?, "7,29900-29999");
    let line = checked(&node)?;
    ensure!(
        line.starts_with("ok") && line.contains("served at eth0"),
        "{line}"
    );
    ensure!(line.contains("100 of them reserved"), "{line}");

    set(&node, "/proc/sys/net/ipv4/ip_forward", "0")?;
    let line = checked(&node)?;
    ensure!(
        line.starts_with("FAILED") && line.contains("forwarding is 0"),
        "{line}"
    );
    set(&node, "/proc/sys/net/ipv4/ip_forward", "1")?;
    set(&node, RESERVED, "7")?;
    let line = checked(&node)?;
    ensure!(
        line.starts_with("WARNING") && line.contains("100 ports"),
        "{line}"
    );
    agent.kill9()?;

    // The next one reserves them again, and the way back takes out ours alone.
    let agent = stage.start(&[&near])?;
    eventually(&node, || {
        ensure!(get(&node, RESERVED)? == "7,29900-29999");
        Ok(())
    })?;
    agent.terminate()?;
    let output = node.yurt_net(&["cleanup"])?;
    ensure!(output.status.success(), "{}", said(&output));
    assert_eq!(get(&node, RESERVED)?, "7");
    ensure!(!Path::new(&node.bpffs()).join("yurt-net").exists());
    let listed = node.yurt_net(&["flows"])?;
    ensure!(
        said(&listed).contains("no packets are served"),
        "{}",
        said(&listed)
    );
    let again = node.yurt_net(&["cleanup"])?;
    ensure!(
        said(&again).contains("nothing to remove"),
        "{}",
        said(&again)
    );
    Ok(())
}

#[test]
fn explain_runs_the_program_in_force_on_a_made_up_packet_and_leaves_nothing_behind() -> Result<()> {
    let mut stage = Stage::new()?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    let web = stage.world.manifests.service("web");
    web.affinity(600);
    let empty = stage.world.manifests.service("empty");
    empty.cluster_ip("10.96.0.11").cluster_ip("fd00:96::11");
    empty.node_port(Tcp, 80, 8080, NODE_PORT + 1);
    let _agent = stage.start(&[&near, &far])?;
    let node = stage.world.node(0)?;
    let outside = stage.world.node(2)?;
    let live = |from: &str, to: &str| {
        let flags = [
            "explain", "--live", "--from", from, "--to", to, "-o", "json",
        ];
        json(&node.yurt_net(&flags)?)
    };
    for (to, from) in [
        (
            format!("{}:{NODE_PORT}", node.ip4()),
            outside.ip4().to_string(),
        ),
        (
            format!("[{}]:{NODE_PORT}", node.ip6()),
            outside.ip6().to_string(),
        ),
    ] {
        for protocol in ["TCP", "UDP"] {
            let to = format!("{to}/{protocol}");
            let mut seen = std::collections::BTreeSet::new();
            // Were the client remembered, all would go to one of the two: that they do so by chance happens once in a
            // billion times.
            for _ in 0..30 {
                let said = live(&from, &to)?;
                let tried = &said["live"];
                ensure!(
                    tried["verdict"] == "forward" && tried["device"] == "eth0",
                    "{said}"
                );
                ensure!(
                    tried["counted"] == serde_json::json!(["new_flow"]),
                    "{said}"
                );
                let endpoints = said["endpoints"].as_array().context("endpoints")?;
                ensure!(endpoints.contains(&tried["to"]), "{said}");
                seen.insert(tried["to"].to_string());
            }
            assert_eq!(seen.len(), 2, "{to}");
        }
    }
    assert_eq!(flows(node, &[])?, Vec::<Value>::new());

    // A client that is remembered stays where it was.
    let to = format!("{}:{NODE_PORT}", node.ip4());
    let who = stage.client.get(&to)?;
    let backend = if who == "near" { &near } else { &far };
    let said = live(&outside.ip4().to_string(), &format!("{to}/TCP"))?;
    ensure!(
        said["live"]["to"] == format!("{}:8080", backend.ip4()),
        "{said}"
    );

    let closed = format!("{}:{}/TCP", node.ip4(), NODE_PORT + 1);
    let said = live(&outside.ip4().to_string(), &closed)?;
    ensure!(
        said["live"]["counted"] == serde_json::json!(["refuse_no_endpoint"]),
        "{said}"
    );
    ensure!(
        said["live"]["verdict"] != "forward" && said["live"]["to"].is_null(),
        "{said}"
    );
    let other = format!("{}:22/TCP", node.ip4());
    let said = live(&outside.ip4().to_string(), &other)?;
    ensure!(said["live"]["verdict"] == "pass", "{said}");
    let inside = [
        "explain",
        "--live",
        "--from",
        &node.ip4().to_string(),
        "--to",
        &closed,
    ];
    let refused = node.yurt_net(&inside)?;
    ensure!(!refused.status.success() && crate::world::said(&refused).contains("is on this node"));
    Ok(())
}
