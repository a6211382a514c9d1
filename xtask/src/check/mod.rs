//! `check`: format, layering, documents, lints (of the fuzz targets too), the code's documentation, licences and
//! advisories.

mod abi;
mod breaches;
mod columns;
mod documents;
mod floors;
mod layering;
mod paths;
mod publicity;
mod tables;
mod violation;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::fuzz;
use crate::setup::{self, Need};
use crate::shell::{Line, root, say, target_dir};

/// Options of `check`.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Write the ABI document anew instead of comparing it.
    #[arg(long)]
    bless: bool,
    /// Only format, layering and documents: seconds, without clippy.
    #[arg(long)]
    quick: bool,
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
    documents()?;
    abi::check(args.bless)?;
    if args.quick {
        return Ok(());
    }
    Line::new("cargo clippy --workspace --all-targets -- -D warnings").run()?;
    Line::new("cargo clippy -p yurt-ebpf --features log -- -D warnings").run()?;
    // Both clippy runs use one directory, because most of their work is the same. CUSTOM_LIBFUZZER_PATH names a ready
    // libFuzzer, so that it is not compiled; any file will do, because nothing is linked.
    Line::new("cargo clippy --manifest-path")
        .arg(fuzz::MANIFEST)
        .arg("--target-dir")
        .arg(target_dir())
        .args(["--all-targets", "--", "-D", "warnings"])
        .env("CUSTOM_LIBFUZZER_PATH", root().join(fuzz::MANIFEST))
        .run()?;
    Line::new("cargo doc --workspace --no-deps")
        .env("RUSTDOCFLAGS", "-D warnings")
        .run()?;
    crates()
}

/// Checks the crates (`deny.toml`). The database of advisories is not fetched here: a check uses no other server than
/// the registry of the crates.
fn crates() -> Result<()> {
    setup::ensure(&[Need::Deny])?;
    Line::new("cargo deny check --hide-inclusion-graph licenses bans sources").run()?;
    if has_advisories() {
        return Line::new("cargo deny --offline check advisories").run();
    }
    say(
        "check: advisories were not looked at; `cargo deny fetch db` fetches them for the next time",
    );
    Ok(())
}

/// Whether cargo-deny has fetched the database of advisories.
fn has_advisories() -> bool {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let entries = fs::read_dir(home.unwrap_or_default().join("advisory-dbs"));
    entries.is_ok_and(|mut entries| {
        // A lock file is beside the database.
        entries.any(|entry| entry.is_ok_and(|entry| entry.path().is_dir()))
    })
}

fn layering() -> Result<()> {
    let mut files = Vec::new();
    for member in MEMBERS {
        collect(&root().join(member), &mut files)?;
    }
    let mut violations = layering::violations(&files);
    violations.extend(layering::violations_of_all(&files));
    violations.extend(publicity::violations(&files));
    for violation in &violations {
        say(violation);
    }
    if !violations.is_empty() {
        bail!("layering: {} violations", violations.len());
    }
    say(format_args!("check: layering of {} files", files.len()));
    Ok(())
}

/// Documents that describe their own time.
const HISTORY: &[&str] = &["CHANGELOG.md", "docs/decisions/"];

/// Checks the names in documents, and their columns.
fn documents() -> Result<()> {
    let listed = Line::new("git ls-files --cached --others --exclude-standard").output()?;
    let mut paths = BTreeSet::new();
    for file in listed.lines().filter(|file| root().join(file).exists()) {
        let ancestors = Path::new(file).ancestors();
        paths.extend(ancestors.map(|path| path.display().to_string()));
    }
    let too_long = format!("over {} columns of prose; break the line", columns::MAX);
    let mut found = 0;
    let mut report = |place: &str, line: usize, what: &str| {
        say(format_args!("{place}:{line}: {what}"));
        found += 1;
    };
    for path in &paths {
        if !path.ends_with(".md") {
            continue;
        }
        let text = read(&root().join(path))?;
        columns::long_prose(&text).for_each(|line| report(path, line, &too_long));
        if HISTORY.iter().any(|history| path.starts_with(history)) {
            continue;
        }
        for (line, name) in documents::absent(path, &text, &paths) {
            report(path, line, &format!("`{name}` is not there; name what is"));
        }
    }
    if found > 0 {
        bail!("documents: {found} places to mend");
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Every Rust file below `dir`, in order of name, with its path from the workspace root.
fn collect(dir: &Path, files: &mut Vec<violation::File>) -> Result<()> {
    let list = || -> std::io::Result<Vec<_>> {
        fs::read_dir(dir)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect()
    };
    let mut entries = list().with_context(|| format!("cannot list {}", dir.display()))?;
    entries.sort();
    for path in entries {
        if path.ends_with("target") {
            // The target directory of a separate workspace.
        } else if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = read(&path)?;
            let name = path.strip_prefix(root()).unwrap_or(&path);
            files.push(violation::File {
                name: name.display().to_string(),
                text,
            });
        }
    }
    Ok(())
}
