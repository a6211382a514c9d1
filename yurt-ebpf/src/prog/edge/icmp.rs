//! ICMP of the packet path: errors about packets of flows, and refusals.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use yurt_ebpf::abi::Refused;
use yurt_ebpf::frame::{ETH_IPV4, ETH_IPV6};
use yurt_ebpf::rewrite::flow::{Here as _, error_arriving, error_leaving};
use yurt_ebpf::rewrite::refusal::refuse;

use super::flows::{Family, FlowMaps};
use super::{OUTSIDE, count, protocol, start};
use crate::maps::packet::REFUSED;

/// `skb->pkt_type` of a frame to all, and to a group.
const PACKET_TO_MANY: [u32; 2] = [1, 2];

#[classifier]
#[inline(always)]
fn yurt_edge_err_in(ctx: TcContext) -> i32 {
    match protocol(&ctx) {
        Some(ETH_IPV4) => come_in::<[u8; 4]>(&ctx),
        Some(ETH_IPV6) => come_in::<[u8; 16]>(&ctx),
        _ => TC_ACT_UNSPEC,
    }
}

#[classifier]
#[inline(always)]
fn yurt_edge_err_out(ctx: TcContext) -> i32 {
    match protocol(&ctx) {
        Some(ETH_IPV4) => leave::<[u8; 4]>(&ctx),
        Some(ETH_IPV6) => leave::<[u8; 16]>(&ctx),
        _ => TC_ACT_UNSPEC,
    }
}

#[classifier]
#[inline(always)]
fn yurt_edge_refuse(ctx: TcContext) -> i32 {
    match protocol(&ctx) {
        Some(ETH_IPV4) => turn_back4(&ctx),
        Some(ETH_IPV6) => turn_back6(&ctx),
        _ => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn come_in<A: Family>(ctx: &TcContext) -> i32 {
    let Some(scratch) = A::scratch() else {
        return TC_ACT_UNSPEC;
    };
    let (mut skb, here) = start::<A, OUTSIDE>(ctx);
    count(error_arriving(&mut skb, &mut FlowMaps, &here, scratch)).0
}

#[inline(always)]
fn leave<A: Family>(ctx: &TcContext) -> i32 {
    let Some(scratch) = A::scratch() else {
        return TC_ACT_UNSPEC;
    };
    let (mut skb, here) = start::<A, OUTSIDE>(ctx);
    count(error_leaving(&mut skb, &mut FlowMaps, &here, scratch)).0
}

// Subprograms: each has a stack of its own.

#[inline(never)]
fn turn_back4(ctx: &TcContext) -> i32 {
    turn_back::<[u8; 4]>(ctx)
}

#[inline(never)]
fn turn_back6(ctx: &TcContext) -> i32 {
    turn_back::<[u8; 16]>(ctx)
}

/// A packet that is refused goes back as its refusal, or nowhere.
#[inline(always)]
fn turn_back<A: Family>(ctx: &TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let packet_type = unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).pkt_type) };
    let (mut skb, here) = start::<A, OUTSIDE>(ctx);
    // A Pod's frames are for the bridge, which is another host to the device.
    if PACKET_TO_MANY.contains(&packet_type) {
        return TC_ACT_SHOT;
    }
    match refuse(&mut skb, A::IS_V6, |host| is_told(host, here.now_s())) {
        Some(()) => skb.redirect(0),
        None => TC_ACT_SHOT,
    }
}

/// Whether a host is told of one more refusal.
#[inline(always)]
fn is_told(host: &[u8; 16], now_s: u32) -> bool {
    let Some(refused) = REFUSED.get_ptr_mut(host) else {
        let mut refused = Refused::default();
        let is_told = refused.tell(now_s);
        // A host that cannot be remembered is told all the same.
        let _ = REFUSED.insert(host, refused, 0);
        return is_told;
    };
    // SAFETY: the kernel keeps the memory while the program runs. Other processors may write to it: some more are told
    // then.
    unsafe { (*refused).tell(now_s) }
}
