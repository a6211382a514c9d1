//! Pins of an agent of an older ABI: a new agent serves from them until it has filled its own, and clients do not
//! notice.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use yurt_net_tests::lab::Proto;

use crate::kernel::{BPF_MAP_TYPE_ARRAY, Object};
use crate::world::{CAPACITY, World, check, vip};

/// Makes the pins that an agent of table ABI 1 leaves of those that this one has left.
///
/// ABI 1 had the same maps of the same sizes, with zeros where there are source ranges and affinity now, which the
/// Services of these tests do not have; no memory of affinity; no events; and fewer counters.
fn make_abi_1(world: &World) -> Result<()> {
    fs::rename(world.pin("v2"), world.pin("v1"))?;
    for map in [
        "yurt_aff4",
        "yurt_aff6",
        "yurt_count",
        "yurt_events",
        "yurt_watch",
        "yurt_ev_share",
    ] {
        fs::remove_file(world.pin("state-v1").join(map))?;
    }
    let count = Object::new_map(BPF_MAP_TYPE_ARRAY, 4, 8, 6)?;
    Ok(count.pin(&world.pin("state-v1/yurt_count"))?)
}

#[test]
fn pins_of_abi_1_serve_until_those_of_abi_2_do_and_are_gone_then() -> Result<()> {
    let world = World::new()?;
    world.node.apply(&world.web([&world.a, &world.b]))?;
    world.start_ready(&CAPACITY, &[])?.kill9()?;
    let pins = world.pins()?;
    make_abi_1(&world)?;
    let backends = [&world.a, &world.b];
    world.expect(10, &backends, false)?;
    let held: Vec<_> = vip(10)
        .iter()
        .flat_map(|to| [(Proto::Tcp, to.clone()), (Proto::Udp, to.clone())])
        .map(|(proto, to)| world.client.hold(proto, &to))
        .collect::<Result<_>>()?;
    let traffic: Vec<_> = vip(10)
        .iter()
        .map(|to| {
            let pause = Duration::from_millis(1);
            world.client.start_traffic(Proto::Tcp, to, 1, pause)
        })
        .collect::<Result<_>>()?;
    let agent = world.start_ready(&CAPACITY, &[])?;
    for traffic in traffic {
        check(&traffic.stop()?, &backends, false)?;
    }
    assert!(!world.status()?.adopted);
    world.expect(10, &backends, false)?;
    for connection in &held {
        let (opened, ping) = (connection.opened(), connection.ping()?);
        assert_eq!(ping.answer(), opened.answer(), "{ping:?} {opened:?}");
        assert_eq!(ping.peer, opened.peer, "{ping:?}");
    }
    agent.kill9()?;
    assert_eq!(world.pins()?, pins);
    Ok(())
}

#[test]
fn an_agent_killed_before_it_retired_the_old_abi_leaves_that_to_the_next() -> Result<()> {
    let world = World::new()?;
    world.node.apply(&world.web([&world.a]))?;
    world.start_ready(&CAPACITY, &[])?.kill9()?;
    let pins = world.pins()?;
    for leftover in ["v1", "v1-next"] {
        let dir = world.pin(leftover);
        fs::create_dir(&dir)?;
        Object::new_map(BPF_MAP_TYPE_ARRAY, 4, 8, 1)?.pin(&dir.join("yurt_svc"))?;
    }
    let agent = world.start_ready(&CAPACITY, &[])?;
    assert!(world.status()?.adopted);
    agent.kill9()?;
    assert_eq!(world.pins()?, pins);
    world.expect(10, &[&world.a], false)
}
