//! Slot of one record's outcome: the producer's thread stores it, and the record's owner waits for it.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::record::Outcome;
use crate::lock;
use tbd_deadline::Deadline;

/// A slot for one record's outcome: a producer thread stores it, and the waiting owner takes it.
/// Its lock is always the innermost.
///
/// There is one for each record, and in bulk none is in the processor's cache any more when it is
/// looked at again. So it is small, and without an owner only its first bytes are read: a processor
/// reads ahead of other memory, but waits for a lock.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Whether the owner has withdrawn the record, for whoever reads it without the lock.
    is_withdrawn: AtomicBool,
    done: Condvar,
    state: Mutex<SlotState>,
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
    Done(Box<Outcome>),
}

impl Slot {
    /// Moves from the queue into a batch; false if the record was withdrawn. A record of unknown
    /// outcome that waits for a retry can no longer be withdrawn.
    pub(super) fn take_for_sending(self: &Arc<Self>) -> bool {
        if self.is_abandoned() {
            return !self.is_withdrawn();
        }
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
        self.is_withdrawn.load(Ordering::Relaxed)
    }

    /// Whether nobody can ask for the outcome any more, nor withdraw the record. The owner's last
    /// deed is then visible.
    fn is_abandoned(self: &Arc<Self>) -> bool {
        let is_abandoned = Arc::strong_count(self) == 1;
        fence(Ordering::Acquire);
        is_abandoned
    }

    /// Stores the outcome; false if the slot already has one or was withdrawn.
    pub(super) fn complete(self: &Arc<Self>, outcome: &Outcome) -> bool {
        if self.is_abandoned() {
            return !self.is_withdrawn();
        }
        let mut state = self.state();
        if matches!(state.stage, Stage::Withdrawn | Stage::Done(_)) {
            return false;
        }
        state.stage = Stage::Done(Box::new(outcome.clone()));
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
                return Ok(Outcome::clone(outcome));
            }
            let left = deadline.remaining();
            if left.is_zero() {
                return Err(match state.stage {
                    Stage::Queued => {
                        state.stage = Stage::Withdrawn;
                        self.is_withdrawn.store(true, Ordering::Relaxed);
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
mod tests;
