//! Error codes, and what they end: a stream or the connection (RFC 9113, section 5.4).

use std::fmt;

/// An error code of RST_STREAM and GOAWAY (RFC 9113, section 7).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// No error: the end is graceful.
    pub const NO_ERROR: Self = Self(0x0);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(0x1);
    /// Something unforeseen.
    pub const INTERNAL_ERROR: Self = Self(0x2);
    /// The peer sent more than the window allows.
    pub const FLOW_CONTROL_ERROR: Self = Self(0x3);
    /// A frame for a stream that was half closed already.
    pub const STREAM_CLOSED: Self = Self(0x5);
    /// A frame of a wrong size.
    pub const FRAME_SIZE_ERROR: Self = Self(0x6);
    /// The stream was refused before any work: it is safe to try again.
    pub const REFUSED_STREAM: Self = Self(0x7);
    /// The stream is no longer needed.
    pub const CANCEL: Self = Self(0x8);
    /// The tables of HPACK can no longer be kept equal.
    pub const COMPRESSION_ERROR: Self = Self(0x9);
    /// The peer behaves as an attacker would.
    pub const ENHANCE_YOUR_CALM: Self = Self(0xb);

    /// The code's name, or None for one that RFC 9113 does not define.
    pub fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        NAMES.get(usize::try_from(self.0).ok()?).copied()
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error code {:#x}", self.0),
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why the connection is over. A GOAWAY frame with the code is in the output already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} ({code})")]
pub struct ConnectionError {
    /// What the peer hears.
    pub code: ErrorCode,
    /// What it did, for people.
    pub reason: &'static str,
}

impl ConnectionError {
    pub(super) fn new(code: ErrorCode, reason: &'static str) -> Self {
        Self { code, reason }
    }
}

/// Why an action on a stream came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ActionError {
    /// The stream has ended, or its sending half has.
    #[error("the stream is closed")]
    StreamClosed,
    /// As many streams are open as the peer allows. One of them has to end first.
    #[error("the peer allows no more streams at this time")]
    TooManyStreams,
    /// The connection opens no more streams: the peer said GOAWAY, or all stream numbers are used.
    #[error("the connection opens no more streams")]
    NoMoreStreams,
    /// The header list is larger than the peer takes.
    #[error("the header list is larger than the peer accepts")]
    HeadersTooLarge,
}

/// What went wrong in a received frame: the inner form of the two kinds of RFC 9113, section 5.4.
#[derive(Debug)]
pub(super) enum Violation {
    Connection(ConnectionError),
    Stream(u32, ErrorCode),
}

impl From<ConnectionError> for Violation {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

pub(super) fn connection_error(code: ErrorCode, reason: &'static str) -> Violation {
    ConnectionError::new(code, reason).into()
}

pub(super) fn protocol_error(reason: &'static str) -> Violation {
    connection_error(ErrorCode::PROTOCOL_ERROR, reason)
}
