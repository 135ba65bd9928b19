//! Where events go.

use bytes::Bytes;

use crate::orders::domain::{EventKind, OrderEvent, OrderId};
use tbd_deadline::Deadline;

/// An event as it travels: encoded once, and the same bytes at every repetition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What happened; decides where the message goes.
    pub kind: EventKind,
    /// Whom it happened to; messages of one order keep their order.
    pub order_id: OrderId,
    /// The encoded event.
    pub payload: Bytes,
    /// The trace of the work that caused the event, as one text (W3C Trace Context).
    pub trace_context: Option<String>,
}

/// Why a message is not known to have arrived.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PublishError {
    /// The bus is away or too slow; the message may or may not have arrived.
    /// Publishing it again is harmless.
    #[error("event bus unavailable: {0}")]
    Unavailable(String),
    /// The bus refuses this message as it is. Publishing it again helps only once a
    /// setting, a right or a clock has been mended.
    #[error("event refused: {0}")]
    Refused(String),
    /// The bus refuses this message because of its size: a smaller one may do.
    #[error("event too large: {0}")]
    TooLarge(String),
}

/// Publishes events, at least once.
pub trait EventBus: Send + Sync {
    /// The message that announces `event`, caused by the current trace.
    fn encode(&self, event: &OrderEvent) -> Message;

    /// Publishes `message` for a request, and waits until `deadline` at most for its acknowledgement. While the bus
    /// is known to be away it fails at once.
    ///
    /// # Errors
    /// [`PublishError`].
    fn publish(&self, message: &Message, deadline: Deadline) -> Result<(), PublishError>;

    /// Publishes `messages` for a thread that has time, whatever is known of the bus, and waits until `deadline` at
    /// most for each to be acknowledged; one answer for each message, in their order.
    fn publish_all(
        &self,
        messages: &[Message],
        deadline: Deadline,
    ) -> Vec<Result<(), PublishError>>;
}
