//! The maps of flows and of affinity, for both families.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::maps::{LruHashMap, PerCpuArray};

use yurt_ebpf::abi::{
    Affinity, AffinityKey, EdgeRow, FLOWS_DATAGRAMS, FLOWS_OPENING, FLOWS_UP, Flow, FlowKey,
    LastBackend,
};
use yurt_ebpf::frame::ip::UDP;
use yurt_ebpf::rewrite::flow::{Address, Flows, Found, Memory, Scratch};

use crate::maps::packet::{self, FLOWS4, FLOWS6, SCRATCH4, SCRATCH6};
use crate::maps::service::{AFF4, AFF6};

type FlowMap<A> = packet::FlowMap<FlowKey<A>, Flow<A>>;
type LastBackends<A> = LruHashMap<AffinityKey, LastBackend<<A as Address>::Backend>>;

/// A family of addresses, and its maps.
pub(super) trait Family: Address + 'static {
    const FLOWS: &'static packet::FlowMaps<FlowKey<Self>, Flow<Self>>;
    const LAST: &'static LastBackends<Self>;
    const SCRATCH: &'static PerCpuArray<Scratch<Self>>;

    /// This node's address on a device.
    fn node(row: &EdgeRow) -> Self;
    /// An address as routing has it: in the first bytes.
    fn at_start(self) -> [u8; 16];

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
    const FLOWS: &'static packet::FlowMaps<FlowKey<Self>, Flow<Self>> = &FLOWS4;
    const LAST: &'static LastBackends<Self> = &AFF4;
    const SCRATCH: &'static PerCpuArray<Scratch<Self>> = &SCRATCH4;

    #[inline(always)]
    fn node(row: &EdgeRow) -> Self {
        row.addr4
    }

    #[inline(always)]
    fn at_start(self) -> [u8; 16] {
        let ([a, b, c, d], mut start) = (self, [0; 16]);
        (start[0], start[1], start[2], start[3]) = (a, b, c, d);
        start
    }
}

impl Family for [u8; 16] {
    const FLOWS: &'static packet::FlowMaps<FlowKey<Self>, Flow<Self>> = &FLOWS6;
    const LAST: &'static LastBackends<Self> = &AFF6;
    const SCRATCH: &'static PerCpuArray<Scratch<Self>> = &SCRATCH6;

    #[inline(always)]
    fn node(row: &EdgeRow) -> Self {
        row.addr6
    }

    #[inline(always)]
    fn at_start(self) -> [u8; 16] {
        self
    }
}

/// The maps, as the decision asks them.
pub(super) struct FlowMaps;

/// The map of those that are up and have the protocol of a key; `None` where somebody has emptied the map of maps.
#[inline(always)]
fn up<A: Family>(key: &FlowKey<A>) -> Option<&'static FlowMap<A>> {
    A::FLOWS.get(match key.protocol {
        UDP => FLOWS_DATAGRAMS,
        _ => FLOWS_UP,
    })
}

/// The map of those that are opening.
#[inline(always)]
fn opening<A: Family>() -> Option<&'static FlowMap<A>> {
    A::FLOWS.get(FLOWS_OPENING)
}

#[inline(always)]
fn put<A: Family>(map: Option<&FlowMap<A>>, key: &FlowKey<A>, flow: &Flow<A>, flags: u32) -> bool {
    map.is_some_and(|map| map.insert(key, flow, u64::from(flags)).is_ok())
}

#[inline(always)]
fn take<A: Family>(map: Option<&FlowMap<A>>, key: &FlowKey<A>) {
    if let Some(map) = map {
        let _ = map.remove(key);
    }
}

impl<A: Family> Flows<A> for FlowMaps {
    #[inline(always)]
    fn find(&mut self, key: &FlowKey<A>) -> Option<Found<'_, A>> {
        let up = up(key)?.get_ptr_mut(key);
        let flow = match up {
            Some(flow) => flow,
            None => opening()?.get_ptr_mut(key)?,
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
        put(opening(), key, flow, BPF_ANY)
    }

    #[inline(always)]
    fn open_new(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        put(opening(), key, flow, BPF_NOEXIST)
    }

    #[inline(always)]
    fn settle(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        let is_up = put(up(key), key, flow, BPF_ANY);
        if is_up {
            take(opening(), key);
        }
        is_up
    }

    #[inline(always)]
    fn retire(&mut self, key: &FlowKey<A>, flow: &Flow<A>) {
        if put(opening(), key, flow, BPF_ANY) {
            take(up(key), key);
        }
    }

    #[inline(always)]
    fn forget(&mut self, key: &FlowKey<A>) {
        take(up(key), key);
        take(opening(), key);
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
