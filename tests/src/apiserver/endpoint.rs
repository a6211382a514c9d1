//! A listener and its connections, on a thread and a runtime of their own: a test waits for what it tests, and never
//! for the server.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context as Waker;
use std::task::Poll;
use std::task::ready;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use bytes::Bytes;
use http::Request;
use http::Response;
use hyper::body::Body;
use hyper::body::Frame;
use hyper::body::Incoming;
use hyper::body::SizeHint;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::call::Answer;
use super::call::Call;
use super::call::Edit;
use super::call::Frames;
use super::fault;
use super::fault::Fault;
use super::fault::On;
use super::fault::Script;
use super::journal::Exchange;
use super::journal::Journal;
use super::journal::Open;
use super::resource::Resource;

const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A server behind an endpoint.
pub(super) trait Answers: Send + Sync + 'static {
    /// Answers a request.
    fn answer(self: Arc<Self>, call: Call) -> impl Future<Output = Answer> + Send;

    /// Its own work while it runs.
    fn run(self: Arc<Self>) -> impl Future<Output = Infallible> + Send {
        pending()
    }
}

/// The wire between a server and its clients: what is sent, what goes wrong, what was asked. Dropping it ends it with
/// all connections.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    wire: Arc<Wire>,
    start: StartFn,
    running: Mutex<Option<Running>>,
}

/// Starts the server's thread with a bound listener.
struct StartFn(Box<dyn Fn(TcpListener) -> Result<Running> + Send + Sync>);

impl std::fmt::Debug for StartFn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StartFn")
    }
}

#[derive(Debug)]
struct Wire {
    script: Mutex<Script>,
    journal: Arc<Journal>,
    tls: Mutex<Option<Arc<ServerConfig>>>,
}

impl Wire {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tls(&self) -> MutexGuard<'_, Option<Arc<ServerConfig>>> {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running server.
#[derive(Debug)]
struct Running {
    /// Ends the server when it is dropped.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Endpoint {
    pub(super) fn start<S: Answers>(address: SocketAddr, server: Arc<S>) -> Result<Self> {
        let wire = Arc::new(Wire {
            script: Mutex::default(),
            journal: Arc::new(Journal::new()),
            tls: Mutex::default(),
        });
        let shared = Arc::clone(&wire);
        let start = StartFn(Box::new(move |listener| {
            run_thread(listener, Arc::clone(&server), Arc::clone(&shared))
        }));
        let listener = bind(address)?;
        let address = listener.local_addr().context("address of the listener")?;
        let running = (start.0)(listener)?;
        Ok(Self {
            address,
            wire,
            start,
            running: Mutex::new(Some(running)),
        })
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address where it listens, or listened.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://address:port`, or `https` with [`Endpoint::set_tls`].
    pub fn url(&self) -> String {
        match *self.wire.tls() {
            None => format!("http://{}", self.address),
            Some(_) => format!("https://{}", self.address),
        }
    }

    /// Uses TLS on new connections, with this configuration.
    pub fn set_tls(&self, tls: Arc<ServerConfig>) {
        *self.wire.tls() = Some(tls);
    }

    /// Closes the listener and all connections, so that new connections are refused.
    pub fn stop(&self) {
        self.running().take();
    }

    /// Listens again at the same address, unless it does already.
    pub fn restart(&self) -> Result<()> {
        let mut running = self.running();
        if running.is_none() {
            *running = Some((self.start.0)(bind(self.address)?)?);
        }
        Ok(())
    }

    /// Closes all connections; new ones are accepted.
    pub fn drop_connections(&self) -> Result<()> {
        self.stop();
        self.restart()
    }

    /// These faults happen to the next requests of that sort, in this order, one each.
    pub fn fail_next(&self, on: On, faults: impl IntoIterator<Item = Fault>) {
        self.wire.script().next(on, faults);
    }

    /// This fault happens to all requests of that sort for which no [`Endpoint::fail_next`] is left; the last call
    /// counts.
    pub fn fail_always(&self, on: On, fault: Fault) {
        self.wire.script().always(on, fault);
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.wire.script().clear();
    }

    /// How many faults of [`Endpoint::fail_next`] have not happened yet.
    pub fn pending_faults(&self) -> usize {
        self.wire.script().pending()
    }

    /// All requests since the last [`Endpoint::forget_requests`], in the order in which they came.
    pub fn requests(&self) -> Vec<Exchange> {
        self.wire.journal.all()
    }

    /// The requests of one sort.
    pub fn requests_on(&self, on: On) -> Vec<Exchange> {
        self.requests().into_iter().filter(|e| e.is(on)).collect()
    }

    /// Forgets all requests that are over.
    pub fn forget_requests(&self) {
        self.wire.journal.clear();
    }

    /// How many watches of a resource are open.
    pub fn open_watches(&self, resource: Resource) -> usize {
        let watches = self.requests_on(On::watch(resource));
        let is_open = |e: &&Exchange| e.is_open && e.status == Some(200);
        watches.iter().filter(is_open).count()
    }

    /// Bytes of bodies that were sent for a resource, since the last [`Endpoint::forget_requests`].
    pub fn bytes_sent(&self, resource: Resource) -> u64 {
        let requests = self.requests_on(On::resource(resource));
        requests.iter().map(|exchange| exchange.body_bytes).sum()
    }

    /// How many connections were ever accepted.
    pub fn connections(&self) -> u64 {
        self.wire.journal.connections()
    }

    /// Blocks this thread until something holds.
    pub fn wait_until(&self, patience: Duration, holds: impl Fn(&Self) -> bool) -> Result<()> {
        let start = Instant::now();
        while !holds(self) {
            if start.elapsed() > patience {
                bail!("not within {patience:?}; requests: {:#?}", self.requests());
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Waits until something holds, in this task.
    pub async fn until(&self, patience: Duration, holds: impl Fn(&Self) -> bool) -> Result<()> {
        let start = Instant::now();
        while !holds(self) {
            if start.elapsed() > patience {
                bail!("not within {patience:?}; requests: {:#?}", self.requests());
            }
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen at {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn run_thread<S: Answers>(
    listener: TcpListener,
    server: Arc<S>,
    wire: Arc<Wire>,
) -> Result<Running> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("make a runtime")?;
    let (stop, mut stopped) = oneshot::channel();
    let thread = thread::Builder::new()
        .name("fake-apiserver".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                let own = tokio::spawn(Arc::clone(&server).run());
                tokio::select! {
                    _ = &mut stopped => {}
                    () = accept(listener, server, wire) => {}
                }
                own.abort();
            });
        })
        .context("start a thread")?;
    Ok(Running {
        stop: Some(stop),
        thread: Some(thread),
    })
}

/// Runs until it is dropped, with all connections.
async fn accept<S: Answers>(listener: TcpListener, server: Arc<S>, wire: Arc<Wire>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _peer)) => stream,
                // Too many open files: others will close some.
                Err(_error) => {
                    sleep(LOOK_AGAIN).await;
                    continue;
                }
            },
            Some(_ended) = connections.join_next() => continue,
        };
        wire.journal.connected();
        // A line of a watch must not wait until the one before is acknowledged.
        let _ = stream.set_nodelay(true);
        // A second handle to the socket, by which it can be reset.
        let Ok(handle) = stream.as_fd().try_clone_to_owned() else {
            continue;
        };
        let handle = Arc::new(handle);
        let tls = wire.tls().clone();
        let (server, wire) = (Arc::clone(&server), Arc::clone(&wire));
        let service = service_fn(move |request| {
            let (server, wire) = (Arc::clone(&server), Arc::clone(&wire));
            respond(server, wire, Arc::clone(&handle), request)
        });
        connections.spawn(async move {
            let http = http1::Builder::new();
            // The client notices a broken connection by itself.
            let _ = match tls {
                None => http.serve_connection(TokioIo::new(stream), service).await,
                Some(tls) => match TlsAcceptor::from(tls).accept(stream).await {
                    Ok(stream) => http.serve_connection(TokioIo::new(stream), service).await,
                    Err(_refused) => return,
                },
            };
        });
    }
}

async fn respond<S: Answers>(
    server: Arc<S>,
    wire: Arc<Wire>,
    connection: Arc<OwnedFd>,
    request: Request<Incoming>,
) -> io::Result<Response<Outgoing>> {
    let (parts, _body) = request.into_parts();
    let mut call = Call::new(&parts);
    let fault = wire.script().take(&call);
    let open = wire.journal.open(&parts.method, &call);
    let answer = match fault {
        Fault::Status(code) => fault::refusal(&call, code),
        Fault::RetryAfter(code, seconds) => {
            fault::refusal(&call, code).with(http::header::RETRY_AFTER, &seconds.to_string())
        }
        Fault::Body(content_type, body) => fault::foreign(content_type, body),
        Fault::Reset => {
            SockRef::from(&*connection).set_linger(Some(Duration::ZERO))?;
            return Err(io::Error::other("reset by the script"));
        }
        Fault::Close => return Err(io::Error::other("closed by the script")),
        Fault::Stall => pending().await,
        Fault::Delay(pause) => {
            sleep(pause).await;
            server.answer(call).await
        }
        Fault::EmptyList | Fault::PartOfList(_) | Fault::ListVersion(_) => {
            call.edit = match fault {
                Fault::PartOfList(items) => Some(Edit::Items(items)),
                Fault::ListVersion(version) => Some(Edit::Version(version)),
                _ => Some(Edit::Items(0)),
            };
            server.answer(call).await
        }
        spoils => fault::spoil(server.answer(call).await, spoils),
    };
    open.answered(answer.status.as_u16());
    let mut response = Response::new(Outgoing {
        left: answer.length,
        frames: answer.frames,
        open,
    });
    *response.status_mut() = answer.status;
    for (name, value) in answer.headers {
        let value = http::HeaderValue::from_str(&value).map_err(io::Error::other)?;
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

/// A body whose bytes are counted while it is sent.
struct Outgoing {
    left: Option<u64>,
    frames: Frames,
    open: Open,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Waker<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let frame = ready!(self.frames.as_mut().poll_next(context));
        Poll::Ready(frame.map(|frame| {
            frame.map(|bytes| {
                self.open.sent(bytes.len());
                let sent = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                self.left = self.left.map(|left| left.saturating_sub(sent));
                Frame::data(bytes)
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
