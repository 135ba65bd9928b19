//! `scripts/partition-orders` on a live database.

use std::collections::HashSet;
use std::env;
use std::process::Output;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::support::http::get;
use crate::support::program::{Program, Stack, id, run};
use crate::support::{SetOnDrop, eventually, migrate, repository, unique};

const SOON: Duration = Duration::from_secs(60);
const DAY: u64 = 24 * 60 * 60;

/// Runs the script, with one variable; its output.
fn script(stack: &Stack, arguments: &[&str], tries: &str) -> Output {
    let program = repository().join("scripts/partition-orders");
    let mut command = stack.command(program.to_str().expect("UTF-8"));
    for name in ["PATH", "HOME"] {
        command.env(name, env::var(name).unwrap_or_default());
    }
    command.env("LOCK_TRIES", tries).args(arguments);
    run(command)
}

/// Runs the script, which must succeed; what it said.
pub fn partition(stack: &Stack, arguments: &[&str]) -> String {
    let output = script(stack, arguments, "60");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said + &String::from_utf8_lossy(&output.stdout)
}

/// Runs the script, which must fail; what it said.
fn refused(stack: &Stack, arguments: &[&str]) -> String {
    let output = script(stack, arguments, "2");
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Now, in seconds.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

/// The lowest id of a second.
fn id_at(seconds: u64) -> String {
    let millis = seconds * 1000;
    let (high, low) = (millis >> 16, millis & 0xffff);
    format!("{high:08x}-{low:04x}-0000-0000-000000000000")
}

/// Inserts an order of a second; its id.
fn order_at(stack: &Stack, seconds: u64, status: &str) -> String {
    let id = id_at(seconds).replace("-0000-0000-", "-7000-8000-");
    stack.execute(&format!(
        "INSERT INTO orders (id, customer_email, amount_cents, status, created_at, updated_at)
         VALUES ('{id}', 'a@b.co', 1, '{status}', to_timestamp({seconds}), to_timestamp({seconds}))"
    ));
    id
}

/// Puts partitions that begin at these seconds, and a tail, in the place of those of a table without orders.
fn replace_partitions(stack: &Stack, begins: &[u64]) {
    let mut statements = "DO $$ DECLARE partition text; BEGIN
          FOR partition IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'orders'::regclass LOOP
            EXECUTE 'DROP TABLE ' || partition;
          END LOOP;
        END $$;"
    .to_owned();
    let ends = begins
        .iter()
        .skip(1)
        .map(|end| format!("'{}'", id_at(*end)));
    let ends = ends.chain(["MAXVALUE".to_owned()]);
    for (number, (from, to)) in begins.iter().zip(ends).enumerate() {
        let name = match to.as_str() {
            "MAXVALUE" => "orders_tail".to_owned(),
            _ => format!("orders_{:08}", number + 1),
        };
        let from = id_at(*from);
        statements += &format!(
            "CREATE TABLE {name} PARTITION OF orders FOR VALUES FROM ('{from}') TO ({to});"
        );
    }
    stack.execute(&statements);
}

fn partitions(stack: &Stack) -> i64 {
    stack.number("SELECT count(*) FROM pg_inherits WHERE inhparent = 'orders'::regclass")
}

/// Sends orders on four threads until `work` has ended and some more are accepted. Their ids, each once.
fn while_orders_come(api: &Program, work: impl FnOnce()) -> HashSet<String> {
    let (ids, enough) = (Mutex::new(HashSet::new()), AtomicBool::new(false));
    let count = || ids.lock().expect("no panic").len();
    thread::scope(|scope| {
        let _enough = SetOnDrop(&enough);
        for _ in 0..4 {
            scope.spawn(|| {
                while !enough.load(Ordering::SeqCst) {
                    let order = api.accepted_order();
                    assert!(ids.lock().expect("no panic").insert(id(&order).to_owned()));
                }
            });
        }
        let more = |from: usize| eventually(SOON, "orders", || (count() > from + 20).then_some(()));
        more(0);
        work();
        more(count());
    });
    ids.into_inner().expect("no panic")
}

/// All orders, by cursor.
fn list(api: &Program, filter: &str) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let query = format!("/v1/orders?page_size=7{filter}{cursor}");
        let page = get(query).send(&api.address()).json();
        let orders = page["orders"].as_array().expect("orders");
        ids.extend(orders.iter().map(|order| id(order).to_owned()));
        let Value::String(next) = &page["next_cursor"] else {
            return ids;
        };
        cursor = format!("&cursor={next}");
    }
}

fn found(api: &Program, id: &str) -> u16 {
    get(format!("/v1/orders/{id}")).send(&api.address()).status
}

#[test]
fn a_live_table_becomes_a_partition_while_orders_come() {
    let stack = Stack::new();
    let api = stack.api();
    let old = order_at(&stack, now() - 200 * DAY, "completed");
    let key = unique("key");
    let before = api.order(&key, 1299).json();
    let file = "SELECT pg_relation_filenode('orders_pkey')::bigint";
    let index = stack.number(file);

    let came = while_orders_come(&api, || {
        let said = partition(&stack, &["start", "day"]);
        assert!(said.contains("contracted"), "{said}");
        partition(&stack, &["ahead", "5", "day"]);
        assert!(partition(&stack, &["ahead", "5", "day"]).contains("enough"));
    });
    let status = partition(&stack, &["status"]);
    assert!(
        status.contains("orders_before_2") && status.contains("orders_tail"),
        "{status}"
    );
    // No index was built again.
    let file = "SELECT pg_relation_filenode(inhrelid::regclass)::bigint FROM pg_inherits
                 WHERE inhparent = 'orders_pkey'::regclass AND inhrelid::regclass::text LIKE 'orders_before_%'";
    assert_eq!(stack.number(file), index);

    // The next days', too, and one after all days.
    let later = [2, 3, 400].map(|days| order_at(&stack, now() + days * DAY, "completed"));
    assert_eq!(stack.count("orders_tail"), 1);
    let replay = api.order(&key, 1299);
    assert_eq!((replay.status, replay.json()), (202, before.clone()));
    let mut all: Vec<String> = came.iter().cloned().chain(later).collect();
    all.extend([old, id(&before).to_owned()]);
    all.sort();
    all.reverse();
    assert_eq!(stack.count("orders"), all.len() as i64);
    assert_eq!(list(&api, ""), all);
    for id in &all {
        assert_eq!(found(&api, id), 200, "{id}");
    }
    let _worker = stack.worker();
    stack.all_become("completed", all.len() as i64, SOON);
    assert_eq!(list(&api, "&status=completed"), all);

    let said = refused(&stack, &["start", "day"]);
    assert!(said.contains("already"), "{said}");
}

#[test]
fn old_partitions_are_dropped_unless_an_order_there_is_unfinished() {
    let stack = Stack::new();
    let api = stack.api();
    partition(&stack, &["start"]);
    let days = |ago: u64| now() - ago * DAY;
    replace_partitions(
        &stack,
        &[days(110), days(105), days(100), days(95), days(80)],
    );
    let orders = [107, 102, 97, 85, 1].map(|ago| order_at(&stack, days(ago), "completed"));
    stack.execute(&format!(
        "UPDATE orders SET status = 'processing' WHERE id = '{}';
         INSERT INTO sagas (order_id, id, version, state, calls, started_at, updated_at)
         SELECT id, id, 1, 'completed', '[]', now(), now() FROM orders",
        orders[1]
    ));
    let answers = || orders.each_ref().map(|id| found(&api, id));

    let said = refused(&stack, &["drop", "--older-than", "90d"]);
    assert!(
        said.contains(&orders[1]) && said.contains("processing"),
        "{said}"
    );
    assert_eq!(answers(), [404, 200, 200, 200, 200]);
    assert_eq!(stack.count("sagas"), 4);

    stack.execute(&format!(
        "UPDATE orders SET status = 'canceled' WHERE id = '{0}';
         INSERT INTO outbox (order_id, payload) VALUES ('{0}', '')",
        orders[1]
    ));
    let said = refused(&stack, &["drop", "--older-than", "90d"]);
    assert!(
        said.contains(&orders[1]) && said.contains("outbox"),
        "{said}"
    );
    stack.execute("TRUNCATE outbox");
    let came = while_orders_come(&api, || {
        partition(&stack, &["drop", "--older-than", "90d"]);
    });
    // The partition of the fourth begins before that and ends after it.
    assert_eq!(answers(), [404, 404, 404, 200, 200]);
    assert_eq!((stack.count("sagas"), partitions(&stack)), (2, 2));
    assert_eq!(stack.count("orders"), came.len() as i64 + 2);
    let left = "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'orders%'";
    assert_eq!(stack.number(left), 3);
}

#[test]
fn the_unfinished_saga_of_a_detached_partition_stays() {
    let stack = Stack::new();
    let _api = stack.api();
    partition(&stack, &["start"]);
    let days = |ago: u64| now() - ago * DAY;
    replace_partitions(&stack, &[days(110), days(105), days(80)]);
    // Its dead letter was replayed between the check and the end of the detaching.
    order_at(&stack, days(107), "processing");
    stack.execute(
        "INSERT INTO sagas (order_id, id, version, state, command, calls, started_at, updated_at)
         SELECT id, id, 1, 'running', 'reserve_stock', '[]', now(), now() FROM orders;
         ALTER TABLE orders DETACH PARTITION orders_00000001",
    );
    let said = partition(&stack, &["drop", "--older-than", "90d"]);
    assert!(said.contains("not dropped: orders_00000001"), "{said}");
    assert_eq!(stack.count("sagas"), 1);
}

#[test]
fn without_partitions_ahead_orders_go_to_the_tail_which_is_cut_later() {
    let stack = Stack::new();
    let api = stack.api();
    partition(&stack, &["start", "day"]);
    replace_partitions(&stack, &[now() - 20 * DAY, now() - 10 * DAY]);
    let first = order_at(&stack, now() - 15 * DAY, "completed");
    let came = while_orders_come(&api, || {
        let said = partition(&stack, &["ahead", "3", "day"]);
        assert!(said.contains("nobody"), "{said}");
    });
    assert_eq!(stack.count("orders_tail"), 0);
    assert_eq!(list(&api, "").len(), came.len() + 1);
    assert_eq!(found(&api, &first), 200);
    let left = "SELECT count(*) FROM pg_constraint WHERE conname = 'orders_partition_bound'";
    assert_eq!(stack.number(left), 0);
}

#[test]
fn behind_a_long_transaction_it_gives_up_and_orders_are_accepted() {
    let stack = Stack::new();
    let api = stack.api();
    let mut reader = stack.database.connect();
    reader
        .batch_execute("BEGIN; SELECT FROM orders")
        .expect("hold the weakest lock");
    while_orders_come(&api, || {
        let said = refused(&stack, &["start", "day"]);
        assert!(said.contains("pg_stat_activity"), "{said}");
    });
    let left = "SELECT count(*) FROM pg_constraint WHERE conname = 'orders_partition_bound'";
    assert_eq!(stack.number(left), 0);
    reader.batch_execute("ROLLBACK").expect("end it");

    // An order of the far future: the clock of an api was wrong.
    order_at(&stack, now() + 1000 * DAY, "completed");
    let said = refused(&stack, &["start", "day"]);
    assert!(said.contains("below the bound"), "{said}");
    assert_eq!(stack.number(left), 0);
    stack.execute("DELETE FROM orders; CREATE VIEW mine AS SELECT * FROM orders");
    let said = refused(&stack, &["start", "day"]);
    assert!(said.contains("views"), "{said}");
    stack.execute("DROP VIEW mine");
    partition(&stack, &["start", "day"]);
    api.accepted_order();
}

#[test]
fn migrations_go_up_and_down_on_a_partitioned_table() {
    let stack = Stack::new();
    let mut api = stack.api();
    partition(&stack, &["start", "month"]);
    stack.execute("ALTER TABLE orders ADD COLUMN note text NOT NULL DEFAULT ''");
    order_at(&stack, now() + 400 * DAY, "completed");
    api.accepted_order();
    stack.execute("ALTER TABLE orders DROP COLUMN note");
    api.become_ready(Duration::ZERO);
    drop(api);
    let down = migrate(&stack.database).args(["down", "-all"]).status();
    assert!(down.expect("run migrate").success());
    let left = "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'orders%'";
    assert_eq!(stack.number(left), 0);
    stack.api().accepted_order();
}
