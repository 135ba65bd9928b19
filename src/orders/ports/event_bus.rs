//! The event bus.

use bytes::Bytes;

use crate::orders::domain::{EventKind, OrderEvent, OrderId};
use tbd_deadline::Deadline;

/// An encoded event. It is encoded once, so every publish sends the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The kind of event; it selects the topic.
    pub kind: EventKind,
    /// The order; messages of one order keep their order.
    pub order_id: OrderId,
    /// The encoded event.
    pub payload: Bytes,
    /// The trace context of the work that caused the event, as one text (W3C Trace Context).
    pub trace_context: Option<String>,
}

/// Why a message may not have arrived.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PublishError {
    /// The bus is unavailable or too slow: the outcome is unknown. Publishing the message again
    /// is harmless.
    #[error("event bus unavailable: {0}")]
    Unavailable(String),
    /// The bus refuses this message. A retry helps only after somebody has corrected a setting, a
    /// permission or a clock.
    #[error("event refused: {0}")]
    Refused(String),
    /// The bus refuses this message because of its size. A smaller one may succeed.
    #[error("event too large: {0}")]
    TooLarge(String),
}

/// Publishes events, at least once.
pub trait EventBus: Send + Sync {
    /// The message that announces `event`, caused by the current trace.
    fn encode(&self, event: &OrderEvent) -> Message;

    /// Publishes `message` for a request, and waits until `deadline` at most for its
    /// acknowledgement. Fails at once while the bus, or the part of it that takes this message, is
    /// known to be unavailable.
    ///
    /// # Errors
    /// [`PublishError`].
    fn publish(&self, message: &Message, deadline: Deadline) -> Result<(), PublishError>;

    /// Publishes `messages` for a background thread, even while the bus is known to be
    /// unavailable. Those for a part that is known to be unavailable fail at once. Waits until
    /// `deadline` at most for every acknowledgement. Returns one result per message, in order.
    fn publish_all(
        &self,
        messages: &[Message],
        deadline: Deadline,
    ) -> Vec<Result<(), PublishError>>;
}
