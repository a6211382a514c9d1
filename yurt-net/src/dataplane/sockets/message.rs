//! The messages of the kernel's socket diagnosis, byte by byte.
//!
//! Pure. Wire format: `netlink(7)`, `sock_diag(7)`, Linux `include/uapi/linux/{netlink,inet_diag,sock_diag}.h`. Numbers are in
//! the byte order of the machine, addresses and ports in that of the network.
#![forbid(unsafe_code)]

use std::io;

/// As the kernel's requests have them: `libc` has them in the width of `socket(2)`.
pub const AF_INET: u8 = 2;
/// Also of sockets that are IPv4-mapped.
pub const AF_INET6: u8 = 10;

pub(super) const SOCK_DIAG_BY_FAMILY: u16 = 20;
pub(super) const SOCK_DESTROY: u16 = 21;

/// The result of a request: a negated errno, or 0.
pub const NLMSG_ERROR: u16 = 2;
/// The end of a dump.
pub const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
pub(super) const NLM_F_ACK: u16 = 0x4;
pub(super) const NLM_F_DUMP: u16 = 0x300;

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_sockid`.
pub(super) const SOCKID: usize = 48;
/// `struct inet_diag_msg`.
const MESSAGE: usize = 72;

/// TCP states, as bits: what is connected or about to be.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 8;

/// A socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// `struct inet_diag_sockid`, to be handed back.
    pub(super) id: [u8; SOCKID],
    /// Never given to another one.
    pub cookie: u64,
    /// What it is connected to; IPv4 addresses are IPv4-mapped.
    pub peer: [u8; 16],
    /// Its port, big endian.
    pub peer_port_be: [u8; 2],
    /// Of its file; 0 when it has none any more.
    pub inode: u32,
}

/// `struct inet_diag_req_v2` with its header: about the connected sockets of a family and a protocol, or the one of this `id`.
pub(super) fn request(
    (kind, flags, sequence): (u16, u16, u32),
    (family, protocol): (u8, u8),
    id: &[u8; SOCKID],
) -> Vec<u8> {
    let mut body = vec![family, protocol, 0, 0];
    body.extend(CONNECTED.to_ne_bytes());
    body.extend(id);
    message((kind, flags | NLM_F_REQUEST, sequence), &body)
}

/// `struct nlmsghdr` and what follows it.
pub fn message((kind, flags, sequence): (u16, u16, u32), body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend(body);
    message
}

/// Takes one piece of the answer to request `sequence` apart, and hands out its sockets. True when the answer ends in it; an
/// error is what the kernel says, or what is wrong with the piece.
pub fn read(piece: &[u8], sequence: u32, mut sink: impl FnMut(Socket)) -> io::Result<bool> {
    for message in Messages(piece) {
        let (kind, of, body) = message?;
        match kind {
            _ if of != sequence => {}
            NLMSG_DONE | NLMSG_ERROR => return errno(body).map(|()| true),
            _ => {
                if let Some(socket) = parse(body) {
                    sink(socket);
                }
            }
        }
    }
    Ok(false)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The messages of one piece: type, sequence number, body.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<(u16, u32, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let take = || {
            let length = usize::try_from(u32_at(self.0, 0)?).ok()?;
            let body = self.0.get(HEADER..length)?;
            let rest = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some(((u16_at(self.0, 4)?, u32_at(self.0, 8)?, body), rest))
        };
        let Some((message, rest)) = take() else {
            self.0 = &[];
            return Some(Err(io::Error::other("a netlink message is cut off")));
        };
        self.0 = rest;
        Some(Ok(message))
    }
}

/// The result in an error message, and in the end of a dump: a negated errno, or 0.
fn errno(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0).map(u32::cast_signed) {
        None => Err(io::Error::other("a netlink result is cut off")),
        Some(0..) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno.wrapping_neg())),
    }
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

    fn result(errno: i32) -> Vec<u8> {
        message((NLMSG_ERROR, 0, 3), &errno.to_ne_bytes())
    }

    #[test]
    fn a_socket_is_read_with_its_peer_its_cookie_and_its_inode() {
        let v4 = parse(&socket(2, &[10, 1, 0, 2])).unwrap();
        assert_eq!(v4.peer, yurt_ebpf::abi::mapped([10, 1, 0, 2]));
        assert_eq!(u16::from_be_bytes(v4.peer_port_be), 8080);
        assert_eq!((v4.cookie, v4.inode), (1 << 32 | 7, 99));
        let v6: Vec<u8> = (1..=16).collect();
        assert_eq!(parse(&socket(10, &v6)).unwrap().peer[..], v6);
        assert_eq!(parse(&socket(1, &v6)), None);
    }

    #[test]
    fn what_is_cut_off_anywhere_is_no_panic_and_no_other_socket() {
        let whole = socket(2, &[10, 1, 0, 2]);
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None, "{length}");
        }
        let piece = result(-libc::EOPNOTSUPP);
        let error = read(&piece, 3, |_| {}).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        for length in 1..piece.len() {
            let error = read(&piece[..length], 3, |_| {}).unwrap_err();
            assert_eq!(error.raw_os_error(), None, "{length}");
        }
    }

    #[test]
    fn only_the_answer_to_the_request_itself_counts() {
        let found = message((SOCK_DIAG_BY_FAMILY, 0, 3), &socket(2, &[10, 1, 0, 2]));
        let piece = [found, result(0)].concat();
        for (sequence, sockets, is_over) in [(3, 1, true), (4, 0, false)] {
            let mut seen = 0;
            assert_eq!(read(&piece, sequence, |_| seen += 1).unwrap(), is_over);
            assert_eq!(seen, sockets);
        }
    }
}
