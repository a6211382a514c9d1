//! Plugins are run on the node before anybody relies on them: in the file system of its first process, whatever the
//! agent's own is.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use yurt_net::cni::install::Directories;
use yurt_net::cni::install::files::Cni;
use yurt_net::cni::install::run::Host;

const PATIENCE: Duration = Duration::from_secs(60);
/// Names the directory of the test, where it runs once more as a process of a container.
const INSIDE: &str = "YURT_TEST_ON_THE_NODE";
/// Both plugins, asked for their versions.
const VERSIONS: [&str; 2] = ["yurt-ipam VERSION", "yurt-cni VERSION"];

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// A program that nothing has to load, so that it runs in an empty directory.
fn compile(to: &Path) -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("retain/witness.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut rustc = Command::new(rustc);
    rustc.args(["--edition=2024", "-Ctarget-feature=+crt-static", "-o"]);
    run(rustc.arg(to).arg(source)).map(drop)
}

#[test]
fn a_plugin_is_run_on_the_node_before_a_configuration_names_it_and_again_after_an_upgrade()
-> Result<()> {
    if let Some(dir) = std::env::var_os(INSIDE) {
        return on_the_node(Path::new(&dir));
    }
    let dir = tempfile::tempdir()?;
    let (node, witness) = (dir.path().join("node"), dir.path().join("witness"));
    fs::create_dir(&node)?;
    compile(&witness)?;
    fs::copy(&witness, node.join("init"))?;
    // A namespace of processes as a node's, whose first one has a root of its own; this test is a process of it, with
    // another.
    let script = "mount -t proc proc /proc
        (\"$1\" --exact \"$2\" --nocapture; echo $? > $3/done) &
        exec chroot $3 /init";
    let name = "host::a_plugin_is_run_on_the_node_before_a_configuration_names_it_and_again_after_an_upgrade";
    let mut again = Command::new("unshare");
    again.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c"]);
    again.arg(script).arg("sh").arg(std::env::current_exe()?);
    again.arg(name).arg(&node).env(INSIDE, dir.path());
    let said = run(&mut again)?;
    ensure!(said.contains("1 passed"), "{said}");
    Ok(())
}

fn on_the_node(dir: &Path) -> Result<()> {
    let started = Instant::now();
    let host = Host::at("/proc/1/root");
    while Host::find() != host {
        ensure!(started.elapsed() < PATIENCE, "the node has the same root");
        thread::sleep(Duration::from_millis(5));
    }
    let cni = Cni {
        conf_dir: dir.join("net.d"),
        bin_dir: dir.join("bin"),
        program: dir.join("program"),
        host,
    };
    let seen = || -> Vec<String> {
        let path = dir.join("node/seen");
        let seen = fs::read_to_string(&path).unwrap_or_default();
        let _none = fs::remove_file(path);
        seen.lines().map(str::to_owned).collect()
    };
    fs::create_dir(&cni.conf_dir)?;
    let config = cni.conf_dir.join("10-edge.conflist");
    let before = json!({"name": "edge", "cniVersion": "1.0.0", "plugins": [{
        "type": "bridge", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]]},
    }]});
    fs::write(&config, before.to_string())?;
    let becomes = |text: &[u8]| -> Result<()> {
        let mut file = File::create(&cni.program)?;
        file.write_all(text)?;
        Ok(file.set_permissions(fs::Permissions::from_mode(0o755))?)
    };

    // It runs where the agent is, and not on the node, where there is no shell.
    let script =
        b"#!/bin/sh\necho '{\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}'\n";
    becomes(script)?;
    ensure!(run(&mut Command::new(&cni.program))?.contains("1.1.0"));
    let error = format!("{:#}", anyhow::Error::from(refused(cni.install_plugins())?));
    ensure!(error.contains("No such file"), "{error}");
    ensure!(!cni.bin_dir.join("yurt-cni").exists() && seen().is_empty());

    // What does is asked as each of the plugins: where it comes from, and where runtimes will find it.
    let program = fs::read(dir.join("witness"))?;
    becomes(&program)?;
    ensure!(cni.install_plugins()?);
    ensure!(seen() == [VERSIONS, VERSIONS].concat());
    let directories = Directories {
        data_dir: "/var/lib/yurt-net".to_owned(),
        run_dir: "/run/yurt-net".to_owned(),
    };
    ensure!(cni.install_config(&directories)?.has_written);
    ensure!(seen() == ["yurt-ipam STATUS", "yurt-cni STATUS"]);
    let named = fs::read(&config)?;
    ensure!(serde_json::from_slice::<Value>(&named)?["plugins"][0]["ipam"]["type"] == "yurt-ipam");

    // At each start, for the node may be another one; and what is newer takes its place only if it runs there.
    ensure!(!cni.install_plugins()?);
    ensure!(seen() == [VERSIONS, VERSIONS].concat());
    let next = [&program[..], b"and more"].concat();
    becomes(&next)?;
    ensure!(cni.install_plugins()?);
    ensure!(seen() == [VERSIONS, VERSIONS].concat());
    becomes(script)?;
    refused(cni.install_plugins())?;
    ensure!(fs::read(cni.bin_dir.join("yurt-cni"))? == next && fs::read(&config)? == named);

    // Without the plugins no configuration names them.
    fs::write(&config, before.to_string())?;
    cni.uninstall_plugins()?;
    refused(cni.install_config(&directories))?;
    ensure!(serde_json::from_slice::<Value>(&fs::read(&config)?)? == before);
    Ok(())
}

fn refused<T, E>(result: Result<T, E>) -> Result<E> {
    result.err().context("it was not refused")
}
