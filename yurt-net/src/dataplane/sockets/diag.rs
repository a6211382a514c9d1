//! The kernel's socket diagnosis: which sockets a namespace has, and the end of one.
//!
//! Wire format: `netlink(7)`, `sock_diag(7)`, Linux `include/uapi/linux/{inet_diag,sock_diag}.h`. It can also return what a
//! program stored with a socket (`INET_DIAG_REQ_SK_BPF_STORAGES`), but not of UDP: `inet_sk_diag_fill` ends before it gets
//! there when a socket has no connection (net/ipv4/inet_diag.c). `storage` has another way.

use std::io;

use crate::dataplane::sys::netlink::{Connection, u32_at};

/// As the kernel's requests have them: `libc` has them in the width of `socket(2)`.
pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;
const IPPROTO_UDP: u8 = 17;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

/// `struct inet_diag_req_v2` up to `id`.
const REQUEST_HEAD: usize = 8;
/// `struct inet_diag_sockid`.
const SOCKID: usize = 48;
/// `struct inet_diag_msg`.
const MESSAGE: usize = 72;

/// TCP states, as bits: what is connected or about to be.
pub(super) const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 8;

/// A socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) family: u8,
    /// `struct inet_diag_sockid`, to be handed back.
    id: [u8; SOCKID],
    /// Never given to another one.
    pub(super) cookie: u64,
    /// What it is connected to; IPv4 addresses are IPv4-mapped.
    pub(super) peer: [u8; 16],
    pub(super) peer_port_be: [u8; 2],
    /// Of its file; 0 when it has none any more.
    pub(super) inode: u32,
}

/// A connection to the diagnosis of the namespace that it was opened in.
#[derive(Debug)]
pub(super) struct Diag(Connection);

impl Diag {
    pub(super) fn open() -> io::Result<Self> {
        const NETLINK_SOCK_DIAG: libc::c_int = 4;
        Connection::open(NETLINK_SOCK_DIAG).map(Self)
    }

    /// All connected sockets of a family (`AF_*`) and a protocol (`IPPROTO_*`). `NotFound`: the kernel has no diagnosis of it.
    pub(super) fn connected(&mut self, family: u8, protocol: u8) -> io::Result<Vec<Socket>> {
        let body = request(family, protocol, CONNECTED, &[0; SOCKID]);
        let mut sockets = Vec::new();
        let take = |message: &[u8]| sockets.extend(parse(message));
        self.0.dump(SOCK_DIAG_BY_FAMILY, &body, take)?;
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
        let body = request(family, protocol, CONNECTED, id);
        self.0.request(SOCK_DESTROY, 0, &body)
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, protocol: u8, states: u32, id: &[u8; SOCKID]) -> Vec<u8> {
    let mut body = vec![family, protocol, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    debug_assert_eq!(body.len(), REQUEST_HEAD + SOCKID);
    body
}

/// `struct inet_diag_msg`; `None` for what is none.
fn parse(body: &[u8]) -> Option<Socket> {
    let family = *body.first()?;
    let id: [u8; SOCKID] = body.get(4..4 + SOCKID)?.try_into().ok()?;
    let peer: [u8; 16] = id[20..36].try_into().ok()?;
    let peer = match family {
        AF_INET => yurt_ebpf::abi::mapped(peer[..4].try_into().ok()?),
        AF_INET6 => peer,
        _ => return None,
    };
    let (low, high) = (u32_at(&id, 40)?, u32_at(&id, 44)?);
    Some(Socket {
        family,
        id,
        cookie: u64::from(high) << 32 | u64::from(low),
        peer,
        peer_port_be: [id[2], id[3]],
        inode: u32_at(body, MESSAGE - 4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(family: u8, dst: &[u8]) -> Vec<u8> {
        let mut body = vec![0; MESSAGE];
        body[0] = family;
        body[6..8].copy_from_slice(&[0x1f, 0x90]);
        body[24..24 + dst.len()].copy_from_slice(dst);
        body[44..48].copy_from_slice(&7u32.to_ne_bytes());
        body[48..52].copy_from_slice(&1u32.to_ne_bytes());
        body[68..].copy_from_slice(&99u32.to_ne_bytes());
        body
    }

    #[test]
    fn a_socket_is_read_with_its_peer_its_cookie_and_its_inode() {
        let socket = parse(&message(2, &[10, 1, 0, 2])).unwrap();
        assert_eq!(socket.peer, yurt_ebpf::abi::mapped([10, 1, 0, 2]));
        assert_eq!(u16::from_be_bytes(socket.peer_port_be), 8080);
        assert_eq!((socket.cookie, socket.inode), (1 << 32 | 7, 99));
        let v6: Vec<u8> = (1..=16).collect();
        assert_eq!(parse(&message(10, &v6)).unwrap().peer[..], v6);
        assert_eq!(parse(&message(1, &v6)), None);
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

    #[test]
    fn what_is_cut_off_anywhere_is_no_panic_and_no_other_socket() {
        let whole = message(2, &[10, 1, 0, 2]);
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None, "{length}");
        }
    }
}
