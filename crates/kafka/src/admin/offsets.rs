//! Offsets of partitions, and those that groups have committed.

use std::collections::BTreeMap;

use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::{DeleteRecordsRequest, OffsetCommitResponse, OffsetDeleteRequest};

use super::{Admin, Results, broker_timeout, group_id};
use crate::consumer::{Isolation, list_offsets_request};
use crate::group::coordinator::{self, OffsetToCommit};
use crate::group::machine::Identity;
use crate::group::{TopicPartition, by_topic};
use crate::topic_id::from_commit_metadata;
use crate::{ApiKey, Error, ErrorCode};
use tbd_deadline::Deadline;

/// ListOffsets: the offset of the next record.
const LATEST: i64 = -1;
/// ListOffsets: the offset of the oldest record available.
const EARLIEST: i64 = -2;

/// The first record of a moment or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetAt {
    /// Its offset.
    pub offset: i64,
    /// Its time, in milliseconds since 1970 UTC.
    pub timestamp_ms: i64,
}

impl Admin {
    /// Returns the offset of the next record, for each partition of `topic` by number.
    ///
    /// # Errors
    /// When a partition's leader did not answer in time.
    pub fn end_offsets(&self, topic: &str, deadline: Deadline) -> Result<Vec<i64>, Error> {
        self.topic_offsets(topic, LATEST, deadline)
    }

    /// Returns the offset of the oldest record that retention has left, for each partition of
    /// `topic` by number. The end offset when there is none.
    ///
    /// # Errors
    /// When a partition's leader did not answer in time.
    pub fn start_offsets(&self, topic: &str, deadline: Deadline) -> Result<Vec<i64>, Error> {
        self.topic_offsets(topic, EARLIEST, deadline)
    }

    fn topic_offsets(&self, topic: &str, at: i64, deadline: Deadline) -> Result<Vec<i64>, Error> {
        self.repeat(deadline, || {
            self.cluster.refresh(&[topic], deadline)?;
            let count = self.known_partitions(topic)?;
            let wanted = (0..count).map(|number| (TopicPartition::new(topic, number), at));
            let offsets = self.offsets(&wanted.collect(), deadline)?;
            offsets.into_values().map(|it| Ok(it?.offset)).collect()
        })
    }

    /// Returns the first record at each given moment or later, in milliseconds since 1970 UTC.
    /// `None` when there is none.
    ///
    /// # Errors
    /// When a partition's leader did not answer in time.
    pub fn offsets_for_times(
        &self,
        times: &BTreeMap<TopicPartition, i64>,
        deadline: Deadline,
    ) -> Result<BTreeMap<TopicPartition, Option<OffsetAt>>, Error> {
        let times = times
            .iter()
            .map(|(name, time)| (name.clone(), (*time).max(0)));
        let times: BTreeMap<TopicPartition, i64> = times.collect();
        self.repeat(deadline, || {
            self.refresh_topics(times.keys(), deadline)?;
            let found = self.offsets(&times, deadline)?.into_iter();
            found
                .map(|(name, at)| Ok((name, Some(at?).filter(|at| at.offset >= 0))))
                .collect()
        })
    }

    /// Asks the leaders, once. Every partition has an entry.
    fn offsets(
        &self,
        wanted: &BTreeMap<TopicPartition, i64>,
        deadline: Deadline,
    ) -> Result<Results<TopicPartition, OffsetAt>, Error> {
        let mut results = Results::new();
        for (node, times) in self.by_leader(wanted)? {
            let request = list_offsets_request(times, Isolation::ReadUncommitted);
            let mut connection = self.cluster.connect(node, deadline)?;
            let response = connection.call(&request, deadline)?;
            for topic in &response.topics {
                for entry in &topic.partitions {
                    let name = TopicPartition::new(&*topic.name.0, entry.partition_index);
                    let at = OffsetAt {
                        offset: entry.offset,
                        timestamp_ms: entry.timestamp,
                    };
                    let result = checked(ApiKey::ListOffsets, entry.error_code, &name);
                    results.insert(name, result.map(|()| at));
                }
            }
        }
        Ok(complete(results, wanted.keys(), ApiKey::ListOffsets))
    }

    /// Deletes the records before an offset, in each partition. Returns the oldest offset left.
    ///
    /// # Errors
    /// When a partition has no leader, or a leader did not answer in time.
    pub fn delete_records(
        &self,
        before: &BTreeMap<TopicPartition, i64>,
        deadline: Deadline,
    ) -> Result<BTreeMap<TopicPartition, Result<i64, Error>>, Error> {
        self.repeat_each(deadline, || {
            self.refresh_topics(before.keys(), deadline)?;
            let mut results = Results::new();
            for (node, offsets) in self.by_leader(before)? {
                let topics = by_topic(offsets.into_iter().map(|(name, offset)| {
                    let partition = DeleteRecordsPartition::default()
                        .with_partition_index(name.partition)
                        .with_offset(offset);
                    (name, partition)
                }));
                let topics = topics.map(|(name, partitions)| {
                    DeleteRecordsTopic::default()
                        .with_name(name)
                        .with_partitions(partitions)
                });
                let request = DeleteRecordsRequest::default()
                    .with_topics(topics.collect())
                    .with_timeout_ms(broker_timeout(deadline));
                let mut connection = self.cluster.connect(node, deadline)?;
                let response = connection.call(&request, deadline)?;
                for topic in &response.topics {
                    for entry in &topic.partitions {
                        let name = TopicPartition::new(&*topic.name.0, entry.partition_index);
                        let result = checked(ApiKey::DeleteRecords, entry.error_code, &name);
                        results.insert(name, result.map(|()| entry.low_watermark));
                    }
                }
            }
            Ok(complete(results, before.keys(), ApiKey::DeleteRecords))
        })
    }

    /// Returns the offsets that `group` committed for `topics`: by topic and partition, the next
    /// offset to read. Leaves out partitions without a commit, and commits of a deleted topic that
    /// had the same name.
    ///
    /// # Errors
    /// When the group's coordinator did not answer in time.
    pub fn committed_offsets<T: AsRef<str>>(
        &self,
        group: &str,
        topics: &[T],
        deadline: Deadline,
    ) -> Result<BTreeMap<(String, i32), i64>, Error> {
        self.repeat(deadline, || {
            self.cluster.refresh(topics, deadline)?;
            let mut wanted = Vec::new();
            for topic in topics.iter().map(AsRef::as_ref) {
                let count = self.known_partitions(topic)?;
                wanted.extend((0..count).map(|number| TopicPartition::new(topic, number)));
            }
            let request = coordinator::offset_fetch_request(group, &wanted, false);
            let response = self.ask_coordinator(group, &request, deadline)?;
            Error::check(ApiKey::OffsetFetch, response.error_code)?;
            let mut offsets = BTreeMap::new();
            for topic in &response.topics {
                let current = self.cluster.topic_id(&topic.name);
                for entry in &topic.partitions {
                    let name = TopicPartition::new(&*topic.name.0, entry.partition_index);
                    checked(ApiKey::OffsetFetch, entry.error_code, &name)?;
                    let committed_in = from_commit_metadata(entry.metadata.as_deref());
                    let is_gone = committed_in.is_some_and(|id| current.is_some_and(|it| it != id));
                    if entry.committed_offset >= 0 && !is_gone {
                        let key = (topic.name.to_string(), entry.partition_index);
                        offsets.insert(key, entry.committed_offset);
                    }
                }
            }
            Ok(offsets)
        })
    }

    /// Commits offsets for a group without members: for each partition, the next offset to read.
    ///
    /// # Errors
    /// When the group's coordinator did not answer in time. [`Error::InvalidOffset`]; nothing was
    /// sent. Each partition fails while the group has members.
    pub fn alter_group_offsets(
        &self,
        group: &str,
        offsets: &BTreeMap<TopicPartition, i64>,
        deadline: Deadline,
    ) -> Result<BTreeMap<TopicPartition, Result<(), Error>>, Error> {
        let mut given = offsets.iter();
        given.try_for_each(|(name, offset)| Error::check_offset(name, *offset))?;
        self.repeat_each(deadline, || {
            self.refresh_topics(offsets.keys(), deadline)?;
            let wanted = offsets.iter().map(|(name, offset)| {
                let commit = OffsetToCommit {
                    offset: *offset,
                    leader_epoch: -1,
                    topic_id: self.cluster.topic_id(&name.topic),
                };
                (name.clone(), commit)
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
            Ok(complete(results, offsets.keys(), ApiKey::OffsetCommit))
        })
    }

    /// Deletes a group's committed offsets of these partitions.
    ///
    /// # Errors
    /// When the group's coordinator did not answer in time, or does not know the group. A partition
    /// fails while a member of the group reads its topic.
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
        self.repeat_each(deadline, || {
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
    /// `topics`, even if the group has no members. Without a commit, all available records count.
    ///
    /// # Errors
    /// As [`committed_offsets`](Self::committed_offsets) and [`end_offsets`](Self::end_offsets).
    pub fn lag<T: AsRef<str>>(
        &self,
        group: &str,
        topics: &[T],
        deadline: Deadline,
    ) -> Result<BTreeMap<(String, i32), i64>, Error> {
        // Commits before ends: the result is then never below the lag at the start of the call.
        let committed = self.committed_offsets(group, topics, deadline)?;
        let mut lags = BTreeMap::new();
        for topic in topics.iter().map(AsRef::as_ref) {
            let starts = self.start_offsets(topic, deadline)?;
            let ends = self.end_offsets(topic, deadline)?;
            for (partition, (start, end)) in (0..).zip(starts.into_iter().zip(ends)) {
                let key = (topic.to_owned(), partition);
                let next = committed.get(&key).map_or(start, |next| start.max(*next));
                lags.insert(key, (end - next).max(0));
            }
        }
        Ok(lags)
    }

    fn refresh_topics<'a>(
        &self,
        names: impl IntoIterator<Item = &'a TopicPartition>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let topics: Vec<&str> = names.into_iter().map(|name| &*name.topic).collect();
        self.cluster.refresh(&topics, deadline)
    }

    /// The partitions of each leader, each with its value.
    fn by_leader<'a>(
        &self,
        values: &'a BTreeMap<TopicPartition, i64>,
    ) -> Result<ByLeader<'a>, Error> {
        let mut by_leader = ByLeader::new();
        for (name, value) in values {
            let (node, _) = self
                .cluster
                .leader(&name.topic, name.partition)
                .ok_or_else(|| {
                    Error::refused_partition(ApiKey::Metadata, ErrorCode::LeaderNotAvailable, name)
                })?;
            by_leader.entry(node).or_default().push((name, *value));
        }
        Ok(by_leader)
    }
}

/// By the leader's node id, its partitions and the value of each.
type ByLeader<'a> = BTreeMap<i32, Vec<(&'a TopicPartition, i64)>>;

fn checked(api: ApiKey, code: i16, name: &TopicPartition) -> Result<(), Error> {
    let code = ErrorCode::from_code(code);
    code.map_or(Ok(()), |code| {
        Err(Error::refused_partition(api, code, name))
    })
}

/// Adds an error for each partition that the brokers passed over.
fn complete<'a, T>(
    mut results: Results<TopicPartition, T>,
    wanted: impl IntoIterator<Item = &'a TopicPartition>,
    api: ApiKey,
) -> Results<TopicPartition, T> {
    for name in wanted {
        let missing = || {
            let code = ErrorCode::UnknownTopicOrPartition;
            Err(Error::refused_partition(api, code, name))
        };
        results.entry(name.clone()).or_insert_with(missing);
    }
    results
}
