//! The command line against a running agent.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use serde_json::{Value, json as literal};
use yurt_net::ledger::State;
use yurt_net_tests::lab::Kept;
use yurt_net_tests::lab::Node;
use yurt_net_tests::lab::Proto::Tcp;
use yurt_net_tests::lab::agent_program;

use crate::kernel;
use crate::world::PATIENCE;
use crate::world::World;
use crate::world::eventually;
use crate::world::explain;
use crate::world::json;
use crate::world::said;
use crate::world::status;

const NOBODY: u32 = 65534;

/// Names in a directory.
fn entries(dir: &Path) -> Result<BTreeSet<OsString>> {
    fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name()))
        .collect()
}

fn with_services() -> Result<World> {
    let mut world = World::new(&[("edge-1", "hangzhou"), ("edge-2", "beijing")])?;
    let backend = world.backend(0, "backend")?;
    let foreign = world.backend(1, "foreign")?;
    let web = world.manifests.service("web");
    web.cluster_ip("10.96.0.10").cluster_ip("fd00:96::10");
    web.node_port(Tcp, 80, 8080, 30080)
        .topology_keys("openyurt.io/nodepool")
        .endpoints([&backend, &foreign]);
    let empty = world.manifests.service("empty");
    empty.cluster_ip("10.96.0.11").port(80, 8080);
    Ok(world)
}

#[test]
fn status_waits_until_the_agent_is_ready_and_not_longer_than_told() -> Result<()> {
    let mut world = with_services()?;
    let output = world.node(0)?.yurt_net(&["status", "--wait", "100ms"])?;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("no agent answers"),
        "{}",
        said(&output)
    );
    world.start(0, &[])?;
    let status = json(
        &world
            .node(0)?
            .yurt_net(&["status", "--wait", "60s", "-o", "json"])?,
    )?;
    assert_eq!(
        (&status["ready"], &status["pool"]),
        (&true.into(), &"hangzhou".into())
    );
    assert!(world.node(0)?.agent_log().contains("ready"));
    Ok(())
}

/// The rows of `services`, by frontend: who is served, verdict, and endpoints.
fn in_force(node: &Node, service: &str) -> Result<(Vec<String>, Value)> {
    let listed = json(&node.yurt_net(&["services", service, "-o", "json"])?)?;
    let rows = listed["services"].as_array().context("a list of rows")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let row = |row: &Value| {
        let endpoints = row["endpoints"].as_array().into_iter().flatten();
        let endpoints: Vec<String> = endpoints.map(text).collect();
        let [frontend, clients, verdict] =
            ["frontend", "clients", "verdict"].map(|key| text(&row[key]));
        format!("{frontend} {clients} {verdict} {}", endpoints.join(","))
    };
    Ok((rows.iter().map(row).collect(), listed))
}

#[test]
fn services_are_listed_as_the_kernel_has_them_with_an_agent_and_without_one() -> Result<()> {
    let mut world = with_services()?;
    let none = world.node(0)?.yurt_net(&["services"])?;
    ensure!(
        said(&none).contains("no Service is in the kernel"),
        "{}",
        said(&none)
    );
    let agent = world.start(0, &[])?;
    let node = world.node(0)?;
    let ip = node.ip4();
    let (rows, listed) = in_force(node, "default/web")?;
    let backend = rows
        .iter()
        .find_map(|row| row.strip_prefix("10.96.0.10:80 node forward "))
        .with_context(|| format!("{listed}"))?;
    // One endpoint: the other one is in another pool.
    ensure!(
        backend.ends_with(":8080") && !backend.contains(','),
        "{listed}"
    );
    ensure!(
        rows.contains(&format!("{ip}:30080 node forward {backend}")),
        "{listed}"
    );
    ensure!(
        rows.contains(&format!("127.0.0.1:30080 host forward {backend}")),
        "{listed}"
    );
    ensure!(
        listed["isAttached"] == true && listed["remark"].is_null(),
        "{listed}"
    );
    ensure!(listed["services"][0]["closure"] == "pool", "{listed}");
    let is_left_out = |listed: &Value| {
        let mut left_out = listed["leftOut"].as_array().into_iter().flatten();
        let reason = |one: &Value| one["reason"].as_str().unwrap_or_default().to_owned();
        let is_some = left_out.clone().next().is_some();
        is_some
            && left_out.all(|one| reason(one).contains("is not in pool hangzhou"))
            && listed["differences"] == literal!([])
    };
    ensure!(is_left_out(&listed), "{listed}");
    assert_eq!(
        in_force(node, "default/empty")?.0,
        ["10.96.0.11:80 node refuse "]
    );
    let all = node.yurt_net(&["services"])?;
    ensure!(
        said(&all).contains("default/empty:tcp-80     TCP"),
        "{}",
        said(&all)
    );
    let all = said(&all);
    let self_test = all.lines().find(|row| row.contains(" 192.0.0.8:9 "));
    ensure!(
        self_test.is_some_and(|row| row.starts_with("(self-test) ")),
        "{all}"
    );
    let unknown = node.yurt_net(&["services", "default/nothing"])?;
    ensure!(
        said(&unknown).contains("no frontend of default/nothing"),
        "{}",
        said(&unknown)
    );
    ensure!(!node.yurt_net(&["services", "web"])?.status.success());

    node.wait_for_status("a checkpoint", |status| status.checkpoint.writes > 0)?;
    agent.kill9()?;
    let (without, listed) = in_force(node, "default/web")?;
    assert_eq!(without, rows);
    let remark = listed["remark"].as_str().unwrap_or_default();
    ensure!(remark.contains("checkpoint"), "{listed}");
    // What the dead agent would say: the reasons are made anew, of what it left.
    ensure!(is_left_out(&listed), "{listed}");
    ensure!(listed["services"][0]["closure"] == "pool", "{listed}");
    let yaml = node.yurt_net(&["services", "default/web", "-o", "yaml"])?;
    ensure!(
        said(&yaml).contains("verdict: \"forward\""),
        "{}",
        said(&yaml)
    );
    Ok(())
}

#[test]
fn check_says_that_a_pin_is_not_the_map_that_it_is_called() -> Result<()> {
    let mut world = with_services()?;
    let agent = world.start(0, &[])?;
    let node = world.node(0)?;
    agent.kill9()?;
    let pins = |checked: &str| {
        let mut lines = checked.lines().map(str::to_owned);
        lines.find(|line| line.starts_with("WARNING  pins"))
    };
    let checked = said(&node.yurt_net(&["check"])?);
    assert_eq!(pins(&checked), None, "{checked}");
    let directory = node.table_pins();
    let [v4, v6, aside] = ["yurt_fe4", "yurt_fe6", "aside"].map(|name| directory.join(name));
    for (from, to) in [(&v4, &aside), (&v6, &v4), (&aside, &v6)] {
        fs::rename(from, to)?;
    }
    let checked = said(&node.yurt_net(&["check"])?);
    let line = pins(&checked).unwrap_or_default();
    ensure!(
        line.contains("yurt_fe4 is no map of this yurt-net"),
        "{checked}"
    );
    Ok(())
}

#[test]
fn pods_that_have_addresses_among_those_of_services_are_a_warning_of_status_and_check() -> Result<()>
{
    let mut world = with_services()?;
    let pods = world.node(0)?.pod_cidr4();
    world.start(0, &["--service-cidr", &pods])?;
    let node = world.node(0)?;
    let expected = format!("podCIDR {pods} of Node edge-1 overlaps the service CIDR {pods}");
    let status = status(node)?;
    assert_eq!(status["ready"], true);
    assert_eq!(status["degraded"][0]["what"], "ranges", "{status}");
    let shown = said(&node.yurt_net(&["status"])?);
    assert!(
        shown.contains(&format!("degraded: ranges: {expected}")),
        "{shown}"
    );
    let checked = said(&node.yurt_net(&["check"])?);
    let line = checked.lines().find(|line| line.contains(&expected));
    assert!(
        line.is_some_and(|line| line.starts_with("WARNING  agent")),
        "{checked}"
    );
    Ok(())
}

#[test]
fn a_second_agent_on_the_same_bpffs_ends_with_one_and_names_the_first() -> Result<()> {
    let mut world = with_services()?;
    let first = world.start(0, &[])?;
    let second = world.node(0)?.start_agent(&[])?;
    let ended = second.wait(PATIENCE)?;
    let log = world.node(0)?.agent_log();
    assert_eq!(ended.code(), Some(1), "{log}");
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains(&first.pid().to_string()), "{last}");
    assert!(first.is_running());
    assert_eq!(status(world.node(0)?)?["pid"], first.pid());
    Ok(())
}

#[test]
fn cleanup_is_refused_while_an_agent_runs_and_then_removes_what_is_ours_and_nothing_else()
-> Result<()> {
    let mut world = with_services()?;
    kernel::pin_foreign_map(&world.node(0)?.bpffs().join("foreign"))?;
    let before = entries(&world.node(0)?.bpffs())?;
    let agent = world.start(0, &["--guard", "enforce", "--drift-interval", "1"])?;
    let node = world.node(0)?;
    let client = node.pod("client")?;
    // What the plugins follow for a new Pod, and a lock that went with its directory.
    let guard = node.state_dir().join("guard.json");
    let settings = fs::read(&guard)?;
    fs::remove_dir_all(node.bpffs().join("yurt-net"))?;
    let output = node.yurt_net(&["cleanup"])?;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_eq!(fs::read(&guard)?, settings);
    assert!(
        said(&output).contains(&agent.pid().to_string()),
        "{}",
        said(&output)
    );
    assert_eq!(client.get("10.96.0.10:80")?, "backend");

    // The directory is back with the next repair.
    eventually(node, || {
        let is_there = node.bpffs().join("yurt-net/links/yurt_connect4").exists();
        anyhow::ensure!(is_there, "no pins yet");
        Ok(())
    })?;
    agent.terminate()?;
    assert_eq!(client.get("10.96.0.10:80")?, "backend");
    let output = node.yurt_net(&["cleanup"])?;
    assert!(output.status.success(), "{}", said(&output));
    assert!(!guard.exists());
    assert_eq!(entries(&node.bpffs())?, before);
    let start = std::time::Instant::now();
    // The kernel detaches a moment after the last reference has gone.
    while !client
        .dial(Tcp, "10.96.0.10:80", 1)?
        .answers
        .contains_key("10.96.0.10:80")
    {
        assert!(start.elapsed() < PATIENCE, "still translated");
    }
    let again = node.yurt_net(&["cleanup"])?;
    assert!(
        said(&again).contains("nothing to remove"),
        "{}",
        said(&again)
    );
    Ok(())
}

#[test]
fn explain_says_the_same_from_the_agent_and_from_its_source() -> Result<()> {
    let mut world = with_services()?;
    world.start(0, &[])?;
    let node = world.node(0)?;
    let pod = node.pod("client")?.ip4().to_string();
    let own = format!("{}:30080/TCP", node.ip4());
    let source = format!("file:{}", node.manifests_dir().display());
    for (from, to, verdict) in [
        (pod.as_str(), "10.96.0.10:80/TCP", "forward"),
        ("192.0.2.200", "10.96.0.10:80/TCP", "forward"),
        ("127.0.0.1", "127.0.0.1:30080/TCP", "forward"),
        (&pod, "127.0.0.1:30080/TCP", "pass"),
        (&pod, &own, "forward"),
        (&pod, "10.96.0.11:80/TCP", "refuse"),
        (&pod, "10.96.0.10:81/TCP", "refuse"),
        (&pod, "10.96.0.10:80/UDP", "refuse"),
        (&pod, "10.96.0.99:80/TCP", "pass"),
        (&pod, "10.244.1.10:8080/TCP", "pass"),
    ] {
        let live = explain(node, from, to)?;
        let arguments = [
            "explain", "--from", from, "--to", to, "-o", "json", "--node", "edge-1", "--source",
            &source,
        ];
        let offline = json(&node.yurt_net(&arguments)?)?;
        assert_eq!(live["verdict"], verdict, "{from} {to}: {live}");
        assert_eq!(live, offline, "{from} {to}");
    }
    // By name, from both.
    let by_address = explain(node, &pod, "10.96.0.10:80/TCP")?;
    for more in [&[][..], &["--node", "edge-1", "--source", &source]] {
        let ask = |service: &str| {
            let words = ["explain", "--from", &pod, service, "-o", "json"];
            node.yurt_net(&[&words[..], more].concat())
        };
        assert_eq!(json(&ask("default/web:80")?)?, by_address);
        let unknown = said(&ask("default/wbe")?);
        ensure!(
            unknown.contains("there is no default/wbe, but there is default/empty, default/web"),
            "{unknown}"
        );
    }
    let live = explain(node, &pod, "10.96.0.10:80/TCP")?;
    assert_eq!(live["service"], "default/web:tcp-80");
    assert_eq!(live["endpoints"], Value::from(vec!["10.244.1.10:8080"]));
    Ok(())
}

/// Neither a podCIDR nor a ledger says so: the route to it leads to a bridge that Pods are at.
#[test]
fn explain_knows_a_pod_of_this_node_where_its_node_object_is_not_there() -> Result<()> {
    let mut world = with_services()?;
    let backend = world.backend(0, "other")?;
    let open = world.manifests.service("open");
    open.cluster_ip("10.96.0.12").port(80, 8080);
    open.endpoints([&backend]);
    world.write()?;
    let node = world.node(0)?;
    let pod = node.pod("client")?;
    let source = format!("file:{}", node.manifests_dir().display());
    let _agent = node.start_agent_from(&source, "nobody", &[])?;
    node.wait_ready()?;
    for (from, is_masqueraded) in [
        (pod.ip4().to_string(), false),
        (node.ip4().to_string(), false),
        ("192.0.2.200".to_owned(), true),
    ] {
        let live = explain(node, &from, "10.96.0.12:80/TCP")?;
        assert_eq!(live["verdict"], "forward", "{live}");
        assert_eq!(live["masquerade"], is_masqueraded, "{from}: {live}");
    }
    Ok(())
}

/// Where the network hands out addresses by itself: routes say where Pods are, and the ledger, which has those that are
/// away, too.
#[test]
fn no_service_takes_an_address_of_this_nodes_pods_and_plan_says_so_as_the_agent_does() -> Result<()>
{
    const AWAY: &str = "198.51.100.77";
    let mut world = with_services()?;
    let backend = world.backend(0, "thief")?;
    let victim = world.backend(0, "victim")?;
    let at_victim = victim.at4(8080);
    let node = world.node(0)?.clone();
    world.manifests.node(&node).without_pod_cidrs();
    let thief = world.manifests.service("thief");
    thief.cluster_ip("10.96.0.13").port(8080, 8080);
    thief
        .external_ip(&victim.ip4().to_string())
        .external_ip(AWAY);
    thief.endpoints([&backend]);
    node.keep(vec![Kept {
        name: "away".to_owned(),
        addresses: vec![AWAY.parse()?],
        state: State::Retained,
        host: None,
    }])?;
    let _agent = world.start(0, &[])?;
    let client = node.pod("client")?;
    assert_eq!(client.get(&at_victim)?, "victim");
    assert_eq!(client.get("10.96.0.13:8080")?, "thief");
    let told = status(&node)?;
    let told = told["rejections"].to_string();
    let flags = [
        "plan",
        "-o",
        "json",
        "--state-dir",
        &node.state_dir().display().to_string(),
        "--run-dir",
        &node.run_dir().display().to_string(),
    ];
    let planned = json(&node.yurt_net(&flags)?)?;
    let planned = planned["rejections"].to_string();
    for address in [victim.ip4().to_string(), AWAY.to_owned()] {
        let is_told = format!("ExternalIP {address} is ");
        assert!(told.contains(&is_told), "{address}: {told}");
        assert!(planned.contains(&is_told), "{address}: {planned}");
    }
    Ok(())
}

/// What deploy/cleanup runs on each node once the agents' DaemonSet was deleted, whose Pods were killed meanwhile.
#[test]
fn the_way_back_takes_the_programs_away_and_stays_until_it_is_told_to_end() -> Result<()> {
    let mut world = with_services()?;
    let agent = world.start(0, &[])?;
    let node = world.node(0)?;
    let client = node.pod("client")?;
    assert_eq!(client.get("10.96.0.10:80")?, "backend");
    agent.kill9()?;
    assert_eq!(client.get("10.96.0.10:80")?, "backend", "it decides on");

    let mut command = node.command("cleanup", &agent_program()?.display().to_string())?;
    command.args(["cleanup", "--stay"]);
    for (flag, path) in [
        ("--state-dir", node.state_dir()),
        ("--run-dir", node.run_dir()),
        ("--bpffs", node.bpffs()),
    ] {
        command.arg(flag).arg(path);
    }
    let mut cleanup = command.spawn()?;
    eventually(node, || {
        // Where its socket really leads; nobody is there.
        let tally = client.dial(Tcp, "10.96.0.10:80", 1)?;
        let is_plain = tally.answers.keys().eq(["10.96.0.10:80"]);
        ensure!(is_plain, "still translated: {tally:?}");
        Ok(())
    })?;
    assert!(cleanup.try_wait()?.is_none(), "it does not stay");
    // SAFETY: plain system call on a child that is not reaped yet.
    let sent = unsafe { libc::kill(libc::pid_t::try_from(cleanup.id())?, libc::SIGTERM) };
    assert_eq!(sent, 0);
    let ended = cleanup.wait()?;
    assert!(ended.success(), "{ended}");
    Ok(())
}

#[test]
fn plan_needs_no_privileges() -> Result<()> {
    let world = with_services()?;
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let (program, manifests) = (dir.path().join("yurt-net"), dir.path().join("cluster.yaml"));
    fs::copy(agent_program()?, &program)?;
    fs::write(&manifests, world.manifests.to_yaml())?;
    let output = Command::new(&program)
        .args(["plan", "--node", "edge-1", "-o", "json", "--source"])
        .arg(format!("file:{}", manifests.display()))
        .uid(NOBODY)
        .gid(NOBODY)
        .output()?;
    let plan = json(&output)?;
    assert_eq!(plan["pool"], "hangzhou");
    // This machine is not the node.
    assert_eq!(plan["seesInterfaces"], false);
    assert_eq!(plan["services"][1]["name"], "web", "{plan}");
    assert_eq!(plan["services"][1]["closure"], "pool", "{plan}");
    Ok(())
}

#[test]
fn bad_usage_ends_with_two_and_an_absent_source_with_one() -> Result<()> {
    let world = with_services()?;
    let node = world.node(0)?;
    for (arguments, code) in [
        (vec!["run", "--no-such-flag"], 2),
        (vec!["run", "--node", "edge-1", "--source", "nonsense"], 2),
        (vec!["plan", "--closure-failure", "maybe"], 2),
        (
            vec!["explain", "--from", "10.0.0.1", "--to", "10.96.0.10"],
            2,
        ),
        (vec!["no-such-verb"], 2),
    ] {
        let output = node.yurt_net(&arguments)?;
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {}",
            said(&output)
        );
    }
    fs::remove_dir_all(node.manifests_dir())?;
    let ended = node.start_agent(&[])?.wait(PATIENCE)?;
    assert_eq!(ended.code(), Some(1), "{}", node.agent_log());
    assert!(
        node.agent_log().contains("manifests"),
        "{}",
        node.agent_log()
    );
    Ok(())
}
