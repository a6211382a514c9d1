//! A connection to an apiserver or a hub: how it is made, when it may be trusted, and whether it lives.
//!
//! | whose the other end is | is asked | gets a token |
//! |---|---|---|
//! | verified by TLS | yes | yes |
//! | on this machine, without TLS, and root's | yes | yes |
//! | on this machine, without TLS, and anybody else's | no | no |
//! | on another machine, without TLS or with an unverified one | yes | no |
//! | on another machine, without TLS, at the address of YurtHub's dummy interface | no | no |
//!
//! The address of YurtHub's dummy interface is each node's own. While the interface is not there, connections to that
//! address leave by the default route.
//!
//! The socket of a connection bears the agent's own priority, so no Service that is in the maps ever leads the
//! connection elsewhere.
#![expect(
    unsafe_code,
    reason = "socket options and user ids that the standard library lacks"
)]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use yurt_ebpf::abi::OWN_SOCKET_PRIORITY;

use super::access::{AccessError, Way};
use super::head::{Head, Limited};
use crate::dataplane::service::sockets::owner::{Owner, owner_of_peer};
use crate::source::hub::is_dummy;

/// The time to connect. A link that is slow for a moment is enough, because the first attempt lives as long as this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(6);
/// Between two attempts to connect: the kernel repeats a lost SYN after ever longer pauses, and would notice a link
/// that is back only after the next pause.
const ANOTHER_ATTEMPT: Duration = Duration::from_millis(1_500);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After so much silence the other end is probed.
pub(super) const PROBE_AFTER: Duration = Duration::from_secs(5);
const PROBE_INTERVAL: Duration = Duration::from_secs(2);
/// A connection is dead if it was asked and sent nothing for so long.
pub(super) const DEAD_AFTER: Duration = Duration::from_secs(9);
/// For connections that die with another one: probes cost an uplink a hundred bytes each.
const SELDOM: Duration = Duration::from_secs(120);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("{host} has no address")]
    Resolve {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("{url} names no host")]
    NoHost { url: Uri },
    #[error("connect to {to}")]
    Connect {
        to: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("{at} is served by a process of uid {uid}, not of root: nothing is sent to port {}", at.port())]
    Stranger { at: SocketAddr, uid: u32 },
    #[error("the kernel knows no process that listens at {at}: nothing is sent to port {}", at.port())]
    Unknown { at: SocketAddr },
    #[error(
        "{at} is YurtHub's address, and no interface of this node has it at present: nothing is sent there"
    )]
    NotHere { at: SocketAddr },
    #[error("the kernel does not say who serves {at}; it needs CONFIG_INET_DIAG (module tcp_diag)")]
    NoDiagnosis {
        at: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("TLS with {at}")]
    Tls {
        at: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("HTTP with {at}")]
    Http {
        at: SocketAddr,
        #[source]
        source: hyper::Error,
    },
}

impl DialError {
    /// There was no answer at all, not even a refusal.
    pub(super) fn is_silence(&self) -> bool {
        match self {
            Self::Connect { source, .. } | Self::Tls { source, .. } => is_silence(source),
            _ => false,
        }
    }
}

/// The other end, or the way there, is silent.
pub(super) fn is_silence(error: &io::Error) -> bool {
    use io::ErrorKind::{HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut};
    matches!(
        error.kind(),
        TimedOut | HostUnreachable | NetworkUnreachable | NetworkDown
    )
}

/// A connection; ends when it is dropped.
pub(super) struct Wire {
    sender: SendRequest<Empty<Bytes>>,
    driver: JoinHandle<()>,
    head: Head,
    socket: Arc<OwnedFd>,
    way: Way,
    host: HeaderValue,
    /// Whether the other end may get a token.
    may_have_token: bool,
    /// When credentials were last sent.
    signed_at: Instant,
    /// No other request is sent.
    is_spent: bool,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Wire {
    /// Makes a connection. It is probed soon after it falls silent if it `is_lifeline`.
    pub(super) async fn dial(way: Way, is_lifeline: bool) -> Result<Self, DialError> {
        let (stream, at) = reach(&way.url, is_lifeline).await?;
        let socket = stream.as_fd().try_clone_to_owned();
        let connecting = |source| DialError::Connect { to: at, source };
        let socket = Arc::new(socket.map_err(connecting)?);
        let head = Head::new();
        let (sender, driver, may_have_token) = match &way.tls {
            Some(tls) => {
                let connector = TlsConnector::from(Arc::clone(&tls.config));
                let handshake = connector.connect(tls.name.clone(), stream);
                let stream = in_time(handshake).await;
                let stream = stream.map_err(|source| DialError::Tls { at, source })?;
                let (sender, driver) = drive(Limited::new(stream, head.clone()), at).await?;
                (sender, driver, tls.is_verified)
            }
            None => {
                let own = stream.local_addr().map_err(connecting)?;
                let is_ours = is_roots(own, at).await?;
                let (sender, driver) = drive(Limited::new(stream, head.clone()), at).await?;
                (sender, driver, is_ours)
            }
        };
        let host = way.url.authority().map(|authority| authority.as_str());
        let host = host.and_then(|host| HeaderValue::from_str(host).ok());
        let url = way.url.clone();
        Ok(Self {
            sender,
            driver,
            head,
            socket,
            host: host.ok_or(DialError::NoHost { url })?,
            way,
            may_have_token,
            signed_at: Instant::now(),
            is_spent: false,
        })
    }

    /// Sends a request for a path below the server's URL, and waits for the head of the answer.
    pub(super) async fn send(
        &mut self,
        request: Request<()>,
    ) -> Result<Response<Incoming>, SendError> {
        let mut request = match self.may_have_token {
            true => self.way.sign(request).await?,
            false => request,
        };
        self.signed_at = Instant::now();
        let base = self.way.url.path().trim_end_matches('/');
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str());
        let uri: Uri = format!("{base}{path}").parse()?;
        *request.uri_mut() = uri;
        request.headers_mut().insert(HOST, self.host.clone());
        self.sender.ready().await?;
        let request = request.map(|()| Empty::new());
        self.head.is_awaited();
        let response = self.sender.send_request(request).await?;
        self.head.is_here();
        if response.status() == StatusCode::UNAUTHORIZED {
            // TLS may have begun with a plugin's earlier answer, so then another connection is made.
            self.is_spent = self.way.forget(self.signed_at).await;
        }
        Ok(response)
    }

    /// Credentials are not sent on this connection; the table at the top of the file says why.
    pub(super) fn keeps_credentials_back(&self) -> bool {
        !self.may_have_token && self.way.credentials.is_any()
    }

    /// Whether another request can be sent.
    pub(super) fn is_open(&self) -> bool {
        !self.is_spent && !self.sender.is_closed()
    }

    pub(super) fn socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Uri(#[from] http::uri::InvalidUri),
    #[error(transparent)]
    Request(#[from] http::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

/// How long ago the other end was heard from, even if only to say that it is there; `None`: the kernel does not say.
pub(super) fn silence(socket: &OwnedFd) -> Option<Duration> {
    // SAFETY: all of it are numbers, for which 0 is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).ok()?;
    // SAFETY: `info` and `length` are valid for writes of their sizes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    let millis = info.tcpi_last_ack_recv.min(info.tcpi_last_data_recv);
    (result == 0).then(|| Duration::from_millis(millis.into()))
}

async fn in_time<T>(handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(result) => result,
        Err(elapsed) => Err(elapsed.into()),
    }
}

async fn drive<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    at: SocketAddr,
) -> Result<(SendRequest<Empty<Bytes>>, JoinHandle<()>), DialError> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|source| DialError::Http { at, source })?;
    // The task that waits for an answer gets the error.
    let driver = tokio::spawn(async move { drop(connection.await) });
    Ok((sender, driver))
}

/// Whether the other end is trusted without TLS: on this machine only processes of root and of our own user are. An
/// error where it must not even be asked.
async fn is_roots(own: SocketAddr, at: SocketAddr) -> Result<bool, DialError> {
    let is_here = at.ip().to_canonical().is_loopback() || own.ip() == at.ip();
    let owner = owner_of_peer(own, at).await;
    let owner = owner.map_err(|source| DialError::NoDiagnosis { at, source });
    // SAFETY: a call without arguments.
    let user = unsafe { libc::geteuid() };
    match owner {
        Ok(Owner::User(uid)) if uid == 0 || uid == user => Ok(true),
        Ok(Owner::User(uid)) => Err(DialError::Stranger { at, uid }),
        Ok(Owner::Nobody) => Err(DialError::Unknown { at }),
        Ok(Owner::Elsewhere) if is_here => Err(DialError::Unknown { at }),
        Ok(Owner::Elsewhere) if is_dummy(at.ip()) => Err(DialError::NotHere { at }),
        Ok(Owner::Elsewhere) => Ok(false),
        Err(error) if is_here || is_dummy(at.ip()) => Err(error),
        Err(_) => Ok(false),
    }
}

/// Connects to the first address of a host that answers.
async fn reach(url: &Uri, is_lifeline: bool) -> Result<(TcpStream, SocketAddr), DialError> {
    let mut last = None;
    for to in addresses(url).await? {
        match connect(to, is_lifeline).await {
            Ok(stream) => return Ok((stream, to)),
            Err(source) => last = Some(DialError::Connect { to, source }),
        }
    }
    Err(last.unwrap_or_else(|| DialError::NoHost { url: url.clone() }))
}

/// The addresses of a server. A name is looked up each time; an address needs no DNS.
pub(super) async fn addresses(url: &Uri) -> Result<Vec<SocketAddr>, DialError> {
    let host = url.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let default = match url.scheme_str() {
        Some("https") => 443,
        _ => 80,
    };
    let port = url.port_u16().unwrap_or(default);
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let found = tokio::net::lookup_host((host, port)).await;
    let found = found.map_err(|source| DialError::Resolve {
        host: host.to_owned(),
        source,
    })?;
    Ok(found.collect())
}

/// Several attempts at a time. The first success counts, and so does the first refusal.
async fn connect(to: SocketAddr, is_lifeline: bool) -> io::Result<TcpStream> {
    let end = Instant::now() + CONNECT_TIMEOUT;
    let mut attempts = JoinSet::new();
    loop {
        let socket = socket(to.ip(), is_lifeline)?;
        attempts.spawn(async move { socket.connect(to).await });
        let wait = ANOTHER_ATTEMPT.min(end.saturating_duration_since(Instant::now()));
        tokio::select! {
            Some(result) = attempts.join_next() => return result.map_err(io::Error::other)?,
            () = sleep(wait) => {}
        }
        if Instant::now() >= end {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

fn socket(to: IpAddr, is_lifeline: bool) -> io::Result<TcpSocket> {
    let socket = match to {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    let options = SockRef::from(&socket);
    let probe_after = if is_lifeline { PROBE_AFTER } else { SELDOM };
    let keepalive = TcpKeepalive::new().with_time(probe_after);
    options.set_tcp_keepalive(&keepalive.with_interval(PROBE_INTERVAL))?;
    options.set_tcp_user_timeout(Some(DEAD_AFTER))?;
    own(options);
    Ok(socket)
}

/// Has the socket programs leave a socket alone.
pub(super) fn own(socket: SockRef<'_>) {
    // Without CAP_NET_ADMIN it fails; but without that the agent attaches no programs either.
    let _not_privileged = socket.set_priority(OWN_SOCKET_PRIORITY);
}
