//! Metrics of all programs, in one registry.
//!
//! The metrics are public fields, grouped by the folder that updates them. `OrdersMetrics` is updated by the application
//! alone, through its port `Meter`. So each name exists
//! once, and a typing error does not compile. Every program registers all of them.
//!
//! A metric without labels starts at 0; one with labels appears with its first value. The code that
//! updates a counter of failures must start its known labels at 0. Otherwise Prometheus would miss
//! the first failure. The code limits the label values (route templates, topics, statement names);
//! a client cannot add any.

use std::time::Duration;
use std::{fmt, io};

use tbd_telemetry::metrics::{
    Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TracingMetrics,
};
use tbd_telemetry::otlp::{Client, MetricsExport};
use tbd_telemetry::tracing::Resource;

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

const REQUEST_LABELS: &[&str] = &["method", "route", "status"];

/// Declares a group of metrics: a field and a registration for each row. A row is the field, the kind of metric (a method
/// of [`Registry`]), and that method's arguments: name, help, then buckets and labels if the kind has them.
macro_rules! metrics {
    (@type counter) => { IntCounter };
    (@type counters) => { IntCounterVec };
    (@type gauge) => { Gauge };
    (@type int_gauge) => { IntGauge };
    (@type int_gauges) => { IntGaugeVec };
    (@type histogram) => { Histogram };
    (@type histograms) => { HistogramVec };
    ($(#[$doc:meta])* $group:ident {
        $($field:ident: $kind:ident($name:literal, $help:literal $(, $more:expr)*);)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $group {
            $(
                #[doc = concat!("`", $name, "`: ", $help)]
                pub $field: metrics!(@type $kind),
            )*
        }

        impl $group {
            fn new(registry: &Registry) -> Self {
                Self { $($field: registry.$kind($name, $help $(, $more)*),)* }
            }
        }
    };
}

/// All metrics of the process. Cloning is cheap and shares them.
#[derive(Clone)]
pub struct Metrics {
    /// The HTTP server.
    pub http: HttpMetrics,
    /// The gRPC server.
    pub grpc: GrpcMetrics,
    /// The Kafka client.
    pub kafka: KafkaMetrics,
    /// The database pool and its statements.
    pub database: DatabaseMetrics,
    /// The processing of orders.
    pub orders: OrdersMetrics,
    /// The worker's consumer threads.
    pub worker: WorkerMetrics,
    /// The participants' commands.
    pub participant: ParticipantMetrics,
    /// The export of spans.
    pub tracing: TracingMetrics,
    registry: Registry,
}

metrics! {
    /// HTTP requests and the thread pool.
    HttpMetrics {
        duration: histograms("http_request_duration_seconds",
            "Time from the end of the request head to the response.", SECONDS, REQUEST_LABELS);
        requests: counters("http_requests_total", "Requests answered.", REQUEST_LABELS);
        queue_wait: histogram("http_queue_wait_seconds", "Time requests waited for a thread.", SECONDS);
        threads: int_gauge("http_threads",
            "Threads of the pool that answers requests, without those for probes.");
        threads_busy: int_gauge("http_threads_busy", "Threads of the pool that are answering a request right now.");
        queue_depth: int_gauge("http_queue_depth", "Requests waiting for a thread of the pool right now.");
        shed: counters("http_requests_shed_total",
            "Requests refused without being handled, because of load.", &["reason"]);
        panics: counter("http_handler_panics_total", "Handlers that panicked.");
    }
}

metrics! {
    /// gRPC calls. Calls that were refused are not part of the handling time.
    GrpcMetrics {
        handled: counters("grpc_server_handled_total", "gRPC calls answered, by code.",
            &["grpc_service", "grpc_method", "grpc_code"]);
        handling: histograms("grpc_server_handling_seconds",
            "Time from a call's arrival to its response, with the time in the queue.", SECONDS,
            &["grpc_service", "grpc_method"]);
    }
}

metrics! {
    /// Connections, producer and consumer.
    KafkaMetrics {
        request_duration: histograms("kafka_client_request_duration_seconds",
            "Time from sending a request to its answer. Fetches wait for records, joins for others.", SECONDS, &["api"]);
        requests_in_flight: int_gauges("kafka_client_requests_in_flight",
            "Requests that wait for their answers.", &["api"]);
        requests_lost: counters("kafka_client_requests_lost_total",
            "Requests whose connection ended before the answer.", &["api"]);
        producer_latency: histograms("kafka_producer_latency_seconds",
            "Time from handing a record over to its acknowledgement.", SECONDS, &["topic"]);
        producer_errors: counters("kafka_producer_errors_total",
            "Records whose publishing failed for good.", &["topic"]);
        producer_retries: counters("kafka_producer_retries_total",
            "Records that were sent again, the broker having refused them or not answered.", &["topic"]);
        batch_records: histogram("kafka_producer_batch_records", "Records per produce request.", RECORDS);
        request_failures: counter("kafka_producer_request_failures_total",
            "Produce requests that got no answer; their records may be sent again.");
        consumer_lag: int_gauges("kafka_consumer_lag",
            "Records between what the group has committed and the end of the partition.", &["topic", "partition", "group"]);
        assigned_partitions: int_gauges("kafka_consumer_assigned_partitions",
            "Partitions that members of this process read.", &["group"]);
        consumer_records: counters("kafka_consumer_records_total", "Records consumed.", &["topic"]);
        rebalances: counters("kafka_consumer_rebalances_total",
            "Rebalances that members of this process took part in.", &["group"]);
        commit_failures: counters("kafka_consumer_commit_failures_total", "Offset commits that failed.", &["group"]);
        replaced_partitions: counters("kafka_consumer_replaced_partitions_total",
            "Partitions read again from the start, their topic having been deleted and created again.", &["group"]);
    }
}

metrics! {
    /// Statements and pool occupancy.
    DatabaseMetrics {
        query_duration: histograms("db_query_duration_seconds",
            "Time one statement took, by its name.", SECONDS, &["query"]);
        query_errors: counters("db_query_errors_total", "Statements that failed, by their name.", &["query"]);
        in_use: int_gauge("db_connections_in_use", "Connections doing work.");
        idle: int_gauge("db_connections_idle", "Connections open and unused.");
        waiting: int_gauge("db_connections_waiting", "Threads waiting for a connection right now.");
        max: int_gauge("db_connections_max", "Connections the pool may open.");
        wait: histogram("db_connection_wait_seconds", "Time spent waiting for a connection.", SECONDS);
        schema_migrating: int_gauge("db_schema_migrating", "1 while a migration of the schema is running.");
        schema_dirty: int_gauge("db_schema_dirty", "1 while the schema is as a failed migration left it.");
    }
}

metrics! {
    /// Orders, idempotency keys, the outbox and the circuit breaker.
    OrdersMetrics {
        created: counter("orders_created_total", "Orders created.");
        processed: counters("orders_processed_total",
            "Orders processed: completed, failed, canceled (skipped), duplicate (replayed).", &["outcome"]);
        end_to_end: histogram("order_end_to_end_seconds",
            "Time from an order's creation to its completion.", SECONDS_TO_AN_HOUR);
        processing_duration: histogram("order_processing_duration_seconds",
            "Time one attempt at an order's processing step took.", SECONDS);
        idempotency_hits: counter("idempotency_hits_total", "Requests answered from a stored response.");
        idempotency_swept: counter("idempotency_keys_swept_total", "Expired idempotency keys deleted.");
        outbox_backlog: int_gauge("outbox_backlog", "Outbox rows not yet published.");
        outbox_oldest_seconds: gauge("outbox_oldest_seconds", "Age of the oldest outbox row not yet published.");
        outbox_published: counter("outbox_published_total", "Outbox rows published by the relay.");
        circuit_breaker_state: int_gauges("circuit_breaker_state", "0 closed, 1 half-open, 2 open.", &["name"]);
        saga_steps: counters("saga_steps_total",
            "Commands of sagas that were sent: done, refused, or unavailable and sent again.", &["step", "outcome"]);
        saga_duration: histograms("saga_duration_seconds",
            "Time from the start of a saga to its end, completed or failed.", SECONDS_TO_AN_HOUR, &["outcome"]);
        sagas: int_gauges("sagas", "Unfinished sagas in the database, running or compensating.", &["state"]);
    }
}

metrics! {
    /// The worker's consumer threads.
    WorkerMetrics {
        threads: int_gauge("worker_threads", "Threads that consume events.");
        threads_busy: int_gauge("worker_threads_busy", "Threads that are processing orders right now.");
        announcements_waiting: int_gauges("worker_announcements_waiting",
            "Events and dead letters that Kafka refused and that are tried again.", &["topic"]);
        dead_lettered: counters("orders_dead_lettered_total", "Messages sent to the dead-letter topic.", &["reason"]);
    }
}

metrics! {
    /// The participants' commands.
    ParticipantMetrics {
        commands: counters("participant_commands_total",
            "Commands of sagas: done, refused, or repeated (decided before).", &["step", "outcome"]);
    }
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
            grpc: GrpcMetrics::new(&registry),
            kafka: KafkaMetrics::new(&registry),
            database: DatabaseMetrics::new(&registry),
            orders: OrdersMetrics::new(&registry),
            worker: WorkerMetrics::new(&registry),
            participant: ParticipantMetrics::new(&registry),
            tracing: TracingMetrics::new(&registry),
            registry,
        }
    }

    /// Adds a function that runs before each scrape and each export, for gauges that are measured
    /// only then. It must not block.
    pub fn on_scrape(&self, hook: Box<dyn Fn() + Send + Sync>) {
        self.registry.on_scrape(hook);
    }

    /// Starts to send all metrics to a collector every `interval`.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub fn export(
        &self,
        resource: &Resource,
        collector: Client,
        interval: Duration,
    ) -> io::Result<MetricsExport> {
        MetricsExport::start(self.registry.clone(), resource, collector, interval)
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
