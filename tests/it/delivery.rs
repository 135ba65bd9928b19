//! Event delivery: every committed order gets its event, in every delivery mode.

use std::collections::HashSet;
use std::time::Duration;

use crate::support::eventually;
use crate::support::program::{Stack, id};
use crate::support::topic::{records, wait_for_records};

const SOON: Duration = Duration::from_secs(60);

fn wait_until_the_outbox_is_empty(stack: &Stack) {
    eventually(SOON, "the outbox to be empty", || {
        (stack.count("outbox") == 0).then_some(())
    });
}

#[test]
fn in_direct_mode_an_accepted_orders_event_is_there_already() {
    let stack = Stack::new();
    let api = stack.api();
    for count in 1..=5 {
        api.accepted_order();
        assert_eq!(records(&stack.kafka, &stack.topics.created).len(), count);
    }
    wait_until_the_outbox_is_empty(&stack);
    assert_eq!(
        records(&stack.kafka, &stack.topics.created).len(),
        5,
        "published once each"
    );
}

#[test]
fn in_outbox_mode_the_relay_publishes_every_order() {
    let stack = Stack::new().set("EVENT_DELIVERY", "outbox");
    let (one, other) = (stack.start_api(), stack.start_api());
    let (one, other) = (one.ready(), other.ready());
    let mut ids = HashSet::new();
    for _ in 0..50 {
        for api in [&one, &other] {
            ids.insert(id(&api.accepted_order()).to_owned());
        }
    }
    wait_until_the_outbox_is_empty(&stack);
    let events = wait_for_records(&stack.kafka, &stack.topics.created, 100, SOON);
    let published: HashSet<String> = events
        .iter()
        .map(|record| record.key().to_owned())
        .collect();
    assert_eq!(published, ids);
}

#[test]
fn what_a_killed_api_left_in_the_outbox_is_published_by_the_next() {
    let stack = Stack::new();
    let mut first = stack.api();
    let order = first.accepted_order();
    wait_until_the_outbox_is_empty(&stack);
    let event = records(&stack.kafka, &stack.topics.created).remove(0);
    first.kill();
    // As if the api had died between the commit and the publish, a minute ago.
    let payload = String::from_utf8(event.value.clone().expect("a value").to_vec()).expect("UTF-8");
    let mut client = stack.database.connect();
    let id = uuid::Uuid::parse_str(id(&order)).expect("a UUID");
    client
        .execute(
            "INSERT INTO outbox (order_id, payload, created_at) VALUES ($1, $2, now() - interval '1 minute')",
            &[&id, &payload.as_bytes()],
        )
        .expect("leave a row");
    let _second = stack.api();
    let events = wait_for_records(&stack.kafka, &stack.topics.created, 2, SOON);
    assert_eq!(
        (events[0].json(), events[0].key()),
        (events[1].json(), events[1].key())
    );
    wait_until_the_outbox_is_empty(&stack);
}
