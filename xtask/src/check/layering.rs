//! Which file may know what: the pure core stays pure, each edge has one owner.

use std::fmt;

use super::breaches;
use super::floors::House;
use super::paths::{Mention, mentions};

/// A source file.
pub(crate) struct File {
    /// Path from the workspace root.
    pub(crate) name: String,
    /// Contents.
    pub(crate) text: String,
}

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) place: String,
    pub(crate) rule: String,
    pub(crate) remedy: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            place,
            rule,
            remedy,
        } = self;
        write!(f, "{place}: {rule}; {remedy}")
    }
}

/// Which way imports go: `floors` says what that means.
const HOUSES: [House; 2] = [
    House {
        root: "yurt-net/src/",
        name: "yurt_net",
        floors: &[
            (
                "words and the machine",
                &[
                    "device", "error", "go_json", "host", "model", "output", "text",
                ],
            ),
            (
                "rules",
                &[
                    "explain", "ledger", "plan", "pods", "policy", "table", "tunnel",
                ],
            ),
            ("edges", &["cni", "dataplane", "node", "observe", "source"]),
            ("config", &["config"]),
            ("agent", &["agent"]),
            ("verbs", &["cli", "lib", "main"]),
        ],
        breaches: breaches::AGENT,
    },
    House {
        root: "yurt-ebpf/src/",
        name: "yurt_ebpf",
        floors: &[],
        breaches: breaches::PROGRAMS,
    },
];

/// Pure files: values in, values out. A name that ends in `/` stands for all below it.
const PURE: &[&str] = &[
    "yurt-ebpf/src/abi/",
    "yurt-ebpf/src/claims.rs",
    "yurt-ebpf/src/claims/",
    "yurt-ebpf/src/rewrite/",
    "yurt-ebpf/src/select.rs",
    "yurt-ebpf/src/vxlan.rs",
    "yurt-net/src/agent/lines.rs",
    "yurt-net/src/dataplane/netlink.rs",
    "yurt-net/src/dataplane/service/clients/identity/",
    "yurt-net/src/dataplane/service/decode.rs",
    "yurt-net/src/dataplane/service/encode.rs",
    "yurt-net/src/dataplane/service/memory.rs",
    "yurt-net/src/dataplane/service/sockets/message.rs",
    "yurt-net/src/device/",
    "yurt-net/src/explain/",
    "yurt-net/src/go_json.rs",
    "yurt-net/src/ledger/adopt/",
    "yurt-net/src/ledger/codec.rs",
    "yurt-net/src/ledger/mod.rs",
    "yurt-net/src/ledger/range/",
    "yurt-net/src/ledger/rules/",
    "yurt-net/src/model/",
    "yurt-net/src/host/durations.rs",
    "yurt-net/src/host/limit.rs",
    "yurt-net/src/observe/metrics/",
    "yurt-net/src/plan.rs",
    "yurt-net/src/plan/",
    "yurt-net/src/pods/guard/",
    "yurt-net/src/pods/mod.rs",
    "yurt-net/src/pods/probe/",
    "yurt-net/src/pods/translate/",
    "yurt-net/src/pods/truth.rs",
    "yurt-net/src/policy/",
    "yurt-net/src/cni/protocol.rs",
    "yurt-net/src/node/tables.rs",
    "yurt-net/src/cni/install/mod.rs",
    "yurt-net/src/source/checkpoint/v1.rs",
    "yurt-net/src/source/checkpoint/v2.rs",
    "yurt-net/src/source/checkpoint/codec.rs",
    "yurt-net/src/source/checkpoint/contents.rs",
    "yurt-net/src/source/checkpoint/pace.rs",
    "yurt-net/src/source/kube/body.rs",
    "yurt-net/src/source/kube/extent.rs",
    "yurt-net/src/source/kube/follow.rs",
    "yurt-net/src/source/kube/resource.rs",
    "yurt-net/src/source/kube/state.rs",
    "yurt-net/src/source/objects.rs",
    "yurt-net/src/source/room.rs",
    "yurt-net/src/source/preferred/charge.rs",
    "yurt-net/src/table.rs",
    "yurt-net/src/table/",
    "yurt-net/src/text.rs",
    "yurt-net/src/tunnel/announced.rs",
    "yurt-net/src/tunnel/peers/",
    "yurt-net/src/tunnel/report.rs",
    "yurt-net/src/tunnel/vtep/",
];

/// What a pure file must not mention. A leading `*` matches at any depth of the path.
const IMPURE: &[&str] = &[
    "aya",
    "aya_ebpf",
    "aya_obj",
    "k8s_openapi",
    "kube",
    "netlink_packet_route",
    "rtnetlink",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "tokio",
    "*::Instant::now",
    "*::SystemTime::now",
];

/// A library that only some files may use.
struct Edge {
    libraries: &'static [&'static str],
    owners: &'static [&'static str],
    remedy: &'static str,
}

const EDGES: &[Edge] = &[
    Edge {
        libraries: &["aya", "aya_obj"],
        owners: &[
            "yurt-net/src/dataplane/load/",
            "yurt-net/src/dataplane/sys/",
        ],
        remedy: "the kernel is reached through `dataplane`",
    },
    Edge {
        libraries: &["rtnetlink", "netlink_packet_route"],
        owners: &["yurt-net/src/node/", "yurt-net/src/cni/interface.rs"],
        remedy: "addresses and links of the node are read from `node`, a Pod's interface is set by `cni::interface`",
    },
    Edge {
        libraries: &["kube"],
        owners: &[
            "yurt-net/src/source/kube/access.rs",
            // What a kubeconfig says of an exec plugin.
            "yurt-net/src/source/kube/plugin.rs",
        ],
        remedy: "the API is read through `source`; a module of that name is `self::kube`",
    },
    Edge {
        libraries: &["hyper", "hyper_util"],
        owners: &[
            "yurt-net/src/observe/http/",
            "yurt-net/src/source/kube/failure.rs",
            "yurt-net/src/source/kube/task.rs",
            "yurt-net/src/source/kube/wire.rs",
        ],
        remedy: "what is served over HTTP is served by `observe::http`, and what is asked is asked by `source::kube`",
    },
    Edge {
        libraries: &["tokio_rustls", "tower"],
        owners: &[
            "yurt-net/src/source/kube/access.rs",
            "yurt-net/src/source/kube/wire.rs",
        ],
        remedy: "whom to believe is said by `source::kube`'s `access`",
    },
    Edge {
        libraries: &["h2"],
        owners: &["yurt-net/src/agent/probing/"],
        remedy: "a Pod's health over gRPC is asked for by `agent::probing`",
    },
    Edge {
        libraries: &["k8s_openapi"],
        owners: &["yurt-net/src/source/decode.rs"],
        remedy: "objects are `model`'s types after `source::decode`",
    },
    Edge {
        libraries: &["postcard"],
        owners: &["yurt-net/src/source/checkpoint/codec.rs"],
        remedy: "the checkpoint is written and read by `source::checkpoint`",
    },
    Edge {
        libraries: &["lz4_flex"],
        owners: &[
            "yurt-net/build.rs",
            "yurt-net/src/dataplane/load/mod.rs",
            "yurt-net/src/source/checkpoint/codec.rs",
        ],
        remedy: "compressed are the checkpoint, by `source::checkpoint`, and the eBPF object",
    },
    Edge {
        libraries: &["crc32fast"],
        owners: &[
            "yurt-net/src/ledger/codec.rs",
            "yurt-net/src/tunnel/record.rs",
            "yurt-net/src/source/checkpoint/codec.rs",
        ],
        remedy: "what is on disk is written and read by `source::checkpoint`, `ledger::codec` and `tunnel::record`",
    },
];

/// The exceptions: file, and what it may mention all the same.
const EXCEPTIONS: &[(&str, &str)] = &[
    // The maps' types are shared with the programs, and only their crate can say that they are Pod.
    ("yurt-ebpf/src/abi/mod.rs", "aya::Pod"),
];

const MAX_LINES: usize = 650;
const BANNED_NAMES: &[&str] = &["common", "helpers", "manager", "misc", "utils"];
/// Written in halves, so that this file holds none.
const MARKERS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];

/// Everything in these files that breaks a rule.
pub(crate) fn violations(files: &[File]) -> Vec<Violation> {
    files.iter().flat_map(file_violations).collect()
}

/// What only all files together show: imports that go the wrong way, and paths of the tables above that lead nowhere.
pub(crate) fn violations_of_all(files: &[File]) -> Vec<Violation> {
    let edges = EDGES.iter().flat_map(|edge| edge.owners);
    let listed = PURE
        .iter()
        .chain(edges)
        .chain(EXCEPTIONS.iter().map(|(file, _)| file));
    let missing = listed.filter(|path| !files.iter().any(|file| is_among(&file.name, &[*path])));
    let missing = missing.map(|path| Violation {
        place: (*path).to_owned(),
        rule: "is listed in xtask/src/check/layering.rs, and no file is there".to_owned(),
        remedy: "list where it is now, or delete it from the list".to_owned(),
    });
    let imports = HOUSES.iter().flat_map(|house| house.violations(files));
    missing.chain(imports).collect()
}

fn file_violations(file: &File) -> Vec<Violation> {
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
    // The tests and this program are no part of what is layered.
    if !name.starts_with("yurt-net/src/") && !name.starts_with("yurt-ebpf/src/") {
        return found;
    }
    for mention in mentions(&file.text) {
        let Mention { line, segments } = &mention;
        let is_excepted = |&(of, path): &(&str, &str)| of == name && matches(path, segments);
        if EXCEPTIONS.iter().any(is_excepted) {
            continue;
        }
        let path = segments.join("::");
        if is_among(name, PURE) && IMPURE.iter().any(|pattern| matches(pattern, segments)) {
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
                let rule = format!("{path} outside {}", edge.owners.join(", "));
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

/// Whether the path is, or lies below, what the pattern names; a glob import counts as all it holds.
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

/// The marker of work left undone in this line, unless it names an issue.
fn bare_marker(line: &str) -> Option<&'static str> {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    MARKERS.iter().copied().find(|marker| {
        line.match_indices(marker).any(|(at, _)| {
            let after = &line[at + marker.len()..];
            let is_whole =
                !is_word(line[..at].chars().next_back()) && !is_word(after.chars().next());
            is_whole && !after.starts_with("(#")
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
            "pure file",
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
                "unsafe impl aya::Pod for Key {}\n"
            ),
            [""; 0]
        );
        assert_found(
            "yurt-ebpf/src/abi/mod.rs",
            "use aya::maps::HashMap;\n",
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
}
