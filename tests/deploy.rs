//! What is in deploy/ agrees with the code.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use serde_json::Value;
use yurt_net::config::{Cli, CniKeepArg, Command};
use yurt_net::retain::install::{Directories, install};
use yurt_net::source::kube::Resource;
use yurt_net_tests::apiserver::objects;

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

#[test]
fn the_daemonset_is_a_command_line_that_the_agent_takes() -> Result<()> {
    let pod = &of_kind("daemonset.yaml", "DaemonSet")?["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let args = words(&container["args"]);
    let args = ["yurt-net"]
        .into_iter()
        .chain(args)
        .chain(["--node=edge-a1"]);
    let Command::Run(args) = Cli::try_parse_from(args)?.command else {
        anyhow::bail!("it does not run the agent");
    };
    ensure!(args.cni == CniKeepArg::Install);
    // What it keeps must be the node's.
    let mounts = container["volumeMounts"].as_array().context("no mounts")?;
    let is_mounted = |path: &std::path::Path| {
        mounts
            .iter()
            .any(|mount| mount["mountPath"] == *path.to_string_lossy())
    };
    let place = &args.place;
    for path in [
        &place.state_dir,
        &place.run_dir,
        &place.bpffs,
        &args.cni_place.cni_conf_dir,
        &args.cni_place.cni_bin_dir,
    ] {
        ensure!(
            is_mounted(path),
            "{} is the container's own",
            path.display()
        );
    }
    ensure!(is_mounted(place.cgroup.as_deref().context("no --cgroup")?));
    let volumes = pod["volumes"].as_array().context("no volumes")?;
    for mount in mounts {
        let mut volumes = volumes.iter();
        ensure!(
            volumes.any(|volume| volume["name"] == mount["name"]),
            "{mount}"
        );
    }
    for probe in ["readinessProbe", "livenessProbe"] {
        Cli::try_parse_from(words(&container[probe]["exec"]["command"]))?;
    }
    ensure!(pod["hostNetwork"] == true && pod["hostPID"] == true);
    Ok(())
}

#[test]
fn the_role_allows_what_the_agent_asks_for_and_nothing_else() -> Result<()> {
    let role = of_kind("rbac.yaml", "ClusterRole")?;
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
fn all_of_it_is_in_the_kustomization() -> Result<()> {
    let kustomization = of_kind("kustomization.yaml", "Kustomization")?;
    for file in words(&kustomization["resources"]) {
        ensure!(!objects::documents(&text(file)?)?.is_empty(), "{file}");
    }
    Ok(())
}
