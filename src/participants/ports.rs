//! The ledger port: a participant's holds, which are kept for good.

use tbd_deadline::Deadline;

use super::domain::{Action, Answer, Command, Stock};

/// Keeps the holds of all sagas. An implementation applies
/// [`Participant::decide`](super::domain::Participant::decide) to each command.
pub trait Ledger: Send + Sync {
    /// Runs `action` for the sagas of all `commands` in one transaction. Returns an answer for each
    /// command, in order. Of several commands of one saga the first one counts. Waits until
    /// `deadline` at most.
    ///
    /// # Errors
    /// [`LedgerError`]. Then the effect is unknown, and the same commands may be sent again.
    fn run(
        &self,
        action: Action,
        commands: &[Command],
        deadline: Deadline,
    ) -> Result<Vec<Outcome>, LedgerError>;

    /// What the ledger adds up to. Waits until `deadline` at most.
    ///
    /// # Errors
    /// [`LedgerError`].
    fn audit(&self, deadline: Deadline) -> Result<Audit, LedgerError>;
}

/// A command's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The answer.
    pub answer: Answer,
    /// Whether this run decided it; otherwise an earlier command of the saga did.
    pub is_new: bool,
}

/// The totals of a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// The units of the inventory.
    Stock(Stock),
    /// The payments by state.
    Payments {
        /// Neither captured nor voided.
        authorized: Total,
        /// Captured.
        captured: Total,
        /// Authorized once, and voided.
        voided: Total,
    },
}

/// Some payments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// How many.
    pub count: i64,
    /// Their sum.
    pub amount_cents: i128,
}

/// Why the ledger did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The database is away or too slow; the same call may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// A fault of the program or its schema.
    #[error("{0}")]
    Internal(String),
}
