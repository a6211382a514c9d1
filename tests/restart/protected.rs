//! Services that claim the addresses and ports by which the node, its hub and its apiserver are reached take none of
//! them, by whatever field: live, and after a reboot from the checkpoint, which remembers the same Services.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use yurt_net_tests::lab::{Agent, Manifests, Pod, Proto};

use crate::world::{CAPACITY, World};

/// Where the lab's apiserver is.
const CLOUD: (&str, u16) = ("192.0.2.254", 8001);
const HUB4: (&str, u16) = ("169.254.2.1", 10267);
const HUB6: (&str, u16) = ("fd00::2:1", 10268);
/// sshd's and the kubelet's.
const LIFELINES: [u16; 2] = [22, 10250];
/// A port of a load balancer that is the nodes themselves.
const BALANCED: u16 = 8443;

fn place(address: &str, port: u16) -> String {
    match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    }
}

/// Addresses of `c` that nothing calls those of a Pod: this node's route to them has a gateway.
const BEHIND: (&str, &str) = ("198.51.100.66", "2001:db8:66::66");

fn behind(world: &World) -> Result<()> {
    let (v4, v6) = BEHIND;
    let own = format!("addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo\n");
    world.c.netns().ip(&own)?;
    let (via4, via6) = (world.c.ip4(), world.c.ip6());
    let routes = format!("route add {v4}/32 via {via4}\nroute add {v6}/128 via {via6}\n");
    world.node.netns().ip(&routes)
}

/// Besides `web`, one thief for each way to name an address.
fn with_thieves(world: &World) -> Manifests {
    let (node4, node6) = (world.node.ip4().to_string(), world.node.ip6().to_string());
    let mut manifests = world.web([&world.b]);
    let mut thief = |name: &str, number: u8, ports: &[u16]| {
        let thief = manifests.service(name);
        thief.cluster_ip(&format!("10.96.0.{number}"));
        thief.cluster_ip(&format!("fd00:96::{number}"));
        for port in ports {
            thief.port(*port, 8080);
        }
        thief.endpoints([&world.a]);
    };
    thief("external", 61, &LIFELINES);
    thief("balanced", 62, &[LIFELINES[0], LIFELINES[1], BALANCED]);
    thief("hub", 63, &[HUB4.1, HUB6.1]);
    thief("apiserver", 64, &[CLOUD.1]);
    let external = manifests.service("external");
    external.external_ip(&node4).external_ip(&node6);
    let balanced = manifests.service("balanced");
    balanced.load_balancer_ip(&node4).load_balancer_ip(&node6);
    let hub = manifests.service("hub");
    hub.external_ip(HUB4.0).load_balancer_ip(HUB4.0);
    hub.external_ip(HUB6.0).load_balancer_ip(HUB6.0);
    let apiserver = manifests.service("apiserver");
    apiserver.external_ip(CLOUD.0).load_balancer_ip(CLOUD.0);
    manifests
}

/// What listens on the node at the places that are claimed.
fn serve(world: &World) -> Result<(Pod, Vec<String>)> {
    let node = &world.node;
    node.netns().ip(&format!(
        "addr add {}/32 dev lo\naddr add {}/128 dev lo\n",
        HUB4.0, HUB6.0
    ))?;
    let host = node.host()?;
    let (node4, node6) = (node.ip4().to_string(), node.ip6().to_string());
    let lifelines = LIFELINES
        .iter()
        .flat_map(|port| [(&*node4, *port), (&*node6, *port)]);
    let mut places = Vec::new();
    for (address, port) in lifelines.chain([HUB4, HUB6]) {
        host.serve_at(Proto::Tcp, address.parse()?, port)?;
        places.push(place(address, port));
    }
    Ok((host, places))
}

fn nothing_is_taken(world: &World, places: &[String]) -> Result<()> {
    let host = world.node.host()?;
    for client in [&world.client, &host] {
        for to in places {
            let who = client.get(to)?;
            ensure!(who == "host", "{}: {who} answers at {to}", client.name());
        }
        let cloud = place(CLOUD.0, CLOUD.1);
        let led = client.dial(Proto::Tcp, &cloud, 1)?;
        ensure!(
            !led.answers.contains_key(&world.a.at4(8080)),
            "{}: {led:?}",
            client.name()
        );
        // What is not protected is served: the rest of each Service, and a load balancer that is the node.
        for to in [
            "10.96.0.61:22".to_owned(),
            "10.96.0.64:8001".to_owned(),
            place(&world.node.ip4().to_string(), BALANCED),
        ] {
            let who = client.get(&to)?;
            ensure!(who == "a", "{}: {who} answers at {to}", client.name());
        }
    }
    Ok(())
}

fn is_told(world: &World) -> Result<()> {
    let node4 = world.node.ip4();
    let told = world.status()?.rejections;
    for (name, reason) in [
        (
            "external",
            format!("ExternalIP {node4} is an address of this node"),
        ),
        (
            "balanced",
            format!("LoadBalancer {node4}:22 is an address of this node, at a port"),
        ),
        (
            "balanced",
            format!("LoadBalancer {node4}:10250 is an address of this node, at a port"),
        ),
        ("hub", format!("ExternalIP {} is YurtHub's address", HUB6.0)),
        (
            "hub",
            format!("LoadBalancer {} is YurtHub's address", HUB6.0),
        ),
        (
            "hub",
            format!("ExternalIP {} is a link-local address", HUB4.0),
        ),
        (
            "apiserver",
            format!("ExternalIP {}:{} is where nodes reach", CLOUD.0, CLOUD.1),
        ),
        (
            "apiserver",
            format!("LoadBalancer {}:{} is where nodes reach", CLOUD.0, CLOUD.1),
        ),
    ] {
        let mut of_service = told.iter().filter(|rejection| rejection.name == name);
        ensure!(
            of_service.any(|rejection| rejection.reason.contains(&reason)),
            "{name}: {reason}: {told:#?}"
        );
    }
    Ok(())
}

fn start(world: &World, source: &str, extra: &[&str]) -> Result<Agent> {
    let agent = world.start_from(source, &CAPACITY, extra)?;
    world.wait_ready(&agent)?;
    Ok(agent)
}

#[test]
fn no_service_takes_the_nodes_lifelines_its_hub_or_its_apiserver_nor_after_a_reboot() -> Result<()>
{
    let world = World::new()?;
    let (_host, places) = serve(&world)?;
    let cloud = world.lab.cloud()?;
    cloud.apply(&with_thieves(&world))?;
    cloud.start()?;
    let agent = start(&world, &cloud.source(), &[])?;
    world.converges(10, &[&world.b])?;
    nothing_is_taken(&world, &places)?;
    is_told(&world)?;
    world.is_remembered()?;

    world.loses_power(&agent, &cloud)?;
    let _agent = start(&world, &cloud.source(), &[])?;
    world.is_from_checkpoint()?;
    world.converges(10, &[&world.b])?;
    nothing_is_taken(&world, &places)?;
    is_told(&world)
}

/// What is protected leads to who has it, and the thief is told so.
fn is_kept(world: &World) -> Result<()> {
    let (v4, v6) = BEHIND;
    let host = world.node.host()?;
    for client in [&world.client, &host] {
        for (to, expected) in [
            // Protected whole, and at one port.
            (place(v4, 8080), "c"),
            (place(v6, 8080), "c"),
            // What is not protected is the Service's.
            (place(v6, 8081), "a"),
            ("10.96.0.65:8080".to_owned(), "a"),
        ] {
            let who = client.get(&to)?;
            ensure!(
                who == expected,
                "{}: {who} answers at {to}, and not {expected}",
                client.name()
            );
        }
    }
    let told = world.status()?.rejections;
    for claim in [
        format!("ExternalIP {}", place(v4, 8080)),
        format!("LoadBalancer {}", place(v6, 8080)),
    ] {
        let mut of_thief = told.iter().filter(|rejection| rejection.name == "thief");
        ensure!(
            of_thief.any(|rejection| rejection.reason.contains(&claim)),
            "{claim}: {told:#?}"
        );
    }
    Ok(())
}

#[test]
fn what_the_operator_protects_no_service_takes_after_a_restart_nor_from_the_checkpoint()
-> Result<()> {
    let world = World::new()?;
    behind(&world)?;
    let (v4, v6) = BEHIND;
    let mut manifests = world.web([&world.b]);
    let thief = manifests.service("thief");
    thief.cluster_ip("10.96.0.65").cluster_ip("fd00:96::65");
    thief.port(8080, 8080).port(8081, 8080);
    thief.external_ip(v4).load_balancer_ip(v6);
    thief.endpoints([&world.a]);
    let cloud = world.lab.cloud()?;
    cloud.apply(&manifests)?;
    cloud.start()?;

    // Nobody has said that it is anything.
    let agent = start(&world, &cloud.source(), &[])?;
    world.converges(10, &[&world.b])?;
    for to in [place(v4, 8080), place(v6, 8080)] {
        ensure!(world.client.get(&to)? == "a", "{to} is not claimed");
    }
    agent.kill9()?;

    let protect = [
        "--protect".to_owned(),
        v4.to_owned(),
        "--protect".to_owned(),
        place(v6, 8080),
    ];
    let protect = protect.each_ref().map(String::as_str);
    let agent = start(&world, &cloud.source(), &protect)?;
    world.converges(10, &[&world.b])?;
    is_kept(&world)?;
    world.is_remembered()?;

    world.loses_power(&agent, &cloud)?;
    let _agent = start(&world, &cloud.source(), &protect)?;
    world.is_from_checkpoint()?;
    world.converges(10, &[&world.b])?;
    is_kept(&world)
}

/// The node's nameserver answers, and the thief is told so.
fn is_asked(world: &World, server: &str) -> Result<()> {
    let is_told = format!(
        "ExternalIP {} is where this node looks up names",
        place(server, 53)
    );
    world
        .node
        .wait_for_status("the thief to be told", |status| {
            let mut told = status.rejections.iter();
            told.any(|rejection| rejection.name == "thief" && rejection.reason.contains(&is_told))
        })?;
    let host = world.node.host()?;
    for client in [&world.client, &host] {
        for proto in [Proto::Tcp, Proto::Udp] {
            let tally = client.dial(proto, &place(server, 53), 5)?;
            let answers = tally.answers.get(&place(server, 53));
            ensure!(answers == Some(&5), "{}: {tally:?}", client.name());
        }
        let who = client.get(&place(server, 8080))?;
        ensure!(who == "a", "{}: {who} answers beside DNS", client.name());
    }
    Ok(())
}

#[test]
fn no_external_ip_takes_the_nodes_nameserver_when_that_changes_nor_after_a_reboot() -> Result<()> {
    let world = World::new()?;
    behind(&world)?;
    let server = BEHIND.0;
    world.c.serve_at(Proto::Tcp, server.parse()?, 53)?;
    world.c.serve_at(Proto::Udp, server.parse()?, 53)?;
    // The lab's mounts are nobody else's.
    let resolv = world.node.state_dir().join("resolv.conf");
    fs::create_dir_all(world.node.state_dir())?;
    fs::write(&resolv, "nameserver 192.0.2.77\n")?;
    let mounted = Command::new("mount")
        .arg("--bind")
        .arg(&resolv)
        .arg("/etc/resolv.conf")
        .status()?;
    ensure!(mounted.success(), "/etc/resolv.conf cannot be mounted on");

    let mut manifests = world.web([&world.b]);
    let thief = manifests.service("thief");
    thief.cluster_ip("10.96.0.66").external_ip(server);
    thief.port(53, 8080).udp_port(53, 8080).port(8080, 8080);
    thief.endpoints([&world.a]);
    let cloud = world.lab.cloud()?;
    cloud.apply(&manifests)?;
    cloud.start()?;
    let agent = start(&world, &cloud.source(), &[])?;
    world.converges(10, &[&world.b])?;
    let who = world.client.get(&place(server, 53))?;
    ensure!(who == "a", "{who} answers where nobody is asked for names");

    fs::write(&resolv, format!("nameserver {server}\n"))?;
    is_asked(&world, server)?;
    world.is_remembered()?;

    world.loses_power(&agent, &cloud)?;
    let _agent = start(&world, &cloud.source(), &[])?;
    world.is_from_checkpoint()?;
    world.converges(10, &[&world.b])?;
    is_asked(&world, server)
}

#[test]
fn an_agent_whose_resolv_conf_does_not_answer_serves_all_the_same() -> Result<()> {
    let world = World::new()?;
    fs::create_dir_all(world.node.state_dir())?;
    // Nobody ever writes into it, so who opens it waits.
    let silent = world.node.state_dir().join("silent");
    let made = Command::new("mkfifo").arg(&silent).status()?;
    let mounted = Command::new("mount")
        .arg("--bind")
        .arg(&silent)
        .arg("/etc/resolv.conf")
        .status()?;
    ensure!(made.success() && mounted.success());
    world.node.apply(&world.web([&world.b]))?;
    let agent = world.start_ready(&CAPACITY, &[])?;
    world.converges(10, &[&world.b])?;
    world.node.netns().ip("addr add 192.0.2.99/32 dev lo\n")?;
    world.node.apply(&world.web([&world.a]))?;
    world.converges(10, &[&world.a])?;
    agent.terminate().map(drop)
}

#[test]
fn an_apiservers_name_that_is_known_only_after_the_start_is_taken_by_no_external_ip() -> Result<()>
{
    let world = World::new()?;
    behind(&world)?;
    let server = BEHIND.0;
    fs::create_dir_all(world.node.state_dir())?;
    // The lab's mounts are nobody else's. Nobody answers at this nameserver: the node boots before its link.
    for (file, text) in [("resolv.conf", "nameserver 127.0.0.1\n"), ("hosts", "")] {
        let ours = world.node.state_dir().join(file);
        fs::write(&ours, text)?;
        let mounted = Command::new("mount")
            .arg("--bind")
            .arg(&ours)
            .arg(format!("/etc/{file}"))
            .status()?;
        ensure!(mounted.success(), "/etc/{file} cannot be mounted on");
    }
    let mut manifests = world.web([&world.b]);
    let thief = manifests.service("thief");
    thief.cluster_ip("10.96.0.67").external_ip(server);
    thief.port(6443, 8080).port(8080, 8080);
    thief.endpoints([&world.a]);
    let cloud = world.lab.cloud()?;
    cloud.apply(&manifests)?;
    cloud.start()?;
    let named = ["--source", "kube:http://apiserver.test:6443"];
    let _agent = start(&world, &cloud.source(), &named)?;
    world.converges(10, &[&world.b])?;
    let who = world.client.get(&place(server, 6443))?;
    ensure!(who == "a", "{who} answers where nothing is known to be");

    let hosts = world.node.state_dir().join("hosts");
    fs::write(&hosts, format!("{server} apiserver.test\n"))?;
    world.node.netns().ip("addr add 192.0.2.98/32 dev lo\n")?;
    let is_told = format!("ExternalIP {} is where nodes reach", place(server, 6443));
    world
        .node
        .wait_for_status("the thief to be told", |status| {
            let mut told = status.rejections.iter();
            told.any(|rejection| rejection.name == "thief" && rejection.reason.contains(&is_told))
        })?;
    world.c.serve_at(Proto::Tcp, server.parse()?, 6443)?;
    let host = world.node.host()?;
    for client in [&world.client, &host] {
        let who = client.get(&place(server, 6443))?;
        ensure!(
            who == "c",
            "{}: {who} answers at the apiserver's",
            client.name()
        );
        let who = client.get(&place(server, 8080))?;
        ensure!(who == "a", "{}: {who} answers beside it", client.name());
    }
    Ok(())
}
