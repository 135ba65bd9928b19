//! The classic protocol on the polling thread: JoinGroup, the leader's assignment, SyncGroup,
//! LeaveGroup.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::messages::{JoinGroupResponse, SyncGroupResponse};

use super::RETRY_BACKOFF;
use super::membership::{GroupMember, Pending, PendingRequest};
use super::reading::Reading;
use crate::group::assignor::{Assignment, Assignor, Member, Racks};
use crate::group::coordinator;
use crate::group::machine::{Coordinator, Failure, Identity, Machine};
use crate::group::protocol::{Subscription, decode_assignment};
use crate::wait;
use crate::{ApiKey, Error, ErrorCode};
use tbd_deadline::Deadline;

impl GroupMember {
    /// Calls the classic protocol's machine. Only its steps lead here.
    pub(super) fn classic<T>(&self, change: impl FnOnce(&mut Machine) -> T) -> Option<T> {
        self.shared.machine().classic().map(change)
    }

    pub(super) fn join(
        &mut self,
        reading: &mut Reading,
        coordinator: Coordinator,
        deadline: Deadline,
    ) {
        // An eager protocol revokes everything before the join, because the leader reassigns it in
        // the same round.
        if !self.assignor.is_some_and(Assignor::is_cooperative) {
            self.make_up_last_commits(reading);
            self.give_up_all(reading, false);
        }
        let owned = reading.assignment();
        // A pending answer belongs to a membership that is over.
        if self.coordinator.is_busy() {
            self.coordinator.disconnect();
        }
        let Some(identity) = self.classic(Machine::start_join) else {
            return;
        };
        let request = coordinator::join_request(&self.config, &reading.topics, &identity, &owned);
        let step = reading.step_deadline(deadline);
        let sent = self
            .coordinator_connection(reading, &coordinator, step)
            .and_then(|connection| connection.send(&request, step));
        match sent {
            Ok(sent) => {
                // The coordinator answers when all members have joined, which takes as long as the
                // slowest one may be busy (Java adds the same 5 s).
                let due = self.config.max_poll_interval + Duration::from_secs(5);
                let due = Deadline::after(due.max(reading.cluster.config().request_timeout));
                self.coordinator.pending = Some(Pending {
                    request: PendingRequest::Join(sent),
                    due,
                });
            }
            Err(error) => self.join_failed(reading, error, None),
        }
    }

    pub(super) fn join_failed(
        &mut self,
        reading: &mut Reading,
        error: Error,
        member_id: Option<String>,
    ) {
        let failure = coordinator::failure(&error);
        if failure == Failure::Transport {
            self.coordinator.disconnect();
        }
        // MemberIdRequired is the first half of joining, not an error.
        let is_named = member_id.as_ref().is_some_and(|id| !id.is_empty())
            && error.code() == Some(ErrorCode::MemberIdRequired);
        self.classic(|machine| machine.join_failed(failure, member_id, Instant::now()));
        self.shared.notify();
        if !is_named {
            log::debug!("{}: joining failed: {error}", reading.name);
            // An answer without an id is followed by another join.
            let is_repeated = error.code() == Some(ErrorCode::MemberIdRequired);
            let error = if is_repeated {
                error.of_repeated()
            } else {
                error
            };
            reading.last_error = Some(error);
        }
    }

    pub(super) fn joined(
        &mut self,
        reading: &mut Reading,
        answer: JoinGroupResponse,
        deadline: Deadline,
    ) {
        if let Err(error) = Error::check(ApiKey::JoinGroup, answer.error_code) {
            let error = self.coordinator.refused(error);
            return self.join_failed(reading, error, Some(answer.member_id.to_string()));
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
                reading,
                self.bad_answer("JoinGroup names an assignor we did not offer"),
                &identity,
            );
        };
        let was_cooperative = self.assignor.is_some_and(Assignor::is_cooperative);
        if was_cooperative && !assignor.is_cooperative() {
            // A member without the cooperative protocol joined, so the group fell back. The leader
            // reassigns partitions without waiting for their owners to revoke them.
            self.give_up_all(reading, true);
        }
        self.assignor = Some(assignor);
        let is_leader = answer.leader == answer.member_id;
        self.led_counts = None;
        let assignment = if is_leader {
            self.assign(reading, assignor, &answer, deadline)
        } else {
            Assignment::new()
        };
        let request = coordinator::sync_request(&self.config, &identity, assignor, &assignment);
        let step = reading.step_deadline(deadline);
        let sent = match self.coordinator.connection.as_mut() {
            Some(connection) => connection.send(&request, step),
            None => Err(self.bad_answer("no connection")),
        };
        match sent {
            Ok(sent) => {
                // Other members may take long to sync, the leader above all.
                let due = self.config.max_poll_interval + Duration::from_secs(5);
                let due = Deadline::after(due.max(reading.cluster.config().request_timeout));
                self.coordinator.pending = Some(Pending {
                    request: PendingRequest::Sync(sent, identity),
                    due,
                });
            }
            Err(error) => self.sync_failed(reading, error, &identity),
        }
    }

    /// Distributes the partitions among the members, as the group's leader.
    fn assign(
        &mut self,
        reading: &mut Reading,
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
                        log::warn!("{}: member {}: {error}", reading.name, member.member_id);
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
        if let Err(error) = reading
            .cluster
            .refresh(&topics, reading.step_deadline(deadline))
        {
            reading.last_error = Some(error);
        }
        let is_racked = members.iter().any(|it| it.subscription.rack.is_some());
        let racked = topics.iter().filter(|_| is_racked);
        let racks = racked.map(|topic| (topic.clone(), reading.cluster.replica_racks(topic)));
        let racks: Racks = racks.collect();
        let counts: HashMap<Arc<str>, Option<i32>> = topics
            .into_iter()
            .map(|topic| (topic.clone(), reading.cluster.partitions(&topic)))
            .collect();
        let known = counts
            .iter()
            .filter_map(|(topic, count)| count.map(|count| (topic.clone(), count)))
            .collect();
        self.led_counts = Some(counts);
        assignor.assign(&members, &known, &racks)
    }

    /// As the leader, rejoins when topics appear or grow.
    pub(super) fn check_led_counts(&mut self, reading: &Reading) {
        if std::mem::replace(&mut self.refreshes, reading.refreshes) == reading.refreshes {
            return;
        }
        let has_changed = self.led_counts.as_ref().is_some_and(|counts| {
            counts
                .iter()
                .any(|(topic, count)| reading.cluster.partitions(topic) != *count)
        });
        if has_changed {
            log::info!("{}: partitions changed, rebalancing", reading.name);
            self.classic(Machine::want_rejoin);
        }
    }

    pub(super) fn synced(
        &mut self,
        reading: &mut Reading,
        answer: SyncGroupResponse,
        identity: &Identity,
    ) {
        if let Err(error) = Error::check(ApiKey::SyncGroup, answer.error_code) {
            let error = self.coordinator.refused(error);
            return self.sync_failed(reading, error, identity);
        }
        let assigned = match decode_assignment(answer.assignment) {
            Ok(assigned) => assigned,
            Err(error) => {
                let error = self.bad_answer(&error.to_string());
                return self.sync_failed(reading, error, identity);
            }
        };
        if self.classic(|machine| machine.synced(identity, Instant::now())) != Some(true) {
            return;
        }
        reading.last_error = None;
        self.make_up_last_commits(reading);
        self.take_assignment(
            reading,
            assigned.into_iter().map(|name| (name, None)).collect(),
        );
        self.shared.notify();
    }

    pub(super) fn sync_failed(&mut self, reading: &mut Reading, error: Error, identity: &Identity) {
        let failure = coordinator::failure(&error);
        if failure == Failure::Transport {
            self.coordinator.disconnect();
        }
        self.classic(|machine| machine.sync_failed(identity, failure, Instant::now()));
        log::debug!("{}: rebalance interrupted: {error}", self.config.group_id);
        if error.code() != Some(ErrorCode::RebalanceInProgress) {
            reading.last_error = Some(error);
        }
    }

    /// Leaves from the polling thread, if the member has not left: the classic protocol's way, and
    /// every protocol's after a panic or a failed leave of the heartbeat thread. Looks for a moving
    /// coordinator until `deadline`.
    pub(super) fn leave_here(
        &mut self,
        reading: &mut Reading,
        deadline: Deadline,
    ) -> Result<(), Error> {
        // The coordinator answers a first join at once with the member id. Without it the member
        // cannot leave, and the group would wait for it until the session time-out.
        let is_nameless = self.shared.machine().identity().member_id.is_empty();
        if is_nameless && let Some(connection) = self.coordinator.awaited() {
            let patience = deadline.earlier_of(Deadline::after(Duration::from_secs(1)));
            let is_ready = wait::readable(&[connection.as_fd()], patience) == [true];
            self.take_answer(reading, is_ready, deadline)?;
        }
        let leaver = self.shared.machine().take_leaver();
        let Some((mut known, identity)) = leaver else {
            return Ok(());
        };
        // The coordinator does not read further requests before it has answered the join.
        if self.coordinator.is_busy() {
            self.coordinator.disconnect();
        }
        loop {
            let coordinator = match known.take() {
                Some(known) => Ok(known),
                None => coordinator::find(&reading.cluster, &self.config.group_id, deadline),
            };
            let is_nobody_there = matches!(&coordinator,
                Err(error) if coordinator::failure(error) == Failure::Transport);
            let answer =
                coordinator.and_then(|to| self.send_leave(reading, &to, &identity, deadline));
            let may_wait = !is_nobody_there && deadline.remaining() > RETRY_BACKOFF;
            match answer {
                // The coordinator is moving. A broker may know its new place at the next attempt.
                Err(error) if may_wait && error.is_transient() => {
                    log::debug!("{}: {error}", reading.name);
                    self.coordinator.disconnect();
                    std::thread::sleep(RETRY_BACKOFF);
                }
                answer => return answer,
            }
        }
    }

    fn send_leave(
        &mut self,
        reading: &Reading,
        to: &Coordinator,
        identity: &Identity,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let config = Arc::clone(&self.config);
        let connection = self.coordinator_connection(reading, to, deadline)?;
        coordinator::leave(connection, &config, identity, deadline)
    }
}
