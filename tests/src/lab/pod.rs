//! A Pod of the lab, and what its processes can be told to do.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use super::Netns;
use super::place::Place;
use super::protocol::Attempt;
use super::protocol::DatagramReply;
use super::protocol::OtherSocket;
use super::protocol::Proto;
use super::protocol::Reply;
use super::protocol::Request;
use super::protocol::Tally;
use super::protocol::UdpOutcome;
use super::protocol::UdpStep;
use super::worker::Worker;

/// How long a call on a socket may take before it counts as a time-out: far longer than a busy machine delays a
/// process, and a fraction of the minute in which tests try again.
const TIMEOUT: Duration = Duration::from_secs(10);
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);

/// A Pod: a network namespace, a cgroup, and one process. Clones are the same Pod.
#[derive(Clone, Debug)]
pub struct Pod(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    name: String,
    node: String,
    ip4: Ipv4Addr,
    ip6: Ipv6Addr,
    place: Place,
    worker: Worker,
}

impl Pod {
    pub(super) fn new(
        name: &str,
        node: &str,
        place: Place,
        ip4: Ipv4Addr,
        ip6: Ipv6Addr,
    ) -> Result<Self> {
        let worker = Worker::start(&place)?;
        Ok(Self(Arc::new(Parts {
            name: name.to_owned(),
            node: node.to_owned(),
            ip4,
            ip6,
            place,
            worker,
        })))
    }

    /// Serves TCP on all addresses: answers the Pod's name, then echoes lines.
    pub fn serve_tcp(&self, port: u16) -> Result<Self> {
        self.serve(Proto::Tcp, None, port)
    }

    /// Serves UDP on all addresses: answers the Pod's name and the payload.
    pub fn serve_udp(&self, port: u16) -> Result<Self> {
        self.serve(Proto::Udp, None, port)
    }

    /// Serves on one address.
    pub fn serve_at(&self, proto: Proto, addr: IpAddr, port: u16) -> Result<Self> {
        self.serve(proto, Some(addr), port)
    }

    /// Serves both protocols on each of its two addresses: answers the Pod's name, a comma, and the address and
    /// port that ask.
    pub fn serve_telling(&self, port: u16) -> Result<()> {
        let name = format!("{},{{client}}", self.0.name);
        for address in [IpAddr::from(self.ip4()), self.ip6().into()] {
            for proto in [Proto::Tcp, Proto::Udp] {
                self.serve_as(proto, Some(address), port, name.clone())?;
            }
        }
        Ok(())
    }

    fn serve(&self, proto: Proto, addr: Option<IpAddr>, port: u16) -> Result<Self> {
        self.serve_as(proto, addr, port, self.0.name.clone())?;
        Ok(self.clone())
    }

    fn serve_as(&self, proto: Proto, addr: Option<IpAddr>, port: u16, name: String) -> Result<()> {
        let request = Request::Serve {
            proto,
            addr,
            port,
            name,
        };
        match self.call(&request)? {
            Reply::Done => Ok(()),
            other => unexpected(&other),
        }
    }

    /// Connects by TCP and returns who answered.
    pub fn get(&self, to: &str) -> Result<String> {
        let attempt = self.attempt(Proto::Tcp, to)?;
        match (attempt.answer, attempt.failure) {
            (Some(answer), _) => Ok(answer),
            (None, Some(failure)) => {
                Err(failure).with_context(|| format!("{} connects to {to}", self.0.name))
            }
            (None, None) => bail!("{} heard nothing from {to}", self.0.name),
        }
    }

    /// Connects once and returns all details. A failed connect is no error here.
    pub fn attempt(&self, proto: Proto, to: &str) -> Result<Attempt> {
        let to = parse(to)?;
        let timeout = TIMEOUT;
        match self.call(&Request::Attempt { proto, to, timeout })? {
            Reply::Attempt(attempt) => Ok(attempt),
            other => unexpected(&other),
        }
    }

    /// Connects once to each of these, `at_once` at a time; the results are in the order of the dials.
    pub fn attempt_all(
        &self,
        dials: &[(Proto, SocketAddr)],
        at_once: usize,
        timeout: Duration,
    ) -> Result<Vec<Attempt>> {
        let request = Request::AttemptAll {
            dials: dials.to_vec(),
            at_once,
            timeout,
        };
        match self.call(&request)? {
            Reply::Attempts(attempts) => Ok(attempts),
            other => unexpected(&other),
        }
    }

    /// Connects `count` times, one after the other, and counts the answers and the errors.
    pub fn connect_many(&self, proto: Proto, to: &str, count: u32) -> Result<Tally> {
        let request = Request::Connect {
            proto,
            to: parse(to)?,
            count,
            timeout: TIMEOUT,
        };
        match self.call(&request)? {
            Reply::Tally(tally) => Ok(tally),
            other => unexpected(&other),
        }
    }

    /// Sends one datagram to each address from one unconnected socket, waiting for each reply
    /// before the next, or with `overlapping` sending all before the first receive.
    pub fn datagrams(&self, to: &[&str], overlapping: bool) -> Result<Vec<DatagramReply>> {
        let request = Request::Datagrams {
            to: to.iter().map(|to| parse(to)).collect::<Result<_>>()?,
            overlapping,
            timeout: TIMEOUT,
        };
        match self.call(&request)? {
            Reply::Datagrams(replies) => Ok(replies),
            other => unexpected(&other),
        }
    }

    /// Opens an unconnected UDP socket, for the family of the address `like`, and keeps it.
    pub fn socket(&self, like: &str) -> Result<Socket> {
        let (like, timeout) = (parse(like)?, TIMEOUT);
        match self.call(&Request::OpenSocket { like, timeout })? {
            Reply::Started { handle } => Ok(Socket {
                pod: self.clone(),
                handle,
            }),
            other => unexpected(&other),
        }
    }

    /// Dials `count` times and counts the addresses that the sockets really lead to, whatever getpeername says. Nothing
    /// has to listen there.
    pub fn dial(&self, proto: Proto, to: &str, count: u32) -> Result<Tally> {
        let to = parse(to)?;
        match self.call(&Request::Dial { proto, to, count })? {
            Reply::Tally(tally) => Ok(tally),
            other => unexpected(&other),
        }
    }

    /// Connects a socket that is neither TCP nor UDP.
    pub fn dial_other(&self, kind: OtherSocket, to: &str) -> Result<Attempt> {
        let to = parse(to)?;
        match self.call(&Request::DialOther { kind, to })? {
            Reply::Attempt(attempt) => Ok(attempt),
            other => unexpected(&other),
        }
    }

    /// An unconnected UDP socket that stays open; `is_v6` for both families.
    pub fn udp_socket(&self, is_v6: bool) -> Result<UdpSocket> {
        let timeout = TIMEOUT;
        match self.call(&Request::OpenUdp { is_v6, timeout })? {
            Reply::Started { handle } => Ok(UdpSocket {
                pod: self.clone(),
                handle,
            }),
            other => unexpected(&other),
        }
    }

    /// Opens a connection and keeps it.
    pub fn hold(&self, proto: Proto, to: &str) -> Result<Connection> {
        let request = Request::Hold {
            proto,
            to: parse(to)?,
            timeout: TIMEOUT,
        };
        match self.call(&request)? {
            Reply::Held { handle, attempt } => {
                if let (None, Some(failure)) = (&attempt.answer, &attempt.failure) {
                    return Err(failure.clone())
                        .with_context(|| format!("{} connects to {to}", self.0.name));
                }
                Ok(Connection {
                    pod: self.clone(),
                    handle,
                    attempt,
                })
            }
            other => unexpected(&other),
        }
    }

    /// Connects repeatedly in the background, on `threads` threads with a pause in between.
    pub fn start_traffic(
        &self,
        proto: Proto,
        to: &str,
        threads: u32,
        pause: Duration,
    ) -> Result<Traffic> {
        let request = Request::StartTraffic {
            proto,
            to: parse(to)?,
            threads,
            pause,
            timeout: TIMEOUT,
        };
        match self.call(&request)? {
            Reply::Started { handle } => Ok(Traffic {
                pod: self.clone(),
                handle,
            }),
            other => unexpected(&other),
        }
    }

    /// Runs a program in the Pod to its end and returns what it printed.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(program)?;
        command.args(arguments);
        self.0.place.output(command, COMMAND_PATIENCE)
    }

    /// A command that runs in the Pod and dies with the thread that starts it.
    pub fn command(&self, program: &str) -> Result<Command> {
        self.0.place.command(Path::new(program))
    }

    /// Kills the Pod's process, as when its container is killed: its connections end, its ports refuse, its address
    /// stays.
    pub fn kill(&self) -> Result<()> {
        self.0.worker.kill()
    }

    /// Its name, which its servers answer.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The name of its node.
    pub fn node(&self) -> &str {
        &self.0.node
    }

    /// Its IPv4 address.
    pub fn ip4(&self) -> Ipv4Addr {
        self.0.ip4
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> Ipv6Addr {
        self.0.ip6
    }

    /// Its IPv4 address with a port, `address:port`.
    pub fn at4(&self, port: u16) -> String {
        SocketAddr::from((self.0.ip4, port)).to_string()
    }

    /// Its IPv6 address with a port, `[address]:port`.
    pub fn at6(&self, port: u16) -> String {
        SocketAddr::from((self.0.ip6, port)).to_string()
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.0.place.netns
    }

    /// Its cgroup, below its node's.
    pub fn cgroup(&self) -> &Path {
        &self.0.place.cgroup
    }

    fn call(&self, request: &Request) -> Result<Reply> {
        self.0
            .worker
            .call(request)
            .with_context(|| format!("Pod {} on {}", self.0.name, self.0.node))
    }
}

/// A connection that a Pod keeps open.
#[derive(Debug)]
#[must_use = "closed when dropped"]
pub struct Connection {
    pod: Pod,
    handle: u64,
    attempt: Attempt,
}

impl Connection {
    /// The result of opening it.
    pub fn opened(&self) -> &Attempt {
        &self.attempt
    }

    /// Sends a message and waits for it to come back.
    pub fn ping(&self) -> Result<Attempt> {
        let handle = self.handle;
        match self.pod.call(&Request::Ping { handle })? {
            Reply::Attempt(attempt) => Ok(attempt),
            other => unexpected(&other),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let handle = self.handle;
        // Without the worker there is no connection either.
        let _ = self.pod.call(&Request::Close { handle });
    }
}

/// An unconnected UDP socket that a Pod keeps open.
#[derive(Debug)]
#[must_use = "closed when dropped"]
pub struct Socket {
    pod: Pod,
    handle: u64,
}

impl Socket {
    /// Sends one datagram.
    pub fn send(&self, to: &str) -> Result<()> {
        let (handle, to) = (self.handle, parse(to)?);
        match self.pod.call(&Request::SendTo { handle, to })? {
            Reply::Sent(None) => Ok(()),
            Reply::Sent(Some(failure)) => Err(failure).with_context(|| format!("send to {to}")),
            other => unexpected(&other),
        }
    }

    /// Receives one answer: who gave it, and the address that it seems to come from.
    pub fn receive(&self) -> Result<(String, SocketAddr)> {
        let handle = self.handle;
        match self.pod.call(&Request::Receive { handle })? {
            Reply::Received { answer, from } => {
                Ok((answer?, from.context("an answer from nowhere")?))
            }
            other => unexpected(&other),
        }
    }

    /// Sends, and receives the answer.
    pub fn ask(&self, to: &str) -> Result<(String, SocketAddr)> {
        self.send(to)?;
        self.receive()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let handle = self.handle;
        // Without the worker there is no socket either.
        let _ = self.pod.call(&Request::Close { handle });
    }
}

/// A UDP socket of a Pod, open until the Pod ends.
#[derive(Debug)]
pub struct UdpSocket {
    pod: Pod,
    handle: u64,
}

impl UdpSocket {
    /// Does these things one after the other.
    pub fn run(&self, steps: &[UdpStep]) -> Result<Vec<UdpOutcome>> {
        let (handle, steps) = (self.handle, steps.to_vec());
        match self.pod.call(&Request::UseUdp { handle, steps })? {
            Reply::Udp(outcomes) => Ok(outcomes),
            other => unexpected(&other),
        }
    }

    /// Asks at one address `count` times.
    pub fn ask(&self, to: &str, count: usize) -> Result<Vec<UdpOutcome>> {
        self.run(&vec![UdpStep::Ask(parse(to)?); count])
    }
}

/// Background connects of a Pod. They go on until stopped or until the lab ends.
#[derive(Debug)]
#[must_use = "what it counted is told by `stop`"]
pub struct Traffic {
    pod: Pod,
    handle: u64,
}

impl Traffic {
    /// What it has seen so far.
    pub fn peek(&self) -> Result<Tally> {
        let handle = self.handle;
        self.tally(&Request::PeekTraffic { handle })
    }

    /// Ends it; every connect that had begun is counted.
    pub fn stop(self) -> Result<Tally> {
        let handle = self.handle;
        self.tally(&Request::StopTraffic { handle })
    }

    fn tally(&self, request: &Request) -> Result<Tally> {
        match self.pod.call(request)? {
            Reply::Tally(tally) => Ok(tally),
            other => unexpected(&other),
        }
    }
}

fn parse(to: &str) -> Result<SocketAddr> {
    to.parse()
        .with_context(|| format!("{to:?} is no address and port"))
}

fn unexpected<T>(reply: &Reply) -> Result<T> {
    bail!("the worker answered a different question: {reply:?}")
}
