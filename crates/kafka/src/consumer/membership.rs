//! Group membership on the polling thread: carries out the state machine's steps and applies
//! assignments.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{
    ApiKey, JoinGroupRequest, JoinGroupResponse, OffsetFetchRequest, SyncGroupRequest,
    SyncGroupResponse,
};
use uuid::Uuid;

use super::partitions::Partition;
use super::wait;
use super::{Consumer, RETRY_BACKOFF};
use crate::connection::Sent;
use crate::group::TopicPartition;
use crate::group::assignor::{Assignment, Assignor, Member};
use crate::group::consumer_machine::Target;
use crate::group::coordinator;
use crate::group::machine::{Coordinator, Failure, Identity, Machine, PollStep};
use crate::group::protocol::{Subscription, decode_assignment};
use crate::{Connection, Error};
use tbd_deadline::Deadline;

/// Assigned partitions, each with its topic's id if the group provides it.
type Assigned = BTreeMap<TopicPartition, Option<Uuid>>;

/// The progress of the membership.
pub(super) enum Progress {
    /// Partitions are assigned.
    Ready,
    /// A request to the coordinator is in flight.
    Awaiting,
    /// Back off until this moment.
    Pause(Instant),
}

/// The polling thread's connection to the coordinator, with at most one request in flight.
#[derive(Debug, Default)]
pub(super) struct CoordinatorLink {
    node: Option<Coordinator>,
    connection: Option<Connection>,
    pending: Option<Pending>,
}

/// A request in flight and the deadline of its answer.
#[derive(Debug)]
pub(super) struct Pending {
    request: PendingRequest,
    due: Deadline,
}

#[derive(Debug)]
enum PendingRequest {
    Join(Sent<JoinGroupRequest>),
    Sync(Sent<SyncGroupRequest>, Identity),
    Offsets(Sent<OffsetFetchRequest>, Identity),
}

impl CoordinatorLink {
    /// The connection, if an answer is pending on it.
    pub(super) fn awaited(&self) -> Option<&Connection> {
        self.pending.as_ref().and(self.connection.as_ref())
    }

    /// Whether a request is in flight.
    pub(super) fn is_busy(&self) -> bool {
        self.pending.is_some()
    }

    pub(super) fn disconnect(&mut self) {
        self.connection = None;
        self.pending = None;
    }
}

impl Consumer {
    /// Does what the membership requires, without waiting for slow answers.
    pub(super) fn advance_group(&mut self, deadline: Deadline) -> Result<Progress, Error> {
        loop {
            let (step, is_lost) = {
                let mut machine = self.shared.machine();
                (machine.poll_step(Instant::now()), machine.take_lost())
            };
            if is_lost {
                self.drop_all(|consumer, partitions| consumer.hooks.lost(partitions));
                // A fenced member can join again now.
                self.shared.notify();
            }
            match step {
                PollStep::Fail(code) => {
                    return Err(Error::Broker {
                        api: ApiKey::JoinGroup,
                        code,
                    });
                }
                PollStep::Wait(until) => return Ok(Progress::Pause(until)),
                PollStep::Ready(_) => return Ok(Progress::Ready),
                PollStep::Reconcile(target) => {
                    // Kept partitions are read while the names of new topics are looked up.
                    if !self.reconcile(&target, deadline) {
                        return Ok(Progress::Ready);
                    }
                }
                PollStep::AwaitAnswer => return Ok(Progress::Awaiting),
                PollStep::FindCoordinator => self.find_coordinator(deadline),
                PollStep::Join(coordinator) => self.join(coordinator, deadline),
            }
        }
    }

    /// Calls the classic protocol's machine. Only its steps lead here.
    fn classic<T>(&self, change: impl FnOnce(&mut Machine) -> T) -> Option<T> {
        self.shared.machine().classic().map(change)
    }

    fn find_coordinator(&mut self, deadline: Deadline) {
        let found = coordinator::find(
            &self.cluster,
            &self.config.group_id,
            self.step_deadline(deadline),
        );
        let mut machine = self.shared.machine();
        match found {
            Ok(coordinator) => machine.coordinator_found(coordinator, Instant::now()),
            Err(error) => {
                machine.coordinator_not_found(coordinator::failure(&error), Instant::now());
                drop(machine);
                self.last_error = Some(error);
            }
        }
        self.shared.notify();
    }

    /// Consumer protocol: applies the coordinator's target assignment. Returns false while a
    /// topic's name is unknown.
    fn reconcile(&mut self, target: &Target, deadline: Deadline) -> bool {
        let mut assigned = self.named(target);
        if assigned.is_none() {
            self.want_metadata();
            self.refresh_metadata(deadline);
            assigned = self.named(target);
        }
        let Some(assigned) = assigned else {
            return false;
        };
        self.last_error = None;
        self.make_up_commits();
        self.take_assignment(assigned);
        self.shared.machine().reconciled(target);
        self.shared.notify();
        true
    }

    fn named(&self, target: &Target) -> Option<Assigned> {
        let mut named = Assigned::new();
        for (id, partitions) in target {
            let topic = self.cluster.topic_of(*id)?;
            named.extend(partitions.iter().map(|number| {
                let name = TopicPartition::new(topic.clone(), *number);
                (name, Some(*id))
            }));
        }
        Some(named)
    }

    fn join(&mut self, coordinator: Coordinator, deadline: Deadline) {
        // An eager protocol revokes everything before the join, because the leader reassigns it in
        // the same round.
        if !self.assignor.is_some_and(Assignor::is_cooperative) {
            self.drop_all(|consumer, partitions| consumer.hooks.revoked(partitions));
        }
        let owned = self.assignment();
        // A pending answer belongs to a membership that is over.
        if self.coordinator.is_busy() {
            self.coordinator.disconnect();
        }
        let Some(identity) = self.classic(Machine::start_join) else {
            return;
        };
        let request = coordinator::join_request(&self.config, &identity, &owned);
        let step = self.step_deadline(deadline);
        let sent = self
            .coordinator_connection(&coordinator, step)
            .and_then(|connection| connection.send(&request, step));
        match sent {
            Ok(sent) => {
                // The coordinator answers when all members have joined, which takes as long as the
                // slowest one may be busy (Java adds the same 5 s).
                let due = self.config.max_poll_interval + Duration::from_secs(5);
                let due = Deadline::after(due.max(self.cluster.config().request_timeout));
                self.coordinator.pending = Some(Pending {
                    request: PendingRequest::Join(sent),
                    due,
                });
            }
            Err(error) => self.join_failed(error, None),
        }
    }

    fn join_failed(&mut self, error: Error, member_id: Option<String>) {
        let failure = coordinator::failure(&error);
        if failure == Failure::Transport {
            self.coordinator.disconnect();
        }
        // MemberIdRequired is the first half of joining, not an error.
        let is_named = member_id.as_ref().is_some_and(|id| !id.is_empty())
            && error.code() == Some(kafka_protocol::error::ResponseError::MemberIdRequired);
        self.classic(|machine| machine.join_failed(failure, member_id, Instant::now()));
        self.shared.notify();
        if !is_named {
            log::debug!(
                "consumer group {}: joining failed: {error}",
                self.config.group_id
            );
            self.last_error = Some(error);
        }
    }

    /// Returns the connection to the coordinator, and opens one if none is usable.
    pub(super) fn coordinator_connection(
        &mut self,
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
            None => Connection::open(&coordinator.address, self.cluster.config(), deadline)?,
        };
        Ok(link.connection.insert(connection))
    }

    /// Asks for the committed offsets of partitions without a position. Sends only; a later poll
    /// receives the answer.
    pub(super) fn ask_committed(&mut self, partitions: &[TopicPartition], deadline: Deadline) {
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
        let request = coordinator::offset_fetch_request(&self.config, partitions);
        let step = self.step_deadline(deadline);
        let sent = self
            .coordinator_connection(&coordinator, step)
            .and_then(|connection| connection.send(&request, step));
        match sent {
            Ok(sent) => {
                let due = Deadline::after(self.cluster.config().request_timeout);
                self.coordinator.pending = Some(Pending {
                    request: PendingRequest::Offsets(sent, identity),
                    due,
                });
            }
            Err(error) => self.offsets_failed(error, &identity),
        }
    }

    fn offsets_failed(&mut self, error: Error, identity: &Identity) {
        let failure = coordinator::failure(&error);
        if failure == Failure::Transport {
            self.coordinator.disconnect();
        }
        self.shared
            .machine()
            .offset_fetch_failed(identity, failure, Instant::now());
        self.last_error = Some(error);
    }

    /// Receives the coordinator's answer if it has begun to arrive. Gives up an overdue one.
    pub(super) fn group_answer(&mut self, is_ready: bool, deadline: Deadline) -> Result<(), Error> {
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
            Deadline::after(self.cluster.config().request_timeout)
        } else {
            pending.due
        };
        match pending.request {
            PendingRequest::Join(sent) => match connection.receive(sent, read_by) {
                Ok(answer) => self.joined(answer, deadline),
                Err(error) => self.join_failed(error, None),
            },
            PendingRequest::Sync(sent, identity) => match connection.receive(sent, read_by) {
                Ok(answer) => self.synced(answer, &identity),
                Err(error) => self.sync_failed(error, &identity),
            },
            PendingRequest::Offsets(sent, identity) => match connection.receive(sent, read_by) {
                Ok(answer) => return self.committed_answer(&answer, &identity),
                Err(error) => self.offsets_failed(error, &identity),
            },
        }
        Ok(())
    }

    fn joined(&mut self, answer: JoinGroupResponse, deadline: Deadline) {
        if let Err(error) = Error::check(ApiKey::JoinGroup, answer.error_code) {
            return self.join_failed(error, Some(answer.member_id.to_string()));
        }
        let identity = Identity {
            member_id: answer.member_id.to_string(),
            generation: answer.generation_id,
        };
        let (member_id, generation) = (identity.member_id.clone(), identity.generation);
        let is_wanted =
            self.classic(|machine| machine.joined(member_id, generation, Instant::now()));
        if is_wanted != Some(true) {
            return;
        }
        // Heartbeats begin now.
        self.shared.notify();
        let Some(assignor) = answer
            .protocol_name
            .as_deref()
            .and_then(Assignor::from_name)
        else {
            return self.sync_failed(
                self.bad_answer("JoinGroup names an assignor we did not offer"),
                &identity,
            );
        };
        let was_cooperative = self.assignor.is_some_and(Assignor::is_cooperative);
        if was_cooperative && !assignor.is_cooperative() {
            // A member without the cooperative protocol joined, so the group fell back. The leader
            // reassigns partitions without waiting for their owners to revoke them.
            self.drop_all(|consumer, partitions| consumer.hooks.lost(partitions));
        }
        self.assignor = Some(assignor);
        let is_leader = answer.leader == answer.member_id;
        self.led_counts = None;
        let assignment = if is_leader {
            self.assign(assignor, &answer, deadline)
        } else {
            Assignment::new()
        };
        let request = coordinator::sync_request(&self.config, &identity, assignor, &assignment);
        let step = self.step_deadline(deadline);
        let sent = match self.coordinator.connection.as_mut() {
            Some(connection) => connection.send(&request, step),
            None => Err(self.bad_answer("no connection")),
        };
        match sent {
            Ok(sent) => {
                // Other members may take long to sync, the leader above all.
                let due = self.config.max_poll_interval + Duration::from_secs(5);
                let due = Deadline::after(due.max(self.cluster.config().request_timeout));
                self.coordinator.pending = Some(Pending {
                    request: PendingRequest::Sync(sent, identity),
                    due,
                });
            }
            Err(error) => self.sync_failed(error, &identity),
        }
    }

    /// Distributes the partitions among the members, as the group's leader.
    fn assign(
        &mut self,
        assignor: Assignor,
        answer: &JoinGroupResponse,
        deadline: Deadline,
    ) -> Assignment {
        let members: Vec<Member> = answer
            .members
            .iter()
            .map(|member| Member {
                member_id: member.member_id.to_string(),
                instance_id: member.group_instance_id.as_ref().map(ToString::to_string),
                subscription: Subscription::decode(member.metadata.clone()).unwrap_or_else(
                    |error| {
                        // This member gets nothing; the others must not suffer for it.
                        log::warn!(
                            "consumer group {}: member {}: {error}",
                            self.config.group_id,
                            member.member_id
                        );
                        Subscription::default()
                    },
                ),
            })
            .collect();
        let topics: BTreeSet<Arc<str>> = members
            .iter()
            .flat_map(|member| member.subscription.topics.iter().cloned())
            .collect();
        let topics: Vec<Arc<str>> = topics.into_iter().collect();
        // All members wait for this call. After a failure the cached counts serve, and the check
        // after the next refresh corrects them.
        if let Err(error) = self.cluster.refresh(&topics, self.step_deadline(deadline)) {
            self.last_error = Some(error);
        }
        let counts: HashMap<Arc<str>, Option<i32>> = topics
            .into_iter()
            .map(|topic| (topic.clone(), self.cluster.partitions(&topic)))
            .collect();
        let known = counts
            .iter()
            .filter_map(|(topic, count)| count.map(|count| (topic.clone(), count)))
            .collect();
        self.led_counts = Some(counts);
        assignor.assign(&members, &known)
    }

    /// As the leader, rejoins when topics appear or grow.
    pub(super) fn check_led_counts(&mut self) {
        let has_changed = self.led_counts.as_ref().is_some_and(|counts| {
            counts
                .iter()
                .any(|(topic, count)| self.cluster.partitions(topic) != *count)
        });
        if has_changed {
            log::info!(
                "consumer group {}: partitions changed, rebalancing",
                self.config.group_id
            );
            self.classic(Machine::want_rejoin);
        }
    }

    fn synced(&mut self, answer: SyncGroupResponse, identity: &Identity) {
        if let Err(error) = Error::check(ApiKey::SyncGroup, answer.error_code) {
            return self.sync_failed(error, identity);
        }
        let assigned = match decode_assignment(answer.assignment) {
            Ok(assigned) => assigned,
            Err(error) => return self.sync_failed(self.bad_answer(&error.to_string()), identity),
        };
        if self.classic(|machine| machine.synced(identity, Instant::now())) != Some(true) {
            return;
        }
        self.last_error = None;
        // Before partitions move, so that their next owner does not repeat the work.
        self.make_up_commits();
        self.take_assignment(assigned.into_iter().map(|name| (name, None)).collect());
        self.shared.notify();
    }

    /// Revokes removed partitions, adds new ones, and leaves the others running.
    fn take_assignment(&mut self, mut assigned: Assigned) {
        let topics = &self.config.topics;
        assigned.retain(|partition, _| topics.iter().any(|topic| **topic == *partition.topic));
        let revoked: Vec<TopicPartition> = self
            .partitions
            .keys()
            .filter(|partition| !assigned.contains_key(*partition))
            .cloned()
            .collect();
        let added: Vec<TopicPartition> = assigned
            .keys()
            .filter(|partition| !self.partitions.contains_key(*partition))
            .cloned()
            .collect();
        log::info!(
            "consumer group {}: {} partitions assigned, {} of them new, {} revoked",
            self.config.group_id,
            assigned.len(),
            added.len(),
            revoked.len()
        );
        if !revoked.is_empty() {
            self.partitions
                .retain(|partition, _| assigned.contains_key(partition));
            self.hooks.revoked(&revoked);
            // The revoked partitions are free; the next round assigns them.
            self.classic(Machine::want_rejoin);
        }
        for (partition, id) in assigned {
            // If only the id is new, the leader refuses the old one, and the partition restarts
            // then.
            let known = self.partitions.entry(partition);
            known.or_insert_with(|| Partition::new(id)).assigned_id = id;
        }
        self.hooks.assigned(&added);
    }

    fn sync_failed(&mut self, error: Error, identity: &Identity) {
        let failure = coordinator::failure(&error);
        if failure == Failure::Transport {
            self.coordinator.disconnect();
        }
        self.classic(|machine| machine.sync_failed(identity, failure, Instant::now()));
        log::debug!(
            "consumer group {}: rebalance interrupted: {error}",
            self.config.group_id
        );
        if error.code() != Some(ResponseError::RebalanceInProgress) {
            self.last_error = Some(error);
        }
    }

    /// Drops all partitions, then calls `tell` with them.
    pub(super) fn drop_all(&mut self, tell: impl FnOnce(&Self, &[TopicPartition])) {
        let dropped = self.assignment();
        self.partitions.clear();
        if !dropped.is_empty() {
            tell(self, &dropped);
        }
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

    /// Leaves the group in any state of the membership.
    pub(super) fn leave(&mut self, deadline: Deadline) -> Result<(), Error> {
        // The thread that joined is the one that leaves, so that the two requests cannot overtake
        // each other.
        self.shared.machine().begin_leaving();
        self.shared.notify();
        if !self.shared.wait_left(deadline) {
            return Err(Error::Timeout {
                what: format!("leaving group {}", self.config.group_id),
            });
        }
        self.leave_classic(deadline)
    }

    fn leave_classic(&mut self, deadline: Deadline) -> Result<(), Error> {
        // The coordinator answers a first join at once with the member id. Without it the member
        // cannot leave, and the group would wait for it until the session time-out.
        let is_nameless = self.shared.machine().identity().member_id.is_empty();
        if is_nameless && let Some(connection) = self.coordinator.awaited() {
            let patience = deadline.earlier_of(Deadline::after(Duration::from_secs(1)));
            let is_ready =
                wait::readable(&[std::os::fd::AsFd::as_fd(connection)], patience) == [true];
            self.group_answer(is_ready, deadline)?;
        }
        let Some((mut known, identity)) = self.classic(Machine::close).flatten() else {
            return Ok(());
        };
        // The coordinator does not read further requests before it has answered the join.
        if self.coordinator.is_busy() {
            self.coordinator.disconnect();
        }
        loop {
            let coordinator = match known.take() {
                Some(known) => Ok(known),
                None => coordinator::find(&self.cluster, &self.config.group_id, deadline),
            };
            let is_nobody_there = matches!(&coordinator,
                Err(error) if coordinator::failure(error) == Failure::Transport);
            let answer = coordinator.and_then(|to| self.send_leave(&to, &identity, deadline));
            let may_wait = !is_nobody_there && deadline.remaining() > RETRY_BACKOFF;
            match answer {
                // The coordinator is moving. A broker may know its new place at the next attempt.
                Err(error) if may_wait && error.is_transient() => {
                    log::debug!("consumer group {}: {error}", self.config.group_id);
                    self.coordinator.disconnect();
                    std::thread::sleep(RETRY_BACKOFF);
                }
                answer => return answer,
            }
        }
    }

    fn send_leave(
        &mut self,
        to: &Coordinator,
        identity: &Identity,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let request = coordinator::leave_request(&self.config, identity);
        let answer = self
            .coordinator_connection(to, deadline)?
            .call(&request, deadline)?;
        let codes = answer.members.iter().map(|member| member.error_code);
        std::iter::once(answer.error_code)
            .chain(codes)
            // An earlier LeaveGroup may have succeeded although its answer was lost.
            .filter(|&code| code != ResponseError::UnknownMemberId.code())
            .try_for_each(|code| Error::check(ApiKey::LeaveGroup, code))
    }

    /// Waits for a pending answer about offsets, so that the connection is free.
    pub(super) fn settle_coordinator(&mut self, deadline: Deadline) -> Result<(), Error> {
        if let Some(connection) = self.coordinator.awaited() {
            let is_ready =
                wait::readable(&[std::os::fd::AsFd::as_fd(connection)], deadline) == [true];
            if !is_ready {
                self.coordinator.disconnect();
                return Ok(());
            }
            self.group_answer(true, deadline)?;
        }
        Ok(())
    }
}
