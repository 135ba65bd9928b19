//! What the business counts.

use std::time::Duration;

use super::Backlog;

/// How a message about an order ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Processed now.
    Completed,
    /// Every attempt failed.
    Failed,
    /// Skipped: the customer canceled it first.
    Canceled,
    /// A replay of an order that had ended before; nothing changed.
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

/// Counts what happens to orders. Never blocks.
pub trait Meter: Send + Sync {
    /// A new order was stored.
    fn order_created(&self);
    /// A repeated request got the first one's answer.
    fn idempotency_hit(&self);
    /// A message about an order was dealt with.
    fn order_processed(&self, outcome: Outcome);
    /// An order was completed, this long after it was created.
    fn order_completed_after(&self, delay: Duration);
    /// One attempt at an order's processing step ended, well or not, after `time`.
    fn step_ended(&self, time: Duration);
    /// The relay published so many events.
    fn events_relayed(&self, count: usize);
    /// So many expired idempotency keys were deleted.
    fn keys_swept(&self, count: u64);
    /// What waits in the outbox now.
    fn outbox_backlog(&self, backlog: Backlog);
}
