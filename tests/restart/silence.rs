//! A link that says nothing, and one that is unplugged: how soon that is noticed, and how soon what was missed is in
//! force.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use yurt_net::source::preferred::Origin;
use yurt_net_tests::lab::Agent;

use crate::world::{CAPACITY, World};

/// How long the link is away; `YURT_CUT_SECONDS` for a measure by hand.
const CUT: u64 = 20;
/// The last sign of life was at most now, and it counts for ten seconds; one more to look.
const NOTICED_WITHIN: Duration = Duration::from_secs(11);
/// Two seconds are aimed at.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// What the machine does besides can only make it longer, and not each time.
const ROUNDS: usize = 4;

fn cut_seconds() -> u64 {
    let given = std::env::var("YURT_CUT_SECONDS").ok();
    given.and_then(|given| given.parse().ok()).unwrap_or(CUT)
}

fn start(world: &World, source: &str) -> Result<Agent> {
    let agent = world.start_from(source, &CAPACITY, &[])?;
    world.wait_ready(&agent)?;
    let node = &world.node;
    node.wait_for_status("live data", |s| s.source.provenance == Origin::Live)?;
    Ok(agent)
}

fn away(cut: impl Fn(&World) -> Result<()>, mend: impl Fn(&World) -> Result<()>) -> Result<()> {
    let world = World::new()?;
    let node = &world.node;
    let cloud = world.lab.cloud()?;
    cloud.apply(&world.web([&world.a]))?;
    cloud.start()?;
    let _agent = start(&world, &cloud.source())?;
    // Longer than a probe takes: only that keeps it fresh.
    thread::sleep(Duration::from_secs(12));
    node.wait_for_status("it is fresh while nothing is said", |s| s.source.is_fresh)?;

    let (mut old, mut new) = (&world.a, &world.b);
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let cut_at = Instant::now();
        cut(&world)?;
        node.wait_for_status("it is not fresh", |s| !s.source.is_fresh)?;
        let noticed = cut_at.elapsed();
        cloud.apply(&world.web([new]))?;
        thread::sleep(Duration::from_secs(cut_seconds()).saturating_sub(cut_at.elapsed()));
        world.expect(10, &[old], false)?;

        let back_at = Instant::now();
        mend(&world)?;
        world.converges(10, &[new])?;
        let took = back_at.elapsed();
        node.wait_for_status("it is fresh", |s| s.source.is_fresh)?;
        eprintln!("not fresh {noticed:?} after the cut; in force {took:?} after its end");
        if noticed < NOTICED_WITHIN && took < BACK_WITHIN {
            return Ok(());
        }
        rounds.push((noticed, took));
        (old, new) = (new, old);
    }
    bail!("not fresh so long after the cut, in force so long after its end: {rounds:?}")
}

#[test]
fn what_a_silent_link_has_kept_back_is_in_force_soon_after_it_speaks() -> Result<()> {
    away(
        |world| world.lab.cut(&world.node),
        |world| world.lab.mend(&world.node),
    )
}

#[test]
fn what_was_missed_without_a_link_is_in_force_soon_after_it_is_back() -> Result<()> {
    away(
        |world| world.lab.plug(&world.node, false),
        |world| world.lab.plug(&world.node, true),
    )
}
