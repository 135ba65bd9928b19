//! The producer's state machine against a model of a broker's log, with the test's own clock.

mod any_fault;
mod replaced_topic;
mod transactions;

use super::topics::Leaders;
use super::*;
use crate::ErrorCode;
use crate::producer::record::RecordMetadata;
use crate::producer::slot::GaveUp;

const NODE: i32 = 1;

/// Slots wait on the real clock, which hardly moves compared with the test's clock.
fn no_time() -> Deadline {
    Deadline::after(Duration::ZERO)
}

struct OneLeader {
    partitions: i32,
}

impl Leaders for OneLeader {
    fn partitions(&self, _: &str) -> Option<i32> {
        Some(self.partitions)
    }
    fn leader(&self, _: &str, _: i32) -> Option<i32> {
        Some(NODE)
    }
    fn topic_id(&self, _: &str) -> Option<Uuid> {
        None
    }
    fn is_missing(&self, _: &str) -> bool {
        false
    }
}

fn limits() -> Limits {
    Limits {
        partitioner: Partitioner::default(),
        buffer_bytes: 1_000_000,
        batch_bytes: 100_000,
        compression: Compression::None,
        request_bytes: 1_000_000,
        linger: Duration::ZERO,
        delivery_timeout: Duration::from_secs(120),
        refusal_pauses: [100, 500, 2000].map(Duration::from_millis),
        is_transactional: false,
    }
}

/// An accumulator with one topic, its leaders known and an identity set.
fn accumulator(partitions: i32) -> Accumulator {
    let mut records = Accumulator::new(limits(), [Arc::from("t")]);
    records.learn(&OneLeader { partitions });
    records.set_identity(Identity::idempotent(1, 0));
    records
}

fn push_to(
    records: &mut Accumulator,
    partition: i32,
    value: String,
    patience: Duration,
    now: Instant,
) -> Arc<Slot> {
    let mut record = Record::new("t", None, Some(value.into()));
    record.partition = Some(partition);
    let index = records.place(&record, now).unwrap().unwrap();
    let slot: Arc<Slot> = Arc::default();
    let deadline = Deadline::after_instant(now, patience);
    records.push(
        index,
        Queued::new(record, 0, Arc::clone(&slot), deadline, now),
    );
    slot
}

fn push(records: &mut Accumulator, value: &str, now: Instant) -> Arc<Slot> {
    push_to(records, 0, value.to_owned(), Duration::from_secs(60), now)
}

/// The one batch that is due.
fn cut_one(records: &mut Accumulator, now: Instant) -> OutgoingBatch {
    let (mut batches, expired) = records.cut(NODE, now, false);
    assert!(expired.is_empty());
    assert_eq!(batches.len(), 1);
    batches.remove(0)
}

fn values(batch: &OutgoingBatch) -> Vec<String> {
    let value = |queued: &Queued| queued.record.value.clone().unwrap();
    batch
        .records
        .iter()
        .map(|queued| String::from_utf8(value(queued).to_vec()).unwrap())
        .collect()
}

fn lost() -> Answer {
    Answer::Unknown(Error::ConnectionLost {
        address: "test".to_owned(),
        reason: "test".to_owned(),
    })
}

fn tell(completions: Vec<Completion>) -> Vec<Outcome> {
    completions
        .into_iter()
        .map(|done| {
            done.slot.complete(&done.outcome);
            done.outcome
        })
        .collect()
}

#[test]
fn what_gathers_during_a_request_leaves_in_the_next_one() {
    let mut records = accumulator(1);
    let now = Instant::now();
    push(&mut records, "a", now);
    let first = cut_one(&mut records, now);
    push(&mut records, "b", now);
    push(&mut records, "c", now);
    assert_eq!(
        records.ready(NODE, now, false),
        Ready::Idle,
        "one is in flight"
    );
    assert_eq!(first.base_sequence, 0);
    let outcomes = tell(records.settle(first, Answer::Written(Some(10)), now));
    assert_eq!(outcomes[0].as_ref().unwrap().offset, Some(10));
    assert_eq!(records.ready(NODE, now, false), Ready::Now);
    let second = cut_one(&mut records, now);
    assert_eq!(values(&second), ["b", "c"]);
    assert_eq!(second.base_sequence, 1);
    let outcomes = tell(records.settle(second, Answer::Written(Some(20)), now));
    assert_eq!(outcomes[1].as_ref().unwrap().offset, Some(21));
    assert_eq!(records.outstanding(), 0);
}

#[test]
fn a_batch_of_unknown_fate_is_sent_again_as_it_is() {
    let mut records = accumulator(1);
    let now = Instant::now();
    push(&mut records, "a", now);
    let mut batch = cut_one(&mut records, now);
    batch.encoded = Some(Bytes::from_static(b"encoded"));
    push(&mut records, "b", now);
    assert!(records.settle(batch, lost(), now).is_empty());
    assert!(records.needs_leaders());
    assert!(
        matches!(records.ready(NODE, now, false), Ready::At(_)),
        "a pause"
    );
    let later = now + Duration::from_secs(1);
    let again = cut_one(&mut records, later);
    assert_eq!(values(&again), ["a"]);
    assert_eq!(again.base_sequence, 0);
    assert_eq!(again.encoded.as_deref(), Some(&b"encoded"[..]));
}

#[test]
fn a_leader_that_resigned_may_have_written() {
    let mut records = accumulator(1);
    let now = Instant::now();
    let slot = push(&mut records, "a", now);
    let batch = cut_one(&mut records, now);
    let answer = Answer::Refused(ErrorCode::NotLeaderOrFollower);
    assert!(records.settle(batch, answer, now).is_empty());
    let gave_up = slot.wait(no_time()).unwrap_err();
    assert_eq!(gave_up, GaveUp::Sent);
}

#[test]
fn a_passing_refusal_is_tried_three_times_more_with_growing_pauses() {
    let mut records = accumulator(1);
    let mut now = Instant::now();
    push(&mut records, "a", now);
    for pause in limits().refusal_pauses {
        let batch = cut_one(&mut records, now);
        assert_eq!(batch.base_sequence, 0);
        let refused = Answer::Refused(ErrorCode::NotEnoughReplicas);
        assert!(records.settle(batch, refused, now).is_empty());
        assert_eq!(records.ready(NODE, now, false), Ready::At(now + pause));
        now += pause;
    }
    let batch = cut_one(&mut records, now);
    let refused = Answer::Refused(ErrorCode::NotEnoughReplicas);
    let outcomes = tell(records.settle(batch, refused, now));
    let error = outcomes[0].as_ref().unwrap_err();
    assert_eq!(error.certainty, Certainty::NotSent);
    assert!(error.is_transient());
    // The next batch gets the sequence number that this one never used.
    push(&mut records, "b", now);
    assert_eq!(
        cut_one(&mut records, now + Duration::from_secs(9)).base_sequence,
        0
    );
}

#[test]
fn a_refusal_for_good_fails_at_once_and_costs_no_sequence_number() {
    let mut records = accumulator(1);
    let now = Instant::now();
    push(&mut records, "a", now);
    let batch = cut_one(&mut records, now);
    let refused = Answer::Refused(ErrorCode::TopicAuthorizationFailed);
    let outcomes = tell(records.settle(batch, refused, now));
    let error = outcomes[0].as_ref().unwrap_err();
    assert_eq!(error.certainty, Certainty::NotSent);
    assert!(!error.is_transient());
    push(&mut records, "b", now);
    assert_eq!(cut_one(&mut records, now).base_sequence, 0);
}

#[test]
fn an_answer_that_says_nothing_certain_is_possibly_sent_and_spoils_the_identity() {
    let mut records = accumulator(2);
    let now = Instant::now();
    push(&mut records, "a", now);
    let batch = cut_one(&mut records, now);
    let refused = Answer::Refused(ErrorCode::UnknownServerError);
    let outcomes = tell(records.settle(batch, refused, now));
    let error = outcomes[0].as_ref().unwrap_err();
    assert_eq!(error.certainty, Certainty::MaybeSent);
    push(&mut records, "b", now);
    assert!(records.needs_identity());
    assert_eq!(records.ready(NODE, now, false), Ready::Idle);
}

#[test]
fn a_lost_count_starts_again_under_a_new_identity() {
    let mut records = accumulator(1);
    let now = Instant::now();
    push(&mut records, "a", now);
    let batch = cut_one(&mut records, now);
    tell(records.settle(batch, Answer::Written(None), now));
    push(&mut records, "b", now);
    let batch = cut_one(&mut records, now);
    assert_eq!(batch.base_sequence, 1);
    let refused = Answer::Refused(ErrorCode::OutOfOrderSequenceNumber);
    assert!(records.settle(batch, refused, now).is_empty());
    assert!(records.needs_identity());
    let fresh = Identity::idempotent(2, 0);
    records.set_identity(fresh);
    let batch = cut_one(&mut records, now + Duration::from_secs(1));
    assert_eq!((batch.identity, batch.base_sequence), (fresh, 0));
    assert_eq!(values(&batch), ["b"]);
}

#[test]
fn a_batch_that_the_broker_may_have_forgotten_fails_as_possibly_sent_and_is_not_written_twice() {
    use ErrorCode::*;
    for code in [UnknownProducerId, InvalidProducerEpoch, ProducerFenced] {
        let mut records = accumulator(1);
        let now = Instant::now();
        push(&mut records, "a", now);
        let batch = cut_one(&mut records, now);
        push(&mut records, "b", now);
        assert!(records.settle(batch, lost(), now).is_empty());
        let later = now + Duration::from_secs(1);
        let again = cut_one(&mut records, later);
        let outcomes = tell(records.settle(again, Answer::Refused(code), later));
        let error = outcomes[0].as_ref().unwrap_err();
        assert_eq!(error.certainty, Certainty::MaybeSent);
        assert!(records.needs_identity());
        let fresh = Identity::idempotent(2, 0);
        records.set_identity(fresh);
        let next = cut_one(&mut records, later + Duration::from_secs(1));
        assert_eq!((next.identity, next.base_sequence), (fresh, 0));
        assert_eq!(values(&next), ["b"]);
    }
}

#[test]
fn a_broker_that_counts_the_producer_would_have_recognised_its_last_batch() {
    let mut records = accumulator(1);
    let now = Instant::now();
    push(&mut records, "a", now);
    let batch = cut_one(&mut records, now);
    assert!(records.settle(batch, lost(), now).is_empty());
    let later = now + Duration::from_secs(1);
    let again = cut_one(&mut records, later);
    let refused = Answer::Refused(ErrorCode::OutOfOrderSequenceNumber);
    assert!(records.settle(again, refused, later).is_empty());
    let fresh = Identity::idempotent(2, 0);
    records.set_identity(fresh);
    let again = cut_one(&mut records, later + Duration::from_secs(1));
    assert_eq!((again.identity, again.base_sequence), (fresh, 0));
    assert_eq!(values(&again), ["a"]);
}

/// A broker that starts again reads from its snapshot only the last batch of each producer.
#[test]
fn of_batches_in_flight_only_the_last_one_is_certainly_absent_when_out_of_order() {
    let mut records = accumulator(1);
    let now = Instant::now();
    for batch in three_in_flight(&mut records, now) {
        assert!(records.settle(batch, lost(), now).is_empty());
    }
    let later = now + Duration::from_secs(1);
    for _ in 0..2 {
        let again = cut_one(&mut records, later);
        let refused = Answer::Refused(ErrorCode::OutOfOrderSequenceNumber);
        let outcomes = tell(records.settle(again, refused, later));
        let error = outcomes[0].as_ref().unwrap_err();
        assert_eq!(error.certainty, Certainty::MaybeSent);
    }
    let last = cut_one(&mut records, later);
    let outcomes = tell(records.settle(last, Answer::Written(Some(2)), later));
    assert!(outcomes[0].is_ok(), "the broker has recognised it");
}

#[test]
fn a_batch_too_large_is_halved_until_the_culprit_is_alone() {
    let mut records = accumulator(1);
    let now = Instant::now();
    for value in ["a", "b", "huge", "d"] {
        push(&mut records, value, now);
    }
    let mut written = Vec::new();
    let mut failed = 0;
    while records.outstanding() > 0 {
        let batch = cut_one(&mut records, now);
        let sent = values(&batch);
        let answer = if sent.iter().any(|value| value == "huge") {
            Answer::Refused(ErrorCode::MessageTooLarge)
        } else {
            assert_eq!(usize::try_from(batch.base_sequence), Ok(written.len()));
            written.extend(sent);
            Answer::Written(None)
        };
        let outcomes = tell(records.settle(batch, answer, now));
        failed += outcomes.iter().filter(|outcome| outcome.is_err()).count();
    }
    assert_eq!(written, ["a", "b", "d"]);
    assert_eq!(failed, 1);
}

#[test]
fn a_record_larger_than_a_batch_travels_alone_and_compressed() {
    let mut records = accumulator(1);
    let now = Instant::now();
    let large = "x".repeat(200_000);
    for value in ["a", &large, "b"] {
        push(&mut records, value, now);
    }
    let mut sent = Vec::new();
    while records.outstanding() > 0 {
        let batch = cut_one(&mut records, now);
        sent.push((values(&batch), batch.compression));
        records.settle(batch, Answer::Written(None), now);
    }
    let (plain, packed) = (Compression::None, Compression::Zstd);
    let expected = [("a", plain), (&large, packed), ("b", plain)];
    let expected = expected.map(|(value, how)| (vec![value.to_owned()], how));
    assert_eq!(sent, expected);
}

#[test]
fn a_record_that_a_broker_finds_too_large_is_sent_once_more_compressed() {
    for fits in [true, false] {
        let mut records = accumulator(1);
        let now = Instant::now();
        for value in ["large", "b"] {
            push(&mut records, value, now);
        }
        let (mut sent, mut outcomes) = (Vec::new(), Vec::new());
        while records.outstanding() > 0 {
            let batch = cut_one(&mut records, now);
            let values = values(&batch);
            let is_small = !values.contains(&"large".to_owned());
            let answer = match is_small || (fits && batch.compression == Compression::Zstd) {
                true => Answer::Written(None),
                false => Answer::Refused(ErrorCode::MessageTooLarge),
            };
            sent.push((values.join(" "), batch.compression == Compression::Zstd));
            outcomes.extend(tell(records.settle(batch, answer, now)));
        }
        let expected = [
            ("large b", false),
            ("large", false),
            ("large", true),
            ("b", false),
        ];
        assert_eq!(sent, expected.map(|(value, how)| (value.to_owned(), how)));
        let [large, small] = &outcomes[..] else {
            panic!("{outcomes:?}");
        };
        assert!(small.is_ok());
        let is_too_large = |error: &ProduceError| error.is_too_large();
        assert_eq!(
            large.as_ref().err().map(is_too_large),
            (!fits).then_some(true)
        );
    }
}

#[test]
fn after_a_culprit_was_found_the_rest_is_not_halved_again() {
    let mut records = accumulator(1);
    let now = Instant::now();
    for _ in 0..64 {
        push(&mut records, "refused", now);
    }
    let mut requests = 0;
    while records.outstanding() > 0 {
        let batch = cut_one(&mut records, now);
        requests += 1;
        let answer = Answer::Refused(ErrorCode::InvalidRecord);
        records.settle(batch, answer, now);
    }
    assert_eq!(requests, 64 + 6, "one each, after six halvings");
}

#[test]
fn an_unanswered_batch_is_given_up_after_the_delivery_timeout() {
    let mut records = accumulator(1);
    let now = Instant::now();
    push(&mut records, "a", now);
    // The time in the queue counts.
    let cut_at = now + Duration::from_secs(50);
    let batch = cut_one(&mut records, cut_at);
    assert!(records.settle(batch, lost(), cut_at).is_empty());
    let late = now + limits().delivery_timeout;
    assert_eq!(records.next_overdue(), Some(late));
    assert!(records.sweep(late - Duration::from_millis(1)).is_empty());
    let outcomes = tell(records.sweep(late));
    let error = outcomes[0].as_ref().unwrap_err();
    assert_eq!(error.certainty, Certainty::MaybeSent);
    assert_eq!(records.outstanding(), 0);
}

#[test]
fn overdue_and_withdrawn_records_are_never_cut() {
    let mut records = accumulator(1);
    let now = Instant::now();
    push_to(&mut records, 0, "overdue".to_owned(), Duration::ZERO, now);
    let withdrawn = push(&mut records, "withdrawn", now);
    push(&mut records, "kept", now);
    withdrawn.wait(no_time()).unwrap_err();
    let (batches, expired) = records.cut(NODE, now, false);
    assert_eq!(values(&batches[0]), ["kept"]);
    assert_eq!(expired.len(), 2);
    assert_eq!(records.outstanding(), 1);
}

#[test]
fn lingering_ends_with_time_with_size_and_with_a_flush() {
    let mut records = accumulator(1);
    records.limits.linger = Duration::from_millis(5);
    let now = Instant::now();
    push(&mut records, "a", now);
    let due = now + Duration::from_millis(5);
    assert_eq!(records.ready(NODE, now, false), Ready::At(due));
    assert_eq!(records.ready(NODE, due, false), Ready::Now);
    records.flushing = 1;
    assert_eq!(records.ready(NODE, now, false), Ready::Now);
    records.flushing = 0;
    push(&mut records, &"x".repeat(100_000), now);
    assert_eq!(records.ready(NODE, now, false), Ready::Now);
}

#[test]
fn a_full_buffer_has_no_room_but_an_empty_one_takes_anything() {
    let mut records = accumulator(1);
    let now = Instant::now();
    assert!(records.has_room(2_000_000));
    push(&mut records, &"x".repeat(999_000), now);
    assert!(!records.has_room(1_000));
    let batch = cut_one(&mut records, now);
    assert!(!records.has_room(1_000), "in flight is in memory");
    tell(records.settle(batch, Answer::Written(None), now));
    assert!(records.has_room(1_000));
}

/// The log has the producer's first record.
fn begin_log(records: &mut Accumulator, now: Instant) {
    push(records, "first", now);
    let first = cut_one(records, now);
    assert_eq!(first.base_sequence, 0);
    tell(records.settle(first, Answer::Written(None), now));
}

/// Three full batches in flight behind the first record, and a record that does not fill one.
fn three_in_flight(records: &mut Accumulator, now: Instant) -> Vec<OutgoingBatch> {
    begin_log(records, now);
    records.limits.batch_bytes = 80;
    for value in ["a", "b", "c", "d"] {
        // The size of a record leaves no room for a second one in a batch.
        push(records, &value.repeat(50), now);
    }
    push(records, "e", now);
    let mut cut = |ahead| records.cut(NODE, now, ahead).0.remove(0);
    let batches = vec![cut(false), cut(true), cut(true)];
    let sequences: Vec<i32> = batches.iter().map(|batch| batch.base_sequence).collect();
    assert_eq!(sequences, [1, 2, 3]);
    batches
}

#[test]
fn nothing_is_in_flight_behind_a_producers_first_batch_in_a_log() {
    let mut records = accumulator(1);
    records.limits.batch_bytes = 80;
    let now = Instant::now();
    for value in ["a", "b", "c"] {
        push(&mut records, &value.repeat(50), now);
    }
    let first = cut_one(&mut records, now);
    // A log without any batch of the producer would take the second one, even if it refused the
    // first.
    assert_eq!(records.ready(NODE, now, true), Ready::Idle);
    tell(records.settle(first, Answer::Written(None), now));
    cut_one(&mut records, now);
    assert_eq!(records.ready(NODE, now, true), Ready::Now);
}

#[test]
fn after_an_idle_hour_a_batch_is_in_flight_alone_because_the_log_may_have_forgotten_the_producer() {
    let mut records = accumulator(1);
    let now = Instant::now();
    begin_log(&mut records, now);
    records.limits.batch_bytes = 80;
    let later = now + Duration::from_secs(3600);
    for value in ["a", "b", "c"] {
        push(&mut records, &value.repeat(50), later);
    }
    let first = cut_one(&mut records, later);
    assert_eq!(first.base_sequence, 1);
    assert_eq!(records.ready(NODE, later, true), Ready::Idle);
    tell(records.settle(first, Answer::Written(None), later));
    cut_one(&mut records, later);
    assert_eq!(records.ready(NODE, later, true), Ready::Now);
}

#[test]
fn full_batches_do_not_wait_for_answers_and_others_do() {
    let mut records = accumulator(1);
    let now = Instant::now();
    let batches = three_in_flight(&mut records, now);
    assert_eq!(records.cut(NODE, now, true).0.len(), 1, "the last full one");
    assert_eq!(records.ready(NODE, now, true), Ready::Idle);
    for batch in batches {
        tell(records.settle(batch, Answer::Written(None), now));
    }
    assert_eq!(records.ready(NODE, now, true), Ready::Idle);
}

#[test]
fn what_was_in_flight_behind_a_lost_answer_is_sent_again_in_order() {
    let mut records = accumulator(1);
    let now = Instant::now();
    for batch in three_in_flight(&mut records, now) {
        assert_eq!(
            records.ready(NODE, now, true) == Ready::Now,
            batch.number == 2
        );
        assert!(records.settle(batch, lost(), now).is_empty());
    }
    let later = now + Duration::from_secs(1);
    for sequence in 1..=3 {
        let batch = cut_one(&mut records, later);
        assert_eq!(batch.base_sequence, sequence);
        assert_eq!(
            records.ready(NODE, later, true),
            Ready::Idle,
            "one at a time"
        );
        tell(records.settle(batch, Answer::Written(None), later));
    }
    let rest: String = values(&cut_one(&mut records, later)).concat();
    assert!(rest.starts_with('d'));
}

#[test]
fn batches_behind_a_refused_batch_are_refused_with_it_and_cut_again() {
    let mut records = accumulator(1);
    let now = Instant::now();
    let refusals = [
        ErrorCode::NotEnoughReplicas,
        ErrorCode::OutOfOrderSequenceNumber,
        ErrorCode::OutOfOrderSequenceNumber,
    ];
    for (batch, code) in three_in_flight(&mut records, now).into_iter().zip(refusals) {
        assert!(records.settle(batch, Answer::Refused(code), now).is_empty());
    }
    assert!(!records.needs_identity(), "the count is as it was");
    let later = now + limits().refusal_pauses[0];
    let again = cut_one(&mut records, later);
    assert_eq!(again.base_sequence, 1);
    assert!(values(&again)[0].starts_with('a'));
}

#[test]
fn a_batch_that_fails_for_good_leaves_no_gap_before_those_behind_it() {
    let mut records = accumulator(1);
    let now = Instant::now();
    let mut batches = three_in_flight(&mut records, now).into_iter();
    let mut settle = |batch, code| records.settle(batch, Answer::Refused(code), now);
    let failed = settle(batches.next().unwrap(), ErrorCode::InvalidRecord);
    assert_eq!(failed.len(), 1);
    for batch in batches {
        assert!(settle(batch, ErrorCode::OutOfOrderSequenceNumber).is_empty());
    }
    assert!(records.needs_identity());
    let fresh = Identity::idempotent(2, 0);
    records.set_identity(fresh);
    let again = cut_one(&mut records, now + limits().refusal_pauses[0]);
    assert_eq!((again.identity, again.base_sequence), (fresh, 0));
    assert!(values(&again)[0].starts_with('b'));
}

#[test]
fn sequence_numbers_start_over_after_the_largest() {
    assert_eq!(sequence_after(0, 5), 5);
    assert_eq!(sequence_after(i32::MAX, 1), 0);
    assert_eq!(sequence_after(i32::MAX - 1, 5), 3);
}

#[test]
fn records_without_a_key_fill_the_partitions_in_turn_although_no_batch_leaves() {
    let mut records = accumulator(16);
    let now = Instant::now();
    for _ in 0..1000 {
        let record = Record::new("t", None, Some("x".repeat(100).into()));
        let index = records.place(&record, now).unwrap().unwrap();
        let queued = Queued::new(record, 0, Arc::default(), no_time(), now);
        records.push(index, queued);
    }
    let counts = records.partitions.iter().map(|it| it.queue.len());
    let used = counts.clone().filter(|count| *count > 0).count();
    assert!(used >= 8 && counts.max() < Some(200), "{used}");
}
