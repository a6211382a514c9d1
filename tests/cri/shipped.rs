//! The image as `cargo xtask image` leaves it: what is in it, and that this is enough.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use yurt_net_tests::apiserver::{FakeApiserver, objects};
use yurt_net_tests::lab::{self, Lab, Manifests};

use super::containerd::Containerd;
use super::image::run;

/// Names the archive instead of the one that `cargo xtask image` has made last.
const ARCHIVE: &str = "YURT_NET_IMAGE";
/// As `deploy/base/kustomization.yaml` has it, and as a container runtime completes it.
const NAME: &str = concat!("docker.io/library/yurt-net:", env!("CARGO_PKG_VERSION"));
pub(super) const PROGRAM: &str = "usr/local/bin/yurt-net";
/// What a board has to load, compressed.
const LARGEST: u64 = 8_000_000;
/// `EM_X86_64` and `EM_AARCH64` of `include/uapi/linux/elf-em.h`, by the name that Go has for each.
const MACHINES: [(&str, u8); 2] = [("amd64", 62), ("arm64", 183)];
pub(super) const NODE: &str = "edge-1";

fn archive() -> Result<PathBuf> {
    let path = match std::env::var_os(ARCHIVE) {
        Some(path) => PathBuf::from(path),
        None => lab::agent_program()?
            .ancestors()
            .find(|dir| dir.ends_with("target"))
            .context("the agent is in no target directory; set YURT_NET_IMAGE")?
            .join(concat!(
                "image/yurt-net-",
                env!("CARGO_PKG_VERSION"),
                ".tar"
            )),
    };
    ensure!(
        path.is_file(),
        "no image at {}; `cargo xtask image` makes it",
        path.display()
    );
    Ok(path)
}

/// The archive, unpacked.
pub(super) struct Layout(PathBuf);

impl Layout {
    pub(super) fn unpack(dir: &Path) -> Result<Self> {
        let layout = dir.join("layout");
        fs::create_dir_all(&layout)?;
        let mut tar = Command::new("tar");
        tar.arg("-xf").arg(archive()?).arg("-C").arg(&layout);
        run(&mut tar)?;
        Ok(Self(layout))
    }

    fn json(&self, name: &str) -> Result<Value> {
        let text = fs::read(self.0.join(name)).with_context(|| name.to_owned())?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// The file of a descriptor.
    fn blob(descriptor: &Value) -> Result<String> {
        let digest = descriptor["digest"].as_str().context("no digest")?;
        Ok(format!("blobs/{}", digest.replace(':', "/")))
    }

    /// The manifest and the configuration for an architecture.
    fn image(&self, architecture: &str) -> Result<(Value, Value)> {
        let index = self.json(&Self::blob(&self.json("index.json")?["manifests"][0])?)?;
        let manifests = index["manifests"].as_array().context("no manifests")?;
        let one = manifests
            .iter()
            .find(|one| one["platform"]["architecture"] == architecture);
        let manifest = self.json(&Self::blob(one.context("no such architecture")?)?)?;
        let config = self.json(&Self::blob(&manifest["config"])?)?;
        Ok((manifest, config))
    }

    /// The root file system for an architecture, in a directory of its own, with nothing else in it.
    pub(super) fn root(&self, architecture: &str) -> Result<PathBuf> {
        let root = self.0.with_file_name(format!("root-{architecture}"));
        fs::create_dir(&root)?;
        let (manifest, _) = self.image(architecture)?;
        for layer in manifest["layers"].as_array().context("no layers")? {
            let mut tar = Command::new("tar");
            tar.arg("-xzf").arg(self.0.join(Self::blob(layer)?));
            run(tar.arg("-C").arg(&root))?;
        }
        Ok(root)
    }
}

fn files(root: &Path, dir: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        ensure!(metadata.uid() == 0 && metadata.mode() & 0o7022 == 0);
        match metadata.is_dir() {
            true => files(root, &path, found)?,
            false => {
                let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
                found.insert(name);
            }
        }
    }
    Ok(())
}

/// Whether a program wants another one to load it, and libraries: it has a program header `PT_INTERP` or `PT_DYNAMIC`.
fn is_linked_at_start(elf: &[u8]) -> Result<bool> {
    let number = |at: usize, length: usize| -> Result<usize> {
        let bytes = elf.get(at..at + length).context("it ends too early")?;
        let number = bytes
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        Ok(number)
    };
    let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    for index in 0..count {
        if matches!(number(table + index * size, 4)?, 2 | 3) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn the_image_is_one_static_program_for_each_architecture() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let layout = Layout::unpack(dir.path())?;
    for (architecture, machine) in MACHINES {
        let root = layout.root(architecture)?;
        let mut found = BTreeSet::new();
        files(&root, &root, &mut found)?;
        ensure!(found == [PROGRAM.to_owned()].into(), "{found:?}");
        let program = fs::read(root.join(PROGRAM))?;
        ensure!(program.starts_with(b"\x7fELF") && program[18] == machine);
        ensure!(!is_linked_at_start(&program)?, "{architecture}: not static");
        let (manifest, config) = layout.image(architecture)?;
        let size = manifest["layers"][0]["size"].as_u64();
        ensure!(size.is_some_and(|size| size <= LARGEST), "{size:?}");
        ensure!(config["architecture"] == architecture && config["os"] == "linux");
        ensure!(config["config"]["Entrypoint"] == json!([format!("/{PROGRAM}")]));
    }
    // What tests run is what ships.
    let host = fs::read(layout.0.with_file_name("root-amd64").join(PROGRAM))?;
    if std::env::consts::ARCH == "x86_64" && std::env::var_os(ARCHIVE).is_some() {
        ensure!(host == fs::read(lab::agent_program()?)?, "another agent");
    }
    Ok(())
}

#[test]
fn docker_finds_each_architecture_under_a_tag_of_its_own() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let layout = Layout::unpack(dir.path())?;
    let listed = layout.json("manifest.json")?;
    let listed = listed.as_array().context("no list")?;
    ensure!(listed.len() == MACHINES.len());
    for ((architecture, _), suffix) in MACHINES.into_iter().zip(["", "-arm64"]) {
        let tags = json!([format!("{NAME}{suffix}")]);
        let mut listed = listed.iter();
        let found = listed.find(|one| one["RepoTags"] == tags);
        let found = found.with_context(|| format!("no {tags}"))?;
        // Whatever reads the archive, what it finds is the same.
        let (manifest, config) = layout.image(architecture)?;
        ensure!(found["Config"] == Layout::blob(&manifest["config"])?);
        let layers = manifest["layers"].as_array().context("no layers")?;
        let layers: Vec<String> = layers.iter().map(Layout::blob).collect::<Result<_>>()?;
        ensure!(found["Layers"] == json!(layers));
        // Docker compares what it has unpacked with this.
        for (layer, sum) in layers
            .iter()
            .zip(config["rootfs"]["diff_ids"].as_array().context("no sums")?)
        {
            let unpacked = dir.path().join("layer.tar");
            let mut gzip = Command::new("gzip");
            gzip.args(["--decompress", "--stdout"])
                .arg(layout.0.join(layer));
            gzip.stdout(fs::File::create(&unpacked)?);
            ensure!(gzip.status()?.success());
            let said = run(Command::new("sha256sum").arg(&unpacked))?;
            let is = said.split_whitespace().next().context("no sum")?;
            ensure!(*sum == format!("sha256:{is}"), "{layer}");
        }
    }
    Ok(())
}

#[test]
fn what_ships_for_aarch64_says_the_same_as_what_ships_for_x86_64() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let layout = Layout::unpack(dir.path())?;
    let arm = layout.root("arm64")?.join(PROGRAM);
    let emulated = |name: &str| {
        let mut command = Command::new("qemu-aarch64-static");
        command.arg("-0").arg(name).arg(&arm);
        command
    };
    for cases in ["deploy/examples", "tests/cases"] {
        let source = format!("file:{}/../{cases}", env!("CARGO_MANIFEST_DIR"));
        let plan = [
            "plan", "--node", "edge-a1", "-o", "json", "--source", &source,
        ];
        let there = run(emulated("yurt-net").args(plan))?;
        ensure!(there == run(Command::new(lab::agent_program()?).args(plan))?);
        ensure!(there.len() > 100, "{there}");
    }
    // A plugin gives an address, says the same again, and takes it back.
    let at = |name: &str| dir.path().join(name).display().to_string();
    let config = json!({"cniVersion": "1.0.0", "name": "edge", "type": "yurt-cni", "ipam": {
        "type": "yurt-ipam", "dataDir": at("data"), "runDir": at("run"),
        "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]],
    }});
    fs::write(dir.path().join("config"), config.to_string())?;
    let call = |verb: &str| -> Result<String> {
        let mut command = emulated("yurt-ipam");
        command.stdin(fs::File::open(dir.path().join("config"))?);
        run(command.envs([
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/proc/self/ns/net"),
            ("CNI_PATH", "/nowhere"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"),
        ]))
    };
    ensure!(call("VERSION")?.contains("1.0.0"));
    let given: Value = serde_json::from_str(&call("ADD")?)?;
    ensure!(
        given["ips"].as_array().is_some_and(|ips| ips.len() == 2),
        "{given}"
    );
    ensure!(serde_json::from_str::<Value>(&call("ADD")?)? == given);
    call("DEL")?;
    Ok(())
}

/// Its thread, its pipes and its process are the C library's, and the one that ships is not the one of a debug build.
#[test]
fn what_ships_runs_the_exec_plugin_of_a_kubeconfig() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cloud = FakeApiserver::start()?;
    let mut manifests = Manifests::new();
    let web = manifests.service("web").cluster_ip("10.96.0.10");
    web.port(80, 8080);
    cloud.put_all(objects::documents(&manifests.to_yaml())?)?;
    let exec = "client.authentication.k8s.io/v1";
    let credential = json!({
        "apiVersion": exec, "kind": "ExecCredential", "status": {"token": "a.token"},
    });
    let kubeconfig = dir.path().join("kubeconfig");
    let user = json!({"exec": {
        "apiVersion": exec, "interactiveMode": "Never",
        "command": "echo", "args": [credential.to_string()],
    }});
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "edge",
        "contexts": [{"name": "edge", "context": {"cluster": "edge", "user": "edge"}}],
        "clusters": [{"name": "edge", "cluster": {"server": cloud.http().url()}}],
        "users": [{"name": "edge", "user": user}],
    });
    fs::write(&kubeconfig, config.to_string())?;
    let mut plan = Command::new(lab::agent_program()?);
    plan.args(["plan", "--node", NODE, "--source", "kube:"]);
    let said = run(plan.env("KUBECONFIG", kubeconfig))?;
    ensure!(said.contains("10.96.0.10:80"), "{said}");
    let requests = cloud.http().requests();
    let mut headers = requests.iter().map(|one| one.header("authorization"));
    ensure!(!requests.is_empty() && headers.all(|had| had == "Bearer a.token"));
    Ok(())
}

#[test]
fn containerd_imports_the_image_and_runc_runs_it() -> Result<()> {
    let lab = Lab::new()?;
    let edge = lab.node(NODE)?;
    let dir = tempfile::tempdir()?;
    let at = |name: &str| -> Result<PathBuf> {
        let path = dir.path().join(name);
        fs::create_dir(&path)?;
        Ok(path)
    };
    let (conf, bin) = (at("net.d")?, at("bin")?);
    // Without a network it is not ready.
    let network = json!({"name": "lo", "cniVersion": "0.4.0", "plugins": [{"type": "loopback"}]});
    fs::write(conf.join("10-lo.conflist"), network.to_string())?;
    symlink("/usr/lib/cni/loopback", bin.join("loopback"))?;
    let containerd = Containerd::start(&edge, &dir.path().join("c"), &conf, &bin)?;
    containerd.import(&archive()?)?;
    containerd.wait("the image", |cri| cri.has_image(NAME))?;
    let said = containerd.run_once(NAME, &[&format!("/{PROGRAM}"), "--version"])?;
    let version = concat!("yurt-net ", env!("CARGO_PKG_VERSION"));
    ensure!(said.trim() == version, "{said}");
    Ok(())
}
