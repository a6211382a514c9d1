//! What goes over `agent.sock`: requests that the agent reads, replies that the other verbs read and print.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use yurt_net::explain::verdict::Explanation;
use yurt_net::model::{Snapshot, Touched};
use yurt_net::observe::control::Request;
use yurt_net::observe::metrics::render;
use yurt_net::observe::status::Status;
use yurt_net::policy::{Memo, Memory, NodeView, PolicyConfig, Reasons, compile};
use yurt_net::source::decode::{Format, Names, decode};
use yurt_net_fuzz::{explain_in, snapshot};

const EXAMPLE: &str = include_str!("../../../deploy/examples/web.yaml");

static CLUSTER: LazyLock<Snapshot> = LazyLock::new(|| {
    let decoded = decode(EXAMPLE, Format::Yaml, "web.yaml", &mut Names::default());
    snapshot(decoded.objects.iter().map(|located| &located.object))
});

fuzz_target!(|line: &[u8]| {
    if let Some(Request::Explain(flow)) = same_again::<Request>(line) {
        let (config, view) = (PolicyConfig::new("edge-a1"), NodeView::default());
        let (memory, mut memo) = (Memory::default(), Memo::default());
        let table = compile(
            &CLUSTER,
            &Touched::Anything,
            &config,
            &view,
            &memory,
            &mut memo,
        )
        .table;
        let reasons = Reasons::new(&CLUSTER, &config, &view, &memory);
        let explanation = explain_in(table, &reasons, &CLUSTER, flow);
        assert!(!explanation.reason.is_empty());
    }
    if let Some(explanation) = same_again::<Explanation>(line) {
        drop(explanation.to_string());
    }
    if let Some(status) = same_again::<Status>(line) {
        drop(status.table());
        render(&status).lines().for_each(is_sample);
    }
});

/// What is understood says the same when it is written and read again.
fn same_again<T: Serialize + DeserializeOwned>(line: &[u8]) -> Option<T> {
    let read: T = serde_json::from_slice(line).ok()?;
    let written = serde_json::to_vec(&read).expect("what was read can be written");
    let again: T = serde_json::from_slice(&written).expect("what was written can be read");
    let rewritten = serde_json::to_vec(&again).expect("what was read can be written");
    assert_eq!(written, rewritten);
    Some(read)
}

/// A line of the text format is a comment, or a name, labels in braces and quotes, and a number.
fn is_sample(line: &str) {
    if line.starts_with("# HELP ") || line.starts_with("# TYPE ") {
        return;
    }
    let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
    assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line:?}");
    let (name, mut rest) = series.split_once('{').unwrap_or((series, "}"));
    assert!(
        name.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
        "{line:?}"
    );
    while let Some((label, quoted)) = rest.split_once("=\"") {
        assert!(
            label.bytes().all(|byte| byte.is_ascii_lowercase()),
            "{line:?}"
        );
        let mut is_escaped = false;
        let end = quoted.find(|c| {
            let is_end = c == '"' && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            is_end
        });
        let (_, after) = quoted.split_at(end.expect("a quote ends"));
        rest = after[1..].strip_prefix(',').unwrap_or(&after[1..]);
    }
    assert_eq!(rest, "}", "{line:?}");
}
