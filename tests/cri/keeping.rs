//! A Pod keeps its addresses and its MAC whatever happens to its sandbox, its runtime and its node, all of it without
//! the cloud.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use yurt_net_tests::apiserver::{HubMode, objects};
use yurt_net_tests::lab::{self, Lab};
use yurt_net_tests::runtime::{self, Node};

use super::client::{NAMESPACE, Sandbox};
use super::containerd::Containerd;
use super::image;
use super::peer::Peer;

const NODE: &str = "edge-1";
const VIP: &str = "10.96.0.10";
const PATIENCE: Duration = Duration::from_secs(60);

/// The node's runtime, and the one who asks it to run Pods.
struct Kubelet {
    containerd: Containerd,
}

impl Kubelet {
    /// Runs a Pod, and returns its sandbox, ready.
    fn run(&self, pod: &str, attempt: u64) -> Result<(String, Sandbox)> {
        let cri = &self.containerd.cri;
        let id = cri
            .run_sandbox(pod, attempt)
            .with_context(|| self.containerd.log())?;
        cri.run_container((pod, attempt, &id), image::NAME, &["serve", pod])
            .with_context(|| self.containerd.log())?;
        let sandbox = cri.sandbox(&id)?;
        ensure!(sandbox.is_ready, "{sandbox:?}");
        Ok((id, sandbox))
    }

    /// Takes a sandbox away for good: DEL.
    fn remove(&self, id: &str) -> Result<()> {
        self.containerd.cri.stop_sandbox(id)?;
        self.containerd.cri.remove_sandbox(id)
    }
}

/// As a person installs them: into the configuration that the node has, with `host-local`.
fn install(edge: &lab::Node, conf: &Path, bin: &Path, networks: String) -> Result<()> {
    fs::create_dir(conf)?;
    let config = json!({
        "name": "edge", "cniVersion": "0.4.0",
        "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {
            "type": "host-local", "dataDir": networks,
            "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }}],
    });
    fs::write(conf.join("10-edge.conflist"), config.to_string())?;
    let flags = [
        ("--cni-conf-dir", conf.to_owned()),
        ("--cni-bin-dir", bin.to_owned()),
        ("--state-dir", edge.state_dir()),
        ("--run-dir", edge.run_dir()),
    ];
    let flags = flags.map(|(flag, path)| format!("{flag}={}", path.display()));
    let words = ["cni"].into_iter().chain(flags.iter().map(String::as_str));
    let words: Vec<&str> = words.chain(["install"]).collect();
    let output = edge.yurt_net(&words)?;
    ensure!(output.status.success(), "{output:?}");
    // What a node has there from the start.
    for plugin in ["bridge", "loopback"] {
        symlink(Path::new("/usr/lib/cni").join(plugin), bin.join(plugin))?;
    }
    Ok(())
}

/// Until a process of the node gets the Pod by its Service.
fn wait_for_service(edge: &lab::Node, name: &str) -> Result<()> {
    let script = format!(
        "exec 3<>/dev/tcp/{VIP}/80 && echo q >&3 && head -c {} <&3",
        name.len()
    );
    let started = Instant::now();
    loop {
        let output = edge
            .host()?
            .output("timeout", &["2", "bash", "-c", &script])?;
        if output.stdout == name.as_bytes() {
            return Ok(());
        }
        ensure!(
            started.elapsed() < PATIENCE,
            "{output:?}\n{:#?}\n{}",
            edge.status(),
            edge.agent_log()
        );
    }
}

/// Until the Pods' devices have followed their namespaces.
fn wait_for_no_pods(edge: &lab::Node) -> Result<()> {
    let started = Instant::now();
    loop {
        let links = runtime::ip(edge.netns(), &["link", "show", "type", "veth"]);
        let links = links.as_array().context("`ip` prints a list")?;
        let is_pods = |name: &str| name.starts_with("veth");
        // `ip` prints an empty object for each link of another kind.
        if !links
            .iter()
            .any(|link| link["ifname"].as_str().is_some_and(is_pods))
        {
            return Ok(());
        }
        ensure!(started.elapsed() < PATIENCE, "{links:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_pod_of_containerd_keeps_address_and_mac_offline_and_a_peer_that_learns_nothing_gets_through()
-> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    // Its directories; the plugins are called by containerd alone.
    let node = Node::on(&edge);
    let (conf, bin) = (node.dir().join("net.d"), node.dir().join("plugins"));
    install(&edge, &conf, &bin, node.path("networks"))?;
    let containerd = Containerd::start(&edge, &node.dir().join("containerd"), &conf, &bin)?;
    let mut kubelet = Kubelet { containerd };

    let (cloud, hub) = edge.start_cloud_and_hub()?;
    let source = format!("yurthub:{}", hub.http().url());
    let agent = edge.start_agent_from(&source, NODE, &[])?;
    edge.wait_ready()?;

    // The first time: the cloud hears of the Pod, and the peer is told where it is.
    let (_other, _) = kubelet.run("other-0", 0)?;
    let (first, sandbox) = kubelet.run("web-0", 0)?;
    let own = |sandbox: &Sandbox| (sandbox.addresses.clone(), sandbox.mac.clone());
    let kept = own(&sandbox);
    let addresses: Vec<IpAddr> = kept
        .0
        .iter()
        .map(|at| at.parse())
        .collect::<Result<_, _>>()?;
    ensure!(addresses.len() == 2, "one of each family: {sandbox:?}");
    let mut endpoint = objects::endpoint(addresses[0], NODE);
    endpoint["targetRef"] = json!({"kind": "Pod", "name": "web-0"});
    let mut objects = [
        objects::service("web", VIP.parse()?, 80),
        objects::slice("web-1", "web", 8080, [endpoint]),
    ];
    for object in &mut objects {
        object["metadata"]["namespace"] = json!(NAMESPACE);
    }
    cloud.put_all(objects)?;
    wait_for_service(&edge, "web-0")?;
    let peer = Peer::beside(&edge)?;
    Peer::plug(&edge)?;
    peer.learn(&addresses, &kept.1)?;
    let clients = [peer.client(addresses[0])?, peer.client(addresses[1])?];
    let wait_for_answers = || {
        clients
            .iter()
            .try_for_each(|client| client.wait_for("web-0"))
    };
    wait_for_answers()?;

    // From here on the cloud is away.
    hub.set_mode(HubMode::Offline);

    // The sandbox is killed: DEL of the old one, ADD of the next. Somebody else comes in between.
    kill(sandbox.pid)?;
    kubelet
        .containerd
        .wait("the sandbox is seen to be dead", |cri| {
            Ok(!cri.sandbox(&first)?.is_ready)
        })?;
    kubelet.remove(&first)?;
    let (_late, late) = kubelet.run("late-0", 0)?;
    ensure!(late.addresses != kept.0 && late.mac != kept.1, "{late:?}");
    let (second, sandbox) = kubelet.run("web-0", 1)?;
    ensure!(own(&sandbox) == kept, "{sandbox:?} {kept:?}");
    wait_for_answers()?;

    // containerd crashes and comes back: nobody notices.
    let mut connection = peer.connection(addresses[0])?;
    ensure!(connection.ask()? == "web-0");
    kubelet.containerd.restart()?;
    ensure!(connection.ask()? == "web-0");
    ensure!(kubelet.containerd.cri.sandbox(&second)? == sandbox);
    for client in &clients {
        ensure!(client.ask()? == "web-0");
    }

    // The power is cut: processes, namespaces, interfaces, pins and `/run` are gone. What is on the disk is not.
    agent.kill9()?;
    kubelet.containerd.lose_power()?;
    wait_for_no_pods(&edge)?;
    edge.netns().ip("link del cni0\n")?;
    edge.lose_pins()?;
    fs::remove_dir_all(edge.run_dir())?;
    ensure!(
        clients[0].ask().is_err(),
        "who answers for a Pod that is gone?"
    );
    edge.netns().run(|| hub.restart())??;
    kubelet.containerd.boot()?;
    let _agent = edge.start_agent_from(&source, NODE, &[])?;
    let before = kubelet.containerd.cri.sandboxes()?;
    ensure!(before.len() == 3 && before.contains(&second), "{before:?}");
    // Others are made first: the addresses that were next are not the ones they had.
    for name in ["late-0", "other-0"] {
        kubelet.run(name, 1)?;
    }
    let (third, sandbox) = kubelet.run("web-0", 2)?;
    ensure!(own(&sandbox) == kept, "{sandbox:?} {kept:?}");
    Peer::plug(&edge)?;
    wait_for_answers()?;
    wait_for_service(&edge, "web-0")?;
    let status = edge.status()?;
    ensure!(
        !status.source.is_fresh && status.retention.endpoints_moved == 0,
        "{status:#?}"
    );

    // Only then are the sandboxes of before the reboot taken away: DEL of an old one behind ADD of the next takes
    // nothing from it.
    before.iter().try_for_each(|id| kubelet.remove(id))?;
    let entry = node.entry("web-0");
    ensure!(
        entry["state"] == "active" && entry["sandbox"] == third.as_str(),
        "{entry}"
    );
    ensure!(own(&kubelet.containerd.cri.sandbox(&third)?) == kept);
    wait_for_answers()
}

/// As the kernel does it when memory is short.
fn kill(pid: u32) -> Result<()> {
    ensure!(pid > 1, "{pid} is no Pod's");
    // SAFETY: no pointers.
    let result = unsafe { libc::kill(libc::pid_t::try_from(pid)?, libc::SIGKILL) };
    ensure!(
        result == 0,
        "kill {pid}: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}
