//! Query plans: no statement reads a whole table, neither with many rows nor with a plan made for few.

use std::collections::HashSet;

use postgres::types::Type;
use postgres::{Client, NoTls};
use tbd::orders::adapters::postgres::statements;
use tbd_postgres::DatabaseConfig;

use crate::partitions::partition;
use crate::support::program::Stack;
use crate::support::{Database, PASSWORD, USER};

/// Inserts orders, one in a hundred not completed yet, and a key for each.
fn fill(stack: &Stack, rows: u32) {
    drop(stack.api());
    stack.execute(&format!(
        "INSERT INTO orders (id, customer_email, amount_cents, status, created_at, updated_at)
         SELECT (substr(hex, 1, 8) || '-' || substr(hex, 9, 4) || '-7' || substr(gen_random_uuid()::text, 16))::uuid,
                'user' || n || '@example.com', n,
                CASE WHEN n % 100 = 0 THEN 'pending' WHEN n % 100 = 1 THEN 'failed' ELSE 'completed' END, now(), now()
           FROM generate_series(1, {rows}) AS n, lpad(to_hex(1760000000000 + n), 12, '0') AS hex;
         INSERT INTO idempotency_keys
                (key, request_hash, response_status, response_body, order_id, created_at, expires_at)
         SELECT id::text, sha256(id::text::bytea), 202, id::text::bytea, id, now(),
                now() + interval '72 hours' * (row_number() OVER () % 1000 / 1000.0 + 0.001)
           FROM orders;
         INSERT INTO sagas (order_id, id, version, state, calls, started_at, updated_at)
         SELECT id, id, 1, CASE status WHEN 'pending' THEN 'running' ELSE 'completed' END, '[]', now(), now() FROM orders;
         ANALYZE",
    ));
}

/// A value for a parameter, as SQL.
fn sample(of: &Type, id: &str) -> String {
    match *of {
        Type::UUID => format!("'{id}'"),
        Type::UUID_ARRAY => format!("ARRAY['{id}', gen_random_uuid()]::uuid[]"),
        Type::TIMESTAMPTZ_ARRAY => "ARRAY[now(), now()]".to_owned(),
        Type::TEXT | Type::VARCHAR => "'failed'".to_owned(),
        Type::BYTEA => "'\\x00'".to_owned(),
        Type::INT2 | Type::INT4 => "202".to_owned(),
        Type::INT8 => "20".to_owned(),
        Type::FLOAT8 => "10.0".to_owned(),
        Type::TIMESTAMPTZ => "now()".to_owned(),
        Type::TEXT_ARRAY => "ARRAY['a', 'b']".to_owned(),
        Type::BYTEA_ARRAY => "ARRAY['\\x00', '\\x01']::bytea[]".to_owned(),
        Type::INT2_ARRAY => "ARRAY[202, 202]::smallint[]".to_owned(),
        Type::INT8_ARRAY => "ARRAY[1, 2]::bigint[]".to_owned(),
        Type::FLOAT8_ARRAY => "ARRAY[10.0, 10.0]::float8[]".to_owned(),
        ref other => panic!("a parameter of type {other}: add a sample here"),
    }
}

fn explain(client: &mut Client, sql: &str) -> String {
    let rows = client
        .query(sql, &[])
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    rows.iter()
        .map(|row| row.get::<_, String>(0))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Checks that a condition on an index finds every row of these tables. Housekeeping alone, once a
/// second, scans the outbox.
fn assert_reads_no_whole_table(name: &str, plan: &str) {
    let tables: &[&str] = match name {
        "SELECT outbox" | "SELECT outbox backlog" => &["orders", "idempotency_keys", "sagas"],
        _ => &["orders", "idempotency_keys", "outbox", "sagas"],
    };
    let next_lines = plan.lines().skip(1).chain([""]);
    for (line, next) in plan.lines().zip(next_lines) {
        let names = |table: &&str| [format!(" on {table} "), format!(" on {table}_")];
        let reads = |table: &&str| {
            line.contains("Scan") && names(table).iter().any(|name| line.contains(name))
        };
        // This index has unfinished sagas only.
        let by_index = next.contains("Cond:") || line.contains(" using sagas_unfinished on sagas ");
        assert!(by_index || !tables.iter().any(reads), "{name}:\n{plan}");
    }
}

/// A session with tbd's settings.
fn session(database: &Database) -> Client {
    let Database { host, port, name } = database;
    let config = DatabaseConfig::new(host, *port, USER, PASSWORD, name);
    let mut session: postgres::Config = database.url().parse().expect("an address");
    let session = session.options(&config.session_options());
    session.connect(NoTls).expect("connect")
}

#[test]
fn no_plan_reads_a_whole_table() {
    let stack = Stack::new();
    fill(&stack, 100_000);
    assert_no_plan_reads_a_whole_table(&stack);
}

/// A prepared statement keeps its plan while the tables grow.
#[test]
fn nor_does_one_that_was_made_while_there_were_few() {
    let stack = Stack::new();
    fill(&stack, 20);
    assert_no_plan_reads_a_whole_table(&stack);
}

#[test]
fn nor_does_one_on_partitions_and_those_that_name_orders_use_only_their_partitions() {
    for rows in [20, 100_000] {
        let stack = Stack::new();
        fill(&stack, rows);
        partition(&stack, &["start", "day"]);
        for (name, mode, plan) in assert_no_plan_reads_a_whole_table(&stack) {
            let partitions: HashSet<&str> = plan
                .split_whitespace()
                .filter(|word| word.starts_with("orders_before_") || word.starts_with("orders_20"))
                .filter(|word| !word.contains("_pkey") && !word.contains("_status_id"))
                .collect();
            match name {
                // In the order of the partitions, which is that of the ids.
                "SELECT orders" | "SELECT orders by status" => {
                    assert!(!plan.contains("Sort") && !plan.contains("Merge"), "{plan}");
                }
                // Once a second, for a few orders whose ids it finds itself.
                "UPDATE sagas stalled" => {}
                // Even a plan for any id leaves out all partitions but one, at its execution.
                "SELECT order" => assert_eq!(partitions.len(), 1, "{mode}: {plan}"),
                _ if mode == "force_custom_plan" => {
                    assert!(partitions.len() <= 1, "{name}: {plan}");
                }
                _ => {}
            }
        }
    }
}

/// The plans, each with its statement's name and the mode of the plan.
fn assert_no_plan_reads_a_whole_table(stack: &Stack) -> Vec<(&'static str, &'static str, String)> {
    let mut plans = Vec::new();
    let mut client = session(&stack.database);
    let id: uuid::Uuid = client
        .query_one("SELECT id FROM orders OFFSET 5 LIMIT 1", &[])
        .expect("an id")
        .get(0);
    let statements = statements();
    assert!(statements.len() >= 10);
    for (number, statement) in statements.iter().enumerate() {
        let name = statement.name();
        let parameters = client
            .prepare(statement.sql())
            .expect("prepare")
            .params()
            .to_vec();
        let samples: Vec<String> = parameters
            .iter()
            .map(|of| sample(of, &id.to_string()))
            .collect();
        // A text that this statement reads as JSON.
        let samples = match name {
            "INSERT sagas" => samples
                .into_iter()
                .map(|it| it.replace("'failed'", "'[]'"))
                .collect(),
            _ => samples,
        };
        let arguments = match samples.is_empty() {
            true => String::new(),
            false => format!("({})", samples.join(", ")),
        };
        client
            .batch_execute(&format!("PREPARE s{number} AS {}", statement.sql()))
            .expect("prepare");
        // The plans of the first executions, and the one that PostgreSQL keeps afterwards.
        for mode in ["force_custom_plan", "force_generic_plan"] {
            client
                .batch_execute(&format!("SET plan_cache_mode = {mode}"))
                .expect("set the mode");
            let plan = explain(
                &mut client,
                &format!("EXPLAIN EXECUTE s{number}{arguments}"),
            );
            assert_reads_no_whole_table(name, &plan);
            plans.push((name, mode, plan));
        }
    }
    plans
}
