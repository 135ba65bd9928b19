//! Topics that are missing, and one that is deleted and created again.

use kafka_protocol::messages::MetadataResponse;
use uuid::Uuid;

use super::*;
use crate::fake_broker::newest;
use crate::producer::partition_for_key;

/// Only the topic "t" exists.
fn without_others(incoming: &Incoming, address: SocketAddr) -> MetadataResponse {
    let mut metadata = incoming.metadata(address, 1);
    for topic in &mut metadata.topics {
        if topic.name.as_ref().is_some_and(|name| name.as_str() != "t") {
            topic.error_code = ErrorCode::UnknownTopicOrPartition.code();
            topic.partitions.clear();
        }
    }
    metadata
}

fn to(topic: &str) -> Record {
    Record::new(topic, Some("key".into()), Some("value".into()))
}

#[test]
fn a_missing_topic_does_not_keep_the_others_waiting_and_is_named() {
    let broker = FakeBroker::start(|incoming, address| match incoming.api {
        ApiKey::Metadata => incoming.answer(&without_others(incoming, address)),
        ApiKey::Produce => incoming.answer(&written(incoming, 0, 0)),
        _ => peaceful(incoming, address),
    });
    let config = ProducerConfig {
        topics: vec!["t".to_owned(), "configured".to_owned()],
        ..ProducerConfig::default()
    };
    let producer = start_at(vec![broker.address()], config, Arc::new(()));
    for _ in 0..2 {
        let missing = producer.publish(vec![to("missing")], in_ms(1000)).remove(0);
        let error = missing.unwrap_err();
        assert_eq!(error.certainty, Certainty::NotSent);
        assert!(error.to_string().contains("topic missing"), "{error}");
        publish(&producer, "v", in_ms(10_000)).unwrap();
    }
    let error = producer.warm_up(in_ms(100)).unwrap_err();
    assert!(error.to_string().contains("topic configured"), "{error}");
}

#[test]
fn a_time_out_does_not_blame_an_unrelated_topic() {
    let broker = FakeBroker::start(|incoming, address| match incoming.api {
        ApiKey::Metadata => incoming.answer(&without_others(incoming, address)),
        ApiKey::Produce => Reply::Silence,
        _ => peaceful(incoming, address),
    });
    let producer = start(&broker);
    producer
        .publish(vec![to("missing")], in_ms(100))
        .remove(0)
        .unwrap_err();
    let error = publish(&producer, "v", in_ms(300)).unwrap_err();
    assert!(!error.to_string().contains("missing"), "{error}");
}

#[test]
fn a_topic_created_again_is_recognized_by_the_refusal_of_its_old_id() {
    // The topic's id and its number of partitions.
    let topic: Arc<Mutex<(u128, i32)>> = Arc::new(Mutex::new((1, 16)));
    let current = Arc::clone(&topic);
    let broker = FakeBroker::start(move |incoming, address| {
        let (id, partitions) = *lock(&current);
        let id = Uuid::from_u128(id);
        match incoming.api {
            ApiKey::Metadata => {
                let mut metadata = incoming.metadata(address, partitions);
                for topic in &mut metadata.topics {
                    topic.topic_id = id;
                }
                incoming.answer(&metadata)
            }
            ApiKey::Produce => {
                assert_eq!(incoming.version, newest::<ProduceRequest>());
                let request: ProduceRequest = incoming.decode();
                let code = match request.topic_data[0].topic_id == id {
                    true => 0,
                    false => ErrorCode::UnknownTopicId.code(),
                };
                incoming.answer(&written(incoming, code, 0))
            }
            _ => peaceful(incoming, address),
        }
    });
    let producer = start(&broker);
    for (id, partitions) in [(1, 16), (2, 4), (3, 32), (4, 32)] {
        *lock(&topic) = (id, partitions);
        let metadata = publish(&producer, "v", in_ms(5000)).unwrap();
        assert_eq!(metadata.partition, partition_for_key(b"key", partitions));
    }
}
