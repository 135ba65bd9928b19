//! The life of one group member under the classic protocol, without I/O: answers and the time go in, the
//! next step comes out.
//!
//! Two threads drive it, one lock around it: the polling thread joins and
//! syncs ([`Machine::poll_step`]), the heartbeat thread keeps the member alive
//! and makes it leave when its owner is stuck ([`Machine::heartbeat_step`]).
//! Every answer is judged with the identity its request was sent with: if the
//! generation has moved on since, an error says nothing about today.
//!
//! ```text
//!            join sent            join answered         sync answered
//! Unjoined ------------> Joining --------------> Syncing ------------> Stable
//!    ^                      |                       |                     |
//!    +----- error, reset ---+-----------------------+-----<-- rejoin -----+
//! ```

use std::time::{Duration, Instant};

use kafka_protocol::error::ResponseError;

use super::consumer_machine::{HeartbeatRequest, Target};
use super::ladder::{GroupApi, Reaction, reaction};
use super::protocol::NO_GENERATION;

/// A cooperative rebalance often has a second round right after the first, and
/// members learn of it by heartbeat. For this long after joining they beat
/// briskly, so that the second round does not wait for the usual interval.
const BRISK_FOR: Duration = Duration::from_secs(5);
/// The interval while beating briskly.
const BRISK_INTERVAL: Duration = Duration::from_millis(300);

/// The limits a member lives by.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Without a heartbeat for this long the coordinator drops the member.
    pub session_timeout: Duration,
    /// Time between heartbeats.
    pub heartbeat_interval: Duration,
    /// An owner that does not poll for this long is stuck; the member leaves.
    pub max_poll_interval: Duration,
    /// First pause after a failure; doubles up to `retry_backoff_max`.
    pub retry_backoff: Duration,
    /// Longest pause after repeated failures.
    pub retry_backoff_max: Duration,
    /// A static member (one with an instance id) never says it leaves.
    pub is_static: bool,
}

/// Where the group's coordinator listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coordinator {
    /// The broker's id.
    pub node_id: i32,
    /// `host:port`.
    pub address: String,
}

/// Who a request speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The id the coordinator gave, empty before the first.
    pub member_id: String,
    /// The generation, -1 for none; the member epoch under the consumer protocol.
    pub generation: i32,
}

/// Why a request brought no success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The coordinator refused it.
    Code(ResponseError),
    /// No answer: connection lost, refused or too slow.
    Transport,
}

/// What the polling thread does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PollStep {
    /// Nothing before this moment.
    Wait(Instant),
    /// Ask any broker for the coordinator.
    FindCoordinator,
    /// Give up what must be given up, then call [`Machine::start_join`] and send JoinGroup.
    Join(Coordinator),
    /// JoinGroup or SyncGroup is on its way; its answer decides.
    AwaitAnswer,
    /// Consumer protocol: own exactly this, then call
    /// [`ConsumerMachine::reconciled`](super::consumer_machine::ConsumerMachine::reconciled).
    Reconcile(Target),
    /// The member has its partitions.
    Ready(Coordinator),
    /// The membership has failed for good.
    Fail(ResponseError),
}

/// What the heartbeat thread does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeartbeatStep {
    /// Nothing before this moment, or before somebody changes the machine.
    Wait(Option<Instant>),
    /// Ask any broker for the coordinator.
    FindCoordinator,
    /// Send a heartbeat and report its answer.
    Send(Coordinator, Identity),
    /// Consumer protocol: send this heartbeat and report its answer.
    SendConsumer(Coordinator, HeartbeatRequest),
    /// The owner is stuck, or closes (consumer protocol): tell the coordinator that
    /// the member leaves. The machine has already given everything up.
    Leave(Coordinator, Identity),
    /// The consumer is closed.
    Stop,
}

/// What a failed commit means to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitVerdict {
    /// Try the same again after a pause, with the coordinator found anew if need be.
    Retry,
    /// The group is rebalancing; partitions kept through it may be committed after it.
    Rebalancing,
    /// The member is out; others own the partitions by now.
    Lost,
    /// The member can never commit again.
    Fatal(ResponseError),
    /// This commit is refused, the membership goes on.
    Report(ResponseError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Unjoined,
    Joining,
    Syncing,
    Stable,
}

/// Pauses between repeated failures.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    pub(super) fn fail(&mut self, now: Instant, settings: &Settings) {
        let pause = settings
            .retry_backoff
            .saturating_mul(1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + pause.min(settings.retry_backoff_max));
    }

    pub(super) fn pending(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|&until| until > now)
    }

    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// One member's state; see the module.
#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    phase: Phase,
    coordinator: Option<Coordinator>,
    identity: Identity,
    rejoin_wanted: bool,
    lost: bool,
    fatal: Option<ResponseError>,
    closed: bool,
    last_poll: Instant,
    last_heartbeat: Instant,
    brisk_until: Instant,
    /// When the coordinator last gave a sign that it counts us in.
    last_sign: Instant,
    poll_backoff: Backoff,
    heartbeat_backoff: Backoff,
}

impl Machine {
    /// A member that has not joined yet.
    pub fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            phase: Phase::Unjoined,
            coordinator: None,
            identity: Identity {
                member_id: String::new(),
                generation: NO_GENERATION,
            },
            rejoin_wanted: false,
            lost: false,
            fatal: None,
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
    pub fn polled(&mut self, now: Instant) {
        self.last_poll = now;
    }

    /// What the polling thread does next.
    pub fn poll_step(&self, now: Instant) -> PollStep {
        if let Some(code) = self.fatal {
            return PollStep::Fail(code);
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

    /// Whether partitions were lost since the last call: others may own them
    /// already, so they must be dropped without a commit.
    pub fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// JoinGroup is being sent for the identity returned.
    pub fn start_join(&mut self) -> Identity {
        self.phase = Phase::Joining;
        self.rejoin_wanted = false;
        self.identity.clone()
    }

    /// JoinGroup succeeded: heartbeats begin now. False when the machine was
    /// reset meanwhile and the answer is worth nothing.
    pub fn joined(&mut self, member_id: String, generation: i32, now: Instant) -> bool {
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
    pub fn join_failed(&mut self, failure: Failure, member_id: Option<String>, now: Instant) {
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

    /// SyncGroup succeeded for `sent`. False when that generation is over
    /// already and the assignment is worth nothing.
    pub fn synced(&mut self, sent: &Identity, now: Instant) -> bool {
        if self.phase != Phase::Syncing || self.identity != *sent {
            return false;
        }
        self.phase = Phase::Stable;
        self.last_sign = now;
        self.poll_backoff.reset();
        true
    }

    /// SyncGroup failed for `sent`.
    pub fn sync_failed(&mut self, sent: &Identity, failure: Failure, now: Instant) {
        if self.phase != Phase::Syncing || self.identity != *sent {
            return;
        }
        // Whatever it was, this rebalance is over and the next begins with a join.
        self.phase = Phase::Unjoined;
        let verdict = self.judge(GroupApi::Sync, failure);
        self.apply(verdict, failure);
        if verdict != Reaction::Rejoin {
            self.poll_backoff.fail(now, &self.settings);
        }
    }

    /// The member wants a new assignment: it gave partitions up, or the
    /// leader saw topics change.
    pub fn want_rejoin(&mut self) {
        if self.phase == Phase::Stable {
            self.rejoin_wanted = true;
        }
    }

    /// Whether a rebalance is under way or wanted.
    pub fn is_rebalancing(&self) -> bool {
        self.phase != Phase::Stable || self.rejoin_wanted
    }

    /// The coordinator was found.
    pub fn coordinator_found(&mut self, coordinator: Coordinator, now: Instant) {
        self.coordinator = Some(coordinator);
        // Java's `resetSessionTimeout`: give the new one a full session.
        self.last_sign = now;
        self.heartbeat_backoff.reset();
        if self.phase == Phase::Stable {
            self.poll_backoff.reset();
        }
    }

    /// The polling thread did not find the coordinator.
    pub fn coordinator_not_found(&mut self, failure: Failure, now: Instant) {
        self.lookup_failed(failure);
        self.poll_backoff.fail(now, &self.settings);
    }

    /// An OffsetFetch failed; the membership reacts as the ladder says.
    pub fn offset_fetch_failed(
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

    /// Whom a commit speaks for. Broken off here, without asking the
    /// coordinator, while there is no generation to speak for.
    ///
    /// # Errors
    /// What to tell the caller.
    pub fn commit_identity(&self) -> Result<Identity, CommitVerdict> {
        match (self.fatal, self.phase) {
            (Some(code), _) => Err(CommitVerdict::Fatal(code)),
            (None, Phase::Stable) => Ok(self.identity.clone()),
            // Owned partitions survive a cooperative rebalance, so it is not lost yet.
            (None, Phase::Joining | Phase::Syncing) => Err(CommitVerdict::Rebalancing),
            (None, Phase::Unjoined) if self.identity.generation != NO_GENERATION => {
                Err(CommitVerdict::Rebalancing)
            }
            (None, Phase::Unjoined) => Err(CommitVerdict::Lost),
        }
    }

    /// A commit sent for `sent` failed.
    pub fn commit_failed(&mut self, sent: &Identity, failure: Failure) -> CommitVerdict {
        let verdict = self.judge(GroupApi::OffsetCommit, failure);
        // Applied only while the commit's generation is today's and no rebalance
        // runs: rejoining on its account would throw the running one away.
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

    /// What the heartbeat thread does next. A step is taken by asking for it:
    /// the next heartbeat is due one interval after this one was handed out.
    pub fn heartbeat_step(&mut self, now: Instant) -> HeartbeatStep {
        if self.closed {
            return HeartbeatStep::Stop;
        }
        // A pending JoinGroup is itself the sign of life (Java: hasNotJoinedGroup).
        if self.fatal.is_some() || !matches!(self.phase, Phase::Syncing | Phase::Stable) {
            return HeartbeatStep::Wait(None);
        }
        let stuck_at = self.last_poll + self.settings.max_poll_interval;
        if now >= stuck_at {
            let identity = self.identity.clone();
            self.reset(!self.settings.is_static);
            return match self.coordinator.clone() {
                Some(coordinator) if !self.settings.is_static => {
                    HeartbeatStep::Leave(coordinator, identity)
                }
                _ => HeartbeatStep::Wait(None),
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

    /// A heartbeat was answered. True when the polling thread should hear of it.
    pub fn heartbeat_answered(
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
                    // The coordinator counts us in, it only wants us to join again.
                    self.last_sign = now;
                    let is_news = self.phase == Phase::Stable && !self.rejoin_wanted;
                    self.want_rejoin();
                    is_news
                }
                verdict @ (Reaction::Retry | Reaction::FindCoordinator) => {
                    let was_syncing = self.phase == Phase::Syncing;
                    self.apply(verdict, failure);
                    self.heartbeat_backoff.fail(now, &self.settings);
                    // Due again as soon as the pause is over, not an interval later.
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
    pub fn heartbeat_coordinator_not_found(&mut self, failure: Failure, now: Instant) {
        self.lookup_failed(failure);
        self.heartbeat_backoff.fail(now, &self.settings);
    }

    // --- both ---

    /// The consumer closes: whom LeaveGroup should speak for and where, if
    /// there is anybody to leave as. Static members do not say they leave.
    pub fn close(&mut self) -> Option<(Option<Coordinator>, Identity)> {
        self.closed = true;
        let leaves = !self.settings.is_static && !self.identity.member_id.is_empty();
        leaves.then(|| (self.coordinator.clone(), self.identity.clone()))
    }

    /// Whether [`close`](Self::close) was called.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// The identity of today, if the member is in a generation.
    pub fn identity(&self) -> &Identity {
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
                if let Failure::Code(code) = failure {
                    self.fatal = Some(code);
                }
                self.reset(false);
            }
        }
    }

    fn lose_coordinator(&mut self) {
        self.coordinator = None;
        // The answer to SyncGroup died with it.
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

    /// Back to the start; what was owned is lost.
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
