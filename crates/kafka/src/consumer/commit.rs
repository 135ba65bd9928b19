//! Offset commits, and retries of commits that the coordinator has not accepted.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use kafka_protocol::messages::OffsetCommitResponse;

use super::membership::{GroupMember, Pending, PendingRequest, heartbeat_panicked};
use super::reading::Reading;
use super::{CommitError, Consumer, RETRY_BACKOFF, STEP_MIN};
use crate::error::ConfigError;
use crate::group::coordinator::{self, OffsetToCommit};
use crate::group::machine::{CommitVerdict, Coordinator, Failure, Identity, PollStep};
use crate::group::{OffsetAndMetadata, TopicPartition};
use crate::{ApiKey, Error, ErrorCode};
use tbd_deadline::Deadline;

pub(crate) type Offsets = BTreeMap<TopicPartition, OffsetToCommit>;

/// A commit that was sent without waiting for its answer.
#[derive(Clone, Debug)]
pub struct PendingCommit {
    offsets: Offsets,
    result: Arc<OnceLock<Result<(), CommitError>>>,
}

impl PendingCommit {
    /// A commit to send; one of nothing has its result at once.
    pub(super) fn new(offsets: Offsets) -> Self {
        let commit = Self {
            offsets,
            result: Arc::default(),
        };
        if commit.offsets.is_empty() {
            commit.complete(Ok(()));
        }
        commit
    }

    pub(super) fn offsets(&self) -> &Offsets {
        &self.offsets
    }

    /// The result, once a later poll, commit or close of the consumer has received it. Does not
    /// wait.
    pub fn result(&self) -> Option<Result<(), CommitError>> {
        self.result.get().cloned()
    }

    fn complete(&self, result: Result<(), CommitError>) {
        // The first result counts.
        let _ = self.result.set(result);
    }

    /// The connection was closed before the answer came.
    pub(super) fn interrupted(&self) {
        let what = "the coordinator's answer to a commit";
        self.complete(Err(CommitError::Unavailable(Error::timeout(what))));
    }
}

/// A consumer in the middle of a rebalance, for [`ConsumerHooks::revoking`](super::ConsumerHooks).
pub struct Rebalance<'a> {
    member: &'a mut GroupMember,
    reading: &'a mut Reading,
}

impl std::fmt::Debug for Rebalance<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Rebalance")
    }
}

impl<'a> Rebalance<'a> {
    pub(super) fn new(member: &'a mut GroupMember, reading: &'a mut Reading) -> Self {
        Self { member, reading }
    }

    /// As [`Consumer::commit_polled`].
    ///
    /// # Errors
    /// As [`Consumer::commit_polled`].
    pub fn commit_polled(&mut self, deadline: Deadline) -> Result<(), CommitError> {
        let offsets = self.reading.polled();
        self.member.commit(self.reading, offsets, deadline)
    }

    /// As [`Consumer::commit`].
    ///
    /// # Errors
    /// As [`Consumer::commit`].
    pub fn commit<T: Into<OffsetAndMetadata> + Clone>(
        &mut self,
        offsets: &[(TopicPartition, T)],
        deadline: Deadline,
    ) -> Result<(), CommitError> {
        let offsets = self.reading.to_commit(offsets)?;
        self.member.commit(self.reading, offsets, deadline)
    }
}

impl Consumer {
    /// Commits all records handed out so far, for the partitions still assigned to this consumer.
    /// Does nothing when all of them are committed.
    ///
    /// Waits for the coordinator's answer until `deadline` at most, and retries transient failures.
    ///
    /// # Errors
    /// See [`CommitError`]. After a transient error the next polls retry the commit, for partitions
    /// that are still assigned.
    #[doc(alias = "commitSync")]
    pub fn commit_polled(&mut self, deadline: Deadline) -> Result<(), CommitError> {
        let offsets = self.reading.polled();
        self.commit_offsets(offsets, deadline)
    }

    /// Commits pairs of a partition and the next offset to read: an `i64`, or an
    /// [`OffsetAndMetadata`]. If one of the partitions is not assigned to this consumer, nothing is
    /// committed. An offset below the last committed one is ignored.
    ///
    /// A partition that was revoked and assigned again can be committed once reading has begun
    /// again; offsets read before are not committed. If its topic was deleted and created again, an
    /// offset beyond the records handed out of the new topic is refused.
    ///
    /// Waits as [`commit_polled`](Self::commit_polled).
    ///
    /// # Errors
    /// As [`commit_polled`](Self::commit_polled).
    #[doc(alias = "commitSync")]
    pub fn commit<T: Into<OffsetAndMetadata> + Clone>(
        &mut self,
        offsets: &[(TopicPartition, T)],
        deadline: Deadline,
    ) -> Result<(), CommitError> {
        let offsets = self.reading.to_commit(offsets)?;
        self.commit_offsets(offsets, deadline)
    }

    /// Sends a commit as [`commit`](Self::commit) does, without waiting for its answer (Java:
    /// `commitAsync`). Waits, at most until `deadline`, for the answer to the request before it,
    /// and for a connection. If a rebalance or a lost connection interrupts it, the next polls
    /// repeat it.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    #[doc(alias = "commitAsync")]
    pub fn commit_async<T: Into<OffsetAndMetadata> + Clone>(
        &mut self,
        offsets: &[(TopicPartition, T)],
        deadline: Deadline,
    ) -> Result<PendingCommit, CommitError> {
        let offsets = self.reading.to_commit(offsets)?;
        match &mut self.member {
            Some(member) => member.send_commit(&mut self.reading, offsets, deadline),
            None => self.alone.send(&mut self.reading, offsets, deadline),
        }
    }

    fn commit_offsets(&mut self, offsets: Offsets, deadline: Deadline) -> Result<(), CommitError> {
        match &mut self.member {
            Some(member) => member.commit(&mut self.reading, offsets, deadline),
            None => self.alone.commit(&mut self.reading, offsets, deadline),
        }
    }
}

impl Reading {
    /// What a commit of all records handed out stores.
    pub(super) fn polled(&self) -> Offsets {
        let partitions = self.partitions.iter();
        partitions
            .filter_map(|(name, partition)| {
                let (offset, _) = partition.to_commit()?;
                Some((name.clone(), partition.offset_to_commit(offset.into())))
            })
            .collect()
    }

    /// What a commit of these offsets stores.
    pub(super) fn to_commit<T: Into<OffsetAndMetadata> + Clone>(
        &self,
        offsets: &[(TopicPartition, T)],
    ) -> Result<Offsets, CommitError> {
        let mut wanted = Offsets::new();
        for (name, given) in offsets {
            let given: OffsetAndMetadata = given.clone().into();
            let offset = given.offset;
            if offset < 0 {
                return Err(CommitError::InvalidOffset {
                    partition: name.clone(),
                    offset,
                });
            }
            let partition = self
                .partitions
                .get(name)
                .filter(|partition| !partition.is_foreign(offset))
                .ok_or(CommitError::Lost)?;
            if !partition.is_backwards(offset) {
                wanted.insert(name.clone(), partition.offset_to_commit(given));
            }
        }
        Ok(wanted)
    }

    /// Removes from `offsets` what was committed.
    pub(super) fn take_commit_answer(
        &mut self,
        offsets: &mut Offsets,
        answer: &OffsetCommitResponse,
    ) -> Result<(), Error> {
        let mut failed: Option<(ErrorCode, Error)> = None;
        for topic in &answer.topics {
            for partition_answer in &topic.partitions {
                let name = TopicPartition::new(&*topic.name.0, partition_answer.partition_index);
                match ErrorCode::from_code(partition_answer.error_code) {
                    // A membership error matters more than an error of one partition.
                    Some(code) if failed.as_ref().is_none_or(|(it, _)| it.is_retriable()) => {
                        let error = Error::refused_partition(ApiKey::OffsetCommit, code, &name);
                        failed = Some((code, error));
                    }
                    Some(_) => {}
                    None => {
                        if let (Some(wanted), Some(partition)) =
                            (offsets.remove(&name), self.partitions.get_mut(&name))
                        {
                            partition.committed(&wanted);
                        }
                    }
                }
            }
        }
        match failed {
            Some((_, error)) => Err(error),
            None if offsets.is_empty() => Ok(()),
            None => Err(Error::Protocol {
                address: "of the coordinator".to_owned(),
                reason: "OffsetCommit passes over partitions".to_owned(),
            }),
        }
    }

    /// Takes the answer to a commit in, and completes the commit. `explain` says what an error means.
    pub(super) fn commit_answered(
        &mut self,
        commit: &PendingCommit,
        answer: Result<OffsetCommitResponse, Error>,
        explain: impl FnOnce(Error) -> CommitError,
    ) {
        let mut left = commit.offsets.clone();
        let taken = answer.and_then(|answer| self.take_commit_answer(&mut left, &answer));
        let result = taken.map_err(explain);
        let is_owed = result.as_ref().is_err_and(CommitError::is_transient);
        self.set_owed(&left, is_owed);
        commit.complete(result);
    }

    /// Commits to repeat.
    pub(super) fn owed(&self) -> Offsets {
        let partitions = self.partitions.iter();
        partitions
            .filter_map(|(name, partition)| Some((name.clone(), partition.owed.clone()?)))
            .collect()
    }

    /// Remembers commits to repeat, or forgets them.
    pub(super) fn set_owed(&mut self, offsets: &Offsets, is_owed: bool) {
        for (name, wanted) in offsets {
            if let Some(partition) = self.partitions.get_mut(name) {
                partition.owed = is_owed.then(|| wanted.clone());
            }
        }
    }
}

impl GroupMember {
    /// Retries owed commits for partitions that are still assigned. Waits one second at most.
    pub(super) fn make_up_commits(&mut self, reading: &mut Reading) {
        // The answer to a commit in flight comes first.
        if Instant::now() < self.commits_not_before || self.is_committing() {
            return;
        }
        let owed = reading.owed();
        if owed.is_empty() {
            return;
        }
        self.commits_not_before = Instant::now() + STEP_MIN;
        if let Err(error) = self.commit(reading, owed, Deadline::after(STEP_MIN)) {
            log::debug!("{}: {error}", reading.name);
        }
    }

    /// Retries owed commits before partitions move, so that their next owner does not repeat the
    /// work. Waits for the answer to a commit in flight before.
    pub(super) fn make_up_last_commits(&mut self, reading: &mut Reading) {
        if self.is_committing()
            && let Err(error) = self.settle_coordinator(reading, Deadline::after(STEP_MIN))
        {
            log::debug!("{}: {error}", reading.name);
        }
        self.commits_not_before = Instant::now();
        self.make_up_commits(reading);
    }

    pub(super) fn commit(
        &mut self,
        reading: &mut Reading,
        mut offsets: Offsets,
        deadline: Deadline,
    ) -> Result<(), CommitError> {
        let result = self.commit_until(reading, &mut offsets, deadline);
        let is_owed = result.as_ref().is_err_and(CommitError::is_transient);
        reading.set_owed(&offsets, is_owed);
        result
    }

    /// Removes from `offsets` what was committed.
    fn commit_until(
        &mut self,
        reading: &mut Reading,
        offsets: &mut Offsets,
        deadline: Deadline,
    ) -> Result<(), CommitError> {
        while !offsets.is_empty() {
            let identity = self.commit_identity()?;
            let error = match self.try_commit(reading, offsets, &identity, deadline) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let verdict = self.commit_failed(&error, &identity);
            if verdict != CommitVerdict::Retry || deadline.remaining() <= RETRY_BACKOFF {
                return Err(explain(verdict, error));
            }
            // A pause between attempts, not a wait for an event.
            std::thread::sleep(RETRY_BACKOFF);
        }
        Ok(())
    }

    pub(super) fn commit_identity(&self) -> Result<Identity, CommitError> {
        if self.shared.is_dead() {
            return Err(CommitError::Fatal(heartbeat_panicked()));
        }
        let identity = self.shared.machine().commit_identity();
        identity.map_err(|verdict| explain(verdict, Error::Closed))
    }

    fn commit_failed(&mut self, error: &Error, identity: &Identity) -> CommitVerdict {
        let failure = coordinator::failure(error);
        if failure == Failure::Transport {
            self.coordinator.disconnect();
        }
        let verdict = self.shared.machine().commit_failed(identity, failure);
        self.shared.notify();
        verdict
    }

    /// Makes one attempt. Removes from `offsets` what was committed.
    fn try_commit(
        &mut self,
        reading: &mut Reading,
        offsets: &mut Offsets,
        identity: &Identity,
        deadline: Deadline,
    ) -> Result<(), Error> {
        self.settle_coordinator(reading, deadline)?;
        let coordinator = self.known_coordinator(reading, deadline)?;
        let request = self.commit_request(identity, offsets);
        let answer = self
            .coordinator_connection(reading, &coordinator, deadline)?
            .call(&request, deadline)?;
        reading.take_commit_answer(offsets, &answer)
    }

    fn send_commit(
        &mut self,
        reading: &mut Reading,
        offsets: Offsets,
        deadline: Deadline,
    ) -> Result<PendingCommit, CommitError> {
        let commit = PendingCommit::new(offsets);
        if commit.result().is_some() {
            return Ok(commit);
        }
        let identity = self.commit_identity()?;
        let request = self.commit_request(&identity, &commit.offsets);
        let sent = self.settle_coordinator(reading, deadline).and_then(|()| {
            let coordinator = self.known_coordinator(reading, deadline)?;
            self.coordinator_connection(reading, &coordinator, deadline)?
                .send(&request, deadline)
        });
        match sent {
            Ok(sent) => {
                let due = Deadline::after(reading.cluster.config().request_timeout);
                let request = PendingRequest::Commit(sent, identity, commit.clone());
                self.coordinator.pending = Some(Pending { request, due });
                // Repeated unless the answer says otherwise.
                reading.set_owed(&commit.offsets, true);
                Ok(commit)
            }
            Err(error) => {
                let verdict = self.commit_failed(&error, &identity);
                let error = explain(verdict, error);
                reading.set_owed(&commit.offsets, error.is_transient());
                Err(error)
            }
        }
    }

    pub(super) fn commit_answered(
        &mut self,
        reading: &mut Reading,
        answer: Result<OffsetCommitResponse, Error>,
        identity: &Identity,
        commit: &PendingCommit,
    ) {
        reading.commit_answered(commit, answer, |error| {
            let error = self.coordinator.refused(error);
            explain(self.commit_failed(&error, identity), error)
        });
    }

    fn commit_request(
        &self,
        identity: &Identity,
        offsets: &Offsets,
    ) -> kafka_protocol::messages::OffsetCommitRequest {
        let instance_id = self.config.instance_id.as_deref();
        coordinator::commit_request(&self.config.group_id, instance_id, identity, offsets)
    }

    fn known_coordinator(
        &mut self,
        reading: &Reading,
        deadline: Deadline,
    ) -> Result<Coordinator, Error> {
        if let PollStep::Ready(coordinator) | PollStep::Join(coordinator) =
            self.shared.machine().poll_step(Instant::now())
        {
            return Ok(coordinator);
        }
        let found = coordinator::find(&reading.cluster, &self.config.group_id, deadline)?;
        let mut machine = self.shared.machine();
        machine.coordinator_found(found.clone(), Instant::now());
        Ok(found)
    }
}

pub(super) fn no_group() -> Error {
    Error::Config(ConfigError {
        field: "ConsumerConfig::group_id",
        reason: "a commit needs a group".to_owned(),
    })
}

fn explain(verdict: CommitVerdict, error: Error) -> CommitError {
    let refused = |code| match &error {
        Error::Refused { .. } => error.clone(),
        _ => Error::refused(ApiKey::OffsetCommit, code),
    };
    match verdict {
        CommitVerdict::Rebalancing => CommitError::Rebalancing,
        CommitVerdict::Lost => CommitError::Lost,
        CommitVerdict::Fatal(code) => CommitError::Fatal(refused(code)),
        CommitVerdict::Report(code) => CommitError::Refused(refused(code)),
        CommitVerdict::Retry => CommitError::Unavailable(error),
    }
}
