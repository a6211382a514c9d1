//! Restarts and reboots of an agent that follows an apiserver: with it, without it, and while it comes back.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use yurt_net::plan::Capacity;
use yurt_net::source::preferred::Origin;
use yurt_net_tests::lab::{Agent, Cloud, Pod, Proto, Tally, Traffic};

use crate::world::{CAPACITY, OTHER_CAPACITY, Random, World, check, vip};

const KILLS: u64 = 20;
const PAUSE: Duration = Duration::from_millis(1);

fn start(world: &World, cloud: &Cloud) -> Result<Agent> {
    world.start_from(&cloud.source(), &CAPACITY, &[])
}

pub(crate) fn start_ready(world: &World, cloud: &Cloud) -> Result<Agent> {
    let agent = start(world, cloud)?;
    world.wait_ready(&agent)?;
    Ok(agent)
}

/// A cloud with the Service `web` of a and b, and an agent that has it in its checkpoint.
pub(crate) fn followed(world: &World) -> Result<(Cloud, Agent)> {
    let cloud = world.lab.cloud()?;
    cloud.apply(&world.web([&world.a, &world.b]))?;
    cloud.start()?;
    let agent = start_ready(world, &cloud)?;
    ensure!(world.is_remembered()?.source.provenance == Origin::Live);
    Ok((cloud, agent))
}

/// Connects to `web` without a pause, by both families and protocols.
fn traffic(world: &World) -> Result<Vec<Traffic>> {
    vip(10)
        .iter()
        .flat_map(|to| [(Proto::Tcp, to), (Proto::Udp, to)])
        .map(|(proto, to)| world.client.start_traffic(proto, to, 1, PAUSE))
        .collect()
}

fn judge(traffic: Vec<Traffic>, may_answer: &[&Pod]) -> Result<()> {
    for traffic in traffic {
        let tally: Tally = traffic.stop()?;
        ensure!(tally.connects() > 0, "nobody has dialled: {tally:?}");
        check(&tally, may_answer, false)?;
    }
    Ok(())
}

/// The cloud comes back with another set, and the agent moves to it without a failed connect.
pub(crate) fn goes_over_to_live_data(world: &World, cloud: &Cloud) -> Result<()> {
    let World { a, b, c, .. } = world;
    let traffic = traffic(world)?;
    cloud.apply(&world.web([b, c]))?;
    cloud.start()?;
    let node = &world.node;
    node.wait_for_status("live data", |s| s.source.provenance == Origin::Live)?;
    world.converges(10, &[b, c])?;
    judge(traffic, &[a, b, c])
}

#[test]
fn a_rebooted_node_serves_from_its_checkpoint_without_apiserver_route_or_dns() -> Result<()> {
    let world = World::new()?;
    let (cloud, agent) = followed(&world)?;
    world.loses_power(&agent, &cloud)?;
    world
        .node
        .netns()
        .ip("route del 0.0.0.0/0\nroute del ::/0\n")?;
    // The kernel takes a program off a moment after its last reference has gone.
    world.wait_for("the end of service, as by a reboot", || {
        let refused = world.client.connect_many(Proto::Tcp, &vip(10)[0], 1)?;
        Ok(refused.failed() == 1)
    })?;

    start_ready(&world, &cloud)?;
    world.expect(10, &[&world.a, &world.b], false)?;
    let status = world.node.status()?;
    ensure!(status.source.provenance == Origin::Checkpoint && !status.adopted);
    ensure!(status.source.source == cloud.source() && status.source.source_error.is_some());
    let shown = world.node.yurt_net(&["status"])?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    ensure!(shown.contains("CHECKPOINT of"), "{shown}");
    let age = status.source.age_seconds;
    thread::sleep(Duration::from_millis(1_100));
    ensure!(world.node.status()?.source.age_seconds > age);

    goes_over_to_live_data(&world, &cloud)
}

#[test]
fn an_agent_restarted_without_the_apiserver_leaves_newer_maps_alone_and_fails_no_connect()
-> Result<()> {
    newer_maps_are_left_alone(&CAPACITY)
}

#[test]
fn maps_that_are_to_be_replaced_serve_on_while_only_the_checkpoint_speaks() -> Result<()> {
    newer_maps_are_left_alone(&OTHER_CAPACITY)
}

/// The agent is started again with this capacity.
fn newer_maps_are_left_alone(capacity: &Capacity) -> Result<()> {
    let world = World::new()?;
    let (cloud, agent) = followed(&world)?;
    // Younger than the checkpoint, which is written once a minute.
    cloud.apply(&world.web([&world.c]))?;
    world.converges(10, &[&world.c])?;
    agent.kill9()?;
    cloud.kill9()?;
    let during = traffic(&world)?;
    let agent = world.start_from(&cloud.source(), capacity, &[])?;
    is_left_alone(&world, &agent)?;
    judge(during, &[&world.c])?;
    goes_over_to_live_data(&world, &cloud)
}

/// The agent has given its sources up for now, and says that what it found is in force.
fn is_left_alone(world: &World, agent: &Agent) -> Result<()> {
    world.wait_ready(agent)?;
    let status = world.status()?;
    let is_told = |what: &str| status.degraded.iter().any(|fault| fault.what == what);
    ensure!(
        is_told("source") && status.applied == 0,
        "{:?}",
        status.degraded
    );
    world.expect(10, &[&world.c], false)
}

#[test]
fn a_damaged_checkpoint_with_an_older_one_beside_it_never_replaces_newer_maps() -> Result<()> {
    let world = World::new()?;
    let (cloud, agent) = followed(&world)?;
    let saved = |name: &str| world.node.state_dir().join("snapshot").join(name);
    fs::copy(saved("checkpoint"), saved("checkpoint.old"))?;
    cloud.apply(&world.web([&world.c]))?;
    world.converges(10, &[&world.c])?;
    // It saves what it has before it ends.
    agent.terminate()?;
    cloud.kill9()?;
    let mut bytes = fs::read(saved("checkpoint"))?;
    ensure!(
        bytes != fs::read(saved("checkpoint.old"))?,
        "nothing was saved"
    );
    bytes[40] ^= 1;
    fs::write(saved("checkpoint"), bytes)?;

    let during = traffic(&world)?;
    let agent = start(&world, &cloud)?;
    is_left_alone(&world, &agent)?;
    // What detaches a program meanwhile is mended, although no table is known.
    judge(during, &[&world.c])?;
    goes_over_to_live_data(&world, &cloud)
}

#[test]
fn a_checkpoint_of_what_the_maps_hold_is_gone_on_with_whatever_the_clock_said() -> Result<()> {
    let world = World::new()?;
    let (cloud, agent) = followed(&world)?;
    // It saves what it has before it ends.
    agent.terminate()?;
    cloud.kill9()?;
    start_ready(&world, &cloud)?;
    let status = world.status()?;
    ensure!(status.source.provenance == Origin::Checkpoint && status.applied == 1);
    ensure!(status.degraded.is_empty(), "{:?}", status.degraded);
    world.expect(10, &[&world.a, &world.b], false)
}

#[test]
fn maps_without_a_checkpoint_are_served_on_and_told() -> Result<()> {
    let world = World::new()?;
    let (cloud, agent) = followed(&world)?;
    cloud.apply(&world.web([&world.c]))?;
    world.converges(10, &[&world.c])?;
    agent.kill9()?;
    cloud.kill9()?;
    fs::remove_dir_all(world.node.state_dir())?;
    let agent = start(&world, &cloud)?;
    is_left_alone(&world, &agent)?;
    goes_over_to_live_data(&world, &cloud)
}

#[test]
fn agents_killed_at_random_while_an_apiserver_changes_slices_fail_no_connect() -> Result<()> {
    let world = World::new()?;
    let World { a, b, c, .. } = &world;
    let (cloud, agent) = followed(&world)?;
    agent.kill9()?;
    let during = traffic(&world)?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut random = Random::new();
            let sets = [vec![a, b], vec![b, c], vec![a, c], vec![a, b, c], vec![c]];
            while !is_over.load(Ordering::Relaxed) {
                let set = usize::try_from(random.below(5)).unwrap_or(0);
                cloud.apply(&world.web(sets[set].clone()))?;
                thread::sleep(Duration::from_millis(20 + random.below(180)));
            }
            Ok::<_, anyhow::Error>(())
        });
        let mut random = Random::new();
        let killed = (0..KILLS).try_for_each(|_| {
            let agent = start(&world, &cloud)?;
            thread::sleep(Duration::from_millis(random.below(600)));
            agent.kill9()
        });
        is_over.store(true, Ordering::Relaxed);
        let written = writer.join();
        written.map_err(|_panic| anyhow!("the writer panicked"))??;
        killed
    })?;
    cloud.apply(&world.web([b, c]))?;
    start_ready(&world, &cloud)?;
    world.converges(10, &[b, c])?;
    judge(during, &[a, b, c])
}
