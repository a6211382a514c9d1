//! `agent.sock`: how the other verbs ask the running agent. Root only; one line of JSON each way.
//!
//! It lies in the state directory. If that is absent, full or read-only, it lies in memory, beside the ledger of that
//! state directory: so agents may share a run directory, and nobody reaches another agent than the one that was meant.
//! An agent that can make it in neither place serves its node all the same, and so does one that finds another agent
//! there. It is made again when it, or its directory, is removed. A disk that does not answer counts as one that takes
//! no socket: threads of their own ask it.

use std::fs::{self, DirBuilder, File};
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net as blocking;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket as RawSocket, Type};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{interval, sleep};
use tracing::{debug, info, warn};

use crate::explain::verdict::Dial;
use crate::host::disk::errand::{Errand, PATIENCE as DISK_PATIENCE, SILENCE, once};
use crate::model::Protocol;

/// Most frontends in one request; none of them takes more than 64 bytes. For each request the agent walks its table.
pub const ASKED_AT_ONCE: usize = 1000;

const PATIENCE: Duration = Duration::from_secs(5);
const MAX_REQUEST_BYTES: u64 = 1 << 16;
/// How often the agent checks that the socket is where it was made, which costs one `stat`.
const LOOK: Duration = Duration::from_secs(5);

/// Where the socket may lie: the first place is the better one.
pub type Places = [PathBuf; 2];

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// How the agent is.
    Status,
    /// The verdict for a flow.
    Explain(Dial),
    /// The service port of each of these frontends; [`ASKED_AT_ONCE`] of them at most.
    Services(Vec<(SocketAddr, Protocol)>),
    /// What the frontends of a Service, `ns/name`, or of one of its ports, `ns/name:port`, should do.
    Expected(String),
    /// The addresses of such a Service or port, or what there is instead.
    Find(String),
}

/// A request on its way to the loop, and the way back.
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub reply: oneshot::Sender<serde_json::Value>,
}

/// The listening task; it ends, and its socket goes, when this is dropped.
pub struct Server {
    task: tokio::task::JoinHandle<()>,
    report: watch::Receiver<Report>,
}

/// Where the socket is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Report {
    bound: Option<Bound>,
    problem: Option<String>,
}

/// A socket in a directory, and which one, by device and inode number.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bound {
    path: PathBuf,
    file: (u64, u64),
}

impl Server {
    /// Why the socket is not in its first place.
    pub fn problem(&self) -> Option<String> {
        self.report.borrow().problem.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        let bound = self.report.borrow().bound.clone();
        let Some(bound) = bound else { return };
        // The disk may have stopped answering since the last look.
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            bound.remove();
            let _ = done.send(());
        });
        let _ = is_done.recv_timeout(DISK_PATIENCE);
    }
}

impl Bound {
    fn is_there(&self) -> bool {
        file(&self.path).is_ok_and(|file| file == self.file)
    }

    /// Removes it. A socket that is left behind is replaced by the next agent.
    fn remove(&self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn file(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Listens. The caller has claimed the node, so a socket that is there belongs to a dead agent, or to one of another
/// node.
pub async fn serve(places: Places, calls: mpsc::Sender<Call>) -> Server {
    let (reports, report) = watch::channel(Report::default());
    let mut socket = Socket {
        places: places.map(|path| (path, Errand::default())),
        listener: None,
        reports,
    };
    socket.look().await;
    let task = tokio::spawn(async move {
        // Kept across requests: a client that asks all the time must not keep the socket from being checked.
        let mut looks = interval(LOOK);
        loop {
            tokio::select! {
                accepted = socket.accept() => match accepted {
                    Ok(stream) => {
                        let calls = calls.clone();
                        tokio::spawn(async move {
                            match tokio::time::timeout(PATIENCE, converse(stream, calls)).await {
                                Ok(Ok(())) => {}
                                Ok(Err(error)) => debug!(%error, "a client of the socket left"),
                                Err(_) => debug!("a client of the socket was too slow"),
                            }
                        });
                    }
                    // Out of descriptors: others must close some first.
                    Err(_) => sleep(Duration::from_millis(100)).await,
                },
                _ = looks.tick() => socket.look().await,
            }
        }
    });
    Server { task, report }
}

struct Socket {
    places: [(PathBuf, Errand<io::Result<Place>>); 2],
    listener: Option<UnixListener>,
    reports: watch::Sender<Report>,
}

/// What was found, or made, at a place.
enum Place {
    /// The socket is there.
    Here,
    /// A new one.
    Made(blocking::UnixListener, Bound),
}

impl Socket {
    async fn accept(&self) -> io::Result<UnixStream> {
        match &self.listener {
            Some(listener) => Ok(listener.accept().await?.0),
            None => pending().await,
        }
    }

    /// Makes sure that there is a socket, in the best place that takes one.
    async fn look(&mut self) {
        let before = self.reports.borrow().clone();
        let mut failures = Vec::new();
        for (path, errand) in &mut self.places {
            let bound = before.bound.clone().filter(|bound| bound.path == *path);
            let at = path.clone();
            let found = errand.run(move || match bound {
                Some(bound) if bound.is_there() => Ok(Place::Here),
                _ => bind(&at).map(|(listener, bound)| Place::Made(listener, bound)),
            });
            let failure = match found.await {
                Some(Ok(Place::Here)) => {
                    let bound = before.bound.clone();
                    return self.settle(&before, bound, &failures);
                }
                Some(Ok(Place::Made(listener, bound))) => match UnixListener::from_std(listener) {
                    Ok(listener) => {
                        // Clients that have connected to the old one are answered by tasks of their own.
                        self.listener = Some(listener);
                        if let Some(old) = before.bound.clone().filter(|old| old.path != *path) {
                            let _ = once(move || old.remove()).await;
                        }
                        return self.settle(&before, Some(bound), &failures);
                    }
                    Err(error) => error.to_string(),
                },
                Some(Err(error)) => error.to_string(),
                None => SILENCE.to_owned(),
            };
            failures.push(format!("{}: {failure}", path.display()));
        }
        self.listener = None;
        self.settle(&before, None, &failures);
    }

    fn settle(&self, before: &Report, bound: Option<Bound>, failures: &[String]) {
        let why = failures.join("; ");
        let problem = match &bound {
            _ if failures.is_empty() => None,
            Some(bound) => Some(format!("is at {}: {why}", bound.path.display())),
            None => Some(format!(
                "cannot be made, so that `status` and `explain` find no agent: {why}"
            )),
        };
        let now = Report { bound, problem };
        match (&now.problem, &before.problem) {
            (Some(problem), before) if before.as_ref() != Some(problem) => {
                warn!(problem, "agent.sock is not where it should be");
            }
            (None, Some(_)) => info!("agent.sock is in the state directory again"),
            (None, None) if before.bound.is_some() && before.bound != now.bound => {
                warn!("agent.sock was removed; it is made again");
            }
            _ => {}
        }
        if now != *before {
            self.reports.send_replace(now);
        }
    }
}

/// Makes the socket, and its directory.
fn bind(path: &Path) -> io::Result<(blocking::UnixListener, Bound)> {
    let make = |dir: &Path| DirBuilder::new().recursive(true).mode(0o700).create(dir);
    path.parent().map_or(Ok(()), make)?;
    let (_dir, short) = short(path)?;
    if let Some(other) = who_listens(&short) {
        return Err(io::Error::other(format!(
            "{other} listens there: give each agent a --state-dir and a --run-dir of its own"
        )));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = blocking::UnixListener::bind(short)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let bound = Bound {
        path: path.to_owned(),
        file: file(path)?,
    };
    Ok((listener, bound))
}

/// A name that is not too long for the address of a socket, for as long as the directory is held.
fn short(path: &Path) -> io::Result<(File, PathBuf)> {
    let dir = File::open(path.parent().unwrap_or(Path::new(".")))?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string());
    Ok((dir, short.join(path.file_name().unwrap_or_default())))
}

/// The process that listens at a path, in words. Asking does not wait, however busy that process is.
fn who_listens(path: &Path) -> Option<String> {
    let socket = RawSocket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).ok()?;
    let another = "another agent".to_owned();
    match socket.connect(&SockAddr::unix(path).ok()?) {
        Ok(()) => {
            let stream = UnixStream::from_std(blocking::UnixStream::from(socket));
            let pid = stream.and_then(|stream| stream.peer_cred()).ok()?.pid();
            // A process of another pid namespace has no number here.
            Some(match pid.filter(|pid| *pid != 0) {
                Some(pid) => format!("{another} (pid {pid})"),
                None => another,
            })
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(another),
        Err(_) => None,
    }
}

async fn converse(stream: UnixStream, calls: mpsc::Sender<Call>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_REQUEST_BYTES))
        .read_line(&mut line)
        .await?;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => {
            let (reply, answer) = oneshot::channel();
            calls
                .send(Call { request, reply })
                .await
                .map_err(io::Error::other)?;
            answer.await.map_err(io::Error::other)?
        }
        Err(error) => error_reply(&format!("unknown request: {error}")),
    };
    write.write_all(format!("{answer}\n").as_bytes()).await
}

/// The form of a failure.
pub fn error_reply(error: &str) -> serde_json::Value {
    serde_json::json!({ "error": error })
}

/// Why the agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No process listens.
    #[error(
        "no agent answers at {} or {} (is `yurt-net run` up, with this --state-dir and --run-dir?)", places[0].display(), places[1].display()
    )]
    NoAgent {
        /// Where its socket may lie.
        places: Places,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The answer has another form than expected: that agent is of another version.
    #[error("understand the agent's answer (is it of another version?)")]
    Answer(#[source] serde_json::Error),
    /// The agent answered with an error.
    #[error("the agent answers: {reason}")]
    Refused {
        /// The agent's words.
        reason: String,
    },
}

/// Asks the agent whose socket lies in one of these places.
pub async fn ask(places: &Places, request: &Request) -> Result<serde_json::Value, ControlError> {
    let request = serde_json::to_string(request).map_err(ControlError::Answer)?;
    let answer = tokio::time::timeout(PATIENCE, exchange(places, &request)).await;
    let answer = answer.unwrap_or_else(|elapsed| Err(io::Error::from(elapsed)));
    let answer = answer.map_err(|source| ControlError::NoAgent {
        places: places.clone(),
        source,
    })?;
    let answer: serde_json::Value = serde_json::from_str(&answer).map_err(ControlError::Answer)?;
    match answer.get("error").and_then(serde_json::Value::as_str) {
        Some(reason) => Err(ControlError::Refused {
            reason: reason.to_owned(),
        }),
        None => Ok(answer),
    }
}

async fn exchange([first, second]: &Places, request: &str) -> io::Result<String> {
    let mut stream = match connect(first).await {
        Ok(stream) => stream,
        // The error of the first place says more than the absence of the second.
        Err(error) => connect(second).await.map_err(|_absent| error)?,
    };
    stream.write_all(format!("{request}\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn connect(path: &Path) -> io::Result<UnixStream> {
    let at = path.to_owned();
    let silent = || io::Error::new(io::ErrorKind::TimedOut, SILENCE);
    let stream = once(move || {
        let (_dir, short) = short(&at)?;
        blocking::UnixStream::connect(short)
    });
    let stream = stream.await;
    let stream = stream.ok_or_else(silent)??;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

#[cfg(test)]
mod tests;
