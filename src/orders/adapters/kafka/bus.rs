//! The Kafka [`EventBus`], on the producer of `crates/kafka`.

use bytes::Bytes;

use crate::orders::app::PUBLISH_BUDGET;
use crate::orders::domain::OrderEvent;
use crate::orders::ports::{EventBus, Message, PublishError};
use tbd_deadline::Deadline;
use tbd_kafka::consumer::ConsumerRecord;
use tbd_kafka::producer::{Outcome, ProduceError, Producer, Record};
use tbd_telemetry::semconv;
use tbd_telemetry::tracing::{self, Context, DetachedSpan, KeyValue, SpanKind};

use super::begun::{Begun, Sending};
use super::breaker::Breaker;
use super::events::Topics;

/// Publishes events to their topics.
pub struct KafkaEventBus {
    producer: Producer,
    topics: Topics,
    breaker: Option<Breaker>,
    begun: Begun,
}

impl KafkaEventBus {
    /// A bus that publishes to `topics` through `producer`.
    pub fn new(producer: Producer, topics: Topics) -> Self {
        Self {
            producer,
            topics,
            breaker: None,
            begun: Begun::default(),
        }
    }

    /// Puts `breaker` between requests and Kafka.
    pub fn with_breaker(self, breaker: Breaker) -> Self {
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
        for message in messages {
            let cause = message.trace_context.as_deref();
            let (record, span) = traced(self.topics.record(message), cause);
            match self.producer.try_send(record, deadline) {
                Some(pending) => {
                    let sending = Sending { pending, span };
                    self.begun.put(message.order_id, sending, deadline);
                }
                None => span.fail("not_begun", "it could not leave at once"),
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

/// The span of sending `record`, and the record with the span's context in its headers.
fn traced(mut record: Record, cause: Option<&str>) -> (Record, DetachedSpan) {
    let span = send_span(&record, cause);
    let headers = trace_headers(&span.context());
    record.headers.extend(headers.map(|(name, value)| {
        let value = Some(Bytes::from(value));
        (name.to_owned(), value)
    }));
    (record, span)
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

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// Whether a record's header of this name carries trace context.
pub(super) fn is_trace_header(name: &str) -> bool {
    [TRACEPARENT, TRACESTATE].contains(&name)
}

/// The names and values of the headers that carry `context` (W3C Trace Context).
pub fn trace_headers(context: &Context) -> impl Iterator<Item = (&'static str, String)> + use<> {
    let parent = tracing::inject(context).map(|value| (TRACEPARENT, value));
    let state = tracing::inject_state(context).map(|value| (TRACESTATE, value));
    parent.into_iter().chain(state)
}

/// The trace context in a record's headers.
pub(super) fn trace_context(record: &ConsumerRecord) -> Context {
    let values = |wanted| {
        let all = record
            .headers
            .iter()
            .filter(move |(name, _)| name == wanted);
        all.filter_map(|(_, value)| std::str::from_utf8(value.as_deref()?).ok())
    };
    tracing::extract(values(TRACEPARENT), values(TRACESTATE))
}

/// The span of sending `record`, in the trace of its `cause`.
pub fn send_span(record: &Record, cause: Option<&str>) -> DetachedSpan {
    let parent = tracing::deserialize(cause);
    let name = format!("send {}", record.topic);
    let attributes = || {
        let mut attributes = vec![
            KeyValue::new(semconv::MESSAGING_SYSTEM, semconv::KAFKA),
            KeyValue::new(semconv::MESSAGING_OPERATION_NAME, "send"),
            KeyValue::new(semconv::MESSAGING_OPERATION_TYPE, "send"),
            KeyValue::new(
                semconv::MESSAGING_DESTINATION_NAME,
                record.topic.to_string(),
            ),
        ];
        attributes.extend(key_attribute(record.key.as_deref()));
        attributes
    };
    tracing::detached_span_in(&parent, name, SpanKind::Producer, attributes, Vec::new())
}

/// A record's key as an attribute, if it is valid UTF-8.
pub(super) fn key_attribute(key: Option<&[u8]>) -> Option<KeyValue> {
    let key = std::str::from_utf8(key?).ok()?;
    Some(KeyValue::new(
        semconv::MESSAGING_KAFKA_MESSAGE_KEY,
        key.to_owned(),
    ))
}

/// Unavailable concerns Kafka's health, Refused this one event. Both can be corrected later, and
/// the event must not be lost until then.
fn publish_error(error: ProduceError) -> PublishError {
    let reason = match error.way_out() {
        Some(way_out) => format!("{error}; {way_out}"),
        None => error.to_string(),
    };
    match error.is_fault_of_record() {
        _ if error.is_too_large() => PublishError::TooLarge(reason),
        true => PublishError::Refused(reason),
        false => PublishError::Unavailable(reason),
    }
}

impl EventBus for KafkaEventBus {
    fn encode(&self, event: &OrderEvent) -> Message {
        self.topics.message(event)
    }

    fn publish(&self, message: &Message, deadline: Deadline) -> Result<(), PublishError> {
        if let Some(sending) = self.begun.take(message.order_id) {
            let result = settled(sending.pending.wait(deadline), &sending.span);
            self.breaker.iter().for_each(|it| it.count(&result));
            return result;
        }
        let send = || {
            let cause = message.trace_context.clone();
            let record = (self.topics.record(message), cause);
            let no_answer = || Err(PublishError::Unavailable("no answer".into()));
            self.send(vec![record], deadline)
                .pop()
                .unwrap_or_else(no_answer)
        };
        match &self.breaker {
            Some(breaker) => breaker.guard(send),
            None => send(),
        }
    }

    fn publish_all(
        &self,
        messages: &[Message],
        deadline: Deadline,
    ) -> Vec<Result<(), PublishError>> {
        let records = messages
            .iter()
            .map(|message| (self.topics.record(message), message.trace_context.clone()))
            .collect();
        self.send(records, deadline)
    }
}
