//! A ClusterIP that an interface of the node has, too: it is left to the process that listens there, as NodeLocal
//! DNSCache does on the address of kube-dns.

use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;
use yurt_net_tests::lab::UdpSocket;

use crate::world::World;
use crate::world::eventually;
use crate::world::explain;
use crate::world::is_refused;
use crate::world::json;
use crate::world::mapped;
use crate::world::status;

const DNS4: &str = "10.96.0.10";
const DNS6: &str = "fd00:96::10";
const WEB4: &str = "10.96.0.20";

fn dns4() -> String {
    format!("{DNS4}:53")
}

fn dns6() -> String {
    format!("[{DNS6}]:53")
}

/// kube-dns with a backend, another Service, the agent; and the device that a cache makes, without an address yet.
fn with_dns(flags: &[&str]) -> Result<(World, [Pod; 2])> {
    let mut world = World::single()?;
    let backend = world.backend(0, "backend")?;
    let dns = world.manifests.service("dns");
    dns.cluster_ip(DNS4).cluster_ip(DNS6);
    dns.port(53, 8080).udp_port(53, 8080).endpoints([&backend]);
    let web = world.manifests.service("web");
    web.cluster_ip(WEB4).port(80, 8080).endpoints([&backend]);
    world.start(0, flags)?;
    let node = world.node(0)?;
    node.netns()
        .ip("link add nodelocaldns type veth peer name nldns-peer\nlink set nodelocaldns up\n")?;
    let clients = [node.pod("client")?, node.host()?];
    Ok((world, clients))
}

fn addresses(world: &World, verb: &str, device: &str) -> Result<()> {
    // Without duplicate address detection, which keeps an IPv6 address from being listened to at once.
    let nodad = if verb == "add" { " nodad" } else { "" };
    world.node(0)?.netns().ip(&format!(
        "addr {verb} {DNS4}/32 dev {device}\naddr {verb} {DNS6}/128 dev {device}{nodad}\n"
    ))
}

/// Who answers at kube-dns' address, by TCP, connected UDP and the sockets that stay open; each shows the address
/// dialled.
fn answers(client: &Pod, sockets: &[(UdpSocket, String)], who: &str) -> Result<()> {
    for to in [dns4(), dns6(), mapped(&dns4())?] {
        for proto in [Tcp, Udp] {
            let attempt = client.attempt(proto, &to)?;
            let name = client.name();
            ensure!(
                attempt.answer() == Some(who),
                "{name} {proto:?} {to}: {attempt:?}"
            );
            ensure!(
                attempt.peer == Some(to.parse()?),
                "{name} {proto:?} {to}: {attempt:?}"
            );
        }
    }
    for (socket, to) in sockets {
        for outcome in socket.ask(to, 2)? {
            ensure!(outcome.answer.as_deref() == Some(who), "{to}: {outcome:?}");
            ensure!(outcome.shown == Some(to.parse()?), "{to}: {outcome:?}");
        }
    }
    Ok(())
}

fn sockets(client: &Pod) -> Result<Vec<(UdpSocket, String)>> {
    Ok(vec![
        (client.udp_socket(false)?, dns4()),
        (client.udp_socket(true)?, dns6()),
        (client.udp_socket(true)?, mapped(&dns4())?),
    ])
}

/// Waits until the status says so of both addresses, or of none.
fn wait_until_left_alone(world: &World, is_left_alone: bool) -> Result<()> {
    let node = world.node(0)?;
    eventually(node, || {
        let status = status(node)?;
        let left_alone = status["leftAlone"].as_array().map(Vec::len);
        let expected = if is_left_alone { 2 } else { 0 };
        ensure!(left_alone == Some(expected), "{status}");
        Ok(())
    })
}

/// What the node is said to do with kube-dns' address when the agent is not asked.
fn is_planned(node: &Node, verdict: &str) -> Result<()> {
    let plan = json(&node.yurt_net(&["plan", "-o", "json"])?)?;
    ensure!(plan["seesInterfaces"] == true, "{plan}");
    let services = plan["services"].as_array().into_iter().flatten();
    let dns = services.filter(|service| service["name"] == "dns");
    let rows: Vec<_> = dns
        .filter_map(|service| service["frontends"].as_array())
        .flatten()
        .collect();
    let is_right = !rows.is_empty() && rows.iter().all(|row| row["verdict"] == verdict);
    ensure!(is_right, "{plan}");
    let source = format!("file:{}", node.manifests_dir().display());
    let to = format!("{}/UDP", dns4());
    let told = json(&node.yurt_net(&[
        "explain",
        "--from",
        "127.0.0.1",
        "--to",
        &to,
        "--node",
        node.name(),
        "--source",
        &source,
        "-o",
        "json",
    ])?)?;
    ensure!(told["verdict"] == verdict, "{told}");
    let reason = told["reason"].as_str().unwrap_or_default();
    ensure!(!reason.contains("not known here"), "{told}");
    Ok(())
}

fn a_cluster_ip_on_an_interface_is_left_to_what_listens_there(flags: &[&str]) -> Result<()> {
    let (world, clients) = with_dns(flags)?;
    let node = world.node(0)?;
    let held = clients.each_ref().map(sockets);
    let held: [Vec<_>; 2] = match held {
        [pod, host] => [pod?, host?],
    };
    for (client, sockets) in clients.iter().zip(&held) {
        answers(client, sockets, "backend")?;
    }

    for round in 0..2 {
        addresses(&world, "add", "nodelocaldns")?;
        wait_until_left_alone(&world, true)?;
        if round == 0 {
            let cache = node.host()?;
            for address in [DNS4, DNS6] {
                for (proto, port) in [(Tcp, 53), (Udp, 53), (Tcp, 9253)] {
                    cache.serve_at(proto, address.parse()?, port)?;
                }
            }
        }
        for (client, sockets) in clients.iter().zip(&held) {
            answers(client, sockets, "host")?;
            // A port that is not the Service's.
            for to in [format!("{DNS4}:9253"), format!("[{DNS6}]:9253")] {
                ensure!(client.get(&to)? == "host", "{to}");
            }
            // Other Services are served as before, and other ports of theirs refused.
            ensure!(client.get(&format!("{WEB4}:80"))? == "backend");
            is_refused(client, &format!("{WEB4}:81"))?;
        }
        let told = explain(node, "127.0.0.1", &format!("{}/UDP", dns4()))?;
        ensure!(told["verdict"] == "pass", "{told}");
        let reason = told["reason"].as_str().unwrap_or_default();
        ensure!(
            reason.contains("default/dns") && reason.contains("on an interface of this node"),
            "{told}"
        );
        is_planned(node, "pass")?;
        let table = String::from_utf8(node.yurt_net(&["status"])?.stdout)?;
        ensure!(
            table.contains("left alone    10.96.0.10 of default/dns"),
            "{table}"
        );

        addresses(&world, "del", "nodelocaldns")?;
        wait_until_left_alone(&world, false)?;
        is_planned(node, "forward")?;
        for (client, sockets) in clients.iter().zip(&held) {
            answers(client, sockets, "backend")?;
        }
    }
    Ok(())
}

#[test]
fn a_cluster_ip_on_an_interface_is_left_to_what_listens_there_inside_a_service_cidr() -> Result<()>
{
    let cidrs = [
        "--service-cidr",
        "10.96.0.0/16",
        "--service-cidr",
        "fd00:96::/112",
    ];
    a_cluster_ip_on_an_interface_is_left_to_what_listens_there(&cidrs)
}

#[test]
fn a_cluster_ip_on_an_interface_is_left_to_what_listens_there_without_service_cidrs() -> Result<()>
{
    a_cluster_ip_on_an_interface_is_left_to_what_listens_there(&[])
}

#[test]
fn a_cluster_ip_that_was_on_an_interface_before_the_agent_is_left_alone_from_its_start()
-> Result<()> {
    let mut world = World::single()?;
    let backend = world.backend(0, "backend")?;
    let dns = world.manifests.service("dns");
    dns.cluster_ip(DNS4).cluster_ip(DNS6);
    dns.port(53, 8080).udp_port(53, 8080).endpoints([&backend]);
    world.node(0)?.netns().ip("link set lo up\n")?;
    addresses(&world, "add", "lo")?;
    let cache = world.node(0)?.host()?;
    for address in [DNS4, DNS6] {
        for proto in [Tcp, Udp] {
            cache.serve_at(proto, address.parse()?, 53)?;
        }
    }
    let agent = world.start(0, &[])?;
    let client = world.node(0)?.pod("client")?;
    answers(&client, &sockets(&client)?, "host")?;
    // An agent that takes the maps over finds nothing to do.
    world.restart(&agent, 0, &[])?;
    answers(&client, &sockets(&client)?, "host")?;
    let status = status(world.node(0)?)?;
    ensure!(
        status["adopted"] == true && status["driftWrites"] == 0,
        "{status}"
    );
    Ok(())
}

/// kube-proxy in IPVS mode and kube-router put every ClusterIP on a device of theirs, which stays behind when they go.
#[test]
fn cluster_ips_that_another_proxy_left_on_its_device_are_served() -> Result<()> {
    let (world, clients) = with_dns(&[])?;
    let node = world.node(0)?;
    for device in ["kube-ipvs0", "kube-dummy-if"] {
        node.netns().ip(&format!(
            "link add {device} type veth peer name other-peer\nlink set {device} up\n"
        ))?;
        addresses(&world, "add", device)?;
        // Addresses that count, and come later: by then the others are known.
        node.netns()
            .ip(&format!("addr add {WEB4}/32 dev nodelocaldns\n"))?;
        eventually(node, || {
            let status = status(node)?;
            let left_alone = status["leftAlone"].as_array().cloned().unwrap_or_default();
            ensure!(left_alone.len() == 1, "{device}: {status}");
            ensure!(left_alone[0]["address"] == WEB4, "{device}: {status}");
            Ok(())
        })?;
        for client in &clients {
            answers(client, &[], "backend")?;
        }
        node.netns().ip(&format!(
            "addr del {WEB4}/32 dev nodelocaldns\nlink del {device}\n"
        ))?;
        wait_until_left_alone(&world, false)?;
    }
    Ok(())
}
