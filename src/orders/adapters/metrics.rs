//! Business metrics in Prometheus: the adapter of [`Meter`].

use std::time::Duration;

use crate::metrics::OrdersMetrics;
use crate::orders::domain::saga::{Command, SagaState};
use crate::orders::ports::{Backlog, Meter, Outcome, StepOutcome};

/// Updates the metrics of the process's registry.
pub struct PrometheusMeter(OrdersMetrics);

impl PrometheusMeter {
    /// A meter that updates `metrics`. Every outcome starts at 0.
    pub fn new(metrics: OrdersMetrics) -> Self {
        for outcome in Outcome::ALL {
            metrics.processed.with_label_values(&[outcome.as_str()]);
        }
        Self(metrics)
    }

    /// Starts the counters of sagas at 0.
    pub fn with_sagas(self) -> Self {
        for command in Command::ALL {
            for outcome in StepOutcome::ALL {
                let labels = &[command.as_str(), outcome.as_str()];
                self.0.saga_steps.with_label_values(labels);
            }
        }
        for state in SagaState::ALL.into_iter().filter(|state| state.is_final()) {
            self.0.saga_duration.with_label_values(&[state.as_str()]);
        }
        self
    }
}

impl Meter for PrometheusMeter {
    fn order_created(&self) {
        self.0.created.inc();
    }

    fn idempotency_hit(&self) {
        self.0.idempotency_hits.inc();
    }

    fn order_processed(&self, outcome: Outcome) {
        self.0
            .processed
            .with_label_values(&[outcome.as_str()])
            .inc();
    }

    fn order_completed_after(&self, delay: Duration) {
        self.0.end_to_end.observe(delay.as_secs_f64());
    }

    fn step_ended(&self, time: Duration) {
        self.0.processing_duration.observe(time.as_secs_f64());
    }

    fn events_relayed(&self, count: usize) {
        let count = count.try_into().unwrap_or(u64::MAX);
        self.0.outbox_published.inc_by(count);
    }

    fn keys_swept(&self, count: u64) {
        self.0.idempotency_swept.inc_by(count);
    }

    fn outbox_backlog(&self, backlog: Backlog) {
        self.0.outbox_backlog.set(backlog.rows);
        self.0.outbox_oldest_seconds.set(backlog.oldest_seconds);
    }

    fn saga_step(&self, command: Command, outcome: StepOutcome) {
        let labels = &[command.as_str(), outcome.as_str()];
        self.0.saga_steps.with_label_values(labels).inc();
    }

    fn saga_ended(&self, state: SagaState, time: Duration) {
        let duration = self.0.saga_duration.with_label_values(&[state.as_str()]);
        duration.observe(time.as_secs_f64());
    }

    fn sagas(&self, state: SagaState, count: i64) {
        self.0.sagas.with_label_values(&[state.as_str()]).set(count);
    }
}
