//! The Kafka [`EventBus`], on the producer of `crates/kafka`.

use std::sync::Arc;
use std::time::Instant;

use crate::orders::adapters::breaker::Breaker;
use crate::orders::app::PUBLISH_BUDGET;
use crate::orders::domain::OrderEvent;
use crate::orders::ports::{EventBus, Message, PublishError};
use tbd_deadline::Deadline;
use tbd_kafka::producer::{Outcome, ProduceError, Producer, Record};
use tbd_telemetry::semconv;
use tbd_telemetry::tracing::DetachedSpan;

use super::begun::{Begun, Sending};
use super::events::Topics;
use super::partition_breakers::PartitionBreakers;
use super::spans::traced;

/// Publishes events to their topics.
pub struct KafkaEventBus {
    pub(super) producer: Producer,
    pub(super) topics: Topics,
    pub(super) breaker: Option<Arc<Breaker>>,
    /// Used together with `breaker`.
    pub(super) partitions: PartitionBreakers,
    begun: Begun,
}

impl KafkaEventBus {
    /// A bus that publishes to `topics` through `producer`.
    pub fn new(producer: Producer, topics: Topics) -> Self {
        Self {
            producer,
            topics,
            breaker: None,
            partitions: PartitionBreakers::default(),
            begun: Begun::default(),
        }
    }

    /// Puts `breaker` between requests and Kafka, and one of its own before each partition.
    pub fn with_breaker(self, breaker: Arc<Breaker>) -> Self {
        Self {
            breaker: Some(breaker),
            ..self
        }
    }

    /// Passes the events of orders that share a commit to the producer, before the threads of
    /// their requests wake. They leave sooner and in fewer Kafka requests, and
    /// [`EventBus::publish`] waits for their acknowledgements. Does not block: `publish` sends the
    /// events that cannot leave at once.
    pub fn begin(&self, messages: &[&Message]) {
        // A half-open breaker lets a single request probe Kafka.
        if self.breaker.as_ref().is_some_and(|it| !it.is_closed()) {
            return;
        }
        let deadline = Deadline::after(PUBLISH_BUDGET);
        let began = Instant::now();
        for message in messages {
            let breaker = self.partition_breaker(message);
            if breaker.is_some_and(|it| !it.is_closed()) {
                continue;
            }
            let cause = message.trace_context.as_deref();
            let (record, span) = traced(self.topics.record(message), cause);
            match self.producer.try_send(record, deadline) {
                Ok(pending) => {
                    let sending = Sending {
                        pending,
                        span,
                        began,
                    };
                    self.begun.put(message.order_id, sending, deadline);
                }
                Err(error) => span.fail("not_begun", &error.to_string()),
            }
        }
    }

    /// The topics of this bus.
    pub fn topics(&self) -> &Topics {
        &self.topics
    }

    /// Waits until events can leave at once, until `deadline` at most.
    pub fn warm_up(&self, deadline: Deadline) {
        if let Err(error) = self.producer.warm_up(deadline) {
            log::debug!("producer: {error}");
        }
    }

    /// Flushes and stops the producer. Waits until `deadline` at most.
    pub fn close(&self, deadline: Deadline) {
        if let Err(error) = self.producer.close(deadline) {
            log::warn!("producer: {error}");
        }
    }

    /// Publishes records together, and waits until `deadline` at most for every acknowledgement.
    /// Each record gets its own span in the trace of its `cause`, and carries that span's context.
    pub(super) fn send(
        &self,
        records: Vec<(Record, Option<String>)>,
        deadline: Deadline,
    ) -> Vec<Result<(), PublishError>> {
        let (records, spans): (Vec<Record>, Vec<DetachedSpan>) = records
            .into_iter()
            .map(|(record, cause)| traced(record, cause.as_deref()))
            .unzip();
        self.producer
            .publish(records, deadline)
            .into_iter()
            .zip(spans)
            .map(|(outcome, span)| settled(outcome, &span))
            .collect()
    }
}

/// Converts the producer's outcome, and records it in the span.
fn settled(outcome: Outcome, span: &DetachedSpan) -> Result<(), PublishError> {
    match outcome {
        Ok(metadata) => {
            let partition = metadata.partition.to_string();
            span.set(semconv::MESSAGING_DESTINATION_PARTITION_ID, partition);
            if let Some(offset) = metadata.offset {
                span.set(semconv::MESSAGING_KAFKA_OFFSET, offset);
            }
            Ok(())
        }
        Err(error) => {
            let error = publish_error(error);
            span.fail("publish_failed", &error.to_string());
            Err(error)
        }
    }
}

/// Unavailable concerns Kafka's health, Refused this one event. Both can be corrected later, and
/// the event must not be lost until then.
fn publish_error(error: ProduceError) -> PublishError {
    let reason = error.to_string();
    match error.is_fault_of_record() {
        _ if error.is_too_large() => PublishError::TooLarge(reason),
        true => PublishError::Refused(reason),
        false => PublishError::Unavailable(reason),
    }
}

/// Whether Kafka was unavailable. A refused message says nothing about Kafka's health.
pub(super) fn is_away(error: &PublishError) -> bool {
    matches!(error, PublishError::Unavailable(_))
}

impl EventBus for KafkaEventBus {
    fn encode(&self, event: &OrderEvent) -> Message {
        self.topics.message(event)
    }

    fn publish(&self, message: &Message, deadline: Deadline) -> Result<(), PublishError> {
        if let Some(sending) = self.begun.take(message.order_id) {
            let result = settled(sending.pending.wait(deadline), &sending.span);
            self.count(message, &result, (sending.began, deadline));
            return result;
        }
        self.guard(message, deadline, || {
            let record = (self.topics.record(message), message.trace_context.clone());
            let result = self.send(vec![record], deadline).pop();
            result.unwrap_or_else(|| Err(PublishError::Unavailable("no answer".into())))
        })
    }

    fn publish_all(
        &self,
        messages: &[Message],
        deadline: Deadline,
    ) -> Vec<Result<(), PublishError>> {
        self.publish_admitted(messages, deadline)
    }
}
