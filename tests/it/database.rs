//! The database client against a real PostgreSQL.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use tbd::orders::adapters::postgres::TABLES;
use tbd::orders::adapters::postgres::migrations::EMBEDDED;
use tbd::wiring::health::Monitor;
use tbd_deadline::Deadline;
use tbd_deadline::StopSignal;
use tbd_postgres::migrations::Migrator;
use tbd_postgres::{
    DatabaseConfig, DatabaseError, HealthCheck, Hooks, Pool, PooledConnection, Statement, retry,
};

use crate::support::proxy::Proxy;
use crate::support::{self, Database, OwnServer};

const BACKEND_PID: Statement = Statement::new("backend_pid", "SELECT pg_backend_pid()");

/// The configuration of a client of this database.
pub fn config(database: &Database) -> DatabaseConfig {
    DatabaseConfig::new(
        &database.host,
        database.port,
        support::USER,
        support::PASSWORD,
        &database.name,
    )
}

/// A proxy before this database, and the configuration of a client behind it.
fn through_proxy(database: &Database) -> (Proxy, DatabaseConfig) {
    let proxy = Proxy::before(&format!("{}:{}", database.host, database.port));
    let config = DatabaseConfig {
        port: proxy.port(),
        ..config(database)
    };
    (proxy, config)
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

fn pool(config: DatabaseConfig) -> Pool {
    Pool::new(config).expect("a pool")
}

fn pid(connection: &mut PooledConnection) -> i32 {
    let row = connection
        .query_opt(BACKEND_PID, &[])
        .expect("query")
        .expect("one row");
    row.get(0)
}

/// Waits for `condition`, which another thread or process fulfils; fails after `limit`.
fn eventually(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    started.elapsed()
}

/// Ends every other session with `database`, as a fail-over would.
fn terminate_backends(database: &Database) {
    database
        .connect()
        .batch_execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .expect("terminate backends");
}

#[test]
fn check_out_costs_no_round_trip_and_a_prepared_statement_exactly_one() {
    let database = support::postgres();
    let (proxy, through) = through_proxy(&database);
    let pool = pool(DatabaseConfig {
        max_conns: 1,
        ..through
    });
    pool.get(soon())
        .and_then(|mut it| it.execute("SELECT 1", &[]))
        .expect("the first use");
    let before = proxy.round_trips();
    for _ in 0..10 {
        let mut connection = pool.get(soon()).expect("a connection");
        connection.execute("SELECT 1", &[]).expect("a statement");
    }
    assert_eq!(proxy.round_trips() - before, 10);
}

#[test]
fn a_far_deadline_costs_nothing_and_a_near_one_cuts_the_statement_until_check_in() {
    let database = support::postgres();
    let (proxy, through) = through_proxy(&database);
    let pool = pool(DatabaseConfig {
        max_conns: 1,
        ..through
    });
    let mut connection = pool.get(soon()).expect("a connection");
    connection
        .execute("SELECT pg_sleep(0)", &[])
        .expect("the first use");

    let before = proxy.round_trips();
    connection
        .limit_to(Deadline::after(Duration::from_secs(30)))
        .expect("a far deadline");
    assert_eq!(proxy.round_trips(), before);

    connection
        .limit_to(Deadline::after(Duration::from_millis(200)))
        .expect("a near deadline");
    let started = Instant::now();
    let outcome = connection.execute("SELECT pg_sleep(3)", &[]);
    assert!(
        matches!(outcome, Err(DatabaseError::StatementTimeout)),
        "{outcome:?}"
    );
    assert!(started.elapsed() < Duration::from_secs(2));

    drop(connection);
    let mut connection = pool.get(soon()).expect("the same connection again");
    let row = connection
        .query_opt("SELECT current_setting('statement_timeout')", &[])
        .expect("query");
    assert_eq!(row.expect("one row").get::<_, String>(0), "5s");
}

#[test]
fn every_session_has_its_settings_from_the_start() {
    let database = support::postgres();
    let pool = pool(config(&database));
    let mut connection = pool.get(soon()).expect("a connection");
    let settings = "SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), \
                    current_setting('timezone'), current_setting('application_name')";
    let row = connection
        .query_opt(settings, &[])
        .expect("query")
        .expect("one row");
    let settings: [String; 4] = std::array::from_fn(|column| row.get(column));
    assert_eq!(settings, ["5s", "3s", "UTC", "tbd"]);
}

/// A server without LLVM compiles nothing, so its plans would not show the fault. The setting is the
/// same on every server.
#[test]
fn no_server_compiles_our_statements() {
    let database = support::postgres();
    let on_by_default: String = database
        .connect()
        .query_one("SHOW jit", &[])
        .expect("the default")
        .get(0);
    assert_eq!(on_by_default, "on");
    let pool = pool(config(&database));
    let ours = pool
        .get(soon())
        .and_then(|mut it| it.query("SHOW jit", &[]))
        .expect("our setting");
    assert_eq!(ours[0].get::<_, String>(0), "off");
}

#[test]
fn a_slow_statement_is_canceled_and_its_connection_stays_usable() {
    let database = support::postgres();
    let config = DatabaseConfig {
        statement_timeout: Duration::from_millis(200),
        max_conns: 1,
        ..config(&database)
    };
    let pool = pool(config);
    let mut connection = pool.get(soon()).expect("a connection");
    let before = pid(&mut connection);
    let outcome = connection.execute("SELECT pg_sleep(5)", &[]);
    assert!(
        matches!(outcome, Err(DatabaseError::StatementTimeout)),
        "{outcome:?}"
    );
    assert_eq!(pid(&mut connection), before);
}

#[test]
fn a_lock_held_by_another_transaction_is_waited_for_only_so_long() {
    let database = support::postgres();
    let mut other = database.connect();
    for statement in [
        "CREATE TABLE t (id int PRIMARY KEY)",
        "BEGIN",
        "INSERT INTO t VALUES (1)",
    ] {
        other.batch_execute(statement).expect("hold a key");
    }
    let pool = pool(DatabaseConfig {
        lock_timeout: Duration::from_millis(200),
        ..config(&database)
    });
    let mut connection = pool.get(soon()).expect("a connection");
    let outcome = connection.execute("INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING", &[]);
    assert!(
        matches!(outcome, Err(DatabaseError::LockTimeout)),
        "{outcome:?}"
    );
    other.batch_execute("ROLLBACK").expect("let go of the key");
    let inserted = connection.execute("INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING", &[]);
    assert_eq!(inserted.expect("the key is free"), 1);
}

#[test]
fn an_exhausted_pool_says_so_at_the_deadline() {
    let database = support::postgres();
    let pool = pool(DatabaseConfig {
        max_conns: 2,
        ..config(&database)
    });
    let held = (
        pool.get(soon()).expect("one"),
        pool.get(soon()).expect("two"),
    );
    let started = Instant::now();
    let error = pool
        .get(Deadline::after(Duration::from_millis(300)))
        .err()
        .expect("none is left");
    assert!(
        matches!(error, DatabaseError::PoolTimeout { max: 2, .. }),
        "{error}"
    );
    let waited = started.elapsed();
    assert!((300..3000).contains(&waited.as_millis()), "{waited:?}");

    let waiting = pool.clone();
    let waiter = thread::spawn(move || waiting.get(soon()).map(drop));
    eventually(Duration::from_secs(5), "somebody waits", || {
        pool.status().waiting == 1
    });
    assert_eq!(pool.status().in_use, 2);
    drop(held);
    waiter
        .join()
        .expect("the waiter")
        .expect("a connection for the waiter");
    assert_eq!(pool.status().waiting, 0);
    assert_eq!(pool.status().in_use, 0);
}

#[test]
fn many_threads_share_few_connections() {
    let database = support::postgres();
    let pool = pool(DatabaseConfig {
        max_conns: 4,
        ..config(&database)
    });
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let mut connection = pool.get(soon()).expect("a connection");
                    connection.execute("SELECT 1", &[]).expect("a statement");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(done.into_inner(), 800);
    assert_eq!(pool.status().in_use, 0);
    assert!(pool.status().idle <= 4);
}

#[test]
fn idle_connections_are_made_ready_ahead_of_need() {
    let database = support::postgres();
    let pool = pool(DatabaseConfig {
        max_conns: 10,
        max_idle_conns: 3,
        ..config(&database)
    });
    eventually(Duration::from_secs(10), "three idle connections", || {
        pool.status().idle == 3
    });
    assert_eq!(pool.status().max, 10);
}

#[test]
fn an_old_connection_is_replaced_when_it_comes_back() {
    let database = support::postgres();
    let pool = pool(DatabaseConfig {
        max_conns: 1,
        conn_max_lifetime: Duration::from_millis(50),
        ..config(&database)
    });
    let mut connection = pool.get(soon()).expect("a connection");
    let first = pid(&mut connection);
    connection
        .execute("SELECT pg_sleep(0.1)", &[])
        .expect("grow old");
    drop(connection);
    assert_ne!(pid(&mut pool.get(soon()).expect("a new connection")), first);
}

#[test]
fn a_host_name_is_looked_up_and_each_of_its_addresses_tried() {
    let database = support::postgres();
    let pool = pool(DatabaseConfig {
        host: "localhost".to_owned(),
        ..config(&database)
    });
    pool.get(soon())
        .and_then(|mut it| it.execute("SELECT 1", &[]))
        .expect("localhost is where the server is");
}

#[test]
fn a_pool_is_built_without_its_database_and_says_no_at_once() {
    // Bound and closed again: nothing listens there.
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|it| it.local_addr())
        .expect("a free port")
        .port();
    let pool = pool(DatabaseConfig::new(
        "127.0.0.1",
        port,
        "tbd",
        "secret",
        "tbd",
    ));
    let started = Instant::now();
    let error = pool
        .get(Deadline::after(Duration::from_secs(30)))
        .err()
        .expect("nobody is there");
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(
        error.to_string(),
        format!("the database 127.0.0.1:{port}/tbd is unavailable: connection refused")
    );
    assert!(error.is_transient() && error.is_unavailable());

    let started = Instant::now();
    assert!(pool.get(Deadline::after(Duration::from_secs(30))).is_err());
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn a_users_mistake_is_one_clear_sentence_without_the_password() {
    let database = support::postgres();
    let right = config(&database);
    let wrong_password = DatabaseConfig {
        password: "hunter2".to_owned(),
        ..right.clone()
    };
    let unknown_database = DatabaseConfig {
        name: "nowhere".to_owned(),
        ..right.clone()
    };
    for (config, expected) in [
        (
            wrong_password,
            "refuses us: wrong password for user \"tbd\" (check DB_USER and DB_PASSWORD)",
        ),
        (
            unknown_database,
            "refuses us: database \"nowhere\" does not exist (create it, or check DB_NAME)",
        ),
    ] {
        let error = pool(config)
            .get(soon())
            .err()
            .expect("a mistake")
            .to_string();
        assert!(error.ends_with(expected), "{error}");
        assert!(
            !error.contains("hunter2") && !error.contains('\n'),
            "{error}"
        );
    }
}

#[test]
fn messages_quote_no_values() {
    let database = support::postgres();
    let pool = pool(config(&database));
    let mut connection = pool.get(soon()).expect("a connection");
    connection
        .execute("CREATE TABLE people (email text PRIMARY KEY)", &[])
        .expect("a table");
    let insert = "INSERT INTO people VALUES ($1)";
    connection
        .execute(insert, &[&"ada@example.com"])
        .expect("a row");
    let error = connection
        .execute(insert, &[&"ada@example.com"])
        .expect_err("a duplicate");
    assert_eq!(error.constraint(), Some("people_pkey"));
    assert_eq!(error.sqlstate(), Some("23505"));
    assert!(!error.is_transient());
    let cast = connection
        .query("SELECT $1::text::int", &[&"ada@example.com"])
        .expect_err("not a number");
    for error in [error, cast] {
        assert!(!format!("{error} {error:?}").contains("ada@"), "{error:?}");
    }
}

#[test]
fn killed_backends_are_replaced_and_a_repeatable_statement_does_not_notice() {
    let database = support::postgres();
    let pool = pool(DatabaseConfig {
        max_conns: 8,
        max_idle_conns: 8,
        ..config(&database)
    });
    eventually(Duration::from_secs(10), "eight idle connections", || {
        pool.status().idle == 8
    });
    terminate_backends(&database);
    for _ in 0..8 {
        let outcome = retry(soon(), || pool.get(soon())?.execute("SELECT 1", &[]));
        assert!(outcome.is_ok(), "{outcome:?}");
    }
}

#[test]
fn a_statement_whose_backend_is_killed_under_it_is_a_lost_connection() {
    let database = support::postgres();
    let pool = pool(DatabaseConfig {
        max_conns: 1,
        ..config(&database)
    });
    let mut connection = pool.get(soon()).expect("a connection");
    let victim = pid(&mut connection);
    let running = thread::spawn(move || connection.execute("SELECT pg_sleep(4)", &[]));
    let mut admin = database.connect();
    let active = "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND state = 'active' AND query LIKE '%pg_sleep(4)%'";
    eventually(Duration::from_secs(5), "the statement runs", || {
        !admin.query(active, &[&victim]).expect("look").is_empty()
    });
    admin
        .execute("SELECT pg_terminate_backend($1)", &[&victim])
        .expect("kill it");
    let outcome = running.join().expect("the thread");
    assert!(
        matches!(outcome, Err(DatabaseError::ConnectionLost(_))),
        "{outcome:?}"
    );
    assert_ne!(
        pid(&mut pool.get(soon()).expect("a new connection")),
        victim
    );
}

#[test]
fn a_database_that_went_away_is_refused_fast_and_found_again_by_itself() {
    let server = OwnServer::postgres();
    let database = Database::on(&server.address());
    let pool = pool(config(&database));
    pool.get(soon())
        .and_then(|mut it| it.execute("SELECT 1", &[]))
        .expect("all is well");

    server.kill();
    let until_known = eventually(Duration::from_secs(5), "the pool knows", || {
        matches!(
            pool.get(soon())
                .and_then(|mut it| it.execute("SELECT 1", &[])),
            Err(DatabaseError::Unavailable { .. })
        )
    });
    let started = Instant::now();
    assert!(pool.get(soon()).is_err());
    let refusal = started.elapsed();
    assert!(refusal < Duration::from_millis(400), "{refusal:?}");

    server.start();
    let until_back = eventually(Duration::from_secs(5), "the pool is back", || {
        pool.get(soon())
            .and_then(|mut it| it.execute("SELECT 1", &[]))
            .is_ok()
    });
    println!("known away after {until_known:?}, refused in {refusal:?}, back after {until_back:?}");
}

#[test]
fn a_server_that_freezes_holds_no_thread_for_long() {
    let database = support::postgres();
    let (proxy, through) = through_proxy(&database);
    let pool = pool(DatabaseConfig {
        max_conns: 8,
        max_idle_conns: 8,
        statement_timeout: Duration::from_millis(300),
        ..through
    });
    eventually(Duration::from_secs(10), "eight idle connections", || {
        pool.status().idle == 8
    });
    proxy.freeze();

    let started = Instant::now();
    let outcome = pool
        .get(soon())
        .and_then(|mut it| it.execute("SELECT 1", &[]));
    assert!(
        matches!(outcome, Err(DatabaseError::ConnectionLost(_))),
        "{outcome:?}"
    );
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );

    // The other connections are suspect now. The first silent one decides for all.
    for _ in 0..3 {
        let started = Instant::now();
        let outcome = pool.get(Deadline::after(Duration::from_secs(30)));
        assert!(matches!(
            outcome.err(),
            Some(DatabaseError::Unavailable { .. })
        ));
        assert!(
            started.elapsed() < Duration::from_millis(2500),
            "{:?}",
            started.elapsed()
        );
    }

    proxy.thaw();
    eventually(Duration::from_secs(6), "the pool is back", || {
        pool.get(soon())
            .and_then(|mut it| it.execute("SELECT 1", &[]))
            .is_ok()
    });
}

#[test]
fn only_waiting_for_the_server_is_limited() {
    let database = support::postgres();
    let pool = pool(DatabaseConfig {
        max_conns: 1,
        ..config(&database)
    });
    let mut connection = pool.get(soon()).expect("a connection");
    // From here on the pool gives the server up after 2.1 s.
    connection
        .limit_to(Deadline::after(Duration::from_millis(100)))
        .expect("a near deadline");
    let before = connection.transaction(|it| -> Result<_, DatabaseError> {
        it.execute("SELECT 1", &[])?;
        thread::sleep(Duration::from_millis(2600));
        Ok(it.query(BACKEND_PID, &[])?[0].get::<_, i32>(0))
    });
    thread::sleep(Duration::from_millis(2600));
    assert_eq!(pid(&mut connection), before.expect("time to think"));
}

#[test]
fn a_panic_while_the_server_is_frozen_is_held_up_only_so_long() {
    let database = support::postgres();
    let (proxy, through) = through_proxy(&database);
    let pool = pool(DatabaseConfig {
        max_conns: 1,
        statement_timeout: Duration::from_millis(300),
        ..through
    });
    let mut connection = pool.get(soon()).expect("a connection");
    let started = Instant::now();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _: Result<(), DatabaseError> = connection.transaction(|_| {
            proxy.freeze();
            panic!("the work's own fault");
        });
    }));
    assert!(panicked.is_err() && connection.is_lost());
    drop(connection);
    let held_up = started.elapsed();
    assert!(held_up < Duration::from_secs(15), "{held_up:?}");
    proxy.thaw();
}

#[test]
fn a_broken_network_is_a_lost_connection_and_heals() {
    let database = support::postgres();
    let (proxy, through) = through_proxy(&database);
    let pool = pool(through);
    pool.get(soon())
        .and_then(|mut it| it.execute("SELECT 1", &[]))
        .expect("all is well");
    proxy.cut();
    let error = retry(soon(), || pool.get(soon())?.execute("SELECT 1", &[]))
        .expect_err("there is no way to the server");
    assert!(error.is_unavailable(), "{error:?}");
    proxy.mend();
    eventually(Duration::from_secs(5), "the pool is back", || {
        retry(soon(), || pool.get(soon())?.execute("SELECT 1", &[])).is_ok()
    });
    assert!(proxy.connections() > 1);
}

#[test]
fn a_statement_whose_result_changed_with_the_schema_is_prepared_again() {
    let database = support::postgres();
    let pool = pool(DatabaseConfig {
        max_conns: 1,
        ..config(&database)
    });
    let mut connection = pool.get(soon()).expect("a connection");
    let select = "SELECT * FROM t";
    let mut admin = database.connect();
    admin
        .batch_execute("CREATE TABLE t AS SELECT 1 AS a")
        .expect("a table");
    assert_eq!(connection.query(select, &[]).expect("before")[0].len(), 1);

    admin
        .batch_execute("ALTER TABLE t ADD COLUMN b int")
        .expect("a change");
    assert_eq!(connection.query(select, &[]).expect("after")[0].len(), 2);

    // Inside a transaction there is no retry, but the caller may retry.
    admin
        .batch_execute("ALTER TABLE t ADD COLUMN c int")
        .expect("another change");
    let columns = |connection: &mut PooledConnection| {
        connection
            .transaction(|it| -> Result<_, DatabaseError> { Ok(it.query(select, &[])?[0].len()) })
    };
    let outcome = columns(&mut connection);
    assert!(
        matches!(outcome, Err(DatabaseError::StaleStatement)),
        "{outcome:?}"
    );
    assert_eq!(
        retry(soon(), || columns(&mut connection)).expect("the second try"),
        3
    );
}

#[test]
fn a_statement_the_server_forgot_is_prepared_again() {
    let database = support::postgres();
    let pool = pool(DatabaseConfig {
        max_conns: 1,
        ..config(&database)
    });
    let mut connection = pool.get(soon()).expect("a connection");
    connection.execute("SELECT 1", &[]).expect("prepare it");
    connection
        .execute("DEALLOCATE ALL", &[])
        .expect("forget it");
    connection
        .execute("SELECT 1", &[])
        .expect("prepare it again");
}

#[test]
fn a_transaction_is_kept_when_its_work_succeeds_and_undone_when_it_fails_or_panics() {
    let database = support::postgres();
    let pool = pool(DatabaseConfig {
        max_conns: 1,
        ..config(&database)
    });
    let mut connection = pool.get(soon()).expect("a connection");
    connection
        .execute("CREATE TABLE t (id int)", &[])
        .expect("a table");
    let insert = "INSERT INTO t VALUES ($1)";

    let kept: Result<u64, DatabaseError> =
        connection.transaction(|it| it.execute(insert, &[&1_i32]));
    assert_eq!(kept.expect("committed"), 1);
    let failed: Result<(), DatabaseError> = connection.transaction(|it| {
        it.execute(insert, &[&2_i32])?;
        it.execute("SELECT 1 / 0", &[]).map(drop)
    });
    assert!(failed.is_err());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _: Result<(), DatabaseError> = connection.transaction(|it| {
            it.execute(insert, &[&3_i32])?;
            panic!("the work's own fault");
        });
    }));
    assert!(panicked.is_err());
    drop(connection);

    let mut connection = pool.get(soon()).expect("the connection again");
    let rows = connection
        .query("SELECT id FROM t", &[])
        .expect("what was kept");
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [1]);
}

#[test]
fn a_session_whose_transaction_did_not_end_is_replaced() {
    let database = support::postgres();
    let (proxy, through) = through_proxy(&database);
    let pool = pool(DatabaseConfig {
        max_conns: 1,
        ..through
    });
    // The server refuses the end, as it does when somebody cancels it.
    for (end, error) in [("COMMIT", "42601"), ("ROLLBACK", "22012")] {
        let mut connection = pool.get(soon()).expect("a connection");
        connection
            .limit_to(Deadline::after(Duration::from_secs(1)))
            .expect("a limit");
        proxy.spoil(end.as_bytes());
        let outcome = connection.transaction(|it| {
            let number = i32::from(end == "COMMIT");
            it.execute("SELECT 1 / $1::int", &[&number])
        });
        let outcome: DatabaseError = outcome.expect_err(end);
        assert_eq!(outcome.sqlstate(), Some(error));
        drop(connection);
        let mut connection = pool.get(soon()).expect("a connection");
        connection
            .execute("SELECT 1", &[])
            .expect("outside any transaction");
    }
}

#[test]
fn the_loser_of_two_deadlocked_transactions_gets_a_conflict_and_may_retry() {
    let database = support::postgres();
    let pool = pool(config(&database));
    pool.get(soon())
        .and_then(|mut it| {
            it.execute(
                "CREATE TABLE t AS SELECT id, 0 AS n FROM generate_series(1, 2) AS id",
                &[],
            )
        })
        .expect("a table");
    let update = "UPDATE t SET n = n + 1 WHERE id = $1";
    let (meet, conflicts) = (Barrier::new(2), AtomicUsize::new(0));
    thread::scope(|scope| {
        for (first, second) in [(1_i32, 2_i32), (2, 1)] {
            let (pool, meet, conflicts) = (&pool, &meet, &conflicts);
            scope.spawn(move || {
                let mut attempts = 0;
                retry(soon(), || {
                    attempts += 1;
                    let outcome = pool.get(soon())?.transaction(|it| {
                        it.execute(update, &[&first])?;
                        if attempts == 1 {
                            meet.wait();
                        }
                        it.execute(update, &[&second])
                    });
                    if let Err(DatabaseError::Conflict { .. }) = outcome {
                        conflicts.fetch_add(1, Ordering::Relaxed);
                    }
                    outcome
                })
                .expect("both succeed in the end");
            });
        }
    });
    assert_eq!(conflicts.into_inner(), 1);
    let rows = pool
        .get(soon())
        .and_then(|mut it| it.query("SELECT n FROM t", &[]))
        .expect("the sums");
    assert!(rows.iter().all(|row| row.get::<_, i32>(0) == 2));
}

#[derive(Default)]
struct Counting {
    queries: AtomicUsize,
    failures: AtomicUsize,
    waits: AtomicUsize,
}

impl Hooks for Counting {
    fn query_finished(&self, name: &'static str, _duration: Duration, ok: bool) {
        assert_eq!(name, "counted");
        self.queries.fetch_add(1, Ordering::Relaxed);
        self.failures.fetch_add(usize::from(!ok), Ordering::Relaxed);
    }

    fn connection_waited(&self, _duration: Duration) {
        self.waits.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn hooks_hear_of_every_statement_and_every_check_out() {
    let database = support::postgres();
    let hooks = Arc::new(Counting::default());
    let pool =
        Pool::with_hooks(config(&database), Arc::clone(&hooks) as Arc<dyn Hooks>).expect("a pool");
    let mut connection = pool.get(soon()).expect("a connection");
    connection
        .execute(Statement::new("counted", "SELECT 1"), &[])
        .expect("a statement");
    connection
        .transaction(|it| it.execute(Statement::new("counted", "SELECT 1 / 0"), &[]))
        .expect_err("a failing statement");
    let counts =
        [&hooks.queries, &hooks.failures, &hooks.waits].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(counts, [2, 1, 1]);
}

#[test]
fn the_monitor_follows_the_database_and_its_schema() {
    let database = support::postgres();
    let (proxy, config) = through_proxy(&database);
    let migrator = Migrator::new(EMBEDDED).expect("migrations");
    let stop = StopSignal::new();
    let mut check = HealthCheck::new(pool(config.clone()), migrator.clone(), TABLES);
    let (monitor, thread) =
        Monitor::start("database-health", stop.clone(), move || check.run()).expect("a monitor");

    let complains = |of: &str| monitor.health().is_err_and(|reason| reason.contains(of));
    eventually(Duration::from_secs(5), "the schema is found behind", || {
        complains("schema is behind")
    });
    migrator.run(&config, soon()).expect("migrate");
    eventually(Duration::from_secs(5), "all is well", || {
        monitor.health().is_ok()
    });

    proxy.cut();
    eventually(Duration::from_secs(10), "a cut is noticed", || {
        complains("unavailable")
    });
    proxy.mend();
    eventually(Duration::from_secs(10), "its end is noticed", || {
        monitor.health().is_ok()
    });

    proxy.freeze();
    eventually(Duration::from_secs(10), "a freeze is noticed", || {
        monitor.health().is_err()
    });
    let started = Instant::now();
    stop.stop();
    thread
        .join()
        .expect("the thread ends while the server is frozen");
    assert!(started.elapsed() < Duration::from_secs(8));
    proxy.thaw();
}

/// Takes connections until `server` has none left.
fn take_every_connection(database: &Database) -> Vec<postgres::Client> {
    let mut taken = Vec::new();
    loop {
        match database.try_connect() {
            Ok(client) => taken.push(client),
            Err(error) => {
                let full = postgres::error::SqlState::TOO_MANY_CONNECTIONS;
                assert_eq!(error.code(), Some(&full), "{error}");
                return taken;
            }
        }
    }
}

#[test]
fn at_the_servers_connection_limit_a_pool_that_serves_is_healthy() {
    let server = OwnServer::postgres_with(&["max_connections=12"]);
    let database = Database::on(&server.address());
    let config = DatabaseConfig {
        max_conns: 8,
        max_idle_conns: 2,
        ..config(&database)
    };
    let migrator = Migrator::new(EMBEDDED).expect("migrations");
    migrator.run(&config, soon()).expect("migrate");
    let pool = pool(config);
    eventually(Duration::from_secs(10), "two idle connections", || {
        pool.status().idle == 2
    });
    let others = take_every_connection(&database);
    let mut check = HealthCheck::new(pool.clone(), migrator, TABLES);
    assert_eq!(check.run(), Ok(()));

    // Both connections are in use, and the server allows no third. A caller waits for one of them, and
    // the check stays healthy.
    let mut held = [pool.get(soon()), pool.get(soon())].map(|it| it.expect("a connection"));
    assert_eq!(check.run(), Ok(()));
    let refused = pool.get(Deadline::after(Duration::from_secs(1))).err();
    assert!(
        matches!(refused, Some(DatabaseError::PoolTimeout { .. })),
        "{refused:?}"
    );
    for connection in &mut held {
        connection.execute("SELECT 1", &[]).expect("it serves");
    }
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.get(soon()).map(drop));
        eventually(Duration::from_secs(5), "somebody waits", || {
            pool.status().waiting == 1
        });
        drop(held);
        waiter.join().expect("the waiter").expect("one comes back");
    });

    server.kill();
    assert!(check.run().is_err());
    drop(others);
}
