//! A netlink socket with what socket diagnosis and traffic control need: `netlink(7)`.
#![expect(
    unsafe_code,
    reason = "netlink sockets, which the standard library lacks"
)]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use crate::dataplane::netlink::{message, read};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;

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

    /// Subscribes to what a group is told.
    pub(in crate::dataplane) fn join(&self, group: libc::c_int) -> io::Result<()> {
        // SAFETY: the option is valid for reads of its length.
        let result = unsafe {
            let (fd, group) = (self.socket.as_raw_fd(), (&raw const group).cast());
            let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
            libc::setsockopt(
                fd,
                libc::SOL_NETLINK,
                libc::NETLINK_ADD_MEMBERSHIP,
                group,
                length,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits for something that a group is told. What did not fit into the socket counts, too.
    pub(in crate::dataplane) fn wait(&mut self) -> io::Result<()> {
        match self.receive() {
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Asks for something to be done, and waits for the result.
    pub(in crate::dataplane) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
    ) -> io::Result<()> {
        self.ask(kind, flags | NLM_F_ACK, body, |_| {})
    }

    /// Asks for one thing, and hands over the body of the message that describes it.
    pub(in crate::dataplane) fn get(
        &mut self,
        kind: u16,
        body: &[u8],
        take: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.ask(kind, NLM_F_ACK, body, take)
    }

    /// Asks for a list, and hands over the body of each of its messages.
    pub(in crate::dataplane) fn dump(
        &mut self,
        kind: u16,
        body: &[u8],
        take: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.ask(kind, NLM_F_DUMP, body, take)
    }

    /// Sends a request and reads its answer to the end.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.send(kind, flags, body)?;
        loop {
            let length = self.receive()?;
            if read(&self.buffer[..length], self.sequence, &mut take)? {
                return Ok(());
            }
        }
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let message = message((kind, flags | NLM_F_REQUEST, self.sequence), body);
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
