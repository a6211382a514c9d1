//! New table maps in place of old ones, and the state of sockets that outlives both.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use yurt_net::plan::Capacity;
use yurt_net_tests::lab::{Connection, Proto, Socket};

use crate::world::{CAPACITY, OTHER_CAPACITY, World, apply_first, check, vip};

/// Sockets of all kinds that were opened before, and must not notice.
struct LongLived {
    connections: Vec<Connection>,
    sockets: Vec<(String, Socket)>,
}

impl LongLived {
    fn new(world: &World) -> Result<Self> {
        let mut connections = Vec::new();
        let mut sockets = Vec::new();
        for to in vip(10) {
            for proto in [Proto::Tcp, Proto::Udp] {
                connections.push(world.client.hold(proto, &to)?);
            }
            let socket = world.client.socket(&to)?;
            // The answer waits in the socket until after the restart.
            socket.send(&to)?;
            sockets.push((to, socket));
        }
        Ok(Self {
            connections,
            sockets,
        })
    }

    fn check(&self) -> Result<()> {
        for connection in &self.connections {
            let opened = connection.opened();
            let ping = connection.ping()?;
            assert_eq!(ping.answer(), opened.answer(), "{ping:?} {opened:?}");
            assert_eq!(ping.peer, opened.peer, "getpeername: {ping:?}");
        }
        for (to, socket) in &self.sockets {
            let (name, from) = socket.receive()?;
            assert_eq!(from, to.parse()?, "recvfrom of the answer of {name}");
            // It keeps its backend.
            assert_eq!(socket.ask(to)?, (name, from));
            socket.send(to)?;
        }
        Ok(())
    }
}

#[test]
fn sockets_show_the_service_that_they_dialled_after_a_restart() -> Result<()> {
    let world = World::new()?;
    world.node.apply(&world.web([&world.a, &world.b]))?;
    let agent = world.start_ready(&CAPACITY, &[])?;
    let sockets = LongLived::new(&world)?;
    let [vip4, vip6] = vip(10);
    let peers: Vec<_> = sockets
        .connections
        .iter()
        .map(|held| held.opened().peer)
        .collect();
    let (vip4, vip6) = (Some(vip4.parse()?), Some(vip6.parse()?));
    assert_eq!(peers, [vip4, vip4, vip6, vip6]);
    agent.kill9()?;
    sockets.check()?;
    let agent = world.start_ready(&CAPACITY, &[])?;
    assert!(world.status()?.adopted);
    sockets.check()?;
    agent.terminate()?;
    sockets.check()
}

#[test]
fn other_capacities_are_taken_up_without_a_failed_connect_or_a_lost_socket() -> Result<()> {
    let world = World::new()?;
    let World { a, b, client, .. } = &world;
    world.node.apply(&world.web([a, b]))?;
    let mut agent = world.start_ready(&CAPACITY, &[])?;
    let pins = world.pins()?;
    let sockets = LongLived::new(&world)?;
    let traffic: Vec<_> = vip(10)
        .iter()
        .flat_map(|to| [(Proto::Tcp, to.clone()), (Proto::Udp, to.clone())])
        .map(|(proto, to)| client.start_traffic(proto, &to, 1, Duration::from_millis(1)))
        .collect::<Result<_>>()?;
    for capacity in [OTHER_CAPACITY, CAPACITY] {
        agent.terminate()?;
        agent = world.start_ready(&capacity, &[])?;
        let status = world.status()?;
        assert!(!status.adopted, "these are new maps");
        let capacities: Vec<_> = status.maps.iter().map(|map| map.capacity).collect();
        let Capacity {
            frontends4,
            frontends6,
            services,
            slots4,
            slots6,
        } = capacity;
        assert_eq!(
            capacities,
            [frontends4, frontends6, services, slots4, slots6]
        );
        sockets.check()?;
        assert_eq!(world.pins()?, pins);
    }
    for traffic in traffic {
        let tally = traffic.stop()?;
        assert!(tally.answered() > 50, "{tally:?}");
        check(&tally, &[a, b], false)?;
    }
    Ok(())
}

#[test]
fn new_maps_do_not_let_a_udp_socket_keep_a_backend_that_is_not_in_the_set_any_more() -> Result<()> {
    let world = World::new()?;
    let World { a, b, c, d, .. } = &world;
    world.node.apply(&world.web([a, b]))?;
    let agent = world.start_ready(&CAPACITY, &[])?;
    let sockets: Vec<_> = vip(10)
        .into_iter()
        .map(|to| Ok((world.client.socket(&to)?, to)))
        .collect::<Result<_>>()?;
    for (socket, to) in &sockets {
        let (name, _) = socket.ask(to)?;
        assert!([a.name(), b.name()].contains(&name.as_str()));
    }
    agent.kill9()?;
    // The same number of backends: in maps of its own the new set may well lie where the old one lay in the old maps.
    world.node.apply(&world.web([c, d]))?;
    world.start_ready(&OTHER_CAPACITY, &[])?;
    for (socket, to) in &sockets {
        let (name, from) = socket.ask(to)?;
        assert!(
            [c.name(), d.name()].contains(&name.as_str()),
            "{to}: {name}"
        );
        assert_eq!(from, to.parse()?);
    }
    Ok(())
}

#[test]
fn an_agent_killed_between_any_two_writes_into_new_maps_leaves_the_old_ones_in_service()
-> Result<()> {
    let world = World::new()?;
    let World { a, b, c, d, .. } = &world;
    world.node.apply(&world.web([a, b]))?;
    world.start_ready(&CAPACITY, &[])?.kill9()?;
    let pins = world.pins()?;
    let mut done = 0;
    loop {
        let mut dataplane = world.open(OTHER_CAPACITY)?;
        assert!(!dataplane.is_adopted());
        let planned = world.planned(&dataplane, &world.web([c, d]))?;
        apply_first(&mut dataplane, &planned, done)?;
        drop(dataplane);
        world.expect(10, &[a, b], false)?;
        let found = world.pins()?;
        assert!(
            found.iter().any(|pin| pin.contains("v2-next/")),
            "{found:?}"
        );
        if done == planned.ops.len() {
            break;
        }
        done = (done + 3).min(planned.ops.len());
    }
    let agent = world.start_ready(&OTHER_CAPACITY, &[])?;
    world.converges(10, &[c, d])?;
    agent.kill9()?;
    assert_eq!(world.pins()?, pins, "no v2-next");
    Ok(())
}

/// Of a namespace: so many Services of one port, with an endpoint each.
fn tenants(namespace: &str, count: u8) -> String {
    let mut yaml = String::new();
    for n in 1..=count {
        let name = format!("{namespace}-{n}");
        let ip = match namespace {
            "rich" => format!("10.96.1.{n}"),
            _ => format!("10.96.2.{n}"),
        };
        let _ = write!(
            yaml,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{clusterIP: {ip}, clusterIPs: [{ip}], ports: [{{name: http, port: 80}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}-1, namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [\"10.244.9.{n}\"]}}]\n"
        );
    }
    yaml.split_off("---\n".len())
}

#[test]
fn who_was_in_a_full_map_is_in_it_after_a_reboot_and_who_waited_waits() -> Result<()> {
    let world = World::new()?;
    let few = Capacity {
        frontends4: 64,
        ..CAPACITY
    };
    let left_out = || -> Result<BTreeSet<String>> {
        let refused = world.status()?.refused.into_iter();
        Ok(refused.map(|refused| refused.service).collect())
    };
    let mut manifests = world.web([&world.a]);
    manifests.raw(&tenants("rich", 66));
    world.node.apply(&manifests)?;
    let agent = world.start_ready(&few, &[])?;
    world.wait_for("a full map", || Ok(!left_out()?.is_empty()))?;
    // It would come first by turns and by its name.
    manifests.raw(&tenants("poor", 3));
    world.node.apply(&manifests)?;
    world.wait_for(
        "the others",
        || Ok(left_out()?.contains("poor/poor-3:http")),
    )?;
    let before = left_out()?;
    ensure!(agent.terminate()?.success());
    world.node.lose_pins()?;

    let agent = world.start_ready(&few, &[])?;
    assert_eq!(left_out()?, before);
    agent.kill9()
}
