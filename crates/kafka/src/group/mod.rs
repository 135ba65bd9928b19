//! Membership of a consumer group, under the classic or the consumer protocol (KIP-848).
//!
//! | File | Content |
//! |---|---|
//! | `ladder` | what each error code means for a member, as a table |
//! | `machine` | the classic protocol's state machine: answers and the time in, next steps out; no I/O |
//! | `consumer_machine` | the consumer protocol's state machine |
//! | `member` | either of the two machines |
//! | `protocol` | wire format of subscriptions and assignments |
//! | `assignor` | the assignors range and cooperative-sticky |
//! | `heartbeat` | the thread that keeps a member alive while its owner works |
//! | `coordinator` | the requests to the group's coordinator |
//!
//! Lock order: there is one lock, the machine's. No thread holds it across I/O or a callback.

pub(crate) mod assignor;
pub(crate) mod consumer_machine;
pub(crate) mod coordinator;
pub(crate) mod heartbeat;
pub(crate) mod ladder;
pub(crate) mod machine;
pub(crate) mod member;
pub(crate) mod protocol;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use assignor::Assignor;
use kafka_protocol::messages::TopicName;

use crate::wire::topic_name;

/// How a group distributes its partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum GroupProtocol {
    /// One of the members decides, with an assignor that all members support.
    #[default]
    Classic,
    /// The coordinator decides and moves partitions one by one (KIP-848, Kafka 4.0). The broker
    /// then sets session time-out, heartbeat interval and assignor.
    Consumer,
}

/// What a member says about itself to its coordinator.
#[derive(Debug)]
pub(crate) struct MemberConfig {
    pub(crate) group_id: String,
    pub(crate) instance_id: Option<String>,
    pub(crate) protocol: GroupProtocol,
    pub(crate) session_timeout: Duration,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) max_poll_interval: Duration,
    pub(crate) assignors: Vec<Assignor>,
    pub(crate) rack: Option<String>,
}

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number, from 0.
    pub partition: i32,
}

impl TopicPartition {
    /// Creates the name of a partition.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self {
            topic: topic.into(),
            partition,
        }
    }
}

/// A committed offset, or one to commit.
///
/// Where an offset alone is to be committed, an `i64` does as well.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OffsetAndMetadata {
    /// The next offset to read.
    pub offset: i64,
    /// Epoch of the leader that wrote the record before it; -1 when unknown. A commit with -1 stores
    /// the consumer's own, if the offset is its position.
    pub leader_epoch: i32,
    /// The application's text, at most the brokers' `offset.metadata.max.bytes` (default 4096).
    ///
    /// `None` when there is none. The client then stores the topic's id there, which is how it knows
    /// the offsets of a topic that was deleted and created again. An offset with a text counts for
    /// any topic of its name. The text belongs to its offset: a commit without a text keeps it only
    /// if it repeats that offset. An empty text removes it.
    pub metadata: Option<String>,
}

impl OffsetAndMetadata {
    /// An offset with a text.
    pub fn new(offset: i64, metadata: impl Into<String>) -> Self {
        Self {
            metadata: Some(metadata.into()),
            ..Self::from(offset)
        }
    }
}

impl From<i64> for OffsetAndMetadata {
    fn from(offset: i64) -> Self {
        Self {
            offset,
            leader_epoch: -1,
            metadata: None,
        }
    }
}

/// Groups the partitions of a request by their topics, as Kafka's messages do.
pub(crate) fn by_topic<'a, T>(
    items: impl IntoIterator<Item = (&'a TopicPartition, T)>,
) -> impl Iterator<Item = (TopicName, Vec<T>)> {
    let mut topics: BTreeMap<&str, Vec<T>> = BTreeMap::new();
    for (name, item) in items {
        topics.entry(&name.topic).or_default().push(item);
    }
    let topics = topics.into_iter();
    topics.map(|(topic, items)| (topic_name(topic), items))
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.topic, self.partition)
    }
}
