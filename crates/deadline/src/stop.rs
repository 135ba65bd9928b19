//! Stop signal: tells many threads to end, and wakes those that wait.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::{Deadline, lock};

/// A request to stop, shared by all clones. It cannot be withdrawn.
#[derive(Clone, Debug, Default)]
pub struct StopSignal(Arc<(Mutex<bool>, Condvar)>);

impl StopSignal {
    /// A signal that has not been given yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the signal and wakes every waiting thread. Does not block.
    pub fn stop(&self) {
        let (stopped, changed) = &*self.0;
        *lock(stopped) = true;
        changed.notify_all();
    }

    /// Whether the signal was given.
    pub fn is_stopped(&self) -> bool {
        *lock(&self.0.0)
    }

    /// Waits for `duration`, or until the signal is given. Returns whether it was given.
    pub fn wait_for(&self, duration: Duration) -> bool {
        self.wait_until(Deadline::after(duration))
    }

    /// Waits until `deadline`, or until the signal is given. Returns whether it was given.
    pub fn wait_until(&self, deadline: Deadline) -> bool {
        let (stopped, changed) = &*self.0;
        let stopped = lock(stopped);
        let (stopped, _) = changed
            .wait_timeout_while(stopped, deadline.remaining(), |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        *stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopping_wakes_a_thread_that_waits_for_a_day() {
        let signal = StopSignal::new();
        let waiting = {
            let signal = signal.clone();
            std::thread::spawn(move || signal.wait_for(Duration::from_secs(86_400)))
        };
        signal.stop();
        assert!(waiting.join().unwrap());
        assert!(signal.is_stopped());
    }

    #[test]
    fn a_wait_ends_by_itself() {
        assert!(!StopSignal::new().wait_for(Duration::from_millis(1)));
    }
}
