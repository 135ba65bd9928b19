//! A reader of offset ranges outside any consumer group, for tools that inspect a topic. It has no
//! membership and no commits, and knows the end beforehand.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{ApiKey, BrokerId, FetchRequest};
use uuid::Uuid;

use super::admin::{Admin, topic_name};
use super::batch::{BatchError, next_batch};
use super::cluster::Cluster;
use super::connection::Connection;
use super::consumer::{ConsumerRecord, FETCH_BY_ID};
use super::error::Error;
use super::topic_id;
use tbd_deadline::Deadline;

/// The most bytes of one answer. A single larger batch is delivered nevertheless.
const FETCH_BYTES: i32 = 1 << 20;
/// How long a broker may wait for new records, in milliseconds.
const FETCH_WAIT_MS: i32 = 500;

/// Reads ranges of offsets one after another, over one connection at a time.
#[derive(Debug)]
pub struct Reader {
    cluster: Cluster,
    admin: Admin,
    topic: Arc<str>,
    /// The topic that the offsets belong to; `None` when the cluster provides no ids.
    topic_id: Option<Uuid>,
    /// Whether the leader has answered that it has no such topic.
    is_id_refused: bool,
    left: VecDeque<(i32, Range<i64>)>,
    /// The node and the connection to it.
    connection: Option<(i32, Connection)>,
}

impl Reader {
    /// Creates a reader of `ranges` of `topic`: partitions and offsets, read in the given order.
    /// The offsets belong to the topic that `cluster` last saw under this name, as those of
    /// [`Reader::ranges`] do. No I/O.
    pub fn new(
        cluster: Cluster,
        topic: impl Into<Arc<str>>,
        ranges: impl IntoIterator<Item = (i32, Range<i64>)>,
    ) -> Self {
        let topic = topic.into();
        Self {
            admin: Admin::new(cluster.clone()),
            topic_id: cluster.topic_id(&topic),
            is_id_refused: false,
            cluster,
            topic,
            left: ranges.into_iter().collect(),
            connection: None,
        }
    }

    /// Returns the offsets of every partition, by number: from the oldest record to the current
    /// end. Waits until `deadline` at most.
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

    /// Returns the next records, in order within each range; none after the last range. Records
    /// that retention or compaction removed are skipped. Waits until `deadline` at most, and
    /// retries transient failures until then.
    ///
    /// # Errors
    /// The last failure; the next call continues there. [`Error::TopicReplaced`] when the topic was
    /// deleted and created again, because the ranges are then meaningless.
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

    /// Returns one answer's records within `range`, and the next offset to read.
    fn fetch(
        &mut self,
        partition: i32,
        range: &Range<i64>,
        deadline: Deadline,
    ) -> Result<(Vec<ConsumerRecord>, i64), Error> {
        let admin = self.admin.clone();
        let fetched = admin.repeat(deadline, || self.fetch_at(partition, range.start, deadline));
        let bytes = match fetched {
            Err(Error::Broker {
                code: ResponseError::OffsetOutOfRange,
                ..
            }) => return self.skip_removed(partition, range, deadline),
            other => other?,
        };
        let topic = &self.topic;
        take_records(topic, partition, range, bytes).map_err(|error| Error::Protocol {
            address: "the log".to_owned(),
            reason: format!("{topic}-{partition} at offset {}: {error}", range.start),
        })
    }

    /// The range's start was removed: skips to the oldest record left, or to the range's end.
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

    /// Returns the bytes of one answer from `offset` on. A failure closes the connection: it may be
    /// broken, or its broker may no longer be the leader.
    fn fetch_at(
        &mut self,
        partition: i32,
        offset: i64,
        deadline: Deadline,
    ) -> Result<Bytes, Error> {
        let open = self.connection.take();
        if open.is_none() {
            self.cluster.refresh(&[&self.topic], deadline)?;
            self.topic_id = self.topic_id.or(self.cluster.topic_id(&self.topic));
        }
        let leader = self.cluster.leader(&self.topic, partition);
        let (node, _) = leader.ok_or(Error::Broker {
            api: ApiKey::Metadata,
            code: ResponseError::LeaderNotAvailable,
        })?;
        let mut connection = match open {
            Some((open, connection)) if open == node => connection,
            _ => self.cluster.connect(node, deadline)?,
        };
        let newest = match self.topic_id {
            Some(_) => i16::MAX,
            None => FETCH_BY_ID - 1,
        };
        // Metadata may come from a broker that lags behind, so the leader's answer has precedence.
        if self.is_id_refused || connection.version_of(ApiKey::Fetch)? < FETCH_BY_ID {
            self.check_topic()?;
        }
        let request = self.fetch_request(partition, offset);
        let sent = connection.send_at_most(&request, newest, deadline)?;
        let response = connection.receive(sent, deadline)?;
        Error::check(ApiKey::Fetch, response.error_code)?;
        // The request named one topic. An answer by id contains no name.
        let answers = response.responses.into_iter();
        let mut partitions = answers.flat_map(|topic| topic.partitions);
        let answer = partitions.find(|answer| answer.partition_index == partition);
        let answer = answer.unwrap_or_default();
        self.is_id_refused = topic_id::is_refusal(answer.error_code);
        Error::check(ApiKey::Fetch, answer.error_code)?;
        self.connection = Some((node, connection));
        Ok(answer.records.unwrap_or_default())
    }

    /// Fails if another topic has the name now.
    fn check_topic(&self) -> Result<(), Error> {
        match (self.topic_id, self.cluster.topic_id(&self.topic)) {
            (Some(old), Some(new)) if old != new => Err(topic_id::replaced(&self.topic, old, new)),
            _ => Ok(()),
        }
    }

    fn fetch_request(&self, partition: i32, offset: i64) -> FetchRequest {
        let wanted = FetchPartition::default()
            .with_partition(partition)
            .with_current_leader_epoch(-1)
            .with_fetch_offset(offset)
            .with_partition_max_bytes(FETCH_BYTES);
        FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(FETCH_WAIT_MS)
            .with_min_bytes(1)
            .with_max_bytes(FETCH_BYTES)
            // No fetch session (KIP-227): none is needed.
            .with_session_epoch(-1)
            .with_topics(vec![
                FetchTopic::default()
                    .with_topic(topic_name(&self.topic))
                    .with_topic_id(self.topic_id.unwrap_or_default())
                    .with_partitions(vec![wanted]),
            ])
    }
}

/// Returns an answer's records within `range`, and the next offset to read.
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
        // A batch arrives whole, even if the range begins or ends in the middle of it.
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
