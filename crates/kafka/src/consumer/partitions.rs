//! State of the assigned partitions: positions, commits, and records fetched but not handed out. No
//! I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use uuid::Uuid;

use super::config::{ConsumerRecord, StartAt};
use super::fetch::Asked;
use crate::batch::{self, BatchError, FetchedBatch, Record, whole_batches};
use crate::group::coordinator::OffsetToCommit;
use crate::group::{OffsetAndMetadata, TopicPartition};

/// What must be looked up before fetching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    /// The group's committed offset.
    Committed,
    /// Where reading begins: the start or the end of the log, or a moment.
    Reset(ResetTo),
    /// The start or the end of the log, where the application continues. Commits are unaffected.
    Seek(ResetTo),
}

/// The special timestamps of ListOffsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResetTo {
    Earliest,
    Latest,
    /// The first record of this time, in milliseconds since 1970.
    Timestamp(i64),
}

impl ResetTo {
    /// Its number in ListOffsets.
    pub(super) fn number(self) -> i64 {
        match self {
            Self::Earliest => -2,
            Self::Latest => -1,
            Self::Timestamp(time) => time.max(0),
        }
    }
}

/// The leader's last word on the topic id that a partition's offsets belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdVerdict {
    /// The leader has the topic.
    Confirmed,
    /// The leader has no such topic: it was deleted, or is not known there yet.
    Refused,
    /// The leader cannot be asked by id. It serves the topic that has the name now.
    NotAsked,
}

impl IdVerdict {
    /// Records are being asked for, by id or by name.
    pub(super) fn asked(&mut self, is_by_id: bool) {
        if !is_by_id {
            *self = Self::NotAsked;
        } else if *self == Self::NotAsked {
            *self = Self::Confirmed;
        }
    }
}

/// A replica that the leader has named, to fetch records from (KIP-392).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadReplica {
    pub node: i32,
    /// The leader's epoch. Another leader is asked first, so that it can say whether its log still
    /// has the records read.
    pub leader_epoch: i32,
    /// When the leader is asked again.
    pub until: Instant,
}

/// The size of an answer's records in bytes. They share one allocation, which is free once the last
/// reference to this is dropped.
pub(super) type AnswerBytes = Arc<usize>;

/// One partition's share of an answer, not unpacked yet.
#[derive(Debug)]
struct Packed {
    bytes: Bytes,
    answer: AnswerBytes,
    /// Aborted transactions that overlap the answer: first offset and producer. Ascending.
    aborted: VecDeque<(i64, i64)>,
    /// The producers whose transaction at the current offset was aborted.
    aborting: BTreeSet<i64>,
}

impl Packed {
    /// Whether a batch belongs to an aborted transaction. Call it for each batch in turn.
    fn is_aborted(&mut self, batch: &FetchedBatch) -> Result<bool, BatchError> {
        while let Some((first, producer)) = self.aborted.front().copied()
            && first <= batch.last_offset
        {
            self.aborted.pop_front();
            self.aborting.insert(producer);
        }
        if !self.aborting.is_empty() && batch.is_abort_marker()? {
            self.aborting.remove(&batch.producer_id);
        }
        Ok(batch.is_transactional && self.aborting.contains(&batch.producer_id))
    }
}

/// One assigned partition.
#[derive(Debug)]
pub(super) struct Partition {
    /// The topic these offsets belong to; `None` while the cluster provides no id.
    pub topic_id: Option<Uuid>,
    /// The topic that the group assigned. Only the consumer protocol provides it.
    pub assigned_id: Option<Uuid>,
    /// What the leader last said about `topic_id`.
    pub id_verdict: IdVerdict,
    /// Whether another topic took the name after the assignment.
    has_restarted: bool,
    /// The pending look-up; `Some` while the position is unknown.
    pub lookup: Option<Lookup>,
    /// The next offset to hand out.
    position: i64,
    /// Leader epoch of the records before the position. It is committed, and lets leaders check
    /// whether their log still has those records.
    epoch: i32,
    /// Where the group resumes if nothing more is committed: the last committed position, or where
    /// this member began.
    anchor: OffsetAndMetadata,
    /// Whether the anchor is known.
    has_begun: bool,
    /// Whether the coordinator knows the anchor.
    is_anchor_committed: bool,
    /// An offset that the application committed and the coordinator has not accepted yet.
    pub owed: Option<OffsetToCommit>,
    /// End of what can be read, in the last answer.
    pub end: Option<i64>,
    /// The replica to fetch from instead of the leader.
    pub read_replica: Option<ReadReplica>,
    /// Whether the application paused it.
    pub is_paused: bool,
    /// Back off until this moment.
    pub not_before: Option<Instant>,
    /// The next offset to fetch, and the leader epoch of the records before it. Ahead of the
    /// position by the records already fetched.
    fetch_position: i64,
    fetch_epoch: i32,
    /// The rest of an answer, and the next answer if it arrived before that was handed out.
    raw: Option<Packed>,
    ahead: Option<Packed>,
    /// Records of the batch being handed out, and the answer that it came with.
    records: VecDeque<Record>,
    batch_answer: Option<AnswerBytes>,
    batch_epoch: i32,
    batch_next: i64,
}

impl Partition {
    /// Creates a partition that the application assigned.
    pub(super) fn starting(at: StartAt) -> Self {
        let mut partition = Self::new(None);
        match at {
            StartAt::Committed => {}
            StartAt::Beginning => partition.reset(ResetTo::Earliest),
            StartAt::End => partition.reset(ResetTo::Latest),
            StartAt::Offset(offset) => partition.start_at(offset),
            StartAt::Timestamp(time) => partition.reset(ResetTo::Timestamp(time)),
        }
        partition
    }

    /// Creates a partition of the topic with this id, if the group provides one.
    pub(super) fn new(assigned_id: Option<Uuid>) -> Self {
        Self {
            topic_id: assigned_id,
            assigned_id,
            id_verdict: IdVerdict::Confirmed,
            has_restarted: false,
            lookup: Some(Lookup::Committed),
            position: 0,
            epoch: -1,
            anchor: OffsetAndMetadata::from(0),
            has_begun: false,
            is_anchor_committed: false,
            owed: None,
            end: None,
            read_replica: None,
            is_paused: false,
            not_before: None,
            fetch_position: 0,
            fetch_epoch: -1,
            raw: None,
            ahead: None,
            records: VecDeque::new(),
            batch_answer: None,
            batch_epoch: -1,
            batch_next: 0,
        }
    }

    pub(super) fn position(&self) -> Option<i64> {
        self.lookup.is_none().then_some(self.position)
    }

    /// Reading begins at the committed offset.
    pub(super) fn start_committed(&mut self, committed: OffsetAndMetadata) {
        self.begin(committed, true);
    }

    /// Reading begins here: nothing is committed, or the committed offset is gone.
    pub(super) fn start_at(&mut self, offset: i64) {
        self.begin(offset.into(), false);
    }

    fn begin(&mut self, anchor: OffsetAndMetadata, is_committed: bool) {
        self.lookup = None;
        self.position = anchor.offset;
        self.epoch = anchor.leader_epoch;
        self.anchor = anchor;
        self.has_begun = true;
        self.is_anchor_committed = is_committed;
        self.not_before = None;
        self.drop_fetched();
    }

    /// Another topic has the name now. Commits and positions belong to the old one, so reading
    /// begins at the start of the new one.
    pub(super) fn restart(&mut self, id: Uuid) {
        self.topic_id = Some(id);
        self.id_verdict = IdVerdict::Confirmed;
        self.has_restarted = true;
        self.owed = None;
        self.end = None;
        // A new log begins at 0. Asking for the start goes by name, so a leader that lags behind
        // could answer for the old log.
        self.start_at(0);
    }

    /// Continues reading at another offset; commits are unaffected.
    pub(super) fn seek(&mut self, offset: i64) {
        if !self.has_begun {
            return self.start_at(offset);
        }
        self.lookup = None;
        self.position = offset;
        self.epoch = -1;
        self.drop_fetched();
    }

    /// As [`Partition::seek`], to a place that must be looked up.
    pub(super) fn seek_to(&mut self, to: ResetTo) {
        self.look_up(Lookup::Seek(to));
    }

    /// The place that was looked up.
    pub(super) fn found(&mut self, offset: i64) {
        match self.lookup {
            Some(Lookup::Seek(_)) => {
                self.seek(offset);
                self.not_before = None;
            }
            _ => self.start_at(offset),
        }
    }

    /// The place to ask the leader for.
    pub(super) fn wanted_place(&self) -> Option<ResetTo> {
        match self.lookup {
            Some(Lookup::Reset(to) | Lookup::Seek(to)) => Some(to),
            Some(Lookup::Committed) | None => None,
        }
    }

    /// The leader's log diverges at `end` from the records fetched before `asked`; its records from
    /// there on are new. Ignores a stale answer.
    pub(super) fn diverged(&mut self, asked: i64, end: i64) {
        if self.fetch_position() != Some(asked) {
            return;
        }
        if end >= self.position && asked > self.position {
            // The records handed out are still in the log; those not handed out may not be.
            return self.drop_fetched();
        }
        let end = end.min(self.position);
        self.owed = None;
        if end < self.anchor.offset {
            self.anchor = end.into();
            self.is_anchor_committed = false;
        }
        self.seek(end);
    }

    /// The position must be looked up again, and fetched records are void.
    pub(super) fn reset(&mut self, to: ResetTo) {
        self.look_up(Lookup::Reset(to));
    }

    /// As [`Partition::reset`], for the committed offset too.
    pub(super) fn look_up(&mut self, lookup: Lookup) {
        self.lookup = Some(lookup);
        self.drop_fetched();
    }

    /// Discards records that were not handed out; they must be fetched again.
    pub(super) fn drop_fetched(&mut self) {
        self.fetch_position = self.position;
        self.fetch_epoch = self.epoch;
        self.raw = None;
        self.ahead = None;
        self.records.clear();
        self.batch_answer = None;
        self.batch_next = 0;
    }

    /// Returns to the last commit, to hand out the records since then again.
    pub(super) fn rewind(&mut self) {
        let is_known = matches!(self.lookup, None | Some(Lookup::Seek(_))) && self.has_begun;
        if is_known && self.position() != Some(self.anchor.offset) {
            self.seek(self.anchor.offset);
        }
    }

    /// Returns to where this member began, because nothing is committed. False if it has not begun.
    pub(super) fn begin_again(&mut self) -> bool {
        if self.has_begun {
            self.seek(self.anchor.offset);
        }
        self.has_begun
    }

    /// Whether this look-up of the position is still wanted.
    pub(super) fn waits_for(&self, asked: &Asked<ResetTo>) -> bool {
        self.wanted_place() == Some(asked.what) && self.topic_id == asked.topic_id
    }

    /// The node to ask next; `leader` is the leader and its epoch. Only the leader knows offsets.
    pub(super) fn node_to_ask(&self, leader: (i32, i32), now: Instant) -> i32 {
        let (leader, epoch) = leader;
        self.read_replica
            .filter(|replica| replica.leader_epoch == epoch && now < replica.until)
            .filter(|_| self.lookup.is_none())
            .map_or(leader, |replica| replica.node)
    }

    /// Whether no fetched record is left to hand out.
    pub(super) fn is_drained(&self) -> bool {
        self.raw.is_none() && self.ahead.is_none() && self.records.is_empty()
    }

    /// Whether another answer may be fetched: at most one beyond the one being handed out.
    pub(super) fn has_room(&self) -> bool {
        self.ahead.is_none()
    }

    /// The next offset to fetch; `None` while the position is unknown.
    pub(super) fn fetch_position(&self) -> Option<i64> {
        self.lookup.is_none().then_some(self.fetch_position)
    }

    /// Leader epoch of the records before the next offset to fetch; -1 when unknown.
    pub(super) fn fetch_epoch(&self) -> i32 {
        self.fetch_epoch
    }

    /// The offset and epoch to commit for all records handed out; `None` if already committed.
    pub(super) fn to_commit(&self) -> Option<(i64, i32)> {
        let anchor = self.anchor.offset;
        let is_news =
            self.position > anchor || (self.position == anchor && !self.is_anchor_committed);
        (self.lookup.is_none() && is_news).then_some((self.position, self.epoch))
    }

    /// What a commit of `wanted` stores.
    pub(super) fn offset_to_commit(&self, wanted: OffsetAndMetadata) -> OffsetToCommit {
        let offset = wanted.offset;
        let leader_epoch = match wanted.leader_epoch {
            -1 if offset == self.position => self.epoch,
            given => given,
        };
        let metadata = match wanted.metadata {
            None if self.is_anchor_committed && offset == self.anchor.offset => {
                self.anchor.metadata.clone()
            }
            given => given.filter(|text| !text.is_empty()),
        };
        OffsetToCommit {
            offset,
            leader_epoch,
            topic_id: self.topic_id,
            metadata,
        }
    }

    /// Whether an offset cannot belong to records handed out since the assignment. Reading has not
    /// begun, or has not reached the offset in the topic that has the name now.
    pub(super) fn is_foreign(&self, offset: i64) -> bool {
        self.lookup == Some(Lookup::Committed)
            || self.has_restarted && self.position().is_none_or(|position| offset > position)
    }

    /// Whether a commit would go backwards within this generation. Such a commit is ignored.
    pub(super) fn is_backwards(&self, offset: i64) -> bool {
        self.is_anchor_committed && offset < self.anchor.offset
    }

    pub(super) fn committed(&mut self, done: &OffsetToCommit) {
        if !self.is_backwards(done.offset) {
            self.anchor = OffsetAndMetadata {
                offset: done.offset,
                leader_epoch: done.leader_epoch,
                metadata: done.metadata.clone(),
            };
            self.is_anchor_committed = true;
        }
        self.owed.take_if(|owed| owed.offset <= done.offset);
    }

    /// The offset last committed, as far as this member knows.
    pub(super) fn committed_offset(&self) -> Option<&OffsetAndMetadata> {
        let is_known = self.is_anchor_committed && self.lookup != Some(Lookup::Committed);
        is_known.then_some(&self.anchor)
    }

    /// The number of records in the log that this group has not committed.
    pub(super) fn lag(&self) -> Option<i64> {
        let known = self.lookup.is_none();
        self.end
            .filter(|_| known)
            .map(|end| (end - self.anchor.offset).max(0))
    }

    /// Takes the records of an answer to a fetch at `offset`. Returns false when the answer is
    /// stale, because the position has changed since.
    pub(super) fn fetched(
        &mut self,
        offset: i64,
        mut records: Bytes,
        mut aborted: Vec<(i64, i64)>,
        answer: &AnswerBytes,
    ) -> bool {
        let is_wanted = self.fetch_position() == Some(offset) && self.has_room();
        if is_wanted && !records.is_empty() {
            if let Some(whole) = whole_batches(&records) {
                // The incomplete last batch is fetched again as a whole.
                records.truncate(whole.bytes);
                self.fetch_position = self.fetch_position.max(whole.next_offset);
                self.fetch_epoch = whole.leader_epoch;
            }
            aborted.sort_unstable();
            let packed = Some(Packed {
                bytes: records,
                answer: answer.clone(),
                aborted: aborted.into(),
                aborting: BTreeSet::new(),
            });
            match self.raw {
                None => self.raw = packed,
                Some(_) => self.ahead = packed,
            }
        }
        is_wanted
    }

    /// Moves up to `max` records to `out`, unpacking batch by batch. Returns false when the fetched
    /// data ended without a single whole batch.
    pub(super) fn hand_out(
        &mut self,
        name: &TopicPartition,
        max: usize,
        out: &mut Vec<ConsumerRecord>,
    ) -> Result<bool, BatchError> {
        let mut is_progress = self.raw.is_none();
        let end = out.len() + max;
        loop {
            while out.len() < end {
                let Some(record) = self.records.pop_front() else {
                    break;
                };
                self.position = record.offset + 1;
                self.epoch = self.batch_epoch;
                out.push(ConsumerRecord {
                    topic: name.topic.clone(),
                    partition: name.partition,
                    offset: record.offset,
                    leader_epoch: self.batch_epoch,
                    timestamp_ms: record.timestamp_ms,
                    key: record.key,
                    value: record.value,
                    headers: record.headers,
                });
            }
            if !self.records.is_empty() {
                return Ok(true);
            }
            self.batch_answer = None;
            // Skip past the batch's last offset: compaction leaves gaps at its end.
            if self.batch_next > self.position {
                self.position = self.batch_next;
                self.epoch = self.batch_epoch;
            }
            if out.len() >= end {
                return Ok(true);
            }
            match self.unpack_next() {
                Ok(true) => is_progress = true,
                Ok(false) => return Ok(is_progress),
                Err(error) => {
                    self.drop_fetched();
                    return Err(error);
                }
            }
        }
    }

    fn unpack_next(&mut self) -> Result<bool, BatchError> {
        let Some(raw) = &mut self.raw else {
            return Ok(false);
        };
        let Some(batch) = batch::next_batch(&mut raw.bytes)? else {
            self.raw = self.ahead.take();
            return Ok(self.raw.is_some());
        };
        let is_aborted = raw.is_aborted(&batch)?;
        self.batch_answer = Some(raw.answer.clone());
        if raw.bytes.is_empty() {
            self.raw = self.ahead.take();
        }
        self.batch_epoch = batch.leader_epoch;
        self.batch_next = batch.next_offset();
        // A batch may begin before the position.
        let position = self.position;
        if batch.last_offset >= position && !is_aborted {
            self.records = batch
                .records()?
                .into_iter()
                .filter(|record| record.offset >= position)
                .collect();
        }
        Ok(true)
    }
}

/// All assigned partitions.
pub(super) type Partitions = BTreeMap<TopicPartition, Partition>;

#[cfg(test)]
mod tests;
