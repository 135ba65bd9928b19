//! Business metrics.

use std::time::Duration;

use super::Backlog;
use crate::orders::domain::saga::{Command, SagaState};

/// How a message about an order ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Processed now.
    Completed,
    /// Every attempt failed.
    Failed,
    /// Skipped: the customer canceled it first.
    Canceled,
    /// The order had a final status already; nothing changed.
    Duplicate,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Outcome; 4] = [
        Outcome::Completed,
        Outcome::Failed,
        Outcome::Canceled,
        Outcome::Duplicate,
    ];

    /// The outcome as a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::Failed => "failed",
            Outcome::Canceled => "canceled",
            Outcome::Duplicate => "duplicate",
        }
    }
}

/// What came of sending a saga's command once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepOutcome {
    /// The command has its effect.
    Done,
    /// The participant refused it.
    Refused,
    /// There was no answer; the command will be sent again.
    Unavailable,
}

impl StepOutcome {
    /// Every outcome.
    pub const ALL: [StepOutcome; 3] = [
        StepOutcome::Done,
        StepOutcome::Refused,
        StepOutcome::Unavailable,
    ];

    /// The outcome as a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            StepOutcome::Done => "done",
            StepOutcome::Refused => "refused",
            StepOutcome::Unavailable => "unavailable",
        }
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
