//! Commits of a consumer without a membership, to a group without members.

use std::os::fd::AsFd;
use std::time::Instant;

use kafka_protocol::messages::OffsetCommitRequest;

use super::commit::{Offsets, PendingCommit, no_group};
use super::reading::Reading;
use super::{CommitError, RETRY_BACKOFF, STEP_MIN};
use crate::connection::{Connection, Sent};
use crate::group::coordinator::{self, Kind};
use crate::group::machine::Identity;
use crate::{Error, wait};
use tbd_deadline::Deadline;

/// The connection to the group's coordinator, with at most one commit in flight.
#[derive(Debug, Default)]
pub(super) struct LoneCommits {
    connection: Option<Connection>,
    pending: Option<(Sent<OffsetCommitRequest>, PendingCommit, Deadline)>,
    /// When failed commits are retried.
    not_before: Option<Instant>,
}

impl LoneCommits {
    /// The connection, if an answer is pending on it.
    pub(super) fn awaited(&self) -> Option<&Connection> {
        self.pending.as_ref().and(self.connection.as_ref())
    }

    /// When the pending answer is overdue.
    pub(super) fn answer_due(&self) -> Option<Deadline> {
        self.pending.as_ref().map(|(_, _, due)| *due)
    }

    /// Closes the connection. A commit in flight then has an unknown outcome.
    fn disconnect(&mut self) {
        self.connection = None;
        if let Some((_, commit, _)) = self.pending.take() {
            commit.interrupted();
        }
    }

    /// Commits, with retries until `deadline`.
    pub(super) fn commit(
        &mut self,
        reading: &mut Reading,
        mut offsets: Offsets,
        deadline: Deadline,
    ) -> Result<(), CommitError> {
        check_group(reading)?;
        while !offsets.is_empty() {
            let Err(error) = self.try_commit(reading, &mut offsets, deadline) else {
                break;
            };
            // Another broker may be the coordinator now.
            self.disconnect();
            let explained = explain(error);
            let is_transient = explained.is_transient();
            if !is_transient || deadline.remaining() <= RETRY_BACKOFF {
                reading.set_owed(&offsets, is_transient);
                return Err(explained);
            }
            // A pause between attempts, not a wait for an event.
            std::thread::sleep(RETRY_BACKOFF);
        }
        Ok(())
    }

    fn try_commit(
        &mut self,
        reading: &mut Reading,
        offsets: &mut Offsets,
        deadline: Deadline,
    ) -> Result<(), Error> {
        self.settle(reading, deadline);
        let sent = self.send_request(reading, offsets, deadline)?;
        let answer = self.connected(reading, deadline)?.receive(sent, deadline)?;
        reading.take_commit_answer(offsets, &answer)
    }

    /// Sends a commit; a later poll takes its answer.
    pub(super) fn send(
        &mut self,
        reading: &mut Reading,
        offsets: Offsets,
        deadline: Deadline,
    ) -> Result<PendingCommit, CommitError> {
        check_group(reading)?;
        let commit = PendingCommit::new(offsets);
        if commit.result().is_some() {
            return Ok(commit);
        }
        self.settle(reading, deadline);
        let sent = self.send_request(reading, commit.offsets(), deadline);
        match sent.map_err(explain) {
            Ok(sent) => {
                let due = Deadline::after(reading.cluster.config().request_timeout);
                self.pending = Some((sent, commit.clone(), due));
                // Repeated unless the answer says otherwise.
                reading.set_owed(commit.offsets(), true);
                Ok(commit)
            }
            Err(error) => {
                self.disconnect();
                reading.set_owed(commit.offsets(), error.is_transient());
                Err(error)
            }
        }
    }

    fn send_request(
        &mut self,
        reading: &Reading,
        offsets: &Offsets,
        deadline: Deadline,
    ) -> Result<Sent<OffsetCommitRequest>, Error> {
        let group_id = &reading.config.group_id;
        let request = coordinator::commit_request(group_id, None, &Identity::nobody(), offsets);
        self.connected(reading, deadline)?.send(&request, deadline)
    }

    fn connected(
        &mut self,
        reading: &Reading,
        deadline: Deadline,
    ) -> Result<&mut Connection, Error> {
        let kept = self.connection.take();
        let connection = match kept.and_then(|mut it| it.is_usable().then_some(it)) {
            Some(connection) => connection,
            None => {
                let group_id = &reading.config.group_id;
                coordinator::connect(&reading.cluster, Kind::Group, group_id, deadline)?
            }
        };
        Ok(self.connection.insert(connection))
    }

    /// Waits for the answer to the commit before, so that the connection is free.
    fn settle(&mut self, reading: &mut Reading, deadline: Deadline) {
        if let Some(connection) = self.awaited() {
            let is_ready = wait::readable(&[connection.as_fd()], deadline) == [true];
            match is_ready {
                true => self.take_answer(reading, true),
                false => self.disconnect(),
            }
        }
    }

    /// Receives the answer if it has begun to arrive. Gives up an overdue one.
    pub(super) fn take_answer(&mut self, reading: &mut Reading, is_ready: bool) {
        let is_due = |(_, _, due): &mut (_, _, Deadline)| is_ready || due.is_past();
        let Some((sent, commit, due)) = self.pending.take_if(is_due) else {
            return;
        };
        let Some(connection) = self.connection.as_mut() else {
            return commit.interrupted();
        };
        // An answer that has begun to arrive gets time to arrive completely.
        let read_by = match is_ready {
            true => Deadline::after(reading.cluster.config().request_timeout),
            false => due,
        };
        let answer = connection.receive(sent, read_by);
        reading.commit_answered(&commit, answer, |error| {
            self.disconnect();
            explain(error)
        });
    }

    /// Sends owed commits again, about once a second. Returns when to look again.
    pub(super) fn make_up(&mut self, reading: &mut Reading) -> Option<Instant> {
        let owed = reading.owed();
        if self.pending.is_some() || owed.is_empty() {
            return None;
        }
        let now = Instant::now();
        if self.not_before.is_none_or(|until| until <= now) {
            self.not_before = Some(now + STEP_MIN);
            if let Err(error) = self.send(reading, owed, Deadline::after(STEP_MIN)) {
                log::debug!("{}: {error}", reading.name);
            }
        }
        self.not_before
    }
}

fn check_group(reading: &Reading) -> Result<(), CommitError> {
    match reading.config.group_id.is_empty() {
        true => Err(CommitError::Fatal(no_group())),
        false => Ok(()),
    }
}

fn explain(error: Error) -> CommitError {
    match error.is_transient_for_nobody() {
        true => CommitError::Unavailable(error),
        false => CommitError::Refused(error),
    }
}
