//! Sagas on real servers and services: what orders, stock and payments are in the end.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::http::{get, post};
use crate::support::observers::{Collector, Span};
use crate::support::program::{Program, Stack, new_order, run};
use crate::support::services::Site;
use crate::support::topic::{self, Record, records, wait_for_records};
use crate::tracing::{assert_attributes, new_trace, traced};

/// Long enough for a group to notice a dead member, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// The steps of a saga as `name state`, compensations after them.
fn steps(saga: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for step in saga["steps"].as_array().expect("steps") {
        for it in [step, &step["compensation"]] {
            if let Some(name) = it["name"].as_str() {
                all.push(format!("{name} {}", it["state"].as_str().expect("a state")));
            }
        }
    }
    all
}

fn answered(worker: &Program, step: &str, outcome: &str) -> f64 {
    let sample = format!(r#"saga_steps_total{{outcome="{outcome}",step="{step}"}}"#);
    worker.metric(&sample).expect("it starts at 0")
}

#[test]
fn an_order_is_completed_with_everything_or_failed_with_nothing() {
    let site = Site::new(&[]);
    let worker = site.stack.worker();
    // Accepted; out of stock; declined.
    let [fine, no_stock, no_money] = [1299, 1202, 1251].map(|amount| site.order(amount));
    site.settle(SOON);
    // Answered after the deadline of the call, and so of all commands in the call: it comes alone.
    let late = site.order(1219);
    site.settle(SOON);

    let done = [
        "reserve_stock done",
        "authorize_payment done",
        "capture_payment done",
        "confirm_reservation done",
    ];
    for id in [&fine, &late] {
        let saga = site.saga(id);
        assert_eq!(
            (&saga["state"], &saga["reason"]),
            (&json!("completed"), &json!(null))
        );
        assert_eq!(steps(&saga), done);
    }
    assert!(
        site.saga(&late)["steps"][1]["attempts"].as_i64() >= Some(2),
        "its answer was late"
    );
    let saga = site.saga(&no_stock);
    assert_eq!(
        (&saga["state"], &saga["reason"]),
        (&json!("failed"), &json!("out_of_stock"))
    );
    assert_eq!(
        steps(&saga)[..2],
        ["reserve_stock refused", "authorize_payment pending"]
    );
    let saga = site.saga(&no_money);
    assert_eq!(
        (&saga["state"], &saga["reason"]),
        (&json!("failed"), &json!("insufficient_funds"))
    );
    let undone = [
        "reserve_stock done",
        "release_reservation done",
        "authorize_payment refused",
    ];
    assert_eq!(steps(&saga)[..3], undone);
    let books = [0, 2, 0, 2];
    assert_eq!(site.books(), books);

    let topics = &site.stack.topics;
    wait_for_records(&site.stack.kafka, &topics.processed, 2, SOON);
    let failed = wait_for_records(&site.stack.kafka, &topics.failed, 2, SOON);
    let of = |id: &str| {
        failed
            .iter()
            .find(|record| record.key() == id)
            .expect("an event")
            .json()
    };
    assert_eq!(of(&no_stock)["data"]["reason"], "out_of_stock");
    assert_eq!(of(&no_money)["data"]["reason"], "insufficient_funds");
    let dead = wait_for_records(&site.stack.kafka, &topics.dlq, 2, SOON);
    assert!(
        dead.iter()
            .all(|record| record.header("dlq-attempts") == "1")
    );
    assert_eq!(answered(&worker, "release_reservation", "done"), 1.0);
    assert_eq!(answered(&worker, "authorize_payment", "refused"), 1.0);
    worker.metric_becomes(r#"saga_duration_seconds_count{outcome="failed"}"#, 2.0);

    // The same messages once more: they are announced again, and nothing else happens.
    let created = records(&site.stack.kafka, &topics.created);
    let again: Vec<Record> = created
        .iter()
        .map(|it| Record::of_bytes(it.key(), it.json().to_string().into()))
        .collect();
    topic::write(&site.stack.kafka, &topics.created, &again);
    wait_for_records(&site.stack.kafka, &topics.processed, 4, SOON);
    wait_for_records(&site.stack.kafka, &topics.failed, 4, SOON);
    assert_eq!(site.books(), books);
}

#[test]
fn an_order_without_a_saga_has_none_to_show() {
    let stack = crate::support::program::Stack::new();
    let api = stack.api();
    let order = api.accepted_order();
    let saga = |id: &str| get(format!("/v1/orders/{id}/saga")).send(&api.address());
    saga(crate::support::program::id(&order)).problem(404, "saga-not-found");
    saga("01922f3e-8a54-7cc1-9a63-5d0f4c1b7e21").problem(404, "saga-not-found");
    saga("x").problem(400, "validation-failed");
}

#[test]
fn while_a_participant_is_away_orders_wait_and_settle_within_30_seconds_of_its_return() {
    let mut site = Site::new(&[]);
    let worker = site.stack.worker();
    site.payments.program.kill();
    let orders: Vec<String> = (0..20).map(|_| site.order(1299)).collect();
    let unready = worker.become_unready(SOON);
    let reason = unready.json()["checks"]["payments"]
        .as_str()
        .map(str::to_owned);
    assert!(
        reason.is_some_and(|it| it.contains("cannot connect")),
        "{}",
        unready.text()
    );
    worker.metric_becomes(r#"circuit_breaker_state{name="payments"}"#, 2.0);
    eventually(SOON, "sagas to be counted", || {
        (worker.metric(r#"sagas{state="running"}"#)? > 0.0).then_some(())
    });
    // Those in hand wait, and no more are taken.
    let waits = |id: &String| ["pending", "processing"].contains(&&*site.stack.status(id));
    assert!(orders.iter().all(waits));

    site.payments.restart();
    site.payments.program.become_ready(SOON);
    site.settle(Duration::from_secs(30));
    assert_eq!(site.books(), [0, 20, 0, 20]);
    worker.metric_becomes(r#"circuit_breaker_state{name="payments"}"#, 0.0);
    worker.metric_becomes(r#"sagas{state="running"}"#, 0.0);
}

#[test]
fn of_two_workers_with_one_saga_one_is_fenced_and_a_killed_one_is_replaced() {
    let site = Site::new(&[("PARTICIPANT_LATENCY", "400ms")]);
    let mut first = site.stack.worker();
    let in_the_middle = || {
        let query = "SELECT count(*) FROM sagas WHERE command <> 'reserve_stock'";
        eventually(SOON, "a saga in the middle", || {
            (site.stack.number(query) > 0).then_some(())
        });
    };
    let amounts = [1299, 1251, 1299, 1299, 1202, 1299];
    let _ = amounts.map(|amount| site.order(amount));
    in_the_middle();
    first.freeze();
    let second = site.stack.worker();
    site.settle(SOON);
    let books = [0, 4, 0, 4];
    assert_eq!(site.books(), books);
    // It goes on with what it knew, and finds that it is too late.
    first.thaw();
    first.become_ready(SOON);
    assert_eq!(site.books(), books);

    let _ = amounts.map(|amount| site.order(amount));
    in_the_middle();
    first.kill();
    site.settle(SOON);
    assert_eq!(site.books(), [0, 8, 0, 8]);
    drop(second);
}

#[test]
fn an_order_is_canceled_or_has_a_saga_and_never_both() {
    let site = Site::new(&[]);
    let orders: Vec<String> = (0..40).map(|_| site.order(1299)).collect();
    let cancel = |id: &String| {
        let canceled = post(format!("/v1/orders/{id}/cancel"))
            .send(&site.api.address())
            .status;
        assert!([200, 409].contains(&canceled), "{canceled}");
        i64::from(canceled == 200)
    };
    let canceled: i64 = thread::scope(|scope| {
        let worker = scope.spawn(|| site.stack.worker());
        // Those before the worker's start succeed; the rest meets it.
        let canceled = orders[..10].iter().map(cancel).sum::<i64>();
        let worker = worker.join().expect("a worker");
        let canceled = canceled + orders[10..].iter().map(cancel).sum::<i64>();
        site.settle(SOON);
        drop(worker);
        canceled
    });
    let both =
        "SELECT count(*) FROM orders JOIN sagas ON order_id = orders.id WHERE status = 'canceled'";
    assert_eq!(site.stack.number(both), 0);
    assert!(canceled >= 1);
    assert_eq!(site.books(), [0, 40 - canceled, 0, 40 - canceled]);
}

#[test]
fn a_saga_without_a_message_is_swept_to_its_end_and_a_dead_letter_begins_one_again() {
    let site = Site::new(&[("INVENTORY_STOCK", "2")]);
    // What a deleted topic leaves behind: an order in processing, and no message about it.
    site.stack.execute(
        "INSERT INTO orders VALUES ('01922f3e-8a54-7cc1-9a63-5d0f4c1b7e21', 'a@b.co', 1299, 'processing', NULL, now(), now());
         INSERT INTO sagas (order_id, id, version, state, command, calls, started_at, updated_at)
         SELECT id, id, 1, 'running', 'reserve_stock',
                '[{\"command\":\"reserve_stock\",\"attempts\":1,\"announced_at\":\"2026-01-01T00:00:00Z\"}]',
                now(), now() - interval '2 minutes' FROM orders",
    );
    let _worker = site.stack.worker();
    site.settle(SOON);
    wait_for_records(&site.stack.kafka, &site.stack.topics.processed, 1, SOON);
    assert_eq!(site.books(), [0, 1, 0, 1]);

    let [first, second] = [1299, 1299].map(|amount| site.order(amount));
    site.settle(SOON);
    let failed = [&first, &second]
        .into_iter()
        .find(|id| site.stack.status(id) == "failed");
    let failed = failed.expect("one unit for two orders").clone();
    assert_eq!(site.saga(&failed)["reason"], "out_of_stock");
    wait_for_records(&site.stack.kafka, &site.stack.topics.dlq, 1, SOON);
    site.inventory
        .execute("UPDATE stock SET available = available + 1");
    let mut replay = site.stack.command(crate::support::program::WORKER);
    replay.args(["dlq", "replay", "--all"]);
    let replayed = run(replay);
    assert!(
        replayed.status.success(),
        "{}",
        String::from_utf8_lossy(&replayed.stderr)
    );
    eventually(SOON, "the order to be completed", || {
        (site.stack.status(&failed) == "completed").then_some(())
    });
    assert_eq!(steps(&site.saga(&failed)).len(), 4, "it began again");
}

#[test]
fn a_reservation_that_inventory_has_lost_holds_up_no_other_order() {
    let mut site = Site::new(&[]);
    site.stack = site.stack.set("WORKER_CONCURRENCY", "1");
    // What a restored backup of inventory leaves behind: the amount is captured, and the unit is not held.
    let order = "01922f3e-8a54-7cc1-9a63-5d0f4c1b7e21";
    site.stack.execute(&format!(
        r#"INSERT INTO orders VALUES ('{order}', 'a@b.co', 1299, 'processing', NULL, now(), now());
           INSERT INTO sagas (order_id, id, version, state, command, calls, started_at, updated_at)
           SELECT id, id, 4, 'running', 'confirm_reservation',
                  '[{{"command":"confirm_reservation","attempts":1,"announced_at":"2026-01-01T00:00:00Z"}}]',
                  now(), now() - interval '2 minutes' FROM orders"#
    ));
    let worker = site.stack.worker();
    eventually(SOON, "the refusal", || {
        (answered(&worker, "confirm_reservation", "refused") > 0.0).then_some(())
    });
    let other = site.order(1299);
    eventually(SOON, "another order", || {
        (site.stack.status(&other) == "completed").then_some(())
    });
    assert_eq!(site.stack.status(order), "processing");

    // Somebody repairs the books, and the sweeper takes the saga up again.
    site.inventory.execute(&format!(
        "UPDATE stock SET available = available - 1, held = held + 1;
         UPDATE reservations SET state = 'held', reason = NULL, units = 1 WHERE saga_id = '{order}'"
    ));
    site.stack
        .execute("UPDATE sagas SET updated_at = now() - interval '2 minutes', swept_at = NULL");
    eventually(SOON, "the order itself", || {
        (site.stack.status(order) == "completed").then_some(())
    });
}

#[test]
fn one_trace_leads_from_the_client_through_the_worker_into_both_participants() {
    const CALLS: [(&str, &str); 4] = [
        (
            "inventory",
            "tbd.inventory.v1.InventoryService/ReserveStock",
        ),
        (
            "payments",
            "tbd.payments.v1.PaymentsService/AuthorizePayments",
        ),
        (
            "payments",
            "tbd.payments.v1.PaymentsService/CapturePayments",
        ),
        (
            "inventory",
            "tbd.inventory.v1.InventoryService/ConfirmReservations",
        ),
    ];
    let collector = Collector::start();
    let address = collector.grpc_address();
    let export = [
        ("OTEL_SDK_DISABLED", "false"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*address),
    ];
    let site = Site::on(traced(Stack::new(), &address), &export);
    let _worker = site.stack.worker();
    let (trace_id, traceparent) = new_trace();
    let accepted = new_order("traced", 1299)
        .header("traceparent", traceparent)
        .send(&site.api.address());
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    for (participant, method) in CALLS {
        let (call, answer) = eventually(SOON, method, || {
            let spans = collector.spans(&trace_id);
            let of_kind = |kind| {
                let mut all = spans.iter();
                all.find(|span: &&Span| span.name() == method && span.kind() == kind)
                    .cloned()
            };
            Some((of_kind(3)?, of_kind(2)?))
        });
        assert_eq!(call.service, "tbd-worker");
        assert_eq!(answer.service, format!("tbd-{participant}"));
        assert_eq!(answer.parent(), call.id());
        let address = match participant {
            "inventory" => site.inventory.address(),
            _ => site.payments.address(),
        };
        let (host, port) = address.split_once(':').expect("host:port");
        let expected = [
            ("rpc.system.name", "grpc"),
            ("rpc.method", method),
            ("rpc.response.status_code", "OK"),
            ("server.address", host),
            ("server.port", port),
        ];
        assert_attributes(&call, &expected);
    }
}

#[test]
fn a_worker_of_single_steps_leaves_an_order_to_its_unfinished_saga() {
    let mut site = Site::new(&[]);
    site.payments.program.kill();
    // Not ready while a participant is away.
    let mut worker = site.stack.start_worker();
    let left = site.order(1299);
    eventually(SOON, "stock held, and a payment wanted", || {
        let waiting = "SELECT count(*) FROM sagas WHERE command = 'authorize_payment'";
        (site.stack.number(waiting) == 1).then_some(())
    });
    worker.kill();

    site.stack = site.stack.set("WORKER_WORKFLOW", "step");
    let mut worker = site.stack.worker();
    eventually(SOON, "the order to be left", || {
        let mut log = worker.log().into_iter();
        log.any(|line| line.contains("left to its saga") && line.contains(&left))
            .then_some(())
    });
    assert_eq!(site.stack.status(&left), "processing");
    let other = site.order(1299);
    eventually(SOON, "another order", || {
        (site.stack.status(&other) == "completed").then_some(())
    });
    worker.kill();

    site.payments.restart();
    // No message moves the saga any more; the sweeper takes up what stood still for a while.
    site.stack
        .execute("UPDATE sagas SET updated_at = now() - interval '2 minutes'");
    site.stack = site.stack.set("WORKER_WORKFLOW", "saga");
    let _worker = site.stack.worker();
    site.settle(SOON);
    assert_eq!(site.stack.status(&left), "completed");
    assert_eq!(site.books(), [0, 1, 0, 1]);
}
