//! Metrics of the Kafka client, from its hooks.

use std::time::Duration;

use crate::metrics::KafkaMetrics;
use tbd_kafka::TopicPartition;
use tbd_kafka::consumer::ConsumerHooks;
use tbd_kafka::producer::{Outcome, ProducerHooks};
use tbd_kafka::{ApiKey, ClientHooks, Error};
use tbd_telemetry::metrics::{IntCounter, IntCounterVec};

use super::events::Topics;

/// Measures every request to the brokers.
#[derive(Debug)]
pub struct ClientMeter(KafkaMetrics);

impl ClientMeter {
    /// A meter that updates `metrics`. Lost requests start at 0 for each kind.
    pub fn new(metrics: KafkaMetrics) -> Self {
        for api in ApiKey::ALL {
            let labels = [&*format!("{api:?}")];
            metrics.requests_lost.with_label_values(&labels);
        }
        Self(metrics)
    }
}

impl ClientHooks for ClientMeter {
    fn request_sent(&self, api: ApiKey) {
        let labels = [&*format!("{api:?}")];
        self.0.requests_in_flight.with_label_values(&labels).inc();
    }

    fn request_ended(&self, api: ApiKey, latency: Option<Duration>) {
        let labels = [&*format!("{api:?}")];
        self.0.requests_in_flight.with_label_values(&labels).dec();
        match latency {
            Some(latency) => {
                let duration = self.0.request_duration.with_label_values(&labels);
                duration.observe(latency.as_secs_f64());
            }
            None => self.0.requests_lost.with_label_values(&labels).inc(),
        }
    }
}

/// Measures a producer.
pub struct ProducerMeter(KafkaMetrics);

impl ProducerMeter {
    /// A meter that updates `metrics`. Failures and retries start at 0 for each of `topics`.
    pub fn new(metrics: KafkaMetrics, topics: &Topics) -> Self {
        for topic in topics.all() {
            metrics.producer_errors.with_label_values(&[topic]);
            metrics.producer_retries.with_label_values(&[topic]);
        }
        Self(metrics)
    }
}

impl ProducerHooks for ProducerMeter {
    fn record_settled(&self, topic: &str, latency: Duration, outcome: &Outcome) {
        match outcome {
            Ok(_) => {
                let latencies = self.0.producer_latency.with_label_values(&[topic]);
                latencies.observe(latency.as_secs_f64());
            }
            Err(_) => self.0.producer_errors.with_label_values(&[topic]).inc(),
        }
    }

    fn records_repeated(&self, topic: &str, records: usize) {
        let records = records.try_into().unwrap_or(u64::MAX);
        let retries = self.0.producer_retries.with_label_values(&[topic]);
        retries.inc_by(records);
    }

    fn request_ended(&self, _: i32, records: usize, _: usize, result: Result<(), &Error>) {
        self.0.batch_records.observe(records as f64);
        if result.is_err() {
            self.0.request_failures.inc();
        }
    }
}

/// Measures one member of a group.
#[derive(Clone)]
pub(super) struct ConsumerMeter {
    metrics: KafkaMetrics,
    group: String,
}

impl ConsumerMeter {
    pub(super) fn new(metrics: KafkaMetrics, group: String) -> Self {
        let meter = Self { metrics, group };
        meter.of_group(&meter.metrics.rebalances);
        meter.of_group(&meter.metrics.commit_failures);
        meter.of_group(&meter.metrics.replaced_partitions);
        meter
    }

    fn of_group(&self, counters: &IntCounterVec) -> IntCounter {
        counters.with_label_values(&[&self.group])
    }

    pub(super) fn group(&self) -> &str {
        &self.group
    }

    pub(super) fn polled(&self, topic: &str, records: usize) {
        let records = records.try_into().unwrap_or(u64::MAX);
        let consumed = self.metrics.consumer_records.with_label_values(&[topic]);
        consumed.inc_by(records);
    }

    pub(super) fn commit_failed(&self) {
        self.of_group(&self.metrics.commit_failures).inc();
    }

    fn assignment_grew(&self, partitions: i64) {
        let assigned = &self.metrics.assigned_partitions;
        assigned.with_label_values(&[&self.group]).add(partitions);
    }
}

impl ConsumerHooks for ConsumerMeter {
    fn assigned(&self, added: &[TopicPartition]) {
        self.assignment_grew(added.len() as i64);
        self.of_group(&self.metrics.rebalances).inc();
    }

    fn revoked(&self, partitions: &[TopicPartition]) {
        self.assignment_grew(-(partitions.len() as i64));
    }

    fn lost(&self, partitions: &[TopicPartition]) {
        self.assignment_grew(-(partitions.len() as i64));
    }

    fn topic_replaced(&self, partitions: &[TopicPartition]) {
        self.of_group(&self.metrics.replaced_partitions)
            .inc_by(partitions.len() as u64);
    }
}
