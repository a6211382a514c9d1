//! The agent and its plugins in the image's file system, as the DaemonSet runs them, with nothing else there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use yurt_net::observe::status::Status;
use yurt_net_tests::apiserver::{
    Authority, FakeApiserver, FakeYurtHub, HubMode, Validity, objects,
};
use yurt_net_tests::lab::{self, Lab, Manifests};

use super::image::run;
use super::shipped::{Layout, NODE, PROGRAM};

const VIP: &str = "10.96.0.10";

/// The agents' DaemonSet: its mounts are the node's directories, its command line is run as it is.
fn daemonset() -> Result<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/base/daemonset.yaml");
    let documents = objects::documents(&fs::read_to_string(path)?)?;
    let container = &documents[0]["spec"]["template"]["spec"]["containers"][0];
    Ok(container.clone())
}

/// A container as the DaemonSet describes it, but for the runtime: the image's root file system, what the kernel says
/// in `/proc` and `/sys`, and the mounts.
struct Container {
    root: PathBuf,
    mounts: Vec<(PathBuf, String)>,
}

impl Container {
    fn new(edge: &lab::Node, root: PathBuf, cgroup_mount: &str) -> Result<Self> {
        let dir = edge.state_dir().with_file_name("host");
        let of_node = |path: &str| match path {
            "/var/lib/yurt-net" => (edge.state_dir(), path.to_owned()),
            "/run/yurt-net" => (edge.run_dir(), path.to_owned()),
            "/sys/fs/bpf" => (edge.bpffs(), path.to_owned()),
            "/sys/fs/cgroup" => (edge.cgroup().to_owned(), cgroup_mount.to_owned()),
            other => (dir.join(&other[1..]), other.to_owned()),
        };
        let daemonset = daemonset()?;
        let mounts = daemonset["volumeMounts"].as_array().context("no mounts")?;
        let mounts = mounts
            .iter()
            .filter_map(|mount| mount["mountPath"].as_str());
        let mounts: Vec<_> = mounts.map(of_node).collect();
        for (source, _) in &mounts {
            fs::create_dir_all(source)?;
        }
        Ok(Self { root, mounts })
    }

    /// The agent's program there, on this node.
    fn command(&self, edge: &lab::Node) -> Result<Command> {
        let mut script = String::from(
            "set -e; root=$1; shift; mkdir -p $root/proc $root/sys
             mount -t proc proc $root/proc; mount -t sysfs sysfs $root/sys
             mount -t tmpfs tmpfs $root/sys/fs/cgroup\n",
        );
        for (source, at) in &self.mounts {
            let source = source.display();
            script += &format!("mkdir -p $root{at}; mount --rbind {source} $root{at}\n");
        }
        script += &format!("cd $root; exec chroot . /{PROGRAM} \"$@\"\n");
        let mut command = edge.command("image", "unshare")?;
        command.args(["--mount", "--", "sh", "-c", &script, "sh"]);
        command.arg(&self.root).env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        Ok(command)
    }
}

/// Kills what it holds.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A node with a client, a server, and an apiserver that says so, which speaks no TLS yet.
struct Scene {
    edge: lab::Node,
    client: lab::Pod,
    _server: lab::Pod,
    cloud: FakeApiserver,
    root: PathBuf,
    dir: TempDir,
    _lab: Lab,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let edge = lab.node(NODE)?;
        let (client, server) = (edge.pod("client")?, edge.pod("server")?);
        server.serve_tcp(8080)?;
        let mut manifests = Manifests::new();
        manifests.node(&edge).pool("hangzhou");
        let web = manifests.service("web").cluster_ip(VIP);
        web.port(80, 8080).endpoints([&server]);
        let cloud = edge.netns().run(FakeApiserver::start)??;
        cloud.put_all(objects::documents(&manifests.to_yaml())?)?;
        let dir = tempfile::tempdir()?;
        let root = Layout::unpack(dir.path())?.root(match std::env::consts::ARCH {
            "aarch64" => "arm64",
            _ => "amd64",
        })?;
        Ok(Self {
            edge,
            client,
            _server: server,
            cloud,
            root,
            dir,
            _lab: lab,
        })
    }

    /// Starts the DaemonSet's command line.
    fn launch(&self, container: &Container, env: &[(&str, &str)]) -> Result<Running> {
        let daemonset = daemonset()?;
        let args = daemonset["args"].as_array().context("no args")?;
        let args = args.iter().filter_map(Value::as_str);
        let log = fs::File::create(self.dir.path().join("log"))?;
        let mut agent = container.command(&self.edge)?;
        agent.args(args).env("NODE_NAME", NODE);
        agent.envs(env.iter().copied()).stdout(log.try_clone()?);
        Ok(Running(agent.stderr(log).spawn()?))
    }

    /// Waits until the agent says so.
    fn wait_for(&self, what: &str, holds: impl Fn(&Status) -> bool) -> Result<()> {
        let said = || {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            format!("{log}{:?}", self.edge.status())
        };
        let found = self.edge.wait_for_status(what, holds);
        found.map(drop).with_context(said)
    }

    /// The same, and until a client is served.
    fn start(&self, container: &Container, env: &[(&str, &str)]) -> Result<Running> {
        let agent = self.launch(container, env)?;
        self.is_served(1)?;
        Ok(agent)
    }

    /// Waits until so many Services are, of which a client reaches the first.
    fn is_served(&self, services: usize) -> Result<()> {
        self.wait_for("a table", |status| {
            status.ready && status.services == services
        })?;
        ensure!(self.client.get(&format!("{VIP}:80"))? == "server");
        Ok(())
    }
}

#[test]
fn agent_and_plugins_run_in_the_images_file_system_with_nothing_else_in_it() -> Result<()> {
    let scene = Scene::new()?;
    let Scene { edge, cloud, .. } = &scene;
    // YurtHub, at the address where the DaemonSet's command line expects it.
    let at = "127.0.0.1:10261".parse()?;
    let listen = || FakeYurtHub::listen(at, cloud, HubMode::Online);
    let hub = edge.netns().run(listen)??;
    hub.cache_agent("yurt-net");
    // And the network of the node, as somebody else has configured it.
    let host = edge.state_dir().with_file_name("host");
    fs::create_dir_all(host.join("etc/cni/net.d"))?;
    let config = json!({"name": "edge", "cniVersion": "0.4.0", "plugins": [{
        "type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]]},
    }]});
    let conflist = host.join("etc/cni/net.d/10-edge.conflist");
    fs::write(&conflist, config.to_string())?;

    // On a node with one hierarchy, and on one with both.
    for mount in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        let container = Container::new(edge, scene.root.clone(), mount)?;
        let agent = scene.start(&container, &[])?;
        let status = edge.status()?;
        ensure!(status.cgroup == Path::new(mount) && !status.cgroup_is_root);
        // What a probe does, and what an operator asks first.
        for verb in [
            vec!["status"],
            vec!["status", "--wait", "60s"],
            vec!["check"],
        ] {
            let output = container.command(edge)?.args(&verb).output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(output.status.success(), "{verb:?}: {output:?}");
            ensure!(
                text.contains("only processes below it are served"),
                "{text}"
            );
        }
        drop(agent);
        ensure!(scene.client.get(&format!("{VIP}:80"))? == "server");
    }

    // On a host of another make: nothing but its file, not even a loader.
    let installed = fs::read_to_string(&conflist)?;
    ensure!(installed.contains("yurt-ipam") && installed.contains("yurt-cni"));
    let plugins = host.join("opt/cni/bin");
    for name in ["yurt-ipam", "yurt-cni"] {
        let mut plugin = Command::new("chroot");
        plugin.arg(&plugins).arg(format!("/{name}"));
        let answer: Value = serde_json::from_str(&run(plugin.env("CNI_COMMAND", "VERSION"))?)?;
        ensure!(answer["supportedVersions"].is_array(), "{name}: {answer}");
    }
    Ok(())
}

#[test]
fn without_yurthub_it_follows_an_apiserver_of_a_private_authority_through_expiry_and_rotation()
-> Result<()> {
    let scene = Scene::new()?;
    let Scene { edge, cloud, .. } = &scene;
    let authority = Authority::new("kubernetes")?;
    cloud.http().set_tls(authority.server(Validity::Expired)?);
    // What kubelet gives to a Pod of this ServiceAccount.
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    let files = scene.dir.path().join("account");
    fs::create_dir(&files)?;
    // As kubelet does it: a file at once.
    let give = |name: &str, text: &str| -> Result<()> {
        fs::write(files.join(".new"), text)?;
        Ok(fs::rename(files.join(".new"), files.join(name))?)
    };
    give("token", "a.secret.token\n")?;
    give("ca.crt", authority.pem())?;
    let mut container = Container::new(edge, scene.root.clone(), "/sys/fs/cgroup")?;
    container.mounts.push((files.clone(), account.to_owned()));
    let url = cloud.http().url();
    let port = url.rsplit(':').next().context("no port")?;
    let port = port.trim_end_matches('/');
    let at = [
        ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
        ("KUBERNETES_SERVICE_PORT", port),
    ];
    let had = |token: &str| -> Result<()> {
        let requests = cloud.http().requests();
        let header = format!("Bearer {token}");
        let mut headers = requests.iter().map(|one| one.header("authorization"));
        ensure!(!requests.is_empty() && headers.all(|had| had == header));
        Ok(())
    };
    let says = |word: &'static str| {
        move |status: &Status| {
            let error = status.source.source_error.as_deref().unwrap_or_default();
            error.contains(word)
        }
    };
    // Nothing is sent to a server whose certificate has expired, and once it is renewed, all is.
    let _agent = scene.launch(&container, &at)?;
    scene.wait_for("an expired certificate", says("expired"))?;
    ensure!(cloud.http().requests().is_empty());
    cloud.http().set_tls(authority.server(Validity::Valid)?);
    scene.is_served(1)?;
    had("a.secret.token")?;

    // Authority and token are others: the next ones are read where the old ones were.
    let next = Authority::new("kubernetes")?;
    cloud.http().set_tls(next.server(Validity::Valid)?);
    // It listens anew, where this is called.
    edge.netns().run(|| cloud.http().drop_connections())??;
    scene.wait_for("an authority that is not known", |status| {
        status.source.source_error.is_some()
    })?;
    give("ca.crt", next.pem())?;
    give("token", "another.token\n")?;
    cloud.http().forget_requests();
    let mut more = Manifests::new();
    more.service("more").cluster_ip("10.96.0.11").port(80, 8080);
    cloud.put_all(objects::documents(&more.to_yaml())?)?;
    scene.is_served(2)?;
    had("another.token")
}
