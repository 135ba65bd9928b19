//! Exchange: what one stream has received, for the thread that handles it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar};

use bytes::Bytes;

use crate::code::Code;
use crate::h2::ErrorCode;
use crate::hpack::Header;
use crate::message::{Assembler, Received};
use crate::metadata::Metadata;
use crate::status::Status;

/// How the peer's half of a stream ended.
#[derive(Clone, Debug)]
pub(crate) enum End {
    /// With trailers, or without any.
    Trailers(Vec<Header>),
    /// By RST_STREAM.
    Reset(ErrorCode),
    /// By an error that was found here.
    Failed(Status),
    /// The connection broke.
    Lost(Status),
}

impl Status {
    /// Whether a stream's end shows that no server has worked on it (RFC 9113, section 8.7).
    pub(crate) fn seen_unless_refused(self, end: Option<&End>) -> Self {
        match end {
            Some(End::Reset(ErrorCode::REFUSED_STREAM)) => self.unseen(),
            _ => self,
        }
    }
}

/// The status of a stream that ends because its connection does.
pub(crate) fn draining() -> Status {
    Status::unavailable("the connection is about to be closed")
}

/// The status of a call whose time is over.
pub(crate) fn late() -> Status {
    Status::new(Code::DeadlineExceeded, "the deadline has passed")
}

impl End {
    /// The status of a call that ended so; None when the trailers decide.
    pub(crate) fn failure(&self) -> Option<Status> {
        match self {
            Self::Trailers(_) => None,
            Self::Reset(code) => Some(Status::new(
                Code::from_reset(*code),
                format!("the stream was reset by the peer: {code}"),
            )),
            Self::Failed(status) | Self::Lost(status) => Some(status.clone()),
        }
    }
}

/// One stream's state, guarded by the connection's lock.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// The response's header list, at a client.
    pub(crate) head: Option<Vec<Header>>,
    /// The request's metadata, at a server.
    pub(crate) metadata: Option<Arc<Metadata>>,
    assembler: Assembler,
    messages: VecDeque<Received>,
    /// Octets that count against the stream's window until the messages are taken.
    held: usize,
    /// Whether the response's header list was sent, by a server.
    pub(crate) is_answered: bool,
    /// Whether its handler ends instead of waiting once the connection drains.
    pub(crate) ends_with_drain: bool,
    /// Whether the thread that handles the stream was woken.
    pub(crate) is_woken: bool,
    /// Whether content is read and thrown away.
    pub(crate) is_discarding: bool,
    pub(crate) end: Option<End>,
    /// Whether the peer's half has ended, whatever else is to come.
    pub(crate) is_remote_done: bool,
    /// Wakes those who wait for a change, if there are any: waking nobody would be a system call, too.
    pub(crate) changed: Option<Arc<Condvar>>,
}

impl Exchange {
    /// Takes in content. Returns how many octets need no memory of their own any more.
    ///
    /// The peer may continue a message that is not whole, up to the limit on messages; beyond a whole one that nobody
    /// has taken it has only the window. So a stream takes at most one message and one window.
    pub(crate) fn receive(
        &mut self,
        data: &Bytes,
        message_bytes_max: usize,
    ) -> Result<usize, Status> {
        if self.is_discarding || self.end.is_some() {
            return Ok(data.len());
        }
        self.assembler
            .push(data, message_bytes_max, &mut self.messages)?;
        self.held += data.len();
        Ok(self.released())
    }

    /// Octets in memory, those of empty messages among them.
    pub(crate) fn buffered(&self) -> usize {
        let messages = self
            .messages
            .iter()
            .map(|message| message.payload.len() + size_of::<Received>());
        self.assembler.len() + messages.sum::<usize>()
    }

    /// The next message, and the octets that need no memory any more.
    pub(crate) fn take(&mut self) -> Option<(Received, usize)> {
        let message = self.messages.pop_front()?;
        Some((message, self.released()))
    }

    /// Octets that need no memory any more: all, once no whole message waits.
    fn released(&mut self) -> usize {
        match self.messages.is_empty() {
            true => std::mem::take(&mut self.held),
            false => 0,
        }
    }

    /// Whether content ended within a message.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.assembler.len() > 0
    }

    /// The number of whole messages that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.messages.len()
    }

    pub(crate) fn finish(&mut self, end: End) {
        if self.end.is_none() {
            if !matches!(end, End::Trailers(_)) {
                self.messages.clear();
            }
            self.end = Some(end);
        }
        self.is_remote_done = true;
        self.notify();
    }

    /// Lets those who wait look again.
    pub(crate) fn notify(&mut self) {
        if let Some(changed) = self.changed.take() {
            changed.notify_all();
        }
    }
}
