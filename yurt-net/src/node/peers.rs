//! What the kernel knows of the peers of vxlan devices: neighbours, and the forwarding database. Read, and repaired as `retain::peers` says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::Handle;

use super::routes::{destination, device, gateway};
use super::vtep::{VtepError, as_device, find};
use super::{NodeError, routes, view};
use crate::retain::ledger::Mac;
use crate::retain::peers::{Repair, Tunnel};
use crate::retain::vtep::What;

/// Entries that cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum EntriesError {
    /// Socket, or lists.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A device.
    #[error(transparent)]
    Device(#[from] VtepError),
    /// An entry.
    #[error("{operation} of {device}")]
    Entry {
        /// What was tried.
        operation: String,
        /// On which device.
        device: String,
        /// Why not.
        #[source]
        source: rtnetlink::Error,
    },
}

/// The entries of the network namespace of whoever opens it.
pub struct Entries(Handle);

impl Entries {
    /// Connects. In a runtime, which has to run while this is used.
    pub fn open() -> Result<Self, EntriesError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NodeError::Open)?;
        // It ends with its last handle.
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// Those of the named devices that are there and are vxlan devices, with their permanent entries.
    pub async fn tunnels(
        &self,
        names: &[String],
    ) -> Result<BTreeMap<String, Tunnel>, EntriesError> {
        let Self(handle) = self;
        let mut tunnels = BTreeMap::new();
        for name in names {
            let Some(message) = find(handle, name).await? else {
                continue;
            };
            let Some(device) = as_device(&message, false) else {
                continue;
            };
            let What::Vxlan(vxlan) = device.what else {
                continue;
            };
            let tunnel = Tunnel {
                ifindex: device.ifindex,
                mac: device.mac,
                vni: vxlan.vni,
                port: vxlan.port,
                underlay: match (vxlan.underlay, vxlan.local) {
                    (None, Some(local)) => interface_with(handle, local).await?,
                    (underlay, _) => underlay,
                },
                forwarding: BTreeMap::new(),
                others: BTreeSet::new(),
                neighbours: BTreeMap::new(),
                routes: Vec::new(),
            };
            tunnels.insert(name.clone(), tunnel);
        }
        if tunnels.is_empty() {
            return Ok(tunnels);
        }
        let families = [
            AddressFamily::Bridge,
            AddressFamily::Inet,
            AddressFamily::Inet6,
        ];
        for family in families {
            for entry in entries(handle, family).await? {
                let mut tunnels = tunnels.values_mut();
                let tunnel = tunnels.find(|tunnel| tunnel.ifindex == entry.header.ifindex);
                let Some(tunnel) = tunnel else { continue };
                match (family, plain(&entry)) {
                    (AddressFamily::Bridge, Some((mac, at))) => {
                        tunnel.forwarding.insert(mac, at);
                    }
                    (AddressFamily::Bridge, None) => tunnel.others.extend(mac(&entry)),
                    (_, Some((mac, address))) => {
                        tunnel.neighbours.insert(address, mac);
                    }
                    (_, None) => {}
                }
            }
        }
        for route in routes(handle).await?.iter().flatten() {
            let mut tunnels = tunnels.values_mut();
            let tunnel = tunnels.find(|tunnel| device(route) == Some(tunnel.ifindex));
            if let (Some(tunnel), Some(prefix)) = (tunnel, destination(route)) {
                tunnel.routes.push((prefix, gateway(route)));
            }
        }
        Ok(tunnels)
    }

    /// Has the peer known by another MAC. What it was known by leads nowhere, so nothing is lost between the steps.
    pub async fn repair(&self, repair: &Repair) -> Result<(), EntriesError> {
        let Repair {
            device,
            ifindex,
            node: _,
            peer,
            from,
            to,
            neighbours,
        } = repair;
        let failed = |operation: String| {
            move |source| EntriesError::Entry {
                operation,
                device: device.clone(),
                source,
            }
        };
        let entries = self.0.neighbours();
        let lead = entries.add_bridge(*ifindex, &to.0).destination(*peer);
        let lead = lead.flags(NeighbourFlags::Own).replace().execute();
        let operation = format!("forward {to} to {peer}");
        lead.await.map_err(failed(operation))?;
        for address in neighbours {
            let set = entries.add(*ifindex, *address).link_layer_address(&to.0);
            let operation = format!("set the MAC of neighbour {address}");
            set.replace().execute().await.map_err(failed(operation))?;
        }
        let mut old = NeighbourMessage::default();
        old.header.family = AddressFamily::Bridge;
        old.header.ifindex = *ifindex;
        old.header.flags = NeighbourFlags::Own;
        old.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(from.0.to_vec()),
            NeighbourAttribute::Destination((*peer).into()),
        ];
        match entries.del(old).execute().await {
            Err(rtnetlink::Error::NetlinkError(answer)) if answer.raw_code() == -libc::ENOENT => {}
            done => done.map_err(failed(format!("forget that {from} is at {peer}")))?,
        }
        Ok(())
    }
}

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

/// Makes those neighbours of a device that are not there. How many that were.
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

async fn interface_with(handle: &Handle, address: IpAddr) -> Result<Option<u32>, NodeError> {
    let (by_interface, _) = view(handle).await?;
    let mut with = by_interface.iter().filter(|(_, known)| *known == address);
    Ok(with.next().map(|(index, _)| *index))
}

/// MAC and address of a permanent entry that says nothing else: one of a port, a network or a device of its own is for others to judge.
fn plain(entry: &NeighbourMessage) -> Option<(Mac, IpAddr)> {
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

pub(super) fn as_ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        // Of the forwarding database: the length says which.
        NeighbourAddress::Other(bytes) => {
            let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(Ipv4Addr::from);
            let v6 = <[u8; 16]>::try_from(bytes.as_slice()).map(Ipv6Addr::from);
            v4.map(IpAddr::V4).or(v6.map(IpAddr::V6)).ok()
        }
        _ => None,
    }
}
