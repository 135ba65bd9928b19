//! A circuit breaker around publishing: when Kafka is away, a request is told so
//! at once instead of waiting for the publish budget.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::orders::domain::OrderEvent;
use crate::orders::ports::{Acknowledgement, EventBus, Message, PublishError};
use tbd_deadline::Deadline;
use tbd_telemetry::tracing;

/// Consecutive failures that open the breaker (the seed's table).
const FAILURES_MAX: u32 = 5;
/// How long it stays open before one request may try (the seed's table).
const COOL_DOWN: Duration = Duration::from_secs(30);

/// Where a breaker stands; the number is `circuit_breaker_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Everything passes.
    Closed = 0,
    /// One request is trying whether it works again.
    HalfOpen = 1,
    /// Nothing passes.
    Open = 2,
}

enum Circuit {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen,
}

/// Counts failures, and says no when there were too many.
pub struct Breaker {
    circuit: Mutex<Circuit>,
    changed: Box<dyn Fn(BreakerState) + Send + Sync>,
}

/// The right to try once; dropped without [`Permit::ended`], it counts as a failure.
pub struct Permit<'a> {
    breaker: &'a Breaker,
    succeeded: bool,
}

impl Breaker {
    /// A closed breaker that tells `changed` of every new state, the first included.
    pub fn new(changed: impl Fn(BreakerState) + Send + Sync + 'static) -> Self {
        changed(BreakerState::Closed);
        Self {
            circuit: Mutex::new(Circuit::Closed { failures: 0 }),
            changed: Box::new(changed),
        }
    }

    /// Lets a request pass at `now`; `None` while open, and while another one is trying.
    pub fn admit(&self, now: Instant) -> Option<Permit<'_>> {
        let mut circuit = self.lock();
        match *circuit {
            Circuit::Closed { .. } => {}
            Circuit::Open { until } if now >= until => {
                *circuit = Circuit::HalfOpen;
                (self.changed)(BreakerState::HalfOpen);
            }
            Circuit::Open { .. } | Circuit::HalfOpen => return None,
        }
        Some(Permit {
            breaker: self,
            succeeded: false,
        })
    }

    fn is_closed(&self) -> bool {
        matches!(*self.lock(), Circuit::Closed { .. })
    }

    fn record(&self, succeeded: bool, now: Instant) {
        let mut circuit = self.lock();
        match (&mut *circuit, succeeded) {
            (Circuit::Closed { failures }, true) => *failures = 0,
            (Circuit::Closed { failures }, false) if *failures + 1 < FAILURES_MAX => *failures += 1,
            (Circuit::HalfOpen, true) => {
                *circuit = Circuit::Closed { failures: 0 };
                log::info!("publishing works again, the circuit breaker closes");
                (self.changed)(BreakerState::Closed);
            }
            (Circuit::Closed { .. } | Circuit::HalfOpen, false) => {
                *circuit = Circuit::Open {
                    until: now + COOL_DOWN,
                };
                log::warn!("publishing keeps failing, the circuit breaker opens for {COOL_DOWN:?}");
                (self.changed)(BreakerState::Open);
            }
            // A request from before the breaker opened; it decides nothing any more.
            (Circuit::Open { .. }, _) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit<'_> {
    /// Ends the try.
    pub fn ended(mut self, succeeded: bool) {
        self.succeeded = succeeded;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.breaker.record(self.succeeded, Instant::now());
    }
}

/// A bus behind a breaker: for requests. The relay, which has time, uses the bus itself.
pub struct GuardedBus {
    bus: Arc<dyn EventBus>,
    breaker: Arc<Breaker>,
}

/// A message whose outcome the breaker counts.
struct Guarded {
    acknowledgement: Box<dyn Acknowledgement>,
    breaker: Arc<Breaker>,
}

impl GuardedBus {
    /// `bus` behind `breaker`.
    pub fn new(bus: Arc<dyn EventBus>, breaker: Breaker) -> Self {
        Self {
            bus,
            breaker: Arc::new(breaker),
        }
    }
}

impl Acknowledgement for Guarded {
    fn wait(self: Box<Self>) -> Result<(), PublishError> {
        let result = self.acknowledgement.wait();
        self.breaker.record(!is_away(&result), Instant::now());
        result
    }
}

/// A message that Kafka refuses says nothing about Kafka's health.
fn is_away(result: &Result<(), PublishError>) -> bool {
    matches!(result, Err(PublishError::Unavailable(_)))
}

impl EventBus for GuardedBus {
    fn encode(&self, event: &OrderEvent) -> Message {
        self.bus.encode(event)
    }

    /// Not while it is open: who tries whether Kafka works again has to wait for the outcome.
    fn begin(&self, message: &Message, deadline: Deadline) -> Option<Box<dyn Acknowledgement>> {
        if !self.breaker.is_closed() {
            return None;
        }
        Some(Box::new(Guarded {
            acknowledgement: self.bus.begin(message, deadline)?,
            breaker: Arc::clone(&self.breaker),
        }))
    }

    fn publish(&self, messages: &[Message], deadline: Deadline) -> Vec<Result<(), PublishError>> {
        let Some(permit) = self.breaker.admit(Instant::now()) else {
            let reason = "the circuit breaker is open";
            // Where the trace ends, so that nobody looks for a message that was never sent.
            let step = tracing::span("publish", tracing::SpanKind::Internal, []);
            step.fail("circuit_open", reason);
            let refused = |_| Err(PublishError::Unavailable(reason.into()));
            return messages.iter().map(refused).collect();
        };
        let results = self.bus.publish(messages, deadline);
        permit.ended(!results.iter().any(is_away));
        results
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orders::app::fakes::{Bus, order, soon};
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
    fn what_begins_is_counted_and_nothing_begins_once_it_is_open() {
        let bus = Arc::new(Bus::default());
        bus.begins.store(true, Ordering::SeqCst);
        bus.away.store(true, Ordering::SeqCst);
        let (breaker, state) = breaker();
        let guarded = GuardedBus::new(bus.clone(), breaker);
        let message = guarded.encode(&OrderEvent::Created(order()));
        for _ in 0..5 {
            let begun = guarded.begin(&message, soon()).expect("closed");
            begun.wait().unwrap_err();
        }
        assert_eq!(state.load(Ordering::SeqCst), BreakerState::Open as u8);
        bus.away.store(false, Ordering::SeqCst);
        assert!(guarded.begin(&message, soon()).is_none());
        assert!(bus.take().is_empty());
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
