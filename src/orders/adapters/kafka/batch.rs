//! The records that a consumer thread has in hand, and their states. No I/O: the async twin
//! (`loadtest/async-twin`) shares these rules.
//!
//! A record stays in hand until its order has a final status and all its announcements are
//! acknowledged. The offset moves past it only when the same holds for every earlier record of the
//! partition.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::metrics::WorkerMetrics;
use crate::orders::app::commands::process_orders::pause_after;
use crate::orders::app::commands::{Processed, Task};
use crate::orders::domain::{OrderEvent, OrderId};
use crate::orders::ports::{Replay, StoreError};
use tbd_kafka::TopicPartition;
use tbd_kafka::consumer::ConsumerRecord;
use tbd_kafka::producer::Record;
use tbd_telemetry::tracing::{self, DetachedSpan};

use super::dead_letter::{FAILED, UNDECODABLE, UNKNOWN_ORDER, dead_letter, replayed_at};
use super::events::{Topics, created_order};
use super::spans::process_span;

mod announcements;

pub use announcements::{Announcement, Place};

use announcements::Outgoing;

/// With this many records in hand, the thread polls no more.
const IN_HAND_MAX: usize = 500;
/// The pause after the store, Kafka or a participant was unavailable.
const PAUSE: Duration = Duration::from_secs(1);

/// The records in hand, in the order of their delivery.
pub struct Batch {
    topics: Topics,
    group: String,
    worker: WorkerMetrics,
    entries: Vec<Entry>,
    /// Whether the store or a participant was unavailable.
    is_held_up: bool,
    /// Topics that do not accept our announcements at present, and why.
    troubled: BTreeMap<Arc<str>, String>,
    /// When the next announcement probes these topics.
    probe_at: Instant,
    probes: usize,
}

struct Entry {
    record: ConsumerRecord,
    /// The id of the record's order, or why the record cannot be decoded.
    order: Result<OrderId, String>,
    span: DetachedSpan,
    state: State,
}

enum State {
    /// The order needs an attempt: those that have failed, and when the next one is due.
    ToProcess(u32, Instant),
    /// The order has a final status. These announcements are not acknowledged yet.
    ToAnnounce(Vec<Outgoing>),
    Done,
}

/// The attempts that are due now.
pub struct Due<'a> {
    /// Each order once, in the order of the records, so that a stop leaves only the last ones.
    pub tasks: Vec<Task>,
    /// The orders whose dead letter was replayed.
    pub replays: Vec<Replay>,
    /// The span in which the statements run.
    pub span: Option<&'a DetachedSpan>,
}

impl Batch {
    /// An empty batch, for a member of `group`.
    pub fn new(topics: Topics, group: &str, worker: WorkerMetrics) -> Self {
        Self {
            topics,
            group: group.to_owned(),
            worker,
            entries: Vec::new(),
            is_held_up: false,
            troubled: BTreeMap::new(),
            probe_at: Instant::now(),
            probes: 0,
        }
    }

    /// Whether no record is in hand.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the last calls to the store, the participants and Kafka succeeded. If not, the thread
    /// polls no more records.
    pub fn is_flowing(&self) -> bool {
        !self.is_held_up && self.troubled.is_empty()
    }

    /// Whether there is room for more records: those in hand only wait for their next attempt.
    pub fn has_room(&self, now: Instant) -> bool {
        let is_idle = self.next_due(now).is_none_or(|due| due > now);
        self.is_flowing() && is_idle && self.entries.len() < IN_HAND_MAX
    }

    /// Adds newly polled records, and begins their spans.
    pub fn add(&mut self, records: Vec<ConsumerRecord>) {
        let now = Instant::now();
        self.forget_replaced(&records);
        let attempted = self.attempted();
        let first = self.entries.len();
        for record in records {
            let order = created_order(record.value.as_deref(), &self.topics.created);
            let span = process_span(&record, order.as_ref().ok(), &self.group);
            let known = order.as_ref().ok().and_then(|id| attempted.get(id));
            let (failed_attempts, due) = known.copied().unwrap_or((0, now));
            let mut entry = Entry {
                record,
                order,
                span,
                state: State::ToProcess(failed_attempts, due),
            };
            if let Err(why) = entry.order.clone() {
                let letter = self.give_up(&entry, UNDECODABLE, &why, 0);
                entry.state = State::ToAnnounce(vec![letter]);
            }
            self.entries.push(entry);
        }
        // Statements for many records appear in the trace of the first; the others link to it.
        if let Some((first, rest)) = self.entries[first..].split_first() {
            let first = first.span.span_context();
            rest.iter().for_each(|entry| entry.span.link(first.clone()));
        }
    }

    /// Forgets records at or after the new offsets. If the log was truncated, or is read again from
    /// an earlier offset, the new records replace them.
    fn forget_replaced(&mut self, records: &[ConsumerRecord]) {
        let mut starts: HashMap<(&str, i32), i64> = HashMap::new();
        for record in records {
            let partition = (&*record.topic, record.partition);
            starts.entry(partition).or_insert(record.offset);
        }
        self.entries.retain(|Entry { record, .. }| {
            let start = starts.get(&(&*record.topic, record.partition));
            start.is_none_or(|start| record.offset < *start)
        });
    }

    /// The orders in hand, with their failed attempts: another message about one of them continues
    /// from there.
    fn attempted(&self) -> HashMap<OrderId, (u32, Instant)> {
        let attempted = |entry: &Entry| match (&entry.order, &entry.state) {
            (Ok(id), State::ToProcess(failed_attempts, due)) => {
                Some((*id, (*failed_attempts, *due)))
            }
            _ => None,
        };
        self.entries.iter().filter_map(attempted).collect()
    }

    /// Forgets the records of partitions that are not in `assigned`.
    pub fn keep(&mut self, assigned: &[TopicPartition]) {
        let is_ours = |record: &ConsumerRecord| {
            assigned.iter().any(|partition| {
                partition.partition == record.partition && partition.topic == record.topic
            })
        };
        self.entries.retain(|entry| is_ours(&entry.record));
        self.settle();
    }

    /// When the next attempt or announcement is due.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        let due = |entry: &Entry| match &entry.state {
            State::ToProcess(_, due) => Some(*due),
            State::ToAnnounce(outgoing) => {
                let waits = |it: &Outgoing| self.troubled.contains_key(&it.record.topic);
                Some(if outgoing.iter().all(waits) {
                    self.probe_at
                } else {
                    now
                })
            }
            State::Done => None,
        };
        self.entries.iter().filter_map(due).min()
    }

    /// The attempts that are due at `now`.
    pub fn due(&self, now: Instant) -> Due<'_> {
        let mut seen = HashSet::new();
        let mut due = Due {
            tasks: Vec::new(),
            replays: Vec::new(),
            span: None,
        };
        for entry in &self.entries {
            let (Ok(id), Some(failed_attempts)) = (&entry.order, entry.attempts_due(now)) else {
                continue;
            };
            due.span = due.span.or(Some(&entry.span));
            // Only before the first attempt: for later ones the order is `processing` already.
            let replayed_at = replayed_at(&entry.record).filter(|_| failed_attempts == 0);
            due.replays.extend(replayed_at.map(|replayed_at| Replay {
                id: *id,
                replayed_at,
            }));
            if seen.insert(*id) {
                due.tasks.push(Task {
                    id: *id,
                    failed_attempts,
                });
            }
        }
        due
    }

    /// After a store error: postpones everything that was due at `now`.
    pub fn postpone(&mut self, error: &StoreError, now: Instant) {
        self.is_held_up = true;
        let mut count = 0;
        for entry in &mut self.entries {
            if let Some(failed_attempts) = entry.attempts_due(now) {
                count += 1;
                entry.span.fail("store", &error.to_string());
                entry.state = State::ToProcess(failed_attempts, now + PAUSE);
            }
        }
        log::warn!("{count} orders not processed, trying again: {error}");
    }

    /// Applies the outcomes of attempts. An order without one stays due.
    pub fn conclude(&mut self, results: &HashMap<OrderId, Processed>, now: Instant) {
        let is_waiting = |it: &Processed| matches!(it, Processed::Waiting { .. });
        self.is_held_up = results.values().any(is_waiting);
        for index in 0..self.entries.len() {
            let entry = &self.entries[index];
            if let (Ok(id), State::ToProcess(..)) = (&entry.order, &entry.state)
                && let Some(processed) = results.get(id)
            {
                let state = {
                    let _entered = entry.span.enter();
                    self.follow_up(entry, *id, processed, now)
                };
                self.entries[index].enter(state);
            }
        }
    }

    /// The next state of a record whose order has this outcome.
    fn follow_up(&self, entry: &Entry, id: OrderId, processed: &Processed, now: Instant) -> State {
        let outgoing = match processed {
            Processed::Retry { failed_attempts } => {
                return State::ToProcess(*failed_attempts, now + pause_after(*failed_attempts));
            }
            Processed::Waiting { reason } => {
                entry.span.fail("participant", reason);
                return State::ToProcess(0, now + PAUSE);
            }
            Processed::Completed(order) => {
                log::info!(order_id:% = id; "order completed");
                vec![self.announce(entry, OrderEvent::Processed(order.clone()))]
            }
            Processed::Canceled => {
                log::info!(order_id:% = id; "order was canceled, skipped");
                return State::Done;
            }
            Processed::LeftToSaga => {
                log::warn!(order_id:% = id; "order is left to its saga, which workers with WORKER_WORKFLOW=saga end");
                return State::Done;
            }
            Processed::Unknown => {
                vec![self.give_up(entry, UNKNOWN_ORDER, "there is no such order", 0)]
            }
            Processed::Failed {
                order,
                reason,
                attempts,
            } => {
                log::warn!(order_id:% = id, attempts = attempts; "order failed: {reason}");
                let failed = OrderEvent::Failed {
                    order: order.clone(),
                    reason: reason.clone(),
                };
                vec![
                    self.announce(entry, failed),
                    self.give_up(entry, FAILED, reason, *attempts),
                ]
            }
        };
        State::ToAnnounce(outgoing)
    }

    fn announce(&self, entry: &Entry, event: OrderEvent) -> Outgoing {
        entry.outgoing(self.topics.record(&self.topics.message(&event)), None)
    }

    fn give_up(&self, entry: &Entry, kind: &'static str, why: &str, attempts: u32) -> Outgoing {
        let record = &entry.record;
        entry.span.fail(kind, why);
        log::warn!(
            topic = &*record.topic, partition = record.partition, offset = record.offset;
            "record goes to the dead-letter topic: {why}"
        );
        let letter = dead_letter(&self.topics.dlq, record, why, attempts);
        entry.outgoing(letter, Some(kind))
    }

    /// Removes the finished records at the front of each partition. Returns the offset to commit
    /// for each of these partitions: the first one that is not done.
    pub fn take_finished(&mut self) -> Vec<(TopicPartition, i64)> {
        let mut blocked: HashSet<(Arc<str>, i32)> = HashSet::new();
        let mut finished: BTreeMap<(Arc<str>, i32), i64> = BTreeMap::new();
        self.entries.retain(|entry| {
            let record = &entry.record;
            let partition = (record.topic.clone(), record.partition);
            if !matches!(entry.state, State::Done) {
                blocked.insert(partition);
                return true;
            }
            if blocked.contains(&partition) {
                return true;
            }
            finished.insert(partition, record.offset + 1);
            false
        });
        self.settle();
        finished
            .into_iter()
            .map(|((topic, partition), next)| (TopicPartition::new(topic, partition), next))
            .collect()
    }

    /// The first offset in hand of each partition.
    pub fn unfinished(&self) -> BTreeMap<(Arc<str>, i32), i64> {
        let mut first = BTreeMap::new();
        for Entry { record, .. } in &self.entries {
            let partition = (record.topic.clone(), record.partition);
            first.entry(partition).or_insert(record.offset);
        }
        first
    }
}

impl Entry {
    fn enter(&mut self, state: State) {
        if matches!(state, State::Done) {
            // A finished record may wait long for earlier ones. Its place is enough; free the rest.
            (self.record.key, self.record.value) = (None, None);
            self.record.headers = Vec::new();
        }
        self.state = state;
    }

    /// The number of failed attempts, if another attempt is due at `now`.
    fn attempts_due(&self, now: Instant) -> Option<u32> {
        match self.state {
            State::ToProcess(failed_attempts, due) if due <= now => Some(failed_attempts),
            _ => None,
        }
    }

    fn outgoing(&self, record: Record, dead: Option<&'static str>) -> Outgoing {
        Outgoing {
            record,
            cause: tracing::serialize(&self.span.context()),
            dead,
            is_short: false,
            waiting: None,
        }
    }
}

#[cfg(test)]
mod tests;
