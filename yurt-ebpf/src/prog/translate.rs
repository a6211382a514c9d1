//! Translation: a Pod is reached at the address that was promised to it, and appears with it, while it has another one.
//!
//! On the host's side of the Pod's interface: egress leads to the Pod, ingress comes from it. Translated or not, a
//! packet goes on with "no opinion" (`TC_ACT_UNSPEC`): the programs of others see it, those at egress as the Pod will
//! see it. Only what is answered in the Pod's name, or sent by the Pod to itself, turns back.

use aya_ebpf::bindings::{BPF_ANY, BPF_F_INGRESS, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use yurt_ebpf::abi::{
    LIVE_QUIET_NS, LIVE_STEP_NS, LiveFlow, LiveKey, TRANSLATIONS, TranslateRow, Translation,
};
use yurt_ebpf::frame::{ETH_IPV6, Frame as _};
use yurt_ebpf::rewrite::refusal::Resize as _;
use yurt_ebpf::rewrite::{
    ADVERTISEMENT_FRAME, Asker, Flows, Packet as _, Verdict, arp, from_pod, neighbour, to_pod,
};

use super::say;
use super::skb::Skb;
use crate::maps::translate::{LIVE, XLATE, XLATE_COUNT};

#[classifier]
#[inline(always)]
fn yurt_xlate_out(ctx: TcContext) -> i32 {
    let Some((mut skb, row)) = start(&ctx) else {
        return TC_ACT_UNSPEC;
    };
    let verdict = to_pod(&mut skb, row, &mut LiveFlows);
    finish(&mut skb, row, verdict, Asker::Anybody)
}

#[classifier]
#[inline(always)]
fn yurt_xlate_in(ctx: TcContext) -> i32 {
    let Some((mut skb, row)) = start(&ctx) else {
        return TC_ACT_UNSPEC;
    };
    let verdict = from_pod(&mut skb, row, &mut LiveFlows);
    finish(&mut skb, row, verdict, Asker::Itself)
}

/// A frame of a Pod of which something is translated.
#[inline(always)]
fn start(ctx: &TcContext) -> Option<(Skb, &'static TranslateRow)> {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs.
    let (ifindex, is_tagged, protocol) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*skb).ifindex),
            core::ptr::read_volatile(&raw const (*skb).vlan_present) != 0,
            core::ptr::read_volatile(&raw const (*skb).protocol),
        )
    };
    if is_tagged {
        return None;
    }
    // SAFETY: the kernel keeps the entry while the program runs.
    let row = unsafe { XLATE.get(ifindex) }?;
    let skb = Skb {
        skb,
        ifindex,
        is_v6: protocol == u32::from(ETH_IPV6),
        missing: 0,
    };
    Some((skb, row))
}

#[inline(always)]
fn finish(skb: &mut Skb, row: &TranslateRow, verdict: Verdict, asker: Asker) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Counted(what) => {
            count(what);
            // Answers and packets that turn back are not logged: the stack has no room for a second log line.
            say::translated(skb.ifindex, what);
            TC_ACT_UNSPEC
        }
        Verdict::Back => {
            count(Translation::ToItself);
            // Out of the device, through the other program.
            skb.redirect(0)
        }
        Verdict::Arp(address) => {
            let Some(request) = skb.far(0) else {
                return TC_ACT_UNSPEC;
            };
            match arp(&request, address, row.mac.addr, asker) {
                Some(answer) => skb.answer(answer, asker),
                None => TC_ACT_UNSPEC,
            }
        }
        Verdict::Neighbour(address) => {
            let Some(request) = skb.far(0) else {
                return TC_ACT_UNSPEC;
            };
            match neighbour(&request, &address, row.mac.addr, asker) {
                Some(answer) => {
                    if skb.set_length(ADVERTISEMENT_FRAME).is_none() {
                        return TC_ACT_UNSPEC;
                    }
                    skb.answer(answer, asker)
                }
                None => TC_ACT_UNSPEC,
            }
        }
    }
}

#[inline(always)]
fn count(what: Translation) {
    // The verifier knows nothing of what an enumeration can be.
    let what = what as u32;
    // SAFETY: a read of a valid value; volatile, so that nothing is known of it.
    let what = unsafe { core::ptr::read_volatile(&raw const what) } & (TRANSLATIONS - 1);
    if let Some(counter) = XLATE_COUNT.get_ptr_mut(what) {
        // SAFETY: this CPU's entry; nobody else writes to it.
        unsafe { *counter += 1 };
    }
}

impl Skb {
    /// Puts an answer in the place of a request, and sends it to whoever asked.
    #[inline(always)]
    fn answer<const N: usize>(&mut self, answer: [u8; N], asker: Asker) -> i32 {
        if self.store(0, answer, false).is_none() {
            return TC_ACT_UNSPEC;
        }
        count(Translation::Answered);
        self.redirect(match asker {
            // As if the Pod had sent it.
            Asker::Anybody => u64::from(BPF_F_INGRESS),
            Asker::Itself => 0,
        })
    }
}

struct LiveFlows;

impl LiveFlows {
    /// When it was seen last; an entry may be another's by now, and then only its time is wrong.
    #[inline(always)]
    fn find(key: &LiveKey) -> Option<*mut LiveFlow> {
        LIVE.get_ptr_mut(key)
    }

    #[inline(always)]
    fn touch(flow: *mut LiveFlow, now: u64) {
        // SAFETY: the kernel keeps the memory while the program runs.
        unsafe {
            // Another CPU may have been later.
            if now.saturating_sub((*flow).last_ns) > LIVE_STEP_NS {
                (*flow).last_ns = now;
            }
        }
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a call without pointers.
    unsafe { bpf_ktime_get_ns() }
}

impl Flows for LiveFlows {
    #[inline(always)]
    fn is_live(&mut self, key: &LiveKey, fades: bool) -> bool {
        let Some(flow) = Self::find(key) else {
            return false;
        };
        if !fades {
            return true;
        }
        let now = now();
        // SAFETY: the kernel keeps the memory while the program runs.
        let is_over = now.saturating_sub(unsafe { (*flow).last_ns }) > LIVE_QUIET_NS;
        if !is_over {
            Self::touch(flow, now);
        }
        !is_over
    }

    #[inline(always)]
    fn remember(&mut self, key: &LiveKey) {
        let now = now();
        match Self::find(key) {
            Some(flow) => Self::touch(flow, now),
            None => {
                let flow = LiveFlow { last_ns: now };
                // Where there is no room for it, the flow appears with the promised address.
                let _ = LIVE.insert(key, flow, u64::from(BPF_ANY));
            }
        }
    }

    #[inline(always)]
    fn forget(&mut self, key: &LiveKey) {
        if Self::find(key).is_some() {
            // Another CPU may be faster.
            let _ = LIVE.remove(key);
        }
    }
}
