//! Acceptance of a new order: once, however often the request is sent.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::orders::app::Delivery;
use crate::orders::domain::{Order, OrderEvent};
use crate::orders::ports::{
    Caller, EventBus, IdempotencyKey, IdempotencyStore, Message, Meter, PublishError, StoreError,
    StoredAnswer, Submission, SubmitOutcome,
};
use tbd_deadline::Deadline;

/// Accepts orders.
pub struct CreateOrder {
    /// Stores key, order and event.
    pub store: Arc<dyn IdempotencyStore>,
    /// Publishes the event.
    pub bus: Arc<dyn EventBus>,
    /// Who publishes it, and when.
    pub delivery: Delivery,
    /// Counts new and repeated requests.
    pub meter: Arc<dyn Meter>,
    /// How long a key is kept.
    pub ttl: Duration,
}

/// A customer's request for an order.
pub struct NewOrder {
    /// The owner of the key.
    pub caller: Caller,
    /// The client's name for the request.
    pub key: IdempotencyKey,
    /// The order to accept, unless the key is known.
    pub order: Order,
    /// The answer to give and to store, as the adapter encodes it.
    pub body: Vec<u8>,
}

/// The answer to a new order.
#[derive(Debug)]
pub struct Accepted {
    /// The answer, stored with the key.
    pub answer: StoredAnswer,
    /// Whether an earlier request with the same key made the order.
    pub replayed: bool,
}

/// Why an order was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The key was used for another request.
    #[error("the idempotency key was used for another request")]
    OtherRequest,
    /// The first request with the key has not ended yet.
    #[error("the first request with this idempotency key is still running")]
    Running,
    /// The order is stored, but Kafka may not have its event. Sending the request again with the
    /// same key resumes.
    #[error("the order is stored, its event not yet published: {0}")]
    NotPublished(PublishError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CreateOrder {
    /// Stores the order with its answer, and delivers its event. Waits until `deadline` at most:
    /// for the store, for a twin in progress and, in direct mode, for the event bus.
    ///
    /// # Errors
    /// [`CreateError`]. Sending the request again with the same key is always safe.
    pub fn handle(&self, new: NewOrder, deadline: Deadline) -> Result<Accepted, CreateError> {
        let event = OrderEvent::Created(new.order.clone());
        let submission = Arc::new(Submission {
            key: new.key.of(&new.caller),
            fingerprint: request_fingerprint(&new.order),
            message: self.bus.encode(&event),
            order: new.order,
            body: new.body,
            ttl: self.ttl,
        });
        let outcome = self.store.submit(&submission, deadline)?;
        let (accepted, unpublished) = interpret_outcome(outcome, &submission, &*self.meter)?;
        // An answer promises that the event was delivered. The first request may have failed to
        // do so; then a repetition delivers the event before its own answer.
        if let Some(message) = unpublished {
            self.delivery
                .deliver(&*self.bus, &message, deadline)
                .map_err(CreateError::NotPublished)?;
        }
        Ok(accepted)
    }
}

/// Turns the store's outcome into the request's answer and the event to deliver before it.
/// Counts and logs the outcome.
///
/// # Errors
/// [`CreateError::OtherRequest`], [`CreateError::Running`].
pub fn interpret_outcome(
    outcome: SubmitOutcome,
    submission: &Submission,
    meter: &dyn Meter,
) -> Result<(Accepted, Option<Message>), CreateError> {
    let (answer, replayed, unpublished) = match outcome {
        SubmitOutcome::First => {
            let order_id = submission.order.id;
            meter.order_created();
            log::info!(order_id:% = order_id; "order created");
            let body = submission.body.clone();
            let answer = StoredAnswer { body, order_id };
            (answer, false, Some(submission.message.clone()))
        }
        SubmitOutcome::Replay {
            answer,
            unpublished,
        } => {
            meter.idempotency_hit();
            log::info!(order_id:% = answer.order_id; "answer replayed");
            (answer, true, unpublished)
        }
        SubmitOutcome::OtherRequest => return Err(CreateError::OtherRequest),
        SubmitOutcome::Running => return Err(CreateError::Running),
    };
    Ok((Accepted { answer, replayed }, unpublished))
}

/// The prefix of every fingerprint. Stored keys outlive the program: with another prefix, a retry
/// after an upgrade would count as another request.
const FINGERPRINT_DOMAIN: &[u8] = b"POST /v1/orders\0";

/// SHA-256 over the request's meaning. Whitespace, the order of fields and the protocol do not
/// change it.
pub fn request_fingerprint(order: &Order) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(FINGERPRINT_DOMAIN);
    hash.update(order.customer_email.as_str());
    // No address contains a NUL, so the separator is unambiguous.
    hash.update(b"\0");
    hash.update(order.amount.get().to_be_bytes());
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
