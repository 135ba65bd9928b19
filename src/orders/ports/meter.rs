//! Business metrics.

use std::time::Duration;

use super::Backlog;
use crate::orders::domain::saga::{Command, SagaState};
use crate::orders::domain::words;

words! {
    /// How a message about an order ended.
    pub enum Outcome {
        /// Processed now.
        Completed = "completed",
        /// Every attempt failed.
        Failed = "failed",
        /// Skipped: the customer canceled it first.
        Canceled = "canceled",
        /// The order had a final status already; nothing changed.
        Duplicate = "duplicate",
    }
}

words! {
    /// What came of sending a saga's command once.
    pub enum StepOutcome {
        /// The command has its effect.
        Done = "done",
        /// The participant refused it.
        Refused = "refused",
        /// There was no answer; the command will be sent again.
        Unavailable = "unavailable",
    }
}

/// Counts what happens to orders. Never blocks.
pub trait Meter: Send + Sync {
    /// A new order was stored.
    fn order_created(&self);
    /// A repeated request got the first one's answer.
    fn idempotency_hit(&self);
    /// The processing of a message about an order ended.
    fn order_processed(&self, outcome: Outcome);
    /// An order was completed `delay` after its creation.
    fn order_completed_after(&self, delay: Duration);
    /// One attempt at a processing step took `time`, successful or not.
    fn step_ended(&self, time: Duration);
    /// The relay published `count` events.
    fn events_relayed(&self, count: usize);
    /// The sweeper deleted `count` expired idempotency keys.
    fn keys_swept(&self, count: u64);
    /// The current backlog of the outbox.
    fn outbox_backlog(&self, backlog: Backlog);
    /// A participant answered a saga's command, or did not.
    fn saga_step(&self, command: Command, outcome: StepOutcome);
    /// A saga ended in this state, `time` after it began.
    fn saga_ended(&self, state: SagaState, time: Duration);
    /// The current number of unfinished sagas in this state.
    fn sagas(&self, state: SagaState, count: i64);
}
