//! The maps of the packet path.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{self, ArrayOfMaps};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, DevMap, HashMap, LruHashMap, PerCpuArray, ProgramArray};

use yurt_ebpf::abi::{
    self, EDGES, EdgeRow, FLOW_MAPS, Flow4, Flow6, FlowKey4, FlowKey6, HANDLED, NEARS, NearRow,
    REFUSED_HOSTS, Refused,
};
use yurt_ebpf::rewrite::flow::Scratch;

/// Connections of IPv4 that are up; the entries that were quiet for longest make room.
#[map(name = "yurt_flow4")]
static FLOW4: LruHashMap<FlowKey4, Flow4> = LruHashMap::with_max_entries(20480, 0);
/// See `FLOW4`.
#[map(name = "yurt_flow6")]
static FLOW6: LruHashMap<FlowKey6, Flow6> = LruHashMap::with_max_entries(5120, 0);
/// Flows of datagrams of IPv4 that are up, apart: whoever sends many of them, with whose address ever, pushes out no
/// connection.
#[map(name = "yurt_dgram4")]
static DGRAM4: LruHashMap<FlowKey4, Flow4> = LruHashMap::with_max_entries(8192, 0);
/// See `DGRAM4`.
#[map(name = "yurt_dgram6")]
static DGRAM6: LruHashMap<FlowKey6, Flow6> = LruHashMap::with_max_entries(2048, 0);
/// Those that are opening, of any protocol.
#[map(name = "yurt_open4")]
static OPEN4: LruHashMap<FlowKey4, Flow4> = LruHashMap::with_max_entries(12288, 0);
/// See `OPEN4`.
#[map(name = "yurt_open6")]
static OPEN6: LruHashMap<FlowKey6, Flow6> = LruHashMap::with_max_entries(3072, 0);
/// A map of flows, as programs reach it.
pub(crate) type FlowMap<K, V> = btf_maps::LruHashMap<K, V, 1>;
/// The three maps of flows of a family, by `FLOWS_*` (decision 37).
pub(crate) type FlowMaps<K, V> = ArrayOfMaps<FlowMap<K, V>, { FLOW_MAPS as usize }>;
/// Those of IPv4. Programs reach the three only through here: to the verifier an entry of any of them is the same, so
/// it walks what follows a lookup once, and not once for each map.
#[btf_map(name = "yurt_flows4")]
pub(crate) static FLOWS4: FlowMaps<FlowKey4, Flow4> = FlowMaps::new();
/// Those of IPv6.
#[btf_map(name = "yurt_flows6")]
pub(crate) static FLOWS6: FlowMaps<FlowKey6, Flow6> = FlowMaps::new();
/// Index of a device that leads outside or to a Pod -> this node's addresses there.
#[map(name = "yurt_edge")]
pub(crate) static EDGE: HashMap<u32, EdgeRow> = HashMap::with_max_entries(EDGES, BPF_F_NO_PREALLOC);
/// What was done with packets, by `Handled`.
#[map(name = "yurt_pk_count")]
pub(crate) static HANDLED_COUNT: PerCpuArray<u64> = PerCpuArray::with_max_entries(HANDLED, 0);

/// Host or Pod -> how often it was refused something of late.
#[map(name = "yurt_refused")]
pub(crate) static REFUSED: LruHashMap<[u8; 16], Refused> =
    LruHashMap::with_max_entries(REFUSED_HOSTS, 0);

/// The programs that go on where others end, by `STAGE_*`.
#[map(name = "yurt_edge_more")]
pub(crate) static STAGES: ProgramArray = ProgramArray::with_max_entries(abi::STAGES, 0);

/// What is looked up for the packet at hand, see [`Scratch`].
#[map(name = "yurt_pk_work4")]
pub(crate) static SCRATCH4: PerCpuArray<Scratch<[u8; 4]>> = PerCpuArray::with_max_entries(1, 0);
/// See `SCRATCH4`.
#[map(name = "yurt_pk_work6")]
pub(crate) static SCRATCH6: PerCpuArray<Scratch<[u8; 16]>> = PerCpuArray::with_max_entries(1, 0);

/// Pods of this node to which packets are led past the stack, see [`NearRow`].
#[map(name = "yurt_near")]
pub(crate) static NEAR: Array<NearRow> = Array::with_max_entries(NEARS, 0);
/// Their devices, at the same places.
#[map(name = "yurt_near_devs")]
pub(crate) static NEAR_DEVICES: DevMap = DevMap::with_max_entries(NEARS, 0);
/// Until when packets may be led past the stack: nanoseconds of `CLOCK_MONOTONIC`. Whoever allows it says so again and
/// again, so that it ends where nobody looks any more.
#[map(name = "yurt_fast_until")]
pub(crate) static FAST_UNTIL: Array<u64> = Array::with_max_entries(1, 0);

/// How many ports were given to masquerade with: whose turn it is, in order.
#[map(name = "yurt_snat_turn")]
static SNAT_TURN: Array<u32> = Array::with_max_entries(1, 0);

/// Bytes of an Ethernet header that are not there: 14 in the programs for layer-3 devices. The agent sets it before the
/// load.
#[unsafe(no_mangle)]
static MISSING_LINK_HEADER: u32 = 0;

/// See `MISSING_LINK_HEADER`.
pub(crate) fn missing_link_header() -> u32 {
    // SAFETY: a read of an initialised static; volatile, so that it is not folded to the default.
    unsafe { core::ptr::read_volatile(&raw const MISSING_LINK_HEADER) }
}

/// 1 if packets may be led past the stack at all; else the programs lose what is for that. The agent sets it before the
/// load.
#[unsafe(no_mangle)]
static FAST_PATH: u32 = 0;

/// See `FAST_PATH`.
#[inline(always)]
pub(crate) fn has_fast_path() -> bool {
    // SAFETY: a read of an initialised static; volatile, so that it is not folded to the default.
    unsafe { core::ptr::read_volatile(&raw const FAST_PATH) != 0 }
}

/// First port to masquerade with. The agent sets it before the load.
#[unsafe(no_mangle)]
static SNAT_FIRST: u32 = 12000;
/// How many there are.
#[unsafe(no_mangle)]
static SNAT_COUNT: u32 = 18000;

/// First port to masquerade with, and how many there are.
#[expect(clippy::cast_possible_truncation, reason = "ports")]
pub(crate) fn snat_ports() -> (u16, u16) {
    // SAFETY: reads of initialised statics; volatile, so that they are not folded to the defaults.
    unsafe {
        (
            core::ptr::read_volatile(&raw const SNAT_FIRST) as u16,
            core::ptr::read_volatile(&raw const SNAT_COUNT) as u16,
        )
    }
}

/// Whose turn it is among them.
pub(crate) fn snat_turn() -> u32 {
    let Some(turn) = SNAT_TURN.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the kernel keeps the memory. Of two processors that give the same turn, the slower one finds the port
    // taken.
    unsafe {
        *turn = (*turn).wrapping_add(1);
        *turn
    }
}
