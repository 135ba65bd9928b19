//! Topics of the accumulator: partitions, their leaders, and the placement of records.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Accumulator, Completion, OutgoingBatch, Queued};
use crate::ErrorCode;
use crate::cluster::Cluster;
use crate::error::Error;
use crate::producer::batch::Identity;
use crate::producer::record::{ProduceError, Record};

/// How long a log is taken to know a producer's last batch. Brokers forget a producer id that has written
/// nothing for `producer.id.expiration.ms`, a day by default, which operators may shorten. An
/// unneeded wait for one answer after an idle hour costs nothing.
const COUNTED_FOR: Duration = Duration::from_secs(3600);

/// Partition leaders and topic ids: [`Cluster`], or a test's double.
pub(in crate::producer) trait Leaders {
    fn partitions(&self, topic: &str) -> Option<i32>;
    fn leader(&self, topic: &str, partition: i32) -> Option<i32>;
    fn topic_id(&self, topic: &str) -> Option<Uuid>;
    /// Whether the cluster does not have the topic, even if it had it before.
    fn is_missing(&self, topic: &str) -> bool;
}

impl Leaders for Cluster {
    fn partitions(&self, topic: &str) -> Option<i32> {
        Cluster::partitions(self, topic)
    }
    fn leader(&self, topic: &str, partition: i32) -> Option<i32> {
        Cluster::leader(self, topic, partition).map(|(node, _)| node)
    }
    fn topic_id(&self, topic: &str) -> Option<Uuid> {
        Cluster::topic_id(self, topic)
    }
    fn is_missing(&self, topic: &str) -> bool {
        Cluster::topic_error(self, topic) == Some(ErrorCode::UnknownTopicOrPartition)
    }
}

/// The share of records without a key that a partition gets before it is the next one's turn: the
/// Java client's (KIP-794).
const STICKY_BYTES: usize = 16 * 1024;

/// How long metadata of a missing topic is requested after a record last named it.
const UNKNOWN_LIFETIME: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Topic {
    /// `None` while it is unknown, and with brokers that send no ids.
    id: Option<Uuid>,
    /// The id of the topic that this one replaced.
    former_id: Option<Uuid>,
    /// Index into `Accumulator::partitions` by partition number; empty while the topic is
    /// unknown.
    pub(super) partitions: Vec<usize>,
    /// The partition of records without a key, until its next batch is cut.
    sticky: usize,
    /// The bytes that it got since it is that partition.
    sticky_bytes: usize,
    /// Whether its metadata was requested.
    is_asked: bool,
    /// Whether it was deleted. Its partitions are kept for a while: the broker may lag behind.
    is_missing: bool,
    /// When a record last named the topic while it was unknown, or when it was last seen or in use.
    /// `None`: the configuration names the topic, so it is never forgotten.
    named_at: Option<Instant>,
}

impl Topic {
    /// A partition got `bytes` more. If it is the sticky one and has had its share, the next one
    /// is.
    pub(super) fn filled(&mut self, partition: i32, bytes: usize) {
        if usize::try_from(partition) != Ok(self.sticky) {
            return;
        }
        self.sticky_bytes = self.sticky_bytes.saturating_add(bytes);
        if self.sticky_bytes >= STICKY_BYTES {
            self.sticky = (self.sticky + 1) % self.partitions.len().max(1);
            self.sticky_bytes = 0;
        }
    }

    /// Whether `leaders` know another topic of the same name.
    fn is_replaced(&self, name: &str, leaders: &dyn Leaders) -> bool {
        let Some(count) = leaders.partitions(name) else {
            return false;
        };
        match (self.id, leaders.topic_id(name)) {
            (Some(known), Some(id)) => known != id,
            // Topics grow but never shrink.
            (None, None) => usize::try_from(count).is_ok_and(|count| count < self.partitions.len()),
            _ => false,
        }
    }
}

/// The records that wait for a batch, in order.
#[derive(Debug, Default)]
pub(super) struct Queue {
    records: VecDeque<Queued>,
    bytes: usize,
}

impl Queue {
    /// Their bytes in a batch.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn front(&self) -> Option<&Queued> {
        self.records.front()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Queued> {
        self.records.iter()
    }

    pub(super) fn push_back(&mut self, queued: Queued) {
        self.bytes += queued.size;
        self.records.push_back(queued);
    }

    pub(super) fn push_front(&mut self, queued: Queued) {
        self.bytes += queued.size;
        self.records.push_front(queued);
    }

    pub(super) fn pop_front(&mut self) -> Option<Queued> {
        let queued = self.records.pop_front()?;
        self.bytes -= queued.size;
        Some(queued)
    }

    /// Takes all.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Queued> + use<> {
        std::mem::take(self).records.into_iter()
    }
}

/// The records and the state of one partition.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) topic: Arc<str>,
    /// The topic's id, or nil.
    pub(super) topic_id: Uuid,
    pub(super) number: i32,
    pub(super) leader: Option<i32>,
    pub(super) queue: Queue,
    /// How many batches the sender of node `in_flight_at` holds.
    pub(super) in_flight: usize,
    pub(super) in_flight_at: i32,
    /// Whether the batch in flight was sent before. It is sent alone: brokers remember only the
    /// last five batches, so others sent with each retry would make them forget it.
    pub(super) is_repeating: bool,
    /// Returned batches that are not undone, in their order.
    pub(super) returned: VecDeque<OutgoingBatch>,
    /// The number of the last batch.
    pub(super) batch_number: u64,
    /// Whether the coordinator of the transaction knows the partition, or is being told.
    pub(super) is_registered: bool,
    /// No attempt before this moment.
    pub(super) not_before: Option<Instant>,
    /// Consecutive attempts of unknown outcome.
    pub(super) pauses: u32,
    /// The most records the next batch may have, after one was too large.
    pub(super) records_max: usize,
    /// The producer id of the last batch that the log has, and when it was acknowledged.
    pub(super) counted: Option<(i64, Instant)>,
    /// The identity under which `next_sequence` counts.
    pub(super) identity: Option<Identity>,
    pub(super) next_sequence: i32,
}

impl Partition {
    fn new(topic: Arc<str>, number: i32) -> Self {
        Self {
            topic,
            topic_id: Uuid::nil(),
            number,
            leader: None,
            queue: Queue::default(),
            in_flight: 0,
            in_flight_at: -1,
            is_repeating: false,
            returned: VecDeque::new(),
            batch_number: 0,
            is_registered: false,
            not_before: None,
            pauses: 0,
            records_max: usize::MAX,
            counted: None,
            identity: None,
            next_sequence: 0,
        }
    }

    /// Whether the log knows this producer's last batch, as far as can be told.
    pub(super) fn is_counted(&self, producer_id: i64, now: Instant) -> bool {
        self.counted.is_some_and(|(id, at)| {
            id == producer_id && now.saturating_duration_since(at) < COUNTED_FOR
        })
    }

    fn has_work(&self) -> bool {
        !self.queue.is_empty() || !self.returned.is_empty()
    }
}

impl Accumulator {
    /// The partition of `record`, as an index for [`Accumulator::push`]. `None` while the topic is
    /// unknown; its metadata is requested from then on.
    pub(in crate::producer) fn place(
        &mut self,
        record: &Record,
        now: Instant,
    ) -> Result<Option<usize>, Error> {
        let Some(topic) = self.topics.get_mut(&record.topic) else {
            let topic = Topic {
                named_at: Some(now),
                ..Topic::default()
            };
            // A name of its own: the threads of callers and senders would slow each other down by
            // counting references at the same place.
            self.topics.insert(Arc::from(&*record.topic), topic);
            return Ok(None);
        };
        if topic.partitions.is_empty() {
            topic.named_at = topic.named_at.map(|_| now);
            return Ok(None);
        }
        self.partition_for(record).map(Some)
    }

    /// The number of a known topic's partitions.
    pub(in crate::producer) fn partition_count(&self, topic: &str) -> Option<i32> {
        let known = self.topics.get(topic)?.partitions.len();
        i32::try_from(known).ok().filter(|count| *count > 0)
    }

    /// The partition of `record`, whose topic is known.
    fn partition_for(&self, record: &Record) -> Result<usize, Error> {
        let topic = &self.topics[&record.topic];
        let count = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
        let partitioner = &self.limits.partitioner;
        let chosen = match record.partition {
            None => partitioner.partition(&record.topic, record.key.as_deref(), count)?,
            named => named,
        };
        let Some(number) = chosen else {
            return Ok(topic.partitions[self.gathering(topic)]);
        };
        let index = usize::try_from(number).ok();
        match index.and_then(|index| topic.partitions.get(index)) {
            Some(index) => Ok(*index),
            None => Err(Error::InvalidRecord {
                reason: format!(
                    "topic {} has the partitions 0 to {}, not {number}",
                    record.topic,
                    count - 1
                ),
            }),
        }
    }

    /// The partition that records without a key go to now: the sticky one, or the next one that has
    /// a leader.
    fn gathering(&self, topic: &Topic) -> usize {
        let count = topic.partitions.len();
        (0..count)
            .map(|step| (topic.sticky + step) % count)
            .find(|number| self.partitions[topic.partitions[*number]].leader.is_some())
            .unwrap_or(topic.sticky)
    }

    /// Updates the leaders, adds new topics and partitions, and partitions the records of a
    /// replaced topic again.
    pub(in crate::producer) fn learn(&mut self, leaders: &dyn Leaders) -> Vec<Completion> {
        let names: Vec<Arc<str>> = self.topics.keys().cloned().collect();
        let learnt = names
            .iter()
            .flat_map(|name| self.learn_topic(name, leaders));
        learnt.collect()
    }

    fn learn_topic(&mut self, name: &Arc<str>, leaders: &dyn Leaders) -> Vec<Completion> {
        let Some(topic) = self.topics.get_mut(name) else {
            return Vec::new();
        };
        let id = leaders.topic_id(name);
        if id.is_some() && id == topic.former_id {
            // This broker lags behind.
            return Vec::new();
        }
        topic.is_missing = leaders.is_missing(name);
        let mut waiting = Vec::new();
        if topic.is_replaced(name, leaders) {
            let in_flight = |index: &usize| self.partitions[*index].in_flight > 0;
            if topic.partitions.iter().any(in_flight) {
                // The records in flight come before those in the queues. Without leaders no other
                // batch is cut.
                for index in topic.partitions.clone() {
                    self.partitions[index].leader = None;
                }
                return Vec::new();
            }
            log::info!("kafka topic {name} was deleted and created again");
            waiting = self.vacate(name);
        }
        self.learn_leaders(name, leaders);
        self.place_again(waiting)
    }

    /// Removes the partitions of a replaced or forgotten topic, and returns their records in order. Call it only
    /// when nothing of the topic is in flight.
    fn vacate(&mut self, name: &Arc<str>) -> Vec<Queued> {
        let mut waiting = Vec::new();
        let Some(topic) = self.topics.get_mut(name) else {
            return waiting;
        };
        topic.former_id = topic.id.take();
        topic.sticky = 0;
        for index in topic.partitions.drain(..) {
            let vacant = Partition::new(Arc::clone(name), -1);
            let old = std::mem::replace(&mut self.partitions[index], vacant);
            self.vacant.push(index);
            for batch in old.returned {
                waiting.extend(batch.records.into_iter().map(|mut queued| {
                    queued.is_returned = true;
                    queued.is_unknown = true;
                    queued
                }));
            }
            waiting.extend(old.queue.records);
            if old.identity == self.identity {
                self.identity = None;
            }
        }
        waiting
    }

    /// Queues the records that [`Accumulator::vacate`] returned.
    fn place_again(&mut self, waiting: Vec<Queued>) -> Vec<Completion> {
        let mut completions = Vec::new();
        for queued in waiting {
            match self.partition_for(&queued.record) {
                Ok(index) => self.enqueue(index, queued),
                Err(error) => {
                    let outcome = |_| Err(ProduceError::not_sent(error.clone()));
                    completions.extend(self.release(vec![queued], outcome));
                }
            }
        }
        completions
    }

    fn learn_leaders(&mut self, name: &Arc<str>, leaders: &dyn Leaders) {
        let Some(topic) = self.topics.get_mut(name) else {
            return;
        };
        topic.id = leaders.topic_id(name).or(topic.id);
        for number in (0..leaders.partitions(name).unwrap_or(0)).skip(topic.partitions.len()) {
            let partition = Partition::new(Arc::clone(name), number);
            let index = match self.vacant.pop() {
                Some(index) => {
                    self.partitions[index] = partition;
                    index
                }
                None => {
                    self.partitions.push(partition);
                    self.partitions.len() - 1
                }
            };
            topic.partitions.push(index);
        }
        for index in &topic.partitions {
            let partition = &mut self.partitions[*index];
            partition.topic_id = topic.id.unwrap_or_default();
            let leader = leaders.leader(name, partition.number);
            if leader.is_some() && leader != partition.leader && partition.pauses > 0 {
                // The pause was for the former leader.
                partition.pauses = 0;
                partition.not_before = None;
            }
            partition.leader = leader;
        }
    }

    /// Whether all partitions of these topics are known and have leaders.
    pub(in crate::producer) fn are_led(&self, topics: &[String]) -> bool {
        let has_leader = |index: &usize| self.partitions[*index].leader.is_some();
        topics.iter().all(|topic| {
            let topic = self.topics.get(topic.as_str());
            topic.is_some_and(|topic| {
                !topic.partitions.is_empty() && topic.partitions.iter().all(has_leader)
            })
        })
    }

    /// The leader of a batch's partition, as far as it is known now. The batch must be in flight.
    pub(in crate::producer) fn leader_of(&self, batch: &OutgoingBatch) -> Option<i32> {
        self.partitions[batch.index].leader
    }

    /// All nodes that lead a partition.
    pub(in crate::producer) fn leader_nodes(&self) -> BTreeSet<i32> {
        self.partitions
            .iter()
            .filter_map(|partition| partition.leader)
            .collect()
    }

    /// The topics whose metadata to request now. Clears `leaders_doubtful` before the request, so a
    /// doubt that is raised before the answer is kept.
    pub(in crate::producer) fn topics_to_ask(&mut self, now: Instant) -> Vec<Arc<str>> {
        self.leaders_doubtful = false;
        self.forget_topics(now);
        let asked = self.topics.iter_mut().map(|(name, topic)| {
            topic.is_asked = true;
            Arc::clone(name)
        });
        asked.collect()
    }

    /// Forgets missing topics that no record has named for [`UNKNOWN_LIFETIME`].
    fn forget_topics(&mut self, now: Instant) {
        let (partitions, identity) = (&self.partitions, self.identity);
        let is_transactional = self.limits.is_transactional;
        let is_in_use = |index: &usize| {
            let partition = &partitions[*index];
            let is_in_transaction = is_transactional && partition.identity == identity;
            partition.in_flight > 0 || partition.has_work() || is_in_transaction
        };
        let mut forgotten = Vec::new();
        for (name, topic) in &mut self.topics {
            let is_there = !topic.partitions.is_empty() && !topic.is_missing;
            if is_there || topic.partitions.iter().any(is_in_use) {
                topic.named_at = topic.named_at.map(|_| now);
            }
            let is_over = |named_at| now >= named_at + UNKNOWN_LIFETIME;
            if topic.named_at.is_some_and(is_over) {
                forgotten.push(Arc::clone(name));
            }
        }
        for name in forgotten {
            self.vacate(&name);
            self.topics.remove(&name);
        }
    }

    /// Whether metadata must be requested at once: a topic is new, a leader is in doubt, or records
    /// wait for a leader.
    pub(in crate::producer) fn needs_leaders(&self) -> bool {
        let is_new = |topic: &Topic| topic.partitions.is_empty() && !topic.is_asked;
        let is_stuck = |partition: &Partition| partition.leader.is_none() && partition.has_work();
        self.leaders_doubtful
            || self.topics.values().any(is_new)
            || self.partitions.iter().any(is_stuck)
    }

    /// Whether there is a topic that the cluster does not know.
    pub(in crate::producer) fn has_unknown_topic(&self) -> bool {
        let mut topics = self.topics.values();
        topics.any(|topic| topic.partitions.is_empty())
    }

    pub(in crate::producer) fn doubt_leaders(&mut self) {
        self.leaders_doubtful = true;
    }

    #[cfg(test)]
    pub(in crate::producer) fn is_in_flight(&self) -> bool {
        let mut partitions = self.partitions.iter();
        partitions.any(|partition| partition.in_flight > 0)
    }
}
