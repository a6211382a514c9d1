//! Sockets that outlive their backend (bug classes 1 and 7): which are ended, and which live on.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Agent;
use yurt_net_tests::lab::Connection;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;
use yurt_net_tests::lab::UdpSocket;
use yurt_net_tests::lab::UdpStep;

use crate::world::World;
use crate::world::eventually;
use crate::world::mapped;
use crate::world::status;

const VIP4: &str = "10.96.0.53:53";
const VIP6: &str = "[fd00:96::53]:53";
const POOL: &str = "openyurt.io/nodepool";

/// Nodes edge-1 and edge-2 of one pool, a backend on each, and the Services dns and other with both.
struct Stage {
    near: Pod,
    far: Pod,
    client: Pod,
    world: World,
}

impl Stage {
    fn new() -> Result<Self> {
        let mut world = World::new(&[("edge-1", "hangzhou"), ("edge-2", "hangzhou")])?;
        let (near, far) = (world.backend(0, "near")?, world.backend(1, "far")?);
        let client = world.node(0)?.pod("client")?;
        for (name, last) in [("dns", "53"), ("other", "54")] {
            let service = world.manifests.service(name);
            let (v4, v6) = (format!("10.96.0.{last}"), format!("fd00:96::{last}"));
            service.cluster_ip(&v4).cluster_ip(&v6).topology_keys(POOL);
            service.port(53, 8080).udp_port(53, 8080);
            service.endpoints([&near, &far]);
        }
        Ok(Self {
            near,
            far,
            client,
            world,
        })
    }

    fn start(&mut self, flags: &[&str]) -> Result<Agent> {
        let agent = self.world.start(0, flags)?;
        self.wait_for_scans(1)?;
        Ok(agent)
    }

    /// Applies manifests, and waits for the scan that they make due.
    fn apply_and_wait_for_a_scan(&mut self) -> Result<()> {
        let before = self.sockets()?["scans"].as_u64().context("scans")?;
        self.world.apply()?;
        self.wait_for_scans(before + 1)
    }

    fn wait_for_scans(&self, wanted: u64) -> Result<()> {
        eventually(self.world.node(0)?, || {
            let sockets = self.sockets()?;
            ensure!(sockets["scans"].as_u64() >= Some(wanted), "{sockets}");
            Ok(())
        })
    }

    fn sockets(&self) -> Result<serde_json::Value> {
        Ok(status(self.world.node(0)?)?["sockets"].clone())
    }

    fn ended(&self) -> Result<(u64, u64)> {
        let sockets = self.sockets()?;
        let count = |name: &str| sockets[name].as_u64().context("count");
        Ok((count("endedWithdrawn")?, count("endedOutsideClosure")?))
    }

    /// Opens sockets of every kind to `vip4` and `vip6` until one of each leads to `who`.
    fn connected(&self, who: &Pod, vip4: &str, vip6: &str) -> Result<Sockets> {
        let mut sockets = BTreeMap::new();
        for to in [vip4.to_owned(), vip6.to_owned(), mapped(vip4)?] {
            sockets.insert(to.clone(), connect_to(&self.client, &to, who)?);
        }
        Ok(sockets)
    }
}

/// By what they dialled.
type Sockets = BTreeMap<String, UdpSocket>;

fn connect_to(client: &Pod, to: &str, who: &Pod) -> Result<UdpSocket> {
    let at: SocketAddr = to.parse()?;
    for _ in 0..100 {
        let socket = client.udp_socket(at.is_ipv6())?;
        let outcomes = socket.run(&[UdpStep::Connect(at), UdpStep::AskConnected])?;
        if outcomes[1].answer.as_deref() == Some(who.name()) {
            return Ok(socket);
        }
    }
    anyhow::bail!("{to} never leads to {}", who.name())
}

fn live_on(sockets: &Sockets, who: &Pod) -> Result<()> {
    for (to, socket) in sockets {
        let outcomes = socket.run(&[UdpStep::AskConnected])?;
        ensure!(
            outcomes[0].answer.as_deref() == Some(who.name()),
            "{to}: {outcomes:?}"
        );
    }
    Ok(())
}

/// Both what waits and what sends has an error, and a new connect leads to one that lives.
fn are_ended(sockets: &Sockets) -> Result<()> {
    for (to, socket) in sockets {
        let steps = [
            UdpStep::Receive,
            UdpStep::AskConnected,
            UdpStep::Connect(to.parse()?),
            UdpStep::AskConnected,
        ];
        let outcomes = socket.run(&steps)?;
        let failures: Vec<Option<String>> = outcomes
            .iter()
            .map(|outcome| outcome.failure.as_ref().map(ToString::to_string))
            .collect();
        let expected = [
            Some("recv: ECONNABORTED"),
            Some("send: EDESTADDRREQ"),
            None,
            None,
        ];
        let expected = expected.map(|failure| failure.map(str::to_owned));
        ensure!(failures == expected, "{to}: {outcomes:?}");
    }
    Ok(())
}

fn live_on_tcp(connections: &[Connection]) -> Result<()> {
    for connection in connections {
        let attempt = connection.ping()?;
        ensure!(attempt.failure.is_none(), "{attempt:?}");
    }
    Ok(())
}

#[test]
fn class_1_connected_udp_to_a_withdrawn_backend_is_aborted_and_nothing_else_is() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.start(&[])?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    let stale = stage.connected(&far, VIP4, VIP6)?;
    // In the node's own namespace too.
    let host = stage.world.node(0)?.host()?;
    let stale_of_host = BTreeMap::from([(VIP4.to_owned(), connect_to(&host, VIP4, &far)?)]);
    let to_other_backend = stage.connected(&near, VIP4, VIP6)?;
    let of_other_service = stage.connected(&far, "10.96.0.54:53", "[fd00:96::54]:53")?;
    let direct = stage.connected(&far, &far.at4(8080), &far.at6(8080))?;
    // This one has dialled the Service before, and then the Pod itself.
    let turned = connect_to(&stage.client, VIP4, &far)?;
    turned.run(&[UdpStep::Connect(far.at4(8080).parse()?)])?;
    let turned = BTreeMap::from([(far.at4(8080), turned)]);
    let unconnected = stage.client.udp_socket(false)?;
    unconnected.ask(VIP4, 1)?;
    let tcp: Vec<Connection> = (0..10)
        .map(|_| stage.client.hold(Tcp, VIP4))
        .collect::<Result<_>>()?;

    stage.world.manifests.service("dns").endpoints([&near]);
    stage.apply_and_wait_for_a_scan()?;
    are_ended(&stale)?;
    are_ended(&stale_of_host)?;
    live_on(&to_other_backend, &near)?;
    live_on(&of_other_service, &far)?;
    live_on(&direct, &far)?;
    live_on(&turned, &far)?;
    let outcome = &unconnected.ask(VIP4, 1)?[0];
    assert_eq!(outcome.answer.as_deref(), Some("near"), "{outcome:?}");
    live_on_tcp(&tcp)?;
    // A Pod also holds what was tried and found to lead elsewhere.
    let (withdrawn, outside) = stage.ended()?;
    assert!(withdrawn >= 4 && outside == 0, "{withdrawn} {outside}");
    let log = stage.world.node(0)?.agent_log();
    assert!(log.contains("ended sockets whose endpoint went"), "{log}");
    Ok(())
}

#[test]
fn class_1_a_backend_that_goes_while_the_agent_is_down_is_noticed_at_its_start() -> Result<()> {
    let mut stage = Stage::new()?;
    let agent = stage.start(&[])?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    let stale = stage.connected(&far, VIP4, VIP6)?;
    let fine = stage.connected(&near, VIP4, VIP6)?;
    agent.kill9()?;
    stage.world.manifests.service("dns").endpoints([&near]);
    stage.start(&[])?;
    are_ended(&stale)?;
    live_on(&fine, &near)
}

#[test]
fn class_1_a_service_that_is_deleted_takes_its_sockets_along() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.start(&[])?;
    let near = stage.near.clone();
    let stale = connect_to(&stage.client, VIP4, &near)?;
    stage.world.manifests.remove_service("dns");
    stage.apply_and_wait_for_a_scan()?;
    let failure = stale.run(&[UdpStep::Receive])?[0].failure.clone();
    assert_eq!(
        failure.context("no failure")?.to_string(),
        "recv: ECONNABORTED"
    );
    Ok(())
}

#[test]
fn class_7_a_terminating_backend_keeps_its_sockets_until_it_serves_no_more() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.start(&[])?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    let sockets = stage.connected(&far, VIP4, VIP6)?;
    let dns = stage.world.manifests.service("dns");
    dns.endpoints([&near]).terminating(&far);
    stage.apply_and_wait_for_a_scan()?;
    // New flows go elsewhere, old ones live on.
    for _ in 0..20 {
        let attempt = stage.client.attempt(Udp, VIP4)?;
        assert_eq!(attempt.answer(), Some("near"), "{attempt:?}");
    }
    live_on(&sockets, &far)?;
    assert_eq!(stage.ended()?, (0, 0));
    // No table changes by this: it was not in it any more.
    stage.world.manifests.service("dns").endpoints([&near]);
    stage.apply_and_wait_for_a_scan()?;
    are_ended(&sockets)
}

#[test]
fn class_7_established_flows_to_a_node_that_moved_pools_are_kept_by_default() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.start(&[])?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    let udp = stage.connected(&far, VIP4, VIP6)?;
    let tcp = hold_to(&stage.client, VIP4, &far)?;
    let node = stage.world.node(1)?.clone();
    stage.world.manifests.node(&node).pool("beijing");
    stage.apply_and_wait_for_a_scan()?;
    live_on(&udp, &far)?;
    live_on_tcp(&[tcp])?;
    assert_eq!(stage.ended()?, (0, 0));
    // What then goes altogether is ended all the same.
    stage.world.manifests.service("dns").endpoints([&near]);
    stage.apply_and_wait_for_a_scan()?;
    are_ended(&udp)
}

#[test]
fn class_7_established_flows_to_a_node_that_moved_pools_are_reset_on_demand() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.start(&["--closure-established", "reset"])?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    let udp = stage.connected(&far, VIP4, VIP6)?;
    let reset = [
        hold_to(&stage.client, VIP4, &far)?,
        hold_to(&stage.client, VIP6, &far)?,
        hold_to(&stage.client, &mapped(VIP4)?, &far)?,
    ];
    let live = [
        hold_to(&stage.client, VIP4, &near)?,
        hold_to(&stage.client, &far.at4(8080), &far)?,
        hold_to(&stage.client, &far.at6(8080), &far)?,
    ];
    let direct = stage.connected(&far, &far.at4(8080), &far.at6(8080))?;
    let node = stage.world.node(1)?.clone();
    stage.world.manifests.node(&node).pool("beijing");
    stage.apply_and_wait_for_a_scan()?;
    are_ended(&udp)?;
    live_on(&direct, &far)?;
    live_on_tcp(&live)?;
    for connection in &reset {
        let attempt = connection.ping()?;
        assert!(attempt.failure.is_some(), "{attempt:?}");
    }
    let (withdrawn, outside) = stage.ended()?;
    assert!(withdrawn == 0 && outside >= 6, "{withdrawn} {outside}");
    Ok(())
}

#[test]
fn class_7_tcp_to_a_withdrawn_backend_lives_on_in_either_mode() -> Result<()> {
    for mode in ["keep", "reset"] {
        let mut stage = Stage::new()?;
        stage.start(&["--closure-established", mode])?;
        let (near, far) = (stage.near.clone(), stage.far.clone());
        let tcp = hold_to(&stage.client, VIP4, &far)?;
        stage.world.manifests.service("dns").endpoints([&near]);
        stage.apply_and_wait_for_a_scan()?;
        live_on_tcp(&[tcp])?;
        assert_eq!(stage.ended()?, (0, 0), "{mode}");
    }
    Ok(())
}

#[test]
fn an_apply_that_takes_no_backend_away_looks_at_no_socket() -> Result<()> {
    let mut stage = Stage::new()?;
    let extra = stage.world.backend(0, "extra")?;
    stage.start(&[])?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    let dns = stage.world.manifests.service("dns");
    dns.endpoints([&near, &far, &extra]);
    stage.world.apply()?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(stage.sockets()?["scans"].as_u64(), Some(1));
    Ok(())
}

fn hold_to(client: &Pod, to: &str, who: &Pod) -> Result<Connection> {
    for _ in 0..100 {
        let connection = client.hold(Tcp, to)?;
        if connection.opened().answer() == Some(who.name()) {
            return Ok(connection);
        }
    }
    anyhow::bail!("{to} never leads to {}", who.name())
}
