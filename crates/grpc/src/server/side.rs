//! Requests on a server's connection, as its reading thread receives them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tbd_deadline::Deadline;

use super::Shared;
use super::call::{Call, Request};
use super::job::Job;
use super::router::Route;
use crate::code::Code;
use crate::h2::{ErrorCode, find};
use crate::hpack::Header;
use crate::link::{End, Link, LinkState, Side, draining, late};
use crate::message::Encoding;
use crate::metadata::{Metadata, decode_timeout};
use crate::method::MethodKind;
use crate::status::Status;

/// The content type of gRPC; a subtype may follow.
const CONTENT_TYPE: &[u8] = b"application/grpc";

/// How long a call of health or reflection may take. Their clients open a stream that has ended again.
const OWN_DURATION_MAX: Duration = Duration::from_secs(3600);

/// A stream whose request is not whole.
enum Pending {
    /// A call that runs once it is.
    Call(Box<Request>, Route),
    /// Something that is not gRPC, and the HTTP status that it gets.
    NotGrpc(&'static str),
}

/// The server's part of a connection's reading thread.
pub(super) struct ServerSide {
    link: Arc<Link>,
    shared: Arc<Shared>,
    pending: HashMap<u32, Pending>,
    /// Calls that go to the executor once the lock is free.
    ready: Vec<Job>,
    /// Calls that were answered without a handler, for the hook once the lock is free.
    refused: Vec<(String, Status)>,
}

impl ServerSide {
    pub(super) fn new(link: Arc<Link>, shared: Arc<Shared>) -> Self {
        Self {
            link,
            shared,
            pending: HashMap::new(),
            ready: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// Reads a header list; an error is the answer.
    fn read_request(&self, headers: &[Header], route: &Route) -> Result<Request, Status> {
        let encoding = Encoding::from_header(find(headers, "grpc-encoding"))?;
        let duration_max = match route.is_own {
            true => OWN_DURATION_MAX,
            false => self.shared.config.call_duration_max,
        };
        let timeout = match find(headers, "grpc-timeout") {
            None => duration_max,
            Some(value) => decode_timeout(value)
                .ok_or_else(|| Status::internal("grpc-timeout is not valid"))?,
        };
        let accepted = find(headers, "grpc-accept-encoding").unwrap_or_default();
        let accepts_gzip = accepted
            .split(|octet| *octet == b',')
            .any(|name| name.trim_ascii() == b"gzip");
        let received_at = Instant::now();
        Ok(Request {
            path: path_of(headers),
            kind: route.kind,
            metadata: Arc::new(Metadata::from_headers(headers)),
            content_type: content_type_of(headers),
            encoding,
            accepts_gzip,
            received_at,
            deadline: Deadline::after_instant(received_at, timeout.min(duration_max)),
        })
    }

    /// Begins a call; an error is the answer.
    fn begin(&mut self, state: &mut LinkState, id: u32, headers: &[Header]) -> Result<(), Status> {
        let router = &self.shared.router;
        let path = find(headers, ":path").unwrap_or_default();
        let Some(route) = router.find(path).cloned() else {
            let path = String::from_utf8_lossy(path);
            let what = match router.has_service_of(&path) {
                true => "method",
                false => "service",
            };
            let text = format!("unknown {what}: {path}");
            return Err(Status::new(Code::Unimplemented, text));
        };
        let request = self.read_request(headers, &route)?;
        let mut due = request.deadline.instant();
        if route.kind.has_one_request() {
            due = due.min(request.received_at + self.shared.config.request_timeout);
        }
        // Streams that last until the client ends them must not keep a connection open that is to end.
        let ends_with_drain = route.is_own && route.kind != MethodKind::Unary;
        if ends_with_drain && state.timers.is_draining() {
            return Err(draining());
        }
        let exchange = state.exchanges.entry(id).or_default();
        exchange.ends_with_drain = ends_with_drain;
        exchange.metadata = Some(Arc::clone(&request.metadata));
        state.timers.set_stream(id, due);
        let pending = Pending::Call(Box::new(request), route);
        self.pending.insert(id, pending);
        Ok(())
    }

    /// Answers a call that does not come to a handler.
    fn refuse(&mut self, state: &mut LinkState, id: u32, request: &Request, status: Status) {
        let status = self.shared.router.map_error(&request.metadata, status);
        state.refuse(id, &request.content_type, &status);
        self.refused.push((request.path.clone(), status));
    }

    fn forget(&mut self, state: &mut LinkState, id: u32) {
        self.pending.remove(&id);
        state.exchanges.remove(&id);
        state.timers.clear_stream(id);
    }

    fn answer_not_grpc(&mut self, state: &mut LinkState, id: u32, http_status: &'static str) {
        self.forget(state, id);
        let head = [
            Header::new(":status", http_status),
            Header::new("content-type", "text/plain"),
        ];
        let text = b"This is a gRPC server: POST with content-type application/grpc.\n";
        let sent = state.h2.respond(id, &head, false);
        let sent = sent.and_then(|()| state.h2.send_data(id, Bytes::from_static(text), true));
        if sent.is_err() {
            state.h2.reset(id, ErrorCode::INTERNAL_ERROR);
        }
        // A text for which the client's window has room ends the stream here.
        let _ = state.h2.output();
        if state.h2.is_open(id) {
            // As with a call, what it does not take in time is given up.
            let due = Instant::now() + self.link.config.write_timeout;
            state.timers.set_stream(id, due);
        }
    }

    /// What becomes of a call of which more is known now: it waits, goes to a handler, or is over.
    fn advance(&mut self, state: &mut LinkState, id: u32, request: Box<Request>, route: Route) {
        let Some(exchange) = state.exchanges.get(&id) else {
            return;
        };
        let count = exchange.waiting();
        let is_whole = exchange.is_remote_done || count > 1;
        let refusal = match &exchange.end {
            Some(End::Failed(status)) => Some(status.clone()),
            Some(End::Reset(_) | End::Lost(_)) => return self.forget(state, id),
            _ if !route.kind.has_one_request() || (is_whole && count == 1) => None,
            _ if !is_whole => {
                self.pending.insert(id, Pending::Call(request, route));
                return;
            }
            _ => Some(Status::internal(format!("{count} messages instead of one"))),
        };
        if let Some(status) = refusal {
            self.forget(state, id);
            return self.refuse(state, id, &request, status);
        }
        state.timers.set_stream(id, request.deadline.instant());
        let call = Call::new(Arc::clone(&self.link), id, *request);
        let router = Arc::clone(&self.shared.router);
        self.ready.push(Job::new(call, router, route));
    }
}

/// A request's path, as text.
fn path_of(headers: &[Header]) -> String {
    String::from_utf8_lossy(find(headers, ":path").unwrap_or_default()).into_owned()
}

fn content_type_of(headers: &[Header]) -> Bytes {
    let mut headers = headers.iter();
    let found = headers.find(|header| header.name == "content-type");
    found.map(|header| header.value.clone()).unwrap_or_default()
}

impl Side for ServerSide {
    fn headers(&mut self, state: &mut LinkState, id: u32, headers: Vec<Header>, is_end: bool) {
        // Handlers of streams that the client has reset still run. They count, or resets would go around the limit.
        let config = &self.shared.config;
        let limit = config.connection.limits.concurrent_streams_max as usize;
        if state.exchanges.len() >= limit.saturating_mul(2) {
            return state.h2.reset(id, ErrorCode::REFUSED_STREAM);
        }
        let content_type = content_type_of(&headers);
        let is_grpc = content_type
            .strip_prefix(CONTENT_TYPE)
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')));
        let is_post = find(&headers, ":method") == Some(b"POST");
        if !is_grpc || !is_post {
            state.exchanges.entry(id).or_default().is_discarding = true;
            let due = Instant::now() + config.request_timeout;
            state.timers.set_stream(id, due);
            let pending = Pending::NotGrpc(if is_post { "415" } else { "405" });
            self.pending.insert(id, pending);
        } else if let Err(status) = self.begin(state, id, &headers) {
            let metadata = Metadata::from_headers(&headers);
            let status = self.shared.router.map_error(&metadata, status);
            state.refuse(id, &content_type, &status);
            self.refused.push((path_of(&headers), status));
            return;
        }
        if is_end && let Some(exchange) = state.exchanges.get_mut(&id) {
            exchange.is_remote_done = true;
        }
        self.progress(state, id);
    }

    fn progress(&mut self, state: &mut LinkState, id: u32) {
        match self.pending.remove(&id) {
            Some(Pending::Call(request, route)) => self.advance(state, id, request, route),
            Some(Pending::NotGrpc(http_status)) => {
                let exchange = state.exchanges.get(&id);
                let is_reset =
                    exchange.is_none_or(|exchange| matches!(exchange.end, Some(End::Reset(_))));
                let is_done = exchange.is_some_and(|exchange| exchange.is_remote_done);
                if is_reset {
                    self.forget(state, id);
                } else if is_done {
                    self.answer_not_grpc(state, id, http_status);
                } else {
                    self.pending.insert(id, Pending::NotGrpc(http_status));
                }
            }
            // The handler is at work, and finds out by itself.
            None => {}
        }
    }

    fn due(&mut self, state: &mut LinkState, id: u32) {
        match self.pending.remove(&id) {
            Some(Pending::Call(request, _)) => {
                self.forget(state, id);
                let status = Status::new(Code::DeadlineExceeded, "the request took too long");
                return self.refuse(state, id, &request, status);
            }
            Some(Pending::NotGrpc(_)) => {
                self.forget(state, id);
                return state.h2.reset(id, ErrorCode::CANCEL);
            }
            None => {}
        }
        let Some(exchange) = state.exchanges.get_mut(&id) else {
            // The handler has answered long ago, and the client takes nothing.
            return state.h2.reset(id, ErrorCode::CANCEL);
        };
        exchange.finish(End::Failed(late()));
        // The handler's own end would come too late for the client, which has given up by itself.
        if exchange.is_answered {
            state.h2.reset(id, ErrorCode::CANCEL);
        } else {
            let metadata = exchange.metadata.take().unwrap_or_default();
            let status = self.shared.router.map_error(&metadata, late());
            state.refuse(id, &Bytes::from_static(CONTENT_TYPE), &status);
        }
    }

    fn unlocked(&mut self) {
        let shared = &self.shared;
        for (path, status) in self.refused.drain(..) {
            shared.router.refused(&path, &status);
        }
        for job in self.ready.drain(..) {
            match job.is_own() {
                true => shared.own_threads.execute(job),
                false => shared.executor.execute(job),
            }
        }
    }
}
