//! What a packet of a client outside gets: the decision of the packet path, without the hook.
//!
//! Pure and `no_std`. A packet passes a device twice on its way through the node, or once where it ends or begins here:
//! **where it comes in, its destination changes; where it leaves, its source does.** So no packet ever comes up into the stack with an
//! address of this node as its source, which the stack would take for a martian, and routing sees real addresses.
//!
//! | packet of a flow | looked up as | what changes |
//! |---|---|---|
//! | client to the address that it dialled, coming in | [`FLOW_DIALLED`] | destination: the backend |
//! | client to backend, leaving | [`FLOW_SERVED`] | source: this node's address and a port of its own (masqueraded) |
//! | backend to this node's address, coming in | [`FLOW_MASQUERADED`] | destination: the client |
//! | backend to client, leaving | [`FLOW_SERVED`] | source: the address that the client dialled |
//!
//! A flow whose backend is on this node never leaves on its way there, so it is not masqueraded and has two entries; others have
//! three. The table is asked once, by the first packet: an entry is the whole translation.
//!
//! A flow is opening until the backend has answered and the client has answered that, and its entries are in a smaller map: a flood
//! of first packets pushes out none that is up. A SYN decides anew once its flow is closing, or its backend is not in the set any more;
//! else it goes to the backend that the flow has, which answers a stray one by itself (RFC 5961).

mod address;
mod head;

pub use self::address::Address;
use self::head::{ACK, FIN, Head, RST, SYN};
use super::Packet;
use crate::abi::{
    Affinity, Counter, FLOW_CLOSED_S, FLOW_DIALLED, FLOW_IS_ANSWERED, FLOW_IS_CLOSING,
    FLOW_MASQUERADED, FLOW_QUIET_S, FLOW_SERVED, Flow, FlowKey, Handled, NetnsRow,
};
use crate::frame::ETH;
use crate::frame::ip::{Ip, Side};
use crate::select::{Dialer, Resolved, Tables, random_slot};

/// Backends that a new flow tries where the client has another flow to the first ones from the same port.
const BACKEND_TRIES: u32 = 3;
/// Ports that a masqueraded flow tries.
const PORT_TRIES: u32 = 8;
/// So far may a client's first acknowledgement be ahead: what the backend has sent since it said SYN.
const WINDOW: u32 = 1 << 20;

/// The maps of flows: of those that are up, and of those that are opening. The latter are few, and whoever opens many pushes out no
/// flow that is up.
pub trait Flows<A> {
    /// An entry of either; it may be written to.
    fn find(&mut self, key: &FlowKey<A>) -> Option<Found<'_, A>>;
    /// Puts an entry among those that are opening, in place of what is there; false where there is no room.
    fn open(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool;
    /// The same, if nothing is there.
    fn open_new(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool;
    /// Puts an entry among those that are up, and takes it out of those that are opening.
    fn settle(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool;
    /// Takes an entry out of both.
    fn forget(&mut self, key: &FlowKey<A>);
}

/// An entry that was found.
pub struct Found<'a, A> {
    /// The entry.
    pub flow: &'a mut Flow<A>,
    /// It is among those that are opening.
    pub is_opening: bool,
}

/// The memory of affinity.
pub trait Memory<A: Address> {
    /// Reads the backend that a client had; false where there is none, or it counts no more.
    fn recall(&mut self, client: u64, affinity: Affinity, backend: &mut A::Backend) -> bool;
    /// Remembers it.
    fn remember(&mut self, client: u64, affinity: Affinity, backend: &A::Backend);
}

/// Where and when a packet is looked at.
pub trait Here {
    /// 32 random bits.
    fn random(&self) -> u32;
    /// Seconds of `CLOCK_MONOTONIC`.
    fn now_s(&self) -> u32;
    /// The device.
    fn ifindex(&self) -> u32;
    /// First port to masquerade with, and how many there are.
    fn ports(&self) -> (u16, u16);
}

/// What is done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on unchanged.
    Pass,
    /// It goes on, or is refused or dropped as that says.
    Is(Handled),
}

/// What is looked up, in memory of its own: with IPv6 it is more than a stack has room for.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Scratch<A: Address> {
    key: FlowKey<A>,
    other: FlowKey<A>,
    flow: Flow<A>,
    served: Flow<A>,
    backend: A::Backend,
}

impl<A: Address> Scratch<A> {
    /// `other` is the entry for the answers to `key`, which leads to `flow`.
    #[inline(always)]
    fn point_at_served(&mut self) {
        self.other = self.key;
        self.other.destination = self.flow.to;
        self.other.destination_port_be = self.flow.to_port_be;
        self.other.place = FLOW_SERVED;
    }

    /// `other`, which was that, is the entry for the answers to this node's address; false where there is none.
    #[inline(always)]
    fn point_at_masqueraded(&mut self, node: A, node_port_be: [u8; 2]) -> bool {
        self.other.source = self.flow.to;
        self.other.source_port_be = self.flow.to_port_be;
        self.other.destination = node;
        self.other.destination_port_be = node_port_be;
        self.other.place = FLOW_MASQUERADED;
        u16::from_ne_bytes(node_port_be) != 0
    }
}

impl<A: Address> Flow<A> {
    /// Has it know of a packet after the first one; false where it is over, and the packet is not its.
    #[inline(always)]
    fn touch(&mut self, head: &Head, now_s: u32) -> bool {
        if self.is_over(head.is_tcp(), now_s) {
            return false;
        }
        // A SYN that is sent again says nothing new.
        let mut new = self.state;
        if !head.opens() {
            new |= FLOW_IS_ANSWERED;
        }
        if head.flags & (FIN | RST) != 0 {
            new |= FLOW_IS_CLOSING;
        }
        // A store for every packet would have all processors fight for the line.
        if self.last_s != now_s {
            self.last_s = now_s;
        }
        if new != self.state {
            self.state = new;
        }
        true
    }

    /// Whether it changes packets to the same as another one.
    #[inline(always)]
    fn leads_to(&self, other: &Self) -> bool {
        self.to == other.to
            && u16::from_ne_bytes(self.to_port_be) == u16::from_ne_bytes(other.to_port_be)
    }

    /// Whether its answers are those to what was dialled, and not to another frontend that has led the client to the same backend since.
    #[inline(always)]
    fn answers(&self, dialled: &FlowKey<A>) -> bool {
        self.to == dialled.destination
            && u16::from_ne_bytes(self.to_port_be)
                == u16::from_ne_bytes(dialled.destination_port_be)
    }

    /// Whether it counts no more, and another flow may have its key.
    #[inline(always)]
    fn is_over(&self, is_tcp: bool, now_s: u32) -> bool {
        let quiet = now_s.wrapping_sub(self.last_s);
        if is_tcp {
            self.state & FLOW_IS_CLOSING != 0 && quiet > FLOW_CLOSED_S
        } else {
            quiet > FLOW_QUIET_S
        }
    }
}

/// What is known of the flow that a packet seems to open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Nothing.
    Nothing,
    /// It is over, or closing.
    Over,
    /// Nobody has answered yet: it is the same packet once more.
    Opening,
    /// It is up. The backend answers a SYN that comes all the same, from long ago or from somebody else (RFC 5961): it must not move
    /// the flow to another one. Where its backend is not in the set any more, it is decided anew.
    Up,
}

/// A packet that comes in by a device that leads outside.
#[inline(always)]
pub fn arriving<A, P, T, F, H>(
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
    let Some(ip) = Ip::read(packet, ETH, A::IS_V6) else {
        return Verdict::Pass;
    };
    // Of any protocol, and in every fragment.
    if A::of(ip.destination).is_loopback() || A::of(ip.source).is_loopback() {
        return Verdict::Is(Handled::DropLoopback);
    }
    let Some(head) = Head::of(packet, ip) else {
        return Verdict::Pass;
    };
    let now_s = here.now_s();
    let (first, count) = here.ports();
    let port = u16::from_be_bytes(head.destination_port_be);
    head.key(&mut scratch.key, FLOW_MASQUERADED);
    if port.wrapping_sub(first) < count
        && let Some(Found { flow, .. }) = flows.find(&scratch.key)
        && flow.touch(&head, now_s)
    {
        let client = (flow.to, flow.to_port_be);
        return led(&head, packet, Side::Destination, client, Handled::ToClient);
    }
    scratch.key.place = FLOW_DIALLED;
    let mut known = Known::Nothing;
    if let Some(Found { flow, is_opening }) = flows.find(&scratch.key) {
        let backend = (flow.to, flow.to_port_be);
        scratch.backend = flow.to.backend(flow.to_port_be);
        if head.opens() {
            known = match flow.state & (FLOW_IS_ANSWERED | FLOW_IS_CLOSING) {
                0 => Known::Opening,
                FLOW_IS_ANSWERED => Known::Up,
                _ => Known::Over,
            };
        } else {
            known = Known::Over;
            let is_later = flow.last_s != now_s;
            let mut is_alive = flow.touch(&head, now_s);
            scratch.flow = *flow;
            if !head.is_tcp() && is_later {
                is_alive = keep_alive(flows, scratch, is_alive, now_s);
            }
            if is_alive {
                if is_opening {
                    settle(&head, flows, scratch);
                }
                return led(
                    &head,
                    packet,
                    Side::Destination,
                    backend,
                    Handled::ToBackend,
                );
            }
        }
    }
    if head.is_tcp() && !head.opens() || A::of(head.ip.destination).is_of_the_link() {
        return Verdict::Pass;
    }
    begin(&head, packet, tables, flows, here, scratch, known)
}

/// The client has answered in a flow that is opening, of which `scratch.key` and `scratch.flow` are what it dialled: once the backend has
/// answered before, it is up. By TCP the client must know what the backend said, so that nobody sends both sides' packets.
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

/// A flow of datagrams lives for as long as anybody sends: once a second, a packet of the client is told to the entries for its answers,
/// and is believed by what they have heard. `scratch.key` and `scratch.flow` are what it dialled. False where the flow is over.
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

/// The first packet of a flow, whose key is there, and the backend if it is known.
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
    let dialer = Outside { client, here };
    let (port_be, protocol) = (head.destination_port_be, head.ip.protocol);
    let dialled = scratch.key.destination;
    let (word, service) = match dialled.outside(tables, &dialer, port_be, protocol) {
        Resolved::Pass => return direct(head, flows, here, scratch),
        Resolved::Refuse(why) => return Verdict::Is(refused(why)),
        Resolved::Service(word, service) => (word, service),
    };
    let now_s = here.now_s();
    let affinity = tables.affinity(service);
    let mut is_kept = matches!(known, Known::Opening | Known::Up)
        || !affinity.is_none() && flows.recall(client_id, affinity, &mut scratch.backend);
    scratch.flow = Flow {
        to: dialled,
        node: A::of((0, 0)),
        to_port_be: port_be,
        node_port_be: [0; 2],
        ifindex: here.ifindex(),
        service,
        state: 0,
        last_s: now_s,
        expected: 0,
    };
    scratch.other = scratch.key;
    scratch.other.place = FLOW_SERVED;
    for _ in 0..BACKEND_TRIES {
        is_kept = is_kept && A::is_in(tables, word, &scratch.backend);
        if !is_kept && !A::read(tables, random_slot(&dialer, word), &mut scratch.backend) {
            return Verdict::Is(Handled::DropInconsistent);
        }
        let was_kept = core::mem::replace(&mut is_kept, false);
        let backend = A::of_backend(&scratch.backend);
        (scratch.other.destination, scratch.other.destination_port_be) = backend;
        if let Some(Found { flow, .. }) = flows.find(&scratch.other) {
            let is_its = flow.leads_to(&scratch.flow);
            if !is_its && !flow.is_over(head.is_tcp(), now_s) {
                continue;
            }
            if is_its && was_kept && known == Known::Up && flow.state & FLOW_IS_CLOSING == 0 {
                return led(head, packet, Side::Destination, backend, Handled::ToBackend);
            }
            flows.forget(&scratch.other);
        }
        if known != Known::Nothing {
            flows.forget(&scratch.key);
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
        return led(head, packet, Side::Destination, backend, Handled::NewFlow);
    }
    Verdict::Is(Handled::DropClash)
}

/// A packet to no Service that may open a flow, perhaps to a backend itself. Its answers could not be told from those that the client gets
/// through a Service from the same port: a connection that is up stays, of all else the last one counts.
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
    let is_up = flow.state & (FLOW_IS_ANSWERED | FLOW_IS_CLOSING) == FLOW_IS_ANSWERED;
    if head.is_tcp() && is_up && !flow.is_over(true, here.now_s()) {
        return Verdict::Is(Handled::DropClash);
    }
    let dialled = (flow.to, flow.to_port_be);
    flows.forget(&scratch.key);
    (scratch.key.destination, scratch.key.destination_port_be) = dialled;
    scratch.key.place = FLOW_DIALLED;
    flows.forget(&scratch.key);
    Verdict::Pass
}

/// A packet that leaves by a device that leads outside, where this node has `node` as its address.
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
    let Some(head) = Head::of(packet, ip) else {
        return Verdict::Pass;
    };
    let now_s = here.now_s();
    head.answer_key(&mut scratch.key);
    if let Some(Found { flow, is_opening }) = flows.find(&scratch.key) {
        if !flow.touch(&head, now_s) {
            return Verdict::Pass;
        }
        if is_opening && head.flags & (SYN | ACK) == (SYN | ACK) {
            flow.expected = head.sequence.wrapping_add(1);
        }
        let dialled = (flow.to, flow.to_port_be);
        return led(&head, packet, Side::Source, dialled, Handled::ToClient);
    }
    if !is_forwarded {
        return Verdict::Pass;
    }
    head.key(&mut scratch.key, FLOW_SERVED);
    let Some(Found { flow, .. }) = flows.find(&scratch.key) else {
        return Verdict::Pass;
    };
    // What the client says makes nothing of it answered: that is the backend's.
    if flow.is_over(head.is_tcp(), now_s) {
        return Verdict::Pass;
    }
    if u16::from_ne_bytes(flow.node_port_be) != 0 {
        let source = (flow.node, flow.node_port_be);
        return led(&head, packet, Side::Source, source, Handled::ToBackend);
    }
    scratch.flow = *flow;
    let port_be = match node() {
        Some(node) if node.is_some() => {
            scratch.flow.node = node;
            masquerade(&head, flows, here, scratch)
        }
        _ => None,
    };
    let Some(port_be) = port_be else {
        return Verdict::Is(Handled::DropNoPort);
    };
    let source = (scratch.flow.node, port_be);
    if let Some(Found { flow, .. }) = flows.find(&scratch.key) {
        (flow.node, flow.node_port_be) = source;
    }
    led(&head, packet, Side::Source, source, Handled::ToBackend)
}

/// Finds a port of this node's address (`scratch.flow.node`) that no other flow to the backend has.
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
    let mut offset = u16::from_be_bytes(head.source_port_be).wrapping_sub(first);
    for _ in 0..PORT_TRIES {
        if offset >= count {
            offset = (((here.random() >> 16) * u32::from(count)) >> 16) as u16;
        }
        let port_be = first.wrapping_add(offset).to_be_bytes();
        scratch.other.destination_port_be = port_be;
        let is_free = match flows.find(&scratch.other) {
            Some(Found { flow, .. }) => {
                flow.leads_to(&scratch.flow) || flow.is_over(head.is_tcp(), now_s)
            }
            None => {
                // Another CPU may be faster.
                if flows.open_new(&scratch.other, &scratch.flow) {
                    return Some(port_be);
                }
                false
            }
        };
        if is_free {
            flows.forget(&scratch.other);
            if flows.open_new(&scratch.other, &scratch.flow) {
                return Some(port_be);
            }
        }
        offset = u16::MAX;
    }
    None
}

#[inline(always)]
fn led<A: Address, P: Packet>(
    head: &Head,
    packet: &mut P,
    side: Side,
    to: (A, [u8; 2]),
    as_what: Handled,
) -> Verdict {
    match head.rewrite(packet, side, to) {
        Some(()) => Verdict::Is(as_what),
        // Half of it may have changed.
        None => Verdict::Is(Handled::DropUnchanged),
    }
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

/// A client outside, for the table.
struct Outside<'a, H> {
    client: NetnsRow,
    here: &'a H,
}

impl<H: Here> Dialer for Outside<'_, H> {
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

#[cfg(test)]
mod tests;
