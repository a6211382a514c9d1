//! The kernel's entries about the peers of vxlan devices (neighbours and the forwarding database): reads them, and
//! repairs them as `tunnel::peers` decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage};
use rtnetlink::Handle;

use super::follow::{NodeError, routes};
use super::neighbours::{entries, mac, plain};
use super::routes::{destination, device, gateway};
use super::view::view;
use super::vtep::{VtepError, as_device, find};
use crate::tunnel::peers::{Repair, Tunnel};
use crate::tunnel::vtep::What;

/// Entries that cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum EntriesError {
    /// The socket could not be opened, or entries could not be listed.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A device could not be read.
    #[error(transparent)]
    Device(#[from] VtepError),
    /// An entry could not be changed.
    #[error("{operation} of {device}")]
    Entry {
        /// The operation.
        operation: String,
        /// The device.
        device: String,
        /// The cause.
        #[source]
        source: rtnetlink::Error,
    },
}

/// The entries of the network namespace in which this was opened.
pub struct Entries(Handle);

impl Entries {
    /// Connects. Call it in a runtime, which has to run while this is used.
    pub fn open() -> Result<Self, EntriesError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NodeError::Open)?;
        // It ends with its last handle.
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// The devices of these names that exist and are vxlan devices, with their permanent entries.
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

    /// Gives the peer's entries another MAC. The old one leads nowhere, so nothing is lost between the steps.
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
            done => done.map_err(failed(format!(
                "delete the entry that has MAC {from} at {peer}"
            )))?,
        }
        Ok(())
    }
}

async fn interface_with(handle: &Handle, address: IpAddr) -> Result<Option<u32>, NodeError> {
    let (by_interface, ..) = view(handle).await?;
    let mut with = by_interface.iter().filter(|(_, known)| *known == address);
    Ok(with.next().map(|(index, _)| *index))
}
