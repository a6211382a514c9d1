//! Checks what each file may know: the pure core stays pure, and each library at the edge has one owner.

use std::collections::BTreeSet;

use super::columns::{self, long_comments};
use super::paths::{Mention, calls, mentions};
use super::tables::{EDGES, EDGES_OF_RULES, EXCEPTIONS, HOUSES, IMPURE, IMPURE_METHODS, RULES};
use super::violation::{File, Violation};

const MAX_LINES: usize = 650;
const BANNED_NAMES: &[&str] = &["common", "helpers", "manager", "misc", "utils"];
/// Written in two halves, so that this file does not contain them.
const MARKERS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];

/// Everything in these files that breaks a rule.
pub(crate) fn violations(files: &[File]) -> Vec<Violation> {
    let pure = files.iter().filter(|file| says_pure(&file.text));
    let pure: Vec<&str> = pure.map(|file| module_of(&file.name)).collect();
    let is_pure = |file: &File| {
        let says = |module: &&str| {
            let rest = file.name.strip_prefix(module);
            rest.is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
        };
        !EDGES_OF_RULES.contains(&&*file.name) && (is_rules(&file.name) || pure.iter().any(says))
    };
    let found = files
        .iter()
        .map(|file| file_violations(file, is_pure(file)));
    found.flatten().collect()
}

/// Whether the file is in a room of rules.
fn is_rules(name: &str) -> bool {
    let mut houses = HOUSES.iter();
    houses.any(|house| house.floor_of(name) == Some(RULES))
}

/// Whether a file says that its module is pure: its documentation has that word, with a capital. "Pure but for" does
/// not count.
fn says_pure(text: &str) -> bool {
    let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
    let mut words = lines.flat_map(str::split_whitespace).peekable();
    while let Some(word) = words.next() {
        let is_it = word.trim_end_matches(['.', ':', ';', ',']) == "Pure";
        if is_it && words.peek() != Some(&"but") {
            return true;
        }
    }
    false
}

/// The path and name of a module, however its file is named. What a module says of itself also holds for everything
/// below it.
fn module_of(name: &str) -> &str {
    let name = name.trim_end_matches(".rs");
    name.trim_end_matches("/mod")
}

/// Violations that only all files together show: imports in the wrong direction, and entries of the tables above that
/// lead nowhere.
pub(crate) fn violations_of_all(files: &[File]) -> Vec<Violation> {
    let edges = EDGES.iter().flat_map(|edge| edge.owners);
    let listed = EDGES_OF_RULES
        .iter()
        .chain(edges)
        .chain(EXCEPTIONS.iter().map(|(file, _)| file));
    let missing = listed.filter(|path| !files.iter().any(|file| is_among(&file.name, &[*path])));
    let missing = missing.map(|path| Violation {
        place: (*path).to_owned(),
        rule: "is listed in xtask/src/check/tables.rs, and no file is there".to_owned(),
        remedy: "list where it is now, or delete it from the list".to_owned(),
    });
    let imports = HOUSES.iter().flat_map(|house| house.violations(files));
    let imports = missing.chain(imports);
    imports.chain(beside_their_directories(files)).collect()
}

/// Modules whose file is beside the directory of their other files: a module should be in one place.
fn beside_their_directories(files: &[File]) -> impl Iterator<Item = Violation> {
    let directories = files.iter().filter_map(|file| file.name.rsplit_once('/'));
    let directories: BTreeSet<&str> = directories.map(|(directory, _)| directory).collect();
    let is_beside = move |file: &&File| {
        let module = file.name.trim_end_matches(".rs");
        file.name.contains("/src/") && !is_test(&file.name) && directories.contains(module)
    };
    files.iter().filter(is_beside).map(|file| Violation {
        place: file.name.clone(),
        rule: "is a module with a directory, and lies beside it".to_owned(),
        remedy: format!("git mv it to {}/mod.rs", module_of(&file.name)),
    })
}

fn file_violations(file: &File, is_pure: bool) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut report = |line: usize, rule: String, remedy: &str| {
        found.push(Violation {
            place: format!("{}:{line}", file.name),
            rule,
            remedy: remedy.to_owned(),
        });
    };

    for part in file.name.trim_end_matches(".rs").split('/') {
        if BANNED_NAMES.contains(&part) {
            let rule = format!("`{part}` is not a name");
            report(1, rule, "say what the module is about");
        }
    }
    for (index, line) in file.text.lines().enumerate() {
        if let Some(marker) = bare_marker(line) {
            let rule = format!("bare {marker}");
            let remedy = format!("do it, or name its issue: {marker}(#12)");
            report(index + 1, rule, &remedy);
        }
    }
    for line in long_comments(&file.text) {
        let rule = format!("a comment of more than {} columns", columns::MAX);
        report(line, rule, "break the line");
    }
    let name = file.name.as_str();
    if is_test(name) {
        return found;
    }
    let lines = file.text.lines().count();
    if lines > MAX_LINES {
        let rule = format!("{lines} lines, more than {MAX_LINES}");
        report(
            lines,
            rule,
            "split it by concern, or move its tests to tests.rs",
        );
    }
    // Tests and xtask have no layers.
    if !name.starts_with("yurt-net/src/") && !name.starts_with("yurt-ebpf/src/") {
        return found;
    }
    let methods = calls(&file.text).into_iter().filter(|_| is_pure);
    for (line, method) in methods.filter(|(_, method)| IMPURE_METHODS.contains(&&**method)) {
        let rule = format!("a pure file calls {method}()");
        report(
            line,
            rule,
            "take the value as a parameter, or move this to an edge",
        );
    }
    for mention in mentions(&file.text) {
        let Mention { line, segments } = &mention;
        let is_excepted = |&(of, path): &(&str, &str)| of == name && matches(path, segments);
        if EXCEPTIONS.iter().any(is_excepted) {
            continue;
        }
        let path = segments.join("::");
        if is_pure && IMPURE.iter().any(|pattern| matches(pattern, segments)) {
            let rule = format!("a pure file mentions {path}");
            report(
                *line,
                rule,
                "take the value as a parameter, or move this to an edge",
            );
            continue;
        }
        for edge in EDGES {
            let is_edge = edge
                .libraries
                .iter()
                .any(|library| matches(library, segments));
            if is_edge && !is_among(name, edge.owners) {
                let rule = match edge.owners {
                    [] => format!("{path} outside tests"),
                    owners => format!("{path} outside {}", owners.join(", ")),
                };
                report(*line, rule, edge.remedy);
            }
        }
    }
    found
}

fn is_test(name: &str) -> bool {
    let is_file = name.ends_with("/tests.rs") || name.ends_with("/proptests.rs");
    is_file || name.contains("/proptests/")
}

fn is_among(name: &str, places: &[&str]) -> bool {
    places.iter().any(|place| match place.strip_suffix('/') {
        Some(_) => name.starts_with(place),
        None => name == *place,
    })
}

/// Whether a path is what the pattern names, or is below it; a glob import counts as everything it imports.
fn matches(pattern: &str, segments: &[String]) -> bool {
    let wanted: Vec<&str> = pattern.trim_start_matches("*::").split("::").collect();
    if pattern.starts_with('*') {
        return segments
            .windows(wanted.len())
            .any(|window| window == wanted);
    }
    match segments.split_last() {
        Some((last, parents)) if last == "*" && parents.len() < wanted.len() => {
            !parents.is_empty()
                && wanted.starts_with(&parents.iter().map(String::as_str).collect::<Vec<_>>())
        }
        _ => segments.len() >= wanted.len() && segments.iter().zip(&wanted).all(|(a, b)| a == b),
    }
}

/// The marker of unfinished work in this line, unless it names an issue.
fn bare_marker(line: &str) -> Option<&'static str> {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    MARKERS.iter().copied().find(|marker| {
        line.match_indices(marker).any(|(at, _)| {
            let after = &line[at + marker.len()..];
            let is_whole =
                !is_word(line[..at].chars().next_back()) && !is_word(after.chars().next());
            let issue = after.strip_prefix("(#");
            let has_issue =
                issue.is_some_and(|issue| issue.starts_with(|c: char| c.is_ascii_digit()));
            is_whole && !has_issue
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, text: &str) -> Vec<String> {
        let file = File {
            name: name.to_owned(),
            text: text.to_owned(),
        };
        violations(&[file])
            .iter()
            .map(Violation::to_string)
            .collect()
    }

    #[track_caller]
    fn assert_found(name: &str, text: &str, part: &str) {
        let found = found(name, text);
        assert!(found.len() == 1 && found[0].contains(part), "{found:?}");
    }

    #[test]
    fn a_library_outside_its_owner_is_a_violation() {
        assert_found(
            "yurt-net/src/agent.rs",
            "\nuse aya::Ebpf;\n",
            "yurt-net/src/agent.rs:2: aya::Ebpf outside",
        );
        assert_found(
            "yurt-net/src/agent.rs",
            "use rtnetlink::new_connection;\n",
            "read from `node`",
        );
        assert_found(
            "yurt-net/src/source/mod.rs",
            "fn f() { kube::Client::x() }\n",
            "self::kube",
        );
        assert_found(
            "yurt-net/src/model/mod.rs",
            "use k8s_openapi::*;\n",
            "`model`'s types after",
        );
        assert_eq!(
            found("yurt-net/src/dataplane/load/mod.rs", "use aya::Ebpf;\n"),
            [""; 0]
        );
        assert_eq!(
            found(
                "yurt-net/src/source/mod.rs",
                "mod kube;\nuse self::kube::Kube;\n"
            ),
            [""; 0]
        );
        assert_eq!(found("tests/src/lib.rs", "use aya::Ebpf;\n"), [""; 0]);
    }

    #[test]
    fn a_file_is_pure_in_a_room_of_rules_and_wherever_it_or_what_it_is_in_says_so() {
        let reads = |doc: &str| format!("{doc}use std::fs;\n");
        for (name, doc) in [
            ("yurt-net/src/ledger/rules/mod.rs", ""),
            (
                "yurt-net/src/table.rs",
                "//! A table. Pure but for a file.\n",
            ),
            ("yurt-net/src/source/room.rs", "//! A room. Pure.\n"),
            (
                "yurt-net/src/source/room.rs",
                "//! A room.\n//!\n//! Pure: in, out.\n",
            ),
            (
                "yurt-ebpf/src/abi/mod.rs",
                "//! Layouts.\n//! Pure and `no_std`.\n",
            ),
        ] {
            assert_found(name, &reads(doc), "a pure file mentions std::fs");
        }
        for (name, doc) in [
            ("yurt-net/src/ledger/store.rs", "//! On a disk.\n"),
            ("yurt-net/src/source/room.rs", "//! A pure room.\n"),
            ("yurt-net/src/source/room.rs", "//! Pure but for a file.\n"),
            ("yurt-net/src/source/room.rs", "// Pure.\n"),
        ] {
            assert_eq!(found(name, &reads(doc)), [""; 0], "{name}: {doc}");
        }
        for (parent, child, is_in) in [
            ("device/mod.rs", "device/link.rs", true),
            ("text.rs", "text/cut.rs", true),
            ("ledger/mod.rs", "ledger/store.rs", false),
            ("device/mod.rs", "devices.rs", false),
            ("source/room.rs", "source/mod.rs", false),
        ] {
            let file = |name: &str, text: &str| File {
                name: format!("yurt-net/src/{name}"),
                text: text.to_owned(),
            };
            let files = [file(parent, "//! Pure.\n"), file(child, "use std::fs;\n")];
            assert_eq!(violations(&files).len(), usize::from(is_in), "{child}");
        }
    }

    #[test]
    fn a_pure_file_knows_no_clock_no_file_and_no_socket() {
        for text in [
            "use std::fs;\n",
            "use std::{fmt, fs::File};\n",
            "use tokio::sync::watch;\n",
            "use std::net::{IpAddr, TcpStream};\n",
            "fn f() { let _ = std::time::Instant::now(); }\n",
            "use std::time::Instant;\nconst F: fn() -> Instant = Instant::now;\n",
            "use std::net::*;\n",
        ] {
            assert_found(
                "yurt-net/src/policy/topology.rs",
                text,
                "a pure file mentions",
            );
        }
        let fine =
            "use std::net::IpAddr;\nuse std::time::Instant;\nuse std::fmt::*;\n// Instant::now()\n";
        assert_eq!(found("yurt-net/src/plan.rs", fine), [""; 0]);
        assert_eq!(
            found(
                "yurt-net/src/agent.rs",
                "use std::fs;\nuse tokio::time::sleep;\n"
            ),
            [""; 0]
        );
    }

    #[test]
    fn the_abi_may_say_pod_and_nothing_else_of_aya() {
        assert_eq!(
            found(
                "yurt-ebpf/src/abi/mod.rs",
                "//! Pure.\nunsafe impl aya::Pod for Key {}\n"
            ),
            [""; 0]
        );
        assert_found(
            "yurt-ebpf/src/abi/mod.rs",
            "//! Pure.\nuse aya::maps::HashMap;\n",
            "a pure file mentions",
        );
        assert_eq!(
            found("yurt-ebpf/src/prog/sock.rs", "use aya_ebpf::EbpfContext;\n"),
            [""; 0]
        );
    }

    #[test]
    fn size_names_and_markers_are_judged_in_every_member() {
        let long = "\n".repeat(MAX_LINES + 1);
        assert_found("tests/src/lib.rs", &long, "651 lines");
        for tests in [
            "plan/tests.rs",
            "policy/proptests.rs",
            "plan/proptests/room.rs",
        ] {
            assert_eq!(found(&format!("yurt-net/src/{tests}"), &long), [""; 0]);
        }
        assert_found("tests/src/utils.rs", "", "`utils` is not a name");
        assert_found("tests/src/helpers/a.rs", "", "`helpers` is not a name");
        let marker = MARKERS[0];
        assert_found(
            "xtask/src/main.rs",
            &format!("// {marker}: later\n"),
            "xtask/src/main.rs:1: bare",
        );
        assert_eq!(
            found(
                "xtask/src/main.rs",
                &format!("// {marker}(#12): later\n// {marker}S\n")
            ),
            [""; 0]
        );
    }

    #[test]
    fn a_module_with_files_of_its_own_is_the_mod_rs_of_its_directory() {
        let beside = |names: &[&str]| -> Vec<String> {
            let files = names.iter().map(|name| File {
                name: (*name).to_owned(),
                text: String::new(),
            });
            let files: Vec<File> = files.collect();
            beside_their_directories(&files)
                .map(|violation| violation.place)
                .collect()
        };
        let fine = [
            "yurt-net/src/plan/mod.rs",
            "yurt-net/src/plan/op.rs",
            "yurt-net/src/source/tests.rs",
            "yurt-net/src/source/tests/again.rs",
            "tests/cases.rs",
            "tests/cases/case.rs",
        ];
        assert_eq!(beside(&fine), [""; 0]);
        let found = beside(&["yurt-net/src/plan.rs", "yurt-net/src/plan/op.rs"]);
        assert_eq!(found, ["yurt-net/src/plan.rs"]);
    }
}
