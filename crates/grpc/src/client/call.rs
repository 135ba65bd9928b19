//! One call at the client: its request, its attempts, its response.

use std::marker::PhantomData;
use std::sync::Arc;

use prost::Message;
use tbd_deadline::{Deadline, lock};

use super::Shared;
use super::response::{Receiving, Response, Sending};
use super::retry::Attempts;
use crate::code::Code;
use crate::h2::ActionError;
use crate::hpack::Header;
use crate::message::{self, ACCEPTED_ENCODINGS};
use crate::metadata::{Metadata, encode_timeout};
use crate::method::Method;
use crate::status::Status;

const USER_AGENT: &str = concat!("tbd-grpc/", env!("CARGO_PKG_VERSION"));

/// A call that was not sent. Its settings are those of the channel unless changed here.
#[derive(Debug)]
pub struct CallBuilder<'a, Req, Res> {
    shared: &'a Arc<Shared>,
    method: Method<Req, Res>,
    metadata: Metadata,
    deadline: Option<Deadline>,
    wait_for_ready: bool,
    gzip: bool,
    messages: PhantomData<fn(Req) -> Res>,
}

impl<'a, Req: Message, Res: Message + Default> CallBuilder<'a, Req, Res> {
    pub(super) fn new(shared: &'a Arc<Shared>, method: Method<Req, Res>) -> Self {
        Self {
            shared,
            method,
            metadata: Metadata::new(),
            deadline: None,
            wait_for_ready: false,
            gzip: false,
            messages: PhantomData,
        }
    }

    /// Sends this metadata.
    pub fn metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// The latest moment for the response's end. The server hears of it.
    pub fn deadline(mut self, deadline: Deadline) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Waits for a connection until the deadline, instead of failing with UNAVAILABLE once no server can be reached.
    pub fn wait_for_ready(mut self) -> Self {
        self.wait_for_ready = true;
        self
    }

    /// Compresses the request's messages with gzip.
    pub fn gzip(mut self) -> Self {
        self.gzip = true;
        self
    }

    /// Calls a method with one request and one response. Blocks until the response is whole, at most until the deadline.
    ///
    /// # Errors
    /// The status with which the call ended, after all retries. UNAVAILABLE also says that no server could be reached.
    pub fn send(self, request: &Req) -> Result<Res, Status> {
        Ok(self.send_for_response(request)?.message)
    }

    /// As [`CallBuilder::send`]; returns the metadata as well.
    ///
    /// # Errors
    /// As [`CallBuilder::send`].
    pub fn send_for_response(self, request: &Req) -> Result<Response<Res>, Status> {
        let message = message::encode(request, self.gzip)?;
        self.with_retries(|mut receiving| {
            receiving.send_only(message.clone());
            receiving.read_only()
        })
    }

    /// Calls a method with one request and many responses. Blocks until the response begins, at most until the deadline.
    ///
    /// # Errors
    /// As [`CallBuilder::send`], for calls that end before their response begins.
    pub fn send_for_stream(self, request: &Req) -> Result<Receiving<Res>, Status> {
        let message = message::encode(request, self.gzip)?;
        self.with_retries(|mut receiving| {
            receiving.send_only(message.clone());
            receiving.begin()?;
            Ok(receiving)
        })
    }

    /// Calls a method whose request is streamed. Blocks until there is a connection. Such calls are not repeated, since
    /// what was sent is not kept.
    ///
    /// # Errors
    /// UNAVAILABLE when no server can be reached.
    pub fn open(self) -> Result<(Sending<Req>, Receiving<Res>), Status> {
        let deadline = self.deadline_or_default();
        let receiving = self.start(deadline, 0, true)?;
        Ok((receiving.sending(self.gzip), receiving))
    }

    fn deadline_or_default(&self) -> Deadline {
        self.deadline
            .unwrap_or_else(|| Deadline::after(self.shared.pool.config.call_timeout))
    }

    /// Attempts until one succeeds or the policy says that it was the last.
    fn with_retries<T>(
        self,
        mut run: impl FnMut(Receiving<Res>) -> Result<T, Failure>,
    ) -> Result<T, Status> {
        let deadline = self.deadline_or_default();
        let mut attempts = Attempts::default();
        loop {
            let started = self.start(deadline, attempts.previous(), false);
            let failure = match started.map_err(Failure::early).and_then(&mut run) {
                Ok(value) => {
                    lock(&self.shared.throttle).succeeded();
                    return Ok(value);
                }
                Err(failure) => failure,
            };
            let Failure { status, is_early } = failure;
            if status.is_unseen() && !deadline.is_past() && attempts.after_unseen() {
                continue;
            }
            let policy = self.shared.pool.config.retry.as_ref();
            let pause = attempts.after(&status, is_early, policy, &mut lock(&self.shared.throttle));
            match pause {
                Some(pause) if pause < deadline.remaining() => {
                    self.shared.closing.wait_for(pause);
                }
                _ => return Err(status),
            }
        }
    }

    /// Opens a stream on a connection that takes one.
    fn start(
        &self,
        deadline: Deadline,
        previous: u32,
        is_flushed: bool,
    ) -> Result<Receiving<Res>, Status> {
        loop {
            let link = self.shared.pool.pick(deadline, self.wait_for_ready)?;
            match link.start_call(&self.headers(deadline, previous), is_flushed) {
                Ok(id) => return Ok(Receiving::new(Arc::clone(self.shared), link, id, deadline)),
                Err(ActionError::HeadersTooLarge) => {
                    let text = "the metadata is larger than the server accepts";
                    return Err(Status::new(Code::ResourceExhausted, text));
                }
                // Another call took the last place: the next look finds the connection full or gone.
                Err(_) => {}
            }
        }
    }

    fn headers(&self, deadline: Deadline, previous_attempts: u32) -> Vec<Header> {
        let mut headers = vec![
            Header::new(":method", "POST"),
            Header::new(":scheme", self.shared.scheme),
            Header::new(":path", self.method.path()),
            Header::new(":authority", self.shared.authority.clone()),
            Header::new("te", "trailers"),
            Header::new("content-type", "application/grpc"),
            Header::new("user-agent", USER_AGENT),
            Header::new("grpc-accept-encoding", ACCEPTED_ENCODINGS),
            Header::new("grpc-timeout", encode_timeout(deadline.remaining())),
        ];
        if self.gzip {
            headers.push(Header::new("grpc-encoding", "gzip"));
        }
        if previous_attempts > 0 {
            let attempts = previous_attempts.to_string();
            headers.push(Header::new("grpc-previous-rpc-attempts", attempts));
        }
        self.metadata.append_to(&mut headers);
        headers
    }
}

/// Why an attempt failed.
pub(super) struct Failure {
    pub(super) status: Status,
    /// Whether no response had begun: only then may the call be repeated.
    pub(super) is_early: bool,
}

impl Failure {
    pub(super) fn early(status: Status) -> Self {
        Self {
            status,
            is_early: true,
        }
    }

    pub(super) fn late(status: Status) -> Self {
        Self {
            status,
            is_early: false,
        }
    }
}
