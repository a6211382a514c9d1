//! ICMP at the packet path: refusals, and errors about flows that are translated.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::OtherSocket;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;
use yurt_net_tests::lab::UdpStep;

use crate::offloads::offload;
use crate::outside::Stage;
use crate::world::PATIENCE;
use crate::world::names;

/// More than all buffers and windows on the way hold.
const MUCH: usize = 1 << 20;

#[test]
fn a_client_outside_is_refused_by_icmp_and_then_served_on_the_same_port() -> Result<()> {
    let mut stage = Stage::new()?;
    let near = stage.near.clone();
    let _agent = stage.start(&[])?;
    let mut sockets = Vec::new();
    let frontends = stage.frontends()?;
    // What the client leaves to devices is in the refusal, too, and must be right once a device has put it in.
    for (by_client, by_node) in [(true, true), (true, false), (false, true)] {
        stage.client.netns().run(|| offload("eth0", by_client))??;
        let node = stage.world.node(0)?.netns();
        node.run(|| offload("eth0", by_node))??;
        for to in &frontends {
            for proto in [Tcp, Udp] {
                let attempt = stage.client.attempt(proto, to)?;
                assert_eq!(attempt.errno(), Some("ECONNREFUSED"), "{proto:?} {to}");
            }
        }
    }
    for to in &frontends {
        let to: SocketAddr = to.parse()?;
        let socket = stage.client.udp_socket(to.is_ipv6())?;
        let steps = socket.run(&[UdpStep::Connect(to), UdpStep::AskConnected])?;
        let refused = steps[1].failure.as_ref().context("it is refused")?;
        assert_eq!(refused.to_string(), "recv: ECONNREFUSED", "{to}");
        sockets.push(socket);
    }
    ensure!(stage.count("refuse_no_endpoint")? >= 28);
    // Nothing but the Service is refused.
    let client = stage.client.netns();
    client.run(|| fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0"))??;
    for to in [
        stage.world.node(0)?.ip4().into(),
        stage.world.node(0)?.ip6().into(),
    ] {
        let to = SocketAddr::new(to, 0).to_string();
        let ping = stage.client.dial_other(OtherSocket::Icmp, &to)?;
        ensure!(ping.failure.is_none(), "{to}: {ping:?}");
    }
    stage.world.manifests.service("web").endpoints(&[near]);
    stage.world.apply()?;
    for (socket, to) in sockets.iter().zip(&frontends) {
        let asked = socket.run(&[UdpStep::AskConnected])?;
        assert_eq!(asked[0].answer.as_deref(), Some("near"), "{to}: {asked:?}");
        assert_eq!(stage.who(Tcp, to)?, names(["near"]));
    }
    Ok(())
}

#[test]
fn one_host_is_told_of_a_hundred_refusals_a_second() -> Result<()> {
    const ASKED: u32 = 5000;
    let mut stage = Stage::new()?;
    let _agent = stage.start(&[])?;
    for to in &stage.frontends()?[..2] {
        let to: SocketAddr = to.parse()?;
        let refused = stage.count("refuse_no_endpoint")?;
        let start = Instant::now();
        let told = stage.client.netns().run(|| ask_often(to, ASKED))??;
        let seconds = start.elapsed().as_secs() + 2;
        ensure!(told > 0 && told <= 100 * seconds, "{told} in {seconds} s");
        assert_eq!(
            stage.count("refuse_no_endpoint")? - refused,
            u64::from(ASKED)
        );
    }
    Ok(())
}

/// Sends so many datagrams; how many times the host of this thread is told that they were refused.
fn ask_often(to: SocketAddr, count: u32) -> Result<u64> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    let before = unreachable(to.is_ipv6())?;
    for _ in 0..count {
        socket.send_to(b"?", to)?;
    }
    Ok(unreachable(to.is_ipv6())? - before)
}

/// How often it was said to the host of this thread that a destination is unreachable.
fn unreachable(is_v6: bool) -> Result<u64> {
    if is_v6 {
        let counts = fs::read_to_string("/proc/thread-self/net/snmp6")?;
        let line = counts
            .lines()
            .find_map(|line| line.strip_prefix("Icmp6InDestUnreachs"));
        return Ok(line.context("a count")?.trim().parse()?);
    }
    let counts = fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut lines = counts
        .lines()
        .filter_map(|line| line.strip_prefix("Icmp: "));
    let (names, values) = (
        lines.next().context("names")?,
        lines.next().context("values")?,
    );
    let at = names.split(' ').position(|name| name == "InDestUnreachs");
    Ok(values
        .split(' ')
        .nth(at.context("a count")?)
        .context("a value")?
        .parse()?)
}

#[test]
fn a_client_outside_is_told_that_nobody_listens_at_the_backend() -> Result<()> {
    let mut stage = Stage::new()?;
    let deaf = [
        stage.world.node(0)?.pod("deaf")?,
        stage.world.node(1)?.pod("deaf")?,
    ];
    for backend in &deaf {
        let agent = stage.start(&[backend])?;
        for to in stage.frontends()? {
            for proto in [Tcp, Udp] {
                let attempt = stage.client.attempt(proto, &to)?;
                assert_eq!(attempt.errno(), Some("ECONNREFUSED"), "{proto:?} {to}");
            }
        }
        assert_eq!(stage.count("refuse_no_endpoint")?, 0);
        agent.kill9()?;
    }
    Ok(())
}

#[test]
fn much_data_passes_links_that_are_smaller_on_either_side() -> Result<()> {
    let mut stage = Stage::new()?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    // Hosts take their own links for large: each bridge has to tell them of itself.
    for node in 0..3 {
        stage
            .world
            .node(node)?
            .netns()
            .ip("link set br0 mtu 1300\n")?;
    }
    let client = stage.world.node(2)?.pod("client")?;
    for backend in [&near, &far] {
        let agent = stage.start(&[backend])?;
        for to in stage.frontends()? {
            echo(&client, &to, backend.name()).with_context(|| to.clone())?;
        }
        agent.kill9()?;
    }
    Ok(())
}

/// Has much sent by the backend that is here, and sent back.
pub(crate) fn echo(client: &Pod, to: &str, backend: &str) -> Result<()> {
    let to: SocketAddr = to.parse()?;
    client.netns().run(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut lines = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        assert_eq!(line.trim_end(), backend);
        let much = "much".repeat(MUCH / 4) + "\n";
        stream.write_all(much.as_bytes())?;
        line.clear();
        lines.read_line(&mut line)?;
        ensure!(line == much, "{} of {} bytes", line.len(), much.len());
        Ok(())
    })?
}
