//! `image`: makes what runs on nodes, for each architecture, as one archive that `ctr images import` and `docker load`
//! read.
//!
//! It is made from files, without a daemon. It contains the agent and the directories above it, and nothing else: no
//! shell, no library, no certificates. The same programs give the same bytes: owners, times and order are fixed.
//!
//! The archive is an image layout: `index.json` names an index with one manifest for each architecture. `manifest.json`
//! is for docker, which does not read all of the index: there the image for aarch64 has a tag of its own. Sources: the
//! specifications opencontainers/image-spec 1.1 and moby/docker-image-spec 1.2.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::build::{self, Target};
use crate::shell::{Line, root, say, target_dir};

/// The name to which container runtimes complete a name without a registry, as deploy/base/kustomization.yaml has it.
const NAME: &str = "docker.io/library/yurt-net";
const TAG: &str = env!("CARGO_PKG_VERSION");
/// The agent's directory in the image, and its `PATH`, for `kubectl exec` and the probes.
const BIN_DIR: &str = "usr/local/bin";
/// The largest image of an architecture: boards load it over a mobile link.
const LARGEST: u64 = 8_000_000;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Builds the agents and the image.
pub(crate) fn run() -> Result<()> {
    image()?;
    Ok(())
}

/// Builds both and returns the absolute path of the archive.
pub(crate) fn image() -> Result<PathBuf> {
    let agents: Vec<_> = Target::ALL
        .into_iter()
        .map(|target| anyhow::Ok((target, build::agent(target)?)))
        .collect::<Result<_>>()?;
    assemble(&agents, &target_dir().join("image"))
}

/// Puts these agents into an archive in `dir`, which it makes anew.
fn assemble(agents: &[(Target, PathBuf)], dir: &Path) -> Result<PathBuf> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    let layout = Layout::new(dir)?;
    let mut manifests = Vec::new();
    let mut for_docker = Vec::new();
    for (target, agent) in agents {
        let image = layout.add_image(*target, agent)?;
        say(format_args!(
            "image: {target}: {} bytes compressed",
            image.layer.size
        ));
        if image.layer.size > LARGEST {
            bail!("the image for {target} has over {LARGEST} bytes");
        }
        manifests.push(image.manifest.json(&format!(
            r#","platform":{{"architecture":"{}","os":"linux"}}"#,
            target.arch()
        )));
        let tag = match *target {
            Target::X86 => TAG.to_owned(),
            Target::Arm => format!("{TAG}-arm64"),
        };
        for_docker.push(format!(
            r#"{{"Config":"{}","RepoTags":["{NAME}:{tag}"],"Layers":["{}"]}}"#,
            image.config.path(),
            image.layer.path()
        ));
    }
    let index = layout.add(INDEX, &index(&manifests.join(",")))?;
    let named = format!(
        r#","annotations":{{"io.containerd.image.name":"{NAME}:{TAG}","org.opencontainers.image.ref.name":"{TAG}"}}"#
    );
    layout.write("index.json", &index_of(&index, &named))?;
    layout.write("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    layout.write("manifest.json", &format!("[{}]", for_docker.join(",")))?;
    let archive = dir.join(format!("yurt-net-{TAG}.tar"));
    tar(&layout.dir, &archive, ".")?;
    say(format_args!(
        "image: {NAME}:{TAG}, in {}",
        archive.strip_prefix(root()).unwrap_or(&archive).display()
    ));
    Ok(archive)
}

fn index(manifests: &str) -> String {
    format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{manifests}]}}"#)
}

fn index_of(blob: &Blob, more: &str) -> String {
    index(&blob.json(more))
}

/// A file in `blobs`, named by its checksum.
struct Blob {
    kind: &'static str,
    sum: String,
    size: u64,
}

impl Blob {
    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.sum)
    }

    /// The descriptor of the blob, with `more` fields.
    fn json(&self, more: &str) -> String {
        let Self { kind, sum, size } = self;
        format!(r#"{{"mediaType":"{kind}","digest":"sha256:{sum}","size":{size}{more}}}"#)
    }
}

/// The image of one architecture.
struct Image {
    layer: Blob,
    config: Blob,
    manifest: Blob,
}

/// The directory that becomes the archive.
struct Layout {
    dir: PathBuf,
    work: PathBuf,
}

impl Layout {
    fn new(dir: &Path) -> Result<Self> {
        let (layout, work) = (dir.join("layout"), dir.join("work"));
        for dir in [&layout.join("blobs/sha256"), &work] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        Ok(Self { dir: layout, work })
    }

    fn add_image(&self, target: Target, agent: &Path) -> Result<Image> {
        let files = self.work.join(target.triple());
        let bin = files.join(BIN_DIR);
        fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
        fs::copy(agent, bin.join("yurt-net"))
            .with_context(|| format!("cannot copy {}", agent.display()))?;
        let tarball = files.with_extension("tar");
        tar(&files, &tarball, "usr")?;
        let unpacked = sha256(&tarball)?;
        Line::new("gzip --best --no-name --force")
            .arg(&tarball)
            .run()?;
        let layer = self.take(LAYER, &files.with_extension("tar.gz"))?;
        let mut config = String::new();
        write!(
            config,
            r#"{{"architecture":"{}","os":"linux","created":"1970-01-01T00:00:00Z","config":{{"#,
            target.arch()
        )?;
        write!(
            config,
            r#""Entrypoint":["/{BIN_DIR}/yurt-net"],"Env":["PATH=/{BIN_DIR}"]}},"#
        )?;
        write!(
            config,
            r#""rootfs":{{"type":"layers","diff_ids":["sha256:{unpacked}"]}}}}"#
        )?;
        let config = self.add(CONFIG, &config)?;
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{},"layers":[{}]}}"#,
            config.json(""),
            layer.json("")
        );
        Ok(Image {
            manifest: self.add(MANIFEST, &manifest)?,
            layer,
            config,
        })
    }

    /// Makes a blob from a text.
    fn add(&self, kind: &'static str, text: &str) -> Result<Blob> {
        let file = self.work.join("text");
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        self.take(kind, &file)
    }

    /// Makes a blob from a file.
    fn take(&self, kind: &'static str, file: &Path) -> Result<Blob> {
        let blob = Blob {
            kind,
            sum: sha256(file)?,
            size: fs::metadata(file)?.len(),
        };
        fs::rename(file, self.dir.join(blob.path()))
            .with_context(|| format!("cannot move {}", file.display()))?;
        Ok(blob)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Packs the contents of `dir`, without a trace of this machine, this user and this moment.
fn tar(dir: &Path, archive: &Path, what: &str) -> Result<()> {
    Line::new(
        "tar --create --format=ustar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner",
    )
    .args(["--mode=u=rwX,go=rX", "--file"])
    .arg(archive)
    .arg("--directory")
    .arg(dir)
    .arg(what)
    .run()
}

fn sha256(file: &Path) -> Result<String> {
    let line = Line::new("sha256sum").arg(file).output()?;
    let sum = line.split_whitespace().next();
    Ok(sum.context("sha256sum prints no sum")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_programs_make_the_same_archive_whoever_makes_it_when() {
        let dir = std::env::temp_dir().join(format!("yurt-net-image-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let made = ["a", "b"].map(|name| {
            let agent = dir.join(format!("agent-{name}"));
            fs::write(&agent, "a program").unwrap();
            let agents = Target::ALL.map(|target| (target, agent.clone()));
            fs::read(assemble(&agents, &dir.join(name)).unwrap()).unwrap()
        });
        fs::remove_dir_all(&dir).unwrap();
        assert!(made[0] == made[1]);
        assert!(made[0].len() > 1000);
    }
}
