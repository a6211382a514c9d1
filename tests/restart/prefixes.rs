//! The agent killed between any two of its writes.
//!
//! A plan is applied in this process up to each of its writes in turn, and then nothing more happens: that is what
//! SIGKILL leaves.

use std::time::Duration;

use anyhow::{Context as _, Result};
use yurt_net::dataplane::Dataplane as _;
use yurt_net::plan::{Op, Plan};
use yurt_net_tests::lab::{Manifests, Proto};

use crate::world::{CAPACITY, World, apply_first, check, vip};

const KEPT: u8 = 10;
const GONE: u8 = 20;
const TAKEN: u8 = 30;
const MOVED: u8 = 31;
const COMING: u8 = 40;
const EMPTIED: u8 = 50;

/// After how many of the prefixes the agent is started to finish the work: all of them would take a minute.
const AGENT_EVERY: usize = 4;

impl World {
    fn before(&self) -> Manifests {
        let Self { a, b, .. } = self;
        self.manifests([
            ("kept", KEPT, vec![a, b]),
            ("gone", GONE, vec![a]),
            ("left", TAKEN, vec![a]),
            ("emptied", EMPTIED, vec![a, b]),
        ])
    }

    fn after(&self) -> Manifests {
        let Self { a, b, c, .. } = self;
        self.manifests([
            ("kept", KEPT, vec![b, c]),
            // The address of one Service becomes another's.
            ("left", MOVED, vec![a]),
            ("right", TAKEN, vec![c]),
            ("coming", COMING, vec![c]),
            ("emptied", EMPTIED, vec![]),
        ])
    }

    fn expect_either(&self) -> Result<()> {
        let Self { a, b, c, .. } = self;
        self.expect(KEPT, &[a, b, c], false)?;
        self.expect(TAKEN, &[a, c], false)?;
        self.expect(GONE, &[a], true)?;
        self.expect(MOVED, &[a], true)?;
        self.expect(COMING, &[c], true)?;
        self.expect(EMPTIED, &[a, b], true)
    }

    fn expect_after(&self) -> Result<()> {
        let Self { a, b, c, .. } = self;
        self.expect(KEPT, &[b, c], false)?;
        self.expect(TAKEN, &[c], false)?;
        self.expect(GONE, &[], true)?;
        self.expect(MOVED, &[a], false)?;
        self.expect(COMING, &[c], false)?;
        self.expect(EMPTIED, &[], true)
    }

    /// Starts the agent on what a killed one has left, under traffic, and has it finish.
    fn finish(&self, planned: &Plan, done: usize) -> Result<()> {
        let traffic: Vec<_> = vip(KEPT)
            .iter()
            .map(|to| {
                self.client
                    .start_traffic(Proto::Tcp, to, 1, Duration::from_millis(1))
            })
            .collect::<Result<_>>()?;
        let agent = self.start_ready(&CAPACITY, &[])?;
        for traffic in traffic {
            check(&traffic.stop()?, &[&self.a, &self.b, &self.c], false)?;
        }
        self.expect_after()?;
        let status = self.status()?;
        assert!(status.adopted);
        // Ranges that were written but not published are nobody's, and written again; and before a range is used that
        // somebody may still read, there is one wait.
        let (applied, left) = planned.ops.split_at(done);
        let unpublished = applied
            .iter()
            .filter(|op| matches!(op, Op::WriteSlots { .. }))
            .count();
        let most = match left.len() {
            0 => 0,
            left => left + unpublished + 1,
        };
        assert!(
            status.last_writes <= most,
            "{} writes for {left:?}",
            status.last_writes
        );
        agent.kill9()
    }
}

#[test]
fn an_agent_killed_between_any_two_writes_leaves_old_or_new_backends_and_the_next_one_finishes()
-> Result<()> {
    let world = World::new()?;
    world.node.apply(&world.before())?;
    world.start_ready(&CAPACITY, &[])?.kill9()?;
    let mut done = 0;
    loop {
        let mut dataplane = world.open(CAPACITY)?;
        assert!(dataplane.is_adopted());
        let reset = world.planned(&dataplane, &world.before())?;
        dataplane.apply(&reset)?;
        let planned = world.planned(&dataplane, &world.after())?;
        apply_first(&mut dataplane, &planned, done)?;
        // Closes files and ends the mappings; pins, maps and programs stay.
        drop(dataplane);
        let what = || format!("killed after {done} of {:#?}", planned.ops);
        world.expect_either().with_context(what)?;
        let is_last = done == planned.ops.len();
        if done % AGENT_EVERY == 0 || is_last {
            world.finish(&planned, done).with_context(what)?;
        }
        if is_last {
            eprintln!("{done} writes");
            return Ok(());
        }
        done += 1;
    }
}

#[test]
fn an_agent_killed_before_its_first_table_was_in_service_is_followed_by_one_that_works()
-> Result<()> {
    let world = World::new()?;
    let mut dataplane = world.open(CAPACITY)?;
    let planned = world.planned(&dataplane, &world.before())?;
    dataplane.apply(&planned)?;
    drop(dataplane);
    // Nothing is attached and nothing is in place.
    let pins = world.pins()?;
    assert!(pins.iter().any(|pin| pin.contains("v2-next/")), "{pins:?}");
    assert!(!pins.iter().any(|pin| pin.contains("links/")), "{pins:?}");

    let agent = world.start_ready(&CAPACITY, &[])?;
    world.converges(KEPT, &[&world.a, &world.b])?;
    assert!(!world.status()?.adopted);
    let pins = world.pins()?;
    assert!(!pins.iter().any(|pin| pin.contains("v2-next")), "{pins:?}");
    agent.kill9()
}
