//! The fast path: packets of clients outside to Pods of this node, and their answers, past the stack.

use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Agent;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;

use crate::capture::Capture;
use crate::capture::Tap;
use crate::outside::Stage;
use crate::world::eventually;
use crate::world::names;

const COUNTS: [&str; 2] = ["fast_to_backend", "fast_to_client"];

/// The agent takes the fast path to so many addresses of Pods.
fn wait_taken(stage: &Stage, addresses: usize) -> Result<()> {
    let node = stage.world.node(0)?;
    node.wait_for_status("the fast path is taken", |status| {
        let packets = status.packet_path.as_ref();
        let fast = packets.and_then(|packets| packets.fast_path.as_ref());
        fast.is_some_and(|fast| fast.is_taken && fast.addresses == addresses)
    })?;
    Ok(())
}

/// It does not, for a reason.
fn wait_not_taken(stage: &Stage, reason: &str) -> Result<()> {
    let node = stage.world.node(0)?;
    node.wait_for_status("the fast path is not taken", |status| {
        let packets = status.packet_path.as_ref();
        let fast = packets.and_then(|packets| packets.fast_path.as_ref());
        let is_reason = |reasons: &[String]| reasons.iter().any(|one| one.contains(reason));
        fast.is_some_and(|fast| !fast.is_taken && is_reason(&fast.reasons))
    })?;
    Ok(())
}

/// Backends of this node, whose link-layer addresses it knows.
fn start(stage: &mut Stage, backends: &[&Pod], flag: &str) -> Result<Agent> {
    let agent = stage.start_with(backends, &[flag])?;
    for backend in backends {
        for to in [backend.at4(8080), backend.at6(8080)] {
            stage.client.get(&to)?;
        }
    }
    Ok(agent)
}

/// The host's end of a Pod's device.
fn device(pod: &Pod) -> String {
    let [.., host] = pod.ip4().octets();
    format!("pod{host}")
}

fn counts(stage: &Stage) -> Result<[u64; 2]> {
    Ok([stage.count(COUNTS[0])?, stage.count(COUNTS[1])?])
}

fn tool(node: &Node, program: &str, arguments: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments.split(' '));
    node.netns().enter(&mut command);
    let output = command.output().with_context(|| format!("run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments}: {said}");
    Ok(())
}

#[test]
fn past_the_stack_pods_of_this_node_are_reached_with_the_hops_that_a_router_leaves() -> Result<()> {
    let mut stage = Stage::new()?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    let _agent = start(&mut stage, &[&near, &far], "--fast-path=auto")?;
    wait_taken(&stage, 2)?;
    let before = counts(&stage)?;
    let mut capture = Capture::start_in(&near)?;
    for to in stage.frontends()? {
        for proto in [Tcp, Udp] {
            let who = stage.who(proto, &to)?;
            assert_eq!(who, names(["near", "far"]), "{proto:?} {to}");
        }
    }
    let after = counts(&stage)?;
    ensure!(
        after[0] > before[0] + 32 && after[1] > before[1] + 32,
        "{before:?} {after:?}"
    );
    assert_eq!(capture.hops_left(8080)?, [63].into());
    // The Pod's device does not see what goes to the Pod.
    let tap = Tap::start(stage.world.node(0)?, &device(&near))?;
    let to = stage.frontends()?;
    let held = [
        stage.client.hold(Tcp, &to[0])?,
        stage.client.hold(Tcp, &to[1])?,
        stage.client.hold(Tcp, &to[0])?,
        stage.client.hold(Tcp, &to[1])?,
    ];
    for flow in &held {
        ensure!(flow.ping()?.answer.is_some());
    }
    let seen = tap.stop()?;
    let to_near = seen
        .iter()
        .filter(|((to, port), _)| (*to == near.ip4() || *to == near.ip6()) && *port == 8080);
    assert_eq!(to_near.count(), 0, "{seen:?}");
    for what in ["drop_clash", "drop_no_port", "drop_unchanged"] {
        assert_eq!(stage.count(what)?, 0, "{what}");
    }
    Ok(())
}

#[test]
fn without_the_flag_no_packet_is_led_past_the_stack() -> Result<()> {
    let mut stage = Stage::new()?;
    let near = stage.near.clone();
    let agent = start(&mut stage, &[&near], "--fast-path=on")?;
    wait_taken(&stage, 2)?;
    let to = stage.frontends()?;
    let held = [
        stage.client.hold(Tcp, &to[0])?,
        stage.client.hold(Tcp, &to[1])?,
    ];
    ensure!(counts(&stage)?[0] > 0);
    agent.kill9()?;
    let _agent = start(&mut stage, &[&near], "--fast-path=off")?;
    let before = counts(&stage)?;
    for (flow, to) in held.iter().zip(&to) {
        ensure!(flow.ping()?.answer.as_deref() == Some("near"));
        assert_eq!(stage.who(Udp, to)?, names(["near"]));
    }
    assert_eq!(counts(&stage)?, before);
    Ok(())
}

#[test]
fn a_rule_that_would_be_skipped_has_all_flows_go_through_the_stack_and_is_obeyed() -> Result<()> {
    let mut stage = Stage::new()?;
    let near = stage.near.clone();
    let _agent = start(&mut stage, &[&near], "--fast-path=auto")?;
    wait_taken(&stage, 2)?;
    let to = stage.frontends()?;
    let mut held = Vec::new();
    for to in &to {
        held.push(stage.client.hold(Tcp, to)?);
    }
    let ping = || -> Result<()> {
        for flow in &held {
            ensure!(flow.ping()?.answer.as_deref() == Some("near"));
        }
        Ok(())
    };
    let node = stage.world.node(0)?;
    tool(
        node,
        "iptables",
        "-A FORWARD -m conntrack --ctstate NEW -j ACCEPT",
    )?;
    wait_not_taken(&stage, "FORWARD")?;
    let before = counts(&stage)?;
    ping()?;
    assert_eq!(counts(&stage)?, before);
    // What is established drops nothing; a rule that drops does.
    tool(node, "iptables", "-A FORWARD -p udp -j DROP")?;
    ensure!(stage.client.attempt(Udp, &to[0])?.failure.is_some());
    ping()?;
    tool(node, "iptables", "-F FORWARD")?;
    wait_taken(&stage, 2)?;
    ping()?;
    ensure!(counts(&stage)?[0] > before[0]);
    tool(node, "iptables", "-P FORWARD DROP")?;
    wait_not_taken(&stage, "FORWARD")?;
    ensure!(stage.client.attempt(Udp, &to[0])?.failure.is_some());
    Ok(())
}

#[test]
fn who_has_the_address_of_a_pod_that_went_is_reached_though_no_agent_is_there() -> Result<()> {
    let mut stage = Stage::new()?;
    let near = stage.near.clone();
    let agent = start(&mut stage, &[&near], "--fast-path=on")?;
    wait_taken(&stage, 2)?;
    let to = stage.frontends()?;
    for to in &to {
        assert_eq!(stage.who(Tcp, to)?, names(["near"]));
    }
    let node = stage.world.node(0)?;
    let next = stage.world.backend(0, "next")?;
    agent.kill9()?;
    node.netns().ip(&format!(
        "link del {}\nneigh flush dev br0\n",
        device(&near)
    ))?;
    next.netns().ip(&format!(
        "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n",
        near.ip4(),
        near.ip6()
    ))?;
    // By UDP it would answer from its own address.
    for to in &to {
        eventually(node, || {
            ensure!(stage.who(Tcp, to)? == names(["next"]));
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn nobody_allows_the_fast_path_for_longer_than_somebody_looks() -> Result<()> {
    let mut stage = Stage::new()?;
    let near = stage.near.clone();
    let agent = start(&mut stage, &[&near], "--fast-path=auto")?;
    wait_taken(&stage, 2)?;
    let to = &stage.frontends()?[0];
    let flow = stage.client.hold(Tcp, to)?;
    agent.kill9()?;
    let node = stage.world.node(0)?;
    // Packets of the flow appear at the Pod's device then, and it goes on.
    eventually(node, || {
        let tap = Tap::start(node, &device(&near))?;
        ensure!(flow.ping()?.answer.as_deref() == Some("near"));
        let seen = tap.stop()?;
        let at = (near.ip4().into(), 8080);
        ensure!(seen.contains_key(&at), "{seen:?}");
        Ok(())
    })
}
