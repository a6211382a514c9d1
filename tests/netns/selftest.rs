//! `check`, and the cgroup that the programs are attached to.

use std::fs;
use std::process::Output;

use anyhow::Context;
use anyhow::Result;
use serde_json::Value;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::agent_program;
use yurt_net_tests::lab::cgroup;

use crate::world::PATIENCE;
use crate::world::World;
use crate::world::said;
use crate::world::status;

/// As in a container with a cgroup namespace of its own and none of the host's mounts.
const ONLY_ITS_OWN: &str = "for m in $(awk '$3 == \"cgroup2\" {print $2}' /proc/self/mounts); do umount $m; done && \
                            mount -t cgroup2 none \"$1/cgroup\"";

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
fn check_says_that_services_are_translated() -> Result<()> {
    let mut world = World::single()?;
    world.start(0, &[])?;
    let node = world.node(0)?;
    assert_eq!(status(node)?["selfTest"]["result"], "passed");
    let (code, found) = self_test(node)?;
    assert_eq!((code, &found["result"]), (Some(0), &"ok".into()), "{found}");
    assert!(said(&node.yurt_net(&["check"])?).contains("self-test"));
    Ok(())
}

#[test]
fn a_node_of_one_family_passes_and_one_without_any_loopback_address_is_told_that() -> Result<()> {
    let mut world = World::single()?;
    world.start(0, &[])?;
    let node = world.node(0)?;
    let lo = |change: &str| node.netns().ip(&format!("addr {change} dev lo\n"));
    lo("del 127.0.0.1/8")?;
    let (_, found) = self_test(node)?;
    assert_eq!(found["result"], "ok", "{found}");
    lo("del ::1/128")?;
    let (code, found) = self_test(node)?;
    assert_eq!(code, Some(1), "{found}");
    assert!(
        found.to_string().contains("neither 127.0.0.1 nor ::1"),
        "{found}"
    );
    lo("add 127.0.0.1/8")?;
    let (_, found) = self_test(node)?;
    assert_eq!(found["result"], "ok", "{found}");
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

/// Runs the program, without `--cgroup`, in a new cgroup namespace, where its own cgroup looks like the root.
fn run_in_private_cgroup_namespace(world: &World, prepare: &str, verb: &str) -> Result<Output> {
    let node = world.node(0)?;
    let script = format!(
        "mkdir -p \"$1/cgroup\" && {prepare} && exec \"$2\" {verb} --state-dir \"$1\" --bpffs \"$4\""
    );
    let text = |path: std::path::PathBuf| path.display().to_string();
    node.host()?.output(
        "timeout",
        &[
            "60",
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
    )
}

/// What `check -o json` says of the cgroup.
fn of_cgroup(output: &Output) -> Result<Value> {
    let findings: Vec<Value> =
        serde_json::from_slice(&output.stdout).with_context(|| said(output))?;
    let mut findings = findings.into_iter();
    let found = findings.find(|finding| finding["check"] == "cgroup2");
    found.with_context(|| said(output))
}

#[test]
fn the_hosts_root_is_found_from_within_a_private_cgroup_namespace() -> Result<()> {
    let world = World::single()?;
    let output = run_in_private_cgroup_namespace(&world, "true", "check -o json")?;
    let found = of_cgroup(&output)?;
    let root = cgroup::mount_point()?.display().to_string();
    assert_eq!(found["result"], "ok", "{found}");
    assert_eq!(found["detail"], root, "{found}");
    Ok(())
}

#[test]
fn a_node_that_lives_in_a_cgroup_namespace_is_served_below_its_own_root() -> Result<()> {
    let mut world = World::single()?;
    let agent = world.start(0, &[])?;
    let node = world.node(0)?;
    let status = node.status()?;
    assert!(!status.cgroup_is_root);
    assert_eq!(status.cgroup, node.cgroup());
    let told = format!(
        "{}: only processes below it are served",
        node.cgroup().display()
    );
    let shown = said(&node.yurt_net(&["status"])?);
    assert!(shown.contains(&told), "{shown}");

    // What a Pod of such a node would find by itself is refused; what the agent serves is known better.
    let output = run_in_private_cgroup_namespace(&world, ONLY_ITS_OWN, "check -o json")?;
    let found = of_cgroup(&output)?;
    assert_eq!(found["result"], "failed", "{found}");
    let check = "check -o json";
    let output = run_in_private_cgroup_namespace(&world, "true", check)?;
    let found = of_cgroup(&output)?;
    assert_eq!(found["result"], "ok", "{found}");
    let detail = found["detail"].as_str().unwrap_or_default();
    assert!(
        detail.contains("only processes below it are served"),
        "{found}"
    );
    agent.terminate()?;
    Ok(())
}

#[test]
fn a_cgroup_flag_that_names_no_cgroup2_says_what_to_give() -> Result<()> {
    let world = World::single()?;
    let node = world.node(0)?;
    let elsewhere = std::path::Path::new("/proc");
    let ended = node.start_agent_serving(elsewhere, &[])?.wait(PATIENCE)?;
    assert_eq!(ended.code(), Some(1), "{}", node.agent_log());
    let remedy = format!("pass --cgroup {}", cgroup::mount_point()?.display());
    let log = node.agent_log();
    assert!(
        log.contains("/proc is not of the cgroup2 hierarchy"),
        "{log}"
    );
    assert!(log.contains(&remedy), "{log}");
    Ok(())
}

#[test]
fn an_agent_whose_cgroup_mount_is_of_its_private_namespace_is_refused_with_the_remedy() -> Result<()>
{
    let world = World::single()?;
    let run = "run --node edge-1 --source \"file:$3\"";
    let output = run_in_private_cgroup_namespace(&world, ONLY_ITS_OWN, run)?;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let said = said(&output);
    assert!(said.contains("mount the host's /sys/fs/cgroup"), "{said}");
    Ok(())
}
