//! Where orders are kept.

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
    /// How many to pass over. Costs as much as reading them; `before` does not.
    pub skip: u64,
    /// How many at most.
    pub limit: u32,
}

/// An order as a worker found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The order; `processing` if there is work to do.
    pub order: Order,
    /// Why it failed, if it did.
    pub failure_reason: Option<String>,
}

/// An order that shall have another chance: its message was taken out of the dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// The order.
    pub id: OrderId,
    /// When the message was taken out. What failed later has had its chance.
    pub replayed_at: Timestamp,
}

/// An order whose last attempt has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The order.
    pub id: OrderId,
    /// Why the attempt failed. It must not hold secrets.
    pub reason: String,
}

/// Keeps orders. Every call waits for the store until its deadline at most.
pub trait OrderRepository: Send + Sync {
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

    /// Replaces `old` by `new` if the order still is as `old` says; whether it was.
    ///
    /// # Errors
    /// [`StoreError`].
    fn replace(&self, old: &Order, new: &Order, deadline: Deadline) -> Result<bool, StoreError>;

    /// Takes up the pending ones of `ids` at `now`, all in one step, and tells how each of `ids`
    /// then stands. Ids that no order has are missing from the answer.
    ///
    /// # Errors
    /// [`StoreError`].
    fn claim(
        &self,
        ids: &[OrderId],
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Vec<Claimed>, StoreError>;

    /// Moves those of `replays` that had failed before their message was replayed back to
    /// `processing`, and forgets why they had failed. An order may be named more than once.
    ///
    /// # Errors
    /// [`StoreError`].
    fn retry_failed(
        &self,
        replays: &[Replay],
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<(), StoreError>;

    /// Moves those of `ids` that are `processing` to `completed`; the orders moved.
    ///
    /// # Errors
    /// [`StoreError`].
    fn complete(
        &self,
        ids: &[OrderId],
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Vec<Order>, StoreError>;

    /// Moves those of `failures` that are `processing` to `failed`; the orders moved.
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
