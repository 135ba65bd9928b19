//! Metrics of both programs, in one registry.
//!
//! The metrics are public fields, grouped by the folder that updates them. So each name exists
//! once, and a typing error does not compile. Both programs register all of them.
//!
//! A metric without labels starts at 0; one with labels appears with its first value. The code that
//! updates a counter of failures must start its known labels at 0. Otherwise Prometheus would miss
//! the first failure. The code limits the label values (route templates, topics, statement names);
//! a client cannot add any.

use std::fmt;

use tbd_telemetry::metrics::{
    Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TracingMetrics,
};

/// Upper bounds in seconds: from a statement served from PostgreSQL's cache to the 30 s limit of a
/// request.
const SECONDS: &[f64] = &[
    0.000_25, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0,
];

/// Upper bounds in seconds for times of up to minutes: an order may wait for a worker.
const SECONDS_TO_AN_HOUR: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    900.0, 3600.0,
];

/// Upper bounds for counts of records.
const RECORDS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];

/// All metrics of the process. Cloning is cheap and shares them.
#[derive(Clone)]
pub struct Metrics {
    /// The HTTP server.
    pub http: HttpMetrics,
    /// The Kafka client.
    pub kafka: KafkaMetrics,
    /// The database pool and its statements.
    pub database: DatabaseMetrics,
    /// The processing of orders.
    pub orders: OrdersMetrics,
    /// The worker's consumer threads.
    pub worker: WorkerMetrics,
    /// The export of spans.
    pub tracing: TracingMetrics,
    registry: Registry,
}

/// HTTP requests and the thread pool.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    /// `http_request_duration_seconds{method,route,status}`: from the end of the request head to the
    /// written response, with the time in the queue.
    pub duration: HistogramVec,
    /// `http_requests_total{method,route,status}`.
    pub requests: IntCounterVec,
    /// `http_queue_wait_seconds`: time a request waited for a thread.
    pub queue_wait: Histogram,
    /// `http_threads`: threads of the pool, without the probe threads.
    pub threads: IntGauge,
    /// `http_threads_busy`: threads that are answering a request.
    pub threads_busy: IntGauge,
    /// `http_queue_depth`: requests waiting for a thread.
    pub queue_depth: IntGauge,
    /// `http_requests_shed_total{reason}`: requests refused without handling.
    pub shed: IntCounterVec,
    /// `http_handler_panics_total`.
    pub panics: IntCounter,
}

/// Connections, producer and consumer.
#[derive(Clone, Debug)]
pub struct KafkaMetrics {
    /// `kafka_client_request_duration_seconds{api}`: from sending a request to its
    /// answer.
    pub request_duration: HistogramVec,
    /// `kafka_client_requests_in_flight{api}`: requests without an answer yet.
    pub requests_in_flight: IntGaugeVec,
    /// `kafka_client_requests_lost_total{api}`: requests whose connection ended before the answer.
    pub requests_lost: IntCounterVec,
    /// `kafka_producer_latency_seconds{topic}`: from the call with a record to its acknowledgement.
    pub producer_latency: HistogramVec,
    /// `kafka_producer_errors_total{topic}`: records that failed for good.
    pub producer_errors: IntCounterVec,
    /// `kafka_producer_retries_total{topic}`: records that were sent again.
    pub producer_retries: IntCounterVec,
    /// `kafka_producer_batch_records`: records that shared one request.
    pub batch_records: Histogram,
    /// `kafka_producer_request_failures_total`: requests without an answer; their
    /// records may be sent again.
    pub request_failures: IntCounter,
    /// `kafka_consumer_lag{topic,partition,group}`: records that the group has not committed.
    pub consumer_lag: IntGaugeVec,
    /// `kafka_consumer_assigned_partitions{group}`: partitions of this process's members.
    pub assigned_partitions: IntGaugeVec,
    /// `kafka_consumer_records_total{topic}`: polled records.
    pub consumer_records: IntCounterVec,
    /// `kafka_consumer_rebalances_total{group}`.
    pub rebalances: IntCounterVec,
    /// `kafka_consumer_commit_failures_total{group}`.
    pub commit_failures: IntCounterVec,
    /// `kafka_consumer_replaced_partitions_total{group}`.
    pub replaced_partitions: IntCounterVec,
}

/// Statements and pool occupancy.
#[derive(Clone, Debug)]
pub struct DatabaseMetrics {
    /// `db_query_duration_seconds{query}`: by statement name.
    pub query_duration: HistogramVec,
    /// `db_query_errors_total{query}`.
    pub query_errors: IntCounterVec,
    /// `db_connections_in_use`.
    pub in_use: IntGauge,
    /// `db_connections_idle`.
    pub idle: IntGauge,
    /// `db_connections_waiting`: threads that wait for a connection.
    pub waiting: IntGauge,
    /// `db_connections_max`.
    pub max: IntGauge,
    /// `db_connection_wait_seconds`: time spent waiting for a connection.
    pub wait: Histogram,
    /// `db_schema_migrating`: 1 while a migration is running.
    pub schema_migrating: IntGauge,
    /// `db_schema_dirty`: 1 while the schema is dirty after a failed migration.
    pub schema_dirty: IntGauge,
}

/// Orders, idempotency keys, the outbox and the circuit breaker.
#[derive(Clone, Debug)]
pub struct OrdersMetrics {
    /// `orders_created_total`.
    pub created: IntCounter,
    /// `orders_processed_total{outcome}`: completed, failed, canceled, duplicate.
    pub processed: IntCounterVec,
    /// `order_end_to_end_seconds`: from an order's creation to its completion.
    pub end_to_end: Histogram,
    /// `order_processing_duration_seconds`: one attempt at an order's processing step.
    pub processing_duration: Histogram,
    /// `orders_dead_lettered_total{reason}`: messages sent to the dead-letter topic.
    pub dead_lettered: IntCounterVec,
    /// `idempotency_hits_total`: answers replayed for a known key.
    pub idempotency_hits: IntCounter,
    /// `idempotency_keys_swept_total`: expired keys deleted.
    pub idempotency_swept: IntCounter,
    /// `outbox_backlog`: rows not yet published.
    pub outbox_backlog: IntGauge,
    /// `outbox_oldest_seconds`: age of the oldest such row.
    pub outbox_oldest_seconds: Gauge,
    /// `outbox_published_total`: rows published by the relay.
    pub outbox_published: IntCounter,
    /// `circuit_breaker_state{name}`: 0 closed, 1 half-open, 2 open.
    pub circuit_breaker_state: IntGaugeVec,
}

/// The worker's consumer threads.
#[derive(Clone, Debug)]
pub struct WorkerMetrics {
    /// `worker_threads`.
    pub threads: IntGauge,
    /// `worker_threads_busy`: threads that are processing orders.
    pub threads_busy: IntGauge,
    /// `worker_announcements_waiting{topic}`: events and dead letters that Kafka has not accepted yet.
    pub announcements_waiting: IntGaugeVec,
}

impl Metrics {
    /// Registers every metric, and the process's own (`process_*`).
    ///
    /// # Panics
    /// If two metrics of this file have the same name; the tests would show it.
    pub fn new() -> Self {
        let registry = Registry::new();
        registry
            .int_gauges(
                "tbd_build_info",
                "Always 1; the version is the label.",
                &["version"],
            )
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        Self {
            http: HttpMetrics::new(&registry),
            kafka: KafkaMetrics::new(&registry),
            database: DatabaseMetrics::new(&registry),
            orders: OrdersMetrics::new(&registry),
            worker: WorkerMetrics::new(&registry),
            tracing: TracingMetrics::new(&registry),
            registry,
        }
    }

    /// Adds a function that runs before each [`render`](Self::render), for gauges that are measured
    /// only then. It must not block.
    pub fn on_scrape(&self, hook: Box<dyn Fn() + Send + Sync>) {
        self.registry.on_scrape(hook);
    }

    /// The Prometheus text of all metrics, after running the scrape hooks.
    pub fn render(&self) -> String {
        self.registry.render()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

const REQUEST_LABELS: &[&str] = &["method", "route", "status"];

impl HttpMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            duration: registry.histograms(
                "http_request_duration_seconds",
                "Time from the end of the request head to the response.",
                SECONDS,
                REQUEST_LABELS,
            ),
            requests: registry.counters(
                "http_requests_total",
                "Requests answered.",
                REQUEST_LABELS,
            ),
            queue_wait: registry.histogram(
                "http_queue_wait_seconds",
                "Time requests waited for a thread.",
                SECONDS,
            ),
            threads: registry.int_gauge(
                "http_threads",
                "Threads of the pool that answers requests; those for probes are not counted.",
            ),
            threads_busy: registry.int_gauge(
                "http_threads_busy",
                "Threads of the pool that are answering a request right now.",
            ),
            queue_depth: registry.int_gauge(
                "http_queue_depth",
                "Requests waiting for a thread of the pool right now.",
            ),
            shed: registry.counters(
                "http_requests_shed_total",
                "Requests refused without being handled, because of load.",
                &["reason"],
            ),
            panics: registry.counter("http_handler_panics_total", "Handlers that panicked."),
        }
    }
}

impl KafkaMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            request_duration: registry.histograms(
                "kafka_client_request_duration_seconds",
                "Time from sending a request to its answer. Fetches wait for records, joins for others.",
                SECONDS,
                &["api"],
            ),
            requests_in_flight: registry.int_gauges(
                "kafka_client_requests_in_flight",
                "Requests that wait for their answers.",
                &["api"],
            ),
            requests_lost: registry.counters(
                "kafka_client_requests_lost_total",
                "Requests whose connection ended before the answer.",
                &["api"],
            ),
            producer_latency: registry.histograms(
                "kafka_producer_latency_seconds",
                "Time from handing a record over to its acknowledgement.",
                SECONDS,
                &["topic"],
            ),
            producer_errors: registry.counters(
                "kafka_producer_errors_total",
                "Records whose publishing failed for good.",
                &["topic"],
            ),
            producer_retries: registry.counters(
                "kafka_producer_retries_total",
                "Records that were sent again, the broker having refused them or not answered.",
                &["topic"],
            ),
            batch_records: registry.histogram(
                "kafka_producer_batch_records",
                "Records per produce request.",
                RECORDS,
            ),
            request_failures: registry.counter(
                "kafka_producer_request_failures_total",
                "Produce requests that got no answer; their records may be sent again.",
            ),
            consumer_lag: registry.int_gauges(
                "kafka_consumer_lag",
                "Records between what the group has committed and the end of the partition.",
                &["topic", "partition", "group"],
            ),
            assigned_partitions: registry.int_gauges(
                "kafka_consumer_assigned_partitions",
                "Partitions that members of this process read.",
                &["group"],
            ),
            consumer_records: registry.counters(
                "kafka_consumer_records_total",
                "Records consumed.",
                &["topic"],
            ),
            rebalances: registry.counters(
                "kafka_consumer_rebalances_total",
                "Rebalances that members of this process took part in.",
                &["group"],
            ),
            commit_failures: registry.counters(
                "kafka_consumer_commit_failures_total",
                "Offset commits that failed.",
                &["group"],
            ),
            replaced_partitions: registry.counters(
                "kafka_consumer_replaced_partitions_total",
                "Partitions read again from the start, their topic having been deleted and created again.",
                &["group"],
            ),
        }
    }
}

impl DatabaseMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            query_duration: registry.histograms(
                "db_query_duration_seconds",
                "Time one statement took, by its name.",
                SECONDS,
                &["query"],
            ),
            query_errors: registry.counters(
                "db_query_errors_total",
                "Statements that failed, by their name.",
                &["query"],
            ),
            in_use: registry.int_gauge("db_connections_in_use", "Connections doing work."),
            idle: registry.int_gauge("db_connections_idle", "Connections open and unused."),
            waiting: registry.int_gauge(
                "db_connections_waiting",
                "Threads waiting for a connection right now.",
            ),
            max: registry.int_gauge("db_connections_max", "Connections the pool may open."),
            wait: registry.histogram(
                "db_connection_wait_seconds",
                "Time spent waiting for a connection.",
                SECONDS,
            ),
            schema_migrating: registry.int_gauge(
                "db_schema_migrating",
                "1 while a migration of the schema is running.",
            ),
            schema_dirty: registry.int_gauge(
                "db_schema_dirty",
                "1 while the schema is as a failed migration left it.",
            ),
        }
    }
}

impl OrdersMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            created: registry.counter("orders_created_total", "Orders created."),
            processed: registry.counters(
                "orders_processed_total",
                "Orders processed: completed, failed, canceled (skipped), duplicate (replayed).",
                &["outcome"],
            ),
            end_to_end: registry.histogram(
                "order_end_to_end_seconds",
                "Time from an order's creation to its completion.",
                SECONDS_TO_AN_HOUR,
            ),
            processing_duration: registry.histogram(
                "order_processing_duration_seconds",
                "Time one attempt at an order's processing step took.",
                SECONDS,
            ),
            dead_lettered: registry.counters(
                "orders_dead_lettered_total",
                "Messages sent to the dead-letter topic.",
                &["reason"],
            ),
            idempotency_hits: registry.counter(
                "idempotency_hits_total",
                "Requests answered from a stored response.",
            ),
            idempotency_swept: registry.counter(
                "idempotency_keys_swept_total",
                "Expired idempotency keys deleted.",
            ),
            outbox_backlog: registry.int_gauge("outbox_backlog", "Outbox rows not yet published."),
            outbox_oldest_seconds: registry.gauge(
                "outbox_oldest_seconds",
                "Age of the oldest outbox row not yet published.",
            ),
            outbox_published: registry.counter(
                "outbox_published_total",
                "Outbox rows published by the relay.",
            ),
            circuit_breaker_state: registry.int_gauges(
                "circuit_breaker_state",
                "0 closed, 1 half-open, 2 open.",
                &["name"],
            ),
        }
    }
}

impl WorkerMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            threads: registry.int_gauge("worker_threads", "Threads that consume events."),
            threads_busy: registry.int_gauge(
                "worker_threads_busy",
                "Threads that are processing orders right now.",
            ),
            announcements_waiting: registry.int_gauges(
                "worker_announcements_waiting",
                "Events and dead letters that Kafka did not take and that are tried again.",
                &["topic"],
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_without_labels_start_at_zero() {
        let text = Metrics::new().render();
        for line in [
            "orders_created_total 0",
            "idempotency_hits_total 0",
            "otel_spans_dropped_total 0",
            "outbox_backlog 0",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no `{line}` in\n{text}"
            );
        }
    }

    #[test]
    fn the_names_promised_to_dashboards_are_there() {
        let metrics = Metrics::new();
        let request = &["GET", "/v1/orders/{id}", "200"];
        metrics.http.requests.with_label_values(request).inc();
        metrics
            .http
            .duration
            .with_label_values(request)
            .observe(0.1);
        metrics
            .kafka
            .producer_latency
            .with_label_values(&["t"])
            .observe(0.1);
        metrics
            .kafka
            .consumer_lag
            .with_label_values(&["t", "0", "g"])
            .set(1);
        metrics
            .database
            .query_duration
            .with_label_values(&["q"])
            .observe(0.1);
        metrics
            .orders
            .processed
            .with_label_values(&["completed"])
            .inc();
        metrics
            .orders
            .circuit_breaker_state
            .with_label_values(&["kafka"])
            .set(2);
        let text = metrics.render();
        for start in [
            "http_request_duration_seconds_count{method=\"GET\",route=\"/v1/orders/{id}\",status=\"200\"} 1",
            "http_requests_total{method=\"GET\",route=\"/v1/orders/{id}\",status=\"200\"} 1",
            "kafka_producer_latency_seconds_sum{topic=\"t\"} 0.1",
            "kafka_consumer_lag{group=\"g\",partition=\"0\",topic=\"t\"} 1",
            "db_query_duration_seconds_count{query=\"q\"} 1",
            "orders_created_total 0",
            "orders_processed_total{outcome=\"completed\"} 1",
            "circuit_breaker_state{name=\"kafka\"} 2",
            "process_resident_memory_bytes ",
            "tbd_build_info{version=",
        ] {
            assert!(
                text.lines().any(|line| line.starts_with(start)),
                "no `{start}` in\n{text}"
            );
        }
    }
}
