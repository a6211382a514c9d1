//! ICMP errors about packets of flows: unreachable, too big, time exceeded, parameter problem.
//!
//! An error goes to whoever sent the packet that it is about, and holds the beginning of that packet as it was where
//! the error arose. So it takes the way of an answer to that packet, and **the packet in it becomes what its receiver
//! has sent**:
//!
//! | error | looked up as | what changes |
//! |---|---|---|
//! | to this node's address, which stands for the client, coming in | [`FLOW_MASQUERADED`] | destination, and source of the packet in it: the client |
//! | to the address that was dialled, coming in | [`FLOW_DIALLED`] | the same: the backend |
//! | to the client, leaving | [`FLOW_SERVED`] | source, and destination of the packet in it: the address that the client dialled |
//! | to the backend, leaving | [`FLOW_SERVED`], as answered | the same: this node's address, where the flow is masqueraded |
//!
//! The source of an error becomes an address that its receiver has dialled, also where a router has sent it, as
//! netfilter has it: the receiver may not know a way to the router, and need not know of the backend.
//!
//! An error says nothing of how long a flow lives. Redirects are between a router and its neighbour, and are left
//! alone.

use super::address::Address;
use super::memory::{Flows, Found, Here, Scratch, Verdict};
use crate::abi::{FLOW_DIALLED, FLOW_MASQUERADED, FLOW_SERVED, FlowKey, Handled};
use crate::frame::ETH;
use crate::frame::ip::{Ip, Part, SCTP, Side, TCP, UDP};
use crate::rewrite::{ICMP_HEADER, Packet, rewrite, rewrite_inner};

/// What is to be done with a packet that has no ports.
#[inline(always)]
pub(super) fn may_be_about_a_flow<P: Packet>(packet: &P, ip: &Ip) -> Verdict {
    match is_error(packet, ip) {
        true => Verdict::Error,
        false => Verdict::Pass,
    }
}

/// Whether it is an error of those that are about packets of hosts.
#[inline(always)]
fn is_error<P: Packet>(packet: &P, ip: &Ip) -> bool {
    if ip.part != Part::Whole || !ip.is_icmp() {
        return false;
    }
    match packet.far::<u8>(ip.payload) {
        Some(1..=4) if ip.is_v6 => true,
        Some(3 | 11 | 12) => !ip.is_v6,
        _ => false,
    }
}

/// A packet that an error is about.
struct About {
    inner: Ip,
    source_port_be: [u8; 2],
    destination_port_be: [u8; 2],
}

impl About {
    /// `None` of what is no such error.
    #[inline(always)]
    fn read<P: Packet>(packet: &P, ip: &Ip) -> Option<Self> {
        if !is_error(packet, ip) {
            return None;
        }
        let inner = Ip::read(packet, ip.payload + ICMP_HEADER, ip.is_v6)?;
        // An error to anybody but the one who sent the packet is a forged one.
        let is_to_its_sender = inner.source == ip.destination;
        let has_ports = matches!(inner.part, Part::Whole | Part::First)
            && matches!(inner.protocol, TCP | UDP | SCTP);
        if !is_to_its_sender || !has_ports {
            return None;
        }
        let [a, b, c, d] = packet.far(inner.payload)?;
        Some(Self {
            inner,
            source_port_be: [a, b],
            destination_port_be: [c, d],
        })
    }

    /// Writes the key of the packet, in its own direction.
    #[inline(always)]
    fn key<A: Address>(&self, key: &mut FlowKey<A>, place: u8) {
        key.source = A::of(self.inner.source);
        key.destination = A::of(self.inner.destination);
        key.source_port_be = self.source_port_be;
        key.destination_port_be = self.destination_port_be;
        key.protocol = self.inner.protocol;
        key.place = place;
    }

    /// Writes the key of what the packet answers.
    #[inline(always)]
    fn answered_key<A: Address>(&self, key: &mut FlowKey<A>, place: u8) {
        key.source = A::of(self.inner.destination);
        key.destination = A::of(self.inner.source);
        key.source_port_be = self.destination_port_be;
        key.destination_port_be = self.source_port_be;
        key.protocol = self.inner.protocol;
        key.place = place;
    }

    #[inline(always)]
    fn is_tcp(&self) -> bool {
        self.inner.protocol == TCP
    }

    /// Has the error come from or go to another address, and the packet in it go to or come from there.
    #[inline(always)]
    fn lead<A: Address, P: Packet>(
        &self,
        packet: &mut P,
        ip: &Ip,
        side: Side,
        (to, port_be): (A, [u8; 2]),
        as_what: Handled,
    ) -> Verdict {
        let (of_inner, old_port) = match side {
            Side::Source => (Side::Destination, self.destination_port_be),
            Side::Destination => (Side::Source, self.source_port_be),
        };
        let ports = Some((old_port, port_be));
        rewrite_inner(packet, ip, &self.inner, of_inner, to.words(), ports);
        match rewrite(packet, ip, side, to.words()) {
            Some(()) => Verdict::Is(as_what),
            None => Verdict::Is(Handled::DropUnchanged),
        }
    }
}

/// An error that comes in, by a device that leads outside or to a Pod of this node.
#[inline(always)]
pub fn error_arriving<A, P, F, H>(
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
    let Some(about) = About::read(packet, &ip) else {
        return Verdict::Pass;
    };
    let (now_s, key) = (here.now_s(), &mut scratch.key);
    about.answered_key(key, FLOW_MASQUERADED);
    if let Some(Found { flow, .. }) = flows.find(key)
        && !flow.is_over(about.is_tcp(), now_s)
    {
        let client = (flow.to, flow.to_port_be);
        return about.lead(packet, &ip, Side::Destination, client, Handled::ToClient);
    }
    key.place = FLOW_DIALLED;
    if let Some(Found { flow, .. }) = flows.find(key)
        && !flow.is_over(about.is_tcp(), now_s)
    {
        let backend = (flow.to, flow.to_port_be);
        return about.lead(packet, &ip, Side::Destination, backend, Handled::ToBackend);
    }
    Verdict::Pass
}

/// An error that leaves by such a device, whether it began here or not.
#[inline(always)]
pub fn error_leaving<A, P, F, H>(
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
    let Some(about) = About::read(packet, &ip) else {
        return Verdict::Pass;
    };
    let (now_s, key) = (here.now_s(), &mut scratch.key);
    about.key(key, FLOW_SERVED);
    if let Some(Found { flow, .. }) = flows.find(key)
        && !flow.is_over(about.is_tcp(), now_s)
    {
        let dialled = (flow.to, flow.to_port_be);
        return about.lead(packet, &ip, Side::Source, dialled, Handled::ToClient);
    }
    about.answered_key(key, FLOW_SERVED);
    if let Some(Found { flow, .. }) = flows.find(key)
        && !flow.is_over(about.is_tcp(), now_s)
        && u16::from_ne_bytes(flow.node_port_be) != 0
    {
        let node = (flow.node, flow.node_port_be);
        return about.lead(packet, &ip, Side::Source, node, Handled::ToBackend);
    }
    Verdict::Pass
}

#[cfg(test)]
mod tests;
