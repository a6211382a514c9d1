//! The image of the tests' Pods and of their sandboxes: one file, one layer, no registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

/// The name that it is imported by.
pub(crate) const NAME: &str = "localhost/yurt-net-pod:test";

/// Makes the image as an archive that runtimes import, in this directory.
pub(crate) fn build(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("root");
    fs::create_dir_all(&root)?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cri/pod.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut compile = Command::new(rustc);
    compile
        .args([
            "--edition=2024",
            "-Ctarget-feature=+crt-static",
            "-Cstrip=symbols",
            "-o",
        ])
        .arg(root.join("pod"))
        .arg(source);
    run(&mut compile)?;
    run(Command::new("tar")
        .args(["--numeric-owner", "-cf", "layer.tar", "-C", "root", "pod"])
        .current_dir(dir))?;
    let sum = run(Command::new("sha256sum").arg("layer.tar").current_dir(dir))?;
    let sum = sum
        .split_whitespace()
        .next()
        .context("sha256sum prints a sum")?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {"Entrypoint": ["/pod"], "Cmd": ["pause"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]);
    fs::write(dir.join("config.json"), config.to_string())?;
    fs::write(dir.join("manifest.json"), manifest.to_string())?;
    run(Command::new("tar")
        .args([
            "-cf",
            "image.tar",
            "manifest.json",
            "config.json",
            "layer.tar",
        ])
        .current_dir(dir))?;
    Ok(dir.join("image.tar"))
}

/// Runs a program to its end and returns what it has printed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}
