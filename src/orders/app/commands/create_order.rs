//! A customer orders, once, however often the request is sent.

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
    store: Arc<dyn IdempotencyStore>,
    bus: Arc<dyn EventBus>,
    delivery: Delivery,
    meter: Arc<dyn Meter>,
    ttl: Duration,
}

/// What a customer asks for.
pub struct NewOrder {
    /// Whose key it is.
    pub caller: Caller,
    /// The client's name for the request.
    pub key: IdempotencyKey,
    /// The order to accept, unless the key is known.
    pub order: Order,
    /// The answer to give and to store, as the adapter writes it.
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
    /// The order is safe, but its event is not known to have arrived. The same
    /// request with the same key resumes.
    #[error("the order is stored, its event not yet published: {0}")]
    NotPublished(PublishError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CreateOrder {
    /// The command; keys are remembered for `ttl`.
    pub fn new(
        store: Arc<dyn IdempotencyStore>,
        bus: Arc<dyn EventBus>,
        delivery: Delivery,
        meter: Arc<dyn Meter>,
        ttl: Duration,
    ) -> Self {
        Self {
            store,
            bus,
            delivery,
            meter,
            ttl,
        }
    }

    /// Stores the order with its answer, and delivers its event. Waits for the store, for a
    /// twin in progress and, in direct mode, for the event bus; until `deadline` at most.
    ///
    /// # Errors
    /// [`CreateError`]. Repeating the request with the same key is always safe.
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
        // A twin must not promise more than the first could: if the event is not
        // known to have arrived, it is delivered (again) before the answer.
        if let Some(message) = unpublished {
            self.delivery
                .deliver(&*self.bus, &message, deadline)
                .map_err(CreateError::NotPublished)?;
        }
        Ok(accepted)
    }
}

/// What the store's outcome means for the request, counted and logged: its answer, and the event
/// that has to be delivered before it is given.
///
/// # Errors
/// [`CreateError::OtherRequest`], [`CreateError::Running`].
pub fn interpret_outcome(
    outcome: SubmitOutcome,
    submission: &Submission,
    meter: &dyn Meter,
) -> Result<(Accepted, Option<Message>), CreateError> {
    match outcome {
        SubmitOutcome::First => {
            let order_id = submission.order.id;
            meter.order_created();
            log::info!(order_id:% = order_id; "order created");
            let answer = StoredAnswer {
                body: submission.body.clone(),
                order_id,
            };
            let replayed = false;
            Ok((
                Accepted { answer, replayed },
                Some(submission.message.clone()),
            ))
        }
        SubmitOutcome::Replay {
            answer,
            unpublished,
        } => {
            meter.idempotency_hit();
            log::info!(order_id:% = answer.order_id; "answer replayed");
            let replayed = true;
            Ok((Accepted { answer, replayed }, unpublished))
        }
        SubmitOutcome::OtherRequest => Err(CreateError::OtherRequest),
        SubmitOutcome::Running => Err(CreateError::Running),
    }
}

/// What every fingerprint begins with. Stored keys outlive the program: another text would turn
/// the retries of an upgrade into other requests.
const FINGERPRINT_DOMAIN: &[u8] = b"POST /v1/orders\0";

/// SHA-256 over what the customer asks for, whatever the request's whitespace, the order of its
/// fields, or its protocol.
pub fn request_fingerprint(order: &Order) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(FINGERPRINT_DOMAIN);
    hash.update(order.customer_email.as_str());
    // No address holds a NUL, so no two requests run into one another.
    hash.update(b"\0");
    hash.update(order.amount.get().to_be_bytes());
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
