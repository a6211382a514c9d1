//! The plugins and the agent together: one ledger, one guard.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use yurt_net::ledger::State;
use yurt_net::observe::status::{GuardedPodStatus, Status};
use yurt_net_tests::apiserver::{FakeApiserver, Resource, objects};
use yurt_net_tests::lab::{self, Kept, Lab, Netns};

use yurt_net_tests::runtime::{Network, Node, addresses, mac, pod};

pub(crate) const NODE: &str = "edge-1";
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Sends a datagram to the gateway from an address that the Pod has given itself.
pub(crate) fn spoof(netns: &Netns, address: &str) -> Result<()> {
    netns.ip(&format!("address replace {address}/24 dev eth0\n"))?;
    let address: IpAddr = address.parse()?;
    netns.run(|| -> Result<()> {
        let socket = UdpSocket::bind((address, 0))?;
        socket.send_to(b"?", "10.1.0.1:9")?;
        Ok(())
    })?
}

pub(crate) fn shown<'a>(status: &'a Status, name: &str) -> Option<&'a GuardedPodStatus> {
    let mut pods = status.retention.pods.iter();
    pods.find(|pod| pod.name == name)
}

/// What the guard has found on a Pod's interface so far.
pub(crate) fn found(node: &lab::Node, name: &str) -> Result<(u64, u64)> {
    let status = node.status()?;
    let pod = shown(&status, name).context("no such Pod in the status")?;
    Ok((pod.audited, pod.dropped))
}

#[test]
fn a_pod_is_guarded_when_its_add_returns_whether_the_agent_runs_or_not() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let agent = edge.start_agent(&[])?;
    edge.wait_ready()?;
    ensure!(!edge.status()?.retention.is_on);
    // It has said how Pods are guarded, and then it is gone.
    agent.kill9()?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let web = pod("web-0", "c1");
    let result = network.add(&web.sandbox);
    ensure!(network.stderr.is_empty(), "{}", network.stderr);
    spoof(&web.netns, "10.1.0.99")?;

    let _agent = edge.start_agent(&[])?;
    let status = edge.wait_for_status("the Pod is shown as guarded", |status| {
        shown(status, "web-0").is_some_and(|pod| pod.device.is_some())
    })?;
    let shown_pod = shown(&status, "web-0").context("no such Pod")?;
    ensure!(shown_pod.state == State::Active);
    let shown_addresses: Vec<String> = shown_pod.addresses.iter().map(IpAddr::to_string).collect();
    ensure!(shown_addresses == addresses(&result));
    ensure!(shown_pod.mac.map(|mac| mac.to_string()) == Some(mac(&result)));
    ensure!(status.retention.guard == "audit" && status.retention.alarms.is_empty());
    let (before, dropped) = found(&edge, "web-0")?;
    ensure!(before >= 1 && dropped == 0, "{before} {dropped}");
    // What is its own is not found fault with, and the count goes on where it was.
    web.netns
        .run(|| UdpSocket::bind("10.1.0.2:0")?.send_to(b"!", "10.1.0.1:9"))??;
    ensure!(found(&edge, "web-0")? == (before, 0));
    spoof(&web.netns, "10.1.0.98")?;
    ensure!(found(&edge, "web-0")?.0 > before);
    Ok(())
}

#[test]
fn after_a_reboot_the_plugin_guards_before_any_agent_has_started() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let agent = edge.start_agent(&["--guard=enforce"])?;
    edge.wait_ready()?;
    agent.kill9()?;
    edge.lose_pins()?;
    fs::remove_dir_all(edge.run_dir())?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let web = pod("web-0", "c1");
    network.add(&web.sandbox);
    ensure!(network.stderr.is_empty(), "{}", network.stderr);
    spoof(&web.netns, "10.1.0.99")?;
    let _agent = edge.start_agent(&["--guard=enforce"])?;
    edge.wait_for_status("the Pod is shown as guarded", |status| {
        shown(status, "web-0").is_some_and(|pod| pod.device.is_some())
    })?;
    ensure!(found(&edge, "web-0")?.1 >= 1);
    Ok(())
}

/// What is due at the start, and what a plugin's work makes due, waits for no timer: there is none here.
#[test]
fn pods_are_guarded_after_an_offline_reboot_whoever_starts_first_and_without_a_timer() -> Result<()>
{
    const FLAGS: &[&str] = &["--guard=enforce", "--drift-interval=0"];
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let agent = edge.start_agent(FLAGS)?;
    edge.wait_ready()?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    network.add(&pod("web-0", "c1").sandbox);
    agent.kill9()?;
    for (boot, is_agent_first) in [(2, true), (3, false)] {
        edge.netns().ip("link del cni0\n")?;
        edge.lose_pins()?;
        fs::remove_dir_all(edge.run_dir())?;
        let start = || -> Result<_> {
            let agent = edge.start_agent(FLAGS)?;
            edge.wait_ready()?;
            Ok(agent)
        };
        let first = is_agent_first.then(start).transpose()?;
        let web = pod("web-0", &format!("c{boot}"));
        network.add(&web.sandbox);
        let agent = match first {
            Some(agent) => agent,
            None => start()?,
        };
        edge.wait_for_status("the Pod is shown as guarded", |status| {
            shown(status, "web-0").is_some_and(|pod| pod.device.is_some())
        })?;
        let (_, before) = found(&edge, "web-0")?;
        spoof(&web.netns, "10.1.0.99")?;
        ensure!(found(&edge, "web-0")?.1 > before);
        agent.kill9()?;
    }
    Ok(())
}

/// Removes a directory that somebody makes again at once.
fn lose(directory: &std::path::Path) -> Result<()> {
    let gone = directory.with_extension("gone");
    fs::rename(directory, &gone)?;
    Ok(fs::remove_dir_all(gone)?)
}

#[test]
fn what_plugins_go_by_is_made_again_under_a_running_agent_and_the_ledger_is_followed_on()
-> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let flags = ["--guard=enforce", "--translate=on", "--drift-interval=1"];
    let agent = edge.start_agent(&flags)?;
    edge.wait_ready()?;
    let files = ["guard.json", "translate.json"].map(|name| edge.state_dir().join(name));
    let before = [fs::read(&files[0])?, fs::read(&files[1])?];
    for file in &files {
        fs::remove_file(file)?;
    }
    lose(&edge.run_dir())?;
    edge.wait_for_status("both are there again", |_| {
        let now = files.iter().map(|file| fs::read(file).unwrap_or_default());
        now.eq(before.iter().cloned())
    })?;
    agent.kill9()?;

    // Without a timer: the directory that the agent has watched goes, and plugins make it anew.
    let _agent = edge.start_agent(&["--guard=enforce", "--drift-interval=0"])?;
    edge.wait_ready()?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    for name in ["web-0", "web-1", "web-2"] {
        lose(&edge.run_dir())?;
        let web = pod(name, &format!("c-{name}"));
        network.add(&web.sandbox);
        ensure!(network.stderr.is_empty(), "{}", network.stderr);
        edge.wait_for_status("the Pod is shown as guarded", |status| {
            shown(status, name).is_some_and(|pod| pod.device.is_some())
        })?;
    }
    Ok(())
}

#[test]
fn an_address_that_is_kept_for_a_pod_is_nobody_elses_to_use() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let _agent = edge.start_agent(&["--guard-enforce-namespace=shop"])?;
    edge.wait_ready()?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let (web, other) = (pod("web-0", "c1"), pod("other", "c2"));
    network.add(&web.sandbox);
    network.add(&other.sandbox);
    network.del(&web.sandbox);
    edge.wait_for_status("web-0 is away", |status| {
        shown(status, "web-0").is_some_and(|pod| pod.state == State::Retained)
            && shown(status, "other").is_some_and(|pod| pod.device.is_some())
    })?;
    spoof(&other.netns, "10.1.0.2")?;
    ensure!(found(&edge, "other")?.1 >= 1);
    Ok(())
}

#[test]
fn a_pod_that_only_yurt_ipam_knows_uses_its_addresses_on_whatever_device_it_is() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let _agent = edge.start_agent(&["--guard=enforce"])?;
    edge.wait_ready()?;
    let mut plugins = node.bridged(node.ipam());
    plugins.pop();
    let mut network = Network::new(&node, "1.0.0", plugins);
    let web = pod("web-0", "c1");
    network.add(&web.sandbox);
    edge.wait_for_status("its device is guarded", |status| {
        status.retention.guard == "enforce" && shown(status, "web-0").is_some()
    })?;
    let server = edge.netns().run(|| UdpSocket::bind("10.1.0.1:0"))??;
    server.set_read_timeout(Some(PATIENCE))?;
    let at = server.local_addr()?;
    web.netns
        .run(|| UdpSocket::bind("10.1.0.2:0")?.send_to(b"!", at))??;
    server.recv(&mut [0])?;
    let status = edge.status()?;
    ensure!(status.retention.dropped.values().all(|count| *count == 0));
    Ok(())
}

#[test]
fn after_a_cleanup_no_plugin_loads_the_guard_again() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let agent = edge.start_agent(&[])?;
    edge.wait_ready()?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    network.add(&pod("web-0", "c1").sandbox);
    agent.terminate()?;
    let output = edge.yurt_net(&["cleanup"])?;
    ensure!(output.status.success(), "{output:?}");
    network.add(&pod("web-1", "c2").sandbox);
    ensure!(network.stderr.is_empty(), "{}", network.stderr);
    ensure!(!edge.bpffs().join("yurt-net").exists());
    Ok(())
}

#[test]
fn an_annotation_lets_a_pod_use_more_until_a_source_says_otherwise() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let api = edge.netns().run(FakeApiserver::start)??;
    api.put(objects::node(NODE, None, edge.ip4().into()))?;
    let source = format!("kube:{}", api.http().url());
    let agent = edge.start_agent_from(&source, NODE, &[])?;
    edge.wait_ready()?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let web = pod("web-0", "c1");
    network.add(&web.sandbox);
    edge.wait_for_status("the Pod is guarded", |status| {
        shown(status, "web-0").is_some_and(|pod| pod.device.is_some())
    })?;
    spoof(&web.netns, "10.1.0.99")?;
    let (before, _) = found(&edge, "web-0")?;
    ensure!(before >= 1);
    let mut object = objects::pod("web-0", NODE);
    object["metadata"]["namespace"] = json!("shop");
    object["metadata"]["annotations"] =
        json!({"yurt-net.openyurt.io/extra-addresses": "10.1.0.99 oops"});
    api.put(object.clone())?;
    let status = edge.wait_for_status("the annotation is found fault with", |status| {
        !status.retention.alarms.is_empty()
    })?;
    let alarm = &status.retention.alarms[0];
    ensure!(
        alarm.contains("Pod shop/web-0 (eth0)") && alarm.contains("\"oops\""),
        "{alarm}"
    );
    object["metadata"]["annotations"] =
        json!({"yurt-net.openyurt.io/extra-addresses": "10.1.0.99"});
    api.put(object)?;
    edge.wait_for_status("nothing is wrong", |status| {
        status.retention.alarms.is_empty()
    })?;
    let (before, _) = found(&edge, "web-0")?;
    spoof(&web.netns, "10.1.0.99")?;
    ensure!(found(&edge, "web-0")?.0 == before);

    // The next agent starts without the cloud, and a checkpoint it has not.
    agent.kill9()?;
    api.http().stop();
    let snapshot = edge.state_dir().join("snapshot");
    if snapshot.exists() {
        fs::remove_dir_all(snapshot)?;
    }
    let _agent = edge.start_agent_from(&source, NODE, &[])?;
    edge.wait_for_status("the Pod is guarded again", |status| {
        shown(status, "web-0").is_some_and(|pod| pod.device.is_some())
    })?;
    let (before, _) = found(&edge, "web-0")?;
    spoof(&web.netns, "10.1.0.99")?;
    ensure!(found(&edge, "web-0")?.0 == before);
    spoof(&web.netns, "10.1.0.98")?;
    ensure!(found(&edge, "web-0")?.0 > before);
    Ok(())
}

#[test]
fn an_address_that_a_load_balancer_gets_is_no_longer_granted_to_a_pod_though_nothing_else_happens()
-> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let api = edge.netns().run(FakeApiserver::start)??;
    api.put(objects::node(NODE, None, edge.ip4().into()))?;
    let mut object = objects::pod("web-0", NODE);
    object["metadata"]["namespace"] = json!("shop");
    object["metadata"]["annotations"] =
        json!({"yurt-net.openyurt.io/extra-addresses": "10.1.0.99"});
    api.put(object)?;
    let source = format!("kube:{}", api.http().url());
    // Nothing is mended by the clock.
    let _agent = edge.start_agent_from(&source, NODE, &["--drift-interval=0"])?;
    edge.wait_ready()?;
    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let web = pod("web-0", "c1");
    network.add(&web.sandbox);
    edge.wait_for_status("the Pod is guarded", |status| {
        shown(status, "web-0").is_some_and(|pod| pod.device.is_some())
    })?;
    let (before, _) = found(&edge, "web-0")?;
    spoof(&web.netns, "10.1.0.99")?;
    ensure!(found(&edge, "web-0")?.0 == before, "it was granted");

    let mut service = objects::service("vip", "10.96.0.77".parse()?, 80);
    service["spec"]["type"] = json!("LoadBalancer");
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "10.1.0.99"}]}});
    api.put(service)?;
    edge.wait_for_status("the grant is taken back", |status| {
        let mut alarms = status.retention.alarms.iter();
        alarms.any(|alarm| alarm.contains("10.1.0.99 belongs to the load balancer of Service"))
    })?;
    let deadline = Instant::now() + PATIENCE;
    // The guard is told by a thread.
    while found(&edge, "web-0")?.0 == before {
        ensure!(Instant::now() < deadline, "the guard lets it pass");
        spoof(&web.netns, "10.1.0.99")?;
    }
    Ok(())
}

#[test]
fn what_is_kept_is_released_once_the_cloud_says_that_the_pod_is_gone() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let api = edge.netns().run(FakeApiserver::start)??;
    api.put(objects::node(NODE, None, edge.ip4().into()))?;
    for name in ["web-0", "web-1"] {
        let mut object = objects::pod(name, NODE);
        object["metadata"]["namespace"] = json!("shop");
        api.put(object)?;
    }
    // Both went an hour ago, as far as the ledger's clock tells.
    keep(&edge, &["web-0", "web-1"])?;
    let _agent = edge.start_agent_from(&format!("kube:{}", api.http().url()), NODE, &[])?;
    let state = |status: &Status, name: &str| shown(status, name).map(|pod| pod.state);
    edge.wait_for_status("both are kept", |status| {
        status
            .source
            .received
            .get("pods")
            .is_some_and(|pods| pods.objects >= 2)
            && state(status, "web-0") == Some(State::Retained)
            && state(status, "web-1") == Some(State::Retained)
    })?;
    api.delete(Resource::Pods, "shop", "web-1")?;
    let status = edge.wait_for_status("one is released", |status| {
        state(status, "web-1") == Some(State::Released)
    })?;
    ensure!(state(&status, "web-0") == Some(State::Retained));
    Ok(())
}

/// What `check` says of one thing: its result and details.
pub(crate) fn checked(edge: &lab::Node, what: &str) -> Result<Vec<(String, String)>> {
    let output = edge.yurt_net(&["check", "-o", "json"])?;
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    Ok(findings
        .iter()
        .filter(|finding| finding["check"] == what)
        .map(|finding| (text(finding, "result"), text(finding, "detail")))
        .collect())
}

#[test]
fn check_compares_the_ledger_with_what_pods_really_have() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let _agent = edge.start_agent(&[])?;
    edge.wait_ready()?;
    let result = |what| Ok::<_, anyhow::Error>(checked(&edge, what)?.remove(0));
    let (outcome, detail) = result("ledger")?;
    ensure!(outcome == "warning" && detail.contains("no Pod of this node"));

    let mut network = Network::new(&node, "1.0.0", node.bridged(node.ipam()));
    let (web, other) = (pod("web-0", "c1"), pod("other", "c2"));
    network.add(&web.sandbox);
    network.add(&other.sandbox);
    // A namespace is found where a process is in it.
    let live = [&web, &other].map(|pod| Sleeper::in_netns(&pod.netns));
    edge.wait_for_status("the Pods are guarded", |status| {
        shown(status, "other").is_some_and(|pod| pod.device.is_some())
    })?;
    for what in ["ledger", "addresses", "guarded"] {
        let (outcome, detail) = result(what)?;
        ensure!(outcome == "ok", "{what}: {detail}");
    }
    other.netns.ip("address add 10.1.0.2/24 dev eth0\n")?;
    let (outcome, detail) = result("addresses")?;
    ensure!(
        outcome == "failed" && detail.contains("shop/web-0"),
        "{detail}"
    );
    drop(live);
    let (outcome, detail) = result("leaks")?;
    ensure!(
        outcome == "warning" && detail.contains("shop/other"),
        "{detail}"
    );
    let (state, run) = (edge.state_dir(), edge.run_dir());
    let ledger = || -> Result<String> {
        let directories = [("--state-dir", &state), ("--run-dir", &run)];
        let flags = directories.map(|(flag, path)| format!("{flag}={}", path.display()));
        let output = edge.yurt_net(&["ledger", &flags[0], &flags[1]])?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let _here = Sleeper::in_netns(&web.netns);
    let listed = ledger()?;
    let line = |name: &str| listed.lines().find(|line| line.starts_with(name));
    ensure!(
        line("shop/web-0").is_some_and(|line| line.contains(" active ")),
        "{listed}"
    );
    ensure!(
        line("shop/other").is_some_and(|line| line.contains(" leaked ")),
        "{listed}"
    );
    ensure!(line("leaked: ").is_some(), "{listed}");
    Ok(())
}

#[test]
fn the_agent_keeps_the_plugins_in_the_configuration_and_never_fights() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let (conf, bin) = (node.dir().join("net.d"), node.dir().join("plugins"));
    fs::create_dir(&conf)?;
    let file = conf.join("10-flannel.conflist");
    let flannel = json!({
        "name": "cbr0", "cniVersion": "0.3.1",
        "plugins": [{"type": "flannel", "delegate": {"isDefaultGateway": true}}, {"type": "portmap"}],
    });
    // As flannel's init container does it: in place.
    let write = || fs::write(&file, flannel.to_string()).context("write the configuration");
    let flags = [
        "--cni=install".to_owned(),
        format!("--cni-conf-dir={}", conf.display()),
        format!("--cni-bin-dir={}", bin.display()),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let _agent = edge.start_agent(&flags)?;
    edge.wait_for_status("there is nothing to install into", |status| {
        let mut alarms = status.retention.alarms.iter();
        alarms.any(|alarm| alarm.contains("has no CNI configuration"))
    })?;
    let kinds = || -> Result<Vec<String>> {
        let config: Value = serde_json::from_slice(&fs::read(&file)?)?;
        let plugins = config["plugins"].as_array().context("no plugins")?.clone();
        let kind = |plugin: &Value| plugin["type"].as_str().unwrap_or_default().to_owned();
        Ok(plugins.iter().map(kind).collect())
    };
    let is_installed = || kinds().is_ok_and(|kinds| kinds == ["flannel", "yurt-cni", "portmap"]);
    for _ in 0..3 {
        write()?;
        edge.wait_for_status("the plugins are in it", |_| is_installed())?;
    }
    let config: Value = serde_json::from_slice(&fs::read(&file)?)?;
    ensure!(
        config["plugins"][0]["ipam"]["type"] == "yurt-ipam",
        "{config}"
    );
    let program = edge.yurt_net(&["check", "-o", "json", flags[1], flags[2]])?;
    let findings = String::from_utf8_lossy(&program.stdout).into_owned();
    ensure!(
        findings.contains(r#""check":"cni-config","result":"ok""#),
        "{findings}"
    );
    ensure!(
        findings.contains(r#""check":"cni-plugins","result":"ok""#),
        "{findings}"
    );
    write()?;
    edge.wait_for_status("it is left alone", |status| {
        let mut alarms = status.retention.alarms.iter();
        alarms.any(|alarm| alarm.contains("again and again"))
    })?;
    ensure!(kinds()? == ["flannel", "portmap"]);
    Ok(())
}

#[test]
fn a_pod_is_made_by_what_was_installed_and_by_host_local_once_it_was_removed() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let node = Node::on(&edge);
    let (conf, bin) = (node.dir().join("net.d"), node.dir().join("plugins"));
    fs::create_dir(&conf)?;
    let file = conf.join("10-edge.conflist");
    let ipam = json!({
        "type": "host-local", "dataDir": node.path("networks"), "ranges": [[{"subnet": "10.1.0.0/24"}]],
    });
    let before = json!({
        "name": "edge", "cniVersion": "1.0.0",
        "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam}],
    });
    fs::write(&file, before.to_string())?;
    let cni = |verb| -> Result<String> {
        let directories = [
            ("--cni-conf-dir", conf.clone()),
            ("--cni-bin-dir", bin.clone()),
            ("--state-dir", edge.state_dir()),
            ("--run-dir", edge.run_dir()),
        ];
        let directories = directories.map(|(flag, path)| format!("{flag}={}", path.display()));
        let words: Vec<&str> = ["cni"]
            .into_iter()
            .chain(directories.iter().map(String::as_str))
            .chain([verb])
            .collect();
        let output = edge.yurt_net(&words)?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    ensure!(cni("install")?.contains("10-edge.conflist: installed"));
    ensure!(cni("install")?.contains("10-edge.conflist: as they are"));
    let config: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let plugins = config["plugins"].as_array().context("no plugins")?.clone();
    let mut network = Network::new(&node, "1.0.0", plugins);
    let web = pod("web-0", "c1");
    let result = network.add(&web.sandbox);
    ensure!(node.entry("web-0")["state"] == "active");
    network.del(&web.sandbox);
    let again = network.add(&pod("web-0", "c2").sandbox);
    ensure!(addresses(&again) == addresses(&result));

    ensure!(cni("uninstall")?.contains("removed from"));
    let config: Value = serde_json::from_slice(&fs::read(&file)?)?;
    ensure!(config == before, "{config}");
    ensure!(fs::read_dir(&bin)?.next().is_none());
    ensure!(cni("uninstall")?.contains("nothing to remove"));
    Ok(())
}

/// A process in a Pod. Ends with this value.
struct Sleeper(Child);

impl Sleeper {
    fn in_netns(netns: &Netns) -> Self {
        let mut command = Command::new("sleep");
        // It is ended with this value.
        command.arg("900");
        netns.enter(&mut command);
        Self(command.spawn().expect("run `sleep`"))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Writes a ledger in which these Pods are to come back.
fn keep(edge: &lab::Node, names: &[&str]) -> Result<()> {
    let pods = names.iter().zip(2u8..).map(|(name, last)| Kept {
        name: (*name).to_owned(),
        addresses: vec![IpAddr::from([10, 1, 0, last])],
        state: State::Retained,
        host: None,
    });
    edge.keep(pods.collect())
}
