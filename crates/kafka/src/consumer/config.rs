//! Consumer settings, records, hooks and commit errors.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Rebalance;
use crate::Error;
use crate::config::{DURATION_MAX, check_timeout};
use crate::error::ConfigError;
use crate::group::assignor::Assignor;
use crate::group::{GroupProtocol, TopicPartition};
use crate::wire::FETCH_BYTES_MAX;

/// Where to begin in a partition if the group has no committed offset, or if that offset no longer
/// exists. Also where to begin after the topic was deleted and created again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
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

/// What a consumer reads of transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Isolation {
    /// All records, of open and aborted transactions too.
    #[default]
    ReadUncommitted,
    /// Only records outside of transactions and of committed ones. Reading stops before the first
    /// open transaction.
    ReadCommitted,
}

impl Isolation {
    /// Its number in requests.
    pub(super) fn level(self) -> i8 {
        match self {
            Self::ReadUncommitted => 0,
            Self::ReadCommitted => 1,
        }
    }
}

/// What a consumer does about a topic or an assigned partition that the cluster does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum MissingTopics {
    /// Waits for it without a word, as Java's does.
    Wait,
    /// Waits for it, and logs one warning.
    #[default]
    Warn,
    /// [`poll`](super::Consumer::poll) fails.
    Error,
}

/// A rule by which a consumer picks its topics among those of the cluster.
#[derive(Clone)]
pub struct TopicFilter(Arc<dyn Fn(&str) -> bool + Send + Sync>);

impl TopicFilter {
    /// The topics for which `is_wanted` is true; it gets a topic's name. Internal topics are left
    /// out.
    pub fn new(is_wanted: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_wanted))
    }

    pub(super) fn is_wanted(&self, topic: &str) -> bool {
        (self.0)(topic)
    }
}

impl fmt::Debug for TopicFilter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TopicFilter")
    }
}

/// Where a consumer begins in a partition that the application assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartAt {
    /// At the offset that [`ConsumerConfig::group_id`] committed. Without one,
    /// [`ConsumerConfig::auto_offset_reset`] decides.
    Committed,
    /// At the oldest record.
    Beginning,
    /// At the end of the log.
    End,
    /// At this offset.
    Offset(i64),
    /// At the first record of this time or later, in milliseconds since 1970 UTC. At the end of the
    /// log when there is none.
    Timestamp(i64),
}

/// Settings of one member of a consumer group. Defaults are those of the Java client, except where
/// noted.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConsumerConfig {
    /// The group's name. No default; empty for a consumer without a group.
    #[doc(alias = "group.id")]
    pub group_id: String,
    /// The topics to read. No default.
    #[doc(alias = "subscribe")]
    pub topics: Vec<String>,
    /// Reads also the topics that this filter picks. It is asked again when metadata is older than
    /// [`ClientConfig::metadata_max_age`](crate::ClientConfig::metadata_max_age). Default: none.
    #[doc(alias = "Pattern")]
    pub topic_filter: Option<TopicFilter>,
    /// What to do about a topic that does not exist. Default: one warning in the log. Topics are
    /// never created.
    #[doc(alias = "allow.auto.create.topics")]
    pub missing_topics: MissingTopics,
    /// What to read of transactions. Default: all records, also uncommitted ones.
    #[doc(alias = "isolation.level")]
    pub isolation: Isolation,
    /// The membership protocol. A group may have members of both protocols, so it can be migrated
    /// member by member. Default: the classic protocol.
    #[doc(alias = "group.protocol")]
    pub group_protocol: GroupProtocol,
    /// A name that outlives restarts (static membership): a restart within the session time-out
    /// moves no partitions. Default: none.
    #[doc(alias = "group.instance.id")]
    pub group_instance_id: Option<String>,
    /// The group drops a member without heartbeats for this long. Default 10 s. Java's 45 s would
    /// leave a killed member's records unread for that long.
    #[doc(alias = "session.timeout.ms")]
    pub session_timeout: Duration,
    /// Time between heartbeats. Default a third of the session time-out, at most one second; Java's
    /// is 3 s. Members learn of a rebalance by heartbeat, so partitions that move may
    /// wait this long.
    #[doc(alias = "heartbeat.interval.ms")]
    pub heartbeat_interval: Duration,
    /// A member that is not polled for this long counts as stuck and leaves. A rebalance waits this
    /// long for a busy member. Default 5 minutes.
    #[doc(alias = "max.poll.interval.ms")]
    pub max_poll_interval: Duration,
    /// The most records that one poll returns. Default 500.
    #[doc(alias = "max.poll.records")]
    pub max_poll_records: usize,
    /// The target for the bytes of records in one broker answer. Default 50 MiB, at most 96 MiB: the
    /// consumer accepts no answer above 100 MiB.
    ///
    /// It bounds the memory of records fetched and not handed out, those of paused partitions
    /// included. The bound is twice this value for each broker that is read from. An answer is one
    /// piece of memory, so it counts in full until its last record is handed out. The consumer
    /// fetches only while there is room for another answer from each broker. To make room it drops
    /// what paused partitions hold, and fetches it again after they are resumed.
    ///
    /// Not counted are the batch being handed out in each partition, if it was compressed, and a
    /// batch larger than the limits. A larger batch is delivered nevertheless. Records that the
    /// application keeps are not counted either. Their keys and values share the memory of their
    /// answer.
    #[doc(alias = "fetch.max.bytes")]
    pub fetch_max_bytes: i32,
    /// The most bytes of one partition's records in one answer. Default 1 MiB. A single larger batch
    /// is delivered nevertheless.
    #[doc(alias = "max.partition.fetch.bytes")]
    pub max_partition_fetch_bytes: i32,
    /// How long a broker may wait for records when it has none. Default 500 ms.
    #[doc(alias = "fetch.max.wait.ms")]
    pub fetch_max_wait: Duration,
    /// Where to begin without a committed offset. Default `Earliest`; Java's is `Latest`.
    #[doc(alias = "auto.offset.reset")]
    pub auto_offset_reset: OffsetReset,
    /// The rack (or availability zone) that the consumer is in. Leaders then name a replica in that
    /// rack, if they have a `replica.selector.class` (KIP-392), and records are fetched from it.
    /// They arrive later than from the leader, by the time of their replication. A group's assignors
    /// prefer partitions with a replica in the rack, where the balance leaves a choice (KIP-881). Default:
    /// none.
    #[doc(alias = "client.rack")]
    pub client_rack: Option<String>,
    /// Assignors of the classic protocol, preferred ones first. The group uses one that all members
    /// support. Default cooperative-sticky, then range; Java lists range first.
    #[doc(alias = "partition.assignment.strategy")]
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
            topic_filter: None,
            missing_topics: MissingTopics::default(),
            isolation: Isolation::default(),
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
            client_rack: None,
            assignors: vec![Assignor::CooperativeSticky, Assignor::Range],
        };
        config.set_session_timeout(Duration::from_secs(10));
        config
    }

    /// The defaults for a consumer of partitions that the application assigns, without a group.
    /// Set [`group_id`](Self::group_id) to commit offsets.
    pub fn without_group() -> Self {
        Self::new("", [] as [&str; 0])
    }

    /// Checks every setting, as [`Consumer::start`](super::Consumer::start) does.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_timeout("ConsumerConfig::session_timeout", self.session_timeout)?;
        check_timeout(
            "ConsumerConfig::heartbeat_interval",
            self.heartbeat_interval,
        )?;
        check_timeout("ConsumerConfig::max_poll_interval", self.max_poll_interval)?;
        ConfigError::check(
            self.heartbeat_interval < self.session_timeout,
            "ConsumerConfig::heartbeat_interval",
            format!(
                "{:?} is not below the session time-out",
                self.heartbeat_interval
            ),
        )?;
        ConfigError::check(
            self.fetch_max_wait <= DURATION_MAX,
            "ConsumerConfig::fetch_max_wait",
            "it is longer than 24 days",
        )?;
        let at_least_1 = "it must be at least 1";
        for (field, value) in [
            ("ConsumerConfig::fetch_max_bytes", self.fetch_max_bytes),
            (
                "ConsumerConfig::max_partition_fetch_bytes",
                self.max_partition_fetch_bytes,
            ),
        ] {
            ConfigError::check(value >= 1, field, at_least_1)?;
        }
        ConfigError::check(
            self.fetch_max_bytes <= FETCH_BYTES_MAX,
            "ConsumerConfig::fetch_max_bytes",
            format!("{} is above {FETCH_BYTES_MAX}", self.fetch_max_bytes),
        )?;
        let field = "ConsumerConfig::max_poll_records";
        ConfigError::check(self.max_poll_records >= 1, field, at_least_1)?;
        let field = "ConsumerConfig::assignors";
        ConfigError::check(!self.assignors.is_empty(), field, "there is none")
    }

    /// Checks the settings that only a member of a group needs.
    pub(super) fn check_group(&self) -> Result<(), ConfigError> {
        let field = "ConsumerConfig::group_id";
        ConfigError::check(!self.group_id.is_empty(), field, "it is empty")?;
        let has_topics = !self.topics.is_empty() || self.topic_filter.is_some();
        ConfigError::check(has_topics, "ConsumerConfig::topics", "there is none")
    }

    /// Sets the session time-out, and the heartbeat interval to a third of it, at most one second.
    pub fn set_session_timeout(&mut self, session_timeout: Duration) {
        self.session_timeout = session_timeout;
        self.heartbeat_interval = (session_timeout / 3).min(HEARTBEAT_INTERVAL_MAX);
    }
}

/// One record handed to the application.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
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
    /// A record without key, value, headers and time, for tests of an application.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32, offset: i64) -> Self {
        Self {
            topic: topic.into(),
            partition,
            offset,
            leader_epoch: -1,
            timestamp_ms: -1,
            key: None,
            value: None,
            headers: Vec::new(),
        }
    }

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
#[non_exhaustive]
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
    #[error("the commit is refused: {0}")]
    Refused(#[source] Error),
    /// The offset is negative. Nothing was committed.
    #[error("{partition} has no offset {offset}: offsets begin at 0")]
    InvalidOffset {
        /// The partition.
        partition: TopicPartition,
        /// The offset given.
        offset: i64,
    },
    /// The membership has failed permanently, or the consumer has no group.
    #[error("the member cannot commit any more: {0}")]
    Fatal(#[source] Error),
}

impl CommitError {
    /// Whether the same commit may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Rebalancing | Self::Unavailable(_))
    }
}

/// Callbacks about the membership, on the polling thread. The defaults do nothing. A panic in a
/// hook ends the poll by this panic, once the partitions are given up or taken over. An application
/// that catches it may poll again.
#[doc(alias = "ConsumerRebalanceListener")]
pub trait ConsumerHooks: Send {
    /// A rebalance ended. `added` lists the new partitions and may be empty.
    fn assigned(&self, added: &[TopicPartition]) {
        let _ = added;
    }

    /// These partitions are about to go to other members, which wait until this call returns.
    /// Commit here what was done, through `rebalance`.
    fn revoking(&self, rebalance: &mut Rebalance<'_>, partitions: &[TopicPartition]) {
        let _ = (rebalance, partitions);
    }

    /// These partitions have been given up, and go to other members when this call returns.
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
