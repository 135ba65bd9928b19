//! Dead letters: an unprocessable record goes to order.failed and order.dlq and delays no other.

use std::time::Duration;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::support::eventually;
use crate::support::program::{Stack, id};
use crate::support::topic::{
    Record, committed, records, wait_for_records, write, write_compressed,
};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn what_is_no_event_goes_to_the_dead_letters_at_once_with_everything_it_came_with() {
    let stack = Stack::new().set("KAFKA_TOPIC_PARTITIONS", "1");
    let (api, worker) = (stack.api(), stack.worker());
    let created = &stack.topics.created;
    let absent = Uuid::now_v7().to_string();
    let unknown = serde_json::json!({
        "specversion": "1.0", "id": "x", "source": "/tests", "type": created, "subject": absent,
        "data": { "id": absent },
    });
    let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{trace_id}-00f067aa0ba902b7-01");
    let poison = [
        Record::new("not json", Some("{"))
            .with("traceparent", &traceparent)
            .with("mine", "kept"),
        Record::new("null value", None),
        Record::new("no event", Some("{}")),
        Record::new(&absent, Some(&unknown.to_string())),
    ];
    write(&stack.kafka, created, &poison);
    // Behind all the bad records, in the same partition:
    let order = api.accepted_order();
    stack.all_become("completed", 1, SOON);
    assert_eq!(stack.status(id(&order)), "completed");

    let dead = wait_for_records(&stack.kafka, &stack.topics.dlq, poison.len(), SOON);
    assert_eq!(dead.len(), poison.len());
    for (offset, original) in poison.iter().enumerate() {
        let letter = dead.iter().find(|letter| letter.key == original.key);
        let letter = letter.unwrap_or_else(|| panic!("{original:?} in {dead:?}"));
        assert_eq!(letter.value, original.value);
        assert_eq!(letter.header("dlq-topic"), created);
        assert_eq!(letter.header("dlq-partition"), "0");
        assert_eq!(letter.header("dlq-offset"), offset.to_string());
        assert_eq!(letter.header("dlq-attempts"), "0");
        assert!(!letter.header("dlq-reason").is_empty());
    }
    let first = dead
        .iter()
        .find(|letter| letter.key() == "not json")
        .expect("the first");
    assert_eq!(first.header("mine"), "kept");
    assert_eq!(
        first
            .headers
            .iter()
            .filter(|(name, _)| name == "traceparent")
            .count(),
        1
    );
    assert_ne!(first.header("traceparent"), traceparent, "renewed");
    assert_eq!(
        first.header("traceparent").split('-').nth(1),
        Some(trace_id),
        "in the same trace"
    );
    assert!(records(&stack.kafka, &stack.topics.failed).is_empty());
    assert_eq!(
        worker.metric(r#"orders_processed_total{outcome="completed"}"#),
        Some(1.0)
    );
}

#[test]
fn an_order_whose_every_attempt_fails_is_failed_and_announced_as_such() {
    let stack = Stack::new().set("PROCESSING_FAILURE_RATE", "1");
    let (api, worker) = (stack.api(), stack.worker());
    let order = api.accepted_order();
    stack.all_become("failed", 1, SOON);
    let failed = wait_for_records(&stack.kafka, &stack.topics.failed, 1, SOON);
    let dead = wait_for_records(&stack.kafka, &stack.topics.dlq, 1, SOON);
    assert_eq!((failed.len(), dead.len()), (1, 1));

    let event = failed[0].json();
    assert_eq!(failed[0].key(), id(&order));
    assert_eq!(event["type"], *stack.topics.failed);
    assert_eq!(event["data"]["id"], order["id"]);
    assert_eq!(event["data"]["status"], "failed");
    assert!(
        event["data"]["reason"]
            .as_str()
            .is_some_and(|reason| !reason.is_empty()),
        "{event}"
    );

    let created = records(&stack.kafka, &stack.topics.created).remove(0);
    assert_eq!(
        (&dead[0].key, &dead[0].value),
        (&created.key, &created.value)
    );
    assert_eq!(
        dead[0].header("content-type"),
        created.header("content-type")
    );
    assert_eq!(dead[0].header("dlq-topic"), stack.topics.created);
    assert_eq!(
        dead[0].header("dlq-partition"),
        created.partition.to_string()
    );
    assert_eq!(dead[0].header("dlq-offset"), created.offset.to_string());
    assert_eq!(dead[0].header("dlq-attempts"), "3");
    assert_eq!(
        dead[0].header("dlq-reason"),
        event["data"]["reason"].as_str().expect("a reason")
    );
    assert_eq!(
        worker.metric(r#"orders_processed_total{outcome="failed"}"#),
        Some(1.0)
    );
    assert!(records(&stack.kafka, &stack.topics.processed).is_empty());
}

#[test]
fn the_number_of_attempts_can_be_set() {
    let stack = Stack::new()
        .set("PROCESSING_FAILURE_RATE", "1")
        .set("WORKER_MAX_ATTEMPTS", "1");
    let (api, _worker) = (stack.api(), stack.worker());
    api.accepted_order();
    let dead = wait_for_records(&stack.kafka, &stack.topics.dlq, 1, SOON);
    assert_eq!(dead[0].header("dlq-attempts"), "1");
}

/// Incompressible bytes.
fn noise(length: usize) -> Vec<u8> {
    let bytes = std::iter::repeat_with(|| fastrand::u8(..));
    bytes.take(length).collect()
}

/// Kafka accepts batches of up to 1,048,588 bytes, and a letter has more headers than its record.
#[test]
fn what_only_just_fitted_its_topic_becomes_a_letter_too() {
    let stack = Stack::new().set("KAFKA_TOPIC_PARTITIONS", "1");
    let (api, worker) = (stack.api(), stack.worker());
    let created = &stack.topics.created;
    let (limit, packed) = (noise(1_048_460), vec![b'x'; 8 << 20]);
    write(
        &stack.kafka,
        created,
        &[Record::of_bytes("limit", limit.clone())],
    );
    let large = Record::of_bytes("packed", packed.clone());
    write_compressed(&stack.kafka, created, &[large]);
    let long = Record::new("headers", None).with("long", &"x".repeat(1_048_400));
    write(&stack.kafka, created, &[long]);
    let order = api.accepted_order();
    stack.all_become("completed", 1, SOON);
    assert_eq!(stack.status(id(&order)), "completed");

    let dead = wait_for_records(&stack.kafka, &stack.topics.dlq, 3, SOON);
    let letter = |key: &str| {
        let letter = dead.iter().find(|letter| letter.key() == key);
        letter.unwrap_or_else(|| panic!("no letter {key}"))
    };
    assert_eq!(letter("packed").value.as_deref(), Some(&packed[..]));
    assert_eq!(letter("headers").header("long").len(), 1_048_400);
    let short = letter("limit");
    assert_eq!(short.value, None);
    assert_eq!(short.header("dlq-value-omitted"), "true");
    assert_eq!(short.header("dlq-value-length"), "1048460");
    let digits = Sha256::digest(&limit).into_iter();
    let digits: String = digits.map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(short.header("dlq-value-sha256"), digits);
    assert_eq!(short.header("dlq-topic"), created);
    assert_eq!(short.header("dlq-offset"), "0");
    assert_eq!(
        worker.metric(r#"orders_dead_lettered_total{reason="undecodable"}"#),
        Some(3.0)
    );
    eventually(SOON, "the offsets to be committed", || {
        (committed(&stack.kafka, &stack.group, created) == [(0, 4)]).then_some(())
    });
}
