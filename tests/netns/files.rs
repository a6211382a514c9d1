//! The directory of manifests that a running agent follows.

use std::fs;
use std::time::Instant;

use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;

use crate::world::World;
use crate::world::eventually;
use crate::world::names;
use crate::world::rejections;
use crate::world::status;
use crate::world::who_answers;

const WEB: &str = "10.96.0.10:80";
const SIDE: &str = "10.96.0.30:80";

fn with_web() -> Result<(World, [Pod; 2], Pod)> {
    let mut world = World::single()?;
    let backends = world.backends(0, ["a", "b"])?;
    let client = world.node(0)?.pod("client")?;
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10")
        .port(80, 8080)
        .endpoints(&backends[..1]);
    world.start(0, &[])?;
    Ok((world, backends, client))
}

/// A Service with one endpoint, in a file of its own.
fn side_yaml(pod: &Pod) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: side, namespace: default}}\nspec:\n  \
         clusterIP: 10.96.0.30\n  clusterIPs: [10.96.0.30]\n  ports: [{{name: http, port: 80, protocol: TCP}}]\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: side-1\n  namespace: default\n  \
         labels: {{kubernetes.io/service-name: side}}\naddressType: IPv4\n\
         ports: [{{name: http, port: 8080, protocol: TCP}}]\nendpoints:\n- addresses: [{}]\n  conditions: {{ready: true}}\n",
        pod.ip4()
    )
}

fn replace(node: &Node, name: &str, text: &str) -> Result<()> {
    let draft = node.manifests_dir().join(format!(".{name}.new"));
    fs::write(&draft, text)?;
    fs::rename(&draft, node.manifests_dir().join(name))?;
    Ok(())
}

fn wait_for(node: &Node, client: &Pod, to: &str, leads_to: &str) -> Result<()> {
    eventually(node, || {
        let tally = client.dial(Tcp, to, 1)?;
        ensure!(tally.answers.contains_key(leads_to), "{to}: {tally:?}");
        Ok(())
    })
}

#[test]
fn a_file_that_comes_is_replaced_or_goes_takes_effect() -> Result<()> {
    let (world, [a, b], client) = with_web()?;
    let node = world.node(0)?;
    replace(node, "side.yaml", &side_yaml(&a))?;
    wait_for(node, &client, SIDE, &a.at4(8080))?;
    replace(node, "side.yaml", &side_yaml(&b))?;
    wait_for(node, &client, SIDE, &b.at4(8080))?;
    fs::remove_file(node.manifests_dir().join("side.yaml"))?;
    wait_for(node, &client, SIDE, SIDE)?;
    assert_eq!(who_answers(&client, WEB)?, names(["a"]));
    Ok(())
}

#[test]
fn a_broken_document_is_told_and_costs_only_itself() -> Result<()> {
    let (world, [a, b], client) = with_web()?;
    let node = world.node(0)?;
    replace(node, "side.yaml", &side_yaml(&a))?;
    wait_for(node, &client, SIDE, &a.at4(8080))?;
    // The Service is broken, its slice is not: the Service stays as it was, the slice moves on.
    let broken = side_yaml(&b).replace("port: 80,", "port: eighty,");
    replace(node, "side.yaml", &broken)?;
    eventually(node, || {
        let status = status(node)?;
        let told = status["rejections"].as_array().into_iter().flatten();
        let mut told = told.filter(|rejection| rejection["source"] == "side.yaml#1");
        ensure!(
            told.next().is_some_and(|it| it["name"] == "side"),
            "{status}"
        );
        Ok(())
    })?;
    wait_for(node, &client, SIDE, &b.at4(8080))?;
    // Neither can be read any more: both stay.
    replace(node, "side.yaml", "{{{ no YAML\n")?;
    eventually(node, || {
        let status = status(node)?;
        ensure!(rejections(&status).len() >= 2, "{status}");
        Ok(())
    })?;
    assert_eq!(who_answers(&client, SIDE)?, names(["b"]));
    assert_eq!(who_answers(&client, WEB)?, names(["a"]));
    replace(node, "side.yaml", &side_yaml(&a))?;
    wait_for(node, &client, SIDE, &a.at4(8080))
}

#[test]
fn an_object_that_is_right_and_wrong_in_turns_costs_the_log_a_line_a_minute() -> Result<()> {
    const TURNS: usize = 12;
    let (world, [a, _], client) = with_web()?;
    let node = world.node(0)?;
    let started = Instant::now();
    replace(node, "side.yaml", &side_yaml(&a))?;
    wait_for(node, &client, SIDE, &a.at4(8080))?;
    let broken = side_yaml(&a).replace("port: 80,", "port: eighty,");
    for _ in 0..TURNS {
        for (text, count) in [(&broken, 1), (&side_yaml(&a), 0)] {
            replace(node, "side.yaml", text)?;
            eventually(node, || {
                let status = status(node)?;
                let told = status["rejections"].as_array().into_iter().flatten();
                let told = told.filter(|rejection| rejection["name"] == "side");
                ensure!(told.count() == count, "{status}");
                Ok(())
            })?;
        }
    }
    let minutes = started.elapsed().as_secs() / 60 + 2;
    let log = node.agent_log();
    let named = log.lines().filter(|line| line.contains("side.yaml"));
    let counts = log
        .lines()
        .filter(|line| line.contains("more than the lines"));
    let (named, counts) = (named.count(), counts.count());
    // A minute that has begun before the first of them may end among them.
    ensure!((1..=minutes).contains(&u64::try_from(named)?), "{log}");
    ensure!((1..=minutes).contains(&u64::try_from(counts)?), "{log}");
    Ok(())
}

#[test]
fn a_directory_that_vanishes_leaves_the_last_good_state_in_force() -> Result<()> {
    let (mut world, [_, b], client) = with_web()?;
    let node = world.node(0)?.clone();
    let aside = node.manifests_dir().with_file_name("aside");
    fs::rename(node.manifests_dir(), &aside)?;
    eventually(&node, || {
        let status = status(&node)?;
        ensure!(status["sourceError"].is_string(), "{status}");
        Ok(())
    })?;
    assert!(
        node.agent_log()
            .contains("what it said last stays in force")
    );
    assert_eq!(who_answers(&client, WEB)?, names(["a"]));
    fs::rename(&aside, node.manifests_dir())?;
    world.manifests.service("web").endpoints([&b]);
    world.apply()?;
    assert_eq!(status(&node)?["sourceError"], serde_json::Value::Null);
    assert_eq!(who_answers(&client, WEB)?, names(["b"]));
    Ok(())
}

#[test]
fn an_empty_directory_is_a_valid_cluster_without_services() -> Result<()> {
    let (world, _backends, client) = with_web()?;
    let node = world.node(0)?;
    fs::remove_file(node.manifests_dir().join("cluster.yaml"))?;
    wait_for(node, &client, WEB, WEB)?;
    assert_eq!(status(node)?["sourceError"], serde_json::Value::Null);
    Ok(())
}
