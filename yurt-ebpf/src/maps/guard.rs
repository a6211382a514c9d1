//! The guard's maps. They take memory for the Pods that there are.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, PerCpuHashMap};

use yurt_ebpf::abi::{GUARD_PLAIN, GuardRow, OwnerRow, PlainRow, SpoofCounts};
use yurt_ebpf::claims::Claims;

/// Index of a Pod's interface on the host's side -> what the Pod may use.
#[map(name = "yurt_guard")]
pub(crate) static GUARD: HashMap<u32, GuardRow> =
    HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
/// The first addresses of the same, at the index modulo the number of entries.
#[map(name = "yurt_plain")]
pub(crate) static PLAIN: Array<PlainRow> = Array::with_max_entries(GUARD_PLAIN, BPF_F_MMAPABLE);
/// Address -> the interface that owns it.
#[map(name = "yurt_owner")]
pub(crate) static OWNER: HashMap<[u8; 16], OwnerRow> =
    HashMap::with_max_entries(8192, BPF_F_NO_PREALLOC);
/// Index of an interface -> its wrong frames by reason.
#[map(name = "yurt_spoof")]
pub(crate) static SPOOF: PerCpuHashMap<u32, SpoofCounts> =
    PerCpuHashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
/// Wrong frames of all interfaces by reason, those that are gone included.
#[map(name = "yurt_spoof_all")]
pub(crate) static SPOOF_ALL: PerCpuArray<SpoofCounts> = PerCpuArray::with_max_entries(1, 0);
/// The claims of the frame at hand, on their way from where they are read to where they are judged: the verifier does
/// not know what is in a map, so it walks the judgement once, and not once for each way in which claims are read.
#[map(name = "yurt_claims")]
pub(crate) static CLAIMS: PerCpuArray<Claims> = PerCpuArray::with_max_entries(1, 0);
