//! Which metrics there are, by name.

use std::collections::BTreeMap;

use super::sample::Kind::{Counter, Gauge, Histogram};
use super::sample::{Metric, Samples, metric, micros, millis};
use crate::ledger::State;
use crate::model::Kind;
use crate::observe::status::health::FAULTS;
use crate::observe::status::{Retention, SelfTest};
use crate::source::preferred::Origin;

fn put_codes(out: &mut Samples<'_>, [ok, unavailable]: [u64; 2]) {
    out.put(&["200"], ok);
    out.put(&["503"], unavailable);
}

/// All of them.
pub(super) const METRICS: &[Metric] = &[
    metric(
        Counter,
        "kubeproxy_proxy_healthz_total",
        &["code"],
        "Answers of /healthz of the health port.",
        |status, out| put_codes(out, status.health_ports.healthz),
    ),
    metric(
        Counter,
        "kubeproxy_proxy_livez_total",
        &["code"],
        "Answers of /livez of the health port.",
        |status, out| put_codes(out, status.health_ports.livez),
    ),
    metric(
        Histogram,
        "kubeproxy_sync_proxy_rules_duration_seconds",
        &[],
        "Time to compile a table, both families, and to write what differs.",
        |status, out| {
            let durations = &status.apply_durations;
            for (bound, count) in durations.cumulative() {
                out.put_as("_bucket", &[("le", &bound.to_string())], count);
            }
            out.put_as("_bucket", &[("le", "+Inf")], durations.count());
            out.put_as("_sum", &[], micros(durations.sum_us));
            out.put_as("_count", &[], durations.count());
        },
    ),
    metric(
        Gauge,
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        &[],
        "When the last table was applied.",
        |status, out| out.put_some(status.last_applied_at),
    ),
    metric(
        Counter,
        "process_cpu_seconds_total",
        &[],
        "Processor time, user and system.",
        |status, out| out.put_some(status.process.map(|process| millis(process.cpu_ms))),
    ),
    metric(
        Gauge,
        "process_resident_memory_bytes",
        &[],
        "Resident memory.",
        |status, out| out.put_some(status.process.map(|process| process.resident_bytes)),
    ),
    metric(
        Gauge,
        "process_start_time_seconds",
        &[],
        "When the agent was started.",
        |status, out| out.put_some(status.process.map(|process| process.started_at)),
    ),
    metric(
        Counter,
        "yurtnet_apply_failures_total",
        &[],
        "Tables that could not be applied and were tried again.",
        |status, out| out.put(&[], status.failed_applies),
    ),
    metric(
        Gauge,
        "yurtnet_build_info",
        &["version"],
        "1, with the version of the agent.",
        |status, out| out.put(&[&status.version], 1),
    ),
    metric(
        Counter,
        "yurtnet_checkpoint_errors_total",
        &[],
        "Saves that failed.",
        |status, out| out.put(&[], status.checkpoint.errors),
    ),
    metric(
        Gauge,
        "yurtnet_checkpoint_last_write_duration_seconds",
        &[],
        "Time of the last save, until it was on the medium.",
        |status, out| out.put(&[], millis(status.checkpoint.last_write_ms)),
    ),
    metric(
        Gauge,
        "yurtnet_checkpoint_last_write_timestamp_seconds",
        &[],
        "When the last save was on the medium.",
        |status, out| out.put_some(status.checkpoint.last_write_at),
    ),
    metric(
        Counter,
        "yurtnet_checkpoint_writes_total",
        &[],
        "Saves that wrote.",
        |status, out| out.put(&[], status.checkpoint.writes),
    ),
    metric(
        Counter,
        "yurtnet_checkpoint_written_bytes_total",
        &[],
        "Bytes handed to the file system.",
        |status, out| out.put(&[], status.checkpoint.bytes_written),
    ),
    metric(
        Gauge,
        "yurtnet_clients_known",
        &[],
        "Network namespaces whose addresses are known, for source ranges.",
        |status, out| out.put(&[], status.clients.known),
    ),
    metric(
        Gauge,
        "yurtnet_degraded",
        &["what"],
        "1 while this is degraded: `yurt-net status` says why.",
        |status, out| {
            for what in FAULTS {
                let is_so = status.degraded.iter().any(|fault| fault.what == what);
                out.put(&[what], u8::from(is_so));
            }
        },
    ),
    metric(
        Gauge,
        "yurtnet_device_mac_info",
        &["device", "mac", "wanted"],
        "1, with the MAC of one of the node's own devices, and the MAC that it should have.",
        |status, out| {
            for device in &status.devices.devices {
                if let (Some(mac), Some(wanted)) = (device.mac, device.wanted) {
                    out.put(&[&device.name, &mac.to_string(), &wanted.to_string()], 1);
                }
            }
        },
    ),
    metric(
        Counter,
        "yurtnet_device_mac_repairs_total",
        &["device"],
        "Times that the agent set the MAC of one of the node's own devices, because it had another.",
        |status, out| out.put_devices(status, |device| device.repairs),
    ),
    metric(
        Gauge,
        "yurtnet_device_mac_unrepaired",
        &["device"],
        "1 while the MAC of one of the node's own devices changes so often that the agent leaves it alone.",
        |status, out| out.put_devices(status, |device| device.is_left_alone.into()),
    ),
    metric(
        Counter,
        "yurtnet_device_peer_repairs_total",
        &["device"],
        "Times that the entries of a vxlan device about a peer were given the new MAC of the peer.",
        |status, out| out.put_devices(status, |device| device.peer_repairs),
    ),
    metric(
        Counter,
        "yurtnet_device_underlay_changes_total",
        &["device"],
        "Times that the underlay address of a vxlan device was gone and the agent took another.",
        |status, out| out.put_devices(status, |device| device.underlay_changes),
    ),
    metric(
        Gauge,
        "yurtnet_devices_alarms",
        &[],
        "Faults of the node's own devices that an operator should look into: `yurt-net status` lists them.",
        |status, out| out.put(&[], status.devices.alarms.len()),
    ),
    metric(
        Counter,
        "yurtnet_drift_repairs_total",
        &["object"],
        "Map writes, and programs attached again, that changes by others made necessary.",
        |status, out| {
            out.put(&["map_entry"], status.drift_writes);
            out.put(&["program"], status.drift_links);
        },
    ),
    metric(
        Gauge,
        "yurtnet_endpoints_corrected",
        &["change"],
        "Endpoints of this node that a stale source has at another address, and those whose Pods are not running.",
        |status, out| {
            out.put(&["away"], status.retention.endpoints_away);
            out.put(&["moved"], status.retention.endpoints_moved);
        },
    ),
    metric(
        Gauge,
        "yurtnet_endpoints_failing",
        &[],
        "Endpoints of this node whose probes fail while the source is stale; at least half of a set stay in it all the same.",
        |status, out| out.put(&[], status.retention.endpoints_failing),
    ),
    metric(
        Gauge,
        "yurtnet_guard_devices",
        &[],
        "Devices of Pods that the guard watches.",
        |status, out| out.put(&[], status.retention.guarded_devices),
    ),
    metric(
        Counter,
        "yurtnet_guard_frames_total",
        &["action", "reason"],
        "Frames of Pods that claimed what is not their own; the dropped ones, and those that were audited and went on.",
        |status, out| {
            let Retention {
                audited, dropped, ..
            } = &status.retention;
            for (action, counts) in [("audited", audited), ("dropped", dropped)] {
                for (reason, count) in counts {
                    out.put(&[action, reason], count);
                }
            }
        },
    ),
    metric(
        Gauge,
        "yurtnet_last_apply_duration_seconds",
        &[],
        "Time of the last table.",
        |status, out| out.put(&[], micros(status.apply_durations.last_us)),
    ),
    metric(
        Gauge,
        "yurtnet_last_apply_writes",
        &[],
        "Map writes of the last table.",
        |status, out| out.put(&[], status.last_writes),
    ),
    metric(
        Gauge,
        "yurtnet_ledger_entries",
        &["state"],
        "Interfaces of Pods in the ledger.",
        |status, out| {
            for state in [State::Active, State::Released, State::Retained] {
                let pods = status.retention.pods.iter();
                let count = pods.filter(|pod| pod.state == state).count();
                out.put(&[&state.to_string()], count);
            }
        },
    ),
    metric(
        Gauge,
        "yurtnet_map_capacity",
        &["map"],
        "Entries that fit.",
        |status, out| {
            for usage in &status.maps {
                out.put(&[&usage.map], usage.capacity);
            }
        },
    ),
    metric(
        Gauge,
        "yurtnet_map_entries",
        &["map"],
        "Entries in use.",
        |status, out| {
            for usage in &status.maps {
                out.put(&[&usage.map], usage.used);
            }
        },
    ),
    metric(
        Gauge,
        "yurtnet_node_info",
        &["node", "pool"],
        "1, with this node and its pool.",
        |status, out| out.put(&[&status.node, &status.pool], 1),
    ),
    metric(
        Gauge,
        "yurtnet_packet_devices",
        &[],
        "Devices that lead outside, and whose packets are served.",
        |status, out| out.put_some(status.packet_path.as_ref().map(|path| path.devices.len())),
    ),
    metric(
        Counter,
        "yurtnet_packet_flows_ended_total",
        &[],
        "Flows of clients outside that were ended because their endpoint went.",
        |status, out| out.put_some(status.packet_path.as_ref().map(|path| path.ended_flows)),
    ),
    metric(
        Gauge,
        "yurtnet_packet_pods",
        &[],
        "Devices of Pods whose packets are served.",
        |status, out| out.put_some(status.packet_path.as_ref().map(|path| path.pods)),
    ),
    metric(
        Counter,
        "yurtnet_packets_total",
        &["what"],
        "Packets of clients outside and of Pods, by what was done with them.",
        |status, out| {
            for (what, count) in status.packet_path.iter().flat_map(|path| &path.packets) {
                out.put(&[what], count);
            }
        },
    ),
    metric(
        Gauge,
        "yurtnet_program_verified_instructions",
        &["program"],
        "Instructions that the verifier looked at.",
        |status, out| {
            for (program, count) in &status.programs {
                out.put(&[program], count);
            }
        },
    ),
    metric(
        Gauge,
        "yurtnet_ready",
        &[],
        "1 when the first table is applied and the programs are attached.",
        |status, out| out.put(&[], u8::from(status.ready)),
    ),
    metric(
        Gauge,
        "yurtnet_refused_service_ports",
        &["map"],
        "Service ports that do not fit into a map.",
        |status, out| {
            for usage in &status.maps {
                let refused = status.refused_by_map.get(&usage.map);
                out.put(&[&usage.map], refused.copied().unwrap_or_default());
            }
        },
    ),
    metric(
        Gauge,
        "yurtnet_rejections",
        &["kind"],
        "Objects that are wrong.",
        |status, out| {
            // An unknown kind comes from somebody who may write anything: all of these share one series.
            let mut kinds = BTreeMap::new();
            for (kind, count) in &status.rejected_by_kind {
                *kinds
                    .entry(Kind::of(kind).map_or("", Kind::name))
                    .or_insert(0) += count;
            }
            for (kind, count) in kinds {
                out.put(&[kind], count);
            }
        },
    ),
    metric(
        Gauge,
        "yurtnet_retention_alarms",
        &[],
        "Faults that an operator should look into: `yurt-net status` lists them.",
        |status, out| out.put(&[], status.retention.alarms.len()),
    ),
    metric(
        Gauge,
        "yurtnet_self_test",
        &["result"],
        "1 for how the self-test ended.",
        |status, out| {
            let result = match &status.self_test {
                SelfTest::Pending => "pending",
                SelfTest::Passed => "passed",
                SelfTest::Skipped => "skipped",
                SelfTest::Failed { .. } => "failed",
            };
            out.put_state(["pending", "passed", "skipped", "failed"], result);
        },
    ),
    metric(
        Gauge,
        "yurtnet_service_ports",
        &[],
        "Service ports in the table.",
        |status, out| out.put(&[], status.services),
    ),
    metric(
        Gauge,
        "yurtnet_snapshot_age_seconds",
        &[],
        "Time since the source in charge was last heard from, or the checkpoint was true.",
        |status, out| out.put(&[], status.source.age_seconds),
    ),
    metric(
        Gauge,
        "yurtnet_snapshot_provenance",
        &["provenance"],
        "1 for where the table in force comes from.",
        |status, out| {
            let provenance = match status.source.provenance {
                Origin::None => "none",
                Origin::Live => "live",
                Origin::Hub => "hub",
                Origin::File => "file",
                Origin::Checkpoint => "checkpoint",
            };
            out.put_state(["checkpoint", "file", "hub", "live", "none"], provenance);
        },
    ),
    metric(
        Gauge,
        "yurtnet_socket_last_scan_duration_seconds",
        &[],
        "Time of the last look.",
        |status, out| out.put(&[], millis(status.sockets.last_scan_ms)),
    ),
    metric(
        Counter,
        "yurtnet_socket_scans_total",
        &[],
        "Looks at the established sockets.",
        |status, out| out.put(&[], status.sockets.scans),
    ),
    metric(
        Counter,
        "yurtnet_sockets_ended_total",
        &["reason"],
        "Sockets ended because their endpoint went.",
        |status, out| {
            out.put(&["outside_closure"], status.sockets.ended_outside_closure);
            out.put(&["withdrawn"], status.sockets.ended_withdrawn);
        },
    ),
    metric(
        Gauge,
        "yurtnet_source_age_seconds",
        &["source"],
        "Time since a source was last heard from.",
        |status, out| out.put_sources(status, |source| source.age_seconds),
    ),
    metric(
        Gauge,
        "yurtnet_source_fresh",
        &[],
        "1 when the table comes from the cloud's present word, and not from a cache.",
        |status, out| out.put(&[], u8::from(status.source.is_fresh)),
    ),
    metric(
        Gauge,
        "yurtnet_source_held_lists",
        &[],
        "Lists of a cache that are held back.",
        |status, out| out.put(&[], status.source.held_lists.len()),
    ),
    metric(
        Gauge,
        "yurtnet_source_in_charge",
        &["source"],
        "1 for the source that the table comes from.",
        |status, out| out.put_sources(status, |source| Some(source.is_in_charge.into())),
    ),
    metric(
        Counter,
        "yurtnet_source_lists_total",
        &["resource"],
        "Requests for a list.",
        |status, out| out.put_received(status, |received| received.lists),
    ),
    metric(
        Counter,
        "yurtnet_source_received_bytes_total",
        &["resource"],
        "Bytes of answers, as they came over the wire.",
        |status, out| out.put_received(status, |received| received.bytes),
    ),
    metric(
        Counter,
        "yurtnet_source_received_objects_total",
        &["resource"],
        "Objects in lists and events.",
        |status, out| out.put_received(status, |received| received.objects),
    ),
    metric(
        Gauge,
        "yurtnet_source_up",
        &["source"],
        "1 while a source has sent all that was asked for, and still answers.",
        |status, out| out.put_sources(status, |source| Some(source.is_good.into())),
    ),
    metric(
        Counter,
        "yurtnet_source_watch_events_total",
        &["resource"],
        "Objects added, modified and deleted by a watch.",
        |status, out| out.put_received(status, |received| received.events),
    ),
    metric(
        Counter,
        "yurtnet_source_watches_total",
        &["resource"],
        "Requests for a watch.",
        |status, out| out.put_received(status, |received| received.watches),
    ),
    metric(
        Counter,
        "yurtnet_tables_applied_total",
        &[],
        "Tables applied.",
        |status, out| out.put(&[], status.applied),
    ),
    metric(
        Counter,
        "yurtnet_translated_packets_total",
        &["what"],
        "Packets of Pods that appear with addresses that they had before, by what was done with them.",
        |status, out| {
            for (what, count) in &status.retention.translated_packets {
                out.put(&[what], count);
            }
        },
    ),
    metric(
        Gauge,
        "yurtnet_translated_pods",
        &[],
        "Interfaces of Pods that are reached at addresses that they had before, and appear with them.",
        |status, out| {
            let pods = status.retention.pods.iter();
            out.put(&[], pods.filter(|pod| !pod.translated.is_empty()).count());
        },
    ),
    metric(
        Counter,
        "yurtnet_verdicts_total",
        &["reason"],
        "Verdicts since the maps were made; forward, udp_kept and affinity_kept are served, each counted once; the others refused or dropped.",
        |status, out| {
            for (reason, count) in &status.counters {
                out.put(&[reason], count);
            }
        },
    ),
];
