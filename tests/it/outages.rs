//! Outages of PostgreSQL and Kafka, and recovery. Each test has servers of its own.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tbd_deadline::Deadline;
use tbd_grpc::Channel;
use tbd_kafka::producer::partition_for_key;

use crate::orders_client::create_order_until;
use crate::support::http::get;
use crate::support::program::{Program, Stack, id};
use crate::support::topic::{records, wait_for_records};
use crate::support::{Database, OwnServer, SetOnDrop, eventually, kafka, postgres, unique};

/// "Readiness fails within 10 s of an outage", and some for a busy machine.
const NOTICED: Duration = Duration::from_secs(15);
/// "... and is back within 30 s of its end", and some.
const BACK: Duration = Duration::from_secs(40);
const SOON: Duration = Duration::from_secs(60);

fn check(program: &Program, name: &str) -> String {
    let ready = get("/readyz").send(&program.address()).json();
    ready["checks"][name]
        .as_str()
        .expect("a check's result")
        .to_owned()
}

fn is_alive(program: &Program) -> bool {
    get("/healthz").send(&program.address()).status == 200
}

#[test]
fn without_kafka_an_order_is_safe_and_its_key_resumes_it() {
    let broker = OwnServer::kafka();
    let stack = Stack::on(postgres(), broker.address());
    let mut api = stack.api();
    let key = unique("key");
    broker.kill();

    let start = Instant::now();
    let refused = api.order(&key, 1299);
    let took = start.elapsed();
    refused.problem(503, "dependency-unavailable");
    assert!(
        refused
            .header("Retry-After")
            .is_some_and(|seconds| seconds.parse::<u32>().is_ok())
    );
    assert!(
        took < Duration::from_secs(13),
        "{took:?} is more than the publish budget"
    );
    assert_eq!((stack.count("orders"), stack.count("outbox")), (1, 1));

    // The database is up, so everything else continues.
    assert_eq!(get("/v1/orders").send(&api.address()).status, 200);
    let unready = api.become_unready(NOTICED);
    assert_eq!(unready.json()["checks"]["database"], "ok");
    assert_ne!(unready.json()["checks"]["kafka"], "ok");
    assert!(is_alive(&api));

    broker.start();
    api.become_ready(BACK);
    let resumed = eventually(SOON, "the key to be accepted", || {
        Some(api.order(&key, 1299)).filter(|response| response.status == 202)
    });
    assert_eq!(stack.count("orders"), 1);
    let order_id = id(&resumed.json()).to_owned();
    assert_eq!(stack.status(&order_id), "pending");
    let events = wait_for_records(&stack.kafka, &stack.topics.created, 1, SOON);
    assert!(events.iter().all(|event| event.key() == order_id));
    eventually(SOON, "the outbox to be empty", || {
        (stack.count("outbox") == 0).then_some(())
    });
}

#[test]
fn without_kafka_the_breaker_opens_and_the_relay_publishes_later() {
    let broker = OwnServer::kafka();
    let stack = Stack::on(postgres(), broker.address());
    // The partition's own breaker must not keep failures from that of Kafka.
    let stack = stack.set("KAFKA_TOPIC_PARTITIONS", "1");
    let mut api = stack.api();
    let state = |api: &Program| {
        let text = get("/metrics").send(&api.address()).text();
        let line = text
            .lines()
            .find(|line| line.starts_with("circuit_breaker_state{"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .expect("the breaker's state")
    };
    assert_eq!(state(&api), 0.0);
    broker.kill();
    for at_once in [2, 3] {
        thread::scope(|scope| {
            let api = &api;
            let order = || api.order(&unique("key"), 1299);
            let refused: Vec<_> = (0..at_once).map(|_| scope.spawn(order)).collect();
            for response in refused {
                let response = response.join().expect("no panic");
                response.problem(503, "dependency-unavailable");
            }
        });
    }
    assert_eq!(state(&api), 2.0);
    let start = Instant::now();
    api.order(&unique("key"), 6)
        .problem(503, "dependency-unavailable");
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "an open breaker says no at once: {:?}",
        start.elapsed()
    );

    broker.start();
    api.become_ready(BACK);
    // No client repeats these six. They are committed, so they are published.
    wait_for_records(&stack.kafka, &stack.topics.created, 6, SOON);
    eventually(SOON, "the breaker to let requests pass", || {
        (api.order(&unique("key"), 7).status == 202).then_some(())
    });
    assert_eq!(state(&api), 0.0);
}

/// Three brokers, each with one partition of each topic, of which nobody else has a copy.
fn brokers_without_copies() -> ([OwnServer; 3], Stack) {
    let brokers = OwnServer::kafka_cluster();
    let addresses = brokers.each_ref().map(OwnServer::address).join(",");
    let stack = Stack::on(postgres(), addresses).set("KAFKA_TOPIC_PARTITIONS", "3");
    (brokers, stack)
}

#[test]
fn a_partition_without_a_leader_holds_up_no_orders_of_the_others() {
    const MORE: usize = 1000;
    let (brokers, stack) = brokers_without_copies();
    let stack = stack.set("HTTP_WORKERS", "8");
    let api = stack.api();
    let accepted = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = SetOnDrop(&over);
        for _ in 0..24 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    if api.order(&unique("key"), 1299).status == 202 {
                        accepted.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
        let more_are_accepted = || {
            let enough = accepted.load(Ordering::SeqCst) + MORE;
            eventually(SOON, "a thousand more orders", || {
                (accepted.load(Ordering::SeqCst) >= enough).then_some(())
            });
        };
        more_are_accepted();
        brokers[0].kill();
        more_are_accepted();
    });
}

#[test]
fn events_for_a_partition_without_a_leader_hold_up_no_others_in_the_outbox() {
    let (brokers, stack) = brokers_without_copies();
    let stack = stack.set("EVENT_DELIVERY", "outbox");
    let _api = stack.api();
    brokers[0].kill();
    // A third of them is for the dead broker: more than the relay takes at a time.
    stack.execute(
        "INSERT INTO outbox (order_id, payload) SELECT gen_random_uuid(), 'an event' FROM generate_series(1, 3000)",
    );
    eventually(SOON, "all others to be published", || {
        let mut database = stack.database.connect();
        let rows = database.query("SELECT order_id::text FROM outbox", &[]);
        let partitions: HashSet<i32> = rows
            .expect("ask")
            .iter()
            .map(|row| partition_for_key(row.get::<_, String>(0).as_bytes(), 3))
            .collect();
        assert!(!partitions.is_empty(), "the broker is away");
        (partitions.len() == 1).then_some(())
    });
    brokers[0].start();
    eventually(SOON, "the outbox to be empty", || {
        (stack.count("outbox") == 0).then_some(())
    });
}

#[test]
fn a_client_without_patience_does_not_open_the_breaker_for_others() {
    let broker = OwnServer::kafka();
    let stack = Stack::on(postgres(), broker.address());
    let api = stack.api();
    api.accepted_order();
    let channel = Channel::builder(&format!("127.0.0.1:{}", api.grpc_port())).build();
    // Longer than the commit takes, shorter than Kafka takes to answer.
    broker.pause();
    eventually(SOON, "orders to be committed in time", || {
        thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    let deadline = Deadline::after(Duration::from_millis(400));
                    let refused = create_order_until(&channel, &unique("key"), deadline);
                    assert!(refused.is_err(), "{refused:?}");
                });
            }
        });
        (stack.count("outbox") > 10).then_some(())
    });
    broker.resume();
    eventually(SOON, "Kafka to answer again", || {
        let answer = api.order(&unique("key"), 1);
        assert!(!answer.text().contains("circuit breaker"), "{answer:?}");
        let state = r#"circuit_breaker_state{name="kafka-publish"}"#;
        assert_eq!(api.metric(state), Some(0.0));
        (answer.status == 202).then_some(())
    });
}

#[test]
fn in_outbox_mode_orders_are_accepted_without_kafka() {
    let broker = OwnServer::kafka();
    let stack = Stack::on(postgres(), broker.address()).set("EVENT_DELIVERY", "outbox");
    let api = stack.api();
    broker.kill();
    let start = Instant::now();
    for _ in 0..20 {
        api.accepted_order();
    }
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(stack.count("outbox"), 20);
    broker.start();
    wait_for_records(&stack.kafka, &stack.topics.created, 20, SOON);
    eventually(SOON, "the outbox to be empty", || {
        (stack.count("outbox") == 0).then_some(())
    });
}

#[test]
fn without_postgresql_requests_are_refused_until_it_is_back() {
    let server = OwnServer::postgres();
    let stack = Stack::on(Database::on(&server.address()), kafka());
    let mut api = stack.api();
    let order = api.accepted_order();
    let path = format!("/v1/orders/{}", id(&order));
    server.stop();
    for request in [
        get(&path),
        get("/v1/orders"),
        crate::support::http::post(format!("{path}/cancel")),
    ] {
        let response = request.send(&api.address());
        response.problem(503, "dependency-unavailable");
        assert!(response.header("Retry-After").is_some());
        assert!(!response.text().contains("secret"));
    }
    api.order(&unique("key"), 1)
        .problem(503, "dependency-unavailable");
    let unready = api.become_unready(NOTICED);
    assert_eq!(unready.json()["checks"]["kafka"], "ok");
    assert_ne!(unready.json()["checks"]["database"], "ok");
    assert!(!unready.text().contains("secret"));
    assert!(is_alive(&api));

    server.start();
    api.become_ready(BACK);
    assert_eq!(get(&path).send(&api.address()).json(), order);
    api.accepted_order();
}

#[test]
fn a_worker_without_postgresql_consumes_nothing_and_resumes() {
    let server = OwnServer::postgres();
    let stack = Stack::on(Database::on(&server.address()), kafka());
    let api = stack.api();
    // In Kafka before the database goes down; the worker receives them without a database.
    for _ in 0..10 {
        api.accepted_order();
    }
    eventually(SOON, "the outbox to be empty", || {
        (stack.count("outbox") == 0).then_some(())
    });
    server.stop();
    let mut worker = stack.start_worker();
    worker.become_unready(NOTICED);
    assert!(is_alive(&worker));
    assert_ne!(check(&worker, "database"), "ok");

    server.start();
    worker.become_ready(BACK);
    stack.all_become("completed", 10, SOON);
    assert_eq!(
        worker.metric(r#"orders_processed_total{outcome="failed"}"#),
        Some(0.0)
    );
    assert!(
        records(&stack.kafka, &stack.topics.dlq).is_empty(),
        "an outage is nobody's failed attempt"
    );
}

#[test]
fn a_worker_in_the_middle_of_its_work_survives_outages_of_both() {
    let (server, broker) = (OwnServer::postgres(), OwnServer::kafka());
    let stack = Stack::on(Database::on(&server.address()), broker.address())
        .set("PROCESSING_TIME", "30ms")
        .set("WORKER_CONCURRENCY", "2");
    let (api, mut worker) = (stack.api(), stack.worker());
    for _ in 0..150 {
        api.accepted_order();
    }
    server.stop();
    worker.become_unready(NOTICED);
    broker.kill();
    assert!(is_alive(&api) && is_alive(&worker));
    server.start();
    broker.start();
    worker.become_ready(BACK);
    stack.all_become("completed", 150, SOON);
    eventually(SOON, "every order to be announced", || {
        let announced = records(&stack.kafka, &stack.topics.processed);
        let ids: std::collections::HashSet<&str> =
            announced.iter().map(|record| record.key()).collect();
        (ids.len() == 150).then_some(())
    });
    assert!(records(&stack.kafka, &stack.topics.dlq).is_empty());
}

#[test]
fn programs_started_before_their_servers_get_ready_once_these_are_there() {
    let (server, broker) = (OwnServer::postgres(), OwnServer::kafka());
    let stack = Stack::on(Database::on(&server.address()), broker.address());
    server.stop();
    broker.kill();
    let (mut api, mut worker) = (stack.start_api(), stack.start_worker());
    eventually(NOTICED, "both to be alive", || {
        let alive = |program: &Program| get("/healthz").try_send(&program.address()).is_ok();
        (alive(&api) && alive(&worker)).then_some(())
    });
    assert_ne!(check(&api, "kafka"), "ok");
    assert_ne!(check(&api, "database"), "ok");
    server.start();
    broker.start();
    api.become_ready(BACK);
    worker.become_ready(BACK);
    api.accepted_order();
    stack.all_become("completed", 1, SOON);
}

#[test]
fn a_frozen_kafka_is_noticed_and_its_return_too() {
    let broker = OwnServer::kafka();
    let stack = Stack::on(postgres(), broker.address());
    let mut api = stack.api();
    broker.pause();
    let start = Instant::now();
    api.order(&unique("key"), 1)
        .problem(503, "dependency-unavailable");
    assert!(
        start.elapsed() < Duration::from_secs(13),
        "{:?}",
        start.elapsed()
    );
    api.become_unready(NOTICED);
    broker.resume();
    api.become_ready(BACK);
    eventually(SOON, "orders to be accepted", || {
        (api.order(&unique("key"), 1).status == 202).then_some(())
    });
}
