//! The routes in the main table: adds those to single addresses of translated Pods, and reads all of them.
//!
//! Our routes have a protocol of their own, so that they are found again and no other route is touched. Calls return
//! when the kernel has answered. They are for threads that may wait.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::runtime::Runtime;

use super::follow::{NodeError, connect, routes};
use crate::device::Route;

/// `rtm_protocol` of our routes, as `ip route` shows it. Nobody else in `/etc/iproute2/rt_protos` has it.
const PROTOCOL: u8 = 121;

/// Routes that cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The runtime or its netlink socket could not be opened.
    #[error("open a netlink socket for routes")]
    Open(#[source] io::Error),
    /// The routes could not be listed.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A route could not be changed.
    #[error("{operation} the route to {address} by device {device}")]
    Change {
        /// The operation.
        operation: &'static str,
        /// The destination.
        address: IpAddr,
        /// The device that the route leads out of.
        device: u32,
        /// The cause.
        #[source]
        source: Box<rtnetlink::Error>,
    },
}

/// The routes of the network namespace in which this was opened.
pub struct Routes {
    handle: Handle,
    runtime: Runtime,
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routes").finish_non_exhaustive()
    }
}

impl Routes {
    /// Connects. Must be called, used and dropped on threads that no runtime waits on.
    pub fn open() -> Result<Self, RouteError> {
        let (handle, runtime) = connect().map_err(RouteError::Open)?;
        Ok(Self { handle, runtime })
    }

    /// Removes all routes of ours; true if there were any. May be called on any thread.
    pub fn withdraw() -> Result<bool, RouteError> {
        let withdraw = || {
            let routes = Self::open()?;
            routes.remove_ours()
        };
        std::thread::scope(|scope| match scope.spawn(withdraw).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Removes all routes of ours; true if there were any.
    pub fn remove_ours(&self) -> Result<bool, RouteError> {
        let ours = self.ours()?;
        let mut removed = Ok(());
        for (address, device) in &ours {
            removed = removed.and(self.delete(*address, *device));
        }
        removed.map(|()| !ours.is_empty())
    }

    fn list(&self) -> Result<Vec<RouteMessage>, RouteError> {
        let [v4, v6] = self.runtime.block_on(routes(&self.handle))?;
        let all = v4.into_iter().chain(v6);
        let main = |route: &RouteMessage| route.header.table == RouteHeader::RT_TABLE_MAIN;
        Ok(all.filter(main).collect())
    }

    /// The routes that are ours.
    pub fn ours(&self) -> Result<BTreeSet<(IpAddr, u32)>, RouteError> {
        let routes = self.list()?;
        let ours = routes.iter().filter(|route| is_ours(route));
        let host = ours.filter_map(|route| {
            let prefix = destination(route)?;
            let is_host = prefix.prefix() == if prefix.is_ipv4() { 32 } else { 128 };
            Some((is_host.then(|| prefix.ip())?, device(route)?))
        });
        Ok(host.collect())
    }

    /// All routes of the main table, for the planner.
    pub fn known(&self) -> Result<Vec<Route>, RouteError> {
        Ok(known(&self.list()?))
    }

    /// Routes an address to a neighbour at a device. Replaces a route of ours, but no other one.
    pub fn put(&self, address: IpAddr, device: u32) -> Result<(), RouteError> {
        let add = || {
            let request = self.handle.route().add(message(address, device));
            self.runtime.block_on(request.execute())
        };
        let done = match add() {
            Err(rtnetlink::Error::NetlinkError(answer)) if answer.raw_code() == -libc::EEXIST => {
                for (_, device) in self.ours()?.into_iter().filter(|(of, _)| *of == address) {
                    self.delete(address, device)?;
                }
                add()
            }
            done => done,
        };
        done.map_err(failed("make", address, device))
    }

    /// Removes a route of ours. A missing one is no error.
    pub fn delete(&self, address: IpAddr, device: u32) -> Result<(), RouteError> {
        let request = self.handle.route().del(message(address, device));
        match self.runtime.block_on(request.execute()) {
            Err(rtnetlink::Error::NetlinkError(answer))
                if matches!(-answer.raw_code(), libc::ESRCH | libc::ENODEV) =>
            {
                Ok(())
            }
            done => done.map_err(failed("remove", address, device)),
        }
    }
}

fn failed(
    operation: &'static str,
    address: IpAddr,
    device: u32,
) -> impl FnOnce(rtnetlink::Error) -> RouteError {
    move |source| RouteError::Change {
        operation,
        address,
        device,
        source: Box::new(source),
    }
}

fn message(address: IpAddr, device: u32) -> RouteMessage {
    let protocol = RouteProtocol::Other(PROTOCOL);
    match address {
        IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .scope(RouteScope::Link)
            .output_interface(device)
            .protocol(protocol)
            .build(),
        IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(address, 128)
            .output_interface(device)
            .protocol(protocol)
            .build(),
    }
}

/// The routes of the main table among all routes, in the form for the planner.
pub(super) fn main_routes(all: [Vec<RouteMessage>; 2]) -> Vec<Route> {
    let is_main = |route: &RouteMessage| route.header.table == RouteHeader::RT_TABLE_MAIN;
    let main: Vec<RouteMessage> = all.into_iter().flatten().filter(is_main).collect();
    known(&main)
}

/// Routes of the main table, in the form for the planner.
pub(super) fn known(routes: &[RouteMessage]) -> Vec<Route> {
    let known = routes.iter().filter_map(|route| {
        let has_gateway = route.attributes.iter().any(|attribute| {
            matches!(
                attribute,
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_)
            )
        });
        let is_unicast = route.header.kind == RouteType::Unicast;
        Some(Route {
            prefix: destination(route)?,
            link: device(route).filter(|_| is_unicast && !has_gateway),
            is_hole: matches!(
                route.header.kind,
                RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit
            ),
            is_ours: is_ours(route),
        })
    });
    known.collect()
}

fn is_ours(route: &RouteMessage) -> bool {
    route.header.protocol == RouteProtocol::Other(PROTOCOL)
}

pub(super) fn destination(route: &RouteMessage) -> Option<IpNetwork> {
    let mut attributes = route.attributes.iter();
    let address = attributes.find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    IpNetwork::new(address?, route.header.destination_prefix_length).ok()
}

pub(super) fn device(route: &RouteMessage) -> Option<u32> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(device) => Some(*device),
            _ => None,
        })
}

pub(super) fn gateway(route: &RouteMessage) -> Option<IpAddr> {
    let mut attributes = route.attributes.iter();
    attributes.find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
