//! The records of a transactional producer.

use super::*;
use crate::producer::batch::Transactions;

const EXPLICIT: Identity = Identity {
    producer_id: 7,
    epoch: 0,
    transactions: Transactions::Explicit,
};

fn transactional() -> Accumulator {
    let limits = Limits {
        is_transactional: true,
        ..limits()
    };
    let mut records = Accumulator::new(limits, [Arc::from("t")]);
    records.learn(&OneLeader { partitions: 2 });
    assert!(!records.needs_identity(), "only the coordinator gives it");
    records.begin_transaction(EXPLICIT);
    records
}

#[test]
fn nothing_new_is_sent_before_the_coordinator_knows_its_partition() {
    let mut records = transactional();
    let now = Instant::now();
    push(&mut records, "a", now);
    assert_eq!(records.ready(NODE, now, false), Ready::Idle);
    let partitions = records.unregistered();
    assert_eq!(partitions, [TopicPartition::new("t", 0)]);
    records.registered(&partitions);
    let first = cut_one(&mut records, now);
    tell(records.settle(first, Answer::Written(Some(0)), now));
    // Once in each transaction.
    push(&mut records, "b", now);
    assert!(records.unregistered().is_empty());
    records.begin_transaction(EXPLICIT);
    push(&mut records, "c", now);
    assert_eq!(records.unregistered(), partitions);
}

#[test]
fn a_sequence_that_the_broker_does_not_know_fails_the_records_instead_of_taking_another_id() {
    for code in [
        ErrorCode::UnknownProducerId,
        ErrorCode::OutOfOrderSequenceNumber,
    ] {
        let mut records = transactional();
        let now = Instant::now();
        push(&mut records, "a", now);
        records.registered(&records.unregistered());
        let batch = cut_one(&mut records, now);
        let outcomes = tell(records.settle(batch, Answer::Refused(code), now));
        assert!(outcomes[0].is_err());
        assert_eq!(records.failure().and_then(Error::code), Some(code));
        assert!(!records.has_identity() && !records.needs_identity());
        // The next transaction counts from 0 under another epoch.
        records.begin_transaction(Identity {
            epoch: 1,
            ..EXPLICIT
        });
        assert!(records.failure().is_none());
        push(&mut records, "b", now);
        records.registered(&records.unregistered());
        assert_eq!(cut_one(&mut records, now).base_sequence, 0);
    }
}

#[test]
fn an_aborted_transaction_keeps_only_what_is_in_flight() {
    let mut records = transactional();
    let now = Instant::now();
    push(&mut records, "in flight", now);
    records.registered(&records.unregistered());
    let in_flight = cut_one(&mut records, now);
    push(&mut records, "queued", now);
    let dropped = tell(records.abort(&Error::Aborted));
    assert!(matches!(
        dropped[0].as_ref().unwrap_err().cause,
        Error::Aborted
    ));
    assert_eq!(records.outstanding(), 1);
    // Its answer is lost, and it is not sent again.
    let outcomes = tell(records.settle(in_flight, lost(), now));
    let error = outcomes[0].as_ref().unwrap_err();
    assert_eq!(error.certainty, Certainty::MaybeSent);
    assert_eq!(records.outstanding(), 0);
    assert!(!records.has_identity(), "the broker may have counted it");
}
