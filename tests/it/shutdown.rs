//! Shutdown on SIGTERM: readiness fails first, work in flight completes, exit code 0.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::migrations::advisory_lock_id;
use crate::support::http::{Connection, get};
use crate::support::program::{API, Program, Stack, free_port, new_order};
use crate::support::{Database, OwnServer, eventually, kafka, own_folder, postgres, unique};

pub const SHUTDOWN: Duration = Duration::from_secs(30);

pub fn wait_until_blocked(stack: &Stack) {
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
        // It is not ready any more, or cannot be reached; then the request may continue.
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
    // The step ends at the limit at the latest. The next worker takes the order up again.
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

#[test]
fn a_migration_under_way_is_ended_and_leaves_a_clean_schema() {
    let folder = own_folder("migrations");
    fs::create_dir_all(&folder).expect("a folder");
    let slow = "SELECT pg_sleep(6); CREATE TABLE slow ()";
    fs::write(folder.join("1_slow.up.sql"), slow).expect("a migration");
    fs::write(folder.join("1_slow.down.sql"), "DROP TABLE slow").expect("its way back");
    let stack = Stack::new().set("MIGRATIONS_DIR", folder.to_str().expect("UTF-8"));
    let mut api = stack.start_api();
    let under_way = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    eventually(SHUTDOWN, "the migration to be under way", || {
        (stack.number(under_way) > 0).then_some(())
    });
    api.terminate();
    assert_eq!(api.wait(SHUTDOWN).code(), Some(0));
    let clean = "SELECT version FROM schema_migrations WHERE NOT dirty";
    assert_eq!(stack.number(clean), 1);
    let _ = fs::remove_dir_all(folder);
}

#[test]
fn a_migration_that_has_not_begun_does_not_hold_up_the_end() {
    let stack = Stack::new();
    let mut other = stack.database.connect();
    let lock = "SELECT pg_advisory_lock($1)";
    let id = advisory_lock_id(&["public", "schema_migrations", &stack.database.name]);
    other.execute(lock, &[&id]).expect("take the lock");
    let mut api = stack.start_api();
    eventually(SHUTDOWN, "the api to wait for the lock", || {
        let waits = "another process is migrating";
        api.log()
            .iter()
            .any(|line| line.contains(waits))
            .then_some(())
    });
    let start = Instant::now();
    api.terminate();
    assert_eq!(api.wait(SHUTDOWN).code(), Some(0));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_start_that_fails_cuts_no_migration_short() {
    let folder = own_folder("migrations");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("1_slow.up.sql"), "SELECT pg_sleep(3)").expect("a migration");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its number").port().to_string();
    let stack = Stack::new()
        .set("MIGRATIONS_DIR", folder.to_str().expect("UTF-8"))
        .set("API_GRPC_PORT", &port)
        // The start takes long enough for a migration to begin meanwhile.
        .set("HTTP_WORKERS", "4096");
    let mut api = stack.command(API);
    let status = api.env("API_PORT", free_port().to_string()).status();
    assert_eq!(status.expect("run the api").code(), Some(1));
    let touched = "SELECT count(*) FROM pg_class WHERE relname = 'schema_migrations'";
    assert_eq!(stack.number(touched), 0, "a migration was begun");
    let _ = fs::remove_dir_all(folder);
}

#[test]
fn while_a_program_drains_new_connections_are_served_and_hear_that_it_is_not_ready() {
    let drain = Duration::from_secs(3);
    let stack = Stack::new().set("SHUTDOWN_DRAIN", "3s");
    let (mut api, mut worker) = (stack.api(), stack.worker());
    let mut open = Connection::open(&api.address());
    let signalled = Instant::now();
    worker.terminate();
    api.terminate();
    for program in [&api, &worker] {
        let answer = program.become_unready(drain);
        assert_eq!(answer.json()["status"], "stopping");
    }
    assert_eq!(api.order(&unique("key"), 1).status, 202);

    let mut holder = stack.database.holding_orders();
    let mut slow = Connection::open(&api.address());
    slow.write(&new_order(&unique("key"), 1).to_bytes());
    wait_until_blocked(&stack);
    eventually(SHUTDOWN, "new connections to be refused", || {
        TcpStream::connect(api.address()).err()
    });
    assert!(signalled.elapsed() >= drain, "{:?}", signalled.elapsed());
    // An open connection still gets the 503 while a request is in flight.
    for _ in 0..3 {
        open.write(&get("/readyz").to_bytes());
        assert_eq!(open.read().status, 503);
    }
    holder.batch_execute("ROLLBACK").expect("unlock the table");
    let answer = slow.read();
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(api.wait(SHUTDOWN).code(), Some(0));
    assert_eq!(worker.wait(SHUTDOWN).code(), Some(0));
    assert_eq!(stack.count("orders"), 2);
}

/// Ends programs whose server never answers: each exits in time, with code 0.
fn end_all(programs: impl IntoIterator<Item = Program>) {
    let mut programs: Vec<Program> = programs.into_iter().collect();
    let start = Instant::now();
    programs.iter().for_each(Program::terminate);
    for program in &mut programs {
        let status = program.wait(SHUTDOWN + Duration::from_secs(5));
        let log = program.log();
        assert_eq!(status.code(), Some(0), "{}", log.join("\n"));
        assert!(start.elapsed() < SHUTDOWN, "{:?}", start.elapsed());
    }
}

/// More spans than the shutdown has time to offer a silent collector, at one batch every 10 s.
fn a_silent_collector() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("listen");
    let endpoint = format!("http://{}", silent.local_addr().expect("its address"));
    let stack = Stack::new()
        .set("OTEL_SDK_DISABLED", "false")
        .set("OTEL_METRICS_EXPORTER", "otlp")
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
    let (api, worker) = (stack.api(), stack.worker());
    api.accepted_order();
    stack.all_become("completed", 1, SHUTDOWN);
    let mut client = Connection::open(&api.address());
    for _ in 0..2500 {
        client.write(&get("/v1/orders").to_bytes());
        assert_eq!(client.read().status, 200);
    }
    end_all([api, worker]);
}

/// Ends programs that have a request in flight and an order in hand when `silence` begins.
fn end_in(stack: &Stack, silence: impl FnOnce()) {
    let (api, worker) = (stack.api(), stack.worker());
    api.accepted_order();
    stack.all_become("processing", 1, SHUTDOWN);
    silence();
    let mut in_flight = Connection::open(&api.address());
    in_flight.write(&new_order(&unique("key"), 1).to_bytes());
    end_all([api, worker]);
}

fn a_silent_broker() {
    let broker = OwnServer::kafka();
    let stack = Stack::on(postgres(), broker.address()).set("PROCESSING_TIME", "1s");
    end_in(&stack, || broker.pause());
}

fn a_silent_database() {
    let server = OwnServer::postgres();
    let stack = Stack::on(Database::on(&server.address()), kafka()).set("PROCESSING_TIME", "1s");
    // Also after a panic, and before the stack's database is dropped.
    let _thawed = Thawed(&server);
    end_in(&stack, || server.freeze());
}

/// Thaws the server when dropped.
pub struct Thawed<'a>(pub &'a OwnServer);

impl Drop for Thawed<'_> {
    fn drop(&mut self) {
        self.0.thaw();
    }
}

#[test]
fn a_collector_a_broker_or_a_database_that_never_answers_costs_its_share_and_not_the_exit_code() {
    thread::scope(|scope| {
        let silences = [a_silent_collector, a_silent_broker, a_silent_database];
        let ended = silences.map(|silence| scope.spawn(silence));
        for silence in ended {
            silence.join().expect("see above");
        }
    });
}
