//! Circuit breakers whose state is a metric.

use crate::metrics::Metrics;
use crate::orders::adapters::Breaker;

/// A breaker around `subject`, a word for the log. `name` is its label of `circuit_breaker_state`.
pub fn breaker(subject: &'static str, name: &str, metrics: &Metrics) -> Breaker {
    let states = &metrics.orders.circuit_breaker_state;
    let state = states.with_label_values(&[name]);
    Breaker::new(subject, move |new| state.set(new as i64))
}
