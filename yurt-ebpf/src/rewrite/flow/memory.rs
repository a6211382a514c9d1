//! What the decisions ask and remember: flows, the memory of affinity, and what is looked up for the packet at hand.

use super::address::Address;
use super::head::{ACK, FIN, Head};
use crate::abi::{
    Affinity, FLOW_CLOSED_S, FLOW_HALF_CLOSED_S, FLOW_IS_ANSWERED, FLOW_IS_CLOSED, FLOW_IS_CLOSING,
    FLOW_MASQUERADED, FLOW_OPENING_S, FLOW_QUIET_S, FLOW_SERVED, Flow, FlowKey, Handled,
};
use crate::frame::ip::{Ip, Side};
use crate::rewrite::Packet;

/// So much may a backend acknowledge beside the SYN: what came with it (RFC 7413).
const SYN_DATA: u32 = 1 << 16;

/// The maps of flows: of those that are up, and of those that are opening or closed. The latter are few, and whoever
/// opens and closes many pushes out no flow that is up.
pub trait Flows<A> {
    /// An entry of either; it may be written to.
    fn find(&mut self, key: &FlowKey<A>) -> Option<Found<'_, A>>;
    /// Puts an entry among those that are opening, in place of what is there; false where there is no room.
    fn open(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool;
    /// The same, if nothing is there.
    fn open_new(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool;
    /// Puts an entry among those that are up, and takes it out of those that are opening.
    fn settle(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool;
    /// Puts an entry back among those that are opening: its connection is closed.
    fn retire(&mut self, key: &FlowKey<A>, flow: &Flow<A>);
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
    /// The device leads to a Pod of this node: what comes in there is sent by the Pod, what leaves goes to it. Else it
    /// leads outside.
    const IS_INSIDE: bool;
    /// 32 random bits.
    fn random(&self) -> u32;
    /// Seconds of `CLOCK_MONOTONIC`.
    fn now_s(&self) -> u32;
    /// The device.
    fn ifindex(&self) -> u32;
    /// First port to masquerade with, and how many there are.
    fn ports(&self) -> (u16, u16);
    /// Whose turn it is among them: counts on, from anywhere.
    fn turn(&self) -> u32;
}

/// What is done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on unchanged.
    Pass,
    /// It goes on, or is refused or dropped as that says.
    Is(Handled),
    /// It is of no flow, and may open one: [`opening()`](super::opening()) decides, and nobody else, for its Service
    /// may be closed.
    Opens,
    /// It is an ICMP error, perhaps about a packet of a flow: [`error_arriving()`](super::error_arriving()) or
    /// [`error_leaving()`](super::error_leaving()) decides.
    Error,
}

/// What is looked up, in memory of its own: with IPv6 it is more than a stack has room for.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Scratch<A: Address> {
    pub(super) key: FlowKey<A>,
    pub(super) other: FlowKey<A>,
    pub(super) flow: Flow<A>,
    pub(super) served: Flow<A>,
    pub(super) backend: A::Backend,
    /// What a new flow tries next: the slot of a backend, or which of the ports to masquerade with.
    pub(super) next: u32,
    pub(super) known: Known,
    /// If the packet is the first of several fragments, where its address is that changes, and the key of the others;
    /// else 0.
    pub(super) first_part_at: u32,
    pub(super) part: FlowKey<A>,
}

impl<A: Address> Scratch<A> {
    /// Who has sent the packet at hand and where to, if it is refused or dropped for a reason (a [`Handled`]) that was
    /// found after they were read: else what is here may be another packet's.
    #[inline(always)]
    pub const fn known_ends(&self, what: u32) -> Option<&FlowKey<A>> {
        if what == Handled::DropUnchanged as u32 || what == Handled::DropTag as u32 {
            return None;
        }
        Some(&self.key)
    }

    /// `key` is that of a packet of which no more is read than its addresses and its protocol.
    #[inline(always)]
    pub(super) fn point_at_addresses(&mut self, ip: &Ip) {
        self.key.source = A::of(ip.source);
        self.key.destination = A::of(ip.destination);
        (self.key.source_port_be, self.key.destination_port_be) = ([0; 2], [0; 2]);
        self.key.protocol = ip.protocol;
    }

    /// `other` is the entry for the answers to `key`, which leads to `flow`.
    #[inline(always)]
    pub(super) fn point_at_served(&mut self) {
        self.other = self.key;
        self.other.destination = self.flow.to;
        self.other.destination_port_be = self.flow.to_port_be;
        self.other.place = FLOW_SERVED;
    }

    /// `other`, which was that, is the entry for the answers to this node's address; false where there is none.
    #[inline(always)]
    pub(super) fn point_at_masqueraded(&mut self, node: A, node_port_be: [u8; 2]) -> bool {
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
    ///
    /// A FIN or a RST proves nothing: anybody may send one with the client's address. So a FIN is only noted, in the
    /// entry of the packets of its direction, and a RST is not even that. Whether the connection is closed is for
    /// [`end`](super::ending::end) to say, from the FINs of both sides or from the number of the RST.
    #[inline(always)]
    pub(super) fn touch(&mut self, head: &Head, now_s: u32, is_opening: bool) -> bool {
        if self.is_over(head.is_tcp(), now_s) {
            return false;
        }
        // A SYN that is sent again says nothing new.
        let mut new = self.state;
        if !head.opens() {
            new |= FLOW_IS_ANSWERED;
        }
        if head.flags & FIN != 0 {
            new |= FLOW_IS_CLOSING;
        }
        // While it is opening, that is what the client must know.
        if !is_opening && head.flags & ACK != 0 && self.expected != head.acknowledged {
            self.expected = head.acknowledged;
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
    pub(super) fn leads_to(&self, other: &Self) -> bool {
        self.to == other.to
            && u16::from_ne_bytes(self.to_port_be) == u16::from_ne_bytes(other.to_port_be)
    }

    /// Whether its answers are those to what was dialled, and not to another frontend that has led the client to the
    /// same backend since.
    #[inline(always)]
    pub(super) fn answers(&self, dialled: &FlowKey<A>) -> bool {
        self.to == dialled.destination
            && u16::from_ne_bytes(self.to_port_be)
                == u16::from_ne_bytes(dialled.destination_port_be)
    }

    /// Whether it counts no more, and another flow may have its key. `now_s` are seconds of `CLOCK_MONOTONIC`.
    #[inline(always)]
    pub fn is_over(&self, is_tcp: bool, now_s: u32) -> bool {
        let quiet = now_s.wrapping_sub(self.last_s);
        match self.state & (FLOW_IS_ANSWERED | FLOW_IS_CLOSING | FLOW_IS_CLOSED) {
            state if is_tcp && state & FLOW_IS_CLOSED != 0 => quiet > FLOW_CLOSED_S,
            FLOW_IS_ANSWERED if is_tcp => false,
            state if is_tcp && state & FLOW_IS_ANSWERED != 0 => quiet > FLOW_HALF_CLOSED_S,
            _ => quiet > FLOW_QUIET_S,
        }
    }

    /// Whether another flow may have its key now: it is over or closed, or its SYN is still unanswered. `now_s` are
    /// seconds of `CLOCK_MONOTONIC`.
    #[inline(always)]
    pub(super) fn gives_way(&self, is_tcp: bool, now_s: u32) -> bool {
        let is_unanswered = is_tcp && self.state & FLOW_IS_ANSWERED == 0;
        self.state & FLOW_IS_CLOSED != 0
            || is_unanswered && now_s.wrapping_sub(self.last_s) > FLOW_OPENING_S
            || self.is_over(is_tcp, now_s)
    }

    /// Whether a packet of TCP, of this entry's direction, is one of its connection, and not of another one between the
    /// same ends, which began without a Service: the first one answers the client's SYN.
    #[inline(always)]
    pub(super) fn is_answer(&self, head: &Head) -> bool {
        self.state & FLOW_IS_ANSWERED != 0
            || head.flags & ACK != 0 && head.acknowledged.wrapping_sub(self.expected) < SYN_DATA
    }
}

/// Gives a packet another address and port, and says what was done.
#[inline(always)]
pub(super) fn led<A: Address, P: Packet>(
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

/// What is known of the flow that a packet seems to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Known {
    /// Nothing.
    Nothing,
    /// It is over, or closed.
    Over,
    /// Nobody has answered yet: it is the same packet once more.
    Opening,
    /// It is up. The backend answers a SYN that comes all the same, from long ago or from somebody else (RFC 5961): it
    /// must not move the flow to another one. Where its backend is not in the set any more, it is decided anew.
    Up,
}
