//! Prometheus metrics: a registry that creates them, and renders them on request.
//!
//! A program names its metrics in one table. [`Registry`] creates and registers a metric in one
//! step, so none is forgotten.

use std::fmt;
use std::sync::{Arc, Mutex};

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{HistogramOpts, Opts, TextEncoder};
use tbd_deadline::lock;

pub use prometheus::{
    Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
};

/// Media type of [`Registry::render`]'s text.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

type Hook = dyn Fn() + Send + Sync;

/// Creates, registers and renders metrics. Clones share them.
///
/// # Panics
/// The methods that create a metric panic when its name or a label is invalid or already used.
/// Names are constants of the program, so a test that creates the table once finds every such
/// mistake.
#[derive(Clone)]
pub struct Registry {
    registry: prometheus::Registry,
    hooks: Arc<Mutex<Vec<Arc<Hook>>>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// A registry with the process's own metrics (`process_*`).
    pub fn new() -> Self {
        let this = Self {
            registry: prometheus::Registry::new(),
            hooks: Arc::default(),
        };
        #[cfg(target_os = "linux")]
        this.add(prometheus::process_collector::ProcessCollector::for_self());
        this
    }

    /// Adds a function that runs before each scrape and each export, for gauges that are read on
    /// demand. It must not block.
    pub fn on_scrape(&self, hook: Box<dyn Fn() + Send + Sync>) {
        lock(&self.hooks).push(Arc::from(hook));
    }

    /// The Prometheus text of all metrics, after running the scrape hooks on this thread.
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(32 * 1024);
        if let Err(error) = TextEncoder::new().encode_utf8(&self.gather(), &mut text) {
            log::error!(error:%; "rendering the metrics failed");
        }
        text
    }

    /// All metrics, after running the scrape hooks on this thread.
    pub(crate) fn gather(&self) -> Vec<MetricFamily> {
        // Copied, so that no lock is held while hooks run.
        let hooks = lock(&self.hooks).clone();
        hooks.iter().for_each(|hook| hook());
        self.registry.gather()
    }

    fn add<C: Collector + 'static>(&self, collector: C) {
        self.registry
            .register(Box::new(collector))
            .expect("metric names are valid and unique");
    }

    fn keep<C: Collector + Clone + 'static>(&self, collector: prometheus::Result<C>) -> C {
        let collector = collector.expect("metric definitions are valid");
        self.add(collector.clone());
        collector
    }

    /// A counter without labels. It starts at 0.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.keep(IntCounter::new(name, help))
    }

    /// Counters, one for each combination of label values.
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// A gauge of floating-point numbers.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.keep(Gauge::new(name, help))
    }

    /// A gauge of whole numbers.
    pub fn int_gauge(&self, name: &str, help: &str) -> IntGauge {
        self.keep(IntGauge::new(name, help))
    }

    /// Gauges of whole numbers, one for each combination of label values.
    pub fn int_gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.keep(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    /// A histogram with these upper bounds.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.keep(Histogram::with_opts(options))
    }

    /// Histograms with these upper bounds, one for each combination of label values.
    pub fn histograms(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        labels: &[&str],
    ) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.keep(HistogramVec::new(options, labels))
    }
}

/// Metrics of the span export.
#[derive(Clone, Debug)]
pub struct TracingMetrics {
    /// `otel_spans_exported_total`.
    pub exported: IntCounter,
    /// `otel_spans_dropped_total`: the queue was full, or the collector unavailable.
    pub dropped: IntCounter,
}

impl TracingMetrics {
    /// Creates the metrics in `registry`; see [`Registry`] on panics.
    pub fn new(registry: &Registry) -> Self {
        Self {
            exported: registry
                .counter("otel_spans_exported_total", "Spans the collector accepted."),
            dropped: registry.counter(
                "otel_spans_dropped_total",
                "Spans dropped: the queue was full or the collector away.",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_without_labels_start_at_zero() {
        let registry = Registry::new();
        let _counter = registry.counter("seen_total", "Things seen.");
        assert!(registry.render().contains("\nseen_total 0\n"));
    }

    #[test]
    fn a_scrape_hook_sets_what_the_same_scrape_shows() {
        let registry = Registry::new();
        let in_use = registry.int_gauge("in_use", "In use.");
        registry.on_scrape(Box::new(move || in_use.set(7)));
        assert!(registry.render().contains("\nin_use 7\n"));
    }
}
