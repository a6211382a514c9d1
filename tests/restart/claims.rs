//! Two agents that would use the same thing: whatever their namespaces, and whenever it comes to be the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use anyhow::{Context as _, Result, ensure};
use yurt_net_tests::lab::agent_program;

use crate::world::{CAPACITY, World};

/// Where an agent has its things, in the order of [`FLAGS`].
type Dirs = [PathBuf; 4];

const FLAGS: [&str; 4] = ["--cgroup", "--bpffs", "--state-dir", "--run-dir"];

fn of_the_first(world: &World) -> Dirs {
    let node = &world.node;
    [
        node.cgroup().to_owned(),
        node.bpffs(),
        node.state_dir(),
        node.run_dir(),
    ]
}

/// Places that the node's agent has nothing to do with.
fn elsewhere(world: &World, scratch: &Path) -> Result<Dirs> {
    let [cgroup, bpffs, ..] = of_the_first(world).map(|dir| dir.join("elsewhere"));
    for dir in [&cgroup, &bpffs] {
        fs::create_dir(dir)?;
    }
    Ok([cgroup, bpffs, scratch.join("state"), scratch.join("run")])
}

fn run(world: &World, dirs: &Dirs, manifests: &Path) -> Result<Vec<String>> {
    let source = format!("file:{}", manifests.display());
    let words = ["run", "--node", world.node.name(), "--source", &source];
    let flags = FLAGS.into_iter().zip(dirs);
    let flags = flags.flat_map(|(flag, dir)| [flag.to_owned(), dir.display().to_string()]);
    let words = words.into_iter().map(str::to_owned).chain(flags);
    let program = agent_program()?.display().to_string();
    Ok([program].into_iter().chain(words).collect())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

fn mount(arguments: &[&str]) -> Result<()> {
    let output = Command::new(arguments[0]).args(&arguments[1..]).output()?;
    ensure!(output.status.success(), "{arguments:?}: {output:?}");
    Ok(())
}

/// An agent that ends with the test, be it by a panic.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The files of a directory.
fn contents(dir: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let files = entries.map(|entry| {
        let path = entry?.path();
        let bytes = fs::read(&path)?;
        Ok((path, bytes))
    });
    files.collect()
}

#[test]
fn a_second_container_with_the_run_directory_or_the_state_of_the_first_is_refused() -> Result<()> {
    let world = World::new()?;
    let World { a, .. } = &world;
    world.node.apply(&world.web([a]))?;
    let first = world.start_ready(&CAPACITY, &[])?;
    let scratch = tempfile::tempdir()?;
    let [cgroup, bpffs, ..] = elsewhere(&world, scratch.path())?;
    let host = world.node.host()?;
    let (state, run_dir) = (world.node.state_dir(), world.node.run_dir());
    for (own, shared) in [
        (&state, "the ledger's run directory"),
        (&run_dir, "the state directory"),
    ] {
        // Both have the same paths, as two Pods of one DaemonSet have.
        let dirs = [
            cgroup.clone(),
            bpffs.clone(),
            state.clone(),
            run_dir.clone(),
        ];
        let words = run(&world, &dirs, &world.node.manifests_dir())?;
        let own = own.display();
        let script = format!("mount -t tmpfs tmpfs {own} && exec \"$@\"");
        let mut arguments = vec![
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            &script,
            "sh",
        ];
        arguments.extend(words.iter().map(String::as_str));
        let output = host.output("unshare", &arguments)?;
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{shared}: {said}");
        let pid = first.pid();
        let named =
            format!("{shared} is in use by another yurt-net (pid {pid} in another pid namespace)");
        assert!(said.contains(&named), "{named}: {said}");
    }
    assert!(first.is_running());
    world.expect(10, &[a], false)
}

#[test]
fn a_state_directory_that_is_made_anew_is_the_running_agents_again() -> Result<()> {
    let world = World::new()?;
    let World { a, .. } = &world;
    world.node.apply(&world.web([a]))?;
    let first = world.start_ready(&CAPACITY, &["--drift-interval", "1"])?;
    let scratch = tempfile::tempdir()?;
    let [cgroup, bpffs, _, run_dir] = elsewhere(&world, scratch.path())?;
    let state = world.node.state_dir();
    let dirs = [cgroup, bpffs, state.clone(), run_dir];
    let words = run(&world, &dirs, &world.node.manifests_dir())?;
    let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
    let host = world.node.host()?;
    fs::remove_dir_all(&state)?;
    // Whatever else is refused, it is by the network namespace, which is named last.
    let named = format!(
        "the state directory is in use by another yurt-net (pid {})",
        first.pid()
    );
    world.wait_for("the new directory to be claimed", || {
        let output = host.output(&words[0], &arguments)?;
        ensure!(output.status.code() == Some(1), "{}", said(&output));
        Ok(said(&output).contains(&named))
    })?;
    world.wait_for("the status", || Ok(world.status().is_ok()))?;
    let faults = world.status()?.degraded;
    assert!(
        faults.iter().all(|fault| fault.what != "claim"),
        "{faults:?}"
    );
    world.expect(10, &[a], false)
}

#[test]
fn a_state_directory_of_another_agent_is_left_to_it_and_named() -> Result<()> {
    let world = World::new()?;
    let World { a, b, .. } = &world;
    world.node.apply(&world.web([a]))?;
    let scratch = tempfile::tempdir()?;
    let manifests = scratch.path().join("manifests");
    fs::create_dir(&manifests)?;
    world.web([b]).write_to(&manifests.join("web.yaml"))?;
    let dirs = elsewhere(&world, scratch.path())?;
    let words = run(&world, &dirs, &manifests)?;
    let mut command = world.node.host()?.command("unshare")?;
    let log = fs::File::create(scratch.path().join("log"))?;
    command.arg("--net").args(&words);
    let other = Ends(command.stdout(log.try_clone()?).stderr(log).spawn()?);
    let snapshot = dirs[2].join("snapshot");
    world.wait_for("the other agent's checkpoint", || {
        Ok(snapshot.join("checkpoint").exists())
    })?;

    // An agent that guards no Pods takes away the settings that plugins guard new ones by: its own.
    let settings = dirs[2].join("guard.json");
    world.wait_for("the other agent's settings for plugins", || {
        Ok(settings.exists())
    })?;
    let guards_none = ["--drift-interval", "1", "--guard", "off"];
    let first = world.start_ready(&CAPACITY, &guards_none)?;
    let theirs = contents(&snapshot)?;
    let state = world.node.state_dir().display().to_string();
    mount(&["mount", "--bind", &dirs[2].display().to_string(), &state])?;
    let named = format!(
        "the state directory is in use by another yurt-net (pid {})",
        other.0.id()
    );
    let told = world.wait_for("the conflict to be told", || {
        Ok(world.node.agent_log().contains(&named))
    });
    // It serves on, and what it would save goes nowhere, at its end neither.
    let served = world
        .node
        .apply(&world.web([a, b]))
        .and_then(|()| world.converges(10, &[a, b]));
    let has_settings = settings.exists();
    let ended = first.terminate();
    let is_left = contents(&snapshot).map(|now| now == theirs);
    mount(&["umount", &state])?;
    told?;
    served?;
    assert_eq!(ended?.code(), Some(0));
    assert!(is_left?, "the other agent's checkpoint was written to");
    assert!(
        has_settings,
        "the other agent's settings for plugins were taken away"
    );

    world.start_ready(&CAPACITY, &["--drift-interval", "1"])?;
    let faults = world.status()?.degraded;
    assert!(
        faults.iter().all(|fault| fault.what != "claim"),
        "{faults:?}"
    );
    world.expect(10, &[a, b], false)
}
