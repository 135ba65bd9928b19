//! Records and their outcomes.

use std::sync::Arc;

use crate::ErrorCode;
use bytes::Bytes;

use crate::error::Error;

/// Approximate memory of a record in addition to its bytes in a batch: queue entry and slot.
const MEMORY_OVERHEAD_BYTES: usize = 220;

/// Largest overhead of a record in a batch: seven numbers of one to ten bytes, most of them small.
const BATCH_OVERHEAD_BYTES: usize = 36;

/// One record to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The topic, which must exist.
    pub topic: Arc<str>,
    /// Records with the same key keep their order. Records without a key fill the partitions in
    /// turn, some 16 KB or a batch at a time (KIP-480, KIP-794).
    pub key: Option<Bytes>,
    /// The payload; `None` is a tombstone on compacted topics.
    pub value: Option<Bytes>,
    /// Kept in order, duplicates included.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Milliseconds since 1970; `None` means the time of the `send` call.
    pub timestamp_ms: Option<i64>,
    /// A partition chosen by the caller instead of by the key.
    pub partition: Option<i32>,
}

impl Record {
    /// A record without headers for `topic`.
    pub fn new(topic: impl Into<Arc<str>>, key: Option<Bytes>, value: Option<Bytes>) -> Self {
        Self {
            topic: topic.into(),
            key,
            value,
            headers: Vec::new(),
            timestamp_ms: None,
            partition: None,
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), Some(value.into())));
        self
    }

    /// The bytes that the record counts in the producer's memory limit.
    pub(super) fn weight(&self) -> usize {
        self.size() + MEMORY_OVERHEAD_BYTES
    }

    /// The bytes that the record counts in a batch, before compression.
    pub(super) fn size(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + len(value) + 10)
            .sum();
        len(&self.key) + len(&self.value) + headers + BATCH_OVERHEAD_BYTES
    }
}

/// Where an acknowledged record is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordMetadata {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// `None` if the broker recognised a repetition but no longer knew its offset.
    pub offset: Option<i64>,
}

/// Whether a record that was not acknowledged may still be in the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// It is not in the topic and will not be.
    NotSent,
    /// It may be in the topic now or later.
    MaybeSent,
}

/// A record was not acknowledged.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {cause}", match .certainty {
    Certainty::NotSent => "record not sent",
    Certainty::MaybeSent => "record possibly sent",
})]
#[non_exhaustive]
pub struct ProduceError {
    /// Whether it may be in the topic.
    pub certainty: Certainty,
    /// Why.
    #[source]
    pub cause: Error,
}

impl ProduceError {
    pub(super) fn not_sent(cause: Error) -> Self {
        Self {
            certainty: Certainty::NotSent,
            cause,
        }
    }

    pub(super) fn maybe_sent(cause: Error) -> Self {
        Self {
            certainty: Certainty::MaybeSent,
            cause,
        }
    }

    /// Whether publishing the same record may succeed later without a change in this program.
    pub fn is_transient(&self) -> bool {
        self.cause.is_transient()
    }

    /// Whether the record exceeds a configured limit of the client or of the broker.
    pub fn is_too_large(&self) -> bool {
        use ErrorCode::{MessageTooLarge, RecordListTooLarge};
        let is_over_limit = matches!(self.cause, Error::RecordTooLarge { .. });
        let code = self.cause.code();
        is_over_limit || matches!(code, Some(MessageTooLarge | RecordListTooLarge))
    }

    /// Whether Kafka refuses this record because of its content, and may take others. Another
    /// password, permission or broker would not help.
    pub fn is_fault_of_record(&self) -> bool {
        use ErrorCode::{InvalidRecord, InvalidTimestamp};
        let is_invalid = matches!(
            self.cause,
            Error::InvalidRecord { .. } | Error::Encode { .. }
        );
        let code = self.cause.code();
        is_invalid || matches!(code, Some(InvalidRecord | InvalidTimestamp)) || self.is_too_large()
    }
}

/// A record that [`Producer::try_send`](super::Producer::try_send) did not take.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot take a record for {} without waiting: {reason}", .record.topic)]
#[non_exhaustive]
pub struct TrySendError {
    /// The record, unchanged.
    pub record: Box<Record>,
    /// Why it was not taken.
    pub reason: TrySendReason,
}

/// Why a record was not taken.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrySendReason {
    /// The buffer is full.
    #[error("the buffer is full")]
    BufferFull,
    /// The topic's partitions are not known yet. The producer asks for them from now on.
    #[error("the topic's partitions are not known yet")]
    UnknownTopic,
    /// Waiting would not help.
    #[error(transparent)]
    Failed(Error),
}

/// The outcome of one record.
pub type Outcome = Result<RecordMetadata, ProduceError>;
