//! A node that reboots without the cloud, and whose Pods all have new addresses: how soon after the agent's start every
//! ClusterIP answers again (openyurt#2810).

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use serde_json::Value;
use serde_json::json;

use super::Options;
use super::report::Claim;
use super::report::Measure;
use super::report::Series;
use crate::apiserver::FakeApiserver;
use crate::apiserver::objects;
use crate::lab::Lab;
use crate::lab::Proto;
use crate::runtime::Network;
use crate::runtime::Node;
use crate::runtime::Running;
use crate::runtime::addresses;
use crate::runtime::pod;

/// Name of the measure.
pub const NAME: &str = "reboot";

const NODE: &str = "edge-reboot";
const PODS: u8 = 50;
const PATIENCE: Duration = Duration::from_secs(20);

fn vip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 7, n)
}

/// A Service of a Pod, and its slice.
fn service(n: u8, at: &str) -> Result<[Value; 2]> {
    let name = format!("web-{n}");
    let mut endpoint = objects::endpoint(at.parse()?, NODE);
    endpoint["targetRef"] = json!({"kind": "Pod", "name": name});
    let mut service = objects::service(&name, vip(n).into(), 80);
    let mut slice = objects::slice(&format!("{name}-1"), &name, 8080, [endpoint]);
    for object in [&mut service, &mut slice] {
        object["metadata"]["namespace"] = json!("shop");
    }
    Ok([service, slice])
}

/// Runs the measure.
pub fn measure(lab: &Lab, options: &Options) -> Result<Measure> {
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let api = edge.netns().run(FakeApiserver::start)??;
    api.put(objects::node(NODE, None, edge.ip4().into()))?;
    let plugins = node.bridged(json!({
        "type": "host-local", "dataDir": node.path("networks"),
        "ranges": [[{"subnet": "10.200.0.0/20"}]], "routes": [{"dst": "0.0.0.0/0"}],
    }));
    let mut network = Network::new(&node, "1.0.0", plugins);
    let mut boot = |round: usize| -> Result<Vec<(Running, String)>> {
        let pods = 0..PODS;
        pods.map(|n| {
            let pod = pod(&format!("web-{n}"), &format!("c{round}x{n}"));
            let result = network.add(&pod.sandbox);
            Ok((Running::start(pod, "web")?, addresses(&result).remove(0)))
        })
        .collect()
    };
    let mut pods = boot(0)?;
    for (n, (_, at)) in (0..PODS).zip(&pods) {
        api.put_all(service(n, at)?)?;
    }
    let source = format!("kube:{}", api.http().url());
    let agent = edge.start_agent_from(&source, NODE, &[])?;
    edge.wait_for_status("a checkpoint", |status| status.checkpoint.writes > 0)?;
    agent.kill9()?;
    api.http().stop();

    let host = edge.host()?;
    let mut times = Vec::new();
    for round in 1..=options.rounds(10) {
        let before: Vec<String> = pods.iter().map(|(_, at)| at.clone()).collect();
        pods.clear();
        edge.netns().ip("link del cni0\n")?;
        edge.lose_pins()?;
        fs::remove_dir_all(edge.run_dir()).context("empty the directory in memory")?;
        pods = boot(round)?;
        ensure!(
            pods.iter().all(|(_, at)| !before.contains(at)),
            "a Pod has its old address"
        );
        let start = Instant::now();
        let agent = edge.start_agent_from(&source, NODE, &[])?;
        // An earlier connect would leave by the default route, and its timeout would be measured.
        edge.wait_ready()?;
        for n in 0..PODS {
            while host
                .attempt(Proto::Tcp, &format!("{}:80", vip(n)))?
                .answer()
                .is_none()
            {
                ensure!(
                    start.elapsed() < PATIENCE,
                    "{}\n{}",
                    vip(n),
                    edge.agent_log()
                );
            }
        }
        times.push(start.elapsed().as_secs_f64() * 1e3);
        agent.kill9()?;
    }
    Ok(Measure {
        name: NAME,
        title: "Offline reboot, all Pods at new addresses",
        method: "50 Pods of bridge, host-local and yurt-cni; pins, devices and what is in memory gone; no apiserver. From the agent's start \
                 to the answer of the last of 50 ClusterIPs, which are asked one after the other.",
        unit: "",
        series: vec![Series::new("start to the last answer, ms", &times)],
        claims: vec![Claim::new("start to every ClusterIP, 50 Pods", "ms", times).at_most(2000.0)],
    })
}
