//! Disks that do not answer: whoever asks one waits until it does. At the agent's start, and under it.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use yurt_net::observe::status::Status;
use yurt_net::source::preferred::Origin;
use yurt_net_tests::lab::Agent;

use crate::cloud::{followed, start_ready};
use crate::disk::health;
use crate::world::{CAPACITY, World};

/// A file system over a directory whose server says no word but its first, as long as this lives. That one lets several
/// processes wait at once, each of which can be killed.
struct Silence<'a> {
    at: &'a Path,
    /// Without it the kernel answers in the server's place, with errors.
    server: Option<File>,
}

impl<'a> Silence<'a> {
    fn over(at: &'a Path) -> Result<Self> {
        let server = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let server = server.context("/dev/fuse")?;
        let fd = server.as_raw_fd();
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
        mount(at, &options)?;
        let mut silence = Self { at, server: None };
        greet(&server)?;
        silence.server = Some(server);
        Ok(silence)
    }
}

/// Answers the kernel's greeting, `FUSE_INIT` of include/uapi/linux/fuse.h.
fn greet(mut server: &File) -> Result<()> {
    const HEADER: usize = 16;
    const FUSE_PARALLEL_DIROPS: u32 = 1 << 18;
    let mut request = vec![0; 1 << 16];
    let length = server.read(&mut request)?;
    ensure!(length >= HEADER, "a greeting of {length} bytes");
    let unique = &request[8..16];
    let mut words = [0u32; 16];
    // Version, flags, what fits into a write.
    (words[0], words[1], words[3], words[5]) = (7, 31, FUSE_PARALLEL_DIROPS, 4096);
    let length = u32::try_from(HEADER + size_of_val(&words))?;
    let mut answer = [length.to_ne_bytes(), [0; 4]].concat();
    answer.extend_from_slice(unique);
    answer.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    server.write_all(&answer)?;
    Ok(())
}

fn mount(at: &Path, options: &str) -> Result<()> {
    let at = CString::new(at.as_os_str().as_encoded_bytes())?;
    let options = CString::new(options)?;
    let kind = c"fuse".as_ptr();
    // SAFETY: all strings end in zero and outlive the call.
    let result = unsafe { libc::mount(kind, at.as_ptr(), kind, 0, options.as_ptr().cast()) };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("mount");
    }
    Ok(())
}

/// Takes it away again; whoever is in it may stay.
fn unmount(at: &Path) -> Result<()> {
    let at = CString::new(at.as_os_str().as_encoded_bytes())?;
    // SAFETY: the string ends in zero and outlives the call.
    let result = unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("unmount");
    }
    Ok(())
}

impl Drop for Silence<'_> {
    /// What lies below is there again, and who waits gets an error.
    fn drop(&mut self) {
        if let Err(error) = unmount(self.at) {
            eprintln!("{}: {error:#}", self.at.display());
        }
        self.server = None;
    }
}

fn is_told(status: &Status, what: &str) -> bool {
    let mut faults = status.degraded.iter();
    faults.any(|fault| fault.what == what && fault.reason.contains("does not answer"))
}

/// It has all that it should have, where it should be.
fn is_well(world: &World) -> Result<()> {
    let is_well = |status: &Status| status.degraded.is_empty() && status.checkpoint.writes > 0;
    world.node.wait_for_status("a disk that answers", is_well)?;
    ensure!(world.node.state_dir().join("agent.sock").exists());
    Ok(())
}

#[test]
fn an_agent_whose_state_directory_does_not_answer_starts_follows_its_source_and_says_so()
-> Result<()> {
    let world = World::new()?;
    let (cloud, agent) = followed(&world)?;
    agent.kill9()?;
    let state_dir = world.node.state_dir();
    let silence = Silence::over(&state_dir)?;
    let _agent = start_ready(&world, &cloud)?;
    let status = world.status()?;
    ensure!(is_told(&status, "state"), "{:?}", status.degraded);
    ensure!(status.source.provenance == Origin::Live && status.adopted);
    cloud.apply(&world.web([&world.c]))?;
    world.converges(10, &[&world.c])?;
    drop(silence);
    is_well(&world)
}

#[test]
fn a_node_that_was_rebooted_offline_serves_from_its_checkpoint_once_the_disk_answers() -> Result<()>
{
    let world = World::new()?;
    let (cloud, agent) = followed(&world)?;
    world.loses_power(&agent, &cloud)?;
    let state_dir = world.node.state_dir();
    let silence = Silence::over(&state_dir)?;
    let agent = world.start_from(&cloud.source(), &CAPACITY, &[])?;
    let is_up = |status: &Status| status.pid == agent.pid() && is_told(status, "state");
    let status = world
        .node
        .wait_for_status("an agent that says why", is_up)?;
    ensure!(!status.ready && status.source.provenance == Origin::None);
    drop(silence);
    world.wait_ready(&agent)?;
    world.is_from_checkpoint()?;
    world.expect(10, &[&world.a, &world.b], false)
}

#[test]
fn an_agent_whose_state_directory_falls_silent_serves_on_is_asked_and_ends_when_it_is_told()
-> Result<()> {
    let world = World::new()?;
    let (cloud, agent) = followed(&world)?;
    let state_dir = world.node.state_dir();
    let silence = Silence::over(&state_dir)?;
    // A process that looks for the same name waits for the agent's own look, and cannot be killed: so not by `status`.
    world.wait_for("a word of it", || {
        let health = health(&world)?;
        ensure!(health.starts_with("HTTP/1.1 200 "), "{health}");
        Ok(health.contains("state: ") && health.contains("does not answer"))
    })?;
    cloud.apply(&world.web([&world.c]))?;
    world.converges(10, &[&world.c])?;
    // It would wait for its last save for ever.
    agent.terminate()?;
    let _next = start_ready(&world, &cloud)?;
    drop(silence);
    is_well(&world)
}

/// The agent of this world follows manifests that do not answer, and says so.
fn is_told_of_manifests(world: &World, agent: &Agent) -> Result<()> {
    let is_so =
        |status: &Status| status.pid == agent.pid() && status.ready && is_told(status, "manifests");
    world
        .node
        .wait_for_status("a word of the manifests", is_so)?;
    world.expect(10, &[&world.a], false)
}

#[test]
fn manifests_on_a_disk_that_does_not_answer_stay_in_force_until_it_does() -> Result<()> {
    let world = World::new()?;
    world.node.apply(&world.web([&world.a]))?;
    let agent = world.start_ready(&CAPACITY, &[])?;
    world.is_remembered()?;
    let manifests = world.node.manifests_dir();
    let silence = Silence::over(&manifests)?;
    is_told_of_manifests(&world, &agent)?;
    // What is adopted serves as well, and the same agent or the next one reads on.
    agent.kill9()?;
    let agent = world.start(&CAPACITY, &[])?;
    is_told_of_manifests(&world, &agent)?;
    drop(silence);
    world.node.apply(&world.web([&world.b]))?;
    world.converges(10, &[&world.b])?;
    is_well(&world)
}

#[test]
fn an_agent_whose_cni_directory_does_not_answer_serves_on_and_says_so() -> Result<()> {
    let world = World::new()?;
    world.node.apply(&world.web([&world.a]))?;
    let [conf, bin] = ["net.d", "plugins"].map(|name| world.lab.dir().join(name));
    fs::create_dir(&conf)?;
    let flags = [
        "--cni=install".to_owned(),
        format!("--cni-conf-dir={}", conf.display()),
        format!("--cni-bin-dir={}", bin.display()),
    ];
    let silence = Silence::over(&conf)?;
    let _agent = world.start_ready(&CAPACITY, &flags.each_ref().map(String::as_str))?;
    let is_silent = |status: &Status| {
        let mut alarms = status.retention.alarms.iter();
        alarms.any(|alarm| alarm.starts_with("CNI: ") && alarm.contains("does not answer"))
    };
    let node = &world.node;
    node.wait_for_status("a word of the CNI directory", is_silent)?;
    world.expect(10, &[&world.a], false)?;
    node.apply(&world.web([&world.b]))?;
    world.converges(10, &[&world.b])?;
    drop(silence);
    node.wait_for_status("a directory that answers", |status| !is_silent(status))?;
    Ok(())
}
