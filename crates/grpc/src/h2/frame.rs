//! Frames as octets (RFC 9113, sections 4 and 6).

use super::error::{ErrorCode, Violation, connection_error, protocol_error};

/// What a client sends first (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The octets before each payload.
pub(super) const HEADER_BYTES: usize = 9;

/// The largest frame that everybody accepts (RFC 9113, section 4.2).
pub(super) const DEFAULT_PAYLOAD_BYTES: usize = 16_384;

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

/// The header of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameHeader {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl FrameHeader {
    pub(super) fn decode(octets: &[u8; HEADER_BYTES]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = *octets;
        Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
        }
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
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
pub(super) fn put_block(
    output: &mut Vec<u8>,
    stream: u32,
    block: &[u8],
    is_end: bool,
    payload_bytes_max: usize,
) {
    let mut flags = if is_end { flag::END_STREAM } else { 0 };
    let mut kind = kind::HEADERS;
    let mut rest = block;
    loop {
        let (part, after) = rest.split_at(rest.len().min(payload_bytes_max));
        if after.is_empty() {
            flags |= flag::END_HEADERS;
        }
        put(output, kind, flags, stream, part);
        if after.is_empty() {
            return;
        }
        (rest, kind, flags) = (after, kind::CONTINUATION, 0);
    }
}

/// Four octets as a number, or FRAME_SIZE_ERROR for the connection.
pub(super) fn number(payload: &[u8]) -> Result<u32, Violation> {
    let octets = payload.try_into().map_err(|_| frame_size_error())?;
    Ok(u32::from_be_bytes(octets))
}

pub(super) fn frame_size_error() -> Violation {
    connection_error(ErrorCode::FRAME_SIZE_ERROR, "a frame has a wrong size")
}

/// The payload without its padding (RFC 9113, section 6.1).
pub(super) fn without_padding(header: FrameHeader, payload: &[u8]) -> Result<&[u8], Violation> {
    if !header.has(flag::PADDED) {
        return Ok(payload);
    }
    let (&padding, rest) = payload.split_first().ok_or_else(frame_size_error)?;
    let length = rest.len().checked_sub(usize::from(padding));
    length
        .map(|length| &rest[..length])
        .ok_or_else(|| protocol_error("padding is longer than its frame"))
}

/// The header block fragment of a HEADERS frame, and the stream on which it claims to depend. Priorities are ignored
/// (RFC 9113, section 5.3.2).
pub(super) fn without_priority(
    header: FrameHeader,
    payload: &[u8],
) -> Result<(&[u8], Option<u32>), Violation> {
    let fragment = without_padding(header, payload)?;
    if !header.has(flag::PRIORITY) {
        return Ok((fragment, None));
    }
    let (priority, fragment) = fragment.split_at_checked(5).ok_or_else(frame_size_error)?;
    Ok((fragment, Some(number(&priority[..4])? & 0x7fff_ffff)))
}
