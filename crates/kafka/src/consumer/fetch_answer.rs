//! Fetch answers: records, resets and errors for each partition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kafka_protocol::messages::FetchResponse;
use kafka_protocol::messages::fetch_response::PartitionData;

use super::fetch::{Asked, DAMAGE_PAUSE, Fetcher};
use super::partitions::{AnswerBytes, IdVerdict};
use super::positions::reset_to;
use super::reading::Reading;
use super::{Isolation, OffsetReset, RETRY_BACKOFF};
use crate::group::TopicPartition;
use crate::{ApiKey, Error, ErrorCode, topic_id};

/// The error code for a position outside the log.
const OFFSET_OUT_OF_RANGE: i16 = 1;

/// The position asked for in each partition.
type Positions = BTreeMap<TopicPartition, Asked<i64>>;

impl Fetcher {
    pub(super) fn fetched(
        &mut self,
        reading: &mut Reading,
        node: i32,
        answer: FetchResponse,
        asked: &Positions,
    ) -> Result<(), Error> {
        if let Err(error) = Error::check(ApiKey::Fetch, answer.error_code) {
            let later = Some(Instant::now() + RETRY_BACKOFF);
            for name in asked.keys() {
                if let Some(partition) = reading.partitions.get_mut(name) {
                    partition.not_before = later;
                    partition.read_replica = None;
                }
            }
            reading.last_error = Some(reading.refused_by(node, error).of_repeated());
            return Ok(());
        }
        let answers = answer.responses.iter().flat_map(|topic| &topic.partitions);
        let bytes = answers.map(|answer| answer.records.as_ref().map_or(0, Bytes::len));
        let memory = self.track(bytes.sum());
        let mut result = Ok(());
        let mut has_failed = false;
        for topic in answer.responses {
            // An answer by id contains no topic name.
            let by_id = asked
                .iter()
                .find(|(_, asked)| asked.topic_id == Some(topic.topic_id))
                .map(|(name, _)| Arc::clone(&name.topic));
            let topic_name = by_id.unwrap_or_else(|| (*topic.topic.0).into());
            for answer in topic.partitions {
                let name = TopicPartition::new(Arc::clone(&topic_name), answer.partition_index);
                // Accept only partitions that were asked for, of the same topic, and still
                // assigned.
                let Some(asked) = asked.get(&name) else {
                    continue;
                };
                let partition = reading.partitions.get(&name);
                if partition.is_none_or(|partition| partition.topic_id != asked.topic_id) {
                    continue;
                }
                has_failed |= !matches!(answer.error_code, 0 | OFFSET_OUT_OF_RANGE);
                if let Err(error) =
                    reading.partition_answer(&name, (node, asked.what), answer, &memory)
                {
                    result = Err(error);
                }
            }
        }
        if !has_failed && result.is_ok() {
            reading.last_error = None;
        }
        result
    }
}

impl Reading {
    /// Takes one partition of an answer to what a node was asked.
    fn partition_answer(
        &mut self,
        name: &TopicPartition,
        (node, asked): (i32, i64),
        answer: PartitionData,
        memory: &AnswerBytes,
    ) -> Result<(), Error> {
        let is_leader = self.is_leader(name, node);
        let Some(partition) = self.partitions.get_mut(name) else {
            return Ok(());
        };
        if answer.error_code != 0 {
            partition.read_replica = None;
        }
        match ErrorCode::from_code(answer.error_code) {
            None if answer.diverging_epoch.end_offset >= 0 => {
                return self.log_parted(name, asked, answer.diverging_epoch.end_offset);
            }
            None => {
                if partition.id_verdict == IdVerdict::Refused {
                    partition.id_verdict = IdVerdict::Confirmed;
                }
                partition.not_before = None;
                let aborted = answer.aborted_transactions.unwrap_or_default();
                let aborted = aborted.iter().map(|it| (it.first_offset, it.producer_id.0));
                // A transaction that is open ends what is readable.
                let end = match self.config.isolation {
                    Isolation::ReadUncommitted => answer.high_watermark,
                    Isolation::ReadCommitted => answer.last_stable_offset,
                };
                if end >= 0 {
                    partition.end = Some(end);
                }
                let records = answer.records.unwrap_or_default();
                partition.fetched(asked, records, aborted.collect(), memory);
                let replica = answer.preferred_read_replica.0;
                if replica >= 0 {
                    self.take_read_replica(name, replica, node);
                }
            }
            // A replica may lag behind. The leader knows.
            Some(ErrorCode::OffsetOutOfRange) if !is_leader => {
                partition.not_before = Some(Instant::now() + RETRY_BACKOFF);
            }
            Some(ErrorCode::OffsetOutOfRange) => return self.out_of_range(name, asked),
            Some(code) => {
                if is_leader && topic_id::is_refusal(answer.error_code) {
                    partition.id_verdict = IdVerdict::Refused;
                }
                let leader = &answer.current_leader;
                let (other, epoch) = (leader.leader_id.0, leader.leader_epoch);
                self.cluster
                    .observe_leader(&name.topic, name.partition, other, epoch);
                return self.partition_refused(name, node, ApiKey::Fetch, code);
            }
        }
        Ok(())
    }

    /// The leader's log diverges at `end` from the records fetched before `asked`.
    fn log_parted(&mut self, name: &TopicPartition, asked: i64, end: i64) -> Result<(), Error> {
        self.doubt_id(name);
        let Some(partition) = self.partitions.get_mut(name) else {
            return Ok(());
        };
        if partition.fetch_position() == Some(asked)
            && let Some(position) = partition.position()
            && end < position
        {
            log::warn!(
                "{}: the log of {name} was truncated: {position} is beyond {end}",
                self.name
            );
            if self.config.auto_offset_reset == OffsetReset::Error {
                partition.not_before = Some(Instant::now() + DAMAGE_PAUSE);
                return Err(out_of_range(name));
            }
        }
        // Everything from the divergence on is new.
        partition.diverged(asked, end);
        Ok(())
    }

    fn out_of_range(&mut self, name: &TopicPartition, asked: i64) -> Result<(), Error> {
        self.doubt_id(name);
        let Some(partition) = self.partitions.get_mut(name) else {
            return Ok(());
        };
        // If the position has moved since, the answer is stale.
        if partition.position() == Some(asked) {
            let Some(to) = reset_to(self.config.auto_offset_reset) else {
                partition.not_before = Some(Instant::now() + DAMAGE_PAUSE);
                return Err(out_of_range(name));
            };
            log::warn!("{}: {name} has no offset {asked}, resetting", self.name);
            partition.reset(to);
        } else if partition.fetch_position() == Some(asked) {
            // Records fetched earlier may still be handed out.
            partition.not_before = Some(Instant::now() + RETRY_BACKOFF);
        }
        Ok(())
    }

    /// An unexpected log may belong to another topic. A leader that is not asked by id cannot tell,
    /// but fresh metadata can.
    fn doubt_id(&mut self, name: &TopicPartition) {
        let partition = self.partitions.get(name);
        if partition.is_some_and(|partition| partition.id_verdict == IdVerdict::NotAsked) {
            self.want_metadata();
        }
    }
}

fn out_of_range(name: &TopicPartition) -> Error {
    Error::refused_partition(ApiKey::Fetch, ErrorCode::OffsetOutOfRange, name)
}
