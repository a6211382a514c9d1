//! What other programs make of deploy/: Helm of its chart, and promtool of its alerts.

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

/// Labels that an alert has beside `severity`.
type Labels = &'static [(&'static str, &'static str)];

/// For each alert a series that fires it, with its values as promtool writes them.
const FIRED: [(&str, &str, &str, Labels); 15] = [
    ("NotReady", "yurtnet_ready", "0x60", &[]),
    (
        "Degraded",
        r#"yurtnet_degraded{what="space"}"#,
        "1x60",
        &[("what", "space")],
    ),
    (
        "SelfTestFailed",
        r#"yurtnet_self_test{result="failed"}"#,
        "1x60",
        &[("result", "failed")],
    ),
    (
        "ServesFromCheckpoint",
        r#"yurtnet_snapshot_provenance{provenance="checkpoint"}"#,
        "1x60",
        &[("provenance", "checkpoint")],
    ),
    (
        "SourceSilent",
        "yurtnet_snapshot_age_seconds",
        "0+60x60",
        &[],
    ),
    (
        "MapFull",
        r#"yurtnet_refused_service_ports{map="yurt_fe4"}"#,
        "2x60",
        &[("map", "yurt_fe4")],
    ),
    (
        "MapNearlyFull",
        r#"yurtnet_map_entries{map="yurt_fe4"}"#,
        "60x60",
        &[("map", "yurt_fe4")],
    ),
    (
        "ObjectRejected",
        r#"yurtnet_rejections{kind="Service"}"#,
        "1x60",
        &[("kind", "Service")],
    ),
    (
        "Repairs",
        r#"yurtnet_drift_repairs_total{object="program"}"#,
        "0x30 1x30",
        &[("object", "program")],
    ),
    ("ApplyFails", "yurtnet_apply_failures_total", "0+1x60", &[]),
    (
        "CheckpointFails",
        "yurtnet_checkpoint_errors_total",
        "0x30 1x30",
        &[],
    ),
    ("RetentionAlarm", "yurtnet_retention_alarms", "1x60", &[]),
    ("DeviceAlarm", "yurtnet_devices_alarms", "1x60", &[]),
    (
        "SpoofedFrames",
        r#"yurtnet_guard_frames_total{action="audited", reason="arp"}"#,
        "0+1x60",
        &[("action", "audited"), ("reason", "arp")],
    ),
    (
        "Restarts",
        r#"process_start_time_seconds{job="kube-system/yurt-net"}"#,
        "0+600x60",
        &[("job", "kube-system/yurt-net")],
    ),
];

/// A node on which all is well.
const WELL: [(&str, &str); 16] = [
    ("yurtnet_ready", "1x60"),
    (r#"yurtnet_degraded{what="space"}"#, "0x60"),
    (r#"yurtnet_self_test{result="failed"}"#, "0x60"),
    (
        r#"yurtnet_snapshot_provenance{provenance="checkpoint"}"#,
        "0x60",
    ),
    ("yurtnet_snapshot_age_seconds", "30x60"),
    ("yurtnet_refused_service_ports", "0x60"),
    (r#"yurtnet_map_entries{map="yurt_fe4"}"#, "50x60"),
    (r#"yurtnet_map_capacity{map="yurt_fe4"}"#, "64x60"),
    (r#"yurtnet_rejections{kind="Service"}"#, "0x60"),
    (r#"yurtnet_drift_repairs_total{object="program"}"#, "7x60"),
    ("yurtnet_apply_failures_total", "7x60"),
    ("yurtnet_checkpoint_errors_total", "7x60"),
    ("yurtnet_retention_alarms", "0x60"),
    ("yurtnet_devices_alarms", "0x60"),
    (
        r#"yurtnet_guard_frames_total{action="audited", reason="arp"}"#,
        "7x60",
    ),
    (
        r#"process_start_time_seconds{job="kube-system/yurt-net"}"#,
        "7x60",
    ),
];

fn promtool(args: &[&str], file: &Path) -> Result<()> {
    let output = Command::new(tool("promtool")?)
        .args(args)
        .arg(file)
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&said)
    );
    Ok(())
}

#[test]
fn each_alert_is_fired_by_what_it_is_for_and_none_on_a_node_that_is_well() -> Result<()> {
    let rules = documents(&fs::read_to_string(deploy().join("monitoring/rules.yaml"))?)?;
    let spec = &rules[0]["spec"];
    let rules = spec["groups"][0]["rules"].as_array().context("no rules")?;
    let dir = tempfile::tempdir()?;
    // JSON is YAML.
    fs::write(dir.path().join("rules.yaml"), spec.to_string())?;
    promtool(
        &["check", "rules", "--lint-fatal"],
        &dir.path().join("rules.yaml"),
    )?;
    let series = |(series, values): (&str, &str)| json!({"series": series, "values": values});
    let asked = |name: &Value, expected: Value| json!({"eval_time": "50m", "alertname": name, "exp_alerts": expected});
    let none: Vec<Value> = rules
        .iter()
        .map(|rule| asked(&rule["alert"], json!([])))
        .collect();
    let mut tests = vec![json!({
        "interval": "1m", "input_series": (WELL.map(series)), "alert_rule_test": none,
    })];
    let mut names = Vec::new();
    for (name, metric, values, labels) in FIRED {
        names.push(format!("YurtNet{name}"));
        let mut of_alert = rules
            .iter()
            .filter(|rule| rule["alert"] == format!("YurtNet{name}"));
        let rule = of_alert
            .next()
            .with_context(|| format!("no alert {name}"))?;
        let mut expected = rule["labels"].clone();
        for (label, value) in labels {
            expected[label] = (*value).into();
        }
        let expected = json!([{"exp_labels": expected, "exp_annotations": rule["annotations"]}]);
        let beside = (r#"yurtnet_map_capacity{map="yurt_fe4"}"#, "64x60");
        tests.push(json!({
            "interval": "1m", "input_series": ([(metric, values), beside].map(series)),
            "alert_rule_test": [asked(&rule["alert"], expected)],
        }));
    }
    let all: Vec<_> = rules
        .iter()
        .filter_map(|rule| rule["alert"].as_str())
        .collect();
    ensure!(names == all, "{names:?} are tested, of {all:?}");
    let test = dir.path().join("test.yaml");
    let text = json!({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests});
    fs::write(&test, text.to_string())?;
    promtool(&["test", "rules"], &test)
}
