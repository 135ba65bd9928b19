//! Invariants of the chaos test: during the faults, and after everything has settled.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use crate::clients::{Cancellation, Customer, Ordered, email};
use crate::journal::Journal;
use crate::site::Site;
use crate::support::program::Stack;
use crate::support::topic::{Record, records, records_after, try_committed};

/// The auditor's polling interval.
const LOOK: Duration = Duration::from_millis(300);

/// Follows the offsets that the workers' group commits. An offset passes an order only after the
/// order's final status is announced, and it never moves back.
pub struct Audit<'a> {
    stack: &'a Stack,
    /// By partition: the last committed offset.
    committed: BTreeMap<i32, i64>,
    /// Records of order.created not yet known to be finished: (partition, offset) and the order.
    open: BTreeMap<(i32, i64), String>,
    created: Tail,
    processed: Tail,
    failed: Tail,
    announced: BTreeSet<String>,
}

/// Reads a topic incrementally.
struct Tail {
    topic: String,
    next: Vec<i64>,
}

impl Tail {
    fn of(topic: &str) -> Tail {
        Tail {
            topic: topic.to_owned(),
            next: Vec::new(),
        }
    }

    fn read(&mut self, broker: &str) -> std::io::Result<Vec<Record>> {
        let records = records_after(broker, &self.topic, &self.next)?;
        for record in &records {
            let partition = usize::try_from(record.partition).expect("a partition's number");
            if self.next.len() <= partition {
                self.next.resize(partition + 1, 0);
            }
            self.next[partition] = record.offset + 1;
        }
        Ok(records)
    }
}

impl<'a> Audit<'a> {
    pub fn new(site: &'a Site) -> Audit<'a> {
        let stack = &site.stack;
        Audit {
            stack,
            committed: BTreeMap::new(),
            open: BTreeMap::new(),
            created: Tail::of(&stack.topics.created),
            processed: Tail::of(&stack.topics.processed),
            failed: Tail::of(&stack.topics.failed),
            announced: BTreeSet::new(),
        }
    }

    /// Polls until `over`, and once more. Skips a poll while a server is down.
    pub fn follow(&mut self, journal: &Journal, over: &AtomicBool) {
        loop {
            let last = over.load(Ordering::SeqCst);
            let looked = self.look(journal);
            if last {
                if let Err(error) = looked {
                    journal.violation(&format!("the auditor cannot see: {error}"));
                }
                return;
            }
            thread::sleep(LOOK);
        }
    }

    fn look(&mut self, journal: &Journal) -> Result<(), Box<dyn std::error::Error>> {
        let Stack {
            kafka,
            topics,
            group,
            ..
        } = self.stack;
        // Committed offsets first: anything read afterwards can only be further ahead.
        for (partition, next) in try_committed(kafka, group, &topics.created)? {
            let before = self.committed.entry(partition).or_insert(-1);
            if next < *before {
                journal.violation(&format!(
                    "offsets go back: partition {partition} from {before} to {next}"
                ));
            }
            *before = next;
        }
        for record in self.created.read(kafka)? {
            let place = (record.partition, record.offset);
            self.open.insert(place, record.key().to_owned());
        }
        for tail in [&mut self.processed, &mut self.failed] {
            let records = tail.read(kafka)?;
            self.announced
                .extend(records.iter().map(|record| record.key().to_owned()));
        }
        let is_done = |(partition, offset): (i32, i64)| {
            self.committed
                .get(&partition)
                .is_some_and(|next| offset < *next)
        };
        let done: Vec<((i32, i64), String)> = self
            .open
            .iter()
            .filter(|(place, _)| is_done(**place))
            .map(|(place, id)| (*place, id.clone()))
            .collect();
        let ids: Vec<&str> = done.iter().map(|(_, id)| id.as_str()).collect();
        let rows = self.stack.database.try_connect()?.query(
            "SELECT id::text, status FROM orders WHERE id = ANY($1::text[]::uuid[])",
            &[&ids],
        )?;
        let status: HashMap<String, String> =
            rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        for ((partition, offset), id) in done {
            self.open.remove(&(partition, offset));
            let status = status.get(&id).map_or("not there", String::as_str);
            let is_right = match status {
                "canceled" => true,
                "completed" | "failed" => self.announced.contains(&id),
                _ => false,
            };
            if !is_right {
                journal.violation(&format!(
                    "offset {offset} of partition {partition} is committed, but order {id} is {status} and {}",
                    if self.announced.contains(&id) { "announced" } else { "not announced" },
                ));
            }
        }
        Ok(())
    }
}

/// An order in the database.
struct Row {
    id: String,
    amount_cents: i64,
    status: String,
}

/// The events of a topic by order: how many, all identical.
type Events = HashMap<String, usize>;

/// Compares the customers' answers with the database and the topics.
pub fn conclude(site: &Site, customers: &[Customer], journal: &Journal) {
    let Stack { kafka, topics, .. } = &site.stack;
    let mut client = site.stack.database.connect();
    let found = client.query(
        "SELECT customer_email, id::text, amount_cents, status FROM orders",
        &[],
    );
    let mut rows: HashMap<String, Vec<Row>> = HashMap::new();
    for row in found.expect("the orders") {
        let order = Row {
            id: row.get(1),
            amount_cents: row.get(2),
            status: row.get(3),
        };
        rows.entry(row.get(0)).or_default().push(order);
    }
    let found = client.query("SELECT key, order_id::text FROM idempotency_keys", &[]);
    let keys: HashMap<String, String> = found
        .expect("the keys")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let events = |topic: &str| events(kafka, topic, journal);
    let (created, processed, failed) = (
        events(&topics.created),
        events(&topics.processed),
        events(&topics.failed),
    );
    let letters = letters(kafka, &topics.dlq, journal);
    if let Some(books) = site.books() {
        judge_sagas(&site.stack, books, journal);
    }

    let ordered: Vec<&Ordered> = customers
        .iter()
        .flat_map(|customer| &customer.orders)
        .collect();
    let mut unasked: BTreeSet<&String> = rows.keys().collect();
    for order in &ordered {
        let email = email(&order.key);
        unasked.remove(&email);
        let rows = rows.get(&email).map_or(&[][..], Vec::as_slice);
        match_order(order, rows, keys.get(&order.key), journal);
    }
    for email in unasked {
        journal.violation(&format!("an order that nobody asked for, of {email}"));
    }
    for row in rows.values().flatten() {
        let says = |events: &Events| events.contains_key(&row.id);
        let found = (
            says(&created),
            says(&processed),
            says(&failed),
            letters.contains(&row.id),
        );
        let expected = match row.status.as_str() {
            "completed" => (true, true, false, false),
            "failed" => (true, false, true, true),
            "canceled" => (true, false, false, false),
            status => {
                journal.violation(&format!("order {} is {status} for ever", row.id));
                continue;
            }
        };
        if found != expected {
            journal.violation(&format!(
                "order {} is {}, but of created, processed, failed and dead letter there are {found:?}",
                row.id, row.status,
            ));
        }
    }
    let ids: BTreeSet<&String> = rows.values().flatten().map(|row| &row.id).collect();
    for (name, events) in [
        ("created", &created),
        ("processed", &processed),
        ("failed", &failed),
    ] {
        for id in events.keys().filter(|id| !ids.contains(id)) {
            journal.violation(&format!(
                "an order.{name} of order {id}, which is not there"
            ));
        }
        let again: usize = events.values().map(|count| count - 1).sum();
        journal.say(&format!(
            "order.{name}: {} orders, {again} repetitions",
            events.len()
        ));
    }
}

fn match_order(order: &Ordered, rows: &[Row], key: Option<&String>, journal: &Journal) {
    let Ordered { key: name, id, .. } = order;
    let row = match (&order.answer, rows) {
        (_, [_, _, ..]) => {
            return journal.violation(&format!("key {name} has {} orders", rows.len()));
        }
        (Some(_), []) => {
            return journal.violation(&format!("key {name}: order {id} was accepted and is lost"));
        }
        (None, []) => return,
        (_, [row]) => row,
    };
    if key != Some(&row.id) {
        journal.violation(&format!(
            "key {name} leads to {key:?}, its order is {}",
            row.id
        ));
    }
    if order.answer.is_some() && row.id != *id {
        journal.violation(&format!(
            "key {name}: accepted was order {id}, there is {}",
            row.id
        ));
    }
    if row.amount_cents.unsigned_abs() != order.amount_cents {
        journal.violation(&format!("order {}: another amount", row.id));
    }
    let is_canceled = row.status == "canceled";
    let is_right = match order.cancellation {
        Cancellation::Done => is_canceled,
        Cancellation::TooLate | Cancellation::NotAsked => !is_canceled,
        Cancellation::Unknown => true,
    };
    if !is_right {
        let asked = order.cancellation;
        journal.violation(&format!(
            "order {}: cancellation {asked:?}, yet it is {}",
            row.id, row.status
        ));
    }
}

/// A topic's events. Repetitions of an event must be identical, byte for byte.
fn events(kafka: &str, topic: &str, journal: &Journal) -> Events {
    let mut first: HashMap<String, Option<Bytes>> = HashMap::new();
    let mut counts = Events::new();
    for record in records(kafka, topic) {
        let id = record.key().to_owned();
        *counts.entry(id.clone()).or_default() += 1;
        let value = first
            .entry(id.clone())
            .or_insert_with(|| record.value.clone());
        if *value != record.value {
            journal.violation(&format!("two different events of order {id} in {topic}"));
        }
    }
    counts
}

/// Every saga ended as its order did; what is completed is sold and captured once, and nothing is held.
fn judge_sagas(stack: &Stack, books: [i64; 5], journal: &Journal) {
    let otherwise = stack.number(
        "SELECT count(*) FROM orders LEFT JOIN sagas ON order_id = orders.id
          WHERE (status = 'canceled') <> (state IS NULL) OR state <> status",
    );
    if otherwise > 0 {
        journal.violation(&format!(
            "{otherwise} orders ended otherwise than their sagas"
        ));
    }
    let completed = stack.number("SELECT count(*) FROM orders WHERE status = 'completed'");
    if books != [0, 0, completed, 0, completed] {
        let [lost, held, sold, authorized, captured] = books;
        journal.violation(&format!(
            "{completed} orders are completed, but {sold} units sold, {held} held, {lost} lost, {captured} payments captured, {authorized} open"
        ));
    }
    journal.say(&format!("sagas: {completed} orders sold and captured"));
}

/// The orders whose messages are dead letters; the failures on purpose are the only allowed reasons.
fn letters(kafka: &str, topic: &str, journal: &Journal) -> BTreeSet<String> {
    let letters = records(kafka, topic);
    for letter in &letters {
        let expected = ["simulated failure", "out_of_stock", "insufficient_funds"];
        if !expected.contains(&letter.header("dlq-reason")) {
            let (id, reason) = (letter.key(), letter.header("dlq-reason"));
            journal.violation(&format!("a dead letter of order {id}: {reason}"));
        }
    }
    letters
        .iter()
        .map(|letter| letter.key().to_owned())
        .collect()
}

/// Whether each of these orders has one event for its creation and one for its final status.
pub fn each_event_once(site: &Site, ids: &[String]) -> Result<(), String> {
    let Stack { kafka, topics, .. } = &site.stack;
    let count = |topic: &str| {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for record in records(kafka, topic) {
            *counts.entry(record.key().to_owned()).or_default() += 1;
        }
        counts
    };
    let (created, processed, failed) = (
        count(&topics.created),
        count(&topics.processed),
        count(&topics.failed),
    );
    let of = |counts: &HashMap<String, usize>, id: &String| counts.get(id).copied().unwrap_or(0);
    for id in ids {
        let created = of(&created, id);
        let ended = of(&processed, id) + of(&failed, id);
        if (created, ended) != (1, 1) {
            return Err(format!(
                "order {id} is announced {created} times as created, {ended} times as ended"
            ));
        }
    }
    Ok(())
}
