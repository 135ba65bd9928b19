//! State machine of a group member, for either protocol.

use std::time::Instant;

use super::consumer_machine::{Answer, ConsumerMachine, HeartbeatRequest, Target};
use crate::{ApiKey, ErrorCode};

use super::ladder::Reaction;
use super::machine::{
    CommitVerdict, Coordinator, Failure, HeartbeatStep, Identity, Machine, PollStep,
};

/// One of the two machines. Their methods are documented there.
#[derive(Debug)]
pub(crate) enum Member {
    Classic(Machine),
    Consumer(ConsumerMachine),
}

/// Forwards a call to the machine in use.
macro_rules! either {
    ($self:ident, $machine:ident => $call:expr) => {
        match $self {
            Member::Classic($machine) => $call,
            Member::Consumer($machine) => $call,
        }
    };
}

impl Member {
    /// Returns true when the heartbeat thread must be woken.
    pub(crate) fn polled(&mut self, now: Instant) -> bool {
        match self {
            Self::Classic(machine) => {
                machine.polled(now);
                false
            }
            Self::Consumer(machine) => machine.polled(now),
        }
    }

    /// The request by which a member joins.
    pub(crate) fn joins_by(&self) -> ApiKey {
        match self {
            Self::Classic(_) => ApiKey::JoinGroup,
            Self::Consumer(_) => ApiKey::ConsumerGroupHeartbeat,
        }
    }

    pub(crate) fn poll_step(&self, now: Instant) -> PollStep {
        either!(self, machine => machine.poll_step(now))
    }

    pub(crate) fn take_lost(&mut self) -> bool {
        either!(self, machine => machine.take_lost())
    }

    pub(crate) fn is_rebalancing(&self) -> bool {
        either!(self, machine => machine.is_rebalancing())
    }

    pub(crate) fn coordinator_found(&mut self, coordinator: Coordinator, now: Instant) {
        match self {
            Self::Classic(machine) => machine.coordinator_found(coordinator, now),
            Self::Consumer(machine) => machine.coordinator_found(coordinator),
        }
    }

    pub(crate) fn coordinator_not_found(&mut self, failure: Failure, now: Instant) {
        either!(self, machine => machine.coordinator_not_found(failure, now))
    }

    pub(crate) fn offset_fetch_failed(
        &mut self,
        sent: &Identity,
        failure: Failure,
        now: Instant,
    ) -> Reaction {
        match self {
            Self::Classic(machine) => machine.offset_fetch_failed(sent, failure, now),
            Self::Consumer(machine) => machine.offset_fetch_failed(failure, now),
        }
    }

    /// # Errors
    /// The verdict for the caller when there is no membership.
    pub(crate) fn commit_identity(&self) -> Result<Identity, CommitVerdict> {
        either!(self, machine => machine.commit_identity())
    }

    pub(crate) fn commit_failed(&mut self, sent: &Identity, failure: Failure) -> CommitVerdict {
        either!(self, machine => machine.commit_failed(sent, failure))
    }

    pub(crate) fn heartbeat_step(&mut self, now: Instant) -> HeartbeatStep {
        either!(self, machine => machine.heartbeat_step(now))
    }

    pub(crate) fn heartbeat_coordinator_not_found(&mut self, failure: Failure, now: Instant) {
        either!(self, machine => machine.heartbeat_coordinator_not_found(failure, now))
    }

    pub(crate) fn identity(&self) -> &Identity {
        either!(self, machine => machine.identity())
    }

    /// The consumer closes: the heartbeat thread ends. Under the consumer protocol it leaves before.
    pub(crate) fn close(&mut self) {
        either!(self, machine => machine.close());
    }

    /// The heartbeat thread ends, even if the member has not left.
    pub(crate) fn stop(&mut self) {
        match self {
            Self::Classic(machine) => machine.close(),
            Self::Consumer(machine) => machine.stop(),
        }
    }

    /// The member reads other topics from now on.
    pub(crate) fn subscription_changed(&mut self) {
        either!(self, machine => machine.subscription_changed());
    }

    /// The heartbeat thread has carried a [`HeartbeatStep::Leave`] out.
    pub(crate) fn leave_ended(&mut self, leaver: &Identity) {
        match self {
            Self::Classic(machine) => machine.leave_ended(leaver),
            Self::Consumer(machine) => machine.leave_ended(),
        }
    }

    pub(crate) fn take_leaver(&mut self) -> Option<(Option<Coordinator>, Identity)> {
        either!(self, machine => machine.take_leaver())
    }

    pub(crate) fn fatal(&self) -> Option<ErrorCode> {
        either!(self, machine => machine.fatal())
    }

    /// Whether the consumer is being closed.
    pub(crate) fn is_closed(&self) -> bool {
        either!(self, machine => machine.is_closed())
    }

    // --- for one of the machines only; no effect on the other ---

    /// The classic protocol's machine, for the polling thread's joins and syncs.
    pub(crate) fn classic(&mut self) -> Option<&mut Machine> {
        match self {
            Self::Classic(machine) => Some(machine),
            Self::Consumer(_) => None,
        }
    }

    pub(crate) fn reconciled(&mut self, target: &Target) {
        if let Self::Consumer(machine) = self {
            machine.reconciled(target);
        }
    }

    pub(crate) fn consumer_heartbeat_answered(
        &mut self,
        sent: &HeartbeatRequest,
        result: Result<Answer, Failure>,
        now: Instant,
    ) -> bool {
        match self {
            Self::Classic(_) => false,
            Self::Consumer(machine) => machine.heartbeat_answered(sent, result, now),
        }
    }
}
