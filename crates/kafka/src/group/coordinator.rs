//! Requests to the group coordinator, and the look-up of its address.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    ApiKey, ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, FindCoordinatorRequest,
    GroupId, HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, OffsetCommitRequest,
    OffsetFetchRequest, SyncGroupRequest, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::TopicPartition;
use super::assignor::{Assignment, Assignor};
use super::consumer_machine::{self, Answer, Target};
use super::machine::{Coordinator, Failure, Identity};
use super::protocol::{Subscription, encode_assignment};
use crate::consumer::ConsumerConfig;
use crate::{Cluster, Error, topic_id};
use tbd_deadline::Deadline;

const PROTOCOL_TYPE: &str = "consumer";

/// Asks any broker for the group's coordinator. Waits until `deadline` at most.
///
/// # Errors
/// When no broker answered, or the one that did knows no coordinator yet.
pub fn find(cluster: &Cluster, group_id: &str, deadline: Deadline) -> Result<Coordinator, Error> {
    let request = FindCoordinatorRequest::default().with_key(text(group_id));
    let answer = cluster.connect_any(deadline)?.call(&request, deadline)?;
    Error::check(ApiKey::FindCoordinator, answer.error_code)?;
    let (host, port) = (&answer.host, answer.port);
    let address = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    Ok(Coordinator {
        node_id: answer.node_id.0,
        address,
    })
}

/// What an error means for the membership.
pub fn failure(error: &Error) -> Failure {
    match error {
        Error::Broker { code, .. } => Failure::Code(*code),
        // A retry would fail the same way, for ever.
        Error::UnsupportedVersion { .. } => Failure::Code(ResponseError::UnsupportedVersion),
        Error::Encode { .. } => Failure::Code(ResponseError::InvalidRequest),
        _ => Failure::Transport,
    }
}

/// JoinGroup, with the partitions still owned.
pub fn join_request(
    config: &ConsumerConfig,
    identity: &Identity,
    owned: &[TopicPartition],
) -> JoinGroupRequest {
    let generation = Some(identity.generation).filter(|&generation| generation >= 0);
    let protocols = config.assignors.iter().map(|assignor| {
        let subscription = Subscription {
            topics: config
                .topics
                .iter()
                .map(|topic| topic.as_str().into())
                .collect(),
            user_data: assignor.user_data(generation),
            owned: owned.to_vec(),
            generation,
            rack: None,
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
pub fn sync_request(
    config: &ConsumerConfig,
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
pub fn heartbeat_request(config: &ConsumerConfig, identity: &Identity) -> HeartbeatRequest {
    HeartbeatRequest::default()
        .with_group_id(group(config))
        .with_generation_id(identity.generation)
        .with_member_id(text(&identity.member_id))
        .with_group_instance_id(instance(config))
}

/// ConsumerGroupHeartbeat, the consumer protocol's heartbeat.
pub fn consumer_heartbeat_request(
    config: &ConsumerConfig,
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
        let topics = config.topics.iter().map(|topic| topic_name(topic));
        request.subscribed_topic_names = Some(topics.collect());
        // The group waits this long for a busy member to revoke partitions.
        request.rebalance_timeout_ms = millis(config.max_poll_interval);
    }
    request
}

/// Converts a heartbeat's answer, whose error code is already checked.
pub fn consumer_heartbeat_answer(answer: ConsumerGroupHeartbeatResponse) -> Answer {
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

/// LeaveGroup.
pub fn leave_request(config: &ConsumerConfig, identity: &Identity) -> LeaveGroupRequest {
    let member = MemberIdentity::default()
        .with_member_id(text(&identity.member_id))
        .with_group_instance_id(instance(config));
    LeaveGroupRequest::default()
        .with_group_id(group(config))
        .with_members(vec![member])
}

/// The offset to commit for a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetToCommit {
    /// The next offset to read.
    pub offset: i64,
    /// Epoch of the leader that wrote the records before it; -1 when unknown.
    pub leader_epoch: i32,
    /// The topic that the offset belongs to, if it has an id.
    pub topic_id: Option<Uuid>,
}

/// OffsetCommit. Offsets are stored under the topic's name; the metadata contains the topic's id.
pub fn commit_request(
    config: &ConsumerConfig,
    identity: &Identity,
    offsets: &BTreeMap<TopicPartition, OffsetToCommit>,
) -> OffsetCommitRequest {
    let mut topics: BTreeMap<&str, Vec<OffsetCommitRequestPartition>> = BTreeMap::new();
    for (partition, wanted) in offsets {
        let metadata = topic_id::commit_metadata(wanted.topic_id);
        topics.entry(&partition.topic).or_default().push(
            OffsetCommitRequestPartition::default()
                .with_partition_index(partition.partition)
                .with_committed_offset(wanted.offset)
                .with_committed_leader_epoch(wanted.leader_epoch)
                .with_committed_metadata(Some(StrBytes::from_string(metadata))),
        );
    }
    let topics = topics.into_iter().map(|(topic, partitions)| {
        OffsetCommitRequestTopic::default()
            .with_name(topic_name(topic))
            .with_partitions(partitions)
    });
    OffsetCommitRequest::default()
        .with_group_id(group(config))
        .with_generation_id_or_member_epoch(identity.generation)
        .with_member_id(text(&identity.member_id))
        .with_group_instance_id(instance(config))
        .with_topics(topics.collect())
}

/// OffsetFetch for `partitions`.
pub fn offset_fetch_request(
    config: &ConsumerConfig,
    partitions: &[TopicPartition],
) -> OffsetFetchRequest {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for partition in partitions {
        topics
            .entry(&partition.topic)
            .or_default()
            .push(partition.partition);
    }
    let topics = topics.into_iter().map(|(topic, numbers)| {
        OffsetFetchRequestTopic::default()
            .with_name(topic_name(topic))
            .with_partition_indexes(numbers)
    });
    OffsetFetchRequest::default()
        .with_group_id(group(config))
        .with_topics(Some(topics.collect()))
}

/// A topic's name in the codec's type.
pub fn topic_name(topic: &str) -> TopicName {
    TopicName(text(topic))
}

fn group(config: &ConsumerConfig) -> GroupId {
    GroupId(text(&config.group_id))
}

fn instance(config: &ConsumerConfig) -> Option<StrBytes> {
    config.group_instance_id.as_deref().map(text)
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
