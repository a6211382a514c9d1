//! What the programs say of their decisions, when they are those that were made for it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use anyhow::ensure;
use yurt_net_tests::lab::Proto::Tcp;

use crate::world::PATIENCE;
use crate::world::World;
use crate::world::eventually;
use crate::world::is_refused_by;
use crate::world::who_answers;

const WEB: &str = "10.96.0.10:80";
const EMPTY: &str = "10.96.0.20:80";

/// An object below `target/`.
fn object(dir: &str, remedy: &str) -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let object = target.join(dir).join("yurt-ebpf.o");
    ensure!(object.exists(), "no {}: run `{remedy}`", object.display());
    Ok(object)
}

#[test]
fn programs_that_say_what_they_decide_are_heard_in_the_agents_log() -> Result<()> {
    let object = object("bpf-log", "cargo xtask build-ebpf --log")?;
    let mut world = World::single()?;
    let backend = world.backend(0, "backend")?;
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10").port(80, 8080);
    web.endpoints([&backend]);
    let empty = world.manifests.service("empty");
    empty.cluster_ip("10.96.0.20").port(80, 8080);
    world.start(0, &["--ebpf-log", &object.to_string_lossy()])?;
    let node = world.node(0)?;
    let client = node.pod("client")?;
    who_answers(&client, WEB)?;
    is_refused_by(&client, Tcp, EMPTY)?;
    eventually(node, || {
        let log = node.agent_log();
        for said in [
            format!("{WEB} goes to {}:8080", backend.ip4()),
            format!("{EMPTY} is refused: no endpoint"),
        ] {
            ensure!(log.contains(&said), "no {said:?}");
        }
        Ok(())
    })
}

#[test]
fn an_object_that_is_no_file_or_whose_programs_say_nothing_is_refused_and_named() -> Result<()> {
    let silent = object("bpf", "cargo xtask build-ebpf")?;
    let world = World::single()?;
    world.lab.apply(&world.manifests)?;
    let node = world.node(0)?;
    let pipe = world.lab.dir().join("pipe");
    ensure!(Command::new("mkfifo").arg(&pipe).status()?.success());
    let absent = world.lab.dir().join("absent");
    for (object, why) in [
        (silent, "AYA_LOGS"),
        (pipe, "not a regular file"),
        (PathBuf::from("/dev/zero"), "not a regular file"),
        (absent, "No such file"),
    ] {
        let object = object.display().to_string();
        let before = node.agent_log().len();
        let agent = node.start_agent(&["--ebpf-log", &object])?;
        let ended = agent.wait(PATIENCE)?;
        let log = node.agent_log().split_off(before);
        let named = format!("--ebpf-log {object}: give the object that");
        ensure!(!ended.success(), "{object}: {log}");
        ensure!(log.contains(&named) && log.contains(why), "{why}: {log}");
    }
    Ok(())
}
