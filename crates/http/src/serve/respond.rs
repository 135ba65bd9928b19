//! A response's way to the client: from the handler to the end of its connection.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::{Exchange, LATE, Linger, ServerShared};
use crate::containment::framing::Framing;
use crate::containment::incoming::Incoming;
use crate::containment::socket::{DescriptorNumber, with_connection};
use crate::containment::unfinished::Fault;
use crate::observer::{Arrival as Observed, Observer};
use crate::problem::{self, Problem};
use crate::request::{Request, header, path_of};
use crate::response::{Persistence, Response};
use crate::router::Match;
use tbd_deadline::Deadline;

/// How much of an unread body is read and discarded, so that the client can read its answer, and
/// for how long.
const LINGER_BYTES: usize = 1024 * 1024;
const LINGER: Duration = Duration::from_millis(500);

impl ServerShared {
    /// Calls `handle` for a request, unless it is late or malformed, and writes its response. Blocks for
    /// the handler and for the client's socket.
    pub(super) fn answer(
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
            refused,
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
            refused,
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
    pub(super) fn handle(&self, request: &mut Request) -> Result<Response, Problem> {
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
            // A part of it may have gone out, and what follows would be taken for the rest.
            self.cut_off(peer);
        } else if last {
            self.act_on(peer, DescriptorNumber::stop_reading);
        }
    }

    /// Answers a request and ends its connection, because the start of the next request is unknown.
    fn end(&self, request: Incoming, peer: SocketAddr, bytes: &[u8]) {
        let unanswered = self.connections.ended(peer);
        self.act_on(peer, |connection| connection.send(bytes));
        self.finish(request, unanswered, peer);
    }

    /// Ends a connection whose last response is sent. `request` and the `unanswered` ones are
    /// dropped after it.
    pub(super) fn finish(
        &self,
        request: Incoming,
        unanswered: VecDeque<Exchange>,
        peer: SocketAddr,
    ) {
        self.act_on(peer, DescriptorNumber::finish_sending);
        if let Err(refused) = self
            .lingering
            .try_send(Linger::Until(Box::new(request), unanswered))
        {
            self.act_on(peer, DescriptorNumber::end);
            drop(refused);
        }
    }

    /// Looks a connection up and calls `act` at once, for one action. Before a second action, the
    /// descriptor may be closed and its number reused. A client that has gone needs none.
    pub(super) fn act_on(
        &self,
        peer: SocketAddr,
        act: impl Fn(DescriptorNumber) -> io::Result<()>,
    ) {
        if let Err(error) = with_connection(peer, self.local_port, act) {
            log::debug!(target: "tbd::http", "a connection could not be answered or ended: {error}");
        }
    }

    /// Ends a connection whose request did not become complete.
    pub(crate) fn end_unfinished(&self, peer: SocketAddr, fault: Fault) {
        let (status, what) = match fault {
            Fault::Slow => ("408 Request Timeout", "slow"),
            Fault::Long => ("431 Request Header Fields Too Large", "endless"),
        };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        log::warn!(target: "tbd::http", "a client's request was too {what}: connection closed");
        self.act_on(peer, |connection| connection.send(answer.as_bytes()));
        self.cut_off(peer);
    }

    /// Ends a connection at once, with the requests that wait on it. tiny_http takes what is left in its
    /// buffer for further ones.
    fn cut_off(&self, peer: SocketAddr) {
        self.act_on(peer, DescriptorNumber::end);
        drop(self.connections.ended(peer));
    }

    /// The main loop of the lingering thread. When a socket with unread bytes is closed, the kernel
    /// resets the connection, and the client may lose its answer. So some of the unread bytes are
    /// read first.
    pub(crate) fn linger(&self, queue: &Receiver<Linger>) {
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
                self.cut_off(peer);
            }
            drop(request);
            drop(unanswered);
        }
    }
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
