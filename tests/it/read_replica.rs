//! Reads from a standby, and the primary that answers what the standby cannot.

use std::time::{Duration, Instant};

use tbd::proto::orders::{GetOrderRequest, ListOrdersRequest, order_service as service};
use tbd_grpc::Channel;

use crate::failover::{SOON, follow, on, primary_and_standby};
use crate::support::eventually;
use crate::support::http::{get, post};
use crate::support::program::{Program, READY, Stack, id};
use crate::support::proxy::Proxy;

/// The order's status, or none if there is no such order.
fn status(api: &Program, id: &str) -> Option<String> {
    let answer = get(format!("/v1/orders/{id}")).send(&api.address());
    match answer.status {
        404 => None,
        status => {
            assert_eq!(status, 200, "{}", answer.text());
            Some(answer.json()["status"].as_str().expect("text").to_owned())
        }
    }
}

/// The ids of the newest orders.
fn listed(api: &Program) -> Vec<String> {
    let answer = get("/v1/orders").send(&api.address());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let orders = answer.json()["orders"].as_array().expect("orders").clone();
    orders.iter().map(|order| id(order).to_owned()).collect()
}

fn cancel(api: &Program, id: &str) {
    let canceled = post(format!("/v1/orders/{id}/cancel")).send(&api.address());
    assert_eq!(canceled.status, 200, "{}", canceled.text());
}

#[test]
fn a_standby_answers_reads_and_the_primary_what_the_standby_cannot() {
    let (stack, primary, standby) = primary_and_standby();
    follow(&standby, &primary, &stack);
    let to_primary = Proxy::before(&primary.address());
    let to_standby = Proxy::before(&standby.address());
    let stack = stack
        .set("DB_READ_HOST", "127.0.0.1")
        .set("DB_PORT", &to_primary.port().to_string())
        .set("DB_READ_PORT", &to_standby.port().to_string());
    let mut api = stack.api();
    let old = api.accepted_order();
    let old = id(&old);
    let mut replica = on(&standby, &stack);
    let mut replicated = |id: &str| {
        let sql = format!("SELECT FROM orders WHERE id = '{id}'");
        eventually(SOON, "the order at the standby", || {
            (replica.query(&sql, &[]).expect("ask").len() == 1).then_some(())
        });
    };
    replicated(old);

    // Without the primary, reads over either protocol are answered.
    to_primary.freeze();
    assert_eq!(status(&api, old).as_deref(), Some("pending"));
    assert_eq!(listed(&api), [old]);
    let channel = Channel::builder(&format!("127.0.0.1:{}", api.grpc_port())).build();
    let wanted = GetOrderRequest { id: old.to_owned() };
    channel.call(service::GET_ORDER).send(&wanted).expect("GET");
    let page = channel.call(service::LIST_ORDERS);
    let page = page.send(&ListOrdersRequest::default()).expect("a list");
    assert_eq!(page.orders.len(), 1);
    to_primary.thaw();
    api.become_ready(READY);

    // The standby is late. A client finds its new order, and changes the current state.
    let mut admin = on(&standby, &stack);
    admin
        .batch_execute("SELECT pg_wal_replay_pause()")
        .expect("pause");
    let new = api.accepted_order();
    let new = id(&new);
    assert_eq!(status(&api, new).as_deref(), Some("pending"));
    assert_eq!(listed(&api), [old]);
    cancel(&api, new);
    cancel(&api, old);
    assert_eq!(status(&api, new).as_deref(), Some("canceled"));
    assert_eq!(status(&api, old).as_deref(), Some("pending"));
    admin
        .batch_execute("SELECT pg_wal_replay_resume()")
        .expect("resume");
    eventually(SOON, "the standby to catch up", || {
        (status(&api, old)? == "canceled").then_some(())
    });
    assert_eq!(listed(&api), [new, old]);

    // A silent standby costs its share of the deadline, and one that is away soon nothing.
    to_standby.freeze();
    assert_eq!(status(&api, old).as_deref(), Some("canceled"));
    to_standby.thaw();
    drop((replica, admin));
    standby.kill();
    let state = r#"circuit_breaker_state{name="database-read"}"#;
    for _ in 0..5 {
        assert_eq!(listed(&api), [new, old]);
        assert_eq!(status(&api, new).as_deref(), Some("canceled"));
    }
    assert_eq!(api.metric(state), Some(2.0));
    let ready = get("/readyz").send(&api.address());
    assert_eq!(ready.status, 200, "{}", ready.text());
}

#[test]
fn a_read_costs_the_standby_one_round_trip() {
    let stack = Stack::new();
    let to_standby = Proxy::before(&format!("{}:{}", stack.database.host, stack.database.port));
    let stack = stack
        .set("DB_READ_HOST", "127.0.0.1")
        .set("DB_READ_PORT", &to_standby.port().to_string())
        .set("DB_MAX_CONNS", "1");
    let api = stack.api();
    let order = api.accepted_order();
    let read = || assert_eq!(status(&api, id(&order)).as_deref(), Some("pending"));
    // The connection prepares the statement.
    read();
    let before = to_standby.round_trips();
    (0..10).for_each(|_| read());
    assert_eq!(to_standby.round_trips() - before, 10);

    // The wait for a silent standby is short as well.
    to_standby.freeze();
    let began = Instant::now();
    read();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    to_standby.thaw();
}
