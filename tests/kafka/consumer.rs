//! The consumers of a group against a real Kafka.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{CreateTopicsRequest, ProduceRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use tbd_deadline::Deadline;
use tbd_kafka::TopicPartition;
use tbd_kafka::admin::all;
use tbd_kafka::consumer::Assignor;
use tbd_kafka::consumer::{CommitError, Consumer, ConsumerConfig, ConsumerHooks, ConsumerRecord};
use tbd_kafka::internals::Connection;
use tbd_kafka::{Admin, ClientConfig, Cluster};

use crate::support;

const TICK: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(30);

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

fn client_config(address: &str) -> ClientConfig {
    ClientConfig::new([address])
}

fn name(text: &str) -> TopicName {
    TopicName(StrBytes::from_string(text.to_owned()))
}

/// A fresh topic on the shared Kafka.
struct Topic {
    name: String,
    connection: Connection,
}

impl Topic {
    fn new(partitions: i32) -> Self {
        Self::on(&support::kafka(), &support::unique("consumer"), partitions)
    }

    fn on(address: &str, name_text: &str, partitions: i32) -> Self {
        let mut connection = Connection::open(address, &client_config(address), soon()).unwrap();
        let topic = CreatableTopic::default()
            .with_name(name(name_text))
            .with_num_partitions(partitions)
            .with_replication_factor(1);
        let request = CreateTopicsRequest::default()
            .with_topics(vec![topic])
            .with_timeout_ms(10_000);
        let answer = connection.call(&request, soon()).unwrap();
        assert_eq!(answer.topics[0].error_code, 0);
        let mut topic = Self {
            name: name_text.to_owned(),
            connection,
        };
        // The topic exists once a partition accepts records.
        topic.produce(0, &["warm-up"], Compression::None);
        topic
    }

    fn produce(&mut self, partition: i32, values: &[&str], compression: Compression) {
        let records: Vec<Record> = values
            .iter()
            .enumerate()
            .map(|(index, value)| Record {
                transactional: false,
                control: false,
                delete_horizon: false,
                partition_leader_epoch: -1,
                producer_id: -1,
                producer_epoch: -1,
                timestamp_type: TimestampType::Creation,
                offset: index as i64,
                sequence: index as i32,
                timestamp: 1_700_000_000_000 + index as i64,
                key: Some(Bytes::from(format!("key-{value}"))),
                value: Some(Bytes::copy_from_slice(value.as_bytes())),
                headers: [(
                    StrBytes::from_static_str("traceparent"),
                    Some(Bytes::from_static(b"00-1")),
                )]
                .into(),
            })
            .collect();
        let mut bytes = BytesMut::new();
        RecordBatchEncoder::encode(
            &mut bytes,
            &records,
            &RecordEncodeOptions {
                version: 2,
                compression,
            },
        )
        .unwrap();
        let data = PartitionProduceData::default()
            .with_index(partition)
            .with_records(Some(bytes.freeze()));
        let topic = TopicProduceData::default()
            .with_name(name(&self.name))
            .with_partition_data(vec![data]);
        let request = ProduceRequest::default()
            .with_acks(-1)
            .with_timeout_ms(10_000)
            .with_topic_data(vec![topic]);
        let give_up = Instant::now() + PATIENCE;
        loop {
            // The newest version that names topics instead of their ids.
            let sent = self.connection.send_at_most(&request, 12, soon()).unwrap();
            let answer = self.connection.receive(sent, soon()).unwrap();
            match answer.responses[0].partition_responses[0].error_code {
                0 => return,
                // A new topic, still without a leader.
                3 | 5 | 6 if Instant::now() < give_up => thread::yield_now(),
                code => panic!("produce: {code}"),
            }
        }
    }

    fn partition(&self, number: i32) -> TopicPartition {
        TopicPartition::new(self.name.as_str(), number)
    }
}

/// A call of a hook: its kind and its partitions.
pub type Entry = (&'static str, BTreeSet<i32>);

/// The hooks' calls.
#[derive(Default, Clone)]
pub struct Journal(Arc<Mutex<Vec<Entry>>>);

impl Journal {
    fn note(&self, what: &'static str, partitions: &[TopicPartition]) {
        self.0.lock().unwrap().push((
            what,
            partitions
                .iter()
                .map(|partition| partition.partition)
                .collect(),
        ));
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.0.lock().unwrap().clone()
    }
}

impl ConsumerHooks for Journal {
    fn assigned(&self, added: &[TopicPartition]) {
        self.note("assigned", added);
    }

    fn revoked(&self, partitions: &[TopicPartition]) {
        self.note("revoked", partitions);
    }

    fn lost(&self, partitions: &[TopicPartition]) {
        self.note("lost", partitions);
    }

    fn topic_replaced(&self, partitions: &[TopicPartition]) {
        self.note("replaced", partitions);
    }
}

fn config(topic: &Topic, group: &str) -> ConsumerConfig {
    let mut config = ConsumerConfig::new(group, [topic.name.as_str()]);
    config.set_session_timeout(Duration::from_secs(6));
    config
}

fn consumer(config: ConsumerConfig) -> (Consumer, Journal) {
    let journal = Journal::default();
    let cluster = Cluster::new(client_config(&support::kafka()));
    let consumer = Consumer::start(cluster, config, Box::new(journal.clone())).unwrap();
    (consumer, journal)
}

/// Polls until `done` returns true; all records.
pub fn poll_until(
    consumer: &mut Consumer,
    mut done: impl FnMut(&Consumer, &[ConsumerRecord]) -> bool,
) -> Vec<ConsumerRecord> {
    let give_up = Instant::now() + PATIENCE;
    let mut records = Vec::new();
    while !done(consumer, &records) {
        assert!(
            Instant::now() < give_up,
            "still waiting; {consumer:?} has {} records",
            records.len()
        );
        match consumer.poll(Deadline::after(TICK)) {
            Ok(more) => records.extend(more),
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
    records
}

pub fn values(records: &[ConsumerRecord]) -> Vec<String> {
    records
        .iter()
        .map(|record| String::from_utf8(record.value.as_ref().unwrap().to_vec()).unwrap())
        .filter(|value| value != "warm-up")
        .collect()
}

/// Members on threads of their own until stopped, as a worker runs them.
struct Members {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<HashMap<String, u32>>>,
    shares: Arc<Mutex<BTreeMap<usize, usize>>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Members {
    fn new() -> Self {
        Self {
            stop: Arc::default(),
            seen: Arc::default(),
            shares: Arc::default(),
            threads: Vec::new(),
        }
    }

    fn add(&mut self, config: ConsumerConfig) {
        let index = self.threads.len();
        let (stop, seen, shares) = (self.stop.clone(), self.seen.clone(), self.shares.clone());
        self.threads.push(thread::spawn(move || {
            let (mut consumer, _) = consumer(config);
            while !stop.load(Ordering::SeqCst) {
                let records = consumer.poll(Deadline::after(TICK)).unwrap_or_default();
                for value in values(&records) {
                    *seen.lock().unwrap().entry(value).or_default() += 1;
                }
                match consumer.commit_polled(soon()) {
                    Ok(()) | Err(CommitError::Rebalancing | CommitError::Lost) => {}
                    Err(error) => panic!("{error}"),
                }
                let share = if consumer.rebalance_pending() {
                    0
                } else {
                    consumer.assignment().len()
                };
                shares.lock().unwrap().insert(index, share);
            }
            consumer.close(soon()).unwrap();
        }));
    }

    fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) -> Duration {
        let start = Instant::now();
        while !done(self) {
            assert!(
                start.elapsed() < PATIENCE,
                "{what}: shares {:?}",
                self.shares.lock().unwrap()
            );
            thread::park_timeout(Duration::from_millis(10));
        }
        start.elapsed()
    }

    fn has_shares(&self, expected: &[usize]) -> bool {
        let mut shares: Vec<usize> = self.shares.lock().unwrap().values().copied().collect();
        shares.sort_unstable();
        shares == expected
    }

    fn finish(self) -> HashMap<String, u32> {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        Arc::try_unwrap(self.seen).unwrap().into_inner().unwrap()
    }
}

#[test]
fn two_members_share_the_partitions_and_each_record_is_seen_once() {
    let mut topic = Topic::new(4);
    let group = support::unique("group");
    let mut members = Members::new();
    members.add(config(&topic, &group));
    members.add(config(&topic, &group));
    members.wait("both have half", |members| members.has_shares(&[2, 2]));
    let expected: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    for (number, value) in expected.iter().enumerate() {
        topic.produce(number as i32 % 4, &[value], Compression::None);
    }
    members.wait("all are seen", |members| {
        members.seen.lock().unwrap().len() == expected.len()
    });
    let seen = members.finish();
    assert!(expected.iter().all(|value| seen[value] == 1), "{seen:?}");
}

#[test]
fn five_members_starting_at_once_settle_in_seconds() {
    let topic = Topic::new(16);
    let group = support::unique("group");
    let mut members = Members::new();
    for _ in 0..5 {
        members.add(config(&topic, &group));
    }
    let took = members.wait("all have a share", |members| {
        members.has_shares(&[3, 3, 3, 3, 4])
    });
    eprintln!("five members settled in {took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    members.finish();
}

#[test]
fn a_leaving_member_hands_over_at_the_committed_offset() {
    let mut topic = Topic::new(1);
    let group = support::unique("group");
    topic.produce(0, &["a", "b", "c"], Compression::None);
    let mut settings = config(&topic, &group);
    settings.max_poll_records = 2;
    let (mut first, _) = consumer(settings);
    // The warm-up record and "a" are finished; "b" and "c" are only read.
    poll_until(&mut first, |_, records| records.len() == 2);
    first.commit_polled(soon()).unwrap();
    poll_until(&mut first, |_, records| records.len() == 2);
    let start = Instant::now();
    first.close(soon()).unwrap();

    let (mut second, journal) = consumer(config(&topic, &group));
    let records = poll_until(&mut second, |_, records| records.len() == 2);
    assert_eq!(values(&records), ["b", "c"]);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(journal.entries(), [("assigned", BTreeSet::from([0]))]);
    second.close(soon()).unwrap();
}

#[test]
fn a_commit_after_revocation_is_refused_and_changes_nothing() {
    let mut topic = Topic::new(2);
    topic.produce(0, &["a"], Compression::None);
    topic.produce(1, &["b"], Compression::None);
    let group = support::unique("group");
    let (mut first, first_journal) = consumer(config(&topic, &group));
    poll_until(&mut first, |_, records| values(records).len() == 2);

    // A second member takes over one of the two partitions while the first has committed neither.
    let mut members = Members::new();
    members.add(config(&topic, &group));
    poll_until(&mut first, |first, _| {
        first.assignment().len() == 1 && !first.rebalance_pending()
    });
    members.wait("the other has one", |members| members.has_shares(&[1]));
    let kept = first.assignment().remove(0).partition;
    let gone = topic.partition(1 - kept);
    let refused = first.commit(&[(gone.clone(), 1), (topic.partition(kept), 0)], soon());
    assert!(matches!(refused, Err(CommitError::Lost)), "{refused:?}");
    assert!(
        first_journal
            .entries()
            .contains(&("revoked", BTreeSet::from([gone.partition])))
    );

    // The kept partition can be committed, and the other was read again.
    first.commit_polled(soon()).unwrap();
    let lost_value = if gone.partition == 0 { "a" } else { "b" };
    members.wait("the other reads it", |members| {
        members.seen.lock().unwrap().contains_key(lost_value)
    });
    first.close(soon()).unwrap();
    let seen = members.finish();
    assert_eq!(seen, HashMap::from([(lost_value.to_owned(), 1)]));
}

#[test]
fn partitions_that_stay_flow_on_while_a_rebalance_waits_for_a_slow_member() {
    let mut topic = Topic::new(3);
    let group = support::unique("group");
    let (mut flowing, _) = consumer(config(&topic, &group));
    poll_until(&mut flowing, |_, records| records.len() == 1);
    flowing.commit_polled(soon()).unwrap();
    let (mut slow, _) = consumer(config(&topic, &group));
    poll_until(&mut flowing, |flowing, _| {
        let _ = slow.poll(Deadline::after(Duration::from_millis(10)));
        flowing.assignment().len() == 2
            && slow.assignment().len() == 1
            && !flowing.rebalance_pending()
    });
    // A third member wants to join. The slow one does not poll, so the group has to wait for it.
    let mut members = Members::new();
    members.add(config(&topic, &group));
    poll_until(&mut flowing, |flowing, _| flowing.rebalance_pending());
    let kept = flowing.assignment();
    let mut read = 0;
    for number in 0..5 {
        for partition in &kept {
            topic.produce(
                partition.partition,
                &[&format!("during {number}")],
                Compression::None,
            );
        }
        read += poll_until(&mut flowing, |_, records| records.len() == 2).len();
        let refused = flowing.commit_polled(soon());
        assert!(
            matches!(refused, Err(CommitError::Rebalancing)),
            "{refused:?}"
        );
    }
    assert!(flowing.rebalance_pending() && read == 10);

    // The slow member returns. Its finished work is committed, although one of the two partitions moves.
    poll_until(&mut flowing, |flowing, _| {
        let _ = slow.poll(Deadline::after(Duration::from_millis(10)));
        flowing.assignment().len() == 1 && !flowing.rebalance_pending()
    });
    members.wait("the third has one", |members| members.has_shares(&[1]));
    flowing.close(soon()).unwrap();
    slow.close(soon()).unwrap();
    let seen = members.finish();
    assert!(seen.is_empty(), "read again: {seen:?}");
}

#[test]
fn a_killed_members_partitions_are_taken_over_after_the_session_time_out() {
    let mut topic = Topic::new(2);
    let group = support::unique("group");
    let (mut killed, _) = consumer(config(&topic, &group));
    poll_until(&mut killed, |killed, _| killed.assignment().len() == 2);
    let mut members = Members::new();
    members.add(config(&topic, &group));
    poll_until(&mut killed, |killed, _| {
        killed.assignment().len() == 1 && !killed.rebalance_pending()
    });
    members.wait("the survivor has one", |members| members.has_shares(&[1]));
    // As in a crash: connections end without a LeaveGroup.
    drop(killed);
    let took = members.wait("the survivor has all", |members| members.has_shares(&[2]));
    assert!(
        took > Duration::from_secs(3) && took < Duration::from_secs(10),
        "{took:?}"
    );
    topic.produce(0, &["a"], Compression::None);
    topic.produce(1, &["b"], Compression::None);
    members.wait("both are read", |members| {
        members.seen.lock().unwrap().len() == 2
    });
    members.finish();
}

#[test]
fn a_member_whose_owner_is_stuck_leaves_and_comes_back() {
    let mut topic = Topic::new(1);
    let group = support::unique("group");
    topic.produce(0, &["a"], Compression::None);
    let mut settings = config(&topic, &group);
    settings.max_poll_interval = Duration::from_secs(2);
    let (mut stuck, journal) = consumer(settings);
    poll_until(&mut stuck, |_, records| values(records).len() == 1);

    // The other member gets the partition although nothing polls the first.
    let (mut other, _) = consumer(config(&topic, &group));
    let records = poll_until(&mut other, |_, records| values(records).len() == 1);
    assert_eq!(values(&records), ["a"]);
    let refused = stuck.commit_polled(soon());
    assert!(matches!(refused, Err(CommitError::Lost)), "{refused:?}");
    other.commit_polled(soon()).unwrap();
    other.close(soon()).unwrap();

    topic.produce(0, &["b"], Compression::None);
    let records = poll_until(&mut stuck, |_, records| !records.is_empty());
    assert_eq!(values(&records), ["b"]);
    assert_eq!(
        journal.entries(),
        [
            ("assigned", BTreeSet::from([0])),
            ("lost", BTreeSet::from([0])),
            ("assigned", BTreeSet::from([0]))
        ]
    );
    stuck.close(soon()).unwrap();
}

#[test]
fn all_compressions_are_read() {
    let mut topic = Topic::new(1);
    let codecs = [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ];
    for codec in codecs {
        topic.produce(0, &["x", "y"], codec);
    }
    let (mut consumer, _) = consumer(config(&topic, &support::unique("group")));
    let records = poll_until(&mut consumer, |_, records| values(records).len() == 10);
    assert_eq!(values(&records), ["x", "y"].repeat(5));
    let last = records.last().unwrap();
    assert_eq!((last.offset, last.timestamp_ms), (10, 1_700_000_000_001));
    assert_eq!(last.key.as_deref(), Some(b"key-y".as_slice()));
    assert_eq!(
        last.header("traceparent").map(AsRef::as_ref),
        Some(b"00-1".as_slice())
    );
    assert_eq!(consumer.lag(), [(topic.partition(0), 11)]);
    consumer.commit_polled(soon()).unwrap();
    assert_eq!(consumer.lag(), [(topic.partition(0), 0)]);
    consumer.close(soon()).unwrap();
}

#[test]
fn a_record_larger_than_a_fetch_may_bring_comes_all_the_same() {
    let mut topic = Topic::new(1);
    let large = "x".repeat(300_000);
    topic.produce(0, &["small", &large, "last"], Compression::None);
    topic.produce(0, &[&large], Compression::Gzip);
    let mut config = config(&topic, &support::unique("group"));
    config.max_partition_fetch_bytes = 1_000;
    config.fetch_max_bytes = 1_000;
    let (mut consumer, _) = consumer(config);
    let records = poll_until(&mut consumer, |_, records| records.len() == 5);
    assert_eq!(values(&records), ["small", &large, "last", &large]);
    consumer.close(soon()).unwrap();
}

#[test]
fn the_lag_of_a_group_is_known_whether_it_has_members_or_not() {
    let mut topic = Topic::new(2);
    topic.produce(0, &["a", "b"], Compression::None);
    topic.produce(1, &["c"], Compression::None);
    let group = support::unique("group");
    let admin = Admin::new(Cluster::new(client_config(&support::kafka())));
    // With the warm-up record, and before the group had a member.
    let lag = || -> Vec<i64> {
        let lags = admin.lag(&group, &topic.name, soon());
        let lags = lags.and_then(all).unwrap();
        lags.into_values().collect()
    };
    assert_eq!(lag(), [3, 1]);
    let (mut reader, _) = consumer(config(&topic, &group));
    poll_until(&mut reader, |_, records| records.len() == 4);
    reader.commit_polled(soon()).unwrap();
    assert_eq!(lag(), [0, 0]);
    reader.commit(&[(topic.partition(0), 3)], soon()).unwrap();
    reader.close(soon()).unwrap();
    assert_eq!(lag(), [0, 0], "nobody reads, nothing is left");
    topic.produce(1, &["d"], Compression::None);
    let lags = admin.lag(&group, &topic.name, soon());
    let lags = lags.and_then(all).unwrap();
    assert_eq!(lags.into_values().collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn rewinding_hands_out_again_what_was_not_committed() {
    let mut topic = Topic::new(1);
    topic.produce(0, &["a", "b", "c"], Compression::None);
    let mut settings = config(&topic, &support::unique("group"));
    settings.max_poll_records = 2;
    let (mut consumer, _) = consumer(settings);
    poll_until(&mut consumer, |_, records| records.len() == 2);
    consumer.commit_polled(soon()).unwrap();
    for _ in 0..2 {
        let records = poll_until(&mut consumer, |_, records| !records.is_empty());
        assert_eq!(values(&records), ["b", "c"]);
        consumer.rewind();
        consumer
            .idle(Deadline::after(Duration::from_millis(50)))
            .unwrap();
    }
    consumer.close(soon()).unwrap();
}

#[test]
fn a_poll_ends_when_it_is_woken() {
    let topic = Topic::new(1);
    let (mut consumer, _) = consumer(config(&topic, &support::unique("group")));
    poll_until(&mut consumer, |_, records| records.len() == 1);
    let waker = consumer.waker();
    let other = thread::spawn(move || {
        thread::park_timeout(Duration::from_millis(100));
        waker.wake();
    });
    let start = Instant::now();
    let records = consumer
        .poll(Deadline::after(Duration::from_secs(60)))
        .unwrap();
    assert!(
        records.is_empty() && start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    other.join().unwrap();
    consumer.close(soon()).unwrap();
}

#[test]
fn a_consumer_closes_in_every_state() {
    let topic = Topic::new(1);
    let group = support::unique("group");
    // Before the first step; while looking for the coordinator; while joining; while joined.
    for millis in [0, 1, 3, 10, 30, 300] {
        let (mut consumer, _) = consumer(config(&topic, &group));
        if millis > 0 {
            let _ = consumer.poll(Deadline::after(Duration::from_millis(millis)));
        }
        let start = Instant::now();
        consumer.close(soon()).unwrap();
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "{millis} ms: {:?}",
            start.elapsed()
        );
    }
    // The group waits for none of them any more.
    let start = Instant::now();
    let (mut consumer, _) = consumer(config(&topic, &group));
    poll_until(&mut consumer, |_, records| records.len() == 1);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    consumer.close(soon()).unwrap();
}

#[test]
fn a_consumer_without_kafka_says_so_and_closes() {
    let client = client_config("127.0.0.1:1");
    let settings = ConsumerConfig::new("group", ["topic"]);
    let mut consumer = Consumer::start(Cluster::new(client), settings, Box::new(())).unwrap();
    let error = consumer
        .poll(Deadline::after(Duration::from_millis(300)))
        .unwrap_err();
    assert!(error.is_transient(), "{error}");
    consumer.close(soon()).unwrap();
}

#[test]
fn range_gives_everything_up_before_it_shares_again() {
    let topic = Topic::new(4);
    let group = support::unique("group");
    let settings = || {
        let mut settings = config(&topic, &group);
        settings.assignors = vec![Assignor::Range];
        settings
    };
    let (mut first, journal) = consumer(settings());
    poll_until(&mut first, |first, _| first.assignment().len() == 4);
    let mut members = Members::new();
    members.add(settings());
    poll_until(&mut first, |first, _| {
        first.assignment().len() == 2 && !first.rebalance_pending()
    });
    members.wait("the other has half", |members| members.has_shares(&[2]));
    let entries = journal.entries();
    assert_eq!(entries[1], ("revoked", BTreeSet::from([0, 1, 2, 3])));
    assert_eq!((entries[2].0, entries[2].1.len()), ("assigned", 2));
    first.close(soon()).unwrap();
    members.wait("the other has all", |members| members.has_shares(&[4]));
    members.finish();
}

#[test]
fn a_static_member_restarts_without_a_rebalance_and_fences_its_twin() {
    let topic = Topic::new(2);
    let group = support::unique("group");
    let named = |name: &str| {
        let mut settings = config(&topic, &group);
        settings.group_instance_id = Some(name.to_owned());
        settings
    };
    let (mut stays, journal) = consumer(named("stays"));
    let (mut restarts, _) = consumer(named("restarts"));
    poll_until(&mut stays, |stays, _| {
        let _ = restarts.poll(Deadline::after(TICK));
        stays.assignment().len() == 1 && restarts.assignment().len() == 1
    });
    let before = (journal.entries(), restarts.assignment());
    restarts.close(soon()).unwrap();
    let (mut again, _) = consumer(named("restarts"));
    poll_until(&mut again, |again, _| again.assignment().len() == 1);
    poll_until(&mut stays, |stays, _| !stays.rebalance_pending());
    assert_eq!((journal.entries(), again.assignment()), before);

    // A second member of the same name takes its place; the first gets a permanent error.
    let (mut twin, _) = consumer(named("restarts"));
    poll_until(&mut twin, |twin, _| twin.assignment().len() == 1);
    let give_up = Instant::now() + PATIENCE;
    let error = loop {
        assert!(Instant::now() < give_up);
        if let Err(error) = again.poll(Deadline::after(TICK)) {
            break error;
        }
    };
    assert!(!error.is_transient(), "{error}");
    for consumer in [stays, again, twin] {
        let _ = consumer.close(soon());
    }
}

#[test]
fn a_topic_made_after_the_start_is_found() {
    let topic_name = support::unique("consumer");
    let (mut consumer, journal) = consumer(ConsumerConfig::new(
        support::unique("group"),
        [topic_name.as_str()],
    ));
    poll_until(&mut consumer, |_, _| !journal.entries().is_empty());
    assert_eq!(consumer.assignment(), []);
    let mut topic = Topic::on(&support::kafka(), &topic_name, 2);
    topic.produce(1, &["a"], Compression::None);
    let records = poll_until(&mut consumer, |_, records| !values(records).is_empty());
    assert_eq!(values(&records), ["a"]);
    consumer.close(soon()).unwrap();
}

#[test]
fn a_consumer_outlives_its_broker() {
    let server = support::OwnServer::kafka();
    let address = server.address();
    let mut topic = Topic::on(&address, "t", 2);
    topic.produce(0, &["a"], Compression::None);
    let cluster = Cluster::new(client_config(&address));
    let mut consumer = Consumer::start(cluster, config(&topic, "group"), Box::new(())).unwrap();
    let records = poll_until(&mut consumer, |_, records| !values(records).is_empty());
    assert_eq!(values(&records), ["a"]);
    consumer.commit_polled(soon()).unwrap();

    // Frozen: nothing moves, and every call still returns.
    server.pause();
    let start = Instant::now();
    let _ = consumer.poll(Deadline::after(TICK));
    let error = consumer
        .commit(&[(topic.partition(0), 1_000)], Deadline::after(TICK))
        .unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    server.resume();

    // Killed and restarted: it continues after its committed offset. The commit above may have
    // arrived after all, so it is not checked.
    server.kill();
    let error = poll_until_error(&mut consumer);
    assert!(error.is_transient(), "{error}");
    server.start();
    let mut topic = Topic {
        connection: Connection::open(&address, &client_config(&address), soon()).unwrap(),
        ..topic
    };
    topic.produce(1, &["b"], Compression::None);
    let records = poll_until(&mut consumer, |_, records| !values(records).is_empty());
    assert_eq!(values(&records), ["b"]);
    // A broker that was down for longer than a session has forgotten its members. The record is then
    // delivered again, and a new member commits it.
    while let Err(error) = consumer.commit_polled(soon()) {
        assert!(!matches!(error, CommitError::Fatal(_)), "{error}");
        if matches!(error, CommitError::Lost) {
            let records = poll_until(&mut consumer, |_, records| !values(records).is_empty());
            assert_eq!(values(&records), ["b"]);
        } else {
            let _ = consumer.poll(Deadline::after(TICK));
        }
    }

    // Frozen for good: closing still respects its deadline.
    server.pause();
    let start = Instant::now();
    let closed = consumer.close(Deadline::after(TICK));
    assert!(
        closed.is_err() && start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    server.resume();
}

fn poll_until_error(consumer: &mut Consumer) -> tbd_kafka::Error {
    let give_up = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < give_up);
        if let Err(error) = consumer.poll(Deadline::after(TICK)) {
            return error;
        }
    }
}
