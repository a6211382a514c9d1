//! Devices of a node, and which of them lead to Pods.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A device of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its kind, such as `veth` or `bridge`; empty for hardware.
    pub kind: String,
    /// Its link-layer address, if that has six bytes.
    pub mac: Option<[u8; 6]>,
    /// Its packets have no link-layer header: a modem that hands out packets, tun, WireGuard, an IP tunnel.
    pub is_l3: bool,
    /// The index of the device at its other end, or of the one that it is stacked on (IFLA_LINK).
    pub other_end: Option<u32>,
    /// The identifier that this network namespace has for the one of the other end, if that is another one
    /// (IFLA_LINK_NETNSID).
    pub other_end_netns: Option<i32>,
    /// Whether a default route leads out of it. A node that is itself a container has such a veth device.
    pub is_uplink: bool,
    /// The gateways of those routes.
    pub gateways: Vec<IpAddr>,
    /// The neighbours that have answered there: addresses and MACs from the node's own table.
    pub neighbours: Vec<(IpAddr, [u8; 6])>,
    /// Whether it is up, and has a carrier.
    pub has_carrier: bool,
    /// The index of the device that it belongs to, such as a bridge.
    pub controller: Option<u32>,
    /// This node's addresses on it, preferred source addresses first. Tentative addresses are left out.
    pub addresses: Vec<IpAddr>,
}

/// Devices that are never touched, whatever the patterns: loopback, and Raven's, whose filters Raven removes.
const UNTOUCHED: [&str; 3] = ["lo", "raven0", "raven-wg0"];

impl Link {
    /// Whether its other end is still the recorded one, as far as both are known.
    pub fn is_still(&self, host: HostSide) -> bool {
        let is_known = host.other_end.is_some() && self.other_end.is_some();
        self.ifindex == host.ifindex && (!is_known || host.other_end == self.other_end)
    }

    /// Whether no program is ever attached to it, whatever the patterns.
    pub fn is_untouched(&self) -> bool {
        UNTOUCHED.contains(&self.name.as_str())
    }

    /// Whether its name matches one of these patterns, with `*` and `?`.
    pub fn is_named(&self, patterns: &[String]) -> bool {
        let mut patterns = patterns.iter();
        patterns.any(|pattern| matches(pattern.as_bytes(), self.name.as_bytes()))
    }

    /// Whether it leads to a Pod. `patterns` are the names of such devices, with `*` and `?`. Without patterns these
    /// are all veth devices whose other end is in another network namespace, except those that a default route leads
    /// out of.
    pub fn leads_to_pod(&self, patterns: &[String]) -> bool {
        if self.is_untouched() {
            return false;
        }
        if patterns.is_empty() {
            return self.kind == "veth" && self.other_end_netns.is_some() && !self.is_uplink;
        }
        self.is_named(patterns)
    }
}

/// Whether a name matches a pattern: `*` stands for any characters, `?` for one.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|skipped| matches(rest, &name[skipped..])),
        ([b'?', rest @ ..], [_, name @ ..]) => matches(rest, name),
        ([first, rest @ ..], [byte, name @ ..]) => first == byte && matches(rest, name),
        _ => false,
    }
}

/// The host's end of a Pod's interface, as recorded when the Pod got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostSide {
    /// Index of the device.
    pub ifindex: u32,
    /// Index of the other end, in the Pod's namespace; `None` if it was not recorded.
    #[serde(rename = "peer", default, skip_serializing_if = "Option::is_none")]
    pub other_end: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_names_are_those_of_a_shell() {
        let fits = |pattern: &str, name: &str| matches(pattern.as_bytes(), name.as_bytes());
        for (pattern, name) in [
            ("*", "x"),
            ("veth*", "veth"),
            ("veth*", "vethab"),
            ("cali*", "cali0"),
            ("*0", "eth10"),
            ("e?h0", "eth0"),
            ("a*b*c", "aXbYbZc"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("", "x"),
            ("veth*", "vet"),
            ("?", ""),
            ("*0", "eth1"),
            ("eth", "eth0"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }
}
