//! From a plan to the kernel's types: keys, values, entries of arrays (`yurt_ebpf::abi`).
//!
//! Pure. Ports are in network byte order from here on. Fields that programs have to read together are packed into one
//! word.

use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use yurt_ebpf::abi;

use crate::dataplane::DataplaneError;
use crate::plan::{FrontendKey, FrontendRow, KeyPort, Op, Outside, ServedSet};
use crate::table::{ClusterPrefixes, MAX_SOURCE_RANGES, Scope};

const _: () = assert!(MAX_SOURCE_RANGES == abi::PublishWord::MAX_RANGES as usize);

/// Port, protocol and scope of a key.
fn key_parts(port: KeyPort) -> ([u8; 2], u8, u8) {
    match port {
        KeyPort::Any => ([0; 2], 0, abi::SCOPE_ADDRESS),
        KeyPort::Port(scope, protocol, port) => {
            let scope = match scope {
                Scope::Internal => abi::SCOPE_INTERNAL,
                Scope::External => abi::SCOPE_EXTERNAL,
            };
            (port.to_be_bytes(), protocol.number(), scope)
        }
    }
}

/// A row's key in the map of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dataplane) enum RawKey {
    V4(abi::FrontendKey4),
    V6(abi::FrontendKey6),
}

impl From<&FrontendKey> for RawKey {
    fn from(key: &FrontendKey) -> Self {
        let (port_be, protocol, scope) = key_parts(key.port);
        match key.address {
            IpAddr::V4(addr) => Self::V4(abi::FrontendKey4 {
                addr: addr.octets(),
                port_be,
                protocol,
                scope,
            }),
            IpAddr::V6(addr) => Self::V6(abi::FrontendKey6 {
                addr: addr.octets(),
                port_be,
                protocol,
                scope,
                pad: [0; 4],
            }),
        }
    }
}

impl RawKey {
    pub(super) fn fingerprint(&self) -> u32 {
        match self {
            Self::V4(key) => key.fingerprint(),
            Self::V6(key) => key.fingerprint(),
        }
    }
}

pub(in crate::dataplane) fn raw_value(key: &RawKey, row: &FrontendRow) -> u64 {
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    let flags = flag(row.is_node_only, abi::FRONTEND_NODE_ONLY)
        | flag(row.is_on_node, abi::FRONTEND_ON_NODE)
        | flag(row.outside == Outside::Same, abi::FRONTEND_OUTSIDE)
        | flag(row.outside == Outside::Apart, abi::FRONTEND_OUTSIDE_APART);
    abi::FrontendValue::new(row.service, key.fingerprint(), flags).0
}

pub(in crate::dataplane) fn backend4(backend: &SocketAddr) -> Option<abi::Backend4> {
    let SocketAddr::V4(backend) = backend else {
        return None;
    };
    let port_be = backend.port().to_be_bytes();
    Some(abi::Backend4 {
        addr: backend.ip().octets(),
        port_be,
        pad: [0; 2],
    })
}

pub(in crate::dataplane) fn backend6(backend: &SocketAddr) -> Option<abi::Backend6> {
    let SocketAddr::V6(backend) = backend else {
        return None;
    };
    let port_be = backend.port().to_be_bytes();
    Some(abi::Backend6 {
        addr: backend.ip().octets(),
        port_be,
        pad: [0; 6],
    })
}

pub(in crate::dataplane) fn publish_word(
    base: u32,
    set: &ServedSet,
    generation: u16,
) -> abi::PublishWord {
    let count = u16::try_from(set.backends.len()).unwrap_or(u16::MAX);
    let ranges = u8::try_from(set.ranges().len()).unwrap_or(u8::MAX);
    let word = abi::PublishWord::new(base, count, generation).with_ranges(ranges);
    match &set.terms {
        Some(terms) if terms.is_drop => word.with_drop(),
        _ => word,
    }
}

pub(in crate::dataplane) fn affinity(set: &ServedSet) -> abi::Affinity {
    let terms = set.terms.as_ref();
    terms.map_or(abi::Affinity::default(), |terms| {
        abi::Affinity::new(terms.affinity_seconds, terms.affinity_identity)
    })
}

pub(in crate::dataplane) fn range4(range: &IpNetwork) -> Option<abi::Backend4> {
    let IpNetwork::V4(range) = range else {
        return None;
    };
    let (addr, mask) = (range.network().octets(), range.mask().octets());
    Some(abi::Backend4::range(addr, mask))
}

pub(in crate::dataplane) fn range6(range: &IpNetwork) -> Option<abi::Backend6> {
    let IpNetwork::V6(range) = range else {
        return None;
    };
    Some(abi::Backend6::range(
        range.network().octets(),
        range.prefix(),
    ))
}

/// At most [`abi::MAX_PREFIXES`] of each family; the compiler of the table keeps within that.
fn prefix_set(prefixes: &ClusterPrefixes) -> abi::PrefixSet {
    let mut set = abi::PrefixSet::default();
    if prefixes.are_service_cidrs {
        set.flags = abi::PREFIXES_ARE_SERVICE_CIDRS;
    }
    for prefix in &prefixes.prefixes {
        match prefix {
            IpNetwork::V4(prefix) => {
                if let Some(place) = set.v4.get_mut(set.v4_len as usize) {
                    let (addr, mask) = (prefix.network().octets(), prefix.mask().octets());
                    *place = abi::Prefix4 { addr, mask };
                    set.v4_len += 1;
                }
            }
            IpNetwork::V6(prefix) => {
                if let Some(place) = set.v6.get_mut(set.v6_len as usize) {
                    let (addr, mask) = (prefix.network().octets(), prefix.mask().octets());
                    *place = abi::Prefix6 { addr, mask };
                    set.v6_len += 1;
                }
            }
        }
    }
    set
}

/// Maps that a plan is written to, operation by operation: the kernel's, or those in memory.
pub(in crate::dataplane) trait MapWriter {
    fn grace(&mut self) -> Result<(), DataplaneError>;
    fn prefixes(&mut self, set: abi::PrefixSet) -> Result<(), DataplaneError>;
    fn filter(&mut self, word: u32, bits: u64) -> Result<(), DataplaneError>;
    fn backend4(&mut self, slot: u32, backend: abi::Backend4) -> Result<(), DataplaneError>;
    fn backend6(&mut self, slot: u32, backend: abi::Backend6) -> Result<(), DataplaneError>;
    fn publish(&mut self, service: u32, row: abi::ServiceRow) -> Result<(), DataplaneError>;
    fn put(&mut self, key: RawKey, value: u64) -> Result<(), DataplaneError>;
    fn delete(&mut self, key: RawKey) -> Result<(), DataplaneError>;

    fn write(&mut self, op: &Op) -> Result<(), DataplaneError> {
        match op {
            Op::Grace => self.grace(),
            Op::SetPrefixes(prefixes) => self.prefixes(prefix_set(prefixes)),
            Op::SetFilter { word, bits } => self.filter(*word, *bits),
            Op::WriteSlots { base, set } => {
                let backends = set.backends.iter().map(|b| (backend4(&b), backend6(&b)));
                let ranges = set.ranges().iter().map(|r| (range4(r), range6(r)));
                for (slot, entry) in (*base..).zip(backends.chain(ranges)) {
                    match entry {
                        (Some(entry), _) => self.backend4(slot, entry)?,
                        (None, Some(entry)) => self.backend6(slot, entry)?,
                        (None, None) => {}
                    }
                }
                Ok(())
            }
            Op::Publish {
                service,
                base,
                set,
                generation,
            } => {
                let (word, affinity) = (publish_word(*base, set, *generation).0, affinity(set).0);
                self.publish(*service, abi::ServiceRow { word, affinity })
            }
            Op::PutFrontend(key, row) => {
                let key = RawKey::from(key);
                self.put(key, raw_value(&key, row))
            }
            Op::DeleteFrontend(key) => self.delete(key.into()),
        }
    }
}
