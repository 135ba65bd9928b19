//! The processing step of an order.

use crate::orders::domain::Order;
use tbd_deadline::Deadline;

/// Why one attempt at processing failed. The text goes into events, so it must not contain
/// secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The step failed. The next attempt may succeed.
    #[error("{0}")]
    Failed(String),
    /// The step did not end before its deadline.
    #[error("processing took longer than its limit")]
    TimedOut,
    /// The program is stopping. This does not count as an attempt.
    #[error("stopped")]
    Stopped,
}

/// The work on an order between `processing` and `completed`.
pub trait ProcessingStep: Send + Sync {
    /// Works on `order` until `deadline` at most. It may be called more than once for one order.
    ///
    /// # Errors
    /// [`StepError`].
    fn process(&self, order: &Order, deadline: Deadline) -> Result<(), StepError>;
}
