//! No Service leads the agent's own connections elsewhere, whatever the maps say.

use anyhow::{Result, ensure};
use yurt_net::source::preferred::Origin;
use yurt_net_tests::lab::{Cloud, Manifests, Proto};

use crate::world::{CAPACITY, World};

/// Where the lab's apiserver is.
const CLOUD: (&str, u16) = ("192.0.2.254", 8001);

/// Besides `web`, a tenant's Service that claims the apiserver's address and port, and leads to `a`.
fn with_thief(world: &World, web: &yurt_net_tests::lab::Pod) -> Manifests {
    let mut manifests = world.web([web]);
    let (address, port) = CLOUD;
    let thief = manifests.service("thief").cluster_ip("10.96.0.66");
    thief
        .external_ip(address)
        .port(port, 8080)
        .endpoints([&world.a]);
    manifests
}

/// The agent follows the cloud: what is changed there reaches the maps.
fn follows(world: &World, cloud: &Cloud) -> Result<()> {
    let node = &world.node;
    node.wait_for_status("live data", |s| s.source.provenance == Origin::Live)?;
    for backend in [&world.b, &world.c] {
        cloud.apply(&with_thief(world, backend))?;
        world.converges(10, &[backend])?;
    }
    Ok(())
}

#[test]
fn an_agent_that_takes_over_maps_that_claim_its_apiserver_reaches_it() -> Result<()> {
    let world = World::new()?;
    // The maps are made from manifests, whose agent has no apiserver that it would protect.
    let agent = world.start_ready(&CAPACITY, &[])?;
    world.node.apply(&with_thief(&world, &world.b))?;
    world.converges(10, &[&world.b])?;
    let (address, port) = CLOUD;
    let claimed = world
        .client
        .connect_many(Proto::Tcp, &format!("{address}:{port}"), 4)?;
    ensure!(
        claimed.failed() == 0,
        "the maps do not claim the apiserver: {claimed:?}"
    );
    agent.kill9()?;

    let cloud = world.lab.cloud()?;
    cloud.apply(&with_thief(&world, &world.b))?;
    cloud.start()?;
    let _agent = world.start_from(&cloud.source(), &CAPACITY, &[])?;
    follows(&world, &cloud)
}

#[test]
fn an_agent_reaches_its_apiserver_again_and_after_a_reboot_while_a_service_claims_it() -> Result<()>
{
    let world = World::new()?;
    let cloud = world.lab.cloud()?;
    cloud.apply(&with_thief(&world, &world.b))?;
    cloud.start()?;
    let agent = world.start_from(&cloud.source(), &CAPACITY, &[])?;
    world.wait_ready(&agent)?;
    follows(&world, &cloud)?;
    cloud.kill9()?;
    world.node.wait_for_status("the apiserver is missed", |s| {
        s.source.sources.iter().any(|source| !source.is_good)
    })?;
    cloud.start()?;
    follows(&world, &cloud)?;
    world.is_remembered()?;

    world.loses_power(&agent, &cloud)?;
    let agent = world.start_from(&cloud.source(), &CAPACITY, &[])?;
    world.wait_ready(&agent)?;
    world.is_from_checkpoint()?;
    cloud.start()?;
    follows(&world, &cloud)
}
