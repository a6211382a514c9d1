//! The packet path at devices that lead outside, and at those of this node's Pods: what comes in there for a Service,
//! and what leaves there of one. Both are the same code; what differs hangs on [`Here::IS_INSIDE`].
//!
//! What goes on does so with "no opinion" (`TC_ACT_UNSPEC`): the programs of others, netfilter and routing see every
//! packet, as it will reach the backend.
//!
//! Packets of flows that are known are served by the programs on the device. What may open a flow goes on to a program
//! of its own by tail call: its decision is most of the verifier's work. Kernels before 5.10, and those of arm64 before
//! 6.0, refuse a program that has both tail calls and subprograms, so those on the device have none.

#![expect(
    clippy::cast_possible_truncation,
    reason = "seconds, and results of helpers"
)]

mod fast;
mod flows;
mod icmp;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use yurt_ebpf::abi::{
    HANDLED, Handled, STAGE_ERROR_IN, STAGE_ERROR_OUT, STAGE_FAST_IN, STAGE_FAST_OUT, STAGE_OPENS4,
    STAGE_OPENS6, STAGE_POD_OPENS4, STAGE_POD_OPENS6, STAGE_REFUSES,
};
use yurt_ebpf::frame::{ETH_IPV4, ETH_IPV6, ETH_SERVICE_VLAN, ETH_VLAN};
use yurt_ebpf::rewrite::flow::{Here, Scratch, Verdict, arriving, leaving, opening};

use self::flows::{Family, FlowMaps, now_ns};
use super::skb::Skb;
use super::tell;
use crate::maps::packet::{
    EDGE, HANDLED_COUNT, STAGES, has_fast_path, missing_link_header, snat_ports, snat_turn,
};
use crate::maps::service::Maps;

/// `skb->pkt_type` of a frame to another link-layer address, which a device in promiscuous mode shows.
const PACKET_OTHERHOST: u32 = 3;
/// The number of a VLAN in `skb->vlan_tci`. Number 0 is none: only a priority.
const VLAN_ID: u32 = 0xfff;

/// [`Here::IS_INSIDE`] of the programs at devices that lead outside.
const OUTSIDE: bool = false;
/// The same of those at devices of Pods.
const INSIDE: bool = true;

#[classifier]
#[inline(always)]
fn yurt_edge_in(ctx: TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let packet_type = unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).pkt_type) };
    if packet_type == PACKET_OTHERHOST {
        return TC_ACT_UNSPEC;
    }
    match protocol(&ctx) {
        Some(ETH_IPV4) => come_in::<[u8; 4], OUTSIDE>(&ctx),
        Some(ETH_IPV6) => come_in::<[u8; 16], OUTSIDE>(&ctx),
        // The kernel strips it, and delivers what is in it without asking anybody again.
        Some(ETH_VLAN | ETH_SERVICE_VLAN) => {
            let verdict = Verdict::Is(Handled::DropTag);
            finish::<[u8; 4]>(verdict, ifindex(&ctx), None)
        }
        _ => TC_ACT_UNSPEC,
    }
}

#[classifier]
#[inline(always)]
fn yurt_edge_new4(ctx: TcContext) -> i32 {
    open::<[u8; 4], OUTSIDE>(&ctx)
}

#[classifier]
#[inline(always)]
fn yurt_edge_new6(ctx: TcContext) -> i32 {
    open::<[u8; 16], OUTSIDE>(&ctx)
}

#[classifier]
#[inline(always)]
fn yurt_edge_out(ctx: TcContext) -> i32 {
    match protocol(&ctx) {
        Some(ETH_IPV4) => leave::<[u8; 4], OUTSIDE>(&ctx),
        Some(ETH_IPV6) => leave::<[u8; 16], OUTSIDE>(&ctx),
        _ => TC_ACT_UNSPEC,
    }
}

/// What a Pod sends. On a bridge its frames are for the bridge, so that they are for "another host" here says nothing.
#[classifier]
#[inline(always)]
fn yurt_pod_in(ctx: TcContext) -> i32 {
    match protocol(&ctx) {
        Some(ETH_IPV4) => come_in::<[u8; 4], INSIDE>(&ctx),
        Some(ETH_IPV6) => come_in::<[u8; 16], INSIDE>(&ctx),
        _ => TC_ACT_UNSPEC,
    }
}

#[classifier]
#[inline(always)]
fn yurt_pod_new4(ctx: TcContext) -> i32 {
    open::<[u8; 4], INSIDE>(&ctx)
}

#[classifier]
#[inline(always)]
fn yurt_pod_new6(ctx: TcContext) -> i32 {
    open::<[u8; 16], INSIDE>(&ctx)
}

#[classifier]
#[inline(always)]
fn yurt_pod_out(ctx: TcContext) -> i32 {
    match protocol(&ctx) {
        Some(ETH_IPV4) => leave::<[u8; 4], INSIDE>(&ctx),
        Some(ETH_IPV6) => leave::<[u8; 16], INSIDE>(&ctx),
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn come_in<A: Family, const IS_INSIDE: bool>(ctx: &TcContext) -> i32 {
    let Some(scratch) = A::scratch() else {
        return TC_ACT_UNSPEC;
    };
    let (mut skb, here) = start::<A, IS_INSIDE>(ctx);
    let mut verdict = arriving(&mut skb, &mut FlowMaps, &here, scratch);
    match verdict {
        Verdict::Opens => {
            go_on(
                ctx,
                match (IS_INSIDE, A::IS_V6) {
                    (false, false) => STAGE_OPENS4,
                    (false, true) => STAGE_OPENS6,
                    (true, false) => STAGE_POD_OPENS4,
                    (true, true) => STAGE_POD_OPENS6,
                },
            );
            // It has come back. The packet may be a closed Service's, and must not go on.
            verdict = Verdict::Is(Handled::DropNoProgram);
        }
        Verdict::Error => {
            go_on(ctx, STAGE_ERROR_IN);
            return TC_ACT_UNSPEC;
        }
        _ => {}
    }
    let action = finish(verdict, here.ifindex, Some(scratch));
    let may_be_fast = match (IS_INSIDE, verdict) {
        (false, Verdict::Is(Handled::ToBackend)) => scratch.is_fast(),
        (true, Verdict::Pass) => true,
        _ => false,
    };
    if has_fast_path() && may_be_fast {
        go_on(ctx, fast_stage(IS_INSIDE));
    }
    action
}

/// Who leads a packet past the stack, if it may be. Comes back only where that is not there: then the stack has it.
#[inline(always)]
fn fast_stage(is_inside: bool) -> u32 {
    match is_inside {
        false => STAGE_FAST_IN,
        true => STAGE_FAST_OUT,
    }
}

#[inline(always)]
fn open<A: Family, const IS_INSIDE: bool>(ctx: &TcContext) -> i32 {
    let Some(scratch) = A::scratch() else {
        return TC_ACT_UNSPEC;
    };
    let (mut skb, here) = start::<A, IS_INSIDE>(ctx);
    let verdict = opening(&mut skb, &Maps, &mut FlowMaps, &here, scratch);
    let (action, what) = count(verdict);
    if action == TC_ACT_SHOT {
        tell_first::<A>(ctx, what);
    }
    if let Verdict::Is(what) = verdict
        && what.is_refusal()
    {
        go_on(ctx, STAGE_REFUSES);
    }
    let may_be_fast = matches!(
        (IS_INSIDE, verdict),
        (false, Verdict::Is(Handled::NewFlow)) | (true, Verdict::Pass)
    );
    if has_fast_path() && may_be_fast {
        go_on(ctx, fast_stage(IS_INSIDE));
    }
    action
}

#[inline(always)]
fn leave<A: Family, const IS_INSIDE: bool>(ctx: &TcContext) -> i32 {
    let Some(scratch) = A::scratch() else {
        return TC_ACT_UNSPEC;
    };
    let (mut skb, here) = start::<A, IS_INSIDE>(ctx);
    // It came in by another device; else it began here.
    // SAFETY: the context is valid while the program runs.
    let is_forwarded =
        unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).ingress_ifindex) != 0 };
    // SAFETY: copied at once; a row of this device that is put in again has the same address.
    let node = || unsafe { EDGE.get(here.ifindex) }.map(A::node);
    let verdict = leaving(&mut skb, &mut FlowMaps, &here, scratch, is_forwarded, node);
    if verdict == Verdict::Error {
        go_on(ctx, STAGE_ERROR_OUT);
    }
    finish(verdict, here.ifindex, Some(scratch))
}

/// Goes on with another program; comes back only where that is not there.
#[inline(always)]
fn go_on(ctx: &TcContext, stage: u32) {
    // SAFETY: nothing is to be dropped here.
    unsafe { STAGES.tail_call(ctx, stage) };
}

/// What a frame holds, as its `skb` says. Tagged frames are another network's, which has a device of its own.
#[inline(always)]
fn protocol(ctx: &TcContext) -> Option<u16> {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs.
    let (is_tagged, tag, protocol) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*skb).vlan_present) != 0,
            core::ptr::read_volatile(&raw const (*skb).vlan_tci),
            core::ptr::read_volatile(&raw const (*skb).protocol),
        )
    };
    match is_tagged && tag & VLAN_ID != 0 {
        true => None,
        false => Some(protocol as u16),
    }
}

#[inline(always)]
fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).ifindex) }
}

#[inline(always)]
fn start<A: Family, const IS_INSIDE: bool>(ctx: &TcContext) -> (Skb, Now<IS_INSIDE>) {
    let (skb, ifindex) = (ctx.skb.skb, ifindex(ctx));
    let is_v6 = A::IS_V6;
    (
        Skb {
            skb,
            ifindex,
            is_v6,
            missing: missing_link_header(),
        },
        Now { ifindex },
    )
}

/// Counts what was done with a packet; returns it as the kernel has it, and as it was counted.
#[inline(always)]
fn count(verdict: Verdict) -> (i32, u32) {
    let Verdict::Is(what) = verdict else {
        return (TC_ACT_UNSPEC, 0);
    };
    let what = what as u32;
    // SAFETY: a read of a valid value; volatile, so that nothing is known of it.
    let what = unsafe { core::ptr::read_volatile(&raw const what) } & (HANDLED - 1);
    if let Some(counter) = HANDLED_COUNT.get_ptr_mut(what) {
        // SAFETY: this CPU's entry; nobody else writes to it.
        unsafe { *counter += 1 };
    }
    if what <= Handled::ToClient as u32 {
        (TC_ACT_UNSPEC, what)
    } else {
        (TC_ACT_SHOT, what)
    }
}

/// Counts what was done with a packet at a device, and tells of it if it goes no further. `scratch`: what was looked up
/// for it, if something was.
#[inline(always)]
fn finish<A: Family>(verdict: Verdict, ifindex: u32, scratch: Option<&Scratch<A>>) -> i32 {
    let (action, what) = count(verdict);
    if action == TC_ACT_SHOT {
        let ends = scratch.and_then(|scratch| scratch.known_ends(what));
        tell::dropped(ends, ifindex, what);
    }
    action
}

/// Tells of a first packet that goes no further. A subprogram, which finds again what its caller knows: that one has no
/// room on its stack to keep it.
#[inline(never)]
fn tell_first<A: Family>(ctx: &TcContext, what: u32) {
    if let Some(scratch) = A::scratch() {
        tell::dropped(scratch.known_ends(what), ifindex(ctx), what);
    }
}

/// Where and when a packet is looked at.
struct Now<const IS_INSIDE: bool> {
    ifindex: u32,
}

impl<const IS_INSIDE: bool> Here for Now<IS_INSIDE> {
    const IS_INSIDE: bool = IS_INSIDE;

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

    #[inline(always)]
    fn turn(&self) -> u32 {
        snat_turn()
    }
}
