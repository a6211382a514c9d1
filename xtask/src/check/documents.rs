//! Checks that the files which documents name exist: a path that leads nowhere is worse than none.

use std::collections::BTreeSet;

/// The names in a document that do not exist: line and path.
///
/// A name is a code span (`` `a/b.rs` ``) that begins with a directory of the workspace or ends in `.rs`, or the target
/// of a link, or a module of a test binary (`netns::udp`). A code span may leave out the beginning of a path, as prose
/// does (`policy/memo.rs`).
///
/// * `document`: its path from the workspace root.
/// * `paths`: every file and directory of the workspace, by its path from the root.
pub(super) fn absent<'a>(
    document: &str,
    text: &'a str,
    paths: &BTreeSet<String>,
) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    let mut is_code = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            continue;
        }
        if is_code {
            continue;
        }
        let is_absent = |span: &&str| {
            is_path(span) && !is_known(span, paths) || is_absent_test_module(span, paths)
        };
        let named = spans(line).filter(is_absent);
        let linked = links(line).filter(|link| !is_reachable(document, link, paths));
        found.extend(named.chain(linked).map(|path| (index + 1, path)));
    }
    found
}

/// The texts between single backticks.
fn spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The files that links lead to, without their anchors.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    targets
        .filter(|target| !target.contains("://"))
        .filter_map(|target| target.split('#').next())
        .filter(|path| !path.is_empty())
}

const TREES: &[&str] = &[
    "deploy/",
    "docs/",
    "tests/",
    "xtask/",
    "yurt-ebpf/",
    "yurt-net/",
];

fn is_path(span: &str) -> bool {
    // `target/` is generated; `a/{b,c}.rs` and `*.yaml` stand for several files.
    let is_plain = span
        .chars()
        .all(|char| char.is_ascii_alphanumeric() || "/._-".contains(char));
    is_plain
        && span.contains('/')
        && (TREES.iter().any(|tree| span.starts_with(tree)) || span.ends_with(".rs"))
        && !span.starts_with('/')
        && !span.starts_with("target/")
}

fn is_known(span: &str, paths: &BTreeSet<String>) -> bool {
    let span = span.trim_end_matches('/');
    paths.contains(span) || paths.iter().any(|path| ends_with_path(path, span))
}

/// Whether a span is `binary::module`, and `tests/binary/` exists without such a module.
fn is_absent_test_module(span: &str, paths: &BTreeSet<String>) -> bool {
    let is_word = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let Some((binary, module)) = span.split_once("::") else {
        return false;
    };
    is_word(binary)
        && is_word(module)
        && paths.contains(&format!("tests/{binary}/main.rs"))
        && !paths.contains(&format!("tests/{binary}/{module}.rs"))
        && !paths.contains(&format!("tests/{binary}/{module}/mod.rs"))
}

fn ends_with_path(path: &str, end: &str) -> bool {
    path.strip_suffix(end)
        .is_some_and(|start| start.ends_with('/'))
}

fn is_reachable(document: &str, link: &str, paths: &BTreeSet<String>) -> bool {
    let mut place: Vec<&str> = document.split('/').collect();
    place.pop();
    for part in link.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => {
                place.pop();
            }
            name => place.push(name),
        }
    }
    paths.contains(&place.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> BTreeSet<String> {
        let all = [
            "README.md",
            "docs",
            "docs/a.md",
            "docs/decisions/0001-b.md",
            "tests/netns/main.rs",
            "tests/netns/udp.rs",
            "yurt-net/src/plan/op.rs",
        ];
        all.map(str::to_owned).into()
    }

    fn absent_in(text: &str) -> Vec<(usize, &str)> {
        absent("docs/a.md", text, &paths())
    }

    #[test]
    fn what_is_there_may_be_named_whole_by_its_end_or_by_a_link() {
        let text = "`yurt-net/src/plan/op.rs`, `plan/op.rs`, `docs/`, [b](decisions/0001-b.md), [r](../README.md#top), [x](#here)";
        assert_eq!(absent_in(text), []);
    }

    #[test]
    fn what_is_not_there_is_found_with_its_line() {
        let text = "first\n`plan/gone.rs` and [c](decisions/0002-c.md)\n`docs/gone.md`";
        let expected = [
            (2, "plan/gone.rs"),
            (2, "decisions/0002-c.md"),
            (3, "docs/gone.md"),
        ];
        assert_eq!(absent_in(text), expected);
    }

    #[test]
    fn a_module_of_a_test_binary_is_named_by_its_path_in_rust() {
        assert_eq!(absent_in("`netns::udp`, `std::fs`, `Op::Grace`"), []);
        assert_eq!(absent_in("`netns::gone`"), [(1, "netns::gone")]);
    }

    #[test]
    fn the_end_of_a_name_is_no_end_of_a_path() {
        assert_eq!(absent_in("`n/op.rs`"), [(1, "n/op.rs")]);
    }

    #[test]
    fn examples_patterns_and_addresses_are_no_names() {
        let text = "```\n`plan/gone.rs`\n```\n`tests/cases/*.yaml` `target/bpf/a.rs` `/docs/a` [w](https://a.example/b.rs) `10.0.0.0/8`";
        assert_eq!(absent_in(text), []);
    }
}
