//! Looking up the saga of one order.

use std::sync::Arc;

use crate::orders::domain::{OrderId, Saga};
use crate::orders::ports::{SagaStore, StoreError};
use tbd_deadline::Deadline;

/// Finds the saga of an order.
pub struct GetSaga {
    sagas: Arc<dyn SagaStore>,
}

impl GetSaga {
    /// The query on `sagas`.
    pub fn new(sagas: Arc<dyn SagaStore>) -> Self {
        Self { sagas }
    }

    /// The saga, if the order has one. Waits for the store until `deadline` at most.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn handle(&self, id: OrderId, deadline: Deadline) -> Result<Option<Saga>, StoreError> {
        self.sagas.find(id, deadline)
    }
}
