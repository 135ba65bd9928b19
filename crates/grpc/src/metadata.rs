//! Metadata: the headers and trailers of a call.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;

use crate::h2;
use crate::hpack::Header;
use crate::status::decode_base64;

/// How keys of octets end.
const BINARY: &[u8] = b"-bin";

/// Keys and values, in their order. A key may occur several times. A key that ends in `-bin` has octets as its value,
/// any other key has printable ASCII.
#[derive(Clone, Default, PartialEq)]
pub struct Metadata(Vec<(Bytes, Bytes)>);

/// Why a key or a value cannot travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// A key consists of lower-case letters, digits, `-`, `_` and `.`, and neither begins with `grpc-` nor belongs to HTTP.
    #[error("not a valid metadata key")]
    Key,
    /// A text consists of printable ASCII, without blanks at its ends.
    #[error("not a valid metadata value")]
    Value,
    /// Text needs a key without `-bin`, octets need one with it.
    #[error("the key does not suit the kind of value")]
    Kind,
}

impl Metadata {
    /// No entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a text.
    ///
    /// # Errors
    /// [`MetadataError`] for a key or a value that cannot travel.
    pub fn insert_text(
        &mut self,
        key: &str,
        value: impl Into<String>,
    ) -> Result<(), MetadataError> {
        let value: String = value.into();
        let key = checked_key(key, false)?;
        let is_ascii = value.bytes().all(|octet| matches!(octet, 0x20..=0x7e));
        if !is_ascii || !h2::is_value(value.as_bytes()) {
            return Err(MetadataError::Value);
        }
        self.0.push((key, value.into()));
        Ok(())
    }

    /// Adds octets, under a key that ends in `-bin`. They travel as base64.
    ///
    /// # Errors
    /// [`MetadataError`] for a key that cannot travel.
    pub fn insert_bytes(
        &mut self,
        key: &str,
        value: impl Into<Bytes>,
    ) -> Result<(), MetadataError> {
        let key = checked_key(key, true)?;
        self.0.push((key, value.into()));
        Ok(())
    }

    /// The first text of this key.
    pub fn text(&self, key: &str) -> Option<&str> {
        std::str::from_utf8(self.bytes(key)?).ok()
    }

    /// The first value of this key, as octets.
    pub fn bytes(&self, key: &str) -> Option<&[u8]> {
        let mut entries = self.0.iter();
        let (_, value) = entries.find(|(known, _)| known == key)?;
        Some(value)
    }

    /// All keys and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let entries = self.0.iter();
        entries.map(|(key, value)| (text_of(key), &value[..]))
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entries among a header list; what belongs to HTTP and gRPC themselves is left out.
    pub(crate) fn from_headers(headers: &[Header]) -> Self {
        let mut entries = Vec::new();
        for Header { name, value } in headers {
            if is_reserved(name) {
                continue;
            }
            if !name.ends_with(BINARY) {
                entries.push((name.clone(), value.clone()));
                continue;
            }
            // Several values may have been joined by commas on their way.
            for part in value.split(|octet| *octet == b',') {
                if let Some(value) = decode_base64(part.trim_ascii()) {
                    entries.push((name.clone(), value.into()));
                }
            }
        }
        Self(entries)
    }

    pub(crate) fn append_to(&self, headers: &mut Vec<Header>) {
        headers.extend(
            self.0
                .iter()
                .map(|(key, value)| match key.ends_with(BINARY) {
                    true => Header::new(key.clone(), STANDARD_NO_PAD.encode(value)),
                    false => Header::new(key.clone(), value.clone()),
                }),
        );
    }
}

/// A value may be a secret, so only the keys are shown.
impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.iter().map(|(key, _)| key);
        f.debug_list().entries(keys).finish()
    }
}

/// A key as text; all keys are ASCII.
fn text_of(key: &[u8]) -> &str {
    str::from_utf8(key).unwrap_or_default()
}

fn is_reserved(key: &[u8]) -> bool {
    let is_of_http = matches!(
        key,
        b"content-type"
            | b"te"
            | b"connection"
            | b"content-length"
            | b"host"
            | b"transfer-encoding"
            | b"upgrade"
    );
    key.starts_with(b":") || key.starts_with(b"grpc-") || is_of_http
}

fn checked_key(key: &str, is_binary: bool) -> Result<Bytes, MetadataError> {
    let is_octet =
        |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || b"-_.".contains(&octet);
    let octets = key.as_bytes();
    if key.is_empty() || !key.bytes().all(is_octet) || is_reserved(octets) {
        return Err(MetadataError::Key);
    }
    match octets.ends_with(BINARY) == is_binary {
        true => Ok(Bytes::copy_from_slice(octets)),
        false => Err(MetadataError::Kind),
    }
}

/// The units of `grpc-timeout`, in nanoseconds, the finest first.
const UNITS: [(u8, u128); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// The value of `grpc-timeout`: at most eight digits, in the finest unit that they suffice for.
pub(crate) fn encode_timeout(timeout: Duration) -> String {
    for (unit, nanos) in UNITS {
        let count = timeout.as_nanos() / nanos;
        if count < 100_000_000 {
            return format!("{count}{}", char::from(unit));
        }
    }
    "99999999H".to_owned()
}

/// The inverse; None for what is not valid.
pub(crate) fn decode_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u128 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let (_, nanos) = UNITS.iter().find(|(known, _)| known == unit)?;
    let (nanos, second) = (count * nanos, 1_000_000_000);
    let seconds = u64::try_from(nanos / second).ok()?;
    Some(Duration::new(seconds, (nanos % second) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_and_texts_travel_under_keys_of_their_kind() {
        let mut metadata = Metadata::new();
        metadata.insert_text("x-text", "a b").unwrap();
        metadata
            .insert_bytes("x-octets-bin", vec![0xab; 3])
            .unwrap();
        assert_eq!(metadata.insert_text("x-bin", "a"), Err(MetadataError::Kind));
        assert_eq!(
            metadata.insert_bytes("x", vec![1]),
            Err(MetadataError::Kind)
        );
        let mut headers = Vec::new();
        metadata.append_to(&mut headers);
        assert_eq!(Metadata::from_headers(&headers), metadata);
    }

    #[test]
    fn keys_of_the_protocol_and_unprintable_values_are_refused() {
        let mut metadata = Metadata::new();
        for key in ["", "X", "a b", ":path", "grpc-status", "te", "content-type"] {
            assert_eq!(
                metadata.insert_text(key, "a"),
                Err(MetadataError::Key),
                "{key}"
            );
        }
        for value in [" a", "a\n", "ä", "\0"] {
            assert_eq!(
                metadata.insert_text("a", value),
                Err(MetadataError::Value),
                "{value}"
            );
        }
        assert_eq!(metadata, Metadata::new());
    }

    #[test]
    fn joined_octets_are_several_values() {
        let metadata = Metadata::from_headers(&[Header::new("a-bin", "AQ==, Ag")]);
        let values: Vec<_> = metadata.iter().map(|(_, value)| value.to_vec()).collect();
        assert_eq!(values, [vec![1], vec![2]]);
    }

    #[test]
    fn a_timeout_keeps_eight_digits() {
        assert_eq!(encode_timeout(Duration::from_millis(50)), "50000000n");
        assert_eq!(encode_timeout(Duration::from_secs(30)), "30000000u");
        assert_eq!(encode_timeout(Duration::from_secs(100)), "100000m");
        assert_eq!(encode_timeout(Duration::MAX), "99999999H");
        assert_eq!(
            decode_timeout(b"50000000n"),
            Some(Duration::from_millis(50))
        );
        assert_eq!(decode_timeout(b"1H"), Some(Duration::from_secs(3600)));
        for odd in [&b""[..], b"1", b"S", b"123456789S", b"-1S", b"1s", b"1 S"] {
            assert_eq!(decode_timeout(odd), None);
        }
    }
}
