//! The way of a frame in (RFC 9113, section 6): checks, and what each type does.

use std::time::Instant;

use bytes::Bytes;

use super::connection::{Connection, Handshake, Role};
use super::error::{ConnectionError, ErrorCode, Violation, connection_error, protocol_error};
use super::frame::{
    self, FrameHeader, HEADER_BYTES, PREFACE, flag, frame_size_error, kind, number,
};
use super::stream::{Event, WINDOW_MAX};

/// The largest payload that we accept: SETTINGS_MAX_FRAME_SIZE is left at its default.
const PAYLOAD_BYTES_MAX: usize = frame::DEFAULT_PAYLOAD_BYTES;

impl Connection {
    /// Takes in what was received at `now`, in pieces of any size.
    ///
    /// # Errors
    /// The connection is over. The output holds the GOAWAY frame that says why; it should be sent before closing.
    pub fn receive(&mut self, input: &[u8], now: Instant) -> Result<(), ConnectionError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        match self.receive_all(input, now) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.fail(error)),
        }
    }

    fn fail(&mut self, error: ConnectionError) -> ConnectionError {
        self.error = Some(error);
        self.put_go_away(self.last_peer_stream, error.code, error.reason);
        self.streams.clear();
        self.queued_bytes_total = 0;
        self.partial_frame = Vec::new();
        self.partial_block = None;
        error
    }

    fn receive_all(&mut self, input: &[u8], now: Instant) -> Result<(), ConnectionError> {
        let mut input = self.receive_preface(input)?;
        while !input.is_empty() {
            if self.partial_frame.is_empty()
                && let Some((header, payload, rest)) = whole_frame(input)?
            {
                self.receive_frame(header, payload, now)?;
                input = rest;
                continue;
            }
            // The frame comes in pieces: first its header, then as much as the header says.
            let wanted = match self.partial_frame.first_chunk() {
                Some(header) => HEADER_BYTES + checked_length(FrameHeader::decode(header))?,
                None => HEADER_BYTES,
            };
            let missing = wanted - self.partial_frame.len();
            let (piece, rest) = input.split_at(missing.min(input.len()));
            self.partial_frame.extend_from_slice(piece);
            input = rest;
            let partial = std::mem::take(&mut self.partial_frame);
            match whole_frame(&partial)? {
                Some((header, payload, _)) => self.receive_frame(header, payload, now)?,
                None => self.partial_frame = partial,
            }
        }
        Ok(())
    }

    /// Takes the rest of the client's preface off the input.
    fn receive_preface<'a>(&mut self, input: &'a [u8]) -> Result<&'a [u8], ConnectionError> {
        let Handshake::Preface(received) = self.handshake else {
            return Ok(input);
        };
        let expected = &PREFACE[received..];
        let (piece, rest) = input.split_at(expected.len().min(input.len()));
        if !expected.starts_with(piece) {
            return Err(ConnectionError {
                code: ErrorCode::PROTOCOL_ERROR,
                reason: "the peer does not speak HTTP/2",
            });
        }
        let received = received + piece.len();
        self.handshake = if received == PREFACE.len() {
            Handshake::Settings
        } else {
            Handshake::Preface(received)
        };
        Ok(rest)
    }

    fn receive_frame(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), ConnectionError> {
        match self.dispatch(header, payload, now) {
            Ok(()) => Ok(()),
            Err(Violation::Connection(error)) => Err(error),
            Err(Violation::Stream(id, code)) => {
                // A peer can make us reset its streams as well as reset them itself, and both cost the same.
                self.charge_reset(now)?;
                if self.remove(id).is_some() {
                    self.events.push_back(Event::Reset { stream: id, code });
                }
                self.put_reset(id, code);
                Ok(())
            }
        }
    }

    pub(super) fn charge(&mut self, now: Instant) -> Result<(), ConnectionError> {
        if self.control_frames.take(now) {
            return Ok(());
        }
        Err(ConnectionError {
            code: ErrorCode::ENHANCE_YOUR_CALM,
            reason: "too many frames that carry nothing",
        })
    }

    fn charge_reset(&mut self, now: Instant) -> Result<(), ConnectionError> {
        if self.role == Role::Client || self.resets.take(now) {
            return Ok(());
        }
        Err(ConnectionError {
            code: ErrorCode::ENHANCE_YOUR_CALM,
            reason: "too many streams were reset",
        })
    }

    fn dispatch(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), Violation> {
        if self.handshake == Handshake::Settings
            && (header.kind != kind::SETTINGS || header.has(flag::ACK))
        {
            return Err(protocol_error("the first frame is not SETTINGS"));
        }
        if self.partial_block.is_some() && header.kind != kind::CONTINUATION {
            return Err(protocol_error("a header block is interrupted"));
        }
        let is_control = !matches!(
            header.kind,
            kind::DATA | kind::HEADERS | kind::CONTINUATION | kind::RST_STREAM
        );
        if is_control {
            self.charge(now).map_err(Violation::Connection)?;
        }
        match header.kind {
            kind::DATA => self.receive_data(header, payload, now),
            kind::HEADERS => self.receive_headers(header, payload, now),
            kind::PRIORITY => self.receive_priority(header, payload),
            kind::RST_STREAM => self.receive_reset(header, payload, now),
            kind::SETTINGS => self.receive_settings(header, payload),
            kind::PUSH_PROMISE => Err(protocol_error("server push is not enabled")),
            kind::PING => self.receive_ping(header, payload),
            kind::GOAWAY => self.receive_go_away(header, payload),
            kind::WINDOW_UPDATE => self.receive_window_update(header, payload),
            kind::CONTINUATION => self.receive_continuation(header, payload, now),
            // Unknown types are ignored (RFC 9113, section 5.5).
            _ => Ok(()),
        }
    }

    /// Whether nobody has opened the stream yet.
    pub(super) fn is_idle(&self, id: u32) -> bool {
        let is_ours = (id % 2 == 1) == (self.role == Role::Client);
        if is_ours {
            id >= self.next_stream()
        } else {
            id > self.last_peer_stream
        }
    }

    fn receive_data(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), Violation> {
        let id = header.stream;
        if id == 0 || self.is_idle(id) {
            return Err(protocol_error("DATA on a stream that is not open"));
        }
        let data = frame::without_padding(header, payload)?;
        let is_end = header.has(flag::END_STREAM);
        if data.is_empty() && !is_end {
            self.charge(now).map_err(Violation::Connection)?;
        }
        self.count_received(payload.len())?;
        let Some(stream) = self
            .streams
            .get_mut(&id)
            .filter(|stream| stream.is_receiving)
        else {
            if self.recently_reset.contains(id) {
                return Ok(());
            }
            return Err(Violation::Stream(id, ErrorCode::STREAM_CLOSED));
        };
        stream.receive_window -= payload.len() as i64;
        if stream.receive_window < 0 {
            return Err(Violation::Stream(id, ErrorCode::FLOW_CONTROL_ERROR));
        }
        // Content before a response's header list, or beyond what content-length says, is malformed.
        if !stream.has_head || !stream.count_content(data.len(), is_end) {
            return Err(Violation::Stream(id, ErrorCode::PROTOCOL_ERROR));
        }
        if !data.is_empty() {
            self.control_frames.earn(10);
        }
        self.consume(id, payload.len() - data.len());
        self.events.push_back(Event::Data {
            stream: id,
            data: Bytes::copy_from_slice(data),
            is_end,
        });
        if is_end {
            self.end_received(id);
        }
        Ok(())
    }

    /// The connection's window only bounds what is on its way: what has come is the streams' concern.
    fn count_received(&mut self, length: usize) -> Result<(), Violation> {
        self.receive_window -= length as i64;
        if self.receive_window < 0 {
            return Err(connection_error(
                ErrorCode::FLOW_CONTROL_ERROR,
                "more data than the connection's window allows",
            ));
        }
        self.received += length as u32;
        if self.received >= self.limits.connection_window_bytes / 2 {
            let by = std::mem::take(&mut self.received);
            self.receive_window += i64::from(by);
            self.put_window_update(0, by);
        }
        Ok(())
    }

    /// The peer's half has ended.
    pub(super) fn end_received(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.is_receiving = false;
            if stream.is_closed() {
                self.remove(id);
            }
        }
    }

    fn receive_priority(&mut self, header: FrameHeader, payload: &[u8]) -> Result<(), Violation> {
        if header.stream == 0 {
            return Err(protocol_error("PRIORITY on stream 0"));
        }
        let Some(dependency) = payload.first_chunk().filter(|_| payload.len() == 5) else {
            return Err(Violation::Stream(
                header.stream,
                ErrorCode::FRAME_SIZE_ERROR,
            ));
        };
        if u32::from_be_bytes(*dependency) & 0x7fff_ffff == header.stream {
            return Err(Violation::Stream(header.stream, ErrorCode::PROTOCOL_ERROR));
        }
        Ok(())
    }

    fn receive_reset(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), Violation> {
        let (id, code) = (header.stream, ErrorCode(number(payload)?));
        if id == 0 || self.is_idle(id) {
            return Err(protocol_error("RST_STREAM on a stream that is not open"));
        }
        if self.remove(id).is_some() {
            self.charge_reset(now).map_err(Violation::Connection)?;
            self.events.push_back(Event::Reset { stream: id, code });
        } else {
            // The stream has ended here, and the peer did not know yet: no work was in vain.
            self.charge(now).map_err(Violation::Connection)?;
        }
        Ok(())
    }

    fn receive_ping(&mut self, header: FrameHeader, payload: &[u8]) -> Result<(), Violation> {
        if header.stream != 0 {
            return Err(protocol_error("PING on a stream"));
        }
        let payload: [u8; 8] = payload.try_into().map_err(|_| frame_size_error())?;
        if header.has(flag::ACK) {
            self.events.push_back(Event::Pong { payload });
        } else {
            frame::put(&mut self.output, kind::PING, flag::ACK, 0, &payload);
        }
        Ok(())
    }

    fn receive_go_away(&mut self, header: FrameHeader, payload: &[u8]) -> Result<(), Violation> {
        if header.stream != 0 {
            return Err(protocol_error("GOAWAY on a stream"));
        }
        let (fixed, _debug) = payload.split_at_checked(8).ok_or_else(frame_size_error)?;
        let last_stream = number(&fixed[..4])? & 0x7fff_ffff;
        let code = ErrorCode(number(&fixed[4..])?);
        // A later GOAWAY may only name an earlier stream.
        let last_stream = self
            .peer_goaway
            .map_or(last_stream, |before| before.min(last_stream));
        self.peer_goaway = Some(last_stream);
        self.events.push_back(Event::GoAway { last_stream, code });
        if self.role == Role::Client {
            let mut refused: Vec<u32> = self
                .streams
                .keys()
                .copied()
                .filter(|id| *id > last_stream)
                .collect();
            refused.sort_unstable();
            for id in refused {
                self.remove(id);
                self.recently_reset.insert(id);
                self.events.push_back(Event::Reset {
                    stream: id,
                    code: ErrorCode::REFUSED_STREAM,
                });
            }
        }
        Ok(())
    }

    fn receive_window_update(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
    ) -> Result<(), Violation> {
        let (id, by) = (header.stream, i64::from(number(payload)? & 0x7fff_ffff));
        if id == 0 {
            if by == 0 {
                return Err(protocol_error("WINDOW_UPDATE by nothing"));
            }
            self.send_window += by;
            if self.send_window > WINDOW_MAX {
                return Err(connection_error(
                    ErrorCode::FLOW_CONTROL_ERROR,
                    "the connection's window is too large",
                ));
            }
            self.unblock();
            return Ok(());
        }
        if self.is_idle(id) {
            return Err(protocol_error("WINDOW_UPDATE on a stream that is not open"));
        }
        if by == 0 {
            return Err(Violation::Stream(id, ErrorCode::PROTOCOL_ERROR));
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream
                .widen_send_window(by)
                .map_err(|_| Violation::Stream(id, ErrorCode::FLOW_CONTROL_ERROR))?;
            self.schedule(id);
        }
        Ok(())
    }
}

/// The length that a frame's header claims, unless it is more than we accept.
fn checked_length(header: FrameHeader) -> Result<usize, ConnectionError> {
    if header.length <= PAYLOAD_BYTES_MAX {
        return Ok(header.length);
    }
    Err(ConnectionError {
        code: ErrorCode::FRAME_SIZE_ERROR,
        reason: "a frame is larger than allowed",
    })
}

type WholeFrame<'a> = Option<(FrameHeader, &'a [u8], &'a [u8])>;

/// The frame at the front of `input`, its payload, and what follows; None while it is not whole.
fn whole_frame(input: &[u8]) -> Result<WholeFrame<'_>, ConnectionError> {
    let Some((header, rest)) = input.split_first_chunk() else {
        return Ok(None);
    };
    let header = FrameHeader::decode(header);
    let payload = rest.split_at_checked(checked_length(header)?);
    Ok(payload.map(|(payload, rest)| (header, payload, rest)))
}
