//! nginx with this repository's configuration in front of real apis, for gRPC.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tbd::proto::orders::{GetOrderRequest, order_service};
use tbd_grpc::proto::google::rpc::RetryInfo;
use tbd_grpc::{Channel, Code};

use super::orders_client::create_order;
use super::support::edge::Edge;
use super::support::program::{Program, READY, Stack, free_port};
use super::support::{eventually, unique};

const CLIENTS: usize = 4;
/// Orders of each client, enough for the kill to meet some under way.
const ORDERS: usize = 100;

/// The sample that counts successful look-ups.
const FOUND: &str = r#"grpc_server_handled_total{grpc_code="OK",grpc_method="GetOrder",grpc_service="tbd.orders.v1.OrderService"}"#;

/// Orders under a new key until the call succeeds; the order's id. Each failure must be UNAVAILABLE.
fn order(channel: &Channel) -> String {
    let key = unique("key");
    eventually(READY, "an order", || match create_order(channel, &key) {
        Ok(order) => Some(order.id),
        Err(status) => {
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            None
        }
    })
}

#[test]
fn calls_of_one_connection_take_turns_among_apis_and_a_killed_one_doubles_no_order() {
    let stack = Stack::new();
    let mut apis = [stack.start_api(), stack.start_api(), stack.start_api()].map(Program::ready);
    let edge = Edge::in_front_of(&apis);

    let channel = Channel::builder(&edge.grpc_address()).build();
    let id = order(&channel);
    for _ in 0..30 {
        let call = channel.call(order_service::GET_ORDER);
        let found = call.send(&GetOrderRequest { id: id.clone() });
        assert_eq!(found.expect("the order").order.expect("an order").id, id);
    }
    for api in &apis {
        api.metric_becomes(FOUND, 10.0);
    }

    let ordered = AtomicUsize::new(0);
    let mut ids: BTreeSet<String> = thread::scope(|scope| {
        let client = || {
            let channel = Channel::builder(&edge.grpc_address()).build();
            let next = |_| {
                ordered.fetch_add(1, Ordering::Relaxed);
                order(&channel)
            };
            (0..ORDERS).map(next).collect::<Vec<_>>()
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        eventually(READY, "a third of the orders", || {
            (ordered.load(Ordering::Relaxed) > CLIENTS * ORDERS / 3).then_some(())
        });
        apis[0].kill();
        let ids = clients
            .into_iter()
            .flat_map(|client| client.join().expect("no panic"));
        ids.collect()
    });
    ids.insert(id);
    assert_eq!(ids.len(), CLIENTS * ORDERS + 1);
    assert_eq!(stack.count("orders"), ids.len() as i64);
}

#[test]
fn what_nginx_refuses_by_itself_is_a_status() {
    let nobody = Edge::before(&[(free_port(), free_port())]);
    let channel = Channel::builder(&nobody.grpc_address()).build();
    let status = create_order(&channel, "key").expect_err("there is no api");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("proxy"), "{status:?}");
    assert!(
        status.metadata().text("x-request-id").is_some(),
        "{status:?}"
    );
    let retry = status.detail::<RetryInfo>().expect("RetryInfo");
    assert_eq!(retry.retry_delay.map(|delay| delay.seconds), Some(1));
}
