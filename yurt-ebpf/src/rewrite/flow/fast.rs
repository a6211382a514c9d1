//! Which flows are led past the stack. The hook decides whether and where to; a flow is, or is not, from its first
//! packet on.

use super::address::Address;
use super::head::Head;
use super::memory::{Flows, Found, Here, Scratch};
use crate::abi::{FLOW_IS_FAST, FLOW_IS_INSIDE};
use crate::frame::ETH;
use crate::frame::ip::Ip;
use crate::rewrite::Packet;

impl<A: Address> Scratch<A> {
    /// Whether the flow of a packet that was led to its backend is one of those.
    #[inline(always)]
    pub fn is_fast(&self) -> bool {
        self.flow.state & FLOW_IS_FAST != 0
    }
}

/// Makes the flow one of those that [`opening()`](super::opening()) has begun with the packet at hand; false where it
/// is gone again.
#[inline(always)]
pub fn begin_fast<A: Address, F: Flows<A>>(flows: &mut F, scratch: &Scratch<A>) -> bool {
    let Some(Found { flow, .. }) = flows.find(&scratch.other) else {
        return false;
    };
    flow.state |= FLOW_IS_FAST;
    let Some(Found { flow, .. }) = flows.find(&scratch.key) else {
        return false;
    };
    flow.state |= FLOW_IS_FAST;
    true
}

/// The device that the client of such a flow came in by, if a packet is one of its backend's answers, and is not
/// changed yet. [`leaving()`](super::leaving()) will do that there, and so decides itself.
#[inline(always)]
pub fn answers_fast<A, P, F, H>(
    packet: &P,
    flows: &mut F,
    here: &H,
    scratch: &mut Scratch<A>,
) -> Option<u32>
where
    A: Address,
    P: Packet,
    F: Flows<A>,
    H: Here,
{
    let head = Head::of(packet, Ip::read(packet, ETH, A::IS_V6)?)?;
    head.answer_key(&mut scratch.key);
    let Found { flow, is_opening } = flows.find(&scratch.key)?;
    let is_its = flow.state & (FLOW_IS_FAST | FLOW_IS_INSIDE) == FLOW_IS_FAST
        && !flow.is_over(head.is_tcp(), here.now_s())
        && (!is_opening || !head.is_tcp() || flow.is_answer(&head));
    is_its.then_some(flow.ifindex)
}
