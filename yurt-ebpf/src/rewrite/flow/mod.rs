//! What a packet gets of a client outside, or of a Pod of this node that bypasses its sockets: the decision of the
//! packet path, without the hook.
//!
//! Pure and `no_std`. A packet passes a device twice on its way through the node, or once where it ends or begins here:
//! **where it comes in, its destination changes; where it leaves, its source does.** So no packet ever comes up into
//! the stack with an address of this node as its source, which the stack would take for a martian, and routing sees
//! real addresses.
//!
//! | packet of a flow | looked up as | what changes |
//! |---|---|---|
//! | client to the address that it dialled, coming in | [`FLOW_DIALLED`] | destination: the backend |
//! | client to backend, leaving | [`FLOW_SERVED`] | source: this node's address and a port of its own (masqueraded) |
//! | backend to this node's address, coming in | [`FLOW_MASQUERADED`] | destination: the client |
//! | backend to client, leaving | [`FLOW_SERVED`] | source: the address that the client dialled |
//!
//! A flow whose backend is on this node never leaves on its way there, so it is not masqueraded and has two entries;
//! others have three. The table is asked once, by the first packet: an entry is the whole translation.
//!
//! Of a Pod of this node "coming in" is at its own device, and so is "leaving" of what goes to it
//! ([`Here::IS_INSIDE`]). It is masqueraded only where it is led to itself.
//!
//! A flow is opening until the backend has answered and the client has answered that, and its entries are in a smaller
//! map: a flood of first packets pushes out none that is up. Once it is closed, by both sides or by a RST that is
//! believed, its entries are there again: many short connections push out no long one. A SYN decides anew once its flow
//! is closed, or its backend is not in the set any more; else it goes to the backend that the flow has, which answers a
//! stray one by itself (RFC 5961).
//!
//! Later fragments have no ports. They follow the first one of their packet, see `parts`.
//!
//! Three programs decide, and each reads the packet anew: what comes in and is of a flow ([`arriving()`]), what may
//! open one ([`opening()`]), and what leaves ([`leaving()`]). Of ICMP errors about packets of flows, two more do:
//! [`error_arriving()`] and [`error_leaving()`].
//!
//! [`FLOW_DIALLED`]: crate::abi::FLOW_DIALLED
//! [`FLOW_SERVED`]: crate::abi::FLOW_SERVED
//! [`FLOW_MASQUERADED`]: crate::abi::FLOW_MASQUERADED

mod address;
mod arriving;
mod ending;
mod fast;
mod head;
mod icmp;
mod leaving;
mod memory;
mod opening;
mod parts;

pub use self::address::Address;
pub use self::arriving::arriving;
pub use self::fast::{answers_fast, begin_fast};
pub use self::icmp::{error_arriving, error_leaving};
pub use self::leaving::leaving;
pub use self::memory::{Flows, Found, Here, Memory, Scratch, Verdict};
pub use self::opening::opening;

#[cfg(test)]
mod tests;
