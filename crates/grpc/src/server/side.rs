//! What the reading thread of a server's connection does with requests.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tbd_deadline::Deadline;

use super::call::{Call, Request};
use super::job::Job;
use super::pool::Executor;
use super::router::{Route, Router};
use crate::code::Code;
use crate::h2::{ErrorCode, find};
use crate::hpack::Header;
use crate::link::{End, Exchange, Link, LinkState, Side};
use crate::message::Encoding;
use crate::metadata::{Metadata, decode_timeout};
use crate::status::Status;

/// The content type of gRPC; a subtype may follow.
const CONTENT_TYPE: &[u8] = b"application/grpc";

/// A stream whose request is not whole.
enum Pending {
    /// A call that runs once it is.
    Call(Box<Request>, Route),
    /// Something that is not gRPC, and the HTTP status that it gets.
    NotGrpc(&'static str),
}

/// The server's part of a connection's reading thread.
pub(super) struct ServerSide {
    pub(super) router: Arc<Router>,
    pub(super) executor: Arc<dyn Executor>,
    /// How long a request may take from its header list to its last octet.
    pub(super) request_timeout: Duration,
    /// How long a call may take.
    pub(super) call_duration_max: Duration,
    pending: HashMap<u32, Pending>,
    /// Calls that go to the executor once the lock is free.
    ready: Vec<Job>,
    /// Calls that were answered without a handler, for the hook once the lock is free.
    refused: Vec<(String, Status)>,
}

impl ServerSide {
    pub(super) fn new(
        router: Arc<Router>,
        executor: Arc<dyn Executor>,
        request_timeout: Duration,
        call_duration_max: Duration,
    ) -> Self {
        Self {
            router,
            executor,
            request_timeout,
            call_duration_max,
            pending: HashMap::new(),
            ready: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// Reads a header list; an error is the answer.
    fn read_request(
        &self,
        headers: &[Header],
        route: Route,
        content_type: Bytes,
    ) -> Result<(Request, Route), Status> {
        let encoding = Encoding::from_header(find(headers, "grpc-encoding"))?;
        let timeout = match find(headers, "grpc-timeout") {
            None => self.call_duration_max,
            Some(value) => decode_timeout(value)
                .ok_or_else(|| Status::new(Code::Internal, "grpc-timeout is not valid"))?,
        };
        let accepted = find(headers, "grpc-accept-encoding").unwrap_or_default();
        let accepts_gzip = accepted
            .split(|octet| *octet == b',')
            .any(|name| name.trim_ascii() == b"gzip");
        let received_at = Instant::now();
        let request = Request {
            path: String::from_utf8_lossy(find(headers, ":path").unwrap_or_default()).into_owned(),
            kind: route.kind,
            metadata: Metadata::from_headers(headers),
            content_type,
            encoding,
            accepts_gzip,
            received_at,
            deadline: Deadline::after_instant(received_at, timeout.min(self.call_duration_max)),
        };
        Ok((request, route))
    }

    /// Begins a call; an error is the answer.
    fn begin(
        &mut self,
        state: &mut LinkState,
        id: u32,
        headers: &[Header],
        content_type: Bytes,
    ) -> Result<(), Status> {
        let path = find(headers, ":path").unwrap_or_default();
        let Some(route) = self.router.find(path) else {
            let path = String::from_utf8_lossy(path);
            let what = if self.router.has_service_of(&path) {
                "method"
            } else {
                "service"
            };
            return Err(Status::new(
                Code::Unimplemented,
                format!("unknown {what}: {path}"),
            ));
        };
        let (request, route) = self.read_request(headers, route.clone(), content_type)?;
        let mut due = request.deadline.instant();
        if route.kind.has_one_request() {
            due = due.min(Instant::now() + self.request_timeout);
        }
        state.exchanges.insert(id, Exchange::new());
        state.timers.set_stream(id, due);
        self.pending
            .insert(id, Pending::Call(Box::new(request), route));
        Ok(())
    }

    /// Hands a call over.
    fn dispatch(
        &mut self,
        link: &Arc<Link>,
        state: &mut LinkState,
        id: u32,
        request: Request,
        route: Route,
    ) {
        state.timers.set_stream(id, request.deadline.instant());
        let call = Call::new(Arc::clone(link), id, request);
        self.ready
            .push(Job::new(call, Arc::clone(&self.router), route.handler));
    }

    /// Answers a call that does not come to a handler.
    fn refuse(&mut self, state: &mut LinkState, id: u32, request: &Request, status: Status) {
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
        let text = Bytes::from_static(
            b"This is a gRPC server: POST with content-type application/grpc.\n",
        );
        if state
            .h2
            .respond(id, &head, false)
            .and_then(|()| state.h2.send_data(id, text, true))
            .is_err()
        {
            state.h2.reset(id, ErrorCode::INTERNAL_ERROR);
        }
    }

    /// What becomes of a call of which more is known now.
    fn advance(
        &mut self,
        link: &Arc<Link>,
        state: &mut LinkState,
        id: u32,
        request: Box<Request>,
        route: Route,
    ) {
        let Some(exchange) = state.exchanges.get(&id) else {
            return;
        };
        if let Some(end) = exchange
            .end
            .as_ref()
            .filter(|end| !matches!(end, End::Trailers(_)))
        {
            let status = end.failure().filter(|_| matches!(end, End::Failed(_)));
            self.forget(state, id);
            if let Some(status) = status {
                self.refuse(state, id, &request, status);
            }
            return;
        }
        if route.kind.has_one_request() {
            let count = exchange.waiting();
            if !exchange.is_remote_done && count <= 1 {
                self.pending.insert(id, Pending::Call(request, route));
                return;
            }
            if count != 1 {
                self.forget(state, id);
                let status =
                    Status::new(Code::Internal, format!("{count} messages instead of one"));
                return self.refuse(state, id, &request, status);
            }
        }
        self.dispatch(link, state, id, *request, route);
    }
}

impl Side for ServerSide {
    fn headers(
        &mut self,
        link: &Arc<Link>,
        state: &mut LinkState,
        id: u32,
        headers: Vec<Header>,
        is_end: bool,
    ) {
        // Handlers of streams that the client has reset still run. They count, or resets would go around the limit.
        let limit = link.config.limits.concurrent_streams_max as usize;
        if state.exchanges.len() >= limit.saturating_mul(2) {
            return state.h2.reset(id, ErrorCode::REFUSED_STREAM);
        }
        let content_type = find(&headers, "content-type").unwrap_or_default();
        let is_grpc = content_type
            .strip_prefix(CONTENT_TYPE)
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')));
        let is_post = find(&headers, ":method") == Some(b"POST");
        if is_grpc && is_post {
            let content_type = Bytes::copy_from_slice(content_type);
            if let Err(status) = self.begin(state, id, &headers, content_type.clone()) {
                state.refuse(id, &content_type, &status);
                let path = find(&headers, ":path").unwrap_or_default();
                self.refused
                    .push((String::from_utf8_lossy(path).into_owned(), status));
                return;
            }
        } else {
            let mut exchange = Exchange::new();
            exchange.is_discarding = true;
            state.exchanges.insert(id, exchange);
            state
                .timers
                .set_stream(id, Instant::now() + self.request_timeout);
            self.pending
                .insert(id, Pending::NotGrpc(if is_post { "415" } else { "405" }));
        }
        if is_end && let Some(exchange) = state.exchanges.get_mut(&id) {
            exchange.is_remote_done = true;
        }
        self.progress(link, state, id);
    }

    fn progress(&mut self, link: &Arc<Link>, state: &mut LinkState, id: u32) {
        match self.pending.remove(&id) {
            Some(Pending::Call(request, route)) => self.advance(link, state, id, request, route),
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
        exchange.finish(End::Failed(Status::new(
            Code::DeadlineExceeded,
            "the deadline has passed",
        )));
        // The handler's own end would come too late for the client, which has given up by itself.
        if exchange.is_answered {
            state.h2.reset(id, ErrorCode::CANCEL);
        } else {
            let status = Status::new(Code::DeadlineExceeded, "the deadline has passed");
            state.refuse(id, &Bytes::from_static(CONTENT_TYPE), &status);
        }
    }

    fn unlocked(&mut self, _link: &Arc<Link>) {
        for (path, status) in self.refused.drain(..) {
            self.router.refused(&path, &status);
        }
        for job in self.ready.drain(..) {
            self.executor.execute(job);
        }
    }
}
