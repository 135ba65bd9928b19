//! The circuit breaker around publishing: while Kafka is unavailable, requests fail at once instead
//! of after the publish budget.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::orders::ports::PublishError;
use tbd_deadline::lock;
use tbd_telemetry::tracing;

/// Consecutive failures that open the breaker. A single lost request is no outage.
const FAILURES_MAX: u32 = 5;
/// How long the breaker stays open before one request may probe Kafka.
const COOL_DOWN: Duration = Duration::from_secs(30);

/// The state of a breaker; the number is the value of `circuit_breaker_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Everything passes.
    Closed = 0,
    /// One request is probing Kafka.
    HalfOpen = 1,
    /// Nothing passes.
    Open = 2,
}

enum Circuit {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen,
}

/// Counts failures, and refuses requests after too many.
pub struct Breaker {
    circuit: Mutex<Circuit>,
    changed: Box<dyn Fn(BreakerState) + Send + Sync>,
}

/// The permission for one publish. Dropping it without [`Permit::ended`] counts as a failure.
pub struct Permit<'a> {
    breaker: &'a Breaker,
    succeeded: bool,
}

impl Breaker {
    /// A closed breaker. It calls `changed` with every new state, and with the first one now.
    pub fn new(changed: impl Fn(BreakerState) + Send + Sync + 'static) -> Self {
        changed(BreakerState::Closed);
        Self {
            circuit: Mutex::new(Circuit::Closed { failures: 0 }),
            changed: Box::new(changed),
        }
    }

    /// Admits a request at `now`. `None` while open, and while another request is probing.
    pub fn admit(&self, now: Instant) -> Option<Permit<'_>> {
        let is_probe = {
            let mut circuit = lock(&self.circuit);
            match *circuit {
                Circuit::Closed { .. } => false,
                Circuit::Open { until } if now >= until => {
                    *circuit = Circuit::HalfOpen;
                    true
                }
                Circuit::Open { .. } | Circuit::HalfOpen => return None,
            }
        };
        if is_probe {
            (self.changed)(BreakerState::HalfOpen);
        }
        Some(Permit {
            breaker: self,
            succeeded: false,
        })
    }

    /// Counts the outcome of a publish without a permit.
    pub fn count(&self, result: &Result<(), PublishError>) {
        self.record(!is_away(result), Instant::now());
    }

    /// Calls `publish`, unless the breaker is open, and counts its outcome.
    ///
    /// # Errors
    /// The errors of `publish`. While the breaker is open, [`PublishError::Unavailable`] at once.
    pub fn guard(
        &self,
        publish: impl FnOnce() -> Result<(), PublishError>,
    ) -> Result<(), PublishError> {
        let Some(permit) = self.admit(Instant::now()) else {
            let reason = "the circuit breaker is open";
            // The span shows readers of the trace that no message was sent.
            let step = tracing::span("publish", tracing::SpanKind::Internal, []);
            step.fail("circuit_open", reason);
            return Err(PublishError::Unavailable(reason.into()));
        };
        let result = publish();
        permit.ended(!is_away(&result));
        result
    }

    /// Whether everything passes.
    pub fn is_closed(&self) -> bool {
        matches!(*lock(&self.circuit), Circuit::Closed { .. })
    }

    fn record(&self, succeeded: bool, now: Instant) {
        let state = lock(&self.circuit).record(succeeded, now);
        match state {
            None => return,
            Some(BreakerState::Open) => {
                log::warn!("publishing keeps failing, the circuit breaker opens for {COOL_DOWN:?}");
            }
            Some(_) => log::info!("publishing works again, the circuit breaker closes"),
        }
        state.into_iter().for_each(|state| (self.changed)(state));
    }
}

impl Circuit {
    /// Applies an outcome. Returns the new state if it changed.
    fn record(&mut self, succeeded: bool, now: Instant) -> Option<BreakerState> {
        match (&mut *self, succeeded) {
            (Circuit::Closed { failures }, true) => *failures = 0,
            (Circuit::Closed { failures }, false) if *failures + 1 < FAILURES_MAX => *failures += 1,
            (Circuit::HalfOpen, true) => {
                *self = Circuit::Closed { failures: 0 };
                return Some(BreakerState::Closed);
            }
            (Circuit::Closed { .. } | Circuit::HalfOpen, false) => {
                let until = now + COOL_DOWN;
                *self = Circuit::Open { until };
                return Some(BreakerState::Open);
            }
            // A request from before the breaker opened. Its outcome is stale.
            (Circuit::Open { .. }, _) => {}
        }
        None
    }
}

impl Permit<'_> {
    /// Ends the publish with its outcome.
    pub fn ended(mut self, succeeded: bool) {
        self.succeeded = succeeded;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.breaker.record(self.succeeded, Instant::now());
    }
}

/// Whether Kafka was unavailable. A refused message says nothing about Kafka's health.
fn is_away(result: &Result<(), PublishError>) -> bool {
    matches!(result, Err(PublishError::Unavailable(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU8, Ordering};

    fn breaker() -> (Breaker, Arc<AtomicU8>) {
        let state = Arc::new(AtomicU8::new(9));
        let seen = Arc::clone(&state);
        (
            Breaker::new(move |new| seen.store(new as u8, Ordering::SeqCst)),
            state,
        )
    }

    fn fail(breaker: &Breaker, times: u32, now: Instant) {
        for _ in 0..times {
            let permit = breaker.admit(now).expect("closed");
            std::mem::forget(permit);
            breaker.record(false, now);
        }
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_fewer_do_not() {
        let (breaker, state) = breaker();
        let now = Instant::now();
        fail(&breaker, 4, now);
        breaker.admit(now).expect("closed").ended(true);
        fail(&breaker, 4, now);
        assert_eq!(state.load(Ordering::SeqCst), BreakerState::Closed as u8);
        fail(&breaker, 1, now);
        assert_eq!(state.load(Ordering::SeqCst), BreakerState::Open as u8);
        assert!(
            breaker
                .admit(now + COOL_DOWN - Duration::from_millis(1))
                .is_none()
        );
    }

    #[test]
    fn after_the_cool_down_one_request_tries_and_decides() {
        let (breaker, state) = breaker();
        let now = Instant::now();
        fail(&breaker, 5, now);
        let later = now + COOL_DOWN;
        let probe = breaker.admit(later).expect("half-open");
        assert!(breaker.admit(later).is_none(), "a second one has to wait");
        assert_eq!(state.load(Ordering::SeqCst), BreakerState::HalfOpen as u8);
        probe.ended(true);
        assert_eq!(state.load(Ordering::SeqCst), BreakerState::Closed as u8);
    }

    #[test]
    fn what_it_guards_is_counted_and_not_called_once_it_is_open() {
        let (breaker, state) = breaker();
        let away = || Err(PublishError::Unavailable("away".into()));
        for _ in 0..5 {
            breaker.guard(away).unwrap_err();
        }
        assert_eq!(state.load(Ordering::SeqCst), BreakerState::Open as u8);
        assert!(!breaker.is_closed());
        let refused = breaker.guard(|| panic!("open"));
        assert!(matches!(refused, Err(PublishError::Unavailable(_))));
    }

    #[test]
    fn a_message_that_is_refused_says_nothing_of_the_bus() {
        let (breaker, _) = breaker();
        for _ in 0..6 {
            let refused = breaker.guard(|| Err(PublishError::Refused("no".into())));
            refused.unwrap_err();
        }
        assert!(breaker.is_closed());
    }

    #[test]
    fn a_probe_that_fails_or_vanishes_opens_it_again() {
        let (breaker, state) = breaker();
        let now = Instant::now();
        fail(&breaker, 5, now);
        drop(breaker.admit(now + COOL_DOWN).expect("half-open"));
        assert_eq!(state.load(Ordering::SeqCst), BreakerState::Open as u8);
    }
}
