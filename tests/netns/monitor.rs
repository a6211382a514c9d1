//! `monitor`: refusals and drops as they happen, with the names of whom and what they concern; what is left out when
//! there are too many; and its end.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::net::IpAddr;
use std::process::Child;
use std::process::Stdio;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use serde_json::Value;
use yurt_net::device::HostSide;
use yurt_net::host::clock::monotonic_ns;
use yurt_net::ledger::State;
use yurt_net_tests::lab::Kept;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Pod;
use yurt_net_tests::lab::Proto;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::Proto::Udp;
use yurt_net_tests::lab::agent_program;

use crate::frames::to_loopback;
use crate::guard::send;
use crate::kernel;
use crate::outside::BALANCER;
use crate::outside::NODE_PORT;
use crate::outside::Stage;
use crate::outside::layer_3_devices;
use crate::refusal::with_reasons;
use crate::world::PATIENCE;
use crate::world::World;
use crate::world::eventually;
use crate::world::is_refused;
use crate::world::is_refused_by;
use crate::world::said;

const STATE: &str = "state-v1";
/// How long an attempt has to be told of before the next one.
const SOON: Duration = Duration::from_millis(300);

/// A monitor on a node, whose lines are read.
struct Monitor {
    child: Child,
    lines: Receiver<Value>,
    _host: Pod,
}

impl Monitor {
    fn start(node: &Node, flags: &[&str]) -> Result<Self> {
        let host = node.host()?;
        let program = agent_program()?;
        let mut command = host.command(program.to_str().context("a path in UTF-8")?)?;
        command.args(["monitor", "-o", "json"]).args(flags);
        for (flag, path) in [
            ("--state-dir", node.state_dir()),
            ("--bpffs", node.bpffs()),
            ("--run-dir", node.run_dir()),
        ] {
            command.arg(flag).arg(path);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start a monitor")?;
        let stdout = child.stdout.take().context("its output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            let lines = lines.filter_map(|line| serde_json::from_str(&line).ok());
            lines.for_each(|line| {
                // Nobody reads any more once the test is over.
                let _over = sender.send(line);
            });
        });
        Ok(Self {
            child,
            lines,
            _host: host,
        })
    }

    /// Attempts something again and again, until an event is told that is wanted.
    fn told(
        &mut self,
        is_wanted: impl Fn(&Value) -> bool,
        attempt: impl Fn() -> Result<()>,
    ) -> Result<Value> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            attempt()?;
            loop {
                match self.lines.recv_timeout(SOON) {
                    Ok(row) if is_wanted(&row) => return Ok(row),
                    Ok(_) => {}
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => bail!("it has ended: {}", self.end()?),
                }
            }
        }
        bail!("nothing was told")
    }

    /// The next event of all that is told of an address.
    fn told_of(&mut self, dialled: &str, attempt: impl Fn() -> Result<()>) -> Result<Value> {
        self.told(|row| row["dialled"] == dialled, attempt)
    }

    fn signal(&self, signal: i32) -> Result<()> {
        let pid = libc::pid_t::try_from(self.child.id())?;
        // SAFETY: a call without pointers; the child is not reaped, so the number is its own.
        ensure!(unsafe { libc::kill(pid, signal) } == 0);
        Ok(())
    }

    /// Waits for its end, and returns what it has complained of.
    fn end(&mut self) -> Result<String> {
        let status = self.child.wait()?;
        let mut said = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            stderr.read_to_string(&mut said)?;
        }
        Ok(format!("{status}: {said}"))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Has the ledger of the node know a Pod, as `shop/<name>`, by its device.
pub(crate) fn keep(node: &Node, pod: &Pod) -> Result<()> {
    let link = pod.output("ip", &["-o", "link", "show", "dev", "eth0"])?;
    let link = String::from_utf8(link.stdout)?;
    let (_, rest) = link.split_once("@if").context("a veth")?;
    let (ifindex, _) = rest.split_once(':').context("an index")?;
    node.keep(vec![Kept {
        name: pod.name().to_owned(),
        addresses: vec![IpAddr::from(pod.ip4()), IpAddr::from(pod.ip6())],
        state: State::Active,
        host: Some(HostSide {
            ifindex: ifindex.parse()?,
            other_end: None,
        }),
    }])
}

fn fails(client: &Pod, proto: Proto, to: &str) -> Result<()> {
    let attempt = client.attempt(proto, to)?;
    ensure!(attempt.failure.is_some(), "{to}: {attempt:?}");
    Ok(())
}

#[test]
fn each_refusal_of_a_socket_is_told_with_its_service_pod_and_process() -> Result<()> {
    let cidrs = [
        "--service-cidr",
        "10.96.0.0/16",
        "--service-cidr",
        "fd00:96::/112",
    ];
    let (world, client) = with_reasons(&cidrs)?;
    let node = world.node(0)?;
    keep(node, &client)?;
    let mut monitor = Monitor::start(node, &[])?;
    for (v4, v6, reason, service) in [
        (
            "10.96.0.20:80",
            "[fd00:96::20]:80",
            "refuse_no_endpoint",
            Some("default/empty:tcp-80"),
        ),
        (
            "10.96.0.10:81",
            "[fd00:96::10]:81",
            "refuse_unknown_port",
            None,
        ),
        (
            "10.96.0.77:80",
            "[fd00:96::77]:80",
            "refuse_unallocated",
            None,
        ),
        (
            "10.96.0.30:80",
            "[fd00:96::30]:80",
            "drop_no_local_endpoint",
            Some("default/elsewhere:tcp-80"),
        ),
        (
            "203.0.113.10:80",
            "[2001:db8::10]:80",
            "drop_source_range",
            Some("default/web:tcp-80"),
        ),
    ] {
        for (to, address) in [
            (v4, client.ip4().to_string()),
            (v6, client.ip6().to_string()),
        ] {
            let row = monitor.told_of(to, || fails(&client, Tcp, to))?;
            assert_eq!(row["reason"], reason, "{row}");
            assert_eq!(row["path"], "socket", "{row}");
            assert_eq!(row["protocol"], "TCP", "{row}");
            assert_eq!(row["service"].as_str(), service, "{row}");
            assert_eq!(row["pod"], "shop/client", "{row}");
            assert_eq!(row["client"], address, "{row}");
            assert_eq!(row["isHost"], false, "{row}");
            let name = row["process"]["name"].as_str().unwrap_or_default();
            ensure!(
                !name.is_empty() && row["process"]["pid"].as_u64() > Some(1),
                "{row}"
            );
            // The agent says why, but of what it never heard of.
            ensure!(
                row["why"].is_string() || reason == "refuse_unallocated",
                "{row}"
            );
        }
    }
    // A process of the node itself, and a datagram.
    let host = node.host()?;
    let row = monitor.told(
        |row| row["isHost"] == true && row["protocol"] == "UDP",
        || fails(&host, Udp, "10.96.0.20:80"),
    )?;
    assert_eq!(row["reason"], "refuse_unknown_port", "{row}");
    ensure!(
        row["pod"].is_null() && row["process"]["pid"].is_u64(),
        "{row}"
    );
    Ok(())
}

#[test]
fn what_is_not_asked_for_is_not_told() -> Result<()> {
    let (world, client) = with_reasons(&[])?;
    let node = world.node(0)?;
    keep(node, &client)?;
    let host = node.host()?;
    let dial_all = || {
        for client in [&client, &host] {
            for to in ["10.96.0.20:80", "10.96.0.20:81", "10.96.0.30:80"] {
                fails(client, Tcp, to)?;
            }
        }
        Ok(())
    };
    for (flags, expected) in [
        (["--service", "default/elsewhere"], "10.96.0.30:80"),
        (["--reason", "refuse_unknown_port"], "10.96.0.20:81"),
    ] {
        let mut monitor = Monitor::start(node, &flags)?;
        let row = monitor.told(|_| true, dial_all)?;
        assert_eq!(row["dialled"], expected, "{flags:?}: {row}");
    }
    let mut monitor = Monitor::start(node, &["--pod", "shop/client", "--count", "3"])?;
    for _ in 0..3 {
        let row = monitor.told(|_| true, dial_all)?;
        assert_eq!(row["pod"], "shop/client", "{row}");
    }
    let said = monitor.end()?;
    ensure!(said.starts_with("exit status: 0"), "{said}");
    Ok(())
}

#[test]
fn without_an_agent_refusals_are_told_with_the_names_of_its_checkpoint() -> Result<()> {
    let mut world = World::single()?;
    let empty = world.manifests.service("empty");
    empty.cluster_ip("10.96.0.20").port(80, 8080);
    let client = world.node(0)?.pod("client")?;
    let agent = world.start(0, &[])?;
    let node = world.node(0)?;
    node.wait_for_status("a checkpoint", |status| status.checkpoint.writes > 0)?;
    agent.kill9()?;
    let mut monitor = Monitor::start(node, &[])?;
    let row = monitor.told(|_| true, || is_refused_by(&client, Tcp, "10.96.0.20:80"))?;
    assert_eq!(row["service"], "default/empty:tcp-80", "{row}");
    assert_eq!(row["reason"], "refuse_no_endpoint", "{row}");
    monitor.signal(libc::SIGINT)?;
    let said = monitor.end()?;
    ensure!(
        said.starts_with("exit status: 0") && said.contains("checkpoint"),
        "{said}"
    );
    Ok(())
}

#[test]
fn refused_packets_are_told_with_their_client_and_device() -> Result<()> {
    let mut stage = Stage::new()?;
    let _agent = stage.start(&[])?;
    let node = stage.world.node(0)?;
    let home = stage.world.node(2)?;
    let mut monitor = Monitor::start(node, &[])?;
    for (to, client) in [
        (
            format!("{}:{NODE_PORT}", node.ip4()),
            home.ip4().to_string(),
        ),
        (
            format!("[{}]:{NODE_PORT}", node.ip6()),
            home.ip6().to_string(),
        ),
    ] {
        let row = monitor.told_of(&to, || fails(&stage.client, Tcp, &to))?;
        assert_eq!(row["path"], "packet", "{row}");
        assert_eq!(row["reason"], "refuse_no_endpoint", "{row}");
        assert_eq!(row["protocol"], "TCP", "{row}");
        assert_eq!(row["client"], client, "{row}");
        ensure!(row["clientPort"].as_u64() > Some(0), "{row}");
        assert_eq!(row["device"], "eth0", "{row}");
        let service = row["service"].as_str().unwrap_or_default();
        ensure!(service.starts_with("default/web"), "{row}");
        ensure!(row["process"].is_null() && row["isHost"] == false, "{row}");
    }
    Ok(())
}

#[test]
fn dropped_packets_are_told_with_the_reason_and_of_those_from_a_pod_with_its_device() -> Result<()>
{
    let mut stage = Stage::new()?;
    let far = stage.far.clone();
    let pod = stage.world.node(0)?.pod("client")?;
    let web = stage.world.manifests.service("web");
    web.internal_policy_local(true).health_check(31080);
    web.source_ranges(&["192.0.2.250/32"]);
    let _agent = stage.start_with(&[&far], &["--socket-lb=host"])?;
    let node = stage.world.node(0)?;
    node.wait_for_status("Pods are served", |status| {
        let packets = status.packet_path.as_ref();
        packets.is_some_and(|packets| packets.pods == 2)
    })?;
    keep(node, &pod)?;
    let mut monitor = Monitor::start(node, &[])?;
    let node_port = format!("{}:{NODE_PORT}", node.ip4());
    let balancer = format!("{}:80", BALANCER[0]);
    let home = stage.world.node(2)?.ip4().to_string();
    for (client, to, reason, device, from) in [
        (
            &stage.client,
            &node_port,
            "drop_no_local_endpoint",
            "eth0",
            home.clone(),
        ),
        (&stage.client, &balancer, "drop_source_range", "eth0", home),
        (
            &pod,
            &"10.96.0.10:80".to_owned(),
            "drop_no_local_endpoint",
            "pod11",
            pod.ip4().to_string(),
        ),
        (
            &pod,
            &balancer,
            "drop_source_range",
            "pod11",
            pod.ip4().to_string(),
        ),
    ] {
        for (proto, name) in [(Tcp, "TCP"), (Udp, "UDP")] {
            let row = monitor.told(
                |row| row["dialled"] == *to && row["protocol"] == name && row["client"] == *from,
                || {
                    let tried = client.attempt_all(&[(proto, to.parse()?)], 1, SOON)?;
                    ensure!(tried.iter().all(|attempt| attempt.failure.is_some()));
                    Ok(())
                },
            )?;
            assert_eq!(row["reason"], reason, "{row}");
            assert_eq!(row["path"], "packet", "{row}");
            assert_eq!(row["device"], device, "{row}");
            let service = row["service"].as_str().unwrap_or_default();
            ensure!(service.starts_with("default/web"), "{row}");
        }
    }
    Ok(())
}

#[test]
fn what_comes_by_a_layer_3_device_or_is_dropped_before_a_service_is_known_is_told_too() -> Result<()>
{
    let mut stage = Stage::new()?;
    let _tunnels = layer_3_devices(&stage.world)?;
    stage.lead_to(&[]);
    let _agent = stage.world.start(0, &["--packet-path=on"])?;
    let node = stage.world.node(0)?;
    node.wait_for_status("packets are served", |status| {
        let packets = status.packet_path.as_ref();
        packets.is_some_and(|packets| packets.devices == ["eth0", "tun0", "tun1"])
    })?;
    let home = stage.world.node(2)?;
    home.netns().ip(&format!(
        "route replace {} dev tun0 src 172.30.7.3",
        BALANCER[0]
    ))?;
    let mut monitor = Monitor::start(node, &[])?;
    let to = format!("{}:80", BALANCER[0]);
    let row = monitor.told_of(&to, || fails(&stage.client, Tcp, &to))?;
    assert_eq!(row["reason"], "refuse_no_endpoint", "{row}");
    assert_eq!(row["device"], "tun0", "{row}");
    assert_eq!(row["client"], "172.30.7.3", "{row}");
    for (tags, reason, client) in [
        (0, "drop_loopback", Some(home.ip4().to_string())),
        (2, "drop_tag", None),
    ] {
        let frame = to_loopback(&stage, tags)?;
        let row = monitor.told(|row| row["reason"] == reason, || send(home.netns(), &frame))?;
        assert_eq!(row["path"], "packet", "{row}");
        assert_eq!(row["device"], "eth0", "{row}");
        assert_eq!(row["client"].as_str(), client.as_deref(), "{row}");
        ensure!(row["service"].is_null(), "{row}");
    }
    Ok(())
}

#[test]
fn a_monitor_that_is_stopped_or_killed_turns_off_by_itself_and_a_second_one_says_who_is_first()
-> Result<()> {
    let (world, client) = with_reasons(&[])?;
    let node = world.node(0)?;
    let mut first = Monitor::start(node, &[])?;
    let (before, meanwhile, after) = ("10.96.0.20:80", "10.96.0.20:81", "10.96.0.10:81");
    first.told_of(before, || is_refused(&client, before))?;
    let second = node.yurt_net(&["monitor"])?;
    ensure!(!second.status.success());
    let pid = format!("(pid {})", first.child.id());
    ensure!(said(&second).contains(&pid), "{pid}: {}", said(&second));

    first.signal(libc::SIGSTOP)?;
    let watch = kernel::get(&node.bpffs().join("yurt-net").join(STATE).join("yurt_watch"))?;
    let until = || kernel::lookup(&watch, &[0; 4]).map(u64::from_ne_bytes);
    let last = eventually(node, || {
        let last = until().context("the switch")?;
        ensure!(last != 0 && monotonic_ns() > last);
        Ok(last)
    })?;
    is_refused(&client, meanwhile)?;
    assert_eq!(until(), Some(last));
    first.signal(libc::SIGCONT)?;
    let row = first.told(
        |row| row["dialled"] == meanwhile || row["dialled"] == after,
        || is_refused(&client, after),
    )?;
    assert_eq!(row["dialled"], after, "{row}");

    first.signal(libc::SIGKILL)?;
    first.end()?;
    let mut third = Monitor::start(node, &[])?;
    third.told_of(before, || is_refused(&client, before))?;
    third.signal(libc::SIGTERM)?;
    third.end()?;
    assert_eq!(
        until(),
        Some(0),
        "one that may end itself leaves nothing switched on"
    );
    Ok(())
}

#[test]
fn a_flood_of_refusals_loses_events_and_no_connects_and_says_how_many() -> Result<()> {
    const FLOOD: u32 = 30_000;
    let (world, client) = with_reasons(&[])?;
    let node = world.node(0)?;
    let mut monitor = Monitor::start(
        node,
        &["--reason", "refuse_no_endpoint,drop_no_local_endpoint"],
    )?;
    monitor.told_of("10.96.0.30:80", || fails(&client, Tcp, "10.96.0.30:80"))?;
    let tally = client.dial(Tcp, "10.96.0.20:80", FLOOD)?;
    let refused: u64 = tally.errors.values().sum();
    assert_eq!(refused, u64::from(FLOOD), "{tally:?}");
    // Somebody else is seen beside the flood.
    let to = "[fd00:96::30]:80";
    monitor.told_of(to, || {
        client.dial(Tcp, "10.96.0.20:80", 1000)?;
        fails(&client, Tcp, to)
    })?;
    monitor.signal(libc::SIGTERM)?;
    let end = monitor.lines.iter().last().context("its last line")?;
    let lost = end["lost"].as_u64().context("what was lost")?;
    ensure!(lost > u64::from(FLOOD) / 2, "{end}");
    let said = monitor.end()?;
    ensure!(said.starts_with("exit status: 0"), "{said}");
    Ok(())
}
