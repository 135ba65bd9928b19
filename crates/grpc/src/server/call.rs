//! One call at the server: what the handler sees of it, and its answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use prost::Message;
use tbd_deadline::{Deadline, lock};

use crate::h2::{ActionError, ErrorCode};
use crate::hpack::Header;
use crate::link::{End, Link, LinkState};
use crate::message::{self, ACCEPTED_ENCODINGS, Encoding};
use crate::metadata::Metadata;
use crate::method::MethodKind;
use crate::status::Status;

/// What the header list of a request says.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) path: String,
    pub(super) kind: MethodKind,
    pub(super) metadata: Arc<Metadata>,
    pub(super) content_type: Bytes,
    pub(super) encoding: Encoding,
    pub(super) accepts_gzip: bool,
    pub(super) received_at: Instant,
    pub(super) deadline: Deadline,
}

/// A call, as its handler sees it. It is `Sync`: a handler may read on one thread and write on another.
#[derive(Debug)]
pub struct Call {
    link: Arc<Link>,
    id: u32,
    request: Request,
    response: Mutex<Response>,
}

/// Wakes the handler of a call. Takes the connection's lock.
#[derive(Clone, Debug)]
pub(super) struct CallWaker {
    link: Arc<Link>,
    id: u32,
}

impl CallWaker {
    pub(super) fn wake(&self) {
        self.link.wake_call(self.id);
    }
}

/// What is known of the response before its header list is sent.
#[derive(Debug, Default)]
struct Response {
    headers: Metadata,
    trailers: Metadata,
    /// Whether messages are compressed; None: as the request's are.
    gzip: Option<bool>,
    /// Whether the header list was sent, and with it whether compressed messages may follow.
    sent_with_gzip: Option<bool>,
}

impl Call {
    pub(super) fn new(link: Arc<Link>, id: u32, request: Request) -> Self {
        Self {
            link,
            id,
            request,
            response: Mutex::default(),
        }
    }

    /// The method's path: `/package.Service/Method`.
    pub fn path(&self) -> &str {
        &self.request.path
    }

    /// How many messages go each way.
    pub fn kind(&self) -> MethodKind {
        self.request.kind
    }

    /// The request's metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.request.metadata
    }

    /// When the client stops waiting, or the server's own limit if that is earlier.
    pub fn deadline(&self) -> Deadline {
        self.request.deadline
    }

    /// When the request's header list came.
    pub fn received_at(&self) -> Instant {
        self.request.received_at
    }

    /// The client's address, or that of the proxy before it.
    pub fn peer(&self) -> SocketAddr {
        self.link.peer
    }

    /// The client's certificates (DER), its own first; none without mutual TLS.
    pub fn peer_certificates(&self) -> Vec<Vec<u8>> {
        self.link.peer_certificates()
    }

    /// Whether nobody waits for the answer any more: the client cancelled, the deadline passed or the connection broke.
    pub fn is_cancelled(&self) -> bool {
        let state = self.link.lock();
        match state.exchanges.get(&self.id) {
            Some(exchange) => !matches!(exchange.end, None | Some(End::Trailers(_))),
            None => true,
        }
    }

    /// Changes the metadata that goes before the response. What is added after the first message is not sent.
    pub fn headers(&self, change: impl FnOnce(&mut Metadata)) {
        change(&mut lock(&self.response).headers);
    }

    /// Changes the metadata that goes after the response.
    pub fn trailers(&self, change: impl FnOnce(&mut Metadata)) {
        change(&mut lock(&self.response).trailers);
    }

    /// Compresses the messages from now on, if the client accepts gzip, or stops it. Without this call messages are
    /// compressed as the request's were. To be called before the first message, and then as often as wanted.
    pub fn compress(&self, gzip: bool) {
        lock(&self.response).gzip = Some(gzip);
    }

    /// Whether the request's messages may be compressed.
    pub fn is_request_compressed(&self) -> bool {
        self.request.encoding == Encoding::Gzip
    }

    /// The next message of the request.
    pub(super) fn receive<M: Message + Default>(&self) -> Result<Option<M>, Status> {
        let received = self.receive_with_flag()?;
        Ok(received.map(|(message, _)| message))
    }

    /// The next message of the request, and whether it came compressed.
    pub(super) fn receive_with_flag<M: Message + Default>(
        &self,
    ) -> Result<Option<(M, bool)>, Status> {
        let Some(received) = self.link.receive(self.id, self.deadline())? else {
            return Ok(None);
        };
        let is_compressed = received.is_compressed;
        let bytes_max = self.link.config.message_bytes_max;
        let message = message::decode(received, self.request.encoding, bytes_max)?;
        Ok(Some((message, is_compressed)))
    }

    /// The message of a request that has one.
    pub(super) fn receive_only<M: Message + Default>(&self) -> Result<M, Status> {
        self.receive()?
            .ok_or_else(|| Status::internal("the request has no message"))
    }

    /// Something that ends [`Call::wait`] from any thread.
    pub(super) fn waker(&self) -> CallWaker {
        CallWaker {
            link: Arc::clone(&self.link),
            id: self.id,
        }
    }

    /// Waits until the call's waker is used; an error is the status with which the call is over.
    pub(super) fn wait(&self) -> Result<(), Status> {
        self.link.wait_for_wake(self.id, self.deadline())
    }

    /// Encodes a message as the call's messages are at this time.
    pub(super) fn encode(&self, message: &impl Message) -> Result<Bytes, Status> {
        let (wanted, sent_with) = {
            let response = lock(&self.response);
            (response.gzip, response.sent_with_gzip)
        };
        let is_wanted = wanted.unwrap_or(self.is_request_compressed());
        let gzip = is_wanted && self.request.accepts_gzip && sent_with != Some(false);
        message::encode(message, gzip)
    }

    /// Sends a message of a streaming response, after the header list.
    pub(super) fn send(&self, message: &impl Message) -> Result<(), Status> {
        let message = self.encode(message)?;
        self.put_head();
        self.link.send(self.id, message, false, self.deadline())
    }

    /// Sends the metadata that goes before the response now, and not with its first message. Does not block.
    pub fn send_head(&self) {
        self.put_head();
        drop(self.link.flush(self.link.lock()));
    }

    /// Puts the header list, unless it was, before what is sent next.
    fn put_head(&self) {
        let Some(head) = self.head() else {
            return;
        };
        let mut state = self.link.lock();
        // The next step sees the end of a stream that has ended meanwhile.
        let _ = state.answer(self.id, &head);
    }

    /// The header list, unless it was sent.
    fn head(&self) -> Option<Vec<Header>> {
        let mut response = lock(&self.response);
        if response.sent_with_gzip.is_some() {
            return None;
        }
        let is_wanted = response.gzip.is_some() || self.is_request_compressed();
        let gzip = is_wanted && self.request.accepts_gzip;
        response.sent_with_gzip = Some(gzip);
        let mut head = basic_head(&self.request.content_type);
        if gzip {
            head.push(Header::new("grpc-encoding", "gzip"));
        }
        response.headers.append_to(&mut head);
        Some(head)
    }

    /// Sends what is left of the answer: the header list if it was not sent, the last message, the status.
    pub(super) fn finish(&self, outcome: Result<Option<Bytes>, Status>) {
        let outcome = match outcome {
            Ok(Some(message)) if message.len() > crate::h2::SEND_BUFFER_BYTES => {
                self.put_head();
                self.link
                    .send(self.id, message, false, self.deadline())
                    .map(|()| None)
            }
            other => other,
        };
        let head = self.head();
        let trailers = self.trailer_list(&outcome);
        let mut state = self.link.lock();
        let exchange = state.exchanges.remove(&self.id);
        let end = exchange.and_then(|exchange| exchange.end);
        state.timers.clear_stream(self.id);
        if !matches!(end, Some(End::Reset(_) | End::Lost(_))) {
            let sent = state.finish_call(self.id, head, outcome, trailers);
            if sent == Err(ActionError::HeadersTooLarge) {
                state.h2.reset(self.id, ErrorCode::INTERNAL_ERROR);
            }
        }
        let mut state = self.link.flush(state);
        let is_open = state.h2.is_open(self.id);
        if is_open {
            // What the client does not take in time is given up.
            let due = Instant::now() + self.link.config.write_timeout;
            state.timers.set_stream(self.id, due);
        }
        // The reading thread does not know of the new timer, and may wait for this to be the last call.
        let is_awaited = is_open || state.timers.is_draining();
        drop(state);
        if is_awaited {
            self.link.wake();
        }
    }

    fn trailer_list(&self, outcome: &Result<Option<Bytes>, Status>) -> Vec<Header> {
        let mut trailers = Status::to_trailers(outcome.as_ref().map(|_| ()));
        lock(&self.response).trailers.append_to(&mut trailers);
        trailers
    }
}

/// The header list of every response.
fn basic_head(content_type: &Bytes) -> Vec<Header> {
    vec![
        Header::new(":status", "200"),
        Header::new("content-type", content_type.clone()),
        Header::new("grpc-accept-encoding", ACCEPTED_ENCODINGS),
    ]
}

impl LinkState {
    fn answer(&mut self, id: u32, head: &[Header]) -> Result<(), ActionError> {
        if let Some(exchange) = self.exchanges.get_mut(&id) {
            exchange.is_answered = true;
        }
        self.h2.respond(id, head, false)
    }

    fn finish_call(
        &mut self,
        id: u32,
        head: Option<Vec<Header>>,
        outcome: Result<Option<Bytes>, Status>,
        trailers: Vec<Header>,
    ) -> Result<(), ActionError> {
        match (head, outcome) {
            (Some(head), Err(_)) => return self.h2.respond(id, &[head, trailers].concat(), true),
            (Some(head), Ok(message)) => {
                self.h2.respond(id, &head, false)?;
                if let Some(message) = message {
                    self.h2.send_data(id, message, false)?;
                }
            }
            (None, Ok(Some(message))) => self.h2.send_data(id, message, false)?,
            (None, _) => {}
        }
        self.h2.send_trailers(id, trailers)
    }

    /// Answers a stream with nothing but a status.
    pub(super) fn refuse(&mut self, id: u32, content_type: &Bytes, status: &Status) {
        let mut headers = basic_head(content_type);
        headers.extend(Status::to_trailers(Err(status)));
        if self.h2.respond(id, &headers, true).is_err() {
            self.h2.reset(id, ErrorCode::INTERNAL_ERROR);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::echo::{self, ECHO};

    #[test]
    fn a_call_that_was_answered_leaves_no_timer() {
        let (server, channel) = echo::server();
        channel.call(ECHO).send(&"a".to_owned()).unwrap();
        let connections = lock(&server.shared.connections);
        let mut links = connections.open.values().map(|(link, _)| link);
        assert!(links.all(|link| link.lock().timers.streams().is_empty()));
    }
}
