//! Sees every packet on every device of a node, or counts those of one device.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::anyhow;
use anyhow::ensure;
use yurt_net_tests::lab::{Node, Pod};

/// `ETH_P_ALL`.
const ALL: u16 = 3;
const LONGEST: usize = 256;
/// What is on its way when a call returns is seen by then.
const SETTLE: Duration = Duration::from_millis(20);

/// A packet socket in the network namespace of a node.
pub(crate) struct Capture(File);

impl Capture {
    /// From now on.
    pub(crate) fn start(node: &Node) -> Result<Self> {
        let socket = node.netns().run(open)?.context("open a packet socket")?;
        Ok(Self(File::from(socket)))
    }

    /// The same in that of a Pod.
    pub(crate) fn start_in(pod: &Pod) -> Result<Self> {
        let socket = pod.netns().run(open)?.context("open a packet socket")?;
        Ok(Self(File::from(socket)))
    }

    /// The destinations of the packets so far.
    pub(crate) fn destinations(&mut self) -> Result<Vec<IpAddr>> {
        self.each(destination)
    }

    /// How many hops the packets so far have left that go to a port.
    pub(crate) fn hops_left(&mut self, to: u16) -> Result<BTreeSet<u8>> {
        let hops = self.each(|packet| {
            let at = if packet.first()? >> 4 == 4 { 8 } else { 7 };
            (port(packet)? == to).then(|| packet.get(at).copied())?
        })?;
        Ok(hops.into_iter().collect())
    }

    fn each<T>(&mut self, read: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<T>> {
        thread::sleep(SETTLE);
        let mut seen = Vec::new();
        let mut packet = [0; LONGEST];
        loop {
            match self.0.read(&mut packet) {
                Ok(length) => seen.extend(read(&packet[..length])),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(seen),
                Err(e) => return Err(e).context("read a packet"),
            }
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(ALL.to_be())) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Counts all packets of a device, in and out, by destination and port, while others dial.
pub(crate) struct Tap {
    stop: Arc<AtomicBool>,
    counts: JoinHandle<Result<Counts>>,
}

pub(crate) type Counts = BTreeMap<(IpAddr, u16), u64>;

impl Tap {
    /// From now on.
    pub(crate) fn start(node: &Node, device: &str) -> Result<Self> {
        let socket = node.netns().run(|| tap(device))?;
        let mut socket = File::from(socket.context("open a packet socket")?);
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        let counts = thread::spawn(move || {
            let mut counts = Counts::new();
            let mut packet = [0; LONGEST];
            loop {
                match socket.read(&mut packet) {
                    Ok(length) => {
                        let packet = &packet[..length];
                        if let Some(to) = destination(packet).zip(port(packet)) {
                            *counts.entry(to).or_default() += 1;
                        }
                    }
                    Err(e) if e.kind() != io::ErrorKind::WouldBlock => {
                        return Err(e).context("read a packet");
                    }
                    Err(_) if is_over.load(Ordering::Relaxed) => break,
                    Err(_) => {}
                }
            }
            let missed = missed(&socket).context("ask what was missed")?;
            ensure!(missed == 0, "{missed} packets were not seen");
            Ok(counts)
        });
        Ok(Self { stop, counts })
    }

    /// Up to now; an error if a packet was missed.
    pub(crate) fn stop(self) -> Result<Counts> {
        thread::sleep(SETTLE);
        self.stop.store(true, Ordering::Relaxed);
        let counts = self.counts.join();
        counts.map_err(|_panic| anyhow!("the tap panicked"))?
    }
}

/// Packets that found no room in the socket's buffer.
fn missed(socket: &File) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut length =
        libc::socklen_t::try_from(size_of_val(&statistics)).map_err(io::Error::other)?;
    // SAFETY: both pointers are to live values, and the length is that of the first.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(statistics.tp_drops),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A packet socket of one device that waits a little for packets.
fn tap(device: &str) -> io::Result<OwnedFd> {
    let socket = socket2::Socket::from(open()?);
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(SETTLE))?;
    let room = libc::c_int::from(i32::MAX / 8);
    let length = libc::socklen_t::try_from(size_of_val(&room)).map_err(io::Error::other)?;
    // SAFETY: the pointer is to a live number of the length that is passed with it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const room).cast(),
            length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let device = std::ffi::CString::new(device)?;
    // SAFETY: the name ends in zero.
    let index = unsafe { libc::if_nametoindex(device.as_ptr()) };
    // SAFETY: all fields are plain numbers.
    let mut place: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    place.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    place.sll_protocol = ALL.to_be();
    place.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    let length = libc::socklen_t::try_from(size_of_val(&place)).map_err(io::Error::other)?;
    // SAFETY: the pointer is to a live address of the length that is passed with it.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const place).cast(), length) };
    match result {
        0 => Ok(socket.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The destination port of TCP and UDP, where nothing is between the headers.
fn port(packet: &[u8]) -> Option<u16> {
    let (protocol, at) = match packet.first()? >> 4 {
        4 => (*packet.get(9)?, usize::from(packet.first()? & 0xf) * 4),
        _ => (*packet.get(6)?, 40),
    };
    let port = packet.get(at + 2..at + 4)?.try_into().ok()?;
    [libc::IPPROTO_TCP, libc::IPPROTO_UDP]
        .contains(&i32::from(protocol))
        .then(|| u16::from_be_bytes(port))
}

/// Without the link's header, a packet starts with its version.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?)),
        6 => Some(IpAddr::from(
            <[u8; 16]>::try_from(packet.get(24..40)?).ok()?,
        )),
        _ => None,
    }
}
