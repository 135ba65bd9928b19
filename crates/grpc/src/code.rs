//! The seventeen codes with which a call ends.

use std::fmt;

use crate::h2::ErrorCode;

/// How a call ended (<https://grpc.io/docs/guides/status-codes/>).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Code {
    /// The call succeeded.
    Ok = 0,
    /// The caller cancelled the call.
    Cancelled = 1,
    /// An error that nobody can tell more about.
    Unknown = 2,
    /// The request is wrong, whatever the state of the system.
    InvalidArgument = 3,
    /// The deadline passed. The call may have taken effect all the same.
    DeadlineExceeded = 4,
    /// What the request names does not exist.
    NotFound = 5,
    /// What the request would create exists.
    AlreadyExists = 6,
    /// The caller is known, and may not do this.
    PermissionDenied = 7,
    /// A limit was reached, or something is too large.
    ResourceExhausted = 8,
    /// The state of the system forbids it; a retry is of no use until somebody changes that.
    FailedPrecondition = 9,
    /// A conflict with another call; retry on a higher level.
    Aborted = 10,
    /// Beyond the valid range.
    OutOfRange = 11,
    /// The method does not exist.
    Unimplemented = 12,
    /// A defect.
    Internal = 13,
    /// The service cannot be reached at this time; retry with backoff.
    Unavailable = 14,
    /// Data is lost or damaged.
    DataLoss = 15,
    /// The caller is not known.
    Unauthenticated = 16,
}

/// All codes and their names, in the order of their numbers.
const CODES: [(Code, &str); 17] = [
    (Code::Ok, "OK"),
    (Code::Cancelled, "CANCELLED"),
    (Code::Unknown, "UNKNOWN"),
    (Code::InvalidArgument, "INVALID_ARGUMENT"),
    (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
    (Code::NotFound, "NOT_FOUND"),
    (Code::AlreadyExists, "ALREADY_EXISTS"),
    (Code::PermissionDenied, "PERMISSION_DENIED"),
    (Code::ResourceExhausted, "RESOURCE_EXHAUSTED"),
    (Code::FailedPrecondition, "FAILED_PRECONDITION"),
    (Code::Aborted, "ABORTED"),
    (Code::OutOfRange, "OUT_OF_RANGE"),
    (Code::Unimplemented, "UNIMPLEMENTED"),
    (Code::Internal, "INTERNAL"),
    (Code::Unavailable, "UNAVAILABLE"),
    (Code::DataLoss, "DATA_LOSS"),
    (Code::Unauthenticated, "UNAUTHENTICATED"),
];

impl Code {
    /// The number on the wire.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The code of a number; [`Code::Unknown`] for one that is none.
    pub fn from_number(number: i64) -> Self {
        let known = usize::try_from(number)
            .ok()
            .and_then(|number| CODES.get(number));
        known.map_or(Self::Unknown, |(code, _)| *code)
    }

    /// The name, as the specification and service configurations write it.
    pub fn name(self) -> &'static str {
        CODES[usize::from(self.number())].1
    }

    /// Whether the same call may succeed a moment later: only [`Code::Unavailable`].
    pub fn is_transient(self) -> bool {
        self == Self::Unavailable
    }

    /// What the end of a stream by RST_STREAM means (gRPC over HTTP/2, "HTTP2 Transport Mapping").
    pub(crate) fn from_reset(code: ErrorCode) -> Self {
        match code {
            ErrorCode::REFUSED_STREAM => Self::Unavailable,
            ErrorCode::CANCEL => Self::Cancelled,
            ErrorCode::ENHANCE_YOUR_CALM => Self::ResourceExhausted,
            ErrorCode(0xc) => Self::PermissionDenied,
            _ => Self::Internal,
        }
    }

    /// What an HTTP status without a gRPC status means (gRPC's `http-grpc-status-mapping.md`).
    pub(crate) fn from_http(status: &[u8]) -> Self {
        match status {
            b"400" => Self::Internal,
            b"401" => Self::Unauthenticated,
            b"403" => Self::PermissionDenied,
            b"404" => Self::Unimplemented,
            b"429" | b"502" | b"503" | b"504" => Self::Unavailable,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_number_and_its_name() {
        for (number, (code, name)) in CODES.iter().enumerate() {
            assert_eq!(usize::from(code.number()), number);
            assert_eq!(Code::from_number(number as i64), *code);
            assert_eq!(code.name(), *name);
        }
        assert_eq!(Code::from_number(17), Code::Unknown);
        assert_eq!(Code::from_number(-1), Code::Unknown);
    }
}
