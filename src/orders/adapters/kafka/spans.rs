//! Spans of records, and the trace context that records carry in their headers.

use bytes::Bytes;
use tbd_kafka::consumer::ConsumerRecord;
use tbd_kafka::producer::Record;
use tbd_telemetry::semconv;
use tbd_telemetry::tracing::{self, Context, DetachedSpan, KeyValue, SpanKind, TraceContextExt};

use crate::orders::domain::OrderId;

/// The span of sending `record`, and the record with the span's context in its headers.
pub(super) fn traced(mut record: Record, cause: Option<&str>) -> (Record, DetachedSpan) {
    let span = send_span(&record, cause);
    let headers = tracing::headers(&span.context());
    record.headers.extend(headers.map(|(name, value)| {
        let value = Some(Bytes::from(value));
        (name.to_owned(), value)
    }));
    (record, span)
}

/// Whether a record's header of this name carries trace context.
pub(super) fn is_trace_header(name: &str) -> bool {
    [tracing::TRACEPARENT, tracing::TRACESTATE].contains(&name)
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
    tracing::extract(values(tracing::TRACEPARENT), values(tracing::TRACESTATE))
}

/// The span of sending `record`, in the trace of its `cause`.
pub fn send_span(record: &Record, cause: Option<&str>) -> DetachedSpan {
    let parent = tracing::deserialize(cause);
    let name = format!("send {}", record.topic);
    let attributes = || common("send", &record.topic, record.key.as_deref());
    tracing::detached_span_in(&parent, name, SpanKind::Producer, attributes, Vec::new())
}

/// The span of processing one record. It is a child of the span that sent the record and also
/// links to it, as the semantic conventions recommend.
pub(super) fn process_span(
    record: &ConsumerRecord,
    order: Option<&OrderId>,
    group: &str,
) -> DetachedSpan {
    let parent = trace_context(record);
    let sent = parent.span().span_context().clone();
    let links = sent.is_valid().then_some(sent).into_iter().collect();
    let name = format!("process {}", record.topic);
    let attributes = || {
        let mut attributes = common("process", &record.topic, record.key.as_deref());
        attributes.extend([
            KeyValue::new(
                semconv::MESSAGING_DESTINATION_PARTITION_ID,
                record.partition.to_string(),
            ),
            KeyValue::new(semconv::MESSAGING_CONSUMER_GROUP_NAME, group.to_owned()),
            KeyValue::new(semconv::MESSAGING_KAFKA_OFFSET, record.offset),
        ]);
        attributes.extend(order.map(|id| KeyValue::new(semconv::ORDER_ID, id.to_string())));
        attributes
    };
    tracing::detached_span_in(&parent, name, SpanKind::Consumer, attributes, links)
}

/// The attributes of every operation on a record. A key is one of them if it is valid UTF-8.
fn common(operation: &'static str, topic: &str, key: Option<&[u8]>) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new(semconv::MESSAGING_SYSTEM, semconv::KAFKA),
        KeyValue::new(semconv::MESSAGING_OPERATION_NAME, operation),
        KeyValue::new(semconv::MESSAGING_OPERATION_TYPE, operation),
        KeyValue::new(semconv::MESSAGING_DESTINATION_NAME, topic.to_owned()),
    ];
    if let Some(key) = key.and_then(|key| std::str::from_utf8(key).ok()) {
        let key = KeyValue::new(semconv::MESSAGING_KAFKA_MESSAGE_KEY, key.to_owned());
        attributes.push(key);
    }
    attributes
}
