//! Past the stack: a packet of a flow is put into its Pod right where it came in, and the answer out of the device that
//! the client came in by. What may be skipped by that is for the agent to say, with `yurt_fast_until`.
//!
//! Programs of their own, which others end with by tail call. They lead a packet on, or leave it to the stack as it is.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "sizes, and results of helpers"
)]

use aya_ebpf::bindings::{TC_ACT_REDIRECT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use yurt_ebpf::abi::{Handled, NearRow, words};
use yurt_ebpf::frame::{ETH, ETH_IPV4, ETH_IPV6};
use yurt_ebpf::rewrite::flow::{answers_fast, begin_fast};
use yurt_ebpf::rewrite::hop::{Ends, address, take_hop};

use super::flows::{Family, FlowMaps, now_ns};
use super::{INSIDE, OUTSIDE, protocol, start};
use crate::maps::packet::{FAST_UNTIL, HANDLED_COUNT, NEAR, NEAR_DEVICES};

/// `skb->pkt_type` of a frame to this machine alone.
const PACKET_HOST: u32 = 0;

#[classifier]
#[inline(always)]
fn yurt_edge_fast(ctx: TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let packet_type = unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).pkt_type) };
    if packet_type != PACKET_HOST || !is_allowed(&ctx) {
        return TC_ACT_UNSPEC;
    }
    let led = match protocol(&ctx) {
        Some(ETH_IPV4) => to_pod::<[u8; 4]>(&ctx),
        Some(ETH_IPV6) => to_pod::<[u8; 16]>(&ctx),
        _ => None,
    };
    led.unwrap_or(TC_ACT_UNSPEC)
}

#[classifier]
#[inline(always)]
fn yurt_pod_fast(ctx: TcContext) -> i32 {
    if !is_allowed(&ctx) {
        return TC_ACT_UNSPEC;
    }
    let led = match protocol(&ctx) {
        Some(ETH_IPV4) => to_client::<[u8; 4]>(&ctx),
        Some(ETH_IPV6) => to_client::<[u8; 16]>(&ctx),
        _ => None,
    };
    led.unwrap_or(TC_ACT_UNSPEC)
}

#[inline(always)]
fn to_pod<A: Family>(ctx: &TcContext) -> Option<i32> {
    let scratch = A::scratch()?;
    let (mut skb, here) = start::<A, OUTSIDE>(ctx);
    let ends = Ends::<A>::of(&skb)?;
    let near = near(ends.destination)?;
    // What is too long is told so by the stack.
    if !fits(ctx, near.mtu) {
        return None;
    }
    if !scratch.is_fast() {
        // The first packet. Where the stack would lead it elsewhere, or would not find its sender behind this device,
        // or does not know at the moment, it has the whole flow.
        let there = Route::find(ctx, here.ifindex, (ends.source, ends.destination))?;
        let [a, b, c, d, e, f, ..] = near.macs;
        if there.destination_mac != [a, b, c, d, e, f] {
            return None;
        }
        let back = Route::find(ctx, here.ifindex, (ends.destination, ends.source))?;
        if back.ifindex != here.ifindex || !begin_fast(&mut FlowMaps, scratch) {
            return None;
        }
    }
    take_hop::<A, _>(&mut skb)?;
    address(&mut skb, near.macs)?;
    count(Handled::FastToBackend);
    // SAFETY: a call without pointers.
    Some(unsafe { bpf_redirect_peer(near.ifindex, 0) } as i32)
}

#[inline(always)]
fn to_client<A: Family>(ctx: &TcContext) -> Option<i32> {
    let scratch = A::scratch()?;
    let (mut skb, here) = start::<A, INSIDE>(ctx);
    let ends = Ends::<A>::of(&skb)?;
    if near(ends.source)?.ifindex != here.ifindex {
        return None;
    }
    let device = answers_fast(&skb, &mut FlowMaps, &here, scratch)?;
    let route = Route::find(ctx, here.ifindex, (ends.source, ends.destination))?;
    if route.ifindex != device {
        return None;
    }
    take_hop::<A, _>(&mut skb)?;
    let mut next = NextHop {
        family: u32::from(route.family),
        address: route.destination,
    };
    // SAFETY: `next` is as long as it says.
    let action = unsafe {
        bpf_redirect_neigh(
            device,
            (&raw mut next).cast(),
            size_of::<NextHop>() as i32,
            0,
        )
    };
    if action == i64::from(TC_ACT_REDIRECT) {
        count(Handled::FastToClient);
    }
    Some(action as i32)
}

/// Whether packets may be led past the stack now, and this one is no VLAN's.
#[inline(always)]
fn is_allowed(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    let is_tagged =
        unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).vlan_present) != 0 };
    let until = FAST_UNTIL.get(0).copied().unwrap_or(0);
    !is_tagged && until != 0 && now_ns() < until
}

/// A Pod of this node, and its device, which is still there.
struct Near {
    ifindex: u32,
    mtu: u32,
    macs: [u8; 12],
}

#[inline(always)]
fn near<A: Family>(pod: A) -> Option<Near> {
    let pod = pod.words();
    let place = NearRow::place(pod);
    let row = NEAR.get(place)?;
    if words(&row.addr) != pod {
        return None;
    }
    let device = NEAR_DEVICES.get(place)?;
    (row.ifindex == device.if_index).then_some(Near {
        ifindex: device.if_index,
        mtu: row.mtu,
        macs: row.macs,
    })
}

/// Whether a packet fits a device. Of one that stands for several (GRO), each has come by a wire, and none is larger
/// than the Pod has asked for.
#[inline(always)]
fn fits(ctx: &TcContext, mtu: u32) -> bool {
    // SAFETY: the context is valid while the program runs.
    let is_several = unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).gso_size) != 0 };
    is_several || ctx.len() <= mtu.saturating_add(ETH as u32)
}

/// What the kernel knows of the way to a host: `struct bpf_fib_lookup`, which the bindings have with unions.
#[repr(C)]
struct Route {
    family: u8,
    protocol: u8,
    ports: [u16; 2],
    length: u16,
    ifindex: u32,
    service: u32,
    source: [u8; 16],
    /// Asked: the host. Answered: the next hop to it, of `family`.
    destination: [u8; 16],
    vlan: u32,
    /// Ours on that device; a device without link-layer addresses has none.
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
}

impl Route {
    /// The way that the stack would lead what comes in by a device; `None` where there is none, where the next hop is
    /// not known at the moment, or where the packet is too long for it.
    #[inline(always)]
    fn find<A: Family>(
        ctx: &TcContext,
        ifindex: u32,
        (source, destination): (A, A),
    ) -> Option<Self> {
        let mut route = Self {
            family: if A::IS_V6 { 10 } else { 2 },
            protocol: 0,
            ports: [0; 2],
            length: 0,
            ifindex,
            service: 0,
            source: source.at_start(),
            destination: destination.at_start(),
            vlan: 0,
            source_mac: [0; 6],
            destination_mac: [0; 6],
        };
        // SAFETY: `route` is as long as it says.
        let result = unsafe {
            bpf_fib_lookup(
                ctx.skb.skb.cast(),
                (&raw mut route).cast(),
                size_of::<Self>() as i32,
                0,
            )
        };
        let has_link_layer = route.source_mac != [0; 6];
        (result == 0 && has_link_layer).then_some(route)
    }
}

/// `struct bpf_redir_neigh`.
#[repr(C)]
struct NextHop {
    family: u32,
    address: [u8; 16],
}

#[inline(always)]
fn count(what: Handled) {
    if let Some(counter) = HANDLED_COUNT.get_ptr_mut(what as u32) {
        // SAFETY: this CPU's entry; nobody else writes to it.
        unsafe { *counter += 1 };
    }
}
