//! Records, their outcomes, and the slots in which callers wait for outcomes.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bytes::Bytes;
use kafka_protocol::error::ResponseError;

use crate::error::Error;
use crate::lock;
use tbd_deadline::Deadline;

/// Approximate memory of a record in addition to its bytes in a batch: queue entry and slot.
const MEMORY_OVERHEAD_BYTES: usize = 220;

/// Largest overhead of a record in a batch: seven numbers of one to ten bytes, most of them small.
const BATCH_OVERHEAD_BYTES: usize = 36;

/// One record to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The topic, which must exist.
    pub topic: Arc<str>,
    /// Records with the same key keep their order. A record without a key goes to the partition
    /// whose batch is gathering.
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

    /// A hint on how to fix the cause, where Kafka's code alone does not say it.
    pub fn way_out(&self) -> Option<&'static str> {
        use ResponseError::{
            InvalidRecord, InvalidTimestamp, MessageTooLarge, TopicAuthorizationFailed,
        };
        match self.cause.code()? {
            MessageTooLarge => Some("raise the topic's max.message.bytes"),
            InvalidTimestamp => {
                Some("set the clock of this machine, or the topic's message.timestamp limits")
            }
            InvalidRecord => Some("a compacted topic takes no record without a key"),
            TopicAuthorizationFailed => Some("allow this program to write to the topic"),
            _ => None,
        }
    }

    /// Whether the record exceeds a configured limit of the client or of the broker.
    pub fn is_too_large(&self) -> bool {
        use ResponseError::{MessageTooLarge, RecordListTooLarge};
        let is_over_limit = matches!(self.cause, Error::RecordTooLarge { .. });
        let code = self.cause.code();
        is_over_limit || matches!(code, Some(MessageTooLarge | RecordListTooLarge))
    }

    /// Whether Kafka refuses this record because of its content, and may take others. Another
    /// password, permission or broker would not help.
    pub fn is_fault_of_record(&self) -> bool {
        use ResponseError::{InvalidRecord, InvalidTimestamp};
        let is_invalid = matches!(
            self.cause,
            Error::InvalidRecord { .. } | Error::Encode { .. }
        );
        let code = self.cause.code();
        is_invalid || matches!(code, Some(InvalidRecord | InvalidTimestamp)) || self.is_too_large()
    }
}

/// The outcome of one record.
pub type Outcome = Result<RecordMetadata, ProduceError>;

/// A slot for one record's outcome: a producer thread stores it, and the waiting owner takes it.
/// Its lock is always the innermost.
#[derive(Debug, Default)]
pub(super) struct Slot {
    state: Mutex<SlotState>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct SlotState {
    stage: Stage,
    /// Whether an owner waits. It saves a system call: waking nobody costs one too.
    is_awaited: bool,
}

#[derive(Debug, Default)]
enum Stage {
    /// In the queue; no byte of it was sent.
    #[default]
    Queued,
    /// Withdrawn by its owner before it was sent.
    Withdrawn,
    /// In a batch that was sent or is about to be.
    Sent,
    Done(Outcome),
}

impl Slot {
    /// Moves from the queue into a batch; false if the record was withdrawn. A record of unknown
    /// outcome that waits for a retry can no longer be withdrawn.
    pub(super) fn take_for_sending(&self) -> bool {
        let stage = &mut self.state().stage;
        match stage {
            Stage::Queued | Stage::Sent => {
                *stage = Stage::Sent;
                true
            }
            _ => false,
        }
    }

    /// Moves back into the queue, after a broker refused all of the batch.
    pub(super) fn return_to_queue(&self) {
        let stage = &mut self.state().stage;
        if matches!(stage, Stage::Sent) {
            *stage = Stage::Queued;
        }
    }

    pub(super) fn is_withdrawn(&self) -> bool {
        matches!(self.state().stage, Stage::Withdrawn)
    }

    /// Stores the outcome; false if the slot already has one or was withdrawn.
    pub(super) fn complete(&self, outcome: Outcome) -> bool {
        let mut state = self.state();
        if matches!(state.stage, Stage::Withdrawn | Stage::Done(_)) {
            return false;
        }
        state.stage = Stage::Done(outcome);
        let is_awaited = state.is_awaited;
        // The woken thread finds the lock free.
        drop(state);
        if is_awaited {
            self.done.notify_all();
        }
        true
    }

    /// Waits for the outcome at most until `deadline`.
    pub(super) fn wait(&self, deadline: Deadline) -> Result<Outcome, GaveUp> {
        let mut state = self.state();
        state.is_awaited = true;
        loop {
            if let Stage::Done(outcome) = &state.stage {
                return Ok(outcome.clone());
            }
            let left = deadline.remaining();
            if left.is_zero() {
                return Err(match state.stage {
                    Stage::Queued => {
                        state.stage = Stage::Withdrawn;
                        GaveUp::Withdrawn
                    }
                    Stage::Withdrawn => GaveUp::Withdrawn,
                    Stage::Sent | Stage::Done(_) => GaveUp::Sent,
                });
            }
            state = match self.done.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn state(&self) -> MutexGuard<'_, SlotState> {
        lock(&self.state)
    }
}

/// The state of a record whose owner stopped waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GaveUp {
    Withdrawn,
    Sent,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_record_given_up_while_queued_can_no_longer_be_sent() {
        let slot = Slot::default();
        let gave_up = slot.wait(Deadline::after(Duration::ZERO)).unwrap_err();
        assert_eq!(gave_up, GaveUp::Withdrawn);
        assert!(!slot.take_for_sending());
        assert!(!slot.complete(Err(ProduceError::not_sent(Error::Closed))));
    }

    #[test]
    fn a_record_given_up_after_sending_still_gets_its_outcome() {
        let slot = Slot::default();
        assert!(slot.take_for_sending());
        let gave_up = slot.wait(Deadline::after(Duration::ZERO)).unwrap_err();
        assert_eq!(gave_up, GaveUp::Sent);
        assert!(slot.complete(Err(ProduceError::maybe_sent(Error::Closed))));
        let outcome = slot.wait(Deadline::after(Duration::ZERO)).unwrap();
        assert_eq!(outcome.unwrap_err().certainty, Certainty::MaybeSent);
    }
}
