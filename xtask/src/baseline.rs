//! `baseline`: stores the interfaces that others rely on as files, so that two commits can be compared.
//!
//! For a change that only moves code, and for release notes: the printed difference is what users, dashboards and maps
//! on nodes will see of the release.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::build_ebpf;
use crate::shell::{Line, is_root, root, say, target_dir};

/// Options of `baseline`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to compare with: a commit, or a directory that an earlier run has stored [default: the last tag].
    #[arg(long)]
    against: Option<String>,
}

/// Stores the interfaces of this commit, and prints what differs.
pub(crate) fn run(args: &Args) -> Result<()> {
    let reference = match &args.against {
        Some(name) => Some(reference(name)?),
        None => last_tag().map(|tag| reference(&tag)).transpose()?,
    };
    let own = stored(&own_name()?);
    gather(root(), &own)?;
    say(format_args!("baseline: stored in {}", own.display()));
    match reference {
        Some(reference) => compare(&reference, &own),
        None => {
            say("baseline: there is no tag yet to compare with; --against takes a commit");
            Ok(())
        }
    }
}

fn git(words: &str) -> Line {
    Line::new("git").args(words.split(' '))
}

fn last_tag() -> Option<String> {
    let tag = git("describe --tags --abbrev=0").output().ok()?;
    Some(tag.trim().to_owned())
}

/// The name of the commit, and whether the work tree has more.
fn own_name() -> Result<String> {
    let commit = git("rev-parse --short=12 HEAD").output()?;
    let changes = git("status --porcelain").output()?;
    let suffix = if changes.is_empty() { "" } else { "-changed" };
    Ok(format!("{}{suffix}", commit.trim()))
}

fn stored(name: &str) -> PathBuf {
    target_dir().join("baseline").join(name)
}

/// The directory to compare with: one that is stored already, or one that is made now from a work tree of that commit.
fn reference(name: &str) -> Result<PathBuf> {
    let dir = Path::new(name);
    if dir.is_dir() {
        return Ok(dir.to_owned());
    }
    let commit = git("rev-parse --short=12 --verify")
        .arg(format!("{name}^{{commit}}"))
        .output()
        .with_context(|| format!("{name} is neither a directory nor a commit"))?;
    let commit = commit.trim();
    let dir = stored(commit);
    if dir.is_dir() {
        return Ok(dir);
    }
    let tree = stored("tree");
    let remove = || git("worktree remove --force").arg(&tree).run();
    if tree.exists() {
        remove()?;
    }
    git("worktree add --detach").arg(&tree).arg(commit).run()?;
    let gathered = gather(&tree, &dir);
    remove()?;
    gathered?;
    Ok(dir)
}

/// Builds the tree and writes a file for each interface; all of them or none.
fn gather(tree: &Path, dir: &Path) -> Result<()> {
    let is_own = tree == root();
    let built = |words: &str| {
        let line = Line::new("cargo build --quiet").args(words.split(' '));
        let line = line.env("CARGO_TARGET_DIR", target_dir());
        if is_own { line } else { line.dir(tree) }.run()
    };
    if is_own {
        build_ebpf::run(&build_ebpf::Args::default())?;
    } else {
        Line::new("cargo xtask build-ebpf")
            .env("CARGO_TARGET_DIR", target_dir())
            .dir(tree)
            .run()?;
    }
    built("-p yurt-net")?;
    let staged = dir.with_extension("new");
    if staged.exists() {
        fs::remove_dir_all(&staged)?;
    }
    let agent = target_dir().join("debug/yurt-net");
    let put = |name: &str, text: String| -> Result<()> {
        let path = staged.join(name);
        fs::create_dir_all(path.parent().unwrap_or(&staged))?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    for (verb, help) in helps(&agent, &[])? {
        put(&format!("help/{verb}.txt"), help)?;
    }
    // These pages are compared with the code by a test of `yurt-net`, and by `cargo xtask check`.
    put("metrics.txt", metrics(&read(tree, "docs/metrics.md")?))?;
    put("map-abi.md", read(tree, "docs/map-abi.md")?)?;
    put("ebpf.txt", object(tree)?)?;
    for case in cases(&tree.join("tests/cases"))? {
        let text = read(tree, &format!("tests/cases/{case}.yaml"))?;
        let case_dir = stored("case");
        fs::create_dir_all(&case_dir)?;
        let (plan, explanations) = answers(&agent, &case_dir, &text).context(case.clone())?;
        put(&format!("plan/{case}.json"), plan)?;
        put(&format!("explain/{case}.txt"), explanations)?;
    }
    // What needs the kernel and cannot be had is reported and left out: an older tree may not have it.
    if !is_root() {
        say("baseline: without root there are no keys of `status` and no counts of instructions");
    } else if let Err(error) = built("-p yurt-net-tests --bins") {
        say(format_args!(
            "baseline: no keys of `status`, no counts of instructions: {error:#}"
        ));
    } else {
        for what in ["status", "programs"] {
            let contracts = Line::new("").arg(target_dir().join("debug/contracts"));
            match contracts.arg(what).env("YURT_NET_BIN", &agent).output() {
                Ok(text) => put(&format!("{what}.txt"), text)?,
                Err(error) => say(format_args!("baseline: {error:#}")),
            }
        }
    }
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::rename(&staged, dir).with_context(|| format!("cannot write {}", dir.display()))
}

fn read(tree: &Path, name: &str) -> Result<String> {
    fs::read_to_string(tree.join(name)).with_context(|| format!("cannot read {name}"))
}

/// `--help` of a verb and of all verbs below it.
fn helps(agent: &Path, verb: &[&str]) -> Result<Vec<(String, String)>> {
    let help = Line::new("")
        .arg(agent)
        .args(verb)
        .arg("--help")
        // Variables that are set here would be printed as defaults.
        .env("NODE_NAME", "")
        .output()?;
    let name = ["yurt-net"].iter().chain(verb).copied().collect::<Vec<_>>();
    let mut all = vec![(name.join("-"), help.clone())];
    for inner in verbs(&help) {
        all.extend(helps(agent, &[verb, &[inner]].concat())?);
    }
    Ok(all)
}

/// The verbs that a help text lists.
fn verbs(help: &str) -> impl Iterator<Item = &str> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    // Further lines of a description are indented more.
    let verbs = lines.filter_map(|line| line.strip_prefix("  "));
    let verbs = verbs.filter_map(|line| line.split(' ').next());
    verbs.filter(|verb| !verb.is_empty() && *verb != "help")
}

/// Name, type and labels of each metric, from the rows of the document's table.
fn metrics(document: &str) -> String {
    let rows = document.lines().filter(|line| line.starts_with("| `"));
    let names = rows.map(|row| row.split('|').skip(1).take(3).map(str::trim));
    let names = names.map(|columns| columns.collect::<Vec<_>>().join(" "));
    names.collect::<Vec<_>>().join("\n") + "\n"
}

/// The object's checksum, without the kernel's type information: that contains the paths of the sources on the machine
/// that compiled it.
fn object(tree: &Path) -> Result<String> {
    let object = tree.join("target/bpf/yurt-ebpf.o");
    let bare = stored("yurt-ebpf.o");
    fs::create_dir_all(stored(""))?;
    build_ebpf::objcopy()
        .context("no llvm-objcopy (Debian: llvm-22)")?
        .args(["--remove-section=.BTF", "--remove-section=.BTF.ext"])
        .arg(object)
        .arg(&bare)
        .run()?;
    let sum = Line::new("sha256sum").arg(&bare).output()?;
    let sum = sum.split(' ').next().unwrap_or_default();
    Ok(format!("sha256 without .BTF and .BTF.ext: {sum}\n"))
}

/// Names of the golden cases.
fn cases(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        let is_case = path
            .extension()
            .is_some_and(|extension| extension == "yaml");
        names.extend(
            path.file_stem()
                .filter(|_| is_case)
                .map(|stem| stem.to_string_lossy().into_owned()),
        );
    }
    names.sort();
    Ok(names)
}

/// The output of `plan` and `explain` for a case. `explain` is asked about each frontend, for a client on the node and
/// for one elsewhere.
fn answers(agent: &Path, dir: &Path, case: &str) -> Result<(String, String)> {
    const MANIFESTS: &str = "cluster.yaml";
    let (head, manifests) = case.split_once("\n---\n").context("no `---`")?;
    fs::write(dir.join(MANIFESTS), manifests)?;
    let of_head = |key: &str| head.lines().find_map(|line| line.strip_prefix(key));
    let node = of_head("node: ").context("no `node: `")?;
    let flags: Vec<&str> = of_head("flags: ").into_iter().flat_map(words).collect();
    let ask = |verb: &str, more: &[&str]| -> Result<String> {
        let line = Line::new("").arg(agent).arg(verb).args(more);
        // Rejections contain the path, so it must not depend on the machine.
        let source = format!("file:{MANIFESTS}");
        let line = line.args(["--node", node, "--source", &source, "-o", "json"]);
        line.args(&flags).dir(dir).output()
    };
    let plan = ask("plan", &[])?;
    let mut dialled = BTreeSet::new();
    let table: Value = serde_json::from_str(&plan)?;
    for service in items(&table["services"]) {
        for row in items(&service["frontends"]) {
            let address = row["address"].as_str().unwrap_or_default().parse()?;
            let port = row["port"].as_u64().and_then(|port| port.try_into().ok());
            let to = std::net::SocketAddr::new(address, port.context("a port")?);
            let protocol = service["protocol"].as_str().unwrap_or_default();
            dialled.insert(format!("{to}/{protocol}"));
        }
    }
    let mut explanations = String::new();
    for to in &dialled {
        for from in ["127.0.0.1", "203.0.113.77"] {
            explanations += &format!("{from} {to} ");
            explanations += &ask("explain", &["--from", from, "--to", to])?;
        }
    }
    // One field a line, which makes the difference readable.
    Ok((serde_json::to_string_pretty(&table)? + "\n", explanations))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(' ')
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Prints what differs.
fn compare(before: &Path, after: &Path) -> Result<()> {
    let line = Line::new("git --no-pager diff --no-index --stat --patch")
        .arg(before)
        .arg(after);
    say(format_args!("$ {line}"));
    let status = Command::new("git")
        .args(["--no-pager", "diff", "--no-index", "--stat", "--patch"])
        .args([before, after])
        .status()
        .context("cannot run git")?;
    match status.code() {
        Some(0) => say(format_args!(
            "baseline: nothing differs from {}",
            before.display()
        )),
        Some(1) => say(format_args!(
            "baseline: the above differs from {}",
            before.display()
        )),
        _ => bail!("`{line}` failed ({status})"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verbs_of_a_help_text_are_found_and_help_is_none() {
        let help = "About\n\nUsage: a <COMMAND>\n\nCommands:\n  run    Serve\n         and more\n  plan   Print\n  help   \
                    Print this\n\nOptions:\n  -h, --help  Print help\n";
        assert_eq!(verbs(help).collect::<Vec<_>>(), ["run", "plan"]);
        assert_eq!(verbs("Usage: a\n\nOptions:\n  -h  Print help\n").count(), 0);
    }

    #[test]
    fn a_metric_is_its_name_its_type_and_its_labels() {
        let document = "| name | type | labels | meaning |\n|---|---|---|---|\n\
                        | `a_total` | counter | `by` | All. |\n| `b` | gauge | | One. |\n";
        assert_eq!(metrics(document), "`a_total` counter `by`\n`b` gauge \n");
    }
}
