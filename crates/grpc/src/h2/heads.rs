//! Header blocks in: CONTINUATION, decompression, and what the list is (RFC 9113, sections 4.3, 6.2, 6.10 and 8.1).

use super::connection::{Connection, Role};
use super::error::{ErrorCode, Violation, connection_error, protocol_error};
use super::fields::{self, ListKind};
use super::frame::{Frame, flag};
use super::stream::{Event, Stream};
use crate::hpack::{Header, ListSize};

/// A header block whose frames have not all come.
#[derive(Debug)]
pub(super) struct PartialBlock {
    stream: u32,
    is_end: bool,
    /// Whether the frame made the stream depend on itself (RFC 7540, section 5.3.1).
    is_circular: bool,
    block: Vec<u8>,
    continuations: u32,
}

impl Connection {
    pub(super) fn receive_headers(&mut self, frame: Frame<'_>) -> Result<(), Violation> {
        let id = frame.stream;
        if id == 0 || (self.role == Role::Server && id.is_multiple_of(2)) {
            let reason = "HEADERS on a stream that a client cannot open";
            return Err(protocol_error(reason));
        }
        if self.role == Role::Client && self.is_idle(id) {
            return Err(protocol_error("a response to no request"));
        }
        let (fragment, dependency) = frame.fragment()?;
        let block = PartialBlock {
            stream: id,
            is_end: frame.has(flag::END_STREAM),
            is_circular: dependency == Some(id),
            block: fragment.to_vec(),
            continuations: 0,
        };
        self.add_to_block(block, frame.has(flag::END_HEADERS))
    }

    pub(super) fn receive_continuation(&mut self, frame: Frame<'_>) -> Result<(), Violation> {
        let mut block = match self.partial_block.take() {
            Some(block) if block.stream == frame.stream => block,
            _ => return Err(protocol_error("CONTINUATION of no header block")),
        };
        block.continuations += 1;
        block.block.extend_from_slice(frame.payload);
        self.add_to_block(block, frame.has(flag::END_HEADERS))
    }

    fn add_to_block(&mut self, block: PartialBlock, is_whole: bool) -> Result<(), Violation> {
        // What is longer than this cannot be a list within the limit, and reading it only costs.
        let is_too_long = block.block.len() > 2 * self.limits.header_list_bytes_max;
        if is_too_long || block.continuations > self.limits.continuation_frames_max {
            let reason = "a header block is too long";
            return Err(connection_error(ErrorCode::ENHANCE_YOUR_CALM, reason));
        }
        if is_whole {
            return self.receive_block(block);
        }
        self.partial_block = Some(block);
        Ok(())
    }

    /// Every block is decoded, also one for a stream that is refused: the tables have to stay equal.
    fn receive_block(&mut self, block: PartialBlock) -> Result<(), Violation> {
        let (id, bytes_max) = (block.stream, self.limits.header_list_bytes_max);
        let mut headers = Vec::with_capacity(16);
        let decoded = self.decoder.decode(&block.block, bytes_max, &mut headers);
        let Ok(size) = decoded else {
            let reason = "a header block cannot be decoded";
            return Err(connection_error(ErrorCode::COMPRESSION_ERROR, reason));
        };
        if self.role == Role::Server && self.is_idle(id) {
            self.accept(id)?;
        } else if !self.streams.contains_key(&id) {
            if self.was_reset(id) {
                return Ok(self.charge()?);
            }
            let reason = "HEADERS on a closed stream";
            return Err(connection_error(ErrorCode::STREAM_CLOSED, reason));
        }
        if block.is_circular {
            return Err(Violation::Stream(id, ErrorCode::PROTOCOL_ERROR));
        }
        if size == ListSize::Exceeded {
            return Err(Violation::Stream(id, ErrorCode::ENHANCE_YOUR_CALM));
        }
        self.receive_list(id, headers, block.is_end)
    }

    /// A stream that the peer opens.
    fn accept(&mut self, id: u32) -> Result<(), Violation> {
        self.last_peer_stream = id;
        let is_full = self.streams.len() >= self.limits.concurrent_streams_max as usize;
        if is_full || self.our_goaway.is_some() {
            return Err(Violation::Stream(id, ErrorCode::REFUSED_STREAM));
        }
        let stream = Stream::new(self.limits.stream_window_bytes, self.peer.initial_window);
        self.streams.insert(id, stream);
        Ok(())
    }

    fn receive_list(&mut self, id: u32, list: Vec<Header>, is_end: bool) -> Result<(), Violation> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(());
        };
        if !stream.is_receiving {
            return Err(Violation::Stream(id, ErrorCode::STREAM_CLOSED));
        }
        let kind = match self.role {
            _ if stream.has_head => ListKind::Trailers,
            Role::Server => ListKind::Request,
            Role::Client => ListKind::Response,
        };
        let malformed = Violation::Stream(id, ErrorCode::PROTOCOL_ERROR);
        let Ok(content_length) = fields::check(kind, &list) else {
            return Err(malformed);
        };
        if kind == ListKind::Response && fields::status(&list).is_ok_and(|status| status < 200) {
            return if is_end { Err(malformed) } else { Ok(()) };
        }
        let is_trailers = kind == ListKind::Trailers;
        if !is_trailers {
            stream.has_head = true;
            stream.content_left = content_length;
            self.control_frames.earn(10);
        }
        if (is_trailers && !is_end) || (is_end && !stream.count_content(0, true)) {
            return Err(malformed);
        }
        self.events.push_back(match is_trailers {
            true => Event::Trailers {
                stream: id,
                headers: list,
            },
            false => Event::Headers {
                stream: id,
                headers: list,
                is_end,
            },
        });
        if is_end {
            self.end_received(id);
        }
        Ok(())
    }
}
