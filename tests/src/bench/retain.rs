//! `yurt-ipam` by turns with host-local, as a runtime starts them; and the ledger that it reads each time.

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
use yurt_net::retain::ledger::store::Place;
use yurt_net::retain::ledger::store::Store;

use super::Options;
use super::report::Claim;
use super::report::Measure;
use super::report::Series;
use super::stats::Summary;
use crate::lab::Lab;
use crate::lab::agent_program;

/// Name of the measure.
pub const NAME: &str = "retain";

/// As many as a kubelet runs at most, by its defaults and a bit.
const PODS: usize = 250;

/// An IPAM plugin, and what it is told.
struct Plugin {
    program: PathBuf,
    config: Value,
}

/// Takes it. The lab is not needed: no packet is sent.
pub fn measure(_lab: &Lab, options: &Options) -> Result<Measure> {
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
            // Its names are new in every round, as those of a Deployment are; then the same one comes again.
            adds[index].push(plugin.call("ADD", container, container)?);
            dels[index].push(plugin.call("DEL", container, container)?);
            agains[index].push(plugin.call("ADD", container, container + 1)?);
            plugin.call("DEL", container, container + 1)?;
        }
    }
    let place = Place {
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

    let mut series = Vec::new();
    let mut claims = Vec::new();
    for (what, [theirs, ours]) in [
        ("ADD of a new Pod", &adds),
        ("ADD of a known Pod", &agains),
        ("DEL", &dels),
    ] {
        series.push(Series::new(format!("{what}, host-local, ms"), theirs));
        series.push(Series::new(format!("{what}, yurt-ipam, ms"), ours));
        // Medians of a few rounds each: of single calls, the scheduler decides.
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

impl Plugin {
    /// Milliseconds of one call.
    fn call(&self, verb: &str, pod: usize, container: usize) -> Result<f64> {
        let config =
            json!({"cniVersion": "1.0.0", "name": "bench", "type": "bridge", "ipam": self.config})
                .to_string();
        let start = Instant::now();
        let mut child = Command::new(&self.program)
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("c{container:063}"))
            .env("CNI_NETNS", "/proc/self/ns/net")
            .env("CNI_IFNAME", "eth0")
            .env(
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-{pod}"),
            )
            .env("CNI_PATH", Path::new("/usr/lib/cni"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
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
}
