//! Transactions against real brokers: one that adds partitions to a transaction with their batches
//! (`transaction.version` 2), and one that is told of them before. Before Kafka 4.0 there is only the
//! latter.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kafka_protocol::messages::FindCoordinatorRequest;
use kafka_protocol::protocol::StrBytes;
use tbd_deadline::Deadline;
use tbd_kafka::admin::all;
use tbd_kafka::consumer::Isolation;
use tbd_kafka::producer::{Ended, Record, TransactionError, TransactionalProducer};
use tbd_kafka::{Admin, Cluster, Consumer, ConsumerConfig, ProducerConfig, Reader, TopicPartition};

use crate::client::{
    cluster, cluster_at, consume, record, replicated_topic, soon, start, text, topic,
};
use crate::consumer::poll_until;
use crate::replicas::Brokers;
use crate::support::features::{is_before_kafka_4, level};
use crate::support::{OwnServer, eventually, unique};

/// How long a broker may take to notice another's death, and more.
const PATIENCE: Duration = Duration::from_secs(60);

/// A broker with the older kind of transactions, which looks for overdue ones all the time.
fn explicit() -> Cluster {
    static SERVER: OnceLock<OwnServer> = OnceLock::new();
    let server = SERVER.get_or_init(|| {
        let newer = !is_before_kafka_4();
        let older = newer.then_some("--feature=transaction.version=1");
        let often = "transaction.abort.timed.out.transaction.cleanup.interval.ms=200";
        let settings = older.into_iter().chain([often]);
        OwnServer::kafka_with(|_| settings.map(str::to_owned).collect())
    });
    cluster_at(vec![server.address()])
}

#[test]
fn the_two_brokers_have_transactions_of_two_kinds_and_before_kafka_4_of_the_older_one() {
    let levels = [cluster(), explicit()]
        .map(|cluster| level(&cluster.config().brokers[0], "transaction.version"));
    match is_before_kafka_4() {
        true => assert_eq!(levels, [0, 0]),
        false => assert_eq!(levels, [2, 1]),
    }
}

fn producer_with(cluster: &Cluster, id: &str, config: ProducerConfig) -> TransactionalProducer {
    TransactionalProducer::start(cluster.clone(), id, config, Arc::new(())).unwrap()
}

fn producer(cluster: &Cluster, id: &str) -> TransactionalProducer {
    producer_with(cluster, id, ProducerConfig::default())
}

fn numbered(topic: &str, numbers: std::ops::Range<i32>) -> impl Iterator<Item = Record> {
    numbers.map(move |number| record(topic, format!("key-{number}"), number.to_string()))
}

/// All that a reader of committed records sees in a topic, sorted.
fn committed(cluster: &Cluster, topic: &str) -> Vec<String> {
    let records = consume(cluster, topic, Isolation::ReadCommitted);
    let mut values: Vec<String> = records.iter().map(|one| text(&one.value)).collect();
    values.sort();
    values
}

fn group_consumer(cluster: &Cluster, group: &str, topic: &str) -> Consumer {
    let mut config = ConsumerConfig::new(group, [topic]);
    config.isolation = Isolation::ReadCommitted;
    Consumer::start(cluster.clone(), config, Box::new(())).unwrap()
}

fn group_offset(cluster: &Cluster, group: &str, topic: &str) -> Option<i64> {
    let admin = Admin::new(cluster.clone());
    let offsets = admin.committed_offsets(group, soon()).and_then(all);
    let found = offsets.unwrap().remove(&TopicPartition::new(topic, 0));
    found.map(|it| it.offset)
}

fn is_fenced(result: &Result<(), TransactionError>) -> bool {
    matches!(result, Err(TransactionError::Fenced(_)))
}

#[test]
fn a_reader_is_done_when_only_the_end_of_a_transaction_is_left_of_its_range() {
    let cluster = cluster();
    let topic = topic(&cluster, 1);
    let mut producer = producer(&cluster, &unique("tx"));
    let mut transaction = producer.begin(soon()).unwrap();
    for record in numbered(&topic, 0..3) {
        transaction.send(record, soon()).unwrap();
    }
    transaction.commit(soon()).unwrap();
    producer.close(soon()).unwrap();
    // The coordinator answers before it has written the end.
    eventually(PATIENCE, "three records and the end", || {
        let ranges = Reader::ranges(&cluster, &topic, soon()).unwrap();
        (ranges[0] == (0..4)).then_some(())
    });
    let mut reader = Reader::new(cluster, topic, [(0, 0..4)]);
    assert_eq!(reader.read(soon()).unwrap().len(), 3);
    let deadline = soon();
    assert_eq!(reader.read(deadline).unwrap(), []);
    assert!(!deadline.is_past(), "it has waited for more");
}

#[test]
fn records_of_several_partitions_are_visible_after_the_commit_and_never_after_an_abort() {
    for cluster in [cluster(), explicit()] {
        let topic = topic(&cluster, 3);
        let mut producer = producer(&cluster, &unique("tx"));
        for (numbers, end) in [
            (0..20, "commit"),
            (20..40, "abort"),
            (40..60, "drop"),
            (60..80, "commit"),
        ] {
            let mut transaction = producer.begin(soon()).unwrap();
            for record in numbered(&topic, numbers) {
                transaction.send(record, soon()).unwrap();
            }
            match end {
                "commit" => transaction.commit(soon()).unwrap(),
                "abort" => transaction.abort(soon()).unwrap(),
                _ => drop(transaction),
            }
        }
        // Without a record there is nothing to ask the coordinator for.
        producer.begin(soon()).unwrap().commit(soon()).unwrap();
        assert_eq!(producer.settle(soon()).unwrap(), Some(Ended::Committed));
        producer.close(soon()).unwrap();
        let mut expected: Vec<String> = (0..20).chain(60..80).map(|it| it.to_string()).collect();
        expected.sort();
        assert_eq!(committed(&cluster, &topic), expected);
    }
}

#[test]
fn an_open_transaction_ends_what_is_read_and_the_lag() {
    for cluster in [cluster(), explicit()] {
        let topic = topic(&cluster, 1);
        let mut producer = producer(&cluster, &unique("tx"));
        let mut first = producer.begin(soon()).unwrap();
        numbered(&topic, 0..3).for_each(|it| first.send(it, soon()).unwrap());
        first.commit(soon()).unwrap();
        let mut second = producer.begin(soon()).unwrap();
        second
            .send(record(&topic, "k".into(), "open".into()), soon())
            .unwrap();
        eventually(PATIENCE, "the open transaction's record", || {
            let ends = Admin::new(cluster.clone())
                .end_offsets(&topic, soon())
                .unwrap();
            (ends == [5]).then_some(())
        });
        let mut consumer = group_consumer(&cluster, &unique("group"), &topic);
        let partition = TopicPartition::new(topic.as_str(), 0);
        // Three records and a marker; the open record is behind them.
        poll_until(&mut consumer, |it, _| it.position(&partition) == Some(4));
        consumer.commit_polled(soon()).unwrap();
        assert_eq!(consumer.lag(), [(partition.clone(), 0)]);
        second.commit(soon()).unwrap();
        let records = poll_until(&mut consumer, |_, records| !records.is_empty());
        assert_eq!(text(&records[0].value), "open");
        consumer.close(soon()).unwrap();
        producer.close(soon()).unwrap();
    }
}

#[test]
fn offsets_are_committed_with_the_records_or_not_at_all() {
    for cluster in [cluster(), explicit()] {
        let (input, output, group) = (topic(&cluster, 1), topic(&cluster, 2), unique("group"));
        let plain = start(&cluster, ProducerConfig::default());
        for outcome in plain.publish(numbered(&input, 0..5).collect(), soon()) {
            outcome.unwrap();
        }
        plain.close(soon()).unwrap();
        let mut consumer = group_consumer(&cluster, &group, &input);
        let mut producer = producer(&cluster, &unique("tx"));
        for commits in [false, true] {
            let records = poll_until(&mut consumer, |_, records| records.len() == 5);
            let mut transaction = producer.begin(soon()).unwrap();
            for one in &records {
                let copy = record(&output, text(&one.key), text(&one.value));
                transaction.send(copy, soon()).unwrap();
            }
            let offsets = consumer.polled_offsets();
            assert_eq!(offsets.offsets().into_values().collect::<Vec<_>>(), [5]);
            transaction.send_offsets(&offsets, soon()).unwrap();
            assert_eq!(group_offset(&cluster, &group, &input), None);
            match commits {
                true => transaction.commit(soon()).unwrap(),
                false => drop(transaction),
            }
            consumer.rewind();
        }
        eventually(PATIENCE, "the commit of the offsets", || {
            (group_offset(&cluster, &group, &input) == Some(5)).then_some(())
        });
        assert!(
            consumer
                .poll(Deadline::after(Duration::from_secs(1)))
                .unwrap()
                .is_empty()
        );
        assert_eq!(
            consumer
                .committed(&TopicPartition::new(input.as_str(), 0))
                .map(|it| it.offset),
            Some(5)
        );
        assert_eq!(committed(&cluster, &output), ["0", "1", "2", "3", "4"]);
        consumer.close(soon()).unwrap();
        producer.close(soon()).unwrap();
    }
}

#[test]
fn a_member_that_has_left_its_group_cannot_commit_offsets() {
    for cluster in [cluster(), explicit()] {
        let (input, group) = (topic(&cluster, 1), unique("group"));
        let plain = start(&cluster, ProducerConfig::default());
        plain.publish(numbered(&input, 0..1).collect(), soon());
        plain.close(soon()).unwrap();
        let mut first = group_consumer(&cluster, &group, &input);
        poll_until(&mut first, |_, records| records.len() == 1);
        let offsets = first.polled_offsets();
        first.close(soon()).unwrap();
        let mut second = group_consumer(&cluster, &group, &input);
        poll_until(&mut second, |_, records| records.len() == 1);
        let mut producer = producer(&cluster, &unique("tx"));
        let mut transaction = producer.begin(soon()).unwrap();
        let refused = transaction.send_offsets(&offsets, soon()).unwrap_err();
        assert!(matches!(refused, TransactionError::Aborted(_)), "{refused}");
        assert!(refused.is_transient(), "{refused}");
        assert!(transaction.commit(soon()).is_err());
        // The producer goes on.
        let mut transaction = producer.begin(soon()).unwrap();
        let offsets = second.polled_offsets();
        transaction.send_offsets(&offsets, soon()).unwrap();
        transaction.commit(soon()).unwrap();
        producer.close(soon()).unwrap();
        second.close(soon()).unwrap();
    }
}

#[test]
fn a_successor_aborts_the_open_transaction_at_once_and_fences_the_zombie() {
    for cluster in [cluster(), explicit()] {
        let (topic, id) = (topic(&cluster, 1), unique("tx"));
        let mut zombie = producer(&cluster, &id);
        let mut transaction = zombie.begin(soon()).unwrap();
        transaction
            .send(record(&topic, "k".into(), "zombie".into()), soon())
            .unwrap();
        let mut successor = producer(&cluster, &id);
        let mut other = successor.begin(soon()).unwrap();
        other
            .send(record(&topic, "k".into(), "successor".into()), soon())
            .unwrap();
        other.commit(soon()).unwrap();
        let commit = transaction.commit(soon());
        assert!(is_fenced(&commit), "{commit:?}");
        assert!(matches!(
            zombie.begin(soon()),
            Err(TransactionError::Fenced(_))
        ));
        assert!(zombie.close(soon()).is_ok());
        successor.close(soon()).unwrap();
        assert_eq!(committed(&cluster, &topic), ["successor"]);
    }
}

#[test]
fn a_transaction_that_outlives_its_time_out_is_aborted_and_its_producer_fenced() {
    let cluster = explicit();
    let (topic, id) = (topic(&cluster, 1), unique("tx"));
    let mut config = ProducerConfig::default();
    config.transaction_timeout = Duration::from_millis(500);
    let mut slow = producer_with(&cluster, &id, config);
    let mut transaction = slow.begin(soon()).unwrap();
    transaction
        .send(record(&topic, "k".into(), "late".into()), soon())
        .unwrap();
    // The record, and the marker of the abort.
    eventually(PATIENCE, "the time-out", || {
        let ends = Admin::new(cluster.clone())
            .end_offsets(&topic, soon())
            .unwrap();
        (ends == [2]).then_some(())
    });
    let commit = transaction.commit(soon());
    assert!(is_fenced(&commit), "{commit:?}");
    assert!(committed(&cluster, &topic).is_empty());
    slow.close(soon()).unwrap();
    let mut next = producer(&cluster, &id);
    let mut transaction = next.begin(soon()).unwrap();
    transaction
        .send(record(&topic, "k".into(), "next".into()), soon())
        .unwrap();
    transaction.commit(soon()).unwrap();
    next.close(soon()).unwrap();
    assert_eq!(committed(&cluster, &topic), ["next"]);
}

#[test]
fn a_record_that_fails_aborts_its_transaction_and_the_producer_goes_on() {
    for cluster in [cluster(), explicit()] {
        let topic = topic(&cluster, 1);
        let mut producer = producer(&cluster, &unique("tx"));
        let mut transaction = producer.begin(soon()).unwrap();
        transaction
            .send(record(&topic, "k".into(), "good".into()), soon())
            .unwrap();
        let mut bad = record(&topic, "k".into(), "bad".into());
        bad.partition = Some(7);
        let refused = transaction.send(bad, soon()).unwrap_err();
        assert!(matches!(refused, TransactionError::Aborted(_)), "{refused}");
        assert!(!refused.is_transient(), "{refused}");
        assert!(transaction.commit(soon()).is_err());
        let mut transaction = producer.begin(soon()).unwrap();
        assert!(
            transaction
                .send(record(&topic, "k".into(), "next".into()), soon())
                .is_ok()
        );
        transaction.commit(soon()).unwrap();
        producer.close(soon()).unwrap();
        assert_eq!(committed(&cluster, &topic), ["next"]);
    }
}

#[test]
fn a_commit_that_is_not_answered_is_unknown_until_the_coordinator_says_what_became_of_it() {
    let server = OwnServer::kafka();
    let cluster = cluster_at(vec![server.address()]);
    let (input, topic, group) = (topic(&cluster, 1), topic(&cluster, 1), unique("group"));
    let plain = start(&cluster, ProducerConfig::default());
    plain.publish(numbered(&input, 0..1).collect(), soon());
    plain.close(soon()).unwrap();
    let mut consumer = group_consumer(&cluster, &group, &input);
    poll_until(&mut consumer, |_, records| records.len() == 1);
    let mut producer = producer(&cluster, &unique("tx"));
    let mut transaction = producer.begin(soon()).unwrap();
    transaction
        .send(record(&topic, "k".into(), "v".into()), soon())
        .unwrap();
    let offsets = consumer.polled_offsets();
    transaction.send_offsets(&offsets, soon()).unwrap();
    eventually(PATIENCE, "the record", || {
        let ends = Admin::new(cluster.clone())
            .end_offsets(&topic, soon())
            .unwrap();
        (ends == [1]).then_some(())
    });
    server.pause();
    let commit = transaction.commit(Deadline::after(Duration::from_secs(1)));
    assert!(
        matches!(commit, Err(TransactionError::Unknown(_))),
        "{commit:?}"
    );
    assert!(commit.unwrap_err().is_transient());
    // Only the coordinator knows where the group continues.
    consumer.rewind();
    let settled = producer.settle(Deadline::after(Duration::from_secs(1)));
    assert!(
        matches!(settled, Err(TransactionError::Unknown(_))),
        "{settled:?}"
    );
    server.resume();
    assert_eq!(producer.settle(soon()).unwrap(), Some(Ended::Committed));
    let partition = TopicPartition::new(input.as_str(), 0);
    let again = poll_until(&mut consumer, |it, _| it.position(&partition).is_some());
    assert!(again.is_empty(), "{again:?}");
    assert_eq!(consumer.position(&partition), Some(1));
    assert_eq!(committed(&cluster, &topic), ["v"]);
    consumer.close(soon()).unwrap();
    producer.close(soon()).unwrap();
}

#[test]
fn transactions_go_on_when_the_coordinator_is_killed() {
    let brokers = Brokers::all_up();
    let cluster = brokers.cluster();
    let (topic, id) = (replicated_topic(&cluster, 3, 3), unique("tx"));
    let mut producer = producer(&cluster, &id);
    let mut expected = Vec::new();
    let mut commit = |producer: &mut TransactionalProducer, name: &str| {
        let later = || Deadline::after(PATIENCE);
        for attempt in 0.. {
            let value = format!("{name}-{attempt}");
            let mut transaction = producer.begin(later()).unwrap();
            let sent = (0..3).try_for_each(|number| {
                let mut one = record(&topic, "k".into(), format!("{value}-{number}"));
                one.partition = Some(number);
                transaction.send(one, later())
            });
            match sent.and_then(|()| transaction.commit(later())) {
                Ok(()) => {
                    expected.extend((0..3).map(|number| format!("{value}-{number}")));
                    return;
                }
                Err(error) => assert!(error.is_transient() && attempt < 10, "{error}"),
            }
        }
    };
    commit(&mut producer, "before");
    let request = FindCoordinatorRequest::default()
        .with_key(StrBytes::from_string(id))
        .with_key_type(1);
    let mut connection = cluster.connect_any(soon()).unwrap();
    let coordinator = connection.call(&request, soon()).unwrap().node_id.0;
    brokers.node(coordinator).kill();
    commit(&mut producer, "killed");
    brokers.node(coordinator).start();
    brokers.settle();
    commit(&mut producer, "back");
    producer.close(soon()).unwrap();
    expected.sort();
    let read = committed(&cluster, &topic);
    assert_eq!(read, expected);
}
