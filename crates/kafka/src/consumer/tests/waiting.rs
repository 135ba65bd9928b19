//! Long polls: what they must notice although nothing wakes them.

use super::*;

/// Whether this is the first call.
fn is_first(seen: &OnceLock<()>) -> bool {
    seen.set(()).is_ok()
}

#[test]
fn a_long_poll_gives_up_a_leader_or_coordinator_that_does_not_answer() {
    for api in [ApiKey::Fetch, ApiKey::ListOffsets, ApiKey::OffsetFetch] {
        let seen = OnceLock::new();
        let broker = broker(move |incoming, _| {
            let is_silent = incoming.api == api && is_first(&seen);
            is_silent.then_some(Reply::Silence)
        });
        let client = ClientConfig {
            brokers: vec![broker.address()],
            request_timeout: Duration::from_millis(300),
            ..ClientConfig::default()
        };
        let config = ConsumerConfig::new("g", ["t"]);
        let mut consumer = Consumer::start(Cluster::new(client), config, Box::new(())).unwrap();
        let until = Deadline::after(Duration::from_secs(8));
        if api == ApiKey::ListOffsets {
            read(&mut consumer, 2);
            let partitions = consumer.assignment();
            consumer.seek_to_beginning(&partitions);
            consumer.poll_to(&partitions[0], 7, until).unwrap();
        } else {
            assert!(!consumer.poll(until).unwrap().is_empty(), "{api:?}");
        }
        assert!(!until.is_past(), "{api:?}");
        consumer.close(soon()).unwrap();
    }
}

#[test]
fn a_long_poll_notices_topics_that_appear() {
    let is_there = Arc::new(AtomicBool::new(false));
    let exists = is_there.clone();
    let broker = broker(move |incoming, address| {
        let request: MetadataRequest = match incoming.api {
            ApiKey::Metadata => incoming.decode(),
            _ => return None,
        };
        let exists = exists.load(Ordering::SeqCst);
        let mut metadata = incoming.metadata(address, 2);
        if request.topics.is_none() && exists {
            let topic =
                kafka_protocol::messages::metadata_response::MetadataResponseTopic::default();
            metadata.topics = vec![topic.with_name(Some(crate::wire::topic_name("t")))];
        }
        if !exists {
            for topic in &mut metadata.topics {
                topic.error_code = ErrorCode::UnknownTopicOrPartition.code();
                topic.partitions.clear();
            }
        }
        Some(incoming.answer(&metadata))
    });
    let named = ConsumerConfig::new("g", ["t"]);
    let mut filtered = ConsumerConfig::new("g", [] as [&str; 0]);
    filtered.topic_filter = Some(TopicFilter::new(|topic| topic == "t"));
    for config in [named, filtered] {
        is_there.store(false, Ordering::SeqCst);
        let client = ClientConfig {
            brokers: vec![broker.address()],
            metadata_max_age: Duration::from_millis(300),
            ..ClientConfig::default()
        };
        let mut consumer = Consumer::start(Cluster::new(client), config, Box::new(())).unwrap();
        let _ = consumer.poll(Deadline::after(Duration::from_millis(500)));
        let appears = is_there.clone();
        let creator = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(500));
            appears.store(true, Ordering::SeqCst);
        });
        let begun = Instant::now();
        let records = consumer
            .poll(Deadline::after(Duration::from_secs(8)))
            .unwrap();
        assert!(!records.is_empty(), "after {:?}", begun.elapsed());
        creator.join().unwrap();
        consumer.close(soon()).unwrap();
    }
}

#[test]
fn a_leader_that_changes_during_a_rebalance_is_found() {
    let second = broker(|incoming, _| {
        (incoming.api == ApiKey::Fetch)
            .then(|| fetch_answer(incoming, |_, at| (0, (at == 51).then(|| batch(51)))))
    });
    let second_address: SocketAddr = second.address().parse().unwrap();
    let has_moved = Arc::new(AtomicBool::new(false));
    let moved = has_moved.clone();
    let (joins, heartbeat) = (AtomicUsize::new(0), OnceLock::new());
    let first = broker(move |incoming, address| {
        let is_moved = moved.load(Ordering::SeqCst);
        match incoming.api {
            ApiKey::Metadata => {
                let mut metadata = two_nodes(incoming, address, second_address);
                for topic in metadata.topics.iter_mut().filter(|_| is_moved) {
                    for partition in &mut topic.partitions {
                        partition.leader_id = BrokerId(2);
                        partition.leader_epoch = 1;
                    }
                }
                Some(incoming.answer(&metadata))
            }
            // Another member takes its time.
            ApiKey::JoinGroup if joins.fetch_add(1, Ordering::SeqCst) > 0 => Some(Reply::Silence),
            ApiKey::Heartbeat if is_moved && is_first(&heartbeat) => {
                let code = ErrorCode::RebalanceInProgress.code();
                Some(incoming.answer(&HeartbeatResponse::default().with_error_code(code)))
            }
            ApiKey::Fetch if is_moved => {
                let code = ErrorCode::NotLeaderOrFollower.code();
                Some(fetch_answer(incoming, |_, _| (code, None)))
            }
            _ => None,
        }
    });
    let mut consumer = consumer(&first, Box::new(()));
    assert_eq!(read(&mut consumer, 2), [(0, 50), (1, 50)]);
    has_moved.store(true, Ordering::SeqCst);
    while !consumer.rebalance_pending() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(read(&mut consumer, 2), [(0, 51), (1, 51)]);
    assert!(consumer.rebalance_pending());
}
