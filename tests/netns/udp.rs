//! UDP sockets: they keep their backend, and see the address that they have sent to.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::UdpOutcome;
use yurt_net_tests::lab::UdpSocket;
use yurt_net_tests::lab::UdpStep;

use crate::world::World;
use crate::world::mapped;
use crate::world::names;
use crate::world::refusal;

const VIP4: &str = "10.96.0.53:53";
const VIP6: &str = "[fd00:96::53]:53";

fn with_dns<const N: usize>(names: [&str; N]) -> Result<(World, [Pod; N], Pod)> {
    let mut world = World::single()?;
    let backends = world.backends(0, names)?;
    let client = world.node(0)?.pod("client")?;
    let dns = world.manifests.service("dns");
    dns.cluster_ip("10.96.0.53").cluster_ip("fd00:96::53");
    dns.udp_port(53, 8080).endpoints(&backends);
    world.start(0, &[])?;
    Ok((world, backends, client))
}

/// Every outcome was an answer that shows `to`; returns who answered.
fn answers(outcomes: &[UdpOutcome], to: &str) -> Result<BTreeSet<String>> {
    let to: SocketAddr = to.parse()?;
    outcomes
        .iter()
        .map(|outcome| {
            ensure!(outcome.shown == Some(to), "{to}: {outcome:?}");
            outcome.answer.clone().context("no answer")
        })
        .collect()
}

/// The three kinds of sockets, and how each writes the Service's address.
fn sockets(client: &Pod) -> Result<Vec<(UdpSocket, String)>> {
    Ok(vec![
        (client.udp_socket(false)?, VIP4.to_owned()),
        (client.udp_socket(true)?, VIP6.to_owned()),
        (client.udp_socket(true)?, mapped(VIP4)?),
    ])
}

#[test]
fn an_unconnected_socket_keeps_its_backend_until_that_is_withdrawn() -> Result<()> {
    let (mut world, backends, client) = with_dns(["a", "b", "c", "d"])?;
    let extra = world.backend(0, "extra")?;
    let sockets = sockets(&client)?;
    let mut kept = Vec::new();
    for (socket, to) in &sockets {
        let who = answers(&socket.ask(to, 100)?, to)?;
        assert_eq!(who.len(), 1, "{to}: {who:?}");
        kept.push(who);
    }

    let dns = world.manifests.service("dns");
    dns.endpoints(backends.iter().chain([&extra]));
    world.apply()?;
    for ((socket, to), who) in sockets.iter().zip(&kept) {
        assert_eq!(&answers(&socket.ask(to, 100)?, to)?, who, "one more: {to}");
    }

    for ((socket, to), who) in sockets.iter().zip(&kept) {
        let left = backends.iter().filter(|pod| !who.contains(pod.name()));
        world.manifests.service("dns").endpoints(left);
        world.apply()?;
        let moved = answers(&socket.ask(to, 20)?, to)?;
        assert_eq!(moved.len(), 1, "{to}: {moved:?}");
        assert_ne!(&moved, who, "withdrawn: {to}");
    }
    Ok(())
}

#[test]
fn a_socket_whose_service_has_lost_its_last_endpoint_is_refused() -> Result<()> {
    let (mut world, backends, client) = with_dns(["a"])?;
    let sockets = sockets(&client)?;
    for (socket, to) in &sockets {
        assert_eq!(answers(&socket.ask(to, 2)?, to)?, names(["a"]));
    }
    world.manifests.service("dns").endpoints([]);
    world.apply()?;
    for (socket, to) in &sockets {
        for outcome in socket.ask(to, 2)? {
            let failure = outcome.failure.context("sent")?;
            let expected = format!("send: {}", refusal("ECONNREFUSED"));
            assert_eq!(failure.to_string(), expected, "{to}");
        }
    }
    world.manifests.service("dns").endpoints(&backends);
    world.apply()?;
    for (socket, to) in &sockets {
        assert_eq!(answers(&socket.ask(to, 2)?, to)?, names(["a"]));
    }
    Ok(())
}

/// Asks at each address in turn, many times over; returns who answered at each.
fn round_robin(socket: &UdpSocket, to: &[SocketAddr]) -> Result<Vec<BTreeSet<String>>> {
    const ROUNDS: usize = 30;
    let steps: Vec<_> = to.iter().map(|to| UdpStep::Ask(*to)).collect();
    let outcomes = socket.run(&steps.repeat(ROUNDS))?;
    to.iter()
        .enumerate()
        .map(|(index, to)| {
            let own: Vec<_> = outcomes
                .iter()
                .skip(index)
                .step_by(steps.len())
                .cloned()
                .collect();
            answers(&own, &to.to_string())
        })
        .collect()
}

#[test]
fn eight_destinations_keep_their_backends_and_a_ninth_takes_the_oldest_ones_place() -> Result<()> {
    let mut world = World::single()?;
    let backends = world.backends(0, ["a", "b", "c", "d"])?;
    let client = world.node(0)?.pod("client")?;
    let mut vips: Vec<SocketAddr> = Vec::new();
    for n in 1..=9 {
        let vip = format!("10.96.1.{n}");
        let service = world.manifests.service(&format!("s{n}"));
        service
            .cluster_ip(&vip)
            .udp_port(53, 8080)
            .endpoints(&backends);
        vips.push(format!("{vip}:53").parse()?);
    }
    let _agent = world.start(0, &[])?;

    let socket = client.udp_socket(false)?;
    let kept = round_robin(&socket, &vips[..8])?;
    assert!(kept.iter().all(|who| who.len() == 1), "{kept:?}");
    // Now the first is the one unused for longest; the ninth takes its place, the others keep theirs.
    let ninth = answers(&socket.ask(&vips[8].to_string(), 20)?, &vips[8].to_string())?;
    assert_eq!(ninth.len(), 1, "{ninth:?}");
    assert_eq!(round_robin(&socket, &vips[1..8])?, kept[1..]);
    // Nine in turn: each comes back to find its place taken. Every answer still shows the right address.
    let lost = round_robin(&socket, &vips)?;
    assert!(lost.iter().all(|who| who.len() > 1), "{lost:?}");
    Ok(())
}

#[test]
fn of_two_addresses_that_share_a_backend_each_answer_shows_the_right_one() -> Result<()> {
    let mut world = World::single()?;
    let shared = world.backend(0, "shared")?;
    let client = world.node(0)?.pod("client")?;
    for (name, v4, v6) in [
        ("one", "10.96.0.1", "fd00:96::1"),
        ("two", "10.96.0.2", "fd00:96::2"),
    ] {
        let service = world.manifests.service(name);
        service.cluster_ip(v4).cluster_ip(v6);
        service.udp_port(53, 8080).endpoints([&shared]);
    }
    let _agent = world.start(0, &[])?;
    let (one, two) = ("10.96.0.1:53", "10.96.0.2:53");
    let (one6, two6) = (mapped(one)?, mapped(two)?);
    for (is_v6, one, two) in [
        (false, one, two),
        (true, "[fd00:96::1]:53", "[fd00:96::2]:53"),
        (true, &one6, &two6),
    ] {
        let socket = client.udp_socket(is_v6)?;
        let to = [one.parse()?, two.parse()?];
        let who = round_robin(&socket, &to)?;
        assert_eq!(who, [names(["shared"]), names(["shared"])]);
    }
    Ok(())
}

#[test]
fn a_connected_socket_shows_the_service_until_it_connects_elsewhere() -> Result<()> {
    let (world, [backend], client) = with_dns(["a"])?;
    let other = world.backend(0, "other")?;
    for (is_v6, vip, direct, elsewhere) in [
        (false, VIP4.to_owned(), backend.at4(8080), other.at4(8080)),
        (true, VIP6.to_owned(), backend.at6(8080), other.at6(8080)),
        (
            true,
            mapped(VIP4)?,
            mapped(&backend.at4(8080))?,
            mapped(&other.at4(8080))?,
        ),
    ] {
        let socket = client.udp_socket(is_v6)?;
        for (to, who) in [
            (&vip, "a"),
            (&elsewhere, "other"),
            (&vip, "a"),
            (&direct, "a"),
            (&vip, "a"),
        ] {
            let to: SocketAddr = to.parse()?;
            let steps = [
                UdpStep::Connect(to),
                UdpStep::Peer,
                UdpStep::AskConnected,
                UdpStep::Peer,
            ];
            let outcomes = socket.run(&steps)?;
            assert_eq!(outcomes[0].failure, None, "{to}");
            for outcome in &outcomes[1..] {
                assert_eq!(outcome.shown, Some(to), "{outcome:?}");
            }
            assert_eq!(outcomes[2].answer.as_deref(), Some(who), "{to}");
        }
    }
    Ok(())
}
