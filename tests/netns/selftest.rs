//! `check`, and the cgroup that the programs are attached to.

use std::fs;

use anyhow::Context;
use anyhow::Result;
use serde_json::Value;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::agent_program;

use crate::world::World;
use crate::world::said;
use crate::world::status;

fn self_test(node: &Node) -> Result<(Option<i32>, Value)> {
    let output = node.yurt_net(&["check", "-o", "json"])?;
    let findings: Vec<Value> =
        serde_json::from_slice(&output.stdout).with_context(|| said(&output))?;
    let found = findings
        .into_iter()
        .find(|finding| finding["check"] == "self-test");
    Ok((output.status.code(), found.unwrap_or(Value::Null)))
}

#[test]
fn check_says_that_services_are_translated_and_that_they_are_not_once_a_program_is_detached()
-> Result<()> {
    let mut world = World::single()?;
    world.start(0, &["--drift-interval", "0"])?;
    let node = world.node(0)?;
    assert_eq!(status(node)?["selfTest"]["result"], "passed");
    let (code, found) = self_test(node)?;
    assert_eq!((code, &found["result"]), (Some(0), &"ok".into()), "{found}");
    assert!(said(&node.yurt_net(&["check"])?).contains("self-test"));

    fs::remove_file(node.bpffs().join("yurt-net/links/yurt_connect4"))?;
    crate::world::eventually(node, || {
        let (code, found) = self_test(node)?;
        anyhow::ensure!(code == Some(1) && found["result"] == "failed", "{found}");
        Ok(())
    })?;
    let text = said(&node.yurt_net(&["check"])?);
    assert!(text.contains("FAILED   self-test"), "{text}");
    Ok(())
}

#[test]
fn nothing_is_left_in_the_cgroup_by_the_self_test() -> Result<()> {
    let mut world = World::single()?;
    world.start(0, &[])?;
    let node = world.node(0)?;
    self_test(node)?;
    for entry in fs::read_dir(node.cgroup())? {
        let name = entry?.file_name();
        assert!(!name.to_string_lossy().contains("selftest"), "{name:?}");
    }
    Ok(())
}

/// Runs the agent without `--cgroup` where a new cgroup namespace makes its own cgroup look like the root.
fn run_in_private_cgroup_namespace(world: &World, prepare: &str) -> Result<String> {
    let node = world.node(0)?;
    let script = format!(
        "mkdir -p \"$1/cgroup\" && {prepare} && exec \"$2\" run --node edge-1 --source \"file:$3\" \
         --state-dir \"$1\" --bpffs \"$4\""
    );
    let text = |path: std::path::PathBuf| path.display().to_string();
    let output = node.host()?.output(
        "timeout",
        &[
            "5",
            "unshare",
            "--cgroup",
            "--mount",
            "sh",
            "-c",
            &script,
            "sh",
            &text(node.state_dir()),
            &text(agent_program()?),
            &text(node.manifests_dir()),
            &text(node.bpffs()),
        ],
    )?;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    Ok(said(&output))
}

#[test]
fn an_agent_that_sees_only_its_own_part_of_the_hosts_cgroups_is_refused_with_the_remedy()
-> Result<()> {
    let world = World::single()?;
    let said = run_in_private_cgroup_namespace(&world, "true")?;
    assert!(said.contains("mount the host's /sys/fs/cgroup"), "{said}");
    Ok(())
}

#[test]
fn an_agent_whose_cgroup_mount_is_of_its_private_namespace_is_refused_with_the_remedy() -> Result<()>
{
    let world = World::single()?;
    let prepare = "for m in $(awk '$3 == \"cgroup2\" {print $2}' /proc/self/mounts); do umount $m; done && \
                   mount -t cgroup2 none \"$1/cgroup\"";
    let said = run_in_private_cgroup_namespace(&world, prepare)?;
    assert!(said.contains("mount the host's /sys/fs/cgroup"), "{said}");
    Ok(())
}
