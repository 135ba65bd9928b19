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

/// Publishes events to whoever listens, at least once.
pub trait EventBus: Send + Sync {
    /// The message that announces `event`, caused by the current trace.
    fn encode(&self, event: &OrderEvent) -> Message;

    /// Begins to publish `message`, and waits for nothing. `None` if that cannot begin at once:
    /// [`publish`](Self::publish) is for that, and tells why it fails. The message is not sent
    /// after `deadline`.
    fn begin(&self, message: &Message, deadline: Deadline) -> Option<Box<dyn Acknowledgement>>;

    /// Publishes `messages` and waits, until `deadline` at most, for each to be
    /// acknowledged; one answer for each message, in their order.
    fn publish(&self, messages: &[Message], deadline: Deadline) -> Vec<Result<(), PublishError>>;
}

/// What is to come for a message that is under way.
pub trait Acknowledgement: Send {
    /// Waits for it, until the deadline of [`EventBus::begin`] at most.
    ///
    /// # Errors
    /// [`PublishError`].
    fn wait(self: Box<Self>) -> Result<(), PublishError>;
}
