//! The real agent killed with SIGKILL at moments that nobody chose.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};
use yurt_net_tests::lab::Proto;

use crate::world::{CAPACITY, OTHER_CAPACITY, Random, World, check, vip};

const KILLS: u64 = 30;
const FLICKERS: u8 = 20;

#[test]
fn thirty_agents_killed_at_random_while_manifests_change_fail_no_connect() -> Result<()> {
    let world = World::new()?;
    let World {
        a, b, c, d, client, ..
    } = &world;
    world.node.apply(&world.web([a, b]))?;
    world.start_ready(&CAPACITY, &[])?.kill9()?;
    let pins = world.pins()?;

    let mut traffic = Vec::new();
    for (to, flickering) in vip(10).iter().zip(&vip(FLICKERS)) {
        for proto in [Proto::Tcp, Proto::Udp] {
            let pause = Duration::from_millis(1);
            traffic.push((false, client.start_traffic(proto, to, 1, pause)?));
            traffic.push((true, client.start_traffic(proto, flickering, 1, pause)?));
        }
    }
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut random = Random::new();
            let sets = [vec![a, b], vec![b, c], vec![a, c], vec![a, b, c], vec![c]];
            while !is_over.load(Ordering::Relaxed) {
                let mut pick = || sets[usize::try_from(random.below(5)).unwrap_or(0)].clone();
                let mut services = vec![("web", 10, pick())];
                // Comes and goes, and with it ranges of slots and indices.
                match random.below(3) {
                    0 => {}
                    1 => services.push(("flickers", FLICKERS, vec![])),
                    _ => services.push(("flickers", FLICKERS, vec![c, d])),
                }
                world.node.apply(&world.manifests(services))?;
                // Some follow each other faster than the agent takes them for settled, some do not.
                thread::sleep(Duration::from_millis(20 + random.below(180)));
            }
            Ok::<_, anyhow::Error>(())
        });
        let mut random = Random::new();
        for _ in 0..KILLS {
            let agent = world.start(&CAPACITY, &[])?;
            thread::sleep(Duration::from_millis(random.below(400)));
            agent.kill9()?;
        }
        is_over.store(true, Ordering::Relaxed);
        writer
            .join()
            .map_err(|_panic| anyhow!("the writer panicked"))?
    })?;

    world
        .node
        .apply(&world.manifests([("web", 10, vec![b, c])]))?;
    let agent = world.start_ready(&CAPACITY, &[])?;
    world.converges(10, &[b, c])?;
    world.expect(FLICKERS, &[], true)?;
    for (flickers, traffic) in traffic {
        let tally = traffic.stop()?;
        eprintln!("{tally:?}");
        assert!(tally.connects() > 500, "{tally:?}");
        match flickers {
            false => check(&tally, &[a, b, c], false)?,
            true => check(&tally, &[c, d], true)?,
        }
    }
    agent.kill9()?;
    assert_eq!(world.pins()?, pins);
    Ok(())
}

#[test]
fn agents_killed_during_the_very_first_start_are_followed_by_one_that_works() -> Result<()> {
    let world = World::new()?;
    world.node.apply(&world.web([&world.a, &world.b]))?;
    let before = world.pins()?;
    let mut random = Random::new();
    for _ in 0..8 {
        for _ in 0..2 {
            let agent = world.start(&CAPACITY, &[])?;
            thread::sleep(Duration::from_millis(random.below(200)));
            agent.kill9()?;
        }
        let agent = world.start_ready(&CAPACITY, &[])?;
        world.expect(10, &[&world.a, &world.b], false)?;
        agent.kill9()?;
        let output = world.node.yurt_net(&["cleanup"])?;
        assert!(output.status.success(), "{output:?}");
        assert_eq!(world.pins()?, before);
    }
    Ok(())
}

#[test]
fn agents_killed_while_they_migrate_to_other_capacities_fail_no_connect() -> Result<()> {
    let world = World::new()?;
    let World { a, b, client, .. } = &world;
    world.node.apply(&world.web([a, b]))?;
    world.start_ready(&CAPACITY, &[])?.kill9()?;
    let pins = world.pins()?;
    let traffic: Vec<_> = vip(10)
        .iter()
        .flat_map(|to| [(Proto::Tcp, to.clone()), (Proto::Udp, to.clone())])
        .map(|(proto, to)| client.start_traffic(proto, &to, 1, Duration::from_millis(1)))
        .collect::<Result<_>>()?;
    let mut random = Random::new();
    for round in 0..16 {
        let capacity = if round % 2 == 0 {
            OTHER_CAPACITY
        } else {
            CAPACITY
        };
        let agent = world.start(&capacity, &[])?;
        thread::sleep(Duration::from_millis(random.below(200)));
        agent.kill9()?;
    }
    let agent = world.start_ready(&OTHER_CAPACITY, &[])?;
    for traffic in traffic {
        let tally = traffic.stop()?;
        assert!(tally.connects() > 500, "{tally:?}");
        check(&tally, &[a, b], false)?;
    }
    agent.kill9()?;
    assert_eq!(world.pins()?, pins, "no v2-next, nothing lost");
    Ok(())
}
