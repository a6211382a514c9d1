//! Sees every packet on every device of a node.

use std::fs::File;
use std::io;
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use yurt_net_tests::lab::Node;

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

    /// The destinations of the packets so far.
    pub(crate) fn destinations(&mut self) -> Result<Vec<IpAddr>> {
        thread::sleep(SETTLE);
        let mut seen = Vec::new();
        let mut packet = [0; LONGEST];
        loop {
            match self.0.read(&mut packet) {
                Ok(length) => seen.extend(destination(&packet[..length])),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(seen),
                Err(e) => return Err(e).context("read a packet"),
            }
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    /// `ETH_P_ALL`.
    const ALL: u16 = 3;
    let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(ALL.to_be())) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
