//! The lab itself: Pods reach each other as they would in a cluster without any Service, errors
//! come through by name, and nothing is left. Needs root.

use std::fs;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt;
use std::panic;
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Lab;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;
use yurt_net_tests::lab::cgroup;

/// Only what hangs takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn pods_reach_each_other_on_one_node_and_across_nodes() -> Result<()> {
    let lab = Lab::new()?;
    let near = lab.node("edge-1")?;
    let far = lab.node("edge-2")?;
    let client = near.pod("client")?;
    for server in [near.pod("near")?, far.pod("far")?] {
        server.serve_tcp(8080)?.serve_udp(8080)?;
        let mapped = format!("[{}]:8080", server.ip4().to_ipv6_mapped());
        for to in [server.at4(8080), server.at6(8080), mapped] {
            for proto in [Tcp, Udp] {
                let attempt = client.attempt(proto, &to)?;
                assert_eq!(
                    attempt.answer(),
                    Some(server.name()),
                    "{proto:?} {to}: {attempt:?}"
                );
                assert_eq!(attempt.peer, Some(to.parse()?), "{proto:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_node_reaches_pods_and_pods_reach_a_node() -> Result<()> {
    let lab = Lab::new()?;
    let near = lab.node("edge-1")?;
    let far = lab.node("edge-2")?;
    let pod = far.pod("pod")?.serve_tcp(8080)?;
    let host = near.host()?.serve_tcp(9090)?;
    assert_eq!(host.get(&pod.at4(8080))?, "pod");
    assert_eq!(host.get(&pod.at6(8080))?, "pod");
    assert_eq!(pod.get(&host.at4(9090))?, "host");
    assert_eq!(host.get("127.0.0.1:9090")?, "host");
    Ok(())
}

#[test]
fn a_port_that_nobody_serves_refuses() -> Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("edge-1")?;
    let (client, idle) = (node.pod("client")?, node.pod("idle")?);
    for to in [idle.at4(1), idle.at6(1)] {
        let tcp = client.attempt(Tcp, &to)?.failure.context("connected")?;
        assert_eq!(tcp.to_string(), "connect: ECONNREFUSED", "{to}");
        // Without a hook, UDP learns it from the ICMP error that answers the first message.
        let udp = client.attempt(Udp, &to)?.failure.context("connected")?;
        assert_eq!(udp.to_string(), "recv: ECONNREFUSED", "{to}");
        let tally = client.connect_many(Tcp, &to, 100)?;
        assert_eq!((tally.error("ECONNREFUSED"), tally.connects()), (100, 100));
    }
    Ok(())
}

#[test]
fn an_address_that_nobody_has_is_silent() -> Result<()> {
    let lab = Lab::new()?;
    let client = lab.node("edge-1")?.pod("client")?;
    let attempt = client.attempt(Tcp, "10.96.0.10:80")?;
    assert_eq!(attempt.errno(), Some("TIMEOUT"), "{attempt:?}");
    Ok(())
}

#[test]
fn datagrams_of_one_socket_are_told_apart_by_answer_and_source() -> Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("edge-1")?;
    let client = node.pod("client")?;
    let [a, b] = ["a", "b"].map(|name| node.pod(name).and_then(|pod| pod.serve_udp(53)));
    let (a, b) = (a?, b?);
    for (to_a, to_b) in [(a.at4(53), b.at4(53)), (a.at6(53), b.at6(53))] {
        for overlapping in [false, true] {
            let to = [to_a.as_str(), &to_b, &to_a, &to_b];
            let replies = client.datagrams(&to, overlapping)?;
            for (reply, name) in replies.iter().zip(["a", "b", "a", "b"]) {
                assert_eq!(reply.answer.as_deref(), Some(name), "{reply:?}");
                assert_eq!(reply.from, Some(reply.to), "{reply:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_held_connection_and_background_traffic_notice_that_a_server_dies() -> Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("edge-1")?;
    let client = node.pod("client")?;
    let server = node.pod("server")?.serve_tcp(80)?.serve_udp(80)?;
    let held = client.hold(Tcp, &server.at4(80))?;
    let held_udp = client.hold(Udp, &server.at6(80))?;
    let traffic = client.start_traffic(Tcp, &server.at4(80), 2, Duration::from_millis(1))?;
    for connection in [&held, &held_udp] {
        assert_eq!(connection.ping()?.answer(), Some("server"));
        assert_eq!(connection.ping()?.peer, connection.opened().peer);
    }
    let before = wait_for_answers(|| Ok(traffic.peek()?.answered()), 50)?;
    assert_eq!(traffic.peek()?.failed(), 0);
    server.kill()?;
    assert!(held.ping()?.failure.is_some());
    assert_eq!(held_udp.ping()?.errno(), Some("ECONNREFUSED"));
    wait_for_answers(|| Ok(traffic.peek()?.failed()), 5)?;
    let tally = traffic.stop()?;
    assert!(tally.answered() >= before);
    assert!(tally.error("ECONNREFUSED") >= 1, "{tally:?}");
    Ok(())
}

fn wait_for_answers(count: impl Fn() -> Result<u64>, at_least: u64) -> Result<u64> {
    let start = Instant::now();
    loop {
        let now = count()?;
        if now >= at_least {
            return Ok(now);
        }
        ensure!(start.elapsed() < PATIENCE, "{now} of {at_least}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_node_has_a_cgroup_a_bpffs_and_directories_of_its_own() -> Result<()> {
    let lab = Lab::new()?;
    let [a, b] = ["a", "b"].map(|name| lab.node(name));
    let (a, b) = (a?, b?);
    let pod = a.pod("pod")?;
    assert_ne!(a.bpffs(), b.bpffs());
    let mounts = fs::read_to_string("/proc/thread-self/mounts")?;
    for node in [&a, &b] {
        let line = format!(" {} bpf ", node.bpffs().display());
        assert!(mounts.contains(&line), "{line} in:\n{mounts}");
        assert!(!fs::read_to_string("/proc/1/mounts")?.contains(&line));
    }
    let membership = pod.output("/bin/cat", &["/proc/self/cgroup"])?.stdout;
    let membership = String::from_utf8(membership)?;
    let expected = pod.cgroup().strip_prefix(cgroup::mount_point()?)?;
    assert!(
        membership.contains(&format!("0::/{}\n", expected.display())),
        "{membership}"
    );
    assert!(pod.cgroup().starts_with(a.cgroup()));
    Ok(())
}

#[test]
fn nothing_is_left_of_a_dropped_lab() -> Result<()> {
    let lab = Lab::new()?;
    let inventory = {
        let node = lab.node("edge-1")?;
        let server = node.pod("server")?.serve_tcp(80)?;
        let client = node.pod("client")?;
        assert_eq!(client.get(&server.at4(80))?, "server");
        lab.inventory()
    };
    assert_eq!((inventory.processes(), inventory.namespaces()), (3, 4));
    let while_up = inventory.leftovers()?;
    assert!(while_up.len() >= 3 + 2 + 2, "{while_up:#?}");
    drop(lab);
    assert_eq!(inventory.leftovers()?, [""; 0]);
    Ok(())
}

#[test]
fn nothing_is_left_of_a_lab_whose_test_panics() -> Result<()> {
    let (sender, inventory) = std::sync::mpsc::channel();
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::new().unwrap();
        let pod = lab.node("edge-1").unwrap().pod("server").unwrap();
        let _traffic = pod
            .start_traffic(Tcp, "127.0.0.1:1", 1, Duration::ZERO)
            .unwrap();
        sender.send(lab.inventory()).unwrap();
        panic!("on purpose");
    }));
    assert!(result.is_err());
    assert_eq!(inventory.recv()?.leftovers()?, [""; 0]);
    Ok(())
}

/// Not a test: what the tests below kill. Makes a lab, tells what is in it, and waits.
#[test]
#[ignore = "run by other tests, as a process to kill"]
fn a_lab_to_kill() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.node("edge-1")?.pod("pod")?;
    let _traffic = pod.start_traffic(Tcp, "127.0.0.1:1", 1, Duration::ZERO)?;
    eprintln!("up {}", lab.dir().display());
    thread::sleep(Duration::from_secs(60));
    Ok(())
}

#[test]
fn nothing_is_left_of_a_lab_whose_process_is_killed() -> Result<()> {
    for signal in [libc::SIGKILL, libc::SIGINT, libc::SIGTERM] {
        let mut victim = Command::new(std::env::current_exe()?)
            .args(["--exact", "a_lab_to_kill", "--ignored", "--nocapture"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let dir = up(victim.stderr.take().context("stderr")?)?;
        let name = dir.rsplit('/').next().context("name")?.to_owned();
        let cgroup = cgroup::mount_point()?.join(name);
        assert!(cgroup.join("edge-1/pod").is_dir());
        let pid = libc::pid_t::try_from(victim.id())?;
        // SAFETY: plain system call on a child that is not reaped yet.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        assert_eq!(victim.wait()?.signal(), Some(signal));
        let start = Instant::now();
        while cgroup.exists() || fs::exists(&dir)? {
            ensure!(start.elapsed() < PATIENCE, "{dir} or its cgroup is left");
            thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

/// Reads until the lab of `a_lab_to_kill` is up and returns its directory.
fn up(mut stderr: impl Read) -> Result<String> {
    let mut said = Vec::new();
    let mut byte = [0];
    while stderr.read(&mut byte)? > 0 {
        if byte != *b"\n" {
            said.extend(byte);
            continue;
        }
        let line = String::from_utf8(std::mem::take(&mut said))?;
        if let Some(dir) = line.strip_prefix("up ") {
            return Ok(dir.to_owned());
        }
    }
    anyhow::bail!("ended before it was up")
}

#[test]
fn manifests_are_replaced_at_once_on_every_node() -> Result<()> {
    let lab = Lab::new()?;
    let [a, b] = ["a", "b"].map(|name| lab.node(name));
    let (a, b) = (a?, b?);
    let mut manifests = yurt_net_tests::lab::Manifests::new();
    manifests.node(&a).pool("hangzhou");
    manifests.node(&b).pool("hangzhou");
    let web = manifests
        .service("web")
        .cluster_ip("10.96.0.10")
        .port(80, 8080);
    web.node_port(Udp, 53, 53, 30053);
    web.add_endpoint(Ipv4Addr::LOCALHOST.into(), None, false);
    lab.apply(&manifests)?;
    for node in [a, b] {
        let files: Vec<_> = fs::read_dir(node.manifests_dir())?.collect::<Result<_, _>>()?;
        assert_eq!(files.len(), 1);
        let yaml = fs::read_to_string(files[0].path())?;
        assert_eq!(yaml, manifests.to_yaml());
        assert!(yaml.contains("nodes: [a, b]"), "{yaml}");
    }
    Ok(())
}

#[test]
fn the_first_connect_across_nodes_loses_no_packet() -> Result<()> {
    let lab = Lab::new()?;
    let client = lab.node("edge-1")?.pod("client")?;
    let server = lab.node("edge-2")?.pod("server")?.serve_tcp(80)?;
    for to in [server.at4(80), server.at6(80)] {
        client.get(&to)?;
    }
    // A lost packet is sent again, and that is counted.
    assert_eq!(tcp_count(&client, "RetransSegs")?, 0);
    assert!(tcp_count(&client, "OutSegs")? > 0);
    Ok(())
}

/// One of the numbers that the kernel keeps of a Pod's TCP: `/proc/net/snmp` has a line of names and one of numbers.
fn tcp_count(pod: &Pod, name: &str) -> Result<u64> {
    let output = pod.output("cat", &["/proc/net/snmp"])?;
    let text = String::from_utf8(output.stdout)?;
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, numbers) = (lines.next(), lines.next());
    let (names, numbers) = names.zip(numbers).context("no Tcp")?;
    let mut pairs = names.split_whitespace().zip(numbers.split_whitespace());
    let (_, number) = pairs
        .find(|(known, _)| *known == name)
        .context("no such number")?;
    Ok(number.parse()?)
}

#[test]
fn a_node_that_is_made_again_under_its_name_has_a_place_of_its_own() -> Result<()> {
    let lab = Lab::new()?;
    let first = lab.node("edge-1")?;
    let again = lab.node("edge-1")?;
    assert_ne!(first.cgroup(), again.cgroup());
    assert_ne!(first.state_dir(), again.state_dir());
    again.pod("client")?;
    Ok(())
}
