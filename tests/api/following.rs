//! Lists and watches when nothing goes wrong.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use yurt_net_tests::apiserver::{On, Resource, objects};

use crate::followed::{Followed, NODE, services};
use crate::{address, cluster, kube, web, yurthub};

#[test]
fn a_cluster_is_there_after_one_list_of_each_resource_and_followed_by_watches() -> Result<()> {
    let api = cluster(&["a", "b"])?;
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("two services", |s| {
        services(s) == ["a", "b"] && s.slices.len() == 2
    })?;
    api.put_all(web("c", 3))?;
    followed.until("a third service", |s| {
        services(s) == ["a", "b", "c"] && s.slices.len() == 3
    })?;
    api.delete(Resource::Services, "default", "a")?;
    followed.until("the first one is gone", |s| services(s) == ["b", "c"])?;
    for resource in [
        Resource::Services,
        Resource::EndpointSlices,
        Resource::Nodes,
    ] {
        let lists = api.http().requests_on(On::list(resource));
        ensure!(lists.len() == 1, "{resource:?}: {lists:?}");
        ensure!(lists[0].parameter("resourceVersion") == "0", "{lists:?}");
        ensure!(lists[0].parameter("labelSelector").is_empty(), "{lists:?}");
        ensure!(
            lists[0].header("user-agent").starts_with("yurt-net/"),
            "{lists:?}"
        );
        ensure!(lists[0].header("accept-encoding") == "gzip", "{lists:?}");
    }
    Ok(())
}

#[test]
fn the_own_node_alone_is_asked_for_and_what_is_of_its_pool() -> Result<()> {
    let api = cluster(&["a"])?;
    let other = address(99);
    api.put(objects::node("edge-b1", Some("ningbo"), other))?;
    api.put(objects::node_pool("hangzhou", &[NODE]))?;
    api.put(objects::node_pool("ningbo", &["edge-b1"]))?;
    api.put(objects::node_bucket(
        "hangzhou-1",
        "hangzhou",
        &[NODE, "edge-a2"],
    ))?;
    api.put(objects::node_bucket("ningbo-1", "ningbo", &["edge-b1"]))?;
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("node, pool and bucket", |s| {
        s.nodes.keys().map(|name| &**name).eq([NODE])
            && s.pools.keys().map(|name| &**name).eq(["hangzhou"])
            && s.buckets.keys().map(|name| &**name).eq(["hangzhou-1"])
    })?;
    // It moves: what is of the other pool takes the place of the first.
    api.put(objects::node(NODE, Some("ningbo"), other))?;
    followed.until("the other pool", |s| {
        s.pools.keys().map(|name| &**name).eq(["ningbo"])
            && s.buckets.keys().map(|name| &**name).eq(["ningbo-1"])
    })
}

#[test]
fn a_cluster_without_openyurt_and_without_rights_is_served_all_the_same() -> Result<()> {
    let api = cluster(&["a"])?;
    for resource in [
        Resource::NodePools,
        Resource::NodeBuckets,
        Resource::PoolServices,
    ] {
        api.serve_versions(resource, &[]);
    }
    let forbidden = yurt_net_tests::apiserver::Fault::Status(403);
    api.http()
        .fail_always(On::resource(Resource::ServiceCidrs), forbidden);
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("the service", |s| services(s) == ["a"])?;
    let error = followed
        .status()
        .source_error
        .context("nothing is said about it")?;
    ensure!(error.contains("servicecidrs"), "{error}");
    Ok(())
}

#[test]
fn an_older_openyurt_is_asked_in_its_version() -> Result<()> {
    let api = cluster(&["a"])?;
    api.put(objects::node_pool("hangzhou", &[NODE]))?;
    api.serve_versions(Resource::NodePools, &["v1beta1"]);
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("the pool", |s| s.pools.contains_key("hangzhou"))
}

#[test]
fn a_restarted_agent_goes_on_where_it_was_and_costs_less_than_ten_kilobytes() -> Result<()> {
    let names: Vec<String> = (0..200).map(|i| format!("web-{i:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let api = cluster(&names)?;
    let mut followed = Followed::start(&[yurthub(&api)])?;
    followed.until("all services", |s| s.services.len() == 200)?;
    let checkpoint = followed.checkpoint()?;
    drop(followed);
    api.delete(Resource::Services, "default", "web-007")?;
    api.http().forget_requests();

    let mut followed = Followed::from(&[yurthub(&api)], Some(checkpoint))?;
    ensure!(followed.status().provenance == yurt_net::source::preferred::Origin::Checkpoint);
    followed.until("what changed meanwhile", |s| s.services.len() == 199)?;
    followed.follow(Duration::from_millis(500))?;
    let lists = api.http().requests_on(On::list(Resource::Services));
    ensure!(lists.is_empty(), "{lists:?}");
    let received: u64 = followed.status().received.values().map(|r| r.bytes).sum();
    ensure!(received < 10_000, "{received} bytes");
    Ok(())
}

#[test]
fn one_bad_object_costs_only_itself() -> Result<()> {
    let api = cluster(&["a", "b"])?;
    api.edit(Resource::Services, "default", "a", |service| {
        service["spec"]["ports"][0]["port"] = 99_999.into();
    })?;
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("the good one", |s| {
        services(s) == ["b"] && s.rejections.len() == 1
    })?;
    api.edit(Resource::Services, "default", "b", |service| {
        service["spec"]["ports"][0]["port"] = "http".into();
    })?;
    followed.until("its last good version", |s| {
        services(s) == ["b"] && s.rejections.len() == 2
    })?;
    api.edit(Resource::Services, "default", "a", |service| {
        service["spec"]["ports"][0]["port"] = 80.into();
    })?;
    followed.until("the mended one", |s| {
        services(s) == ["a", "b"] && s.rejections.len() == 1
    })
}
