//! What is in deploy/ agrees with the code.

mod alerts;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use serde_json::{Value, json};
use yurt_net::cni::install::{Directories, install};
use yurt_net::config::flags::CniKeepArg;
use yurt_net::config::{Cli, Command};
use yurt_net::source::kube::Resource;
use yurt_net_tests::apiserver::objects;
use yurt_net_tests::kustomize;

fn text(path: &str) -> Result<String> {
    let path = format!("{}/../deploy/{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).context(path)
}

fn of_kind(path: &str, kind: &str) -> Result<Value> {
    let mut documents = objects::documents(&text(path)?)?.into_iter();
    let found = documents.find(|document| document["kind"] == kind);
    found.with_context(|| format!("no {kind} in {path}"))
}

fn words(list: &Value) -> Vec<&str> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(Value::as_str).collect()
}

/// The clusters that deploy/ knows, each with its kustomization.
const CLUSTERS: [&str; 5] = [
    "",
    "overlays/k3s",
    "overlays/kubeadm",
    "overlays/openyurt",
    "overlays/plain",
];

/// What a user writes who tries the first agents beside kube-proxy.
fn beside_kube_proxy(cluster: &str) -> Value {
    let base = if cluster.is_empty() { "base" } else { cluster };
    json!({
        "kind": "Kustomization", "resources": [base],
        "components": ["components/beside-kube-proxy"],
    })
}

/// Each DaemonSet of agents, of each cluster, with the name of the cluster.
fn daemonsets() -> Result<Vec<(String, Value)>> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let mut found = Vec::new();
    for cluster in CLUSTERS {
        let beside = kustomize::build(&deploy, &beside_kube_proxy(cluster))?;
        let all = kustomize::render(&deploy.join(cluster))?.into_iter();
        for object in all.chain(beside) {
            if object["kind"] == "DaemonSet" {
                found.push((cluster.to_owned(), object));
            }
        }
    }
    ensure!(found.len() == 2 * (CLUSTERS.len() + 1), "{}", found.len());
    Ok(found)
}

#[test]
fn each_daemonset_is_a_command_line_that_the_agent_takes() -> Result<()> {
    for (cluster, daemonset) in daemonsets()? {
        let name = daemonset["metadata"]["name"].to_string();
        is_taken(&daemonset["spec"]["template"]["spec"])
            .with_context(|| format!("{name} of {cluster}"))?;
    }
    Ok(())
}

fn is_taken(pod: &Value) -> Result<()> {
    let container = &pod["containers"][0];
    let args = words(&container["args"]);
    let args = ["yurt-net"]
        .into_iter()
        .chain(args)
        .chain(["--node=edge-a1"]);
    let Command::Run(args) = Cli::try_parse_from(args)?.command else {
        anyhow::bail!("it does not run the agent");
    };
    // What it keeps must be the node's.
    let mounts = container["volumeMounts"].as_array().context("no mounts")?;
    let is_mounted = |path: &Path| {
        mounts
            .iter()
            .any(|mount| path.starts_with(mount["mountPath"].as_str().unwrap_or("none")))
    };
    let place = &args.place;
    let (cni, config) = (&args.cni_place, args.config.as_deref());
    let mut paths: Vec<&Path> = vec![&place.state_dir, &place.run_dir, &place.bpffs];
    if args.cni == CniKeepArg::Install {
        paths.extend([&*cni.cni_conf_dir, &cni.cni_bin_dir]);
    }
    paths.extend(config);
    for path in paths {
        ensure!(
            is_mounted(path),
            "{} is the container's own",
            path.display()
        );
    }
    // Where the hierarchy is differs between nodes, and is found below this.
    ensure!(place.cgroup.is_none() && is_mounted(Path::new("/sys/fs/cgroup")));
    has_volumes(pod, mounts)?;
    let at = args.metrics_bind_address.0.context("nobody is asked")?;
    for (probe, path) in [("readinessProbe", "/readyz"), ("livenessProbe", "/livez")] {
        let asked = &container[probe]["httpGet"];
        let expected = json!({"host": at.ip().to_string(), "port": at.port(), "path": path});
        ensure!(*asked == expected, "{probe}: {asked}");
    }
    ensure!(pod["hostNetwork"] == true && pod["hostPID"] == true);
    Ok(())
}

#[test]
fn no_node_that_is_offline_stops_an_upgrade() -> Result<()> {
    for (cluster, daemonset) in daemonsets()? {
        let strategy = &daemonset["spec"]["updateStrategy"];
        let by_openyurt = &daemonset["metadata"]["annotations"]["apps.openyurt.io/update-strategy"];
        let is_unstoppable = match cluster.as_str() {
            "overlays/openyurt" => {
                *strategy == json!({"type": "OnDelete"}) && by_openyurt == "AdvancedRollingUpdate"
            }
            _ => strategy["rollingUpdate"]["maxUnavailable"] == "100%",
        };
        ensure!(is_unstoppable, "{cluster}: {strategy}");
    }
    Ok(())
}

#[test]
fn each_value_of_the_chart_is_described() -> Result<()> {
    let page = text("../docs/distributions.md")?;
    let values: Value = serde_saphyr::from_str(&text("chart/values.yaml")?)?;
    let mut names = Vec::new();
    for (name, value) in values.as_object().context("no values")? {
        let below = value
            .as_object()
            .filter(|_| name == "image" || name == "cni");
        match below {
            Some(below) => names.extend(below.keys().map(|key| format!("{name}.{key}"))),
            None => names.push(name.clone()),
        }
    }
    for name in names {
        ensure!(
            page.contains(&format!("| `{name}` |")),
            "docs/distributions.md does not describe {name}"
        );
    }
    Ok(())
}

/// Every mount is of one of the Pod's volumes.
fn has_volumes(pod: &Value, mounts: &[Value]) -> Result<()> {
    let volumes = pod["volumes"].as_array().context("no volumes")?;
    for mount in mounts {
        let mut volumes = volumes.iter();
        ensure!(
            volumes.any(|volume| volume["name"] == mount["name"]),
            "{mount}"
        );
    }
    Ok(())
}

#[test]
fn the_way_back_cleans_the_places_that_the_agent_keeps_and_then_stays() -> Result<()> {
    let agents = &of_kind("base/daemonset.yaml", "DaemonSet")?["spec"]["template"]["spec"];
    let pod = &of_kind("cleanup/daemonset.yaml", "DaemonSet")?["spec"]["template"]["spec"];
    for (container, stays) in [
        (&pod["initContainers"][0], false),
        (&pod["containers"][0], true),
    ] {
        let args = ["yurt-net"].into_iter().chain(words(&container["args"]));
        let Command::Cleanup(args) = Cli::try_parse_from(args)?.command else {
            anyhow::bail!("it does not clean up");
        };
        ensure!(args.stay == stays);
        ensure!(container["securityContext"]["privileged"] == true);
        let mounts = container["volumeMounts"].as_array().context("no mounts")?;
        for path in [
            &args.place.state_dir,
            &args.place.run_dir,
            &args.place.bpffs,
        ] {
            let path = path.to_string_lossy();
            let is_it = |mount: &&Value| mount["mountPath"] == *path;
            let here = mounts.iter().find(is_it);
            let there = agents["containers"][0]["volumeMounts"].as_array();
            let there = there.and_then(|mounts| mounts.iter().find(is_it));
            ensure!(
                here.is_some() && here == there,
                "{path}: {here:?} {there:?}"
            );
        }
        has_volumes(pod, mounts)?;
    }
    // Routes are the node's; and no node is left out.
    ensure!(pod["hostNetwork"] == true && pod["tolerations"] == agents["tolerations"]);
    let volume = |pod: &Value, name: &str| {
        let mut volumes = pod["volumes"].as_array().into_iter().flatten();
        volumes.find(|volume| volume["name"] == name).cloned()
    };
    for name in ["state", "run", "bpffs"] {
        ensure!(volume(pod, name) == volume(agents, name), "{name}");
    }
    Ok(())
}

#[test]
fn the_image_is_the_one_that_xtask_makes_wherever_it_is_named() -> Result<()> {
    for dir in ["base", "cleanup", "overlays/openyurt"] {
        let file = format!("{dir}/kustomization.yaml");
        let image = &of_kind(&file, "Kustomization")?["images"][0];
        ensure!(image["name"] == "yurt-net" && image["newName"] == "yurt-net");
        // A version of the agent is a tag.
        ensure!(
            image["newTag"] == env!("CARGO_PKG_VERSION"),
            "{file}: {image}"
        );
    }
    for (cluster, daemonset) in daemonsets()? {
        let image = &daemonset["spec"]["template"]["spec"]["containers"][0]["image"];
        let expected = concat!("yurt-net:", env!("CARGO_PKG_VERSION"));
        ensure!(image == expected, "{cluster}: {image}");
    }
    let chart: Value = serde_saphyr::from_str(&text("chart/Chart.yaml")?)?;
    for version in ["version", "appVersion"] {
        ensure!(chart[version] == env!("CARGO_PKG_VERSION"), "{version}");
    }
    Ok(())
}

#[test]
fn the_role_allows_what_the_agent_asks_for_and_nothing_else() -> Result<()> {
    let role = of_kind("base/rbac.yaml", "ClusterRole")?;
    let mut allowed = Vec::new();
    for rule in role["rules"].as_array().context("no rules")? {
        ensure!(words(&rule["verbs"]) == ["list", "watch"], "{rule}");
        allowed.extend(words(&rule["resources"]));
    }
    let mut asked = Resource::ALL.map(Resource::name).to_vec();
    allowed.sort_unstable();
    asked.sort_unstable();
    ensure!(allowed == asked, "{allowed:?} {asked:?}");
    Ok(())
}

#[test]
fn the_examples_are_what_the_agent_would_make_of_them() -> Result<()> {
    let directories = Directories {
        data_dir: "/var/lib/yurt-net".to_owned(),
        run_dir: "/run/yurt-net".to_owned(),
    };
    let flannel = of_kind("examples/flannel.yaml", "ConfigMap")?;
    let flannel = flannel["data"]["cni-conf.json"]
        .as_str()
        .context("no configuration")?
        .to_owned();
    for config in [flannel, text("examples/bridge.conflist")?] {
        let config: Value = serde_json::from_str(&config)?;
        let installed = install(&config, &directories)?;
        ensure!(installed.other_ipam.is_none());
        ensure!(installed.config == config, "{config}");
    }
    Ok(())
}

#[test]
fn the_unit_for_the_boot_is_a_command_line_that_serves_from_the_agents_files_before_kubelet()
-> Result<()> {
    let unit = text("systemd/yurt-net-load.service")?;
    let value = |key: &str| {
        let mut lines = unit.lines();
        let found = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.with_context(|| format!("no {key}"))
    };
    let words = value("ExecStart")?.split_whitespace();
    let Command::Load(args) = Cli::try_parse_from(words)?.command else {
        anyhow::bail!("it does not load");
    };
    let record = args.state_dir.join("run.json");
    ensure!(Path::new(value("ConditionPathExists")?) == record);
    ensure!(value("RequiresMountsFor")?.contains(&*args.state_dir.to_string_lossy()));
    let mut before = value("Before")?.split_whitespace();
    ensure!(before.any(|unit| unit == "kubelet.service"));
    Ok(())
}
