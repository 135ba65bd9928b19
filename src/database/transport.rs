//! The byte stream under a connection, with an end to waiting.
//!
//! The driver bounds establishing a TCP connection and nothing after it: a server that accepts and then says nothing
//! (frozen, or a proxy without a server behind it) would hold the calling thread for ever, even in the driver's
//! destructor, which waits for outstanding answers. TCP's own time-outs do not help, for the peer's kernel still
//! acknowledges. The one place where the driver lets its user in is TLS. So this is a "TLS" that encrypts nothing
//! and hands the bytes through, but turns waiting beyond a limit into an I/O error of kind `TimedOut`.
//!
//! The stream's traits and its timer are tokio's, since the driver's are; they run on the event loop inside the
//! connection, driven by the calling thread.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use postgres::Socket;
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};

/// Far enough to mean "no limit".
const UNLIMITED: Duration = Duration::from_secs(365 * 24 * 3600);

/// Until when waiting for the server is allowed; shared between a connection and the stream under it.
#[derive(Clone, Debug)]
pub(super) struct TimeLimit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    epoch: Instant,
    /// Nanoseconds since the epoch: atomic, because the driver wants its streams `Send`.
    nanos: AtomicU64,
}

impl TimeLimit {
    /// A limit `duration` from now.
    pub(super) fn after(duration: Duration) -> Self {
        let limit = Self(Arc::new(Shared {
            epoch: Instant::now(),
            nanos: AtomicU64::new(0),
        }));
        limit.set(duration);
        limit
    }

    /// Moves the limit to `duration` from now.
    pub(super) fn set(&self, duration: Duration) {
        let nanos = (self.0.epoch.elapsed() + duration.min(UNLIMITED)).as_nanos();
        self.0
            .nanos
            .store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Removes the limit.
    pub(super) fn clear(&self) {
        self.set(UNLIMITED);
    }

    fn instant(&self) -> Instant {
        self.0.epoch + Duration::from_nanos(self.0.nanos.load(Ordering::Relaxed))
    }
}

/// What the driver takes for a TLS implementation.
#[derive(Clone, Debug)]
pub(super) struct TimedConnector {
    pub limit: TimeLimit,
    /// How long the server may take from the TCP connection to "ready for queries".
    pub handshake_timeout: Duration,
}

impl MakeTlsConnect<Socket> for TimedConnector {
    type Stream = TimedStream;
    type TlsConnect = Self;
    type Error = Infallible;

    fn make_tls_connect(&mut self, _domain: &str) -> Result<Self, Infallible> {
        Ok(self.clone())
    }
}

impl TlsConnect<Socket> for TimedConnector {
    type Stream = TimedStream;
    type Error = Infallible;
    type Future = Ready<Result<TimedStream, Infallible>>;

    fn connect(self, socket: Socket) -> Self::Future {
        self.limit.set(self.handshake_timeout);
        let timer = Box::pin(sleep_until(self.limit.instant().into()));
        ready(Ok(TimedStream {
            socket,
            limit: self.limit,
            timer,
        }))
    }
}

/// The socket, and the limit to waiting for it.
pub(super) struct TimedStream {
    socket: Socket,
    limit: TimeLimit,
    timer: Pin<Box<Sleep>>,
}

impl TimedStream {
    /// `progress` of the socket, or an error when there is none and the limit has passed.
    fn within_limit<T>(
        &mut self,
        context: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            return progress;
        }
        let limit = self.limit.instant().into();
        if self.timer.deadline() != limit {
            self.timer.as_mut().reset(limit);
        }
        match self.timer.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.socket).poll_read(context, buffer);
        self.within_limit(context, progress)
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.within_limit(context, progress)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.socket).poll_write_vectored(context, bytes);
        self.within_limit(context, progress)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.socket).poll_flush(context);
        self.within_limit(context, progress)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.socket).poll_shutdown(context);
        self.within_limit(context, progress)
    }
}

impl TlsStream for TimedStream {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_can_be_moved_and_removed() {
        let limit = TimeLimit::after(Duration::from_secs(1));
        assert!(limit.instant() <= Instant::now() + Duration::from_secs(1));
        limit.set(Duration::from_secs(60));
        assert!(limit.instant() > Instant::now() + Duration::from_secs(50));
        limit.clear();
        assert!(limit.instant() > Instant::now() + Duration::from_secs(3600));
        limit.set(Duration::MAX);
        assert!(limit.instant() > Instant::now() + Duration::from_secs(3600));
    }
}
