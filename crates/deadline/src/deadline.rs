//! Deadlines: one point in time that a whole piece of work shares.
//!
//! A deadline is made once, where work enters (a request's head was read, a record was polled), and
//! passed down with it. Every wait below it asks for the remaining time instead of using a time-out
//! of its own, so limits never add up.

use std::time::{Duration, Instant};

/// The latest moment until which work may continue, on the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline `duration` from now.
    pub fn after(duration: Duration) -> Self {
        Self::after_instant(Instant::now(), duration)
    }

    /// The deadline `duration` after `start`.
    pub fn after_instant(start: Instant, duration: Duration) -> Self {
        // A duration beyond the clock's range becomes a year.
        const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
        Self(start.checked_add(duration).unwrap_or_else(|| start + FAR))
    }

    /// The deadline at `instant`.
    pub fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// The moment itself, for `Condvar` and channel waits that take an instant.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// The remaining time; zero once the deadline has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether the deadline has passed.
    pub fn is_past(self) -> bool {
        self.remaining().is_zero()
    }

    /// The earlier of two deadlines: limits a step's own budget to its caller's.
    pub fn earlier_of(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_past_deadline_has_nothing_left() {
        let deadline = Deadline::after(Duration::ZERO);
        assert!(deadline.is_past());
        assert_eq!(deadline.remaining(), Duration::ZERO);
    }

    #[test]
    fn a_step_never_outlives_its_caller() {
        let caller = Deadline::after(Duration::from_secs(1));
        let step = Deadline::after(Duration::from_secs(60));
        assert_eq!(step.earlier_of(caller), caller);
    }

    #[test]
    fn an_absurd_duration_is_far_away_instead_of_a_panic() {
        assert!(!Deadline::after(Duration::MAX).is_past());
    }
}
