//! A topic that is deleted and created again while records are pending.

use std::collections::HashMap;

use super::*;
use crate::producer::partition_for_key;

/// A cluster that knows one topic, under this id.
struct Known {
    id: u128,
    partitions: i32,
}

impl Leaders for Known {
    fn partitions(&self, topic: &str) -> Option<i32> {
        (topic == "t").then_some(self.partitions)
    }
    fn leader(&self, _: &str, partition: i32) -> Option<i32> {
        (partition < self.partitions).then_some(NODE)
    }
    fn topic_id(&self, _: &str) -> Option<Uuid> {
        Some(Uuid::from_u128(self.id)).filter(|id| !id.is_nil())
    }
    fn is_missing(&self, topic: &str) -> bool {
        topic != "t"
    }
}

/// What a cluster says after a topic was deleted: the client keeps its leaders.
struct Deleted(Known);

impl Leaders for Deleted {
    fn partitions(&self, topic: &str) -> Option<i32> {
        self.0.partitions(topic)
    }
    fn leader(&self, topic: &str, partition: i32) -> Option<i32> {
        self.0.leader(topic, partition)
    }
    fn topic_id(&self, topic: &str) -> Option<Uuid> {
        self.0.topic_id(topic)
    }
    fn is_missing(&self, _: &str) -> bool {
        true
    }
}

const OLD: Known = Known {
    id: 1,
    partitions: 16,
};
const NEW: Known = Known {
    id: 2,
    partitions: 4,
};

fn identity(producer_id: i64) -> Identity {
    Identity::idempotent(producer_id, 0)
}

fn accumulator_of(topic: &Known) -> Accumulator {
    let mut records = Accumulator::new(limits(), [Arc::from("t")]);
    records.learn(topic);
    records.set_identity(identity(1));
    records
}

fn push_keyed(records: &mut Accumulator, key: &str, value: &str, now: Instant) -> Arc<Slot> {
    let record = Record::new(
        "t",
        Some(key.to_owned().into()),
        Some(value.to_owned().into()),
    );
    let index = records.place(&record, now).unwrap().unwrap();
    let slot: Arc<Slot> = Arc::default();
    let deadline = Deadline::after_instant(now, Duration::from_secs(60));
    records.push(
        index,
        Queued::new(record, 0, Arc::clone(&slot), deadline, now),
    );
    slot
}

/// All batches that can be sent now: partition, values.
fn cut_all(records: &mut Accumulator, now: Instant) -> Vec<OutgoingBatch> {
    let (batches, expired) = records.cut(NODE, now, false);
    assert!(expired.is_empty());
    batches
}

#[test]
fn waiting_records_find_their_partition_in_the_new_topic_in_their_order() {
    for id in [NEW.id, 0] {
        // Without ids, the number of partitions reveals a new topic.
        let (old, new) = match id {
            0 => (Known { id: 0, ..OLD }, Known { id: 0, ..NEW }),
            _ => (OLD, NEW),
        };
        let mut records = accumulator_of(&old);
        let now = Instant::now();
        for number in 0..100 {
            push_keyed(
                &mut records,
                &format!("key {}", number % 10),
                &number.to_string(),
                now,
            );
        }
        assert!(records.learn(&new).is_empty());
        assert!(!records.needs_leaders());
        let batches = cut_all(&mut records, now);
        let mut seen = 0;
        for batch in &batches {
            assert_eq!(batch.topic_id.as_u128(), id);
            assert_eq!((batch.identity, batch.base_sequence), (identity(1), 0));
            let mut last: HashMap<Bytes, u32> = HashMap::new();
            for (queued, value) in batch.records.iter().zip(values(batch)) {
                let key = queued.record.key.clone().unwrap();
                assert_eq!(batch.partition, partition_for_key(&key, 4));
                let number = value.parse().unwrap();
                assert!(last.insert(key, number).is_none_or(|last| last < number));
                seen += 1;
            }
        }
        assert_eq!(seen, 100);
    }
}

#[test]
fn a_batch_in_flight_comes_before_what_waits_behind_it() {
    let mut records = accumulator_of(&OLD);
    let now = Instant::now();
    push_keyed(&mut records, "k", "a", now);
    let batch = cut_one(&mut records, now);
    push_keyed(&mut records, "k", "b", now);
    records.learn(&NEW);
    assert_eq!(
        records.ready(NODE, now, false),
        Ready::Idle,
        "one is in flight"
    );
    assert!(records.needs_leaders());
    let refused = Answer::Refused(ErrorCode::UnknownTopicId);
    assert!(records.settle(batch, refused, now).is_empty());
    push_keyed(&mut records, "k", "c", now);
    records.learn(&NEW);
    assert!(records.needs_identity(), "the new log's count begins");
    records.set_identity(identity(2));
    // The pause was for the former topic.
    let batch = cut_one(&mut records, now);
    assert_eq!(values(&batch), ["a", "b", "c"]);
    assert!(batch.encoded.is_none());
}

#[test]
fn a_record_that_the_old_log_may_hold_cannot_be_withdrawn_and_is_never_called_not_sent() {
    let mut records = accumulator_of(&OLD);
    let now = Instant::now();
    let slot = push_keyed(&mut records, "k", "a", now);
    let batch = cut_one(&mut records, now);
    assert!(records.settle(batch, lost(), now).is_empty());
    records.learn(&NEW);
    assert_eq!(slot.wait(no_time()).unwrap_err(), GaveUp::Sent);
    let outcomes = tell(records.sweep(now + Duration::from_secs(61)));
    let error = outcomes[0].as_ref().unwrap_err();
    assert_eq!(error.certainty, Certainty::MaybeSent);
    assert_eq!(records.outstanding(), 0);
}

#[test]
fn a_partitioner_that_panics_fails_only_its_record() {
    let mut records = accumulator_of(&OLD);
    records.limits.partitioner = Partitioner::new(|_, key, count| match key {
        Some(b"bad") if count == NEW.partitions => panic!("a bug in the partitioner"),
        _ => Some(0),
    });
    let now = Instant::now();
    for key in ["bad", "good"] {
        push_keyed(&mut records, key, key, now);
    }
    let outcomes = tell(records.learn(&NEW));
    let [Err(error)] = &outcomes[..] else {
        panic!("{outcomes:?}");
    };
    assert_eq!(error.certainty, Certainty::NotSent);
    assert!(error.to_string().contains("partitioner"), "{error}");
    assert_eq!(values(&cut_all(&mut records, now)[0]), ["good"]);
    // The caller of `send` gets the error, too.
    let record = Record::new("t", Some("bad".into()), None);
    assert!(records.place(&record, now).is_err());
}

#[test]
fn a_record_for_a_partition_that_is_gone_fails_and_says_so() {
    let mut records = accumulator_of(&OLD);
    let now = Instant::now();
    push_to(
        &mut records,
        9,
        "a".to_owned(),
        Duration::from_secs(60),
        now,
    );
    let outcomes = tell(records.learn(&NEW));
    let error = outcomes[0].as_ref().unwrap_err();
    assert!(error.to_string().contains("0 to 3, not 9"), "{error}");
    assert_eq!(records.outstanding(), 0);
}

#[test]
fn an_old_brokers_shorter_list_of_the_same_topic_moves_nothing() {
    let mut records = accumulator_of(&OLD);
    let now = Instant::now();
    push_to(
        &mut records,
        9,
        "a".to_owned(),
        Duration::from_secs(60),
        now,
    );
    records.learn(&Known { id: 1, ..NEW });
    assert!(
        records.needs_leaders(),
        "its leader is not known at present"
    );
    records.learn(&OLD);
    assert!(!records.needs_identity());
    assert_eq!(cut_one(&mut records, now).partition, 9);
}

#[test]
fn a_broker_that_lags_behind_does_not_bring_the_old_topic_back() {
    let mut records = accumulator_of(&OLD);
    let now = Instant::now();
    records.learn(&NEW);
    records.learn(&OLD);
    push_keyed(&mut records, "k", "a", now);
    let batch = cut_one(&mut records, now);
    assert_eq!(batch.topic_id.as_u128(), NEW.id);
    assert_eq!(batch.partition, partition_for_key(b"k", 4));
}

#[test]
fn memory_does_not_grow_with_every_topic_that_is_created_again() {
    let mut records = accumulator_of(&OLD);
    for id in 2..100 {
        records.learn(&Known { id, ..NEW });
        records.learn(&Known {
            id: 1000 + id,
            ..OLD
        });
    }
    assert_eq!(records.partitions.len(), 16);
}

#[test]
fn an_unknown_topic_is_forgotten_when_no_record_has_named_it_for_a_minute() {
    let mut records = Accumulator::new(limits(), [Arc::from("configured")]);
    let now = Instant::now();
    let unknown = Record::new("unknown", None, None);
    assert!(records.place(&unknown, now).unwrap().is_none());
    assert!(records.needs_leaders());
    assert_eq!(records.topics_to_ask(now).len(), 2);
    records.learn(&OLD);
    // Its metadata is requested now and then; no other topic waits for that.
    assert!(!records.needs_leaders());
    assert!(records.has_unknown_topic());
    let later = now + Duration::from_secs(59);
    assert!(records.place(&unknown, later).unwrap().is_none());
    let names = |names: Vec<Arc<str>>| names.len();
    assert_eq!(
        names(records.topics_to_ask(now + Duration::from_secs(61))),
        2
    );
    assert_eq!(
        names(records.topics_to_ask(now + Duration::from_secs(120))),
        1
    );
}

#[test]
fn a_deleted_topic_is_forgotten_when_no_record_has_been_for_it_for_a_minute() {
    const MINUTE: Duration = Duration::from_secs(60);
    let mut records = Accumulator::new(limits(), []);
    let now = Instant::now();
    let first = Record::new("t", None, None);
    assert!(records.place(&first, now).unwrap().is_none());
    records.learn(&OLD);
    records.set_identity(identity(1));
    push_keyed(&mut records, "k", "v", now);
    assert_eq!(records.topics_to_ask(now).len(), 1);
    records.learn(&Deleted(OLD));
    // A record waits, and then there is none.
    let later = now + MINUTE;
    assert_eq!(records.topics_to_ask(later).len(), 1);
    let batch = cut_all(&mut records, now).remove(0);
    tell(records.settle(batch, Answer::Written(None), later));
    assert_eq!(records.topics_to_ask(later + MINUTE / 2).len(), 1);
    assert!(!records.needs_identity());
    assert_eq!(records.topics_to_ask(later + MINUTE).len(), 0);
    // If the topic is there after all, its broker counts under another identity.
    assert!(records.needs_identity());
    assert!(records.place(&first, now).unwrap().is_none());
    records.learn(&OLD);
    assert_eq!(records.partitions.len(), 16, "places are used again");
}
