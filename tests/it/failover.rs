//! Fail-over of PostgreSQL: a primary is demoted and a standby promoted, behind one name or in a list
//! of hosts.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use postgres::{Client, NoTls};

use crate::support::http::get;
use crate::support::program::{Program, READY, Stack, id};
use crate::support::proxy::Proxy;
use crate::support::{Database, OwnServer, PASSWORD, SetOnDrop, USER, eventually, kafka, unique};

pub const SOON: Duration = Duration::from_secs(15);

/// A migrated database on a primary, and a standby that replicates it.
pub fn primary_and_standby() -> (Stack, OwnServer, OwnServer) {
    let primary = OwnServer::postgres();
    let stack = Stack::on(Database::on(&primary.address()), kafka());
    drop(stack.api());
    let standby = primary.standby();
    (stack, primary, standby)
}

/// Makes the standby stream the primary's changes.
pub fn follow(standby: &OwnServer, primary: &OwnServer, stack: &Stack) {
    let port = primary.port();
    let from = format!("host=127.0.0.1 port={port} user={USER} password={PASSWORD}");
    set(standby, stack, &format!("primary_conninfo = '{from}'"));
    eventually(SOON, "the standby to stream", || {
        let receivers = on(standby, stack).query("SELECT FROM pg_stat_wal_receiver", &[]);
        (receivers.expect("ask").len() == 1).then_some(())
    });
}

/// Changes a setting of a running server.
fn set(server: &OwnServer, stack: &Stack, setting: &str) {
    let mut admin = on(server, stack);
    for statement in [
        &*format!("ALTER SYSTEM SET {setting}"),
        "SELECT pg_reload_conf()",
    ] {
        admin.batch_execute(statement).expect("change the setting");
    }
}

/// A connection to the stack's database on one of the two servers.
pub fn on(server: &OwnServer, stack: &Stack) -> Client {
    postgres::Config::new()
        .host("127.0.0.1")
        .port(server.port())
        .user(USER)
        .password(PASSWORD)
        .dbname(&stack.database.name)
        .connect(NoTls)
        .expect("connect")
}

/// Makes the server refuse writes from now on; all of its sessions stay.
fn demote(server: &OwnServer, stack: &Stack) {
    set(server, stack, "default_transaction_read_only = on");
    let mut admin = on(server, stack);
    let read_only = "SELECT current_setting('default_transaction_read_only') = 'on'";
    eventually(SOON, "the server to be read-only", || {
        let row = admin.query_one(read_only, &[]).expect("ask");
        row.get::<_, bool>(0).then_some(())
    });
}

fn promote(server: &OwnServer, stack: &Stack) {
    let promoted = on(server, stack).query_one("SELECT pg_promote()", &[]);
    assert!(promoted.expect("promote").get::<_, bool>(0));
}

/// The answer of an api that cannot write: the order may be repeated.
fn assert_order_refused(api: &Program, key: &str) {
    let refused = api.order(key, 1299);
    refused.problem(503, "dependency-unavailable");
    assert!(refused.header("Retry-After").is_some());
}

#[test]
fn a_server_that_turned_read_only_is_left_for_its_successor_behind_the_same_name() {
    for coalesce in ["on", "off"] {
        let (stack, primary, standby) = primary_and_standby();
        let proxy = Proxy::before(&primary.address());
        let stack = stack
            .set("DB_PORT", &proxy.port().to_string())
            .set("DB_COALESCE", coalesce);
        let mut api = stack.api();
        api.accepted_order();
        let key = unique("key");

        demote(&primary, &stack);
        assert_order_refused(&api, &key);
        let unready = api.become_unready(SOON);
        let reason = unready.json()["checks"]["database"].to_string();
        assert!(reason.contains("read-only"), "{reason}");
        assert_order_refused(&api, &key);

        // The old primary stays up; no connection to it breaks.
        promote(&standby, &stack);
        proxy.lead_to(&standby.address());
        api.become_ready(READY);
        let accepted = api.order(&key, 1299);
        assert_eq!(accepted.status, 202, "{}", accepted.text());
        let stored = format!("SELECT FROM orders WHERE id = '{}'", id(&accepted.json()));
        let rows = on(&standby, &stack).query(&stored, &[]);
        assert_eq!(rows.expect("look for the order").len(), 1);
    }
}

#[test]
fn without_an_order_to_write_a_demoted_server_is_noticed_as_well() {
    let (stack, primary, standby) = primary_and_standby();
    let proxy = Proxy::before(&primary.address());
    let stack = stack.set("DB_PORT", &proxy.port().to_string());
    let (mut api, mut worker) = (stack.api(), stack.worker());
    demote(&primary, &stack);
    for program in [&api, &worker] {
        program.become_unready(SOON);
    }
    promote(&standby, &stack);
    proxy.lead_to(&standby.address());
    for program in [&mut api, &mut worker] {
        program.become_ready(READY);
    }
    api.accepted_order();
}

#[test]
fn of_several_hosts_the_first_acceptable_one_is_used() {
    let (stack, primary, standby) = primary_and_standby();
    let (nobody, standbys) = (crate::support::free_port(), standby.port());
    let ports = format!("{nobody},{standbys},{}", primary.port());
    let mut stack = stack
        .set("DB_HOST", "127.0.0.1,127.0.0.1,127.0.0.1")
        .set("DB_PORT", &ports);
    for target in ["read-write", "primary"] {
        stack = stack.set("DB_TARGET_SESSION_ATTRS", target);
        stack.api().accepted_order();
    }
    assert_eq!(stack.count("orders"), 2);

    // If any server is acceptable, the standby answers reads. An order that it cannot write may be
    // repeated.
    let stack = stack
        .set("DB_TARGET_SESSION_ATTRS", "any")
        .set("AUTO_MIGRATE", "false");
    let api = stack.api();
    let list = get("/v1/orders").send(&api.address()).json();
    assert_eq!(list["orders"], serde_json::json!([]));
    assert_order_refused(&api, &unique("key"));

    // If none is acceptable, the reason names every server.
    let stack = stack
        .set("DB_TARGET_SESSION_ATTRS", "read-write")
        .set("DB_PORT", &format!("{nobody},{standbys},{standbys}"));
    let api = stack.start_api();
    eventually(READY, "the reason", || {
        let ready = get("/readyz").try_send(&api.address()).ok()?;
        let names = |reason: &str| ready.text().contains(reason);
        let names_all = names(&format!("127.0.0.1:{nobody}: connection refused"))
            && names(&format!("127.0.0.1:{standbys}: the server is read-only"));
        (ready.status == 503 && names_all).then_some(())
    });
}

/// The limit for orders to be accepted again after a server's death, and for them to be completed.
const RECOVERED: Duration = Duration::from_secs(90);

#[test]
fn no_acknowledged_order_is_lost_when_a_broker_and_then_the_primary_die() {
    let brokers = OwnServer::kafka_cluster();
    let primary = OwnServer::postgres_with(&["synchronous_commit=on"]);
    let addresses = brokers.each_ref().map(OwnServer::address).join(",");
    let stack =
        Stack::on(Database::on(&primary.address()), addresses).set("KAFKA_TOPIC_REPLICATION", "3");
    drop(stack.api());
    let standby = primary.standby();
    follow(&standby, &primary, &stack);
    // From now on a commit waits until the standby has it.
    set(&primary, &stack, "synchronous_standby_names = '*'");
    let mut admin = on(&primary, &stack);
    eventually(SOON, "the standby to count", || {
        let synchronous = "SELECT FROM pg_stat_replication WHERE sync_state = 'sync'";
        (admin.query(synchronous, &[]).expect("ask").len() == 1).then_some(())
    });
    drop(admin);
    let stack = stack
        .set("DB_HOST", "127.0.0.1,127.0.0.1")
        .set("DB_PORT", &format!("{},{}", primary.port(), standby.port()))
        .set("DB_TARGET_SESSION_ATTRS", "read-write");
    let (api, _worker) = (stack.api(), stack.worker());

    let acknowledged = Mutex::new(Vec::new());
    let over = AtomicBool::new(false);
    let customer = || {
        while !over.load(Ordering::SeqCst) {
            let key = unique("key");
            let order = eventually(RECOVERED, "the order to be accepted", || {
                let answer = api.order(&key, 1299);
                (answer.status == 202).then(|| answer.json())
            });
            acknowledged.lock().unwrap().push(id(&order).to_owned());
        }
    };
    let more_are_accepted = || {
        let enough = acknowledged.lock().unwrap().len() + 100;
        eventually(RECOVERED, "a hundred more orders", || {
            (acknowledged.lock().unwrap().len() >= enough).then_some(())
        });
    };
    thread::scope(|scope| {
        let _over = SetOnDrop(&over);
        for _ in 0..8 {
            scope.spawn(customer);
        }
        more_are_accepted();
        brokers[0].kill();
        more_are_accepted();
        primary.kill();
        promote(&standby, &stack);
        more_are_accepted();
    });

    let mut survivor = on(&standby, &stack);
    let completed = "SELECT id::text FROM orders WHERE status = 'completed'";
    let mut missing = acknowledged.into_inner().unwrap();
    eventually(
        RECOVERED,
        "every acknowledged order to be completed",
        || {
            let rows = survivor.query(completed, &[]).expect("ask");
            let found: HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
            missing.retain(|id| !found.contains(id));
            missing.is_empty().then_some(())
        },
    );
}
