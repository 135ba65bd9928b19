//! Requests to the group coordinator, and the look-up of its address.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::ApiKey;
use crate::ErrorCode;
use kafka_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, FindCoordinatorRequest, GroupId,
    HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, OffsetCommitRequest, OffsetFetchRequest,
    SyncGroupRequest,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::assignor::{Assignment, Assignor};
use super::consumer_machine::{self, Answer, Target};
use super::machine::{Coordinator, Failure, Identity};
use super::protocol::{Subscription, encode_assignment};
use super::{GroupProtocol, MemberConfig, TopicPartition, by_topic};
use crate::connection::Connection;
use crate::wire::{Request, host_port, millis, text, topic_name};
use crate::{Cluster, Error, topic_id};
use tbd_deadline::Deadline;

const PROTOCOL_TYPE: &str = "consumer";

/// Asks any broker for the group's coordinator. Waits until `deadline` at most.
///
/// # Errors
/// When no broker answered, or the one that did knows no coordinator yet.
pub fn find(cluster: &Cluster, group_id: &str, deadline: Deadline) -> Result<Coordinator, Error> {
    find_for(cluster, Kind::Group, group_id, deadline)
}

/// What a coordinator coordinates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A consumer group.
    Group = 0,
    /// A transactional id.
    Transaction = 1,
}

/// As [`find`], for a group or a transactional id.
pub(crate) fn find_for(
    cluster: &Cluster,
    kind: Kind,
    key: &str,
    deadline: Deadline,
) -> Result<Coordinator, Error> {
    let request = FindCoordinatorRequest::default()
        .with_key(text(key))
        .with_key_type(kind as i8);
    let mut connection = cluster.connect_any(deadline)?;
    let answer = connection.call(&request, deadline)?;
    connection.check(ApiKey::FindCoordinator, answer.error_code)?;
    Ok(Coordinator {
        node_id: answer.node_id.0,
        address: host_port(&answer.host, answer.port),
    })
}

/// Opens a new connection to the coordinator of a group or of a transactional id. Waits until
/// `deadline` at most.
///
/// # Errors
/// As [`find`], and when the coordinator is unreachable.
pub(crate) fn connect(
    cluster: &Cluster,
    kind: Kind,
    key: &str,
    deadline: Deadline,
) -> Result<Connection, Error> {
    let coordinator = find_for(cluster, kind, key, deadline)?;
    cluster.open(&coordinator.address, deadline)
}

/// Sends a request to the group's coordinator over a new connection. Waits until `deadline` at
/// most.
///
/// # Errors
/// As [`find`] and [`Connection::call`](crate::connection::Connection::call).
pub(crate) fn ask<R: Request>(
    cluster: &Cluster,
    group_id: &str,
    request: &R,
    deadline: Deadline,
) -> Result<R::Response, Error> {
    connect(cluster, Kind::Group, group_id, deadline)?.call(request, deadline)
}

/// What an error means for the membership.
pub(crate) fn failure(error: &Error) -> Failure {
    match error {
        Error::Refused { code, .. } => Failure::Code(*code),
        // A retry would fail the same way, for ever.
        Error::UnsupportedVersion { .. } => Failure::Code(ErrorCode::UnsupportedVersion),
        Error::Encode { .. } => Failure::Code(ErrorCode::InvalidRequest),
        _ => Failure::Transport,
    }
}

/// JoinGroup, with the partitions still owned.
pub(crate) fn join_request(
    config: &MemberConfig,
    topics: &[Arc<str>],
    identity: &Identity,
    owned: &[TopicPartition],
) -> JoinGroupRequest {
    let generation = Some(identity.generation).filter(|&generation| generation >= 0);
    let protocols = config.assignors.iter().map(|assignor| {
        let subscription = Subscription {
            topics: topics.to_vec(),
            user_data: assignor.user_data(generation),
            owned: owned.to_vec(),
            generation,
            rack: config.rack.clone(),
        };
        JoinGroupRequestProtocol::default()
            .with_name(StrBytes::from_static_str(assignor.name()))
            .with_metadata(subscription.encode())
    });
    JoinGroupRequest::default()
        .with_group_id(group(config))
        .with_session_timeout_ms(millis(config.session_timeout))
        // The group waits this long for a busy member to rejoin.
        .with_rebalance_timeout_ms(millis(config.max_poll_interval))
        .with_member_id(text(&identity.member_id))
        .with_group_instance_id(instance(config))
        .with_protocol_type(StrBytes::from_static_str(PROTOCOL_TYPE))
        .with_protocols(protocols.collect())
}

/// SyncGroup. The leader sends every member's assignment, the others send none.
pub(crate) fn sync_request(
    config: &MemberConfig,
    identity: &Identity,
    assignor: Assignor,
    assignment: &Assignment,
) -> SyncGroupRequest {
    let assignments = assignment.iter().map(|(member_id, partitions)| {
        SyncGroupRequestAssignment::default()
            .with_member_id(text(member_id))
            .with_assignment(encode_assignment(partitions))
    });
    SyncGroupRequest::default()
        .with_group_id(group(config))
        .with_generation_id(identity.generation)
        .with_member_id(text(&identity.member_id))
        .with_group_instance_id(instance(config))
        .with_protocol_type(Some(StrBytes::from_static_str(PROTOCOL_TYPE)))
        .with_protocol_name(Some(StrBytes::from_static_str(assignor.name())))
        .with_assignments(assignments.collect())
}

/// Heartbeat.
pub(crate) fn heartbeat_request(config: &MemberConfig, identity: &Identity) -> HeartbeatRequest {
    HeartbeatRequest::default()
        .with_group_id(group(config))
        .with_generation_id(identity.generation)
        .with_member_id(text(&identity.member_id))
        .with_group_instance_id(instance(config))
}

/// ConsumerGroupHeartbeat, the consumer protocol's heartbeat.
pub(crate) fn consumer_heartbeat_request(
    config: &MemberConfig,
    topics: &[Arc<str>],
    heartbeat: &consumer_machine::HeartbeatRequest,
) -> ConsumerGroupHeartbeatRequest {
    let mut request = ConsumerGroupHeartbeatRequest::default()
        .with_group_id(group(config))
        .with_member_id(text(&heartbeat.identity.member_id))
        .with_member_epoch(heartbeat.identity.generation)
        // The coordinator recognises a leaving static member by it.
        .with_instance_id(instance(config));
    if let Some(owned) = &heartbeat.owned {
        let owned = owned.iter().map(|(topic, partitions)| {
            TopicPartitions::default()
                .with_topic_id(*topic)
                .with_partitions(partitions.clone())
        });
        request.topic_partitions = Some(owned.collect());
    }
    if heartbeat.is_full {
        let topics = topics.iter().map(|topic| topic_name(topic));
        request.subscribed_topic_names = Some(topics.collect());
        request.rack_id = config.rack.as_deref().map(text);
        // The group waits this long for a busy member to revoke partitions.
        request.rebalance_timeout_ms = millis(config.max_poll_interval);
    }
    request
}

/// Converts a heartbeat's answer, whose error code is already checked.
pub(crate) fn consumer_heartbeat_answer(answer: ConsumerGroupHeartbeatResponse) -> Answer {
    let interval = u64::try_from(answer.heartbeat_interval_ms).unwrap_or(0);
    Answer {
        epoch: answer.member_epoch,
        // The minimum protects against a broker that asks for constant heartbeats.
        interval: Duration::from_millis(interval.max(100)),
        target: answer.assignment.map(|assignment| {
            let mut target: Target = assignment
                .topic_partitions
                .into_iter()
                .map(|topic| (topic.topic_id, topic.partitions))
                .collect();
            target
                .iter_mut()
                .for_each(|(_, partitions)| partitions.sort_unstable());
            target.sort_unstable();
            target
        }),
    }
}

/// Leaves the group, under either protocol.
///
/// # Errors
/// As [`Connection::call`], and when the coordinator refuses. A member that the group does not have
/// has left.
pub(crate) fn leave(
    connection: &mut Connection,
    config: &MemberConfig,
    identity: &Identity,
    deadline: Deadline,
) -> Result<(), Error> {
    let (api, codes): (_, Vec<i16>) = match config.protocol {
        GroupProtocol::Classic => {
            let request = leave_request(config, identity);
            let answer = connection.call(&request, deadline)?;
            let members = answer.members.iter().map(|member| member.error_code);
            let codes = std::iter::once(answer.error_code).chain(members).collect();
            (ApiKey::LeaveGroup, codes)
        }
        GroupProtocol::Consumer => {
            let heartbeat = consumer_machine::HeartbeatRequest {
                identity: identity.clone(),
                is_full: false,
                owned: None,
            };
            let request = consumer_heartbeat_request(config, &[], &heartbeat);
            let answer = connection.call(&request, deadline)?;
            (ApiKey::ConsumerGroupHeartbeat, vec![answer.error_code])
        }
    };
    codes
        .into_iter()
        // An earlier request may have succeeded although its answer was lost.
        .filter(|&code| code != ErrorCode::UnknownMemberId.code())
        .try_for_each(|code| connection.check(api, code))
}

fn leave_request(config: &MemberConfig, identity: &Identity) -> LeaveGroupRequest {
    let member = MemberIdentity::default()
        .with_member_id(text(&identity.member_id))
        .with_group_instance_id(instance(config));
    LeaveGroupRequest::default()
        .with_group_id(group(config))
        .with_members(vec![member])
}

/// The offset to commit for a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OffsetToCommit {
    /// The next offset to read.
    pub offset: i64,
    /// Epoch of the leader that wrote the records before it; -1 when unknown.
    pub leader_epoch: i32,
    /// The topic that the offset belongs to, if it has an id.
    pub topic_id: Option<Uuid>,
    /// The application's metadata, if it has any.
    pub metadata: Option<String>,
}

impl OffsetToCommit {
    /// The metadata to store: the application's, or else the topic's id.
    pub(crate) fn stored_metadata(&self) -> Option<StrBytes> {
        let ours = || topic_id::commit_metadata(self.topic_id);
        let metadata = self.metadata.clone().unwrap_or_else(ours);
        Some(StrBytes::from_string(metadata))
    }
}

/// OffsetCommit. Offsets are stored under the topic's name.
pub(crate) fn commit_request(
    group_id: &str,
    instance_id: Option<&str>,
    identity: &Identity,
    offsets: &BTreeMap<TopicPartition, OffsetToCommit>,
) -> OffsetCommitRequest {
    let topics = by_topic(offsets.iter().map(|(name, wanted)| {
        let partition = OffsetCommitRequestPartition::default()
            .with_partition_index(name.partition)
            .with_committed_offset(wanted.offset)
            .with_committed_leader_epoch(wanted.leader_epoch)
            .with_committed_metadata(wanted.stored_metadata());
        (name, partition)
    }));
    let topics = topics.map(|(name, partitions)| {
        OffsetCommitRequestTopic::default()
            .with_name(name)
            .with_partitions(partitions)
    });
    OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group_id)))
        .with_generation_id_or_member_epoch(identity.generation)
        .with_member_id(text(&identity.member_id))
        .with_group_instance_id(instance_id.map(text))
        .with_topics(topics.collect())
}

/// OffsetFetch for `partitions`; for all that have a commit if they are `None`. With `is_stable`,
/// the coordinator refuses a partition while a transaction with an offset for it is undecided.
pub(crate) fn offset_fetch_request<'a>(
    group_id: &str,
    partitions: Option<impl IntoIterator<Item = &'a TopicPartition>>,
    is_stable: bool,
) -> OffsetFetchRequest {
    let topics = partitions.map(|partitions| {
        let partitions = partitions.into_iter();
        let topics = by_topic(partitions.map(|name| (name, name.partition)));
        let topics = topics.map(|(name, numbers)| {
            OffsetFetchRequestTopic::default()
                .with_name(name)
                .with_partition_indexes(numbers)
        });
        topics.collect()
    });
    OffsetFetchRequest::default()
        .with_group_id(GroupId(text(group_id)))
        .with_topics(topics)
        .with_require_stable(is_stable)
}

fn group(config: &MemberConfig) -> GroupId {
    GroupId(text(&config.group_id))
}

fn instance(config: &MemberConfig) -> Option<StrBytes> {
    config.instance_id.as_deref().map(text)
}
