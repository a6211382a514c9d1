//! What only a running agent and the kernel's verifier can tell `cargo xtask baseline`: `status` prints the keys of
//! `status -o json`, `programs` how much work each program is for the verifier. Needs root; `YURT_NET_BIN` is the
//! agent.

use std::collections::BTreeSet;
use std::io::{self, Write as _};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use yurt_net::dataplane::load::trial;
use yurt_net_tests::lab::{Lab, Manifests};

fn main() -> Result<()> {
    let lines = match std::env::args().nth(1).as_deref() {
        Some("status") => status_keys()?,
        Some("programs") => programs()?,
        _ => bail!("usage: contracts status|programs"),
    };
    for line in lines {
        writeln!(io::stdout(), "{line}")?;
    }
    Ok(())
}

/// The keys of an agent that serves one Service.
fn status_keys() -> Result<BTreeSet<String>> {
    let lab = Lab::new()?;
    let node = lab.node("edge-1")?;
    let mut manifests = Manifests::new();
    manifests.node(&node).pool("hangzhou");
    manifests
        .service("web")
        .cluster_ip("10.96.0.10")
        .port(80, 8080);
    lab.apply(&manifests)?;
    let _agent = node.start_agent(&[])?;
    node.wait_ready()?;
    let output = node.yurt_net(&["status", "-o", "json"])?;
    let status = serde_json::from_slice(&output.stdout).context("status -o json")?;
    let mut keys = BTreeSet::new();
    collect_keys("", &status, &mut keys);
    Ok(keys)
}

/// Every path to a value; items of a list have the list's path.
fn collect_keys(path: &str, value: &Value, keys: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = format!("{path}.{key}");
                collect_keys(&path, value, keys);
                keys.insert(path);
            }
        }
        Value::Array(items) => {
            for item in items {
                collect_keys(&format!("{path}[]"), item, keys);
            }
        }
        _ => {}
    }
}

/// Name, verified instructions, bytes after translation.
fn programs() -> Result<BTreeSet<String>> {
    let trial = trial()?;
    let sizes = trial.sockets.into_iter().chain([trial.guard?]);
    let sizes = sizes.chain(trial.translate?).chain([trial.vtep?]);
    Ok(sizes
        .map(|size| {
            format!(
                "{} verified {} bytes {}",
                size.name, size.verified, size.translated
            )
        })
        .collect())
}
