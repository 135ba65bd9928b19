//! Admin client: creates, lists and deletes topics, and reads offsets and lag.

use std::collections::BTreeMap;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::{
    ApiKey, BrokerId, CreateTopicsRequest, DeleteTopicsRequest, FindCoordinatorRequest, GroupId,
    ListOffsetsRequest, OffsetFetchRequest, TopicName,
};
use kafka_protocol::protocol::StrBytes;

use super::cluster::Cluster;
use super::config::Backoff;
use super::connection::Connection;
use super::error::Error;
use super::topic_id::from_commit_metadata;
use tbd_deadline::Deadline;

/// ListOffsets: the offset of the next record.
const LATEST: i64 = -1;
/// ListOffsets: the offset of the oldest record available.
const EARLIEST: i64 = -2;

/// A topic to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// The number of partitions.
    pub partitions: i32,
    /// The number of replicas of each partition.
    pub replication: i16,
}

/// Admin client for one cluster. Every call opens its own connection and retries transient failures
/// with back-off until its deadline. All calls are safe to repeat.
#[derive(Clone, Debug)]
pub struct Admin {
    cluster: Cluster,
}

impl Admin {
    /// Creates an admin client for `cluster`. No I/O.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    /// Creates the missing ones of these topics. An existing topic is left unchanged, even if its
    /// partition count differs.
    ///
    /// # Errors
    /// The error of the first topic that could not be created.
    pub fn create_topics(&self, topics: &[TopicSpec], deadline: Deadline) -> Result<(), Error> {
        let specs = topics.iter().map(|topic| {
            CreatableTopic::default()
                .with_name(topic_name(&topic.name))
                .with_num_partitions(topic.partitions)
                .with_replication_factor(topic.replication)
        });
        let request = CreateTopicsRequest::default().with_topics(specs.collect());
        self.repeat(deadline, || {
            let mut connection = self.cluster.connect_any(deadline)?;
            let request = request.clone().with_timeout_ms(millis(deadline));
            let response = connection.call(&request, deadline)?;
            for topic in &response.topics {
                match ResponseError::try_from_code(topic.error_code) {
                    None | Some(ResponseError::TopicAlreadyExists) => {}
                    Some(code) => {
                        return Err(Error::Topic {
                            topic: topic.name.as_str().into(),
                            api: ApiKey::CreateTopics,
                            code,
                        });
                    }
                }
            }
            Ok(())
        })
    }

    /// Returns those of `topics` that the cluster does not have. Asks once, without retries.
    ///
    /// # Errors
    /// When no broker answered, or the one that did sees no controller. Otherwise the error of the
    /// first topic that it refused to describe.
    pub fn missing_topics<T: AsRef<str>>(
        &self,
        topics: &[T],
        deadline: Deadline,
    ) -> Result<Vec<String>, Error> {
        self.cluster.refresh(topics, deadline)?;
        if self.cluster.controller().is_none() {
            return Err(Error::Broker {
                api: ApiKey::Metadata,
                code: ResponseError::BrokerNotAvailable,
            });
        }
        let mut missing = Vec::new();
        for topic in topics.iter().map(AsRef::as_ref) {
            match self.cluster.topic_error(topic) {
                None => {}
                Some(ResponseError::UnknownTopicOrPartition) => missing.push(topic.to_owned()),
                Some(code) => {
                    return Err(Error::Topic {
                        topic: topic.into(),
                        api: ApiKey::Metadata,
                        code,
                    });
                }
            }
        }
        Ok(missing)
    }

    /// Deletes those of these topics that exist.
    ///
    /// # Errors
    /// The error of the first topic that could not be deleted.
    pub fn delete_topics<T: AsRef<str>>(
        &self,
        topics: &[T],
        deadline: Deadline,
    ) -> Result<(), Error> {
        let names = topics.iter().map(|name| topic_name(name.as_ref()));
        let request = DeleteTopicsRequest::default().with_topic_names(names.collect());
        self.repeat(deadline, || {
            let mut connection = self.cluster.connect_any(deadline)?;
            let request = request.clone().with_timeout_ms(millis(deadline));
            let response = connection.call(&request, deadline)?;
            for topic in &response.responses {
                if ResponseError::try_from_code(topic.error_code)
                    != Some(ResponseError::UnknownTopicOrPartition)
                {
                    Error::check(ApiKey::DeleteTopics, topic.error_code)?;
                }
            }
            Ok(())
        })
    }

    /// Returns the names of all topics except Kafka's internal ones.
    ///
    /// # Errors
    /// When no broker answered in time.
    pub fn list_topics(&self, deadline: Deadline) -> Result<Vec<String>, Error> {
        self.repeat(deadline, || self.cluster.list_topics(deadline))
    }

    /// Returns the current number of partitions of `topic`.
    ///
    /// # Errors
    /// [`Error::Broker`] when it does not exist.
    pub fn partition_count(&self, topic: &str, deadline: Deadline) -> Result<i32, Error> {
        self.repeat(deadline, || {
            self.cluster.refresh(&[topic], deadline)?;
            self.known_partitions(topic)
        })
    }

    /// Returns the offset of the next record, for each partition of `topic` by number.
    ///
    /// # Errors
    /// When a partition's leader did not answer in time.
    pub fn end_offsets(&self, topic: &str, deadline: Deadline) -> Result<Vec<i64>, Error> {
        self.offsets(topic, LATEST, deadline)
    }

    /// Returns the offset of the oldest record that retention has left, for each partition of
    /// `topic` by number. The end offset when there is none.
    ///
    /// # Errors
    /// When a partition's leader did not answer in time.
    pub fn start_offsets(&self, topic: &str, deadline: Deadline) -> Result<Vec<i64>, Error> {
        self.offsets(topic, EARLIEST, deadline)
    }

    fn offsets(&self, topic: &str, which: i64, deadline: Deadline) -> Result<Vec<i64>, Error> {
        self.repeat(deadline, || {
            self.cluster.refresh(&[topic], deadline)?;
            let count = self.known_partitions(topic)?;
            let mut by_leader: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
            for partition in 0..count {
                let (node, _) = self.cluster.leader(topic, partition).ok_or(Error::Broker {
                    api: ApiKey::Metadata,
                    code: ResponseError::LeaderNotAvailable,
                })?;
                by_leader.entry(node).or_default().push(partition);
            }
            let mut offsets = BTreeMap::new();
            for (node, partitions) in by_leader {
                let mut connection = self.cluster.connect(node, deadline)?;
                let answer = offsets_at(&mut connection, topic, &partitions, which, deadline)?;
                offsets.extend(answer);
            }
            (0..count)
                .map(|partition| {
                    offsets.get(&partition).copied().ok_or(Error::Broker {
                        api: ApiKey::ListOffsets,
                        code: ResponseError::UnknownTopicOrPartition,
                    })
                })
                .collect()
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
            for topic in topics {
                let count = self.known_partitions(topic.as_ref())?;
                wanted.push(
                    OffsetFetchRequestTopic::default()
                        .with_name(topic_name(topic.as_ref()))
                        .with_partition_indexes((0..count).collect()),
                );
            }
            let mut connection = self.coordinator(group, deadline)?;
            let request = OffsetFetchRequest::default()
                .with_group_id(group_id(group))
                .with_topics(Some(wanted));
            let response = connection.call(&request, deadline)?;
            Error::check(ApiKey::OffsetFetch, response.error_code)?;
            let mut offsets = BTreeMap::new();
            for topic in &response.topics {
                let current = self.cluster.topic_id(&topic.name);
                for partition in &topic.partitions {
                    Error::check(ApiKey::OffsetFetch, partition.error_code)?;
                    let committed_in = from_commit_metadata(partition.metadata.as_deref());
                    let is_gone = committed_in.is_some_and(|id| current.is_some_and(|it| it != id));
                    if partition.committed_offset >= 0 && !is_gone {
                        let key = (topic.name.to_string(), partition.partition_index);
                        offsets.insert(key, partition.committed_offset);
                    }
                }
            }
            Ok(offsets)
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

    fn coordinator(&self, group: &str, deadline: Deadline) -> Result<Connection, Error> {
        let request = FindCoordinatorRequest::default()
            .with_key(StrBytes::from_string(group.to_owned()))
            .with_key_type(0);
        let mut connection = self.cluster.connect_any(deadline)?;
        let response = connection.call(&request, deadline)?;
        Error::check(ApiKey::FindCoordinator, response.error_code)?;
        self.cluster.connect(response.node_id.0, deadline)
    }

    fn known_partitions(&self, topic: &str) -> Result<i32, Error> {
        let code = self.cluster.topic_error(topic);
        match (self.cluster.partitions(topic), code) {
            (Some(count), None) => Ok(count),
            (_, code) => Err(Error::Broker {
                api: ApiKey::Metadata,
                code: code.unwrap_or(ResponseError::UnknownTopicOrPartition),
            }),
        }
    }

    /// Retries `attempt` until it succeeds, fails permanently, or the deadline leaves no time for
    /// another pause. `attempt` must be safe to repeat.
    pub(super) fn repeat<T>(
        &self,
        deadline: Deadline,
        mut attempt: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let config = self.cluster.config();
        let mut backoff = Backoff::new(config.reconnect_backoff, config.reconnect_backoff_max);
        loop {
            let error = match attempt() {
                Err(error) if error.is_transient() => error,
                other => return other,
            };
            let pause = backoff.next_pause();
            if pause >= deadline.remaining() {
                return Err(error);
            }
            std::thread::sleep(pause);
        }
    }
}

/// Asks one leader for its `partitions`' offsets: (partition, offset).
fn offsets_at(
    connection: &mut Connection,
    topic: &str,
    partitions: &[i32],
    which: i64,
    deadline: Deadline,
) -> Result<Vec<(i32, i64)>, Error> {
    let wanted = partitions.iter().map(|partition| {
        ListOffsetsPartition::default()
            .with_partition_index(*partition)
            .with_current_leader_epoch(-1)
            .with_timestamp(which)
    });
    let request = ListOffsetsRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_topics(vec![
            ListOffsetsTopic::default()
                .with_name(topic_name(topic))
                .with_partitions(wanted.collect()),
        ]);
    let response = connection.call(&request, deadline)?;
    let answers = response.topics.iter().flat_map(|topic| &topic.partitions);
    answers
        .map(|partition| {
            Error::check(ApiKey::ListOffsets, partition.error_code)?;
            Ok((partition.partition_index, partition.offset))
        })
        .collect()
}

pub(super) fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

fn group_id(name: &str) -> GroupId {
    GroupId(StrBytes::from_string(name.to_owned()))
}

/// The time-out for the broker: half of the time left, so that its answer still arrives in time.
fn millis(deadline: Deadline) -> i32 {
    i32::try_from(deadline.remaining().as_millis() / 2).unwrap_or(i32::MAX)
}
