//! What tells the agent's own sockets from all others.

/// Priority (`SO_PRIORITY`) of the agent's sockets to its sources. In the node's network namespace they are never translated: a
/// table must not come between the agent and those who say what is in it.
///
/// No queueing discipline takes it for a class or for another band than best effort, and no route depends on it, as on a mark.
/// To set one above 6 takes `CAP_NET_ADMIN`, or `CAP_NET_RAW`; who does only has its own sockets left alone.
pub const OWN_SOCKET_PRIORITY: u32 = 0x7975_7270;
