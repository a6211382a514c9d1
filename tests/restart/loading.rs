//! `load`: a node that serves from its checkpoint before its agent runs.

use std::fs;

use anyhow::{Result, ensure};
use yurt_net::source::preferred::Origin;
use yurt_net_tests::lab::{Cloud, Proto};

use crate::cloud::{followed, goes_over_to_live_data};
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

/// A node that has been started again, without its cloud.
fn rebooted() -> Result<(World, Cloud)> {
    let world = World::new()?;
    let (cloud, agent) = followed(&world)?;
    world.wait_for("the record of the agent's flags", || {
        Ok(world.node.state_dir().join("run.json").exists())
    })?;
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
    fs::remove_dir_all(state_dir.join("snapshot"))?;
    loads(&world, "nothing to load: there is no checkpoint")?;
    ensure!(world.node.yurt_net(&["cleanup"])?.status.success());
    ensure!(!record.exists(), "a reboot would serve again");
    loads(&world, "nothing to load: no agent has served this node")
}
