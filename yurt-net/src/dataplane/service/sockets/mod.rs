//! Established sockets on the whole node: finds the Service that each dialled, and ends those whose backend is gone.
//!
//! A UDP socket is known by its own storage (`yurt_revsk`): its remote must be a backend that a program chose for it. A
//! TCP socket is known by its entry in `yurt_peer`, which has cookie, Service and backend; if another socket has
//! overwritten the entry, the flow is left alone. Addresses alone prove nothing, so a socket that dialled a Pod
//! directly is left alone. One exception: a UDP socket that is connected to a Pod directly, then sends to a Service and
//! gets the same Pod, is taken for one of the Service.
//!
//! A scan runs in a thread of its own. It looks into every network namespace, asks the loop which of the found flows
//! have to end, and ends those. The kernel filters the sockets that are connected to suspects, because a node may have
//! a hundred thousand others. Scans that are requested while one runs become one scan after it.
//!
//! Flows of the packet path end by the same judgement: the scan finds them in the flow table and removes them there.

mod diag;
pub mod message;
pub mod owner;
mod storage;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use yurt_ebpf::abi::{TcpPeer, UdpPeers};

use self::diag::Diag;
use self::message::{AF_INET, AF_INET6, Socket};
use crate::dataplane::flows::FlowTables;
use crate::dataplane::sys;
use crate::host::netns;
use crate::model::Protocol;
use crate::plan::{SELF_TEST_V4, SELF_TEST_V6};
use crate::policy::{Flow, Standing, SuspectBackends, Suspects};

/// How long a scan waits for a call that chose its backend just before the table changed, and is not in the kernel's
/// tables yet.
const SETTLE: Duration = Duration::from_millis(50);

/// Why this kernel cannot end sockets.
#[derive(Debug, thiserror::Error)]
pub enum Unsupported {
    /// Sockets cannot be listed.
    #[error(
        "this kernel does not list {protocol} sockets: it needs CONFIG_INET_{protocol}_DIAG (modprobe {})",
        module(*protocol)
    )]
    NoDiag {
        /// The protocol of the socket.
        protocol: Protocol,
    },
    /// Sockets can be listed, but not ended.
    #[error("this kernel cannot end sockets: it was built without CONFIG_INET_DIAG_DESTROY")]
    NoDestroy,
    /// The kernel cannot be asked.
    #[error("ask the kernel for its sockets")]
    Io(#[from] io::Error),
}

fn module(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp_diag",
        Protocol::Udp => "udp_diag",
        Protocol::Sctp => "sctp_diag",
    }
}

/// Whether this kernel supports a scan: for UDP sockets, and for TCP sockets if wanted.
pub fn support(with_tcp: bool) -> Result<(), Unsupported> {
    let mut diag = Diag::open()?;
    for &protocol in protocols(with_tcp) {
        if !diag.knows(protocol.number())? {
            return Err(Unsupported::NoDiag { protocol });
        }
    }
    match diag.can_destroy()? {
        true => Ok(()),
        false => Err(Unsupported::NoDestroy),
    }
}

/// The maps that tell which Service a socket dialled.
#[derive(Debug)]
pub struct SocketMaps {
    /// `yurt_revsk`.
    pub udp: OwnedFd,
    /// `yurt_peer`.
    pub tcp: OwnedFd,
    /// Entries of `yurt_peer`, a power of two.
    pub tcp_entries: u32,
}

/// What a scan ends.
#[derive(Clone, Debug)]
pub struct Reach {
    /// Sockets, where this kernel can end them.
    pub has_sockets: bool,
    /// TCP sockets, too.
    pub with_tcp: bool,
    /// The bpf file system where the flow tables of the packet path are, if there are any.
    pub bpffs: PathBuf,
}

/// What a scan reports to the loop.
#[derive(Debug)]
pub enum Event {
    /// A question: which of these flows have to end?
    Found(Found),
    /// The scan is over.
    Done(Outcome),
}

/// Flows of sockets on this node, each once, sorted. Dropping this ends none of them.
#[derive(Debug)]
pub struct Found {
    /// The flows.
    pub flows: Vec<Flow>,
    /// The backends that were looked for.
    pub suspects: Suspects,
    answer: blocking::Sender<BTreeMap<Flow, Standing>>,
}

impl Found {
    /// Ends the sockets of these flows, each for its reason.
    pub fn end(self, flows: BTreeMap<Flow, Standing>) {
        // The thread is waiting. If it were gone, there would be nothing to end.
        let _ = self.answer.send(flows);
    }
}

/// The result of a scan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many sockets were ended, by the standing of their backends.
    pub ended: BTreeMap<Standing, u64>,
    /// How many flows of the packet path were ended.
    pub flows: u64,
    /// How many sockets of Services were looked at.
    pub sockets: usize,
    /// How long the scan took, including the wait for the loop.
    pub took: Duration,
    /// Failures; everything else was done.
    pub error: Option<io::Error>,
}

/// Starts scans, one at a time.
#[derive(Debug)]
pub struct Scanner {
    maps: Arc<SocketMaps>,
    reach: Reach,
    /// The suspects of the scan that runs.
    running: Option<Suspects>,
    /// The suspects of the next scan.
    due: Suspects,
    sender: mpsc::UnboundedSender<Event>,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Scanner {
    /// A scanner that ends what `reach` says.
    pub fn new(maps: SocketMaps, reach: Reach) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        Self {
            maps: Arc::new(maps),
            reach,
            running: None,
            due: Suspects::default(),
            sender,
            events,
        }
    }

    /// Starts a scan for sockets that are connected to these backends. If a scan is running, another one follows it.
    pub fn start(&mut self, mut suspects: Suspects) {
        let looked_at = protocols(self.reach.with_tcp);
        for protocol in [Protocol::Sctp, Protocol::Tcp] {
            if !looked_at.contains(&protocol) {
                suspects.forget(protocol);
            }
        }
        self.due.merge(suspects);
        if self.running.is_some() || self.due.is_empty() {
            return;
        }
        let suspects = std::mem::take(&mut self.due);
        self.running = Some(suspects.clone());
        let (maps, reach, sender) = (self.maps.clone(), self.reach.clone(), self.sender.clone());
        let thread = std::thread::Builder::new().name("sockets".to_owned());
        let scan = move || {
            let started = Instant::now();
            std::thread::sleep(SETTLE);
            let mut outcome = Outcome::default();
            outcome.error = scan(&maps, &reach, &suspects, &sender, &mut outcome).err();
            outcome.took = started.elapsed();
            // No receiver: the agent ends.
            let _ = sender.send(Event::Done(outcome));
        };
        if let Err(error) = thread.spawn(scan) {
            let error = Some(error);
            let _ = self.sender.send(Event::Done(Outcome {
                error,
                ..Outcome::default()
            }));
        }
    }

    /// Waits for the next message of a scan; forever if none runs. Cancel safe.
    pub async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => {
                if let Event::Done(outcome) = &event {
                    let looked_for = self.running.take().unwrap_or_default();
                    let is_due = !self.due.is_empty();
                    if outcome.error.is_some() {
                        // With the next scan and not at once, because what fails now would fail again.
                        self.due.merge(looked_for);
                    }
                    if is_due {
                        self.start(Suspects::default());
                    }
                }
                event
            }
            // We hold a sender ourselves.
            None => std::future::pending().await,
        }
    }
}

/// A connected socket, and the inode of its network namespace.
struct Connected {
    netns: u64,
    protocol: Protocol,
    socket: Socket,
}

/// A socket of a Service.
struct Owned {
    flow: Flow,
    connected: Connected,
}

#[expect(
    clippy::too_many_lines,
    reason = "one pass over the namespaces of the node, with what it counts"
)]
fn scan(
    maps: &SocketMaps,
    reach: &Reach,
    suspects: &Suspects,
    sender: &mpsc::UnboundedSender<Event>,
    outcome: &mut Outcome,
) -> io::Result<()> {
    let mut result = Ok(());
    let namespaces = match reach.has_sockets {
        true => netns::all()?,
        false => Vec::new(),
    };
    let visits = netns::inside(&namespaces, |netns| look(suspects, netns.inode()))?;
    let mut connected = Vec::new();
    for visit in visits {
        match visit.flatten() {
            Ok(found) => connected.extend(found),
            Err(error) => result = Err(error),
        }
    }
    let of_udp = connected.iter().filter(|c| c.protocol == Protocol::Udp);
    let wanted = of_udp.map(|c| (c.socket.inode, (c.socket.cookie, c.netns)));
    let wanted = wanted.collect();
    let (peers, problem) = storage::values(maps.udp.as_fd(), wanted)?;
    result = result.and(problem);
    let mut owned = Vec::new();
    for connected in connected {
        let socket = &connected.socket;
        let frontend = match connected.protocol {
            Protocol::Udp => peers
                .get(&socket.cookie)
                .and_then(|p| udp_frontend(p, socket)),
            Protocol::Tcp | Protocol::Sctp => tcp_frontend(maps, socket)?,
        };
        // Sockets of the self-test are left alone.
        if let Some(frontend) = frontend.filter(|f| ![SELF_TEST_V4, SELF_TEST_V6].contains(f)) {
            let flow = Flow {
                protocol: connected.protocol,
                frontend,
                backend: address(socket.remote, socket.remote_port_be),
            };
            owned.push(Owned { flow, connected });
        }
    }
    outcome.sockets = owned.len();
    let mut flows: BTreeSet<Flow> = owned.iter().map(|owned| owned.flow).collect();
    let tables = FlowTables::open(&reach.bpffs).map_err(io::Error::other);
    let packets = tables.and_then(|tables| {
        if let Some(tables) = &tables {
            flows.extend(tables.led_to(suspects).map_err(io::Error::other)?);
        }
        Ok(tables)
    });
    let tables = packets.unwrap_or_else(|error| {
        result = Err(error);
        None
    });
    let (answer, verdict) = blocking::channel();
    let flows = flows.into_iter().collect();
    // No receiver, no verdict: the agent ends.
    let _ = sender.send(Event::Found(Found {
        flows,
        suspects: suspects.clone(),
        answer,
    }));
    let doomed = verdict.recv().unwrap_or_default();
    if doomed.is_empty() {
        return result;
    }
    if let Some(tables) = tables {
        match tables.end(&doomed) {
            Ok(ended) => outcome.flows = ended,
            Err(error) => result = Err(io::Error::other(error)),
        }
    }
    let ended = &mut outcome.ended;
    let visits = netns::inside(&namespaces, |netns| {
        let mut diag = Diag::open()?;
        for owned in owned.iter().filter(|o| o.connected.netns == netns.inode()) {
            if let Some(standing) = doomed.get(&owned.flow)
                && diag.destroy(owned.flow.protocol.number(), &owned.connected.socket)?
            {
                *ended.entry(*standing).or_default() += 1;
            }
        }
        Ok(())
    })?;
    visits
        .into_iter()
        .fold(result, |result, visit| result.and(visit.flatten()))
}

fn protocols(with_tcp: bool) -> &'static [Protocol] {
    match with_tcp {
        true => &[Protocol::Udp, Protocol::Tcp],
        false => &[Protocol::Udp],
    }
}

/// The sockets that are connected to suspects, in the namespace that this thread is in.
fn look(suspects: &Suspects, netns: u64) -> io::Result<Vec<Connected>> {
    let mut diag = Diag::open()?;
    let mut found = Vec::new();
    for (protocol, backends) in suspects.by_protocol() {
        let remotes: Option<Vec<SocketAddr>> = match backends {
            SuspectBackends::All => None,
            SuspectBackends::Named(backends) => Some(backends.iter().copied().collect()),
        };
        // An IPv4-mapped socket is one of AF_INET6.
        for family in [AF_INET, AF_INET6] {
            let sockets = diag.connected(family, protocol.number(), remotes.as_deref())?;
            found.extend(sockets.into_iter().map(|socket| Connected {
                netns,
                protocol,
                socket,
            }));
        }
    }
    Ok(found)
}

/// The frontend that a UDP socket dialled; `None` if it dialled the backend directly.
fn udp_frontend(peers: &UdpPeers, socket: &Socket) -> Option<SocketAddr> {
    let (vip, port_be) = peers.shown(&socket.remote, socket.remote_port_be)?;
    Some(address(vip, port_be))
}

/// The frontend that a TCP socket dialled; `None` if it dialled the backend directly, or its entry was overwritten.
fn tcp_frontend(maps: &SocketMaps, socket: &Socket) -> io::Result<Option<SocketAddr>> {
    let mask = u64::from(maps.tcp_entries.saturating_sub(1));
    let index = u32::try_from(socket.cookie & mask).map_err(io::Error::other)?;
    let mut entry = [TcpPeer::default()];
    let is_there = sys::map_lookup(maps.tcp.as_fd(), &index, &mut entry)?;
    let [entry] = entry;
    let is_its = is_there && entry.is_of(socket.cookie, &socket.remote);
    Ok(is_its.then(|| address(entry.vip, entry.vip_port_be)))
}

fn address(address: [u8; 16], port_be: [u8; 2]) -> SocketAddr {
    let address = IpAddr::V6(Ipv6Addr::from(address)).to_canonical();
    SocketAddr::new(address, u16::from_be_bytes(port_be))
}
