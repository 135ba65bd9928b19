//! Events that are stored but not known to be published.

use std::time::Duration;

use crate::orders::domain::OrderId;
use tbd_deadline::Deadline;

use super::{Message, StoreError};

/// How much waits to be published.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Rows waiting.
    pub rows: i64,
    /// Age of the oldest, in seconds; zero if there is none.
    pub oldest_seconds: f64,
}

/// The stored events.
pub trait Outbox: Send + Sync {
    /// Takes up to `limit` events older than `min_age`, oldest first, that no
    /// other relay holds; hands them to `publish`, which says of each whether it
    /// was acknowledged; removes those. The number taken, and of these removed.
    ///
    /// The rows stay locked while `publish` runs: it must be bounded in time.
    ///
    /// # Errors
    /// [`StoreError`]; what was published but not removed is published again later.
    fn relay(
        &self,
        limit: u32,
        min_age: Duration,
        deadline: Deadline,
        publish: &mut dyn FnMut(&[Message]) -> Vec<bool>,
    ) -> Result<(usize, usize), StoreError>;

    /// Removes the order.created events of `order_ids`, acknowledged elsewhere.
    ///
    /// # Errors
    /// [`StoreError`]; what was not removed is published again later.
    fn remove(&self, order_ids: &[OrderId], deadline: Deadline) -> Result<(), StoreError>;

    /// How much waits.
    ///
    /// # Errors
    /// [`StoreError`].
    fn backlog(&self, deadline: Deadline) -> Result<Backlog, StoreError>;
}
