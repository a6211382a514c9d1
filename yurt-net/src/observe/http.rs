//! The metrics server: `GET /metrics` and `GET /healthz`, for Prometheus and for people.
//!
//! Whoever can reach the port may be anybody, so a request costs the agent little and waits for nobody: a few connections at
//! a time, each with a small buffer and some seconds. The text is made by the agent's loop, which is asked for it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
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
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::metrics;

/// Connections at a time; others wait.
const CONNECTIONS: usize = 8;
/// A connection, from its begin to its end.
const PATIENCE: Duration = Duration::from_secs(10);
/// All headers of a request together; the least that hyper takes.
const BUFFER_BYTES: usize = 8192;
/// How often a port that is taken is tried, as kube-proxy does.
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
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    // Nobody closes it.
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let scrapes = scrapes.clone();
                tokio::spawn(async move {
                    match timeout(PATIENCE, converse(stream, scrapes)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => debug!(%error, "a client of the metrics left"),
                        Err(_) => debug!("a client of the metrics was too slow"),
                    }
                    drop(slot);
                });
            }
            // Out of descriptors: others must close some first.
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn converse(stream: TcpStream, scrapes: mpsc::Sender<Scrape>) -> Result<(), hyper::Error> {
    let service = service_fn(|request: Request<Incoming>| {
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
