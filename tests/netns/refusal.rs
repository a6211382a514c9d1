//! A refusal is `ECONNREFUSED` from the call itself, and no packet leaves.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;
use yurt_net_tests::lab::UdpStep;

use crate::capture::Capture;
use crate::world::World;
use crate::world::eventually;
use crate::world::fails_with;
use crate::world::is_refused;
use crate::world::is_refused_by;
use crate::world::mapped;
use crate::world::refusal;
use crate::world::status;

const EMPTY4: &str = "10.96.0.20";
const EMPTY6: &str = "fd00:96::20";
const REFUSED: &str = "ECONNREFUSED";
const DROP: &str = "EHOSTUNREACH";
const UNALLOCATED4: &str = "10.96.0.77:80";
const UNALLOCATED6: &str = "[fd00:96::77]:80";

fn with_an_empty_service(flags: &[&str]) -> Result<(World, [Pod; 2])> {
    let mut world = World::single()?;
    let empty = world.manifests.service("empty");
    empty.cluster_ip(EMPTY4).cluster_ip(EMPTY6);
    empty.port(80, 8080).udp_port(53, 8080).udp_port(80, 8080);
    let backend = world.backend(0, "backend")?;
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10").cluster_ip("fd00:96::10");
    web.port(80, 8080).udp_port(53, 8080).endpoints([&backend]);
    world.start(0, flags)?;
    let clients = [world.node(0)?.pod("client")?, world.node(0)?.host()?];
    Ok((world, clients))
}

fn leave(capture: &mut Capture, addresses: &[&str]) -> Result<Vec<IpAddr>> {
    let addresses: Vec<IpAddr> = addresses
        .iter()
        .map(|a| Ok(a.parse()?))
        .collect::<Result<_>>()?;
    let mut seen = capture.destinations()?;
    seen.retain(|destination| addresses.contains(destination));
    Ok(seen)
}

#[test]
fn without_an_endpoint_every_call_is_refused_at_once_and_no_packet_leaves() -> Result<()> {
    let (world, clients) = with_an_empty_service(&[])?;
    let mut capture = Capture::start(world.node(0)?)?;
    for client in &clients {
        let v4 = format!("{EMPTY4}:80");
        for to in [&v4, &mapped(&v4)?, &format!("[{EMPTY6}]:80")] {
            is_refused(client, to)?;
        }
    }
    assert_eq!(leave(&mut capture, &[EMPTY4, EMPTY6])?, [] as [IpAddr; 0]);
    Ok(())
}

/// How often who dials was turned away, by reason.
fn counters(world: &World) -> Result<BTreeMap<String, u64>> {
    let status = status(world.node(0)?)?;
    let counters = status["counters"].as_object().into_iter().flatten();
    let counters =
        counters.filter(|(name, _)| name.starts_with("refuse_") || name.starts_with("drop_"));
    let counters = counters.map(|(name, count)| (name.clone(), count.as_u64().unwrap_or_default()));
    Ok(counters.collect())
}

/// A Service for each reason to refuse, and a client that meets each of them.
pub(crate) fn with_reasons(flags: &[&str]) -> Result<(World, Pod)> {
    let mut world = World::single()?;
    let backend = world.backend(0, "backend")?;
    let client = world.node(0)?.pod("client")?;
    let empty = world.manifests.service("empty");
    empty.cluster_ip(EMPTY4).cluster_ip(EMPTY6).port(80, 8080);
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10").cluster_ip("fd00:96::10");
    web.port(80, 8080).endpoints([&backend]);
    web.load_balancer_ip("203.0.113.10")
        .load_balancer_ip("2001:db8::10");
    web.source_ranges(&["198.51.100.0/24", "2001:db8:1::/48"]);
    let elsewhere = world.manifests.service("elsewhere");
    elsewhere.cluster_ip("10.96.0.30").cluster_ip("fd00:96::30");
    elsewhere.port(80, 8080).internal_policy_local(true);
    for address in ["10.244.99.1", "fd00:244:99::1"] {
        elsewhere.add_endpoint(address.parse()?, Some("edge-9"), true);
    }
    world.start(0, flags)?;
    // Until then it is refused as one that is not known.
    eventually(world.node(0)?, || {
        for to in ["203.0.113.10:80", "[2001:db8::10]:80"] {
            fails_with(&client, Tcp, to, DROP)?;
        }
        Ok(())
    })?;
    Ok((world, client))
}

#[test]
fn a_refusal_is_counted_under_its_own_reason_with_service_cidrs_and_without() -> Result<()> {
    let cidrs = [
        "--service-cidr",
        "10.96.0.0/16",
        "--service-cidr",
        "fd00:96::/112",
    ];
    let reasons = [
        (
            "10.96.0.20:80",
            "[fd00:96::20]:80",
            REFUSED,
            "refuse_no_endpoint",
        ),
        (
            "10.96.0.20:81",
            "[fd00:96::20]:81",
            REFUSED,
            "refuse_unknown_port",
        ),
        (
            "10.96.0.10:81",
            "[fd00:96::10]:81",
            REFUSED,
            "refuse_unknown_port",
        ),
        (UNALLOCATED4, UNALLOCATED6, REFUSED, "refuse_unallocated"),
        (
            "10.96.0.30:80",
            "[fd00:96::30]:80",
            DROP,
            "drop_no_local_endpoint",
        ),
        (
            "203.0.113.10:80",
            "[2001:db8::10]:80",
            DROP,
            "drop_source_range",
        ),
    ];
    for flags in [&[][..], &cidrs] {
        let (world, client) = with_reasons(flags)?;
        // Without service CIDRs nobody knows of it, and its packets leave.
        let is_refused = |name| name != "refuse_unallocated" || !flags.is_empty();
        for (v4, v6, errno, name) in reasons.iter().filter(|(.., name)| is_refused(*name)) {
            for to in [*v4, &mapped(v4)?, *v6] {
                let mut expected = counters(&world)?;
                *expected.entry((*name).to_owned()).or_default() += 1;
                // Once: who asks again on a busy machine counts twice.
                let failure = client.attempt(Tcp, to)?.failure;
                let failure = failure.map(|failure| failure.to_string());
                let refused = format!("connect: {}", refusal(errno));
                assert_eq!(failure, Some(refused), "{to}");
                assert_eq!(counters(&world)?, expected, "{to} {flags:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn an_unknown_port_of_a_known_cluster_ip_is_refused_also_by_the_other_protocol() -> Result<()> {
    let (world, clients) = with_an_empty_service(&[])?;
    let mut capture = Capture::start(world.node(0)?)?;
    for client in &clients {
        for to in ["10.96.0.10:81", "[fd00:96::10]:81"] {
            is_refused(client, to)?;
        }
        is_refused(client, &mapped("10.96.0.10:81")?)?;
        for to in ["10.96.0.10:53", "[fd00:96::10]:53"] {
            is_refused_by(client, Tcp, to)?;
        }
        for to in ["10.96.0.10:80", "[fd00:96::10]:80"] {
            is_refused_by(client, Udp, to)?;
        }
    }
    let seen = leave(&mut capture, &["10.96.0.10", "fd00:96::10"])?;
    assert_eq!(seen, [] as [IpAddr; 0]);
    Ok(())
}

/// A resolver sorts addresses by connecting a UDP socket to each, often to port 0, and puts those last that fail.
#[test]
fn a_udp_connect_as_resolvers_do_it_to_sort_addresses_is_refused() -> Result<()> {
    let (_world, clients) = with_an_empty_service(&[])?;
    for client in &clients {
        for (is_v6, to) in [
            (false, "10.96.0.10:0"),
            (true, "[fd00:96::10]:0"),
            (false, "10.96.0.10:443"),
        ] {
            let socket = client.udp_socket(is_v6)?;
            let outcomes = socket.run(&[UdpStep::Connect(to.parse()?)])?;
            let failure = outcomes[0].failure.as_ref().map(ToString::to_string);
            let expected = format!("connect: {}", refusal(REFUSED));
            assert_eq!(failure, Some(expected), "{to}");
        }
    }
    Ok(())
}

#[test]
fn with_a_service_cidr_an_unallocated_address_is_refused_and_no_packet_leaves() -> Result<()> {
    let cidrs = [
        "--service-cidr",
        "10.96.0.0/16",
        "--service-cidr",
        "fd00:96::/112",
    ];
    let (world, clients) = with_an_empty_service(&cidrs)?;
    let mut capture = Capture::start(world.node(0)?)?;
    for client in &clients {
        for to in [UNALLOCATED4, UNALLOCATED6] {
            is_refused(client, to)?;
        }
        is_refused(client, &mapped(UNALLOCATED4)?)?;
    }
    let seen = leave(&mut capture, &["10.96.0.77", "fd00:96::77"])?;
    assert_eq!(seen, [] as [IpAddr; 0]);
    Ok(())
}

#[test]
fn without_a_service_cidr_an_unallocated_address_is_nobodys_and_its_packets_leave() -> Result<()> {
    let (world, clients) = with_an_empty_service(&[])?;
    let mut capture = Capture::start(world.node(0)?)?;
    for client in &clients {
        for (is_v6, to) in [(false, UNALLOCATED4), (true, UNALLOCATED6)] {
            let socket = client.udp_socket(is_v6)?;
            let to = to.parse()?;
            for outcome in socket.run(&[UdpStep::SendTo(to), UdpStep::Connect(to)])? {
                assert_eq!(outcome.failure, None, "{to}");
            }
        }
    }
    // The proof that the capture of the other tests would have seen a packet.
    let seen = leave(&mut capture, &["10.96.0.77", "fd00:96::77"])?;
    assert!(seen.iter().any(IpAddr::is_ipv4), "{seen:?}");
    assert!(seen.iter().any(IpAddr::is_ipv6), "{seen:?}");
    Ok(())
}
