//! Hooks for observing a server's requests and its pool.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::request::{header, headers, path_range};

/// Observes one thread of a server. Each thread has its own observer, made by the [`Observers`] of
/// its server. It handles one request at a time: [`begin`](Self::begin), then [`end`](Self::end).
///
/// The methods run while a request is handled: they must be quick and must not block.
pub trait Observer {
    /// The thread starts on a request. After a panic outside the handler there is no `end`: the
    /// next `begin` replaces the request.
    fn begin(&mut self, arrival: &Arrival<'_>);

    /// The request's trace id: 32 hexadecimal digits. It serves as the request id if the client
    /// sent none.
    fn trace_id(&self) -> String;

    /// The id of the request's span within that trace: 16 hexadecimal digits.
    fn span_id(&self) -> String;

    /// The response was written, or the client has gone.
    fn end(&mut self, status: u16, request_id: &str);

    /// A request, or a connection, was refused unhandled, for one of the reasons in
    /// [`SHED`](crate::SHED).
    fn shed(&mut self, reason: &'static str) {
        let _ = reason;
    }

    /// A handler panicked.
    fn panicked(&mut self) {}

    /// A request starts to wait for a thread of the pool.
    fn queued(&mut self) {}

    /// The wait ended: a thread took the request, or it was refused.
    fn dequeued(&mut self) {}

    /// A thread of the pool is busy with a request that `waited` for it.
    fn busy(&mut self, waited: Duration) {
        let _ = waited;
    }

    /// The thread is free again.
    fn free(&mut self) {}
}

/// Makes a thread's observer, on that thread, when the server starts.
pub type Observers = Arc<dyn Fn() -> Box<dyn Observer> + Send + Sync>;

/// A request at its arrival.
pub struct Arrival<'a> {
    pub(crate) request: &'a tiny_http::Request,
    /// The route's template; `None` if no template matches.
    pub route: Option<&'static str>,
    /// When the request was complete.
    pub at: Instant,
    /// Whether it goes to a probe route.
    pub is_probe: bool,
    /// Whether it is refused unhandled for lack of capacity. There may be thousands of them in a second,
    /// so an observer should spend little on each.
    pub refused: bool,
}

impl Arrival<'_> {
    /// The method as sent.
    pub fn method(&self) -> &str {
        self.request.method().as_str()
    }

    /// The path as sent.
    pub fn path(&self) -> &str {
        let target = self.request.url();
        &target[path_range(target)]
    }

    /// The query as sent, if there is one.
    pub fn query(&self) -> Option<&str> {
        let target = self.request.url();
        target[path_range(target).end..].strip_prefix('?')
    }

    /// The first header of this name.
    pub fn header(&self, name: &'static str) -> Option<&str> {
        header(self.request, name)
    }

    /// Every header of this name.
    pub fn headers(&self, name: &'static str) -> impl Iterator<Item = &str> {
        headers(self.request, name)
    }

    /// The client's address.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.request.remote_addr().copied()
    }
}

/// Observes nothing. A request whose client sent no id has an empty one.
impl Observer for () {
    fn begin(&mut self, _arrival: &Arrival<'_>) {}

    fn trace_id(&self) -> String {
        String::new()
    }

    fn span_id(&self) -> String {
        String::new()
    }

    fn end(&mut self, _status: u16, _request_id: &str) {}
}
