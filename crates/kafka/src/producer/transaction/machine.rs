//! State machine of a transactional producer, and its reaction to each error code. No I/O.

use super::{Ended, TransactionError};
use crate::producer::batch::{Identity, Transactions};
use crate::{ApiKey, Error, ErrorCode};

/// The producer's reaction to an error code of a coordinator or a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reaction {
    /// Back off and repeat the request.
    Retry,
    /// Find the coordinator, then repeat the request.
    FindCoordinator,
    /// The transaction cannot be committed.
    Abort,
    /// Another producer has the transactional id.
    Fenced,
    /// The request failed; the transaction is as before.
    Report,
}

/// Looks up the reaction in the table of `DESIGN.md`.
pub(super) fn reaction(api: ApiKey, code: ErrorCode) -> Reaction {
    use ApiKey::{EndTxn, FindCoordinator, InitProducerId};
    use ErrorCode as E;
    match (api, code) {
        (_, E::ProducerFenced | E::InvalidProducerEpoch) => Reaction::Fenced,
        (_, E::NotCoordinator | E::CoordinatorNotAvailable) => Reaction::FindCoordinator,
        (_, E::ConcurrentTransactions) => Reaction::Retry,
        // After it, the outcome of an EndTxn is unknown. The other requests may be repeated, too.
        (_, E::UnknownServerError) => Reaction::Retry,
        (_, code) if code.is_retriable() => Reaction::Retry,
        (InitProducerId | FindCoordinator, _) => Reaction::Report,
        // The coordinator knows no such open transaction.
        (
            EndTxn,
            E::InvalidTxnState
            | E::InvalidProducerIdMapping
            | E::UnknownProducerId
            | E::TransactionAbortable,
        ) => Reaction::Abort,
        (EndTxn, _) => Reaction::Report,
        _ => Reaction::Abort,
    }
}

/// As [`reaction`], for any failure of a request to a coordinator.
pub(super) fn reaction_to(error: &Error) -> Reaction {
    match error {
        Error::Refused { api, code, .. } => reaction(*api, *code),
        // Its broker may be down.
        error if error.is_transient() => Reaction::FindCoordinator,
        _ => Reaction::Report,
    }
}

/// What a producer does before its next transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// InitProducerId.
    Initialize,
    /// EndTxn.
    End(Ended),
    /// It is ready.
    Nothing,
}

#[derive(Debug, Clone)]
enum Stage {
    /// It has no identity yet, or one that it must not use for another transaction.
    Unready,
    /// Between two transactions.
    Ready,
    /// A transaction takes records and offsets.
    Open,
    /// The coordinator must abort the transaction.
    Aborting,
    /// The coordinator was asked to commit, or is about to be. No other end is possible.
    Committing,
    /// Another producer has the transactional id. The last stage.
    Fenced(Error),
}

#[derive(Debug)]
pub(super) struct Machine {
    stage: Stage,
    identity: Option<Identity>,
    /// Whether the coordinator may know of the open transaction.
    is_registered: bool,
    last: Option<Ended>,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self {
            stage: Stage::Unready,
            identity: None,
            is_registered: false,
            last: None,
        }
    }

    /// What became of the last transaction that is over.
    pub(super) fn last(&self) -> Option<Ended> {
        self.last
    }

    /// The identity, also if it must be renewed.
    pub(super) fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// Whether partitions and groups are registered by requests of their own.
    pub(super) fn is_explicit(&self) -> bool {
        let transactions = self.identity.map(|it| it.transactions);
        transactions != Some(Transactions::Implicit)
    }

    /// Whether a transaction must be ended.
    pub(super) fn is_pending(&self) -> bool {
        matches!(
            self.stage,
            Stage::Open | Stage::Aborting | Stage::Committing
        )
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }

    /// # Errors
    /// When the transaction takes nothing more.
    pub(super) fn check_open(&self) -> Result<(), TransactionError> {
        match &self.stage {
            Stage::Open => Ok(()),
            Stage::Fenced(error) => Err(TransactionError::Fenced(error.clone())),
            _ => Err(TransactionError::Aborted(Error::Aborted)),
        }
    }

    /// The next step towards another transaction.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn step(&self) -> Result<Step, TransactionError> {
        match &self.stage {
            Stage::Unready => Ok(Step::Initialize),
            Stage::Ready => Ok(Step::Nothing),
            // A guard that was leaked left it open.
            Stage::Open | Stage::Aborting => Ok(Step::End(Ended::Aborted)),
            Stage::Committing => Ok(Step::End(Ended::Committed)),
            Stage::Fenced(error) => Err(TransactionError::Fenced(error.clone())),
        }
    }

    pub(super) fn initialized(&mut self, identity: Identity) {
        self.identity = Some(identity);
        self.stage = Stage::Ready;
    }

    /// A transaction begins. Call it only when there is nothing to do before; returns `None`
    /// otherwise.
    pub(super) fn begin(&mut self) -> Option<Identity> {
        let identity = self
            .identity
            .filter(|_| matches!(self.stage, Stage::Ready))?;
        self.stage = Stage::Open;
        self.is_registered = false;
        Some(identity)
    }

    /// The coordinator may know of the open transaction from now on.
    pub(super) fn registered(&mut self) {
        self.is_registered = true;
    }

    /// The application gives the open transaction up.
    pub(super) fn abandon(&mut self) {
        if self.is_registered {
            self.stage = Stage::Aborting;
        } else {
            self.over(Ended::Aborted, true);
        }
    }

    /// The application commits the open transaction; false when the coordinator knows nothing of
    /// it, so that it is over.
    pub(super) fn commit(&mut self) -> bool {
        if self.is_registered {
            self.stage = Stage::Committing;
        } else {
            self.over(Ended::Committed, true);
        }
        self.is_registered
    }

    /// The coordinator has ended the transaction. `renewed`: with the identity of the next one.
    /// `is_usable`: the present identity can be used for it.
    pub(super) fn ended(&mut self, renewed: Option<Identity>, is_usable: bool) {
        let ended = match self.stage {
            Stage::Committing => Ended::Committed,
            _ => Ended::Aborted,
        };
        self.identity = renewed.or(self.identity);
        self.over(ended, renewed.is_some() || is_usable);
    }

    fn over(&mut self, ended: Ended, is_usable: bool) {
        self.last = Some(ended);
        self.is_registered = false;
        self.stage = if is_usable {
            Stage::Ready
        } else {
            Stage::Unready
        };
    }

    /// A request or a record has failed. Returns what to tell the application; `None` when the
    /// failure means that there was nothing to abort.
    pub(super) fn failed(&mut self, error: Error) -> Option<TransactionError> {
        match (&self.stage, reaction_to(&error)) {
            (_, Reaction::Fenced) => {
                self.stage = Stage::Fenced(error.clone());
                Some(TransactionError::Fenced(error))
            }
            (Stage::Open, _) => {
                self.abandon();
                Some(TransactionError::Aborted(error))
            }
            (Stage::Committing, Reaction::Abort) => {
                self.stage = Stage::Aborting;
                Some(TransactionError::Aborted(error))
            }
            (Stage::Committing, _) => Some(TransactionError::Unknown(error)),
            (Stage::Aborting, Reaction::Abort) => {
                // A late batch could still open another one under this identity.
                self.over(Ended::Aborted, false);
                None
            }
            _ => Some(TransactionError::Failed(error)),
        }
    }
}

#[cfg(test)]
mod tests;
