//! The packet path at devices that lead outside: what comes in there for a Service, and what leaves there of one.
//!
//! What goes on does so with "no opinion" (`TC_ACT_UNSPEC`): the programs of others, netfilter and routing see every packet, as it will
//! reach the backend.

#![expect(
    clippy::cast_possible_truncation,
    reason = "seconds, and results of helpers"
)]

use aya_ebpf::bindings::{BPF_NOEXIST, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use yurt_ebpf::abi::{
    Affinity, Affinity4, Affinity6, AffinityKey, Backend4, Backend6, Flow4, Flow6, FlowKey4,
    FlowKey6, HANDLED, Handled,
};
use yurt_ebpf::frame::{ETH_IPV4, ETH_IPV6};
use yurt_ebpf::rewrite::flow::{Flows, Found, Here, Memory, Verdict, arriving, leaving};

use super::skb::Skb;
use crate::maps::packet::{
    EDGE, FLOW4, FLOW6, HANDLED_COUNT, OPEN4, OPEN6, SCRATCH4, SCRATCH6, snat_ports,
};
use crate::maps::service::{AFF4, AFF6, Maps};

/// `skb->pkt_type` of a frame to another link-layer address, which a device in promiscuous mode shows.
const PACKET_OTHERHOST: u32 = 3;
/// The number of a VLAN in `skb->vlan_tci`. Number 0 is none: only a priority.
const VLAN_ID: u32 = 0xfff;

#[classifier]
#[inline(always)]
fn yurt_edge_in(ctx: TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let packet_type = unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).pkt_type) };
    if packet_type == PACKET_OTHERHOST {
        return TC_ACT_UNSPEC;
    }
    match family(&ctx) {
        Some(Family::V4) => in4(&ctx),
        Some(Family::V6) => in6(&ctx),
        None => TC_ACT_UNSPEC,
    }
}

#[classifier]
#[inline(always)]
fn yurt_edge_out(ctx: TcContext) -> i32 {
    match family(&ctx) {
        Some(Family::V4) => out4(&ctx),
        Some(Family::V6) => out6(&ctx),
        None => TC_ACT_UNSPEC,
    }
}

// Subprograms: each has a stack of its own for what it keeps of a packet.

#[inline(never)]
fn in4(ctx: &TcContext) -> i32 {
    let Some(scratch) = SCRATCH4.get_ptr_mut(0) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: this CPU's entry, and nobody else's while the program runs.
    let scratch = unsafe { &mut *scratch };
    let (mut skb, here) = start(ctx, false);
    finish(arriving(&mut skb, &Maps, &mut FlowMaps, &here, scratch))
}

#[inline(never)]
fn in6(ctx: &TcContext) -> i32 {
    let Some(scratch) = SCRATCH6.get_ptr_mut(0) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: as in `in4`.
    let scratch = unsafe { &mut *scratch };
    let (mut skb, here) = start(ctx, true);
    finish(arriving(&mut skb, &Maps, &mut FlowMaps, &here, scratch))
}

#[inline(never)]
fn out4(ctx: &TcContext) -> i32 {
    let Some(scratch) = SCRATCH4.get_ptr_mut(0) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: as in `in4`.
    let scratch = unsafe { &mut *scratch };
    let (mut skb, here) = start(ctx, false);
    let is_forwarded = is_forwarded(ctx);
    // SAFETY: copied at once; a row of this device that is put in again has the same address.
    let node = || unsafe { EDGE.get(here.ifindex) }.map(|row| row.addr4);
    finish(leaving(
        &mut skb,
        &mut FlowMaps,
        &here,
        scratch,
        is_forwarded,
        node,
    ))
}

#[inline(never)]
fn out6(ctx: &TcContext) -> i32 {
    let Some(scratch) = SCRATCH6.get_ptr_mut(0) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: as in `in4`.
    let scratch = unsafe { &mut *scratch };
    let (mut skb, here) = start(ctx, true);
    let is_forwarded = is_forwarded(ctx);
    // SAFETY: as above.
    let node = || unsafe { EDGE.get(here.ifindex) }.map(|row| row.addr6);
    finish(leaving(
        &mut skb,
        &mut FlowMaps,
        &here,
        scratch,
        is_forwarded,
        node,
    ))
}

enum Family {
    V4,
    V6,
}

/// Tagged frames are another network's, which has a device of its own.
#[inline(always)]
fn family(ctx: &TcContext) -> Option<Family> {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs.
    let (is_tagged, tag, protocol) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*skb).vlan_present) != 0,
            core::ptr::read_volatile(&raw const (*skb).vlan_tci),
            core::ptr::read_volatile(&raw const (*skb).protocol),
        )
    };
    if is_tagged && tag & VLAN_ID != 0 {
        None
    } else if protocol == u32::from(ETH_IPV4) {
        Some(Family::V4)
    } else if protocol == u32::from(ETH_IPV6) {
        Some(Family::V6)
    } else {
        None
    }
}

#[inline(always)]
fn start(ctx: &TcContext, is_v6: bool) -> (Skb, Now) {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs.
    let ifindex = unsafe { core::ptr::read_volatile(&raw const (*skb).ifindex) };
    (
        Skb {
            skb,
            ifindex,
            is_v6,
        },
        Now { ifindex },
    )
}

/// Whether the packet came in by another device; else it began here.
#[inline(always)]
fn is_forwarded(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).ingress_ifindex) != 0 }
}

#[inline(always)]
fn finish(verdict: Verdict) -> i32 {
    let Verdict::Is(what) = verdict else {
        return TC_ACT_UNSPEC;
    };
    let what = what as u32;
    // SAFETY: a read of a valid value; volatile, so that nothing is known of it.
    let what = unsafe { core::ptr::read_volatile(&raw const what) } & (HANDLED - 1);
    if let Some(counter) = HANDLED_COUNT.get_ptr_mut(what) {
        // SAFETY: this CPU's entry; nobody else writes to it.
        unsafe { *counter += 1 };
    }
    if what <= Handled::ToClient as u32 {
        TC_ACT_UNSPEC
    } else {
        TC_ACT_SHOT
    }
}

struct Now {
    ifindex: u32,
}

impl Here for Now {
    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn now_s(&self) -> u32 {
        (now_ns() / 1_000_000_000) as u32
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    #[inline(always)]
    fn ports(&self) -> (u16, u16) {
        snat_ports()
    }
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

struct FlowMaps;

impl Flows<[u8; 4]> for FlowMaps {
    #[inline(always)]
    fn find(&mut self, key: &FlowKey4) -> Option<Found<'_, [u8; 4]>> {
        let up = FLOW4.get_ptr_mut(key);
        let flow = match up {
            Some(flow) => flow,
            None => OPEN4.get_ptr_mut(key)?,
        };
        // SAFETY: the kernel keeps the memory while the program runs. Other processors may write to it: single words, whose last writer may
        // win. An entry may be another's by now: that costs one packet.
        let flow = unsafe { &mut *flow };
        Some(Found {
            flow,
            is_opening: up.is_none(),
        })
    }

    #[inline(always)]
    fn open(&mut self, key: &FlowKey4, flow: &Flow4) -> bool {
        OPEN4.insert(key, flow, 0).is_ok()
    }

    #[inline(always)]
    fn open_new(&mut self, key: &FlowKey4, flow: &Flow4) -> bool {
        OPEN4.insert(key, flow, u64::from(BPF_NOEXIST)).is_ok()
    }

    #[inline(always)]
    fn settle(&mut self, key: &FlowKey4, flow: &Flow4) -> bool {
        let is_up = FLOW4.insert(key, flow, 0).is_ok();
        if is_up {
            let _ = OPEN4.remove(key);
        }
        is_up
    }

    #[inline(always)]
    fn forget(&mut self, key: &FlowKey4) {
        let _ = FLOW4.remove(key);
        let _ = OPEN4.remove(key);
    }
}

impl Flows<[u8; 16]> for FlowMaps {
    #[inline(always)]
    fn find(&mut self, key: &FlowKey6) -> Option<Found<'_, [u8; 16]>> {
        let up = FLOW6.get_ptr_mut(key);
        let flow = match up {
            Some(flow) => flow,
            None => OPEN6.get_ptr_mut(key)?,
        };
        // SAFETY: as for IPv4.
        let flow = unsafe { &mut *flow };
        Some(Found {
            flow,
            is_opening: up.is_none(),
        })
    }

    #[inline(always)]
    fn open(&mut self, key: &FlowKey6, flow: &Flow6) -> bool {
        OPEN6.insert(key, flow, 0).is_ok()
    }

    #[inline(always)]
    fn open_new(&mut self, key: &FlowKey6, flow: &Flow6) -> bool {
        OPEN6.insert(key, flow, u64::from(BPF_NOEXIST)).is_ok()
    }

    #[inline(always)]
    fn settle(&mut self, key: &FlowKey6, flow: &Flow6) -> bool {
        let is_up = FLOW6.insert(key, flow, 0).is_ok();
        if is_up {
            let _ = OPEN6.remove(key);
        }
        is_up
    }

    #[inline(always)]
    fn forget(&mut self, key: &FlowKey6) {
        let _ = FLOW6.remove(key);
        let _ = OPEN6.remove(key);
    }
}

#[inline(always)]
fn affinity_key(client: u64, affinity: Affinity) -> AffinityKey {
    AffinityKey {
        netns: client,
        identity: affinity.identity(),
    }
}

impl Memory<[u8; 4]> for FlowMaps {
    #[inline(never)]
    fn recall(&mut self, client: u64, affinity: Affinity, backend: &mut Backend4) -> bool {
        // SAFETY: copied at once. What is copied from an element that is reused meanwhile is looked up in the set.
        let Some(last) = (unsafe { AFF4.get(affinity_key(client, affinity)) }) else {
            return false;
        };
        *backend = last.backend;
        now_ns().wrapping_sub(last.last_ns) < affinity.timeout_ns()
    }

    #[inline(never)]
    fn remember(&mut self, client: u64, affinity: Affinity, backend: &Backend4) {
        let value = Affinity4 {
            backend: *backend,
            last_ns: now_ns(),
        };
        // A client that cannot be remembered is served all the same.
        let _ = AFF4.insert(affinity_key(client, affinity), value, 0);
    }
}

impl Memory<[u8; 16]> for FlowMaps {
    #[inline(never)]
    fn recall(&mut self, client: u64, affinity: Affinity, backend: &mut Backend6) -> bool {
        // SAFETY: as for IPv4.
        let Some(last) = (unsafe { AFF6.get(affinity_key(client, affinity)) }) else {
            return false;
        };
        *backend = last.backend;
        now_ns().wrapping_sub(last.last_ns) < affinity.timeout_ns()
    }

    #[inline(never)]
    fn remember(&mut self, client: u64, affinity: Affinity, backend: &Backend6) {
        let value = Affinity6 {
            backend: *backend,
            last_ns: now_ns(),
        };
        // See above.
        let _ = AFF6.insert(affinity_key(client, affinity), value, 0);
    }
}
