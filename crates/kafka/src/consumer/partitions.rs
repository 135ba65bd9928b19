//! Where a consumer stands in each of its partitions, and what it has fetched
//! but not handed out. No I/O.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use uuid::Uuid;

use super::config::ConsumerRecord;
use super::fetch::Asked;
use crate::batch::{self, BatchError, Record, whole_batches};
use crate::group::TopicPartition;
use crate::group::coordinator::OffsetToCommit;

/// What has to be found out before fetching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    /// What the group has committed.
    Committed,
    /// The first offset there is, or the next to come.
    Reset(ResetTo),
}

/// The special timestamps of ListOffsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResetTo {
    Earliest,
    Latest,
}

/// What the leader said about the topic id that a partition's offsets belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdVerdict {
    /// The log has it.
    Confirmed,
    /// It has no such topic: deleted, or not known there yet.
    Refused,
    /// It cannot be asked by id, and serves whichever topic has the name.
    NotAsked,
}

impl IdVerdict {
    /// Records are asked for, by id or by name.
    pub(super) fn asked(&mut self, is_by_id: bool) {
        if !is_by_id {
            *self = Self::NotAsked;
        } else if *self == Self::NotAsked {
            *self = Self::Confirmed;
        }
    }
}

/// How many bytes of records an answer had. They lie in one piece of memory, which is free
/// again once nobody keeps this any more.
pub(super) type AnswerBytes = Arc<usize>;

/// One partition's share of an answer, not looked at yet.
#[derive(Debug)]
struct Packed {
    bytes: Bytes,
    answer: AnswerBytes,
}

/// One assigned partition.
#[derive(Debug)]
pub(super) struct Partition {
    /// The topic whose offsets these are; `None` while the cluster tells no id.
    pub topic_id: Option<Uuid>,
    /// The topic that the group assigned; only the consumer protocol says.
    pub assigned_id: Option<Uuid>,
    /// What the leader last said about `topic_id`.
    pub id_verdict: IdVerdict,
    /// Whether another topic took the name since the partition was assigned.
    has_restarted: bool,
    /// `Some` while the position is not known.
    pub lookup: Option<Lookup>,
    /// The next offset to hand out.
    position: i64,
    /// Leader epoch of what lies before the position: for the commit, and for
    /// leaders to see whether their log still has it.
    epoch: i32,
    /// Where the group goes on when nothing more is committed: the last
    /// committed position, or where this member began.
    anchor: i64,
    /// Whether the coordinator knows the anchor.
    is_anchor_committed: bool,
    /// What the application has committed and the coordinator did not take yet.
    pub owed: Option<i64>,
    /// End of the log as last told.
    pub high_watermark: Option<i64>,
    /// Whether the application wants no records of it for now.
    pub is_paused: bool,
    /// Not to be asked about before this moment.
    pub not_before: Option<Instant>,
    /// The next offset to fetch, and the leader epoch of what lies before it: beyond the
    /// position by what is here already.
    fetch_position: i64,
    fetch_epoch: i32,
    /// The rest of an answer, and the one that follows if it came before that was
    /// handed out.
    raw: Option<Packed>,
    ahead: Option<Packed>,
    /// Records of the batch in hand, and the answer it came with.
    records: VecDeque<Record>,
    batch_answer: Option<AnswerBytes>,
    batch_epoch: i32,
    batch_next: i64,
}

impl Partition {
    /// A partition of the topic with this id, if the group says which one.
    pub(super) fn new(assigned_id: Option<Uuid>) -> Self {
        Self {
            topic_id: assigned_id,
            assigned_id,
            id_verdict: IdVerdict::Confirmed,
            has_restarted: false,
            lookup: Some(Lookup::Committed),
            position: 0,
            epoch: -1,
            anchor: 0,
            is_anchor_committed: false,
            owed: None,
            high_watermark: None,
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

    /// The group had committed this.
    pub(super) fn start_committed(&mut self, offset: i64, epoch: i32) {
        self.begin(offset, epoch, true);
    }

    /// Nothing is committed, or it is gone: reading begins here.
    pub(super) fn start_at(&mut self, offset: i64) {
        self.begin(offset, -1, false);
    }

    fn begin(&mut self, offset: i64, epoch: i32, is_committed: bool) {
        self.lookup = None;
        self.position = offset;
        self.anchor = offset;
        self.is_anchor_committed = is_committed;
        self.epoch = epoch;
        self.not_before = None;
        self.drop_fetched();
    }

    /// Another topic has the name now: what was committed and read before was the other
    /// one's. Reading begins at the new topic's beginning.
    pub(super) fn restart(&mut self, id: Uuid) {
        self.topic_id = Some(id);
        self.id_verdict = IdVerdict::Confirmed;
        self.has_restarted = true;
        self.owed = None;
        self.high_watermark = None;
        // A new log begins at 0. A leader that lags behind could still answer a question
        // for the beginning, which goes by name, for the old log.
        self.start_at(0);
    }

    /// Reads on from elsewhere; what is committed stays.
    pub(super) fn seek(&mut self, offset: i64) {
        self.lookup = None;
        self.position = offset;
        self.epoch = -1;
        self.drop_fetched();
    }

    /// The leader's log parts from what was fetched before `asked` at `end`: what
    /// follows there is new. Nothing if it is stale news.
    pub(super) fn diverged(&mut self, asked: i64, end: i64) {
        if self.fetch_position() != Some(asked) {
            return;
        }
        if end >= self.position && asked > self.position {
            // What was handed out is still there, what was not may be not.
            return self.drop_fetched();
        }
        let end = end.min(self.position);
        self.owed = None;
        if end < self.anchor {
            self.anchor = end;
            self.is_anchor_committed = false;
        }
        self.seek(end);
    }

    /// The position has to be found again, and everything fetched is void.
    pub(super) fn reset(&mut self, to: ResetTo) {
        self.lookup = Some(Lookup::Reset(to));
        self.drop_fetched();
    }

    /// What is not handed out has to be fetched again.
    pub(super) fn drop_fetched(&mut self) {
        self.fetch_position = self.position;
        self.fetch_epoch = self.epoch;
        self.raw = None;
        self.ahead = None;
        self.records.clear();
        self.batch_answer = None;
        self.batch_next = 0;
    }

    /// Hands out again what was handed out since the last commit.
    pub(super) fn rewind(&mut self) {
        if self.lookup.is_none() && self.position != self.anchor {
            self.seek(self.anchor);
        }
    }

    /// Whether its position has to be found out, and this was asked for it.
    pub(super) fn waits_for(&self, asked: &Asked<ResetTo>) -> bool {
        self.lookup == Some(Lookup::Reset(asked.what)) && self.topic_id == asked.topic_id
    }

    /// Whether nothing is left to hand out.
    pub(super) fn is_drained(&self) -> bool {
        self.raw.is_none() && self.ahead.is_none() && self.records.is_empty()
    }

    /// Whether another answer may be fetched: one beyond that which is being handed
    /// out.
    pub(super) fn has_room(&self) -> bool {
        self.ahead.is_none()
    }

    /// The next offset to fetch, unless it has to be found out.
    pub(super) fn fetch_position(&self) -> Option<i64> {
        self.lookup.is_none().then_some(self.fetch_position)
    }

    /// Leader epoch of what lies before the next offset to fetch, -1 when unknown.
    pub(super) fn fetch_epoch(&self) -> i32 {
        self.fetch_epoch
    }

    /// What a commit of everything handed out would store, unless it is known
    /// to be stored already.
    pub(super) fn to_commit(&self) -> Option<(i64, i32)> {
        let is_news = self.position > self.anchor
            || (self.position == self.anchor && !self.is_anchor_committed);
        (self.lookup.is_none() && is_news).then_some((self.position, self.epoch))
    }

    /// What a commit of `offset` stores.
    pub(super) fn offset_to_commit(&self, offset: i64) -> OffsetToCommit {
        let is_position = offset == self.position;
        OffsetToCommit {
            offset,
            leader_epoch: if is_position { self.epoch } else { -1 },
            topic_id: self.topic_id,
        }
    }

    /// Whether an offset cannot belong to records that were handed out since the
    /// assignment: reading has not begun, or has not reached it in the topic that has the
    /// name now.
    pub(super) fn is_foreign(&self, offset: i64) -> bool {
        self.lookup == Some(Lookup::Committed)
            || self.has_restarted && self.position().is_none_or(|position| offset > position)
    }

    /// A commit within this generation that would go backwards is not one.
    pub(super) fn is_backwards(&self, offset: i64) -> bool {
        self.is_anchor_committed && offset < self.anchor
    }

    pub(super) fn committed(&mut self, offset: i64) {
        if !self.is_backwards(offset) {
            self.anchor = offset;
            self.is_anchor_committed = true;
        }
        self.owed = self.owed.filter(|owed| *owed > offset);
    }

    /// Records that are in the log but not committed by this group.
    pub(super) fn lag(&self) -> Option<i64> {
        let known = self.lookup.is_none();
        self.high_watermark
            .filter(|_| known)
            .map(|end| (end - self.anchor).max(0))
    }

    /// Takes records of `answer`, fetched from `offset` on. False when they are
    /// no longer wanted, because the position has changed since.
    pub(super) fn fetched(
        &mut self,
        offset: i64,
        mut records: Bytes,
        answer: &AnswerBytes,
    ) -> bool {
        let is_wanted = self.fetch_position() == Some(offset) && self.has_room();
        if is_wanted && !records.is_empty() {
            if let Some(whole) = whole_batches(&records) {
                // The beginning of one more comes again, whole.
                records.truncate(whole.bytes);
                self.fetch_position = self.fetch_position.max(whole.next_offset);
                self.fetch_epoch = whole.leader_epoch;
            }
            let packed = Some(Packed {
                bytes: records,
                answer: answer.clone(),
            });
            match self.raw {
                None => self.raw = packed,
                Some(_) => self.ahead = packed,
            }
        }
        is_wanted
    }

    /// Moves up to `max` records to `out`, unpacking batch by batch. Returns
    /// false when what was fetched ended without a single whole batch.
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
            // Past what the batch ever held: compaction leaves gaps at its end.
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
        self.batch_answer = Some(raw.answer.clone());
        if raw.bytes.is_empty() {
            self.raw = self.ahead.take();
        }
        self.batch_epoch = batch.leader_epoch;
        self.batch_next = batch.next_offset();
        // A batch begins where it was written, which may be before our position.
        let position = self.position;
        if batch.last_offset >= position {
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
