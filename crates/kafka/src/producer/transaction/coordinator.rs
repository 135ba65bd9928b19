//! Requests of transactions to their coordinators.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, EndTxnRequest,
    GroupId, InitProducerIdRequest, ProducerId, TransactionalId, TxnOffsetCommitRequest,
    TxnOffsetCommitResponse,
};

use super::machine::{Reaction, reaction_to};
use crate::ErrorCode::OperationNotAttempted;
use crate::config::Backoff;
use crate::connection::Connection;
use crate::consumer::{GroupMetadata, GroupOffsets};
use crate::group::coordinator::{self, Kind};
use crate::group::{TopicPartition, by_topic};
use crate::producer::batch::Identity;
use crate::wire::{Request, millis, text};
use crate::{ApiKey, Cluster, Error, ErrorCode};
use tbd_deadline::Deadline;

/// The first pause before a request is repeated: as long as a transaction's markers mostly take.
const PAUSE_FIRST: Duration = Duration::from_millis(20);

/// The connection to the coordinator of a group or of a transactional id.
#[derive(Debug)]
pub(super) struct Link {
    cluster: Cluster,
    kind: Kind,
    key: String,
    /// How long one attempt may take.
    timeout: Duration,
    connection: Option<Connection>,
    /// Whether an answer was lost.
    has_lost: bool,
}

impl Link {
    pub(super) fn new(cluster: &Cluster, kind: Kind, key: &str, timeout: Duration) -> Self {
        Self {
            cluster: cluster.clone(),
            kind,
            key: key.to_owned(),
            timeout,
            connection: None,
            has_lost: false,
        }
    }

    /// The group or the transactional id.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// Whether an answer was lost since the last call: its request may still arrive.
    pub(super) fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.has_lost)
    }

    /// See [`Connection::has_implicit_transactions`].
    pub(super) fn has_implicit_transactions(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(Connection::has_implicit_transactions)
    }

    /// Sends a request, in no version newer than `newest`, until its answer is final or `deadline`
    /// has passed. The request must be safe to repeat. `check` finds the error in an answer.
    pub(super) fn ask<R: Request>(
        &mut self,
        request: &R,
        newest: i16,
        deadline: Deadline,
        check: impl Fn(&R::Response) -> Result<(), Error>,
    ) -> Result<R::Response, Error> {
        let pause_max = self.cluster.config().reconnect_backoff_max;
        let mut backoff = Backoff::new(PAUSE_FIRST, pause_max);
        loop {
            let attempt = deadline.earlier_of(Deadline::after(self.timeout));
            let answer = self.try_ask(request, newest, attempt);
            let error = match answer.and_then(|answer| check(&answer).map(|()| answer)) {
                Ok(answer) => return Ok(answer),
                Err(error) => error.of_broker(self.connection.as_ref().map(Connection::address)),
            };
            log::debug!("kafka transaction {}: {error}", self.key);
            self.has_lost |= is_lost(&error);
            match reaction_to(&error) {
                Reaction::Retry => {}
                Reaction::FindCoordinator => self.connection = None,
                _ => return Err(error),
            }
            let pause = backoff.next_pause();
            if pause >= deadline.remaining() {
                let (what, cause) = (format!("the coordinator of {}", self.key), Box::new(error));
                return Err(Error::Timeout {
                    what: format!("{what} to take {:?}", R::API),
                    cause: Some(cause),
                });
            }
            // A pause between attempts, not a wait for an event.
            std::thread::sleep(pause);
        }
    }

    fn try_ask<R: Request>(
        &mut self,
        request: &R,
        newest: i16,
        deadline: Deadline,
    ) -> Result<R::Response, Error> {
        let idle = self.connection.take();
        let open = idle.and_then(|mut it| it.is_usable().then_some(it));
        let connection = match open {
            Some(connection) => connection,
            None => coordinator::connect(&self.cluster, self.kind, &self.key, deadline)?,
        };
        let connection = self.connection.insert(connection);
        let sent = connection.send_at_most(request, newest, deadline)?;
        connection.receive(sent, deadline)
    }
}

/// Whether the request may have been sent, and has no answer.
fn is_lost(error: &Error) -> bool {
    matches!(
        error,
        Error::ConnectionLost { .. } | Error::Timeout { .. } | Error::Protocol { .. }
    )
}

fn transactional_id(id: &str) -> TransactionalId {
    TransactionalId(text(id))
}

/// InitProducerId. With an identity, its epoch is raised (KIP-360).
pub(super) fn init_request(
    id: &str,
    identity: Option<Identity>,
    timeout: Duration,
) -> InitProducerIdRequest {
    InitProducerIdRequest::default()
        .with_transactional_id(Some(transactional_id(id)))
        .with_transaction_timeout_ms(millis(timeout))
        .with_producer_id(ProducerId(identity.map_or(-1, |it| it.producer_id)))
        .with_producer_epoch(identity.map_or(-1, |it| it.epoch))
}

/// AddPartitionsToTxn.
pub(super) fn add_partitions_request(
    id: &str,
    identity: Identity,
    partitions: &[TopicPartition],
) -> AddPartitionsToTxnRequest {
    let topics = by_topic(partitions.iter().map(|name| (name, name.partition)));
    let topics = topics.map(|(name, partitions)| {
        AddPartitionsToTxnTopic::default()
            .with_name(name)
            .with_partitions(partitions)
    });
    AddPartitionsToTxnRequest::default()
        .with_v3_and_below_transactional_id(transactional_id(id))
        .with_v3_and_below_producer_id(ProducerId(identity.producer_id))
        .with_v3_and_below_producer_epoch(identity.epoch)
        .with_v3_and_below_topics(topics.collect())
}

/// The first error of an answer to AddPartitionsToTxn.
pub(super) fn check_partitions(answer: &AddPartitionsToTxnResponse) -> Result<(), Error> {
    let codes = answer.results_by_topic_v3_and_below.iter().flat_map(|it| {
        let partitions = it.results_by_partition.iter();
        partitions.map(|entry| {
            (
                &*it.name.0,
                entry.partition_index,
                entry.partition_error_code,
            )
        })
    });
    first_error(ApiKey::AddPartitionsToTxn, codes)
}

/// AddOffsetsToTxn.
pub(super) fn add_offsets_request(
    id: &str,
    identity: Identity,
    group: &str,
) -> AddOffsetsToTxnRequest {
    AddOffsetsToTxnRequest::default()
        .with_transactional_id(transactional_id(id))
        .with_producer_id(ProducerId(identity.producer_id))
        .with_producer_epoch(identity.epoch)
        .with_group_id(GroupId(text(group)))
}

/// TxnOffsetCommit. It names the member, so that the coordinator refuses one that it has expelled.
pub(super) fn commit_request(
    id: &str,
    identity: Identity,
    offsets: &GroupOffsets,
    member: &GroupMetadata,
) -> TxnOffsetCommitRequest {
    let topics = by_topic(offsets.offsets.iter().map(|(name, wanted)| {
        let partition = TxnOffsetCommitRequestPartition::default()
            .with_partition_index(name.partition)
            .with_committed_offset(wanted.offset)
            .with_committed_leader_epoch(wanted.leader_epoch)
            .with_committed_metadata(wanted.stored_metadata());
        (name, partition)
    }));
    let topics = topics.map(|(name, partitions)| {
        TxnOffsetCommitRequestTopic::default()
            .with_name(name)
            .with_partitions(partitions)
    });
    TxnOffsetCommitRequest::default()
        .with_transactional_id(transactional_id(id))
        .with_group_id(GroupId(text(&offsets.group_id)))
        .with_producer_id(ProducerId(identity.producer_id))
        .with_producer_epoch(identity.epoch)
        .with_generation_id(member.generation)
        .with_member_id(text(&member.member_id))
        .with_group_instance_id(offsets.instance_id.as_deref().map(text))
        .with_topics(topics.collect())
}

/// The first error of an answer to TxnOffsetCommit.
pub(super) fn check_commit(answer: &TxnOffsetCommitResponse) -> Result<(), Error> {
    let codes = answer.topics.iter().flat_map(|topic| {
        let partitions = topic.partitions.iter();
        partitions.map(|entry| (&*topic.name.0, entry.partition_index, entry.error_code))
    });
    first_error(ApiKey::TxnOffsetCommit, codes)
}

/// EndTxn.
pub(super) fn end_request(id: &str, identity: Identity, commits: bool) -> EndTxnRequest {
    EndTxnRequest::default()
        .with_transactional_id(transactional_id(id))
        .with_producer_id(ProducerId(identity.producer_id))
        .with_producer_epoch(identity.epoch)
        .with_committed(commits)
}

/// The first error that a repetition does not help against, or else the first one. Once one
/// partition is refused, the broker does not attempt the others, so its code counts more than
/// theirs.
fn first_error<'a>(
    api: ApiKey,
    codes: impl Iterator<Item = (&'a str, i32, i16)>,
) -> Result<(), Error> {
    let (mut found, mut not_attempted): (Option<Error>, Option<Error>) = (None, None);
    for (topic, partition, code) in codes {
        let Some(code) = ErrorCode::from_code(code) else {
            continue;
        };
        let name = TopicPartition::new(Arc::<str>::from(topic), partition);
        let error = Error::refused_partition(api, code, &name);
        if code == OperationNotAttempted {
            not_attempted = not_attempted.or(Some(error));
            continue;
        }
        let is_final = !matches!(
            reaction_to(&error),
            Reaction::Retry | Reaction::FindCoordinator
        );
        if is_final || found.is_none() {
            found = Some(error);
        }
        if is_final {
            break;
        }
    }
    found.or(not_attempted).map_or(Ok(()), Err)
}
