//! The way of a frame in (RFC 9113, section 6): checks, and what each type does.

use std::time::Instant;

use bytes::Bytes;

use super::connection::{Connection, Handshake, Role};
use super::error::{ConnectionError, ErrorCode, Violation, connection_error, protocol_error};
use super::frame::{Frame, PREFACE, flag, frame_bytes, frame_size_error, kind, number};
use super::stream::{Event, WINDOW_MAX};

impl Connection {
    /// Takes in what was received at `now`, in pieces of any size.
    ///
    /// # Errors
    /// The connection is over. The output holds the GOAWAY frame that says why; it should be sent before closing.
    pub fn receive(&mut self, input: &[u8], now: Instant) -> Result<(), ConnectionError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        self.control_frames.refill(now);
        self.resets.refill(now);
        self.receive_all(input).map_err(|error| self.fail(error))
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

    fn receive_all(&mut self, input: &[u8]) -> Result<(), ConnectionError> {
        let mut input = self.receive_preface(input)?;
        while !input.is_empty() {
            if self.partial_frame.is_empty()
                && let Some((frame, rest)) = Frame::decode(input)?
            {
                self.receive_frame(frame)?;
                input = rest;
                continue;
            }
            // The frame comes in pieces: first its header, then as much as the header says.
            let missing = frame_bytes(&self.partial_frame)? - self.partial_frame.len();
            let (piece, rest) = input.split_at(missing.min(input.len()));
            self.partial_frame.extend_from_slice(piece);
            input = rest;
            let partial = std::mem::take(&mut self.partial_frame);
            match Frame::decode(&partial)? {
                Some((frame, _)) => self.receive_frame(frame)?,
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
            let reason = "the peer does not speak HTTP/2";
            return Err(ConnectionError::new(ErrorCode::PROTOCOL_ERROR, reason));
        }
        self.handshake = match piece.len() == expected.len() {
            true => Handshake::Settings,
            false => Handshake::Preface(received + piece.len()),
        };
        Ok(rest)
    }

    fn receive_frame(&mut self, frame: Frame<'_>) -> Result<(), ConnectionError> {
        match self.dispatch(frame) {
            Ok(()) => Ok(()),
            Err(Violation::Connection(error)) => Err(error),
            Err(Violation::Stream(id, code)) => {
                // A peer can make us reset its streams as well as reset them itself, and both cost the same.
                self.charge_reset()?;
                if self.remove(id).is_some() {
                    self.events.push_back(Event::Reset { stream: id, code });
                }
                self.put_reset(id, code);
                Ok(())
            }
        }
    }

    /// Counts a frame that costs work and carries nothing.
    pub(super) fn charge(&mut self) -> Result<(), ConnectionError> {
        if self.control_frames.take() {
            return Ok(());
        }
        let reason = "too many frames that carry nothing";
        Err(ConnectionError::new(ErrorCode::ENHANCE_YOUR_CALM, reason))
    }

    fn charge_reset(&mut self) -> Result<(), ConnectionError> {
        if self.role == Role::Client || self.resets.take() {
            return Ok(());
        }
        let reason = "too many streams were reset";
        Err(ConnectionError::new(ErrorCode::ENHANCE_YOUR_CALM, reason))
    }

    fn dispatch(&mut self, frame: Frame<'_>) -> Result<(), Violation> {
        let is_settings = frame.kind == kind::SETTINGS && !frame.has(flag::ACK);
        if self.handshake == Handshake::Settings && !is_settings {
            return Err(protocol_error("the first frame is not SETTINGS"));
        }
        if self.partial_block.is_some() && frame.kind != kind::CONTINUATION {
            return Err(protocol_error("a header block is interrupted"));
        }
        match frame.kind {
            kind::DATA => return self.receive_data(frame),
            kind::HEADERS => return self.receive_headers(frame),
            kind::CONTINUATION => return self.receive_continuation(frame),
            kind::RST_STREAM => return self.receive_reset(frame),
            _ => self.charge()?,
        }
        match frame.kind {
            kind::PRIORITY => self.receive_priority(frame),
            kind::SETTINGS => self.receive_settings(frame),
            kind::PUSH_PROMISE => Err(protocol_error("server push is not enabled")),
            kind::PING => self.receive_ping(frame),
            kind::GOAWAY => self.receive_go_away(frame),
            kind::WINDOW_UPDATE => self.receive_window_update(frame),
            // Unknown types are ignored (RFC 9113, section 5.5).
            _ => Ok(()),
        }
    }

    /// Whether nobody has opened the stream yet.
    pub(super) fn is_idle(&self, id: u32) -> bool {
        let is_ours = (id % 2 == 1) == (self.role == Role::Client);
        if is_ours {
            id >= self.next_stream
        } else {
            id > self.last_peer_stream
        }
    }

    /// Whether we may have reset a closed stream, so that what still comes on it is ignored. A client may reset more of
    /// them in a round trip than are remembered, and must not end its other calls for that.
    pub(super) fn was_reset(&self, id: u32) -> bool {
        self.role == Role::Client || self.recently_reset.contains(id)
    }

    fn receive_data(&mut self, frame: Frame<'_>) -> Result<(), Violation> {
        let id = frame.stream;
        if id == 0 || self.is_idle(id) {
            return Err(protocol_error("DATA on a stream that is not open"));
        }
        let data = frame.unpadded()?;
        let is_end = frame.has(flag::END_STREAM);
        if data.is_empty() && !is_end {
            self.charge()?;
        }
        self.count_received(frame.payload.len())?;
        let Some(stream) = self.receiving(id) else {
            if self.was_reset(id) {
                return Ok(());
            }
            return Err(Violation::Stream(id, ErrorCode::STREAM_CLOSED));
        };
        stream.receive_window -= frame.payload.len() as i64;
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
        self.consume(id, frame.payload.len() - data.len());
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
            let reason = "more data than the connection's window allows";
            return Err(connection_error(ErrorCode::FLOW_CONTROL_ERROR, reason));
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

    fn receive_priority(&mut self, frame: Frame<'_>) -> Result<(), Violation> {
        let id = frame.stream;
        if id == 0 {
            return Err(protocol_error("PRIORITY on stream 0"));
        }
        let Ok([a, b, c, d, _weight]) = <[u8; 5]>::try_from(frame.payload) else {
            return Err(Violation::Stream(id, ErrorCode::FRAME_SIZE_ERROR));
        };
        if u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff == id {
            return Err(Violation::Stream(id, ErrorCode::PROTOCOL_ERROR));
        }
        Ok(())
    }

    fn receive_reset(&mut self, frame: Frame<'_>) -> Result<(), Violation> {
        let (id, code) = (frame.stream, ErrorCode(number(frame.payload)?));
        if id == 0 || self.is_idle(id) {
            return Err(protocol_error("RST_STREAM on a stream that is not open"));
        }
        if self.remove(id).is_some() {
            self.charge_reset()?;
            self.events.push_back(Event::Reset { stream: id, code });
        } else {
            // The stream has ended here, and the peer did not know yet: no work was in vain.
            self.charge()?;
        }
        Ok(())
    }

    fn receive_ping(&mut self, frame: Frame<'_>) -> Result<(), Violation> {
        if frame.stream != 0 {
            return Err(protocol_error("PING on a stream"));
        }
        let payload = frame.payload.try_into().map_err(|_| frame_size_error())?;
        if frame.has(flag::ACK) {
            self.events.push_back(Event::Pong { payload });
        } else {
            self.put(kind::PING, flag::ACK, 0, &payload);
        }
        Ok(())
    }

    fn receive_go_away(&mut self, frame: Frame<'_>) -> Result<(), Violation> {
        if frame.stream != 0 {
            return Err(protocol_error("GOAWAY on a stream"));
        }
        let (fixed, _debug) = frame
            .payload
            .split_at_checked(8)
            .ok_or_else(frame_size_error)?;
        let code = ErrorCode(number(&fixed[4..])?);
        // A later GOAWAY may only name an earlier stream.
        let before = self.peer_goaway.unwrap_or(u32::MAX);
        let last_stream = before.min(number(&fixed[..4])? & 0x7fff_ffff);
        self.peer_goaway = Some(last_stream);
        self.events.push_back(Event::GoAway { last_stream, code });
        if self.role == Role::Client {
            let open = self.streams.keys().copied();
            let mut refused: Vec<u32> = open.filter(|id| *id > last_stream).collect();
            refused.sort_unstable();
            for stream in refused {
                self.remove(stream);
                self.recently_reset.insert(stream);
                let code = ErrorCode::REFUSED_STREAM;
                self.events.push_back(Event::Reset { stream, code });
            }
        }
        Ok(())
    }

    fn receive_window_update(&mut self, frame: Frame<'_>) -> Result<(), Violation> {
        let id = frame.stream;
        let by = i64::from(number(frame.payload)? & 0x7fff_ffff);
        if id == 0 {
            if by == 0 {
                return Err(protocol_error("WINDOW_UPDATE by nothing"));
            }
            self.send_window += by;
            if self.send_window > WINDOW_MAX {
                let reason = "the connection's window is too large";
                return Err(connection_error(ErrorCode::FLOW_CONTROL_ERROR, reason));
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
            if !stream.widen_send_window(by) {
                return Err(Violation::Stream(id, ErrorCode::FLOW_CONTROL_ERROR));
            }
            self.schedule(id);
        }
        Ok(())
    }
}
