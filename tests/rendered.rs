//! What Helm makes of the chart in deploy/.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use yurt_net_tests::apiserver::objects::documents;
use yurt_net_tests::kustomize;

/// Where `cargo xtask setup` puts a tool.
fn tool(name: &str) -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let path = workspace.join(target).join("tools").join(name);
    let advice = "`cargo xtask setup` fetches it";
    path.canonicalize()
        .with_context(|| format!("no {}; {advice}", path.display()))
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Helm, by its library: values files are joined as `-f` does it, and what strict `helm lint` says is an error.
const RENDER: &str = r#"
import json, sys
from helm_python.chart import Chart, lint, values_from_yaml
def join(values, over):
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            join(values[key], value)
        else:
            values[key] = value
    return values
asked = json.load(sys.stdin)
values = {}
for text in asked["values"]:
    join(values, values_from_yaml(text))
said = lint(asked["chart"], values=values, strict=True)
bad = [message for message in said["messages"] if message["severity"] > 1]
if bad or said["errors"]:
    sys.exit(f"{bad} {said['errors']}")
with Chart.load(asked["chart"]) as chart:
    rendered = chart.render(values=values, name="yurt-net", namespace="kube-system")
json.dump(list(rendered.values()), sys.stdout)
"#;

/// The objects of the chart with these values files, of deploy/chart/values.
fn chart(values: &[&str]) -> Result<Vec<Value>> {
    let chart = deploy().join("chart").canonicalize()?;
    let read = |name: &&str| fs::read_to_string(chart.join("values").join(name));
    let values = values.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let mut helm = Command::new("python3")
        .args(["-c", RENDER])
        .env("PYTHONPATH", tool("helm")?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let asked = json!({"chart": chart, "values": values}).to_string();
    let mut input = helm.stdin.take().context("no input")?;
    input.write_all(asked.as_bytes())?;
    drop(input);
    let output = helm.wait_with_output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{complaint}");
    let texts: Vec<String> = serde_json::from_slice(&output.stdout)?;
    let mut objects = Vec::new();
    for text in texts {
        objects.extend(documents(&text)?);
    }
    Ok(objects)
}

fn sorted(mut objects: Vec<Value>) -> Vec<Value> {
    objects.sort_by_key(|object| {
        (
            object["kind"].to_string(),
            object["metadata"]["name"].to_string(),
        )
    });
    objects
}

fn are_same(values: &[&str], kustomization: Vec<Value>) -> Result<()> {
    let (chart, kustomization) = (sorted(chart(values)?), sorted(kustomization));
    ensure!(chart.len() == kustomization.len(), "{chart:?}");
    for (rendered, expected) in chart.iter().zip(&kustomization) {
        let pretty = serde_json::to_string_pretty;
        ensure!(
            rendered == expected,
            "with {values:?} the chart has\n{}\nand the kustomization\n{}",
            pretty(rendered)?,
            pretty(expected)?
        );
    }
    Ok(())
}

#[test]
fn the_chart_renders_what_each_kustomization_does() -> Result<()> {
    are_same(&[], kustomize::render(&deploy())?)?;
    for cluster in ["k3s", "kubeadm", "openyurt", "plain"] {
        let values = format!("{cluster}.yaml");
        let overlay = kustomize::render(&deploy().join("overlays").join(cluster))?;
        are_same(&[&values], overlay)?;
        let beside = json!({
            "kind": "Kustomization", "resources": [format!("overlays/{cluster}")],
            "components": ["components/beside-kube-proxy"],
        });
        let beside = kustomize::build(&deploy(), &beside)?;
        are_same(&[&values, "beside-kube-proxy.yaml"], beside)?;
    }
    Ok(())
}
