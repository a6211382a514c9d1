//! The metrics server: `GET /metrics` and `GET /healthz`, for Prometheus and for people.
//!
//! Anybody may reach the port, so a request costs the agent little, and the agent waits for no client: a few
//! connections at a time, each with a small buffer and some seconds. A connection that has not asked for anything gives
//! way to a new one, so that nobody blinds the alerts by connecting. The agent's loop makes the text when it is asked.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet, yield_now};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::metrics;

/// Connections at a time; others wait while all of these are being answered.
const CONNECTIONS: usize = 8;
/// A connection, from its beginning to its end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of all headers of a request together; the least that hyper takes.
const BUFFER_BYTES: usize = 8192;
/// How often the agent tries a port that is taken, as kube-proxy does.
const RETRY: Duration = Duration::from_secs(5);

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The metrics: their text, or why there is none.
    Metrics,
    /// Whether Services are served: what is degraded, or why they are not.
    Health,
}

/// A request on its way to the loop, and the way back: what fails is a 503.
pub struct Scrape {
    /// What is asked.
    pub question: Question,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<String, String>>,
}

/// The listening task; it ends when this is dropped.
pub struct Server(tokio::task::JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Serves at this address, as soon as that is free: an agent serves its node with or without metrics.
pub fn serve(address: SocketAddr, scrapes: mpsc::Sender<Scrape>) -> Server {
    Server(tokio::spawn(async move {
        let listener = listen(address, RETRY).await;
        accept(listener, scrapes).await;
    }))
}

async fn listen(address: SocketAddr, retry: Duration) -> TcpListener {
    let mut is_first = true;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                info!(%address, "metrics: listening");
                return listener;
            }
            Err(error) if is_first => {
                warn!(%address, %error, "metrics: cannot listen; trying again (does kube-proxy run?)");
                is_first = false;
            }
            Err(_) => {}
        }
        sleep(retry).await;
    }
}

async fn accept(listener: TcpListener, scrapes: mpsc::Sender<Scrape>) {
    let mut conversations = Conversations::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => conversations.begin(stream, scrapes.clone()).await,
            // Out of descriptors: others must close some first.
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
        // A client that has sent its request with its connection is heard before the next one takes its place.
        yield_now().await;
    }
}

/// Those that are connected, the oldest first.
#[derive(Default)]
struct Conversations {
    tasks: JoinSet<()>,
    open: VecDeque<(AbortHandle, Arc<AtomicBool>)>,
}

impl Conversations {
    async fn begin(&mut self, stream: TcpStream, scrapes: mpsc::Sender<Scrape>) {
        self.make_place().await;
        let has_asked = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&has_asked);
        let task = self.tasks.spawn(async move {
            match timeout(PATIENCE, converse(stream, asked, scrapes)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "a client of the metrics left"),
                Err(_) => debug!("a client of the metrics was too slow"),
            }
        });
        self.open.push_back((task, has_asked));
    }

    async fn make_place(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|(task, _)| !task.is_finished());
        if self.open.len() < CONNECTIONS {
            return;
        }
        let is_idle = |(_, has_asked): &(_, Arc<AtomicBool>)| !has_asked.load(Ordering::Relaxed);
        match self.open.iter().position(is_idle) {
            Some(at) => {
                if let Some((task, _)) = self.open.remove(at) {
                    task.abort();
                }
            }
            // All of them are being answered.
            None => {
                self.tasks.join_next().await;
                self.open.retain(|(task, _)| !task.is_finished());
            }
        }
    }
}

async fn converse(
    stream: TcpStream,
    has_asked: Arc<AtomicBool>,
    scrapes: mpsc::Sender<Scrape>,
) -> Result<(), hyper::Error> {
    let service = service_fn(|request: Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        let scrapes = scrapes.clone();
        async move { Ok::<_, Infallible>(answer(&request, scrapes).await) }
    });
    // Scrapes are seconds apart: nothing is kept open for the next one.
    let mut server = http1::Builder::new();
    let server = server.max_buf_size(BUFFER_BYTES).keep_alive(false);
    server.serve_connection(TokioIo::new(stream), service).await
}

async fn answer(
    request: &Request<Incoming>,
    scrapes: mpsc::Sender<Scrape>,
) -> Response<Full<Bytes>> {
    let asked = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => Some((Question::Metrics, metrics::CONTENT_TYPE)),
        (&Method::GET, "/healthz") => Some((Question::Health, PLAIN)),
        _ => None,
    };
    let (status, kind, text) = match asked {
        Some((question, kind)) => match scrape(question, scrapes).await {
            Ok(text) => (StatusCode::OK, kind, text),
            Err(error) => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, error),
        },
        None => (StatusCode::NOT_FOUND, PLAIN, "see /metrics".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

const PLAIN: &str = "text/plain; charset=utf-8";

async fn scrape(question: Question, scrapes: mpsc::Sender<Scrape>) -> Result<String, String> {
    let (reply, answer) = oneshot::channel();
    let is_sent = scrapes.send(Scrape { question, reply }).await.is_ok();
    match answer.await {
        Ok(answer) if is_sent => answer,
        _ => Err("the agent is stopping".to_owned()),
    }
}

#[cfg(test)]
mod tests;
