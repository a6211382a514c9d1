//! Closure on live sockets: nobody is answered from outside, whatever changes, in whatever order.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;

use crate::world::World;
use crate::world::all_answered;
use crate::world::eventually;
use crate::world::is_refused_by;
use crate::world::names;
use crate::world::who_answers;

const POOL: &str = "openyurt.io/nodepool";
const ZONE: &str = "kubernetes.io/zone";
const HOSTNAME: &str = "kubernetes.io/hostname";
const POOL_LABEL: &str = "apps.openyurt.io/nodepool";
const VIP: &str = "10.96.0.10:80";

/// Two nodes, each with a backend of Service web, which is closed by `keys`.
struct Stage {
    near: Pod,
    far: Pod,
    client: Pod,
    world: World,
}

impl Stage {
    fn new(pools: [&str; 2], keys: &str) -> Result<Self> {
        let mut world = World::new(&[("edge-1", pools[0]), ("edge-2", pools[1])])?;
        let (near, far) = (world.backend(0, "near")?, world.backend(1, "far")?);
        let client = world.node(0)?.pod("client")?;
        let web = world.manifests.service("web");
        web.cluster_ip("10.96.0.10")
            .port(80, 8080)
            .topology_keys(keys);
        web.endpoints([&near, &far]);
        Ok(Self {
            near,
            far,
            client,
            world,
        })
    }

    fn answered_by(&self) -> Result<BTreeSet<String>> {
        who_answers(&self.client, VIP)
    }
}

#[test]
fn an_annotation_that_is_toggled_fifty_times_under_traffic_never_leaks_once_it_is_in_force()
-> Result<()> {
    let mut stage = Stage::new(["hangzhou", "beijing"], "")?;
    stage.world.start(0, &[])?;
    let judge = stage.world.node(0)?.pod("judge")?;
    let traffic = stage
        .client
        .start_traffic(Tcp, VIP, 2, Duration::from_millis(1))?;
    for round in 0..50 {
        let keys = [POOL, "", ZONE, "", HOSTNAME][round % 5];
        stage.world.manifests.service("web").topology_keys(keys);
        stage.world.apply()?;
        let tally = judge.connect_many(Tcp, VIP, 20)?;
        all_answered(&tally)?;
        let is_foreign = tally.answers.contains_key("far");
        assert!(keys.is_empty() || !is_foreign, "{keys:?}: {tally:?}");
    }
    all_answered(&traffic.stop()?)
}

#[test]
fn hostname_closure_keeps_to_the_node_even_within_a_pool() -> Result<()> {
    let mut stage = Stage::new(["hangzhou", "hangzhou"], HOSTNAME)?;
    stage.world.start(0, &[])?;
    assert_eq!(stage.answered_by()?, names(["near"]));
    let far = [&stage.far];
    stage.world.manifests.service("web").endpoints(far);
    stage.world.apply()?;
    is_refused_by(&stage.client, Tcp, VIP)
}

#[test]
fn an_endpoint_without_a_node_name_is_outside_every_closure_and_inside_none() -> Result<()> {
    let mut stage = Stage::new(["hangzhou", "hangzhou"], POOL)?;
    let (near, far) = (stage.near.ip4().into(), stage.far.ip4().into());
    let web = stage.world.manifests.service("web");
    web.endpoints([])
        .add_endpoint(near, Some("edge-1"), true)
        .add_endpoint(far, None, true);
    stage.world.start(0, &[])?;
    for (keys, expected) in [
        (POOL, names(["near"])),
        ("", names(["near", "far"])),
        (HOSTNAME, names(["near"])),
    ] {
        stage.world.manifests.service("web").topology_keys(keys);
        stage.world.apply()?;
        assert_eq!(stage.answered_by()?, expected, "{keys:?}");
    }
    Ok(())
}

#[test]
fn a_node_that_moves_between_pools_takes_effect_on_both_sides() -> Result<()> {
    let mut stage = Stage::new(["hangzhou", "beijing"], POOL)?;
    stage.world.start(0, &[])?;
    stage.world.start(1, &[])?;
    let far_client = stage.world.node(1)?.pod("far-client")?;
    let (one, two) = (stage.world.node(0)?.clone(), stage.world.node(1)?.clone());
    let both = || names(["near", "far"]);
    for (moved, pool, here, there) in [
        (&two, "hangzhou", both(), both()),
        (&one, "beijing", names(["near"]), names(["far"])),
        (&two, "beijing", both(), both()),
        (&two, "", names(["near"]), names(["far"])),
        (&one, "", names(["near"]), names(["far"])),
    ] {
        let object = stage.world.manifests.node(moved);
        if pool.is_empty() {
            object.no_pool();
        } else {
            object.pool(pool);
        }
        stage.world.apply()?;
        let moved = moved.name();
        assert_eq!(stage.answered_by()?, here, "{moved} to {pool:?}");
        let there_is = who_answers(&far_client, VIP)?;
        assert_eq!(there_is, there, "{moved} to {pool:?}");
    }
    Ok(())
}

/// A node knows only its own Node object, as an edge node does: what follows says who else is in its pool.
fn with_one_node_object(flags: &[&str], keys: &str) -> Result<Stage> {
    let mut world = World::new(&[("edge-1", "")])?;
    let far_node = world.lab.node("edge-2")?;
    let near = world.backend(0, "near")?;
    let far = far_node.pod("far")?.serve_tcp(8080)?;
    let node = world.node(0)?.clone();
    let client = node.pod("client")?;
    world.manifests.node(&node).label(POOL_LABEL, "hangzhou");
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10")
        .port(80, 8080)
        .topology_keys(keys);
    web.endpoints([&near, &far]);
    world.start(0, flags)?;
    Ok(Stage {
        near,
        far,
        client,
        world,
    })
}

fn node_pool(version: &str, nodes: &str) -> String {
    format!(
        "apiVersion: apps.openyurt.io/{version}\nkind: NodePool\nmetadata:\n  name: hangzhou\n\
         spec:\n  type: Edge\nstatus:\n  nodes: [{nodes}]\n"
    )
}

fn node_bucket(nodes: &[&str]) -> String {
    let mut bucket = "apiVersion: apps.openyurt.io/v1alpha1\nkind: NodeBucket\nmetadata:\n  \
                      name: hangzhou-x1\n  labels:\n    openyurt.io/pool-name: hangzhou\n\
                      maxNodesPerBucket: 100\nnumNodes: 1\n"
        .to_owned();
    bucket += if nodes.is_empty() {
        "nodes: []\n"
    } else {
        "nodes:\n"
    };
    for node in nodes {
        bucket += &format!("- name: {node}\n");
    }
    bucket
}

/// Puts these documents into a file of their own beside the others, or removes it.
fn side_file(node: &Node, name: &str, yaml: Option<&str>) -> Result<()> {
    let path = node.manifests_dir().join(name);
    match yaml {
        Some(yaml) => {
            let draft = node.manifests_dir().join(format!(".{name}"));
            fs::write(&draft, yaml)?;
            fs::rename(&draft, &path)?;
        }
        None => fs::remove_file(&path)?,
    }
    Ok(())
}

fn wait_for_answers(stage: &Stage, expected: &BTreeSet<String>, what: &str) -> Result<()> {
    eventually(stage.world.node(0)?, || {
        let now = stage.answered_by()?;
        ensure!(&now == expected, "{what}: {now:?}");
        Ok(())
    })
}

#[test]
fn node_pools_and_node_buckets_say_who_is_in_the_pool_and_their_changes_take_effect() -> Result<()>
{
    let stage = with_one_node_object(&[], POOL)?;
    let node = stage.world.node(0)?;
    let (near, both) = (names(["near"]), names(["near", "far"]));
    assert_eq!(
        stage.answered_by()?,
        near,
        "nothing says who is in the pool"
    );
    let with = node_pool("v1beta2", "edge-1, edge-2");
    let without = node_pool("v1beta1", "edge-1");
    let bucket_with = node_bucket(&["edge-1", "edge-2"]);
    let bucket_without = node_bucket(&[]);
    for (what, file, yaml, expected) in [
        ("listed", "pool.yaml", Some(&with), &both),
        ("not listed", "pool.yaml", Some(&without), &near),
        ("in a bucket", "bucket.yaml", Some(&bucket_with), &both),
        ("in none", "bucket.yaml", Some(&bucket_without), &near),
        ("bucket wins", "pool.yaml", Some(&with), &near),
        ("bucket gone", "bucket.yaml", None, &both),
    ] {
        side_file(node, file, yaml.map(String::as_str))?;
        wait_for_answers(&stage, expected, what)?;
    }
    Ok(())
}

#[test]
fn closure_failure_decides_about_nodes_of_which_nothing_is_known() -> Result<()> {
    for (flag, before, without_pool) in [
        ("closed", names(["near"]), names(["near"])),
        ("open", names(["near", "far"]), names(["near", "far"])),
        ("last-known", names(["near"]), names(["near", "far"])),
    ] {
        let stage = with_one_node_object(&["--closure-failure", flag], POOL)?;
        let node = stage.world.node(0)?;
        assert_eq!(stage.answered_by()?, before, "{flag}: never known");
        let pool = node_pool("v1beta2", "edge-1, edge-2");
        side_file(node, "pool.yaml", Some(&pool))?;
        wait_for_answers(&stage, &names(["near", "far"]), flag)?;
        side_file(node, "pool.yaml", None)?;
        wait_for_answers(&stage, &without_pool, flag)?;
        if flag == "last-known" {
            // A change elsewhere compiles anew; what was known is known still.
            let before = applied(node)?;
            side_file(
                node,
                "more.yaml",
                Some(&node_pool("v1beta2", "edge-1").replace("hangzhou", "x")),
            )?;
            wait_for_applied(node, before)?;
            assert_eq!(stage.answered_by()?, without_pool);
        }
    }
    Ok(())
}

/// Pieces of one cluster: web is closed to a pool of edge-1 and edge-2; edge-3 is foreign.
fn pieces(near: &Pod, far: &Pod, foreign: &Pod) -> [(&'static str, String); 4] {
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: late\n  namespace: default\n  annotations:\n    \
         openyurt.io/topologyKeys: {POOL}\nspec:\n  clusterIP: 10.96.0.99\n  clusterIPs: [10.96.0.99]\n  \
         ports: [{{name: http, port: 80, protocol: TCP}}]\n"
    );
    let mut slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: late-1\n  \
                     namespace: default\n  labels: {kubernetes.io/service-name: late}\naddressType: IPv4\n\
                     ports: [{name: http, port: 8080, protocol: TCP}]\nendpoints:\n"
        .to_owned();
    for (pod, node) in [(near, "edge-1"), (far, "edge-2"), (foreign, "edge-3")] {
        slice += &format!(
            "- addresses: [{}]\n  conditions: {{ready: true}}\n  nodeName: {node}\n",
            pod.ip4()
        );
    }
    let pool = node_pool("v1beta2", "edge-1, edge-2");
    let node = format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: edge-1\n  labels:\n    {POOL_LABEL}: hangzhou\n"
    );
    [
        ("service.yaml", service),
        ("slice.yaml", slice),
        ("pool.yaml", pool),
        ("node.yaml", node),
    ]
}

#[test]
fn in_any_order_of_events_nobody_foreign_answers_and_the_end_is_the_same() -> Result<()> {
    const LATE: &str = "10.96.0.99:80";
    let mut world = World::new(&[])?;
    let nodes = ["edge-1", "edge-2", "edge-3"]
        .map(|name| world.lab.node(name))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let pods = nodes
        .iter()
        .zip(["near", "far", "foreign"])
        .map(|(node, name)| node.pod(name)?.serve_tcp(8080))
        .collect::<Result<Vec<_>>>()?;
    let node = nodes[0].clone();
    world.nodes.push(node.clone());
    let client = node.pod("client")?;
    world.start(0, &[])?;
    let pieces = pieces(&pods[0], &pods[1], &pods[2]);
    for order in [
        [0, 1, 2, 3],
        [3, 2, 1, 0],
        [1, 0, 3, 2],
        [2, 3, 0, 1],
        [1, 3, 0, 2],
        [2, 0, 3, 1],
    ] {
        for index in order {
            let (name, yaml) = &pieces[index];
            let before = applied(&node)?;
            side_file(&node, name, Some(yaml))?;
            wait_for_applied(&node, before)?;
            let tally = client.dial(Tcp, LATE, 20)?;
            let foreign = pods[2].at4(8080);
            assert!(
                !tally.answers.contains_key(&foreign),
                "{order:?}: {tally:?}"
            );
        }
        assert_eq!(
            who_answers(&client, LATE)?,
            names(["near", "far"]),
            "{order:?}"
        );
        for (name, _) in &pieces {
            side_file(&node, name, None)?;
        }
        eventually(&node, || {
            let tally = client.dial(Tcp, LATE, 1)?;
            ensure!(tally.answers.contains_key(LATE), "{tally:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn applied(node: &Node) -> Result<u64> {
    Ok(crate::world::status(node)?["applied"]
        .as_u64()
        .unwrap_or_default())
}

fn wait_for_applied(node: &Node, before: u64) -> Result<()> {
    eventually(node, || {
        ensure!(applied(node)? > before, "nothing new was applied");
        Ok(())
    })
}
