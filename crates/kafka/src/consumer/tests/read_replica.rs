//! Records fetched from the replica that the leader names (KIP-392).

use super::*;
use crate::group::protocol::Subscription;

/// The fetches that a broker got: partition, offset, epoch of the record before it.
type Fetches = Arc<Mutex<Vec<(i32, i64, i32)>>>;

/// Two nodes. The first one leads, and names the second one when it is asked for offset 50. From 51
/// on it serves records itself. It knows the consumer's rack.
struct Stage {
    leader: FakeBroker,
    replica: FakeBroker,
    from_leader: Fetches,
    from_replica: Fetches,
}

impl Stage {
    /// `replica` answers fetches at the second node.
    fn new(replica: impl Fn(&Incoming) -> Option<Reply> + Send + Sync + 'static) -> Self {
        let (from_leader, from_replica) = (Fetches::default(), Fetches::default());
        let log = from_replica.clone();
        let second = broker(move |incoming, _| {
            if incoming.api != ApiKey::Fetch {
                return None;
            }
            note(&log, incoming);
            replica(incoming)
        });
        let second_address: SocketAddr = second.address().parse().unwrap();
        let log = from_leader.clone();
        let first = broker(move |incoming, address| match incoming.api {
            ApiKey::Metadata => {
                Some(incoming.answer(&two_nodes(incoming, address, second_address)))
            }
            ApiKey::JoinGroup => {
                let request: JoinGroupRequest = incoming.decode();
                let subscription = request.protocols[0].metadata.clone();
                let subscription = Subscription::decode(subscription).unwrap();
                assert_eq!(subscription.rack.as_deref(), Some("b"));
                None
            }
            ApiKey::Fetch => {
                note(&log, incoming);
                Some(named(incoming, BrokerId(2)))
            }
            _ => None,
        });
        Self {
            leader: first,
            replica: second,
            from_leader,
            from_replica,
        }
    }

    fn consumer(&self, metadata_max_age: Duration) -> Consumer {
        let client = ClientConfig {
            brokers: vec![self.leader.address()],
            metadata_max_age,
            ..ClientConfig::default()
        };
        let mut config = ConsumerConfig::new("g", ["t"]);
        config.client_rack = Some("b".to_owned());
        Consumer::start(Cluster::new(client), config, Box::new(())).unwrap()
    }
}

fn note(log: &Fetches, incoming: &Incoming) {
    let request: FetchRequest = incoming.decode();
    assert_eq!(&*request.rack_id, "b");
    let asked = request.topics.iter().flat_map(|topic| &topic.partitions);
    let asked = asked.map(|it| (it.partition, it.fetch_offset, it.last_fetched_epoch));
    lock(log).extend(asked);
}

/// The leader's answer: the replica for offset 50, the record for 51, and nothing after it.
fn named(incoming: &Incoming, replica: BrokerId) -> Reply {
    let request: FetchRequest = incoming.decode();
    let mut asked = request.topics.iter().flat_map(|topic| &topic.partitions);
    if asked.all(|asked| asked.fetch_offset > 51) {
        return nothing_fetched(incoming);
    }
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            let records = (asked.fetch_offset == 51).then(|| batch(51));
            let answer = PartitionData::default()
                .with_partition_index(asked.partition)
                .with_high_watermark(100)
                .with_records(Some(records.unwrap_or_default()));
            match asked.fetch_offset {
                50 => answer.with_preferred_read_replica(replica),
                _ => answer,
            }
        });
        FetchableTopicResponse::default()
            .with_topic(topic.topic)
            .with_topic_id(topic.topic_id)
            .with_partitions(partitions.collect())
    });
    incoming.answer(&FetchResponse::default().with_responses(topics.collect()))
}

const LONG: Duration = Duration::from_secs(300);

#[test]
fn records_come_from_the_replica_that_the_leader_names() {
    let stage = Stage::new(|incoming| {
        let request: FetchRequest = incoming.decode();
        let mut asked = request.topics.iter().flat_map(|topic| &topic.partitions);
        match asked.any(|asked| asked.fetch_offset < 53) {
            true => Some(fetch_answer(incoming, |_, at| {
                (0, (at < 53).then(|| batch(at)))
            })),
            false => None,
        }
    });
    let mut consumer = stage.consumer(LONG);
    let expected = [0, 1].map(|partition| [50, 51, 52].map(|at| (partition, at)));
    assert_eq!(read(&mut consumer, 6), expected.concat());
    let from_leader = lock(&stage.from_leader).clone();
    assert!(
        from_leader.iter().all(|(_, at, _)| *at == 50),
        "{from_leader:?}"
    );
    // A replica that lags behind would take an epoch for a log that was cut short.
    let from_replica = lock(&stage.from_replica).clone();
    assert!(from_replica.contains(&(0, 51, -1)), "{from_replica:?}");
    consumer.close(soon()).unwrap();
}

#[test]
fn a_replica_that_errs_is_given_up_for_the_leader_and_resets_nothing() {
    use ErrorCode as E;
    let codes = [
        E::OffsetOutOfRange,
        E::NotLeaderOrFollower,
        E::ReplicaNotAvailable,
        E::UnknownTopicOrPartition,
        E::KafkaStorageError,
        E::FencedLeaderEpoch,
    ];
    for code in codes.map(Some).into_iter().chain([None]) {
        let stage = Stage::new(move |incoming| {
            let request: FetchRequest = incoming.decode();
            let mut asked = request.topics.iter().flat_map(|topic| &topic.partitions);
            match (asked.any(|asked| asked.fetch_offset == 50), code) {
                (true, _) => None,
                (false, Some(code)) => Some(fetch_answer(incoming, |_, _| (code.code(), None))),
                (false, None) => Some(Reply::BytesThenClose(Vec::new())),
            }
        });
        let mut consumer = stage.consumer(LONG);
        assert_eq!(read(&mut consumer, 2), [(0, 50), (1, 50)], "{code:?}");
        assert_eq!(read(&mut consumer, 2), [(0, 51), (1, 51)], "{code:?}");
        let from_leader = lock(&stage.from_leader).clone();
        assert!(
            from_leader.contains(&(0, 51, 0)),
            "{code:?} {from_leader:?}"
        );
        consumer.close(soon()).unwrap();
    }
}

#[test]
fn the_leader_is_asked_again_when_the_metadata_is_old() {
    let stage = Stage::new(|incoming| {
        let request: FetchRequest = incoming.decode();
        let mut asked = request.topics.iter().flat_map(|topic| &topic.partitions);
        // It never has a record at 51.
        let is_new = !asked.any(|asked| asked.fetch_offset == 50);
        is_new.then(|| nothing_fetched(incoming))
    });
    let mut consumer = stage.consumer(Duration::from_millis(100));
    assert_eq!(read(&mut consumer, 4), [(0, 50), (0, 51), (1, 50), (1, 51)]);
    assert!(stage.replica.connections() > 0);
    consumer.close(soon()).unwrap();
}

#[test]
fn a_replica_that_lags_behind_resets_nothing_while_the_partition_has_no_leader() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    let has_leader = Arc::new(AtomicBool::new(true));
    let leads = has_leader.clone();
    let replica = broker(move |incoming, _| {
        let request: FetchRequest = match incoming.api {
            ApiKey::Fetch => incoming.decode(),
            _ => return None,
        };
        let mut asked = request.topics.iter().flat_map(|topic| &topic.partitions);
        if asked.any(|asked| asked.fetch_offset == 50) {
            return None;
        }
        let _ = lock(&held).recv();
        Some(fetch_answer(incoming, |_, _| (1, None)))
    });
    let replica_address: SocketAddr = replica.address().parse().unwrap();
    let leader = broker(move |incoming, address| match incoming.api {
        ApiKey::Metadata => {
            let mut metadata = two_nodes(incoming, address, replica_address);
            if !leads.load(Ordering::SeqCst) {
                let partitions = metadata.topics.iter_mut().flat_map(|it| &mut it.partitions);
                partitions.for_each(|it| {
                    it.leader_id = BrokerId(-1);
                    it.leader_epoch = 1;
                });
            }
            Some(incoming.answer(&metadata))
        }
        ApiKey::Fetch => Some(named(incoming, BrokerId(2))),
        ApiKey::ListOffsets => panic!("reset"),
        _ => None,
    });
    let client = ClientConfig {
        brokers: vec![leader.address()],
        ..ClientConfig::default()
    };
    let mut config = ConsumerConfig::new("g", ["t"]);
    config.client_rack = Some("b".to_owned());
    let mut consumer = Consumer::start(Cluster::new(client), config, Box::new(())).unwrap();
    assert_eq!(read(&mut consumer, 2), [(0, 50), (1, 50)]);
    has_leader.store(false, Ordering::SeqCst);
    consumer.reading.want_metadata();
    let partition = TopicPartition::new("t", 0);
    let give_up = soon();
    while consumer.reading.cluster.leader("t", 0).is_some() {
        assert!(!give_up.is_past());
        let _ = consumer.poll(Deadline::after(Duration::from_millis(50)));
    }
    drop(release);
    for _ in 0..5 {
        let _ = consumer.poll(Deadline::after(Duration::from_millis(50)));
    }
    assert_eq!(consumer.position(&partition), Some(51));
}
