//! A Pod keeps its addresses: its sandbox is killed, its node reboots, and there is no cloud.

use std::fs;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use serde_json::Value;
use serde_json::json;
use yurt_net_tests::runtime::Network;
use yurt_net_tests::runtime::Node;
use yurt_net_tests::runtime::Pod;
use yurt_net_tests::runtime::addresses;
use yurt_net_tests::runtime::mac;
use yurt_net_tests::runtime::pod;

use super::Demo;
use super::MOVING;
use super::mark;
use super::seconds;

/// Names as a StatefulSet gives them.
const PODS: [&str; 3] = ["db-0", "db-1", "db-2"];

/// A running Pod.
struct Running {
    pod: Pod,
    addresses: Vec<String>,
    mac: String,
}

impl Demo {
    pub(super) fn scene_pods_keep_their_addresses(&mut self) -> Result<()> {
        self.heading(
            "Sandboxes are killed, and the node reboots: no cloud, no agent, the same Pods",
        );
        let edge = self.nodes.get(MOVING).context("no such node")?.clone();
        let agent = self.agents.remove(MOVING).context("no such agent")?;
        agent.kill9()?;
        let node = Node::on(&edge);
        let start = Instant::now();
        let first = run_all(&mut network(&node), 0);
        println!(
            "  {} {} Pods are made by bridge, yurt-ipam and yurt-cni  {}",
            mark(true),
            PODS.len(),
            seconds(start)
        );
        for (name, Running { addresses, mac, .. }) in PODS.iter().zip(&first) {
            println!("  {name:<7} │  {:<26} │  {mac}", addresses.join("  "));
        }

        let start = Instant::now();
        let mut before = network(&node);
        for (name, running) in PODS.iter().zip(&first) {
            before.del(&running.pod.sandbox);
            // In another order, with other Pods in between, no other Pod gets a kept address.
            let other = pod(&format!("job-{name}"), &format!("other-{name}"));
            let result = before.add(&other.sandbox);
            let taken = addresses(&result);
            if first.iter().any(|kept| kept.addresses == taken) {
                self.faults
                    .push(format!("{taken:?} was given to another Pod"));
            }
        }
        let mut killed = run_all(&mut network(&node), 1);
        self.judge_kept(
            "their sandboxes are made again, after those of others",
            &first,
            &killed,
            start,
        );

        let start = Instant::now();
        // What a reboot clears: namespaces, and with them devices; memory; the bridge, with all that it has learnt.
        killed.clear();
        edge.netns().ip("link del cni0\n")?;
        edge.lose_pins()?;
        fs::remove_dir_all(edge.run_dir())?;
        let rebooted = run_all(&mut network(&node), 2);
        self.judge_kept("after a reboot they are back", &first, &rebooted, start);
        let start = Instant::now();
        let agent = edge.start_agent(&[])?;
        edge.wait_for_status("the Pods are guarded", |status| {
            let pods = status.retention.pods.iter();
            pods.filter(|pod| pod.device.is_some()).count() == PODS.len()
        })?;
        println!(
            "  {} the agent is back, and guards them: none may use another's address  {}",
            mark(true),
            seconds(start)
        );
        self.agents.insert(MOVING.to_owned(), agent);
        Ok(())
    }

    fn judge_kept(&mut self, what: &str, first: &[Running], now: &[Running], start: Instant) {
        let mut is_kept = true;
        for (name, (first, now)) in PODS.iter().zip(first.iter().zip(now)) {
            if (&first.addresses, &first.mac) != (&now.addresses, &now.mac) {
                is_kept = false;
                self.faults.push(format!(
                    "{name} had {:?} and {}, and has {:?} and {}",
                    first.addresses, first.mac, now.addresses, now.mac
                ));
            }
        }
        println!(
            "  {} {what}: same IPv4, IPv6 and MAC  {}",
            mark(is_kept),
            seconds(start)
        );
    }
}

fn network(node: &Node) -> Network<'_> {
    let ipam: Value = json!({
        "type": "yurt-ipam", "dataDir": node.path("state"), "runDir": node.path("run"), "migrateFrom": "",
        "ranges": [[{"subnet": "10.200.0.0/24"}], [{"subnet": "fd00:200::/64"}]],
    });
    Network::new(node, "1.0.0", node.bridged(ipam))
}

/// Makes the Pods, in another order each time.
fn run_all(network: &mut Network<'_>, round: usize) -> Vec<Running> {
    let mut order: Vec<usize> = (0..PODS.len()).collect();
    order.rotate_left(round);
    let mut running: Vec<(usize, Running)> = order
        .into_iter()
        .map(|index| {
            let pod = pod(PODS[index], &format!("{}-{round}", PODS[index]));
            let result = network.add(&pod.sandbox);
            let running = Running {
                pod,
                addresses: addresses(&result),
                mac: mac(&result),
            };
            (index, running)
        })
        .collect();
    running.sort_by_key(|(index, _)| *index);
    running.into_iter().map(|(_, running)| running).collect()
}
