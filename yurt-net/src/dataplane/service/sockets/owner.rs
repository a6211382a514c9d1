//! The owner of the other end of a connection within this machine.
//!
//! While the right process is not running, any process may listen on its port above 1023, on loopback and on the node's
//! addresses. The kernel knows who owns the other end, so no process has to be believed. The connection is examined,
//! and not the listener, which may have changed by the time of the connect.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::diag::Diag;

/// How long to wait for an accept, which a server does at once. Before that, the socket has no owner.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The owner of the other end of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A process of this user, in the caller's network namespace.
    User(u32),
    /// The connection has not been accepted.
    Nobody,
    /// It is not in this network namespace.
    Elsewhere,
}

/// Finds the owner of the other end of a connection from `own` to `peer`. Waits a moment for the accept, because before
/// that the kernel may name root, whichever user listens.
///
/// # Errors
///
/// The kernel's error if it has no socket diagnosis.
pub async fn owner_of_peer(own: SocketAddr, peer: SocketAddr) -> io::Result<Owner> {
    let mut diag = Diag::open()?;
    let until = Instant::now() + ACCEPT_PATIENCE;
    loop {
        match diag.owner(peer, own)? {
            None => return Ok(Owner::Elsewhere),
            Some((uid, true)) => return Ok(Owner::User(uid)),
            Some((_, false)) if Instant::now() >= until => return Ok(Owner::Nobody),
            Some((_, false)) => sleep(LOOK_AGAIN).await,
        }
    }
}

#[cfg(test)]
#[expect(
    unsafe_code,
    reason = "who runs the test, which the standard library does not say"
)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn the_other_end_is_found_once_it_is_accepted_whatever_it_listens_on() {
        // SAFETY: a call without arguments.
        let own = unsafe { libc::geteuid() };
        let (v4, v6) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
        let any = Ipv6Addr::UNSPECIFIED.into();
        for (listen, dial) in [(v4, v4), (v6, v6), (any, v4)] {
            let listener = TcpListener::bind(SocketAddr::new(listen, 0)).unwrap();
            let to = SocketAddr::new(dial, listener.local_addr().unwrap().port());
            let stream = TcpStream::connect(to).unwrap();
            let from = stream.local_addr().unwrap();
            let mut diag = Diag::open().unwrap();
            let waiting = diag.owner(to, from).unwrap().unwrap();
            assert!(!waiting.1, "{listen}: {waiting:?}");
            assert_eq!(owner_of_peer(from, to).await.unwrap(), Owner::Nobody);
            let (_accepted, _) = listener.accept().unwrap();
            assert_eq!(owner_of_peer(from, to).await.unwrap(), Owner::User(own));
        }
    }

    #[tokio::test]
    async fn an_end_that_is_not_here_is_elsewhere_even_if_somebody_listens_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let from: SocketAddr = "127.0.0.1:1".parse().unwrap();
        assert_eq!(owner_of_peer(from, to).await.unwrap(), Owner::Elsewhere);
    }
}
