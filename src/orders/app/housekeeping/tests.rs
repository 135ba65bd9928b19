use std::sync::atomic::Ordering;

use super::*;
use crate::orders::adapters::memory::{Fault, Memory};
use crate::orders::app::fakes::{Bus, RecordingMeter, lock, order, soon};
use crate::orders::domain::{Order, OrderEvent};
use crate::orders::ports::{IdempotencyKey, OrderReader, Submission, SubmitOutcome};

/// Long enough for another thread to run on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Bench {
    memory: Arc<Memory>,
    bus: Arc<Bus>,
    meter: Arc<RecordingMeter>,
    stop: StopSignal,
}

impl Bench {
    fn new() -> Self {
        Self {
            memory: Arc::default(),
            bus: Arc::default(),
            meter: Arc::default(),
            stop: StopSignal::new(),
        }
    }

    fn housekeeping(&self) -> Housekeeping {
        Housekeeping {
            outbox: self.memory.clone(),
            keys: self.memory.clone(),
            bus: self.bus.clone(),
            meter: self.meter.clone(),
            stop: self.stop.clone(),
        }
    }

    /// Stops the threads and waits for them.
    fn end(&self, threads: Vec<JoinHandle<()>>) {
        self.stop.stop();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    }

    /// Relays the oldest events. Returns the numbers taken and removed.
    fn relay(&self, min_age: Duration) -> (usize, usize) {
        let relayed = self.housekeeping().relay_once(None, min_age).unwrap();
        (relayed.taken, relayed.removed)
    }

    /// Stored orders whose events are pending.
    fn stored(&self, count: usize, ttl: Duration) -> Vec<OrderId> {
        (0..count).map(|_| self.submit(order(), ttl)).collect()
    }

    fn submit(&self, order: Order, ttl: Duration) -> OrderId {
        let id = order.id;
        let submission = Submission {
            key: IdempotencyKey::parse(&id.to_string()).unwrap(),
            fingerprint: [0; 32],
            message: self.bus.encode(&OrderEvent::Created(order.clone())),
            order,
            body: Vec::new(),
            ttl,
        };
        let outcome = self.memory.submit(&Arc::new(submission), soon());
        assert!(matches!(outcome, Ok(SubmitOutcome::First)));
        id
    }
}

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn a_relay_publishes_the_oldest_first_and_removes_only_what_was_acknowledged() {
    let bench = Bench::new();
    let ids = bench.stored(5, DAY);
    lock(&bench.bus.refused).push(ids[3]);
    assert_eq!(bench.relay(Duration::ZERO), (5, 4));
    let mut expected = ids.clone();
    expected.sort();
    expected.retain(|id| *id != ids[3]);
    let published: Vec<OrderId> = bench.bus.take().iter().map(|m| m.order_id).collect();
    assert_eq!(published, expected);
    assert_eq!(bench.memory.outbox(), [ids[3]]);
    assert_eq!(*lock(&bench.meter.relayed), 4);
}

#[test]
fn in_direct_mode_a_young_event_belongs_to_its_request() {
    let bench = Bench::new();
    bench.stored(1, DAY);
    assert_eq!(bench.relay(DIRECT_MIN_AGE), (0, 0));
    assert!(bench.bus.take().is_empty());
}

#[test]
fn wherever_the_store_fails_no_event_is_lost() {
    for fault in [Fault::Before, Fault::After] {
        for call in 0.. {
            let bench = Bench::new();
            let mut ids = bench.stored(3, DAY);
            ids.sort();
            bench.memory.fail_at(call, fault);
            let outcome = bench.housekeeping().relay_once(None, Duration::ZERO);
            if bench.memory.mend() {
                break;
            }
            assert!(outcome.is_err());
            bench.relay(Duration::ZERO);
            let mut published: Vec<OrderId> = bench.bus.take().iter().map(|m| m.order_id).collect();
            published.sort();
            published.dedup();
            assert_eq!(published, ids, "{fault:?} {call}");
            assert!(bench.memory.outbox().is_empty());
        }
    }
}

#[test]
fn acknowledged_events_are_removed_together() {
    let bench = Bench::new();
    let ids = bench.stored(20, DAY);
    let (delivery, inbox) = Delivery::new(DeliveryMode::Direct);
    for &id in &ids[..19] {
        let message = bench
            .bus
            .encode(&OrderEvent::Created(bench.memory.look(id).0));
        delivery.deliver(&*bench.bus, &message, soon()).unwrap();
    }
    let calls = bench.memory.calls();
    let first = inbox.acknowledged.recv().unwrap();
    bench.housekeeping().clean_once(first, &inbox);
    assert_eq!(bench.memory.calls() - calls, 1);
    assert_eq!(bench.memory.outbox(), ids[19..]);
}

#[test]
fn expired_keys_are_swept_in_batches_and_their_orders_stay() {
    let bench = Bench::new();
    let batch = SWEEP_BATCH as usize;
    bench.stored(2 * batch + 1, Duration::ZERO);
    let kept = bench.stored(1, DAY);
    let calls = bench.memory.calls();
    let swept = bench.housekeeping().sweep_once().unwrap();
    assert_eq!(swept, 2 * batch as u64 + 1);
    assert_eq!(*lock(&bench.meter.swept), swept);
    assert_eq!(bench.memory.calls() - calls, 3);
    assert_eq!(bench.memory.keys(), 1);
    assert_eq!(bench.memory.orders().len(), 2 * batch + 2);
    assert!(bench.memory.get(kept[0], soon()).unwrap().is_some());
    bench.stop.stop();
    bench.stored(1, Duration::ZERO);
    assert_eq!(bench.housekeeping().sweep_once().unwrap(), 0);
}

#[test]
fn in_outbox_mode_a_new_order_wakes_the_relay() {
    let bench = Bench::new();
    let (delivery, threads) = bench.housekeeping().start(DeliveryMode::Outbox).unwrap();
    for _ in 0..20 {
        let id = bench.stored(1, DAY)[0];
        let message = bench
            .bus
            .encode(&OrderEvent::Created(bench.memory.look(id).0));
        delivery.deliver(&*bench.bus, &message, soon()).unwrap();
        let published = bench.bus.acknowledged.recv_timeout(PATIENCE).unwrap();
        assert_eq!(published.order_id, id);
    }
    bench.end(threads);
    assert!(bench.memory.outbox().is_empty());
}

#[test]
fn what_was_acknowledged_before_a_stop_is_removed() {
    let bench = Bench::new();
    let (delivery, threads) = bench.housekeeping().start(DeliveryMode::Direct).unwrap();
    for id in bench.stored(50, DAY) {
        let message = bench
            .bus
            .encode(&OrderEvent::Created(bench.memory.look(id).0));
        delivery.deliver(&*bench.bus, &message, soon()).unwrap();
    }
    bench.end(threads);
    assert!(bench.memory.outbox().is_empty());
    assert_eq!(bench.bus.take().len(), 50);
}

#[test]
fn the_backlog_is_measured_while_the_relay_catches_up_and_nothing_is_left_behind() {
    let bench = Bench::new();
    let batch = RELAY_BATCH as usize;
    bench.stored(3 * batch, DAY);
    let (_delivery, threads) = bench.housekeeping().start(DeliveryMode::Outbox).unwrap();
    for _ in 0..3 * batch {
        bench.bus.acknowledged.recv_timeout(PATIENCE).unwrap();
    }
    bench.end(threads);
    let backlog = lock(&bench.meter.backlogs)[0];
    assert_eq!(backlog.rows, 2 * batch as i64);
    assert!(backlog.oldest_seconds >= 0.0);
    assert!(bench.memory.outbox().is_empty());
}

#[test]
fn events_that_cannot_be_published_hold_up_none_behind_them() {
    let bench = Bench::new();
    let stuck = 3 * RELAY_BATCH as usize + 1;
    let mut ids = bench.stored(stuck, DAY);
    ids.sort();
    *lock(&bench.bus.refused) = ids.clone();
    let last = bench.stored(1, DAY)[0];
    let (_delivery, threads) = bench.housekeeping().start(DeliveryMode::Outbox).unwrap();
    let published = bench.bus.acknowledged.recv_timeout(PATIENCE).unwrap();
    assert_eq!(published.order_id, last);
    // And they are not forgotten.
    lock(&bench.bus.refused).clear();
    for _ in 0..stuck {
        bench.bus.acknowledged.recv_timeout(PATIENCE).unwrap();
    }
    bench.end(threads);
    assert!(bench.memory.outbox().is_empty());
}

#[test]
fn while_the_bus_is_away_new_events_do_not_drive_the_relay() {
    let bench = Bench::new();
    bench.bus.away.store(true, Ordering::SeqCst);
    let id = bench.stored(1, DAY)[0];
    let event = OrderEvent::Created(bench.memory.look(id).0);
    let message = bench.bus.encode(&event);
    let (delivery, threads) = bench.housekeeping().start(DeliveryMode::Outbox).unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        delivery.deliver(&*bench.bus, &message, soon()).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    bench.end(threads);
    let tries = lock(&bench.bus.time_left).len() as u64;
    assert!(
        (1..=2 + start.elapsed().as_secs()).contains(&tries),
        "{tries}"
    );
}

#[test]
fn a_bus_that_comes_back_gets_what_waited() {
    let bench = Bench::new();
    bench.bus.away.store(true, Ordering::SeqCst);
    let ids = bench.stored(2, DAY);
    let relay = || bench.relay(Duration::ZERO);
    assert_eq!(relay(), (2, 0));
    assert_eq!(bench.memory.outbox().len(), 2);
    bench.bus.away.store(false, Ordering::SeqCst);
    assert_eq!(relay(), (2, 2));
    assert_eq!(bench.bus.take().len(), ids.len());
}
