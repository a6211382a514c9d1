//! What is in deploy/ agrees with the code.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use serde_json::Value;
use yurt_net::cni::install::{Directories, install};
use yurt_net::config::flags::CniKeepArg;
use yurt_net::config::{Cli, Command};
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
    let is_mounted = |path: &Path| {
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
    // Where the hierarchy is differs between nodes, and is found below this.
    ensure!(place.cgroup.is_none() && is_mounted(Path::new("/sys/fs/cgroup")));
    has_volumes(pod, mounts)?;
    for probe in ["readinessProbe", "livenessProbe"] {
        Cli::try_parse_from(words(&container[probe]["exec"]["command"]))?;
    }
    ensure!(pod["hostNetwork"] == true && pod["hostPID"] == true);
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
    let agents = &of_kind("daemonset.yaml", "DaemonSet")?["spec"]["template"]["spec"];
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
    for file in ["kustomization.yaml", "cleanup/kustomization.yaml"] {
        let image = &of_kind(file, "Kustomization")?["images"][0];
        ensure!(image["name"] == "yurt-net" && image["newName"] == "yurt-net");
        // A version of the agent is a tag.
        ensure!(
            image["newTag"] == env!("CARGO_PKG_VERSION"),
            "{file}: {image}"
        );
    }
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
    for dir in ["", "cleanup/"] {
        let kustomization = of_kind(&format!("{dir}kustomization.yaml"), "Kustomization")?;
        for file in words(&kustomization["resources"]) {
            let file = format!("{dir}{file}");
            ensure!(!objects::documents(&text(&file)?)?.is_empty(), "{file}");
        }
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
