//! The map of peers' tunnels. One agent makes it, and only while it listens to peers; nothing pins it.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuHashMap;

use yurt_ebpf::abi::{VTEP_PEERS, VtepKey, VtepSeen};

/// (underlay address, tunnel) of a peer -> from which link-layer addresses it sends.
#[map(name = "yurt_vtep")]
pub(crate) static VTEP: PerCpuHashMap<VtepKey, VtepSeen> =
    PerCpuHashMap::with_max_entries(VTEP_PEERS, BPF_F_NO_PREALLOC);
