//! The node's own addresses come and go.

use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;
use yurt_net_tests::lab::UdpStep;

use crate::world::World;
use crate::world::eventually;
use crate::world::rejections;
use crate::world::status;

/// Asks for the status without pause, which must not keep the agent from anything.
fn wait_until_missing(node: &Node, is_missing: bool) -> Result<()> {
    eventually(node, || {
        let status = status(node)?;
        let told = rejections(&status);
        let is_told = told
            .iter()
            .any(|reason| reason.contains("is on no interface"));
        ensure!(is_told == is_missing, "{status}");
        Ok(())
    })
}

#[test]
fn an_address_that_goes_and_comes_back_is_noticed_while_the_status_is_asked_for_all_the_time()
-> Result<()> {
    let mut world = World::single()?;
    let backend = world.backend(0, "backend")?;
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10")
        .node_port(Tcp, 80, 8080, 30080)
        .endpoints([&backend]);
    world.start(0, &[])?;
    let node = world.node(0)?;
    let own = format!("{}:30080", node.ip4());
    let host = node.host()?;
    let leads_to_backend = || -> Result<bool> {
        let tally = host.dial(Tcp, &own, 1)?;
        Ok(tally.answers.contains_key(&backend.at4(8080)))
    };
    assert!(leads_to_backend()?);
    for _ in 0..3 {
        node.netns()
            .ip(&format!("addr del {}/24 dev eth0\n", node.ip4()))?;
        wait_until_missing(node, true)?;
        node.netns()
            .ip(&format!("addr add {}/24 dev eth0\n", node.ip4()))?;
        wait_until_missing(node, false)?;
        assert!(leads_to_backend()?);
    }
    Ok(())
}

#[test]
fn node_ports_and_their_sockets_outlive_the_address_of_the_uplink() -> Result<()> {
    let mut world = World::single()?;
    let backend = world.backend(0, "backend")?;
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10")
        .node_port(Tcp, 80, 8080, 30080)
        .node_port(Udp, 80, 8080, 30080)
        .endpoints([&backend]);
    world.start(0, &[])?;
    let node = world.node(0)?;
    let (own, loopback) = (format!("{}:30080", node.ip4()), "127.0.0.1:30080");
    let host = node.host()?;
    let is_served = |what: &str| -> Result<()> {
        for to in [&*own, loopback] {
            for proto in [Tcp, Udp] {
                let attempt = host.attempt(proto, to)?;
                ensure!(
                    attempt.answer() == Some("backend"),
                    "{what}: {to}: {attempt:?}"
                );
            }
        }
        Ok(())
    };
    is_served("at first")?;
    let mut sockets = Vec::new();
    for to in [&*own, loopback] {
        let socket = host.udp_socket(false)?;
        socket.run(&[UdpStep::Connect(to.parse()?), UdpStep::AskConnected])?;
        sockets.push((to, socket));
    }
    // Sockets that are bound to the address die with it, whoever serves them; these are not.
    let addresses = format!("{}/24 dev eth0\n", node.ip4());
    for (what, command) in [
        ("without its address", format!("addr del {addresses}")),
        ("with the link down", "link set eth0 down\n".to_owned()),
        ("with the link up", "link set eth0 up\n".to_owned()),
        ("with its address again", format!("addr add {addresses}")),
    ] {
        node.netns().ip(&command)?;
        std::thread::sleep(std::time::Duration::from_millis(500));
        is_served(what)?;
        for (to, socket) in &sockets {
            let outcomes = socket.run(&[UdpStep::AskConnected])?;
            let answer = outcomes[0].answer.as_deref();
            ensure!(answer == Some("backend"), "{what}: {to}: {outcomes:?}");
        }
    }
    let sockets = &status(node)?["sockets"];
    ensure!(sockets["endedWithdrawn"].as_u64() == Some(0), "{sockets}");
    Ok(())
}

#[test]
fn what_kube_proxy_left_on_its_device_is_not_the_nodes_own() -> Result<()> {
    const TAKEN: &str = "198.51.100.7";
    let mut world = World::single()?;
    let backend = world.backend(0, "backend")?;
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10")
        .external_ip(TAKEN)
        .port(80, 8080)
        .endpoints([&backend]);
    let node = world.node(0)?;
    node.netns().ip(&format!(
        "link add kube-ipvs0 type veth peer name ipvs-peer\naddr add {TAKEN}/32 dev kube-ipvs0\n"
    ))?;
    world.start(0, &[])?;
    let node = world.node(0)?;
    let attempt = node.host()?.attempt(Tcp, &format!("{TAKEN}:80"))?;
    ensure!(attempt.answer() == Some("backend"), "{attempt:?}");
    // On any other device it is.
    node.netns().ip(&format!(
        "link add other type veth peer name other-peer\naddr add {TAKEN}/32 dev other\n"
    ))?;
    eventually(node, || {
        let status = status(node)?;
        let told = rejections(&status);
        ensure!(told.iter().any(|reason| reason.contains(TAKEN)), "{status}");
        Ok(())
    })
}
