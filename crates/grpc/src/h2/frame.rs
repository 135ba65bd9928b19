//! Frames as octets (RFC 9113, sections 4 and 6).

use super::error::{ConnectionError, ErrorCode, Violation, connection_error, protocol_error};

/// What a client sends first (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The octets before each payload.
const HEADER_BYTES: usize = 9;

/// The largest payload in either direction: what everybody accepts (RFC 9113, section 4.2). Larger frames would only make
/// control frames wait.
pub(super) const PAYLOAD_BYTES_MAX: usize = 16_384;

/// The types of frames.
pub(super) mod kind {
    pub(in super::super) const DATA: u8 = 0x0;
    pub(in super::super) const HEADERS: u8 = 0x1;
    pub(in super::super) const PRIORITY: u8 = 0x2;
    pub(in super::super) const RST_STREAM: u8 = 0x3;
    pub(in super::super) const SETTINGS: u8 = 0x4;
    pub(in super::super) const PUSH_PROMISE: u8 = 0x5;
    pub(in super::super) const PING: u8 = 0x6;
    pub(in super::super) const GOAWAY: u8 = 0x7;
    pub(in super::super) const WINDOW_UPDATE: u8 = 0x8;
    pub(in super::super) const CONTINUATION: u8 = 0x9;
}

/// The flags of frames.
pub(super) mod flag {
    pub(in super::super) const ACK: u8 = 0x1;
    pub(in super::super) const END_STREAM: u8 = 0x1;
    pub(in super::super) const END_HEADERS: u8 = 0x4;
    pub(in super::super) const PADDED: u8 = 0x8;
    pub(in super::super) const PRIORITY: u8 = 0x20;
}

/// The identifiers of settings (RFC 9113, section 6.5.2).
pub(super) mod setting {
    pub(in super::super) const HEADER_TABLE_SIZE: u16 = 0x1;
    pub(in super::super) const ENABLE_PUSH: u16 = 0x2;
    pub(in super::super) const MAX_CONCURRENT_STREAMS: u16 = 0x3;
    pub(in super::super) const INITIAL_WINDOW_SIZE: u16 = 0x4;
    pub(in super::super) const MAX_FRAME_SIZE: u16 = 0x5;
    pub(in super::super) const MAX_HEADER_LIST_SIZE: u16 = 0x6;
}

/// A frame as it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame at the front of `input`, and what follows; None while it is not whole.
    pub(super) fn decode(input: &'a [u8]) -> Result<Option<(Self, &'a [u8])>, ConnectionError> {
        let Some((frame, rest)) = input.split_at_checked(frame_bytes(input)?) else {
            return Ok(None);
        };
        let Some((&[_, _, _, kind, flags, a, b, c, d], payload)) = frame.split_first_chunk() else {
            return Ok(None);
        };
        let stream = u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff;
        let frame = Self {
            kind,
            flags,
            stream,
            payload,
        };
        Ok(Some((frame, rest)))
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The payload without its padding (RFC 9113, section 6.1).
    pub(super) fn unpadded(&self) -> Result<&'a [u8], Violation> {
        if !self.has(flag::PADDED) {
            return Ok(self.payload);
        }
        let (&padding, rest) = self.payload.split_first().ok_or_else(frame_size_error)?;
        let length = rest.len().checked_sub(usize::from(padding));
        length
            .map(|length| &rest[..length])
            .ok_or_else(|| protocol_error("padding is longer than its frame"))
    }

    /// The header block fragment of a HEADERS frame, and the stream on which it claims to depend. Priorities are ignored
    /// (RFC 9113, section 5.3.2).
    pub(super) fn fragment(&self) -> Result<(&'a [u8], Option<u32>), Violation> {
        let fragment = self.unpadded()?;
        if !self.has(flag::PRIORITY) {
            return Ok((fragment, None));
        }
        let (priority, fragment) = fragment.split_at_checked(5).ok_or_else(frame_size_error)?;
        Ok((fragment, Some(number(&priority[..4])? & 0x7fff_ffff)))
    }
}

/// The size of the frame that `input` begins with, as far as it is known: that of a header at least.
///
/// # Errors
/// FRAME_SIZE_ERROR for more than [`PAYLOAD_BYTES_MAX`].
pub(super) fn frame_bytes(input: &[u8]) -> Result<usize, ConnectionError> {
    let header: Option<&[u8; HEADER_BYTES]> = input.first_chunk();
    let Some([a, b, c, ..]) = header else {
        return Ok(HEADER_BYTES);
    };
    let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
    if length > PAYLOAD_BYTES_MAX {
        let reason = "a frame is larger than allowed";
        return Err(ConnectionError::new(ErrorCode::FRAME_SIZE_ERROR, reason));
    }
    Ok(HEADER_BYTES + length)
}

/// Appends a frame's header. Payloads come from this crate and fit 24 bits.
pub(super) fn put_header(output: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let [_, a, b, c] = (length as u32).to_be_bytes();
    output.extend_from_slice(&[a, b, c, kind, flags]);
    output.extend_from_slice(&stream.to_be_bytes());
}

/// Appends a frame.
pub(super) fn put(output: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    put_header(output, payload.len(), kind, flags, stream);
    output.extend_from_slice(payload);
}

/// Appends a header block as HEADERS and as many CONTINUATION frames as it takes.
pub(super) fn put_block(output: &mut Vec<u8>, stream: u32, block: &[u8], is_end: bool) {
    let mut flags = if is_end { flag::END_STREAM } else { 0 };
    let mut kind = kind::HEADERS;
    let mut rest = block;
    while rest.len() > PAYLOAD_BYTES_MAX {
        let (part, after) = rest.split_at(PAYLOAD_BYTES_MAX);
        put(output, kind, flags, stream, part);
        (rest, kind, flags) = (after, kind::CONTINUATION, 0);
    }
    put(output, kind, flags | flag::END_HEADERS, stream, rest);
}

/// Four octets as a number, or FRAME_SIZE_ERROR for the connection.
pub(super) fn number(payload: &[u8]) -> Result<u32, Violation> {
    let octets = payload.try_into().map_err(|_| frame_size_error())?;
    Ok(u32::from_be_bytes(octets))
}

pub(super) fn frame_size_error() -> Violation {
    connection_error(ErrorCode::FRAME_SIZE_ERROR, "a frame has a wrong size")
}
