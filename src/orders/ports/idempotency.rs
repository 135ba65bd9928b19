//! Idempotency keys and the store that makes a request take effect once.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::orders::domain::{Order, OrderId};
use tbd_deadline::Deadline;

use super::{Message, StoreError};

/// The client's name for one request: 1 to 255 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Parses a header's value: the bare key, or the structured-field string of
    /// draft-ietf-httpapi-idempotency-key-header. That is the same key in double quotes, perhaps
    /// with parameters, which are dropped (RFC 9651, section 2). `None` if it is not a valid key.
    pub fn parse(value: &str) -> Option<Self> {
        let value = value.trim();
        let key = match value.starts_with('"') {
            true => quoted(value)?,
            false => value.to_owned(),
        };
        let fits = (1..=255).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
        fits.then_some(Self(key))
    }

    /// The key as it is stored for `caller`. Two callers never share a stored key, so neither
    /// replays nor refuses the other's requests. An anonymous caller's key is stored unchanged.
    pub fn of(self, caller: &Caller) -> Self {
        match &caller.0 {
            None => self,
            // A client's key contains no space, so none can imitate this.
            Some(caller) => Self(format!("{caller} {}", self.0)),
        }
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text of a structured-field string. `None` if anything but parameters follows it.
fn quoted(value: &str) -> Option<String> {
    let (text, mut rest) = string(value)?;
    while !rest.is_empty() {
        rest = after_parameter(rest)?;
    }
    Some(text)
}

/// The string at the start of `text`, and the rest.
fn string(text: &str) -> Option<(String, &str)> {
    let mut chars = text.strip_prefix('"')?.chars();
    let mut string = String::new();
    loop {
        match chars.next()? {
            '"' => return Some((string, chars.as_str())),
            '\\' => string.push(chars.next().filter(|c| matches!(c, '"' | '\\'))?),
            c => string.push(c),
        }
    }
}

/// The rest of `text` after the parameter at its start.
fn after_parameter(text: &str) -> Option<&str> {
    let name = text.strip_prefix(';')?.trim_start_matches(' ');
    if !name.starts_with(|c: char| c.is_ascii_lowercase() || c == '*') {
        return None;
    }
    let in_name = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-' | '.' | '*');
    let rest = name.trim_start_matches(in_name);
    let Some(value) = rest.strip_prefix('=') else {
        return Some(rest);
    };
    if value.starts_with('"') {
        return string(value).map(|(_, rest)| rest);
    }
    // A number, token, byte sequence, Boolean or date; they need no distinction here.
    let in_value = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-./:=?@^_`|~".contains(c);
    let rest = value.trim_start_matches(in_value);
    (rest.len() < value.len()).then_some(rest)
}

/// The owner of idempotency keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller(Option<String>);

impl Caller {
    /// A caller without a token. All of them share their keys.
    pub const ANONYMOUS: Self = Self(None);

    /// The caller that `issuer` calls `subject`. Without a subject an issuer's callers cannot be
    /// distinguished, so they share their keys.
    pub fn new(issuer: Option<&str>, subject: Option<&str>) -> Self {
        let mut hash = Sha256::new();
        for claim in [issuer, subject] {
            // Lengths first, so that no two pairs give the same bytes.
            let length = claim.map_or(u64::MAX, |claim| claim.len() as u64);
            hash.update(length.to_be_bytes());
            hash.update(claim.unwrap_or_default());
        }
        // A hash has a fixed length, and it keeps personal names out of the database.
        Self(Some(URL_SAFE_NO_PAD.encode(hash.finalize())))
    }
}

/// The stored answer to a request. Every repetition gets it.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    /// The body, byte for byte as the adapter encoded it for the first request.
    pub body: Vec<u8>,
    /// The order that the first request created.
    pub order_id: OrderId,
}

impl fmt::Debug for StoredAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The body contains an e-mail address.
        f.debug_struct("StoredAnswer")
            .field("order_id", &self.order_id)
            .finish_non_exhaustive()
    }
}

/// Everything that the store writes for a new order.
pub struct Submission {
    /// The key as it is stored, see [`IdempotencyKey::of`].
    pub key: IdempotencyKey,
    /// SHA-256 over the meaning of the request.
    pub fingerprint: [u8; 32],
    /// The new order.
    pub order: Order,
    /// The answer to store.
    pub body: Vec<u8>,
    /// The event to publish.
    pub message: Message,
    /// How long the key is kept.
    pub ttl: Duration,
}

/// The outcome of a [`Submission`].
#[derive(Debug)]
pub enum SubmitOutcome {
    /// The key was new (or expired): order, key and event are stored.
    First,
    /// The key is known, with the same request.
    Replay {
        /// The first request's answer.
        answer: StoredAnswer,
        /// The event, if it may not be published yet.
        unpublished: Option<Message>,
    },
    /// The key is known, with another request.
    OtherRequest,
    /// The first request with this key has not ended within the waiting time.
    Running,
}

/// Keeps idempotency keys together with the orders and events of their requests.
pub trait IdempotencyStore: Send + Sync {
    /// Stores key, order and event together, or returns what the known key means. Waits for a
    /// twin in progress, for a bounded time and until `deadline` at most. The submission is
    /// shared because another request's thread may write it.
    ///
    /// # Errors
    /// [`StoreError`]. An error never leaves a part behind. After [`StoreError::Unavailable`] the
    /// outcome is unknown, so the caller retries with the same key.
    fn submit(
        &self,
        submission: &Arc<Submission>,
        deadline: Deadline,
    ) -> Result<SubmitOutcome, StoreError>;

    /// Deletes up to `limit` expired keys. Returns the number deleted.
    ///
    /// # Errors
    /// [`StoreError`].
    fn sweep(&self, limit: u32, deadline: Deadline) -> Result<u64, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(value: &str) -> Option<String> {
        IdempotencyKey::parse(value).map(|key| key.as_str().to_owned())
    }

    #[test]
    fn quotes_around_a_key_do_not_count() {
        assert_eq!(key("\"abc-1\""), key("abc-1"));
        assert_eq!(key("abc-1").as_deref(), Some("abc-1"));
    }

    #[test]
    fn a_key_has_1_to_255_visible_ascii_characters() {
        assert!(key(&"k".repeat(255)).is_some());
        assert!(key(&format!("\"{}\"", "k".repeat(255))).is_some());
        for value in [
            "",
            " ",
            "\"\"",
            "a b",
            "schlüssel",
            "a\tb",
            &"k".repeat(256),
        ] {
            assert_eq!(key(value), None, "{value:?}");
        }
    }

    #[test]
    fn callers_do_not_share_keys_unless_they_are_the_same() {
        let callers = [
            Caller::ANONYMOUS,
            Caller::new(Some("i"), Some("alice")),
            Caller::new(Some("i"), Some("bob")),
            Caller::new(Some("other"), Some("alice")),
            Caller::new(Some("ia"), Some("lice")),
            Caller::new(Some("i"), Some("")),
            Caller::new(Some("i"), None),
            Caller::new(None, Some("i")),
            Caller::new(None, None),
        ];
        let stored = |caller: &Caller| IdempotencyKey("k".into()).of(caller);
        for (at, caller) in callers.iter().enumerate() {
            assert_eq!(stored(caller), stored(&caller.clone()));
            for other in &callers[..at] {
                assert_ne!(stored(caller), stored(other));
            }
            let imitated = IdempotencyKey::parse(stored(caller).as_str());
            assert_eq!(imitated.is_some(), *caller == Caller::ANONYMOUS);
        }
        assert_eq!(stored(&Caller::ANONYMOUS).as_str(), "k");
    }

    #[test]
    fn parameters_of_a_quoted_key_do_not_count() {
        for parameters in [
            "",
            ";a",
            ";a=1",
            "; a=?0;b=-1.5;c=tok/en:*;d=:aGk=:;e=@1",
            ";*a-b.c_1=\"x;\\\"y\\\\\"",
        ] {
            let value = format!("\"k\"{parameters}");
            assert_eq!(key(&value).as_deref(), Some("k"), "{value}");
        }
        assert_eq!(key("\"a\\\"b\\\\c\""), key("a\"b\\c"));
        // Without quotes it is not a structured field: the semicolon is part of the key.
        assert_eq!(key("k;a=1").as_deref(), Some("k;a=1"));
    }

    #[test]
    fn a_malformed_quoted_key_is_no_key() {
        for value in [
            "\"",
            "\"k",
            "\"k\"\"",
            "\"k\"x",
            "\"a\\b\"",
            "\"k\\\"",
            "\"k\" ;a",
            "\"k\";",
            "\"k\";A",
            "\"k\";1",
            "\"k\";a=",
            "\"k\";a=(1)",
            "\"k\";a=\"x",
            "\"k\", \"l\"",
        ] {
            assert_eq!(key(value), None, "{value}");
        }
    }
}
