//! A customer orders, once, however often the request is sent.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::orders::app::Delivery;
use crate::orders::domain::{AmountCents, CustomerEmail, Order, OrderEvent};
use crate::orders::ports::{
    Caller, EventBus, IdempotencyKey, IdempotencyStore, Message, Meter, Once, PublishError,
    StoreError, StoredResponse, Submission,
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
    /// Who orders.
    pub customer_email: CustomerEmail,
    /// For how much.
    pub amount: AmountCents,
}

/// The answer to a new order.
#[derive(Debug)]
pub struct Accepted {
    /// The answer, stored with the key.
    pub response: StoredResponse,
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

    /// Stores the order with the answer that `respond` gives for it, and delivers
    /// its event. Waits for the store, for a twin in progress and, in direct mode,
    /// for the event bus; until `deadline` at most.
    ///
    /// # Errors
    /// [`CreateError`]. Repeating the request with the same key is always safe.
    pub fn handle(
        &self,
        new_order: NewOrder,
        respond: impl FnOnce(&Order) -> StoredResponse,
        deadline: Deadline,
    ) -> Result<Accepted, CreateError> {
        let request_hash = meaning(&new_order);
        let key = new_order.key.of(&new_order.caller);
        let order = Order::create(new_order.customer_email, new_order.amount, Timestamp::now());
        let response = respond(&order);
        let event = OrderEvent::Created(order);
        let message = self.bus.encode(&event);
        let ahead = self.delivery.ahead(&self.bus, deadline);
        let once = self.store.submit(
            &Submission {
                key: &key,
                request_hash,
                order: event.order(),
                response: &response,
                message: &message,
                ttl: self.ttl,
                when_stored: ahead.when_stored.clone(),
            },
            deadline,
        )?;
        let (accepted, unpublished) = accepted(once, response, message, &*self.meter)?;
        // A twin must not promise more than the first could: if the event is not
        // known to have arrived, it is delivered (again) before the answer.
        if let Some(message) = unpublished {
            self.delivery
                .deliver(&*self.bus, message, ahead.begun(), deadline)
                .map_err(CreateError::NotPublished)?;
        }
        Ok(accepted)
    }
}

/// What the store's answer means for the request, counted and logged: the answer (`response`, or an
/// earlier request's), and the event that has to be delivered before it is given.
///
/// # Errors
/// [`CreateError::OtherRequest`], [`CreateError::Running`].
pub fn accepted(
    once: Once,
    response: StoredResponse,
    message: Message,
    meter: &dyn Meter,
) -> Result<(Accepted, Option<Message>), CreateError> {
    let (response, unpublished, replayed) = match once {
        Once::First => {
            meter.order_created();
            log::info!(order_id:% = message.order_id; "order created");
            (response, Some(message), false)
        }
        Once::Again {
            response,
            unpublished,
        } => {
            meter.idempotency_hit();
            log::info!(order_id:% = response.order_id; "answer replayed");
            (response, unpublished, true)
        }
        Once::OtherRequest => return Err(CreateError::OtherRequest),
        Once::Running => return Err(CreateError::Running),
    };
    Ok((Accepted { response, replayed }, unpublished))
}

/// SHA-256 over what the request means, whatever its whitespace or the order of its fields.
pub fn meaning(new_order: &NewOrder) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"POST /v1/orders\0");
    hash.update(new_order.customer_email.as_str());
    // No address holds a NUL, so no two requests run into one another.
    hash.update(b"\0");
    hash.update(new_order.amount.get().to_be_bytes());
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
