//! A container runtime, as far as CNI is concerned: a node with the directories that plugins are told of, and the calls
//! of the plugins in their order. Anything impossible is a panic.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::lab::{self, Netns, agent_program};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The directory of Debian's plugins (`cargo xtask setup` installs them).
const PLUGINS: &str = "/usr/lib/cni";
const PATIENCE: Duration = Duration::from_secs(60);

/// The answer of a plugin.
#[derive(Debug)]
pub struct Answer {
    /// It exited with 0.
    pub is_ok: bool,
    /// Standard output; null if it was empty.
    pub json: Value,
    /// Standard error.
    pub stderr: String,
}

/// A node.
pub struct Node {
    home: Home,
    dir: PathBuf,
}

enum Home {
    /// Directories that were made for it.
    Own(
        Netns,
        #[expect(dead_code, reason = "held, not used")] TempDir,
    ),
    /// A node of a lab, with an agent.
    Lab(lab::Node),
}

/// A Pod's sandbox, as the runtime knows it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its ID.
    pub container: String,
    /// The path of its network namespace.
    pub netns: String,
    /// `CNI_ARGS`.
    pub args: String,
}

impl Node {
    /// A node with a namespace and directories of its own, and no agent.
    pub fn alone() -> Self {
        let dir = tempfile::tempdir().expect("make a directory");
        let netns =
            Netns::router().expect("these tests make network namespaces, which only root can");
        netns.ip("link set lo up\n").expect("set the loopback up");
        Self::with(dir.path().to_owned(), Home::Own(netns, dir))
    }

    /// A node of a lab: its plugins and its agent share one ledger.
    pub fn on(node: &lab::Node) -> Self {
        let state_dir = node.state_dir();
        let dir = state_dir.parent().expect("a directory is in another");
        Self::with(dir.to_owned(), Home::Lab(node.clone()))
    }

    fn with(dir: PathBuf, home: Home) -> Self {
        fs::create_dir(dir.join("bin")).expect("make a directory");
        let program = agent_program().expect("find the agent");
        let program = fs::canonicalize(program).expect("find the agent");
        for name in ["yurt-ipam", "yurt-cni"] {
            symlink(&program, dir.join("bin").join(name)).expect("link the plugin");
        }
        Self { home, dir }
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        match &self.home {
            Home::Own(netns, _) => netns,
            Home::Lab(node) => node.netns(),
        }
    }

    /// The directory that has all its directories.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of a directory or file in it.
    pub fn path(&self, name: &str) -> String {
        self.dir
            .join(name)
            .to_str()
            .expect("a path of ASCII")
            .to_owned()
    }

    /// The section `ipam` for `yurt-ipam`: both families.
    pub fn ipam(&self) -> Value {
        json!({
            "type": "yurt-ipam", "dataDir": self.path("state"), "runDir": self.path("run"), "migrateFrom": self.path("networks"),
            "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        })
    }

    /// The configurations of a bridge with this IPAM, and of `yurt-cni`.
    pub fn bridged(&self, ipam: Value) -> Vec<Value> {
        let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam});
        vec![bridge, self.chained()]
    }

    /// The configuration of `yurt-cni`.
    pub fn chained(&self) -> Value {
        json!({"type": "yurt-cni", "dataDir": self.path("state"), "runDir": self.path("run")})
    }

    /// Calls one plugin with one configuration.
    pub fn call(&self, verb: &str, sandbox: &Sandbox, config: &Value) -> Answer {
        let mut child = self.start(verb, sandbox, config);
        drop(child.stdin.take());
        let output = child.wait_with_output().expect("wait for the plugin");
        let stdout = String::from_utf8(output.stdout).expect("read UTF-8");
        Answer {
            is_ok: output.status.success(),
            json: match stdout.trim() {
                "" => Value::Null,
                text => {
                    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
                }
            },
            stderr: String::from_utf8(output.stderr).expect("read UTF-8"),
        }
    }

    /// The same, repeated while the plugin answers with code 11 (try again), as runtimes do. A DEL that begins in the
    /// same clock tick in which its ADD asked for addresses cannot be told from one that began before.
    pub fn call_until_done(&self, verb: &str, sandbox: &Sandbox, config: &Value) -> Answer {
        let started = Instant::now();
        loop {
            let answer = self.call(verb, sandbox, config);
            if answer.json["code"] != 11 || started.elapsed() > PATIENCE {
                return answer;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts a plugin, and writes its configuration to it.
    pub fn start(&self, verb: &str, sandbox: &Sandbox, config: &Value) -> std::process::Child {
        let kind = config["type"].as_str().expect("a plugin has a type");
        // For an IPAM plugin, `type` is that of the main plugin.
        let is_ipam_alone = kind == "yurt-ipam";
        let ours = self.dir.join("bin").join(kind);
        let program = if ours.exists() {
            ours
        } else {
            PathBuf::from(PLUGINS).join(kind)
        };
        let mut command = Command::new(&program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("XTABLES_LOCKFILE", self.path("xtables.lock"))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &sandbox.container)
            .env("CNI_NETNS", &sandbox.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", &sandbox.args)
            .env("CNI_PATH", format!("{}:{PLUGINS}", self.path("bin")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.netns().enter(&mut command);
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!(
                "{}: {error}; `cargo xtask setup` installs the CNI plugins",
                program.display()
            )
        });
        let mut config = config.clone();
        if is_ipam_alone {
            let ipam = config.clone();
            config = json!({"type": "bridge", "ipam": ipam});
            for key in [
                "cniVersion",
                "name",
                "prevResult",
                "runtimeConfig",
                "args",
                "cni.dev/valid-attachments",
            ] {
                if let Some(value) = ipam.get(key) {
                    config[key] = value.clone();
                }
            }
        }
        let text = config.to_string();
        child
            .stdin
            .as_mut()
            .expect("standard input is a pipe")
            .write_all(text.as_bytes())
            .expect("write the configuration");
        child
    }
}

/// A network, and what a runtime remembers of it.
pub struct Network<'a> {
    /// Its node.
    pub node: &'a Node,
    /// `cniVersion`.
    pub version: &'a str,
    /// The plugins, in the order of the list.
    pub plugins: Vec<Value>,
    results: BTreeMap<String, Value>,
    /// What all plugins have written to standard error.
    pub stderr: String,
}

impl<'a> Network<'a> {
    /// A network without any sandbox.
    pub fn new(node: &'a Node, version: &'a str, plugins: Vec<Value>) -> Self {
        Self {
            node,
            version,
            plugins,
            results: BTreeMap::new(),
            stderr: String::new(),
        }
    }

    fn config(&self, plugin: &Value, previous: Option<&Value>) -> Value {
        let mut config = plugin.clone();
        config["cniVersion"] = json!(self.version);
        config["name"] = json!("edge");
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        config
    }

    /// ADD, by each plugin in turn; the answer of the last one, or of the first that failed.
    pub fn try_add(&mut self, sandbox: &Sandbox) -> Result<Value, Value> {
        let mut result = None;
        for plugin in &self.plugins {
            let answer = self
                .node
                .call("ADD", sandbox, &self.config(plugin, result.as_ref()));
            self.stderr += &answer.stderr;
            if !answer.is_ok {
                return Err(answer.json);
            }
            result = Some(answer.json);
        }
        let result = result.expect("a network has plugins");
        self.results
            .insert(sandbox.container.clone(), result.clone());
        Ok(result)
    }

    /// ADD, which must succeed.
    #[track_caller]
    pub fn add(&mut self, sandbox: &Sandbox) -> Value {
        self.try_add(sandbox)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// DEL, by each plugin in reverse order.
    #[track_caller]
    pub fn del(&mut self, sandbox: &Sandbox) {
        let previous = self.results.remove(&sandbox.container);
        for plugin in self.plugins.iter().rev() {
            let config = self.config(plugin, previous.as_ref());
            let answer = self.node.call_until_done("DEL", sandbox, &config);
            assert!(answer.is_ok, "{answer:?}");
        }
    }

    /// CHECK, by each plugin in turn.
    pub fn check(&self, sandbox: &Sandbox) -> Result<(), Value> {
        let previous = self.results.get(&sandbox.container);
        for plugin in &self.plugins {
            let answer = self
                .node
                .call("CHECK", sandbox, &self.config(plugin, previous));
            if !answer.is_ok {
                return Err(answer.json);
            }
        }
        Ok(())
    }
}

/// A sandbox and its network namespace.
pub struct Pod {
    /// The namespace.
    pub netns: Netns,
    /// The sandbox, as the runtime knows it.
    pub sandbox: Sandbox,
}

/// A sandbox of a Pod, with this container ID.
pub fn pod(name: &str, container: &str) -> Pod {
    let netns = Netns::host().expect("these tests make network namespaces, which only root can");
    netns.ip("link set lo up\n").expect("set the loopback up");
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={container};K8S_POD_UID=uid-{name}"
    );
    let sandbox = Sandbox {
        container: container.to_owned(),
        netns: netns.path(),
        args,
    };
    Pod { netns, sandbox }
}

/// A Pod that answers every client with its name. Its namespace goes with this value.
pub struct Running {
    /// The Pod.
    pub pod: Pod,
    is_over: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Running {
    /// It serves on port 8080, TCP and UDP.
    pub fn start(pod: Pod, name: &'static str) -> Result<Self> {
        let (tcp, udp) = pod.netns.run(|| -> Result<_> {
            let any: SocketAddr = "0.0.0.0:8080".parse()?;
            Ok((TcpListener::bind(any)?, UdpSocket::bind(any)?))
        })??;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let server = std::thread::spawn(move || {
            let mut question = [0; 16];
            while !over.load(Ordering::Relaxed) {
                // A client that has gone gets no answer.
                if let Ok((mut stream, _)) = tcp.accept() {
                    let _gone = stream.write_all(name.as_bytes());
                } else if let Ok((_, from)) = udp.recv_from(&mut question) {
                    let _gone = udp.send_to(name.as_bytes(), from);
                } else {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Ok(Self {
            pod,
            is_over,
            server: Some(server),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            // Its sockets hold the namespace.
            let _ended = server.join();
        }
    }
}

/// The addresses of a result, without prefix lengths.
#[track_caller]
pub fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"]
        .as_array()
        .unwrap_or_else(|| panic!("{result}"));
    let address = |ip: &Value| {
        ip["address"]
            .as_str()
            .expect("an address is text")
            .split('/')
            .next()
            .expect("an address is something")
            .to_owned()
    };
    ips.iter().map(address).collect()
}

/// The MAC that a result gives to the Pod's interface.
#[track_caller]
pub fn mac(result: &Value) -> String {
    let interfaces = result["interfaces"]
        .as_array()
        .expect("a result has interfaces");
    let own = interfaces
        .iter()
        .find(|interface| interface["sandbox"].is_string())
        .expect("one of them is the Pod's");
    own["mac"].as_str().expect("a MAC is text").to_owned()
}

impl Node {
    /// What `yurt-net ledger -o json` prints.
    pub fn ledger(&self) -> Value {
        let output = Command::new(agent_program().expect("find the agent"))
            .args([
                "ledger",
                "-o",
                "json",
                "--state-dir",
                &self.path("state"),
                "--run-dir",
                &self.path("run"),
            ])
            .output()
            .expect("run `yurt-net ledger`");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("read what it prints")
    }

    /// The ledger's entry with this name.
    #[track_caller]
    pub fn entry(&self, name: &str) -> Value {
        let ledger = self.ledger();
        let entries = ledger["entries"].as_array().expect("a ledger has entries");
        let found = entries.iter().find(|entry| entry["name"] == name);
        found
            .unwrap_or_else(|| panic!("no {name} in {ledger}"))
            .clone()
    }
}

/// What `ip -json` prints inside a namespace.
pub fn ip(netns: &Netns, args: &[&str]) -> Value {
    let mut command = Command::new("ip");
    command.arg("-json").args(args);
    netns.enter(&mut command);
    let output = command.output().expect("run `ip`");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("read what `ip` prints")
}
