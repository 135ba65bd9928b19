use std::sync::atomic::Ordering;

use super::*;
use crate::orders::adapters::memory::{Fault, Memory};
use crate::orders::app::delivery::DeliveryInbox;
use crate::orders::app::fakes::{Bus, RecordingMeter, lock, soon};
use crate::orders::app::{DeliveryMode, PUBLISH_BUDGET};
use crate::orders::domain::{AmountCents, CustomerEmail};
use crate::orders::ports::Outbox;
use jiff::Timestamp;

fn request(email: &str, cents: i64) -> NewOrder {
    let email = CustomerEmail::new(email.into()).unwrap();
    let order = Order::create(email, AmountCents::new(cents).unwrap(), Timestamp::now());
    NewOrder {
        caller: Caller::ANONYMOUS,
        key: IdempotencyKey::parse("key").unwrap(),
        body: order.id.to_string().into_bytes(),
        order,
    }
}

struct Bench {
    memory: Arc<Memory>,
    bus: Arc<Bus>,
    meter: Arc<RecordingMeter>,
    inbox: DeliveryInbox,
    create: CreateOrder,
}

fn bench(mode: DeliveryMode) -> Bench {
    let (memory, bus) = (Arc::new(Memory::default()), Arc::new(Bus::default()));
    let meter = Arc::new(RecordingMeter::default());
    let (delivery, inbox) = Delivery::new(mode);
    let create = CreateOrder {
        store: memory.clone(),
        bus: bus.clone(),
        delivery,
        meter: meter.clone(),
        ttl: Duration::from_secs(86_400),
    };
    Bench {
        memory,
        bus,
        meter,
        inbox,
        create,
    }
}

impl Bench {
    fn order(&self, cents: i64) -> Result<Accepted, CreateError> {
        self.create.handle(request("a@b.co", cents), soon())
    }
}

#[test]
fn requests_that_differ_in_any_field_have_different_hashes() {
    let hash = request_fingerprint(&request("a@b.co", 1).order);
    assert_eq!(hash, request_fingerprint(&request("a@b.co", 1).order));
    assert_ne!(hash, request_fingerprint(&request("a@b.com", 1).order));
    assert_ne!(hash, request_fingerprint(&request("a@b.co", 2).order));
}

#[test]
fn in_direct_mode_a_new_order_is_accepted_once_its_event_is_acknowledged() {
    let bench = bench(DeliveryMode::Direct);
    let accepted = bench.order(1).unwrap();
    let id = accepted.answer.order_id;
    assert!(!accepted.replayed);
    let published = bench.bus.take();
    assert_eq!(published.len(), 1);
    assert_eq!(published[0].order_id, id);
    assert_eq!(bench.inbox.acknowledged.try_recv(), Ok(id));
    assert_eq!(*lock(&bench.meter.created), 1);
    assert_eq!(bench.memory.look(id).0.status.as_str(), "pending");
    let time = lock(&bench.bus.time_left)[0];
    assert!(time <= PUBLISH_BUDGET, "{time:?}");
}

#[test]
fn a_repetition_gets_the_first_answer_and_publishes_nothing_that_was_published() {
    let bench = bench(DeliveryMode::Direct);
    let first = bench.order(1).unwrap();
    bench
        .memory
        .remove(&[first.answer.order_id], soon())
        .unwrap();
    bench.bus.take();
    let again = bench.order(1).unwrap();
    assert!(again.replayed);
    assert_eq!(again.answer, first.answer);
    assert!(bench.bus.take().is_empty());
    assert_eq!(
        (*lock(&bench.meter.created), *lock(&bench.meter.hits)),
        (1, 1)
    );
    assert_eq!(bench.memory.orders().len(), 1);
}

#[test]
fn the_same_key_of_another_caller_is_another_request() {
    let bench = bench(DeliveryMode::Direct);
    let alice = bench.order(1).unwrap();
    let request = NewOrder {
        caller: Caller::new(Some("issuer"), Some("bob")),
        ..request("a@b.co", 1)
    };
    let bob = bench.create.handle(request, soon()).unwrap();
    assert!(!bob.replayed);
    assert_ne!(bob.answer, alice.answer);
    assert_eq!(bench.memory.orders().len(), 2);
}

#[test]
fn a_twin_publishes_the_firsts_event_itself_while_it_is_not_known_to_have_arrived() {
    let bench = bench(DeliveryMode::Direct);
    let first = bench.order(1).unwrap();
    // The row is still in the outbox: the first request may have died before its publish.
    let twin = bench.order(1).unwrap();
    assert_eq!(twin.answer, first.answer);
    let published = bench.bus.take();
    assert_eq!(published.len(), 2);
    assert_eq!(published[0], published[1]);
}

#[test]
fn without_the_bus_an_order_is_safe_and_its_key_resumes_it() {
    let bench = bench(DeliveryMode::Direct);
    bench.bus.away.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        let refused = bench.order(1);
        assert!(
            matches!(refused, Err(CreateError::NotPublished(_))),
            "{refused:?}"
        );
    }
    let ids = bench.memory.outbox();
    assert_eq!(ids.len(), 1);
    assert!(bench.inbox.acknowledged.is_empty());
    bench.bus.away.store(false, Ordering::SeqCst);
    let resumed = bench.order(1).unwrap();
    assert_eq!(resumed.answer.order_id, ids[0]);
    assert_eq!(bench.bus.take().len(), 1);
    assert_eq!(bench.memory.orders().len(), 1);
}

#[test]
fn another_request_under_the_same_key_is_refused_and_publishes_nothing() {
    let bench = bench(DeliveryMode::Direct);
    bench.order(1).unwrap();
    bench.bus.take();
    assert!(matches!(bench.order(2), Err(CreateError::OtherRequest)));
    assert!(bench.bus.take().is_empty());
    assert_eq!(bench.memory.orders().len(), 1);
}

#[test]
fn in_outbox_mode_the_relay_is_woken_and_nobody_waits_for_the_bus() {
    let bench = bench(DeliveryMode::Outbox);
    bench.bus.away.store(true, Ordering::SeqCst);
    let first = bench.order(1).unwrap();
    // A second token would mean the same, so the sender does not wait for room.
    assert_eq!(bench.order(1).unwrap().answer, first.answer);
    assert_eq!(bench.inbox.relay.try_iter().count(), 1);
    assert_eq!(bench.memory.outbox(), [first.answer.order_id]);
    assert!(lock(&bench.bus.time_left).is_empty());
}

#[test]
fn wherever_the_store_fails_the_same_key_makes_one_order_with_one_event() {
    for fault in [Fault::Before, Fault::After, Fault::Twice] {
        let bench = bench(DeliveryMode::Direct);
        bench.memory.fail_at(0, fault);
        let first = bench.order(1);
        match fault {
            Fault::Twice => assert!(!first.unwrap().replayed),
            _ => assert!(matches!(first, Err(CreateError::Store(_)))),
        }
        assert!(!bench.memory.mend());
        let accepted = bench.order(1).unwrap();
        assert_eq!(accepted.replayed, fault != Fault::Before);
        assert_eq!(bench.memory.orders().len(), 1);
        let published = bench.bus.take();
        assert!(!published.is_empty());
        let id = accepted.answer.order_id;
        assert!(published.iter().all(|message| message.order_id == id));
    }
}
