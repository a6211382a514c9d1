//! What the programs say of their decisions, when they are those that were made for it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use anyhow::ensure;

use crate::world::PATIENCE;
use crate::world::World;

/// An object below `target/`.
fn object(dir: &str, remedy: &str) -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let object = target.join(dir).join("yurt-ebpf.o");
    ensure!(object.exists(), "no {}: run `{remedy}`", object.display());
    Ok(object)
}

#[test]
fn an_object_whose_programs_say_nothing_is_refused_in_their_place() -> Result<()> {
    let object = object("bpf", "cargo xtask build-ebpf")?;
    let world = World::single()?;
    world.lab.apply(&world.manifests)?;
    let node = world.node(0)?;
    let agent = node.start_agent(&["--ebpf-log", &object.to_string_lossy()])?;
    let ended = agent.wait(PATIENCE)?;
    let log = node.agent_log();
    assert!(
        !ended.success() && log.contains("AYA_LOGS"),
        "{ended}: {log}"
    );
    Ok(())
}
