//! Looking up one order.

use std::sync::Arc;

use crate::orders::domain::{Order, OrderId};
use crate::orders::ports::{OrderReader, StoreError};
use tbd_deadline::Deadline;

/// Finds one order.
pub struct GetOrder {
    reader: Arc<dyn OrderReader>,
}

impl GetOrder {
    /// The query on `reader`.
    pub fn new(reader: Arc<dyn OrderReader>) -> Self {
        Self { reader }
    }

    /// The order, if there is one. Waits for the store until `deadline` at most.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn handle(&self, id: OrderId, deadline: Deadline) -> Result<Option<Order>, StoreError> {
        self.reader.get(id, deadline)
    }
}
