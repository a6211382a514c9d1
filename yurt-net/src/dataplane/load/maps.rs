//! The maps of each feature: kind, size, and number of entries.

use yurt_ebpf::abi::{self, Backend4, Backend6, Conf, FrontendKey4, FrontendKey6, ServiceRow};
use yurt_ebpf::rewrite::flow::Scratch;

use crate::dataplane::sys::MapInfo;
use crate::plan::Capacity;

const BPF_MAP_TYPE_HASH: u32 = 1;
pub(in crate::dataplane) const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
const BPF_MAP_TYPE_PERCPU_HASH: u32 = 5;
const BPF_MAP_TYPE_PERCPU_ARRAY: u32 = 6;
const BPF_MAP_TYPE_LRU_HASH: u32 = 9;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
const BPF_MAP_TYPE_DEVMAP: u32 = 14;
const BPF_MAP_TYPE_SK_STORAGE: u32 = 24;
const BPF_MAP_TYPE_RINGBUF: u32 = 27;
const BPF_F_NO_PREALLOC: u32 = 1;
/// The kernel gives it to each map of devices.
const BPF_F_RDONLY_PROG: u32 = 1 << 7;
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// A map of these keys and values.
#[expect(
    clippy::cast_possible_truncation,
    reason = "keys and values are small; a constant cannot call `try_from`"
)]
pub(in crate::dataplane) const fn info<K, V>(
    map_type: u32,
    max_entries: u32,
    map_flags: u32,
) -> MapInfo {
    MapInfo {
        map_type,
        id: 0,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        max_entries,
        map_flags,
    }
}

pub(in crate::dataplane) fn table_maps(capacity: &Capacity) -> [(&'static str, MapInfo); 7] {
    let array = BPF_MAP_TYPE_ARRAY;
    [
        ("yurt_conf", info::<u32, Conf>(array, 1, BPF_F_MMAPABLE)),
        (
            "yurt_filter",
            info::<u32, u64>(array, abi::FILTER_WORDS, BPF_F_MMAPABLE),
        ),
        (
            "yurt_fe4",
            info::<FrontendKey4, u64>(BPF_MAP_TYPE_HASH, capacity.frontends4, 0),
        ),
        (
            "yurt_fe6",
            info::<FrontendKey6, u64>(BPF_MAP_TYPE_HASH, capacity.frontends6, 0),
        ),
        (
            "yurt_svc",
            info::<u32, ServiceRow>(array, capacity.services, BPF_F_MMAPABLE),
        ),
        (
            "yurt_slot",
            info::<u32, Backend4>(array, capacity.slots4, BPF_F_MMAPABLE),
        ),
        (
            "yurt_be6",
            info::<u32, Backend6>(array, capacity.slots6, BPF_F_MMAPABLE),
        ),
    ]
}

/// The number of entries of the state maps.
#[derive(Clone, Copy, Debug)]
pub(in crate::dataplane) struct StateCapacity {
    /// `yurt_peer`, a power of two.
    pub(in crate::dataplane) tcp_peers: u32,
    /// `yurt_aff4` and `yurt_aff6`.
    pub(in crate::dataplane) affinity: u32,
}

pub(in crate::dataplane) fn state_maps(capacity: StateCapacity) -> [(&'static str, MapInfo); 9] {
    let StateCapacity {
        tcp_peers,
        affinity,
    } = capacity;
    let lru = BPF_MAP_TYPE_LRU_HASH;
    let storage = info::<u32, abi::UdpPeers>(BPF_MAP_TYPE_SK_STORAGE, 0, BPF_F_NO_PREALLOC);
    [
        (
            "yurt_peer",
            info::<u32, abi::TcpPeer>(BPF_MAP_TYPE_ARRAY, tcp_peers, 0),
        ),
        ("yurt_revsk", storage),
        (
            "yurt_aff4",
            info::<abi::AffinityKey, abi::Affinity4>(lru, affinity, 0),
        ),
        (
            "yurt_aff6",
            info::<abi::AffinityKey, abi::Affinity6>(lru, affinity, 0),
        ),
        (
            "yurt_netns",
            info::<u64, abi::NetnsRow>(BPF_MAP_TYPE_HASH, 512, 0),
        ),
        (
            "yurt_count",
            info::<u32, u64>(BPF_MAP_TYPE_PERCPU_ARRAY, abi::COUNTERS, 0),
        ),
        EVENT_MAPS[0],
        EVENT_MAPS[1],
        EVENT_MAPS[2],
    ]
}

/// The maps through which programs on sockets, and those of the packet path, tell what they refuse and drop. An agent
/// that does not know them leaves them alone, so they are among the state maps without a new ABI.
pub(in crate::dataplane) const EVENT_MAPS: [(&str, MapInfo); 3] = [
    (
        "yurt_events",
        info::<(), ()>(BPF_MAP_TYPE_RINGBUF, abi::EVENT_RING_BYTES, 0),
    ),
    ("yurt_watch", info::<u32, u64>(BPF_MAP_TYPE_ARRAY, 1, 0)),
    (
        "yurt_ev_share",
        info::<u32, abi::EventShare>(BPF_MAP_TYPE_PERCPU_ARRAY, abi::EVENT_SHARES, 0),
    ),
];

pub(in crate::dataplane) fn guard_maps() -> [(&'static str, MapInfo); 5] {
    let (hash, per_cpu) = (BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_PERCPU_HASH);
    [
        (
            "yurt_guard",
            info::<u32, abi::GuardRow>(hash, 1024, BPF_F_NO_PREALLOC),
        ),
        (
            "yurt_plain",
            info::<u32, abi::PlainRow>(BPF_MAP_TYPE_ARRAY, abi::GUARD_PLAIN, BPF_F_MMAPABLE),
        ),
        (
            "yurt_owner",
            info::<[u8; 16], abi::OwnerRow>(hash, 8192, BPF_F_NO_PREALLOC),
        ),
        (
            "yurt_spoof",
            info::<u32, abi::SpoofCounts>(per_cpu, 1024, BPF_F_NO_PREALLOC),
        ),
        (
            "yurt_spoof_all",
            info::<u32, abi::SpoofCounts>(BPF_MAP_TYPE_PERCPU_ARRAY, 1, 0),
        ),
    ]
}

pub(in crate::dataplane) fn translate_maps() -> [(&'static str, MapInfo); 3] {
    let counts = BPF_MAP_TYPE_PERCPU_ARRAY;
    [
        (
            "yurt_xlate",
            info::<u32, abi::TranslateRow>(BPF_MAP_TYPE_HASH, 1024, BPF_F_NO_PREALLOC),
        ),
        (
            "yurt_live",
            info::<abi::LiveKey, abi::LiveFlow>(BPF_MAP_TYPE_LRU_HASH, abi::LIVE_FLOWS, 0),
        ),
        (
            "yurt_xl_count",
            info::<u32, u64>(counts, abi::TRANSLATIONS, 0),
        ),
    ]
}

/// The size of the flow tables. `shares` divides it among them, and adds a quarter. A flow has two entries, or three
/// if it is masqueraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowCapacity {
    /// Entries for IPv4: `--max-flows4`.
    pub v4: u32,
    /// Entries for IPv6: `--max-flows6`.
    pub v6: u32,
}

/// The entries of three tables: established connections, established flows of datagrams, and flows that are opening or
/// closing.
///
/// Anybody can fill the second table, also from forged addresses, so connections have a table of their own. An entry
/// stays in the third one only until the client has answered, but ten thousands of flows may be opening at a time.
fn shares(entries: u32) -> [u32; 3] {
    let eighths = |count: u32| (entries * count).div_ceil(8);
    [eighths(5), eighths(2), eighths(3)]
}

/// The maps of maps that programs reach flows through, and what is in each, by `FLOWS_*`.
pub(in crate::dataplane) const FLOW_MAPS: [(&str, [&str; abi::FLOW_MAPS as usize]); 2] = [
    ("yurt_flows4", ["yurt_flow4", "yurt_dgram4", "yurt_open4"]),
    ("yurt_flows6", ["yurt_flow6", "yurt_dgram6", "yurt_open6"]),
];

pub(in crate::dataplane) fn packet_maps(capacity: FlowCapacity) -> [(&'static str, MapInfo); 18] {
    let (lru, per_cpu) = (BPF_MAP_TYPE_LRU_HASH, BPF_MAP_TYPE_PERCPU_ARRAY);
    let v4 = shares(capacity.v4).map(|entries| info::<abi::FlowKey4, abi::Flow4>(lru, entries, 0));
    let v6 = shares(capacity.v6).map(|entries| info::<abi::FlowKey6, abi::Flow6>(lru, entries, 0));
    let ([flow4, dgram4, open4], [flow6, dgram6, open6]) = (v4, v6);
    let flows = info::<u32, u32>(BPF_MAP_TYPE_ARRAY_OF_MAPS, abi::FLOW_MAPS, 0);
    [
        ("yurt_flow4", flow4),
        ("yurt_flow6", flow6),
        ("yurt_dgram4", dgram4),
        ("yurt_dgram6", dgram6),
        ("yurt_open4", open4),
        ("yurt_open6", open6),
        ("yurt_flows4", flows),
        ("yurt_flows6", flows),
        (
            "yurt_edge",
            info::<u32, abi::EdgeRow>(BPF_MAP_TYPE_HASH, abi::EDGES, BPF_F_NO_PREALLOC),
        ),
        ("yurt_pk_count", info::<u32, u64>(per_cpu, abi::HANDLED, 0)),
        (
            "yurt_refused",
            info::<[u8; 16], abi::Refused>(lru, abi::REFUSED_HOSTS, 0),
        ),
        (
            "yurt_edge_more",
            info::<u32, u32>(BPF_MAP_TYPE_PROG_ARRAY, abi::STAGES, 0),
        ),
        (
            "yurt_near",
            info::<u32, abi::NearRow>(BPF_MAP_TYPE_ARRAY, abi::NEARS, 0),
        ),
        (
            "yurt_near_devs",
            info::<u32, [u32; 2]>(BPF_MAP_TYPE_DEVMAP, abi::NEARS, BPF_F_RDONLY_PROG),
        ),
        (
            "yurt_fast_until",
            info::<u32, u64>(BPF_MAP_TYPE_ARRAY, 1, 0),
        ),
        ("yurt_snat_turn", info::<u32, u32>(BPF_MAP_TYPE_ARRAY, 1, 0)),
        (
            "yurt_pk_work4",
            info::<u32, Scratch<[u8; 4]>>(per_cpu, 1, 0),
        ),
        (
            "yurt_pk_work6",
            info::<u32, Scratch<[u8; 16]>>(per_cpu, 1, 0),
        ),
    ]
}

/// The map of the program that listens to peers' tunnels.
pub(in crate::dataplane) const VTEP_MAP: &str = "yurt_vtep";

/// The maps of all features, with any number of entries.
pub(super) fn all_maps() -> impl Iterator<Item = (&'static str, MapInfo)> {
    const ANY: Capacity = Capacity {
        frontends4: 1,
        frontends6: 1,
        services: 1,
        slots4: 1,
        slots6: 1,
    };
    let state = StateCapacity {
        tcp_peers: 1,
        affinity: 1,
    };
    let vtep = info::<abi::VtepKey, abi::VtepSeen>(BPF_MAP_TYPE_PERCPU_HASH, abi::VTEP_PEERS, 0);
    (table_maps(&ANY).into_iter())
        .chain(state_maps(state))
        .chain(guard_maps())
        .chain(translate_maps())
        .chain(packet_maps(FlowCapacity { v4: 1, v6: 1 }))
        .chain([(VTEP_MAP, vtep)])
}
