//! Group membership on the polling thread: carries out the state machine's steps and applies
//! assignments.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use kafka_protocol::messages::{
    JoinGroupRequest, OffsetCommitRequest, OffsetFetchRequest, SyncGroupRequest,
};
use uuid::Uuid;

use super::commit::{PendingCommit, Rebalance};
use super::partitions::Partition;
use super::positions::earlier;
use super::reading::Reading;
use super::{GroupProtocol, RETRY_BACKOFF, RETRY_BACKOFF_MAX, STEP_MIN};
use crate::Error;
use crate::connection::{Connection, Sent};
use crate::group::assignor::Assignor;
use crate::group::consumer_machine::{ConsumerMachine, Target};
use crate::group::heartbeat::{self, MembershipShared};
use crate::group::machine::{Coordinator, Failure, Identity, Machine, PollStep, Settings};
use crate::group::{MemberConfig, TopicPartition, coordinator, member};
use crate::wait::{self, Waker};
use tbd_deadline::Deadline;

/// Assigned partitions, each with its topic's id if the group provides it.
pub(super) type Assigned = BTreeMap<TopicPartition, Option<Uuid>>;

/// The progress of the membership.
enum Progress {
    /// Partitions are assigned.
    Ready,
    /// A request to the coordinator is in flight, or the member backs off until this moment.
    Waiting(Option<Instant>),
}

/// The membership of a consumer in its group.
pub(super) struct GroupMember {
    pub(super) config: Arc<MemberConfig>,
    pub(super) shared: Arc<MembershipShared>,
    heartbeat: Option<JoinHandle<()>>,
    pub(super) coordinator: CoordinatorLink,
    /// The assignor that the group last agreed on.
    pub(super) assignor: Option<Assignor>,
    /// The partition counts seen at the last rebalance, if this member led it.
    pub(super) led_counts: Option<HashMap<Arc<str>, Option<i32>>>,
    /// The last metadata that `led_counts` was compared with.
    pub(super) refreshes: u64,
    /// When failed commits are retried.
    pub(super) commits_not_before: Instant,
}

/// The polling thread's connection to the coordinator, with at most one request in flight.
#[derive(Debug, Default)]
pub(super) struct CoordinatorLink {
    node: Option<Coordinator>,
    pub(super) connection: Option<Connection>,
    pub(super) pending: Option<Pending>,
}

/// A request in flight and the deadline of its answer.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) request: PendingRequest,
    pub(super) due: Deadline,
}

#[derive(Debug)]
pub(super) enum PendingRequest {
    Join(Sent<JoinGroupRequest>),
    Sync(Sent<SyncGroupRequest>, Identity),
    Offsets(Sent<OffsetFetchRequest>, Identity),
    Commit(Sent<OffsetCommitRequest>, Identity, PendingCommit),
}

impl CoordinatorLink {
    /// The error with which the coordinator refused something.
    pub(super) fn refused(&self, error: Error) -> Error {
        error.of_broker(self.connection.as_ref().map(Connection::address))
    }

    /// The connection, if an answer is pending on it.
    pub(super) fn awaited(&self) -> Option<&Connection> {
        self.pending.as_ref().and(self.connection.as_ref())
    }

    /// Whether a request is in flight.
    pub(super) fn is_busy(&self) -> bool {
        self.pending.is_some()
    }

    /// Closes the connection. A commit in flight then has an unknown outcome.
    pub(super) fn disconnect(&mut self) {
        self.connection = None;
        if let Some(PendingRequest::Commit(_, _, commit)) =
            self.pending.take().map(|pending| pending.request)
        {
            commit.interrupted();
        }
    }
}

impl GroupMember {
    /// Starts the heartbeat thread. Does no other I/O.
    pub(super) fn start(reading: &Reading, waker: &Waker) -> Result<Self, Error> {
        static NEXT_NAME: AtomicU64 = AtomicU64::new(0);
        let (now, config) = (Instant::now(), &reading.config);
        let settings = Settings {
            session_timeout: config.session_timeout,
            heartbeat_interval: config.heartbeat_interval,
            max_poll_interval: config.max_poll_interval,
            retry_backoff: RETRY_BACKOFF,
            retry_backoff_max: RETRY_BACKOFF_MAX,
            is_static: config.group_instance_id.is_some(),
        };
        let machine = match config.group_protocol {
            GroupProtocol::Classic => member::Member::Classic(Machine::new(settings, now)),
            GroupProtocol::Consumer => {
                member::Member::Consumer(ConsumerMachine::new(settings, now))
            }
        };
        let config = Arc::new(MemberConfig {
            group_id: config.group_id.clone(),
            instance_id: config.group_instance_id.clone(),
            protocol: config.group_protocol,
            session_timeout: config.session_timeout,
            heartbeat_interval: config.heartbeat_interval,
            max_poll_interval: config.max_poll_interval,
            assignors: config.assignors.clone(),
            rack: config.client_rack.clone(),
        });
        let topics = Arc::clone(&reading.topics);
        let shared = Arc::new(MembershipShared::new(machine, topics, waker.clone()));
        let name = NEXT_NAME.fetch_add(1, Ordering::Relaxed).to_string();
        let cluster = reading.cluster.clone();
        let heartbeat = heartbeat::spawn(&name, shared.clone(), cluster, config.clone())
            .map_err(|error| Error::resource(&error))?;
        Ok(Self {
            config,
            shared,
            heartbeat: Some(heartbeat),
            coordinator: CoordinatorLink::default(),
            assignor: None,
            led_counts: None,
            refreshes: 0,
            commits_not_before: now,
        })
    }

    /// The connection on which an answer is pending.
    pub(super) fn awaited(&self) -> Option<&Connection> {
        self.coordinator.awaited()
    }

    /// When that answer is overdue.
    pub(super) fn answer_due(&self) -> Option<Deadline> {
        let pending = self.coordinator.pending.as_ref();
        pending.map(|pending| pending.due)
    }

    /// Whether a request to the coordinator is in flight.
    pub(super) fn is_busy(&self) -> bool {
        self.coordinator.is_busy()
    }

    /// Whether a commit is in flight.
    pub(super) fn is_committing(&self) -> bool {
        let pending = self.coordinator.pending.as_ref();
        pending.is_some_and(|it| matches!(it.request, PendingRequest::Commit(..)))
    }

    pub(super) fn identity(&self) -> Identity {
        self.shared.machine().identity().clone()
    }

    pub(super) fn is_rebalancing(&self) -> bool {
        self.shared.machine().is_rebalancing()
    }

    /// The application is polling, so it is not stuck.
    pub(super) fn polled(&self) {
        if self.shared.machine().polled(Instant::now()) {
            self.shared.notify();
        }
    }

    /// Advances the membership and the positions, without waiting for slow answers. Returns when to
    /// look again.
    pub(super) fn advance(
        &mut self,
        reading: &mut Reading,
        has_new_topics: bool,
        deadline: Deadline,
    ) -> Result<Option<Instant>, Error> {
        if has_new_topics {
            self.shared.set_topics(Arc::clone(&reading.topics));
        }
        if self.shared.is_dead() {
            // Other members may own the partitions by now.
            self.give_up_all(reading, true);
            let step = reading.step_deadline(deadline);
            if let Err(error) = self.leave_here(reading, step) {
                log::warn!("{}: leaving failed: {error}", reading.name);
            }
            return Err(heartbeat_panicked());
        }
        if let Progress::Waiting(until) = self.advance_membership(reading, deadline)? {
            if reading.partitions.is_empty() {
                return Ok(until);
            }
            // The partitions are read meanwhile, and their leaders may change. A slow answer must
            // not hold the membership up.
            let soon = deadline.earlier_of(Deadline::after(STEP_MIN));
            let (_, look_again) = reading.advance_positions(soon)?;
            return Ok(earlier(until, look_again));
        }
        self.make_up_commits(reading);
        let (unknown, look_again) = reading.advance_positions(deadline)?;
        self.check_led_counts(reading);
        if !unknown.is_empty() && !self.is_busy() {
            self.ask_committed(reading, &unknown, deadline);
        }
        Ok(look_again)
    }

    fn advance_membership(
        &mut self,
        reading: &mut Reading,
        deadline: Deadline,
    ) -> Result<Progress, Error> {
        loop {
            let (step, is_lost) = {
                let mut machine = self.shared.machine();
                (machine.poll_step(Instant::now()), machine.take_lost())
            };
            if is_lost {
                self.give_up_all(reading, true);
                // A fenced member can join again now.
                self.shared.notify();
            }
            match step {
                PollStep::Fail(code) => {
                    let api = self.shared.machine().joins_by();
                    return Err(Error::refused(api, code));
                }
                PollStep::Wait(until) => return Ok(Progress::Waiting(Some(until))),
                PollStep::Ready(_) => return Ok(Progress::Ready),
                PollStep::Reconcile(target) => {
                    // Kept partitions are read while the names of new topics are looked up.
                    if !self.reconcile(reading, &target, deadline)? {
                        return Ok(Progress::Ready);
                    }
                }
                PollStep::AwaitAnswer => return Ok(Progress::Waiting(None)),
                PollStep::FindCoordinator => self.find_coordinator(reading, deadline),
                PollStep::Join(coordinator) => self.join(reading, coordinator, deadline),
            }
        }
    }

    fn find_coordinator(&mut self, reading: &mut Reading, deadline: Deadline) {
        let step = reading.step_deadline(deadline);
        let found = coordinator::find(&reading.cluster, &self.config.group_id, step);
        let mut machine = self.shared.machine();
        match found {
            Ok(coordinator) => machine.coordinator_found(coordinator, Instant::now()),
            Err(error) => {
                machine.coordinator_not_found(coordinator::failure(&error), Instant::now());
                drop(machine);
                reading.last_error = Some(error);
            }
        }
        self.shared.notify();
    }

    /// Consumer protocol: applies the coordinator's target assignment. Returns false while a
    /// topic's name is unknown.
    fn reconcile(
        &mut self,
        reading: &mut Reading,
        target: &Target,
        deadline: Deadline,
    ) -> Result<bool, Error> {
        let mut assigned = named(reading, target);
        if assigned.is_none() {
            reading.want_metadata();
            reading.refresh_metadata(deadline)?;
            assigned = named(reading, target);
        }
        let Some(assigned) = assigned else {
            return Ok(false);
        };
        reading.last_error = None;
        self.make_up_last_commits(reading);
        self.take_assignment(reading, assigned);
        self.shared.machine().reconciled(target);
        self.shared.notify();
        Ok(true)
    }

    /// Returns the connection to the coordinator, and opens one if none is usable.
    pub(super) fn coordinator_connection(
        &mut self,
        reading: &Reading,
        coordinator: &Coordinator,
        deadline: Deadline,
    ) -> Result<&mut Connection, Error> {
        let link = &mut self.coordinator;
        let is_reusable = link.node.as_ref() == Some(coordinator)
            && link.connection.as_mut().is_some_and(Connection::is_usable);
        if !is_reusable {
            link.disconnect();
            link.node = Some(coordinator.clone());
        }
        let connection = match link.connection.take() {
            Some(connection) => connection,
            None => reading.cluster.open(&coordinator.address, deadline)?,
        };
        Ok(link.connection.insert(connection))
    }

    /// Asks for the committed offsets of partitions without a position. Sends only; a later poll
    /// receives the answer.
    fn ask_committed(
        &mut self,
        reading: &mut Reading,
        partitions: &[TopicPartition],
        deadline: Deadline,
    ) {
        let (step, identity) = {
            let machine = self.shared.machine();
            (
                machine.poll_step(Instant::now()),
                machine.identity().clone(),
            )
        };
        let PollStep::Ready(coordinator) = step else {
            return;
        };
        let group_id = &self.config.group_id;
        let request = coordinator::offset_fetch_request(group_id, Some(partitions), true);
        let step = reading.step_deadline(deadline);
        let sent = self
            .coordinator_connection(reading, &coordinator, step)
            .and_then(|connection| connection.send(&request, step));
        match sent {
            Ok(sent) => {
                let due = Deadline::after(reading.cluster.config().request_timeout);
                self.coordinator.pending = Some(Pending {
                    request: PendingRequest::Offsets(sent, identity),
                    due,
                });
            }
            Err(error) => self.offsets_failed(reading, error, &identity),
        }
    }

    fn offsets_failed(&mut self, reading: &mut Reading, error: Error, identity: &Identity) {
        let failure = coordinator::failure(&error);
        if failure == Failure::Transport {
            self.coordinator.disconnect();
        }
        self.shared
            .machine()
            .offset_fetch_failed(identity, failure, Instant::now());
        reading.last_error = Some(error);
    }

    /// Receives the coordinator's answer if it has begun to arrive. Gives up an overdue one.
    pub(super) fn take_answer(
        &mut self,
        reading: &mut Reading,
        is_ready: bool,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let is_overdue = self
            .coordinator
            .pending
            .as_ref()
            .is_some_and(|pending| pending.due.is_past());
        if !is_ready && !is_overdue {
            return Ok(());
        }
        let Some(pending) = self.coordinator.pending.take() else {
            return Ok(());
        };
        let Some(connection) = self.coordinator.connection.as_mut() else {
            return Ok(());
        };
        // An answer that has begun to arrive gets time to arrive completely.
        let read_by = if is_ready {
            Deadline::after(reading.cluster.config().request_timeout)
        } else {
            pending.due
        };
        match pending.request {
            PendingRequest::Join(sent) => match connection.receive(sent, read_by) {
                Ok(answer) => self.joined(reading, answer, deadline),
                Err(error) => self.join_failed(reading, error, None),
            },
            PendingRequest::Sync(sent, identity) => match connection.receive(sent, read_by) {
                Ok(answer) => self.synced(reading, answer, &identity),
                Err(error) => self.sync_failed(reading, error, &identity),
            },
            PendingRequest::Offsets(sent, identity) => match connection.receive(sent, read_by) {
                Ok(answer) => {
                    return reading.committed_answer(&answer, |code| {
                        let (failure, now) = (Failure::Code(code), Instant::now());
                        let mut machine = self.shared.machine();
                        machine.offset_fetch_failed(&identity, failure, now)
                    });
                }
                Err(error) => self.offsets_failed(reading, error, &identity),
            },
            PendingRequest::Commit(sent, identity, commit) => {
                let answer = connection.receive(sent, read_by);
                self.commit_answered(reading, answer, &identity, &commit);
            }
        }
        Ok(())
    }

    /// Revokes removed partitions, adds new ones, and leaves the others running.
    pub(super) fn take_assignment(&mut self, reading: &mut Reading, mut assigned: Assigned) {
        let topics = &reading.topics;
        assigned.retain(|partition, _| topics.contains(&partition.topic));
        let revoked: Vec<TopicPartition> = reading
            .partitions
            .keys()
            .filter(|partition| !assigned.contains_key(*partition))
            .cloned()
            .collect();
        let added: Vec<TopicPartition> = assigned
            .keys()
            .filter(|partition| !reading.partitions.contains_key(*partition))
            .cloned()
            .collect();
        log::info!(
            "{}: {} partitions assigned, {} of them new, {} revoked",
            reading.name,
            assigned.len(),
            added.len(),
            revoked.len()
        );
        if !revoked.is_empty() {
            self.give_up(reading, &revoked, false);
            // The revoked partitions are free; the next round assigns them.
            self.classic(Machine::want_rejoin);
        }
        for (partition, id) in assigned {
            // If only the id is new, the leader refuses the old one, and the partition restarts
            // then.
            let known = reading.partitions.entry(partition);
            known.or_insert_with(|| Partition::new(id)).assigned_id = id;
        }
        reading.call_hook(|hooks| hooks.assigned(&added));
    }

    /// Gives all partitions up.
    pub(super) fn give_up_all(&mut self, reading: &mut Reading, is_lost: bool) {
        self.give_up(reading, &reading.assignment(), is_lost);
    }

    /// Gives partitions up, and calls the hooks. The application may commit before, unless the
    /// partitions are lost.
    fn give_up(&mut self, reading: &mut Reading, partitions: &[TopicPartition], is_lost: bool) {
        if partitions.is_empty() {
            return;
        }
        if !is_lost {
            // The hook may use the consumer, which owns the hook.
            let hooks = std::mem::replace(&mut reading.hooks, Box::new(()));
            let mut rebalance = Rebalance::new(self, reading);
            let call = AssertUnwindSafe(|| hooks.revoking(&mut rebalance, partitions));
            let result = std::panic::catch_unwind(call);
            reading.hooks = hooks;
            reading.hook_called(result);
        }
        for partition in partitions {
            reading.partitions.remove(partition);
        }
        reading.call_hook(|hooks| match is_lost {
            true => hooks.lost(partitions),
            false => hooks.revoked(partitions),
        });
    }

    pub(super) fn bad_answer(&self, reason: &str) -> Error {
        let address = self
            .coordinator
            .node
            .as_ref()
            .map(|node| node.address.clone());
        Error::Protocol {
            address: address.unwrap_or_default(),
            reason: reason.to_owned(),
        }
    }

    /// Gives all partitions up, leaves the group and stops the heartbeat thread.
    pub(super) fn close(&mut self, reading: &mut Reading, deadline: Deadline) -> Result<(), Error> {
        self.give_up_all(reading, false);
        let left = self.leave(reading, deadline);
        self.stop_heartbeat();
        left
    }

    fn stop_heartbeat(&mut self) {
        self.shared.stop();
        // The thread catches its panics.
        self.heartbeat.take().map(JoinHandle::join);
    }

    /// Leaves the group in any state of the membership.
    fn leave(&mut self, reading: &mut Reading, deadline: Deadline) -> Result<(), Error> {
        // The thread that joined is the one that leaves, so that the two requests cannot overtake
        // each other.
        self.shared.machine().close();
        self.shared.notify();
        if !self.shared.wait_left(deadline) {
            let what = format!("leaving group {}", self.config.group_id);
            return Err(Error::timeout(what));
        }
        if let Some(error) = self.shared.take_leave_error() {
            return Err(error);
        }
        self.leave_here(reading, deadline)
    }

    /// Waits for a pending answer about offsets, so that the connection is free.
    pub(super) fn settle_coordinator(
        &mut self,
        reading: &mut Reading,
        deadline: Deadline,
    ) -> Result<(), Error> {
        if let Some(connection) = self.coordinator.awaited() {
            let is_ready = wait::readable(&[connection.as_fd()], deadline) == [true];
            if !is_ready {
                self.coordinator.disconnect();
                return Ok(());
            }
            self.take_answer(reading, true, deadline)?;
        }
        Ok(())
    }
}

impl Drop for GroupMember {
    fn drop(&mut self) {
        self.stop_heartbeat();
    }
}

/// The target's partitions by name; `None` while the name of a topic is unknown.
fn named(reading: &Reading, target: &Target) -> Option<Assigned> {
    let mut named = Assigned::new();
    for (id, partitions) in target {
        let topic = reading.cluster.topic_of(*id)?;
        named.extend(partitions.iter().map(|number| {
            let name = TopicPartition::new(topic.clone(), *number);
            (name, Some(*id))
        }));
    }
    Some(named)
}

/// The error of a member that nobody keeps alive.
pub(super) fn heartbeat_panicked() -> Error {
    Error::Panicked {
        thread: "kafka-heartbeat".to_owned(),
    }
}
