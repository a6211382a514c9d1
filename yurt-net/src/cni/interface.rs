//! The interface of a Pod, seen from inside its network namespace: its MAC, and the announcements of its addresses.
//!
//! Besides `node`, only this file uses rtnetlink. Each call enters the namespace on a thread of its own, and returns
//! when that thread is done.
#![expect(
    unsafe_code,
    reason = "packet sockets, which the standard library lacks"
)]

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use futures_util::TryStreamExt as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use rtnetlink::{Handle, LinkUnspec};

use crate::device::frames::frame;
use crate::device::{HostSide, Link, Mac, link_local};
use crate::host::netns::{Netns, inside};
use crate::node::as_link;

/// An interface that cannot be found, read or set.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The namespace cannot be entered.
    #[error("enter the network namespace of the Pod")]
    Enter(#[source] io::Error),
    /// A socket inside, or the runtime that drives it, cannot be made.
    #[error("open a socket inside the Pod")]
    Open(#[source] io::Error),
    /// The kernel refuses a request.
    #[error("{operation} {interface} of the Pod")]
    Netlink {
        /// The request.
        operation: &'static str,
        /// The interface.
        interface: String,
        /// The cause.
        #[source]
        source: rtnetlink::Error,
    },
    /// The interface is not Ethernet.
    #[error("{interface} of the Pod has no MAC")]
    NoMac {
        /// The interface.
        interface: String,
    },
    /// A frame cannot be sent.
    #[error("announce {address} on {interface} of the Pod")]
    Announce {
        /// The address that it would announce.
        address: IpAddr,
        /// The interface.
        interface: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The state in which an interface was left.
#[derive(Debug)]
pub struct Settled {
    /// Its MAC.
    pub mac: Mac,
    /// The host's end, if the interface is one of a veth device.
    pub host: Option<HostSide>,
    /// Failures that a Pod can do without.
    pub problems: Vec<LinkError>,
}

/// The MAC of an interface.
pub fn mac(netns: &Netns, interface: &str) -> Result<Mac, LinkError> {
    within(netns, async |handle| {
        Ok(find(&handle, interface).await?.mac)
    })
}

/// The host's end of an interface, if it is one of a veth device.
pub fn host_side(netns: &Netns, interface: &str) -> Result<Option<HostSide>, LinkError> {
    within(netns, async |handle| {
        Ok(find(&handle, interface).await?.host)
    })
}

/// Gives an interface this MAC, and announces its addresses to the neighbours.
///
/// The interface stays up (veth and macvlan allow that), so it loses no address and no route. Its link-local address is
/// derived anew, so that the Pod keeps that one, too. If the driver refuses to change the MAC, the interface keeps its
/// own, and the problem is returned.
pub fn settle(
    netns: &Netns,
    interface: &str,
    wanted: Option<Mac>,
    addresses: &[IpAddr],
) -> Result<Settled, LinkError> {
    within(netns, async |handle| {
        let Found {
            index,
            mac: had,
            host,
        } = find(&handle, interface).await?;
        let mut settled = Settled {
            mac: had,
            host,
            problems: Vec::new(),
        };
        let mut announced = addresses.to_vec();
        if let Some(wanted) = wanted.filter(|&wanted| wanted != had) {
            match set(&handle, interface, index, wanted).await {
                Ok(()) => {
                    settled.mac = wanted;
                    match derive_anew(&handle, interface, index, had, wanted).await {
                        Ok(derived) => announced.extend(derived),
                        Err(error) => settled.problems.push(error),
                    }
                }
                Err(error) => settled.problems.push(error),
            }
        }
        let sent = announce(interface, index, settled.mac, &announced);
        settled.problems.extend(sent.err());
        Ok(settled)
    })
}

/// A device of the node; `None` if no device has this index.
pub fn device(ifindex: u32) -> Result<Option<Link>, LinkError> {
    let netns = Netns::current().map_err(LinkError::Enter)?;
    within(&netns, async |handle| {
        let mut links = handle.link().get().match_index(ifindex).execute();
        match links.try_next().await {
            Ok(found) => Ok(found.map(|message| as_link(&message))),
            Err(rtnetlink::Error::NetlinkError(answer)) if answer.raw_code() == -libc::ENODEV => {
                Ok(None)
            }
            Err(source) => Err(failed("find", &format!("device {ifindex}"))(source)),
        }
    })
}

/// Runs requests inside a namespace.
fn within<T: Send>(
    netns: &Netns,
    requests: impl AsyncFnOnce(Handle) -> Result<T, LinkError> + Send,
) -> Result<T, LinkError> {
    let mut requests = Some(requests);
    let mut results = inside(std::slice::from_ref(netns), |_| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(LinkError::Open)?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().map_err(LinkError::Open)?;
            tokio::spawn(connection);
            match requests.take() {
                Some(requests) => requests(handle).await,
                // Not reached: there is one namespace, and it is visited once.
                None => Err(LinkError::Open(io::ErrorKind::Other.into())),
            }
        })
    })
    .map_err(LinkError::Enter)?;
    match results.pop() {
        Some(result) => result.map_err(LinkError::Enter)?,
        None => Err(LinkError::Enter(io::ErrorKind::NotFound.into())),
    }
}

fn failed(operation: &'static str, interface: &str) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    let interface = interface.to_owned();
    move |source| LinkError::Netlink {
        operation,
        interface,
        source,
    }
}

/// An interface of the Pod.
struct Found {
    index: u32,
    mac: Mac,
    host: Option<HostSide>,
}

async fn find(handle: &Handle, interface: &str) -> Result<Found, LinkError> {
    let mut links = handle.link().get().match_name(interface).execute();
    let found = links.try_next().await.map_err(failed("find", interface))?;
    let no_mac = || LinkError::NoMac {
        interface: interface.to_owned(),
    };
    let link = found.ok_or_else(no_mac)?;
    let mac = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok().map(Mac),
            _ => None,
        });
    let index = link.header.index;
    let is_veth = link.attributes.iter().any(|attribute| {
        matches!(attribute, LinkAttribute::LinkInfo(infos)
            if infos.contains(&LinkInfo::Kind(InfoKind::Veth)))
    });
    // For a macvlan device this is the device below, which is not the Pod's alone.
    let other = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Link(other) if is_veth => Some(*other),
            _ => None,
        });
    Ok(Found {
        index,
        mac: mac.ok_or_else(no_mac)?,
        host: other.map(|ifindex| HostSide {
            ifindex,
            other_end: Some(index),
        }),
    })
}

async fn set(handle: &Handle, interface: &str, index: u32, mac: Mac) -> Result<(), LinkError> {
    let message = LinkUnspec::new_with_index(index).address(mac.0.to_vec());
    let request = handle.link().set(message.build());
    request
        .execute()
        .await
        .map_err(failed("set the MAC of", interface))
}

/// Replaces the link-local address that was derived from the old MAC, if there is one, and returns the new one.
/// Duplicate address detection is left out: no other host has the MAC that it is made of.
async fn derive_anew(
    handle: &Handle,
    interface: &str,
    index: u32,
    old: Mac,
    new: Mac,
) -> Result<Option<IpAddr>, LinkError> {
    let reading = || failed("read the addresses of", interface);
    let [old, new] = [old, new].map(|mac| IpAddr::V6(link_local(mac)));
    let addresses = handle
        .address()
        .get()
        .set_link_index_filter(index)
        .execute();
    let addresses: Vec<_> = addresses.try_collect().await.map_err(reading())?;
    let is_old = AddressAttribute::Address(old);
    let derived = addresses.into_iter().find(|message| {
        message.header.family == AddressFamily::Inet6 && message.attributes.contains(&is_old)
    });
    let Some(derived) = derived else {
        return Ok(None);
    };
    let prefix = derived.header.prefix_len;
    let removed = handle.address().del(derived).execute().await;
    removed.map_err(failed("remove a link-local address of", interface))?;
    let mut request = handle.address().add(index, new, prefix);
    let message = request.message_mut();
    message
        .attributes
        .push(AddressAttribute::Flags(AddressFlags::Nodad));
    request
        .execute()
        .await
        .map_err(failed("add a link-local address to", interface))?;
    Ok(Some(new))
}

/// Sends a frame for each address.
fn announce(interface: &str, index: u32, mac: Mac, addresses: &[IpAddr]) -> Result<(), LinkError> {
    // SAFETY: a call without pointers. Protocol 0 means that the socket receives nothing.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(LinkError::Open(io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just opened it for us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let sent = addresses.iter().try_for_each(|&address| {
        send(&socket, index, &frame(mac, address)).map_err(|source| LinkError::Announce {
            address,
            interface: interface.to_owned(),
            source,
        })
    });
    // Closing a packet socket waits for a grace period in the kernel, and so does attaching the guard to a device,
    // which comes next. Side by side they wait for a single one. If no thread can be started, the socket is closed
    // here.
    drop(std::thread::Builder::new().spawn(move || drop(socket)));
    sent
}

fn send(socket: &OwnedFd, index: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: plain data; zero is a value of each field.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET.try_into().map_err(io::Error::other)?;
    to.sll_ifindex = index.try_into().map_err(io::Error::other)?;
    let length = size_of_val(&to).try_into().map_err(io::Error::other)?;
    // SAFETY: the frame and the address are valid for reads of their lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            length,
        )
    };
    match sent {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
