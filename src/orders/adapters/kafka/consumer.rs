//! The worker's consumer threads: poll, process the batch, announce, commit.
//!
//! Nothing is committed that was not done: an offset moves only over records
//! whose order has reached its end in the database and whose announcement is
//! acknowledged. When the database or Kafka is away, the batch is given back
//! ([`Consumer::rewind`]), and polled again after a pause.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::deadline::Deadline;
use crate::kafka::Cluster;
use crate::kafka::consumer::{Consumer, ConsumerConfig, ConsumerRecord};
use crate::kafka::group::TopicPartition;
use crate::kafka::producer::Record;
use crate::orders::app::PUBLISH_BUDGET;
use crate::orders::app::commands::{ProcessOrders, Processed};
use crate::orders::domain::{OrderEvent, OrderId};
use crate::orders::ports::{EventBus, PublishError, SecondChance};
use crate::stop::StopSignal;
use crate::telemetry::metrics::{KafkaMetrics, OrdersMetrics, WorkerMetrics};
use crate::telemetry::semconv;
use crate::telemetry::tracing::{self, DetachedSpan, KeyValue, SpanKind, TraceContextExt};

use super::KafkaEventBus;
use super::bus::{TRACEPARENT, key_attribute};
use super::dead_letter::{Reason, dead_letter, replayed_at};
use super::events::created_order;
use super::meter::ConsumerMeter;

/// How long a poll waits for records; also how late a stop may be noticed.
const POLL_TIMEOUT: Duration = Duration::from_millis(500);
/// The pause after something was away.
const PAUSE: Duration = Duration::from_secs(1);
/// What committing offsets may take.
const COMMIT_BUDGET: Duration = Duration::from_secs(5);
/// What leaving the group may take.
const CLOSE_BUDGET: Duration = Duration::from_secs(5);

/// Why a message becomes a dead letter, as label values.
const UNDECODABLE: &str = "undecodable";
const UNKNOWN_ORDER: &str = "unknown_order";
const FAILED: &str = "failed";

/// What the threads need besides the use case.
pub struct Settings {
    /// The cluster to consume from.
    pub cluster: Cluster,
    /// Group, topics, time-outs.
    pub consumer: ConsumerConfig,
    /// Where rebalances, assignments and commits are counted.
    pub metrics: KafkaMetrics,
    /// How many threads; each is a member of the group with its own connections.
    pub concurrency: usize,
}

/// Processes the events of new orders.
pub struct OrderConsumers {
    /// The use case.
    pub process: ProcessOrders,
    /// Where outcomes are announced.
    pub bus: Arc<KafkaEventBus>,
    /// Where dead letters are counted.
    pub orders: OrdersMetrics,
    /// Where busy threads are counted.
    pub worker: WorkerMetrics,
    /// Ends the threads.
    pub stop: StopSignal,
}

impl OrderConsumers {
    /// Starts the threads `order-consumer-N`; the caller joins them after giving the
    /// stop signal. Each then finishes the order it works on, commits what is done and
    /// leaves the group.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(self, settings: Settings) -> io::Result<Vec<JoinHandle<()>>> {
        let (this, settings) = (Arc::new(self), Arc::new(settings));
        for reason in [UNDECODABLE, UNKNOWN_ORDER, FAILED] {
            this.orders.dead_lettered.with_label_values(&[reason]);
        }
        this.worker
            .threads
            .set(settings.concurrency.try_into().unwrap_or(i64::MAX));
        (0..settings.concurrency)
            .map(|number| {
                let (this, settings) = (Arc::clone(&this), Arc::clone(&settings));
                thread::Builder::new()
                    .name(format!("order-consumer-{number}"))
                    .spawn(move || this.run(&settings))
            })
            .collect()
    }

    fn run(&self, settings: &Settings) {
        while !self.stop.is_stopped() {
            // A panic is a mistake of ours; it must not cost the group a member for good.
            // The consumer it leaves behind is dropped, and its records come again.
            let ended = catch_unwind(AssertUnwindSafe(|| self.run_member(settings)));
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => log::error!("consumer: {error}"),
                Err(_) => log::error!("consumer thread recovered from a panic"),
            }
            self.stop.wait_for(PAUSE);
        }
    }

    /// One membership in the group, until the stop signal or an error that only a
    /// new membership mends.
    fn run_member(&self, settings: &Settings) -> Result<(), crate::kafka::Error> {
        let group = settings.consumer.group_id.clone();
        let meter = ConsumerMeter::new(settings.metrics.clone(), group);
        let hooks = Box::new(meter.clone());
        let mut consumer =
            Consumer::start(settings.cluster.clone(), settings.consumer.clone(), hooks)?;
        let ended = self.consume(&mut consumer, &meter);
        if let Err(error) = consumer.close(Deadline::after(CLOSE_BUDGET)) {
            log::warn!("left the group without telling it: {error}");
        }
        ended
    }

    fn consume(
        &self,
        consumer: &mut Consumer,
        meter: &ConsumerMeter,
    ) -> Result<(), crate::kafka::Error> {
        let mut away = false;
        while !self.stop.is_stopped() {
            match consumer.poll(Deadline::after(POLL_TIMEOUT)) {
                Ok(records) => {
                    away = false;
                    if !records.is_empty() {
                        self.work(consumer, meter, &records);
                    }
                }
                Err(error) if error.is_transient() => {
                    if !std::mem::replace(&mut away, true) {
                        log::warn!("consumer: {error}; trying again until it works");
                    }
                    self.stop.wait_for(PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn work(&self, consumer: &mut Consumer, meter: &ConsumerMeter, records: &[ConsumerRecord]) {
        meter.polled(&self.bus.topics().created, records.len());
        self.worker.threads_busy.inc();
        let done = self.process_batch(records, meter.group());
        self.worker.threads_busy.dec();
        let offsets = committable(records, &done);
        if !offsets.is_empty()
            && let Err(error) = consumer.commit(&offsets, Deadline::after(COMMIT_BUDGET))
        {
            // The records come again, to us or to the partition's new owner.
            log::warn!("offsets not committed: {error}");
            meter.commit_failed();
        }
        if done.contains(&false) && !self.stop.is_stopped() {
            consumer.rewind();
            // Stays a member, lets others rebalance, and takes nothing up meanwhile.
            if let Err(error) = consumer.idle(Deadline::after(PAUSE)) {
                log::debug!("consumer: {error}");
            }
        }
    }

    /// Works on the records together; for each, whether it is done with.
    fn process_batch(&self, records: &[ConsumerRecord], group: &str) -> Vec<bool> {
        let event_type = &*self.bus.topics().created;
        let orders: Vec<Result<OrderId, String>> = records
            .iter()
            .map(|record| created_order(record.value.as_deref(), event_type))
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

        // Each order once, in the order of the records: on a stop those that are done come first.
        let mut seen = HashSet::new();
        let ids: Vec<OrderId> = orders
            .iter()
            .filter_map(|order| order.as_ref().ok().copied())
            .filter(|id| seen.insert(*id))
            .collect();
        let chances: Vec<SecondChance> = records
            .iter()
            .zip(&orders)
            .filter_map(|(record, order)| {
                Some(SecondChance {
                    id: *order.as_ref().ok()?,
                    replayed_at: replayed_at(record)?,
                })
            })
            .collect();
        let results = {
            let _entered = spans.first().map(DetachedSpan::enter);
            match self.process.handle(&ids, &chances) {
                Ok(results) => results,
                Err(error) => {
                    log::warn!("{} orders not processed, trying again: {error}", ids.len());
                    spans
                        .iter()
                        .for_each(|span| span.fail("store", &error.to_string()));
                    return vec![false; records.len()];
                }
            }
        };

        let mut announcements = Announcements::default();
        let mut done = Vec::with_capacity(records.len());
        for (index, (record, order)) in records.iter().zip(&orders).enumerate() {
            let _entered = spans[index].enter();
            let conclusion = self.conclude(record, order, &results, &spans[index]);
            done.push(conclusion.is_some());
            for announcement in conclusion.into_iter().flatten() {
                announcements.add(index, announcement, &spans[index]);
            }
        }
        for (index, result) in announcements.publish(&self.bus) {
            match result {
                Ok(()) => {}
                Err(PublishError::Unavailable(reason)) => {
                    log::warn!("not announced, trying again: {reason}");
                    spans[index].fail("publish", &reason);
                    done[index] = false;
                }
                // Trying again would stop the partition for good; the order itself is safe.
                Err(PublishError::Refused(reason)) => {
                    log::error!(
                        topic = &*records[index].topic, partition = records[index].partition,
                        offset = records[index].offset; "kafka refuses the announcement, passing over it: {reason}"
                    );
                    spans[index].fail("publish", &reason);
                }
            }
        }
        done
    }

    /// What is to be announced about a record that is done with; `None` if it is not.
    fn conclude(
        &self,
        record: &ConsumerRecord,
        order: &Result<OrderId, String>,
        results: &HashMap<OrderId, Processed>,
        span: &DetachedSpan,
    ) -> Option<Vec<Record>> {
        let id = match order {
            Ok(id) => id,
            Err(why) => return Some(vec![self.give_up(record, span, UNDECODABLE, why, 0)]),
        };
        match results.get(id)? {
            Processed::Interrupted => None,
            Processed::Completed(order) => {
                log::info!(order_id:% = id; "order completed");
                Some(vec![
                    self.announcement(&OrderEvent::Processed(order.clone())),
                ])
            }
            Processed::Canceled => {
                log::info!(order_id:% = id; "order was canceled, skipped");
                Some(Vec::new())
            }
            Processed::Unknown => Some(vec![self.give_up(
                record,
                span,
                UNKNOWN_ORDER,
                "there is no such order",
                0,
            )]),
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
                let letter = self.give_up(record, span, FAILED, reason, *attempts);
                Some(vec![self.announcement(&failed), letter])
            }
        }
    }

    fn announcement(&self, event: &OrderEvent) -> Record {
        self.bus.record(&self.bus.encode(event))
    }

    fn give_up(
        &self,
        record: &ConsumerRecord,
        span: &DetachedSpan,
        kind: &str,
        why: &str,
        attempts: u32,
    ) -> Record {
        span.fail(kind, why);
        self.orders.dead_lettered.with_label_values(&[kind]).inc();
        log::warn!(
            topic = &*record.topic, partition = record.partition, offset = record.offset;
            "record goes to the dead-letter topic: {why}"
        );
        let reason = Reason {
            text: why.to_owned(),
            attempts,
        };
        dead_letter(&self.bus.topics().dlq, record, &reason)
    }
}

/// The span of one record's processing: a child of the span that sent it, and linked to it,
/// as the conventions ask where both is wanted.
fn process_span(record: &ConsumerRecord, order: Option<&OrderId>, group: &str) -> DetachedSpan {
    let traceparent = record
        .header(TRACEPARENT)
        .and_then(|value| std::str::from_utf8(value).ok());
    let parent = tracing::extract(traceparent, None);
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

/// Records to publish, each for one record consumed and caused by its span.
#[derive(Default)]
struct Announcements {
    indices: Vec<usize>,
    records: Vec<(Record, Option<String>)>,
}

impl Announcements {
    fn add(&mut self, index: usize, record: Record, span: &DetachedSpan) {
        self.indices.push(index);
        self.records
            .push((record, tracing::inject(&span.context())));
    }

    /// Publishes all together; each answer with the index of the record it is for.
    fn publish(
        self,
        bus: &KafkaEventBus,
    ) -> impl Iterator<Item = (usize, Result<(), PublishError>)> {
        let results = match self.records.is_empty() {
            true => Vec::new(),
            false => bus.send(self.records, Deadline::after(PUBLISH_BUDGET)),
        };
        self.indices.into_iter().zip(results)
    }
}

/// For each partition the offset up to which everything is done: the next one to read.
fn committable(records: &[ConsumerRecord], done: &[bool]) -> Vec<(TopicPartition, i64)> {
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
