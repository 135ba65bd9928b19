//! One stream: which halves are open, its windows, and what waits to be sent.

use std::collections::VecDeque;

use bytes::Bytes;

use super::error::ErrorCode;
use crate::hpack::Header;

/// The largest window (RFC 9113, section 6.9.1).
pub(super) const WINDOW_MAX: i64 = 0x7fff_ffff;

/// One piece of what is to be sent.
#[derive(Debug)]
pub(super) enum Outgoing {
    Data(Bytes),
    Trailers(Vec<Header>),
}

/// The state of RFC 9113, section 5.1. Streams that are idle or closed have none.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Whether the peer may still send.
    pub(super) is_receiving: bool,
    /// Whether the final header list came from the peer (informational ones do not count).
    pub(super) has_head: bool,
    /// What content-length promised and what is left of it.
    pub(super) content_left: Option<u64>,
    /// Octets that the peer may still send.
    pub(super) receive_window: i64,
    /// Octets consumed for which no WINDOW_UPDATE was sent yet.
    pub(super) consumed: u32,

    /// Whether END_STREAM was sent.
    pub(super) is_end_sent: bool,
    /// Whether END_STREAM is the last piece of `outgoing`.
    pub(super) is_end_queued: bool,
    /// Octets that we may still send. Negative when the peer made its window smaller.
    pub(super) send_window: i64,
    pub(super) outgoing: VecDeque<Outgoing>,
    /// Octets of data in `outgoing`.
    pub(super) outgoing_bytes: usize,
    /// Whether the stream is in the queue of those that may send.
    pub(super) is_scheduled: bool,
}

impl Stream {
    pub(super) fn new(receive_window: u32, send_window: i64) -> Self {
        Self {
            is_receiving: true,
            receive_window: receive_window.into(),
            send_window,
            ..Self::default()
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_end_sent && !self.is_receiving
    }

    /// False when the window would become larger than a window may be.
    pub(super) fn widen_send_window(&mut self, by: i64) -> bool {
        self.send_window += by;
        self.send_window <= WINDOW_MAX
    }

    /// Counts `length` octets of content, the last ones if `is_end`; false when content-length said otherwise (RFC 9113,
    /// section 8.1.1).
    pub(super) fn count_content(&mut self, length: usize, is_end: bool) -> bool {
        let Some(left) = self.content_left.as_mut() else {
            return true;
        };
        match left.checked_sub(length as u64) {
            Some(rest) if !is_end || rest == 0 => {
                *left = rest;
                true
            }
            _ => false,
        }
    }

    /// Whether something can be sent, apart from the connection's window.
    pub(super) fn can_send(&self) -> bool {
        match self.outgoing.front() {
            Some(Outgoing::Data(data)) => data.is_empty() || self.send_window > 0,
            Some(Outgoing::Trailers(_)) => true,
            None => self.is_end_queued && !self.is_end_sent,
        }
    }
}

/// The streams that we reset a moment ago, oldest first: what the peer sent before it heard of that is ignored
/// (RFC 9113, section 5.4.2).
#[derive(Debug, Default)]
pub(super) struct RecentlyReset(VecDeque<u32>);

impl RecentlyReset {
    /// How many are remembered. A frame for one that is forgotten is answered as for any closed stream.
    const MAX: usize = 256;

    pub(super) fn insert(&mut self, stream: u32) {
        if self.0.len() == Self::MAX {
            self.0.pop_front();
        }
        self.0.push_back(stream);
    }

    pub(super) fn contains(&self, stream: u32) -> bool {
        self.0.contains(&stream)
    }
}

/// What happened, for the driver of the connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The peer's first SETTINGS frame came: the handshake is over.
    Ready,
    /// A request's or a response's header list. Informational responses are passed over.
    Headers {
        /// The stream.
        stream: u32,
        /// The list, pseudo-header fields first.
        headers: Vec<Header>,
        /// Whether nothing follows.
        is_end: bool,
    },
    /// Octets of content. They count against the stream's window until [`Connection::consume`](super::Connection::consume).
    Data {
        /// The stream.
        stream: u32,
        /// The octets.
        data: Bytes,
        /// Whether nothing follows.
        is_end: bool,
    },
    /// The header list after the content. Nothing follows.
    Trailers {
        /// The stream.
        stream: u32,
        /// The list.
        headers: Vec<Header>,
    },
    /// The stream was ended, by the peer's RST_STREAM or by an error of the peer's that we answered with one.
    Reset {
        /// The stream.
        stream: u32,
        /// Why.
        code: ErrorCode,
    },
    /// The peer opens no more streams, or wants none: those above `last_stream` were not worked on.
    GoAway {
        /// The last stream that the peer worked on.
        last_stream: u32,
        /// Why.
        code: ErrorCode,
    },
    /// The peer answered a PING.
    Pong {
        /// What the PING carried.
        payload: [u8; 8],
    },
    /// More streams may be opened than before.
    StreamsAvailable,
}
