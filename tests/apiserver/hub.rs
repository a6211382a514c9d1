//! What a client of YurtHub sees when the cloud comes and goes.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use serde_json::json;
use yurt_net_tests::apiserver::Corruption;
use yurt_net_tests::apiserver::FakeApiserver;
use yurt_net_tests::apiserver::FakeYurtHub;
use yurt_net_tests::apiserver::HubMode;
use yurt_net_tests::apiserver::Resource;
use yurt_net_tests::apiserver::Settings;

use crate::client::Answer;
use crate::client::ask;
use crate::pool;
use crate::service;

const SERVICES: &str = "/api/v1/services";
const POOLS: &str = "/apis/apps.openyurt.io/v1beta2/nodepools";
const BUCKETS: &str = "/apis/apps.openyurt.io/v1alpha1/nodebuckets";

/// A cloud with a Service and a NodePool, and a hub that caches yurt-net.
fn edge() -> Result<(FakeApiserver, FakeYurtHub)> {
    let cloud = FakeApiserver::with(Settings {
        future_wait: Duration::from_millis(50),
        ..Settings::default()
    })?;
    cloud.put_all([service("a", "web"), pool("a", &["n1"])])?;
    let hub = FakeYurtHub::start(&cloud)?;
    hub.cache_agent("yurt-net");
    Ok((cloud, hub))
}

fn get(hub: &FakeYurtHub, path: &str) -> Result<Answer> {
    ask(hub.http(), path, &[("user-agent", "yurt-net/0.1")])
}

fn list(hub: &FakeYurtHub, path: &str) -> Result<(u16, Vec<String>, String)> {
    let mut answer = get(hub, path)?;
    let list: Value = serde_json::from_slice(&answer.body()?).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let items = list["items"].as_array().into_iter().flatten();
    let names = items.map(|item| text(&item["metadata"]["name"])).collect();
    let version = text(&list["metadata"]["resourceVersion"]);
    Ok((answer.status, names, version))
}

fn watch(hub: &FakeYurtHub, path: &str, version: &str) -> Result<Answer> {
    get(hub, &format!("{path}?watch=1&resourceVersion={version}"))
}

#[test]
fn online_it_is_as_the_apiserver() -> Result<()> {
    let (cloud, hub) = edge()?;
    for (resource, path) in [(Resource::Services, SERVICES), (Resource::NodePools, POOLS)] {
        let (status, names, version) = list(&hub, path)?;
        assert_eq!((status, names), (200, vec!["a".to_owned()]));
        let mut events = watch(&hub, path, &version)?;
        cloud.put(match resource {
            Resource::Services => service("b", "web"),
            _ => pool("b", &[]),
        })?;
        assert_eq!(events.event()?.1, "b", "{path}");
    }
    Ok(())
}

#[test]
fn who_has_no_token_may_not_read_all() -> Result<()> {
    let (_cloud, hub) = edge()?;
    assert_eq!(list(&hub, BUCKETS)?.0, 403);
    let token = ("authorization", "Bearer t");
    assert_eq!(ask(hub.http(), BUCKETS, &[token])?.status, 200);
    Ok(())
}

#[test]
fn a_hub_that_is_not_ready_answers_503_and_429() -> Result<()> {
    let (_cloud, hub) = edge()?;
    hub.set_multiplexer_ready(false);
    let answer = get(&hub, SERVICES)?;
    assert_eq!((answer.status, answer.header("retry-after")), (429, "1"));
    assert_eq!(list(&hub, POOLS)?.0, 200);
    hub.set_multiplexer_ready(true);
    assert_eq!(list(&hub, SERVICES)?.0, 200);
    hub.set_mode(HubMode::NotReady);
    for path in [SERVICES, POOLS, "/v1/readyz"] {
        assert_eq!(get(&hub, path)?.status, 503, "{path}");
    }
    Ok(())
}

#[test]
fn pool_scope_without_the_cloud_is_served_and_silent() -> Result<()> {
    let (cloud, hub) = edge()?;
    let version = list(&hub, SERVICES)?.2;
    let mut events = watch(&hub, SERVICES, &version)?;
    hub.set_mode(HubMode::Offline);
    cloud.put(service("b", "web"))?;
    assert!(events.is_silent()?);
    assert_eq!(list(&hub, SERVICES)?, (200, vec!["a".to_owned()], version));
    // All that was missed, in one burst.
    hub.set_mode(HubMode::Online);
    assert_eq!(events.event()?.1, "b");
    // The cloud has forgotten what was missed.
    hub.set_mode(HubMode::Offline);
    cloud.put(service("c", "web"))?;
    cloud.compact();
    hub.set_mode(HubMode::Online);
    assert!(events.part()?.is_none());
    assert_eq!(list(&hub, SERVICES)?.1, ["a", "b", "c"]);
    Ok(())
}

#[test]
fn other_resources_without_the_cloud_come_from_disk() -> Result<()> {
    let (cloud, hub) = edge()?;
    let (_status, _names, online) = list(&hub, POOLS)?;
    cloud.put(service("newer", "web"))?;
    let newest = cloud.version();
    let mut events = watch(&hub, POOLS, &online)?;
    assert!(events.is_silent()?);
    hub.set_mode(HubMode::Gap);
    assert!(events.part().is_err(), "what was open to the cloud breaks");
    assert_eq!(watch(&hub, POOLS, &online)?.status, 502);
    let (status, names, offline) = list(&hub, POOLS)?;
    assert_eq!((status, names), (200, vec!["a".to_owned()]));
    assert!(offline.parse::<u64>()? < newest);

    hub.set_mode(HubMode::Offline);
    let mut events = watch(&hub, POOLS, &offline)?;
    assert_eq!(events.status, 200);
    cloud.put(pool("b", &[]))?;
    assert!(events.is_silent()?);
    assert_eq!(get(&hub, &format!("{POOLS}/a"))?.status, 200);
    assert_eq!(get(&hub, &format!("{POOLS}/b"))?.status, 404);
    assert_eq!(list(&hub, BUCKETS)?.0, 404);
    let (status, ..) = list(&hub, &format!("{POOLS}?labelSelector=x"))?;
    assert_eq!(status, 400);
    let stranger = [("user-agent", "curl/8")];
    assert_eq!(ask(hub.http(), POOLS, &stranger)?.status, 400);

    hub.set_mode(HubMode::Online);
    assert!(
        events.part()?.is_none(),
        "a clean end when the cloud is back"
    );
    assert_eq!(list(&hub, POOLS)?.1, ["a", "b"]);
    Ok(())
}

#[test]
fn a_silent_watch_ends_by_its_time_too() -> Result<()> {
    let (_cloud, hub) = edge()?;
    hub.set_mode(HubMode::Offline);
    let mut events = get(&hub, &format!("{POOLS}?watch=1&timeoutSeconds=1"))?;
    assert!(events.part()?.is_none());
    Ok(())
}

#[test]
fn a_list_of_nothing_has_version_zero() -> Result<()> {
    let (cloud, hub) = edge()?;
    cloud.delete(Resource::NodePools, "", "a")?;
    list(&hub, POOLS)?;
    hub.set_mode(HubMode::Offline);
    assert_eq!(list(&hub, POOLS)?, (200, vec![], "0".to_owned()));
    Ok(())
}

#[test]
fn a_restart_without_the_cloud_finds_what_is_on_disk() -> Result<()> {
    let (cloud, hub) = edge()?;
    cloud.put(service("b", "web"))?;
    let oldest = cloud.put(service("c", "web"))?;
    cloud.delete(Resource::Services, "default", "b")?;
    let online = list(&hub, SERVICES)?.2;
    let mut events = watch(&hub, SERVICES, &online)?;
    hub.set_mode(HubMode::Offline);
    hub.restart()?;
    assert!(events.part().is_err());
    let (status, names, version) = list(&hub, SERVICES)?;
    assert_eq!((status, names), (200, vec!["a".to_owned(), "c".to_owned()]));
    assert_eq!(version, oldest.to_string(), "older than before the restart");
    assert_eq!(watch(&hub, SERVICES, &online)?.status, 504);
    assert!(watch(&hub, SERVICES, &version)?.is_silent()?);
    hub.set_mode(HubMode::Online);
    cloud.put(service("d", "web"))?;
    assert_eq!(list(&hub, SERVICES)?.1, ["a", "c", "d"]);
    Ok(())
}

#[test]
fn a_power_cut_leaves_less_on_disk() -> Result<()> {
    let (cloud, hub) = edge()?;
    cloud.put_all([service("b", "web"), pool("b", &[])])?;
    list(&hub, POOLS)?;
    hub.set_mode(HubMode::Offline);
    for (corruption, services, pools) in [
        (Corruption::Lose(1), json!([200, 1]), json!([200, 1])),
        (Corruption::Empty, json!([200, 0]), json!([200, 0])),
        (Corruption::Unreadable, json!([429, 0]), json!([500, 0])),
    ] {
        hub.corrupt_cache(Resource::Services, corruption);
        hub.corrupt_cache(Resource::NodePools, corruption);
        hub.restart()?;
        for (path, expected) in [(SERVICES, services), (POOLS, pools)] {
            let (status, names, _version) = list(&hub, path)?;
            assert_eq!(json!([status, names.len()]), expected, "{corruption:?}");
        }
    }
    Ok(())
}
