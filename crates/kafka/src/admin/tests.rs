//! Tests of the admin client against brokers of which one is the controller.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::describe_groups_response::DescribedGroup;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::metadata_response::MetadataResponseBroker;
use kafka_protocol::messages::{
    BrokerId, ConsumerGroupDescribeResponse, CreatePartitionsResponse, CreateTopicsResponse,
    DeleteRecordsRequest, DeleteRecordsResponse, DescribeGroupsRequest, DescribeGroupsResponse,
    FindCoordinatorRequest, FindCoordinatorResponse, ListGroupsResponse, ListOffsetsRequest,
    ListOffsetsResponse, MetadataResponse,
};

use super::offsets::EARLIEST;
use super::*;
use crate::fake_broker::{FakeBroker, Incoming, Reply};
use crate::{ApiKey, ClientConfig, ErrorCode, TopicPartition};

fn created(incoming: &Incoming, codes: &[(&str, i16)]) -> Reply {
    let topics = codes.iter().map(|(name, code)| {
        CreatableTopicResult::default()
            .with_name(wire::topic_name(name))
            .with_error_code(*code)
    });
    incoming.answer(&CreateTopicsResponse::default().with_topics(topics.collect()))
}

#[test]
fn the_controller_is_asked_and_found_again_and_every_topic_has_its_result() {
    let codes = [
        ("new", 0),
        ("old", ErrorCode::TopicAlreadyExists.code()),
        ("no good", ErrorCode::InvalidTopicException.code()),
    ];
    let controller = FakeBroker::start(move |incoming, _| match incoming.api {
        ApiKey::ApiVersions => incoming.answer(&incoming.versions()),
        _ => created(incoming, &codes),
    });
    let address: SocketAddr = controller.address().parse().unwrap();
    let (refusals, count) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let refused = refusals.clone();
    let first = FakeBroker::start(move |incoming, own| match incoming.api {
        ApiKey::ApiVersions => incoming.answer(&incoming.versions()),
        ApiKey::Metadata => {
            let mut metadata = incoming.metadata(own, 1);
            metadata.brokers.push(
                MetadataResponseBroker::default()
                    .with_node_id(BrokerId(2))
                    .with_host(wire::text(&address.ip().to_string()))
                    .with_port(i32::from(address.port())),
            );
            // The controller moves after the first answer.
            let node = 1 + i32::from(count.fetch_add(1, Ordering::SeqCst) > 0);
            incoming.answer(&metadata.with_controller_id(BrokerId(node)))
        }
        _ => {
            refused.fetch_add(1, Ordering::SeqCst);
            created(
                incoming,
                &codes.map(|(name, _)| (name, ErrorCode::NotController.code())),
            )
        }
    });
    let admin = Admin::new(Cluster::new(ClientConfig {
        brokers: vec![first.address()],
        ..ClientConfig::default()
    }));
    let specs = codes.map(|(name, _)| TopicSpec::new(name, 1, 1));
    let results = admin
        .create_topics(&specs, Deadline::after(Duration::from_secs(10)))
        .unwrap();
    assert_eq!(refusals.load(Ordering::SeqCst), 1);
    assert!(results["new"].is_ok() && results["old"].is_ok());
    let error = all(results).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("for topic no good: InvalidTopic"),
        "{error}"
    );
}

#[test]
fn partitions_whose_first_answer_was_lost_are_created_and_others_were_there_before() {
    let partitions = AtomicI32::new(1);
    let broker = FakeBroker::start(move |incoming, own| match incoming.api {
        ApiKey::ApiVersions => incoming.answer(&incoming.versions()),
        ApiKey::Metadata => {
            incoming.answer(&incoming.metadata(own, partitions.load(Ordering::SeqCst)))
        }
        _ if partitions.swap(3, Ordering::SeqCst) == 1 => Reply::BytesThenClose(Vec::new()),
        _ => {
            let result = CreatePartitionsTopicResult::default()
                .with_name(wire::topic_name("t"))
                .with_error_code(ErrorCode::InvalidPartitions.code());
            let answer = CreatePartitionsResponse::default().with_results(vec![result]);
            incoming.answer(&answer)
        }
    });
    let admin = Admin::new(Cluster::new(ClientConfig {
        brokers: vec![broker.address()],
        ..ClientConfig::default()
    }));
    let create = || admin.create_partitions("t", 3, Deadline::after(Duration::from_secs(10)));
    create().unwrap();
    let error = create().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidPartitions));
}

/// Metadata with a second broker, which leads partition 1; partition 2 has no leader.
fn metadata_of_two(incoming: &Incoming, own: SocketAddr, other: SocketAddr) -> MetadataResponse {
    let mut metadata = incoming.metadata(own, 3);
    metadata.brokers.push(
        MetadataResponseBroker::default()
            .with_node_id(BrokerId(2))
            .with_host(wire::text(&other.ip().to_string()))
            .with_port(i32::from(other.port())),
    );
    for topic in &mut metadata.topics {
        topic.partitions[1].leader_id = BrokerId(2);
        topic.partitions[2].leader_id = BrokerId(-1);
    }
    metadata
}

/// A cluster of two brokers. The second one accepts connections and answers nothing; it coordinates
/// the group "mute".
fn half_mute() -> ([FakeBroker; 2], Admin) {
    let mute = FakeBroker::start(|_, _| Reply::Silence);
    let other: SocketAddr = mute.address().parse().unwrap();
    let first = FakeBroker::start(move |incoming, own| match incoming.api {
        ApiKey::ApiVersions => incoming.answer(&incoming.versions()),
        ApiKey::Metadata => incoming.answer(&metadata_of_two(incoming, own, other)),
        ApiKey::FindCoordinator => {
            let request: FindCoordinatorRequest = incoming.decode();
            let (node, address) = match &*request.key {
                "mute" => (2, other),
                _ => (1, own),
            };
            let answer = FindCoordinatorResponse::default()
                .with_node_id(BrokerId(node))
                .with_host(wire::text(&address.ip().to_string()))
                .with_port(i32::from(address.port()));
            incoming.answer(&answer)
        }
        ApiKey::ConsumerGroupDescribe => incoming.answer(&ConsumerGroupDescribeResponse::default()),
        ApiKey::DescribeGroups => {
            let request: DescribeGroupsRequest = incoming.decode();
            let group = DescribedGroup::default().with_group_id(request.groups[0].clone());
            incoming.answer(&DescribeGroupsResponse::default().with_groups(vec![group]))
        }
        ApiKey::ListGroups => {
            let listed = ListedGroup::default().with_group_id(group_id("heard"));
            incoming.answer(&ListGroupsResponse::default().with_groups(vec![listed]))
        }
        ApiKey::DeleteRecords => {
            let request: DeleteRecordsRequest = incoming.decode();
            let topics = request.topics.into_iter().map(|topic| {
                let partitions = topic.partitions.iter().map(|asked| {
                    DeleteRecordsPartitionResult::default()
                        .with_partition_index(asked.partition_index)
                        .with_low_watermark(asked.offset)
                });
                DeleteRecordsTopicResult::default()
                    .with_name(topic.name)
                    .with_partitions(partitions.collect())
            });
            incoming.answer(&DeleteRecordsResponse::default().with_topics(topics.collect()))
        }
        other => panic!("{other:?}"),
    });
    let admin = Admin::new(Cluster::new(ClientConfig {
        brokers: vec![first.address()],
        ..ClientConfig::default()
    }));
    ([first, mute], admin)
}

fn brief() -> Deadline {
    Deadline::after(Duration::from_secs(2))
}

#[test]
fn a_mute_coordinator_fails_its_own_groups_only() {
    let (_brokers, admin) = half_mute();
    let described = admin.describe_groups(&["mute", "heard"], brief()).unwrap();
    assert!(described["heard"].is_ok(), "{described:?}");
    let error = described["mute"].as_ref().unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    let listed = admin.list_groups(brief()).unwrap();
    assert_eq!(listed[&1].as_ref().unwrap()[0].group_id, "heard");
    assert!(listed[&2].is_err(), "{listed:?}");
}

#[test]
fn partitions_that_are_mute_leaderless_or_unknown_fail_alone_and_by_their_own_cause() {
    let (_brokers, admin) = half_mute();
    let numbers = [0, 1, 2, 9];
    let before = numbers.map(|number| (TopicPartition::new("t", number), 7));
    let mut deleted = admin
        .delete_records(&before.into_iter().collect(), brief())
        .unwrap();
    let mut result = |number| deleted.remove(&TopicPartition::new("t", number)).unwrap();
    assert_eq!(result(0).unwrap(), 7);
    let error = result(1).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    let code = |result: Result<i64, Error>| result.unwrap_err().code();
    assert_eq!(code(result(2)), Some(ErrorCode::LeaderNotAvailable));
    assert_eq!(code(result(9)), Some(ErrorCode::UnknownTopicOrPartition));
}

/// The first answer is that of a broker that lags behind.
#[test]
fn the_ends_and_the_lag_of_a_topic_created_again_with_fewer_partitions_are_those_of_the_new_one() {
    let lags_behind = Arc::new(AtomicBool::new(true));
    let is_first = lags_behind.clone();
    let broker = FakeBroker::start(move |incoming, own| match incoming.api {
        ApiKey::ApiVersions => incoming.answer(&incoming.versions()),
        ApiKey::Metadata => {
            let is_late = is_first.swap(false, Ordering::SeqCst);
            incoming.answer(&incoming.metadata(own, if is_late { 2 } else { 1 }))
        }
        ApiKey::FindCoordinator => {
            let answer = FindCoordinatorResponse::default()
                .with_node_id(BrokerId(1))
                .with_host(wire::text(&own.ip().to_string()))
                .with_port(i32::from(own.port()));
            incoming.answer(&answer)
        }
        ApiKey::OffsetFetch => incoming.committed(3),
        ApiKey::ListOffsets => {
            let request: ListOffsetsRequest = incoming.decode();
            let topics = request.topics.into_iter().map(|topic| {
                let partitions = topic.partitions.iter().map(|asked| {
                    let code = match asked.partition_index {
                        0 => 0,
                        _ => ErrorCode::UnknownTopicOrPartition.code(),
                    };
                    ListOffsetsPartitionResponse::default()
                        .with_partition_index(asked.partition_index)
                        .with_error_code(code)
                        .with_offset(if asked.timestamp == EARLIEST { 0 } else { 5 })
                });
                ListOffsetsTopicResponse::default()
                    .with_name(topic.name)
                    .with_partitions(partitions.collect())
            });
            incoming.answer(&ListOffsetsResponse::default().with_topics(topics.collect()))
        }
        other => panic!("{other:?}"),
    });
    let admin = Admin::new(Cluster::new(ClientConfig {
        brokers: vec![broker.address()],
        ..ClientConfig::default()
    }));
    assert_eq!(admin.end_offsets("again", brief()).unwrap(), [5]);
    lags_behind.store(true, Ordering::SeqCst);
    let lags = all(admin.lag("g", "again", brief()).unwrap()).unwrap();
    assert_eq!(lags, [(TopicPartition::new("again", 0), 2)].into());
}
