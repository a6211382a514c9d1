//! The text, word for word; what scrapers need of it; and the document.

use std::collections::BTreeSet;
use std::time::Duration;

use super::sample::Kind;
use super::*;
use crate::device::Mac;
use crate::host::process::Process;
use crate::model::{Protocol, Rejection};
use crate::observe::status::{Degraded, DoesNotFit, MapUsage, PacketPath, SelfTest};
use crate::plan::{FullMap, Refused};
use crate::source::kube::Received;
use crate::source::preferred::{FollowedSource, Origin};
use crate::table::ServiceKey;
use crate::text;
use crate::tunnel;
use crate::tunnel::report::DeviceReport;

const GOLDEN: &str = include_str!("golden.txt");
const DOCUMENT: &str = include_str!("../../../../docs/metrics.md");

/// An agent with something of everything.
fn status() -> Status {
    let mut status = Status {
        version: "0.1.0".to_owned(),
        node: "edge-a1".to_owned(),
        pool: "hangzhou".to_owned(),
        ready: true,
        degraded: vec![Degraded {
            what: "state".to_owned(),
            reason: "/var/lib/yurt-net takes no writes: Read-only file system".to_owned(),
        }],
        services: 3,
        applied: 3,
        failed_applies: 1,
        last_applied_at: Some(1_700_000_100),
        last_writes: 8,
        drift_writes: 2,
        drift_links: 1,
        self_test: SelfTest::Passed,
        process: Some(Process {
            resident_bytes: 12_582_912,
            cpu_ms: 1250,
            started_at: 1_700_000_000,
        }),
        ..Status::default()
    };
    for ms in [1, 3, 20_000] {
        status.apply_durations.record(Duration::from_millis(ms));
    }
    let source = &mut status.source;
    source.provenance = Origin::Hub;
    source.age_seconds = 4;
    source.held_lists = vec!["services".to_owned()];
    let followed = |source: &str, is_in_charge, age_seconds| FollowedSource {
        source: source.to_owned(),
        is_in_charge,
        is_good: is_in_charge,
        age_seconds,
    };
    source.sources = vec![
        followed("yurthub:", true, Some(4)),
        followed("kube:https://192.0.2.1:6443", false, None),
    ];
    let received = Received {
        bytes: 100,
        objects: 7,
        lists: 1,
        watches: 2,
        events: 4,
    };
    source.received = [("services".to_owned(), received)].into();
    status.checkpoint.bytes_written = 4096;
    status.checkpoint.writes = 2;
    status.checkpoint.errors = 1;
    status.checkpoint.last_write_ms = 15;
    status.checkpoint.last_write_at = Some(1_700_000_050);
    status.health_ports.healthz = [5, 1];
    status.health_ports.livez = [6, 0];
    let retention = &mut status.retention;
    retention.guarded_devices = 2;
    retention.alarms = vec!["the disk is full".to_owned()];
    retention.audited = [("source".to_owned(), 5), ("arp".to_owned(), 0)].into();
    retention.dropped = [("source".to_owned(), 1)].into();
    retention.translated_packets = [("to_pod".to_owned(), 7)].into();
    status.packet_path = Some(PacketPath {
        devices: vec!["eth0".to_owned()],
        pods: 4,
        packets: [("new_flow".to_owned(), 3)].into(),
        ended_flows: 2,
        ..PacketPath::default()
    });
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    status.devices.devices = vec![DeviceReport {
        name: "flannel.1".to_owned(),
        kind: tunnel::Kind::Vtep,
        mac: Some(mac),
        wanted: Some(mac),
        underlay: None,
        repairs: 2,
        underlay_changes: 1,
        peers: Some(3),
        peer_repairs: 2,
        is_left_alone: false,
    }];
    status.maps = vec![MapUsage {
        map: "yurt_fe4".to_owned(),
        used: 64,
        capacity: 64,
    }];
    status.set_refused(&DoesNotFit::of(&[Refused {
        service: ServiceKey {
            namespace: "default".into(),
            name: "web".into(),
            port: "http".into(),
            protocol: Protocol::Tcp,
        },
        map: FullMap::Frontends4,
        has_some: false,
        part: None,
    }]));
    status.set_rejections(&[Rejection {
        kind: "Service".to_owned(),
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        source: "web.yaml#3".to_owned(),
        reason: "it is wrong".to_owned(),
    }]);
    status.counters = [("forward".to_owned(), 5), ("udp_kept".to_owned(), 6)].into();
    status.clients.known = 3;
    status.sockets.scans = 2;
    status.sockets.last_scan_ms = 3;
    status.sockets.ended_withdrawn = 4;
    status.sockets.ended_outside_closure = 5;
    status.programs = [("connect4".to_owned(), 105)].into();
    status
}

#[test]
fn the_text_is_what_it_was() {
    let text = render(&status());
    for (line, (is, was)) in text.lines().zip(GOLDEN.lines()).enumerate() {
        assert_eq!(is, was, "line {}", line + 1);
    }
    assert_eq!(text, GOLDEN);
}

#[test]
fn a_label_may_hold_anything() {
    let mut status = status();
    status.node = "a\\b\"c\nd é".to_owned();
    let text = render(&status);
    let line = text.lines().find(|line| line.contains("node_info{"));
    let expected = r#"yurtnet_node_info{node="a\\b\"c\nd é",pool="hangzhou"} 1"#;
    assert_eq!(line, Some(expected));
    assert_eq!(text.lines().count(), GOLDEN.lines().count());
}

#[test]
fn no_series_is_there_twice_even_if_a_source_is() {
    let mut status = status();
    status.source.sources.push(status.source.sources[0].clone());
    let text = render(&status);
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        let (series, _) = line.rsplit_once(' ').unwrap();
        assert!(line.starts_with('#') || seen.insert(series), "{series}");
    }
}

#[test]
fn what_is_not_known_has_no_sample() {
    let text = render(&Status::default());
    for absent in ["process_", "_last_timestamp_", "_source_age_"] {
        let mut samples = text.lines().filter(|line| !line.starts_with('#'));
        assert!(!samples.any(|line| line.contains(absent)), "{absent}");
    }
}

#[test]
fn names_follow_the_conventions_of_prometheus() {
    let names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
    assert!(names.is_sorted(), "{names:?}");
    for Metric { name, kind, .. } in METRICS {
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        let is_known = ["kubeproxy_", "process_", "yurtnet_"];
        assert!(is_known.iter().any(|prefix| name.starts_with(prefix)));
    }
}

/// The rows of the table: name, type, labels, meaning.
#[test]
fn the_document_lists_the_metrics_as_they_are() {
    let (table, _) = DOCUMENT.split_once("\n## ").unwrap();
    let rows: Vec<String> = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(str::to_owned)
        .collect();
    let expected = METRICS.iter().map(|metric| {
        let labels = metric.labels.iter().map(|label| format!("`{label}`"));
        let labels = labels.collect::<Vec<_>>().join(", ");
        let (name, kind, help) = (metric.name, metric.kind.name(), metric.help);
        format!("| `{name}` | {kind} | {labels} | {help} |").replace("|  |", "| |")
    });
    let expected: Vec<String> = expected.collect();
    for row in &expected {
        assert!(rows.contains(row), "docs/metrics.md lacks:\n{row}");
    }
    assert_eq!(rows, expected);
}

#[test]
fn what_others_wrote_adds_no_lines_and_no_series() {
    let mut status = status();
    let of_kind = |kind: &str| Rejection {
        kind: kind.to_owned(),
        ..status.rejections[0].clone()
    };
    let rejections = ["Service", "a\" 1\nfake 2\u{202e}", "b\x1b", "c"].map(of_kind);
    status.set_rejections(&rejections);
    status.devices.devices[0].name = "a\"\n\x1b\u{202e}\\".to_owned();
    let text = render(&status);
    assert!(
        text.split('\n')
            .all(|line| line.chars().all(text::is_plain))
    );
    assert_eq!(text.lines().count(), GOLDEN.lines().count() + 1);
    assert!(text.contains("yurtnet_rejections{kind=\"\"} 3\n"), "{text}");
    assert!(
        text.contains(r#"device="a\"\n\\u{1b}\\u{202e}\\""#),
        "{text}"
    );
}
