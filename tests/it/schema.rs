//! Start-up against a schema that is empty, behind, ahead or dirty, and next to golang-migrate.

use std::fs;
use std::time::Duration;

use crate::support::http::get;
use crate::support::program::{API, READY, Stack, free_port, run};
use crate::support::{eventually, migrate, repository, unique};

fn version(stack: &Stack) -> (i64, bool) {
    let row = stack
        .database
        .connect()
        .query_one("SELECT version, dirty FROM schema_migrations", &[]);
    let row = row.expect("one version");
    (row.get(0), row.get(1))
}

fn newest(stack: &Stack) -> i64 {
    let api = stack.api();
    drop(api);
    version(stack).0
}

#[test]
fn many_instances_started_at_once_migrate_once() {
    let stack = Stack::new();
    let apis: Vec<_> = (0..4).map(|_| stack.start_api()).collect();
    let apis: Vec<_> = apis.into_iter().map(|api| api.ready()).collect();
    assert!(!version(&stack).1);
    assert_eq!(stack.count("schema_migrations"), 1);
    for api in &apis {
        api.accepted_order();
    }
}

#[test]
fn without_auto_migrate_the_api_gets_ready_when_somebody_else_has_migrated() {
    let stack = Stack::new().set("AUTO_MIGRATE", "false");
    let mut api = stack.start_api();
    let unready = eventually(READY, "an answer", || {
        get("/readyz").try_send(&api.address()).ok()
    });
    assert_eq!(unready.status, 503);
    let reason = eventually(READY, "the schema to be looked at", || {
        let unready = get("/readyz").send(&api.address());
        let reason = unready.json()["checks"]["database"]
            .as_str()
            .expect("a reason")
            .to_owned();
        reason.contains("schema").then_some(reason)
    });
    assert!(!reason.contains("secret"), "{reason}");
    assert_eq!(get("/healthz").send(&api.address()).status, 200);
    let tables = "SELECT count(*) FROM pg_tables WHERE tablename = 'orders'";
    assert_eq!(stack.number(tables), 0);

    let status = migrate(&stack.database)
        .arg("up")
        .status()
        .expect("run migrate");
    assert!(status.success());
    api.become_ready(READY);
    api.accepted_order();
}

#[test]
fn the_real_migrate_program_carries_on_where_tbd_stopped_and_the_other_way_round() {
    let stack = Stack::new();
    let newest = newest(&stack);
    let run = |arguments: &[&str]| {
        let output = migrate(&stack.database)
            .args(arguments)
            .output()
            .expect("run migrate");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_eq!(run(&["version"]).trim(), newest.to_string());
    assert!(run(&["up"]).contains("no change"));
    run(&["down", "1"]);
    assert_eq!(version(&stack), (newest - 1, false));
    let api = stack.api();
    assert_eq!(version(&stack), (newest, false));
    api.accepted_order();
    drop(api);
    run(&["down", "-all"]);
    stack.api().accepted_order();
}

#[test]
fn a_dirty_database_stops_the_start_with_the_version_and_the_way_out() {
    let stack = Stack::new();
    let newest = newest(&stack);
    stack.execute("UPDATE schema_migrations SET dirty = true");
    let mut command = stack.command(API);
    command.env("API_PORT", free_port().to_string());
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("dirty") && said.contains(&newest.to_string()),
        "{said}"
    );
    assert!(
        said.contains("UPDATE schema_migrations") || said.contains("migrate"),
        "how to mend it: {said}"
    );
    assert_eq!(version(&stack), (newest, true));
}

/// Marks the schema dirty as a migration to `version` does; holds golang-migrate's lock if the
/// migration is to look running.
fn mark_dirty(stack: &Stack, version: i64, running: bool) -> postgres::Client {
    let mut client = stack.database.connect();
    let mark = format!("UPDATE schema_migrations SET version = {version}, dirty = true");
    if running {
        let names = ["public", "schema_migrations", &stack.database.name].join("\0");
        let id = crc32fast::hash(names.as_bytes()).wrapping_mul(1_486_364_155);
        client
            .batch_execute(&format!("SELECT pg_advisory_lock({id})"))
            .expect("take the lock");
    }
    client.batch_execute(&mark).expect("mark it dirty");
    client
}

#[test]
fn a_running_migration_takes_no_instance_out_of_service() {
    let stack = Stack::new();
    let (mut api, mut worker) = (stack.api(), stack.worker());
    let newest = version(&stack).0;
    for version in [newest, newest + 1] {
        let migrating = mark_dirty(&stack, version, true);
        for program in [&mut api, &mut worker] {
            program.metric_becomes("db_schema_migrating", 1.0);
            program.become_ready(Duration::ZERO);
        }
        api.accepted_order();
        drop(migrating);
        stack.execute("UPDATE schema_migrations SET dirty = false");
        for program in [&api, &worker] {
            program.metric_becomes("db_schema_migrating", 0.0);
            assert_eq!(program.metric("db_schema_dirty"), Some(0.0));
        }
    }
    // A program that starts now and has nothing to migrate serves as well.
    let _migrating = mark_dirty(&stack, newest + 1, true);
    stack.api().accepted_order();
}

#[test]
fn while_the_real_migrate_program_works_instances_stay_ready() {
    let folder = std::env::temp_dir().join(unique("tbd-migrations"));
    fs::create_dir(&folder).expect("make a folder");
    for file in fs::read_dir(repository().join("migrations")).expect("the migrations") {
        let file = file.expect("a file");
        // The folders are the participants'.
        if file.path().is_file() {
            fs::copy(file.path(), folder.join(file.file_name())).expect("copy a migration");
        }
    }
    let stack = Stack::new();
    let mut api = stack.api();
    let newest = version(&stack).0;
    let waits = "SELECT pg_advisory_xact_lock(1)";
    fs::write(folder.join(format!("{:06}_next.up.sql", newest + 1)), waits)
        .expect("write a migration");
    let mut gate = stack.database.connect();
    gate.batch_execute("SELECT pg_advisory_lock(1)")
        .expect("close the gate");

    let mut command = migrate(&stack.database);
    // The last of repeated flags counts.
    let mut cli = command
        .arg("-path")
        .arg(&folder)
        .arg("up")
        .spawn()
        .expect("run migrate");
    // Only then is it known: the program locks first.
    eventually(Duration::from_secs(10), "the mark of migrate", || {
        (version(&stack) == (newest + 1, true)).then_some(())
    });
    api.metric_becomes("db_schema_migrating", 1.0);
    api.become_ready(Duration::ZERO);
    api.accepted_order();
    gate.batch_execute("SELECT pg_advisory_unlock(1)")
        .expect("open the gate");
    assert!(cli.wait().expect("wait for migrate").success());
    let _ = fs::remove_dir_all(&folder);
    api.metric_becomes("db_schema_migrating", 0.0);
    assert_eq!(api.metric("db_schema_dirty"), Some(0.0));
    api.become_ready(Duration::ZERO);
}

#[test]
fn after_a_migration_that_failed_instances_serve_while_all_they_need_is_there() {
    let stack = Stack::new();
    let (mut api, worker) = (stack.api(), stack.worker());
    let newest = version(&stack).0;
    mark_dirty(&stack, newest + 1, false);
    for program in [&api, &worker] {
        program.metric_becomes("db_schema_dirty", 1.0);
        assert_eq!(program.metric("db_schema_migrating"), Some(0.0));
    }
    api.become_ready(Duration::ZERO);
    api.accepted_order();
    let warnings = api.log().into_iter().filter(|line| {
        line.contains("\"warn\"") && line.contains("dirty") && line.contains("schema_migrations")
    });
    assert_eq!(warnings.count(), 1);
    // Another program that has nothing to migrate starts.
    stack.api().accepted_order();

    stack.execute("ALTER TABLE orders RENAME COLUMN failure_reason TO reason");
    let unready = api.become_unready(READY);
    let reason = unready.json()["checks"]["database"].to_string();
    assert!(reason.contains("orders.failure_reason"), "{reason}");
    stack.execute("ALTER TABLE orders RENAME COLUMN reason TO failure_reason");
    api.become_ready(READY);
}

#[test]
fn a_migration_that_fails_stops_the_start_and_leaves_the_database_dirty() {
    let folder = std::env::temp_dir().join(unique("tbd-migrations"));
    fs::create_dir(&folder).expect("make a folder");
    fs::write(folder.join("000001_good.up.sql"), "CREATE TABLE good ()")
        .expect("write a migration");
    fs::write(
        folder.join("000002_bad.up.sql"),
        "CREATE TABLE bad (no_such_type nonsense)",
    )
    .expect("write a migration");
    let stack = Stack::new().set("MIGRATIONS_DIR", folder.to_str().expect("a UTF-8 path"));
    let mut command = stack.command(API);
    command.env("API_PORT", free_port().to_string());
    let output = run(command);
    let _ = fs::remove_dir_all(&folder);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains('2') && said.contains("dirty"), "{said}");
    assert_eq!(version(&stack), (2, true));
}

#[test]
fn a_schema_newer_than_the_program_is_served_with_a_warning() {
    let stack = Stack::new();
    newest(&stack);
    stack.execute("UPDATE schema_migrations SET version = 99");
    let (api, worker) = (stack.api(), stack.worker());
    api.accepted_order();
    let warnings = |log: Vec<String>| {
        log.into_iter()
            .filter(|line| line.contains("99") && line.to_lowercase().contains("warn"))
            .count()
    };
    for program in [&api, &worker] {
        eventually(Duration::from_secs(10), "the warning", || {
            (warnings(program.log()) > 0).then_some(())
        });
        assert_eq!(warnings(program.log()), 1);
    }
    assert_eq!(version(&stack), (99, false));
}
