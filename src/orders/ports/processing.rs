//! The work an order is about.

use crate::orders::domain::Order;
use tbd_deadline::Deadline;

/// Why one attempt at processing failed. The text goes into events; it must not
/// hold secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The step itself said no; it may succeed at the next attempt.
    #[error("{0}")]
    Failed(String),
    /// The step did not end before its deadline.
    #[error("processing took longer than its limit")]
    TimedOut,
    /// The program is stopping; this was no attempt.
    #[error("stopped")]
    Stopped,
}

/// Whatever has to be done for an order between `processing` and `completed`.
pub trait ProcessingStep: Send + Sync {
    /// Works on `order` until `deadline` at most. It may be called again for an
    /// order it has worked on before.
    ///
    /// # Errors
    /// [`StepError`].
    fn process(&self, order: &Order, deadline: Deadline) -> Result<(), StepError>;
}
