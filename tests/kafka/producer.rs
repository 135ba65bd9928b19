//! The producer and the admin client against a real Kafka.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tbd_deadline::Deadline;
use tbd_kafka::admin::TopicSpec;
use tbd_kafka::producer::partition_for_key;
use tbd_kafka::producer::{Certainty, Compression, Outcome, Pending, Record, RecordMetadata};
use tbd_kafka::{Admin, ProducerConfig};

use crate::client::{
    check_promises, check_publishing_to_a_topic_created_again, cluster, cluster_at,
    publish_steadily, read_topic, record, soon, start, text, topic,
};
use crate::support::proxy::Proxy;
use crate::support::{self, OwnServer, SetOnDrop, free_port, kafka_tool};

#[test]
fn topics_are_made_once_listed_and_deleted() {
    let cluster = cluster();
    let admin = Admin::new(cluster.clone());
    let name = topic(&cluster, 3);
    let again = TopicSpec::new(name.clone(), 5, 1);
    admin
        .create_topics(&[again], soon())
        .and_then(tbd_kafka::admin::all)
        .unwrap();
    assert_eq!(admin.partition_count(&name, soon()).unwrap(), 3);
    assert!(admin.list_topics(soon()).unwrap().contains(&name));
    assert_eq!(admin.end_offsets(&name, soon()).unwrap(), [0, 0, 0]);
    let committed = admin.committed_offsets("nobody", soon()).unwrap();
    assert!(committed.is_empty());
    admin
        .delete_topics(&[&name], soon())
        .and_then(tbd_kafka::admin::all)
        .unwrap();
    admin
        .delete_topics(&[&name], soon())
        .and_then(tbd_kafka::admin::all)
        .unwrap();
    // Brokers learn of the topic a moment after the controller has answered.
    let deadline = soon();
    while admin.list_topics(deadline).unwrap().contains(&name) {}
    cluster.ping(soon()).unwrap();
}

#[test]
fn an_impossible_topic_is_refused_for_good() {
    let admin = Admin::new(cluster());
    let spec = TopicSpec::new("no spaces allowed", 1, 1);
    let error = admin
        .create_topics(&[spec], soon())
        .and_then(tbd_kafka::admin::all)
        .unwrap_err();
    assert!(!error.is_transient(), "{error}");
}

#[test]
fn a_record_arrives_as_it_was_handed_over_in_every_compression() {
    let cluster = cluster();
    for compression in [
        Compression::None,
        Compression::Snappy,
        Compression::Gzip,
        Compression::Lz4,
        Compression::Zstd,
    ] {
        let topic = topic(&cluster, 1);
        let mut config = ProducerConfig::default();
        config.compression = compression;
        let producer = start(&cluster, config);
        // Longer than compressed.
        let value = "value".repeat(100);
        let mut sent = record(&topic, "key".to_owned(), value.clone())
            .header("traceparent", "00-abc")
            .header("other", "1");
        sent.headers.push(("none".to_owned(), None));
        sent.timestamp_ms = Some(1_700_000_000_123);
        let tombstone = Record::new(topic.as_str(), Some("key".into()), None);
        let outcomes = producer.publish(vec![sent, tombstone], soon());
        let offsets: Vec<_> = outcomes
            .into_iter()
            .map(|one| one.unwrap().offset)
            .collect();
        assert_eq!(offsets, [Some(0), Some(1)]);
        producer.close(soon()).unwrap();

        let read = &read_topic(&cluster, &topic)[&0];
        assert_eq!(text(&read[0].key), "key");
        assert_eq!(text(&read[0].value), value);
        assert_eq!(read[0].timestamp, 1_700_000_000_123);
        let headers: Vec<_> = read[0]
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_deref()))
            .collect();
        assert_eq!(
            headers,
            [
                ("traceparent", Some(&b"00-abc"[..])),
                ("other", Some(&b"1"[..])),
                ("none", None),
            ]
        );
        assert_eq!(read[1].value, None);
    }
}

#[test]
fn many_threads_publish_every_record_once_and_keep_each_keys_order() {
    const THREADS: usize = 32;
    const RECORDS: usize = 400;
    let cluster = cluster();
    let topic = topic(&cluster, 8);
    let producer = start(&cluster, ProducerConfig::default());
    let acknowledged: Vec<(String, RecordMetadata)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (producer, topic) = (&producer, &topic);
                scope.spawn(move || {
                    // Some threads wait for each record, some enqueue ahead.
                    let ahead = if thread % 2 == 0 { 1 } else { 50 };
                    let mut acknowledged = Vec::new();
                    let numbers: Vec<usize> = (0..RECORDS).collect();
                    for chunk in numbers.chunks(ahead) {
                        let values: Vec<_> =
                            chunk.iter().map(|one| format!("{thread}:{one}")).collect();
                        let records = values
                            .iter()
                            .map(|value| record(topic, format!("key-{thread}"), value.clone()))
                            .collect();
                        for (value, outcome) in values.iter().zip(producer.publish(records, soon()))
                        {
                            acknowledged.push((value.clone(), outcome.unwrap()));
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    producer.close(soon()).unwrap();
    assert_eq!(acknowledged.len(), THREADS * RECORDS);

    let read = read_topic(&cluster, &topic);
    let mut places = HashMap::new();
    let mut last_by_key: HashMap<String, usize> = HashMap::new();
    for (partition, records) in &read {
        for one in records {
            let (key, value) = (text(&one.key), text(&one.value));
            assert_eq!(partition_for_key(key.as_bytes(), 8), *partition);
            let number: usize = value.split(':').nth(1).unwrap().parse().unwrap();
            let last = last_by_key.insert(key.clone(), number);
            assert!(last.is_none_or(|last| last < number), "{key} out of order");
            let before = places.insert(value.clone(), (*partition, one.offset));
            assert!(before.is_none(), "{value} is there twice");
        }
    }
    assert_eq!(places.len(), THREADS * RECORDS);
    for (value, place) in acknowledged {
        assert_eq!(places[&value], (place.partition, place.offset.unwrap()));
    }
}

#[test]
fn records_without_a_key_reach_all_partitions() {
    let cluster = cluster();
    let topic = topic(&cluster, 4);
    let producer = start(&cluster, ProducerConfig::default());
    let mut partitions = HashSet::new();
    for _ in 0..16 {
        let record = Record::new(topic.as_str(), None, Some("v".into()));
        let outcome = producer.publish(vec![record], soon()).remove(0);
        partitions.insert(outcome.unwrap().partition);
    }
    assert_eq!(partitions.len(), 4);
}

#[test]
fn a_record_too_large_for_the_broker_fails_alone() {
    let cluster = cluster();
    let topic = topic(&cluster, 1);
    let mut config = ProducerConfig::default();
    // Above the broker's 1 MiB, so that the broker has to refuse.
    config.batch_bytes = 3_000_000;
    let producer = start(&cluster, config);
    let mut records: Vec<Record> = (0..20)
        .map(|number| record(&topic, "k".to_owned(), format!("small-{number}")))
        .collect();
    // Incompressible.
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
        .take(2_000_000)
        .collect();
    let huge = Record::new(&*topic, Some("k".into()), Some(noise.into()));
    records.insert(7, huge);
    let outcomes = producer.publish(records, soon());
    for (position, outcome) in outcomes.iter().enumerate() {
        if position == 7 {
            let error = outcome.as_ref().unwrap_err();
            assert_eq!(error.certainty, Certainty::NotSent);
            assert!(!error.is_transient(), "{error}");
        } else {
            assert!(outcome.is_ok(), "{outcome:?}");
        }
    }
    let read = &read_topic(&cluster, &topic)[&0];
    let values: Vec<_> = read.iter().map(|one| text(&one.value)).collect();
    let expected: Vec<_> = (0..20).map(|number| format!("small-{number}")).collect();
    assert_eq!(values, expected);
}

#[test]
fn a_record_too_large_for_the_broker_arrives_if_compression_helps() {
    let cluster = cluster();
    let topic = topic(&cluster, 1);
    let producer = start(&cluster, ProducerConfig::default());
    let large = "x".repeat(8 << 20);
    let records = ["a", &large, "b"].map(|value| record(&topic, "k".into(), value.into()));
    for outcome in producer.publish(records.to_vec(), soon()) {
        outcome.unwrap();
    }
    let read = &read_topic(&cluster, &topic)[&0];
    let values: Vec<_> = read.iter().map(|one| text(&one.value)).collect();
    assert_eq!(values, ["a", &large, "b"]);
}

#[test]
fn an_incompressible_record_just_below_the_brokers_limit_arrives() {
    let cluster = cluster();
    let topic = topic(&cluster, 1);
    let producer = start(&cluster, ProducerConfig::default());
    let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
        // The limit is 1 MiB and 12 bytes, with the batch's framing.
        .take((1 << 20) - 70)
        .collect();
    let large = Record::new(&*topic, None, Some(noise.clone().into()));
    producer.publish(vec![large], soon()).remove(0).unwrap();
    let read = &read_topic(&cluster, &topic)[&0];
    assert!(read[0].value.as_deref() == Some(&noise[..]));
}

#[test]
fn a_missing_topic_is_reported_at_the_deadline_and_used_once_it_exists() {
    let cluster = cluster();
    let producer = start(&cluster, ProducerConfig::default());
    let name = support::unique("late");
    let send = |deadline| {
        let record = record(&name, "k".to_owned(), "v".to_owned());
        producer.publish(vec![record], deadline).remove(0)
    };
    let started = Instant::now();
    let error = send(Deadline::after(Duration::from_millis(500))).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(error.certainty, Certainty::NotSent);
    assert!(error.is_transient());
    assert!(error.to_string().contains("UnknownTopic"), "{error}");

    let spec = TopicSpec::new(name.clone(), 1, 1);
    Admin::new(cluster.clone())
        .create_topics(&[spec], soon())
        .and_then(tbd_kafka::admin::all)
        .unwrap();
    assert_eq!(send(soon()).unwrap().offset, Some(0));
}

#[test]
fn a_closed_producer_has_delivered_everything_and_takes_nothing_more() {
    let cluster = cluster();
    let topic = topic(&cluster, 2);
    let producer = start(&cluster, ProducerConfig::default());
    let pending: Vec<_> = (0..100)
        .map(|number| {
            let record = record(&topic, format!("k{number}"), "v".to_owned());
            producer.send(record, soon()).unwrap()
        })
        .collect();
    producer.close(soon()).unwrap();
    for one in pending {
        one.wait(Deadline::after(Duration::ZERO)).unwrap();
    }
    let refused = producer.send(record(&topic, "k".to_owned(), "v".to_owned()), soon());
    assert_eq!(refused.err().unwrap().certainty, Certainty::NotSent);
}

/// Runs `trouble` while four threads publish, and lets each of them recover.
fn publish_through(
    server: &OwnServer,
    patience: Duration,
    trouble: impl FnOnce(),
) -> Vec<(String, Outcome)> {
    let cluster = cluster_at(vec![server.address()]);
    let topic = topic(&cluster, 4);
    let mut config = ProducerConfig::default();
    config.request_timeout = Duration::from_secs(3);
    let producer = start(&cluster, config);
    let stop = AtomicBool::new(false);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let stopped = SetOnDrop(&stop);
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let (producer, topic, stop) = (&producer, topic.as_str(), &stop);
                scope.spawn(move || publish_steadily(producer, topic, thread, patience, stop))
            })
            .collect();
        trouble();
        drop(stopped);
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    producer.close(soon()).unwrap();
    check_promises(&cluster, &topic, &outcomes);
    outcomes
}

#[test]
fn a_broker_killed_and_started_again_loses_and_doubles_nothing() {
    let server = OwnServer::kafka();
    let outcomes = publish_through(&server, Duration::from_secs(30), || {
        std::thread::sleep(Duration::from_secs(1));
        server.kill();
        server.start();
    });
    // The deadline outlasts the outage, so no caller gets an error.
    for (value, outcome) in &outcomes {
        assert!(outcome.is_ok(), "{value}: {outcome:?}");
    }
}

#[test]
fn a_producer_whose_sequence_numbers_the_broker_has_forgotten_goes_on() {
    let server = OwnServer::kafka_with(|_| {
        let check = "producer.id.expiration.check.interval.ms=200".to_owned();
        vec!["producer.id.expiration.ms=200".to_owned(), check]
    });
    let cluster = cluster_at(vec![server.address()]);
    let topic = topic(&cluster, 1);
    let producer = start(&cluster, ProducerConfig::default());
    let publish = |numbers: std::ops::Range<usize>| {
        let values: Vec<_> = numbers.map(|number| format!("0:{number}")).collect();
        let records = values
            .iter()
            .map(|value| record(&topic, "k".to_owned(), value.clone()));
        let outcomes = producer.publish(records.collect(), soon());
        values.into_iter().zip(outcomes).collect::<Vec<_>>()
    };
    let mut outcomes = publish(0..10);
    support::eventually(Duration::from_secs(60), "the broker to forget", || {
        let described = kafka_tool("org.apache.kafka.tools.TransactionsCommand")
            .args(["--bootstrap-server", &server.address()])
            .args(["describe-producers", "--partition", "0", "--topic", &topic])
            .output()
            .unwrap();
        assert!(described.status.success(), "{described:?}");
        // A head line, and a line for each producer.
        (described
            .stdout
            .trim_ascii()
            .split(|it| *it == b'\n')
            .count()
            == 1)
            .then_some(())
    });
    outcomes.extend(publish(10..20));
    producer.close(soon()).unwrap();
    assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()));
    check_promises(&cluster, &topic, &outcomes);
}

/// A broker reads from its snapshot only the last batch of each producer.
#[test]
fn batches_that_a_broker_has_written_and_forgotten_are_not_written_again() {
    const BATCHES: i64 = 3;
    let behind = free_port();
    let proxy = Proxy::before(&format!("127.0.0.1:{behind}"));
    let server = OwnServer::kafka_with(|port| {
        let (proxied, controller) = (proxy.port(), free_port());
        vec![
            format!("controller.quorum.voters=1@127.0.0.1:{controller}"),
            format!(
                "listeners=PROXIED://127.0.0.1:{behind},PLAINTEXT://127.0.0.1:{port},\
                 CONTROLLER://127.0.0.1:{controller}"
            ),
            format!(
                "advertised.listeners=PROXIED://127.0.0.1:{proxied},PLAINTEXT://127.0.0.1:{port}"
            ),
            "listener.security.protocol.map=\
             PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT"
                .to_owned(),
        ]
    });
    let cluster = cluster_at(vec![server.address()]);
    let topic = topic(&cluster, 1);
    let mut config = ProducerConfig::default();
    // Each record fills a batch.
    config.batch_bytes = 100;
    let through_proxy = cluster_at(vec![format!("127.0.0.1:{}", proxy.port())]);
    let producer = start(&through_proxy, config);
    let send = |number: i64| {
        let padding = "x".repeat(100);
        let value = format!("0:{number}");
        let sent = record(&topic, "k".to_owned(), value.clone()).header("padding", padding);
        (value, producer.send(sent, soon()).unwrap())
    };
    let wait = |(value, pending): (String, Pending)| (value, pending.wait(soon()));
    let mut outcomes = vec![wait(send(0))];
    proxy.swallow_answers(true);
    let pending: Vec<_> = (1..=BATCHES).map(send).collect();
    support::eventually(Duration::from_secs(20), "the batches in the log", || {
        let ends = Admin::new(cluster.clone()).end_offsets(&topic, soon());
        (ends.unwrap() == [1 + BATCHES]).then_some(())
    });
    server.stop();
    proxy.swallow_answers(false);
    server.start();
    outcomes.extend(pending.into_iter().map(wait));
    outcomes.push(wait(send(1 + BATCHES)));
    producer.close(soon()).unwrap();
    check_promises(&cluster, &topic, &outcomes);
    let written = |(_, outcome): &(String, Outcome)| outcome.is_ok();
    assert!(outcomes.iter().rev().take(2).all(written), "{outcomes:?}");
}

#[test]
fn a_broker_away_for_longer_than_patience_fails_records_in_time_and_truthfully() {
    let server = OwnServer::kafka();
    let patience = Duration::from_millis(700);
    let outcomes = publish_through(&server, patience, || {
        std::thread::sleep(Duration::from_secs(1));
        server.stop();
        std::thread::sleep(Duration::from_secs(3));
        server.start();
    });
    let failed = outcomes.iter().filter(|(_, outcome)| outcome.is_err());
    assert!(failed.count() >= 4);
}

#[test]
fn a_frozen_broker_fails_records_in_time_and_doubles_nothing_when_it_thaws() {
    let server = OwnServer::kafka();
    let patience = Duration::from_secs(1);
    let outcomes = publish_through(&server, patience, || {
        std::thread::sleep(Duration::from_secs(1));
        server.pause();
        let frozen = Instant::now();
        // Long enough for the producer to close its connection and open another.
        std::thread::sleep(Duration::from_secs(5));
        server.resume();
        assert!(frozen.elapsed() < Duration::from_secs(8));
    });
    let uncertain = outcomes.iter().filter(
        |(_, outcome)| matches!(outcome, Err(error) if error.certainty == Certainty::MaybeSent),
    );
    assert!(uncertain.count() >= 1);
}

#[test]
fn closing_with_the_broker_frozen_ends_in_time() {
    let server = OwnServer::kafka();
    let cluster = cluster_at(vec![server.address()]);
    let topic = topic(&cluster, 1);
    let producer = start(&cluster, ProducerConfig::default());
    let first = record(&topic, "k".to_owned(), "v".to_owned());
    producer.publish(vec![first], soon()).remove(0).unwrap();
    server.pause();
    let stuck = producer
        .send(record(&topic, "k".to_owned(), "v".to_owned()), soon())
        .unwrap();
    let started = Instant::now();
    producer
        .close(Deadline::after(Duration::from_millis(300)))
        .unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(2));
    let error = stuck.wait(Deadline::after(Duration::ZERO)).unwrap_err();
    assert_eq!(error.certainty, Certainty::MaybeSent);
    server.resume();
}

#[test]
fn a_topic_created_again_with_other_partitions_keeps_the_order_of_each_key() {
    check_publishing_to_a_topic_created_again(&cluster(), 1);
}
