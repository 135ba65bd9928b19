//! Slot of one record's outcome: the producer's thread stores it, and the record's owner waits for it.

use std::sync::{Condvar, Mutex, MutexGuard};

use super::record::Outcome;
use crate::lock;
use tbd_deadline::Deadline;

/// A slot for one record's outcome: a producer thread stores it, and the waiting owner takes it.
/// Its lock is always the innermost.
#[derive(Debug, Default)]
pub(super) struct Slot {
    state: Mutex<SlotState>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct SlotState {
    stage: Stage,
    /// Whether an owner waits. It saves a system call: waking nobody costs one too.
    is_awaited: bool,
}

#[derive(Debug, Default)]
enum Stage {
    /// In the queue; no byte of it was sent.
    #[default]
    Queued,
    /// Withdrawn by its owner before it was sent.
    Withdrawn,
    /// In a batch that was sent or is about to be.
    Sent,
    Done(Outcome),
}

impl Slot {
    /// Moves from the queue into a batch; false if the record was withdrawn. A record of unknown
    /// outcome that waits for a retry can no longer be withdrawn.
    pub(super) fn take_for_sending(&self) -> bool {
        let stage = &mut self.state().stage;
        match stage {
            Stage::Queued | Stage::Sent => {
                *stage = Stage::Sent;
                true
            }
            _ => false,
        }
    }

    /// Moves back into the queue, after a broker refused all of the batch.
    pub(super) fn return_to_queue(&self) {
        let stage = &mut self.state().stage;
        if matches!(stage, Stage::Sent) {
            *stage = Stage::Queued;
        }
    }

    pub(super) fn is_withdrawn(&self) -> bool {
        matches!(self.state().stage, Stage::Withdrawn)
    }

    /// Stores the outcome; false if the slot already has one or was withdrawn.
    pub(super) fn complete(&self, outcome: Outcome) -> bool {
        let mut state = self.state();
        if matches!(state.stage, Stage::Withdrawn | Stage::Done(_)) {
            return false;
        }
        state.stage = Stage::Done(outcome);
        let is_awaited = state.is_awaited;
        // The woken thread finds the lock free.
        drop(state);
        if is_awaited {
            self.done.notify_all();
        }
        true
    }

    /// Waits for the outcome at most until `deadline`.
    pub(super) fn wait(&self, deadline: Deadline) -> Result<Outcome, GaveUp> {
        let mut state = self.state();
        state.is_awaited = true;
        loop {
            if let Stage::Done(outcome) = &state.stage {
                return Ok(outcome.clone());
            }
            let left = deadline.remaining();
            if left.is_zero() {
                return Err(match state.stage {
                    Stage::Queued => {
                        state.stage = Stage::Withdrawn;
                        GaveUp::Withdrawn
                    }
                    Stage::Withdrawn => GaveUp::Withdrawn,
                    Stage::Sent | Stage::Done(_) => GaveUp::Sent,
                });
            }
            state = match self.done.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn state(&self) -> MutexGuard<'_, SlotState> {
        lock(&self.state)
    }
}

/// The state of a record whose owner stopped waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GaveUp {
    Withdrawn,
    Sent,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::Error;
    use crate::producer::record::{Certainty, ProduceError};

    #[test]
    fn a_record_given_up_while_queued_can_no_longer_be_sent() {
        let slot = Slot::default();
        let gave_up = slot.wait(Deadline::after(Duration::ZERO)).unwrap_err();
        assert_eq!(gave_up, GaveUp::Withdrawn);
        assert!(!slot.take_for_sending());
        assert!(!slot.complete(Err(ProduceError::not_sent(Error::Closed))));
    }

    #[test]
    fn a_record_given_up_after_sending_still_gets_its_outcome() {
        let slot = Slot::default();
        assert!(slot.take_for_sending());
        let gave_up = slot.wait(Deadline::after(Duration::ZERO)).unwrap_err();
        assert_eq!(gave_up, GaveUp::Sent);
        assert!(slot.complete(Err(ProduceError::maybe_sent(Error::Closed))));
        let outcome = slot.wait(Deadline::after(Duration::ZERO)).unwrap();
        assert_eq!(outcome.unwrap_err().certainty, Certainty::MaybeSent);
    }
}
