//! The outbox: stored events that may not be published yet.

use std::time::Duration;

use crate::orders::domain::OrderId;
use tbd_deadline::Deadline;

use super::{Message, StoreError};

/// The size and age of the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Pending rows.
    pub rows: i64,
    /// Age of the oldest row in seconds; zero if there is none.
    pub oldest_seconds: f64,
}

/// What one call of [`Outbox::relay`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relayed {
    /// Events that it took.
    pub taken: usize,
    /// Events of these that were acknowledged, and removed.
    pub removed: usize,
    /// The last event that it took.
    pub last: Option<OrderId>,
}

/// The stored events.
pub trait Outbox: Send + Sync {
    /// Takes up to `limit` events older than `min_age`, oldest first and only those behind `after`,
    /// and skips those that another relay has locked. Passes them to `publish`, which returns for
    /// each whether it was acknowledged, and removes the acknowledged ones.
    ///
    /// The rows stay locked while `publish` runs, so its time must be bounded.
    ///
    /// # Errors
    /// [`StoreError`]. A later call publishes again what was published but not removed.
    fn relay(
        &self,
        after: Option<OrderId>,
        limit: u32,
        min_age: Duration,
        deadline: Deadline,
        publish: &mut dyn FnMut(&[Message]) -> Vec<bool>,
    ) -> Result<Relayed, StoreError>;

    /// Removes the acknowledged order.created events of `order_ids`.
    ///
    /// # Errors
    /// [`StoreError`]. The relay publishes again what was not removed.
    fn remove(&self, order_ids: &[OrderId], deadline: Deadline) -> Result<(), StoreError>;

    /// The current backlog.
    ///
    /// # Errors
    /// [`StoreError`].
    fn backlog(&self, deadline: Deadline) -> Result<Backlog, StoreError>;
}
