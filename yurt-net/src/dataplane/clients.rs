//! Who dials: the network namespaces of this node and their addresses, for what a program must know of its client.
//!
//! A hook sees a socket before it has a source address, but it sees the cookie of its namespace. Only Services with source
//! ranges ask, so nobody is looked for while there are none. Otherwise a look is taken after every change of the node's
//! interfaces, which is what a new Pod makes first; again a little later, for its address may come last; and every ten
//! seconds, for Pods without an interface on the node. A look runs in a thread of its own.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::netns;

/// After a change of interfaces.
const LOOKS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
];
/// Between two looks.
const GAP: Duration = Duration::from_millis(200);
const EVERY: Duration = Duration::from_secs(10);

/// Addresses of a client; `None` where it has none of that family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientAddresses {
    /// Its first address that is neither loopback nor link-local.
    pub v4: Option<Ipv4Addr>,
    /// Likewise.
    pub v6: Option<Ipv6Addr>,
}

/// What a look has found.
#[derive(Debug, Default)]
pub struct Look {
    /// Clients by the cookie of their namespace.
    pub clients: BTreeMap<u64, ClientAddresses>,
    /// Why not all were found.
    pub error: Option<io::Error>,
}

impl Look {
    /// There are no others.
    pub fn is_complete(&self) -> bool {
        self.error.is_none()
    }
}

impl From<io::Error> for Look {
    fn from(error: io::Error) -> Self {
        Self {
            error: Some(error),
            ..Self::default()
        }
    }
}

/// Looks for clients while somebody wants to know; at first, nobody does.
#[derive(Debug)]
pub struct Clients {
    is_wanted: bool,
    due: VecDeque<Instant>,
    is_looking: bool,
    last: Option<Instant>,
    sender: mpsc::UnboundedSender<Look>,
    found: mpsc::UnboundedReceiver<Look>,
}

impl Default for Clients {
    fn default() -> Self {
        let (sender, found) = mpsc::unbounded_channel();
        Self {
            is_wanted: false,
            due: VecDeque::new(),
            is_looking: false,
            last: None,
            sender,
            found,
        }
    }
}

impl Clients {
    /// Whether there is a Service that asks for clients; true when that is new.
    pub fn want(&mut self, is_wanted: bool) -> bool {
        let is_new = is_wanted != self.is_wanted;
        self.is_wanted = is_wanted;
        if is_new {
            self.due.clear();
            self.interfaces_changed();
        }
        is_new
    }

    /// Whether somebody does.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// A Pod may have come or gone; or a route has changed, which may happen all the time.
    pub fn interfaces_changed(&mut self) {
        if self.is_wanted {
            let now = Instant::now();
            let next = self.last.map_or(now, |last| now.max(last + GAP));
            self.due = LOOKS.iter().map(|later| next + *later).collect();
        }
    }

    /// The clients that there are now, `own` being the node's own addresses. Waits for ever while nobody wants to know. Safe
    /// to cancel.
    pub async fn next(&mut self, own: ClientAddresses) -> Look {
        loop {
            if self.is_looking {
                let found = self.found.recv().await;
                self.is_looking = false;
                // We hold a sender ourselves. Nobody may want to know by now.
                let found = found.filter(|_| self.is_wanted);
                return found.unwrap_or_default();
            }
            let Some(due) = self.due.front() else {
                std::future::pending::<()>().await;
                continue;
            };
            sleep_until(*due).await;
            self.due.pop_front();
            if self.due.is_empty() {
                self.due.push_back(Instant::now() + EVERY);
            }
            let sender = self.sender.clone();
            let look = move || {
                // No receiver: the agent ends.
                let _ = sender.send(look(own).unwrap_or_else(Look::from));
            };
            let thread = std::thread::Builder::new().name("clients".to_owned());
            self.last = Some(Instant::now());
            match thread.spawn(look) {
                Ok(_) => self.is_looking = true,
                Err(error) => return error.into(),
            }
        }
    }
}

fn look(own: ClientAddresses) -> io::Result<Look> {
    let namespaces = netns::all()?;
    let visits = netns::inside(&namespaces, |_| {
        let cookie = netns::cookie()?.ok_or_else(no_cookies)?;
        Ok::<_, io::Error>((cookie, first_of_each_family(&netns::addresses()?)))
    })?;
    let mut found = Look::default();
    for (number, visit) in visits.into_iter().enumerate() {
        let (cookie, mut client) = match visit.flatten() {
            Ok(client) => client,
            Err(error) => {
                found.error = Some(error);
                continue;
            }
        };
        if number == 0 {
            // The node dials by its default route; its interfaces are many.
            client.v4 = own.v4.or(client.v4);
            client.v6 = own.v6.or(client.v6);
        }
        found.clients.insert(cookie, client);
    }
    Ok(found)
}

fn no_cookies() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "this kernel does not tell namespaces apart (SO_NETNS_COOKIE, Linux 5.14): load balancer addresses with source \
         ranges refuse the clients of this node",
    )
}

fn first_of_each_family(addresses: &[IpAddr]) -> ClientAddresses {
    let mut v4 = addresses.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    });
    let mut v6 = addresses.iter().filter_map(|address| match address {
        IpAddr::V6(address) => Some(*address),
        IpAddr::V4(_) => None,
    });
    ClientAddresses {
        v4: v4.find(|address| !address.is_loopback() && !address.is_link_local()),
        v6: v6.find(|address| !address.is_loopback() && !address.is_unicast_link_local()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_known_by_its_first_address_of_each_family_that_leaves_its_link() {
        let addresses: Vec<IpAddr> = [
            "127.0.0.1",
            "::1",
            "169.254.1.1",
            "10.244.1.7",
            "fe80::1",
            "fd00::7",
            "10.9.9.9",
        ]
        .map(|address| address.parse().unwrap())
        .to_vec();
        let found = first_of_each_family(&addresses);
        assert_eq!(found.v4, Some(Ipv4Addr::new(10, 244, 1, 7)));
        assert_eq!(found.v6, Some("fd00::7".parse().unwrap()));
        assert_eq!(
            first_of_each_family(&addresses[..3]),
            ClientAddresses::default()
        );
    }

    #[tokio::test]
    async fn nobody_is_looked_for_while_nobody_wants_to_know() {
        let mut clients = Clients::default();
        clients.interfaces_changed();
        let own = ClientAddresses::default();
        let wait = tokio::time::timeout(Duration::from_millis(50), clients.next(own));
        assert!(wait.await.is_err());
        assert!(clients.want(true));
        assert!(!clients.want(true));
        assert_eq!(clients.due.len(), LOOKS.len());
        assert!(clients.want(false));
        assert!(clients.due.is_empty());
    }
}
