//! A call under way, as its caller sees it.

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tbd_deadline::Deadline;

use super::Shared;
use super::call::Failure;
use crate::code::Code;
use crate::h2::{ErrorCode, find};
use crate::hpack::Header;
use crate::link::{End, Link, late};
use crate::message::{self, Encoding};
use crate::metadata::Metadata;
use crate::status::Status;

/// A response of one message, with its metadata.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Response<Res> {
    /// The message.
    pub message: Res,
    /// The metadata before it.
    pub headers: Metadata,
    /// The metadata after it.
    pub trailers: Metadata,
    /// Whether the message came compressed.
    pub is_compressed: bool,
}

/// A stream, until the last one who uses it has gone.
#[derive(Debug)]
struct Stream {
    /// A call keeps its channel open.
    _channel: Arc<Shared>,
    link: Arc<Link>,
    id: u32,
    deadline: Deadline,
}

impl Stream {
    /// A server resets a stream whose deadline has passed, which looks like a cancellation.
    fn late_or(&self, status: Status) -> Status {
        match status.code() == Code::Cancelled && self.deadline.is_past() {
            true => late(),
            false => status,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // A call that has ended is closed already, and nothing is sent.
        self.link.abandon(self.id, ErrorCode::CANCEL);
    }
}

/// The request's half of a streaming call. Dropping it before [`Sending::finish`] cancels the call.
#[derive(Debug)]
pub struct Sending<Req> {
    stream: Arc<Stream>,
    gzip: bool,
    is_finished: bool,
    message: PhantomData<fn(Req)>,
}

impl<Req: Message> Sending<Req> {
    /// Sends a message. Blocks while the server takes nothing, at most until the deadline: a server that answers as it
    /// reads takes nothing from a client that never reads.
    ///
    /// # Errors
    /// The status with which the call is over; UNKNOWN when the server has ended it well without reading all.
    pub fn send(&mut self, message: &Req) -> Result<(), Status> {
        let stream = &self.stream;
        let message = message::encode(message, self.gzip)?;
        stream.link.send(stream.id, message, false, stream.deadline)
    }

    /// Ends the request.
    pub fn finish(mut self) {
        self.is_finished = true;
        self.stream.link.end_request(self.stream.id);
    }
}

impl<Req> Drop for Sending<Req> {
    fn drop(&mut self) {
        if !self.is_finished {
            self.stream.link.abandon(self.stream.id, ErrorCode::CANCEL);
        }
    }
}

/// The response's half of a call. Dropping it before the end cancels the call.
#[derive(Debug)]
pub struct Receiving<Res> {
    stream: Arc<Stream>,
    head: Option<Head>,
    trailers: Option<Metadata>,
    message: PhantomData<fn() -> Res>,
}

/// What the response's header list says.
#[derive(Debug)]
pub(super) struct Head {
    metadata: Metadata,
    encoding: Encoding,
}

impl<Res: Message + Default> Receiving<Res> {
    pub(super) fn new(channel: Arc<Shared>, link: Arc<Link>, id: u32, deadline: Deadline) -> Self {
        Self {
            stream: Arc::new(Stream {
                _channel: channel,
                link,
                id,
                deadline,
            }),
            head: None,
            trailers: None,
            message: PhantomData,
        }
    }

    /// Sends the only message of a request.
    pub(super) fn send_only(&self, message: Bytes) {
        let stream = &self.stream;
        // What ended the stream meanwhile, an early answer maybe, is what the reader of the response finds.
        let _ = stream.link.send(stream.id, message, true, stream.deadline);
    }

    pub(super) fn sending<Req>(&self, gzip: bool) -> Sending<Req> {
        Sending {
            stream: Arc::clone(&self.stream),
            gzip,
            is_finished: false,
            message: PhantomData,
        }
    }

    /// Waits for the header list. A status instead of one is an early failure.
    pub(super) fn begin(&mut self) -> Result<&Head, Failure> {
        if self.head.is_none() {
            let head = self.read_head();
            let early = |status| Failure::early(self.stream.late_or(status));
            self.head = Some(head.map_err(early)?);
        }
        let missing = || Failure::early(no_head());
        self.head.as_ref().ok_or_else(missing)
    }

    fn read_head(&mut self) -> Result<Head, Status> {
        let stream = &self.stream;
        let (head, end) = stream.link.wait_for_head(stream.id, stream.deadline)?;
        let Some(head) = head else {
            let failure = end.as_ref().and_then(End::failure).unwrap_or_else(no_head);
            return Err(failure.seen_unless_refused(end.as_ref()));
        };
        if find(&head, "grpc-status").is_some()
            && let Some(status) = Status::from_trailers(&head)
        {
            self.trailers = Some(status.metadata().clone());
            return Err(status);
        }
        Head::read(&head)
    }

    /// The metadata before the response. Blocks until it comes, at most until the deadline.
    ///
    /// # Errors
    /// The status of a call that ends without a response.
    pub fn headers(&mut self) -> Result<&Metadata, Status> {
        let head = self.begin().map_err(|failure| failure.status)?;
        Ok(&head.metadata)
    }

    /// The next message; None when the call has ended well. Blocks until it comes, at most until the deadline.
    ///
    /// # Errors
    /// The status with which the call ended.
    pub fn next_message(&mut self) -> Result<Option<Res>, Status> {
        let next = self.next_with_flag()?;
        Ok(next.map(|(message, _)| message))
    }

    /// As [`Receiving::next_message`]; says whether the message came compressed.
    ///
    /// # Errors
    /// As [`Receiving::next_message`].
    pub fn next_with_flag(&mut self) -> Result<Option<(Res, bool)>, Status> {
        let next = self.read_next();
        next.map_err(|status| self.stream.late_or(status))
    }

    fn read_next(&mut self) -> Result<Option<(Res, bool)>, Status> {
        if self.trailers.is_some() {
            return Ok(None);
        }
        let head = self.begin().map_err(|failure| failure.status)?;
        let encoding = head.encoding;
        let stream = &self.stream;
        if let Some(received) = stream.link.receive(stream.id, stream.deadline)? {
            let is_compressed = received.is_compressed;
            let bytes_max = stream.link.config.message_bytes_max;
            let message = message::decode(received, encoding, bytes_max)?;
            return Ok(Some((message, is_compressed)));
        }
        let end = stream.link.wait_for_end(stream.id, stream.deadline)?;
        if let Some(failure) = end.failure() {
            return Err(failure);
        }
        let End::Trailers(trailers) = end else {
            return Ok(None);
        };
        self.trailers = Some(Metadata::from_headers(&trailers));
        Status::from_trailers(&trailers).map_or(Ok(None), Err)
    }

    /// The metadata after the response; None before its end.
    pub fn trailers(&self) -> Option<&Metadata> {
        self.trailers.as_ref()
    }

    /// Reads a response of one message. Blocks until the call ends, at most until the deadline.
    ///
    /// # Errors
    /// The status with which the call ended; INTERNAL for a response of no or several messages.
    pub fn only_message(mut self) -> Result<Res, Status> {
        self.read_only()
            .map(|response| response.message)
            .map_err(|failure| failure.status)
    }

    pub(super) fn read_only(&mut self) -> Result<Response<Res>, Failure> {
        self.begin()?;
        let odd = |text| Failure::late(Status::internal(text));
        let Some((message, is_compressed)) = self.next_with_flag().map_err(Failure::late)? else {
            return Err(odd("the response has no message"));
        };
        if self.next_with_flag().map_err(Failure::late)?.is_some() {
            return Err(odd("the response has several messages"));
        }
        let head = self.head.take();
        Ok(Response {
            message,
            headers: head.map(|head| head.metadata).unwrap_or_default(),
            trailers: self.trailers.take().unwrap_or_default(),
            is_compressed,
        })
    }

    /// Cancels the call. What was not received is lost.
    pub fn cancel(self) {
        self.stream.link.abandon(self.stream.id, ErrorCode::CANCEL);
    }

    /// What cancels the call from another thread.
    pub fn canceller(&self) -> Canceller {
        Canceller {
            link: Arc::clone(&self.stream.link),
            id: self.stream.id,
        }
    }
}

impl<Res> Drop for Receiving<Res> {
    fn drop(&mut self) {
        // Whoever still sends would wait for a server that waits for this reader. The last user of a stream ends it anyway.
        if Arc::strong_count(&self.stream) > 1 {
            self.stream.link.cancel(self.stream.id);
        }
    }
}

impl<Res: Message + Default> Iterator for Receiving<Res> {
    type Item = Result<Res, Status>;

    /// The next message, or once the status of a call that failed.
    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_message();
        if next.is_err() {
            self.trailers.get_or_insert_with(Metadata::new);
        }
        next.transpose()
    }
}

/// Cancels a call from any thread. The thread that waits for it gets CANCELLED.
#[derive(Clone, Debug)]
pub struct Canceller {
    link: Arc<Link>,
    id: u32,
}

impl Canceller {
    /// Cancels the call, if it has not ended.
    pub fn cancel(&self) {
        self.link.cancel(self.id);
    }
}

impl Head {
    fn read(list: &[Header]) -> Result<Self, Status> {
        let http_status = find(list, ":status").unwrap_or_default();
        if http_status != b"200" {
            let text = format!("HTTP status {}", http_status.escape_ascii());
            return Err(Status::new(Code::from_http(http_status), text));
        }
        let content_type = find(list, "content-type").unwrap_or_default();
        if !content_type.starts_with(b"application/grpc") {
            let content_type = content_type.escape_ascii();
            let text = format!("the response's content type is {content_type}");
            return Err(Status::new(Code::Unknown, text));
        }
        let encoding = Encoding::from_header(find(list, "grpc-encoding"))
            .map_err(|status| Status::internal(status.message()))?;
        Ok(Self {
            metadata: Metadata::from_headers(list),
            encoding,
        })
    }
}

fn no_head() -> Status {
    Status::internal("the response has no header list")
}
