//! Several api instances on one database and one Kafka: everything happens exactly once.

use std::collections::{HashMap, HashSet};
use std::thread;
use std::time::Duration;

use crate::support::http::Response;
use crate::support::program::{Program, Stack, id};
use crate::support::topic::records;
use crate::support::{OwnServer, eventually, postgres, unique};

const SOON: Duration = Duration::from_secs(60);
/// "... and is back within 30 s of its end", and some.
const BACK: Duration = Duration::from_secs(40);

fn three(stack: &Stack) -> Vec<Program> {
    let apis: Vec<Program> = (0..3).map(|_| stack.start_api()).collect();
    apis.into_iter().map(Program::ready).collect()
}

/// The answer to an order under `key`, once no twin is running any more.
fn settled(api: &Program, key: &str, amount_cents: u64) -> Response {
    eventually(SOON, "the twin to end", || {
        let response = api.order(key, amount_cents);
        (response.status != 409).then_some(response)
    })
}

/// Checks that every order in the database has its event, and every event its order.
fn assert_each_order_has_its_event(stack: &Stack) {
    eventually(SOON, "the outbox to be empty", || {
        (stack.count("outbox") == 0).then_some(())
    });
    let published: HashSet<String> = records(&stack.kafka, &stack.topics.created)
        .iter()
        .map(|record| record.key().to_owned())
        .collect();
    let rows = stack
        .database
        .connect()
        .query("SELECT id::text FROM orders", &[]);
    let orders: HashSet<String> = rows
        .expect("the orders")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(published, orders);
}

/// Checks that each key names one existing order, and that no two keys name the same one.
fn assert_keys_and_orders_match(stack: &Stack, count: usize) {
    let count = i64::try_from(count).expect("few");
    let pairs = "SELECT count(DISTINCT k.order_id) FROM idempotency_keys k JOIN orders o ON o.id = k.order_id";
    assert_eq!(stack.number(pairs), count);
    assert_eq!(
        (stack.count("orders"), stack.count("idempotency_keys")),
        (count, count)
    );
}

/// Sends an order under each of `keys`, all at once, to the apis in turn; the answers in the keys'
/// order.
fn all_at_once(apis: &[Program], keys: &[String]) -> Vec<Response> {
    thread::scope(|scope| {
        let sent: Vec<_> = keys
            .iter()
            .zip(apis.iter().cycle())
            .map(|(key, api)| scope.spawn(move || api.order(key, 1299)))
            .collect();
        let answers = sent.into_iter().map(|answer| answer.join());
        answers.map(|answer| answer.expect("no panic")).collect()
    })
}

#[test]
fn clients_that_hammer_the_same_keys_at_every_instance_get_one_order_each() {
    const CLIENTS: usize = 9;
    let stack = Stack::new();
    let apis = three(&stack);
    assert_eq!(stack.count("schema_migrations"), 1);
    let keys: Vec<String> = (0..30).map(|_| unique("key")).collect();
    let answers: Vec<(usize, u64, Response)> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (apis, keys) = (&apis, &keys);
                scope.spawn(move || {
                    // Every third client sends another order under each key.
                    let amount = if client % 3 == 2 { 2 } else { 1 };
                    let answer = |key: usize| {
                        let api = &apis[(client + key) % apis.len()];
                        (key, amount, settled(api, &keys[key], amount))
                    };
                    (0..keys.len()).map(answer).collect::<Vec<_>>()
                })
            })
            .collect();
        let joined = clients.into_iter().map(|client| client.join());
        joined
            .flat_map(|answers| answers.expect("no panic"))
            .collect()
    });
    let mut orders: HashMap<usize, (u64, Vec<u8>)> = HashMap::new();
    for (key, amount, response) in &answers {
        if response.status == 202 {
            let won = orders
                .entry(*key)
                .or_insert((*amount, response.body.clone()));
            assert_eq!(*won, (*amount, response.body.clone()), "key {key}");
        }
    }
    assert_eq!(orders.len(), keys.len());
    for (key, amount, response) in &answers {
        let expected = if orders[key].0 == *amount { 202 } else { 422 };
        assert_eq!(response.status, expected, "{}", response.text());
    }
    let first = answers.iter().filter(|(_, _, response)| {
        response.status == 202 && response.header("Idempotent-Replayed").is_none()
    });
    assert_eq!(first.count(), keys.len());
    assert_keys_and_orders_match(&stack, keys.len());
    assert_each_order_has_its_event(&stack);
    let created: f64 = apis
        .iter()
        .map(|api| api.metric("orders_created_total").expect("a counter"))
        .sum();
    assert_eq!(created, keys.len() as f64);
}

#[test]
fn in_direct_mode_three_relays_publish_what_an_outage_left_and_three_sweepers_sweep() {
    let broker = OwnServer::kafka();
    let stack = Stack::on(postgres(), broker.address());
    let mut apis = three(&stack);
    // More than one batch for each instance.
    stack.execute(
        "INSERT INTO idempotency_keys (key, request_hash, response_status, response_body, order_id, created_at, expires_at)
         SELECT 'expired-' || n, '', 202, '', gen_random_uuid(), now(), now() FROM generate_series(1, 4000) AS n",
    );
    let keys: Vec<String> = (0..24).map(|_| unique("key")).collect();
    broker.kill();
    for refused in all_at_once(&apis, &keys) {
        refused.problem(503, "dependency-unavailable");
    }
    assert_eq!(stack.count("orders"), 24, "every order is safe");
    assert_eq!(stack.count("outbox"), 24);

    broker.start();
    for api in &mut apis {
        api.become_ready(BACK);
    }
    assert_each_order_has_its_event(&stack);
    // Each client repeats its request at another instance and finds its order.
    apis.rotate_left(1);
    let resumed: HashSet<String> = all_at_once(&apis, &keys)
        .iter()
        .map(|response| {
            assert_eq!(response.status, 202, "{}", response.text());
            id(&response.json()).to_owned()
        })
        .collect();
    assert_eq!(resumed.len(), keys.len());
    eventually(
        Duration::from_secs(120),
        "the expired keys to be swept",
        || (stack.count("idempotency_keys") == 24).then_some(()),
    );
    assert_keys_and_orders_match(&stack, keys.len());
    assert_each_order_has_its_event(&stack);
}

#[test]
fn in_outbox_mode_three_relays_share_what_an_outage_left() {
    let broker = OwnServer::kafka();
    let stack = Stack::on(postgres(), broker.address()).set("EVENT_DELIVERY", "outbox");
    let mut apis = three(&stack);
    let keys: Vec<String> = (0..60).map(|_| unique("key")).collect();
    broker.kill();
    for accepted in all_at_once(&apis, &keys[..30]) {
        assert_eq!(accepted.status, 202, "{}", accepted.text());
    }
    broker.start();
    for accepted in all_at_once(&apis, &keys[30..]) {
        assert_eq!(accepted.status, 202, "{}", accepted.text());
    }
    for api in &mut apis {
        api.become_ready(BACK);
    }
    assert_each_order_has_its_event(&stack);
    assert_keys_and_orders_match(&stack, keys.len());
    // Once everything is healthy again, one instance publishes each event, once.
    let before = records(&stack.kafka, &stack.topics.created).len();
    let more: Vec<String> = (0..60).map(|_| unique("key")).collect();
    all_at_once(&apis, &more);
    assert_each_order_has_its_event(&stack);
    assert_eq!(
        records(&stack.kafka, &stack.topics.created).len(),
        before + 60
    );
}
