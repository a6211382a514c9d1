//! Connections of unknown clients: a few at a time, each with a small buffer and a few seconds. An idle connection
//! gives way to a new one, so that nobody can keep alerts or load balancers out by opening connections.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet, yield_now};
use tokio::time::timeout;
use tracing::debug;

/// The longest time that a connection may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of all headers of a request together; hyper accepts no smaller limit.
const BUFFER_BYTES: usize = 8192;

pub(super) const PLAIN: &str = "text/plain; charset=utf-8";

/// The open connections, the oldest first.
pub(super) struct Conversations {
    /// The most connections at a time; others wait while all of these are being answered.
    most: usize,
    tasks: JoinSet<()>,
    open: VecDeque<(AbortHandle, Arc<AtomicBool>)>,
}

impl Conversations {
    /// Allows `most` connections at a time.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            tasks: JoinSet::new(),
            open: VecDeque::new(),
        }
    }

    /// Answers one request of a client that has connected.
    pub(super) async fn begin<F>(
        &mut self,
        stream: TcpStream,
        answer: impl Fn(Request<Incoming>) -> F + Send + 'static,
    ) where
        F: Future<Output = Response<Full<Bytes>>> + Send,
    {
        self.make_place().await;
        let has_asked = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&has_asked);
        let task = self.tasks.spawn(async move {
            match timeout(PATIENCE, converse(stream, asked, answer)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "an HTTP client left"),
                Err(_) => debug!("an HTTP client was too slow"),
            }
        });
        self.open.push_back((task, has_asked));
        // A client that has sent its request with its connection is heard before a new connection takes its place.
        yield_now().await;
    }

    async fn make_place(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|(task, _)| !task.is_finished());
        if self.open.len() < self.most {
            return;
        }
        let is_idle = |(_, has_asked): &(_, Arc<AtomicBool>)| !has_asked.load(Ordering::Relaxed);
        match self.open.iter().position(is_idle) {
            Some(at) => {
                if let Some((task, _)) = self.open.remove(at) {
                    task.abort();
                }
            }
            // All connections are being answered.
            None => {
                self.tasks.join_next().await;
                self.open.retain(|(task, _)| !task.is_finished());
            }
        }
    }
}

async fn converse<F>(
    stream: TcpStream,
    has_asked: Arc<AtomicBool>,
    answer: impl Fn(Request<Incoming>) -> F,
) -> Result<(), hyper::Error>
where
    F: Future<Output = Response<Full<Bytes>>>,
{
    let service = service_fn(move |request: Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    // Requests are seconds apart, so no connection is kept open for the next one.
    let mut server = http1::Builder::new();
    let server = server.max_buf_size(BUFFER_BYTES).keep_alive(false);
    server.serve_connection(TokioIo::new(stream), service).await
}

/// An answer with this text. A browser must not guess another content type than `kind`.
pub(super) fn response(
    status: StatusCode,
    kind: &'static str,
    text: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
