//! Comparison of prefixes. Pure.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// Whether two prefixes are the same network, whatever their host bits are.
pub(super) fn is_equal(a: &IpNetwork, b: &IpNetwork) -> bool {
    (a.network(), a.prefix()) == (b.network(), b.prefix())
}

/// Whether two prefixes share an address, which means that one contains the other.
pub(super) fn overlap(a: &IpNetwork, b: &IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// The last address of a prefix.
pub(super) fn last(prefix: &IpNetwork) -> IpAddr {
    match prefix {
        IpNetwork::V4(prefix) => prefix.broadcast().into(),
        IpNetwork::V6(prefix) => prefix.broadcast().into(),
    }
}
