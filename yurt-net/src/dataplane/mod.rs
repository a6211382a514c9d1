//! The kernel's maps, seen and written. The trait is cut at what the agent needs: observe, apply.
//!
//! This file is the boundary between the proxy's vocabulary (`plan`) and the kernel's (`yurt_ebpf::abi`): byte orders
//! and packed words exist only from here on. `bpf` holds the real maps, `memory` the same in memory for tests.

pub mod bpf;
pub mod claim;
pub mod clients;
pub mod grace;
pub mod guard;
mod kept;
pub mod memory;
pub mod netlink;
mod pinned;
pub mod sockets;
pub mod strays;
mod sys;
pub mod tc;
pub mod translate;
pub mod vtep;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnetwork::{IpNetwork, Ipv4Network};
use yurt_ebpf::abi;

use crate::model::{AddressFamily, Protocol};
use crate::plan::{
    Capacity, Filter, FrontendKey, FrontendRow, KeyPort, MapImage, Observed, Op, Plan, ServedSet,
    ServiceImage, Terms,
};
use crate::table::{ClusterPrefixes, MAX_SOURCE_RANGES};

const _: () = assert!(MAX_SOURCE_RANGES == abi::PublishWord::MAX_RANGES as usize);

/// Where plans go.
pub trait Dataplane {
    /// Reads the maps.
    fn observe(&self) -> Result<MapImage, DataplaneError>;

    /// Whether the maps hold just what an image does. Makes no image of them: at rest this is all that an agent does.
    fn holds(&self, image: &MapImage) -> Result<bool, DataplaneError>;

    /// Writes a plan, in order. On an error, what was written stays: observe and plan again.
    fn apply(&mut self, plan: &Plan) -> Result<(), ApplyError>;
}

/// A plan that was applied in part.
#[derive(Debug, thiserror::Error)]
#[error("apply write {applied} of {total}")]
pub struct ApplyError {
    /// Writes that landed.
    pub applied: usize,
    /// Writes of the plan.
    pub total: usize,
    /// Why the next one did not.
    #[source]
    pub source: DataplaneError,
}

/// The loader's words: its types stay in `bpf`.
pub type LoadError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong with maps, programs and links.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The embedded object is the stub of a debug build.
    #[error("this binary was built without the eBPF programs: run `cargo xtask build`")]
    NoPrograms,
    /// `--bpffs` is not one.
    #[error("{} is not a bpf file system: mount one there (mount -t bpf bpf {0})", path.display())]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// A directory or pin.
    #[error("{operation} {}", path.display())]
    Path {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another agent is at work.
    #[error(
        "{what} is in use by another yurt-net (pid {pid}): one agent serves a node; stop that one first"
    )]
    InUse {
        /// What both would own.
        what: String,
        /// Who has it.
        pid: String,
    },
    /// A claim could not be made, or those of others not be read.
    #[error("look for other agents")]
    Claim(#[source] io::Error),
    /// A pin directory of an agent that is newer than this one.
    #[error(
        "{} was made by a newer yurt-net: run that version, or remove all pins with its `yurt-net cleanup`", path.display()
    )]
    UnknownAbi {
        /// The directory.
        path: PathBuf,
    },
    /// The object could not be loaded.
    #[error("load the eBPF object")]
    Load(#[source] LoadError),
    /// A program was rejected.
    #[error("load program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The verifier's words.
        #[source]
        source: LoadError,
    },
    /// The object lacks something: it was built from other sources.
    #[error("the eBPF object has no {name}")]
    Missing {
        /// Program or map.
        name: &'static str,
    },
    /// A map call.
    #[error("{operation} map {map}")]
    Map {
        /// What was tried.
        operation: &'static str,
        /// On which map.
        map: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A link call.
    #[error("{operation} {program}")]
    Link {
        /// What was tried.
        operation: &'static str,
        /// Which program's link.
        program: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A call on a device.
    #[error("{operation} {program} on device {ifindex}")]
    Device {
        /// What was tried.
        operation: &'static str,
        /// With which program.
        program: String,
        /// Index of the device.
        ifindex: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A write that a plan for these maps cannot hold.
    #[error("entry {index} is beyond the end of map {map}")]
    OutOfBounds {
        /// The map.
        map: &'static str,
        /// The entry.
        index: u32,
    },
    /// The grace period could not be waited for.
    #[error("wait for running programs")]
    Grace(#[source] io::Error),
    /// The network namespace has no cookie.
    #[error("read the cookie of the network namespace")]
    NetnsCookie(#[source] io::Error),
}

// === Encoding: plan -> abi ===

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// Port, protocol and scope of a key.
fn key_parts(port: KeyPort) -> ([u8; 2], u8, u8) {
    match port {
        KeyPort::Any => ([0; 2], 0, abi::SCOPE_ADDRESS),
        KeyPort::Port(protocol, port) => (
            port.to_be_bytes(),
            protocol_number(protocol),
            abi::SCOPE_INTERNAL,
        ),
    }
}

/// A row's key in the map of its family.
#[derive(Clone, Copy, Debug)]
enum RawKey {
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
    fn fingerprint(&self) -> u32 {
        match self {
            Self::V4(key) => key.fingerprint(),
            Self::V6(key) => key.fingerprint(),
        }
    }
}

fn raw_value(key: &RawKey, row: &FrontendRow) -> u64 {
    let flags = match (row.is_node_only, row.is_on_node) {
        (false, false) => 0,
        (true, false) => abi::FRONTEND_NODE_ONLY,
        (false, true) => abi::FRONTEND_ON_NODE,
        (true, true) => abi::FRONTEND_NODE_ONLY | abi::FRONTEND_ON_NODE,
    };
    abi::FrontendValue::new(row.service, key.fingerprint(), flags).0
}

fn backend4(backend: &SocketAddr) -> Option<abi::Backend4> {
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

fn backend6(backend: &SocketAddr) -> Option<abi::Backend6> {
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

fn publish_word(base: u32, set: &ServedSet, generation: u16) -> abi::PublishWord {
    let count = u16::try_from(set.backends.len()).unwrap_or(u16::MAX);
    let ranges = u8::try_from(set.ranges().len()).unwrap_or(u8::MAX);
    let word = abi::PublishWord::new(base, count, generation).with_ranges(ranges);
    match &set.terms {
        Some(terms) if terms.is_drop => word.with_drop(),
        _ => word,
    }
}

fn affinity(set: &ServedSet) -> abi::Affinity {
    let terms = set.terms.as_ref();
    terms.map_or(abi::Affinity::default(), |terms| {
        abi::Affinity::new(terms.affinity_seconds, terms.affinity_identity)
    })
}

fn range4(range: &IpNetwork) -> Option<abi::Backend4> {
    let IpNetwork::V4(range) = range else {
        return None;
    };
    let (addr, mask) = (range.network().octets(), range.mask().octets());
    Some(abi::Backend4::range(addr, mask))
}

fn range6(range: &IpNetwork) -> Option<abi::Backend6> {
    let IpNetwork::V6(range) = range else {
        return None;
    };
    Some(abi::Backend6::range(
        range.network().octets(),
        range.prefix(),
    ))
}

/// At most [`abi::MAX_PREFIXES`] of each family; the compiler of the table keeps to that.
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

// === Decoding: abi -> plan ===

/// The table maps, as [`decode`] reads them.
trait RawTable {
    fn row(&self, service: u32) -> Option<abi::ServiceRow>;
    fn backend4(&self, slot: u32) -> Option<abi::Backend4>;
    fn backend6(&self, slot: u32) -> Option<abi::Backend6>;
    fn conf(&self) -> Option<abi::Conf>;
    fn filter(&self) -> Filter;
}

/// Rows of both families: key and value.
type Rows = (Vec<(abi::FrontendKey4, u64)>, Vec<(abi::FrontendKey6, u64)>);

/// Makes an image of whatever the maps hold; what no plan would have written is marked as such.
fn decode(capacity: Capacity, (rows4, rows6): &Rows, table: &impl RawTable) -> MapImage {
    let mut observed = Observed::default();
    for (key, value) in rows4 {
        let abi::FrontendKey4 {
            addr,
            port_be,
            protocol,
            scope,
        } = *key;
        let family = AddressFamily::V4;
        let row = (
            addr.into(),
            port_be,
            protocol,
            scope,
            key.fingerprint(),
            *value,
        );
        decode_row(capacity, family, row, table, &mut observed);
    }
    for (key, value) in rows6 {
        let abi::FrontendKey6 {
            addr,
            port_be,
            protocol,
            scope,
            pad: _,
        } = *key;
        let family = AddressFamily::V6;
        let row = (
            addr.into(),
            port_be,
            protocol,
            scope,
            key.fingerprint(),
            *value,
        );
        decode_row(capacity, family, row, table, &mut observed);
    }
    for index in 0..capacity.services {
        if let Some(row) = table.row(index) {
            let generation = abi::PublishWord(row.word).generation();
            if generation != 0 {
                observed.generations.insert(index, generation);
            }
        }
    }
    observed.prefixes = table
        .conf()
        .map(|conf| decode_prefixes(&conf))
        .unwrap_or_default();
    observed.filter = table.filter();
    MapImage::observed(capacity, observed)
}

/// Whether the maps hold just what a plan has written to get to an image.
fn holds(image: &MapImage, (rows4, rows6): &Rows, table: &impl RawTable) -> bool {
    let keys4 = rows4.iter().map(|(key, value)| {
        let port = key_port(key.port_be, key.protocol, key.scope);
        (key.addr.into(), port, RawKey::V4(*key), *value)
    });
    let keys6 = rows6.iter().map(|(key, value)| {
        let port = key_port(key.port_be, key.protocol, key.scope);
        (key.addr.into(), port, RawKey::V6(*key), *value)
    });
    let is_row = |(address, port, key, value): (IpAddr, KeyPort, RawKey, u64)| {
        let row = image.frontends().get(&FrontendKey { address, port });
        row.is_some_and(|row| raw_value(&key, row) == value)
    };
    let prefixes = table.conf().map(|conf| decode_prefixes(&conf));
    let mut services = image.services().iter();
    rows4.len() + rows6.len() == image.frontends().len()
        && keys4.chain(keys6).all(is_row)
        && services.all(|(index, service)| holds_service(*index, service, table))
        && prefixes.is_some_and(|prefixes| prefixes == *image.prefixes())
        && table.filter() == *image.filter()
}

fn holds_service(index: u32, service: &ServiceImage, table: &impl RawTable) -> bool {
    let ServiceImage { family, base, set } = service;
    let (Some(set), Some(row)) = (set, table.row(index)) else {
        return false;
    };
    let generation = abi::PublishWord(row.word).generation();
    let is_published =
        row.word == publish_word(*base, set, generation).0 && row.affinity == affinity(set).0;
    is_published
        && match family {
            AddressFamily::V4 => {
                let entries = set.backends.iter().map(|backend| backend4(&backend));
                let mut entries = entries.chain(set.ranges().iter().map(range4)).zip(*base..);
                entries.all(|(entry, slot)| entry.is_some() && entry == table.backend4(slot))
            }
            AddressFamily::V6 => {
                let entries = set.backends.iter().map(|backend| backend6(&backend));
                let mut entries = entries.chain(set.ranges().iter().map(range6)).zip(*base..);
                entries.all(|(entry, slot)| entry.is_some() && entry == table.backend6(slot))
            }
        }
}

fn key_port(port_be: [u8; 2], protocol: u8, scope: u8) -> KeyPort {
    match (scope, protocol) {
        (abi::SCOPE_ADDRESS, _) => KeyPort::Any,
        (_, 6) => KeyPort::Port(Protocol::Tcp, u16::from_be_bytes(port_be)),
        (_, 17) => KeyPort::Port(Protocol::Udp, u16::from_be_bytes(port_be)),
        (_, _) => KeyPort::Port(Protocol::Sctp, u16::from_be_bytes(port_be)),
    }
}

/// Whether an agent writes such a key: what else there is has no [`FrontendKey`] that leads back to it.
fn is_written4(key: &abi::FrontendKey4) -> bool {
    let parts = (key.port_be, key.protocol, key.scope);
    key_parts(key_port(key.port_be, key.protocol, key.scope)) == parts
}

fn is_written6(key: &abi::FrontendKey6) -> bool {
    let parts = (key.port_be, key.protocol, key.scope);
    key.pad == [0; 4] && key_parts(key_port(key.port_be, key.protocol, key.scope)) == parts
}

/// Address, port, protocol, scope, fingerprint of the key, value.
type RawRow = (IpAddr, [u8; 2], u8, u8, u32, u64);

fn decode_row(
    capacity: Capacity,
    family: AddressFamily,
    (address, port_be, protocol, scope, fingerprint, value): RawRow,
    table: &impl RawTable,
    observed: &mut Observed,
) {
    let port = key_port(port_be, protocol, scope);
    let value = abi::FrontendValue(value);
    let is_node_only = value.flags() & abi::FRONTEND_NODE_ONLY != 0;
    let is_on_node = value.flags() & abi::FRONTEND_ON_NODE != 0;
    let is_ours = value.fingerprint() == fingerprint;
    let service = if is_ours { value.service() } else { u32::MAX };
    observed.frontends.insert(
        FrontendKey { address, port },
        FrontendRow {
            service,
            is_node_only,
            is_on_node,
        },
    );
    if port == KeyPort::Any || service >= capacity.services {
        return;
    }
    observed
        .services
        .entry(service)
        .or_insert_with(|| decode_service(family, service, table));
}

fn decode_service(family: AddressFamily, index: u32, table: &impl RawTable) -> ServiceImage {
    let row = table.row(index).unwrap_or_default();
    let word = abi::PublishWord(row.word);
    let end = word.base() + u32::from(word.count());
    let backends: Option<Vec<SocketAddr>> = (word.base()..end)
        .map(|slot| match family {
            AddressFamily::V4 => table.backend4(slot).map(|backend| {
                SocketAddr::new(backend.addr.into(), u16::from_be_bytes(backend.port_be))
            }),
            AddressFamily::V6 => table.backend6(slot).map(|backend| {
                SocketAddr::new(backend.addr.into(), u16::from_be_bytes(backend.port_be))
            }),
        })
        .collect();
    let ranges: Option<Vec<IpNetwork>> = (end..end + u32::from(word.ranges()))
        .map(|slot| match family {
            AddressFamily::V4 => {
                let range = table.backend4(slot)?;
                IpNetwork::with_netmask(range.addr.into(), range.mask().into()).ok()
            }
            AddressFamily::V6 => {
                let range = table.backend6(slot)?;
                IpNetwork::new(range.addr.into(), range.prefix_length()).ok()
            }
        })
        .collect();
    let affinity = abi::Affinity(row.affinity);
    // Readers search the range by halves: it must be sorted.
    let backends = backends.filter(|backends| backends.is_sorted_by(|a, b| a < b));
    let set = backends.zip(ranges).map(|(backends, ranges)| {
        let terms = Terms {
            ranges,
            affinity_seconds: affinity.seconds(),
            affinity_identity: affinity.identity(),
            is_drop: word.is_drop(),
        };
        ServedSet::new(backends.into_iter().collect(), terms)
    });
    ServiceImage {
        family,
        base: word.base(),
        set,
    }
}

fn decode_prefixes(conf: &abi::Conf) -> ClusterPrefixes {
    let set = &conf.prefixes[(conf.active_prefixes & 1) as usize];
    let v4 = set.v4.iter().take(set.v4_len as usize);
    let v6 = set.v6.iter().take(set.v6_len as usize);
    let prefixes = v4
        .map(|prefix| decode_prefix(prefix.addr.into(), prefix.mask.into()))
        .chain(v6.map(|prefix| decode_prefix(prefix.addr.into(), prefix.mask.into())))
        .collect();
    ClusterPrefixes {
        prefixes,
        are_service_cidrs: set.flags & abi::PREFIXES_ARE_SERVICE_CIDRS != 0,
    }
}

/// A mask that is none shows as a prefix that no table has, and is so replaced.
fn decode_prefix(address: IpAddr, mask: IpAddr) -> IpNetwork {
    IpNetwork::with_netmask(address, mask)
        .unwrap_or(IpNetwork::V4(Ipv4Network::from(Ipv4Addr::UNSPECIFIED)))
}

/// Where the writes of a plan end up; `Op` by `Op`.
trait Write {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_no_agent_writes_is_told_from_those_that_it_does() {
        let key = |port, protocol, scope| abi::FrontendKey4 {
            addr: [10, 96, 0, 10],
            port_be: [0, port],
            protocol,
            scope,
        };
        for (port, protocol, scope) in [(80, 6, 0), (80, 17, 0), (80, 132, 0), (0, 0, 1)] {
            assert!(is_written4(&key(port, protocol, scope)));
        }
        for (port, protocol, scope) in [(80, 99, 0), (80, 6, 7), (80, 6, 1), (0, 6, 1), (0, 0, 0)] {
            assert!(!is_written4(&key(port, protocol, scope)));
        }
        let padded = abi::FrontendKey6 {
            protocol: 6,
            pad: [0, 0, 0, 1],
            ..abi::FrontendKey6::default()
        };
        assert!(!is_written6(&padded));
    }

    #[test]
    fn a_prefix_with_a_mask_that_is_none_is_not_overlooked() {
        let mut conf = abi::Conf::default();
        conf.prefixes[0].v4_len = 1;
        conf.prefixes[0].v4[0] = abi::Prefix4 {
            addr: [10, 0, 0, 0],
            mask: [0xff, 0, 0xff, 0],
        };
        assert_ne!(decode_prefixes(&conf), ClusterPrefixes::default());
    }
}
