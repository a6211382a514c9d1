//! The maps of the socket path, and the switches that the agent sets before it loads the programs.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};

use yurt_ebpf::abi::{
    Affinity, Affinity4, Affinity6, AffinityKey, Backend4, Backend6, COUNTERS, Conf, FILTER_WORDS,
    FrontendKey4, FrontendKey6, FrontendValue, NetnsRow, PublishWord, ServiceRow, TcpPeer,
    UdpPeers,
};
use yurt_ebpf::select::Tables;

// The agent maps these arrays into its memory: a publish is then one release store, and guaranteed to be atomic.

/// (address, port, protocol, scope) -> `FrontendValue`: the only hash lookup of a decision.
#[map(name = "yurt_fe4")]
pub(crate) static FE4: HashMap<FrontendKey4, u64> = HashMap::with_max_entries(20480, 0);
/// See `FE4`.
#[map(name = "yurt_fe6")]
pub(crate) static FE6: HashMap<FrontendKey6, u64> = HashMap::with_max_entries(8192, 0);
/// Which addresses have rows in `FE4` or `FE6`, so that others need no look there.
#[map(name = "yurt_filter")]
pub(crate) static FILTER: Array<u64> = Array::with_max_entries(FILTER_WORDS, BPF_F_MMAPABLE);
/// Service index -> the publish word.
#[map(name = "yurt_svc")]
pub(crate) static SVC: Array<ServiceRow> = Array::with_max_entries(16384, BPF_F_MMAPABLE);
/// IPv4 backends: one contiguous sorted range for each endpoint set.
#[map(name = "yurt_slot")]
pub(crate) static SLOT: Array<Backend4> = Array::with_max_entries(32768, BPF_F_MMAPABLE);
/// IPv6 backends, likewise.
#[map(name = "yurt_be6")]
pub(crate) static BE6: Array<Backend6> = Array::with_max_entries(8192, BPF_F_MMAPABLE);
/// Configuration that changes at run time.
#[map(name = "yurt_conf")]
pub(crate) static CONF: Array<Conf> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// What `getpeername` shows for a TCP socket, by cookie.
#[map(name = "yurt_peer")]
pub(crate) static PEER: Array<TcpPeer> = Array::with_max_entries(16384, 0);
/// What `recvmsg` and `getpeername` show for a UDP socket.
#[btf_map(name = "yurt_revsk")]
pub(crate) static REVSK: SkStorage<UdpPeers> = SkStorage::new();
/// The backends of clients of Services with session affinity.
#[map(name = "yurt_aff4")]
pub(crate) static AFF4: LruHashMap<AffinityKey, Affinity4> = LruHashMap::with_max_entries(2048, 0);
/// See `AFF4`.
#[map(name = "yurt_aff6")]
pub(crate) static AFF6: LruHashMap<AffinityKey, Affinity6> = LruHashMap::with_max_entries(2048, 0);
/// A client's addresses and class, by the cookie of its network namespace.
#[map(name = "yurt_netns")]
pub(crate) static NETNS: HashMap<u64, NetnsRow> = HashMap::with_max_entries(512, 0);
/// Verdicts by reason.
#[map(name = "yurt_count")]
pub(crate) static COUNT: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS, 0);

/// 1 where `bpf_set_retval` works in these hooks (about kernel 6.1): then a refusal is `ECONNREFUSED`, else `EPERM`.
/// Frozen before the load, so that old kernels never see the call.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u32 = 1;
/// Number of entries in `yurt_peer` minus one; a power of two minus one.
#[unsafe(no_mangle)]
static PEER_MASK: u32 = 16384 - 1;

pub(crate) fn has_set_retval() -> bool {
    // SAFETY: a read of an initialised static; volatile, so that it is not folded to the default.
    unsafe { core::ptr::read_volatile(&raw const HAS_SET_RETVAL) != 0 }
}

pub(crate) fn peer_mask() -> u32 {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&raw const PEER_MASK) }
}

/// The table as the programs see it.
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn filter(&self, word: u32) -> Option<u64> {
        // SAFETY: an aligned word, loaded at once; the agent stores it at once.
        FILTER
            .get_ptr(word)
            .map(|word| unsafe { core::ptr::read_volatile(word) })
    }

    #[inline(always)]
    fn frontend4(&self, key: &FrontendKey4) -> Option<FrontendValue> {
        // SAFETY: the value is one word, loaded at once; its fingerprint tells whether the element was reused.
        unsafe {
            FE4.get_ptr(key)
                .map(|value| FrontendValue(core::ptr::read_volatile(value)))
        }
    }

    #[inline(always)]
    fn frontend6(&self, key: &FrontendKey6) -> Option<FrontendValue> {
        // SAFETY: as above.
        unsafe {
            FE6.get_ptr(key)
                .map(|value| FrontendValue(core::ptr::read_volatile(value)))
        }
    }

    #[inline(always)]
    fn publish_word(&self, service: u32) -> Option<PublishWord> {
        // SAFETY: an aligned word, loaded at once; the agent stores it at once.
        SVC.get_ptr(service)
            .map(|row| unsafe { PublishWord(core::ptr::read_volatile(&raw const (*row).word)) })
    }

    #[inline(always)]
    fn affinity(&self, service: u32) -> Affinity {
        // SAFETY: as above.
        let word = SVC
            .get_ptr(service)
            .map(|row| unsafe { core::ptr::read_volatile(&raw const (*row).affinity) });
        Affinity(word.unwrap_or_default())
    }

    #[inline(always)]
    fn backend4(&self, slot: u32) -> Option<Backend4> {
        SLOT.get(slot).copied()
    }

    #[inline(always)]
    fn backend6(&self, slot: u32) -> Option<Backend6> {
        BE6.get(slot).copied()
    }

    #[inline(always)]
    fn conf(&self) -> Option<&Conf> {
        CONF.get(0)
    }
}
