//! When a connection is closed.

use super::address::Address;
use super::head::{Head, RST};
use super::memory::{Flows, Found, Scratch};
use crate::abi::{FLOW_IS_CLOSED, FLOW_IS_CLOSING};

/// So far may a RST be ahead of what the other side has acknowledged: what is on its way.
const WINDOW: u32 = 1 << 16;

/// Who has sent a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The client.
    Client,
    /// Its backend.
    Backend,
}

/// A FIN or RST of a flow, of which `scratch.key` is what the client dialled, and `scratch.other` the entry for its
/// answers. Where both sides have said FIN, or the RST is one that its receiver believes (RFC 5961), the connection is
/// closed, and all of its entries say so.
///
/// A side that has said FIN may be sent to for hours. A RST that is not believed changes nothing: a real one, of a side
/// that is far ahead of the other, leaves entries behind that nobody needs, until others need the room.
#[inline(always)]
pub(super) fn end<A, F>(
    head: &Head,
    flows: &mut F,
    scratch: &mut Scratch<A>,
    (from, is_opening): (Side, bool),
) where
    A: Address,
    F: Flows<A>,
{
    let Some(Found { flow, .. }) = flows.find(&scratch.other) else {
        return;
    };
    scratch.served = *flow;
    let Some(Found { flow, .. }) = flows.find(&scratch.key) else {
        return;
    };
    scratch.flow = *flow;
    if !scratch.served.answers(&scratch.key) {
        return;
    }
    let expected = match from {
        Side::Client => scratch.served.expected,
        Side::Backend => scratch.flow.expected,
    };
    let is_closed = match head.flags & RST {
        0 => scratch.served.state & scratch.flow.state & FLOW_IS_CLOSING != 0,
        _ => is_opening || head.sequence.wrapping_sub(expected) < WINDOW,
    };
    if !is_closed {
        return;
    }
    scratch.flow.state |= FLOW_IS_CLOSED;
    flows.retire(&scratch.key, &scratch.flow);
    scratch.served.state |= FLOW_IS_CLOSED;
    flows.retire(&scratch.other, &scratch.served);
    let (node, node_port_be) = (scratch.served.node, scratch.served.node_port_be);
    scratch.flow.to = scratch.other.destination;
    scratch.flow.to_port_be = scratch.other.destination_port_be;
    if scratch.point_at_masqueraded(node, node_port_be)
        && let Some(Found { flow, .. }) = flows.find(&scratch.other)
    {
        scratch.served = *flow;
        scratch.served.state |= FLOW_IS_CLOSED;
        flows.retire(&scratch.other, &scratch.served);
    }
}

/// The backend of a flow that is up takes a SYN of the client: another connection begins, and what was said of the end
/// of the one before says nothing of this one. `scratch.key` is what the client dialled, and `scratch.other` the entry
/// for its answers.
#[inline(always)]
pub(super) fn begin_again<A, F>(flows: &mut F, scratch: &mut Scratch<A>)
where
    A: Address,
    F: Flows<A>,
{
    if let Some(Found { flow, .. }) = flows.find(&scratch.other) {
        flow.state &= !FLOW_IS_CLOSING;
    }
    if let Some(Found { flow, .. }) = flows.find(&scratch.key) {
        flow.state &= !FLOW_IS_CLOSING;
    }
}
