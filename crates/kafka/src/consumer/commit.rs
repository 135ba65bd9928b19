//! Offset commits, and retries of commits that the coordinator has not accepted.

use std::collections::BTreeMap;
use std::time::Instant;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{ApiKey, OffsetCommitResponse};

use super::{CommitError, Consumer, RETRY_BACKOFF, STEP_MIN};
use crate::Error;
use crate::group::TopicPartition;
use crate::group::coordinator;
use crate::group::coordinator::OffsetToCommit;
use crate::group::machine::{CommitVerdict, Failure, Identity, PollStep};
use tbd_deadline::Deadline;

type Offsets = BTreeMap<TopicPartition, OffsetToCommit>;

impl Consumer {
    /// Commits all records handed out so far, for the partitions still assigned to this member.
    /// Does nothing when all of them are committed.
    ///
    /// Waits for the coordinator's answer until `deadline` at most, and retries transient failures.
    ///
    /// # Errors
    /// See [`CommitError`]. After a transient error the next polls retry the commit, for partitions
    /// that are still assigned.
    pub fn commit_polled(&mut self, deadline: Deadline) -> Result<(), CommitError> {
        let offsets: Offsets = self
            .partitions
            .iter()
            .filter_map(|(name, partition)| {
                let (offset, _) = partition.to_commit()?;
                Some((name.clone(), partition.offset_to_commit(offset)))
            })
            .collect();
        self.commit_offsets(offsets, deadline)
    }

    /// Commits pairs of a partition and the next offset to read. If one of the partitions is not
    /// assigned to this member, nothing is committed. An offset below the last committed one is
    /// ignored.
    ///
    /// A partition that was revoked and assigned again can be committed once reading has begun
    /// again; offsets read before are not committed. If its topic was deleted and created again, an
    /// offset beyond the records handed out of the new topic is refused.
    ///
    /// Waits as [`commit_polled`](Self::commit_polled).
    ///
    /// # Errors
    /// As [`commit_polled`](Self::commit_polled).
    pub fn commit(
        &mut self,
        offsets: &[(TopicPartition, i64)],
        deadline: Deadline,
    ) -> Result<(), CommitError> {
        let mut wanted = Offsets::new();
        for (name, offset) in offsets {
            let partition = self
                .partitions
                .get(name)
                .filter(|partition| !partition.is_foreign(*offset))
                .ok_or(CommitError::Lost)?;
            if !partition.is_backwards(*offset) {
                wanted.insert(name.clone(), partition.offset_to_commit(*offset));
            }
        }
        self.commit_offsets(wanted, deadline)
    }

    /// Retries owed commits for partitions that are still assigned. Waits one second at most.
    pub(super) fn make_up_commits(&mut self) {
        let owed: Offsets = self
            .partitions
            .iter()
            .filter_map(|(name, partition)| {
                let offset = partition.owed?;
                Some((name.clone(), partition.offset_to_commit(offset)))
            })
            .collect();
        if owed.is_empty() || Instant::now() < self.commits_not_before {
            return;
        }
        self.commits_not_before = Instant::now() + STEP_MIN;
        if let Err(error) = self.commit_offsets(owed, Deadline::after(STEP_MIN)) {
            log::debug!("consumer group {}: {error}", self.config.group_id);
        }
    }

    fn commit_offsets(
        &mut self,
        mut offsets: Offsets,
        deadline: Deadline,
    ) -> Result<(), CommitError> {
        let result = self.commit_until(&mut offsets, deadline);
        let is_owed = result.as_ref().is_err_and(CommitError::is_transient);
        for (name, wanted) in offsets {
            if let Some(partition) = self.partitions.get_mut(&name) {
                partition.owed = is_owed.then_some(wanted.offset);
            }
        }
        result
    }

    /// Removes from `offsets` what was committed.
    fn commit_until(
        &mut self,
        offsets: &mut Offsets,
        deadline: Deadline,
    ) -> Result<(), CommitError> {
        while !offsets.is_empty() {
            let identity = self
                .shared
                .machine()
                .commit_identity()
                .map_err(|verdict| explain(verdict, None))?;
            let (verdict, error) = match self.try_commit(offsets, &identity, deadline) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    let failure = coordinator::failure(&error);
                    if failure == Failure::Transport {
                        self.coordinator.disconnect();
                    }
                    (
                        self.shared.machine().commit_failed(&identity, failure),
                        error,
                    )
                }
            };
            self.shared.notify();
            if verdict != CommitVerdict::Retry || deadline.remaining() <= RETRY_BACKOFF {
                return Err(explain(verdict, Some(error)));
            }
            // A pause between attempts, not a wait for an event.
            std::thread::sleep(RETRY_BACKOFF);
        }
        Ok(())
    }

    /// Makes one attempt. Removes from `offsets` what was committed.
    fn try_commit(
        &mut self,
        offsets: &mut Offsets,
        identity: &Identity,
        deadline: Deadline,
    ) -> Result<(), Error> {
        self.settle_coordinator(deadline)?;
        let coordinator = self.known_coordinator(deadline)?;
        let request = coordinator::commit_request(&self.config, identity, offsets);
        let answer = self
            .coordinator_connection(&coordinator, deadline)?
            .call(&request, deadline)?;
        self.take_commit_answer(offsets, &answer)
    }

    fn take_commit_answer(
        &mut self,
        offsets: &mut Offsets,
        answer: &OffsetCommitResponse,
    ) -> Result<(), Error> {
        let mut failed: Option<ResponseError> = None;
        for topic in &answer.topics {
            for partition_answer in &topic.partitions {
                let name = TopicPartition::new(&*topic.name.0, partition_answer.partition_index);
                match ResponseError::try_from_code(partition_answer.error_code) {
                    // A membership error matters more than an error of one partition.
                    Some(code) if failed.is_none_or(|failed| failed.is_retriable()) => {
                        failed = Some(code)
                    }
                    Some(_) => {}
                    None => {
                        if let (Some(wanted), Some(partition)) =
                            (offsets.remove(&name), self.partitions.get_mut(&name))
                        {
                            partition.committed(wanted.offset);
                        }
                    }
                }
            }
        }
        match failed {
            Some(code) => Err(Error::Broker {
                api: ApiKey::OffsetCommit,
                code,
            }),
            None if offsets.is_empty() => Ok(()),
            None => Err(self.bad_answer("OffsetCommit passes over partitions")),
        }
    }

    fn known_coordinator(
        &mut self,
        deadline: Deadline,
    ) -> Result<crate::group::machine::Coordinator, Error> {
        if let PollStep::Ready(coordinator) | PollStep::Join(coordinator) =
            self.shared.machine().poll_step(Instant::now())
        {
            return Ok(coordinator);
        }
        let found = coordinator::find(&self.cluster, &self.config.group_id, deadline)?;
        self.shared
            .machine()
            .coordinator_found(found.clone(), Instant::now());
        Ok(found)
    }
}

fn explain(verdict: CommitVerdict, error: Option<Error>) -> CommitError {
    match verdict {
        CommitVerdict::Rebalancing => CommitError::Rebalancing,
        CommitVerdict::Lost => CommitError::Lost,
        CommitVerdict::Fatal(code) => CommitError::Fatal(code),
        CommitVerdict::Report(code) => CommitError::Refused(code),
        CommitVerdict::Retry => CommitError::Unavailable(error.unwrap_or(Error::Closed)),
    }
}
