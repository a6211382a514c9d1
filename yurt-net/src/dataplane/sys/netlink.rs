//! A netlink socket, in as few words as socket diagnosis and traffic control need: `netlink(7)`.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;

/// `struct nlmsghdr`.
const HEADER: usize = 16;
const BUFFER: usize = 64 << 10;

/// A connection to the kernel, in the network namespace that it was opened in.
#[derive(Debug)]
pub(in crate::dataplane) struct Connection {
    socket: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Connection {
    /// `protocol`: `NETLINK_*`.
    pub(in crate::dataplane) fn open(protocol: libc::c_int) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: a call without pointers.
        let socket = unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) };
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

    /// Asks for something to be done, and waits until it is.
    pub(in crate::dataplane) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
    ) -> io::Result<()> {
        self.send(kind, flags | NLM_F_ACK, body)?;
        loop {
            let length = self.receive()?;
            for message in Messages(&self.buffer[..length]) {
                let (kind, sequence, body) = message?;
                if kind == NLMSG_ERROR && sequence == self.sequence {
                    return errno(body);
                }
            }
        }
    }

    /// Asks for a list, and hands over the body of each of its messages.
    pub(in crate::dataplane) fn dump(
        &mut self,
        kind: u16,
        body: &[u8],
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.send(kind, NLM_F_DUMP, body)?;
        loop {
            let length = self.receive()?;
            for message in Messages(&self.buffer[..length]) {
                let (kind, sequence, body) = message?;
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    NLMSG_DONE | NLMSG_ERROR => return errno(body),
                    _ => take(body),
                }
            }
        }
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(body);
        // SAFETY: the message is valid for reads of its length.
        let sent = unsafe {
            let fd = self.socket.as_raw_fd();
            libc::send(fd, message.as_ptr().cast(), message.len(), 0)
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
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
                Ok(_) => return Err(io::Error::other("a piece of a netlink dump is too long")),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
    }
}

/// Two bytes, as they are in memory.
pub(in crate::dataplane) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Four bytes, as they are in memory.
pub(in crate::dataplane) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_cut_off_anywhere_is_an_error_and_no_other_message() {
        let mut piece = 20u32.to_ne_bytes().to_vec();
        piece.extend([NLMSG_ERROR.to_ne_bytes(), [0; 2]].concat());
        piece.extend([3u32.to_ne_bytes(), [0; 4], (-95i32).to_ne_bytes()].concat());
        let messages: Vec<_> = Messages(&piece).map(Result::unwrap).collect();
        let (kind, sequence, body) = messages[0];
        assert_eq!((messages.len(), kind, sequence), (1, NLMSG_ERROR, 3));
        assert_eq!(
            errno(body).unwrap_err().raw_os_error(),
            Some(libc::EOPNOTSUPP)
        );
        for length in 1..piece.len() {
            assert!(
                Messages(&piece[..length]).next().unwrap().is_err(),
                "{length}"
            );
        }
    }
}
