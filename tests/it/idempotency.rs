//! The Idempotency-Key of `POST /v1/orders`: one key makes one order and has one answer.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::http::{Response, post};
use crate::support::program::{Program, Stack, id, new_order};
use crate::support::{eventually, unique};

/// The answers to `count` equal requests sent at once.
fn at_once(apis: &[&Program], key: &str, count: usize) -> Vec<Response> {
    thread::scope(|scope| {
        let sent: Vec<_> = (0..count)
            .map(|n| scope.spawn(move || apis[n % apis.len()].order(key, 1299)))
            .collect();
        sent.into_iter()
            .map(|answer| answer.join().expect("no panic"))
            .collect()
    })
}

fn is_replay(response: &Response) -> bool {
    response.header("Idempotent-Replayed") == Some("true")
}

#[test]
fn requests_with_one_key_at_once_make_one_order_and_get_one_answer() {
    let stack = Stack::new();
    let api = stack.api();
    for _ in 0..5 {
        let key = unique("key");
        let answers = at_once(&[&api], &key, 32);
        for answer in &answers {
            assert_eq!(answer.status, 202, "{}", answer.text());
            assert_eq!(answer.body, answers[0].body);
            assert_eq!(answer.header("Location"), answers[0].header("Location"));
        }
        assert_eq!(
            answers.iter().filter(|answer| !is_replay(answer)).count(),
            1
        );
    }
    assert_eq!(
        (stack.count("orders"), stack.count("idempotency_keys")),
        (5, 5)
    );
    assert_eq!(api.metric("orders_created_total"), Some(5.0));
    assert_eq!(api.metric("idempotency_hits_total"), Some(5.0 * 31.0));
}

#[test]
fn two_instances_share_their_keys() {
    let stack = Stack::new();
    let (one, other) = (stack.start_api(), stack.start_api());
    let (one, other) = (one.ready(), other.ready());
    let answers = at_once(&[&one, &other], &unique("key"), 32);
    assert!(
        answers
            .iter()
            .all(|answer| answer.status == 202 && answer.body == answers[0].body)
    );
    assert_eq!(stack.count("orders"), 1);
}

#[test]
fn a_replay_is_the_first_answer_byte_for_byte_in_every_later_status() {
    let stack = Stack::new();
    let api = stack.api();
    let key = unique("key");
    let first = api.order(&key, 1299);
    assert_eq!(first.status, 202);
    let order_id = id(&first.json()).to_owned();
    for status in ["pending", "processing", "completed", "failed"] {
        stack.execute(&format!(
            "UPDATE orders SET status = '{status}', updated_at = now()"
        ));
        let replay = api.order(&key, 1299);
        assert!(is_replay(&replay));
        assert_eq!(
            (replay.status, &replay.body),
            (202, &first.body),
            "{status}"
        );
        assert_eq!(replay.header("Location"), first.header("Location"));
        assert_eq!(replay.header("Content-Type"), first.header("Content-Type"));
    }
    stack.execute("UPDATE orders SET status = 'pending'");
    assert_eq!(
        post(format!("/v1/orders/{order_id}/cancel"))
            .send(&api.address())
            .status,
        200
    );
    assert_eq!(api.order(&key, 1299).body, first.body);
    assert_eq!(stack.count("orders"), 1);
}

#[test]
fn quotes_and_parameters_are_not_part_of_a_key() {
    let stack = Stack::new();
    let api = stack.api();
    let key = unique("key");
    let first = api.order(&key, 1299);
    for same in [format!("\"{key}\""), format!("\"{key}\";a=1; b=\"x\"")] {
        let replay = api.order(&same, 1299);
        assert!(is_replay(&replay), "{same}: {}", replay.text());
        assert_eq!(replay.body, first.body);
    }
    for malformed in [format!("\"{key}"), format!("\"{key}\";a=(1)")] {
        let refused = api.order(&malformed, 1299);
        refused.problem(400, "idempotency-key-invalid");
    }
    assert_eq!(stack.count("orders"), 1);
}

#[test]
fn the_meaning_of_a_request_counts_and_not_its_text() {
    let stack = Stack::new();
    let api = stack.api();
    let key = unique("key");
    let send = |body: &str| {
        post("/v1/orders")
            .header("Idempotency-Key", &key)
            .json(body)
            .send(&api.address())
    };
    let first = send(r#"{"customer_email":"a@b.co","amount_cents":5}"#);
    assert_eq!(first.status, 202);
    let same = send(" {\n\"amount_cents\" : 5 , \"customer_email\":\"a\\u0040b.co\" } ");
    assert_eq!((same.status, same.body), (202, first.body));
    for other in [
        r#"{"customer_email":"a@b.co","amount_cents":6}"#,
        r#"{"customer_email":"A@b.co","amount_cents":5}"#,
    ] {
        send(other).problem(422, "idempotency-key-reused");
    }
    assert_eq!(stack.count("orders"), 1);
}

#[test]
fn a_key_in_quotes_is_the_same_key() {
    let stack = Stack::new();
    let api = stack.api();
    let key = unique("key");
    let first = api.order(&key, 1);
    let quoted = api.order(&format!("\"{key}\""), 1);
    assert!(is_replay(&quoted));
    assert_eq!(quoted.body, first.body);
    assert_ne!(
        api.order(&key.to_uppercase(), 1).body,
        first.body,
        "case makes another key"
    );
}

#[test]
fn a_refused_request_does_not_use_up_its_key() {
    let stack = Stack::new();
    let api = stack.api();
    let key = unique("key");
    post("/v1/orders")
        .header("Idempotency-Key", &key)
        .json("{}")
        .send(&api.address())
        .problem(400, "validation-failed");
    let accepted = api.order(&key, 1);
    assert_eq!((accepted.status, is_replay(&accepted)), (202, false));
}

#[test]
fn a_key_is_kept_for_its_time_and_no_longer() {
    let stack = Stack::new().set("IDEMPOTENCY_TTL", "25h");
    let api = stack.api();
    let key = unique("key");
    let first = api.order(&key, 1);
    assert_eq!(
        stack.number(
            "SELECT extract(epoch FROM expires_at - created_at)::bigint FROM idempotency_keys"
        ),
        25 * 3600
    );
    stack.execute("UPDATE idempotency_keys SET expires_at = now() + interval '1 minute'");
    api.order(&key, 2).problem(422, "idempotency-key-reused");
    stack.execute("UPDATE idempotency_keys SET expires_at = now() - interval '1 second'");
    let renewed = api.order(&key, 2);
    assert_eq!((renewed.status, is_replay(&renewed)), (202, false));
    assert_ne!(renewed.header("Location"), first.header("Location"));
    let replay = api.order(&key, 2);
    assert!(is_replay(&replay));
    assert_eq!(replay.body, renewed.body);
    assert_eq!(
        (stack.count("orders"), stack.count("idempotency_keys")),
        (2, 1)
    );
}

#[test]
fn requests_at_once_with_one_expired_key_make_one_more_order() {
    let stack = Stack::new();
    let api = stack.api();
    let key = unique("key");
    let first = api.order(&key, 1299);
    stack.execute("UPDATE idempotency_keys SET expires_at = now() - interval '1 second'");
    let answers = at_once(&[&api], &key, 16);
    assert!(
        answers
            .iter()
            .all(|answer| answer.status == 202 && answer.body == answers[0].body)
    );
    assert_ne!(answers[0].body, first.body);
    assert_eq!(stack.count("orders"), 2);
}

#[test]
fn a_twin_waits_for_the_first_for_a_bounded_time() {
    let stack = Stack::new();
    let api = stack.api();
    let key = unique("key");
    let first = api.order(&key, 1299);

    // As if the first request's transaction were still open.
    stack.execute("CREATE TABLE kept AS SELECT * FROM idempotency_keys");
    let mut running = stack.database.connect();
    hold_the_key(&stack, &mut running);
    let start = Instant::now();
    let conflict = api.order(&key, 1299);
    conflict.problem(409, "idempotency-key-in-progress");
    assert!(
        conflict
            .header("Retry-After")
            .is_some_and(|seconds| seconds.parse::<u32>().is_ok())
    );
    assert!(start.elapsed() < Duration::from_secs(30));

    // A request that commits while its twin waits is replayed ...
    let replay = thread::scope(|scope| {
        let twin = scope.spawn(|| api.order(&key, 1299));
        wait_until_blocked(&stack);
        running.batch_execute("COMMIT").expect("commit");
        twin.join().expect("no panic")
    });
    assert_eq!(replay.status, 202, "{}", replay.text());
    assert!(is_replay(&replay));
    assert_eq!(replay.body, first.body);

    // ... and a request that rolls back leaves the key to its twin.
    hold_the_key(&stack, &mut running);
    let answer = thread::scope(|scope| {
        let twin = scope.spawn(|| api.order(&key, 1299));
        wait_until_blocked(&stack);
        running.batch_execute("ROLLBACK").expect("roll back");
        twin.join().expect("no panic")
    });
    assert_eq!(
        (answer.status, is_replay(&answer)),
        (202, false),
        "{}",
        answer.text()
    );
    assert_eq!(stack.count("orders"), 2);
}

/// Inserts the key of the table `kept` in a transaction that stays open.
fn hold_the_key(stack: &Stack, running: &mut postgres::Client) {
    stack.execute("DELETE FROM idempotency_keys");
    running
        .batch_execute("BEGIN; INSERT INTO idempotency_keys SELECT * FROM kept")
        .expect("hold the key");
}

/// Waits until a session in the test's database waits for another session's lock.
fn wait_until_blocked(stack: &Stack) {
    let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually(Duration::from_secs(10), "a statement to be blocked", || {
        (stack.number(query) > 0).then_some(())
    });
}

#[test]
fn expired_keys_are_swept_and_others_stay() {
    let stack = Stack::new();
    let api = stack.api();
    let live = unique("key");
    let first = api.order(&live, 1);
    stack.execute(
        "INSERT INTO idempotency_keys (key, request_hash, response_status, response_body, order_id, created_at, expires_at)
         SELECT 'old-' || n, ''::bytea, 202, ''::bytea, gen_random_uuid(), now() - interval '4 days', now() - interval '1 day'
           FROM generate_series(1, 1200) AS n",
    );
    eventually(Duration::from_secs(100), "the sweep", || {
        (stack.count("idempotency_keys") == 1).then_some(())
    });
    assert_eq!(api.order(&live, 1).body, first.body);
}

#[test]
fn a_killed_request_leaves_nothing_or_everything() {
    let stack = Stack::new().set("EVENT_DELIVERY", "outbox");
    let keys: Vec<String> = (0..200).map(|_| unique("key")).collect();
    let mut api = stack.api();
    let address = api.address();
    thread::scope(|scope| {
        let sending: Vec<_> = keys
            .chunks(50)
            .map(|keys| {
                let address = &address;
                scope.spawn(move || {
                    for key in keys {
                        if new_order(key, 1299).try_send(address).is_err() {
                            return;
                        }
                    }
                })
            })
            .collect();
        eventually(Duration::from_secs(30), "some orders", || {
            (stack.count("orders") >= 20).then_some(())
        });
        api.kill();
        for thread in sending {
            thread.join().expect("no panic");
        }
    });
    let torn = "SELECT count(*) FROM idempotency_keys FULL JOIN orders ON orders.id = order_id WHERE key IS NULL OR id IS NULL";
    assert_eq!(stack.number(torn), 0);

    let api = stack.api();
    for key in &keys {
        assert_eq!(api.order(key, 1299).status, 202);
    }
    assert_eq!(stack.count("orders"), 200);
}
