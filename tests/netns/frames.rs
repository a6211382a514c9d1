//! What no socket sends: frames made by hand, against the packet path.

use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::net::UdpSocket;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_frames::ACK;
use yurt_frames::Mac;
use yurt_frames::Packet;
use yurt_frames::SYN;
use yurt_frames::Tcp;
use yurt_frames::eth;
use yurt_net_tests::lab::Netns;
use yurt_net_tests::lab::Proto;

use crate::guard::Arrivals;
use crate::guard::links;
use crate::guard::send;
use crate::outside::NODE_PORT;
use crate::outside::Stage;
use crate::outside::flood;
use crate::world::PATIENCE;
use crate::world::all_answered;
use crate::world::eventually;

const LOCAL_PORT: u16 = 5555;

/// The link-layer address of a namespace's `eth0`.
fn mac(netns: &Netns) -> Result<Mac> {
    let links = links(netns)?;
    let link = links.iter().find(|link| link.name == "eth0");
    link.and_then(|link| link.mac).context("no eth0")
}

/// A datagram to a process of the node that only its own processes should reach, behind so many tags.
pub(crate) fn to_loopback(stage: &Stage, tags: usize) -> Result<Vec<u8>> {
    let (node, client) = (stage.world.node(0)?, stage.world.node(2)?);
    let frame = tagged(mac(client.netns())?, mac(node.netns())?, tags);
    let frame = frame.ip(client.ip4(), Ipv4Addr::LOCALHOST);
    Ok(frame.udp(7777, LOCAL_PORT).data(b"?").padded())
}

/// Tags of no VLAN, which only say a priority.
fn tagged(from: Mac, to: Mac, tags: usize) -> Packet {
    (0..tags).fold(eth(from, to), |frame, _| frame.vlan(0))
}

#[test]
fn a_tag_behind_a_tag_that_is_none_hides_nothing_from_the_programs() -> Result<()> {
    let mut stage = Stage::new()?;
    let near = stage.near.clone();
    let node = stage.world.node(0)?.netns();
    // As kube-proxy and portmap set it.
    node.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1"))??;
    let process = node.run(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, LOCAL_PORT)))??;
    process.set_read_timeout(Some(PATIENCE))?;
    let frames = (0..=3)
        .map(|tags| to_loopback(&stage, tags))
        .collect::<Result<Vec<_>>>()?;
    // The kernel takes off each of them.
    for frame in &frames {
        send(stage.world.node(2)?.netns(), frame)?;
        process.recv(&mut [0; 8]).context("nobody drops it yet")?;
    }
    let _agent = stage.start(&[&near])?;
    for (frame, (what, count)) in frames.iter().zip([
        ("drop_loopback", 1),
        ("drop_loopback", 2),
        ("drop_tag", 1),
        ("drop_tag", 2),
    ]) {
        send(stage.world.node(2)?.netns(), frame)?;
        eventually(stage.world.node(0)?, || {
            ensure!(stage.count(what)? == count, "{what}");
            Ok(())
        })?;
    }
    process.set_nonblocking(true)?;
    let received = process.recv(&mut [0; 8]);
    ensure!(received.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock));
    Ok(())
}

#[test]
fn a_frame_with_a_priority_is_served_and_one_with_two_is_not() -> Result<()> {
    let mut stage = Stage::new()?;
    let near = stage.near.clone();
    let _agent = stage.start(&[&near])?;
    let (node, client) = (stage.world.node(0)?, stage.world.node(2)?);
    let to = SocketAddrV4::new(node.ip4(), NODE_PORT);
    let socket = client
        .netns()
        .run(|| UdpSocket::bind((client.ip4(), 0)))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    let port = socket.local_addr()?.port();
    let ends = (mac(client.netns())?, mac(node.netns())?);
    let ask = |tags, text: &[u8]| {
        let frame = tagged(ends.0, ends.1, tags).ip(client.ip4(), node.ip4());
        let frame = frame.udp(port, NODE_PORT).data(text).padded();
        send(client.netns(), &frame)
    };
    ask(2, b"twice")?;
    eventually(node, || {
        ensure!(stage.count("drop_tag")? == 1);
        Ok(())
    })?;
    assert_eq!(stage.count("new_flow")?, 0);
    ask(1, b"once")?;
    let mut answer = [0; 64];
    let (length, from) = socket.recv_from(&mut answer)?;
    assert_eq!(&answer[..length], b"near once");
    assert_eq!(from, to.into());
    Ok(())
}

/// Another Service, which is flooded or not by itself.
const OTHER_PORT: u16 = 30083;
/// What 10,000 SYNs a second come to in the 150 ms that a SYN+ACK and its answer are on their way.
const ON_THE_WAY: RangeInclusive<u16> = 1024..=2523;
/// An address that no kernel here has, so that none answers for it.
const FAR_AWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

#[test]
fn a_flood_of_first_packets_costs_no_connection_that_a_client_far_away_opens_meanwhile()
-> Result<()> {
    let mut stage = Stage::new()?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    let other = stage.world.manifests.service("other");
    other.cluster_ip("10.96.0.11");
    other.node_port(Proto::Tcp, 80, 8080, OTHER_PORT);
    for (backend, first) in [(&near, 40_000), (&far, 41_000)] {
        let other = stage.world.manifests.service("other");
        other.endpoints([backend]);
        let agent = stage.start(&[&near, &far])?;
        let (node, client) = (stage.world.node(0)?, stage.world.node(2)?);
        let ends = (mac(client.netns())?, mac(node.netns())?);
        let [a, b, c, d, e, f] = ends.0;
        node.netns().ip(&format!(
            "neigh replace {FAR_AWAY} lladdr {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} dev eth0"
        ))?;
        // All link-layer addresses are known then.
        let to = format!("{}:{OTHER_PORT}", node.ip4());
        all_answered(&stage.client.connect_many(Proto::Tcp, &to, 1)?)?;
        for port in first..first + 8 {
            let send = |sequence, acknowledged, flags| {
                let packet = eth(ends.0, ends.1).ip(FAR_AWAY, node.ip4()).then(Tcp {
                    sequence,
                    acknowledged,
                    ..Tcp::new(port, OTHER_PORT, flags)
                });
                send(client.netns(), &packet.padded())
            };
            let arrivals = Arrivals::start(client.netns())?;
            let answer = ask(arrivals, || send(100, 0, SYN), |frame| segment(frame, port))?;
            let (flags, sequence, _) = answer.context("no answer to the SYN")?;
            ensure!(flags == SYN | ACK, "{flags:#x}");
            let before = stage.count("new_flow")?;
            let sources = [Ipv4Addr::new(198, 18, port.to_be_bytes()[1], 1)];
            client
                .netns()
                .run(|| flood(&sources, ON_THE_WAY, node.ip4()))??;
            // A busy machine drops some of so many at once.
            ensure!(stage.count("new_flow")? - before >= 1000);
            // Without what has filled its buffer.
            let arrivals = Arrivals::start(client.netns())?;
            let acknowledge = || send(101, sequence.wrapping_add(1), ACK);
            // The backend greets.
            let answer = ask(arrivals, acknowledge, |frame| {
                segment(frame, port).filter(|(flags, ..)| flags & SYN == 0)
            })?;
            let (flags, _, data) = answer.context("no greeting")?;
            let greeting = format!("{}\n", backend.name());
            ensure!(data == greeting.as_bytes(), "{port}: {flags:#x} {data:?}");
        }
        agent.kill9()?;
    }
    Ok(())
}

/// Sends, and sends again after silence, until something can be read.
fn ask<T>(
    mut arrivals: Arrivals,
    send: impl Fn() -> Result<()>,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<T>> {
    for _ in 0..PATIENCE.as_secs() {
        send()?;
        let answer = arrivals.next(Duration::from_secs(1), &read)?;
        if answer.is_some() {
            return Ok(answer);
        }
    }
    Ok(None)
}

/// Flags, sequence number and data of what comes from the other Service to this port far away.
fn segment(frame: &[u8], port: u16) -> Option<(u8, u32, Vec<u8>)> {
    let (kind, protocol) = (frame.get(12..14)?, *frame.get(23)?);
    let (to, ports) = (frame.get(30..34)?, frame.get(34..38)?);
    let is_it = kind == [8, 0] && protocol == yurt_frames::protocol::TCP && to == FAR_AWAY.octets();
    let expected = [OTHER_PORT.to_be_bytes(), port.to_be_bytes()].concat();
    let sequence = frame.get(38..42)?.try_into().ok()?;
    let flags = *frame.get(47)?;
    let (length, header) = (frame.get(16..18)?, usize::from(frame.get(46)? >> 4) * 4);
    let end = 14 + usize::from(u16::from_be_bytes(length.try_into().ok()?));
    let data = frame.get(34 + header..end)?.to_vec();
    (is_it && ports == expected).then_some((flags, u32::from_be_bytes(sequence), data))
}
