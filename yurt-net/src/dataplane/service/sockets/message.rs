//! The messages of the kernel's socket diagnosis, byte by byte.
//!
//! Pure. Wire format: `sock_diag(7)`, Linux `include/uapi/linux/{inet_diag,sock_diag}.h`. Numbers are in the byte order
//! of the machine, addresses and ports in that of the network.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr};

use yurt_ebpf::frame::ip::TCP;

use crate::dataplane::netlink::u32_at;

/// Width as in the kernel's requests; `libc` has that of `socket(2)`.
pub const AF_INET: u8 = 2;
/// Includes sockets with IPv4-mapped addresses.
pub const AF_INET6: u8 = 10;

pub(super) const SOCK_DIAG_BY_FAMILY: u16 = 20;
pub(super) const SOCK_DESTROY: u16 = 21;

/// `struct inet_diag_sockid`.
pub(super) const SOCKID: usize = 48;
/// `struct inet_diag_msg`.
const MESSAGE: usize = 72;

/// TCP states, as bits: connected or connecting.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 8;

/// A socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// `struct inet_diag_sockid`, which requests about the socket repeat.
    pub(super) id: [u8; SOCKID],
    /// Its cookie, which no other socket ever gets.
    pub cookie: u64,
    /// The address that it is connected to; IPv4 addresses are IPv4-mapped.
    pub remote: [u8; 16],
    /// The port that it is connected to, big endian.
    pub remote_port_be: [u8; 2],
    /// The inode of its file; 0 if it has no file any more.
    pub inode: u32,
}

/// `INET_DIAG_REQ_BYTECODE`, of the requests' attributes.
const REQ_BYTECODE: u16 = 1;
/// `INET_DIAG_BC_JMP`: always takes the jump for "no".
const BC_JMP: u8 = 1;
/// `INET_DIAG_BC_D_COND`: the remote is this one.
const BC_D_COND: u8 = 8;
/// `struct inet_diag_bc_op`.
const OP: usize = 4;

/// The attribute that limits a dump to sockets with one of these remotes, IPv4-mapped ones included. The kernel checks
/// the program, and accepts about two thousand remotes.
///
/// The program has one comparison for each remote. A socket that matches jumps right behind the last operation, which
/// admits it; a socket that matches no remote jumps further, which rejects it.
pub(super) fn only_to(remotes: &[SocketAddr]) -> io::Result<Vec<u8>> {
    let comparisons: Vec<Vec<u8>> = remotes
        .iter()
        .map(|remote| host_condition(*remote))
        .collect();
    let jumps = comparisons.len().saturating_sub(1);
    let length = comparisons.iter().map(|one| OP + one.len()).sum::<usize>() + jumps * OP;
    let mut program = Vec::with_capacity(OP + length);
    program.extend(bytes(OP + length)?);
    program.extend(REQ_BYTECODE.to_ne_bytes());
    let mut left = length;
    for comparison in comparisons {
        let yes = OP + comparison.len();
        program.push(BC_D_COND);
        program.push(u8::try_from(yes).map_err(io::Error::other)?);
        program.extend(bytes(yes + OP)?);
        program.extend(comparison);
        left -= yes;
        if left > 0 {
            program.push(BC_JMP);
            program.push(u8::try_from(OP).map_err(io::Error::other)?);
            program.extend(bytes(left)?);
            left -= OP;
        }
    }
    Ok(program)
}

/// `struct inet_diag_hostcond` of a whole address and a port.
fn host_condition(remote: SocketAddr) -> Vec<u8> {
    let (family, address) = match remote.ip() {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    };
    let bits = if family == AF_INET { 32 } else { 128 };
    let mut condition = vec![family, bits, 0, 0];
    condition.extend(i32::from(remote.port()).to_ne_bytes());
    condition.extend(address);
    condition
}

fn bytes(length: usize) -> io::Result<[u8; 2]> {
    let length = u16::try_from(length).map_err(io::Error::other)?;
    Ok(length.to_ne_bytes())
}

/// `struct inet_diag_req_v2` for no socket at all.
pub(super) fn request_nothing(family: u8, protocol: u8) -> Vec<u8> {
    [&[family, protocol, 0, 0][..], &[0; 4], &[0; SOCKID]].concat()
}

/// `struct inet_diag_req_v2` for the connected sockets of a family and a protocol, or for the socket with this `id`.
pub(super) fn request(family: u8, protocol: u8, id: &[u8; SOCKID]) -> Vec<u8> {
    let mut body = vec![family, protocol, 0, 0];
    body.extend(CONNECTED.to_ne_bytes());
    body.extend(id);
    body
}

/// `struct inet_diag_req_v2` for the TCP socket that is bound to `own` and connected to `remote`, in any state. Fails
/// if the addresses are of two families.
pub(super) fn request_one(own: SocketAddr, remote: SocketAddr) -> io::Result<Vec<u8>> {
    // With this value the kernel compares no cookie.
    const NO_COOKIE: [u8; 8] = [0xff; 8];
    let mut id = [0; SOCKID];
    id[..2].copy_from_slice(&own.port().to_be_bytes());
    id[2..4].copy_from_slice(&remote.port().to_be_bytes());
    let family = match (own.ip(), remote.ip()) {
        (IpAddr::V4(own), IpAddr::V4(remote)) => {
            id[4..8].copy_from_slice(&own.octets());
            id[20..24].copy_from_slice(&remote.octets());
            AF_INET
        }
        (IpAddr::V6(own), IpAddr::V6(remote)) => {
            id[4..20].copy_from_slice(&own.octets());
            id[20..36].copy_from_slice(&remote.octets());
            AF_INET6
        }
        _ => return Err(io::Error::other("a connection has two families")),
    };
    id[SOCKID - NO_COOKIE.len()..].copy_from_slice(&NO_COOKIE);
    Ok(request(family, TCP, &id))
}

/// The owner of the socket in a `struct inet_diag_msg`: the user ID of its file, and whether it has a file. `None` for
/// other messages, and for a listener, which the kernel returns if it finds no connection.
pub(super) fn owner(body: &[u8]) -> Option<(u32, bool)> {
    const LISTEN: u8 = 10;
    let (state, uid, inode) = (
        *body.get(1)?,
        u32_at(body, MESSAGE - 8)?,
        u32_at(body, MESSAGE - 4)?,
    );
    (state != LISTEN).then_some((uid, inode != 0))
}

/// Decodes a `struct inet_diag_msg`; `None` for other bytes.
pub fn parse(body: &[u8]) -> Option<Socket> {
    let family = *body.first()?;
    let id: [u8; SOCKID] = body.get(4..4 + SOCKID)?.try_into().ok()?;
    let remote: [u8; 16] = id[20..36].try_into().ok()?;
    let remote = match family {
        AF_INET => yurt_ebpf::abi::mapped(remote[..4].try_into().ok()?),
        AF_INET6 => remote,
        _ => return None,
    };
    let (low, high) = (u32_at(&id, 40)?, u32_at(&id, 44)?);
    Some(Socket {
        family,
        id,
        cookie: u64::from(high) << 32 | u64::from(low),
        remote,
        remote_port_be: [id[2], id[3]],
        inode: u32_at(body, MESSAGE - 4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(family: u8, dst: &[u8]) -> Vec<u8> {
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
    fn a_socket_is_read_with_its_remote_its_cookie_and_its_inode() {
        let v4 = parse(&socket(2, &[10, 1, 0, 2])).unwrap();
        assert_eq!(v4.remote, yurt_ebpf::abi::mapped([10, 1, 0, 2]));
        assert_eq!(u16::from_be_bytes(v4.remote_port_be), 8080);
        assert_eq!((v4.cookie, v4.inode), (1 << 32 | 7, 99));
        let v6: Vec<u8> = (1..=16).collect();
        assert_eq!(parse(&socket(10, &v6)).unwrap().remote[..], v6);
        assert_eq!(parse(&socket(1, &v6)), None);
    }

    #[test]
    fn what_is_cut_off_anywhere_is_no_panic_and_no_other_socket() {
        let whole = socket(2, &[10, 1, 0, 2]);
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None, "{length}");
        }
    }
}
