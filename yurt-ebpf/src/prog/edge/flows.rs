//! The maps of flows and of affinity, for both families.

use core::hint::black_box;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::maps::{LruHashMap, PerCpuArray};

use yurt_ebpf::abi::{Affinity, AffinityKey, EdgeRow, Flow, FlowKey, LastBackend};
use yurt_ebpf::frame::ip::UDP;
use yurt_ebpf::rewrite::flow::{Address, Flows, Found, Memory, Scratch};

use crate::maps::packet::{DGRAM4, DGRAM6, FLOW4, FLOW6, OPEN4, OPEN6, SCRATCH4, SCRATCH6};
use crate::maps::service::{AFF4, AFF6};

type FlowMap<A> = LruHashMap<FlowKey<A>, Flow<A>>;
type LastBackends<A> = LruHashMap<AffinityKey, LastBackend<<A as Address>::Backend>>;

/// A family of addresses, and its maps.
pub(super) trait Family: Address + 'static {
    /// Of connections, and of all that is not UDP.
    const UP: &'static FlowMap<Self>;
    const DATAGRAMS: &'static FlowMap<Self>;
    const OPENING: &'static FlowMap<Self>;
    const LAST: &'static LastBackends<Self>;
    const SCRATCH: &'static PerCpuArray<Scratch<Self>>;

    /// This node's address on a device.
    fn node(row: &EdgeRow) -> Self;

    /// This CPU's room for what is looked up.
    #[inline(always)]
    fn scratch() -> Option<&'static mut Scratch<Self>> {
        // SAFETY: this CPU's entry, which each program takes once, and nobody else has while the program runs.
        Self::SCRATCH
            .get_ptr_mut(0)
            .map(|scratch| unsafe { &mut *scratch })
    }
}

impl Family for [u8; 4] {
    const UP: &'static FlowMap<Self> = &FLOW4;
    const DATAGRAMS: &'static FlowMap<Self> = &DGRAM4;
    const OPENING: &'static FlowMap<Self> = &OPEN4;
    const LAST: &'static LastBackends<Self> = &AFF4;
    const SCRATCH: &'static PerCpuArray<Scratch<Self>> = &SCRATCH4;

    #[inline(always)]
    fn node(row: &EdgeRow) -> Self {
        row.addr4
    }
}

impl Family for [u8; 16] {
    const UP: &'static FlowMap<Self> = &FLOW6;
    const DATAGRAMS: &'static FlowMap<Self> = &DGRAM6;
    const OPENING: &'static FlowMap<Self> = &OPEN6;
    const LAST: &'static LastBackends<Self> = &AFF6;
    const SCRATCH: &'static PerCpuArray<Scratch<Self>> = &SCRATCH6;

    #[inline(always)]
    fn node(row: &EdgeRow) -> Self {
        row.addr6
    }
}

/// The maps, as the decision asks them.
pub(super) struct FlowMaps;

/// The map of those that are up and have the protocol of a key.
#[inline(always)]
fn up<A: Family>(key: &FlowKey<A>) -> &'static FlowMap<A> {
    match key.protocol {
        UDP => A::DATAGRAMS,
        _ => A::UP,
    }
}

/// Looks there. By two calls, each with its map: for a call with either the kernel would not write the lookup in its
/// place.
#[inline(always)]
fn find_up<A: Family>(key: &FlowKey<A>) -> Option<*mut Flow<A>> {
    match key.protocol {
        UDP => black_box(A::DATAGRAMS.get_ptr_mut(key)),
        _ => A::UP.get_ptr_mut(key),
    }
}

impl<A: Family> Flows<A> for FlowMaps {
    #[inline(always)]
    fn find(&mut self, key: &FlowKey<A>) -> Option<Found<'_, A>> {
        let up = find_up(key);
        let flow = match up {
            Some(flow) => flow,
            None => A::OPENING.get_ptr_mut(key)?,
        };
        // SAFETY: the kernel keeps the memory while the program runs. Other processors may write to it: single words,
        // whose last writer may win. An entry may be another's by now: that costs one packet.
        let flow = unsafe { &mut *flow };
        Some(Found {
            flow,
            is_opening: up.is_none(),
        })
    }

    #[inline(always)]
    fn open(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        A::OPENING.insert(key, flow, 0).is_ok()
    }

    #[inline(always)]
    fn open_new(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        A::OPENING.insert(key, flow, u64::from(BPF_NOEXIST)).is_ok()
    }

    #[inline(always)]
    fn settle(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        let is_up = up(key).insert(key, flow, 0).is_ok();
        if is_up {
            let _ = A::OPENING.remove(key);
        }
        is_up
    }

    #[inline(always)]
    fn retire(&mut self, key: &FlowKey<A>, flow: &Flow<A>) {
        if A::OPENING.insert(key, flow, 0).is_ok() {
            let _ = up(key).remove(key);
        }
    }

    #[inline(always)]
    fn forget(&mut self, key: &FlowKey<A>) {
        let _ = up(key).remove(key);
        let _ = A::OPENING.remove(key);
    }
}

#[inline(always)]
fn affinity_key(client: u64, affinity: Affinity) -> AffinityKey {
    AffinityKey {
        netns: client,
        identity: affinity.identity(),
    }
}

impl<A: Family> Memory<A> for FlowMaps {
    #[inline(never)]
    fn recall(&mut self, client: u64, affinity: Affinity, backend: &mut A::Backend) -> bool {
        // SAFETY: copied at once. What is copied from an element that is reused meanwhile is looked up in the set.
        let Some(last) = (unsafe { A::LAST.get(affinity_key(client, affinity)) }) else {
            return false;
        };
        *backend = last.backend;
        now_ns().wrapping_sub(last.last_ns) < affinity.timeout_ns()
    }

    #[inline(never)]
    fn remember(&mut self, client: u64, affinity: Affinity, backend: &A::Backend) {
        let value = LastBackend {
            backend: *backend,
            last_ns: now_ns(),
        };
        // A client that cannot be remembered is served all the same.
        let _ = A::LAST.insert(affinity_key(client, affinity), value, 0);
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub(super) fn now_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}
