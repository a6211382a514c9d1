//! The kernel's socket diagnosis: lists the sockets of a namespace, and ends one. `message` has the wire format.
//!
//! The kernel can also return what a program stored with a socket (`INET_DIAG_REQ_SK_BPF_STORAGES`), but not for UDP:
//! `inet_sk_diag_fill` returns before that for a socket without a connection (net/ipv4/inet_diag.c). `storage` has
//! another way.

use std::io;
use std::net::SocketAddr;

use yurt_ebpf::frame::ip::{TCP, UDP};

use super::message::{
    AF_INET, SOCK_DESTROY, SOCK_DIAG_BY_FAMILY, SOCKID, Socket, only_to, owner, parse, request,
    request_nothing, request_one,
};
use crate::dataplane::sys::netlink::Connection;

/// A netlink connection for socket diagnosis, in the namespace where it was opened.
#[derive(Debug)]
pub(super) struct Diag(Connection);

impl Diag {
    pub(super) fn open() -> io::Result<Self> {
        const NETLINK_SOCK_DIAG: libc::c_int = 4;
        Connection::open(NETLINK_SOCK_DIAG).map(Self)
    }

    /// The connected sockets of a family (`AF_*`) and a protocol (`IPPROTO_*`): all of them, or those with one of these
    /// remotes. Fails with `ENOENT` if the kernel has no diagnosis for the protocol.
    pub(super) fn connected(
        &mut self,
        family: u8,
        protocol: u8,
        remotes: Option<&[SocketAddr]>,
    ) -> io::Result<Vec<Socket>> {
        let mut body = request(family, protocol, &[0; SOCKID]);
        match remotes {
            Some([]) => return Ok(Vec::new()),
            Some(remotes) => body.extend(only_to(remotes)?),
            None => {}
        }
        let mut sockets = Vec::new();
        let take = |message: &[u8]| sockets.extend(parse(message));
        self.0.dump(SOCK_DIAG_BY_FAMILY, &body, take)?;
        Ok(sockets)
    }

    /// Whether the kernel has a diagnosis for a protocol (`IPPROTO_*`): built in, or as a module that can be loaded.
    pub(super) fn knows(&mut self, protocol: u8) -> io::Result<bool> {
        let body = request_nothing(AF_INET, protocol);
        match self.0.dump(SOCK_DIAG_BY_FAMILY, &body, |_| {}) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// The owner of the TCP socket that is bound to `own` and connected to `remote`: the user ID, and whether a process
    /// has it open. `None` if this namespace has no such socket.
    pub(super) fn owner(
        &mut self,
        own: SocketAddr,
        remote: SocketAddr,
    ) -> io::Result<Option<(u32, bool)>> {
        let body = request_one(own, remote)?;
        let mut found = None;
        let asked = self.0.get(SOCK_DIAG_BY_FAMILY, &body, |message| {
            found = owner(message);
        });
        match asked {
            // A kernel without the diagnosis gives the same error.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => match self.knows(TCP)? {
                true => Ok(None),
                false => Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "this kernel does not list TCP sockets: it needs CONFIG_INET_TCP_DIAG (modprobe tcp_diag)",
                )),
            },
            result => result.map(|()| found),
        }
    }

    /// Ends a socket: calls that wait on it, and its next call, fail with `ECONNABORTED`. False if it is already gone.
    pub(super) fn destroy(&mut self, protocol: u8, socket: &Socket) -> io::Result<bool> {
        match self.try_destroy(socket.family, protocol, &socket.id) {
            // Its addresses belong to another socket now, or to none.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {
                Ok(false)
            }
            result => result.map(|()| true),
        }
    }

    /// Whether the kernel ends sockets (`CONFIG_INET_DIAG_DESTROY`).
    pub(super) fn can_destroy(&mut self) -> io::Result<bool> {
        // No socket has port 0.
        match self.try_destroy(AF_INET, UDP, &[0; SOCKID]) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(true),
            result => result.map(|()| true),
        }
    }

    fn try_destroy(&mut self, family: u8, protocol: u8, id: &[u8; SOCKID]) -> io::Result<()> {
        let body = request(family, protocol, id);
        self.0.request(SOCK_DESTROY, 0, &body)
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::AF_INET6;
    use super::*;

    #[test]
    fn a_protocol_that_the_kernel_does_not_diagnose_is_told_from_a_socket_that_is_not_there() {
        let mut diag = Diag::open().unwrap();
        assert!(diag.knows(TCP).unwrap());
        assert!(diag.knows(UDP).unwrap());
        // ICMP has no diagnosis.
        assert!(!diag.knows(1).unwrap());
    }

    #[test]
    fn the_kernel_tells_of_no_other_sockets_than_those_with_the_remotes_that_are_asked_for() {
        use std::net::UdpSocket;
        for loopback in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            let is_v4 = loopback.starts_with('1');
            let family = if is_v4 { AF_INET } else { AF_INET6 };
            let targets: Vec<UdpSocket> = (0..40)
                .map(|_| UdpSocket::bind(loopback).unwrap())
                .collect();
            let sockets: Vec<UdpSocket> = targets
                .iter()
                .map(|target| {
                    let socket = UdpSocket::bind(loopback).unwrap();
                    socket.connect(target.local_addr().unwrap()).unwrap();
                    socket
                })
                .collect();
            let canonical = |target: &UdpSocket| {
                let at = target.local_addr().unwrap();
                SocketAddr::new(at.ip().to_canonical(), at.port())
            };
            let all: Vec<SocketAddr> = targets.iter().map(canonical).collect();
            let mut diag = Diag::open().unwrap();
            for asked in [&all[..0], &all[..1], &all[39..], &all[3..20], &all[..]] {
                let found = diag.connected(family, UDP, Some(asked)).unwrap();
                let mut found: Vec<u16> = found
                    .iter()
                    .map(|socket| u16::from_be_bytes(socket.remote_port_be))
                    .collect();
                let mut ports: Vec<u16> = asked.iter().map(SocketAddr::port).collect();
                found.sort_unstable();
                ports.sort_unstable();
                assert_eq!(found, ports, "{loopback}");
            }
            drop(sockets);
        }
    }

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
                let sockets = Diag::open().unwrap().connected(family, 17, None).unwrap();
                let port_be = target.port().to_be_bytes();
                sockets
                    .into_iter()
                    .filter(|s| s.remote_port_be == port_be)
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
