//! Conversion between records and dead letters. A letter in order.dlq has the original record, its
//! place and the reason. A replay has the original record and the time of the replay.
//!
//! A letter may be too large: it has more headers than the record, and its topic may have a lower
//! limit. Then it is sent without the value, and names the place of the original.

use std::sync::Arc;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use tbd_kafka::consumer::ConsumerRecord;
use tbd_kafka::producer::Record;

use super::spans::is_trace_header;

/// The prefix of all headers that dead letters and replays add.
const PREFIX: &str = "dlq-";
pub(super) const TOPIC: &str = "dlq-topic";
pub(super) const PARTITION: &str = "dlq-partition";
pub(super) const OFFSET: &str = "dlq-offset";
pub(super) const REASON: &str = "dlq-reason";
pub(super) const ATTEMPTS: &str = "dlq-attempts";
/// On a replayed record: the time of the replay (RFC 3339).
const REPLAYED: &str = "dlq-replayed";

/// On a letter without its value; only the original record has it.
pub(super) const OMITTED: &str = "dlq-value-omitted";
/// The omitted value's length in bytes, and its SHA-256 in hexadecimal.
const LENGTH: &str = "dlq-value-length";
const HASH: &str = "dlq-value-sha256";
/// On a letter whose key or original headers are omitted, too.
const KEY_OMITTED: &str = "dlq-key-omitted";
const HEADERS_OMITTED: &str = "dlq-headers-omitted";
/// Number of headers that every letter has, from the topic to the attempts.
const PLACE_HEADERS: usize = 5;
/// Values, keys and original headers up to this size are never omitted.
const KEPT_BYTES_MAX: usize = 8 * 1024;

/// The reasons for dead letters, as label values.
pub const REASONS: [&str; 3] = [UNDECODABLE, UNKNOWN_ORDER, FAILED];
pub(super) const UNDECODABLE: &str = "undecodable";
pub(super) const UNKNOWN_ORDER: &str = "unknown_order";
pub(super) const FAILED: &str = "failed";

/// The dead letter of `record`: its key, value and headers, with headers that name its place, the
/// reason (a sentence without secrets) and the number of `attempts` at processing. Trace headers are
/// left out, because the send adds new ones of the same trace.
pub fn dead_letter(
    topic: &Arc<str>,
    record: &ConsumerRecord,
    reason: &str,
    attempts: u32,
) -> Record {
    let kept = record
        .headers
        .iter()
        .filter(|(name, _)| !is_trace_header(name) && name != OMITTED)
        .cloned();
    let added: [_; PLACE_HEADERS] = [
        (TOPIC, record.topic.to_string()),
        (PARTITION, record.partition.to_string()),
        (OFFSET, record.offset.to_string()),
        (REASON, reason.to_owned()),
        (ATTEMPTS, attempts.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), Some(Bytes::from(value))));
    Record {
        topic: Arc::clone(topic),
        partition: None,
        key: record.key.clone(),
        value: record.value.clone(),
        headers: kept.chain(added).collect(),
        timestamp_ms: None,
    }
}

/// `letter` without its value, for a topic that refuses the whole letter. Headers name the place
/// of the original and how to recognize it. `None` if the letter is small: then only a higher
/// limit helps.
pub(super) fn without_value(letter: &Record) -> Option<Record> {
    let value = letter.value.clone().unwrap_or_default();
    let original = letter.headers.len().saturating_sub(PLACE_HEADERS);
    let (original, added) = letter.headers.split_at(original);
    let bytes =
        |(name, value): &(String, Option<Bytes>)| name.len() + value.as_ref().map_or(0, Bytes::len);
    let is_long_key = letter
        .key
        .as_ref()
        .is_some_and(|key| key.len() > KEPT_BYTES_MAX);
    let are_long_headers = original.iter().map(bytes).sum::<usize>() > KEPT_BYTES_MAX;
    if value.len() <= KEPT_BYTES_MAX && !is_long_key && !are_long_headers {
        return None;
    }
    let yes = || "true".to_owned();
    let omitted = [
        (OMITTED, Some(yes())),
        (LENGTH, Some(value.len().to_string())),
        (HASH, Some(sha256(&value))),
        (KEY_OMITTED, is_long_key.then(yes)),
        (HEADERS_OMITTED, are_long_headers.then(yes)),
    ];
    let omitted = omitted.into_iter().filter_map(|(name, value)| {
        let value = Some(Bytes::from(value?));
        Some((name.to_owned(), value))
    });
    let original = original.iter().filter(|_| !are_long_headers);
    Some(Record {
        key: letter.key.clone().filter(|_| !is_long_key),
        value: None,
        headers: original.chain(added).cloned().chain(omitted).collect(),
        ..letter.clone()
    })
}

fn sha256(value: &[u8]) -> String {
    let digits = Sha256::digest(value);
    digits.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The place of a letter's original, and how to recognize it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Original {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    length: usize,
    sha256: String,
}

impl Original {
    /// The original of `letter`. `None` if the letter does not name it.
    pub(super) fn of(letter: &ConsumerRecord) -> Option<Self> {
        Some(Self {
            topic: text(letter, TOPIC)?.to_owned(),
            partition: text(letter, PARTITION)?.parse().ok()?,
            offset: text(letter, OFFSET)?.parse().ok()?,
            length: text(letter, LENGTH)?.parse().ok()?,
            sha256: text(letter, HASH)?.to_owned(),
        })
    }

    /// Whether `record` has the omitted value.
    pub(super) fn is(&self, record: &ConsumerRecord) -> bool {
        let value = record.value.as_deref().unwrap_or_default();
        value.len() == self.length && sha256(value) == self.sha256
    }
}

/// `letter` with the key, value and headers of its `original`.
pub(super) fn with_original(letter: &ConsumerRecord, original: ConsumerRecord) -> ConsumerRecord {
    let is_added = |name: &str| is_trace_header(name) || name.starts_with(PREFIX);
    let mut headers = original.headers;
    headers.retain(|(name, _)| !is_added(name));
    let added = letter.headers.iter().filter(|(name, _)| is_added(name));
    headers.extend(added.cloned());
    let mut whole = letter.clone();
    (whole.key, whole.value, whole.headers) = (original.key, original.value, headers);
    whole
}

fn text<'a>(record: &'a ConsumerRecord, name: &str) -> Option<&'a str> {
    std::str::from_utf8(record.header(name)?).ok()
}

/// The record of `letter` for its original topic, marked as replayed at `now`. Trace headers are
/// left out as in [`dead_letter`]. `None` if the letter does not name its topic: another program
/// wrote it.
pub(super) fn replay(letter: &ConsumerRecord, now: Timestamp) -> Option<Record> {
    let topic = text(letter, TOPIC)?;
    let mark = Some(Bytes::from(format!("{now:.6}")));
    let headers = letter
        .headers
        .iter()
        .filter(|(name, _)| !is_trace_header(name) && !name.starts_with(PREFIX))
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

/// When `record` was replayed; `None` if it was not. The order gets this time, so a foreign record
/// cannot name one from the far future.
pub fn replayed_at(record: &ConsumerRecord) -> Option<Timestamp> {
    let latest = Timestamp::now() + SignedDuration::from_hours(24);
    let replayed_at: Timestamp = text(record, REPLAYED)?.parse().ok()?;
    Some(replayed_at.min(latest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ConsumerRecord {
        let header =
            |name: &str, value: &str| (name.to_owned(), Some(Bytes::from(value.to_owned())));
        let mut record = ConsumerRecord::new("order.created", 3, 17);
        record.key = Some(Bytes::from_static(b"key"));
        record.headers = vec![
            header("mine", "1"),
            header("traceparent", "00-a-b-01"),
            header("tracestate", "a=1"),
            header("mine", "2"),
        ];
        record
    }

    /// The record as its consumer reads it.
    fn arrived(sent: Record) -> ConsumerRecord {
        let mut record = ConsumerRecord::new(sent.topic, 3, 17);
        (record.key, record.value, record.headers) = (sent.key, sent.value, sent.headers);
        record
    }

    fn letter(record: &ConsumerRecord) -> ConsumerRecord {
        arrived(dead_letter(&"order.dlq".into(), record, "because", 3))
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
    fn nothing_was_replayed_in_the_far_future() {
        let sent = replay(&letter(&record()), Timestamp::MAX).unwrap();
        let in_two_days = Timestamp::now() + SignedDuration::from_hours(48);
        assert!(replayed_at(&arrived(sent)).unwrap() < in_two_days);
    }

    #[test]
    fn a_letter_without_its_value_says_where_it_lies_and_how_to_recognize_it() {
        let mut original = record();
        original.value = Some(Bytes::from(vec![b'x'; 10_000]));
        let whole = dead_letter(&"order.dlq".into(), &original, "because", 3);
        let short = without_value(&whole).unwrap();
        assert_eq!((&short.key, &short.value), (&original.key, &None));
        let names: Vec<&str> = short
            .headers
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        let place = [TOPIC, PARTITION, OFFSET, REASON, ATTEMPTS];
        let expected = [&["mine", "mine"], &place[..], &[OMITTED, LENGTH, HASH]].concat();
        assert_eq!(names, expected);

        let short = arrived(short);
        let place = Original::of(&short).unwrap();
        assert_eq!((&*place.topic, place.partition), ("order.created", 3));
        assert_eq!((place.offset, place.length), (17, 10_000));
        assert!(place.is(&original) && !place.is(&record()));
        let now = Timestamp::UNIX_EPOCH;
        let replayed = |letter| replay(letter, now).unwrap();
        let completed = with_original(&short, original);
        assert_eq!(replayed(&completed), replayed(&arrived(whole)));
    }

    #[test]
    fn a_letter_is_small_without_its_value_however_large_key_and_headers_are() {
        let large = Bytes::from(vec![0; 1 << 20]);
        let mut original = record();
        original.key = Some(large.clone());
        original.headers = vec![("mine".to_owned(), Some(large))];
        let letter = dead_letter(&"order.dlq".into(), &original, "because", 0);
        let short = without_value(&letter).unwrap();
        assert_eq!(short.key, None);
        let header = |name: &str| short.headers.iter().any(|(it, _)| it == name);
        assert!(header(KEY_OMITTED) && header(HEADERS_OMITTED) && !header("mine"));
        assert!(Original::of(&arrived(short)).unwrap().is(&original));
    }

    #[test]
    fn what_does_not_say_where_it_came_from_is_not_replayed() {
        assert!(replay(&record(), Timestamp::UNIX_EPOCH).is_none());
    }
}
