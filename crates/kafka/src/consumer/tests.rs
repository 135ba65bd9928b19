//! Tests of a whole consumer against a broker that misbehaves on purpose.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::ErrorCode;
use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::fetch_response::{
    EpochEndOffset, FetchableTopicResponse, PartitionData,
};
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::metadata_response::MetadataResponseBroker;
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponsePartition, OffsetFetchResponseTopic,
};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};

use super::*;
use crate::fake_broker::{FakeBroker, Incoming, Reply, framed};
use crate::lock;
use crate::{ApiKey, ClientConfig};

mod leaving;
mod library;
mod read_replica;
mod replaced_topic;
mod waiting;

/// A batch of one record at `offset`.
fn batch(offset: i64) -> Bytes {
    batch_of(offset, -1, None)
}

/// A batch of one record, in a transaction if it has a producer. With `marker`, the record is the
/// transaction's end.
fn batch_of(offset: i64, producer_id: i64, marker: Option<i16>) -> Bytes {
    let record = Record {
        transactional: producer_id >= 0,
        control: marker.is_some(),
        delete_horizon: false,
        partition_leader_epoch: 0,
        producer_id,
        producer_epoch: producer_id.min(0) as i16,
        timestamp_type: TimestampType::Creation,
        offset,
        sequence: 0,
        timestamp: 0,
        key: marker.map(|kind| [[0, 0], kind.to_be_bytes()].concat().into()),
        value: Some(Bytes::from_static(b"v")),
        headers: Default::default(),
    };
    let mut bytes = BytesMut::new();
    let options = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };
    RecordBatchEncoder::encode(&mut bytes, [&record], &options).unwrap();
    bytes.freeze()
}

/// Answers a fetch with an error code and records for each partition asked for.
fn fetch_answer(incoming: &Incoming, tell: impl Fn(i32, i64) -> (i16, Option<Bytes>)) -> Reply {
    let request: FetchRequest = incoming.decode();
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            let (code, records) = tell(asked.partition, asked.fetch_offset);
            PartitionData::default()
                .with_partition_index(asked.partition)
                .with_error_code(code)
                .with_high_watermark(100)
                .with_records(Some(records.unwrap_or_default()))
        });
        FetchableTopicResponse::default()
            .with_topic(topic.topic)
            .with_topic_id(topic.topic_id)
            .with_partitions(partitions.collect())
    });
    incoming.answer(&FetchResponse::default().with_responses(topics.collect()))
}

fn nothing_fetched(incoming: &Incoming) -> Reply {
    // A broker without new records answers late.
    std::thread::sleep(Duration::from_millis(20));
    fetch_answer(incoming, |_, _| (0, None))
}

fn commit_answer(incoming: &Incoming, code: impl Fn(i32) -> i16) -> Reply {
    let request: OffsetCommitRequest = incoming.decode();
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            OffsetCommitResponsePartition::default()
                .with_partition_index(asked.partition_index)
                .with_error_code(code(asked.partition_index))
        });
        OffsetCommitResponseTopic::default()
            .with_name(topic.name)
            .with_partitions(partitions.collect())
    });
    incoming.answer(&OffsetCommitResponse::default().with_topics(topics.collect()))
}

/// A group with one member and two partitions, committed at 50.
fn usual(incoming: &Incoming, address: SocketAddr) -> Reply {
    match incoming.api {
        ApiKey::ApiVersions => incoming.answer(&incoming.versions()),
        ApiKey::Metadata => incoming.answer(&incoming.metadata(address, 2)),
        ApiKey::FindCoordinator => incoming.answer(
            &FindCoordinatorResponse::default()
                .with_node_id(BrokerId(1))
                .with_host(StrBytes::from_string(address.ip().to_string()))
                .with_port(i32::from(address.port())),
        ),
        ApiKey::JoinGroup => {
            let request: JoinGroupRequest = incoming.decode();
            let me = StrBytes::from_static_str("me");
            let member = JoinGroupResponseMember::default()
                .with_member_id(me.clone())
                .with_metadata(request.protocols[0].metadata.clone());
            incoming.answer(
                &JoinGroupResponse::default()
                    .with_generation_id(1)
                    .with_protocol_name(Some(request.protocols[0].name.clone()))
                    .with_leader(me.clone())
                    .with_member_id(me)
                    .with_members(vec![member]),
            )
        }
        ApiKey::SyncGroup => {
            let request: SyncGroupRequest = incoming.decode();
            let assignment = request.assignments[0].assignment.clone();
            incoming.answer(&SyncGroupResponse::default().with_assignment(assignment))
        }
        ApiKey::Heartbeat => incoming.answer(&HeartbeatResponse::default()),
        ApiKey::LeaveGroup => incoming.answer(&LeaveGroupResponse::default()),
        ApiKey::OffsetFetch => incoming.committed(50),
        ApiKey::ListOffsets => {
            let request: ListOffsetsRequest = incoming.decode();
            let topics = request.topics.into_iter().map(|topic| {
                let partitions = topic.partitions.iter().map(|asked| {
                    ListOffsetsPartitionResponse::default()
                        .with_partition_index(asked.partition_index)
                        .with_offset(7)
                });
                ListOffsetsTopicResponse::default()
                    .with_name(topic.name)
                    .with_partitions(partitions.collect())
            });
            incoming.answer(&ListOffsetsResponse::default().with_topics(topics.collect()))
        }
        // One record at the committed offset, then nothing.
        ApiKey::Fetch => {
            let request: FetchRequest = incoming.decode();
            let mut asked = request.topics.iter().flat_map(|topic| &topic.partitions);
            if asked.any(|asked| asked.fetch_offset == 50) {
                fetch_answer(incoming, |_, at| (0, (at == 50).then(|| batch(50))))
            } else {
                nothing_fetched(incoming)
            }
        }
        ApiKey::OffsetCommit => commit_answer(incoming, |_| 0),
        other => panic!("unexpected {other:?}"),
    }
}

/// The usual broker, except where `special` returns a reply.
fn broker(
    special: impl Fn(&Incoming, SocketAddr) -> Option<Reply> + Send + Sync + 'static,
) -> FakeBroker {
    FakeBroker::start(move |incoming, address| {
        special(incoming, address).unwrap_or_else(|| usual(incoming, address))
    })
}

fn consumer(broker: &FakeBroker, hooks: Box<dyn ConsumerHooks>) -> Consumer {
    start(broker, ConsumerConfig::new("g", ["t"]), hooks)
}

fn start(broker: &FakeBroker, config: ConsumerConfig, hooks: Box<dyn ConsumerHooks>) -> Consumer {
    let client = ClientConfig {
        brokers: vec![broker.address()],
        ..ClientConfig::default()
    };
    Consumer::start(Cluster::new(client), config, hooks).unwrap()
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(5))
}

/// Polls until there are `count` records. Returns their (partition, offset), in order.
fn read(consumer: &mut Consumer, count: usize) -> Vec<(i32, i64)> {
    let give_up = Instant::now() + Duration::from_secs(10);
    let mut records = Vec::new();
    while records.len() < count {
        assert!(Instant::now() < give_up, "{records:?}");
        let polled = consumer.poll(Deadline::after(Duration::from_millis(200)));
        records.extend(polled.unwrap_or_default());
    }
    let mut read: Vec<(i32, i64)> = records
        .iter()
        .map(|record| (record.partition, record.offset))
        .collect();
    read.sort_unstable();
    read
}

/// Two partitions, both led by the first node; there is a second one.
fn two_nodes(incoming: &Incoming, first: SocketAddr, second: SocketAddr) -> MetadataResponse {
    let mut metadata = incoming.metadata(first, 2);
    metadata.brokers.push(
        MetadataResponseBroker::default()
            .with_node_id(BrokerId(2))
            .with_host(StrBytes::from_string(second.ip().to_string()))
            .with_port(i32::from(second.port())),
    );
    metadata
}

#[test]
fn a_silent_leader_does_not_hold_up_another_ones_records() {
    let silent = broker(|incoming, _| (incoming.api == ApiKey::Fetch).then_some(Reply::Silence));
    let silent_address: SocketAddr = silent.address().parse().unwrap();
    let first = broker(move |incoming, address| {
        if incoming.api != ApiKey::Metadata {
            return None;
        }
        let mut metadata = two_nodes(incoming, address, silent_address);
        for topic in &mut metadata.topics {
            topic.partitions[1].leader_id = BrokerId(2);
        }
        Some(incoming.answer(&metadata))
    });
    let mut consumer = consumer(&first, Box::new(()));
    let start = Instant::now();
    let records = consumer
        .poll(Deadline::after(Duration::from_secs(60)))
        .unwrap();
    assert_eq!((records.len(), records[0].partition), (1, 0));
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    consumer.close(soon()).unwrap();
}

#[test]
fn a_broker_that_moved_to_another_address_is_read_on_there() {
    let address: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
    let node = |holds: i64| {
        let current = Arc::clone(&address);
        broker(move |incoming, own| match incoming.api {
            ApiKey::Metadata => {
                let current = lock(&current).unwrap_or(own);
                Some(incoming.answer(&incoming.metadata(current, 2)))
            }
            ApiKey::Fetch => {
                let request: FetchRequest = incoming.decode();
                let mut asked = request.topics.iter().flat_map(|topic| &topic.partitions);
                let has_some = asked.any(|asked| asked.fetch_offset == holds);
                Some(match has_some {
                    true => fetch_answer(incoming, |_, at| (0, (at == holds).then(|| batch(at)))),
                    false => nothing_fetched(incoming),
                })
            }
            _ => None,
        })
    };
    let (old, new) = (node(50), node(51));
    let client = ClientConfig {
        brokers: vec![old.address(), new.address()],
        ..ClientConfig::default()
    };
    let config = ConsumerConfig::new("g", ["t"]);
    let mut consumer = Consumer::start(Cluster::new(client), config, Box::new(())).unwrap();
    assert_eq!(read(&mut consumer, 2), [(0, 50), (1, 50)]);
    *lock(&address) = Some(new.address().parse().unwrap());
    drop(old);
    assert_eq!(read(&mut consumer, 2), [(0, 51), (1, 51)]);
    // The member leaves the coordinator, which was that broker, at its new address, too.
    consumer.close(soon()).unwrap();
}

#[test]
fn the_connection_to_a_node_that_leads_nothing_any_more_is_closed() {
    let second = broker(|incoming, _| {
        let request: FetchRequest = match incoming.api {
            ApiKey::Fetch => incoming.decode(),
            _ => return None,
        };
        let is_new = request.topics[0].partitions[0].fetch_offset > 50;
        let not_leader = ErrorCode::NotLeaderOrFollower.code();
        is_new.then(|| fetch_answer(incoming, |_, _| (not_leader, None)))
    });
    let second_address: SocketAddr = second.address().parse().unwrap();
    let has_moved = Arc::new(AtomicBool::new(false));
    let moved = has_moved.clone();
    let first = broker(move |incoming, address| {
        if incoming.api != ApiKey::Metadata {
            return None;
        }
        let mut metadata = two_nodes(incoming, address, second_address);
        for topic in &mut metadata.topics {
            match moved.load(Ordering::SeqCst) {
                true => topic.partitions[1].leader_epoch = 1,
                false => topic.partitions[1].leader_id = BrokerId(2),
            }
        }
        Some(incoming.answer(&metadata))
    });
    let client = ClientConfig {
        brokers: vec![first.address()],
        connections_max_idle: Duration::from_millis(300),
        ..ClientConfig::default()
    };
    let config = ConsumerConfig::new("g", ["t"]);
    let mut consumer = Consumer::start(Cluster::new(client), config, Box::new(())).unwrap();
    assert_eq!(read(&mut consumer, 2), [(0, 50), (1, 50)]);
    second.wait_for_connections(1);
    has_moved.store(true, Ordering::SeqCst);
    let given_up = Deadline::after(Duration::from_secs(10));
    while second.connections() > 0 {
        assert!(!given_up.is_past(), "still connected");
        let _ = consumer.poll(Deadline::after(Duration::from_millis(50)));
    }
    consumer.close(soon()).unwrap();
}

#[test]
fn an_offset_that_is_gone_is_reset_by_the_policy() {
    let broker = broker(|incoming, _| {
        (incoming.api == ApiKey::Fetch).then(|| {
            fetch_answer(incoming, |_, at| match at {
                50 => (1, None),
                7 => (0, Some(batch(7))),
                _ => (0, None),
            })
        })
    });
    let mut consumer = consumer(&broker, Box::new(()));
    assert_eq!(read(&mut consumer, 2), [(0, 7), (1, 7)]);
    consumer.close(soon()).unwrap();
}

#[test]
fn a_log_that_was_cut_short_is_read_again_from_there() {
    let broker = broker(|incoming, _| {
        if incoming.api != ApiKey::Fetch {
            return None;
        }
        let request: FetchRequest = incoming.decode();
        let asked = &request.topics[0].partitions[0];
        // The records before 51 are of epoch 0; the new leader's log diverges at 45.
        if (asked.fetch_offset, asked.last_fetched_epoch) != (51, 0) {
            return Some(fetch_answer(incoming, |_, at| match at {
                45 | 50 => (0, Some(batch(at))),
                _ => (0, None),
            }));
        }
        let parted = EpochEndOffset::default().with_epoch(1).with_end_offset(45);
        let topics = request.topics.into_iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|asked| {
                PartitionData::default()
                    .with_partition_index(asked.partition)
                    .with_diverging_epoch(parted.clone())
            });
            FetchableTopicResponse::default()
                .with_topic(topic.topic)
                .with_partitions(partitions.collect())
        });
        Some(incoming.answer(&FetchResponse::default().with_responses(topics.collect())))
    });
    let mut consumer = consumer(&broker, Box::new(()));
    assert_eq!(read(&mut consumer, 2), [(0, 50), (1, 50)]);
    assert_eq!(read(&mut consumer, 2), [(0, 45), (1, 45)]);
    consumer.close(soon()).unwrap();
}

#[test]
fn a_paused_partition_gives_nothing_and_is_not_fetched_until_it_is_resumed() {
    let fetched: Arc<Mutex<Vec<i32>>> = Arc::default();
    let log = fetched.clone();
    let broker = broker(move |incoming, _| {
        if incoming.api == ApiKey::Fetch {
            let request: FetchRequest = incoming.decode();
            let asked = request.topics.iter().flat_map(|topic| &topic.partitions);
            lock(&log).extend(asked.map(|asked| asked.partition));
        }
        None
    });
    let mut consumer = consumer(&broker, Box::new(()));
    let paused = [TopicPartition::new("t", 1)];
    while consumer.assignment().is_empty() {
        consumer
            .idle(Deadline::after(Duration::from_millis(10)))
            .unwrap();
    }
    consumer.pause(&paused);
    assert_eq!(consumer.paused(), paused);
    assert_eq!(read(&mut consumer, 1), [(0, 50)]);
    consumer.seek(&TopicPartition::new("t", 0), 50).unwrap();
    assert_eq!(read(&mut consumer, 1), [(0, 50)]);
    assert!(!lock(&fetched).contains(&1));
    consumer.resume(&paused);
    assert_eq!(read(&mut consumer, 1), [(1, 50)]);
    consumer.close(soon()).unwrap();
}

#[test]
fn what_paused_partitions_hold_counts_and_gives_way_to_the_others() {
    let two = |at| Bytes::from([batch(at), batch(at + 1)].concat());
    let bytes = two(0).len();
    // The partition that is asked for first fills the answer to its limit.
    let broker = broker(move |incoming, address| match incoming.api {
        ApiKey::Metadata => Some(incoming.answer(&incoming.metadata(address, 8))),
        ApiKey::Fetch => {
            let request: FetchRequest = incoming.decode();
            let first = request.topics[0].partitions[0].partition;
            Some(fetch_answer(incoming, |partition, at| {
                (0, (partition == first).then(|| two(at)))
            }))
        }
        _ => None,
    });
    let mut config = ConsumerConfig::new("g", ["t"]);
    config.max_poll_records = 1;
    config.fetch_max_bytes = i32::try_from(bytes).unwrap();
    let mut consumer = start(&broker, config, Box::new(()));
    let mut paused = Vec::new();
    while paused.len() < 7 {
        let (partition, offset) = read(&mut consumer, 1)[0];
        assert_eq!(offset, 50);
        paused.push(TopicPartition::new("t", partition));
        consumer.pause(&paused);
        let held = consumer.fetcher.held_bytes();
        assert!((bytes..=2 * bytes).contains(&held), "{held}");
    }
    let (last, _) = read(&mut consumer, 1)[0];
    assert_eq!(read(&mut consumer, 3), [51, 52, 53].map(|at| (last, at)));
    // Dropped records are fetched again.
    consumer.pause(&[TopicPartition::new("t", last)]);
    for partition in paused {
        consumer.resume(std::slice::from_ref(&partition));
        assert_eq!(read(&mut consumer, 1), [(partition.partition, 51)]);
        consumer.pause(&[partition]);
    }
    consumer.close(soon()).unwrap();
}

#[test]
fn seeking_to_an_end_of_the_log_asks_where_it_is() {
    let broker = broker(|incoming, _| {
        (incoming.api == ApiKey::Fetch).then(|| {
            fetch_answer(incoming, |_, at| {
                (0, [7, 50].contains(&at).then(|| batch(at)))
            })
        })
    });
    let mut consumer = consumer(&broker, Box::new(()));
    assert_eq!(read(&mut consumer, 2), [(0, 50), (1, 50)]);
    let partition = TopicPartition::new("t", 1);
    consumer.seek_to_beginning(std::slice::from_ref(&partition));
    assert_eq!(consumer.position(&partition), None);
    assert_eq!(read(&mut consumer, 1), [(1, 7)]);
    // As after a seek to an offset.
    assert_eq!(consumer.committed(&partition), Some(&50.into()));
    consumer.rewind();
    assert_eq!(consumer.position(&partition), Some(50));
    consumer.close(soon()).unwrap();
}

#[test]
fn a_partition_that_came_back_is_not_committed_for_what_was_read_before() {
    let broker = broker(|incoming, _| match incoming.api {
        ApiKey::OffsetFetch => Some(Reply::Silence),
        ApiKey::OffsetCommit => panic!("committed"),
        _ => None,
    });
    let mut consumer = consumer(&broker, Box::new(()));
    while consumer.assignment().is_empty() {
        consumer
            .idle(Deadline::after(Duration::from_millis(10)))
            .unwrap();
    }
    let refused = consumer.commit(&[(TopicPartition::new("t", 0), 51)], soon());
    assert!(matches!(refused, Err(CommitError::Lost)), "{refused:?}");
    consumer.close(soon()).unwrap();
}

#[test]
fn a_moved_leader_and_garbled_answers_are_got_over() {
    let (fetches, metadata) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = metadata.clone();
    let broker = broker(move |incoming, _| {
        if incoming.api == ApiKey::Metadata {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        if incoming.api != ApiKey::Fetch {
            return None;
        }
        match fetches.fetch_add(1, Ordering::SeqCst) {
            // Not the leader; a storage error; a fenced epoch.
            0 => Some(fetch_answer(incoming, |_, _| (6, None))),
            1 => Some(fetch_answer(incoming, |_, _| (56, None))),
            2 => Some(fetch_answer(incoming, |_, _| (74, None))),
            // An answer to another request, a truncated answer, a false claim.
            3 => Some(Reply::Bytes(framed(&[9; 40]))),
            4 => Some(Reply::BytesThenClose(vec![0, 0, 1, 0, 0])),
            5 => Some(Reply::Bytes(vec![0x7f, 0xff, 0xff, 0xff])),
            // Damaged records.
            6 => Some(fetch_answer(incoming, |_, at| {
                let mut bytes = batch(at).to_vec();
                bytes[65] ^= 1;
                (0, Some(bytes.into()))
            })),
            _ => None,
        }
    });
    let mut consumer = consumer(&broker, Box::new(()));
    assert_eq!(read(&mut consumer, 2), [(0, 50), (1, 50)]);
    assert!(metadata.load(Ordering::SeqCst) > 3);
    consumer.close(soon()).unwrap();
}

#[test]
fn a_partition_refused_within_a_good_commit_answer_is_noticed() {
    let asked: Arc<Mutex<Vec<usize>>> = Arc::default();
    let log = asked.clone();
    let broker = broker(move |incoming, _| {
        (incoming.api == ApiKey::OffsetCommit).then(|| {
            let request: OffsetCommitRequest = incoming.decode();
            let mut log = lock(&log);
            log.push(request.topics[0].partitions.len());
            // "Metadata too large", for the second partition only, the first time.
            let code = if log.len() == 1 { 12 } else { 0 };
            commit_answer(incoming, |partition| if partition == 1 { code } else { 0 })
        })
    });
    let mut consumer = consumer(&broker, Box::new(()));
    read(&mut consumer, 2);
    let refused = consumer.commit_polled(soon());
    assert!(
        matches!(refused, Err(CommitError::Refused(_))),
        "{refused:?}"
    );
    consumer.commit_polled(soon()).unwrap();
    consumer.commit_polled(soon()).unwrap();
    // Only the refused offset is committed again, and afterwards nothing.
    assert_eq!(*lock(&asked), [2, 1]);
    consumer.close(soon()).unwrap();
}

#[test]
fn a_commit_looks_for_a_coordinator_that_has_moved() {
    let (commits, lookups) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let seen = lookups.clone();
    let broker = broker(move |incoming, _| {
        if incoming.api == ApiKey::FindCoordinator {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        if incoming.api != ApiKey::OffsetCommit {
            return None;
        }
        match commits.fetch_add(1, Ordering::SeqCst) {
            0 => Some(commit_answer(incoming, |_| 16)),
            1 => Some(Reply::BytesThenClose(Vec::new())),
            2 => Some(commit_answer(incoming, |_| 14)),
            _ => None,
        }
    });
    let mut consumer = consumer(&broker, Box::new(()));
    read(&mut consumer, 2);
    consumer.commit_polled(soon()).unwrap();
    assert!(lookups.load(Ordering::SeqCst) >= 3);
    consumer.close(soon()).unwrap();
}

#[derive(Clone, Default)]
struct Journal(Arc<Mutex<Vec<(&'static str, usize)>>>);

impl ConsumerHooks for Journal {
    fn assigned(&self, added: &[TopicPartition]) {
        lock(&self.0).push(("assigned", added.len()));
    }

    fn revoked(&self, partitions: &[TopicPartition]) {
        lock(&self.0).push(("revoked", partitions.len()));
    }

    fn lost(&self, partitions: &[TopicPartition]) {
        lock(&self.0).push(("lost", partitions.len()));
    }

    fn topic_replaced(&self, partitions: &[TopicPartition]) {
        lock(&self.0).push(("replaced", partitions.len()));
    }
}

#[test]
fn a_forgotten_member_loses_its_partitions_and_joins_as_a_new_one() {
    let joined_as: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = joined_as.clone();
    let forgotten = OnceLock::new();
    let broker = broker(move |incoming, _| match incoming.api {
        ApiKey::JoinGroup => {
            let request: JoinGroupRequest = incoming.decode();
            lock(&log).push(request.member_id.to_string());
            None
        }
        ApiKey::Heartbeat if forgotten.set(()).is_ok() => {
            Some(incoming.answer(&HeartbeatResponse::default().with_error_code(25)))
        }
        _ => None,
    });
    let journal = Journal::default();
    let mut consumer = consumer(&broker, Box::new(journal.clone()));
    assert_eq!(read(&mut consumer, 2), [(0, 50), (1, 50)]);
    // Nothing was committed, so the records come again.
    assert_eq!(read(&mut consumer, 2), [(0, 50), (1, 50)]);
    assert_eq!(
        *lock(&journal.0),
        [("assigned", 2), ("lost", 2), ("assigned", 2)]
    );
    assert_eq!(*lock(&joined_as), ["", ""]);
    consumer.close(soon()).unwrap();
}

#[test]
fn every_poll_reports_a_group_that_refuses_permanently() {
    let broker = broker(|incoming, _| {
        (incoming.api == ApiKey::JoinGroup)
            .then(|| incoming.answer(&JoinGroupResponse::default().with_error_code(30)))
    });
    let mut consumer = consumer(&broker, Box::new(()));
    for _ in 0..2 {
        let error = consumer.poll(soon()).unwrap_err();
        assert!(!error.is_transient(), "{error}");
    }
    consumer.close(soon()).unwrap();
}

#[test]
fn a_commit_refused_by_a_rebalance_is_made_up_for_before_the_member_leaves() {
    let asked: Arc<Mutex<Vec<ApiKey>>> = Arc::default();
    let log = asked.clone();
    let broker = broker(move |incoming, _| {
        if !matches!(incoming.api, ApiKey::OffsetCommit | ApiKey::LeaveGroup) {
            return None;
        }
        let mut log = lock(&log);
        log.push(incoming.api);
        let is_first = log.len() == 1;
        is_first.then(|| commit_answer(incoming, |_| ErrorCode::RebalanceInProgress.code()))
    });
    let mut consumer = consumer(&broker, Box::new(()));
    read(&mut consumer, 2);
    let refused = consumer.commit_polled(soon());
    assert!(
        matches!(refused, Err(CommitError::Rebalancing)),
        "{refused:?}"
    );
    // No poll follows.
    consumer.close(soon()).unwrap();
    assert_eq!(
        *lock(&asked),
        [
            ApiKey::OffsetCommit,
            ApiKey::OffsetCommit,
            ApiKey::LeaveGroup
        ]
    );
}

#[test]
fn a_member_that_leaves_looks_for_a_coordinator_that_has_moved() {
    let elsewhere = |incoming: &Incoming| {
        let code = ErrorCode::NotCoordinator.code();
        incoming.answer(&LeaveGroupResponse::default().with_error_code(code))
    };
    let leave_requests = Arc::new(AtomicUsize::new(0));
    let count = leave_requests.clone();
    let new = broker(move |incoming, _| {
        let is_leaving = incoming.api == ApiKey::LeaveGroup;
        // At first it does not know that it is the coordinator.
        let is_early = is_leaving && count.fetch_add(1, Ordering::SeqCst) == 0;
        is_early.then(|| elsewhere(incoming))
    });
    let new_address: SocketAddr = new.address().parse().unwrap();
    let has_moved = AtomicBool::new(false);
    let old = broker(move |incoming, _| match incoming.api {
        ApiKey::LeaveGroup => {
            has_moved.store(true, Ordering::SeqCst);
            Some(elsewhere(incoming))
        }
        ApiKey::FindCoordinator if has_moved.load(Ordering::SeqCst) => {
            Some(usual(incoming, new_address))
        }
        _ => None,
    });
    let mut consumer = consumer(&old, Box::new(()));
    read(&mut consumer, 2);
    consumer.close(soon()).unwrap();
    assert_eq!(leave_requests.load(Ordering::SeqCst), 2);
}

#[test]
fn a_backlog_is_not_held_up_by_a_partition_that_is_read_to_its_end() {
    let broker = broker(|incoming, _| {
        (incoming.api == ApiKey::Fetch).then(|| {
            let request: FetchRequest = incoming.decode();
            let partitions = || request.topics.iter().flat_map(|topic| &topic.partitions);
            if !partitions().any(|asked| asked.partition == 0) {
                // A broker waits this long for records when it has none.
                let wait = u64::try_from(request.max_wait_ms).unwrap();
                std::thread::sleep(Duration::from_millis(wait));
            }
            // More than one poll takes.
            let two = |at| [batch(at), batch(at + 1)].concat().into();
            fetch_answer(incoming, |partition, at| {
                (0, (partition == 0).then(|| two(at)))
            })
        })
    });
    let mut config = ConsumerConfig::new("g", ["t"]);
    config.fetch_max_wait = Duration::from_secs(3);
    config.max_poll_records = 1;
    let mut consumer = start(&broker, config, Box::new(()));
    let begun = Instant::now();
    read(&mut consumer, 20);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    consumer.close(soon()).unwrap();
}
