//! Ranges of a topic, read from outside any group: no membership, no commits, an end
//! that is known beforehand. For tools that look into a topic.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{ApiKey, BrokerId, FetchRequest};

use super::admin::{Admin, topic_name};
use super::batch::{BatchError, next_batch};
use super::cluster::Cluster;
use super::connection::Connection;
use super::consumer::ConsumerRecord;
use super::error::Error;
use crate::deadline::Deadline;

/// The most bytes of one answer; a single larger batch comes all the same.
const FETCH_BYTES: i32 = 1 << 20;
/// How long a broker may wait for a record that it does not have yet, in milliseconds.
const FETCH_WAIT_MS: i32 = 500;

/// Reads ranges of offsets one after another, on one connection at a time.
#[derive(Debug)]
pub struct Reader {
    cluster: Cluster,
    admin: Admin,
    topic: Arc<str>,
    left: VecDeque<(i32, Range<i64>)>,
    /// A line to this node.
    connection: Option<(i32, Connection)>,
}

impl Reader {
    /// A reader of `ranges` of `topic`: partitions and offsets, read in the order given.
    /// No I/O.
    pub fn new(
        cluster: Cluster,
        topic: impl Into<Arc<str>>,
        ranges: impl IntoIterator<Item = (i32, Range<i64>)>,
    ) -> Self {
        Self {
            admin: Admin::new(cluster.clone()),
            cluster,
            topic: topic.into(),
            left: ranges.into_iter().collect(),
            connection: None,
        }
    }

    /// Every partition's offsets, by number: from the oldest record to the end as it is
    /// now. Waits at most until `deadline`.
    ///
    /// # Errors
    /// When the topic does not exist, or a leader did not answer in time.
    pub fn ranges(
        cluster: &Cluster,
        topic: &str,
        deadline: Deadline,
    ) -> Result<Vec<Range<i64>>, Error> {
        let admin = Admin::new(cluster.clone());
        let starts = admin.start_offsets(topic, deadline)?;
        let ends = admin.end_offsets(topic, deadline)?;
        Ok(starts
            .into_iter()
            .zip(ends)
            .map(|(start, end)| start..end)
            .collect())
    }

    /// The next records, in order within each range; none at the end of the last one.
    /// Records that retention or compaction has taken away are passed over. Waits at most
    /// until `deadline` and repeats transient failures until then.
    ///
    /// # Errors
    /// The last failure; reading again goes on where it stopped.
    pub fn read(&mut self, deadline: Deadline) -> Result<Vec<ConsumerRecord>, Error> {
        while let Some((partition, range)) = self.left.front().cloned() {
            if range.is_empty() {
                self.left.pop_front();
                continue;
            }
            let (records, next) = self.fetch(partition, &range, deadline)?;
            if let Some((_, left)) = self.left.front_mut() {
                left.start = next;
            }
            if !records.is_empty() {
                return Ok(records);
            }
            if deadline.is_past() {
                return Err(Error::Timeout {
                    what: format!("offset {next} of {}-{partition}", self.topic),
                });
            }
        }
        Ok(Vec::new())
    }

    /// One answer's records within `range`, and where reading goes on.
    fn fetch(
        &mut self,
        partition: i32,
        range: &Range<i64>,
        deadline: Deadline,
    ) -> Result<(Vec<ConsumerRecord>, i64), Error> {
        let (cluster, topic, connection) = (&self.cluster, &self.topic, &mut self.connection);
        let fetched = self.admin.repeat(deadline, || {
            let fetched = fetch_at(cluster, connection, topic, partition, range.start, deadline);
            if fetched.is_err() {
                // It may be broken, or lead to who is no leader any more.
                *connection = None;
            }
            fetched
        });
        let bytes = match fetched {
            Err(Error::Broker {
                code: ResponseError::OffsetOutOfRange,
                ..
            }) => return self.skip_removed(partition, range, deadline),
            other => other?,
        };
        take_records(topic, partition, range, bytes).map_err(|error| Error::Protocol {
            address: "the log".to_owned(),
            reason: format!("{topic}-{partition} at offset {}: {error}", range.start),
        })
    }

    /// The range's start is gone: on to what is still there, or to the range's end.
    fn skip_removed(
        &self,
        partition: i32,
        range: &Range<i64>,
        deadline: Deadline,
    ) -> Result<(Vec<ConsumerRecord>, i64), Error> {
        let starts = self.admin.start_offsets(&self.topic, deadline)?;
        let start = usize::try_from(partition)
            .ok()
            .and_then(|index| starts.get(index).copied())
            .filter(|start| *start > range.start)
            .unwrap_or(range.end);
        Ok((Vec::new(), start))
    }
}

/// The bytes of one answer, from `offset` on.
fn fetch_at(
    cluster: &Cluster,
    line: &mut Option<(i32, Connection)>,
    topic: &Arc<str>,
    partition: i32,
    offset: i64,
    deadline: Deadline,
) -> Result<Bytes, Error> {
    if line.is_none() {
        cluster.refresh(&[topic], deadline)?;
    }
    let (node, _) = cluster.leader(topic, partition).ok_or(Error::Broker {
        api: ApiKey::Metadata,
        code: ResponseError::LeaderNotAvailable,
    })?;
    let connection = match line.take() {
        Some((open, connection)) if open == node => connection,
        _ => cluster.connect(node, deadline)?,
    };
    let (_, connection) = line.insert((node, connection));
    let wanted = FetchPartition::default()
        .with_partition(partition)
        .with_current_leader_epoch(-1)
        .with_fetch_offset(offset)
        .with_partition_max_bytes(FETCH_BYTES);
    let request = FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(FETCH_WAIT_MS)
        .with_min_bytes(1)
        .with_max_bytes(FETCH_BYTES)
        // No fetch session, and none wanted (KIP-227).
        .with_session_epoch(-1)
        .with_topics(vec![
            FetchTopic::default()
                .with_topic(topic_name(topic))
                .with_partitions(vec![wanted]),
        ]);
    let response = connection.call(&request, deadline)?;
    Error::check(ApiKey::Fetch, response.error_code)?;
    let mut answers = response.responses.into_iter();
    let told = answers
        .find(|answer| *answer.topic.0 == **topic)
        .and_then(|answer| {
            let mut partitions = answer.partitions.into_iter();
            partitions.find(|told| told.partition_index == partition)
        });
    match told {
        Some(told) => {
            Error::check(ApiKey::Fetch, told.error_code)?;
            Ok(told.records.unwrap_or_default())
        }
        None => Ok(Bytes::new()),
    }
}

/// The records of an answer that lie within `range`, and where reading goes on.
fn take_records(
    topic: &Arc<str>,
    partition: i32,
    range: &Range<i64>,
    mut bytes: Bytes,
) -> Result<(Vec<ConsumerRecord>, i64), BatchError> {
    let (mut records, mut next) = (Vec::new(), range.start);
    while next < range.end
        && let Some(batch) = next_batch(&mut bytes)?
    {
        let wanted = batch.records()?.into_iter();
        // A batch comes whole, also when the range begins or ends in its middle.
        let wanted = wanted.filter(|record| range.contains(&record.offset));
        records.extend(wanted.map(|record| ConsumerRecord {
            topic: Arc::clone(topic),
            partition,
            offset: record.offset,
            leader_epoch: batch.leader_epoch,
            timestamp_ms: record.timestamp_ms,
            key: record.key,
            value: record.value,
            headers: record.headers,
        }));
        next = next.max(batch.next_offset());
    }
    Ok((records, next))
}

#[cfg(test)]
mod tests;
