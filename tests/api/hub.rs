//! Behind YurtHub: with the cloud, without it, and in between (openyurt pkg/yurthub). Nothing is lost because of an
//! error.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use yurt_net::source::checkpoint::Loaded;
use yurt_net::source::preferred::SourceStatus;
use yurt_net_tests::apiserver::{
    Corruption, FakeApiserver, FakeYurtHub, HubMode, On, Resource, objects,
};

use crate::followed::{Followed, NODE, services};
use crate::{cluster, web};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// A cloud with four Services and a pool, and a hub that caches what yurt-net asks for.
fn edge() -> Result<(FakeApiserver, FakeYurtHub)> {
    let cloud = cluster(&NAMES)?;
    cloud.put(objects::node_pool("hangzhou", &[NODE]))?;
    let hub = FakeYurtHub::start(&cloud)?;
    hub.cache_agent("yurt-net");
    Ok((cloud, hub))
}

fn source(hub: &FakeYurtHub) -> [String; 1] {
    [format!("yurthub:{}", hub.http().url())]
}

/// All is known and followed.
fn settled(hub: &FakeYurtHub) -> Result<Followed> {
    let mut followed = Followed::start(&source(hub))?;
    settle(hub, &mut followed, NAMES.len())?;
    Ok(followed)
}

fn settle(hub: &FakeYurtHub, followed: &mut Followed, count: usize) -> Result<()> {
    followed.until("all services and the pool", |s| {
        s.services.len() == count && s.slices.len() == count && s.pools.contains_key("hangzhou")
    })?;
    let watched = [
        Resource::Services,
        Resource::EndpointSlices,
        Resource::NodePools,
    ];
    followed.until_status("all is watched", |_| {
        watched.iter().all(|r| hub.http().open_watches(*r) >= 1)
    })
}

/// Nothing fails but what needs a token, which no test has.
fn is_well(status: &SourceStatus) -> bool {
    let error = status.source_error.as_deref().unwrap_or_default();
    let resources = ["endpointslices", "nodepools", "nodes"];
    !resources.iter().any(|resource| error.contains(resource))
}

/// After a restart of the agent, which lists all anew.
fn without_versions(mut followed: Followed) -> Result<Loaded> {
    followed.follow(Duration::from_millis(10))?;
    let mut checkpoint = followed.checkpoint()?;
    checkpoint.provenance.resource_versions.clear();
    Ok(checkpoint)
}

fn all(count: usize) -> impl Fn(&yurt_net::model::Snapshot) -> bool {
    move |s| {
        s.services.len() == count && s.slices.len() == count && s.pools.contains_key("hangzhou")
    }
}

#[test]
fn without_the_cloud_all_stays_and_what_was_missed_comes_with_it() -> Result<()> {
    let (cloud, hub) = edge()?;
    let mut followed = settled(&hub)?;
    for mode in [HubMode::Gap, HubMode::Offline] {
        hub.set_mode(mode);
        followed.all_the_while(Duration::from_millis(700), "all stays", all(4))?;
    }
    cloud.put_all(web("e", 5))?;
    cloud.put(objects::node_pool("hangzhou", &[NODE, "edge-a2"]))?;
    followed.all_the_while(Duration::from_millis(300), "all stays", all(4))?;
    hub.set_mode(HubMode::Online);
    followed.until("what was missed", |s| {
        all(5)(s)
            && s.pools
                .get("hangzhou")
                .is_some_and(|pool| pool.nodes.len() == 2)
    })?;
    followed.until_status("all is well", is_well)
}

#[test]
fn what_the_cloud_has_forgotten_meanwhile_is_listed_again() -> Result<()> {
    let (cloud, hub) = edge()?;
    let mut followed = settled(&hub)?;
    hub.set_mode(HubMode::Offline);
    cloud.put_all(web("e", 5))?;
    cloud.delete(Resource::Services, "default", "a")?;
    cloud.compact();
    followed.all_the_while(Duration::from_millis(300), "all stays", all(4))?;
    hub.set_mode(HubMode::Online);
    followed.until("the new state", |s| services(s) == ["b", "c", "d", "e"])
}

#[test]
fn a_hub_that_starts_anew_without_the_cloud_takes_nothing_away() -> Result<()> {
    let (cloud, hub) = edge()?;
    // The last change is a deletion: the newest item on disk is older than what the agent has seen.
    cloud.put_all(web("e", 5))?;
    let mut followed = Followed::start(&source(&hub))?;
    settle(&hub, &mut followed, 5)?;
    cloud.delete(Resource::Services, "default", "e")?;
    cloud.delete(Resource::EndpointSlices, "default", "e-1")?;
    followed.until("without the last", all(4))?;
    hub.set_mode(HubMode::Offline);
    hub.restart()?;
    // Versions have gone backwards.
    followed.all_the_while(Duration::from_secs(6), "all stays", all(4))?;
    followed.until_status("it answers", is_well)?;
    cloud.put_all(web("f", 6))?;
    hub.set_mode(HubMode::Online);
    followed.until("what came with the cloud", all(5))
}

#[test]
fn an_agent_that_starts_without_the_cloud_reads_what_the_hub_has_kept() -> Result<()> {
    let (_cloud, hub) = edge()?;
    drop(settled(&hub)?);
    hub.set_mode(HubMode::Offline);
    hub.restart()?;
    let mut followed = Followed::start(&source(&hub))?;
    followed.until("all from disk", all(4))?;
    // And one shape of list for each resource: another one would be refused.
    followed.until_status("nothing is refused", is_well)
}

#[test]
fn a_hub_that_is_not_ready_is_waited_for() -> Result<()> {
    let (_cloud, hub) = edge()?;
    let followed = settled(&hub)?;
    let checkpoint = followed.checkpoint()?;
    drop(followed);
    hub.set_mode(HubMode::NotReady);
    let mut followed = Followed::from(&source(&hub), Some(checkpoint))?;
    followed.all_the_while(Duration::from_secs(1), "the checkpoint serves", all(4))?;
    let error = followed.status().source_error.context("nothing is said")?;
    ensure!(error.contains("503"), "{error}");
    // The proxy is ready before its watch cache is.
    hub.set_multiplexer_ready(false);
    hub.set_mode(HubMode::Online);
    followed.all_the_while(Duration::from_secs(1), "the checkpoint serves", all(4))?;
    hub.set_multiplexer_ready(true);
    followed.until_status("it answers", is_well)?;
    followed.until("all", all(4))
}

#[test]
fn a_cache_that_has_lost_most_of_it_is_held_back_until_it_has_said_so_for_ten_seconds() -> Result<()>
{
    let (_cloud, hub) = edge()?;
    let checkpoint = without_versions(settled(&hub)?)?;
    hub.set_mode(HubMode::Offline);
    hub.corrupt_cache(Resource::Services, Corruption::Lose(3));
    hub.restart()?;
    let started = Instant::now();
    let mut followed = Followed::from(&source(&hub), Some(checkpoint))?;
    followed.until_status("it is held back, and said", |status| {
        let mut held = status.held_lists.iter();
        held.any(|held| held == "services: a list of 1 instead of 4, until it is confirmed")
    })?;
    // Watches that end all the time do not make it confirmed any sooner.
    for _ in 0..2 {
        hub.http().drop_connections()?;
        followed.all_the_while(Duration::from_millis(800), "all stays", all(4))?;
    }
    followed.until("confirmed", |s| services(s) == ["d"])?;
    ensure!(started.elapsed() >= Duration::from_secs(10));
    Ok(())
}

#[test]
fn an_event_shows_that_a_half_empty_cache_is_alive() -> Result<()> {
    let (cloud, hub) = edge()?;
    let checkpoint = without_versions(settled(&hub)?)?;
    hub.set_mode(HubMode::Offline);
    hub.corrupt_cache(Resource::Services, Corruption::Empty);
    hub.restart()?;
    let mut followed = Followed::from(&source(&hub), Some(checkpoint))?;
    followed.until_status("it is held back", |status| !status.held_lists.is_empty())?;
    ensure!(followed.status().held_lists[0].contains("0 instead of 4"));
    cloud.put_all(web("e", 5))?;
    // The cache is filled by the cloud, and its watches hear of it.
    hub.set_mode(HubMode::Online);
    followed.until("what the cloud has", |s| services(s).len() == 5)?;
    ensure!(followed.status().held_lists.is_empty());
    Ok(())
}

#[test]
fn a_cache_that_cannot_be_read_takes_nothing_away() -> Result<()> {
    let (cloud, hub) = edge()?;
    let mut followed = settled(&hub)?;
    hub.set_mode(HubMode::Offline);
    for resource in [Resource::Services, Resource::NodePools] {
        hub.corrupt_cache(resource, Corruption::Unreadable);
    }
    hub.restart()?;
    followed.all_the_while(Duration::from_secs(4), "all stays", all(4))?;
    ensure!(followed.status().source_error.is_some());
    cloud.put_all(web("e", 5))?;
    hub.set_mode(HubMode::Online);
    followed.until("what the cloud has", all(5))
}

#[test]
fn a_component_that_the_hub_does_not_cache_keeps_what_it_knows() -> Result<()> {
    let cloud = cluster(&NAMES)?;
    cloud.put(objects::node_pool("hangzhou", &[NODE]))?;
    let hub = FakeYurtHub::start(&cloud)?;
    let checkpoint = without_versions(settled(&hub)?)?;
    hub.set_mode(HubMode::Offline);
    // What is not of pool scope gets 400.
    let mut followed = Followed::from(&source(&hub), Some(checkpoint))?;
    followed.all_the_while(Duration::from_secs(1), "all stays", all(4))?;
    followed.until_status("it is said", |status| {
        let error = status.source_error.as_deref().unwrap_or_default();
        error.contains("nodes") && error.contains("400")
    })
}

#[test]
fn services_and_slices_cost_the_hub_one_list_each_for_ever() -> Result<()> {
    let (_cloud, hub) = edge()?;
    let mut followed = settled(&hub)?;
    for mode in [HubMode::Offline, HubMode::Online] {
        hub.set_mode(mode);
        followed.all_the_while(Duration::from_millis(500), "all stays", all(4))?;
    }
    for resource in [Resource::Services, Resource::EndpointSlices] {
        let lists = hub.http().requests_on(On::list(resource));
        ensure!(lists.len() == 1, "{resource:?}: {lists:?}");
    }
    Ok(())
}

#[test]
fn a_state_of_another_pool_is_no_beginning_for_this_one() -> Result<()> {
    let (cloud, hub) = edge()?;
    cloud.put(objects::node_pool("ningbo", &["edge-b1"]))?;
    let followed = settled(&hub)?;
    let checkpoint = followed.checkpoint()?;
    drop(followed);
    // The same node, told by --nodepool that it is in another pool.
    let mut followed = Followed::in_pool("ningbo", &source(&hub), checkpoint)?;
    followed.until("the other pool", |s| {
        s.pools.keys().map(|name| &**name).eq(["ningbo"])
    })
}
