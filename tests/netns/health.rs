//! What load balancers hear at the health ports, as kube-proxy's end-to-end tests ask for it: "should fail health check
//! node port if there are only terminating endpoints" and "should be able to change the type from ClusterIP to NodePort
//! and externalTrafficPolicy", whose health check closes with the policy.

use std::io;
use std::io::ErrorKind;
use std::io::Read as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;

use crate::world::World;
use crate::world::all_answered;
use crate::world::eventually;

const CHECK: u16 = 30999;
const CLUSTER_IP: &str = "10.96.0.10";

/// Asks from a node at an address; `None`: nobody listens there.
fn ask(from: &Node, at: SocketAddr, path: &str) -> Result<Option<String>> {
    let exchange = || -> io::Result<String> {
        let mut stream = TcpStream::connect(at)?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {at}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    match from.netns().run(exchange)? {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(None),
        Err(error) => Err(error).with_context(|| at.to_string()),
    }
}

/// Code, local endpoints.
fn said(answer: Option<&str>) -> Option<(&str, &str)> {
    let code = answer?.split(' ').nth(1)?;
    let (_, rest) = answer?.split_once("\"localEndpoints\": ")?;
    Some((code, rest.split(',').next()?))
}

/// What the second node hears at a node's health check port.
fn check(world: &World, node: usize) -> Result<Option<String>> {
    let at = SocketAddr::new(world.node(node)?.ip4().into(), CHECK);
    ask(world.node(1)?, at, "/")
}

/// Two nodes, of which the first has the one endpoint of a load balancer's Service with the policy Local.
fn world() -> Result<(World, Pod)> {
    let mut world = World::new(&[("edge-1", "hangzhou"), ("edge-2", "hangzhou")])?;
    let backend = world.backend(0, "backend")?;
    let web = world.manifests.service("web");
    web.cluster_ip(CLUSTER_IP).port(80, 8080);
    web.load_balancer_ip("203.0.113.9").health_check(CHECK);
    web.endpoints([&backend]);
    Ok((world, backend))
}

#[test]
fn a_health_check_fails_where_only_terminating_endpoints_are_and_they_still_serve() -> Result<()> {
    let (mut world, backend) = world()?;
    let _agents = [world.start(0, &[])?, world.start(1, &[])?];
    let here = check(&world, 0)?.context("refused")?;
    ensure!(said(Some(&here)) == Some(("200", "1")), "{here}");
    ensure!(
        here.contains("x-load-balancing-endpoint-weight: 1\r\n"),
        "{here}"
    );
    let (_, body) = here.split_once("\r\n\r\n").context("a body")?;
    let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\
                    \"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}";
    ensure!(body == expected, "{body}");
    let there = check(&world, 1)?.context("refused")?;
    ensure!(said(Some(&there)) == Some(("503", "0")), "{there}");

    let web = world.manifests.service("web");
    web.endpoints([]).terminating(&backend);
    world.apply()?;
    let here = check(&world, 0)?.context("refused")?;
    ensure!(said(Some(&here)) == Some(("503", "0")), "{here}");
    let client = world.node(0)?.pod("client")?;
    all_answered(&client.connect_many(Tcp, "10.96.0.10:80", 20)?)
}

#[test]
fn a_health_check_closes_when_the_policy_is_no_longer_local() -> Result<()> {
    let (mut world, _backend) = world()?;
    world.manifests.service("web").health_check(0);
    let _agents = [world.start(0, &[])?, world.start(1, &[])?];
    ensure!(check(&world, 0)?.is_none(), "the policy is Cluster");
    for _ in 0..2 {
        world.manifests.service("web").health_check(CHECK);
        world.apply()?;
        for (node, expected) in [(0, ("200", "1")), (1, ("503", "0"))] {
            let answer = eventually(world.node(node)?, || {
                check(&world, node)?.context("refused")
            })?;
            ensure!(said(Some(&answer)) == Some(expected), "{answer}");
        }
        world.manifests.service("web").health_check(0);
        world.apply()?;
        for node in [0, 1] {
            eventually(world.node(node)?, || {
                ensure!(check(&world, node)?.is_none(), "it is open");
                Ok(())
            })?;
        }
    }
    Ok(())
}

#[test]
fn a_health_check_port_that_a_process_has_is_told_and_served_once_it_is_free() -> Result<()> {
    let (mut world, _backend) = world()?;
    let holder = world
        .node(0)?
        .netns()
        .run(|| TcpListener::bind(("0.0.0.0", CHECK)))??;
    let _agents = [world.start(0, &[])?, world.start(1, &[])?];
    let status = world
        .node(0)?
        .wait_for_status("a port that is taken", |status| {
            !status.health_ports.problems.is_empty()
        })?;
    let [problem] = status.health_ports.problems.as_slice() else {
        anyhow::bail!("{:?}", status.health_ports);
    };
    // Each libc has its own words for an error; the number is the kernel's.
    let is_taken = problem.starts_with("port 30999 (default/web): ")
        && problem.contains(&format!("(os error {})", libc::EADDRINUSE));
    ensure!(is_taken, "{problem}");
    ensure!(status.ready && status.degraded.is_empty());
    drop(holder);
    let answer = eventually(world.node(0)?, || check(&world, 0)?.context("refused"))?;
    ensure!(said(Some(&answer)) == Some(("200", "1")), "{answer}");
    Ok(())
}

#[test]
fn a_health_check_takes_no_port_of_the_kubelet() -> Result<()> {
    let (mut world, _backend) = world()?;
    world.manifests.service("web").health_check(10250);
    let _agents = [world.start(0, &[])?, world.start(1, &[])?];
    let kubelet = SocketAddr::new(world.node(0)?.ip4().into(), 10250);
    ensure!(ask(world.node(1)?, kubelet, "/")?.is_none());
    let rejections = world.node(0)?.status()?.rejections;
    let says = "healthCheckNodePort 10250 is a port by which the node is reached";
    ensure!(
        rejections.iter().any(|one| one.reason == says),
        "{rejections:?}"
    );
    Ok(())
}

/// As kube-proxy's end-to-end test "should set up and check kube-proxy urls" asks, and from another node.
#[test]
fn the_urls_of_kube_proxy_answer_as_kube_proxy_does_and_not_by_the_apiserver() -> Result<()> {
    let (world, _backend) = world()?;
    let cloud = world.lab.cloud()?;
    cloud.apply(&world.manifests)?;
    cloud.start()?;
    let node = world.node(0)?;
    let _agent = node.start_agent_from(&cloud.source(), node.name(), &[])?;
    node.wait_ready()?;
    let healthz = SocketAddr::new(node.ip4().into(), 10256);
    let is_well = |path: &str| -> Result<()> {
        let answer = ask(world.node(1)?, healthz, path)?.context("refused")?;
        ensure!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        ensure!(answer.contains("\"lastUpdated\":"), "{answer}");
        ensure!(
            answer.contains("\"nodeEligible\":true,") == (path == "/healthz"),
            "{answer}"
        );
        Ok(())
    };
    is_well("/healthz")?;
    is_well("/livez")?;
    let local: SocketAddr = "127.0.0.1:10249".parse()?;
    let mode = ask(node, local, "/proxyMode")?.context("refused")?;
    ensure!(mode.starts_with("HTTP/1.1 200 OK\r\n") && mode.ends_with("\r\n\r\nyurt-net"));
    let other = ask(world.node(1)?, healthz, "/metrics")?.context("refused")?;
    ensure!(other.starts_with("HTTP/1.1 404 "), "{other}");
    cloud.kill9()?;
    node.wait_for_status("a source that is away", |status| !status.source.is_fresh)?;
    is_well("/healthz")?;
    is_well("/livez")
}
