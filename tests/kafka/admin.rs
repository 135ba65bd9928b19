//! The admin client, and consumers without a group, against a real broker.

use std::collections::BTreeMap;
use std::time::Duration;

use tbd_deadline::Deadline;
use tbd_kafka::admin::{Admin, ConfigResource, TopicSpec, all};
use tbd_kafka::consumer::{Consumer, ConsumerConfig, StartAt};
use tbd_kafka::producer::Record;
use tbd_kafka::{Cluster, ErrorCode, OffsetAndMetadata, ProducerConfig, TopicPartition};

use crate::client::{cluster, soon, start, topic};
use crate::features::group_protocols;
use crate::support::{eventually, unique};

/// Writes ten records to partition 0, one each millisecond from 1000 on.
fn write_ten(cluster: &Cluster, topic: &str) {
    let producer = start(cluster, ProducerConfig::default());
    let records = (0..10).map(|number| {
        let mut record = Record::new(topic, None, Some(format!("v{number}").into()));
        (record.partition, record.timestamp_ms) = (Some(0), Some(1000 + number));
        record
    });
    for outcome in producer.publish(records.collect(), soon()) {
        outcome.unwrap();
    }
    producer.close(soon()).unwrap();
}

/// The offset of the first record that a consumer without a membership gets.
fn first_offset(cluster: &Cluster, group: &str, at: &TopicPartition, start: StartAt) -> i64 {
    let mut config = ConsumerConfig::without_group();
    config.group_id = group.to_owned();
    let start = [(at.clone(), start)];
    let mut consumer =
        Consumer::start_assigned(cluster.clone(), config, start, Box::new(())).unwrap();
    let records = consumer.poll(soon()).unwrap();
    consumer.close(soon()).unwrap();
    records[0].offset
}

#[test]
fn topics_are_created_configured_grown_and_deleted_each_with_its_own_result() {
    let admin = Admin::new(cluster());
    let name = unique("admin");
    let mut spec = TopicSpec::new(name.clone(), 1, 1);
    spec.configs.insert("retention.ms".into(), "1000000".into());
    let bad = TopicSpec::new("no spaces allowed", 1, 1);
    let created = admin.create_topics(&[spec, bad], soon()).unwrap();
    assert!(created[&name].is_ok(), "{created:?}");
    assert!(created["no spaces allowed"].is_err(), "{created:?}");

    let resource = ConfigResource::Topic(name.clone());
    let retention = || {
        let mut configs = admin.describe_configs(&resource, soon()).unwrap();
        configs.remove("retention.ms").unwrap()
    };
    assert_eq!(retention().value.as_deref(), Some("1000000"));
    let changes = BTreeMap::from([("retention.ms".to_owned(), None)]);
    admin.alter_configs(&resource, &changes, soon()).unwrap();
    eventually(Duration::from_secs(20), "the default again", || {
        retention().is_default.then_some(())
    });

    admin.create_partitions(&name, 3, soon()).unwrap();
    eventually(Duration::from_secs(20), "three partitions", || {
        let described = admin.describe_topics(&[&name], soon()).unwrap();
        let topic = described[&name].as_ref().ok()?;
        let is_led = topic.partitions.iter().all(|it| it.leader.is_some());
        (topic.partitions.len() == 3 && is_led && topic.id.is_some()).then_some(())
    });
    let cluster = admin.describe_cluster(soon()).unwrap();
    assert!(!cluster.brokers.is_empty() && cluster.id.is_some());
    admin.delete_topics(&[&name], soon()).and_then(all).unwrap();
}

#[test]
fn offsets_are_found_by_time_cut_off_and_committed_for_a_group_without_members() {
    let cluster = cluster();
    let admin = Admin::new(cluster.clone());
    let (name, group) = (topic(&cluster, 1), unique("group"));
    let partition = TopicPartition::new(name.as_str(), 0);
    write_ten(&cluster, &name);

    let found_at = |time| {
        let times = BTreeMap::from([(partition.clone(), time)]);
        let found = admin.offsets_for_times(&times, soon()).and_then(all);
        found.unwrap()[&partition].map(|at| at.offset)
    };
    assert_eq!(found_at(1005), Some(5));
    assert_eq!(found_at(9999), None);
    let start = StartAt::Timestamp(1007);
    assert_eq!(first_offset(&cluster, "", &partition, start), 7);

    let unknown = TopicPartition::new(name.as_str(), 7);
    let cut = BTreeMap::from([(partition.clone(), 4), (unknown.clone(), 4)]);
    let brief = Deadline::after(Duration::from_secs(5));
    let mut left = admin.delete_records(&cut, brief).unwrap();
    let refused = left.remove(&unknown).unwrap().unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::UnknownTopicOrPartition));
    assert_eq!(left.remove(&partition).unwrap().unwrap(), 4);
    assert_eq!(admin.start_offsets(&name, soon()).unwrap(), [4]);

    let offsets = BTreeMap::from([(partition.clone(), OffsetAndMetadata::new(6, "by hand"))]);
    admin
        .alter_group_offsets(&group, &offsets, soon())
        .and_then(all)
        .unwrap();
    assert_eq!(
        first_offset(&cluster, &group, &partition, StartAt::Committed),
        6
    );
    let committed = || {
        let committed = admin.committed_offsets(&group, soon());
        committed.and_then(all).unwrap()
    };
    assert_eq!(committed(), offsets);
    let groups = admin.list_groups(soon()).and_then(all).unwrap();
    let mut groups = groups.into_values().flatten();
    let listed = groups.find(|it| it.group_id == group).unwrap();
    assert_eq!(listed.group_type, "classic");
    admin
        .delete_group_offsets(&group, &[partition], soon())
        .and_then(all)
        .unwrap();
    assert!(committed().is_empty());
    admin
        .delete_groups(&[&group], soon())
        .and_then(all)
        .unwrap();
}

#[test]
fn a_group_of_either_protocol_is_described_with_its_members() {
    let cluster = cluster();
    let admin = Admin::new(cluster.clone());
    let name = topic(&cluster, 2);
    for protocol in group_protocols() {
        let group = unique("group");
        let mut config = ConsumerConfig::new(group.clone(), [name.clone()]);
        config.group_protocol = protocol;
        let mut consumer = Consumer::start(cluster.clone(), config, Box::new(())).unwrap();
        let joined = Deadline::after(Duration::from_secs(30));
        while consumer.assignment().len() < 2 {
            // A coordinator that is just being made is a transient error.
            let idled = consumer.idle(Deadline::after(Duration::from_millis(100)));
            assert!(!joined.is_past(), "{idled:?}");
        }
        let described = admin
            .describe_groups(&[&group], soon())
            .and_then(all)
            .unwrap();
        let described = &described[&group];
        assert_eq!(described.protocol, protocol);
        assert_eq!(described.members.len(), 1);
        assert_eq!(described.members[0].partitions, consumer.assignment());
        let refused = admin.delete_groups(&[&group], soon()).unwrap();
        assert!(refused[&group].is_err(), "it has a member");
        consumer.close(soon()).unwrap();
    }
}
