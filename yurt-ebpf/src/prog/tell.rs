//! Tells whoever listens what is refused and dropped. While nobody does, a refusal costs one read of an array more, and
//! everything else nothing.
//!
//! An event that finds no room, or is one too many of its kind, is counted as lost. Nobody is woken by one.
#![expect(
    clippy::cast_possible_truncation,
    reason = "reasons and processes fit into their fields"
)]

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::generated::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns,
};

use yurt_ebpf::abi::{
    Counter, EVENT_FORM, EVENT_OF_PACKET, EVENT_OF_SOCKET, Event, EventShare, FlowKey, mapped,
    words,
};
use yurt_ebpf::rewrite::flow::Address;

use super::sock::Sock;
use crate::maps::event::{EVENTS, SHARES, WATCH};

/// Until when somebody listens: nanoseconds of `CLOCK_MONOTONIC`; 0 once he has ended.
#[inline(always)]
fn heard_until() -> u64 {
    WATCH.get_ptr(0).map_or(0, |until| {
        // SAFETY: a value of an array, which is never freed; an aligned word, loaded at once.
        unsafe { core::ptr::read_volatile(until) }
    })
}

/// What time it is, if somebody listens.
#[inline(always)]
fn heard_at() -> Option<u64> {
    let until = heard_until();
    if until == 0 {
        return None;
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    (now < until).then_some(now)
}

impl Sock<'_> {
    /// It is refused what its context says, of which nothing has changed yet.
    #[inline(always)]
    pub(super) fn tell_refused<const IS_V6: bool>(&self, reason: Counter) {
        if heard_until() != 0 {
            of_socket::<IS_V6>(self, reason as u32);
        }
    }
}

/// A subprogram, for the caller's stack is full. It reads again what the caller knows.
#[inline(never)]
fn of_socket<const IS_V6: bool>(sock: &Sock<'_>, why: u32) {
    let Some(now) = heard_at() else {
        return;
    };
    let (netns, port_be) = (sock.netns_cookie(), sock.port_be());
    let dialled = match IS_V6 {
        true => words(&sock.addr6()),
        false => words(&mapped(sock.addr4())),
    };
    tell(now, EventShare::place(netns, dialled.1, port_be), |event| {
        // SAFETY: the ring's memory, which is the program's own until it is submitted; aligned to 8 bytes.
        unsafe {
            (&raw mut (*event).netns).write(netns);
            write_address(&raw mut (*event).client, (0, 0));
            write_address(&raw mut (*event).dialled, dialled);
            // Where it fails, it has written zeros.
            bpf_get_current_comm((&raw mut (*event).comm).cast(), 16);
            (&raw mut (*event).pid).write((bpf_get_current_pid_tgid() >> 32) as u32);
            (&raw mut (*event).ifindex).write(0);
            (&raw mut (*event).client_port_be).write([0; 2]);
            (&raw mut (*event).dialled_port_be).write(port_be);
            (&raw mut (*event).path).write(EVENT_OF_SOCKET);
            (&raw mut (*event).reason).write(why as u8);
            (&raw mut (*event).protocol).write(sock.protocol() as u8);
        }
    });
}

/// A packet that came in by a device, or leaves by it, is refused or dropped. `key`: who has sent it and where to, if
/// that was read.
#[inline(always)]
pub(super) fn dropped<A: Address>(key: Option<&FlowKey<A>>, ifindex: u32, what: u32) {
    if let Some(now) = heard_at() {
        of_packet(key, now, ifindex, what);
    }
}

#[inline(always)]
fn of_packet<A: Address>(key: Option<&FlowKey<A>>, now: u64, ifindex: u32, what: u32) {
    let (client, dialled) = key.map_or(((0, 0), (0, 0)), |key| {
        (key.source.words(), key.destination.words())
    });
    let (client_port_be, dialled_port_be) = key.map_or(([0; 2], [0; 2]), |key| {
        (key.source_port_be, key.destination_port_be)
    });
    let protocol = key.map_or(0, |key| key.protocol);
    let place = EventShare::place(client.1, dialled.1, dialled_port_be);
    tell(now, place, |event| {
        // SAFETY: as above.
        unsafe {
            (&raw mut (*event).netns).write(0);
            write_address(&raw mut (*event).client, client);
            write_address(&raw mut (*event).dialled, dialled);
            write_address(&raw mut (*event).comm, (0, 0));
            (&raw mut (*event).pid).write(0);
            (&raw mut (*event).ifindex).write(ifindex);
            (&raw mut (*event).client_port_be).write(client_port_be);
            (&raw mut (*event).dialled_port_be).write(dialled_port_be);
            (&raw mut (*event).path).write(EVENT_OF_PACKET);
            (&raw mut (*event).reason).write(what as u8);
            (&raw mut (*event).protocol).write(protocol);
        }
    });
}

/// Writes an event, if its share and the ring have room for it.
#[inline(always)]
fn tell(now: u64, place: u32, write: impl FnOnce(*mut Event)) {
    let Some(share) = SHARES.get_ptr_mut(place) else {
        return;
    };
    // SAFETY: this CPU's entry. Another program may come in between, and a count be off by one.
    let share = unsafe { &mut *share };
    if !share.take(now) {
        return;
    }
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        share.lose();
        return;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: as in `of_socket`.
    unsafe {
        (&raw mut (*event).at_ns).write(now);
        (&raw mut (*event).form).write(EVENT_FORM);
    }
    write(event);
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// # Safety
///
/// `to` is valid for writes, and aligned to 8 bytes.
#[inline(always)]
unsafe fn write_address(to: *mut [u8; 16], (high, low): (u64, u64)) {
    let to = to.cast::<u64>();
    // SAFETY: as the caller promises. Volatile, so that zeros are not left to `memset`, a subprogram with a stack.
    unsafe {
        to.write_volatile(high);
        to.add(1).write_volatile(low);
    }
}
