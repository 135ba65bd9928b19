//! Records that Kafka refuses because of a setting, a right or a clock: they wait until the cause is
//! fixed, and none is skipped.

use std::collections::HashSet;
use std::time::Duration;

use crate::support::eventually;
use crate::support::http::get;
use crate::support::program::{Program, Stack};
use crate::support::topic::{self, Record, configure, records, wait_for_records, write};

/// Long enough for a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// The size limit of a topic without a setting of its own.
const DEFAULT_BYTES: &str = "1048588";

fn waiting(worker: &Program, topic: &str) -> f64 {
    let sample = format!(r#"worker_announcements_waiting{{topic="{topic}"}}"#);
    worker.metric(&sample).expect("the gauge is there")
}

fn committed(stack: &Stack) -> i64 {
    let committed = topic::committed(&stack.kafka, &stack.group, &stack.topics.created);
    committed.iter().map(|(_, offset)| offset.max(&0)).sum()
}

/// Expects the worker's readiness to say why announcements for `topic` wait.
fn says_why(worker: &Program, topic: &str, why: &str) {
    eventually(SOON, "readiness to say why", || {
        let ready = get("/readyz").send(&worker.address());
        let checks = ready.json()["checks"].clone();
        let kafka = checks["kafka"].as_str().expect("a result").to_owned();
        let says = ready.status == 503 && kafka.contains(topic) && kafka.contains(why);
        says.then(|| assert_eq!(checks["database"], "ok"))
    });
    assert_eq!(get("/healthz").send(&worker.address()).status, 200);
}

/// With `setting` on order.processed Kafka refuses every announcement with the reason `why`.
fn announcements_wait(setting: &str, bad: &str, good: &str, why: &str) {
    let stack = Stack::new();
    let api = stack.api();
    let processed = &stack.topics.processed;
    configure(&stack.kafka, processed, setting, bad);
    let mut worker = stack.worker();
    for _ in 0..20 {
        api.accepted_order();
    }
    says_why(&worker, processed, why);
    eventually(SOON, "announcements to be counted", || {
        (waiting(&worker, processed) > 0.0).then_some(())
    });
    let log = worker.log();
    let warned = log.iter().filter(|line| line.contains("have to wait"));
    assert!((1..20).contains(&warned.count()), "not one for each order");

    configure(&stack.kafka, processed, setting, good);
    worker.become_ready(SOON);
    stack.all_become("completed", 20, SOON);
    let announced = wait_for_records(&stack.kafka, processed, 20, SOON);
    assert_eq!(announced.len(), 20);
    eventually(SOON, "the offsets to be committed", || {
        (committed(&stack) == 20).then_some(())
    });
    assert_eq!(waiting(&worker, processed), 0.0);
    let failures = format!(
        r#"kafka_consumer_commit_failures_total{{group="{}"}}"#,
        stack.group
    );
    assert_eq!(worker.metric(&failures), Some(0.0));
}

#[test]
fn announcements_too_large_for_a_topics_setting_wait_until_it_is_mended() {
    announcements_wait(
        "max.message.bytes",
        "100",
        DEFAULT_BYTES,
        "max.message.bytes",
    );
}

/// A limit of one millisecond on a record's age has the same effect as a wrong clock of the worker.
#[test]
fn announcements_with_a_time_that_kafka_does_not_take_wait_until_the_clocks_agree() {
    let (setting, week) = ("message.timestamp.before.max.ms", "604800000");
    announcements_wait(setting, "0", week, "clock");
}

#[test]
fn a_worker_whose_announcements_wait_lets_others_have_partitions() {
    let stack = Stack::new().set("WORKER_CONCURRENCY", "1");
    let api = stack.api();
    let processed = &stack.topics.processed;
    let limit = |bytes| configure(&stack.kafka, processed, "max.message.bytes", bytes);
    limit("100");
    let mut first = stack.worker();
    for _ in 0..20 {
        api.accepted_order();
    }
    says_why(&first, processed, "max.message.bytes");
    let mut second = stack.start_worker();
    eventually(SOON, "an answer", || {
        let healthy = get("/healthz").try_send(&second.address());
        healthy.ok().filter(|answer| answer.status == 200)
    });
    let group = &stack.group;
    let assigned = format!(r#"kafka_consumer_assigned_partitions{{group="{group}"}}"#);
    eventually(SOON, "partitions to move", || {
        second
            .metric(&assigned)
            .is_some_and(|count| count > 0.0)
            .then_some(())
    });

    limit(DEFAULT_BYTES);
    first.become_ready(SOON);
    second.become_ready(SOON);
    eventually(SOON, "every order to be announced", || {
        let announced = records(&stack.kafka, processed);
        let orders: HashSet<&str> = announced.iter().map(|record| record.key()).collect();
        (orders.len() == 20 && committed(&stack) == 20).then_some(())
    });
}

#[test]
fn what_is_announced_as_failed_and_dead_waits_too() {
    let stack = Stack::new().set("PROCESSING_FAILURE_RATE", "1");
    let api = stack.api();
    let (failed, dlq) = (&stack.topics.failed, &stack.topics.dlq);
    for topic in [failed, dlq] {
        configure(&stack.kafka, topic, "max.message.bytes", "100");
    }
    let mut worker = stack.worker();
    api.accepted_order();
    write(
        &stack.kafka,
        &stack.topics.created,
        &[Record::new("garbage", Some("{"))],
    );
    stack.all_become("failed", 1, SOON);
    eventually(SOON, "both letters to wait", || {
        (waiting(&worker, dlq) == 2.0 && waiting(&worker, failed) == 1.0).then_some(())
    });
    says_why(&worker, dlq, "MessageTooLarge");
    assert_eq!(committed(&stack), 0, "nothing is passed over");
    let dead = |reason| format!(r#"orders_dead_lettered_total{{reason="{reason}"}}"#);
    assert_eq!(worker.metric(&dead("undecodable")), Some(0.0));

    for topic in [failed, dlq] {
        configure(&stack.kafka, topic, "max.message.bytes", DEFAULT_BYTES);
    }
    worker.become_ready(SOON);
    let letters = wait_for_records(&stack.kafka, dlq, 2, SOON);
    assert_eq!(letters.len(), 2);
    let whole = |letter: &Record| letter.value.is_some();
    assert!(letters.iter().all(whole), "{letters:?}");
    eventually(SOON, "the offsets to be committed", || {
        (committed(&stack) == 2).then_some(())
    });
    assert_eq!(records(&stack.kafka, failed).len(), 1);
    for reason in ["undecodable", "failed"] {
        assert_eq!(worker.metric(&dead(reason)), Some(1.0), "{reason}");
    }
}
