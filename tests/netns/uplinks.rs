//! A node with two uplinks: which of them answers leave by.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;

use crate::capture::Tap;
use crate::outside::BALANCER;
use crate::outside::Stage;
use crate::world::PATIENCE;

/// A client behind a router on the second uplink.
const BEYOND: [&str; 2] = ["172.31.9.9", "fd31:0:0:9::9"];
/// For what goes where nobody answers, which is seen there.
const SILENCE: Duration = Duration::from_millis(300);

/// A second link from the node to the host outside, with rules as multi-homed nodes have them for IPv4:
/// what comes from the address of the link or from the load balancer's leaves by it.
fn second_uplink(stage: &Stage) -> Result<()> {
    let (node, outside) = (stage.world.node(0)?.netns(), stage.world.node(2)?.netns());
    node.ip(&format!(
        "link add eth1 type veth peer name eth1 netns {}",
        outside.path()
    ))?;
    node.ip("link set eth1 up\n\
         addr add 172.31.0.1/24 dev eth1\n\
         addr add fd31::1/64 dev eth1 nodad\n")?;
    outside.ip(&format!(
        "link set eth1 up\n\
         addr add 172.31.0.2/24 dev eth1\n\
         addr add fd31::2/64 dev eth1 nodad\n\
         addr add {}/32 dev lo\n\
         addr add {}/128 dev lo nodad\n",
        BEYOND[0], BEYOND[1]
    ))?;
    node.ip(&format!(
        "route add default via 172.31.0.2 dev eth1 metric 2048\n\
         route add default via fd31::2 dev eth1 metric 2048\n\
         route add default via 172.31.0.2 dev eth1 table 100\n\
         rule add from 172.31.0.1 lookup 100\n\
         rule add from {} lookup 100\n",
        BALANCER[0]
    ))
}

/// Has the host outside dial load balancers by the second link, from these addresses of its own.
fn dial_by_the_second(stage: &Stage, from: [&str; 2]) -> Result<()> {
    let outside = stage.world.node(2)?.netns();
    outside.ip(&format!(
        "route replace {} via 172.31.0.1 dev eth1 src {}\n\
         route replace {} via fd31::1 dev eth1 src {}\n",
        BALANCER[0], from[0], BALANCER[1], from[1]
    ))
}

/// Dials at both families, by both protocols, and counts who is answered.
fn answered(client: &Pod, patience: Duration) -> Result<usize> {
    let mut dials = Vec::new();
    for address in BALANCER {
        let to = (address.parse::<IpAddr>()?, 80).into();
        dials.extend([(Tcp, to), (Udp, to)]);
    }
    let attempts = client.attempt_all(&dials, 4, patience)?;
    Ok(attempts.iter().filter(|it| it.answer().is_some()).count())
}

/// Packets to a client beyond the second link, at each of the node's uplinks.
fn seen(taps: [Tap; 2]) -> Result<[u64; 2]> {
    let beyond = [BEYOND[0].parse::<IpAddr>()?, BEYOND[1].parse()?];
    let mut seen = [0; 2];
    for (tap, seen) in taps.into_iter().zip(&mut seen) {
        let counts = tap.stop()?;
        let to_beyond = counts.iter().filter(|((to, _), _)| beyond.contains(to));
        *seen = to_beyond.map(|(_, count)| count).sum();
    }
    Ok(seen)
}

#[test]
fn with_two_uplinks_answers_leave_by_the_one_that_routing_names_for_the_client() -> Result<()> {
    let mut stage = Stage::new()?;
    second_uplink(&stage)?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    for backend in [&near, &far] {
        stage.lead_to(&[backend]);
        let agent = stage.world.start(0, &["--packet-path=on"])?;
        let node = stage.world.node(0)?;
        node.wait_for_status("packets are served", |status| {
            let packets = status.packet_path.as_ref();
            packets.is_some_and(|packets| packets.devices == ["eth0", "eth1"])
        })?;
        let taps =
            || -> Result<[Tap; 2]> { Ok([Tap::start(node, "eth0")?, Tap::start(node, "eth1")?]) };
        // A neighbour on the link is answered there.
        dial_by_the_second(&stage, ["172.31.0.2", "fd31::2"])?;
        assert_eq!(answered(&stage.client, PATIENCE)?, 4);
        // Beyond a router it is not: routing sees the backend as the source, not the address that was dialled, for
        // which there are rules.
        dial_by_the_second(&stage, BEYOND)?;
        let watched = taps()?;
        assert_eq!(answered(&stage.client, SILENCE)?, 0);
        let [first, second] = seen(watched)?;
        ensure!(first > 0 && second == 0, "{first} and {second} packets");
        // With a route to the client it is.
        let routes = format!(
            "via 172.31.0.2 dev eth1\nroute replace {} via fd31::2 dev eth1\n",
            BEYOND[1]
        );
        node.netns()
            .ip(&format!("route replace {} {routes}", BEYOND[0]))?;
        let watched = taps()?;
        assert_eq!(answered(&stage.client, PATIENCE)?, 4);
        let [first, second] = seen(watched)?;
        ensure!(first == 0 && second > 0, "{first} and {second} packets");
        node.netns().ip(&format!(
            "route del {}\nroute del {}\n",
            BEYOND[0], BEYOND[1]
        ))?;
        agent.kill9()?;
    }
    Ok(())
}
