//! The store of sagas, and the participants that execute their commands.

use jiff::Timestamp;
use uuid::Uuid;

use crate::orders::domain::saga::{Answer, Command, Participant, SagaState};
use crate::orders::domain::{AmountCents, Order, OrderId, Saga};
use tbd_deadline::Deadline;

use super::{Claimed, StoreError};

/// An order and its saga.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The order. Its status is `processing` if there is work to do.
    pub claimed: Claimed,
    /// Its saga; `None` if the order ended without one.
    pub saga: Option<Saga>,
    /// Whether this call has begun the saga, so that its command was never sent.
    pub is_new: bool,
}

/// A stored transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The order of the saga.
    pub order_id: OrderId,
    /// The order, if the transition was the saga's end.
    pub ended: Option<Order>,
}

/// The stored sagas, next to the orders. Every call waits for the store until its deadline at most.
pub trait SagaStore: Send + Sync {
    /// Moves the pending orders of `ids` to `processing` and begins the sagas of those that have none,
    /// all in one step: an order is either canceled or has a saga. Returns the state of each of `ids`
    /// afterwards. Unknown ids are missing from the result.
    ///
    /// # Errors
    /// [`StoreError`].
    fn begin(
        &self,
        ids: &[OrderId],
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Vec<Begun>, StoreError>;

    /// Stores each saga in place of its previous version, all in one step; a saga whose stored version
    /// is another one stays as it is. A saga in a final state ends its order, in the same step.
    /// Returns the transitions it stored.
    ///
    /// # Errors
    /// [`StoreError`]: some or all may be stored nevertheless.
    fn save(&self, sagas: &[Saga], deadline: Deadline) -> Result<Vec<Saved>, StoreError>;

    /// The saga of an order, if it has one.
    ///
    /// # Errors
    /// [`StoreError`].
    fn find(&self, order_id: OrderId, deadline: Deadline) -> Result<Option<Saga>, StoreError>;

    /// Leases up to `limit` unfinished sagas that have not changed since `unchanged_since`, and whose
    /// last lease began before that. Returns their orders. Two callers never get the same one.
    ///
    /// # Errors
    /// [`StoreError`].
    fn lease_stalled(
        &self,
        now: Timestamp,
        unchanged_since: Timestamp,
        limit: u32,
        deadline: Deadline,
    ) -> Result<Vec<Order>, StoreError>;

    /// The number of unfinished sagas in each state that has any.
    ///
    /// # Errors
    /// [`StoreError`].
    fn unfinished(&self, deadline: Deadline) -> Result<Vec<(SagaState, i64)>, StoreError>;
}

/// No answer from a participant. Its command may have been executed, and has to be sent again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} unavailable: {reason}", participant.as_str())]
pub struct Unavailable {
    /// The participant.
    pub participant: Participant,
    /// Why, in a text without secrets.
    pub reason: String,
}

/// The participants of the sagas.
pub trait Participants: Send + Sync {
    /// Sends `command` for each of these sagas, with the amounts of their orders, in one call. Blocks
    /// until `deadline` at most. Returns their answers, in order.
    ///
    /// # Errors
    /// [`Unavailable`]; at once while the participant is known to be away.
    fn send(
        &self,
        command: Command,
        sagas: &[(Uuid, AmountCents)],
        deadline: Deadline,
    ) -> Result<Vec<Answer>, Unavailable>;

    /// Whether a command would be sent now: not while the participant is known to be away. Never
    /// blocks.
    ///
    /// # Errors
    /// [`Unavailable`].
    fn is_reachable(&self, participant: Participant) -> Result<(), Unavailable>;
}
