//! The contract of the storage ports. Each test runs on PostgreSQL and on the in-memory store of the
//! unit tests, so that their results hold for both.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{bounded, unbounded};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tbd::orders::adapters::memory::Memory;
use tbd::orders::adapters::postgres::migrations::EMBEDDED;
use tbd::orders::adapters::postgres::{AfterCommit, PostgresStore};
use tbd::orders::domain::saga::{self, Answer, Input, SagaState};
use tbd::orders::domain::{AmountCents, CustomerEmail, EventKind, Order, OrderId, Saga, Status};
use tbd::orders::ports::{
    Begun, Claimed, Failure, IdempotencyKey, IdempotencyStore, Message, OrderReader,
    OrderRepository, Outbox, Relayed, Replay, SagaStore, StoreError, StoredAnswer, Submission,
    SubmitOutcome,
};
use tbd_deadline::Deadline;
use tbd_postgres::migrations::Migrator;
use tbd_postgres::{DatabaseConfig, Pool};

use crate::database::config;
use crate::support::{self, Database};

const DAY: Duration = Duration::from_secs(86_400);

/// Long enough for another thread to run on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// All storage ports.
trait Store: OrderRepository + IdempotencyStore + Outbox + SagaStore {}
impl<T: OrderRepository + IdempotencyStore + Outbox + SagaStore> Store for T {}

/// PostgreSQL, with submissions that share commits or not, and its database.
fn postgres(coalesce: bool) -> (PostgresStore, Database) {
    postgres_with(coalesce, None)
}

fn postgres_with(
    coalesce: bool,
    after_commit: Option<Box<AfterCommit>>,
) -> (PostgresStore, Database) {
    let database = support::postgres();
    let config = config(&database);
    Migrator::new(EMBEDDED)
        .expect("the embedded migrations")
        .run(&config, soon())
        .expect("migrate");
    let pool = Pool::new(config).expect("a pool");
    let store = PostgresStore::with_after_commit(pool, coalesce, after_commit);
    (store, database)
}

macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod on_postgres {
            $(#[test] fn $name() { let (store, _database) = super::postgres(false); super::$name(&store); })*
        }
        mod on_postgres_together {
            $(#[test] fn $name() { let (store, _database) = super::postgres(true); super::$name(&store); })*
        }
        mod in_memory {
            $(#[test] fn $name() { super::$name(&super::Memory::default()); })*
        }
    };
}

contract!(
    a_new_key_stores_order_and_event_together,
    a_known_key_gets_the_first_answer_and_the_event_while_it_is_unpublished,
    a_known_key_with_another_request_stores_nothing,
    an_expired_key_is_free_again_and_can_be_swept,
    of_many_with_one_key_one_is_first,
    of_many_at_once_each_gets_its_own_answer,
    an_order_is_replaced_only_as_it_was,
    claiming_returns_the_state_of_each_order,
    an_order_ends_once,
    a_failed_order_is_retried_once_for_each_replay,
    a_clock_that_is_behind_neither_turns_an_order_back_nor_repeats_a_replay,
    what_is_relayed_is_gone_and_the_rest_stays,
    a_relay_continues_behind_what_could_not_be_published,
    events_younger_than_the_minimum_age_are_left_alone,
    two_relays_at_once_never_hold_the_same_event,
    a_relay_that_breaks_off_leaves_every_event,
    removed_events_are_not_relayed,
    an_order_is_either_canceled_or_has_a_saga,
    a_single_step_does_not_end_the_order_of_an_unfinished_saga,
    a_transition_is_stored_on_top_of_its_predecessor_only,
    the_end_of_a_saga_is_the_end_of_its_order,
    a_saga_that_stands_still_is_leased_to_one_sweeper,
);

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

fn order() -> Order {
    let email = CustomerEmail::new("user@example.com".into()).expect("an address");
    Order::create(
        email,
        AmountCents::new(1299).expect("an amount"),
        Timestamp::now(),
    )
}

fn message(order: &Order) -> Message {
    Message {
        kind: EventKind::Created,
        order_id: order.id,
        payload: Bytes::from(order.id.to_string()),
        trace_context: Some(format!(
            "00-{}-00f067aa0ba902b7-01 a=1",
            order.id.0.simple()
        )),
    }
}

fn answer(order: &Order) -> StoredAnswer {
    StoredAnswer {
        body: order.id.to_string().into_bytes(),
        order_id: order.id,
    }
}

fn submit_for(
    store: &dyn Store,
    key: &str,
    request: u8,
    order: &Order,
    ttl: Duration,
) -> SubmitOutcome {
    let submission = Submission {
        key: IdempotencyKey::parse(key).expect("a key"),
        fingerprint: [request; 32],
        order: order.clone(),
        body: answer(order).body,
        message: message(order),
        ttl,
    };
    store.submit(&Arc::new(submission), soon()).expect("submit")
}

fn submit(store: &dyn Store, key: &str, request: u8, order: &Order) -> SubmitOutcome {
    submit_for(store, key, request, order, DAY)
}

/// A stored order.
fn stored(store: &dyn Store) -> Order {
    let order = order();
    assert!(matches!(
        submit(store, &order.id.to_string(), 1, &order),
        SubmitOutcome::First
    ));
    order
}

fn get(store: &dyn Store, id: OrderId) -> Option<Order> {
    store.get(id, soon()).expect("get")
}

/// The events that a relay would publish now; they stay in the outbox.
fn waiting(store: &dyn Store) -> Vec<Message> {
    let mut seen = Vec::new();
    relay(store, |messages| {
        seen.extend_from_slice(messages);
        vec![false; messages.len()]
    });
    seen
}

fn relay(store: &dyn Store, mut publish: impl FnMut(&[Message]) -> Vec<bool>) -> (usize, usize) {
    let relayed = store.relay(None, 100, Duration::ZERO, soon(), &mut publish);
    counts(relayed)
}

fn counts(relayed: Result<Relayed, StoreError>) -> (usize, usize) {
    let relayed = relayed.expect("relay");
    (relayed.taken, relayed.removed)
}

fn a_new_key_stores_order_and_event_together(store: &dyn Store) {
    let order = stored(store);
    assert_eq!(get(store, order.id), Some(order.clone()));
    assert_eq!(waiting(store), [message(&order)]);
    assert_eq!(store.backlog(soon()).expect("backlog").rows, 1);
}

fn a_known_key_gets_the_first_answer_and_the_event_while_it_is_unpublished(store: &dyn Store) {
    let (first, second) = (order(), order());
    submit(store, "key", 1, &first);
    let again = |expected: Option<Message>| match submit(store, "key", 1, &second) {
        SubmitOutcome::Replay {
            answer: stored,
            unpublished,
        } => {
            assert_eq!((stored, unpublished), (answer(&first), expected));
        }
        other => panic!("{other:?}"),
    };
    again(Some(message(&first)));
    relay(store, |messages| vec![true; messages.len()]);
    again(None);
    assert_eq!(get(store, second.id), None);
}

fn a_known_key_with_another_request_stores_nothing(store: &dyn Store) {
    let (first, second) = (order(), order());
    submit(store, "key", 1, &first);
    assert!(matches!(
        submit(store, "key", 2, &second),
        SubmitOutcome::OtherRequest
    ));
    assert_eq!(get(store, second.id), None);
    assert_eq!(waiting(store), [message(&first)]);
}

fn an_expired_key_is_free_again_and_can_be_swept(store: &dyn Store) {
    let (first, second) = (order(), order());
    submit_for(store, "key", 1, &first, Duration::ZERO);
    let later = submit_for(store, "key", 2, &second, Duration::ZERO);
    assert!(matches!(later, SubmitOutcome::First));
    assert!(get(store, first.id).is_some() && get(store, second.id).is_some());
    let others: Vec<Order> = (0..4).map(|_| stored(store)).collect();
    assert_eq!(others.len(), 4);
    submit_for(store, "another", 1, &order(), Duration::ZERO);
    assert_eq!(store.sweep(1, soon()).expect("sweep"), 1);
    assert_eq!(store.sweep(10, soon()).expect("sweep"), 1);
    assert_eq!(store.sweep(10, soon()).expect("sweep"), 0);
    for kept in others {
        let again = submit(store, &kept.id.to_string(), 1, &order());
        assert!(matches!(again, SubmitOutcome::Replay { .. }), "{again:?}");
    }
}

fn of_many_with_one_key_one_is_first(store: &(impl Store + Sync)) {
    let outcomes: Vec<SubmitOutcome> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| submit(store, "key", 1, &order())))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|outcome| outcome.expect("no panic")).collect()
    });
    let firsts = outcomes
        .iter()
        .filter(|once| matches!(once, SubmitOutcome::First));
    assert_eq!(firsts.count(), 1, "{outcomes:?}");
    let [only] = &waiting(store)[..] else {
        panic!("one event");
    };
    for once in &outcomes {
        if let SubmitOutcome::Replay { answer, .. } = once {
            assert_eq!(answer.order_id, only.order_id);
        }
    }
}

/// New keys, known keys and keys of other requests, all at once and repeatedly.
fn of_many_at_once_each_gets_its_own_answer(store: &(impl Store + Sync)) {
    let known = order();
    assert!(matches!(
        submit(store, "known", 1, &known),
        SubmitOutcome::First
    ));
    thread::scope(|scope| {
        for thread in 0..12 {
            let known = &known;
            scope.spawn(move || {
                for round in 0..20 {
                    let fresh = order();
                    match thread % 3 {
                        0 => {
                            let once = submit(store, &fresh.id.to_string(), 1, &fresh);
                            assert!(matches!(once, SubmitOutcome::First), "{once:?}");
                            assert_eq!(get(store, fresh.id), Some(fresh), "round {round}");
                        }
                        1 => match submit(store, "known", 1, &fresh) {
                            SubmitOutcome::Replay { answer, .. } => {
                                assert_eq!(answer.order_id, known.id);
                                assert_eq!(get(store, known.id).as_ref(), Some(known));
                            }
                            other => panic!("{other:?}"),
                        },
                        _ => {
                            let once = submit(store, "known", 2, &fresh);
                            assert!(matches!(once, SubmitOutcome::OtherRequest), "{once:?}");
                            assert_eq!(get(store, fresh.id), None);
                        }
                    }
                }
            });
        }
    });
}

#[test]
fn the_event_of_a_stored_order_is_handed_over_once_and_before_the_submitter_returns() {
    let (hear, heard) = unbounded();
    let after_commit = Box::new(move |messages: &[&Message]| {
        for message in messages {
            hear.send((*message).clone()).expect("the test listens");
        }
    });
    let (store, _database) = postgres_with(true, Some(after_commit));
    let known = Mutex::new(HashMap::new());
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let fresh = order();
                    let key = fresh.id.to_string();
                    let outcome = submit(&store, &key, 1, &fresh);
                    assert!(matches!(outcome, SubmitOutcome::First), "{outcome:?}");
                    let mut known = known.lock().expect("no panic");
                    known.extend(heard.try_iter().map(|message| (message.order_id, message)));
                    assert_eq!(known.remove(&fresh.id), Some(message(&fresh)));
                }
            });
        }
    });
    let again = submit(&store, "key", 1, &order());
    assert!(matches!(again, SubmitOutcome::First));
    assert_eq!(heard.try_iter().count(), 1);
    let replay = submit(&store, "key", 1, &order());
    assert!(matches!(replay, SubmitOutcome::Replay { .. }));
    assert_eq!(heard.try_iter().count(), 0);
}

#[test]
fn a_look_up_does_not_fail_for_the_short_deadline_of_another_one() {
    let (store, database) = postgres(true);
    let order = stored(&store);
    let config = DatabaseConfig {
        max_conns: 1,
        ..config(&database)
    };
    let pool = Pool::new(config).expect("a pool");
    let store = PostgresStore::new(pool.clone(), true);
    let only = pool.get(soon()).expect("the only connection");
    let get = |time: u64| store.get(order.id, Deadline::after(Duration::from_millis(time)));
    thread::scope(|scope| {
        // As many as may run statements at the same time: they wait for the connection in vain.
        for number in 1..=16 {
            scope.spawn(move || get(2000 + 100 * number).expect_err("no connection"));
            support::eventually(PATIENCE, "its place", || {
                (u64::from(pool.status().waiting) == number).then_some(())
            });
        }
        // The first of these two runs the next statement for both.
        let hasty = scope.spawn(|| get(5000));
        thread::sleep(Duration::from_millis(200));
        let patient = scope.spawn(|| get(60_000));
        assert!(hasty.join().expect("no panic").is_err());
        drop(only);
        let found = patient.join().expect("no panic");
        assert_eq!(found.expect("it has time"), Some(order.clone()));
    });
}

fn an_order_is_replaced_only_as_it_was(store: &dyn Store) {
    let old = stored(store);
    let canceled = old.cancel(Timestamp::now()).expect("pending");
    let replace = |new: &Order| store.replace(&old, new, soon()).expect("replace");
    assert!(replace(&canceled));
    assert_eq!(get(store, old.id), Some(canceled.clone()));
    let later = old
        .cancel(Timestamp::now() + SignedDuration::from_secs(5))
        .expect("pending");
    assert!(!replace(&later), "it has changed since");
    assert_eq!(get(store, old.id), Some(canceled));
    assert!(!store.replace(&order(), &order(), soon()).expect("replace"));
}

fn claim(store: &dyn Store, ids: &[OrderId]) -> Vec<Claimed> {
    let mut claimed = store.claim(ids, Timestamp::now(), soon()).expect("claim");
    claimed.sort_by_key(|claimed| claimed.order.id);
    claimed
}

fn complete(store: &dyn Store, ids: &[OrderId]) -> Vec<Order> {
    store
        .complete(ids, Timestamp::now(), soon())
        .expect("complete")
}

fn fail(store: &dyn Store, id: OrderId) -> Option<Order> {
    let failed = store.fail(&[failure(id, "because")], Timestamp::now(), soon());
    failed.expect("fail").pop()
}

fn failure(id: OrderId, reason: &str) -> Failure {
    let reason = reason.to_owned();
    Failure { id, reason }
}

fn claiming_returns_the_state_of_each_order(store: &dyn Store) {
    let orders: Vec<Order> = (0..5).map(|_| stored(store)).collect();
    let id = |index: usize| orders[index].id;
    let canceled = orders[1].cancel(Timestamp::now()).expect("pending");
    assert!(
        store
            .replace(&orders[1], &canceled, soon())
            .expect("replace")
    );
    claim(store, &[id(2), id(3), id(4)]);
    complete(store, &[id(2)]);
    fail(store, id(3));
    let unknown = order().id;
    let mut ids: Vec<OrderId> = orders.iter().map(|order| order.id).collect();
    ids.push(unknown);
    let claimed = claim(store, &ids);
    let mut expected: Vec<(OrderId, Status, Option<&str>)> = vec![
        (id(0), Status::Processing, None),
        (id(1), Status::Canceled, None),
        (id(2), Status::Completed, None),
        (id(3), Status::Failed, Some("because")),
        (id(4), Status::Processing, None),
    ];
    expected.sort_by_key(|(id, ..)| *id);
    let found: Vec<(OrderId, Status, Option<&str>)> = claimed
        .iter()
        .map(|s| (s.order.id, s.order.status, s.failure_reason.as_deref()))
        .collect();
    assert_eq!(found, expected);
    for claimed in claimed {
        assert_eq!(get(store, claimed.order.id), Some(claimed.order));
    }
}

fn an_order_ends_once(store: &dyn Store) {
    let (one, other) = (stored(store).id, stored(store).id);
    assert!(complete(store, &[one]).is_empty(), "nobody has claimed it");
    assert_eq!(fail(store, other), None);
    claim(store, &[one, other]);
    let completed = complete(store, &[one]);
    assert_eq!(completed.len(), 1);
    assert_eq!(get(store, one), Some(completed[0].clone()));
    assert!(complete(store, &[one]).is_empty());
    assert_eq!(fail(store, one), None);
    let failed = fail(store, other).expect("it was processing");
    assert_eq!(failed.status, Status::Failed);
    assert!(complete(store, &[other]).is_empty());
    assert_eq!(fail(store, other), None);
    assert_eq!(get(store, other), Some(failed));
}

fn a_failed_order_is_retried_once_for_each_replay(store: &dyn Store) {
    let (failed, completed) = (stored(store).id, stored(store).id);
    claim(store, &[failed, completed]);
    complete(store, &[completed]);
    let before = Timestamp::now();
    fail(store, failed);
    let hour = SignedDuration::from_hours(1);
    let retry = |replayed_at: Timestamp| {
        let replays = [failed, completed, failed, order().id].map(|id| Replay { id, replayed_at });
        let now = Timestamp::now() + hour;
        store.retry_failed(&replays, now, soon()).expect("retry");
        let status = |id| get(store, id).expect("stored").status;
        assert_eq!(status(completed), Status::Completed);
        status(failed)
    };
    assert_eq!(retry(before), Status::Failed, "replayed before it failed");
    let replayed_at = Timestamp::now() + SignedDuration::from_secs(1);
    assert_eq!(retry(replayed_at), Status::Processing);
    let [claimed] = &claim(store, &[failed])[..] else {
        panic!("one order");
    };
    assert_eq!(claimed.failure_reason, None);
    store
        .fail(&[failure(failed, "again")], Timestamp::now() + hour, soon())
        .expect("fail");
    assert_eq!(retry(replayed_at), Status::Failed, "its replay is spent");
    assert_eq!(retry(replayed_at + 2 * hour), Status::Processing);
}

fn a_clock_that_is_behind_neither_turns_an_order_back_nor_repeats_a_replay(store: &dyn Store) {
    let (behind, ahead) = (
        Timestamp::now(),
        Timestamp::now() + SignedDuration::from_hours(1),
    );
    let [completed, failed, ended] = [(); 3].map(|()| stored(store).id);
    let updated_at = |id| get(store, id).expect("stored").updated_at;
    store
        .claim(&[completed, failed], ahead, soon())
        .expect("claim");
    let claimed_at = updated_at(completed);
    store
        .complete(&[completed], behind, soon())
        .expect("complete");
    store
        .fail(&[failure(failed, "because")], behind, soon())
        .expect("fail");
    assert!(
        [completed, failed]
            .into_iter()
            .all(|id| updated_at(id) > claimed_at)
    );

    let begun = store
        .begin(&[ended], ahead, soon())
        .expect("begin")
        .remove(0);
    let saga = begun.saga.expect("a saga");
    let saga = saga
        .next(
            Input::Answered(saga::Command::ReserveStock, refused()),
            behind,
        )
        .expect("its end");
    store.save(&[saga], soon()).expect("save");
    assert!(updated_at(ended) > claimed_at);

    // The clock of whoever replays is ahead of the workers' clocks.
    let replayed_at = ahead + SignedDuration::from_hours(1);
    for status in [Status::Processing, Status::Failed] {
        let replay = Replay {
            id: failed,
            replayed_at,
        };
        store
            .retry_failed(&[replay], behind, soon())
            .expect("retry");
        assert_eq!(get(store, failed).expect("stored").status, status);
        store
            .fail(&[failure(failed, "again")], behind, soon())
            .expect("fail");
    }
}

fn what_is_relayed_is_gone_and_the_rest_stays(store: &dyn Store) {
    let orders: Vec<Order> = (0..5).map(|_| stored(store)).collect();
    let relayed = relay(store, |messages| {
        messages
            .iter()
            .map(|message| message.order_id != orders[2].id)
            .collect()
    });
    assert_eq!(relayed, (5, 4));
    assert_eq!(waiting(store), [message(&orders[2])]);
    let nothing = store.relay(None, 0, Duration::ZERO, soon(), &mut |_| {
        panic!("nothing to publish")
    });
    assert_eq!(counts(nothing), (0, 0));
}

fn a_relay_continues_behind_what_could_not_be_published(store: &dyn Store) {
    let mut ids: Vec<OrderId> = (0..5).map(|_| stored(store).id).collect();
    ids.sort();
    let (mut after, mut seen) = (None, Vec::new());
    for taken in [2, 2, 1, 0] {
        let relayed = store.relay(after, 2, Duration::ZERO, soon(), &mut |messages| {
            seen.extend(messages.iter().map(|message| message.order_id));
            vec![false; messages.len()]
        });
        let relayed = relayed.expect("relay");
        assert_eq!((relayed.taken, relayed.removed), (taken, 0));
        assert_eq!(relayed.last, seen.last().copied().filter(|_| taken > 0));
        after = relayed.last;
    }
    assert_eq!(seen, ids);
    assert_eq!(waiting(store).len(), 5);
}

fn events_younger_than_the_minimum_age_are_left_alone(store: &dyn Store) {
    stored(store);
    let relayed = store.relay(None, 10, DAY, soon(), &mut |_| panic!("nothing to publish"));
    assert_eq!(counts(relayed), (0, 0));
    assert_eq!(waiting(store).len(), 1);
}

fn two_relays_at_once_never_hold_the_same_event(store: &(impl Store + Sync)) {
    let orders: HashSet<OrderId> = (0..6).map(|_| stored(store).id).collect();
    let (holds, held) = bounded(0);
    let (let_go, may_go) = bounded::<()>(0);
    thread::scope(|scope| {
        let first = scope.spawn(move || {
            let mut mine = Vec::new();
            let relayed = store.relay(None, 3, Duration::ZERO, soon(), &mut |messages| {
                mine = messages.iter().map(|message| message.order_id).collect();
                holds.send(()).expect("the other waits");
                may_go.recv().expect("the other lets go");
                vec![true; messages.len()]
            });
            assert_eq!(counts(relayed), (3, 3));
            mine
        });
        held.recv().expect("the first holds three");
        let rest: HashSet<OrderId> = waiting(store)
            .iter()
            .map(|message| message.order_id)
            .collect();
        assert_eq!(rest.len(), 3);
        let_go.send(()).expect("the first waits");
        let mine: HashSet<OrderId> = first.join().expect("no panic").into_iter().collect();
        assert!(mine.is_disjoint(&rest));
        assert_eq!(&mine | &rest, orders);
        let left: HashSet<OrderId> = waiting(store)
            .iter()
            .map(|message| message.order_id)
            .collect();
        assert_eq!(left, rest);
    });
}

fn a_relay_that_breaks_off_leaves_every_event(store: &dyn Store) {
    let order = stored(store);
    let broken = catch_unwind(AssertUnwindSafe(|| {
        relay(store, |_| panic!("a test's panic"))
    }));
    assert!(broken.is_err());
    assert_eq!(waiting(store), [message(&order)]);
}

fn removed_events_are_not_relayed(store: &dyn Store) {
    let (one, other) = (stored(store), stored(store));
    store.remove(&[one.id, order().id], soon()).expect("remove");
    assert_eq!(waiting(store), [message(&other)]);
    assert_eq!(store.backlog(soon()).expect("backlog").rows, 1);
}

/// An operation on one of a few orders; the number selects the order.
#[derive(Clone, Debug)]
enum Command {
    Create,
    Cancel(usize),
    Claim(Vec<usize>),
    Complete(Vec<usize>),
    Fail(usize),
    /// Replayed this many microseconds after the last event, or before it if negative.
    Retry(usize, i64),
}

fn commands() -> impl Strategy<Value = Vec<Command>> {
    let some = || proptest::collection::vec(0..4_usize, 1..4);
    let command = prop_oneof![
        2 => Just(Command::Create),
        1 => (0..4_usize).prop_map(Command::Cancel),
        4 => some().prop_map(Command::Claim),
        2 => some().prop_map(Command::Complete),
        3 => (0..4_usize).prop_map(Command::Fail),
        3 => (0..4_usize, -2..3_i64).prop_map(|(order, micros)| Command::Retry(order, micros)),
    ];
    proptest::collection::vec(command, 1..30)
}

/// Runs `commands` on every store. All answers are the same, and every status change follows the
/// domain's rules.
fn obey(stores: &[&dyn Store], commands: &[Command]) {
    let mut orders: Vec<Order> = Vec::new();
    let mut now = Timestamp::from_microsecond(1_760_000_000_000_000).expect("in range");
    for command in commands {
        now += SignedDuration::from_micros(1);
        let id = |number: usize| {
            orders
                .get(number)
                .map_or(OrderId(uuid::Uuid::nil()), |order| order.id)
        };
        let ids = |numbers: &[usize]| {
            let distinct: HashSet<OrderId> = numbers.iter().map(|number| id(*number)).collect();
            distinct.into_iter().collect::<Vec<_>>()
        };
        let answers: Vec<String> = match command {
            Command::Create if orders.len() >= 4 => continue,
            Command::Create => {
                let email = CustomerEmail::new("user@example.com".into()).expect("an address");
                let new = Order::create(email, AmountCents::new(1).expect("an amount"), now);
                for store in stores {
                    assert!(matches!(
                        submit(*store, &new.id.to_string(), 1, &new),
                        SubmitOutcome::First
                    ));
                }
                orders.push(new);
                continue;
            }
            Command::Cancel(number) => {
                let Some(old) = orders.get(*number) else {
                    continue;
                };
                let Ok(new) = old.cancel(now) else { continue };
                let replaced = stores
                    .iter()
                    .map(|s| s.replace(old, &new, soon()).expect("replace"));
                replaced.map(|replaced| replaced.to_string()).collect()
            }
            Command::Claim(numbers) => {
                let ids = ids(numbers);
                let claimed = stores.iter().map(|s| {
                    let mut claimed = s.claim(&ids, now, soon()).expect("claim");
                    claimed.sort_by_key(|claimed| claimed.order.id);
                    format!("{claimed:?}")
                });
                claimed.collect()
            }
            Command::Complete(numbers) => {
                let ids = ids(numbers);
                let completed = stores.iter().map(|s| {
                    let mut completed = s.complete(&ids, now, soon()).expect("complete");
                    completed.sort_by_key(|order| order.id);
                    format!("{completed:?}")
                });
                completed.collect()
            }
            Command::Fail(number) => {
                let failures = [failure(id(*number), "why")];
                let failed = stores
                    .iter()
                    .map(|s| s.fail(&failures, now, soon()).expect("fail"));
                failed.map(|failed| format!("{failed:?}")).collect()
            }
            Command::Retry(number, micros) => {
                let replayed_at = now + SignedDuration::from_micros(*micros);
                let replay = [Replay {
                    id: id(*number),
                    replayed_at,
                }];
                for store in stores {
                    store.retry_failed(&replay, now, soon()).expect("retry");
                }
                Vec::new()
            }
        };
        assert!(
            answers.iter().all(|answer| *answer == answers[0]),
            "{command:?}: {answers:?}"
        );
        for known in &mut orders {
            let found: Vec<Option<Order>> = stores.iter().map(|s| get(*s, known.id)).collect();
            let order = found[0].clone().expect("an order is never lost");
            assert!(
                found.iter().all(|other| *other == found[0]),
                "{command:?}: {found:?}"
            );
            assert!(
                order.status == known.status || known.status.may_become(order.status),
                "{command:?} made a {} order {}",
                known.status,
                order.status
            );
            assert_eq!(
                order.status == known.status,
                order.updated_at == known.updated_at
            );
            assert!(order.updated_at >= known.updated_at);
            *known = order;
        }
    }
}

#[test]
fn no_sequence_of_commands_and_replays_leads_an_order_astray() {
    let mut runner = TestRunner::new(Config {
        cases: 500,
        ..Config::default()
    });
    let outcome = runner.run(&commands(), |commands| {
        obey(&[&Memory::default()], &commands);
        Ok(())
    });
    outcome.expect("obeyed");
}

#[test]
fn postgres_and_the_model_answer_every_sequence_of_commands_alike() {
    let (store, database) = postgres(true);
    let mut client = database.connect();
    let mut runner = TestRunner::new(Config {
        cases: 40,
        max_shrink_iters: 200,
        ..Config::default()
    });
    let client = std::cell::RefCell::new(&mut client);
    let outcome = runner.run(&commands(), |commands| {
        client
            .borrow_mut()
            .batch_execute("TRUNCATE orders, outbox, idempotency_keys")
            .expect("empty the tables");
        obey(&[&store, &Memory::default()], &commands);
        Ok(())
    });
    outcome.expect("obeyed");
}

fn begin(store: &dyn Store, ids: &[OrderId]) -> Vec<Begun> {
    let now = Timestamp::from_microsecond(Timestamp::now().as_microsecond()).expect("now");
    store.begin(ids, now, soon()).expect("begin")
}

/// The saga of a new order.
fn begun(store: &dyn Store) -> Saga {
    let id = stored(store).id;
    begin(store, &[id]).remove(0).saga.expect("a saga")
}

/// What follows an answer to the announced command.
fn answered(saga: &Saga, answer: Answer) -> Saga {
    let command = saga.announced().expect("it runs");
    let at = saga.updated_at + SignedDuration::from_millis(1);
    saga.next(Input::Answered(command, answer), at)
        .expect("it moves")
}

fn refused() -> Answer {
    Answer::Refused("out_of_stock".into())
}

fn an_order_is_either_canceled_or_has_a_saga(store: &dyn Store) {
    let [new, canceled, completed] = [(); 3].map(|()| stored(store));
    let cancel = canceled.cancel(Timestamp::now()).expect("pending");
    assert!(store.replace(&canceled, &cancel, soon()).expect("replace"));
    claim(store, &[completed.id]);
    complete(store, &[completed.id]);
    let ids = [new.id, canceled.id, completed.id, order().id];
    let mut all = begin(store, &ids);
    all.sort_by_key(|it| it.claimed.order.id);
    let found: Vec<(Status, bool)> = all
        .iter()
        .map(|it| (it.claimed.order.status, it.saga.is_some()))
        .collect();
    let expected = [
        (Status::Processing, true),
        (Status::Canceled, false),
        (Status::Completed, false),
    ];
    assert_eq!(found, expected);

    let saga = all[0].saga.clone().expect("a saga");
    assert!(all[0].is_new);
    assert_eq!(saga.announced(), Some(saga::Command::ReserveStock));
    assert_eq!(
        store.find(new.id, soon()).expect("find"),
        Some(saga.clone())
    );
    assert_eq!(store.find(canceled.id, soon()).expect("find"), None);
    let again = begin(store, &[new.id]).remove(0);
    assert_eq!((again.saga, again.is_new), (Some(saga), false));
    assert!(
        !store.replace(&new, &cancel, soon()).expect("replace"),
        "too late to cancel"
    );
}

fn a_single_step_does_not_end_the_order_of_an_unfinished_saga(store: &dyn Store) {
    // A worker of single steps has claimed it, and another worker has begun a saga meanwhile.
    let id = stored(store).id;
    claim(store, &[id]);
    let saga = begin(store, &[id]).remove(0).saga.expect("a saga");
    assert_eq!((complete(store, &[id]), fail(store, id)), (vec![], None));
    store
        .save(&[answered(&saga, refused())], soon())
        .expect("save");

    let replayed_at = Timestamp::now() + SignedDuration::from_hours(1);
    store
        .retry_failed(&[Replay { id, replayed_at }], replayed_at, soon())
        .expect("retry");
    assert_eq!(complete(store, &[id]).len(), 1, "its saga has ended");
}

fn a_transition_is_stored_on_top_of_its_predecessor_only(store: &dyn Store) {
    let (one, other) = (begun(store), begun(store));
    let next = [answered(&one, Answer::Done), answered(&other, Answer::Done)];
    let saved = store.save(&next, soon()).expect("save");
    assert_eq!(saved.len(), 2);
    assert!(saved.iter().all(|it| it.ended.is_none()));
    for saga in &next {
        assert_eq!(
            store.find(saga.order_id, soon()).expect("find").as_ref(),
            Some(saga)
        );
    }
    // A second worker with the old version comes too late, its other saga does not.
    let late = [answered(&one, refused()), answered(&next[1], Answer::Done)];
    let saved = store.save(&late, soon()).expect("save");
    assert_eq!(
        saved.iter().map(|it| it.order_id).collect::<Vec<_>>(),
        [other.order_id]
    );
    let stored = store.find(one.order_id, soon()).expect("find");
    assert_eq!(stored.as_ref(), Some(&next[0]));
    assert_eq!(
        store.unfinished(soon()).expect("count"),
        [(SagaState::Running, 2)]
    );
}

fn the_end_of_a_saga_is_the_end_of_its_order(store: &dyn Store) {
    let failed = answered(&begun(store), refused());
    let mut completed = begun(store);
    while completed.announced().is_some() {
        completed = answered(&completed, Answer::Done);
        assert_eq!(
            store
                .save(std::slice::from_ref(&completed), soon())
                .expect("save")
                .len(),
            1
        );
    }
    let saved = store
        .save(std::slice::from_ref(&failed), soon())
        .expect("save");
    let ended = saved[0].ended.clone().expect("its end");
    assert_eq!((ended.id, ended.status), (failed.order_id, Status::Failed));
    assert_eq!(get(store, failed.order_id), Some(ended));
    let order = get(store, completed.order_id).expect("an order");
    assert_eq!(order.status, Status::Completed);
    let all = begin(store, &[failed.order_id]);
    assert_eq!(
        all[0].claimed.failure_reason.as_deref(),
        Some("out_of_stock")
    );
    assert_eq!(all[0].saga.as_ref(), Some(&failed));
    assert_eq!(store.unfinished(soon()).expect("count"), []);
}

fn a_saga_that_stands_still_is_leased_to_one_sweeper(store: &dyn Store) {
    let (saga, ended) = (begun(store), answered(&begun(store), refused()));
    store.save(&[ended], soon()).expect("save");
    let lease = |seconds: i64, since: i64| {
        let at = |seconds| saga.updated_at + SignedDuration::from_secs(seconds);
        let orders = store
            .lease_stalled(at(seconds), at(since), 10, soon())
            .expect("lease");
        orders.into_iter().map(|order| order.id).collect::<Vec<_>>()
    };
    assert_eq!(lease(1, -1), [], "it has just changed");
    assert_eq!(lease(20, 10), [saga.order_id]);
    assert_eq!(lease(21, 11), [], "it is leased");
    assert_eq!(lease(40, 30), [saga.order_id]);
}
