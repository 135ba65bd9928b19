//! The state of one connection, and what can be done with it.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::error::{ActionError, ConnectionError, ErrorCode};
use super::frame::{self, PREFACE, kind, setting};
use super::heads::PartialBlock;
use super::limits::{Allowance, Limits};
use super::stream::{Event, Outgoing, RecentlyReset, Stream};
use crate::hpack::{Decoder, Encoder, Header};

/// The window of every stream and connection before anything was said (RFC 9113, section 6.9.2), in octets.
pub(super) const DEFAULT_WINDOW_BYTES: u32 = 65_535;

/// The last stream number there is.
const LAST_STREAM: u32 = 0x7fff_ffff;

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opens streams with odd numbers.
    Client,
    /// Answers them.
    Server,
}

/// How far the beginning of the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handshake {
    /// So many octets of the client's preface were received.
    Preface(usize),
    /// The next frame has to be SETTINGS.
    Settings,
    Done,
}

/// What the peer's SETTINGS say.
#[derive(Debug)]
pub(super) struct PeerSettings {
    pub(super) concurrent_streams_max: u32,
    pub(super) initial_window: i64,
    pub(super) header_list_bytes_max: usize,
}

/// One HTTP/2 connection, without I/O. No method blocks.
#[derive(Debug)]
pub struct Connection {
    pub(super) role: Role,
    pub(super) limits: Limits,
    pub(super) handshake: Handshake,
    pub(super) peer: PeerSettings,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,

    pub(super) streams: HashMap<u32, Stream>,
    pub(super) recently_reset: RecentlyReset,
    /// The highest stream that the peer opened.
    pub(super) last_peer_stream: u32,
    /// The number of the next stream that we open.
    pub(super) next_stream: u32,
    /// The last stream that the other end works on, when it said GOAWAY.
    pub(super) peer_goaway: Option<u32>,
    /// The last stream that we work on, when we said GOAWAY.
    pub(super) our_goaway: Option<u32>,

    /// Octets of data that wait to be sent on all streams.
    pub(super) queued_bytes_total: usize,
    pub(super) receive_window: i64,
    pub(super) received: u32,
    pub(super) send_window: i64,
    /// Streams that may send, in turn.
    pub(super) scheduled: VecDeque<u32>,
    /// Streams with data that wait for the connection's window.
    pub(super) blocked: VecDeque<u32>,

    /// A frame that has not come whole.
    pub(super) partial_frame: Vec<u8>,
    /// A header block whose CONTINUATION frames have not all come.
    pub(super) partial_block: Option<PartialBlock>,
    /// Room for a header block on its way out.
    block: Vec<u8>,
    pub(super) control_frames: Allowance,
    pub(super) resets: Allowance,

    pub(super) events: VecDeque<Event>,
    pub(super) drained: VecDeque<u32>,
    pub(super) output: Vec<u8>,
    pub(super) error: Option<ConnectionError>,
}

impl Connection {
    /// A connection in `role`. Its output holds the preface and SETTINGS already.
    pub fn new(role: Role, mut limits: Limits) -> Self {
        for window in [
            &mut limits.stream_window_bytes,
            &mut limits.connection_window_bytes,
        ] {
            *window = (*window).max(DEFAULT_WINDOW_BYTES);
        }
        let (handshake, next_stream) = match role {
            Role::Server => (Handshake::Preface(0), 2),
            Role::Client => (Handshake::Settings, 1),
        };
        let mut connection = Self {
            role,
            handshake,
            peer: PeerSettings {
                // Until the peer speaks: what RFC 9113, section 6.5.2, recommends as the least.
                concurrent_streams_max: 100,
                initial_window: DEFAULT_WINDOW_BYTES.into(),
                header_list_bytes_max: usize::MAX,
            },
            decoder: Decoder::new(limits.header_table_bytes_max),
            encoder: Encoder::new(),
            streams: HashMap::new(),
            recently_reset: RecentlyReset::default(),
            last_peer_stream: 0,
            next_stream,
            peer_goaway: None,
            our_goaway: None,
            receive_window: limits.connection_window_bytes.into(),
            queued_bytes_total: 0,
            received: 0,
            send_window: DEFAULT_WINDOW_BYTES.into(),
            scheduled: VecDeque::new(),
            blocked: VecDeque::new(),
            partial_frame: Vec::new(),
            partial_block: None,
            block: Vec::new(),
            control_frames: Allowance::new(
                limits.control_frames_burst,
                limits.control_frames_per_second,
            ),
            resets: Allowance::new(limits.resets_burst, limits.resets_per_second),
            events: VecDeque::new(),
            drained: VecDeque::new(),
            output: Vec::new(),
            error: None,
            limits,
        };
        connection.put_preface();
        connection
    }

    fn put_preface(&mut self) {
        if self.role == Role::Client {
            self.output.extend_from_slice(PREFACE);
        }
        let limits = &self.limits;
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let table = number(limits.header_table_bytes_max);
        let list = number(limits.header_list_bytes_max);
        let (window, streams) = (limits.stream_window_bytes, limits.concurrent_streams_max);
        let settings = [
            (setting::HEADER_TABLE_SIZE, table),
            (setting::INITIAL_WINDOW_SIZE, window),
            (setting::MAX_HEADER_LIST_SIZE, list),
            match self.role {
                Role::Client => (setting::ENABLE_PUSH, 0),
                Role::Server => (setting::MAX_CONCURRENT_STREAMS, streams),
            },
        ];
        let more = limits.connection_window_bytes - DEFAULT_WINDOW_BYTES;
        let mut payload = Vec::new();
        for (identifier, value) in settings {
            payload.extend_from_slice(&u16::to_be_bytes(identifier));
            payload.extend_from_slice(&u32::to_be_bytes(value));
        }
        self.put(kind::SETTINGS, 0, 0, &payload);
        if more > 0 {
            self.put_window_update(0, more);
        }
    }

    /// Appends a frame to the output.
    pub(super) fn put(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        frame::put(&mut self.output, kind, flags, stream, payload);
    }

    pub(super) fn put_window_update(&mut self, stream: u32, by: u32) {
        self.put(kind::WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    }

    /// The next thing that happened.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Why the connection is over, if it is.
    pub fn error(&self) -> Option<ConnectionError> {
        self.error
    }

    /// Whether the peer has finished its part of the handshake.
    pub fn is_ready(&self) -> bool {
        self.handshake == Handshake::Done
    }

    /// Whether the last GOAWAY was said: from then on nothing new is accepted.
    pub fn has_said_go_away(&self) -> bool {
        self.our_goaway.is_some()
    }

    /// Whether the connection opens no more streams: either side has said GOAWAY, or all stream numbers are used.
    pub fn is_going_away(&self) -> bool {
        let is_used_up = self.next_stream > LAST_STREAM;
        self.peer_goaway.is_some() || self.our_goaway.is_some() || is_used_up
    }

    /// Whether events wait.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// The number of open streams.
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// Whether a stream can be opened at this time.
    pub fn can_open(&self) -> bool {
        self.openable().is_ok()
    }

    fn openable(&self) -> Result<(), ActionError> {
        if self.error.is_some() || self.is_going_away() {
            return Err(ActionError::NoMoreStreams);
        }
        match self.streams.len() >= self.peer.concurrent_streams_max as usize {
            true => Err(ActionError::TooManyStreams),
            false => Ok(()),
        }
    }

    /// Leaves one stream number.
    #[cfg(test)]
    pub(crate) fn use_up_streams(&mut self) {
        self.next_stream = LAST_STREAM;
    }

    /// Opens a stream with a request, the whole of it if `is_end`. Returns the stream's number.
    ///
    /// # Errors
    /// [`ActionError::TooManyStreams`] passes when a stream ends; the others need another connection or another request.
    pub fn open(&mut self, headers: &[Header], is_end: bool) -> Result<u32, ActionError> {
        self.openable()?;
        self.check_size(headers)?;
        let id = self.next_stream;
        self.next_stream += 2;
        let mut stream = Stream::new(self.limits.stream_window_bytes, self.peer.initial_window);
        stream.is_end_sent = is_end;
        self.streams.insert(id, stream);
        self.put_headers(id, headers, is_end);
        Ok(id)
    }

    fn check_size(&self, headers: &[Header]) -> Result<(), ActionError> {
        let size: usize = headers.iter().map(Header::size).sum();
        match size > self.peer.header_list_bytes_max {
            true => Err(ActionError::HeadersTooLarge),
            false => Ok(()),
        }
    }

    pub(super) fn put_headers(&mut self, id: u32, headers: &[Header], is_end: bool) {
        self.block.clear();
        self.encoder.encode(headers, &mut self.block);
        frame::put_block(&mut self.output, id, &self.block, is_end);
        self.control_frames.earn(10);
    }

    fn sending(&mut self, id: u32) -> Result<&mut Stream, ActionError> {
        let stream = self.streams.get_mut(&id);
        stream
            .filter(|stream| !stream.is_end_sent && !stream.is_end_queued)
            .ok_or(ActionError::StreamClosed)
    }

    /// Answers a stream with a header list, before any data.
    ///
    /// # Errors
    /// [`ActionError::StreamClosed`] and [`ActionError::HeadersTooLarge`].
    pub fn respond(&mut self, id: u32, list: &[Header], is_end: bool) -> Result<(), ActionError> {
        self.sending(id)?;
        self.check_size(list)?;
        self.put_headers(id, list, is_end);
        if is_end {
            self.end_sent(id);
        }
        Ok(())
    }

    /// Queues data behind what waits already, and with `is_end` the end of the stream. The caller keeps the queue short:
    /// see [`Connection::queued_bytes`].
    ///
    /// # Errors
    /// [`ActionError::StreamClosed`].
    pub fn send_data(&mut self, id: u32, data: Bytes, is_end: bool) -> Result<(), ActionError> {
        let stream = self.sending(id)?;
        let length = data.len();
        stream.outgoing_bytes += length;
        stream.is_end_queued = is_end;
        if !data.is_empty() {
            stream.outgoing.push_back(Outgoing::Data(data));
        }
        self.queued_bytes_total += length;
        self.schedule(id);
        Ok(())
    }

    /// Queues the header list that ends the stream behind all its data.
    ///
    /// # Errors
    /// [`ActionError::StreamClosed`] and [`ActionError::HeadersTooLarge`].
    pub fn send_trailers(&mut self, id: u32, headers: Vec<Header>) -> Result<(), ActionError> {
        self.check_size(&headers)?;
        let stream = self.sending(id)?;
        stream.is_end_queued = true;
        stream.outgoing.push_back(Outgoing::Trailers(headers));
        self.schedule(id);
        Ok(())
    }

    /// Octets of data that wait to be sent on the stream; none for a closed one.
    pub fn queued_bytes(&self, id: u32) -> usize {
        let stream = self.streams.get(&id);
        stream.map_or(0, |stream| stream.outgoing_bytes)
    }

    /// Octets of data that wait to be sent on all streams.
    pub fn queued_bytes_total(&self) -> usize {
        self.queued_bytes_total
    }

    /// Whether the stream is known: open, or half closed.
    pub fn is_open(&self, id: u32) -> bool {
        self.streams.contains_key(&id)
    }

    /// Ends a stream at once, in both directions. Does nothing for one that is closed.
    pub fn reset(&mut self, id: u32, code: ErrorCode) {
        if self.remove(id).is_some() {
            self.put_reset(id, code);
        }
    }

    pub(super) fn put_reset(&mut self, id: u32, code: ErrorCode) {
        self.recently_reset.insert(id);
        self.put(kind::RST_STREAM, 0, id, &code.0.to_be_bytes());
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Stream> {
        let was_full = self.streams.len() >= self.peer.concurrent_streams_max as usize;
        let removed = self.streams.remove(&id)?;
        self.queued_bytes_total -= removed.outgoing_bytes;
        if removed.is_scheduled {
            self.scheduled.retain(|other| *other != id);
            self.blocked.retain(|other| *other != id);
        }
        if was_full && self.role == Role::Client {
            self.events.push_back(Event::StreamsAvailable);
        }
        Some(removed)
    }

    /// The stream, if the peer may still send on it.
    pub(super) fn receiving(&mut self, id: u32) -> Option<&mut Stream> {
        let stream = self.streams.get_mut(&id);
        stream.filter(|stream| stream.is_receiving)
    }

    /// Tells that `bytes` octets of the stream's data need no memory any more, so that the peer may send as many again.
    pub fn consume(&mut self, id: u32, bytes: usize) {
        let half = self.limits.stream_window_bytes / 2;
        let Some(stream) = self.receiving(id) else {
            return;
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        stream.consumed = stream.consumed.saturating_add(bytes);
        if stream.consumed >= half {
            let by = std::mem::take(&mut stream.consumed);
            stream.receive_window += i64::from(by);
            self.put_window_update(id, by);
        }
    }

    /// Sends a PING. The answer comes as [`Event::Pong`].
    pub fn ping(&mut self, payload: [u8; 8]) {
        self.put(kind::PING, 0, 0, &payload);
    }

    /// Says GOAWAY before the last stream is known: the peer opens no more, while those on their way are still answered
    /// (RFC 9113, section 6.8). [`Connection::go_away`] follows a round trip later.
    pub fn announce_go_away(&mut self) {
        if self.our_goaway.is_none() {
            self.put_go_away(LAST_STREAM, ErrorCode::NO_ERROR, "");
        }
    }

    /// Says GOAWAY: streams that come later are refused, open ones continue.
    pub fn go_away(&mut self, code: ErrorCode, reason: &str) {
        if self.our_goaway.is_none() {
            self.our_goaway = Some(self.last_peer_stream);
            self.put_go_away(self.last_peer_stream, code, reason);
        }
    }

    pub(super) fn put_go_away(&mut self, last: u32, code: ErrorCode, reason: &str) {
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend_from_slice(&code.0.to_be_bytes());
        payload.extend_from_slice(reason.as_bytes());
        self.put(kind::GOAWAY, 0, 0, &payload);
    }
}
