//! Traffic policies on sockets of this node: a whole row of situations for each kind of client and frontend.

use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;

use crate::capture::Capture;
use crate::world::World;
use crate::world::fails_with;
use crate::world::is_refused_by;
use crate::world::mapped;
use crate::world::names;
use crate::world::who_answers;

const VIP: &str = "10.96.0.10:80";
const VIP6: &str = "[fd00:96::10]:80";
const EXTERNAL: &str = "198.51.100.10:80";

struct Stage {
    near: Pod,
    far: Pod,
    clients: [Pod; 2],
    world: World,
}

impl Stage {
    fn new() -> Result<Self> {
        let mut world = World::new(&[("edge-1", "hangzhou"), ("edge-2", "hangzhou")])?;
        let (near, far) = (world.backend(0, "near")?, world.backend(1, "far")?);
        let clients = [world.node(0)?.pod("client")?, world.node(0)?.host()?];
        let web = world.manifests.service("web");
        web.cluster_ip("10.96.0.10").cluster_ip("fd00:96::10");
        web.external_ip("198.51.100.10");
        web.port(80, 8080)
            .udp_port(80, 8080)
            .endpoints([&near, &far]);
        web.internal_policy_local(true);
        world.start(0, &[])?;
        Ok(Self {
            near,
            far,
            clients,
            world,
        })
    }
}

#[test]
fn internal_policy_local_goes_here_and_external_addresses_go_anywhere() -> Result<()> {
    let stage = Stage::new()?;
    for client in &stage.clients {
        for to in [VIP, &mapped(VIP)?, VIP6] {
            assert_eq!(who_answers(client, to)?, names(["near"]), "{to}");
        }
        assert_eq!(who_answers(client, EXTERNAL)?, names(["near", "far"]));
    }
    Ok(())
}

#[test]
fn endpoints_on_other_nodes_only_are_no_refusal_and_no_packet_leaves() -> Result<()> {
    let mut stage = Stage::new()?;
    let far = stage.far.clone();
    stage.world.manifests.service("web").endpoints([&far]);
    stage.world.apply()?;
    let mut capture = Capture::start(stage.world.node(0)?)?;
    for client in &stage.clients {
        for to in [VIP, &mapped(VIP)?, VIP6] {
            fails_with(client, Tcp, to, "EHOSTUNREACH")?;
            fails_with(client, Udp, to, "EHOSTUNREACH")?;
        }
        assert_eq!(who_answers(client, EXTERNAL)?, names(["far"]));
    }
    let to: std::net::IpAddr = "10.96.0.10".parse()?;
    assert!(!capture.destinations()?.contains(&to));
    stage.world.manifests.service("web").endpoints([]);
    stage.world.apply()?;
    for client in &stage.clients {
        is_refused_by(client, Tcp, VIP)?;
        is_refused_by(client, Udp, VIP6)?;
    }
    Ok(())
}

#[test]
fn a_terminating_endpoint_here_serves_only_while_none_is_ready_here() -> Result<()> {
    let mut stage = Stage::new()?;
    let (near, far) = (stage.near.clone(), stage.far.clone());
    let web = stage.world.manifests.service("web");
    web.endpoints([&far]).terminating(&near);
    stage.world.apply()?;
    for client in &stage.clients {
        assert_eq!(who_answers(client, VIP)?, names(["near"]));
        assert_eq!(who_answers(client, EXTERNAL)?, names(["far"]));
    }
    stage
        .world
        .manifests
        .service("web")
        .internal_policy_local(false);
    stage.world.apply()?;
    for client in &stage.clients {
        let who = who_answers(client, VIP)?;
        ensure!(who == names(["far"]), "{who:?}");
    }
    Ok(())
}
