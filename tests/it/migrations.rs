//! Migrations against a real PostgreSQL and golang-migrate's own command-line program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use tbd::orders::adapters::postgres::TABLES;
use tbd::orders::adapters::postgres::migrations::EMBEDDED;
use tbd_deadline::{Deadline, StopSignal};
use tbd_postgres::Pool;
use tbd_postgres::migrations::{MigrationError, Migrator, Outcome, SchemaState, Source};

use crate::database::config;
use crate::support::{self, Database};

const LATEST: i64 = 4;
const LONG: Duration = Duration::from_secs(20);

fn soon() -> Deadline {
    Deadline::after(LONG)
}

fn embedded() -> Migrator {
    Migrator::new(EMBEDDED).expect("the embedded migrations")
}

fn run(migrator: &Migrator, database: &Database) -> Result<Outcome, MigrationError> {
    migrator.run(&config(database), soon())
}

/// The output of the CLI, which must succeed. All of it goes to standard error.
fn cli(database: &Database, arguments: &[&str]) -> String {
    let (ok, said) = cli_outcome(
        support::migrate(database)
            .args(arguments)
            .output()
            .expect("run migrate"),
    );
    assert!(ok, "migrate {arguments:?}: {said}");
    said
}

fn cli_outcome(output: Output) -> (bool, String) {
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    )
}

/// The CLI on a folder other than the repository's.
fn cli_in(dir: &Path, database: &Database, arguments: &[&str]) -> (bool, String) {
    let mut command = support::migrate(database);
    // The last of repeated flags counts.
    cli_outcome(
        command
            .arg("-path")
            .arg(dir)
            .args(arguments)
            .output()
            .expect("run migrate"),
    )
}

/// The rows of `schema_migrations`.
fn recorded(database: &Database) -> Vec<(i64, bool)> {
    let rows = database
        .connect()
        .query("SELECT version, dirty FROM schema_migrations", &[]);
    rows.expect("the version table")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

/// Everything in the schema that a migration can create: columns, constraints, indexes, sequences,
/// options.
fn schema(database: &Database) -> Vec<String> {
    let everything = "
        SELECT format('column %s.%s %s %s %s %s', table_name, column_name, data_type, collation_name, is_nullable,
                      column_default) FROM information_schema.columns WHERE table_schema = 'public'
        UNION ALL
        SELECT format('constraint %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
            FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL
        SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL
        SELECT format('relation %s %s %s', relkind, relname, reloptions)
            FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL
        SELECT format('type %s', typname) FROM pg_type WHERE typnamespace = 'public'::regnamespace
        UNION ALL
        SELECT format('function %s', proname) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        ORDER BY 1";
    let rows = database
        .connect()
        .query(everything, &[])
        .expect("the schema");
    rows.iter().map(|row| row.get(0)).collect()
}

/// A folder of migrations, deleted when dropped.
struct Folder(PathBuf);

impl Folder {
    fn with(files: &[(&str, &str)]) -> Folder {
        let path = std::env::temp_dir().join(support::unique("tbd-migrations"));
        fs::create_dir(&path).expect("make a folder");
        for (name, text) in files {
            fs::write(path.join(name), text).expect("write a migration");
        }
        Folder(path)
    }

    fn migrator(&self) -> Migrator {
        Migrator::new(Source::Dir(self.0.clone())).expect("migrations of a folder")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn an_empty_database_is_brought_up_to_date_once() {
    let database = support::postgres();
    let outcome = run(&embedded(), &database).expect("migrate");
    assert_eq!(
        outcome,
        Outcome {
            from: None,
            to: Some(LATEST),
            applied: 4
        }
    );
    assert_eq!(recorded(&database), [(LATEST, false)]);
    let outcome = run(&embedded(), &database).expect("again");
    assert_eq!(
        outcome,
        Outcome {
            from: Some(LATEST),
            to: Some(LATEST),
            applied: 0
        }
    );
}

#[test]
fn of_many_who_migrate_at_once_one_does() {
    let database = support::postgres();
    let start = Barrier::new(6);
    let applied: Vec<usize> = thread::scope(|scope| {
        let runs: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let migrator = embedded();
                    start.wait();
                    run(&migrator, &database).expect("migrate").applied
                })
            })
            .collect();
        runs.into_iter()
            .map(|run| run.join().expect("a migrator"))
            .collect()
    });
    assert_eq!(applied.iter().sum::<usize>(), 4);
    assert_eq!(applied.iter().filter(|applied| **applied > 0).count(), 1);
    assert_eq!(recorded(&database), [(LATEST, false)]);
}

#[test]
fn the_cli_and_we_leave_the_same_schema_behind() {
    let (by_cli, by_us) = (support::postgres(), support::postgres());
    cli(&by_cli, &["up"]);
    run(&embedded(), &by_us).expect("migrate");
    assert_eq!(schema(&by_cli), schema(&by_us));
    assert_eq!(recorded(&by_cli), recorded(&by_us));
}

#[test]
fn what_the_cli_did_is_done_for_us() {
    let database = support::postgres();
    cli(&database, &["up", "1"]);
    assert_eq!(run(&embedded(), &database).expect("the rest").applied, 3);
    cli(&database, &["down", "3"]);
    let outcome = run(&embedded(), &database).expect("and again");
    assert_eq!(
        outcome,
        Outcome {
            from: Some(1),
            to: Some(LATEST),
            applied: 3
        }
    );
    cli(&database, &["down", "-all"]);
    assert_eq!(recorded(&database), []);
    assert_eq!(
        run(&embedded(), &database).expect("from nothing").from,
        None
    );
}

#[test]
fn what_we_did_is_done_for_the_cli() {
    let database = support::postgres();
    run(&embedded(), &database).expect("migrate");
    assert_eq!(cli(&database, &["version"]), "4");
    assert!(cli(&database, &["up"]).ends_with("no change"));
    cli(&database, &["down", "1"]);
    assert_eq!(cli(&database, &["version"]), "3");
    cli(&database, &["goto", "4"]);
    assert_eq!(recorded(&database), [(LATEST, false)]);
}

#[test]
fn every_migration_can_be_undone_and_redone() {
    let database = support::postgres();
    let mut before = Vec::new();
    for version in 1..=LATEST {
        before.push(schema_without_version_table(&database));
        cli(&database, &["goto", &version.to_string()]);
    }
    let newest = schema_without_version_table(&database);
    for expected in before.iter().rev() {
        cli(&database, &["down", "1"]);
        assert_eq!(schema_without_version_table(&database), *expected);
    }
    run(&embedded(), &database).expect("up again");
    assert_eq!(schema_without_version_table(&database), newest);
}

fn schema_without_version_table(database: &Database) -> Vec<String> {
    schema(database)
        .into_iter()
        .filter(|line| !line.contains("schema_migrations"))
        .collect()
}

#[test]
fn a_migration_that_fails_is_explained_and_leaves_the_database_dirty_for_the_cli_too() {
    let database = support::postgres();
    let folder = Folder::with(&[
        ("1_good.up.sql", "CREATE TABLE good ()"),
        (
            "2_bad.up.sql",
            "CREATE TABLE half ();\n-- ä\nSELECT nonsense;\n",
        ),
    ]);
    let error = run(&folder.migrator(), &database)
        .expect_err("the second one fails")
        .to_string();
    for part in [
        "version 2",
        "2_bad.up.sql, line 3, column 8",
        "column \"nonsense\" does not exist",
        "force 1",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(recorded(&database), [(2, true)]);
    assert!(
        !schema(&database).iter().any(|line| line.contains("half")),
        "a file is one transaction"
    );

    let (ok, said) = cli_in(&folder.0, &database, &["up"]);
    assert!(
        !ok && said.contains("Dirty database version 2. Fix and force version."),
        "{said}"
    );
    assert_eq!(cli_in(&folder.0, &database, &["version"]).1, "2 (dirty)");

    // The remedy that the message names.
    assert!(cli_in(&folder.0, &database, &["force", "1"]).0);
    fs::write(folder.0.join("2_bad.up.sql"), "CREATE TABLE mended ()").expect("mend the migration");
    let outcome = run(&folder.migrator(), &database).expect("mended");
    assert_eq!(
        outcome,
        Outcome {
            from: Some(1),
            to: Some(2),
            applied: 1
        }
    );
}

#[test]
fn a_database_the_cli_left_dirty_is_refused_with_the_way_out() {
    let database = support::postgres();
    let folder = Folder::with(&[
        ("1_a.up.sql", "CREATE TABLE a ()"),
        ("1_a.down.sql", "SELECT nonsense"),
        ("2_b.up.sql", "SELECT nonsense"),
    ]);
    assert!(!cli_in(&folder.0, &database, &["up"]).0);
    let error = run(&folder.migrator(), &database).expect_err("dirty on the way up");
    assert!(matches!(error, MigrationError::Dirty(_)) && !error.is_transient());
    let error = error.to_string();
    assert!(
        error.contains("dirty at version 2")
            && error.contains("2_b.up.sql")
            && error.contains("force 1"),
        "{error}"
    );

    // The other remedy: the SQL that the message names.
    let sql = error
        .split('`')
        .find(|part| part.starts_with("UPDATE"))
        .expect("a statement to run");
    database.connect().batch_execute(sql).expect("run it");
    assert_eq!(recorded(&database), [(1, false)]);

    assert!(!cli_in(&folder.0, &database, &["down", "-all"]).0);
    assert_eq!(recorded(&database), [(-1, true)]);
    let error = run(&folder.migrator(), &database)
        .expect_err("dirty on the way down")
        .to_string();
    assert!(
        error.contains("\"no version\"")
            && error.contains("1_a.down.sql")
            && error.contains("force 1"),
        "{error}"
    );
}

#[test]
fn a_lock_held_by_the_cli_or_its_library_is_respected() {
    let database = support::postgres();
    let mut other = database.connect();
    for path in [format!("/{}", database.name), database.name.clone()] {
        let id = advisory_lock_id(&["public", "schema_migrations", &path]);
        other
            .execute("SELECT pg_advisory_lock($1)", &[&id])
            .expect("take the lock");
        let started = Instant::now();
        let outcome = embedded().run(
            &config(&database),
            Deadline::after(Duration::from_millis(500)),
        );
        let error = outcome.expect_err("the lock is held");
        assert!(matches!(error, MigrationError::Locked) && error.is_transient());
        assert!(
            (400..3000).contains(&started.elapsed().as_millis()),
            "{:?}",
            started.elapsed()
        );
        other
            .execute("SELECT pg_advisory_unlock($1)", &[&id])
            .expect("give it back");
    }
    run(&embedded(), &database).expect("nobody holds it");
    let left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(
        other.query_one(left, &[]).expect("look").get::<_, i64>(0),
        0,
        "no lock is left behind"
    );
}

/// golang-migrate's derivation, implemented again from its source.
pub fn advisory_lock_id(names: &[&str]) -> i64 {
    let mut crc = u32::MAX;
    for byte in names.join("\0").bytes() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    i64::from((!crc).wrapping_mul(1_486_364_155))
}

#[test]
fn while_we_migrate_the_cli_waits() {
    let database = support::postgres();
    let folder = Folder::with(&[("1_slow.up.sql", "SELECT pg_sleep(2); CREATE TABLE slow ()")]);
    thread::scope(|scope| {
        let ours = scope.spawn(|| run(&folder.migrator(), &database));
        let mut watch = database.connect();
        let sleeping = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' \
                        AND application_name = 'tbd-migrations' AND query LIKE '%pg_sleep%'";
        while watch.query(sleeping, &[]).expect("look").is_empty() {
            assert!(!ours.is_finished(), "we are done before the CLI began");
            thread::sleep(Duration::from_millis(20));
        }
        let (ok, said) = cli_in(&folder.0, &database, &["up"]);
        assert!(ok && said.ends_with("no change"), "{said}");
        assert_eq!(ours.join().expect("we").expect("migrate").applied, 1);
    });
}

#[test]
fn waiting_for_the_lock_does_not_disturb_an_index_built_concurrently() {
    // CREATE INDEX CONCURRENTLY waits for a session inside pg_advisory_lock: a deadlock.
    let database = support::postgres();
    let folder = Folder::with(&[
        (
            "1_table.up.sql",
            "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id",
        ),
        ("2_index.up.sql", "CREATE INDEX CONCURRENTLY t_id ON t (id)"),
    ]);
    let start = Barrier::new(3);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                start.wait();
                run(&folder.migrator(), &database).expect("migrate");
            });
        }
    });
    assert_eq!(recorded(&database), [(2, false)]);
}

#[test]
fn a_stop_ends_the_wait_for_the_lock_and_begins_no_further_migration() {
    let database = support::postgres();
    let folder = Folder::with(&[
        ("1_slow.up.sql", "SELECT pg_sleep(2)"),
        ("2_next.up.sql", "CREATE TABLE next ()"),
    ]);
    let run = |stop: &StopSignal| {
        let migrator = folder.migrator();
        migrator.run_unless_stopped(&config(&database), soon(), stop)
    };
    let stop = StopSignal::new();
    let stopped = thread::scope(|scope| {
        let first = scope.spawn(|| run(&stop));
        let mut watch = database.connect();
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
        support::eventually(LONG, "the migration to be under way", || {
            let count: i64 = watch.query_one(sleeping, &[]).expect("look").get(0);
            (count > 0).then_some(())
        });
        // The second one waits for the lock of the first.
        let second = scope.spawn(|| run(&stop));
        thread::sleep(Duration::from_millis(300));
        stop.stop();
        let second = second.join().expect("no panic");
        assert!(!first.is_finished(), "a migration that runs is ended");
        [first.join().expect("no panic"), second]
    });
    for outcome in stopped {
        assert!(
            matches!(outcome, Err(MigrationError::Stopped)),
            "{outcome:?}"
        );
    }
    assert_eq!(recorded(&database), [(1, false)]);
    assert_eq!(run(&StopSignal::new()).expect("go on").applied, 1);
}

#[test]
fn a_schema_newer_than_the_program_is_left_alone() {
    let database = support::postgres();
    run(&embedded(), &database).expect("migrate");
    database
        .connect()
        .batch_execute("UPDATE schema_migrations SET version = 4")
        .expect("a newer program was here");
    let outcome = run(&embedded(), &database).expect("newer is fine");
    assert_eq!(
        outcome,
        Outcome {
            from: Some(4),
            to: Some(4),
            applied: 0
        }
    );
}

#[test]
fn a_version_that_no_file_knows_is_refused_by_both() {
    let database = support::postgres();
    let folder = Folder::with(&[("1_a.up.sql", ""), ("3_c.up.sql", "")]);
    assert!(cli_in(&folder.0, &database, &["force", "2"]).0);
    let error = run(&folder.migrator(), &database)
        .expect_err("2 is not among the files")
        .to_string();
    assert!(
        error.contains("no migration found for version 2"),
        "{error}"
    );
    let (ok, said) = cli_in(&folder.0, &database, &["up"]);
    assert!(
        !ok && said.contains("no migration found for version 2"),
        "{said}"
    );
}

#[test]
fn empty_files_and_files_for_one_way_only_are_steps_like_any_other() {
    let (by_cli, by_us) = (support::postgres(), support::postgres());
    let folder = Folder::with(&[
        ("1_empty.up.sql", "  \n"),
        ("2_down_only.down.sql", "SELECT nonsense"),
        ("10_last.up.sql", "CREATE TABLE last ()"),
        ("README.md", "not a migration"),
    ]);
    assert!(cli_in(&folder.0, &by_cli, &["up"]).0);
    let outcome = run(&folder.migrator(), &by_us).expect("migrate");
    assert_eq!(
        outcome,
        Outcome {
            from: None,
            to: Some(10),
            applied: 3
        }
    );
    assert_eq!(recorded(&by_us), recorded(&by_cli));
    assert_eq!(schema(&by_us), schema(&by_cli));
}

#[test]
fn the_status_tells_none_behind_current_running_and_failed_apart() {
    let database = support::postgres();
    let pool = Pool::new(config(&database)).expect("a pool");
    let migrator = embedded();
    let status = || {
        migrator
            .status(&mut pool.get(soon()).expect("a connection"), TABLES)
            .expect("the status")
    };
    assert_eq!((status().version, status().latest), (None, Some(LATEST)));
    assert!(status().problem().is_some());
    cli(&database, &["goto", "1"]);
    assert_eq!(status().version, Some(1));
    run(&migrator, &database).expect("migrate");
    assert_eq!(
        (status().state, status().problem()),
        (SchemaState::Clean, None)
    );

    let mut other = database.connect();
    let lock = |other: &mut postgres::Client, verb: &str, path: &str| {
        let id = advisory_lock_id(&["public", "schema_migrations", path]);
        let statement = format!("SELECT pg_advisory_{verb}({id})");
        other.batch_execute(&statement).expect("the lock");
    };
    other
        .batch_execute("UPDATE schema_migrations SET dirty = true")
        .expect("make it dirty");
    for path in [format!("/{}", database.name), database.name.clone()] {
        assert_eq!(
            (status().state, status().problem()),
            (SchemaState::Dirty, None)
        );
        lock(&mut other, "lock", &path);
        assert_eq!(
            (status().state, status().problem()),
            (SchemaState::Migrating, None)
        );
        lock(&mut other, "unlock", &path);
    }
    lock(&mut other, "lock", "another_database");
    assert_eq!(status().state, SchemaState::Dirty);
    other
        .batch_execute("ALTER TABLE orders DROP COLUMN failure_reason")
        .expect("take away what the program needs");
    let problem = status().problem().expect("a column is missing");
    assert!(problem.contains("orders.failure_reason"), "{problem}");
}

#[test]
fn the_columns_that_the_program_needs_are_those_that_the_migrations_make() {
    let database = support::postgres();
    run(&embedded(), &database).expect("migrate");
    let columns = "SELECT table_name || '.' || column_name FROM information_schema.columns
                    WHERE table_schema = 'public' AND table_name <> 'schema_migrations' ORDER BY 1";
    let made: Vec<String> = database
        .connect()
        .query(columns, &[])
        .expect("the columns")
        .iter()
        .map(|row| row.get(0))
        .collect();
    let mut needed: Vec<String> = TABLES
        .iter()
        .flat_map(|(table, columns)| {
            columns
                .iter()
                .map(move |column| format!("{table}.{column}"))
        })
        .collect();
    needed.sort();
    assert_eq!(needed, made);
}

#[test]
fn migrations_go_to_the_schema_that_unqualified_names_go_to() {
    let database = support::postgres();
    database
        .connect()
        .batch_execute(&format!(
            "CREATE SCHEMA \"our \"\"own\"; ALTER DATABASE {} SET search_path = \"our \"\"own\"",
            database.name
        ))
        .expect("another schema");
    run(&embedded(), &database).expect("migrate");
    assert_eq!(recorded(&database), [(LATEST, false)]);
    assert_eq!(cli(&database, &["version"]), "4");
    assert!(schema(&database).is_empty(), "nothing went to public");
}

#[test]
fn the_tables_refuse_what_no_order_can_be() {
    let database = support::postgres();
    run(&embedded(), &database).expect("migrate");
    let mut client = database.connect();
    let insert = |amount: &str, status: &str| {
        format!(
            "INSERT INTO orders VALUES (gen_random_uuid(), 'a@b.example', {amount}, '{status}', NULL, now(), now())"
        )
    };
    client
        .batch_execute(&insert("9007199254740991", "pending"))
        .expect("the largest amount");
    for (amount, status) in [
        ("0", "pending"),
        ("9007199254740992", "pending"),
        ("1", "lost"),
    ] {
        assert!(
            client.batch_execute(&insert(amount, status)).is_err(),
            "{amount} {status}"
        );
    }
}
