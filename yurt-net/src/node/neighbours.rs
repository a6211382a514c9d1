//! Reads and writes neighbours and the forwarding database.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::Handle;

use super::follow::NodeError;
use super::tables::Neighbour;
use crate::device::Mac;

/// The permanent neighbours of a device.
pub(super) async fn neighbours(
    handle: &Handle,
    ifindex: u32,
) -> Result<BTreeMap<IpAddr, Mac>, NodeError> {
    let mut neighbours = BTreeMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let of_device = |entry: &NeighbourMessage| entry.header.ifindex == ifindex;
        let entries = entries(handle, family).await?;
        let entries = entries.iter().filter(|entry| of_device(entry));
        neighbours.extend(
            entries
                .filter_map(plain)
                .map(|(mac, address)| (address, mac)),
        );
    }
    Ok(neighbours)
}

/// Adds those of these neighbours that a device lacks; returns how many.
pub(super) async fn put_back(
    handle: &Handle,
    ifindex: u32,
    neighbours: &BTreeMap<IpAddr, Mac>,
) -> Result<usize, rtnetlink::Error> {
    let mut count = 0;
    for (&address, mac) in neighbours {
        let add = handle.neighbours().add(ifindex, address);
        match add.link_layer_address(&mac.0).execute().await {
            Ok(()) => count += 1,
            Err(rtnetlink::Error::NetlinkError(answer)) if answer.raw_code() == -libc::EEXIST => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// All entries of a family; the forwarding database is one, too.
pub(super) async fn entries(
    handle: &Handle,
    family: AddressFamily,
) -> Result<Vec<NeighbourMessage>, NodeError> {
    let entries = handle.neighbours().get().set_address_family(family);
    let listing = |source| NodeError::List {
        what: "neighbours and forwarding entries",
        source,
    };
    entries.execute().try_collect().await.map_err(listing)
}

/// MAC and address of a permanent entry without further attributes. Another program made an entry with a port, a
/// network or a device of its own for its own purpose, so it is left out.
pub(super) fn plain(entry: &NeighbourMessage) -> Option<(Mac, IpAddr)> {
    let is_expected = match entry.header.family {
        AddressFamily::Bridge => entry.header.flags == NeighbourFlags::Own,
        _ => entry.header.flags.is_empty(),
    };
    // `bridge fdb add .. permanent` sets NUD_NOARP as well, flannel does not.
    let is_permanent = u16::from(entry.header.state) & u16::from(NeighbourState::Permanent) != 0;
    if !is_expected || !is_permanent {
        return None;
    }
    let mut address = None;
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::Destination(destination) => address = as_ip(destination),
            NeighbourAttribute::Port(_)
            | NeighbourAttribute::Vni(_)
            | NeighbourAttribute::SourceVni(_)
            | NeighbourAttribute::IfIndex(_) => return None,
            _ => {}
        }
    }
    Some((mac(entry)?, address?))
}

/// The link-layer address of an entry.
pub(super) fn mac(entry: &NeighbourMessage) -> Option<Mac> {
    let bytes = entry
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => Some(bytes.as_slice()),
            _ => None,
        });
    bytes?.try_into().ok().map(Mac)
}

/// The address in an attribute.
pub(super) fn as_ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        // From the forwarding database: the length tells the family.
        NeighbourAddress::Other(bytes) => {
            let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(Ipv4Addr::from);
            let v6 = <[u8; 16]>::try_from(bytes.as_slice()).map(Ipv6Addr::from);
            v4.map(IpAddr::V4).or(v6.map(IpAddr::V6)).ok()
        }
        _ => None,
    }
}

/// A neighbour that has answered, or was entered by hand.
pub(super) fn neighbour(entry: &NeighbourMessage) -> Option<Neighbour> {
    let is_known = matches!(
        entry.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
    );
    let address = entry
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(address) => as_ip(address),
            _ => None,
        });
    Some(Neighbour {
        device: entry.header.ifindex,
        address: address.filter(|_| is_known)?,
        mac: mac(entry)?,
    })
}
