//! Offsets of partitions: ends, moments, the deletion of old records.

use std::collections::BTreeMap;

use kafka_protocol::messages::DeleteRecordsRequest;
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};

use super::{Admin, Results, all, broker_timeout, each};
use crate::connection::Connection;
use crate::consumer::{Isolation, list_offsets_request};
use crate::group::{TopicPartition, by_topic};
use crate::{ApiKey, Error, ErrorCode};
use tbd_deadline::Deadline;

/// ListOffsets: the offset of the next record.
pub(super) const LATEST: i64 = -1;
/// ListOffsets: the offset of the oldest record available.
pub(super) const EARLIEST: i64 = -2;

/// The first record of a moment or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OffsetAt {
    /// Its offset.
    pub offset: i64,
    /// Its time, in milliseconds since 1970 UTC.
    pub timestamp_ms: i64,
}

impl OffsetAt {
    /// Whether there is such a record.
    fn is_any(&self) -> bool {
        self.offset >= 0
    }
}

impl Admin {
    /// Returns the offset of the next record, for each partition of `topic` by number.
    ///
    /// # Errors
    /// When a partition's leader did not answer in time.
    #[doc(alias = "listOffsets")]
    #[doc(alias = "endOffsets")]
    pub fn end_offsets(&self, topic: &str, deadline: Deadline) -> Result<Vec<i64>, Error> {
        self.topic_offsets(topic, LATEST, deadline)
    }

    /// Returns the offset of the oldest record that retention has left, for each partition of
    /// `topic` by number. The end offset when there is none.
    ///
    /// # Errors
    /// When a partition's leader did not answer in time.
    #[doc(alias = "listOffsets")]
    #[doc(alias = "beginningOffsets")]
    pub fn start_offsets(&self, topic: &str, deadline: Deadline) -> Result<Vec<i64>, Error> {
        self.topic_offsets(topic, EARLIEST, deadline)
    }

    fn topic_offsets(&self, topic: &str, at: i64, deadline: Deadline) -> Result<Vec<i64>, Error> {
        // Counted in each attempt: a broker that lags behind may first describe a topic that was deleted and
        // created again, with partitions that never come back.
        self.repeat(deadline, || {
            self.cluster.refresh(&[topic], deadline)?;
            let count = self.known_partitions(topic)?;
            let wanted = (0..count).map(|number| (TopicPartition::new(topic, number), at));
            let found = all(self.offsets(&wanted.collect(), deadline))?.into_values();
            Ok(found.map(|at| at.offset).collect())
        })
    }

    /// Returns the first record at each given moment or later, in milliseconds since 1970 UTC.
    /// `None` when there is none.
    ///
    /// # Errors
    /// When no broker answered in time. A partition fails if it does not exist, or its leader did
    /// not answer.
    #[doc(alias = "listOffsets")]
    #[doc(alias = "offsetsForTimes")]
    pub fn offsets_for_times(
        &self,
        times: &BTreeMap<TopicPartition, i64>,
        deadline: Deadline,
    ) -> Result<BTreeMap<TopicPartition, Result<Option<OffsetAt>, Error>>, Error> {
        self.repeat_each(deadline, times.keys().cloned(), |left| {
            self.refresh_topics(left, deadline)?;
            let wanted = left.iter().map(|name| (name.clone(), times[name].max(0)));
            let found = self.offsets(&wanted.collect(), deadline).into_iter();
            let found =
                found.map(|(name, at)| (name, at.map(|at| Some(at).filter(OffsetAt::is_any))));
            Ok(found.collect())
        })
    }

    /// Asks the leaders, once. Every partition has a result.
    pub(super) fn offsets(
        &self,
        wanted: &BTreeMap<TopicPartition, i64>,
        deadline: Deadline,
    ) -> Results<TopicPartition, OffsetAt> {
        let api = ApiKey::ListOffsets;
        self.ask_leaders(api, wanted, deadline, |connection, times, share| {
            let request = list_offsets_request(times.iter().copied(), Isolation::ReadUncommitted);
            let response = connection.call(&request, share)?;
            let mut results = Results::new();
            for topic in &response.topics {
                for entry in &topic.partitions {
                    let name = TopicPartition::new(&*topic.name.0, entry.partition_index);
                    let at = OffsetAt {
                        offset: entry.offset,
                        timestamp_ms: entry.timestamp,
                    };
                    let result = checked(api, entry.error_code, &name);
                    results.insert(name, result.map(|()| at));
                }
            }
            Ok(results)
        })
    }

    /// Deletes the records before an offset, in each partition. Returns the oldest offset left.
    ///
    /// # Errors
    /// When no broker answered in time. A partition fails if it does not exist, or its leader did
    /// not answer.
    #[doc(alias = "deleteRecords")]
    pub fn delete_records(
        &self,
        before: &BTreeMap<TopicPartition, i64>,
        deadline: Deadline,
    ) -> Result<BTreeMap<TopicPartition, Result<i64, Error>>, Error> {
        self.repeat_each(deadline, before.keys().cloned(), |left| {
            self.refresh_topics(left, deadline)?;
            let wanted = left.iter().map(|name| (name.clone(), before[name]));
            Ok(self.delete_records_once(&wanted.collect(), deadline))
        })
    }

    fn delete_records_once(
        &self,
        before: &BTreeMap<TopicPartition, i64>,
        deadline: Deadline,
    ) -> Results<TopicPartition, i64> {
        let api = ApiKey::DeleteRecords;
        self.ask_leaders(api, before, deadline, |connection, offsets, share| {
            let topics = by_topic(offsets.iter().map(|(name, offset)| {
                let partition = DeleteRecordsPartition::default()
                    .with_partition_index(name.partition)
                    .with_offset(*offset);
                (*name, partition)
            }));
            let topics = topics.map(|(name, partitions)| {
                DeleteRecordsTopic::default()
                    .with_name(name)
                    .with_partitions(partitions)
            });
            let request = DeleteRecordsRequest::default()
                .with_topics(topics.collect())
                .with_timeout_ms(broker_timeout(share));
            let response = connection.call(&request, share)?;
            let mut results = Results::new();
            for topic in &response.topics {
                for entry in &topic.partitions {
                    let name = TopicPartition::new(&*topic.name.0, entry.partition_index);
                    let result = checked(api, entry.error_code, &name);
                    results.insert(name, result.map(|()| entry.low_watermark));
                }
            }
            Ok(results)
        })
    }

    pub(super) fn refresh_topics<'a>(
        &self,
        names: impl IntoIterator<Item = &'a TopicPartition>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let topics: Vec<&str> = names.into_iter().map(|name| &*name.topic).collect();
        self.cluster.refresh(&topics, deadline)
    }

    /// Asks the leader of each partition, once; `ask` gets its partitions with their values. Every
    /// partition has a result.
    fn ask_leaders<T>(
        &self,
        api: ApiKey,
        wanted: &BTreeMap<TopicPartition, i64>,
        deadline: Deadline,
        ask: impl Fn(
            &mut Connection,
            &[(&TopicPartition, i64)],
            Deadline,
        ) -> Result<Results<TopicPartition, T>, Error>,
    ) -> Results<TopicPartition, T> {
        let mut results = Results::new();
        let mut by_leader: BTreeMap<i32, Vec<(&TopicPartition, i64)>> = BTreeMap::new();
        for (name, value) in wanted {
            match self.cluster.leader(&name.topic, name.partition) {
                Some((node, _)) => by_leader.entry(node).or_default().push((name, *value)),
                None => drop(results.insert(name.clone(), Err(self.no_leader(name)))),
            }
        }
        let answers = each(by_leader.keys(), deadline, |node, share| {
            let mut connection = self.cluster.connect(**node, share)?;
            ask(&mut connection, &by_leader[*node], share)
        });
        for (node, answer) in answers {
            match answer {
                Ok(answer) => results.extend(answer),
                Err(error) => {
                    let names = by_leader[node].iter().map(|(name, _)| (*name).clone());
                    results.extend(names.map(|name| (name, Err(error.clone()))));
                }
            }
        }
        complete(results, wanted.keys(), api)
    }

    /// Why the leader of a partition is not known.
    fn no_leader(&self, name: &TopicPartition) -> Error {
        let count = self.cluster.partitions(&name.topic);
        let is_unknown = count.is_none_or(|count| !(0..count).contains(&name.partition));
        let code = self.cluster.topic_error(&name.topic);
        let code = code.unwrap_or(match is_unknown {
            true => ErrorCode::UnknownTopicOrPartition,
            false => ErrorCode::LeaderNotAvailable,
        });
        Error::refused_partition(ApiKey::Metadata, code, name)
    }
}

pub(super) fn checked(api: ApiKey, code: i16, name: &TopicPartition) -> Result<(), Error> {
    let code = ErrorCode::from_code(code);
    code.map_or(Ok(()), |code| {
        Err(Error::refused_partition(api, code, name))
    })
}

/// Adds an error for each partition that the brokers passed over.
pub(super) fn complete<'a, T>(
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
