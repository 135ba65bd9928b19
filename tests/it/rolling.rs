//! Rolling restarts: instances are replaced one after another while clients order. No client is
//! refused and no order is left behind.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tbd_grpc::Channel;

use super::orders_client::create_order;
use super::support::edge::Edge;
use super::support::program::{Program, READY, Stack, id, new_order};
use super::support::topic::wait_for_records;
use super::support::{SetOnDrop, eventually, unique};

/// A program ends within the 30 s of its shutdown, on a busy machine.
const ENDED: Duration = Duration::from_secs(40);
const CLIENTS: usize = 4;
/// Number of orders between two restarts.
const BETWEEN: usize = 40;

/// Orders by REST; any answer but 202 fails the test.
fn order_by_rest(edge: &Edge) -> String {
    let answer = new_order(&unique("key"), 1299).send(&edge.address());
    assert_eq!(answer.status, 202, "{}", answer.text());
    id(&answer.json()).to_owned()
}

/// Orders through nginx until stopped, with every second client by gRPC; the orders. Nothing is repeated, and any
/// refusal fails the test.
fn order_until(
    stop: &AtomicBool,
    ordered: &AtomicUsize,
    edge: &Edge,
    client: usize,
) -> Vec<String> {
    let channel = Channel::builder(&edge.grpc_address()).build();
    let order_by_grpc = || {
        let order = create_order(&channel, &unique("key"));
        order.expect("an order by gRPC").id
    };
    let mut ids = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        ids.push(match client % 2 {
            0 => order_by_rest(edge),
            _ => order_by_grpc(),
        });
        ordered.fetch_add(1, Ordering::Relaxed);
    }
    ids
}

/// Runs `restarts` while clients order; the orders.
fn under_load(edge: &Edge, restarts: impl FnOnce(&dyn Fn())) -> BTreeSet<String> {
    let (stop, ordered) = (&AtomicBool::new(false), &AtomicUsize::new(0));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| scope.spawn(move || order_until(stop, ordered, edge, client)))
            .collect();
        let _stopped = SetOnDrop(stop);
        restarts(&|| {
            let goal = ordered.load(Ordering::Relaxed) + BETWEEN;
            eventually(READY, "more orders", || {
                let failed = clients.iter().any(|client| client.is_finished());
                (failed || ordered.load(Ordering::Relaxed) >= goal).then_some(())
            });
        });
        stop.store(true, Ordering::Relaxed);
        let ids = clients.into_iter().flat_map(|client| {
            let ids = client.join();
            ids.expect("a client was turned away")
        });
        ids.collect()
    })
}

/// Ends a program as a deployment does.
fn end(program: &mut Program) {
    program.terminate();
    assert_eq!(program.wait(ENDED).code(), Some(0));
}

/// Checks that every order is completed and announced, and that nothing else exists.
fn all_are_processed(stack: &Stack, ids: &BTreeSet<String>) {
    assert_eq!(stack.count("orders"), ids.len() as i64);
    stack.all_become("completed", ids.len() as i64, READY);
    eventually(READY, "an order.processed of every order", || {
        let records = wait_for_records(&stack.kafka, &stack.topics.processed, ids.len(), READY);
        let said: BTreeSet<String> = records
            .iter()
            .map(|record| record.key().to_owned())
            .collect();
        (said == *ids).then_some(())
    });
    eventually(READY, "an empty outbox", || {
        (stack.count("outbox") == 0).then_some(())
    });
}

#[test]
fn apis_are_restarted_one_after_another_and_nobody_is_turned_away() {
    let stack = Stack::new();
    let mut apis = [stack.start_api(), stack.start_api(), stack.start_api()].map(Program::ready);
    let _worker = stack.worker();
    let edge = Edge::in_front_of(&apis);
    let ids = under_load(&edge, |go_on| {
        for api in &mut apis {
            go_on();
            end(api);
            go_on();
            *api = stack.start_in_place_of(api).ready();
        }
        go_on();
    });
    all_are_processed(&stack, &ids);
}

#[test]
fn workers_are_restarted_one_after_another_and_no_order_is_left_behind() {
    let stack = Stack::new().set("WORKER_CONCURRENCY", "2");
    let apis = [stack.api()];
    let workers = [
        stack.start_worker(),
        stack.start_worker(),
        stack.start_worker(),
    ];
    let mut workers = workers.map(Program::ready);
    let edge = Edge::in_front_of(&apis);
    let ids = under_load(&edge, |go_on| {
        for worker in &mut workers {
            go_on();
            end(worker);
            go_on();
            *worker = stack.worker();
        }
        go_on();
    });
    all_are_processed(&stack, &ids);
}
