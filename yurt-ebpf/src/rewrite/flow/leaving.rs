//! What leaves: answers, and what is masqueraded.
#![expect(
    clippy::cast_possible_truncation,
    reason = "offsets of ports are below their count"
)]

use super::address::Address;
use super::ending::{self, begin_again, end};
use super::head::{ACK, Head, SYN};
use super::icmp;
use super::memory::{Flows, Found, Here, Scratch, Verdict, led};
use super::parts;
use crate::abi::{FLOW_DIALLED, FLOW_IS_INSIDE, FLOW_MASQUERADED, FLOW_SERVED, Handled};
use crate::frame::ETH;
use crate::frame::ip::{Ip, Part, Side};
use crate::rewrite::Packet;

/// Ports that a masqueraded flow tries, if it cannot keep the client's: the first one is whose turn it is.
const PORT_TRIES: u32 = 8;

/// A packet that leaves by a device that leads outside or to a Pod of this node, where this node has `node` as its
/// address.
#[inline(always)]
pub fn leaving<A, P, F, H>(
    packet: &mut P,
    flows: &mut F,
    here: &H,
    scratch: &mut Scratch<A>,
    is_forwarded: bool,
    node: impl FnOnce() -> Option<A>,
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
    if ip.part == Part::Later {
        return parts::follow(packet, (&ip, Side::Source), flows, here, scratch);
    }
    let Some(head) = Head::of(packet, ip) else {
        return icmp::may_be_about_a_flow(packet, &ip);
    };
    head.key(&mut scratch.key, FLOW_SERVED);
    parts::look(&ip, Side::Source, scratch);
    let verdict = of_flow(&head, packet, flows, here, scratch, is_forwarded, node);
    parts::remember(packet, flows, here, scratch, verdict);
    verdict
}

/// A packet with ports.
#[inline(always)]
fn of_flow<A, P, F, H>(
    head: &Head,
    packet: &mut P,
    flows: &mut F,
    here: &H,
    scratch: &mut Scratch<A>,
    is_forwarded: bool,
    node: impl FnOnce() -> Option<A>,
) -> Verdict
where
    A: Address,
    P: Packet,
    F: Flows<A>,
    H: Here,
{
    let now_s = here.now_s();
    head.answer_key(&mut scratch.key);
    if let Some(Found { flow, is_opening }) = flows.find(&scratch.key) {
        if is_opening && head.is_tcp() && !flow.is_answer(head)
            || !flow.touch(head, now_s, is_opening)
        {
            return Verdict::Pass;
        }
        let takes_a_syn = head.flags & (SYN | ACK) == (SYN | ACK);
        if is_opening && takes_a_syn {
            flow.expected = head.sequence.wrapping_add(1);
        }
        let dialled = (flow.to, flow.to_port_be);
        if head.ends() || takes_a_syn && !is_opening {
            scratch.other = scratch.key;
            (scratch.key.destination, scratch.key.destination_port_be) = dialled;
            scratch.key.place = FLOW_DIALLED;
            match head.ends() {
                true => end(head, flows, scratch, (ending::Side::Backend, is_opening)),
                false => begin_again(flows, scratch),
            }
        }
        return led(head, packet, Side::Source, dialled, Handled::ToClient);
    }
    // What goes to a Pod is masqueraded where the Pod itself has sent it: else it would drop it as one with its own
    // address.
    let is_back = head.ip.source == head.ip.destination;
    if !is_forwarded || H::IS_INSIDE && !is_back {
        return Verdict::Pass;
    }
    head.key(&mut scratch.key, FLOW_SERVED);
    let Some(Found { flow, is_opening }) = flows.find(&scratch.key) else {
        return Verdict::Pass;
    };
    if !H::IS_INSIDE && flow.state & FLOW_IS_INSIDE != 0 {
        return Verdict::Pass;
    }
    // What the client says makes nothing of it answered: that is the backend's.
    if flow.is_over(head.is_tcp(), now_s) {
        return Verdict::Pass;
    }
    if u16::from_ne_bytes(flow.node_port_be) != 0 {
        let source = (flow.node, flow.node_port_be);
        return led(head, packet, Side::Source, source, Handled::ToBackend);
    }
    scratch.flow = *flow;
    let dialled = (flow.to, flow.to_port_be);
    let port_be = match node() {
        Some(node) if node.is_some() => {
            scratch.flow.node = node;
            masquerade(head, flows, here, scratch)
        }
        _ => None,
    };
    let Some(port_be) = port_be else {
        // It takes no room from others that are opening; what is sent again decides anew.
        if is_opening {
            flows.forget(&scratch.key);
            (scratch.key.destination, scratch.key.destination_port_be) = dialled;
            scratch.key.place = FLOW_DIALLED;
            flows.forget(&scratch.key);
        }
        return Verdict::Is(Handled::DropNoPort);
    };
    let source = (scratch.flow.node, port_be);
    if let Some(Found { flow, .. }) = flows.find(&scratch.key) {
        (flow.node, flow.node_port_be) = source;
    }
    led(head, packet, Side::Source, source, Handled::ToBackend)
}

/// Finds a port of this node's address (`scratch.flow.node`) that no other flow to the backend has.
///
/// Ports have their turn one after the other, for a backend that has closed a connection refuses another one from the
/// same port for a minute (`TIME_WAIT`), if its client has other sequence numbers than the one before.
#[inline(always)]
fn masquerade<A, F, H>(
    head: &Head,
    flows: &mut F,
    here: &H,
    scratch: &mut Scratch<A>,
) -> Option<[u8; 2]>
where
    A: Address,
    F: Flows<A>,
    H: Here,
{
    let now_s = here.now_s();
    let (first, count) = here.ports();
    scratch.flow.to = scratch.key.source;
    scratch.flow.to_port_be = head.source_port_be;
    head.answer_key(&mut scratch.other);
    scratch.other.source = scratch.key.destination;
    scratch.other.destination = scratch.flow.node;
    scratch.other.place = FLOW_MASQUERADED;
    let count = u32::from(count);
    let mut offset = u32::from(u16::from_be_bytes(head.source_port_be).wrapping_sub(first));
    // In a map's memory, of which the verifier knows nothing: it would walk the loop for each value.
    scratch.next = here.turn().checked_rem(count).unwrap_or(0);
    // Those behind it are far from each other, for ports that are taken may lie in heaps, and begin with the one that
    // had its turn first. Of a small range it is every port.
    let apart = (count / PORT_TRIES).max(1);
    for _ in 0..=PORT_TRIES {
        // The client's own is not worth that, if another client has had it.
        let is_own = offset < count;
        if !is_own {
            offset = scratch.next;
            scratch.next = match offset + apart {
                next if next < count => next,
                next => next.wrapping_sub(count),
            };
        }
        let port_be = first.wrapping_add(offset as u16).to_be_bytes();
        scratch.other.destination_port_be = port_be;
        let is_old = flows.find(&scratch.other).map(|Found { flow, .. }| {
            flow.leads_to(&scratch.flow) || !is_own && flow.gives_way(head.is_tcp(), now_s)
        });
        if is_old == Some(true) {
            flows.forget(&scratch.other);
        }
        // Another CPU may be faster.
        if is_old != Some(false) && flows.open_new(&scratch.other, &scratch.flow) {
            return Some(port_be);
        }
        offset = u32::MAX;
    }
    None
}
