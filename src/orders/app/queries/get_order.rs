//! Looking up one order.

use std::sync::Arc;

use crate::orders::domain::{Order, OrderId};
use crate::orders::ports::{OrderRepository, StoreError};
use tbd_deadline::Deadline;

/// Finds one order.
pub struct GetOrder {
    repository: Arc<dyn OrderRepository>,
}

impl GetOrder {
    /// The query on `repository`.
    pub fn new(repository: Arc<dyn OrderRepository>) -> Self {
        Self { repository }
    }

    /// The order, if there is one. Waits for the store until `deadline` at most.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn handle(&self, id: OrderId, deadline: Deadline) -> Result<Option<Order>, StoreError> {
        self.repository.get(id, deadline)
    }
}
