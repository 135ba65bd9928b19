//! Helpers of the Kafka tests: set-up and checks of this client.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{BrokerId, FetchRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::RecordBatchDecoder;
use tbd_deadline::Deadline;
use tbd_kafka::admin::TopicSpec;
use tbd_kafka::consumer::{Isolation, StartAt};
use tbd_kafka::producer::partition_for_key;
use tbd_kafka::producer::{Certainty, Outcome, Record};
use tbd_kafka::{
    Admin, ClientConfig, Cluster, Consumer, ConsumerConfig, ConsumerRecord, ErrorCode, Producer,
    ProducerConfig, TopicPartition,
};

use crate::consumer::poll_until;
use crate::support;

/// How many records [`publish_steadily`] wants acknowledged before it believes that publishing works again.
const RECORDS_AFTER_STOP: usize = 100;

/// Long enough for one operation.
pub fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

/// The shared Kafka.
pub fn cluster() -> Cluster {
    cluster_at(vec![support::kafka()])
}

/// The Kafka at these addresses.
pub fn cluster_at(brokers: Vec<String>) -> Cluster {
    let mut config = ClientConfig::new(brokers);
    config.client_id = "test".to_owned();
    Cluster::new(config)
}

/// A new topic with a name of its own.
pub fn topic(cluster: &Cluster, partitions: i32) -> String {
    replicated_topic(cluster, partitions, 1)
}

/// As [`topic`], with this many replicas.
pub fn replicated_topic(cluster: &Cluster, partitions: i32, replication: i16) -> String {
    let name = support::unique("topic");
    let spec = TopicSpec::new(name.clone(), partitions, replication);
    Admin::new(cluster.clone())
        .create_topics(&[spec], soon())
        .and_then(tbd_kafka::admin::all)
        .unwrap();
    name
}

/// A producer without hooks.
pub fn start(cluster: &Cluster, config: ProducerConfig) -> Producer {
    Producer::start(cluster.clone(), config, Arc::new(())).unwrap()
}

/// A record with a key.
pub fn record(topic: &str, key: String, value: String) -> Record {
    Record::new(topic, Some(key.into()), Some(value.into()))
}

/// A record in a topic.
pub type Read = kafka_protocol::records::Record;

/// Everything in a partition, in order.
fn read_partition(cluster: &Cluster, topic: &str, partition: i32, end: i64) -> Vec<Read> {
    cluster.refresh(&[topic], soon()).unwrap();
    let (node, _) = cluster.leader(topic, partition).unwrap();
    let mut connection = cluster.connect(node, soon()).unwrap();
    let mut records: Vec<Read> = Vec::new();
    let mut position = 0;
    let deadline = soon();
    while position < end {
        let wanted = FetchPartition::default()
            .with_partition(partition)
            .with_current_leader_epoch(-1)
            .with_fetch_offset(position)
            .with_partition_max_bytes(10_000_000);
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_session_epoch(-1)
            .with_max_wait_ms(500)
            .with_min_bytes(1)
            .with_max_bytes(50_000_000)
            .with_topics(vec![
                FetchTopic::default()
                    .with_topic(TopicName(StrBytes::from_string(topic.to_owned())))
                    .with_topic_id(cluster.topic_id(topic).unwrap())
                    .with_partitions(vec![wanted]),
            ]);
        let response = connection.call(&request, deadline).unwrap();
        let answer = &response.responses[0].partitions[0];
        if answer.error_code == ErrorCode::UnknownTopicId.code() {
            // The broker has not heard yet that the topic was created again, or the client has not.
            cluster.refresh(&[topic], deadline).unwrap();
            continue;
        }
        assert_eq!(answer.error_code, 0);
        let mut bytes: Bytes = answer.records.clone().unwrap();
        while let Some(mut batch) = whole_batch(&mut bytes) {
            let batch = RecordBatchDecoder::decode(&mut batch).unwrap();
            records.extend(
                batch
                    .records
                    .into_iter()
                    .filter(|one| one.offset >= position),
            );
        }
        position = records.last().unwrap().offset + 1;
    }
    records
}

/// The next batch of an answer. The last one may be cut short; the next answer has it whole.
fn whole_batch(bytes: &mut Bytes) -> Option<Bytes> {
    // An offset, a length, and as many bytes.
    let length = bytes.get(8..12)?.try_into().unwrap();
    let end = 12 + usize::try_from(i32::from_be_bytes(length)).unwrap();
    (end <= bytes.len()).then(|| bytes.split_to(end))
}

/// Everything in a topic, by partition, in order.
pub fn read_topic(cluster: &Cluster, topic: &str) -> BTreeMap<i32, Vec<Read>> {
    let ends = Admin::new(cluster.clone())
        .end_offsets(topic, soon())
        .unwrap();
    ends.into_iter()
        .zip(0..)
        .map(|(end, partition)| (partition, read_partition(cluster, topic, partition, end)))
        .collect()
}

/// What a consumer reads of a whole topic, in order within each partition.
pub fn consume(cluster: &Cluster, topic: &str, isolation: Isolation) -> Vec<ConsumerRecord> {
    let ends = Admin::new(cluster.clone())
        .end_offsets(topic, soon())
        .unwrap();
    let partitions: Vec<TopicPartition> = (0..)
        .zip(&ends)
        .map(|(number, _)| TopicPartition::new(topic, number))
        .collect();
    let mut config = ConsumerConfig::without_group();
    config.isolation = isolation;
    let starts = partitions.iter().map(|it| (it.clone(), StartAt::Beginning));
    let mut consumer =
        Consumer::start_assigned(cluster.clone(), config, starts, Box::new(())).unwrap();
    let records = poll_until(&mut consumer, |consumer, _| {
        let mut read = partitions.iter().zip(&ends);
        read.all(|(partition, end)| consumer.position(partition) >= Some(*end))
    });
    consumer.close(soon()).unwrap();
    records
}

/// Empty for none.
pub fn text(bytes: &Option<Bytes>) -> String {
    String::from_utf8(bytes.as_deref().unwrap_or_default().to_vec()).unwrap()
}

/// Publishes one numbered record after the other until stopped, and then until [`RECORDS_AFTER_STOP`] more
/// are acknowledged, which shows that publishing works. Returns the outcome of each.
///
/// # Panics
///
/// If those take longer than 30 s.
pub fn publish_steadily(
    producer: &Producer,
    topic: &str,
    thread: usize,
    patience: Duration,
    stop: &AtomicBool,
) -> Vec<(String, Outcome)> {
    let mut outcomes = Vec::new();
    let mut after_stop: Option<Deadline> = None;
    let mut acknowledged_after_stop = 0;
    while acknowledged_after_stop < RECORDS_AFTER_STOP {
        if after_stop.is_none() && stop.load(Ordering::Relaxed) {
            after_stop = Some(Deadline::after(Duration::from_secs(30)));
        }
        let value = format!("{thread}:{}", outcomes.len());
        let record = record(topic, format!("key-{thread}"), value.clone());
        let outcome = producer
            .publish(vec![record], Deadline::after(patience))
            .remove(0);
        if let Some(deadline) = after_stop {
            assert!(!deadline.is_past(), "{value}: {outcome:?}");
            acknowledged_after_stop += usize::from(outcome.is_ok());
        }
        outcomes.push((value, outcome));
    }
    outcomes
}

/// Checks a topic against the outcomes of its producers. Acknowledged records are there once, those
/// not sent are absent, those possibly sent are there at most once. Each key's records are in order.
pub fn check_promises(cluster: &Cluster, topic: &str, outcomes: &[(String, Outcome)]) {
    let mut places: HashMap<String, i64> = HashMap::new();
    let mut last_by_key: HashMap<String, usize> = HashMap::new();
    for one in read_topic(cluster, topic).values().flatten() {
        let value = text(&one.value);
        let number: usize = value.split(':').nth(1).unwrap().parse().unwrap();
        let last = last_by_key.insert(text(&one.key), number);
        assert!(
            last.is_none_or(|last| last < number),
            "{value} out of order"
        );
        let before = places.insert(value.clone(), one.offset);
        assert!(before.is_none(), "{value} is there twice");
    }
    for (value, outcome) in outcomes {
        match outcome {
            Ok(metadata) => {
                let offset = places.get(value).copied();
                assert!(offset.is_some(), "{value} was acknowledged and is lost");
                assert!(metadata.offset.is_none() || metadata.offset == offset);
            }
            Err(error) if error.certainty == Certainty::NotSent => {
                assert!(!places.contains_key(value), "{value}: {error}, but there");
            }
            Err(_) => {}
        }
    }
}

/// Deletes a topic and creates it again with this many partitions; returns when a broker knows it.
fn create_again(cluster: &Cluster, topic: &str, partitions: i32, replication: i16) {
    let admin = Admin::new(cluster.clone());
    let spec = TopicSpec::new(topic.to_owned(), partitions, replication);
    let id = || {
        cluster.refresh(&[topic], soon()).unwrap();
        cluster.topic_id(topic)
    };
    let before = id();
    admin
        .delete_topics(&[topic], soon())
        .and_then(tbd_kafka::admin::all)
        .unwrap();
    admin
        .create_topics(&[spec], soon())
        .and_then(tbd_kafka::admin::all)
        .unwrap();
    support::eventually(Duration::from_secs(20), "the new topic", || {
        (id() != before).then_some(())
    });
}

/// The last number of each key in a topic. Checks that every record is in its key's partition and in
/// the order of its number.
fn last_by_key(cluster: &Cluster, topic: &str, partitions: i32) -> HashMap<String, usize> {
    let mut last_by_key: HashMap<String, usize> = HashMap::new();
    for (partition, records) in read_topic(cluster, topic) {
        for one in records {
            let (key, value) = (text(&one.key), text(&one.value));
            let number = value.parse().unwrap();
            assert_eq!(partition_for_key(key.as_bytes(), partitions), partition);
            let last = last_by_key.insert(key, number);
            assert!(
                last.is_none_or(|last| last < number),
                "{value} after {last:?}"
            );
        }
    }
    last_by_key
}

/// Publishes while a topic is recreated with fewer, with more, and with as many partitions. No record
/// fails, and each key keeps its order in each new topic.
pub fn check_publishing_to_a_topic_created_again(cluster: &Cluster, replication: i16) {
    const THREADS: usize = 8;
    let topic = replicated_topic(cluster, 16, replication);
    let producer = start(
        &cluster_at(cluster.config().brokers.clone()),
        ProducerConfig::default(),
    );
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (producer, topic, stop) = (&producer, &topic, &stop);
            scope.spawn(move || {
                let end = Deadline::after(Duration::from_secs(90));
                let goes_on = |_: &usize| !stop.load(Ordering::Relaxed) && !end.is_past();
                for number in (1..).take_while(goes_on) {
                    // A few at a time, so that some wait in the queue.
                    let records = (0..5).map(|step| {
                        record(topic, format!("key-{thread}"), format!("{number}{step}"))
                    });
                    for outcome in producer.publish(records.collect(), soon()) {
                        outcome.unwrap();
                    }
                }
            });
        }
        for partitions in [4, 32, 32] {
            create_again(cluster, &topic, partitions, replication);
            let limit = Duration::from_secs(15);
            support::eventually(limit, "a record of every key", || {
                let last_by_key = last_by_key(cluster, &topic, partitions);
                (last_by_key.len() == THREADS).then_some(())
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    producer.close(soon()).unwrap();
    last_by_key(cluster, &topic, 32);
}
