//! SIGTERM: readiness fails first, what was begun is ended, exit 0.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::http::{Connection, get};
use crate::support::program::{Stack, new_order};
use crate::support::{eventually, unique};

const SHUTDOWN: Duration = Duration::from_secs(30);

fn wait_until_blocked(stack: &Stack) {
    let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually(Duration::from_secs(10), "a statement to be blocked", || {
        (stack.number(query) > 0).then_some(())
    });
}

#[test]
fn idle_programs_end_at_once_with_exit_code_0() {
    let stack = Stack::new();
    let (api, worker) = (stack.start_api(), stack.start_worker());
    for mut program in [api.ready(), worker.ready()] {
        let start = Instant::now();
        program.terminate();
        assert_eq!(program.wait(SHUTDOWN).code(), Some(0));
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{:?}",
            start.elapsed()
        );
    }
}

#[test]
fn an_idle_connection_does_not_hold_up_the_end() {
    let stack = Stack::new();
    let mut api = stack.api();
    let mut idle = Connection::open(&api.address());
    idle.write(&get("/healthz").to_bytes());
    assert_eq!(idle.read().status, 200);
    let mut half_sent = Connection::open(&api.address());
    half_sent.write(b"POST /v1/orders HTTP/1.1\r\nHost:");
    api.terminate();
    assert_eq!(api.wait(SHUTDOWN).code(), Some(0));
}

#[test]
fn a_request_that_was_begun_is_answered() {
    let stack = Stack::new();
    let mut api = stack.api();
    let mut holder = stack.database.holding_orders();
    thread::scope(|scope| {
        let address = api.address();
        let begun = scope.spawn(move || new_order(&unique("key"), 1).send(&address));
        wait_until_blocked(&stack);
        api.terminate();
        // It says that it is not ready any more, or is not to be reached; then the request may go on.
        let address = api.address();
        eventually(Duration::from_secs(5), "readiness to fail", || {
            let ready = get("/readyz").try_send(&address);
            (!ready.is_ok_and(|response| response.status == 200)).then_some(())
        });
        holder.batch_execute("ROLLBACK").expect("unlock the table");
        let answer = begun.join().expect("no panic");
        assert_eq!(answer.status, 202, "{}", answer.text());
    });
    assert_eq!(api.wait(SHUTDOWN).code(), Some(0));
    assert_eq!(stack.count("orders"), 1);
}

#[test]
fn a_second_signal_ends_the_program_at_once_with_exit_code_1() {
    let stack = Stack::new()
        .set("PROCESSING_TIME", "25s")
        .set("WORKER_CONCURRENCY", "1");
    let api = stack.api();
    let mut worker = stack.worker();
    api.accepted_order();
    stack.all_become("processing", 1, Duration::from_secs(30));
    worker.terminate();
    eventually(Duration::from_secs(5), "readiness to fail", || {
        let ready = get("/readyz").try_send(&worker.address());
        (!ready.is_ok_and(|response| response.status == 200)).then_some(())
    });
    let start = Instant::now();
    worker.terminate();
    assert_eq!(worker.wait(SHUTDOWN).code(), Some(1));
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn an_order_in_process_does_not_outlast_the_shutdown() {
    // The step ends at the limit at the latest; the order is taken up again by whoever comes next.
    let stack = Stack::new()
        .set("PROCESSING_TIME", "55s")
        .set("WORKER_CONCURRENCY", "1");
    let api = stack.api();
    let mut worker = stack.worker();
    api.accepted_order();
    stack.all_become("processing", 1, Duration::from_secs(30));
    worker.terminate();
    let status = worker.wait(SHUTDOWN + Duration::from_secs(5));
    assert_eq!(status.code(), Some(0));
    let stack = stack.set("PROCESSING_TIME", "0ms");
    let _heir = stack.worker();
    stack.all_become("completed", 1, Duration::from_secs(30));
}
