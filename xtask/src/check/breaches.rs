//! Imports that go the wrong way as yet, by what will end them. A list that only gets shorter.

use super::floors::Breaches;

/// Of the agent's crate.
pub(crate) const AGENT: &[Breaches] = &[Breaches {
    until: "files for the words that parents in source/ share with their children, as source/spec.rs",
    imports: &[
        ("source/checkpoint/keeper.rs", "source/checkpoint.rs"),
        ("source/decode/kinds.rs", "source/decode.rs"),
        ("source/decode/kinds/pod.rs", "source/decode.rs"),
        ("source/decode/kinds/pod.rs", "source/decode/kinds.rs"),
        ("source/decode/kinds/service.rs", "source/decode.rs"),
        ("source/decode/kinds/service.rs", "source/decode/kinds.rs"),
        ("source/decode/stream.rs", "source/decode.rs"),
        ("source/kube.rs", "source/mod.rs"),
        ("source/preferred/status.rs", "source/preferred.rs"),
        ("source/kube/access/mod.rs", "source/mod.rs"),
        ("source/kube/connection.rs", "source/kube.rs"),
        ("source/kube/gaps.rs", "source/kube.rs"),
        ("source/kube/plugin.rs", "source/kube/access/mod.rs"),
        ("source/kube/report.rs", "source/kube.rs"),
        ("source/kube/servers.rs", "source/kube.rs"),
        ("source/kube/servers.rs", "source/mod.rs"),
        ("source/kube/task.rs", "source/kube.rs"),
    ],
}];
