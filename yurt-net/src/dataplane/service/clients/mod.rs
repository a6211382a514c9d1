//! Clients: the network namespaces of this node and their addresses, which programs need for source ranges; and the
//! namespaces of Pods that ask for their sockets to be left alone.
//!
//! A hook sees a socket before it has a source address, but it sees the cookie of its namespace. Only Services with
//! source ranges need the address, so clients are looked for only while there is such a Service or such a Pod. A
//! search starts after every change of the ledger and of the node's interfaces (a new Pod changes them first), a few
//! more follow because a Pod's address may come last, and one starts every ten seconds. A search runs in a thread of
//! its own.
//!
//! The device that leads to a namespace tells which Pod it belongs to, and only the node's side tells its addresses
//! (`identity`). Nothing inside a Pod is listed: whatever a Pod puts there costs nothing and proves nothing.

pub mod identity;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use self::identity::{Client, ClientAddresses, Identities, Word, identify};
use crate::host::netns::{self, Netns};
use crate::node::near::Nearby;
use crate::node::tables::Near;

/// When searches follow a change of interfaces.
const LOOKS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
];
/// The shortest time between two searches.
const GAP: Duration = Duration::from_millis(200);
const EVERY: Duration = Duration::from_secs(10);

/// How long to wait for the answer to a question, each time that it is asked.
const ANSWERS: [Duration; 4] = [
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(160),
];
/// Addresses that no host has (RFC 2544, RFC 5180). Nothing is sent there: a connected socket shows which source
/// address it would use.
const ANYWHERE: [&str; 2] = ["198.18.0.1:9", "[2001:2::1]:9"];

/// What clients are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Their addresses, because a Service has source ranges.
    pub addresses: bool,
    /// The Pods whose sockets are left alone.
    pub left_alone: bool,
}

impl Wanted {
    fn is_anything(self) -> bool {
        self.addresses || self.left_alone
    }
}

/// Which Pods ask for their sockets to be left alone, by the devices of this node that lead to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftAlone {
    /// The devices of Pods that do, and the Pod of each.
    pub asked: BTreeMap<u32, String>,
    /// Those of Pods of which it is not known.
    pub untold: BTreeSet<u32>,
    /// The devices at which packets are served: a Pod with another one would be served nowhere.
    pub served: BTreeSet<u32>,
}

impl LeftAlone {
    /// The Pod behind these devices, if its sockets are to be left alone.
    fn asks(&self, devices: &[u32]) -> Option<&String> {
        let is_served = devices.iter().all(|device| self.served.contains(device));
        let mut asked = devices.iter().filter_map(|device| self.asked.get(device));
        asked.next().filter(|_| is_served)
    }
}

/// The result of a search.
#[derive(Debug, Default)]
pub struct Look {
    /// Clients by the cookie of their namespace.
    pub clients: BTreeMap<u64, ClientAddresses>,
    /// The Pods whose sockets are left alone, likewise.
    pub left_alone: BTreeMap<u64, String>,
    /// Namespaces of which it is not known whether their sockets are left alone: what is in force stays so.
    pub untold: BTreeSet<u64>,
    /// Why not all were found.
    pub error: Option<io::Error>,
}

impl Look {
    /// Whether these are all clients.
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

/// Searches for clients while they are wanted; at first, they are not.
#[derive(Debug)]
pub struct Clients {
    wanted: Wanted,
    word: Arc<Word>,
    /// `None`: nothing is known of any Pod yet.
    left_alone: Option<Arc<LeftAlone>>,
    /// The result of the last complete search.
    known: BTreeMap<u64, ClientAddresses>,
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
            wanted: Wanted::default(),
            word: Arc::default(),
            left_alone: None,
            known: BTreeMap::new(),
            due: VecDeque::new(),
            is_looking: false,
            last: None,
            sender,
            found,
        }
    }
}

impl Clients {
    /// Takes what is wanted; true if that has changed.
    pub fn want(&mut self, wanted: Wanted) -> bool {
        let is_new = wanted != self.wanted;
        self.wanted = wanted;
        if is_new {
            self.due.clear();
            self.known.clear();
            self.interfaces_changed();
        }
        is_new
    }

    /// Takes what the agent knows; of `left_alone`: `None` while it does not know enough.
    pub fn hear(&mut self, word: Word, left_alone: Option<LeftAlone>) {
        let is_same = *self.word == word && self.left_alone.as_deref() == left_alone.as_ref();
        if !is_same {
            self.word = Arc::new(word);
            self.left_alone = left_alone.map(Arc::new);
            self.interfaces_changed();
        }
    }

    /// A Pod may have come or gone. A route may also have changed, which may happen all the time.
    pub fn interfaces_changed(&mut self) {
        if self.wanted.is_anything() {
            let now = Instant::now();
            let next = self.last.map_or(now, |last| now.max(last + GAP));
            self.due = LOOKS.iter().map(|later| next + *later).collect();
        }
    }

    /// The clients of this node now. Waits for ever while they are not wanted. Cancel safe.
    pub async fn next(&mut self) -> Look {
        loop {
            if self.is_looking {
                let found = self.found.recv().await;
                self.is_looking = false;
                // We hold a sender, so this always returns an answer. It may no longer be wanted.
                let is_wanted = self.wanted.is_anything();
                let found = found.filter(|_| is_wanted).unwrap_or_default();
                if found.is_complete() {
                    self.known.clone_from(&found.clients);
                }
                return found;
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
            let (word, known) = (self.word.clone(), self.known.clone());
            let (wanted, left_alone) = (self.wanted, self.left_alone.clone());
            let look = move || {
                let found = look(wanted, &word, left_alone.as_deref(), &known);
                // No receiver: the agent ends.
                let _ = sender.send(found.unwrap_or_else(Look::from));
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

/// The clients of this node, by what the node's side knows of them: asks nobody, and enters the namespaces of Pods only
/// for their cookies. With the cookie of the node's own namespace, which is the calling thread's.
pub fn known(word: &Word) -> io::Result<(u64, BTreeMap<u64, ClientAddresses>)> {
    let own = own_cookie()?;
    let nearby = Nearby::open()?;
    let near = nearby.look()?;
    let (clients, _, _) = pods(&nearby, &near)?;
    let mut known = identify(&near, word, &BTreeMap::new(), &clients).known;
    known.insert(own, own_addresses(word)?);
    Ok((own, known))
}

fn look(
    wanted: Wanted,
    word: &Word,
    left_alone: Option<&LeftAlone>,
    before: &BTreeMap<u64, ClientAddresses>,
) -> io::Result<Look> {
    let mut found = Look::default();
    // This thread is in the node's own namespace. If the kernel tells its cookie, it tells those of Pods, too.
    let own = own_cookie()?;
    let nearby = Nearby::open()?;
    let mut near = nearby.look()?;
    let (mut clients, entered, error) = pods(&nearby, &near)?;
    found.error = error;
    leave_alone(left_alone, &clients, &mut found);
    if !wanted.addresses {
        return Ok(found);
    }
    found.clients.insert(own, own_addresses(word)?);
    let mut identities = identify(&near, word, before, &clients);
    if !identities.open.is_empty() {
        take_claims(&entered, &mut clients, &identities)?;
        identities = identify(&near, word, before, &clients);
        for question in &identities.questions {
            // If the question fails, the client stays unknown.
            let _ = nearby.ask(question);
        }
        for patience in ANSWERS {
            if identities.questions.is_empty() {
                break;
            }
            std::thread::sleep(patience);
            near = nearby.look()?;
            identities = identify(&near, word, before, &clients);
        }
    }
    found.clients.append(&mut identities.known);
    Ok(found)
}

/// Finds which of these clients have their sockets left alone.
fn leave_alone(left_alone: Option<&LeftAlone>, clients: &[Client], found: &mut Look) {
    for Client {
        cookie, devices, ..
    } in clients
    {
        let pod = left_alone.and_then(|left_alone| left_alone.asks(devices));
        let is_untold = left_alone.is_none_or(|left_alone| {
            let mut devices = devices.iter();
            devices.any(|device| left_alone.untold.contains(device))
        });
        if let Some(pod) = pod {
            found.left_alone.insert(*cookie, pod.clone());
        } else if is_untold {
            found.untold.insert(*cookie);
        }
    }
}

/// The namespaces of Pods, which alone are entered; and why one could not be, if there was one.
fn pods(nearby: &Nearby, near: &Near) -> io::Result<(Vec<Client>, Vec<Netns>, Option<io::Error>)> {
    let namespaces: Vec<Netns> = netns::all()?.into_iter().skip(1).collect();
    let ids = nearby.netns_ids(&namespaces)?;
    let (mut namespaces, devices): (Vec<Netns>, Vec<Vec<u32>>) = namespaces
        .into_iter()
        .zip(ids)
        .filter_map(|(netns, id)| Some((netns, near.devices_to(id?))))
        .filter(|(_, devices)| !devices.is_empty())
        .unzip();
    let cookies = netns::inside(&namespaces, |_| own_cookie())?;
    let (mut clients, mut entered, mut failed) = (Vec::new(), Vec::new(), None);
    for ((netns, devices), cookie) in namespaces.drain(..).zip(devices).zip(cookies) {
        match cookie.flatten() {
            Ok(cookie) => {
                clients.push(Client {
                    cookie,
                    devices,
                    claimed: ClientAddresses::default(),
                });
                entered.push(netns);
            }
            Err(error) => failed = Some(error),
        }
    }
    Ok((clients, entered, failed))
}

fn own_cookie() -> io::Result<u64> {
    netns::cookie()?.ok_or_else(no_cookies)
}

/// Asks clients whose addresses are not all known which addresses they would dial with.
fn take_claims(
    namespaces: &[Netns],
    clients: &mut [Client],
    identities: &Identities,
) -> io::Result<()> {
    let open = |netns: &Netns| {
        let place = namespaces
            .iter()
            .position(|other| other.inode() == netns.inode());
        place.filter(|place| identities.open.contains(place))
    };
    netns::inside(namespaces, |netns| {
        if let Some(client) = open(netns).and_then(|place| clients.get_mut(place)) {
            client.claimed = claim();
        }
    })?;
    Ok(())
}

/// The source address that a socket of this thread's namespace would have.
fn claim() -> ClientAddresses {
    let mut claimed = ClientAddresses::default();
    for to in ANYWHERE {
        let Ok(to) = to.parse::<SocketAddr>() else {
            continue;
        };
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let source = UdpSocket::bind(any).and_then(|socket| {
            socket.connect(to)?;
            socket.local_addr()
        });
        // No route, no claim.
        match source.map(|source| source.ip()) {
            Ok(IpAddr::V4(address)) => claimed.v4 = Some(address),
            Ok(IpAddr::V6(address)) => claimed.v6 = Some(address),
            Err(_) => {}
        }
    }
    claimed
}

/// The source addresses of the node: those of its default route, otherwise the first ones of its interfaces.
fn own_addresses(word: &Word) -> io::Result<ClientAddresses> {
    let mut own = word.own;
    if own.v4.is_none() || own.v6.is_none() {
        for address in netns::addresses()?
            .iter()
            .filter(|one| identity::is_of_use(one))
        {
            match address {
                IpAddr::V4(address) => own.v4 = own.v4.or(Some(*address)),
                IpAddr::V6(address) => own.v6 = own.v6.or(Some(*address)),
            }
        }
    }
    Ok(own)
}

fn no_cookies() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "this kernel does not tell namespaces apart (SO_NETNS_COOKIE, Linux 5.14): load balancer addresses with source \
         ranges refuse the clients of this node",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_is_looked_for_while_nobody_wants_to_know() {
        let mut clients = Clients::default();
        clients.interfaces_changed();
        let wait = tokio::time::timeout(Duration::from_millis(50), clients.next());
        assert!(wait.await.is_err());
        let addresses = Wanted {
            addresses: true,
            left_alone: false,
        };
        assert!(clients.want(addresses));
        assert!(!clients.want(addresses));
        assert_eq!(clients.due.len(), LOOKS.len());
        assert!(clients.want(Wanted::default()));
        assert!(clients.due.is_empty());
    }

    #[test]
    fn a_pod_is_left_alone_only_where_packets_are_served_at_all_of_its_devices() {
        let client = |cookie: u64, devices: &[u32]| Client {
            cookie,
            devices: devices.to_vec(),
            claimed: ClientAddresses::default(),
        };
        let clients = [
            client(1, &[11]),
            client(2, &[12]),
            client(3, &[13, 23]),
            client(4, &[14, 24]),
            client(5, &[15]),
            client(6, &[16]),
        ];
        let left_alone = LeftAlone {
            asked: [11, 12, 13, 14]
                .map(|device| (device, format!("shop/{device}")))
                .into(),
            untold: [15].into(),
            served: [11, 13, 14, 24, 15, 16].into(),
        };
        let mut found = Look::default();
        leave_alone(Some(&left_alone), &clients, &mut found);
        let names: Vec<_> = found.left_alone.values().collect();
        assert_eq!(names, ["shop/11", "shop/14"]);
        assert_eq!(found.untold, [5].into());
        // Before anything is known, all stays as it is.
        let mut found = Look::default();
        leave_alone(None, &clients, &mut found);
        assert!(found.left_alone.is_empty() && found.untold.len() == clients.len());
    }
}
