//! Cancellation of an order by its customer.

use std::sync::Arc;

use jiff::Timestamp;

use crate::orders::domain::{NotPending, Order, OrderId};
use crate::orders::ports::{OrderRepository, StoreError};
use tbd_deadline::Deadline;

/// Cancels pending orders.
pub struct CancelOrder {
    /// The store of orders.
    pub repository: Arc<dyn OrderRepository>,
}

/// Why an order was not canceled.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// There is no such order.
    #[error("no such order")]
    NotFound,
    /// The caller's expectation of the order does not hold.
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
    /// Cancels the order if `expected` holds for its current state, and returns it. Returns an
    /// order that is canceled already unchanged. Waits for the store until `deadline` at most.
    ///
    /// # Errors
    /// [`CancelError`]. The order is unchanged, unless the store became unavailable: then the
    /// outcome is unknown. Canceling again is harmless.
    pub fn handle(
        &self,
        id: OrderId,
        expected: impl Fn(&Order) -> bool,
        deadline: Deadline,
    ) -> Result<Order, CancelError> {
        // An order leaves `pending` once and never returns: if a worker or a twin was
        // faster, the second iteration finds the final answer.
        let mut attempted = None;
        loop {
            let old = self
                .repository
                .get(id, deadline)?
                .ok_or(CancelError::NotFound)?;
            // The store's answer was lost, but the cancellation took effect. Its own change must
            // not fail the precondition that held before.
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
