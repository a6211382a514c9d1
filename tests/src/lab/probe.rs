//! Looks behind the hooks, for a worker: dials and asks the kernel where the socket leads, uses sockets that are
//! neither TCP nor UDP, and drives a UDP socket step by step.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use std::time::Instant;

use super::errno;
use super::protocol::Attempt;
use super::protocol::Failure;
use super::protocol::OtherSocket;
use super::protocol::Proto;
use super::protocol::UdpOutcome;
use super::protocol::UdpStep;

const LONGEST_DATAGRAM: usize = 2048;
const ECHO_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects without waiting for the other end; the answer is the address that the kernel's tables
/// show for the socket.
pub fn dial(proto: Proto, to: SocketAddr) -> Attempt {
    let start = Instant::now();
    let (kind, protocol) = match proto {
        Proto::Tcp => (libc::SOCK_STREAM, libc::IPPROTO_TCP),
        Proto::Udp => (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
    };
    let result = socket(to, kind | libc::SOCK_NONBLOCK, protocol).and_then(|socket| {
        connect(&socket, to)?;
        let inode = fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd()))
            .map_err(at("stat"))?
            .ino();
        remote_of(proto, to.is_ipv6(), inode).map_err(at("read /proc/net"))
    });
    outcome(result.map(|remote| (Some(remote.to_string()), None)), start)
}

/// Connects such a socket; with ICMP, the answer is the echo.
pub fn dial_other(kind: OtherSocket, to: SocketAddr) -> Attempt {
    let start = Instant::now();
    let icmp = match to {
        SocketAddr::V4(_) => libc::IPPROTO_ICMP,
        SocketAddr::V6(_) => libc::IPPROTO_ICMPV6,
    };
    let (kind, protocol) = match kind {
        OtherSocket::Icmp => (libc::SOCK_DGRAM, icmp),
        OtherSocket::RawTcp => (libc::SOCK_RAW, libc::IPPROTO_TCP),
        OtherSocket::RawUdp => (libc::SOCK_RAW, libc::IPPROTO_UDP),
    };
    let result = socket(to, kind, protocol).and_then(|fd| {
        connect(&fd, to)?;
        // The standard library's UDP socket works for any socket that can be connected.
        let socket = std::net::UdpSocket::from(fd);
        let echo = (protocol == icmp).then(|| echo(&socket, to)).transpose()?;
        if echo.is_some() {
            // Without a port, getpeername has nothing to show.
            return Ok((echo, None));
        }
        let peer = socket.peer_addr().map_err(at("getpeername"))?;
        Ok((None, Some(peer)))
    });
    outcome(result, start)
}

fn outcome(
    result: Result<(Option<String>, Option<SocketAddr>), Failure>,
    start: Instant,
) -> Attempt {
    let took = start.elapsed();
    match result {
        Ok((answer, peer)) => Attempt {
            answer,
            peer,
            failure: None,
            took,
        },
        Err(failure) => Attempt {
            failure: Some(failure),
            took,
            ..Attempt::default()
        },
    }
}

/// One echo request; the kernel fills in the identifier and the checksum.
fn echo(socket: &std::net::UdpSocket, to: SocketAddr) -> Result<String, Failure> {
    let request_type = if to.is_ipv4() { 8 } else { 128 };
    socket
        .set_read_timeout(Some(ECHO_TIMEOUT))
        .map_err(at("setsockopt"))?;
    socket
        .send(&[request_type, 0, 0, 0, 0, 0, 0, 1, b'y'])
        .map_err(at("send"))?;
    let mut buffer = [0; LONGEST_DATAGRAM];
    let (_, from) = socket.recv_from(&mut buffer).map_err(at("recv"))?;
    Ok(from.ip().to_string())
}

fn socket(to: SocketAddr, kind: i32, protocol: i32) -> Result<OwnedFd, Failure> {
    let family = match to {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(at("socket")(io::Error::last_os_error()));
    }
    // SAFETY: just opened, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn connect(socket: &OwnedFd, to: SocketAddr) -> Result<(), Failure> {
    let fd = socket.as_raw_fd();
    let result = match to {
        SocketAddr::V4(to) => {
            let address = libc::sockaddr_in {
                sin_family: short(libc::AF_INET),
                sin_port: to.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(to.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            let length = short(size_of_val(&address));
            // SAFETY: the pointer is to a live address of the length that is passed with it.
            unsafe { libc::connect(fd, (&raw const address).cast(), length) }
        }
        SocketAddr::V6(to) => {
            let address = libc::sockaddr_in6 {
                sin6_family: short(libc::AF_INET6),
                sin6_port: to.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: to.ip().octets(),
                },
                sin6_scope_id: 0,
            };
            let length = short(size_of_val(&address));
            // SAFETY: as above.
            unsafe { libc::connect(fd, (&raw const address).cast(), length) }
        }
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // The other end need not be there.
    if error.raw_os_error() == Some(libc::EINPROGRESS) {
        return Ok(());
    }
    Err(at("connect")(error))
}

/// A small number in the type that the C library wants it in.
fn short<T: Default + TryFrom<U>, U>(number: U) -> T {
    T::try_from(number).unwrap_or_default()
}

/// The remote address of the socket with this inode in the kernel's table.
fn remote_of(proto: Proto, is_v6: bool, inode: u64) -> io::Result<SocketAddr> {
    let table = match (proto, is_v6) {
        (Proto::Tcp, false) => "/proc/net/tcp",
        (Proto::Tcp, true) => "/proc/net/tcp6",
        (Proto::Udp, false) => "/proc/net/udp",
        (Proto::Udp, true) => "/proc/net/udp6",
    };
    fs::read_to_string(table)?
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields.get(9).and_then(|field| field.parse().ok()) == Some(inode))
        .and_then(|fields| parse_hex(fields.get(2)?))
        .ok_or_else(|| io::Error::other("the socket is not in the table"))
}

/// `0A00000A:0050`: words of four bytes as this machine reads them, then the port.
fn parse_hex(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let bytes: Vec<u8> = (0..address.len() / 8)
        .map(|word| u32::from_str_radix(address.get(word * 8..word * 8 + 8)?, 16).ok())
        .collect::<Option<Vec<_>>>()?
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(SocketAddr::new(
        address,
        u16::from_str_radix(port, 16).ok()?,
    ))
}

/// A UDP socket that a test drives.
#[derive(Debug)]
pub struct UdpSocket {
    socket: std::net::UdpSocket,
    messages: u64,
}

impl UdpSocket {
    /// An unconnected one; `is_v6` for both families.
    pub fn open(is_v6: bool, timeout: Duration) -> io::Result<Self> {
        let any: IpAddr = if is_v6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        let socket = std::net::UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(timeout))?;
        Ok(Self {
            socket,
            messages: 0,
        })
    }

    /// Does one thing with it.
    pub fn step(&mut self, step: UdpStep) -> UdpOutcome {
        self.try_step(step).unwrap_or_else(|failure| UdpOutcome {
            failure: Some(failure),
            ..UdpOutcome::default()
        })
    }

    fn try_step(&mut self, step: UdpStep) -> Result<UdpOutcome, Failure> {
        self.messages += 1;
        let message = format!("message-{}", self.messages);
        match step {
            UdpStep::Ask(to) => {
                let sent = self.socket.send_to(message.as_bytes(), to);
                sent.map_err(at("send"))?;
                self.hear(&message)
            }
            UdpStep::SendTo(to) => {
                let sent = self.socket.send_to(message.as_bytes(), to);
                sent.map(|_| UdpOutcome::default()).map_err(at("send"))
            }
            UdpStep::Connect(to) => {
                let result = self.socket.connect(to).map_err(at("connect"));
                result.map(|()| UdpOutcome::default())
            }
            UdpStep::AskConnected => {
                let sent = self.socket.send(message.as_bytes());
                sent.map_err(at("send"))?;
                self.hear(&message)
            }
            UdpStep::Receive => {
                let received = self.socket.recv_from(&mut [0; LONGEST_DATAGRAM]);
                let (_, from) = received.map_err(at("recv"))?;
                Ok(UdpOutcome {
                    shown: Some(from),
                    ..UdpOutcome::default()
                })
            }
            UdpStep::Peer => Ok(UdpOutcome {
                shown: Some(self.socket.peer_addr().map_err(at("getpeername"))?),
                ..UdpOutcome::default()
            }),
        }
    }

    /// Waits for the answer to this message; later answers to earlier ones are skipped.
    fn hear(&self, message: &str) -> Result<UdpOutcome, Failure> {
        let mut buffer = [0; LONGEST_DATAGRAM];
        loop {
            let (length, from) = self.socket.recv_from(&mut buffer).map_err(at("recv"))?;
            let text = String::from_utf8_lossy(&buffer[..length]);
            if let Some((name, echo)) = text.split_once(' ')
                && echo == message
            {
                return Ok(UdpOutcome {
                    answer: Some(name.to_owned()),
                    shown: Some(from),
                    failure: None,
                });
            }
        }
    }
}

fn at(call: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure {
        call: call.to_owned(),
        errno: errno::name(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_the_kernels_tables() {
        let v4 = if cfg!(target_endian = "little") {
            "0A00600A:0050"
        } else {
            "0A60000A:0050"
        };
        assert_eq!(parse_hex(v4), Some("10.96.0.10:80".parse().unwrap()));
        assert_eq!(parse_hex("nothing"), None);
    }
}
