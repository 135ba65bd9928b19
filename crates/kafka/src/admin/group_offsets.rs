//! Offsets that groups have committed, and their lag.

use std::collections::{BTreeMap, BTreeSet};

use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::{OffsetCommitResponse, OffsetDeleteRequest};

use super::offsets::{EARLIEST, LATEST, checked, complete};
use super::{Admin, Results, group_id};
use crate::group::coordinator::{self, OffsetToCommit};
use crate::group::machine::Identity;
use crate::group::{OffsetAndMetadata, TopicPartition, by_topic};
use crate::topic_id::{foreign_metadata, from_commit_metadata};
use crate::{ApiKey, Error};
use tbd_deadline::Deadline;

impl Admin {
    /// Returns all offsets that `group` has committed (Java: `listConsumerGroupOffsets`). Leaves out
    /// topics that the client may not describe, and commits of a deleted topic if another one has
    /// its name.
    ///
    /// # Errors
    /// When the group's coordinator did not answer in time.
    #[doc(alias = "listConsumerGroupOffsets")]
    pub fn committed_offsets(
        &self,
        group: &str,
        deadline: Deadline,
    ) -> Result<BTreeMap<TopicPartition, Result<OffsetAndMetadata, Error>>, Error> {
        let found = self.repeat(deadline, || self.committed(group, None, deadline))?;
        let found = found.into_iter();
        Ok(found
            .filter_map(|(name, result)| Some((name, result.transpose()?)))
            .collect())
    }

    /// Asks once for the offsets of these partitions, or for all. `None` where nothing is
    /// committed.
    fn committed(
        &self,
        group: &str,
        partitions: Option<&BTreeSet<TopicPartition>>,
        deadline: Deadline,
    ) -> Result<Results<TopicPartition, Option<OffsetAndMetadata>>, Error> {
        let request = coordinator::offset_fetch_request(group, partitions, false);
        let response = self.ask_coordinator(group, &request, deadline)?;
        Error::check(ApiKey::OffsetFetch, response.error_code)?;
        let topics: Vec<&str> = response.topics.iter().map(|topic| &**topic.name).collect();
        // The topics' ids tell which of the offsets are of a deleted topic.
        self.cluster.refresh(&topics, deadline)?;
        let mut results = Results::new();
        for topic in &response.topics {
            let current = self.cluster.topic_id(&topic.name);
            for entry in &topic.partitions {
                let name = TopicPartition::new(&*topic.name.0, entry.partition_index);
                let metadata = entry.metadata.as_deref();
                let committed_in = from_commit_metadata(metadata);
                let is_gone = committed_in.is_some_and(|id| current.is_some_and(|it| it != id));
                let found = (entry.committed_offset >= 0 && !is_gone).then(|| OffsetAndMetadata {
                    offset: entry.committed_offset,
                    leader_epoch: entry.committed_leader_epoch,
                    metadata: foreign_metadata(metadata),
                });
                let result = checked(ApiKey::OffsetFetch, entry.error_code, &name);
                results.insert(name, result.map(|()| found));
            }
        }
        let wanted = partitions.into_iter().flatten();
        Ok(complete(results, wanted, ApiKey::OffsetFetch))
    }

    /// Commits offsets for a group without members (Java: `alterConsumerGroupOffsets`): for each
    /// partition the next offset to read, an `i64` or an [`OffsetAndMetadata`]. Metadata that the
    /// group has are replaced.
    ///
    /// # Errors
    /// When the group's coordinator did not answer in time. [`Error::InvalidOffset`]; nothing was
    /// sent. Each partition fails while the group has members.
    #[doc(alias = "alterConsumerGroupOffsets")]
    pub fn alter_group_offsets<T: Into<OffsetAndMetadata> + Clone>(
        &self,
        group: &str,
        offsets: &BTreeMap<TopicPartition, T>,
        deadline: Deadline,
    ) -> Result<BTreeMap<TopicPartition, Result<(), Error>>, Error> {
        let offsets: BTreeMap<_, OffsetAndMetadata> = offsets
            .iter()
            .map(|(name, offset)| (name, offset.clone().into()))
            .collect();
        let mut given = offsets.iter();
        given.try_for_each(|(name, wanted)| Error::check_offset(name, wanted.offset))?;
        self.repeat_each(deadline, offsets.keys().map(|name| (*name).clone()), |_| {
            self.refresh_topics(offsets.keys().copied(), deadline)?;
            let wanted = offsets.iter().map(|(name, wanted)| {
                let wanted = wanted.clone();
                let commit = OffsetToCommit {
                    offset: wanted.offset,
                    leader_epoch: wanted.leader_epoch,
                    topic_id: self.cluster.topic_id(&name.topic),
                    metadata: wanted.metadata.filter(|text| !text.is_empty()),
                };
                ((*name).clone(), commit)
            });
            let nobody = Identity::nobody();
            let request = coordinator::commit_request(group, None, &nobody, &wanted.collect());
            let response: OffsetCommitResponse = self.ask_coordinator(group, &request, deadline)?;
            let mut results = Results::new();
            for topic in &response.topics {
                for entry in &topic.partitions {
                    let name = TopicPartition::new(&*topic.name.0, entry.partition_index);
                    let result = checked(ApiKey::OffsetCommit, entry.error_code, &name);
                    results.insert(name, result);
                }
            }
            Ok(complete(
                results,
                offsets.keys().copied(),
                ApiKey::OffsetCommit,
            ))
        })
    }

    /// Deletes a group's committed offsets of these partitions (Java:
    /// `deleteConsumerGroupOffsets`).
    ///
    /// # Errors
    /// When the group's coordinator did not answer in time, or does not know the group. A partition
    /// fails while a member of the group reads its topic.
    #[doc(alias = "deleteConsumerGroupOffsets")]
    pub fn delete_group_offsets(
        &self,
        group: &str,
        partitions: &[TopicPartition],
        deadline: Deadline,
    ) -> Result<BTreeMap<TopicPartition, Result<(), Error>>, Error> {
        let topics = by_topic(partitions.iter().map(|name| {
            let partition =
                OffsetDeleteRequestPartition::default().with_partition_index(name.partition);
            (name, partition)
        }));
        let topics = topics.map(|(name, partitions)| {
            OffsetDeleteRequestTopic::default()
                .with_name(name)
                .with_partitions(partitions)
        });
        let request = OffsetDeleteRequest::default()
            .with_group_id(group_id(group))
            .with_topics(topics.collect());
        self.repeat_each(deadline, partitions.iter().cloned(), |_| {
            let response = self.ask_coordinator(group, &request, deadline)?;
            Error::check(ApiKey::OffsetDelete, response.error_code)?;
            let mut results = Results::new();
            for topic in &response.topics {
                for entry in &topic.partitions {
                    let name = TopicPartition::new(&*topic.name.0, entry.partition_index);
                    let result = checked(ApiKey::OffsetDelete, entry.error_code, &name);
                    results.insert(name, result);
                }
            }
            Ok(complete(results, partitions, ApiKey::OffsetDelete))
        })
    }

    /// Returns the number of records that the group has not committed, for every partition of
    /// `topic`, even if the group has no members. Without a commit, all available records count.
    ///
    /// The end is that of the log, as in `kafka-consumer-groups.sh`: records of an open transaction
    /// count, although a consumer with
    /// [`ReadCommitted`](crate::consumer::Isolation::ReadCommitted) cannot read them yet.
    ///
    /// # Errors
    /// When the topic does not exist, or the group's coordinator did not answer in time. A partition
    /// fails if its leader did not answer.
    #[doc(alias = "kafka-consumer-groups")]
    pub fn lag(
        &self,
        group: &str,
        topic: &str,
        deadline: Deadline,
    ) -> Result<BTreeMap<TopicPartition, Result<i64, Error>>, Error> {
        let mut lags: Results<TopicPartition, i64> = Results::new();
        let attempt = || {
            // Counted in each attempt, as for the ends of a topic.
            self.cluster.refresh(&[topic], deadline)?;
            let count = self.known_partitions(topic)?;
            lags.retain(|name, _| name.partition < count);
            let names = (0..count).map(|number| TopicPartition::new(topic, number));
            let left = names.filter(|name| !matches!(lags.get(name), Some(Ok(_))));
            lags.extend(self.lag_once(group, &left.collect(), deadline)?);
            let mut failures = lags.values().filter_map(|lag| lag.as_ref().err());
            Ok(!failures.any(Error::is_transient_for_nobody))
        };
        match self.repeat_until(deadline, |is_done| *is_done, attempt) {
            Err(error) if lags.is_empty() => Err(error),
            _ => Ok(lags),
        }
    }

    fn lag_once(
        &self,
        group: &str,
        partitions: &BTreeSet<TopicPartition>,
        deadline: Deadline,
    ) -> Result<Results<TopicPartition, i64>, Error> {
        // Commits before ends: the result is then never below the lag at the start of the call.
        let committed = self.committed(group, Some(partitions), deadline)?;
        let half = Deadline::after(deadline.remaining() / 2);
        let at = |moment| {
            let wanted = partitions.iter().map(|name| (name.clone(), moment));
            wanted.collect()
        };
        let mut starts = self.offsets(&at(EARLIEST), half);
        let ends = self.offsets(&at(LATEST), deadline);
        let lags = ends.into_iter().filter_map(|(name, end)| {
            let start = starts.remove(&name)?;
            let lag = lag_of(committed.get(&name)?, start, end);
            Some((name, lag))
        });
        Ok(lags.collect())
    }
}

/// The lag of one partition.
fn lag_of(
    committed: &Result<Option<OffsetAndMetadata>, Error>,
    start: Result<super::OffsetAt, Error>,
    end: Result<super::OffsetAt, Error>,
) -> Result<i64, Error> {
    let (start, end) = (start?.offset, end?.offset);
    let committed = committed.as_ref().map_err(Clone::clone)?;
    let next = committed.as_ref().map_or(start, |it| it.offset.max(start));
    Ok((end - next).max(0))
}
