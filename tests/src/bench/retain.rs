//! `yurt-ipam` in turns with host-local, as a runtime starts them; and the ledger that it reads each time.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use serde_json::Value;
use serde_json::json;
use yurt_net::ledger::store::LedgerDirs;
use yurt_net::ledger::store::Store;
use yurt_net::pods::settings::{GuardSettings, Settings as _};

use super::Options;
use super::report::Claim;
use super::report::Measure;
use super::report::Series;
use super::stats::Summary;
use crate::lab::Lab;
use crate::lab::Netns;
use crate::lab::agent_program;

/// Name of the measure.
pub const NAME: &str = "retain";

/// More Pods than a kubelet runs by default (110).
const PODS: usize = 250;

/// An IPAM plugin, and its configuration.
struct Plugin {
    program: PathBuf,
    config: Value,
}

/// Runs the measure.
pub fn measure(lab: &Lab, options: &Options) -> Result<Measure> {
    let dir = tempfile::tempdir().context("make a directory")?;
    let program = dir.path().join("yurt-ipam");
    symlink(fs::canonicalize(agent_program()?)?, &program)?;
    let path = |name: &str| dir.path().join(name);
    let ranges = json!([[{"subnet": "10.1.0.0/22"}], [{"subnet": "fd00:1::/64"}]]);
    let plugins = [
        Plugin {
            program: PathBuf::from("/usr/lib/cni/host-local"),
            config: json!({"type": "host-local", "dataDir": path("networks"), "ranges": ranges}),
        },
        Plugin {
            program,
            config: json!({
                "type": "yurt-ipam", "dataDir": path("state"), "runDir": path("run"), "migrateFrom": "", "ranges": ranges,
            }),
        },
    ];
    for plugin in &plugins {
        for pod in 0..PODS {
            plugin.call("ADD", pod, pod)?;
        }
    }
    let mut adds = [Vec::new(), Vec::new()];
    let mut agains = [Vec::new(), Vec::new()];
    let mut dels = [Vec::new(), Vec::new()];
    for round in 0..options.rounds(200) {
        let container = PODS + 2 * round;
        for (index, plugin) in plugins.iter().enumerate() {
            // The names are new in every round, as those of a Deployment are; then the same one comes again.
            adds[index].push(plugin.call("ADD", container, container)?);
            dels[index].push(plugin.call("DEL", container, container)?);
            agains[index].push(plugin.call("ADD", container, container + 1)?);
            plugin.call("DEL", container, container + 1)?;
        }
    }
    let place = LedgerDirs {
        state_dir: path("state"),
        run_dir: path("run"),
    };
    let mut replays = Vec::new();
    for _ in 0..options.rounds(200) {
        let start = Instant::now();
        let store = Store::open(&place)?;
        replays.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(
            store.ledger().entries().len() >= PODS,
            "entries are missing"
        );
    }
    let length = fs::metadata(path("state").join("ledger/ledger"))?.len();

    let chained = chained(lab, options, &dir)?;
    let mut series = Vec::new();
    let mut claims = Vec::new();
    // Without a target: most of it is one grace period of the kernel, which attaching a program to a device waits for.
    series.push(Series::new("ADD, yurt-cni with the guard, ms", &chained));
    claims.push(Claim::new("ADD, yurt-cni with the guard", "ms", chained));
    for (what, [theirs, ours]) in [
        ("ADD of a new Pod", &adds),
        ("ADD of a known Pod", &agains),
        ("DEL", &dels),
    ] {
        series.push(Series::new(format!("{what}, host-local, ms"), theirs));
        series.push(Series::new(format!("{what}, yurt-ipam, ms"), ours));
        // Medians of a few rounds each: single calls depend on the scheduler.
        let pairs = theirs.chunks(10).zip(ours.chunks(10));
        let more = pairs.map(|(theirs, ours)| Summary::of(ours).p50 - Summary::of(theirs).p50);
        let what = format!("{what}: yurt-ipam beyond host-local");
        claims.push(Claim::new(what, "ms", more.collect()).at_most(5.0));
    }
    series.push(Series::new(
        format!("replay, {PODS} Pods, both journals, ms"),
        &replays,
    ));
    claims.push(
        Claim::new(format!("replay, {PODS} Pods, both journals"), "ms", replays).at_most(20.0),
    );
    claims.push(Claim::new(
        "journal on disk then",
        "KB",
        vec![f64::from(u32::try_from(length)?) / 1e3],
    ));
    Ok(Measure {
        name: NAME,
        title: "IPAM plugins by turns",
        method: "exec to exit of the plugin alone, IPv4 and IPv6, with 250 Pods that have addresses. host-local never waits for \
                 the disk; yurt-ipam does where a Pod gets new addresses. Replay: read, check and apply.",
        unit: "",
        series,
        claims,
    })
}

/// Milliseconds of an ADD of `yurt-cni` for a Pod that really exists: it sets the MAC, announces it to neighbours,
/// writes the ledger and attaches the guard to the device.
fn chained(lab: &Lab, options: &Options, dir: &tempfile::TempDir) -> Result<Vec<f64>> {
    let node = lab.node("edge-1")?;
    let program = dir.path().join("yurt-cni");
    symlink(fs::canonicalize(agent_program()?)?, &program)?;
    let settings = GuardSettings {
        bpffs: node.bpffs(),
        enforce: false,
        enforced_namespaces: BTreeSet::new(),
        devices: Vec::new(),
    };
    GuardSettings::leave(Some(&settings), &node.state_dir())?;
    let mut chained = Vec::new();
    for round in 0..options.rounds(50) {
        // Each ADD is the first one for its device.
        let name = format!("bench{round}");
        let netns = Netns::host()?;
        node.netns().ip(&format!(
            "link add {name} type veth peer name eth0 netns {}\n",
            netns.path()
        ))?;
        netns.ip("link set eth0 up\naddress add 10.1.0.9/24 dev eth0\n")?;
        let config = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "yurt-cni",
            "dataDir": node.state_dir(), "runDir": node.run_dir(),
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": netns.path()}],
                "ips": [{"address": "10.1.0.9/24", "interface": 0}],
            },
        });
        let container = 2 * PODS + round;
        let mut command = Command::new(&program);
        node.netns().enter(&mut command);
        chained.push(call(
            command,
            "ADD",
            "web",
            container,
            &netns.path(),
            &config,
        )?);
        node.netns().ip(&format!("link del {name}\n"))?;
    }
    Ok(chained)
}

impl Plugin {
    /// Milliseconds of one call.
    fn call(&self, verb: &str, pod: usize, container: usize) -> Result<f64> {
        let config =
            json!({"cniVersion": "1.0.0", "name": "bench", "type": "bridge", "ipam": self.config});
        let command = Command::new(&self.program);
        let pod = format!("web-{pod}");
        call(command, verb, &pod, container, "/proc/self/ns/net", &config)
    }
}

/// Milliseconds from exec to exit.
fn call(
    mut command: Command,
    verb: &str,
    pod: &str,
    container: usize,
    netns: &str,
    config: &Value,
) -> Result<f64> {
    let config = config.to_string();
    let start = Instant::now();
    let mut child = command
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", format!("c{container:063}"))
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env(
            "CNI_ARGS",
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod}"),
        )
        .env("CNI_PATH", Path::new("/usr/lib/cni"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start a plugin")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(config.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let took = start.elapsed().as_secs_f64() * 1e3;
    ensure!(
        output.status.success(),
        "{verb}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(took)
}
