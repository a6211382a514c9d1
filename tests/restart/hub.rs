//! On an edge node the apiserver that a Pod is told of is YurtHub, whose cache is believed as one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use yurt_net::observe::status::Status;
use yurt_net::source::preferred::Origin;
use yurt_net_tests::apiserver::{
    Corruption, Endpoint, FakeApiserver, FakeYurtHub, Fault, HubMode, On, Resource, Settings, Verb,
    objects,
};
use yurt_net_tests::lab::{Lab, Node};

const NODE: &str = "edge-1";
const SERVICES: u8 = 5;
const PATIENCE: Duration = Duration::from_secs(60);

/// A Service and its slice.
fn web(id: u8) -> [Value; 2] {
    let name = format!("s{id}");
    let address = |net| IpAddr::from(Ipv4Addr::new(10, net, 0, id));
    let endpoint = objects::endpoint(address(1), NODE);
    [
        objects::service(&name, address(96), 80),
        objects::slice(&format!("{name}-1"), &name, 8080, [endpoint]),
    ]
}

fn cluster() -> Result<FakeApiserver> {
    let api = FakeApiserver::start()?;
    api.put(objects::node(
        NODE,
        Some("hangzhou"),
        Ipv4Addr::new(192, 0, 2, 1).into(),
    ))?;
    for id in 1..=SERVICES {
        api.put_all(web(id))?;
    }
    Ok(api)
}

/// Whoever listens at YurtHub's port, and has nothing yet.
fn hub(edge: &Node) -> Result<FakeApiserver> {
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 10261));
    let listen = || FakeApiserver::listen(at, Settings::default(), Vec::new());
    edge.netns().run(listen)?
}

/// Has an agent write all Services into its maps, and takes its state directory away.
fn leave_maps_alone(edge: &Node) -> Result<()> {
    let agent = edge.start_agent_from("yurthub:", NODE, &[])?;
    let count = usize::from(SERVICES);
    edge.wait_for_status("all", |s| s.ready && s.services == count)?;
    agent.kill9()?;
    std::fs::remove_dir_all(edge.state_dir())?;
    Ok(())
}

/// Its cache is rebuilt from files, of which none is left.
#[test]
fn services_stay_while_a_hub_that_is_named_as_an_apiserver_has_lost_its_cache() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let cloud = edge.netns().run(cluster)??;
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 10261));
    let hub = edge
        .netns()
        .run(|| FakeYurtHub::listen(at, &cloud, HubMode::Online))??;
    hub.cache_agent("yurt-net");
    let source = format!("kube:{}", hub.http().url());
    let _agent = edge.start_agent_from(&source, NODE, &[])?;
    let count = usize::from(SERVICES);
    edge.wait_for_status("what the hub has", |s| {
        s.ready && s.source.provenance == Origin::Hub && s.services == count
    })?;

    hub.set_mode(HubMode::Offline);
    hub.corrupt_cache(Resource::Services, Corruption::Empty);
    edge.netns().run(|| hub.restart())??;
    // An apiserver whose versions went back would be listed anew, and believed.
    let is_watched = |http: &Endpoint| http.open_watches(Resource::Services) > 0;
    hub.http().wait_until(PATIENCE, is_watched)?;
    let is_good = |s: &Status| s.source.sources.iter().all(|source| source.is_good);
    let without = edge.wait_for_status("the hub answers", is_good)?;
    ensure!(without.services == count, "{} services", without.services);
    ensure!(!without.source.is_fresh, "a cache is no word of the cloud");

    hub.set_mode(HubMode::Online);
    cloud.put_all(web(SERVICES + 1))?;
    let back = edge.wait_for_status("the cloud's word", |s| s.services == count + 1)?;
    ensure!(back.source.provenance == Origin::Hub);
    Ok(())
}

/// A hub without its cloud accepts watches, and says nothing.
#[test]
fn maps_that_are_newer_than_the_checkpoint_are_not_replaced_with_it_when_a_watch_is_accepted()
-> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let hub = hub(&edge)?;
    for id in 1..=SERVICES {
        hub.put_all(web(id))?;
    }
    let count = usize::from(SERVICES);
    let agent = edge.start_agent_from("yurthub:", NODE, &[])?;
    edge.wait_for_status("a checkpoint", |s| {
        s.services == count && s.checkpoint.writes > 0
    })?;
    // Younger than the checkpoint, which is written once a minute.
    hub.put_all(web(SERVICES + 1))?;
    edge.wait_for_status("what is new", |s| s.services == count + 1)?;
    agent.kill9()?;
    hub.http()
        .fail_always(On::verb(Verb::Watch), Fault::StallBody);
    let _agent = edge.start_agent_from("yurthub:", NODE, &[])?;
    let status = edge.wait_for_status("its first table", |s| s.ready && s.services > 0)?;
    ensure!(status.services == count + 1, "{} services", status.services);
    ensure!(status.source.provenance == Origin::Hub);
    Ok(())
}

/// The directory is on a disk that was lost, and the hub's cache is being rebuilt.
#[test]
fn maps_without_a_checkpoint_are_not_emptied_by_a_hub_that_lists_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let hub = hub(&edge)?;
    for id in 1..=SERVICES {
        hub.put_all(web(id))?;
    }
    leave_maps_alone(&edge)?;
    for resource in [Resource::Services, Resource::EndpointSlices] {
        hub.http().fail_always(On::list(resource), Fault::EmptyList);
    }
    let _agent = edge.start_agent_from("yurthub:", NODE, &[])?;
    let status = edge.wait_for_status("what is held back", |s| !s.source.held_lists.is_empty())?;
    ensure!(status.applied == 0, "{} tables", status.applied);
    // However often it says so: a cluster without default/kubernetes is none.
    let lists = |http: &Endpoint| http.requests_on(On::list(Resource::Services)).len();
    let before = lists(hub.http());
    hub.http()
        .wait_until(PATIENCE, |http| lists(http) >= before + 3)?;
    let status = edge.wait_for_status("what is held back", |s| !s.source.held_lists.is_empty())?;
    ensure!(status.applied == 0, "{} tables", status.applied);
    hub.http().clear_faults();
    let status = edge.wait_for_status("the first table", |s| s.services > 0)?;
    let count = usize::from(SERVICES);
    ensure!(status.services == count, "{} services", status.services);
    Ok(())
}

#[test]
fn maps_without_a_checkpoint_follow_a_hub_whose_cluster_has_no_services_left() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let hub = hub(&edge)?;
    let own = Ipv4Addr::new(10, 96, 0, 1).into();
    let endpoint = objects::endpoint(Ipv4Addr::new(192, 0, 2, 254).into(), NODE);
    hub.put(objects::service("kubernetes", own, 443))?;
    hub.put(objects::slice("kubernetes", "kubernetes", 6443, [endpoint]))?;
    for id in 2..=SERVICES {
        hub.put_all(web(id))?;
    }
    leave_maps_alone(&edge)?;
    for id in 2..=SERVICES {
        let name = format!("s{id}");
        hub.delete(Resource::Services, "default", &name)?;
        hub.delete(Resource::EndpointSlices, "default", &format!("{name}-1"))?;
    }
    let _agent = edge.start_agent_from("yurthub:", NODE, &[])?;
    let status = edge.wait_for_status("the first table", |s| s.services > 0)?;
    ensure!(status.services == 1, "{} services", status.services);
    Ok(())
}
