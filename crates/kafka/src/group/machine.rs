//! State machine of a group member under the classic protocol, without I/O: answers and the time go
//! in, the next step comes out.
//!
//! Two threads drive it under one lock. The polling thread joins and syncs
//! ([`Machine::poll_step`]). The heartbeat thread keeps the member alive and makes it leave when
//! its owner is stuck ([`Machine::heartbeat_step`]). Every answer is judged with the identity that
//! its request carried: an error about an older generation says nothing about the current one.
//!
//! ```text
//!            join sent            join answered         sync answered
//! Unjoined ------------> Joining --------------> Syncing ------------> Stable
//!    ^                      |                       |                     |
//!    +----- error, reset ---+-----------------------+-----<-- rejoin -----+
//! ```

use std::time::{Duration, Instant};

use crate::ErrorCode;

use crate::config::doubled;

use super::consumer_machine::{HeartbeatRequest, Target};
use super::ladder::{GroupApi, Reaction, reaction};
use super::protocol::NO_GENERATION;

/// How long heartbeats are frequent after a join. A cooperative rebalance often has a second round
/// right after the first, and members learn of it by heartbeat.
const BRISK_FOR: Duration = Duration::from_secs(5);
/// The heartbeat interval meanwhile.
const BRISK_INTERVAL: Duration = Duration::from_millis(300);

/// A member's time limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// The coordinator drops a member without heartbeats for this long.
    pub session_timeout: Duration,
    /// Time between heartbeats.
    pub heartbeat_interval: Duration,
    /// An owner that does not poll for this long is stuck, and the member leaves.
    pub max_poll_interval: Duration,
    /// First pause after a failure; doubles up to `retry_backoff_max`.
    pub retry_backoff: Duration,
    /// Longest pause between retries.
    pub retry_backoff_max: Duration,
    /// A static member (one with an instance id) never sends LeaveGroup.
    pub is_static: bool,
}

/// The group coordinator's node and address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coordinator {
    /// The broker's id.
    pub node_id: i32,
    /// `host:port`.
    pub address: String,
}

/// The member and generation that a request is sent for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// The id from the coordinator; empty until it has given one.
    pub member_id: String,
    /// The generation, -1 for none. Under the consumer protocol, the member epoch.
    pub generation: i32,
}

impl Identity {
    /// The identity of a client that is no member.
    pub(crate) fn nobody() -> Self {
        Self {
            member_id: String::new(),
            generation: NO_GENERATION,
        }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The coordinator refused it.
    Code(ErrorCode),
    /// No answer: connection lost, refused or too slow.
    Transport,
}

/// What the polling thread does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PollStep {
    /// Wait until this moment.
    Wait(Instant),
    /// Ask any broker for the coordinator.
    FindCoordinator,
    /// Revoke what must be revoked, then call [`Machine::start_join`] and send JoinGroup.
    Join(Coordinator),
    /// JoinGroup or SyncGroup is in flight; wait for its answer.
    AwaitAnswer,
    /// Consumer protocol: own exactly this target, then call
    /// [`ConsumerMachine::reconciled`](super::consumer_machine::ConsumerMachine::reconciled).
    Reconcile(Target),
    /// The member has its partitions.
    Ready(Coordinator),
    /// The membership has failed permanently.
    Fail(ErrorCode),
}

/// What the heartbeat thread does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HeartbeatStep {
    /// Wait until this moment, or until the machine changes.
    Wait(Option<Instant>),
    /// Ask any broker for the coordinator.
    FindCoordinator,
    /// Send a heartbeat and report its answer.
    Send(Coordinator, Identity),
    /// Consumer protocol: send this heartbeat and report its answer.
    SendConsumer(Coordinator, HeartbeatRequest),
    /// The owner is stuck, an error ended the membership, or the consumer closes (consumer
    /// protocol): tell the coordinator that the member leaves, then call
    /// [`Member::leave_ended`](super::member::Member::leave_ended). The machine has already given
    /// up all partitions. Find the coordinator first if there is none.
    Leave(Option<Coordinator>, Identity),
    /// The consumer is closed.
    Stop,
}

/// What a failed commit means to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommitVerdict {
    /// Retry after a pause; find the coordinator again if it is unknown.
    Retry,
    /// The group is rebalancing. Partitions that the member keeps can be committed afterwards.
    Rebalancing,
    /// The member is out of the group; others may own the partitions by now.
    Lost,
    /// The member can never commit again.
    Fatal(ErrorCode),
    /// This commit is refused; the membership continues.
    Report(ErrorCode),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Unjoined,
    Joining,
    Syncing,
    Stable,
}

/// Back-off between repeated failures.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    pub(super) fn fail(&mut self, now: Instant, settings: &Settings) {
        let (first, max) = (settings.retry_backoff, settings.retry_backoff_max);
        self.until = Some(now + doubled(first, max, self.failures));
        self.failures = self.failures.saturating_add(1);
    }

    pub(super) fn pending(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|&until| until > now)
    }

    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// A member's state; see the module documentation.
#[derive(Debug)]
pub(crate) struct Machine {
    settings: Settings,
    phase: Phase,
    coordinator: Option<Coordinator>,
    identity: Identity,
    rejoin_wanted: bool,
    lost: bool,
    fatal: Option<ErrorCode>,
    /// Whether a member that failed permanently has yet to leave.
    must_leave: bool,
    closed: bool,
    last_poll: Instant,
    last_heartbeat: Instant,
    brisk_until: Instant,
    /// When the coordinator last confirmed the membership.
    last_sign: Instant,
    poll_backoff: Backoff,
    heartbeat_backoff: Backoff,
}

impl Machine {
    /// A member that has not joined yet.
    pub(crate) fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            phase: Phase::Unjoined,
            coordinator: None,
            identity: Identity::nobody(),
            rejoin_wanted: false,
            lost: false,
            fatal: None,
            must_leave: false,
            closed: false,
            last_poll: now,
            last_heartbeat: now,
            brisk_until: now,
            last_sign: now,
            poll_backoff: Backoff::default(),
            heartbeat_backoff: Backoff::default(),
        }
    }

    // --- the polling thread ---

    /// The owner is polling, so it is not stuck.
    pub(crate) fn polled(&mut self, now: Instant) {
        self.last_poll = now;
    }

    /// What the polling thread does next.
    pub(crate) fn poll_step(&self, now: Instant) -> PollStep {
        match self.fatal {
            // An owner that learns of the failure may drop the member, and its thread with it.
            Some(_) if self.must_leave => return PollStep::AwaitAnswer,
            Some(code) => return PollStep::Fail(code),
            None => {}
        }
        match (self.phase, &self.coordinator) {
            (Phase::Joining | Phase::Syncing, _) => PollStep::AwaitAnswer,
            _ if self.poll_backoff.pending(now).is_some() => {
                PollStep::Wait(self.poll_backoff.until.unwrap_or(now))
            }
            (_, None) => PollStep::FindCoordinator,
            (Phase::Stable, Some(coordinator)) if !self.rejoin_wanted => {
                PollStep::Ready(coordinator.clone())
            }
            (_, Some(coordinator)) => PollStep::Join(coordinator.clone()),
        }
    }

    /// Whether partitions were lost since the last call. Others may own them already, so drop them
    /// without a commit.
    pub(crate) fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// JoinGroup is about to be sent for the identity returned.
    pub(crate) fn start_join(&mut self) -> Identity {
        self.phase = Phase::Joining;
        self.rejoin_wanted = false;
        self.identity.clone()
    }

    /// JoinGroup succeeded, and heartbeats begin. Returns false when the machine was reset
    /// meanwhile and the answer is stale.
    pub(crate) fn joined(&mut self, member_id: String, generation: i32, now: Instant) -> bool {
        if self.phase != Phase::Joining {
            return false;
        }
        self.identity = Identity {
            member_id,
            generation,
        };
        self.phase = Phase::Syncing;
        self.last_heartbeat = now;
        self.brisk_until = now + BRISK_FOR;
        self.last_sign = now;
        true
    }

    /// JoinGroup failed; `member_id` is the one in the answer.
    pub(crate) fn join_failed(
        &mut self,
        failure: Failure,
        member_id: Option<String>,
        now: Instant,
    ) {
        if self.phase != Phase::Joining {
            return;
        }
        self.phase = Phase::Unjoined;
        match self.judge(GroupApi::Join, failure) {
            Reaction::TakeMemberId => match member_id.filter(|id| !id.is_empty()) {
                // No pause: the coordinator waits for us.
                Some(member_id) => self.identity.member_id = member_id,
                None => self.poll_backoff.fail(now, &self.settings),
            },
            verdict => {
                self.apply(verdict, failure);
                self.poll_backoff.fail(now, &self.settings);
            }
        }
    }

    /// SyncGroup succeeded for `sent`. Returns false when that generation is over and the
    /// assignment is stale.
    pub(crate) fn synced(&mut self, sent: &Identity, now: Instant) -> bool {
        if self.phase != Phase::Syncing || self.identity != *sent {
            return false;
        }
        self.phase = Phase::Stable;
        self.last_sign = now;
        self.poll_backoff.reset();
        true
    }

    /// SyncGroup failed for `sent`.
    pub(crate) fn sync_failed(&mut self, sent: &Identity, failure: Failure, now: Instant) {
        if self.phase != Phase::Syncing || self.identity != *sent {
            return;
        }
        // After any error this rebalance is over, and the next one begins with a join.
        self.phase = Phase::Unjoined;
        let verdict = self.judge(GroupApi::Sync, failure);
        self.apply(verdict, failure);
        if verdict != Reaction::Rejoin {
            self.poll_backoff.fail(now, &self.settings);
        }
    }

    /// Requests a new assignment: the member gave partitions up, or the leader saw topics change.
    pub(crate) fn want_rejoin(&mut self) {
        if self.phase == Phase::Stable {
            self.rejoin_wanted = true;
        }
    }

    /// The member reads other topics from now on. A rebalance that is under way knows the old ones.
    pub(crate) fn subscription_changed(&mut self) {
        self.rejoin_wanted |= self.phase != Phase::Unjoined;
    }

    /// Whether a rebalance is under way or wanted.
    pub(crate) fn is_rebalancing(&self) -> bool {
        self.phase != Phase::Stable || self.rejoin_wanted
    }

    /// The coordinator was found.
    pub(crate) fn coordinator_found(&mut self, coordinator: Coordinator, now: Instant) {
        self.coordinator = Some(coordinator);
        // Java's `resetSessionTimeout`: give the new one a full session.
        self.last_sign = now;
        self.heartbeat_backoff.reset();
        if self.phase == Phase::Stable {
            self.poll_backoff.reset();
        }
    }

    /// The polling thread did not find the coordinator.
    pub(crate) fn coordinator_not_found(&mut self, failure: Failure, now: Instant) {
        self.lookup_failed(failure);
        self.poll_backoff.fail(now, &self.settings);
    }

    /// An OffsetFetch failed. The ladder gives the membership's reaction.
    pub(crate) fn offset_fetch_failed(
        &mut self,
        sent: &Identity,
        failure: Failure,
        now: Instant,
    ) -> Reaction {
        let verdict = self.judge(GroupApi::OffsetFetch, failure);
        if self.identity == *sent && self.phase == Phase::Stable {
            self.apply(verdict, failure);
            self.poll_backoff.fail(now, &self.settings);
        }
        verdict
    }

    // --- commits ---

    /// The identity for a commit. Without a generation the commit fails here, and the coordinator
    /// is not asked.
    ///
    /// # Errors
    /// The verdict for the caller.
    pub(crate) fn commit_identity(&self) -> Result<Identity, CommitVerdict> {
        match (self.fatal, self.phase) {
            (Some(code), _) => Err(CommitVerdict::Fatal(code)),
            (None, Phase::Stable) => Ok(self.identity.clone()),
            // Owned partitions survive a cooperative rebalance, so they are not lost yet.
            (None, Phase::Joining | Phase::Syncing) => Err(CommitVerdict::Rebalancing),
            (None, Phase::Unjoined) if self.identity.generation != NO_GENERATION => {
                Err(CommitVerdict::Rebalancing)
            }
            (None, Phase::Unjoined) => Err(CommitVerdict::Lost),
        }
    }

    /// A commit sent for `sent` failed.
    pub(crate) fn commit_failed(&mut self, sent: &Identity, failure: Failure) -> CommitVerdict {
        let verdict = self.judge(GroupApi::OffsetCommit, failure);
        // Applied only if the commit's generation is current and no rebalance runs: rejoining would
        // abort the running rebalance.
        let is_current = self.identity == *sent && self.phase == Phase::Stable;
        if is_current || verdict == Reaction::Fatal || verdict == Reaction::FindCoordinator {
            self.apply(verdict, failure);
        }
        match (verdict, failure) {
            (Reaction::Rejoin, _) => CommitVerdict::Rebalancing,
            (Reaction::ResetGeneration | Reaction::ResetMember, _) if is_current => {
                CommitVerdict::Lost
            }
            (Reaction::ResetGeneration | Reaction::ResetMember, _) => CommitVerdict::Rebalancing,
            (Reaction::Fatal, Failure::Code(code)) => CommitVerdict::Fatal(code),
            (Reaction::Report, Failure::Code(code)) => CommitVerdict::Report(code),
            _ => CommitVerdict::Retry,
        }
    }

    // --- the heartbeat thread ---

    /// What the heartbeat thread does next. Asking counts as taking the step: the next heartbeat is
    /// due one interval after this one was returned.
    pub(crate) fn heartbeat_step(&mut self, now: Instant) -> HeartbeatStep {
        if self.closed {
            return HeartbeatStep::Stop;
        }
        if self.must_leave {
            return HeartbeatStep::Leave(self.coordinator.clone(), self.identity.clone());
        }
        // A pending JoinGroup is itself a sign of life (Java: hasNotJoinedGroup).
        if self.fatal.is_some() || !matches!(self.phase, Phase::Syncing | Phase::Stable) {
            return HeartbeatStep::Wait(None);
        }
        let stuck_at = self.last_poll + self.settings.max_poll_interval;
        if now >= stuck_at {
            let identity = self.identity.clone();
            self.reset(!self.settings.is_static);
            return match self.settings.is_static {
                true => HeartbeatStep::Wait(None),
                false => HeartbeatStep::Leave(self.coordinator.clone(), identity),
            };
        }
        if let Some(until) = self.heartbeat_backoff.pending(now) {
            return HeartbeatStep::Wait(Some(until.min(stuck_at)));
        }
        if now.saturating_duration_since(self.last_sign) >= self.settings.session_timeout {
            self.lose_coordinator();
        }
        let Some(coordinator) = self.coordinator.clone() else {
            return HeartbeatStep::FindCoordinator;
        };
        let mut interval = self.settings.heartbeat_interval;
        if now < self.brisk_until {
            interval = interval.min(BRISK_INTERVAL);
        }
        let due = self.last_heartbeat + interval;
        if now < due {
            return HeartbeatStep::Wait(Some(due.min(stuck_at)));
        }
        self.last_heartbeat = now;
        HeartbeatStep::Send(coordinator, self.identity.clone())
    }

    /// A heartbeat was answered. Returns true when the polling thread must be woken.
    pub(crate) fn heartbeat_answered(
        &mut self,
        sent: &Identity,
        result: Result<(), Failure>,
        now: Instant,
    ) -> bool {
        match result {
            Ok(()) => {
                if self.identity == *sent {
                    self.last_sign = now;
                }
                self.heartbeat_backoff.reset();
                false
            }
            Err(_) if self.identity != *sent || self.phase == Phase::Unjoined => false,
            Err(failure) => match self.judge(GroupApi::Heartbeat, failure) {
                Reaction::Rejoin => {
                    // The member is still in the group; the coordinator only wants it to join
                    // again.
                    self.last_sign = now;
                    let is_news = self.phase == Phase::Stable && !self.rejoin_wanted;
                    self.want_rejoin();
                    is_news
                }
                verdict @ (Reaction::Retry | Reaction::FindCoordinator) => {
                    let was_syncing = self.phase == Phase::Syncing;
                    self.apply(verdict, failure);
                    self.heartbeat_backoff.fail(now, &self.settings);
                    // The retry is due as soon as the pause is over, not an interval later.
                    self.last_heartbeat = now
                        .checked_sub(self.settings.heartbeat_interval)
                        .unwrap_or(now);
                    was_syncing && self.phase == Phase::Unjoined
                }
                verdict => {
                    self.apply(verdict, failure);
                    true
                }
            },
        }
    }

    /// The heartbeat thread did not find the coordinator.
    pub(crate) fn heartbeat_coordinator_not_found(&mut self, failure: Failure, now: Instant) {
        self.lookup_failed(failure);
        self.heartbeat_backoff.fail(now, &self.settings);
    }

    /// The heartbeat thread did what it could to leave as `leaver`.
    pub(crate) fn leave_ended(&mut self, leaver: &Identity) {
        if self.identity == *leaver {
            self.must_leave = false;
            self.identity.member_id.clear();
        }
    }

    // --- both ---

    /// The consumer closes, and the heartbeat thread ends.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// The identity that a closed member leaves with, and the coordinator, if known; once. `None`
    /// for a static member, which never sends LeaveGroup, and for a member without an id.
    pub(crate) fn take_leaver(&mut self) -> Option<(Option<Coordinator>, Identity)> {
        let leaver = self.can_leave().then(|| self.identity.clone())?;
        self.identity.member_id.clear();
        Some((self.coordinator.clone(), leaver))
    }

    fn can_leave(&self) -> bool {
        !self.settings.is_static && !self.identity.member_id.is_empty()
    }

    /// The error that ended the membership permanently.
    pub(crate) fn fatal(&self) -> Option<ErrorCode> {
        self.fatal
    }

    /// Whether [`close`](Self::close) was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// The current identity.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    fn judge(&self, api: GroupApi, failure: Failure) -> Reaction {
        match failure {
            Failure::Code(code) => reaction(api, code),
            // Java marks the coordinator unknown on every disconnect.
            Failure::Transport => Reaction::FindCoordinator,
        }
    }

    fn apply(&mut self, verdict: Reaction, failure: Failure) {
        match verdict {
            Reaction::Retry | Reaction::Report | Reaction::TakeMemberId => {}
            Reaction::FindCoordinator => self.lose_coordinator(),
            Reaction::Rejoin => self.want_rejoin(),
            Reaction::ResetGeneration => self.reset(false),
            Reaction::ResetMember => self.reset(true),
            Reaction::Fatal => {
                if let Failure::Code(code) = failure
                    && self.fatal.is_none()
                {
                    self.fatal = Some(code);
                    // Another process has taken a fenced member's place.
                    self.must_leave = code != ErrorCode::FencedInstanceId && self.can_leave();
                }
                self.reset(false);
            }
        }
    }

    fn lose_coordinator(&mut self) {
        self.coordinator = None;
        // The answer to SyncGroup is lost with the coordinator.
        if self.phase == Phase::Syncing {
            self.phase = Phase::Unjoined;
        }
    }

    fn lookup_failed(&mut self, failure: Failure) {
        if let Failure::Code(code) = failure
            && reaction(GroupApi::FindCoordinator, code) == Reaction::Fatal
        {
            self.apply(Reaction::Fatal, failure);
        }
    }

    /// Back to the initial phase; owned partitions are lost.
    fn reset(&mut self, forget_member: bool) {
        self.phase = Phase::Unjoined;
        self.rejoin_wanted = false;
        self.lost |= self.identity.generation != NO_GENERATION;
        self.identity.generation = NO_GENERATION;
        if forget_member {
            self.identity.member_id.clear();
        }
    }
}

#[cfg(test)]
mod tests;
