//! A customer cancels an order.

use std::sync::Arc;

use jiff::Timestamp;

use crate::orders::domain::{NotPending, Order, OrderId};
use crate::orders::ports::{OrderRepository, StoreError};
use tbd_deadline::Deadline;

/// Cancels pending orders.
pub struct CancelOrder {
    repository: Arc<dyn OrderRepository>,
}

/// Why an order was not canceled.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// There is no such order.
    #[error("no such order")]
    NotFound,
    /// The order is not as the caller expects it to be.
    #[error("the order has changed")]
    PreconditionFailed,
    /// Processing has begun.
    #[error(transparent)]
    NotPending(#[from] NotPending),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CancelOrder {
    /// The command on `repository`.
    pub fn new(repository: Arc<dyn OrderRepository>) -> Self {
        Self { repository }
    }

    /// Cancels the order if `expected` holds for it as it is, and returns it;
    /// one that is canceled already is returned unchanged. Waits for the store
    /// until `deadline` at most.
    ///
    /// # Errors
    /// [`CancelError`]; nothing has changed then, unless the store became
    /// unavailable in the middle. Canceling again is harmless.
    pub fn handle(
        &self,
        id: OrderId,
        expected: impl Fn(&Order) -> bool,
        deadline: Deadline,
    ) -> Result<Order, CancelError> {
        // An order leaves pending once and never comes back: if a worker or a twin was
        // faster, the second look settles it.
        let mut attempted = None;
        loop {
            let old = self
                .repository
                .get(id, deadline)?
                .ok_or(CancelError::NotFound)?;
            // The store's answer was lost, not the cancellation: it must not fail the
            // precondition that held for it.
            if attempted.as_ref() == Some(&old) {
                log::info!(order_id:% = id; "order canceled");
                return Ok(old);
            }
            if !expected(&old) {
                return Err(CancelError::PreconditionFailed);
            }
            let new = old.cancel(Timestamp::now())?;
            if new == old {
                return Ok(old);
            }
            if self.repository.replace(&old, &new, deadline)? {
                log::info!(order_id:% = id; "order canceled");
                return Ok(new);
            }
            attempted = Some(new);
        }
    }
}

#[cfg(test)]
mod tests;
