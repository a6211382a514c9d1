//! What is no Service goes its way.

use std::fs;
use std::net::IpAddr;
use std::net::SocketAddr;

use anyhow::Result;
use yurt_net_tests::lab::OtherSocket;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;
use yurt_net_tests::lab::UdpStep;

use crate::world::World;
use crate::world::mapped;

fn with_a_backend(flags: &[&str]) -> Result<(World, Pod, Pod)> {
    let mut world = World::single()?;
    let backend = world.backend(0, "backend")?;
    let client = world.node(0)?.pod("client")?;
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10").cluster_ip("fd00:96::10");
    web.port(80, 8080).udp_port(80, 8080).endpoints([&backend]);
    world.start(0, flags)?;
    Ok((world, backend, client))
}

#[test]
fn a_pod_that_is_dialled_directly_shows_its_own_address() -> Result<()> {
    let (_world, backend, client) = with_a_backend(&[])?;
    for to in [
        backend.at4(8080),
        backend.at6(8080),
        mapped(&backend.at4(8080))?,
    ] {
        for proto in [Tcp, Udp] {
            let attempt = client.attempt(proto, &to)?;
            assert_eq!(attempt.answer(), Some("backend"), "{to}");
            assert_eq!(attempt.peer, Some(to.parse()?), "{proto:?}");
        }
        let replies = client.datagrams(&[&to], false)?;
        assert_eq!(replies[0].from, Some(to.parse()?));
    }
    Ok(())
}

#[test]
fn a_udp_socket_that_turns_from_the_service_to_its_backend_sees_the_backend() -> Result<()> {
    let (_world, backend, client) = with_a_backend(&[])?;
    for (vip, direct) in [
        ("10.96.0.10:80", backend.at4(8080)),
        ("[fd00:96::10]:80", backend.at6(8080)),
    ] {
        let (vip, direct): (SocketAddr, SocketAddr) = (vip.parse()?, direct.parse()?);
        let socket = client.udp_socket(vip.is_ipv6())?;
        let steps = [vip, direct, direct, vip, direct];
        for (to, outcome) in steps.iter().zip(socket.run(&steps.map(UdpStep::Ask))?) {
            assert_eq!(outcome.answer.as_deref(), Some("backend"), "{outcome:?}");
            assert_eq!(outcome.shown, Some(*to), "{outcome:?}");
        }
    }
    Ok(())
}

#[test]
fn ping_and_raw_sockets_are_left_alone() -> Result<()> {
    let (_world, backend, client) = with_a_backend(&[])?;
    client
        .netns()
        .run(|| fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0"))??;
    for address in [backend.ip4().to_string(), format!("[{}]", backend.ip6())] {
        let attempt = client.dial_other(OtherSocket::Icmp, &format!("{address}:0"))?;
        let echo = attempt.answer.clone().map(|from| from.parse());
        assert_eq!(
            echo,
            Some(address.trim_matches(['[', ']']).parse::<IpAddr>()),
            "{attempt:?}"
        );
    }
    for kind in [OtherSocket::RawTcp, OtherSocket::RawUdp] {
        for vip in ["10.96.0.10:80", "[fd00:96::10]:80"] {
            let attempt = client.dial_other(kind, vip)?;
            assert_eq!(attempt.failure, None, "{kind:?} {vip}");
            let peer = attempt.peer.map(|peer| peer.ip());
            assert_eq!(peer, Some(vip.parse::<SocketAddr>()?.ip()), "{kind:?}");
        }
    }
    Ok(())
}

#[test]
fn with_socket_lb_host_only_host_processes_are_served() -> Result<()> {
    let (world, backend, client) = with_a_backend(&["--socket-lb", "host"])?;
    let host = world.node(0)?.host()?;
    for (vip, there) in [
        ("10.96.0.10:80", backend.at4(8080)),
        ("[fd00:96::10]:80", backend.at6(8080)),
    ] {
        for proto in [Tcp, Udp] {
            let tally = client.dial(proto, vip, 1)?;
            assert_eq!(tally.answers.keys().collect::<Vec<_>>(), [vip], "{tally:?}");
            let tally = host.dial(proto, vip, 1)?;
            assert_eq!(
                tally.answers.keys().collect::<Vec<_>>(),
                [&there],
                "{tally:?}"
            );
        }
    }
    assert_eq!(host.get("10.96.0.10:80")?, "backend");
    let checked = world.node(0)?.yurt_net(&["check"])?;
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(
        said.contains("--socket-lb=host: Pods have no Service"),
        "{said}"
    );
    Ok(())
}

#[test]
fn with_socket_lb_off_nobody_is_served() -> Result<()> {
    let (world, _backend, client) = with_a_backend(&["--socket-lb", "off"])?;
    for who in [&client, &world.node(0)?.host()?] {
        for proto in [Tcp, Udp] {
            let tally = who.dial(proto, "10.96.0.10:80", 1)?;
            assert_eq!(
                tally.answers.keys().collect::<Vec<_>>(),
                ["10.96.0.10:80"],
                "{tally:?}"
            );
        }
    }
    let status = crate::world::status(world.node(0)?)?;
    assert_eq!(status["selfTest"]["result"], "skipped", "{status}");
    Ok(())
}
