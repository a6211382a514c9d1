//! The metrics server: `GET /metrics` for Prometheus, `GET /healthz`, `/livez` and `/readyz` for probes, `GET
//! /proxyMode` and `/configz` for tools that read them from kube-proxy.
//!
//! The agent's loop writes the text when it is asked for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tracing::{info, warn};

use super::conversations::{Conversations, PLAIN, response};
use crate::observe::metrics;

/// Connections at a time; others wait while all of these are being answered.
const CONNECTIONS: usize = 8;
/// How often the server tries a port that is taken, as kube-proxy does.
const RETRY: Duration = Duration::from_secs(5);
/// The answer of `/proxyMode`, where kube-proxy says iptables, ipvs or nftables.
pub const PROXY_MODE: &str = "yurt-net";

/// A request that the loop answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The metrics: their text, or why there is none.
    Metrics,
    /// Whether Services are served: what is degraded, or why they are not.
    Health,
}

/// A request on its way to the loop, and the way back. An error is answered with 503.
pub struct Scrape {
    /// The request.
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

/// Serves at this address, as soon as it is free: an agent serves its node with or without metrics. `configz`: the text
/// of that page.
pub fn serve(address: SocketAddr, configz: &str, scrapes: mpsc::Sender<Scrape>) -> Server {
    let configz = configz.into();
    Server(tokio::spawn(async move {
        let listener = listen(address, RETRY).await;
        accept(listener, configz, scrapes).await;
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

async fn accept(listener: TcpListener, configz: Arc<str>, scrapes: mpsc::Sender<Scrape>) {
    let mut conversations = Conversations::new(CONNECTIONS);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors: others must close some first.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (configz, scrapes) = (Arc::clone(&configz), scrapes.clone());
        let answer = move |request: http::Request<_>| {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            answer(method, path, Arc::clone(&configz), scrapes.clone())
        };
        conversations.begin(stream, answer).await;
    }
}

async fn answer(
    method: Method,
    path: String,
    configz: Arc<str>,
    scrapes: mpsc::Sender<Scrape>,
) -> Response<Full<Bytes>> {
    let (question, kind) = match (method, &*path) {
        (Method::GET, "/metrics") => (Question::Metrics, metrics::CONTENT_TYPE),
        (Method::GET, "/healthz" | "/readyz") => (Question::Health, PLAIN),
        // An agent that answers is alive, whatever it serves.
        (Method::GET, "/livez") => return response(StatusCode::OK, PLAIN, "ok"),
        (Method::GET, "/proxyMode") => return response(StatusCode::OK, PLAIN, PROXY_MODE),
        (Method::GET, "/configz") => {
            return response(StatusCode::OK, "application/json", configz.to_string());
        }
        _ => return response(StatusCode::NOT_FOUND, PLAIN, "see /metrics"),
    };
    match scrape(question, scrapes).await {
        Ok(text) => response(StatusCode::OK, kind, text),
        Err(error) => response(StatusCode::SERVICE_UNAVAILABLE, PLAIN, error),
    }
}

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
