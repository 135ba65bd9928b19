//! What waits to be sent, and what each answer means: the producer's state
//! machine, without sockets, threads or clocks of its own.
//!
//! # The life of a record
//!
//! It is placed in its partition's queue; cut into a batch together with what
//! else waits there; and settled by the answer. Three things an answer can mean:
//!
//! - *written*: done.
//! - *not written*, definitely: the batch is undone. Its records go back to the
//!   head of the queue, the sequence number steps back, and they may be cut anew.
//!   Few refusals are that clear.
//! - *unknown*: the batch is kept, bytes and all, and sent again as it is until an
//!   answer settles it; only then does the broker recognise a repetition. Its
//!   owners may give up waiting, the batch does not, short of the delivery
//!   time-out.
//!
//! # Order
//!
//! Several batches of a partition may be in flight, on one connection and under one
//! identity; their sequence numbers go on from one another, so the broker takes none
//! whose predecessor it did not take. Once one comes back, nothing more of its
//! partition is sent until all in flight are answered. Then the last of those that came
//! back are undone as far as they are *not written*; what remains goes out again, one
//! at a time, before anything new.
//!
//! # Sequence numbers
//!
//! They count per partition under one producer identity. When the broker's count
//! and ours have come apart, or a batch of unknown fate was given up, a new
//! identity is asked for; each partition starts it at 0 with its next new batch.
//!
//! # A topic that was deleted and created again
//!
//! It has another id, and its log knows nothing of what the old one held. Once the
//! batches in flight are answered, what waits is partitioned again, in its order; so are
//! the records of batches of unknown fate. A new identity keeps the new log from taking
//! one of them for a repetition of another.

mod settle;
mod topics;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::batch::{Compression, Identity};
use super::record::{Certainty, Outcome, ProduceError, Record, Slot};
use crate::error::Error;
pub(super) use settle::Answer;
use tbd_deadline::Deadline;
use topics::{Partition, Topic};

/// Limits and pauses, see [`super::ProducerConfig`].
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) buffer_bytes: usize,
    pub(super) batch_bytes: usize,
    pub(super) compression: Compression,
    pub(super) request_bytes: usize,
    pub(super) linger: Duration,
    pub(super) delivery_timeout: Duration,
    pub(super) refusal_pauses: [Duration; 3],
}

/// A record in a queue or in a batch.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) record: Record,
    pub(super) timestamp_ms: i64,
    pub(super) slot: Arc<Slot>,
    pub(super) deadline: Deadline,
    pub(super) queued_at: Instant,
    /// In memory, and in a batch.
    weight: usize,
    size: usize,
    /// How often a broker said no to it.
    refusals: usize,
    /// Whether it was in a batch that came back.
    is_returned: bool,
    /// Whether a broker found it too large, alone and not compressed.
    is_too_large: bool,
    /// Whether that batch may have been written, though to a log that is gone.
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

/// Records of one partition that travel together.
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
    /// Set once encoded; then sent again as it is.
    pub(super) encoded: Option<Bytes>,
    index: usize,
    cut_at: Instant,
    /// Counts the batches of a partition.
    number: u64,
    /// An earlier attempt may have been written.
    unknown: bool,
    /// Why the broker took none of it, the last time; counts against its records.
    refused: Option<Error>,
}

impl OutgoingBatch {
    /// How many of its records were sent before.
    pub(super) fn repeated(&self) -> usize {
        match &self.encoded {
            Some(_) => self.records.len(),
            None => self.records.iter().filter(|one| one.is_returned).count(),
        }
    }
}

/// A record whose outcome is certain now, to be told outside of all locks.
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

/// All records between being handed over and being settled.
#[derive(Debug)]
pub(super) struct Accumulator {
    limits: Limits,
    topics: HashMap<Arc<str>, Topic>,
    partitions: Vec<Partition>,
    /// Indices into `partitions` that belong to no topic any more.
    vacant: Vec<usize>,
    identity: Option<Identity>,
    buffered_bytes: usize,
    /// Records queued, in flight or unsettled.
    outstanding: usize,
    /// Where the next cut starts, so that no partition is always last.
    rotation: usize,
    /// A leader turned out to be wrong or away.
    leaders_doubtful: bool,
    /// Callers that wait for everything to be sent: linger no longer.
    pub(super) flushing: usize,
    /// Given up: nothing is retried any more.
    aborted: bool,
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
            aborted: false,
        }
    }

    pub(super) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Whether `weight` more bytes may be taken in. An empty buffer takes
    /// anything, or a large record would wait for ever.
    pub(super) fn has_room(&self, weight: usize) -> bool {
        self.outstanding == 0 || self.buffered_bytes + weight <= self.limits.buffer_bytes
    }

    /// Queues a record; returns the node to wake, if its leader is known.
    pub(super) fn push(&mut self, index: usize, queued: Queued) -> Option<i32> {
        self.buffered_bytes += queued.weight;
        self.outstanding += 1;
        let partition = &mut self.partitions[index];
        partition.queue.push_back(queued);
        partition.leader
    }

    /// Whether a producer identity has to be asked for before anything can be cut. Not
    /// only once something waits: the first record need not wait for it.
    pub(super) fn needs_identity(&self) -> bool {
        self.identity.is_none() && !self.partitions.is_empty()
    }

    pub(super) fn set_identity(&mut self, identity: Identity) {
        self.identity = Some(identity);
    }

    /// Whether there is anything for `node` to send at `now`, or when there will be;
    /// `ahead`: while it owes answers.
    pub(super) fn ready(&self, node: i32, now: Instant, ahead: bool) -> Ready {
        let mut earliest: Option<Instant> = None;
        for partition in &self.partitions {
            if partition.leader != Some(node) {
                continue;
            }
            match self.due(partition, node, ahead) {
                Some(due) if due <= now => return Ready::Now,
                Some(due) => earliest = Some(earliest.map_or(due, |other| other.min(due))),
                None => {}
            }
        }
        earliest.map_or(Ready::Idle, Ready::At)
    }

    /// The moment from which on a partition has something to send to `node`. Ahead of
    /// answers only full batches go: what is less gathers until the answer comes, and
    /// travels the cheaper for it.
    fn due(&self, partition: &Partition, node: i32, ahead: bool) -> Option<Instant> {
        let ahead = ahead || partition.in_flight > 0;
        let due = if let Some(batch) = partition.returned.front() {
            if ahead {
                return None;
            }
            batch.cut_at
        } else {
            let identity = self.identity?;
            let is_elsewhere = partition.in_flight_at != node;
            if partition.in_flight > 0
                && (partition.is_repeating || is_elsewhere || partition.identity != Some(identity))
            {
                return None;
            }
            let oldest = partition.queue.front()?.queued_at;
            let full = || {
                let mut waiting = 0;
                partition.queue.iter().any(|queued| {
                    waiting += queued.size;
                    waiting >= self.limits.batch_bytes
                })
            };
            let at_once = self.limits.linger.is_zero() || self.flushing > 0;
            if ahead {
                full().then_some(oldest)?
            } else if at_once || full() {
                oldest
            } else {
                oldest + self.limits.linger
            }
        };
        Some(partition.not_before.map_or(due, |pause| pause.max(due)))
    }

    /// Takes what `node` shall send now: at most one batch per partition, in all no
    /// more than a request may hold. Records past their deadline are sorted out.
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
            let due = self.due(partition, node, ahead);
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
        let mut records = Vec::new();
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
                self.buffered_bytes -= next.weight;
                self.outstanding -= 1;
                expired.push(overdue(next));
                continue;
            }
            bytes += next.size;
            records.push(next);
        }
        if records.is_empty() {
            return None;
        }
        if partition.identity != Some(identity) {
            partition.identity = Some(identity);
            partition.next_sequence = 0;
        }
        let base_sequence = partition.next_sequence;
        partition.next_sequence = sequence_after(base_sequence, records.len());
        partition.batch_number += 1;
        let is_too_large = bytes > self.limits.batch_bytes || records[0].is_too_large;
        let compression = match self.limits.compression {
            Compression::None if is_too_large => Compression::Zstd,
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
            encoded: None,
            index,
            cut_at: now,
            number: partition.batch_number,
            unknown: false,
            refused: None,
        };
        if let Some(topic) = self.topics.get_mut(&batch.topic)
            && usize::try_from(batch.partition) == Ok(topic.sticky)
        {
            topic.sticky = (topic.sticky + 1) % topic.partitions.len();
        }
        Some(batch)
    }

    /// Sorts out what waited too long: records past their deadline or withdrawn,
    /// and batches of unknown fate past the delivery time-out.
    pub(super) fn sweep(&mut self, now: Instant) -> Vec<Completion> {
        let mut completions = Vec::new();
        for index in 0..self.partitions.len() {
            let queue = &mut self.partitions[index].queue;
            let stale =
                |queued: &Queued| queued.deadline.instant() <= now || queued.slot.is_withdrawn();
            if queue.iter().any(stale) {
                let (gone, rest): (VecDeque<_>, VecDeque<_>) =
                    std::mem::take(queue).into_iter().partition(stale);
                *queue = rest;
                for queued in gone {
                    self.buffered_bytes -= queued.weight;
                    self.outstanding -= 1;
                    completions.push(overdue(queued));
                }
            }
            let timeout = self.limits.delivery_timeout;
            let is_over = |batch: &OutgoingBatch| now >= batch.cut_at + timeout;
            while self.partitions[index].returned.front().is_some_and(is_over)
                && let Some(batch) = self.partitions[index].returned.pop_front()
            {
                let error = Error::Timeout {
                    what: format!("kafka to say what became of a batch for {}", batch.topic),
                };
                completions.extend(self.fail(batch, error));
            }
        }
        completions
    }

    /// Fails what waits in the queues of the partitions that `node` leads, or of all: no
    /// attempt can help it before something is set right.
    pub(super) fn fail_queued(&mut self, node: Option<i32>, error: &Error) -> Vec<Completion> {
        let mut completions = Vec::new();
        for index in 0..self.partitions.len() {
            let partition = &mut self.partitions[index];
            if node.is_none() || partition.leader == node {
                let queue: Vec<_> = partition.queue.drain(..).collect();
                let failed = ProduceError::not_sent(error.clone());
                completions.extend(self.release(queue, |_| Err(failed.clone())));
            }
        }
        completions
    }

    /// Gives everything up that no thread has in hand; from now on answers that
    /// would lead to another attempt fail their records instead.
    pub(super) fn abort(&mut self) -> Vec<Completion> {
        self.aborted = true;
        let mut completions = Vec::new();
        for index in 0..self.partitions.len() {
            let partition = &mut self.partitions[index];
            let queue: Vec<_> = partition.queue.drain(..).collect();
            for batch in std::mem::take(&mut partition.returned) {
                completions.extend(self.fail(batch, Error::Closed));
            }
            completions.extend(self.release(queue, |_| Err(ProduceError::not_sent(Error::Closed))));
        }
        completions
    }
}

fn overdue(queued: Queued) -> Completion {
    let error = Error::Timeout {
        what: format!("kafka to take a record for {}", queued.record.topic),
    };
    completion(queued, Err(ProduceError::not_sent(error)))
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
