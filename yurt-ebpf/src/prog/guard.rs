//! The guard: what a Pod sends, judged where it comes out of the Pod (ingress of its interface on the host's side).
//!
//! A plain frame costs one array lookup, and nothing is written. Every other one is judged by what it claims. Allowed
//! means "no opinion" (`TC_ACT_UNSPEC`): the programs of others see every frame that they would see without this one.

use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use yurt_ebpf::abi::{GUARD_ENFORCE, OwnerRow, PlainRow, REASON_PLACES, Reason, SpoofCounts};
use yurt_ebpf::claims::{Claims, Finding, Owners, Sender, is_plain};
use yurt_ebpf::frame::{Frame, Wire};

use super::say;
use super::skb::Bytes;
use crate::maps::guard::{CLAIMS, GUARD, OWNER, PLAIN, SPOOF, SPOOF_ALL};

/// As far as the part of the headers goes whose offsets are constants.
const HEADERS: u32 = 64;

#[classifier]
#[inline(always)]
fn yurt_guard_in(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs.
    let (ifindex, is_tagged) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*skb).ifindex),
            core::ptr::read_volatile(&raw const (*skb).vlan_present) != 0,
        )
    };
    // An entry of an array is never freed; one that is just written is judged by halves, once.
    if let Some(plain) = PLAIN.get(PlainRow::place(ifindex))
        && plain.ifindex == ifindex
        && is_plain(&Linear::of(skb), is_tagged, plain)
    {
        return TC_ACT_UNSPEC;
    }
    judge(&ctx, ifindex, is_tagged)
}

#[inline(always)]
fn judge(ctx: &TcContext, ifindex: u32, is_tagged: bool) -> i32 {
    // SAFETY: the kernel keeps the entry while the program runs.
    let row = GUARD.get_ptr(ifindex).map(|row| unsafe { &*row });
    let wanted = if ctx.len() < HEADERS {
        ctx.len()
    } else {
        HEADERS
    };
    let mut frame = Linear::of(ctx.skb.skb);
    if frame.end - frame.data < wanted as usize {
        // Where this fails, the claims cannot be read. (For all frames it would cost a copy of each that is a clone.)
        let _ = ctx.skb.pull_data(wanted);
        frame = Linear::of(ctx.skb.skb);
    }
    let Some(place) = CLAIMS.get_ptr_mut(0) else {
        return TC_ACT_UNSPEC;
    };
    let is_whole = match Claims::of(&frame, is_tagged) {
        // SAFETY: this CPU's entry, and nobody else's while the program runs.
        Some(claims) => unsafe {
            place.write(claims);
            true
        },
        None => false,
    };
    let sender = Sender {
        ifindex,
        row,
        owners: &OwnerMap,
    };
    let Finding {
        reason,
        is_enforced_by_owner,
    } = match CLAIMS.get(0) {
        Some(claims) if is_whole => claims.judge(&sender),
        _ => Finding {
            // Of a Pod of which nothing is known only claims are judged.
            reason: row.map(|_| Reason::Malformed),
            is_enforced_by_owner: false,
        },
    };
    let Some(reason) = reason else {
        return TC_ACT_UNSPEC;
    };
    let is_dropped = is_enforced_by_owner || row.is_some_and(|row| row.mode == GUARD_ENFORCE);
    count(ifindex, reason, is_dropped);
    say::spoofed(ifindex, reason, is_dropped);
    if is_dropped {
        TC_ACT_SHOT
    } else {
        TC_ACT_UNSPEC
    }
}

#[inline(always)]
fn count(ifindex: u32, reason: Reason, is_dropped: bool) {
    if let Some(counts) = SPOOF_ALL.get_ptr_mut(0) {
        add(counts, reason, is_dropped);
    }
    if let Some(counts) = SPOOF.get_ptr_mut(ifindex) {
        return add(counts, reason, is_dropped);
    }
    let none = SpoofCounts {
        audited: [0; REASON_PLACES],
        dropped: [0; REASON_PLACES],
    };
    // Another CPU may be faster; its entry is ours too.
    let _ = SPOOF.insert(ifindex, none, u64::from(BPF_NOEXIST));
    if let Some(counts) = SPOOF.get_ptr_mut(ifindex) {
        add(counts, reason, is_dropped);
    }
}

#[inline(always)]
fn add(counts: *mut SpoofCounts, reason: Reason, is_dropped: bool) {
    // SAFETY: an entry of this CPU; nobody else writes to it.
    let counts = unsafe { &mut *counts };
    let counts = if is_dropped {
        &mut counts.dropped
    } else {
        &mut counts.audited
    };
    counts[place(reason)] += 1;
}

/// The compiler knows that a reason is one of nine, and would leave the bound of an index out. The verifier does not:
/// the reason comes out of a map.
#[inline(always)]
fn place(reason: Reason) -> usize {
    let reason = reason as u32;
    // SAFETY: a read of a valid value; volatile, so that nothing is known of it.
    let reason = unsafe { core::ptr::read_volatile(&raw const reason) };
    reason as usize & (REASON_PLACES - 1)
}

struct OwnerMap;

impl Owners for OwnerMap {
    #[inline(always)]
    fn owner_or(&self, nobody: OwnerRow, addr: &[u8; 16]) -> OwnerRow {
        // SAFETY: the value is copied at once.
        match unsafe { OWNER.get(addr) } {
            Some(owner) => *owner,
            None => nobody,
        }
    }
}

/// A packet, of which the program can read the first part.
struct Linear {
    bytes: Bytes,
    data: usize,
    end: usize,
}

impl Linear {
    #[inline(always)]
    fn of(skb: *mut __sk_buff) -> Self {
        // SAFETY: the context is valid while the program runs.
        unsafe {
            Self {
                bytes: Bytes(skb),
                data: core::ptr::read_volatile(&raw const (*skb).data) as usize,
                end: core::ptr::read_volatile(&raw const (*skb).data_end) as usize,
            }
        }
    }
}

impl Frame for Linear {
    #[inline(always)]
    fn far<T: Wire>(&self, at: usize) -> Option<T> {
        self.bytes.far(at)
    }

    #[inline(always)]
    fn near<T: Wire>(&self, at: usize) -> Option<T> {
        let place = self.data + at;
        if place + size_of::<T>() > self.end {
            return None;
        }
        let place = place as *const T;
        // SAFETY: inside the packet. It need not be aligned for the machines that this is built for: the kernel lets
        // such loads through only where they work (`CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS`), and a load byte by byte
        // takes several times as long.
        Some(unsafe { *place })
    }
}
