//! The whole producer with its threads, against a broker with faults.

mod library;
mod topics;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use crate::ApiKey;
use crate::ErrorCode;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    ApiVersionsResponse, BrokerId, InitProducerIdResponse, ProduceRequest, ProduceResponse,
    ProducerId, SaslAuthenticateResponse, SaslHandshakeResponse,
};
use kafka_protocol::records::RecordBatchDecoder;

use bytes::Bytes;

use super::*;
use crate::config::ClientConfig;
use crate::fake_broker::{FakeBroker, Incoming, Reply};
use crate::security::{Sasl, SaslMechanism};

fn in_ms(ms: u64) -> Deadline {
    Deadline::after(Duration::from_millis(ms))
}

/// A broker that answers all requests except Produce.
fn broker(produce: impl Fn(&Incoming) -> Reply + Send + Sync + 'static) -> FakeBroker {
    FakeBroker::start(move |incoming, address| match incoming.api {
        ApiKey::Produce => produce(incoming),
        _ => peaceful(incoming, address),
    })
}

fn peaceful(incoming: &Incoming, address: SocketAddr) -> Reply {
    match incoming.api {
        ApiKey::ApiVersions => incoming.answer(&incoming.versions()),
        ApiKey::Metadata => incoming.answer(&incoming.metadata(address, 1)),
        ApiKey::InitProducerId => {
            let id = ProducerId(7);
            incoming.answer(&InitProducerIdResponse::default().with_producer_id(id))
        }
        other => panic!("a producer does not ask {other:?}"),
    }
}

pub(super) fn written(incoming: &Incoming, error: i16, offset: i64) -> ProduceResponse {
    let request: ProduceRequest = incoming.decode();
    let topics = request.topic_data.into_iter().map(|topic| {
        let partitions = topic.partition_data.iter().map(|partition| {
            PartitionProduceResponse::default()
                .with_index(partition.index)
                .with_error_code(error)
                .with_base_offset(offset)
        });
        TopicProduceResponse::default()
            .with_name(topic.name)
            .with_topic_id(topic.topic_id)
            .with_partition_responses(partitions.collect())
    });
    ProduceResponse::default().with_responses(topics.collect())
}

/// The batch of a request that has one.
fn batch(incoming: &Incoming) -> Bytes {
    let request: ProduceRequest = incoming.decode();
    assert_eq!(request.acks, -1);
    assert_eq!(request.topic_data.len(), 1);
    assert_eq!(request.topic_data[0].partition_data.len(), 1);
    let records = request.topic_data[0].partition_data[0].records.clone();
    records.unwrap()
}

fn start_at(
    addresses: Vec<String>,
    config: ProducerConfig,
    hooks: Arc<dyn ProducerHooks>,
) -> Producer {
    let cluster = Cluster::new(ClientConfig {
        brokers: addresses,
        ..ClientConfig::default()
    });
    Producer::start(cluster, config, hooks).unwrap()
}

fn start(broker: &FakeBroker) -> Producer {
    start_at(
        vec![broker.address()],
        ProducerConfig::default(),
        Arc::new(()),
    )
}

fn record(value: &str) -> Record {
    Record::new("t", Some("key".into()), Some(Bytes::from(value.to_owned())))
}

fn publish(producer: &Producer, value: &str, deadline: Deadline) -> Outcome {
    producer.publish(vec![record(value)], deadline).remove(0)
}

#[test]
fn a_lost_answer_leads_to_the_same_bytes_once_more() {
    let seen: Arc<Mutex<Vec<Bytes>>> = Arc::default();
    let log = Arc::clone(&seen);
    let broker = broker(move |incoming| {
        let mut seen = lock(&log);
        seen.push(batch(incoming));
        if seen.len() == 1 {
            return Reply::BytesThenClose(Vec::new());
        }
        incoming.answer(&written(incoming, 0, 5))
    });
    let producer = start(&broker);
    let metadata = publish(&producer, "v", in_ms(10_000)).unwrap();
    assert_eq!(metadata.offset, Some(5));
    producer.close(in_ms(5000)).unwrap();
    let seen = lock(&seen);
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0], seen[1]);
    let records = RecordBatchDecoder::decode(&mut seen[0].clone())
        .unwrap()
        .records;
    assert_eq!((records[0].producer_id, records[0].sequence), (7, 0));
}

#[test]
fn full_batches_are_under_way_together_and_settled_in_order() {
    let (all_handed_over, wait) = std::sync::mpsc::channel();
    let wait = Mutex::new(wait);
    let held: Mutex<(usize, Vec<u8>)> = Mutex::default();
    let broker = FakeBroker::start(move |incoming, address| match incoming.api {
        ApiKey::InitProducerId => {
            lock(&wait).recv().unwrap();
            peaceful(incoming, address)
        }
        // After the first answer, none before three more requests.
        ApiKey::Produce => {
            let (count, answers) = &mut *lock(&held);
            answers.extend(incoming.frame(&written(incoming, 0, *count as i64)));
            *count += 1;
            match *count {
                2..4 => Reply::Silence,
                _ => Reply::Bytes(std::mem::take(answers)),
            }
        }
        _ => peaceful(incoming, address),
    });
    let config = ProducerConfig {
        batch_bytes: 1000,
        ..ProducerConfig::default()
    };
    let producer = start_at(vec![broker.address()], config, Arc::new(()));
    // No batch has room for two of them.
    let records = (0..5).map(|_| record(&"x".repeat(700)));
    let pending: Vec<Pending> = records
        .map(|record| producer.send(record, in_ms(10_000)).unwrap())
        .collect();
    all_handed_over.send(()).unwrap();
    let outcomes = pending.into_iter().map(|one| one.wait(in_ms(10_000)));
    let offsets: Vec<_> = outcomes.map(|outcome| outcome.unwrap().offset).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4].map(Some));
}

#[test]
fn a_throttled_producer_sends_nothing_until_the_time_is_over() {
    const THROTTLE: Duration = Duration::from_millis(400);
    let seen: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let log = Arc::clone(&seen);
    let broker = broker(move |incoming| {
        lock(&log).push(Instant::now());
        let answer = written(incoming, 0, 0).with_throttle_time_ms(400);
        incoming.answer(&answer)
    });
    let config = ProducerConfig {
        request_timeout: THROTTLE / 2,
        ..ProducerConfig::default()
    };
    let producer = start_at(vec![broker.address()], config, Arc::new(()));
    for _ in 0..2 {
        publish(&producer, "v", in_ms(10_000)).unwrap();
    }
    let seen = lock(&seen);
    assert_eq!(seen.len(), 2);
    assert!(seen[1] - seen[0] >= THROTTLE);
}

#[test]
fn a_broker_of_old_is_spoken_to_in_its_own_versions() {
    let broker = FakeBroker::start(|incoming, address| match incoming.api {
        ApiKey::ApiVersions => {
            let old = [
                (ApiKey::Produce, 3),
                (ApiKey::Metadata, 4),
                (ApiKey::InitProducerId, 0),
            ];
            let keys = old.map(|(api, max)| {
                ApiVersion::default()
                    .with_api_key(api as i16)
                    .with_max_version(max)
            });
            incoming.answer(&ApiVersionsResponse::default().with_api_keys(keys.to_vec()))
        }
        ApiKey::Produce => {
            assert_eq!(incoming.version, 3);
            incoming.answer(&written(incoming, 0, 0))
        }
        _ => peaceful(incoming, address),
    });
    publish(&start(&broker), "v", in_ms(10_000)).unwrap();
}

#[test]
fn a_silent_broker_means_possibly_sent_at_the_deadline() {
    let broker = broker(|_| Reply::Silence);
    let producer = start(&broker);
    let started = Instant::now();
    let error = publish(&producer, "v", in_ms(500)).unwrap_err();
    assert_eq!(error.certainty, Certainty::MaybeSent);
    assert!(error.is_transient());
    // This one waits behind the first, so it was not sent.
    let error = publish(&producer, "w", in_ms(300)).unwrap_err();
    assert_eq!(error.certainty, Certainty::NotSent);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn all_is_found_out_before_the_first_record_comes() {
    let (asked, questions) = std::sync::mpsc::channel();
    let broker = FakeBroker::start(move |incoming, address| {
        asked.send(incoming.api).unwrap();
        match incoming.api {
            ApiKey::Produce => incoming.answer(&written(incoming, 0, 0)),
            _ => peaceful(incoming, address),
        }
    });
    let config = ProducerConfig {
        topics: vec!["t".to_owned()],
        ..ProducerConfig::default()
    };
    let producer = start_at(vec![broker.address()], config, Arc::new(()));
    let next = || questions.recv_timeout(Duration::from_secs(10)).unwrap();
    // Three connections: for metadata, for the producer id, and to the leader.
    let mut before: Vec<ApiKey> = (0..5).map(|_| next()).collect();
    before.sort_by_key(|api| *api as i16);
    let (versions, metadata) = (ApiKey::ApiVersions, ApiKey::Metadata);
    let identity = ApiKey::InitProducerId;
    assert_eq!(before, [metadata, versions, versions, versions, identity]);
    publish(&producer, "v", in_ms(10_000)).unwrap();
    assert_eq!(next(), ApiKey::Produce);
}

#[test]
fn warming_up_waits_for_what_the_first_record_needs_also_after_connections_were_closed() {
    let asked: Arc<Mutex<Vec<ApiKey>>> = Arc::default();
    let has_topic = Arc::new(AtomicBool::new(false));
    let (log, is_there) = (Arc::clone(&asked), Arc::clone(&has_topic));
    let broker = FakeBroker::start(move |incoming, address| {
        lock(&log).push(incoming.api);
        match incoming.api {
            ApiKey::Produce => incoming.answer(&written(incoming, 0, 0)),
            ApiKey::Metadata if !is_there.load(Ordering::SeqCst) => {
                let mut metadata = incoming.metadata(address, 0);
                for topic in &mut metadata.topics {
                    topic.error_code = ErrorCode::UnknownTopicOrPartition.code();
                }
                incoming.answer(&metadata)
            }
            _ => peaceful(incoming, address),
        }
    });
    let cluster = Cluster::new(ClientConfig {
        brokers: vec![broker.address()],
        connections_max_idle: Duration::from_millis(500),
        ..ClientConfig::default()
    });
    let config = ProducerConfig {
        topics: vec!["t".to_owned()],
        ..ProducerConfig::default()
    };
    let producer = Producer::start(cluster, config, Arc::new(())).unwrap();
    let error = producer.warm_up(in_ms(100)).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopicOrPartition));
    has_topic.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        producer.warm_up(in_ms(10_000)).unwrap();
        let before = lock(&asked).len();
        publish(&producer, "v", in_ms(10_000)).unwrap();
        assert_eq!(lock(&asked)[before..], [ApiKey::Produce]);
        // The remaining connection is for metadata.
        broker.wait_for_connections(1);
    }
    producer.close(in_ms(5000)).unwrap();
    assert!(matches!(producer.warm_up(in_ms(100)), Err(Error::Closed)));
}

#[test]
fn a_broker_that_moved_is_found_at_its_new_address() {
    let address: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
    let node = || {
        let current = Arc::clone(&address);
        FakeBroker::start(move |incoming, own| match incoming.api {
            ApiKey::Metadata => {
                let current = lock(&current).unwrap_or(own);
                incoming.answer(&incoming.metadata(current, 1))
            }
            ApiKey::Produce => incoming.answer(&written(incoming, 0, 0)),
            _ => peaceful(incoming, own),
        })
    };
    let (old, new) = (node(), node());
    let addresses = vec![old.address(), new.address()];
    let producer = start_at(addresses, ProducerConfig::default(), Arc::new(()));
    publish(&producer, "v", in_ms(10_000)).unwrap();
    *lock(&address) = Some(new.address().parse().unwrap());
    drop(old);
    publish(&producer, "w", in_ms(10_000)).unwrap();
}

#[test]
fn a_silent_first_address_does_not_hide_the_second() {
    let silent = FakeBroker::start(|_, _| Reply::Silence);
    let broker = broker(|incoming| incoming.answer(&written(incoming, 0, 0)));
    let addresses = vec![silent.address(), broker.address()];
    let producer = start_at(addresses, ProducerConfig::default(), Arc::new(()));
    publish(&producer, "v", in_ms(10_000)).unwrap();
}

#[test]
fn without_a_broker_records_are_not_sent_and_the_error_has_the_reason() {
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let producer = start_at(vec![address], ProducerConfig::default(), Arc::new(()));
    let error = publish(&producer, "v", in_ms(500)).unwrap_err();
    assert_eq!(error.certainty, Certainty::NotSent);
    assert!(error.to_string().contains("cannot reach"), "{error}");
    let started = Instant::now();
    producer.close(in_ms(1000)).unwrap();
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[test]
fn what_waits_for_a_repeated_login_that_is_refused_is_not_sent() {
    let is_refused = Arc::new(AtomicBool::new(false));
    let refused = Arc::clone(&is_refused);
    let broker = FakeBroker::start(move |incoming, address| match incoming.api {
        ApiKey::SaslHandshake => incoming.answer(&SaslHandshakeResponse::default()),
        ApiKey::SaslAuthenticate => {
            let code = match refused.load(Ordering::SeqCst) {
                true => ErrorCode::SaslAuthenticationFailed.code(),
                false => 0,
            };
            let answer = SaslAuthenticateResponse::default().with_error_code(code);
            incoming.answer(&answer.with_session_lifetime_ms(100))
        }
        ApiKey::Produce => panic!("sent without a login"),
        _ => peaceful(incoming, address),
    });
    let mut config = ClientConfig::new([broker.address()]);
    config.security.sasl = Some(Sasl::Password {
        mechanism: SaslMechanism::Plain,
        username: "ann".to_owned(),
        password: "hunter2".to_owned(),
    });
    let cluster = Cluster::new(config);
    let config = ProducerConfig {
        topics: vec!["t".to_owned()],
        ..ProducerConfig::default()
    };
    let producer = Producer::start(cluster, config, Arc::new(())).unwrap();
    producer.warm_up(in_ms(10_000)).unwrap();
    is_refused.store(true, Ordering::SeqCst);
    // The sessions expire.
    std::thread::sleep(Duration::from_millis(100));
    let error = publish(&producer, "v", in_ms(3000)).unwrap_err();
    assert_eq!(error.certainty, Certainty::NotSent);
    let cause = error.cause;
    assert!(matches!(cause, Error::Authentication { .. }), "{cause}");
}

#[test]
fn the_delivery_timeout_ends_a_record_in_time_whatever_its_deadline() {
    // One record waits for its topic's partitions, the other one for an answer.
    let unreachable = "127.0.0.1:1".to_owned();
    let silent = broker(|_| Reply::Silence);
    for (address, certainty) in [
        (unreachable, Certainty::NotSent),
        (silent.address(), Certainty::MaybeSent),
    ] {
        let config = ProducerConfig {
            topics: vec!["t".to_owned()],
            delivery_timeout: Duration::from_millis(300),
            request_timeout: Duration::from_millis(100),
            ..ProducerConfig::default()
        };
        let producer = start_at(vec![address], config, Arc::new(()));
        let started = Instant::now();
        let error = publish(&producer, "v", in_ms(20_000)).unwrap_err();
        assert_eq!(error.certainty, certainty);
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(290), "{took:?}");
        assert!(took < Duration::from_millis(900), "{took:?}");
    }
}

#[test]
fn a_full_buffer_makes_the_next_one_wait_until_its_deadline() {
    let broker = broker(|_| Reply::Silence);
    let config = ProducerConfig {
        buffer_bytes: 1000,
        ..ProducerConfig::default()
    };
    let producer = start_at(vec![broker.address()], config, Arc::new(()));
    let first = producer
        .send(record(&"x".repeat(800)), in_ms(10_000))
        .unwrap();
    let error = producer.send(record("y"), in_ms(200)).err().unwrap();
    assert_eq!(error.certainty, Certainty::NotSent);
    assert!(error.to_string().contains("room"), "{error}");
    drop(producer);
    let error = first.wait(in_ms(0)).unwrap_err();
    assert_eq!(error.certainty, Certainty::MaybeSent);
}

#[test]
fn what_would_wait_or_fail_is_not_tried() {
    let broker = broker(|incoming| incoming.answer(&written(incoming, 0, 5)));
    let config = ProducerConfig {
        buffer_bytes: 1000,
        record_bytes: 900,
        ..ProducerConfig::default()
    };
    let producer = start_at(vec![broker.address()], config, Arc::new(()));
    let refused = producer.try_send(record("v"), in_ms(10_000)).err().unwrap();
    assert_eq!(*refused.record, record("v"));
    // The topic is known from here on.
    publish(&producer, "v", in_ms(10_000)).unwrap();
    let pending = producer.try_send(record("v"), in_ms(10_000)).unwrap();
    assert_eq!(pending.wait(in_ms(10_000)).unwrap().offset, Some(5));
    let large = record(&"x".repeat(901));
    assert!(producer.try_send(large, in_ms(10_000)).is_err());
    drop(broker);
    let _first = producer.try_send(record(&"x".repeat(800)), in_ms(10_000));
    let second = record(&"x".repeat(800));
    assert!(producer.try_send(second, in_ms(10_000)).is_err());
    producer.close(in_ms(0)).unwrap_err();
    let refused = producer.try_send(record("v"), in_ms(10_000)).err().unwrap();
    assert_eq!(*refused.record, record("v"));
}

#[test]
fn a_topic_that_is_only_tried_becomes_known() {
    let broker = broker(|incoming| incoming.answer(&written(incoming, 0, 5)));
    let producer = start(&broker);
    publish(&producer, "v", in_ms(10_000)).unwrap();
    // Until no thread has anything to do.
    std::thread::sleep(Duration::from_millis(700));
    let give_up = in_ms(5000);
    let pending = loop {
        assert!(!give_up.is_past());
        let record = Record::new("other", None, None);
        match producer.try_send(record, in_ms(10_000)) {
            Ok(pending) => break pending,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    pending.wait(in_ms(10_000)).unwrap();
}

#[test]
fn a_record_larger_than_the_limit_is_refused_at_once() {
    let broker = broker(|_| Reply::Silence);
    let producer = start(&broker);
    let error = producer
        .send(record(&"x".repeat(16 << 20)), in_ms(1000))
        .err()
        .unwrap();
    assert!(error.is_too_large() && error.is_fault_of_record());
    assert_eq!(error.certainty, Certainty::NotSent);
    assert!(!error.is_transient());
}

#[derive(Default)]
struct Counted {
    settled: Mutex<HashMap<bool, usize>>,
    requests: Mutex<Vec<usize>>,
    repeated: Mutex<Vec<usize>>,
}

impl ProducerHooks for Counted {
    fn record_settled(&self, topic: &str, _: Duration, outcome: &Outcome) {
        assert_eq!(topic, "t");
        *lock(&self.settled).entry(outcome.is_ok()).or_default() += 1;
    }

    fn records_repeated(&self, topic: &str, records: usize) {
        assert_eq!(topic, "t");
        lock(&self.repeated).push(records);
    }

    fn request_ended(&self, node: i32, records: usize, bytes: usize, _: Result<(), &Error>) {
        assert_eq!(node, 1);
        assert!(bytes > 60);
        lock(&self.requests).push(records);
    }
}

#[test]
fn hooks_hear_of_every_record_once_and_of_gathered_requests() {
    let broker = broker(|incoming| {
        // A slow request, during which the next records gather.
        std::thread::sleep(Duration::from_millis(20));
        incoming.answer(&written(incoming, 0, 0))
    });
    let hooks = Arc::new(Counted::default());
    let producer = start_at(
        vec![broker.address()],
        ProducerConfig::default(),
        Arc::clone(&hooks) as Arc<dyn ProducerHooks>,
    );
    publish(&producer, "first", in_ms(10_000)).unwrap();
    let records = (0..100).map(|number| record(&number.to_string())).collect();
    for outcome in producer.publish(records, in_ms(10_000)) {
        outcome.unwrap();
    }
    producer.close(in_ms(5000)).unwrap();
    assert_eq!(lock(&hooks.settled).get(&true), Some(&101));
    assert_eq!(lock(&hooks.settled).get(&false), None);
    let requests = lock(&hooks.requests);
    assert_eq!(requests.iter().sum::<usize>(), 101);
    assert!(requests.len() <= 10, "{requests:?}");
    assert!(lock(&hooks.repeated).is_empty());
}

#[test]
fn hooks_hear_of_records_that_are_sent_again() {
    let attempts = AtomicI32::new(0);
    let broker = broker(
        move |incoming| match attempts.fetch_add(1, Ordering::SeqCst) {
            // Refused: not enough replicas.
            0 => incoming.answer(&written(incoming, 19, -1)),
            // No answer.
            1 => Reply::BytesThenClose(Vec::new()),
            _ => incoming.answer(&written(incoming, 0, 0)),
        },
    );
    let hooks = Arc::new(Counted::default());
    let producer = start_at(
        vec![broker.address()],
        ProducerConfig::default(),
        Arc::clone(&hooks) as Arc<dyn ProducerHooks>,
    );
    publish(&producer, "once", in_ms(10_000)).unwrap();
    producer.close(in_ms(5000)).unwrap();
    assert_eq!(*lock(&hooks.repeated), [1, 1]);
}

/// Nodes 1 and 2; the test decides which one leads.
fn two_nodes(incoming: &Incoming, addresses: &[SocketAddr], leader: i32) -> Reply {
    use kafka_protocol::messages::BrokerId;
    use kafka_protocol::messages::metadata_response::MetadataResponseBroker;
    let mut metadata = incoming.metadata(addresses[0], 1);
    let nodes = addresses.iter().zip(1..).map(|(address, id)| {
        MetadataResponseBroker::default()
            .with_node_id(BrokerId(id))
            .with_host(address.ip().to_string().into())
            .with_port(i32::from(address.port()))
    });
    metadata.brokers = nodes.collect();
    for topic in &mut metadata.topics {
        topic.partitions[0].leader_id = BrokerId(leader);
        topic.partitions[0].leader_epoch = leader;
    }
    incoming.answer(&metadata)
}

#[test]
fn a_moved_leader_gets_the_same_bytes_and_the_order_is_kept() {
    let leader = Arc::new(AtomicI32::new(1));
    let addresses: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
    let seen: Arc<Mutex<Vec<(i32, Bytes)>>> = Arc::default();
    let node = |id: i32| {
        let (leader, addresses, seen) = (
            Arc::clone(&leader),
            Arc::clone(&addresses),
            Arc::clone(&seen),
        );
        FakeBroker::start(move |incoming, address| match incoming.api {
            ApiKey::Metadata => {
                two_nodes(incoming, &lock(&addresses), leader.load(Ordering::SeqCst))
            }
            ApiKey::Produce => {
                let mut seen = lock(&seen);
                seen.push((id, batch(incoming)));
                if id != 2 {
                    // It has just resigned; the other node leads.
                    leader.store(2, Ordering::SeqCst);
                    return incoming.answer(&written(incoming, 6, -1));
                }
                incoming.answer(&written(incoming, 0, 0))
            }
            _ => peaceful(incoming, address),
        })
    };
    let brokers = [node(1), node(2)];
    *lock(&addresses) = brokers
        .iter()
        .map(|broker| broker.address().parse().unwrap())
        .collect();
    let producer = start(&brokers[0]);
    let first = producer.send(record("a"), in_ms(10_000)).unwrap();
    let second = producer.send(record("b"), in_ms(10_000)).unwrap();
    first.wait(in_ms(10_000)).unwrap();
    second.wait(in_ms(10_000)).unwrap();
    producer.close(in_ms(5000)).unwrap();
    // The former leader may have received both before it answered; only the requests to the new
    // leader count.
    let seen = lock(&seen);
    let batches = |node| {
        let asked = seen.iter().filter(move |(id, _)| *id == node);
        asked.map(|(_, batch)| batch.clone())
    };
    assert_eq!(batches(1).next(), batches(2).next());
    let values: Vec<_> = batches(2)
        .flat_map(|mut batch| RecordBatchDecoder::decode(&mut batch).unwrap().records)
        .map(|record| record.value.unwrap())
        .collect();
    assert_eq!(values, ["a", "b"]);
}

#[test]
fn an_idle_connection_is_closed_and_the_next_record_opens_another() {
    let broker = broker(|incoming| incoming.answer(&written(incoming, 0, 0)));
    let cluster = Cluster::new(ClientConfig {
        brokers: vec![broker.address()],
        connections_max_idle: Duration::from_millis(50),
        ..ClientConfig::default()
    });
    let producer = Producer::start(cluster, ProducerConfig::default(), Arc::new(())).unwrap();
    for value in ["first", "second"] {
        publish(&producer, value, in_ms(10_000)).unwrap();
        // The remaining connection is for metadata.
        broker.wait_for_connections(1);
    }
    producer.close(in_ms(5000)).unwrap();
}

#[test]
fn what_waited_for_the_former_leaders_answer_leaves_to_the_new_leader_at_once() {
    let has_moved = Arc::new(AtomicBool::new(false));
    let moved = Arc::clone(&has_moved);
    let (release, held) = std::sync::mpsc::channel();
    let held = Mutex::new(Some(held));
    let broker = FakeBroker::start(move |incoming, address| match incoming.api {
        // Both nodes have this address.
        ApiKey::Metadata => {
            let mut metadata = incoming.metadata(address, 1);
            let mut second = metadata.brokers[0].clone();
            second.node_id = BrokerId(2);
            metadata.brokers.push(second);
            if moved.load(Ordering::SeqCst) {
                let partitions = metadata.topics.iter_mut().flat_map(|it| &mut it.partitions);
                partitions.for_each(|it| {
                    it.leader_id = BrokerId(2);
                    it.leader_epoch = 1;
                });
            }
            incoming.answer(&metadata)
        }
        ApiKey::Produce => {
            let first = lock(&held).take();
            if let Some(held) = first {
                held.recv().unwrap();
            }
            incoming.answer(&written(incoming, 0, 0))
        }
        _ => peaceful(incoming, address),
    });
    let producer = start(&broker);
    let first = producer.send(record("a"), in_ms(60_000)).unwrap();
    let is_sent = || producer.shared.state().records.is_in_flight();
    while !is_sent() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let second = producer.send(record("b"), in_ms(60_000)).unwrap();
    has_moved.store(true, Ordering::SeqCst);
    producer.shared.state().records.doubt_leaders();
    producer.shared.metadata_wakeup.notify_one();
    while producer.shared.state().records.leader_nodes() != [2].into() {
        std::thread::sleep(Duration::from_millis(1));
    }
    // The new leader's thread has looked, and sleeps.
    std::thread::sleep(Duration::from_millis(300));
    release.send(()).unwrap();
    first.wait(in_ms(5000)).unwrap();
    second.wait(in_ms(5000)).unwrap();
    producer.close(in_ms(5000)).unwrap();
}
