//! What goes to order.dlq: the original record, and where it came from and why. And
//! what comes back from there: the original record, and when it was sent back.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use crate::kafka::consumer::ConsumerRecord;
use crate::kafka::producer::Record;

use super::bus::is_trace_header;

/// Every header of ours begins so.
const OURS: &str = "dlq-";
pub(super) const TOPIC: &str = "dlq-topic";
pub(super) const PARTITION: &str = "dlq-partition";
pub(super) const OFFSET: &str = "dlq-offset";
pub(super) const REASON: &str = "dlq-reason";
pub(super) const ATTEMPTS: &str = "dlq-attempts";
/// On a record that was sent back: when (RFC 3339).
const REPLAYED: &str = "dlq-replayed";

/// Why a message becomes a dead letter, as label values.
pub const REASONS: [&str; 3] = [UNDECODABLE, UNKNOWN_ORDER, FAILED];
pub(super) const UNDECODABLE: &str = "undecodable";
pub(super) const UNKNOWN_ORDER: &str = "unknown_order";
pub(super) const FAILED: &str = "failed";

/// Why a record is given up.
pub struct Reason {
    /// One sentence, without secrets.
    pub text: String,
    /// Attempts made at processing; 0 for what was never tried.
    pub attempts: u32,
}

/// The dead letter for `record`: key, value and headers as they were, with
/// headers that say where it stood. Those of the trace are left out, since sending
/// sets new ones in the same trace.
pub fn dead_letter(topic: &Arc<str>, record: &ConsumerRecord, reason: &Reason) -> Record {
    let kept = record
        .headers
        .iter()
        .filter(|(name, _)| !is_trace_header(name))
        .cloned();
    let ours = [
        (TOPIC, record.topic.to_string()),
        (PARTITION, record.partition.to_string()),
        (OFFSET, record.offset.to_string()),
        (REASON, reason.text.clone()),
        (ATTEMPTS, reason.attempts.to_string()),
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

/// What `letter` was made of, for the topic it came from, marked as sent back at `now`;
/// the headers of the trace are left out as in [`dead_letter`]. `None` if it does not say where it
/// came from: then it is no letter of ours.
pub(super) fn replay(letter: &ConsumerRecord, now: Timestamp) -> Option<Record> {
    let topic = std::str::from_utf8(letter.header(TOPIC)?).ok()?;
    let mark = Some(Bytes::from(format!("{now:.6}")));
    let headers = letter
        .headers
        .iter()
        .filter(|(name, _)| !is_trace_header(name) && !name.starts_with(OURS))
        .cloned()
        .chain([(REPLAYED.to_owned(), mark)]);
    Some(Record {
        topic: topic.into(),
        partition: None,
        key: letter.key.clone(),
        value: letter.value.clone(),
        headers: headers.collect(),
        timestamp_ms: None,
    })
}

/// When `record` was sent back from the dead letters; `None` if it never was.
pub fn replayed_at(record: &ConsumerRecord) -> Option<Timestamp> {
    let mark = std::str::from_utf8(record.header(REPLAYED)?).ok()?;
    mark.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ConsumerRecord {
        let header =
            |name: &str, value: &str| (name.to_owned(), Some(Bytes::from(value.to_owned())));
        ConsumerRecord {
            topic: "order.created".into(),
            partition: 3,
            offset: 17,
            leader_epoch: -1,
            timestamp_ms: -1,
            key: Some(Bytes::from_static(b"key")),
            value: None,
            headers: vec![
                header("mine", "1"),
                header("traceparent", "00-a-b-01"),
                header("tracestate", "a=1"),
                header("mine", "2"),
            ],
        }
    }

    /// As it is read from the topic it was sent to.
    fn arrived(sent: Record) -> ConsumerRecord {
        ConsumerRecord {
            topic: sent.topic,
            key: sent.key,
            value: sent.value,
            headers: sent.headers,
            ..record()
        }
    }

    fn letter(record: &ConsumerRecord) -> ConsumerRecord {
        let reason = Reason {
            text: "because".into(),
            attempts: 3,
        };
        arrived(dead_letter(&"order.dlq".into(), record, &reason))
    }

    #[test]
    fn a_replayed_record_is_the_original_with_the_moment_of_its_replay() {
        let (original, now) = (record(), Timestamp::new(1_760_000_000, 5_000).unwrap());
        let sent = replay(&letter(&original), now).unwrap();
        assert_eq!(*sent.topic, *original.topic);
        assert_eq!((&sent.key, &sent.value), (&original.key, &original.value));
        let names: Vec<&str> = sent.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["mine", "mine", REPLAYED]);
        assert_eq!(sent.headers[1], original.headers[3]);
        assert_eq!(replayed_at(&arrived(sent)), Some(now));
        assert_eq!(replayed_at(&original), None);
    }

    #[test]
    fn what_dies_again_is_replayed_with_the_latest_moment_only() {
        let now = Timestamp::new(1_760_000_000, 0).unwrap();
        let again = arrived(replay(&letter(&record()), now).unwrap());
        let later = Timestamp::new(1_760_000_001, 0).unwrap();
        let sent = arrived(replay(&letter(&again), later).unwrap());
        assert_eq!(replayed_at(&sent), Some(later));
        assert_eq!(sent.headers.len(), 3);
    }

    #[test]
    fn what_does_not_say_where_it_came_from_is_not_replayed() {
        assert!(replay(&record(), Timestamp::UNIX_EPOCH).is_none());
    }
}
