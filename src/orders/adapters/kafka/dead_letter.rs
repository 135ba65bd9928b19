//! What goes to order.dlq: the original record, and where it came from and why.

use std::sync::Arc;

use bytes::Bytes;

use crate::kafka::consumer::ConsumerRecord;
use crate::kafka::producer::Record;

use super::bus::TRACEPARENT;

/// Why a record is given up.
pub(super) struct Reason {
    /// One sentence, without secrets.
    pub(super) text: String,
    /// Attempts made at processing; 0 for what was never tried.
    pub(super) attempts: u32,
}

/// The dead letter for `record`: key, value and headers as they were, with
/// headers that say where it stood. `traceparent` is left out, since sending
/// sets a new one in the same trace.
pub(super) fn dead_letter(topic: &Arc<str>, record: &ConsumerRecord, reason: &Reason) -> Record {
    let kept = record
        .headers
        .iter()
        .filter(|(name, _)| name != TRACEPARENT)
        .cloned();
    let ours = [
        ("dlq-topic", record.topic.to_string()),
        ("dlq-partition", record.partition.to_string()),
        ("dlq-offset", record.offset.to_string()),
        ("dlq-reason", reason.text.clone()),
        ("dlq-attempts", reason.attempts.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), Some(Bytes::from(value))));
    Record {
        topic: Arc::clone(topic),
        partition: None,
        key: record.key.clone(),
        value: record.value.clone(),
        headers: kept.chain(ours).collect(),
        timestamp_ms: None,
    }
}
