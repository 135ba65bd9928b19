//! Circuit breakers: while a service is unavailable, requests to it fail at once instead of after
//! their time limit.
//!
//! A breaker spares a service that is away as a whole. While a part of it fails, such as one broker
//! of three, other requests succeed, and refusing all of them would turn the partial fault into an
//! outage. So a failure counts only if no request has succeeded since the failed one began. Nor does it
//! count if its caller allowed the request hardly any time: one impatient client must not open the
//! breaker for everybody.

use std::borrow::Cow;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tbd_deadline::{Deadline, lock};

/// A request that has less time may fail although the service is well, so its failure says nothing. A
/// service that is well answers within milliseconds.
const PATIENCE: Duration = Duration::from_millis(500);

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Failures without a success in between that open it.
    pub failures: u32,
    /// How long it stays open before one request may probe the service.
    pub cool_down: Duration,
}

impl Default for Limits {
    /// Five failures, since a single lost request is no outage, and 30 s.
    fn default() -> Self {
        Self {
            failures: 5,
            cool_down: Duration::from_secs(30),
        }
    }
}

/// The state of a breaker; the number is the value of `circuit_breaker_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Everything passes.
    Closed = 0,
    /// The next request probes the service, or one is doing so.
    HalfOpen = 1,
    /// Nothing passes.
    Open = 2,
}

enum Circuit {
    Closed {
        failures: u32,
        succeeded_at: Option<Instant>,
    },
    Open {
        until: Instant,
    },
    HalfOpen {
        /// When the probe began.
        since: Instant,
    },
}

/// Counts failures, and refuses requests after too many.
pub struct Breaker {
    /// What it guards, for the log.
    subject: Cow<'static, str>,
    limits: Limits,
    circuit: Mutex<Circuit>,
}

/// The permission for one request. Dropping it without [`Permit::ended`] counts as a failure.
pub struct Permit<'a> {
    breaker: &'a Breaker,
    began: Instant,
    deadline: Deadline,
    succeeded: bool,
}

impl Breaker {
    /// A closed breaker around `subject`, a word for the log such as "publishing".
    pub fn new(subject: &'static str) -> Self {
        Self::with(subject, Limits::default())
    }

    /// A closed breaker with limits of its own.
    pub fn with(subject: impl Into<Cow<'static, str>>, limits: Limits) -> Self {
        Self {
            subject: subject.into(),
            limits,
            circuit: Mutex::new(Circuit::Closed {
                failures: 0,
                succeeded_at: None,
            }),
        }
    }

    /// Its state at `now`.
    pub fn state(&self, now: Instant) -> BreakerState {
        match *lock(&self.circuit) {
            Circuit::Closed { .. } => BreakerState::Closed,
            Circuit::Open { until } if now < until => BreakerState::Open,
            Circuit::Open { .. } | Circuit::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Admits a request that has from `now` until `deadline`. `None` while open, and while another request is
    /// probing. A request with hardly any time is no probe.
    pub fn admit(&self, now: Instant, deadline: Deadline) -> Option<Permit<'_>> {
        let mut circuit = lock(&self.circuit);
        match *circuit {
            Circuit::Closed { .. } => {}
            Circuit::Open { until } if now >= until && is_patient(now, deadline) => {
                *circuit = Circuit::HalfOpen { since: now };
            }
            Circuit::Open { .. } | Circuit::HalfOpen { .. } => return None,
        }
        Some(Permit {
            breaker: self,
            began: now,
            deadline,
            succeeded: false,
        })
    }

    /// Counts the outcome of a request without a permit, which had from `began` until `deadline`.
    pub fn count(&self, succeeded: bool, began: Instant, deadline: Deadline) {
        self.record(succeeded, began, deadline, Instant::now());
    }

    /// Calls `request`, which ends by `deadline`, unless the breaker is open, and counts its outcome. `is_away`
    /// says which errors mean that the service is unavailable. `None` while the breaker is open.
    pub fn guard<T, E>(
        &self,
        deadline: Deadline,
        is_away: impl FnOnce(&E) -> bool,
        request: impl FnOnce() -> Result<T, E>,
    ) -> Option<Result<T, E>> {
        let permit = self.admit(Instant::now(), deadline)?;
        let result = request();
        permit.ended(!result.as_ref().err().is_some_and(is_away));
        Some(result)
    }

    /// Whether a request would be admitted at `now`.
    pub fn would_admit(&self, now: Instant) -> bool {
        match *lock(&self.circuit) {
            Circuit::Closed { .. } => true,
            Circuit::Open { until } => now >= until,
            Circuit::HalfOpen { .. } => false,
        }
    }

    /// Ends the wait of an open breaker: a health check has found the service, so that the next request
    /// may probe it.
    pub fn found(&self) {
        if let Circuit::Open { until } = &mut *lock(&self.circuit) {
            *until = Instant::now();
        }
    }

    /// Whether everything passes.
    pub fn is_closed(&self) -> bool {
        matches!(*lock(&self.circuit), Circuit::Closed { .. })
    }

    /// Whether it is closed, and no failure has counted since the last success.
    pub fn is_well(&self) -> bool {
        matches!(*lock(&self.circuit), Circuit::Closed { failures: 0, .. })
    }

    fn record(&self, succeeded: bool, began: Instant, deadline: Deadline, now: Instant) {
        if !succeeded && !is_patient(began, deadline) {
            return;
        }
        let outcome = (succeeded, began);
        let state = lock(&self.circuit).record(outcome, now, self.limits);
        match state {
            None => {}
            Some(BreakerState::Open) => {
                log::warn!(
                    "{} keeps failing, the circuit breaker opens for {:?}",
                    self.subject,
                    self.limits.cool_down
                );
            }
            Some(_) => log::info!("{} works again, the circuit breaker closes", self.subject),
        }
    }
}

impl Circuit {
    /// Applies the outcome of a request: whether it succeeded, and when it began. Returns the new state if
    /// it changed.
    fn record(
        &mut self,
        (succeeded, began): (bool, Instant),
        now: Instant,
        limits: Limits,
    ) -> Option<BreakerState> {
        match self {
            // A request from before the breaker opened. Its outcome is stale.
            Circuit::Open { .. } => None,
            Circuit::Closed { .. } | Circuit::HalfOpen { .. } if succeeded => {
                let was_closed = matches!(self, Circuit::Closed { .. });
                *self = Circuit::Closed {
                    failures: 0,
                    succeeded_at: Some(now),
                };
                (!was_closed).then_some(BreakerState::Closed)
            }
            // Other requests succeed meanwhile: a part of the service fails.
            Circuit::Closed { succeeded_at, .. } if *succeeded_at > Some(began) => None,
            // The probe decides, and not a request from before it that fails only now.
            Circuit::HalfOpen { since } if began < *since => None,
            Circuit::Closed { failures, .. } if *failures + 1 < limits.failures => {
                *failures += 1;
                None
            }
            Circuit::Closed { .. } | Circuit::HalfOpen { .. } => {
                let until = now + limits.cool_down;
                *self = Circuit::Open { until };
                Some(BreakerState::Open)
            }
        }
    }
}

fn is_patient(began: Instant, deadline: Deadline) -> bool {
    deadline >= Deadline::after_instant(began, PATIENCE)
}

impl Permit<'_> {
    /// Ends the request with its outcome.
    pub fn ended(mut self, succeeded: bool) {
        self.succeeded = succeeded;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.breaker
            .record(self.succeeded, self.began, self.deadline, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::BreakerState::{Closed, HalfOpen, Open};
    use super::*;

    fn breaker() -> Breaker {
        Breaker::new("testing")
    }

    fn cool_down() -> Duration {
        Limits::default().cool_down
    }

    /// The deadline of a request that begins at `now`, with enough time.
    fn late(now: Instant) -> Deadline {
        Deadline::after_instant(now, Duration::from_secs(10))
    }

    fn fail(breaker: &Breaker, times: u32, now: Instant) {
        for _ in 0..times {
            let permit = breaker.admit(now, late(now)).expect("closed");
            std::mem::forget(permit);
            breaker.record(false, now, late(now), now);
        }
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_fewer_do_not() {
        let breaker = breaker();
        let now = Instant::now();
        fail(&breaker, 4, now);
        assert!(!breaker.is_well());
        breaker.record(true, now, late(now), now);
        assert!(breaker.is_well());
        fail(&breaker, 4, now);
        assert_eq!(breaker.state(now), Closed);
        fail(&breaker, 1, now);
        let just_before = now + cool_down() - Duration::from_millis(1);
        assert_eq!(breaker.state(just_before), Open);
        assert!(breaker.admit(just_before, late(just_before)).is_none());
    }

    #[test]
    fn failures_while_other_requests_succeed_do_not_open_it() {
        let breaker = breaker();
        let second = Duration::from_secs(1);
        let began = Instant::now();
        breaker.record(true, began, late(began), began + second);
        for _ in 0..10 {
            breaker.record(false, began, late(began), began + 10 * second);
        }
        assert_eq!(breaker.state(began + 10 * second), Closed);
        // Since the last success nothing has come back: the service is away as a whole.
        fail(&breaker, 5, began + 2 * second);
        assert_eq!(breaker.state(began + 2 * second), Open);
    }

    #[test]
    fn a_failure_from_before_an_outage_does_not_count_after_it() {
        let breaker = breaker();
        let now = Instant::now();
        fail(&breaker, 5, now);
        let later = now + cool_down();
        breaker
            .admit(later, late(later))
            .expect("half-open")
            .ended(true);
        // The probe has just ended; these began long before.
        for _ in 0..5 {
            breaker.record(false, now, late(now), later);
        }
        assert_eq!(breaker.state(later), Closed);
    }

    #[test]
    fn after_the_cool_down_one_request_tries_and_decides() {
        let breaker = breaker();
        let now = Instant::now();
        fail(&breaker, 5, now);
        let later = now + cool_down();
        assert_eq!(breaker.state(later), HalfOpen);
        let probe = breaker.admit(later, late(later)).expect("half-open");
        assert!(
            breaker.admit(later, late(later)).is_none(),
            "a second one has to wait"
        );
        assert_eq!(breaker.state(later), HalfOpen);
        probe.ended(true);
        assert_eq!(breaker.state(later), Closed);
    }

    #[test]
    fn what_it_guards_is_counted_and_not_called_once_it_is_open() {
        let breaker = breaker();
        for _ in 0..6 {
            let refused = breaker.guard(late(Instant::now()), |_| false, || Err::<(), _>("no"));
            assert_eq!(
                refused,
                Some(Err("no")),
                "a refusal says nothing of the service"
            );
        }
        for _ in 0..5 {
            assert!(breaker.is_closed());
            breaker.guard(late(Instant::now()), |_| true, || Err::<(), _>("away"));
        }
        assert_eq!(breaker.state(Instant::now()), Open);
        let guarded = breaker.guard(
            late(Instant::now()),
            |(): &()| true,
            || -> Result<(), ()> { panic!("open") },
        );
        assert_eq!(guarded, None);
    }

    #[test]
    fn a_service_that_is_found_is_probed_before_the_cool_down_ends() {
        let breaker = breaker();
        let now = Instant::now();
        fail(&breaker, 5, now);
        assert!(!breaker.would_admit(now));
        breaker.found();
        let later = Instant::now();
        assert!(breaker.would_admit(later));
        let probe = breaker.admit(later, late(later)).expect("half-open");
        assert!(!breaker.would_admit(later), "one probe at a time");
        probe.ended(true);
        assert!(breaker.would_admit(later));
    }

    #[test]
    fn a_failure_from_before_the_probe_does_not_decide_in_its_place() {
        let breaker = breaker();
        let now = Instant::now();
        fail(&breaker, 5, now);
        let later = now + cool_down();
        let probe = breaker.admit(later, late(later)).expect("half-open");
        breaker.record(false, now, late(now), later);
        assert_eq!(breaker.state(later), HalfOpen, "the probe is on its way");
        probe.ended(true);
        assert_eq!(breaker.state(later), Closed);
    }

    #[test]
    fn an_impatient_request_neither_opens_it_nor_probes() {
        let breaker = breaker();
        let now = Instant::now();
        let soon = Deadline::after_instant(now, Duration::from_millis(100));
        for _ in 0..10 {
            drop(breaker.admit(now, soon).expect("closed"));
        }
        assert_eq!(breaker.state(now), Closed);
        fail(&breaker, 5, now);
        let later = now + cool_down();
        let soon = Deadline::after_instant(later, Duration::from_millis(100));
        assert!(breaker.admit(later, soon).is_none());
        assert!(breaker.admit(later, late(later)).is_some());
    }

    #[test]
    fn a_probe_that_fails_or_vanishes_opens_it_again() {
        let breaker = breaker();
        let now = Instant::now();
        fail(&breaker, 5, now);
        drop(
            breaker
                .admit(now + cool_down(), late(now + cool_down()))
                .expect("half-open"),
        );
        assert_eq!(breaker.state(Instant::now()), Open);
    }
}
