//! A request that takes effect once, however often it is sent.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::deadline::Deadline;
use crate::orders::domain::{Order, OrderId};

use super::{Message, StoreError};

/// The client's name for one request: 1 to 255 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Reads a header's value. A value in double quotes (the structured-field
    /// string of draft-ietf-httpapi-idempotency-key-header) is the same key as
    /// without them. `None` if it is no key.
    pub fn parse(value: &str) -> Option<Self> {
        let value = value.trim();
        let bare = match value.strip_prefix('"').and_then(|v| v.strip_suffix('"')) {
            Some(quoted) => quoted,
            None => value,
        };
        let fits = (1..=255).contains(&bare.len()) && bare.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| Self(bare.to_owned()))
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The answer that every repetition of a request gets.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredResponse {
    /// HTTP status.
    pub status: u16,
    /// The body, byte for byte.
    pub body: Vec<u8>,
    /// The order that the first request made.
    pub order_id: OrderId,
}

impl fmt::Debug for StoredResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The body holds an e-mail address.
        f.debug_struct("StoredResponse")
            .field("status", &self.status)
            .field("order_id", &self.order_id)
            .finish_non_exhaustive()
    }
}

/// Everything that is written when a new order is accepted.
pub struct Submission<'a> {
    /// The client's key.
    pub key: &'a IdempotencyKey,
    /// SHA-256 over the meaning of the request.
    pub request_hash: [u8; 32],
    /// The new order.
    pub order: &'a Order,
    /// The answer to store.
    pub response: &'a StoredResponse,
    /// The event to publish.
    pub message: &'a Message,
    /// How long the key is kept.
    pub ttl: Duration,
    /// Called with the message, by whichever thread is the first to know, when the order is
    /// stored for the first time; perhaps not at all where the caller would be that thread.
    pub when_stored: Option<WhenStored>,
}

/// Begins what can begin before the caller of [`IdempotencyStore::submit`] is woken. Never blocks.
pub type WhenStored = Arc<dyn Fn(&Message) + Send + Sync>;

/// What became of a [`Submission`].
#[derive(Debug)]
pub enum Once {
    /// The key was new (or expired): order, key and event are stored.
    First,
    /// The key is known, with the same request.
    Again {
        /// The first request's answer.
        response: StoredResponse,
        /// The event, if it is not known to be published yet.
        unpublished: Option<Message>,
    },
    /// The key is known, with another request.
    OtherRequest,
    /// The first request with this key has not ended within the time we wait.
    Running,
}

/// Remembers which requests took effect.
pub trait IdempotencyStore: Send + Sync {
    /// Stores key, order and event together, or tells what the key stands for.
    /// Waits for a twin in progress, for a bounded time and until `deadline` at most.
    ///
    /// # Errors
    /// [`StoreError`]; an error leaves nothing half-written. After
    /// [`StoreError::Unavailable`] it may be whole, so the caller repeats with the same key.
    fn submit(&self, submission: &Submission<'_>, deadline: Deadline) -> Result<Once, StoreError>;

    /// Deletes up to `limit` expired keys; the number deleted.
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
    fn a_lone_quote_is_a_character_like_any_other() {
        assert_eq!(key("\"").as_deref(), Some("\""));
    }
}
