//! The end of a call: code, message, details, and how they travel.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use prost::Message as _;
use prost_types::Any;

use crate::code::Code;
use crate::h2;
use crate::hpack::Header;
use crate::metadata::Metadata;
use crate::proto::google::rpc;

/// An error that a call ended with, or that prevented it.
///
/// [`Status::code`] says what a caller can do about it; only [`Code::Unavailable`] is transient.
#[derive(Clone, PartialEq)]
pub struct Status(Box<Inner>);

#[derive(Clone, PartialEq)]
struct Inner {
    code: Code,
    message: String,
    details: Vec<Any>,
    metadata: Metadata,
    /// The value of `grpc-retry-pushback-ms`.
    pushback: Option<String>,
    /// Whether no server has begun to work on the call.
    is_unseen: bool,
}

impl Status {
    /// A status with a message for people.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let inner = Inner {
            code,
            message: message.into(),
            details: Vec::new(),
            metadata: Metadata::new(),
            pushback: None,
            is_unseen: false,
        };
        Self(Box::new(inner))
    }

    /// Something that nobody foresaw, or that breaks the protocol.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// Something that may be different a moment later.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// Adds a detail of a type that both sides know, such as `google.rpc.ErrorInfo`. It travels in
    /// `grpc-status-details-bin`.
    pub fn with_detail<M: prost::Name>(mut self, detail: &M) -> Self {
        self.0.details.push(Any {
            type_url: M::type_url(),
            value: detail.encode_to_vec(),
        });
        self
    }

    /// Sends or carries these trailers.
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.0.metadata = metadata;
        self
    }

    /// What a caller can do about it.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The message for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The details, as they travelled.
    pub fn details(&self) -> &[Any] {
        &self.0.details
    }

    /// The first detail of the type `M`.
    pub fn detail<M: prost::Name + Default>(&self) -> Option<M> {
        let type_url = M::type_url();
        let mut details = self.0.details.iter();
        let any = details.find(|any| type_of(&any.type_url) == type_of(&type_url))?;
        M::decode(&any.value[..]).ok()
    }

    /// The trailers.
    pub fn metadata(&self) -> &Metadata {
        &self.0.metadata
    }

    /// Whether the same call may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        self.0.code.is_transient()
    }

    /// Says that no server has begun to work on the call, so that a retry does nothing twice.
    pub(crate) fn unseen(mut self) -> Self {
        self.0.is_unseen = true;
        self
    }

    pub(crate) fn is_unseen(&self) -> bool {
        self.0.is_unseen
    }

    /// What the server says about a retry, in milliseconds; anything that is no number forbids it.
    pub(crate) fn pushback_text(&self) -> Option<&str> {
        self.0.pushback.as_deref()
    }

    /// Asks the client to retry after so many milliseconds (`grpc-retry-pushback-ms`); a negative number forbids a retry.
    pub fn with_pushback(mut self, millis: impl ToString) -> Self {
        self.0.pushback = Some(millis.to_string());
        self
    }

    /// What the trailers of a call say: None for success.
    pub(crate) fn from_trailers(trailers: &[Header]) -> Option<Self> {
        let Some(number) = h2::find(trailers, "grpc-status") else {
            return Some(Self::new(Code::Unknown, "the answer has no grpc-status"));
        };
        let number = str::from_utf8(number).ok().map(str::parse);
        let code = Code::from_number(number.and_then(Result::ok).unwrap_or(-1));
        if code == Code::Ok {
            return None;
        }
        let message = h2::find(trailers, "grpc-message")
            .map(percent_decode)
            .unwrap_or_default();
        let mut status = Self::new(code, message).with_metadata(Metadata::from_headers(trailers));
        status.0.pushback = h2::find(trailers, "grpc-retry-pushback-ms")
            .map(|value| String::from_utf8_lossy(value).into_owned());
        let details = h2::find(trailers, "grpc-status-details-bin").and_then(decode_base64);
        if let Some(details) = details.and_then(|bytes| rpc::Status::decode(&bytes[..]).ok()) {
            status.0.details = details.details;
        }
        Some(status)
    }

    /// The trailers that say `result`.
    pub(crate) fn to_trailers(result: Result<(), &Self>) -> Vec<Header> {
        let Err(Self(status)) = result else {
            return vec![Header::new("grpc-status", "0")];
        };
        let mut trailers = vec![Header::new("grpc-status", status.code.number().to_string())];
        if !status.message.is_empty() {
            trailers.push(Header::new("grpc-message", percent_encode(&status.message)));
        }
        if !status.details.is_empty() {
            let whole = rpc::Status {
                code: status.code.number().into(),
                message: status.message.clone(),
                details: status.details.clone(),
            };
            let value = STANDARD_NO_PAD.encode(whole.encode_to_vec());
            trailers.push(Header::new("grpc-status-details-bin", value));
        }
        if let Some(pushback) = &status.pushback {
            trailers.push(Header::new("grpc-retry-pushback-ms", pushback.clone()));
        }
        status.metadata.append_to(&mut trailers);
        trailers
    }
}

/// The message's name in a type URL: what follows the last slash.
fn type_of(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

/// Base64 with or without padding: both are valid on the wire.
pub(crate) fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    STANDARD
        .decode(text)
        .or_else(|_| STANDARD_NO_PAD.decode(text))
        .ok()
}

/// A message may hold anything; on the wire all but printable ASCII is escaped (gRPC over HTTP/2, "Responses").
fn percent_encode(message: &str) -> String {
    let mut encoded = String::with_capacity(message.len());
    let last = message.len().saturating_sub(1);
    for (position, octet) in message.bytes().enumerate() {
        // HTTP/2 forbids blanks at both ends of a value (RFC 9113, section 8.2.1).
        let is_edge = octet == b' ' && (position == 0 || position == last);
        if matches!(octet, 0x20..=0x7e) && octet != b'%' && !is_edge {
            encoded.push(char::from(octet));
        } else {
            encoded.push_str(&format!("%{octet:02X}"));
        }
    }
    encoded
}

/// The inverse. What is no valid escape stays as it is, so that no message is lost.
fn percent_decode(value: &[u8]) -> String {
    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&octet, after)) = rest.split_first() {
        rest = after;
        let digits = after
            .get(..2)
            .filter(|_| octet == b'%')
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(escaped) => {
                decoded.push(escaped);
                rest = &after[2..];
            }
            None => decoded.push(octet),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.message.is_empty() {
            write!(f, "{}", self.0.code)
        } else {
            write!(f, "{}: {}", self.0.code, self.0.message)
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Status")
            .field("code", &self.0.code)
            .field("message", &self.0.message)
            .field("details", &self.0.details.len())
            .field("metadata", &self.0.metadata)
            .finish()
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(status: &Status) -> Option<Status> {
        Status::from_trailers(&Status::to_trailers(Err(status)))
    }

    #[test]
    fn details_and_trailers_travel() {
        let info = rpc::ErrorInfo {
            reason: "LATE".to_owned(),
            domain: "tbd".to_owned(),
            ..Default::default()
        };
        let mut metadata = Metadata::new();
        metadata.insert_text("x-request-id", "7").unwrap();
        let status = Status::new(Code::Aborted, "again")
            .with_detail(&info)
            .with_metadata(metadata);
        let received = round_trip(&status).unwrap();
        assert_eq!(received, status);
        assert_eq!(received.detail::<rpc::ErrorInfo>(), Some(info));
        assert_eq!(received.detail::<rpc::RetryInfo>(), None);
    }

    #[test]
    fn trailers_without_a_status_are_an_error() {
        assert_eq!(
            Status::from_trailers(&[]).map(|status| status.code()),
            Some(Code::Unknown)
        );
        assert_eq!(
            Status::from_trailers(&[Header::new("grpc-status", "0")]),
            None
        );
        let odd = Status::from_trailers(&[Header::new("grpc-status", "x")]);
        assert_eq!(odd.map(|status| status.code()), Some(Code::Unknown));
    }

    #[test]
    fn a_damaged_escape_is_kept_as_text() {
        assert_eq!(percent_decode(b"50% of %41%4"), "50% of A%4");
    }

    proptest! {
        #[test]
        fn any_message_travels(message in ".*") {
            let status = Status::new(Code::Unknown, message);
            prop_assert_eq!(round_trip(&status), Some(status));
        }
    }
}
