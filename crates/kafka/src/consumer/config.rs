//! What a consumer is told, gives and complains about.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;

use crate::Error;
use crate::group::TopicPartition;
use crate::group::assignor::Assignor;

/// Where to begin in a partition for which the group has committed nothing, whose
/// committed offset no longer exists, or whose topic was deleted and created again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetReset {
    /// With the oldest record.
    Earliest,
    /// With what comes next.
    Latest,
    /// Nowhere: [`poll`](super::Consumer::poll) fails.
    Error,
}

/// So often, members hear of a rebalance soon.
const HEARTBEAT_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// How a group shares its partitions out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupProtocol {
    /// One of the members decides, by the assignor that all know.
    #[default]
    Classic,
    /// The coordinator decides and moves partitions one by one (KIP-848, Kafka 4.0).
    /// Session time-out, heartbeat interval and assignor are the broker's then.
    Consumer,
}

/// Settings of one member of a consumer group. The defaults are the Java
/// client's, except where noted.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// The group's name.
    pub group_id: String,
    /// What the member reads.
    pub topics: Vec<String>,
    /// Members of both protocols may be in a group at the same time, so that one can
    /// be changed to the other member by member.
    pub group_protocol: GroupProtocol,
    /// A name that outlives restarts: within the session time-out a restart
    /// then moves no partitions.
    pub group_instance_id: Option<String>,
    /// A member without heartbeats for this long is out. 10 s, where Java's
    /// 45 s would leave a killed member's records lying for that long.
    pub session_timeout: Duration,
    /// Time between heartbeats; a third of the session time-out, a second at most.
    /// Members learn of a rebalance by heartbeat, so it is also how long partitions
    /// that move may have to wait. Java: 3 s.
    pub heartbeat_interval: Duration,
    /// A member that is not polled for this long is taken for stuck and leaves.
    /// Also how long a rebalance waits for a busy member.
    pub max_poll_interval: Duration,
    /// The most records one poll returns.
    pub max_poll_records: usize,
    /// The most bytes of records one answer of a broker should have.
    ///
    /// It bounds the memory of what is fetched and not handed out by a poll yet, that
    /// of paused partitions included: twice this for each leader of the partitions
    /// that are read. An answer counts as a whole until the last of it is handed out,
    /// because it is one piece of memory. More is asked for only while there is room
    /// for another answer from each leader; what paused partitions hold is dropped for
    /// that, and fetched again after they are resumed.
    ///
    /// Beyond this: the one batch of each partition that is being handed out, if it
    /// was compressed, and a batch larger than the limits, which comes all the same.
    /// Records that the application keeps are its own affair: keys and values share
    /// the memory of the answer they came with.
    pub fetch_max_bytes: i32,
    /// The most bytes of records of one partition in one answer. A single
    /// larger batch is delivered all the same.
    pub max_partition_fetch_bytes: i32,
    /// How long a broker may wait for records when it has none.
    pub fetch_max_wait: Duration,
    /// Where to begin when nothing is committed. Java's default is `Latest`.
    pub auto_offset_reset: OffsetReset,
    /// Ways to share partitions out, most wanted first; the group takes one
    /// that all members know. Java lists range first.
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

    /// Sets the session time-out, and the heartbeat interval to a third of it, or to a
    /// second if that is less.
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
    /// Its position there.
    pub offset: i64,
    /// Epoch of the leader that wrote it; -1 when unknown.
    pub leader_epoch: i32,
    /// Milliseconds since 1970 UTC; -1 when there is none.
    pub timestamp_ms: i64,
    /// The key, if any.
    pub key: Option<Bytes>,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Headers in their order, repeated names kept.
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl ConsumerRecord {
    /// The partition it was read from.
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition::new(self.topic.clone(), self.partition)
    }

    /// The last header of that name, as Java's `lastHeader`.
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .and_then(|(_, value)| value.as_ref())
    }
}

impl fmt::Debug for ConsumerRecord {
    // Keys, values and headers are the users' data and stay out of logs.
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

/// Why offsets were not committed. Whatever it says, going on with `poll` is
/// right after everything but [`CommitError::Fatal`]; records may then come again,
/// here or at another member.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// The group is rebalancing. The poll that ends it makes the commit, before it
    /// gives partitions away.
    #[error("the group is rebalancing")]
    Rebalancing,
    /// The partitions are no longer this member's; somebody else reads them, from
    /// the last committed offset on. Or their topic was deleted and created again, and the
    /// offset is beyond what was handed out of the new one. Nothing was changed.
    #[error("the partitions belong to this member no longer")]
    Lost,
    /// No answer in time; the commit may have happened. Committing the same
    /// again is harmless.
    #[error("cannot commit now: {0}")]
    Unavailable(#[source] Error),
    /// The coordinator refuses these offsets; the membership goes on.
    #[error("the coordinator refuses the commit: {0}")]
    Refused(ResponseError),
    /// The membership has failed for good.
    #[error("the member cannot commit any more: {0}")]
    Fatal(ResponseError),
}

impl CommitError {
    /// Whether the same commit may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Rebalancing | Self::Unavailable(_))
    }
}

/// Told what happens to the membership, on the thread that polls. The
/// defaults do nothing.
pub trait ConsumerHooks: Send {
    /// A rebalance ended; `added` is new here, and may be empty.
    fn assigned(&self, added: &[TopicPartition]) {
        let _ = added;
    }

    /// These go to other members, who wait for this.
    fn revoked(&self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }

    /// These may belong to others already: the member was out of the group.
    fn lost(&self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }

    /// These are read again from where [`ConsumerConfig::auto_offset_reset`] says: their
    /// topic was deleted, and another one has its name now.
    fn topic_replaced(&self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }
}

/// No hooks.
impl ConsumerHooks for () {}
