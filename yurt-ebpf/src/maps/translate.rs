//! Translation's maps. They are made where something is translated.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap, PerCpuArray};

use yurt_ebpf::abi::{LIVE_FLOWS, LiveFlow, LiveKey, TRANSLATIONS, TranslateRow};

/// Index of a Pod's interface on the host's side -> which addresses it has, and which were promised to it.
#[map(name = "yurt_xlate")]
pub(crate) static XLATE: HashMap<u32, TranslateRow> =
    HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
/// Flows that came in at live addresses.
#[map(name = "yurt_live")]
pub(crate) static LIVE: LruHashMap<LiveKey, LiveFlow> = LruHashMap::with_max_entries(LIVE_FLOWS, 0);
/// Packets by `Translation`.
#[map(name = "yurt_xl_count")]
pub(crate) static XLATE_COUNT: PerCpuArray<u64> = PerCpuArray::with_max_entries(TRANSLATIONS, 0);
