//! `check`: format, layering, ABI document, lints, of the fuzz targets too; cheapest first.

mod abi;
mod layering;
mod paths;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::fuzz;
use crate::shell::{Line, root, say, target_dir};

/// Options of `check`.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Write the ABI document anew instead of comparing it.
    #[arg(long)]
    bless: bool,
}

/// The members of the workspace.
const MEMBERS: &[&str] = &["tests", "xtask", "yurt-ebpf", "yurt-net"];

/// Runs every check, and stops at the first that fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    Line::new("cargo fmt --all --check").run()?;
    Line::new("cargo fmt --check --manifest-path")
        .arg(fuzz::MANIFEST)
        .run()?;
    layering()?;
    abi::check(args.bless)?;
    Line::new("cargo clippy --workspace --all-targets -- -D warnings").run()?;
    // In one directory, because most of it is the same. CUSTOM_LIBFUZZER_PATH says that libFuzzer is there already, which is then not
    // compiled; any file does, for nothing is linked.
    Line::new("cargo clippy --manifest-path")
        .arg(fuzz::MANIFEST)
        .arg("--target-dir")
        .arg(target_dir())
        .args(["--all-targets", "--", "-D", "warnings"])
        .env("CUSTOM_LIBFUZZER_PATH", root().join(fuzz::MANIFEST))
        .run()
}

fn layering() -> Result<()> {
    let mut files = Vec::new();
    for member in MEMBERS {
        collect(&root().join(member), &mut files)?;
    }
    let violations = layering::violations(&files);
    for violation in &violations {
        say(violation);
    }
    if !violations.is_empty() {
        bail!("layering: {} violations", violations.len());
    }
    say(format_args!("check: layering of {} files", files.len()));
    Ok(())
}

/// Every Rust file below `dir`, in order of name, with its path from the workspace root.
fn collect(dir: &Path, files: &mut Vec<layering::File>) -> Result<()> {
    let list = || -> std::io::Result<Vec<_>> {
        fs::read_dir(dir)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect()
    };
    let mut entries = list().with_context(|| format!("cannot list {}", dir.display()))?;
    entries.sort();
    for path in entries {
        if path.ends_with("target") {
            // What cargo has built in a workspace of its own.
        } else if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.strip_prefix(root()).unwrap_or(&path);
            files.push(layering::File {
                name: name.display().to_string(),
                text,
            });
        }
    }
    Ok(())
}
