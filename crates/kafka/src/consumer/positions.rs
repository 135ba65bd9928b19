//! Start positions: the committed offset, the reset policy, or the start of a topic that replaced a
//! deleted one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{
    BrokerId, ListOffsetsRequest, ListOffsetsResponse, OffsetFetchResponse,
};
use uuid::Uuid;

use super::fetch::Asked;
use super::partitions::{IdVerdict, Lookup, Partition, ResetTo};
use super::reading::Reading;
use super::{GroupProtocol, Isolation, OffsetReset, RETRY_BACKOFF};
use crate::error::ConfigError;
use crate::group::coordinator;
use crate::group::ladder::Reaction;
use crate::group::{OffsetAndMetadata, TopicPartition, by_topic};
use crate::{ApiKey, Error, ErrorCode, topic_id};
use tbd_deadline::Deadline;

/// The earlier of two moments; `None` means never.
pub(super) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

impl Reading {
    /// Refreshes metadata and restarts partitions of replaced topics. Returns the partitions whose
    /// committed offset must be asked for, and when to look again.
    pub(super) fn advance_positions(
        &mut self,
        deadline: Deadline,
    ) -> Result<(Vec<TopicPartition>, Option<Instant>), Error> {
        self.refresh_metadata(deadline)?;
        self.restart_replaced()?;
        let now = Instant::now();
        // Topics may appear, grow or move although no answer says so.
        let mut look_again = Some(self.metadata_not_before);
        let mut unknown = Vec::new();
        for (name, partition) in &mut self.partitions {
            if partition.topic_id.is_none() {
                partition.topic_id = self.cluster.topic_id(&name.topic);
            }
            if partition.lookup == Some(Lookup::Committed) {
                match partition.not_before.filter(|&until| until > now) {
                    Some(until) => look_again = earlier(look_again, Some(until)),
                    None => unknown.push(name.clone()),
                }
            }
        }
        Ok((unknown, look_again))
    }

    /// As [`Reading::advance_positions`], for a consumer without a membership. Asks for committed
    /// offsets, too, and waits for them as for any blocking exchange of a poll.
    pub(super) fn advance_alone(&mut self, deadline: Deadline) -> Result<Option<Instant>, Error> {
        let (unknown, look_again) = self.advance_positions(deadline)?;
        if unknown.is_empty() {
            return Ok(look_again);
        }
        let group_id = self.config.group_id.clone();
        ConfigError::check(
            !group_id.is_empty(),
            "ConsumerConfig::group_id",
            "it is empty, so that there are no committed offsets",
        )?;
        let request = coordinator::offset_fetch_request(&group_id, Some(&unknown), true);
        let step = self.step_deadline(deadline);
        match coordinator::ask(&self.cluster, &group_id, &request, step) {
            Ok(answer) => self.committed_answer(&answer, |code| {
                let error = Error::refused(ApiKey::OffsetFetch, code);
                match error.is_transient() {
                    true => Reaction::Retry,
                    false => Reaction::Report,
                }
            })?,
            Err(error) => {
                let later = Some(Instant::now() + RETRY_BACKOFF);
                for name in &unknown {
                    if let Some(partition) = self.partitions.get_mut(name) {
                        partition.not_before = later;
                    }
                }
                self.last_error = Some(error);
            }
        }
        let retries = self.partitions.values().filter_map(|it| it.not_before);
        Ok(earlier(look_again, retries.min()))
    }

    /// Restarts partitions whose topic was deleted while another one has its name. They begin in
    /// the new topic where the reset policy says. Records fetched from the old topic are handed out
    /// first.
    fn restart_replaced(&mut self) -> Result<(), Error> {
        // The cached metadata may be older than the leader's refusal.
        if self.metadata_due().is_some() {
            return Ok(());
        }
        let mut replaced: BTreeMap<(Arc<str>, Uuid, Uuid), Vec<TopicPartition>> = BTreeMap::new();
        for (name, partition) in &self.partitions {
            let is_due = partition.id_verdict == IdVerdict::NotAsked || partition.is_drained();
            if let Some((old, new)) = self.replacement(name, partition).filter(|_| is_due) {
                let of_topic = replaced.entry((Arc::clone(&name.topic), old, new));
                of_topic.or_default().push(name.clone());
            }
        }
        for ((topic, old, new), partitions) in replaced {
            let error = topic_id::replaced(&topic, old, new);
            let policy = self.config.auto_offset_reset;
            let to = reset_to(policy).ok_or_else(|| error.clone())?;
            log::warn!(
                "{}: {error}; {} partitions begin again with {policy:?}",
                self.name,
                partitions.len()
            );
            for name in &partitions {
                if let Some(partition) = self.partitions.get_mut(name) {
                    partition.restart(new);
                    if to == ResetTo::Latest {
                        partition.reset(to);
                    }
                }
            }
            self.call_hook(|hooks| hooks.topic_replaced(&partitions));
        }
        Ok(())
    }

    /// The id of the partition's topic and the id of the topic that has its name now, if the leader
    /// does not have the former. Metadata alone proves nothing: a broker that lags behind may still
    /// name an old id.
    fn replacement(&self, name: &TopicPartition, partition: &Partition) -> Option<(Uuid, Uuid)> {
        if partition.id_verdict == IdVerdict::Confirmed {
            return None;
        }
        let new = match self.config.group_protocol {
            GroupProtocol::Classic => self.cluster.topic_id(&name.topic),
            // The coordinator may assign the new topic's partitions to other members.
            GroupProtocol::Consumer => partition.assigned_id,
        };
        let (old, new) = (partition.topic_id?, new?);
        (old != new).then_some((old, new))
    }

    /// An application that seeks means the topic that has the name now.
    pub(super) fn prepare_seek(&mut self, name: &TopicPartition) {
        let found = self.partitions.get(name);
        let replacement = found.and_then(|partition| self.replacement(name, partition));
        if let (Some((_, new)), Some(partition)) = (replacement, self.partitions.get_mut(name)) {
            partition.restart(new);
        }
    }

    /// Takes the committed offsets from an answer. `judge` gives the membership's reaction to an
    /// error code.
    pub(super) fn committed_answer(
        &mut self,
        answer: &OffsetFetchResponse,
        judge: impl Fn(ErrorCode) -> Reaction,
    ) -> Result<(), Error> {
        let api = ApiKey::OffsetFetch;
        let mut refused = |error: Error, code| match judge(code) {
            Reaction::Report => Err(error),
            _ => {
                self.last_error = Some(error);
                Ok(())
            }
        };
        if let Some(code) = ErrorCode::from_code(answer.error_code) {
            return refused(Error::refused(api, code), code);
        }
        for topic in &answer.topics {
            for entry in &topic.partitions {
                let name = TopicPartition::new(&*topic.name.0, entry.partition_index);
                if let Some(code) = ErrorCode::from_code(entry.error_code) {
                    refused(Error::refused_partition(api, code, &name), code)?;
                    continue;
                }
                let Some(partition) = self.partitions.get_mut(&name) else {
                    continue;
                };
                if partition.lookup != Some(Lookup::Committed) {
                    continue;
                }
                if entry.committed_offset >= 0 {
                    // The offset belongs to this topic, even if another one has the name now. If
                    // the topic is gone, its leader refuses the fetch.
                    let id = topic_id::from_commit_metadata(entry.metadata.as_deref());
                    partition.topic_id = id.or(partition.topic_id);
                    partition.start_committed(OffsetAndMetadata {
                        offset: entry.committed_offset,
                        leader_epoch: entry.committed_leader_epoch,
                        metadata: topic_id::foreign_metadata(entry.metadata.as_deref()),
                    });
                } else if !partition.begin_again() {
                    // Nothing is committed yet.
                    let to = reset_to(self.config.auto_offset_reset).ok_or_else(|| {
                        Error::refused_partition(api, ErrorCode::OffsetOutOfRange, &name)
                    })?;
                    partition.reset(to);
                }
            }
        }
        // Partitions missing from the answer are asked about again after a pause.
        let later = Instant::now() + RETRY_BACKOFF;
        for partition in self.partitions.values_mut() {
            if partition.lookup == Some(Lookup::Committed) {
                partition.not_before = Some(later);
            }
        }
        Ok(())
    }

    pub(super) fn offsets_listed(
        &mut self,
        node: i32,
        answer: &ListOffsetsResponse,
        resets: &BTreeMap<TopicPartition, Asked<ResetTo>>,
    ) -> Result<(), Error> {
        let mut result = Ok(());
        for topic in &answer.topics {
            for entry in &topic.partitions {
                let name = TopicPartition::new(&*topic.name.0, entry.partition_index);
                let Some(asked) = resets.get(&name) else {
                    continue;
                };
                if let Some(code) = ErrorCode::from_code(entry.error_code) {
                    let api = ApiKey::ListOffsets;
                    if let Err(error) = self.partition_refused(&name, node, api, code) {
                        result = Err(error);
                    }
                    continue;
                }
                if let Some(partition) = self.partitions.get_mut(&name)
                    && partition.waits_for(asked)
                {
                    match (asked.what, entry.offset) {
                        // There is no record of that time or later.
                        (ResetTo::Timestamp(_), ..0) => partition.reset(ResetTo::Latest),
                        (_, offset) => partition.found(offset.max(0)),
                    }
                }
            }
        }
        // Partitions missing from the answer are asked about again after a pause.
        let later = Some(Instant::now() + RETRY_BACKOFF);
        for (name, asked) in resets {
            if let Some(partition) = self.partitions.get_mut(name)
                && partition.waits_for(asked)
            {
                partition.not_before = partition.not_before.max(later);
            }
        }
        result
    }
}

pub(super) fn reset_to(policy: OffsetReset) -> Option<ResetTo> {
    match policy {
        OffsetReset::Earliest => Some(ResetTo::Earliest),
        OffsetReset::Latest => Some(ResetTo::Latest),
        OffsetReset::Error => None,
    }
}

/// ListOffsets: for each partition a moment, or one of ListOffsets' two negative numbers.
pub(crate) fn list_offsets_request<'a>(
    times: impl IntoIterator<Item = (&'a TopicPartition, i64)>,
    isolation: Isolation,
) -> ListOffsetsRequest {
    let topics = by_topic(times.into_iter().map(|(name, timestamp)| {
        let partition = ListOffsetsPartition::default()
            .with_partition_index(name.partition)
            .with_timestamp(timestamp);
        (name, partition)
    }));
    let topics = topics.map(|(name, partitions)| {
        ListOffsetsTopic::default()
            .with_name(name)
            .with_partitions(partitions)
    });
    ListOffsetsRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_isolation_level(isolation.level())
        .with_topics(topics.collect())
}
