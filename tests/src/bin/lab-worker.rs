//! The process inside a Pod of the lab. Membership in a cgroup belongs to a process, so every socket in a Pod is opened
//! by such a process, which gets its orders as lines of JSON on stdin.
//!
//! `lab-worker reap CGROUP DIR` waits for the lab's process to end, for whatever reason, and removes what the kernel
//! would leave.

use std::collections::BTreeMap;
use std::io;
use std::io::BufRead;
use std::io::Read;
use std::io::Write;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use yurt_net_tests::lab::Remains;
use yurt_net_tests::lab::probe;
use yurt_net_tests::lab::protocol::Reply;
use yurt_net_tests::lab::protocol::Request;
use yurt_net_tests::lab::protocol::Tally;
use yurt_net_tests::lab::sockets;
use yurt_net_tests::lab::sockets::Connection;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => serve(),
        [verb, cgroup, dir] if verb == "reap" => {
            io::stdin().read_to_end(&mut Vec::new())?;
            Remains::new(PathBuf::from(cgroup), PathBuf::from(dir))?.remove()
        }
        _ => bail!("started by the lab, with no arguments or with: reap CGROUP DIR"),
    }
}

fn serve() -> Result<()> {
    let mut worker = Worker::default();
    let mut stdout = io::stdout();
    for line in io::stdin().lock().lines() {
        let reply = match serde_json::from_str(&line?).context("parse the request") {
            Ok(request) => worker.handle(request),
            Err(e) => Err(e),
        };
        let reply = reply.unwrap_or_else(|e| Reply::Error(format!("{e:#}")));
        let mut line = serde_json::to_vec(&reply)?;
        line.push(b'\n');
        stdout.write_all(&line)?;
        stdout.flush()?;
    }
    Ok(())
}

#[derive(Default)]
struct Worker {
    last_handle: u64,
    connections: BTreeMap<u64, Connection>,
    sockets: BTreeMap<u64, UdpSocket>,
    traffic: BTreeMap<u64, Traffic>,
    udp_sockets: BTreeMap<u64, probe::UdpSocket>,
}

struct Traffic {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<()>>,
}

impl Worker {
    fn handle(&mut self, request: Request) -> Result<Reply> {
        let budget = request.budget();
        Ok(match request {
            Request::Serve {
                proto,
                addr,
                port,
                name,
            } => {
                sockets::serve(proto, addr, port, &name)
                    .with_context(|| format!("serve {proto:?} port {port}"))?;
                Reply::Done
            }
            Request::Connect {
                proto,
                to,
                count,
                timeout,
            } => {
                let deadline = Instant::now() + budget;
                let mut tally = Tally::default();
                for done in 0..count {
                    if Instant::now() + timeout * 2 > deadline {
                        let left = u64::from(count - done);
                        tally.errors.insert("NOT_TRIED".to_owned(), left);
                        break;
                    }
                    tally.add(sockets::attempt(proto, to, timeout));
                }
                Reply::Tally(tally)
            }
            Request::Attempt { proto, to, timeout } => {
                Reply::Attempt(sockets::attempt(proto, to, timeout))
            }
            Request::AttemptAll {
                dials,
                at_once,
                timeout,
            } => Reply::Attempts(sockets::attempt_all(&dials, at_once, timeout)),
            Request::Datagrams {
                to,
                overlapping,
                timeout,
            } => Reply::Datagrams(sockets::datagrams(&to, overlapping, timeout)?),
            Request::OpenSocket { like, timeout } => {
                let handle = self.next_handle();
                let socket = sockets::open_socket(like, timeout)?;
                self.sockets.insert(handle, socket);
                Reply::Started { handle }
            }
            Request::SendTo { handle, to } => {
                let socket = self.sockets.get(&handle).context("no such socket")?;
                Reply::Sent(sockets::send_to(socket, to))
            }
            Request::Receive { handle } => {
                let socket = self.sockets.get(&handle).context("no such socket")?;
                let received = sockets::receive_from(socket);
                let from = received.as_ref().ok().map(|(_, from)| *from);
                let answer = received.map(|(answer, _)| answer);
                Reply::Received { answer, from }
            }
            Request::Dial { proto, to, count } => {
                let mut tally = Tally::default();
                for _ in 0..count {
                    tally.add(probe::dial(proto, to));
                }
                Reply::Tally(tally)
            }
            Request::DialOther { kind, to } => Reply::Attempt(probe::dial_other(kind, to)),
            Request::OpenUdp { is_v6, timeout } => {
                let handle = self.next_handle();
                let socket = probe::UdpSocket::open(is_v6, timeout)?;
                self.udp_sockets.insert(handle, socket);
                Reply::Started { handle }
            }
            Request::UseUdp { handle, steps } => {
                let socket = self.udp_sockets.get_mut(&handle);
                let socket = socket.context("no such socket")?;
                Reply::Udp(steps.iter().map(|step| socket.step(*step)).collect())
            }
            Request::Hold { proto, to, timeout } => {
                let start = Instant::now();
                let result = Connection::open(proto, to, timeout);
                let attempt = sockets::describe(result.as_ref(), start);
                let mut handle = 0;
                if let Ok(connection) = result {
                    handle = self.next_handle();
                    self.connections.insert(handle, connection);
                }
                Reply::Held { handle, attempt }
            }
            Request::Ping { handle } => {
                let connection = self.connections.get_mut(&handle);
                Reply::Attempt(sockets::ping(connection.context("no such connection")?))
            }
            Request::Close { handle } => {
                self.connections.remove(&handle);
                self.sockets.remove(&handle);
                Reply::Done
            }
            Request::StartTraffic {
                proto,
                to,
                threads,
                pause,
                timeout,
            } => {
                let stop = Arc::new(AtomicBool::new(false));
                let tally = Arc::new(Mutex::new(Tally::default()));
                let threads = (0..threads)
                    .map(|_| {
                        let (stop, tally) = (Arc::clone(&stop), Arc::clone(&tally));
                        thread::spawn(move || {
                            while !stop.load(Ordering::Relaxed) {
                                let attempt = sockets::attempt(proto, to, timeout);
                                lock(&tally).add(attempt);
                                thread::sleep(pause);
                            }
                        })
                    })
                    .collect();
                let handle = self.next_handle();
                let traffic = Traffic {
                    stop,
                    tally,
                    threads,
                };
                self.traffic.insert(handle, traffic);
                Reply::Started { handle }
            }
            Request::PeekTraffic { handle } => {
                let traffic = self.traffic.get(&handle).context("no such traffic")?;
                Reply::Tally(lock(&traffic.tally).clone())
            }
            Request::StopTraffic { handle } => {
                let traffic = self.traffic.remove(&handle).context("no such traffic")?;
                traffic.stop.store(true, Ordering::Relaxed);
                for thread in traffic.threads {
                    let _ = thread.join();
                }
                Reply::Tally(lock(&traffic.tally).clone())
            }
        })
    }

    fn next_handle(&mut self) -> u64 {
        self.last_handle += 1;
        self.last_handle
    }
}

fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
