//! A Pod as the guard knows it: its addresses, and what its annotation asks for. Pure.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::device::{HostSide, Mac};

/// The most addresses and prefixes of one family that a row holds, including link-local ones.
pub const MAX_PREFIXES: usize = yurt_ebpf::abi::GUARD_PREFIXES;
/// The most link-layer addresses that a row holds.
pub(crate) const MAX_MACS: usize = yurt_ebpf::abi::GUARD_MACS;

/// An interface of a Pod, and the addresses that it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardedPod {
    /// Namespace of the Pod.
    pub namespace: String,
    /// Name of the Pod.
    pub name: String,
    /// The interface's name in the Pod.
    pub interface: String,
    /// Its link-layer address; `None` if it is not known, so that any passes.
    pub mac: Option<[u8; 6]>,
    /// Its addresses, including a link-local one that is not derived from `mac`.
    pub addresses: Vec<IpAddr>,
    /// The host's end of the interface; `None` while the Pod is away and its addresses are kept.
    pub host: Option<HostSide>,
    /// What else it may use.
    pub extra: Extra,
}

/// The additional addresses that an annotation asks for: VRRP, VPN, direct server return.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// Addresses and prefixes.
    pub prefixes: Vec<IpNetwork>,
    /// Link-layer addresses.
    pub macs: Vec<[u8; 6]>,
}

impl Extra {
    /// Whether the annotation asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.prefixes.is_empty() && self.macs.is_empty()
    }
}

/// The most words of an annotation. A row could not hold more, and each word is judged at every change of the node's
/// Pods.
const MAX_WORDS: usize = 2 * MAX_PREFIXES + MAX_MACS;

/// An annotation that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadExtra {
    /// A word is neither an address, a prefix nor a MAC.
    #[error(
        "{0:?} is not an address, a prefix or a link-layer address, such as 10.0.0.9, fd00:1::/64 or 00:00:5e:00:01:33"
    )]
    Word(String),
    /// The annotation asks for more than a row can hold.
    #[error(
        "it has more than {MAX_WORDS} words, and a Pod can have {MAX_PREFIXES} addresses of each family and {MAX_MACS} link-layer \
         addresses"
    )]
    TooMany,
}

impl std::str::FromStr for Extra {
    type Err = BadExtra;

    /// Words are separated by commas or white space.
    fn from_str(text: &str) -> Result<Self, BadExtra> {
        let mut extra = Self::default();
        let is_between = |c: char| c == ',' || c.is_whitespace();
        let words = text.split(is_between).filter(|word| !word.is_empty());
        for (index, word) in words.enumerate() {
            if index == MAX_WORDS {
                return Err(BadExtra::TooMany);
            }
            if let Ok(prefix) = word.parse() {
                extra.prefixes.push(prefix);
            } else if let Ok(Mac(mac)) = word.parse() {
                extra.macs.push(mac);
            } else {
                return Err(BadExtra::Word(word.to_owned()));
            }
        }
        Ok(extra)
    }
}

/// Whether a link-layer address can be one host's: it is neither a multicast address nor all zeros.
pub(super) fn is_one_hosts_mac(mac: [u8; 6]) -> bool {
    mac[0] & 1 == 0 && mac != [0; 6]
}
