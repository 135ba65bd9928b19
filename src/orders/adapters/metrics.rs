//! [`Meter`] on Prometheus.

use crate::orders::ports::{Backlog, Meter, Outcome};
use crate::telemetry::metrics::OrdersMetrics;

/// Counts in the process's registry.
pub struct PrometheusMeter(OrdersMetrics);

impl PrometheusMeter {
    /// A meter that moves `metrics`; every outcome starts at 0.
    pub fn new(metrics: OrdersMetrics) -> Self {
        for outcome in Outcome::ALL {
            metrics.processed.with_label_values(&[outcome.as_str()]);
        }
        Self(metrics)
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

    fn outbox_backlog(&self, backlog: Backlog) {
        self.0.outbox_backlog.set(backlog.rows);
        self.0.outbox_oldest_seconds.set(backlog.oldest_seconds);
    }
}
