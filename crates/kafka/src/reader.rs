//! A reader of offset ranges outside any consumer group, for tools that inspect a topic. It has no
//! membership and no commits, and knows the end beforehand.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use super::ErrorCode;
use super::admin::Admin;
use super::cluster::Cluster;
use super::consumer::{Consumer, ConsumerConfig, ConsumerRecord, OffsetReset};
use super::error::Error;
use super::group::TopicPartition;
use tbd_deadline::Deadline;

/// Reads ranges of offsets one after another.
///
/// ```no_run
/// use std::time::Duration;
/// use tbd_kafka::{ClientConfig, Cluster, Deadline, Reader};
///
/// # fn main() -> Result<(), tbd_kafka::Error> {
/// // All that the topic has now.
/// let cluster = Cluster::new(ClientConfig::new(["localhost:9092"]));
/// let soon = || Deadline::after(Duration::from_secs(10));
/// let ranges = Reader::ranges(&cluster, "topic", soon())?;
/// let mut reader = Reader::new(cluster, "topic", (0..).zip(ranges));
/// loop {
///     let records = reader.read(soon())?;
///     if records.is_empty() {
///         break;
///     }
///     println!("{} records", records.len());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Reader {
    cluster: Cluster,
    topic: Arc<str>,
    /// The topic that the offsets belong to; `None` when the cluster provides no ids.
    topic_id: Option<Uuid>,
    left: VecDeque<(i32, Range<i64>)>,
    /// Reads the first range; `None` before it began, and after an error.
    consumer: Option<Consumer>,
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
            topic_id: cluster.topic_id(&topic),
            cluster,
            topic,
            left: ranges.into_iter().collect(),
            consumer: None,
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
                self.consumer = None;
                continue;
            }
            let name = TopicPartition::new(Arc::clone(&self.topic), partition);
            let (mut records, next) = match self.poll(&name, &range, deadline) {
                Err(error) if error.code() == Some(ErrorCode::OffsetOutOfRange) => {
                    let oldest = self.oldest(&name, &range, deadline)?;
                    (Vec::new(), oldest.ok_or(error)?)
                }
                polled => polled?,
            };
            if let Some((_, left)) = self.left.front_mut() {
                left.start = next;
            }
            records.retain(|record| range.contains(&record.offset));
            if !records.is_empty() {
                return Ok(records);
            }
            if deadline.is_past() && next < range.end {
                return Err(Error::timeout(format!("offset {next} of {name}")));
            }
        }
        Ok(Vec::new())
    }

    /// Polls the partition for records of `range`. Returns also the next offset to read.
    fn poll(
        &mut self,
        name: &TopicPartition,
        range: &Range<i64>,
        deadline: Deadline,
    ) -> Result<(Vec<ConsumerRecord>, i64), Error> {
        let start = range.start;
        let mut consumer = match self.consumer.take() {
            Some(consumer) => consumer,
            None => {
                let mut config = ConsumerConfig::without_group();
                // What the range does not have is no reason to read something else.
                config.auto_offset_reset = OffsetReset::Error;
                Consumer::at(self.cluster.clone(), config, name, start, self.topic_id)?
            }
        };
        let records = consumer.poll_to(name, range.end, deadline)?;
        let next = consumer.position(name).unwrap_or(start);
        self.consumer = Some(consumer);
        Ok((records, next))
    }

    /// The range's start is out of range: the oldest record left, or the range's end. `None` when
    /// the leader has the start by now.
    fn oldest(
        &self,
        name: &TopicPartition,
        range: &Range<i64>,
        deadline: Deadline,
    ) -> Result<Option<i64>, Error> {
        let ranges = Self::ranges(&self.cluster, &self.topic, deadline)?;
        let left = usize::try_from(name.partition)
            .ok()
            .and_then(|index| ranges.get(index));
        Ok(match left {
            Some(left) if left.contains(&range.start) => None,
            Some(left) if left.start > range.start => Some(left.start),
            _ => Some(range.end),
        })
    }
}

#[cfg(test)]
mod tests;
