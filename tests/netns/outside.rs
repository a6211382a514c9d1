//! Clients outside: hosts that are no node of the agent's, and Pods of other nodes, whose packets come in by the wire.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::SocketAddrV4;
use std::net::UdpSocket;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use yurt_frames::SYN;
use yurt_frames::tcp;
use yurt_net_tests::lab::Agent;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;
use yurt_net_tests::lab::Tunnel;

use crate::world::PATIENCE;
use crate::world::World;
use crate::world::all_answered;
use crate::world::eventually;
use crate::world::names;

const ON: &[&str] = &["--packet-path=on"];
pub(crate) const NODE_PORT: u16 = 30080;
pub(crate) const BALANCER: [&str; 2] = ["203.0.113.9", "2001:db8:77::9"];

/// A node with an agent, another one in its pool, and a host outside.
pub(crate) struct Stage {
    pub(crate) near: Pod,
    pub(crate) far: Pod,
    pub(crate) client: Pod,
    pub(crate) world: World,
}

impl Stage {
    pub(crate) fn new() -> Result<Self> {
        let mut world =
            World::new(&[("edge-1", "hangzhou"), ("edge-2", "hangzhou"), ("home", "")])?;
        let (near, far) = (world.backend(0, "near")?, world.backend(1, "far")?);
        let client = world.node(2)?.host()?;
        // As a router in front of the cluster has it.
        for (address, via) in [
            (BALANCER[0], world.node(0)?.ip4().to_string()),
            (BALANCER[1], world.node(0)?.ip6().to_string()),
        ] {
            world
                .node(2)?
                .netns()
                .ip(&format!("route add {address} via {via}"))?;
        }
        let web = world.manifests.service("web");
        web.cluster_ip("10.96.0.10").cluster_ip("fd00:96::10");
        web.load_balancer_ip(BALANCER[0])
            .load_balancer_ip(BALANCER[1]);
        web.node_port(Tcp, 80, 8080, NODE_PORT);
        web.node_port(Udp, 80, 8080, NODE_PORT);
        Ok(Self {
            near,
            far,
            client,
            world,
        })
    }

    /// NodePort and load balancer of both families.
    pub(crate) fn frontends(&self) -> Result<Vec<String>> {
        let node = self.world.node(0)?;
        Ok(vec![
            format!("{}:{NODE_PORT}", node.ip4()),
            format!("[{}]:{NODE_PORT}", node.ip6()),
            format!("{}:80", BALANCER[0]),
            format!("[{}]:80", BALANCER[1]),
        ])
    }

    pub(crate) fn start(&mut self, backends: &[&Pod]) -> Result<Agent> {
        self.start_with(backends, &[])
    }

    /// With more flags.
    pub(crate) fn start_with(&mut self, backends: &[&Pod], flags: &[&str]) -> Result<Agent> {
        self.lead_to(backends);
        let flags: Vec<&str> = ON.iter().chain(flags).copied().collect();
        let agent = self.world.start(0, &flags)?;
        self.wait_served()?;
        Ok(agent)
    }

    /// Has the Service these endpoints, once the manifests are applied.
    pub(crate) fn lead_to(&mut self, backends: &[&Pod]) {
        let backends: Vec<Pod> = backends.iter().map(|pod| (*pod).clone()).collect();
        self.world.manifests.service("web").endpoints(&backends);
    }

    fn wait_served(&self) -> Result<()> {
        let node = self.world.node(0)?;
        node.wait_for_status("packets are served", |status| {
            let packets = status.packet_path.as_ref();
            packets.is_some_and(|packets| packets.devices == ["eth0"])
        })?;
        Ok(())
    }

    /// What was done with packets, by its name.
    pub(crate) fn count(&self, what: &str) -> Result<u64> {
        let packets = self.world.node(0)?.status()?.packet_path;
        let packets = packets.context("packets are served")?.packets;
        Ok(packets.get(what).copied().unwrap_or_default())
    }

    pub(crate) fn who(&self, proto: Proto, to: &str) -> Result<BTreeSet<String>> {
        let tally = self.client.connect_many(proto, to, 16)?;
        all_answered(&tally)?;
        Ok(tally.answers.into_keys().collect())
    }
}

#[test]
fn a_host_outside_reaches_backends_on_this_node_and_on_others_at_every_frontend() -> Result<()> {
    let mut stage = Stage::new()?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    let _agent = stage.start(&[&near, &far])?;
    for to in stage.frontends()? {
        for proto in [Tcp, Udp] {
            assert_eq!(
                stage.who(proto, &to)?,
                names(["near", "far"]),
                "{proto:?} {to}"
            );
        }
    }
    ensure!(stage.count("to_client")? > 0);
    // Clients choose their ports at random, and may dial two frontends from the same: there are two backends for that.
    for what in ["drop_clash", "drop_no_port"] {
        assert_eq!(stage.count(what)?, 0, "{what}");
    }
    Ok(())
}

#[test]
fn an_established_flow_lives_through_agents_and_changes_of_the_table() -> Result<()> {
    let mut stage = Stage::new()?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    for backend in [&near, &far] {
        let agent = stage.start(&[backend])?;
        let mut held = Vec::new();
        for to in stage.frontends()? {
            held.push(stage.client.hold(Tcp, &to)?);
        }
        agent.kill9()?;
        let other = if backend.name() == "near" {
            &far
        } else {
            &near
        };
        for flow in &held {
            ensure!(flow.ping()?.answer.as_deref() == Some(backend.name()));
        }
        let agent = stage.start(&[other])?;
        for (flow, to) in held.iter().zip(stage.frontends()?) {
            ensure!(flow.ping()?.answer.as_deref() == Some(backend.name()));
            assert_eq!(stage.who(Tcp, &to)?, names([other.name()]));
        }
        agent.kill9()?;
    }
    Ok(())
}

#[test]
fn flows_go_on_where_what_leads_to_their_tables_is_made_anew_and_other_sizes_begin_anew()
-> Result<()> {
    let mut stage = Stage::new()?;
    let near = stage.near.clone();
    let agent = stage.start(&[&near])?;
    let frontends = stage.frontends()?;
    let hold = |stage: &Stage| -> Result<Vec<_>> {
        let held = frontends.iter().map(|to| stage.client.hold(Tcp, to));
        held.collect()
    };
    let held = hold(&stage)?;
    agent.kill9()?;
    let pins = stage.world.node(0)?.bpffs().join("yurt-net/packet-v2");
    for name in ["yurt_flows4", "yurt_flows6"] {
        fs::remove_file(pins.join(name))?;
    }
    let agent = stage.start(&[&near])?;
    for flow in &held {
        ensure!(flow.ping()?.answer.as_deref() == Some("near"));
    }
    agent.kill9()?;
    let _agent = stage.start_with(&[&near], &["--max-flows4=4096", "--max-flows6=4096"])?;
    let held = hold(&stage)?;
    // What is up is in the tables that are pinned: `flows` reads those.
    let listed = stage.world.node(0)?.yurt_net(&["flows"])?;
    let listed = String::from_utf8(listed.stdout)?;
    for (flow, to) in held.iter().zip(&frontends) {
        ensure!(flow.ping()?.answer.as_deref() == Some("near"));
        ensure!(listed.contains(to.as_str()), "no {to} in:\n{listed}");
    }
    Ok(())
}

/// As modems and VPNs have them: one from the host outside to the node, and one from the node to the other node.
pub(crate) fn layer_3_devices(world: &World) -> Result<[Tunnel; 2]> {
    let [node, other, outside] = [0, 1, 2].map(|at| world.node(at).map(Node::netns));
    let (node, other, outside) = (node?, other?, outside?);
    let tunnels = [
        Tunnel::new([(node, "tun0"), (outside, "tun0")])?,
        Tunnel::new([(node, "tun1"), (other, "tun0")])?,
    ];
    for (netns, device, own, peer) in [
        (node, "tun0", "1", "3"),
        (outside, "tun0", "3", "1"),
        (node, "tun1", "2", "4"),
        (other, "tun0", "4", "2"),
    ] {
        netns.ip(&format!(
            "address add 172.30.7.{own} peer 172.30.7.{peer} dev {device}"
        ))?;
        netns.ip(&format!(
            "address add fd07::{own} peer fd07::{peer} dev {device} nodad"
        ))?;
    }
    Ok(tunnels)
}

#[test]
fn packets_of_layer_3_devices_are_served_masqueraded_and_refused() -> Result<()> {
    let mut stage = Stage::new()?;
    let _tunnels = layer_3_devices(&stage.world)?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    stage.lead_to(&[&near, &far]);
    let _agent = stage.world.start(0, ON)?;
    let node = stage.world.node(0)?;
    node.wait_for_status("packets are served", |status| {
        let packets = status.packet_path.as_ref();
        packets.is_some_and(|packets| packets.devices == ["eth0", "tun0", "tun1"])
    })?;
    // Load balancers are dialled by such a device, NodePorts still by Ethernet.
    let client = stage.world.node(2)?.netns();
    client.ip(&format!(
        "route replace {} dev tun0 src 172.30.7.3",
        BALANCER[0]
    ))?;
    client.ip(&format!(
        "route replace {} dev tun0 src fd07::3",
        BALANCER[1]
    ))?;
    let everywhere = |stage: &Stage| {
        for to in stage.frontends()? {
            for proto in [Tcp, Udp] {
                let who = stage.who(proto, &to)?;
                ensure!(who == names(["near", "far"]), "{proto:?} {to}: {who:?}");
            }
        }
        Ok(())
    };
    everywhere(&stage)?;
    // And now the backend elsewhere is behind one: it sees the node's address there.
    for address in [far.ip4().to_string(), far.ip6().to_string()] {
        node.netns()
            .ip(&format!("route replace {address} dev tun1"))?;
    }
    everywhere(&stage).context("the backend elsewhere is behind tun1")?;
    assert_eq!(stage.count("drop_unchanged")?, 0);
    stage.lead_to(&[]);
    stage.world.apply()?;
    for to in stage.frontends()? {
        for proto in [Tcp, Udp] {
            let attempt = stage.client.attempt(proto, &to)?;
            assert_eq!(attempt.errno(), Some("ECONNREFUSED"), "{proto:?} {to}");
        }
    }
    ensure!(stage.count("refuse_no_endpoint")? >= 8);
    Ok(())
}

#[test]
fn what_fails_for_layer_3_devices_costs_no_other_device() -> Result<()> {
    let mut stage = Stage::new()?;
    let _tunnels = layer_3_devices(&stage.world)?;
    let near = stage.near.clone();
    stage.lead_to(&[&near]);
    // A directory in the place of their array.
    let l3 = stage.world.node(0)?.bpffs().join("yurt-net/packet-v2/l3");
    fs::create_dir_all(l3.join("yurt_edge_more"))?;
    let agent = stage.world.start(0, ON)?;
    let node = stage.world.node(0)?;
    node.wait_for_status("that it fails is told, and Ethernet is served", |status| {
        let packets = status.packet_path.as_ref();
        packets.is_some_and(|packets| packets.devices == ["eth0"] && packets.problem.is_some())
    })?;
    let to = &stage.frontends()?[0];
    assert_eq!(stage.who(Tcp, to)?, names(["near"]));
    fs::remove_dir(l3.join("yurt_edge_more"))?;
    // Something else that is pinned there gives way.
    fs::hard_link(l3.with_file_name("yurt_edge"), l3.join("yurt_edge_more"))?;
    node.netns().ip("link set tun1 down")?;
    node.wait_for_status("all are served", |status| {
        let packets = status.packet_path.as_ref();
        packets.is_some_and(|packets| packets.devices.len() == 3 && packets.problem.is_none())
    })?;
    agent.kill9()?;
    ensure!(node.yurt_net(&["cleanup"])?.status.success());
    ensure!(!l3.exists());
    let client = stage.world.node(2)?.netns();
    client.ip(&format!(
        "route replace {} dev tun0 src 172.30.7.3",
        BALANCER[0]
    ))?;
    let to = format!("{}:80", BALANCER[0]);
    ensure!(stage.client.attempt(Tcp, &to)?.failure.is_some());
    Ok(())
}

#[test]
fn agents_take_over_flows_at_layer_3_devices_and_let_go_of_the_devices() -> Result<()> {
    let mut stage = Stage::new()?;
    let _tunnels = layer_3_devices(&stage.world)?;
    let client = stage.world.node(2)?.netns();
    client.ip(&format!(
        "route replace {} dev tun0 src 172.30.7.3",
        BALANCER[0]
    ))?;
    let near = stage.near.clone();
    stage.lead_to(&[&near]);
    let to = format!("{}:80", BALANCER[0]);
    let agent = stage.world.start(0, ON)?;
    let is_served = |stage: &Stage| {
        eventually(stage.world.node(0)?, || {
            ensure!(stage.client.attempt(Tcp, &to)?.failure.is_none());
            Ok(())
        })
    };
    is_served(&stage)?;
    let held = stage.client.hold(Tcp, &to)?;
    agent.kill9()?;
    assert_eq!(held.ping()?.answer, held.opened().answer);
    is_served(&stage)?;
    let agent = stage.world.start(0, ON)?;
    is_served(&stage)?;
    assert_eq!(held.ping()?.answer, held.opened().answer);
    let _agent = stage.world.restart(&agent, 0, &[])?;
    let node = stage.world.node(0)?;
    let pins = node.bpffs().join("yurt-net/packet-v2");
    node.wait_for_status("no packets are served", |status| {
        status.packet_path.is_none() && !pins.exists()
    })?;
    ensure!(stage.client.attempt(Tcp, &to)?.failure.is_some());
    Ok(())
}

#[test]
fn a_held_flow_goes_on_when_the_link_that_it_came_by_is_back() -> Result<()> {
    let mut stage = Stage::new()?;
    let near = stage.near.clone();
    let _agent = stage.start(&[&near])?;
    let to = stage.frontends()?[0].clone();
    let held = stage.client.hold(Tcp, &to)?;
    let node = stage.world.node(0)?;
    node.netns().ip("link set eth0 down")?;
    ensure!(stage.client.attempt(Tcp, &to)?.failure.is_some());
    node.netns().ip("link set eth0 up")?;
    eventually(node, || {
        ensure!(stage.client.attempt(Tcp, &to)?.failure.is_none());
        Ok(())
    })?;
    assert_eq!(held.ping()?.answer, held.opened().answer);
    Ok(())
}

#[test]
fn what_is_switched_off_or_older_is_removed_and_sockets_are_served_on() -> Result<()> {
    let mut stage = Stage::new()?;
    let near = stage.near.clone();
    let pins = stage.world.node(0)?.bpffs().join("yurt-net");
    let older = pins.join("packet-v1");
    fs::create_dir_all(&older)?;
    let agent = stage.start(&[&near])?;
    ensure!(!older.exists(), "an older agent's maps stay");
    let to = &stage.frontends()?[0];
    assert_eq!(stage.who(Tcp, to)?, names(["near"]));
    let _agent = stage.world.restart(&agent, 0, &[])?;
    let node = stage.world.node(0)?;
    node.wait_for_status("no packets are served", |status| {
        status.packet_path.is_none() && !pins.join("packet-v2").exists()
    })?;
    ensure!(stage.client.attempt(Tcp, to)?.failure.is_some());
    let inside = node.pod("inside")?;
    assert_eq!(inside.get("10.96.0.10:80")?, "near");
    Ok(())
}

#[test]
fn without_the_program_for_first_packets_no_flow_begins_and_those_that_are_up_go_on() -> Result<()>
{
    let mut stage = Stage::new()?;
    let near = stage.near.clone();
    let agent = stage.start(&[&near])?;
    let frontends = [stage.frontends()?[0].clone(), stage.frontends()?[1].clone()];
    let mut held = Vec::new();
    for to in &frontends {
        held.push(stage.client.hold(Tcp, to)?);
    }
    agent.kill9()?;
    // The kernel empties it with its last pin, once nobody can be looking at that any more.
    let pins = stage.world.node(0)?.bpffs().join("yurt-net/packet-v2");
    fs::remove_file(pins.join("yurt_edge_more"))?;
    let patience = Instant::now() + Duration::from_secs(60);
    let is_served = || anyhow::Ok(stage.client.attempt(Tcp, &frontends[0])?.failure.is_none());
    while is_served()? {
        ensure!(
            Instant::now() < patience,
            "a flow begins without the program"
        );
    }
    for (flow, to) in held.iter().zip(&frontends) {
        // It takes its time with that.
        eventually(stage.world.node(0)?, || {
            ensure!(stage.client.attempt(Tcp, to)?.failure.is_some());
            Ok(())
        })?;
        ensure!(flow.ping()?.answer.as_deref() == Some("near"));
    }
    let _agent = stage.start(&[&near])?;
    ensure!(stage.count("drop_no_program")? >= 2);
    for (flow, to) in held.iter().zip(&frontends) {
        assert_eq!(stage.who(Tcp, to)?, names(["near"]));
        ensure!(flow.ping()?.answer.as_deref() == Some("near"));
    }
    Ok(())
}

#[test]
fn a_datagram_in_fragments_reaches_a_backend_here_and_elsewhere_and_so_does_its_answer()
-> Result<()> {
    let mut stage = Stage::new()?;
    for backend in [stage.near.clone(), stage.far.clone()] {
        let agent = stage.start(&[&backend])?;
        for to in stage.frontends()? {
            let to: SocketAddr = to.parse()?;
            let ask = move || ask_in_fragments(to);
            let answer = stage.world.node(2)?.netns().run(ask)??;
            let expected = [backend.name().as_bytes(), b" ", &LARGE].concat();
            ensure!(answer == expected, "{} from {to}", answer.len());
        }
        agent.kill9()?;
    }
    Ok(())
}

/// More than a packet holds.
const LARGE: [u8; 1900] = [b'x'; 1900];

/// Asks until there is an answer: the nodes may have to learn each other's link-layer addresses, which costs fragments.
fn ask_in_fragments(to: SocketAddr) -> Result<Vec<u8>> {
    const TRIES: usize = 30;
    let socket = UdpSocket::bind(match to {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    })?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut answer = vec![0; 2 * LARGE.len()];
    for _ in 0..TRIES {
        socket.send_to(&LARGE, to)?;
        if let Ok((length, from)) = socket.recv_from(&mut answer) {
            ensure!(from == to, "answered by {from} instead of {to}");
            answer.truncate(length);
            return Ok(answer);
        }
    }
    bail!("no answer from {to}")
}

#[test]
fn a_flood_of_first_packets_costs_no_quiet_flow_and_moves_none() -> Result<()> {
    let mut stage = Stage::new()?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    let _agent = stage.start(&[&near, &far])?;
    let to = stage.frontends()?[0].clone();
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(stage.client.hold(Tcp, &to)?);
    }
    let (address, client) = (stage.world.node(0)?.ip4(), stage.world.node(2)?.ip4());
    // From every port of the client, those of the flows among them, and from hosts that are not there.
    let strangers = (1..=2).map(|last| Ipv4Addr::new(198, 18, 0, last));
    let sources: Vec<Ipv4Addr> = strangers.chain([client]).collect();
    let flood = || flood(&sources, 1024..=u16::MAX, address);
    stage.world.node(2)?.netns().run(flood)??;
    ensure!(stage.count("new_flow")? > 150_000);
    for flow in &held {
        assert_eq!(flow.ping()?.answer, flow.opened().answer);
    }
    Ok(())
}

#[test]
fn a_flood_of_datagrams_that_are_answered_costs_no_quiet_connection() -> Result<()> {
    let mut stage = Stage::new()?;
    let near = stage.near.clone();
    let _agent = stage.start(&[&near])?;
    let to = stage.frontends()?[0].clone();
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(stage.client.hold(Tcp, &to)?);
    }
    let (from, to) = (stage.world.node(2)?.ip4(), to.parse::<SocketAddrV4>()?);
    let flood = move || ask_from_every_port(from, to);
    stage.world.node(2)?.netns().run(flood)??;
    for flow in &held {
        assert_eq!(flow.ping()?.answer, flow.opened().answer);
    }
    Ok(())
}

#[test]
fn a_backend_elsewhere_meets_hardly_any_port_again_in_thousands_of_connections() -> Result<()> {
    const CONNECTIONS: usize = 6000;
    let mut stage = Stage::new()?;
    let far = stage.far.clone();
    far.serve_telling(8081)?;
    let web = stage.world.manifests.service("web");
    web.node_port(Tcp, 81, 8081, NODE_PORT + 1);
    let _agent = stage.start(&[&far])?;
    let node = stage.world.node(0)?;
    for address in [IpAddr::from(node.ip4()), node.ip6().into()] {
        let to = SocketAddr::new(address, NODE_PORT + 1);
        let dials = vec![(Tcp, to); CONNECTIONS];
        let attempts = stage.client.attempt_all(&dials, 8, PATIENCE)?;
        let mut met = BTreeSet::new();
        for attempt in &attempts {
            let seen = attempt.answer().and_then(|answer| answer.split_once(','));
            let (_, seen) = seen.with_context(|| format!("{attempt:?}"))?;
            let seen: SocketAddr = seen.parse()?;
            assert_eq!(seen.ip(), address);
            met.insert(seen.port());
        }
        // Two processors may get in each other's way, and one then goes on elsewhere; at random it would be 900.
        let again = CONNECTIONS - met.len();
        ensure!(again < CONNECTIONS / 100, "{again} at {address}");
    }
    assert_eq!(stage.count("drop_no_port")?, 0);
    Ok(())
}

/// Opens more flows of datagrams than there are entries: each is asked once more after an answer.
fn ask_from_every_port(from: Ipv4Addr, to: SocketAddrV4) -> Result<()> {
    for port in 20_000..56_000 {
        let socket = UdpSocket::bind((from, port))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.connect(to)?;
        let mut answer = [0; 64];
        let mut tries = 0..5;
        loop {
            ensure!(tries.next().is_some(), "no answer to port {port}");
            socket.send(b"?")?;
            if socket.recv(&mut answer).is_ok() {
                break;
            }
        }
        socket.send(b"?")?;
    }
    Ok(())
}

/// Sends a SYN from each of these ports of these addresses to the NodePort.
pub(crate) fn flood(sources: &[Ipv4Addr], ports: RangeInclusive<u16>, to: Ipv4Addr) -> Result<()> {
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW) };
    ensure!(socket >= 0, io::Error::last_os_error());
    // SAFETY: just opened, and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let place = libc::sockaddr_in {
        sin_family: libc::AF_INET.try_into()?,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(to.octets()),
        },
        sin_zero: [0; 8],
    };
    let length = size_of::<libc::sockaddr_in>().try_into()?;
    for source in sources {
        for port in ports.clone() {
            let from = SocketAddrV4::new(*source, port);
            let packet = tcp(from, SocketAddrV4::new(to, NODE_PORT), SYN, b"").bytes();
            // SAFETY: both are valid for reads of their lengths.
            let sent = unsafe {
                libc::sendto(
                    socket.as_raw_fd(),
                    packet.as_ptr().cast(),
                    packet.len(),
                    0,
                    (&raw const place).cast(),
                    length,
                )
            };
            ensure!(sent >= 0, io::Error::last_os_error());
        }
    }
    Ok(())
}
