//! Somebody else changes the maps or detaches a program: it is noticed, repaired and counted.

use std::fs;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;

use crate::kernel;
use crate::world::World;
use crate::world::eventually;
use crate::world::names;
use crate::world::status;
use crate::world::who_answers;

const VIP: &str = "10.96.0.10:80";
const KEY: [u8; 8] = kernel::frontend4([10, 96, 0, 10], 80, 6);

fn with_a_service() -> Result<(World, Pod)> {
    let mut world = World::single()?;
    let backend = world.backend(0, "backend")?;
    let client = world.node(0)?.pod("client")?;
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10")
        .port(80, 8080)
        .endpoints([&backend]);
    world.start(0, &["--drift-interval", "1"])?;
    assert_eq!(who_answers(&client, VIP)?, names(["backend"]));
    Ok((world, client))
}

/// Waits until a count in the status is at least one.
fn wait_for_count(world: &World, count: &str) -> Result<()> {
    eventually(world.node(0)?, || {
        let status = status(world.node(0)?)?;
        ensure!(status[count].as_u64() >= Some(1), "{status}");
        Ok(())
    })
}

/// Every look at a pin needs a descriptor: that there is none says nothing of the pin.
#[test]
fn an_agent_without_descriptors_says_so_and_of_no_pin_that_it_is_gone() -> Result<()> {
    let (world, client) = with_a_service()?;
    let node = world.node(0)?;
    let pid = status(node)?["pid"].as_u64().context("no pid")?;
    let limit = |most: &str| -> Result<()> {
        let limit = format!("--nofile={most}:");
        let pid = pid.to_string();
        let done = Command::new("prlimit")
            .args(["--pid", &pid, &limit])
            .status()?;
        ensure!(done.success(), "prlimit: {done}");
        Ok(())
    };
    limit("4")?;
    let told = eventually(node, || {
        let log = node.agent_log();
        let mut repairs = log
            .lines()
            .filter(|line| line.contains("could not be repaired"));
        let is_told = repairs.any(|line| line.contains("os error 24"));
        ensure!(is_told, "nothing is told");
        Ok(())
    });
    limit("1024")?;
    told?;
    // What was found amiss without descriptors is forgotten with the next look.
    eventually(node, || {
        let status = status(node)?;
        ensure!(status["ready"] == true, "{status}");
        let mut faults = status["degraded"].as_array().into_iter().flatten();
        let is_left = faults.any(|fault| fault["what"] == "pins" || fault["what"] == "repair");
        ensure!(!is_left, "{status}");
        ensure!(status["driftLinks"] == 0, "{status}");
        Ok(())
    })?;
    let log = node.agent_log();
    ensure!(!log.contains("drift: programs were detached"), "{log}");
    ensure!(!log.contains("drift: pins of maps were removed"), "{log}");
    assert_eq!(who_answers(&client, VIP)?, names(["backend"]));
    Ok(())
}

#[test]
fn a_removed_frontend_comes_back_and_is_counted() -> Result<()> {
    let (world, client) = with_a_service()?;
    let map = kernel::get(&world.node(0)?.table_pins().join("yurt_fe4"))?;
    let before = kernel::lookup(&map, &KEY).context("no such frontend")?;
    kernel::delete(&map, &KEY)?;
    wait_for_count(&world, "driftWrites")?;
    assert_eq!(kernel::lookup(&map, &KEY), Some(before));
    assert_eq!(who_answers(&client, VIP)?, names(["backend"]));
    assert!(world.node(0)?.agent_log().contains("drift"));
    Ok(())
}

#[test]
fn a_frontend_that_was_bent_to_another_service_leads_to_its_own_again() -> Result<()> {
    let (world, client) = with_a_service()?;
    let map = kernel::get(&world.node(0)?.table_pins().join("yurt_fe4"))?;
    let before = kernel::lookup(&map, &KEY).context("no such frontend")?;
    let mut bent = before;
    // The first word is the index of the service.
    bent[..4].copy_from_slice(&77u32.to_ne_bytes());
    kernel::update(&map, &KEY, &bent)?;
    assert_eq!(
        client.dial(Tcp, VIP, 1)?.error("ECONNREFUSED"),
        1,
        "there is no service 77"
    );
    // Whether the frontend is bent back, or the service put where it leads to, is the agent's choice.
    wait_for_count(&world, "driftWrites")?;
    assert_eq!(who_answers(&client, VIP)?, names(["backend"]));
    Ok(())
}

#[test]
fn a_frontend_that_nobody_asked_for_goes() -> Result<()> {
    let (world, client) = with_a_service()?;
    let map = kernel::get(&world.node(0)?.table_pins().join("yurt_fe4"))?;
    let stray = kernel::frontend4([10, 96, 0, 99], 80, 6);
    let value = kernel::lookup(&map, &KEY).context("no such frontend")?;
    kernel::update(&map, &stray, &value)?;
    wait_for_count(&world, "driftWrites")?;
    assert_eq!(kernel::lookup(&map, &stray), None);
    assert_eq!(who_answers(&client, VIP)?, names(["backend"]));
    Ok(())
}

#[test]
fn detached_programs_are_attached_again_and_counted() -> Result<()> {
    let (world, client) = with_a_service()?;
    let links = world.node(0)?.bpffs().join("yurt-net/links");
    for link in ["yurt_connect4", "yurt_recvmsg6"] {
        fs::remove_file(links.join(link))?;
    }
    // The kernel detaches a moment after the last reference has gone.
    eventually(world.node(0)?, || {
        let status = status(world.node(0)?)?;
        ensure!(status["driftLinks"].as_u64() == Some(2), "{status}");
        Ok(())
    })?;
    assert_eq!(fs::read_dir(&links)?.count(), 8);
    let tally = client.dial(Tcp, VIP, 1)?;
    assert!(!tally.answers.contains_key(VIP), "{tally:?}");
    assert_eq!(who_answers(&client, VIP)?, names(["backend"]));
    Ok(())
}
