//! Consumer settings, records, hooks and commit errors.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;

use crate::Error;
use crate::group::TopicPartition;
use crate::group::assignor::Assignor;

/// Where to begin in a partition if the group has no committed offset, or if that offset no longer
/// exists. Also where to begin after the topic was deleted and created again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetReset {
    /// At the oldest record.
    Earliest,
    /// At the end of the log.
    Latest,
    /// Nowhere: [`poll`](super::Consumer::poll) fails.
    Error,
}

/// At this interval, members learn of a rebalance quickly.
const HEARTBEAT_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// How a group distributes its partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupProtocol {
    /// One of the members decides, with an assignor that all members support.
    #[default]
    Classic,
    /// The coordinator decides and moves partitions one by one (KIP-848, Kafka 4.0). The broker
    /// then sets session time-out, heartbeat interval and assignor.
    Consumer,
}

/// Settings of one member of a consumer group. Defaults are those of the Java client, except where
/// noted.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// The group's name.
    pub group_id: String,
    /// The topics to read.
    pub topics: Vec<String>,
    /// The membership protocol. A group may have members of both protocols, so it can be migrated
    /// member by member.
    pub group_protocol: GroupProtocol,
    /// A name that outlives restarts (static membership): a restart within the session time-out
    /// moves no partitions.
    pub group_instance_id: Option<String>,
    /// The group drops a member without heartbeats for this long. Default 10 s. Java's 45 s would
    /// leave a killed member's records unread for that long.
    pub session_timeout: Duration,
    /// Time between heartbeats. Java's is 3 s; the default here is a third of the session time-out,
    /// at most one second. Members learn of a rebalance by heartbeat, so partitions that move may
    /// wait this long.
    pub heartbeat_interval: Duration,
    /// A member that is not polled for this long counts as stuck and leaves. A rebalance waits this
    /// long for a busy member.
    pub max_poll_interval: Duration,
    /// The most records that one poll returns.
    pub max_poll_records: usize,
    /// The target for the bytes of records in one broker answer.
    ///
    /// It bounds the memory of records fetched and not handed out, those of paused partitions
    /// included. The bound is twice this value for each leader that is read from. An answer is one
    /// piece of memory, so it counts in full until its last record is handed out. The consumer
    /// fetches only while there is room for another answer from each leader. To make room it drops
    /// what paused partitions hold, and fetches it again after they are resumed.
    ///
    /// Not counted are the batch being handed out in each partition, if it was compressed, and a
    /// batch larger than the limits. A larger batch is delivered nevertheless. Records that the
    /// application keeps are not counted either. Their keys and values share the memory of their
    /// answer.
    pub fetch_max_bytes: i32,
    /// The most bytes of one partition's records in one answer. A single larger batch is delivered
    /// nevertheless.
    pub max_partition_fetch_bytes: i32,
    /// How long a broker may wait for records when it has none.
    pub fetch_max_wait: Duration,
    /// Where to begin without a committed offset. Java's default is `Latest`.
    pub auto_offset_reset: OffsetReset,
    /// Assignors, preferred ones first. The group uses one that all members support. Java lists
    /// range first.
    pub assignors: Vec<Assignor>,
}

impl ConsumerConfig {
    /// The defaults for a member of `group_id` that reads `topics`.
    pub fn new(
        group_id: impl Into<String>,
        topics: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let mut config = Self {
            group_id: group_id.into(),
            topics: topics.into_iter().map(Into::into).collect(),
            group_protocol: GroupProtocol::Classic,
            group_instance_id: None,
            session_timeout: Duration::ZERO,
            heartbeat_interval: Duration::ZERO,
            max_poll_interval: Duration::from_secs(300),
            max_poll_records: 500,
            fetch_max_bytes: 50 * 1024 * 1024,
            max_partition_fetch_bytes: 1024 * 1024,
            fetch_max_wait: Duration::from_millis(500),
            auto_offset_reset: OffsetReset::Earliest,
            assignors: vec![Assignor::CooperativeSticky, Assignor::Range],
        };
        config.set_session_timeout(Duration::from_secs(10));
        config
    }

    /// Sets the session time-out, and the heartbeat interval to a third of it, at most one second.
    pub fn set_session_timeout(&mut self, session_timeout: Duration) {
        self.session_timeout = session_timeout;
        self.heartbeat_interval = (session_timeout / 3).min(HEARTBEAT_INTERVAL_MAX);
    }
}

/// One record handed to the application.
#[derive(Clone, PartialEq, Eq)]
pub struct ConsumerRecord {
    /// The topic it was read from.
    pub topic: Arc<str>,
    /// The partition it was read from.
    pub partition: i32,
    /// Its position in the partition.
    pub offset: i64,
    /// Epoch of the leader that wrote it; -1 when unknown.
    pub leader_epoch: i32,
    /// Milliseconds since 1970 UTC; -1 when there is none.
    pub timestamp_ms: i64,
    /// The key, if any.
    pub key: Option<Bytes>,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Headers in order; repeated names are kept.
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl ConsumerRecord {
    /// The partition it was read from.
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition::new(self.topic.clone(), self.partition)
    }

    /// The last header of that name (Java: `lastHeader`).
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .and_then(|(_, value)| value.as_ref())
    }
}

impl fmt::Debug for ConsumerRecord {
    // Keys, values and headers are user data and must not appear in logs.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ConsumerRecord")
            .field("topic", &self.topic)
            .field("partition", &self.partition)
            .field("offset", &self.offset)
            .field("value_bytes", &self.value.as_ref().map(Bytes::len))
            .finish_non_exhaustive()
    }
}

/// Why offsets were not committed. After any error but [`CommitError::Fatal`], continue with
/// `poll`. Records may then be delivered again, to this member or to another.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// The group is rebalancing. The poll that ends the rebalance repeats the commit, before it
    /// gives partitions away.
    #[error("the group is rebalancing")]
    Rebalancing,
    /// The partitions belong to another member, which reads from the last committed offset. Or
    /// their topic was deleted and created again, and the offset is beyond the records handed out
    /// of the new topic. Nothing was committed.
    #[error("the partitions belong to this member no longer")]
    Lost,
    /// No answer in time, so the outcome is unknown. The same commit may be repeated safely.
    #[error("cannot commit now: {0}")]
    Unavailable(#[source] Error),
    /// The coordinator refuses these offsets; the membership continues.
    #[error("the coordinator refuses the commit: {0}")]
    Refused(ResponseError),
    /// The membership has failed permanently.
    #[error("the member cannot commit any more: {0}")]
    Fatal(ResponseError),
}

impl CommitError {
    /// Whether the same commit may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Rebalancing | Self::Unavailable(_))
    }
}

/// Callbacks about the membership, on the polling thread. The defaults do nothing.
pub trait ConsumerHooks: Send {
    /// A rebalance ended. `added` lists the new partitions and may be empty.
    fn assigned(&self, added: &[TopicPartition]) {
        let _ = added;
    }

    /// These partitions go to other members, which wait until this call returns.
    fn revoked(&self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }

    /// The member was out of the group; others may own these partitions already.
    fn lost(&self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }

    /// The topic of these partitions was deleted, and another one has its name. They are read again
    /// from where [`ConsumerConfig::auto_offset_reset`] says.
    fn topic_replaced(&self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }
}

/// No hooks.
impl ConsumerHooks for () {}
