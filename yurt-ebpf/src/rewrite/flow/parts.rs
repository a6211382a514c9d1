//! Fragments of a datagram: only the first one has ports, and the others follow it.
//!
//! What was done to the first one's address is remembered for as long as hosts wait for the others, among the flows
//! that are opening. One that comes before the first, or much later, goes on as it is: nothing is held back. Where
//! several clients are masqueraded, two that use one identification at the same moment could be mixed up; checksums
//! tell, as they do of a host that counts around.
#![expect(
    clippy::cast_possible_truncation,
    reason = "offsets in packets are small"
)]

use core::hint::black_box;

use super::address::Address;
use super::memory::{Flows, Found, Here, Scratch, Verdict};
use crate::abi::{
    FLOW_IS_ANSWERED, FLOW_PART_ARRIVING, FLOW_PART_LEAVING, FLOW_PART_S, FlowKey, Handled,
};
use crate::frame::ip::{Ip, Part, Side};
use crate::rewrite::{Packet, rewrite};

/// Makes the key of a packet, of which the addresses are used, that of all of its fragments.
#[inline(always)]
fn make_common<A: Address>(key: &mut FlowKey<A>, ip: &Ip, side: Side) {
    let [a, b, c, d] = ip.id;
    (key.source_port_be, key.destination_port_be) = ([a, b], [c, d]);
    // With IPv6 it is in the first one alone (RFC 8200).
    key.protocol = if A::IS_V6 { 0 } else { ip.protocol };
    key.place = match side {
        Side::Destination => FLOW_PART_ARRIVING,
        Side::Source => FLOW_PART_LEAVING,
    };
}

/// Notes whether a packet is a first fragment, before it changes. Its addresses are in `scratch.key`: to copy them from
/// there takes no room on a stack that is nearly full.
#[inline(always)]
pub(super) fn look<A: Address>(ip: &Ip, side: Side, scratch: &mut Scratch<A>) {
    scratch.first_part_at = 0;
    if ip.part == Part::First {
        scratch.part = scratch.key;
        make_common(&mut scratch.part, ip, side);
        scratch.first_part_at = ip.address_at(side) as u32;
    }
}

/// Remembers for later fragments what was done to a first one, which was looked at before.
#[inline(always)]
pub(super) fn remember<A, P, F, H>(
    packet: &P,
    flows: &mut F,
    here: &H,
    scratch: &mut Scratch<A>,
    verdict: Verdict,
) where
    A: Address,
    P: Packet,
    F: Flows<A>,
    H: Here,
{
    // Compiler and verifier forget here what they know of it: else both have all that came before twice.
    let at = *black_box(&scratch.first_part_at);
    if at == 0 {
        return;
    }
    let state = match verdict {
        Verdict::Is(Handled::ToClient) => FLOW_IS_ANSWERED,
        Verdict::Is(Handled::NewFlow | Handled::ToBackend) => 0,
        Verdict::Opens => return,
        // Those of an earlier packet, if any, are not this one's.
        _ => return flows.forget(&scratch.part),
    };
    let Some(to) = packet.far(at as usize) else {
        return;
    };
    // Of the other fields nobody asks.
    scratch.flow.to = to;
    scratch.flow.state = state;
    scratch.flow.last_s = here.now_s();
    // Where there is no room, the packet does not come together.
    flows.open(&scratch.part, &scratch.flow);
}

/// Has a later fragment follow the first one.
#[inline(always)]
pub(super) fn follow<A, P, F, H>(
    packet: &mut P,
    (ip, side): (&Ip, Side),
    flows: &mut F,
    here: &H,
    scratch: &mut Scratch<A>,
) -> Verdict
where
    A: Address,
    P: Packet,
    F: Flows<A>,
    H: Here,
{
    scratch.part.source = A::of(ip.source);
    scratch.part.destination = A::of(ip.destination);
    make_common(&mut scratch.part, ip, side);
    let Some(Found { flow, .. }) = flows.find(&scratch.part) else {
        return Verdict::Pass;
    };
    if here.now_s().wrapping_sub(flow.last_s) > FLOW_PART_S {
        return Verdict::Pass;
    }
    let as_what = match flow.state & FLOW_IS_ANSWERED {
        0 => Handled::ToBackend,
        _ => Handled::ToClient,
    };
    match rewrite(packet, ip, side, flow.to.words()) {
        Some(()) => Verdict::Is(as_what),
        None => Verdict::Is(Handled::DropUnchanged),
    }
}
