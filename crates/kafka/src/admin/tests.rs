//! Tests of the admin client against brokers of which one is the controller.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
use kafka_protocol::messages::metadata_response::MetadataResponseBroker;
use kafka_protocol::messages::{BrokerId, CreatePartitionsResponse, CreateTopicsResponse};

use super::*;
use crate::fake_broker::{FakeBroker, Incoming, Reply};
use crate::{ApiKey, ClientConfig, ErrorCode};

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
    let address: std::net::SocketAddr = controller.address().parse().unwrap();
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
fn partitions_that_an_unanswered_request_created_count_as_created() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let broker = FakeBroker::start(move |incoming, own| match incoming.api {
        ApiKey::ApiVersions => incoming.answer(&incoming.versions()),
        ApiKey::Metadata => incoming.answer(&incoming.metadata(own, 2)),
        _ => {
            let code = match count.fetch_add(1, Ordering::SeqCst) {
                0 => ErrorCode::RequestTimedOut,
                _ => ErrorCode::InvalidPartitions,
            };
            let result = CreatePartitionsTopicResult::default()
                .with_name(wire::topic_name("t"))
                .with_error_code(code.code());
            incoming.answer(&CreatePartitionsResponse::default().with_results(vec![result]))
        }
    });
    let admin = Admin::new(Cluster::new(ClientConfig {
        brokers: vec![broker.address()],
        ..ClientConfig::default()
    }));
    let deadline = Deadline::after(Duration::from_secs(10));
    admin.create_partitions("t", 2, deadline).unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}
