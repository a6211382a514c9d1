//! A netlink connection that reports changes, and the requests that all readers of this room make.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_route::route::RouteMessage;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::runtime::Runtime;

/// How long a burst of changes is waited for: addresses and devices seldom change alone.
const BURST: Duration = Duration::from_millis(100);

/// Why the kernel could not be asked about addresses, routes or devices.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The netlink socket could not be opened.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// A list could not be read.
    #[error("list {what} of this machine")]
    List {
        /// Addresses, routes or devices.
        what: &'static str,
        /// Why not.
        #[source]
        source: rtnetlink::Error,
    },
}

/// A connection about the network namespace of the caller, and the runtime that it needs. For threads that may wait,
/// and that no runtime waits on.
pub(super) fn connect() -> io::Result<(Handle, Runtime)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let handle = {
        let _inside = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection()?;
        // It ends with its last handle.
        runtime.spawn(connection);
        handle
    };
    Ok((handle, runtime))
}

/// A connection that follows groups of messages. It is a task of the runtime that made it.
pub(super) struct Follower {
    pub(super) handle: Handle,
    events: tokio::sync::mpsc::Receiver<()>,
    /// When the present burst counts as over; `None`: nothing has changed.
    due: Option<tokio::time::Instant>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Follower {
    /// Subscribes; changes from here on are not missed.
    pub(super) fn new(groups: &[MulticastGroup]) -> Result<Self, NodeError> {
        let (connection, handle, mut messages) =
            rtnetlink::new_multicast_connection(groups).map_err(NodeError::Open)?;
        let (sender, events) = tokio::sync::mpsc::channel(1);
        let connection = tokio::spawn(connection);
        let relay = tokio::spawn(async move {
            while messages.next().await.is_some() {
                // One pending event says as much as many.
                let _ = sender.try_send(());
            }
        });
        Ok(Self {
            handle,
            events,
            due: None,
            tasks: [connection, relay],
        })
    }

    /// Waits for a change, and until a burst of them is over. Cancel safe.
    pub(super) async fn changed(&mut self) {
        if self.due.is_none() {
            if self.events.recv().await.is_none() {
                // The socket is gone, which only happens at exit: nothing will ever change.
                std::future::pending::<()>().await;
            }
            self.due = Some(tokio::time::Instant::now() + BURST);
        }
        if let Some(due) = self.due {
            tokio::time::sleep_until(due).await;
            self.due = None;
        }
    }
}

/// The routes of IPv4 and of IPv6.
pub(super) async fn routes(handle: &Handle) -> Result<[Vec<RouteMessage>; 2], NodeError> {
    let list = async |filter: RouteMessage| {
        let routes = handle.route().get(filter).execute();
        let listing = |source| NodeError::List {
            what: "routes",
            source,
        };
        routes.try_collect().await.map_err(listing)
    };
    Ok([
        list(RouteMessageBuilder::<Ipv4Addr>::new().build()).await?,
        list(RouteMessageBuilder::<Ipv6Addr>::new().build()).await?,
    ])
}

impl Drop for Follower {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
