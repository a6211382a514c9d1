//! The requests of the lab to a Pod's worker process, and its replies: one JSON object a line, one reply for each
//! request, in order.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

/// Transport protocol of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Proto {
    /// A stream.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A kind of socket that no Service is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OtherSocket {
    /// ICMP echo requests; sends one and waits for its reply.
    Icmp,
    /// Raw IP with the protocol number of TCP.
    RawTcp,
    /// Raw IP with the protocol number of UDP.
    RawUdp,
}

/// What to do with a UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UdpStep {
    /// Send to this address and wait for the answer.
    Ask(SocketAddr),
    /// Send to this address and wait for nothing.
    SendTo(SocketAddr),
    /// Connect.
    Connect(SocketAddr),
    /// Send on the connected socket and wait for the answer.
    AskConnected,
    /// Wait for whatever comes.
    Receive,
    /// getpeername.
    Peer,
}

/// A request to a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Serve until the worker ends. TCP: the name on accept, then every line back. UDP: the
    /// name, a space, and the payload.
    Serve {
        /// Protocol.
        proto: Proto,
        /// Address to bind, both families when absent.
        addr: Option<IpAddr>,
        /// Port to bind.
        port: u16,
        /// What to answer; `{client}` in it stands for the address and port that ask.
        name: String,
    },
    /// Connect `count` times, one after the other, and read an answer each time.
    Connect {
        /// Protocol.
        proto: Proto,
        /// Where to; an IPv4-mapped IPv6 address makes an IPv6 socket.
        to: SocketAddr,
        /// How many times.
        count: u32,
        /// Patience for each call.
        timeout: Duration,
    },
    /// Connect once and return all details.
    Attempt {
        /// Protocol.
        proto: Proto,
        /// Where to.
        to: SocketAddr,
        /// Patience for each call.
        timeout: Duration,
    },
    /// Connect once to each of these, several at a time, and return all details.
    AttemptAll {
        /// Where to.
        dials: Vec<(Proto, SocketAddr)>,
        /// How many at a time.
        at_once: usize,
        /// Patience for each; a datagram is sent again, by another socket, as often as a SYN or more.
        timeout: Duration,
    },
    /// From one unconnected UDP socket, send to each address in turn.
    Datagrams {
        /// Destinations, in order.
        to: Vec<SocketAddr>,
        /// Send all before the first receive, instead of one question at a time.
        overlapping: bool,
        /// Patience for each reply.
        timeout: Duration,
    },
    /// Open an unconnected UDP socket and keep it.
    OpenSocket {
        /// An address of the family that it is for.
        like: SocketAddr,
        /// Patience for each reply.
        timeout: Duration,
    },
    /// Send a datagram from a kept socket.
    SendTo {
        /// From [`Reply::Started`].
        handle: u64,
        /// Where to.
        to: SocketAddr,
    },
    /// Receive on a kept socket.
    Receive {
        /// From [`Reply::Started`].
        handle: u64,
    },
    /// Dial `count` times without waiting for the other end, and ask the kernel, not getpeername, where each socket
    /// then leads.
    Dial {
        /// Protocol.
        proto: Proto,
        /// Where to.
        to: SocketAddr,
        /// How many times.
        count: u32,
    },
    /// Connect a socket that is neither TCP nor UDP, and tell what getpeername says.
    DialOther {
        /// What kind of socket.
        kind: OtherSocket,
        /// Where to.
        to: SocketAddr,
    },
    /// Open an unconnected UDP socket and keep it.
    OpenUdp {
        /// For both families, as most programs have it today.
        is_v6: bool,
        /// Patience for each call.
        timeout: Duration,
    },
    /// Do these things with a kept socket.
    UseUdp {
        /// From [`Reply::Started`].
        handle: u64,
        /// The things, one after the other, also after failures.
        steps: Vec<UdpStep>,
    },
    /// Open a connection and keep it.
    Hold {
        /// Protocol.
        proto: Proto,
        /// Where to.
        to: SocketAddr,
        /// Patience for each call.
        timeout: Duration,
    },
    /// Exchange one message on a kept connection.
    Ping {
        /// From [`Reply::Held`].
        handle: u64,
    },
    /// Close a kept connection.
    Close {
        /// From [`Reply::Held`].
        handle: u64,
    },
    /// Connect again and again in the background.
    StartTraffic {
        /// Protocol.
        proto: Proto,
        /// Where to.
        to: SocketAddr,
        /// Threads that do so.
        threads: u32,
        /// Pause between two connects of a thread.
        pause: Duration,
        /// Patience for each call.
        timeout: Duration,
    },
    /// Return what background traffic has seen so far.
    PeekTraffic {
        /// From [`Reply::Started`].
        handle: u64,
    },
    /// End background traffic.
    StopTraffic {
        /// From [`Reply::Started`].
        handle: u64,
    },
}

impl Request {
    /// The longest time that a worker takes for this. A batch of connects that does not fit into it counts the rest as
    /// `NOT_TRIED`.
    pub fn budget(&self) -> Duration {
        let calls = match self {
            Self::Serve { .. } | Self::Close { .. } | Self::PeekTraffic { .. } => 0,
            Self::Connect { .. } | Self::AttemptAll { .. } | Self::UseUdp { .. } => {
                return Duration::from_secs(300);
            }
            Self::Datagrams { to, .. } => u32::try_from(to.len()).unwrap_or(u32::MAX),
            _ => 3,
        };
        match self {
            Self::Attempt { timeout, .. }
            | Self::Hold { timeout, .. }
            | Self::Datagrams { timeout, .. } => timeout.saturating_mul(calls),
            _ => Duration::from_secs(30),
        }
    }
}

/// A call on a socket that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// `connect`, `send` or `recv`.
    pub call: String,
    /// The error's name, such as `ECONNREFUSED`.
    pub errno: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.errno)
    }
}

impl std::error::Error for Failure {}

/// One connect, with all details.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Who answered.
    pub answer: Option<String>,
    /// What getpeername says after the answer.
    pub peer: Option<SocketAddr>,
    /// The call that failed.
    pub failure: Option<Failure>,
    /// From the first call to the answer or the failure.
    pub took: Duration,
}

impl Attempt {
    /// The name of the error, if there was one.
    pub fn errno(&self) -> Option<&str> {
        self.failure.as_ref().map(|f| f.errno.as_str())
    }

    /// Who answered, if somebody did.
    pub fn answer(&self) -> Option<&str> {
        self.answer.as_deref()
    }
}

/// Many connects, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Connects by who answered.
    pub answers: BTreeMap<String, u64>,
    /// Failures by the name of the error.
    pub errors: BTreeMap<String, u64>,
    /// Failures by the call that failed.
    pub failed_calls: BTreeMap<String, u64>,
    /// The slowest connect, answer included.
    pub slowest: Duration,
}

impl Tally {
    /// Counts one attempt.
    pub fn add(&mut self, attempt: Attempt) {
        self.slowest = self.slowest.max(attempt.took);
        if let Some(answer) = attempt.answer {
            *self.answers.entry(answer).or_default() += 1;
        } else if let Some(failure) = attempt.failure {
            *self.errors.entry(failure.errno).or_default() += 1;
            *self.failed_calls.entry(failure.call).or_default() += 1;
        }
    }

    /// Adds the counts of another.
    pub fn merge(&mut self, other: Self) {
        self.slowest = self.slowest.max(other.slowest);
        for (mine, theirs) in [
            (&mut self.answers, other.answers),
            (&mut self.errors, other.errors),
            (&mut self.failed_calls, other.failed_calls),
        ] {
            for (name, count) in theirs {
                *mine.entry(name).or_default() += count;
            }
        }
    }

    /// Connects that were answered.
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    /// Connects that failed, in whatever way.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// All connects.
    pub fn connects(&self) -> u64 {
        self.answered() + self.failed()
    }

    /// Failures of this name.
    pub fn error(&self, errno: &str) -> u64 {
        self.errors.get(errno).copied().unwrap_or_default()
    }
}

/// The result of a step with a UDP socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpOutcome {
    /// Who answered.
    pub answer: Option<String>,
    /// The source that recvmsg showed, or what getpeername said.
    pub shown: Option<SocketAddr>,
    /// The call that failed.
    pub failure: Option<Failure>,
}

/// The result of one datagram.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatagramReply {
    /// Where it was sent.
    pub to: SocketAddr,
    /// Who answered.
    pub answer: Option<String>,
    /// The source address that recvmsg showed with the answer.
    pub from: Option<SocketAddr>,
    /// The call that failed.
    pub failure: Option<Failure>,
}

/// A worker's reply.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing to report.
    Done,
    /// To `Connect`, `PeekTraffic` and `StopTraffic`; to `Dial`, where the answers are addresses.
    Tally(Tally),
    /// To `Attempt`, `Ping` and `DialOther`.
    Attempt(Attempt),
    /// To `AttemptAll`, in the order of the dials.
    Attempts(Vec<Attempt>),
    /// To `Datagrams`, in the order of the destinations.
    Datagrams(Vec<DatagramReply>),
    /// To `Hold`.
    Held {
        /// For `Ping` and `Close`; 0 where the attempt failed.
        handle: u64,
        /// The result of opening the connection.
        attempt: Attempt,
    },
    /// To `UseUdp`, in the order of the steps.
    Udp(Vec<UdpOutcome>),
    /// To `StartTraffic`, `OpenSocket` and `OpenUdp`.
    Started {
        /// The number by which later requests name it.
        handle: u64,
    },
    /// To `SendTo`.
    Sent(Option<Failure>),
    /// To `Receive`.
    Received {
        /// Who answered, or the call that failed.
        answer: Result<String, Failure>,
        /// The source address that recvmsg showed.
        from: Option<SocketAddr>,
    },
    /// The request made no sense, or the machine refused it.
    Error(String),
}
