//! Overload of the api: it refuses some requests at once, answers the others as usual, and recovers
//! afterwards. A test binary of its own, because other tests' work would be part of the load.

use tbd_testkit as support;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use support::http::{Response, get};
use support::program::{Program, Stack, new_order};
use support::{eventually, unique};

/// These tests run one after the other, for the same reason.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An answer, its duration, and the time of its request.
struct Answer {
    response: Response,
    took: Duration,
    asked: Instant,
}

fn ask(request: support::http::Request, api: &Program) -> Answer {
    let asked = Instant::now();
    let response = request.send(&api.address());
    Answer {
        response,
        took: asked.elapsed(),
        asked,
    }
}

fn median<'a>(answers: impl Iterator<Item = &'a Answer>) -> Duration {
    let mut times: Vec<Duration> = answers.map(|answer| answer.took).collect();
    times.sort_unstable();
    times[times.len() / 2]
}

/// Posts orders from `clients` clients for `time`, each client one every `pause`, or as soon as its
/// last one is answered.
fn post_orders(api: &Program, clients: u32, pause: Duration, time: Duration) -> Vec<Answer> {
    let end = Instant::now() + time;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|client| {
                scope.spawn(move || {
                    let mut answers = Vec::new();
                    let mut next = Instant::now() + pause * client / clients;
                    while next < end {
                        thread::sleep(next.saturating_duration_since(Instant::now()));
                        answers.push(ask(new_order(&unique("key"), 5), api));
                        next = (next + pause).max(Instant::now());
                    }
                    answers
                })
            })
            .collect();
        let answers = clients
            .into_iter()
            .map(|client| client.join().expect("no panic"));
        answers.flatten().collect()
    })
}

#[track_caller]
fn assert_shed(response: &Response) {
    response.problem(503, "overloaded");
    assert_eq!(response.header("Retry-After"), Some("1"));
}

#[test]
fn beyond_capacity_some_are_refused_early_and_the_others_wait_no_longer_than_three_answers_take() {
    let _alone = alone();
    let stack = Stack::new()
        .set("HTTP_WORKERS", "4")
        .set("DB_COALESCE", "off")
        .set("EVENT_DELIVERY", "outbox");
    let api = stack.api();
    // Each order takes 50 ms in the database: four threads answer 80 a second.
    stack.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END';
         CREATE TRIGGER slow BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let at_capacity = post_orders(&api, 4, Duration::ZERO, Duration::from_secs(1));
    assert!(
        at_capacity
            .iter()
            .all(|answer| answer.response.status == 202)
    );
    let memory = api.metric("process_resident_memory_bytes");

    let start = Instant::now();
    let (pause, time) = (Duration::from_millis(160), Duration::from_secs(3));
    let (answers, probed) = thread::scope(|scope| {
        let load = scope.spawn(|| post_orders(&api, 40, pause, time));
        let mut probed = Duration::ZERO;
        while !load.is_finished() {
            for path in ["/healthz", "/readyz"] {
                let probe = ask(get(path), &api);
                assert_eq!(probe.response.status, 200, "{path}");
                probed = probed.max(probe.took);
            }
        }
        (load.join().expect("no panic"), probed)
    });
    assert!(probed < Duration::from_secs(2), "{probed:?}");

    // An overload looks like a burst at first, and bursts may wait.
    let later = |answer: &&Answer| answer.asked > start + Duration::from_secs(1);
    let (accepted, refused): (Vec<_>, Vec<_>) = answers
        .iter()
        .filter(later)
        .partition(|answer| answer.response.status == 202);
    refused
        .iter()
        .for_each(|answer| assert_shed(&answer.response));
    println!("{} accepted, {} refused", accepted.len(), refused.len());
    assert!(refused.len() > accepted.len() / 2, "there was no overload");
    assert!(accepted.len() > at_capacity.len() / 2, "nothing is done");
    let before = median(at_capacity.iter());
    let meanwhile = median(accepted.into_iter());
    // Up to three requests wait for each thread.
    assert!(meanwhile < before * 5, "{meanwhile:?}, before {before:?}");
    let typical = median(refused.into_iter());
    assert!(typical < Duration::from_millis(100), "{typical:?}");
    assert!(api.metric("http_requests_shed_total{reason=\"overload\"}") > Some(0.0));
    let grown = api.metric("process_resident_memory_bytes").zip(memory);
    let grown = grown.map(|(after, before)| after - before).expect("memory");
    assert!(grown < f64::from(16 << 20), "grew by {grown} bytes");

    for _ in 0..10 {
        assert_eq!(api.order(&unique("key"), 5).status, 202);
    }
}

#[test]
fn nobody_waits_for_threads_that_are_stuck() {
    let _alone = alone();
    let stack = Stack::new().set("HTTP_WORKERS", "2");
    let api = stack.api();
    let mut holder = stack.database.holding_orders();
    thread::scope(|scope| {
        // Two requests hold a thread each and wait for the database; the others wait for a thread.
        let waiting: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| ask(get("/v1/orders"), &api)))
            .collect();
        let shed = "http_requests_shed_total{reason=\"overload\"}";
        eventually(
            Duration::from_secs(4),
            "waiting requests to be refused",
            || (api.metric(shed)? >= 4.0).then_some(()),
        );
        let refused: Vec<Answer> = (0..20).map(|_| ask(get("/v1/orders"), &api)).collect();
        refused
            .iter()
            .for_each(|answer| assert_shed(&answer.response));
        let typical = median(refused.iter());
        assert!(typical < Duration::from_millis(100), "{typical:?}");

        holder.batch_execute("ROLLBACK").expect("unlock the table");
        let statuses = waiting
            .into_iter()
            .map(|request| request.join().expect("no panic"));
        let answered = statuses.filter(|answer| answer.response.status == 200);
        assert_eq!(answered.count(), 2);
    });
    for _ in 0..10 {
        assert_eq!(get("/v1/orders").send(&api.address()).status, 200);
    }
}
