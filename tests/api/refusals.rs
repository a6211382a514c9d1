//! What an apiserver refuses, or does not have, is an answer of the moment.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use yurt_net::model::Snapshot;
use yurt_net_tests::apiserver::{FakeApiserver, Fault, On, Resource, objects};

use crate::followed::{Followed, NODE, services};
use crate::{cluster, kube, web};

fn pool(snapshot: &Snapshot) -> Option<&str> {
    let node = snapshot.nodes.get(NODE)?;
    let label = node.labels.get(yurt_net::policy::POOL_LABEL)?;
    Some(&**label)
}

fn move_to(api: &FakeApiserver, pool: &str) -> Result<u64> {
    api.put(objects::node(
        NODE,
        Some(pool),
        Ipv4Addr::new(192, 0, 2, 1).into(),
    ))
}

#[test]
fn an_agent_that_starts_while_an_apiserver_refuses_everything_is_not_good_without_its_pool()
-> Result<()> {
    for code in [401, 403] {
        let api = cluster(&["a"])?;
        let refused = [Fault::Status(code), Fault::Status(code)];
        api.http().fail_next(On::resource(Resource::Nodes), refused);
        let mut followed = Followed::start(&[kube(&api)])?;
        // The first moment in which the source is good.
        followed.until("the table", |_| true)?;
        let pool = followed
            .sources()
            .snapshot()
            .and_then(pool)
            .map(str::to_owned);
        ensure!(pool.as_deref() == Some("hangzhou"), "{code}: {pool:?}");
    }
    Ok(())
}

#[test]
fn a_node_that_moves_while_an_apiserver_refuses_is_seen_to_within_seconds_and_loses_nothing()
-> Result<()> {
    for code in [401, 403] {
        let api = cluster(&["a"])?;
        let mut followed = Followed::start(&[kube(&api)])?;
        followed.until("the pool", |s| pool(s) == Some("hangzhou"))?;
        // As a real one, for a moment after its start.
        api.http()
            .fail_next(On::resource(Resource::Nodes), [Fault::Status(code)]);
        move_to(&api, "ningbo")?;
        api.http().drop_connections()?;
        followed.all_the_while(Duration::from_millis(300), "what was known", |s| {
            pool(s).is_some() && services(s) == ["a"]
        })?;
        let started = std::time::Instant::now();
        followed.until("the other pool", |s| pool(s) == Some("ningbo"))?;
        ensure!(
            started.elapsed() < Duration::from_secs(10),
            "{:?}",
            started.elapsed()
        );
    }
    Ok(())
}

#[test]
fn what_is_installed_while_an_apiserver_is_away_is_asked_for_once_it_is_back() -> Result<()> {
    let api = cluster(&["a"])?;
    api.put(objects::node_bucket("hangzhou-1", "hangzhou", &[NODE]))?;
    api.serve_versions(Resource::NodeBuckets, &[]);
    let mut followed = Followed::start(&[kube(&api)])?;
    // By then it is asked for every eight seconds, and ever more seldom.
    followed.until_status("it was asked for in vain", |_| {
        api.http()
            .requests_on(On::list(Resource::NodeBuckets))
            .len()
            >= 4
    })?;
    api.http().stop();
    api.serve_versions(Resource::NodeBuckets, &["v1alpha1"]);
    followed.follow(Duration::from_millis(300))?;
    api.http().restart()?;
    let started = std::time::Instant::now();
    followed.until("the bucket", |s| !s.buckets.is_empty())?;
    ensure!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    Ok(())
}

#[test]
fn a_replica_that_lags_is_not_asked_to_forget_what_is_known() -> Result<()> {
    let api = cluster(&["a"])?;
    let mut followed = Followed::start(&[kube(&api)])?;
    followed.until("the service", |s| services(s) == ["a"])?;
    followed.until_watched(&api)?;
    api.http().forget_requests();
    api.expire_watches(Resource::Services);
    api.put_all(web("b", 2))?;
    followed.until("the new one", |s| services(s) == ["a", "b"])?;
    let lists = api.http().requests_on(On::list(Resource::Services));
    // Any version would do for "0": also one from before what is known.
    ensure!(
        lists.len() == 1 && lists[0].parameter("resourceVersion").is_empty(),
        "{lists:?}"
    );
    Ok(())
}
