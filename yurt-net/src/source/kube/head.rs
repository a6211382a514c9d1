//! A limit for what a server sends before the head of its answer.
//!
//! HTTP allows any number of `100 Continue` before the answer. hyper reads and drops them as long as bytes arrive,
//! within one turn, so a server that sends nothing else would keep the thread, and everything else that runs on it,
//! from its work.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes of a head. An apiserver's head has about 500.
const LARGEST: usize = 64 << 10;
/// The limit while no head is expected.
const NO_LIMIT: usize = usize::MAX;

/// How many bytes of a head may still come.
#[derive(Clone, Debug)]
pub(super) struct Head(Arc<AtomicUsize>);

impl Head {
    /// The state before any head has arrived.
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(LARGEST)))
    }

    /// A request is sent.
    pub(super) fn is_awaited(&self) {
        self.0.store(LARGEST, Ordering::Relaxed);
    }

    /// The head of the answer has arrived; what follows is its body.
    pub(super) fn is_here(&self) {
        self.0.store(NO_LIMIT, Ordering::Relaxed);
    }

    fn is_too_large(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    fn grows(&self, by: usize) {
        let left = self.0.load(Ordering::Relaxed);
        if left != NO_LIMIT {
            self.0.store(left.saturating_sub(by), Ordering::Relaxed);
        }
    }
}

/// A stream whose reads fail once the head of an answer is too large. The read that brings the end of a head may bring
/// some of the body too, so no read is cut short: the next one fails.
#[derive(Debug)]
pub(super) struct Limited<S> {
    stream: S,
    head: Head,
}

impl<S> Limited<S> {
    pub(super) fn new(stream: S, head: Head) -> Self {
        Self { stream, head }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Limited<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.is_too_large() {
            let error = format!("more than {LARGEST} bytes came, and no answer among them");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.head.grows(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Limited<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn a_head_that_does_not_end_breaks_the_stream_and_a_body_of_any_length_does_not() {
        let (near, mut far) = duplex(4096);
        let head = Head::new();
        let mut stream = Limited::new(near, head.clone());
        let sending = tokio::spawn(async move {
            let mut sent = 0;
            while far.write_all(&[b'x'; 1000]).await.is_ok() {
                sent += 1000;
            }
            sent
        });
        let mut some = [0; 1000];
        for bytes in [LARGEST / 2, LARGEST / 2] {
            for _ in 0..bytes / 1000 {
                stream.read_exact(&mut some).await.unwrap();
            }
            head.is_awaited();
        }
        head.is_here();
        for _ in 0..10 * LARGEST / 1000 {
            stream.read_exact(&mut some).await.unwrap();
        }
        head.is_awaited();
        let mut read = 0;
        while stream.read_exact(&mut some).await.is_ok() {
            read += 1000;
        }
        assert!((LARGEST..=LARGEST + 1000).contains(&read), "{read}");
        drop(stream);
        assert!(sending.await.unwrap() > 10 * LARGEST);
    }
}
