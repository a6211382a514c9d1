//! The devices of this machine, as the guard needs them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteVia,
};
use rtnetlink::{Handle, MulticastGroup};

use super::follow::{Follower, NodeError, routes};
use super::neighbours::{entries, neighbour};
use super::routes::main_routes;
use super::tables::{Near, Neighbour};
use crate::device::Link;

/// Reads and follows devices, the default routes that lead out of them, and what is attached to them by filters.
pub struct LinkWatch(Follower);

impl LinkWatch {
    /// Subscribes; changes from here on are not missed.
    pub fn new() -> Result<Self, NodeError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Tc,
        ];
        Follower::new(&groups).map(Self)
    }

    /// Waits for a change, and until a burst of them is over. Cancel safe.
    pub async fn changed(&mut self) {
        self.0.changed().await;
    }

    /// Whether this node sends packets for this address directly to its Pods.
    pub async fn leads_to_pods(&self, address: IpAddr) -> Result<bool, NodeError> {
        let all = routes(&self.0.handle).await?;
        let near = Near {
            links: links(&self.0.handle, &all).await?,
            routes: main_routes(all),
            ..Near::default()
        };
        Ok(near.leads_to_pods(address))
    }

    /// The devices, by index, with their neighbours.
    pub async fn links(&self) -> Result<Vec<Link>, NodeError> {
        let handle = &self.0.handle;
        let mut links = links(handle, &routes(handle).await?).await?;
        let mut addresses = addresses(handle).await?;
        for link in &mut links {
            link.addresses = addresses.remove(&link.ifindex).unwrap_or_default();
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let entries = entries(handle, family).await?;
            for Neighbour {
                device,
                address,
                mac,
            } in entries.iter().filter_map(neighbour)
            {
                if let Ok(at) = links.binary_search_by_key(&device, |link| link.ifindex) {
                    links[at].neighbours.push((address, mac.0));
                }
            }
        }
        Ok(links)
    }
}

/// The addresses that are in force on each device, in the kernel's order of preference for its own packets.
async fn addresses(handle: &Handle) -> Result<BTreeMap<u32, Vec<IpAddr>>, NodeError> {
    let listing = |source| NodeError::List {
        what: "addresses",
        source,
    };
    let unfit = AddressHeaderFlags::Tentative
        | AddressHeaderFlags::Dadfailed
        | AddressHeaderFlags::Deprecated;
    let mut found: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
    let mut listed = handle.address().get().execute();
    while let Some(message) = listed.try_next().await.map_err(listing)? {
        if message.header.flags.intersects(unfit) {
            continue;
        }
        let own = found.entry(message.header.index).or_default();
        own.extend(local_address(&message));
    }
    Ok(found)
}

/// Our own address in a message. On a point-to-point link, `Address` is the peer's and `Local` is ours.
pub(super) fn local_address(message: &AddressMessage) -> Option<IpAddr> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => return Some(*local),
            AddressAttribute::Address(other) => address = Some(*other),
            _ => {}
        }
    }
    address
}

/// The devices, by index; `routes` tell which of them lead away from this node.
pub(super) async fn links(
    handle: &Handle,
    routes: &[Vec<RouteMessage>; 2],
) -> Result<Vec<Link>, NodeError> {
    let listing = |source| NodeError::List {
        what: "devices",
        source,
    };
    let links = handle.link().get().execute();
    let links: Vec<LinkMessage> = links.try_collect().await.map_err(listing)?;
    let mut uplinks: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
    for (device, gateway) in routes.iter().flatten().flat_map(default_hops) {
        uplinks.entry(device).or_default().extend(gateway);
    }
    let mut links: Vec<Link> = links
        .iter()
        .map(|message| {
            let mut link = as_link(message);
            if let Some(gateways) = uplinks.remove(&link.ifindex) {
                link.is_uplink = true;
                link.gateways = gateways;
            }
            link
        })
        .collect();
    links.sort_by_key(|link| link.ifindex);
    Ok(links)
}

/// The devices that a route leads out of, and its next hops, if it is a default route of the main table.
fn default_hops(route: &RouteMessage) -> Vec<(u32, Option<IpAddr>)> {
    let is_default = route.header.destination_prefix_length == 0
        && route.header.table == RouteHeader::RT_TABLE_MAIN;
    if !is_default {
        return Vec::new();
    }
    let gateway = |attributes: &[RouteAttribute]| {
        attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
            _ => None,
        })
    };
    let mut devices = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(device) => devices.push((*device, gateway(&route.attributes))),
            RouteAttribute::MultiPath(hops) => {
                let hops = hops.iter();
                devices.extend(hops.map(|hop| (hop.interface_index, gateway(&hop.attributes))));
            }
            _ => {}
        }
    }
    devices
}

/// Whether packets have no link-layer header (`dev_is_mac_header_xmit`, include/linux/if_arp.h).
fn is_l3(layer: LinkLayerType) -> bool {
    matches!(
        layer,
        LinkLayerType::None
            | LinkLayerType::Rawip
            | LinkLayerType::Ppp
            | LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit
            | LinkLayerType::Ipgre
            | LinkLayerType::Ip6gre
    )
}

/// A device from a netlink message; what only routes tell is left at its default.
pub fn as_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        ifindex: message.header.index,
        is_l3: is_l3(message.header.link_layer_type),
        has_carrier: message
            .header
            .flags
            .contains(LinkFlags::Up | LinkFlags::LowerUp),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Link(other) => link.other_end = Some(*other),
            LinkAttribute::LinkNetNsId(netns) => link.other_end_netns = Some(*netns),
            LinkAttribute::Controller(controller) => link.controller = Some(*controller),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = kind.to_string();
                    }
                }
            }
            _ => {}
        }
    }
    link
}
