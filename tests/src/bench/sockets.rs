//! IPv4 sockets as the kernel has them: one function for each call, so that each can be timed by itself.

use std::io;
use std::mem;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(2);
const BACKLOG: libc::c_int = 128;

/// `struct sockaddr_in`.
#[derive(Clone, Copy)]
pub struct Address(libc::sockaddr_in);

impl From<SocketAddrV4> for Address {
    fn from(at: SocketAddrV4) -> Self {
        // SAFETY: plain data, for which zero is valid.
        let mut raw: libc::sockaddr_in = unsafe { mem::zeroed() };
        raw.sin_family = FAMILY;
        raw.sin_port = at.port().to_be();
        raw.sin_addr.s_addr = u32::from_ne_bytes(at.ip().octets());
        Self(raw)
    }
}

impl From<Address> for SocketAddrV4 {
    fn from(Address(raw): Address) -> Self {
        let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
        Self::new(ip, u16::from_be(raw.sin_port))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the constant is 2; the field has 16 bits"
)]
const FAMILY: libc::sa_family_t = libc::AF_INET as libc::sa_family_t;

#[expect(
    clippy::cast_possible_truncation,
    reason = "the size of a small structure"
)]
const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_in>() as libc::socklen_t;

impl Address {
    fn empty() -> Self {
        Self::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))
    }

    fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.0).cast()
    }

    fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.0).cast()
    }
}

/// A socket of the network namespace that the thread was in when it was made.
pub struct Socket(OwnedFd);

impl Socket {
    /// A stream. Closing it resets the connection, so that nothing of it lingers.
    pub fn tcp() -> io::Result<Self> {
        let socket = Self::new(libc::SOCK_STREAM)?;
        socket.reset_on_close()?;
        Ok(socket)
    }

    /// A datagram socket.
    pub fn udp() -> io::Result<Self> {
        Self::new(libc::SOCK_DGRAM)
    }

    /// A stream that listens on every address.
    pub fn listening(port: u16) -> io::Result<Self> {
        let socket = Self::new(libc::SOCK_STREAM)?;
        socket.set(libc::SO_REUSEADDR, &1i32)?;
        socket.bind(port)?;
        // SAFETY: no pointers.
        check(unsafe { libc::listen(socket.fd(), BACKLOG) })?;
        Ok(socket)
    }

    fn new(kind: libc::c_int) -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_INET, kind | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: the kernel has just opened it for us.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let patience = libc::timeval {
            tv_sec: i64::try_from(PATIENCE.as_secs()).map_err(io::Error::other)?,
            tv_usec: 0,
        };
        socket.set(libc::SO_RCVTIMEO, &patience)?;
        socket.set(libc::SO_SNDTIMEO, &patience)?;
        Ok(socket)
    }

    fn reset_on_close(&self) -> io::Result<()> {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        self.set(libc::SO_LINGER, &linger)
    }

    fn set<T>(&self, option: libc::c_int, value: &T) -> io::Result<()> {
        let length = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
        let value = std::ptr::from_ref(value).cast();
        // SAFETY: `value` is valid for reads of `length` bytes.
        check(unsafe { libc::setsockopt(self.fd(), libc::SOL_SOCKET, option, value, length) })?;
        Ok(())
    }

    /// Binds to a port on every address.
    pub fn bind(&self, port: u16) -> io::Result<()> {
        let at = Address::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
        // SAFETY: a valid address of this length.
        check(unsafe { libc::bind(self.fd(), at.as_ptr(), LENGTH) })?;
        Ok(())
    }

    /// `connect`.
    #[inline]
    pub fn connect(&self, to: &Address) -> io::Result<()> {
        // SAFETY: a valid address of this length.
        check(unsafe { libc::connect(self.fd(), to.as_ptr(), LENGTH) })?;
        Ok(())
    }

    /// Accepts a waiting connection.
    pub fn accept(&self) -> io::Result<(Self, SocketAddrV4)> {
        let mut from = Address::empty();
        let mut length = LENGTH;
        let flags = libc::SOCK_CLOEXEC;
        // SAFETY: a valid address of this length.
        let fd =
            check(unsafe { libc::accept4(self.fd(), from.as_mut_ptr(), &raw mut length, flags) })?;
        // SAFETY: the kernel has just opened it for us.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.reset_on_close()?;
        Ok((socket, from.into()))
    }

    /// `sendto`.
    #[inline]
    pub fn send_to(&self, message: &[u8], to: &Address) -> io::Result<()> {
        let (data, size) = (message.as_ptr().cast(), message.len());
        // SAFETY: a valid message and a valid address of these lengths.
        let sent = unsafe { libc::sendto(self.fd(), data, size, 0, to.as_ptr(), LENGTH) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// `recvfrom`.
    #[inline]
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Address)> {
        let mut from = Address::empty();
        let mut length = LENGTH;
        let (data, size) = (buffer.as_mut_ptr().cast(), buffer.len());
        // SAFETY: a valid buffer and a valid address of these lengths.
        let received =
            unsafe { libc::recvfrom(self.fd(), data, size, 0, from.as_mut_ptr(), &raw mut length) };
        match usize::try_from(received) {
            Ok(received) => Ok((received, from)),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// `getpeername`.
    #[inline]
    pub fn peer(&self) -> io::Result<SocketAddrV4> {
        let mut at = Address::empty();
        let mut length = LENGTH;
        // SAFETY: a valid address of this length.
        check(unsafe { libc::getpeername(self.fd(), at.as_mut_ptr(), &raw mut length) })?;
        Ok(at.into())
    }

    /// `getsockname`.
    pub fn name(&self) -> io::Result<SocketAddrV4> {
        let mut at = Address::empty();
        let mut length = LENGTH;
        // SAFETY: a valid address of this length.
        check(unsafe { libc::getsockname(self.fd(), at.as_mut_ptr(), &raw mut length) })?;
        Ok(at.into())
    }

    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[inline]
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
