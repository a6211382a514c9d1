//! The addresses of this machine. NodePorts answer only on addresses that an interface has; at the edge these come and
//! go with modems and DHCP.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::TryStreamExt;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::{Handle, MulticastGroup};

use super::follow::{Follower, NodeError, routes};
use super::links::{links, local_address};
use super::resolver::Nameservers;
use super::routes::main_routes;
use super::tables::Near;
use crate::policy::NodeView;

/// Reads and follows addresses, and the machine's nameservers.
pub struct NodeWatch {
    follower: Follower,
    nameservers: Nameservers,
    pod_devices: Vec<String>,
}

impl NodeWatch {
    /// Subscribes; changes from here on are not missed. `pod_devices`: name patterns of devices that lead to Pods;
    /// empty for every veth device that leads out of this namespace.
    pub fn new(pod_devices: Vec<String>) -> Result<Self, NodeError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        Ok(Self {
            follower: Follower::new(&groups)?,
            nameservers: Nameservers::new(),
            pod_devices,
        })
    }

    /// Waits for a change, and until a burst of them is over. Cancel safe.
    pub async fn changed(&mut self) {
        tokio::select! {
            () = self.follower.changed() => {}
            () = self.nameservers.changed() => {}
        }
    }

    /// Addresses on interfaces, the sources of the default routes, and where routes lead to Pods.
    pub async fn view(&mut self) -> Result<NodeView, NodeError> {
        let handle = &self.follower.handle;
        let (_, routes, view) = view(handle).await?;
        let near = Near {
            links: links(handle, &routes).await?,
            routes: main_routes(routes),
            ..Near::default()
        };
        let pod_networks = near.pod_networks(&self.pod_devices);
        Ok(NodeView {
            pod_routes: Arc::new(pod_networks.map(|network| (network, ())).collect()),
            nameservers: self.nameservers.get().await,
            ..view
        })
    }
}

/// Devices on which kube-proxy in IPVS mode (kubernetes pkg/proxy/ipvs) and kube-router put every address of every
/// Service: these are not the node's own. The devices remain when such a proxy is removed.
const PROXY_DEVICES: [&str; 2] = ["kube-ipvs0", "kube-dummy-if"];

/// The indices of those that exist.
async fn proxy_devices(handle: &Handle) -> Vec<u32> {
    let mut found = Vec::new();
    for name in PROXY_DEVICES {
        let link = handle.link().get().match_name(name.to_owned());
        // Nearly every node has neither, which is the usual error.
        let link = link.execute().try_next().await.ok().flatten();
        found.extend(link.map(|link| link.header.index));
    }
    found
}

/// The routes of both families.
type Routes = [Vec<RouteMessage>; 2];

/// The interface of each address, all routes, and a view without Pods and nameservers.
pub(super) async fn view(
    handle: &Handle,
) -> Result<(Vec<(u32, IpAddr)>, Routes, NodeView), NodeError> {
    let proxies = proxy_devices(handle).await;
    let mut by_interface: Vec<(u32, IpAddr)> = Vec::new();
    let mut addresses = handle.address().get().execute();
    let listing = |source| NodeError::List {
        what: "addresses",
        source,
    };
    while let Some(message) = addresses.try_next().await.map_err(listing)? {
        if proxies.contains(&message.header.index) {
            continue;
        }
        let address = local_address(&message);
        by_interface.extend(address.map(|address| (message.header.index, address)));
    }
    let routes = routes(handle).await?;
    let [routes4, routes6] = &routes;
    let source4 = default_source(routes4, &by_interface, IpAddr::is_ipv4);
    let source6 = default_source(routes6, &by_interface, IpAddr::is_ipv6);
    let local_addresses: BTreeSet<IpAddr> =
        by_interface.iter().map(|&(_, address)| address).collect();
    let view = NodeView {
        local_addresses: Some(local_addresses),
        default_source: (
            source4.and_then(|address| match address {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            }),
            source6.and_then(|address| match address {
                IpAddr::V6(address) => Some(address),
                IpAddr::V4(_) => None,
            }),
        ),
        ..NodeView::default()
    };
    Ok((by_interface, routes, view))
}

/// The source address of the default route with the lowest metric: its preferred source, otherwise an address of its
/// interface.
fn default_source(
    routes: &[RouteMessage],
    by_interface: &[(u32, IpAddr)],
    is_family: fn(&IpAddr) -> bool,
) -> Option<IpAddr> {
    let default = routes
        .iter()
        .filter(|route| route.header.destination_prefix_length == 0)
        .filter_map(|route| {
            let (mut interface, mut metric, mut source) = (None, 0, None);
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => interface = Some(*index),
                    RouteAttribute::Priority(priority) => metric = *priority,
                    RouteAttribute::PrefSource(RouteAddress::Inet(address)) => {
                        source = Some(IpAddr::V4(*address));
                    }
                    RouteAttribute::PrefSource(RouteAddress::Inet6(address)) => {
                        source = Some(IpAddr::V6(*address));
                    }
                    _ => {}
                }
            }
            Some((metric, interface?, source))
        })
        .min()?;
    let (_, interface, preferred) = default;
    let is_global = |address: &IpAddr| match address {
        IpAddr::V4(address) => !address.is_link_local(),
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    };
    preferred.or_else(|| {
        by_interface
            .iter()
            .filter(|(index, address)| *index == interface && is_family(address))
            .map(|(_, address)| *address)
            .find(is_global)
    })
}
