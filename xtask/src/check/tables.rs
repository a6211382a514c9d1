//! Which rooms there are, what each of them may know, and who owns a library.

use super::breaches;
use super::floors::House;

/// The floors of each crate; `floors` says what they mean.
pub(crate) const HOUSES: [House; 2] = [
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
                    "edge", "explain", "ledger", "plan", "pods", "policy", "table", "tunnel",
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
        floors: &[
            ("layouts", &["abi"]),
            ("bytes", &["frame"]),
            ("decisions", &["claims", "rewrite", "select", "vxlan"]),
            ("maps", &["maps"]),
            ("hooks", &["prog"]),
            ("crate", &["lib", "main"]),
        ],
        breaches: &[],
    },
];

/// The floor whose rooms are pure: values in, values out.
pub(crate) const RULES: &str = "rules";
/// Its files that are not pure: they read and write what belongs to the rules of their room alone.
pub(crate) const EDGES_OF_RULES: &[&str] = &[
    "yurt-net/src/ledger/store.rs",
    "yurt-net/src/ledger/watch.rs",
    "yurt-net/src/pods/settings.rs",
    "yurt-net/src/tunnel/record.rs",
];

/// What a pure file must not mention. A leading `*` matches at any depth of the path.
pub(crate) const IMPURE: &[&str] = &[
    "aya",
    "aya_ebpf",
    "aya_obj",
    "crate::host::cgroup",
    "crate::host::clock::monotonic_seconds",
    "crate::host::clock::unix_seconds",
    "crate::host::disk",
    "crate::host::filesystem",
    "crate::host::netns",
    "crate::host::process",
    "crate::ledger::store",
    "crate::output",
    "fastrand",
    "inotify",
    "kube",
    "netlink_packet_route",
    "rtnetlink",
    "socket2",
    "std::env",
    "std::fs",
    "std::io::stderr",
    "std::io::stdin",
    "std::io::stdout",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::os::unix::net",
    "std::process",
    "std::thread",
    "tokio",
    "*::Clock::read",
    "*::now",
];
/// The methods that a pure file must not call: they read a clock or the file system.
pub(crate) const IMPURE_METHODS: &[&str] = &[
    "elapsed", "exists", "is_dir", "is_file", "metadata", "read_dir",
];

/// A library that only some files may use.
pub(crate) struct Edge {
    pub(crate) libraries: &'static [&'static str],
    pub(crate) owners: &'static [&'static str],
    pub(crate) remedy: &'static str,
}

pub(crate) const EDGES: &[Edge] = &[
    Edge {
        libraries: &["aya", "aya_log", "aya_obj", "log"],
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
            "yurt-net/src/source/kube/access/",
            // The description of an exec plugin in a kubeconfig.
            "yurt-net/src/source/kube/plugin.rs",
        ],
        remedy: "the API is read through `source`; a module of that name is `self::kube`",
    },
    Edge {
        libraries: &["hyper", "hyper_util"],
        owners: &[
            "yurt-net/src/agent/probing/",
            "yurt-net/src/observe/http/",
            "yurt-net/src/source/kube/failure.rs",
            "yurt-net/src/source/kube/task.rs",
            "yurt-net/src/source/kube/wire.rs",
        ],
        remedy: "what is served over HTTP is served by `observe::http`, and what is asked is asked by `source::kube` and, of Pods, by `agent::probing`",
    },
    Edge {
        libraries: &["tokio_rustls", "rustls_native_certs"],
        owners: &[
            "yurt-net/src/source/kube/access/",
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
        // It is there for tests.
        owners: &[],
        remedy: "objects are `model`'s types after `source::decode`",
    },
    Edge {
        libraries: &["clap"],
        owners: &["yurt-net/src/config/", "yurt-net/src/main.rs"],
        remedy: "flags are decoded by `config`, into values",
    },
    Edge {
        libraries: &["libc::SYS_bpf"],
        owners: &["yurt-net/src/dataplane/sys/bpf.rs"],
        remedy: "bpf(2) is called by `dataplane::sys::bpf`",
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
pub(crate) const EXCEPTIONS: &[(&str, &str)] = &[
    // Paths of directories, which it only joins.
    (
        "yurt-net/src/cni/protocol.rs",
        "crate::ledger::store::LedgerDirs",
    ),
    // The types of the maps are shared with the programs, and only their own crate can declare them as Pod.
    ("yurt-ebpf/src/abi/mod.rs", "aya::Pod"),
];
