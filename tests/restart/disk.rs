//! Disks that are absent, full, read-only or something else, at the agent's start and under it: alarms, and no outage.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::ptr;

use anyhow::{Context as _, Result, ensure};
use yurt_net::ledger::store::LedgerDirs;
use yurt_net::observe::status::Status;
use yurt_net::source::preferred::Origin;
use yurt_net_tests::lab::{Lab, Proto};

use crate::cloud::{followed, goes_over_to_live_data, start_ready};
use crate::world::{CAPACITY, World, vip};

/// What may be amiss with a state directory.
#[derive(Clone, Copy, Debug)]
enum Accident {
    /// It is not there, and cannot be made.
    Absent,
    Full,
    ReadOnly,
    /// A file lies in its place.
    File,
}

impl Accident {
    /// Lets it happen to a directory that is as it should be.
    fn happen(self, dir: &Path) -> Result<()> {
        match self {
            Self::Absent => {
                fs::remove_dir_all(dir)?;
                symlink("/no/such/directory", dir)?;
            }
            Self::Full => {
                // A dead agent's socket would leave its name to the next one.
                let _ = fs::remove_file(dir.join("agent.sock"));
                // Neither a byte nor a name fits: a file system without room for data may take a socket still.
                let written = fs::write(dir.join("what-fills-it"), vec![1; 1 << 20]);
                ensure!(written.is_err(), "it was not filled");
                let names = 0..1000;
                let taken = names.map(|n| fs::write(dir.join(n.to_string()), ""));
                ensure!(taken.filter(Result::is_err).count() > 0, "names are left");
            }
            Self::ReadOnly => mount(dir, libc::MS_REMOUNT | libc::MS_RDONLY, SMALL)?,
            Self::File => {
                fs::remove_dir_all(dir)?;
                fs::write(dir, "not a directory")?;
            }
        }
        Ok(())
    }
}

/// A file system that is full soon.
const SMALL: &str = "size=128k,nr_inodes=64";

/// A world whose node has its state directory on a small file system of its own, where that matters.
fn world(accident: Accident) -> Result<World> {
    let world = World::new()?;
    if matches!(accident, Accident::Full | Accident::ReadOnly) {
        mount(&world.node.state_dir(), 0, SMALL)?;
    }
    Ok(world)
}

/// `status` finds the agent, and says what is amiss.
fn is_told(world: &World) -> Result<Status> {
    let status = world.status()?;
    let whats: Vec<&str> = status.degraded.iter().map(|fault| &*fault.what).collect();
    for what in ["socket", "state"] {
        ensure!(
            whats.contains(&what),
            "no word of {what} in {:?}",
            status.degraded
        );
    }
    ensure!(status.ready, "{:?}", status.degraded);
    ensure!(memory(world).join("agent.sock").exists());
    Ok(status)
}

/// Where an agent keeps in memory what belongs to its state directory.
fn memory(world: &World) -> PathBuf {
    let (state_dir, run_dir) = (world.node.state_dir(), world.node.run_dir());
    LedgerDirs { state_dir, run_dir }.in_memory()
}

#[test]
fn two_agents_with_one_run_directory_and_no_disk_answer_each_for_itself() -> Result<()> {
    let lab = Lab::new()?;
    let shared = lab.dir().join("shared");
    fs::create_dir(&shared)?;
    let nodes = [lab.node("edge-1")?, lab.node("edge-2")?];
    let mut agents = Vec::new();
    for node in &nodes {
        Accident::File.happen(&node.state_dir())?;
        symlink(&shared, node.run_dir())?;
        agents.push(node.start_agent(&[])?);
        node.wait_ready()?;
    }
    for _ in 0..3 {
        for (node, agent) in nodes.iter().zip(&agents) {
            let status = node.status()?;
            ensure!(status.pid == agent.pid(), "{} answers", status.node);
        }
    }
    // Neither has taken the other's away.
    for node in &nodes {
        let log = node.agent_log();
        ensure!(!log.contains("agent.sock was removed"), "{log}");
    }
    Ok(())
}

fn starts_and_serves_all_the_same(accident: Accident) -> Result<()> {
    let world = world(accident)?;
    accident.happen(&world.node.state_dir())?;
    let cloud = world.lab.cloud()?;
    cloud.apply(&world.web([&world.a, &world.b]))?;
    cloud.start()?;
    let _agent = start_ready(&world, &cloud)?;
    world.expect(10, &[&world.a, &world.b], false)?;
    is_told(&world)?;
    let alarm = |status: &Status| status.checkpoint.last_error.is_some();
    let status = world.node.wait_for_status("an alarm", alarm)?;
    let mut whats = status.degraded.iter().map(|fault| &*fault.what);
    ensure!(
        whats.any(|what| what == "checkpoint"),
        "{:?}",
        status.degraded
    );
    ensure!(world.node.agent_log().contains("checkpoint: not saved"));
    cloud.apply(&world.web([&world.c]))?;
    world.converges(10, &[&world.c])
}

#[test]
fn an_agent_whose_state_directory_is_absent_starts_and_serves() -> Result<()> {
    starts_and_serves_all_the_same(Accident::Absent)
}

#[test]
fn an_agent_whose_state_directory_is_full_starts_and_serves() -> Result<()> {
    starts_and_serves_all_the_same(Accident::Full)
}

#[test]
fn an_agent_whose_state_directory_is_read_only_starts_and_serves() -> Result<()> {
    starts_and_serves_all_the_same(Accident::ReadOnly)
}

#[test]
fn an_agent_whose_state_directory_is_a_file_starts_and_serves() -> Result<()> {
    starts_and_serves_all_the_same(Accident::File)
}

/// The disk was as it should be, then it was not, and then the node was rebooted without the cloud.
fn a_reboot_is_survived(accident: Accident) -> Result<()> {
    let world = world(accident)?;
    let (cloud, agent) = followed(&world)?;
    agent.kill9()?;
    cloud.kill9()?;
    accident.happen(&world.node.state_dir())?;
    world.node.lose_pins()?;
    let _agent = start_ready(&world, &cloud)?;
    world.expect(10, &[&world.a, &world.b], false)?;
    let status = is_told(&world)?;
    ensure!(status.source.provenance == Origin::Checkpoint);
    goes_over_to_live_data(&world, &cloud)
}

#[test]
fn a_node_rebooted_with_a_full_disk_serves_from_its_checkpoint() -> Result<()> {
    a_reboot_is_survived(Accident::Full)
}

#[test]
fn a_node_rebooted_with_a_read_only_disk_serves_from_its_checkpoint() -> Result<()> {
    a_reboot_is_survived(Accident::ReadOnly)
}

/// The disk fails under an agent, and the operator wants the way back.
fn cleanup_removes_all_but_what_the_disk_keeps(accident: Accident) -> Result<()> {
    let world = world(accident)?;
    world.node.apply(&world.web([&world.a]))?;
    let agent = world.start_ready(&CAPACITY, &["--guard", "enforce"])?;
    world.expect(10, &[&world.a], false)?;
    let settings = world.node.state_dir().join("guard.json");
    ensure!(settings.exists());
    agent.kill9()?;
    accident.happen(&world.node.state_dir())?;
    let output = world.node.yurt_net(&["cleanup"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!world.node.bpffs().join("yurt-net").exists(), "{said}");
    // Settings that stay are told: a plugin would follow them.
    ensure!(output.status.success() != settings.exists(), "{said}");
    ensure!(
        output.status.success() != said.contains("guard.json"),
        "{said}"
    );
    // The kernel detaches a moment after the last reference has gone.
    let [virtual_address, _] = vip(10);
    world.wait_for("the end of translation", || {
        let tally = world.client.connect_many(Proto::Tcp, &virtual_address, 1)?;
        Ok(tally.answers.is_empty())
    })
}

#[test]
fn cleanup_on_a_read_only_disk_removes_every_pin_and_says_what_stays() -> Result<()> {
    cleanup_removes_all_but_what_the_disk_keeps(Accident::ReadOnly)
}

#[test]
fn cleanup_on_a_full_disk_removes_everything() -> Result<()> {
    cleanup_removes_all_but_what_the_disk_keeps(Accident::Full)
}

#[test]
fn cleanup_beside_a_file_in_the_state_directorys_place_removes_everything() -> Result<()> {
    cleanup_removes_all_but_what_the_disk_keeps(Accident::File)
}

#[test]
fn an_agent_that_can_make_its_socket_nowhere_serves_without_one_until_it_can() -> Result<()> {
    let world = World::new()?;
    let run = world.node.run_dir();
    Accident::File.happen(&world.node.state_dir())?;
    fs::write(&run, "not a directory")?;
    world.node.apply(&world.web([&world.a]))?;
    let agent = world.start(&CAPACITY, &[])?;
    world.converges(10, &[&world.a])?;
    ensure!(world.status().is_err(), "who has answered?");
    ensure!(world.node.agent_log().contains("find no agent"));
    let health = health(&world)?;
    ensure!(
        health.starts_with("HTTP/1.1 200 ") && health.contains("socket"),
        "{health}"
    );
    fs::remove_file(&run)?;
    world.wait_ready(&agent)?;
    is_told(&world)?;
    Ok(())
}

#[test]
fn an_agent_that_may_write_no_file_any_more_raises_an_alarm_and_serves() -> Result<()> {
    let world = World::new()?;
    let (cloud, agent) = followed(&world)?;
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let pid = agent.pid().cast_signed();
    // SAFETY: the limit is valid for reads, and the old one is not asked for.
    let set = unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &raw const none, ptr::null_mut()) };
    ensure!(set == 0, io::Error::last_os_error());
    cloud.apply(&world.web([&world.c]))?;
    world.converges(10, &[&world.c])?;
    let alarm = |status: &Status| status.checkpoint.last_error.is_some();
    let status = world.node.wait_for_status("an alarm", alarm)?;
    let error = status.checkpoint.last_error.unwrap_or_default();
    ensure!(error.contains("File too large"), "{error}");
    ensure!(agent.is_running() && status.ready);
    Ok(())
}

/// How a manifest becomes unreadable.
#[derive(Clone, Copy, Debug)]
enum Unreadable {
    Broken,
    Dangling,
    /// The whole directory is gone, and with it what the source's name leads to.
    Gone,
}

/// The agent's manifests become unreadable while it runs, then it is killed and started, also by a reboot.
fn manifests_are_kept(how: Unreadable) -> Result<()> {
    let world = World::new()?;
    let World { a, b, .. } = &world;
    let manifests = world.node.manifests_dir();
    let other = manifests.join("other.yaml");
    let away = manifests.with_file_name("away");
    world.manifests([("other", 11, vec![b])]).write_to(&other)?;
    world.node.apply(&world.web([a]))?;
    let mut agent = world.start_ready(&CAPACITY, &[])?;
    world.is_remembered()?;
    let (is_rejection, mend): (_, Box<dyn Fn() -> Result<()>>) = match how {
        Unreadable::Broken => {
            replace(&other, |at| fs::write(at, "x: ["))?;
            (true, Box::new(|| Ok(fs::remove_file(&other)?)))
        }
        Unreadable::Dangling => {
            replace(&other, |at| symlink("/nowhere", at))?;
            (true, Box::new(|| Ok(fs::remove_file(&other)?)))
        }
        Unreadable::Gone => {
            fs::rename(&manifests, &away)?;
            (
                false,
                Box::new(|| {
                    fs::remove_file(away.join("other.yaml"))?;
                    Ok(fs::rename(&away, &manifests)?)
                }),
            )
        }
    };
    let is_told = |status: &Status| {
        let named = if is_rejection {
            "other.yaml"
        } else {
            "manifests"
        };
        let mut faults = status.degraded.iter();
        status.ready && faults.any(|it| it.what == "manifests" && it.reason.contains(named))
    };
    world
        .node
        .wait_for_status("a word of the manifest", is_told)?;
    for is_reboot in [false, true] {
        agent.kill9()?;
        if is_reboot {
            world.node.lose_pins()?;
        }
        agent = world.start_ready(&CAPACITY, &[])?;
        world.expect(10, &[a], false)?;
        world.expect(11, &[b], false)?;
        let status = world.status()?;
        ensure!(
            is_told(&status),
            "reboot {is_reboot}: {:?}",
            status.degraded
        );
        ensure!(!is_rejection || !status.rejections.is_empty());
    }
    // What is absent is gone.
    mend()?;
    let is_whole = |status: &Status| status.degraded.is_empty();
    world.node.wait_for_status("nothing amiss", is_whole)?;
    let [gone, _] = vip(11);
    world.wait_for("the end of the Service", || {
        let tally = world.client.connect_many(Proto::Tcp, &gone, 1)?;
        Ok(tally.error("ECONNREFUSED") == 1)
    })?;
    world.expect(10, &[a], false)
}

/// At once, as a writer should.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let new = path.with_extension("new");
    make(&new)?;
    Ok(fs::rename(new, path)?)
}

#[test]
fn a_manifest_that_is_broken_when_the_agent_is_killed_keeps_its_services() -> Result<()> {
    manifests_are_kept(Unreadable::Broken)
}

#[test]
fn a_manifest_that_cannot_be_opened_when_the_agent_is_killed_keeps_its_services() -> Result<()> {
    manifests_are_kept(Unreadable::Dangling)
}

#[test]
fn manifests_whose_directory_is_gone_when_the_agent_is_killed_keep_their_services() -> Result<()> {
    manifests_are_kept(Unreadable::Gone)
}

/// What a probe gets.
pub(crate) fn health(world: &World) -> Result<String> {
    let exchange = || -> io::Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:10249")?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    Ok(world.node.netns().run(exchange)??)
}

/// A file system of its own, in the lab's mount namespace, over a directory of a node.
fn mount(at: &Path, flags: libc::c_ulong, options: &str) -> Result<()> {
    let at = CString::new(at.as_os_str().as_encoded_bytes())?;
    let options = CString::new(options)?;
    let kind = c"tmpfs".as_ptr();
    // SAFETY: all strings end in zero and outlive the call.
    let result = unsafe { libc::mount(kind, at.as_ptr(), kind, flags, options.as_ptr().cast()) };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("mount");
    }
    Ok(())
}
