//! A consumer-group member: it polls records and commits offsets on request.
//!
//! # Threads
//!
//! A [`Consumer`] belongs to one thread, the polling thread. Joining, rebalancing, fetching,
//! committing and the hooks all run there. A second thread, `kafka-heartbeat-<n>`, keeps the
//! membership alive while the application works. It makes the member leave when the application has
//! not polled for `max_poll_interval`. Each of the two threads has its own connection to the
//! coordinator. The polling thread has one more connection per leader.
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
//! use tbd_deadline::Deadline;
//! use tbd_kafka::{ClientConfig, Cluster};
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

mod commit;
mod config;
mod fetch;
mod fetch_answer;
mod membership;
mod partitions;
mod positions;
pub(crate) mod wait;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use config::{
    CommitError, ConsumerConfig, ConsumerHooks, ConsumerRecord, GroupProtocol, OffsetReset,
};
pub use wait::Waker;

pub(super) use self::fetch::FETCH_BY_ID;
use self::fetch::Leader;
use self::membership::{CoordinatorLink, Progress};
use self::partitions::{Partition, Partitions, ResetTo};
use self::wait::WakeReceiver;
use super::group::TopicPartition;
use super::group::assignor::Assignor;
use super::group::consumer_machine::ConsumerMachine;
use super::group::heartbeat::{self, MembershipShared};
use super::group::machine::{Identity, Machine, Settings};
use super::group::member::Member;
use super::{Cluster, Error};
use tbd_deadline::Deadline;

/// Pause before the coordinator or a leader is asked again (Java: `retry.backoff.ms`).
const RETRY_BACKOFF: Duration = Duration::from_millis(100);
/// Longest such pause (Java: `retry.backoff.max.ms`).
const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// The least time for an exchange that a poll waits for: connecting, metadata, finding the
/// coordinator. With less, short polls would never make progress against slow brokers.
const STEP_MIN: Duration = Duration::from_secs(1);
/// How long a closing consumer remains a member to retry a commit that a rebalance refused.
const OWED_PATIENCE: Duration = Duration::from_secs(3);

/// One member of a consumer group; see the module documentation.
///
/// Dropping it without [`close`](Self::close) is like a crash: the group notices after the session
/// time-out.
pub struct Consumer {
    cluster: Cluster,
    config: Arc<ConsumerConfig>,
    hooks: Box<dyn ConsumerHooks>,
    shared: Arc<MembershipShared>,
    heartbeat: Option<JoinHandle<()>>,
    waker: Waker,
    wake_receiver: WakeReceiver,
    coordinator: CoordinatorLink,
    leaders: BTreeMap<i32, Leader>,
    partitions: Partitions,
    /// The answers that still hold records to hand out.
    answers: Vec<Weak<usize>>,
    /// The assignor that the group last agreed on.
    assignor: Option<Assignor>,
    /// The partition counts seen at the last rebalance, if this member led it.
    led_counts: Option<HashMap<Arc<str>, Option<i32>>>,
    /// The partition that is first in the next round, so that none starves.
    turn: usize,
    metadata_wanted: bool,
    metadata_not_before: Instant,
    /// The last error, until something succeeds.
    last_error: Option<Error>,
    /// When failed commits are retried.
    commits_not_before: Instant,
    is_closed: bool,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Consumer")
            .field("group_id", &self.config.group_id)
            .field("partitions", &self.partitions.keys())
            .finish_non_exhaustive()
    }
}

impl Consumer {
    /// Creates a consumer that has not joined its group. Starts the heartbeat thread and does no
    /// other I/O: [`poll`](Self::poll) joins the group, so Kafka may be unavailable now.
    ///
    /// # Errors
    /// [`Error::Resource`] when the operating system cannot create a thread or a socket pair.
    pub fn start(
        cluster: Cluster,
        config: ConsumerConfig,
        hooks: Box<dyn ConsumerHooks>,
    ) -> Result<Self, Error> {
        static NEXT_NAME: AtomicU64 = AtomicU64::new(0);
        let resource = |error: std::io::Error| Error::Resource {
            reason: error.to_string(),
        };
        let now = Instant::now();
        let config = Arc::new(config);
        let (waker, wake_receiver) = wait::waker().map_err(resource)?;
        let settings = Settings {
            session_timeout: config.session_timeout,
            heartbeat_interval: config.heartbeat_interval,
            max_poll_interval: config.max_poll_interval,
            retry_backoff: RETRY_BACKOFF,
            retry_backoff_max: RETRY_BACKOFF_MAX,
            is_static: config.group_instance_id.is_some(),
        };
        let member = match config.group_protocol {
            GroupProtocol::Classic => Member::Classic(Machine::new(settings, now)),
            GroupProtocol::Consumer => Member::Consumer(ConsumerMachine::new(settings, now)),
        };
        let shared = Arc::new(MembershipShared::new(member, waker.clone()));
        let name = NEXT_NAME.fetch_add(1, Ordering::Relaxed).to_string();
        let heartbeat = heartbeat::spawn(&name, shared.clone(), cluster.clone(), config.clone())
            .map_err(resource)?;
        Ok(Self {
            cluster,
            config,
            hooks,
            shared,
            heartbeat: Some(heartbeat),
            waker,
            wake_receiver,
            coordinator: CoordinatorLink::default(),
            leaders: BTreeMap::new(),
            partitions: Partitions::new(),
            answers: Vec::new(),
            assignor: None,
            led_counts: None,
            turn: 0,
            metadata_wanted: false,
            metadata_not_before: now,
            last_error: None,
            commits_not_before: now,
            is_closed: false,
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
    /// deadline: poll again. After any other error, polling again does not help.
    pub fn poll(&mut self, deadline: Deadline) -> Result<Vec<ConsumerRecord>, Error> {
        self.poll_until(deadline, true)
    }

    /// Like [`poll`](Self::poll), but hands out no records. For an application that cannot work
    /// now, but must remain a member and let others rebalance. Blocks until `deadline` or a
    /// wake-up.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    pub fn idle(&mut self, deadline: Deadline) -> Result<(), Error> {
        self.poll_until(deadline, false).map(drop)
    }

    fn poll_until(
        &mut self,
        deadline: Deadline,
        wants_records: bool,
    ) -> Result<Vec<ConsumerRecord>, Error> {
        if self.is_closed {
            return Err(Error::Closed);
        }
        loop {
            if self.shared.machine().polled(Instant::now()) {
                self.shared.notify();
            }
            if self.wake_receiver.take() {
                return Ok(Vec::new());
            }
            let mut look_again = deadline;
            if self.coordinator.is_busy() {
                // While records flow, no other wait would notice the coordinator's answer.
                self.wait(Deadline::after(Duration::ZERO))?;
            }
            // Assigned partitions are read even during a rebalance.
            match self.advance_group(deadline)? {
                Progress::Ready => {
                    self.make_up_commits();
                    if let Some(until) = self.advance_positions(deadline)? {
                        look_again = look_again.earlier_of(Deadline::at(until));
                    }
                }
                Progress::Awaiting => {}
                Progress::Pause(until) => look_again = look_again.earlier_of(Deadline::at(until)),
            }
            if wants_records {
                let records = self.take_records()?;
                if let Some(until) = self.send_fetches(deadline) {
                    look_again = look_again.earlier_of(Deadline::at(until));
                }
                if !records.is_empty() {
                    self.last_error = None;
                    return Ok(records);
                }
            }
            if deadline.is_past() {
                return match self.last_error.take() {
                    Some(error) => Err(error),
                    None => Ok(Vec::new()),
                };
            }
            self.wait(look_again)?;
        }
    }

    /// Waits for an answer, a wake-up or the deadline, and processes what arrived.
    fn wait(&mut self, deadline: Deadline) -> Result<(), Error> {
        let mut sources = vec![self.wake_receiver.as_fd()];
        let group = self.coordinator.awaited();
        sources.extend(group.map(AsFd::as_fd));
        let mut nodes = Vec::new();
        for (&node, leader) in &self.leaders {
            if let Some(connection) = leader.awaited() {
                nodes.push(node);
                sources.push(connection.as_fd());
            }
        }
        let has_group = group.is_some();
        let mut ready = wait::readable(&sources, deadline).into_iter();
        drop(sources);
        if ready.next() == Some(true) {
            self.wake_receiver.drain();
        }
        if has_group {
            let is_ready = ready.next() == Some(true);
            self.group_answer(is_ready, deadline)?;
        }
        for node in nodes {
            let is_ready = ready.next() == Some(true);
            self.leader_answer(node, is_ready)?;
        }
        Ok(())
    }

    /// The partitions currently assigned to this member.
    pub fn assignment(&self) -> Vec<TopicPartition> {
        self.partitions.keys().cloned().collect()
    }

    /// This member's current identity in its group.
    pub fn group_metadata(&self) -> Identity {
        self.shared.machine().identity().clone()
    }

    /// The next offset that [`poll`](Self::poll) will return for a partition. `None` when the
    /// partition is not assigned or its position is not known yet.
    pub fn position(&self, partition: &TopicPartition) -> Option<i64> {
        self.partitions.get(partition)?.position()
    }

    /// Continues reading at `offset`; commits are unaffected. Returns false when the partition is
    /// not assigned.
    pub fn seek(&mut self, partition: &TopicPartition, offset: i64) -> bool {
        self.prepare_seek(partition);
        let found = self.partitions.get_mut(partition);
        if let Some(found) = found {
            found.seek(offset.max(0));
            return true;
        }
        false
    }

    /// Continues reading at the oldest record available, like [`seek`](Self::seek). The next polls
    /// look the offset up. Partitions that are not assigned are ignored.
    pub fn seek_to_beginning(&mut self, partitions: &[TopicPartition]) {
        partitions.iter().for_each(|name| self.prepare_seek(name));
        self.for_each_assigned(partitions, |partition| partition.reset(ResetTo::Earliest));
    }

    /// Continues reading at the end of the log. The next polls look the offset up. Partitions that
    /// are not assigned are ignored.
    pub fn seek_to_end(&mut self, partitions: &[TopicPartition]) {
        partitions.iter().for_each(|name| self.prepare_seek(name));
        self.for_each_assigned(partitions, |partition| partition.reset(ResetTo::Latest));
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
        let paused = self.partitions.iter().filter(|(_, state)| state.is_paused);
        paused.map(|(name, _)| name.clone()).collect()
    }

    fn for_each_assigned(
        &mut self,
        partitions: &[TopicPartition],
        change: impl Fn(&mut Partition),
    ) {
        for name in partitions {
            if let Some(partition) = self.partitions.get_mut(name) {
                change(partition);
            }
        }
    }

    /// Returns to the last commit: the next polls hand out again all records since then.
    pub fn rewind(&mut self) {
        for partition in self.partitions.values_mut() {
            partition.rewind();
        }
    }

    /// The number of records beyond the committed offset, for each partition whose end is known. As
    /// fresh as the last answer about the partition.
    pub fn lag(&self) -> Vec<(TopicPartition, i64)> {
        self.partitions
            .iter()
            .filter_map(|(name, partition)| partition.lag().map(|lag| (name.clone(), lag)))
            .collect()
    }

    /// Whether the group is rebalancing, or needs this member to poll before it can. The
    /// application may cut long work short.
    pub fn rebalance_pending(&self) -> bool {
        self.shared.machine().is_rebalancing()
    }

    /// Leaves the group, so that other members take over at once, and stops the heartbeat thread.
    /// Calls [`ConsumerHooks::revoked`] for the partitions it gives up.
    ///
    /// Commits nothing new: the application commits before. A commit that a rebalance refused is
    /// retried, because no later poll can. If the coordinator has moved, the classic protocol finds
    /// it again, as long as any broker answers. The consumer protocol asks only the coordinator it
    /// knew.
    ///
    /// Waits at most until `deadline`, plus a heartbeat interval if that thread is connecting to a
    /// broker that hangs.
    ///
    /// # Errors
    /// When the coordinator could not be told; it notices after the session time-out. The consumer
    /// is closed nevertheless.
    pub fn close(mut self, deadline: Deadline) -> Result<(), Error> {
        self.await_owed_commits(deadline);
        self.is_closed = true;
        self.drop_all(|consumer, partitions| consumer.hooks.revoked(partitions));
        let left = self.leave(deadline);
        self.stop_heartbeat();
        left
    }

    /// Remains a member while a commit is owed, for [`OWED_PATIENCE`] and until `deadline` at most.
    fn await_owed_commits(&mut self, deadline: Deadline) {
        let patience = deadline.earlier_of(Deadline::after(OWED_PATIENCE));
        while self.partitions.values().any(|state| state.owed.is_some()) && !patience.is_past() {
            let moment = Deadline::after(RETRY_BACKOFF).earlier_of(patience);
            if self.idle(moment).is_err_and(|error| !error.is_transient()) {
                return;
            }
        }
    }

    fn stop_heartbeat(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.heartbeat.take()
            && thread.join().is_err()
        {
            log::error!(
                "consumer group {}: the heartbeat thread panicked",
                self.config.group_id
            );
        }
    }

    /// The deadline of one blocking exchange within a poll.
    fn step_deadline(&self, deadline: Deadline) -> Deadline {
        let step = Deadline::at(deadline.instant().max(Deadline::after(STEP_MIN).instant()));
        step.earlier_of(Deadline::after(self.cluster.config().request_timeout))
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop_heartbeat();
    }
}

#[cfg(test)]
mod tests;
