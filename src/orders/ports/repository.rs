//! The repository of orders.

use jiff::Timestamp;

use crate::orders::domain::{Order, OrderId, Status};
use tbd_deadline::Deadline;

use super::StoreError;

/// Which orders to list, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Only orders with this status.
    pub status: Option<Status>,
    /// Only orders older than this one.
    pub before: Option<OrderId>,
    /// Number of orders to skip. Skipping costs as much as reading them; `before` costs nothing.
    pub skip: u64,
    /// Maximum number of orders.
    pub limit: u32,
}

/// The result of claiming one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The order. Its status is `processing` if there is work to do.
    pub order: Order,
    /// Why the order failed, if it did.
    pub failure_reason: Option<String>,
    /// Whether an unfinished saga works on the order. Only [`OrderRepository::claim`] tells; elsewhere it
    /// is false.
    pub has_saga: bool,
}

/// The replay of an order's dead letter: a failed order gets another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// The order.
    pub id: OrderId,
    /// When the dead letter was replayed. An order that failed later stays failed.
    pub replayed_at: Timestamp,
}

/// An order whose last attempt has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The order.
    pub id: OrderId,
    /// Why the attempt failed. It must not contain secrets.
    pub reason: String,
}

/// Reads of orders. A reader may be some time behind the repository, but finds every order that was
/// created before the call. Every call waits for the store until its deadline at most.
pub trait OrderReader: Send + Sync {
    /// The order, if there is one.
    ///
    /// # Errors
    /// [`StoreError`].
    fn get(&self, id: OrderId, deadline: Deadline) -> Result<Option<Order>, StoreError>;

    /// The orders of a page.
    ///
    /// # Errors
    /// [`StoreError`].
    fn list(&self, page: &Page, deadline: Deadline) -> Result<Vec<Order>, StoreError>;
}

/// The stored orders, each in its current state. Every call waits for the store until its deadline
/// at most.
pub trait OrderRepository: OrderReader {
    /// Replaces `old` by `new` if the stored order still equals `old`. Returns whether it did.
    ///
    /// # Errors
    /// [`StoreError`].
    fn replace(&self, old: &Order, new: &Order, deadline: Deadline) -> Result<bool, StoreError>;

    /// Claims the pending orders of `ids` at `now`, all in one step, and returns the state of
    /// each of `ids` afterwards. Unknown ids are missing from the result.
    ///
    /// # Errors
    /// [`StoreError`].
    fn claim(
        &self,
        ids: &[OrderId],
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Vec<Claimed>, StoreError>;

    /// Moves the orders of `replays` that failed before their replay back to `processing`, and
    /// deletes their failure reasons. `replays` may name an order more than once.
    ///
    /// # Errors
    /// [`StoreError`].
    fn retry_failed(
        &self,
        replays: &[Replay],
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<(), StoreError>;

    /// Moves the `processing` orders of `ids` to `completed`, except those with an unfinished saga, which ends
    /// them itself. Returns the orders it moved.
    ///
    /// # Errors
    /// [`StoreError`].
    fn complete(
        &self,
        ids: &[OrderId],
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Vec<Order>, StoreError>;

    /// Moves the `processing` orders of `failures` to `failed`, except those with an unfinished saga. Returns
    /// the orders it moved.
    ///
    /// # Errors
    /// [`StoreError`].
    fn fail(
        &self,
        failures: &[Failure],
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Vec<Order>, StoreError>;
}
