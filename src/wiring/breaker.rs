//! Circuit breakers whose state is a metric.

use std::sync::Arc;
use std::time::Instant;

use crate::metrics::Metrics;
use crate::orders::adapters::Breaker;

/// A breaker around `subject`, a word for the log. `name` is its label of `circuit_breaker_state`.
pub fn breaker(subject: &'static str, name: &str, metrics: &Metrics) -> Arc<Breaker> {
    let states = &metrics.orders.circuit_breaker_state;
    let state = states.with_label_values(&[name]);
    let breaker = Arc::new(Breaker::new(subject));
    let measured = Arc::clone(&breaker);
    metrics.on_scrape(Box::new(move || {
        state.set(measured.state(Instant::now()) as i64);
    }));
    breaker
}
