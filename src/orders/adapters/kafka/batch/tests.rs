use super::*;
use crate::metrics::Metrics;
use crate::orders::adapters::kafka::events::encode;
use crate::orders::domain::{AmountCents, CustomerEmail, Order};
use crate::orders::ports::PublishError;

const PROCESSED: &str = "order.processed";
const DLQ: &str = "order.dlq";

fn batch() -> Batch {
    let topics = Topics {
        created: "order.created".into(),
        processed: PROCESSED.into(),
        failed: "order.failed".into(),
        dlq: DLQ.into(),
    };
    let metrics = Metrics::new();
    Batch::new(topics, "group", metrics.worker)
}

fn order() -> Order {
    let email = CustomerEmail::new("a@b.co".into()).unwrap();
    Order::create(email, AmountCents::new(1).unwrap(), jiff::Timestamp::now())
}

fn record(partition: i32, offset: i64, value: Option<Vec<u8>>) -> ConsumerRecord {
    let mut record = ConsumerRecord::new("order.created", partition, offset);
    record.value = value.map(Into::into);
    record
}

fn created(partition: i32, offset: i64, order: &Order) -> ConsumerRecord {
    let event = OrderEvent::Created(order.clone());
    record(partition, offset, Some(encode(&event, "order.created")))
}

/// Records of partition 0 from offset 0, and their orders.
fn with_orders(count: usize) -> (Batch, Vec<Order>) {
    let mut batch = batch();
    let orders: Vec<Order> = (0..count).map(|_| order()).collect();
    let records = (0..).zip(&orders).map(|(at, order)| created(0, at, order));
    batch.add(records.collect());
    (batch, orders)
}

fn complete(batch: &mut Batch, orders: &[&Order]) {
    let completed = |order: &&Order| (order.id, Processed::Completed((*order).clone()));
    let results = orders.iter().map(completed).collect();
    batch.conclude(&results, Instant::now());
}

/// Publishes the announcements due at `now`, each with its outcome. Returns their topics.
fn publish(
    batch: &mut Batch,
    now: Instant,
    outcome: impl Fn(&Record) -> Result<(), PublishError>,
) -> Vec<String> {
    let wanted = batch.announcements(now);
    let topics = wanted.iter().map(|it| it.record.topic.to_string());
    let topics = topics.collect();
    let results = wanted.iter().map(|it| (it.place, outcome(&it.record)));
    let results = results.collect();
    batch.announced(results, now);
    topics
}

fn taken(_: &Record) -> Result<(), PublishError> {
    Ok(())
}

fn refused(_: &Record) -> Result<(), PublishError> {
    Err(PublishError::Refused("too large".into()))
}

fn offsets(batch: &mut Batch) -> Vec<(i32, i64)> {
    let finished = batch.take_finished().into_iter();
    finished.map(|(at, next)| (at.partition, next)).collect()
}

#[test]
fn offsets_move_only_up_to_the_first_record_that_is_not_done() {
    let mut batch = batch();
    let orders: Vec<Order> = (0..5).map(|_| order()).collect();
    let places = [(0, 7), (1, 3), (0, 8), (0, 9), (1, 4)];
    let records = places.iter().zip(&orders);
    batch.add(records.map(|(at, it)| created(at.0, at.1, it)).collect());
    complete(&mut batch, &[&orders[0], &orders[3], &orders[4]]);
    assert!(
        offsets(&mut batch).is_empty(),
        "nothing is acknowledged yet"
    );
    publish(&mut batch, Instant::now(), taken);
    assert_eq!(offsets(&mut batch), [(0, 8)]);
    complete(&mut batch, &[&orders[1], &orders[2]]);
    publish(&mut batch, Instant::now(), taken);
    assert_eq!(offsets(&mut batch), [(0, 10), (1, 5)]);
    assert!(batch.is_empty() && batch.next_due(Instant::now()).is_none());
}

#[test]
fn an_order_whose_attempt_failed_waits_for_the_next_one_and_holds_up_no_other() {
    let (mut batch, orders) = with_orders(2);
    let now = Instant::now();
    let retry = Processed::Retry { failed_attempts: 1 };
    let results = HashMap::from([
        (orders[0].id, retry),
        (orders[1].id, Processed::Completed(orders[1].clone())),
    ]);
    batch.conclude(&results, now);
    assert_eq!(publish(&mut batch, now, taken), [PROCESSED]);
    assert!(batch.due(now).tasks.is_empty() && batch.is_flowing());
    let due = batch.next_due(now).expect("a retry");
    assert!(batch.has_room(now) && !batch.has_room(due));
    assert_eq!(due, now + pause_after(1));
    let task = Task {
        id: orders[0].id,
        failed_attempts: 1,
    };
    assert_eq!(batch.due(due).tasks, [task]);

    // Another message about the order continues from there; one attempt serves both.
    batch.add(vec![created(0, 2, &orders[0])]);
    assert!(batch.due(now).tasks.is_empty());
    assert_eq!(batch.due(due).tasks, [task]);
}

#[test]
fn while_a_participant_is_away_its_orders_wait_and_no_more_records_are_taken() {
    let (mut batch, orders) = with_orders(2);
    let now = Instant::now();
    let reason = "payments unavailable".to_owned();
    let results = HashMap::from([
        (orders[0].id, Processed::Waiting { reason }),
        (orders[1].id, Processed::Completed(orders[1].clone())),
    ]);
    batch.conclude(&results, now);
    assert_eq!(publish(&mut batch, now, taken), [PROCESSED]);
    assert!(!batch.is_flowing() && batch.due(now).tasks.is_empty());
    let due = batch.next_due(now).expect("a retry");
    let task = Task {
        id: orders[0].id,
        failed_attempts: 0,
    };
    assert_eq!(batch.due(due).tasks, [task], "it is not an attempt");
    complete(&mut batch, &[&orders[0]]);
    assert!(batch.is_flowing());
}

#[test]
fn what_kafka_does_not_take_waits_and_is_probed_and_all_goes_once_it_is_taken() {
    let (mut batch, orders) = with_orders(3);
    let waiting = batch.worker.announcements_waiting.clone();
    let waiting = || waiting.with_label_values(&[PROCESSED]).get();
    let now = Instant::now();
    complete(&mut batch, &orders.iter().collect::<Vec<_>>());
    assert_eq!(publish(&mut batch, now, refused).len(), 3);
    assert_eq!(waiting(), 3);
    assert!(!batch.is_flowing(), "no more records are polled");
    let trouble = batch.trouble().expect("trouble");
    assert!(trouble.contains(PROCESSED) && trouble.contains("too large"));

    // One announcement at a time, a different one each time, with a pause between.
    assert!(batch.announcements(now).is_empty());
    let later = batch.next_due(now).expect("a probe");
    assert!(later > now);
    let mut probed = HashSet::new();
    for _ in 0..3 {
        let probe = batch.announcements(later);
        assert_eq!(probe.len(), 1);
        probed.insert(probe[0].place);
        // Looking between two probes passes over nobody.
        assert!(batch.announcements(now).is_empty());
        assert!(batch.announcements(now).is_empty());
    }
    assert_eq!(probed.len(), 3);
    assert_eq!(publish(&mut batch, later, taken).len(), 1);
    assert_eq!((batch.trouble(), waiting()), (None, 2));
    assert_eq!(publish(&mut batch, later, taken).len(), 2);
    assert_eq!((offsets(&mut batch), waiting()), (vec![(0, 3)], 0));
}

#[test]
fn trouble_ends_with_the_records_that_it_concerned() {
    let (mut batch, orders) = with_orders(1);
    complete(&mut batch, &[&orders[0]]);
    publish(&mut batch, Instant::now(), refused);
    let waiting = batch.worker.announcements_waiting.clone();
    batch.keep(&[TopicPartition::new("order.created", 1)]);
    assert!(batch.is_empty() && batch.is_flowing() && batch.trouble().is_none());
    assert_eq!(waiting.with_label_values(&[PROCESSED]).get(), 0);
}

#[test]
fn without_the_store_everything_waits_and_counts_as_no_attempt() {
    let (mut batch, orders) = with_orders(2);
    let now = Instant::now();
    batch.postpone(&StoreError::Unavailable("away".into()), now);
    assert!(!batch.is_flowing() && batch.due(now).tasks.is_empty());
    let later = batch.next_due(now).expect("another try");
    let due = batch.due(later).tasks;
    assert_eq!(due.len(), 2);
    assert!(due.iter().all(|task| task.failed_attempts == 0));
    complete(&mut batch, &[&orders[0]]);
    assert!(batch.is_flowing());
}

#[test]
fn a_dead_letter_is_counted_when_it_is_acknowledged() {
    let mut batch = batch();
    batch.add(vec![record(0, 0, None)]);
    let counter = batch.worker.dead_lettered.clone();
    let count = || counter.with_label_values(&[UNDECODABLE]).get();
    let now = Instant::now();
    assert_eq!(publish(&mut batch, now, refused), [DLQ]);
    assert_eq!(count(), 0);
    let later = batch.next_due(now).expect("another try");
    assert_eq!(publish(&mut batch, later, taken), [DLQ]);
    assert_eq!((count(), offsets(&mut batch)), (1, vec![(0, 1)]));
}

#[test]
fn a_dead_letter_that_is_too_large_goes_without_its_value() {
    let limit = |bytes: usize| {
        move |it: &Record| match it.value.as_ref().map_or(0, |value| value.len()) + 300 > bytes {
            true => Err(PublishError::TooLarge("too large".into())),
            false => Ok(()),
        }
    };
    let mut batch = batch();
    batch.add(vec![record(0, 0, Some(vec![b'x'; 100_000]))]);
    let now = Instant::now();
    publish(&mut batch, now, limit(50_000));
    assert!(batch.is_flowing() && batch.next_due(now) == Some(now));
    let letter = batch.announcements(now).remove(0).record;
    assert_eq!(letter.value, None);
    publish(&mut batch, now, limit(50_000));
    assert_eq!(offsets(&mut batch), [(0, 1)]);

    // A small letter waits unchanged.
    batch.add(vec![record(0, 1, Some(vec![b'x'; 1000]))]);
    publish(&mut batch, now, limit(1000));
    assert!(!batch.is_flowing());
    let later = batch.next_due(now).expect("a probe");
    let letter = batch.announcements(later).remove(0).record;
    assert_eq!(letter.value.map(|value| value.len()), Some(1000));
    publish(&mut batch, later, limit(50_000));
    assert_eq!(offsets(&mut batch), [(0, 2)]);

    // If not even the short letter fits, the whole letter waits for a higher limit.
    batch.add(vec![record(0, 2, Some(vec![b'x'; 100_000]))]);
    publish(&mut batch, now, limit(100));
    publish(&mut batch, now, limit(100));
    assert!(!batch.is_flowing());
    let later = batch.next_due(now).expect("a probe");
    let letter = batch.announcements(later).remove(0).record;
    assert_eq!(letter.value.map(|value| value.len()), Some(100_000));
    publish(&mut batch, later, limit(200_000));
    assert_eq!(offsets(&mut batch), [(0, 3)]);
}

#[test]
fn records_that_are_handed_out_again_replace_those_in_hand() {
    let (mut batch, orders) = with_orders(3);
    complete(&mut batch, &[&orders[2]]);
    publish(&mut batch, Instant::now(), taken);
    batch.add(vec![created(0, 1, &orders[1]), created(0, 2, &orders[2])]);
    assert_eq!(batch.entries.len(), 3);
    complete(&mut batch, &[&orders[0], &orders[1]]);
    publish(&mut batch, Instant::now(), taken);
    assert_eq!(
        offsets(&mut batch),
        [(0, 2)],
        "the new record 2 is not done"
    );
}
