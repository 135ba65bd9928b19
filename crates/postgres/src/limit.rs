//! Time limits for calls that wait for the server.
//!
//! The driver limits the TCP connect and nothing after it. A server that accepts and then says
//! nothing (frozen, or a proxy without a server behind it) would block the calling thread for ever.
//! So would the driver's destructor, which waits for outstanding answers. TCP's own time-outs do
//! not help, because the peer's kernel still acknowledges. So the driver reads and writes through
//! [`Limited`], which fails once the limit in force is exceeded.
//!
//! A limit is one atomic word, so it costs a statement next to nothing.

use std::future::Future as _;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use postgres::tls::{ChannelBinding, TlsStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};

use super::error::DatabaseError;

/// The value that means no limit.
const UNLIMITED: u64 = u64::MAX;

/// How long a session may wait for the server. Clones are the same limit.
#[derive(Clone)]
pub(super) struct TimeLimit(Arc<State>);

struct State {
    epoch: Instant,
    /// Nanoseconds since the epoch, or [`UNLIMITED`].
    limit: AtomicU64,
    /// The session cannot be used any more.
    cut: AtomicBool,
}

/// A limit in force; dropping it lifts it.
#[must_use]
pub(super) struct InForce(TimeLimit);

impl TimeLimit {
    /// No limit yet.
    pub(super) fn new() -> Self {
        Self(Arc::new(State {
            epoch: Instant::now(),
            limit: AtomicU64::new(UNLIMITED),
            cut: AtomicBool::new(false),
        }))
    }

    /// Sets the limit to `duration` from now.
    pub(super) fn set(&self, duration: Duration) {
        let limit = nanos(self.0.epoch.elapsed()).saturating_add(nanos(duration));
        self.0.limit.store(limit, Ordering::Relaxed);
    }

    /// Lifts the limit.
    pub(super) fn clear(&self) {
        self.0.limit.store(UNLIMITED, Ordering::Relaxed);
    }

    /// Sets the limit to `duration` from now for as long as the returned value lives.
    pub(super) fn hold(&self, duration: Duration) -> InForce {
        self.set(duration);
        InForce(self.clone())
    }

    /// Ends the session: every later read and write fails.
    pub(super) fn cut(&self) {
        self.0.cut.store(true, Ordering::Relaxed);
    }

    /// Whether the session was cut, by a limit or by [`cut`](Self::cut).
    pub(super) fn is_cut(&self) -> bool {
        self.0.cut.load(Ordering::Relaxed)
    }

    /// `error`, or the exceeded limit if that caused the loss.
    pub(super) fn explain(&self, error: DatabaseError) -> DatabaseError {
        match error {
            DatabaseError::ConnectionLost(_) if self.is_cut() => {
                DatabaseError::ConnectionLost(DatabaseError::NO_ANSWER.to_owned())
            }
            error => error,
        }
    }

    /// The moment of the limit, if there is one.
    fn moment(&self) -> Option<Instant> {
        match self.0.limit.load(Ordering::Relaxed) {
            UNLIMITED => None,
            limit => Some(self.0.epoch + Duration::from_nanos(limit)),
        }
    }
}

impl Drop for InForce {
    fn drop(&mut self) {
        self.0.clear();
    }
}

/// Saturates after 584 years, which equals [`UNLIMITED`].
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What the driver reads and writes through: plain or with TLS.
pub(super) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// A session's transport, whose waits end at a [`TimeLimit`].
pub(super) struct Limited {
    transport: Box<dyn Transport>,
    /// SCRAM's channel binding, if the transport has one.
    binding: Option<Vec<u8>>,
    limit: TimeLimit,
    /// The timer, once a wait needed it.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Limited {
    pub(super) fn new(
        transport: Box<dyn Transport>,
        binding: Option<Vec<u8>>,
        limit: TimeLimit,
    ) -> Self {
        Self {
            transport,
            binding,
            limit,
            sleep: None,
        }
    }

    /// What `attempt` returns, or an error if that is not ready and the limit is exceeded.
    fn within_limit<T>(
        &mut self,
        cx: &mut Context<'_>,
        attempt: impl FnOnce(Pin<&mut dyn Transport>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if !self.limit.is_cut() {
            let outcome = attempt(Pin::new(&mut *self.transport), cx);
            if outcome.is_ready() {
                return outcome;
            }
            // Without a limit, the peer alone ends the wait: this thread sets the limits.
            let Some(moment) = self.limit.moment() else {
                return Poll::Pending;
            };
            let moment = tokio::time::Instant::from_std(moment);
            let sleep = self
                .sleep
                .get_or_insert_with(|| Box::pin(sleep_until(moment)));
            if sleep.deadline() != moment {
                sleep.as_mut().reset(moment);
            }
            ready!(sleep.as_mut().poll(cx));
            self.limit.cut();
        }
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Limited {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.within_limit(cx, |transport, cx| transport.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Limited {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.within_limit(cx, |transport, cx| transport.poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.within_limit(cx, |transport, cx| transport.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.within_limit(cx, |transport, cx| transport.poll_shutdown(cx))
    }
}

impl TlsStream for Limited {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.binding {
            Some(hash) => ChannelBinding::tls_server_end_point(hash.clone()),
            None => ChannelBinding::none(),
        }
    }
}
