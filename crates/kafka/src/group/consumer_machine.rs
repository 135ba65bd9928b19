//! State machine of a group member under the consumer protocol (KIP-848), without I/O.
//!
//! The coordinator decides which member gets which partitions, and sends that in heartbeat answers.
//! There is no leader, no join and no sync. The heartbeat thread sends all membership requests
//! ([`ConsumerMachine::heartbeat_step`]). The polling thread owns the partitions, so it revokes and
//! adds them ([`PollStep::Reconcile`]).
//!
//! ```text
//!          polled            answered           reconciled            acknowledged
//! Outside -------> Joining ------------> Reconciling ------> Acknowledging ------> Stable
//!    ^               ^                     ^   ^                                  |
//!    |               | loss reported       |   +--------- another target ---------+
//!    |             Fenced <-- fenced or forgotten, from any state of a member
//!    +-- nobody polls, from any state but Fenced
//! ```

use std::time::{Duration, Instant};

use crate::ErrorCode;
use uuid::Uuid;

use super::ladder::{GroupApi, Reaction, reaction};
use super::machine::{
    Backoff, CommitVerdict, Coordinator, Failure, HeartbeatStep, Identity, PollStep, Settings,
};

/// The member epoch of a join.
const JOIN: i32 = 0;
/// The member epoch of a leave.
const LEAVE: i32 = -1;
/// The member epoch with which a static member leaves, to return under the same name.
const LEAVE_STATIC: i32 = -2;

/// Partitions by topic id, in the coordinator's form.
pub(crate) type Target = Vec<(Uuid, Vec<i32>)>;

/// The content of one heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeartbeatRequest {
    /// The member; the generation is the member epoch.
    pub identity: Identity,
    /// Whether to send subscription and time-outs (again).
    pub is_full: bool,
    /// The partitions owned, if they must be sent.
    pub owned: Option<Target>,
}

/// The coordinator's answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The new member epoch.
    pub epoch: i32,
    /// The heartbeat interval that the coordinator wants.
    pub interval: Duration,
    /// The partitions the member may own from now on; `None`: unchanged.
    pub target: Option<Target>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not a member, and does not join before a poll.
    Outside,
    /// The next heartbeat joins.
    Joining,
    /// A target waits for the polling thread.
    Reconciling,
    /// The target is reached, but not acknowledged to the coordinator yet.
    Acknowledging,
    Stable,
    /// Fenced or forgotten; the polling thread has not dropped its partitions yet.
    Fenced,
}

/// A member's state; see the module documentation.
#[derive(Debug)]
pub(crate) struct ConsumerMachine {
    settings: Settings,
    phase: Phase,
    coordinator: Option<Coordinator>,
    identity: Identity,
    target: Target,
    owned: Target,
    /// Whether the coordinator may have lost what it was sent before.
    send_all: bool,
    interval: Duration,
    next_heartbeat: Instant,
    lost: bool,
    fatal: Option<ErrorCode>,
    /// Whether the coordinator may count it among the members.
    is_known: bool,
    closed: bool,
    left: bool,
    last_poll: Instant,
    poll_backoff: Backoff,
    heartbeat_backoff: Backoff,
}

impl ConsumerMachine {
    /// A member that has not joined yet. It chooses its id itself and keeps it.
    pub(crate) fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            phase: Phase::Outside,
            coordinator: None,
            identity: Identity {
                member_id: Uuid::new_v4().to_string(),
                generation: JOIN,
            },
            target: Target::new(),
            owned: Target::new(),
            send_all: true,
            interval: settings.heartbeat_interval,
            next_heartbeat: now,
            lost: false,
            fatal: None,
            is_known: false,
            closed: false,
            left: false,
            last_poll: now,
            poll_backoff: Backoff::default(),
            heartbeat_backoff: Backoff::default(),
        }
    }

    fn is_member(&self) -> bool {
        use Phase::{Acknowledging, Reconciling, Stable};
        matches!(self.phase, Reconciling | Acknowledging | Stable)
    }

    // --- the polling thread ---

    /// The owner is polling. Returns true when the heartbeat thread must join for it.
    pub(crate) fn polled(&mut self, now: Instant) -> bool {
        self.last_poll = now;
        let joins = self.phase == Phase::Outside;
        if joins {
            self.phase = Phase::Joining;
        }
        joins
    }

    /// What the polling thread does next.
    pub(crate) fn poll_step(&self, now: Instant) -> PollStep {
        match self.fatal {
            // An owner that learns of the failure may drop the member, and its thread with it.
            Some(_) if self.is_known => return PollStep::AwaitAnswer,
            Some(code) => return PollStep::Fail(code),
            None => {}
        }
        if let Some(until) = self.poll_backoff.pending(now) {
            return PollStep::Wait(until);
        }
        match (self.phase, &self.coordinator) {
            (Phase::Reconciling, _) => PollStep::Reconcile(self.target.clone()),
            (_, None) => PollStep::FindCoordinator,
            (Phase::Acknowledging | Phase::Stable, Some(coordinator)) => {
                PollStep::Ready(coordinator.clone())
            }
            (Phase::Outside | Phase::Joining | Phase::Fenced, _) => PollStep::AwaitAnswer,
        }
    }

    /// Whether partitions were lost since the last call: drop them without a commit. The member may
    /// join again afterwards.
    pub(crate) fn take_lost(&mut self) -> bool {
        if self.phase == Phase::Fenced {
            self.phase = Phase::Joining;
        }
        std::mem::take(&mut self.lost)
    }

    /// The polling thread now owns exactly `target`.
    pub(crate) fn reconciled(&mut self, target: &Target) {
        if self.phase == Phase::Reconciling && self.target == *target {
            self.owned.clone_from(target);
            self.phase = Phase::Acknowledging;
        }
    }

    /// Whether partitions are about to move, or the member is not in the group.
    pub(crate) fn is_rebalancing(&self) -> bool {
        self.phase != Phase::Stable
    }

    /// The coordinator was found.
    pub(crate) fn coordinator_found(&mut self, coordinator: Coordinator) {
        self.coordinator = Some(coordinator);
        self.poll_backoff.reset();
        self.heartbeat_backoff.reset();
    }

    /// The polling thread did not find the coordinator.
    pub(crate) fn coordinator_not_found(&mut self, failure: Failure, now: Instant) {
        self.lookup_failed(failure);
        self.poll_backoff.fail(now, &self.settings);
    }

    /// An OffsetFetch failed.
    pub(crate) fn offset_fetch_failed(&mut self, failure: Failure, now: Instant) -> Reaction {
        let verdict = judge(GroupApi::OffsetFetch, failure);
        self.apply(verdict, failure);
        self.poll_backoff.fail(now, &self.settings);
        verdict
    }

    // --- commits ---

    /// The identity for a commit.
    ///
    /// # Errors
    /// The verdict for the caller when there is no membership.
    pub(crate) fn commit_identity(&self) -> Result<Identity, CommitVerdict> {
        match self.fatal {
            Some(code) => Err(CommitVerdict::Fatal(code)),
            // It may have joined again before the polling thread has dropped what it lost.
            None if self.is_member() && !self.lost => Ok(self.identity.clone()),
            None => Err(CommitVerdict::Lost),
        }
    }

    /// A commit sent for `sent` failed.
    pub(crate) fn commit_failed(&mut self, sent: &Identity, failure: Failure) -> CommitVerdict {
        let verdict = judge(GroupApi::OffsetCommit, failure);
        let is_out = matches!(verdict, Reaction::ResetGeneration | Reaction::ResetMember);
        if is_out && self.identity != *sent {
            // The epoch has changed meanwhile: retry with the current one.
            return CommitVerdict::Retry;
        }
        self.apply(verdict, failure);
        match (verdict, failure) {
            _ if is_out => CommitVerdict::Lost,
            (Reaction::Fatal, Failure::Code(code)) => CommitVerdict::Fatal(code),
            (Reaction::Report, Failure::Code(code)) => CommitVerdict::Report(code),
            _ => CommitVerdict::Retry,
        }
    }

    // --- the heartbeat thread ---

    /// What the heartbeat thread does next.
    pub(crate) fn heartbeat_step(&mut self, now: Instant) -> HeartbeatStep {
        if self.closed {
            return self.leaving_step();
        }
        if self.fatal.is_some() {
            return self.leave_step().unwrap_or(HeartbeatStep::Wait(None));
        }
        if matches!(self.phase, Phase::Outside | Phase::Fenced) {
            return HeartbeatStep::Wait(None);
        }
        let stuck_at = self.last_poll + self.settings.max_poll_interval;
        if now >= stuck_at {
            self.lost |= self.is_member();
            self.reset(Phase::Outside);
            return self.leave_step().unwrap_or(HeartbeatStep::Wait(None));
        }
        if let Some(until) = self.heartbeat_backoff.pending(now) {
            return HeartbeatStep::Wait(Some(until.min(stuck_at)));
        }
        let Some(coordinator) = self.coordinator.clone() else {
            return HeartbeatStep::FindCoordinator;
        };
        let is_urgent = matches!(self.phase, Phase::Joining | Phase::Acknowledging);
        if !is_urgent && now < self.next_heartbeat {
            return HeartbeatStep::Wait(Some(self.next_heartbeat.min(stuck_at)));
        }
        self.next_heartbeat = now + self.interval;
        // Not when it is answered: what changes until then must be sent once more.
        let is_full = std::mem::take(&mut self.send_all) || self.phase == Phase::Joining;
        let sends_owned = is_full || self.phase == Phase::Acknowledging;
        let heartbeat = HeartbeatRequest {
            identity: self.identity.clone(),
            is_full,
            owned: sends_owned.then(|| self.owned.clone()),
        };
        HeartbeatStep::SendConsumer(coordinator, heartbeat)
    }

    /// A closed member leaves if it may have joined, and then stops.
    fn leaving_step(&mut self) -> HeartbeatStep {
        match self.leave_step() {
            Some(step) if !self.left => step,
            _ => {
                self.left = true;
                HeartbeatStep::Stop
            }
        }
    }

    /// The leave of a member that the coordinator may know.
    fn leave_step(&self) -> Option<HeartbeatStep> {
        let leave = HeartbeatStep::Leave(self.coordinator.clone(), self.leaver());
        self.is_known.then_some(leave)
    }

    /// The heartbeat thread did what it could to leave.
    pub(crate) fn leave_ended(&mut self) {
        self.is_known = false;
    }

    /// The identity that the polling thread leaves with when the heartbeat thread cannot, and the
    /// coordinator, if known; once.
    pub(crate) fn take_leaver(&mut self) -> Option<(Option<Coordinator>, Identity)> {
        let is_known = std::mem::take(&mut self.is_known);
        is_known.then(|| (self.coordinator.clone(), self.leaver()))
    }

    /// The error that ended the membership permanently.
    pub(crate) fn fatal(&self) -> Option<ErrorCode> {
        self.fatal
    }

    fn leaver(&self) -> Identity {
        Identity {
            member_id: self.identity.member_id.clone(),
            generation: if self.settings.is_static {
                LEAVE_STATIC
            } else {
                LEAVE
            },
        }
    }

    /// A heartbeat was answered. Returns true when the polling thread must be woken.
    pub(crate) fn heartbeat_answered(
        &mut self,
        sent: &HeartbeatRequest,
        result: Result<Answer, Failure>,
        now: Instant,
    ) -> bool {
        // The coordinator may have processed a request whose answer is lost.
        self.is_known |= matches!(result, Ok(_) | Err(Failure::Transport));
        if self.identity != sent.identity || matches!(self.phase, Phase::Outside | Phase::Fenced) {
            return false;
        }
        match result {
            Ok(answer) => self.take_answer(sent, answer, now),
            Err(failure) => {
                // The coordinator may have processed the request, or not.
                self.send_all = true;
                self.heartbeat_backoff.fail(now, &self.settings);
                let verdict = judge(GroupApi::ConsumerHeartbeat, failure);
                self.apply(verdict, failure);
                self.lost || self.fatal.is_some()
            }
        }
    }

    fn take_answer(&mut self, sent: &HeartbeatRequest, answer: Answer, now: Instant) -> bool {
        self.heartbeat_backoff.reset();
        self.identity.generation = answer.epoch;
        self.interval = answer.interval;
        if !self.send_all {
            self.next_heartbeat = now + answer.interval;
        }
        let was = self.phase;
        // A heartbeat that left before the partitions were given up acknowledges nothing. The
        // coordinator would wait for ever for the one that does, and assign nothing until then.
        let acknowledges = sent.owned.as_ref() == Some(&self.owned);
        if was == Phase::Joining || was == Phase::Acknowledging && acknowledges {
            self.phase = Phase::Stable;
        }
        let known = match was {
            Phase::Reconciling => &self.target,
            _ => &self.owned,
        };
        if let Some(target) = answer.target.filter(|target| target != known) {
            self.target = target;
            self.phase = Phase::Reconciling;
        }
        self.phase != was
    }

    /// The heartbeat thread did not find the coordinator.
    pub(crate) fn heartbeat_coordinator_not_found(&mut self, failure: Failure, now: Instant) {
        self.lookup_failed(failure);
        self.heartbeat_backoff.fail(now, &self.settings);
    }

    // --- both ---

    /// The next heartbeat, which is due at once, sends the coordinator the full state of the member.
    pub(crate) fn subscription_changed(&mut self) {
        self.send_all = true;
        self.next_heartbeat = self.last_poll;
    }

    /// The consumer closes: the heartbeat thread leaves and ends.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// The heartbeat thread ends, even if the member has not left.
    pub(crate) fn stop(&mut self) {
        self.closed = true;
        self.left = true;
    }

    /// Whether [`close`](Self::close) was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether a closed member has done all it can to leave.
    pub(crate) fn has_left(&self) -> bool {
        self.left
    }

    /// The current identity.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    fn apply(&mut self, verdict: Reaction, failure: Failure) {
        match verdict {
            Reaction::Retry | Reaction::Report | Reaction::TakeMemberId | Reaction::Rejoin => {}
            Reaction::FindCoordinator => {
                self.coordinator = None;
                self.send_all = true;
            }
            Reaction::ResetGeneration | Reaction::ResetMember => {
                self.is_known = false;
                if self.is_member() {
                    self.lost = true;
                    self.reset(Phase::Fenced);
                }
            }
            Reaction::Fatal => {
                if let Failure::Code(code) = failure {
                    self.fatal.get_or_insert(code);
                }
                // Another process has taken a fenced member's place.
                self.is_known &= failure != Failure::Code(ErrorCode::FencedInstanceId);
                self.lost |= self.is_member();
                self.reset(Phase::Outside);
            }
        }
    }

    fn lookup_failed(&mut self, failure: Failure) {
        if let Failure::Code(code) = failure
            && reaction(GroupApi::FindCoordinator, code) == Reaction::Fatal
        {
            self.apply(Reaction::Fatal, failure);
        }
    }

    /// Resets the membership; the member id is kept.
    fn reset(&mut self, phase: Phase) {
        self.phase = phase;
        self.identity.generation = JOIN;
        self.target.clear();
        self.owned.clear();
        self.send_all = true;
    }
}

fn judge(api: GroupApi, failure: Failure) -> Reaction {
    match failure {
        Failure::Code(code) => reaction(api, code),
        Failure::Transport => Reaction::FindCoordinator,
    }
}

#[cfg(test)]
mod tests;
