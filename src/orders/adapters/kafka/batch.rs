//! What a batch of records asks for, and what follows from how its orders stand afterwards. No I/O here: the async twin
//! (`loadtest/async-twin`) works by the same rules.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::kafka::consumer::ConsumerRecord;
use crate::kafka::group::TopicPartition;
use crate::kafka::producer::Record;
use crate::orders::app::commands::Processed;
use crate::orders::domain::{OrderEvent, OrderId};
use crate::orders::ports::{PublishError, SecondChance, StoreError};
use crate::telemetry::metrics::OrdersMetrics;
use crate::telemetry::semconv;
use crate::telemetry::tracing::{self, DetachedSpan, KeyValue, SpanKind, TraceContextExt};

use super::bus::{key_attribute, trace_context};
use super::dead_letter::{FAILED, Reason, UNDECODABLE, UNKNOWN_ORDER, dead_letter, replayed_at};
use super::events::{Topics, created_order};

/// Records that are worked on together.
pub struct Batch<'a> {
    records: &'a [ConsumerRecord],
    /// Of each record the order, or why none can be read from it.
    orders: Vec<Result<OrderId, String>>,
    spans: Vec<DetachedSpan>,
}

/// A record to publish on behalf of one that was consumed.
pub struct Announcement {
    /// Which record of the batch it is for.
    pub index: usize,
    /// What to publish.
    pub record: Record,
    /// The trace that it belongs to, as [`tracing::serialize`] writes it.
    pub cause: Option<String>,
}

impl<'a> Batch<'a> {
    /// Reads the records that a member of `group` was given, and begins their spans.
    pub fn read(records: &'a [ConsumerRecord], topics: &Topics, group: &str) -> Self {
        let orders: Vec<Result<OrderId, String>> = records
            .iter()
            .map(|record| created_order(record.value.as_deref(), &topics.created))
            .collect();
        let spans: Vec<DetachedSpan> = records
            .iter()
            .zip(&orders)
            .map(|(record, order)| process_span(record, order.as_ref().ok(), group))
            .collect();
        // Statements that serve the whole batch appear in the trace of its first order; the
        // others point there.
        if let Some((first, rest)) = spans.split_first() {
            rest.iter().for_each(|span| span.link(first.span_context()));
        }
        Self {
            records,
            orders,
            spans,
        }
    }

    /// The span in which the batch's statements run.
    pub fn span(&self) -> Option<&DetachedSpan> {
        self.spans.first()
    }

    /// Each order once, in the order of the records: on a stop those that are done come first.
    pub fn ids(&self) -> Vec<OrderId> {
        let mut seen = HashSet::new();
        self.orders
            .iter()
            .filter_map(|order| order.as_ref().ok().copied())
            .filter(|id| seen.insert(*id))
            .collect()
    }

    /// The orders whose message was replayed from the dead letters.
    pub fn chances(&self) -> Vec<SecondChance> {
        self.records
            .iter()
            .zip(&self.orders)
            .filter_map(|(record, order)| {
                Some(SecondChance {
                    id: *order.as_ref().ok()?,
                    replayed_at: replayed_at(record)?,
                })
            })
            .collect()
    }

    /// For each record that it is not done with: the store was not there.
    pub fn not_processed(&self, error: &StoreError) -> Vec<bool> {
        let count = self.ids().len();
        log::warn!("{count} orders not processed, trying again: {error}");
        self.spans
            .iter()
            .for_each(|span| span.fail("store", &error.to_string()));
        vec![false; self.records.len()]
    }

    /// For each record whether it is done with as soon as what is to be announced about it is.
    pub fn conclude(
        &self,
        results: &HashMap<OrderId, Processed>,
        topics: &Topics,
        metrics: &OrdersMetrics,
    ) -> (Vec<bool>, Vec<Announcement>) {
        let mut announcements = Vec::new();
        let mut done = Vec::with_capacity(self.records.len());
        for (index, span) in self.spans.iter().enumerate() {
            let _entered = span.enter();
            let conclusion = self.conclude_one(index, results, topics, metrics);
            done.push(conclusion.is_some());
            for record in conclusion.into_iter().flatten() {
                announcements.push(Announcement {
                    index,
                    record,
                    cause: tracing::serialize(&span.context()),
                });
            }
        }
        (done, announcements)
    }

    /// What is to be announced about a record that is done with; `None` if it is not.
    fn conclude_one(
        &self,
        index: usize,
        results: &HashMap<OrderId, Processed>,
        topics: &Topics,
        metrics: &OrdersMetrics,
    ) -> Option<Vec<Record>> {
        let announcement = |event: OrderEvent| topics.record(&topics.message(&event));
        let give_up = |kind: &'static str, why: &str, attempts| {
            metrics.dead_lettered.with_label_values(&[kind]).inc();
            self.give_up(index, kind, why, attempts, topics)
        };
        let id = match &self.orders[index] {
            Ok(id) => id,
            Err(why) => return Some(vec![give_up(UNDECODABLE, why, 0)]),
        };
        match results.get(id)? {
            Processed::Interrupted => None,
            Processed::Completed(order) => {
                log::info!(order_id:% = id; "order completed");
                Some(vec![announcement(OrderEvent::Processed(order.clone()))])
            }
            Processed::Canceled => {
                log::info!(order_id:% = id; "order was canceled, skipped");
                Some(Vec::new())
            }
            Processed::Unknown => Some(vec![give_up(UNKNOWN_ORDER, "there is no such order", 0)]),
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
                let letter = give_up(FAILED, reason, *attempts);
                Some(vec![announcement(failed), letter])
            }
        }
    }

    fn give_up(
        &self,
        index: usize,
        kind: &str,
        why: &str,
        attempts: u32,
        topics: &Topics,
    ) -> Record {
        let record = &self.records[index];
        self.spans[index].fail(kind, why);
        log::warn!(
            topic = &*record.topic, partition = record.partition, offset = record.offset;
            "record goes to the dead-letter topic: {why}"
        );
        let reason = Reason {
            text: why.to_owned(),
            attempts,
        };
        dead_letter(&topics.dlq, record, &reason)
    }

    /// Whether the record is done with as far as this announcement of it goes.
    pub fn is_announced(&self, index: usize, published: Result<(), PublishError>) -> bool {
        let (record, span) = (&self.records[index], &self.spans[index]);
        match published {
            Ok(()) => true,
            Err(PublishError::Unavailable(reason)) => {
                log::warn!("not announced, trying again: {reason}");
                span.fail("publish", &reason);
                false
            }
            // Trying again would stop the partition for good; the order itself is safe.
            Err(PublishError::Refused(reason)) => {
                log::error!(
                    topic = &*record.topic, partition = record.partition, offset = record.offset;
                    "kafka refuses the announcement, passing over it: {reason}"
                );
                span.fail("publish", &reason);
                true
            }
        }
    }
}

/// The span of one record's processing: a child of the span that sent it, and linked to it,
/// as the conventions ask where both is wanted.
fn process_span(record: &ConsumerRecord, order: Option<&OrderId>, group: &str) -> DetachedSpan {
    let parent = trace_context(record);
    let sent = parent.span().span_context().clone();
    let links = sent.is_valid().then_some(sent).into_iter().collect();
    let name = format!("process {}", record.topic);
    let attributes = || {
        let mut attributes = vec![
            KeyValue::new(semconv::MESSAGING_SYSTEM, semconv::KAFKA),
            KeyValue::new(semconv::MESSAGING_OPERATION_NAME, "process"),
            KeyValue::new(semconv::MESSAGING_OPERATION_TYPE, "process"),
            KeyValue::new(
                semconv::MESSAGING_DESTINATION_NAME,
                record.topic.to_string(),
            ),
            KeyValue::new(
                semconv::MESSAGING_DESTINATION_PARTITION_ID,
                record.partition.to_string(),
            ),
            KeyValue::new(semconv::MESSAGING_CONSUMER_GROUP_NAME, group.to_owned()),
            KeyValue::new(semconv::MESSAGING_KAFKA_OFFSET, record.offset),
        ];
        attributes.extend(key_attribute(record.key.as_deref()));
        attributes.extend(order.map(|id| KeyValue::new(semconv::ORDER_ID, id.to_string())));
        attributes
    };
    tracing::detached_span_in(&parent, name, SpanKind::Consumer, attributes, links)
}

/// For each partition the offset up to which everything is done: the next one to read.
pub fn committable(records: &[ConsumerRecord], done: &[bool]) -> Vec<(TopicPartition, i64)> {
    let mut partitions: BTreeMap<(&str, i32), (Option<i64>, bool)> = BTreeMap::new();
    for (record, done) in records.iter().zip(done) {
        let (next, blocked) = partitions
            .entry((&record.topic, record.partition))
            .or_default();
        *blocked |= !done;
        if !*blocked {
            *next = Some(record.offset + 1);
        }
    }
    partitions
        .into_iter()
        .filter_map(|((topic, partition), (next, _))| {
            Some((TopicPartition::new(topic, partition), next?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(partition: i32, offset: i64) -> ConsumerRecord {
        ConsumerRecord {
            topic: "t".into(),
            partition,
            offset,
            leader_epoch: -1,
            timestamp_ms: -1,
            key: None,
            value: None,
            headers: Vec::new(),
        }
    }

    #[test]
    fn offsets_move_only_up_to_the_first_record_that_is_not_done() {
        let records = [
            record(0, 7),
            record(1, 3),
            record(0, 8),
            record(0, 9),
            record(1, 4),
        ];
        let offsets = committable(&records, &[true, false, false, true, true]);
        assert_eq!(offsets, [(TopicPartition::new("t", 0), 8)]);
    }

    #[test]
    fn a_batch_that_is_done_is_committed_in_every_partition() {
        let records = [record(0, 7), record(1, 3), record(0, 9)];
        let offsets = committable(&records, &[true, true, true]);
        let expected = [
            (TopicPartition::new("t", 0), 10),
            (TopicPartition::new("t", 1), 4),
        ];
        assert_eq!(offsets, expected);
    }
}
