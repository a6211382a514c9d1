//! getpeername of TCP sockets.

use anyhow::Context;
use anyhow::Result;
use yurt_net_tests::lab::Proto::Tcp;

use crate::world::World;
use crate::world::mapped;

const ONE: &str = "10.96.0.1:80";
const TWO: &str = "10.96.0.2:80";

fn with_two_services(flags: &[&str]) -> Result<World> {
    let mut world = World::single()?;
    let shared = world.backend(0, "shared")?;
    for (name, vip) in [("one", "10.96.0.1"), ("two", "10.96.0.2")] {
        let service = world.manifests.service(name);
        service.cluster_ip(vip).port(80, 8080).endpoints([&shared]);
    }
    world.start(0, flags)?;
    Ok(world)
}

#[test]
fn every_tcp_socket_of_many_shows_the_service_that_it_dialled() -> Result<()> {
    let world = with_two_services(&[])?;
    let client = world.node(0)?.pod("client")?;
    let dialled = [ONE.to_owned(), TWO.to_owned(), mapped(ONE)?, mapped(TWO)?];
    let mut held = Vec::new();
    for to in dialled.iter().cycle().take(200) {
        held.push((to, client.hold(Tcp, to)?));
    }
    for (to, connection) in &held {
        assert_eq!(connection.ping()?.peer, Some(to.parse()?));
    }
    Ok(())
}

#[test]
fn a_forgotten_tcp_socket_shows_its_backend_and_never_another_sockets_service() -> Result<()> {
    let world = with_two_services(&["--peers", "2"])?;
    let client = world.node(0)?.pod("client")?;
    let mut held = Vec::new();
    for to in [ONE, TWO].into_iter().cycle().take(40) {
        let connection = client.hold(Tcp, to)?;
        let latest = connection.ping()?.peer;
        assert_eq!(latest, Some(to.parse()?), "the latest shows its Service");
        held.push((to, connection));
    }
    let mut forgotten = 0;
    for (to, connection) in &held {
        let peer = connection.ping()?.peer.context("no peer")?;
        if peer != to.parse()? {
            assert_eq!(peer.port(), 8080, "dialled {to}, shows {peer}");
            forgotten += 1;
        }
    }
    assert!(forgotten >= 38, "{forgotten} of 40 with room for 2");
    Ok(())
}
