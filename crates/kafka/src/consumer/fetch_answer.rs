//! Fetch answers: records, resets and errors for each partition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{ApiKey, FetchResponse};

use super::fetch::{Asked, DAMAGE_PAUSE};
use super::partitions::{AnswerBytes, IdVerdict};
use super::positions::reset_to;
use super::{Consumer, OffsetReset, RETRY_BACKOFF};
use crate::group::TopicPartition;
use crate::{Error, topic_id};

/// The error code for a position outside the log.
const OFFSET_OUT_OF_RANGE: i16 = 1;

/// The position asked for in each partition.
type Positions = BTreeMap<TopicPartition, Asked<i64>>;

impl Consumer {
    pub(super) fn fetched(
        &mut self,
        answer: FetchResponse,
        asked: &Positions,
    ) -> Result<(), Error> {
        if let Err(error) = Error::check(ApiKey::Fetch, answer.error_code) {
            let later = Some(Instant::now() + RETRY_BACKOFF);
            for name in asked.keys() {
                if let Some(partition) = self.partitions.get_mut(name) {
                    partition.not_before = later;
                }
            }
            self.last_error = Some(error);
            return Ok(());
        }
        let answers = answer.responses.iter().flat_map(|topic| &topic.partitions);
        let bytes = answers.map(|answer| answer.records.as_ref().map_or(0, Bytes::len));
        let memory = AnswerBytes::new(bytes.sum());
        self.answers.push(Arc::downgrade(&memory));
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
                let partition = self.partitions.get(&name);
                if partition.is_none_or(|partition| partition.topic_id != asked.topic_id) {
                    continue;
                }
                has_failed |= !matches!(answer.error_code, 0 | OFFSET_OUT_OF_RANGE);
                if let Err(error) = self.partition_answer(&name, asked.what, answer, &memory) {
                    result = Err(error);
                }
            }
        }
        if !has_failed && result.is_ok() {
            self.last_error = None;
        }
        result
    }

    fn partition_answer(
        &mut self,
        name: &TopicPartition,
        asked: i64,
        answer: PartitionData,
        memory: &AnswerBytes,
    ) -> Result<(), Error> {
        let Some(partition) = self.partitions.get_mut(name) else {
            return Ok(());
        };
        match ResponseError::try_from_code(answer.error_code) {
            None if answer.diverging_epoch.end_offset >= 0 => {
                return self.log_parted(name, asked, answer.diverging_epoch.end_offset);
            }
            None => {
                if partition.id_verdict == IdVerdict::Refused {
                    partition.id_verdict = IdVerdict::Confirmed;
                }
                partition.not_before = None;
                if answer.high_watermark >= 0 {
                    partition.high_watermark = Some(answer.high_watermark);
                }
                let records = answer.records.unwrap_or_default();
                partition.fetched(asked, records, memory);
            }
            Some(ResponseError::OffsetOutOfRange) => return self.out_of_range(name, asked),
            Some(code) => {
                if topic_id::is_refusal(answer.error_code) {
                    partition.id_verdict = IdVerdict::Refused;
                }
                let leader = &answer.current_leader;
                let (node, epoch) = (leader.leader_id.0, leader.leader_epoch);
                self.cluster
                    .observe_leader(&name.topic, name.partition, node, epoch);
                return self.partition_refused(name, ApiKey::Fetch, code);
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
                "consumer group {}: the log of {name} was cut short, {position} is beyond {end}",
                self.config.group_id
            );
            if self.config.auto_offset_reset == OffsetReset::Error {
                partition.not_before = Some(Instant::now() + DAMAGE_PAUSE);
                return Error::check(ApiKey::Fetch, OFFSET_OUT_OF_RANGE);
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
                return Error::check(ApiKey::Fetch, OFFSET_OUT_OF_RANGE);
            };
            log::warn!(
                "consumer group {}: {name} has no offset {asked}, resetting",
                self.config.group_id
            );
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

    /// A leader refused one partition. Most such errors are transient.
    pub(super) fn partition_refused(
        &mut self,
        name: &TopicPartition,
        api: ApiKey,
        code: ResponseError,
    ) -> Result<(), Error> {
        let error = Error::Broker { api, code };
        let is_passing = code.is_retriable() || code == ResponseError::UnknownServerError;
        let pause = match code {
            ResponseError::UnknownServerError | ResponseError::CorruptMessage => DAMAGE_PAUSE,
            _ => RETRY_BACKOFF,
        };
        if let Some(partition) = self.partitions.get_mut(name) {
            partition.not_before =
                Some(Instant::now() + if is_passing { pause } else { DAMAGE_PAUSE });
        }
        log::debug!("consumer group {}: {name}: {error}", self.config.group_id);
        if !is_passing {
            return Err(error);
        }
        self.want_metadata();
        self.last_error = Some(error);
        Ok(())
    }
}
