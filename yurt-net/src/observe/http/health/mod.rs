//! The health ports of kube-proxy: `/healthz` and `/livez` of the node, and the `healthCheckNodePort` of each Service
//! that has one.
//!
//! One task holds all listening sockets and answers from what the agent's loop last told it. A port that another
//! process holds is tried again; a port that is no longer wanted is closed.

mod answers;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use jiff::Timestamp;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until};
use tracing::{info, warn};

use self::answers::Answer;
pub use self::answers::NodeHealth;
use super::conversations::{Conversations, PLAIN, response};

/// Connections at a time, over all ports.
const CONNECTIONS: usize = 64;
/// Connections that wait to be accepted, for each port.
const BACKLOG: i32 = 64;
/// How often the task tries a port that is taken, as kube-proxy does.
const RETRY: Duration = Duration::from_secs(5);

/// Whose health is asked at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// `/healthz` and `/livez` of the node.
    Node,
    /// The health check of the Service that has this port.
    Service(u16),
}

/// Answers since the start, by status code.
#[derive(Debug, Default)]
pub struct Answers {
    /// 200.
    pub ok: AtomicU64,
    /// 503.
    pub unavailable: AtomicU64,
}

impl Answers {
    fn count(&self, status: StatusCode) {
        let of = match status {
            StatusCode::OK => &self.ok,
            _ => &self.unavailable,
        };
        of.fetch_add(1, Ordering::Relaxed);
    }
}

/// Answers of the node's health port since the start.
#[derive(Debug, Default)]
pub struct Asked {
    /// Of `/healthz`.
    pub healthz: Answers,
    /// Of `/livez`.
    pub livez: Answers,
}

/// Which ports are listened on, and which are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listening {
    /// Ports of Services that are listened on.
    pub ports: usize,
    /// Why a wanted port is not listened on; the node's own port may be among them.
    pub problems: BTreeMap<u16, String>,
}

/// The task that answers; it ends when this is dropped.
pub struct HealthServer {
    task: JoinHandle<()>,
    word: watch::Sender<Arc<NodeHealth>>,
    listening: watch::Receiver<Listening>,
    asked: Arc<Asked>,
}

impl Drop for HealthServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HealthServer {
    /// Serves the node's health at this address, and that of Services on all addresses as soon as there are any.
    pub fn start(node: Option<SocketAddr>) -> Self {
        let (word, words) = watch::channel(Arc::default());
        let (tell, listening) = watch::channel(Listening::default());
        let asked = Arc::new(Asked::default());
        let ports = Ports {
            node,
            open: BTreeMap::new(),
            words,
            tell,
            asked: Arc::clone(&asked),
        };
        Self {
            task: tokio::spawn(ports.serve(RETRY)),
            word,
            listening,
            asked,
        }
    }

    /// Takes the node's state from now on.
    pub fn tell(&self, health: NodeHealth) {
        self.word.send_replace(Arc::new(health));
    }

    /// Which ports are listened on, and which are not.
    pub fn listening(&self) -> Listening {
        self.listening.borrow().clone()
    }

    /// The counts of the answers.
    pub fn asked(&self) -> &Asked {
        &self.asked
    }
}

struct Ports {
    node: Option<SocketAddr>,
    open: BTreeMap<Place, TcpListener>,
    words: watch::Receiver<Arc<NodeHealth>>,
    tell: watch::Sender<Listening>,
    asked: Arc<Asked>,
}

impl Ports {
    async fn serve(mut self, retry: Duration) {
        let mut conversations = Conversations::new(CONNECTIONS);
        let mut last = Place::Node;
        let mut retry_at = self.listen().then(|| tokio::time::Instant::now() + retry);
        loop {
            let again = async {
                match retry_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let accepted = tokio::select! {
                // A request that comes just after a new state is answered with the new state.
                biased;
                changed = self.words.changed() => match changed {
                    Ok(()) => None,
                    // The agent is gone: nobody would tell a new state.
                    Err(_) => return,
                },
                () = again => None,
                accepted = accept(&self.open, &mut last) => Some(accepted),
            };
            match accepted {
                None => {
                    retry_at = self.listen().then(|| tokio::time::Instant::now() + retry);
                }
                Some((place, Ok(stream))) => self.answer(&mut conversations, place, stream).await,
                // Out of file descriptors: others must close some first.
                Some((_, Err(_))) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Opens and closes sockets as wanted; true if a wanted one is not open and has to be tried again.
    fn listen(&mut self) -> bool {
        let word = Arc::clone(&self.words.borrow_and_update());
        let services = word.checks.iter().map(|check| {
            let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), check.port);
            (Place::Service(check.port), address)
        });
        let node = self.node.map(|address| (Place::Node, address));
        let wanted: BTreeMap<Place, SocketAddr> = node.into_iter().chain(services).collect();
        self.open.retain(|place, _| wanted.contains_key(place));
        let before = self.tell.borrow().problems.clone();
        let mut listening = Listening::default();
        for (place, address) in wanted {
            if self.open.contains_key(&place) {
                continue;
            }
            let port = address.port();
            match bind(address) {
                Ok(listener) => {
                    self.open.insert(place, listener);
                    if before.contains_key(&port) || place == Place::Node {
                        info!(port, "health: listening");
                    }
                }
                Err(error) => {
                    let error = error.to_string();
                    if before.get(&port) != Some(&error) {
                        warn!(port, error, "health: cannot listen; trying again");
                    }
                    listening.problems.insert(port, error);
                }
            }
        }
        let services = self.open.keys().filter(|place| **place != Place::Node);
        listening.ports = services.count();
        let is_missing = !listening.problems.is_empty();
        self.tell.send_replace(listening);
        is_missing
    }

    async fn answer(&self, conversations: &mut Conversations, place: Place, stream: TcpStream) {
        let (words, asked) = (self.words.clone(), Arc::clone(&self.asked));
        let answer = move |request: Request<Incoming>| {
            let word = Arc::clone(&words.borrow());
            std::future::ready(respond(&word, place, request.uri().path(), &asked))
        };
        conversations.begin(stream, answer).await;
    }
}

fn respond(word: &NodeHealth, place: Place, path: &str, asked: &Asked) -> Response<Full<Bytes>> {
    let now = Timestamp::now();
    let Answer {
        status,
        body,
        weight,
    } = match (place, path) {
        (Place::Service(port), _) => word.check(port, now),
        (Place::Node, "/healthz") => {
            let answer = word.healthz(now);
            asked.healthz.count(answer.status);
            answer
        }
        (Place::Node, "/livez") => {
            let answer = word.livez(now);
            asked.livez.count(answer.status);
            answer
        }
        (Place::Node, _) => {
            return response(StatusCode::NOT_FOUND, PLAIN, "404 page not found\n");
        }
    };
    let mut response = response(status, "application/json", body);
    if let Some(weight) = weight {
        let weight = HeaderValue::from(weight);
        let headers = response.headers_mut();
        headers.insert("x-load-balancing-endpoint-weight", weight);
    }
    response
}

/// A listening socket. The unspecified address of IPv4 stands for all addresses of both families, as in Go.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED) {
        let both = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port());
        match bind_to(both) {
            // A kernel without IPv6.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            bound => return bound,
        }
    }
    bind_to(address)
}

fn bind_to(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Connections of an earlier agent that are still closing do not keep this one from the port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The next connection of any port. `last`: the port of the last connection, so that no port is kept waiting by
/// another.
async fn accept(
    open: &BTreeMap<Place, TcpListener>,
    last: &mut Place,
) -> (Place, io::Result<TcpStream>) {
    poll_fn(|context| {
        let after = open.range((Bound::Excluded(*last), Bound::Unbounded));
        for (place, listener) in after.chain(open.range(..=*last)) {
            if let Poll::Ready(accepted) = listener.poll_accept(context) {
                *last = *place;
                return Poll::Ready((*place, accepted.map(|(stream, _)| stream)));
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests;
