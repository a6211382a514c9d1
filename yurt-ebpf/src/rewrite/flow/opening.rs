//! What may open a flow: the table decides, and the decision is remembered.

use core::hint::black_box;

use super::address::Address;
use super::head::Head;
use super::memory::{Flows, Found, Here, Known, Memory, Scratch, Verdict, led};
use super::parts;
use crate::abi::{
    Counter, FLOW_DIALLED, FLOW_IS_ANSWERED, FLOW_IS_CLOSED, FLOW_IS_INSIDE, FLOW_MASQUERADED,
    FLOW_SERVED, Flow, FlowKey, Handled, NetnsRow,
};
use crate::frame::ETH;
use crate::frame::ip::{Ip, Side};
use crate::rewrite::Packet;
use crate::select::{Dialer, Resolved, Tables, next_slot, random_slot};

/// Backends that a new flow tries, one after the other, where the client has other flows to the first ones from the
/// same port.
const BACKEND_TRIES: u32 = 3;

/// A packet that may open a flow, as it came in: a SYN, or a datagram that is of no flow. What another program has
/// found out of it is not needed.
#[inline(always)]
pub fn opening<A, P, T, F, H>(
    packet: &mut P,
    tables: &T,
    flows: &mut F,
    here: &H,
    scratch: &mut Scratch<A>,
) -> Verdict
where
    A: Address,
    P: Packet,
    T: Tables,
    F: Flows<A> + Memory<A>,
    H: Here,
{
    let Some(head) = Ip::read(packet, ETH, A::IS_V6).and_then(|ip| Head::of(packet, ip)) else {
        return Verdict::Pass;
    };
    if A::of(head.ip.destination).is_of_the_link() {
        return Verdict::Pass;
    }
    head.key(&mut scratch.key, FLOW_DIALLED);
    scratch.known = known(&head, flows, here, scratch);
    // The verifier forgets what it knows of a value in a map, and so has a third of the paths to walk.
    let known = *black_box(&scratch.known);
    parts::look(&head.ip, Side::Destination, scratch);
    let verdict = begin(&head, packet, tables, flows, here, scratch, known);
    parts::remember(packet, flows, here, scratch, verdict);
    verdict
}

/// What is known of the flow whose key is there; its backend is then, too.
#[inline(always)]
fn known<A, F, H>(head: &Head, flows: &mut F, here: &H, scratch: &mut Scratch<A>) -> Known
where
    A: Address,
    F: Flows<A>,
    H: Here,
{
    let Some(Found { flow, .. }) = flows.find(&scratch.key) else {
        return Known::Nothing;
    };
    scratch.backend = flow.to.backend(flow.to_port_be);
    if !head.is_tcp() {
        // Another datagram may have opened it in this moment.
        return match flow.is_over(false, here.now_s()) {
            true => Known::Over,
            false => Known::Opening,
        };
    }
    if flow.gives_way(true, here.now_s()) {
        return Known::Over;
    }
    match flow.state & FLOW_IS_ANSWERED {
        0 => Known::Opening,
        _ => Known::Up,
    }
}

/// Has the table decide on a packet, whose key is there, and remembers that.
#[inline(always)]
fn begin<A, P, T, F, H>(
    head: &Head,
    packet: &mut P,
    tables: &T,
    flows: &mut F,
    here: &H,
    scratch: &mut Scratch<A>,
    known: Known,
) -> Verdict
where
    A: Address,
    P: Packet,
    T: Tables,
    F: Flows<A> + Memory<A>,
    H: Here,
{
    let (client, client_id) = scratch.key.source.client();
    let dialer = Sender { client, here };
    let (port_be, protocol) = (head.destination_port_be, head.ip.protocol);
    let dialled = scratch.key.destination;
    let resolved = match H::IS_INSIDE {
        true => dialled.resolve::<true, _, _>(tables, &dialer, port_be, protocol),
        false => dialled.resolve::<false, _, _>(tables, &dialer, port_be, protocol),
    };
    let (word, service) = match resolved {
        Resolved::Pass => return direct(head, flows, here, scratch),
        Resolved::Refuse(why) => return Verdict::Is(refused(why)),
        Resolved::Service(word, service) => (word, service),
    };
    let now_s = here.now_s();
    let affinity = tables.affinity(service);
    let is_known = matches!(known, Known::Opening | Known::Up)
        || !affinity.is_none() && flows.recall(client_id, affinity, &mut scratch.backend);
    let mut is_kept = is_known && A::is_in(tables, word, &scratch.backend);
    scratch.flow = Flow {
        to: dialled,
        node: A::of((0, 0)),
        to_port_be: port_be,
        node_port_be: [0; 2],
        ifindex: here.ifindex(),
        service,
        state: if H::IS_INSIDE { FLOW_IS_INSIDE } else { 0 },
        last_s: now_s,
        expected: head.sequence.wrapping_add(1),
    };
    scratch.other = scratch.key;
    scratch.other.place = FLOW_SERVED;
    scratch.next = random_slot(&dialer, word);
    let mut tries = 0..BACKEND_TRIES;
    loop {
        if tries.next().is_none() {
            return Verdict::Is(Handled::DropClash);
        }
        if !is_kept {
            if !A::read(tables, scratch.next, &mut scratch.backend) {
                return Verdict::Is(Handled::DropInconsistent);
            }
            scratch.next = next_slot(scratch.next, word);
        }
        let was_kept = core::mem::replace(&mut is_kept, false);
        (scratch.other.destination, scratch.other.destination_port_be) =
            A::of_backend(&scratch.backend);
        // What a port sends to itself could not be told from its answers.
        if H::IS_INSIDE && is_to_itself(&scratch.other) {
            continue;
        }
        let Some(Found { flow, .. }) = flows.find(&scratch.other) else {
            break;
        };
        let is_its = flow.leads_to(&scratch.flow);
        if is_its && was_kept && known == Known::Up && flow.state & FLOW_IS_CLOSED == 0 {
            let backend = A::of_backend(&scratch.backend);
            return led(head, packet, Side::Destination, backend, Handled::ToBackend);
        }
        if is_its || flow.gives_way(head.is_tcp(), now_s) {
            // What comes late of the one before is not mixed up with this one.
            (scratch.key.destination, scratch.key.destination_port_be) = (flow.to, flow.to_port_be);
            flows.forget(&scratch.key);
            flows.forget(&scratch.other);
            break;
        }
    }
    (scratch.key.destination, scratch.key.destination_port_be) = (scratch.flow.to, port_be);
    let backend = A::of_backend(&scratch.backend);
    if known != Known::Nothing {
        forget_before(flows, scratch);
    }
    // Answers find their entry before anything is asked.
    if !flows.open(&scratch.other, &scratch.flow) {
        return Verdict::Is(Handled::DropInconsistent);
    }
    (scratch.flow.to, scratch.flow.to_port_be) = backend;
    if !flows.open(&scratch.key, &scratch.flow) {
        return Verdict::Is(Handled::DropInconsistent);
    }
    if !affinity.is_none() {
        flows.remember(client_id, affinity, &scratch.backend);
    }
    led(head, packet, Side::Destination, backend, Handled::NewFlow)
}

/// Forgets the flow that had the key before, in all of its entries: what its backend still sends, if it is another one,
/// is not of the flow that begins.
#[inline(always)]
fn forget_before<A: Address, F: Flows<A>>(flows: &mut F, scratch: &mut Scratch<A>) {
    if let Some(Found { flow, .. }) = flows.find(&scratch.key) {
        scratch.served = *flow;
        flows.forget(&scratch.key);
        scratch.key.destination = scratch.served.to;
        scratch.key.destination_port_be = scratch.served.to_port_be;
        scratch.key.place = FLOW_SERVED;
        // By now the client may have come to that backend by another frontend.
        if let Some(Found { flow, .. }) = flows.find(&scratch.key)
            && flow.leads_to(&scratch.flow)
        {
            scratch.served = *flow;
            flows.forget(&scratch.key);
            scratch.key.source = scratch.key.destination;
            scratch.key.source_port_be = scratch.key.destination_port_be;
            scratch.key.destination = scratch.served.node;
            scratch.key.destination_port_be = scratch.served.node_port_be;
            scratch.key.place = FLOW_MASQUERADED;
            // And the port may stand for another client.
            if let Some(Found { flow, .. }) = flows.find(&scratch.key)
                && flow.to == scratch.other.source
                && u16::from_ne_bytes(flow.to_port_be)
                    == u16::from_ne_bytes(scratch.other.source_port_be)
            {
                flows.forget(&scratch.key);
            }
        }
    }
    scratch.key = scratch.other;
    scratch.key.destination = scratch.flow.to;
    scratch.key.destination_port_be = scratch.flow.to_port_be;
    scratch.key.place = FLOW_DIALLED;
}

/// Whether a packet goes where it comes from.
#[inline(always)]
fn is_to_itself<A: Address>(key: &FlowKey<A>) -> bool {
    key.source == key.destination
        && u16::from_ne_bytes(key.source_port_be) == u16::from_ne_bytes(key.destination_port_be)
}

/// A packet to no Service that may open a flow, perhaps to a backend itself. Its answers could not be told from those
/// that the client gets through a Service from the same port: what is up stays, whoever sends this, and of all else the
/// last one counts.
#[inline(always)]
fn direct<A, F, H>(head: &Head, flows: &mut F, here: &H, scratch: &mut Scratch<A>) -> Verdict
where
    A: Address,
    F: Flows<A>,
    H: Here,
{
    scratch.key.place = FLOW_SERVED;
    let Some(Found { flow, .. }) = flows.find(&scratch.key) else {
        return Verdict::Pass;
    };
    let is_up = flow.state & FLOW_IS_ANSWERED != 0;
    if is_up && !flow.gives_way(head.is_tcp(), here.now_s()) {
        return Verdict::Is(Handled::DropClash);
    }
    let dialled = (flow.to, flow.to_port_be);
    flows.forget(&scratch.key);
    (scratch.key.destination, scratch.key.destination_port_be) = dialled;
    scratch.key.place = FLOW_DIALLED;
    flows.forget(&scratch.key);
    Verdict::Pass
}

#[inline(always)]
fn refused(why: Counter) -> Handled {
    match why {
        Counter::RefuseNoEndpoint => Handled::RefuseNoEndpoint,
        Counter::RefuseUnknownPort => Handled::RefuseUnknownPort,
        Counter::RefuseUnallocated => Handled::RefuseUnallocated,
        Counter::DropNoLocalEndpoint => Handled::DropNoLocalEndpoint,
        Counter::DropSourceRange => Handled::DropSourceRange,
        _ => Handled::DropInconsistent,
    }
}

/// Who has sent a packet, for the table.
struct Sender<'a, H> {
    client: NetnsRow,
    here: &'a H,
}

impl<H: Here> Dialer for Sender<'_, H> {
    #[inline(always)]
    fn random(&self) -> u32 {
        self.here.random()
    }

    #[inline(always)]
    fn is_in_node_netns(&self) -> bool {
        false
    }

    #[inline(always)]
    fn client(&self) -> Option<NetnsRow> {
        Some(self.client)
    }
}
