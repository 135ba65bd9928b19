//! The simulated processing step: it takes time and sometimes fails.

use std::time::Duration;

use crate::orders::domain::Order;
use crate::orders::ports::{ProcessingStep, StepError};
use tbd_deadline::{Deadline, StopSignal};

/// Waits `time` for each order and fails a share of the attempts.
pub struct SimulatedStep {
    time: Duration,
    failure_rate: f64,
    abort: StopSignal,
}

impl SimulatedStep {
    /// A step of `time` (PROCESSING_TIME) that fails at `failure_rate`
    /// (PROCESSING_FAILURE_RATE, 0 to 1). `abort` interrupts a running step.
    pub fn new(time: Duration, failure_rate: f64, abort: StopSignal) -> Self {
        Self {
            time,
            failure_rate,
            abort,
        }
    }
}

impl ProcessingStep for SimulatedStep {
    fn process(&self, _: &Order, deadline: Deadline) -> Result<(), StepError> {
        if !self.time.is_zero() {
            let end = Deadline::after(self.time);
            if self.abort.wait_until(end.earlier_of(deadline)) {
                return Err(StepError::Stopped);
            }
            if !end.is_past() {
                return Err(StepError::TimedOut);
            }
        }
        if self.failure_rate > 0.0 && fastrand::f64() < self.failure_rate {
            return Err(StepError::Failed("simulated failure".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orders::domain::{AmountCents, CustomerEmail};

    fn order() -> Order {
        let email = CustomerEmail::new("a@b.co".into()).unwrap();
        Order::create(email, AmountCents::new(1).unwrap(), jiff::Timestamp::now())
    }

    fn run(time: Duration, rate: f64, limit: Duration) -> Result<(), StepError> {
        SimulatedStep::new(time, rate, StopSignal::new()).process(&order(), Deadline::after(limit))
    }

    #[test]
    fn the_failure_rate_0_never_fails_and_1_always_does() {
        for _ in 0..200 {
            assert!(run(Duration::ZERO, 0.0, Duration::from_secs(1)).is_ok());
            assert!(run(Duration::ZERO, 1.0, Duration::from_secs(1)).is_err());
        }
    }

    #[test]
    fn a_step_that_is_too_slow_ends_at_its_deadline() {
        let day = Duration::from_secs(86_400);
        assert_eq!(run(day, 0.0, Duration::ZERO), Err(StepError::TimedOut));
    }
}
