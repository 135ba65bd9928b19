//! A request's way from arrival to the end of its response.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use super::admission::Admission;
use super::containment::connections::{Arrival, Connections, Next};
use super::containment::framing::Framing;
use super::containment::incoming::Incoming;
use super::containment::socket::DescriptorNumber;
use super::containment::unfinished::Fault;
use super::containment::watch::Watch;
use super::observer::{Arrival as Observed, Observer};
use super::problem::{self, Problem};
use super::request::{Request, header, path_of};
use super::response::{Persistence, Response};
use super::router::{Match, Router};
use tbd_deadline::{Deadline, lock};

/// What all threads of one server share.
pub(super) struct ServerShared {
    pub(super) router: Router,
    pub(super) request_timeout: Duration,
    pub(super) body_limit: usize,
    pub(super) local_port: u16,
    /// Held by the acceptor that waits for tiny_http.
    pub(super) intake: Mutex<()>,
    pub(super) connections: Connections<Exchange>,
    pub(super) admission: Admission,
    pub(super) watch: Arc<Watch>,
    /// The self-check's request target, secret from clients.
    pub(super) ping: String,
    /// While set, each response is its connection's last.
    pub(super) stopping: AtomicBool,
    /// To the pool's threads.
    pub(super) queue: Sender<Work>,
    /// To the probe threads.
    pub(super) probes: Sender<Work>,
    /// To the thread that lingers on connections before it closes them.
    pub(super) lingering: Sender<Linger>,
}

/// The threads that a request belongs to. Only the pool's threads, busy threads, queue and queue
/// time are counted: reading the metrics must not change them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Pool,
    Probes,
}

/// What a thread of the pool takes from its queue.
#[expect(
    clippy::large_enum_variant,
    reason = "the queue holds requests; a box for each would cost an allocation"
)]
pub(super) enum Work {
    Answer(Exchange),
    Stop,
}

/// What the lingering thread takes from its queue.
pub(super) enum Linger {
    Until(Box<Incoming>, VecDeque<Exchange>),
    Stop,
}

/// A request in progress, with its time of arrival.
pub(super) struct Exchange {
    request: Incoming,
    peer: SocketAddr,
    arrived: Instant,
    /// Whether no later request of its connection is answered.
    last: bool,
}

/// Reasons for refusing requests unhandled, as label values.
pub const SHED: [&str; 5] = [QUEUE_FULL, OVERLOAD, PROBES_FULL, PIPELINE, LATE];
const QUEUE_FULL: &str = "queue_full";
const OVERLOAD: &str = "overload";
const PROBES_FULL: &str = "probes";
const PIPELINE: &str = "pipeline";
const LATE: &str = "deadline";

/// How much of an unread body is read and discarded, so that the client can read its answer, and
/// for how long.
const LINGER_BYTES: usize = 1024 * 1024;
const LINGER: Duration = Duration::from_millis(500);

impl ServerShared {
    /// Takes the next request from tiny_http and dispatches it, unless an earlier one of its
    /// connection is in progress. Blocks on nothing else: a request that finds neither a free
    /// thread nor a place in the queue is refused at once.
    ///
    /// # Errors
    /// tiny_http's: its accept thread has ended, or `unblock` was called.
    pub(super) fn accept(
        &self,
        observer: &mut dyn Observer,
        tiny: &tiny_http::Server,
    ) -> std::io::Result<()> {
        // The one lock that is held across a wait. `recv` and entering the request must be one
        // step, or two acceptors could swap a connection's requests. Only acceptors take this lock,
        // and the ones that wait for it would wait in `recv` otherwise. `unblock` ends `recv` at
        // shutdown.
        let intake = lock(&self.intake);
        let request = Incoming::new(tiny.recv()?);
        // Only Unix sockets have no address, and the server listens on none.
        let Some(peer) = request.remote_addr().copied() else {
            return Ok(());
        };
        if request.url() == self.ping {
            drop(intake);
            pong(request);
            return Ok(());
        }
        let exchange = Exchange {
            request,
            peer,
            arrived: Instant::now(),
            last: false,
        };
        let arrival = self.connections.arrived(peer, exchange);
        drop(intake);
        match arrival {
            Arrival::Go(exchange) => self.dispatch(observer, exchange),
            Arrival::Waits => {}
            Arrival::Ended(exchange) => drop(exchange),
            Arrival::TooMany(None) => {
                observer.shed(PIPELINE);
                log::warn!(target: "tbd::http", "a client sends requests without waiting for answers: its connection is closed after those that were taken");
                self.with_connection(peer, DescriptorNumber::stop_reading);
            }
            Arrival::TooMany(surplus) => drop(surplus),
        }
        Ok(())
    }

    /// The connection's next request, once the one before is answered.
    fn next(&self, peer: SocketAddr) -> Option<Exchange> {
        match self.connections.next(peer) {
            Next::Go { request, last } => Some(Exchange { last, ..request }),
            Next::Idle => None,
            Next::End(surplus) => {
                self.finish(surplus.request, VecDeque::new(), peer);
                None
            }
        }
    }

    /// Queues a request, or refuses it and continues with its connection's next one.
    pub(super) fn dispatch(&self, observer: &mut dyn Observer, exchange: Exchange) {
        let mut next = Some(exchange);
        while let Some(exchange) = next {
            let peer = exchange.peer;
            let target = exchange.request.url();
            let (lane, queue) = match self.router.is_probe(&path_of(target)) {
                true => (Lane::Probes, &self.probes),
                false => (Lane::Pool, &self.queue),
            };
            if lane == Lane::Pool {
                if !self.admission.may_wait(Instant::now(), queue.len()) {
                    self.refuse(observer, exchange, OVERLOAD);
                    next = self.next(peer);
                    continue;
                }
                // Counted before `try_send`: a thread may take the request and count it off at
                // once.
                observer.queued();
            }
            let refused = match queue.try_send(Work::Answer(exchange)) {
                Ok(()) => return,
                Err(TrySendError::Full(work) | TrySendError::Disconnected(work)) => work,
            };
            if lane == Lane::Pool {
                observer.dequeued();
            }
            if let Work::Answer(exchange) = refused {
                let reason = match lane {
                    Lane::Probes => PROBES_FULL,
                    Lane::Pool => QUEUE_FULL,
                };
                self.refuse(observer, exchange, reason);
            }
            next = self.next(peer);
        }
    }

    /// Answers 503 instead of the handler.
    fn refuse(&self, observer: &mut dyn Observer, exchange: Exchange, reason: &'static str) {
        observer.shed(reason);
        self.answer(observer, exchange, |_| Err(problem::overloaded()));
    }

    /// Refuses all requests in `queue` while no thread takes them.
    pub(super) fn shed_stuck(&self, observer: &mut dyn Observer, queue: &Receiver<Work>) {
        while self.admission.gives_up(Instant::now(), queue.len()) {
            match queue.try_recv() {
                Ok(Work::Answer(exchange)) => {
                    observer.dequeued();
                    let peer = exchange.peer;
                    self.refuse(observer, exchange, OVERLOAD);
                    if let Some(next) = self.next(peer) {
                        self.dispatch(observer, next);
                    }
                }
                // Meant for a thread of the pool. Taking it has freed a place in the queue.
                Ok(Work::Stop) => {
                    let _ = self.queue.try_send(Work::Stop);
                    return;
                }
                Err(_) => return,
            }
        }
    }

    /// The main loop of a pool or probe thread: answers until it takes a stop message.
    pub(super) fn work(&self, observer: &mut dyn Observer, queue: &Receiver<Work>, lane: Lane) {
        loop {
            if lane == Lane::Pool {
                self.admission.free();
            }
            let Ok(Work::Answer(exchange)) = queue.recv() else {
                return;
            };
            if lane == Lane::Pool {
                observer.dequeued();
                let waited = exchange.arrived.elapsed();
                observer.busy(waited);
                self.admission.take(Instant::now(), queue.len());
            }
            let peer = exchange.peer;
            // `answer` catches the panics of handlers; this catches the rest.
            let answered = catch_unwind(AssertUnwindSafe(|| {
                self.answer(observer, exchange, |request| {
                    let outcome = self.handle(request);
                    if lane == Lane::Pool {
                        self.admission.answered(Instant::now());
                    }
                    outcome
                });
            }));
            if answered.is_err() {
                log::error!(target: "tbd::http", "a request ended in a panic outside its handler");
            }
            if lane == Lane::Pool {
                observer.free();
            }
            if let Some(next) = self.next(peer) {
                self.dispatch(observer, next);
            }
        }
    }

    fn answer(
        &self,
        observer: &mut dyn Observer,
        exchange: Exchange,
        handle: impl FnOnce(&mut Request) -> Result<Response, Problem>,
    ) {
        let Exchange {
            request,
            peer,
            arrived,
            last,
        } = exchange;
        let path = path_of(request.url());
        let found = self.router.find(request.method().as_str(), &path);
        let route = found.route().map(|route| self.router.template(route));
        let probe = self.router.is_probe(&path);
        observer.begin(&Observed {
            request: &request,
            route,
            at: arrived,
            is_probe: probe,
        });
        let request_id = header(&request, "x-request-id")
            .filter(|id| is_sane_request_id(id))
            .map_or_else(|| observer.trace_id(), str::to_owned);

        let (framing, fault) = match Framing::of(request.http_version(), request.headers()) {
            Ok(framing) => (framing, None),
            Err((fault, framing)) => (framing, Some(fault)),
        };
        let mut request = Request::new(
            request,
            framing,
            found,
            Deadline::after_instant(arrived, self.request_timeout),
            request_id,
            self.body_limit,
            self.watch.clone(),
        );
        let outcome = match fault {
            Some(fault) => Err(problem::malformed(fault)),
            None if request.deadline().is_past() => {
                observer.shed(LATE);
                Err(problem::waited_too_long())
            }
            None => catch_unwind(AssertUnwindSafe(|| handle(&mut request))).unwrap_or_else(
                |payload| {
                    observer.panicked();
                    log::error!(target: "tbd::http", "a handler panicked: {}", panic_text(&*payload));
                    Err(problem::internal())
                },
            ),
        };
        let response = outcome.unwrap_or_else(|problem| {
            problem.into_response(&observer.trace_id(), &observer.span_id())
        });

        let unclear = fault.is_some() || request.body_outstanding();
        // A probe may reuse its connection until the last request is answered.
        let stopping = self.stopping.load(Ordering::Relaxed)
            && (!probe || self.admission.is_idle(self.queue.len()));
        let persistence = if unclear || stopping || framing.last || last {
            Persistence::Close
        } else if framing.http_1_0 {
            Persistence::KeepAlive
        } else {
            Persistence::Implicit
        };
        let head_only = request.method() == "HEAD";
        let bytes = response.to_bytes(head_only, persistence, request.request_id());
        let (request, request_id) = request.into_parts();
        if unclear {
            self.end(request, peer, &bytes);
        } else {
            // A client that has gone needs no answer.
            self.send(request, peer, &bytes, stopping && !framing.last);
        }
        observer.end(response.status, &request_id);
    }

    /// Calls the handler of the request's route.
    fn handle(&self, request: &mut Request) -> Result<Response, Problem> {
        match request.found {
            Match::Found { route, handler, .. } => {
                request.identity = self.router.admit(route, request)?;
                self.router.handler(route, handler)(request)
            }
            Match::WrongMethod { route } => {
                Err(problem::method_not_allowed(self.router.allow(route)))
            }
            Match::Unmatched => Err(problem::not_found()),
        }
    }

    /// Writes the response through tiny_http, in one write. No byte of the body is outstanding, so
    /// dropping the request does not block.
    fn send(&self, request: Incoming, peer: SocketAddr, bytes: &[u8], last: bool) {
        let mut writer = request.into_writer();
        let written = writer.write_all(bytes).and_then(|()| writer.flush());
        if let Err(error) = written {
            log::debug!(target: "tbd::http", "the client did not take its response: {error}");
        }
        if last {
            self.with_connection(peer, DescriptorNumber::stop_reading);
        }
    }

    /// Answers a request and ends its connection, because the start of the next request is unknown.
    fn end(&self, request: Incoming, peer: SocketAddr, bytes: &[u8]) {
        let unanswered = self.connections.ended(peer);
        let written = self.with_connection(peer, |connection| connection.send(bytes));
        if let Some(Err(error)) = written {
            log::debug!(target: "tbd::http", "the client did not take its response: {error}");
        }
        self.finish(request, unanswered, peer);
    }

    /// Ends a connection whose last response is sent. `request` and the `unanswered` ones are
    /// dropped after it.
    fn finish(&self, request: Incoming, unanswered: VecDeque<Exchange>, peer: SocketAddr) {
        self.with_connection(peer, DescriptorNumber::finish_sending);
        if let Err(refused) = self
            .lingering
            .try_send(Linger::Until(Box::new(request), unanswered))
        {
            self.with_connection(peer, DescriptorNumber::end);
            drop(refused);
        }
    }

    /// Looks a connection up and calls `f` at once, for one action. Before a second action, the
    /// descriptor may be closed and its number reused. `None` when the client has gone.
    fn with_connection<T>(
        &self,
        peer: SocketAddr,
        f: impl FnOnce(DescriptorNumber) -> T,
    ) -> Option<T> {
        DescriptorNumber::find(peer, self.local_port).map(f)
    }

    /// Ends a connection whose request did not become complete.
    pub(super) fn end_unfinished(&self, peer: SocketAddr, fault: Fault) {
        let (status, what) = match fault {
            Fault::Slow => ("408 Request Timeout", "slow"),
            Fault::Long => ("431 Request Header Fields Too Large", "endless"),
        };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        log::warn!(target: "tbd::http", "a client's request was too {what}: connection closed");
        let _ = self.with_connection(peer, |connection| connection.send(answer.as_bytes()));
        self.with_connection(peer, DescriptorNumber::end);
        drop(self.connections.ended(peer));
    }

    /// The main loop of the lingering thread. When a socket with unread bytes is closed, the kernel
    /// resets the connection, and the client may lose its answer. So some of the unread bytes are
    /// read first.
    pub(super) fn linger(&self, queue: &Receiver<Linger>) {
        while let Ok(Linger::Until(mut request, unanswered)) = queue.recv() {
            let deadline = Deadline::after(LINGER);
            let peer = request.remote_addr().copied();
            let watched = self.watch.until(peer.as_ref(), deadline);
            let mut buffer = [0; 16 * 1024];
            let mut left = LINGER_BYTES;
            // After an early end tiny_http discards the rest, see `Incoming`.
            while left > 0 && !deadline.is_past() && !request.is_absurd() {
                match request.as_reader().read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(read) => left = left.saturating_sub(read),
                }
            }
            drop(watched);
            if let Some(peer) = peer {
                self.with_connection(peer, DescriptorNumber::end);
                // tiny_http takes what is left in its buffer for requests from now on.
                drop(self.connections.ended(peer));
            }
            drop(request);
            drop(unanswered);
        }
    }
}

/// Answers the self-check.
fn pong(request: Incoming) {
    let mut writer = request.into_writer();
    let _ = writer
        .write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        .and_then(|()| writer.flush());
}

/// Whether a client's `X-Request-Id` is adopted: 1 to 128 visible ASCII characters.
pub fn is_sane_request_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}
