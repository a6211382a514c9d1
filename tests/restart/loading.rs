//! `load`: a node that serves from its checkpoint before its agent runs.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use yurt_net::source::preferred::Origin;
use yurt_net_tests::lab::{Cloud, Proto};

use crate::cloud::{followed, goes_over_to_live_data, start_ready};
use crate::world::{CAPACITY, World};

/// What `load` prints, and whether it succeeded.
fn load(world: &World) -> Result<(bool, String)> {
    let state_dir = world.node.state_dir();
    let output = world
        .node
        .yurt_net(&["load", "--state-dir", &state_dir.display().to_string()])?;
    let said = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

/// `load` succeeds and says this.
fn loads(world: &World, expected: &str) -> Result<()> {
    let (is_ok, said) = load(world)?;
    ensure!(is_ok && said.contains(expected), "{said}");
    Ok(())
}

fn is_recorded(world: &World) -> Result<()> {
    world.wait_for("the record of the agent's flags", || {
        Ok(world.node.state_dir().join("run.json").exists())
    })
}

/// A node that has been started again, without its cloud.
fn rebooted() -> Result<(World, Cloud)> {
    let world = World::new()?;
    let (cloud, agent) = followed(&world)?;
    is_recorded(&world)?;
    world.loses_power(&agent, &cloud)?;
    world.wait_for("the end of service, as by a reboot", || {
        let refused = world.client.connect_many(Proto::Tcp, "10.96.0.10:80", 1)?;
        Ok(refused.failed() == 1)
    })?;
    Ok((world, cloud))
}

#[test]
fn a_node_serves_before_its_agent_starts_and_the_agent_takes_over_without_a_failed_connect()
-> Result<()> {
    let (world, cloud) = rebooted()?;
    loads(&world, "is in force until an agent starts")?;
    world.expect(10, &[&world.a, &world.b], false)?;
    // As the agent was told: what no Service has is refused, and does not leave by the default route.
    let unknown = world.client.connect_many(Proto::Tcp, "10.96.0.99:80", 4)?;
    let refusals = unknown.errors.get("ECONNREFUSED");
    ensure!(refusals == Some(&4), "{unknown:?}");
    loads(&world, "a table is in force already")?;
    ensure!(
        world.open(CAPACITY)?.was_loaded(),
        "an agent would wait for its sources"
    );

    let agent = world.start_from(&cloud.source(), &CAPACITY, &[])?;
    world.wait_ready(&agent)?;
    let status = world.is_from_checkpoint()?;
    ensure!(
        status.adopted && status.degraded.is_empty(),
        "{:?}",
        status.degraded
    );
    goes_over_to_live_data(&world, &cloud)?;
    agent.terminate()?;
    ensure!(
        !world.open(CAPACITY)?.was_loaded(),
        "maps that an agent has written may be newer than its checkpoint"
    );
    Ok(())
}

#[test]
fn load_is_refused_while_an_agent_runs() -> Result<()> {
    let world = World::new()?;
    let (_cloud, agent) = followed(&world)?;
    let (is_ok, said) = load(&world)?;
    ensure!(!is_ok && said.contains(&agent.pid().to_string()), "{said}");
    let status = world.status()?;
    ensure!(status.source.provenance == Origin::Live && status.degraded.is_empty());
    Ok(())
}

#[test]
fn load_says_when_there_is_nothing_and_what_it_cannot_read() -> Result<()> {
    let (world, _cloud) = rebooted()?;
    let state_dir = world.node.state_dir();
    let record = state_dir.join("run.json");
    let good = fs::read_to_string(&record)?;
    for (text, expected) in [
        ("\0\0\0", "does not hold settings: start the agent"),
        (&*good.replace("--node", "--knoten"), "--knoten"),
    ] {
        fs::write(&record, text)?;
        let (is_ok, said) = load(&world)?;
        ensure!(
            !is_ok && said.contains(expected) && said.contains("run.json"),
            "{said}"
        );
        ensure!(said.lines().count() == 1, "{said}");
    }
    fs::write(&record, good)?;
    let snapshot = state_dir.join("snapshot");
    fs::remove_dir_all(&snapshot)?;
    fs::create_dir(&snapshot)?;
    fs::write(snapshot.join("checkpoint"), "something else")?;
    let (is_ok, said) = load(&world)?;
    ensure!(!is_ok && said.contains("is not a checkpoint"), "{said}");
    fs::remove_dir_all(&snapshot)?;
    loads(&world, "nothing to load: there is no checkpoint")?;
    ensure!(world.node.yurt_net(&["cleanup"])?.status.success());
    ensure!(!record.exists(), "a reboot would serve again");
    loads(&world, "nothing to load: no agent has served this node")
}

#[test]
fn what_was_killed_before_its_first_table_was_in_force_serves_nobody_and_is_done_again()
-> Result<()> {
    for by_agent in [false, true] {
        let (world, cloud) = rebooted()?;
        // Programs are attached, and their table is not in its place yet.
        let failures = world.open(CAPACITY)?.repair().failures;
        ensure!(failures.is_empty(), "{failures:?}");
        if by_agent {
            let agent = world.start_from(&cloud.source(), &CAPACITY, &[])?;
            world.wait_ready(&agent)?;
            world.expect(10, &[&world.a, &world.b], false)?;
        } else {
            loads(&world, "is in force until an agent starts")?;
            world.expect(10, &[&world.a, &world.b], false)?;
        }
    }
    Ok(())
}

#[test]
fn external_ips_wait_for_the_agent_that_knows_who_has_an_address() -> Result<()> {
    let world = World::new()?;
    let cloud = world.lab.cloud()?;
    let source = cloud.source();
    let server = source.strip_prefix("kube:http://").context("the source")?;
    let server: SocketAddr = server.parse()?;
    let mut manifests = world.web([&world.a]);
    manifests
        .service("thief")
        .cluster_ip("10.96.0.20")
        .external_ip(&server.ip().to_string())
        .load_balancer_ip("198.51.100.9")
        .port(server.port(), 8080)
        .endpoints([&world.b]);
    cloud.apply(&manifests)?;
    cloud.start()?;
    let agent = start_ready(&world, &cloud)?;
    world.is_remembered()?;
    is_recorded(&world)?;
    world.loses_power(&agent, &cloud)?;
    loads(&world, "is in force until an agent starts")?;
    let listed = world.node.yurt_net(&["services"])?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    ensure!(listed.contains("10.96.0.20:"), "{listed}");
    ensure!(!listed.contains(&server.to_string()), "{listed}");
    ensure!(!listed.contains("198.51.100.9"), "{listed}");
    Ok(())
}
