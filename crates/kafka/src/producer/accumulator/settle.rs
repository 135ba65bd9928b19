//! Answers to batches, and their effect on a batch's records and the records behind it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ErrorCode;

use super::{Accumulator, Completion, OutgoingBatch, Queued, completion};
use crate::compression::Compression;
use crate::config::doubled;
use crate::error::Error;
use crate::producer::batch::Identity;
use crate::producer::record::{Outcome, ProduceError, RecordMetadata};

/// The first pause before the retry of a batch of unknown outcome; it doubles.
const PAUSE_FIRST: Duration = Duration::from_millis(50);

/// The longest such pause: a new leader should not wait longer for the batch.
const PAUSE_MAX: Duration = Duration::from_millis(800);

/// How an attempt to send a batch ended.
#[derive(Clone, Debug)]
pub(in crate::producer) enum Answer {
    /// It is in the log. Its first offset, if the broker knows it.
    Written(Option<i64>),
    /// The broker answered with an error code.
    Refused(ErrorCode),
    /// Some of its bytes may have left the process, and no answer came.
    Unknown(Error),
    /// It can never be sent.
    Impossible(Error),
}

impl Accumulator {
    /// Takes the answer to a batch that was cut.
    pub(in crate::producer) fn settle(
        &mut self,
        batch: OutgoingBatch,
        answer: Answer,
        now: Instant,
    ) -> Vec<Completion> {
        let index = batch.index;
        self.partitions[index].in_flight -= 1;
        let mut completions = match answer {
            Answer::Written(base_offset) => self.written(batch, base_offset, now),
            Answer::Unknown(error) => self.keep(batch, error, now),
            Answer::Impossible(error) => self.fail(batch, error),
            Answer::Refused(code) => self.refused(batch, code, now),
        };
        if self.partitions[index].in_flight == 0 {
            completions.extend(self.undo_last(index, now));
        }
        completions
    }

    fn refused(
        &mut self,
        mut batch: OutgoingBatch,
        code: ErrorCode,
        now: Instant,
    ) -> Vec<Completion> {
        use ErrorCode::*;
        let error = batch.refusal(code);
        let partition = &mut self.partitions[batch.index];
        // Each log has the last batch of every producer that it counts. Of earlier ones it may know
        // nothing after the broker has started again. Without a count (UNKNOWN_PRODUCER_ID, KIP-360)
        // or with another epoch, the broker recognises no repetition.
        let is_last = partition.batch_number == batch.number;
        let is_recognised = code == OutOfOrderSequenceNumber && is_last;
        let follows = |other: &OutgoingBatch| other.number < batch.number;
        match code {
            DuplicateSequenceNumber => self.written(batch, None, now),
            // The broker did not take its predecessor, which will be sent again before it.
            OutOfOrderSequenceNumber if partition.returned.iter().any(follows) => {
                self.give_back(batch)
            }
            // The coordinator has not ended the producer's last transaction.
            ConcurrentTransactions => self.keep(batch, error, now),
            // The transaction can only be aborted. Its coordinator gives another identity.
            OutOfOrderSequenceNumber
            | UnknownProducerId
            | InvalidProducerEpoch
            | ProducerFenced
            | InvalidProducerIdMapping
            | InvalidTxnState
            | TransactionAbortable
                if batch.identity.is_transactional() =>
            {
                self.renew_identity(batch.identity);
                self.fail(batch, error)
            }
            // An earlier attempt may be in the log, and the broker has forgotten it.
            OutOfOrderSequenceNumber
            | UnknownProducerId
            | InvalidProducerEpoch
            | ProducerFenced
            | InvalidProducerIdMapping
                if batch.unknown && !is_recognised =>
            {
                self.fail_unknown(batch, error)
            }
            // The broker's count differs from the client's. This batch is not in the log. Count
            // again from 0 under a new identity.
            OutOfOrderSequenceNumber
            | UnknownProducerId
            | InvalidProducerEpoch
            | ProducerFenced
            | InvalidProducerIdMapping => {
                log::warn!(
                    "kafka refused the sequence of {}/{}: {code}; asking for a new producer id",
                    batch.topic,
                    batch.partition,
                );
                self.renew_identity(batch.identity);
                self.give_back_counting(batch, error)
            }
            // Either the batch is too large or one record spoils it: halve it until it fits, or
            // until that record is alone.
            MessageTooLarge | InvalidRecord if batch.records.len() > 1 && !batch.unknown => {
                partition.records_max = batch.records.len() / 2;
                self.give_back(batch)
            }
            // It may fit when compressed.
            MessageTooLarge | RecordListTooLarge
                if batch.compression == Compression::None && !batch.unknown =>
            {
                let records = batch.records.iter_mut();
                records.for_each(|queued| queued.is_too_large = true);
                self.give_back(batch)
            }
            // Brokers check these before they write.
            CorruptMessage | NotEnoughReplicas | ThrottlingQuotaExceeded if !batch.unknown => {
                self.give_back_counting(batch, error)
            }
            MessageTooLarge
            | InvalidRecord
            | RecordListTooLarge
            | InvalidTopicException
            | InvalidTimestamp
            | InvalidRequiredAcks
            | InvalidRequest
            | PolicyViolation
            | TopicAuthorizationFailed
            | ClusterAuthorizationFailed
            | UnsupportedVersion
            | UnsupportedForMessageFormat
            | UnsupportedCompressionType => self.fail(batch, error),
            // No other code says whether the batch was written. A leader that has just resigned
            // answers "not the leader" even for a batch that it wrote, and its log may survive.
            code if code.is_retriable() => self.keep(batch, error, now),
            _ => self.fail_unknown(batch, error),
        }
    }

    fn written(
        &mut self,
        batch: OutgoingBatch,
        base_offset: Option<i64>,
        now: Instant,
    ) -> Vec<Completion> {
        let partition = &mut self.partitions[batch.index];
        partition.pauses = 0;
        partition.not_before = None;
        partition.records_max = usize::MAX;
        partition.counted = Some((batch.identity.producer_id, now));
        let (topic, number) = (batch.topic, batch.partition);
        self.release(batch.records, |position| {
            Ok(RecordMetadata {
                topic: Arc::clone(&topic),
                partition: number,
                offset: base_offset.map(|base| base + position),
            })
        })
    }

    /// Keeps a batch of unknown outcome, to retry it unchanged.
    fn keep(&mut self, mut batch: OutgoingBatch, error: Error, now: Instant) -> Vec<Completion> {
        if self.aborted.is_some() || now >= batch.sent_at() + self.limits.delivery_timeout {
            return self.fail_unknown(batch, error);
        }
        batch.unknown = true;
        self.leaders_doubtful = true;
        let returned = &self.partitions[batch.index].returned;
        if !returned.iter().any(|other| other.number < batch.number) {
            self.pause(batch.index, now);
        }
        self.give_back(batch)
    }

    /// Puts a batch among the returned ones, where it is retried or undone.
    fn give_back(&mut self, batch: OutgoingBatch) -> Vec<Completion> {
        let returned = &mut self.partitions[batch.index].returned;
        let place = returned.partition_point(|other| other.number < batch.number);
        returned.insert(place, batch);
        Vec::new()
    }

    /// As `give_back`, for a batch that is certainly not in the log, including earlier attempts. It
    /// counts as a refusal of each record, and the number of refusals is limited.
    fn give_back_counting(&mut self, mut batch: OutgoingBatch, error: Error) -> Vec<Completion> {
        batch.unknown = false;
        batch.refused = Some(error);
        self.give_back(batch)
    }

    /// Undoes the last returned batches, as far as they are certainly not in the log: their records
    /// return to the head of the queue. Call it only when nothing is in flight.
    fn undo_last(&mut self, index: usize, now: Instant) -> Vec<Completion> {
        // A batch is not in the log if its predecessor is not.
        let mut is_absent = false;
        for batch in &mut self.partitions[index].returned {
            is_absent |= !batch.unknown;
            batch.unknown = !is_absent;
        }
        let returned = &mut self.partitions[index].returned;
        let first = returned.partition_point(|batch| batch.unknown);
        let absent = returned.split_off(first);
        let undone = absent.into_iter().rev();
        undone.flat_map(|batch| self.undo(batch, now)).collect()
    }

    fn undo(&mut self, mut batch: OutgoingBatch, now: Instant) -> Vec<Completion> {
        if let Some(error) = self.aborted.clone() {
            return self.fail(batch, error);
        }
        let pauses = self.limits.refusal_pauses;
        let partition = &mut self.partitions[batch.index];
        if partition.identity == Some(batch.identity) {
            partition.next_sequence = batch.base_sequence;
        }
        let mut failed = Vec::new();
        for mut queued in std::mem::take(&mut batch.records).into_iter().rev() {
            queued.refusals += usize::from(batch.refused.is_some());
            if queued.refusals > pauses.len() {
                failed.push(queued);
                continue;
            }
            if let Some(last) = queued.refusals.checked_sub(1)
                && batch.refused.is_some()
            {
                let pause = now + pauses[last];
                partition.not_before =
                    Some(partition.not_before.map_or(pause, |other| other.max(pause)));
            }
            queued.is_returned = true;
            if !queued.is_unknown {
                queued.slot.return_to_queue();
            }
            partition.queue.push_front(queued);
        }
        failed.reverse();
        match batch.refused {
            Some(error) => self.release(failed, |_| Err(ProduceError::not_sent(error.clone()))),
            None => Vec::new(),
        }
    }

    fn fail_unknown(&mut self, mut batch: OutgoingBatch, error: Error) -> Vec<Completion> {
        batch.unknown = true;
        self.fail(batch, error)
    }

    /// Ends a batch without success.
    pub(super) fn fail(&mut self, batch: OutgoingBatch, error: Error) -> Vec<Completion> {
        let partition = &mut self.partitions[batch.index];
        let is_last = partition.in_flight == 0 && partition.returned.is_empty();
        let error = if batch.unknown {
            // The broker may or may not have counted its sequence numbers.
            self.renew_identity(batch.identity);
            ProduceError::maybe_sent(error)
        } else {
            if partition.identity == Some(batch.identity) && is_last {
                partition.next_sequence = batch.base_sequence;
            } else {
                // It leaves a gap before the batches behind it.
                self.renew_identity(batch.identity);
            }
            ProduceError::not_sent(error)
        };
        self.release(batch.records, |_| Err(error.clone()))
    }

    fn renew_identity(&mut self, spoilt: Identity) {
        if self.identity == Some(spoilt) {
            self.identity = None;
        }
    }

    fn pause(&mut self, index: usize, now: Instant) {
        let partition = &mut self.partitions[index];
        let pause = doubled(PAUSE_FIRST, PAUSE_MAX, partition.pauses);
        partition.pauses = partition.pauses.saturating_add(1);
        partition.not_before = Some(now + pause);
    }

    pub(super) fn release(
        &mut self,
        records: Vec<Queued>,
        outcome: impl Fn(i64) -> Outcome,
    ) -> Vec<Completion> {
        self.outstanding -= records.len();
        self.buffered_bytes -= records.iter().map(|queued| queued.weight).sum::<usize>();
        let settled = records.into_iter().zip(0i64..);
        settled
            .map(|(queued, position)| {
                let outcome = outcome(position);
                if let (None, Err(error)) = (&self.failure, &outcome) {
                    self.failure = Some(error.cause.clone());
                }
                completion(queued, outcome)
            })
            .collect()
    }
}
