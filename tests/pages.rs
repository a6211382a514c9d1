//! What the pages (README.md, README.zh.md, CONTRIBUTING.md, docs/) say of the command line is so. The lines of
//! `cargo xtask` are tested in xtask.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use yurt_net::config::flags::Client;
use yurt_net::config::{Cli, Command};
use yurt_net::explain::rows::{Paint, plan_table};
use yurt_net::explain::verdict::{Dial, OwnAddresses, explain};
use yurt_net::model::Touched;
use yurt_net::policy::{Memo, Memory, NodeView, PolicyConfig, Reasons, compile};
use yurt_net::source::SourceSpec;
use yurt_net::source::file::FileSource;
use yurt_net::table::ServiceTable;

/// Flags that pages name and that are another program's.
const FOREIGN: &[&str] = &[
    // cargo xtask, cargo, nextest
    "--against",
    "--no-capture",
    "--target",
    // flannel, systemctl
    "--ip-masq",
    "--now",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Each page with its name. Decisions say what was so at their time.
fn pages() -> Result<Vec<(String, String)>> {
    let mut paths = vec![
        workspace().join("README.md"),
        workspace().join("README.zh.md"),
        workspace().join("CONTRIBUTING.md"),
    ];
    for entry in fs::read_dir(workspace().join("docs"))? {
        paths.push(entry?.path());
    }
    let is_page = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    let mut pages = Vec::new();
    for path in paths.into_iter().filter(is_page) {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        pages.push((path.display().to_string(), text));
    }
    Ok(pages)
}

/// The lines of a page that a reader types, without prompt and comment.
fn typed(page: &str) -> Vec<&str> {
    let mut is_console = false;
    let mut found = Vec::new();
    for line in page.lines() {
        if line.starts_with("```") {
            is_console = line == "```console";
        } else if let Some(line) = line.strip_prefix("$ ").or(line.strip_prefix("# "))
            && is_console
        {
            let line = line.split(" #").next().unwrap_or(line);
            found.extend(line.split(" && ").map(str::trim));
        }
    }
    found
}

/// What is between backticks in the prose of a page.
fn spans(page: &str) -> Vec<&str> {
    let mut is_code = false;
    let mut found = Vec::new();
    for line in page.lines() {
        if line.starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            found.extend(line.split('`').skip(1).step_by(2));
        }
    }
    found
}

#[test]
fn every_line_that_a_page_has_a_reader_type_is_one_that_yurt_net_takes() -> Result<()> {
    let mut count = 0;
    for (name, page) in pages()? {
        let lines = typed(&page).into_iter().map(|line| (line, true));
        let named = spans(&page).into_iter().map(|span| (span, false));
        for (line, is_whole) in lines.chain(named) {
            if !line.starts_with("yurt-net ") {
                continue;
            }
            count += 1;
            let Err(error) = Cli::try_parse_from(line.split_whitespace()) else {
                continue;
            };
            // Prose may leave out what a verb cannot do without.
            let is_short = matches!(
                error.kind(),
                ErrorKind::MissingRequiredArgument
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            );
            ensure!(is_short && !is_whole, "{name}: {line}: {error}");
        }
    }
    ensure!(count > 20, "{count} lines");
    Ok(())
}

/// The names of all functions of the tests.
fn tests_below(directory: &Path, names: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            tests_below(&path, names)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            let functions = text.split("fn ").skip(1);
            names.extend(functions.filter_map(|rest| Some(rest.split_once('(')?.0.to_owned())));
        }
    }
    Ok(())
}

#[test]
fn every_test_that_a_page_names_is_there() -> Result<()> {
    let mut known = BTreeSet::new();
    for directory in ["tests", "yurt-net/src"] {
        tests_below(&workspace().join(directory), &mut known)?;
    }
    let mut count = 0;
    for (name, page) in pages()? {
        let is_test = |span: &&str| {
            let mut letters = span.chars();
            span.len() > 30
                && letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        // Metrics have long names, too.
        let is_metric = |span: &&str| {
            ["yurtnet_", "kubeproxy_"]
                .iter()
                .any(|of| span.starts_with(of))
        };
        for test in spans(&page).into_iter().filter(is_test) {
            if is_metric(&test) {
                continue;
            }
            count += 1;
            ensure!(known.contains(test), "{name}: no test is called {test}");
        }
    }
    ensure!(count > 15, "{count} tests");
    Ok(())
}

/// The long flags of a command and of those below it.
fn flags(command: &clap::Command, all: &mut BTreeSet<String>) {
    let longs = command.get_arguments().filter_map(clap::Arg::get_long);
    all.extend(longs.map(|long| format!("--{long}")));
    for below in command.get_subcommands() {
        flags(below, all);
    }
}

#[test]
fn every_flag_that_a_page_names_is_there() -> Result<()> {
    let mut known = BTreeSet::from(["--help".to_owned(), "--version".to_owned()]);
    flags(&Cli::command(), &mut known);
    let mut count = 0;
    for (name, page) in pages()? {
        let spans = spans(&page).into_iter();
        for span in spans.filter(|span| !span.starts_with("cargo ")) {
            for word in span.split([' ', '=', '[', ']', '"']) {
                if !word.starts_with("--") || word.len() == 2 {
                    continue;
                }
                count += 1;
                let is_there = known.contains(word) || FOREIGN.contains(&word);
                ensure!(is_there, "{name}: `{span}`: no program has {word}");
            }
        }
    }
    ensure!(count > 40, "{count} flags");
    Ok(())
}

/// What README.md shows below a line that it has the reader type, up to the next one.
fn shown_below<'a>(readme: &'a str, line: &str) -> Result<&'a str> {
    let (_, below) = readme.split_once(line).with_context(|| line.to_owned())?;
    let below = below.trim_start_matches('\n');
    let ends = ["\n```", "\n$ ", "\n# "].map(|end| below.find(end).unwrap_or(below.len()));
    Ok(&below[..ends.into_iter().min().unwrap_or_default()])
}

/// The example of the first minutes: its table, and what `look` says of it.
fn example<T>(
    node: &str,
    source: SourceSpec,
    policy: &PolicyConfig,
    look: impl FnOnce(&ServiceTable, &Reasons<'_>, &OwnAddresses) -> T,
) -> Result<T> {
    let SourceSpec::File(path) = source else {
        anyhow::bail!("{source} is no file");
    };
    let snapshot = FileSource::new(workspace().join(path)).load()?;
    // As on a machine that is not this node.
    let (view, memory, mut memo) = (NodeView::default(), Memory::default(), Memo::default());
    compile(
        &snapshot,
        &Touched::Anything,
        policy,
        &view,
        &memory,
        &mut memo,
    );
    let reasons = Reasons::new(&snapshot, policy, &view, &memory);
    let own = OwnAddresses::new(&snapshot, node);
    Ok(look(memo.table(), &reasons, &own))
}

const PLAN: &str = "yurt-net plan --node edge-a1 --source file:deploy/examples";

#[test]
fn the_plan_in_the_readme_is_what_plan_prints() -> Result<()> {
    let Command::Plan(args) = Cli::try_parse_from(PLAN.split(' '))?.command else {
        anyhow::bail!("{PLAN} is no plan");
    };
    let policy = args.policy.config(&args.node);
    let printed = example(&args.node, args.source, &policy, |table, reasons, _| {
        plan_table(table, reasons, Paint::Plain)
    })?;
    let readme = fs::read_to_string(workspace().join("README.md"))?;
    let shown = shown_below(&readme, PLAN)?;
    ensure!(
        shown == printed.trim_end(),
        "README.md:\n{shown}\nplan:\n{printed}"
    );
    Ok(())
}

#[test]
fn the_verdict_in_the_readme_is_what_explain_prints_on_the_node_of_the_plan() -> Result<()> {
    let readme = fs::read_to_string(workspace().join("README.md"))?;
    let mut lines = typed(&readme).into_iter();
    let line = lines.find(|line| line.starts_with("yurt-net explain "));
    let line = line.context("README.md has no explain")?;
    let Command::Explain(asked) = Cli::try_parse_from(line.split(' '))?.command else {
        anyhow::bail!("{line} is no explain");
    };
    let (Client::Address(from), Some(to)) = (asked.from, asked.to) else {
        anyhow::bail!("{line} has no addresses");
    };
    let Command::Plan(args) = Cli::try_parse_from(PLAN.split(' '))?.command else {
        anyhow::bail!("{PLAN} is no plan");
    };
    let policy = args.policy.config(&args.node);
    let printed = example(&args.node, args.source, &policy, |table, reasons, own| {
        let dial = Dial {
            from,
            to: to.address,
            protocol: to.protocol,
        };
        explain(table, reasons, own, dial).to_string()
    })?;
    let shown = shown_below(&readme, line)?;
    ensure!(
        shown == printed.trim_end(),
        "README.md:\n{shown}\nexplain:\n{printed}"
    );
    Ok(())
}
