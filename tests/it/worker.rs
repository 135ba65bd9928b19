//! The worker, from order.created to order.processed, while workers start, stop and crash.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::features::has_consumer_protocol;
use crate::support::http::{get, post};
use crate::support::program::{Program, Stack, id};
use crate::support::topic::{self, Record, records, wait_for_records};
use crate::support::{eventually, librdkafka};

/// Long enough for a group to notice a dead member and to move its partitions, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

fn processed(worker: &Program, outcome: &str) -> f64 {
    let sample = format!(r#"orders_processed_total{{outcome="{outcome}"}}"#);
    worker
        .metric(&sample)
        .expect("the counter is there from the start")
}

/// Waits until the newest offsets of order.created are all committed.
fn wait_until_all_is_committed(stack: &Stack) {
    let mut ends: HashMap<i32, i64> = HashMap::new();
    for record in records(&stack.kafka, &stack.topics.created) {
        let end = ends.entry(record.partition).or_default();
        *end = (*end).max(record.offset + 1);
    }
    eventually(SOON, "the offsets to be committed", || {
        let committed: HashMap<i32, i64> =
            topic::committed(&stack.kafka, &stack.group, &stack.topics.created)
                .into_iter()
                .collect();
        ends.iter()
            .all(|(partition, end)| committed.get(partition) == Some(end))
            .then_some(())
    });
}

#[test]
fn an_order_is_completed_and_announced() {
    let stack = Stack::new();
    let (api, worker) = (stack.api(), stack.worker());
    let order = api.accepted_order();
    stack.all_become("completed", 1, SOON);
    let completed = get(format!("/v1/orders/{}", id(&order)))
        .send(&api.address())
        .json();
    assert!(completed["updated_at"].as_str() > order["updated_at"].as_str());

    let created = wait_for_records(&stack.kafka, &stack.topics.created, 1, SOON);
    let announced = wait_for_records(&stack.kafka, &stack.topics.processed, 1, SOON);
    for (records, topic, data) in [
        (&created, &stack.topics.created, &order),
        (&announced, &stack.topics.processed, &completed),
    ] {
        assert_eq!(records.len(), 1);
        let record = &records[0];
        assert_eq!(record.key(), id(&order));
        assert!(
            record
                .header("content-type")
                .starts_with("application/cloudevents+json")
        );
        assert!(record.header("traceparent").starts_with("00-"));
        let event = record.json();
        assert_eq!(event["specversion"], "1.0");
        assert_eq!(event["type"], **topic);
        assert_eq!(event["subject"], id(&order));
        assert_eq!(event["datacontenttype"], "application/json");
        assert_eq!(event["data"], *data);
        for text in ["id", "source", "time"] {
            assert!(
                event[text].as_str().is_some_and(|t| !t.is_empty()),
                "{text}: {event}"
            );
        }
    }
    assert_ne!(created[0].json()["id"], announced[0].json()["id"]);
    wait_until_all_is_committed(&stack);
    assert_eq!(processed(&worker, "completed"), 1.0);
    assert!(records(&stack.kafka, &stack.topics.dlq).is_empty());
}

#[test]
fn orders_that_came_before_the_first_worker_are_processed() {
    let stack = Stack::new();
    let api = stack.api();
    for _ in 0..20 {
        api.accepted_order();
    }
    let _worker = stack.worker();
    stack.all_become("completed", 20, SOON);
}

/// Orders that wait in one partition, written at once. The topics and the tables exist.
fn backlog(stack: &Stack, count: usize) {
    let ids: Vec<String> = (0..count).map(|_| Uuid::now_v7().to_string()).collect();
    stack.execute(&format!(
        "INSERT INTO orders (id, customer_email, amount_cents, status, created_at, updated_at)
         SELECT id, 'user@example.com', 1299, 'pending', now(), now() FROM unnest('{{{}}}'::uuid[]) AS id",
        ids.join(",")
    ));
    let created = &stack.topics.created;
    let event = |id: &String| {
        let event = json!({
            "specversion": "1.0", "id": id, "source": "/tests", "type": created, "subject": id, "data": { "id": id },
        });
        Record::new(id, Some(&event.to_string()))
    };
    let events: Vec<Record> = ids.iter().map(event).collect();
    topic::write(&stack.kafka, created, &events);
}

/// One after another, the pauses between the attempts would take four minutes.
#[test]
fn orders_that_fail_wait_for_their_next_attempt_together() {
    let stack = Stack::new()
        .set("WORKER_CONCURRENCY", "1")
        .set("PROCESSING_FAILURE_RATE", "0.8");
    drop(stack.api());
    backlog(&stack, 600);
    let worker = stack.worker();
    let done = "SELECT count(*) FROM orders WHERE status IN ('completed', 'failed')";
    eventually(SOON, "every order to end", || {
        (stack.number(done) == 600).then_some(())
    });
    wait_until_all_is_committed(&stack);
    let failed = stack.count("orders WHERE status = 'failed'");
    assert_eq!(processed(&worker, "failed"), failed as f64);
    assert_eq!(processed(&worker, "completed"), 600.0 - failed as f64);
    let letters = records(&stack.kafka, &stack.topics.dlq);
    assert_eq!(letters.len() as i64, failed);
    assert!(
        letters
            .iter()
            .all(|letter| letter.header("dlq-attempts") == "3")
    );
}

/// The first failures are known after 0.6 s of pauses, however many orders wait behind them.
#[test]
fn what_is_done_is_stored_and_announced_while_other_orders_wait() {
    let stack = Stack::new()
        .set("WORKER_CONCURRENCY", "1")
        .set("PROCESSING_FAILURE_RATE", "0.5")
        .set("WORKER_MAX_ATTEMPTS", "100");
    drop(stack.api());
    backlog(&stack, 600);
    let _worker = stack.worker();
    let processing = "SELECT count(*) FROM orders WHERE status = 'processing'";
    eventually(SOON, "announcements while others wait", || {
        let announced = records(&stack.kafka, &stack.topics.processed).len();
        (announced > 0 && stack.number(processing) > 0).then_some(())
    });
    stack.all_become("completed", 600, SOON);
    wait_until_all_is_committed(&stack);
    assert_eq!(records(&stack.kafka, &stack.topics.processed).len(), 600);
}

#[test]
fn a_canceled_order_is_skipped() {
    let stack = Stack::new();
    let api = stack.api();
    let (canceled, kept) = (api.accepted_order(), api.accepted_order());
    let path = format!("/v1/orders/{}/cancel", id(&canceled));
    assert_eq!(post(path).send(&api.address()).status, 200);
    let worker = stack.worker();
    stack.all_become("completed", 1, SOON);
    wait_until_all_is_committed(&stack);
    assert_eq!(stack.status(id(&canceled)), "canceled");
    assert_eq!(
        (
            processed(&worker, "canceled"),
            processed(&worker, "completed")
        ),
        (1.0, 1.0)
    );
    let announced = records(&stack.kafka, &stack.topics.processed);
    assert!(announced.iter().all(|record| record.key() == id(&kept)));
    assert!(records(&stack.kafka, &stack.topics.dlq).is_empty());
}

#[test]
fn a_replayed_message_is_announced_again_and_changes_nothing() {
    let stack = Stack::new();
    let (api, worker) = (stack.api(), stack.worker());
    let order = api.accepted_order();
    let first = wait_for_records(&stack.kafka, &stack.topics.processed, 1, SOON);
    let completed = get(format!("/v1/orders/{}", id(&order))).send(&api.address());

    let created = records(&stack.kafka, &stack.topics.created).remove(0);
    topic::write(&stack.kafka, &stack.topics.created, &[created]);
    let announced = wait_for_records(&stack.kafka, &stack.topics.processed, 2, SOON);
    let again = get(format!("/v1/orders/{}", id(&order))).send(&api.address());
    assert_eq!(
        (again.body.clone(), again.header("ETag")),
        (completed.body.clone(), completed.header("ETag"))
    );
    for record in &announced {
        assert_eq!(
            (record.json(), record.key()),
            (first[0].json(), first[0].key())
        );
    }
    assert_eq!(
        (
            processed(&worker, "completed"),
            processed(&worker, "duplicate")
        ),
        (1.0, 1.0)
    );
}

#[test]
fn a_partition_that_ends_with_a_transactions_marker_has_no_lag() {
    let stack = Stack::new().set("KAFKA_TOPIC_PARTITIONS", "1");
    let (api, _worker) = (stack.api(), stack.worker());
    let mut child = librdkafka()
        .args(["transact", &stack.kafka, &stack.topics.created])
        .stdin(Stdio::piped())
        .spawn()
        .expect("start librdkafka");
    let mut input = child.stdin.take().expect("stdin is piped");
    input
        .write_all(b"committed\tno event\naborted\tno event\n")
        .expect("feed librdkafka");
    drop(input);
    assert!(child.wait().expect("wait for librdkafka").success());
    // Two records, each followed by a marker.
    eventually(SOON, "the position behind the last marker", || {
        let committed = topic::committed(&stack.kafka, &stack.group, &stack.topics.created);
        (committed == [(0, 4)]).then_some(())
    });
    let lag = format!(
        r#"kafka_consumer_lag{{group="{}",partition="0",topic="{}"}}"#,
        stack.group, stack.topics.created
    );
    api.metric_becomes(&lag, 0.0);
}

#[test]
fn a_killed_workers_orders_are_finished_by_another() {
    let stack = Stack::new()
        .set("PROCESSING_TIME", "20ms")
        .set("WORKER_CONCURRENCY", "2");
    let api = stack.api();
    let orders: Vec<Value> = (0..200).map(|_| api.accepted_order()).collect();
    let mut victim = stack.worker();
    let completed = "SELECT count(*) FROM orders WHERE status = 'completed'";
    eventually(SOON, "some orders to be completed", || {
        (stack.number(completed) >= 20).then_some(())
    });
    victim.kill();
    assert!(stack.number(completed) < 200, "killed in the middle");

    let _heir = stack.worker();
    stack.all_become("completed", 200, SOON);
    let wanted: HashSet<&str> = orders.iter().map(id).collect();
    // Orders completed before the kill may not have been announced yet; they are announced now.
    eventually(SOON, "every order to be announced", || {
        let announced = records(&stack.kafka, &stack.topics.processed);
        let announced: HashSet<String> = announced.iter().map(|r| r.key().to_owned()).collect();
        wanted
            .iter()
            .all(|id| announced.contains(*id))
            .then_some(())
    });
    assert_each_order_has_one_event(&records(&stack.kafka, &stack.topics.processed));
    wait_until_all_is_committed(&stack);
    assert!(records(&stack.kafka, &stack.topics.dlq).is_empty());
}

/// Checks that all announcements of an order are the same event.
fn assert_each_order_has_one_event(announced: &[Record]) {
    let mut events: HashMap<String, Value> = HashMap::new();
    for record in announced {
        let event = record.json();
        let known = events
            .entry(record.key().to_owned())
            .or_insert_with(|| event.clone());
        assert_eq!(*known, event);
    }
}

#[test]
fn workers_that_come_and_go_lose_nothing() {
    workers_come_and_go(Stack::new());
}

#[test]
fn workers_of_the_consumer_protocol_that_come_and_go_lose_nothing() {
    if has_consumer_protocol() {
        workers_come_and_go(Stack::new().set("KAFKA_GROUP_PROTOCOL", "consumer"));
    }
}

#[test]
fn workers_that_come_and_go_lose_no_order_that_waits_for_its_next_attempt() {
    let stack = Stack::new()
        .set("PROCESSING_FAILURE_RATE", "0.5")
        .set("WORKER_MAX_ATTEMPTS", "100");
    workers_come_and_go(stack);
}

fn workers_come_and_go(stack: Stack) {
    let stack = stack
        .set("PROCESSING_TIME", "10ms")
        .set("WORKER_CONCURRENCY", "2");
    let api = stack.api();
    let mut first = stack.worker();
    let orders = |count| {
        for _ in 0..count {
            api.accepted_order();
        }
    };
    orders(60);
    let second = stack.worker();
    orders(60);
    first.terminate();
    let status = first.wait(Duration::from_secs(30));
    assert_eq!(status.code(), Some(0));
    orders(60);
    stack.all_become("completed", 180, SOON);
    wait_until_all_is_committed(&stack);
    assert_eq!(processed(&second, "failed"), 0.0);
}

#[test]
fn a_worker_that_is_asked_to_end_leaves_no_order_half_done() {
    let stack = Stack::new()
        .set("PROCESSING_TIME", "30ms")
        .set("WORKER_CONCURRENCY", "2");
    let api = stack.api();
    for _ in 0..80 {
        api.accepted_order();
    }
    let mut first = stack.worker();
    let completed = "SELECT count(*) FROM orders WHERE status = 'completed'";
    eventually(SOON, "some orders to be completed", || {
        (stack.number(completed) >= 5).then_some(())
    });
    first.terminate();
    assert_eq!(first.wait(Duration::from_secs(30)).code(), Some(0));
    assert!(stack.number(completed) < 80, "ended in the middle");

    // It had announced and committed every order that it completed.
    let second = stack.worker();
    stack.all_become("completed", 80, SOON);
    wait_until_all_is_committed(&stack);
    assert_eq!(processed(&second, "duplicate"), 0.0);
    assert_eq!(records(&stack.kafka, &stack.topics.processed).len(), 80);
}
