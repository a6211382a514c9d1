//! Gets and lists.

use std::io::Read;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use flate2::read::GzDecoder;
use serde_json::Value;
use serde_json::json;
use yurt_net_tests::apiserver::FakeApiserver;
use yurt_net_tests::apiserver::Resource;
use yurt_net_tests::apiserver::Settings;

use crate::client::ask;
use crate::client::json;
use crate::pool;
use crate::service;

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().into_iter().flatten();
    let name = |item: &'_ Value| item["metadata"]["name"].as_str().is_some();
    items
        .filter(|item| name(item))
        .map(|item| item["metadata"]["name"].as_str().unwrap_or_default())
        .collect()
}

#[test]
fn a_list_of_a_built_in_kind_has_items_without_their_kind() -> Result<()> {
    let api = FakeApiserver::start()?;
    let version = api.put(service("web", "web"))?;
    let (status, list) = json(api.http(), "/api/v1/services")?;
    assert_eq!(status, 200);
    assert_eq!(list["kind"], "ServiceList");
    assert_eq!(list["apiVersion"], "v1");
    assert_eq!(
        list["metadata"],
        json!({"resourceVersion": version.to_string()})
    );
    let item = &list["items"][0];
    assert_eq!(item["kind"], Value::Null);
    assert_eq!(item["metadata"]["resourceVersion"], version.to_string());
    assert!(item["metadata"]["uid"].is_string());
    Ok(())
}

#[test]
fn a_list_of_custom_resources_tells_its_version_last() -> Result<()> {
    let api = FakeApiserver::start()?;
    api.put(pool("a", &["n1"]))?;
    let mut answer = ask(api.http(), "/apis/apps.openyurt.io/v1beta1/nodepools", &[])?;
    let text = String::from_utf8(answer.body()?)?;
    assert!(text.find("\"items\"") < text.find("NodePoolList"), "{text}");
    let list: Value = serde_json::from_str(&text)?;
    assert_eq!(list["items"][0]["kind"], "NodePool");
    assert_eq!(list["items"][0]["apiVersion"], "apps.openyurt.io/v1beta1");
    assert_eq!(list["metadata"]["continue"], "");
    Ok(())
}

/// As `kubectl` and metadata informers ask for it.
#[test]
fn a_list_of_metadata_has_its_version_and_nothing_else_of_its_items() -> Result<()> {
    let api = FakeApiserver::start()?;
    let accept =
        "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
    let list = |path: &str| -> Result<Value> {
        let body = ask(api.http(), path, &[("accept", accept)])?.body()?;
        Ok(serde_json::from_slice(&body)?)
    };
    api.put(service("web", "web"))?;
    let version = api.put(pool("a", &["n1"]))?;
    let services = list("/api/v1/services?limit=1")?;
    let pools = list("/apis/apps.openyurt.io/v1beta1/nodepools")?;
    for (list, name) in [(services, "web"), (pools, "a")] {
        assert_eq!(list["kind"], "PartialObjectMetadataList");
        assert_eq!(list["apiVersion"], "meta.k8s.io/v1");
        assert_eq!(list["metadata"]["resourceVersion"], version.to_string());
        let item = &list["items"][0];
        assert_eq!(item["kind"], "PartialObjectMetadata");
        assert_eq!(item["metadata"]["name"], name);
        assert_eq!(item["spec"], Value::Null);
    }
    Ok(())
}

#[test]
fn lists_by_namespace_and_selectors() -> Result<()> {
    let api = FakeApiserver::start()?;
    let mut elsewhere = service("c", "web");
    elsewhere["metadata"]["namespace"] = json!("other");
    api.put_all([service("a", "web"), service("b", "db"), elsewhere])?;
    for (path, expected) in [
        ("/api/v1/services", &["a", "b", "c"][..]),
        ("/api/v1/namespaces/default/services", &["a", "b"]),
        ("/api/v1/services?labelSelector=app%3Dweb", &["a", "c"]),
        ("/api/v1/services?labelSelector=app!%3Dweb", &["b"]),
        ("/api/v1/services?fieldSelector=metadata.name%3Db", &["b"]),
        ("/api/v1/services?labelSelector=!app", &[]),
    ] {
        let (_status, list) = json(api.http(), path)?;
        assert_eq!(names(&list), expected, "{path}");
    }
    Ok(())
}

#[test]
fn one_object_or_404() -> Result<()> {
    let api = FakeApiserver::start()?;
    api.put(pool("a", &[]))?;
    let path = Resource::NodePools.path();
    let (status, object) = json(api.http(), &format!("{path}/a"))?;
    assert_eq!((status, &object["kind"]), (200, &json!("NodePool")));
    let (status, object) = json(api.http(), &format!("{path}/b"))?;
    assert_eq!((status, &object["reason"]), (404, &json!("NotFound")));
    assert_eq!(
        object["message"],
        "nodepools.apps.openyurt.io \"b\" not found"
    );
    api.serve_versions(Resource::NodePools, &["v1beta1"]);
    assert_eq!(json(api.http(), &path)?.0, 404);
    assert_eq!(
        json(api.http(), &path.replace("v1beta2", "v1beta1"))?.0,
        200
    );
    assert_eq!(json(api.http(), "/apis/apps.openyurt.io/v1beta2")?.0, 404);
    assert_eq!(json(api.http(), "/apis/apps.openyurt.io/v1beta1")?.0, 200);
    Ok(())
}

#[test]
fn large_lists_are_compressed_on_request() -> Result<()> {
    let api = FakeApiserver::start()?;
    api.put_all((0..1000).map(|n| service(&format!("web-{n}"), "web")))?;
    let path = "/api/v1/services?resourceVersion=0";
    let plain = ask(api.http(), path, &[])?.body()?;
    api.http().forget_requests();
    for _ in 0..2 {
        let mut answer = ask(api.http(), path, &[("accept-encoding", "gzip")])?;
        assert_eq!(answer.header("content-encoding"), "gzip");
        let packed = answer.body()?;
        let mut body = Vec::new();
        GzDecoder::new(&packed[..]).read_to_end(&mut body)?;
        assert!(body == plain);
        assert!(packed.len() < plain.len() / 4);
        let sent = u64::try_from(packed.len())?;
        assert_eq!(api.http().requests()[0].body_bytes, sent);
    }
    let path = "/api/v1/services?fieldSelector=metadata.name%3Dweb-1";
    let small = ask(api.http(), path, &[("accept-encoding", "gzip")])?;
    assert_eq!(small.header("content-encoding"), "");
    Ok(())
}

#[test]
fn pages_show_one_moment_and_expire() -> Result<()> {
    let api = FakeApiserver::start()?;
    api.put_all(["a", "b", "c", "d", "e"].map(|name| service(name, "web")))?;
    let path = "/api/v1/services?limit=2";
    let (_status, first) = json(api.http(), path)?;
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    api.delete(Resource::Services, "default", "e")?;
    let mut page = first.clone();
    let mut seen = Vec::new();
    while let Some(token) = page["metadata"]["continue"].as_str() {
        page = json(api.http(), &format!("{path}&continue={token}"))?.1;
        assert_eq!(
            page["metadata"]["resourceVersion"],
            first["metadata"]["resourceVersion"]
        );
        seen.extend(names(&page).into_iter().map(str::to_owned));
    }
    assert_eq!(seen, ["c", "d", "e"]);
    api.compact();
    let token = first["metadata"]["continue"].as_str().unwrap_or_default();
    let (status, error) = json(api.http(), &format!("{path}&continue={token}"))?;
    assert_eq!((status, &error["reason"]), (410, &json!("Expired")));
    let (_status, all) = json(api.http(), &format!("{path}&resourceVersion=0"))?;
    assert_eq!(names(&all).len(), 4);
    Ok(())
}

#[test]
fn a_version_of_the_future_is_waited_for() -> Result<()> {
    let api = FakeApiserver::with(Settings {
        future_wait: Duration::from_millis(100),
        ..Settings::default()
    })?;
    let next = api.version() + 1;
    let path = format!("/api/v1/services?resourceVersion={next}");
    let start = Instant::now();
    let (status, error) = json(api.http(), &path)?;
    assert_eq!((status, &error["reason"]), (504, &json!("Timeout")));
    assert!(start.elapsed() >= Duration::from_millis(100));
    api.put(pool("a", &[]))?;
    assert_eq!(json(api.http(), &path)?.0, 200);
    Ok(())
}

#[test]
fn the_watch_cache_knows_what_happened_to_its_own_resource() -> Result<()> {
    let api = FakeApiserver::start()?;
    let old = api.put(service("a", "web"))?;
    let new = api.put(pool("a", &[]))?;
    for (path, expected) in [
        ("/api/v1/services?resourceVersion=0", old),
        ("/api/v1/services", new),
    ] {
        let (_status, list) = json(api.http(), path)?;
        let version = &list["metadata"]["resourceVersion"];
        assert_eq!(version, &json!(expected.to_string()), "{path}");
    }
    Ok(())
}
