//! What comes in, and is of a flow that is known.

use super::address::Address;
use super::ending::{self, end};
use super::head::Head;
use super::icmp;
use super::memory::{Flows, Found, Here, Scratch, Verdict, led};
use super::parts;
use crate::abi::{FLOW_DIALLED, FLOW_IS_ANSWERED, FLOW_IS_CLOSED, FLOW_MASQUERADED, Handled};
use crate::frame::ETH;
use crate::frame::ip::{Ip, Part, Side};
use crate::rewrite::Packet;

/// So far may a client's first acknowledgement be ahead: what the backend has sent since it said SYN.
const WINDOW: u32 = 1 << 20;

/// A packet that comes in by a device that leads outside or to a Pod of this node.
///
/// Flows that are known are served, and fragments that follow a first one; the rest is passed, or said to be
/// [`Verdict::Opens`].
#[inline(always)]
pub fn arriving<A, P, F, H>(
    packet: &mut P,
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
    let Some(ip) = Ip::read(packet, ETH, A::IS_V6) else {
        return Verdict::Pass;
    };
    // Of any protocol, and in every fragment.
    if A::of(ip.destination).is_loopback() || A::of(ip.source).is_loopback() {
        scratch.point_at_addresses(&ip);
        return Verdict::Is(Handled::DropLoopback);
    }
    if ip.part == Part::Later {
        return parts::follow(packet, (&ip, Side::Destination), flows, here, scratch);
    }
    let Some(head) = Head::of(packet, ip) else {
        return icmp::may_be_about_a_flow(packet, &ip);
    };
    head.key(&mut scratch.key, FLOW_MASQUERADED);
    parts::look(&ip, Side::Destination, scratch);
    let verdict = of_flow(&head, packet, flows, here, scratch);
    parts::remember(packet, flows, here, scratch, verdict);
    verdict
}

/// A packet with ports, whose key is there.
#[inline(always)]
fn of_flow<A, P, F, H>(
    head: &Head,
    packet: &mut P,
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
    let now_s = here.now_s();
    let (first, count) = here.ports();
    let port = u16::from_be_bytes(head.destination_port_be);
    if port.wrapping_sub(first) < count
        && let Some(Found { flow, is_opening }) = flows.find(&scratch.key)
        && flow.touch(head, now_s, is_opening)
    {
        let client = (flow.to, flow.to_port_be);
        return led(head, packet, Side::Destination, client, Handled::ToClient);
    }
    // A flow may be there already, which this packet may replace.
    if head.opens() {
        return Verdict::Opens;
    }
    scratch.key.place = FLOW_DIALLED;
    if let Some(Found { flow, is_opening }) = flows.find(&scratch.key) {
        let backend = (flow.to, flow.to_port_be);
        let is_later = flow.last_s != now_s;
        let mut is_alive = flow.touch(head, now_s, is_opening);
        scratch.flow = *flow;
        if !head.is_tcp() && is_later {
            is_alive = keep_alive(flows, scratch, is_alive, now_s);
        }
        if is_alive {
            if head.ends() {
                scratch.point_at_served();
                end(head, flows, scratch, (ending::Side::Client, is_opening));
            } else if is_opening && scratch.flow.state & FLOW_IS_CLOSED == 0 {
                settle(head, flows, scratch);
            }
            return led(head, packet, Side::Destination, backend, Handled::ToBackend);
        }
    }
    match head.is_tcp() {
        true => Verdict::Pass,
        false => Verdict::Opens,
    }
}

/// The client has answered in a flow that is opening, of which `scratch.key` and `scratch.flow` are what it dialled:
/// once the backend has answered before, it is up. By TCP the client must know what the backend said, so that nobody
/// sends both sides' packets.
#[inline(always)]
fn settle<A: Address, F: Flows<A>>(head: &Head, flows: &mut F, scratch: &mut Scratch<A>) {
    scratch.point_at_served();
    let Some(Found { flow, .. }) = flows.find(&scratch.other) else {
        return;
    };
    let is_known = !head.is_tcp() || head.acknowledged.wrapping_sub(flow.expected) < WINDOW;
    if flow.state & FLOW_IS_ANSWERED == 0 || !is_known || !flow.answers(&scratch.key) {
        return;
    }
    scratch.served = *flow;
    if head.is_tcp() {
        scratch.served.expected = head.sequence;
        scratch.flow.expected = head.acknowledged;
    }
    if !flows.settle(&scratch.other, &scratch.served) || !flows.settle(&scratch.key, &scratch.flow)
    {
        return;
    }
    if scratch.point_at_masqueraded(scratch.served.node, scratch.served.node_port_be)
        && let Some(Found { flow, .. }) = flows.find(&scratch.other)
    {
        scratch.served = *flow;
        flows.settle(&scratch.other, &scratch.served);
    }
}

/// A flow of datagrams lives for as long as anybody sends: once a second, a packet of the client is told to the entries
/// for its answers, and is believed by what they have heard. `scratch.key` and `scratch.flow` are what it dialled.
/// False where the flow is over.
#[inline(always)]
fn keep_alive<A: Address, F: Flows<A>>(
    flows: &mut F,
    scratch: &mut Scratch<A>,
    is_alive: bool,
    now_s: u32,
) -> bool {
    scratch.point_at_served();
    let Some(Found { flow, .. }) = flows.find(&scratch.other) else {
        return false;
    };
    if !flow.answers(&scratch.key) || !is_alive && flow.is_over(false, now_s) {
        return false;
    }
    flow.last_s = now_s;
    let (node, node_port_be) = (flow.node, flow.node_port_be);
    if scratch.point_at_masqueraded(node, node_port_be)
        && let Some(Found { flow, .. }) = flows.find(&scratch.other)
    {
        flow.last_s = now_s;
    }
    if !is_alive && let Some(Found { flow, .. }) = flows.find(&scratch.key) {
        flow.last_s = now_s;
    }
    true
}
