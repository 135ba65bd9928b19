//! The producer's state machine: record queues, batches in flight, sequence numbers. It has no
//! sockets, threads or clock.
//!
//! # The life of a record
//!
//! A record joins its partition's queue. A sender thread cuts it into a batch with the other
//! waiting records, and the answer settles the batch. An answer means one of three things:
//!
//! - *written*: the records succeed.
//! - *certainly not written*: the batch is undone. Its records return to the head of the queue, the
//!   sequence number steps back, and they may be cut again. Few refusals are so clear.
//! - *unknown*: the batch keeps its bytes and is retried unchanged until an answer settles it. The
//!   broker recognises only the same batch as a repetition. Owners may stop waiting for the
//!   records; the batch is kept until the delivery time-out.
//!
//! # Order
//!
//! Several batches of a partition may be in flight, on one connection and under one identity. Their
//! sequence numbers are consecutive, so the broker refuses a batch whose predecessor it refused. A
//! log that has no batch of the producer id yet, or has forgotten it, takes any sequence number. So
//! the first batch is in flight alone, and so is the first one after an idle hour.
//!
//! After a batch is returned, its partition sends nothing until every batch in flight is answered.
//! Then the last returned batches are undone, as far as they are *not written*. The remaining ones
//! are sent again, one at a time, before anything new.
//!
//! # Sequence numbers
//!
//! They count per partition under one producer identity. A new identity is requested when the
//! broker's count differs from the client's, or when a batch of unknown outcome was given up. Each
//! partition restarts at 0 with its next new batch.
//!
//! # A topic that was deleted and created again
//!
//! It has another id, and its log has nothing of the old one. When the batches in flight are
//! answered, the waiting records are partitioned again, in their order. So are the records of
//! batches of unknown outcome. Under a new identity, the new log cannot mistake one of them for a
//! repetition of another.

mod settle;
mod topics;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::batch::{Identity, Transactions};
use super::partitioner::Partitioner;
use super::record::{Certainty, Outcome, ProduceError, Record};
use super::slot::Slot;
use crate::compression::Compression;
use crate::error::Error;
use crate::{ApiKey, ErrorCode, TopicPartition};
pub(super) use settle::Answer;
use tbd_deadline::Deadline;
use topics::{Partition, Topic};

/// Limits and pauses, see [`super::ProducerConfig`].
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) partitioner: Partitioner,
    pub(super) buffer_bytes: usize,
    pub(super) batch_bytes: usize,
    pub(super) compression: Compression,
    pub(super) request_bytes: usize,
    pub(super) linger: Duration,
    pub(super) delivery_timeout: Duration,
    pub(super) refusal_pauses: [Duration; 3],
    /// Only the coordinator of its transactions gives the producer an identity.
    pub(super) is_transactional: bool,
}

/// A record in a queue or in a batch.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) record: Record,
    pub(super) timestamp_ms: i64,
    pub(super) slot: Arc<Slot>,
    pub(super) deadline: Deadline,
    pub(super) queued_at: Instant,
    /// Bytes in memory.
    weight: usize,
    /// Bytes in a batch, at most.
    pub(super) size: usize,
    /// How often a broker refused it.
    refusals: usize,
    /// Whether it was in a batch that was returned.
    is_returned: bool,
    /// Whether a broker found it too large, alone and not compressed.
    is_too_large: bool,
    /// Whether a returned batch with it may have been written to a log that no longer exists.
    is_unknown: bool,
}

impl Queued {
    pub(super) fn new(
        record: Record,
        timestamp_ms: i64,
        slot: Arc<Slot>,
        deadline: Deadline,
        now: Instant,
    ) -> Self {
        Self {
            weight: record.weight(),
            size: record.size(),
            record,
            timestamp_ms,
            slot,
            deadline,
            queued_at: now,
            refusals: 0,
            is_returned: false,
            is_too_large: false,
            is_unknown: false,
        }
    }
}

/// Records of one partition that are sent together.
#[derive(Debug)]
pub(super) struct OutgoingBatch {
    pub(super) topic: Arc<str>,
    /// The topic's id, or nil.
    pub(super) topic_id: Uuid,
    pub(super) partition: i32,
    pub(super) records: Vec<Queued>,
    pub(super) identity: Identity,
    pub(super) base_sequence: i32,
    pub(super) compression: Compression,
    /// The broker that refused it, as dialled.
    pub(super) broker: Option<Arc<str>>,
    /// The encoded batch; a retry sends the same bytes.
    pub(super) encoded: Option<Bytes>,
    index: usize,
    cut_at: Instant,
    /// Counts the batches of a partition.
    number: u64,
    /// Whether an earlier attempt may have been written.
    unknown: bool,
    /// The error with which the broker last refused all of it; counts as a refusal of its records.
    refused: Option<Error>,
}

impl OutgoingBatch {
    /// The error with which its broker refused it.
    pub(super) fn refusal(&self, code: ErrorCode) -> Error {
        let error = Error::refused_partition(ApiKey::Produce, code, &self.topic_partition());
        error.of_broker(self.broker.as_deref())
    }

    /// When its records were sent by their callers, the oldest one's moment.
    fn sent_at(&self) -> Instant {
        let oldest = self.records.iter().map(|queued| queued.queued_at).min();
        oldest.unwrap_or(self.cut_at)
    }

    /// Its partition.
    pub(super) fn topic_partition(&self) -> TopicPartition {
        TopicPartition::new(Arc::clone(&self.topic), self.partition)
    }

    /// How many of its records were sent before.
    pub(super) fn repeated(&self) -> usize {
        match &self.encoded {
            Some(_) => self.records.len(),
            None => self.records.iter().filter(|one| one.is_returned).count(),
        }
    }
}

/// A record whose outcome is certain. Report it without holding a lock.
#[derive(Debug)]
pub(super) struct Completion {
    pub(super) slot: Arc<Slot>,
    pub(super) topic: Arc<str>,
    pub(super) queued_at: Instant,
    pub(super) outcome: Outcome,
}

/// Whether there is work for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    Now,
    At(Instant),
    Idle,
}

/// All records that are not settled yet.
#[derive(Debug)]
pub(super) struct Accumulator {
    limits: Limits,
    /// Mostly few, so that a comparison of names costs less than a hash for each record.
    topics: BTreeMap<Arc<str>, Topic>,
    partitions: Vec<Partition>,
    /// Indices into `partitions` that no longer belong to a topic.
    vacant: Vec<usize>,
    identity: Option<Identity>,
    buffered_bytes: usize,
    /// Records queued, in flight or unsettled.
    outstanding: usize,
    /// Where the next cut starts, so that no partition is always last.
    rotation: usize,
    /// A leader was wrong or unreachable.
    leaders_doubtful: bool,
    /// How many callers flush; meanwhile nothing lingers.
    pub(super) flushing: usize,
    /// Why nothing is retried any more: the producer has stopped, or its transaction is aborted.
    aborted: Option<Error>,
    /// The first failure since the transaction began.
    failure: Option<Error>,
    /// Partitions that the transaction's coordinator does not know yet. Nothing new is sent before
    /// it does.
    unregistered: BTreeSet<TopicPartition>,
}

impl Accumulator {
    pub(super) fn new(limits: Limits, topics: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self {
            limits,
            topics: topics
                .into_iter()
                .map(|topic| (topic, Topic::default()))
                .collect(),
            partitions: Vec::new(),
            vacant: Vec::new(),
            identity: None,
            buffered_bytes: 0,
            outstanding: 0,
            rotation: 0,
            leaders_doubtful: false,
            flushing: 0,
            aborted: None,
            failure: None,
            unregistered: BTreeSet::new(),
        }
    }

    pub(super) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Whether the buffer has room for `weight` more bytes. An empty buffer takes any record, so
    /// that a large one does not wait for ever.
    pub(super) fn has_room(&self, weight: usize) -> bool {
        self.outstanding == 0 || self.buffered_bytes + weight <= self.limits.buffer_bytes
    }

    /// Queues a record; returns the partition's leader, which must be woken, if it is known.
    pub(super) fn push(&mut self, index: usize, queued: Queued) -> Option<i32> {
        self.buffered_bytes += queued.weight;
        self.outstanding += 1;
        let partition = &mut self.partitions[index];
        if queued.record.key.is_none()
            && let Some(topic) = self.topics.get_mut(&queued.record.topic)
        {
            topic.filled(partition.number, queued.size);
        }
        let leader = partition.leader;
        self.enqueue(index, queued);
        leader
    }

    fn enqueue(&mut self, index: usize, queued: Queued) {
        let partition = &mut self.partitions[index];
        partition.queue.push_back(queued);
        let needs_registration =
            |it: Identity| it.transactions == Transactions::Explicit && !partition.is_registered;
        if self.identity.is_some_and(needs_registration) {
            partition.is_registered = true;
            let name = TopicPartition::new(Arc::clone(&partition.topic), partition.number);
            self.unregistered.insert(name);
        }
    }

    /// Whether a producer identity must be requested before a batch can be cut. True even before a
    /// record waits, so that the first record need not wait for the identity.
    pub(super) fn needs_identity(&self) -> bool {
        !self.limits.is_transactional && self.identity.is_none() && !self.partitions.is_empty()
    }

    pub(super) fn set_identity(&mut self, identity: Identity) {
        self.identity = Some(identity);
    }

    /// Whether `node` has something to send at `now`, or when it will have; `ahead`: requests to it
    /// are in flight.
    pub(super) fn ready(&self, node: i32, now: Instant, ahead: bool) -> Ready {
        let mut earliest: Option<Instant> = None;
        for partition in &self.partitions {
            if partition.leader != Some(node) {
                continue;
            }
            match self.due(partition, node, now, ahead) {
                Some(due) if due <= now => return Ready::Now,
                Some(due) => earliest = Some(earliest.map_or(due, |other| other.min(due))),
                None => {}
            }
        }
        earliest.map_or(Ready::Idle, Ready::At)
    }

    /// When a partition has something to send to `node`. While requests are in flight, only full
    /// batches are sent: fewer, larger batches cost less.
    fn due(&self, partition: &Partition, node: i32, now: Instant, ahead: bool) -> Option<Instant> {
        let ahead = ahead || partition.in_flight > 0;
        let due = if let Some(batch) = partition.returned.front() {
            if ahead {
                return None;
            }
            batch.cut_at
        } else {
            let identity = self.identity.filter(|_| self.unregistered.is_empty())?;
            let is_alone = partition.is_repeating
                || partition.in_flight_at != node
                || partition.identity != Some(identity)
                || !partition.is_counted(identity.producer_id, now);
            if partition.in_flight > 0 && is_alone {
                return None;
            }
            let oldest = partition.queue.front()?.queued_at;
            let is_full = partition.queue.bytes() >= self.limits.batch_bytes;
            let at_once = self.limits.linger.is_zero() || self.flushing > 0;
            if ahead {
                is_full.then_some(oldest)?
            } else if at_once || is_full {
                oldest
            } else {
                oldest + self.limits.linger
            }
        };
        Some(partition.not_before.map_or(due, |pause| pause.max(due)))
    }

    /// Takes the batches that `node` must send now: at most one per partition, and no more than a
    /// request may hold. The second value is the records that it removed as overdue or withdrawn.
    pub(super) fn cut(
        &mut self,
        node: i32,
        now: Instant,
        ahead: bool,
    ) -> (Vec<OutgoingBatch>, Vec<Completion>) {
        let mut batches = Vec::new();
        let mut expired = Vec::new();
        let mut request_bytes = 0;
        let count = self.partitions.len();
        self.rotation = self.rotation.wrapping_add(1);
        for step in 0..count {
            let index = (self.rotation.wrapping_add(step)) % count;
            let partition = &self.partitions[index];
            let due = self.due(partition, node, now, ahead);
            if partition.leader != Some(node) || due.is_none_or(|due| due > now) {
                continue;
            }
            if request_bytes >= self.limits.request_bytes {
                break;
            }
            let repeated = self.partitions[index].returned.pop_front();
            self.partitions[index].is_repeating = repeated.is_some();
            let mut batch = match repeated {
                Some(batch) => batch,
                None => match self.cut_new(index, now, &mut expired) {
                    Some(batch) => batch,
                    None => continue,
                },
            };
            batch.topic_id = self.partitions[index].topic_id;
            request_bytes += match &batch.encoded {
                Some(bytes) => bytes.len(),
                None => batch.records.iter().map(|one| one.size).sum(),
            };
            self.partitions[index].in_flight += 1;
            self.partitions[index].in_flight_at = node;
            batches.push(batch);
        }
        (batches, expired)
    }

    fn cut_new(
        &mut self,
        index: usize,
        now: Instant,
        expired: &mut Vec<Completion>,
    ) -> Option<OutgoingBatch> {
        let identity = self.identity?;
        let partition = &mut self.partitions[index];
        // About as many as fit, so that the vector need not grow while it is filled.
        let first = partition.queue.front()?;
        let fitting = self.limits.batch_bytes / first.size + 1;
        let mut records = Vec::with_capacity(fitting.min(partition.queue.len()));
        let mut overdue_records = Vec::new();
        let mut bytes = 0;
        while let Some(next) = partition.queue.front() {
            let fits = records.last().is_none_or(|last: &Queued| {
                let is_alone = last.is_too_large || next.is_too_large;
                !is_alone && bytes + next.size <= self.limits.batch_bytes
            });
            if !fits || records.len() >= partition.records_max {
                break;
            }
            let Some(next) = partition.queue.pop_front() else {
                break;
            };
            if next.deadline.instant() <= now || !next.slot.take_for_sending() {
                overdue_records.push(next);
                continue;
            }
            bytes += next.size;
            records.push(next);
        }
        expired.extend(self.expire(overdue_records));
        if records.is_empty() {
            return None;
        }
        let partition = &mut self.partitions[index];
        if partition.identity != Some(identity) {
            partition.identity = Some(identity);
            partition.next_sequence = 0;
        }
        let base_sequence = partition.next_sequence;
        partition.next_sequence = sequence_after(base_sequence, records.len());
        partition.batch_number += 1;
        let is_too_large = bytes > self.limits.batch_bytes || records[0].is_too_large;
        let compression = match self.limits.compression {
            Compression::None if is_too_large => Compression::for_large_record(),
            compression => compression,
        };
        let batch = OutgoingBatch {
            topic: Arc::clone(&partition.topic),
            topic_id: partition.topic_id,
            partition: partition.number,
            records,
            identity,
            base_sequence,
            compression,
            broker: None,
            encoded: None,
            index,
            cut_at: now,
            number: partition.batch_number,
            unknown: false,
            refused: None,
        };
        // Records without a key continue in another partition.
        if let Some(topic) = self.topics.get_mut(&batch.topic) {
            topic.filled(batch.partition, usize::MAX);
        }
        Some(batch)
    }

    /// Removes records that are past their deadline or withdrawn, and batches of unknown outcome
    /// past the delivery time-out.
    pub(super) fn sweep(&mut self, now: Instant) -> Vec<Completion> {
        let mut completions = Vec::new();
        for index in 0..self.partitions.len() {
            let queue = &mut self.partitions[index].queue;
            let stale =
                |queued: &Queued| queued.deadline.instant() <= now || queued.slot.is_withdrawn();
            if queue.iter().any(stale) {
                let (gone, rest): (Vec<_>, Vec<_>) = queue.drain().partition(stale);
                rest.into_iter().for_each(|queued| queue.push_back(queued));
                completions.extend(self.expire(gone));
            }
            let timeout = self.limits.delivery_timeout;
            let is_over = |batch: &OutgoingBatch| now >= batch.sent_at() + timeout;
            while self.partitions[index].returned.front().is_some_and(is_over)
                && let Some(batch) = self.partitions[index].returned.pop_front()
            {
                let what = format!("kafka to say what became of a batch for {}", batch.topic);
                let error = Error::timeout(what);
                completions.extend(self.fail(batch, error));
            }
        }
        completions
    }

    /// When [`Accumulator::sweep`] has something to do next, as far as the heads of the queues say.
    pub(super) fn next_overdue(&self) -> Option<Instant> {
        let timeout = self.limits.delivery_timeout;
        let moments = self.partitions.iter().flat_map(|partition| {
            let returned = partition.returned.front();
            let queued = partition.queue.front();
            let given_up = returned.map(|batch| batch.sent_at() + timeout);
            given_up
                .into_iter()
                .chain(queued.map(|it| it.deadline.instant()))
        });
        moments.min()
    }

    /// Fails the queued records of the partitions that `node` leads, or of all partitions: no retry
    /// can succeed before a certificate or a password changes.
    pub(super) fn fail_queued(&mut self, node: Option<i32>, error: &Error) -> Vec<Completion> {
        let mut completions = Vec::new();
        for index in 0..self.partitions.len() {
            let partition = &mut self.partitions[index];
            if node.is_none() || partition.leader == node {
                let queue: Vec<_> = partition.queue.drain().collect();
                let failed = ProduceError::not_sent(error.clone());
                completions.extend(self.release(queue, |_| Err(failed.clone())));
            }
        }
        completions
    }

    fn expire(&mut self, records: Vec<Queued>) -> Vec<Completion> {
        let Some(first) = records.first() else {
            return Vec::new();
        };
        let topic = &first.record.topic;
        let error = Error::timeout(format!("kafka to take a record for {topic}"));
        self.release(records, |_| Err(ProduceError::not_sent(error.clone())))
    }

    /// A transaction begins under this identity: its records are retried, and its failures count.
    pub(super) fn begin_transaction(&mut self, identity: Identity) {
        self.identity = Some(identity);
        self.aborted = None;
        self.failure = None;
        self.unregistered.clear();
        for partition in &mut self.partitions {
            partition.is_registered = false;
        }
    }

    /// The partitions that the transaction's coordinator must know before more is sent.
    pub(super) fn unregistered(&self) -> Vec<TopicPartition> {
        self.unregistered.iter().cloned().collect()
    }

    /// The transaction's coordinator knows these partitions now.
    pub(super) fn registered(&mut self, partitions: &[TopicPartition]) {
        for name in partitions {
            self.unregistered.remove(name);
        }
    }

    /// Why the transaction cannot be committed, if a record has failed since it began.
    pub(super) fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    /// Whether the identity can be used for another transaction.
    pub(super) fn has_identity(&self) -> bool {
        self.identity.is_some()
    }

    /// Gives up all records that are not in flight, because of `error`. From now on an answer that
    /// would cause a retry fails its records instead.
    pub(super) fn abort(&mut self, error: &Error) -> Vec<Completion> {
        self.aborted = Some(error.clone());
        let mut completions = Vec::new();
        for index in 0..self.partitions.len() {
            let partition = &mut self.partitions[index];
            let queue: Vec<_> = partition.queue.drain().collect();
            for batch in std::mem::take(&mut partition.returned) {
                completions.extend(self.fail(batch, error.clone()));
            }
            completions.extend(self.release(queue, |_| Err(ProduceError::not_sent(error.clone()))));
        }
        completions
    }
}

fn completion(queued: Queued, mut outcome: Outcome) -> Completion {
    if let Err(error) = &mut outcome
        && queued.is_unknown
    {
        error.certainty = Certainty::MaybeSent;
    }
    Completion {
        slot: queued.slot,
        topic: queued.record.topic,
        queued_at: queued.queued_at,
        outcome,
    }
}

/// Sequence numbers run from 0 to `i32::MAX` and start over.
fn sequence_after(base: i32, count: usize) -> i32 {
    let next = (i64::from(base) + i64::try_from(count).unwrap_or(0)) % (i64::from(i32::MAX) + 1);
    i32::try_from(next).unwrap_or(0)
}

#[cfg(test)]
mod tests;
