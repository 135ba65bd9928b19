//! Kafka: rdkafka's producer, tbd's events.

use std::time::Instant;

use futures_util::future::join_all;
use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use tbd::config::KafkaSettings;
use tbd::metrics::KafkaMetrics;
use tbd::orders::adapters::Breaker;
use tbd::orders::adapters::kafka::{ProducerMeter, Topics, send_span};
use tbd::orders::app::PUBLISH_BUDGET;
use tbd::orders::ports::{Message, PublishError};
use tbd_deadline::Deadline;
use tbd_kafka::producer::{Compression, Record};
use tbd_telemetry::semconv;
use tokio::time::timeout_at;

/// Publishes events.
pub struct Bus {
    producer: FutureProducer,
    /// Where events go.
    pub topics: Topics,
    metrics: KafkaMetrics,
}

impl Bus {
    /// A producer with tbd's guarantees: acknowledged by all in-sync replicas, idempotent, no linger.
    ///
    /// # Errors
    /// librdkafka's, over its settings.
    pub fn new(
        settings: &KafkaSettings,
        topics: Topics,
        metrics: KafkaMetrics,
    ) -> Result<Self, KafkaError> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", settings.brokers.join(","))
            .set("client.id", "tbd-api")
            .set("acks", "all")
            .set("enable.idempotence", "true")
            // A key's partition as in tbd and Java; librdkafka's default is another hash.
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "0")
            .set("compression.type", compression(settings.compression))
            .set(
                "delivery.timeout.ms",
                PUBLISH_BUDGET.as_millis().to_string(),
            )
            // With librdkafka's default (a minute), a recovered broker would wait.
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.nagle.disable", "true");
        let producer = FutureProducer::from_config(&config)?;
        // The failure counters start at 0 for each topic.
        drop(ProducerMeter::new(metrics.clone(), &topics));
        Ok(Self {
            producer,
            topics,
            metrics,
        })
    }

    /// Publishes messages and waits for each one's acknowledgement.
    pub async fn publish(
        &self,
        messages: &[Message],
        deadline: Deadline,
    ) -> Vec<Result<(), PublishError>> {
        join_all(messages.iter().map(|message| {
            let record = self.topics.record(message);
            self.send(record, message.trace_context.as_deref(), deadline)
        }))
        .await
    }

    /// Publishes one record, in a span of its own in the trace of its `cause`, and waits for its acknowledgement.
    pub async fn send(
        &self,
        record: Record,
        cause: Option<&str>,
        deadline: Deadline,
    ) -> Result<(), PublishError> {
        let topic = record.topic.clone();
        let span = send_span(&record, cause);
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len() + 2);
        for (name, value) in &record.headers {
            headers = headers.insert(Header {
                key: name,
                value: value.as_deref(),
            });
        }
        for (key, value) in tbd_telemetry::tracing::headers(&span.context()) {
            headers = headers.insert(Header {
                key,
                value: Some(&value),
            });
        }
        let mut sent = FutureRecord::<[u8], [u8]>::to(&topic).headers(headers);
        sent.key = record.key.as_deref();
        sent.payload = record.value.as_deref();
        let begun = Instant::now();
        let outcome = timeout_at(
            deadline.instant().into(),
            self.producer.send(sent, deadline.remaining()),
        )
        .await;
        let labels = [&*topic];
        self.metrics
            .producer_latency
            .with_label_values(&labels)
            .observe(begun.elapsed().as_secs_f64());
        let error = match outcome {
            Ok(Ok(Delivery {
                partition, offset, ..
            })) => {
                let partition = partition.to_string();
                span.set(semconv::MESSAGING_DESTINATION_PARTITION_ID, partition);
                span.set(semconv::MESSAGING_KAFKA_OFFSET, offset);
                return Ok(());
            }
            Ok(Err((
                KafkaError::MessageProduction(
                    code @ (RDKafkaErrorCode::MessageSizeTooLarge
                    | RDKafkaErrorCode::InvalidMessageSize),
                ),
                _,
            ))) => PublishError::TooLarge(code.to_string()),
            Ok(Err((
                KafkaError::MessageProduction(
                    code @ (RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::InvalidRecord),
                ),
                _,
            ))) => PublishError::Refused(code.to_string()),
            Ok(Err((error, _))) => PublishError::Unavailable(error.to_string()),
            Err(_) => PublishError::Unavailable("no acknowledgement in time".to_owned()),
        };
        self.metrics
            .producer_errors
            .with_label_values(&labels)
            .inc();
        span.fail("publish_failed", &error.to_string());
        Err(error)
    }

    /// As [`publish`](Self::publish) for one message, behind `breaker`.
    ///
    /// # Errors
    /// [`PublishError`]; at once while the breaker is open.
    pub async fn publish_guarded(
        &self,
        breaker: &Breaker,
        message: &Message,
        deadline: Deadline,
    ) -> Result<(), PublishError> {
        let Some(permit) = breaker.admit(Instant::now(), deadline) else {
            return Err(PublishError::Unavailable(
                "the circuit breaker is open".to_owned(),
            ));
        };
        let cause = message.trace_context.as_deref();
        let result = self
            .send(self.topics.record(message), cause, deadline)
            .await;
        permit.ended(!matches!(result, Err(PublishError::Unavailable(_))));
        result
    }

    /// Sends the remaining records, until `deadline` at most. Blocks.
    pub fn close(&self, deadline: Deadline) {
        if let Err(error) = self.producer.flush(deadline.remaining()) {
            log::warn!("producer: {error}");
        }
    }
}

fn compression(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Gzip => "gzip",
        Compression::Snappy => "snappy",
        Compression::Lz4 => "lz4",
        // The configuration has no other.
        _ => "zstd",
    }
}
