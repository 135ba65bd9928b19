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

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::ApiKey;

use super::batch::{Compression, Identity};
use super::record::{Outcome, ProduceError, Record, RecordMetadata, Slot};
use crate::deadline::Deadline;
use crate::kafka::cluster::Cluster;
use crate::kafka::error::Error;
use crate::kafka::partitioner::partition_for_key;

/// The first pause before a batch of unknown fate is sent again; it doubles.
const PAUSE_FIRST: Duration = Duration::from_millis(50);

/// The longest such pause. A new leader should not wait longer than this.
const PAUSE_MAX: Duration = Duration::from_millis(800);

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

/// Who leads what: [`Cluster`], or a test's idea of it.
pub(super) trait Leaders {
    fn partitions(&self, topic: &str) -> Option<i32>;
    fn leader(&self, topic: &str, partition: i32) -> Option<i32>;
}

impl Leaders for Cluster {
    fn partitions(&self, topic: &str) -> Option<i32> {
        Cluster::partitions(self, topic)
    }
    fn leader(&self, topic: &str, partition: i32) -> Option<i32> {
        Cluster::leader(self, topic, partition).map(|(node, _)| node)
    }
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
        }
    }
}

/// Records of one partition that travel together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) topic: Arc<str>,
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

impl Batch {
    /// How many of its records were sent before.
    pub(super) fn repeated(&self) -> usize {
        match &self.encoded {
            Some(_) => self.records.len(),
            None => self.records.iter().filter(|one| one.is_returned).count(),
        }
    }
}

/// How an attempt to send a batch ended.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// It is in the log, from this offset on if the broker knows.
    Written(Option<i64>),
    /// The broker answered with an error code.
    Refused(ResponseError),
    /// Some of it may have left the process, and no answer came.
    Unknown(Error),
    /// It can never be sent.
    Impossible(Error),
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

#[derive(Debug)]
struct Partition {
    topic: Arc<str>,
    number: i32,
    leader: Option<i32>,
    queue: VecDeque<Queued>,
    /// How many batches the thread of node `in_flight_at` has in hand.
    in_flight: usize,
    in_flight_at: i32,
    /// What is in flight was sent before. Brokers remember the last five batches only: if
    /// others went with it each time, they would forget it.
    is_repeating: bool,
    /// Batches that came back and are not undone, in their order.
    returned: VecDeque<Batch>,
    /// The next batch's.
    batch_number: u64,
    /// No attempt before this moment.
    not_before: Option<Instant>,
    /// Attempts in a row whose outcome is unknown.
    pauses: u32,
    /// The most records the next batch may have, after one was too large.
    records_max: usize,
    /// Under which identity `next_sequence` counts.
    identity: Option<Identity>,
    next_sequence: i32,
}

#[derive(Debug, Default)]
struct Topic {
    /// Index into `Accumulator::partitions` by partition number.
    partitions: Vec<usize>,
    /// Where records without a key go until that batch is cut.
    sticky: usize,
}

/// All records between being handed over and being settled.
#[derive(Debug)]
pub(super) struct Accumulator {
    limits: Limits,
    topics: HashMap<Arc<str>, Topic>,
    partitions: Vec<Partition>,
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

    /// The partition (as an index for [`Accumulator::push`]) that `record` belongs
    /// to, or `None` while the topic is unknown; it is wanted from then on.
    pub(super) fn place(&mut self, record: &Record) -> Result<Option<usize>, Error> {
        let Some(topic) = self.topics.get(&record.topic) else {
            let wanted = Arc::clone(&record.topic);
            self.topics.insert(wanted, Topic::default());
            return Ok(None);
        };
        if topic.partitions.is_empty() {
            return Ok(None);
        }
        let count = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
        let number = match (record.partition, &record.key) {
            (Some(partition), _) => usize::try_from(partition).unwrap_or(usize::MAX),
            (None, Some(key)) => usize::try_from(partition_for_key(key, count)).unwrap_or(0),
            (None, None) => self.gathering(topic),
        };
        match topic.partitions.get(number) {
            Some(index) => Ok(Some(*index)),
            None => Err(Error::InvalidRecord {
                reason: format!("{} has {count} partitions, not {number}", record.topic),
            }),
        }
    }

    /// Where records without a key go at present: the sticky partition, or the next
    /// one that has a leader.
    fn gathering(&self, topic: &Topic) -> usize {
        let count = topic.partitions.len();
        (0..count)
            .map(|step| (topic.sticky + step) % count)
            .find(|number| self.partitions[topic.partitions[*number]].leader.is_some())
            .unwrap_or(topic.sticky)
    }

    /// Queues a record; returns the node to wake, if its leader is known.
    pub(super) fn push(&mut self, index: usize, queued: Queued) -> Option<i32> {
        self.buffered_bytes += queued.weight;
        self.outstanding += 1;
        let partition = &mut self.partitions[index];
        partition.queue.push_back(queued);
        partition.leader
    }

    /// Takes over who leads what; new partitions and topics are added.
    pub(super) fn learn(&mut self, leaders: &dyn Leaders) {
        for (name, topic) in &mut self.topics {
            let count = leaders.partitions(name).unwrap_or(0);
            for number in (0..count).skip(topic.partitions.len()) {
                topic.partitions.push(self.partitions.len());
                self.partitions.push(Partition {
                    topic: Arc::clone(name),
                    number,
                    leader: None,
                    queue: VecDeque::new(),
                    in_flight: 0,
                    in_flight_at: -1,
                    is_repeating: false,
                    returned: VecDeque::new(),
                    batch_number: 0,
                    not_before: None,
                    pauses: 0,
                    records_max: usize::MAX,
                    identity: None,
                    next_sequence: 0,
                });
            }
        }
        for partition in &mut self.partitions {
            let leader = leaders.leader(&partition.topic, partition.number);
            if leader.is_some() && leader != partition.leader && partition.pauses > 0 {
                // The pause was meant for the one before.
                partition.pauses = 0;
                partition.not_before = None;
            }
            partition.leader = leader;
        }
    }

    /// Whether all partitions of these topics are known and have leaders.
    pub(super) fn are_led(&self, topics: &[String]) -> bool {
        let has_leader = |index: &usize| self.partitions[*index].leader.is_some();
        topics.iter().all(|topic| {
            let topic = self.topics.get(topic.as_str());
            topic.is_some_and(|topic| {
                !topic.partitions.is_empty() && topic.partitions.iter().all(has_leader)
            })
        })
    }

    /// All nodes that lead a partition.
    pub(super) fn leader_nodes(&self) -> BTreeSet<i32> {
        self.partitions
            .iter()
            .filter_map(|partition| partition.leader)
            .collect()
    }

    /// Topics wanted so far.
    pub(super) fn topic_names(&self) -> Vec<Arc<str>> {
        self.topics.keys().cloned().collect()
    }

    /// Whether the cluster has to be asked who leads what before all that waits
    /// can be sent. Taking the answer clears the doubt.
    pub(super) fn needs_leaders(&self) -> bool {
        self.leaders_doubtful
            || self
                .topics
                .values()
                .any(|topic| topic.partitions.is_empty())
            || self
                .partitions
                .iter()
                .any(|partition| partition.leader.is_none() && partition.has_work())
    }

    /// Called just before the cluster is asked, so that a doubt raised meanwhile
    /// is not lost.
    pub(super) fn clear_doubt(&mut self) {
        self.leaders_doubtful = false;
    }

    pub(super) fn doubt_leaders(&mut self) {
        self.leaders_doubtful = true;
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
    ) -> (Vec<Batch>, Vec<Completion>) {
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
            let batch = match repeated {
                Some(batch) => batch,
                None => match self.cut_new(index, now, &mut expired) {
                    Some(batch) => batch,
                    None => continue,
                },
            };
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
    ) -> Option<Batch> {
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
        let batch = Batch {
            topic: Arc::clone(&partition.topic),
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

    /// Takes the answer to a batch that was cut.
    pub(super) fn settle(&mut self, batch: Batch, answer: Answer, now: Instant) -> Vec<Completion> {
        let index = batch.index;
        self.partitions[index].in_flight -= 1;
        let mut completions = match answer {
            Answer::Written(base_offset) => self.written(batch, base_offset),
            Answer::Unknown(error) => self.keep(batch, error, now),
            Answer::Impossible(error) => self.fail(batch, error),
            Answer::Refused(code) => self.refused(batch, code, now),
        };
        if self.partitions[index].in_flight == 0 {
            completions.extend(self.undo_last(index, now));
        }
        completions
    }

    fn refused(&mut self, mut batch: Batch, code: ResponseError, now: Instant) -> Vec<Completion> {
        use ResponseError::*;
        let error = Error::Broker {
            api: ApiKey::Produce,
            code,
        };
        let partition = &mut self.partitions[batch.index];
        let follows = |other: &Batch| other.number < batch.number;
        match code {
            DuplicateSequenceNumber => self.written(batch, None),
            // It goes on from one that was not taken, which will be sent before it.
            OutOfOrderSequenceNumber if partition.returned.iter().any(follows) => {
                self.give_back(batch)
            }
            // The broker's count and ours have come apart: this batch is not in
            // the log, or it would have been recognised. Start counting anew.
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
            // Either the whole is too large, or one record spoils it for the
            // others: halve it until the culprit is alone.
            MessageTooLarge | InvalidRecord if batch.records.len() > 1 && !batch.unknown => {
                partition.records_max = batch.records.len() / 2;
                self.give_back(batch)
            }
            // Compressed it may fit.
            MessageTooLarge | RecordListTooLarge
                if batch.compression == Compression::None && !batch.unknown =>
            {
                let records = batch.records.iter_mut();
                records.for_each(|queued| queued.is_too_large = true);
                self.give_back(batch)
            }
            // Checked before anything is written.
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
            // All else says nothing about what was written. A leader that has
            // just resigned answers "not the leader" for what it wrote before,
            // and its log may live on.
            code if code.is_retriable() => self.keep(batch, error, now),
            _ => self.fail_unknown(batch, error),
        }
    }

    fn written(&mut self, batch: Batch, base_offset: Option<i64>) -> Vec<Completion> {
        let partition = &mut self.partitions[batch.index];
        partition.pauses = 0;
        partition.not_before = None;
        partition.records_max = usize::MAX;
        let (topic, number) = (batch.topic, batch.partition);
        self.release(batch.records, |position| {
            Ok(RecordMetadata {
                topic: Arc::clone(&topic),
                partition: number,
                offset: base_offset.map(|base| base + position),
            })
        })
    }

    /// Keeps a batch whose fate is unknown, to send it again as it is.
    fn keep(&mut self, mut batch: Batch, error: Error, now: Instant) -> Vec<Completion> {
        if self.aborted || now >= batch.cut_at + self.limits.delivery_timeout {
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

    /// Puts a batch where it is sent again from, or undone.
    fn give_back(&mut self, batch: Batch) -> Vec<Completion> {
        let returned = &mut self.partitions[batch.index].returned;
        let place = returned.partition_point(|other| other.number < batch.number);
        returned.insert(place, batch);
        Vec::new()
    }

    /// As `give_back`, of a batch that is definitely not in the log, whatever became of
    /// earlier attempts. Each record bears only so many refusals.
    fn give_back_counting(&mut self, mut batch: Batch, error: Error) -> Vec<Completion> {
        batch.unknown = false;
        batch.refused = Some(error);
        self.give_back(batch)
    }

    /// Undoes, once nothing is in flight, the last of the batches that came back, as far
    /// as they are definitely not in the log: their records go back to the head of the
    /// queue.
    fn undo_last(&mut self, index: usize, now: Instant) -> Vec<Completion> {
        // None is in the log whose predecessor is not.
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

    fn undo(&mut self, mut batch: Batch, now: Instant) -> Vec<Completion> {
        if self.aborted {
            return self.fail(batch, Error::Closed);
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
            queued.slot.return_to_queue();
            partition.queue.push_front(queued);
        }
        failed.reverse();
        match batch.refused {
            Some(error) => self.release(failed, |_| Err(ProduceError::not_sent(error.clone()))),
            None => Vec::new(),
        }
    }

    fn fail_unknown(&mut self, mut batch: Batch, error: Error) -> Vec<Completion> {
        batch.unknown = true;
        self.fail(batch, error)
    }

    /// Ends a batch without success.
    fn fail(&mut self, batch: Batch, error: Error) -> Vec<Completion> {
        let partition = &mut self.partitions[batch.index];
        let is_last = partition.in_flight == 0 && partition.returned.is_empty();
        let error = if batch.unknown {
            // Its sequence numbers may or may not be taken.
            self.renew_identity(batch.identity);
            ProduceError::maybe_sent(error)
        } else {
            if partition.identity == Some(batch.identity) && is_last {
                partition.next_sequence = batch.base_sequence;
            } else {
                // It leaves a gap before those that go on from it.
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
        let pause = PAUSE_FIRST.saturating_mul(2u32.saturating_pow(partition.pauses.min(10)));
        partition.pauses = partition.pauses.saturating_add(1);
        partition.not_before = Some(now + pause.min(PAUSE_MAX));
    }

    fn release(
        &mut self,
        records: Vec<Queued>,
        outcome: impl Fn(i64) -> Outcome,
    ) -> Vec<Completion> {
        self.outstanding -= records.len();
        self.buffered_bytes -= records.iter().map(|queued| queued.weight).sum::<usize>();
        records
            .into_iter()
            .zip(0i64..)
            .map(|(queued, position)| Completion {
                slot: queued.slot,
                topic: queued.record.topic,
                queued_at: queued.queued_at,
                outcome: outcome(position),
            })
            .collect()
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
            let is_over = |batch: &Batch| now >= batch.cut_at + timeout;
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

impl Partition {
    fn has_work(&self) -> bool {
        !self.queue.is_empty() || !self.returned.is_empty()
    }
}

fn overdue(queued: Queued) -> Completion {
    let error = Error::Timeout {
        what: format!("kafka to take a record for {}", queued.record.topic),
    };
    Completion {
        slot: queued.slot,
        topic: queued.record.topic,
        queued_at: queued.queued_at,
        outcome: Err(ProduceError::not_sent(error)),
    }
}

/// Sequence numbers run from 0 to `i32::MAX` and start over.
fn sequence_after(base: i32, count: usize) -> i32 {
    let next = (i64::from(base) + i64::try_from(count).unwrap_or(0)) % (i64::from(i32::MAX) + 1);
    i32::try_from(next).unwrap_or(0)
}

#[cfg(test)]
mod tests;
