//! A recreated topic: `order.created` is deleted and created again while both programs run.

use std::thread;
use std::time::Duration;

use crate::support::eventually;
use crate::support::features::has_consumer_protocol;
use crate::support::program::{Program, Stack, new_order};
use crate::support::recreate::recreate_topic;
use crate::support::unique;

/// Long enough for a group to notice, on a busy machine.
const SOON: Duration = Duration::from_secs(90);
const PARTITIONS: i32 = 16;
const ROUNDS: i64 = 5;
const ORDERS: i64 = 40;

#[test]
fn orders_accepted_after_the_topic_was_recreated_are_completed() {
    recreations("classic", "direct");
}

#[test]
fn the_same_holds_for_workers_of_the_consumer_protocol() {
    if has_consumer_protocol() {
        recreations("consumer", "direct");
    }
}

#[test]
fn the_same_holds_for_events_that_the_relay_publishes() {
    recreations("classic", "outbox");
}

fn recreations(protocol: &str, delivery: &str) {
    let stack = Stack::new()
        .set("KAFKA_GROUP_PROTOCOL", protocol)
        .set("EVENT_DELIVERY", delivery)
        .set("KAFKA_TOPIC_PARTITIONS", &PARTITIONS.to_string());
    let (api, worker) = (stack.api(), stack.worker());
    accept_at_once(&api, ORDERS);
    stack.all_become("completed", ORDERS, SOON);
    for round in 1..=ROUNDS {
        let brokers = std::slice::from_ref(&stack.kafka);
        recreate_topic(brokers, &stack.topics.created, PARTITIONS);
        accept_at_once(&api, ORDERS);
        stack.all_become("completed", (round + 1) * ORDERS, SOON);
    }
    if protocol == "classic" {
        // The positions had to start again, not the assignment.
        let replaced = format!(
            r#"kafka_consumer_replaced_partitions_total{{group="{}"}}"#,
            stack.group
        );
        assert!(worker.metric(&replaced) > Some(0.0));
        let says_so = |line: &String| line.contains("was deleted and created again");
        assert!(worker.log().iter().any(says_so));
    }
    no_lag_is_left(&stack, &api);
}

#[test]
fn a_partition_that_is_gone_has_no_lag_any_more() {
    let stack = Stack::new(); // without a worker, so that the lag stays
    let api = stack.api();
    accept_at_once(&api, ORDERS);
    let lag = |partition: i32| api.metric(&lag_of(&stack, partition));
    eventually(SOON, "a lag of each partition", || {
        (0..3)
            .all(|partition| lag(partition) > Some(0.0))
            .then_some(())
    });
    let brokers = std::slice::from_ref(&stack.kafka);
    recreate_topic(brokers, &stack.topics.created, 1);
    eventually(SOON, "the lag of the new topic alone", || {
        (lag(0) == Some(0.0) && lag(1).is_none() && lag(2).is_none()).then_some(())
    });
}

/// Sends orders concurrently, each until it is accepted.
fn accept_at_once(api: &Program, count: i64) {
    let address = api.address();
    thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| {
                let key = unique("key");
                eventually(SOON, "an order to be accepted", || {
                    let answer = new_order(&key, 1299).try_send(&address).ok()?;
                    (answer.status == 202).then_some(())
                });
            });
        }
    });
}

fn no_lag_is_left(stack: &Stack, api: &Program) {
    for partition in 0..PARTITIONS {
        api.metric_becomes(&lag_of(stack, partition), 0.0);
    }
}

fn lag_of(stack: &Stack, partition: i32) -> String {
    format!(
        r#"kafka_consumer_lag{{group="{}",partition="{partition}",topic="{}"}}"#,
        stack.group, stack.topics.created
    )
}
