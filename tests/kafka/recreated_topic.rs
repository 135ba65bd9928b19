//! A recreated topic: deleted and created again under its readers, on a real Kafka.

use std::collections::BTreeSet;
use std::time::Duration;

use tbd_deadline::Deadline;
use tbd_kafka::TopicPartition;
use tbd_kafka::admin;
use tbd_kafka::consumer::{CommitError, Consumer, ConsumerConfig, GroupProtocol};
use tbd_kafka::{Admin, Cluster, Error, ProducerConfig, Reader};

use crate::client::{cluster, cluster_at, record, replicated_topic, soon, start, topic};
use crate::consumer::{Journal, poll_until, values};
use crate::features::group_protocols;
use crate::support::recreate::recreate_topic;
use crate::support::{OwnServer, eventually, kafka, unique};

/// A topic of one partition, and a group.
struct Stage {
    cluster: Cluster,
    topic: String,
    group: String,
}

impl Stage {
    fn new() -> Self {
        let cluster = cluster();
        Self {
            topic: topic(&cluster, 1),
            group: unique("group"),
            cluster,
        }
    }

    fn write(&self, values: impl IntoIterator<Item = i32>) {
        let producer = start(&self.cluster, ProducerConfig::default());
        let records = values.into_iter().map(|value| {
            let value = value.to_string();
            record(&self.topic, "key".to_owned(), value)
        });
        let outcomes = producer.publish(records.collect(), soon());
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        producer.close(soon()).unwrap();
    }

    /// Recreates the topic under the same name, with these records.
    fn recreate(&self, values: impl IntoIterator<Item = i32>) {
        recreate_topic(&[kafka()], &self.topic, 1);
        self.write(values);
    }

    fn member(&self, protocol: GroupProtocol) -> (Consumer, Journal) {
        let mut config = ConsumerConfig::new(&self.group, [&self.topic]);
        config.group_protocol = protocol;
        let journal = Journal::default();
        let hooks = Box::new(journal.clone());
        // As in another program, which has cluster metadata of its own.
        let consumer = Consumer::start(cluster(), config, hooks).unwrap();
        (consumer, journal)
    }

    fn admin(&self) -> Admin {
        Admin::new(self.cluster.clone())
    }

    fn lag(&self) -> Vec<i64> {
        let lag = self.admin().lag(&self.group, &self.topic, soon());
        lag.and_then(admin::all).unwrap().into_values().collect()
    }

    fn partition(&self) -> TopicPartition {
        TopicPartition::new(self.topic.as_str(), 0)
    }
}

fn all(range: std::ops::Range<i32>) -> Vec<String> {
    range.map(|value| value.to_string()).collect()
}

#[test]
fn a_new_topic_is_read_whole_also_where_it_is_longer_than_the_old_position() {
    for protocol in group_protocols() {
        let stage = Stage::new();
        stage.write(0..5);
        let (mut consumer, journal) = stage.member(protocol);
        poll_until(&mut consumer, |_, records| records.len() == 5);
        consumer.commit_polled(soon()).unwrap();

        stage.recreate(100..120);
        let read = poll_until(&mut consumer, |_, records| records.len() >= 20);
        assert_eq!(values(&read), all(100..120), "{protocol:?}");
        if protocol == GroupProtocol::Classic {
            let names: Vec<&str> = journal.entries().iter().map(|(what, _)| *what).collect();
            assert_eq!(names, ["assigned", "replaced"]);
        }
        consumer.commit_polled(soon()).unwrap();
        assert_eq!(stage.lag(), [0]);
        consumer.close(soon()).unwrap();

        // The group's offsets are those of the new topic now.
        stage.write(120..121);
        let (mut consumer, _) = stage.member(protocol);
        let read = poll_until(&mut consumer, |_, records| !records.is_empty());
        assert_eq!(values(&read), all(120..121), "{protocol:?}");
        consumer.close(soon()).unwrap();
    }
}

#[test]
fn a_commit_made_for_the_old_topic_is_no_commit_of_the_new_one() {
    for protocol in group_protocols() {
        let stage = Stage::new();
        stage.write(0..5);
        let (mut consumer, _) = stage.member(protocol);
        poll_until(&mut consumer, |_, records| records.len() == 5);
        // The batch is in hand while its topic is replaced.
        stage.recreate(100..120);
        consumer.commit_polled(soon()).unwrap();
        assert_eq!(stage.lag(), [20], "nothing of the new topic is committed");
        drop(consumer);

        let (mut consumer, journal) = stage.member(protocol);
        let read = poll_until(&mut consumer, |_, records| records.len() >= 20);
        assert_eq!(values(&read), all(100..120), "{protocol:?}");
        let names: Vec<&str> = journal.entries().iter().map(|(what, _)| *what).collect();
        assert!(names.contains(&"replaced"), "{names:?}");
        let beyond = consumer.commit(&[(stage.partition(), 21)], soon());
        assert!(matches!(beyond, Err(CommitError::Lost)), "{beyond:?}");
        consumer.commit(&[(stage.partition(), 3)], soon()).unwrap();
        assert_eq!(stage.lag(), [17]);
        consumer.close(soon()).unwrap();
    }
}

/// Metadata reaches three brokers at different times: for a moment, a broker may report the old id or
/// serve the old log.
#[test]
fn nothing_written_to_the_new_topic_is_passed_over_on_three_brokers() {
    const PARTITIONS: i32 = 6;
    let nodes = OwnServer::kafka_cluster();
    let addresses = nodes.each_ref().map(OwnServer::address);
    let cluster = cluster_at(addresses.to_vec());
    for protocol in group_protocols() {
        let topic = replicated_topic(&cluster, PARTITIONS, 3);
        let mut config = ConsumerConfig::new(unique("group"), [&topic]);
        config.group_protocol = protocol;
        let mut consumer = Consumer::start(cluster.clone(), config, Box::new(())).unwrap();
        for round in 0..5 {
            if round > 0 {
                recreate_topic(&addresses, &topic, PARTITIONS);
            }
            let written: BTreeSet<String> = (0..100).map(|n| format!("{round}-{n}")).collect();
            let producer = start(&cluster, ProducerConfig::default());
            let records = written
                .iter()
                .map(|value| record(&topic, value.clone(), value.clone()));
            let outcomes = producer.publish(records.collect(), soon());
            assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
            producer.close(soon()).unwrap();
            poll_until(&mut consumer, |_, records| {
                let read: BTreeSet<String> = values(records).into_iter().collect();
                read.is_superset(&written)
            });
            consumer.commit_polled(soon()).unwrap();
        }
        consumer.close(soon()).unwrap();
    }
}

#[test]
fn a_range_of_a_topic_that_is_gone_is_not_read_from_the_new_one() {
    let stage = Stage::new();
    stage.write(0..5);
    let ranges = Reader::ranges(&stage.cluster, &stage.topic, soon()).unwrap();
    let mut reader = Reader::new(
        stage.cluster.clone(),
        stage.topic.as_str(),
        (0..).zip(ranges),
    );
    stage.recreate(100..120);
    let error = eventually(
        Duration::from_secs(30),
        "the reader to fail",
        || match reader.read(Deadline::after(Duration::from_secs(5))) {
            Err(error) if error.is_transient() => None,
            ended => Some(ended.unwrap_err()),
        },
    );
    assert!(matches!(error, Error::TopicReplaced { .. }), "{error}");
}
