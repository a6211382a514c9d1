//! Watches.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use serde_json::json;
use yurt_net_tests::apiserver::FakeApiserver;
use yurt_net_tests::apiserver::Resource;
use yurt_net_tests::apiserver::Settings;

use crate::client::watch;
use crate::pool;
use crate::service;

const SERVICES: &str = "/api/v1/services";

fn from(path: &str, version: u64) -> String {
    format!("{path}?resourceVersion={version}")
}

#[test]
fn a_watch_tells_what_happened_since_its_version_and_what_happens() -> Result<()> {
    let api = FakeApiserver::start()?;
    let start = api.put(service("a", "web"))?;
    api.put(service("b", "web"))?;
    api.delete(Resource::Services, "default", "a")?;
    let mut events = watch(api.http(), &from(SERVICES, start))?;
    assert_eq!(events.event()?, ("ADDED".into(), "b".into(), start + 1));
    assert_eq!(events.event()?, ("DELETED".into(), "a".into(), start + 2));
    assert!(events.is_silent()?);
    api.put(pool("nobody-watches", &[]))?;
    api.edit(Resource::Services, "default", "b", |b| {
        b["spec"]["x"] = json!(1);
    })?;
    assert_eq!(events.event()?, ("MODIFIED".into(), "b".into(), start + 4));
    assert_eq!(api.http().open_watches(Resource::Services), 1);
    drop(events);
    api.wait_for_watches(Resource::Services, 0)
}

#[test]
fn a_watch_from_now_begins_with_what_is_there() -> Result<()> {
    let api = FakeApiserver::start()?;
    api.put_all([service("a", "web"), service("b", "web")])?;
    for path in [SERVICES.to_owned(), from(SERVICES, 0)] {
        let mut events = watch(api.http(), &path)?;
        for name in ["a", "b"] {
            let (change, found, _version) = events.event()?;
            assert_eq!((change.as_str(), found.as_str()), ("ADDED", name));
        }
        assert!(events.is_silent()?);
    }
    let initial =
        "?sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan";
    let mut events = watch(api.http(), &format!("{SERVICES}{initial}"))?;
    events.event()?;
    events.event()?;
    let end = events.line()?;
    assert_eq!(end["type"], "BOOKMARK");
    let annotations = &end["object"]["metadata"]["annotations"];
    assert_eq!(annotations["k8s.io/initial-events-end"], "true");
    Ok(())
}

#[test]
fn an_object_that_leaves_the_selector_is_deleted() -> Result<()> {
    let api = FakeApiserver::start()?;
    let start = api.put(service("a", "web"))?;
    let path = from(SERVICES, start) + "&labelSelector=app%3Dweb";
    let mut events = watch(api.http(), &path)?;
    for app in ["db", "other", "web"] {
        api.put(service("a", app))?;
    }
    assert_eq!(events.event()?.0, "DELETED");
    assert_eq!(events.event()?, ("ADDED".into(), "a".into(), start + 3));
    Ok(())
}

#[test]
fn a_version_that_is_too_old_has_expired() -> Result<()> {
    let api = FakeApiserver::start()?;
    let start = api.put(service("a", "web"))?;
    api.put(service("b", "web"))?;
    api.compact();
    let mut events = watch(api.http(), &from(SERVICES, start))?;
    assert_eq!(events.status, 200);
    let error = events.line()?;
    assert_eq!(error["type"], "ERROR");
    assert_eq!(error["object"]["code"], 410);
    assert_eq!(error["object"]["reason"], "Expired");
    assert!(events.part()?.is_none());
    let mut events = watch(api.http(), &from(SERVICES, start + 1))?;
    api.put(service("c", "web"))?;
    assert_eq!(events.event()?.1, "c");
    Ok(())
}

#[test]
fn bookmarks_come_when_wanted() -> Result<()> {
    let api = FakeApiserver::with(Settings {
        bookmark_every: Duration::from_millis(50),
        ..Settings::default()
    })?;
    let start = api.put(service("a", "web"))?;
    let path = from(SERVICES, start);
    let mut without = watch(api.http(), &path)?;
    let mut with = watch(api.http(), &(path + "&allowWatchBookmarks=true"))?;
    let version = api.put(pool("a", &[]))?;
    let first = with.event()?;
    let second = with.event()?;
    assert_eq!(second, ("BOOKMARK".into(), String::new(), version));
    assert!(first.2 >= start);
    assert!(without.is_silent()?);
    api.bookmark(Resource::Services);
    assert_eq!(without.event()?.0, "BOOKMARK");
    Ok(())
}

#[test]
fn a_watch_ends_cleanly_when_its_time_is_over() -> Result<()> {
    let api = FakeApiserver::start()?;
    let path = from(SERVICES, api.version()) + "&timeoutSeconds=1";
    let mut events = watch(api.http(), &path)?;
    assert!(events.part()?.is_none());
    Ok(())
}

#[test]
fn scripts_speak_between_the_events() -> Result<()> {
    let api = FakeApiserver::start()?;
    let start = api.version();
    let mut events = watch(api.http(), &from(SERVICES, start))?;
    api.put(service("a", "web"))?;
    api.repeat_last_event(Resource::Services);
    assert_eq!(events.event()?, events.event()?);
    api.inject(Resource::Services, "no json\n");
    assert_eq!(events.part()?.as_deref(), Some(&b"no json\n"[..]));
    api.expire_watches(Resource::Services);
    assert_eq!(events.line()?["object"]["code"], 410);
    assert!(events.part()?.is_none());
    // None of it is for those who come later.
    let mut later = watch(api.http(), &from(SERVICES, start))?;
    assert_eq!(later.event()?.1, "a");
    assert!(later.is_silent()?);
    Ok(())
}

#[test]
fn a_paused_resource_is_told_later() -> Result<()> {
    let api = FakeApiserver::start()?;
    let pools = Resource::NodePools.path();
    let mut services = watch(api.http(), &from(SERVICES, api.version()))?;
    let mut events = watch(api.http(), &from(&pools, api.version()))?;
    api.pause(Resource::NodePools);
    api.put(pool("a", &[]))?;
    api.put(service("a", "web"))?;
    assert_eq!(services.event()?.1, "a");
    assert!(events.is_silent()?);
    api.resume(Resource::NodePools);
    assert_eq!(events.event()?.1, "a");
    api.pause(Resource::NodePools);
    api.end_all_watches();
    assert!(events.part()?.is_none());
    assert!(services.part()?.is_none());
    Ok(())
}

#[test]
fn a_restored_cluster_has_older_versions() -> Result<()> {
    let api = FakeApiserver::with(Settings {
        future_wait: Duration::from_millis(50),
        ..Settings::default()
    })?;
    api.put(service("a", "web"))?;
    let old = api.version();
    let new = api.put(service("b", "web"))?;
    let mut events = watch(api.http(), &from(SERVICES, new))?;
    api.rewind(old - 1);
    assert!(events.part()?.is_none());
    assert_eq!(watch(api.http(), &from(SERVICES, new))?.status, 504);
    let mut events = watch(api.http(), &from(SERVICES, old - 1))?;
    assert_eq!(api.put(service("c", "web"))?, old);
    assert_eq!(events.event()?.1, "c");
    Ok(())
}

#[test]
fn a_future_version_may_be_silent() -> Result<()> {
    let api = FakeApiserver::with(Settings {
        is_future_watch_silent: true,
        ..Settings::default()
    })?;
    let version = api.version();
    let mut events = watch(api.http(), &from(SERVICES, version + 1))?;
    api.put(service("a", "web"))?;
    assert!(events.is_silent()?);
    api.put(service("b", "web"))?;
    assert_eq!(events.event()?.1, "b");
    Ok(())
}

#[test]
fn events_name_their_kind_and_version() -> Result<()> {
    let api = FakeApiserver::start()?;
    let path = "/apis/apps.openyurt.io/v1beta1/nodepools";
    let mut events = watch(api.http(), &from(path, api.version()))?;
    api.put(pool("a", &["n1"]))?;
    let event: Value = events.line()?;
    assert_eq!(event["object"]["apiVersion"], "apps.openyurt.io/v1beta1");
    assert_eq!(event["object"]["kind"], "NodePool");
    assert_eq!(event["object"]["status"]["nodes"], json!(["n1"]));
    Ok(())
}
