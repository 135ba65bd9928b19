//! Start positions: the committed offset, the reset policy, or the start of a topic that replaced a
//! deleted one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{
    ApiKey, BrokerId, ListOffsetsRequest, ListOffsetsResponse, OffsetFetchResponse,
};
use uuid::Uuid;

use super::fetch::Asked;
use super::partitions::{IdVerdict, Lookup, Partition, ResetTo};
use super::{Consumer, GroupProtocol, OffsetReset, RETRY_BACKOFF};
use crate::group::TopicPartition;
use crate::group::coordinator::topic_name;
use crate::group::ladder::Reaction;
use crate::group::machine::{Failure, Identity};
use crate::{Error, topic_id};
use tbd_deadline::Deadline;

/// The earlier of two moments; `None` means never.
pub(super) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

impl Consumer {
    /// Looks up unknown positions: committed offsets from the coordinator, resets from the leaders.
    /// Returns when to look again.
    pub(super) fn advance_positions(
        &mut self,
        deadline: Deadline,
    ) -> Result<Option<Instant>, Error> {
        self.refresh_metadata(deadline);
        self.restart_replaced()?;
        let now = Instant::now();
        let mut look_again = None;
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
        if !unknown.is_empty() && !self.coordinator.is_busy() {
            self.ask_committed(&unknown, deadline);
        }
        Ok(look_again)
    }

    /// Restarts partitions whose topic was deleted while another one has its name. They begin in
    /// the new topic where the reset policy says. Records fetched from the old topic are handed out
    /// first.
    fn restart_replaced(&mut self) -> Result<(), Error> {
        // The cached metadata may be older than the leader's refusal.
        if self.metadata_wanted {
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
                "consumer group {}: {error}; {} partitions begin again with {policy:?}",
                self.config.group_id,
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
            self.hooks.topic_replaced(&partitions);
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

    /// Takes the committed offsets from an answer.
    pub(super) fn committed_answer(
        &mut self,
        answer: &OffsetFetchResponse,
        identity: &Identity,
    ) -> Result<(), Error> {
        let refused = |code| Error::Broker {
            api: ApiKey::OffsetFetch,
            code,
        };
        if let Some(code) = ResponseError::try_from_code(answer.error_code) {
            return self.committed_refused(code, identity);
        }
        for topic in &answer.topics {
            for entry in &topic.partitions {
                if let Some(code) = ResponseError::try_from_code(entry.error_code) {
                    self.committed_refused(code, identity)?;
                    continue;
                }
                let name = TopicPartition::new(&*topic.name.0, entry.partition_index);
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
                    partition.start_committed(entry.committed_offset, entry.committed_leader_epoch);
                } else {
                    // Nothing is committed yet.
                    let to = reset_to(self.config.auto_offset_reset)
                        .ok_or_else(|| refused(ResponseError::OffsetOutOfRange))?;
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

    fn committed_refused(&mut self, code: ResponseError, identity: &Identity) -> Result<(), Error> {
        let verdict = self.shared.machine().offset_fetch_failed(
            identity,
            Failure::Code(code),
            Instant::now(),
        );
        let error = Error::Broker {
            api: ApiKey::OffsetFetch,
            code,
        };
        if verdict == Reaction::Report {
            return Err(error);
        }
        self.last_error = Some(error);
        Ok(())
    }

    pub(super) fn offsets_listed(
        &mut self,
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
                if let Some(code) = ResponseError::try_from_code(entry.error_code) {
                    if let Err(error) = self.partition_refused(&name, ApiKey::ListOffsets, code) {
                        result = Err(error);
                    }
                    continue;
                }
                if let Some(partition) = self.partitions.get_mut(&name)
                    && partition.waits_for(asked)
                {
                    partition.start_at(entry.offset.max(0));
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

pub(super) fn list_offsets_request(
    resets: &BTreeMap<TopicPartition, Asked<ResetTo>>,
) -> ListOffsetsRequest {
    let mut topics: BTreeMap<&str, Vec<ListOffsetsPartition>> = BTreeMap::new();
    for (name, asked) in resets {
        let timestamp = match asked.what {
            ResetTo::Earliest => -2,
            ResetTo::Latest => -1,
        };
        topics.entry(&name.topic).or_default().push(
            ListOffsetsPartition::default()
                .with_partition_index(name.partition)
                .with_timestamp(timestamp),
        );
    }
    let topics = topics.into_iter().map(|(topic, partitions)| {
        ListOffsetsTopic::default()
            .with_name(topic_name(topic))
            .with_partitions(partitions)
    });
    ListOffsetsRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_topics(topics.collect())
}
