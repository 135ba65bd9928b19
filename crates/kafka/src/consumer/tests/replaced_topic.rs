//! Tests of a deleted and recreated topic, as metadata, leaders and committed offsets show it.

use uuid::Uuid;

use super::*;
use crate::topic_id;

const OLD: Uuid = Uuid::from_u128(1);
const NEW: Uuid = Uuid::from_u128(2);
const FETCH_BY_NAME: i16 = 12;

/// The state of the cluster.
struct Site {
    /// The topic id in metadata.
    metadata_topic_id: Mutex<Uuid>,
    /// The topic id that the leader has.
    leader_topic_id: Mutex<Uuid>,
    /// How many times metadata was asked for.
    asked: AtomicUsize,
    /// The metadata of the group's committed offset, 50.
    committed_under: Mutex<String>,
    /// The commits made: offset and metadata.
    commits: Mutex<Vec<(i64, String)>>,
}

impl Site {
    fn new(id: Uuid) -> Arc<Self> {
        Arc::new(Self {
            metadata_topic_id: Mutex::new(id),
            leader_topic_id: Mutex::new(id),
            asked: AtomicUsize::new(0),
            committed_under: Mutex::default(),
            commits: Mutex::default(),
        })
    }

    fn replace(&self, id: Uuid) {
        *lock(&self.leader_topic_id) = id;
        *lock(&self.metadata_topic_id) = id;
    }

    /// The old topic has a record at 50, the new one records at 0 and 51.
    fn fetch(&self, incoming: &Incoming) -> Reply {
        let leader_topic_id = *lock(&self.leader_topic_id);
        let request: FetchRequest = incoming.decode();
        if incoming.version > FETCH_BY_NAME && request.topics[0].topic_id != leader_topic_id {
            let code = ErrorCode::UnknownTopicId.code();
            return fetch_answer(incoming, |_, _| (code, None));
        }
        let offsets: &[i64] = if leader_topic_id == OLD {
            &[50]
        } else {
            &[0, 51]
        };
        let records = |at: i64| offsets.contains(&at).then(|| batch(at));
        let mut asked = request.topics.iter().flat_map(|topic| &topic.partitions);
        match asked.any(|asked| offsets.contains(&asked.fetch_offset)) {
            true => fetch_answer(incoming, |_, at| (0, records(at))),
            false => nothing_fetched(incoming),
        }
    }

    fn answer(&self, incoming: &Incoming, address: SocketAddr) -> Option<Reply> {
        match incoming.api {
            ApiKey::Metadata => {
                self.asked.fetch_add(1, Ordering::SeqCst);
                let mut metadata = incoming.metadata(address, 1);
                for topic in &mut metadata.topics {
                    topic.topic_id = *lock(&self.metadata_topic_id);
                }
                Some(incoming.answer(&metadata))
            }
            ApiKey::Fetch => Some(self.fetch(incoming)),
            ApiKey::OffsetFetch => {
                let metadata = StrBytes::from_string(lock(&self.committed_under).clone());
                let partition = OffsetFetchResponsePartition::default()
                    .with_committed_offset(50)
                    .with_metadata(Some(metadata));
                let topic = OffsetFetchResponseTopic::default()
                    .with_name(TopicName(StrBytes::from_static_str("t")))
                    .with_partitions(vec![partition]);
                let answer = OffsetFetchResponse::default().with_topics(vec![topic]);
                Some(incoming.answer(&answer))
            }
            ApiKey::OffsetCommit => {
                let request: OffsetCommitRequest = incoming.decode();
                let partition = &request.topics[0].partitions[0];
                let metadata = partition.committed_metadata.as_ref().unwrap();
                lock(&self.commits).push((partition.committed_offset, metadata.to_string()));
                Some(commit_answer(incoming, |_| 0))
            }
            _ => None,
        }
    }

    fn broker(self: &Arc<Self>) -> FakeBroker {
        let site = Arc::clone(self);
        broker(move |incoming, address| site.answer(incoming, address))
    }

    fn consumer(&self, broker: &FakeBroker, hooks: Journal, reset: OffsetReset) -> Consumer {
        let client = ClientConfig {
            brokers: vec![broker.address()],
            metadata_max_age: Duration::ZERO,
            ..ClientConfig::default()
        };
        let mut config = ConsumerConfig::new("g", ["t"]);
        config.auto_offset_reset = reset;
        Consumer::start(Cluster::new(client), config, Box::new(hooks)).unwrap()
    }
}

fn partition() -> TopicPartition {
    TopicPartition::new("t", 0)
}

#[test]
fn a_new_topic_is_read_from_its_beginning_and_the_old_ones_batch_is_not_committed_there() {
    let site = Site::new(OLD);
    let (broker, journal) = (site.broker(), Journal::default());
    let mut consumer = site.consumer(&broker, journal.clone(), OffsetReset::Earliest);
    assert_eq!(read(&mut consumer, 1), [(0, 50)]);
    site.replace(NEW);
    consumer.commit(&[(partition(), 51)], soon()).unwrap();
    assert_eq!(read(&mut consumer, 1), [(0, 0)]);
    let late = consumer.commit(&[(partition(), 51)], soon());
    assert!(matches!(late, Err(CommitError::Lost)), "{late:?}");
    consumer.commit(&[(partition(), 1)], soon()).unwrap();
    let under = |id| topic_id::commit_metadata(Some(id));
    assert_eq!(*lock(&site.commits), [(51, under(OLD)), (1, under(NEW))]);
    assert_eq!(*lock(&journal.0), [("assigned", 1), ("replaced", 1)]);
    consumer.close(soon()).unwrap();
}

#[test]
fn an_offset_committed_in_a_topic_that_is_gone_is_not_one_in_the_new_topic() {
    let site = Site::new(NEW);
    *lock(&site.committed_under) = topic_id::commit_metadata(Some(OLD));
    let (broker, journal) = (site.broker(), Journal::default());
    let mut consumer = site.consumer(&broker, journal.clone(), OffsetReset::Earliest);
    assert_eq!(read(&mut consumer, 1), [(0, 0)]);
    assert_eq!(*lock(&journal.0), [("assigned", 1), ("replaced", 1)]);
    consumer.close(soon()).unwrap();
}

#[test]
fn a_committed_offset_is_believed_before_metadata_that_may_lag_behind() {
    let site = Site::new(OLD);
    *lock(&site.metadata_topic_id) = NEW;
    *lock(&site.committed_under) = topic_id::commit_metadata(Some(OLD));
    let (broker, journal) = (site.broker(), Journal::default());
    let mut consumer = site.consumer(&broker, journal.clone(), OffsetReset::Earliest);
    assert_eq!(read(&mut consumer, 1), [(0, 50)]);
    assert_eq!(*lock(&journal.0), [("assigned", 1)]);
    consumer.close(soon()).unwrap();
}

#[test]
fn other_clients_committed_offsets_are_believed() {
    for metadata in ["", "a note of another client"] {
        let site = Site::new(OLD);
        *lock(&site.committed_under) = metadata.to_owned();
        let broker = site.broker();
        let mut consumer = site.consumer(&broker, Journal::default(), OffsetReset::Earliest);
        assert_eq!(read(&mut consumer, 1), [(0, 50)]);
        consumer.close(soon()).unwrap();
    }
}

#[test]
fn metadata_that_names_another_id_changes_nothing_while_the_leader_has_the_topic() {
    let site = Site::new(OLD);
    let (broker, journal) = (site.broker(), Journal::default());
    let mut consumer = site.consumer(&broker, journal.clone(), OffsetReset::Earliest);
    assert_eq!(read(&mut consumer, 1), [(0, 50)]);
    *lock(&site.metadata_topic_id) = NEW;
    let seen = site.asked.load(Ordering::SeqCst);
    let give_up = Deadline::after(Duration::from_secs(10));
    while site.asked.load(Ordering::SeqCst) < seen + 2 {
        assert!(!give_up.is_past(), "metadata is not asked for");
        let polled = consumer.poll(Deadline::after(Duration::from_millis(100)));
        assert_eq!(polled.unwrap(), []);
    }
    assert_eq!(consumer.position(&partition()), Some(51));
    assert_eq!(*lock(&journal.0), [("assigned", 1)]);
    consumer.close(soon()).unwrap();
}

#[test]
fn a_leader_that_cannot_be_asked_by_id_is_believed_as_far_as_metadata_agrees() {
    let site = Site::new(OLD);
    let old = Arc::clone(&site);
    let broker = broker(move |incoming, address| {
        if incoming.api != ApiKey::ApiVersions {
            return old.answer(incoming, address);
        }
        let mut versions = incoming.versions();
        let fetch = ApiKey::Fetch as i16;
        let fetch = versions
            .api_keys
            .iter_mut()
            .find(|api| api.api_key == fetch);
        fetch.unwrap().max_version = FETCH_BY_NAME;
        Some(incoming.answer(&versions))
    });
    let journal = Journal::default();
    let mut consumer = site.consumer(&broker, journal.clone(), OffsetReset::Earliest);
    assert_eq!(read(&mut consumer, 1), [(0, 50)]);
    site.replace(NEW);
    // The new log is longer than the position, so one record in its middle is read first.
    let mut records = read(&mut consumer, 1);
    if records == [(0, 51)] {
        records = read(&mut consumer, 1);
    }
    assert_eq!(records, [(0, 0)]);
    assert_eq!(*lock(&journal.0), [("assigned", 1), ("replaced", 1)]);
    consumer.close(soon()).unwrap();
}

#[test]
fn with_the_policy_latest_a_new_topic_is_read_from_its_end() {
    let site = Site::new(OLD);
    let (broker, journal) = (site.broker(), Journal::default());
    let mut consumer = site.consumer(&broker, journal.clone(), OffsetReset::Latest);
    assert_eq!(read(&mut consumer, 1), [(0, 50)]);
    site.replace(NEW);
    let give_up = Deadline::after(Duration::from_secs(10));
    // The end of the log, from the usual broker.
    while consumer.position(&partition()) != Some(7) {
        assert!(!give_up.is_past(), "{:?}", consumer.position(&partition()));
        let polled = consumer.poll(Deadline::after(Duration::from_millis(100)));
        assert_eq!(polled.unwrap_or_default(), []);
    }
    assert_eq!(*lock(&journal.0), [("assigned", 1), ("replaced", 1)]);
    consumer.close(soon()).unwrap();
}

#[test]
fn without_a_reset_policy_a_poll_fails_until_the_application_seeks() {
    let site = Site::new(OLD);
    let (broker, journal) = (site.broker(), Journal::default());
    let mut consumer = site.consumer(&broker, journal.clone(), OffsetReset::Error);
    assert_eq!(read(&mut consumer, 1), [(0, 50)]);
    site.replace(NEW);
    let give_up = Deadline::after(Duration::from_secs(10));
    let error = loop {
        assert!(!give_up.is_past(), "no error");
        match consumer.poll(Deadline::after(Duration::from_millis(100))) {
            Err(error) if !error.is_transient() => break error,
            other => assert!(other.unwrap_or_default().is_empty()),
        }
    };
    assert!(matches!(error, Error::TopicReplaced { .. }), "{error}");
    assert!(consumer.seek(&partition(), 51).unwrap());
    assert_eq!(read(&mut consumer, 1), [(0, 51)]);
    consumer.commit_polled(soon()).unwrap();
    let under_new = topic_id::commit_metadata(Some(NEW));
    assert_eq!(*lock(&site.commits), [(52, under_new)]);
    consumer.close(soon()).unwrap();
}
