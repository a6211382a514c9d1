//! `layout`: makes the order of the agent's functions, as the linker reads it (`yurt-net/layout.ld`).
//!
//! The kernel maps the 64 KiB around each page that is touched. An agent enters 2 MB of its 7.7 MB of text, spread over
//! all of it, so without an order nearly everything is mapped. The order is: functions that an agent enters that
//! follows files; those that one enters that follows an apiserver; the rest, which is mapped as needed.
//!
//! The list has names and not addresses, and leaves open what the compiler makes up in a name: one list serves both
//! architectures. A function that is not in the list belongs to the rest, and a name without a function is no error. An
//! outdated list costs memory, at most as much as having none. `cargo xtask bench -- --only memory` shows when that is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::build;
use crate::shell::{Line, require_root, root, say, target_dir};

pub(crate) mod entered;

/// The path where the linker reads it.
const SCRIPT: &str = "yurt-net/layout.ld";
/// The number of characters of a name that count: after them come types of types.
const LONGEST_NAME: usize = 100;
/// The measure for each part, and its flags: the bench runs agents for it.
const PARTS: [(&str, &[&str]); 2] = [("memory", &[]), ("kube", &["--quick"])];
/// Included as a whole: the C library, which is small, and what the compiler considers cold, of which a fifth is
/// entered anyway.
const SMALL: &str = "    *libc.a:*(.text .text.*)\n    *(.text.unlikely.*)\n";

/// Runs agents, and writes down the functions that they enter.
pub(crate) fn run() -> Result<()> {
    require_root("the layout")?;
    let (agent, bench) = build::for_layout()?;
    let names = functions(&agent)?;
    let scratch = target_dir().join("layout");
    fs::create_dir_all(&scratch)?;
    let list = scratch.join("functions");
    let addresses: Vec<String> = names.keys().map(|at| format!("{at:x}")).collect();
    fs::write(&list, addresses.join("\n"))?;

    let mut known = BTreeSet::new();
    let mut parts = Vec::new();
    for (part, how) in PARTS {
        let out = scratch.join(part);
        let _absent = fs::remove_dir_all(&out);
        fs::create_dir_all(&out)?;
        let program = stand_in(&scratch, &list, &out, &agent)?;
        let measure = Line::new("").arg(&bench).args(["--only", part]);
        let measure = measure.args(how).arg("--out").arg(&scratch);
        let log = scratch.join(format!("{part}.log"));
        // It does not matter whether the measure meets its target.
        measure.env("YURT_NET_BIN", program).run_into(&log)?;
        let mut patterns = BTreeSet::new();
        for address in entered(&out)? {
            let name = names.get(&address).context("an address of no function")?;
            let pattern = pattern(name);
            if known.insert(pattern.clone()) {
                patterns.insert(pattern);
            }
        }
        ensure!(
            !patterns.is_empty(),
            "{part}: nothing was entered; see {}",
            log.display()
        );
        say(format_args!("layout: {part}: {} functions", patterns.len()));
        parts.push(patterns);
    }
    fs::write(root().join(SCRIPT), script(&parts))?;
    Ok(())
}

/// The functions of a program that is not stripped, by address.
fn functions(program: &Path) -> Result<BTreeMap<u64, String>> {
    let symbols = Line::new("readelf -sW").arg(program).output()?;
    // Num: Value Size Type Bind Vis Ndx Name
    let function = |line: &str| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
        [_, value, size, "FUNC", _, _, section, name] if *size != "0" && *section != "UND" => {
            Some((u64::from_str_radix(value, 16).ok()?, (*name).to_owned()))
        }
        _ => None,
    };
    Ok(symbols.lines().filter_map(function).collect())
}

/// A program that runs the agent and records the functions that it enters.
fn stand_in(scratch: &Path, list: &Path, out: &Path, agent: &Path) -> Result<std::path::PathBuf> {
    let path = scratch.join("yurt-net");
    let line = Line::new("exec")
        .arg(std::env::current_exe()?)
        .arg("entered")
        .arg(list)
        .arg(out)
        .arg("run")
        .arg(agent);
    fs::write(&path, format!("#!/bin/sh\n{line} \"$@\"\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// The functions that agents have entered.
fn entered(directory: &Path) -> Result<BTreeSet<u64>> {
    let mut all = BTreeSet::new();
    for file in fs::read_dir(directory)? {
        for line in fs::read_to_string(file?.path())?.lines() {
            all.insert(u64::from_str_radix(line, 16)?);
        }
    }
    Ok(all)
}

/// The section of a function: its name, with open places for what differs from one compiler to the next. These are the
/// hashes of crates (`Cs` and base 62), the offsets of what was named before, which depend on them (`B` and base 62),
/// and the numbers that LLVM appends.
fn pattern(symbol: &str) -> String {
    let mut name = String::new();
    let mut rest = symbol.split(".llvm.").next().unwrap_or_default();
    let is_rust = symbol.starts_with("_R");
    while let Some(first) = rest.chars().next() {
        let open = [("Cs", 8..=13), ("B", 0..=3)]
            .into_iter()
            .find_map(|(tag, digits)| {
                let number = rest.strip_prefix(tag)?.split('_').next()?;
                let is_number = number.chars().all(|c| c.is_ascii_alphanumeric());
                let length = tag.len() + number.len();
                let is_it = is_rust && is_number && digits.contains(&number.len());
                (is_it && rest[length..].starts_with('_')).then_some((tag, length + 1))
            });
        match open {
            Some((tag, length)) => {
                let _infallible = write!(name, "{tag}*_");
                rest = &rest[length..];
            }
            None => {
                name.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    if is_rust {
        name.truncate(LONGEST_NAME);
        name.push('*');
    }
    format!(".text.{name}")
}

fn script(parts: &[BTreeSet<String>]) -> String {
    let mut text = "/* Made by `cargo xtask layout`, which says why (xtask/src/layout/). Not to be edited by hand. */\n\
                    SECTIONS {\n"
        .to_owned();
    for ((name, _), patterns) in PARTS.iter().zip(parts) {
        let _infallible = writeln!(text, "  .text.{name} : {{");
        if *name == PARTS[0].0 {
            text.push_str(SMALL);
        }
        for pattern in patterns {
            let _infallible = writeln!(text, "    *({pattern})");
        }
        text.push_str("  }\n");
    }
    text + "}\nINSERT BEFORE .text;\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leaves_open_what_depends_on_the_compiler() {
        let pattern_of = pattern(
            "_RNvXs_NtCs1a2B3c4D5e6_8yurt_net5modelNtB4_4NodeNtNtCshd8Y7x0Qw9F_4core3fmt5Debug3fmt.llvm.1234",
        );
        let expected = "_RNvXs_NtCs*_8yurt_net5modelNtB*_4NodeNtNtCs*_4core3fmt5Debug3fmt*";
        assert_eq!(pattern_of, format!(".text.{expected}"));
        // Here `B` is the beginning of a name.
        assert!(
            pattern("_RINvNtNtNtCs1a2B3c4D5e6_5alloc3map8BTreeMapB1q_")
                .ends_with("3map8BTreeMapB*_*")
        );
        assert_eq!(pattern("memcpy"), ".text.memcpy");
    }
}
