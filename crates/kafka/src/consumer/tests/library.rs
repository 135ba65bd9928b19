//! What programs expect of a consumer that they choose as a library.

use std::sync::atomic::AtomicI64;

use kafka_protocol::messages::fetch_response::AbortedTransaction;

use super::*;

/// The requests that a broker got.
type Journal = Arc<Mutex<Vec<ApiKey>>>;

fn journal(
    reply: impl Fn(&Incoming, SocketAddr) -> Option<Reply> + Send + Sync + 'static,
) -> (FakeBroker, Journal) {
    let journal = Journal::default();
    let log = journal.clone();
    let broker = broker(move |incoming, address| {
        lock(&log).push(incoming.api);
        reply(incoming, address)
    });
    (broker, journal)
}

fn number(partition: i32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

fn cluster(broker: &FakeBroker) -> Cluster {
    Cluster::new(ClientConfig {
        brokers: vec![broker.address()],
        ..ClientConfig::default()
    })
}

#[test]
fn assigned_partitions_are_read_from_where_the_application_says_without_a_group() {
    let (broker, journal) = journal(|incoming, _| {
        (incoming.api == ApiKey::Fetch).then(|| {
            std::thread::sleep(Duration::from_millis(5));
            fetch_answer(incoming, |_, at| {
                (0, matches!(at, 7 | 50).then(|| batch(at)))
            })
        })
    });
    let config = ConsumerConfig::without_group();
    // The broker answers every look-up of an offset with 7.
    let start = [
        (number(0), StartAt::Offset(50)),
        (number(1), StartAt::Timestamp(99)),
    ];
    let mut consumer =
        Consumer::start_assigned(cluster(&broker), config, start, Box::new(())).unwrap();
    assert_eq!(read(&mut consumer, 2), [(0, 50), (1, 7)]);
    let refused = consumer.commit_polled(soon()).unwrap_err();
    assert!(refused.to_string().contains("group_id"), "{refused}");
    let moved = consumer.assign([(number(1), StartAt::Beginning)]);
    assert!(moved.unwrap());
    assert_eq!(
        consumer.position(&number(1)),
        Some(8),
        "a known partition goes on"
    );
    consumer.close(soon()).unwrap();
    let asked = lock(&journal);
    let groups = [ApiKey::JoinGroup, ApiKey::Heartbeat, ApiKey::OffsetCommit];
    assert!(!asked.iter().any(|api| groups.contains(api)), "{asked:?}");
}

#[test]
fn a_consumer_without_a_membership_begins_at_and_commits_to_its_group() {
    let (broker, journal) = journal(|_, _| None);
    let mut config = ConsumerConfig::without_group();
    config.group_id = "g".to_owned();
    let start = [(number(0), StartAt::Committed)];
    let mut consumer =
        Consumer::start_assigned(cluster(&broker), config, start, Box::new(())).unwrap();
    assert_eq!(read(&mut consumer, 1), [(0, 50)]);
    assert_eq!(consumer.committed(&number(0)).unwrap().offset, 50);
    consumer.commit_polled(soon()).unwrap();
    assert_eq!(consumer.committed(&number(0)).unwrap().offset, 51);
    assert!(!lock(&journal).contains(&ApiKey::JoinGroup));
}

#[test]
fn a_negative_offset_is_refused_and_changes_nothing() {
    let (broker, journal) = journal(|_, _| None);
    let start = |at| {
        let config = ConsumerConfig::without_group();
        let start = [(number(0), StartAt::Offset(at))];
        Consumer::start_assigned(cluster(&broker), config, start, Box::new(()))
    };
    let mut consumer = start(7).unwrap();
    let refusals = [
        start(-7).map(drop),
        consumer
            .assign([(number(1), StartAt::Offset(-7))])
            .map(drop),
        consumer.seek(&number(0), -7).map(drop),
        crate::Admin::new(cluster(&broker))
            .alter_group_offsets("g", &[(number(0), -7)].into(), soon())
            .map(drop),
    ];
    for refusal in refusals {
        let error = refusal.unwrap_err();
        assert!(error.to_string().contains("-7"), "{error}");
        assert!(!error.is_transient());
    }
    assert_eq!(consumer.assignment(), [number(0)]);
    assert_eq!(consumer.position(&number(0)), Some(7));
    assert!(lock(&journal).is_empty(), "nothing was sent");
}

#[test]
fn a_consumer_without_a_membership_commits_without_waiting_and_repeats_what_failed() {
    let commits = AtomicUsize::new(0);
    let (broker, journal) = journal(move |incoming, _| {
        let is_commit = incoming.api == ApiKey::OffsetCommit;
        // Another broker coordinates the group at first.
        let is_first = is_commit && commits.fetch_add(1, Ordering::SeqCst) == 0;
        let code = ErrorCode::NotCoordinator.code();
        is_first.then(|| commit_answer(incoming, |_| code))
    });
    let mut config = ConsumerConfig::without_group();
    config.group_id = "g".to_owned();
    let start = [(number(0), StartAt::Committed)];
    let mut consumer =
        Consumer::start_assigned(cluster(&broker), config, start, Box::new(())).unwrap();
    read(&mut consumer, 1);
    let commit = consumer.commit_async(&[(number(0), 51)], soon()).unwrap();
    assert_eq!(commit.result().map(|it| it.is_ok()), None);
    let give_up = soon();
    while consumer.committed(&number(0)).unwrap().offset < 51 {
        assert!(!give_up.is_past());
        consumer
            .idle(Deadline::after(Duration::from_millis(20)))
            .unwrap();
    }
    let refused = commit.result().unwrap().unwrap_err();
    assert!(refused.is_transient(), "{refused}");
    // An answer that nobody has polled for is awaited by close.
    let last = consumer.commit_async(&[(number(0), 52)], soon()).unwrap();
    consumer.close(soon()).unwrap();
    assert!(last.result().unwrap().is_ok());
    let asked = lock(&journal);
    let count = |wanted| asked.iter().filter(|api| **api == wanted).count();
    assert_eq!(count(ApiKey::OffsetCommit), 3);
}

/// Commits when partitions are about to go.
struct CommitFirst;

impl ConsumerHooks for CommitFirst {
    fn revoking(&self, rebalance: &mut Rebalance<'_>, partitions: &[TopicPartition]) {
        assert_eq!(partitions.len(), 2);
        rebalance.commit_polled(soon()).unwrap();
    }
}

#[test]
fn the_application_can_commit_before_it_gives_partitions_up() {
    let (broker, journal) = journal(|_, _| None);
    let mut consumer = consumer(&broker, Box::new(CommitFirst));
    read(&mut consumer, 2);
    consumer.close(soon()).unwrap();
    let asked = lock(&journal);
    let place = |wanted| asked.iter().position(|api| *api == wanted);
    assert!(
        place(ApiKey::OffsetCommit) < place(ApiKey::LeaveGroup),
        "{asked:?}"
    );
    assert!(place(ApiKey::OffsetCommit).is_some());
}

/// Panics whenever partitions are about to go, and notes the hooks that are called afterwards.
#[derive(Clone, Default)]
struct PanicsFirst(Arc<Mutex<Vec<(&'static str, usize)>>>);

impl ConsumerHooks for PanicsFirst {
    fn assigned(&self, added: &[TopicPartition]) {
        lock(&self.0).push(("assigned", added.len()));
    }
    fn revoking(&self, _: &mut Rebalance<'_>, _: &[TopicPartition]) {
        panic!("a bug in a hook");
    }
    fn revoked(&self, partitions: &[TopicPartition]) {
        lock(&self.0).push(("revoked", partitions.len()));
    }
}

#[test]
fn a_panic_in_a_consumers_hook_ends_the_poll_and_the_membership_goes_on() {
    let (must_move, syncs) = (Arc::new(AtomicBool::new(false)), AtomicUsize::new(0));
    let moves = must_move.clone();
    let broker = broker(move |incoming, _| match incoming.api {
        ApiKey::Heartbeat if moves.swap(false, Ordering::SeqCst) => {
            let code = ErrorCode::RebalanceInProgress.code();
            Some(incoming.answer(&HeartbeatResponse::default().with_error_code(code)))
        }
        // The second round takes a partition away, and the third one gives it back.
        ApiKey::SyncGroup if syncs.fetch_add(1, Ordering::SeqCst) == 1 => {
            let assignment = crate::group::protocol::encode_assignment(&[number(1)]);
            Some(incoming.answer(&SyncGroupResponse::default().with_assignment(assignment)))
        }
        _ => None,
    });
    let mut config = ConsumerConfig::new("g", ["t"]);
    config.heartbeat_interval = Duration::from_millis(50);
    let hooks = PanicsFirst::default();
    let mut consumer = start(&broker, config, Box::new(hooks.clone()));
    read(&mut consumer, 2);
    must_move.store(true, Ordering::SeqCst);
    let give_up = soon();
    let panics = |consumer: &mut Consumer| {
        let poll = std::panic::AssertUnwindSafe(|| {
            consumer.poll(Deadline::after(Duration::from_millis(50)))
        });
        std::panic::catch_unwind(poll).is_err()
    };
    while !panics(&mut consumer) {
        assert!(!give_up.is_past());
    }
    assert_eq!(consumer.assignment(), [number(1)]);
    while consumer.assignment().len() < 2 {
        assert!(!give_up.is_past());
        assert!(!panics(&mut consumer));
    }
    let closing = std::panic::AssertUnwindSafe(|| consumer.close(soon()));
    assert!(std::panic::catch_unwind(closing).is_err());
    let expected = [
        ("assigned", 2),
        ("revoked", 1),
        ("assigned", 0),
        ("assigned", 1),
        ("revoked", 2),
    ];
    assert_eq!(*lock(&hooks.0), expected);
}

#[test]
fn a_negative_offset_is_refused_before_anything_is_sent() {
    let (broker, journal) = journal(|_, _| None);
    let mut consumer = consumer(&broker, Box::new(()));
    read(&mut consumer, 2);
    let refused = consumer.commit(&[(number(0), -7)], soon()).unwrap_err();
    assert!(
        refused.to_string().contains("t-0 has no offset -7"),
        "{refused}"
    );
    assert!(!lock(&journal).contains(&ApiKey::OffsetCommit));
    consumer.close(soon()).unwrap();
}

#[test]
fn a_commit_that_was_only_sent_gets_its_result_from_a_later_poll() {
    let broker = broker(|incoming, _| {
        let refuses = |partition| match partition {
            0 => 0,
            _ => ErrorCode::OffsetMetadataTooLarge.code(),
        };
        (incoming.api == ApiKey::OffsetCommit).then(|| commit_answer(incoming, refuses))
    });
    let mut consumer = consumer(&broker, Box::new(()));
    read(&mut consumer, 2);
    for (partition, is_accepted) in [(0, true), (1, false)] {
        let commit = consumer
            .commit_async(&[(number(partition), 51)], soon())
            .unwrap();
        let give_up = soon();
        while commit.result().is_none() {
            assert!(!give_up.is_past());
            consumer
                .idle(Deadline::after(Duration::from_millis(20)))
                .unwrap();
        }
        assert_eq!(commit.result().unwrap().is_ok(), is_accepted);
    }
    assert_eq!(consumer.committed(&number(0)).unwrap().offset, 51);
    consumer.close(soon()).unwrap();
}

#[test]
fn a_member_that_nobody_keeps_alive_hands_out_and_commits_nothing_more() {
    let (broker, _) = journal(|_, _| None);
    let mut consumer = consumer(&broker, Box::new(()));
    read(&mut consumer, 1);
    consumer.member.as_ref().unwrap().shared.die();
    let error = consumer.poll(soon()).unwrap_err();
    assert!(matches!(error, Error::Panicked { .. }), "{error}");
    assert_eq!(consumer.assignment(), []);
    let refused = consumer.commit_polled(soon());
    assert!(refused.is_ok(), "nothing is left to commit: {refused:?}");
}

#[derive(Debug)]
struct Panicking;

impl crate::ClientHooks for Panicking {
    fn request_ended(&self, _: ApiKey, _: Option<Duration>) {
        panic!("a bug in a hook");
    }
}

#[test]
fn a_panic_in_a_hook_stops_no_thread_of_the_client() {
    let broker = broker(|_, _| None);
    let client = ClientConfig {
        brokers: vec![broker.address()],
        hooks: Arc::new(Panicking),
        ..ClientConfig::default()
    };
    let config = ConsumerConfig::new("g", ["t"]);
    let mut consumer = Consumer::start(Cluster::new(client), config, Box::new(())).unwrap();
    assert_eq!(read(&mut consumer, 2), [(0, 50), (1, 50)]);
    consumer.commit_polled(soon()).unwrap();
    consumer.close(soon()).unwrap();
}

#[test]
fn a_missing_topic_fails_a_poll_if_the_policy_says_so() {
    let broker = broker(|incoming, address| {
        (incoming.api == ApiKey::Metadata).then(|| {
            let mut metadata = incoming.metadata(address, 0);
            for topic in &mut metadata.topics {
                topic.error_code = ErrorCode::UnknownTopicOrPartition.code();
            }
            incoming.answer(&metadata)
        })
    });
    let mut config = ConsumerConfig::new("g", ["t"]);
    config.missing_topics = MissingTopics::Error;
    let mut consumer = start(&broker, config, Box::new(()));
    let error = consumer.poll(soon()).unwrap_err();
    assert!(
        error.to_string().contains("for topic t: UnknownTopic"),
        "{error}"
    );
}

/// The warnings and the news of all tests' clients.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Capture;

impl log::Log for Capture {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }
    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            lock(&LOG).push(record.args().to_string());
        }
    }
    fn flush(&self) {}
}

/// How many lines of the log have this text.
fn logged(text: &str) -> usize {
    lock(&LOG).iter().filter(|it| it.contains(text)).count()
}

#[test]
fn a_missing_topic_or_partition_is_waited_for_and_logged_once_or_not_at_all() {
    log::set_logger(&Capture).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let is_there = Arc::new(AtomicBool::new(false));
    let exists = is_there.clone();
    let broker = broker(move |incoming, address| {
        (incoming.api == ApiKey::Metadata).then(|| {
            let exists = exists.load(Ordering::SeqCst);
            let mut metadata = incoming.metadata(address, if exists { 2 } else { 1 });
            let mut topics = metadata.topics.iter_mut();
            let absent = topics.find(|it| !exists && it.name.as_ref().unwrap().contains("absent"));
            if let Some(topic) = absent {
                topic.error_code = ErrorCode::UnknownTopicOrPartition.code();
                topic.partitions.clear();
            }
            incoming.answer(&metadata)
        })
    });
    let reading = |policy, topic: &str| {
        let mut config = ConsumerConfig::without_group();
        config.missing_topics = policy;
        let start = (0..2).map(|it| (TopicPartition::new(topic, it), StartAt::Beginning));
        Consumer::start_assigned(cluster(&broker), config, start, Box::new(())).unwrap()
    };
    let mut consumers = [
        reading(MissingTopics::Wait, "absent-silent"),
        reading(MissingTopics::Wait, "short-silent"),
        reading(MissingTopics::Warn, "absent-warned"),
        reading(MissingTopics::Warn, "short-warned"),
    ];
    let mut poll_until = |is_done: &dyn Fn() -> bool| {
        let give_up = soon();
        while !is_done() {
            assert!(!give_up.is_past(), "{:?}", lock(&LOG));
            for consumer in &mut consumers {
                consumer
                    .poll(Deadline::after(Duration::from_millis(50)))
                    .unwrap();
            }
        }
    };
    let warned = || {
        [
            logged("for topic absent-warned:"),
            logged("topic short-warned, partition 1"),
        ]
    };
    poll_until(&|| warned() == [1, 1]);
    is_there.store(true, Ordering::SeqCst);
    let is_over =
        || logged("absent-warned exists now") + logged("partition short-warned-1 exists now") == 2;
    poll_until(&is_over);
    assert_eq!(warned(), [1, 1]);
    assert_eq!(logged("-silent"), 0);
}

#[test]
fn a_missing_partition_fails_a_poll_if_the_policy_says_so() {
    let (broker, _) = journal(|_, _| None);
    let mut config = ConsumerConfig::without_group();
    config.missing_topics = MissingTopics::Error;
    let start = [0, 7].map(|it| (number(it), StartAt::Beginning));
    let mut consumer =
        Consumer::start_assigned(cluster(&broker), config, start, Box::new(())).unwrap();
    let give_up = soon();
    let error = loop {
        assert!(!give_up.is_past());
        if let Err(error) = consumer.poll(soon()) {
            break error;
        }
    };
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopicOrPartition));
    assert!(error.to_string().contains('7'), "{error}");
}

#[test]
fn a_filter_picks_the_topics_of_the_cluster() {
    let broker = broker(|incoming, address| {
        let request: MetadataRequest = match incoming.api {
            ApiKey::Metadata => incoming.decode(),
            _ => return None,
        };
        let mut metadata = incoming.metadata(address, 2);
        if request.topics.is_none() {
            metadata.topics = ["t", "other"]
                .map(|name| {
                    let name = Some(crate::wire::topic_name(name));
                    kafka_protocol::messages::metadata_response::MetadataResponseTopic::default()
                        .with_name(name)
                })
                .into();
        }
        Some(incoming.answer(&metadata))
    });
    let mut config = ConsumerConfig::new("g", [] as [&str; 0]);
    config.topic_filter = Some(TopicFilter::new(|topic| topic.len() == 1));
    let mut consumer = start(&broker, config, Box::new(()));
    assert_eq!(read(&mut consumer, 2), [(0, 50), (1, 50)]);
    assert_eq!(consumer.assignment(), [number(0), number(1)]);
    consumer.close(soon()).unwrap();
}

#[test]
fn a_seek_is_felt_before_the_records_fetched_of_other_partitions_are_handed_out() {
    let many: Bytes = (50..20_050)
        .flat_map(|offset| batch(offset).to_vec())
        .collect();
    let size = i32::try_from(many.len()).unwrap();
    let broker = broker(move |incoming, _| {
        (incoming.api == ApiKey::Fetch).then(|| {
            std::thread::sleep(Duration::from_millis(1));
            fetch_answer(incoming, |partition, at| {
                let records = match (partition, at) {
                    (0, 50) => Some(many.clone()),
                    (_, 7) => Some(batch(7)),
                    _ => None,
                };
                (0, records)
            })
        })
    });
    let mut config = ConsumerConfig::new("g", ["t"]);
    config.max_poll_records = 1;
    (config.fetch_max_bytes, config.max_partition_fetch_bytes) = (size / 2, size);
    let mut consumer = start(&broker, config, Box::new(()));
    read(&mut consumer, 5);
    consumer.seek_to_beginning(&[number(1)]);
    let polls = (0..).take_while(|_| {
        let records = consumer.poll(soon()).unwrap();
        records.iter().all(|record| record.partition == 0)
    });
    let polls = polls.count();
    assert!(polls < 19_000, "{polls} records came first");
    consumer.close(soon()).unwrap();
}

#[test]
fn a_refused_login_ends_a_poll_at_once() {
    let mut reading = Reading::new(
        Cluster::new(ClientConfig::default()),
        ConsumerConfig::without_group(),
        Box::new(()),
    );
    reading.last_error = Some(Error::timeout("anything"));
    assert!(reading.take_error(soon()).is_none(), "it may pass");
    reading.last_error = Some(Error::Authentication {
        address: "here:1".to_owned(),
        reason: "wrong password".to_owned(),
    });
    assert!(reading.take_error(soon()).is_some());
    assert!(reading.last_error.is_none());
}

#[test]
fn a_setting_out_of_its_range_is_named() {
    type Spoil = fn(&mut ConsumerConfig);
    let wrong: [(&str, Spoil); 6] = [
        ("heartbeat_interval", |it| {
            it.heartbeat_interval = it.session_timeout
        }),
        ("max_poll_interval", |it| {
            it.max_poll_interval = Duration::MAX
        }),
        ("fetch_max_wait", |it| it.fetch_max_wait = Duration::MAX),
        ("fetch_max_bytes", |it| it.fetch_max_bytes = 0),
        // The answers would be larger than any that is accepted.
        ("fetch_max_bytes", |it| it.fetch_max_bytes = i32::MAX),
        ("group_id", |it| it.group_id.clear()),
    ];
    for (field, spoil) in wrong {
        let mut config = ConsumerConfig::new("g", ["t"]);
        spoil(&mut config);
        let cluster = Cluster::new(ClientConfig::default());
        let error = Consumer::start(cluster, config, Box::new(())).unwrap_err();
        assert!(error.to_string().contains(field), "{error}");
    }
}

#[test]
fn aborted_transactions_are_left_out_if_the_consumer_reads_committed_records_only() {
    const ABORT: Option<i16> = Some(0);
    const COMMIT: Option<i16> = Some(1);
    // Producer 7 aborts a transaction and commits the next one; producer 8 commits.
    let log: Bytes = [
        batch_of(50, 7, None),
        batch_of(51, 8, None),
        batch_of(52, 7, ABORT),
        batch_of(53, 7, None),
        batch_of(54, 8, COMMIT),
        batch_of(55, 7, COMMIT),
        batch_of(56, -1, None),
    ]
    .concat()
    .into();
    for (isolation, expected) in [
        (Isolation::ReadCommitted, vec![51, 53, 56]),
        (Isolation::ReadUncommitted, vec![50, 51, 53, 56]),
    ] {
        let log = log.clone();
        let broker = broker(move |incoming, _| {
            let request: FetchRequest = match incoming.api {
                ApiKey::Fetch => incoming.decode(),
                _ => return None,
            };
            assert_eq!(request.isolation_level, isolation.level());
            std::thread::sleep(Duration::from_millis(1));
            let aborted = AbortedTransaction::default()
                .with_producer_id(ProducerId(7))
                .with_first_offset(50);
            let topics = request.topics.into_iter().map(|topic| {
                let partitions = topic.partitions.iter().map(|asked| {
                    let has_log = asked.partition == 0 && asked.fetch_offset == 50;
                    PartitionData::default()
                        .with_partition_index(asked.partition)
                        .with_high_watermark(57)
                        .with_last_stable_offset(57)
                        .with_aborted_transactions(
                            (request.isolation_level == 1).then(|| vec![aborted.clone()]),
                        )
                        .with_records(Some(if has_log { log.clone() } else { Bytes::new() }))
                });
                FetchableTopicResponse::default()
                    .with_topic(topic.topic)
                    .with_partitions(partitions.collect())
            });
            Some(incoming.answer(&FetchResponse::default().with_responses(topics.collect())))
        });
        let mut config = ConsumerConfig::new("g", ["t"]);
        config.isolation = isolation;
        let mut consumer = start(&broker, config, Box::new(()));
        let offsets = read(&mut consumer, expected.len());
        let offsets: Vec<i64> = offsets.into_iter().map(|(_, offset)| offset).collect();
        assert_eq!(offsets, expected);
        assert_eq!(consumer.position(&number(0)), Some(57));
        consumer.close(soon()).unwrap();
    }
}

#[test]
fn rewinding_without_a_commit_goes_back_to_where_reading_began() {
    let end = Arc::new(AtomicI64::new(50));
    let now = end.clone();
    let broker = broker(move |incoming, _| match incoming.api {
        ApiKey::OffsetFetch => Some(incoming.committed(-1)),
        ApiKey::ListOffsets => {
            let request: ListOffsetsRequest = incoming.decode();
            let topics = request.topics.into_iter().map(|topic| {
                let partitions = topic.partitions.iter().map(|asked| {
                    ListOffsetsPartitionResponse::default()
                        .with_partition_index(asked.partition_index)
                        .with_offset(now.load(Ordering::SeqCst))
                });
                ListOffsetsTopicResponse::default()
                    .with_name(topic.name)
                    .with_partitions(partitions.collect())
            });
            Some(incoming.answer(&ListOffsetsResponse::default().with_topics(topics.collect())))
        }
        _ => None,
    });
    let mut config = ConsumerConfig::new("g", ["t"]);
    config.auto_offset_reset = OffsetReset::Latest;
    let mut consumer = start(&broker, config, Box::new(()));
    assert_eq!(read(&mut consumer, 2), [(0, 50), (1, 50)]);
    end.store(90, Ordering::SeqCst);
    // The transaction's outcome is never learnt; nothing was committed.
    drop(consumer.polled_offsets());
    consumer.rewind();
    assert_eq!(read(&mut consumer, 2), [(0, 50), (1, 50)]);
    consumer.close(soon()).unwrap();
}

#[test]
fn a_commit_in_flight_is_made_up_for_before_an_eager_rebalance() {
    let asked: Arc<Mutex<Vec<ApiKey>>> = Arc::default();
    let log = asked.clone();
    let (is_due, heartbeat) = (AtomicBool::new(false), OnceLock::new());
    let commits = AtomicUsize::new(0);
    let broker = broker(move |incoming, _| {
        if matches!(incoming.api, ApiKey::OffsetCommit | ApiKey::JoinGroup) {
            lock(&log).push(incoming.api);
        }
        match incoming.api {
            ApiKey::OffsetCommit if commits.fetch_add(1, Ordering::SeqCst) == 0 => {
                is_due.store(true, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(1500));
                Some(Reply::BytesThenClose(Vec::new()))
            }
            ApiKey::Heartbeat if is_due.load(Ordering::SeqCst) && heartbeat.set(()).is_ok() => {
                let code = ErrorCode::RebalanceInProgress.code();
                Some(incoming.answer(&HeartbeatResponse::default().with_error_code(code)))
            }
            _ => None,
        }
    });
    let mut config = ConsumerConfig::new("g", ["t"]);
    config.assignors = vec![Assignor::Range];
    let mut consumer = start(&broker, config, Box::new(()));
    read(&mut consumer, 2);
    let partition = TopicPartition::new("t", 0);
    consumer.commit_async(&[(partition, 51)], soon()).unwrap();
    while !consumer.rebalance_pending() {
        std::thread::sleep(Duration::from_millis(1));
    }
    read(&mut consumer, 1);
    use ApiKey::{JoinGroup, OffsetCommit};
    assert_eq!(
        *lock(&asked),
        [JoinGroup, OffsetCommit, OffsetCommit, JoinGroup]
    );
    consumer.close(soon()).unwrap();
}
