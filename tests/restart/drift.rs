//! What is taken away under a running agent: links, its cgroup, its directory, its socket.

use std::ffi::CString;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use yurt_net::observe::status::SelfTest;
use yurt_net_tests::lab::{Agent, Manifests, Pod, Proto, Traffic, agent_program, cgroup};

use crate::kernel::Object;
use crate::world::{CAPACITY, World, check, flags, vip};

const HOOKS: [&str; 8] = [
    "yurt_recvmsg4",
    "yurt_recvmsg6",
    "yurt_getpeer4",
    "yurt_getpeer6",
    "yurt_connect4",
    "yurt_connect6",
    "yurt_sendmsg4",
    "yurt_sendmsg6",
];

#[test]
fn programs_that_were_detached_are_attached_again_while_the_agent_runs() -> Result<()> {
    let world = World::new()?;
    let World { a, b, client, .. } = &world;
    world.node.apply(&world.web([a, b]))?;
    let _agent = world.start_ready(&CAPACITY, &["--drift-interval", "1"])?;
    let links = world.node.bpffs().join("yurt-net/links");
    for hook in HOOKS {
        Object::open(&links.join(hook))?.detach()?;
    }
    world.wait_for("the repair", || {
        Ok(world.status()?.drift_links >= HOOKS.len())
    })?;
    world.expect(10, &[a, b], false)?;
    let socket = client.socket("10.96.0.10:80")?;
    assert_eq!(socket.ask("10.96.0.10:80")?.1, "10.96.0.10:80".parse()?);
    assert_eq!(world.status()?.drift_links, HOOKS.len());

    // A pin that is gone is made again.
    fs::remove_file(links.join("yurt_connect4"))?;
    world.wait_for("the repair", || {
        Ok(world.status()?.drift_links > HOOKS.len())
    })?;
    world.expect(10, &[a, b], false)
}

#[test]
fn programs_that_were_detached_while_no_agent_ran_are_attached_again_at_the_next_start()
-> Result<()> {
    let world = World::new()?;
    let World { a, b, .. } = &world;
    world.node.apply(&world.web([a, b]))?;
    world.start_ready(&CAPACITY, &[])?.kill9()?;
    for hook in HOOKS {
        Object::open(&world.node.bpffs().join("yurt-net/links").join(hook))?.detach()?;
    }
    world.start_ready(&CAPACITY, &[])?;
    assert!(world.status()?.adopted);
    world.expect(10, &[a, b], false)
}

/// The process of a Pod, moved to another cgroup.
fn move_to(pod: &Pod, cgroup: &Path) -> Result<()> {
    for from in [pod.cgroup(), cgroup] {
        let pids = fs::read_to_string(from.join("cgroup.procs"))?;
        for pid in pids.lines() {
            fs::write(cgroup.join("cgroup.procs"), pid)?;
        }
    }
    Ok(())
}

#[test]
fn a_cgroup_that_was_removed_and_made_again_is_served_again() -> Result<()> {
    let world = World::new()?;
    let World { a, b, client, .. } = &world;
    world.node.apply(&world.web([a, b]))?;
    let served = world.node.cgroup().join("served");
    fs::create_dir(&served)?;
    let flags = flags(&CAPACITY);
    let mut flags: Vec<_> = flags.iter().map(String::as_str).collect();
    flags.extend(["--drift-interval", "1"]);
    let agent = world.node.start_agent_serving(&served, &flags)?;
    world.wait_ready(&agent)?;
    move_to(client, &served)?;
    world.expect(10, &[a, b], false)?;

    let outside = world.node.cgroup().join("outside");
    fs::create_dir(&outside)?;
    let worker = fs::read_to_string(served.join("cgroup.procs"))?;
    fs::write(outside.join("cgroup.procs"), worker.trim())?;
    cgroup::remove(&served)?;
    fs::create_dir(&served)?;
    fs::write(served.join("cgroup.procs"), worker.trim())?;
    world.wait_for("the repair", || {
        Ok(world.status()?.drift_links >= HOOKS.len())
    })?;
    world.expect(10, &[a, b], false)
}

#[test]
fn services_outlive_the_agents_own_cgroup() -> Result<()> {
    let world = World::new()?;
    let World { a, b, .. } = &world;
    world.node.apply(&world.web([a, b]))?;
    world.start_ready(&CAPACITY, &[])?.kill9()?;
    cgroup::remove(&world.node.cgroup().join("agent"))?;
    world.expect(10, &[a, b], false)
}

#[test]
fn programs_whose_pins_another_bpffs_hides_decide_nothing_any_more() -> Result<()> {
    let world = World::new()?;
    let World { a, b, client, .. } = &world;
    world.node.apply(&world.web([a]))?;
    world.start_ready(&CAPACITY, &[])?.kill9()?;
    world.node.hide_pins()?;
    world.expect(10, &[a], false)?;
    world.node.apply(&world.web([b]))?;
    let agent = world.start_ready(&CAPACITY, &["--drift-interval", "1"])?;
    // They came first, so they would be asked first.
    world.expect(10, &[b], false)?;
    assert_eq!(world.status()?.drift_links, 0);
    assert!(world.node.agent_log().contains("another bpf file system"));

    // Under the agent: it pins what it has once more, and what was pinned below is the same.
    world.node.hide_pins()?;
    let pin = world.node.bpffs().join("yurt-net/links/yurt_connect4");
    world.wait_for("new pins", || Ok(pin.exists()))?;
    world.expect(10, &[b], false)?;
    agent.kill9()?;
    world.node.hide_pins()?;
    let output = world.node.yurt_net(&["cleanup"])?;
    ensure!(output.status.success());
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(
        told.contains("removed") && told.contains("on cgroup"),
        "{told}"
    );
    let [to, _] = vip(10);
    let tally = client.connect_many(Proto::Tcp, &to, 1)?;
    ensure!(tally.answers.is_empty(), "{tally:?}");
    Ok(())
}

/// What an agent leaves that served one cgroup, was killed, and whose pins another bpf file system hides.
struct LeftOn<'a> {
    world: &'a World,
    flags: Vec<String>,
}

impl<'a> LeftOn<'a> {
    fn new(world: &'a World) -> Self {
        let flags = flags(&CAPACITY);
        Self { world, flags }
    }

    fn start_serving(&self, cgroup: &Path) -> Result<Agent> {
        let flags: Vec<_> = self.flags.iter().map(String::as_str).collect();
        let agent = self.world.node.start_agent_serving(cgroup, &flags)?;
        self.world.wait_ready(&agent)?;
        Ok(agent)
    }

    fn is_client_served(&self) -> Result<bool> {
        let World { a, client, .. } = self.world;
        let [to, _] = vip(10);
        let tally = client.connect_many(Proto::Tcp, &to, 1)?;
        Ok(tally.answers.contains_key(a.name()))
    }

    fn cgroup(&self, cgroup: &Path) -> Result<()> {
        let World { a, node, .. } = self.world;
        node.apply(&self.world.web([a]))?;
        let agent = self.start_serving(cgroup)?;
        ensure!(self.is_client_served()?, "{}", cgroup.display());
        agent.kill9()?;
        node.hide_pins()
    }
}

/// An operator corrects `--cgroup`, and the bpf file system is another: what is left is found wherever it is.
#[test]
fn programs_on_another_cgroup_whose_pins_nobody_sees_decide_nothing_any_more() -> Result<()> {
    let world = World::new()?;
    let World { client, node, .. } = &world;
    let left_on = LeftOn::new(&world);
    let beside = node.cgroup().join("beside");
    fs::create_dir(&beside)?;
    for (before, now) in [
        (client.cgroup(), node.cgroup()),
        (node.cgroup(), client.cgroup()),
        (client.cgroup(), &*beside),
    ] {
        left_on.cgroup(before)?;
        node.apply(&world.manifests([]))?;
        let agent = left_on.start_serving(now)?;
        let case = format!("{}, then {}", before.display(), now.display());
        ensure!(!left_on.is_client_served()?, "{case}");
        agent.kill9()?;
        node.hide_pins()?;
    }
    Ok(())
}

#[test]
fn cleanup_finds_programs_on_another_cgroup_whose_pins_nobody_sees() -> Result<()> {
    let world = World::new()?;
    let World { client, node, .. } = &world;
    let left_on = LeftOn::new(&world);
    left_on.cgroup(client.cgroup())?;
    let output = node.yurt_net(&["cleanup"])?;
    let told = String::from_utf8_lossy(&output.stdout);
    let named = format!("on cgroup {}\n", client.cgroup().display());
    ensure!(output.status.success() && told.contains(&named), "{told}");
    ensure!(!left_on.is_client_served()?, "{told}");
    Ok(())
}

/// Nodes of kind are containers of one machine, each with an agent for its own network namespace.
#[test]
fn programs_of_a_node_in_another_network_namespace_are_left_alone_while_its_agent_is_away()
-> Result<()> {
    let world = World::new()?;
    let inner = world.lab.node("edge-2")?;
    let (client, server) = (inner.pod("client")?, inner.pod("server")?.serve_tcp(8080)?);
    let flags = flags(&CAPACITY);
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let mut manifests = Manifests::new();
    manifests.node(&inner);
    manifests
        .service("web")
        .cluster_ip("10.96.0.10")
        .port(80, 8080)
        .endpoints([&server]);
    inner.apply(&manifests)?;
    let agent = inner.start_agent(&flags)?;
    inner.wait_ready()?;
    agent.kill9()?;
    // Around both nodes: what is not this agent's comes first below.
    let around = inner.cgroup().parent().context("no cgroup is above")?;
    world.node.apply(&world.manifests([]))?;
    let outer = world.node.start_agent_serving(around, &flags)?;
    world.wait_ready(&outer)?;
    outer.kill9()?;
    let output = world.node.yurt_net(&["cleanup"])?;
    ensure!(output.status.success(), "{output:?}");
    let [to, _] = vip(10);
    let tally = client.connect_many(Proto::Tcp, &to, 4)?;
    check(&tally, &[&server], false)
}

/// containerd is stopped, or hangs: what is at the other end of the log's pipe is open, and reads nothing.
#[test]
fn an_agent_whose_log_nobody_reads_serves_and_ends_when_it_is_told() -> Result<()> {
    let world = World::new()?;
    let World { a, b, .. } = &world;
    let log = world.node.bpffs().with_file_name("agent.log");
    let path = CString::new(log.as_os_str().as_encoded_bytes())?;
    // SAFETY: a string that ends in zero.
    ensure!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) } == 0);
    let mut end = fs::File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&log)?;
    while end.write(&[b'x'; 4096]).is_ok() {}
    world.node.apply(&world.web([a]))?;
    let agent = world.start(&CAPACITY, &[])?;
    // Nobody should look for lines there when something fails.
    fs::remove_file(&log)?;
    world.wait_ready(&agent)?;
    world.expect(10, &[a], false)?;
    world.node.apply(&world.web([b]))?;
    world.converges(10, &[b])?;
    assert_eq!(agent.terminate()?.code(), Some(0));
    Ok(())
}

#[test]
fn a_state_directory_that_is_deleted_costs_nothing_and_is_made_again() -> Result<()> {
    let world = World::new()?;
    let World { a, b, c, .. } = &world;
    world.node.apply(&world.web([a, b]))?;
    let agent = world.start_ready(&CAPACITY, &[])?;
    fs::remove_dir_all(world.node.state_dir())?;
    assert!(world.status().is_err());
    world.node.apply(&world.web([b, c]))?;
    world.converges(10, &[b, c])?;
    world.wait_ready(&agent)?;
    assert!(world.node.state_dir().join("agent.sock").exists());
    assert!(world.status()?.degraded.is_empty());
    assert_eq!(agent.terminate()?.code(), Some(0));
    world.start_ready(&CAPACITY, &[])?;
    world.expect(10, &[b, c], false)
}

#[test]
fn the_socket_of_a_dead_agent_is_replaced() -> Result<()> {
    let world = World::new()?;
    world.node.apply(&world.web([&world.a]))?;
    let agent = world.start_ready(&CAPACITY, &[])?;
    agent.kill9()?;
    let socket = world.node.state_dir().join("agent.sock");
    assert!(fs::metadata(&socket)?.file_type().is_socket());
    assert!(world.status().is_err());
    let agent = world.start_ready(&CAPACITY, &[])?;
    assert_eq!(world.status()?.pid, agent.pid());
    // Even where something else lies in its place.
    agent.kill9()?;
    fs::remove_file(&socket)?;
    fs::write(&socket, "not a socket")?;
    let agent = world.start_ready(&CAPACITY, &[])?;
    assert_eq!(world.status()?.pid, agent.pid());
    Ok(())
}

#[test]
fn a_second_agent_is_refused_and_named_and_the_first_goes_on() -> Result<()> {
    let world = World::new()?;
    world.node.apply(&world.web([&world.a]))?;
    let first = world.start_ready(&CAPACITY, &[])?;
    let pins = world.pins()?;
    let second = world.start(&CAPACITY, &[])?;
    assert_eq!(second.wait(Duration::from_secs(60))?.code(), Some(1));
    let log = world.node.agent_log();
    let named = format!("pid {}", first.pid());
    assert!(log.contains(&named), "{named} in {log}");
    let status = world.status().context("the first agent's socket")?;
    assert_eq!(status.pid, first.pid());
    assert_eq!(world.pins()?, pins);
    world.expect(10, &[&world.a], false)
}

/// Whoever dials all the time, by both families.
fn dialling(world: &World) -> Result<Vec<Traffic>> {
    let vips = vip(10);
    let dial = |to: &String| {
        let pause = Duration::from_millis(2);
        world.client.start_traffic(Proto::Tcp, to, 1, pause)
    };
    vips.iter().map(dial).collect()
}

#[test]
fn the_pins_directory_can_go_under_a_running_agent_and_nobody_notices() -> Result<()> {
    let world = World::new()?;
    let World { a, b, .. } = &world;
    world.node.apply(&world.web([a, b]))?;
    let agent = world.start_ready(&CAPACITY, &["--drift-interval", "1"])?;
    let pins = world.pins()?;
    for gone in ["", "links", "v2", "state-v1"] {
        let traffic = dialling(&world)?;
        fs::remove_dir_all(world.node.bpffs().join("yurt-net").join(gone))?;
        world.wait_for("the pins", || Ok(world.pins()? == pins))?;
        for traffic in traffic {
            check(&traffic.stop()?, &[a, b], false).with_context(|| format!("{gone:?} went"))?;
        }
    }
    world.wait_for("the status to say so", || {
        let status = world.status()?;
        Ok(status.ready && status.degraded.is_empty())
    })?;
    // They are the maps and links that are in use: the next agent takes them over.
    agent.kill9()?;
    world.expect(10, &[a, b], false)?;
    world.start_ready(&CAPACITY, &[])?;
    assert!(world.status()?.adopted);
    world.expect(10, &[a, b], false)
}

#[test]
fn a_removed_link_detaches_no_program_while_the_agent_runs() -> Result<()> {
    let world = World::new()?;
    let World { a, b, .. } = &world;
    world.node.apply(&world.web([a, b]))?;
    let _agent = world.start_ready(&CAPACITY, &["--drift-interval", "0"])?;
    fs::remove_dir_all(world.node.bpffs().join("yurt-net"))?;
    std::thread::sleep(Duration::from_millis(300));
    world.expect(10, &[a, b], false)?;
    let status = world.status()?;
    assert!(status.ready, "{status:?}");
    let what: Vec<_> = status.degraded.iter().map(|d| d.what.as_str()).collect();
    assert_eq!(what, ["pins"]);
    Ok(())
}

#[test]
fn what_cannot_be_repaired_is_shown_and_fails_the_probes_until_it_can() -> Result<()> {
    let world = World::new()?;
    let World { a, b, c, .. } = &world;
    world.node.apply(&world.web([a, b]))?;
    let _agent = world.start_ready(&CAPACITY, &["--drift-interval", "1"])?;
    let bpffs = world.node.bpffs().display().to_string();
    let run = |program: &str, arguments: &[&str]| -> Result<()> {
        let output = std::process::Command::new(program)
            .args(arguments)
            .output()?;
        ensure!(
            output.status.success(),
            "{program} {arguments:?}: {output:?}"
        );
        Ok(())
    };
    run("mount", &["-t", "tmpfs", "tmpfs", &bpffs])?;
    let shown = world.wait_for("the failure", || Ok(!world.status()?.ready));
    let probes = [
        world.node.yurt_net(&["status", "--wait", "0s"]),
        world.node.yurt_net(&["check"]),
    ];
    let status = world.status();
    // Tables are applied all the same.
    world.node.apply(&world.web([b, c]))?;
    let served = world.converges(10, &[b, c]);
    run("umount", &[&bpffs])?;
    shown?;
    served?;
    for probe in probes {
        assert_eq!(probe?.status.code(), Some(1));
    }
    let status = status?;
    let reasons: Vec<_> = status.degraded.iter().map(|d| &*d.what).collect();
    assert!(reasons.contains(&"repair"), "{:?}", status.degraded);
    world.wait_for("the repair", || Ok(world.status()?.ready))?;
    Ok(())
}

#[test]
fn programs_that_are_detached_are_told_at_once() -> Result<()> {
    let world = World::new()?;
    let World { a, b, .. } = &world;
    world.node.apply(&world.web([a, b]))?;
    let _agent = world.start_ready(&CAPACITY, &["--drift-interval", "0"])?;
    let link = world.node.bpffs().join("yurt-net/links/yurt_connect4");
    Object::open(&link)?.detach()?;
    let status = world.status()?;
    assert!(!status.ready, "{status:?}");
    assert!(
        matches!(&status.self_test, SelfTest::Failed { reason } if reason.contains("yurt_connect4")),
        "{status:?}"
    );
    let check = world.node.yurt_net(&["check"])?;
    assert_eq!(check.status.code(), Some(1));
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(said.contains("FAILED   self-test"), "{said}");
    Ok(())
}

#[test]
fn a_second_agent_is_refused_whatever_it_shares_with_the_first() -> Result<()> {
    let world = World::new()?;
    let World { a, b, .. } = &world;
    world.node.apply(&world.web([a, b]))?;
    let first = world.start_ready(&CAPACITY, &["--drift-interval", "1"])?;
    let scratch = tempfile::tempdir()?;
    let place = [
        world.node.cgroup().to_owned(),
        world.node.bpffs(),
        world.node.state_dir(),
    ];
    let elsewhere = [
        place[0].join("elsewhere"),
        place[1].join("elsewhere"),
        scratch.path().to_owned(),
    ];
    for dir in &elsewhere[..2] {
        fs::create_dir(dir)?;
    }
    // The directory that an earlier version locked is made anew between the first and the second.
    fs::remove_dir_all(world.node.bpffs().join("yurt-net"))?;
    let program = agent_program()?.display().to_string();
    let source = format!("file:{}", world.node.manifests_dir().display());
    let host = world.node.host()?;
    for (shared, is_shared) in [
        ("the cgroup", [true, false, false]),
        ("the bpf file system", [false, true, false]),
        ("the state directory", [false, false, true]),
        ("the network namespace", [false, false, false]),
    ] {
        let mut arguments = vec!["run", "--node", world.node.name(), "--source", &source];
        let dirs = is_shared.iter().zip(place.iter().zip(&elsewhere));
        let dirs = dirs.map(|(is_shared, (same, other))| if *is_shared { same } else { other });
        let dirs: Vec<_> = dirs.map(|dir| dir.display().to_string()).collect();
        for (flag, dir) in ["--cgroup", "--bpffs", "--state-dir"]
            .into_iter()
            .zip(&dirs)
        {
            arguments.extend([flag, dir]);
        }
        let output = host.output(&program, &arguments)?;
        let said = [&*output.stdout, &*output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(1), "{shared}: {said}");
        let pid = first.pid();
        let named = format!("{shared} is in use by another yurt-net (pid {pid})");
        assert!(said.contains(&named), "{named}: {said}");
    }
    assert!(first.is_running());
    world.expect(10, &[a, b], false)?;
    // With the process goes all that it has claimed.
    first.kill9()?;
    world.start_ready(&CAPACITY, &[])?;
    world.expect(10, &[a, b], false)
}
