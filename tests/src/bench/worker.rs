//! The process in a universe: one thread that owns both ends of every connection.
//!
//! A socket belongs to the cgroup of the process that makes it and to the network namespace that its thread is in at
//! that moment. So this process is in the client's cgroup, makes the server's sockets in the server's namespace, and
//! the client's in the client's. On a veth the kernel runs a whole handshake inside `connect`, on this CPU: no thread
//! is woken, nothing is scheduled, and measurements repeat within a few per cent.

use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::Write;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use serde::Deserialize;
use serde::Serialize;

use super::flips;
use super::kube;
use super::kube::Cluster;
use super::sockets::Address;
use super::sockets::Socket;

const QUESTION: &[u8] = b"question";

/// The task of a worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Task {
    /// Runs batches, as ordered on stdin.
    Batches(Ends),
    /// Connects until it is stopped, and checks which backend answers.
    Flips {
        /// Both ends; one address to dial.
        ends: Ends,
        /// The file with the present epoch.
        epochs: PathBuf,
    },
    /// Is an apiserver, and changes its cluster as ordered on stdin.
    Apiserver(Cluster),
}

/// Both ends of every connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ends {
    /// The network namespace of the server.
    pub server_netns: PathBuf,
    /// Where the server listens, TCP and UDP.
    pub server_port: u16,
    /// Addresses of the server.
    pub direct: Vec<SocketAddrV4>,
    /// What the client dials by TCP, in turns.
    pub dial: Vec<SocketAddrV4>,
    /// What it dials by UDP.
    pub dial_udp: SocketAddrV4,
    /// The CPU to stay on.
    pub cpu: usize,
}

/// The operation that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// `connect` of a new TCP socket.
    Connect,
    /// A question and its answer between unconnected UDP sockets: two sends, two receives.
    Udp,
    /// A question and its answer in one TCP connection: two sends, two receives.
    Exchange,
    /// `getpeername` of a connected TCP socket.
    Peer,
    /// `connect` of one UDP socket to an address of no Service.
    Reconnect,
}

/// A batch.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// The operation.
    pub op: Op,
    /// Samples that do not count, at the beginning.
    pub warm_ups: u32,
    /// Samples that count.
    pub samples: u32,
    /// Operations in a sample: more than one if reading the clock would cost more than the operation.
    pub repeats: u32,
}

/// The main function of the process: `bench worker TASK`.
pub fn run(task: &str) -> Result<()> {
    match serde_json::from_str(task).context("parse the task")? {
        Task::Batches(ends) => answer_batches(&ends),
        Task::Flips { ends, epochs } => {
            let tally = flips::dial_until_told(&ends, &epochs)?;
            writeln!(io::stdout(), "{}", serde_json::to_string(&tally)?)?;
            Ok(())
        }
        Task::Apiserver(cluster) => kube::serve(&cluster),
    }
}

/// Nanoseconds of an operation, sample by sample, one line for each line on stdin.
fn answer_batches(ends: &Ends) -> Result<()> {
    let stage = Stage::new(ends)?;
    let mut stdout = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let batch: Batch = serde_json::from_str(&line?).context("parse a batch")?;
        let mut samples = stage
            .run(batch)
            .with_context(|| format!("{:?}", batch.op))?;
        samples.drain(..batch.warm_ups as usize);
        writeln!(stdout, "{}", serde_json::to_string(&samples)?)?;
    }
    Ok(())
}

/// The sockets that stay open.
pub(super) struct Stage {
    listener: Socket,
    udp_server: Socket,
    udp_client: Socket,
    direct: Vec<Address>,
    dial: Vec<Address>,
    dial_udp: Address,
}

impl Stage {
    pub(super) fn new(ends: &Ends) -> Result<Self> {
        stay_on(ends.cpu).context("stay on one CPU")?;
        let home = File::open("/proc/thread-self/ns/net")?;
        let server = File::open(&ends.server_netns).context("open the server's namespace")?;
        enter(&server)?;
        let listener = Socket::listening(ends.server_port).context("listen")?;
        let udp_server = Socket::udp()?;
        udp_server.bind(ends.server_port)?;
        enter(&home)?;
        let raw = |at: &Vec<SocketAddrV4>| at.iter().copied().map(Address::from).collect();
        Ok(Self {
            listener,
            udp_server,
            udp_client: Socket::udp()?,
            direct: raw(&ends.direct),
            dial: raw(&ends.dial),
            dial_udp: ends.dial_udp.into(),
        })
    }

    fn run(&self, batch: Batch) -> Result<Vec<f64>> {
        let count = (batch.warm_ups + batch.samples) as usize;
        match batch.op {
            Op::Connect => {
                let dial = self.dial.iter().cycle().take(count);
                dial.map(|to| self.connect(to)).collect()
            }
            Op::Udp => (0..count).map(|_| self.ask(&self.dial_udp)).collect(),
            Op::Exchange => self.exchange(count),
            Op::Peer => self.look_at_peer(count, batch.repeats),
            Op::Reconnect => self.reconnect(count, batch.repeats),
        }
    }

    fn connect(&self, to: &Address) -> Result<f64> {
        let client = Socket::tcp()?;
        let start = Instant::now();
        let connected = client.connect(to);
        let took = start.elapsed();
        connected?;
        self.listener.accept()?;
        Ok(nanoseconds(took))
    }

    fn ask(&self, to: &Address) -> Result<f64> {
        let mut buffer = [0; 64];
        let start = Instant::now();
        self.udp_client.send_to(QUESTION, to)?;
        let (length, client) = self.udp_server.receive(&mut buffer)?;
        self.udp_server.send_to(&buffer[..length], &client)?;
        let (_, from) = self.udp_client.receive(&mut buffer)?;
        let took = start.elapsed();
        let (from, to) = (SocketAddrV4::from(from), SocketAddrV4::from(*to));
        ensure!(from == to, "asked {to}, answered by {from}");
        Ok(nanoseconds(took))
    }

    fn exchange(&self, count: usize) -> Result<Vec<f64>> {
        let client = Socket::tcp()?;
        let to = self.dial.first().context("nothing to dial")?;
        client.connect(to)?;
        let (server, _) = self.listener.accept()?;
        let mut buffer = [0; 64];
        let mut samples = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            // The backend of a connection is not asked for again.
            for (from, at) in [(&client, &server), (&server, &client)] {
                from.send_to(QUESTION, to)?;
                let (length, _) = at.receive(&mut buffer)?;
                ensure!(length == QUESTION.len(), "{length} bytes at once");
            }
            samples.push(nanoseconds(start.elapsed()));
        }
        Ok(samples)
    }

    fn look_at_peer(&self, count: usize, repeats: u32) -> Result<Vec<f64>> {
        let client = Socket::tcp()?;
        let to = self.dial.first().context("nothing to dial")?;
        client.connect(to)?;
        let _server = self.listener.accept()?;
        let (to, shown) = (SocketAddrV4::from(*to), client.peer()?);
        ensure!(shown == to, "dialled {to}, shown {shown}");
        samples(count, repeats, || client.peer().map(drop))
    }

    fn reconnect(&self, count: usize, repeats: u32) -> Result<Vec<f64>> {
        let socket = Socket::udp()?;
        let to = self.direct.first().context("nothing to connect to")?;
        samples(count, repeats, || socket.connect(to))
    }

    /// Connects to the first address; returns the backend that answers, as the server's end sees it.
    pub(super) fn dial(&self) -> Result<io::Result<SocketAddrV4>> {
        let client = Socket::tcp()?;
        let to = self.dial.first().context("nothing to dial")?;
        if let Err(error) = client.connect(to) {
            return Ok(Err(error));
        }
        let (server, from) = self.listener.accept().context("accept")?;
        if from != client.name()? {
            bail!("accepted the connection of {from}");
        }
        Ok(Ok(server.name()?))
    }
}

/// Nanoseconds of one operation, as the mean of `repeats`.
fn samples(
    count: usize,
    repeats: u32,
    mut operation: impl FnMut() -> io::Result<()>,
) -> Result<Vec<f64>> {
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        for _ in 0..repeats {
            operation()?;
        }
        samples.push(nanoseconds(start.elapsed()) / f64::from(repeats));
    }
    Ok(samples)
}

fn nanoseconds(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

fn enter(netns: &File) -> Result<()> {
    // SAFETY: no pointers; a bad descriptor is an error.
    if unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error()).context("enter a network namespace");
    }
    Ok(())
}

fn stay_on(cpu: usize) -> io::Result<()> {
    // SAFETY: plain data, for which zero is valid; `CPU_SET` ignores what is beyond its end.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        set
    };
    // SAFETY: a valid set of this size; 0 is the calling thread.
    if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
