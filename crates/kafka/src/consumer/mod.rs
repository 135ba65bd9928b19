//! Consumers: members of a group ([`Consumer::start`]), or readers of partitions that the
//! application assigns ([`Consumer::start_assigned`]).
//!
//! # Threads
//!
//! A [`Consumer`] belongs to one thread, the polling thread. Joining, rebalancing, fetching,
//! committing and the hooks all run there. A second thread, `kafka-heartbeat-<n>`, keeps the
//! membership alive while the application works. It makes the member leave when the application has
//! not polled for `max_poll_interval`. Each of the two threads has its own connection to the
//! coordinator. The polling thread has one more connection per broker it reads from.
//!
//! # How records flow
//!
//! Fetched data stays packed until a poll reaches it, so memory is bounded
//! ([`ConsumerConfig::fetch_max_bytes`]). At most one fetch per leader is in flight: for the answer
//! after the one being handed out. A poll sends it before it returns, so that brokers answer while
//! the application works. A poll waits for all leaders at once. It returns as soon as one of them
//! has delivered records.
//!
//! # What it promises
//!
//! - A record of a partition that is no longer assigned is never handed out, and its offset is
//!   never committed.
//! - Only offsets that the application commits are committed.
//! - An offset belongs to a topic's id, not to its name. When a topic was deleted and created
//!   again, offsets of the old topic never skip records of the new one.
//! - A cooperative rebalance stops only the partitions that move. The others are handed out
//!   throughout. Commits that fail meanwhile are repeated when it ends, before any partition is
//!   given away.
//!
//! ```no_run
//! use std::time::Duration;
//! use tbd_kafka::{ClientConfig, Cluster, Deadline};
//! use tbd_kafka::consumer::{Consumer, ConsumerConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster = Cluster::new(ClientConfig::default());
//! let mut consumer = Consumer::start(cluster, ConsumerConfig::new("group", ["topic"]), Box::new(()))?;
//! let records = consumer.poll(Deadline::after(Duration::from_secs(1)))?;
//! for record in &records {
//!     println!("{}-{}@{}", record.topic, record.partition, record.offset);
//! }
//! consumer.commit_polled(Deadline::after(Duration::from_secs(5)))?;
//! consumer.close(Deadline::after(Duration::from_secs(5)))?;
//! # Ok(())
//! # }
//! ```

mod alone;
mod classic;
mod commit;
mod config;
mod fetch;
mod fetch_answer;
mod membership;
mod partitions;
mod positions;
mod reading;
mod transaction;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

pub use self::commit::{PendingCommit, Rebalance};
pub use self::transaction::GroupOffsets;
pub use crate::group::GroupProtocol;
pub use crate::group::assignor::Assignor;
pub use crate::group::machine::Identity as GroupMetadata;
pub use crate::wait::Waker;
pub use config::{
    CommitError, ConsumerConfig, ConsumerHooks, ConsumerRecord, Isolation, MissingTopics,
    OffsetReset, StartAt, TopicFilter,
};

use self::alone::LoneCommits;
use self::fetch::Fetcher;
use self::membership::GroupMember;
use self::partitions::{Partition, ResetTo};
use self::positions::earlier;
pub(crate) use self::positions::list_offsets_request;
use self::reading::Reading;
use super::connection::Connection;
use super::group::{OffsetAndMetadata, TopicPartition};
use super::wait::{self, WakeReceiver};
use super::{Cluster, Error};
use tbd_deadline::Deadline;
use uuid::Uuid;

/// Pause before the coordinator or a leader is asked again (Java: `retry.backoff.ms`).
const RETRY_BACKOFF: Duration = Duration::from_millis(100);
/// Longest such pause (Java: `retry.backoff.max.ms`).
const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// The least time for an exchange that a poll waits for: connecting, metadata, finding the
/// coordinator. With less, short polls would never make progress against slow brokers.
const STEP_MIN: Duration = Duration::from_secs(1);
/// How long a closing consumer remains a member to retry a commit that a rebalance refused.
const OWED_PATIENCE: Duration = Duration::from_secs(3);

/// A consumer; the [module](self) says how it works.
///
/// Dropping a member of a group without [`close`](Self::close) is like a crash: the group notices
/// after the session time-out.
///
/// ```no_run
/// use std::time::Duration;
/// use tbd_kafka::consumer::StartAt;
/// use tbd_kafka::{ClientConfig, Cluster, Consumer, ConsumerConfig, Deadline, TopicPartition};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // A partition read from its beginning, outside any group.
/// let cluster = Cluster::new(ClientConfig::new(["localhost:9092"]));
/// let start = [(TopicPartition::new("topic", 0), StartAt::Beginning)];
/// let config = ConsumerConfig::without_group();
/// let mut consumer = Consumer::start_assigned(cluster, config, start, Box::new(()))?;
/// for record in consumer.poll(Deadline::after(Duration::from_secs(1)))? {
///     println!("{}: {:?}", record.offset, record.value);
/// }
/// # Ok(())
/// # }
/// ```
#[doc(alias = "KafkaConsumer")]
pub struct Consumer {
    /// What is read: configuration, metadata, partitions and their positions.
    reading: Reading,
    /// The requests to leaders, and the memory of their answers.
    fetcher: Fetcher,
    /// The membership; `None` when the application assigns the partitions.
    member: Option<GroupMember>,
    /// The commits without a membership.
    alone: LoneCommits,
    waker: Waker,
    wake_receiver: WakeReceiver,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Consumer")
            .field("group_id", &self.reading.config.group_id)
            .field("partitions", &self.reading.partitions.keys())
            .finish_non_exhaustive()
    }
}

impl Consumer {
    /// Creates a consumer that has not joined its group. Starts the heartbeat thread and does no
    /// other I/O: [`poll`](Self::poll) joins the group, so Kafka may be unavailable now.
    ///
    /// # Errors
    /// [`Error::Config`] when a setting is out of its range; [`Error::Resource`] when the operating
    /// system cannot create a thread or a socket pair.
    #[doc(alias = "subscribe")]
    pub fn start(
        cluster: Cluster,
        config: ConsumerConfig,
        hooks: Box<dyn ConsumerHooks>,
    ) -> Result<Self, Error> {
        config.check_group()?;
        let mut consumer = Self::new(cluster, config, hooks)?;
        let member = GroupMember::start(&consumer.reading, &consumer.waker)?;
        consumer.member = Some(member);
        Ok(consumer)
    }

    /// Creates a consumer of these partitions, outside any group (Java: `assign`). Does no I/O and
    /// starts no thread.
    ///
    /// With a [`group_id`](ConsumerConfig::group_id), offsets can be committed to that group, which
    /// must have no members. [`ConsumerConfig::without_group`] has the defaults.
    ///
    /// # Errors
    /// As [`start`](Self::start); [`Error::InvalidOffset`].
    #[doc(alias = "assign")]
    pub fn start_assigned(
        cluster: Cluster,
        config: ConsumerConfig,
        partitions: impl IntoIterator<Item = (TopicPartition, StartAt)>,
        hooks: Box<dyn ConsumerHooks>,
    ) -> Result<Self, Error> {
        let mut consumer = Self::new(cluster, config, hooks)?;
        consumer.reading.assign(partitions.into_iter().collect())?;
        Ok(consumer)
    }

    /// A consumer of one partition of the topic with this id, for a [`Reader`](crate::Reader).
    pub(crate) fn at(
        cluster: Cluster,
        config: ConsumerConfig,
        partition: &TopicPartition,
        offset: i64,
        topic_id: Option<Uuid>,
    ) -> Result<Self, Error> {
        let start = [(partition.clone(), StartAt::Offset(offset))];
        let mut consumer = Self::start_assigned(cluster, config, start, Box::new(()))?;
        if let Some(partition) = consumer.reading.partitions.get_mut(partition) {
            partition.topic_id = topic_id;
        }
        Ok(consumer)
    }

    fn new(
        cluster: Cluster,
        config: ConsumerConfig,
        hooks: Box<dyn ConsumerHooks>,
    ) -> Result<Self, Error> {
        config.check()?;
        cluster.config().check()?;
        let (waker, wake_receiver) = wait::waker().map_err(|error| Error::resource(&error))?;
        Ok(Self {
            reading: Reading::new(cluster, config, hooks),
            fetcher: Fetcher::default(),
            member: None,
            alone: LoneCommits::default(),
            waker,
            wake_receiver,
        })
    }

    /// A handle that interrupts this consumer's polls from another thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Returns the next records, at most `max_poll_records`, in order within each partition. Also
    /// does what the group requires.
    ///
    /// Blocks until there are records, [`Waker::wake`] is called, or `deadline` has passed. In the
    /// last two cases the result is empty. An answer that has begun to arrive is read to its end.
    /// Connecting to a broker gets at least one second.
    ///
    /// # Errors
    /// A transient error ([`Error::is_transient`]) when a temporary problem persists at the
    /// deadline: poll again. [`Error::Tls`] and [`Error::Authentication`] at once. After any other
    /// error, polling again does not help. If that error ended the membership, the consumer has
    /// tried to leave the group before.
    pub fn poll(&mut self, deadline: Deadline) -> Result<Vec<ConsumerRecord>, Error> {
        self.poll_until(deadline, true, |_| false)
    }

    /// As [`poll`](Self::poll), but returns also once the partition's position has reached `end`:
    /// the offsets before it may be those of removed records or of a transaction's marker.
    pub(crate) fn poll_to(
        &mut self,
        partition: &TopicPartition,
        end: i64,
        deadline: Deadline,
    ) -> Result<Vec<ConsumerRecord>, Error> {
        self.poll_until(deadline, true, |reading| {
            let position = reading
                .partitions
                .get(partition)
                .and_then(Partition::position);
            position.is_some_and(|position| position >= end)
        })
    }

    /// Like [`poll`](Self::poll), but hands out no records. For an application that cannot work
    /// now, but must remain a member and let others rebalance. Blocks until `deadline` or a
    /// wake-up.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    pub fn idle(&mut self, deadline: Deadline) -> Result<(), Error> {
        self.poll_until(deadline, false, |_| false).map(drop)
    }

    fn poll_until(
        &mut self,
        deadline: Deadline,
        wants_records: bool,
        is_enough: impl Fn(&Reading) -> bool,
    ) -> Result<Vec<ConsumerRecord>, Error> {
        self.reading.learn_outcomes();
        loop {
            if let Some(member) = &self.member {
                member.polled();
            }
            if self.wake_receiver.take() {
                return Ok(Vec::new());
            }
            if self.awaited_coordinator().is_some() || self.reading.has_starving_partition() {
                // While records of other partitions flow, no other wait would notice the answer of
                // the coordinator, or of a leader.
                self.wait(Deadline::after(Duration::ZERO))?;
            }
            self.reading.end_by_panic();
            let mut look_again = self.advance(deadline)?;
            self.reading.end_by_panic();
            if wants_records {
                let records = self.fetcher.take_records(&mut self.reading)?;
                if records.is_empty() && is_enough(&self.reading) {
                    return Ok(records);
                }
                look_again = earlier(
                    look_again,
                    self.fetcher.send_fetches(&mut self.reading, deadline),
                );
                if !records.is_empty() {
                    self.reading.last_error = None;
                    return Ok(records);
                }
            }
            if let Some(error) = self.reading.take_error(deadline) {
                return Err(error);
            }
            if deadline.is_past() {
                return Ok(Vec::new());
            }
            let until =
                look_again.map_or(deadline, |moment| deadline.earlier_of(Deadline::at(moment)));
            self.wait(until)?;
        }
    }

    /// Advances the membership and the positions. Returns when to look again.
    fn advance(&mut self, deadline: Deadline) -> Result<Option<Instant>, Error> {
        let has_new_topics = self.reading.discover_topics(deadline);
        let look_again = match &mut self.member {
            // Assigned partitions are read even during a rebalance.
            Some(member) => member.advance(&mut self.reading, has_new_topics, deadline)?,
            None => {
                let look_again = self.alone.make_up(&mut self.reading);
                let positions = self.reading.advance_alone(deadline)?;
                earlier(look_again, positions)
            }
        };
        Ok(earlier(look_again, self.reading.discovery_due()))
    }

    /// The connection to the coordinator, if an answer is pending on it.
    fn awaited_coordinator(&self) -> Option<&Connection> {
        match &self.member {
            Some(member) => member.awaited(),
            None => self.alone.awaited(),
        }
    }

    /// When the first of the pending answers is overdue.
    fn answer_due(&self) -> Option<Deadline> {
        let of_coordinator = match &self.member {
            Some(member) => member.answer_due(),
            None => self.alone.answer_due(),
        };
        of_coordinator
            .into_iter()
            .chain(self.fetcher.answer_due())
            .min()
    }

    /// Waits for an answer, a wake-up or the deadline, and processes what arrived.
    fn wait(&mut self, deadline: Deadline) -> Result<(), Error> {
        let mut sources = vec![self.wake_receiver.as_fd()];
        let group = self.awaited_coordinator();
        sources.extend(group.map(AsFd::as_fd));
        let has_group = group.is_some();
        let mut nodes = Vec::new();
        for (node, connection) in self.fetcher.awaited() {
            nodes.push(node);
            sources.push(connection.as_fd());
        }
        // An answer that does not come in its own time ends the wait, too.
        let until = self
            .answer_due()
            .map_or(deadline, |due| deadline.earlier_of(due));
        let mut ready = wait::readable(&sources, until).into_iter();
        drop(sources);
        if ready.next() == Some(true) {
            self.wake_receiver.drain();
        }
        if has_group {
            let is_ready = ready.next() == Some(true);
            let reading = &mut self.reading;
            match &mut self.member {
                Some(member) => member.take_answer(reading, is_ready, deadline)?,
                None => self.alone.take_answer(reading, is_ready),
            }
        }
        for node in nodes {
            let is_ready = ready.next() == Some(true);
            self.fetcher
                .leader_answer(&mut self.reading, node, is_ready)?;
        }
        Ok(())
    }

    /// The partitions currently assigned to this consumer.
    pub fn assignment(&self) -> Vec<TopicPartition> {
        self.reading.assignment()
    }

    /// Reads exactly these partitions from now on, for a consumer without a membership. Partitions
    /// that were assigned before keep their position. Returns false, and changes nothing, for a
    /// member of a group.
    ///
    /// # Errors
    /// [`Error::InvalidOffset`]; nothing is changed.
    pub fn assign(
        &mut self,
        partitions: impl IntoIterator<Item = (TopicPartition, StartAt)>,
    ) -> Result<bool, Error> {
        let is_free = self.member.is_none();
        if is_free {
            self.reading.assign(partitions.into_iter().collect())?;
        }
        Ok(is_free)
    }

    /// This member's current identity in its group; `None` without a membership.
    #[doc(alias = "groupMetadata")]
    pub fn group_metadata(&self) -> Option<GroupMetadata> {
        self.member.as_ref().map(GroupMember::identity)
    }

    /// The next offset that [`poll`](Self::poll) will return for a partition. `None` when the
    /// partition is not assigned or its position is not known yet.
    pub fn position(&self, partition: &TopicPartition) -> Option<i64> {
        self.reading.partitions.get(partition)?.position()
    }

    /// The offset of a partition that this consumer committed last, or that its group had committed
    /// when it began. `None` when there is none yet.
    /// [`Admin::committed_offsets`](crate::Admin::committed_offsets) asks the group.
    pub fn committed(&self, partition: &TopicPartition) -> Option<&OffsetAndMetadata> {
        self.reading.partitions.get(partition)?.committed_offset()
    }

    /// Continues reading at `offset`; commits are unaffected. Returns false when the partition is
    /// not assigned. [`Admin::offsets_for_times`](crate::Admin::offsets_for_times) finds the offset
    /// of a moment.
    ///
    /// # Errors
    /// [`Error::InvalidOffset`]; nothing is changed.
    pub fn seek(&mut self, partition: &TopicPartition, offset: i64) -> Result<bool, Error> {
        Error::check_offset(partition, offset)?;
        let reading = &mut self.reading;
        reading.prepare_seek(partition);
        let found = reading.partitions.get_mut(partition);
        Ok(found.map(|found| found.seek(offset)).is_some())
    }

    /// Continues reading at the oldest record available, like [`seek`](Self::seek). The next polls
    /// look the offset up. Partitions that are not assigned are ignored.
    #[doc(alias = "seekToBeginning")]
    pub fn seek_to_beginning(&mut self, partitions: &[TopicPartition]) {
        self.seek_to(partitions, ResetTo::Earliest);
    }

    /// Continues reading at the end of the log, like [`seek`](Self::seek). The next polls look the
    /// offset up. Partitions that are not assigned are ignored.
    #[doc(alias = "seekToEnd")]
    pub fn seek_to_end(&mut self, partitions: &[TopicPartition]) {
        self.seek_to(partitions, ResetTo::Latest);
    }

    fn seek_to(&mut self, partitions: &[TopicPartition], to: ResetTo) {
        let reading = &mut self.reading;
        partitions
            .iter()
            .for_each(|name| reading.prepare_seek(name));
        self.for_each_assigned(partitions, |partition| partition.seek_to(to));
    }

    /// Neither hands out nor fetches records of these partitions until [`resume`](Self::resume).
    /// Fetched data is kept, unless other partitions need its memory
    /// ([`ConsumerConfig::fetch_max_bytes`]). The membership continues. A partition that is
    /// assigned again is not paused. Partitions that are not assigned are ignored.
    pub fn pause(&mut self, partitions: &[TopicPartition]) {
        self.for_each_assigned(partitions, |partition| partition.is_paused = true);
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&mut self, partitions: &[TopicPartition]) {
        self.for_each_assigned(partitions, |partition| partition.is_paused = false);
    }

    /// The paused partitions.
    pub fn paused(&self) -> Vec<TopicPartition> {
        let partitions = self.reading.partitions.iter();
        let paused = partitions.filter(|(_, state)| state.is_paused);
        paused.map(|(name, _)| name.clone()).collect()
    }

    fn for_each_assigned(
        &mut self,
        partitions: &[TopicPartition],
        change: impl Fn(&mut Partition),
    ) {
        for name in partitions {
            if let Some(partition) = self.reading.partitions.get_mut(name) {
                change(partition);
            }
        }
    }

    /// Returns to the last commit, of this consumer or of a transaction: the next polls hand out
    /// again all records since then.
    pub fn rewind(&mut self) {
        self.reading.rewind();
    }

    /// The number of records beyond the committed offset, for each partition whose end is known. As
    /// fresh as the last answer about the partition.
    #[doc(alias = "currentLag")]
    pub fn lag(&self) -> Vec<(TopicPartition, i64)> {
        let partitions = self.reading.partitions.iter();
        partitions
            .filter_map(|(name, partition)| partition.lag().map(|lag| (name.clone(), lag)))
            .collect()
    }

    /// Whether the group is rebalancing, or needs this member to poll before it can. The
    /// application may cut long work short.
    pub fn rebalance_pending(&self) -> bool {
        let member = self.member.as_ref();
        member.is_some_and(GroupMember::is_rebalancing)
    }

    /// Leaves the group, so that other members take over at once, and stops the heartbeat thread.
    /// Calls [`ConsumerHooks::revoking`] and [`ConsumerHooks::revoked`] for the partitions it gives
    /// up.
    ///
    /// Commits nothing new: the application commits before. A commit that a rebalance refused is
    /// retried, because no later poll can. If the coordinator has moved, the member looks for it as
    /// long as any broker answers.
    ///
    /// Waits at most until `deadline`, plus a heartbeat interval if that thread is connecting to a
    /// broker that hangs.
    ///
    /// # Errors
    /// When the coordinator cannot be reached or refuses the request; it notices after the session
    /// time-out. The consumer is closed nevertheless.
    pub fn close(mut self, deadline: Deadline) -> Result<(), Error> {
        self.await_owed_commits(deadline);
        let closed = match &mut self.member {
            Some(member) => member.close(&mut self.reading, deadline),
            None => Ok(()),
        };
        self.reading.end_by_panic();
        closed
    }

    /// Remains a member while a commit is owed, for [`OWED_PATIENCE`] and until `deadline` at most.
    fn await_owed_commits(&mut self, deadline: Deadline) {
        let patience = deadline.earlier_of(Deadline::after(OWED_PATIENCE));
        while self.has_owed_commits() && !patience.is_past() {
            let moment = Deadline::after(RETRY_BACKOFF).earlier_of(patience);
            if self.idle(moment).is_err_and(|error| !error.is_transient()) {
                return;
            }
        }
    }

    fn has_owed_commits(&self) -> bool {
        let is_sent = match &self.member {
            Some(member) => member.is_committing(),
            None => self.alone.awaited().is_some(),
        };
        let mut partitions = self.reading.partitions.values();
        is_sent || partitions.any(|state| state.owed.is_some())
    }
}

#[cfg(test)]
mod tests;
