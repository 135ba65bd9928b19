//! A job in a coalescer's queue or in a batch, and its caller's sleep.

use std::sync::{Condvar, Mutex, PoisonError};

use tbd_deadline::{Deadline, lock};

use super::Job;

/// A job and its caller.
pub(super) struct Ticket<J: Job> {
    pub(super) job: J,
    /// Lock order: after the state's lock, or without it.
    pub(super) phase: Mutex<Phase<J::Answer>>,
    changed: Condvar,
}

/// What a caller waits for.
pub(super) enum Phase<R> {
    /// In the queue, or in another writer's batch.
    Waiting,
    /// Out of the queue: the caller must become a writer.
    Promoted,
    /// The answer.
    Done(R),
    /// The writer panicked, or gave no answer.
    Abandoned,
    /// The answer was taken, or the caller has gone.
    Over,
}

impl<J: Job> Ticket<J> {
    pub(super) fn new(job: J) -> Self {
        Self {
            job,
            phase: Mutex::new(Phase::Waiting),
            changed: Condvar::new(),
        }
    }

    /// Sets the phase, unless the caller has gone.
    pub(super) fn set(&self, phase: Phase<J::Answer>) {
        let mut now = lock(&self.phase);
        if !matches!(*now, Phase::Over) {
            *now = phase;
            drop(now);
            self.changed.notify_one();
        }
    }

    /// Waits for the next phase; [`Phase::Waiting`] if there is none by `deadline`.
    pub(super) fn wait(&self, deadline: Deadline) -> Phase<J::Answer> {
        let mut phase = lock(&self.phase);
        loop {
            match std::mem::replace(&mut *phase, Phase::Waiting) {
                Phase::Waiting => {}
                moved_on => return moved_on,
            }
            let left = deadline.remaining();
            if left.is_zero() {
                return Phase::Waiting;
            }
            phase = self
                .changed
                .wait_timeout(phase, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}
