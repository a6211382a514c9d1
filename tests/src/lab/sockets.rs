//! What a worker does with sockets: serve, connect, keep, count. Blocking, and bounded everywhere.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use super::errno;
use super::protocol::Attempt;
use super::protocol::DatagramReply;
use super::protocol::Failure;
use super::protocol::Proto;

const LONGEST_DATAGRAM: usize = 2048;
const BEFORE_ASKING_AGAIN: Duration = Duration::from_secs(1);

/// Starts a server on threads of its own; it is listening when this returns.
pub fn serve(proto: Proto, addr: Option<IpAddr>, port: u16, name: &str) -> io::Result<()> {
    let at = SocketAddr::new(addr.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), port);
    let name = name.to_owned();
    match proto {
        Proto::Tcp => {
            let listener = TcpListener::bind(at)?;
            thread::Builder::new().spawn(move || accept_all(&listener, &name))?;
        }
        Proto::Udp => {
            let socket = UdpSocket::bind(at)?;
            thread::Builder::new().spawn(move || answer_all(&socket, &name))?;
        }
    }
    Ok(())
}

fn accept_all(listener: &TcpListener, name: &str) {
    for stream in listener.incoming().flatten() {
        let Ok(client) = stream.peer_addr() else {
            continue;
        };
        let name = name_for(name, client);
        // If there is no thread for a connection, it is dropped, and its client notices.
        let _ = thread::Builder::new().spawn(move || greet_and_echo(stream, &name));
    }
}

fn name_for(name: &str, client: SocketAddr) -> String {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    name.replace("{client}", &client.to_string())
}

fn greet_and_echo(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    writeln_at_once(&mut stream, name)?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        stream.write_all(line.as_bytes())?;
        line.clear();
    }
    Ok(())
}

fn writeln_at_once(stream: &mut TcpStream, line: &str) -> io::Result<()> {
    stream.write_all(format!("{line}\n").as_bytes())
}

fn answer_all(socket: &UdpSocket, name: &str) {
    let mut buffer = [0; LONGEST_DATAGRAM];
    loop {
        // ICMP errors for earlier answers show up here, too, and do not matter any more.
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let mut answer = format!("{} ", name_for(name, from)).into_bytes();
            answer.extend_from_slice(&buffer[..length]);
            let _ = socket.send_to(&answer, from);
        }
    }
}

/// A client's end of a connection.
#[derive(Debug)]
pub struct Connection {
    end: End,
    name: String,
    pings: u64,
}

#[derive(Debug)]
enum End {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
}

impl Connection {
    /// Connects, and waits for the name of the server.
    pub fn open(proto: Proto, to: SocketAddr, timeout: Duration) -> Result<Self, Failure> {
        let end = match proto {
            Proto::Tcp => {
                let stream = TcpStream::connect_timeout(&to, timeout).map_err(at("connect"))?;
                stream.set_nodelay(true).map_err(at("setsockopt"))?;
                stream
                    .set_read_timeout(Some(timeout))
                    .map_err(at("setsockopt"))?;
                close_with_reset(&stream).map_err(at("setsockopt"))?;
                End::Tcp(BufReader::new(stream))
            }
            Proto::Udp => {
                let socket = udp_socket(to, timeout).map_err(at("bind"))?;
                socket.connect(to).map_err(at("connect"))?;
                End::Udp(socket)
            }
        };
        let mut connection = Self {
            end,
            name: String::new(),
            pings: 0,
        };
        connection.name = match proto {
            Proto::Tcp => connection.read_line()?,
            Proto::Udp => connection.ping()?,
        };
        Ok(connection)
    }

    /// Who is at the other end.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What getpeername says.
    pub fn peer(&self) -> Result<SocketAddr, Failure> {
        match &self.end {
            End::Tcp(stream) => stream.get_ref().peer_addr(),
            End::Udp(socket) => socket.peer_addr(),
        }
        .map_err(at("getpeername"))
    }

    /// Sends a message that was never sent before and waits for its echo; returns the server's name.
    pub fn ping(&mut self) -> Result<String, Failure> {
        self.pings += 1;
        let message = format!("ping-{}", self.pings);
        match &mut self.end {
            End::Tcp(stream) => {
                writeln_at_once(stream.get_mut(), &message).map_err(at("send"))?;
                let echo = self.read_line()?;
                if echo == message {
                    Ok(self.name.clone())
                } else {
                    Err(failure("recv", &format!("other echo: {echo}")))
                }
            }
            End::Udp(socket) => {
                socket.send(message.as_bytes()).map_err(at("send"))?;
                let mut buffer = [0; LONGEST_DATAGRAM];
                loop {
                    let length = socket.recv(&mut buffer).map_err(at("recv"))?;
                    let answer = String::from_utf8_lossy(&buffer[..length]);
                    // An answer to an earlier message that timed out is skipped.
                    if let Some((name, echo)) = answer.split_once(' ')
                        && echo == message
                    {
                        return Ok(name.to_owned());
                    }
                }
            }
        }
    }

    fn read_line(&mut self) -> Result<String, Failure> {
        let End::Tcp(stream) = &mut self.end else {
            return Err(failure("recv", "no stream"));
        };
        let mut line = String::new();
        match stream.read_line(&mut line) {
            Ok(0) => Err(failure("recv", "EOF")),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(e) => Err(at("recv")(e)),
        }
    }
}

/// Connects, reads the answer, and closes.
pub fn attempt(proto: Proto, to: SocketAddr, timeout: Duration) -> Attempt {
    let start = Instant::now();
    let result = Connection::open(proto, to, timeout);
    describe(result.as_ref(), start)
}

/// Dials each of these once, several at a time.
pub fn attempt_all(
    dials: &[(Proto, SocketAddr)],
    at_once: usize,
    timeout: Duration,
) -> Vec<Attempt> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![Attempt::default(); dials.len()]);
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some((proto, to)) = dials.get(index) else {
                        break;
                    };
                    let attempt = match proto {
                        Proto::Tcp => attempt(*proto, *to, timeout),
                        Proto::Udp => ask_again(*to, timeout),
                    };
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    results[index] = attempt;
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Sends a datagram again after silence, as TCP does with a SYN.
fn ask_again(to: SocketAddr, timeout: Duration) -> Attempt {
    let deadline = Instant::now() + timeout;
    loop {
        let attempt = attempt(Proto::Udp, to, timeout.min(BEFORE_ASKING_AGAIN));
        if attempt.errno() != Some("TIMEOUT") || Instant::now() >= deadline {
            return attempt;
        }
    }
}

/// One more exchange on an open connection.
pub fn ping(connection: &mut Connection) -> Attempt {
    let start = Instant::now();
    match connection.ping() {
        Ok(_) => describe(Ok(connection), start),
        Err(failure) => describe(Err(&failure), start),
    }
}

/// Describes the result of opening or using a connection.
pub fn describe(result: Result<&Connection, &Failure>, start: Instant) -> Attempt {
    let took = start.elapsed();
    match result.map(|c| (c.name().to_owned(), c.peer())) {
        Ok((name, peer)) => Attempt {
            answer: Some(name),
            failure: peer.as_ref().err().cloned(),
            peer: peer.ok(),
            took,
        },
        Err(failure) => Attempt {
            failure: Some(failure.clone()),
            took,
            ..Attempt::default()
        },
    }
}

/// Sends one datagram to each address from one unconnected socket and collects the answers.
pub fn datagrams(
    to: &[SocketAddr],
    overlapping: bool,
    timeout: Duration,
) -> io::Result<Vec<DatagramReply>> {
    let Some(first) = to.first() else {
        return Ok(Vec::new());
    };
    let socket = udp_socket(*first, timeout)?;
    let mut replies: Vec<_> = to
        .iter()
        .map(|to| DatagramReply {
            to: *to,
            answer: None,
            from: None,
            failure: None,
        })
        .collect();
    for index in 0..replies.len() {
        let sent = socket.send_to(format!("{index}").as_bytes(), replies[index].to);
        replies[index].failure = sent.err().map(at("send"));
        if !overlapping && replies[index].failure.is_none() {
            receive(&socket, &mut replies, index);
        }
    }
    if overlapping {
        for index in 0..replies.len() {
            if replies[index].failure.is_none() && replies[index].answer.is_none() {
                receive(&socket, &mut replies, index);
            }
        }
    }
    Ok(replies)
}

/// Receives until the answer to datagram `index` is there; other answers are noted, too.
fn receive(socket: &UdpSocket, replies: &mut [DatagramReply], index: usize) {
    let mut buffer = [0; LONGEST_DATAGRAM];
    while replies[index].answer.is_none() {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let Some((name, echo)) = text.split_once(' ') else {
                    continue;
                };
                let known = echo.parse::<usize>().ok();
                if let Some(reply) = known.and_then(|i| replies.get_mut(i)) {
                    reply.answer = Some(name.to_owned());
                    reply.from = Some(from);
                    reply.failure = None;
                }
            }
            Err(e) => {
                replies[index].failure = Some(at("recv")(e));
                return;
            }
        }
    }
}

/// An unconnected UDP socket for the family of `like`.
pub fn open_socket(like: SocketAddr, timeout: Duration) -> Result<UdpSocket, Failure> {
    udp_socket(like, timeout).map_err(at("bind"))
}

/// Sends one datagram.
pub fn send_to(socket: &UdpSocket, to: SocketAddr) -> Option<Failure> {
    socket.send_to(b"ping", to).err().map(at("send"))
}

/// Receives one answer: the server's name, and the address that it seems to come from.
pub fn receive_from(socket: &UdpSocket) -> Result<(String, SocketAddr), Failure> {
    let mut buffer = [0; LONGEST_DATAGRAM];
    let (length, from) = socket.recv_from(&mut buffer).map_err(at("recv"))?;
    let answer = String::from_utf8_lossy(&buffer[..length]);
    let name = answer.split(' ').next().unwrap_or_default().to_owned();
    Ok((name, from))
}

fn udp_socket(to: SocketAddr, timeout: Duration) -> io::Result<UdpSocket> {
    let any = match to {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(timeout))?;
    Ok(socket)
}

/// At thousands of connects a second ports would run out in TIME_WAIT; a reset leaves none behind.
fn close_with_reset(stream: &TcpStream) -> io::Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let size = libc::socklen_t::try_from(size_of_val(&linger)).map_err(io::Error::other)?;
    // SAFETY: the pointer is to a live `linger` of the size that is passed with it.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn at(call: &'static str) -> impl Fn(io::Error) -> Failure {
    move |e| failure(call, &errno::name(&e))
}

fn failure(call: &str, errno: &str) -> Failure {
    Failure {
        call: call.to_owned(),
        errno: errno.to_owned(),
    }
}
