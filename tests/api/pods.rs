//! The Pods of the own Node, and when what a source says is the cloud's present word.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use yurt_net::model::Snapshot;
use yurt_net_tests::apiserver::{FakeYurtHub, HubMode, On, PodsServer, Resource, objects};

use crate::followed::{Followed, NODE};
use crate::{cluster, kube};

/// Names of the Pods.
fn pods(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.pods.keys().map(|name| &*name.name).collect()
}

#[test]
fn pods_are_asked_for_by_their_node_and_only_once_somebody_wants_them() -> Result<()> {
    let api = cluster(&["a"])?;
    let mut other = objects::pod("elsewhere", "edge-b1");
    other["metadata"]["annotations"] = json!({"yurt-net.openyurt.io/x": "y"});
    api.put(other)?;
    let mut own = objects::pod("web-0", NODE);
    own["metadata"]["annotations"] =
        json!({"yurt-net.openyurt.io/extra-addresses": "10.0.0.9", "example.com/x": "y"});
    api.put(own)?;
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("the service", |s| s.services.len() == 1)?;
    ensure!(
        api.http()
            .requests_on(On::resource(Resource::Pods))
            .is_empty()
    );
    followed.follow_pods();
    followed.until("the own Pod", |s| pods(s) == ["web-0"])?;
    let snapshot = followed.sources().snapshot().context("no snapshot")?;
    let pod = snapshot.pods.values().next().context("no Pod")?;
    ensure!(!pod.uid.is_empty(), "{pod:?}");
    let annotations: Vec<&str> = pod.annotations.keys().map(String::as_str).collect();
    ensure!(annotations == ["yurt-net.openyurt.io/extra-addresses"]);
    ensure!(followed.sources().pods_read_at().is_some());
    api.delete(Resource::Pods, "default", "web-0")?;
    followed.until("no Pod", |s| s.pods.is_empty())?;
    let lists = api.http().requests_on(On::list(Resource::Pods));
    ensure!(lists.len() == 1, "{lists:?}");
    ensure!(lists[0].parameter("fieldSelector") == format!("spec.nodeName={NODE}"));
    Ok(())
}

#[test]
fn no_table_waits_for_pods_or_is_compiled_again_for_them() -> Result<()> {
    let api = cluster(&["a"])?;
    api.pause(Resource::Pods);
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.follow_pods();
    followed.until("the service", |s| s.services.len() == 1)?;
    let _all = followed.sources().take_up();
    api.resume(Resource::Pods);
    api.put(objects::pod("web-0", NODE))?;
    followed.until("the Pod", |s| pods(s) == ["web-0"])?;
    let (_, touched) = followed.sources().take_up().context("no snapshot")?;
    ensure!(
        touched == yurt_net::model::Touched::Slices([].into()),
        "{touched:?}"
    );
    Ok(())
}

#[test]
fn an_apiserver_is_fresh_while_it_answers() -> Result<()> {
    let api = cluster(&["a"])?;
    let mut followed = Followed::start(&[kube(&api)])?;
    ensure!(!followed.sources().freshness().is_fresh());
    followed.until("the service", |s| s.services.len() == 1)?;
    ensure!(followed.sources().freshness().is_fresh());
    Ok(())
}

#[test]
fn a_hub_is_fresh_only_once_the_cloud_was_heard_through_it() -> Result<()> {
    let cloud = cluster(&["a"])?;
    let hub = FakeYurtHub::start(&cloud)?;
    hub.cache_agent("yurt-net");
    let mut followed = Followed::start(&[format!("yurthub:{}", hub.http().url())])?;
    followed.until("the service", |s| s.services.len() == 1)?;
    followed.until_status("the node is watched", |_| {
        hub.http().open_watches(Resource::Nodes) >= 1
            && hub.http().open_watches(Resource::Services) >= 1
    })?;
    // Its cacher makes these up, with the cloud or without.
    cloud.bookmark(Resource::Services);
    followed.follow(Duration::from_millis(300))?;
    ensure!(!followed.sources().freshness().is_fresh());
    cloud.bookmark(Resource::Nodes);
    followed.until_status("it is fresh", |status| status.is_fresh)
}

#[test]
fn a_hub_without_its_cloud_is_not_fresh_although_it_lists_and_watches() -> Result<()> {
    let cloud = cluster(&["a"])?;
    let hub = FakeYurtHub::start(&cloud)?;
    hub.cache_agent("yurt-net");
    let source = [format!("yurthub:{}", hub.http().url())];
    let mut followed = Followed::start(&source)?;
    followed.until("the service", |s| s.services.len() == 1)?;
    hub.set_mode(HubMode::Offline);
    let mut followed = Followed::start(&source)?;
    followed.until("the service from the cache", |s| s.services.len() == 1)?;
    cloud.bookmark(Resource::Nodes);
    followed.follow(Duration::from_millis(500))?;
    ensure!(!followed.sources().freshness().is_fresh());
    ensure!(followed.sources().pods_read_at().is_none());
    Ok(())
}

#[test]
fn a_hub_that_lists_pods_by_itself_is_not_asked_to_relay_them() -> Result<()> {
    let cloud = cluster(&["a"])?;
    // The port is YurtHub's and fixed; the address is this test's.
    let host: std::net::IpAddr = "127.0.0.77".parse()?;
    let local = PodsServer::start(host)?;
    local.set(&[objects::pod("web-0", NODE), objects::pod("web-1", NODE)]);
    let hub = FakeYurtHub::listen((host, 0).into(), &cloud, HubMode::Online)?;
    hub.cache_agent("yurt-net");
    let mut followed = Followed::start(&[format!("yurthub:{}", hub.http().url())])?;
    followed.follow_pods();
    followed.until("both Pods", |s| pods(s) == ["web-0", "web-1"])?;
    local.set(&[objects::pod("web-0", NODE)]);
    followed.sources().refresh_pods();
    followed.until("one Pod", |s| pods(s) == ["web-0"])?;
    let relayed = hub.http().requests_on(On::resource(Resource::Pods));
    ensure!(relayed.is_empty(), "{relayed:?}");
    Ok(())
}

#[test]
fn a_hub_that_lists_no_pods_relays_them() -> Result<()> {
    let cloud = cluster(&["a"])?;
    let host: std::net::IpAddr = "127.0.0.78".parse()?;
    cloud.put(objects::pod("web-0", NODE))?;
    let _none = PodsServer::start(host)?;
    let hub = FakeYurtHub::listen((host, 0).into(), &cloud, HubMode::Online)?;
    hub.cache_agent("yurt-net");
    let mut followed = Followed::start(&[format!("yurthub:{}", hub.http().url())])?;
    followed.follow_pods();
    followed.until("the Pod", |s| pods(s) == ["web-0"])?;
    let relayed = hub.http().requests_on(On::list(Resource::Pods));
    ensure!(relayed.len() == 1, "{relayed:?}");
    Ok(())
}
