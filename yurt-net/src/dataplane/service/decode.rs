//! Decodes the kernel's maps into an image, whatever program wrote them.
//!
//! Pure. Entries that no plan would have written decode to something that no plan wants, so that they are replaced.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnetwork::{IpNetwork, Ipv4Network};
use yurt_ebpf::abi;
use yurt_ebpf::frame::ip::{TCP, UDP};

use super::encode::{
    RawKey, affinity, backend4, backend6, publish_word, range4, range6, raw_value,
};
use crate::model::{AddressFamily, Protocol};
use crate::plan::{
    Capacity, Filter, FrontendKey, FrontendRow, KeyPort, MapImage, Observed, Outside, ServedSet,
    ServiceImage, Terms,
};
use crate::table::{ClusterPrefixes, Scope};

/// The table maps, as [`decode`] reads them.
pub(in crate::dataplane) trait RawTable {
    fn row(&self, service: u32) -> Option<abi::ServiceRow>;
    fn backend4(&self, slot: u32) -> Option<abi::Backend4>;
    fn backend6(&self, slot: u32) -> Option<abi::Backend6>;
    fn conf(&self) -> Option<abi::Conf>;
    fn filter(&self) -> Filter;
}

/// Rows of both families: key and value.
pub(in crate::dataplane) type Rows = (Vec<(abi::FrontendKey4, u64)>, Vec<(abi::FrontendKey6, u64)>);

/// The rows of both families, one family after the other.
fn rows_of((rows4, rows6): &Rows) -> impl Iterator<Item = (RawKey, u64)> {
    let rows4 = rows4.iter().map(|(key, value)| (RawKey::V4(*key), *value));
    let rows6 = rows6.iter().map(|(key, value)| (RawKey::V6(*key), *value));
    rows4.chain(rows6)
}

/// Makes an image of the maps. Entries that no plan would have written are marked as such.
pub(in crate::dataplane) fn decode(
    capacity: Capacity,
    rows: &Rows,
    table: &impl RawTable,
) -> MapImage {
    let mut observed = Observed::default();
    for (key, value) in rows_of(rows) {
        decode_row(capacity, &key, value, table, &mut observed);
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

/// Whether the maps hold exactly what an image says.
pub(in crate::dataplane) fn holds(image: &MapImage, rows: &Rows, table: &impl RawTable) -> bool {
    let is_row = |(key, value): (RawKey, u64)| {
        let row = image.frontends().get(&FrontendKey::from(&key));
        row.is_some_and(|row| raw_value(&key, row) == value)
    };
    let prefixes = table.conf().map(|conf| decode_prefixes(&conf));
    let mut services = image.services().iter();
    rows.0.len() + rows.1.len() == image.frontends().len()
        && rows_of(rows).all(is_row)
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
    let scope = match scope {
        abi::SCOPE_ADDRESS => return KeyPort::Any,
        abi::SCOPE_EXTERNAL => Scope::External,
        _ => Scope::Internal,
    };
    let protocol = match protocol {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        _ => Protocol::Sctp,
    };
    KeyPort::Port(scope, protocol, u16::from_be_bytes(port_be))
}

impl From<&RawKey> for FrontendKey {
    fn from(key: &RawKey) -> Self {
        let (address, port) = match key {
            RawKey::V4(key) => (
                key.addr.into(),
                key_port(key.port_be, key.protocol, key.scope),
            ),
            RawKey::V6(key) => (
                key.addr.into(),
                key_port(key.port_be, key.protocol, key.scope),
            ),
        };
        Self { address, port }
    }
}

/// Whether an agent writes this key: whether it is the encoding of a [`FrontendKey`].
pub(in crate::dataplane) fn is_written(key: RawKey) -> bool {
    RawKey::from(&FrontendKey::from(&key)) == key
}

fn decode_row(
    capacity: Capacity,
    raw_key: &RawKey,
    value: u64,
    table: &impl RawTable,
    observed: &mut Observed,
) {
    let key = FrontendKey::from(raw_key);
    let has = |flag| abi::FrontendValue(value).flags() & flag != 0;
    let mut row = FrontendRow {
        service: abi::FrontendValue(value).service(),
        is_node_only: has(abi::FRONTEND_NODE_ONLY),
        is_on_node: has(abi::FRONTEND_ON_NODE),
        outside: match has(abi::FRONTEND_OUTSIDE_APART) {
            true => Outside::Apart,
            false if has(abi::FRONTEND_OUTSIDE) => Outside::Same,
            false => Outside::No,
        },
    };
    // The entry belongs to another key, or has flags that no row has: programs ignore it.
    if raw_value(raw_key, &row) != value {
        row.service = u32::MAX;
    }
    observed.frontends.insert(key, row);
    let service = row.service;
    if key.port == KeyPort::Any || service >= capacity.services {
        return;
    }
    observed
        .services
        .entry(service)
        .or_insert_with(|| decode_service(key.address.into(), service, table));
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
    // Programs search the range by bisection, so it must be sorted.
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

/// A mask that is not contiguous becomes a prefix that no table has, so that it is replaced.
fn decode_prefix(address: IpAddr, mask: IpAddr) -> IpNetwork {
    IpNetwork::with_netmask(address, mask)
        .unwrap_or(IpNetwork::V4(Ipv4Network::from(Ipv4Addr::UNSPECIFIED)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dataplane::service::memory::MemoryDataplane;

    #[test]
    fn a_key_that_no_agent_writes_is_told_from_those_that_it_does() {
        let key = |port, protocol, scope| {
            RawKey::V4(abi::FrontendKey4 {
                addr: [10, 96, 0, 10],
                port_be: [0, port],
                protocol,
                scope,
            })
        };
        let written = [
            (80, 6, 0),
            (80, 17, 0),
            (80, 132, 0),
            (0, 0, 1),
            (80, 6, 2),
            (80, 17, 2),
        ];
        for (port, protocol, scope) in written {
            assert!(is_written(key(port, protocol, scope)));
        }
        for (port, protocol, scope) in [(80, 99, 2), (80, 6, 7), (80, 6, 1), (0, 6, 1), (0, 0, 0)] {
            assert!(!is_written(key(port, protocol, scope)));
        }
        let padded = abi::FrontendKey6 {
            protocol: 6,
            pad: [0, 0, 0, 1],
            ..abi::FrontendKey6::default()
        };
        assert!(!is_written(RawKey::V6(padded)));
    }

    const CAPACITY: Capacity = Capacity {
        frontends4: 4,
        frontends6: 4,
        services: 8,
        slots4: 8,
        slots6: 8,
    };

    fn frontend_keys() -> impl Strategy<Value = FrontendKey> {
        let protocol = proptest::sample::select(&[Protocol::Tcp, Protocol::Udp][..]);
        let scope = proptest::sample::select(&[Scope::Internal, Scope::External][..]);
        let port = (scope, protocol, any::<u16>());
        let port = port.prop_map(|(scope, protocol, port)| KeyPort::Port(scope, protocol, port));
        let port = proptest::prop_oneof![Just(KeyPort::Any), port];
        (any::<IpAddr>(), port).prop_map(|(address, port)| FrontendKey { address, port })
    }

    fn decoded(key: &FrontendKey, value: u64) -> FrontendRow {
        let rows = match RawKey::from(key) {
            RawKey::V4(key) => (vec![(key, value)], Vec::new()),
            RawKey::V6(key) => (Vec::new(), vec![(key, value)]),
        };
        let image = decode(CAPACITY, &rows, &MemoryDataplane::new(CAPACITY));
        image.frontends()[key]
    }

    proptest! {
        #[test]
        fn a_row_is_read_as_it_was_written(
            key in frontend_keys(),
            service in any::<u32>(),
            is_node_only in any::<bool>(),
            is_on_node in any::<bool>(),
            outside in proptest::sample::select(&[Outside::No, Outside::Same, Outside::Apart][..]),
        ) {
            let row = FrontendRow { service, is_node_only, is_on_node, outside };
            let value = raw_value(&RawKey::from(&key), &row);
            prop_assert_eq!(decoded(&key, value), row);
        }

        #[test]
        fn a_value_that_no_row_has_is_no_service_of_any_plan(
            key in frontend_keys(),
            service in 0..8u32,
            flags in any::<u8>(),
            flipped in 0..64u32,
        ) {
            let raw_key = RawKey::from(&key);
            let row = FrontendRow { service, ..FrontendRow::default() };
            let value = raw_value(&raw_key, &row) | u64::from(flags) << 56;
            for value in [value, value ^ 1 << flipped] {
                let row = decoded(&key, value);
                prop_assert!(raw_value(&raw_key, &row) == value || row.service == u32::MAX);
            }
        }
    }

    #[test]
    fn a_mask_that_is_not_contiguous_is_not_overlooked() {
        let mut conf = abi::Conf::default();
        conf.prefixes[0].v4_len = 1;
        conf.prefixes[0].v4[0] = abi::Prefix4 {
            addr: [10, 0, 0, 0],
            mask: [0xff, 0, 0xff, 0],
        };
        assert_ne!(decode_prefixes(&conf), ClusterPrefixes::default());
    }
}
