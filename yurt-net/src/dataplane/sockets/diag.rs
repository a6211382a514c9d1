//! The kernel's socket diagnosis: which sockets a namespace has, and the end of one. `message` has the wire format.
//!
//! It can also return what a program stored with a socket (`INET_DIAG_REQ_SK_BPF_STORAGES`), but not of UDP:
//! `inet_sk_diag_fill` ends before it gets there when a socket has no connection (net/ipv4/inet_diag.c). `storage` has
//! another way.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::message::{
    AF_INET, NLM_F_ACK, NLM_F_DUMP, SOCK_DESTROY, SOCK_DIAG_BY_FAMILY, SOCKID, Socket, read,
    request,
};

const IPPROTO_UDP: u8 = 17;
const BUFFER: usize = 64 << 10;

/// A connection to the diagnosis of the namespace that it was opened in.
#[derive(Debug)]
pub(super) struct Diag {
    socket: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Diag {
    pub(super) fn open() -> io::Result<Self> {
        const NETLINK_SOCK_DIAG: libc::c_int = 4;
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: a call without pointers.
        let socket = unsafe { libc::socket(libc::AF_NETLINK, kind, NETLINK_SOCK_DIAG) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just opened it for us.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let buffer = vec![0; BUFFER];
        Ok(Self {
            socket,
            buffer,
            sequence: 0,
        })
    }

    /// All connected sockets of a family (`AF_*`) and a protocol (`IPPROTO_*`). `NotFound`: the kernel has no diagnosis of it.
    pub(super) fn connected(&mut self, family: u8, protocol: u8) -> io::Result<Vec<Socket>> {
        let mut sockets = Vec::new();
        let kind = (SOCK_DIAG_BY_FAMILY, NLM_F_DUMP);
        self.ask(kind, (family, protocol), &[0; SOCKID], |socket| {
            sockets.push(socket);
        })?;
        Ok(sockets)
    }

    /// Ends a socket: what waits on it, and its next call, fails with `ECONNABORTED`. False when it is gone already.
    pub(super) fn destroy(&mut self, protocol: u8, socket: &Socket) -> io::Result<bool> {
        match self.try_destroy(socket.family, protocol, &socket.id) {
            // Another socket has its addresses now, or none.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {
                Ok(false)
            }
            result => result.map(|()| true),
        }
    }

    /// Whether the kernel ends sockets (`CONFIG_INET_DIAG_DESTROY`).
    pub(super) fn can_destroy(&mut self) -> io::Result<bool> {
        // No socket has port 0.
        match self.try_destroy(AF_INET, IPPROTO_UDP, &[0; SOCKID]) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(true),
            result => result.map(|()| true),
        }
    }

    fn try_destroy(&mut self, family: u8, protocol: u8, id: &[u8; SOCKID]) -> io::Result<()> {
        self.ask((SOCK_DESTROY, NLM_F_ACK), (family, protocol), id, |_| {})
    }

    /// Sends a request and takes its answer up, to its end.
    fn ask(
        &mut self,
        (kind, flags): (u16, u16),
        of: (u8, u8),
        id: &[u8; SOCKID],
        mut sink: impl FnMut(Socket),
    ) -> io::Result<()> {
        self.sequence += 1;
        let request = request((kind, flags, self.sequence), of, id);
        // SAFETY: the message is valid for reads of its length.
        let sent = unsafe {
            let fd = self.socket.as_raw_fd();
            libc::send(fd, request.as_ptr().cast(), request.len(), 0)
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        loop {
            let length = self.receive()?;
            if read(&self.buffer[..length], self.sequence, &mut sink)? {
                return Ok(());
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            // With MSG_TRUNC the kernel returns the whole length, also of what did not fit.
            // SAFETY: the buffer is valid for writes of its length.
            let received = unsafe {
                let (fd, buffer) = (self.socket.as_raw_fd(), self.buffer.as_mut_ptr());
                libc::recv(fd, buffer.cast(), self.buffer.len(), libc::MSG_TRUNC)
            };
            match usize::try_from(received) {
                Ok(length) if length <= self.buffer.len() => return Ok(length),
                Ok(_) => return Err(io::Error::other("a piece of a socket dump is too long")),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::AF_INET6;
    use super::*;

    #[test]
    fn a_connected_socket_is_found_by_this_kernel_and_an_unconnected_one_is_not() {
        use std::net::UdpSocket;
        for (family, local, mapped_local) in [
            (AF_INET, "127.0.0.1:0", "127.0.0.1:0"),
            (AF_INET6, "[::ffff:127.0.0.1]:0", "127.0.0.1:0"),
        ] {
            let target = UdpSocket::bind(mapped_local).unwrap().local_addr().unwrap();
            let socket = UdpSocket::bind(local).unwrap();
            let find = || {
                let sockets = Diag::open().unwrap().connected(family, 17).unwrap();
                let port_be = target.port().to_be_bytes();
                sockets
                    .into_iter()
                    .filter(|s| s.peer_port_be == port_be)
                    .count()
            };
            assert_eq!(find(), 0, "{local}");
            match family == AF_INET {
                true => socket.connect(target).unwrap(),
                false => {
                    let mapped = std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped();
                    socket.connect((mapped, target.port())).unwrap();
                }
            }
            assert_eq!(find(), 1, "{local}");
        }
    }
}
